/**
 * balancer_program.test.ts - load_balancer.ts as a program: command line, logs, signals,
 * descriptors. Child processes, real signals.
 */
import { execFileSync } from "node:child_process";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { ALGORITHMS, OPTIONS, REASONS } from "../load_balancer.ts";
import {
  ask,
  cleanUp,
  coverNoChildren,
  DEAD,
  dial,
  echoing,
  later,
  listening,
  outcomeOf,
  run,
  runEach,
  type Running,
  serving,
  start,
  startNode,
  swallowing,
  type Talk,
  temporaryFolder,
  until,
  within,
} from "./helpers.ts";

const SCRIPT = "load_balancer.ts";
const USAGE = `How to Use: tsx load_balancer.ts [algorithm]\nAvailable algorithms: ${ALGORITHMS.join(", ")}\n`;

/** A seed by which turns begin with the first server. */
const IN_ORDER = "1876";

/** Starts the program; it is ready, with its signal handlers set. */
async function startProgram(
  servers: readonly string[],
  options: readonly string[] = [],
  under: readonly string[] = [],
): Promise<Running & { port: number }> {
  const running = start(
    SCRIPT,
    [
      ...["round-robin", "--port", "0", "--check", "none", "--seed", IN_ORDER],
      ...["--servers", servers.join(","), ...options],
    ],
    undefined,
    under,
  );
  const [, port] = await running.printed(/(?:Listening on |"address":")127\.0\.0\.1:(\d+)"?\}?\n/);
  return { ...running, port: Number(port) };
}

/** `script` of util-linux, which runs a command on a terminal of its own. */
const hasTerminals = ((): boolean => {
  try {
    return execFileSync("script", ["--version"]).toString().includes("util-linux");
  } catch {
    return false;
  }
})();

const hasShell = ((): boolean => {
  try {
    execFileSync("sh", ["-c", "exit 0"]);
    return process.platform !== "win32";
  } catch {
    return false;
  }
})();

/** The program with `args`, as a shell is told to run it. */
function shellWords(args: readonly string[]): string {
  const words = [process.execPath, "--import", import.meta.resolve("tsx"), SCRIPT, ...args];
  return words.map((word) => `'${word}'`).join(" ");
}

/** The program on a terminal; `hangUp` closes that. */
async function onTerminal(options: readonly string[]) {
  const words = ["round-robin", "--port", "0", "--check", "none", ...options];
  const command = `echo pid $$; exec ${shellWords(words)}`;
  const args = ["-qfec", command, "/dev/null"];
  const code = `const { spawn } = require("node:child_process");
    const stdio = ["pipe", "inherit", "inherit"];
    console.log("terminal", spawn("script", ${JSON.stringify(args)}, { stdio }).pid);`;
  const running = startNode(["-e", code], "script");
  const pidAfter = async (word: string): Promise<number> => {
    const [, digits] = await running.printed(new RegExp(`${word} (\\d+)\\r?\\n`));
    later(() => isAlive(Number(digits)) && process.kill(Number(digits), "SIGKILL"));
    return Number(digits);
  };
  const [terminal, pid] = [await pidAfter("terminal"), await pidAfter("pid")];
  const [, port] = await running.printed(/Listening on 127\.0\.0\.1:(\d+)\r?\n/);
  const hangUp = (): boolean => process.kill(terminal, "SIGKILL");
  return { ...running, pid, port: Number(port), hangUp };
}

