#!/usr/bin/env -S node --import tsx
/**
 * generate_graphs.ts - draw what the stress tester measured, and say what it proves.
 *
 * Reads runs, prints a table that compares them and a verdict, and writes one SVG: the histogram,
 * the share still waiting after t, and first requests against later ones. Two more pictures show
 * a sweep of rates, and a run from its beginning to its end.
 * The same input gives the same bytes: no clock, no chance, no measured text.
 *
 *   tsx generate_graphs.ts                          the runs in data/
 *   tsx generate_graphs.ts --data data/demo         the runs in another folder
 *   tsx generate_graphs.ts before/RoundRobin.json after/RoundRobin.json --out change.svg
 *   tsx generate_graphs.ts --curve data/sweep       the runs in data/sweep/rate-150, rate-200, ...
 *   tsx generate_graphs.ts data/failure --over-time
 *
 * A file is a JSON array with an array for each client, with the seconds each of its requests
 * took; a client without answers is []. Failed requests are not in these files: the runs.json
 * beside them tells how many there were, and how each file was made.
 */
import { createHash, randomUUID } from "node:crypto";
import type { BigIntStats } from "node:fs";
import { lstat, open, readdir, readFile, readlink, rename, rm, stat } from "node:fs/promises";
import { basename, dirname, join, resolve, sep } from "node:path";
import {
  anyText,
  carries,
  isMain,
  type Options,
  quantile,
  reasonOf,
  RunError,
  runScript,
  someSeconds,
  UsageError,
  type Values,
} from "./lib.ts";
import { drawPlan, seedsFrom } from "./stress_test.ts";

/** The files to read when none are named; the first is one server without a balancer. */
const KNOWN = ["Baseline", "RoundRobin", "LeastConnections"];
/** How the files of a folder were made. */
const JOURNAL = "runs.json";
const PICTURE = "response_times.svg";
const CURVE = "load_curve.svg";
const OVER_TIME = "over_time.svg";

/** The longest response time, 12 days; what is longer was not written in seconds. */
const MAX_SECONDS = 1e6;
const BINS = 20;
/** The histogram ends here, in medians, when a longer tail would squeeze the rest. */
const LONG_TAIL = 6;
/** With fewer seeds an interval is too wide to be worth a sentence. */
const FEWEST_RUNS = 5;
/** So many runs make a verdict likely where there is something to find. */
const ENOUGH_RUNS = 6;
/** In seconds; per-seed differences this close to each other have no spread. */
const NO_SPREAD = 1e-9;

/** Units of the view box. 18 units stay legible when the picture is shown 480 pixels wide. */
const WIDTH = 960;
const MARGIN = 20;
const FONT = 18;
const LINE = 23;
/** The height of a capital, and what hangs below the base line. */
const CAPITAL = 14;
const DESCENT = 5;
/** Between what belongs to one panel and the next panel's heading. */
const AIR = 30;
/** Plots lie between LEFT and RIGHT; the column beside them holds direct labels. */
const LEFT = 104;
const RIGHT = 712;
const COLUMN = 724;
/** Room for the labels of the column, without and with a swatch before them. */
const LABEL = WIDTH - MARGIN - COLUMN;
const SWATCH = 34;
const PLOT = 184;
const MOST_DRAWN = 8;

interface Colour {
  readonly name: string;
  readonly light: string;
  readonly dark: string;
}
const PAPER: Colour = { name: "paper", light: "#ffffff", dark: "#0d1117" };
const INK: Colour = { name: "ink", light: "#1f2328", dark: "#e6edf3" };
const MUTED: Colour = { name: "muted", light: "#59636e", dark: "#9198a1" };
const GRID: Colour = { name: "grid", light: "#d0d7de", dark: "#30363d" };

/** A line, its text (4.5:1 against the paper), and a dash for who does not see colours. */
interface Look {
  readonly line: Colour;
  readonly text: Colour;
  readonly dash: string;
}
/** The first three belong to KNOWN, and are Okabe and Ito's (2008); the others continue them. */
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

// ─── Times ───────────────────────────────────────────────────────────────────
// Files are not trusted: whatever is not a time is reported with its place. Times are kept in
// typed arrays, since a million boxed numbers in a million little arrays cost ten times as much.

/** The times of all clients, one after the other; client c has those from starts[c] on. */
export interface Times {
  readonly values: Float64Array;
  /** One more than there are clients: the last is the number of values. */
  readonly starts: Uint32Array;
}

/** The element at `place`, which exists. */
function at<T>(list: ArrayLike<T>, place: number): T {
  const element = list[place];
  if (element === undefined) throw new Error(`Nothing at ${place} of ${list.length}`);
  return element;
}

/** A value of a JSON file, short enough for a complaint. */
function quoted(value: unknown): string {
  if (Array.isArray(value)) return "an array";
  if (typeof value === "object" && value !== null) return "an object";
  if (typeof value !== "string") return String(value);
  return JSON.stringify(value.length > 40 ? `${value.slice(0, 40)}…` : value);
}

const isTime = (value: unknown): value is number =>
  typeof value === "number" && value >= 0 && value <= MAX_SECONDS;

/** Reads a file's text. Throws a RunError that says where it is malformed, counting from 1. */
export function parseTimes(text: string): Times {
  if (text.trim() === "") throw new RunError("the file is empty: expected an array of clients");
  const clients = parseJson(text);
  if (!Array.isArray(clients))
    throw new RunError(`expected an array of clients, not ${quoted(clients)}`);
  const starts = new Uint32Array(clients.length + 1);
  for (const [client, requests] of clients.entries()) {
    if (!Array.isArray(requests))
      throw new RunError(
        `client ${client + 1}: expected an array of times, not ${quoted(requests)}`,
      );
    starts[client + 1] = at(starts, client) + requests.length;
  }
  return { values: valuesOf(clients, at(starts, clients.length)), starts };
}

function valuesOf(clients: readonly (readonly unknown[])[], count: number): Float64Array {
  const values = new Float64Array(count);
  let place = 0;
  for (const [client, requests] of clients.entries()) {
    for (const [request, value] of requests.entries()) {
      if (!isTime(value))
        throw new RunError(
          `client ${client + 1}, request ${request + 1}: ${quoted(value)} is not a time in seconds`,
        );
      values[place] = value;
      place += 1;
    }
  }
  return values;
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new RunError(`not JSON: ${reasonOf(error)}`);
  }
}

/** UTF-8, or what a byte order mark says: PowerShell's `>` writes UTF-16. */
export function decode(bytes: Uint8Array): string {
  if (bytes[0] === 0xff && bytes[1] === 0xfe) return new TextDecoder("utf-16le").decode(bytes);
  if (bytes[0] === 0xfe && bytes[1] === 0xff) return new TextDecoder("utf-16be").decode(bytes);
  return new TextDecoder().decode(bytes);
}

// ─── Origin ──────────────────────────────────────────────────────────────────
// What runs.json says of a file, checked field by field: anybody may have edited it. An entry that
// is not whole, or not about these bytes, says nothing, and the file is one of unknown origin.

/** One run of a set-up: one seed. */
export interface RunRecord {
  readonly seed: number;
  readonly clients: number;
  readonly planned: number;
  readonly answered: number;
  /** Places, within the run, of the clients whose first request failed. */
  readonly firstFailed: readonly number[];
  readonly interrupted: boolean;
  readonly disturbed: readonly string[];
}

type Fields = Readonly<Record<string, unknown>>;

export interface Origin {
  /** The same for all that one call measured. */
  readonly session: string;
  readonly algorithm: string | undefined;
  /** undefined when they were started by hand. */
  readonly servers: readonly Fields[] | undefined;
  readonly plan: Fields;
  readonly runsAsked: number;
  readonly simulated: boolean;
  readonly runs: readonly RunRecord[];
}

const isFields = (value: unknown): value is Fields =>
  typeof value === "object" && value !== null && !Array.isArray(value);
const isCount = (value: unknown): value is number =>
  typeof value === "number" && Number.isSafeInteger(value) && value >= 0;
const isText = (value: unknown): value is string => typeof value === "string";

/** `value` when it is a list of what `is` accepts, and an empty one when there is none. */
function listOf<T>(value: unknown, is: (item: unknown) => item is T): readonly T[] | undefined {
  if (value === undefined || value === null) return [];
  return Array.isArray(value) && value.every(is) ? value : undefined;
}

/** What an entry of runs.json says of a file with this hash and these times, if it may be believed. */
export function originOf(entry: unknown, sha256: string, times: Times): Origin | undefined {
  if (!isFields(entry) || entry["sha256"] !== sha256) return undefined;
  const { session, setup, plan, runsAsked, simulated, runs: listed } = entry;
  const runs = listOf(listed, isFields)?.map(recordOf);
  if (!isText(session) || !isFields(plan) || !runs || runs.length === 0) return undefined;
  const records = runs.filter((run) => run !== undefined);
  if (records.length < runs.length || !fits(records, times)) return undefined;
  const { algorithm, servers } = isFields(setup) ? setup : {};
  const kinds = listOf(servers, isFields);
  return {
    session,
    algorithm: isText(algorithm) ? algorithm : undefined,
    servers: kinds && kinds.length > 0 ? kinds : undefined,
    plan,
    runsAsked: isCount(runsAsked) ? runsAsked : records.length,
    simulated: simulated === true || at(listOf(listed, isFields) ?? [], 0)["simulated"] === true,
    runs: records,
  };
}

function recordOf(run: Fields): RunRecord | undefined {
  const { seed, clients, planned, answered, interrupted } = run;
  const firstFailed = listOf(run["firstFailed"], isCount);
  const disturbed = listOf(run["disturbed"], isText);
  if (!isCount(seed) || !isCount(clients) || !isCount(planned) || !isCount(answered))
    return undefined;
  if (!firstFailed || !disturbed || planned < answered) return undefined;
  if (firstFailed.some((place) => place >= clients)) return undefined;
  return {
    seed,
    clients,
    planned,
    answered,
    firstFailed,
    interrupted: interrupted === true,
    disturbed,
  };
}

/** Whether the runs are about as many clients and answers as the file holds. */
const fits = (runs: readonly RunRecord[], { values, starts }: Times): boolean =>
  total(runs.map(({ clients }) => clients)) === starts.length - 1 &&
  total(runs.map(({ answered }) => answered)) === values.length;

const total = (values: readonly number[]): number => values.reduce((sum, value) => sum + value, 0);

// ─── Set-ups ─────────────────────────────────────────────────────────────────
// A set-up is what one file holds: the clients of all its runs, run after run, and their origin.

export interface Setup {
  /** The file's name without .json. */
  readonly name: string;
  /** The name in words, different from all others. */
  readonly title: string;
  readonly origin: Origin | undefined;
  /** The first request of each client in the file's order; NaN where it was not answered. */
  readonly firsts: Float64Array;
  /** Sorted, in seconds, as are `first` and `later`. */
  readonly all: Float64Array;
  readonly first: Float64Array;
  readonly later: Float64Array;
  /** The mean first request of each run; of all together when the runs are unknown. */
  readonly means: readonly number[];
  /** undefined when nothing tells. */
  readonly planned: number | undefined;
}

export function setupOf(
  name: string,
  title: string,
  times: Times,
  origin: Origin | undefined,
): Setup {
  const firsts = firstsOf(times, origin);
  const first = firsts.filter((value) => !Number.isNaN(value)).sort();
  return {
    name,
    title,
    origin,
    firsts,
    all: times.values.toSorted(),
    first,
    later: laterOf(times, firsts, first.length),
    means: runsOf(firsts, origin).map((run) => mean(run.filter((value) => !Number.isNaN(value)))),
    planned: origin && total(origin.runs.map(({ planned }) => planned)),
  };
}

/** A client whose first request failed has none: its later answers never stand in for it. */
function firstsOf({ values, starts }: Times, origin: Origin | undefined): Float64Array {
  const firsts = new Float64Array(starts.length - 1);
  for (let client = 0; client < firsts.length; client++) {
    const start = at(starts, client);
    firsts[client] = start < at(starts, client + 1) ? at(values, start) : NaN;
  }
  let offset = 0;
  for (const { clients, firstFailed } of origin?.runs ?? []) {
    for (const place of firstFailed) firsts[offset + place] = NaN;
    offset += clients;
  }
  return firsts;
}

function laterOf({ values, starts }: Times, firsts: Float64Array, answered: number): Float64Array {
  const later = new Float64Array(values.length - answered);
  let place = 0;
  for (let client = 0; client < firsts.length; client++) {
    const skipped = Number.isNaN(firsts[client]) ? 0 : 1;
    const own = values.subarray(at(starts, client) + skipped, at(starts, client + 1));
    later.set(own, place);
    place += own.length;
  }
  return later.sort();
}

/** The first requests of each run. */
function runsOf(firsts: Float64Array, origin: Origin | undefined): Float64Array[] {
  if (!origin) return [firsts];
  let start = 0;
  return origin.runs.map(({ clients }) => {
    const run = firsts.subarray(start, start + clients);
    start += clients;
    return run;
  });
}

const failedOf = ({ planned, all }: Setup): number =>
  planned === undefined ? 0 : planned - all.length;

const isBaseline = ({ name, origin }: Setup): boolean =>
  name === KNOWN[0] || origin?.algorithm === "baseline";

// ─── Names ───────────────────────────────────────────────────────────────────
// A name comes from a file's, which may be anything. Two set-ups never have the same one, however
// it is shortened, and no legal character is replaced.

