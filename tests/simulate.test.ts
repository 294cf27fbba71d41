/**
 * Plans in virtual time: against queueing theory, against sockets, and what a server that fails or
 * hangs does to clients.
 */
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { formatAddress, mulberry32, parseCommandLine, quantile, reasonOf } from "../lib.ts";
import {
  type Algorithm,
  type Connection,
  type LoadBalancer,
  parseServers,
  startLoadBalancer,
} from "../load_balancer.ts";
import { startServer } from "../server.ts";
import {
  complaintAboutVirtual,
  drawPlan,
  numbersOf,
  type Observed,
  OPTIONS,
  readJob,
  Run,
  seedsFrom,
  type ServerSetup,
  VirtualRun,
  type VirtualSetup,
  visitsOf,
} from "../stress_test.ts";
import { cleanUp, later, until, within } from "./helpers.ts";

const server = { mean: 0.05, sd: 0.02, slots: 10, weight: 1, slow: null };
const many = <T>(n: number, what: T): T[] => new Array<T>(n).fill(what);

/** Carries out a plan from beginning to end. */
function simulate(setup: VirtualSetup): Observed {
  const run = new VirtualRun(setup);
  while (!run.advance(1_000_000)) continue;
  return run.observed();
}

/** A setup for `clients` with up to `max` requests, `rate` of them a second. */
function setupOf(
  clients: number,
  max: number,
  rate: number,
  { seed = 1, ...more }: Partial<VirtualSetup> & { readonly seed?: number } = {},
): VirtualSetup {
  const nextSeed = seedsFrom(seed);
  const plan = drawPlan(clients, max, rate, nextSeed);
  return {
    plan,
    numbers: (client) => numbersOf(plan.luck, client),
    addressOf: (client) => `127.1.${client % 250}.1`,
    servers: many(5, server),
    entry: { algorithm: "round-robin", balancerOptions: [] },
    balancers: 1,
    balancerSeed: nextSeed(),
    timeout: 30,
    reconnect: false,
    ...more,
  };
}

const entry = (words: string): VirtualSetup["entry"] => {
  const [algorithm, ...balancerOptions] = words.split(" ");
  return { algorithm: algorithm === "baseline" ? undefined : algorithm, balancerOptions };
};

const mean = (values: readonly number[]): number =>
  values.reduce((sum, value) => sum + value, 0) / values.length;
const firstsOf = ({ times }: Observed): number[] => times.map((all) => all[0] ?? NaN);
const countOf = ({ times }: Observed): number => times.reduce((sum, all) => sum + all.length, 0);
const failuresOf = ({ errors }: Observed): Record<string, number> =>
  Object.fromEntries(Object.entries(errors).filter(([, count]) => count > 0));

function assertNear(actual: number, expected: number, share: number, what = ""): void {
  const isNear = Math.abs(actual / expected - 1) <= share;
  assert.ok(isNear, `${what} ${actual}, expected ${expected} within ${share * 100} %`);
}

// ─── Theory ──────────────────────────────────────────────────────────────────

const theory = suite("virtual time: theory");

/** Mean time of a request when service takes 1 s on average and is exponentially distributed. */
function exponentialMean(
  words: string,
  { servers, slots, load }: { servers: number; slots: number; load: number },
  clients = 90_000,
): number {
  const luck = mulberry32(99);
  const setup = setupOf(clients, 1, servers * slots * load, {
    seed: 2,
    entry: entry(words),
    servers: many(servers, { ...server, slots }),
    timeout: 1e6,
    sleep: () => -Math.log(1 - luck()),
  });
  return mean(firstsOf(simulate(setup)).slice(clients / 10));
}

theory("random choice makes an M/M/1 of each of a hundred servers", () => {
  const seconds = exponentialMean("random", { servers: 100, slots: 1, load: 0.7 });
  assertNear(seconds, 1 / 0.3, 0.03);
});

theory("two choices among a hundred at 90 %: Mitzenmacher's 2.61 service times", () => {
  let expected = 0;
  for (let i = 1; i < 20; i += 1) expected += 0.9 ** (2 ** i - 2);
  const seconds = exponentialMean("two-choices", { servers: 100, slots: 1, load: 0.9 }, 180_000);
  assertNear(seconds, expected, 0.03);
});

/** Erlang C: the chance to wait, with `c` slots and an offered load of `a` erlangs. */
function erlangC(c: number, a: number): number {
  let blocked = 1; // Erlang B, by its recursion
  for (let k = 1; k <= c; k += 1) blocked = (a * blocked) / (k + a * blocked);
  return blocked / (1 - (a / c) * (1 - blocked));
}

