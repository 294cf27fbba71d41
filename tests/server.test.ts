/** server.test.ts - the simulated work, the slots, the protocol, and how the server ends. */
import { connect, type Socket } from "node:net";
import { networkInterfaces } from "node:os";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { mulberry32, RunError } from "../lib.ts";
import {
  type Asked,
  countPings,
  drawSleep,
  nothingAsked,
  type PingServer,
  type ServerOptions,
  sleepOfNumber,
  slowPhase,
  startServer,
} from "../server.ts";
import {
  cleanUp,
  deferred,
  later,
  listening,
  run,
  runEach,
  start,
  until,
  within,
} from "./helpers.ts";

/** A server that answers at once, and what it logs. */
async function serve(
  options: Partial<ServerOptions> = {},
): Promise<{ server: PingServer; port: number; log: string[] }> {
  const log: string[] = [];
  const server = await startServer({
    host: "127.0.0.1",
    port: 0,
    mean: 0,
    sd: 0,
    maxConnections: 10,
    seed: 1,
    log: (line) => log.push(line),
    ...options,
  });
  later(() => {
    const closed = server.close();
    server.cut();
    return closed;
  });
  return { server, port: server.address.port, log };
}

type Dialled = {
  readonly socket: Socket;
  readonly received: () => string;
  readonly ended: () => Promise<string>;
};

/** A connection; `ended` says how the server ended it. */
async function dial(port: number): Promise<Dialled> {
  const socket = connect({ host: "127.0.0.1", port, allowHalfOpen: true });
  const { promise: connected, resolve, reject } = deferred<void>();
  const { promise: ended, resolve: end } = deferred<string>();
  let received = "";
  socket
    .on("error", (error: NodeJS.ErrnoException) => {
      reject(error);
      end(error.code ?? error.message);
    })
    .on("connect", () => resolve())
    .on("data", (chunk) => {
      received += chunk;
    })
    .on("end", () => end("end"));
  later(() => socket.destroy());
  await within(connected, "connecting");
  return { socket, received: () => received, ended: () => within(ended, "the server's end") };
}

const pongs = (n: number): string => "PONG!".repeat(n);

// ─── Bytes and sleeps ────────────────────────────────────────────────────────

const pure = suite("server: bytes and sleeps");

/** What `asked` holds, as text: `3 plain` for three plain pings, `#7` for a numbered one. */
const inWords = ({ waiting }: Asked): string =>
  waiting
    .map(({ number, times }) => (number === undefined ? `${times} plain` : `#${number}`))
    .join(" ");

pure("counts whole PING!s however they are sliced or glued together", () => {
  const stream = Buffer.from("PING!".repeat(7));
  for (const size of [1, 2, 3, 4, 5, 6, 9, 35]) {
    const asked = nothingAsked();
    for (let at = 0; at < stream.length; at += size)
      assert.is(countPings(asked, stream.subarray(at, at + size)), undefined);
    assert.is(inWords(asked), "7 plain", `slices of ${size}`);
    assert.is(asked.matched, 0);
  }
});

pure("reads numbered pings among plain ones, in their order, however they are sliced", () => {
  const stream = Buffer.from("PING!PING!PING 0!PING 4711!PING!PING 4294967295!PING 10!");
  for (let size = 1; size <= stream.length; size++) {
    const asked = nothingAsked();
    for (let at = 0; at < stream.length; at += size)
      assert.is(countPings(asked, stream.subarray(at, at + size)), undefined);
    assert.is(inWords(asked), "2 plain #0 #4711 1 plain #4294967295 #10", `slices of ${size}`);
  }
});

pure("names the first byte that is no part of a PING!", () => {
  const asked = nothingAsked();
  assert.is(countPings(asked, Buffer.from("PING!PIXG!")), "X".charCodeAt(0));
  const begun = nothingAsked();
  countPings(begun, Buffer.from("PING"));
  assert.is(countPings(begun, Buffer.from("P")), "P".charCodeAt(0));
});

