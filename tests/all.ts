/**
 * all.ts - runs every test file with uvu, some at a time because most of them wait more than they
 * work, and sums up.
 *
 *   node --import tsx tests/all.ts
 */
import { spawn } from "node:child_process";
import { readdirSync } from "node:fs";
import { fileURLToPath } from "node:url";

const FOLDER = fileURLToPath(new URL(".", import.meta.url));
const UVU = fileURLToPath(new URL("../node_modules/uvu/bin.js", import.meta.url));
/** Keeps two cores busy; more would make those late that look at the clock. */
const AT_ONCE = 4;
/** A file that takes longer hangs: uvu itself has no time-out. */
const LONGEST_MS = 120_000;

/** These take longest and begin first: none of them is left over when all others are done. */
const LONGEST = [
  "stress_test_compare",
  "balancer_program",
  "health",
  "load_balancer",
  "stress_test",
  "server",
  "admin",
  "stress_test_files",
  "simulate",
  "operating",
];
/** These play through what other files cover, again and again: to count it would cost half as much
 *  again. They share a process. */
const UNCOVERED = [
  "algorithms_on_a_clock",
  "connection_played",
  "generate_graphs_fuzz",
  "health_played",
];

/** These are over soon, and share a process, too: starting one takes longer than most of them. */
const SHORT = [
  "algorithms",
  "balancer_on_a_clock",
  "checks",
  "core_faults",
  "directory",
  "generate_graphs_more",
  "generate_graphs_verdict",
  "places",
  "proxy",
  "readme",
  "status_page",
  "waiting",
];

/** Of these the same is true, but each is long enough for a process of its own. */
const UNCOVERED_ALONE = ["browser", "claims", "stress_test_world"];

const fileOf = (name: string): string => `${name}.test.ts`;
const uncovered = new Set([...UNCOVERED, ...UNCOVERED_ALONE].map(fileOf));

/** Runs files in one process to their end, then prints what they said in one piece. */
function runFiles(names: readonly string[]): Promise<{ code: number; output: string }> {
  return new Promise((resolve) => {
    const pattern = `^(${names.join("|").replaceAll(".", "\\.")})$`;
    const args = ["--import", import.meta.resolve("tsx"), UVU, FOLDER, pattern];
    const child = spawn(process.execPath, args, {
      timeout: LONGEST_MS,
      killSignal: "SIGKILL",
      env: names.every((name) => uncovered.has(name))
        ? { ...process.env, NODE_V8_COVERAGE: "" }
        : process.env,
    });
    let output = "";
    for (const stream of [child.stdout, child.stderr])
      stream.setEncoding("utf8").on("data", (text: string) => {
        output += text;
      });
    child.on("close", (code, signal) => {
      process.stdout.write(
        output +
          (signal === null ? "" : `${names.join()} still ran after ${LONGEST_MS / 1000} s\n`),
      );
      resolve({ code: code ?? 1, output });
    });
  });
}

const found = new Set(readdirSync(FOLDER).filter((name) => name.endsWith(".test.ts")));
const namesOf = (files: readonly string[]): string[] =>
  files.map(fileOf).filter((name) => found.has(name));
const groups = [UNCOVERED, SHORT].map(namesOf);
const grouped = new Set(groups.flat());
const alone = [...new Set([...namesOf(LONGEST), ...found])].filter((name) => !grouped.has(name));
const single = alone.map((name) => [name]);
const jobs = [...single.slice(0, AT_ONCE), ...groups, ...single.slice(AT_ONCE)].filter(
  (names) => names.length > 0,
);
const results: { code: number; output: string }[] = [];
await Promise.all(
  Array.from({ length: AT_ONCE }, async () => {
    for (let job = jobs.shift(); job !== undefined; job = jobs.shift())
      results.push(await runFiles(job));
  }),
);

const total = (word: string): number =>
  results.reduce(
    (sum, { output }) => sum + Number(new RegExp(`${word}:\\s+(\\d+)`).exec(output)?.[1] ?? 0),
    0,
  );
console.log(
  `\nAll files:\n  Total:     ${total("Total")}\n  Passed:    ${total("Passed")}\n  Skipped:   ${total("Skipped")}`,
);
process.exitCode = results.every(({ code }) => code === 0) ? 0 : 1;