const centralQueue = "--server-connections 4 --queue-timeout 100000";

theory("a queue in the balancer is a central one: Erlang C", () => {
  const words = `random ${centralQueue}`;
  const seconds = exponentialMean(words, { servers: 5, slots: 4, load: 0.9 });
  assertNear(seconds, 1 + erlangC(20, 18) / (20 - 18), 0.03);
});

theory("before a central queue the algorithm does not matter", () => {
  const secondsOf = (algorithm: string): number => {
    const words = `${algorithm} ${centralQueue}`;
    return exponentialMean(words, { servers: 5, slots: 4, load: 0.9 }, 20_000);
  };
  assert.is(secondsOf("random"), secondsOf("least-connections"));
});

theory("round-robin gives each of four servers Erlang-4 arrivals: GI/M/1", () => {
  const load = 0.8;
  let sigma = 0.5; // the root of sigma = A*(1 - sigma), A* the transform of the arrivals
  for (let i = 0; i < 200; i += 1) sigma = ((4 * load) / (4 * load + 1 - sigma)) ** 4;
  const seconds = exponentialMean("round-robin", { servers: 4, slots: 1, load });
  assertNear(seconds, 1 / (1 - sigma), 0.03);
});

theory.run();

// ─── Clients ─────────────────────────────────────────────────────────────────

const clients = suite("virtual time: clients");

clients("the same seed gives the same times, another one others", () => {
  const times = (seed: number): string =>
    JSON.stringify(simulate(setupOf(500, 5, 300, { seed, entry: entry("two-choices") })).times);
  assert.is(times(1), times(1));
  assert.is.not(times(1), times(2));
});

clients("everybody asks as often as planned, and each answer takes what its number says", () => {
  const setup = setupOf(200, 5, 0, { servers: many(5, { ...server, slots: 1000 }) });
  const slept: number[] = [];
  const observed = simulate({
    ...setup,
    sleep: (_, number) => {
      const seconds = 0.01 + (number ?? 0) / 2 ** 32;
      slept.push(Math.round(seconds * 1e6) / 1e6);
      return seconds;
    },
  });
  assert.equal(
    observed.times.map(({ length }) => length),
    [...setup.plan.requests],
  );
  const all = observed.times.flat().sort((a, b) => a - b);
  const expected = slept.sort((a, b) => a - b);
  all.forEach((seconds, i) => assert.ok(Math.abs(seconds - expected[i]!) < 2e-6));
});

clients("the baseline is one server, with its slots alone", () => {
  const { times } = simulate(
    setupOf(30, 1, 0, { entry: entry("baseline"), sleep: () => 1, timeout: 100 }),
  );
  assert.equal(times.flat(), [...many(10, 1), ...many(10, 2), ...many(10, 3)]);
});

clients("a time-out fails a request, which frees its slot; the next one is on its own", () => {
  const sleeps = [10, 1, 1];
  const observed = simulate(
    setupOf(1, 1, 0, {
      plan: { requests: [2, 1], arrivals: [0, 0] },
      servers: [{ ...server, slots: 1 }],
      sleep: () => sleeps.shift() ?? 1,
      timeout: 5,
    }),
  );
  // the second has waited for 5 s as well when the first gives up: whose turn it was has gone
  assert.equal(failuresOf(observed), { timeout: 2 });
  assert.equal(observed.firstFailed, [0, 1]);
  assert.equal(observed.times, [[1], []]);
  assert.match(observed.firstFailure ?? "", "within 5 s");
});

clients("who is reconnecting queues anew for every request", () => {
  const setup = setupOf(1, 1, 0, {
    plan: { requests: [2, 2], arrivals: [0, 0] },
    servers: [{ ...server, slots: 1 }],
    sleep: () => 1,
  });
  assert.equal(simulate(setup).times, [
    [1, 1],
    [3, 1],
  ]);
  assert.equal(simulate({ ...setup, reconnect: true }).times, [
    [1, 2],
    [2, 2],
  ]);
});

clients("a later request that fails is no first one", () => {
  const sleeps = [1, 10, 1];
  const plan = { requests: [3], arrivals: [0] };
  const observed = simulate(
    setupOf(1, 1, 0, { plan, sleep: () => sleeps.shift() ?? NaN, timeout: 5 }),
  );
  assert.equal(observed.times, [[1, 1]]);
  assert.equal(failuresOf(observed), { timeout: 1 });
  assert.equal(observed.firstFailed, []);
});

