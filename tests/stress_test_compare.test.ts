/**
 * stress_test_compare.test.ts - --compare as a whole: runs, sweeps, faults, what stood still, and
 * what Ctrl-C leaves behind.
 */
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { UsageError } from "../lib.ts";
import { checkDescriptors, Children, drawPlan, seedsFrom, type Workload } from "../stress_test.ts";
import {
  cleanUp,
  coverNoChildren,
  later,
  readJson,
  type Running,
  start,
  startNode,
  temporaryFolder,
  until,
  within,
} from "./helpers.ts";

coverNoChildren();

/** One quick server unless `args` say otherwise. */
const compare = (args: string, folder: string): Running =>
  start("stress_test.ts", ["--servers", "1", "--sd", "0", ...args.split(" ")], folder);

/** `compare` to its end, which is to be 0. */
async function compared(args: string, folder: string): Promise<{ stdout: string; stderr: string }> {
  const { output, exited } = compare(args, folder);
  assert.is(await within(exited, args, 60), 0, output.stderr);
  return output;
}

const EARLIER: Readonly<Record<string, string>> = { "runs.json": '{ "Baseline": {} }' };

/** Puts into `folder` what an earlier comparison may have left there; returns the files' names. */
function fill(folder: string): string[] {
  const names = ["Baseline.json", "Random.json", "runs.json"];
  mkdirSync(join(folder, "data/compare"), { recursive: true });
  for (const name of names)
    writeFileSync(join(folder, "data/compare", name), EARLIER[name] ?? "[[0.5]]");
  return names;
}

// ─── Runs ────────────────────────────────────────────────────────────────────

const runs = suite("stress test --compare: runs");
runs.after.each(cleanUp);

runs("several runs are one file and one session, the baseline one run of it", async () => {
  const folder = await temporaryFolder();
  const list = "baseline,random,round-robin";
  const { stdout, stderr } = await compared(
    `9 2 --compare ${list} --runs 2 --seed 4 --mean 0 --data d`,
    folder,
  );
  const { Baseline, Random, RoundRobin } = readJson(join(folder, "d/runs.json"));
  assert.equal([Baseline.runs.length, Baseline.runsAsked], [1, 1]);
  assert.equal([Random.runs.length, Random.runsAsked], [2, 2]);
  assert.equal(
    Random.runs.map(({ seed }: { seed: number }) => seed),
    [4, 5],
  );
  assert.equal(new Set([Baseline.session, Random.session, RoundRobin.session]).size, 1);
  const requests = [4, 5].flatMap((seed) => drawPlan(9, 2, 0, seedsFrom(seed)).requests);
  const times: number[][] = readJson(join(folder, "d/Random.json"));
  assert.equal(
    times.map(({ length }) => length),
    requests,
  );
  assert.match(
    stdout,
    "Random   9 clients × 1–2 requests, all at once, 2 runs from seed 4 → 1 server",
  );
  assert.match(stdout, /Written: d\/Baseline\.json, d\/Random\.json, d\/RoundRobin\.json\n/);
  assert.match(stdout, /To draw it: npx tsx .*generate_graphs\.ts --data d\n$/);
  const lines = stderr.split("\n").filter((line) => /run \d of 5/.test(line));
  assert.equal(
    lines.map((line) => line.split("  ")[0]),
    ["Baseline", "Random", "RoundRobin", "RoundRobin", "Random"],
  );
});

runs("where other files lie in the folder, the command names its own", async () => {
  const folder = await temporaryFolder();
  fill(folder);
  const { stdout } = await compared("2 1 --compare random --mean 0", folder);
  assert.match(stdout, /generate_graphs\.ts data\/compare\/Random\.json\n$/);
});

runs("a list of rates is a folder a rate, all in one session", async () => {
  const folder = await temporaryFolder();
  const { stdout } = await compared(
    "5 1 --compare baseline --mean 0 --rate 50,200 --data d",
    folder,
  );
  const [slow, fast] = ["d/rate-50", "d/rate-200"].map(
    (each) => readJson(join(folder, each, "runs.json")).Baseline,
  );
  assert.equal([slow.plan.rate, fast.plan.rate], [50, 200]);
  assert.is(slow.session, fast.session);
  assert.match(stdout, /generate_graphs\.ts --curve d\n$/);
});

runs("the balancer of every entry of a seed has the same seed, and the admin address", async () => {
  const folder = await temporaryFolder();
  const { child, output, exited } = compare(
    "0 2 --rate 50 --mean 0.01 --compare random --admin 0",
    folder,
  );
  await until(() => /watch/.test(output.stderr), "the page");
  const [, page = ""] = /^Open (http:\S+) and watch/m.exec(output.stderr) ?? [];
  const [, pid = ""] = /kill -STOP (\d+)/.exec(output.stderr) ?? [];
  assert.is((await fetch(`${page}healthz`)).status, 200);
  assert.ok(process.kill(Number(pid), 0));
  child.kill("SIGINT");
  assert.is(await within(exited, "the end that Ctrl-C is"), 0);
  const { runs: [one] = [] } = readJson(join(folder, "data/compare/runs.json")).Random;
  assert.not(one.interrupted);
});

