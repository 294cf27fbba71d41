/**
 * checks.test.ts - what --check asks, what counts as an answer, and one check of one server over
 * real sockets.
 */
import { once } from "node:events";
import { connect, type Server, Socket, type TcpNetConnectOpts } from "node:net";
import { createServer as createTlsServer, type TLSSocket } from "node:tls";
import { Worker } from "node:worker_threads";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { readValue, UsageError } from "../lib.ts";
import {
  asks,
  type CheckOrder,
  type CheckResult,
  type CheckSpec,
  judge,
  ownPortOf,
  questionOf,
  readCheck,
  runCheck,
} from "../load_balancer.ts";
import {
  cleanUp,
  DEAD,
  deferred,
  later,
  listening,
  serving,
  swallowing,
  until,
  within,
} from "./helpers.ts";

const check = (text: string): CheckSpec => readValue("--check", readCheck, text);
const judged = (spec: string, answer: string): string =>
  judge(check(spec), Buffer.from(answer, "latin1"));

// ─── What is asked ───────────────────────────────────────────────────────────

const words = suite("checks: words");

words("reads http and https with a port, a path, both or neither", () => {
  const read = (text: string): unknown => {
    const spec = check(text);
    return spec.kind === "http" && [spec.isSecure, spec.port, spec.path];
  };
  assert.equal(read("http"), [false, undefined, "/"]);
  assert.equal(read("http:"), [false, undefined, "/"]);
  assert.equal(read("http:8008"), [false, 8008, "/"]);
  assert.equal(read("https:/healthz?deep=1"), [true, undefined, "/healthz?deep=1"]);
  assert.equal(read("https:8008/primary"), [true, 8008, "/primary"]);
});

words("takes ping for PING!=>^PONG!", () => {
  assert.equal(check("ping"), { ...check("PING!=>^PONG!"), text: "ping" });
});

words("reads SEND=>EXPECT with every escape, and the texts as UTF-8", () => {
  const spec = check(String.raw`a\r\n\t\x00\xfF\\\^é=>^\^\x3d>=>`);
  if (spec.kind !== "exchange") throw new Error(spec.kind);
  const send = [0x61, 13, 10, 9, 0, 0xff, 0x5c, 0x5e, 0xc3, 0xa9];
  assert.equal([...spec.send], send);
  assert.is(spec.expect.toString(), "^=>=>");
  assert.is(spec.isAnchored, true);
});

words("anchors only where the text to expect begins with a ^ that is not escaped", () => {
  const isAnchored = (text: string): unknown => {
    const spec = check(text);
    return spec.kind === "exchange" && spec.isAnchored;
  };
  assert.equal(["=>^a", "=>a^", String.raw`=>\^a`].map(isAnchored), [true, false, false]);
});

words("refuses what is no check: nothing to expect, unknown escapes, bad ports and paths", () => {
  const bad = ["", "udp", "TCP", "=>", "PING=>", "a=>^", String.raw`a\q=>b`, String.raw`a=>b\x4`];
  const badHttp = ["http:0", "http:65536", "http:80:80", "http:primary", "http:/a b", "http://a/b"];
  for (const text of [...bad, ...badHttp, "a=>b\\", "https:8443x", "httpx"])
    assert.throws(
      () => check(text),
      (error: unknown) =>
        error instanceof UsageError &&
        error.message.startsWith(
          `Bad --check ${JSON.stringify(text)}: expected tcp, ping, http[s]`,
        ),
      text,
    );
});

words("knows its own port, and whether it asks", () => {
  const texts = ["http:8008/primary", "https", "tcp", "none", "a=>b"];
  assert.equal(texts.map(check).map(ownPortOf), [8008, ...Array<undefined>(4).fill(undefined)]);
  assert.equal(texts.map(check).map(asks), [true, true, false, false, true]);
});

words("asks with the path and the configured host", () => {
  const asked = (text: string, host: string): string => questionOf(check(text), host).toString();
  assert.is(
    asked("http:8008/primary", "db1.internal"),
    "GET /primary HTTP/1.0\r\nHost: db1.internal\r\n\r\n",
  );
  assert.is(asked("https", "::1"), "GET / HTTP/1.0\r\nHost: [::1]\r\n\r\n");
  assert.is(asked(String.raw`INFO replication\r\n=>role:master`, "a"), "INFO replication\r\n");
  assert.is(asked("=>^SSH-", "a") + asked("tcp", "a"), "");
});