clients("of what happens at the same moment, what was begun first comes first", () => {
  const met: number[] = [];
  const setup = setupOf(1, 1, 0, {
    plan: { requests: many(8, 2), arrivals: many(8, 0) },
    entry: entry("baseline"),
    sleep: () => 1,
    reconnect: true,
    met: (client) => met.push(client),
  });
  simulate(setup);
  const once = [0, 1, 2, 3, 4, 5, 6, 7];
  assert.equal(met, [...once, ...once]);
});

clients("a balancer hears of a new connection before the old one has gone, as with sockets", () => {
  const setup = setupOf(1, 1, 0, {
    plan: { requests: [3], arrivals: [0] },
    entry: entry("random --max-connections 1"),
    reconnect: true,
  });
  assert.equal(failuresOf(simulate(setup)), { reset: 1 });
});

clients("a slow phase counts from the start of the server", () => {
  const slow = { from: 1, to: 2, mean: 0.5 };
  const setup = setupOf(1, 1, 0, {
    plan: { requests: [1, 1, 1], arrivals: [0.9, 1.5, 2.1] },
    servers: [{ ...server, sd: 0, slow }],
  });
  assert.equal(simulate(setup).times, [[0.05], [0.5], [0.05]]);
});

clients("somebody may look on, and end it: requests in flight are interrupted", () => {
  const run = new VirtualRun(
    setupOf(1, 1, 0, {
      plan: { requests: [2, 1, 1], arrivals: [0, 0, 100] },
      sleep: () => 1,
    }),
  );
  while (run.agenda.time < 1) assert.is(run.advance(1), false);
  const { waiting, talking, toCome, done, answered } = run.progress;
  assert.equal([waiting, talking, toCome, done, answered], [1, 1, 1, 0, 1]);
  run.stop();
  assert.is(run.advance(1), true);
  assert.equal(failuresOf(run.observed()), { interrupted: 2 });
  assert.ok(run.observed().interrupted);
  assert.equal(run.observed().times, [[1], [], []]);
});

clients("to end a run that is over changes nothing", () => {
  const run = new VirtualRun(setupOf(3, 1, 0));
  while (!run.advance(1_000)) continue;
  run.stop();
  assert.not(run.observed().interrupted);
});

clients(
  "what a run tells while it goes on, and of who failed, holds when nobody was answered",
  () => {
    const sleeps = [10, 10, 1];
    const plan = { requests: [3, 1], arrivals: [0, 100] };
    const run = new VirtualRun(
      setupOf(1, 1, 0, { plan, sleep: () => sleeps.shift() ?? 10, timeout: 5 }),
    );
    while (!run.advance(1_000)) continue;
    const { waiting, talking, done } = run.progress;
    assert.equal([waiting, talking, done], [0, 0, 2]);
    assert.equal(run.observed().firstFailed, [0, 1]);
  },
);

clients("who failed first is told in the order of the plan", () => {
  const observed = simulate(
    setupOf(1, 1, 0, {
      plan: { requests: [1, 1], arrivals: [0, 0] },
      entry: entry("random --server-connections 1 --queue-timeout 1"),
      servers: [server],
      sleep: () => 10,
      timeout: 5,
    }),
  );
  assert.equal(observed.firstFailed, [0, 1]);
});

clients("the running median is of the last 500 answers", () => {
  let asked = 0;
  const plan = { requests: [1100], arrivals: [0] };
  const run = new VirtualRun(setupOf(1, 1, 0, { plan, sleep: () => (asked++ < 600 ? 1 : 2) }));
  while (!run.advance(1_000)) continue;
  assert.is(Math.round(run.progress.p50 * 1e6) / 1e6, 2);
});

clients("who arrives at the moment of an answer arrives before it", () => {
  const observed = simulate(
    setupOf(1, 1, 0, {
      plan: { requests: [1, 1], arrivals: [0, 1] },
      entry: entry("random --max-connections 1"),
      sleep: () => 1,
    }),
  );
  assert.equal(failuresOf(observed), { reset: 1 });
});

clients("who has given up in a server's line is passed over when its turn comes", () => {
  const observed = simulate(
    setupOf(1, 1, 0, {
      plan: { requests: [3, 1, 1], arrivals: [0, 0, 8] },
      entry: entry("baseline"),
      servers: [{ ...server, slots: 1 }],
      sleep: () => 3,
      timeout: 5,
    }),
  );
  assert.equal(observed.times, [[3, 3, 3], [], [4]]);
});

