#!/usr/bin/env -S node --import tsx
/**
 * generate_graphs.ts - draw what the stress tester measured, and say what it proves.
 *
 * Prints a table that compares set-ups and a verdict, and writes one SVG: the histogram, the share
 * still waiting after t, and first requests against later ones. Two more pictures show a sweep of
 * rates, and runs from beginning to end. The same input gives the same bytes.
 *
 *   tsx generate_graphs.ts                          the runs in data/
 *   tsx generate_graphs.ts before/RoundRobin.json after/RoundRobin.json --out change.svg
 *   tsx generate_graphs.ts --curve data/sweep       the runs in data/sweep/rate-150, rate-200, ...
 *   tsx generate_graphs.ts data/failure --over-time
 *
 * A file is a JSON array with an array for each client, with the seconds each of its requests
 * took. Failed requests are not in it: the runs.json beside it tells how it was made.
 */
import { createHash, randomUUID } from "node:crypto";
import type { BigIntStats } from "node:fs";
import { chmod, chown, readdir, readFile, readlink, realpath } from "node:fs/promises";
import { rename, rm, stat, writeFile } from "node:fs/promises";
import { basename, dirname, join, resolve, sep } from "node:path";
import { anyText, carries, isMain, type Options, quantile, reasonOf, RunError } from "./lib.ts";
import { runScript, someSeconds, UsageError, type Values } from "./lib.ts";
import { capacityOf, cellsOf, drawPlan, seedsFrom } from "./stress_test.ts";

/** The files to read when none are named; the first is one server without a balancer. */
const KNOWN = ["Baseline", "RoundRobin", "LeastConnections"];
const JOURNAL = "runs.json";
const CURVE = "load_curve.svg";
const OVER_TIME = "over_time.svg";

const MAX_SECONDS = 1e6; // 12 days; what is longer was not written in seconds
const SHORTEST = 1e-9; // what is closer together has no spread, what is shorter no axis of its own
const BINS = 20;
const LONG_TAIL = 6; // medians: where the histogram ends when a longer tail would squeeze the rest
const FEWEST_RUNS = 5; // with fewer seeds an interval is too wide to be worth a sentence,
const ENOUGH_RUNS = 6; // with more it seldom is

/** Units of the view box. 18 units stay legible when the picture is shown 480 pixels wide. */
const WIDTH = 960;
const MARGIN = 20;
const FONT = 18;
const LINE = 23;
const CAPITAL = 14; // the height of one
const DESCENT = 5; // what hangs below the base line
const AIR = 30; // between what belongs to one panel and the next panel's heading
/** Plots lie between LEFT and RIGHT; the column beside them holds labels with swatches. */
const LEFT = 104;
const RIGHT = 712;
const COLUMN = 724;
const SWATCH = 34;
const TITLE = 420;
const PLOT = 184;
const MOST_DRAWN = 8;

type Colour = Readonly<{ name: string; light: string; dark: string }>;
const PAPER: Colour = { name: "paper", light: "#ffffff", dark: "#0d1117" };
const INK: Colour = { name: "ink", light: "#1f2328", dark: "#e6edf3" };
const MUTED: Colour = { name: "muted", light: "#59636e", dark: "#9198a1" };
const GRID: Colour = { name: "grid", light: "#d0d7de", dark: "#30363d" };

/** A line, its text (4.5:1 against the paper), and a dash for who does not see colours. */
type Look = Readonly<{ line: Colour; text: Colour; dash: string }>;
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

/** Times of all clients in turn; client c has those from starts[c] on, and the last starts end. */
export type Times = Readonly<{ values: Float64Array; starts: Uint32Array }>;

function at<T>(list: ArrayLike<T>, place: number): T {
  const element = list[place];
  if (element === undefined) throw new Error(`Nothing at ${place} of ${list.length}`);
  return element;
}

const total = (values: readonly number[]): number => values.reduce((sum, value) => sum + value, 0);

/** A value of a JSON file, short enough for a complaint. */
function quoted(value: unknown): string {
  if (Array.isArray(value)) return "an array";
  if (typeof value === "object" && value !== null) return "an object";
  if (typeof value !== "string") return String(value);
  return JSON.stringify(value.length > 40 ? `${value.slice(0, 40)}…` : value);
}

/** `value`, which is not trusted to be one. Throws a RunError that says where it is. */
function arrayOf(what: string, value: unknown, place = ""): unknown[] {
  if (Array.isArray(value)) return value;
  throw new RunError(`${place}expected an array of ${what}, not ${quoted(value)}`);
}

/** Reads a file's text. Throws a RunError that says where it is malformed, counting from 1. */
export function parseTimes(text: string): Times {
  if (text.trim() === "") throw new RunError("the file is empty: expected an array of clients");
  const clients = arrayOf("clients", parseJson(text));
  const starts = new Uint32Array(clients.length + 1);
  const values = new Float64Array(text.length / 2); // as many as commas and brackets leave room for
  let end = 0;
  for (const [client, requests] of clients.entries()) {
    const who = `client ${client + 1}`;
    for (const [place, value] of arrayOf("times", requests, `${who}: `).entries()) {
      if (typeof value !== "number" || !(value >= 0 && value <= MAX_SECONDS))
        throw new RunError(
          `${who}, request ${place + 1}: ${quoted(value)} is not a time in seconds`,
        );
      values[end] = value;
      end += 1;
    }
    starts[client + 1] = end;
  }
  return { values: values.slice(0, end), starts };
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new RunError(`not JSON: ${reasonOf(error)}`);
  }
}

/** What a byte order mark says: PowerShell's `>` writes UTF-16. */
const ENCODINGS: Readonly<Record<string, string>> = { fffe: "utf-16le", feff: "utf-16be" };
const decode = (bytes: Buffer): string =>
  new TextDecoder(ENCODINGS[bytes.toString("hex", 0, 2)]).decode(bytes);

// ─── Origin ──────────────────────────────────────────────────────────────────
// What runs.json says of a file, checked field by field: anybody may have edited it. An entry that
// is not whole, or not about these bytes, says nothing, and the file is one of unknown origin.

type Fields = Readonly<Record<string, unknown>>;

/** What is needed of a run, which has one seed. */
type RunRecord = Readonly<Record<"seed" | "clients" | "planned" | "answered", number>> & {
  readonly firstFailed: readonly number[]; // places of clients within the run
  readonly interrupted: boolean;
  readonly disturbed: readonly string[];
  readonly simulated?: unknown;
};

export type Origin = {
  readonly session: string; // the same for all that one call measured
  readonly algorithm: unknown;
  readonly servers: readonly Fields[]; // none when they were started by hand
  readonly plan: Fields;
  readonly runsAsked: number;
  readonly simulated: boolean;
  readonly runs: readonly RunRecord[];
};

const isFields = (value: unknown): value is Fields =>
  typeof value === "object" && value !== null && !Array.isArray(value);
const isCount = (value: unknown): value is number =>
  typeof value === "number" && Number.isSafeInteger(value) && value >= 0;
const isText = (value: unknown): value is string => typeof value === "string";

function isRun(run: unknown): run is RunRecord {
  if (!isFields(run)) return false;
  const { seed, clients, planned, answered, firstFailed, interrupted, disturbed } = run;
  if (!isCount(seed) || !isCount(clients) || !isCount(planned) || !isCount(answered)) return false;
  const isClient = (place: unknown): boolean => isCount(place) && place < clients;
  if (!Array.isArray(firstFailed) || !firstFailed.every(isClient)) return false;
  if (!Array.isArray(disturbed) || !disturbed.every(isText)) return false;
  return typeof interrupted === "boolean" && planned >= answered;
}

/** What an entry of runs.json says of a file with this hash and times, if it may be believed. */
export function originOf(entry: unknown, sha256: string, times: Times): Origin | undefined {
  if (!isFields(entry) || entry["sha256"] !== sha256) return undefined;
  const { session, setup, plan, runs, runsAsked } = entry;
  if (!isText(session) || !isFields(plan)) return undefined;
  if (!Array.isArray(runs) || !runs.every(isRun) || runs.length === 0) return undefined;
  const hasAll = total(runs.map(({ answered }) => answered)) === times.values.length;
  const isAbout = total(runs.map(({ clients }) => clients)) === times.starts.length - 1;
  if (!hasAll || !isAbout) return undefined;
  const { algorithm, servers } = isFields(setup) ? setup : {};
  return {
    session,
    algorithm,
    servers: Array.isArray(servers) && servers.every(isFields) ? servers : [],
    plan,
    runsAsked: isCount(runsAsked) ? runsAsked : runs.length,
    simulated: [entry, ...runs].some(({ simulated }) => simulated === true),
    runs,
  };
}

// ─── Set-ups ─────────────────────────────────────────────────────────────────
// A set-up is what one file holds: the clients of all its runs, run after run, and their origin.

export type Setup = {
  readonly name: string; // the file's, without .json
  readonly title: string; // the name in words, different from all others
  readonly origin: Origin | undefined;
  readonly firsts: Float64Array; // of each client in the file's order; NaN where not answered
  readonly all: Float64Array; // sorted, in seconds, as are `first` and `later`
  readonly first: Float64Array;
  readonly later: Float64Array;
  readonly means: readonly number[]; // of the first requests of each run, or of all together
  readonly planned: number | undefined; // when nothing tells
};
const titleOf = ({ title }: { readonly title: string }): string => title;
const runsOf = ({ origin }: Setup): readonly RunRecord[] => origin?.runs ?? [];
const failedOf = ({ planned, all }: Setup): number => (planned ?? all.length) - all.length;
const hasFirsts = ({ first }: Setup): boolean => first.length > 0;
const isBaseline = ({ name, origin }: Setup): boolean =>
  name === KNOWN[0] || origin?.algorithm === "baseline";

const sortedNumbers = (values: Float64Array) => values.filter((one) => !Number.isNaN(one)).sort();

export function setupOf(name: string, title: string, times: Times, origin?: Origin): Setup {
  const { values, starts } = times;
  const firsts = new Float64Array(starts.length - 1);
  const later = values.slice();
  const runs = byRun(firsts, origin);
  for (const [run, own] of runs.entries())
    for (const place of origin?.runs[run]?.firstFailed ?? []) own[place] = NaN;
  for (const [client, start] of starts.subarray(0, -1).entries()) {
    if (start === starts[client + 1]) firsts[client] = NaN;
    // a later answer never stands in for a first request that failed
    if (Number.isNaN(firsts[client])) continue;
    firsts[client] = at(values, start);
    later[start] = NaN;
  }
  return {
    name,
    title,
    origin,
    firsts,
    all: values.toSorted(),
    first: sortedNumbers(firsts),
    later: sortedNumbers(later),
    means: runs.map(mean),
    planned: origin && total(origin.runs.map(({ planned }) => planned)),
  };
}