function isAlive(pid: number): boolean {
  try {
    return process.kill(pid, 0);
  } catch {
    return false;
  }
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

/** What a program that ended says of bad input: a line about it, and how to use it. */
const usageError = (line: string): Ended => ({ code: 2, stdout: "", stderr: line + USAGE });
type Ended = Awaited<ReturnType<typeof run>>;

const MISUSES: readonly (readonly [what: string, args: readonly string[], line: string])[] = [
  ["no arguments", [], ""],
  [
    "an unknown algorithm",
    ["fastest"],
    `Unknown algorithm "fastest": expected ${ALGORITHMS.join(", ")}\n`,
  ],
  [
    "a second algorithm",
    ["random", "round-robin"],
    'Bad argument "round-robin": expected one algorithm and options\n',
  ],
  [
    "a server without a port",
    ["random", "--servers", "127.0.0.1:80,localhost"],
    'Bad server "localhost": expected host:port, host:port*weight, or either with " backup" behind it, with a port from 1 to 65535 and a weight from 0 to 1000\n',
  ],
  [
    "the same server twice",
    ["random", "--servers", "127.0.0.1:80,127.0.0.1:80*3"],
    'Bad server "127.0.0.1:80": expected each server once\n',
  ],
  [
    "--servers beside --servers-file",
    ["random", "--servers", "127.0.0.1:80", "--servers-file", "a"],
    'Bad --servers-file "a": expected either --servers or --servers-file\n',
  ],
  [
    "a check at two ports",
    ["random", "--check", "http:80", "--check-port", "81"],
    'Bad --check "http:80": expected no port in it beside --check-port\n',
  ],
  [
    "a port above 65535",
    ["random", "--port", "70000"],
    'Bad --port "70000": expected a whole number from 0 to 65535\n',
  ],
];
const misused: Ended[] = [];
usage.before(async () => {
  misused.push(...(await runEach(MISUSES.map(([, args]) => [SCRIPT, ...args]))));
  await cleanUp();
});
for (const [place, [what, , line]] of MISUSES.entries())
  usage(`says what is wrong with ${what}, and exits with 2`, () => {
    assert.equal(misused[place], usageError(line));
  });

usage("says so as a process of its own, too", async () => {
  assert.equal(await run(SCRIPT), usageError(""));
});

usage("says which option was meant, or which there are, when it meets an unknown one", async () => {
  const [near, far] = await runEach(
    ["--sevrers", "--bananas"].map((option) => [SCRIPT, "random", option, "a:1"]),
  );
  assert.is(near?.stderr, `Unknown option "--sevrers": did you mean --servers?\n${USAGE}`);
  assert.match(
    far?.stderr ?? "",
    /^Unknown option "--bananas": expected --host, .*--help\nHow to Use: /,
  );
  assert.equal([near?.code, far?.code], [2, 2]);
});

usage("says in one line that its port is in use, and exits with 1", async () => {
  const { port } = await listening(() => undefined);
  const { code, stdout, stderr } = await run(SCRIPT, ["random", "--port", String(port)]);
  assert.is(stderr, `Cannot listen on 127.0.0.1:${port}: address already in use\n`);
  assert.is(stdout, "");
  assert.is(code, 1);
});

usage("refuses itself as a server, by whatever address of this machine it is named", async () => {
  const { port, server: free } = await listening(() => undefined);
  await new Promise((resolve) => free.close(resolve)); // it was free, and is again
  const cases = [
    { host: "127.0.0.1", server: `127.0.0.1:${port}` },
    { host: "127.0.0.1", server: `0.0.0.0:${port}` },
    { host: "127.0.0.1", server: `[::ffff:127.0.0.1]:${port}` },
    { host: "0.0.0.0", server: `127.0.0.9:${port}` },
    { host: "localhost", server: `127.0.0.1:${port}` },
    { host: "127.1", server: `127.0.0.1:${port}` },
  ];
  const results = await runEach(
    cases.map(({ host, server }) => [
      ...[SCRIPT, "random", "--host", host, "--port", String(port)],
      ...["--servers", `127.0.0.1:9,${server}`],
    ]),
  );
  const expected = "expected another address than the one that the balancer listens on";
  assert.equal(
    results,
    cases.map(({ server }) => usageError(`Bad server "${server}": ${expected}\n`)),
  );
});

usage(
  "takes a server for down whose name does not resolve, and serves with the others",
  async () => {
    const program = await startProgram(
      ["no-such-name.invalid:80", (await echoing()).address],
      ["--fall", "1"],
    );
    for (let i = 0; i < 3; i += 1) assert.is(await ask(program.port), "hello");
    await until(() => program.output.stderr.endsWith("\n"), "the resolver giving up");
    assert.is(
      program.output.stderr,
      "Cannot look up no-such-name.invalid: the name does not resolve; no connection goes there\n",
    );
  },
);

const OPTION_NAMES = [
  ...["abort-on-close", "accept-proxy", "admin", "admin-writable", "check", "check-interval"],
  ...["check-port", "client-connections", "connect-timeout", "drain-delay", "drain-timeout"],
  ...["fall", "host", "idle-timeout", "log", "max-connections", "on-down", "port"],
  ...["queue-timeout", "retry-for", "reuse-port", "rise", "seed", "send-proxy"],
  ...["server-connections", "servers", "servers-file", "slow-start"],
];

usage("lists every option and the defaults for --help, and exits with 0", async () => {
  const { code, stdout, stderr } = await run(SCRIPT, ["--help"]);
  assert.ok(stdout.startsWith(USAGE));
  const names = Object.keys(OPTIONS).map((key) => key.replace(/[A-Z]/g, "-$&").toLowerCase());
  assert.equal([...names].sort(), OPTION_NAMES);
  for (const name of [...names, "help"])
    assert.match(stdout, new RegExp(`^  --${name} .*\\S`, "m"));
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
        `Connection of client ${name} to server ${moody.address} ended after T s: server_reset (tried ${DEAD[0]}: connection refused)`,
        "",
      ].join("\n"),
    );
    assert.is(program.output.stderr, "");
  },
);