for (const [text, wrong] of [
  ["PING x!", "x"],
  ["PING !", "!"],
  ["PING 99999999999!", "9"],
  ["PING 4294967296!", "6"],
  ["PING 00!", "0"],
  ["PING 07!", "7"],
  ["PING -1!", "-"],
  ["PING 1.5!", "."],
  ["PING  1!", " "],
  ["PING 1 !", " "],
  ["PING1!", "1"],
  ["PING 1\n", "\n"],
] as const) {
  pure(`${JSON.stringify(text)} is a protocol error`, () => {
    assert.is(countPings(nothingAsked(), Buffer.from(text)), wrong.charCodeAt(0));
  });
}

pure("remembers a PING! that has only begun", () => {
  const asked = nothingAsked();
  countPings(asked, Buffer.from("PING!PING 12"));
  assert.is(inWords(asked), "1 plain");
  assert.equal([asked.matched, asked.number], [7, 12]);
});

pure("the sleeps of numbers have the distribution of the others", () => {
  for (const stride of [1, 0x9e3779b1]) {
    const sleeps = Array.from({ length: 20_000 }, (_, i) =>
      sleepOfNumber({ mean: 5, sd: 0.2 }, Math.imul(i, stride) >>> 0, 0),
    );
    const mean = sleeps.reduce((sum, seconds) => sum + seconds, 0) / sleeps.length;
    const square = sleeps.reduce((sum, seconds) => sum + (seconds - mean) ** 2, 0);
    const sd = Math.sqrt(square / sleeps.length);
    assert.ok(Math.abs(mean - 5) < 0.006, `mean ${mean}`); // four standard errors
    assert.ok(Math.abs(sd - 0.2) < 0.004, `sd ${sd}`);
  }
});

pure("a number costs as much more in a slow phase as the mean says", () => {
  const work = { mean: 5, sd: 0.2, slow: { from: 4, to: 8, mean: 6 } };
  const difference = sleepOfNumber(work, 4711, 4) - sleepOfNumber(work, 4711, 3.9);
  assert.ok(Math.abs(difference - 1) < 1e-9, String(difference));
});

pure("sleeps have the mean and the deviation asked for", () => {
  const random = mulberry32(1);
  const sleeps = Array.from({ length: 20_000 }, () => drawSleep({ mean: 5, sd: 0.2 }, random, 0));
  const mean = sleeps.reduce((sum, seconds) => sum + seconds, 0) / sleeps.length;
  const sd = Math.sqrt(
    sleeps.reduce((sum, seconds) => sum + (seconds - mean) ** 2, 0) / sleeps.length,
  );
  assert.ok(Math.abs(mean - 5) < 0.006, `mean ${mean}`); // four standard errors
  assert.ok(Math.abs(sd - 0.2) < 0.004, `sd ${sd}`);
});

pure("a negative sleep is drawn again, not cut off at 0", () => {
  const random = mulberry32(2);
  const sleeps = Array.from({ length: 2000 }, () => drawSleep({ mean: 0, sd: 1 }, random, 0));
  assert.ok(sleeps.every((seconds) => seconds > 0));
});

pure("the same seed draws the same sleeps", () => {
  const [a, b] = [mulberry32(3), mulberry32(3)];
  for (let i = 0; i < 5; i++)
    assert.is(drawSleep({ mean: 0.5, sd: 0.2 }, a, i), drawSleep({ mean: 0.5, sd: 0.2 }, b, i));
});

pure("a slow phase changes the mean from its first moment until just before its last", () => {
  const work = { mean: 0.1, sd: 0, slow: { from: 4, to: 8, mean: 0.6 } };
  assert.equal(
    [0, 3.9, 4, 7.9, 8].map((elapsed) => drawSleep(work, Math.random, elapsed)),
    [0.1, 0.1, 0.6, 0.6, 0.1],
  );
});

pure("reads a slow phase, and refuses one that is none", () => {
  assert.equal(slowPhase.read("4-8.5:0.6"), { from: 4, to: 8.5, mean: 0.6 });
  for (const text of ["8-4:1", "4-4:1", "4-8", "4:1", "a-b:c", "4-8:", "1.2.3-4:1"])
    assert.is(slowPhase.read(text), undefined, text);
});

