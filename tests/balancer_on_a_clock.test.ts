/**
 * balancer_on_a_clock.test.ts - what the balancer tells its algorithms and its counters, with real
 * sockets and a clock that stands until a test moves it: so times are exact.
 */
import { connect, Socket } from "node:net";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import {
  LoadBalancer,
  type LoadBalancerOptions,
  Log,
  newResets,
  parseServers,
  type ServerStatus,
  type World,
} from "../load_balancer.ts";
import {
  ask,
  cleanUp,
  DEAD,
  dial,
  failDials,
  later,
  optionsFor,
  outcomeOf,
  serving,
  type Talk,
  until,
} from "./helpers.ts";

type Serving = Awaited<ReturnType<typeof serving>>;

/** A balancer over `servers`; its clock shows 1000 s and what `pass` has added. */
interface Standing {
  readonly balancer: LoadBalancer;
  readonly port: number;
  readonly servers: readonly Serving[];
  readonly pass: (seconds: number) => void;
}

/** Over `count` servers, and those at the addresses `dead`, without checks. */
async function startStanding(
  count: number,
  options: Partial<LoadBalancerOptions> = {},
  dead: readonly string[] = [],
): Promise<Standing> {
  const servers = await Promise.all(Array.from({ length: count }, () => serving()));
  const addresses = [...servers.map(({ address }) => address), ...dead];
  let time = 1000;
  const world: World = { clock: { now: () => time, after: () => () => undefined }, connect };
  const balancer = new LoadBalancer(optionsFor(addresses, options), new Log("none"), world);
  later(() => {
    balancer.cut(); // nothing ends by itself while the clock stands
    return balancer.stop(0);
  });
  const { port } = await balancer.listen();
  const pass = (seconds: number): void => {
    time += seconds;
  };
  return { balancer, port, servers, pass };
}

function rowOf({ balancer }: Standing, place = 0): ServerStatus {
  const row = balancer.status().servers[place];
  if (row === undefined) throw new Error(`no server ${place}`);
  return row;
}

/** A client that has asked, and the server that knows. */
interface Turn {
  readonly place: number;
  readonly client: Talk;
  readonly server: Talk;
}

async function begin(standing: Standing): Promise<Turn> {
  const { balancer, port, servers } = standing;
  const before = balancer.status().servers.map(({ unanswered }) => unanswered);
  const client = await dial(port);
  client.socket.write("?");
  const place = (): number =>
    balancer.status().servers.findIndex(({ unanswered }, i) => unanswered > (before[i] ?? 0));
  await until(() => place() >= 0, "the question");
  const asked = servers[place()];
  if (asked === undefined) throw new Error("no such server");
  return { place: servers.indexOf(asked), client, server: await asked.next() };
}

/** The server of `turn` answers when `seconds` have passed. */
async function answer(standing: Standing, turn: Turn, seconds: number): Promise<void> {
  standing.pass(seconds);
  const size = turn.client.size();
  turn.server.socket.write("!");
  await until(() => turn.client.size() > size, "the answer");
}

/** Both sides end: a reset would wait on the clock. */
async function leave({ balancer }: Standing, { client, server }: Turn): Promise<void> {
  const { active } = balancer.status();
  client.socket.end();
  await outcomeOf(server);
  server.socket.end();
  await until(() => balancer.status().active === active - 1, "the end");
}

/** One client after the other, `count` of them: to which places they come. A server needs the
 *  `seconds` of its place. */
async function takeTurns(
  standing: Standing,
  count: number,
  seconds: readonly number[],
): Promise<number[]> {
  const places: number[] = [];
  for (let i = 0; i < count; i += 1) {
    const turn = await begin(standing);
    places.push(turn.place);
    await answer(standing, turn, seconds[turn.place] ?? 0);
    await leave(standing, turn);
  }
  return places;
}

const howOften = (places: readonly number[], wanted: number): number =>
  places.filter((place) => place === wanted).length;

