/**
 * The six algorithms, without a socket: known sequences, theory, and distributions under a fixed
 * seed.
 */
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { mulberry32 } from "../lib.ts";
import {
  type Algorithm,
  algorithms,
  costOf,
  newServer,
  observe,
  parseServers,
  type Picker,
  type Server,
} from "../load_balancer.ts";

const ADDRESS = "127.0.0.1";

/** Servers a, b, c, ... with these weights. */
const withWeights = (...weights: number[]): Server[] =>
  weights.map((weight, i) => newServer({ host: String.fromCharCode(97 + i), port: 80, weight }));
const equal = (count: number): Server[] =>
  parseServers(Array.from({ length: count }, (_, i) => `10.0.${i >> 8}.${i & 255}:80`)).map(
    newServer,
  );
const picker = (algorithm: Algorithm, seed = 1, now = (): number => 0): Picker =>
  algorithms[algorithm]({ random: mulberry32(seed), now });

/** The hosts picked in `count` picks, each of which stays open when `open` says so. */
function picks(pick: Picker, servers: readonly Server[], count: number, open = false): string[] {
  return Array.from({ length: count }, () => {
    const server = pick(servers, ADDRESS);
    if (open) server.active += 1;
    return server.address.host;
  });
}

const tally = (hosts: readonly string[], servers: readonly Server[]): number[] =>
  servers.map((server) => hosts.filter((host) => host === server.address.host).length);

/** Pearson's statistic of `counts` against `expected`. */
const chiSquare = (counts: readonly number[], expected: readonly number[]): number =>
  counts.reduce((sum, count, i) => sum + (count - (expected[i] ?? 0)) ** 2 / (expected[i] ?? 0), 0);
/**
 * What Pearson's statistic exceeds once in a thousand times, for 4 and for 9 degrees of freedom.
 */
const RARE = { 4: 18.47, 9: 27.88 } as const;

// ─── round-robin ─────────────────────────────────────────────────────────────

const roundRobin = suite("round-robin");

roundRobin("takes turns among equal servers, in their order", () => {
  assert.equal(picks(picker("round-robin"), withWeights(1, 1, 1), 7).join(" "), "a b c a b c a");
});

roundRobin("spreads a heavy server's turns: 5, 1, 1 gives a a b a c a a", () => {
  const servers = withWeights(5, 1, 1);
  assert.equal(picks(picker("round-robin"), servers, 14).join(" "), "a a b a c a a a a b a c a a");
});

roundRobin("goes on fairly when a server leaves and comes back", () => {
  const servers = withWeights(1, 1, 1);
  const pick = picker("round-robin");
  picks(pick, servers, 4);
  assert.equal(tally(picks(pick, servers.slice(1), 10), servers), [0, 5, 5]);
  for (const count of tally(picks(pick, servers, 30), servers))
    assert.ok(count >= 9 && count <= 11);
});

roundRobin.run();

// ─── least-connections ───────────────────────────────────────────────────────

const least = suite("least-connections");

least("picks the server with the fewest open connections", () => {
  const servers = withWeights(1, 1, 1);
  [3, 1, 2].forEach((active, i) => {
    servers[i]!.active = active;
  });
  assert.equal(picks(picker("least-connections"), servers, 2).join(" "), "b b");
});

least("takes turns among equally loaded servers", () => {
  assert.equal(
    picks(picker("least-connections"), withWeights(1, 1, 1), 6).join(" "),
    "a b c a b c",
  );
});

least("takes turns among the tied ones only", () => {
  const servers = withWeights(1, 1, 1);
  servers[1]!.active = 1;
  assert.equal(picks(picker("least-connections"), servers, 4).join(" "), "a c a c");
});

least("counts connections per weight", () => {
  const servers = withWeights(3, 1);
  assert.equal(tally(picks(picker("least-connections"), servers, 40, true), servers), [30, 10]);
});

least("heeds weights while nobody has an open connection", () => {
  const servers = withWeights(3, 1);
  assert.equal(tally(picks(picker("least-connections"), servers, 40), servers), [30, 10]);
});

least("deals a burst out exactly like round-robin", () => {
  const [one, other] = [equal(5), equal(5)];
  assert.equal(
    picks(picker("least-connections"), one, 100, true),
    picks(picker("round-robin"), other, 100),
  );
});

least.run();

// ─── random ──────────────────────────────────────────────────────────────────

const random = suite("random");

random("is uniform over equal servers (chi-square)", () => {
  const servers = equal(10);
  assert.ok(
    chiSquare(
      tally(picks(picker("random"), servers, 10_000), servers),
      servers.map(() => 1000),
    ) < RARE[9],
  );
});

