/**
 * all.ts - runs every test file with uvu, two at a time because most of them wait more than they
 * work, and sums up.
 *
 *   node --import tsx tests/all.ts
 */
import { spawn } from "node:child_process";
import { readdirSync, statSync } from "node:fs";
import { fileURLToPath } from "node:url";

const FOLDER = fileURLToPath(new URL(".", import.meta.url));
const UVU = fileURLToPath(new URL("../node_modules/uvu/bin.js", import.meta.url));
const AT_ONCE = 2;
/** A file that takes longer hangs: uvu itself has no time-out. */
const LONGEST_MS = 120_000;

/** Runs one file to its end, then prints what it said in one piece. */
function runFile(name: string): Promise<{ code: number; output: string }> {
  return new Promise((resolve) => {
    const child = spawn(
      process.execPath,
      ["--import", import.meta.resolve("tsx"), UVU, FOLDER, `^${name.replaceAll(".", "\\.")}$`],
      { timeout: LONGEST_MS, killSignal: "SIGKILL" },
    );
    let output = "";
    for (const stream of [child.stdout, child.stderr])
      stream.setEncoding("utf8").on("data", (text: string) => {
        output += text;
      });
    child.on("close", (code, signal) => {
      process.stdout.write(
        output +
          (signal === null ? "" : `${name} was still running after ${LONGEST_MS / 1000} s\n`),
      );
      resolve({ code: code ?? 1, output });
    });
  });
}

const files = readdirSync(FOLDER)
  .filter((name) => name.endsWith(".test.ts"))
  .sort((a, b) => statSync(FOLDER + b).size - statSync(FOLDER + a).size); // the longest first
const results: { code: number; output: string }[] = [];
await Promise.all(
  Array.from({ length: AT_ONCE }, async () => {
    for (let name = files.shift(); name !== undefined; name = files.shift())
      results.push(await runFile(name));
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
