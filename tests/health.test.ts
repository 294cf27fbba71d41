/**
 * health.test.ts - which servers count as up: what checks and clients may say about it, and when it
 * is asked. Real servers and short intervals.
 */
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { healthSettings, type LoadBalancer } from "../load_balancer.ts";
import { startServer } from "../server.ts";
import {
  ask,
  assertEnded,
  checkOf,
  cleanUp,
  coverNoChildren,
  DEAD,
  deferred,
  dial,
  echoing,
  failDials,
  later,
  type Listening,
  listening,
  optionsFor,
  outcomeOf,
  serving,
  start,
  startBalancer,
  swallowing,
  type Talk,
  until,
  within,
} from "./helpers.ts";

coverNoChildren();

/** Longer than any test: what happens is then not a check's doing. */
const NEVER = 10_000;
const states = (balancer: LoadBalancer): string[] =>
  balancer.status().servers.map((server) => server.state);
const become = (balancer: LoadBalancer, ...expected: string[]): Promise<void> =>
  until(() => states(balancer).join() === expected.join(), `the servers becoming ${expected}`);
const seconds = (): number => performance.now() / 1000;

/** No server has changed its state since the start. */
function assertNeverChanged(balancer: LoadBalancer, state = "up"): void {
  const { uptime, servers } = balancer.status();
  assert.equal(
    servers.map((server) => [server.state, uptime - server.since < 0.05]),
    servers.map(() => [state, true]),
  );
}

/** A server that answers `PING!` as `answer` says for the number of the connection, from 1 on. */
async function answering(
  answer: (place: number) => string,
  port = 0,
): Promise<Listening & { asked: () => number }> {
  let asked = 0;
  const onConnection: Parameters<typeof listening>[0] = (socket) => {
    socket.on("data", () => {
      asked += 1;
      socket.write(answer(asked));
    });
  };
  return { ...(await listening(onConnection, undefined, port)), asked: () => asked };
}

/** Says `hello`, and ends only after the answer, so that a close by the server is its own doing. */
async function talkBriefly(port: number, text = "hello"): Promise<string> {
  const client = await dial(port);
  client.socket.write(text);
  let over = false;
  void client.outcome.then(() => {
    over = true;
  });
  await until(() => over || client.size() > 0, "an answer");
  client.socket.end();
  await outcomeOf(client);
  return client.bytes().toString();
}

/** This process, balancers and all, does nothing for so long. */
function standStill(seconds: number): void {
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, seconds * 1000);
}

/** Has one client after the other talk to `port` until the test ends. */
function keepComing(port: number, text: string, everyMs: number): void {
  const timer = setInterval(() => {
    const come = async (): Promise<void> => {
      const { socket } = await dial(port);
      socket.write(text);
      setTimeout(() => socket.end(), 300);
    };
    void come().catch(() => undefined); // the test ends, or says what it waited for
  }, everyMs);
  later(() => clearInterval(timer));
}

// ─── Counting ────────────────────────────────────────────────────────────────

const counting = suite("fall and rise");
counting.after.each(cleanUp);

counting(
  "takes a server down after as many failed checks in a row as --fall says, and no sooner",
  async () => {
    const { balancer } = await startBalancer([DEAD[0]], {
      check: checkOf("tcp"),
      checkInterval: 0.3,
      fall: 4,
    });
    const seen = new Set<string>();
    await until(() => {
      const [server] = balancer.status().servers;
      seen.add(`${server?.checkFailures} ${server?.state}`);
      return server?.state === "down";
    }, "the server going down");
    assert.equal([...seen], ["0 up", "1 up", "2 up", "3 up", "4 down"]);
  },
);

counting(
  "brings a server up after as many passed checks in a row as --rise says, and no sooner",
  async () => {
    const gone = await answering(() => "PONG!");
    gone.server.close();
    const { balancer } = await startBalancer([gone.address], {
      check: checkOf("ping"),
      checkInterval: 0.05,
      fall: 1,
      rise: 4,
    });
    await become(balancer, "down");
    const back = await answering(() => "PONG!", gone.port);
    await become(balancer, "up");
    assert.is(back.asked(), 4);
  },
);

