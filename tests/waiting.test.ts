/**
 * waiting.test.ts - clients that wait: for a place, for a server that comes back, behind a PROXY
 * header; how many of one address, and what becomes of them when their server goes down.
 */
import { once } from "node:events";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import {
  cidrList,
  type Clock,
  Deadlines,
  Dispatcher,
  type LoadBalancerOptions,
  Server,
  sweepPeriod,
  type Traveller,
} from "../load_balancer.ts";
import { readValue } from "../lib.ts";
import {
  ask,
  assertEnded,
  checkOf,
  cleanUp,
  DEAD,
  dial,
  echoing,
  listening,
  optionsFor,
  outcomeOf,
  serving,
  startBalancer,
  until,
  within,
} from "./helpers.ts";

const BROKEN = /ECONNRESET|EPIPE/;

// ─── A server that comes back ────────────────────────────────────────────────

const patience = suite("retry-for");
patience.after.each(cleanUp);

/** A port on which nobody listens, for as long as nobody else takes it. */
async function freed(): Promise<number> {
  const { port, server } = await echoing();
  server.close();
  await once(server, "close");
  return port;
}

patience("lets clients wait for the only server, and serves them all when it is back", async () => {
  const back = await freed();
  const { balancer, port } = await startBalancer([`127.0.0.1:${back}`], { retryFor: 15 });
  const asking = [ask(port), ask(port), ask(port)];
  await until(() => balancer.status().queued === 3, "three waiting");
  assert.is(balancer.status().waiting.length, 3);
  await echoing(back);
  assert.equal(await Promise.all(asking), ["hello", "hello", "hello"]);
  await assertEnded(balancer, { ok: 3 });
});

patience("lets all go on as soon as one of them has been served", async () => {
  const back = await freed();
  const { balancer, port } = await startBalancer([`127.0.0.1:${back}`], { retryFor: 15 });
  const asking = Array.from({ length: 8 }, () => ask(port));
  await until(() => balancer.status().queued === 8, "eight waiting");
  await echoing(back);
  // one dials each second: eight that were served one by one would take eight
  const answers = await within(Promise.all(asking), "eight answers", 5);
  assert.equal([...new Set(answers)], ["hello"]);
});

patience("ends with no_server when nobody comes in time", async () => {
  const { balancer, port } = await startBalancer([DEAD[0], DEAD[1]], { retryFor: 0.2 });
  assert.match(await outcomeOf(await dial(port)), BROKEN);
  await assertEnded(balancer, { no_server: 1 });
});

/** A clock that stands until a test moves it. */
class StandingClock implements Clock {
  #time = 0;
  #due: { readonly at: number; readonly action: () => void }[] = [];

  readonly now = (): number => this.#time;

  readonly after = (seconds: number, action: () => void): (() => void) => {
    this.#due.push({ at: this.#time + seconds, action });
    return () => undefined;
  };

  pass(seconds: number): void {
    this.#time += seconds;
    const past = this.#due.filter(({ at }) => at <= this.#time);
    this.#due = this.#due.filter(({ at }) => at > this.#time);
    for (const { action } of past) action();
  }
}

/** A dispatch whose dials go nowhere, until a test says how they went. */
class Standing extends Dispatcher<Traveller> {
  readonly dialled: Traveller[] = [];

  constructor(options: LoadBalancerOptions, clock: Clock) {
    super(options, clock, clock);
    this.servers = options.servers.map((spec) => new Server(spec, 0));
    this.places.setServers(this.servers);
    this.setAlgorithm(options.algorithm);
  }

  protected dial(client: Traveller, server: Server): void {
    client.server = server;
    client.stage = "dialling";
    this.open.add(client);
    this.dialled.push(client);
  }

  protected probe(): () => void {
    return () => undefined;
  }

  failed(client: Traveller): void {
    const server = client.server!;
    client.tried = [{ server, why: "connection refused" }];
    client.server = undefined;
    this.left(client, server);
    this.place(client);
  }

  connected(client: Traveller): void {
    this.patients.served(client);
  }

  retry(): void {
    this.sweep();
  }

  serverUp(): void {
    this.healthChanged(this.servers[0]!, "check");
  }

  refuses(server: Server, dialledAt: number): void {
    this.refused(server, "connection refused", dialledAt);
  }

