/**
 * health.test.ts - which servers count as up: checks, the failures of real connects, trials. Real
 * servers and short intervals.
 */
import { suite } from "uvu";
import * as assert from "uvu/assert";
import type { LoadBalancer, Server } from "../load_balancer.ts";
import { startServer } from "../server.ts";
import {
  ask,
  assertEnded,
  checkOf,
  cleanUp,
  DEAD,
  dial,
  echoing,
  failDials,
  later,
  listening,
  outcomeOf,
  serving,
  start,
  startBalancer,
  until,
} from "./helpers.ts";

/** Longer than any test: what happens is then not a check's doing. */
const NEVER = 10_000;
const states = (balancer: LoadBalancer): string[] =>
  balancer.status().servers.map((server) => server.state);
const become = (balancer: LoadBalancer, ...expected: string[]): Promise<void> =>
  until(() => states(balancer).join() === expected.join(), `the servers becoming ${expected}`);

/**
 * A balancer that knows one server which no check reaches: the first of two is checked at once, the
 * second after half an interval.
 */
async function unchecked(
  options: Parameters<typeof startBalancer>[1] = {},
): Promise<{ balancer: LoadBalancer; server: Server }> {
  const { balancer } = await startBalancer([(await echoing()).address, DEAD[0]], {
    check: checkOf("tcp"),
    checkInterval: NEVER,
    ...options,
  });
  const server = balancer.servers[1];
  if (server === undefined) throw new Error("no second server");
  return { balancer, server };
}

// ─── Counting ────────────────────────────────────────────────────────────────

const counting = suite("fall and rise");
counting.after.each(cleanUp);

counting(
  "takes a server down after as many failures in a row as --fall says, and no sooner",
  async () => {
    const { balancer, server } = await unchecked({ fall: 3 });
    for (let i = 0; i < 2; i += 1) balancer.health.failed(server, "no", false);
    assert.ok(server.up);
    balancer.health.failed(server, "no", false);
    assert.not(server.up);
  },
);

counting(
  "brings a server up after as many successes in a row as --rise says, and no sooner",
  async () => {
    const { balancer, server } = await unchecked({ fall: 1, rise: 3 });
    balancer.health.failed(server, "no", false);
    for (let i = 0; i < 2; i += 1) balancer.health.succeeded(server, false);
    assert.not(server.up);
    balancer.health.succeeded(server, false);
    assert.ok(server.up);
  },
);

counting("leaves a server up whose checks flap", async () => {
  const { balancer, server } = await unchecked({ fall: 3 });
  for (let i = 0; i < 20; i += 1) {
    balancer.health.failed(server, "no", false);
    balancer.health.failed(server, "no", false);
    balancer.health.succeeded(server, false);
  }
  assert.ok(server.up);
});

counting("leaves a server down whose checks flap", async () => {
  const { balancer, server } = await unchecked({ fall: 1, rise: 2 });
  for (let i = 0; i < 20; i += 1) {
    balancer.health.failed(server, "no", false);
    balancer.health.succeeded(server, false);
  }
  assert.not(server.up);
});

counting("counts the failures of real connects", async () => {
  const { balancer, port } = await startBalancer([(await echoing()).address, DEAD[0]], {
    check: checkOf("tcp"),
    checkInterval: NEVER,
    fall: 3,
  });
  for (let i = 0; i < 5; i += 1) assert.is(await ask(port), "hello");
  assert.equal(states(balancer), ["up", "up"]);
  assert.is(await ask(port), "hello");
  assert.equal(states(balancer), ["up", "down"]);
  for (let i = 0; i < 4; i += 1) assert.is(await ask(port), "hello");
  assert.is(balancer.status().servers[1]?.connectErrors, 3, "nobody is sent there any more");
});

counting(
  "does not blame a server for this machine's shortage of descriptors or ports",
  async () => {
    const { left } = failDials("EMFILE", 10, true);
    const { balancer } = await startBalancer([(await echoing()).address], {
      check: checkOf("tcp"),
      checkInterval: 0.02,
      fall: 1,
    });
    await until(() => left() === 0, "ten checks that fail");
    assert.is(balancer.status().servers[0]?.checkFailures, 0);
    assert.equal(states(balancer), ["up"]);
  },
);

counting.run();

// ─── Checks ──────────────────────────────────────────────────────────────────

const checks = suite("checks");
checks.after.each(cleanUp);

checks("take a server down that stops listening, and bring it up when it is back", async () => {
  const first = await echoing();
  const { balancer, port } = await startBalancer([first.address, (await echoing()).address], {
    check: checkOf("tcp"),
    checkInterval: 0.05,
  });
  const client = await dial(port);
  client.socket.write("hello");
  await until(() => client.size() === 5, "the echo");
  first.server.close();
  await become(balancer, "down", "up");
  client.socket.end(" again");
  assert.is(await outcomeOf(client), "end");
  assert.is(
    client.bytes().toString(),
    "hello again",
    "open connections of a server that is down are kept",
  );
  await echoing(first.port);
  await become(balancer, "up", "up");
  await assertEnded(balancer, { ok: 1 });
});

