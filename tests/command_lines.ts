/**
 * command_lines.ts - runs command lines of the scripts one after the other in this one process, and
 * prints as JSON what each of them has said. For those that end at once by themselves: starting a
 * process for each would cost ten times what they do.
 *
 *   node --import tsx tests/command_lines.ts '[["server.ts", "--help"], ["client.ts", "--prot"]]'
 */
import { setTimeout as pause } from "node:timers/promises";
import { fileURLToPath } from "node:url";

const LONGEST_MS = 20_000;
// each script listens for errors of both, as if it were the only one
for (const stream of [process.stdout, process.stderr]) stream.setMaxListeners(0);

const lines: readonly (readonly string[])[] = JSON.parse(process.argv[2] ?? "[]");
const { log } = console;
const said = { stdout: "", stderr: "" };
console.log = (text: unknown) => {
  said.stdout += `${text}\n`;
};
console.error = (text: unknown) => {
  said.stderr += `${text}\n`;
};

/** A script that has ended has set an exit code, or has printed its help. */
async function ended(): Promise<void> {
  const deadline = performance.now() + LONGEST_MS;
  while (process.exitCode === undefined && said.stdout === "") {
    if (performance.now() > deadline) throw new Error(`${process.argv.join(" ")} does not end`);
    await pause(1);
  }
}

const results: { code: unknown; stdout: string; stderr: string }[] = [];
for (const [place, [script = "", ...args]] of lines.entries()) {
  const url = new URL(`../${script}`, import.meta.url);
  process.exitCode = undefined;
  process.argv = [process.execPath, fileURLToPath(url), ...args];
  said.stdout = "";
  said.stderr = "";
  await import(`${url.href}?${place}`); // a module of its own each time
  await ended();
  results.push({ code: process.exitCode ?? 0, ...said });
}
process.exitCode = 0;
log(JSON.stringify(results));
