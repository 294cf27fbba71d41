/**
 * The algorithms, without a socket: what every entry of the table keeps, known sequences, and
 * distributions under a fixed seed. What they do to waiting stands in algorithms_on_a_clock.
 */
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { mulberry32 } from "../lib.ts";
import {
  type Algorithm,
  ALGORITHMS,
  algorithms,
  answered,
  asked,
  type Candidate,
  costOf,
  forgotten,
  hash,
  homeOf,
  newCost,
  type Picker,
  took,
} from "../load_balancer.ts";
import { candidate } from "./queues.ts";

const ADDRESS = "127.0.0.1";

/** Servers a, b, c, ... with these weights. */
const withWeights = (...weights: number[]): Candidate[] =>
  weights.map((weight, i) => candidate(String.fromCharCode(97 + i), weight));
const equal = (count: number): Candidate[] =>
  Array.from({ length: count }, (_, i) => candidate(`10.0.${i >> 8}.${i & 255}:80`));
const picker = (algorithm: Algorithm, seed = 1, now = (): number => 0): Picker =>
  algorithms[algorithm]({ random: mulberry32(seed), now });

/** The names picked in `count` picks, whose connections end before the next one. */
const picks = (pick: Picker, servers: readonly Candidate[], count: number): string[] =>
  Array.from({ length: count }, (_, i) => pick(servers, `10.1.${i >> 8}.${i & 255}`).name);

/** The same, but they stay open. */
function openings(pick: Picker, servers: readonly Candidate[], count: number): string[] {
  return Array.from({ length: count }, () => {
    const server = pick(servers, ADDRESS);
    server.open += 1;
    return server.name;
  });
}

const tally = (names: readonly string[], servers: readonly Candidate[]): number[] =>
  servers.map(({ name }) => names.filter((other) => other === name).length);
const total = (servers: readonly Candidate[]): number =>
  servers.reduce((sum, { weight }) => sum + weight, 0);
const isRotation = (text: string, of: string): boolean =>
  text.length === of.length && `${of}${of}`.includes(text);
const seeds = (count: number): number[] => Array.from({ length: count }, (_, i) => i + 1);

/** Pearson's statistic of `counts` against `expected`. */
const chiSquare = (counts: readonly number[], expected: readonly number[]): number =>
  counts.reduce((sum, count, i) => sum + (count - (expected[i] ?? 0)) ** 2 / (expected[i] ?? 0), 0);
/**
 * What Pearson's statistic exceeds once in a thousand times, for 4 and for 9 degrees of freedom.
 */
const RARE = { 4: 18.47, 9: 27.88 } as const;

// ─── What every entry keeps ──────────────────────────────────────────────────

type See = (picked: Candidate, eligible: readonly Candidate[]) => void;
type Play = {
  readonly servers: readonly Candidate[];
  readonly count: number;
  /** So many connections are open at a time. */
  readonly open: number;
  /** Whether servers come and go. */
  readonly changes: boolean;
  readonly see: See;
};

/** Plays clients whose connections and turns end again, fifty a second. */
function play(algorithm: Algorithm, { servers, count, open, changes, see }: Play): void {
  let time = 0;
  const draw = mulberry32(99);
  const pick = picker(algorithm, 1, () => time);
  const visits: Candidate[] = [];
  let eligible = [...servers];
  for (let i = 0; i < count; i += 1) {
    time += 0.02;
    if (changes && i % 40 === 39) eligible = servers.filter(() => draw() < 0.6);
    if (eligible.length === 0) eligible = [...servers];
    const server = pick(eligible, `10.${i >> 16}.${(i >> 8) & 255}.${i & 255}`);
    see(server, eligible);
    server.open += 1;
    asked(server.cost, time);
    visits.push(server);
    const left = visits[visits.length - open - 1];
    if (left === undefined) continue;
    left.open -= 1;
    answered(left.cost, time - 0.02 * open, time);
  }
}

/** With how many open connections weights tell the shares, where that is not always. */
const sharesAt: Partial<Record<Algorithm, readonly number[]>> = { "least-latency": [100] };

