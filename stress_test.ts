#!/usr/bin/env -S node --import tsx
/**
 * stress_test.ts - many clients at once, and how long each of them waited.
 *
 * Draws a plan (how many requests each client makes, when it arrives), carries it out against a
 * server or a balancer, and writes the answered requests as JSON: an array (client, in the plan's
 * order) of arrays (request) of seconds, rounded to microseconds. Failures are counted by kind,
 * never recorded as times. With --compare it starts servers and balancer itself and carries out the
 * same plans against each set-up; `runs.json` beside the files says how each was made.
 *
 *   tsx stress_test.ts 20 5
 *   tsx stress_test.ts 1000 5 --rate 30 --timeout 300 --name RoundRobin
 *   tsx stress_test.ts 500 5 --rate 300 --mean 0.05 --sd 0.02 --runs 6 --compare all
 *   tsx stress_test.ts 500 5 --rate 300 --compare "random,random --server-connections 10"
 */
import { type ChildProcess, spawn } from "node:child_process";
import { createHash, randomBytes } from "node:crypto";
import { once } from "node:events";
import fs from "node:fs";
import { tmpdir } from "node:os";
import { basename, dirname, join, relative, resolve } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { Client, type FailureKind, failureKinds, noErrors } from "./client.ts";
import { RequestError, resolveAddresses } from "./client.ts";
import { type Address, formatAddress, hostName, parseAddress } from "./lib.ts";
import { amount, anyText, type Kind, readValue, seedNumber, someSeconds } from "./lib.ts";
import { carries, LONGEST_TIMER, mulberry32, quantile, wholeNumber } from "./lib.ts";
import { isMain, onStopSignals, parseCommandLine, runScript, type Values } from "./lib.ts";
import { reasonOf, RunError, UsageError } from "./lib.ts";
import { ALGORITHMS, answered, asked, asks, type Attempt, type Clock } from "./load_balancer.ts";
import { type CheckResult, type CheckSpec, judge, ownPortOf, questionOf } from "./load_balancer.ts";
import { completed, Deadlines, Dispatcher, firstCheckIn, forgotten } from "./load_balancer.ts";
import { given, type LoadBalancerOptions, option, parseServers } from "./load_balancer.ts";
import { OPTIONS as BALANCER_OPTIONS, type Stage as ConnectionStage } from "./load_balancer.ts";
import { type Probe, Server, type ServerSpec, sweepPeriod } from "./load_balancer.ts";
import type { Traveller } from "./load_balancer.ts";
import { countPings, drawSleep, nothingAsked, type Slow, slowPhase } from "./server.ts";

const MOST_CLIENTS = 100_000; // of a run; one without an end keeps as many for its file
const MOST_VIRTUAL = { clients: 10_000_000, pairs: 1_000_000 }; // pairs: a balancer and a server

type Numbers<Names extends string> = Readonly<Record<Names, number>>;
const sumOf = (numbers: readonly number[]): number => numbers.reduce((sum, n) => sum + n, 0);

// ─── Plan ────────────────────────────────────────────────────────────────────
// Pure, and drawn before the start, so that every set-up is asked the same.

/** By client, as in the file; arrivals ascend, in seconds. `luck` is the seed of their numbers. */
export type Plan = Readonly<Record<"requests" | "arrivals", readonly number[]> & { luck: number }>;

type Visit = Numbers<"requests" | "arrival">;
/** Who comes in a run, in turn. One without an end has Infinity clients, and nothing planned. */
export type Visits = Numbers<"clients" | "planned" | "lastArrival" | "luck"> & {
  readonly next: () => Visit | undefined;
};

/** Seeds for the streams of one run, always in this order: requests, arrivals, luck, the balancer,
 *  each server. So no two streams are the same, and more of one leaves the others as they were. */
export function seedsFrom(seed: number): () => number {
  const random = mulberry32(seed);
  return () => Math.floor(random() * 2 ** 32);
}

/** A client per call: 1 to `max` requests, uniform; `rate` a second (Poisson), 0: all at once. */
function visitsFrom(max: number, rate: number, nextSeed: () => number): () => Visit {
  const randomRequests = mulberry32(nextSeed());
  const randomArrivals = mulberry32(nextSeed());
  let arrival = 0;
  return () => {
    if (rate > 0) arrival -= Math.log(1 - randomArrivals()) / rate;
    return { requests: 1 + Math.floor(randomRequests() * max), arrival };
  };
}

export function drawPlan(clients: number, max: number, rate: number, nextSeed: () => number): Plan {
  const nextVisit = visitsFrom(max, rate, nextSeed);
  const requests: number[] = []; // two lists of numbers: no object stays for each client
  const arrivals: number[] = [];
  while (requests.length < clients) {
    const visit = nextVisit();
    requests.push(visit.requests);
    arrivals.push(visit.arrival);
  }
  return { requests, arrivals, luck: nextSeed() };
}

export function visitsOf({ requests, arrivals, luck }: Plan): Visits {
  const coming = arrivals.map((arrival, i) => ({ arrival, requests: requests[i] ?? 0 })).values();
  const next = (): Visit | undefined => coming.next().value;
  const planned = sumOf(requests);
  return { clients: requests.length, planned, lastArrival: arrivals.at(-1) ?? 0, luck, next };
}

export function endlessVisits(max: number, rate: number, nextSeed: () => number): Visits {
  const next = visitsFrom(max, rate, nextSeed);
  return { clients: Infinity, planned: 0, lastArrival: 0, luck: nextSeed(), next };
}

/** The numbers of a client's requests, one after the other. A server draws its sleep from the
 *  number, so the same request costs the same under every algorithm. */
export const numbersOf = (luck: number, client: number): (() => number) =>
  seedsFrom(luck + Math.imul(client + 1, 0x9e3779b1));

// ─── Entries of --compare ────────────────────────────────────────────────────
// Pure: what to start for each entry, the name of its file, and whose turn it is when.

export type Entry = {
  readonly name: string;
  readonly algorithm: string | undefined; // none: the baseline is one server without a balancer
  readonly balancerOptions: readonly string[];
};

const ALL: readonly string[] = ["baseline", ...ALGORITHMS];
const UNQUOTED = "(?=(?:[^']*'[^']*')*[^']*$)"; // has an even number of quotes behind it

const badEntry = (text: string, complaint: string): UsageError =>
  new UsageError(`Bad --compare entry ${JSON.stringify(text)}: ${complaint}`);

/** `baseline`, `random --fall 5`, `all`, ... with commas between them. Throws UsageError. */
export function parseEntries(list: string): Entry[] {
  const isOpen = list.split("'").length % 2 === 0;
  if (isOpen) throw badEntry(list, "expected another ' that ends what the first one begins");
  const texts = list.split(RegExp(`,${UNQUOTED}`)).map((text) => text.trim());
  const named = texts.flatMap((text) => (text === "all" ? ALL : [text]));
  const entries = named.map(parseEntry);
  const files = entries.map(({ name }) => name);
  const twice = named.find((_, place) => files.indexOf(files[place] ?? "") !== place);
  if (twice !== undefined) throw badEntry(twice, "expected each entry once");
  return entries;
}

/** Its name is `LeastConnections-fall-5` for `least-connections --fall 5`. */
function parseEntry(text: string): Entry {
  const words = text.split(RegExp(`\\s${UNQUOTED}`)).filter(Boolean);
  const [first = "", ...balancerOptions] = words.map((word) => word.replaceAll("'", ""));
  const complaint = complaintAbout(first, balancerOptions);
  if (complaint !== undefined) throw badEntry(text, complaint);
  const pascal = first.replace(/(?:^|-)([a-z])/g, (_, letter: string) => letter.toUpperCase());
  const plain = balancerOptions.map((word) => word.replace(/^-+/, "").replace(/[^\w.]+/g, "-"));
  const algorithm = first === "baseline" ? undefined : first;
  return { name: [pascal, ...plain].join("-"), algorithm, balancerOptions };
}

/** Ours, or what the balancer would say of its options, before anything is started. */
function complaintAbout(first: string, options: readonly string[]): string | undefined {
  if (!ALL.includes(first)) return `expected baseline, all, ${ALGORITHMS.join(", ")}`;
  const isIdle = first === "baseline" && options.length > 0;
  if (isIdle) return "expected no options: the baseline has no balancer";
  const ours = options.find((word) => /^--(host|port|servers(-file)?|log|help)(=|$)/.test(word));
  if (ours !== undefined) return `expected no ${ours}: --compare sets it itself`;
  try {
    const [surplus] = parseCommandLine(BALANCER_OPTIONS, options).positionals;
    return surplus && `expected options after the algorithm, not ${JSON.stringify(surplus)}`;
  } catch (error) {
    if (error instanceof UsageError) return error.message;
    throw error;
  }
}

/** Seed by seed, in the opposite order each time, so that a machine that drifts favours nobody. The
 *  baseline says how slow one server is: one run shows it; of two entries it is half of a pair. */
export function roundsOf(entries: readonly Entry[], seeds: readonly number[]) {
  const repeated = entries.length <= 2 ? entries : entries.filter((entry) => entry.algorithm);
  return seeds.map((seed, place) => {
    const takePart = place === 0 ? entries : repeated;
    return { seed, entries: place % 2 === 0 ? takePart : takePart.toReversed() };
  });
}

// ─── What was measured ───────────────────────────────────────────────────────
// What was asked of whom, and what came of it; `runs.json` holds it under these names.

export type Window = { readonly from: number; readonly to: number };
/** What every set-up is asked; `fail` and `hang` are what happens to the last server. */
export type Workload = Numbers<"clients" | "maxRequests" | "rate" | "timeout" | "addresses"> &
  Readonly<Record<"fail" | "hang", Window | null> & { reconnect: boolean }>;
export type ServerSetup = Numbers<"mean" | "sd" | "slots" | "weight"> & {
  readonly slow: Slow | null;
};
/** Whom it was asked; what somebody else has started is unknown: `null`. */
export type Setup = {
  readonly algorithm: string | null;
  readonly options: readonly string[];
  readonly servers: readonly ServerSetup[] | null;
  readonly balancers: number;
};

/** What a run says of itself. */
export type Observed = {
  readonly times: readonly (readonly number[])[];
  readonly planned: number;
  readonly errors: Readonly<Record<FailureKind, number>>;
  readonly firstFailure: string | null;
  readonly firstFailed: readonly number[]; // the places of clients whose first request failed
  readonly seconds: number;
  readonly interrupted: boolean;
  /** The share of time that our loop was busy; in seconds its worst standstill and latest start. */
  readonly tester: Numbers<"utilization" | "stall" | "startLag">;
};

/** `disturbed` says in words what stood still; it is empty when nothing did. */
export type Outcome = Observed &
  Readonly<{ seed: number; address: string; simulated: boolean; disturbed: readonly string[] }>;

/** A set-up and all its runs: what one file holds. */
export type Measured = {
  readonly name: string;
  readonly setup: Setup;
  readonly plan: Workload;
  readonly runsAsked: number;
  readonly runs: readonly Outcome[];
};

const countErrors = (errors: Observed["errors"]): number => sumOf(Object.values(errors));
const plural = (n: number, what: string): string => `${n} ${what}${n === 1 ? "" : "s"}`;

const STANDSTILL = 0.05; // in seconds; one up to this long is what any machine has now and then
type Signs = Pick<Observed, "tester" | "seconds" | "errors">;
/** A run of less than half a second is mostly start-up: how busy the loop was says nothing then. */
const isBottleneck = ({ tester, seconds }: Signs): boolean =>
  tester.utilization > 0.7 && seconds > 0.5;