checks("are spread over the interval", async () => {
  const times: number[] = [];
  const servers = await Promise.all(
    Array.from({ length: 4 }, () =>
      listening((socket) => {
        times.push(performance.now());
        socket.end();
      }),
    ),
  );
  await startBalancer(
    servers.map((server) => server.address),
    { check: checkOf("tcp"), checkInterval: 0.8 },
  );
  await until(() => times.length >= 4, "a check of each");
  assert.ok((times[3] ?? 0) - (times[0] ?? 0) > 400, `${times}`);
});

checks("of kind none leave the servers alone", async () => {
  const server = await serving();
  const other = await serving();
  await startBalancer([server.address], { check: checkOf("none"), checkInterval: 0.01 });
  await startBalancer([other.address], { check: checkOf("tcp"), checkInterval: 0.01 });
  await until(() => other.count() > 5, "five checks of another server");
  assert.is(server.count(), 0);
});

checks("of kind tcp are content with a server that never answers", async () => {
  const silent = await serving();
  const { balancer } = await startBalancer([silent.address], {
    check: checkOf("tcp"),
    checkInterval: 0.02,
    fall: 1,
  });
  await until(() => silent.count() > 5, "five checks");
  assert.equal(states(balancer), ["up"]);
});

checks("of kind ping take a server down that never answers, or wrongly, or ends", async () => {
  const silent = await serving();
  const wrong = await listening((socket) => {
    socket.write("WRONG");
  });
  const ending = await listening((socket) => {
    socket.end();
  });
  const good = await startServer({
    host: "127.0.0.1",
    port: 0,
    mean: 0,
    sd: 0,
    maxConnections: 10,
    seed: 1,
  });
  later(() => {
    good.cut();
    return good.close();
  });
  const { balancer } = await startBalancer(
    [silent.address, wrong.address, ending.address, `127.0.0.1:${good.address.port}`],
    { check: checkOf("ping"), checkInterval: 0.1 },
  );
  await become(balancer, "down", "down", "down", "up");
});

checks("of kind ping see a stopped server, which still accepts, in time", async () => {
  const { child, printed } = start("server.ts", [
    "127.0.0.1",
    "0",
    "--mean",
    "0",
    "--sd",
    "0",
    "--log",
    "none",
  ]);
  const [, address = ""] = await printed(/Listening on (\S+)/);
  const { balancer } = await startBalancer([address], {
    check: checkOf("ping"),
    checkInterval: 0.2,
    fall: 3,
    rise: 1,
  });
  child.kill("SIGSTOP");
  const since = performance.now();
  await become(balancer, "down");
  assert.ok(
    performance.now() - since < (3 * 0.2 + 0.2) * 1000 + 300,
    `it took ${performance.now() - since} ms`,
  );
  child.kill("SIGCONT");
  await become(balancer, "up");
});

checks("of kind ping do not take a full server for a dead one", async () => {
  const full = await startServer({
    host: "127.0.0.1",
    port: 0,
    mean: 0.02,
    sd: 0,
    maxConnections: 1,
    seed: 1,
  });
  later(() => {
    full.cut();
    return full.close();
  });
  const { balancer, port } = await startBalancer([`127.0.0.1:${full.address.port}`], {
    check: checkOf("ping"),
    checkInterval: 0.15,
    fall: 1,
  });
  const client = await dial(port); // the check that was sent at the start may be before it
  for (let answers = 0; answers < 40; answers += 1) {
    client.socket.write("PING!");
    await until(() => client.size() === 5 * (answers + 1), "an answer");
    if (answers > 15) assert.equal(states(balancer), ["up"]);
  }
});

checks(
  "notice a server that accepts and closes, before it attracts everyone under least-connections",
  async () => {
    const closing = await listening((socket) => {
      socket.end();
    });
    const { balancer, port } = await startBalancer([(await echoing()).address, closing.address], {
      algorithm: "least-connections",
      check: checkOf("tcp"),
      checkInterval: 0.02,
    });
    const client = await dial(port); // keeps the good one busier
    client.socket.write("hello");
    await until(() => client.size() === 5 || client.socket.readableEnded, "the echo");
    let failed = 0;
    for (let i = 0; i < 80; i += 1) if ((await talkBriefly(port)) !== "hello") failed += 1;
    assert.ok(
      failed > 0 && failed <= 5,
      `${failed} of 80 failed: three until it is down, and its trial`,
    );
    assert.equal(states(balancer), ["up", "down"]);
  },
);

/** Like `ask`, but ends only after the answer, so that a close by the server is its own doing. */
async function talkBriefly(port: number): Promise<string> {
  const client = await dial(port);
  client.socket.write("hello");
  let over = false;
  void client.outcome.then(() => {
    over = true;
  });
  await until(() => over || client.size() === 5, "an answer");
  client.socket.end();
  await outcomeOf(client);
  return client.bytes().toString();
}

checks(
  "forgive a server that closes after its answer, or when its client has finished",
  async () => {
    const brief = await listening((socket) => {
      socket.once("data", (chunk) => socket.end(chunk)).once("end", () => socket.end());
    });
    const { balancer, port } = await startBalancer([brief.address], { fall: 1 });
    assert.is(await talkBriefly(port), "hello");
    const client = await dial(port);
    client.socket.end();
    assert.is(await outcomeOf(client), "end");
    assert.equal(states(balancer), ["up"]);
  },
);