pure.run();

// ─── Answers ─────────────────────────────────────────────────────────────────

const answers = suite("server: answers");
answers.after.each(cleanUp);

answers("every PING! gets a PONG!, glued together or byte by byte", async () => {
  const { port } = await serve();
  const { socket, received } = await dial(port);
  socket.setNoDelay(true).write("PING!PING!PI");
  await until(() => received() === pongs(2), "two answers");
  for (const byte of "NG!PING!") {
    socket.write(byte);
    await new Promise((resolve) => setImmediate(resolve));
  }
  await until(() => received() === pongs(4), "four answers");
});

answers(
  "one at a time, whenever they were asked: four sleeps of 20 ms take 80 ms together",
  async () => {
    const { port } = await serve({ mean: 0.02 });
    const { socket, received } = await dial(port);
    const before = performance.now();
    for (const pings of ["PING!", "PING!PING!", "PING!"]) {
      socket.setNoDelay(true).write(pings);
      await new Promise((resolve) => setTimeout(resolve, 3));
    }
    await until(() => received() === pongs(4), "four answers");
    assert.ok(performance.now() - before > 75); // timers may fire 1 ms early
  },
);

answers(
  "a client that ends after its PING!s still gets all its answers, then the end",
  async () => {
    const { port } = await serve({ mean: 0.01 });
    const { socket, received, ended } = await dial(port);
    socket.end("PING!".repeat(3));
    assert.is(await ended(), "end");
    assert.is(received(), pongs(3));
  },
);

/** Asks for each number on a connection of its own, and returns how many ms each answer took. */
async function askNumbers(port: number, numbers: readonly number[]): Promise<Map<number, number>> {
  const taken = numbers.map(async (number) => {
    const { socket, received } = await dial(port);
    const before = performance.now();
    socket.write(`PING ${number}!`);
    await until(() => received() === pongs(1), "an answer");
    return [number, performance.now() - before] as const;
  });
  return new Map(await Promise.all(taken));
}

answers("the same number costs the same on two servers, whoever was there before", async () => {
  const work = { mean: 0.1, sd: 0.05 };
  const numbers = [5, 1, 4_294_967_295, 77];
  const [one, other] = [await serve({ ...work, seed: 1 }), await serve({ ...work, seed: 2 })];
  const forwards = await askNumbers(one.port, numbers);
  const backwards = await askNumbers(other.port, numbers.toReversed());
  for (const number of numbers) {
    const ms = sleepOfNumber(work, number, 0) * 1000;
    for (const taken of [forwards.get(number) ?? 0, backwards.get(number) ?? 0])
      // never early; a busy machine may be late
      assert.ok(taken > ms - 2 && taken < ms + 200, `${number}: ${taken} ms, drawn ${ms} ms`);
  }
});

answers("1,024 numbered pings may wait; those behind them wait in the kernel", async () => {
  const { port } = await serve({ mean: 1000 });
  const { socket } = await dial(port);
  const sent = deferred<void>();
  socket.write("PING 7!".repeat(3_000_000), () => sent.resolve());
  const paused = new Promise((resolve) => setTimeout(resolve, 200, "paused"));
  assert.is(await Promise.race([sent.promise, paused]), "paused");
});

answers("many numbered pings at once are all answered, in the order of their asking", async () => {
  const { port } = await serve();
  const { socket, received, ended } = await dial(port);
  socket.end("PING 7!PING!".repeat(20_000));
  assert.is(await ended(), "end");
  assert.is(received(), pongs(40_000));
});

answers("a wrong number resets the connection at once, and is logged", async () => {
  const { port, log } = await serve({ mean: 1000 });
  const { socket, ended } = await dial(port);
  socket.write("PING 1!PING 01!");
  assert.is(await ended(), "ECONNRESET");
  assert.match(log.join("\n"), /Protocol error of client .*: byte 0x31 is no part of "PING!"/);
});

