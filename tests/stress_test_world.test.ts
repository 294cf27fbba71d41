/**
 * stress_test_world.test.ts - what stress_test.ts makes of where it runs: no terminal, a dumb one,
 * a file that something is mounted on. What is missing here is said as skipped.
 */
import { spawnSync } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { cleanUp, listening, ROOT, startNode, temporaryFolder, within } from "./helpers.ts";

const world = suite("stress test: where it runs");
world.after.each(cleanUp);

const TESTER = ["--import", import.meta.resolve("tsx"), join(ROOT, "stress_test.ts")];
const works = (command: string, args: readonly string[]): boolean =>
  spawnSync(command, args, { timeout: 10_000, stdio: "ignore" }).status === 0;
const hasTerminal = works("script", ["-qec", "true", "/dev/null"]);
const mayMount = works("unshare", ["-m", "true"]);

/** The port of a server that answers each request after `delay` milliseconds. */
async function answering(delay: number): Promise<string> {
  const { port } = await listening((socket) => {
    socket.on("data", () => setTimeout(() => socket.write("PONG!"), delay));
  });
  return String(port);
}

world("without a terminal it gives a sign of life every 30 seconds", async () => {
  // the half minute lasts 100 ms in this process
  const hurry = `const usual = globalThis.setInterval;
    globalThis.setInterval = (act, ms) => usual(act, ms === 30_000 ? 100 : ms);`;
  const args = [`--import=data:text/javascript,${encodeURIComponent(hurry)}`, ...TESTER];
  const port = await answering(500);
  const { exited, output } = startNode(
    [...args, "1", "1", "--port", port, "--name", "A"],
    "tester",
    await temporaryFolder(),
  );
  assert.is(await within(exited, "the run"), 0);
  const lines = output.stderr.trim().split("\n");
  assert.ok(lines.length >= 3, output.stderr);
  for (const line of lines) assert.match(line, /^A .* errors 0 /);
});

const onTerminal = hasTerminal ? world : world.skip;
for (const term of ["dumb", "xterm"])
  onTerminal(
    `on a terminal that is ${term} it writes ${term === "dumb" ? "no" : "its"} escapes`,
    async () => {
      const folder = await temporaryFolder();
      const port = await answering(600);
      const words = [process.execPath, ...TESTER, "1", "1", "--port", port].map(
        (word) => `'${word}'`,
      );
      writeFileSync(join(folder, "run.sh"), `TERM=${term} NODE_V8_COVERAGE= ${words.join(" ")}`);
      const under = ["sh", "-c", "script -qec 'sh run.sh' /dev/null"];
      const { exited, output } = startNode([], "script", folder, under);
      assert.is(await within(exited, "the run"), 0);
      assert.is(output.stdout.includes("\x1b[K"), term !== "dumb");
      assert.match(output.stdout, /1\/1 answered/);
    },
  );

const mounting = mayMount ? world : world.skip;
mounting(
  "a file that something is mounted on keeps what it holds, and the run its draft",
  async () => {
    const folder = await temporaryFolder();
    const file = join(folder, "A.json");
    writeFileSync(file, "[]");
    const port = await answering(0);
    const under = ["unshare", "-m", "sh", "-c", `mount --bind ${file} ${file} && exec "$0" "$@"`];
    const args = [...TESTER, "1", "1", "--port", port, "--name", "A", "--data", folder];
    const { exited, output } = startNode(args, "tester", folder, under);
    assert.is(await within(exited, "the run"), 1);
    assert.match(output.stdout, /1\/1 answered/);
    const [, draft = ""] = /what was to be written is in (.*)$/m.exec(output.stderr) ?? [];
    assert.match(readFileSync(draft, "utf8"), /^\[\s*\[0\./);
    assert.is(readFileSync(file, "utf8"), "[]");
  },
);

world.run();