/** Control characters as escapes, blanks as one: for a line on a terminal, and for XML. */
export const oneLine = (text: string): string =>
  text
    .replace(/\s+/g, " ")
    .replace(
      /\p{Cc}/gu,
      (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`,
    );

const nameOf = (file: string): string => basename(file, ".json");

/** The name in words: "RoundRobin" is "Round Robin". */
function wordsOf(name: string): string {
  const words = name.replace(/([a-z\d])([A-Z])/g, "$1 $2").replace(/[-_]+/g, " ");
  return oneLine(words).trim() || oneLine(name);
}

/** What a file may be called, ever longer: in words, as it is, then with more and more folders. */
function formsOf(file: string): string[] {
  const words = wordsOf(nameOf(file));
  const folders = dirname(resolve(file)).split(sep).map(oneLine);
  const longer = folders.map((_, place) => [...folders.slice(-place - 1), words].join("/"));
  return [words, oneLine(nameOf(file)), oneLine(basename(file)), ...longer];
}

/** A name for each file; those that are the same grow until they differ. */
export function titlesOf(files: readonly string[]): string[] {
  const forms = files.map(formsOf);
  const levels = files.map(() => 0);
  for (;;) {
    const titles = forms.map((list, place) => at(list, at(levels, place)));
    const clashing = titles.map((title) => titles.filter((other) => other === title).length > 1);
    let grown = false;
    for (const [place, list] of forms.entries()) {
      if (!clashing[place] || at(levels, place) === list.length - 1) continue;
      levels[place] = at(levels, place) + 1;
      grown = true;
    }
    if (!grown) return numbered(titles);
  }
}

/** Those that are still the same get their places. */
const numbered = (titles: readonly string[]): string[] =>
  titles.map((title, place) =>
    titles.indexOf(title) === titles.lastIndexOf(title) ? title : `${place + 1}: ${title}`,
  );

/** Each title within `room` units; those that differ before still do, so the cut moves if it must. */
export function labelsOf(titles: readonly string[], room: number): string[] {
  const differ = (labels: readonly string[]): boolean => new Set(labels).size === labels.length;
  for (const head of [0.5, 0, 1, 0.25, 0.75]) {
    const labels = titles.map((title) => shorten(title, room, head));
    if (differ(labels)) return labels;
  }
  return titles.map((title, place) => shorten(`${place + 1}: ${title}`, room, 1));
}

/** The three known set-ups keep their looks, the others take what is free, in order. */
export function looksOf(names: readonly string[]): Look[] {
  const own = names.map((name, place) =>
    names.indexOf(name) === place ? LOOKS[KNOWN.indexOf(name)] : undefined,
  );
  const others = [...LOOKS.slice(KNOWN.length), ...LOOKS.slice(0, KNOWN.length)];
  const free = others.filter((look) => !own.includes(look)).values();
  return own.flatMap((look) => look ?? free.next().value ?? []);
}

// ─── Text ────────────────────────────────────────────────────────────────────
// Numbers in words, and how wide a text is at most. Text cannot be measured here, so each
// character counts as wide as in DejaVu Sans, the widest of the usual fonts.

/** Three significant digits, at the least, without an exponent where that can be. */
export function significant(value: number): string {
  if (value === 0) return "0";
  return Math.abs(value) >= 99.95 ? String(Math.round(value)) : value.toPrecision(3);
}

/** The same without trailing zeros, for sentences: 1.5 and not 1.50. */
export function seconds(value: number): string {
  const size = Math.abs(value);
  const short = size >= 100 ? Math.round(value) : Number(value.toPrecision(3));
  return size > 0 && size < 1e-4 ? short.toExponential() : String(short);
}

/** 1,225 */
export const counted = (n: number): string => String(n).replace(/\B(?=(\d{3})+$)/g, ",");
const plural = (n: number, what: string): string => `${counted(n)} ${what}${n === 1 ? "" : "s"}`;

/** A share to so many decimals of a per cent; neither all nor none unless it is. */
export function percent(share: number, decimals = 1): string {
  const value = Number((share * 100).toFixed(decimals));
  const step = 10 ** -decimals;
  if (share > 0 && value === 0) return `< ${step} %`;
  if (share < 1 && value === 100) return `> ${(100 - step).toFixed(decimals)} %`;
  return `${value} %`;
}

/** Em, by the first class that a character belongs to. */
const WIDTHS: readonly { readonly of: RegExp; readonly em: number }[] = [
  { of: /[ .,:;'|/\\ijlIJ]/, em: 0.35 },
  { of: /[()[\]ftr"!-]/, em: 0.46 },
  { of: /[cskvxyz?*_`]/, em: 0.6 },
  { of: /[abdeghnopqu\d${}EFLPSTY]/, em: 0.65 },
  { of: /[mMwW@%—…ЖШЩЮЫжшщю]/, em: 1.1 },
  { of: /[A-Z&]/, em: 0.79 },
  { of: /[\u0020-\u007e×÷±°·–]/, em: 0.84 },
  { of: /[\p{M}\p{Cf}]/u, em: 0 },
  { of: /[\u00df-\u0233\u03ac-\u03ce\u0430-\u045f]/u, em: 0.86 },
  { of: /[\u00a0-\u058f]/u, em: 1.1 },
  { of: /\p{Extended_Pictographic}/u, em: 1.5 },
  { of: /[\u2e80-\u{3ffff}]/u, em: 1.05 },
];
const UNKNOWN_EM = 1.45;

/** How wide a text is, at the most, in units. */
export function widthOf(text: string, size = FONT): number {
  let em = 0;
  for (const character of text) em += WIDTHS.find(({ of }) => of.test(character))?.em ?? UNKNOWN_EM;
  return em * size;
}

/** `text` within `room` units; what is too much goes after the share `head` of what is kept. */
export function shorten(text: string, room: number, head = 0.5): string {
  let width = widthOf(text);
  if (width <= room) return text;
  const characters = [...text];
  width += widthOf("…");
  while (characters.length > 0 && width > room) {
    const middle = Math.min(characters.length - 1, Math.ceil(characters.length * head));
    width -= widthOf(characters.splice(middle, 1).join(""));
  }
  characters.splice(Math.ceil(characters.length * head), 0, "…");
  return characters.join("");
}

/** Breaks `text` between words into lines of at most `room` units. */
export function wrap(text: string, room: number): string[] {
  const lines: string[] = [];
  for (const word of text.split(/ (?!%)/)) {
    const longer = `${lines.at(-1) ?? ""} ${word}`;
    if (lines.length > 0 && widthOf(longer) <= room) lines[lines.length - 1] = longer;
    else lines.push(shorten(word, room));
  }
  return lines;
}

// ─── Statistics ──────────────────────────────────────────────────────────────
// Pure functions from numbers to numbers. "Sorted" means ascending; times are in seconds, shares
// between 0 and 1.

/** The arithmetic mean; NaN of nothing. */
export function mean(values: Iterable<number>): number {
  let sum = 0;
  let count = 0;
  for (const value of values) {
    sum += value;
    count += 1;
  }
  return sum / count;
}

/** The probability that Student's t lies within the root of `freedom` times the tangent of `angle`. */
function withinT(angle: number, freedom: number): number {
  const odd = freedom % 2;
  const cosine = Math.cos(angle);
  let term = odd ? cosine : 1;
  let sum = 0;
  for (let place = 1; place <= (freedom - odd) / 2; place++) {
    sum += term;
    term *= (cosine ** 2 * (2 * place - 1 + odd)) / (2 * place + odd);
  }
  return odd ? (2 / Math.PI) * (angle + Math.sin(angle) * sum) : Math.sin(angle) * sum;
}

/** How far t strays with probability `level`, either way: Abramowitz and Stegun 26.7.3, halved. */
export function tQuantile(level: number, freedom: number): number {
  let low = 0;
  let high = Math.PI / 2;
  for (let halving = 0; halving < 60; halving++) {
    const middle = (low + high) / 2;
    if (withinT(middle, freedom) < level) low = middle;
    else high = middle;
  }
  return Math.sqrt(freedom) * Math.tan(low);
}

export interface Interval {
  readonly mean: number;
  readonly low: number;
  readonly high: number;
  /** The standard deviation of the values. */
  readonly spread: number;
}

/** The t-interval of the mean of at least two independent values; NaN limits of fewer. */
export function tInterval(values: readonly number[], level = 0.95): Interval {
  const middle = mean(values);
  const freedom = values.length - 1;
  const squares = total(values.map((value) => (value - middle) ** 2));
  const spread = Math.sqrt(squares / freedom);
  const half = (tQuantile(level, freedom) * spread) / Math.sqrt(values.length);
  return { mean: middle, low: middle - half, high: middle + half, spread };
}

/** `values` of which failed ones lasted for ever: what is beyond the answers is Infinity. */
export function quantileWith(values: Float64Array, failed: number, p: number): number {
  const place = (values.length + failed - 1) * p;
  if (failed === 0) return quantile(values, p);
  const below = values[Math.floor(place)] ?? Infinity;
  const above = values[Math.ceil(place)] ?? Infinity;
  if (below === above) return below;
  return below + (above - below) * (place - Math.floor(place));
}

/**
 * The share of `values` in each of `bins` equal bins from 0 to `top`, and the share beyond. A value
 * on an edge belongs to the bin above, `top` itself to the last; what is within a billionth of an
 * edge is on it, since 0.3 / 0.1 is not 3.
 */
export function histogram(
  values: Float64Array,
  top: number,
  bins: number,
): { shares: number[]; beyond: number } {
  const counts = new Array<number>(bins + 1).fill(0);
  for (const value of values) {
    const exact = (value / top) * bins;
    const edge = Math.round(exact);
    const place = Math.abs(exact - edge) < 1e-9 * bins ? edge : exact;
    const bin = place > bins ? bins : Math.min(bins - 1, Math.floor(place));
    counts[bin] = at(counts, bin) + 1;
  }
  const shares = counts.map((count) => count / Math.max(1, values.length));
  return { shares: shares.slice(0, bins), beyond: at(shares, bins) };
}

/** Where the histogram of sorted values ends: above them all, or with a long tail above most. */
export function histogramTop(values: Float64Array): number {
  const max = values.at(-1) ?? 0;
  const limit = LONG_TAIL * quantile(values, 0.5);
  return niceTop(limit > 0 ? Math.min(max, limit) : max, 10);
}

// ─── Verdict ─────────────────────────────────────────────────────────────────
// One run is one observation, for the clients of one queue share their fate. So a verdict compares
// runs, seed by seed, and is only given where nothing but the set-ups differs. Each reason not to
// give it is one small function; the first that objects is told.

/** Two set-ups whose origins are known, the faster one first. */
interface Pair {
  readonly fast: Measured;
  readonly slow: Measured;
  readonly name: Namer;
}
type Measured = Setup & { readonly origin: Origin };
type Namer = (setup: Setup) => string;
type Objection = (pair: Pair) => string | undefined;

/** "rate 310 and 150 a second", by the plan's key. */
const PLAN_WORDS: Readonly<Record<string, (a: string, b: string) => string>> = {
  rate: (a, b) => `rate ${a} and ${b} a second`,
  clients: (a, b) => `${a} and ${b} clients`,
  maxRequests: (a, b) => `at most ${a} and ${b} requests each`,
  reconnect: (a, b) => `reconnect ${a} and ${b}`,
  timeout: (a, b) => `timeout ${a} and ${b} s`,
  addresses: (a, b) => `${a} and ${b} addresses`,
  fail: (a, b) => `fail ${a} and ${b}`,
  hang: (a, b) => `hang ${a} and ${b}`,
};

/** A field of runs.json in words. */
function shown(value: unknown): string {
  if (typeof value === "number") return counted(value);
  if (isFields(value)) return Object.values(value).map(shown).join("-");
  return value === null || value === undefined ? "none" : oneLine(String(value));
}

/** What differs first between two plans. */
function planDifference(a: Fields, b: Fields): string | undefined {
  for (const [key, words] of Object.entries(PLAN_WORDS)) {
    const [one, other] = [shown(a[key]), shown(b[key])];
    if (one !== other) return words(one, other);
  }
  return undefined;
}

/** What makes an answer take its time: a weight does not, it is the balancer's. */
const KIND = { mean: " s", sd: " s", slots: "", slow: "" };

function kindDifference(a: Fields, b: Fields): string | undefined {
  for (const [key, unit] of Object.entries(KIND)) {
    const [one, other] = [shown(a[key]), shown(b[key])];
    if (one !== other) return `${key} ${one} and ${other}${unit}`;
  }
  return undefined;
}

function serverDifference({ fast, slow }: Pair): string | undefined {
  const [a, b] = [fast.origin.servers, slow.origin.servers];
  if (!a || !b) return a || b ? "known of one only" : undefined;
  const alone = [fast, slow].some(isBaseline);
  if (!alone && a.length !== b.length) return `${a.length} and ${b.length} servers`;
  const [fewer, more] = a.length < b.length ? [a, b] : [b, a];
  if (alone && more.some((server) => !kindDifference(at(fewer, 0), server))) return undefined;
  for (const [place, server] of fewer.entries()) {
    const found = kindDifference(
      a === fewer ? server : at(a, place),
      b === more ? at(b, place) : server,
    );
    if (found !== undefined) return found;
  }
  return undefined;
}

const possessive = (name: string): string => (name.endsWith("s") ? `${name}'` : `${name}'s`);
const within = (what: string, difference: string | undefined): string | undefined =>
  difference && `the ${what} differ (${difference})`;

function realAgainstSimulated({ fast, slow, name }: Pair): string | undefined {
  if (fast.origin.simulated === slow.origin.simulated) return undefined;
  const [one, other] = fast.origin.simulated ? [fast, slow] : [slow, fast];
  return `${name(one)} is simulated, ${name(other)} is not`;
}

function interruption({ fast, slow, name }: Pair): string | undefined {
  const broken = [fast, slow].find(({ origin }) => origin.runs.some((run) => run.interrupted));
  return broken && `a run of ${name(broken)} was interrupted`;
}

function failures({ fast, slow, name }: Pair): string | undefined {
  const failing = [fast, slow].filter((setup) => failedOf(setup) > 0);
  if (failing.length === 0) return undefined;
  const parts = failing.map(
    (setup) =>
      `${counted(failedOf(setup))} of ${possessive(name(setup))} ${counted(setup.planned ?? 0)}`,
  );
  return `${parts.join(" and ")} requests failed`;
}

function missingRuns({ fast, slow, name }: Pair): string | undefined {
  const short = [fast, slow].find(({ origin }) => origin.runs.length < origin.runsAsked);
  if (!short) return undefined;
  const { runs, runsAsked } = short.origin;
  return `only ${runs.length} of the ${runsAsked} runs asked for of ${name(short)} are there`;
}

