#!/usr/bin/env -S node --import tsx
/**
 * stress_test.ts - many clients at once, and how long each of them waited.
 *
 * Draws a plan (how many requests each client makes, when it arrives), carries it out against a
 * server or a balancer, and writes the answered requests as JSON: an array (client, in the plan's
 * order) of arrays (request) of seconds, rounded to microseconds. Failures are counted by kind,
 * never recorded as times. With --compare it starts the servers and the balancer itself and carries
 * out the same plan against each set-up.
 *
 *   tsx stress_test.ts 20 5
 *   tsx stress_test.ts 1000 5 --rate 30 --timeout 300 --name RoundRobin
 *   tsx stress_test.ts 1000 5 --rate 300 --mean 0.05 --sd 0.02 --compare "baseline,least-connections --server-connections 10"
 */
import { type ChildProcess, type ChildProcessWithoutNullStreams, spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdirSync, renameSync, rmSync, statSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { Client, type FailureKind, failureKinds, RequestError, resolveAddress } from "./client.ts";
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
import { slowPhase } from "./server.ts";

// ─── Plan ────────────────────────────────────────────────────────────────────
// Pure, and drawn before the start, so that every set-up is asked the same.

/**
 * A client's place in both arrays is its place in the file. Arrivals are seconds after the start,
 * in ascending order.
 */
export type Plan = { readonly requests: readonly number[]; readonly arrivals: readonly number[] };

/**
 * Seeds for the streams of one run, always in this order: requests, arrivals, the balancer, each
 * server. So no two streams are the same, and more of one leaves the others as they were.
 */
export function seedsFrom(seed: number): () => number {
  const random = mulberry32(seed);
  return () => Math.floor(random() * 2 ** 32);
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
  const randomRequests = mulberry32(nextSeed());
  const randomArrivals = mulberry32(nextSeed());
  let arrival = 0;
  const nextArrival = (): number =>
    rate === 0 ? 0 : (arrival += -Math.log(1 - randomArrivals()) / rate);
  return {
    requests: Array.from({ length: clients }, () => 1 + Math.floor(randomRequests() * maxRequests)),
    arrivals: Array.from({ length: clients }, nextArrival),
  };
}

// ─── Entries of --compare ────────────────────────────────────────────────────
// Pure: what to start for each entry, and the name of its file.

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
  const texts = list.split(",").flatMap((text) => (text.trim() === "all" ? all : [text.trim()]));
  const entries = texts.map(parseEntry);
  const twice = texts.find(
    (_, i) => entries.findIndex(({ name }) => name === entries[i]?.name) !== i,
  );
  if (twice !== undefined)
    throw new UsageError(`Bad --compare entry ${JSON.stringify(twice)}: expected each entry once`);
  return entries;
}

function parseEntry(text: string): Entry {
  const [algorithm = "", ...balancerOptions] = text.split(/\s+/);
  const bad = (expected: string): UsageError =>
    new UsageError(`Bad --compare entry ${JSON.stringify(text)}: expected ${expected}`);
  const baseline = algorithm === "baseline";
  if (!baseline && !ALGORITHMS.some((name) => name === algorithm))
    throw bad(`baseline, all, ${ALGORITHMS.join(", ")}`);
  if (baseline && balancerOptions.length > 0) throw bad("no options: the baseline has no balancer");
  const ours = balancerOptions.find((word) =>
    /^--(host|port|servers|servers-file|log|seed|help)(=|$)/.test(word),
  );
  if (ours !== undefined) throw bad(`no ${ours}: --compare sets it itself`);
  const complaint = complaintAbout(balancerOptions);
  if (complaint !== undefined)
    throw new UsageError(`Bad --compare entry ${JSON.stringify(text)}: ${complaint}`);
  return {
    name: fileName(algorithm, balancerOptions),
    algorithm: baseline ? undefined : algorithm,
    balancerOptions,
  };
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
  return [
    pascal,
    ...balancerOptions.map((word) => word.replace(/^-+/, "").replace(/[^\w.]+/g, "-")),
  ].join("-");
}

// ─── Summary ─────────────────────────────────────────────────────────────────
// Pure: from what a run recorded to what is printed. The table and --json show one and the same
// object.

