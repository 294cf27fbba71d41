/**
 * Thousands of odd inputs, the same ones each time: whatever a file holds, there is a picture that
 * is XML and keeps its texts in place, or a complaint of one line; never neither.
 */
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import * as graphs from "../generate_graphs.ts";
import { mulberry32, RunError } from "../lib.ts";
import { boxesOf, call, checkXml, collision, entryOf, overflow } from "./graphs_fixtures.ts";
import { cleanUp, temporaryFolder } from "./helpers.ts";

const fuzz = suite("generate_graphs: thousands of odd inputs");

type Random = () => number;
const pick = <T>(random: Random, list: readonly T[]): T => {
  const place = Math.floor(random() * list.length);
  for (const one of list.slice(place)) return one;
  throw new Error("nothing to pick from");
};
const upTo = (random: Random, most: number): number => Math.floor(random() * (most + 1));

const EDGES = [
  0, -0, 5e-324, 1e-300, 5e-7, 1e-9, 1e-6, 0.1, 0.3, 0.5, 1, 2, 599.999, 999_999.9, 1e6,
];
const KINDS: readonly ((random: Random) => number)[] = [
  (random) => random(),
  (random) => 0.5 + 0 * random(),
  (random) => Math.exp(30 * random() - 17),
  (random) => pick(random, EDGES),
  (random) => upTo(random, 100) / 1000,
  (random) => upTo(random, 20) * 0.05,
];

/** One kind of values for a whole file, now and then with one of another kind among them. */
function clientsFrom(random: Random): number[][] {
  const kind = pick(random, KINDS);
  const other = pick(random, KINDS);
  const value = (): number => (random() < 0.02 ? other : kind)(random);
  const most = pick(random, [0, 1, 1, 2, 5, 60, 350]);
  const requests = pick(random, [0, 1, 1, 3]);
  return Array.from({ length: upTo(random, most) }, () =>
    Array.from({ length: upTo(random, requests) }, value),
  );
}

const ALPHABETS = [
  "abc",
  "Ww@M%m",
  "<>&\"'",
  "ЖШщы",
  "負荷分散",
  "\u0000\u0007\u001b\n\t",
  "👩\u200d💻",
  "\ud800",
  "e\u0301",
  "ﷺ𒐫",
  "/\\..",
  " -_",
];

function nameFrom(random: Random): string {
  if (random() < 0.3) return pick(random, ["Baseline", "RoundRobin", "LeastConnections"]);
  const letters = [...pick(random, ALPHABETS), ...pick(random, ALPHABETS)];
  const length = 1 + upTo(random, pick(random, [2, 12, 60]));
  return Array.from({ length }, () => pick(random, letters)).join("");
}

/** An entry of runs.json that is right, or nearly. */
function originFrom(random: Random, clients: number[][], times: graphs.Times) {
  const cut = upTo(random, clients.length);
  const entry = entryOf(random() < 0.5 ? [clients] : [clients.slice(0, cut), clients.slice(cut)]);
  const odd: unknown = pick(random, [null, -1, "x", [], {}, 1e308, [null], true]);
  const keys = ["plan", "runs", "setup", "runsAsked", "session", "simulated"];
  if (random() < 0.3) entry[pick(random, keys)] = odd;
  if (random() < 0.2) entry["plan"] = { rate: odd, maxRequests: odd, clients: 0, fail: odd };
  if (random() < 0.2) entry["setup"] = { servers: [{ mean: odd, slots: 0, sd: odd }] };
  return graphs.originOf(entry, String(entry["sha256"]), times);
}

function setupsFrom(random: Random): graphs.Setup[] {
  const names = Array.from({ length: 1 + upTo(random, pick(random, [0, 2, 8])) }, () =>
    nameFrom(random),
  );
  const titles = graphs.titlesOf(names);
  assert.is(new Set(titles).size, titles.length, titles.join("|"));
  return names.map((name, place) => {
    const clients = clientsFrom(random);
    const times = graphs.parseTimes(JSON.stringify(clients));
    const origin = random() < 0.5 ? originFrom(random, clients, times) : undefined;
    return graphs.setupOf(name, titles[place] ?? "", times, origin);
  });
}

function checkPicture(svg: string, seed: number): void {
  checkXml(svg);
  assert.not.match(svg, /NaN|Infinity|undefined/, `seed ${seed}`);
  const boxes = boxesOf(svg);
  assert.is(overflow(svg, boxes), undefined, `seed ${seed}`);
  assert.is(collision(boxes), undefined, `seed ${seed}`);
}