counting("leaves a server up that passes every third check", async () => {
  const flapping = await answering((place) => (place % 3 === 0 ? "PONG!" : "WRONG"));
  const { balancer } = await startBalancer([flapping.address], {
    check: checkOf("ping"),
    checkInterval: 0.03,
    fall: 3,
  });
  await until(() => flapping.asked() > 20, "twenty checks");
  assertNeverChanged(balancer);
});

counting("leaves a server down that passes every second check", async () => {
  const flapping = await answering((place) => (place % 2 === 0 ? "PONG!" : "WRONG"));
  const { balancer } = await startBalancer([flapping.address], {
    check: checkOf("ping"),
    checkInterval: 0.03,
    fall: 1,
    rise: 2,
  });
  await until(() => flapping.asked() > 20, "twenty checks");
  const { uptime, servers } = balancer.status();
  const since = servers[0]?.since ?? 0;
  assert.equal(states(balancer), ["down"]);
  assert.ok(since > uptime / 2, `down since ${since} of ${uptime} s`);
});

counting("takes a failed dial of a client for a failure", async () => {
  const { balancer, port } = await startBalancer([DEAD[0], (await echoing()).address], {
    checkInterval: NEVER,
    fall: 1,
  });
  assert.is(await ask(port), "hello");
  assert.equal(states(balancer), ["down", "up"]);
  for (let i = 0; i < 4; i += 1) assert.is(await ask(port), "hello");
  assert.is(balancer.status().servers[0]?.connectErrors, 1, "nobody is sent there any more");
});

counting("counts clients' failed dials no faster than one each interval/fall", async () => {
  const { balancer, port } = await startBalancer([DEAD[0], (await echoing()).address], {
    checkInterval: NEVER,
    fall: 3,
  });
  for (let i = 0; i < 20; i += 1) assert.is(await ask(port), "hello");
  assert.is(balancer.status().servers[0]?.connectErrors, 10);
  assertNeverChanged(balancer);
});

counting("goes down under a crowd no sooner than checks would take it down", async () => {
  const { balancer, port } = await startBalancer([DEAD[0], (await echoing()).address], {
    checkInterval: 0.6,
    fall: 3,
  });
  const since = seconds();
  while (states(balancer)[0] === "up") assert.is(await ask(port), "hello");
  const took = seconds() - since;
  assert.ok(took > 0.2 - 0.01, `only every third of an interval one of them counts: ${took} s`);
  assert.ok(took < 1.5, `${took} s`);
});

counting("brings nobody up for the clients that get through", async () => {
  const gone = await echoing();
  gone.server.close();
  const { balancer, port } = await startBalancer([gone.address], {
    checkInterval: NEVER,
    fall: 1,
    rise: 1,
  });
  assert.is(await ask(port), "ECONNRESET");
  assert.equal(states(balancer), ["down"]);
  await echoing(gone.port);
  // it is the last resort of clients
  for (let i = 0; i < 10; i += 1) assert.is(await ask(port), "hello");
  assert.equal(states(balancer), ["down"]);
});

counting("is not impressed by answers on old connections", async () => {
  const echo = await echoing();
  const { balancer, port } = await startBalancer([echo.address], {
    check: checkOf("tcp"),
    checkInterval: 0.1,
    fall: 3,
  });
  const chat = await dial(port);
  const stream = setInterval(() => chat.socket.write("x"), 5);
  later(() => clearInterval(stream));
  await until(() => chat.size() > 3, "a chat");
  failDials("ETIMEDOUT", 1000, true); // the server accepts nobody any more
  await become(balancer, "down");
  const before = chat.size();
  await until(() => chat.size() > before + 20, "the chat going on");
  assert.equal(states(balancer), ["down"]);
});

counting("does not blame a server for this machine's shortage of descriptors", async () => {
  const { left } = failDials("EMFILE", 10, true);
  const { balancer } = await startBalancer([(await echoing()).address], {
    check: checkOf("tcp"),
    checkInterval: 0.02,
    fall: 1,
  });
  await until(() => left() === 0, "ten checks that fail");
  assert.is(balancer.status().servers[0]?.checkFailures, 0);
  assertNeverChanged(balancer);
});