/** Who was asked for what. */
export type Setup = {
  readonly name: string;
  readonly clients: number;
  readonly maxRequests: number;
  readonly rate: number;
  readonly seed: number;
  readonly reconnect: boolean;
  readonly address: string;
};

/**
 * How the tester itself fared: the share of time its event loop was busy, the longest time it stood
 * still, and how late the latest client was started (seconds). What is measured while these are
 * high is the tester.
 */
export type Health = {
  readonly utilization: number;
  readonly stall: number;
  readonly startLag: number;
};

export type Outcome = {
  readonly times: readonly (readonly number[])[];
  readonly planned: number;
  readonly errors: Readonly<Record<FailureKind, number>>;
  readonly firstFailure: string | null;
  readonly seconds: number;
  readonly interrupted: boolean;
  readonly tester: Health;
};

const percentiles = { p50: 0.5, p90: 0.9, p95: 0.95, p99: 0.99 } as const;
type Percentile = keyof typeof percentiles;
const names: readonly Percentile[] = ["p50", "p90", "p95", "p99"];

/** `null` where the sample does not carry the percentile. */
export type Spread = { readonly n: number; readonly max: number | null } & Readonly<
  Record<Percentile, number | null>
>;

function spreadOf(times: readonly number[]): Spread {
  const sorted = times.toSorted((a, b) => a - b);
  const at = (name: Percentile): number | null =>
    carries(sorted.length, percentiles[name]) ? quantile(sorted, percentiles[name]) : null;
  return {
    n: sorted.length,
    p50: at("p50"),
    p90: at("p90"),
    p95: at("p95"),
    p99: at("p99"),
    max: sorted.at(-1) ?? null,
  };
}

export type Summary = ReturnType<typeof summarise>;

export function summarise(setup: Setup, { times, ...outcome }: Outcome) {
  const all = times.flat();
  return {
    ...setup,
    ...outcome,
    answered: all.length,
    requestsPerSecond: outcome.seconds > 0 ? all.length / outcome.seconds : 0,
    first: spreadOf(times.flatMap((of) => of.slice(0, 1))),
    later: spreadOf(times.flatMap((of) => of.slice(1))),
    all: spreadOf(all),
    // without times there is nothing to distort
    bottleneck: all.length > 0 && bottlenecks(outcome.tester, outcome.seconds).length > 0,
  };
}

/**
 * What of the tester's own health may have distorted the times; past these limits the tester is
 * measured, too. A run of less than half a second is mostly start-up: how busy the loop was says
 * nothing then.
 */
export function bottlenecks({ utilization, stall, startLag }: Health, seconds: number): string[] {
  const said = [];
  if (utilization > 0.7 && seconds > 0.5)
    said.push(`its event loop was busy ${Math.round(utilization * 100)} % of the time`);
  if (stall > 0.02) said.push(`it stood still for ${Math.round(stall * 1000)} ms`);
  if (startLag > 0.01) said.push(`it started a client ${Math.round(startLag * 1000)} ms late`);
  return said;
}

const plural = (n: number, what: string): string => `${n} ${what}${n === 1 ? "" : "s"}`;

export function formatSummary(summary: Summary): string {
  const {
    name,
    clients,
    maxRequests,
    rate,
    seed,
    reconnect,
    address,
    answered,
    planned,
    seconds,
    requestsPerSecond,
    firstFailure,
  } = summary;
  const requests = maxRequests === 1 ? "1 request" : `1–${maxRequests} requests`;
  const arrive = rate === 0 ? "all at once" : `${rate} arriving a second`;
  return [
    `${name}   ${plural(clients, "client")} × ${requests}, ${arrive}, ${reconnect ? "a connection each, " : ""}seed ${seed} → ${address}`,
    `${answered}/${planned} answered in ${seconds.toFixed(2)} s   ${requestsPerSecond.toFixed(1)} req/s   ${formatErrors(summary)}`,
    ...(firstFailure === null ? [] : [`first failure: ${firstFailure}`]),
    "",
    ...table(summary),
  ].join("\n");
}