runs("what is left of simulated runs is told in our time, not in theirs", async () => {
  const args = "2000 1 --rate 10 --compare random --runs 2 --simulate";
  const { stderr } = await compared(args, await temporaryFolder());
  assert.match(stderr, /run 1 of 2 .* \d{3}\.\d s/);
  assert.not.match(stderr, "min left");
});

runs.run();

// ─── Faults ──────────────────────────────────────────────────────────────────

const faults = suite("stress test --compare: faults");
faults.after.each(cleanUp);

const failedIn = (folder: string, name: string): number => {
  const [{ errors }] = readJson(join(folder, "data/compare/runs.json"))[name].runs;
  return errors.connect + errors.reset + errors.closed;
};

faults("--fail kills the last server and starts it again, on the same port", async () => {
  const folder = await temporaryFolder();
  const { exited, output } = compare(
    "180 1 --rate 60 --mean 0.001 --compare baseline --fail 0.3-0.8",
    folder,
  );
  assert.is(await within(exited, "the run", 60), 1);
  const [times, { firstFailed }] = [
    readJson(join(folder, "data/compare/Baseline.json")),
    readJson(join(folder, "data/compare/runs.json")).Baseline.runs[0],
  ];
  assert.ok(failedIn(folder, "Baseline") > 10, output.stdout);
  assert.equal([times[0].length, times.at(-1).length], [1, 1], "before and after it answers");
  assert.ok(firstFailed[0] > 5 && firstFailed.at(-1) < 175, String(firstFailed));
  assert.match(output.stdout, "--over-time");
});

faults("--hang blocks the last server, which marks nothing", async () => {
  const folder = await temporaryFolder();
  const args = "100 1 --rate 100 --mean 0.001 --compare baseline --hang 0.3-0.9";
  const { stderr } = await compared(args, folder);
  const times: number[][] = readJson(join(folder, "data/compare/Baseline.json"));
  const longest = Math.max(...times.flat());
  assert.ok(longest > 0.5 && longest < 0.75, String(longest));
  assert.not.match(stderr, "server 1 stood still");
});

faults("a run that ends before its server does hang no longer waits for it", async () => {
  const folder = await temporaryFolder();
  const args = "1 1 --mean 0.4 --timeout 0.6 --compare baseline --hang 0.1-500";
  const { exited } = compare(args, folder);
  assert.is(await within(exited, "the run", 15), 1);
});

faults("a server that is starting again when the run ends is no complaint", async () => {
  const folder = await temporaryFolder();
  const args = "2 1 --servers 2 --mean 0.3 --compare round-robin --fail 0-0.2";
  const { exited, output } = compare(args, folder);
  await within(exited, "the run", 60);
  assert.not.match(output.stderr, "did not come back");
});

faults.run();

// ─── What stood still ────────────────────────────────────────────────────────

const standing = suite("stress test --compare: what stood still");
standing.after.each(cleanUp);

standing("a child that was stopped for 0.3 s says so; one that was not, does not", async () => {
  const children = new Children();
  later(() => children.kill());
  const args = ["127.0.0.1", "0", "--log", "none"];
  await within(
    Promise.all([1, 2].map((n) => children.start(`server ${n}`, "server.ts", args))),
    "two servers",
  );
  await children.stalls();
  const { pid = 0 } = children.find("server 2")?.process ?? {};
  process.kill(pid, "SIGSTOP");
  await new Promise((resolve) => setTimeout(resolve, 300));
  process.kill(pid, "SIGCONT");
  const stalls = await within(children.stalls(), "the standstills");
  assert.ok((stalls.get("server 2") ?? 0) > 0.25, String(stalls.get("server 2")));
  assert.ok((stalls.get("server 1") ?? 1) < 0.25, String(stalls.get("server 1")));
  const [again = 1] = [(await children.stalls()).get("server 2")];
  assert.ok(again < 0.25, `it is said once: ${again}`);
});

standing("a child that is still stopped does not keep a run from its end", async () => {
  const children = new Children();
  later(() => children.kill());
  await within(children.start("server 1", "server.ts", ["127.0.0.1", "0"]), "a server");
  children.find("server 1")?.process.kill("SIGSTOP");
  assert.is((await within(children.stalls(), "the standstills")).get("server 1"), 1);
  await within(children.stop(), "stopping", 8);
});

standing.run();

// ─── Ctrl-C and other ends ───────────────────────────────────────────────────

const ends = suite("stress test --compare: ends");
ends.after.each(cleanUp);

