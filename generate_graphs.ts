#!/usr/bin/env -S node --import tsx
/**
 * generate_graphs.ts - draw what the stress tester measured, and say what it proves.
 *
 * Reads up to eight runs, prints a table that compares them and a verdict, and writes one
 * SVG: the histogram, the share answered within t, and first requests against later ones.
 * The same input gives the same bytes: no clock, no chance, no measured text.
 *
 *   tsx generate_graphs.ts                          the three runs in data/
 *   tsx generate_graphs.ts --data data/demo         the three runs in another folder
 *   tsx generate_graphs.ts before/RoundRobin.json after/RoundRobin.json --out change.svg
 *
 * A run is a JSON array with an array for each client, with the seconds each of its requests
 * took; a client without answers is []. Failed requests are not in these files.
 */
import { readFile, writeFile } from "node:fs/promises";
import { basename, dirname, join, resolve } from "node:path";
import {
  anyText,
  carries,
  isMain,
  mulberry32,
  type Options,
  quantile,
  reasonOf,
  RunError,
  runScript,
  someSeconds,
  UsageError,
  type Values,
} from "./lib.ts";

/**
 * The runs to read when none are named; the first is one server without a balancer, a reference.
 */
const RUNS = ["Baseline", "RoundRobin", "LeastConnections"];
const PICTURE = "response_times.svg";

/**
 * The longest time taken for a response time, 12 days; what is longer was not written in seconds.
 */
const MAX_SECONDS = 1e6;
const BINS = 20;
/**
 * The histogram ends here, in medians, when a longer tail would squeeze the rest into a few bins.
 */
const LONG_TAIL = 6;
const DRAWS = 2000;
const SEED = 1;
/** With fewer clients a bootstrap interval is too narrow; with one it has no width at all. */
const FEWEST_CLIENTS = 20;

/** Units of the view box. 18 units stay legible when the picture is shown 480 pixels wide. */
const WIDTH = 960;
const HEIGHT = 800;
const MARGIN = 20;
const FONT = 18;
const LINE = 23;
/**
 * Text cannot be measured here, so each character is given 0.6 em, in whole sentences 0.56: enough
 * for DejaVu Sans, the widest of the usual fonts.
 */
const CHARACTER = 0.6 * FONT;
const PROSE = 0.56 * FONT;
/**
 * Plots lie between LEFT and RIGHT; the column beside them holds direct labels, at most LABEL
 * characters long.
 */
const LEFT = 76;
const RIGHT = 716;
const COLUMN = 730;
const LABEL = 17;

interface Colour {
  readonly name: string;
  readonly light: string;
  readonly dark: string;
}
const PAPER: Colour = { name: "paper", light: "#ffffff", dark: "#0d1117" };
const INK: Colour = { name: "ink", light: "#1f2328", dark: "#e6edf3" };
const MUTED: Colour = { name: "muted", light: "#59636e", dark: "#9198a1" };
const GRID: Colour = { name: "grid", light: "#d0d7de", dark: "#30363d" };

/**
 * How a run looks: its line, its text (4.5:1 against the paper), and a dash for readers who do not
 * see colours.
 */
interface Look {
  readonly line: Colour;
  readonly text: Colour;
  readonly dash: string;
}
/**
 * The first three belong to RUNS, by name, and are Okabe and Ito's (2008); the others continue
 * them.
 */
const LOOKS: readonly Look[] = [
  ["#0072B2", "#0072B2", "#56B4E9", "none"],
  ["#D55E00", "#B35C00", "#E69F00", "7 3"],
  ["#009E73", "#00795A", "#009E73", "2 2"],
  ["#A3437F", "#A3437F", "#CC79A7", "12 4"],
  ["#7A6600", "#7A6600", "#F0E442", "10 3 2 3"],
  ["#5B4BC4", "#5B4BC4", "#A79BFF", "4 4"],
  ["#B3123F", "#B3123F", "#FF7B8A", "8 2 2 2 2 2"],
  ["#59636E", "#59636E", "#B1BAC4", "3 5"],
].map(([line = "", text = "", dark = "", dash = ""], slot) => ({
  line: { name: `line${slot}`, light: line, dark },
  text: { name: `text${slot}`, light: text, dark },
  dash,
}));

/**
 * The answers of one set-up: seconds by client and request, and the same, sorted, for the
 * statistics.
 */
export interface Run {
  /** The file's name without .json. */
  readonly name: string;
  /** The name in words. */
  readonly title: string;
  /** The title, cut to what the picture has room for. */
  readonly label: string;
  readonly look: Look;
  readonly clients: readonly (readonly number[])[];
  readonly all: readonly number[];
  readonly first: readonly number[];
  readonly later: readonly number[];
}

// ─── Reading ─────────────────────────────────────────────────────────────────
// Files are not trusted: whatever is not a time is reported with its place. One bad file does not
// keep the others from being drawn, so reading collects complaints and throws nothing.

/** A value of a JSON file, short enough for a complaint. */
function quoted(value: unknown): string {
  if (Array.isArray(value)) return "an array";
  if (typeof value === "object" && value !== null) return "an object";
  return typeof value === "string"
    ? JSON.stringify(value.length > 40 ? `${value.slice(0, 40)}…` : value)
    : String(value);
}

const isTime = (value: unknown): value is number =>
  typeof value === "number" && value >= 0 && value <= MAX_SECONDS;

/**
 * Reads a run's text: seconds by client and request. Throws a RunError that says where it is
 * malformed; both count from 1.
 */