counting("does not blame a server for a dial that we gave up late: we stood still", async () => {
  const { address } = await swallowing();
  const { balancer, port } = await startBalancer([address], { connectTimeout: 0.5, fall: 1 });
  const client = await dial(port);
  await until(() => balancer.status().servers[0]?.active === 1, "the dial");
  standStill(0.8);
  assert.is(await outcomeOf(client), "ECONNRESET");
  assert.is(balancer.status().servers[0]?.connectErrors, 0);
  assertNeverChanged(balancer);
});

counting("does not blame a server that it has reached for this machine's last port", async () => {
  const { balancer, port } = await startBalancer([(await echoing()).address], {
    check: checkOf("tcp"),
    checkInterval: 0.02,
    fall: 1,
  });
  assert.is(await ask(port), "hello");
  const { left } = failDials("EADDRNOTAVAIL", 10, true);
  await until(() => left() === 0, "ten checks that fail");
  assert.is(balancer.status().servers[0]?.checkFailures, 0);
  assertNeverChanged(balancer);
});

counting("blames a server that it never could reach: IPv6 may be switched off", async () => {
  failDials("EADDRNOTAVAIL", 1000, true);
  const { balancer } = await startBalancer([(await echoing()).address], {
    check: checkOf("tcp"),
    checkInterval: 0.05,
  });
  await become(balancer, "down");
});

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

checks("of kind tcp are content with a server that never answers", async () => {
  const silent = await serving();
  const { balancer } = await startBalancer([silent.address], {
    check: checkOf("tcp"),
    checkInterval: 0.02,
    fall: 1,
  });
  await until(() => silent.count() > 5, "five checks");
  assertNeverChanged(balancer);
});

checks("of kind ping take a server down that never answers, or wrongly, or ends", async () => {
  const silent = await serving();
  const wrong = await listening((socket) => {
    socket.write("WRONG");
  });
  const ending = await listening((socket) => {
    socket.end();
  });
  const good = await pingServer(10, 0);
  const { balancer } = await startBalancer([silent.address, wrong.address, ending.address, good], {
    check: checkOf("ping"),
    checkInterval: 0.1,
  });
  await become(balancer, "down", "down", "down", "up");
  assert.equal(
    balancer.status().servers.map(({ why }) => why),
    [
      "no answer in time",
      'another answer than expected: "WRONG"',
      "accepted, and closed without a byte",
      "",
    ],
  );
});

/** A ping server with so many slots; returns its address. */
async function pingServer(maxConnections: number, mean: number): Promise<string> {
  const server = await startServer({
    host: "127.0.0.1",
    port: 0,
    mean,
    sd: 0,
    maxConnections,
    seed: 1,
  });
  later(() => {
    server.cut();
    return server.close();
  });
  return `127.0.0.1:${server.address.port}`;
}

/** A ping server that can be stopped. */
async function pingProgram() {
  const { child, printed } = start("server.ts", [
    ...["127.0.0.1", "0", "--mean", "0", "--sd", "0", "--log", "none"],
  ]);
  const [, address = ""] = await printed(/Listening on (\S+)/);
  return { child, address };
}

checks("of kind ping see a stopped server, which still accepts, in time", async () => {
  const { child, address } = await pingProgram();
  const { balancer } = await startBalancer([address], {
    check: checkOf("ping"),
    checkInterval: 0.2,
    fall: 3,
    rise: 1,
  });
  child.kill("SIGSTOP");
  const since = seconds();
  await become(balancer, "down");
  assert.ok(seconds() - since < 3 * 0.2 + 0.2 + 0.3, `it took ${seconds() - since} s`);
  child.kill("SIGCONT");
  await become(balancer, "up");
});

