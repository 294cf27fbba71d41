/**
 * The statistics against known answers, the picture by what can be checked without eyes (its bytes,
 * its colours, its text boxes), and the command line with good and bad files.
 *
 * tests/golden holds a small input and its picture. When the picture is meant to change, look at
 * it, then renew it:
 *   npx tsx generate_graphs.ts --data tests/golden
 */
import { mkdir, readFile, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import * as graphs from "../generate_graphs.ts";
import { mulberry32 } from "../lib.ts";
import { cleanUp, run, temporaryFolder } from "./helpers.ts";

const GOLDEN = fileURLToPath(new URL("golden", import.meta.url));
const USAGE = "How to Use: tsx generate_graphs.ts [file ...]";

/** A normally distributed number (Box and Muller 1958). */
const normal = (random: () => number): number =>
  Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());

/**
 * Clients with one to three answers around half a second; each first one waits `wait` seconds on
 * average. The plan is always the same.
 */
function clients(count: number, seed: number, wait: number): number[][] {
  const [random, plan] = [mulberry32(seed), mulberry32(7)];
  return Array.from({ length: count }, () =>
    Array.from(
      { length: 1 + Math.floor(plan() * 3) },
      (_, request) =>
        Math.abs(0.5 + 0.2 * normal(random)) - (request === 0 ? Math.log(1 - random()) * wait : 0),
    ),
  );
}

/** Runs as the script would read them from files of these names. */
function runsOf(data: Readonly<Record<string, readonly (readonly number[])[]>>): graphs.Run[] {
  const names = Object.keys(data);
  const looks = graphs.looksOf(names);
  return looks.map((look, place) =>
    graphs.runOf(
      names[place] ?? "",
      graphs.titleOf(names[place] ?? "", names),
      look,
      data[names[place] ?? ""] ?? [],
    ),
  );
}

const THREE = runsOf({
  Baseline: clients(200, 1, 6),
  RoundRobin: clients(200, 2, 0.9),
  LeastConnections: clients(200, 3, 0.3),
});
const EIGHT = runsOf(
  Object.fromEntries(
    [
      "Baseline",
      "RoundRobin",
      "LeastConnections",
      "TwoChoices",
      "LeastLatency",
      "SourceHash",
      "Random",
      "LeastConnections-server-connections-10",
    ].map((name, place) => [name, clients(100, place, place === 0 ? 30 : place / 5)]),
  ),
);

// ─── Statistics ──────────────────────────────────────────────────────────────

const statistics = suite("generate_graphs: statistics");

statistics("steps the distribution once for each distinct value, up to 1", () => {
  assert.equal(graphs.ecdf([1, 1, 2, 4]), [
    { value: 1, share: 0.5 },
    { value: 2, share: 0.75 },
    { value: 4, share: 1 },
  ]);
  assert.equal(graphs.ecdf([3, 3, 3]), [{ value: 3, share: 1 }]);
  assert.equal(graphs.ecdf([]), []);
});

statistics("counts each value in one bin, the top itself in the last", () => {
  assert.equal(graphs.histogram([0, 0.3, 0.5, 1], 1, 4), {
    shares: [0.25, 0.25, 0.25, 0.25],
    beyond: 0,
  });
  assert.equal(
    graphs.histogram([0.3], 2, 20).shares.indexOf(1),
    3,
    "a value on an edge belongs to the bin above",
  );
});

statistics("keeps what lies beyond the top, as a share of all values", () => {
  assert.equal(graphs.histogram([0.5, 1.1, 9, 10], 1, 2), { shares: [0, 0.25], beyond: 0.75 });
});

statistics("has an empty histogram of nothing", () => {
  assert.equal(graphs.histogram([], 1, 2), { shares: [0, 0], beyond: 0 });
});

statistics("ends the histogram above the maximum, unless it exceeds six medians", () => {
  assert.is(graphs.histogramTop([0.4, 0.5, 0.92]), 1);
  assert.is(graphs.histogramTop([0.5, 0.5, 2.9]), 3);
  assert.is(graphs.histogramTop([0.5, 0.5, 80]), 3);
});

statistics("ends the histogram of zeros at 1, and of mostly zeros at the maximum", () => {
  assert.is(graphs.histogramTop([0, 0]), 1);
  assert.is(graphs.histogramTop([0, 0, 0, 5]), 5);
});