function byRun(firsts: Float64Array, origin: Origin | undefined): Float64Array[] {
  let end = 0;
  return (origin?.runs ?? [{ clients: firsts.length }]).map(({ clients }) => {
    end += clients;
    return firsts.subarray(end - clients, end);
  });
}

// ─── Names and numbers ───────────────────────────────────────────────────────
// A name comes from a file's, which may be anything. No two set-ups have the same, however short.
// A character is as wide as in DejaVu Sans, the widest usual font: text cannot be measured here.

/** Control characters as escapes, blanks as one: for a line on a terminal, and for XML. */
export function oneLine(text: string): string {
  const code = (character: string): string => character.charCodeAt(0).toString(16).padStart(4, "0");
  return text.replace(/\s+/g, " ").replace(/\p{Cc}/gu, (character) => `\\u${code(character)}`);
}
const nameOf = (file: string): string => basename(file, ".json");

/** What a file may be called, ever longer: in words, as it is, then with more and more folders. */
function formsOf(file: string): string[] {
  const name = oneLine(nameOf(file));
  const spaced = name.replace(/([a-z\d])([A-Z])/g, "$1 $2").replace(/[-_]+/g, " ");
  const words = spaced.trim() || name;
  const folders = dirname(resolve(file)).split(sep).map(oneLine);
  const longer = folders.map((_, place) => [...folders.slice(-place - 1), words].join("/"));
  return [words, name, oneLine(basename(file)), ...longer];
}

/** A name for each file; those that are the same grow until they differ. */
export function titlesOf(files: readonly string[]): string[] {
  const forms = files.map(formsOf);
  let titles = forms.map((list) => at(list, 0));
  const isTwice = (title: string): boolean => titles.indexOf(title) !== titles.lastIndexOf(title);
  for (let level = 1; titles.some(isTwice) && forms.some((list) => level < list.length); level++) {
    const longer = forms.map((list) => at(list, Math.min(level, list.length - 1)));
    titles = titles.map((title, place) => (isTwice(title) ? at(longer, place) : title));
  }
  return titles.map((title, place) => (isTwice(title) ? `${place + 1}: ${title}` : title));
}

/** Each title within `room` units; those that differ still do, so the cut moves if it must. */
export function labelsOf(titles: readonly string[], room: number): string[] {
  for (const head of [0.5, 0, 1, 0.25, 0.75]) {
    const labels = titles.map((title) => shorten(title, room, head));
    if (new Set(labels).size === labels.length) return labels;
  }
  return titles.map((title, place) => shorten(`${place + 1}: ${title}`, room, 1));
}

/** The three known set-ups keep their looks, the others take what is free, in order. */
export function looksOf(names: readonly string[]): Look[] {
  const firstLook = (name: string) => LOOKS[KNOWN.indexOf(name)];
  const own = names.map((name, place) => names.indexOf(name) === place && firstLook(name));
  const others = [...LOOKS.slice(KNOWN.length), ...LOOKS.slice(0, KNOWN.length)];
  const free = others.filter((look) => !own.includes(look)).values();
  return own.flatMap((look) => look || (free.next().value ?? []));
}

type Titled = Readonly<Record<"name" | "title", string>>;
type Dress = Readonly<{ look: Look; label: string }>;

/** Titles that never fill half a line, but hold an algorithm with its options. */
function withShortTitles<T extends Titled>(things: readonly T[]): T[] {
  const titles = labelsOf(things.map(titleOf), TITLE);
  return things.map((thing, place) => ({ ...thing, title: at(titles, place) }));
}

function dress<T extends Titled>(things: readonly T[]): (T & Dress)[] {
  const looks = looksOf(things.map(({ name }) => name));
  const labels = labelsOf(things.map(titleOf), WIDTH - MARGIN - COLUMN - SWATCH);
  const short = withShortTitles(things);
  return short.map((one, slot) => ({ ...one, look: at(looks, slot), label: at(labels, slot) }));
}

const significant = (value: number): string =>
  value === 0 || Math.abs(value) >= 99.95 ? String(Math.round(value)) : value.toPrecision(3);

/** The same without trailing zeros, for sentences: 1.5 and not 1.50. */
export function seconds(value: number): string {
  const short = Number(significant(value));
  return short !== 0 && Math.abs(short) < 1e-4 ? short.toExponential() : String(short);
}

const counted = (n: number): string => String(n).replace(/\B(?=(\d{3})+$)/g, ","); // 1,225
const shareLabel = (share: number): string => `${Number((share * 100).toPrecision(3))} %`;

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
  { of: /./su, em: 1.45 },
];

export function widthOf(text: string): number {
  const em = (one: string): number => WIDTHS.find(({ of }) => of.test(one))?.em ?? 0;
  return FONT * total([...text].map(em));
}

/** `text` within `room` units; what is too much goes after the share `head` of what is kept. */
export function shorten(text: string, room: number, head = 0.5): string {
  let width = widthOf(text);
  if (width <= room) return text;
  const characters = [...text];
  width += widthOf("…");
  while (characters.length > 0 && width > room) {
    const middle = Math.ceil((characters.length - 1) * head);
    width -= widthOf(characters.splice(middle, 1).join(""));
  }
  characters.splice(Math.ceil(characters.length * head), 0, "…");
  return characters.join("");
}

/** Breaks `text` between words, but before no per cent sign, into lines of `room` units. */
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

function mean(values: ArrayLike<number>): number {
  const numbers = Float64Array.from(values).filter((value) => !Number.isNaN(value));
  return numbers.reduce((sum, value) => sum + value, 0) / numbers.length;
}

/** The probability that Student's t is within the root of `freedom` times the angle's tangent. */
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

export type Interval = Readonly<Record<"mean" | "low" | "high" | "half", number>>;

/** The t-interval of the mean of at least two independent values; NaN limits of fewer. */
export function tInterval(values: readonly number[], level = 0.95): Interval {
  const middle = mean(values);
  const freedom = values.length - 1;
  const variance = total(values.map((value) => (value - middle) ** 2)) / freedom;
  const half = tQuantile(level, freedom) * Math.sqrt(variance / values.length);
  return { mean: middle, low: middle - half, high: middle + half, half };
}

/** A quantile of sorted `values` and of `failed` more, which lasted for ever. */
export function quantileWith(values: Float64Array, failed: number, p: number): number {
  const all = new Float64Array(values.length + failed).fill(NaN);
  all.set(values);
  const found = quantile(all, p);
  return failed > 0 && Number.isNaN(found) ? Infinity : found;
}

/** A quantile of the first requests of clients; NaN where there are too few of them. */
function firstQuantile(firsts: Float64Array, p: number): number {
  if (!carries(firsts.length, p)) return NaN;
  const answered = sortedNumbers(firsts);
  return quantileWith(answered, firsts.length - answered.length, p);
}