function fewRuns({ fast, slow }: Pair): string | undefined {
  const runs = Math.min(fast.origin.runs.length, slow.origin.runs.length);
  if (runs >= FEWEST_RUNS) return undefined;
  const few = runs === 1 ? "one run is one observation" : `${runs} runs are too few`;
  return `${few}; --runs ${ENOUGH_RUNS} gives one`;
}

const otherSession = ({ fast, slow }: Pair): string | undefined =>
  fast.origin.session === slow.origin.session ? undefined : "they were measured at different times";

function otherSeeds({ fast, slow }: Pair): string | undefined {
  const seeds = [fast, slow].map(({ origin }) => origin.runs.map(({ seed }) => seed).join());
  return seeds[0] === seeds[1] ? undefined : "the seeds differ";
}

/** What is told first: what would still stand in the way if all that follows were mended. */
const OBJECTIONS: readonly Objection[] = [
  realAgainstSimulated,
  ({ fast, slow }) => within("plans", planDifference(fast.origin.plan, slow.origin.plan)),
  (pair) => within("servers", serverDifference(pair)),
  interruption,
  failures,
  missingRuns,
  fewRuns,
  otherSession,
  otherSeeds,
];

const isMeasured = (setup: Setup): setup is Measured => setup.origin !== undefined;

/** Why the two cannot be compared; undefined when they can. */
function objectionTo(fast: Setup, slow: Setup, name: Namer): string | undefined {
  if (!isMeasured(fast) || !isMeasured(slow)) {
    const unknown = [fast, slow].filter((setup) => !setup.origin).map(name);
    const were = unknown.length > 1 ? "were" : "was";
    return `${JOURNAL} does not tell how ${unknown.join(" and ")} ${were} measured`;
  }
  for (const objection of OBJECTIONS) {
    const reason = objection({ fast, slow, name });
    if (reason !== undefined) return reason;
  }
  return undefined;
}

/**
 * The set-ups that take part, by the mean of their first requests, the fastest first. Baseline is
 * another kind of set-up, and takes part only as one of two.
 */
export function ranking(setups: readonly Setup[]): Setup[] {
  const answered = setups.filter(({ first }) => first.length > 0);
  const balanced = answered.filter((setup) => !isBaseline(setup));
  const candidates = balanced.length < 2 ? answered : balanced;
  return candidates.toSorted((a, b) => mean(a.first) - mean(b.first));
}

/** How much later `slow` answers, seed by seed. */
const differences = (fast: Setup, slow: Setup): number[] =>
  slow.means.map((value, seed) => value - at(fast.means, seed));

/** As many decimals as give half of an interval's width two digits, and its lower end at least one. */
function decimalsFor({ mean: middle, low, high }: Interval): number {
  const half = (high - low) / 2;
  const digit = half > NO_SPREAD ? half : Math.abs(middle) / 10;
  let decimals = digit > NO_SPREAD ? Math.max(0, 1 - Math.floor(Math.log10(digit))) : 4;
  while (decimals < 9 && low > 0 && Number(low.toFixed(decimals)) === 0) decimals += 1;
  return Math.min(9, decimals);
}

/** Without the sign of a zero. */
const fixed = (value: number, decimals: number): string =>
  Number(value.toFixed(decimals)) === 0 ? (0).toFixed(decimals) : value.toFixed(decimals);

/** A difference as a share of the slower one, in whole per cents from one on. */
const howMuch = (share: number): string => percent(share, share < 0.01 ? 1 : 0);

/** The fastest against the next, over the seeds. */
function finding(fast: Setup, slow: Setup, name: Namer): string {
  const each = differences(fast, slow);
  const interval = tInterval(each);
  const { mean: later, low, high, spread } = interval;
  const decimals = decimalsFor(interval);
  const time = (value: number): string => fixed(value, decimals);
  const pairs = `95 % interval over ${each.length} paired runs`;
  const range = `${time(low)} to ${time(high)} s`;
  if (!(low > 0) || spread < NO_SPREAD)
    return `No clear difference between ${name(fast)} and ${name(slow)}: ${time(later)} s, ${pairs} ${range}.`;
  const sooner = each.filter((value) => value > 0).length;
  const share = howMuch(later / mean(slow.means));
  return (
    `${name(fast)} answers first requests ${time(later)} s (${share}) sooner than ${name(slow)}: ` +
    `${pairs} ${range}, sooner in ${sooner} of ${each.length}.`
  );
}

const disturbedIn = ({ origin }: Setup): number =>
  (origin?.runs ?? []).filter(({ disturbed }) => disturbed.length > 0).length;

/** How many of the runs were disturbed, in a sentence to follow another; empty when none was. */
function disturbance(setups: readonly Setup[]): string {
  const runs = total(setups.map(({ origin }) => origin?.runs.length ?? 0));
  const disturbed = total(setups.map(disturbedIn));
  if (disturbed === 0) return "";
  return ` ${disturbed} of ${plural(runs, "run")} ${disturbed === 1 ? "was" : "were"} disturbed.`;
}

/** The comparison in one sentence, and what to know about it; `name` says how to call a set-up. */
export function verdict(setups: readonly Setup[], name: Namer): string {
  const [fast, slow] = ranking(setups);
  if (!fast) return "No verdict: there are no first requests to compare.";
  if (!slow)
    return `No verdict: there is nothing to compare ${name(fast)} with.${disturbance([fast])}`;
  const reason = objectionTo(fast, slow, name);
  const sentence = reason === undefined ? finding(fast, slow, name) : `No verdict: ${reason}.`;
  const both = [fast, slow].every(({ origin }) => origin?.simulated);
  return `${sentence}${both ? " Both are simulated." : ""}${disturbance([fast, slow])}`;
}

/** What disturbed which run, a line each. */
export function disturbances(setups: readonly Setup[]): string[] {
  return setups.flatMap(({ title, origin }) =>
    (origin?.runs ?? [])
      .filter(({ disturbed }) => disturbed.length > 0)
      .map(({ seed, disturbed }) =>
        oneLine(`Disturbed: ${title}, seed ${seed}: ${disturbed.join("; ")}`),
      ),
  );
}

/** How much later than the fastest each other is that may be compared with it: all hold at once. */
export function laterThanFastest(setups: readonly Setup[]): Map<Setup, Interval> {
  const [fastest, ...others] = setups.length > 2 ? ranking(setups) : [];
  if (!fastest) return new Map();
  const fair = others.filter((other) => !objectionTo(fastest, other, ({ title }) => title));
  const level = 1 - 0.05 / fair.length; // Bonferroni
  return new Map(fair.map((other) => [other, tInterval(differences(fastest, other), level)]));
}

// ─── Table ───────────────────────────────────────────────────────────────────
// The same figures for the terminal. A number that the sample does not carry is not printed.

const PERCENTILES = [0.5, 0.9, 0.95, 0.99];

/** How a column's times are written: in milliseconds where all are below 0.1 s. */
interface Unit {
  readonly name: string;
  readonly factor: number;
  readonly show: (value: number) => string;
}
export function unitOf(longest: number): Unit {
  const factor = longest < 0.1 ? 1000 : 1;
  return {
    factor,
    name: factor === 1 ? "s" : "ms",
    show: (value) => (Number.isNaN(value) ? "-" : significant(value * factor)),
  };
}

interface Column {
  readonly head: string;
  readonly cell: (setup: Setup) => string;
}

/** Rows under heads, the first column to the left, the others to the right. */
function aligned(columns: readonly { readonly head: string; readonly cells: readonly string[] }[]) {
  const rows = at(columns, 0).cells.map((_, row) => columns.map(({ cells }) => at(cells, row)));
  const widths = columns.map(({ head, cells }) => Math.max(...[head, ...cells].map(cellsWide)));
  return [columns.map(({ head }) => head), ...rows].map((cells) =>
    cells
      .map((cell, place) => {
        const blanks = " ".repeat(at(widths, place) - cellsWide(cell));
        return place === 0 ? cell + blanks : blanks + cell;
      })
      .join("  ")
      .trimEnd(),
  );
}

/** How many cells of a terminal a text takes. */
function cellsWide(text: string): number {
  let cells = 0;
  for (const character of text) {
    if (/[\p{M}\p{Cf}]/u.test(character)) continue;
    cells +=
      /[\u1100-\u115f\u2e80-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe6f\uff00-\uff60\u{1f000}-\u{3ffff}]/u.test(
        character,
      )
        ? 2
        : 1;
  }
  return cells;
}

/** A mean and how far it may be off, to the same digit. */
function meanCell(middle: number, { low, high }: Interval, unit: Unit): string {
  const text = unit.show(middle);
  const decimals = /\.(\d+)$/.exec(text)?.[1]?.length ?? 0;
  const half = ((high - low) / 2) * unit.factor;
  return Number.isNaN(half) ? text : `${text} ± ${half.toFixed(decimals)}`;
}

function withinCell({ all, planned }: Setup, limit: number): string {
  const inTime = all.filter((value) => value <= limit).length;
  const share = inTime / (planned ?? all.length);
  if (Number.isNaN(share)) return "-";
  return `${percent(share, 2)}${planned === undefined ? " of answered" : ""}`;
}

function columnsOf(setups: readonly Setup[], unit: Unit, limit: number | undefined): Column[] {
  const later = laterThanFastest(setups);
  const laterCell = (setup: Setup): string => {
    const interval = later.get(setup);
    if (!interval) return "-";
    const { mean: middle, low, high } = interval;
    const decimals = Math.max(0, decimalsFor(interval) - Math.log10(unit.factor));
    const [by, from, to] = [middle, low, high].map((time) => fixed(time * unit.factor, decimals));
    return `${by} (${from} to ${to})`;
  };
  const columns: (Column | false)[] = [
    { head: `response time (${unit.name})`, cell: ({ title }) => title },
    { head: "runs", cell: ({ origin }) => runsCell(origin) },
    { head: "clients", cell: ({ firsts }) => counted(firsts.length) },
    { head: "answered of planned", cell: answeredCell },
    {
      head: "first mean",
      cell: ({ first, means }) => meanCell(mean(first), tInterval(means), unit),
    },
    ...PERCENTILES.map((p) => ({
      head: `p${p * 100}`,
      cell: ({ all }: Setup) => (carries(all.length, p) ? unit.show(quantile(all, p)) : "-"),
    })),
    { head: "max", cell: ({ all }) => unit.show(all.at(-1) ?? NaN) },
    later.size > 0 && { head: "later than the fastest", cell: laterCell },
    limit !== undefined && {
      head: `within ${limit} s`,
      cell: (setup) => withinCell(setup, limit),
    },
  ];
  return columns.filter((column) => column !== false);
}

function runsCell(origin: Origin | undefined): string {
  if (!origin) return "?";
  return `${origin.runs.length}${origin.simulated ? " simulated" : ""}`;
}

const answeredCell = ({ all, planned }: Setup): string =>
  `${counted(all.length)} of ${planned === undefined ? "?" : counted(planned)}`;

/** A row a set-up, and below them what the signs mean. */
export function table(setups: readonly Setup[], limit?: number): string {
  const unit = unitOf(Math.max(...setups.map(({ all }) => all.at(-1) ?? 0)));
  const columns = columnsOf(setups, unit, limit);
  const rows = aligned(
    columns.map(({ head, cell }) => ({ head, cells: setups.map((setup) => cell(setup)) })),
  );
  const remarks = [
    setups.some(({ all }) => !carries(all.length, 0.99)) &&
      "-: too few answers (p90 needs 29, p95 59, p99 299)",
    setups.some(({ origin }) => !origin) && `?: ${JOURNAL} does not tell; failures unknown`,
    setups.some(({ means }) => means.length > 1) && "±: 95 % interval over the runs",
    laterThanFastest(setups).size > 0 &&
      "later than the fastest: intervals that hold together with 95 % (Bonferroni)",
  ];
  return [...rows, ...remarks.filter((remark) => remark !== false)].join("\n");
}

// ─── Scales and ticks ────────────────────────────────────────────────────────
// All arithmetic from seconds and shares to the picture's units happens here: a scale is a
// function, an axis a scale with the ticks whose labels fit beside each other.

export type Scale = (value: number) => number;
type Range = readonly [low: number, high: number];
interface Axis {
  readonly at: Scale;
  readonly ticks: readonly number[];
}

/** 1, 2, 5 or 10, by d3's rule: what is nearest to `error` on a logarithmic scale. */
function roundFactor(error: number): number {
  if (error >= Math.sqrt(50)) return 10;
  if (error >= Math.sqrt(10)) return 5;
  return error >= Math.sqrt(2) ? 2 : 1;
}

/**
 * The step of about `count` ticks over `span`, of 1, 2 or 5 times a power of ten; as a fraction,
 * since 3 / 10 is exact and 3 * 0.1 is not.
 */