fuzz("gives a picture, a table and a sentence for whatever times and names there are", () => {
  for (let seed = 1; seed <= 1000; seed++) {
    const setups = setupsFrom(mulberry32(seed));
    const words = graphs.verdict(setups);
    assert.match(words, /\.$/, `seed ${seed}`);
    const lines = graphs.table(setups, 0.5);
    assert.not.match(`${words}\n${lines}`, /NaN|Infinity|undefined/, `seed ${seed}`);
    assert.not.match(words.replaceAll("\n", ""), /\p{Cc}/u, `seed ${seed}`);
    if (setups.slice(0, 8).some(({ all }) => all.length > 0))
      checkPicture(graphs.drawPicture(setups), seed);
  }
});

fuzz("draws a curve and a time line of whatever there is", () => {
  for (let seed = 1; seed <= 400; seed++) {
    const random = mulberry32(seed + 10_000);
    const setups = setupsFrom(random);
    if (!setups.slice(0, 8).some(({ first }) => first.length > 0)) continue;
    const rates = setups.map(() => pick(random, [0.5, 1, 150, 200, 1e5]));
    const points = setups.map((setup, place) => graphs.pointOf(rates[place] ?? 1, setup));
    checkPicture(graphs.drawCurve(graphs.linesOf(points)), seed);
    assert.not.match(graphs.curveTable(graphs.linesOf(points)), /NaN|Infinity|undefined/);
    const timelines = setups.slice(0, 8).flatMap((setup) => timelineOrNothing(setup));
    if (!timelines.some(({ first }) => first.length > 0)) continue;
    checkPicture(graphs.drawOverTime(timelines), seed);
    assert.not.match(graphs.phaseTable(timelines), /NaN|Infinity|undefined/);
  }
});

function timelineOrNothing(setup: graphs.Setup): graphs.Timeline[] {
  try {
    return [graphs.timelineOf(setup)];
  } catch (error) {
    assert.instance(error, RunError);
    return [];
  }
}

const TEXTS = [
  "[",
  "]",
  "[]",
  "{}",
  "null",
  "1",
  "-1",
  "1e999",
  '"x"',
  ",",
  " ",
  "[[1]]",
  "\ufeff",
  "\u0000",
  "0.5",
  "[[",
  "]]",
];

fuzz("takes a text as times, or says in one line what is wrong with it", () => {
  let taken = 0;
  for (let seed = 1; seed <= 3000; seed++) {
    const random = mulberry32(seed);
    const text = Array.from({ length: 1 + upTo(random, 4) }, () => pick(random, TEXTS)).join("");
    try {
      const { values, starts } = graphs.parseTimes(text);
      assert.is(starts[starts.length - 1], values.length);
      taken += 1;
    } catch (error) {
      assert.instance(error, RunError, text);
      assert.not.match(graphs.oneLine(error instanceof Error ? error.message : ""), /\p{Cc}/u);
    }
  }
  assert.ok(taken > 50, `${taken}`);
});

/** A file that is right, or wrong in some way, or not there. */
function contentFrom(random: Random): Uint8Array | undefined {
  const good = Buffer.from(JSON.stringify(clientsFrom(random)));
  const bad = Buffer.from(pick(random, TEXTS));
  const wide = Buffer.concat([Buffer.from([0xff, 0xfe]), Buffer.from(good.toString(), "utf16le")]);
  return pick(random, [good, good, good, wide, bad, good.subarray(0, 20), undefined]);
}

fuzz(
  "draws what can be drawn of a folder, complains of the rest, and never does neither",
  async () => {
    for (let seed = 1; seed <= 150; seed++) {
      const random = mulberry32(seed + 20_000);
      const folder = await temporaryFolder();
      const names = Array.from({ length: 1 + upTo(random, 8) }, () => nameFrom(random));
      const files = [...new Set(names.map((name) => name.replace(/[/\0\ud800]/g, "_") + ".json"))];
      for (const file of files) {
        const content = contentFrom(random);
        if (content) await writeFile(join(folder, file), content);
      }
      const { code, stdout, stderr } = await call(
        files.map((file) => `./${file}`),
        folder,
      );
      const svg = await readFile(join(folder, "response_times.svg"), "utf8").catch(() => "");
      if (svg) checkPicture(svg, seed);
      const complaints = stderr.split("\n").filter(Boolean);
      assert.is(code, complaints.length > 0 ? 1 : 0, `seed ${seed}: ${stderr}`);
      assert.ok(complaints.length > 0 || svg, `seed ${seed}`);
      assert.ok(complaints.length <= files.length + 1, `seed ${seed}`);
      assert.ok(stdout !== "" || !svg, `seed ${seed}`);
      assert.not.match(stdout + stderr, /[\0-\x09\x0b-\x1f\x7f]/, `seed ${seed}`);
      await cleanUp();
    }
  },
);

fuzz.run();