  accepts(server: Server, dialledAt: number): void {
    this.accepted(server, dialledAt);
  }
}

/** A dispatch before a clock that stands, the clients who come to it, and how they ended. */
function stand(servers: readonly string[], options: Partial<LoadBalancerOptions>) {
  const clock = new StandingClock();
  const dispatch = new Standing(optionsFor(servers, options), clock);
  const ends: string[] = [];
  const come = (name: string, clientAddress = "127.0.0.1"): Traveller => {
    const client: Traveller = {
      clientAddress,
      tried: [],
      stage: "queued",
      server: undefined,
      countedAs: "",
      ranShort: false,
      queue: () => (client.stage = "queued"),
      close: (reason) => ends.push(`${name}: ${reason}`),
    };
    dispatch.place(client);
    return client;
  };
  /** Clients that have come in turn, and failed. */
  const patients = (...names: string[]): Traveller[] =>
    names.map((name) => {
      const client = come(name);
      dispatch.failed(client);
      return client;
    });
  return { clock, dispatch, ends, come, patients };
}

for (const [word, again] of [
  ["each second", (dispatch: Standing) => dispatch.retry()],
  ["when a server comes up", (dispatch: Standing) => dispatch.serverUp()],
] as const)
  patience(`one dials ${word}, though another's dial has not ended`, () => {
    const { dispatch, patients } = stand(["127.0.0.1:1"], { retryFor: 10 });
    const [first, second, third] = patients("first", "second", "third");
    dispatch.retry();
    assert.is(dispatch.dialled.at(-1), first);
    again(dispatch);
    assert.is(dispatch.dialled.at(-1), second);
    dispatch.connected(second!);
    assert.is(dispatch.dialled.at(-1), third, "released by the second's success");
  });

patience("releases the others when the first is served after its own patience is over", () => {
  const { clock, dispatch, ends, patients } = stand(["127.0.0.1:1"], { retryFor: 10 });
  const [first] = patients("first");
  clock.pass(9.5);
  const [second] = patients("second");
  dispatch.retry();
  assert.is(dispatch.dialled.at(-1), first);
  clock.pass(1); // while it dials
  dispatch.connected(first!);
  assert.is(dispatch.dialled.at(-1), second);
  assert.equal(ends, []);
});

patience("lasts from the first failure on, however often one has tried again", () => {
  const { clock, dispatch, ends, patients } = stand(["127.0.0.1:1"], { retryFor: 10 });
  const [client] = patients("one");
  clock.pass(9);
  dispatch.retry();
  dispatch.failed(client!);
  clock.pass(1.5);
  assert.equal(ends, ["one: no_server"]);
});

patience("is over for who fails after it, while it was dialling", () => {
  const { clock, dispatch, ends, patients } = stand(["127.0.0.1:1"], { retryFor: 10 });
  const [client] = patients("one");
  clock.pass(9.5);
  dispatch.retry();
  clock.pass(1);
  assert.equal(ends, []);
  dispatch.failed(client!);
  assert.equal(ends, ["one: no_server"]);
});

patience("goes on while who was served first is still there", () => {
  const { dispatch, patients } = stand(["127.0.0.1:1"], { retryFor: 10 });
  const [first, second] = patients("first", "second");
  dispatch.retry();
  dispatch.connected(first!);
  dispatch.failed(second!);
  dispatch.dialled.length = 0;
  dispatch.retry();
  assert.is(dispatch.dialled.length, 1);
});

patience("releases the others when anybody is served, also one that was released", () => {
  const { dispatch, patients } = stand(["127.0.0.1:1"], { retryFor: 10 });
  const [first, second, third] = patients("first", "second", "third");
  dispatch.retry();
  dispatch.connected(first!);
  dispatch.failed(second!);
  dispatch.dialled.length = 0;
  dispatch.connected(third!);
  assert.is(dispatch.dialled.length, 1);
});

patience("has all stand in line when the first of them has to", () => {
  const options = { retryFor: 10, serverConnections: 1 };
  const { dispatch, come, patients } = stand(["127.0.0.1:1"], options);
  const waiting = patients("first", "second");
  const holder = come("holder");
  dispatch.retry();
  const newcomer = come("newcomer");
  for (const left of [holder, ...waiting]) dispatch.left(left, left.server!);
  assert.ok(dispatch.dialled.at(-1) === newcomer, "who came last is the last");
  assert.equal(
    dispatch.dialled.slice(-3, -1).map((client) => waiting.indexOf(client)),
    [0, 1],
  );
});