interface Entry {
  readonly event: string;
  readonly time: string;
  readonly why?: string;
  readonly [field: string]: unknown;
}
/** The objects that a program has printed so far; each has a time. */
function entriesOf({ output }: Running): Entry[] {
  const lines = output.stdout.split("\n").slice(0, -1);
  const entries: Entry[] = lines.map((line) => JSON.parse(line));
  for (const { time } of entries) assert.match(time, /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/);
  return entries;
}
const ANY_TIMES = { seconds: 0, queued: 0, connect: 0, firstByte: 0 };
/** Without times, and without the words for what the event says already. */
function lasting({ time: _, why, ...fields }: Entry): object {
  if (fields.event === "end") return { ...fields, ...ANY_TIMES };
  return fields["state"] === "down" ? { ...fields, why } : fields;
}

logs("in json says everything in objects, each with a time and an event", async () => {
  const echo = await echoing();
  const program = await startProgram(
    [DEAD[0], echo.address],
    ["--fall", "1", "--check-interval", "1000", "--log", "json", "--admin", "0"],
  );
  const client = await dial(program.port);
  const { localPort } = client.socket;
  client.socket.write("hello");
  await until(() => client.size() === 5, "the echo");
  client.socket.end(" you");
  await outcomeOf(client);
  await program.printed(/"event":"end"/);
  const [, admin] = await program.printed(/"event":"admin","address":"127\.0\.0\.1:(\d+)"/);
  for (const path of [`servers/${echo.address}/drain`, `servers/${echo.address}/ready`])
    assert.is(await post(Number(admin), path), 200);
  assert.is(await post(Number(admin), "algorithm/random"), 200);
  program.child.kill("SIGTERM");
  assert.is(await exitOf(program), 0);
  const entries = entriesOf(program);
  const end = entries.find(({ event }) => event === "end");
  for (const name of ["seconds", "queued", "connect", "firstByte"]) {
    const seconds = Number(end?.[name]);
    assert.ok(seconds >= 0 && seconds < 10, `${name} is in seconds: ${end?.[name]}`);
  }
  assert.equal(entries.map(lasting), [
    { event: "listening", address: `127.0.0.1:${program.port}` },
    { event: "admin", address: `127.0.0.1:${admin}` },
    {
      event: "server",
      server: DEAD[0],
      state: "down",
      by: "client",
      why: "connection refused",
    },
    {
      event: "end",
      client: `127.0.0.1:${localPort}`,
      server: echo.address,
      ...ANY_TIMES,
      bytesToServer: 9,
      bytesToClient: 9,
      reason: "ok",
      tried: [{ server: DEAD[0], why: "connection refused" }],
    },
    { event: "server", server: echo.address, state: "draining", by: "admin" },
    { event: "server", server: echo.address, state: "ready", by: "admin" },
    { event: "algorithm", from: "round-robin", to: "random" },
    { event: "drain", active: 0 },
    { event: "stopped", cut: 0 },
  ]);
  assert.is(program.output.stderr, "");
});

