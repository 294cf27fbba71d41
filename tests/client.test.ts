/** client.test.ts - requests, every way in which they fail, and the program. */
import { createServer, type Socket } from "node:net";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { Client, RequestError, resolveAddresses } from "../client.ts";
import { listen, RunError } from "../lib.ts";
import {
  cleanUp,
  deferred,
  failDials,
  later,
  listening,
  run,
  runEach,
  until,
  within,
} from "./helpers.ts";

/** A client of `onConnection`, with the timeout given. */
async function clientOf(onConnection: (socket: Socket) => void, timeout = 20): Promise<Client> {
  const { port } = await listening(onConnection);
  const client = new Client([{ host: "127.0.0.1", port }], { timeout });
  later(() => client.close());
  return client;
}

/** A server that sends `answer` for everything it receives. */
const answers =
  (answer: string) =>
  (socket: Socket): void =>
    void socket.on("data", () => socket.write(answer));

/** `connect: Cannot connect to ...`, how a request failed. */
async function failureOf(request: Promise<number>): Promise<string> {
  const error: unknown = await within(request, "an answer").catch((error: unknown) => error);
  assert.instance(error, RequestError, `answered in ${String(error)} s`);
  return error instanceof RequestError ? `${error.kind}: ${error.message}` : "";
}

/** A port on which nobody listens. */
async function closedPort(): Promise<number> {
  const server = createServer();
  const { port } = await listen(server, { host: "127.0.0.1", port: 0 });
  await new Promise((resolve) => server.close(resolve));
  return port;
}

// ─── Requests ────────────────────────────────────────────────────────────────

const requests = suite("client: requests");
requests.after.each(cleanUp);

requests("sends PING! and resolves with the seconds to the last byte of PONG!", async () => {
  let received = "";
  const client = await clientOf((socket) => {
    socket.on("data", (chunk) => {
      received += chunk;
      socket.write("PO");
      setTimeout(() => socket.write("NG!"), 50);
    });
  });
  const seconds = await within(client.request(), "an answer");
  assert.is(received, "PING!");
  assert.ok(seconds > 0.045 && seconds < 10, `${seconds} s`);
});

requests("uses one connection for all requests", async () => {
  let connections = 0;
  const client = await clientOf((socket) => {
    connections++;
    answers("PONG!")(socket);
  });
  for (let i = 0; i < 3; i++) await within(client.request(), "an answer");
  assert.is(connections, 1);
});

requests("sends a number where it is given one, also on a connection that is there", async () => {
  let received = "";
  const client = await clientOf((socket) => {
    socket.on("data", (chunk) => {
      received += chunk;
      socket.write("PONG!");
    });
  });
  await within(client.request(performance.now(), 0), "an answer");
  await within(client.request(performance.now(), 4711), "an answer");
  await within(client.request(), "an answer");
  assert.is(received, "PING 0!PING 4711!PING!");
});

requests("comes from the local address it is given", async () => {
  let from: string | undefined;
  const { port } = await listening((socket) => {
    from = socket.remoteAddress;
    answers("PONG!")(socket);
  });
  const client = new Client([{ host: "127.0.0.1", port }], { localAddress: "127.0.0.2" });
  later(() => client.close());
  const failed: unknown = await within(client.request(), "an answer").catch((error) => error);
  // only Linux has the whole of 127.0.0.0/8 at once
  if (process.platform === "linux") assert.is(from, "127.0.0.2", String(failed));
});

requests("tries all addresses in turn, and first the one that worked, the next time", async () => {
  let connections = 0;
  const { port } = await listening((socket) => {
    connections++;
    answers("PONG!")(socket);
  });
  const dead = await closedPort();
  const client = new Client([
    { host: "127.0.0.1", port: dead },
    { host: "127.0.0.1", port },
  ]);
  for (let i = 0; i < 2; i++) {
    await within(client.request(), "an answer");
    client.close();
  }
  assert.is(connections, 2);
});

requests("counts from an earlier moment when asked to", async () => {
  const client = await clientOf(answers("PONG!"));
  assert.ok((await within(client.request(performance.now() - 3000), "an answer")) >= 3);
});

requests("an earlier moment leaves less of the timeout", async () => {
  const client = await clientOf(() => undefined, 1000);
  assert.match(await failureOf(client.request(performance.now() - 1_000_000)), /^timeout/);
});

