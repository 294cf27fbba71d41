/**
 * The one sentence that people quote: when it is given, what it says, and each reason not to give
 * it. Then the table, which carries the same figures.
 */
import { suite } from "uvu";
import * as assert from "uvu/assert";
import * as graphs from "../generate_graphs.ts";
import { mulberry32 } from "../lib.ts";
import {
  type Clients,
  clients,
  entryOf,
  measured,
  normal,
  runsOf,
  unknown,
} from "./graphs_fixtures.ts";

const say = (...setups: graphs.Setup[]): string => graphs.verdict(setups);

const SLOW = [0.081, 0.086, 0.09, 0.084, 0.088, 0.087];
const FAST = [0.072, 0.074, 0.076, 0.075, 0.078, 0.0738];
const roundRobin = (changes = {}): graphs.Setup => measured("RoundRobin", runsOf(SLOW), changes);
const least = (changes = {}): graphs.Setup => measured("LeastConnections", runsOf(FAST), changes);
const plan = (changes: Readonly<Record<string, unknown>>): { plan: Record<string, unknown> } => ({
  plan: { clients: 20, maxRequests: 3, rate: 310, reconnect: false, timeout: 30, ...changes },
});
/** The same with fields of each run changed. */
const runsWith = (runs: readonly Clients[], changes: Readonly<Record<string, unknown>>) => {
  const listed = entryOf(runs)["runs"];
  assert.ok(Array.isArray(listed));
  return { runs: listed.map((run: object) => ({ ...run, ...changes })) };
};
const FAILED = runsWith(runsOf(SLOW), { planned: 60 });

// ─── Intervals ───────────────────────────────────────────────────────────────

const intervals = suite("generate_graphs: intervals over runs");

intervals("knows the quantiles of Student's t", () => {
  const known: [level: number, freedom: number, t: number][] = [
    [0.95, 1, 12.7062],
    [0.95, 2, 4.3027],
    [0.95, 5, 2.5706],
    [0.95, 9, 2.2622],
    [0.99, 4, 4.6041],
    [0.99, 30, 2.75],
    [0.95, 1000, 1.9623],
  ];
  for (const [level, freedom, t] of known)
    assert.ok(Math.abs(graphs.tQuantile(level, freedom) - t) < 1e-4, `${level} ${freedom}`);
});

intervals("covers the true mean 95 times of 100", () => {
  const random = mulberry32(42);
  let covered = 0;
  for (let experiment = 0; experiment < 4000; experiment++) {
    const values = Array.from({ length: 6 }, () => 3 + normal(random));
    const { low, high } = graphs.tInterval(values);
    if (low <= 3 && high >= 3) covered += 1;
  }
  assert.ok(Math.abs(covered / 4000 - 0.95) < 0.012, `covered ${covered} of 4000`);
});

intervals("has no limits for a single value", () => {
  const { mean, low, high } = graphs.tInterval([2]);
  assert.is(mean, 2);
  assert.ok(Number.isNaN(low) && Number.isNaN(high));
});

intervals("makes simultaneous intervals wider, the more there are", () => {
  const three = [0.01, 0.02, 0.03].map((more, place) =>
    measured(`More${place}`, runsOf(SLOW.map((time, seed) => time + more + seed / 1e4))),
  );
  const width = (setups: graphs.Setup[]): number => {
    const last = graphs.laterThanFastest(setups).get(setups[2] ?? roundRobin());
    return (last?.high ?? 0) - (last?.low ?? 0);
  };
  assert.ok(
    width([least(), roundRobin(), ...three]) > width([least(), roundRobin(), ...three.slice(0, 1)]),
  );
});

intervals("hold at once for equals, of whom the data choose the fastest", () => {
  const random = mulberry32(7);
  const equals = (): graphs.Setup[] =>
    Array.from({ length: 5 }, (_, place) => {
      const times = Array.from({ length: 6 }, () => 0.08 + normal(random) / 1000);
      return measured(`Equal${place}`, runsOf(times));
    });
  let wrong = 0;
  for (let experiment = 0; experiment < 600; experiment++) {
    const later = [...graphs.laterThanFastest(equals()).values()];
    if (later.some(({ low }) => low > 0)) wrong += 1;
  }
  assert.ok(wrong <= 600 * 0.05, `${wrong} of 600 claim a difference`);
});