logs("in json gives the time of the connect alone, and from there of the first byte", async () => {
  const { address, wake } = await swallowing(); // a connect takes a second
  const program = await startProgram(
    [address],
    ["--log", "json", "--accept-proxy", "127.0.0.0/8", "--seed", IN_ORDER],
  );
  const client = await dial(program.port);
  await new Promise((resolve) => setTimeout(resolve, 200)); // as long as the header lets us wait
  client.socket.end("PROXY UNKNOWN\r\nhello");
  await new Promise((resolve) => setTimeout(resolve, 200)); // and its dial finds nobody awake
  wake();
  await outcomeOf(client);
  await program.printed(/"event":"end"/);
  const end = entriesOf(program).find(({ event }) => event === "end");
  const of = (name: string): number => Number(end?.[name]);
  const [seconds, connect, firstByte] = [of("seconds"), of("connect"), of("firstByte")];
  assert.ok(connect > 0 && firstByte > 0, `${connect} and ${firstByte} s`);
  const rest = seconds - connect - firstByte;
  assert.ok(rest >= 0.19, `${connect} and ${firstByte} of ${seconds} s`);
});

logs("escapes in text whatever could move a terminal's cursor, also above U+0080", async () => {
  const odd = await listening((socket) => {
    socket.write(Buffer.from("\x9b2J\x7f\x1b[1m", "latin1"));
  });
  const program = await startProgram(
    [odd.address],
    ["--check", "ping", "--check-interval", "0.1", "--fall", "1"],
  );
  const [, answer] = await program.printed(/is down: another answer than expected: "(.*)"\n/);
  assert.is(answer, String.raw`\x9b2J\x7f\u001b[1m`);
});

logs("and in json, where the text is the same again once it is read", async () => {
  const odd = await listening((socket) => {
    socket.write(Buffer.from("\x9b2J\x7f", "latin1"));
  });
  const checks = ["--check", "ping", "--check-interval", "0.1", "--fall", "1", "--log", "json"];
  const program = await startProgram([odd.address], checks);
  const [line] = await program.printed(/.*"state":"down".*/);
  assert.not.match(line, /[\x7f-\x9f]/);
  assert.match(JSON.parse(line).why, /\x9b2J/);
});

/** The code that a POST is answered with. */
async function post(admin: number, path: string): Promise<number> {
  const client = await dial(admin);
  client.socket.write(`POST /${path} HTTP/1.0\r\nHost: localhost\r\n\r\n`);
  await outcomeOf(client);
  return Number(/^HTTP\/1\.1 (\d{3}) /.exec(client.bytes().toString())?.[1]);
}

logs("names no server for who has reached none, and those it has tried", async () => {
  for (const format of ["json", "text"]) {
    const program = await startProgram([DEAD[0], DEAD[1]], ["--log", format]);
    assert.is(await ask(program.port), "ECONNRESET");
    await program.printed(/no_server.*\n/);
    if (format === "text") {
      assert.match(
        program.output.stdout,
        /Connection of client \S+ to no server ended after [\d.]+ s: no_server \(tried 127\.0\.0\.1:1: connection refused; 127\.0\.0\.1:2: connection refused\)\n/,
      );
      continue;
    }
    const end = entriesOf(program).find(({ event }) => event === "end");
    assert.equal(
      [end?.["server"], end?.["connect"], end?.["firstByte"], end?.["tried"]],
      [
        null,
        null,
        null,
        [DEAD[0], DEAD[1]].map((server) => ({ server, why: "connection refused" })),
      ],
    );
  }
});

logs("calls clients unanswered whose server ends with their requests", async () => {
  const server = await serving();
  const program = await startProgram([server.address]);
  const clients = await Promise.all(Array.from({ length: 5 }, () => dial(program.port)));
  for (const client of clients) client.socket.write("PING!");
  const held: Talk[] = [];
  for (let i = 0; i < 5; i += 1) held.push(await server.next());
  await until(() => held.every(({ size }) => size() === 5), "five requests");
  for (const { socket } of held) socket.end(); // as the kernel does for a process that is killed
  assert.equal([...new Set(await Promise.all(clients.map(outcomeOf)))], ["end"]);
  for (const client of clients) client.socket.end();
  await program.printed(/(?:ended after .*: unanswered\n[^]*){5}/);
});

