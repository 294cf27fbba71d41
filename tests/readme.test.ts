/** The README's options tables say what --help says. */
import { readFile } from "node:fs/promises";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { cleanUp, coverNoChildren, runEach } from "./helpers.ts";

coverNoChildren();

const readme = suite("README");
readme.after.each(cleanUp);

const SCRIPTS = ["server", "load_balancer", "client", "stress_test", "generate_graphs"] as const;
const helps = new Map<string, string>();
readme.before(async () => {
  const results = await runEach(SCRIPTS.map((script) => [`${script}.ts`, "--help"]));
  for (const [place, script] of SCRIPTS.entries()) helps.set(script, results[place]?.stdout ?? "");
  await cleanUp();
});

for (const script of SCRIPTS) {
  readme(`lists the options of ${script}.ts as --help does`, async () => {
    const stdout = helps.get(script) ?? "";
    const text = await readFile(new URL("../README.md", import.meta.url), "utf8");
    const table =
      new RegExp(`\\*\\*${script}\\.ts\\*\\*\\n\\n((?:\\|.*\\n)+)`).exec(text)?.[1] ?? "";
    const documented = table
      .split("\n")
      .slice(2)
      .filter(Boolean)
      .map((row) =>
        row
          .replace(/^\| `|\|$/g, "")
          .replaceAll("\\|", "/")
          .split(/`? \| /)
          .map((cell) => cell.trim()),
      );
    const offered = stdout
      .split("\n")
      .filter((line) => line.startsWith("  --") && !line.startsWith("  --help"))
      .map((line) => {
        const [, flag = "", help = ""] = /^ {2}(\S+(?: \S+)?)\s{2,}(.*)$/.exec(line) ?? [];
        return [flag.replaceAll("|", "/"), help.replaceAll("|", "/")];
      });
    assert.ok(offered.length > 0);
    assert.equal(documented, offered);
  });
}

readme("has no gap left to be filled in", async () => {
  assert.not.match(await readFile(new URL("../README.md", import.meta.url), "utf8"), /@@/);
});

readme.run();