clients("whoever waits for a moment finds it past, however late it is", () => {
  const { agenda } = new VirtualRun(setupOf(1, 1, 0, { entry: entry("baseline") }));
  agenda.time = 1e6;
  let at = 0;
  agenda.clock.after(1e-12, () => (at = agenda.clock.now()));
  agenda.step();
  assert.ok(at > 1e6);
});

clients.run();

// ─── Balancers ───────────────────────────────────────────────────────────────

const balancers = suite("virtual time: balancers");

balancers("who finds no place queues, and is reset when that takes too long", () => {
  const observed = simulate(
    setupOf(4, 1, 0, {
      entry: entry("random --server-connections 1 --queue-timeout 1.5"),
      servers: many(1, server),
      sleep: () => 1,
    }),
  );
  assert.equal(observed.times, [[1], [2], [], []]);
  assert.equal(failuresOf(observed), { reset: 2 });
});

balancers("limits refuse clients at once, and those of one address, for as long as needed", () => {
  const words = ["random --max-connections 3", "random --client-connections 3"];
  for (const text of words) {
    const observed = simulate(
      setupOf(1, 1, 0, {
        plan: { requests: many(6, 1), arrivals: [0, 0, 0, 0, 0, 10] },
        entry: entry(text),
        addressOf: () => "127.0.0.1",
      }),
    );
    assert.equal(failuresOf(observed), { reset: 2 }, text);
    assert.equal(observed.firstFailed, [3, 4], text);
  }
});

balancers("who gives up in the queue is not served later", () => {
  const observed = simulate(
    setupOf(1, 1, 0, {
      plan: { requests: [2, 1, 1], arrivals: [0, 0, 3] },
      entry: entry("random --server-connections 1"),
      servers: many(1, server),
      sleep: () => 1.9,
      timeout: 2.8,
    }),
  );
  assert.equal(observed.times, [[1.9, 1.9], [], [2.7]]);
});

balancers("who belongs to a full server waits for it, by source-hash alone", () => {
  const places = (algorithm: string): number => {
    const met = new Set<number>();
    const setup = setupOf(20, 1, 0, { addressOf: () => "127.0.0.1", met: (_, at) => met.add(at) });
    simulate({ ...setup, entry: entry(`${algorithm} --server-connections 1`) });
    return met.size;
  };
  assert.is(places("source-hash"), 1);
  assert.is(places("random"), 5);
});

balancers("weights share out clients", () => {
  const served = [0, 0];
  const servers = [
    { ...server, weight: 3 },
    { ...server, weight: 1 },
  ];
  simulate(setupOf(400, 1, 100, { servers, met: (_, place) => (served[place]! += 1) }));
  assert.equal(served, [300, 100]);
});

/** Mean time of a first request before 300 servers. */
const stepped = (words: string, balancers: number): number =>
  mean(
    firstsOf(
      simulate(
        setupOf(9_000, 1, 18_000, {
          entry: entry(words),
          balancers,
          servers: many(300, { ...server, mean: 0.1, sd: 0 }),
        }),
      ),
    ),
  );

balancers("a hundred go in step when all have the same seed, and not when each has its own", () => {
  for (const algorithm of ["round-robin", "least-connections"]) {
    const alone = stepped(algorithm, 1);
    assert.ok(stepped(algorithm, 100) < 1.5 * alone, algorithm);
    assert.ok(stepped(`${algorithm} --seed 7`, 100) > 2 * alone, algorithm);
  }
});

balancers("options that decide nothing here are refused, and so is a check elsewhere", () => {
  assert.is(complaintAboutVirtual(["--check", "ping", "--fall", "2", "--seed=4"]), undefined);
  assert.match(complaintAboutVirtual(["--fall", "2", "--send-proxy"]) ?? "", "no --send-proxy");
  assert.match(complaintAboutVirtual(["--idle-timeout=4"]) ?? "", "no --idle-timeout,");
  assert.match(complaintAboutVirtual(["--check", "http:8008"]) ?? "", "no port in --check");
});

balancers(
  "a complaint about an option that decides nothing quotes the entry as it was given",
  () => {
    const complaintAbout = (compare: string): string => {
      const words = ["1", "1", "--simulate", "--compare", compare];
      const { positionals, values } = parseCommandLine(OPTIONS, words);
      try {
        readJob(positionals, values);
        return "";
      } catch (error) {
        return reasonOf(error);
      }
    };
    const entries = [
      "least-connections --reuse-port",
      "random --check 'PING!=>PONG! PONG!,' --reuse-port",
    ];
    for (const text of entries) {
      const said = complaintAbout(`round-robin,${text}`);
      assert.match(said, `Bad --compare entry ${JSON.stringify(text)}: expected no --reuse-port`);
    }
  },
);