logs("says when a server that was removed is gone", async () => {
  const [leaving, stays] = [await serving(), await echoing()];
  const file = join(await temporaryFolder(), "servers.txt");
  await writeFile(file, `${leaving.address}\n${stays.address}\n`);
  const program = start(SCRIPT, [
    ...["round-robin", "--port", "0", "--check", "none", "--servers-file", file],
    ...["--seed", IN_ORDER],
  ]);
  const [, port] = await program.printed(/Listening on 127\.0\.0\.1:(\d+)\n/);
  const client = await dial(Number(port));
  const held = await leaving.next();
  await writeFile(file, `${stays.address}\n`);
  program.child.kill("SIGHUP");
  await program.printed(/was removed: 1 of its connections go on\n/);
  assert.is(await ask(Number(port)), "hello", "and that is no end of the other one");
  assert.not.match(program.output.stdout, /is gone/);
  for (const { socket } of [client, held]) socket.end();
  await program.printed(
    new RegExp(`Server ${leaving.address} is gone: its last connection has ended\n`),
  );
  assert.is(program.output.stdout.match(/is gone/g)?.length, 1);
});

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
  assert.is(
    entriesOf(program).filter(({ event }) => event === "end").length,
    1500,
    "and no line is lost",
  );
});

logs("lines that a stuck reader costs are counted, and said when it reads again", async () => {
  const code = `import { LineWriter } from ${JSON.stringify(new URL("../lib.ts", import.meta.url).href)};
    const writer = new LineWriter();
    for (let i = 0; i < 30; i += 1) writer.write("x".repeat(100_000));
    setInterval(() => undefined, 1000); // it has more to do
    const look = setInterval(() => {
      if (process.stdout.writableLength < 2_000_000) return;
      clearInterval(look);
      for (let i = 0; i < 10; i += 1) writer.write("lost");
      console.error("full");
    }, 5);`;
  const program = startNode(
    ["--import", import.meta.resolve("tsx"), "--input-type=module", "-e", code],
    "a writer",
  );
  program.child.stdout?.pause();
  await until(() => program.output.stderr === "full\n", "more than the reader's share");
  program.child.stdout?.resume();
  const complaint = "10 log lines were dropped: their reader was too slow\n";
  await until(() => program.output.stderr === `full\n${complaint}`, "the complaint");
  const { output } = program;
  await until(() => output.stdout.length === 30 * 100_001, "what was taken, and no more");
});

logs.run();

// ─── A socket that is handed down ────────────────────────────────────────────

const sockets = suite("a socket that is handed down");
sockets.before(coverNoChildren); // nor do those of the suites behind it
sockets.after.each(cleanUp);

/** Runs the program to its end as systemd would start it, with `count` sockets. */
async function asked(pid: string, count: string, ...options: string[]) {
  const under = ["sh", "-c", `LISTEN_FDS=${count} LISTEN_PID=${pid} exec "$0" "$@"`];
  const program = start(SCRIPT, ["random", "--check", "none", ...options], undefined, under);
  const code = await within(program.exited, "the program's end", 30);
  return { code, stderr: program.output.stderr };
}

sockets("leaves no choice of host and port", async () => {
  const options = ["--port=0", "--host=127.0.0.1"];
  const under = ["sh", "-c", `LISTEN_FDS=1 LISTEN_PID=$$ exec "$0" "$@"`];
  const lines = options.map((option) => [SCRIPT, "random", "--check", "none", option]);
  const results = await runEach(lines, under);
  for (const [place, { code, stderr }] of results.entries()) {
    assert.is(code, 2);
    const complaint = `Bad option "${options[place]}": expected none beside LISTEN_FDS`;
    assert.ok(stderr.startsWith(complaint), stderr);
  }
});

sockets("is one socket", async () => {
  const { code, stderr } = await asked("$$", "2");
  assert.equal([code, stderr], [1, 'Bad LISTEN_FDS "2": expected one socket\n']);
});

sockets("for another process is left alone", async () => {
  const taken = await listening(() => undefined);
  const { code, stderr } = await asked("1", "1", `--port=${taken.port}`);
  assert.is(code, 1);
  assert.match(stderr, /^The inherited socket is for process 1, and this is \d+\n/);
  assert.match(stderr, /\nCannot listen on .*: address already in use\n$/);
});

/** Runs the program twice, one after the other, on a socket of a parent that accepts nobody. In
 *  `server`, PORT stands for the port of that socket. */