checks("of kind ping see a stopped server although clients go on connecting to it", async () => {
  const { child, address } = await pingProgram();
  const { balancer, port } = await startBalancer([address, await pingServer(100, 0)], {
    check: checkOf("ping"),
    checkInterval: 0.2,
    fall: 3,
  });
  keepComing(port, "PING!", 20);
  await until(() => balancer.status().servers.every(({ total }) => total > 2), "clients at both");
  child.kill("SIGSTOP");
  const since = seconds();
  await become(balancer, "down", "up");
  assert.ok(seconds() - since < 3 * 0.2 + 0.2 + 0.5, `it took ${seconds() - since} s`);
  child.kill("SIGCONT");
});

checks("of kind ping see a server that answers old clients and no new one", async () => {
  let isHung = false;
  const hung = await listening((socket) => {
    if (!isHung) socket.on("data", () => socket.write("PONG!"));
  });
  const { balancer, port } = await startBalancer([hung.address], {
    check: checkOf("ping"),
    checkInterval: 0.15,
    fall: 3,
  });
  const chats = await Promise.all(Array.from({ length: 4 }, () => dial(port)));
  const talk = setInterval(() => chats.forEach(({ socket }) => socket.write("PING!")), 10);
  later(() => clearInterval(talk));
  await until(() => chats.every(({ size }) => size() > 5), "four chats");
  isHung = true;
  const since = seconds();
  await become(balancer, "down");
  assert.ok(seconds() - since < 4 * 0.15 + 0.3, `it took ${seconds() - since} s`);
});

checks("of kind ping do not take a full server for a dead one while its line moves", async () => {
  const { balancer, port } = await startBalancer([await pingServer(1, 0.05)], {
    check: checkOf("ping"),
    checkInterval: 0.15,
    fall: 1,
  });
  let isOver = false;
  const visits = Array.from({ length: 8 }, async () => {
    while (!isOver) assert.is(await talkBriefly(port, "PING!"), "PONG!");
  });
  // a check waits for eight clients, 50 ms each: longer than an interval
  await until(() => (balancer.status().servers[0]?.checkFailures ?? 0) >= 4, "four late checks");
  isOver = true;
  await within(Promise.all(visits), "the last visits");
  assertNeverChanged(balancer);
});

checks("of kind ping do take a full server down whose clients stay", async () => {
  const { balancer, port } = await startBalancer([await pingServer(1, 0)], {
    check: checkOf("ping"),
    checkInterval: 0.1,
  });
  const chat = await dial(port);
  const talk = setInterval(() => chat.socket.write("PING!"), 10);
  later(() => clearInterval(talk));
  await become(balancer, "down");
  const before = chat.size();
  await until(() => chat.size() > before, "the chat, which is kept, going on");
});

checks("do not blame a server for answers that came while the balancer stood still", async () => {
  let asked: () => void = () => undefined;
  let count = 0;
  const slow = await listening((socket) => {
    socket.on("data", () => {
      count += 1;
      asked();
      setTimeout(() => socket.write("PONG!"), 150);
    });
  });
  const program = start("load_balancer.ts", [
    ...["random", "--port", "0", "--servers", slow.address, "--log", "json"],
    ...["--check", "ping", "--check-interval", "0.3", "--fall", "1"],
  ]);
  await program.printed(/listening/);
  const { promise, resolve } = deferred<void>();
  asked = resolve;
  await within(promise, "a check");
  program.child.kill("SIGSTOP");
  const since = seconds();
  await until(() => seconds() - since > 0.6, "two intervals");
  program.child.kill("SIGCONT");
  const before = count;
  await until(() => count > before + 2, "two more checks");
  assert.not.match(program.output.stdout, /"event":"server"/);
});

checks("at another port say whether a server answers, and clients cannot gainsay it", async () => {
  const [server, agent] = [await echoing(), await answering(() => "PONG!")];
  const { balancer, port } = await startBalancer([server.address], {
    check: checkOf("ping"),
    checkPort: agent.port,
    checkInterval: 0.06,
  });
  await until(() => agent.asked() > 2, "checks there");
  assertNeverChanged(balancer);
  agent.server.close();
  keepComing(port, "hello", 5);
  await become(balancer, "down");
});

