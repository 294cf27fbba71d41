/**
 * stress_test.test.ts - the plan, what is printed and written, runs against real servers, and
 * --compare with its children.
 */
import { existsSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { connect, type Socket } from "node:net";
import { join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { parseCommandLine, UsageError } from "../lib.ts";
import { algorithms } from "../load_balancer.ts";
import { startServer } from "../server.ts";
import {
  capacityOf,
  cellsOf,
  Children,
  disturbances,
  drawPlan,
  endlessVisits,
  formatLeft,
  formatSummary,
  liveLine,
  type Measured,
  numbersOf,
  OPTIONS,
  type Outcome,
  parseEntries,
  type Plan,
  type Progress,
  readJob,
  roundsOf,
  Run,
  type RunOptions,
  secondsLeft,
  seedsFrom,
  type ServerSetup,
  summarise,
  type Visits,
  visitsOf,
  type Workload,
} from "../stress_test.ts";
import {
  cleanUp,
  coverNoGrandchildren,
  later,
  listening,
  readJson,
  run,
  runEach,
  start,
  temporaryFolder,
  until,
  within,
} from "./helpers.ts";

coverNoGrandchildren();

/** A ping server in this process that answers at once. */
async function serve(maxConnections = 10_000): Promise<number> {
  const server = await startServer({
    host: "127.0.0.1",
    port: 0,
    mean: 0,
    sd: 0,
    maxConnections,
    seed: 1,
  });
  later(() => {
    const closed = server.close();
    server.cut();
    return closed;
  });
  return server.address.port;
}

const everyByte =
  (act: (socket: Socket) => void) =>
  (socket: Socket): void =>
    void socket.on("data", () => act(socket));
// ─── Plan ────────────────────────────────────────────────────────────────────

const plans = suite("stress test: plan");

plans("the same seed draws the same plan, another one another", () => {
  assert.equal(drawPlan(50, 5, 30, seedsFrom(1)), drawPlan(50, 5, 30, seedsFrom(1)));
  assert.not.equal(
    drawPlan(50, 5, 30, seedsFrom(1)).requests,
    drawPlan(50, 5, 30, seedsFrom(2)).requests,
  );
});

plans("every client draws its own number of requests, uniformly from 1 to the maximum", () => {
  const counts = [0, 0, 0, 0, 0];
  for (const n of drawPlan(10_000, 5, 0, seedsFrom(1)).requests) counts[n - 1]! += 1;
  assert.ok(
    counts.every((count) => Math.abs(count - 2000) < 160),
    counts.join(" "),
  ); // four standard deviations
});

plans("arrivals ascend, at the rate asked for", () => {
  const { arrivals } = drawPlan(10_000, 5, 50, seedsFrom(1));
  assert.equal(
    arrivals,
    arrivals.toSorted((a, b) => a - b),
  );
  assert.ok(
    Math.abs((arrivals.at(-1) ?? 0) - 200) < 8,
    `10,000 arrivals took ${arrivals.at(-1)} s`,
  );
});

plans("rate 0 lets all arrive at once, and changes nothing about the requests", () => {
  const burst = drawPlan(100, 5, 0, seedsFrom(1));
  assert.ok(burst.arrivals.every((arrival) => arrival === 0));
  assert.equal(burst.requests, drawPlan(100, 5, 30, seedsFrom(1)).requests);
});

plans("more clients leave the plan of the first ones as it was", () => {
  const [few, many] = [drawPlan(50, 5, 30, seedsFrom(1)), drawPlan(90, 5, 30, seedsFrom(1))];
  assert.equal(few.requests, many.requests.slice(0, 50));
  assert.equal(few.arrivals, many.arrivals.slice(0, 50));
});

plans("the luck of a plan has a stream of its own, and numbers each request for itself", () => {
  const { luck } = drawPlan(5, 5, 30, seedsFrom(1));
  assert.is(drawPlan(500, 1, 0, seedsFrom(1)).luck, luck);
  const numbers = Array.from({ length: 1000 }, (_, client) => {
    const next = numbersOf(luck, client);
    return [next(), next(), next()];
  }).flat();
  assert.is(new Set(numbers).size, 3000);
  assert.ok(numbers.every((number) => Number.isInteger(number) && number < 2 ** 32));
  const next = numbersOf(luck, 7);
  assert.equal([next(), next(), next()], numbers.slice(21, 24));
});

plans("a run without an end draws the clients of the plan, and goes on", () => {
  const { requests, arrivals, luck } = drawPlan(50, 5, 30, seedsFrom(1));
  const visits = endlessVisits(5, 30, seedsFrom(1));
  for (const [place, arrival] of arrivals.entries())
    assert.equal(visits.next(), { requests: requests[place], arrival });
  assert.ok(visits.next());
  assert.equal([visits.luck, visits.clients], [luck, Infinity]);
});

plans("no two streams share a seed", () => {
  const nextSeed = seedsFrom(1);
  assert.is(new Set(Array.from({ length: 8 }, nextSeed)).size, 8);
});

plans.run();

// ─── Entries of --compare ────────────────────────────────────────────────────

const entries = suite("stress test: entries of --compare");

entries("an entry names its file after what it tests", () => {
  const names = parseEntries(
    "baseline, round-robin,least-connections,least-connections --server-connections 10 --check=none",
  ).map(({ name }) => name);
  assert.equal(names, [
    "Baseline",
    "RoundRobin",
    "LeastConnections",
    "LeastConnections-server-connections-10-check-none",
  ]);
});

entries("an entry hands its options to the balancer; the baseline has none", () => {
  assert.equal(parseEntries("baseline,two-choices  --fall 5"), [
    { name: "Baseline", algorithm: undefined, balancerOptions: [] },
    { name: "TwoChoices-fall-5", algorithm: "two-choices", balancerOptions: ["--fall", "5"] },
  ]);
});

entries("values with commas or blanks stand in single quotes", () => {
  const parsed = parseEntries("random --check 'tcp',round-robin --fall '5' --rise=7");
  assert.equal(
    parsed.map(({ balancerOptions }) => balancerOptions.join(" ")),
    ["--check tcp", "--fall 5 --rise=7"],
  );
  assert.throws(() => parseEntries("round-robin,random --fall 'a, b'"), /Bad --fall "a, b"/);
  assert.throws(() => parseEntries("random --check 'a"), /expected another '/);
});

const inRounds = (list: string, runs: number): string[] =>
  roundsOf(
    parseEntries(list),
    Array.from({ length: runs }, (_, i) => 7 + i),
  ).map(({ seed, entries }) => `${seed}: ${entries.map(({ name }) => name).join(" ")}`);

entries("runs go seed by seed, in the opposite order each time, the baseline once", () => {
  assert.equal(inRounds("baseline,random,round-robin", 3), [
    "7: Baseline Random RoundRobin",
    "8: RoundRobin Random",
    "9: Random RoundRobin",
  ]);
});

entries("as one of two, the baseline is run with every seed", () => {
  assert.equal(inRounds("baseline,random", 2), ["7: Baseline Random", "8: Random Baseline"]);
});

entries("all is the baseline and every algorithm", () => {
  assert.equal(
    parseEntries("all").map(({ algorithm }) => algorithm),
    [undefined, ...Object.keys(algorithms)],
  );
});

entries("a bad entry is quoted", () => {
  for (const entry of [
    "fastest",
    "",
    "constructor",
    "baseline --fall 5",
    "random --port 1",
    "random --servers=x",
    "random ten",
  ]) {
    assert.throws(
      () => parseEntries(`round-robin,${entry}`),
      (error: unknown) =>
        error instanceof UsageError &&
        error.message.startsWith(`Bad --compare entry ${JSON.stringify(entry)}: expected `),
      entry,
    );
  }
});

entries("the same entry twice is refused, and so are two that would write the same file", () => {
  for (const list of ["random,baseline,random", "all,random", "random --fall 5,random --fall=5"])
    assert.throws(() => parseEntries(list), /expected each entry once/, list);
});

entries.run();

// ─── Summary ─────────────────────────────────────────────────────────────────

const summaries = suite("stress test: summary");

const plan: Workload = {
  clients: 60,
  maxRequests: 5,
  rate: 0,
  reconnect: false,
  timeout: 30,
  addresses: 1,
  fail: null,
  hang: null,
};
const noErrors = {
  connect: 0,
  timeout: 0,
  reset: 0,
  closed: 0,
  wrong: 0,
  shortage: 0,
  interrupted: 0,
};
const idle = { utilization: 0.1, stall: 0.001, startLag: 0.001 };

const outcomeOf = (times: number[][], other: Partial<Outcome> = {}): Outcome => ({
  seed: 1,
  address: "127.0.0.1:65432",
  times,
  planned: times.flat().length,
  errors: noErrors,
  firstFailure: null,
  firstFailed: [],
  seconds: 5.17,
  interrupted: false,
  simulated: false,
  tester: idle,
  disturbed: [],
  ...other,
});

const measured = (runs: Outcome[], other: Partial<Measured> = {}): Measured => ({
  name: "RoundRobin",
  setup: { algorithm: null, options: [], servers: null, balancers: 1 },
  plan,
  runsAsked: runs.length,
  runs,
  ...other,
});

/** What a run of 5.17 s with these times printed. */
const printed = (
  times: number[][],
  outcome: Partial<Outcome> = {},
  workload: Partial<Workload> = {},
): string =>
  formatSummary(
    summarise(measured([outcomeOf(times, outcome)], { plan: { ...plan, ...workload } })),
  );

summaries("is laid out as the contract has it", () => {
  const times = Array.from({ length: 60 }, (_, i) => [
    i / 59,
    ...Array<number>(i < 59 ? 2 : 1).fill(0.5),
  ]);
  assert.is(
    printed(times),
    `\
RoundRobin   60 clients × 1–5 requests, all at once, seed 1 → 127.0.0.1:65432
179/179 answered in 5.17 s   34.6 req/s   errors 0

response time (s)     n    mean     p50    p90    p95    max
first request        60   0.500   0.500  0.900  0.950  1.000   includes waiting for a slot
later requests      119   0.500   0.500  0.500  0.500  0.500
all                 179   0.500   0.500  0.698  0.849  1.000   p99 needs n ≥ 299`,
  );
});

summaries("has a column for p99 once the whole run carries it", () => {
  const lines = printed(Array.from({ length: 299 }, (_, i) => [i / 298]))
    .split("\n")
    .slice(3);
  assert.equal(lines, [
    "response time (s)     n    mean     p50    p90    p95    p99    max",
    "first request       299   0.500   0.500  0.900  0.950  0.990  1.000   includes waiting for a slot",
    "later requests        0       -       -      -      -      -      -",
    "all                 299   0.500   0.500  0.900  0.950  0.990  1.000",
  ]);
});

summaries("names the first percentile that the run does not carry", () => {
  const last = (n: number): string =>
    printed(Array.from({ length: n }, () => [1]))
      .split("\n")
      .at(-1) ?? "";
  assert.match(last(4), /^all +4   1\.000 +- +- +-  1\.000   p50 needs n ≥ 5$/);
  assert.match(last(28), /^all +28   1\.000   1\.000 +- +-  1\.000   p90 needs n ≥ 29$/);
  assert.match(last(58), /^all +58   1\.000   1\.000  1\.000 +-  1\.000   p95 needs n ≥ 59$/);
});

summaries("keeps its columns apart when times are long", () => {
  assert.match(
    printed(Array.from({ length: 60 }, () => [1234.56])),
    "60  1234.6  1234.6 1234.6 1234.6 1234.6",
  );
});

summaries("has three significant digits, in milliseconds where all is below 0.1 s", () => {
  const [, , , head = "", first = ""] = printed(
    Array.from({ length: 60 }, (_, i) => [0.0007501 + i / 1e6]),
  ).split("\n");
  assert.match(head, /^response time \(ms\) +n/);
  assert.match(first, /^first request +60 +0\.78\d +0\.78\d +0\.80\d +0\.80\d +0\.809 /);
  assert.match(printed([...Array(60).fill([0.0005]), [1]]), / 0\.000500 /);
});

summaries("a run in no time at all shows no 0.000", () => {
  assert.match(printed([[0]], { seconds: 0 }), "1/1 answered in 0 s   0 req/s");
});

summaries("counts errors by kind and shows the first", () => {
  const lines = printed([[], []], {
    planned: 5,
    errors: { ...noErrors, connect: 4, timeout: 1 },
    firstFailure: "Cannot connect to x",
  }).split("\n");
  assert.equal(lines.slice(1, 3), [
    "0/5 answered in 5.17 s   0 req/s   errors 5 (connect 4, timeout 1)",
    "first failure: Cannot connect to x",
  ]);
  assert.match(lines.at(-1) ?? "", /^all +0 +- +- +- +- +-   p50 needs n ≥ 5$/);
});

summaries("a client whose first request failed has no first request", () => {
  const run = outcomeOf([[5, 5], [1, 2], [7]], { firstFailed: [0, 2] });
  const { first, later, all } = summarise(measured([run]));
  assert.equal([first.n, first.max, later.n, later.max, all.n], [1, 1, 4, 7, 5]);
});

summaries("takes the first requests of each run by themselves", () => {
  const runs = [outcomeOf([[1], [2]], { firstFailed: [1] }), outcomeOf([[3], [4]])];
  const { first, answered, seconds, seeds } = summarise(measured(runs));
  assert.equal([first.n, first.mean, answered, seconds], [3, 8 / 3, 4, 10.34]);
  assert.equal(seeds, [1, 1]);
});

summaries("says what disturbed it, and whose a shortage is", () => {
  const text = printed([[]], {
    disturbed: ["the balancer stood still for 0.31 s"],
    errors: { ...noErrors, shortage: 3 },
  });
  assert.match(text, "errors 3 (shortage 3)");
  assert.match(text, "a shortage is the tester's own");
  assert.match(text, "disturbed, seed 1: the balancer stood still for 0.31 s");
});

const server: ServerSetup = { mean: 0.05, sd: 0.02, slots: 10, weight: 1, slow: null };

summaries(
  "says how much of the servers' capacity is asked for, and how many runs there were",
  () => {
    assert.is(Math.round(capacityOf(Array(5).fill(server), 5)), 333);
    const setup = {
      algorithm: "round-robin",
      options: [],
      servers: Array(5).fill(server),
      balancers: 1,
    };
    const runs = [outcomeOf([[1]], { simulated: true }), outcomeOf([[1]], { simulated: true })];
    const text = formatSummary(summarise(measured(runs, { setup, plan: { ...plan, rate: 300 } })));
    assert.match(text, "RoundRobin (simulated)   60 clients × 1–5 requests, 300 arriving a second");
    assert.match(text, "second (90 % of capacity), 2 runs from seed 1 → 5 servers\n");
  },
);

summaries("says how clients arrived and connected", () => {
  assert.match(
    printed([[1]], {}, { clients: 1, maxRequests: 1, rate: 30, reconnect: true }),
    "RoundRobin   1 client × 1 request, 30 arriving a second, a connection each, seed 1 →",
  );
});

const progress: Progress = {
  planned: 179,
  answered: 126,
  failed: 0,
  toCome: 0,
  waiting: 9,
  talking: 31,
  done: 20,
  p50: 0.55,
  seconds: 2.9,
};
const sixth = { name: "RoundRobin", run: 2, runs: 6, left: 31 };
const alone = { name: "RoundRobin", run: 1, runs: 1, left: NaN };

summaries("the live line is laid out as the contract has it", () => {
  assert.is(
    liveLine(sixth, progress, 200),
    "RoundRobin  run 2 of 6  ██████████████░░░░░░ 126/179   9 waiting · 31 talking · 20 done   p50 0.55 s   errors 0   2.9 s   about 30 s left",
  );
  assert.match(
    liveLine(alone, { ...progress, answered: 0, toCome: 5, p50: NaN }, 200),
    "5 to come · 9 waiting · 31 talking · 20 done   p50 - s",
  );
  assert.match(liveLine(alone, { ...progress, p50: 0.0532 }, 200), "p50 53.2 ms");
});

summaries("the live line has room for the errors at any width, and never wraps", () => {
  const failing = { ...progress, failed: 53 };
  const place = { ...sixth, name: "最小连接数とても長い名前ですから-least-connections" };
  for (let columns = 12; columns < 220; columns++) {
    const line = liveLine(place, failing, columns);
    assert.ok(cellsOf(line) < columns, `${columns}: ${line}`);
    assert.match(line, "errors 53".slice(0, columns - 1), String(columns));
  }
  assert.is(cellsOf("日本e\u0301"), 5);
});

summaries("what failed is crossed out in the bar, even if it is little", () => {
  assert.match(liveLine(alone, { ...progress, failed: 1 }, 200), "█████████████×░░░░░░ 126/179");
  const half = { ...progress, answered: 30, failed: 30, planned: 60 };
  assert.match(liveLine(alone, half, 200), "██████████×××××××××× 30/60");
});

summaries("a run without an end has neither bar nor end", () => {
  const endless = { ...progress, planned: Infinity, toCome: Infinity };
  assert.match(liveLine(alone, endless, 200), /^RoundRobin {2}126 answered {3}9 waiting/);
  assert.ok(Number.isNaN(secondsLeft(endless, 0)));
});

summaries("the time left follows the share that is done, before that the last arrival", () => {
  assert.ok(Number.isNaN(secondsLeft({ ...progress, answered: 0 }, 0)));
  assert.is(secondsLeft({ ...progress, answered: 0 }, 5), 2.1);
  assert.is(secondsLeft({ ...progress, planned: 252 }, 5), 2.9);
  assert.equal(
    [NaN, 0, 0.6, 7.2, 41, 200].map(formatLeft),
    ["", "", "1 s", "7 s", "40 s", "3 min"].map((left) => left && `   about ${left} left`),
  );
});

summaries(
  "every standstill of any process is a disturbance, and only a busy loop a bottleneck",
  () => {
    const stalls = new Map([
      ["server 2", 0.049],
      ["the balancer", 0.31],
    ]);
    const run = { tester: idle, seconds: 1, errors: noErrors };
    assert.equal(disturbances(run, new Map()), []);
    assert.equal(disturbances(run, stalls), ["the balancer stood still for 0.31 s"]);
    const tester = { utilization: 0.71, stall: 0.051, startLag: 0.052 };
    assert.equal(
      disturbances({ ...run, tester, errors: { ...noErrors, shortage: 1 } }, new Map()),
      [
        "the tester's loop was busy 71 % of the time, it was the bottleneck",
        "the tester started a client 0.05 s late",
        "the tester stood still for 0.05 s",
        "the tester lacked descriptors or ports for 1 request",
      ],
    );
    assert.equal(disturbances({ ...run, tester: { ...tester, ...idle } }, new Map()), []);
  },
);

summaries("one run of several is enough for what is told of them all", () => {
  const tester = { ...idle, utilization: 0.99 };
  const other = { address: "127.0.0.1:2", interrupted: true, firstFailure: "Lost", tester };
  const runs = [outcomeOf([[1]]), outcomeOf([[1], [2]], other)];
  const summary = summarise(measured(runs, { plan: { ...plan, clients: 0 } }));
  const { clients, address, interrupted, firstFailure, bottleneck } = summary;
  assert.equal([clients, address, interrupted], [2, "127.0.0.1:2", true]);
  assert.equal([firstFailure, bottleneck], ["Lost", true]);
});

summaries.run();

// ─── Runs ────────────────────────────────────────────────────────────────────

const runs = suite("stress test: runs");
runs.after.each(cleanUp);

function runOf(port: number, plan: Plan, options: Partial<RunOptions> = {}): Run {
  return runWith(port, visitsOf(plan), options);
}
function runWith(port: number, visits: Visits, options: Partial<RunOptions> = {}): Run {
  const run = new Run([{ host: "127.0.0.1", port }], visits, {
    timeout: 20,
    reconnect: false,
    ...options,
  });
  later(() => run.stop());
  return run;
}
const burst = (...requests: number[]): Plan => ({
  requests,
  arrivals: requests.map(() => 0),
  luck: 0,
});

runs(
  "every request of the plan is answered and recorded under its client, in microseconds",
  async () => {
    const plan = drawPlan(40, 4, 400, seedsFrom(1));
    const { times, planned, errors } = await within(runOf(await serve(), plan).start(), "the run");
    assert.equal(
      times.map((of) => of.length),
      plan.requests,
    );
    assert.is(planned, times.flat().length);
    assert.equal(errors, noErrors);
    assert.ok(
      times
        .flat()
        .every((seconds) => seconds > 0 && /^0\.\d{1,6}$|^\de-[56]$/.test(String(seconds))),
      String(times.flat()),
    );
  },
);

runs("a thousand clients at once, none fails", async () => {
  const { times, errors } = await within(
    runOf(await serve(100), burst(...Array<number>(1000).fill(2))).start(),
    "the run",
  );
  assert.equal(errors, noErrors);
  assert.is(times.flat().length, 2000);
});

runs("a client keeps its connection, or has a new one for each request", async () => {
  let connections = 0;
  const { port } = await listening((socket) => {
    connections++;
    everyByte(() => socket.write("PONG!"))(socket);
  });
  await within(runOf(port, burst(3, 2)).start(), "the run");
  assert.is(connections, 2);
  await within(runOf(port, burst(3, 2), { reconnect: true }).start(), "the run");
  assert.is(connections, 7);
});

runs(
  "a failed request counts once, by its kind, and the client goes on with the next on a new connection",
  async () => {
    const misdeeds = [
      everyByte((socket) => socket.write("WRONG")),
      everyByte((socket) => socket.end()),
      everyByte((socket) => socket.resetAndDestroy()),
      everyByte(() => undefined),
    ];
    let connections = 0;
    const { port } = await listening((socket) =>
      (misdeeds[connections++] ?? everyByte(() => socket.write("PONG!")))(socket),
    );
    const { times, errors, firstFailure } = await within(
      runOf(port, burst(6), { timeout: 0.2 }).start(),
      "the run",
    );
    assert.equal(errors, { ...noErrors, wrong: 1, closed: 1, reset: 1, timeout: 1 });
    assert.is(times[0]?.length, 2);
    assert.is(connections, 5);
    assert.match(firstFailure ?? "", /^Wrong answer/);
  },
);

runs("arrivals do not wait for answers", async () => {
  let connections = 0;
  const { port } = await listening(() => connections++);
  const run = runOf(port, {
    requests: Array<number>(20).fill(1),
    arrivals: Array.from({ length: 20 }, (_, i) => i / 200),
    luck: 0,
  });
  const outcome = run.start();
  await until(() => connections === 20, "twenty arrivals");
  run.stop();
  assert.is((await outcome).errors.interrupted, 20);
});

runs(
  "the first request is timed from its scheduled arrival, however late the tester is",
  async () => {
    const run = runOf(await serve(), { requests: [2], arrivals: [0.01], luck: 0 });
    const outcome = run.start();
    for (const until = performance.now() + 80; performance.now() < until;); // the tester is busy
    const {
      times: [client = []],
      tester,
    } = await within(outcome, "the run");
    assert.ok(client[0]! >= 0.069 && client[0]! > client[1]!, String(client));
    assert.ok(tester.startLag >= 0.069 && tester.stall >= 0.05, JSON.stringify(tester));
  },
);

runs(
  "stopping counts what is in flight as interrupted, and what was never asked as nothing",
  async () => {
    let answers = 0;
    const { port } = await listening(
      everyByte((socket) => {
        if (answers++ === 0) socket.write("PONG!");
      }),
    );
    const run = runOf(port, { requests: [5, 5, 5], arrivals: [0, 0, 1000], luck: 0 });
    const outcome = run.start();
    await until(() => answers === 3, "two requests in flight");
    const { waiting, talking, toCome, done } = run.progress;
    assert.equal([waiting, talking, toCome, done], [1, 1, 1, 0]);
    run.stop();
    const { times, errors, interrupted } = await within(outcome, "the run");
    assert.equal(errors, { ...noErrors, interrupted: 2 });
    assert.is(times.flat().length, 1);
    assert.ok(interrupted);
  },
);

runs("a first request that failed is told, whatever the later ones do", async () => {
  let connections = 0;
  const { port } = await listening((socket) => {
    connections += 1;
    if (connections === 1) socket.resetAndDestroy();
    else everyByte(() => socket.write("PONG!"))(socket);
  });
  const outcome = await within(runOf(port, burst(2)).start(), "the run");
  assert.equal(outcome.firstFailed, [0]);
  assert.is(outcome.times[0]?.length, 1);
});

runs("numbers the requests from the plan's luck, in the order of each client", async () => {
  let received = "";
  const { port } = await listening((socket) =>
    socket.on("data", (chunk) => {
      received += chunk;
      socket.write("PONG!");
    }),
  );
  const numbered = { ...burst(3), luck: 4711 };
  await within(runOf(port, numbered, { numbered: true }).start(), "the run");
  const next = numbersOf(4711, 0);
  assert.is(received, `PING ${next()}!PING ${next()}!PING ${next()}!`);
});

runs("clients come from so many addresses in turn", async () => {
  if (process.platform !== "linux") return; // others lack all but 127.0.0.1
  const seen: (string | undefined)[] = [];
  const { port } = await listening((socket) => {
    seen.push(socket.remoteAddress);
    everyByte(() => socket.write("PONG!"))(socket);
  });
  await within(runOf(port, burst(1, 1, 1, 1), { addresses: 3 }).start(), "the run");
  assert.equal(seen.sort(), ["127.1.0.1", "127.1.0.1", "127.1.0.2", "127.1.0.3"]);
});

runs("a run without an end goes on until it is stopped, which is its end", async () => {
  const run = runWith(await serve(), endlessVisits(2, 500, seedsFrom(1)));
  const outcome = run.start();
  await until(() => run.progress.done > 20, "clients coming and going");
  assert.is(run.progress.planned, Infinity);
  run.stop();
  const { times, planned, interrupted, errors } = await within(outcome, "the run");
  assert.ok(times.length > 20 && times.flat().length + errors.interrupted <= planned);
  assert.not(interrupted);
});

runs("a client that our timer starts a moment late is timed from its start", async () => {
  const arrivals = Array.from({ length: 40 }, (_, i) => i / 100 + 0.0004);
  const requests = Array<number>(40).fill(1);
  const { port } = await listening(everyByte((socket) => socket.write("PONG!")));
  const outcome = await within(runOf(port, { requests, arrivals, luck: 0 }).start(), "the run");
  const firsts = outcome.times.flat().sort((a, b) => a - b);
  // from the scheduled arrival the fastest would hold the timer's 0.6 ms as well
  assert.ok((firsts[0] ?? 1) < 0.0006, firsts.slice(0, 5).join(" "));
});

runs("a run that was stopped before it started ends at once", async () => {
  const run = runOf(1, burst(5));
  run.stop();
  assert.equal((await within(run.start(), "the run")).times, [[]]);
});

runs("what Ctrl-C interrupts is counted, and is no failure to be told", async () => {
  const { port } = await listening(() => undefined);
  const run = runOf(port, burst(1));
  const outcome = run.start();
  await until(() => run.progress.waiting === 1, "its question");
  run.stop();
  const { errors, firstFailure } = await within(outcome, "the run");
  assert.equal([errors.interrupted, firstFailure], [1, null]);
});

runs.run();

// ─── The program ─────────────────────────────────────────────────────────────

const program = suite("stress_test.ts");
program.after.each(cleanUp);

program("writes response_times.json where it is called, and prints the summary", async () => {
  const folder = await temporaryFolder();
  const { code, stdout, stderr } = await run(
    "stress_test.ts",
    ["20", "3", "--port", String(await serve())],
    folder,
  );
  assert.match(
    stdout,
    /^response_times   20 clients × 1–3 requests, all at once, seed 1 → 127\.0\.0\.1:\d+\n(\d+)\/\1 answered in /,
  );
  // a line for the run; the machine may be busy
  assert.match(stderr, /^response_times \d+\/\d+ .*errors 0.*\n(Warning: .*\n)?$/);
  assert.is(code, 0);
  const times = readJson(join(folder, "response_times.json"));
  assert.ok(
    Array.isArray(times) &&
      times.length === 20 &&
      times.flat().every((seconds) => typeof seconds === "number"),
  );
  assert.equal(readdirSync(folder), ["response_times.json"]);
});

program(
  "nobody listening: errors are counted, the file is written all the same, exit code 1",
  async () => {
    const folder = await temporaryFolder();
    const { code, stdout } = await run(
      "stress_test.ts",
      ["3", "1", "--port", "1", "--name", "Nobody", "--data", "a/b"],
      folder,
    );
    assert.match(stdout, "0/3 answered in ");
    assert.match(
      stdout,
      "errors 3 (connect 3)\nfirst failure: Cannot connect to 127.0.0.1:1: connection refused\n",
    );
    assert.is(code, 1);
    assert.equal(readJson(join(folder, "a/b/Nobody.json")), [[], [], []]);
  },
);

program("--json prints the same figures as JSON, --quiet nothing", async () => {
  const folder = await temporaryFolder();
  const args = ["20", "3", "--port", String(await serve()), "--name", "Json"];
  const { stdout } = await run("stress_test.ts", [...args, "--json"], folder);
  const { name, planned, answered, first, later, all, errors, tester } = JSON.parse(stdout);
  assert.equal([name, planned, first.n + later.n], ["Json", answered, answered]);
  const times = readJson(join(folder, "data/Json.json"));
  assert.is(all.max, Array.isArray(times) ? Math.max(...times.flat()) : undefined);
  assert.equal([all.p99, errors], [null, noErrors]);
  assert.equal(Object.keys(tester), ["utilization", "stall", "startLag"]);
  assert.is((await run("stress_test.ts", [...args, "--quiet"], folder)).stdout, "");
});

program("Ctrl-C writes what there is and exits with 130", async () => {
  const folder = await temporaryFolder();
  let answers = 0;
  const { port } = await listening(
    everyByte((socket) => {
      if (answers++ < 5) socket.write("PONG!");
    }),
  );
  const { child, output, exited } = start(
    "stress_test.ts",
    ["2", "1000", "--port", String(port)],
    folder,
  );
  await until(() => answers === 7, "two requests without an answer");
  child.kill("SIGINT");
  assert.is(await within(exited, "stress_test.ts"), 130);
  assert.match(output.stdout, "errors 2 (interrupted 2)");
  const times = readJson(join(folder, "response_times.json"));
  assert.ok(Array.isArray(times) && times.length === 2 && times.flat().length === 5);
});

program("a folder that cannot be written is noticed before anybody is asked anything", async () => {
  const folder = await temporaryFolder();
  writeFileSync(join(folder, "file"), "");
  let connections = 0;
  const { port } = await listening(() => connections++);
  const folders = [join(folder, "file"), join(folder, "file/deeper"), "/proc/none"];
  const args = ["stress_test.ts", "3", "1", "--port", String(port), "--name", "X"];
  const results = await runEach(folders.map((data) => [...args, "--data", data]));
  for (const { code, stderr } of results) {
    assert.match(stderr, /^Cannot write .*X\.json: [a-z ]+\n$/);
    assert.is(code, 1);
  }
  assert.is(connections, 0);
});

const USAGE = "How to Use: tsx stress_test.ts [clients] [max_requests]\n";
program("bad input is one line that quotes it, then the usage, and exit code 2", async () => {
  const args = [[], ["0", "5"], ["-3", "5"], ["5", "5", "--compare", "baseline,fastest"]];
  const results = await runEach(args.map((words) => ["stress_test.ts", ...words]));
  assert.equal(
    results.map(({ code, stdout }) => [code, stdout]),
    Array(4).fill([2, ""]),
  );
  assert.equal(
    results.map(({ stderr }) => stderr),
    [
      USAGE,
      `Bad clients "0": expected at least 1, or one --rate above 0 for a run without an end\n${USAGE}`,
      `Bad clients "-3": expected a whole number from 0 to 100000\n${USAGE}`,
      `Bad --compare entry "fastest": expected baseline, all, ${Object.keys(algorithms).join(", ")}\n${USAGE}`,
    ],
  );
});

const badInput: [args: string, complaint: string][] = [
  ["5 abc", 'Bad max_requests "abc": expected a whole number from 1 to 1000000'],
  ["100001 5", 'Bad clients "100001": expected a whole number from 0 to 100000'],
  ["5", 'Missing max_requests after "5": expected a whole number from 1 to 1000000'],
  ["5 5 5", 'Bad argument "5": expected clients and max_requests only'],
  ["5 5 --port 70000", 'Bad --port "70000": expected a whole number from 1 to 65535'],
  ["5 5 --name a/b", 'Bad --name "a/b": expected a plain file name other than runs'],
  ["5 5 --name ..", 'Bad --name "..": expected a plain file name other than runs'],
  ["5 5 --name runs", 'Bad --name "runs": expected a plain file name other than runs'],
  ["5 5 --runs 3", 'Bad option "--runs": expected only with --compare'],
  ["5 5 --admin 1", 'Bad option "--admin": expected only with --compare'],
  ["5 5 --rate 1,2", 'Bad --rate "1,2": expected one rate; several only with --compare'],
  ["5 5 --compare random --rate 0,2", 'Bad --rate "0,2": expected rates above 0 in a list'],
  ["5 5 --compare random --rate 2,3,2.0", 'Bad --rate "2,3,2": expected each rate once'],
  ["5 5 --compare random --fail 8-4", 'Bad --fail "8-4": expected FROM-TO in seconds, such as 4-8'],
  ["5 5 --compare random --hang 4", 'Bad --hang "4": expected FROM-TO in seconds, such as 4-8'],
  [
    "5 5 --compare random --addresses 0",
    'Bad --addresses "0": expected a whole number from 1 to 60000',
  ],
  [
    "0 5 --compare random",
    'Bad clients "0": expected at least 1, or one --rate above 0 for a run without an end',
  ],
  [
    "0 5 --rate 5 --compare random,baseline",
    'Bad clients "0": expected one entry of --compare without an end',
  ],
  ["0 5 --rate 5 --compare random --runs 2", 'Bad clients "0": expected no --runs without an end'],
  [
    "5 5 --compare random --seed 4294967295 --runs 2",
    'Bad --runs "2": expected seeds up to 4294967295',
  ],
  ["5 5 --timeout 0", 'Bad --timeout "0": expected a number of seconds above 0, at most 2000000'],
  ["5 5 --mean 1", 'Bad option "--mean": expected only with --compare, which starts the servers'],
  ["5 5 --data x", 'Bad option "--data": expected only with --name or --compare'],
  [
    "5 5 --compare baseline --port 1",
    'Bad option "--port": expected only without --compare, which starts and names what it asks',
  ],
  [
    "5 5 --servers 3",
    'Bad option "--servers": expected only with --compare, which starts the servers',
  ],
  [
    "5 5 --compare baseline --mean 1,x",
    'Bad --mean "1,x": expected a number of seconds from 0 to 2000000, or a list of them, one a server, with commas between',
  ],
  [
    "5 5 --compare baseline --mean 1,2",
    'Bad --mean "1,2": expected one value, or one for each of 5 servers',
  ],
  [
    "5 5 --compare baseline --servers 3 --weights 1,2,3,4",
    'Bad --weights "1,2,3,4": expected one value, or one for each of 3 servers',
  ],
  [
    "5 5 --compare baseline --slow -,1-2:.5",
    'Bad --slow "-,1-2:0.5": expected one value, or one for each of 5 servers',
  ],
];

for (const [args, complaint] of badInput) {
  program(`${args}: ${complaint}`, () => {
    const read = (): unknown => {
      const { positionals, values } = parseCommandLine(OPTIONS, args.split(" "));
      return readJob(positionals, values);
    };
    assert.throws(
      read,
      (error: unknown) => error instanceof UsageError && error.message === complaint,
    );
  });
}

program.run();

// ─── --compare ───────────────────────────────────────────────────────────────

const comparing = suite("stress_test.ts --compare");
comparing.after.each(cleanUp);

const QUICK = ["--servers", "2", "--mean", "0,0.001", "--sd", "0", "--slow", "0-1000:0.002"];

comparing("runs the same plan against each entry and writes a file for each", async () => {
  const folder = await temporaryFolder();
  const { code, stdout } = await run(
    "stress_test.ts",
    ["20", "3", "--compare", "baseline,round-robin --fall 5", ...QUICK, "--json"],
    folder,
  );
  assert.is(code, 0);
  const names = ["Baseline", "RoundRobin-fall-5"];
  assert.equal(
    JSON.parse(stdout).map(({ name }: { name: string }) => name),
    names,
  );
  const lengths = names.map((name) => {
    const times = readJson(join(folder, "data/compare", `${name}.json`));
    return Array.isArray(times) ? times.map((of: unknown[]) => of.length) : [];
  });
  assert.equal(lengths[0], drawPlan(20, 3, 0, seedsFrom(1)).requests);
  assert.equal(lengths[0], lengths[1]);
});

comparing("a child that does not start is shown in its own words, exit code 1", async () => {
  const folder = await temporaryFolder();
  const { code, stdout, stderr } = await run(
    "stress_test.ts",
    ["1", "1", "--compare", "random --admin 203.0.113.1:1", ...QUICK],
    folder,
  );
  assert.match(stderr, /^Cannot start load_balancer\.ts: Cannot listen on 203\.0\.113\.1:1: /);
  assert.is(stdout, "");
  assert.is(code, 1);
});

comparing(
  "an option that the balancer would refuse is refused before anything is started",
  async () => {
    const { code, stderr } = await run(
      "stress_test.ts",
      ["1", "1", "--compare", "baseline,random --fall none", ...QUICK],
      await temporaryFolder(),
    );
    assert.match(
      stderr,
      /^Bad --compare entry "random --fall none": Bad --fall "none": expected a whole number.*\nHow to Use/,
    );
    assert.is(code, 2);
  },
);

comparing("starts as many servers as it is told, each with what lists give it", async () => {
  const serversOf = (args: string): readonly ServerSetup[] => {
    const words = `1 1 --compare random ${args}`.trim().split(" ");
    const { positionals, values } = parseCommandLine(OPTIONS, words);
    return readJob(positionals, values).setups;
  };
  const phase = { from: 1, to: 2, mean: 3 };
  assert.equal(
    serversOf("--servers 2 --mean 1,2 --sd 0 --slots 4,5 --weights 5,1 --slow 1-2:3,-"),
    [
      { mean: 1, sd: 0, slots: 4, weight: 5, slow: phase },
      { mean: 2, sd: 0, slots: 5, weight: 1, slow: null },
    ],
  );
  const usual = { mean: 0.5, sd: 0.2, slots: 10, weight: 1, slow: null };
  assert.equal(serversOf(""), Array(5).fill(usual));
  assert.equal(
    serversOf("--slow 1-2:3").map(({ slow }) => slow),
    [null, null, null, null, phase],
  );
});

comparing(
  "tells the balancer the weights: the one server of weight 1000 gets all of the few clients",
  async () => {
    const folder = await temporaryFolder();
    const { stdout } = await run(
      "stress_test.ts",
      [
        "20",
        "1",
        "--compare",
        "round-robin",
        "--servers",
        "2",
        "--mean",
        "0,3",
        "--sd",
        "0",
        "--weights",
        "1000,1",
        "--json",
      ],
      folder,
    );
    const [{ answered, all }] = JSON.parse(stdout);
    assert.is(answered, 20);
    assert.ok(all.max < 3, String(all.max));
  },
);

/** The processes that `pid` has started; undefined where the system does not say. */
function childrenOf(pid: number | undefined): number[] | undefined {
  const file = `/proc/${pid}/task/${pid}/children`;
  return existsSync(file)
    ? readFileSync(file, "utf8").split(" ").filter(Boolean).map(Number)
    : undefined;
}
const alive = (pid: number): boolean => existsSync(`/proc/${pid}`);

for (const [signal, ending] of [
  ["SIGINT", 130],
  ["SIGKILL", "SIGKILL"],
] as const) {
  comparing(`its children end with it on ${signal}`, async () => {
    const { child, exited } = start(
      "stress_test.ts",
      ["1", "1", "--compare", "baseline", "--mean", "1000", "--sd", "0"],
      await temporaryFolder(),
    );
    await until(() => (childrenOf(child.pid)?.length ?? 1) > 0, "children");
    const children = childrenOf(child.pid) ?? [];
    child.kill(signal);
    assert.is(await within(exited, "stress_test.ts"), ending);
    await until(() => !children.some(alive), "children gone");
  });
}

comparing("starts children that listen, and stops them", async () => {
  const children = new Children();
  later(() => children.kill());
  const address = await within(
    children.start("server 1", "server.ts", ["127.0.0.1", "0", "--log", "none"]),
    "a server",
  );
  const dial = (): Promise<string> =>
    new Promise((resolve) => {
      const socket = connect(address)
        .on("connect", () => resolve("connected"))
        .on("error", (error: NodeJS.ErrnoException) => resolve(error.code ?? ""));
      later(() => socket.destroy());
    });
  assert.is(await dial(), "connected");
  await within(children.stop(), "stopping");
  assert.is(await dial(), "ECONNREFUSED");
});

comparing.run();