patience("tries again each second while a slow start goes on, too", () => {
  const options = { retryFor: 10, slowStart: 100 };
  const { clock, dispatch, patients } = stand(["127.0.0.1:1"], options);
  dispatch.servers[0]!.warmSince = 0;
  patients("one");
  dispatch.dialled.length = 0;
  clock.pass(8);
  dispatch.retry();
  assert.is(dispatch.dialled.length, 1);
});

patience("waits no longer than the queue's time-out", async () => {
  const { balancer, port } = await startBalancer([DEAD[0]], { retryFor: 100, queueTimeout: 0.2 });
  assert.match(await outcomeOf(await dial(port)), BROKEN);
  await assertEnded(balancer, { no_server: 1 });
});

patience("lets a client leave while it waits", async () => {
  const { balancer, port } = await startBalancer([DEAD[0]], { retryFor: 15 });
  const client = await dial(port);
  await until(() => balancer.status().queued === 1, "its waiting");
  client.socket.resetAndDestroy();
  await assertEnded(balancer, { client_reset: 1 });
});

patience("lets clients wait until a drained server is made ready", async () => {
  const { address } = await echoing();
  const { balancer, port } = await startBalancer([address], { retryFor: 15 });
  balancer.setDraining(address, true);
  const client = await dial(port);
  await until(() => balancer.status().queued === 1, "its waiting");
  balancer.setDraining(address, false);
  client.socket.end("hello");
  assert.is(await outcomeOf(client), "end");
  assert.is(client.bytes().toString(), "hello", "it is served when the server is ready again");
});

patience.run();

// ─── Deadlines, and who is admitted ──────────────────────────────────────────

const waiting = suite("who waits");

/** Deadlines of 10 s on a clock that stands, and what has expired, with the time. */
function tenSeconds() {
  const clock = new StandingClock();
  const late: string[] = [];
  const deadlines = new Deadlines<string>(10, clock, (item) => late.push(`${item} ${clock.now()}`));
  return { clock, late, deadlines };
}

waiting("has a new deadline when it waits anew, and ends in time behind others", () => {
  const { clock, late, deadlines } = tenSeconds();
  deadlines.add("first");
  clock.pass(4);
  deadlines.add("second");
  deadlines.add("third");
  clock.pass(6);
  clock.pass(2);
  for (const item of ["third", "second"]) deadlines.delete(item);
  for (const item of ["second", "third"]) deadlines.add(item);
  clock.pass(2);
  assert.equal(late, ["first 10"]);
  clock.pass(8);
  assert.equal(late, ["first 10", "second 22", "third 22"]);
});

waiting("ends in time, who came a while after the first as well", () => {
  const { clock, late, deadlines } = tenSeconds();
  deadlines.add("first");
  clock.pass(4);
  deadlines.add("second");
  clock.pass(6);
  clock.pass(4);
  assert.equal(late, ["first 10", "second 14"]);
});

waiting("is told how late it is, for which nobody else may be to blame", () => {
  const clock = new StandingClock();
  const lateness: number[] = [];
  const deadlines = new Deadlines<string>(10, clock, (_, late) => lateness.push(late));
  deadlines.add("first");
  clock.pass(13);
  assert.equal(lateness, [3]);
});

waiting("is admitted when servers change, as many as there is room for", () => {
  const { dispatch, come } = stand(["127.0.0.1:1", "127.0.0.1:2"], { serverConnections: 2 });
  const second = dispatch.servers[1]!;
  second.draining = true;
  dispatch.setAlgorithm("random"); // tells it, as whatever changes servers does
  for (const name of ["one", "two", "three", "four"]) come(name);
  assert.is(dispatch.dialled.length, 2);
  second.draining = false;
  dispatch.setAlgorithm("round-robin");
  assert.is(dispatch.dialled.length, 4);
});

waiting("is looked at often enough for short times: four times in each", () => {
  const periodOf = (options: Partial<LoadBalancerOptions>): number =>
    sweepPeriod(optionsFor(["127.0.0.1:1"], options));
  assert.equal([periodOf({ slowStart: 0.4 }), periodOf({ idleTimeout: 0.8 })], [0.1, 0.2]);
  assert.is(periodOf({ slowStart: 0, idleTimeout: 0 }), 1);
});