intervals("compares only three or more with the fastest, and Baseline with nobody", () => {
  assert.is(graphs.laterThanFastest([roundRobin(), least()]).size, 0);
  const baseline = measured("Baseline", runsOf(FAST));
  const later = graphs.laterThanFastest([baseline, roundRobin(), least()]);
  assert.equal(
    [...later.keys()].map(({ name }) => name),
    ["RoundRobin"],
  );
});

intervals.run();

// ─── Verdicts ────────────────────────────────────────────────────────────────

const verdicts = suite("generate_graphs: verdicts");

verdicts("says which set-up is sooner, by how much, and how certain that is", () => {
  assert.is(
    say(roundRobin(), least()),
    "Least Connections answers first requests 0.0112 s (13 %) sooner than Round Robin: 95 % interval over 6 paired runs 0.0089 to 0.0135 s, sooner in 6 of 6.",
  );
});

verdicts("finds no clear difference where the interval holds zero", () => {
  const other = measured("TwoChoices", runsOf([0.0715, 0.075, 0.0752, 0.0757, 0.0772, 0.0745]));
  assert.is(
    say(other, least()),
    "No clear difference between Least Connections and Two Choices: 0.00005 s, 95 % interval over 6 paired runs -0.00083 to 0.00093 s.",
  );
});

verdicts("takes five runs for enough", () => {
  const five = [0, 1].map((place) =>
    measured(`S${place}`, runsOf([1, 1.1, 1.2, 1.3, 1.45].map((time) => time * (1 + place)))),
  );
  assert.match(say(...five), /over 5 paired runs/);
});

verdicts("finds no clear difference where there is no spread at all", () => {
  const later = measured("TwoChoices", runsOf(FAST.map((time) => time + 0.01)));
  assert.match(say(later, least()), /^No clear difference between .*: 0\.0100 s, 95 % interval/);
  const same = measured("TwoChoices", runsOf(FAST));
  assert.match(say(same, least()), /^No clear difference between .*: 0\.0000 s,/);
});

verdicts("counts in how many runs the faster one was sooner", () => {
  const once = measured("RoundRobin", runsOf([...FAST.map((time) => time + 0.01), 0.05, 0.09]));
  const fast = measured("LeastConnections", runsOf([...FAST, 0.0501, 0.08]));
  assert.match(say(once, fast), /sooner in 7 of 8\.$/);
});

verdicts("compares the fastest with the next, and Baseline only as one of two", () => {
  const baseline = measured("Baseline", runsOf(SLOW.map((time) => time / 2 + 0.0001)));
  assert.match(say(baseline, roundRobin(), least()), /^Least .* sooner than Round Robin/);
  assert.match(say(baseline, roundRobin()), /^Baseline answers .* sooner than Round Robin/);
});

verdicts("knows a baseline by what was started, whatever its file is called", () => {
  const setup = { setup: { algorithm: "baseline", servers: [] } };
  const one = measured("Alone", runsOf(SLOW.map((time) => time / 2)), setup);
  assert.match(say(one, roundRobin(), least()), /^Least .* sooner than Round Robin/);
});

verdicts("says how many runs of the two were disturbed, and which, and by what", () => {
  const disturbed = ["the balancer stood still for 0.31 s", "it started a client late"];
  const runs = entryOf(runsOf(SLOW))["runs"];
  assert.ok(Array.isArray(runs));
  const slow = roundRobin({ runs: [{ ...runs[0], disturbed }, ...runs.slice(1)] });
  assert.match(say(slow, least()), /sooner in 6 of 6\. 1 of 12 runs was disturbed\.$/);
  assert.equal(graphs.disturbances([slow, least()]), [
    "Disturbed: Round Robin, seed 1: the balancer stood still for 0.31 s; it started a client late",
  ]);
  const both = roundRobin(runsWith(runsOf(SLOW), { disturbed }));
  assert.match(say(both, least()), / 6 of 12 runs were disturbed\.$/);
});

verdicts("says that both are simulated", () => {
  const simulated = { simulated: true };
  assert.match(say(roundRobin(simulated), least(simulated)), /6 of 6\. Both are simulated\.$/);
});