ends("Ctrl-C keeps whole seeds", async () => {
  const folder = await temporaryFolder();
  const { child, output, exited } = compare(
    "2 1 --mean 0 --timeout 1000 --compare baseline,random --runs 500",
    folder,
  );
  await until(() => /run 2 of 1000/.test(output.stderr), "a seed", 60);
  child.kill("SIGINT");
  assert.is(await within(exited, "stress_test.ts"), 130);
  const { Baseline, Random } = readJson(join(folder, "data/compare/runs.json"));
  assert.is(Baseline.runs.length, Random.runs.length);
  assert.ok(Random.runs.length >= 1);
  assert.is(Random.runsAsked, 500);
});

ends("Ctrl-C before the first seed is whole leaves what was there, and prints", async () => {
  const folder = await temporaryFolder();
  const names = fill(folder);
  const texts = (): string[] =>
    names.map((name) => readFileSync(join(folder, "data/compare", name), "utf8"));
  const before = texts();
  const { child, output, exited } = compare("2 1 --compare baseline,random --mean 900", folder);
  await until(() => children(child.pid).length > 0, "children");
  await new Promise((resolve) => setTimeout(resolve, 1000));
  child.kill("SIGINT");
  assert.is(await within(exited, "stress_test.ts"), 130);
  assert.equal(texts(), before);
  assert.equal(readdirSync(join(folder, "data/compare")).sort(), names);
  assert.not.match(output.stdout, "Written");
});

/** Nothing where the system does not say. */
function children(pid: number | undefined): string[] {
  const file = `/proc/${pid}/task/${pid}/children`;
  if (!existsSync(file)) return ["unknown"];
  return readFileSync(file, "utf8").split(" ").filter(Boolean);
}

ends("without process groups, /proc and sh it compares as well", async () => {
  const folder = await temporaryFolder();
  const preload = join(folder, "windows.mjs");
  writeFileSync(
    preload,
    `import fs from "node:fs";
    import { syncBuiltinESMExports } from "node:module";
    const [kill, read] = [process.kill, fs.readFileSync];
    Object.defineProperty(process, "platform", { value: "win32" });
    process.env.PATH = "";
    process.kill = (pid, signal) => {
      if (pid < 0) throw new Error("no groups");
      return kill.call(process, pid, signal);
    };
    fs.readFileSync = (path, ...more) => {
      if (String(path).startsWith("/proc")) throw Object.assign(new Error("ENOENT"), { code: "ENOENT" });
      return read(path, ...more);
    };
    syncBuiltinESMExports();`,
  );
  const script = new URL("../stress_test.ts", import.meta.url).pathname;
  const tsx = import.meta.resolve("tsx");
  const args = ["3", "1", "--compare", "random", "--servers", "1", "--mean", "0", "--sd", "0"];
  const { exited, output } = startNode(
    ["--import", tsx, "--import", `file://${preload}`, script, ...args],
    "stress_test.ts as on Windows",
    folder,
  );
  assert.is(await within(exited, "stress_test.ts", 60), 0, output.stderr);
  assert.is(readJson(join(folder, "data/compare/Random.json")).length, 3);
});

ends("more clients at once than descriptors allow are refused before the start", () => {
  const plan: Workload = {
    clients: 1000,
    maxRequests: 1,
    rate: 0,
    reconnect: false,
    timeout: 30,
    addresses: 1,
    fail: null,
    hang: null,
  };
  const refused = (error: unknown): boolean =>
    error instanceof UsageError &&
    /^Bad clients "1000": expected fewer: the limit of \d+ file descriptors allows/.test(
      error.message,
    );
  assert.throws(() => checkDescriptors(plan, false, 1024), refused);
  assert.throws(() => checkDescriptors(plan, true, 2048), refused);
  assert.not.throws(() => checkDescriptors(plan, false, 1100));
  assert.not.throws(() => checkDescriptors(plan, true, 2100));
  assert.not.throws(() => checkDescriptors({ ...plan, rate: 5 }, false, 2000));
});

ends("out of descriptors, the tester says whose the shortage is", async () => {
  if (process.platform === "win32") return;
  const folder = await temporaryFolder();
  const under = ["sh", "-c", 'ulimit -n 64; exec "$@"', "sh"];
  const { exited, output } = start(
    "stress_test.ts",
    ["60", "1", "--rate", "2000", "--mean", "0.5", "--compare", "baseline", "--servers", "1"],
    folder,
    under,
  );
  await within(exited, "stress_test.ts", 60);
  assert.match(output.stderr, /Warning: the limit of 64 file descriptors allows \d+ clients/);
});

ends("a limit below the clients at once is exit code 2", async () => {
  if (process.platform === "win32") return;
  const under = ["sh", "-c", 'ulimit -n 256; exec "$@"', "sh"];
  const { exited, output } = start("stress_test.ts", ["300", "1"], await temporaryFolder(), under);
  assert.is(await within(exited, "stress_test.ts"), 2);
  assert.match(output.stderr, /^Bad clients "300": expected fewer: .* raise it with ulimit -n\n/);
});

ends.run();