/** What may have distorted a run: the tester's doing, and who else stood still for how long. */
export function disturbances(run: Signs, stalls: ReadonlyMap<string, number>): string[] {
  const { utilization, startLag, stall } = run.tester;
  const { shortage } = run.errors;
  const busy = `the tester's loop was busy ${Math.round(utilization * 100)} % of the time`;
  const standing = [["the tester", stall] as const, ...stalls].filter(([, s]) => s > STANDSTILL);
  return [
    isBottleneck(run) ? `${busy}, it was the bottleneck` : "",
    startLag > STANDSTILL ? `the tester started a client ${startLag.toFixed(2)} s late` : "",
    ...standing.map(([who, seconds]) => `${who} stood still for ${seconds.toFixed(2)} s`),
    shortage > 0 ? `the tester lacked descriptors or ports for ${plural(shortage, "request")}` : "",
  ].filter(Boolean);
}

// ─── Summary ─────────────────────────────────────────────────────────────────
// Pure: from what runs recorded to what is printed. The table and --json show one and the same.

const percentiles = { p50: 0.5, p90: 0.9, p95: 0.95, p99: 0.99 };
const names = ["p50", "p90", "p95", "p99"] as const;

/** Who failed with its first request has none of them: no later one is it. */
function timesOf(runs: readonly Observed[]) {
  const first: number[] = []; // by push: flat() and flatMap() would make an object of each number
  const later: number[] = [];
  for (const { times, firstFailed } of runs) {
    const failed = new Set(firstFailed);
    times.forEach((of, client) =>
      of.forEach((seconds, place) => {
        const isFirst = place === 0 && !failed.has(client);
        (isFirst ? first : later).push(seconds);
      }),
    );
  }
  // sorted as numbers, without a call for each comparison
  return { first: new Float64Array(first).sort(), later: new Float64Array(later).sort() };
}

/** All of two sorted lists, sorted. */
function merged(one: Float64Array, other: Float64Array): Float64Array {
  const all = new Float64Array(one.length + other.length);
  let i = 0;
  let j = 0;
  while (i + j < all.length) {
    const isFromOne = j === other.length || one[i]! <= other[j]!;
    all[i + j] = isFromOne ? one[i]! : other[j]!;
    if (isFromOne) i += 1;
    else j += 1;
  }
  return all;
}

type Spread = ReturnType<typeof spreadOf>;

/** A figure is `null` where the sample, which is sorted, does not carry it. */
function spreadOf(sorted: Float64Array) {
  const n = sorted.length;
  const at = (p: number): number | null => (carries(n, p) ? quantile(sorted, p) : null);
  return {
    n,
    mean: n > 0 ? sorted.reduce((sum, seconds) => sum + seconds, 0) / n : null,
    p50: at(percentiles.p50),
    p90: at(percentiles.p90),
    p95: at(percentiles.p95),
    p99: at(percentiles.p99),
    max: sorted.at(-1) ?? null,
  };
}

/** Clients a second that `servers` can serve, each of them with (max + 1) / 2 requests. */
export const capacityOf = (servers: readonly Numbers<"slots" | "mean">[], max: number): number =>
  sumOf(servers.map(({ slots, mean }) => slots / (mean * ((max + 1) / 2))));

export type Summary = ReturnType<typeof summarise>;

export function summarise({ name, setup, plan, runsAsked, runs }: Measured) {
  const total = (of: (run: Outcome) => number): number => sumOf(runs.map(of));
  const most = (of: keyof Observed["tester"]) => Math.max(0, ...runs.map((run) => run.tester[of]));
  const errors = noErrors();
  for (const kind of failureKinds) errors[kind] = total((run) => run.errors[kind]);
  const { first, later } = timesOf(runs);
  const all = spreadOf(merged(first, later));
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
    answered: all.n,
    errors,
    firstFailure: runs.find(({ firstFailure }) => firstFailure !== null)?.firstFailure ?? null,
    seconds,
    requestsPerSecond: seconds > 0 ? all.n / seconds : 0,
    interrupted: runs.some(({ interrupted }) => interrupted),
    first: spreadOf(first),
    later: spreadOf(later),
    all,
    bottleneck: runs.some(isBottleneck),
    tester: { utilization: most("utilization"), stall: most("stall"), startLag: most("startLag") },
    disturbed: runs.flatMap(({ seed, disturbed }) => disturbed.map((what) => ({ seed, what }))),
  };
}

/** Three significant digits, and all those before the point. */
export function three(value: number): string {
  if (value >= 100) return value.toFixed(0);
  return value < 1e-6 ? "0" : value.toPrecision(3);
}

export function formatSummary(summary: Summary): string {
  const { answered, planned, seconds, requestsPerSecond, firstFailure, errors } = summary;
  const kinds = failureKinds.filter((kind) => errors[kind] > 0);
  const said = kinds.map((kind) => `${kind} ${errors[kind]}`).join(", ");
  const failures = `errors ${countErrors(errors)}${said && ` (${said})`}`;
  const pace = `${three(requestsPerSecond)} req/s`;
  const lines = [
    headingOf(summary),
    `${answered}/${planned} answered in ${three(seconds)} s   ${pace}   ${failures}`,
  ];
  if (firstFailure !== null) lines.push(`first failure: ${firstFailure}`);
  if (errors.shortage > 0)
    lines.push("a shortage is the tester's own, of descriptors or ports, not the target's failure");
  for (const { seed, what } of summary.disturbed) lines.push(`disturbed, seed ${seed}: ${what}`);
  return [...lines, "", ...table(summary)].join("\n");
}

function headingOf(summary: Summary): string {
  const { name, simulated, seeds, maxRequests, address, servers, shareOfCapacity: share } = summary;
  const isOne = summary.runsAsked === 1;
  const requests = `${maxRequests > 1 ? "1–" : ""}${plural(maxRequests, "request")}`;
  const ofCapacity = share === null ? "" : ` (${Math.round(share * 100)} % of capacity)`;
  const said = [
    `${plural(summary.clients, "client")} × ${requests}`,
    summary.rate === 0 ? "all at once" : `${summary.rate} arriving a second${ofCapacity}`,
    ...(summary.reconnect ? ["a connection each"] : []),
    isOne ? `seed ${summary.seed}` : `${plural(seeds.length, "run")} from seed ${summary.seed}`,
  ];
  const whom = isOne || servers === null ? address : plural(servers, "server");
  return `${name}${simulated ? " (simulated)" : ""}   ${said.join(", ")} → ${whom}`;
}

/** A column for p99 only where the whole run carries it; the first percentile that it does not is
 *  remarked on. In milliseconds where all times are below 0.1 s. A column is as wide as its widest
 *  cell, and never narrower than in an ordinary run. */
function table({ first, later, all, reconnect }: Summary): string[] {
  const shown = names.filter((name) => name !== "p99" || all.p99 !== null);
  const columns = ["mean", ...shown, "max"] as const;
  const unit = all.max !== null && all.max < 0.1 ? "ms" : "s";
  const waits = "includes waiting for a slot";
  const [lacking, p] = Object.entries(percentiles).find(([, p]) => !carries(all.n, p)) ?? [];
  const lack = p ? `${lacking} needs n ≥ ${Math.ceil(Math.log(0.05) / Math.log(p))}` : "";
  const figuresOf = (of: Spread) => [`${of.n}`, ...columns.map((key) => figure(of[key], unit))];
  const rows = [
    { label: `response time (${unit})`, cells: ["n", ...columns], remark: "" },
    { label: "first request", cells: figuresOf(first), remark: waits },
    { label: "later requests", cells: figuresOf(later), remark: reconnect ? waits : "" },
    { label: "all", cells: figuresOf(all), remark: lack },
  ];
  const widths = [6, 8, 8, 7, 7, 7, 7].map((usual, place) =>
    Math.max(usual, ...rows.map(({ cells }) => (cells[place]?.length ?? 0) + 1)),
  );
  return rows.map(({ label, cells, remark }) => {
    const padded = cells.map((cell, place) => cell.padStart(widths[place] ?? 0)).join("");
    return `${label.padEnd(17)}${padded}   ${remark}`.trimEnd();
  });
}

/** At least three significant digits, and in seconds the three decimals that let columns align. */
function figure(seconds: number | null, unit: "s" | "ms"): string {
  if (seconds === null) return "-";
  if (unit === "ms") return three(seconds * 1000);
  if (seconds < 0.1) return three(seconds);
  return seconds.toFixed(seconds < 100 ? 3 : 1);
}

// ─── Progress ────────────────────────────────────────────────────────────────
// Pure: where a run stands, in one line that a terminal shows again and again in its place.

type Stage = "toCome" | "waiting" | "talking" | "done";
/** Where a run stands. Clients not arrived yet are `toCome`; those without an answer so far are
 *  `waiting`. `planned` and `toCome` are Infinity for a run without an end. */
export type Progress = Numbers<"planned" | "answered" | "failed" | "p50" | "seconds" | Stage>;

/** Which run it is among those of this call, and the seconds until all are done, or NaN. */
type Place = Numbers<"run" | "runs" | "left"> & { readonly name: string };

/** What takes two cells of a terminal: East Asian characters (rather some too many), pictures. */
const WIDE =
  /[\u1100-\u115f\u2e80-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\uffe6\u{1f300}-\u{3fffd}]/gu;

/** How many cells of a terminal `text` takes; marks take none. */
export const cellsOf = (text: string): number =>
  [...text.replace(/[\p{M}\p{Cf}]/gu, "").replace(WIDE, "$&$&")].length;

const BAR = 20; // cells
/** What has failed is crossed out, one cell at least. */
function barOf({ planned, answered, failed }: Progress): string {
  if (planned === Infinity) return "";
  const filled = Math.floor((BAR * (answered + failed)) / planned);
  const crossed = failed > 0 ? Math.max(1, Math.floor((BAR * failed) / planned)) : 0;
  const bar = "█".repeat(Math.max(0, filled - crossed)) + "×".repeat(crossed);
  return `  ${bar}${"░".repeat(BAR - bar.length)}`;
}

function shortFigure(seconds: number): string {
  if (Number.isNaN(seconds)) return "- s";
  return seconds < 0.1 ? `${Number(three(seconds * 1000))} ms` : `${Number(three(seconds))} s`;
}

/** Roughly: nobody can know better. */
export function formatLeft(seconds: number): string {
  if (Number.isNaN(seconds) || seconds < 0.5) return "";
  if (seconds < 10) return `   about ${Math.round(seconds)} s left`;
  if (seconds < 90) return `   about ${Math.round(seconds / 5) * 5} s left`;
  return `   about ${Math.round(seconds / 60)} min left`;
}

/** What may be left out of the line where it is too long, the least important first. */
const OPTIONAL = ["left", "p50", "stages", "place", "seconds", "bar"] as const;
/** In fewer than `columns` cells: a line that wraps could not be overwritten. How many failed is
 *  never cut off; where all else is left out already, the name loses its beginning. */
export function liveLine(place: Place, progress: Progress, columns: number): string {
  const { planned, answered, toCome, waiting, talking, done } = progress;
  const coming = toCome > 0 && toCome < Infinity ? `${toCome} to come · ` : "";
  const parts = {
    name: place.name,
    place: place.runs > 1 ? `  run ${place.run} of ${place.runs}` : "",
    bar: columns === Infinity ? "" : barOf(progress), // a file of lines has no use for it
    count: planned === Infinity ? `  ${answered} answered` : ` ${answered}/${planned}`,
    stages: `   ${coming}${waiting} waiting · ${talking} talking · ${done} done`,
    p50: `   p50 ${shortFigure(progress.p50)}`,
    errors: `   errors ${progress.failed}`,
    seconds: `   ${progress.seconds.toFixed(1)} s`,
    left: formatLeft(place.left),
  };
  const room = columns - 1;
  const line = (): string => Object.values(parts).join("").trimStart();
  for (const part of OPTIONAL) if (cellsOf(line()) > room) parts[part] = "";
  const characters = [...line()];
  while (cellsOf(characters.join("")) > room && characters.length > 1) characters.shift();
  return characters.join("");
}