verdicts("gives none, and says why", () => {
  const one = (name: string, time: number): graphs.Setup => measured(name, runsOf([time]));
  const servers = (...kinds: object[]) => ({ setup: { algorithm: "random", servers: kinds } });
  const kind = { mean: 0.03, sd: 0.02, slots: 10, slow: null };
  const cases: [reason: string, setups: graphs.Setup[]][] = [
    ["one run is one observation; --runs 6 gives one", [one("A", 1), one("B", 2)]],
    [
      "4 runs are too few; --runs 6 gives one",
      [measured("A", runsOf([1, 2, 3, 4])), measured("B", runsOf([2, 3, 5, 6]))],
    ],
    [
      "only 6 of the 8 runs asked for of Round Robin are there",
      [roundRobin({ runsAsked: 8 }), least()],
    ],
    ["120 of Round Robin's 360 requests failed", [roundRobin(FAILED), least()]],
    [
      "the plans differ (rate 310 and 150 a second)",
      [roundRobin(plan({ rate: 150 })), least(plan({}))],
    ],
    ["the plans differ (timeout 30 and 5 s)", [roundRobin(plan({ timeout: 5 })), least(plan({}))]],
    [
      "the plans differ (fail none and 2-4)",
      [roundRobin(plan({ fail: { from: 2, to: 4 } })), least(plan({}))],
    ],
    ["the servers differ (mean 0.05 and 0.03 s)", [roundRobin(servers(kind)), least()]],
    [
      "the servers differ (1 and 2 servers)",
      [roundRobin(servers(kind, kind)), least(servers(kind))],
    ],
    ["they were measured at different times", [roundRobin({ session: "another" }), least()]],
    ["the seeds differ", [roundRobin(runsWith(runsOf(SLOW), { seed: 7 })), least()]],
    [
      "a run of Round Robin was interrupted",
      [roundRobin(runsWith(runsOf(SLOW), { interrupted: true })), least()],
    ],
    [
      "Round Robin is simulated, Least Connections is not",
      [roundRobin({ simulated: true }), least()],
    ],
    [
      "runs.json does not tell how Round Robin was measured",
      [...unknown({ RoundRobin: runsOf(SLOW).flat() }), least()],
    ],
    ["there is nothing to compare Round Robin with", [roundRobin()]],
    ["there are no first requests to compare", unknown({ a: [[]] })],
  ];
  for (const [reason, setups] of cases) assert.is(say(...setups), `No verdict: ${reason}.`);
});

verdicts("tells failures before the number of runs, since they matter more", () => {
  const runs = runsOf([0.08]);
  const failing = measured("RoundRobin", runs, runsWith(runs, { planned: 1225 }));
  assert.is(
    say(failing, measured("LeastConnections", runsOf([0.09]))),
    "No verdict: 1,185 of Round Robin's 1,225 requests failed.",
  );
});

verdicts("takes a baseline's server as one of the others' kind", () => {
  const kinds = [
    { mean: 0.05, sd: 0.02, slots: 10, slow: null },
    { mean: 0.1, sd: 0.02, slots: 10 },
  ];
  const five = measured("RoundRobin", runsOf(SLOW), { setup: { algorithm: "x", servers: kinds } });
  const alone = (server: object | undefined): graphs.Setup =>
    measured("Baseline", runsOf(FAST), { setup: { algorithm: "baseline", servers: [server] } });
  assert.match(say(alone(kinds[1]), five), /^Baseline answers/);
  assert.match(
    say(alone({ mean: 1 }), five),
    /^No verdict: the servers differ \(mean 1 and 0.05 s\)/,
  );
});

verdicts("never lets a later answer stand in for a first request that failed", () => {
  const run = [[9, 0.5], [0.1], [0.2, 9]];
  const setup = measured("A", [run], runsWith([run], { firstFailed: [0], planned: 7 }));
  assert.equal([...setup.first], [0.1, 0.2]);
  assert.equal([...setup.later], [0.5, 9, 9]);
  assert.ok(Math.abs((setup.means[0] ?? 0) - 0.15) < 1e-12);
});

verdicts("believes runs.json only of the very bytes it is about, and only when it is whole", () => {
  const runs = runsOf(FAST);
  const times = graphs.parseTimes(JSON.stringify(runs.flat()));
  const entry = entryOf(runs);
  const hash = String(entry["sha256"]);
  assert.ok(graphs.originOf(entry, hash, times));
  const bad: unknown[] = [
    undefined,
    null,
    7,
    [],
    { ...entry, sha256: "0" },
    { ...entry, runs: [] },
    { ...entry, runs: [null] },
    { ...entry, runs: "six" },
    { ...entry, session: undefined },
    { ...entry, plan: 3 },
    { ...entry, ...runsWith(runs, { clients: 21 }) },
    { ...entry, ...runsWith(runs, { clients: -1 }) },
    { ...entry, ...runsWith(runs, { answered: 41 }) },
    { ...entry, ...runsWith(runs, { firstFailed: [20] }) },
    { ...entry, ...runsWith(runs, { disturbed: [1] }) },
  ];
  for (const one of bad)
    assert.is(graphs.originOf(one, hash, times), undefined, JSON.stringify(one)?.slice(0, 80));
});