for (const algorithm of ALGORITHMS) {
  const contract = suite(`${algorithm}, as every algorithm`);

  contract("picks none but those it is shown", () => {
    const see: See = (picked, eligible) => assert.ok(eligible.includes(picked));
    const servers = withWeights(1, 2, 3, 4, 0.05);
    play(algorithm, { servers, count: 2000, open: 3, changes: true, see });
    for (const server of withWeights(3)) assert.is(picker(algorithm)([server], ADDRESS), server);
  });

  for (const open of sharesAt[algorithm] ?? [0, 100])
    contract(`gives each server its weight's share, within 0.02, with ${open} open`, () => {
      const servers = withWeights(1, 2, 3, 4);
      const counts = new Map(servers.map((server) => [server, 0]));
      const see: See = (picked) => counts.set(picked, (counts.get(picked) ?? 0) + 1);
      play(algorithm, { servers, count: 10_000, open, changes: false, see });
      for (const [server, count] of counts)
        assert.ok(Math.abs(count / 10_000 - server.weight / 10) < 0.02, `${server.name}: ${count}`);
    });

  contract("comes to every server again and again", () => {
    const servers = equal(10);
    const last = new Map(servers.map((server) => [server, 0]));
    let count = 0;
    const see: See = (picked) => {
      count += 1;
      last.set(picked, count);
      for (const at of last.values()) assert.ok(count - at < 250);
    };
    play(algorithm, { servers, count: 5000, open: 3, changes: false, see });
    assert.is(count, 5000);
  });

  contract("repeats itself for the same seed, and never the state of another picker", () => {
    const names = (seed: number, servers: Candidate[]): string =>
      picks(picker(algorithm, seed), servers, 50).join(" ");
    const servers = withWeights(1, 2, 3, 1, 1);
    const before = names(7, servers);
    names(8, servers);
    for (const server of servers) Object.assign(server.cost, newCost());
    assert.is(names(7, servers), before);
    assert.is(names(7, withWeights(1, 2, 3, 1, 1)), before);
  });

  contract("throws where there is nobody to pick", () => {
    assert.throws(() => picker(algorithm)([], ADDRESS), RangeError);
  });

  contract.run();
}

const others = suite("one server's history");

for (const algorithm of ["round-robin", "least-connections"] as const)
  others(`leaves the order of the others as it was: ${algorithm}`, () => {
    const servers = equal(5);
    const pick = picker(algorithm);
    const round = picks(pick, servers, 5).join(" ");
    const gone = servers[2]?.name ?? "";
    const without = round.replace(gone, "").split(/ +/).filter(Boolean).join(" ");
    const left = servers.filter(({ name }) => name !== gone);
    assert.ok(isRotation(` ${picks(pick, left, 4).join(" ")}`, ` ${without}`));
    const again = picks(pick, servers, 50).filter((name) => name !== gone);
    assert.ok(isRotation(` ${again.slice(-4).join(" ")}`, ` ${without}`));
  });

others("does not move the clients of the others: source-hash", () => {
  const servers = equal(5);
  const home = (client: number): Candidate => homeOf(servers, `10.2.0.${client}`);
  const before = seeds(200).map(home);
  Object.assign(servers[0] ?? {}, { open: 1000, credit: -50 });
  assert.equal(seeds(200).map(home), before);
});

others.run();

// ─── Taking turns ────────────────────────────────────────────────────────────

const turns = suite("taking turns");

turns("takes turns among equal servers in their order, from a place drawn from the seed", () => {
  const begins = seeds(60).map((seed) => {
    const names = picks(picker("round-robin", seed), withWeights(1, 1, 1, 1), 8).join("");
    assert.ok(isRotation(names, "abcdabcd"), names);
    return names[0];
  });
  assert.is(new Set(begins).size, 4);
});

turns("spreads a heavy server's turns: 5, 1, 1 gives a rotation of a a b a c a a", () => {
  const seen = seeds(200).map((seed) => {
    const names = picks(picker("round-robin", seed), withWeights(5, 1, 1), 70).join("");
    assert.ok(isRotation(names, "aabacaa".repeat(10)), names);
    return names.slice(0, 7);
  });
  assert.is(new Set(seen).size, 7);
});

