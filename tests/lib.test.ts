/** lib.test.ts - command lines, addresses, signals and random numbers. */
import { spawnSync } from "node:child_process";
import { closeSync, existsSync, openSync } from "node:fs";
import { createServer } from "node:net";
import { join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import {
  amount,
  anyText,
  carries,
  formatAddress,
  hostName,
  type Kind,
  listen,
  mulberry32,
  oneOf,
  onStopSignals,
  parseAddress,
  parseCommandLine,
  portNumber,
  quantile,
  readValue,
  reasonOf,
  RunError,
  UsageError,
  wholeNumber,
} from "../lib.ts";
import {
  cleanUp,
  coverNoChildren,
  later,
  listening,
  run,
  start,
  startNode,
  temporaryFolder,
  within,
} from "./helpers.ts";

coverNoChildren();

const OPTIONS = {
  port: { kind: portNumber, fallback: "65432", help: "" },
  connectTimeout: { kind: amount("seconds"), help: "" },
  log: { kind: oneOf(["text", "none"]), fallback: "text", help: "" },
  quiet: { help: "" },
} as const;

/** The message of the UsageError that `argv` causes. */
function complaint(...argv: string[]): string {
  try {
    parseCommandLine(OPTIONS, argv);
  } catch (error) {
    if (error instanceof UsageError) return error.message;
    throw error;
  }
  return "";
}

// ─── Command lines ───────────────────────────────────────────────────────────

const lines = suite("lib: command lines");
lines.after.each(cleanUp);

lines("reads options in both spellings, flags and positionals, in any order", () => {
  const { positionals, values } = parseCommandLine(OPTIONS, [
    "a",
    "--port=80",
    "--quiet",
    "b",
    "--connect-timeout",
    ".5",
  ]);
  assert.equal(positionals, ["a", "b"]);
  assert.equal(values, { port: 80, connectTimeout: 0.5, log: "text", quiet: true });
});

lines("gives fallbacks to what is absent, and undefined where there is none", () => {
  assert.equal(parseCommandLine(OPTIONS, []).values, {
    port: 65432,
    connectTimeout: undefined,
    log: "text",
    quiet: false,
  });
});

lines("takes a negative number for a positional, never for an option", () => {
  assert.equal(parseCommandLine(OPTIONS, ["-3", "-.5"]).positionals, ["-3", "-.5"]);
});

lines("quotes a bad value and says what would be right", () => {
  assert.is(
    complaint("--port", "70000"),
    'Bad --port "70000": expected a whole number from 0 to 65535',
  );
  assert.is(complaint("--port", "-1"), 'Bad --port "-1": expected a whole number from 0 to 65535');
  assert.is(complaint("--log=loud"), 'Bad --log "loud": expected text, none');
  assert.is(complaint("--quiet=1"), 'Bad --quiet "1": expected no value');
});

lines("quotes an unknown option and names those there are", () => {
  assert.is(
    complaint("--fast"),
    'Unknown option "--fast": expected --port, --connect-timeout, --log, --quiet, --help',
  );
});

lines("names the option that was meant, where one is near", () => {
  const meant = {
    "--prot": "--port",
    "--ports": "--port",
    "--connect_timeout": "--connect-timeout",
    "--connectTimeout": "--connect-timeout",
    "--lo": "--log",
    "--hlep": "--help",
    "-port": "--port",
  };
  for (const [option, known] of Object.entries(meant))
    assert.is(
      complaint(`${option}=1`),
      `Unknown option "${option}": did you mean ${known}?`,
      option,
    );
  for (const option of ["--timeout", "--wait", "--l", "--x"])
    assert.match(complaint(option), /: expected --port, --connect-timeout/, option);
});

lines("hints at brackets where an IPv6 address and a port are written as one", () => {
  const kind: Kind<string> = { expected: "a server", read: () => undefined };
  const hint = (text: string): string => {
    try {
      return readValue("server", kind, text);
    } catch (error) {
      return String(error).split("expected a server")[1] ?? "";
    }
  };
  assert.is(hint("::1:80"), "; an IPv6 address stands in brackets: [::1]:80");
  assert.is(hint("2001:db8::1:80*2"), "; an IPv6 address stands in brackets: [2001:db8::1]:80");
  for (const text of ["::1", "10.0.0.1:80:90", "a:b:80", "[::1]:80", "1:2", ":80"])
    assert.is(hint(text), "", text);
});

lines("a script is the program also without its suffix", async () => {
  const ended = startNode(["node_modules/tsx/dist/cli.mjs", "client", "--help"], "tsx client");
  assert.is(await within(ended.exited, "tsx client"), 0);
  assert.match(ended.output.stdout, /^How to Use: tsx client\.ts/);
  assert.is(ended.output.stderr, "");
});

lines("notices a missing value, at the end and before the next option", () => {
  assert.match(complaint("--port"), /^Missing value of "--port"/);
  assert.match(complaint("--port", "--quiet"), /^Missing value of "--port"/);
});

lines("reads whole numbers strictly", () => {
  const kind = wholeNumber(1, 20);
  assert.equal(["1", "20", "0", "21", "1.5", "1e1", " 1", "", "abc", "0x5"].map(kind.read), [
    1,
    20,
    ...Array<undefined>(8).fill(undefined),
  ]);
});

lines(
  "reads amounts: decimals, but no sign, exponent or infinity, and not beyond what a timer holds",
  () => {
    const kind = amount("seconds");
    assert.equal(["0", ".5", "2.", "2000000"].map(kind.read), [0, 0.5, 2, 2_000_000]);
    assert.equal(
      ["-1", "1e3", "Infinity", "2000001", ".", ""].map(kind.read),
      Array(6).fill(undefined),
    );
  },
);

lines("refuses an empty text", () => {
  assert.throws(
    () => readValue("--data", anyText, ""),
    (error: unknown) =>
      error instanceof UsageError && error.message === 'Bad --data "": expected a text',
  );
});

lines("every script explains itself on stdout, as a process of its own", async () => {
  const { code, stdout, stderr } = await run("client.ts", ["--help"]);
  assert.is(code, 0);
  assert.is(stderr, "");
  assert.match(stdout, /^How to Use: tsx client\.ts\n[^]*--port PORT .*default 65432/);
});

lines("a reader that leaves early is no crash", async () => {
  const { child, output, exited } = start("client.ts", ["--help"]);
  child.stdout?.destroy(); // what it prints meets a closed pipe
  assert.is(await within(exited, "client.ts --help"), 0);
  assert.is(output.stderr, "");
});

/** Runs `words` under tsx, with a standard output that takes nothing. */
function runIntoFull(words: readonly string[]) {
  const full = openSync("/dev/full", "w");
  later(() => closeSync(full));
  return spawnSync(process.execPath, ["--import", "tsx", ...words], {
    stdio: ["ignore", full, "pipe"],
    encoding: "utf8",
    timeout: 20_000,
  });
}
const full = existsSync("/dev/full") ? lines : lines.skip; // not on every system

full("says in one line that its output cannot be written, and goes on", async () => {
  const picture = join(await temporaryFolder(), "a.svg");
  for (const words of [
    ["client.ts", "--help"],
    ["generate_graphs.ts", "--out", picture], // it has more to do then
  ]) {
    const { status, stderr } = runIntoFull(words);
    assert.match(stderr, /^Cannot write the output: no space left on device\n$/);
    assert.is(status, 1);
  }
  assert.ok(existsSync(picture));
});

full("an exit code that stands is not changed by last words that cannot be written", () => {
  const code = `import { runScript } from "${new URL("../lib.ts", import.meta.url)}";
    const main = async () => {
      process.exitCode = 0;
      console.log("last words");
      return 0;
    };
    void runScript({ usage: "", options: {}, main });`;
  const { status, stderr } = runIntoFull(["--input-type=module", "-e", code]);
  assert.is(stderr, "Cannot write the output: no space left on device\n");
  assert.is(status, 0);
});

lines.run();

// ─── Addresses ───────────────────────────────────────────────────────────────

const addresses = suite("lib: addresses");
addresses.after.each(cleanUp);

addresses("reads IPv4, names and IPv6, and writes them back the same", () => {
  for (const text of ["127.0.0.1:80", "localhost:0", "[::1]:65433"]) {
    const address = parseAddress(text);
    assert.ok(address);
    assert.is(formatAddress(address), text);
  }
});

addresses("refuses what has no port, a bad one, or an IPv6 address without brackets", () => {
  for (const text of ["127.0.0.1", ":80", "a:65536", "a:b", "::1:80", "a b:80", "[::1]", ""])
    assert.is(parseAddress(text), undefined, text);
});

addresses("reads a host with or without brackets", () => {
  assert.equal(["localhost", "127.0.0.1", "::1", "[::1]"].map(hostName.read), [
    "localhost",
    "127.0.0.1",
    "::1",
    "::1",
  ]);
  assert.equal(["", "a b", "[::1", "a/b"].map(hostName.read), Array(4).fill(undefined));
});

addresses("listening on port 0 gives the real port", async () => {
  const server = createServer();
  later(() => server.close());
  const address = await listen(server, { host: "127.0.0.1", port: 0 });
  assert.is(address.host, "127.0.0.1");
  assert.ok(address.port > 0);
});

addresses("a port in use is one line in the system's words", async () => {
  const { port } = await listening(() => undefined);
  const error: unknown = await listen(createServer(), { host: "127.0.0.1", port }).catch(
    (error: unknown) => error,
  );
  assert.instance(error, RunError);
  assert.is(String(error), `Error: Cannot listen on 127.0.0.1:${port}: address already in use`);
});

addresses("says why in words: of the system, of the resolver, or the error's own", () => {
  assert.is(
    reasonOf(
      Object.assign(new Error("connect ECONNREFUSED"), { code: "ECONNREFUSED", errno: -111 }),
    ),
    "connection refused",
  );
  assert.is(
    reasonOf(Object.assign(new Error("x"), { code: "ENOTFOUND" })),
    "the name does not resolve",
  );
  assert.is(
    reasonOf(Object.assign(new Error("x"), { code: "EAI_AGAIN", errno: -3001 })),
    "the name server does not answer",
  );
  assert.is(reasonOf(new Error("its own")), "its own");
  assert.is(reasonOf("text"), "text");
});

addresses.run();

// ─── Signals and random numbers ──────────────────────────────────────────────

const rest = suite("lib: signals and random numbers");
rest.after.each(cleanUp);

rest("a repeat of a signal within a second is the same signal; a later one is the second", () => {
  const calls: string[] = [];
  const clock = performance.now;
  const before = { SIGINT: process.listeners("SIGINT"), SIGTERM: process.listeners("SIGTERM") };
  later(() => {
    performance.now = clock;
  });
  later(() => {
    for (const signal of ["SIGINT", "SIGTERM"] as const) {
      for (const listener of process.listeners(signal))
        if (!before[signal].includes(listener)) process.off(signal, listener);
    }
  });
  onStopSignals(
    () => calls.push("stop"),
    () => calls.push("now"),
  );
  for (const at of [5000, 5900, 6100]) {
    performance.now = () => at;
    process.emit(at === 5900 ? "SIGTERM" : "SIGINT");
  }
  assert.equal(calls, ["stop", "now"]);
});

rest("mulberry32 gives its published numbers, and others for another seed", () => {
  const random = mulberry32(1);
  assert.equal(
    [random(), random(), random()],
    [0.6270739405881613, 0.002735721180215478, 0.5274470399599522],
  );
  assert.is.not(mulberry32(2)(), mulberry32(1)());
});

rest("mulberry32 fills 0 to 1 evenly", () => {
  const random = mulberry32(7);
  const bins = Array<number>(10).fill(0);
  for (let i = 0; i < 100_000; i++) bins[Math.floor(random() * 10)]! += 1;
  const chiSquare = bins.reduce((sum, n) => sum + (n - 10_000) ** 2 / 10_000, 0);
  assert.ok(
    chiSquare < 27.9,
    `chi-square ${chiSquare} with 9 degrees of freedom; 99.9 % lie below 27.9`,
  );
});

rest("interpolates a quantile between its neighbours", () => {
  assert.is(quantile([1, 2, 3, 4], 0.5), 2.5);
  assert.is(quantile([0, 10], 0.95), 9.5);
  assert.equal(
    [0, 0.25, 1].map((p) => quantile([1, 2, 3, 4, 5], p)),
    [1, 2, 5],
  );
});

rest("takes one value for all its quantiles, and NaN for those of nothing", () => {
  assert.equal(
    [0, 0.5, 0.99, 1].map((p) => quantile([7], p)),
    [7, 7, 7, 7],
  );
  assert.ok(Number.isNaN(quantile([], 0.5)));
});

rest("carries p90 from 29 values, p95 from 59, p99 from 299", () => {
  for (const [p, n] of [
    [0.9, 29],
    [0.95, 59],
    [0.99, 299],
  ] as const) {
    assert.is(carries(n, p), true, `${p}`);
    assert.is(carries(n - 1, p), false, `${p}`);
  }
});

rest.run();