function inherited(server: string): Running {
  const words = shellWords(["random", "--check", "none", "--servers", server]);
  const command = `echo pid $$; LISTEN_FDS=1 LISTEN_PID=$$ exec ${words}`;
  const code = `const { spawnSync } = require("node:child_process");
    const server = require("node:net").createServer().listen(0, "127.0.0.1", () => {
      const stdio = ["ignore", "inherit", "inherit", server._handle.fd];
      for (const life of ["first", "second"]) {
        const command = ${JSON.stringify(command)}.replace("PORT", server.address().port);
        const { status } = spawnSync("sh", ["-c", command], { stdio });
        console.log("end of the", life, "with", status);
      }
      process.exit();
    });`;
  return startNode(["-e", code], "a parent with a socket");
}

(hasShell ? sockets : sockets.skip)("is served, and left to whoever comes next", async () => {
  const { printed, exited } = inherited((await echoing()).address);
  const ends = (pid: string | undefined): boolean => process.kill(Number(pid), "SIGTERM");
  const [, first, port] = await printed(/^pid (\d+)\nListening on 127\.0\.0\.1:(\d+)\n/);
  later(() => isAlive(Number(first)) && process.kill(Number(first), "SIGKILL"));
  assert.is(await ask(Number(port)), "hello");
  ends(first);
  await printed(/\nend of the first with 0\n/);
  assert.is(await ask(Number(port)), "hello", "who comes between them waits in the socket");
  const [, second] = await printed(/with 0\npid (\d+)\nListening on 127\.0\.0\.1:\d+\n/);
  later(() => isAlive(Number(second)) && process.kill(Number(second), "SIGKILL"));
  ends(second);
  await printed(/\nend of the second with 0\n/);
  assert.is(await within(exited, "the parent's end"), 0);
});

(hasShell ? sockets : sockets.skip)("is none of the balancer's own servers", async () => {
  const { exited, output } = inherited("127.0.0.1:PORT");
  assert.is(await within(exited, "the parent's end", 30), 0);
  assert.match(output.stdout, /\nend of the first with 2\n/);
  assert.match(output.stderr, /^Bad server "127\.0\.0\.1:\d+": expected another address than/);
});

sockets.run();

// ─── Signals ─────────────────────────────────────────────────────────────────

const signals = suite("signals");
signals.after.each(cleanUp);

for (const signal of ["SIGTERM", "SIGINT", "SIGQUIT"] as const) {
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
    assert.match(program.output.stdout, /\nStopping: 2 connections are open\n/);
    assert.is(program.output.stdout.match(/ended after .*: drain_forced/g)?.length, 2);
  },
);

signals("a repeat that comes while an idle one is ending already changes nothing", async () => {
  const { address } = await echoing();
  await Promise.all(
    [2, 5, 8, 11].map(async (delay) => {
      const program = await startProgram([address]);
      program.child.kill("SIGTERM");
      setTimeout(() => program.child.kill("SIGTERM"), delay);
      assert.is(await exitOf(program), 0);
    }),
  );
});

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

signals("SIGUSR1 and SIGUSR2 change nothing, which is said", async () => {
  const program = await startProgram([(await echoing()).address]);
  const client = await dial(program.port);
  client.socket.write("hello");
  await until(() => client.size() === 5, "the echo");
  for (const signal of ["SIGUSR1", "SIGUSR2"] as const) {
    program.child.kill(signal);
    const line = `${signal} changes nothing: SIGHUP reads the servers file\n`;
    await until(() => program.output.stderr.endsWith(line), line);
  }
  assert.is(await ask(program.port), "hello");
  client.socket.end("!");
  assert.is(await outcomeOf(client), "end");
});

signals("--drain-delay has /healthz say 503 while clients are still accepted", async () => {
  const program = await startProgram(
    [(await echoing()).address],
    ["--drain-delay", "0.7", "--admin", "0"],
  );
  const [, admin] = await program.printed(/Admin on http:\/\/127\.0\.0\.1:(\d+)\/\n/);
  const healthOf = async (): Promise<string> => {
    const client = await dial(Number(admin));
    client.socket.write("GET /healthz HTTP/1.0\r\n\r\n");
    await outcomeOf(client);
    return client.bytes().toString();
  };
  assert.match(await healthOf(), / 200 /);
  const since = performance.now();
  program.child.kill("SIGTERM");
  await program.printed(/Stopping: 0 connections are open\n/);
  assert.match(await healthOf(), / 503 [^]*draining\n$/);
  assert.is(await ask(program.port), "hello");
  assert.is(await exitOf(program), 0);
  const took = performance.now() - since;
  assert.ok(took > 690 && took < 5000, `it took ${took} ms`);
});

