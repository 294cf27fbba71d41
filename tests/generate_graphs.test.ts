/**
 * The statistics against known answers, the picture by what can be checked without eyes (its bytes,
 * its colours, its text boxes), and the command line with good and bad files.
 *
 * tests/golden holds a small input and its picture. When the picture is meant to change, look at
 * it, then renew it:
 *   npx tsx generate_graphs.ts --data tests/golden
 */
import {
  chmod,
  link,
  lstat,
  mkdir,
  readdir,
  readFile,
  stat,
  symlink,
  writeFile,
} from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import * as graphs from "../generate_graphs.ts";
import { UsageError } from "../lib.ts";
import {
  boxesOf,
  call,
  checkXml,
  clients,
  collision,
  entryOf,
  measured,
  overflow,
  recordOf,
  runsOf,
  unknown,
  writeRuns,
} from "./graphs_fixtures.ts";
import { cleanUp, coverNoChildren, run, start, temporaryFolder, within } from "./helpers.ts";

coverNoChildren();

const GOLDEN = fileURLToPath(new URL("golden", import.meta.url));
const USAGE = "How to Use: tsx generate_graphs.ts [file ...]";
const seriesOf = (...values: number[]): Float64Array => Float64Array.from(values);

const THREE = [
  measured("Baseline", [clients(60, 1, 6)]),
  ...["RoundRobin", "LeastConnections"].map((name, place) =>
    measured(
      name,
      [1, 2, 3, 4, 5, 6].map((seed) => clients(60, seed + 10 * place, 0.9 - 0.6 * place)),
    ),
  ),
];
const EIGHT = unknown(
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

statistics("counts each value in one bin, the top itself in the last", () => {
  assert.equal(graphs.histogram(seriesOf(0, 0.3, 0.5, 1), 1, 4), {
    shares: [0.25, 0.25, 0.25, 0.25],
    beyond: 0,
  });
  assert.equal(
    graphs.histogram(seriesOf(0.3), 2, 20).shares.indexOf(1),
    3,
    "a value on an edge belongs to the bin above",
  );
});

statistics("keeps what lies beyond the top, as a share of all values", () => {
  assert.equal(graphs.histogram(seriesOf(0.5, 1.1, 9, 10), 1, 2), {
    shares: [0, 0.25],
    beyond: 0.75,
  });
});

statistics("has an empty histogram of nothing", () => {
  assert.equal(graphs.histogram(seriesOf(), 1, 2), { shares: [0, 0], beyond: 0 });
});

statistics("ends the histogram above the maximum, unless it exceeds six medians", () => {
  assert.is(graphs.histogramTop(seriesOf(0.4, 0.5, 0.92)), 1);
  assert.is(graphs.histogramTop(seriesOf(0.5, 0.5, 2.9)), 3);
  assert.is(graphs.histogramTop(seriesOf(0.5, 0.5, 80)), 3);
});

statistics("ends the histogram of zeros at 1, and of mostly zeros at the maximum", () => {
  assert.is(graphs.histogramTop(seriesOf(0, 0)), 1);
  assert.is(graphs.histogramTop(seriesOf(0, 0, 0, 5)), 5);
});

statistics("puts a value on an edge into the bin above, whatever the axis", () => {
  for (let top = 1; top <= 600; top++) {
    for (let edge = 0; edge < 20; edge++) {
      const value = Number(((top * edge) / 20 / 1000).toFixed(9));
      const { shares } = graphs.histogram(seriesOf(value), top / 1000, 20);
      assert.is(shares.indexOf(1), edge, `${value} of ${top / 1000}`);
    }
  }
});

statistics("spreads whole milliseconds evenly, without a comb", () => {
  const times = Float64Array.from({ length: 100 }, (_, ms) => ms / 1000);
  const { shares } = graphs.histogram(times, graphs.histogramTop(times), 20);
  assert.equal(new Set(shares), new Set([0.05]));
});

statistics("counts a failed request as one that never ends", () => {
  const answers = seriesOf(1, 2, 3, 4);
  assert.is(graphs.quantileWith(answers, 0, 0.5), 2.5);
  assert.is(graphs.quantileWith(answers, 1, 0.5), 3);
  assert.is(graphs.quantileWith(answers, 1, 0.95), Infinity);
  assert.is(graphs.quantileWith(answers, 5, 0.5), Infinity);
  assert.is(graphs.quantileWith(seriesOf(), 3, 0.5), Infinity);
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
  assert.is(graphs.logRungs(1e-12, 1)[0], 1e-9);
  assert.is(graphs.logRungs(5e-324, 5e-324)[0], 1e-9);
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
  const title = (file: string): string => graphs.titlesOf([file])[0] ?? "";
  assert.equal(["data/RoundRobin.json", "Baseline.json", "two-choices_10.json"].map(title), [
    "Round Robin",
    "Baseline",
    "two choices 10",
  ]);
  assert.is(title("_.json"), "_", "a name without words stays as it is");
});

texts("lets names grow until they differ", () => {
  const cases: [files: string[], titles: string[]][] = [
    [
      ["before/RoundRobin.json", "after/RoundRobin.json", "after/Random.json"],
      ["before/Round Robin", "after/Round Robin", "Random"],
    ],
    [
      ["before/data/RoundRobin.json", "after/data/RoundRobin.json"],
      ["before/data/Round Robin", "after/data/Round Robin"],
    ],
    [
      ["RoundRobin.json", "Round-Robin.json"],
      ["RoundRobin", "Round-Robin"],
    ],
    [
      ["/a/x.json", "/a/x"],
      ["x.json", "x"],
    ],
  ];
  for (const [files, titles] of cases) assert.equal(graphs.titlesOf(files), titles);
  assert.is(new Set(graphs.titlesOf(["/a/x.json", "/a/x.json", "/a/x.json"])).size, 3);
});

texts("shortens different names into different labels", () => {
  const titles = [
    "Least Connections server connections 10",
    "Least Connections client connections 10",
    "Least Connections server connections 20",
  ];
  for (const room of [90, 146, 170, 300])
    assert.is(new Set(graphs.labelsOf(titles, room)).size, 3, graphs.labelsOf(titles, room).join());
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
    ["line3", "line2", "line4", "line0", "line5"],
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

texts("keeps every legal character, and writes control characters as escapes", () => {
  assert.is(graphs.oneLine("👩\u200d💻\u00adx"), "👩\u200d💻\u00adx");
  assert.is(graphs.oneLine("a\u0007b\u009bc\n d"), "a\\u0007b\\u009bc d");
});

texts("shortens a name in the middle, within its room", () => {
  assert.is(graphs.shorten("Least Connections", 182), "Least Connections");
  assert.match(graphs.shorten("abcdefghij", 60), /^ab?…i?j$/);
  for (const name of [
    "m".repeat(14),
    "W".repeat(30),
    "%".repeat(20),
    "负载均衡器的测试结果",
    "Жёлтый Щит Шумит",
  ])
    for (const room of [60, 120, 174])
      assert.ok(graphs.widthOf(graphs.shorten(name, room)) <= room, name);
});

texts("breaks lines between words, but never before a per cent sign", () => {
  assert.equal(graphs.wrap("one two three", 82), ["one two", "three"]);
  assert.equal(graphs.wrap("about 95 % of all", 84), ["about", "95 % of", "all"]);
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
  assert.equal(
    [0, 0.0001, 0.1234, 1].map((share) => graphs.percent(share)),
    ["0 %", "< 0.1 %", "12.3 %", "100 %"],
  );
});

texts.run();

// ─── Picture ─────────────────────────────────────────────────────────────────

const picture = suite("generate_graphs: picture");

const FAILING = measured("RoundRobin", runsOf([0.1, 0.2]), {
  runs: runsOf([0.1, 0.2]).map((own, place) => ({ ...recordOf(place, own), planned: 60 })),
});

/** Inputs at the limits of what can be drawn. */
const PICTURES: Readonly<Record<string, graphs.Setup[]>> = {
  three: THREE,
  eight: EIGHT,
  two: THREE.slice(1),
  failing: [FAILING, ...THREE.slice(2)],
  "one value": unknown({ RoundRobin: [[0.5]] }),
  "equal values": unknown({ a: [[0.5, 0.5], [0.5]], b: [[0.5]] }),
  zeros: unknown({ a: [[0], [0, 0]], b: [[0]] }),
  "zeros and the longest": unknown({ a: [[0, 1e6]], b: [[0], [1e-9, 0.3]] }),
  denormal: unknown({ a: [[5e-324]], b: [[5e-7]] }),
  microseconds: unknown({
    a: clients(100, 1, 9).map((requests) => requests.map((value) => value / 1e4)),
    b: [[4e-5]],
  }),
  outlier: unknown({ a: [...clients(300, 1, 0.3), [600]], b: clients(300, 2, 0.3) }),
  "wide names": unknown({
    "Round<Robin>&\"'\u0007": [[1]],
    負荷分散装置の試験結果負荷分散装置の試験結果: [[1, 2]],
    ["W".repeat(99)]: [[3], [4]],
    [`%m${"m".repeat(60)}`]: [[3], [4]],
    "Балансировщик наименьших соединений Ж": [[1]],
    "👩\u200d💻👩\u200d💻👩\u200d💻👩\u200d💻👩\u200d💻": [[2]],
  }),
  "one without answers": [...THREE, ...unknown({ a: [], b: [[]] })],
};

picture("is, to the byte, the golden one", async () => {
  const folder = await temporaryFolder();
  const { code } = await call([GOLDEN, "--out", "it.svg"], folder);
  assert.is(code, 0);
  assert.fixture(
    await readFile(join(folder, "it.svg"), "utf8"),
    await readFile(join(GOLDEN, "response_times.svg"), "utf8"),
  );
});

picture("is well-formed XML, and holds no number that is not one", () => {
  for (const [name, setups] of Object.entries(PICTURES)) {
    const svg = graphs.drawPicture(setups);
    checkXml(svg);
    assert.not.match(svg, /NaN|Infinity|undefined/, name);
  }
});

picture("keeps every text within the view box, and no two on each other", () => {
  for (const [name, setups] of Object.entries(PICTURES)) {
    const svg = graphs.drawPicture(setups);
    const boxes = boxesOf(svg);
    assert.ok(boxes.length > 12, name);
    assert.is(overflow(svg, boxes), undefined, name);
    assert.is(collision(boxes), undefined, name);
  }
});

picture("draws nothing outside the view box", () => {
  for (const [name, setups] of Object.entries(PICTURES)) {
    const svg = graphs.drawPicture(setups);
    const height = Number(/ height="(\d+)"/.exec(svg)?.[1]);
    for (const [, path = ""] of svg.matchAll(/ d="([^"]*)"/g)) {
      for (const [, command, x = ""] of path.matchAll(/([MLHV])(-?[\d.]+)/g)) {
        const most = command === "V" ? height : 960;
        assert.ok(Number(x) >= 0 && Number(x) <= most, `${name}: ${path}`);
      }
    }
  }
});

picture("has at least 28 units of air between an axis' labels and the next heading", () => {
  for (const [name, setups] of Object.entries(PICTURES)) {
    const boxes = boxesOf(graphs.drawPicture(setups));
    for (const heading of ["Share still waiting", "First requests "]) {
      const top = boxes.find(({ content }) => content.startsWith(heading))?.top ?? 0;
      const above = boxes.filter((box) => box.bottom < top).map(({ bottom }) => bottom);
      assert.ok(top - Math.max(...above) >= 28, `${name}: ${heading}`);
    }
  }
});

picture("has a size, a title, a description and the labels of the original", () => {
  const svg = graphs.drawPicture(THREE);
  assert.match(svg, /^<svg [^>]*width="960" height="(\d+)" viewBox="0 0 960 \1"[^>]*role="img"/);
  const title = "Response Time Histograms: Baseline, Round Robin, Least Connections";
  assert.match(svg, new RegExp(`<title [^>]*>${title}</title>`));
  assert.match(
    svg,
    /<desc [^>]*>.*Round Robin: \d+ answers, median 0\.\d+ s, maximum .*sooner than/,
  );
  for (const label of ["Response Time Histograms", "Relative Frequency", "Response Time (s)"])
    assert.ok(svg.includes(`>${label}<`), label);
});

picture("has ids of its own, so that two can stand in one page", () => {
  const ids = (svg: string): string[] =>
    [...svg.matchAll(/ id="([^"]+)"/g)].map(([, id = ""]) => id);
  const [a, b] = [graphs.drawPicture(THREE), graphs.drawPicture(EIGHT)];
  assert.is(new Set([...ids(a), ...ids(b)]).size, 4);
  assert.is(a, graphs.drawPicture(THREE), "and the same for the same");
});

picture("tells the load as a share of capacity, n, and that the plan was the same", () => {
  const svg = graphs.drawPicture(THREE);
  assert.ok(
    svg.includes("Offered load: 8 clients a second; 8 % of capacity. Same plan for all."),
    svg,
  );
  assert.ok(svg.includes(">Round Robin, n = 6 × 60<"));
  assert.ok(svg.includes(">Baseline, n = 60<"));
  assert.ok(svg.includes("n: runs × clients. Shares are of answered requests; none failed."));
});

picture("claims the same plan only where runs.json does", () => {
  assert.not.match(graphs.drawPicture(unknown({ a: [[1]], b: [[2]] })), /[Pp]lan/);
  assert.ok(graphs.drawPicture(unknown({ a: [[1]] })).includes("failures unknown"));
  const other = measured("b", runsOf([1]), { plan: { clients: 20, rate: 9 } });
  assert.not.match(graphs.drawPicture([FAILING]), /[Pp]lan/);
  assert.match(graphs.drawPicture([other, FAILING]), / The plans</);
  assert.match(graphs.drawPicture([other, FAILING]), />differ\.</);
});

picture("tells how many failed, and lets their curve end above the floor", () => {
  const svg = graphs.drawPicture([FAILING, ...THREE.slice(2)]);
  assert.ok(svg.includes("failed: 40 of Round Robin&#39;s 120 requests."));
  const path = graphs.waitingPath(
    seriesOf(1, 2),
    4,
    (x) => 100 + x,
    (y) => y,
  );
  assert.is(path, "M104 1H101V0.8H102V0.5H712");
});

picture("says that what it shows is simulated", () => {
  const simulated = measured("b", runsOf([1]), { simulated: true });
  assert.ok(graphs.drawPicture([simulated]).includes(" Simulated.<"));
  assert.ok(graphs.drawPicture([simulated, FAILING]).includes(" Simulated: b.<"));
});

picture("shows a long tail as a last bin, with its share and maximum", () => {
  const svg = graphs.drawPicture(unknown({ a: [[0.5, 0.5, 0.5, 80]] }));
  assert.ok(svg.includes("&gt; 3 s, max"));
  assert.ok(svg.includes("25 %, 80 s"));
  assert.not.match(graphs.drawPicture(unknown({ a: [[0.5, 0.9]] })), /&gt; /);
});

picture("holds every value on its axis, and draws few of them one by one", () => {
  const svg = graphs.drawPicture(unknown({ a: [[0.01], [1]] }));
  assert.ok(svg.includes(">0.01<"));
  assert.is(svg.match(/<circle /g)?.length, 2);
  const many = graphs.drawPicture(unknown({ a: Array.from({ length: 60 }, () => [1]) }));
  assert.not.match(many, /<circle /);
});

picture("has a dot for the mean of each run", () => {
  const dots = graphs.drawPicture(THREE.slice(1)).match(/<circle [^>]* r="3" /g);
  assert.is(dots?.length, 12);
  assert.ok(graphs.drawPicture(THREE.slice(1)).includes("○ mean of each run"));
});

picture("lists a run without answers, and draws the others", () => {
  const svg = graphs.drawPicture([...unknown({ Baseline: [[], []] }), ...THREE.slice(1)]);
  assert.ok(svg.includes("Baseline, no answers"));
  assert.is(svg.match(/>Round Robin</g)?.length, 2, "labels of B and C");
});

picture("shows the first eight, and judges all", () => {
  const ten = Array.from({ length: 10 }, (_, place) =>
    measured(`S${place}`, runsOf([1, 1.1, 1.2, 1.3, 1.45].map((time) => time * (12 - place)))),
  );
  const svg = graphs.drawPicture(ten);
  assert.ok(svg.includes(">S7<") && !svg.includes(">S8<"));
  assert.match(svg, />S9 answers first requests /);
});

picture("repaints all its colours where the reader prefers dark", () => {
  const svg = graphs.drawPicture(EIGHT);
  const style = /<style>(.*)<\/style>/.exec(svg)?.[1] ?? "";
  assert.match(style, /^@media \(prefers-color-scheme: dark\)\{/);
  for (const [, classes = ""] of svg.matchAll(/ class="([fs]-[^"]*)"/g)) {
    for (const name of classes.split(" ")) assert.match(style, new RegExp(` \\.${name}\\{`), name);
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
  const values = Float64Array.from({ length: 10_000 }, (_, place) => place / 100);
  const path = graphs.waitingPath(
    values,
    10_000,
    (value) => value,
    (share) => 100 - share * 100,
  );
  assert.is(path.match(/H/g)?.length, 100);
  assert.match(path, /H100V100$/);
});

picture.after.each(cleanUp);
picture.run();

// ─── Command line ────────────────────────────────────────────────────────────

const command = suite("generate_graphs: command line");
command.after.each(cleanUp);

/** A folder with these files; what is not a text is written as JSON. */
async function folderOf(files: Readonly<Record<string, unknown>>): Promise<string> {
  const folder = await temporaryFolder();
  for (const [name, content] of Object.entries(files)) {
    const text = typeof content === "string" ? content : JSON.stringify(content);
    await writeFile(join(folder, name), text);
  }
  return folder;
}
const exists = (file: string): Promise<boolean> =>
  stat(file).then(
    () => true,
    () => false,
  );
/** The script as a process of its own. */
const script = (args: readonly string[], cwd?: string): ReturnType<typeof run> =>
  run("generate_graphs.ts", args, cwd);
command("reads data/ without arguments, prints table, verdict and path", async () => {
  const folder = await temporaryFolder();
  await mkdir(join(folder, "data"));
  for (const name of ["Baseline.json", "RoundRobin.json", "LeastConnections.json", "runs.json"])
    await writeFile(join(folder, "data", name), await readFile(join(GOLDEN, name)));
  const { code, stdout, stderr } = await script([], folder);
  assert.equal([code, stderr], [0, ""]);
  assert.match(
    stdout,
    /^response time \(s\) .*\nBaseline .*\nRound Robin .*\nLeast Connections .*\n/,
  );
  assert.match(stdout, /\n\n(No|Least Connections) .*\.\ndata\/response_times\.svg\n$/);
  assert.is(
    await readFile(join(folder, "data/response_times.svg"), "utf8"),
    await readFile(join(GOLDEN, "response_times.svg"), "utf8"),
  );
});

command("draws the missing three's others, names the missing one and exits 1", async () => {
  const folder = await folderOf({ "RoundRobin.json": [[1]], "LeastConnections.json": [[2]] });
  const { code, stderr } = await call(["--data", folder], folder);
  assert.is(code, 1);
  assert.is(stderr, `Cannot draw ${join(folder, "Baseline.json")}: no such file or directory\n`);
  assert.ok(await exists(join(folder, "response_times.svg")));
});

command("reads what runs.json lists, and misses nothing that it does not", async () => {
  const folder = await temporaryFolder();
  await writeRuns(folder, { RoundRobin: runsOf([1]), Random: runsOf([2]) });
  await writeFile(join(folder, "LeastConnections.json"), "[[3]]");
  const { code, stdout, stderr } = await call(["--data", folder], folder);
  assert.equal([code, stderr], [0, ""]);
  assert.match(stdout, /\nRound Robin .*\nLeast Connections +\?.*\nRandom /);
});

command(
  "misses what runs.json lists and is not there, and follows no name out of the folder",
  async () => {
    const folder = await folderOf({
      "runs.json": { Gone: entryOf(runsOf([1])), "../Other": entryOf(runsOf([1])) },
      "Random.json": [[1]],
    });
    const { code, stderr } = await call(["--data", folder], folder);
    assert.equal(
      [code, stderr],
      [1, `Cannot draw ${join(folder, "Gone.json")}: no such file or directory\n`],
    );
  },
);

command("survives a runs.json that is not one, and says so once", async () => {
  const folder = await folderOf({ "runs.json": "[", "a.json": [[1]], "b.json": [[2]] });
  const { code, stdout, stderr } = await call(["a.json", "b.json"], folder);
  assert.is(code, 1);
  assert.match(stderr, /^Cannot read runs\.json: not JSON: .*\n$/);
  assert.match(stdout, /\n\nNo verdict: runs\.json does not tell how a and b were measured\.\n/);
});

command("takes an edited file for one of unknown origin", async () => {
  const folder = await temporaryFolder();
  await writeRuns(folder, { RoundRobin: runsOf([1]), LeastConnections: runsOf([2]) });
  await writeFile(join(folder, "RoundRobin.json"), JSON.stringify(runsOf([1.5]).flat()));
  const { code, stdout } = await call([folder], folder);
  assert.is(code, 0);
  assert.match(stdout, /No verdict: runs\.json does not tell how Round Robin was measured\./);
});

command("takes a folder as its runs, but no partial ones", async () => {
  const folder = await folderOf({
    "b.json": [[1]],
    "a.json": [[1]],
    "RoundRobin.json": [[1]],
    "a.partial.json": [[1]],
    ".draft.json": [[1]],
  });
  const { code, stdout } = await call([folder], folder);
  assert.is(code, 0);
  assert.match(stdout, /^response time .*\nRound Robin .*\na .*\nb .*\n-: /);
  await mkdir(join(folder, "empty"));
  const { stderr } = await call(["empty", "a.json"], folder);
  assert.is(stderr, "Cannot draw empty: there are no runs in it\n");
});

command("has more than eight in the table, and says what the picture shows", async () => {
  const files = Object.fromEntries([..."123456789"].map((name) => [`${name}.json`, [[1]]]));
  const { code, stdout } = await call(["."], await folderOf(files));
  assert.is(code, 0);
  assert.match(stdout, /\n9 +\? /);
  assert.match(stdout, /\nThe picture shows the first 8 of 9\.\n/);
});

command("reads UTF-16 with a byte order mark", async () => {
  const folder = await temporaryFolder();
  const text = Buffer.from("\ufeff[[1],[2.5]]", "utf16le");
  await writeFile(join(folder, "le.json"), text);
  await writeFile(join(folder, "be.json"), Buffer.from(text).swap16());
  await writeFile(join(folder, "u8.json"), "\ufeff[[1],[2.5]]");
  const { code, stdout, stderr } = await call(["le.json", "be.json", "u8.json"], folder);
  assert.equal([code, stderr], [0, ""]);
  assert.is(stdout.match(/ 2\.50$/gm)?.length, 3);
});

command("writes beside the first named file, or where --out says", async () => {
  const folder = await folderOf({ "a.json": [[1]], "b.json": [[2]] });
  const first = await call([join(folder, "b.json"), join(folder, "a.json")], folder);
  assert.is(first.stdout.trim().split("\n").at(-1), join(folder, "response_times.svg"));
  assert.is((await call(["a.json", "--out", "other.svg"], folder)).code, 0);
  assert.ok(await exists(join(folder, "response_times.svg")));
  assert.ok(await exists(join(folder, "other.svg")));
});

command("writes the picture alone to standard output for --out -", async () => {
  const folder = await folderOf({ "a.json": [[1]] });
  const { code, stdout, stderr } = await script(["a.json", "--out", "-"], folder);
  assert.is(code, 0);
  checkXml(stdout);
  assert.match(stderr, /^response time/);
  assert.not(await exists(join(folder, "-")));
});

const NOTHING = {
  data: undefined,
  out: undefined,
  within: undefined,
  curve: undefined,
  overTime: false,
};
/** What the script says of arguments that it refuses. */
const refusal = async (
  named: readonly string[],
  values: Partial<Parameters<typeof graphs.main>[1]> = {},
): Promise<string> => {
  try {
    await graphs.main([...named], { ...NOTHING, ...values });
  } catch (error) {
    if (error instanceof UsageError) return error.message;
    throw error;
  }
  throw new Error(`took ${named.join(" ")}`);
};

command("never overwrites what it reads, whatever links there are", async () => {
  const folder = await folderOf({ "a.json": [[1]], "runs.json": { a: 1 } });
  const path = (name: string): string => join(folder, name);
  await symlink("a.json", path("soft.svg"));
  await link(path("a.json"), path("hard.svg"));
  await link(path("runs.json"), path("runs.svg"));
  await symlink("a.json", path("response_times.svg"));
  for (const out of ["soft.svg", "hard.svg", "runs.svg"])
    assert.match(
      await refusal([path("a.json")], { out: path(out) }),
      /^Bad --out ".*": expected another/,
    );
  assert.match(
    await refusal([path("a.json")]),
    /^Bad --out ".*response_times\.svg": expected another/,
  );
  assert.is(await readFile(path("a.json"), "utf8"), "[[1]]");
});

command("sees the same file in two names", async () => {
  const folder = await folderOf({ "a.json": [[1]] });
  const path = (name: string): string => join(folder, name);
  await symlink("a.json", path("b.json"));
  await link(path("a.json"), path("c.json"));
  for (const other of [`${folder}/./a.json`, path("b.json"), path("c.json"), folder]) {
    const said = await refusal([path("a.json"), other]);
    assert.match(said, /^Bad file ".*\.json": expected each file once$/);
  }
});

command("replaces a link's target and keeps its mode", async () => {
  const folder = await folderOf({ "a.json": [[1]], "real.svg": "old" });
  await chmod(join(folder, "real.svg"), 0o600);
  await symlink("real.svg", join(folder, "link.svg"));
  await symlink("later.svg", join(folder, "dangling.svg"));
  for (const out of ["link.svg", "dangling.svg"])
    assert.is((await call(["a.json", "--out", out], folder)).code, 0);
  assert.ok((await lstat(join(folder, "link.svg"))).isSymbolicLink());
  assert.is((await stat(join(folder, "real.svg"))).mode & 0o777, 0o600);
  assert.match(await readFile(join(folder, "real.svg"), "utf8"), /^<svg/);
  assert.match(await readFile(join(folder, "later.svg"), "utf8"), /^<svg/);
});

command("replaces the picture whole or not at all", async () => {
  const folder = await folderOf({ "a.json": [[1]], "old.svg": "old" });
  const limited = 'ulimit -f 2; exec "$0" "$@"';
  const words = ["sh", "-c", limited];
  const { output, exited } = start(
    "generate_graphs.ts",
    ["a.json", "--out", "old.svg"],
    folder,
    words,
  );
  assert.is(await within(exited, "a picture on a full disk"), 1);
  assert.match(output.stderr, /^Cannot write old\.svg: file too large\n$/);
  assert.is(await readFile(join(folder, "old.svg"), "utf8"), "old");
  assert.equal((await readdir(folder)).sort(), ["a.json", "old.svg"]);
});

command("names each malformed file and the place in it, and draws the rest", async () => {
  const bad: Record<string, [content: string, complaint: RegExp]> = {
    "empty.json": ["", /the file is empty: expected an array of clients/],
    "text.json": ["no\njson\u0007", /not JSON: .+/],
    "object.json": ['{"a": 1}', /expected an array of clients, not an object/],
    "flat.json": ["[[1], 2]", /client 2: expected an array of times, not 2/],
    "string.json": ['[[1], [], [0.5, "abc"]]', /client 3, request 2: "abc" is not a time/],
    "negative.json": ["[[-0.5]]", /client 1, request 1: -0\.5 is not a time in seconds/],
    "huge.json": ["[[1, 1e999]]", /client 1, request 2: Infinity is not a time in seconds/],
  };
  const contents = Object.entries(bad).map(([name, [content]]) => [name, content]);
  const folder = await folderOf({ "good.json": [[0.5]], ...Object.fromEntries(contents) });
  const { code, stdout, stderr } = await call(["good.json", ...Object.keys(bad)], folder);
  const lines = stderr.trim().split("\n");
  assert.equal([code, lines.length], [1, Object.keys(bad).length]);
  for (const [place, [name, [, complaint]]] of Object.entries(bad).entries()) {
    assert.ok(lines[place]?.startsWith(`Cannot draw ${name}: `), lines[place]);
    assert.match(lines[place] ?? "", complaint);
  }
  assert.match(stdout, /\ngood .*\nresponse_times\.svg\n$/s);
});

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
  const { code, stdout, stderr } = await call(["a.json", "missing.json"], folder);
  assert.equal([code, stdout, stderr.trim().split("\n").length], [1, "", 2]);
  assert.not(await exists(join(folder, "response_times.svg")));
});

command("lists runs without answers, and says so when there are no others", async () => {
  const folder = await folderOf({ "a.json": [], "b.json": [[], []], "c.json": [[1]] });
  const some = await call(["a.json", "b.json", "c.json"], folder);
  assert.equal([some.code, some.stderr], [0, ""]);
  assert.match(some.stdout, /\na +\? +0 +0 of \? +-.*\nb +\? +2 +0 of \? +-/);
  const none = await call(["a.json", "b.json", "--out", "none.svg"], folder);
  assert.equal(
    [none.code, none.stderr],
    [1, "Cannot write none.svg: there are no answers to draw\n"],
  );
  assert.not(await exists(join(folder, "none.svg")));
});

command("reports a picture that cannot be written in one line, on one line", async () => {
  const folder = await folderOf({ "a.json": [[1]] });
  const { code, stderr } = await call(["a.json", "--out", "no\u0007where/picture.svg"], folder);
  assert.equal(
    [code, stderr],
    [1, "Cannot write no\\u0007where/picture.svg: no such file or directory\n"],
  );
});

command("refuses bad arguments: one line, the usage, exit 2", async () => {
  const folder = await folderOf({ "a.json": [[1]] });
  const { code, stdout, stderr } = await script(["a.json", "--bins", "7"], folder);
  assert.equal([code, stdout], [2, ""]);
  assert.match(
    stderr,
    /^Unknown option "--bins".*\nHow to Use: tsx generate_graphs\.ts \[file \.\.\.\]\n$/,
  );
});

command("refuses what does not go together, and pictures of another kind", async () => {
  assert.match(await refusal([""]), /^Bad file "": expected the name of a file/);
  assert.match(
    await refusal(["a"], { data: "d" }),
    /^Bad --data "d": expected either --data or files/,
  );
  assert.match(
    await refusal(["a"], { out: "chart.png" }),
    /^Bad --out "chart.png": expected a name that ends/,
  );
  assert.match(await refusal(["a"], { out: ".svg" }), /^Bad --out "\.svg": /);
  assert.match(await refusal(["a"], { out: "x\u001b[2J.pdf" }), /^Bad --out "x\\u001b\[2J\.pdf": /);
  assert.match(await refusal(["a"], { curve: "." }), /^Bad --curve "\.": expected no files/);
});

command("prints its usage for --help", async () => {
  const { code, stdout } = await script(["--help"]);
  assert.is(code, 0);
  for (const words of [
    USAGE,
    "--data DIR",
    "--out FILE",
    "--within SECONDS",
    "--curve DIR",
    "--over-time",
  ])
    assert.ok(stdout.includes(words), words);
});

command.run();