function tickStep(span: number, count: number): { times: number; over: number } {
  const power = Math.floor(Math.log10(span / count));
  const factor = roundFactor(span / count / 10 ** power);
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

/** A nanosecond: no clock tells less, and nothing shorter gets an axis of its own. */
const SHORTEST = 1e-9;

/** A round number not below `max`: the end of an axis that begins at 0, with about `count` ticks. */
export function niceTop(max: number, count: number): number {
  if (!(max > 0)) return 1;
  if (max < SHORTEST) return SHORTEST;
  const { times, over } = tickStep(max, count);
  return (Math.ceil((max * over) / times - 1e-9) * times) / over;
}

/** 1, 2 and 5 times each power of ten, from SHORTEST to MAX_SECONDS. */
const LADDER = Array.from({ length: 16 }, (_, place) => place - 9)
  .flatMap((power) => [1, 2, 5].map((factor) => Number(`${factor}e${power}`)))
  .filter((rung) => rung <= MAX_SECONDS);

/** The highest rung that is not above `value`, or the lowest of all. */
const rungBelow = (value: number): number =>
  LADDER.findLast((rung) => rung <= value) ?? at(LADDER, 0);

/**
 * The rungs that enclose `low` and `high`. A logarithm has no place for 0: what has no rung below
 * it is drawn at the left edge.
 */
export function logRungs(low: number, high: number): number[] {
  const highest = Math.min(high || 1, MAX_SECONDS);
  const top = LADDER.findIndex((rung) => rung >= highest);
  const bottom = low > 0 && low <= high ? LADDER.indexOf(rungBelow(low)) : top - 3;
  const alone = bottom >= top ? 1 : 0; // one value, on a rung: leave room on both sides
  return LADDER.slice(Math.max(0, bottom - alone), top + alone + 1);
}

export const linearScale =
  ([low, high]: Range, [from, to]: Range): Scale =>
  (value) =>
    from + ((value - low) / (high - low)) * (to - from);

/** Logarithmic; what lies below the domain goes to its edge. */
export function logScale([low, high]: Range, range: Range): Scale {
  const scale = linearScale([Math.log(low), Math.log(high)], range);
  return (value) => scale(Math.log(Math.max(low, value)));
}

/** The first of the candidates whose labels do not run into each other, or else the last. */
function fitting(
  candidates: readonly (readonly number[])[],
  scale: Scale,
  least = "",
): readonly number[] {
  const half = (tick: number): number => Math.max(widthOf(`${tick} `), widthOf(least)) / 2;
  const fits = (list: readonly number[]): boolean =>
    list.every((tick, place) => {
      const before = list[place - 1];
      return before === undefined || scale(tick) - half(tick) >= scale(before) + half(before);
    });
  return candidates.find(fits) ?? candidates.at(-1) ?? [];
}

function linearAxis([low, high]: Range, range: Range): Axis {
  const scale = linearScale([low, high], range);
  const lists = [8, 5, 4, 3, 2, 1].map((count) => ticks(low, high, count));
  return { at: scale, ticks: fitting(lists, scale) };
}

/** A logarithmic axis that holds `low` to `high`, of which every power of ten may be labelled. */
function logAxis(low: number, high: number, range: Range): Axis {
  const rungs = logRungs(low, high);
  const scale = logScale([at(rungs, 0), at(rungs, rungs.length - 1)], range);
  const powers = rungs.filter((rung) => Number.isInteger(Math.log10(rung)));
  const sparse = [2, 3, 4, 6].map((n) => powers.filter((_, place) => place % n === 0));
  return { at: scale, ticks: fitting([rungs, powers, ...sparse], scale) };
}

/** The axis of all times that are above 0. */
function timeAxis(setups: readonly Setup[], range: Range): Axis {
  const lows = setups.map(({ all }) => all.find((value) => value > 0) ?? Infinity);
  const highs = setups.map(({ all }) => all.at(-1) ?? 0);
  return logAxis(Math.min(...lows), Math.max(...highs), range);
}

// ─── Markup ──────────────────────────────────────────────────────────────────
// The one place that knows SVG's syntax. Colours are literal attributes, for the light theme and
// for tools that ignore style sheets; the style sheet repaints them, by class, where the reader
// prefers dark.

/** A coordinate, to 0.1 unit. */
export const round = (value: number): string => String(Math.round(value * 10) / 10);

const ENTITIES: Readonly<Record<string, string>> = {
  "&": "&amp;",
  "<": "&lt;",
  ">": "&gt;",
  '"': "&quot;",
  "'": "&#39;",
};

/** Text made safe for XML, which knows no way at all to write most control characters. */
export const escape = (text: string): string =>
  text
    .replace(/[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\u{10000}-\u{10ffff}]/gu, "\ufffd")
    .replace(/[&<>"']/g, (character) => ENTITIES[character] ?? "");

function paint(fill: Colour | undefined, stroke?: Colour): string {
  const classes = [fill && `f-${fill.name}`, stroke && `s-${stroke.name}`];
  const outline = stroke ? ` stroke="${stroke.light}"` : "";
  return `class="${classes.filter(Boolean).join(" ")}" fill="${fill?.light ?? "none"}"${outline}`;
}

type Anchor = "start" | "middle" | "end";
function text(x: number, y: number, content: string, colour = INK, anchor: Anchor = "start") {
  const place = `x="${round(x)}" y="${round(y)}" text-anchor="${anchor}"`;
  return `<text ${place} ${paint(colour)}>${escape(content)}</text>`;
}

function line([x1, y1]: Range, [x2, y2]: Range, colour: Colour, width = 1, dash = "none"): string {
  const path = `M${round(x1)} ${round(y1)}L${round(x2)} ${round(y2)}`;
  return `<path d="${path}" stroke-width="${width}" stroke-dasharray="${dash}" ${paint(undefined, colour)}/>`;
}

function circle(x: number, y: number, radius: number, fill: Colour, stroke: Colour): string {
  const place = `cx="${round(x)}" cy="${round(y)}" r="${radius}"`;
  return `<circle ${place} stroke-width="1.5" ${paint(fill, stroke)}/>`;
}

/** A path of a set-up's line. */
const curve = (path: string, { line: colour, dash }: Look): string =>
  `<path d="${path}" stroke-width="2" stroke-dasharray="${dash}" ${paint(undefined, colour)}/>`;

function heading(y: number, title: string, note: string): string {
  const bold = `<tspan font-weight="600" ${paint(INK)}>${escape(title)}</tspan>`;
  return `<text x="${MARGIN}" y="${round(y)}" ${paint(MUTED)}>${bold} ${escape(note)}</text>`;
}

/** A short piece of a set-up's line; `y` is the base line of the text it stands before. */
const swatch = (x: number, y: number, { line: colour, dash }: Look): string =>
  line([x, y - FONT / 3], [x + SWATCH - 8, y - FONT / 3], colour, 3, dash);

/** A swatch and a text of the same set-up. */
const entry = (x: number, y: number, look: Look, content: string): string =>
  swatch(x, y, look) + text(x + SWATCH, y, content, look.text);

interface Picture {
  readonly title: string;
  readonly description: string;
  readonly looks: readonly Look[];
  readonly height: number;
  readonly body: readonly string[];
}

/** The whole file. Its ids derive from its content, so two of them can stand in one page. */
function svgOf({ title, description, looks, height, body }: Picture): string {
  const id = `g${createHash("sha256")
    .update(title + description + body.join(""))
    .digest("hex")
    .slice(0, 8)}`;
  const colours = [PAPER, INK, MUTED, GRID, ...looks.flatMap(({ line, text }) => [line, text])];
  const dark = colours.map(
    ({ name, dark }) => `.${id} .f-${name}{fill:${dark}}.${id} .s-${name}{stroke:${dark}}`,
  );
  return `<svg xmlns="http://www.w3.org/2000/svg" width="${WIDTH}" height="${height}" viewBox="0 0 ${WIDTH} ${height}" style="max-width:100%;height:auto" class="${id}" role="img" aria-labelledby="${id}-title ${id}-desc" font-family="system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif" font-size="${FONT}">
<title id="${id}-title">${escape(title)}</title>
<desc id="${id}-desc">${escape(description)}</desc>
<style>@media (prefers-color-scheme: dark){${dark.join("")}}</style>
<rect width="${WIDTH}" height="${height}" ${paint(PAPER)}/>
${body.filter(Boolean).join("\n")}
</svg>
`;
}

// ─── Panels ──────────────────────────────────────────────────────────────────
// Functions from set-ups and the place where they begin to a piece of the picture, which says where
// it ends. A plot has its heading above, its ticks below and direct labels in the column beside it.

/** A set-up as the picture shows it: at most eight, each with answers. */
interface Drawn extends Setup {
  readonly look: Look;
  /** The title, cut to the column. */
  readonly label: string;
}

interface Panel {
  readonly svg: readonly string[];
  /** Below the lowest text. */
  readonly bottom: number;
}

/** The plot itself. */
interface Frame {
  readonly top: number;
  readonly bottom: number;
}

/** The base line of the heading of a panel that begins at `top`, and the plot below it. */
const headingAt = (top: number): number => top + CAPITAL;
const frameAt = (top: number, height: number): Frame => ({
  top: headingAt(top) + 16,
  bottom: headingAt(top) + 16 + height,
});

/** Panels below each other, with air between them. */
function stacked(panels: readonly ((top: number) => Panel)[], top: number): Panel {
  const svg: string[] = [];
  let bottom = top - AIR;
  for (const panel of panels) {
    const drawn = panel(bottom + AIR);
    svg.push("<g>", ...drawn.svg, "</g>");
    bottom = drawn.bottom;
  }
  return { svg, bottom };
}

/** The base lines of `count` labels beside a plot. */
const rowsBeside = ({ top }: Frame, count: number): number[] =>
  Array.from({ length: count }, (_, place) => top + LINE * place + CAPITAL);

/** Enough for the plot, and for the labels beside it. */
const plotHeight = (labels: number): number => Math.max(PLOT, LINE * labels);

/** Vertical rules at the ticks of an axis. */
const rules = ({ at: scale, ticks: values }: Axis, { top, bottom }: Frame): string[] =>
  values.map((value) => line([scale(value), top], [scale(value), bottom], GRID));

const TIME = "Response Time (s)";

/** The labels of an axis, but for those that would reach `limit`, and its name, at the right. */
function axisLabels(axis: Axis, y: number, name = TIME, limit = 752): string[] {
  const labels = axis.ticks
    .map((value) => ({ x: axis.at(value), label: String(value) }))
    .filter(({ x, label }) => x + widthOf(label) / 2 < limit);
  return [
    ...labels.map(({ x, label }) => text(x, y, label, MUTED, "middle")),
    text(WIDTH - MARGIN, y, name, MUTED, "end"),
  ];
}

/** Rules at some shares, the most important first, and labels where there is room for them. */
function shareRules(scale: Scale, shares: readonly number[]): string[] {
  const labelled: number[] = [];
  return shares.flatMap((share) => {
    const y = scale(share);
    const rule = line([LEFT, y], [RIGHT, y], GRID);
    if (labelled.some((other) => Math.abs(other - y) < FONT)) return [rule];
    labelled.push(y);
    const label = `${Number((share * 100).toPrecision(3))} %`;
    return [rule, text(LEFT - 8, y + FONT / 3, label, MUTED, "end")];
  });
}

/** The steps of a histogram over the bins that hold something, down to the axis at the others. */
export function outline(shares: readonly number[], x: Scale, y: Scale): string {
  const filled = (bin: number): boolean => (shares[bin] ?? 0) > 0;
  const steps = shares.map((share, bin) => {
    if (!filled(bin)) return "";
    const up = filled(bin - 1) ? "" : `M${round(x(bin))} ${round(y(0))}`;
    const down = filled(bin + 1) ? "" : `V${round(y(0))}`;
    return `${up}V${round(y(share))}H${round(x(bin + 1))}${down}`;
  });
  return steps.join("");
}

interface Bars {
  readonly drawn: Drawn;
  readonly shares: readonly number[];
  /** The share beyond the axis. */
  readonly beyond: number;
}

/** The horizontal axes of panel A: the bins, and a last bin for what lies beyond them, if any. */
interface Bins {
  readonly top: number;
  readonly axis: Axis;
  readonly bin: Scale;
  readonly tailBin: Scale;
  /** "> 3.5 s", or nothing. */
  readonly tail: string;
}

function binsOf(pooled: Float64Array): Bins {
  const top = histogramTop(pooled);
  const tail = (pooled.at(-1) ?? 0) > top * (1 + 1e-9) ? `> ${seconds(top)} s` : "";
  const axis = linearAxis([0, top], [LEFT, tail ? RIGHT - 92 : RIGHT]);
  return {
    top,
    axis,
    bin: linearScale([0, BINS], [axis.at(0), axis.at(top)]),
    tailBin: linearScale([0, 1], [RIGHT - 64, RIGHT - 38]),
    tail,
  };
}

/** All times of all set-ups, sorted. */
function pooledTimes(setups: readonly Setup[]): Float64Array {
  const pooled = new Float64Array(total(setups.map(({ all }) => all.length)));
  let place = 0;
  for (const { all } of setups) {
    pooled.set(all, place);
    place += all.length;
  }
  return pooled.sort();
}

/** Panel A: the histogram. Shares are of all of a set-up's answers, so nothing is dropped. */
function histogramPanel(drawn: readonly Drawn[], start: number): Panel {
  const frame = frameAt(start, plotHeight(drawn.length));
  const bins = binsOf(pooledTimes(drawn));
  const bars = drawn.map((one) => ({ drawn: one, ...histogram(one.all, bins.top, BINS) }));
  const shares = bars.flatMap((bar) => [...bar.shares, bar.beyond]);
  const highest = niceTop(Math.max(...shares), 4);
  const y = linearScale([0, highest], [frame.bottom, frame.top]);
  const marks = medianMarks(drawn, bins, frame.bottom);
  const labels = marks.bottom + 6 + CAPITAL;
  const note = `in ${BINS} equal bins; triangles mark the medians`;
  return {
    svg: [
      heading(headingAt(start), "Relative Frequency", note),
      ...shareRules(y, ticks(0, highest, 4)),
      ...shapes(bars, bins, y),
      ...baseLines(bins, frame.bottom),
      ...marks.svg,
      ...binLabels(bins, labels),
      ...maxima(bars, bins.tail, frame),
    ],
    bottom: labels + DESCENT,
  };
}

/** The slowest first, so that the others are drawn over it. */
function shapes(bars: readonly Bars[], { bin, tailBin }: Bins, y: Scale): string[] {
  const opacity = bars.length > 3 ? 0.06 : 0.18; // many fills on top of each other make mud
  const slowestFirst = bars.toSorted((a, b) => mean(b.drawn.all) - mean(a.drawn.all));
  return slowestFirst.map(({ drawn: { look }, shares, beyond }) => {
    const path = outline(shares, bin, y) + outline([beyond], tailBin, y);
    const stroke = `stroke-width="2" stroke-dasharray="${look.dash}"`;
    return `<path d="${path}" fill-opacity="${opacity}" ${stroke} ${paint(look.line, look.line)}/>`;
  });
}

function baseLines({ top, axis, tail, tailBin }: Bins, y: number): string[] {
  const main = line([axis.at(0), y], [axis.at(top), y], MUTED, 1.5);
  return tail ? [main, line([tailBin(0), y], [tailBin(1), y], MUTED, 1.5)] : [main];
}

function binLabels({ axis, tail, tailBin }: Bins, y: number): string[] {
  if (!tail) return axisLabels(axis, y);
  const limit = tailBin(0.5) - widthOf(`${tail}  `) / 2;
  return [...axisLabels(axis, y, TIME, limit), text(tailBin(0.5), y, tail, MUTED, "middle")];
}

/** Triangles below the axis; those that would lie on each other go into rows. */
function medianMarks(drawn: readonly Drawn[], { top, axis, tailBin }: Bins, y: number): Panel {
  const marks = drawn.map(({ all, look }) => {
    const median = quantile(all, 0.5);
    return { x: median > top ? tailBin(0.5) : axis.at(median), look };
  });
  const ends: number[] = [];
  const svg = marks
    .toSorted((a, b) => a.x - b.x)
    .map(({ x, look }) => {
      const free = ends.findIndex((end) => x - end >= 14);
      const row = free < 0 ? ends.length : free;
      ends[row] = x;
      const path = `M${round(x)} ${round(y + 2 + 11 * row)}l6 9h-12z`;
      return `<path d="${path}" stroke-width="1" ${paint(look.line, PAPER)}/>`;
    });
  return { svg, bottom: y + 2 + 11 * ends.length };
}

/** Beside the histogram: each set-up's maximum, and its share of the tail where there is one. */
function maxima(bars: readonly Bars[], tail: string, frame: Frame): string[] {
  const rows = rowsBeside(frame, bars.length);
  const entries = bars.map(({ drawn: { all, look }, beyond }, place) => {
    const maximum = `${seconds(all.at(-1) ?? 0)} s`;
    const content = tail ? `${percent(beyond)}, ${maximum}` : maximum;
    return entry(COLUMN, at(rows, place), look, content);
  });
  return [text(COLUMN, frame.top - 16, tail ? `${tail}, max` : "Maximum", MUTED), ...entries];
}

/**
 * The share of `count` requests that still wait after t, of which sorted `values` are the answered
 * ones: the rest waits for ever. Steps closer than one unit are drawn as one, to keep the file small.
 */
export function waitingPath(values: Float64Array, count: number, x: Scale, y: Scale): string {
  const steps = [`M${LEFT} ${round(y(1))}`];
  for (let place = 0; place < values.length; place++) {
    const here = x(at(values, place));
    const next = values[place + 1];
    if (next !== undefined && Math.floor(x(next)) === Math.floor(here)) continue;
    steps.push(`H${round(here)}V${round(y((count - place - 1) / count))}`);
  }
  return steps.join("") + (count > values.length ? `H${RIGHT}` : "");
}

/** Panel B: no bins, the whole tail; one late client in 12,000 is as clear as the median. */
function waitingPanel(drawn: readonly Drawn[], time: Axis, start: number): Panel {
  const frame = frameAt(start, plotHeight(drawn.length));
  const counts = drawn.map(({ all, planned }) => planned ?? all.length);
  const floor = rungBelow(Math.min(0.005, 0.5 / Math.max(...counts)));
  const scale = logScale([floor, 1], [frame.bottom, frame.top]);
  const shares = [0.5, 0.05, 0.01, 1, 1e-3, 1e-4, 1e-5, 1e-6].filter((share) => share >= floor);
  const slowestFirst = drawn.toSorted((a, b) => tailOf(b) - tailOf(a));
  const labels = frame.bottom + 8 + CAPITAL;
  const rows = rowsBeside(frame, drawn.length);
  return {
    svg: [
      heading(headingAt(start), "Share still waiting after t", "both axes logarithmic"),
      text(COLUMN, headingAt(start), "Slowest first", MUTED),
      ...rules(time, frame),
      ...shareRules(scale, shares),
      ...drawn.map(({ all, look }, place) =>
        curve(waitingPath(all, at(counts, place), time.at, scale), look),
      ),
      ...slowestFirst.map(({ look, label }, place) => entry(COLUMN, at(rows, place), look, label)),
      ...axisLabels(time, labels),
    ],
    bottom: labels + DESCENT,
  };
}

/** When 95 % of the requests were answered: what orders the labels of panel B. */
const tailOf = (drawn: Drawn): number =>
  Math.min(MAX_SECONDS, quantileWith(drawn.all, failedOf(drawn), 0.95));

/** A lane of panel C: its middle, its height, and its colours. */
interface Lane {
  readonly y: number;
  readonly height: number;
  readonly colour: Colour;
  readonly fill: Colour;
}

/**
 * What the sample carries: the quartiles as a box, p5 to p95 as a line, the median across. Fewer
 * values are drawn one by one.
 */
function rangeMark(values: Float64Array, scale: Scale, { y, height, colour, fill }: Lane): string {
  const x = (p: number): number => scale(quantile(values, p));
  const dots = [...(carries(values.length, 0.95) ? [] : values)];
  const box = `M${round(x(0.25))} ${round(y - height / 2)}H${round(x(0.75))}v${height}H${round(x(0.25))}z`;
  const parts = [
    carries(values.length, 0.95) && line([x(0.05), y], [x(0.95), y], colour, 2),
    carries(values.length, 0.75) && `<path d="${box}" stroke-width="1.5" ${paint(fill, colour)}/>`,
    ...dots.map((value) => circle(scale(value), y, 2.5, fill, colour)),
    carries(values.length, 0.5) &&
      line([x(0.5), y - height / 2 - 2], [x(0.5), y + height / 2 + 2], INK, 2.5),
  ];
  return parts.filter((part) => part !== false).join("");
}

/** The mean of each run, when there are several. */
const meanDots = ({ means }: Drawn, scale: Scale, y: number): string[] =>
  means.length < 2
    ? []
    : means
        .filter((value) => !Number.isNaN(value))
        .map((value) => circle(scale(value), y, 3, PAPER, INK));

/**
 * Panel C: first requests against later ones. It shows why set-ups differ, since a wait for a free
 * slot falls on the first request only, and how much runs do.
 */
function firstPanel(drawn: readonly Drawn[], time: Axis, start: number): Panel {
  const several = drawn.some(({ means }) => means.length > 1);
  const height = several ? 48 : 38;
  const frame = frameAt(start, height * drawn.length);
  const note = "(filled) and later ones: p5 to p95, quartiles, median";
  const labels = frame.bottom + 8 + CAPITAL;
  return {
    svg: [
      heading(headingAt(start), "First requests", note),
      several ? meanLegend(headingAt(start)) : "",
      ...rules(time, frame),
      ...drawn.flatMap((one, place) => {
        const bottom = frame.top + height * (place + 1);
        const colour = one.look.line;
        const first = { y: bottom - 26, height: 12, colour, fill: colour };
        const later = { y: bottom - 9, height: 10, colour, fill: PAPER };
        return [
          rangeMark(one.first, time.at, first),
          rangeMark(one.later, time.at, later),
          ...meanDots(one, time.at, bottom - 41),
          entry(COLUMN, bottom - height / 2 + CAPITAL / 2, one.look, one.label),
        ];
      }),
      ...axisLabels(time, labels),
    ],
    bottom: labels + DESCENT,
  };
}

const meanLegend = (y: number): string =>
  circle(COLUMN + 6, y - FONT / 3, 3, PAPER, INK) + text(COLUMN + 18, y, "mean of each run", MUTED);

// ─── Picture ─────────────────────────────────────────────────────────────────
// Header, three panels, footer, below each other: the picture is as high as they need. B and C have
// the same axis of time.

const LEGEND_COLUMNS = 2;
const LEGEND_WIDTH = (WIDTH - 2 * MARGIN) / LEGEND_COLUMNS;

/** Lines of prose over the whole width. */
function prose(content: string, top: number, colour = INK): Panel {
  const lines = content === "" ? [] : wrap(content, WIDTH - 2 * MARGIN);
  return {
    svg: lines.map((words, place) => text(MARGIN, top + CAPITAL + LINE * place, words, colour)),
    bottom: top + (lines.length === 0 ? 0 : LINE * (lines.length - 1) + CAPITAL + DESCENT),
  };
}

/** n of a set-up: runs and clients. */
function sizeOf({ origin, firsts, all }: Setup): string {
  if (all.length === 0) return "no answers";
  const runs = origin?.runs ?? [];
  const clients = runs[0]?.clients;
  if (runs.length < 2 || clients === undefined) return `n = ${counted(firsts.length)}`;
  if (runs.some((run) => run.clients !== clients))
    return `n = ${counted(firsts.length)} in ${runs.length} runs`;
  return `n = ${runs.length} × ${counted(clients)}`;
}

/** Clients a second that the servers can serve: slots over the mean time of a client. */
function capacityOf({ plan, servers }: Origin): number {
  const requests = (1 + Number(plan["maxRequests"])) / 2;
  return total(
    (servers ?? []).map(({ slots, mean: each }) => Number(slots) / (Number(each) * requests)),
  );
}

/** The offered load as a share of capacity, where it is known and there is one. */
export function loadOf(origin: Origin | undefined): number | undefined {
  if (!origin?.servers || !(Number(origin.plan["rate"]) > 0)) return undefined;
  const share = Number(origin.plan["rate"]) / capacityOf(origin);
  return Number.isFinite(share) && share > 0 ? share : undefined;
}

/** How a set-up's clients came; the most common, then who differs. */
function loadLine(setups: readonly Setup[], name: Namer): string {
  const rates = mostCommon(setups, rateWords, name);
  const loads = mostCommon(setups, loadWords, name);
  return rates && `Offered load: ${rates}${loads && `; ${loads}`}.`;
}

function rateWords({ origin }: Setup): string {
  const rate = Number(origin?.plan["rate"] ?? NaN);
  if (rate === 0) return "all clients at once";
  return rate > 0 ? `${counted(rate)} clients a second` : "";
}

function loadWords({ origin }: Setup): string {
  const load = loadOf(origin);
  return load === undefined ? "" : `${Math.round(load * 100)} % of capacity`;
}

/** What is said of most set-ups, then in brackets what is said of others. */
function mostCommon(setups: readonly Setup[], words: Namer, name: Namer): string {
  const said = setups.map(words).filter(Boolean);
  const often = (one: string): number => said.filter((other) => other === one).length;
  const [most] = said.toSorted((a, b) => often(b) - often(a));
  if (most === undefined) return "";
  const others = setups.filter((setup) => words(setup) !== "" && words(setup) !== most);
  const each = others.map((setup) => `${name(setup)} ${words(setup)}`);
  return each.length > 0 ? `${most} (${each.join(", ")})` : most;
}

/** Whether the set-ups had the same plan, as far as runs.json tells. */
function planLine(setups: readonly Setup[]): string {
  if (setups.length < 2 || !setups.every(isMeasured)) return "";
  const [head, ...rest] = setups;
  const differs = rest.some((one) => planDifference(head?.origin.plan ?? {}, one.origin.plan));
  return differs ? "The plans differ." : "Same plan for all.";
}

/** Which of the set-ups are simulated. */
function simulatedLine(setups: readonly Setup[], name: Namer): string {
  const simulated = setups.filter(({ origin }) => origin?.simulated);
  if (simulated.length === 0) return "";
  if (simulated.length === setups.length) return "Simulated.";
  return `Simulated: ${simulated.map(name).join(", ")}.`;
}

/** What the shares are shares of. */
function failureLine(setups: readonly Setup[], name: Namer): string {
  const failing = setups.filter((setup) => failedOf(setup) > 0);
  const failed = failing.map(
    (setup) =>
      `${counted(failedOf(setup))} of ${possessive(name(setup))} ${counted(setup.planned ?? 0)} requests`,
  );
  const unknown = setups.some(({ planned }) => planned === undefined);
  const said = failed.length > 0 ? `; failed: ${failed.join(", ")}` : "";
  if (unknown) return `n: clients. Shares are of answered requests${said}; failures unknown.`;
  return `n: runs × clients. Shares are of answered requests${said || "; none failed"}.`;
}

const bigTitle = (title: string): string =>
  `<text x="${MARGIN}" y="38" font-size="28" font-weight="600" ${paint(INK)}>${escape(title)}</text>`;
const BELOW_TITLE = 54;

/** The title, the load, n by set-up, and what the shares are shares of. */
function header(setups: readonly Setup[], looks: readonly Look[], name: Namer): Panel {
  const told = [loadLine(setups, name), planLine(setups), simulatedLine(setups, name)];
  const load = prose(told.filter(Boolean).join(" "), BELOW_TITLE, MUTED);
  const top = load.svg.length > 0 ? load.bottom + 6 : BELOW_TITLE;
  const names = setups.map(name);
  const rooms = setups.map((setup) => LEGEND_WIDTH - SWATCH - widthOf(`, ${sizeOf(setup)} `));
  const labels = labelsOf(names, Math.min(...rooms));
  const legend = setups.map((setup, place) => {
    const x = MARGIN + LEGEND_WIDTH * (place % LEGEND_COLUMNS);
    const y = top + CAPITAL + LINE * Math.floor(place / LEGEND_COLUMNS);
    return entry(x, y, at(looks, place), `${at(labels, place)}, ${sizeOf(setup)}`);
  });
  const below = top + LINE * Math.ceil(setups.length / LEGEND_COLUMNS);
  const shares = prose(failureLine(setups, name), below, MUTED);
  return {
    svg: [bigTitle("Response Time Histograms"), ...load.svg, ...legend, ...shares.svg],
    bottom: shares.bottom,
  };
}

/** The picture in words, for those who do not see it. */
function description(drawn: readonly Setup[], conclusion: string): string {
  const setups = drawn.map(
    ({ title, all }) =>
      `${title}: ${counted(all.length)} answers, median ${seconds(quantile(all, 0.5))} s, maximum ${seconds(all.at(-1) ?? 0)} s.`,
  );
  return [
    "Response times: histogram, share still waiting, and first requests against later ones.",
    ...setups,
    conclusion,
  ].join(" ");
}

/** How the pictures call set-ups in sentences: by titles that never fill more than a third. */
function namerOf(setups: readonly Setup[]): Namer {
  const labels = labelsOf(
    setups.map(({ title }) => title),
    WIDTH / 3,
  );
  return (setup) => labels[setups.indexOf(setup)] ?? setup.title;
}

/** Looks and labels for those with answers. */
function drawnOf(setups: readonly Setup[], looks: readonly Look[]): Drawn[] {
  const labels = labelsOf(
    setups.map(({ title }) => title),
    LABEL - SWATCH,
  );
  return setups
    .map((setup, place) => ({ ...setup, look: at(looks, place), label: at(labels, place) }))
    .filter(({ all }) => all.length > 0);
}

/** The whole SVG of the first eight; the verdict is about all. At least one of these has answers. */
export function drawPicture(all: readonly Setup[]): string {
  const setups = all.slice(0, MOST_DRAWN);
  const looks = looksOf(setups.map(({ name }) => name));
  const drawn = drawnOf(setups, looks);
  const time = timeAxis(drawn, [LEFT, RIGHT]);
  const head = header(setups, looks, namerOf(setups));
  const panels = stacked(
    [
      (top) => histogramPanel(drawn, top),
      (top) => waitingPanel(drawn, time, top),
      (top) => firstPanel(drawn, time, top),
    ],
    head.bottom + AIR,
  );
  const footer = prose(verdict(all, namerOf(all)), panels.bottom + AIR);
  return svgOf({
    title: `Response Time Histograms: ${setups.map(({ title }) => title).join(", ")}`,
    description: description(
      drawn,
      verdict(all, ({ title }) => title),
    ),
    looks,
    height: Math.ceil(footer.bottom) + MARGIN,
    body: [...head.svg, ...panels.svg, ...footer.svg],
  });
}

// ─── Two more pictures ───────────────────────────────────────────────────────
// What they share: a vertical axis of times, and a frame for everything else.

/** A logarithmic axis from the bottom of a plot to its top, its labels a line apart. */
function upright(low: number, high: number, { top, bottom }: Frame): Axis {
  const axis = logAxis(low, high, [bottom, top]);
  const rungs = logRungs(low, high);
  const powers = rungs.filter((rung) => Number.isInteger(Math.log10(rung)));
  const sparse = [2, 3, 4, 6].map((n) => powers.filter((_, place) => place % n === 0));
  const apart = (list: readonly number[]): boolean =>
    list.every(
      (rung, place) => place === 0 || axis.at(at(list, place - 1)) - axis.at(rung) >= LINE,
    );
  return { at: axis.at, ticks: [rungs, powers, ...sparse].find(apart) ?? [] };
}

/** Rules across a plot, and their labels at its left. */
const uprightRules = (axis: Axis): string[] =>
  axis.ticks.flatMap((value) => [
    line([LEFT, axis.at(value)], [RIGHT, axis.at(value)], GRID),
    text(LEFT - 8, axis.at(value) + FONT / 3, String(value), MUTED, "end"),
  ]);

/** A picture of a title, prose below it, panels, and a conclusion. */
interface Page {
  readonly title: string;
  readonly notes: string;
  readonly looks: readonly Look[];
  readonly panels: readonly ((top: number) => Panel)[];
  readonly conclusion: string;
  /** Stands for the conclusion where nothing is shortened. */
  readonly description: string;
}

function pageOf({ title, notes, looks, panels, conclusion, description: words }: Page): string {
  const head = prose(notes, BELOW_TITLE, MUTED);
  const body = stacked(panels, head.bottom + AIR);
  const footer = prose(conclusion, body.bottom + AIR);
  return svgOf({
    title,
    description: words,
    looks,
    height: Math.ceil(footer.bottom) + MARGIN,
    body: [bigTitle(title), ...head.svg, ...body.svg, ...footer.svg],
  });
}

/** The sorted numbers among `values`. */
const answeredOf = (values: Float64Array): Float64Array =>
  values.filter((value) => !Number.isNaN(value)).sort();

// ─── The load curve ──────────────────────────────────────────────────────────
// Folders of one rate each: what the first requests of each set-up take as the load grows.

/** A set-up at one rate, with its intervals over the runs. */
export interface Point {
  readonly rate: number;
  readonly setup: Setup;
  readonly mean: Interval;
  /** Infinity where too many failed, NaN where the sample does not carry it. */
  readonly p95: Interval;
}

/** A set-up at all rates, by rate. */
export interface Line {
  readonly name: string;
  readonly title: string;
  readonly points: readonly Point[];
}

/** The 95th percentile of the first requests; a failed one has waited for ever. */
function p95Of(setup: Setup): Interval {
  const quantileOf = (firsts: Float64Array): number => {
    if (!carries(firsts.length, 0.95)) return NaN;
    const answered = answeredOf(firsts);
    return quantileWith(answered, firsts.length - answered.length, 0.95);
  };
  const each = runsOf(setup.firsts, setup.origin).map(quantileOf);
  if (each.length > 1 && each.every(Number.isFinite)) return tInterval(each);
  return { mean: quantileOf(setup.firsts), low: NaN, high: NaN, spread: NaN };
}

export function pointOf(rate: number, setup: Setup): Point {
  const over = tInterval(setup.means);
  return { rate, setup, mean: { ...over, mean: mean(setup.first) }, p95: p95Of(setup) };
}

/** Points by set-up, in the order in which set-ups are first met. */
export function linesOf(points: readonly Point[]): Line[] {
  const names = [...new Set(points.map(({ setup }) => setup.name))];
  const titles = titlesOf(names);
  return names.map((name, place) => ({
    name,
    title: at(titles, place),
    points: points.filter(({ setup }) => setup.name === name).sort((a, b) => a.rate - b.rate),
  }));
}

/** The highest rate up to which a line's p95 stays below twice its first; undefined when unknown. */
function kneeOf({ points }: Line): number | undefined {
  const limit = 2 * (points[0]?.p95.mean ?? NaN);
  if (!Number.isFinite(limit)) return undefined;
  const past = points.findIndex(({ p95 }) => !(p95.mean < limit));
  const last = points[past < 0 ? points.length - 1 : past - 1];
  return last?.rate;
}

/** Which set-up carries how much, in two sentences. */
export function kneeSentence(lines: readonly Line[], name: (line: Line) => string): string {
  const lowest = Math.min(...lines.flatMap(({ points }) => points.map(({ rate }) => rate)));
  const highest = Math.max(...lines.flatMap(({ points }) => points.map(({ rate }) => rate)));
  const knees = lines
    .flatMap((line) => ({ line, rate: kneeOf(line) ?? NaN }))
    .filter(({ rate }) => !Number.isNaN(rate))
    .sort((a, b) => b.rate - a.rate);
  if (knees.length === 0)
    return `No knee: the p95 at ${counted(lowest)} a second is not known (it needs 59 first requests).`;
  const upTo = (rate: number): string =>
    `${counted(rate)}${rate === highest ? " (the highest tried)" : ""}`;
  const each = knees.map(({ line, rate }) => `${name(line)} ${upTo(rate)}`).join(", ");
  const balanced = knees.filter(({ line }) => !line.points.every(({ setup }) => isBaseline(setup)));
  const [best, next] = balanced.length < 2 ? knees : balanced;
  return (
    `Up to so many clients a second the p95 of first requests stays below twice that at ` +
    `${counted(lowest)}: ${each}.${best && next ? more(best, next, name) : ""}`
  );
}

type Knee = { readonly line: Line; readonly rate: number };

function more(best: Knee, next: Knee, name: (line: Line) => string): string {
  if (best.rate === next.rate)
    return ` ${name(best.line)} and ${name(next.line)} carry the same load, as far as was tried.`;
  const share = Math.round((best.rate / next.rate - 1) * 100);
  return ` ${name(best.line)} carries ${share} % more load than ${name(next.line)}.`;
}

/** A row a set-up and rate. */
export function curveTable(lines: readonly Line[]): string {
  const points = lines.flatMap(({ points: own, title }) => own.map((point) => ({ title, point })));
  const times = points.flatMap(({ point: { mean: first, p95 } }) => [first.mean, p95.mean]);
  const unit = unitOf(Math.max(...times.filter(Number.isFinite)));
  const cell = (interval: Interval): string =>
    interval.mean === Infinity ? "failed" : meanCell(interval.mean, interval, unit);
  const load = ({ setup }: Point): string => {
    const share = loadOf(setup.origin);
    return share === undefined ? "-" : `${Math.round(share * 100)} %`;
  };
  const columns: [head: string, cell: (point: Point) => string][] = [
    ["clients/s", ({ rate }) => String(rate)],
    ["of capacity", load],
    ["runs", ({ setup }) => runsCell(setup.origin)],
    ["answered of planned", ({ setup }) => answeredCell(setup)],
    [`first mean`, (point) => cell(point.mean)],
    ["first p95", (point) => cell(point.p95)],
  ];
  return aligned([
    { head: `first requests (${unit.name})`, cells: points.map(({ title }) => title) },
    ...columns.map(([head, show]) => ({ head, cells: points.map(({ point }) => show(point)) })),
  ]).join("\n");
}

interface LineLook {
  readonly line: Line;
  readonly look: Look;
  readonly label: string;
}

/** One measure of all lines over the rates. */
interface Measure {
  readonly title: string;
  readonly note: string;
  readonly of: (point: Point) => Interval;
}

/** The rates that were tried are the ticks; over more than a decade or so, logarithmic. */
function rateAxis(rates: readonly number[]): Axis {
  const [low, high] = [Math.min(...rates), Math.max(...rates)];
  const inner: Range = [LEFT + 30, RIGHT - 30];
  if (low === high) return { at: () => (LEFT + RIGHT) / 2, ticks: [low] };
  const scale = (high / low > 20 ? logScale : linearScale)([low, high], inner);
  const sparse = [1, 2, 3, 4, 6, 12].map((n) => rates.filter((_, place) => place % n === 0));
  return { at: scale, ticks: fitting(sparse, scale, "100 % ") };
}

function measurePanel(looks: readonly LineLook[], rates: Axis, measure: Measure, start: number) {
  const frame = frameAt(start, plotHeight(looks.length));
  const values = looks.flatMap(({ line }) => line.points.map(measure.of));
  const known = values.map(({ mean: value }) => value).filter((value) => Number.isFinite(value));
  const highs = values.map(({ high }) => high).filter(Number.isFinite);
  const axis = upright(Math.min(...known), Math.max(...known, ...highs), frame);
  const last = ({ line }: LineLook): number => {
    const { mean: value } = measure.of(at(line.points, line.points.length - 1));
    return Number.isNaN(value) ? -1 : Math.min(value, MAX_SECONDS);
  };
  const rows = rowsBeside(frame, looks.length);
  const labels = frame.bottom + 8 + CAPITAL;
  const loads = loadLabels(looks, rates, labels + LINE);
  const svg = [
    heading(headingAt(start), measure.title, measure.note),
    ...rules(rates, frame),
    ...uprightRules(axis),
    ...looks.map((one, place) =>
      lineMarks(one, place - (looks.length - 1) / 2, rates, axis, frame, measure),
    ),
    ...looks
      .toSorted((a, b) => last(b) - last(a))
      .map(({ look, label }, place) => entry(COLUMN, at(rows, place), look, label)),
    ...axisLabels(rates, labels, "Clients per second"),
    ...loads,
  ];
  return { svg, bottom: labels + DESCENT + (loads.length > 0 ? LINE : 0) };
}

/** Below the rates, what they are of the capacity that most set-ups have. */
function loadLabels(looks: readonly LineLook[], rates: Axis, y: number): string[] {
  const points = looks.flatMap(({ line }) => line.points);
  const balanced = points.filter(({ setup }) => !isBaseline(setup));
  const loads = rates.ticks.map((rate) => {
    const own = (balanced.length > 0 ? balanced : points).filter((point) => point.rate === rate);
    return own.map(({ setup }) => loadOf(setup.origin)).find((load) => load !== undefined);
  });
  if (loads.every((load) => load === undefined)) return [];
  const labels = loads.map((load, place) =>
    load === undefined
      ? ""
      : text(rates.at(at(rates.ticks, place)), y, `${Math.round(load * 100)} %`, MUTED, "middle"),
  );
  return [...labels, text(WIDTH - MARGIN, y, "of capacity", MUTED, "end")];
}

/** A line through its points, each with its interval; `aside` keeps neighbours apart. */
function lineMarks(
  { line: { points }, look }: LineLook,
  aside: number,
  rates: Axis,
  axis: Axis,
  { top }: Frame,
  measure: Measure,
): string {
  const marks = points
    .map((point) => ({ x: rates.at(point.rate) + 4 * aside, ...measure.of(point) }))
    .filter(({ mean: value }) => !Number.isNaN(value))
    .map(({ x, mean: value, low, high }) => ({
      x,
      y: value === Infinity ? top : axis.at(value),
      bar: Number.isNaN(low)
        ? ""
        : line([x, axis.at(low)], [x, Math.max(top, axis.at(high))], look.line, 1.5),
    }));
  const path = marks.map(({ x, y }, place) => `${place === 0 ? "M" : "L"}${round(x)} ${round(y)}`);
  const dots = marks.map(({ x, y, bar }) => bar + circle(x, y, 3.5, look.line, PAPER));
  return (path.length > 1 ? curve(path.join(""), look) : "") + dots.join("");
}

const MEASURES: readonly Measure[] = [
  {
    title: "Mean of the first requests",
    note: "(s), 95 % interval over runs",
    of: (point) => point.mean,
  },
  { title: "95th percentile", note: "(s), failed ones at the top", of: (point) => point.p95 },
];

/** The whole SVG of at most eight lines. At least one point has answers. */
export function drawCurve(all: readonly Line[]): string {
  const lines = all.slice(0, MOST_DRAWN);
  const looks = looksOf(lines.map(({ name }) => name));
  const titles = lines.map(({ title }) => title);
  const labels = labelsOf(titles, LABEL - SWATCH);
  const drawn = lines.map((line, place) => ({
    line,
    look: at(looks, place),
    label: at(labels, place),
  }));
  const points = lines.flatMap((line) => line.points);
  const rates = rateAxis([...new Set(points.map(({ rate }) => rate))].sort((a, b) => a - b));
  const setups = points.map(({ setup }) => setup);
  const long = labelsOf(titles, WIDTH / 3);
  const simulated = simulatedLine(setups, ({ title }) => title).replace(/: .*/, " in part.");
  const extra = disturbance(setups);
  const carried = MEASURES.filter(({ of }) =>
    points.some((point) => Number.isFinite(of(point).mean)),
  );
  return pageOf({
    title: "Load Curve",
    notes: `First requests as the offered load grows. ${curveSize(setups)} ${simulated}`.trim(),
    looks,
    panels: carried.map((measure) => (top) => measurePanel(drawn, rates, measure, top)),
    conclusion: kneeSentence(lines, (line) => at(long, lines.indexOf(line))) + extra,
    description: kneeSentence(lines, ({ title }) => title) + extra,
  });
}

/** How much stands behind a point, where all points have the same. */
function curveSize(setups: readonly Setup[]): string {
  const sizes = new Set(setups.filter((setup) => !isBaseline(setup)).map(sizeOf));
  const [size] = sizes;
  return sizes.size === 1 && size
    ? `At each point ${size}${size.includes("×") ? " clients" : ""}.`
    : "";
}

/** The folders rate-R of a sweep, by rate. Throws a UsageError when there are none. */
async function rateFolders(folder: string): Promise<{ rate: number; path: string }[]> {
  const names = await readdir(folder).catch((error: unknown) => {
    throw failsWith(folder, error);
  });
  const rates = names
    .filter((name) => /^rate-(\d+\.?\d*|\.\d+)$/.test(name))
    .map((name) => ({ rate: Number(name.slice("rate-".length)), path: join(folder, name) }))
    .filter(({ rate }) => rate > 0)
    .sort((a, b) => a.rate - b.rate);
  if (rates.length === 0)
    throw new UsageError(
      `Bad --curve ${inQuotes(folder)}: expected a folder with folders rate-R in it`,
    );
  return rates;
}

/** Reads a sweep, prints its table and sentence, and draws it. */
async function showCurve(folder: string, out: string | undefined, journals: Journals) {
  const picture = out ?? join(folder, CURVE);
  const points: Point[] = [];
  const complaints: string[] = [];
  const files: string[] = [];
  for (const { rate, path } of await rateFolders(folder)) {
    const sources = await sourcesOf([path], path, journals);
    const { setups, complaints: own } = await readSetups(sources.files, journals);
    files.push(...sources.files);
    complaints.push(...sources.complaints, ...own);
    points.push(...setups.map((setup) => pointOf(rate, setup)));
  }
  await checkIdentities(files, picture === "-" ? [] : [picture]);
  complaints.unshift(...journals.complaints);
  for (const complaint of complaints) console.error(complaint);
  if (!points.some(({ setup }) => setup.first.length > 0))
    throw new RunError(oneLine(`Cannot write ${picture}: there are no answers to draw`));
  const lines = linesOf(points);
  const say = sayFor(picture);
  const setups = points.map(({ setup }) => setup);
  const sentence = kneeSentence(lines, ({ title }) => title) + disturbance(setups);
  say([curveTable(lines), "", sentence, ...tooMany(lines.length)].join("\n"));
  await writePicture(picture, drawCurve(lines));
  return complaints.length > 0 ? 1 : 0;
}

/** Says so when the picture shows not all. */
const tooMany = (count: number): string[] =>
  count > MOST_DRAWN ? [`The picture shows the first ${MOST_DRAWN} of ${count}.`] : [];

// ─── Over time ───────────────────────────────────────────────────────────────
// First requests where the plan had them arrive: the arrivals are drawn again from seed and rate,
// and all runs of a set-up lie on each other.

/** The last server was killed, or stood still, for so long. */
interface Window {
  readonly what: "killed" | "blocked";
  readonly from: number;
  readonly to: number;
}

/** The first requests of a set-up by arrival: when, and how long; NaN where it failed. */
export interface Timeline {
  readonly setup: Setup;
  readonly arrivals: Float64Array;
  readonly times: Float64Array;
  readonly window: Window | undefined;
}

/** Throws a RunError when nothing tells when the clients arrived. */
export function timelineOf(setup: Setup): Timeline {
  const { origin, firsts } = setup;
  if (!origin) throw new RunError(`${JOURNAL} does not tell when its clients arrived`);
  const rate = Number(origin.plan["rate"]);
  const maxRequests = Number(origin.plan["maxRequests"]);
  if (!(rate > 0)) throw new RunError("its clients came all at once");
  const asPlanned = origin.runs.every(({ clients }) => clients === origin.plan["clients"]);
  if (!asPlanned || !(maxRequests >= 1))
    throw new RunError("its runs are not as long as their plan, so the arrivals are not known");
  const planned = Float64Array.from(
    origin.runs.flatMap(
      ({ clients, seed }) => drawPlan(clients, maxRequests, rate, seedsFrom(seed)).arrivals,
    ),
  );
  const order = Uint32Array.from(planned, (_, place) => place);
  order.sort((a, b) => at(planned, a) - at(planned, b));
  return {
    setup,
    arrivals: Float64Array.from(order, (place) => at(planned, place)),
    times: Float64Array.from(order, (place) => at(firsts, place)),
    window: windowOf(origin.plan),
  };
}

function windowOf({ fail, hang }: Fields): Window | undefined {
  const [what, span] = isFields(fail) ? (["killed", fail] as const) : (["blocked", hang] as const);
  if (!isFields(span)) return undefined;
  const { from, to } = span;
  if (typeof from !== "number" || typeof to !== "number" || !(from < to)) return undefined;
  return { what, from, to };
}

/** Times of clients that came between `from` and `to`. */
function between({ arrivals, times }: Timeline, from: number, to: number): Float64Array {
  const start = placeOf(arrivals, from);
  return times.subarray(start, Math.max(start, placeOf(arrivals, to)));
}

/** How many of sorted `values` are below `limit`. */
function placeOf(values: Float64Array, limit: number): number {
  let [low, high] = [0, values.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (at(values, middle) < limit) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** A quantile of first requests of which some failed; NaN where the sample does not carry it. */
function firstQuantile(times: Float64Array, p: number): number {
  if (!carries(times.length, p)) return NaN;
  const answered = answeredOf(times);
  return quantileWith(answered, times.length - answered.length, p);
}

interface Phase {
  readonly name: string;
  readonly from: number;
  readonly to: number;
}

/** Before, while and after the window; without one, thirds of the time. */
function phasesOf({ window }: Timeline, end: number): Phase[] {
  const cuts = window ? [window.from, window.to] : [end / 3, (2 * end) / 3];
  const names = window
    ? ["before", `while ${window.what}`, "after"]
    : ["first third", "second third", "last third"];
  return names.map((name, place) => ({
    name,
    from: cuts[place - 1] ?? 0,
    to: cuts[place] ?? Infinity,
  }));
}

const endOf = (timelines: readonly Timeline[]): number =>
  Math.max(...timelines.map(({ arrivals }) => arrivals.at(-1) ?? 0));

/** A row a set-up: failures, median and p95 of the first requests by phase. */
export function phaseTable(timelines: readonly Timeline[]): string {
  const end = endOf(timelines);
  const phases = phasesOf(at(timelines, 0), end);
  const unit = unitOf(Math.max(...timelines.map(({ setup }) => setup.first.at(-1) ?? 0)));
  const show = (value: number): string => (value === Infinity ? "failed" : unit.show(value));
  const failed = ({ setup }: Timeline): string =>
    `${counted(setup.firsts.length - setup.first.length)} of ${counted(setup.firsts.length)}`;
  const column = (head: string, cell: (timeline: Timeline) => string) => ({
    head,
    cells: timelines.map(cell),
  });
  return aligned([
    column(`first requests (${unit.name})`, ({ setup }) => setup.title),
    column("runs", ({ setup }) => runsCell(setup.origin)),
    column("failed", failed),
    ...phases.flatMap(({ name, from, to }) => [
      column(`${name}: p50`, (one) => show(firstQuantile(between(one, from, to), 0.5))),
      column("p95", (one) => show(firstQuantile(between(one, from, to), 0.95))),
    ]),
  ]).join("\n");
}

/** How long after the window's beginning clients came who failed or waited longer than any before. */
function hurtFor({ arrivals, times, window }: Timeline): number {
  if (!window) return 0;
  let longest = 0;
  let last = 0;
  for (const [place, arrival] of arrivals.entries()) {
    const time = at(times, place);
    if (arrival + time < window.from) longest = Math.max(longest, time);
    const inside = arrival >= window.from && arrival < window.to;
    if (inside && !(time <= longest)) last = arrival - window.from;
  }
  return last;
}

/** What the picture shows, in one sentence. */
export function timeSentence(timelines: readonly Timeline[], name: Namer): string {
  const { window } = at(timelines, 0);
  if (window) {
    const each = timelines.map((one) => `${seconds(hurtFor(one))} s in ${name(one.setup)}`);
    return (
      `After the last server was ${window.what} at ${seconds(window.from)} s, clients came who ` +
      `failed or waited longer than any before for ${each.join(", ")}.`
    );
  }
  const end = endOf(timelines);
  const each = timelines.flatMap((one) => {
    const medians = phasesOf(one, end).map(({ from, to }) =>
      firstQuantile(between(one, from, to), 0.5),
    );
    const [first = NaN, , last = NaN] = medians;
    if (!Number.isFinite(first + last)) return [];
    return [`from ${seconds(first)} to ${seconds(last)} s in ${name(one.setup)}`];
  });
  if (each.length === 0) return "Too few clients for a median in each third of the time.";
  return `From the first third of the time to the last the median first request went ${each.join(", ")}.`;
}

interface TimePanel {
  readonly timeline: Timeline;
  readonly look: Look;
  readonly title: string;
}

/** Clients as dots, each place of the picture at most once; failed ones as marks at the top edge. */
function dotPaths({ arrivals, times }: Timeline, x: Scale, y: Scale, top: number) {
  const dots = new Set<string>();
  const marks = new Set<string>();
  for (const [place, arrival] of arrivals.entries()) {
    const time = at(times, place);
    const across = Math.round(x(arrival));
    if (Number.isNaN(time)) marks.add(`M${across} ${round(top - 8)}v8`);
    else dots.add(`M${across} ${Math.round(y(time))}h0`);
  }
  return { dots: [...dots].join(""), marks: [...marks].join("") };
}

const STEPS = 120;

/** A quantile in a moving window, a thirtieth of the time wide; broken where too few came. */
function movingPath(timeline: Timeline, end: number, p: number, x: Scale, y: Scale): string {
  let pen = "M";
  const parts: string[] = [];
  for (let step = 0; step <= STEPS; step++) {
    const middle = (end * step) / STEPS;
    const value = firstQuantile(between(timeline, middle - end / 60, middle + end / 60), p);
    if (!Number.isNaN(value)) parts.push(`${pen}${round(x(middle))} ${round(y(value))}`);
    pen = Number.isNaN(value) ? "M" : "L";
  }
  return parts.join("");
}

/** Times on a logarithmic axis, which failures do not leave. */
function timePanel(
  { timeline, look, title }: TimePanel,
  x: Axis,
  range: Range,
  start: number,
): Panel {
  const frame = frameAt(start + 6, 132);
  const axis = upright(range[0], range[1], frame);
  const y = (value: number): number => Math.max(frame.top, axis.at(Math.min(value, MAX_SECONDS)));
  const end = endOf([timeline]);
  const { dots, marks } = dotPaths(timeline, x.at, y, frame.top);
  const labels = frame.bottom + 8 + CAPITAL;
  const failed = timeline.setup.firsts.length - timeline.setup.first.length;
  const note = `${sizeOf(timeline.setup)}${failed > 0 ? `, ${counted(failed)} failed` : ""}`;
  const dotted = `stroke-width="2.4" stroke-linecap="round" stroke-opacity="0.45"`;
  const moving = (p: number): string => movingPath(timeline, end, p, x.at, y);
  return {
    svg: [
      heading(headingAt(start), title, note),
      shade(timeline.window, x, frame),
      ...rules(x, frame),
      ...uprightRules(axis),
      dots && `<path d="${dots}" ${dotted} ${paint(undefined, look.line)}/>`,
      marks && `<path d="${marks}" stroke-width="1.5" ${paint(undefined, look.line)}/>`,
      movingLine(moving(0.5), "none"),
      movingLine(moving(0.95), "5 3"),
      ...timeLegend(frame, look, failed > 0),
      ...axisLabels(x, labels, "Arrival (s)"),
    ],
    bottom: labels + DESCENT,
  };
}

const movingLine = (path: string, dash: string): string =>
  path &&
  `<path d="${path}" stroke-width="2" stroke-dasharray="${dash}" ${paint(undefined, INK)}/>`;

function timeLegend(frame: Frame, look: Look, failures: boolean): string[] {
  const rows = rowsBeside(frame, 4).map((row) => row + 6);
  const ink = (dash: string): Look => ({ line: INK, text: MUTED, dash });
  const dot = circle(COLUMN + 13, at(rows, 0) - FONT / 3, 1.5, look.line, look.line);
  const mark = line(
    [COLUMN + 13, at(rows, 3) - 12],
    [COLUMN + 13, at(rows, 3) - 2],
    look.line,
    1.5,
  );
  return [
    dot + text(COLUMN + SWATCH, at(rows, 0), "a client", MUTED),
    entry(COLUMN, at(rows, 1), ink("none"), "median"),
    entry(COLUMN, at(rows, 2), ink("5 3"), "p95"),
    failures ? mark + text(COLUMN + SWATCH, at(rows, 3), "failed", MUTED) : "",
  ];
}

/** The time in which the last server was away. */
function shade(window: Window | undefined, x: Axis, { top, bottom }: Frame): string {
  if (!window) return "";
  const [left, right] = [window.from, window.to].map((time) => Math.min(RIGHT, x.at(time)));
  const size = `width="${round((right ?? 0) - (left ?? 0))}" height="${round(bottom - top)}"`;
  return `<rect x="${round(left ?? 0)}" y="${round(top)}" ${size} fill-opacity="0.45" ${paint(GRID)}/>`;
}

/** The whole SVG of at most eight. At least one has answers. */
export function drawOverTime(all: readonly Timeline[]): string {
  const timelines = all.slice(0, MOST_DRAWN);
  const setups = timelines.map(({ setup }) => setup);
  const looks = looksOf(setups.map(({ name }) => name));
  const name = namerOf(setups);
  const axis = linearAxis([0, endOf(timelines) || 1], [LEFT, RIGHT]);
  const lows = setups.map(({ first }) => first.find((value) => value > 0) ?? Infinity);
  const range: Range = [
    Math.min(...lows),
    Math.max(...setups.map(({ first }) => first.at(-1) ?? 0)),
  ];
  const notes = [
    "First requests (s, logarithmic) of each client at its scheduled arrival.",
    windowLine(timelines),
  ];
  const told = [...notes, loadLine(setups, name), simulatedLine(setups, name)];
  return pageOf({
    title: "First Requests Over Time",
    notes: told.filter(Boolean).join(" "),
    looks,
    panels: timelines.map((timeline, place) => {
      const panel = { timeline, look: at(looks, place), title: name(timeline.setup) };
      return (top: number) => timePanel(panel, axis, range, top);
    }),
    conclusion: timeSentence(timelines, name) + disturbance(setups),
    description: timeSentence(timelines, ({ title }) => title),
  });
}

function windowLine(timelines: readonly Timeline[]): string {
  const { window } = at(timelines, 0);
  if (!window) return "";
  return `Shaded: the last server was ${window.what} from ${seconds(window.from)} to ${seconds(window.to)} s.`;
}

/** Table, sentence and picture over time; a set-up whose arrivals are not known is told. */
async function showOverTime(setups: readonly Setup[], picture: string): Promise<boolean> {
  const timelines: Timeline[] = [];
  for (const setup of setups) {
    try {
      timelines.push(timelineOf(setup));
    } catch (error) {
      if (!(error instanceof RunError)) throw error;
      console.error(`Cannot draw ${setup.title} over time: ${error.message}`);
    }
  }
  if (!timelines.some(({ setup }) => setup.first.length > 0))
    throw new RunError(oneLine(`Cannot write ${picture}: there are no clients to draw`));
  const say = sayFor(picture);
  const sentence = timeSentence(timelines, ({ title }) => title);
  const extra = disturbance(timelines.map(({ setup }) => setup));
  say([phaseTable(timelines), "", sentence + extra, ...tooMany(timelines.length)].join("\n"));
  await writePicture(picture, drawOverTime(timelines));
  return timelines.length === setups.length;
}

// ─── Files ───────────────────────────────────────────────────────────────────
// What to read, what it is called, and how a picture is written: whole or not at all, and never
// over a measurement. Files are told apart by what they are, not by how they are called.

/** The files to draw, and what could not be understood on the way to them. */
interface Sources {
  readonly files: readonly string[];
  readonly complaints: readonly string[];
}

const failsWith = (file: string, error: unknown): RunError =>
  new RunError(`Cannot read ${oneLine(file)}: ${reasonOf(error)}`);

/** What a runs.json says, by name; undefined when there is none. Throws a RunError. */
async function journalOf(folder: string): Promise<Fields | undefined> {
  const file = join(folder, JOURNAL);
  try {
    const content = parseJson(decode(await readFile(file)));
    if (isFields(content)) return content;
  } catch (error) {
    if (error instanceof Error && "code" in error && error.code === "ENOENT") return undefined;
    throw failsWith(file, error);
  }
  throw failsWith(file, new RunError("expected an object of set-ups by name"));
}

/** Each runs.json is read once, and complained about once. */
class Journals {
  readonly complaints: string[] = [];
  readonly #read = new Map<string, Fields | undefined>();

  /** undefined where there is none to believe. */
  async of(folder: string): Promise<Fields | undefined> {
    const key = resolve(folder);
    if (!this.#read.has(key)) this.#read.set(key, await this.#load(folder));
    return this.#read.get(key);
  }

  async #load(folder: string): Promise<Fields | undefined> {
    try {
      return await journalOf(folder);
    } catch (error) {
      if (!(error instanceof RunError)) throw error;
      this.complaints.push(oneLine(error.message));
      return undefined;
    }
  }
}

/** By following symbolic links; undefined when there is nothing. */
const statOf = (file: string): Promise<BigIntStats | undefined> =>
  stat(file, { bigint: true }).catch(() => undefined);

/** The runs of a folder: the three known ones, and what else runs.json lists. */
async function filesIn(folder: string, journals: Journals): Promise<string[]> {
  const listed = await journals.of(folder);
  if (!listed) return KNOWN.map((name) => join(folder, `${name}.json`));
  const names: string[] = [];
  for (const name of KNOWN) {
    const missed = Object.hasOwn(listed, name) || (await statOf(join(folder, `${name}.json`)));
    if (missed) names.push(name);
  }
  const others = Object.keys(listed).filter((name) => !KNOWN.includes(name) && isFileName(name));
  return [...names, ...others].map((name) => join(folder, `${name}.json`));
}

/** Not a way out of the folder. */
const isFileName = (name: string): boolean => name !== "" && !/[/\\\0]/.test(name);

/** A folder that is named means its runs; one without a runs.json, all that is there. */
async function filesOfFolder(folder: string, journals: Journals): Promise<string[]> {
  if (await journals.of(folder)) return filesIn(folder, journals);
  const found = (await readdir(folder)).filter(
    (name) => /^[^.].*\.json$/.test(name) && !name.endsWith(".partial.json") && name !== JOURNAL,
  );
  const known = KNOWN.map((name) => `${name}.json`).filter((name) => found.includes(name));
  const others = found.filter((name) => !known.includes(name)).sort();
  return [...known, ...others].map((name) => join(folder, name));
}

/** The files that the arguments name, folders opened. */
async function sourcesOf(
  named: readonly string[],
  data: string,
  journals: Journals,
): Promise<Sources> {
  if (named.length === 0) return { files: await filesIn(data, journals), complaints: [] };
  const files: string[] = [];
  const complaints: string[] = [];
  for (const name of named) {
    const folder = (await statOf(name))?.isDirectory() ?? false;
    const found = folder ? await filesOfFolder(name, journals) : [name];
    if (found.length === 0)
      complaints.push(oneLine(`Cannot draw ${name}: there are no runs in it`));
    files.push(...found);
  }
  return { files, complaints };
}

/** The same text for the same file, whatever it is called and wherever links lead. */
async function identityOf(file: string): Promise<string> {
  const found = await statOf(file);
  return found && found.ino !== 0n ? `${found.dev}:${found.ino}` : resolve(file);
}

/** Throws a UsageError when a file is there twice, or would be overwritten by a picture. */
async function checkIdentities(files: readonly string[], pictures: readonly string[]) {
  const known = new Map<string, string>();
  for (const file of files) {
    const identity = await identityOf(file);
    if (known.has(identity)) throw badFile(file, `expected each file once`);
    known.set(identity, file);
  }
  for (const folder of new Set(files.map((file) => dirname(file)))) {
    known.set(await identityOf(join(folder, JOURNAL)), JOURNAL);
  }
  for (const picture of pictures) {
    if (!known.has(await identityOf(picture))) continue;
    throw new UsageError(
      `Bad --out ${inQuotes(picture)}: expected another file than those to read`,
    );
  }
}

const inQuotes = (text: string): string => `"${oneLine(text)}"`;
const badFile = (file: string, expected: string): UsageError =>
  new UsageError(`Bad file ${inQuotes(file)}: ${expected}`);

/** Reads `files` one after the other. One that cannot be read becomes a complaint, in one line. */
async function readSetups(
  files: readonly string[],
  journals: Journals,
): Promise<{ setups: Setup[]; complaints: string[] }> {
  const setups: Setup[] = [];
  const complaints: string[] = [];
  const titles = titlesOf(files);
  for (const [place, file] of files.entries()) {
    try {
      const listed = (await journals.of(dirname(file))) ?? {};
      setups.push(await readSetup(file, at(titles, place), listed));
    } catch (error) {
      if (!(error instanceof RunError)) throw error;
      complaints.push(oneLine(`Cannot draw ${file}: ${error.message}`));
    }
  }
  return { setups, complaints };
}

async function readSetup(file: string, title: string, listed: Fields): Promise<Setup> {
  const bytes = await readFile(file).catch((error: unknown) => {
    throw new RunError(reasonOf(error));
  });
  const times = parseTimes(decode(bytes));
  const name = nameOf(file);
  const entry = Object.hasOwn(listed, name) ? listed[name] : undefined;
  const sha256 = createHash("sha256").update(bytes).digest("hex");
  return setupOf(name, title, times, originOf(entry, sha256, times));
}

/** Where a chain of symbolic links ends, also when there is nothing yet. */
async function targetOf(file: string): Promise<string> {
  let target = resolve(file);
  for (let links = 0; links < 40; links++) {
    const found = await lstat(target).catch(() => undefined);
    if (!found?.isSymbolicLink()) return target;
    target = resolve(dirname(target), await readlink(target));
  }
  return target;
}

/** Replaces `file` whole or not at all; its mode and, where allowed, its owner stay. */
async function replaceFile(file: string, content: string): Promise<void> {
  const target = await targetOf(file);
  const before = await statOf(target);
  const draft = join(dirname(target), `.picture-${randomUUID().slice(0, 8)}.draft`);
  try {
    const handle = await open(draft, "wx");
    try {
      if (before) await handle.chown(Number(before.uid), Number(before.gid)).catch(() => undefined);
      if (before) await handle.chmod(Number(before.mode) & 0o7777);
      await handle.writeFile(content);
    } finally {
      await handle.close();
    }
    await rename(draft, target);
  } catch (error) {
    await rm(draft, { force: true });
    throw error;
  }
}

/** Writes a picture and says where; a pipe or a device cannot be replaced, and is written to. */
async function writePicture(file: string, svg: string): Promise<void> {
  if (file === "-") return void process.stdout.write(svg);
  try {
    const there = await statOf(file);
    const special = there && !there.isFile() && !there.isDirectory();
    if (special) await writeInto(file, svg);
    else await replaceFile(file, svg);
  } catch (error) {
    throw new RunError(oneLine(`Cannot write ${file}: ${reasonOf(error)}`));
  }
  console.log(oneLine(file));
}

async function writeInto(file: string, content: string): Promise<void> {
  const handle = await open(file, "w");
  await handle.writeFile(content).finally(() => handle.close());
}

// ─── Command line ────────────────────────────────────────────────────────────

const USAGE = "How to Use: tsx generate_graphs.ts [file ...]";

const OPTIONS = {
  data: {
    kind: anyText,
    value: "DIR",
    help: `the folder of ${KNOWN.map((name) => `${name}.json`).join(", ")} and what else its ${JOURNAL} lists, when no file is named (default data)`,
  },
  out: {
    kind: anyText,
    value: "FILE",
    help: `where the picture goes, - for standard output (default ${PICTURE}, beside the first file)`,
  },
  within: {
    kind: someSeconds,
    value: "SECONDS",
    help: "a column with the share of the planned requests answered in this time",
  },
  curve: {
    kind: anyText,
    value: "DIR",
    help: `load against first requests, from the folders rate-R in DIR, into DIR/${CURVE}`,
  },
  overTime: { help: `first requests at their scheduled arrivals, into ${OVER_TIME}` },
} satisfies Options;

type Arguments = Values<typeof OPTIONS>;

/** Throws a UsageError for what does not go together, before anything is read. */
function checkArguments(named: readonly string[], values: Arguments): void {
  const { data, out, curve: sweep, overTime, within: limit } = values;
  if (named.length > 0 && data !== undefined)
    throw new UsageError(`Bad --data ${inQuotes(data)}: expected either --data or files, not both`);
  if (named.includes("")) throw badFile("", "expected the name of a file");
  const others = named.length > 0 || data !== undefined || overTime || limit !== undefined;
  if (sweep !== undefined && others)
    throw new UsageError(
      `Bad --curve ${inQuotes(sweep)}: expected no files, --data, --within or --over-time with it`,
    );
  if (out !== undefined && out !== "-" && !/.\.svg$/i.test(basename(out)))
    throw new UsageError(
      `Bad --out ${inQuotes(out)}: expected a name that ends in .svg, or - for standard output`,
    );
}

/** Words go to standard output, unless the picture does. */
const sayFor =
  (picture: string): ((words: string) => void) =>
  (words) =>
    picture === "-" ? console.error(words) : console.log(words);

/** Exported for tests, which call it with whole paths. */
export async function main(named: string[], values: Arguments): Promise<number> {
  checkArguments(named, values);
  const journals = new Journals();
  if (values.curve !== undefined) return showCurve(values.curve, values.out, journals);
  const sources = await sourcesOf(named, values.data ?? "data", journals);
  const name = values.overTime ? OVER_TIME : PICTURE;
  const picture = values.out ?? join(dirname(sources.files[0] ?? ""), name);
  await checkIdentities(sources.files, picture === "-" ? [] : [picture]);
  const { setups, complaints } = await readSetups(sources.files, journals);
  const said = [...sources.complaints, ...journals.complaints, ...complaints];
  for (const complaint of said) console.error(complaint);
  if (setups.length === 0) return 1;
  const drawn = values.overTime
    ? await showOverTime(setups, picture)
    : await showTimes(setups, picture, values.within);
  return drawn && said.length === 0 ? 0 : 1;
}

/** Table, verdict and picture of response times. */
async function showTimes(setups: readonly Setup[], picture: string, limit: number | undefined) {
  const say = sayFor(picture);
  const words = verdict(setups, ({ title }) => title);
  const remarks = [...disturbances(setups), ...tooMany(setups.length)];
  say([table(setups, limit), "", words, ...remarks].join("\n"));
  if (setups.slice(0, MOST_DRAWN).every(({ all }) => all.length === 0))
    throw new RunError(oneLine(`Cannot write ${picture}: there are no answers to draw`));
  await writePicture(picture, drawPicture(setups));
  return true;
}

if (isMain(import.meta)) void runScript({ usage: USAGE, options: OPTIONS, main });