balancers("an address has all its places again when its connections have ended", () => {
  const observed = simulate(
    setupOf(1, 1, 0, {
      plan: { requests: many(4, 1), arrivals: [0, 10, 10, 10] },
      entry: entry("random --client-connections 2"),
      addressOf: () => "127.0.0.1",
    }),
  );
  assert.equal(observed.firstFailed, [3]);
});

balancers.run();

// ─── Faults ──────────────────────────────────────────────────────────────────

const faults = suite("virtual time: faults");

/** How many clients met the last of three servers in each second. */
function lastMet(words: string, more: Partial<VirtualSetup>): { met: number[]; all: Observed } {
  const met: number[] = [];
  const setup = setupOf(3000, 1, 100, {
    entry: entry(words),
    servers: many(3, { ...server, slots: 1000 }),
    timeout: 1,
    ...more,
  });
  const all = simulate({
    ...setup,
    met: (client, place) => {
      const second = Math.floor(setup.plan.arrivals[client]!);
      met[second] = (met[second] ?? 0) + (place === 2 ? 1 : 0);
    },
  });
  return { met, all };
}

faults("a hang is noticed by a check that asks, and not by one that only connects", () => {
  const hang = { from: 5, to: 15 };
  const asked = lastMet("round-robin --check ping --check-interval 1 --fall 2", { hang });
  const bare = lastMet("round-robin --check tcp --check-interval 1 --fall 2", { hang });
  assert.equal(asked.met.slice(9, 15), many(6, 0));
  assert.ok(Math.min(...asked.met.slice(20, 28)) > 10, "it comes back");
  assert.ok(Math.min(...bare.met.slice(5, 15)) > 10);
  const lost = failuresOf(bare.all)["timeout"] ?? 0;
  assert.ok(lost > 250, String(lost));
  assert.ok((failuresOf(asked.all)["timeout"] ?? 0) < lost / 2);
});

faults("who waits for a server that hangs for less than the time-out is answered after it", () => {
  const { all } = lastMet("round-robin", { hang: { from: 5, to: 5.5 } });
  assert.equal(failuresOf(all), {});
  const late = firstsOf(all).filter((seconds) => seconds > 0.2);
  assert.ok(late.length > 5 && Math.max(...late) < 0.65, String(late.length));
});

faults("a server that dies costs its clients their answers, and nobody else anything", () => {
  const { met, all } = lastMet("round-robin", { fail: { from: 5, to: 15 } });
  const failures = failuresOf(all);
  assert.equal(Object.keys(failures), ["closed"]);
  assert.ok(failures["closed"]! <= 5, String(failures["closed"]));
  assert.equal(met.slice(6, 15), many(9, 0));
  assert.ok(Math.min(...met.slice(20, 28)) > 10, "it comes back");
});

faults("with no server left a client is reset, or waits as long as --retry-for has it", () => {
  const fail = { from: 5, to: 7 };
  const servers = [{ ...server, slots: 1000 }];
  const reset = lastMet("random", { fail, servers }).all;
  assert.ok((failuresOf(reset)["reset"] ?? 0) > 150);
  const patient = lastMet("random --retry-for 10", { fail, servers, timeout: 20 }).all;
  assert.is(failuresOf(patient)["reset"], undefined);
});

faults("without a balancer a dead server refuses", () => {
  const { all } = lastMet("baseline", { fail: { from: 5, to: 7 } });
  assert.ok((failuresOf(all)["connect"] ?? 0) > 150);
});

faults("slow start: a server that is back gets its share by and by", () => {
  const { met } = lastMet("round-robin --slow-start 10 --check-interval 0.5", {
    fail: { from: 2, to: 8 },
  });
  const [early, late] = [met.slice(9, 12), met.slice(22, 28)].map(mean);
  assert.ok(early! < 0.7 * late!, `${early} ${late}`);
});

faults("connections of a server that goes down are reset where that is asked for", () => {
  const more = { hang: { from: 5, to: 15 }, timeout: 10 };
  const words = "round-robin --check ping --check-interval 1 --fall 2";
  assert.is(failuresOf(lastMet(words, more).all)["reset"], undefined);
  assert.ok((failuresOf(lastMet(`${words} --on-down reset`, more).all)["reset"] ?? 0) > 30);
});