export function parseTimes(text: string): number[][] {
  if (text.trim() === "") throw new RunError("the file is empty: expected an array of clients");
  const clients = parseJson(text);
  if (!Array.isArray(clients))
    throw new RunError(`expected an array of clients, not ${quoted(clients)}`);
  return clients.map((requests: unknown, client) => {
    if (!Array.isArray(requests))
      throw new RunError(
        `client ${client + 1}: expected an array of times, not ${quoted(requests)}`,
      );
    return requests.map((value: unknown, request) => {
      if (!isTime(value))
        throw new RunError(
          `client ${client + 1}, request ${request + 1}: ${quoted(value)} is not a time in seconds`,
        );
      return value;
    });
  });
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text.replace(/^\uFEFF/, ""));
  } catch (error) {
    throw new RunError(`not JSON: ${reasonOf(error)}`);
  }
}

/** Control characters have no place in a line of text, nor in XML. */
const oneLine = (text: string): string => text.replace(/\s+/g, " ").replace(/\p{C}/gu, "\ufffd");

const nameOf = (file: string): string => basename(file, ".json");

/**
 * The name of a run in words, "RoundRobin" as "Round Robin"; with its folder where another file has
 * the same name.
 */
export function titleOf(file: string, files: readonly string[]): string {
  const words = (name: string): string =>
    oneLine(name.replace(/([a-z\d])([A-Z])/g, "$1 $2").replace(/[-_]+/g, " ")).trim() ||
    oneLine(name);
  const namesakes = files.filter((other) => nameOf(other) === nameOf(file));
  return namesakes.length > 1
    ? `${oneLine(basename(dirname(resolve(file))))}/${words(nameOf(file))}`
    : words(nameOf(file));
}

/**
 * Gives each run a look of its own: the three known names keep theirs, the others take what is
 * free, in order.
 */
export function looksOf(names: readonly string[]): Look[] {
  const own = names.map((name, place) =>
    names.indexOf(name) === place ? LOOKS[RUNS.indexOf(name)] : undefined,
  );
  const free = LOOKS.filter((look) => !own.includes(look)).values();
  return own.flatMap((look) => look ?? free.next().value ?? []);
}

const sorted = (values: readonly number[]): number[] => [...values].sort((a, b) => a - b);

/** A run from what was read; `title` and `look` tell it from the others. */
export function runOf(
  name: string,
  title: string,
  look: Look,
  clients: readonly (readonly number[])[],
): Run {
  const first = clients.flatMap((requests) => requests.slice(0, 1));
  const later = clients.flatMap((requests) => requests.slice(1));
  return {
    name,
    title,
    label: shorten(title, LABEL),
    look,
    clients,
    all: sorted(clients.flat()),
    first: sorted(first),
    later: sorted(later),
  };
}

/**
 * Reads `files`, of which there are at most as many as looks. A file that cannot be read becomes a
 * complaint, in one line.
 */
async function readRuns(files: readonly string[]): Promise<{ runs: Run[]; complaints: string[] }> {
  const runs: Run[] = [];
  const complaints: string[] = [];
  const looks = looksOf(files.map(nameOf));
  for (const [place, look] of looks.entries()) {
    const file = files[place] ?? "";
    try {
      const text = await readFile(file, "utf8").catch((error: unknown) => {
        throw new RunError(reasonOf(error));
      });
      runs.push(runOf(nameOf(file), titleOf(file, files), look, parseTimes(text)));
    } catch (error) {
      if (!(error instanceof RunError)) throw error;
      complaints.push(oneLine(`Cannot draw ${file}: ${error.message}`));
    }
  }
  return { runs, complaints };
}

// ─── Statistics ──────────────────────────────────────────────────────────────
// Pure functions from numbers to numbers. "Sorted" means ascending; times are in seconds, shares
// between 0 and 1.

/** The arithmetic mean; NaN of nothing. */
export const mean = (values: readonly number[]): number =>
  values.reduce((sum, value) => sum + value, 0) / values.length;

/**
 * The steps of the empirical distribution: each distinct value of sorted `values`, with the share
 * of values up to it.
 */
export function ecdf(values: readonly number[]): { value: number; share: number }[] {
  return values.flatMap((value, place) =>
    value === values[place + 1] ? [] : [{ value, share: (place + 1) / values.length }],
  );
}

/**
 * The share of `values` in each of `bins` equal bins from 0 to `top`, which itself belongs to the
 * last bin, and the share beyond `top`.
 */
export function histogram(
  values: readonly number[],
  top: number,
  bins: number,
): { shares: number[]; beyond: number } {
  const counts = new Array<number>(bins + 1).fill(0);
  for (const value of values) {
    const bin = value > top ? bins : Math.min(bins - 1, Math.floor((value * bins) / top));
    counts[bin] = (counts[bin] ?? 0) + 1;
  }
  const shares = counts.map((count) => count / Math.max(1, values.length));
  return { shares: shares.slice(0, bins), beyond: shares[bins] ?? 0 };
}

/**
 * Where the histogram of sorted `values` ends: at a round number above them all, or when the tail
 * is long at one above most.
 */
export function histogramTop(values: readonly number[]): number {
  const max = values.at(-1) ?? 0;
  const limit = LONG_TAIL * quantile(values, 0.5);
  return niceTop(limit > 0 ? Math.min(max, limit) : max, 10);
}

/** The mean of as many values as there are, drawn from them with replacement. */
export function resampledMean(values: readonly number[], random: () => number): number {
  let sum = 0;
  for (let drawn = 0; drawn < values.length; drawn++)
    sum += values[Math.floor(random() * values.length)] ?? 0;
  return sum / values.length;
}

/**
 * The 95 % bootstrap interval (Efron 1979, percentiles) of what `resample` computes from one
 * resampling.
 */