function formatErrors({ errors }: Summary): string {
  const kinds = failureKinds
    .filter((kind) => errors[kind] > 0)
    .map((kind) => `${kind} ${errors[kind]}`);
  const total = failureKinds.reduce((sum, kind) => sum + errors[kind], 0);
  return `errors ${total}${total > 0 ? ` (${kinds.join(", ")})` : ""}`;
}

/**
 * A column for p99 only where the whole run carries it; the first percentile that it does not carry
 * is remarked on.
 */
function table({ first, later, all, reconnect }: Summary): string[] {
  const shown = names.filter((name) => name !== "p99" || all.p99 !== null);
  const columns = [...shown, "max"] as const;
  const line = (label: string, cells: readonly string[], remark = ""): string =>
    `${label.padEnd(17)}${cells.map((cell, i) => cell.padStart(i === 0 ? 6 : i === 1 ? 8 : 7)).join("")}   ${remark}`.trimEnd();
  // 100.0, or columns would touch
  const cell = (seconds: number | null): string => seconds?.toFixed(seconds < 100 ? 3 : 1) ?? "-";
  const row = (label: string, spread: Spread, remark?: string): string =>
    line(label, [String(spread.n), ...columns.map((column) => cell(spread[column]))], remark);
  const missing = names.find((name) => all[name] === null);
  const waits = "includes waiting for a slot";
  return [
    line("response time (s)", ["n", ...columns]),
    row("first request", first, waits),
    row("later requests", later, reconnect ? waits : undefined),
    row(
      "all",
      all,
      missing &&
        `${missing} needs n ≥ ${Math.ceil(Math.log(0.05) / Math.log(percentiles[missing]))}`,
    ),
  ];
}

/**
 * Where a run stands. Clients not arrived yet are `toCome`; those without an answer so far are
 * `waiting`.
 */
export type Progress = {
  readonly planned: number;
  readonly answered: number;
  readonly failed: number;
  readonly p50: number;
  readonly seconds: number;
} & Readonly<Record<Stage, number>>;
export type Stage = "toCome" | "waiting" | "talking" | "done";

export function liveLine(name: string, progress: Progress, columns: number): string {
  const { planned, answered, failed, toCome, waiting, talking, done, p50, seconds } = progress;
  const filled = Math.floor((20 * (answered + failed)) / planned);
  const clients = [
    toCome > 0 ? `${toCome} to come` : "",
    `${waiting} waiting`,
    `${talking} talking`,
    `${done} done`,
  ]
    .filter(Boolean)
    .join(" · ");
  const line = `${name}  ${"█".repeat(filled)}${"░".repeat(20 - filled)} ${answered}/${planned}   ${clients}   p50 ${answered > 0 ? p50.toFixed(2) : "-"} s   errors ${failed}   ${seconds.toFixed(1)} s`;
  return line.slice(0, Math.max(0, columns - 1)); // a line that wraps could not be overwritten
}

// ─── Run ─────────────────────────────────────────────────────────────────────
// Sockets: a plan carried out. Each client talks by itself; what they did is counted in one place,
// the run.

/** Answers that the running median of the live line looks back on. */
const RECENT = 500;

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
    return {
      utilization: performance.eventLoopUtilization(before).utilization,
      stall: stall / 1000,
    };
  };
}

export type RunOptions = { readonly timeout: number; readonly reconnect: boolean };