// ─── What algorithms are told ────────────────────────────────────────────────

const told = suite("least-latency in a balancer");
told.after.each(cleanUp);
const LEAST_LATENCY = { algorithm: "least-latency" } as const;

told("goes to the server that answers faster", async () => {
  const standing = await startStanding(2, LEAST_LATENCY);
  const slow = howOften(await takeTurns(standing, 20, [0.2, 0.01]), 0);
  assert.ok(slow >= 1 && slow <= 3, `of 20 clients to the slow server: ${slow}`);
});

told("leaves a server alone that owes somebody an answer", async () => {
  const standing = await startStanding(2, LEAST_LATENCY);
  await takeTurns(standing, 6, [0.02, 0.02]);
  const silent = await begin(standing);
  const other = await begin(standing);
  assert.is(other.place, 1 - silent.place, "each has one client now");
  await answer(standing, other, 0.02);
  standing.pass(0.3);
  const places = await takeTurns(standing, 6, [0.02, 0.02]);
  assert.is(howOften(places, silent.place), 0);
});

told("does not hold it against a server when a turn ends without an answer", async () => {
  const standing = await startStanding(2, LEAST_LATENCY);
  await takeTurns(standing, 6, [0.02, 0.02]);
  const left = await begin(standing);
  await leave(standing, left);
  standing.pass(0.1);
  const places = await takeTurns(standing, 8, [0.02, 0.02]);
  assert.ok(howOften(places, left.place) >= 2, places.join());
});

told("takes a connect that fails at once for a slow answer, not for a fast one", async () => {
  const standing = await startStanding(1, { ...LEAST_LATENCY, fall: 1000 }, [DEAD[0]]);
  await takeTurns(standing, 20, [0.02]);
  const { retries } = standing.balancer.status();
  assert.ok(retries >= 1 && retries <= 3, `${retries} of 20 went to the dead server first`);
});

told.run();

// ─── Counted times ───────────────────────────────────────────────────────────

const counted = suite("times that are counted");
counted.after.each(cleanUp);

counted("a mean gives a new turn an eighth of the weight", async () => {
  const standing = await startStanding(1);
  await takeTurns(standing, 1, [0.8]);
  assert.ok(Math.abs((rowOf(standing).turnTime ?? 0) - 0.8) < 1e-9);
  await takeTurns(standing, 1, [0]);
  assert.ok(Math.abs((rowOf(standing).turnTime ?? 0) - 0.7) < 1e-9);
});

counted("a turn of exactly a bucket's bound belongs into that bucket", async () => {
  const standing = await startStanding(1);
  await takeTurns(standing, 1, [10]);
  assert.equal(standing.balancer.status().turns.counts.slice(-2), [1, 0]);
  await takeTurns(standing, 1, [10.5]);
  assert.equal(standing.balancer.status().turns.counts.slice(-2), [1, 1]);
});

counted("the oldest turn without an answer is the one that began first", async () => {
  const standing = await startStanding(1);
  const first = await begin(standing);
  standing.pass(1);
  await begin(standing);
  standing.pass(2);
  assert.equal([rowOf(standing).unanswered, rowOf(standing).oldestUnanswered], [2, 3]);
  await answer(standing, first, 0);
  assert.equal([rowOf(standing).unanswered, rowOf(standing).oldestUnanswered], [1, 2]);
});

counted("a shortage of this machine is named for a minute", async () => {
  const standing = await startStanding(1);
  failDials("EMFILE", 1);
  assert.is.not(await ask(standing.port), "hello");
  standing.pass(59);
  assert.type(standing.balancer.status().shortage, "string");
  standing.pass(2);
  assert.is(standing.balancer.status().shortage, null);
});