turns("begins anywhere in the round of ten thousand servers with large weights, at once", () => {
  const draw = mulberry32(5);
  const many = (): Candidate[] =>
    equal(10_000).map((server) => ({ ...server, weight: 1 + Math.floor(draw() * 1000) }));
  const started = performance.now();
  const begins = seeds(5).map((seed) => picks(picker("round-robin", seed), many(), 1)[0]);
  assert.ok(new Set(begins).size > 1);
  assert.ok(performance.now() - started < 10_000, "it does not go round step by step");
});

turns("begins anew with a fresh picker, whatever was owed under other weights", () => {
  for (const algorithm of ["round-robin", "least-connections"] as const) {
    const servers = withWeights(1000, 1);
    picks(picker(algorithm), servers, 700);
    for (const server of servers) server.weight = 1;
    assert.equal(tally(picks(picker(algorithm), [...servers], 500), servers), [250, 250]);
    const pick = picker(algorithm);
    servers[1]!.credit = 50; // of that last one, while this one has not seen it yet
    picks(pick, servers.slice(0, 1), 5);
    assert.equal(tally(picks(pick, servers, 10), servers), [5, 5]);
  }
});

turns("carries what is owed through a slow start", () => {
  const servers = withWeights(100, 100, 100);
  const pick = picker("round-robin");
  picks(pick, servers, 100);
  for (const server of servers) server.weight = 1; // as seen by the same picker
  for (const count of tally(picks(pick, [...servers], 30), servers)) assert.is(count, 10);
});

/** What each of these servers was due and got, of a picker's picks. */
class Ledger {
  readonly #owed = new Map<Candidate, number>();

  picked(servers: readonly Candidate[], picked: Candidate): void {
    for (const server of servers) this.#add(server, server.weight / total(servers));
    this.#add(picked, -1);
  }

  /** What `server` has been due and has not got. */
  of(server: Candidate): number {
    return this.#owed.get(server) ?? 0;
  }