faults("whoever queues does not follow into the reset those whose server goes down", () => {
  const words = "--check ping --check-interval 0.5 --fall 2 --server-connections 5 --on-down reset";
  const more = {
    hang: { from: 0.2, to: 20 },
    timeout: 60,
    servers: many(2, { ...server, mean: 0.3, sd: 0 }),
  };
  const all = simulate(setupOf(40, 1, 0, { entry: entry(`round-robin ${words}`), ...more }));
  assert.equal(failuresOf(all), { reset: 5 });
  assert.is(countOf(all), 35);
  const alone = simulate(
    setupOf(40, 1, 0, {
      entry: entry(`random ${words}`),
      ...more,
      servers: more.servers.slice(1),
      timeout: 1.5,
    }),
  );
  assert.equal(failuresOf(alone), { timeout: 35, reset: 5 });
});

faults("an http check takes every ping server for silent, and all are tried then", () => {
  const { met, all } = lastMet("round-robin --check http --check-interval 1 --on-down reset", {});
  assert.ok(Math.min(...met.slice(5, 25)) > 10);
  assert.equal(failuresOf(all), {}, "who gives bytes is not reset");
});

faults("a check that nobody waits for any more keeps its slot until it is answered", () => {
  const sleep: VirtualSetup["sleep"] = (_, number) => (number === undefined ? 2 : 1);
  const observed = simulate(
    setupOf(1, 1, 0, {
      plan: { requests: [1], arrivals: [0.1] },
      entry: entry("random --check ping --check-interval 0.5"),
      servers: [{ ...server, slots: 1 }],
      sleep,
    }),
  );
  assert.equal(observed.times, [[2.9]]);
});

faults(
  "a check takes a slot as anybody does: the only one, for as long as its answer takes",
  () => {
    const words = "random --check ping --check-interval 100";
    const sleep: VirtualSetup["sleep"] = (_, number) => (number === undefined ? 2 : 1);
    const plan = { requests: [1], arrivals: [0.5] };
    const servers = [{ ...server, slots: 1 }];
    const { times } = simulate(setupOf(1, 1, 0, { entry: entry(words), plan, servers, sleep }));
    assert.equal(times, [[2.5]]);
  },
);

faults("least-latency leaves a server that has slowed down, or says nothing", () => {
  const quick = { ...server, sd: 0, slots: 1000 };
  const slow = { from: 5, to: 15, mean: 0.6 };
  const servers = [quick, quick, { ...quick, slow }];
  const whileSlow = mean(lastMet("least-latency", { servers }).met.slice(6, 15));
  const whileHung = mean(lastMet("least-latency", { hang: { from: 5, to: 15 } }).met.slice(6, 15));
  const otherwise = mean(lastMet("least-latency", {}).met.slice(6, 15));
  assert.ok(otherwise > 25, String(otherwise));
  assert.ok(whileSlow < 5, String(whileSlow));
  assert.ok(whileHung < 5, String(whileHung));
});

faults("a full server whose line moves is not taken for a silent one", () => {
  const met: number[] = [];
  const setup = setupOf(300, 1, 20, {
    entry: entry("round-robin --check ping --check-interval 1 --fall 2"),
    servers: many(2, { ...server, slots: 1 }),
    sleep: () => 0.3,
    timeout: 100,
    met: (client, place) => (met[client] = place),
  });
  assert.is(countOf(simulate(setup)), 300);
  assert.ok(met.every((place, client) => client === 0 || place !== met[client - 1]));
});

faults("a patient client is served as soon as a check finds its server up again", () => {
  const observed = simulate(
    setupOf(1, 1, 0, {
      plan: { requests: [1], arrivals: [5.2] },
      entry: entry("random --retry-for 10 --check-interval 0.1 --rise 1"),
      servers: [{ ...server, sd: 0 }],
      fail: { from: 4, to: 5.5 },
    }),
  );
  const [seconds = NaN] = firstsOf(observed);
  assert.ok(seconds >= 0.35 && seconds < 0.5, String(seconds)); // the next look is at 6
});

faults("each of many patient clients is sent to the server that is back once", () => {
  const met: number[] = [];
  const observed = simulate(
    setupOf(1, 1, 0, {
      plan: { requests: many(20, 1), arrivals: many(20, 5) },
      entry: entry("random --retry-for 10 --check-interval 0.1 --rise 1"),
      servers: [{ ...server, slots: 20 }],
      fail: { from: 4, to: 6 },
      sleep: () => 0.5,
      met: (client) => met.push(client),
    }),
  );
  assert.is(met.length, 20);
  assert.ok(Math.max(...firstsOf(observed)) < 2, String(Math.max(...firstsOf(observed))));
});