waiting.run();

// ─── A client that ends its side ─────────────────────────────────────────────

const ending = suite("abort-on-close");
ending.after.each(cleanUp);

for (const abortOnClose of [true, false]) {
  ending(`a FIN after bytes ${abortOnClose ? "leaves" : "keeps its place"}`, async () => {
    const listener = await serving();
    const { balancer, port } = await startBalancer([listener.address], {
      serverConnections: 1,
      abortOnClose,
    });
    const holder = await dial(port);
    const held = await listener.next();
    const late = await dial(port);
    late.socket.end("a request");
    await until(() => balancer.status().accepted === 2, "the second");
    if (abortOnClose) {
      assert.match(await outcomeOf(late), BROKEN);
      await until(() => balancer.status().ended.client_reset === 1, "its end");
    }
    holder.socket.end();
    held.socket.end();
    if (abortOnClose) return assertEnded(balancer, { ok: 1, client_reset: 1 });
    const served = await listener.next();
    await until(() => served.bytes().toString() === "a request", "the request");
    served.socket.end("its answer");
    assert.is(await outcomeOf(late), "end");
    assert.is(late.bytes().toString(), "its answer");
  });
}

ending.run();

// ─── One address ─────────────────────────────────────────────────────────────

const addresses = suite("client-connections");
addresses.after.each(cleanUp);

addresses("one address cannot take all: the next is refused, others are served", async () => {
  const { balancer, port } = await startBalancer([(await echoing()).address], {
    clientConnections: 2,
  });
  const held = [await dial(port), await dial(port)];
  await until(() => balancer.status().active === 2, "two");
  assert.match(await outcomeOf(await dial(port)), BROKEN);
  const other = await dial(port, { localAddress: "127.0.0.7" });
  other.socket.end("hello");
  assert.is(await outcomeOf(other), "end");
  assert.is(balancer.status().refusedByAddress, 1);
  for (const { socket } of held) socket.end();
  await assertEnded(balancer, { ok: 3, limit: 1 });
  assert.is(await ask(port), "hello", "their places are free again");
});

addresses("counts whom a PROXY header names, of IPv6 a whole network", async () => {
  const { balancer, port } = await startBalancer([(await echoing()).address], {
    clientConnections: 1,
    acceptProxy: readValue("--accept-proxy", cidrList, "127.0.0.0/8"),
  });
  const as = async (host: string): Promise<Awaited<ReturnType<typeof dial>>> => {
    const client = await dial(port);
    const to = host.includes(":") ? "TCP6 " + host + " ::1" : "TCP4 " + host + " 10.0.0.1";
    client.socket.write(`PROXY ${to} 4000 80\r\nhello`);
    return client;
  };
  const first = await as("2001:db8:1:2::a");
  await until(() => first.size() === 5, "its echo");
  assert.match(await outcomeOf(await as("2001:db8:1:2:3:4:5:6")), BROKEN);
  const neighbour = await as("2001:db8:1:3::a");
  await until(() => neighbour.size() === 5, "another network's echo");
  assert.is(balancer.status().refusedByAddress, 1);
  for (const { socket } of [first, neighbour]) socket.end();
  await assertEnded(balancer, { ok: 2, limit: 1 });
});

addresses("whoever is placed anew is counted once, and who has gone is not any more", () => {
  const options = { clientConnections: 2 };
  const { dispatch, ends, come } = stand(["127.0.0.1:1", "127.0.0.1:2"], options);
  const one = come("one");
  dispatch.failed(one);
  come("two");
  assert.equal(ends, []);
  dispatch.gone(one);
  come("three");
  assert.equal(ends, []);
  come("four");
  assert.equal(ends, ["four: limit"]);
});

addresses("of IPv6 the network is the first 64 bits, also where zeros are left out of them", () => {
  const { ends, come } = stand(["127.0.0.1:1"], { clientConnections: 1 });
  come("one", "2001::1:2:3:4:5"); // 2001:0:0:1
  come("neighbour", "2001:0:0:1::9");
  come("other", "2001:0:1:2::9");
  assert.equal(ends, ["neighbour: limit"]);
});

addresses.run();

// ─── PROXY headers ───────────────────────────────────────────────────────────