answers("a wrong byte resets the connection at once, and is logged", async () => {
  const { port, log } = await serve({ mean: 1000 });
  const { socket, ended } = await dial(port);
  socket.write("PING!GET /");
  assert.is(await ended(), "ECONNRESET");
  assert.ok(
    log.some((line) => /Protocol error of client 127\.0\.0\.1:\d+: byte 0x47/.test(line)),
    log.join("\n"),
  );
});

answers("an end in the middle of a PING! is logged, and the whole ones are answered", async () => {
  const { port, log } = await serve();
  const { socket, received, ended } = await dial(port);
  socket.end("PING!PING!PIN");
  assert.is(await ended(), "end");
  assert.is(received(), pongs(2));
  assert.ok(
    log.some((line) => line.includes('ends 3 bytes into a "PING!"')),
    log.join("\n"),
  );
});

/**
 * Asks for more than the kernel's buffers hold, and reads nothing; all of it leaves, because the
 * server reads on.
 */
async function askMuch(port: number, asked: number): Promise<Dialled> {
  const dialled = await dial(port);
  dialled.socket.pause().removeAllListeners("data");
  const sent = deferred<void>();
  dialled.socket.write("PING!".repeat(asked), () => sent.resolve());
  await within(sent.promise, "a server that reads what it cannot answer yet");
  return dialled;
}

answers("a client that asks much and reads late loses no answer", async () => {
  const { port } = await serve();
  const asked = 2_500_000;
  const { socket, ended } = await askMuch(port, asked);
  let bytes = 0;
  socket
    .on("data", (chunk) => {
      bytes += chunk.length;
    })
    .resume()
    .end();
  assert.is(await ended(), "end");
  assert.is(bytes, asked * 5);
});

answers("for a client that asks much and never reads, answers are not piled up", async () => {
  const { server, port, log } = await serve();
  // 30 MB: far more than two kernel buffers, so most of it was read, and less than half of it can
  // be written
  const asked = 6_000_000;
  const { socket } = await askMuch(port, asked);
  socket.resetAndDestroy();
  await until(() => server.counts.served === 0, "leaving");
  const [, answered] = /after (\d+) answers/.exec(log.at(-1) ?? "") ?? [];
  assert.ok(Number(answered) < asked / 2, `${answered} of ${asked} answers were written`);
});

answers("a client that leaves in the middle of a sleep frees its slot and its timer", async () => {
  const { server, port } = await serve({ mean: 1000 });
  const { socket } = await dial(port);
  socket.write("PING!");
  await until(() => server.counts.served === 1, "being served");
  socket.resetAndDestroy();
  await until(() => server.counts.served === 0, "leaving");
  await within(server.close(), "closing");
});

answers.run();

// ─── Slots ───────────────────────────────────────────────────────────────────

const slots = suite("server: slots");
slots.after.each(cleanUp);

/** One client that holds the only slot, and others that wait behind it. */
async function crowd(
  waiting: number,
): Promise<{ server: PingServer; holder: Dialled; others: Dialled[] }> {
  const { server, port } = await serve({ maxConnections: 1 });
  const holder = await dial(port);
  const others: Dialled[] = [];
  for (let i = 0; i < waiting; i++) others.push(await dial(port));
  await until(() => server.counts.waiting === waiting, "waiting");
  return { server, holder, others };
}

slots(
  "a slot is held until the connection closes, then goes to who has waited longest",
  async () => {
    const {
      holder,
      others: [first, second],
    } = await crowd(2);
    assert.ok(first && second);
    second.socket.write("PING!"); // asks first, and is second all the same
    first.socket.write("PING!");
    holder.socket.write("PING!");
    await until(() => holder.received() === pongs(1), "the holder's answer");
    assert.is(first.received() + second.received(), "");
    holder.socket.end();
    await until(() => first.received() === pongs(1), "the first one's answer");
    assert.is(second.received(), "");
    first.socket.end();
    await until(() => second.received() === pongs(1), "the second one's answer");
  },
);

slots("a waiting client that ends without having asked gives up its place at once", async () => {
  const { server, others } = await crowd(2);
  others[0]?.socket.end();
  await until(() => server.counts.waiting === 1, "giving up");
});

