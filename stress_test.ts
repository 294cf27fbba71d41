#!/usr/bin/env -S node --import tsx
/**
 * stress_test.ts - many clients at once, and how long each of them waited.
 *
 * Draws a plan (how many requests each client makes, when it arrives), carries it out against a
 * server or a balancer, and writes the answered requests as JSON: an array (client, in the plan's
 * order) of arrays (request) of seconds, rounded to microseconds. Failures are counted by kind,
 * never recorded as times. With --compare it starts the servers and the balancer itself and carries
 * out the same plans against each set-up; `runs.json` beside the files says how each was made.
 *
 *   tsx stress_test.ts 20 5
 *   tsx stress_test.ts 1000 5 --rate 30 --timeout 300 --name RoundRobin
 *   tsx stress_test.ts 500 5 --rate 300 --mean 0.05 --sd 0.02 --runs 6 --compare all
 *   tsx stress_test.ts 500 5 --rate 300 --compare "random,random --server-connections 10"
 */
import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { createHash, randomBytes } from "node:crypto";
import { once } from "node:events";
import {
  chmodSync,
  chownSync,
  existsSync,
  lstatSync,
  mkdirSync,
  readFileSync,
  readlinkSync,
  realpathSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { basename, dirname, join, relative, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import {
  Client,
  type FailureKind,
  failureKinds,
  RequestError,
  resolveAddresses,
} from "./client.ts";
import {
  type Address,
  amount,
  anyText,
  carries,
  formatAddress,
  hostName,
  isMain,
  type Kind,
  LONGEST_TIMER,
  mulberry32,
  onStopSignals,
  parseAddress,
  parseCommandLine,
  quantile,
  readValue,
  reasonOf,
  RunError,
  runScript,
  seedNumber,
  someSeconds,
  UsageError,
  type Values,
  wholeNumber,
} from "./lib.ts";
import { ALGORITHMS, OPTIONS as BALANCER_OPTIONS } from "./load_balancer.ts";
import { type Slow, slowPhase } from "./server.ts";

/** Clients that a run without an end keeps for its file, and the most that other runs have. */
const MOST_CLIENTS = 100_000;

// ─── Plan ────────────────────────────────────────────────────────────────────
// Pure, and drawn before the start, so that every set-up is asked the same.

/**
 * A client's place in both arrays is its place in the file. Arrivals are seconds after the start,
 * in ascending order. `luck` is the seed of the requests' numbers.
 */
export type Plan = {
  readonly requests: readonly number[];
  readonly arrivals: readonly number[];
  readonly luck: number;
};

/**
 * Seeds for the streams of one run, always in this order: requests, arrivals, luck, the balancer,
 * each server. So no two streams are the same, and more of one leaves the others as they were.
 */
export function seedsFrom(seed: number): () => number {
  const random = mulberry32(seed);
  return () => Math.floor(random() * 2 ** 32);
}

/** One client of a plan. */
type Visit = { readonly requests: number; readonly arrival: number };

/** Clients without an end, each drawn when it is asked for. */
function visitsFrom(maxRequests: number, rate: number, nextSeed: () => number): () => Visit {
  const randomRequests = mulberry32(nextSeed());
  const randomArrivals = mulberry32(nextSeed());
  let arrival = 0;
  return () => {
    if (rate > 0) arrival -= Math.log(1 - randomArrivals()) / rate;
    const requests = 1 + Math.floor(randomRequests() * maxRequests);
    return { requests, arrival };
  };
}

/**
 * 1 to `maxRequests` requests a client, uniformly; `rate` arrivals a second (a Poisson process), or
 * all at once when it is 0.
 */
export function drawPlan(
  clients: number,
  maxRequests: number,
  rate: number,
  nextSeed: () => number,
): Plan {
  const nextVisit = visitsFrom(maxRequests, rate, nextSeed);
  const requests: number[] = [];
  const arrivals: number[] = [];
  for (let client = 0; client < clients; client++) {
    const visit = nextVisit();
    requests.push(visit.requests);
    arrivals.push(visit.arrival);
  }
  return { requests, arrivals, luck: nextSeed() };
}

/** Who comes in a run, one after the other; `clients` is Infinity for a run without an end. */
export type Visits = {
  readonly clients: number;
  /** All their requests, and when the last of them arrives; 0 for a run without an end. */
  readonly planned: number;
  readonly lastArrival: number;
  readonly luck: number;
  readonly next: () => Visit | undefined;
};

export function visitsOf({ requests, arrivals, luck }: Plan): Visits {
  let place = -1;
  const next = (): Visit | undefined => {
    place += 1;
    const arrival = arrivals[place];
    return arrival === undefined ? undefined : { requests: requests[place] ?? 0, arrival };
  };
  const planned = requests.reduce((sum, n) => sum + n, 0);
  return { clients: requests.length, planned, lastArrival: arrivals.at(-1) ?? 0, luck, next };
}

export function endlessVisits(maxRequests: number, rate: number, nextSeed: () => number): Visits {
  const next = visitsFrom(maxRequests, rate, nextSeed);
  return { clients: Infinity, planned: 0, lastArrival: 0, luck: nextSeed(), next };
}

/**
 * The numbers of a client's requests, one after the other. A server draws its sleep from the
 * number, so the same request costs the same under every algorithm.
 */
export function numbersOf(luck: number, client: number): () => number {
  const random = mulberry32(luck + Math.imul(client + 1, 0x9e3779b1));
  return () => Math.floor(random() * 2 ** 32);
}

// ─── Entries of --compare ────────────────────────────────────────────────────
// Pure: what to start for each entry, the name of its file, and whose turn it is when.

/** `algorithm` is undefined for the baseline: one server, no balancer. */
export type Entry = {
  readonly name: string;
  readonly algorithm: string | undefined;
  readonly balancerOptions: readonly string[];
};

/**
 * `baseline`, `least-connections --server-connections 10`, `all`, ... with commas between them.
 * Throws UsageError.
 */
export function parseEntries(list: string): Entry[] {
  const all = ["baseline", ...ALGORITHMS];
  const texts = splitOutsideQuotes(list, /,/).map((text) => text.trim());
  const named = texts.flatMap((text) => (text === "all" ? all : [text]));
  const entries = named.map(parseEntry);
  const twice = named.find(
    (_, i) => entries.findIndex(({ name }) => name === entries[i]?.name) !== i,
  );
  if (twice !== undefined) throw badEntry(twice, "expected each entry once");
  return entries;
}

const badEntry = (text: string, complaint: string): UsageError =>
  new UsageError(`Bad --compare entry ${JSON.stringify(text)}: ${complaint}`);

/** Splits where `separator` matches a character that stands in no single quotes, which stay. */
function splitOutsideQuotes(text: string, separator: RegExp): string[] {
  const pieces = [""];
  let isQuoted = false;
  for (const character of text) {
    if (character === "'") isQuoted = !isQuoted;
    if (!isQuoted && separator.test(character)) pieces.push("");
    else pieces[pieces.length - 1] += character;
  }
  if (isQuoted) throw badEntry(text, "expected another ' that ends what the first one begins");
  return pieces;
}

function parseEntry(text: string): Entry {
  const words = splitOutsideQuotes(text, /\s/).filter(Boolean);
  const [algorithm = "", ...balancerOptions] = words.map((word) => word.replaceAll("'", ""));
  const isBaseline = algorithm === "baseline";
  if (!isBaseline && !ALGORITHMS.some((name) => name === algorithm))
    throw badEntry(text, `expected baseline, all, ${ALGORITHMS.join(", ")}`);
  if (isBaseline && balancerOptions.length > 0)
    throw badEntry(text, "expected no options: the baseline has no balancer");
  const ours = balancerOptions.find((word) =>
    /^--(host|port|servers|servers-file|log|help)(=|$)/.test(word),
  );
  if (ours !== undefined) throw badEntry(text, `expected no ${ours}: --compare sets it itself`);
  const complaint = complaintAbout(balancerOptions);
  if (complaint !== undefined) throw badEntry(text, complaint);
  const name = fileName(algorithm, balancerOptions);
  return { name, algorithm: isBaseline ? undefined : algorithm, balancerOptions };
}

/** What the balancer would say of these options, before anything is started. */
function complaintAbout(balancerOptions: readonly string[]): string | undefined {
  try {
    const [surplus] = parseCommandLine(BALANCER_OPTIONS, balancerOptions).positionals;
    return surplus && `expected options after the algorithm, not ${JSON.stringify(surplus)}`;
  } catch (error) {
    if (error instanceof UsageError) return error.message;
    throw error;
  }
}

/** `LeastConnections-server-connections-10` for `least-connections --server-connections 10`. */
function fileName(algorithm: string, balancerOptions: readonly string[]): string {
  const pascal = algorithm.replace(/(?:^|-)([a-z])/g, (_, letter: string) => letter.toUpperCase());
  const words = balancerOptions.map((word) => word.replace(/^-+/, "").replace(/[^\w.]+/g, "-"));
  return [pascal, ...words].join("-");
}

/** What is measured with one seed, one entry after the other. */
export type Round = { readonly seed: number; readonly entries: readonly Entry[] };

/**
 * Seed by seed, in the opposite order each time, so that a machine which drifts favours nobody. The
 * baseline says how slow one server is, which one run shows; of two entries it is the other half of
 * a pair.
 */
export function roundsOf(entries: readonly Entry[], seeds: readonly number[]): Round[] {
  const repeated = entries.filter(({ algorithm }) => algorithm !== undefined);
  return seeds.map((seed, place) => {
    const takePart = place === 0 || entries.length <= 2 ? entries : repeated;
    return { seed, entries: place % 2 === 0 ? takePart : takePart.toReversed() };
  });
}

// ─── What was measured ───────────────────────────────────────────────────────
// Types: what was asked of whom, and what came of it. `runs.json` holds them under these names.

export type Window = { readonly from: number; readonly to: number };

/** What every set-up is asked; `fail` and `hang` are what happens to the last server. */
export type Workload = {
  readonly clients: number;
  readonly maxRequests: number;
  readonly rate: number;
  readonly reconnect: boolean;
  readonly timeout: number;
  readonly addresses: number;
  readonly fail: Window | null;
  readonly hang: Window | null;
};

export type ServerSetup = {
  readonly mean: number;
  readonly sd: number;
  readonly slots: number;
  readonly weight: number;
  readonly slow: Slow | null;
};

/** Whom it was asked; what somebody else has started is unknown: `null`. */
export type Setup = {
  readonly algorithm: string | null;
  readonly options: readonly string[];
  readonly servers: readonly ServerSetup[] | null;
  readonly balancers: number;
};

/**
 * How the tester itself fared: the share of time its event loop was busy, the longest time it stood
 * still, and how late the latest client was started (seconds).
 */
export type Health = {
  readonly utilization: number;
  readonly stall: number;
  readonly startLag: number;
};

/** What came of one run; `firstFailed` holds the places of clients whose first request failed. */
export type Outcome = {
  readonly seed: number;
  readonly address: string;
  readonly times: readonly (readonly number[])[];
  readonly planned: number;
  readonly errors: Readonly<Record<FailureKind, number>>;
  readonly firstFailure: string | null;
  readonly firstFailed: readonly number[];
  readonly seconds: number;
  readonly interrupted: boolean;
  readonly simulated: boolean;
  readonly tester: Health;
  /** What stood still, in words; nothing when nothing did. */
  readonly disturbed: readonly string[];
};

/** A set-up and all its runs: what one file holds. */
export type Measured = {
  readonly name: string;
  readonly setup: Setup;
  readonly plan: Workload;
  readonly runsAsked: number;
  readonly runs: readonly Outcome[];
};

export const countErrors = (errors: Outcome["errors"]): number =>
  failureKinds.reduce((sum, kind) => sum + errors[kind], 0);

const plural = (n: number, what: string): string => `${n} ${what}${n === 1 ? "" : "s"}`;

/** A standstill up to this long, in seconds, is what any machine has now and then. */
const STANDSTILL = 0.05;
const BUSY = 0.7;

/** A run of less than half a second is mostly start-up: how busy the loop was says nothing then. */
const isBottleneck = ({ tester, seconds }: Pick<Outcome, "tester" | "seconds">): boolean =>
  tester.utilization > BUSY && seconds > 0.5;

/**
 * What of the tester's own doing may have distorted a run, and which of the others `stalls` (in
 * seconds, by name) stood still.
 */
export function disturbances(
  run: Pick<Outcome, "tester" | "seconds" | "errors">,
  stalls: ReadonlyMap<string, number>,
): string[] {
  const { tester, errors } = run;
  const said: string[] = [];
  if (isBottleneck(run))
    said.push(
      `the tester's loop was busy ${Math.round(tester.utilization * 100)} % of the time, ` +
        "it was the bottleneck",
    );
  if (tester.startLag > STANDSTILL)
    said.push(`the tester started a client ${tester.startLag.toFixed(2)} s late`);
  for (const [who, stall] of [["the tester", tester.stall] as const, ...stalls]) {
    if (stall > STANDSTILL) said.push(`${who} stood still for ${stall.toFixed(2)} s`);
  }
  if (errors.shortage > 0)
    said.push(`the tester lacked descriptors or ports for ${plural(errors.shortage, "request")}`);
  return said;
}

// ─── Summary ─────────────────────────────────────────────────────────────────
// Pure: from what the runs of a set-up recorded to what is printed. The table and --json show one
// and the same object.

const percentiles = { p50: 0.5, p90: 0.9, p95: 0.95, p99: 0.99 } as const;
type Percentile = keyof typeof percentiles;
const names: readonly Percentile[] = ["p50", "p90", "p95", "p99"];

/** `null` where the sample does not carry it. */
export type Spread = Readonly<Record<Percentile | "mean" | "max", number | null>> & {
  readonly n: number;
};

function spreadOf(times: readonly number[]): Spread {
  const sorted = times.toSorted((a, b) => a - b);
  const at = (name: Percentile): number | null =>
    carries(sorted.length, percentiles[name]) ? quantile(sorted, percentiles[name]) : null;
  const sum = sorted.reduce((total, seconds) => total + seconds, 0);
  return {
    n: sorted.length,
    mean: sorted.length > 0 ? sum / sorted.length : null,
    p50: at("p50"),
    p90: at("p90"),
    p95: at("p95"),
    p99: at("p99"),
    max: sorted.at(-1) ?? null,
  };
}

/** The times of first requests. A client whose first one failed has none: no later one is it. */
function firstTimes({ times, firstFailed }: Outcome): number[] {
  const failed = new Set(firstFailed);
  return times.flatMap((of, client) => (failed.has(client) ? [] : of.slice(0, 1)));
}

function laterTimes({ times, firstFailed }: Outcome): number[] {
  const failed = new Set(firstFailed);
  return times.flatMap((of, client) => (failed.has(client) ? of : of.slice(1)));
}

/** Clients a second that `servers` can serve, each of them with (maxRequests + 1) / 2 requests. */
export function capacityOf(servers: readonly ServerSetup[], maxRequests: number): number {
  const requests = (maxRequests + 1) / 2;
  return servers.reduce((sum, { slots, mean }) => sum + slots / (mean * requests), 0);
}

export type Summary = ReturnType<typeof summarise>;

export function summarise({ name, setup, plan, runsAsked, runs }: Measured) {
  const total = (of: (run: Outcome) => number): number =>
    runs.reduce((sum, run) => sum + of(run), 0);
  const worst = (of: keyof Health): number => Math.max(0, ...runs.map(({ tester }) => tester[of]));
  const answered = total(({ times }) => times.reduce((sum, { length }) => sum + length, 0));
  const seconds = total((run) => run.seconds);
  const capacity = setup.servers ? capacityOf(setup.servers, plan.maxRequests) : 0;
  return {
    name,
    clients: Math.max(plan.clients, ...runs.map(({ times }) => times.length)),
    maxRequests: plan.maxRequests,
    rate: plan.rate,
    shareOfCapacity: capacity > 0 && capacity < Infinity ? plan.rate / capacity : null,
    reconnect: plan.reconnect,
    seed: runs[0]?.seed ?? 0,
    seeds: runs.map(({ seed }) => seed),
    runsAsked,
    simulated: runs.some(({ simulated }) => simulated),
    address: runs.at(-1)?.address ?? "",
    servers: setup.servers?.length ?? null,
    planned: total(({ planned }) => planned),
    answered,
    errors: errorsOf(runs),
    firstFailure: runs.find(({ firstFailure }) => firstFailure !== null)?.firstFailure ?? null,
    seconds,
    requestsPerSecond: seconds > 0 ? answered / seconds : 0,
    interrupted: runs.some(({ interrupted }) => interrupted),
    first: spreadOf(runs.flatMap(firstTimes)),
    later: spreadOf(runs.flatMap(laterTimes)),
    all: spreadOf(runs.flatMap(({ times }) => times.flat())),
    bottleneck: runs.some(isBottleneck),
    tester: {
      utilization: worst("utilization"),
      stall: worst("stall"),
      startLag: worst("startLag"),
    } satisfies Health,
    disturbed: runs.flatMap(({ seed, disturbed }) => disturbed.map((what) => ({ seed, what }))),
  };
}

/** A new count of failures by kind, all zero. */
const noErrors = (): Record<FailureKind, number> => ({
  connect: 0,
  timeout: 0,
  reset: 0,
  closed: 0,
  wrong: 0,
  shortage: 0,
  interrupted: 0,
});

function errorsOf(runs: readonly Outcome[]): Outcome["errors"] {
  const sum = noErrors();
  for (const { errors } of runs) for (const kind of failureKinds) sum[kind] += errors[kind];
  return sum;
}

/** Three significant digits, and all those before the point. */
export function three(value: number): string {
  if (value >= 100) return value.toFixed(0);
  return value < 1e-6 ? "0" : value.toPrecision(3);
}

export function formatSummary(summary: Summary): string {
  const { answered, planned, seconds, requestsPerSecond, firstFailure, errors } = summary;
  const pace = `${three(requestsPerSecond)} req/s`;
  const lines = [
    headingOf(summary),
    `${answered}/${planned} answered in ${three(seconds)} s   ${pace}   ${formatErrors(errors)}`,
  ];
  if (firstFailure !== null) lines.push(`first failure: ${firstFailure}`);
  if (errors.shortage > 0)
    lines.push("a shortage is the tester's own, of descriptors or ports, not the target's failure");
  for (const { seed, what } of summary.disturbed) lines.push(`disturbed, seed ${seed}: ${what}`);
  return [...lines, "", ...table(summary)].join("\n");
}

function headingOf(summary: Summary): string {
  const { name, simulated, seeds, runsAsked, address, servers, clients, reconnect } = summary;
  const requests = summary.maxRequests === 1 ? "1 request" : `1–${summary.maxRequests} requests`;
  const said = [`${plural(clients, "client")} × ${requests}`, arrivalOf(summary)];
  if (reconnect) said.push("a connection each");
  const [first = 0] = seeds;
  const isOne = runsAsked === 1;
  said.push(isOne ? `seed ${first}` : `${plural(seeds.length, "run")} from seed ${first}`);
  const whom = isOne || servers === null ? address : plural(servers, "server");
  return `${name}${simulated ? " (simulated)" : ""}   ${said.join(", ")} → ${whom}`;
}

function arrivalOf({ rate, shareOfCapacity }: Summary): string {
  if (rate === 0) return "all at once";
  const share =
    shareOfCapacity === null ? "" : ` (${Math.round(shareOfCapacity * 100)} % of capacity)`;
  return `${rate} arriving a second${share}`;
}

function formatErrors(errors: Outcome["errors"]): string {
  const kinds = failureKinds.filter((kind) => errors[kind] > 0);
  if (kinds.length === 0) return "errors 0";
  return `errors ${countErrors(errors)} (${kinds.map((kind) => `${kind} ${errors[kind]}`).join(", ")})`;
}

/**
 * A column for p99 only where the whole run carries it; the first percentile that it does not carry
 * is remarked on. In milliseconds where no time is as long as 0.1 s.
 */
function table({ first, later, all, reconnect }: Summary): string[] {
  const columns = [
    "mean" as const,
    ...names.filter((name) => name !== "p99" || all.p99 !== null),
    "max" as const,
  ];
  const unit = all.max !== null && all.max < 0.1 ? "ms" : "s";
  const cellsOf = (spread: Spread): string[] => [
    String(spread.n),
    ...columns.map((column) => figure(spread[column], unit)),
  ];
  const waits = "includes waiting for a slot";
  return align([
    { label: `response time (${unit})`, cells: ["n", ...columns], remark: "" },
    { label: "first request", cells: cellsOf(first), remark: waits },
    { label: "later requests", cells: cellsOf(later), remark: reconnect ? waits : "" },
    { label: "all", cells: cellsOf(all), remark: whatIsMissing(all) },
  ]);
}

function whatIsMissing(all: Spread): string {
  const missing = names.find((name) => all[name] === null);
  if (missing === undefined) return "";
  return `${missing} needs n ≥ ${Math.ceil(Math.log(0.05) / Math.log(percentiles[missing]))}`;
}

/** At least three significant digits, and in seconds the three decimals that let columns align. */
function figure(seconds: number | null, unit: "s" | "ms"): string {
  if (seconds === null) return "-";
  if (unit === "ms") return three(seconds * 1000);
  if (seconds < 0.1) return three(seconds);
  return seconds.toFixed(seconds < 100 ? 3 : 1);
}

type Row = { readonly label: string; readonly cells: readonly string[]; readonly remark: string };

/** Columns as wide as their widest cell, and never narrower than those of an ordinary run. */
function align(rows: readonly Row[]): string[] {
  const widths = [6, 8, 8, 7, 7, 7, 7];
  for (const { cells } of rows)
    for (const [place, cell] of cells.entries())
      widths[place] = Math.max(widths[place] ?? 0, cell.length + (place > 0 ? 1 : 0));
  return rows.map(({ label, cells, remark }) => {
    const padded = cells.map((cell, place) => cell.padStart(widths[place] ?? 0)).join("");
    return `${label.padEnd(17)}${padded}   ${remark}`.trimEnd();
  });
}

// ─── Progress ────────────────────────────────────────────────────────────────
// Pure: where a run stands, in one line. On a terminal it is shown again and again in its place,
// elsewhere now and then.

/**
 * Where a run stands. Clients not arrived yet are `toCome`; those without an answer so far are
 * `waiting`. `planned` and `toCome` are Infinity for a run without an end.
 */
export type Progress = {
  readonly planned: number;
  readonly answered: number;
  readonly failed: number;
  readonly p50: number;
  readonly seconds: number;
} & Readonly<Record<Stage, number>>;
export type Stage = "toCome" | "waiting" | "talking" | "done";

/** Which run it is among those of this call, and the seconds until all are done, where known. */
export type Place = {
  readonly name: string;
  readonly run: number;
  readonly runs: number;
  readonly left: number | undefined;
};

const WIDE = new RegExp(
  "[\\u1100-\\u115f\\u2e80-\\u303e\\u3041-\\ua4cf\\uac00-\\ud7a3\\uf900-\\ufaff\\ufe30-\\ufe6f" +
    "\\uff00-\\uff60\\uffe0-\\uffe6\\u{1f300}-\\u{1faff}\\u{20000}-\\u{3fffd}]",
  "u",
);

/** How many cells of a terminal `text` takes: East Asian wide characters take two, marks none. */
export function cellsOf(text: string): number {
  let cells = 0;
  for (const character of text) {
    if (/[\p{M}\p{Cf}]/u.test(character)) continue;
    cells += WIDE.test(character) ? 2 : 1;
  }
  return cells;
}

/** The beginning of `text`, in at most `cells` cells. */
function shorten(text: string, cells: number): string {
  if (cellsOf(text) <= cells) return text;
  const kept = [...text];
  while (kept.length > 0 && cellsOf(kept.join("")) > cells - 1) kept.pop();
  return cells > 0 ? `${kept.join("")}…` : "";
}

const BAR = 20;

/** What has failed is crossed out, one cell at least. */
function barOf({ planned, answered, failed }: Progress): string {
  if (planned === Infinity) return "";
  const cells = (n: number): number => Math.floor((BAR * n) / Math.max(1, planned));
  const filled = cells(answered + failed);
  const crossed = failed > 0 ? Math.max(1, cells(failed)) : 0;
  const full = "█".repeat(Math.max(0, filled - crossed));
  const bar = full + "×".repeat(crossed);
  return `${bar}${"░".repeat(BAR - bar.length)}`;
}

function stagesOf({ toCome, waiting, talking, done }: Progress): string {
  const coming = toCome > 0 && toCome < Infinity ? `${toCome} to come · ` : "";
  return `   ${coming}${waiting} waiting · ${talking} talking · ${done} done`;
}

function shortFigure(seconds: number): string {
  if (!(seconds >= 0)) return "- s";
  const [value, unit] = seconds < 0.1 ? [seconds * 1000, "ms"] : [seconds, "s"];
  return `${Number(three(Number(value)))} ${unit}`;
}

/** Roughly: nobody can know better. */
export function formatLeft(seconds: number | undefined): string {
  if (seconds === undefined || seconds < 0.5) return "";
  if (seconds < 10) return `   about ${Math.max(1, Math.round(seconds))} s left`;
  if (seconds < 90) return `   about ${Math.round(seconds / 5) * 5} s left`;
  return `   about ${Math.round(seconds / 60)} min left`;
}

/** What may be left out of the line where it is too long, the least important first. */
const OPTIONAL = ["left", "p50", "stages", "place", "seconds", "bar"] as const;

/**
 * The line, in fewer than `columns` cells: one that wraps could not be overwritten. How many failed
 * is never cut off.
 */
export function liveLine(place: Place, progress: Progress, columns: number): string {
  const parts = partsOf(place, progress);
  if (columns === Infinity) parts.bar = ""; // a file of lines has no use for it
  const room = columns - 1;
  let line = joined(parts);
  for (const part of OPTIONAL) {
    if (cellsOf(line) <= room) return line;
    parts[part] = "";
    line = joined(parts);
  }
  const surplus = cellsOf(line) - room;
  if (surplus <= 0) return line;
  parts.name = shorten(parts.name, cellsOf(parts.name) - surplus);
  line = joined(parts).trimStart();
  return cellsOf(line) <= room ? line : line.slice(-Math.max(1, room));
}

type Part = (typeof OPTIONAL)[number] | "name" | "count" | "errors";

function partsOf({ name, run, runs, left }: Place, progress: Progress): Record<Part, string> {
  const { planned, answered, failed, p50, seconds } = progress;
  const of = planned === Infinity ? " answered" : `/${planned}`;
  const bar = barOf(progress);
  return {
    name,
    place: runs > 1 ? `  run ${run} of ${runs}` : "",
    bar: bar && `  ${bar}`,
    count: `${bar ? " " : "  "}${answered}${of}`,
    stages: stagesOf(progress),
    p50: `   p50 ${answered > 0 ? shortFigure(p50) : "- s"}`,
    errors: `   errors ${failed}`,
    seconds: `   ${seconds.toFixed(1)} s`,
    left: formatLeft(left),
  };
}

const joined = (parts: Record<Part, string>): string => Object.values(parts).join("");

/** Failures in red, for a terminal that knows colours. */
const paint = (line: string): string =>
  line.replace(/×+(?=░* \d)|errors [1-9]\d*/g, (failures) => `\x1b[31m${failures}\x1b[39m`);

/** Seconds until a run is done: by its share done, before that by its last arrival. */
export function secondsLeft(progress: Progress, lastArrival: number): number | undefined {
  const { planned, answered, failed, seconds } = progress;
  const share = (answered + failed) / planned;
  if (planned === Infinity) return undefined;
  if (share >= 0.05) return (seconds * (1 - share)) / share;
  return lastArrival > 0 ? Math.max(0, lastArrival - seconds) : undefined;
}

// ─── Run ─────────────────────────────────────────────────────────────────────
// Sockets: a plan carried out. Each client talks by itself; what they did is counted in one place,
// the run.

/** Answers that the running median of the live line looks back on. */
const RECENT = 500;
/**
 * A client that our timer started less than this late, in ms, is timed from its start: the delay is
 * a timer's coarseness. More is a delay that whoever waits behind us would feel, and counts.
 */
const COARSE_MS = 2;

/** Watches the event loop until the returned function is called. */
function watchLoop(): () => { utilization: number; stall: number } {
  const everyMs = 10;
  const before = performance.eventLoopUtilization();
  let last = performance.now();
  let stall = 0;
  const look = (): void => {
    const now = performance.now();
    stall = Math.max(stall, now - last - everyMs);
    last = now;
  };
  const timer = setInterval(look, everyMs);
  return () => {
    look();
    clearInterval(timer);
    const { utilization } = performance.eventLoopUtilization(before);
    return { utilization, stall: stall / 1000 };
  };
}

/**
 * `numbered`: each request carries its number; `addresses`: from how many of this machine's
 * loopback addresses the clients come, in turn.
 */
export type RunOptions = {
  readonly timeout: number;
  readonly reconnect: boolean;
  readonly numbered?: boolean;
  readonly addresses?: number;
};

/** What a run alone can say of itself. */
export type Observed = Omit<Outcome, "seed" | "address" | "simulated" | "disturbed">;

/** The loopback address of client `place`, none when they all come from the usual one. */
function sourceOf(place: number, addresses: number): { localAddress?: string } {
  if (addresses <= 1) return {};
  const number = place % addresses;
  return { localAddress: `127.1.${Math.floor(number / 250)}.${1 + (number % 250)}` };
}

export class Run {
  readonly #addresses: readonly Address[];
  readonly #visits: Visits;
  readonly #options: RunOptions;
  readonly #times: number[][] = [];
  readonly #firstFailed = new Set<number>();
  readonly #errors = noErrors();
  readonly #stages: Record<Stage, number>;
  readonly #recent: number[] = [];
  readonly #clients = new Set<Client>();
  #planned: number;
  #firstFailure: string | null = null;
  #answered = 0;
  #startedAt = 0;
  #arrived = 0;
  #nextVisit: Visit | undefined;
  #startLag = 0;
  #stopped = false;
  #arrivalTimer: NodeJS.Timeout | undefined;
  #finish: (bug?: unknown) => void = () => undefined;

  /** `addresses` should hold no name. */
  constructor(addresses: readonly Address[], visits: Visits, options: RunOptions) {
    this.#addresses = addresses;
    this.#visits = visits;
    this.#options = options;
    this.#planned = visits.planned;
    this.#stages = { toCome: visits.clients, waiting: 0, talking: 0, done: 0 };
  }

  /** Fulfilled when every client has left; never rejected because requests fail. */
  async start(): Promise<Observed> {
    const stopWatching = watchLoop();
    this.#startedAt = performance.now();
    this.#nextVisit = this.#visits.next();
    await new Promise<void>((resolve, reject) => {
      this.#finish = (bug) => (bug === undefined ? resolve() : reject(bug));
      this.#admit();
      this.#finishIfDone(); // when it was stopped before
    });
    return {
      times: this.#timesInOrder(),
      planned: this.#planned,
      errors: this.#errors,
      firstFailure: this.#firstFailure,
      firstFailed: this.#firstFailedInOrder(),
      seconds: (performance.now() - this.#startedAt) / 1000,
      interrupted: this.#stopped && !this.#isEndless,
      tester: { ...stopWatching(), startLag: this.#startLag / 1000 },
    };
  }

  /**
   * Requests in flight fail as interrupted; those that nobody has made yet are not made, and count
   * as nothing.
   */
  stop(): void {
    this.#stopped = true;
    clearTimeout(this.#arrivalTimer);
    for (const client of this.#clients) client.close();
    this.#finishIfDone();
  }

  get progress(): Progress {
    const recent = this.#recent.toSorted((a, b) => a - b);
    return {
      ...this.#stages,
      planned: this.#isEndless ? Infinity : this.#planned,
      answered: this.#answered,
      failed: countErrors(this.#errors),
      p50: quantile(recent, 0.5),
      seconds: (performance.now() - this.#startedAt) / 1000,
    };
  }

  get #isEndless(): boolean {
    return this.#visits.clients === Infinity;
  }

  /** A plan's clients that never arrived have no answers, too. */
  #timesInOrder(): number[][] {
    if (!this.#isEndless)
      return Array.from({ length: this.#visits.clients }, (_, place) => this.#times[place] ?? []);
    const oldest = Math.max(0, this.#arrived - MOST_CLIENTS) % MOST_CLIENTS;
    return [...this.#times.slice(oldest), ...this.#times.slice(0, oldest)];
  }

  #firstFailedInOrder(): number[] {
    const gone = Math.max(0, this.#arrived - MOST_CLIENTS);
    return [...this.#firstFailed].map((client) => client - gone).sort((a, b) => a - b);
  }

  /**
   * Starts the clients that are due. One timer, for the next arrival, serves any number of them.
   */
  readonly #admit = (): void => {
    for (;;) {
      const visit = this.#nextVisit;
      if (visit === undefined || this.#stopped) return;
      const due = this.#startedAt + visit.arrival * 1000;
      const lag = performance.now() - due;
      if (lag < 0) {
        this.#arrivalTimer = setTimeout(this.#admit, Math.min(Math.ceil(-lag), LONGEST_TIMER));
        return;
      }
      this.#startLag = Math.max(this.#startLag, lag);
      const since = lag < COARSE_MS ? undefined : due;
      this.#attend(visit.requests, since).then(() => this.#finishIfDone(), this.#finish);
      this.#nextVisit = this.#visits.next();
    }
  };

  /** One client from its arrival to its leaving; its first request is timed from `since`, or now. */
  async #attend(requests: number, since: number | undefined): Promise<void> {
    const place = this.#arrived++;
    const { timeout, reconnect, numbered, addresses = 1 } = this.#options;
    const client = new Client(this.#addresses, { timeout, ...sourceOf(place, addresses) });
    const nextNumber = numbered ? numbersOf(this.#visits.luck, place) : () => undefined;
    const times = this.#welcome(place, requests);
    this.#clients.add(client);
    for (let i = 0; i < requests && !this.#stopped; i++) {
      // From the scheduled arrival, so that a tester that runs late (or a full backlog) hides no
      // waiting: no coordinated omission.
      const answer = client.request(i === 0 ? since : undefined, nextNumber());
      await answer.then(
        (seconds) => this.#record(times, seconds),
        (error: unknown) => this.#fail(error, i === 0 ? place : undefined),
      );
      if (reconnect) client.close();
    }
    client.close();
    this.#clients.delete(client);
    this.#move(times.length > 0 ? "talking" : "waiting", "done");
  }

  /** Returns the list for the times of client `place`; of a run without an end old ones go. */
  #welcome(place: number, requests: number): number[] {
    const times: number[] = [];
    this.#times[place % MOST_CLIENTS] = times;
    this.#firstFailed.delete(place - MOST_CLIENTS);
    if (this.#isEndless) this.#planned += requests;
    this.#move("toCome", "waiting");
    return times;
  }

  #record(times: number[], seconds: number): void {
    if (times.length === 0) this.#move("waiting", "talking");
    times.push(Math.round(seconds * 1e6) / 1e6);
    this.#recent[this.#answered % RECENT] = seconds;
    this.#answered += 1;
  }

  /** The client goes on with the next request of its plan, on a new connection. */
  #fail(error: unknown, firstOf: number | undefined): void {
    if (!(error instanceof RequestError)) throw error;
    this.#errors[error.kind] += 1;
    if (firstOf !== undefined) this.#firstFailed.add(firstOf);
    if (error.kind !== "interrupted") this.#firstFailure ??= error.message;
  }

  #move(from: Stage, to: Stage): void {
    this.#stages[from] -= 1;
    this.#stages[to] += 1;
  }

  #finishIfDone(): void {
    if (this.#clients.size === 0 && (this.#stopped || this.#stages.toCome === 0)) this.#finish();
  }
}

// ─── Children ────────────────────────────────────────────────────────────────
// The servers and the balancer that --compare starts. They are ended whatever happens: by SIGTERM,
// by SIGKILL when they do not react or when we end first, and by themselves should we be killed.

const READY_MS = 20_000;
const STOP_MS = 3_000;
const REPORT_MS = 1_000;

/**
 * Runs in each child, before its script. It ends the child with us, even by SIGKILL: then the
 * channel closes. It watches the child's loop, says on demand for how long it stood still at worst
 * since it was last asked, and blocks the loop when told so: from inside, so that it ends by itself
 * whatever becomes of us.
 */
const IN_CHILD = `
import { isMainThread } from "node:worker_threads";
const every = 10;
let last = performance.now();
let worst = 0;
function look() {
  const now = performance.now();
  worst = Math.max(worst, now - last - every);
  last = now;
}
function block(seconds) {
  look();
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, seconds * 1000);
  last = performance.now();
}
function report() {
  look();
  process.send(worst / 1000, () => undefined);
  worst = 0;
}
if (isMainThread) {
  if (!process.connected) process.exit(1);
  setInterval(look, every).unref();
  process.on("message", ({ hang }) => (hang === undefined ? report() : block(hang)));
  process.on("disconnect", () => process.exit(1));
  process.channel.unref();
}`;
const PRELOAD = `data:text/javascript,${encodeURIComponent(IN_CHILD)}`;

/** Windows has no process groups; there a Ctrl-C reaches the children with us. */
const HAS_GROUPS = process.platform !== "win32";

type Child = {
  readonly label: string;
  readonly process: ChildProcess;
  readonly closed: Promise<unknown>;
  /** What it has printed. */
  readonly output: { stdout: string; stderr: string };
  /** We have ended it, or are about to. */
  isEnding: boolean;
  /** Until then it stands still because we said so. */
  hangsUntil: number;
};

export class Children {
  readonly #running = new Set<Child>();
  readonly #lost: string[] = [];
  #stopping = false;

  /**
   * Starts a script that lies beside this one; complaints call it `label`. Fulfilled with the
   * address it listens on. Throws RunError with its complaint.
   */
  async start(label: string, script: string, args: readonly string[]): Promise<Address> {
    const path = fileURLToPath(new URL(script, import.meta.url));
    // A process group of its own: a Ctrl-C on the terminal must reach the children only through us.
    const process_ = spawn(
      process.execPath,
      [...process.execArgv, "--import", PRELOAD, path, ...args],
      { detached: HAS_GROUPS, windowsHide: true, stdio: ["ignore", "pipe", "pipe", "ipc"] },
    );
    const child = this.#adopt(label, process_);
    const address = await firstWords(script, child);
    await stallOf(child); // that it took its time to start is no standstill
    child.process.stderr?.on("data", (text: string) => process.stderr.write(text));
    child.process.on("exit", (code, signal) => {
      if (child.isEnding || this.#stopping) return;
      this.#lost.push(label);
      console.error(`${label} ended in the middle of the run: ${signal ?? `exit code ${code}`}`);
    });
    return address;
  }

  #adopt(label: string, process_: ChildProcess): Child {
    const output = { stdout: "", stderr: "" };
    for (const name of ["stdout", "stderr"] as const)
      process_[name]?.setEncoding("utf8").on("data", (text: string) => {
        output[name] = (output[name] + text).slice(-4096);
      });
    const closed = new Promise((resolve) => process_.on("close", resolve));
    const child = { label, process: process_, closed, output, isEnding: false, hangsUntil: 0 };
    this.#running.add(child);
    process_.on("close", () => this.#running.delete(child));
    process_.on("error", () => undefined); // of a signal or a message that came too late
    return child;
  }

  /** What `label` has said, and its process. */
  get(label: string): { readonly pid: number | undefined; readonly said: string } {
    const child = this.#find(label);
    return { pid: child?.process.pid, said: child?.output.stdout ?? "" };
  }

  #find(label: string): Child | undefined {
    return [...this.#running].find((child) => child.label === label);
  }

  /** Ends one of them at once, as a crash would. */
  async crash(label: string): Promise<void> {
    const child = this.#find(label);
    if (!child) return;
    child.isEnding = true;
    send("SIGKILL", child);
    await child.closed;
  }

  /** Blocks the event loop of one of them. */
  hang(label: string, seconds: number): void {
    const child = this.#find(label);
    if (!child?.process.connected) return;
    child.hangsUntil = performance.now() + seconds * 1000;
    child.process.send({ hang: seconds }, () => undefined);
  }

  /** How long each stood still at worst since this was last asked, in seconds by label. */
  async stalls(): Promise<Map<string, number>> {
    const stalls = new Map<string, number>();
    const asked = [...this.#running].map(async (child) => {
      const stall = await stallOf(child);
      if (stall !== undefined) stalls.set(child.label, stall);
    });
    await Promise.all(asked);
    return stalls;
  }

  /** The labels of those that ended by themselves. */
  get lost(): readonly string[] {
    return this.#lost;
  }

  /** Ends all of them, and waits until they have. */
  async stop(): Promise<void> {
    this.#stopping = true;
    const closed = [...this.#running].map((child) => child.closed);
    this.#signal("SIGTERM");
    const timer = setTimeout(() => this.kill(), STOP_MS);
    await Promise.all(closed);
    clearTimeout(timer);
  }

  kill(): void {
    this.#stopping = true;
    this.#signal("SIGKILL");
  }

  #signal(signal: NodeJS.Signals): void {
    for (const child of this.#running) send(signal, child);
  }
}

const hangs = ({ hangsUntil }: Child): boolean => performance.now() < hangsUntil;

/** To the whole group, where there are groups. Who hangs cannot heed a gentle signal. */
function send(gentle: NodeJS.Signals, toWhom: Child): void {
  const child = toWhom.process;
  const signal = hangs(toWhom) ? "SIGKILL" : gentle;
  const { pid, exitCode, signalCode } = child;
  if (pid === undefined || exitCode !== null || signalCode !== null) return;
  try {
    if (HAS_GROUPS) process.kill(-pid, signal);
    else child.kill(signal);
  } catch {
    child.kill(signal); // it has just ended, or there are no groups after all
  }
}

/** Who does not even answer has stood still for as long as it was waited for. */
async function stallOf(whom: Child): Promise<number | undefined> {
  const { process: child, closed } = whom;
  if (!child.connected || hangs(whom)) return undefined;
  const answer = once(child, "message").then(([stall]: unknown[]) => Number(stall));
  child.send("look", () => undefined);
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<number>((resolve) => {
    timer = setTimeout(resolve, REPORT_MS, REPORT_MS / 1000);
  });
  const gone = closed.then(() => undefined);
  return Promise.race([answer, late, gone]).finally(() => clearTimeout(timer));
}

/**
 * The address that a child says it listens on. Throws RunError when it ends first, or says nothing
 * for too long.
 */
function firstWords(script: string, { process: child, output }: Child): Promise<Address> {
  return new Promise((resolve, reject) => {
    const fail = (reason: string): void =>
      reject(new RunError(`Cannot start ${script}: ${reason}`));
    const timer = setTimeout(() => fail(`not listening after ${READY_MS / 1000} s`), READY_MS);
    child.stdout?.on("data", () => {
      const address = parseAddress(/^Listening on (\S+)\n/m.exec(output.stdout)?.[1] ?? "");
      if (!address) return;
      clearTimeout(timer);
      resolve(address);
    });
    child
      .on("error", (error) => fail(reasonOf(error)))
      .on("close", (code, signal) => {
        clearTimeout(timer);
        const [complaint] = output.stderr.trim().split("\n");
        fail(complaint || `ended by ${signal ?? `exit code ${code}`}`);
      });
  });
}

/** What --compare starts: the servers, and what their balancer is told besides its entry. */
type Lab = {
  readonly servers: readonly ServerSetup[];
  readonly balancerOptions: readonly string[];
};

const serverLabel = (place: number): string => `server ${place + 1}`;
const BALANCER = "the balancer";

/** The options of a server; `seed` is for what carries no number. */
const serverArguments = ({ mean, sd, slots, slow }: ServerSetup, seed: number): string[] => [
  ...["--log", "none", "--mean", String(mean), "--sd", String(sd)],
  ...["--max-connections", String(slots), "--seed", String(seed)],
  ...(slow ? ["--slow", `${slow.from}-${slow.to}:${slow.mean}`] : []),
];

/** What was started for an entry: whom to ask, and how to treat its last server. */
type Started = {
  readonly address: Address;
  readonly lastServer: {
    readonly label: string;
    readonly address: Address;
    readonly args: readonly string[];
  };
};

/**
 * Starts what an entry needs: the baseline is the first server alone. `nextSeed` gives the
 * balancer's seed and one for each server. Throws RunError.
 */
async function startEntry(
  children: Children,
  { algorithm, balancerOptions }: Entry,
  lab: Lab,
  nextSeed: () => number,
): Promise<Started> {
  const balancerSeed = nextSeed();
  const needed = algorithm === undefined ? lab.servers.slice(0, 1) : lab.servers;
  const commands = needed.map((server) => serverArguments(server, nextSeed()));
  const started = commands.map((args, place) =>
    children.start(serverLabel(place), "server.ts", ["127.0.0.1", "0", ...args]),
  );
  const addresses = await Promise.all(started);
  const last = needed.length - 1;
  const lastServer = {
    label: serverLabel(last),
    address: addresses[last]!,
    args: commands[last]!,
  };
  if (algorithm === undefined) return { address: lastServer.address, lastServer };
  const list = addresses.map((at, place) => `${formatAddress(at)}*${needed[place]?.weight ?? 1}`);
  const args = ["--port", "0", "--servers", list.join(), "--log", "none"];
  const seed = ["--seed", String(balancerSeed), ...lab.balancerOptions];
  const words = [algorithm, ...args, ...seed, ...balancerOptions];
  return { address: await children.start(BALANCER, "load_balancer.ts", words), lastServer };
}

/**
 * Has the last server crash and come back, or stand still, in the windows of the plan. The returned
 * function gives up what has not happened yet.
 */
function scheduleFaults(
  children: Children,
  { lastServer }: Started,
  { fail, hang }: Workload,
): () => void {
  const { label, address, args } = lastServer;
  const timers: NodeJS.Timeout[] = [];
  const at = (seconds: number, act: () => unknown): void =>
    void timers.push(setTimeout(act, seconds * 1000));
  const restart = (): Promise<unknown> =>
    children
      .start(label, "server.ts", [address.host, String(address.port), ...args])
      .catch((error: unknown) => console.error(`${label} did not come back: ${reasonOf(error)}`));
  if (fail) {
    at(fail.from, () => children.crash(label));
    at(fail.to, restart);
  }
  if (hang) at(hang.from, () => children.hang(label, hang.to - hang.from));
  return () => timers.forEach(clearTimeout);
}

// ─── Files ───────────────────────────────────────────────────────────────────
// What was measured, as files. Each is replaced whole or not at all; links, modes and owners stay;
// and what cannot be put in its place is kept beside it, or wherever there is room.

/** `path`, or what it links to, even where that does not exist yet. */
function targetOf(path: string): string {
  if (!lstatSync(path, { throwIfNoEntry: false })?.isSymbolicLink()) return path;
  return existsSync(path) ? realpathSync(path) : resolve(dirname(path), readlinkSync(path));
}

/** Written beside it and renamed, so that nobody ever reads half a file. Throws RunError. */
export function writeWhole(file: string, text: string): void {
  const target = targetOf(file);
  const draft = writeDraft(target, text);
  try {
    takeAfter(target, draft);
    renameSync(draft, target);
  } catch (error) {
    const kept = `what was to be written is in ${draft}`;
    throw new RunError(`Cannot write ${file}: ${reasonOf(error)}; ${kept}`);
  }
}

/** A draft beside `target`, or in the folder for temporary files where there is no room. */
function writeDraft(target: string, text: string): string {
  const reasons: unknown[] = [];
  for (const folder of [dirname(target), tmpdir()]) {
    const draft = join(folder, `${basename(target)}.${process.pid}.tmp`);
    try {
      makeFolder(folder);
      writeFileSync(draft, text);
      return draft;
    } catch (error) {
      reasons.push(error);
      rmSync(draft, { force: true });
    }
  }
  process.stderr.write(text); // nobody else takes it
  throw new RunError(
    `Cannot write ${target}: ${reasonOf(reasons[0])}; what was to be written is above`,
  );
}

/** Mode and, where that is allowed, owner of the file that `draft` is to replace. */
function takeAfter(target: string, draft: string): void {
  const before = statSync(target, { throwIfNoEntry: false });
  if (!before?.isFile()) return;
  try {
    chownSync(draft, before.uid, before.gid);
  } catch {
    // only root may give files away
  }
  chmodSync(draft, before.mode);
}

/**
 * With the folders above it. Not `recursive: true`, which never returns where a file system refuses
 * with ENOENT, as /proc does.
 */
function makeFolder(folder: string): void {
  if (existsSync(folder)) return;
  makeFolder(dirname(folder));
  mkdirSync(folder);
}

/**
 * Makes the folder and proves that `file` can be written, before a run is spent on it. Throws
 * RunError.
 */
function checkWritable(file: string): void {
  try {
    makeFolder(dirname(file));
    const probe = `${file}.${process.pid}.tmp`;
    writeFileSync(probe, "");
    rmSync(probe);
  } catch (error) {
    throw new RunError(`Cannot write ${file}: ${reasonOf(error)}`);
  }
  if (statSync(file, { throwIfNoEntry: false })?.isDirectory())
    throw new RunError(`Cannot write ${file}: it is a folder`);
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return error instanceof Error && "code" in error && error.code === "EPERM";
  }
}

/**
 * Keeps other calls from writing `file` until the returned function is called, or this process has
 * gone. Throws RunError when another one is there already.
 */
function lock(file: string): () => void {
  const path = `${file}.lock`;
  const take = (): void => writeFileSync(path, String(process.pid), { flag: "wx" });
  try {
    take();
  } catch (error) {
    if (!existsSync(path)) throw new RunError(`Cannot write ${path}: ${reasonOf(error)}`);
    const owner = Number(readFileSync(path, "utf8"));
    if (owner !== process.pid && owner > 0 && isAlive(owner))
      throw new RunError(
        `Cannot write ${file}: process ${owner} is measuring under this name ` +
          `(if it is not, remove ${path})`,
      );
    rmSync(path, { force: true });
    take();
  }
  return () => rmSync(path, { force: true });
}

/** A line for each client, so that two runs can be compared by eye and by diff. */
const formatTimes = (runs: Measured["runs"]): string =>
  `[\n${runs.flatMap(({ times }) => times.map((of) => JSON.stringify(of))).join(",\n")}\n]\n`;

const sha256 = (text: string | Buffer): string => createHash("sha256").update(text).digest("hex");

/** How a file was made, as `runs.json` has it. */
const recordOf = (
  { setup, plan, runsAsked, runs }: Measured,
  session: string,
  text: string,
): Record<string, unknown> => ({
  sha256: sha256(text),
  session,
  setup,
  plan,
  runsAsked,
  simulated: runs.some(({ simulated }) => simulated),
  runs: runs.map(({ times, ...run }) => ({
    seed: run.seed,
    clients: times.length,
    planned: run.planned,
    answered: times.reduce((sum, { length }) => sum + length, 0),
    errors: run.errors,
    firstFailed: run.firstFailed,
    seconds: run.seconds,
    simulated: run.simulated,
    interrupted: run.interrupted,
    disturbed: run.disturbed,
  })),
});

type Records = Record<string, unknown>;
const isObject = (value: unknown): value is Records =>
  typeof value === "object" && value !== null && !Array.isArray(value);

/** What `runs.json` holds; nothing where there is none. One that is malformed is put aside. */
function readRecords(file: string): Records {
  if (!existsSync(file)) return {};
  try {
    const records: unknown = JSON.parse(readFileSync(file, "utf8"));
    if (isObject(records)) return records;
  } catch (error) {
    if (!(error instanceof SyntaxError)) throw error;
  }
  renameSync(file, `${file}.malformed`);
  console.error(`${file} was malformed: it is ${file}.malformed now, and begun anew`);
  return {};
}

/** A line for each field, and for each run. */
function formatRecords(records: Records): string {
  const list = (values: readonly unknown[]): string =>
    `[\n      ${values.map((value) => JSON.stringify(value)).join(",\n      ")}\n    ]`;
  const field = ([key, value]: [string, unknown]): string =>
    `    ${JSON.stringify(key)}: ${key === "runs" && Array.isArray(value) ? list(value) : JSON.stringify(value)}`;
  const entry = ([name, record]: [string, unknown]): string =>
    isObject(record)
      ? `  ${JSON.stringify(name)}: {\n${Object.entries(record).map(field).join(",\n")}\n  }`
      : `  ${JSON.stringify(name)}: ${JSON.stringify(record)}`;
  return `{\n${Object.entries(records).map(entry).join(",\n")}\n}\n`;
}

const recordsFile = (folder: string): string => join(folder, "runs.json");

/** Adds an entry, and drops those whose files have gone. */
function addRecord(folder: string, name: string, record: Records): void {
  const file = recordsFile(folder);
  const unlock = lock(file);
  try {
    const kept = Object.entries(readRecords(file)).filter(
      ([other]) => other !== name && existsSync(join(folder, `${other}.json`)),
    );
    writeWhole(file, formatRecords(Object.fromEntries([...kept, [name, record]])));
  } finally {
    unlock();
  }
}

/** Whether `file` holds answers of a run that came to its end, as far as one can know. */
function isWhole(file: string): boolean {
  if (!statSync(file, { throwIfNoEntry: false })?.isFile()) return false;
  const text = readFileSync(file);
  if (!/\d/.test(text.toString("latin1"))) return false;
  const records = existsSync(recordsFile(dirname(file)))
    ? readRecords(recordsFile(dirname(file)))
    : {};
  const record = records[basename(file, ".json")];
  if (!isObject(record) || record["sha256"] !== sha256(text)) return true;
  const runs = Array.isArray(record["runs"]) ? record["runs"] : [];
  return !runs.some((run) => isObject(run) && run["interrupted"] === true);
}

/** `hasRecord` is false for a file by itself, beside which there is no `runs.json`. */
type Shelf = { readonly folder: string; readonly hasRecord: boolean; readonly session: string };

/**
 * Writes the runs of a set-up, and how they were made. Runs without an answer, or interrupted, do
 * not replace whole ones, but stand beside them. Returns where they are. Throws RunError.
 */
function store(measured: Measured, { folder, hasRecord, session }: Shelf): string {
  const { name, runs } = measured;
  const file = join(folder, `${name}.json`);
  const text = formatTimes(runs);
  const isPartial = runs.some(({ interrupted }) => interrupted) || !/\d/.test(text);
  if (isPartial && isWhole(file)) {
    const partial = join(folder, `${name}.partial.json`);
    writeWhole(partial, text);
    return `${partial} (${file} stays as it was)`;
  }
  writeWhole(file, text);
  if (hasRecord) addRecord(folder, name, recordOf(measured, session, text));
  return file;
}

// ─── Display ─────────────────────────────────────────────────────────────────
// Where the whole call stands, on standard error: a live line on a terminal, elsewhere a line a run
// and a sign of life now and then.

const LIVE_MS = 250;
const HEARTBEAT_MS = 30_000;
/** What a terminal that does not say its width is taken to have. */
const USUAL_COLUMNS = 80;

class Display {
  readonly #runs: number;
  readonly #quiet: boolean;
  readonly #startedAt = performance.now();
  readonly #isLive = process.stderr.isTTY && process.env["TERM"] !== "dumb";
  #done = 0;

  /** There are `runs` runs in all. */
  constructor(runs: number, quiet: boolean) {
    this.#runs = runs;
    this.#quiet = quiet;
  }

  /** Shows where `run` stands until the returned function is called with what came of it. */
  watch(name: string, run: Run, lastArrival: number): (outcome?: Observed) => void {
    if (this.#quiet) return () => undefined;
    const lineOf = (columns: number): string => {
      const { progress } = run;
      const left = this.#left(progress, lastArrival);
      return liveLine({ name, run: this.#done + 1, runs: this.#runs, left }, progress, columns);
    };
    const show = (): void => {
      const columns = process.stderr.columns || USUAL_COLUMNS;
      if (this.#isLive) process.stderr.write(`\r\x1b[K${paint(lineOf(columns))}`);
      else process.stderr.write(`${lineOf(Infinity)}\n`);
    };
    const timer = setInterval(show, this.#isLive ? LIVE_MS : HEARTBEAT_MS);
    return () => {
      clearInterval(timer);
      const last = lineOf(Infinity);
      this.#done += 1;
      process.stderr.write(this.#isLive ? "\r\x1b[K" : `${last}\n`);
    };
  }

  /** Seconds until the last run is done: others take as long as those before them, or this one. */
  #left(progress: Progress, lastArrival: number): number | undefined {
    const left = secondsLeft(progress, lastArrival);
    if (left === undefined) return undefined;
    const elapsed = (performance.now() - this.#startedAt) / 1000 - progress.seconds;
    const usual = this.#done > 0 ? elapsed / this.#done : progress.seconds + left;
    return left + usual * Math.max(0, this.#runs - this.#done - 1);
  }
}

// ─── Session ─────────────────────────────────────────────────────────────────
// One call of this script: one run, or the runs of each entry of --compare at each rate, and what
// Ctrl-C does at any moment of it.

const INTERRUPTED = 130;

/** The runs of one folder: one rate. */
export type Series = { readonly folder: string; readonly plan: Workload };

export type Job = {
  /** More than one only with --compare: a rate each. */
  readonly series: readonly Series[];
  /** Without entries, one run against `target`. */
  readonly entries: readonly Entry[];
  readonly seeds: readonly number[];
  readonly lab: Lab;
  readonly target: Address;
  /** Undefined where the file has no `runs.json` beside it. */
  readonly name: string | undefined;
  readonly json: boolean;
  readonly quiet: boolean;
  /** The page of --admin is to be named, with what to try there. */
  readonly hasPage: boolean;
};

/** Whom one run asks. */
type Target = {
  readonly addresses: readonly Address[];
  readonly children: Children | undefined;
  readonly started: Started | undefined;
};

/** What a folder's runs have come to so far: whole seeds, and those of a seed that is not done. */
type Harvest = { readonly whole: Map<string, Outcome[]>; readonly begun: Map<string, Outcome[]> };

const PLAIN_NAME = "response_times";

class Session {
  readonly #job: Job;
  readonly #id = randomBytes(8).toString("hex");
  readonly #display: Display;
  readonly #summaries: (Summary & { file: string | null })[] = [];
  readonly #unlocks: (() => void)[] = [];
  readonly #written: string[] = [];
  #interrupted = false;
  #failedToWrite = false;
  #run: Run | undefined;
  #children: Children | undefined;
  /** Puts away what the folder at hand has come to; once. */
  #putAway: () => void = () => undefined;

  constructor(job: Job) {
    this.#job = job;
    const { entries, seeds, series } = job;
    const rounds = roundsOf(entries, seeds).reduce((sum, round) => sum + round.entries.length, 0);
    this.#display = new Display(Math.max(1, rounds) * series.length, job.quiet);
    const interrupt = (): void => this.#interrupt();
    onStopSignals(interrupt, () => process.exit(INTERRUPTED));
    process.on("SIGHUP", interrupt); // the terminal has gone
    process.on("exit", () => this.#leave());
  }

  /** Everything, to the exit code. Throws RunError. */
  async carryOut(): Promise<number> {
    const { series, json } = this.#job;
    for (const { folder } of series) this.#reserve(folder);
    let failure: unknown;
    try {
      for (const each of series) if (!this.#interrupted) await this.#carryOutSeries(each);
    } catch (error) {
      failure = error;
    }
    if (json) this.#printJson();
    else this.#sayWhere();
    if (failure !== undefined) throw failure;
    return this.#exitCode();
  }

  get #isComparing(): boolean {
    return this.#job.entries.length > 0;
  }

  get #isEndless(): boolean {
    return this.#job.series.some(({ plan }) => plan.clients === 0);
  }

  #exitCode(): number {
    if (this.#failedToWrite) return 1;
    if (this.#isEndless) return 0;
    if (this.#interrupted) return INTERRUPTED;
    return this.#summaries.every(({ answered, planned }) => answered === planned) ? 0 : 1;
  }

  /** At the very end, even after an error or a second Ctrl-C. */
  #leave(): void {
    this.#children?.kill();
    this.#putAway();
    for (const unlock of this.#unlocks) unlock();
  }

  /** Nothing is to stop us from writing what will have been measured. Throws RunError. */
  #reserve(folder: string): void {
    const { entries, name = PLAIN_NAME } = this.#job;
    for (const each of this.#isComparing ? entries : [{ name }]) {
      const file = join(folder, `${each.name}.json`);
      checkWritable(file);
      this.#unlocks.push(lock(file));
    }
  }

  async #carryOutSeries(series: Series): Promise<void> {
    const harvest: Harvest = { whole: new Map(), begun: new Map() };
    let isDone = false;
    this.#putAway = () => {
      if (!isDone) this.#putAwayAll(series, harvest);
      isDone = true;
    };
    try {
      if (this.#isComparing) await this.#compare(series, harvest);
      else await this.#askTarget(series, harvest);
    } finally {
      this.#putAway();
    }
  }

  async #askTarget({ plan }: Series, { whole }: Harvest): Promise<void> {
    const { target, name = PLAIN_NAME, seeds } = this.#job;
    const [seed = 0] = seeds;
    const addresses = await resolveAddresses(target);
    const asked = { addresses, children: undefined, started: undefined };
    const nextSeed = seedsFrom(seed);
    const visits = drawVisits(plan, nextSeed);
    whole.set(name, [await this.#measure(name, seed, plan, visits, asked)]);
  }

  /** Seed by seed; what an interrupted seed has come to is not part of the whole. */
  async #compare({ plan }: Series, { whole, begun }: Harvest): Promise<void> {
    const { entries, seeds } = this.#job;
    for (const { seed, entries: inTurn } of roundsOf(entries, seeds)) {
      begun.clear();
      for (const entry of inTurn) {
        if (this.#interrupted) return;
        const outcome = await this.#measureEntry(entry, seed, plan);
        if (outcome) begun.set(entry.name, [outcome]);
      }
      const outcomes = [...begun.values()].flat();
      if (outcomes.length < inTurn.length || outcomes.some((run) => run.interrupted)) return;
      for (const [name, runs] of begun) whole.set(name, [...(whole.get(name) ?? []), ...runs]);
      begun.clear();
    }
  }

  /** Starts everything afresh for one entry, and stops it again. */
  async #measureEntry(entry: Entry, seed: number, plan: Workload): Promise<Outcome | undefined> {
    const children = new Children();
    this.#children = children;
    const nextSeed = seedsFrom(seed);
    const visits = drawVisits(plan, nextSeed);
    try {
      const started = await startEntry(children, entry, this.#job.lab, nextSeed).catch(
        (error: unknown) => {
          if (!this.#interrupted) throw error;
          return undefined; // it did not start because we stopped it
        },
      );
      if (!started) return undefined;
      if (this.#job.hasPage) this.#sayWhatToTry(children);
      const target = { addresses: [started.address], children, started };
      return await this.#measure(entry.name, seed, plan, visits, target);
    } finally {
      await children.stop();
    }
  }

  /** Carries out one plan against `target`. */
  async #measure(
    name: string,
    seed: number,
    plan: Workload,
    visits: Visits,
    { addresses, children, started }: Target,
  ): Promise<Outcome> {
    const run = new Run(addresses, visits, { ...plan, numbered: children !== undefined });
    this.#run = run;
    if (this.#interrupted) run.stop();
    await children?.stalls(); // from here on they count
    const cancelFaults = children && started ? scheduleFaults(children, started, plan) : undefined;
    const hide = this.#display.watch(name, run, visits.lastArrival);
    const observed = await run.start().finally(() => {
      hide();
      cancelFaults?.();
      this.#run = undefined;
    });
    const stalls = (await children?.stalls()) ?? new Map<string, number>();
    const lost = children?.lost ?? [];
    const disturbed = [
      ...disturbances(observed, stalls),
      ...lost.map((label) => `${label} ended in the middle of the run`),
    ];
    warnOf(name, seed, disturbed);
    const address = addresses.map(formatAddress).join(" or ");
    return { ...observed, seed, address, simulated: false, disturbed };
  }

  /** Writes and prints what the folder's runs have come to. */
  #putAwayAll({ folder, plan }: Series, { whole, begun }: Harvest): void {
    for (const [name, runs] of whole) {
      const measured = this.#measuredOf(name, plan, runs);
      this.#report(measured, this.#store(measured, folder));
    }
    if (whole.size > 0) return;
    for (const [name, runs] of begun) this.#report(this.#measuredOf(name, plan, runs), null);
  }

  #measuredOf(name: string, plan: Workload, runs: readonly Outcome[]): Measured {
    const { entries, seeds, lab } = this.#job;
    const entry = entries.find((each) => each.name === name);
    const asked = roundsOf(entries, seeds).filter(
      (round) => entry && round.entries.includes(entry),
    );
    const setup = entry ? setupOf(entry, lab) : BY_HAND;
    return { name, setup, plan, runsAsked: Math.max(1, asked.length), runs };
  }

  /** Where it was written; null where it could not be, which has been said then. */
  #store(measured: Measured, folder: string): string | null {
    const hasRecord = this.#isComparing || this.#job.name !== undefined;
    try {
      const file = store(measured, { folder, hasRecord, session: this.#id });
      this.#written.push(file);
      return file;
    } catch (error) {
      if (!(error instanceof Error)) throw error;
      const message = error instanceof RunError ? error.message : reasonOf(error);
      console.error(message);
      this.#failedToWrite = true;
      return null;
    }
  }

  #report(measured: Measured, file: string | null): void {
    const summary = summarise(measured);
    const { json, quiet } = this.#job;
    if (!json && !quiet)
      console.log(`${this.#summaries.length > 0 ? "\n" : ""}${formatSummary(summary)}`);
    this.#summaries.push({ ...summary, file });
  }

  #printJson(): void {
    const shown = this.#isComparing ? this.#summaries : this.#summaries[0];
    if (shown !== undefined) console.log(JSON.stringify(shown, null, 2));
  }

  #sayWhere(): void {
    if (this.#job.quiet || this.#written.length === 0) return;
    console.log(`\nWritten: ${this.#written.join(", ")}`);
    if (this.#isComparing) for (const line of drawingCommands(this.#job)) console.log(line);
  }

  #sayWhatToTry(children: Children): void {
    const [, page = ""] = /^Admin on (\S+)/m.exec(children.get(BALANCER).said) ?? [];
    const last = this.#job.lab.servers.length - 1;
    const { pid } = children.get(serverLabel(last));
    console.error(
      `Open ${page} and watch. Switch the algorithm there, and look at p95; drain a server;\n` +
        `stop one: kill -STOP ${pid} (and on again: kill -CONT ${pid}). Ctrl-C ends it all.`,
    );
  }

  #interrupt(): void {
    this.#interrupted = true;
    if (this.#run) this.#run.stop();
    else void this.#children?.stop();
  }
}

const drawVisits = ({ clients, maxRequests, rate }: Workload, nextSeed: () => number): Visits =>
  clients === 0
    ? endlessVisits(maxRequests, rate, nextSeed)
    : visitsOf(drawPlan(clients, maxRequests, rate, nextSeed));

const BY_HAND: Setup = { algorithm: null, options: [], servers: null, balancers: 1 };

const setupOf = ({ algorithm = "baseline", balancerOptions }: Entry, { servers }: Lab): Setup => ({
  algorithm,
  options: balancerOptions,
  servers: algorithm === "baseline" ? servers.slice(0, 1) : servers,
  balancers: 1,
});

function warnOf(name: string, seed: number, disturbed: readonly string[]): void {
  if (disturbed.length === 0) return;
  console.error(
    `Warning: ${name}, seed ${seed}, was disturbed: ${disturbed.join("; ")}. Its times may be ` +
      `too long by as much. To repeat it: --seed ${seed}`,
  );
}

/** A word of a command line that a shell reads as it is. */
const shellWord = (word: string): string =>
  /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", `'\\''`)}'`;

/** How to draw what was written. */
function drawingCommands({ series, entries }: Job): string[] {
  const script = fileURLToPath(new URL("generate_graphs.ts", import.meta.url));
  const draw = `To draw it: npx tsx ${shellWord(relative(".", script))}`;
  const [first] = series;
  if (!first) return [];
  if (series.length > 1) return [`${draw} --curve ${shellWord(dirname(first.folder))}`];
  const ours = entries.map(({ name }) => shellWord(join(first.folder, `${name}.json`)));
  const others = Object.keys(readRecords(recordsFile(first.folder))).filter(
    (name) => !entries.some((entry) => entry.name === name),
  );
  const files = others.length > 0 ? ours.join(" ") : `--data ${shellWord(first.folder)}`;
  const { fail, hang } = first.plan;
  const overTime = fail || hang ? [`${draw} ${ours.join(" ")} --over-time`] : [];
  return [`${draw} ${files}`, ...overTime];
}

// ─── Command line ────────────────────────────────────────────────────────────

const plainName: Kind<string> = {
  expected: "a plain file name other than runs",
  read(text) {
    const name = text.replace(/\.json$/, "");
    return /^(?!(\.{1,2}|runs)$)[^/\\\p{Cc}]+$/u.test(name) ? name : undefined;
  },
};
/** A value of `kind`, or a list of them with commas between; `each` says what they are for. */
const listOf = <T>(kind: Kind<T>, each: string): Kind<readonly T[]> => ({
  expected: `${kind.expected}, or a list of them, one a ${each}, with commas between`,
  read(text) {
    const values = text
      .split(",")
      .map(kind.read)
      .filter((value) => value !== undefined);
    return values.length === text.split(",").length ? values : undefined;
  },
});
const sleeps = listOf(amount("seconds"), "server");

/** `FROM-TO`, in seconds of a run. */
const secondsWindow: Kind<Window> = {
  expected: "FROM-TO in seconds, such as 4-8",
  read(text) {
    const seconds = amount("seconds");
    const [, first = "", second = ""] = /^([\d.]+)-([\d.]+)$/.exec(text) ?? [];
    const from = seconds.read(first);
    const to = seconds.read(second);
    return from === undefined || to === undefined || from >= to ? undefined : { from, to };
  },
};

/** A slow phase, or `-` for a server that has none. */
const slowOrNot: Kind<Slow | null> = {
  expected: slowPhase.expected,
  read: (text) => (text === "-" ? null : slowPhase.read(text)),
};

const adminAddress: Kind<string> = {
  expected: BALANCER_OPTIONS.admin.kind.expected,
  read: (text) => (BALANCER_OPTIONS.admin.kind.read(text) === undefined ? undefined : text),
};

export const OPTIONS = {
  host: { kind: hostName, value: "HOST", help: "whom to ask (default 127.0.0.1)" },
  port: { kind: wholeNumber(1, 65535), value: "PORT", help: "and where (default 65432)" },
  name: {
    kind: plainName,
    value: "NAME",
    help: "write DIR/NAME.json (default: response_times.json here)",
  },
  seed: {
    kind: seedNumber,
    value: "N",
    fallback: "1",
    help: "the plan: how many requests each client makes, when it arrives, the luck of each request",
  },
  runs: {
    kind: wholeNumber(1, 10_000),
    value: "K",
    help: "with --compare: so many runs, with the seeds N to N+K-1 (default 1)",
  },
  rate: {
    kind: listOf(amount("clients a second"), "folder"),
    value: "R",
    fallback: "0",
    help: "clients arriving a second, Poisson; 0 = all at once; a list with --compare: DIR/rate-R/",
  },
  reconnect: { help: "a new connection for every request" },
  timeout: {
    kind: someSeconds,
    value: "SECONDS",
    fallback: "30",
    help: "for one answer, connecting included",
  },
  compare: {
    kind: anyText,
    value: "LIST",
    help: 'start servers and the balancer afresh for each of: baseline, ALGORITHM, "ALGORITHM --balancer-option ...", all; write DIR/Baseline.json, ...',
  },
  servers: {
    kind: wholeNumber(1, 100),
    value: "N",
    help: "how many (default 5); the baseline is the first of them alone",
  },
  mean: {
    kind: sleeps,
    value: "SECONDS",
    help: "of these servers' sleeps; one, or a list with one a server (default 0.5)",
  },
  sd: { kind: sleeps, value: "SECONDS", help: "their standard deviation, likewise (default 0.2)" },
  slots: {
    kind: listOf(wholeNumber(1), "server"),
    value: "N",
    help: "connections that each of them serves at once, likewise (default 10)",
  },
  weights: {
    kind: listOf(wholeNumber(1, 1000), "server"),
    value: "LIST",
    help: "their weights, likewise (default 1)",
  },
  slow: {
    kind: listOf(slowOrNot, "server"),
    value: "FROM-TO:MEAN",
    help: "another mean for the last server, from one second to another after its start; or a list, - for none",
  },
  fail: {
    kind: secondsWindow,
    value: "FROM-TO",
    help: "with --compare: the last server is killed, and started again, in these seconds of each run",
  },
  hang: {
    kind: secondsWindow,
    value: "FROM-TO",
    help: "with --compare: the last server stands still from one second of each run to another",
  },
  addresses: {
    kind: wholeNumber(1, 60_000),
    value: "N",
    help: "with --compare: clients come from so many loopback addresses in turn (default 1)",
  },
  admin: {
    kind: adminAddress,
    value: "[HOST:]PORT",
    help: "with --compare: the admin interface of each balancer in turn",
  },
  data: {
    kind: anyText,
    value: "DIR",
    help: "where --name and --compare write (default data; --compare: data/compare)",
  },
  json: { help: "the summary as JSON in place of the table; an array with --compare" },
  quiet: { help: "no live line, no table" },
} as const;

type Given = Values<typeof OPTIONS>;

/** Options that would silently do nothing are refused. */
function checkTogether(values: Given): void {
  const refuse = (names: readonly (keyof typeof OPTIONS)[], expected: string): void => {
    const name = names.find((name) => values[name] !== undefined);
    if (name) throw new UsageError(`Bad option "--${name}": expected only ${expected}`);
  };
  if (values.compare === undefined) {
    const started = ["servers", "mean", "sd", "slots", "weights", "slow", "fail", "hang"] as const;
    refuse(started, "with --compare, which starts the servers");
    refuse(["runs", "addresses", "admin"], "with --compare");
  } else {
    refuse(["host", "port", "name"], "without --compare, which starts and names what it asks");
  }
  if (values.compare === undefined && values.name === undefined)
    refuse(["data"], "with --name or --compare");
}

/** The value of each of `servers` servers. Throws UsageError when a list gives more or fewer. */
function spread<T>(name: string, values: readonly T[], servers: number): T[] {
  if (values.length !== 1 && values.length !== servers)
    throw new UsageError(
      `Bad --${name} ${JSON.stringify(values.join())}: expected one value, or one for each of ${servers} servers`,
    );
  return Array.from({ length: servers }, (_, i) => values[i % values.length]!);
}

function labOf(values: Given): Lab {
  const { servers = 5, mean = [0.5], sd = [0.2], slots = [10], weights = [1], admin } = values;
  const means = spread("mean", mean, servers);
  const sds = spread("sd", sd, servers);
  const places = spread("slots", slots, servers);
  const shares = spread("weights", weights, servers);
  const slow = slowPhases(values, servers);
  return {
    servers: means.map((mean, i) => ({
      mean,
      sd: sds[i]!,
      slots: places[i]!,
      weight: shares[i]!,
      slow: slow[i]!,
    })),
    balancerOptions: admin === undefined ? [] : ["--admin", admin],
  };
}

/** One phase alone is the last server's. */
function slowPhases({ slow = [null] }: Given, servers: number): (Slow | null)[] {
  if (slow.length > 1) return spread("slow", slow, servers);
  const [phase = null] = slow;
  return Array.from({ length: servers }, (_, i) => (i === servers - 1 ? phase : null));
}

/** Throws UsageError when a sweep has a rate twice, or one that is none, or has nothing to sweep. */
function checkRates({ rate, compare }: Given): void {
  const bad = (expected: string): never => {
    throw new UsageError(`Bad --rate ${JSON.stringify(rate.join())}: expected ${expected}`);
  };
  if (rate.length === 1) return;
  if (compare === undefined) bad("one rate; several only with --compare");
  if (rate.includes(0)) bad("rates above 0 in a list");
  if (new Set(rate).size < rate.length) bad("each rate once");
}

/** A run without an end is one run of one set-up, whose clients do not all come at once. */
function checkEndless({ rate, compare, runs }: Given, entries: readonly Entry[]): void {
  const bad = (expected: string): never => {
    throw new UsageError(`Bad clients "0": expected ${expected}`);
  };
  if (rate.length > 1 || rate[0] === 0)
    bad("at least 1, or one --rate above 0 for a run without an end");
  if (compare !== undefined && entries.length > 1) bad("one entry of --compare without an end");
  if (runs !== undefined) bad("no --runs without an end");
}

/** Descriptors that this process may have open; Infinity where the system does not say. */
function descriptorLimit(): number {
  try {
    const limits = readFileSync("/proc/self/limits", "utf8");
    return Number(/^Max open files\s+(\d+)/m.exec(limits)?.[1] ?? Infinity);
  } catch {
    return limitOfShell();
  }
}

function limitOfShell(): number {
  try {
    const said = execFileSync("sh", ["-c", "ulimit -n"], { encoding: "utf8", stdio: "pipe" });
    return Number(said) || Infinity;
  } catch {
    return Infinity;
  }
}

/** What this process, or a balancer, has open besides its clients. */
const OTHER_DESCRIPTORS = 60;

/**
 * More clients at once than there are descriptors for cannot be; more in all may be, if they come
 * one after the other. Throws UsageError.
 */
export function checkDescriptors(plan: Workload, hasBalancer: boolean, limit: number): void {
  const each = hasBalancer ? 2 : 1; // a balancer's other side
  const most = Math.max(0, Math.floor((limit - OTHER_DESCRIPTORS) / each));
  if (plan.clients <= most) return;
  const allows = `the limit of ${limit} file descriptors allows ${most} clients at once`;
  if (plan.rate === 0)
    throw new UsageError(
      `Bad clients "${plan.clients}": expected fewer: ${allows}; raise it with ulimit -n`,
    );
  console.error(`Warning: ${allows}, and ${plan.clients} are to come; raise it with ulimit -n`);
}

function seriesOf(clients: number, maxRequests: number, values: Given): Series[] {
  const { rate, reconnect, timeout, addresses = 1, fail = null, hang = null, compare } = values;
  const { name, data = compare === undefined ? "data" : join("data", "compare") } = values;
  const folder = compare === undefined && name === undefined ? "." : data;
  return rate.map((each) => ({
    folder: rate.length > 1 ? join(folder, `rate-${each}`) : folder,
    plan: { clients, maxRequests, rate: each, reconnect, timeout, addresses, fail, hang },
  }));
}

/** All that is to be done, checked before anything is started. Throws UsageError. */
export function readJob(positionals: readonly string[], values: Given): Job {
  const { clients, maxRequests } = readCounts(positionals);
  checkTogether(values);
  checkRates(values);
  const { seed, runs = 1, compare, name, json, quiet, admin } = values;
  const { host = "127.0.0.1", port = 65432 } = values;
  if (seed + runs > 2 ** 32)
    throw new UsageError(`Bad --runs "${runs}": expected seeds up to ${2 ** 32 - 1}`);
  const entries = compare === undefined ? [] : parseEntries(compare);
  if (clients === 0) checkEndless(values, entries);
  return {
    series: seriesOf(clients, maxRequests, values),
    entries,
    seeds: Array.from({ length: runs }, (_, i) => seed + i),
    lab: labOf(values),
    target: { host, port },
    name,
    json,
    quiet,
    hasPage: admin !== undefined && clients === 0,
  };
}

function readCounts(positionals: readonly string[]): { clients: number; maxRequests: number } {
  const [clientsText, requestsText, extra] = positionals;
  if (clientsText === undefined) throw new UsageError("");
  const clients = readValue("clients", wholeNumber(0, MOST_CLIENTS), clientsText);
  const requestNumber = wholeNumber(1, 1_000_000);
  if (requestsText === undefined)
    throw new UsageError(
      `Missing max_requests after ${JSON.stringify(clientsText)}: expected ${requestNumber.expected}`,
    );
  const maxRequests = readValue("max_requests", requestNumber, requestsText);
  if (extra !== undefined)
    throw new UsageError(
      `Bad argument ${JSON.stringify(extra)}: expected clients and max_requests only`,
    );
  return { clients, maxRequests };
}

async function main(positionals: string[], values: Given): Promise<number> {
  const job = readJob(positionals, values);
  const hasBalancer = job.entries.some(({ algorithm }) => algorithm !== undefined);
  const limit = descriptorLimit();
  for (const { plan } of job.series) checkDescriptors(plan, hasBalancer, limit);
  return new Session(job).carryOut();
}

if (isMain(import.meta))
  void runScript({
    usage: "How to Use: tsx stress_test.ts [clients] [max_requests]",
    options: OPTIONS,
    main,
  });