faults("a patient client that has left is not sent anywhere", () => {
  const observed = simulate(
    setupOf(1, 1, 0, {
      plan: { requests: [1, 1], arrivals: [5, 8] },
      entry: entry("random --retry-for 10"),
      servers: [{ ...server, slots: 1 }],
      fail: { from: 4, to: 6.5 },
      timeout: 1,
    }),
  );
  assert.equal(failuresOf(observed), { timeout: 1 });
});

faults("who queues is admitted when another server comes up", () => {
  const sleeps = [10, 1];
  const observed = simulate(
    setupOf(1, 1, 0, {
      plan: { requests: [1, 1], arrivals: [0.5, 1] },
      entry: entry("random --server-connections 1 --check-interval 0.1 --rise 1"),
      servers: many(2, server),
      fail: { from: 0.05, to: 3 },
      sleep: () => sleeps.shift() ?? NaN,
    }),
  );
  const [, second = NaN] = firstsOf(observed);
  assert.ok(second >= 3 && second < 3.2, String(second));
});

faults("the slot of who gave up while a server hung is free afterwards", () => {
  const observed = simulate(
    setupOf(1, 1, 0, {
      plan: { requests: [1, 1, 1], arrivals: [0, 1, 6] },
      servers: [{ ...server, slots: 1 }],
      hang: { from: 0.2, to: 5 },
      sleep: () => 0.5,
      timeout: 1,
    }),
  );
  assert.equal(observed.times, [[], [], [0.5]]);
});

faults("a server that comes back has all its slots, and nobody in its line", () => {
  const observed = simulate(
    setupOf(1, 1, 0, {
      plan: { requests: many(4, 1), arrivals: [0, 0, 2, 4] },
      entry: entry("baseline"),
      servers: [{ ...server, slots: 1 }],
      fail: { from: 0.5, to: 1 },
      sleep: () => 1,
    }),
  );
  assert.equal(failuresOf(observed), { closed: 2 });
  assert.equal(observed.times, [[], [], [1], [1]]);
});

faults("a server that dies hangs no longer, and a dead one cannot hang", () => {
  const fail = { from: 5, to: 6 };
  for (const from of [4.5, 5.5]) {
    const observed = simulate(
      setupOf(1, 1, 0, {
        plan: { requests: [1], arrivals: [7] },
        entry: entry("baseline"),
        fail,
        hang: { from, to: 20 },
        sleep: () => 1,
      }),
    );
    assert.equal(observed.times, [[1]], String(from));
  }
});

faults("a slow phase counts from the start of the server that was started again", () => {
  const slow = { from: 1, to: 2, mean: 0.5 };
  const observed = simulate(
    setupOf(1, 1, 0, {
      plan: { requests: [1, 1], arrivals: [6.5, 7.5] },
      entry: entry("baseline"),
      servers: [{ ...server, sd: 0, slow }],
      fail: { from: 5, to: 6 },
    }),
  );
  assert.equal(observed.times, [[0.05], [0.5]]);
});

faults("a check of several pings has all their answers, one after the other", () => {
  const words = "round-robin --check PING!PING!=>PONG!PONG! --check-interval 1 --fall 2";
  const { met } = lastMet(words, { hang: { from: 5, to: 15 } });
  assert.ok(Math.min(...met.slice(0, 5)) > 10);
  assert.equal(met.slice(9, 15), many(6, 0), "only the one that hangs is down");
});

faults("who comes while the only server is down is reset when one more check has failed", () => {
  const observed = simulate(
    setupOf(1, 1, 0, {
      plan: { requests: [1], arrivals: [10.5] },
      entry: entry("random --check ping --check-interval 1 --fall 2 --on-down reset"),
      servers: [server],
      hang: { from: 1, to: 20 },
    }),
  );
  assert.equal(failuresOf(observed), { reset: 1 });
});

faults("a server that answers clients and no check is down: those are dialled after it", () => {
  const sleep: VirtualSetup["sleep"] = (place, number) =>
    number === undefined && place === 2 ? 100 : 0.05;
  const { met } = lastMet("round-robin --check ping --check-interval 1 --fall 2", { sleep });
  assert.equal(met.slice(9, 15), many(6, 0));
});

faults("a full server whose one client goes on and on has a line that does not move", () => {
  const met: number[] = [];
  simulate(
    setupOf(1, 1, 0, {
      plan: { requests: [40, 1, 1, 1, 1], arrivals: [0, 6, 7, 8, 9] },
      entry: entry("round-robin --check ping --check-interval 1 --fall 2"),
      servers: many(2, { ...server, slots: 1 }),
      sleep: (_, number) => (number === undefined ? 0 : 0.3),
      met: (client, place) => (met[client] = place),
    }),
  );
  assert.equal(met.slice(1), many(4, 1 - met[0]!));
});