slots(
  "a waiting client that resets gives up its place at once, also right behind a PING!",
  async () => {
    const { server, others } = await crowd(3);
    others[0]?.socket.resetAndDestroy();
    others[1]?.socket.write("PING!");
    others[1]?.socket.resetAndDestroy();
    await until(() => server.counts.waiting === 1, "giving up");
  },
);

slots(
  "a waiting client that ends after its PING!s keeps its place and gets its answers",
  async () => {
    const {
      server,
      holder,
      others: [patient],
    } = await crowd(1);
    assert.ok(patient);
    patient.socket.end("PING!PING!");
    await new Promise((resolve) => setTimeout(resolve, 20)); // nothing is to happen
    assert.is(server.counts.waiting, 1);
    holder.socket.destroy();
    assert.is(await patient.ended(), "end");
    assert.is(patient.received(), pongs(2));
  },
);

slots("a waiting client is read, too: its first wrong byte resets it", async () => {
  const { others } = await crowd(1);
  others[0]?.socket.write("PONG!");
  assert.is(await others[0]?.ended(), "ECONNRESET");
});

slots("a connection without a byte, as a health check's, is no client in the log", async () => {
  const { server, port, log } = await serve({ maxConnections: 1 });
  const [ending, resetting, waiting] = [await dial(port), await dial(port), await dial(port)];
  resetting.socket.resetAndDestroy();
  ending.socket.end();
  waiting.socket.end();
  await until(() => server.counts.served + server.counts.waiting === 0, "leaving");
  assert.equal(log, []);
});

slots(
  "a client that waits is logged when it asks, when it is served and when it goes",
  async () => {
    const { server, port, log } = await serve({ maxConnections: 1 });
    const [holder, other] = [await dial(port), await dial(port)];
    other.socket.end("PING!");
    await until(() => log.length === 1, "the other one waiting");
    holder.socket.end();
    await until(() => server.counts.served + server.counts.waiting === 0, "leaving");
    const lines = log.map((line) => line.replace(/127\.0\.0\.1:\d+/, "X"));
    assert.equal(lines, [
      "Connected client X, who waits for a slot with 0 before it",
      "Serving client X",
      "Closed client X after 1 answers",
    ]);
  },
);

slots.run();

// ─── Ending ──────────────────────────────────────────────────────────────────

const ending = suite("server: ending");
ending.after.each(cleanUp);

ending(
  "closing finishes the answer in progress, ends all connections and refuses new ones",
  async () => {
    const { server, port } = await serve({ mean: 0.1, maxConnections: 2 });
    const [busy, idle, waiting] = [await dial(port), await dial(port), await dial(port)];
    busy.socket.write("PING!PING!");
    await until(
      () => server.counts.served === 2 && server.counts.waiting === 1,
      "two served, one waiting",
    );
    await new Promise((resolve) => setTimeout(resolve, 20)); // well into the first sleep
    const closed = server.close();
    for (const { socket, ended } of [idle, waiting, busy]) {
      assert.is(await ended(), "end");
      socket.end();
    }
    assert.equal(
      [busy, idle, waiting].map(({ received }) => received()),
      ["PONG!", "", ""],
    );
    await within(closed, "closing");
    assert.match(await dial(port).then(() => "connected", String), "ECONNREFUSED");
  },
);

ending("closing does not wait for a client that never ends its side", async () => {
  const { server, port } = await serve();
  const { ended } = await dial(port);
  await until(() => server.counts.served === 1, "being served");
  const closed = server.close();
  assert.is(await ended(), "end");
  await within(closed, "closing", 5);
});

ending("a port in use is a RunError", async () => {
  const { port } = await listening(() => undefined);
  const error: unknown = await serve({ port }).catch((error: unknown) => error);
  assert.instance(error, RunError);
});

ending.run();

// ─── The program ─────────────────────────────────────────────────────────────

const program = suite("server.ts");
program.after.each(cleanUp);

