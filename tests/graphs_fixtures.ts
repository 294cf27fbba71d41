/**
 * graphs_fixtures.ts - set-ups as generate_graphs.ts would read them, with and without a runs.json,
 * for its test files.
 */
import { createHash } from "node:crypto";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import * as graphs from "../generate_graphs.ts";
import { mulberry32, parseCommandLine, RunError, UsageError } from "../lib.ts";
import { drawPlan, seedsFrom } from "../stress_test.ts";

export type Clients = readonly (readonly number[])[];

/** A normally distributed number (Box and Muller 1958). */
export const normal = (random: () => number): number =>
  Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());

/**
 * Clients with one to three answers around half a second; each first one waits `wait` seconds on
 * average. The plan is always the same.
 */
export function clients(count: number, seed: number, wait: number): number[][] {
  const random = mulberry32(seed);
  const plan = mulberry32(7);
  return Array.from({ length: count }, () =>
    Array.from({ length: 1 + Math.floor(plan() * 3) }, (_, request) => {
      const waited = request === 0 ? -Math.log(1 - random()) * wait : 0;
      return Math.abs(0.5 + 0.2 * normal(random)) + waited;
    }),
  );
}

/** What a run of these clients says of itself. */
export const recordOf = (seed: number, run: Clients): Record<string, unknown> => ({
  seed,
  clients: run.length,
  planned: run.flat().length,
  answered: run.flat().length,
  errors: {},
  firstFailed: [],
  seconds: 1,
  simulated: false,
  interrupted: false,
  disturbed: [],
});

/** An entry of runs.json for these runs; `changes` replace fields of it. */
export function entryOf(
  runs: readonly Clients[],
  changes: Readonly<Record<string, unknown>> = {},
): Record<string, unknown> {
  return {
    sha256: createHash("sha256").update(JSON.stringify(runs.flat())).digest("hex"),
    session: "one",
    setup: {
      algorithm: "round-robin",
      options: [],
      servers: [{ mean: 0.05, sd: 0.02, slots: 10, weight: 1, slow: null }],
      balancers: 1,
    },
    plan: { clients: runs[0]?.length, maxRequests: 3, rate: 8, reconnect: false, timeout: 30 },
    runsAsked: runs.length,
    simulated: false,
    runs: runs.map((run, place) => recordOf(place + 1, run)),
    ...changes,
  };
}

/** A set-up with an origin. */
export function measured(
  name: string,
  runs: readonly Clients[],
  changes: Readonly<Record<string, unknown>> = {},
): graphs.Setup {
  const times = graphs.parseTimes(JSON.stringify(runs.flat()));
  const entry = entryOf(runs, changes);
  const origin = graphs.originOf(entry, String(entry["sha256"]), times);
  return graphs.setupOf(name, graphs.titlesOf([name])[0] ?? "", times, origin);
}

/** Runs of 20 clients whose first requests take `times`, a run each. */
export const runsOf = (times: readonly number[]): Clients[] =>
  times.map((time) => Array.from({ length: 20 }, () => [time, 0.5]));

/** Set-ups of unknown origin, as read from files of these names. */
export function unknown(data: Readonly<Record<string, Clients>>): graphs.Setup[] {
  const titles = graphs.titlesOf(Object.keys(data));
  return Object.entries(data).map(([name, own], place) =>
    graphs.setupOf(name, titles[place] ?? "", graphs.parseTimes(JSON.stringify(own)), undefined),
  );
}

/** Writes set-ups and their runs.json. */
export async function writeRuns(
  folder: string,
  data: Readonly<Record<string, readonly Clients[]>>,
  changes: Readonly<Record<string, unknown>> = {},
): Promise<void> {
  const entries = Object.entries(data).map(([name, runs]) => [name, entryOf(runs, changes)]);
  await writeFile(join(folder, "runs.json"), JSON.stringify(Object.fromEntries(entries)));
  for (const [name, runs] of Object.entries(data))
    await writeFile(join(folder, `${name}.json`), JSON.stringify(runs.flat()));
}

/** Runs of `count` clients at `rate` a second, each first request slower by `wait` on average. */
export function sweepRuns(seeds: readonly number[], count: number, rate: number, wait: number) {
  return seeds.map((seed) => {
    const plan = drawPlan(count, 3, rate, seedsFrom(seed));
    const random = mulberry32(seed + 99);
    return plan.requests.map((requests) =>
      Array.from({ length: requests }, (_, request) => {
        const waited = request === 0 ? -Math.log(1 - random()) * wait : 0;
        return Number((Math.abs(0.05 + 0.02 * normal(random)) + waited).toFixed(4));
      }),
    );
  });
}