  /** The most that anybody is ahead or behind, in connections. */
  worst(): number {
    return Math.max(...[...this.#owed.values()].map(Math.abs));
  }

  #add(server: Candidate, part: number): void {
    this.#owed.set(server, (this.#owed.get(server) ?? 0) + part);
  }
}

for (const algorithm of ["round-robin", "least-connections"] as const) {
  turns(`gives a slow starter its due within one connection: ${algorithm}`, () => {
    for (const seed of seeds(20)) {
      const pick = picker(algorithm, seed);
      const ledger = new Ledger();
      const servers = withWeights(1, 1, 1, 0.05);
      picks(pick, servers.slice(0, 3), 20);
      for (let second = 0; second <= 60; second += 1) {
        servers[3]!.weight = Math.max(0.05, second / 60);
        const shown = [...servers];
        for (let i = 0; i < 10; i += 1) {
          ledger.picked(shown, pick(shown, ADDRESS));
          assert.ok(Math.abs(ledger.of(servers[3]!)) <= 1, `${ledger.of(servers[3]!)}`);
        }
      }
    }
  });

  turns(`stays within two connections of what is due, whatever happens: ${algorithm}`, () => {
    for (const seed of seeds(150)) playChanges(algorithm, seed);
  });
}

/** Picks, closes, changed weights, slow starts, drains and returns, at random. */
function playChanges(algorithm: Algorithm, seed: number): void {
  const draw = mulberry32(seed);
  const upTo = (most: number): number => 1 + Math.floor(draw() * most);
  const servers = withWeights(...seeds(1 + upTo(19)).map(() => upTo(10)));
  const configured = new Map(servers.map((server) => [server, server.weight]));
  const drained = new Set<Candidate>();
  let pick = picker(algorithm, seed);
  let ledger = new Ledger();
  let shown = [...servers];
  const refresh = (): void => {
    shown = servers.filter((server) => !drained.has(server));
  };
  for (let step = 0; step < 300; step += 1) {
    const server = servers[Math.floor(draw() * servers.length)]!;
    const what = draw();
    if (what < 0.01) {
      configured.set(server, upTo(10));
      server.weight = configured.get(server)!;
      pick = picker(algorithm, seed + step);
      ledger = new Ledger();
    } else if (what < 0.05) server.weight = configured.get(server)! * (0.05 + 0.95 * draw());
    else if (what < 0.07 && drained.size < servers.length / 3) drained.add(server);
    else if (what < 0.1) drained.delete(server);
    if (what < 0.1) refresh();
    const picked = pick(shown, ADDRESS);
    assert.ok(shown.includes(picked));
    ledger.picked(shown, picked);
    // where it began is within the first round
    assert.ok(ledger.worst() <= 2, `seed ${seed}, step ${step}: ${ledger.worst()}`);
  }
}

turns("goes on fairly when a server fills up whenever it is picked", () => {
  const servers = equal(4);
  const pick = picker("round-robin");
  let full = servers[0]!;
  const names = seeds(300).map(() => {
    full = pick(
      servers.filter((server) => server !== full),
      ADDRESS,
    );
    return full.name;
  });
  for (const count of tally(names, servers)) assert.ok(count >= 74 && count <= 76, `${count}`);
});

turns.run();

// ─── least-connections ───────────────────────────────────────────────────────

const least = suite("least-connections");

least("picks the server with the fewest open connections", () => {
  const servers = withWeights(1, 1, 1);
  for (const [i, open] of [3, 1, 2].entries()) servers[i]!.open = open;
  assert.equal(picks(picker("least-connections"), servers, 2).join(" "), "b b");
});

least("takes turns among equally loaded servers, and among these only", () => {
  const servers = withWeights(1, 1, 1);
  assert.ok(isRotation(picks(picker("least-connections"), servers, 6).join(""), "abcabc"));
  servers[1]!.open = 1;
  assert.ok(isRotation(picks(picker("least-connections"), servers, 4).join(""), "acac"));
});

least("counts connections per weight, and heeds weights while nobody has any", () => {
  const servers = withWeights(3, 1);
  assert.equal(tally(openings(picker("least-connections"), servers, 40), servers), [30, 10]);
  const idle = withWeights(3, 1);
  assert.equal(tally(picks(picker("least-connections"), idle, 40), idle), [30, 10]);
});

least("owes nothing to a server that was too busy for its turns", () => {
  const servers = withWeights(1, 1, 1);
  const pick = picker("least-connections");
  servers[2]!.open = 1;
  picks(pick, servers, 100);
  servers[2]!.open = 0;
  assert.equal(tally(picks(pick, servers, 30), servers), [10, 10, 10]);
});

least("deals a burst out exactly like round-robin", () => {
  for (const seed of seeds(20))
    assert.equal(
      openings(picker("least-connections", seed), equal(5), 100),
      openings(picker("round-robin", seed), equal(5), 100),
    );
});

least("never picks one that has more per weight than another", () => {
  const draw = mulberry32(3);
  for (let round = 0; round < 300; round += 1) {
    const servers = withWeights(...seeds(6).map(() => 0.05 + 10 * draw()));
    for (const server of servers) server.open = Math.floor(draw() * 5);
    const { open, weight } = picker("least-connections", round)(servers, ADDRESS);
    for (const other of servers) assert.ok(open / weight <= other.open / other.weight);
  }
});

least.run();

// ─── random, two-choices ─────────────────────────────────────────────────────

const random = suite("random");

random("is uniform over equal servers, and follows weights (chi-square)", () => {
  const servers = equal(10);
  const even = servers.map(() => 1000);
  assert.ok(chiSquare(tally(picks(picker("random"), servers, 10_000), servers), even) < RARE[9]);
  const weighted = withWeights(1, 2, 3, 4, 10);
  const due = [1000, 2000, 3000, 4000, 10_000];
  const counts = tally(picks(picker("random"), weighted, 20_000), weighted);
  assert.ok(chiSquare(counts, due) < RARE[4]);
});

random("follows the weights of the list that it is shown now", () => {
  const servers = withWeights(1, 1);
  const pick = picker("random");
  picks(pick, servers, 10);
  servers[0]!.weight = 9;
  const [a = 0] = tally(picks(pick, [...servers], 1000), servers);
  assert.ok(Math.abs(a - 900) < 40);
});

random("finds each place that a number points at, the borders too", () => {
  const servers = withWeights(0.1, 0.2, 0.3, 1000, 0.05);
  for (const algorithm of ["random", "two-choices"] as const)
    for (const luck of [0, 0.1 / 1000.65, 0.5, 1000.6 / 1000.65, 1 - 2 ** -32]) {
      const pick: Picker = algorithms[algorithm]({ random: () => luck, now: () => 0 });
      assert.ok(servers.includes(pick(servers, ADDRESS)));
    }
});

random.run();

const two = suite("two-choices");

two("never picks the busiest of all, because the two differ", () => {
  for (const weights of [
    [1, 1, 1, 1],
    [1, 5, 20, 2],
  ]) {
    const servers = withWeights(...weights);
    servers[2]!.open = 1000;
    assert.is(tally(picks(picker("two-choices"), servers, 2000), servers)[2], 0);
  }
});

two("follows the weights while nobody has a connection (chi-square)", () => {
  const servers = withWeights(1, 2, 3, 4, 10);
  const counts = tally(picks(picker("two-choices"), servers, 20_000), servers);
  assert.ok(chiSquare(counts, [1000, 2000, 3000, 4000, 10_000]) < RARE[4]);
  const [a = 0] = tally(picks(picker("two-choices"), withWeights(9, 1), 5000), withWeights(9, 1));
  assert.ok(Math.abs(a - 4500) < 80, `${a}`);
});

two("draws the second by the weights of the others", () => {
  const servers = withWeights(8, 1, 1);
  servers[0]!.open = 1000; // whenever it is drawn, the other one wins
  const [, b = 0] = tally(picks(picker("two-choices"), servers, 10_000), servers);
  assert.ok(Math.abs(b / 10_000 - 0.5) < 0.02, `${b}`);
});

two(
  "keeps the fullest of n bins near ln ln n / ln 2, where one choice does not (Azar et al. 1994)",
  () => {
    const fullest = (algorithm: Algorithm, seed: number): number => {
      const servers = equal(1000);
      openings(picker(algorithm, seed), servers, 1000);
      return Math.max(...servers.map(({ open }) => open));
    };
    for (const seed of seeds(5)) {
      assert.ok(fullest("two-choices", seed) <= 4); // ln ln 1000 / ln 2 = 2.8, and a constant
      // ln 1000 / ln ln 1000 = 3.6, times a constant above 1
      assert.ok(fullest("random", seed) >= 5);
    }
  },
);

two.run();

// ─── least-latency ───────────────────────────────────────────────────────────

const latency = suite("least-latency");
const close = (actual: number, expected: number): void =>
  assert.ok(Math.abs(actual - expected) < 1e-9, `${actual} is not ${expected}`);
/** Servers that have been picked and have answered just now, after so many seconds. */
const shown = (now: number, ...seconds: number[]): Candidate[] => {
  const servers = withWeights(...seconds.map(() => 1));
  for (const [i, server] of servers.entries()) {
    server.cost.pickedAt = now;
    answered(server.cost, now - (seconds[i] ?? 0), now);
  }
  return servers;
};

latency("takes a slower turn at once, a faster one by and by (10 s)", () => {
  const cost = newCost();
  answered(cost, 0, 0.1);
  answered(cost, -0.4, 0.1);
  close(costOf(cost, 0.1, 0), 0.5);
  const other = newCost();
  answered(other, -1, 0);
  answered(other, 9.9, 10);
  close(other.seconds, Math.exp(-1) + 0.1 * (1 - Math.exp(-1))); // 0.4311
});

latency("lets a cost that is only read decay", () => {
  const cost = newCost();
  answered(cost, 4, 5);
  close(costOf(cost, 5, 0), 1);
  close(costOf(cost, 15, 0), Math.exp(-1));
});

latency("picks by cost times (open + 1), per weight", () => {
  const servers = shown(0, 0.1, 0.25);
  const pick = picker("least-latency");
  assert.equal(openings(pick, servers, 4).join(" "), "a a b a"); // 0.1 0.2 (0.3 > 0.25) 0.3
  const weighted = shown(0, 0.1, 0.1);
  weighted[1]!.weight = 3;
  assert.equal(tally(openings(picker("least-latency"), weighted, 40), weighted), [10, 30]);
});

latency("takes a server without history for the best known", () => {
  const servers = shown(0, 0.1, 30, 0);
  Object.assign(servers[2]!.cost, newCost(), { pickedAt: 0 });
  const names = openings(picker("least-latency"), servers, 10);
  assert.equal(tally(names, servers), [5, 0, 5]);
});

latency("sends the first client to a newcomer, and one only until it has answered", () => {
  let time = 100;
  const servers = [...shown(time, 0.001, 30), candidate("c")];
  const pick = picker("least-latency", 1, () => time);
  time += 0.2;
  assert.equal(picks(pick, servers, 1), ["c"]);
  servers[2]!.open = 1;
  assert.equal(picks(pick, servers, 3), ["a", "a", "a"]);
});

latency("spreads first connections while nobody has a history", () => {
  const servers = equal(5);
  assert.equal(tally(openings(picker("least-latency"), servers, 10), servers), [2, 2, 2, 2, 2]);
});

/** When the first of these, which is kept away by its cost, is picked: ten clients a second. */
function triedAt(servers: readonly Candidate[], pick: (time: number) => Candidate): number[] {
  const times: number[] = [];
  for (let time = 0.1; time < 100; time += 0.1) {
    const server = pick(time);
    if (server === servers[0]) times.push(time);
    else answered(server.cost, time - 0.02, time);
  }
  return times;
}

latency("tries a slow server again within 30 s, by one connection at a time", () => {
  for (const seconds of [0.1, 1, 60, 1e6]) {
    let now = 0;
    const servers = shown(0, seconds, 0.02, 0.02);
    const pick = picker("least-latency", 1, () => now);
    const times = triedAt(servers, (time) => {
      now = time;
      const server = pick(servers, ADDRESS);
      if (server === servers[0]) answered(server.cost, time - seconds, time);
      return server;
    });
    for (const [i, time] of times.entries()) {
      assert.ok(time - (times[i - 1] ?? 0) < 30, `${seconds}: ${times}`);
      if (seconds >= 1) assert.ok(time - (times[i - 1] ?? 0) > 10, `${seconds}: ${times}`);
    }
    assert.ok(times.length >= 3);
  }
});

latency("tries nobody again who was picked not long ago", () => {
  let now = 15;
  const servers = shown(0, 0.02, 0.05);
  const pick = picker("least-latency", 1, () => now);
  assert.equal(picks(pick, servers, 1), ["a"]);
  took(servers[0]!.cost, 15, 60, 16);
  servers[1]!.cost.pickedAt = 30;
  now = 30;
  assert.equal(picks(pick, servers, 1), ["b"]);
  now = 36;
  assert.equal(picks(pick, servers, 2), ["a", "b"]);
});

latency("believes the outcome of that one, good or bad", () => {
  const [well, ill] = shown(0, 60, 60);
  for (const server of [well!, ill!]) picker("least-latency", 1, () => 25)([server], ADDRESS);
  answered(well!.cost, 10, 25.01); // of a turn from before the trial: not its outcome
  assert.ok(costOf(well!.cost, 25.01, 0) > 4);
  answered(well!.cost, 25, 25.02);
  close(costOf(well!.cost, 25.02, 0), 0.02 + (25.02 - 25 - 0.02));
  took(ill!.cost, 25, 2, 25.02);
  close(costOf(ill!.cost, 25.02, 0), 2);
  answered(well!.cost, 25.1, 25.6); // and then as before: the slower at once
  close(costOf(well!.cost, 25.6, 0), 0.5);
});

latency("takes a failed connect for a slow one", () => {
  const servers = shown(0, 0.02, 0.05);
  took(servers[0]!.cost, 0, 2, 0);
  assert.equal(picks(picker("least-latency"), servers, 3), ["b", "b", "b"]);
});

latency("counts silence towards everybody as it stands, up to eight times the cost", () => {
  const cost = newCost();
  answered(cost, 0, 0.05);
  asked(cost, 1);
  close(costOf(cost, 1.3, 0), 0.3);
  close(costOf(cost, 1.4, 0), 0.4);
  close(costOf(cost, 60, 0), 0.4);
  close(costOf(newCost(), 60, 0.1), 0.1);
});

latency("lets nobody speak for a server that has answered anybody since", () => {
  const cost = newCost();
  answered(cost, 0, 0.05);
  asked(cost, 1);
  asked(cost, 1.2);
  answered(cost, 1.2, 1.25);
  assert.is(cost.waiting, 0);
  assert.ok(costOf(cost, 9, 0) < 0.05);
  forgotten(cost, 1); // who asked before that answer, and left
  asked(cost, 9);
  forgotten(cost, 1);
  close(costOf(cost, 9.3, 0), 0.3);
  forgotten(cost, 9);
  assert.ok(costOf(cost, 9.3, 0) < 0.05);
});

latency(
  "sends somebody to a silent server after a second, then each time its silence doubles",
  () => {
    let now = 0;
    const servers = shown(0, 0.02, 0.02);
    const pick = picker("least-latency", 1, () => now);
    asked(servers[0]!.cost, 0);
    servers[0]!.open = 1;
    const times = triedAt(servers, (time) => {
      now = time;
      const server = pick(servers, ADDRESS);
      if (server === servers[0]) server.open += 1;
      return server;
    });
    const late = times.filter((time) => time > 0.9);
    assert.ok((late[0] ?? 9) < 1.2, times.join());
    for (const [i, time] of late.slice(1).entries()) {
      const before = late[i] ?? 0;
      assert.ok(Math.abs(time - before - Math.min(before, 20)) < 0.5, times.join());
    }
    assert.ok(late.length >= 8);
  },
);

latency("leaves out no server that would win, though it computes few costs exactly", () => {
  const draw = mulberry32(1);
  for (let round = 0; round < 500; round += 1) {
    const servers = withWeights(1, 2, 3, 1, 1, 1, 1, 1);
    for (const server of servers) {
      const at = draw() * 20;
      server.open = Math.floor(draw() * 4);
      answered(server.cost, at - draw(), at);
      if (draw() < 0.1) asked(server.cost, 24.5 + 0.5 * draw());
      server.cost.pickedAt = 24.9;
    }
    const loads = servers.map(
      (server) => (costOf(server.cost, 25, 0) * (server.open + 1)) / server.weight,
    );
    assert.is(
      picker("least-latency", round, () => 25)(servers, ADDRESS),
      servers[loads.indexOf(Math.min(...loads))],
    );
  }
});

latency.run();

// ─── source-hash ─────────────────────────────────────────────────────────────

const source = suite("source-hash");
const clients = Array.from(
  { length: 10_000 },
  (_, i) => `10.${i >> 16}.${(i >> 8) & 255}.${i & 255}`,
);
const homes = (servers: readonly Candidate[]): string[] =>
  clients.map((client) => homeOf(servers, client).name);

source("sends the same client to the same server, whatever the order of the servers", () => {
  const servers = equal(10);
  assert.equal(homes(servers), homes([...servers].reverse()));
  const pick = picker("source-hash", 99);
  assert.is(pick(servers, "10.0.0.1"), homeOf(servers, "10.0.0.1"));
});

source("is uniform over equal servers, and follows weights (chi-square)", () => {
  const servers = equal(10);
  const even = servers.map(() => 1000);
  assert.ok(chiSquare(tally(homes(servers), servers), even) < RARE[9]);
  const weighted = withWeights(1, 2, 3, 4, 10);
  const due = [500, 1000, 1500, 2000, 5000];
  assert.ok(chiSquare(tally(homes(weighted), weighted), due) < RARE[4]);
});

source(
  "moves only the clients of a server that leaves: a tenth, where hash % n moves nine tenths",
  () => {
    const moved = (before: readonly unknown[], after: readonly unknown[]): number =>
      before.filter((home, i) => home !== after[i]).length / before.length;
    const servers = equal(10);
    const byRemainder = (left: readonly Candidate[]): string[] =>
      clients.map((client) => left[hash(client) % left.length]!.name);
    const near = (share: number, expected: number): void =>
      assert.ok(Math.abs(share - expected) < 0.02, `${share} is not about ${expected}`);
    for (const gone of servers) {
      const left = servers.filter((server) => server !== gone);
      const before = homes(servers);
      const after = homes(left);
      assert.ok(before.every((home, i) => home === after[i] || home === gone.name));
      near(moved(before, after), 1 / 10);
      near(moved(byRemainder(servers), byRemainder(left)), 9 / 10);
    }
  },
);

source("moves clients only to a server that gains weight", () => {
  const [before, after] = [homes(withWeights(1, 1, 1)), homes(withWeights(1, 1, 2))];
  assert.ok(before.every((home, i) => home === after[i] || after[i] === "c"));
  assert.ok(before.join() !== after.join());
});

source.run();