checks.run();

// ─── Trials ──────────────────────────────────────────────────────────────────
// Without checks a server that failed is left alone for a while, and then tried by one connection.

const trials = suite("trials");
trials.after.each(cleanUp);

/**
 * A balancer over a server that is dead, to be tried again after `penalty` seconds, and a good one.
 */
async function failing(penalty: number) {
  const bad = await echoing();
  bad.server.close();
  const good = await echoing();
  const { balancer, port } = await startBalancer([bad.address, good.address], {
    check: checkOf("none"),
    fall: 1,
  });
  const server = balancer.servers[0];
  if (server === undefined) throw new Error("no server");
  server.penalty = penalty;
  assert.is(await ask(port), "hello");
  assert.equal(states(balancer), ["down", "up"]);
  return { balancer, port, server, badPort: bad.port };
}

trials("bring back a server once one connect has gone well", async () => {
  const { balancer, port, server, badPort } = await failing(0.1);
  await echoing(badPort);
  await become(balancer, "up", "up");
  assert.ok(server.onTrial);
  for (let i = 0; i < 2; i += 1) assert.is(await ask(port), "hello");
  assert.not(server.onTrial);
  assert.is(server.total, 2, "the one that failed, and its trial");
});

trials(
  "ask more than a connect, and of one client only, of a server that had accepted and closed",
  async () => {
    let closes = true;
    const bad = await serving();
    bad.server.on("connection", (socket) => {
      if (closes) socket.end();
    });
    const { balancer, port } = await startBalancer([bad.address, (await echoing()).address], {
      fall: 1,
    });
    const [server] = balancer.servers;
    if (server === undefined) throw new Error("no server");
    server.penalty = 0.1;
    assert.is(await talkBriefly(port), "");
    assert.equal(states(balancer), ["down", "up"]);
    closes = false;
    await bad.next();
    await become(balancer, "up", "up");
    const clients = [await dial(port), await dial(port), await dial(port)];
    const tried = await bad.next();
    for (let i = 0; i < 5; i += 1) assert.is(await ask(port), "hello");
    assert.ok(server.onTrial);
    tried.socket.write("I am well");
    await until(() => !server.onTrial, "the trial");
    assert.equal([server.active, balancer.status().queued], [1, 0]);
    for (const client of clients) client.socket.destroy();
  },
);

trials("do not wait for connections from before, nor for a client that says nothing", async () => {
  let closes = false;
  const server = await serving();
  server.server.on("connection", (socket) => {
    if (closes) socket.end();
  });
  const { balancer, port } = await startBalancer([server.address], { fall: 1 });
  const [state] = balancer.servers;
  if (state === undefined) throw new Error("no server");
  state.penalty = 0.1;
  const before = [await dial(port), await dial(port)];
  for (const client of before) client.socket.write("hello");
  await until(() => server.count() === 2, "two idle connections");
  closes = true;
  assert.is(await talkBriefly(port), "");
  assert.equal(states(balancer), ["down"]);
  closes = false;
  await become(balancer, "up");
  assert.ok(state.onTrial);
  const [silent] = [await dial(port)];
  await until(() => state.active === 3, "its trial");
  await dial(port);
  await until(() => balancer.status().queued === 1, "the next in the queue");
  await until(() => state.active === 4, "the trial's end", 3);
  assert.not(state.onTrial);
  silent.socket.destroy();
});

trials("do not go beyond the connections that a server may have", async () => {
  const { address, count } = await serving();
  const { balancer, port } = await startBalancer([address], { fall: 1, serverConnections: 2 });
  const [state] = balancer.servers;
  if (state === undefined) throw new Error("no server");
  for (let i = 0; i < 2; i += 1) await dial(port);
  await until(() => count() === 2, "two connections, as many as it may have");
  state.penalty = 0.1;
  balancer.health.failed(state, "a test", false);
  await become(balancer, "up");
  assert.ok(state.onTrial);
  await dial(port);
  await until(() => balancer.status().queued === 1, "the third in the queue");
});

trials("leave a server alone for twice as long when it fails again", async () => {
  const { balancer, port, server } = await failing(0.1);
  assert.is(server.penalty, 0.2);
  await become(balancer, "up", "up");
  for (let i = 0; i < 2; i += 1) assert.is(await ask(port), "hello");
  assert.equal(states(balancer), ["down", "up"]);
  assert.is(server.penalty, 0.4);
  server.penalty = 50;
  await become(balancer, "up", "up");
  for (let i = 0; i < 2; i += 1) assert.is(await ask(port), "hello");
  assert.is(server.penalty, 60, "a minute at most");
});

trials("begin after ten seconds at first", async () => {
  const { balancer, server } = await unchecked({ check: checkOf("none"), fall: 1 });
  const since = performance.now();
  balancer.health.failed(server, "no", false);
  assert.ok(Math.abs(server.heldUntil - since - 10_000) < 100);
});

trials.run();