random("follows the weights (chi-square)", () => {
  const servers = withWeights(1, 2, 3, 4, 10);
  assert.ok(
    chiSquare(
      tally(picks(picker("random"), servers, 20_000), servers),
      [1000, 2000, 3000, 4000, 10_000],
    ) < RARE[4],
  );
});

random("repeats itself for the same seed, and only then", () => {
  const [one, same, other] = [7, 7, 8].map((seed) =>
    picks(picker("random", seed), equal(5), 50).join(" "),
  );
  assert.is(one, same);
  assert.is.not(one, other);
});

random.run();

// ─── two-choices ─────────────────────────────────────────────────────────────

const two = suite("two-choices");

two("never picks the busiest of all, because the two differ", () => {
  const servers = equal(4);
  servers[2]!.active = 1;
  assert.is(tally(picks(picker("two-choices"), servers, 2000), servers)[2], 0);
});

two("is uniform while all are equal (chi-square)", () => {
  const servers = equal(5);
  assert.ok(
    chiSquare(
      tally(picks(picker("two-choices"), servers, 10_000), servers),
      servers.map(() => 2000),
    ) < RARE[4],
  );
});

two("works with a single server", () => {
  assert.equal(picks(picker("two-choices"), withWeights(1), 3), ["a", "a", "a"]);
});

two(
  "keeps the fullest of n bins near ln ln n / ln 2, where one choice does not (Azar et al. 1994)",
  () => {
    const fullest = (algorithm: Algorithm, seed: number): number => {
      const servers = equal(1000);
      picks(picker(algorithm, seed), servers, 1000, true);
      return Math.max(...servers.map(({ active }) => active));
    };
    for (const seed of [1, 2, 3, 4, 5]) {
      assert.ok(fullest("two-choices", seed) <= 4); // ln ln 1000 / ln 2 = 2.8, and a constant
      // ln 1000 / ln ln 1000 = 3.6, times a constant above 1
      assert.ok(fullest("random", seed) >= 5);
    }
  },
);

/**
 * Mean time in the system, in mean service times: `n` servers of one slot, exponential service,
 * first come, first served, Poisson arrivals.
 */
function simulateQueues(algorithm: Algorithm, n: number, load: number, arrivals: number): number {
  const draw = mulberry32(1);
  const exponential = (mean: number): number => -Math.log(1 - draw()) * mean;
  const servers = equal(n);
  // of those in its queue, in order
  const ends = new Map(servers.map((server) => [server, [] as number[]]));
  // a stream of its own, or its choices would know the service times
  const pick = picker(algorithm, 2);
  let [time, sum] = [0, 0];
  for (let i = 0; i < 1.25 * arrivals; i += 1) {
    time += exponential(1 / (load * n));
    for (const [server, queue] of ends) {
      while ((queue[0] ?? Infinity) <= time) queue.shift();
      server.active = queue.length;
    }
    const queue = ends.get(pick(servers, ADDRESS))!;
    const end = Math.max(time, queue.at(-1) ?? 0) + exponential(1);
    queue.push(end);
    if (i >= arrivals / 4) sum += end - time; // the first fifth fills the empty queues
  }
  return sum / arrivals;
}

two(
  "waits as little as Mitzenmacher's formula has it (2001): 2.61 service times at 90 % load, where one choice takes 10",
  () => {
    const expected = (choices: number): number =>
      Array.from({ length: 60 }, (_, i) => i + 1).reduce(
        (sum, i) => sum + 0.9 ** (choices === 1 ? i - 1 : (choices ** i - choices) / (choices - 1)),
        0,
      );
    const [one, both] = [
      simulateQueues("random", 100, 0.9, 200_000),
      simulateQueues("two-choices", 100, 0.9, 200_000),
    ];
    assert.ok(Math.abs(expected(2) - 2.61) < 0.005 && Math.abs(one / 10 - 1) < 0.05, String(one));
    assert.ok(Math.abs(both / expected(2) - 1) < 0.05, String(both));
  },
);

two.run();

// ─── least-latency ───────────────────────────────────────────────────────────

const latency = suite("least-latency");
const close = (actual: number, expected: number): void =>
  assert.ok(Math.abs(actual - expected) < 1e-9, `${actual} is not ${expected}`);

latency("takes a slower turn at once", () => {
  const [server] = withWeights(1);
  observe(server!, 0.1, 0);
  observe(server!, 0.5, 0);
  close(costOf(server!, 0, 0), 0.5);
});

latency("takes a faster turn by and by, with a time constant of 10 s", () => {
  const [server] = withWeights(1);
  observe(server!, 1, 0);
  observe(server!, 0.1, 10);
  close(server!.cost, Math.exp(-1) + 0.1 * (1 - Math.exp(-1))); // 0.4311
});