statistics("repeats a bootstrap interval exactly, and changes it with the seed", () => {
  const interval = (seed: number) =>
    graphs.bootstrapInterval((random) => graphs.resampledMean([1, 2, 3, 4, 9], random), seed);
  assert.equal(interval(1), interval(1));
  assert.not.equal(interval(1), interval(2));
});

statistics("has a bootstrap interval without width for equal values", () => {
  assert.equal(
    graphs.bootstrapInterval((random) => graphs.resampledMean([0.5, 0.5, 0.5], random)),
    { low: 0.5, high: 0.5 },
  );
});

statistics("covers the true mean with about 95 of 100 bootstrap intervals", () => {
  const random = mulberry32(42);
  const experiments = 500;
  let covered = 0;
  for (let experiment = 0; experiment < experiments; experiment++) {
    const sample = Array.from({ length: 40 }, () => 0.5 + 0.2 * normal(random));
    const { low, high } = graphs.bootstrapInterval(
      (draw) => graphs.resampledMean(sample, draw),
      experiment,
      400,
    );
    if (low <= 0.5 && high >= 0.5) covered++;
  }
  // standard error 0.01; percentile intervals of 40 values run about 0.015 short
  const coverage = covered / experiments;
  assert.ok(coverage > 0.915 && coverage < 0.97, `covered ${coverage}`);
});

statistics("sees the same plan only in equal numbers of answers, client by client", () => {
  const [a, b, swapped, longer] = runsOf({
    a: [[1], [2, 3]],
    b: [[4], [5, 6]],
    swapped: [[1, 2], [3]],
    longer: [[1], [2, 3], []],
  });
  assert.ok(a && b && swapped && longer);
  assert.is(graphs.samePlan(a, b), true);
  assert.is(graphs.samePlan(a, swapped), false);
  assert.is(graphs.samePlan(a, longer), false);
});

statistics("compares Round Robin with Least Connections, not with the reference", () => {
  const result = graphs.compare(THREE);
  assert.equal(
    [result?.fast.name, result?.slow.name, result?.among, result?.paired],
    ["LeastConnections", "RoundRobin", 2, true],
  );
  assert.ok((result?.interval?.low ?? 0) > 0, "waits of 0.9 and 0.3 s differ");
});

statistics("compares with Baseline when there is nothing else", () => {
  const result = graphs.compare(
    runsOf({ Baseline: clients(40, 1, 6), RoundRobin: clients(40, 2, 0.9) }),
  );
  assert.equal([result?.fast.name, result?.slow.name], ["RoundRobin", "Baseline"]);
});

statistics("compares the fastest two of many", () => {
  const result = graphs.compare(EIGHT);
  assert.equal(
    [result?.fast.name, result?.slow.name, result?.among],
    ["RoundRobin", "LeastConnections", 7],
  );
});

statistics("gains certainty by pairing clients whose plans match", () => {
  const slow = clients(100, 1, 2);
  const fast = slow.map((requests) => requests.map((value) => value * 0.97));
  const paired = graphs.compare(runsOf({ slow, fast }));
  const unpaired = graphs.compare(runsOf({ slow, fast: [...fast, []] }));
  assert.equal([paired?.paired, unpaired?.paired], [true, false]);
  assert.ok((paired?.interval?.low ?? 0) > 0);
  assert.ok((unpaired?.interval?.low ?? 0) < 0);
});

statistics("pairs clients by their place, not by their rank among those with answers", () => {
  const waits = clients(40, 1, 2).map(([first = 0]) => [first]);
  const result = graphs.compare(
    runsOf({ slow: [[], ...waits], fast: [[], ...waits.map(([first = 0]) => [first - 0.125])] }),
  );
  const { low = 0, high = 0 } = result?.interval ?? {};
  assert.ok(Math.abs(low - 0.125) < 1e-9 && Math.abs(high - 0.125) < 1e-9, `${low} to ${high}`);
});

statistics("gives no interval with fewer than 20 clients", () => {
  assert.is(
    graphs.compare(runsOf({ a: clients(19, 1, 1), b: clients(19, 2, 9) }))?.interval,
    undefined,
  );
  assert.ok(graphs.compare(runsOf({ a: clients(20, 1, 1), b: clients(20, 2, 9) }))?.interval);
});

