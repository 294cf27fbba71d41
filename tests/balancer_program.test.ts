/**
 * balancer_program.test.ts - load_balancer.ts as a program: command line, logs, signals,
 * descriptors. Child processes, real signals.
 */
import { execFileSync } from "node:child_process";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { algorithms, REASONS } from "../load_balancer.ts";
import {
  ask,
  cleanUp,
  DEAD,
  dial,
  echoing,
  listening,
  outcomeOf,
  run,
  type Running,
  serving,
  start,
  type Talk,
  until,
  within,
} from "./helpers.ts";

const SCRIPT = "load_balancer.ts";
const USAGE = `How to Use: tsx load_balancer.ts [algorithm]\nAvailable algorithms: ${Object.keys(algorithms).join(", ")}\n`;

/** Starts the program; it is ready, with its signal handlers set. */
async function startProgram(
  servers: readonly string[],
  options: readonly string[] = [],
  under: readonly string[] = [],
): Promise<Running & { port: number }> {
  const running = start(
    SCRIPT,
    ["round-robin", "--port", "0", "--check", "none", "--servers", servers.join(","), ...options],
    undefined,
    under,
  );
  const [, port] = await running.printed(/Listening on 127\.0\.0\.1:(\d+)\n/);
  return { ...running, port: Number(port) };
}

const exitOf = ({ exited }: Running): Promise<number | string> =>
  within(exited, "the program ending");
/** Waits until `port` no longer accepts. */
async function refused(port: number): Promise<void> {
  let outcome = "";
  while (outcome !== "ECONNREFUSED") {
    const client = await dial(port);
    client.socket.resetAndDestroy();
    outcome = await outcomeOf(client);
  }
}

// ─── Command line ────────────────────────────────────────────────────────────

const usage = suite("command line");
usage.after.each(cleanUp);

/** One line about the input, and how to use it. */
async function assertUsageError(args: readonly string[], line: string): Promise<void> {
  const { code, stdout, stderr } = await run(SCRIPT, args);
  assert.is(stderr, line + USAGE);
  assert.is(stdout, "");
  assert.is(code, 2);
}

const MISUSES: readonly (readonly [what: string, args: readonly string[], line: string])[] = [
  ["no arguments", [], ""],
  [
    "an unknown algorithm",
    ["fastest"],
    `Unknown algorithm "fastest": expected ${Object.keys(algorithms).join(", ")}\n`,
  ],
  [
    "a second algorithm",
    ["random", "round-robin"],
    'Bad argument "round-robin": expected one algorithm and options\n',
  ],
  [
    "a server without a port",
    ["random", "--servers", "127.0.0.1:80,localhost"],
    'Bad server "localhost": expected host:port or host:port*weight, with a port from 1 to 65535 and a weight from 1 to 1000\n',
  ],
  [
    "the same server twice",
    ["random", "--servers", "127.0.0.1:80,127.0.0.1:80*3"],
    'Bad server "127.0.0.1:80": expected each server once\n',
  ],
  [
    "a port above 65535",
    ["random", "--port", "70000"],
    'Bad --port "70000": expected a whole number from 0 to 65535\n',
  ],
];
for (const [what, args, line] of MISUSES)
  usage(`says what is wrong with ${what}, and exits with 2`, () => assertUsageError(args, line));

usage("says which options there are when it meets an unknown one", async () => {
  const { code, stderr } = await run(SCRIPT, ["random", "--sevrers", "a:1"]);
  assert.match(stderr, /^Unknown option "--sevrers": expected --host, .*--help\nHow to Use: /);
  assert.is(code, 2);
});

usage("says in one line that its port is in use, and exits with 1", async () => {
  const { port } = await listening(() => undefined);
  const { code, stdout, stderr } = await run(SCRIPT, ["random", "--port", String(port)]);
  assert.is(stderr, `Cannot listen on 127.0.0.1:${port}: address already in use\n`);
  assert.is(stdout, "");
  assert.is(code, 1);
});

usage(
  "takes a server for down whose name does not resolve, and serves with the others",
  async () => {
    const program = await startProgram(
      ["no-such-name.invalid:80", (await echoing()).address],
      ["--fall", "1"],
    );
    for (let i = 0; i < 3; i += 1) assert.is(await ask(program.port), "hello");
    await program.printed(/Server no-such-name\.invalid:80 is down: the name does not resolve\n/);
    assert.is(program.output.stderr, "");
  },
);

usage("lists every option and the defaults for --help, and exits with 0", async () => {
  const { code, stdout, stderr } = await run(SCRIPT, ["--help"]);
  assert.ok(stdout.startsWith(USAGE));
  for (const option of [
    "host",
    "port",
    "servers",
    "servers-file",
    "connect-timeout",
    "idle-timeout",
    "max-connections",
    "server-connections",
    "queue-timeout",
    "check",
    "check-interval",
    "fall",
    "rise",
    "reuse-port",
    "drain-timeout",
    "send-proxy",
    "slow-start",
    "admin",
    "log",
    "seed",
    "help",
  ]) {
    assert.match(stdout, new RegExp(`^  --${option} .*\\S`, "m"));
  }
  assert.match(stdout, /127\.0\.0\.1 with the ports 65433 to 65437/);
  assert.is(stderr, "");
  assert.is(code, 0);
});