checks(
  "at another port go to the server's own as well once a client's dial has failed",
  async () => {
    const [gone, agent] = [await echoing(), await answering(() => "PONG!")];
    const { balancer, port } = await startBalancer([gone.address, (await echoing()).address], {
      check: checkOf("ping"),
      checkPort: agent.port,
      checkInterval: 0.06,
      fall: 3,
    });
    gone.server.close();
    assert.is(await ask(port), "hello");
    await become(balancer, "down", "up"); // it was one client, and no other comes
    assert.is(balancer.status().servers[0]?.connectErrors, 1);
  },
);

checks("at another port leave it to clients whether a server accepts", async () => {
  const [server, agent] = [await echoing(), await answering(() => "PONG!")];
  const { balancer, port } = await startBalancer([server.address], {
    check: checkOf("ping"),
    checkPort: agent.port,
    checkInterval: 0.06,
  });
  server.server.close();
  await until(() => states(balancer)[0] === "down" || (void ask(port), false), "it going down");
  const [since] = [agent.asked()];
  await until(() => agent.asked() > since + 5, "the agent passing checks");
  assert.equal(states(balancer), ["down"]);
  await echoing(server.port);
  await become(balancer, "up");
});

checks.run();

// ─── Doubt ───────────────────────────────────────────────────────────────────
// A server that closes at once, or lets a client wait, is suspected: its next check is due now, and
// holds its connection for a moment.

const doubt = suite("doubt");
doubt.after.each(cleanUp);

/** A server that resets whoever talks nonsense, and ends silent clients after `patience` ms. */
async function strict(patience: number): Promise<Listening & { silent: () => number }> {
  let silent = 0;
  const server = await listening((socket) => {
    silent += 1;
    const timer = setTimeout(() => socket.end(), patience);
    socket.on("close", () => clearTimeout(timer));
    socket.once("data", () => {
      silent -= 1;
      socket.resetAndDestroy();
    });
  });
  return { ...server, silent: () => silent };
}

doubt("leaves healthy servers up, whatever nonsense their clients talk", async () => {
  const servers = [await strict(500), await strict(500), await strict(500)];
  const { balancer, port } = await startBalancer(
    servers.map(({ address }) => address),
    { check: checkOf("tcp"), checkInterval: 0.5 },
  );
  const since = seconds();
  const talkJunk = async (): Promise<string> => {
    const client = await dial(port);
    client.socket.write("JUNK");
    return outcomeOf(client);
  };
  for (let i = 0; i < 4; i += 1) {
    const outcomes = await Promise.all(Array.from({ length: 15 }, talkJunk));
    assert.equal([...new Set(outcomes)], ["ECONNRESET"]);
  }
  const checked = servers.map(({ silent }) => silent());
  await until(() => servers.every(({ silent }, i) => silent() > (checked[i] ?? 0) + 1), "checks");
  const intervals = (seconds() - since) / 0.5;
  for (const { silent } of servers)
    assert.ok(silent() <= 2 * intervals + 3, `${silent()} checks in ${intervals} intervals`);
  assertNeverChanged(balancer);
  assert.equal(
    balancer.status().servers.map(({ checkFailures }) => checkFailures),
    [0, 0, 0],
    "nor did a check take a slow end for a quick one",
  );
});

for (const kind of ["tcp", "none"]) {
  doubt(
    `with --check ${kind} notices a server that accepts and closes, before it attracts everyone`,
    async () => {
      const closing = await listening((socket) => {
        socket.end();
      });
      const { balancer, port } = await startBalancer([(await echoing()).address, closing.address], {
        algorithm: "least-connections",
        check: checkOf(kind),
        checkInterval: 0.09,
      });
      const client = await dial(port); // keeps the good one busier
      client.socket.write("hello");
      const since = seconds();
      await until(() => states(balancer)[1] === "down" || (void talkBriefly(port), false), "down");
      assert.ok(seconds() - since < 3 * 0.09 + 0.5, `it took ${seconds() - since} s`);
      for (let i = 0; i < 10; i += 1) assert.is(await talkBriefly(port), "hello");
      assert.equal(states(balancer), ["up", "down"]);
    },
  );
}

