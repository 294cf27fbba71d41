/**
 * The load curve and first requests over time: their tables, their sentences and their pictures,
 * and large files. The golden pictures are renewed, once looked at, by
 *   npx tsx generate_graphs.ts --curve tests/golden/sweep
 *   npx tsx generate_graphs.ts --over-time tests/golden/sweep/rate-300
 */
import { mkdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import * as graphs from "../generate_graphs.ts";
import { mulberry32 } from "../lib.ts";
import {
  boxesOf,
  call,
  checkXml,
  collision,
  measured,
  overflow,
  recordOf,
  runsOf,
  sweepRuns,
} from "./graphs_fixtures.ts";
import { cleanUp, coverNoChildren, run, temporaryFolder } from "./helpers.ts";

coverNoChildren();

const SWEEP = fileURLToPath(new URL("golden/sweep", import.meta.url));
const script = (args: readonly string[], cwd?: string): ReturnType<typeof run> =>
  run("generate_graphs.ts", args, cwd);

function checkPicture(svg: string): void {
  checkXml(svg);
  assert.not.match(svg, /NaN|Infinity|undefined/);
  assert.is(overflow(svg, boxesOf(svg)), undefined);
  assert.is(collision(boxesOf(svg)), undefined);
}

// ─── The load curve ──────────────────────────────────────────────────────────

const curves = suite("generate_graphs: the load curve");
curves.after.each(cleanUp);

/** A line whose p95 at each rate is given; 60 clients carry it. */
const lineOf = (name: string, p95s: Readonly<Record<number, number>>): graphs.Point[] =>
  Object.entries(p95s).map(([rate, time]) =>
    graphs.pointOf(Number(rate), measured(name, [Array.from({ length: 60 }, () => [time])])),
  );
const sentence = (...points: graphs.Point[][]): string =>
  graphs.kneeSentence(graphs.linesOf(points.flat()), ({ title }) => title);

curves(
  "says up to which rate each set-up keeps its p95, and what the best one carries more",
  () => {
    const slow = lineOf("RoundRobin", { 100: 0.1, 200: 0.19, 300: 0.2, 400: 0.15 });
    const fast = lineOf("LeastConnections", { 100: 0.1, 200: 0.1, 300: 0.12, 400: 0.5 });
    assert.is(
      sentence(slow, fast),
      "Up to so many clients a second the p95 of first requests stays below twice that at 100: Least Connections 300, Round Robin 200. Least Connections carries 50 % more load than Round Robin.",
    );
  },
);

curves("does not say more than was tried", () => {
  const both = [lineOf("a", { 1: 1, 2: 1 }), lineOf("b", { 1: 1, 2: 1 })];
  assert.match(
    sentence(...both),
    /: a 2 \(the highest tried\), b 2 \(the highest tried\)\. a and b carry the same load, as far as was tried\.$/,
  );
});

curves("does not call a set-up better than the baseline, which has one server", () => {
  const text = sentence(
    lineOf("Baseline", { 1: 1, 2: 9 }),
    lineOf("a", { 1: 1, 2: 1 }),
    lineOf("b", { 1: 1, 2: 2 }),
  );
  assert.match(text, / a carries at least 100 % more load than b\.$/);
});

curves("takes failed first requests for ones that never end", () => {
  const own = Array.from({ length: 60 }, () => [1]);
  const failed = measured("a", [own.map((one, place) => (place < 6 ? [] : one))], {
    runs: [{ ...recordOf(1, own), answered: 54, firstFailed: [0, 1, 2, 3, 4, 5] }],
  });
  const point = graphs.pointOf(2, failed);
  assert.is(point.p95.mean, Infinity);
  const points = [...lineOf("a", { 1: 1 }), point];
  assert.match(sentence(points), /: a 1\.$/);
  assert.match(graphs.curveTable(graphs.linesOf(points)), /  failed$/);
  checkPicture(graphs.drawCurve(graphs.linesOf(points)));
});

curves("says so when too few clients carry no p95", () => {
  const point = graphs.pointOf(5, measured("a", runsOf([1])));
  assert.match(sentence([point]), /^No knee: the p95 at 5 a second is not known/);
  checkPicture(graphs.drawCurve(graphs.linesOf([point])));
});

curves("has the interval over runs of mean and p95, to the digit of the mean", async () => {
  const folder = await temporaryFolder();
  const { stdout } = await call(["--curve", SWEEP, "--out", "it.svg"], folder);
  const lines = stdout.split("\n");
  assert.match(
    lines[0] ?? "",
    /^first requests \(s\)  clients\/s +load  runs  answered of planned /,
  );
  assert.match(
    lines[1] ?? "",
    /^Round Robin +200  40 % of capacity +2 +240 of 240  0\.0\d+ ± 0\.\d+ +0\.\d+ ± 0\.\d+$/,
  );
  assert.is(
    lines.findIndex((line) => /^Least Connections +400  80 %/.test(line)),
    6,
  );
});

curves("is, to the byte, the golden one", async () => {
  const folder = await temporaryFolder();
  const { code, stdout } = await call(["--curve", SWEEP, "--out", "it.svg"], folder);
  assert.is(code, 0);
  assert.match(stdout, /\n\nUp to so many clients a second .*\n.*it\.svg\n$/);
  const svg = await readFile(join(folder, "it.svg"), "utf8");
  assert.fixture(svg, await readFile(join(SWEEP, "load_curve.svg"), "utf8"));
  checkPicture(svg);
});

curves("refuses a folder without rates, and one that is not there", async () => {
  const folder = await temporaryFolder();
  await mkdir(join(folder, "rate-x"));
  const none = await call(["--curve", "."], folder);
  assert.is(none.code, 2);
  assert.match(none.stderr, /^Bad --curve "\.": expected a folder with folders rate-R in it\n/);
  const missing = await call(["--curve", "gone"], folder);
  assert.equal(
    [missing.code, missing.stderr],
    [1, "Cannot read gone: no such file or directory\n"],
  );
});

curves.run();

// ─── Over time ───────────────────────────────────────────────────────────────

const times = suite("generate_graphs: over time");
times.after.each(cleanUp);

const plan = { clients: 400, maxRequests: 3, rate: 100, timeout: 30 };
const steady = (name: string, changes = {}): graphs.Setup =>
  measured(name, sweepRuns([1, 2], 400, 100, 0.01), { plan, ...changes });

times("places clients where the plan had them arrive", () => {
  const { arrivals, times: own } = graphs.timelineOf(steady("a"));
  assert.is(arrivals.length, 800);
  assert.ok(arrivals.every((value, place) => place === 0 || value >= (arrivals[place - 1] ?? 0)));
  assert.ok(Math.abs((arrivals.at(-1) ?? 0) - 4) < 1, "400 clients at 100 a second");
  assert.is(own.filter((value) => Number.isNaN(value)).length, 0);
});

times("says why a file cannot be drawn over time", () => {
  const reasons: [graphs.Setup, RegExp][] = [
    [
      graphs.setupOf("a", "a", graphs.parseTimes("[[1]]"), undefined),
      /^runs\.json does not tell when/,
    ],
    [measured("a", runsOf([1]), { plan: { ...plan, rate: 0 } }), /^its clients came all at once/],
    [measured("a", runsOf([1]), { plan }), /^its runs are not as long as their plan/],
  ];
  for (const [setup, reason] of reasons) assert.throws(() => graphs.timelineOf(setup), reason);
});

/** Clients of seed 1, where those who come from second 1 on wait, and from 2 on fail, until 3. */
function struck(name: string): graphs.Setup {
  const { arrivals } = graphs.timelineOf(measured(name, sweepRuns([1], 400, 100, 0), { plan }));
  const own = sweepRuns([1], 400, 100, 0)[0] ?? [];
  const firstFailed: number[] = [];
  const run = own.map((requests, place) => {
    const arrival = arrivals[place] ?? 0;
    if (arrival < 1 || arrival > 3) return requests;
    if (arrival < 2) return [2, ...requests.slice(1)];
    firstFailed.push(place);
    return requests.slice(1);
  });
  const record = { ...recordOf(1, run), planned: own.flat().length, firstFailed };
  const window = { from: 1, to: 3 };
  return measured(name, [run], { plan: { ...plan, fail: window }, runs: [record] });
}

times("says for how long clients suffered after a server was killed", () => {
  const timeline = graphs.timelineOf(struck("RoundRobin"));
  assert.match(
    graphs.timeSentence([timeline], ({ title }) => title),
    /^After the last server was killed at 1 s, clients came who failed or waited twice as long as any before for (1\.9\d|2) s in Round Robin\.$/,
  );
  const table = graphs.phaseTable([timeline]);
  assert.match(table, /before: p50 +p95 +while killed: p50 +p95 +after: p50 +p95\n/);
  assert.match(
    table,
    /\nRound Robin +1  \d+ of 400 +0\.0\d+ +0\.\d+ +2\.00  failed +0\.0\d+ +0\.\d+$/,
  );
});

times("shades the window, and marks who failed at the top edge", () => {
  const svg = graphs.drawOverTime([graphs.timelineOf(struck("RoundRobin"))]);
  assert.match(svg, /Shaded: the last[ a-z]*/);
  assert.match(svg, /<rect [^>]*fill-opacity="0\.45"/);
  assert.match(svg, /<path d="M\d+ [\d.]+v8M/);
  checkPicture(svg);
});

times("compares the first third of the time with the last where nothing was done", () => {
  const say = (one: graphs.Setup): string =>
    graphs.timeSentence([graphs.timelineOf(one)], ({ title }) => title);
  assert.match(say(steady("a")), /^From the first third .* went from 0\.0\d+ to 0\.0\d+ s in a\.$/);
});

times("is, to the byte, the golden one", async () => {
  const folder = await temporaryFolder();
  const picture = join(folder, "it.svg");
  const { code } = await call([join(SWEEP, "rate-300"), "--over-time", "--out", picture], folder);
  assert.is(code, 0);
  const svg = await readFile(picture, "utf8");
  assert.fixture(svg, await readFile(join(SWEEP, "rate-300", "over_time.svg"), "utf8"));
  checkPicture(svg);
});

times("draws the others when one cannot be, says why, and exits 1", async () => {
  const folder = await temporaryFolder();
  await writeFile(join(folder, "a.json"), "[[1]]");
  const rate = join(SWEEP, "rate-200", "RoundRobin.json");
  const { code, stdout, stderr } = await call(["a.json", rate, "--over-time"], folder);
  assert.is(code, 1);
  assert.is(stderr, "Cannot draw a over time: runs.json does not tell when its clients arrived\n");
  assert.match(stdout, /\nover_time\.svg\n$/);
});

times.run();

// ─── Large files ─────────────────────────────────────────────────────────────

const large = suite("generate_graphs: large files");
large.after.each(cleanUp);

large("draws two set-ups of 300,000 answers without delay", async () => {
  const folder = await temporaryFolder();
  for (const seed of [1, 2]) {
    const random = mulberry32(seed);
    const clients = Array.from({ length: 100_000 }, () => `[${random().toFixed(4)},0.5012,0.4987]`);
    await writeFile(join(folder, `m${seed}.json`), `[${clients.join(",")}]`);
  }
  const started = performance.now();
  const { code, stdout } = await script(["m1.json", "m2.json"], folder);
  assert.is(code, 0);
  assert.match(stdout, /\nm1 +\? +100,000 +300,000 of \? /);
  assert.ok(performance.now() - started < 10_000, "a second on a machine that is idle");
  assert.ok((await readFile(join(folder, "response_times.svg"))).length < 100_000);
});

large.run();