export function bootstrapInterval(
  resample: (random: () => number) => number,
  seed = SEED,
  draws = DRAWS,
): { low: number; high: number } {
  const random = mulberry32(seed);
  const results = sorted(Array.from({ length: draws }, () => resample(random)));
  return { low: quantile(results, 0.025), high: quantile(results, 0.975) };
}

/**
 * Whether two runs had the same plan: equal numbers of answers, client by client. A failed request
 * breaks it, and should.
 */
export const samePlan = (a: Run, b: Run): boolean =>
  a.clients.length === b.clients.length &&
  a.clients.every((requests, client) => requests.length === b.clients[client]?.length);

export interface Comparison {
  readonly fast: Run;
  readonly slow: Run;
  /** How many runs the two were chosen from. */
  readonly among: number;
  readonly paired: boolean;
  /** Of the mean first request, slow minus fast, in seconds; undefined with too few clients. */
  readonly interval: { readonly low: number; readonly high: number } | undefined;
}

/**
 * Compares the runs by the mean time of their clients' first requests: the fastest with the next,
 * for "the fastest" is a claim against the runner-up. Choosing them afterwards does not make false
 * claims likelier: among equals, the gap between the first two is smaller than between any two.
 * Baseline is another kind of set-up and takes part only as one of two. Undefined with fewer than
 * two runs.
 */
export function compare(runs: readonly Run[]): Comparison | undefined {
  const answered = runs.filter((run) => run.first.length > 0);
  const balanced = answered.filter((run) => run.name !== RUNS[0]);
  const candidates = (balanced.length < 2 ? answered : balanced).sort(
    (a, b) => mean(a.first) - mean(b.first),
  );
  const [fast, slow] = candidates;
  if (!fast || !slow) return undefined;
  const paired = samePlan(fast, slow);
  const enough = Math.min(fast.first.length, slow.first.length) >= FEWEST_CLIENTS;
  return {
    fast,
    slow,
    among: candidates.length,
    paired,
    interval: enough ? differenceInterval(fast, slow, paired) : undefined,
  };
}

/**
 * Resamples clients, not requests: the requests of one client depend on each other. Paired, the
 * plan's own noise cancels out. Clients of one queue depend on each other too, which no resampling
 * within a run can undo: this says what was, not what another seed would show.
 */
function differenceInterval(fast: Run, slow: Run, paired: boolean): { low: number; high: number } {
  if (!paired)
    return bootstrapInterval(
      (random) => resampledMean(slow.first, random) - resampledMean(fast.first, random),
    );
  const differences = slow.clients.flatMap(([first], client) =>
    first === undefined ? [] : [first - (fast.clients[client]?.[0] ?? 0)],
  );
  return bootstrapInterval((random) => resampledMean(differences, random));
}

// ─── Scales and ticks ────────────────────────────────────────────────────────
// All arithmetic from seconds and shares to the picture's units happens here: a scale is a
// function, an axis a scale with the ticks whose labels fit beside each other.

export type Scale = (value: number) => number;
interface Axis {
  readonly at: Scale;
  readonly ticks: readonly number[];
}

/**
 * The step of about `count` ticks over `span`, of 1, 2 or 5 times a power of ten, by d3's rule; as
 * a fraction, since 3 / 10 is exact and 3 * 0.1 is not.
 */
function tickStep(span: number, count: number): { times: number; over: number } {
  const power = Math.floor(Math.log10(span / count));
  const error = span / count / 10 ** power;
  const factor =
    error >= Math.sqrt(50) ? 10 : error >= Math.sqrt(10) ? 5 : error >= Math.sqrt(2) ? 2 : 1;
  return power < 0
    ? { times: 1, over: Number(`1e${-power}`) / factor }
    : { times: factor * Number(`1e${power}`), over: 1 };
}

/** About `count` round numbers from `low` to `high`. */
export function ticks(low: number, high: number, count: number): number[] {
  if (!(high > low)) return [low];
  const { times, over } = tickStep(high - low, count);
  const from = Math.ceil((low * over) / times - 1e-9);
  const to = Math.floor((high * over) / times + 1e-9);
  return Array.from({ length: to - from + 1 }, (_, place) => ((from + place) * times) / over);
}

/**
 * A round number not below `max`, an end for an axis that begins at 0: it is one of about `count`
 * ticks.
 */
export function niceTop(max: number, count: number): number {
  if (!(max > 0)) return 1;
  const { times, over } = tickStep(max, count);
  return (Math.ceil((max * over) / times - 1e-9) * times) / over;
}

/** 1, 2 and 5 times each power of ten, from a microsecond to MAX_SECONDS. */
const LADDER = [-6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6].flatMap((power) =>
  [1, 2, 5].map((factor) => Number(`${factor}e${power}`)),
);

/**
 * The rungs of LADDER that enclose `low` and `high`. A logarithm has no place for 0: what has no
 * rung below it is drawn at the left edge.
 */
export function logRungs(low: number, high: number): number[] {
  const to = LADDER.findIndex((rung) => rung >= (high || 1));
  const from = low > 0 && low <= high ? LADDER.findLastIndex((rung) => rung <= low) : to - 3;
  const alone = from === to ? 1 : 0; // one value, on a rung: leave room on both sides
  return LADDER.slice(Math.max(0, from - alone), to + alone + 1);
}

export const linearScale =
  ([low, high]: readonly [number, number], [from, to]: readonly [number, number]): Scale =>
  (value) =>
    from + ((value - low) / (high - low)) * (to - from);