requests("connects ahead when asked to, and only once", async () => {
  let connections = 0;
  const client = await clientOf(() => connections++);
  await within(client.connect(), "connecting");
  assert.is(await client.connect(), 0);
  await until(() => connections === 1, "one connection");
});

requests("refuses a second request before the first is answered", async () => {
  const client = await clientOf(() => undefined);
  const first = client.request();
  assert.throws(() => client.request(), /one request at a time/);
  client.close();
  assert.match(await failureOf(first), /^interrupted/);
});

requests("leaves no timer behind, answered or not", async () => {
  const timers = (): number =>
    process.getActiveResourcesInfo().filter((name) => name === "Timeout").length;
  const good = await clientOf(answers("PONG!"), 1000);
  const bad = await clientOf(answers("wrong"), 1000);
  const before = timers();
  await good.request();
  assert.match(await failureOf(bad.request()), /^wrong/);
  await until(() => timers() <= before, "timers gone");
});

requests.run();

// ─── Failures ────────────────────────────────────────────────────────────────

const failures = suite("client: failures");
failures.after.each(cleanUp);

failures("nobody listening is a failed connect, in the system's words", async () => {
  const port = await closedPort();
  assert.is(
    await failureOf(new Client([{ host: "127.0.0.1", port }]).request()),
    `connect: Cannot connect to 127.0.0.1:${port}: connection refused`,
  );
});

failures("where all addresses fail, the first one's reason counts, each time anew", async () => {
  const [first, second] = [await closedPort(), await closedPort()];
  const client = new Client([
    { host: "127.0.0.1", port: first },
    { host: "127.0.0.1", port: second },
  ]);
  for (let i = 0; i < 2; i++)
    assert.is(
      await failureOf(client.request()),
      `connect: Cannot connect to 127.0.0.1:${first}: connection refused`,
    );
});

for (const code of ["EMFILE", "ENFILE", "EADDRNOTAVAIL", "ENOBUFS"]) {
  failures(`${code} is a shortage of our own, not the other side's failure`, async () => {
    const client = await clientOf(answers("PONG!"));
    failDials(code, 1, true);
    assert.match(await failureOf(client.request()), /^shortage: Cannot connect to 127\.0\.0\.1/);
    await within(client.request(), "an answer once there are descriptors again");
  });
}

failures("no answer in time is a timeout, and the server sees a reset", async () => {
  const { promise: lost, resolve } = deferred<string>();
  const client = await clientOf(
    (socket) => socket.on("data", () => undefined).on("error", (error) => resolve(error.message)),
    0.05,
  );
  assert.match(
    await failureOf(client.request()),
    /^timeout: No answer from 127\.0\.0\.1:\d+ within 0\.05 s$/,
  );
  assert.match(await within(lost, "the server losing its client"), "ECONNRESET");
});

failures("half an answer in time is a timeout, too", async () => {
  const client = await clientOf(answers("PON"), 0.1);
  assert.match(await failureOf(client.request()), /^timeout/);
});

failures("an end before the answer is closed, also in the middle of it", async () => {
  const silent = await clientOf((socket) => socket.on("data", () => socket.end()));
  assert.match(
    await failureOf(silent.request()),
    /^closed: 127\.0\.0\.1:\d+ closed the connection before its answer$/,
  );
  const halting = await clientOf((socket) => socket.on("data", () => socket.end("PONG")));
  assert.match(await failureOf(halting.request()), /^closed/);
});

failures("a reset is a reset, also right behind half an answer", async () => {
  const silent = await clientOf((socket) => socket.on("data", () => socket.resetAndDestroy()));
  assert.match(
    await failureOf(silent.request()),
    /^reset: Lost the connection to 127\.0\.0\.1:\d+: connection reset by peer$/,
  );
  const halting = await clientOf((socket) =>
    socket.on("data", () => {
      socket.write("PON");
      socket.resetAndDestroy();
    }),
  );
  assert.match(await failureOf(halting.request()), /^reset/);
});