export class Run {
  readonly #address: Address;
  readonly #plan: Plan;
  readonly #options: RunOptions;
  readonly #times: number[][];
  readonly #errors = {
    connect: 0,
    timeout: 0,
    reset: 0,
    closed: 0,
    wrong: 0,
    interrupted: 0,
  } satisfies Record<FailureKind, number>;
  readonly #stages: Record<Stage, number>;
  readonly #recent: number[] = [];
  readonly #clients = new Set<Client>();
  readonly #planned: number;
  #firstFailure: string | null = null;
  #answered = 0;
  #startedAt = 0;
  #arrived = 0;
  #startLag = 0;
  #stopped = false;
  #arrivalTimer: NodeJS.Timeout | undefined;
  #finish: (bug?: unknown) => void = () => undefined;

  /** `address` should hold no name. */
  constructor(address: Address, plan: Plan, options: RunOptions) {
    this.#address = address;
    this.#plan = plan;
    this.#options = options;
    this.#times = plan.requests.map(() => []);
    this.#planned = plan.requests.reduce((sum, n) => sum + n, 0);
    this.#stages = { toCome: plan.requests.length, waiting: 0, talking: 0, done: 0 };
  }

  /** Fulfilled when every client has left; never rejected because requests fail. */
  async start(): Promise<Outcome> {
    const stopWatching = watchLoop();
    this.#startedAt = performance.now();
    await new Promise<void>((resolve, reject) => {
      this.#finish = (bug) => (bug === undefined ? resolve() : reject(bug));
      this.#admit();
      this.#finishIfDone(); // when it was stopped before
    });
    return {
      times: this.#times,
      planned: this.#planned,
      errors: this.#errors,
      firstFailure: this.#firstFailure,
      seconds: (performance.now() - this.#startedAt) / 1000,
      interrupted: this.#stopped,
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
    const failed = failureKinds.reduce((sum, kind) => sum + this.#errors[kind], 0);
    const p50 = quantile(
      this.#recent.toSorted((a, b) => a - b),
      0.5,
    );
    return {
      ...this.#stages,
      planned: this.#planned,
      answered: this.#answered,
      failed,
      p50,
      seconds: (performance.now() - this.#startedAt) / 1000,
    };
  }

  /**
   * Starts the clients that are due. One timer, for the next arrival, serves any number of them.
   */
  readonly #admit = (): void => {
    for (;;) {
      const arrival = this.#plan.arrivals[this.#arrived];
      if (arrival === undefined || this.#stopped) return;
      const due = this.#startedAt + arrival * 1000;
      const wait = due - performance.now();
      if (wait > 0) {
        this.#arrivalTimer = setTimeout(this.#admit, Math.min(Math.ceil(wait), LONGEST_TIMER));
        return;
      }
      this.#startLag = Math.max(this.#startLag, -wait);
      this.#attend(this.#arrived++, due).then(() => this.#finishIfDone(), this.#finish);
    }
  };

  /** One client from its arrival to its leaving. */
  async #attend(index: number, due: number): Promise<void> {
    const client = new Client(this.#address, this.#options.timeout);
    const times = this.#times[index] ?? [];
    this.#clients.add(client);
    this.#move("toCome", "waiting");
    for (let i = 0; i < (this.#plan.requests[index] ?? 0) && !this.#stopped; i++) {
      // From the scheduled arrival, so that a tester that runs late (or a full backlog) hides no
      // waiting: no coordinated omission.
      const answer = client.request(i === 0 ? due : performance.now());
      await answer.then(
        (seconds) => this.#record(times, seconds),
        (error: unknown) => this.#fail(error),
      );
      if (this.#options.reconnect) client.close();
    }
    client.close();
    this.#clients.delete(client);
    this.#move(times.length > 0 ? "talking" : "waiting", "done");
  }

  #record(times: number[], seconds: number): void {
    if (times.length === 0) this.#move("waiting", "talking");
    times.push(Math.round(seconds * 1e6) / 1e6);
    this.#recent[this.#answered++ % RECENT] = seconds;
  }

  /** The client goes on with the next request of its plan, on a new connection. */
  #fail(error: unknown): void {
    if (!(error instanceof RequestError)) throw error;
    this.#errors[error.kind]++;
    if (error.kind !== "interrupted") this.#firstFailure ??= error.message;
  }

  #move(from: Stage, to: Stage): void {
    this.#stages[from]--;
    this.#stages[to]++;
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
/**
 * Runs in each child: its standard input is a pipe of ours that closes when we are gone, even by
 * SIGKILL.
 */
const END_WITH_PARENT = `data:text/javascript,${encodeURIComponent('process.stdin.on("close", () => process.exit(1)).resume().unref();')}`;

export class Children {
  readonly #running = new Set<ChildProcess>();
  #stopping = false;

  /**
   * Starts a script that lies beside this one. Fulfilled with the address it listens on. Throws
   * RunError with its complaint.
   */
  async start(script: string, args: readonly string[]): Promise<Address> {
    const path = fileURLToPath(new URL(script, import.meta.url));
    // A process group of its own: a Ctrl-C on the terminal must reach the children only through us.
    const child = spawn(
      process.execPath,
      [...process.execArgv, "--import", END_WITH_PARENT, path, ...args],
      { detached: true, stdio: "pipe" },
    );
    this.#running.add(child);
    child.on("close", () => this.#running.delete(child));
    const address = await firstWords(script, child);
    child.stderr.on("data", (text: string) => process.stderr.write(text));
    child.on("exit", (code, signal) => {
      if (!this.#stopping)
        console.error(`${script} ended in the middle of the run: ${signal ?? `exit code ${code}`}`);
    });
    return address;
  }

  /** Ends all of them, and waits until they have. */
  async stop(): Promise<void> {
    this.#stopping = true;
    const closed = [...this.#running].map((child) => once(child, "close"));
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
    for (const { pid, exitCode, signalCode } of this.#running) {
      if (pid !== undefined && exitCode === null && signalCode === null) process.kill(-pid, signal);
    }
  }
}

/**
 * The address that a child says it listens on. Throws RunError when it ends first, or says nothing
 * for too long.
 */
function firstWords(script: string, child: ChildProcessWithoutNullStreams): Promise<Address> {
  return new Promise((resolve, reject) => {
    let [said, complaint] = ["", ""];
    const fail = (reason: string): void =>
      reject(new RunError(`Cannot start ${script}: ${reason}`));
    const timer = setTimeout(() => fail(`not listening after ${READY_MS / 1000} s`), READY_MS);
    child.stderr.setEncoding("utf8").on("data", (text: string) => {
      complaint += text;
    });
    child.stdout.setEncoding("utf8").on("data", (text: string) => {
      said += text;
      const address = parseAddress(/^Listening on (\S+)\n/m.exec(said)?.[1] ?? "");
      if (!address) return;
      clearTimeout(timer);
      resolve(address);
    });
    child
      .on("error", (error) => fail(reasonOf(error)))
      .on("close", (code, signal) => {
        clearTimeout(timer);
        fail(complaint.trim().split("\n")[0] || `ended by ${signal ?? `exit code ${code}`}`);
      });
  });
}

/** The options of the servers, one by one, and those that the last one has besides. */
type Lab = {
  readonly servers: readonly (readonly string[])[];
  readonly lastServer: readonly string[];
  readonly weights: readonly number[];
  readonly balancerSeed: number;
};

/**
 * Starts what an entry needs: the baseline is the first server alone. Fulfilled with the address to
 * ask. Throws RunError.
 */
async function startEntry(
  children: Children,
  { algorithm, balancerOptions }: Entry,
  { servers, lastServer, weights, balancerSeed }: Lab,
): Promise<Address> {
  const needed = algorithm === undefined ? servers.slice(0, 1) : servers;
  const started = needed.map((options, i) =>
    children.start("server.ts", [
      "127.0.0.1",
      "0",
      "--log",
      "none",
      ...options,
      ...(i === needed.length - 1 ? lastServer : []),
    ]),
  );
  const addresses = await Promise.all(started);
  if (algorithm === undefined) return addresses[0]!;
  const list = addresses
    .map((address, i) => `${formatAddress(address)}*${weights[i] ?? 1}`)
    .join(",");
  return children.start("load_balancer.ts", [
    algorithm,
    "--port",
    "0",
    "--servers",
    list,
    "--log",
    "none",
    "--seed",
    String(balancerSeed),
    ...balancerOptions,
  ]);
}

// ─── Files ───────────────────────────────────────────────────────────────────

/** Written beside it and renamed, so that nobody ever reads half a file. Throws RunError. */
function writeWhole(file: string, text: string): void {
  const draft = `${file}.${process.pid}.tmp`;
  try {
    writeFileSync(draft, text);
    renameSync(draft, file);
  } catch (error) {
    rmSync(draft, { force: true });
    throw new RunError(`Cannot write ${file}: ${reasonOf(error)}`);
  }
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

/** A line for each client, so that two runs can be compared by eye and by diff. */
const formatTimes = (times: Outcome["times"]): string =>
  `[\n${times.map((of) => JSON.stringify(of)).join(",\n")}\n]\n`;

// ─── Session ─────────────────────────────────────────────────────────────────
// One call of this script: one run, or one for each entry of --compare, and what Ctrl-C does at any
// moment of it.

const INTERRUPTED = 130;
const LIVE_MS = 250;

type Job = Omit<Setup, "name" | "address"> &
  RunOptions & {
    readonly plan: Plan;
    /** Without entries, one run against `target`. */
    readonly entries: readonly Entry[];
    readonly lab: Lab;
    readonly target: Address;
    readonly name: string;
    readonly fileOf: (name: string) => string;
    readonly json: boolean;
    readonly quiet: boolean;
  };

class Session {
  readonly #job: Job;
  readonly #summaries: Summary[] = [];
  #interrupted = false;
  #run: Run | undefined;
  #children: Children | undefined;

  constructor(job: Job) {
    this.#job = job;
    onStopSignals(
      () => this.#interrupt(),
      () => process.exit(INTERRUPTED),
    );
    process.on("exit", () => this.#children?.kill()); // after an error, or a second Ctrl-C
  }

  /** Everything, to the exit code. Throws RunError. */
  async carryOut(): Promise<number> {
    const { entries, target, name, fileOf, json } = this.#job;
    const comparing = entries.length > 0;
    for (const each of comparing ? entries : [{ name }]) checkWritable(fileOf(each.name));
    for (const entry of entries) if (!this.#interrupted) await this.#measureEntry(entry);
    if (!comparing) await this.#measure(name, await resolveAddress(target));
    if (json)
      console.log(JSON.stringify(comparing ? this.#summaries : this.#summaries[0], null, 2));
    if (this.#interrupted) return INTERRUPTED;
    return this.#summaries.every(({ answered, planned }) => answered === planned) ? 0 : 1;
  }

  /** Starts everything afresh for one entry, and stops it again. */
  async #measureEntry(entry: Entry): Promise<void> {
    const children = new Children();
    this.#children = children;
    try {
      const address = await startEntry(children, entry, this.#job.lab).catch((error: unknown) => {
        if (!this.#interrupted) throw error;
        return undefined; // it did not start because we stopped it
      });
      if (address) await this.#measure(entry.name, address);
    } finally {
      await children.stop();
    }
  }

  /** Carries out the plan against `address` and writes the file, whatever came of it. */
  async #measure(name: string, address: Address): Promise<void> {
    const { clients, maxRequests, rate, seed, plan, timeout, reconnect, fileOf, json, quiet } =
      this.#job;
    const run = new Run(address, plan, { timeout, reconnect });
    this.#run = run;
    if (this.#interrupted) run.stop();
    const hideLive = process.stderr.isTTY && !quiet ? showLive(name, run) : () => undefined;
    const outcome = await run.start().finally(hideLive);
    this.#run = undefined;
    writeWhole(fileOf(name), formatTimes(outcome.times));
    const summary = summarise(
      { name, clients, maxRequests, rate, seed, reconnect, address: formatAddress(address) },
      outcome,
    );
    if (!json && !quiet)
      console.log(`${this.#summaries.length > 0 ? "\n" : ""}${formatSummary(summary)}`);
    if (summary.bottleneck)
      console.error(
        `Warning: the tester itself was the bottleneck in ${name}: ${bottlenecks(outcome.tester, outcome.seconds).join(", ")}`,
      );
    this.#summaries.push(summary);
  }

  #interrupt(): void {
    this.#interrupted = true;
    if (this.#run) this.#run.stop();
    else void this.#children?.stop();
  }
}

/**
 * Shows where `run` stands, again and again on the same line, until the returned function is
 * called.
 */
function showLive(name: string, run: Run): () => void {
  const show = (): void => {
    process.stderr.write(`\r\x1b[K${liveLine(name, run.progress, process.stderr.columns)}`);
  };
  const timer = setInterval(show, LIVE_MS);
  return () => {
    clearInterval(timer);
    process.stderr.write("\r\x1b[K");
  };
}

// ─── Command line ────────────────────────────────────────────────────────────

const plainName: Kind<string> = {
  expected: "a plain file name",
  read: (text) => (/^(?!\.{1,2}$)[^/\\\p{Cc}]+$/u.test(text) ? text : undefined),
};
/** A value of `kind` for every server, or a list that gives them one by one. */
const oneByOne = <T>(kind: Kind<T>): Kind<readonly T[]> => ({
  expected: `${kind.expected}, or a list of them, one a server, with commas between`,
  read(text) {
    const values = text
      .split(",")
      .map(kind.read)
      .filter((value) => value !== undefined);
    return values.length === text.split(",").length ? values : undefined;
  },
});
const sleeps = oneByOne(amount("seconds"));

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
    help: "the plan: how many requests each client makes, when it arrives",
  },
  rate: {
    kind: amount("clients a second"),
    value: "R",
    fallback: "0",
    help: "clients arriving a second, Poisson; 0 = all at once",
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
    kind: wholeNumber(1),
    value: "N",
    help: "connections that each of them serves at once (default 10)",
  },
  weights: {
    kind: oneByOne(wholeNumber(1, 1000)),
    value: "LIST",
    help: "their weights, likewise a list (default 1)",
  },
  slow: {
    kind: slowPhase,
    value: "FROM-TO:MEAN",
    help: "another mean for the last server, from one second to another after its start",
  },
  data: { kind: anyText, value: "DIR", help: "where --name and --compare write (default data)" },
  json: { help: "the summary as JSON in place of the table; an array with --compare" },
  quiet: { help: "no live line, no table" },
} as const;

/** Options that would silently do nothing are refused. */
function checkTogether(values: Values<typeof OPTIONS>): void {
  const refuse = (names: readonly (keyof typeof OPTIONS)[], expected: string): void => {
    const name = names.find((name) => values[name] !== undefined);
    if (name) throw new UsageError(`Bad option "--${name}": expected only ${expected}`);
  };
  if (values.compare === undefined)
    refuse(
      ["servers", "mean", "sd", "slots", "weights", "slow"],
      "with --compare, which starts the servers",
    );
  else refuse(["host", "port", "name"], "without --compare, which starts and names what it asks");
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

function labOf(
  {
    servers = 5,
    mean = [0.5],
    sd = [0.2],
    slots = 10,
    weights = [1],
    slow,
  }: Values<typeof OPTIONS>,
  nextSeed: () => number,
): Lab {
  const balancerSeed = nextSeed();
  const sds = spread("sd", sd, servers);
  return {
    servers: spread("mean", mean, servers).map((seconds, i) => [
      "--mean",
      String(seconds),
      "--sd",
      String(sds[i]),
      "--max-connections",
      String(slots),
      "--seed",
      String(nextSeed()),
    ]),
    lastServer: slow ? ["--slow", `${slow.from}-${slow.to}:${slow.mean}`] : [],
    weights: spread("weights", weights, servers),
    balancerSeed,
  };
}

/** All that is to be done, drawn and checked before anything is started. Throws UsageError. */
export function readJob(positionals: readonly string[], values: Values<typeof OPTIONS>): Job {
  const [clientsText, requestsText, extra] = positionals;
  if (clientsText === undefined) throw new UsageError("");
  const clients = readValue("clients", wholeNumber(1, 100_000), clientsText);
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
  checkTogether(values);
  const {
    rate,
    seed,
    timeout,
    reconnect,
    json,
    quiet,
    compare,
    name,
    data = "data",
    host = "127.0.0.1",
    port = 65432,
  } = values;
  const nextSeed = seedsFrom(seed);
  const plan = drawPlan(clients, maxRequests, rate, nextSeed);
  const here = compare === undefined && name === undefined;
  return {
    clients,
    maxRequests,
    rate,
    seed,
    timeout,
    reconnect,
    json,
    quiet,
    plan,
    entries: compare === undefined ? [] : parseEntries(compare),
    lab: labOf(values, nextSeed),
    target: { host, port },
    name: name ?? "response_times",
    fileOf: (name) => join(here ? "." : data, `${name}.json`),
  };
}

const main = (positionals: string[], values: Values<typeof OPTIONS>): Promise<number> =>
  new Session(readJob(positionals, values)).carryOut();

if (isMain(import.meta))
  void runScript({
    usage: "How to Use: tsx stress_test.ts [clients] [max_requests]",
    options: OPTIONS,
    main,
  });