latency("lets a cost that is only read decay", () => {
  const [server] = withWeights(1);
  observe(server!, 1, 5);
  close(costOf(server!, 5, 0), 1);
  close(costOf(server!, 15, 0), Math.exp(-1));
});

latency("picks by cost times (open + 1)", () => {
  const servers = withWeights(1, 1);
  observe(servers[0]!, 0.1, 0);
  observe(servers[1]!, 0.25, 0);
  const pick = picker("least-latency");
  assert.equal(picks(pick, servers, 4, true).join(" "), "a a b a"); // 0.1 0.2 (0.3 > 0.25) 0.3
});

latency("tries a once-slow server again", () => {
  let time = 0;
  const servers = withWeights(1, 1);
  const pick = picker("least-latency", 1, () => time);
  observe(servers[0]!, 1, 0);
  let tried = false;
  for (; time < 60 && !tried; time += 0.1) {
    const server = pick(servers, ADDRESS);
    tried = server === servers[0];
    if (!tried) observe(server, 0.05, time);
  }
  assert.ok(tried && time > 20, `tried after ${time} s`); // 10 ln(1 / 0.05) = 30 s
});

latency("takes a server without history for an average one, not for a free one", () => {
  const servers = withWeights(1, 1, 1);
  observe(servers[0]!, 0.1, 0);
  observe(servers[1]!, 0.3, 0);
  // 0.1 against a mean of 0.2
  assert.equal(picks(picker("least-latency"), servers, 3), ["a", "a", "a"]);
  servers[0]!.active = 2;
  assert.equal(picks(picker("least-latency"), servers, 3), ["c", "c", "c"]); // 0.3 against 0.2
});

latency("spreads first connections while nobody has a history", () => {
  const servers = equal(5);
  assert.equal(tally(picks(picker("least-latency"), servers, 10, true), servers), [2, 2, 2, 2, 2]);
});

latency("counts a turn that still waits as it stands", () => {
  let time = 0;
  const servers = withWeights(1, 1);
  for (const server of servers) observe(server, 0.02, 0);
  servers[0]!.oldestAsked = 0;
  const pick = picker("least-latency", 1, () => time);
  time = 0.5;
  assert.equal(picks(pick, servers, 5), ["b", "b", "b", "b", "b"]);
});

latency("leaves out no server that would win, though it computes few costs exactly", () => {
  const draw = mulberry32(1);
  for (let round = 0; round < 500; round += 1) {
    const servers = withWeights(1, 2, 3, 1, 1, 1, 1, 1);
    for (const server of servers) {
      server.active = Math.floor(draw() * 4);
      observe(server, draw(), draw() * 20);
      if (draw() < 0.1) server.oldestAsked = 25 * draw();
    }
    const loads = servers.map(
      (server) => (costOf(server, 25, 0) * (server.active + 1)) / server.weight,
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
const homes = (servers: readonly Server[], pick = picker("source-hash")): string[] =>
  clients.map((client) => pick(servers, client).address.host);

source("sends the same client to the same server, whatever the order of the servers", () => {
  const servers = equal(10);
  assert.equal(homes(servers), homes([...servers].reverse(), picker("source-hash", 99)));
});

source("is uniform over equal servers (chi-square)", () => {
  const servers = equal(10);
  assert.ok(
    chiSquare(
      tally(homes(servers), servers),
      servers.map(() => 1000),
    ) < RARE[9],
  );
});

source("follows the weights (chi-square)", () => {
  const servers = withWeights(1, 2, 3, 4, 10);
  assert.ok(chiSquare(tally(homes(servers), servers), [500, 1000, 1500, 2000, 5000]) < RARE[4]);
});

source("moves only the clients of a server that leaves, exactly", () => {
  const servers = equal(10);
  const [before, after] = [homes(servers), homes(servers.slice(1))];
  const moved = before.filter((home, i) => home !== after[i]);
  assert.ok(moved.length > 0);
  assert.ok(moved.every((home) => home === servers[0]!.address.host));
});

source(
  "moves a tenth of the clients when one of ten servers leaves, where hash % n moves nine tenths",
  () => {
    const moved = (before: readonly unknown[], after: readonly unknown[]): number =>
      before.filter((home, i) => home !== after[i]).length / before.length;
    const servers = equal(10);
    const byRemainder = (left: readonly Server[]): string[] =>
      clients.map(
        (host) => left[newServer({ host, port: 0, weight: 1 }).hash % left.length]!.address.host,
      );
    const near = (share: number, expected: number): void =>
      assert.ok(Math.abs(share - expected) < 0.02, `${share} is not about ${expected}`);
    for (const gone of servers) {
      const left = servers.filter((server) => server !== gone);
      near(moved(homes(servers), homes(left)), 1 / 10);
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
