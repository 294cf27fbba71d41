/**
 * stress_test_files.test.ts - what becomes of what was measured: files that cannot be written, runs
 * that are interrupted or without an answer, runs.json, and two calls at once.
 */
import {
  chmodSync,
  existsSync,
  linkSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { createHash } from "node:crypto";
import { join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { RunError } from "../lib.ts";
import { writeWhole } from "../stress_test.ts";
import {
  cleanUp,
  coverNoChildren,
  later,
  listening,
  readJson,
  run,
  type Running,
  start,
  temporaryFolder,
  until,
  within,
} from "./helpers.ts";

coverNoChildren();

/** A server that answers the first `answers` requests, and those after them once it is told to. */
async function answering(answers: number): Promise<{ port: string; asked: () => number }> {
  let asked = 0;
  const { port } = await listening((socket) => {
    socket.on("data", () => {
      asked += 1;
      if (asked <= answers) socket.write("PONG!");
    });
  });
  return { port: String(port), asked: () => asked };
}

/** A run whose third request has no answer yet, with `args`; it is ended by a signal. */
async function unfinished(folder: string, args: readonly string[]): Promise<Running> {
  const { port, asked } = await answering(2);
  const running = start("stress_test.ts", ["1", "1000", "--port", port, ...args], folder);
  await until(() => asked() === 3, "a request without an answer");
  return running;
}

const whole = async (folder: string, ...args: string[]): Promise<string> => {
  const { port } = await answering(Infinity);
  const { stdout } = await run("stress_test.ts", ["3", "2", "--port", port, ...args], folder);
  return stdout;
};

// ─── Writing ─────────────────────────────────────────────────────────────────

const writing = suite("stress test: writing");
writing.after.each(cleanUp);

writing("replaces the target of a symbolic link, and keeps its mode", async () => {
  const folder = await temporaryFolder();
  const target = join(folder, "target.json");
  writeFileSync(target, "old");
  chmodSync(target, 0o600);
  symlinkSync("target.json", join(folder, "link.json"));
  writeWhole(join(folder, "link.json"), "new");
  assert.is(readFileSync(target, "utf8"), "new");
  assert.ok(lstatSync(join(folder, "link.json")).isSymbolicLink());
  assert.is(statSync(target).mode & 0o777, 0o600);
  assert.equal(readdirSync(folder).sort(), ["link.json", "target.json"]);
});

writing("follows a link to a file that is not there yet", async () => {
  const folder = await temporaryFolder();
  symlinkSync("later.json", join(folder, "link.json"));
  writeWhole(join(folder, "link.json"), "new");
  assert.is(readFileSync(join(folder, "later.json"), "utf8"), "new");
});

writing("leaves another name of the same file as it was", async () => {
  const folder = await temporaryFolder();
  writeFileSync(join(folder, "a.json"), "old");
  linkSync(join(folder, "a.json"), join(folder, "b.json"));
  writeWhole(join(folder, "a.json"), "new");
  assert.is(readFileSync(join(folder, "b.json"), "utf8"), "old");
});

writing("a draft that cannot take its place is kept and named", async () => {
  const folder = await temporaryFolder();
  mkdirSync(join(folder, "a.json"));
  const error = assertFails(() => writeWhole(join(folder, "a.json"), "measured"));
  const [, draft = ""] = /what was to be written is in (.*)$/.exec(error) ?? [];
  assert.is(readFileSync(draft, "utf8"), "measured");
});

writing("a folder that has gone is made again", async () => {
  const folder = await temporaryFolder();
  writeWhole(join(folder, "gone/a.json"), "measured");
  assert.is(readFileSync(join(folder, "gone/a.json"), "utf8"), "measured");
});

writing("without room beside its place, a draft is kept elsewhere and named", async () => {
  const error = assertFails(() => writeWhole("/proc/a.json", "measured"));
  assert.match(error, /^Error: Cannot write \/proc\/a\.json: no such file or directory; /);
  const [, draft = ""] = /what was to be written is in (.*)$/.exec(error) ?? [];
  later(() => rmSync(draft));
  assert.is(readFileSync(draft, "utf8"), "measured");
});

function assertFails(act: () => void): string {
  try {
    act();
  } catch (error) {
    assert.instance(error, RunError);
    return String(error);
  }
  throw new Error("it did not fail");
}

writing.run();

// ─── What stays ──────────────────────────────────────────────────────────────

const keeping = suite("stress test: what stays");
keeping.after.each(cleanUp);

keeping("a finished run whose file cannot be written keeps its draft and its table", async () => {
  const folder = await temporaryFolder();
  const { port, asked } = await answering(2);
  const args = ["1", "3", "--seed", "3", "--port", port, "--name", "M", "--data", "d"];
  const { output, exited } = start("stress_test.ts", [...args, "--timeout", "1"], folder);
  await until(() => asked() >= 1, "the run");
  mkdirSync(join(folder, "d/M.json"));
  assert.is(await within(exited, "stress_test.ts"), 1);
  assert.match(output.stdout, "response time");
  const complaint = /^Cannot write d\/M\.json: .*; what was to be written is in (\S+)$/m;
  const [, draft = ""] = complaint.exec(output.stderr) ?? [];
  assert.is(readJson(join(folder, draft)).length, 1);
});

for (const [signal, ending] of [
  ["SIGINT", 130],
  ["SIGHUP", 130],
] as const) {
  keeping(`${signal} writes and prints what there is`, async () => {
    const folder = await temporaryFolder();
    const { child, output, exited } = await unfinished(folder, ["--name", "R"]);
    child.kill(signal);
    assert.is(await within(exited, "stress_test.ts"), ending);
    assert.match(output.stdout, "errors 1 (interrupted 1)");
    assert.is(readJson(join(folder, "data/R.json"))[0].length, 2);
    const { runs } = readJson(join(folder, "data/runs.json")).R;
    assert.equal([runs[0].interrupted, runs[0].answered], [true, 2]);
  });
}

keeping("an interrupted run stands beside a whole one, and its record stays", async () => {
  const folder = await temporaryFolder();
  await whole(folder, "--name", "R");
  const [times, records] = ["data/R.json", "data/runs.json"].map((file) =>
    readFileSync(join(folder, file), "utf8"),
  );
  const { child, output, exited } = await unfinished(folder, ["--name", "R"]);
  child.kill("SIGINT");
  await within(exited, "stress_test.ts");
  assert.is(readFileSync(join(folder, "data/R.json"), "utf8"), times);
  assert.is(readFileSync(join(folder, "data/runs.json"), "utf8"), records);
  assert.is(readJson(join(folder, "data/R.partial.json"))[0].length, 2);
  assert.match(output.stdout, "Written: data/R.partial.json (data/R.json stays as it was)");
});

keeping("a run without an answer stands beside a whole one, by hand and plain", async () => {
  const folder = await temporaryFolder();
  await whole(folder);
  const before = readFileSync(join(folder, "response_times.json"), "utf8");
  const { code } = await run("stress_test.ts", ["2", "1", "--port", "1"], folder);
  assert.is(code, 1);
  assert.is(readFileSync(join(folder, "response_times.json"), "utf8"), before);
  assert.equal(readJson(join(folder, "response_times.partial.json")), [[], []]);
});

keeping("an interrupted run is no whole one: the next takes its place", async () => {
  const folder = await temporaryFolder();
  for (let i = 0; i < 2; i++) {
    const { child, exited } = await unfinished(folder, ["--name", "R"]);
    child.kill("SIGINT");
    await within(exited, "stress_test.ts");
  }
  assert.equal(readdirSync(join(folder, "data")).sort(), ["R.json", "runs.json"]);
});

keeping("the second of two calls under one name is told, and measures nothing", async () => {
  const folder = await temporaryFolder();
  const first = await unfinished(folder, ["--name", "R"]);
  const { code, stderr } = await run("stress_test.ts", ["1", "1", "--name", "R"], folder);
  assert.is(code, 1);
  assert.match(
    stderr,
    `Cannot write data/R.json: process ${first.child.pid} is measuring under this name`,
  );
  first.child.kill("SIGINT");
  await within(first.exited, "stress_test.ts");
  assert.not(existsSync(join(folder, "data/R.json.lock")));
});

keeping("the lock of a call that was killed locks nothing", async () => {
  const folder = await temporaryFolder();
  const { child, exited } = await unfinished(folder, ["--name", "R"]);
  child.kill("SIGKILL");
  await within(exited, "stress_test.ts");
  assert.match(await whole(folder, "--name", "R"), "Written: data/R.json");
});

keeping("a call that writes its record while another does so waits for it", async () => {
  const folder = await temporaryFolder();
  mkdirSync(join(folder, "data"));
  const lock = join(folder, "data/runs.json.lock");
  writeFileSync(lock, String(process.pid));
  const written = whole(folder, "--name", "R");
  await until(() => existsSync(join(folder, "data/R.json")), "the times");
  rmSync(lock);
  await written;
  assert.is(readJson(join(folder, "data/runs.json")).R.runs[0].clients, 3);
});

for (const [what, make] of [
  ["a link in a circle", (file: string) => symlinkSync("R.json", file)],
  ["a folder in place of the lock", (file: string) => mkdirSync(`${file}.lock`)],
] as const) {
  keeping(`${what} is one line before the start`, async () => {
    const folder = await temporaryFolder();
    mkdirSync(join(folder, "data"));
    make(join(folder, "data/R.json"));
    const { code, stderr } = await run("stress_test.ts", ["1", "1", "--name", "R"], folder);
    assert.is(code, 1);
    assert.match(stderr, /^Cannot write data\/R\.json: [^\n]+\n$/);
  });
}

keeping.run();

// ─── runs.json ───────────────────────────────────────────────────────────────

const records = suite("stress test: runs.json");
records.after.each(cleanUp);

records("says how each file was made, and keeps what it says of others", async () => {
  const folder = await temporaryFolder();
  await whole(folder, "--name", "A", "--timeout", "7");
  await whole(folder, "--name", "B.json", "--rate", "500");
  const { A, B, ...others } = readJson(join(folder, "data/runs.json"));
  assert.equal(others, {});
  const bytes = readFileSync(join(folder, "data/A.json"));
  assert.is(A.sha256, createHash("sha256").update(bytes).digest("hex"));
  assert.equal(A.setup, { algorithm: null, options: [], servers: null, balancers: 1 });
  assert.equal([A.plan.timeout, B.plan.rate, B.plan.clients, A.runsAsked], [7, 500, 3, 1]);
  const [first] = A.runs;
  assert.equal([first.seed, first.clients, first.planned], [1, 3, first.answered]);
  assert.equal([first.firstFailed, first.simulated, first.interrupted], [[], false, false]);
  assert.not.equal(A.session, B.session);
});

records("forgets a file that has gone, and puts aside what is no JSON", async () => {
  const folder = await temporaryFolder();
  await whole(folder, "--name", "A");
  rmSync(join(folder, "data/A.json"));
  await whole(folder, "--name", "B");
  assert.equal(Object.keys(readJson(join(folder, "data/runs.json"))), ["B"]);
  writeFileSync(join(folder, "data/runs.json"), "{ oh");
  await whole(folder, "--name", "C");
  assert.equal(Object.keys(readJson(join(folder, "data/runs.json"))), ["C"]);
  assert.is(readFileSync(join(folder, "data/runs.json.malformed"), "utf8"), "{ oh");
});

records("tells whose first request failed", async () => {
  const folder = await temporaryFolder();
  let connections = 0;
  const { port } = await listening((socket) => {
    connections += 1;
    if (connections === 1) socket.resetAndDestroy();
    socket.on("data", () => socket.write("PONG!"));
  });
  const args = ["1", "3", "--seed", "3", "--port", String(port), "--name", "A", "--json"];
  const { stdout, code } = await run("stress_test.ts", args, folder);
  const { first, later: rest, file } = JSON.parse(stdout);
  assert.equal([first.n, rest.n, code, file], [0, 2, 1, "data/A.json"]);
  const [one] = readJson(join(folder, "data/runs.json")).A.runs;
  assert.equal([one.firstFailed, one.errors.reset + one.errors.connect], [[0], 1]);
});

records.run();