/** A little more than `seconds` pass, up to a sweep: it ends a connection that has been idle. */
async function sweepAfter(standing: Standing, seconds: number): Promise<void> {
  const turn = await begin(standing);
  standing.pass(seconds);
  const ticking = setInterval(() => standing.pass(0.01), 5); // idle is who is so twice
  later(() => clearInterval(ticking));
  await outcomeOf(turn.client);
  clearInterval(ticking);
  await until(() => standing.balancer.status().active === 0, "the end");
}

counted("a server that was removed is remembered for ten minutes", async () => {
  const standing = await startStanding(2, { idleTimeout: 0.04 });
  const [kept = "", removed = ""] = standing.servers.map(({ address }) => address);
  const { balancer } = standing;
  balancer.setDraining(removed, true);
  for (const [seconds, isKnown] of [
    [550, true],
    [601, false],
  ] as const) {
    balancer.setServers(parseServers([kept]), "file");
    await sweepAfter(standing, seconds);
    balancer.setServers(parseServers([kept, removed]), "file");
    assert.is(rowOf(standing, 1).draining, isKnown, `after ${seconds} s`);
  }
});

counted("the log says of a server that is added again whether it is still drained", () => {
  const said: unknown[] = [];
  class Heard extends Log {
    override say(words: string, event = "", fields: object = {}): void {
      said.push({ words, event, ...fields });
    }
  }
  const [kept, removed, other] = ["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"];
  const balancer = new LoadBalancer(optionsFor([kept, removed]), new Heard("none"));
  later(() => balancer.stop(0));
  balancer.setDraining(removed, true);
  balancer.setServers(parseServers([kept]), "file");
  said.length = 0;
  balancer.setServers(parseServers([kept, removed, other]), "file");
  const [event, state, by] = ["server", "added", "file"];
  const drained = `Server ${removed} was added (still drained)`;
  assert.equal(said, [
    { words: drained, event, server: removed, state, by, why: "still drained" },
    { words: `Server ${other} was added`, event, server: other, state, by, why: "" },
  ]);
});

counted(
  "a connection that ends without a byte is suspect within 0.2 s, or half an interval",
  () => {
    const holdOf = (checkInterval: number): number => {
      const options = optionsFor([DEAD[0]], { checkInterval });
      const balancer = new LoadBalancer(options, new Log("none"));
      later(() => balancer.stop(0));
      return balancer.health.hold;
    };
    assert.equal([holdOf(2), holdOf(0.1)], [0.2, 0.05]);
  },
);

counted.run();

// ─── Resets ──────────────────────────────────────────────────────────────────

const resets = suite("a reset");
resets.after.each(cleanUp);

/** A reset that was asked for at 0 s, of a socket with so many `unwritten` bytes. `at` moves the
 *  clock and waits for a look at it; it says whether the socket has been reset. */
function held(unwritten: number) {
  let time = 0;
  let looks = 0;
  const waiting = newResets(() => {
    looks += 1;
    return time;
  });
  later(() => waiting.allNow());
  const socket = new Socket().on("error", () => undefined); // it is not connected
  const is = { unwritten };
  Object.defineProperty(socket, "writableLength", { get: () => is.unwritten });
  waiting.add(socket);
  const at = async (seconds: number): Promise<boolean> => {
    time = seconds;
    const before = looks;
    await until(() => looks > before + 1 || socket.destroyed, "a look");
    return socket.destroyed;
  };
  return { is, at };
}

resets("waits for 50 ms, for what the kernel has", async () => {
  const { at } = held(0);
  assert.equal([await at(0.04), await at(0.06)], [false, true]);
});

resets("waits for 50 ms more once everything is written", async () => {
  const { is, at } = held(1);
  assert.is(await at(1), false);
  is.unwritten = 0;
  assert.equal([await at(1.04), await at(1.06)], [false, true]);
});

resets("waits for two seconds at most, for what is never written", async () => {
  const { at } = held(1);
  assert.equal([await at(1), await at(1.95), await at(2.01)], [false, false, true]);
});

resets.run();
