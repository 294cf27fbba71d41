/** The README's options tables say what --help says. */
import { access, readdir, readFile } from "node:fs/promises";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { ALGORITHMS } from "../load_balancer.ts";
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

const isTable = (line: string): boolean => line.startsWith("|");
const isCode = (line: string): boolean => line.startsWith("    ");
const isPicture = (line: string): boolean => line.startsWith("![");
const linesOf = async (file: string): Promise<string[]> =>
  (await readFile(new URL(`../${file}`, import.meta.url), "utf8")).split("\n");

readme("is read in a quarter of an hour: 2,500 words outside tables and code", async () => {
  const prose = (await linesOf("README.md")).filter((line) => !isTable(line) && !isCode(line));
  const words = prose
    .join(" ")
    .replace(/\]\([^)]*\)/g, "]")
    .split(/\s+/);
  const count = words.filter((word) => /[\p{L}\p{N}]/u.test(word)).length;
  assert.ok(count <= 2500, `${count} words`);
});

readme("has prose of 100 columns, as the journals have", async () => {
  const journals = await readdir(new URL("../journals/", import.meta.url));
  const pages = journals.filter((name) => name.endsWith(".md")).map((name) => `journals/${name}`);
  for (const file of ["README.md", ...pages]) {
    const wide = (await linesOf(file)).filter(
      (line) => line.length > 100 && !isTable(line) && !isCode(line) && !isPicture(line),
    );
    assert.equal(wide, [], file);
  }
});

readme("links to what is there, and the index to every journal", async () => {
  const journals = await readdir(new URL("../journals/", import.meta.url));
  const linked = new Set<string>();
  const pages = journals.filter((name) => name.endsWith(".md")).map((name) => `journals/${name}`);
  for (const name of ["README.md", ...pages]) {
    const base = new URL(`../${name}`, import.meta.url);
    for (const line of await linesOf(name)) {
      for (const [, target = ""] of line.matchAll(/\]\(([^)#]+)[^)]*\)/g)) {
        if (/^https?:/.test(target) || isCode(line)) continue;
        await access(new URL(target, base)).catch(() => assert.unreachable(`${name}: ${target}`));
        if (name === "journals/README.md") linked.add(target);
      }
    }
  }
  const missing = journals.filter((name) => /^2.*\.md$/.test(name) && !linked.has(name));
  assert.equal(missing, []);
});

readme("has a row for each algorithm", async () => {
  const rows = (await linesOf("README.md")).map((line) => /^\| `([\w-]+)` \|/.exec(line)?.[1]);
  for (const name of ALGORITHMS) assert.ok(rows.includes(name), name);
});

readme("has no gap left to be filled in", async () => {
  assert.not.match(await readFile(new URL("../README.md", import.meta.url), "utf8"), /@@/);
});

readme.run();