verdicts.run();

// ─── Table ───────────────────────────────────────────────────────────────────

const tables = suite("generate_graphs: table");

tables("shows runs, clients, answered of planned, and the mean with its interval", () => {
  const lines = graphs.table([roundRobin(FAILED), least()]).split("\n");
  assert.match(
    lines[0] ?? "",
    /^response time \(s\)  runs  clients  answered of planned  +first mean/,
  );
  assert.match(lines[1] ?? "", /^Round Robin +6 +120 +240 of 360 +0\.0860 ± 0\.0033 /);
  assert.match(lines[2] ?? "", /^Least Connections +6 +120 +240 of 240 +0\.0748 ± 0\.0022 /);
  assert.ok(lines.includes("±: 95 % interval over the runs"));
});

tables("says milliseconds where all is below 0.1 s, to three digits", () => {
  const lines = graphs
    .table(unknown({ fast: Array.from({ length: 300 }, () => [0.00051]) }))
    .split("\n");
  assert.match(lines[0] ?? "", /^response time \(ms\)/);
  assert.match(lines[1] ?? "", /^fast .* 0\.510  0\.510  0\.510  0\.510  0\.510$/);
  assert.match(graphs.table(unknown({ fast: [[0.0999]] })), /response time \(ms\)/);
  assert.match(graphs.table(unknown({ slow: [[0.1]] })), /response time \(s\)/);
});

tables("prints no percentile that the sample does not carry", () => {
  const lines = graphs
    .table(unknown({ Few: clients(20, 1, 1).map(([time = 0]) => [time]), Empty: [[], []] }))
    .split("\n");
  assert.match(
    lines[1] ?? "",
    /^Few +\? +20 +20 of \? +\d\.\d\d  \d\.\d+    -    -    -  \d\.\d\d$/,
  );
  assert.match(lines[2] ?? "", /^Empty +\? +2 +0 of \?( +-){6}$/);
  assert.is(lines[3], "-: too few answers (p90 needs 29, p95 59, p99 299)");
  assert.is(lines[4], "?: runs.json does not tell; failures unknown");
});

tables("says how much later than the fastest each of three or more is", () => {
  const lines = graphs
    .table([
      roundRobin(),
      least(),
      measured("Random", runsOf(SLOW.map((time, seed) => time + seed / 1e3))),
    ])
    .split("\n");
  assert.match(lines[0] ?? "", /  later than the fastest$/);
  assert.match(lines[1] ?? "", /  0\.0112 \(0\.00\d\d to 0\.01\d\d\)$/);
  assert.match(lines[2] ?? "", / -$/);
});

tables("gives shares of what was planned, or says that they are of what was answered", () => {
  const slow = roundRobin(FAILED);
  const row = (setup: graphs.Setup, limit: number): string =>
    graphs.table([setup], limit).split("\n")[1] ?? "";
  assert.match(row(slow, 0.5), /  66\.67 %$/);
  assert.match(row(slow, 0.083), /  5\.56 %$/);
  assert.match(
    row(...([unknown({ a: [[0.1, 0.2], [0.3]] })[0] ?? slow, 0.2] as const)),
    /  66\.67 % of answered$/,
  );
  assert.match(row(unknown({ a: [[]] })[0] ?? slow, 0.2), / -$/);
});

tables("never rounds to all or to none", () => {
  assert.equal(
    [1, 29_999 / 30_000, 0.9998, 1 / 30_000, 0].map((share) => graphs.percent(share, 2)),
    ["100 %", "> 99.99 %", "99.98 %", "< 0.01 %", "0 %"],
  );
});

tables("keeps columns straight under wide names", () => {
  const [head = "", one = "", two = ""] = graphs
    .table(unknown({ 負荷分散: [[1]], ab: [[2]] }))
    .split("\n");
  assert.is(one.length + 4, head.length);
  assert.is(two.length, head.length);
});

tables.run();