failures("other bytes than PONG! are a wrong answer, and more than one PONG! is, too", async () => {
  for (const answer of [
    "PONG?",
    "HTTP/1.1 400 Bad Request\r\n\r\n".repeat(99),
    "PONG!P",
    "PONG!PONG!",
  ]) {
    const client = await clientOf(answers(answer));
    assert.match(
      await failureOf(client.request()),
      /^wrong: Wrong answer from 127\.0\.0\.1:\d+: expected one "PONG!" for a "PING!"$/,
      answer,
    );
  }
});

failures("what nobody asked for fails the next request", async () => {
  const { promise: unasked, resolve } = deferred<Socket>();
  const client = await clientOf((socket) => {
    socket.on("close", () => resolve(socket));
    answers("PONG!")(socket);
    setTimeout(() => socket.write("PONG!"), 50);
  });
  await within(client.request(), "an answer");
  await within(unasked, "the client ending the connection");
  assert.match(await failureOf(client.request()), /^wrong/);
});

failures("an answer that came before its request is none", async () => {
  const { promise: refused, resolve } = deferred<void>();
  const client = await clientOf(
    (socket) => void socket.on("close", () => resolve()).write("PONG!"),
  );
  await within(client.connect(), "connecting");
  await within(refused, "the client ending the connection");
  assert.match(await failureOf(client.request()), /^wrong/);
});

failures("a connection that ends between two requests fails the second one, once", async () => {
  const ended: Promise<unknown>[] = [];
  const client = await clientOf((socket) => {
    const { promise, resolve } = deferred<void>();
    ended.push(promise);
    socket.on("close", () => resolve()).on("data", () => socket.end("PONG!"));
  });
  await within(client.request(), "an answer");
  await within(Promise.all(ended), "the end");
  assert.match(await failureOf(client.request()), /^closed/);
  await within(client.request(), "an answer on a new connection");
});

failures("after a failure the next request has a new connection", async () => {
  let connections = 0;
  const client = await clientOf((socket) =>
    answers(connections++ === 0 ? "wrong" : "PONG!")(socket),
  );
  assert.match(await failureOf(client.request()), /^wrong/);
  await within(client.request(), "an answer");
  assert.is(connections, 2);
});

failures("closing interrupts a request, connected or not", async () => {
  const client = await clientOf(() => undefined);
  const connecting = client.request();
  client.close();
  assert.match(await failureOf(connecting), /^interrupted/);
  await within(client.connect(), "connecting");
  const waiting = client.request();
  client.close();
  assert.match(await failureOf(waiting), /^interrupted/);
});

failures(
  "a name that does not resolve is a RunError, one that does becomes its addresses",
  async () => {
    assert.equal(await within(resolveAddresses({ host: "127.0.0.1", port: 5 }), "resolving"), [
      { host: "127.0.0.1", port: 5 },
    ]);
    const error: unknown = await within(
      resolveAddresses({ host: "no.such.host.invalid", port: 5 }),
      "resolving",
    ).catch((error: unknown) => error);
    assert.instance(error, RunError);
    assert.match(String(error), /Cannot resolve "no\.such\.host\.invalid": /);
  },
);

failures.run();

// ─── The program ─────────────────────────────────────────────────────────────

const program = suite("client.ts");
program.after.each(cleanUp);

program("prints the answer and how long it took", async () => {
  const { port } = await listening(answers("PONG!"));
  const { code, stdout, stderr } = await run("client.ts", ["--port", String(port)]);
  assert.match(stdout, /^PONG!\nResponse time: \d+\.\d{4} seconds\n$/);
  assert.is(stderr, "");
  assert.is(code, 0);
});

program("nobody listening is one line and exit code 1", async () => {
  const port = await closedPort();
  assert.equal(await run("client.ts", ["--port", String(port)]), {
    code: 1,
    stdout: "",
    stderr: `Cannot connect to 127.0.0.1:${port}: connection refused\n`,
  });
});

program("bad input is one line that quotes it, then the usage, and exit code 2", async () => {
  const usage = "How to Use: tsx client.ts\n";
  const lines = [
    ["client.ts", "127.0.0.1"],
    ["client.ts", "--port", "0"],
  ];
  assert.equal(await runEach(lines), [
    {
      code: 2,
      stdout: "",
      stderr: `Bad argument "127.0.0.1": expected --host or --port\n${usage}`,
    },
    {
      code: 2,
      stdout: "",
      stderr: `Bad --port "0": expected a whole number from 1 to 65535\n${usage}`,
    },
  ]);
});

program.run();