const proxy = suite("accept-proxy");
proxy.after.each(cleanUp);

const trusting = async (options: Parameters<typeof startBalancer>[1] = {}) => {
  const listener = await serving();
  const acceptProxy = readValue("--accept-proxy", cidrList, "127.0.0.1");
  const started = await startBalancer([listener.address], { acceptProxy, ...options });
  return { listener, ...started };
};

proxy("passes on what follows the header, in whatever pieces, and who the client is", async () => {
  const { listener, port } = await trusting({ sendProxy: true });
  const client = await dial(port);
  for (const letter of "PROXY TCP4 192.0.2.1 10.0.0.1 51234 443\r\n") {
    client.socket.write(letter);
    await new Promise(setImmediate);
  }
  client.socket.write("hello");
  const server = await listener.next();
  await until(() => server.bytes().toString().endsWith("hello"), "the bytes behind it");
  assert.match(
    server.bytes().toString(),
    /^PROXY TCP4 192\.0\.2\.1 127\.0\.0\.1 51234 \d+\r\nhello$/,
  );
  client.socket.destroy();
  server.socket.destroy();
});

proxy("resets who sends something else, as bad_proxy", async () => {
  const { balancer, port } = await trusting();
  const client = await dial(port);
  client.socket.write("GET / HTTP/1.0\r\n\r\n");
  assert.match(await outcomeOf(client), BROKEN);
  await assertEnded(balancer, { bad_proxy: 1 });
});

proxy("resets who says nothing in time, and who leaves in the middle, as bad_proxy", async () => {
  const { balancer, port } = await trusting({ connectTimeout: 0.1 });
  assert.match(await outcomeOf(await dial(port)), BROKEN);
  const cut = await dial(port);
  cut.socket.end("PROXY TC");
  assert.match(await outcomeOf(cut), BROKEN);
  await assertEnded(balancer, { bad_proxy: 2 });
});

proxy("takes one that leaves without a byte for a probe", async () => {
  const { balancer, port } = await trusting();
  const probe = await dial(port);
  probe.socket.end();
  await assertEnded(balancer, { client_reset: 1 });
});

proxy("dials for nobody who resets right behind a header, and passes no header on", async () => {
  const { listener, balancer, port } = await trusting();
  for (let i = 0; i < 30; i += 1) {
    const client = await dial(port);
    await new Promise<void>((resolve) =>
      client.socket.write("PROXY TCP4 192.0.2.1 10.0.0.1 51234 443\r\nhello", () => resolve()),
    );
    client.socket.resetAndDestroy();
  }
  await until(() => balancer.status().accepted === 30, "all of them");
  await until(() => balancer.status().active === 0, "all ending");
  for (const socket of listener.sockets) {
    const bytes = String(socket.read() ?? "");
    assert.not.match(bytes, /PROXY/);
  }
});

proxy("takes bytes for bytes from everywhere else", async () => {
  const { listener, port } = await trusting();
  const client = await dial(port, { localAddress: "127.0.0.9" });
  client.socket.write("PROXY TCP4 192.0.2.1 10.0.0.1 51234 443\r\n");
  const server = await listener.next();
  await until(() => server.bytes().toString().startsWith("PROXY TCP4 192.0.2.1"), "the bytes");
  client.socket.destroy();
  server.socket.destroy();
});

proxy("reads on with 100 KiB right behind a header", async () => {
  const { listener, port } = await trusting();
  const client = await dial(port);
  const body = Buffer.alloc(100_000, 7);
  client.socket.write(Buffer.concat([Buffer.from("PROXY UNKNOWN\r\n"), body]));
  const server = await listener.next();
  await until(() => server.size() === body.length, "all of it");
  client.socket.destroy();
  server.socket.destroy();
});

proxy.run();

// ─── Servers that go down ────────────────────────────────────────────────────

const falling = suite("on-down");
falling.after.each(cleanUp);

for (const onDown of ["reset", "keep"] as const) {
  falling(`${onDown} connections of a server that goes down and gives no bytes`, async () => {
    const listener = await serving();
    const { balancer, port } = await startBalancer([listener.address], {
      onDown,
      check: checkOf("ping"),
      checkInterval: 0.05,
      fall: 2,
    });
    const client = await dial(port);
    client.socket.write("anybody?");
    await until(() => balancer.status().servers[0]?.state === "down", "its going down");
    if (onDown === "reset") {
      assert.match(await outcomeOf(client), BROKEN);
      return assertEnded(balancer, { server_reset: 1 });
    }
    assert.is(balancer.status().active, 1);
    client.socket.destroy();
  });
}