signals("a second one ends the drain delay, too", async () => {
  const program = await startProgram([(await echoing()).address], ["--drain-delay", "100"]);
  const client = await dial(program.port);
  client.socket.write("hello");
  await until(() => client.size() === 5, "the echo");
  program.child.kill("SIGTERM");
  await program.printed(/Stopping: 1 connection is open\n/);
  const since = performance.now();
  await until(() => performance.now() - since > 1050, "a second passing");
  program.child.kill("SIGTERM");
  assert.is(await outcomeOf(client), "ECONNRESET");
  assert.is(await exitOf(program), 1);
});

signals("SIGHUP without a terminal is never an end, with or without a servers file", async () => {
  const echo = await echoing();
  const program = await startProgram([echo.address]);
  program.child.kill("SIGHUP");
  program.child.kill("SIGUSR2"); // answered after it
  await until(() => program.output.stderr.includes("SIGUSR2"), "the next signal's answer");
  assert.is(await ask(program.port), "hello");
  program.child.kill("SIGTERM");
  assert.is(await exitOf(program), 0);
});

(hasTerminals ? signals : signals.skip)(
  "SIGHUP on a terminal ends it, without a servers file",
  async () => {
    const program = await onTerminal(["--servers", (await echoing()).address]);
    const client = await dial(program.port);
    client.socket.write("hello");
    await until(() => client.size() === 5, "the echo");
    process.kill(program.pid, "SIGHUP");
    await refused(program.port);
    client.socket.end("!");
    assert.is(await outcomeOf(client), "end");
    await until(() => !isAlive(program.pid), "the program ending");
  },
);

(hasTerminals ? signals : signals.skip)(
  "SIGHUP on a terminal reads the servers file, and ends it when the terminal has gone",
  async () => {
    const [before, after] = [await echoing(), await echoing()];
    const file = join(await temporaryFolder(), "servers.txt");
    await writeFile(file, `${before.address}\n`);
    const program = await onTerminal(["--servers-file", file]);
    await writeFile(file, `${after.address}\n`);
    process.kill(program.pid, "SIGHUP");
    await program.printed(/was added/);
    assert.is(await ask(program.port), "hello");
    program.hangUp();
    await refused(program.port);
    await until(() => !isAlive(program.pid), "the program ending");
  },
);

(hasTerminals ? signals : signals.skip)(
  "a terminal that nobody reads costs log lines, and no client",
  async () => {
    const program = await onTerminal(["--servers", (await echoing()).address]);
    program.child.stdout?.pause();
    for (let i = 0; i < 30; i += 1) {
      // 1,500 lines of 70 bytes: more than a terminal and its reader hold
      const answers = await Promise.all(Array.from({ length: 50 }, () => ask(program.port)));
      assert.equal([...new Set(answers)], ["hello"]);
    }
    process.kill(program.pid, "SIGTERM");
    await until(() => !isAlive(program.pid), "the program ending");
  },
);

signals("a bug ends it with a stack and exit code 1, and lets others finish", async () => {
  // stands in for a bug: an exception that nobody catches
  const bug = `process.once("SIGWINCH", () => { throw new Error("a bug"); })`;
  const preloads = [import.meta.resolve("tsx"), `data:text/javascript,${encodeURIComponent(bug)}`];
  const program = startNode(
    [
      ...preloads.flatMap((preload) => ["--import", preload]),
      ...[SCRIPT, "random", "--port", "0", "--check", "none"],
      ...["--servers", (await echoing()).address],
    ],
    SCRIPT,
  );
  const [, port] = await program.printed(/Listening on 127\.0\.0\.1:(\d+)\n/);
  const client = await dial(Number(port));
  client.socket.write("hello");
  await until(() => client.size() === 5, "the echo");
  program.child.kill("SIGWINCH");
  await refused(Number(port));
  client.socket.end(" again");
  assert.is(await outcomeOf(client), "end");
  assert.is(client.bytes().toString(), "hello again");
  assert.is(await exitOf(program), 1);
  assert.match(program.output.stderr, /^Error: a bug\n {4}at /);
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
      /^--max-connections 1000 needs \d+ file descriptors and the limit of file descriptors is 128: allowing \d+\n$/,
    );
  },
);

descriptors.run();