words.run();

// ─── What counts as an answer ────────────────────────────────────────────────

const answers = suite("checks: answers");

answers("a status 2xx or 3xx passes once it is complete", () => {
  for (const start of ["HTTP/1.0 200 OK", "HTTP/1.1 204 ", "HTTP/1.1 302\r", "HTTP/2.0 399\n"])
    assert.is(judged("http", start), "passed", start);
  const whole = "HTTP/1.1 200 ";
  for (let length = 0; length < whole.length; length += 1)
    assert.is(judged("http", whole.slice(0, length)), "more", whole.slice(0, length));
});

answers("any other status is wrong, and so is what is no status, as early as it shows", () => {
  for (const start of ["HTTP/1.1 503 S", "HTTP/1.1 100 C", "HTTP/1.1 404\r", "HTTP/1.1 2000"])
    assert.is(judged("http", start), "wrong", start);
  for (const start of ["S", "HTTPS", "HTTP/x", "HTTP/1.1  ", "SSH-2.0-OpenSSH_9.6"])
    assert.is(judged("http", start), "wrong", start);
});

answers("a text may stand anywhere in the first 64 KiB, and not across their end", () => {
  const fill = (size: number): string => "x".repeat(size);
  assert.is(judged("=>role:master", "$59\r\n# Replication\r\nrole:mas"), "more");
  assert.is(judged("=>role:master", "$59\r\n# Replication\r\nrole:master"), "passed");
  assert.is(judged("=>end", `${fill(65533)}end`), "passed");
  assert.is(judged("=>end", `${fill(65534)}en`), "wrong");
  assert.is(judged("=>end", `${fill(65534)}end`), "wrong");
});

answers("an anchored text is the beginning, and another one is wrong at its first byte", () => {
  const expected = { "": "more", PO: "more", "PONG!": "passed", "PONG!x": "passed" };
  for (const [answer, judgement] of Object.entries(expected))
    assert.is(judged("ping", answer), judgement, answer);
  for (const answer of ["x", "PANG!", "xPONG!"]) assert.is(judged("ping", answer), "wrong", answer);
});

answers("bytes are compared, not letters", () => {
  assert.is(judged(String.raw`=>^\x00\xff`, "\x00\xff"), "passed");
  assert.is(judged(String.raw`=>\xc3\xa9`, "caf\xc3\xa9"), "passed");
  assert.is(judged("=>é", "caf\xe9"), "more");
});

answers.run();

// ─── One check of one server ─────────────────────────────────────────────────

const runs = suite("checks: runs");
runs.after.each(cleanUp);

/** Enough for everything to happen; a test that waits for a time-out says a shorter one. */
const LONG = 10;

/** Starts a check of `port`, which is called off at the end of the test. */
function begin(
  port: number,
  text: string,
  options: Partial<CheckOrder> = {},
): { outcomes: CheckResult[]; first: () => Promise<CheckResult>; cancel: () => void } {
  const outcomes: CheckResult[] = [];
  const { promise, resolve } = deferred<CheckResult>();
  const order: CheckOrder = {
    address: { host: "127.0.0.1", port },
    host: "127.0.0.1",
    spec: check(text),
    connectSeconds: LONG,
    seconds: LONG,
    holdSeconds: 0,
    prefix: "",
    connect,
    ...options,
  };
  const cancel = runCheck(order, (outcome) => {
    outcomes.push(outcome);
    resolve(outcome);
  });
  later(cancel);
  return { outcomes, first: () => within(promise, "the outcome of a check"), cancel };
}

const outcomeOf = (...order: Parameters<typeof begin>): Promise<CheckResult> =>
  begin(...order).first();

/** What every outcome says, where a test does not care for the rest. */
const seen = (result: CheckResult): string =>
  "why" in result ? `${result.kind}: ${result.why}` : result.kind;

/** A server that sends `answer` to each client, and ends the connection if that is wanted. */
const saying = async (answer: string, ends: "ends" | "stays"): Promise<number> => {
  const { port } = await listening((socket) => {
    if (ends === "ends") socket.end(answer);
    else socket.write(answer);
  });
  return port;
};