/** Logarithmic; what lies below the domain goes to its edge. */
export function logScale(
  [low, high]: readonly [number, number],
  range: readonly [number, number],
): Scale {
  const scale = linearScale([Math.log(low), Math.log(high)], range);
  return (value) => scale(Math.log(Math.max(low, value)));
}

/** The first of the candidates whose labels do not run into each other, or else the last. */
function fitting(candidates: readonly (readonly number[])[], at: Scale): readonly number[] {
  const room = (tick: number): number => (String(tick).length / 2 + 0.5) * CHARACTER;
  const fits = (list: readonly number[]): boolean =>
    list.every(
      (tick, place) =>
        place === 0 ||
        at(tick) - room(tick) >= at(list[place - 1] ?? 0) + room(list[place - 1] ?? 0),
    );
  return candidates.find(fits) ?? candidates.at(-1) ?? [];
}

function linearAxis(top: number, range: readonly [number, number]): Axis {
  const at = linearScale([0, top], range);
  return {
    at,
    ticks: fitting(
      [8, 5, 4, 3, 2, 1].map((count) => ticks(0, top, count)),
      at,
    ),
  };
}

/**
 * From the fastest of the runs without its fastest hundredth, for a few tiny values would take half
 * of a logarithmic axis, to the maximum of all.
 */
function logAxis(runs: readonly Run[], range: readonly [number, number]): Axis {
  const lows = runs.map(
    ({ all }) => all.find((value) => value > 0 && value >= quantile(all, 0.01)) ?? Infinity,
  );
  const rungs = logRungs(Math.min(...lows), Math.max(...runs.map(({ all }) => all.at(-1) ?? 0)));
  const at = logScale([rungs[0] ?? 1, rungs.at(-1) ?? 10], range);
  const powers = rungs.filter((rung) => Number.isInteger(Math.log10(rung)));
  return {
    at,
    ticks: fitting(
      [rungs, powers, ...[2, 3, 4].map((n) => powers.filter((_, place) => place % n === 0))],
      at,
    ),
  };
}

// ─── Markup ──────────────────────────────────────────────────────────────────
// The one place that knows SVG's syntax. Colours are literal attributes, for the light theme and
// for tools that ignore style sheets; the style sheet repaints them, by class, where the reader
// prefers dark.

/** A coordinate, to 0.1 unit. */
export const round = (value: number): string => String(Math.round(value * 10) / 10);