/** Seconds until a run is done: by its share done, before that by its last arrival; else NaN. */
export function secondsLeft(progress: Progress, lastArrival: number): number {
  const { planned, answered, failed, seconds } = progress;
  const share = (answered + failed) / planned;
  if (share >= 0.05) return (seconds * (1 - share)) / share;
  return lastArrival > 0 ? Math.max(0, lastArrival - seconds) : NaN;
}

// ─── Run ─────────────────────────────────────────────────────────────────────
// Sockets: a plan carried out. Each client talks by itself; what they did is counted in one place,
// the run.

const RECENT = 500; // answers that the running median of the live line looks back on
/** A client that our timer started less late than this is timed from its start: the delay is a
 *  timer's coarseness. More is a delay that whoever waits behind us would feel, and counts. */
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

/** `numbered`: each request carries its number; `addresses`: of this machine's, to come from. */
export type RunOptions = Pick<Workload, "timeout" | "reconnect"> &
  Partial<Pick<Workload, "addresses"> & { readonly numbered: boolean }>;

/** The loopback address of a client, none when they all come from the usual one. */
function sourceOf(client: number, addresses = 1): { localAddress?: string } {
  if (addresses <= 1) return {};
  const place = client % addresses;
  return { localAddress: `127.1.${Math.floor(place / 250)}.${1 + (place % 250)}` };
}

/** What came of one client's requests; `left` of them have neither an answer nor failed. */
type Account = Numbers<"place" | "requests"> & { readonly times: number[]; left: number };

/** What has become of a run's clients so far. */
class Tally {
  readonly clients: number; // of the plan; Infinity: without an end
  readonly errors = noErrors();
  arrived = 0;
  done = 0;
  #planned: number;
  #talking = 0;
  #answered = 0;
  #firstFailure: string | null = null;
  readonly #recent: number[] = [];
  readonly #firstFailed: number[] = []; // places, in the order in which they failed
  readonly #times: number[][] = []; // by place; of a run without an end, the last ones
  #dropped = 0; // places before them
  constructor({ clients, planned }: Pick<Visits, "clients" | "planned">) {
    this.clients = clients;
    this.#planned = planned;
  }

  /** A client that will make `requests`. */
  arrives(requests: number): Account {
    const account = { place: this.arrived, requests, times: [], left: requests };
    this.#times.push(account.times);
    this.arrived += 1;
    if (this.clients < Infinity) return account;
    this.#planned += requests;
    if (this.#times.length === 2 * MOST_CLIENTS) {
      this.#times.splice(0, MOST_CLIENTS);
      this.#dropped += MOST_CLIENTS;
    }
    return account;
  }

  answered(account: Account, seconds: number): void {
    const { times } = account;
    account.left -= 1;
    if (times.length === 0) this.#talking += 1;
    times.push(Math.round(seconds * 1e6) / 1e6);
    this.#recent[this.#answered % RECENT] = seconds;
    this.#answered += 1;
  }

  failed(account: Account, kind: FailureKind, message: string): void {
    if (account.left === account.requests) this.#firstFailed.push(account.place);
    account.left -= 1;
    this.errors[kind] += 1;
    if (kind !== "interrupted") this.#firstFailure ??= message;
  }

  leaves({ place, times }: Account): void {
    const index = place - this.#dropped;
    if (index >= 0) this.#times[index] = times.slice(); // without the room that it had to grow
    if (times.length > 0) this.#talking -= 1;
    this.done += 1;
  }

  progress(seconds: number): Progress {
    const recent = this.#recent.toSorted((a, b) => a - b);
    return {
      planned: this.clients === Infinity ? Infinity : this.#planned,
      toCome: this.clients - this.arrived,
      waiting: this.arrived - this.#talking - this.done,
      talking: this.#talking,
      done: this.done,
      answered: this.#answered,
      failed: countErrors(this.errors),
      p50: quantile(recent, 0.5),
      seconds,
    };
  }

  results() {
    const isEndless = this.clients === Infinity;
    const times = isEndless ? this.#times.slice(-MOST_CLIENTS) : this.#times;
    while (!isEndless && times.length < this.clients) times.push([]); // of who has not come
    const gone = Math.max(0, this.arrived - times.length);
    const firstFailed = this.#firstFailed.map((place) => place - gone);
    return {
      times,
      planned: this.#planned,
      errors: this.errors,
      firstFailure: this.#firstFailure,
      firstFailed: firstFailed.filter((place) => place >= 0).sort((a, b) => a - b),
    };
  }
}

export class Run {
  readonly #addresses: readonly Address[]; // they should hold no name
  readonly #visits: Visits;
  readonly #options: RunOptions;
  readonly #tally: Tally;
  readonly #present = new Map<Client, Promise<void>>(); // who is here, and when it has left
  readonly #stopping = new AbortController();
  #startedAt = 0;
  #startLag = 0;

  constructor(addresses: readonly Address[], visits: Visits, options: RunOptions) {
    this.#addresses = addresses;
    this.#visits = visits;
    this.#options = options;
    this.#tally = new Tally(visits);
  }