/** A server that answers nothing. */
const silent = async (): Promise<number> => (await listening((socket) => socket.resume())).port;

runs("tcp passes when the connection stands", async () => {
  assert.equal(await outcomeOf(await silent(), "tcp"), { kind: "passed" });
});

runs("a refused connection is refused, in the system's words and by its code", async () => {
  assert.equal(await outcomeOf(Number(DEAD[0].split(":")[1]), "ping"), {
    kind: "refused",
    why: "connection refused",
    code: "ECONNREFUSED",
  });
});

runs("no connection in time is refused, by the shorter time of the connect part", async () => {
  const { address } = await swallowing();
  const port = Number(address.split(":")[1]);
  const outcome = await outcomeOf(port, "ping", { connectSeconds: 0.05 });
  assert.is(seen(outcome), "refused: no connection in time");
});

runs("a holding check passes when the connection stays open, and only after the hold", async () => {
  const port = await silent();
  const before = performance.now();
  assert.is(seen(await outcomeOf(port, "tcp", { holdSeconds: 0.05 })), "passed");
  assert.ok(performance.now() - before > 45);
});

runs("a holding check passes at the first byte", async () => {
  const outcome = await outcomeOf(await saying("hi", "ends"), "none", { holdSeconds: LONG });
  assert.equal(outcome, { kind: "passed" });
});

runs("a holding check is silent when the server closes without a byte, or resets", async () => {
  const port = await saying("", "ends");
  const closed = await outcomeOf(port, "tcp", { holdSeconds: LONG });
  assert.equal(closed, {
    kind: "silent",
    why: "accepted, and closed without a byte",
    by: "close",
  });
  const resetting = await listening((socket) => socket.resetAndDestroy());
  const reset = await outcomeOf(resetting.port, "tcp", { holdSeconds: LONG });
  const why = "accepted, then: connection reset by peer";
  assert.equal(reset, { kind: "silent", why, by: "close" });
});

runs("asks and passes, in whatever pieces the answer comes", async () => {
  const { port } = await listening((socket) => {
    socket.once("data", (bytes) => {
      assert.is(bytes.toString(), "PING!");
      socket.write("PO", () => setImmediate(() => socket.write("NG!")));
    });
  });
  assert.is(seen(await outcomeOf(port, "ping")), "passed");
});

runs("asks over HTTP and says the status that was wrong", async () => {
  const asked: string[] = [];
  let status = "503 Service Unavailable";
  const { port } = await listening((socket) => {
    socket.on("data", (bytes) => {
      asked.push(bytes.toString());
      socket.end(`HTTP/1.0 ${status}\r\n\r\n`);
    });
  });
  const wrong = await outcomeOf(port, "http:/ready", { host: "db1" });
  assert.equal(wrong, { kind: "silent", why: "status 503", by: "wrong" });
  status = "200 OK";
  assert.is(seen(await outcomeOf(port, "http:/ready", { host: "db1" })), "passed");
  assert.is(asked[1], "GET /ready HTTP/1.0\r\nHost: db1\r\n\r\n");
});

runs("a wrong answer is quoted, with its control characters escaped", async () => {
  const outcome = await outcomeOf(await saying("NO\n", "stays"), "ping");
  assert.is(seen(outcome), String.raw`silent: another answer than expected: "NO\n"`);
});

runs("bytes that never become the answer are a wrong one, at the end and in time", async () => {
  const closed = await outcomeOf(await saying("role:slave", "ends"), "a=>role:master");
  assert.is("by" in closed && closed.by, "wrong");
  const port = await saying("role:slave", "stays");
  const late = await outcomeOf(port, "a=>role:master", { seconds: 0.1 });
  assert.is("by" in late && late.by, "wrong");
});

runs("no answer in time is silent, without a byte and not closed", async () => {
  const outcome = await outcomeOf(await silent(), "ping", { seconds: 0.05 });
  assert.equal(outcome, { kind: "silent", why: "no answer in time", by: "time-out" });
});

runs("looks at no more than 64 KiB of an answer", async () => {
  const { port } = await listening((socket) => {
    const more = (error?: Error | null): void => {
      if (!error) socket.write("x".repeat(20_000), more);
    };
    more();
  });
  assert.match(
    seen(await outcomeOf(port, "=>y")),
    /^silent: another answer than expected: "x{40}"/,
  );
});