/** Text made safe for XML, which knows no way at all to write most control characters. */
export function escape(text: string): string {
  const entities: Record<string, string> = {
    "&": "&amp;",
    "<": "&lt;",
    ">": "&gt;",
    '"': "&quot;",
    "'": "&#39;",
  };
  return text
    .replace(/[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\u{10000}-\u{10ffff}]/gu, "\ufffd")
    .replace(/[&<>"']/g, (character) => entities[character] ?? "");
}

/**
 * How many characters wide a text is: those of wide scripts, and the widest letters, count twice.
 */
const widthOf = (characters: Iterable<string>): number =>
  [...characters].reduce(
    (sum, character) => sum + (character > "\u2e7f" || "MW@".includes(character) ? 2 : 1),
    0,
  );

/**
 * `text` within `room` characters; what is too much goes from the middle, since names differ at
 * their ends.
 */
export function shorten(text: string, room: number): string {
  const characters = [...text];
  if (widthOf(characters) <= room) return text;
  while (widthOf(characters) > room - 1) characters.splice(characters.length >> 1, 1);
  characters.splice((characters.length + 1) >> 1, 0, "…");
  return characters.join("");
}

/** Breaks `text` between words into lines of at most `room` characters. */
export function wrap(text: string, room: number): string[] {
  const lines: string[] = [];
  for (const word of text.split(" ")) {
    const line = `${lines.at(-1) ?? ""} ${word}`;
    if (lines.length > 0 && widthOf(line) <= room) lines[lines.length - 1] = line;
    else lines.push(word);
  }
  return lines;
}

function paint(fill: Colour | undefined, stroke?: Colour): string {
  const classes = [fill && `f-${fill.name}`, stroke && `s-${stroke.name}`]
    .filter(Boolean)
    .join(" ");
  return `class="${classes}" fill="${fill?.light ?? "none"}"${stroke ? ` stroke="${stroke.light}"` : ""}`;
}

const darkRule = ({ name, dark }: Colour): string =>
  `.response-times .f-${name}{fill:${dark}}.response-times .s-${name}{stroke:${dark}}`;

type Anchor = "start" | "middle" | "end";
const text = (
  x: number,
  y: number,
  content: string,
  colour: Colour = INK,
  anchor: Anchor = "start",
): string =>
  `<text x="${round(x)}" y="${round(y)}" text-anchor="${anchor}" ${paint(colour)}>${escape(content)}</text>`;

const line = (
  x1: number,
  y1: number,
  x2: number,
  y2: number,
  colour: Colour,
  width = 1,
  dash = "none",
): string =>
  `<path d="M${round(x1)} ${round(y1)}L${round(x2)} ${round(y2)}" stroke-width="${width}" stroke-dasharray="${dash}" ${paint(undefined, colour)}/>`;

const heading = (y: number, title: string, note: string): string =>
  `<text x="${MARGIN}" y="${round(y)}" ${paint(MUTED)}><tspan font-weight="600" ${paint(INK)}>${escape(title)}</tspan> ${escape(note)}</text>`;

/**
 * A short piece of a run's line, for legends; `y` is the base line of the text it stands before.
 */
const swatch = (x: number, y: number, { line: colour, dash }: Look): string =>
  line(x, y - FONT / 3, x + 26, y - FONT / 3, colour, 3, dash);

// ─── Panels ──────────────────────────────────────────────────────────────────
// Functions from runs and a frame to a string. The frame is the plot itself; headings stand above
// it, ticks below it and direct labels in the column to its right.

interface Frame {
  readonly top: number;
  readonly bottom: number;
}

/** Text for a number of seconds, to three digits; at most eight characters, and a sign. */
export function seconds(value: number): string {
  const size = Math.abs(value);
  const short = size >= 100 ? Math.round(value) : Number(value.toPrecision(3));
  return size > 0 && size < 1e-4 ? short.toExponential() : String(short);
}

/** Text for a share, to 0.1 %; what is there is never 0 %. */
export function percent(share: number): string {
  const value = Math.round(share * 1000) / 10;
  return `${share > 0 && value === 0 ? "< 0.1" : value} %`;
}

/**
 * The base lines of `count` labels beside a plot, evenly spaced about `middle` but never beyond the
 * frame.
 */
function column({ top, bottom }: Frame, count: number, middle: number): number[] {
  const step = Math.min(LINE, (bottom - top) / count);
  const from = Math.max(top, Math.min(bottom - step * count, middle - (step * count) / 2));
  return Array.from({ length: count }, (_, place) => from + step * (place + 0.5) + FONT / 3);
}

/** Vertical rules at the ticks of an axis. */
const rules = ({ at, ticks: values }: Axis, { top, bottom }: Frame): string[] =>
  values.map((value) => line(at(value), top, at(value), bottom, GRID));

const TIME = "Response Time (s)";

/**
 * The labels of an axis of times, but for those that would reach `limit`, and its name, at the
 * right.
 */
function timeLabels(
  { at, ticks: values }: Axis,
  y: number,
  limit = WIDTH - MARGIN - TIME.length * CHARACTER,
): string[] {
  const labels = values
    .map((value) => ({ x: at(value), label: String(value) }))
    .filter(({ x, label }) => x + (label.length / 2) * CHARACTER < limit);
  return [
    ...labels.map(({ x, label }) => text(x, y, label, MUTED, "middle")),
    text(WIDTH - MARGIN, y, TIME, MUTED, "end"),
  ];
}

/** Rules and labels at some shares. */
const shareRules = (at: Scale, shares: readonly number[]): string[] =>
  shares.flatMap((share) => [
    line(LEFT, at(share), RIGHT, at(share), GRID),
    text(LEFT - 8, at(share) + FONT / 3, `${Math.round(share * 100)} %`, MUTED, "end"),
  ]);

/**
 * The outline of a histogram: steps over the bins that hold something, down to the axis where one
 * holds nothing.
 */
export function outline(shares: readonly number[], x: Scale, y: Scale): string {
  const filled = (bin: number): boolean => (shares[bin] ?? 0) > 0;
  const steps = shares.map((share, bin) => {
    if (!filled(bin)) return "";
    const up = filled(bin - 1) ? "" : `M${round(x(bin))} ${round(y(0))}`;
    return `${up}V${round(y(share))}H${round(x(bin + 1))}${filled(bin + 1) ? "" : `V${round(y(0))}`}`;
  });
  return steps.join("");
}

interface Bars {
  readonly run: Run;
  readonly shares: readonly number[];
  /** The share beyond the axis. */
  readonly beyond: number;
}

/**
 * Panel A: the histogram. Each run's shares are of all its own requests; a last bin holds what lies
 * beyond the axis, so nothing is dropped.
 */
function histogramPanel(runs: readonly Run[], pooled: readonly number[], frame: Frame): string {
  const top = histogramTop(pooled);
  // the last bin, if there is one
  const tail = (pooled.at(-1) ?? 0) > top ? `> ${seconds(top)} s` : "";
  const axis = linearAxis(top, [LEFT, tail ? RIGHT - 90 : RIGHT]);
  const bin = linearScale([0, BINS], [axis.at(0), axis.at(top)]);
  const tailBin = linearScale([0, 1], [RIGHT - 74, RIGHT - 40]);
  const bars: Bars[] = runs.map((run) => ({ run, ...histogram(run.all, top, BINS) }));
  const highest = niceTop(
    Math.max(...bars.flatMap(({ shares, beyond }) => [...shares, beyond])),
    4,
  );
  const y = linearScale([0, highest], [frame.bottom, frame.top]);
  const slowestFirst = bars.toSorted((a, b) => mean(b.run.all) - mean(a.run.all));
  const opacity = runs.length > 3 ? 0.06 : 0.18; // many fills on top of each other make mud
  const medianX = (median: number): number => (median > top ? tailBin(0.5) : axis.at(median));
  return [
    heading(
      frame.top - 15,
      "Relative Frequency",
      `in ${BINS} equal bins; triangles mark the medians`,
    ),
    ...shareRules(y, ticks(0, highest, 4)),
    ...slowestFirst.map(({ run, shares, beyond }) =>
      shape(outline(shares, bin, y) + outline([beyond], tailBin, y), run.look, opacity),
    ),
    line(axis.at(0), frame.bottom, axis.at(top), frame.bottom, MUTED, 1.5),
    tail &&
      line(tailBin(0), frame.bottom, tailBin(1), frame.bottom, MUTED, 1.5) +
        text(tailBin(0.5), frame.bottom + 28, tail, MUTED, "middle"),
    ...timeLabels(
      axis,
      frame.bottom + 28,
      tail ? tailBin(0.5) - (tail.length / 2 + 1) * CHARACTER : undefined,
    ),
    ...slowestFirst.map(({ run }) =>
      medianMark(medianX(quantile(run.all, 0.5)), frame.bottom, run.look),
    ),
    ...maxima(bars, tail, frame),
  ].join("\n");
}

const shape = (path: string, { line: colour, dash }: Look, opacity: number): string =>
  `<path d="${path}" fill-opacity="${opacity}" stroke-width="2" stroke-dasharray="${dash}" ${paint(colour, colour)}/>`;

/** Beside the histogram: each run's maximum, and its share of the `tail` where there is one. */
function maxima(bars: readonly Bars[], tail: string, frame: Frame): string[] {
  const rows = column(frame, bars.length, frame.top);
  const entries = bars.flatMap(({ run, beyond }, place) => {
    const [row, maximum] = [rows[place] ?? 0, `${seconds(run.all.at(-1) ?? 0)} s`];
    return [
      swatch(COLUMN, row, run.look),
      text(COLUMN + 34, row, tail ? `${percent(beyond)}, ${maximum}` : maximum, run.look.text),
    ];
  });
  return [text(COLUMN, frame.top - 15, tail ? `${tail}, max` : "Maximum", MUTED), ...entries];
}

/** A triangle below the axis, outlined so that neighbours stay apart. */
const medianMark = (x: number, y: number, { line: colour }: Look): string =>
  `<path d="M${round(x)} ${round(y + 1)}l6 10h-12z" stroke-width="1" ${paint(colour, PAPER)}/>`;

/**
 * The steps of a distribution as a path. Steps closer than one unit are drawn as one, so that the
 * file stays small.
 */
export function ecdfPath(values: readonly number[], x: Scale, y: Scale): string {
  const steps = ecdf(values).map(({ value, share }) => ({ x: x(value), y: y(share) }));
  const seen = steps.filter(
    (step, place) => Math.floor(step.x) !== Math.floor(steps[place + 1]?.x ?? NaN),
  );
  return `M${round(steps[0]?.x ?? 0)} ${round(y(0))}${seen.map((step) => `H${round(step.x)}V${round(step.y)}`).join("")}`;
}

/**
 * Panel B: the share answered within t. No bins, the whole tail; a curve ends at its maximum. A
 * label's leader begins on its curve, and with many labels fans out from its upper half: further
 * down all curves are one.
 */
function ecdfPanel(runs: readonly Run[], time: Axis, frame: Frame): string {
  const y = linearScale([0, 1], [frame.bottom, frame.top]);
  const share = linearScale([frame.bottom, frame.top], [0, 1]);
  // where curves that differ in the tail lie apart
  const rows = column(frame, runs.length, y(0.72));
  const fastestFirst = runs.toSorted((a, b) => quantile(a.all, 0.72) - quantile(b.all, 0.72));
  const middles = rows.map((row) => row - FONT / 3);
  const many = share(middles.at(-1) ?? 0) < 0.5;
  const direct = fastestFirst.flatMap(({ all, label, look }, place) => {
    const [row = 0, middle = 0] = [rows[place], middles[place]];
    const level = many ? y(0.95 - (0.4 * place) / (runs.length - 1)) : middle;
    const x = time.at(all[Math.ceil(share(level) * all.length) - 1] ?? 0);
    const dot = `<circle cx="${round(x)}" cy="${round(level)}" r="4" stroke-width="1.5" ${paint(look.line, PAPER)}/>`;
    return [
      line(x, level, COLUMN - 5, middle, look.line, 1),
      dot,
      text(COLUMN, row, label, look.text),
    ];
  });
  return [
    heading(
      frame.top - 15,
      "Share answered within t",
      "logarithmic, the whole tail; a curve ends at its maximum",
    ),
    ...rules(time, frame),
    ...shareRules(y, [0, 0.5, 0.95]),
    ...runs.map(
      ({ all, look }) =>
        `<path d="${ecdfPath(all, time.at, y)}" stroke-width="2" stroke-dasharray="${look.dash}" ${paint(undefined, look.line)}/>`,
    ),
    ...direct,
  ].join("\n");
}

/**
 * p5 to p95 as a line, the quartiles as a box, the median across it. Nothing when there are no
 * values.
 */
function rangeMark(
  values: readonly number[],
  at: Scale,
  y: number,
  height: number,
  colour: Colour,
  fill: Colour,
): string {
  if (values.length === 0) return "";
  const [p5 = 0, p25 = 0, p50 = 0, p75 = 0, p95 = 0] = [0.05, 0.25, 0.5, 0.75, 0.95].map((p) =>
    at(quantile(values, p)),
  );
  const box = `<path d="M${round(p25)} ${round(y - height / 2)}H${round(p75)}v${round(height)}H${round(p25)}z" stroke-width="1.5" ${paint(fill, colour)}/>`;
  return (
    line(p5, y, p95, y, colour, 2) +
    box +
    line(p50, y - height / 2 - 2, p50, y + height / 2 + 2, INK, 2.5)
  );
}

/**
 * Panel C: first requests against later ones. It shows why runs differ: a wait for a free slot
 * falls on the first request only.
 */
function firstPanel(runs: readonly Run[], time: Axis, frame: Frame): string {
  const row = linearScale([0, runs.length], [frame.top, frame.bottom]);
  const height = (row(1) - row(0)) * 0.32;
  return [
    heading(
      frame.top - 15,
      "First requests",
      "(filled) and later ones (hollow): p5 to p95, quartiles, median",
    ),
    ...rules(time, frame),
    ...runs.flatMap(({ first, later, label, look }, place) => [
      rangeMark(first, time.at, row(place + 0.27), height, look.line, look.line),
      rangeMark(later, time.at, row(place + 0.73), height, look.line, PAPER),
      text(COLUMN, row(place + 0.5) + FONT / 3, label, look.text),
    ]),
    ...timeLabels(time, frame.bottom + 24),
  ].join("\n");
}

// ─── Picture ─────────────────────────────────────────────────────────────────
// One outer template: header, three panels, footer. The panels share what the header and the footer
// leave; B and C stand above each other on one axis of time.

const LEGEND_COLUMNS = 3;

/** The title, whether the plans match, n by run, and what the shares are shares of. */
function header(runs: readonly Run[], drawn: readonly Run[]): string[] {
  const same = drawn.every((run) => samePlan(run, drawn[0] ?? run));
  const width = (WIDTH - 2 * MARGIN) / LEGEND_COLUMNS;
  const legend = runs.flatMap(({ title, all, look }, place) => {
    const x = MARGIN + width * (place % LEGEND_COLUMNS);
    const y = 66 + LINE * Math.floor(place / LEGEND_COLUMNS);
    const n = all.length > 0 ? `n = ${all.length}` : "no answers";
    return [
      swatch(x, y, look),
      text(
        x + 34,
        y,
        `${shorten(title, Math.floor((width - 34) / PROSE) - n.length - 2)} ${n}`,
        look.text,
      ),
    ];
  });
  return [
    `<text x="${MARGIN}" y="36" font-size="28" font-weight="600" ${paint(INK)}>Response Time Histograms</text>`,
    drawn.length > 1
      ? text(
          WIDTH - MARGIN,
          36,
          same ? "same plan in every run" : "plans or failures differ",
          MUTED,
          "end",
        )
      : "",
    ...legend,
    text(
      MARGIN,
      66 + LINE * legendLines(runs),
      "Shares are of answered requests (n): failures are not in the files.",
      MUTED,
    ),
  ];
}

const legendLines = (runs: readonly Run[]): number => Math.ceil(runs.length / LEGEND_COLUMNS);

/**
 * The frames of the three panels between `top` and `bottom`, for `count` runs: C takes what its
 * rows need, A and B share the rest.
 */
function frames(top: number, bottom: number, count: number): { a: Frame; b: Frame; c: Frame } {
  const [title, labels, gap] = [32, 30, 6];
  const rows = count * Math.max(18, 34 - 2 * count);
  const plots = bottom - top - 3 * title - 2 * labels - 2 * gap - rows;
  const from = (start: number, height: number): Frame => ({
    top: start + title,
    bottom: start + title + height,
  });
  const a = from(top, plots * (count > 4 ? 0.5 : 0.55));
  const b = from(a.bottom + labels + gap, plots - (a.bottom - a.top));
  return { a, b, c: from(b.bottom + gap, rows) };
}

/** The picture in words, for those who do not see it. */
function description(drawn: readonly Run[], conclusion: string): string {
  const runs = drawn.map(
    ({ title, all }) =>
      `${title}: ${all.length} answers, median ${seconds(quantile(all, 0.5))} s, maximum ${seconds(all.at(-1) ?? 0)} s.`,
  );
  return [
    "Response times of answered requests: histogram, cumulative distribution, and first requests against later ones.",
    ...runs,
    conclusion,
  ].join(" ");
}

/** The whole SVG. At least one of `runs` has answers; those without are listed and not drawn. */
export function drawPicture(runs: readonly Run[]): string {
  const drawn = runs.filter(({ all }) => all.length > 0);
  const pooled = sorted(drawn.flatMap(({ all }) => all));
  const time = logAxis(drawn, [LEFT, RIGHT]);
  const footer = wrap(
    verdict(runs, (run) => run.label),
    Math.floor((WIDTH - 2 * MARGIN) / PROSE),
  );
  const bottom = HEIGHT - 12 - LINE * (footer.length - 1);
  const { a, b, c } = frames(78 + LINE * legendLines(runs), bottom - LINE, drawn.length);
  const colours = [PAPER, INK, MUTED, GRID, ...runs.flatMap(({ look }) => [look.line, look.text])];
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${HEIGHT}" class="response-times" role="img" aria-labelledby="response-times-title response-times-desc" font-family="system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif" font-size="${FONT}">
<title id="response-times-title">Response Time Histograms: ${escape(runs.map(({ title }) => title).join(", "))}</title>
<desc id="response-times-desc">${escape(
    description(
      drawn,
      verdict(runs, (run) => run.title),
    ),
  )}</desc>
<style>@media (prefers-color-scheme: dark){${colours.map(darkRule).join("")}}</style>
<rect width="${WIDTH}" height="${HEIGHT}" ${paint(PAPER)}/>
${header(runs, drawn).join("\n")}
<g>
${histogramPanel(drawn, pooled, a)}
</g>
<g>
${ecdfPanel(drawn, time, b)}
</g>
<g>
${firstPanel(drawn, time, c)}
</g>
${footer.map((words, place) => text(MARGIN, bottom + LINE * place, words)).join("\n")}
</svg>
`;
}

// ─── Table and verdict ───────────────────────────────────────────────────────
// The same figures for the terminal. A number the sample does not carry is not printed, and a
// difference that chance explains is not called one.

const PERCENTILES = [0.5, 0.9, 0.95, 0.99];

/** The comparison in one sentence; `name` says how to call a run. */
export function verdict(runs: readonly Run[], name: (run: Run) => string): string {
  const result = compare(runs);
  const only = runs.find(({ first }) => first.length > 0);
  if (!result)
    return only
      ? `First requests took ${seconds(mean(only.first))} s on average in ${name(only)}; there is no other run to compare.`
      : "There are no answers to compare.";
  const { fast, slow, among, paired, interval } = result;
  const [a, b] = [mean(fast.first), mean(slow.first)];
  const means = `${seconds(a)} against ${seconds(b)} s`;
  const chosen = among > 2 ? `; the fastest two of ${among}` : "";
  if (!interval)
    return `${name(fast)} against ${name(slow)}: ${means} for first requests on average; no verdict with fewer than ${FEWEST_CLIENTS} clients each${chosen}.`;
  const range = `${seconds(interval.low)} to ${seconds(interval.high)} s, ${paired ? "paired" : "unpaired"}${chosen}`;
  return interval.low > 0
    ? `${name(fast)} answers first requests ${seconds(b - a)} s sooner than ${name(slow)} on average (${means}; 95 % interval over clients ${range}).`
    : `No clear difference between ${name(fast)} and ${name(slow)} in mean first-request time (${means}; 95 % interval of the difference over clients ${range}).`;
}

/**
 * A row a run, aligned; as many decimals as give the smallest median three digits, within reason.
 * With `within`, also the share answered in that time.
 */
export function table(runs: readonly Run[], within?: number): string {
  const medians = runs.map(({ all }) => quantile(all, 0.5)).filter((value) => value > 0);
  const decimals = Math.max(3, Math.min(6, 2 - Math.floor(Math.log10(Math.min(...medians)))));
  const time = (value: number): string => (Number.isNaN(value) ? "-" : value.toFixed(decimals));
  const inTime = ({ all }: Run, limit: number): string =>
    all.length > 0
      ? `${((100 * all.filter((value) => value <= limit).length) / all.length).toFixed(2)} %`
      : "-";
  const head = [
    "response time (s)",
    "clients",
    "answers",
    "first mean",
    ...PERCENTILES.map((p) => `p${p * 100}`),
    "max",
    ...(within === undefined ? [] : [`within ${within} s`]),
  ];
  const rows = runs.map((run) => [
    run.title,
    String(run.clients.length),
    String(run.all.length),
    time(mean(run.first)),
    ...PERCENTILES.map((p) => (carries(run.all.length, p) ? time(quantile(run.all, p)) : "-")),
    time(run.all.at(-1) ?? NaN),
    ...(within === undefined ? [] : [inTime(run, within)]),
  ]);
  const widths = head.map((_, place) =>
    Math.max(...[head, ...rows].map((cells) => cells[place]?.length ?? 0)),
  );
  const aligned = [head, ...rows].map(([title = "", ...cells]) =>
    [
      title.padEnd(widths[0] ?? 0),
      ...cells.map((cell, place) => cell.padStart(widths[place + 1] ?? 0)),
    ].join("  "),
  );
  const small = runs.some(({ all }) => !carries(all.length, 0.99));
  return [...aligned, small ? "-: too few answers (p90 needs 29, p95 59, p99 299)" : ""]
    .filter(Boolean)
    .join("\n");
}

// ─── Command line ────────────────────────────────────────────────────────────

const USAGE = "How to Use: tsx generate_graphs.ts [file ...]";

const OPTIONS = {
  data: {
    kind: anyText,
    value: "DIR",
    help: `the folder of ${RUNS.map((name) => `${name}.json`).join(", ")}, when no file is named (default data)`,
  },
  out: {
    kind: anyText,
    value: "FILE",
    help: `where the picture goes (default ${PICTURE}, beside the first file)`,
  },
  within: {
    kind: someSeconds,
    value: "SECONDS",
    help: "a column with the share answered in this time",
  },
} satisfies Options;

/** The files to read and the picture to write. Throws a UsageError. */
function plan(
  named: readonly string[],
  { data, out }: Values<typeof OPTIONS>,
): { files: string[]; picture: string } {
  if (named.length > 0 && data !== undefined)
    throw new UsageError(
      `Bad --data ${JSON.stringify(data)}: expected either --data or files, not both`,
    );
  if (named.length > LOOKS.length)
    throw new UsageError(
      `Bad file ${JSON.stringify(named[LOOKS.length])}: expected at most ${LOOKS.length} files`,
    );
  if (named.includes("")) throw new UsageError('Bad file "": expected the name of a file');
  const files =
    named.length > 0 ? [...named] : RUNS.map((name) => join(data ?? "data", `${name}.json`));
  const paths = files.map((file) => resolve(file));
  const twice = files.find((_, place) => paths.indexOf(paths[place] ?? "") !== place);
  if (twice !== undefined)
    throw new UsageError(`Bad file ${JSON.stringify(twice)}: expected each file once`);
  const picture = out ?? join(dirname(files[0] ?? ""), PICTURE);
  if (paths.includes(resolve(picture)))
    throw new UsageError(
      `Bad --out ${JSON.stringify(picture)}: expected another file than those to read`,
    );
  return { files, picture };
}

async function main(named: string[], values: Values<typeof OPTIONS>): Promise<number> {
  const { files, picture } = plan(named, values);
  const { runs, complaints } = await readRuns(files);
  for (const complaint of complaints) console.error(complaint);
  if (runs.length === 0) return 1;
  console.log(`${table(runs, values.within)}\n\n${verdict(runs, (run) => run.title)}`);
  if (runs.every(({ all }) => all.length === 0))
    throw new RunError(`Cannot write ${picture}: there are no answers to draw`);
  await writeFile(picture, drawPicture(runs)).catch((error: unknown) => {
    throw new RunError(`Cannot write ${picture}: ${reasonOf(error)}`);
  });
  console.log(picture);
  return complaints.length > 0 ? 1 : 0;
}

if (isMain(import.meta)) void runScript({ usage: USAGE, options: OPTIONS, main });