usage.run();

// ─── Logs ────────────────────────────────────────────────────────────────────

const logs = suite("log");
logs.after.each(cleanUp);

logs(
  "says in text who was connected to whom, which ended badly, and which server is down",
  async () => {
    const moody = await listening((socket) => {
      socket.once("data", (chunk) => socket.write(chunk, () => socket.resetAndDestroy()));
    });
    const program = await startProgram([DEAD[0], moody.address], ["--fall", "1"]);
    const client = await dial(program.port);
    const name = `127.0.0.1:${client.socket.localPort}`;
    client.socket.write("hello");
    await outcomeOf(client);
    await program.printed(/ended/);
    assert.is(
      program.output.stdout.replace(/\d\.\d{3} s/, "T s"),
      [
        `Listening on 127.0.0.1:${program.port}`,
        `Server ${DEAD[0]} is down: connection refused`,
        `Connected client ${name} to server ${moody.address}`,
        `Connection of client ${name} to server ${moody.address} ended after T s: server_reset`,
        "",
      ].join("\n"),
    );
    assert.is(program.output.stderr, "");
  },
);

logs(
  "gives an object for each ended connection in json, and says on stderr which server is down",
  async () => {
    const echo = await echoing();
    const program = await startProgram([DEAD[0], echo.address], ["--fall", "1", "--log", "json"]);
    assert.is(await ask(program.port), "hello");
    await program.printed(/\}\n/);
    const [, line = "", ...rest] = program.output.stdout.trimEnd().split("\n");
    const entry: unknown = JSON.parse(line);
    assert.equal(rest, []);
    assert.match(
      line,
      /^\{"client":"127\.0\.0\.1:\d+","server":"127\.0\.0\.1:\d+","seconds":[\d.e-]+,"bytesToServer":5,"bytesToClient":5,"reason":"ok"\}$/,
    );
    assert.ok(
      typeof entry === "object" &&
        entry !== null &&
        "server" in entry &&
        entry.server === echo.address,
    );
    assert.is(program.output.stderr, `Server ${DEAD[0]} is down: connection refused\n`);
  },
);

logs("says nothing but where it listens when told so", async () => {
  const program = await startProgram(
    [DEAD[0], (await echoing()).address],
    ["--fall", "1", "--log", "none"],
  );
  assert.is(await ask(program.port), "hello");
  program.child.kill("SIGTERM");
  assert.is(await exitOf(program), 0);
  assert.equal(program.output, { stdout: `Listening on 127.0.0.1:${program.port}\n`, stderr: "" });
});

logs("may lose its reader without harm", async () => {
  const program = await startProgram([(await echoing()).address]);
  program.child.stdout?.destroy();
  for (let i = 0; i < 5; i += 1) {
    assert.is(await ask(program.port), "hello");
    // a write of the log between two of them
    await new Promise((resolve) => setTimeout(resolve, 60));
  }
  program.child.kill("SIGTERM");
  assert.is(await exitOf(program), 0);
  assert.is(program.output.stderr, "");
});

logs("may have a reader that is stuck without harm", async () => {
  const program = await startProgram([(await echoing()).address], ["--log", "json"]);
  program.child.stdout?.pause();
  for (let i = 0; i < 30; i += 1) {
    // 1,500 lines of 150 bytes: more than the pipe and its reader hold
    const answers = await Promise.all(Array.from({ length: 50 }, () => ask(program.port)));
    assert.equal([...new Set(answers)], ["hello"]);
  }
  program.child.stdout?.resume();
  program.child.kill("SIGTERM");
  assert.is(await exitOf(program), 0);
  assert.is(program.output.stdout.split("\n").length, 1 + 1500 + 1, "and no line is lost");
});

logs.run();

// ─── Signals ─────────────────────────────────────────────────────────────────

const signals = suite("signals");
signals.after.each(cleanUp);

for (const signal of ["SIGTERM", "SIGINT"] as const) {
  signals(
    `${signal} refuses newcomers, lets an open connection finish, and exits with 0`,
    async () => {
      const program = await startProgram([(await echoing()).address]);
      const client = await dial(program.port);
      client.socket.write("hello");
      await until(() => client.size() === 5, "the echo");
      program.child.kill(signal);
      await refused(program.port);
      client.socket.end(" again");
      assert.is(await outcomeOf(client), "end");
      assert.is(client.bytes().toString(), "hello again");
      assert.is(await exitOf(program), 0);
      assert.is(program.output.stderr, "");
    },
  );
}