doubt("keeps a server down that still closes, and takes it back when it holds", async () => {
  let closes = true;
  let count = 0;
  const moody = await listening((socket) => {
    count += 1;
    if (closes) socket.end();
  });
  const { balancer, port } = await startBalancer([moody.address], {
    check: checkOf("tcp"),
    checkInterval: 0.06,
  });
  await until(() => states(balancer)[0] === "down" || (void talkBriefly(port), false), "down");
  const before = count;
  await until(() => count > before + 6, "six checks, whose connects go well");
  assert.equal(states(balancer), ["down"]);
  assert.is(balancer.status().servers[0]?.why, "accepted, and closed without a byte");
  closes = false;
  await become(balancer, "up");
});

doubt("goes to a server that lets its clients wait until they give up", async () => {
  const { address } = await swallowing();
  const { balancer, port } = await startBalancer([address], { checkInterval: 0.3, fall: 1 });
  const client = await dial(port);
  const since = seconds();
  await until(() => seconds() - since > 0.25, "longer than the hold");
  client.socket.resetAndDestroy();
  await become(balancer, "down");
  assert.is(balancer.status().servers[0]?.connectErrors, 0, "by a check");
});

doubt("does not fall on a server whose clients give up at once", async () => {
  const server = await serving();
  const { balancer, port } = await startBalancer([server.address], { checkInterval: NEVER });
  for (let i = 0; i < 30; i += 1) (await dial(port)).socket.resetAndDestroy();
  await assertEnded(balancer, { client_reset: 30 });
  assert.not(balancer.status().servers[0]?.lastCheck, "nobody has looked");
});

doubt(
  "does not fall on a server that closes after its answer, or when its client has finished",
  async () => {
    const brief = await listening((socket) => {
      socket.once("data", (chunk) => socket.end(chunk)).once("end", () => socket.end());
    });
    const { balancer, port } = await startBalancer([brief.address], { fall: 1 });
    assert.is(await talkBriefly(port), "hello");
    const client = await dial(port);
    client.socket.end();
    assert.is(await outcomeOf(client), "end");
    await assertEnded(balancer, { ok: 2 });
    assert.not(balancer.status().servers[0]?.lastCheck, "nobody has looked");
    assertNeverChanged(balancer);
  },
);

doubt("of a silent server is cleared by a client's byte as far as a check hears the same", () => {
  const clears = (check: string, checkPort?: number): string =>
    healthSettings(optionsFor(["127.0.0.1:1"], { check: checkOf(check), checkPort })).clears;
  assert.is(clears("tcp"), "any silence", "such a check asks nothing that a byte would not answer");
  assert.is(clears("ping"), "a closed check", "a busy server may close a check");
  assert.is(clears("x=>y"), "nothing", "what a client is told is no answer to this");
  assert.equal(
    [clears("tcp", 80), clears("ping", 80), clears("http:80")],
    ["nothing", "nothing", "nothing"],
    "nor is it the word of another port",
  );
});

doubt.run();

// ─── Without checks ──────────────────────────────────────────────────────────
// With --check none nobody that works is checked; who failed is, every interval.

const none = suite("no checks");
none.after.each(cleanUp);

none("leave the servers alone that work", async () => {
  const server = await serving();
  const other = await serving();
  const { port } = await startBalancer([server.address], { checkInterval: 0.01 });
  await startBalancer([other.address], { check: checkOf("tcp"), checkInterval: 0.01 });
  await dial(port);
  await until(() => other.count() > 5 && server.count() > 0, "five checks of another server");
  assert.is(server.count(), 1);
});

none("bring a server back that failed, and then leave it alone", async () => {
  const gone = await echoing();
  gone.server.close();
  const { balancer, port } = await startBalancer([gone.address, (await echoing()).address], {
    checkInterval: 0.05,
    fall: 1,
    rise: 3,
  });
  assert.is(await ask(port), "hello");
  assert.equal(states(balancer), ["down", "up"]);
  const back = await serving(gone.port);
  await become(balancer, "up", "up");
  const checked = back.count();
  assert.is(checked, 3, "as many as --rise says");
  const other = await serving();
  await startBalancer([other.address], { check: checkOf("tcp"), checkInterval: 0.05 });
  await until(() => other.count() > 4, "checks of another server");
  assert.is(back.count(), checked);
});