falling("reset spares those of a server that gives bytes, for as long as it does", async () => {
  const ticking: NodeJS.Timeout[] = [];
  const { address } = await listening((socket) => {
    socket.on("data", (chunk) => {
      if (chunk.toString().startsWith("PING")) return;
      ticking.push(setInterval(() => socket.write("tick"), 10).unref());
    });
  });
  const { balancer, port } = await startBalancer([address], {
    onDown: "reset",
    check: checkOf("ping"),
    checkInterval: 0.1,
    fall: 2,
  });
  const client = await dial(port);
  client.socket.write("talk");
  await until(() => balancer.status().servers[0]?.state === "down", "its going down");
  const size = client.size();
  await until(() => client.size() > size + 40, "more bytes");
  for (const timer of ticking) clearInterval(timer);
  assert.match(await outcomeOf(client), BROKEN);
  await assertEnded(balancer, { server_reset: 1 });
});

falling("reset spares whoever is still dialling the server: another one may take it", () => {
  const options = { onDown: "reset", fall: 1 } as const;
  const { dispatch, ends, come } = stand(["127.0.0.1:1"], options);
  const [dialling, relaying] = [come("dialling"), come("relaying")];
  relaying.stage = "relaying";
  const server = dispatch.servers[0]!;
  dispatch.health.watch(server, 0);
  dispatch.refuses(server, 0);
  assert.equal(ends, ["relaying: server_reset"]);
  dispatch.rest(dialling);
});

falling("what a dial tells that began before the server came up counts for nothing", () => {
  const { clock, dispatch } = stand(["127.0.0.1:1"], {});
  const server = dispatch.servers[0]!;
  dispatch.health.watch(server, 0);
  clock.pass(10);
  server.health.since = 5;
  dispatch.refuses(server, 4);
  assert.is(server.health.refused, 0);
  dispatch.refuses(server, 6);
  assert.is(server.health.refused, 1);
  dispatch.accepts(server, 4);
  assert.is(server.health.refused, 1);
  dispatch.accepts(server, 6);
  assert.is(server.health.refused, 0);
  dispatch.refuses(server, 6);
  clock.pass(10);
  dispatch.refuses(server, 6);
  dispatch.accepts(server, 6);
  assert.is(server.health.refused, 0, "also when it has been reached before");
});

falling.run();

// ─── Backups ─────────────────────────────────────────────────────────────────

const backups = suite("backups");
backups.after.each(cleanUp);

backups("are left alone while another server serves", async () => {
  const [main, spare] = [await echoing(), await echoing()];
  const { balancer, port } = await startBalancer([main.address, `${spare.address} backup`]);
  for (let i = 0; i < 4; i += 1) assert.is(await ask(port), "hello");
  assert.equal(
    balancer.status().servers.map(({ total, backup }) => [total, backup]),
    [
      [4, false],
      [0, true],
    ],
  );
});

backups("serve at once whom a lone primary that died has failed", async () => {
  const spare = await echoing();
  const { balancer, port } = await startBalancer([DEAD[0], `${spare.address} backup`]);
  for (let i = 0; i < 4; i += 1) assert.is(await ask(port), "hello");
  await assertEnded(balancer, { ok: 4 });
});

backups("serve while all others are drained or of weight 0", async () => {
  const [main, spare] = [await echoing(), await echoing()];
  const { balancer, port } = await startBalancer([`${main.address}*0`, `${spare.address} backup`]);
  assert.is(balancer.status().servers[0]?.state, "draining");
  assert.is(await ask(port), "hello");
  assert.is(balancer.status().servers[1]?.total, 1);
});

backups("a client is tried at eight servers, and then there is none for it", async () => {
  const dead = Array.from({ length: 20 }, (_, i) => `127.0.0.1:${i + 1}`);
  const { balancer, port } = await startBalancer(dead);
  assert.match(await outcomeOf(await dial(port)), BROKEN);
  await assertEnded(balancer, { no_server: 1 });
  assert.is(balancer.status().retries, 7);
});

backups.run();