  /** Fulfilled when every client has left; never rejected because requests fail. */
  async start(): Promise<Observed> {
    const stopWatching = watchLoop();
    this.#startedAt = performance.now();
    await this.#admit();
    await Promise.all(this.#present.values());
    return {
      ...this.#tally.results(),
      seconds: (performance.now() - this.#startedAt) / 1000,
      interrupted: this.#stopping.signal.aborted && this.#visits.clients < Infinity,
      tester: { ...stopWatching(), startLag: this.#startLag / 1000 },
    };
  }

  /** Requests in flight fail as interrupted; those that nobody has made yet count as nothing. */
  stop(): void {
    this.#stopping.abort();
    for (const client of this.#present.keys()) client.close();
  }

  get progress(): Progress {
    return this.#tally.progress((performance.now() - this.#startedAt) / 1000);
  }

  /** Lets each client come when it is due. */
  async #admit(): Promise<void> {
    const { timeout, addresses } = this.#options;
    const { signal } = this.#stopping;
    for (let visit = this.#visits.next(); visit; visit = this.#visits.next()) {
      const due = this.#startedAt + visit.arrival * 1000;
      while (performance.now() < due && !signal.aborted) {
        const ms = Math.min(Math.ceil(due - performance.now()), LONGEST_TIMER);
        await sleep(ms, undefined, { signal }).catch(() => undefined);
      }
      if (signal.aborted) return;
      const lag = performance.now() - due;
      this.#startLag = Math.max(this.#startLag, lag);
      const source = sourceOf(this.#tally.arrived, addresses);
      const client = new Client(this.#addresses, { timeout, ...source });
      const stay = this.#attend(client, visit.requests, lag < COARSE_MS ? undefined : due);
      const left = stay.finally(() => this.#present.delete(client));
      this.#present.set(client, left);
    }
  }

  /** One client from its arrival to its leaving; its first request is timed from `since`. */
  async #attend(client: Client, requests: number, since: number | undefined): Promise<void> {
    const { numbered, reconnect } = this.#options;
    const tally = this.#tally;
    const nextNumber = numbered ? numbersOf(this.#visits.luck, tally.arrived) : () => undefined;
    const account = tally.arrives(requests);
    for (let i = 0; i < requests && !this.#stopping.signal.aborted; i += 1) {
      try {
        // From the scheduled arrival, so that a tester that runs late (or a full backlog) hides no
        // waiting: no coordinated omission.
        tally.answered(account, await client.request(i === 0 ? since : undefined, nextNumber()));
      } catch (error) {
        if (!(error instanceof RequestError)) throw error;
        tally.failed(account, error.kind, error.message);
      }
      if (reconnect) client.close();
    }
    client.close();
    tally.leaves(account);
  }
}

// ─── Children ────────────────────────────────────────────────────────────────
// The servers and the balancer that --compare starts. They have nothing to put away, and are ended
// whatever happens: by SIGKILL, which those that hang heed as well, or by themselves after us.

const READY_MS = 20_000; // for a child to listen
const REPORT_MS = 1_000; // for an answer of how long it stood still
/** Runs in each child, before its script. It ends the child with us, even by SIGKILL: then the
 *  channel closes. Told to, it says for how long the loop stood still at worst since it last did, or
 *  blocks the loop: from inside, so that this ends by itself whatever becomes of us. */
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
function hear({ hang }) {
  look();
  if (hang === undefined) {
    process.send(worst / 1000, () => undefined);
    worst = 0;
  } else {
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, hang * 1000);
    last = performance.now();
  }
}
// process.exit may wait for ever for a loader that has gone
const end = () => process.kill(process.pid, "SIGKILL");
if (isMainThread) {
  if (!process.connected) end();
  setInterval(look, every).unref();
  process.on("message", hear);
  process.on("disconnect", end);
  process.channel.unref();
}`;
const PRELOAD = `data:text/javascript,${encodeURIComponent(IN_CHILD)}`;

type Child = {
  readonly label: string;
  readonly process: ChildProcess;
  readonly closed: Promise<unknown>;
  readonly output: { stdout: string; stderr: string }; // what it printed last
  hangsUntil: number; // because we said so
};

export class Children {
  readonly #running = new Set<Child>();
  lost: string[] = []; // what ended by itself, in words, until all are stopped

  /** Starts a script beside this one; returns the address it listens on. Throws RunError. */
  async start(label: string, script: string, args: readonly string[]): Promise<Address> {
    const path = fileURLToPath(new URL(script, import.meta.url));
    const words = [...process.execArgv, "--import", PRELOAD, path, ...args];
    const started = spawn(process.execPath, words, {
      // A Ctrl-C on the terminal must reach the children only through us; Windows has no groups.
      detached: process.platform !== "win32",
      windowsHide: true,
      stdio: ["ignore", "pipe", "pipe", "ipc"],
    });
    const output = { stdout: "", stderr: "" };
    for (const name of ["stdout", "stderr"] as const)
      started[name]?.setEncoding("utf8").on("data", (text: string) => {
        output[name] = (output[name] + text).slice(-4096);
      });
    const closed = new Promise((resolve) => started.on("close", resolve));
    const child = { label, process: started, closed, output, hangsUntil: 0 };
    this.#running.add(child);
    started.on("close", () => this.#running.delete(child));
    started.on("error", () => undefined); // of a message that came too late
    const address = await firstWords(script, child);
    await stallOf(child); // that it took its time to start is no standstill
    started.stderr?.on("data", (text: string) => process.stderr.write(text));
    started.on("exit", (code, signal) => {
      if (started.killed) return;
      const loss = `${label} ended in the middle of the run`;
      this.lost.push(loss);
      console.error(`${loss}: ${signal ?? `exit code ${code}`}`);
    });
    return address;
  }

  find(label: string): Child | undefined {
    return [...this.#running].find((child) => child.label === label);
  }

  hang(label: string, seconds: number): void {
    const child = this.find(label);
    if (!child?.process.connected) return;
    child.hangsUntil = performance.now() + seconds * 1000;
    child.process.send({ hang: seconds }, () => undefined);
  }

  /** How long each stood still at worst since this was last asked, in seconds by label. */
  async stalls(): Promise<Map<string, number>> {
    const ask = async (child: Child) => [child.label, await stallOf(child)] as const;
    return new Map(await Promise.all([...this.#running].map(ask)));
  }

  /** Ends all of them, and waits until they have. */
  async stop(): Promise<void> {
    this.kill();
    await Promise.all([...this.#running].map((child) => child.closed));
    this.lost = [];
  }

  kill(): void {
    for (const child of this.#running) child.process.kill("SIGKILL");
  }
}

/** 0 for who has gone, or hangs; who does not answer has stood still while we waited. */
async function stallOf({ process: child, closed, hangsUntil }: Child): Promise<number> {
  if (!child.connected || performance.now() < hangsUntil) return 0;
  const answer = once(child, "message").then(([stall]: unknown[]) => Number(stall));
  child.send("look", () => undefined);
  const late = sleep(REPORT_MS, REPORT_MS / 1000, { ref: false });
  return Promise.race([answer, late, closed.then(() => 0)]);
}

/** The address that a child says it listens on. Throws RunError when it ends or takes too long. */
function firstWords(script: string, { process: child, output }: Child): Promise<Address> {
  return new Promise((resolve, reject) => {
    const fail = (why: string): void => reject(new RunError(`Cannot start ${script}: ${why}`));
    setTimeout(fail, READY_MS, `not listening after ${READY_MS / 1000} s`).unref();
    child.stdout?.on("data", () => {
      const address = parseAddress(/^Listening on (\S+)\n/m.exec(output.stdout)?.[1] ?? "");
      if (address) resolve(address);
    });
    child.on("error", (error) => fail(reasonOf(error)));
    child.on("close", (code, signal) => {
      const [complaint] = output.stderr.trim().split("\n");
      fail(complaint || `ended by ${signal ?? `exit code ${code}`}`);
    });
  });
}

const BALANCER = "the balancer";
const serverLabel = (place: number): string => `server ${place + 1}`;
const neededBy = ({ algorithm }: Entry, { setups }: Job): readonly ServerSetup[] =>
  algorithm === undefined ? setups.slice(0, 1) : setups; // the baseline is the first one alone

type LastServer = { label: string; restart: () => Promise<unknown> }; // of --fail and --hang

/** Starts what an entry needs, unless that is there already. Throws RunError. */
async function startEntry(children: Children, entry: Entry, job: Job, nextSeed: () => number) {
  if (job.target) return { addresses: await resolveAddresses(job.target) };
  const { algorithm, balancerOptions } = entry;
  const balancerSeed = nextSeed();
  const servers = neededBy(entry, job);
  const commands = servers.map(({ mean, sd, slots, slow }) => {
    const phase = slow ? ` --slow ${slowText(slow)}` : "";
    const work = `--mean ${mean} --sd ${sd}${phase}`;
    return `--log none ${work} --max-connections ${slots} --seed ${nextSeed()}`.split(" ");
  });
  const start = (place: number, port: number): Promise<Address> => {
    const args = ["127.0.0.1", String(port), ...commands[place]!];
    return children.start(serverLabel(place), "server.ts", args);
  };
  const addresses = await Promise.all(servers.map((_, place) => start(place, 0)));
  const place = servers.length - 1;
  const last = { label: serverLabel(place), restart: () => start(place, addresses[place]!.port) };
  if (algorithm === undefined) return { addresses, last };
  const list = addresses.map((at, place) => `${formatAddress(at)}*${servers[place]!.weight}`);
  const usual = `--port 0 --servers ${list.join()} --log none --seed ${balancerSeed}`.split(" ");
  const page = job.admin === undefined ? [] : ["--admin", job.admin];
  const words = [algorithm, ...usual, ...page, ...balancerOptions];
  return { addresses: [await children.start(BALANCER, "load_balancer.ts", words)], last };
}

/** Lets faults happen in the windows of a plan; the returned function gives up what has not yet. */
function schedule(children: Children, last: LastServer, { fail, hang }: Workload): () => void {
  const over = new AbortController();
  const at = async (seconds: number, act: () => unknown): Promise<void> => {
    try {
      await sleep(seconds * 1000, undefined, { signal: over.signal });
      await act();
    } catch (error) {
      if (over.signal.aborted) return; // and with the run the server, which may be starting still
      console.error(`${last.label} did not come back: ${reasonOf(error)}`);
    }
  };
  if (fail) void at(fail.from, () => children.find(last.label)?.process.kill("SIGKILL"));
  if (fail) void at(fail.to, last.restart);
  if (hang) void at(hang.from, () => children.hang(last.label, hang.to - hang.from));
  return () => over.abort();
}

// ─── In virtual time ─────────────────────────────────────────────────────────
// A plan carried out without sockets and without waiting: the clock jumps from one event to the
// next. Who goes where, who waits and which server is down is decided by the balancer's own parts,
// and how long an answer takes by server.ts. What is simulated is what lies around them: clients,
// slots, and connections that take no time.

/** Seconds that an answer of server `place` takes; a check may have no number. */
type Sleep = (place: number, number: number | undefined, elapsed: number) => number;

/** Whom the plan is carried out against, in which world. */
export type VirtualSetup = Readonly<Pick<Workload, "timeout" | "reconnect">> & {
  readonly plan: Pick<Plan, "requests" | "arrivals">;
  readonly numbers: (client: number) => () => number; // of a client's requests, one after the other
  readonly addressOf: (client: number) => string;
  readonly servers: readonly ServerSetup[];
  readonly entry: Pick<Entry, "algorithm" | "balancerOptions">;
  readonly balancers: number; // which do not know of each other
  /** The first one's seed, unless the entry gives one to all. The other streams derive from it. */
  readonly balancerSeed: number;
  readonly fail?: Window | null;
  readonly hang?: Window | null;
  readonly sleep?: Sleep; // in place of the sleeps of server.ts
  readonly met?: (client: number, place: number) => void; // told of each one that reaches a server
};

/** The balancer's options that decide something here. */
const DECIDING =
  "--server-connections, --queue-timeout, --slow-start, --check, --check-interval, --fall, " +
  "--rise, --connect-timeout, --retry-for, --seed, --max-connections, --client-connections, " +
  "--on-down";

const optionsOf = (words: readonly string[]) => parseCommandLine(BALANCER_OPTIONS, words).values;

/** What is wrong with an entry's options in virtual time; undefined when nothing is. */
export function complaintAboutVirtual(balancerOptions: readonly string[]): string | undefined {
  const deciding = DECIDING.split(", ");
  const names = balancerOptions.map((word) => word.replace(/=.*/s, ""));
  const idle = names.find((name) => name.startsWith("--") && !deciding.includes(name));
  const words = "which decides nothing in virtual time; what does";
  if (idle !== undefined) return `expected no ${idle}, ${words}: ${DECIDING}`;
  const { check } = optionsOf(balancerOptions);
  if (ownPortOf(check) === undefined) return undefined;
  return `expected no port in --check ${check.text}: in virtual time nobody listens there`;
}

// --- the clock ---

/** Something that is to happen, and its turn: at the same time the first added is the first. */
type Due = { readonly at: number; readonly turn: number; readonly action: () => void };

const isBefore = (one: Due, other: Due): boolean =>
  one.at < other.at || (one.at === other.at && one.turn < other.turn);

/** What is to happen, in order: a binary heap. Its clock stands at what happened last. */
class Agenda {
  time = 0;
  readonly #heap: Due[] = [];
  #added = 0;

  readonly clock: Clock = {
    now: () => this.time,
    after: (seconds, action) => {
      // whoever waits for a moment must find it past: the next number behind it, at least
      const least = this.time * (1 + Number.EPSILON) || Number.MIN_VALUE;
      const at = seconds > 0 ? Math.max(this.time + seconds, least) : this.time;
      let isOff = false;
      this.at(at, () => isOff || action());
      return () => void (isOff = true);
    },
  };

  /** When the next thing happens; Infinity: never. */
  get next(): number {
    return this.#heap[0]?.at ?? Infinity;
  }

  at(time: number, action: () => void): void {
    const heap = this.#heap;
    let place = heap.length;
    while (place > 0) {
      const above = (place - 1) >> 1;
      const other = heap[above]!;
      if (other.at <= time) break;
      heap[place] = other;
      place = above;
    }
    heap[place] = { at: time, turn: this.#added, action };
    this.#added += 1;
  }

  /** The clock jumps to the next of them, and that happens. */
  step(): void {
    const first = this.#heap[0]!;
    const last = this.#heap.pop()!;
    if (last !== first) this.#sink(last);
    this.time = first.at;
    first.action();
  }

  /** Puts it where it belongs, beginning at the top, which is empty. */
  #sink(due: Due): void {
    const heap = this.#heap;
    let place = 0;
    for (let below = 1; below < heap.length; below = 2 * place + 1) {
      const right = below + 1;
      if (right < heap.length && isBefore(heap[right]!, heap[below]!)) below = right;
      if (isBefore(due, heap[below]!)) break;
      heap[place] = heap[below]!;
      place = below;
    }
    heap[place] = due;
  }
}

// --- servers ---

const PONG = "PONG!";

/** A connection to a simulated server. */
abstract class Call {
  target: VirtualServer | undefined = undefined;
  hasSlot = false;
  isGone = false; // it has left, or been cut: nothing that was to happen happens
  isAsking = false; // it waits for the answer to a ping of this number, or to a plain one
  number: number | undefined = undefined;
  abstract answered(): void;
  abstract cut(): void; // its server has died

  enter(target: VirtualServer): void {
    this.target = target;
    target.calls.add(this);
    target.see(this);
  }

  letGo(): void {
    if (this.isGone) return;
    this.isGone = true;
    this.target?.calls.delete(this);
    this.target?.see(this);
  }
}

/** A server with slots, as in server.ts: a connection keeps its slot until it leaves. */
class VirtualServer {
  readonly place: number;
  readonly spec: ServerSpec; // with an address, by which `source-hash` tells servers apart
  readonly calls = new Set<Call>(); // everybody who is connected to it
  isListening = true;
  readonly #run: VirtualRun;
  readonly #setup: ServerSetup;
  readonly #random: () => number; // for the sleeps of pings without a number
  readonly #line = new Set<Call>(); // who waits for a slot, in order
  readonly #turns = this.#line.values(); // a new iterator would pass by all those that have gone
  #busy = 0; // slots
  #startedAt = 0;
  #hangsUntil = 0;

  constructor(run: VirtualRun, place: number, seed: number) {
    this.#run = run;
    this.place = place;
    this.#setup = run.setup.servers[place]!;
    const address = `10.0.${place >> 8}.${place & 255}:65433`;
    this.spec = parseServers([`${address}*${this.#setup.weight}`])[0]!;
    this.#random = mulberry32(seed);
  }

  /** It accepts, as a kernel does, and sees and says nothing. */
  get hangs(): boolean {
    return this.#run.agenda.time < this.#hangsUntil;
  }

  /** To be told when `call` has come, asks for something, or has left. */
  see(call: Call): void {
    if (this.hangs) this.#run.agenda.at(this.#hangsUntil, () => this.see(call));
    else if (call.isGone) this.#release(call);
    else if (call.hasSlot || this.#busy < this.#setup.slots) this.#serve(call);
    else this.#line.add(call);
  }

  #serve(call: Call): void {
    if (!call.hasSlot) this.#busy += 1;
    call.hasSlot = true;
    if (!call.isAsking) return;
    const now = this.#run.agenda.time;
    const { sleep = this.#sleep } = this.#run.setup;
    const seconds = sleep(this.place, call.number, now - this.#startedAt);
    if (seconds < Infinity) this.#run.agenda.at(now + seconds, () => this.#answer(call));
  }

  /** As server.ts does. */
  readonly #sleep: Sleep = (_, number, elapsed) => {
    const { mean, sd, slow } = this.#setup;
    const random = number === undefined ? this.#random : mulberry32(number);
    return drawSleep({ mean, sd, slow: slow ?? undefined }, random, elapsed);
  };

  #answer(call: Call): void {
    if (call.isGone) return;
    if (this.hangs) return this.#run.agenda.at(this.#hangsUntil, () => this.#answer(call));
    call.isAsking = false;
    call.answered();
  }

  #release(call: Call): void {
    this.#line.delete(call);
    if (!call.hasSlot) return;
    call.hasSlot = false;
    this.#busy -= 1;
    if (this.#line.size === 0) return; // an iterator that came to its end would stay there
    const first = this.#turns.next().value!;
    this.#line.delete(first);
    this.#serve(first);
  }

  hang(until: number): void {
    if (this.isListening) this.#hangsUntil = until;
  }

  die(): void {
    const calls = [...this.calls];
    this.isListening = false;
    this.#hangsUntil = 0;
    this.#busy = 0;
    this.calls.clear();
    this.#line.clear();
    for (const call of calls) {
      call.isGone = true;
      call.hasSlot = false;
      call.cut();
    }
  }

  restart(): void {
    this.isListening = true;
    this.#startedAt = this.#run.agenda.time;
  }
}

// --- checks ---

/** What a check says to a ping server: pings, by their numbers (a plain one has none); `isWrong`: a
 *  byte of it belongs to no ping, and the server resets it. */
type Question = Readonly<{ check: CheckSpec; pings: (number | undefined)[]; isWrong: boolean }>;

function virtualQuestion(check: CheckSpec): Question {
  const asked = nothingAsked();
  const isSecure = check.kind === "http" && check.isSecure; // no ping begins as TLS does
  const wrong = countPings(asked, questionOf(check, ""));
  const pings = asked.waiting.flatMap(({ number, times }) => Array(times).fill(number));
  return { check, pings, isWrong: isSecure || wrong !== undefined };
}

const REFUSAL = "connection refused";
const REFUSED: CheckResult = { kind: "refused", why: REFUSAL, code: "ECONNREFUSED" };
const TIMED_OUT: CheckResult = { kind: "silent", why: "no answer in time", by: "time-out" };
const WRONG: CheckResult = { kind: "silent", why: "another answer than expected", by: "wrong" };
const CLOSED: CheckResult = { kind: "silent", why: "accepted, and closed", by: "close" };
const PASSED: CheckResult = { kind: "passed" };

/** One check of a simulated server. It takes a slot there as any connection does. */
class VirtualCheck extends Call {
  readonly #question: Question;
  readonly #report: (result: CheckResult) => void;
  #answers = 0;
  #isOver = false;
  #cancelAlarm: () => void = () => undefined;

  constructor(question: Question, report: (result: CheckResult) => void) {
    super();
    this.#question = question;
    this.#report = report;
  }

  /** A bare connection holds for `hold` seconds; a question has `seconds` to be answered. */
  begin(target: VirtualServer, clock: Clock, hold: number, seconds: number): void {
    const { check, isWrong } = this.#question;
    const finishIn = (wait: number, result: CheckResult): void => {
      this.#cancelAlarm = clock.after(wait, () => this.#finish(result));
    };
    if (!target.isListening) return finishIn(0, REFUSED);
    if (isWrong && !target.hangs) return finishIn(0, CLOSED);
    finishIn(asks(check) ? seconds : hold, asks(check) ? TIMED_OUT : PASSED);
    this.#ask();
    if (asks(check) || hold > 0) this.enter(target);
  }

  #ask(): void {
    const { pings } = this.#question;
    this.isAsking = this.#answers < pings.length;
    this.number = pings[this.#answers];
  }

  answered(): void {
    if (this.#isOver) return this.letGo();
    this.#answers += 1;
    const judgement = judge(this.#question.check, Buffer.from(PONG.repeat(this.#answers)));
    if (judgement !== "more") return this.#finish(judgement === "passed" ? PASSED : WRONG);
    this.#ask();
    this.target?.see(this);
  }

  cut(): void {
    if (!this.#isOver) this.#finish(this.#answers > 0 ? WRONG : CLOSED);
  }

  #finish(result: CheckResult): void {
    const isLate = result === TIMED_OUT && this.#answers > 0;
    this.cancel();
    this.#report(isLate ? WRONG : result);
  }

  /** Lets go of it; nothing is reported any more. */
  cancel(): void {
    this.#isOver = true;
    this.#cancelAlarm();
    // what was asked is still answered, as the server does not see who has gone
    if (!this.isAsking) this.letGo();
  }
}

// --- balancers ---

/** A client's connection: to a balancer, or to the one server of the baseline. */
class Passage extends Call implements Traveller {
  readonly visitor: Visitor;
  readonly clientAddress: string;
  readonly #run: VirtualRun;
  stage: ConnectionStage = "queued";
  tried: readonly Attempt[] = NOT_TRIED;
  server: Server | undefined = undefined; // where the balancer has given it a place
  dialledAt = 0;
  askedAt = -1; // since when it awaits an answer
  hasAnswer = false;
  countedAs = "";
  readonly ranShort = false;

  constructor(run: VirtualRun, visitor: Visitor) {
    super();
    this.#run = run;
    this.visitor = visitor;
    this.clientAddress = run.setup.addressOf(visitor.account.place);
  }

  queue(): void {
    this.stage = "queued";
  }

  answered(): void {
    this.visitor.balancer?.answered(this);
    this.#run.answered(this.visitor, this);
  }

  cut(): void {
    this.visitor.balancer?.lost(this);
    this.leave();
    this.#run.failed(this.visitor, "closed");
  }

  /** The balancer resets it. */
  close(): void {
    this.leave();
    this.#run.failed(this.visitor, "reset");
  }

  /** The client's doing, or because of what the balancer did. */
  leave(): void {
    if (this.stage === "ended") return;
    this.stage = "ended";
    this.letGo();
    this.visitor.balancer?.ended(this);
  }
}
const NOT_TRIED: readonly Attempt[] = [];

/** The balancer's own dispatch, before simulated servers. */
class VirtualBalancer extends Dispatcher<Passage> {
  readonly #run: VirtualRun;
  readonly #question: Question;
  readonly #targets: ReadonlyMap<Server, VirtualServer>;

  constructor(run: VirtualRun, options: LoadBalancerOptions) {
    super(options, run.agenda.clock, run.agenda.clock);
    const { check, checkInterval, slowStart, retryFor } = options;
    this.#run = run;
    this.#question = virtualQuestion(check);
    this.#targets = new Map(run.targets.map((target) => [new Server(target.spec, 0), target]));
    this.servers = [...this.#targets.keys()];
    for (const [place, server] of this.servers.entries())
      this.health.watch(server, firstCheckIn(place / this.servers.length, checkInterval));
    this.places.setServers(this.servers);
    this.setAlgorithm(options.algorithm);
    if (slowStart > 0 || retryFor > 0) this.#sweepLater();
  }

  #sweepLater(): void {
    this.#run.agenda.clock.after(sweepPeriod(this.options), () => {
      this.sweep();
      this.#sweepLater();
    });
  }

  protected probe(...[server, hold, , report]: Parameters<Probe>): () => void {
    const check = new VirtualCheck(this.#question, report);
    const target = this.#targets.get(server)!;
    check.begin(target, this.#run.agenda.clock, hold, this.options.checkInterval);
    return () => check.cancel();
  }

  accept(connection: Passage): void {
    this.open.add(connection);
    if (this.open.size > this.options.maxConnections) connection.close();
    else this.place(connection);
  }

  protected dial(connection: Passage, server: Server): void {
    const { agenda, setup } = this.#run;
    const target = this.#targets.get(server)!;
    const dialledAt = agenda.time;
    connection.server = server;
    connection.dialledAt = dialledAt;
    connection.stage = "dialling";
    if (!target.isListening) return agenda.at(dialledAt, () => this.#refuses(connection, server));
    connection.stage = "relaying";
    if (this.options.retryFor > 0)
      // not at once: whoever this releases would be released again on the way
      agenda.at(dialledAt, () => this.patients.served(connection));
    this.accepted(server, dialledAt);
    setup.met?.(connection.visitor.account.place, target.place);
    this.asks(connection);
    connection.enter(target);
  }

  #refuses(connection: Passage, server: Server): void {
    if (connection.stage !== "dialling") return; // it has left since
    connection.tried = [...connection.tried, { server, why: REFUSAL }];
    this.refused(server, REFUSAL, connection.dialledAt);
    this.#leaves(connection);
    connection.queue();
    this.place(connection);
  }

  asks(connection: Passage): void {
    connection.askedAt = this.now();
    if (connection.server !== undefined) asked(connection.server.cost, connection.askedAt);
  }

  answered(connection: Passage): void {
    const { server, dialledAt, askedAt, hasAnswer } = connection;
    if (server === undefined) return;
    server.health.received += PONG.length;
    connection.hasAnswer = true;
    if (!hasAnswer && this.health.caresForFirstBytes(server))
      this.health.saw(server, { kind: "first byte", dialledAt });
    answered(server.cost, askedAt, this.now());
    connection.askedAt = -1;
  }

  /** Its server has died. */
  lost({ server, dialledAt, hasAnswer }: Passage): void {
    if (server !== undefined && !hasAnswer && this.now() - dialledAt < this.health.hold)
      this.health.suspect(server);
  }

  #leaves(connection: Passage): void {
    const { server, askedAt } = connection;
    if (server === undefined) return;
    if (askedAt >= 0) forgotten(server.cost, askedAt);
    connection.askedAt = -1;
    connection.server = undefined;
    this.left(connection, server);
  }

  ended(connection: Passage): void {
    this.rest(connection);
    this.#leaves(connection);
    this.gone(connection);
  }
}

// --- clients ---

/** A client that carries out its part of the plan, one request after the other. */
type Visitor = {
  readonly balancer: VirtualBalancer | undefined; // the baseline has none
  readonly nextNumber: () => number;
  readonly account: Account;
  since: number; // when it made its present one
  connection: Passage | undefined;
};

const FAILURE_WORDS: Partial<Record<FailureKind, string>> = {
  connect: "Cannot connect: connection refused",
  reset: "Lost the connection: connection reset by peer",
  closed: "The connection was closed before its answer",
};

/** One run, step by step, so that somebody can look on and end it. */
export class VirtualRun {
  readonly setup: VirtualSetup;
  readonly agenda = new Agenda();
  readonly targets: readonly VirtualServer[];
  readonly #balancers: VirtualBalancer[] = []; // none in the baseline
  readonly #nextChoice: () => number;
  readonly #tally: Tally;
  readonly #asked: Deadlines<Visitor>; // who waits for an answer
  #isStopped = false;

  constructor(setup: VirtualSetup) {
    const { plan, servers, entry, balancers, balancerSeed, fail, hang } = setup;
    const { agenda } = this;
    this.setup = setup;
    this.#tally = new Tally({ clients: plan.requests.length, planned: sumOf(plan.requests) });
    this.#asked = new Deadlines(setup.timeout, agenda.clock, (visitor) => this.#givesUp(visitor));
    // not the balancer's own stream, from which it picks
    const nextSeed = seedsFrom(balancerSeed ^ 0x2545f491);
    this.#nextChoice = mulberry32(nextSeed());
    const algorithm = ALGORITHMS.find((name) => name === entry.algorithm);
    const needed = algorithm === undefined ? servers.slice(0, 1) : servers;
    this.targets = needed.map((_, place) => new VirtualServer(this, place, nextSeed()));
    const last = this.targets.at(-1)!;
    if (fail) agenda.at(fail.from, () => last.die());
    if (fail) agenda.at(fail.to, () => last.restart());
    if (hang) agenda.at(hang.from, () => last.hang(hang.to));
    const options = optionsOf(entry.balancerOptions);
    if (algorithm === undefined) return;
    for (let place = 0; place < balancers; place += 1) {
      // one seed for all, where the entry gives one; else the first has that of a run with sockets
      const own = place === 0 ? balancerSeed : nextSeed();
      const complete = completed({ ...options, algorithm, seed: options.seed ?? own });
      this.#balancers.push(new VirtualBalancer(this, complete));
    }
  }

  /** Lets at most so many events happen; true when all is over. */
  advance(events: number): boolean {
    const { arrivals } = this.setup.plan;
    for (let i = 0; i < events; i += 1) {
      if (this.#isOver) return true;
      const arrival = arrivals[this.#tally.arrived] ?? Infinity;
      if (arrival <= this.agenda.next) this.#arrive(arrival);
      else this.agenda.step();
    }
    return false;
  }

  get #isOver(): boolean {
    return this.#isStopped || this.#tally.done === this.#tally.clients;
  }

  #arrive(at: number): void {
    const { plan, numbers } = this.setup;
    const account = this.#tally.arrives(plan.requests[this.#tally.arrived]!);
    const choices = this.#balancers.length;
    const choice = choices > 1 ? Math.floor(this.#nextChoice() * choices) : 0;
    this.agenda.time = at;
    this.#connect({
      balancer: this.#balancers[choice],
      nextNumber: numbers(account.place),
      account,
      since: at,
      connection: undefined,
    });
  }

  /** It makes its next request on a new connection. */
  #connect(visitor: Visitor): void {
    const { account, balancer } = visitor;
    const connection = new Passage(this, visitor);
    this.#ask(visitor, connection);
    if (balancer !== undefined) return balancer.accept(connection);
    const server = this.targets[0]!;
    if (!server.isListening) return this.failed(visitor, "connect");
    this.setup.met?.(account.place, server.place);
    connection.enter(server);
  }

  #ask(visitor: Visitor, connection: Passage): void {
    visitor.since = this.agenda.time;
    visitor.connection = connection;
    connection.isAsking = true;
    connection.number = visitor.nextNumber();
    this.#asked.add(visitor);
  }

  #givesUp(visitor: Visitor): void {
    visitor.connection?.leave();
    this.failed(visitor, "timeout");
  }

  answered(visitor: Visitor, connection: Passage): void {
    const { account, since } = visitor;
    this.#asked.delete(visitor);
    this.#tally.answered(account, this.agenda.time - since);
    if (account.left === 0) {
      connection.leave();
      this.#tally.leaves(account);
    } else if (this.setup.reconnect) {
      // the balancer hears of the new connection before the old one has ended on both sides
      this.#connect(visitor);
      connection.leave();
    } else {
      this.#ask(visitor, connection);
      visitor.balancer?.asks(connection);
      connection.target?.see(connection);
    }
  }

  /** Its request failed, and the connection is gone. The next one is on another. */
  failed(visitor: Visitor, kind: FailureKind): void {
    const { account } = visitor;
    const message = FAILURE_WORDS[kind] ?? `No answer within ${this.setup.timeout} s`;
    this.#asked.delete(visitor);
    this.#tally.failed(account, kind, message);
    if (account.left === 0) this.#tally.leaves(account);
    else this.agenda.at(this.agenda.time, () => this.#connect(visitor));
  }

  /** Requests in flight fail as interrupted; those that nobody has made yet count as nothing. */
  stop(): void {
    if (this.#isOver) return;
    this.#isStopped = true;
    this.#tally.errors.interrupted += this.#tally.arrived - this.#tally.done;
  }

  get progress(): Progress {
    return this.#tally.progress(this.agenda.time);
  }

  observed(): Observed {
    return {
      ...this.#tally.results(),
      seconds: this.agenda.time,
      interrupted: this.#isStopped,
      tester: { utilization: 0, stall: 0, startLag: 0 },
    };
  }
}

// ─── Files ───────────────────────────────────────────────────────────────────
// What was measured, as files. Each is replaced whole or not at all; links, modes and owners stay;
// and what cannot be put in its place is kept beside it, or wherever there is room.

/** `path`, or what it links to, even where that does not exist yet. */
function targetOf(path: string): string {
  if (!fs.lstatSync(path, { throwIfNoEntry: false })?.isSymbolicLink()) return path;
  if (fs.existsSync(path)) return fs.realpathSync(path);
  return resolve(dirname(path), fs.readlinkSync(path));
}

/** What `act` throws. */
function problemWith(act: () => void): unknown {
  try {
    act();
    return undefined;
  } catch (error) {
    return error;
  }
}

/** Written beside it and renamed, so that nobody ever reads half a file. Throws RunError. */
export function writeWhole(file: string, text: string): void {
  const target = targetOf(file);
  const draft = `${target}.${process.pid}.tmp`;
  const unwritten = problemWith(() => writeDraft(draft, text));
  const problem = unwritten ?? problemWith(() => replace(target, draft));
  if (!problem) return;
  const kept = unwritten ? keepElsewhere(draft, text) : `is in ${draft}`;
  throw new RunError(`Cannot write ${file}: ${reasonOf(problem)}; what was to be written ${kept}`);
}

function writeDraft(draft: string, text: string): void {
  try {
    makeFolder(dirname(draft));
    fs.writeFileSync(draft, text);
  } catch (error) {
    fs.rmSync(draft, { force: true }); // half a draft is none
    throw error;
  }
}

/** Not `recursive: true`, which never returns where a file system says ENOENT, as /proc does. */
function makeFolder(folder: string): void {
  if (fs.existsSync(folder)) return;
  makeFolder(dirname(folder));
  fs.mkdirSync(folder);
}

/** With the mode and, where that is allowed, the owner of what was there. */
function replace(target: string, draft: string): void {
  const before = fs.statSync(target, { throwIfNoEntry: false });
  if (before?.isFile()) {
    problemWith(() => fs.chownSync(draft, before.uid, before.gid)); // only root may give files away
    fs.chmodSync(draft, before.mode);
  }
  fs.renameSync(draft, target);
}

/** Where temporary files are; failing that, in the hands of whoever reads our complaints. */
function keepElsewhere(draft: string, text: string): string {
  const other = join(tmpdir(), basename(draft));
  if (!problemWith(() => writeDraft(other, text))) return `is in ${other}`;
  process.stderr.write(text);
  return "is above";
}

/** Makes the folder, proves that `file` can be written, and keeps other calls from doing so until
 *  the returned function is called, or this process has gone. Throws RunError. */
function reserve(file: string, moreTries = 0): () => void {
  const lock = `${file}.lock`;
  const problem = problemWith(() => claim(file, lock));
  if (!problem) return () => fs.rmSync(lock, { force: true });
  if (moreTries === 0) throw new RunError(`Cannot write ${file}: ${reasonOf(problem)}`);
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 20); // milliseconds
  return reserve(file, moreTries - 1);
}

function claim(file: string, lock: string): void {
  if (fs.statSync(file, { throwIfNoEntry: false })?.isDirectory())
    throw new Error("it is a folder");
  const owner = (fs.existsSync(lock) && Number(fs.readFileSync(lock, "utf8"))) || process.pid;
  const hasGone = reasonOf(problemWith(() => process.kill(owner, 0))) === "no such process";
  const what = `process ${owner} is measuring under this name (if it is not, remove ${lock})`;
  if (owner !== process.pid && !hasGone) throw new Error(what);
  const draft = `${file}.${process.pid}.tmp`;
  writeDraft(draft, String(process.pid));
  fs.renameSync(draft, lock);
}

const sha256 = (text: string): string => createHash("sha256").update(text).digest("hex");

type Records = Readonly<Record<string, unknown>>;
const isObject = (value: unknown): value is Records =>
  typeof value === "object" && value !== null && !Array.isArray(value);

/** What a folder's `runs.json` holds; nothing where there is none. A malformed one is put aside. */
function readRecords(folder: string): Records {
  const file = join(folder, "runs.json");
  if (!fs.existsSync(file)) return {};
  try {
    const records: unknown = JSON.parse(fs.readFileSync(file, "utf8"));
    if (isObject(records)) return records;
  } catch (error) {
    if (!(error instanceof SyntaxError)) throw error;
  }
  fs.renameSync(file, `${file}.malformed`);
  console.error(`${file} was malformed: it is ${file}.malformed now, and begun anew`);
  return {};
}

/** A line for each field, and for each run. */
function formatRecords(records: Records): string {
  const list = (values: readonly unknown[]): string =>
    `[${values.map((value) => `\n      ${JSON.stringify(value)}`).join()}\n    ]`;
  const field = (value: unknown): string =>
    Array.isArray(value) ? list(value) : JSON.stringify(value);
  const lines = (of: object, indent: string, format: (value: unknown) => string): string[] =>
    Object.entries(of).map(([key, value]) => `${indent}${JSON.stringify(key)}: ${format(value)}`);
  const record = (of: unknown): string => `{${lines(of ?? {}, "\n    ", field).join()}\n  }`;
  return `{${lines(records, "\n  ", record).join()}\n}\n`;
}

/** Adds how a file was made, and drops what is said of files that have gone. */
function addRecord(folder: string, { name, runs, ...asked }: Measured, made: Records): void {
  const file = join(folder, "runs.json");
  const record = {
    ...made,
    ...asked,
    simulated: runs.some(({ simulated }) => simulated),
    runs: runs.map(({ times, address, firstFailure, tester, ...run }) => ({
      ...run,
      clients: times.length,
      answered: times.reduce((sum, of) => sum + of.length, 0),
    })),
  };
  const release = reserve(file, 50); // another call may be writing its record just now
  try {
    const others = Object.entries(readRecords(folder)).filter(
      ([other]) => other !== name && fs.existsSync(join(folder, `${other}.json`)),
    );
    writeWhole(file, formatRecords(Object.fromEntries([...others, [name, record]])));
  } finally {
    release();
  }
}

/** Whether a file holds answers of runs that came to their end, as far as one can know. */
function isWhole(folder: string, name: string): boolean {
  const file = join(folder, `${name}.json`);
  if (!fs.statSync(file, { throwIfNoEntry: false })?.isFile()) return false;
  const text = fs.readFileSync(file, "utf8");
  const record = readRecords(folder)[name];
  const isOurs = isObject(record) && record["sha256"] === sha256(text);
  const isPartial = isOurs && JSON.stringify(record["runs"]).includes('"interrupted":true');
  return !isPartial && /\d/.test(text);
}

/** Writes the runs of a set-up, a line for each client, and with a `session` how they were made.
 *  Those without an answer, or interrupted, do not replace whole ones, but stand beside them.
 *  Returns where they are. Throws RunError. */
function store(measured: Measured, folder: string, session: string | undefined): string {
  const { name, runs } = measured;
  const file = join(folder, `${name}.json`);
  const lines = runs.flatMap(({ times }) => times.map((of) => JSON.stringify(of)));
  const text = `[\n${lines.join(",\n")}\n]\n`;
  const isPartial = runs.some(({ interrupted }) => interrupted) || !/\d/.test(text);
  if (isPartial && isWhole(folder, name)) {
    const partial = join(folder, `${name}.partial.json`);
    writeWhole(partial, text);
    return `${partial} (${file} stays as it was)`;
  }
  writeWhole(file, text);
  if (session !== undefined) addRecord(folder, measured, { sha256: sha256(text), session });
  return file;
}

// ─── Display ─────────────────────────────────────────────────────────────────
// Where the whole call stands, on standard error: a live line on a terminal, elsewhere a line per
// run and a sign of life now and then.

/** A run, with sockets or without, as far as somebody looks on and may end it. */
type Watchable = { readonly progress: Progress; stop(): void };
/** Shows where a run stands until the returned function is called. */
type Show = (name: string, run: Watchable, lastArrival: number) => () => void;

const LIVE_MS = 250;
const HEARTBEAT_MS = 30_000;
const USUAL_COLUMNS = 80; // of a terminal that does not say its width

/** Shows `runs` runs, one after the other. */
function displayOf(runs: number): Show {
  const startedAt = performance.now();
  const isLive = process.stderr.isTTY && process.env["TERM"] !== "dumb";
  let done = 0;
  return (name, run, lastArrival) => {
    const begunAt = performance.now();
    const show = (): void => {
      const { progress } = run;
      const seconds = (performance.now() - begunAt) / 1000; // ours, not those of a simulated run
      const left = secondsLeft({ ...progress, seconds }, lastArrival);
      // the runs to come take as long as those before, or this one
      const usual = done > 0 ? (begunAt - startedAt) / 1000 / done : seconds + left;
      const place = { name, run: done + 1, runs, left: left + usual * (runs - done - 1) };
      if (!isLive) return console.error(liveLine(place, progress, Infinity));
      const line = liveLine(place, progress, process.stderr.columns || USUAL_COLUMNS);
      const failures = /×+(?=░* \d)|errors [1-9]\d*/g;
      process.stderr.write(`\r\x1b[K${line.replace(failures, "\x1b[31m$&\x1b[39m")}`); // in red
    };
    const timer = setInterval(show, isLive ? LIVE_MS : HEARTBEAT_MS);
    return () => {
      clearInterval(timer);
      if (isLive) process.stderr.write("\r\x1b[K");
      else show();
      done += 1;
    };
  };
}

// ─── Session ─────────────────────────────────────────────────────────────────
// One call of this script: one run, or the runs of each entry of --compare at each rate, and what
// Ctrl-C does at any moment of it.

const INTERRUPTED = 130;
const EVENTS_AT_ONCE = 200_000; // between two looks at the world outside a simulated run

type Job = ReturnType<typeof readJob>;
type Series = { readonly folder: string; readonly plan: Workload }; // the runs of one rate
/** What they have come to so far; the first `whole` of them make up whole seeds. */
type Harvest = { series: Series; runs: { entry: Entry; outcome: Outcome }[]; whole: number };

class Session {
  readonly #job: Job;
  readonly #id = randomBytes(8).toString("hex");
  readonly #show: Show;
  readonly #children = new Children();
  readonly #summaries: (Summary & { file: string | null })[] = [];
  readonly #releases: (() => void)[] = [];
  #interrupted = false;
  #failedToWrite = false;
  #run: Watchable | undefined;
  #harvest: Harvest | undefined;

  constructor(job: Job) {
    this.#job = job;
    const runs = job.rounds.reduce((sum, { entries }) => sum + entries.length, 0);
    this.#show = job.quiet ? () => () => undefined : displayOf(runs * job.series.length);
    const interrupt = (): void => {
      this.#interrupted = true;
      if (this.#run) this.#run.stop();
      else this.#children.kill();
    };
    const exit = (): void => process.exit(INTERRUPTED);
    onStopSignals(interrupt, exit, ["SIGINT", "SIGTERM", "SIGHUP"]); // HUP: the terminal has gone
    process.on("exit", () => {
      this.#children.kill(); // even after an error or a second Ctrl-C
      this.#putAway();
      for (const release of this.#releases) release();
    });
  }

  /** Everything, to the exit code. Throws RunError. */
  async carryOut(): Promise<number> {
    const { series, entries } = this.#job;
    // nothing is to stop us from writing what will have been measured
    for (const { folder } of series)
      for (const { name } of entries) this.#releases.push(reserve(join(folder, `${name}.json`)));
    try {
      for (const each of series) {
        this.#harvest = { series: each, runs: [], whole: 0 };
        await this.#gather(this.#harvest);
        this.#putAway();
      }
    } finally {
      this.#putAway();
      this.#conclude();
    }
    if (this.#failedToWrite) return 1;
    if (this.#job.isEndless) return 0;
    if (this.#interrupted) return INTERRUPTED;
    return this.#summaries.every(({ answered, planned }) => answered === planned) ? 0 : 1;
  }

  /** Seed by seed. By hand an interrupted run is all there is; a seed of --compare is then void. */
  async #gather(harvest: Harvest): Promise<void> {
    for (const { seed, entries } of this.#job.rounds) {
      for (const entry of entries) {
        const outcome = await this.#measure(entry, seed, harvest.series.plan);
        if (outcome) harvest.runs.push({ entry, outcome });
        if (!outcome || (outcome.interrupted && !this.#job.target)) return;
      }
      harvest.whole = harvest.runs.length;
    }
  }

  /** Starts everything afresh for one entry, and ends it again; nothing if it was interrupted. */
  async #measure(entry: Entry, seed: number, plan: Workload): Promise<Outcome | undefined> {
    const { target, simulate, isEndless } = this.#job;
    const { clients, maxRequests, rate } = plan;
    if (this.#interrupted) return undefined;
    if (simulate) return this.#simulate(entry, seed, plan);
    const children = this.#children;
    const nextSeed = seedsFrom(seed);
    const visits = isEndless
      ? endlessVisits(maxRequests, rate, nextSeed)
      : visitsOf(drawPlan(clients, maxRequests, rate, nextSeed));
    try {
      const { addresses, last } = await startEntry(children, entry, this.#job, nextSeed);
      if (isEndless) this.#sayWhatToTry();
      const run = new Run(addresses, visits, { ...plan, numbered: !target });
      await children.stalls(); // from here on they count
      const giveUpFaults = last && schedule(children, last, plan);
      this.#run = run;
      if (this.#interrupted) run.stop();
      const hide = this.#show(entry.name, run, visits.lastArrival);
      const observed = await run.start();
      this.#run = undefined;
      giveUpFaults?.();
      hide();
      const disturbed = [...disturbances(observed, await children.stalls()), ...children.lost];
      const what = `${entry.name}, seed ${seed}, was disturbed: ${disturbed.join("; ")}`;
      const advice = `Its times may be too long by as much. To repeat it: --seed ${seed}`;
      if (disturbed.length > 0) console.error(`Warning: ${what}. ${advice}`);
      const address = addresses.map(formatAddress).join(" or ");
      return { ...observed, seed, address, simulated: false, disturbed };
    } catch (error) {
      if (this.#interrupted) return undefined; // it did not start because we stopped it
      throw error;
    } finally {
      await children.stop();
    }
  }

  /** Carries out one entry in virtual time, some hundred thousand events at a time. */
  async #simulate(entry: Entry, seed: number, plan: Workload): Promise<Outcome> {
    const { clients, maxRequests, rate, addresses, ...rest } = plan;
    const { setups, balancers = 1 } = this.#job;
    const nextSeed = seedsFrom(seed);
    const drawn = drawPlan(clients, maxRequests, rate, nextSeed);
    const run = new VirtualRun({
      ...rest,
      plan: drawn,
      numbers: (client) => numbersOf(drawn.luck, client),
      addressOf: (client) => sourceOf(client, addresses).localAddress ?? "127.0.0.1",
      servers: setups,
      entry,
      balancers,
      balancerSeed: nextSeed(),
    });
    this.#run = run;
    const hide = this.#show(entry.name, run, 0); // virtual arrivals do not say when we are done
    while (!run.advance(EVENTS_AT_ONCE)) await new Promise(setImmediate);
    this.#run = undefined;
    hide();
    return { ...run.observed(), seed, address: "virtual time", simulated: true, disturbed: [] };
  }

  /** Writes and prints what the folder's runs have come to; what is not whole is only printed. */
  #putAway(): void {
    if (!this.#harvest) return;
    const { series, runs, whole } = this.#harvest;
    this.#harvest = undefined;
    const { json, quiet, entries, rounds } = this.#job;
    const shown = whole > 0 ? runs.slice(0, whole) : runs;
    for (const entry of entries) {
      const outcomes = shown.filter((run) => run.entry === entry).map(({ outcome }) => outcome);
      if (outcomes.length === 0) continue;
      const measured: Measured = {
        name: entry.name,
        setup: setupOf(this.#job, entry),
        plan: series.plan,
        runsAsked: rounds.filter((round) => round.entries.includes(entry)).length,
        runs: outcomes,
      };
      const file = whole > 0 ? this.#store(measured, series.folder) : null;
      const summary = summarise(measured);
      const gap = this.#summaries.length > 0 ? "\n" : "";
      if (!json && !quiet) console.log(`${gap}${formatSummary(summary)}`);
      this.#summaries.push({ ...summary, file });
    }
  }

  /** Where it was written; null where it could not be, which is said at once. */
  #store(measured: Measured, folder: string): string | null {
    const isNamed = (this.#job.compare ?? this.#job.name) !== undefined;
    try {
      return store(measured, folder, isNamed ? this.#id : undefined);
    } catch (error) {
      console.error(reasonOf(error));
      this.#failedToWrite = true;
      return null;
    }
  }

  /** The last words: the summaries, or where they are. */
  #conclude(): void {
    const { json, quiet, target } = this.#job;
    const shown = target ? this.#summaries[0] : this.#summaries;
    const written = this.#summaries.flatMap(({ file }) => file ?? []);
    if (json && shown !== undefined) console.log(JSON.stringify(shown, null, 2));
    if (json || quiet || written.length === 0) return;
    console.log(`\nWritten: ${written.join(", ")}`);
    if (!target) console.log(drawingCommands(this.#job).join("\n"));
  }

  /** Where the balancer has a page. */
  #sayWhatToTry(): void {
    const said = this.#children.find(BALANCER)?.output.stdout ?? "";
    const [, page] = /^Admin on (\S+)/m.exec(said) ?? [];
    if (page === undefined) return;
    const last = serverLabel(this.#job.setups.length - 1);
    const pid = this.#children.find(last)?.process.pid;
    console.error(
      `Open ${page} and watch. Switch the algorithm there, and look at p95; drain a server;\n` +
        `stop one: kill -STOP ${pid} (and on again: kill -CONT ${pid}). Ctrl-C ends it all.`,
    );
  }
}

function setupOf(job: Job, entry: Entry): Setup {
  const { algorithm, balancerOptions: options } = entry;
  if (job.target) return { algorithm: null, options, servers: null, balancers: 1 };
  const servers = neededBy(entry, job);
  if (algorithm === undefined) return { algorithm: "baseline", options, servers, balancers: 1 };
  return { algorithm, options, servers, balancers: job.balancers ?? 1 };
}

/** A word of a command line that a shell reads as it is. */
const shellWord = (word: string): string =>
  /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", `'\\''`)}'`;

function drawingCommands({ series, entries }: Job): string[] {
  const script = fileURLToPath(new URL("generate_graphs.ts", import.meta.url));
  const draw = `To draw it: npx tsx ${shellWord(relative(".", script))}`;
  const { folder, plan } = series[0]!;
  if (series.length > 1) return [`${draw} --curve ${shellWord(dirname(folder))}`];
  const ours = entries.map(({ name }) => shellWord(join(folder, `${name}.json`))).join(" ");
  const isAlone = Object.keys(readRecords(folder)).length <= entries.length;
  const command = `${draw} ${isAlone ? `--data ${shellWord(folder)}` : ours}`;
  return plan.fail || plan.hang ? [command, `${draw} ${ours} --over-time`] : [command];
}

// ─── Command line ────────────────────────────────────────────────────────────
// Options, and all that can be said against them before anything is started.

const plainName: Kind<string> = {
  expected: "a plain file name other than runs",
  read(text) {
    const name = text.replace(/\.json$/, "");
    return /^(?!(\.{1,2}|runs)$)[^/\\\p{Cc}]+$/u.test(name) ? name : undefined;
  },
};
const listOf = <T>(kind: Kind<T>, each: string): Kind<readonly T[]> => ({
  expected: `${kind.expected}, or a list of them, one a ${each}, with commas between`,
  read(text) {
    const values = text.split(",").map(kind.read);
    return values.every((value) => value !== undefined) ? values : undefined;
  },
});
const secondsWindow: Kind<Window> = {
  expected: "FROM-TO in seconds, such as 4-8",
  read(text) {
    const phase = slowPhase.read(`${text}:0`); // with a mean that nobody needs
    return phase && { from: phase.from, to: phase.to };
  },
};
const slowOrNot: Kind<Slow | null> = {
  ...slowPhase,
  read: (text) => (text === "-" ? null : slowPhase.read(text)),
};
const slowText = (slow: Slow | null): string =>
  slow ? `${slow.from}-${slow.to}:${slow.mean}` : "-";
const { kind: adminKind } = BALANCER_OPTIONS.admin; // of the balancer, who gets the text
const adminText: Kind<string> = { ...adminKind, read: (text) => adminKind.read(text) && text };

const upTo = (most: number): Kind<number> => wholeNumber(1, most);
const perServer = <T>(kind: Kind<T>): Kind<readonly T[]> => listOf(kind, "server");
const times = perServer(amount("seconds"));

export const OPTIONS = {
  host: given(hostName, "HOST").help("whom to ask (default 127.0.0.1)"),
  port: given(upTo(65535), "PORT").help("and where (default 65432)"),
  name: given(plainName, "NAME").help("write DIR/NAME.json, not response_times.json"),
  seed: option(seedNumber, "N", "1").help("requests, arrivals and luck of the plan"),
  runs: given(upTo(10_000), "K").help("--compare: the seeds N to N+K-1 (default 1)"),
  rate: option(listOf(amount("clients a second"), "folder"), "R", "0").help(
    "clients arriving a second, Poisson; 0 = at once; a list: DIR/rate-R/",
  ),
  reconnect: { help: "a new connection for every request" },
  timeout: option(someSeconds, "SECONDS", "30").help("for one answer"),
  compare: given(anyText, "LIST").help(
    "start servers and balancer afresh for each of: baseline, all, ALGORITHM with its options",
  ),
  simulate: { help: "--compare: in virtual time, without sockets and without waiting" },
  balancers: given(upTo(1000), "M").help(
    "--simulate: M balancers that do not know of each other (default 1)",
  ),
  servers: given(upTo(10_000), "N").help("how many (default 5); baseline: the first alone"),
  mean: given(times, "SECONDS").help("of their sleeps: one, or a list, one a server (default 0.5)"),
  sd: given(times, "SECONDS").help("their standard deviation, likewise (default 0.2)"),
  slots: given(perServer(upTo(1e9)), "N").help("clients served at once, likewise (default 10)"),
  weights: given(perServer(upTo(1000)), "LIST").help("of the servers (default 1)"),
  slow: given(perServer(slowOrNot), "FROM-TO:MEAN").help(
    "another mean from second to second, of the last server; or a list, - for none",
  ),
  fail: given(secondsWindow, "FROM-TO").help("--compare: the last server is dead in these seconds"),
  hang: given(secondsWindow, "FROM-TO").help("--compare: the last server stands still, likewise"),
  addresses: given(upTo(60_000), "N").help("--compare: clients come from N addresses"),
  admin: given(adminText, "[HOST:]PORT").help("--compare: the page of each balancer in turn"),
  data: given(anyText, "DIR").help("where files go (default data; --compare: data/compare)"),
  json: { help: "the summary as JSON in place of the table; an array with --compare" },
  quiet: { help: "no live line, no table" },
} as const;

type Given = Values<typeof OPTIONS>;

function refuseIf(isBad: boolean, what: string, expected: string): void {
  if (isBad) throw new UsageError(`Bad ${what}: expected ${expected}`);
}

/** Options that would silently do nothing are refused. */
function checkTogether(values: Given): void {
  const { compare, simulate, name } = values;
  const only = (names: readonly (keyof Given)[], expected: string): void => {
    const idle = names.find((key) => values[key] !== undefined);
    refuseIf(idle !== undefined, `option "--${idle}"`, `only ${expected}`);
  };
  if (!simulate) only(["balancers"], "with --simulate");
  else only(["admin"], "without --simulate, where nobody could ask");
  refuseIf(simulate && compare === undefined, 'option "--simulate"', "it with --compare");
  const itself = "without --compare, which starts and names what it asks";
  if (compare !== undefined) return only(["host", "port", "name"], itself);
  const started = ["servers", "mean", "sd", "slots", "weights", "slow", "fail", "hang"] as const;
  only(started, "with --compare, which starts the servers");
  only(["runs", "addresses", "admin"], "with --compare");
  if (name === undefined) only(["data"], "with --name or --compare");
}

/** What cannot be measured, or would take an entry, a rate or a seed for another. */
function checkPlan(clients: number, values: Given, entries: readonly Entry[]): void {
  const { rate, compare, simulate, seed, runs = 1, servers = 5, balancers = 1 } = values;
  const { pairs } = MOST_VIRTUAL;
  const rateList = `--rate "${rate.join()}"`;
  const isSweep = rate.length > 1;
  refuseIf(isSweep && compare === undefined, rateList, "one rate; several only with --compare");
  refuseIf(isSweep && rate.includes(0), rateList, "rates above 0 in a list");
  refuseIf(new Set(rate).size < rate.length, rateList, "each rate once");
  refuseIf(seed + runs > 2 ** 32, `--runs "${runs}"`, `seeds up to ${2 ** 32 - 1}`);
  const sockets = "at most 100 with sockets; more only with --simulate";
  refuseIf(!simulate && servers > 100, `--servers "${servers}"`, sockets);
  const together = `at most ${pairs} pairs with a server`;
  refuseIf(servers * balancers > pairs, `--balancers "${balancers}"`, together);
  for (const { algorithm = "baseline", balancerOptions } of simulate ? entries : []) {
    const complaint = complaintAboutVirtual(balancerOptions);
    const words = [algorithm, ...balancerOptions];
    const quoted = words.map((word) => (/[\s,]/.test(word) ? `'${word}'` : word));
    if (complaint !== undefined) throw badEntry(quoted.join(" "), complaint);
  }
  if (clients > 0) return;
  const none = 'clients "0"';
  const isAtOnce = isSweep || rate[0] === 0;
  refuseIf(simulate, none, "at least 1 with --simulate");
  refuseIf(isAtOnce, none, "at least 1, or one --rate above 0 for a run without an end");
  refuseIf(entries.length > 1, none, "one entry of --compare without an end");
  refuseIf(values.runs !== undefined, none, "no --runs without an end");
}

/** Throws UsageError when all clients at once cannot be; warns of what may be, one after the other. */
export function checkDescriptors(plan: Workload, hasBalancer: boolean, limit: number): void {
  const others = 60; // what this process, or a balancer, has open besides its clients
  const each = hasBalancer ? 2 : 1; // a balancer's other side
  const most = Math.max(0, Math.floor((limit - others) / each));
  if (plan.clients <= most) return;
  const allows = `the limit of ${limit} file descriptors allows ${most} clients at once`;
  const cure = "raise it with ulimit -n";
  refuseIf(plan.rate === 0, `clients "${plan.clients}"`, `fewer: ${allows}; ${cure}`);
  console.error(`Warning: ${allows}, and ${plan.clients} are to come; ${cure}`);
}

/** Throws UsageError when a list gives more or fewer values than there are servers. */
function setupsOf(values: Given): ServerSetup[] {
  const { servers: count = 5, slow = [null] } = values;
  const { mean = [0.5], sd = [0.2], slots = [10], weights = [1] } = values;
  for (const [name, list] of Object.entries({ mean, sd, slots, weights, slow })) {
    const texts = list.map((value) => (typeof value === "number" ? value : slowText(value)));
    const expected = `one value, or one for each of ${count} servers`;
    refuseIf(![1, count].includes(list.length), `--${name} "${texts.join()}"`, expected);
  }
  const at = <T>(list: readonly T[], place: number): T => list[place % list.length]!;
  return Array.from({ length: count }, (_, place) => ({
    mean: at(mean, place),
    sd: at(sd, place),
    slots: at(slots, place),
    weight: at(weights, place),
    slow: slow.length < count && place < count - 1 ? null : at(slow, place), // one is the last's
  }));
}

function seriesOf(clients: number, maxRequests: number, values: Given): Series[] {
  const { rate, reconnect, timeout, addresses = 1, fail = null, hang = null, compare } = values;
  const { name, data = compare === undefined ? "data" : join("data", "compare") } = values;
  const folder = (compare ?? name) === undefined ? "." : data;
  return rate.map((each) => ({
    folder: rate.length > 1 ? join(folder, `rate-${each}`) : folder,
    plan: { clients, maxRequests, rate: each, reconnect, timeout, addresses, fail, hang },
  }));
}

function readCounts([first, second, more]: readonly string[], most: number) {
  const someRequests = upTo(1_000_000);
  if (first === undefined) throw new UsageError("");
  const clients = readValue("clients", wholeNumber(0, most), first);
  const missing = `Missing max_requests after "${first}": expected ${someRequests.expected}`;
  if (second === undefined) throw new UsageError(missing);
  const maxRequests = readValue("max_requests", someRequests, second);
  refuseIf(more !== undefined, `argument ${JSON.stringify(more)}`, "clients and max_requests only");
  return { clients, maxRequests };
}

/** All that is to be done, checked before anything is started. Throws UsageError. */
export function readJob(positionals: readonly string[], values: Given) {
  const { seed, runs = 1, compare, name, host = "127.0.0.1", port = 65432 } = values;
  const most = values.simulate ? MOST_VIRTUAL.clients : MOST_CLIENTS;
  const { clients, maxRequests } = readCounts(positionals, most);
  checkTogether(values);
  const byHand = { name: name ?? "response_times", algorithm: undefined, balancerOptions: [] };
  const entries: readonly Entry[] = compare === undefined ? [byHand] : parseEntries(compare);
  checkPlan(clients, values, entries);
  const seeds = Array.from({ length: runs }, (_, place) => seed + place);
  return {
    ...values,
    series: seriesOf(clients, maxRequests, values),
    entries,
    rounds: roundsOf(entries, seeds),
    setups: setupsOf(values),
    target: compare === undefined ? { host, port } : undefined, // --compare starts what it asks
    isEndless: clients === 0,
  };
}

async function main(positionals: string[], values: Given): Promise<number> {
  const job = readJob(positionals, values);
  const hasBalancer = job.entries.some(({ algorithm }) => algorithm !== undefined);
  const report = JSON.stringify(process.report.getReport()); // not everywhere has it the limit
  const limit = Number(/"open_files":\{"soft":"?(\d+)/.exec(report)?.[1] ?? Infinity);
  for (const { plan } of job.simulate ? [] : job.series) checkDescriptors(plan, hasBalancer, limit);
  return new Session(job).carryOut();
}

const usage = "How to Use: tsx stress_test.ts [clients] [max_requests]";
if (isMain(import.meta)) void runScript({ usage, options: OPTIONS, main });