/** On an edge is in the bin above, and a billionth off is on it, since 0.3 / 0.1 is not 3. */
export function histogram(values: Float64Array, top: number, bins: number) {
  const counts = new Array<number>(bins + 1).fill(0);
  for (const value of values) {
    const exact = (value / top) * bins;
    const edge = Math.round(exact);
    const place = Math.abs(exact - edge) < SHORTEST * bins ? edge : exact;
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
// runs, seed by seed, and is only given where nothing but the set-ups differs.

/** Fields of runs.json that must be the same; a server's weight need not, it is the balancer's. */
const PLAN = "rate clients maxRequests reconnect timeout addresses fail hang".split(" ");
const KIND = "mean sd slots slow".split(" ");
const UNITS: Fields = { rate: " a second", timeout: " s", mean: " s", sd: " s" };

function shown(value: unknown): string {
  if (typeof value === "number") return counted(value);
  if (isFields(value)) return Object.values(value).map(shown).join("-");
  return value === null || value === undefined ? "none" : oneLine(String(value));
}

/** "rate 310 and 150 a second": the first of `keys` in which two records differ. */
function differenceIn(keys: readonly string[], a: Fields, b: Fields): string | undefined {
  const key = keys.find((one) => shown(a[one]) !== shown(b[one]));
  return key && `${key} ${shown(a[key])} and ${shown(b[key])}${UNITS[key] ?? ""}`;
}

/** The Baseline has one server, which is one of the others' kinds. */
function serverDifference(a: Known, b: Known): string | undefined {
  const [one, other] = isBaseline(a) ? [a, b] : [b, a];
  const alone = isBaseline(one) ? one.origin.servers[0] : undefined;
  if (alone && other.origin.servers.some((server) => !differenceIn(KIND, alone, server)))
    return undefined;
  const [own, others] = [a.origin.servers, b.origin.servers];
  if (!alone && own.length !== others.length) return `${own.length} and ${others.length} servers`;
  return own.map((server, place) => differenceIn(KIND, server, others[place] ?? {})).find(Boolean);
}

/** "404 of Round Robin's 1,225" */
function failures(setup: Setup): string {
  const whose = setup.title.endsWith("s") ? `${setup.title}'` : `${setup.title}'s`;
  return `${counted(failedOf(setup))} of ${whose} ${counted(setup.planned ?? 0)}`;
}

type Known = Setup & { readonly origin: Origin };
const isKnown = (setup: Setup): setup is Known => setup.origin !== undefined;
const seedsOf = ({ origin }: Known): string => origin.runs.map(({ seed }) => seed).join();

/** Why two cannot be compared. What is told first would stand if all that follows were mended. */
function objectionTo(a: Setup, b: Setup): string | undefined {
  const untold = [a, b].filter((one) => !isKnown(one)).map(titleOf);
  const were = untold.length > 1 ? "were" : "was";
  if (!isKnown(a) || !isKnown(b))
    return `${JOURNAL} does not tell how ${untold.join(" and ")} ${were} measured`;
  const pair = [a, b];
  const simulated = pair.find(({ origin }) => origin.simulated);
  const real = pair.find(({ origin }) => !origin.simulated);
  if (simulated && real) return `${simulated.title} is simulated, ${real.title} is not`;
  const plans = differenceIn(PLAN, a.origin.plan, b.origin.plan);
  if (plans) return `the plans differ (${plans})`;
  const servers = serverDifference(a, b);
  if (servers) return `the servers differ (${servers})`;
  const broken = pair.find(({ origin }) => origin.runs.some(({ interrupted }) => interrupted));
  if (broken) return `a run of ${broken.title} was interrupted`;
  const failed = pair.filter((one) => failedOf(one) > 0).map(failures);
  if (failed.length > 0) return `${failed.join(" and ")} requests failed`;
  const short = pair.find(({ origin }) => origin.runs.length < origin.runsAsked);
  if (short) {
    const { runs, runsAsked } = short.origin;
    return `only ${runs.length} of the ${runsAsked} runs asked for of ${short.title} are there`;
  }
  const least = Math.min(a.origin.runs.length, b.origin.runs.length);
  const few = least === 1 ? "one run is one observation" : `${least} runs are too few`;
  if (least < FEWEST_RUNS) return `${few}; --runs ${ENOUGH_RUNS} gives one`;
  if (a.origin.session !== b.origin.session) return "they were measured at different times";
  return seedsOf(a) === seedsOf(b) ? undefined : "the seeds differ";
}

/** The fastest first. Baseline is another kind of set-up, and takes part only as one of two. */
function ranking(setups: readonly Setup[]): Setup[] {
  const answered = setups.filter(hasFirsts);
  const balanced = answered.filter((setup) => !isBaseline(setup));
  return (balanced.length < 2 ? answered : balanced).toSorted(
    (a, b) => mean(a.first) - mean(b.first),
  );
}

const differences = (fast: Setup, slow: Setup): number[] =>
  slow.means.map((value, seed) => value - at(fast.means, seed));

/** Numbers times `factor`: as many decimals as give `half` two digits, and `low` at least one. */
function digitsFor(interval: Interval, factor = 1): (value: number) => string {
  const half = interval.half * factor;
  const low = interval.low * factor;
  const digit = half > SHORTEST ? half : Math.abs(interval.mean * factor) / 10;
  let decimals = digit > SHORTEST ? Math.max(0, 1 - Math.floor(Math.log10(digit))) : 4;
  while (decimals < 9 && low > 0 && Number(low.toFixed(decimals)) === 0) decimals += 1;
  // without the sign of a zero
  return (value) => (value * factor).toFixed(Math.min(9, decimals)).replace(/^-(?=[0.]+$)/, "");
}

function finding(fast: Setup, slow: Setup): string {
  const each = differences(fast, slow);
  const interval = tInterval(each);
  const time = digitsFor(interval);
  const by = `${time(interval.mean)} s`;
  const span = `${time(interval.low)} to ${time(interval.high)} s`;
  const range = `95 % interval over ${each.length} paired runs ${span}`;
  if (!(interval.low > 0) || interval.half < SHORTEST)
    return `No clear difference between ${fast.title} and ${slow.title}: ${by}, ${range}.`;
  const sooner = each.filter((value) => value > 0).length;
  const share = interval.mean / mean(slow.means);
  const much = percent(share, share < 0.01 ? 1 : 0);
  const claim = `${fast.title} answers first requests ${by} (${much}) sooner than ${slow.title}`;
  return `${claim}: ${range}, sooner in ${sooner} of ${each.length}.`;
}

const isDisturbed = ({ disturbed }: RunRecord): boolean => disturbed.length > 0;
/** How many of the runs were disturbed, to follow a sentence; empty when none was. */
function disturbance(setups: readonly Setup[]): string {
  const runs = setups.flatMap(runsOf);
  const disturbed = runs.filter(isDisturbed).length;
  if (disturbed === 0) return "";
  const all = runs.length === 1 ? "1 run" : `${counted(runs.length)} runs`;
  return ` ${disturbed} of ${all} ${disturbed === 1 ? "was" : "were"} disturbed.`;
}

export const disturbances = (setups: readonly Setup[]): string[] =>
  setups.flatMap((setup) => {
    const disturbed = runsOf(setup).filter(isDisturbed);
    const place = `Disturbed: ${setup.title}, seed`;
    return disturbed.map((run) => oneLine(`${place} ${run.seed}: ${run.disturbed.join("; ")}`));
  });

export function verdict(setups: readonly Setup[]): string {
  const [fast, slow] = ranking(setups);
  if (!fast) return "No verdict: there are no first requests to compare.";
  if (!slow)
    return `No verdict: there is nothing to compare ${fast.title} with.${disturbance([fast])}`;
  const reason = objectionTo(fast, slow);
  const sentence = reason === undefined ? finding(fast, slow) : `No verdict: ${reason}.`;
  const isVirtual = fast.origin?.simulated && slow.origin?.simulated;
  return `${sentence}${isVirtual ? " Both are simulated." : ""}${disturbance([fast, slow])}`;
}

/** How much later each comparable set-up is than the fastest, which the data choose: all at once. */
export function laterThanFastest(setups: readonly Setup[]): Map<Setup, Interval> {
  const [fastest, ...others] = setups.length > 2 ? ranking(setups) : [];
  if (!fastest) return new Map();
  const fair = others.filter((other) => objectionTo(fastest, other) === undefined);
  const level = 1 - 0.1 / (fair.length * (fair.length + 1)); // Bonferroni: of all pairs
  return new Map(fair.map((other) => [other, tInterval(differences(fastest, other), level)]));
}

// ─── Tables ──────────────────────────────────────────────────────────────────
// The same figures for the terminal. A number that the sample does not carry is not printed.

type Column<T> = Readonly<{ head: string; cell: (row: T) => string }>;
/** Rows under heads, the first column to the left, the others to the right. */
function aligned<T>(rows: readonly T[], columns: readonly Column<T>[]): string[] {
  const padded = columns.map(({ head, cell }, place) => {
    const cells = [head, ...rows.map(cell)];
    const width = Math.max(...cells.map(cellsOf));
    const blanks = cells.map((one) => " ".repeat(width - cellsOf(one)));
    return cells.map((one, row) => (place === 0 ? one + at(blanks, row) : at(blanks, row) + one));
  });
  return ["", ...rows].map((_, row) =>
    padded
      .map((cells) => at(cells, row))
      .join("  ")
      .trimEnd(),
  );
}

/** How a table's times are written: in milliseconds where all are below 0.1 s. */
type Unit = Readonly<{ name: string; factor: number }>;
const unitOf = (longest: number): Unit =>
  longest < 0.1 ? { name: "ms", factor: 1000 } : { name: "s", factor: 1 };

function timeCell(value: number, { factor }: Unit): string {
  if (value === Infinity) return "failed";
  return Number.isNaN(value) ? "-" : significant(value * factor);
}

/** A mean and how far it may be off, to the same digit. */
function meanCell({ mean: middle, half }: Interval, unit: Unit): string {
  const cell = timeCell(middle, unit);
  const decimals = /\.(\d+)$/.exec(cell)?.[1]?.length ?? 0;
  return Number.isFinite(half) ? `${cell} ± ${(half * unit.factor).toFixed(decimals)}` : cell;
}

function withinCell({ all, planned }: Setup, limit: number): string {
  const share = all.filter((value) => value <= limit).length / (planned ?? all.length);
  if (Number.isNaN(share)) return "-";
  return `${percent(share, 2)}${planned === undefined ? " of answered" : ""}`;
}

function laterCell(interval: Interval | undefined, { factor }: Unit): string {
  if (!interval) return "-";
  const time = digitsFor(interval, factor);
  return `${time(interval.mean)} (${time(interval.low)} to ${time(interval.high)})`;
}

const runsCell = ({ origin }: Setup): string =>
  origin ? `${origin.runs.length}${origin.simulated ? " simulated" : ""}` : "?";
const answeredCell = ({ all, planned }: Setup): string =>
  `${counted(all.length)} of ${planned === undefined ? "?" : counted(planned)}`;
const meanOf = ({ first, means }: Setup): Interval => ({ ...tInterval(means), mean: mean(first) });

export function table(setups: readonly Setup[], limit?: number): string {
  const unit = unitOf(Math.max(...setups.map(({ all }) => all.at(-1) ?? 0)));
  const later = laterThanFastest(setups);
  const last = "later than the fastest";
  const columns: Column<Setup>[] = [
    { head: `response time (${unit.name})`, cell: titleOf },
    { head: "runs", cell: runsCell },
    { head: "clients", cell: ({ firsts }) => counted(firsts.length) },
    { head: "answered of planned", cell: answeredCell },
    { head: "first mean", cell: (setup) => meanCell(meanOf(setup), unit) },
    ...[0.5, 0.9, 0.95, 0.99].map((p) => ({
      head: `p${p * 100}`,
      cell: ({ all }: Setup) => timeCell(carries(all.length, p) ? quantile(all, p) : NaN, unit),
    })),
    { head: "max", cell: ({ all }) => timeCell(all.at(-1) ?? NaN, unit) },
  ];
  if (later.size > 0) columns.push({ head: last, cell: (one) => laterCell(later.get(one), unit) });
  if (limit !== undefined)
    columns.push({ head: `within ${limit} s`, cell: (setup) => withinCell(setup, limit) });
  const lines = aligned(setups, columns);
  if (setups.some(({ all }) => !carries(all.length, 0.99)))
    lines.push("-: too few answers (p90 needs 29, p95 59, p99 299)");
  if (setups.some(({ origin }) => !origin))
    lines.push(`?: ${JOURNAL} does not tell; failures unknown`);
  if (setups.some(({ means }) => means.length > 1)) lines.push("±: 95 % interval over the runs");
  if (later.size > 0) lines.push(`${last}: intervals that hold together with 95 % (Bonferroni)`);
  return lines.join("\n");
}

// ─── Scales and ticks ────────────────────────────────────────────────────────
// All arithmetic from seconds and shares to the picture's units happens here: a scale is a
// function, an axis a scale with the ticks whose labels fit beside each other.

export type Scale = (value: number) => number;
type Range = readonly [low: number, high: number];
type Axis = Readonly<{ name: string; at: Scale; ticks: readonly number[] }>;

/** d3's rule: 1, 2 or 5 times a power of ten; a fraction, as 3 / 10 is exact and 3 * 0.1 is not. */
function tickStep(span: number, count: number): { times: number; over: number } {
  const power = Math.floor(Math.log10(span / count));
  const error = span / count / 10 ** power;
  const limits = [Math.sqrt(2), Math.sqrt(10), Math.sqrt(50)];
  const factor = at([1, 2, 5, 10], limits.filter((limit) => error >= limit).length);
  if (power >= 0) return { times: factor * Number(`1e${power}`), over: 1 };
  return { times: 1, over: Number(`1e${-power}`) / factor };
}

/** About `count` round numbers from `low` to `high`. */
export function ticks(low: number, high: number, count: number): number[] {
  if (!(high > low)) return [low];
  const { times, over } = tickStep(high - low, count);
  const from = Math.ceil((low * over) / times - 1e-9);
  const to = Math.floor((high * over) / times + 1e-9);
  return Array.from({ length: to - from + 1 }, (_, place) => ((from + place) * times) / over);
}

/** A round number not below `max`: an end for an axis from 0, with about `count` ticks. */
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

/** The rungs that enclose `low` and `high`; what has none below it, as 0, is drawn at the edge. */
export function logRungs(low: number, high: number): number[] {
  const highest = Math.min(high || 1, MAX_SECONDS);
  const top = LADDER.findIndex((rung) => rung >= highest);
  const below = LADDER.findLastIndex((rung) => rung <= low);
  const bottom = low > 0 && low <= high ? Math.max(0, below) : top - 3;
  const alone = bottom >= top ? 1 : 0; // one value, on a rung: leave room on both sides
  return LADDER.slice(Math.max(0, bottom - alone), top + alone + 1);
}

function linearScale([low, high]: Range, [from, to]: Range): Scale {
  return (value) => from + ((value - low) / (high - low)) * (to - from);
}

/** Logarithmic; what lies beyond the domain goes to its edge. */
export function logScale([low, high]: Range, range: Range): Scale {
  const scale = linearScale([Math.log(low), Math.log(high)], range);
  return (value) => scale(Math.log(Math.min(high, Math.max(low, value))));
}

/** Half of what a tick's label takes of an axis: across by its width, upright by a line. */
const across = (tick: number): number => widthOf(`${tick} `) / 2;
const upright = (): number => LINE / 2;

/** The first of the candidates whose labels do not run into each other, or else the last. */
function fitting(candidates: readonly (readonly number[])[], scale: Scale, room: Scale) {
  const collide = (a: number, b: number) => Math.abs(scale(a) - scale(b)) < room(a) + room(b);
  const fits = (list: readonly number[]): boolean =>
    !list.slice(1).some((tick, place) => collide(tick, at(list, place)));
  return candidates.find(fits) ?? candidates.at(-1) ?? [];
}

const thinned = (values: readonly number[]): number[][] =>
  [1, 2, 3, 4, 6, 12].map((n) => values.filter((_, place) => place % n === 0));

function linearAxis(name: string, high: number, range: Range): Axis {
  const scale = linearScale([0, high], range);
  const lists = [8, 5, 4, 3, 2, 1].map((count) => ticks(0, high, count));
  return { name, at: scale, ticks: fitting(lists, scale, across) };
}

/** A logarithmic axis that holds `low` to `high`, with a tick at each power of ten at least. */
function logAxis(name: string, [low, high]: Range, range: Range, room: Scale = across): Axis {
  const rungs = logRungs(low, high);
  const scale = logScale([at(rungs, 0), at(rungs, rungs.length - 1)], range);
  const powers = rungs.filter((rung) => Number.isInteger(Math.log10(rung)));
  return { name, at: scale, ticks: fitting([rungs, ...thinned(powers)], scale, room) };
}

/** The shortest of sorted times that is above 0, and the longest, of several lists. */
const spanOf = (lists: readonly Float64Array[]): Range => [
  Math.min(...lists.map((values) => values.find((value) => value > 0) ?? Infinity)),
  Math.max(...lists.map((values) => values.at(-1) ?? 0)),
];

// ─── Markup ──────────────────────────────────────────────────────────────────
// The one place that knows SVG's syntax. Colours are attributes, for the light theme and for tools
// without style sheets; the style sheet repaints them, by class, where the reader prefers dark.

export const round = (place: number): string => String(Math.round(place * 10) / 10); // to 0.1 unit

/** Text made safe for XML, which knows no way at all to write most control characters. */
export const escape = (text: string): string =>
  text
    .replace(/[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\u{10000}-\u{10ffff}]/gu, "\ufffd")
    .replace(/&/g, "&amp;")
    .replace(/</g, "&lt;")
    .replace(/>/g, "&gt;")
    .replace(/"/g, "&quot;")
    .replace(/'/g, "&#39;");

function paint(fill: Colour | undefined, stroke?: Colour): string {
  const classes = [fill && `f-${fill.name}`, stroke && `s-${stroke.name}`];
  const outline = stroke ? ` stroke="${stroke.light}"` : "";
  return `class="${classes.filter(Boolean).join(" ")}" fill="${fill?.light ?? "none"}"${outline}`;
}

function text(x: number, y: number, content: string, colour = INK, anchor = "start"): string {
  const place = `x="${round(x)}" y="${round(y)}" text-anchor="${anchor}"`;
  return `<text ${place} ${paint(colour)}>${escape(content)}</text>`;
}

function stroke(path: string, colour: Colour, width = 1, dash = "none"): string {
  const pen = `stroke-width="${width}" stroke-dasharray="${dash}"`;
  return path && `<path d="${path}" ${pen} ${paint(undefined, colour)}/>`;
}

const line = ([x1, y1]: Range, [x2, y2]: Range, colour: Colour, width = 1, dash = "none"): string =>
  stroke(`M${round(x1)} ${round(y1)}L${round(x2)} ${round(y2)}`, colour, width, dash);

function circle(x: number, y: number, radius: number, fill: Colour, edge: Colour): string {
  const place = `cx="${round(x)}" cy="${round(y)}" r="${radius}"`;
  return `<circle ${place} stroke-width="1.5" ${paint(fill, edge)}/>`;
}

const triangle = (x: number, y: number, fill: Colour): string =>
  `<path d="M${round(x)} ${round(y)}l6 9h-12z" stroke-width="1" ${paint(fill, PAPER)}/>`;

/** A short piece of a set-up's line, and its label beside it; `y` is the base line. */
const entry = (x: number, y: number, { look, label }: Dress): string =>
  line([x, y - FONT / 3], [x + SWATCH - 8, y - FONT / 3], look.line, 3, look.dash) +
  text(x + SWATCH, y, label, look.text);

// ─── Pages ───────────────────────────────────────────────────────────────────
// What all pictures share: a title, prose, plots below each other with air between them, and a
// conclusion. A plot says how much room it needs; where it comes to lie is decided here.

type Panel = Readonly<{ svg: readonly string[]; bottom: number }>;
/** Where a plot lies, and the base line of the labels below it. */
type Frame = Readonly<Record<"top" | "bottom" | "labels", number>>;

function prose(content: string, top: number, colour = INK): Panel {
  const lines = content === "" ? [] : wrap(content, WIDTH - 2 * MARGIN);
  const y = (place: number): number => top + CAPITAL + LINE * place;
  const svg = lines.map((words, place) => text(MARGIN, y(place), words, colour));
  return { svg, bottom: lines.length === 0 ? top : y(lines.length - 1) + DESCENT };
}

type Plot = {
  readonly title: string;
  readonly note: string;
  readonly aside?: string; // at the right of the heading
  readonly beside?: readonly Dress[]; // labels below that, with swatches
  readonly height?: number; // if not PLOT, or what is beside it
  readonly x: Axis;
  readonly gap?: number; // between the plot and the labels of `x`
  readonly lines?: number; // of labels
  readonly draw: (frame: Frame) => readonly string[];
};

function panelOf(plot: Plot, start: number): Panel {
  const { title, note, aside = "", beside = [], x, gap = 12, lines = 1 } = plot;
  const y = start + CAPITAL;
  const top = y + 16;
  const bottom = top + (plot.height ?? Math.max(PLOT, LINE * beside.length));
  const labels = bottom + gap + CAPITAL;
  const besideName = x.ticks.filter((tick) => x.at(tick) + across(tick) < COLUMN + 28);
  const bold = `<tspan font-weight="600" ${paint(INK)}>${escape(title)}</tspan>`;
  const place = `x="${MARGIN}" y="${round(y)}"`;
  const svg = [
    `<text ${place} ${paint(MUTED)}>${bold} ${escape(note)}</text>`,
    aside && text(COLUMN, y, aside, MUTED),
    ...plot.draw({ top, bottom, labels }),
    ...beside.map((one, row) => entry(COLUMN, top + CAPITAL + LINE * row, one)),
    ...besideName.map((tick) => text(x.at(tick), labels, String(tick), MUTED, "middle")),
    text(WIDTH - MARGIN, labels, x.name, MUTED, "end"),
  ];
  return { svg: ["<g>", ...svg, "</g>"], bottom: labels + LINE * (lines - 1) + DESCENT };
}

type Page = {
  readonly title: string;
  readonly head: (top: number) => Panel; // what stands below the title
  readonly plots: readonly Plot[];
  readonly conclusion: string;
  readonly things: readonly Titled[]; // what is drawn
  readonly description: string; // for those who do not see the picture
  readonly looks: readonly Look[];
};

/** The whole file. Its ids derive from its content, so two of them can stand in one page. */
function svgOf({ title, head, plots, conclusion, things, description, looks }: Page): string {
  const panels = [head(54)];
  const next = (): number => at(panels, panels.length - 1).bottom + AIR;
  for (const plot of plots) panels.push(panelOf(plot, next()));
  panels.push(prose(conclusion, next()));
  const height = Math.ceil(next()) - AIR + MARGIN;
  const content = panels.flatMap(({ svg }) => svg.filter(Boolean)).join("\n");
  const name = `${title}: ${things.map(titleOf).join(", ")}`;
  const hash = createHash("sha256").update(name + description + content);
  const id = `g${hash.digest("hex").slice(0, 8)}`;
  const own = looks.flatMap((look) => [look.line, look.text]);
  const dark = [PAPER, INK, MUTED, GRID, ...own].map(
    (one) => `.${id} .f-${one.name}{fill:${one.dark}}.${id} .s-${one.name}{stroke:${one.dark}}`,
  );
  const size = `width="${WIDTH}" height="${height}" viewBox="0 0 ${WIDTH} ${height}"`;
  const role = `class="${id}" role="img" aria-labelledby="${id}-title ${id}-desc"`;
  const style = 'style="max-width:100%;height:auto"';
  const family = `font-family="system-ui, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"`;
  const root = `xmlns="http://www.w3.org/2000/svg" ${size} ${style} ${role} ${family}`;
  return `<svg ${root} font-size="${FONT}">
<title id="${id}-title">${escape(name)}</title>
<desc id="${id}-desc">${escape(description)}</desc>
<style>@media (prefers-color-scheme: dark){${dark.join("")}}</style>
<rect width="${WIDTH}" height="${height}" ${paint(PAPER)}/>
<text x="${MARGIN}" y="38" font-size="28" font-weight="600" ${paint(INK)}>${escape(title)}</text>
${content}
</svg>
`;
}

const uprights = ({ at: scale, ticks: values }: Axis, { top, bottom }: Frame): string[] =>
  values.map((value) => line([scale(value), top], [scale(value), bottom], GRID));
/** Rules at values of a vertical axis, the most important first, and labels that have room. */
function levels(values: readonly number[], y: Scale, label: (value: number) => string): string[] {
  const known: number[] = [];
  return values.flatMap((value) => {
    const rule = line([LEFT, y(value)], [RIGHT, y(value)], GRID);
    if (known.some((other) => Math.abs(other - y(value)) < FONT)) return [rule];
    known.push(y(value));
    return [rule, text(LEFT - 8, y(value) + FONT / 3, label(value), MUTED, "end")];
  });
}

// ─── Response times ──────────────────────────────────────────────────────────
// The three panels of the main picture, its header, and its conclusion, the verdict.

const TIME = "Response Time (s)";
type Drawn = Setup & Dress;

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

/** The axes of panel A: the bins, then a gap and a last bin for what lies beyond them, if any. */
function binsOf(lists: readonly Float64Array[]) {
  const pooled = Float64Array.from(lists.flatMap((values) => [...values])).sort();
  const top = histogramTop(pooled);
  const tail = (pooled.at(-1) ?? 0) > top * (1 + SHORTEST) ? `> ${seconds(top)} s` : "";
  const bin = linearScale([0, tail ? BINS + 3 : BINS], [LEFT, RIGHT]);
  const x = linearAxis(TIME, top, [LEFT, bin(BINS)]);
  const limit = tail ? bin(BINS + 1.5) - widthOf(`${tail} `) / 2 : Infinity;
  const shown = x.ticks.filter((tick) => x.at(tick) + across(tick) < limit);
  return { top, x: { ...x, ticks: shown }, bin, tail };
}

/** Panel A: the histogram. Shares are of all of a set-up's answers, so nothing is dropped. */
function histogramPlot(drawn: readonly Drawn[]): Plot {
  const { top, x, bin, tail } = binsOf(drawn.map(({ all }) => all));
  const bars = drawn.map((one) => ({ ...one, ...histogram(one.all, top, BINS) }));
  const highest = niceTop(Math.max(...bars.flatMap((bar) => [...bar.shares, bar.beyond])), 4);
  const medians = medianMarks(drawn, top, x.at, bin(BINS + 1.5));
  const opacity = bars.length > 3 ? 0.06 : 0.18; // many fills on top of each other make mud
  const slowestFirst = bars.toSorted((a, b) => mean(b.all) - mean(a.all));
  return {
    title: "Relative Frequency",
    note: `in ${BINS} equal bins; triangles mark the medians`,
    aside: tail ? `${tail}, max` : "Maximum",
    beside: bars.map(({ all, look, beyond }) => {
      const longest = `${seconds(all.at(-1) ?? 0)} s`;
      return { look, label: tail ? `${percent(beyond)}, ${longest}` : longest };
    }),
    gap: 19 + 11 * Math.max(...medians.map(({ row }) => row)),
    x,
    draw: ({ top, bottom, labels }) => {
      const y = linearScale([0, highest], [bottom, top]);
      const base = (from: number, to: number): string =>
        line([bin(from), bottom], [bin(to), bottom], MUTED, 1.5);
      return [
        ...levels(ticks(0, highest, 4), y, shareLabel),
        ...slowestFirst.map(({ look, shares, beyond }) => {
          const pen = `fill-opacity="${opacity}" stroke-width="2" stroke-dasharray="${look.dash}"`;
          const path = outline([...shares, 0, beyond], bin, y);
          return `<path d="${path}" ${pen} ${paint(look.line, look.line)}/>`;
        }),
        ...medians.map(({ x, row, look }) => triangle(x, bottom + 2 + 11 * row, look.line)),
        base(0, BINS),
        tail && base(BINS + 1, BINS + 2) + text(bin(BINS + 1.5), labels, tail, MUTED, "middle"),
      ];
    },
  };
}

/** Where triangles mark medians; those that would lie on each other go into rows. */
function medianMarks(drawn: readonly Drawn[], top: number, x: Scale, beyond: number) {
  const ends: number[] = [];
  const medians = drawn.map(({ all, look }) => ({ median: quantile(all, 0.5), look }));
  medians.sort((a, b) => a.median - b.median);
  return medians.map(({ median, look }) => {
    const place = median > top ? beyond : x(median);
    const free = ends.findIndex((end) => place - end >= 14);
    const row = free < 0 ? ends.length : free;
    ends[row] = place;
    return { x: place, row, look };
  });
}

/** Those of `count` not among sorted `values` wait for ever; steps within a unit are one. */
export function waitingPath(values: Float64Array, count: number, x: Scale, y: Scale): string {
  const steps = [`M${LEFT} ${round(y(1))}`];
  for (const [place, value] of values.entries()) {
    const next = values[place + 1];
    if (next !== undefined && Math.floor(x(next)) === Math.floor(x(value))) continue;
    steps.push(`H${round(x(value))}V${round(y((count - place - 1) / count))}`);
  }
  return steps.join("") + (count > values.length ? `H${RIGHT}` : "");
}

/** Panel B: no bins, the whole tail; one late client in 12,000 is as clear as the median. */
function waitingPlot(drawn: readonly Drawn[], x: Axis): Plot {
  const countOf = ({ planned, all }: Setup): number => planned ?? all.length;
  const least = Math.min(0.005, 0.5 / Math.max(...drawn.map(countOf)));
  const floor = LADDER.findLast((rung) => rung <= least) ?? SHORTEST;
  const shares = [0.5, 0.05, 0.01, 1, 1e-3, 1e-4, 1e-5, 1e-6].filter((share) => share >= floor);
  const late = (one: Setup) => Math.min(MAX_SECONDS, quantileWith(one.all, failedOf(one), 0.95));
  return {
    title: "Share still waiting after t",
    note: "both axes logarithmic",
    aside: "Slowest first",
    beside: drawn.toSorted((a, b) => late(b) - late(a)),
    x,
    draw: (frame) => {
      const y = logScale([floor, 1], [frame.bottom, frame.top]);
      const curve = (one: Drawn): string =>
        stroke(waitingPath(one.all, countOf(one), x.at, y), one.look.line, 2, one.look.dash);
      return [...uprights(x, frame), ...levels(shares, y, shareLabel), ...drawn.map(curve)];
    },
  };
}

type Lane = Readonly<Record<"y" | "height", number>> & Readonly<Record<"edge" | "fill", Colour>>;
/** Quartiles as a box, p5 to p95 as a line, the median across; few values one by one. */
function rangeMark(values: Float64Array, scale: Scale, { y, height, edge, fill }: Lane): string[] {
  const has = (p: number): boolean => carries(values.length, p);
  const x = (p: number): number => scale(quantile(values, p));
  const half = height / 2;
  const [left, right] = [round(x(0.25)), round(x(0.75))];
  const box = `M${left} ${round(y - half)}H${right}v${height}H${left}z`;
  const dots = [...(has(0.95) ? [] : values)].map((one) => circle(scale(one), y, 2.5, fill, edge));
  return [
    has(0.95) ? line([x(0.05), y], [x(0.95), y], edge, 2) : "",
    has(0.75) ? `<path d="${box}" stroke-width="1.5" ${paint(fill, edge)}/>` : "",
    ...dots,
    has(0.5) ? line([x(0.5), y - half - 2], [x(0.5), y + half + 2], INK, 2.5) : "",
  ];
}

/** Panel C shows why set-ups differ: a wait for a free slot falls on the first request only. */
function firstPlot(drawn: readonly Drawn[], x: Axis): Plot {
  const several = drawn.some(({ means }) => means.length > 1);
  const height = several ? 48 : 38;
  return {
    title: "First requests",
    note: "(filled) and later ones: p5 to p95, quartiles, median",
    aside: several ? "○ mean of each run" : "",
    height: height * drawn.length,
    x,
    draw: (frame) => {
      const row = (one: Drawn, place: number): string[] => {
        const y = frame.top + height * (place + 1);
        const edge = one.look.line;
        const means = one.means.filter((value) => one.means.length > 1 && !Number.isNaN(value));
        return [
          ...means.map((value) => circle(x.at(value), y - 41, 3, PAPER, INK)),
          ...rangeMark(one.first, x.at, { y: y - 26, height: 12, edge, fill: edge }),
          ...rangeMark(one.later, x.at, { y: y - 9, height: 10, edge, fill: PAPER }),
          entry(COLUMN, y - 14, one),
        ];
      };
      return [...uprights(x, frame), ...drawn.flatMap(row)];
    },
  };
}

function sizeOf(setup: Setup): string {
  const runs = runsOf(setup);
  const clients = setup.firsts.length;
  if (setup.all.length === 0) return "no answers";
  if (runs.length < 2) return `n = ${counted(clients)}`;
  const isEven = runs.every((run) => run.clients === clients / runs.length);
  if (isEven) return `n = ${runs.length} × ${counted(clients / runs.length)}`;
  return `n = ${counted(clients)} in ${runs.length} runs`;
}

function loadOf({ origin }: Setup): string {
  const { servers = [], plan = {} } = origin ?? {};
  const kinds = servers.map((one) => ({ slots: Number(one["slots"]), mean: Number(one["mean"]) }));
  const share = Number(plan["rate"]) / capacityOf(kinds, Number(plan["maxRequests"]));
  return Number.isFinite(share) && share > 0 ? `${Math.round(share * 100)} %` : "";
}
const loadWords = (setup: Setup): string => loadOf(setup) && `${loadOf(setup)} of capacity`;

function rateWords({ origin }: Setup): string {
  const rate = Number(origin?.plan["rate"] ?? NaN);
  if (rate === 0) return "all clients at once";
  return rate > 0 ? `${counted(rate)} clients a second` : "";
}

/** What is said of most set-ups, then in brackets what is said of others. */
function mostly(setups: readonly Setup[], words: typeof rateWords): string {
  const said = setups.map(words).filter(Boolean);
  const often = (one: string): number => said.filter((other) => other === one).length;
  const [most = ""] = said.toSorted((a, b) => often(b) - often(a));
  const others = setups.filter((setup) => words(setup) !== "" && words(setup) !== most);
  const each = others.map((setup) => `${setup.title} ${words(setup)}`).join(", ");
  return each ? `${most} (${each})` : most;
}

/** How the clients came, and whether to all set-ups alike, as far as runs.json tells. */
function planLine(setups: readonly Setup[]): string {
  const plans = setups.map(({ origin }) => origin?.plan).filter((plan) => plan !== undefined);
  const differs = plans.some((plan) => differenceIn(PLAN, plan, plans[0] ?? {}));
  const same = differs ? "The plans differ." : "Same plan for all.";
  const isKnownOfAll = plans.length === setups.length && setups.length > 1;
  const said = [rateWords, loadWords].map((words) => mostly(setups, words)).filter(Boolean);
  const load = said.length > 0 ? `Offered load: ${said.join("; ")}.` : "";
  return [load, isKnownOfAll ? same : "", simulatedLine(setups)].filter(Boolean).join(" ");
}

function simulatedLine(setups: readonly Setup[]): string {
  const simulated = setups.filter(({ origin }) => origin?.simulated);
  if (simulated.length === 0) return "";
  if (simulated.length === setups.length) return "Simulated.";
  return `Simulated: ${[...new Set(simulated.map(titleOf))].join(", ")}.`;
}

function header(setups: readonly Drawn[], titles: readonly string[], start: number): Panel {
  const load = prose(planLine(setups), start, MUTED);
  const top = load.svg.length > 0 ? load.bottom + 6 : start;
  const more = SWATCH + Math.max(...setups.map((one) => widthOf(`, ${sizeOf(one)} `)));
  const longest = more + Math.max(...titles.map(widthOf));
  const columns = longest > WIDTH / 2 - MARGIN ? 1 : 2;
  const width = (WIDTH - 2 * MARGIN) / columns;
  const names = labelsOf(titles, width - more);
  const legend = setups.map((setup, place) => {
    const label = `${at(names, place)}, ${sizeOf(setup)}`;
    const y = top + CAPITAL + LINE * Math.floor(place / columns);
    return entry(MARGIN + width * (place % columns), y, { ...setup, label });
  });
  const failed = setups.filter((one) => failedOf(one) > 0).map(failures);
  const isUnknown = setups.some(({ planned }) => planned === undefined);
  const said = [`n: ${isUnknown ? "clients" : "runs × clients"}. Shares are of answered requests`];
  if (failed.length > 0) said.push(`failed: ${failed.join(" requests, ")} requests`);
  if (failed.length === 0 && !isUnknown) said.push("none failed");
  if (isUnknown) said.push("failures unknown");
  const below = top + LINE * Math.ceil(setups.length / columns);
  const shares = prose(`${said.join("; ")}.`, below, MUTED);
  return { svg: [...load.svg, ...legend, ...shares.svg], bottom: shares.bottom };
}

/** The first eight, one of which has answers; the verdict is about all. */
export function drawPicture(all: readonly Setup[]): string {
  const things = all.slice(0, MOST_DRAWN);
  const isDrawn = (setup: Setup): boolean => setup.all.length > 0;
  const words = things.filter(isDrawn).map(({ title, all: times }) => {
    const [median, longest] = [seconds(quantile(times, 0.5)), seconds(times.at(-1) ?? 0)];
    return `${title}: ${counted(times.length)} answers, median ${median} s, maximum ${longest} s.`;
  });
  const dressed = dress(things);
  const drawn = dressed.filter(isDrawn);
  const time = logAxis(TIME, spanOf(drawn.map((one) => one.all)), [LEFT, RIGHT]);
  return svgOf({
    title: "Response Time Histograms",
    head: (top) => header(dressed, things.map(titleOf), top),
    plots: [histogramPlot(drawn), waitingPlot(drawn, time), firstPlot(drawn, time)],
    conclusion: verdict(withShortTitles(all)),
    things,
    description: `${words.join(" ")} ${verdict(all)}`,
    looks: dressed.map(({ look }) => look),
  });
}

// ─── The load curve ──────────────────────────────────────────────────────────
// Folders of one rate each: what the first requests of each set-up take as the load grows.

/** A set-up at one rate; its p95 is Infinity where too many failed, NaN where too few came. */
export type Point = Setup & Readonly<{ rate: number; mean: Interval; p95: Interval }>;
type Line = Titled & { readonly points: readonly Point[] };

export function pointOf(rate: number, setup: Setup): Point {
  const each = byRun(setup.firsts, setup.origin).map((run) => firstQuantile(run, 0.95));
  const whole = { ...tInterval([]), mean: firstQuantile(setup.firsts, 0.95) };
  const p95 = each.length > 1 && each.every(Number.isFinite) ? tInterval(each) : whole;
  return { ...setup, rate, mean: meanOf(setup), p95 };
}

export function linesOf(points: readonly Point[]): Line[] {
  const names = [...new Set(points.map(({ name }) => name))];
  const byRate = points.toSorted((a, b) => a.rate - b.rate);
  return titlesOf(names).map((title, place) => {
    const own = byRate.filter(({ name }) => name === names[place]);
    return { name: at(names, place), title, points: own.map((one) => ({ ...one, title })) };
  });
}

/** The highest rate up to which a line's p95 stays below twice its first; NaN when unknown. */
function kneeOf({ points }: Line): number {
  const limit = 2 * (points[0]?.p95.mean ?? NaN);
  const past = points.findIndex(({ p95 }) => !(p95.mean < limit));
  const last = points[past < 0 ? points.length - 1 : past - 1];
  return Number.isFinite(limit) && last ? last.rate : NaN;
}

export function kneeSentence(lines: readonly Line[]): string {
  const rates = lines.flatMap(({ points }) => points.map(({ rate }) => rate));
  const lowest = counted(Math.min(...rates));
  const known = lines.filter((line) => !Number.isNaN(kneeOf(line)));
  if (known.length === 0)
    return `No knee: the p95 at ${lowest} a second is not known (it needs 59 first requests).`;
  const knees = known.toSorted((a, b) => kneeOf(b) - kneeOf(a));
  const each = knees.map((line) => {
    const remark = kneeOf(line) === Math.max(...rates) ? " (the highest tried)" : "";
    return `${line.title} ${counted(kneeOf(line))}${remark}`;
  });
  const claim = "clients a second the p95 of first requests stays below twice that at";
  return `Up to so many ${claim} ${lowest}: ${each.join(", ")}.${moreLoad(knees)}`;
}

function moreLoad(knees: readonly Line[]): string {
  const balanced = knees.filter(({ points }) => !points.every(isBaseline));
  const isVirtual = ({ points }: Line) => points.some(({ origin }) => origin?.simulated);
  const [best, ...others] = balanced.length < 2 ? knees : balanced;
  const next = best && others.find((line) => isVirtual(line) === isVirtual(best));
  if (!best || !next) return "";
  const share = Math.round((kneeOf(best) / kneeOf(next) - 1) * 100);
  const least = kneeOf(best) === best.points.at(-1)?.rate ? "at least " : "";
  if (share > 0) return ` ${best.title} carries ${least}${share} % more load than ${next.title}.`;
  return ` ${best.title} and ${next.title} carry the same load, as far as was tried.`;
}

export function curveTable(lines: readonly Line[]): string {
  const rows = lines.flatMap(({ points }) => points);
  const times = rows.flatMap(({ mean: first, p95 }) => [first.mean, p95.mean]);
  const unit = unitOf(Math.max(...times.filter(Number.isFinite)));
  const columns: Column<Point>[] = [
    { head: `first requests (${unit.name})`, cell: titleOf },
    { head: "clients/s", cell: ({ rate }) => String(rate) },
    { head: "load", cell: (point) => loadWords(point) || "-" },
    { head: "runs", cell: runsCell },
    { head: "answered of planned", cell: answeredCell },
    { head: "mean", cell: ({ mean: first }) => meanCell(first, unit) },
    { head: "p95", cell: ({ p95 }) => meanCell(p95, unit) },
  ];
  return aligned(rows, columns).join("\n");
}

type Of = "mean" | "p95";
type Measure = Readonly<{ title: string; note: string; of: Of }>;
const MEASURES: readonly Measure[] = [
  { title: "Mean of the first requests", note: "(s), with its interval over the runs", of: "mean" },
  { title: "95th percentile", note: "(s), at the top where more failed", of: "p95" },
];

/** The rates that were tried are the ticks; over more than a decade or so, logarithmic. */
function rateAxis(rates: readonly number[]): Axis {
  const [low, high] = [Math.min(...rates), Math.max(...rates)];
  const scale = high > 20 * low ? logScale : linearScale;
  const middle = () => (LEFT + RIGHT) / 2;
  const axis = low === high ? middle : scale([low, high], [LEFT + 30, RIGHT - 30]);
  const room = (tick: number): number => Math.max(across(tick), widthOf("100 % ") / 2);
  return { name: "Clients per second", at: axis, ticks: fitting(thinned(rates), axis, room) };
}

function measurePlot(
  curves: readonly (Line & Dress)[],
  x: Axis,
  { title, note, of }: Measure,
): Plot {
  const all = curves.flatMap(({ points }) => points.map((point) => point[of]));
  const means = all.map(({ mean: middle }) => middle).filter(Number.isFinite);
  const highest = Math.max(...means, ...all.map(({ high }) => high).filter(Number.isFinite));
  const last = ({ points }: Line): number =>
    Math.min(MAX_SECONDS, at(points, points.length - 1)[of].mean || 0);
  return {
    title,
    note,
    beside: curves.toSorted((a, b) => last(b) - last(a)),
    x,
    lines: 2,
    draw: (frame) => {
      const y = logAxis("", [Math.min(...means), highest], [frame.bottom, frame.top], upright);
      return [
        ...uprights(x, frame),
        ...levels(y.ticks, y.at, String),
        ...curves.map((one, place) => lineMarks(one, place, x.at, y.at, of)),
        ...loadLabels(curves, x, frame.labels + LINE),
      ];
    },
  };
}

/** Below the rates, what they are of the capacity of the first set-up with a balancer. */
function loadLabels(curves: readonly Line[], rates: Axis, y: number): string[] {
  const points = curves.flatMap((curve) => curve.points);
  const own = points.filter((point) => !isBaseline(point) || curves.length === 1);
  const loads = rates.ticks.flatMap((rate) => {
    const load = own.map((one) => (one.rate === rate ? loadOf(one) : "")).find(Boolean);
    return load ? text(rates.at(rate), y, load, MUTED, "middle") : [];
  });
  return loads.length > 0 ? [...loads, text(WIDTH - MARGIN, y, "of capacity", MUTED, "end")] : [];
}

/** A line through its points, each with its interval, a little aside of its neighbours'. */
function lineMarks({ points, look }: Line & Dress, place: number, x: Scale, y: Scale, of: Of) {
  const known = points.filter((point) => !Number.isNaN(point[of].mean));
  const marks = known.map(({ rate, [of]: { mean: middle, low, high, half } }) => {
    const across = x(rate) + 4 * place;
    const bar = Number.isFinite(half) ? line([across, y(low)], [across, y(high)], look.line) : "";
    const dot = bar + circle(across, y(middle), 3.5, look.line, PAPER);
    return { step: `L${round(across)} ${round(y(middle))}`, dot };
  });
  const path = marks.map(({ step }) => step).join("");
  const joined = marks.length > 1 ? stroke(path.replace("L", "M"), look.line, 2, look.dash) : "";
  return joined + marks.map(({ dot }) => dot).join("");
}

export function drawCurve(all: readonly Line[]): string {
  const things = all.slice(0, MOST_DRAWN);
  const curves = dress(things);
  const points = things.flatMap((one) => one.points);
  const rates = rateAxis([...new Set(points.map(({ rate }) => rate))].sort((a, b) => a - b));
  const about = `First requests as the offered load grows. ${simulatedLine(points)}`;
  const drawn = MEASURES.filter(({ of }) => points.some((one) => Number.isFinite(one[of].mean)));
  return svgOf({
    title: "Load Curve",
    head: (top) => prose(about.trim(), top, MUTED),
    plots: drawn.map((measure) => measurePlot(curves, rates, measure)),
    conclusion: kneeSentence(curves) + disturbance(points),
    things,
    description: kneeSentence(things),
    looks: curves.map(({ look }) => look),
  });
}

// ─── Over time ───────────────────────────────────────────────────────────────
// First requests where the plan had them arrive: the arrivals are drawn again from seed and rate,
// and all runs of a set-up lie on each other.

/** A set-up's first requests by arrival: when, and how long; NaN where it failed. */
export type Timeline = Setup & {
  readonly arrivals: Float64Array;
  readonly times: Float64Array;
  readonly window: Window | undefined;
};
type Window = Readonly<{ what: string; from: number; to: number }>;

/** Throws a RunError when nothing tells when the clients arrived. */
export function timelineOf(setup: Setup): Timeline {
  const { origin, firsts } = setup;
  if (!origin) throw new RunError(`${JOURNAL} does not tell when its clients arrived`);
  const rate = Number(origin.plan["rate"]);
  const most = Number(origin.plan["maxRequests"]);
  if (!(rate > 0)) throw new RunError("its clients came all at once");
  if (!(most >= 1) || origin.runs.some(({ clients }) => clients !== origin.plan["clients"]))
    throw new RunError("its runs are not as long as their plan, so the arrivals are not known");
  const planned = origin.runs.flatMap(
    ({ clients, seed }) => drawPlan(clients, most, rate, seedsFrom(seed)).arrivals,
  );
  const order = planned.map((_, place) => place).sort((a, b) => at(planned, a) - at(planned, b));
  return {
    ...setup,
    arrivals: Float64Array.from(order, (place) => at(planned, place)),
    times: Float64Array.from(order, (place) => at(firsts, place)),
    window: windowOf(origin.plan),
  };
}

function windowOf({ fail, hang }: Fields): Window | undefined {
  const span = isFields(fail) ? fail : hang;
  if (!isFields(span)) return undefined;
  const [from, to] = [Number(span["from"]), Number(span["to"])];
  return from < to ? { what: span === fail ? "killed" : "blocked", from, to } : undefined;
}

/** First requests of clients that came from `from` on and before `to`. */
function between({ arrivals, times }: Timeline, from: number, to: number): Float64Array {
  const before = (limit: number): number => {
    let low = 0;
    let high = arrivals.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (at(arrivals, middle) < limit) low = middle + 1;
      else high = middle;
    }
    return low;
  };
  return times.subarray(before(from), before(to));
}

const firstFailures = ({ first, firsts }: Setup): string =>
  `${counted(firsts.length - first.length)} of ${counted(firsts.length)}`;
const endOf = (timelines: readonly Timeline[]): number =>
  Math.max(...timelines.map(({ arrivals }) => arrivals.at(-1) ?? 0));

/** By phase: before, while and after the window; without one, thirds of the time. */
export function phaseTable(timelines: readonly Timeline[]): string {
  const unit = unitOf(Math.max(...timelines.map(({ first }) => first.at(-1) ?? 0)));
  const columns: Column<Timeline>[] = [
    { head: `first requests (${unit.name})`, cell: titleOf },
    { head: "runs", cell: runsCell },
    { head: "failed", cell: firstFailures },
  ];
  const end = endOf(timelines);
  const { window } = at(timelines, 0);
  const { from, to } = window ?? { from: end / 3, to: (2 * end) / 3 };
  const cuts = [0, from, to, Infinity];
  const thirds = ["first third", "second third", "last third"];
  const phases = window ? ["before", `while ${window.what}`, "after"] : thirds;
  for (const [place, name] of phases.entries()) {
    const cell = (p: number) => (one: Timeline) =>
      timeCell(firstQuantile(between(one, at(cuts, place), at(cuts, place + 1)), p), unit);
    columns.push({ head: `${name}: p50`, cell: cell(0.5) }, { head: "p95", cell: cell(0.95) });
  }
  return aligned(timelines, columns).join("\n");
}

/** How long clients came who failed, or waited twice the longest before, which chance may beat. */
function hurtFor({ arrivals, times }: Timeline, { from, to }: Window): number {
  let longest = 0;
  let last = from;
  for (const [place, arrival] of arrivals.entries()) {
    const time = at(times, place);
    if (arrival + time < from) longest = Math.max(longest, time);
    if (arrival >= from && arrival < to && !(time <= 2 * longest)) last = arrival;
  }
  return last - from;
}

export function timeSentence(timelines: readonly Timeline[]): string {
  const { window } = at(timelines, 0);
  if (window) {
    const each = timelines.map((one) => `${seconds(hurtFor(one, window))} s in ${one.title}`);
    const since = `After the last server was ${window.what} at ${seconds(window.from)} s`;
    const who = "clients came who failed or waited twice as long as any before";
    return `${since}, ${who} for ${each.join(", ")}.`;
  }
  const end = endOf(timelines);
  const each = timelines.flatMap((one) => {
    const median = (from: number, to: number) => firstQuantile(between(one, from, to), 0.5);
    const [first, last] = [median(0, end / 3), median((2 * end) / 3, Infinity)];
    if (!Number.isFinite(first + last)) return [];
    return `from ${seconds(first)} to ${seconds(last)} s in ${one.title}`;
  });
  if (each.length === 0) return "Too few clients for a median in each third of the time.";
  const claim = "From the first third of the time to the last the median first request went";
  return `${claim} ${each.join(", ")}.`;
}

/** A quantile in a moving window, a thirtieth of the time wide; broken where too few came. */
function movingPath(timeline: Timeline, p: number, x: Scale, y: Scale): string {
  const end = endOf([timeline]);
  let pen = "M";
  const steps = Array.from({ length: 121 }, (_, step) => {
    const middle = (end * step) / 120;
    const value = firstQuantile(between(timeline, middle - end / 60, middle + end / 60), p);
    const point = Number.isNaN(value) ? "" : `${pen}${round(x(middle))} ${round(y(value))}`;
    pen = point ? "L" : "M";
    return point;
  });
  return steps.join("");
}

/** Clients as dots, each place of the picture at most once; failed ones as marks above `top`. */
function clientDots(timeline: Timeline, x: Scale, y: Scale, top: number, colour: Colour): string[] {
  const dots = new Set<string>();
  const marks = new Set<string>();
  for (const [place, arrival] of timeline.arrivals.entries()) {
    const time = at(timeline.times, place);
    if (Number.isNaN(time)) marks.add(`M${Math.round(x(arrival))} ${round(top - 8)}v8`);
    else dots.add(`M${Math.round(x(arrival))} ${Math.round(y(time))}h0`);
  }
  const isDense = dots.size > 2000; // many dots show by their shade how many there are
  const pen = `<g stroke-linecap="round" stroke-opacity="${isDense ? 0.45 : 0.7}">`;
  const drawn = `${pen}${stroke([...dots].join(""), colour, isDense ? 2.4 : 4)}</g>`;
  return [drawn, stroke([...marks].join(""), colour, 1.5)];
}

function shade({ from, to }: Window, x: Scale, { top, bottom }: Frame): string {
  const [left, right] = [Math.min(RIGHT, x(from)), Math.min(RIGHT, x(to))];
  const size = `width="${round(right - left)}" height="${round(bottom - top)}"`;
  return `<rect x="${round(left)}" y="${round(top)}" ${size} fill-opacity="0.45" ${paint(GRID)}/>`;
}

function timePlot(timeline: Timeline & Dress, x: Axis, span: Range): Plot {
  const { title, look, first, firsts, window } = timeline;
  const failed = first.length < firsts.length ? `, ${firstFailures(timeline)} failed` : "";
  const note = sizeOf(timeline) + failed;
  return {
    title: shorten(title, (WIDTH - 3 * MARGIN - widthOf(note)) / 1.1), // in bold type
    note,
    height: 138,
    x,
    draw: (whole) => {
      const frame = { ...whole, top: whole.top + 6 }; // for the marks
      const y = logAxis("", span, [frame.bottom, frame.top], upright);
      return [
        window ? shade(window, x.at, frame) : "",
        ...uprights(x, frame),
        ...levels(y.ticks, y.at, String),
        ...clientDots(timeline, x.at, y.at, frame.top, look.line),
        stroke(movingPath(timeline, 0.5, x.at, y.at), INK, 2),
        stroke(movingPath(timeline, 0.95, x.at, y.at), INK, 2, "5 3"),
      ];
    },
  };
}

export function drawOverTime(all: readonly Timeline[]): string {
  const things = all.slice(0, MOST_DRAWN);
  const drawn = dress(things);
  const x = linearAxis("Arrival (s)", endOf(things) || 1, [LEFT, RIGHT]);
  const span = spanOf(things.map(({ first }) => first));
  const { window } = at(things, 0);
  const shaded = window ? `Shaded: the last server was ${window.what}. ` : "";
  const about =
    "Each dot is a client's first request (s) at its scheduled arrival, each mark at the top one " +
    `that failed; lines: median and p95 (dashed) in a moving window. ${shaded}${planLine(drawn)}`;
  return svgOf({
    title: "First Requests Over Time",
    head: (top) => prose(about.trim(), top, MUTED),
    plots: drawn.map((one) => timePlot(one, x, span)),
    conclusion: timeSentence(drawn) + disturbance(things),
    things,
    description: timeSentence(things),
    looks: drawn.map(({ look }) => look),
  });
}

// ─── Files ───────────────────────────────────────────────────────────────────
// What to read, what it is called, and how a picture is written: whole or not at all, and never
// over a measurement. Files are told apart by what they are, not by how they are called.

/** What goes wrong with one file, a line each; the others are drawn all the same. */
type Complaints = Set<string>;

/** What the folder's runs.json says, by name; undefined where there is none to believe. */
async function journalOf(folder: string, complaints: Complaints): Promise<Fields | undefined> {
  const file = join(folder, JOURNAL);
  if (!(await statOf(file))) return undefined;
  try {
    const content = parseJson(decode(await readBytes(file)));
    if (isFields(content)) return content;
    throw new RunError("expected an object of set-ups by name");
  } catch (error) {
    complaints.add(complaint(`Cannot read ${file}`, error));
    return undefined;
  }
}

/** One line of a RunError; what is another error is a bug. */
function complaint(what: string, error: unknown): string {
  if (!(error instanceof RunError)) throw error;
  return oneLine(`${what}: ${error.message}`);
}

const refusal =
  (what = "") =>
  (error: unknown): never => {
    throw new RunError(oneLine(what + reasonOf(error)));
  };

const readBytes = (file: string): Promise<Buffer> => readFile(file).catch(refusal());
const statOf = (file: string): Promise<BigIntStats | undefined> =>
  stat(file, { bigint: true }).catch(() => undefined);

/** The runs of a folder: the three known ones, and what else runs.json lists. */
async function filesIn(folder: string, complaints: Complaints): Promise<string[]> {
  const path = (name: string): string => join(folder, `${name}.json`);
  const listed = await journalOf(folder, complaints);
  if (!listed) return KNOWN.map(path);
  const there = await Promise.all(KNOWN.map((name) => statOf(path(name))));
  const known = KNOWN.filter((name, place) => Object.hasOwn(listed, name) || there[place]);
  const isOther = (name: string): boolean => !KNOWN.includes(name) && /^[^/\\\0]+$/.test(name);
  return [...known, ...Object.keys(listed).filter(isOther)].map(path);
}

/** A folder that is named means its runs; one without a runs.json, all that is there. */
async function filesOf(named: string, complaints: Complaints): Promise<string[]> {
  if (!(await statOf(named))?.isDirectory()) return [named];
  if (await journalOf(named, complaints)) return filesIn(named, complaints);
  const isFile = (name: string) => /^[^.].*(?<!\.partial)\.json$/.test(name) && name !== JOURNAL;
  const found = (await readdir(named)).filter(isFile).sort();
  if (found.length === 0) complaints.add(oneLine(`Cannot draw ${named}: there are no runs in it`));
  const rank = (name: string): number => (KNOWN.indexOf(nameOf(name)) + 9) % 9;
  return found.sort((a, b) => rank(a) - rank(b)).map((name) => join(named, name));
}

/** The same text for the same file, whatever it is called and wherever links lead. */
async function identityOf(file: string): Promise<string> {
  const found = await statOf(file);
  return found && found.ino !== 0n ? `${found.dev}:${found.ino}` : resolve(file);
}

/** Throws a UsageError when a file is there twice, or would be overwritten by the picture. */
async function checkIdentities(files: readonly string[], picture: string): Promise<void> {
  const own = await Promise.all(files.map(identityOf));
  const twice = files.find((_, place) => own.indexOf(at(own, place)) < place);
  if (twice !== undefined) throw bad("file", twice, "each file once");
  const journals = files.map((file) => identityOf(join(dirname(file), JOURNAL)));
  const read = [...own, ...(await Promise.all(journals))];
  if (picture !== "-" && read.includes(await identityOf(picture)))
    throw bad("--out", picture, "another file than those to read");
}

/** Reads `files` one after the other. One that cannot be read becomes a complaint. */
async function readSetups(files: readonly string[], complaints: Complaints): Promise<Setup[]> {
  const setups: Setup[] = [];
  for (const [place, title] of titlesOf(files).entries()) {
    const file = at(files, place);
    try {
      const listed = (await journalOf(dirname(file), complaints)) ?? {};
      const bytes = await readBytes(file);
      const times = parseTimes(decode(bytes));
      const entry = Object.hasOwn(listed, nameOf(file)) ? listed[nameOf(file)] : undefined;
      const sha256 = createHash("sha256").update(bytes).digest("hex");
      setups.push(setupOf(nameOf(file), title, times, originOf(entry, sha256, times)));
    } catch (error) {
      complaints.add(complaint(`Cannot draw ${file}`, error));
    }
  }
  return setups;
}

/** Replaces `file`, or what it links to, whole or not at all; mode and, if allowed, owner stay. */
async function replaceFile(file: string, content: string): Promise<void> {
  const path = resolve(file);
  const end = await realpath(path).catch(() => readlink(path).catch(() => path));
  const target = resolve(dirname(path), end);
  const before = await statOf(target);
  const mode = Number(before?.mode ?? 0o666n) & 0o7777;
  const draft = join(dirname(target), `.picture-${randomUUID().slice(0, 8)}.draft`);
  try {
    await writeFile(draft, content, { flag: "wx", mode });
    if (before) await chown(draft, Number(before.uid), Number(before.gid)).catch(() => undefined);
    if (before) await chmod(draft, mode); // the umask may have taken from it
    await rename(draft, target);
  } catch (error) {
    await rm(draft, { force: true });
    throw error;
  }
}

type Result = Readonly<{ words: readonly string[]; draw: (() => string) | undefined }>;
/** Words go to standard output, unless the picture does. Returns the exit code. */
async function show({ words, draw }: Result, picture: string, complaints: Complaints) {
  for (const line of complaints) console.error(line);
  const code = complaints.size > 0 ? 1 : 0;
  if (words.length === 0 && code === 1) return code;
  const failed = refusal(`Cannot write ${picture}: `);
  const isAside = picture === "-";
  const say = isAside ? console.error : console.log;
  if (words.length > 0) say(words.join("\n"));
  if (!draw) return failed("there are no answers to draw");
  if (isAside) process.stdout.write(draw());
  else await replaceFile(picture, draw()).catch(failed);
  if (!isAside) say(oneLine(picture));
  return code;
}

// ─── Command line ────────────────────────────────────────────────────────────

const USAGE = "How to Use: tsx generate_graphs.ts [file ...]";
const folder = { kind: anyText, value: "DIR" };
export const OPTIONS = {
  data: {
    ...folder,
    help: `the folder of ${KNOWN.join(", ")} and what else its ${JOURNAL} lists (default data)`,
  },
  out: {
    kind: anyText,
    value: "FILE",
    help: "where the picture goes, - for standard output (default beside the first file)",
  },
  within: { kind: someSeconds, value: "SECONDS", help: "a column: the share answered within that" },
  curve: { ...folder, help: `first requests by load, of DIR/rate-R/..., into DIR/${CURVE}` },
  overTime: { help: `first requests at their scheduled arrivals, into ${OVER_TIME}` },
} satisfies Options;
type Arguments = Values<typeof OPTIONS>;

const bad = (what: string, text: string, expected: string): UsageError =>
  new UsageError(`Bad ${what} "${oneLine(text)}": expected ${expected}`);

/** Throws a UsageError for what does not go together, before anything is read. */
function checkArguments(named: readonly string[], values: Arguments): void {
  const { data, out, curve, overTime, within: limit } = values;
  if (named.length > 0 && data !== undefined)
    throw bad("--data", data, "either --data or files, not both");
  if (named.includes("")) throw bad("file", "", "the name of a file");
  const others = named.length > 0 || data !== undefined || overTime || limit !== undefined;
  if (curve !== undefined && others)
    throw bad("--curve", curve, "no files, --data, --within or --over-time with it");
  if (out !== undefined && out !== "-" && !/.\.svg$/i.test(basename(out)))
    throw bad("--out", out, "a name that ends in .svg, or - for standard output");
}

const tooMany = ({ length }: readonly unknown[]): string[] =>
  length > MOST_DRAWN ? [`The picture shows the first ${MOST_DRAWN} of ${length}.`] : [];

function histogramsOf(setups: readonly Setup[], limit: number | undefined): Result {
  if (setups.length === 0) return { words: [], draw: undefined };
  const words = [table(setups, limit), "", verdict(setups), ...disturbances(setups)];
  const hasAnswers = setups.slice(0, MOST_DRAWN).some(({ all }) => all.length > 0);
  const draw = hasAnswers ? () => drawPicture(setups) : undefined;
  return { words: [...words, ...tooMany(setups)], draw };
}

function overTimeOf(setups: readonly Setup[], complaints: Complaints): Result {
  const timelines: Timeline[] = [];
  for (const setup of setups) {
    try {
      timelines.push(timelineOf(setup));
    } catch (error) {
      complaints.add(complaint(`Cannot draw ${setup.title} over time`, error));
    }
  }
  if (!timelines.some(hasFirsts)) return { words: [], draw: undefined };
  const said = timeSentence(timelines) + disturbance(timelines);
  const words = [phaseTable(timelines), "", said, ...tooMany(timelines)];
  return { words, draw: () => drawOverTime(timelines) };
}

function curveOf(points: readonly Point[]): Result {
  if (!points.some(hasFirsts)) return { words: [], draw: undefined };
  const lines = linesOf(points);
  const said = kneeSentence(lines) + disturbance(points);
  return { words: [curveTable(lines), "", said, ...tooMany(lines)], draw: () => drawCurve(lines) };
}

/** Reads the folders rate-R of a sweep, the lowest rate first. */
async function showCurve(folder: string, picture: string, complaints: Complaints) {
  const names = await readdir(folder).catch(refusal(`Cannot read ${folder}: `));
  const own = names.filter((name) => /^rate-(\d+\.?\d*|\.\d+)$/.test(name));
  if (own.length === 0) throw bad("--curve", folder, "a folder with folders rate-R in it");
  const rates = own.map((name) => ({ path: join(folder, name), rate: Number(name.slice(5)) }));
  const points: Point[] = [];
  const read: string[] = [];
  for (const { path, rate } of rates.sort((a, b) => a.rate - b.rate)) {
    const files = await filesOf(path, complaints);
    const setups = await readSetups(files, complaints);
    points.push(...setups.map((setup) => pointOf(rate, setup)));
    read.push(...files);
  }
  await checkIdentities(read, picture);
  return show(curveOf(points), picture, complaints);
}

export async function main(named: string[], values: Arguments): Promise<number> {
  checkArguments(named, values);
  const { data = "data", curve, overTime, within } = values;
  const complaints: Complaints = new Set();
  if (curve !== undefined) return showCurve(curve, values.out ?? join(curve, CURVE), complaints);
  const files = named.length === 0 ? await filesIn(data, complaints) : [];
  for (const name of named) files.push(...(await filesOf(name, complaints)));
  const picture =
    values.out ?? join(dirname(files[0] ?? ""), overTime ? OVER_TIME : "response_times.svg");
  await checkIdentities(files, picture);
  const setups = await readSetups(files, complaints);
  const result = overTime ? overTimeOf(setups, complaints) : histogramsOf(setups, within);
  return show(result, picture, complaints);
}

if (isMain(import.meta)) void runScript({ usage: USAGE, options: OPTIONS, main });