/** Throws unless `svg` is well-formed: one root, tags closed, attributes quoted once, text legal. */
export function checkXml(svg: string): void {
  const open: string[] = [];
  let rest = svg;
  const fail = (what: string): never => {
    throw new Error(`${what} at ...${rest.slice(0, 80)}`);
  };
  while (rest !== "") {
    const content = /^[^<]+/.exec(rest)?.[0] ?? "";
    if (/&(?!(amp|lt|gt|quot|#39);)/.test(content)) fail("a bare &");
    if (/[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\u{10000}-\u{10ffff}]/u.test(content))
      fail("an illegal character");
    if (open.length === 0 && content.trim() !== "") fail("text outside the root");
    rest = rest.slice(content.length);
    if (rest === "") break;
    const tag = /^<(\/?)(\w+)((?:\s+[\w:-]+="[^"<]*")*)\s*(\/?)>/.exec(rest) ?? fail("no tag");
    const names = [...(tag[3] ?? "").matchAll(/([\w:-]+)="/g)].map(([, name]) => name);
    if (new Set(names).size < names.length) fail("an attribute twice");
    if (tag[1] && open.pop() !== tag[2]) fail("a wrong end");
    if (!tag[1] && !tag[4]) open.push(tag[2] ?? "");
    rest = rest.slice(tag[0].length);
  }
  if (open.length > 0) fail(`${open.join()} left open`);
}

export interface Box {
  readonly content: string;
  readonly left: number;
  readonly right: number;
  readonly top: number;
  readonly bottom: number;
}

/** Em of the widest usual font, DejaVu Sans, by its own metrics. */
function emOf(character: string): number {
  if (/[\p{M}\p{Cf}]/u.test(character)) return 0;
  if (/[ijl' ,.IJ]/.test(character)) return 0.32;
  if (/[frt()[\]/:;!-]/.test(character)) return 0.42;
  if (/[mMwW@%…—ЖШЩЮЫжшщ]/.test(character)) return 1.09;
  if (/\p{Extended_Pictographic}/u.test(character)) return 1.4;
  if (/[\u2e80-\u{10ffff}]/u.test(character)) return 1;
  if (/[\p{Lu}=<>+~#^&×]/u.test(character)) return 0.75;
  return /[\u0400-\u04ff]/.test(character) ? 0.7 : 0.61;
}

/** The boxes of all texts, from the top of a capital to below a comma. */
export function boxesOf(svg: string): Box[] {
  const texts =
    /<text x="([\d.-]+)" y="([\d.-]+)"(?: text-anchor="(\w+)")?(?: font-size="(\d+)")?[^>]*>(.*?)<\/text>/g;
  return [...svg.matchAll(texts)].map(([, x, y, anchor, size = "18", markup = ""]) => {
    const content = markup
      .replace(/<.*?>/g, "")
      .replace(/&lt;/g, "<")
      .replace(/&gt;/g, ">")
      .replace(/&quot;/g, '"')
      .replace(/&#39;/g, "'")
      .replace(/&amp;/g, "&");
    const width = [...content].reduce((sum, one) => sum + emOf(one) * Number(size), 0);
    const before = { end: width, middle: width / 2, start: 0 }[anchor ?? "start"] ?? 0;
    const left = Number(x) - before;
    return {
      content,
      left,
      right: left + width,
      top: Number(y) - 0.73 * Number(size),
      bottom: Number(y) + 2,
    };
  });
}

/** Two texts that lie on each other, if any. */
export function collision(boxes: readonly Box[]): string | undefined {
  for (const [place, a] of boxes.entries()) {
    const b = boxes.slice(place + 1).find((other) => {
      const across = a.left < other.right && other.left < a.right;
      return across && a.top < other.bottom && other.top < a.bottom;
    });
    if (b) return `"${a.content}" and "${b.content}"`;
  }
  return undefined;
}

/** A text outside the picture, if any. */
export function overflow(svg: string, boxes: readonly Box[]): string | undefined {
  const height = Number(/^<svg [^>]* height="(\d+)"/.exec(svg)?.[1]);
  return boxes.find(
    ({ left, right, top, bottom }) => left < 0 || right > 960 || top < 0 || bottom > height,
  )?.content;
}

/** The script in this process, which is much faster than a process of its own. */
export async function call(
  args: readonly string[],
  folder: string,
): Promise<{ code: number; stdout: string; stderr: string }> {
  const said = { stdout: "", stderr: "" };
  const { log, error } = console;
  const home = process.cwd();
  console.log = (words: string) => (said.stdout += `${words}\n`);
  console.error = (words: string) => (said.stderr += `${words}\n`);
  process.chdir(folder);
  try {
    const { positionals, values } = parseCommandLine(graphs.OPTIONS, args);
    const code = await graphs.main(positionals, values);
    return { code, ...said };
  } catch (failure) {
    if (!(failure instanceof UsageError || failure instanceof RunError)) throw failure;
    console.error(failure.message);
    return { code: failure instanceof UsageError ? 2 : 1, ...said };
  } finally {
    process.chdir(home);
    console.log = log;
    console.error = error;
  }
}