runs("the prefix goes first, with checks that ask and with those that do not", async () => {
  const server = await serving();
  begin(server.port, "ping", { prefix: "PROXY UNKNOWN\r\n" });
  const asking = await server.next();
  await until(() => asking.bytes().toString() === "PROXY UNKNOWN\r\nPING!", "prefix and ping");
  begin(server.port, "tcp", { prefix: "PROXY UNKNOWN\r\n" });
  const plain = await server.next();
  assert.is(await within(plain.outcome, "the end of the check"), "end");
  assert.is(plain.bytes().toString(), "PROXY UNKNOWN\r\n");
});

runs("reports once, whatever happens afterwards, and lets go of its connection", async () => {
  const server = await serving();
  const { first, outcomes } = begin(server.port, "ping");
  const talk = await server.next();
  talk.socket.write("PONG!PONG!");
  await first();
  talk.socket.end("more");
  await within(talk.outcome, "the check's connection ending");
  await until(() => server.sockets.size === 0, "the server's side closing").catch(() => undefined);
  assert.is(outcomes.length, 1);
});

runs("reports nothing once it has been called off", async () => {
  const server = await serving();
  const { outcomes, cancel } = begin(server.port, "ping", { seconds: 0.05 });
  const talk = await server.next();
  cancel();
  assert.is(await within(talk.outcome, "the check's connection ending"), "end");
  await new Promise((resolve) => setTimeout(resolve, 60)); // past its time-out
  assert.equal(outcomes, []);
});

runs("what we are short of says nothing about the server", async () => {
  const failing = (code: string) => (): Socket =>
    new Socket().destroy(Object.assign(new Error(code), { code }));
  for (const code of ["EMFILE", "ENFILE", "ENOBUFS", "ENOMEM"]) {
    const outcome = await outcomeOf(1, "tcp", { connect: failing(code) });
    assert.equal(outcome, { kind: "short" });
  }
  const noPort = await outcomeOf(1, "tcp", { connect: failing("EADDRNOTAVAIL") });
  assert.is("code" in noPort && noPort.code, "EADDRNOTAVAIL");
});

runs("a connection that meets itself is refused", async () => {
  const { port, server } = await listening(() => undefined);
  await new Promise((resolve) => server.close(resolve));
  const toItself = (options: TcpNetConnectOpts): Socket =>
    connect({ ...options, localAddress: "127.0.0.1", localPort: port });
  const outcome = await outcomeOf(port, "tcp", { connect: toItself });
  assert.is(seen(outcome), "refused: connected to itself: nobody listens");
});

/** Has everything here stand still. */
const standStill = (ms: number): void =>
  void Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, ms);

runs("a time-out that fires late is no result: we stood still", async () => {
  const server = await serving();
  const { first } = begin(server.port, "ping", { seconds: 0.05 });
  await server.next();
  standStill(200);
  assert.is(seen(await first()), "late");
});

runs("an answer that lay in the kernel when the time-out fired still counts", async () => {
  const code = `require("node:net").createServer((socket) => socket.on("error", () => {}).once(
    "data", () => socket.write("PONG!"))).listen(0, "127.0.0.1", function () {
      require("node:worker_threads").parentPort.postMessage(this.address().port); });`;
  const worker = new Worker(code, { eval: true, execArgv: [] });
  later(() => worker.terminate());
  const [port]: unknown[] = await within(once(worker, "message"), "the worker's port");
  const clock = performance.now.bind(performance);
  later(() => {
    performance.now = clock;
  });
  let socket: Socket | undefined;
  const { first } = begin(Number(port), "ping", {
    seconds: 0.05,
    connect: (options) => {
      socket = connect(options).on("connect", () => setImmediate(() => standStill(150)));
      return socket;
    },
  });
  const frozen = clock();
  performance.now = () => frozen; // the timer is late by less than shows
  assert.is(seen(await first()), "passed");
});