faults.run();

// ─── The twin ────────────────────────────────────────────────────────────────

const twin = suite("virtual time: the twin with sockets");
twin.after.each(cleanUp);

/** What a real balancer did: where each client went, when it was placed, and how long it stayed. */
type Real = {
  readonly observed: Observed;
  readonly met: number[];
  readonly placedAt: number[];
  readonly stays: number[];
};

/** Carries out the plan of `setup` through a balancer and servers of this process. */
async function overSockets(setup: VirtualSetup, algorithm: Algorithm): Promise<Real> {
  const { plan, balancerSeed, servers } = setup;
  const names = await Promise.all(servers.map(startReal));
  const { balancer, address } = await startLoadBalancer({
    algorithm,
    port: 0,
    servers: parseServers(names),
    seed: balancerSeed,
    log: "none",
  });
  later(() => balancer.stop(0));
  const seen = watch(balancer);
  const run = new Run([address], visitsOf({ ...plan, luck: LUCK }), {
    timeout: 20,
    reconnect: false,
    numbered: true,
  });
  const observed = await within(run.start(), "the run over sockets");
  await until(() => seen.stays.filter(Number.isFinite).length === seen.met.length, "all have left");
  return { observed, ...seen };
}
const LUCK = 4711;

async function startReal({ mean, sd, slots }: ServerSetup): Promise<string> {
  const options = { host: "127.0.0.1", port: 0, mean, sd, maxConnections: slots, seed: 1 };
  const real = await startServer(options);
  later(() => real.close());
  return formatAddress(real.address);
}

/** Notes what `balancer` does, client by client: it is given them in the order of the plan. */
function watch(balancer: LoadBalancer): Omit<Real, "observed"> {
  const clients = new Map<Connection, number>();
  const met: number[] = [];
  const placedAt: number[] = [];
  const stays: number[] = [];
  const place = balancer.place.bind(balancer);
  const left = balancer.left.bind(balancer);
  balancer.place = (connection) => {
    const client = clients.size;
    clients.set(connection, client);
    placedAt[client] = balancer.now();
    place(connection);
    met[client] = balancer.servers.findIndex((known) => known === connection.server);
  };
  balancer.left = (connection, from) => {
    const client = clients.get(connection) ?? NaN;
    stays[client] = balancer.now() - placedAt[client]!;
    left(connection, from);
  };
  return { met, placedAt, stays };
}

/** Where each client goes in virtual time. */
function metOf(setup: VirtualSetup): number[] {
  const met: number[] = [];
  simulate({ ...setup, met: (client, place) => (met[client] = place) });
  return met;
}

for (const algorithm of ["round-robin", "random"] as const)
  twin(`each client meets the same server and the same luck: ${algorithm}`, async () => {
    const setup = setupOf(100, 3, 150, {
      entry: entry(algorithm),
      numbers: (client) => numbersOf(LUCK, client),
      servers: [0.03, 0.09, 0.15].map((each) => ({ ...server, mean: each, slots: 50 })),
    });
    const { met, observed } = await overSockets(setup, algorithm);
    assert.equal(metOf(setup), met);
    const times = simulate(setup).times.flat();
    const late = observed.times.flat().map((seconds, i) => seconds - times[i]!);
    // timers round to the millisecond; a busy machine is late, but never early
    assert.ok(Math.min(...late) > -0.0025, String(Math.min(...late)));
    const median = quantile(
      late.sort((a, b) => a - b),
      0.5,
    );
    assert.ok(median < 0.2, String(median));
  });

for (const algorithm of ["least-connections", "two-choices"] as const)
  twin(`whoever comes and goes at the same moments is sent to the same: ${algorithm}`, async () => {
    const setup = setupOf(100, 1, 250, {
      entry: entry(algorithm),
      numbers: (client) => numbersOf(LUCK, client),
      servers: many(3, { ...server, slots: 1000 }),
    });
    const { met, placedAt, stays } = await overSockets(setup, algorithm);
    const replayed = metOf({
      ...setup,
      plan: { requests: many(100, 1), arrivals: placedAt.map((at) => at - placedAt[0]!) },
      numbers: (client) => () => client,
      sleep: (_, client) => stays[client ?? NaN]!,
    });
    assert.equal(replayed, met);
  });

twin.run();