none("ask a server once that has failed once, and is well", async () => {
  const server = await serving();
  const { balancer, port } = await startBalancer([server.address, (await echoing()).address], {
    checkInterval: 0.1,
    fall: 2,
  });
  failDials("ECONNREFUSED", 1);
  assert.is(await ask(port), "hello");
  await until(() => Boolean(balancer.status().servers[0]?.lastCheck), "a check");
  assert.is(balancer.status().servers[0]?.lastCheck?.result, "passed");
  const since = seconds();
  const other = await serving();
  await startBalancer([other.address], { check: checkOf("tcp"), checkInterval: 0.1 });
  await until(() => other.count() > 4, "checks of another server");
  const ago = balancer.status().servers[0]?.lastCheck?.seconds ?? 0;
  assert.ok(ago > seconds() - since - 0.01, `the last check was ${ago} s ago`);
  assertNeverChanged(balancer);
});

none("find a server down that has failed once, and does not come back", async () => {
  const { balancer, port } = await startBalancer([DEAD[0], (await echoing()).address], {
    checkInterval: 0.1,
    fall: 3,
  });
  assert.is(await ask(port), "hello");
  await become(balancer, "down", "up");
  assert.is(balancer.status().servers[0]?.connectErrors, 1, "the rest were checks");
});

none.run();

// ─── Down ────────────────────────────────────────────────────────────────────

const down = suite("down");
down.after.each(cleanUp);

down("and drained and made ready again, a server serves at once when it is back", async () => {
  const gone = await echoing();
  gone.server.close();
  const { balancer, port } = await startBalancer([gone.address], {
    check: checkOf("tcp"),
    checkInterval: 0.05,
    fall: 1,
  });
  await become(balancer, "down");
  balancer.setDraining(gone.address, true);
  assert.equal(states(balancer), ["down"]);
  balancer.setDraining(gone.address, false);
  await echoing(gone.port);
  await become(balancer, "up");
  for (let i = 0; i < 20; i += 1) assert.is(await ask(port), "hello");
  assert.is(balancer.status().queued, 0);
});

/** A balancer over a server with a client that is idle, after the server has stopped listening. */
async function deserted(onDown: "keep" | "reset") {
  const server = await echoing();
  const { balancer, port } = await startBalancer([server.address], {
    check: checkOf("tcp"),
    checkInterval: 0.06,
    onDown,
  });
  const client: Talk = await dial(port);
  client.socket.write("hello");
  await until(() => client.size() === 5, "the echo");
  server.server.close();
  return { balancer, client };
}

down("keeps the open connections of a server", async () => {
  const { balancer, client } = await deserted("keep");
  await become(balancer, "down");
  const failures = (): number => balancer.status().servers[0]?.checkFailures ?? 0;
  await until(() => failures() > 5, "more failed checks");
  client.socket.end("!");
  assert.is(await outcomeOf(client), "end");
  assert.is(client.bytes().toString(), "hello!");
  await assertEnded(balancer, { ok: 1 });
});

down("resets them with --on-down reset", async () => {
  const { balancer, client } = await deserted("reset");
  assert.is(await outcomeOf(client), "ECONNRESET");
  assert.equal(states(balancer), ["down"]);
  await assertEnded(balancer, { server_reset: 1 });
});

down("with --on-down reset, keeps them for as long as the server gives bytes", async () => {
  const { balancer, client } = await deserted("reset");
  const talk = setInterval(() => client.socket.write("x"), 5);
  later(() => clearInterval(talk));
  await become(balancer, "down");
  const failures = (): number => balancer.status().servers[0]?.checkFailures ?? 0;
  await until(() => failures() > 6, "more failed checks");
  assert.is(balancer.status().active, 1);
  clearInterval(talk);
});

down.run();