statistics.run();

// ─── Scales and ticks ────────────────────────────────────────────────────────

const scales = suite("generate_graphs: scales and ticks");

scales("steps by 1, 2 or 5 times a power of ten", () => {
  assert.equal(graphs.ticks(0, 1, 5), [0, 0.2, 0.4, 0.6, 0.8, 1]);
  assert.equal(graphs.ticks(0, 10, 10), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
  assert.equal(graphs.ticks(0, 0.9, 8), [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]);
  assert.equal(graphs.ticks(0, 3500, 4), [0, 1000, 2000, 3000]);
});

scales("writes every tick without the noise of binary fractions", () => {
  for (const top of [0.0003, 0.007, 0.35, 0.7, 1.1, 3.5, 120]) {
    for (const tick of graphs.ticks(0, top, 10))
      assert.ok(String(tick).length <= 7, `${tick} of ${top}`);
  }
});

scales("begins at the first tick within the span", () => {
  assert.equal(graphs.ticks(0.15, 0.45, 3), [0.2, 0.3, 0.4]);
});

scales("has one tick where there is no span", () => {
  assert.equal(graphs.ticks(0.5, 0.5, 5), [0.5]);
});

scales("ends an axis at a round number not below the maximum", () => {
  assert.equal(
    [0.92, 1, 1.1, 3.4, 0.00042].map((max) => graphs.niceTop(max, 10)),
    [1, 1, 1.1, 3.5, 0.00045],
  );
  assert.is(graphs.niceTop(0, 10), 1);
});

scales("encloses times between rungs of 1, 2 and 5", () => {
  assert.equal(graphs.logRungs(0.03, 1.2), [0.02, 0.05, 0.1, 0.2, 0.5, 1, 2]);
});

scales("leaves room about a single time on a rung", () => {
  assert.equal(graphs.logRungs(0.5, 0.5), [0.2, 0.5, 1]);
});

scales("finds rungs where there are only zeros, or times out of its reach", () => {
  assert.equal(graphs.logRungs(Infinity, 0), [0.1, 0.2, 0.5, 1]);
  assert.is(graphs.logRungs(1e-9, 1)[0], 1e-6);
  assert.is(graphs.logRungs(1, 1e6).at(-1), 1e6);
});

scales("places zero at the left edge of a logarithmic axis", () => {
  const scale = graphs.logScale([0.1, 10], [0, 100]);
  assert.equal(
    [0, 0.1, 1, 10].map((value) => Math.round(scale(value))),
    [0, 0, 50, 100],
  );
});

scales.run();

// ─── Names and texts ─────────────────────────────────────────────────────────

const texts = suite("generate_graphs: names and texts");

texts("shows a file's name in words", () => {
  const title = (file: string): string => graphs.titleOf(file, [file]);
  assert.equal(["data/RoundRobin.json", "Baseline.json", "two-choices_10.json"].map(title), [
    "Round Robin",
    "Baseline",
    "two choices 10",
  ]);
  assert.is(title("_.json"), "_", "a name without words stays as it is");
});

texts("tells files of the same name apart by their folders", () => {
  const files = ["before/RoundRobin.json", "after/RoundRobin.json", "after/Random.json"];
  assert.equal(
    files.map((file) => graphs.titleOf(file, files)),
    ["before/Round Robin", "after/Round Robin", "Random"],
  );
});

texts("keeps the colours of the three known runs, whoever else is there", () => {
  const looks = graphs.looksOf([
    "Random",
    "LeastConnections",
    "TwoChoices",
    "Baseline",
    "LeastConnections",
  ]);
  assert.equal(
    looks.map(({ line }) => line.name),
    ["line1", "line2", "line3", "line0", "line4"],
  );
});

texts("gives eight runs eight colours and eight dashes", () => {
  const looks = graphs.looksOf([..."abcdefgh"]);
  for (const property of ["line", "text", "dash"] as const)
    assert.is(new Set(looks.map((look) => JSON.stringify(look[property]))).size, 8, property);
});

texts("has contrast enough in both themes: 4.5:1 for text, 3:1 for lines", () => {
  const luminance = (colour: string): number => {
    const [r = 0, g = 0, b = 0] = [1, 3, 5]
      .map((at) => parseInt(colour.slice(at, at + 2), 16) / 255)
      .map((c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const contrast = (a: string, b: string): number =>
    (Math.max(luminance(a), luminance(b)) + 0.05) / (Math.min(luminance(a), luminance(b)) + 0.05);
  for (const { line, text } of graphs.looksOf([..."abcdefgh"])) {
    assert.ok(
      contrast(text.light, "#ffffff") >= 4.5 && contrast(text.dark, "#0d1117") >= 4.5,
      text.name,
    );
    assert.ok(
      contrast(line.light, "#ffffff") >= 3 && contrast(line.dark, "#0d1117") >= 3,
      line.name,
    );
  }
});

texts("escapes markup, and what XML cannot hold", () => {
  assert.is(graphs.escape(`<a b="c">&'`), "&lt;a b=&quot;c&quot;&gt;&amp;&#39;");
  assert.is(graphs.escape("a\u0000b\ud800c😀"), "a\ufffdb\ufffdc😀");
});

texts("shortens a name in the middle, wide scripts twice as much", () => {
  assert.is(graphs.shorten("Least Connections", 17), "Least Connections");
  assert.is(graphs.shorten("abcdefghij", 5), "ab…ij");
  assert.is([...graphs.shorten("負荷分散装置の試験結果", 9)].length, 5);
});

texts("breaks lines between words", () => {
  assert.equal(graphs.wrap("one two three", 7), ["one two", "three"]);
  assert.equal(graphs.wrap("unbreakable a", 4), ["unbreakable", "a"]);
});

texts("rounds coordinates to a tenth", () => {
  assert.equal([1, 1.25, 0.04, -0.04, 99.96].map(graphs.round), ["1", "1.3", "0", "0", "100"]);
});

texts("writes times to three digits and shares to a tenth of a per cent", () => {
  assert.equal([0, 0.05123, 1.2345, 123.4, 4.77e-5, -0.0155].map(graphs.seconds), [
    "0",
    "0.0512",
    "1.23",
    "123",
    "4.77e-5",
    "-0.0155",
  ]);
  assert.equal([0, 0.0001, 0.1234, 1].map(graphs.percent), ["0 %", "< 0.1 %", "12.3 %", "100 %"]);
});

texts("says which run is faster, by how much, and how certain that is", () => {
  const slow = clients(50, 1, 1);
  const runs = runsOf({
    RoundRobin: slow,
    LeastConnections: slow.map((requests) => requests.map((value) => value / 2)),
  });
  assert.match(
    graphs.verdict(runs, ({ title }) => title),
    /^Least Connections answers first requests 0\.\d+ s sooner than Round Robin on average \(0\.\d+ against 1\.\d+ s; 95 % interval over clients 0\.\d+ to \d\.\d+ s, paired\)\.$/,
  );
});

texts("finds no clear difference where the interval holds zero", () => {
  const runs = runsOf({ RoundRobin: clients(50, 1, 0.3), LeastConnections: clients(50, 2, 0.3) });
  assert.match(
    graphs.verdict(runs, ({ title }) => title),
    /^No clear difference between .+; 95 % interval of the difference over clients -0\.\d+ to 0\.\d+ s, paired\)\.$/,
  );
});

texts("finds no clear difference between equal runs", () => {
  const equal = Array.from({ length: 30 }, () => [0.5]);
  assert.match(
    graphs.verdict(runsOf({ a: equal, b: equal }), ({ title }) => title),
    /^No clear difference .*0 to 0 s/,
  );
});

texts("says how many runs the two were chosen from", () => {
  assert.match(
    graphs.verdict(EIGHT, ({ title }) => title),
    /; the fastest two of 7\)\.$/,
  );
});

texts("gives no verdict on few clients, on one run or on none", () => {
  const name = ({ title }: graphs.Run): string => title;
  assert.match(
    graphs.verdict(runsOf({ a: [[1]], b: [[2]] }), name),
    /^a against b: 1 against 2 s .* no verdict with fewer than 20 clients each\.$/,
  );
  assert.is(
    graphs.verdict(runsOf({ a: [[1], [2]], b: [[]] }), name),
    "First requests took 1.5 s on average in a; there is no other run to compare.",
  );
  assert.is(graphs.verdict(runsOf({ a: [[]] }), name), "There are no answers to compare.");
});

texts("aligns the table and prints no percentile that the sample does not carry", () => {
  const lines = graphs
    .table(
      runsOf({
        RoundRobin: clients(20, 1, 1).map((requests) => requests.slice(0, 1)),
        Empty: [[], []],
      }),
    )
    .split("\n");
  assert.is(
    lines[0],
    "response time (s)  clients  answers  first mean    p50  p90  p95  p99    max",
  );
  assert.match(
    lines[1] ?? "",
    /^Round Robin             20       20       \d\.\d{3}  \d\.\d{3}    -    -    -  \d\.\d{3}$/,
  );
  assert.is(
    lines[2],
    "Empty                    2        0           -      -    -    -    -      -",
  );
  assert.is(lines[3], "-: too few answers (p90 needs 29, p95 59, p99 299)");
});

texts("gives short times the decimals they need", () => {
  assert.match(
    graphs.table(runsOf({ fast: Array.from({ length: 300 }, () => [0.00051]) })),
    /0\.000510/,
  );
});

texts("says which share was answered within a time, the time itself included", () => {
  const lines = graphs
    .table(runsOf({ RoundRobin: [[0.1, 0.2], [0.3]], Empty: [[]] }), 0.2)
    .split("\n");
  assert.match(lines[0] ?? "", /  max  within 0\.2 s$/);
  assert.match(lines[1] ?? "", /  0\.300 {7}66\.67 %$/);
  assert.match(lines[2] ?? "", / -$/);
});

texts.run();

// ─── Picture ─────────────────────────────────────────────────────────────────

const picture = suite("generate_graphs: picture");

/** Inputs at the limits of what can be drawn. */
const PICTURES: Readonly<Record<string, graphs.Run[]>> = {
  three: THREE,
  eight: EIGHT,
  two: THREE.slice(1),
  "one value": runsOf({ RoundRobin: [[0.5]] }),
  "equal values": runsOf({ a: [[0.5, 0.5], [0.5]], b: [[0.5]] }),
  zeros: runsOf({ a: [[0], [0, 0]], b: [[0]] }),
  "zeros and the longest": runsOf({ a: [[0, 1e6]], b: [[0], [1e-9, 0.3]] }),
  microseconds: runsOf({
    a: clients(100, 1, 9).map((requests) => requests.map((value) => value / 1e4)),
    b: [[4e-5]],
  }),
  "wide names": runsOf({
    "Round<Robin>&\"'\u0007": [[1]],
    負荷分散装置の試験結果負荷分散装置の試験結果: [[1, 2]],
    ["W".repeat(99)]: [[3], [4]],
  }),
  "one without answers": [...THREE, ...runsOf({ a: [], b: [[]] })],
};

/**
 * The boxes of all texts: 0.56 em a character (1 em for wide scripts and letters), from the top of
 * a capital to below a comma.
 */
function boxesOf(
  svg: string,
): { content: string; left: number; right: number; top: number; bottom: number }[] {
  return [
    ...svg.matchAll(
      /<text x="([\d.]+)" y="([\d.]+)"(?: text-anchor="(\w+)")?(?: font-size="(\d+)")?[^>]*>(.*?)<\/text>/g,
    ),
  ].map(([, x, y, anchor, size = "18", markup = ""]) => {
    const content = markup.replace(/<.*?>/g, "").replace(/&[#\w]+;/g, "&");
    const width = [...content].reduce(
      (sum, character) =>
        sum + (/[MW@\u2e80-\u{10ffff}]/u.test(character) ? 1 : 0.56) * Number(size),
      0,
    );
    const left = Number(x) - (anchor === "end" ? width : anchor === "middle" ? width / 2 : 0);
    return {
      content,
      left,
      right: left + width,
      top: Number(y) - 0.7 * Number(size),
      bottom: Number(y) + 2,
    };
  });
}

picture("is, to the byte, the golden one", async () => {
  const read = async (name: string): Promise<number[][]> =>
    graphs.parseTimes(await readFile(join(GOLDEN, `${name}.json`), "utf8"));
  const runs = runsOf({
    Baseline: await read("Baseline"),
    RoundRobin: await read("RoundRobin"),
    LeastConnections: await read("LeastConnections"),
  });
  assert.fixture(
    graphs.drawPicture(runs),
    await readFile(join(GOLDEN, "response_times.svg"), "utf8"),
  );
});

picture("holds no number that is not one", () => {
  for (const [name, runs] of Object.entries(PICTURES))
    assert.not.match(graphs.drawPicture(runs), /NaN|Infinity|undefined/, name);
});

picture("keeps every text within the view box", () => {
  for (const [name, runs] of Object.entries(PICTURES)) {
    for (const { content, left, right, top, bottom } of boxesOf(graphs.drawPicture(runs))) {
      assert.ok(left >= 0 && right <= 960 && top >= 0 && bottom <= 800, `${name}: ${content}`);
    }
  }
});

picture("lets no two texts collide", () => {
  for (const [name, runs] of Object.entries(PICTURES)) {
    const boxes = boxesOf(graphs.drawPicture(runs));
    assert.ok(boxes.length > 15, name);
    for (const [place, a] of boxes.entries()) {
      const b = boxes
        .slice(place + 1)
        .find(
          (other) =>
            a.left < other.right &&
            other.left < a.right &&
            a.top < other.bottom &&
            other.top < a.bottom,
        );
      assert.is(b, undefined, `${name}: "${a.content}" and "${b?.content}"`);
    }
  }
});

picture("draws nothing outside the view box", () => {
  for (const [name, runs] of Object.entries(PICTURES)) {
    for (const [, path = ""] of graphs.drawPicture(runs).matchAll(/ d="([^"]*)"/g)) {
      for (const [, command, x = ""] of path.matchAll(/([MLHV])(-?[\d.]+)/g)) {
        assert.ok(Number(x) >= 0 && Number(x) <= (command === "V" ? 800 : 960), `${name}: ${path}`);
      }
    }
  }
});

picture("closes every tag it opens, whatever the names are", () => {
  for (const [name, runs] of Object.entries(PICTURES)) {
    const open: string[] = [];
    for (const [, close, tag = "", alone] of graphs
      .drawPicture(runs)
      .matchAll(/<(\/?)(\w+)[^>]*?(\/?)>/g)) {
      if (close) assert.is(open.pop(), tag, name);
      else if (!alone) open.push(tag);
    }
    assert.equal(open, [], name);
  }
});

picture("has a title, a description and the labels of the original", () => {
  const svg = graphs.drawPicture(THREE);
  assert.match(svg, /^<svg [^>]*viewBox="0 0 960 800"[^>]*role="img"/);
  assert.match(
    svg,
    /<title [^>]*>Response Time Histograms: Baseline, Round Robin, Least Connections<\/title>/,
  );
  assert.match(
    svg,
    /<desc [^>]*>.*Round Robin: \d+ answers, median 0\.\d+ s, maximum .*Least Connections answers first requests/,
  );
  for (const label of [
    "Response Time Histograms",
    "Relative Frequency",
    "Response Time (s)",
    "failures are not in the files",
  ])
    assert.ok(svg.includes(label), label);
});

picture("says whether all runs had the same plan", () => {
  assert.ok(graphs.drawPicture(THREE).includes("same plan in every run"));
  assert.ok(
    graphs.drawPicture(runsOf({ a: [[1]], b: [[1, 2]] })).includes("plans or failures differ"),
  );
  assert.not.match(graphs.drawPicture(runsOf({ a: [[1]] })), /same plan|plans or/);
});

picture("shows a long tail as a last bin, with its share and maximum", () => {
  const svg = graphs.drawPicture(runsOf({ a: [[0.5, 0.5, 0.5, 80]] }));
  assert.ok(svg.includes("&gt; 3 s, max"));
  assert.ok(svg.includes("25 %, 80 s"));
  assert.not.match(graphs.drawPicture(runsOf({ a: [[0.5, 0.9]] })), /&gt; /);
});

picture("lists a run without answers, and draws the others", () => {
  const svg = graphs.drawPicture([...runsOf({ Baseline: [[], []] }), ...THREE.slice(1)]);
  assert.ok(svg.includes("Baseline no answers"));
  assert.is(svg.match(/>Round Robin</g)?.length, 2, "labels of B and C");
});

picture("repaints all its colours where the reader prefers dark", () => {
  const svg = graphs.drawPicture(EIGHT);
  const style = /<style>(.*)<\/style>/.exec(svg)?.[1] ?? "";
  assert.match(style, /^@media \(prefers-color-scheme: dark\)\{/);
  for (const [, classes = ""] of svg.matchAll(/ class="([fs]-[^"]*)"/g)) {
    for (const name of classes.split(" "))
      assert.ok(style.includes(`.response-times .${name}{`), name);
  }
});

picture("draws an outline that returns to the axis at empty bins", () => {
  assert.is(
    graphs.outline(
      [0.5, 0, 0.25, 0.25],
      (bin) => bin * 10,
      (share) => 100 - share * 100,
    ),
    "M0 100V50H10V100M20 100V75H30V75H40V100",
  );
});

picture("draws a distribution of many values with few steps, and ends at the last", () => {
  const values = Array.from({ length: 10_000 }, (_, place) => place / 100);
  const path = graphs.ecdfPath(
    values,
    (value) => value,
    (share) => 100 - share * 100,
  );
  assert.is(path.match(/H/g)?.length, 100);
  assert.match(path, /^M0 100H/);
  assert.match(path, /H100V0$/);
});

picture.run();

// ─── Command line ────────────────────────────────────────────────────────────

const command = suite("generate_graphs: command line");
command.after.each(cleanUp);

/** A folder with these files; what is not a text is written as JSON. */
async function folderOf(files: Readonly<Record<string, unknown>>): Promise<string> {
  const folder = await temporaryFolder();
  for (const [name, content] of Object.entries(files))
    await writeFile(
      join(folder, name),
      typeof content === "string" ? content : JSON.stringify(content),
    );
  return folder;
}
const exists = (file: string): Promise<boolean> =>
  stat(file).then(
    () => true,
    () => false,
  );
const script = (args: readonly string[], cwd?: string): ReturnType<typeof run> =>
  run("generate_graphs.ts", args, cwd);

command(
  "reads data/ without arguments, prints table, verdict and path, writes the picture there",
  async () => {
    const folder = await temporaryFolder();
    await mkdir(join(folder, "data"));
    for (const name of ["Baseline", "RoundRobin", "LeastConnections"])
      await writeFile(
        join(folder, "data", `${name}.json`),
        await readFile(join(GOLDEN, `${name}.json`)),
      );
    const { code, stdout, stderr } = await script([], folder);
    assert.equal([code, stderr], [0, ""]);
    assert.match(
      stdout,
      /^response time \(s\) .*\nBaseline .*\nRound Robin .*\nLeast Connections .*\n/,
    );
    assert.match(
      stdout,
      /\n\nLeast Connections answers first requests .*\.\ndata\/response_times\.svg\n$/,
    );
    assert.is(
      await readFile(join(folder, "data/response_times.svg"), "utf8"),
      await readFile(join(GOLDEN, "response_times.svg"), "utf8"),
    );
  },
);

command("draws the missing three's others, names the missing one and exits 1", async () => {
  const folder = await folderOf({ "RoundRobin.json": [[1]], "LeastConnections.json": [[2]] });
  const { code, stderr } = await script(["--data", folder]);
  assert.is(code, 1);
  assert.is(stderr, `Cannot draw ${join(folder, "Baseline.json")}: no such file or directory\n`);
  assert.ok(await exists(join(folder, "response_times.svg")));
});

command("writes beside the first named file, or where --out says", async () => {
  const folder = await folderOf({ "a.json": [[1]], "b.json": [[2]] });
  assert.is(
    (await script([join(folder, "b.json"), join(folder, "a.json")])).stdout
      .trim()
      .split("\n")
      .at(-1),
    join(folder, "response_times.svg"),
  );
  assert.is((await script(["a.json", "--out", "other.svg"], folder)).code, 0);
  assert.ok(
    (await exists(join(folder, "response_times.svg"))) && (await exists(join(folder, "other.svg"))),
  );
});

command(
  "names each malformed file and the place in it, in one line each, and draws the rest",
  async () => {
    const bad: Record<string, [content: string, complaint: RegExp]> = {
      "empty.json": ["", /the file is empty: expected an array of clients/],
      "text.json": ["no\njson\u0007", /not JSON: .+/],
      "object.json": ['{"a": 1}', /expected an array of clients, not an object/],
      "flat.json": ["[[1], 2]", /client 2: expected an array of times, not 2/],
      "string.json": [
        '[[1], [], [0.5, "abc"]]',
        /client 3, request 2: "abc" is not a time in seconds/,
      ],
      "negative.json": ["[[-0.5]]", /client 1, request 1: -0\.5 is not a time in seconds/],
      "huge.json": ["[[1, 1e999]]", /client 1, request 2: Infinity is not a time in seconds/],
    };
    const folder = await folderOf({
      "good.json": [[0.5]],
      ...Object.fromEntries(Object.entries(bad).map(([name, [content]]) => [name, content])),
    });
    const { code, stdout, stderr } = await script(["good.json", ...Object.keys(bad)], folder);
    const lines = stderr.trim().split("\n");
    assert.is(code, 1);
    assert.is(lines.length, Object.keys(bad).length);
    for (const [place, [name, [, complaint]]] of Object.entries(bad).entries()) {
      assert.ok(lines[place]?.startsWith(`Cannot draw ${name}: `), lines[place]);
      assert.match(lines[place] ?? "", complaint);
    }
    assert.match(stdout, /\ngood .*\nresponse_times\.svg\n$/s);
  },
);

command("refuses null, nested arrays, milliseconds since 1970 and long texts as times", () => {
  const cases: [string, RegExp][] = [
    ["[[null]]", /: null is not/],
    ["[[[1]]]", /: an array is not/],
    ["[[1700000000000]]", /: 1700000000000 is not/],
    ["[[true]]", /: true is not/],
    [`[["${"x".repeat(99)}"]]`, /: "x{40}…" is not/],
    ["null", /not null$/],
    ["[null]", /client 1: .* not null$/],
  ];
  for (const [text, complaint] of cases) assert.throws(() => graphs.parseTimes(text), complaint);
});

command("writes no picture when no file can be drawn", async () => {
  const folder = await folderOf({ "a.json": "[" });
  const { code, stdout, stderr } = await script(["a.json", "missing.json"], folder);
  assert.equal([code, stdout, stderr.trim().split("\n").length], [1, "", 2]);
  assert.not(await exists(join(folder, "response_times.svg")));
});

command("lists runs without answers, and says so when there are no others", async () => {
  const folder = await folderOf({ "a.json": [], "b.json": [[], []], "c.json": [[1]] });
  const some = await script(["a.json", "b.json", "c.json"], folder);
  assert.equal([some.code, some.stderr], [0, ""]);
  assert.match(some.stdout, /\na +0 +0 +-.*\nb +2 +0 +-/);
  const none = await script(["a.json", "b.json", "--out", "none.svg"], folder);
  assert.equal(
    [none.code, none.stderr],
    [1, "Cannot write none.svg: there are no answers to draw\n"],
  );
  assert.not(await exists(join(folder, "none.svg")));
});

command("reports a picture that cannot be written in one line", async () => {
  const folder = await folderOf({ "a.json": [[1]] });
  const { code, stderr } = await script(["a.json", "--out", "nowhere/picture.svg"], folder);
  assert.equal(
    [code, stderr],
    [1, "Cannot write nowhere/picture.svg: no such file or directory\n"],
  );
});

command("refuses bad arguments: one line, the usage, exit 2", async () => {
  const folder = await folderOf({ "a.json": [[1]] });
  const cases: [args: string[], complaint: RegExp][] = [
    [["--bins", "7"], /^Unknown option "--bins"/],
    [["a.json", "./a.json"], /^Bad file "\.\/a\.json": expected each file once/],
    [[..."123456789"], /^Bad file "9": expected at most 8 files/],
    [["a.json", "--data", "data"], /^Bad --data "data": expected either --data or files, not both/],
    [
      ["a.json", "--out", "a.json"],
      /^Bad --out "a\.json": expected another file than those to read/,
    ],
  ];
  for (const [args, complaint] of cases) {
    const { code, stdout, stderr } = await script(args, folder);
    const [first = "", ...rest] = stderr.trim().split("\n");
    assert.equal([code, stdout, rest], [2, "", [USAGE]], args.join(" "));
    assert.match(first, complaint);
  }
  assert.is(await readFile(join(folder, "a.json"), "utf8"), "[[1]]");
});

command("prints its usage for --help", async () => {
  const { code, stdout } = await script(["--help"]);
  assert.is(code, 0);
  assert.ok(
    stdout.startsWith(USAGE) && stdout.includes("--data DIR") && stdout.includes("--out FILE"),
    stdout,
  );
});

command.run();