signals(
  "SIGTERM resets what is open after --drain-timeout, says how many, and exits with 1",
  async () => {
    const program = await startProgram([(await echoing()).address], ["--drain-timeout", "0.3"]);
    const clients = [await dial(program.port), await dial(program.port)];
    for (const client of clients) client.socket.write("hello");
    await until(() => clients.every((client) => client.size() === 5), "the echo");
    program.child.kill("SIGTERM");
    assert.equal(await Promise.all(clients.map(outcomeOf)), ["ECONNRESET", "ECONNRESET"]);
    assert.is(await exitOf(program), 1);
    assert.is(program.output.stderr, "2 connections were cut off when the drain ended\n");
    assert.is(program.output.stdout.match(/ended after .*: drain_forced/g)?.length, 2);
  },
);

signals("a second one ends it at once, but not a repeat within a second", async () => {
  const program = await startProgram([(await echoing()).address]);
  const client = await dial(program.port);
  client.socket.write("hello");
  program.child.kill("SIGTERM");
  await refused(program.port);
  program.child.kill("SIGTERM");
  const since = performance.now();
  await until(() => performance.now() - since > 1050, "a second passing");
  client.socket.write("hello");
  await until(() => client.size() === 10, "the echo");
  program.child.kill("SIGTERM");
  assert.is(await outcomeOf(client), "ECONNRESET");
  assert.is(await exitOf(program), 1);
  assert.is(program.output.stderr, "1 connection was cut off when the drain ended\n");
});

signals("SIGTERM lets 100 busy connections finish", async () => {
  const program = await startProgram([(await echoing()).address, (await echoing()).address]);
  const clients = await Promise.all(Array.from({ length: 100 }, () => dial(program.port)));
  for (const client of clients) client.socket.write("x".repeat(100_000));
  await until(() => clients.every((client) => client.size() > 0), "the echoes");
  program.child.kill("SIGTERM");
  await refused(program.port);
  for (const client of clients) client.socket.end("x".repeat(100_000));
  assert.equal([...new Set(await Promise.all(clients.map(outcomeOf)))], ["end"]);
  assert.equal([...new Set(clients.map((client) => client.size()))], [200_000]);
  assert.is(await exitOf(program), 0);
});

signals("SIGTERM lets a queued client be served", async () => {
  const server = await serving();
  const program = await startProgram([server.address], ["--server-connections", "1"]);
  const [first, second] = [await dial(program.port), await dial(program.port)];
  second.socket.end("hello");
  const held = await server.next();
  program.child.kill("SIGTERM");
  await refused(program.port);
  first.socket.end();
  held.socket.end();
  const next = await server.next();
  assert.is(await outcomeOf(next), "end");
  next.socket.end("and hello to you");
  assert.is(await outcomeOf(second), "end");
  assert.is(second.bytes().toString(), "and hello to you");
  assert.is(await exitOf(program), 0);
});

signals.run();

// ─── Descriptors ─────────────────────────────────────────────────────────────

const descriptors = suite("descriptors");
descriptors.after.each(cleanUp);

const hasPrlimit = ((): boolean => {
  try {
    return execFileSync("prlimit", ["--version"]).length > 0;
  } catch {
    return false; // not a Linux with util-linux
  }
})();

(hasPrlimit ? descriptors : descriptors.skip)(
  "out of them, it refuses and counts, serves those who are in, and recovers",
  async () => {
    const echo = await echoing();
    const program = await startProgram(
      [echo.address],
      ["--log", "json"],
      ["prlimit", "--nofile=128"],
    );
    const clients = await Promise.all(Array.from({ length: 300 }, () => dial(program.port)));
    let resets = 0;
    const over = new Set<Talk>();
    for (const client of clients)
      void client.outcome.then((outcome) => {
        over.add(client);
        if (outcome === "ECONNRESET") resets += 1;
      });
    for (const client of clients) client.socket.write("hello");
    await until(
      () => clients.every((client) => over.has(client) || client.size() === 5),
      "an echo or a reset for each",
    );
    const open = clients.filter((client) => !over.has(client));
    assert.ok(open.length >= 20 && open.length <= 64, `${open.length} of 300 were served`);
    assert.is(resets, 300 - open.length);
    for (const client of open) client.socket.end(" again");
    assert.equal([...new Set(await Promise.all(open.map(outcomeOf)))], ["end"]);
    assert.equal([...new Set(open.map((client) => client.bytes().toString()))], ["hello again"]);
    assert.is(await ask(program.port), "hello", "there is room again");
    program.child.kill("SIGTERM");
    assert.is(await exitOf(program), 0);
    const counts = Object.fromEntries(
      REASONS.map((reason) => [
        reason,
        program.output.stdout.split(`"reason":"${reason}"`).length - 1,
      ]).filter(([, count]) => count !== 0),
    );
    assert.equal(counts, { ok: open.length + 1, limit: resets });
  },
);

(hasPrlimit ? descriptors : descriptors.skip)(
  "a limit that is too high for them is lowered, and that is said",
  async () => {
    const program = await startProgram(
      [(await echoing()).address],
      ["--max-connections", "1000"],
      ["prlimit", "--nofile=128"],
    );
    assert.is(await ask(program.port), "hello");
    assert.match(
      program.output.stderr,
      /^--max-connections 1000 needs \d+ file descriptors and the limit is 128: allowing \d+\n$/,
    );
  },
);

descriptors.run();