for (const signal of ["SIGINT", "SIGTERM"] as const) {
  program(`says where it listens, logs its clients, and ends with 0 on ${signal}`, async () => {
    const { child, output, exited, printed } = start("server.ts", [
      "127.0.0.1",
      "0",
      "--mean",
      "0",
      "--sd",
      "0",
    ]);
    const [, port] = await printed(/^Listening on 127\.0\.0\.1:(\d+)\n/);
    const { socket, received } = await dial(Number(port));
    socket.write("PING!");
    await until(() => received() === pongs(1), "an answer");
    socket.end();
    await printed(
      /Serving client 127\.0\.0\.1:\d+\nClosed client 127\.0\.0\.1:\d+ after 1 answers\n/,
    );
    child.kill(signal);
    assert.is(await within(exited, "server.ts"), 0);
    assert.is(output.stderr, "");
  });
}

program("says where it listens with --log none, and nothing else", async () => {
  const { child, output, exited, printed } = start("server.ts", [
    "127.0.0.1",
    "0",
    "--mean",
    "0",
    "--sd",
    "0",
    "--log",
    "none",
  ]);
  const [line, port] = await printed(/^Listening on 127\.0\.0\.1:(\d+)\n/);
  const { socket, ended } = await dial(Number(port));
  socket.end("PING!");
  await ended();
  child.kill("SIGTERM");
  await within(exited, "server.ts");
  assert.is(output.stdout, line);
});

program(
  "a second signal, later than a second, cuts an answer in progress and exits with 1",
  async () => {
    const { child, exited, printed } = start("server.ts", ["127.0.0.1", "0", "--mean", "1000"]);
    const [, port] = await printed(/^Listening on 127\.0\.0\.1:(\d+)\n/);
    const { socket, ended } = await dial(Number(port));
    socket.write("PING!");
    await printed(/Serving client/);
    child.kill("SIGTERM");
    // one that comes too early counts as a repeat, the next one does not
    const again = setInterval(() => child.kill("SIGTERM"), 1050);
    later(() => clearInterval(again));
    assert.is(await ended(), "ECONNRESET");
    assert.is(await within(exited, "server.ts"), 1);
  },
);

program("listens on IPv6, written with brackets", async () => {
  if (
    !Object.values(networkInterfaces())
      .flat()
      .some((found) => found?.address === "::1")
  )
    return; // this machine has none
  const { child, exited, printed } = start("server.ts", ["[::1]", "0"]);
  await printed(/^Listening on \[::1\]:\d+\n/);
  child.kill("SIGTERM");
  assert.is(await within(exited, "server.ts"), 0);
});

const USAGE = "How to Use: tsx server.ts [host] [port]\n";
const badInput: [args: string[], stderr: string][] = [
  [[], USAGE],
  [
    ["127.0.0.1"],
    `Missing port after "127.0.0.1": expected a whole number from 0 to 65535\n${USAGE}`,
  ],
  [["127.0.0.1", "70000"], `Bad port "70000": expected a whole number from 0 to 65535\n${USAGE}`],
  [["not a host", "1"], `Bad host "not a host": expected a name or an address\n${USAGE}`],
  [["127.0.0.1", "0", "more"], `Bad argument "more": expected a host and a port only\n${USAGE}`],
  [
    ["127.0.0.1", "0", "--max-connections", "0"],
    `Bad --max-connections "0": expected a whole number from 1 to 1000000000\n${USAGE}`,
  ],
];

program("bad input is one line that quotes it, then the usage, and exit code 2", async () => {
  const expected = badInput.map(([, stderr]) => ({ code: 2, stdout: "", stderr }));
  assert.equal(await runEach(badInput.map(([args]) => ["server.ts", ...args])), expected);
  assert.equal(await run("server.ts"), expected[0], "and as a process of its own");
});

program("a port in use is one line and exit code 1", async () => {
  const { port } = await listening(() => undefined);
  assert.equal(await run("server.ts", ["127.0.0.1", String(port)]), {
    code: 1,
    stdout: "",
    stderr: `Cannot listen on 127.0.0.1:${port}: address already in use\n`,
  });
});

program.run();