runs("a connection that came as its time-out fired still counts", async () => {
  const clock = performance.now.bind(performance);
  const frozen = clock();
  performance.now = () => frozen; // the timers are late by less than shows
  later(() => {
    performance.now = clock;
  });
  const socket = Object.defineProperty(new Socket(), "localPort", { value: 1 });
  const times = { connectSeconds: 0.02, seconds: 0.04 };
  const { first } = begin(1, "=>^SSH-", { ...times, connect: () => socket });
  setTimeout(() => socket.emit("connect"), 20); // in the same turn of the loop, and behind it
  assert.is(seen(await first()), "silent: no answer in time");
});

// ─── TLS ─────────────────────────────────────────────────────────────────────

/** Made for these tests, signed by itself, for a name that nobody has. */
const KEY = `-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg+TvdZwYt1gFFVTQB
m9pA2BNsIzwxysF8UvY8IKi6TdChRANCAAQgIKGeTHDSL4ACRXn5vSLaKFBuv7RW
y9OfyPFgXCrUwCN7ecr8CNJ17KdcR56jWKfjFeRhmn2lFxPjJ2OLdOqR
-----END PRIVATE KEY-----`;
const CERT = `-----BEGIN CERTIFICATE-----
MIIBbDCCAROgAwIBAgIUGVa5viAfiLRSanxYIXTJJugiGvkwCgYIKoZIzj0EAwIw
DDEKMAgGA1UEAwwBdDAeFw0yNjExMjYxMjAzMzJaFw00NjExMjExMjAzMzJaMAwx
CjAIBgNVBAMMAXQwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAAQgIKGeTHDSL4AC
RXn5vSLaKFBuv7RWy9OfyPFgXCrUwCN7ecr8CNJ17KdcR56jWKfjFeRhmn2lFxPj
J2OLdOqRo1MwUTAdBgNVHQ4EFgQUJibeYuaxodXn7YFg3fecar46vgwwHwYDVR0j
BBgwFoAUJibeYuaxodXn7YFg3fecar46vgwwDwYDVR0TAQH/BAUwAwEB/zAKBggq
hkjOPQQDAgNHADBEAiAZ0s/Emc/lK+tV59zhBdGr8U6oXxeZ5Xjlcx0IxyeTagIg
KN4M6brwYqwxGqjG/YSr70uXfnrvzz0s6ICfNIk5sDI=
-----END CERTIFICATE-----`;

/** A server that speaks TLS on each socket it is given. */
async function speakingTls(onSecure: (socket: TLSSocket) => void): Promise<Server> {
  const server = createTlsServer({ key: KEY, cert: CERT }, onSecure);
  server.on("tlsClientError", () => undefined);
  later(() => server.close());
  return server;
}

runs("asks over TLS with the configured name, and verifies no certificate", async () => {
  const names: unknown[] = [];
  const tls = await speakingTls((socket) => {
    names.push(socket.servername);
    socket.on("error", () => undefined).once("data", () => socket.end("HTTP/1.1 200 OK\r\n\r\n"));
  });
  const { port } = await listening((socket) => void tls.emit("connection", socket));
  assert.is(seen(await outcomeOf(port, "https", { host: "db1.internal" })), "passed");
  assert.is(seen(await outcomeOf(port, "https", { host: "127.0.0.1" })), "passed");
  assert.equal(names, ["db1.internal", false]);
});

runs("the prefix goes before TLS begins", async () => {
  const tls = await speakingTls((socket) => {
    socket.on("error", () => undefined).once("data", () => socket.end("HTTP/1.1 200 OK\r\n\r\n"));
  });
  const { port } = await listening((socket) => {
    socket.once("readable", () => {
      assert.is(String(socket.read(15)), "PROXY UNKNOWN\r\n");
      tls.emit("connection", socket);
    });
  });
  assert.is(seen(await outcomeOf(port, "https", { prefix: "PROXY UNKNOWN\r\n" })), "passed");
});

runs("a server that does not speak TLS is silent to a check that does, in one line", async () => {
  const outcome = await outcomeOf(await saying("220 mail ready\r\n", "stays"), "https");
  assert.is(seen(outcome), "silent: accepted, then: TLS: wrong version number");
  const mute = await outcomeOf(await silent(), "https", { seconds: 0.05 });
  assert.is(seen(mute), "silent: no answer in time");
  const closing = await outcomeOf(await saying("", "ends"), "https");
  assert.is("by" in closing && closing.by, "close");
});

runs.run();
