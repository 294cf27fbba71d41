/** directory.test.ts - which servers there are: lists, files, and names for addresses. */
import { mkdir, rename, rm, symlink, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { formatAddress, RunError, UsageError } from "../lib.ts";
import { Directory, parseServers, type ServerSpec } from "../load_balancer.ts";
import { cleanUp, deferred, later, temporaryFolder, until } from "./helpers.ts";

const EXPECTED =
  'expected host:port, host:port*weight, or either with " backup" behind it, ' +
  "with a port from 1 to 65535 and a weight from 0 to 1000";

/** In short: what picks and dials depend on. */
const shortly = (spec: ServerSpec): string =>
  `${formatAddress(spec)}*${spec.weight}${spec.backup ? " backup" : ""}` +
  (spec.resolved ? "" : " unresolved");

// ─── As they are written ─────────────────────────────────────────────────────

const words = suite("servers: words");

words("reads weights from 0, backups, and addresses of both families", () => {
  const texts = ["127.0.0.1:80", " [::1]:81*0 ", "10.0.0.1:82*1000 backup", "10.0.0.2:83  backup"];
  assert.equal(parseServers(texts).map(shortly), [
    "127.0.0.1:80*1",
    "[::1]:81*0",
    "10.0.0.1:82*1000 backup",
    "10.0.0.2:83*1 backup",
  ]);
});

words("a name is not resolved yet, and stays known as it was written", () => {
  assert.equal(parseServers(["db1:80"]), [
    {
      host: "db1",
      port: 80,
      weight: 1,
      backup: false,
      configuredHost: "db1",
      resolved: false,
    },
  ]);
});

words("quotes the entry that is no server", () => {
  const bad = ["", "a", "a:0", "a:65536", "a:80*", "a:80*1001", "a:80*-1", "a:80*1*2", "a:80 b:80"];
  for (const text of [...bad, "a:80 backups", "a:80backup", "backup", "a:80 *2", "::1:80"])
    assert.throws(
      () => parseServers(["10.0.0.1:80", text]),
      (error: unknown) =>
        error instanceof UsageError &&
        error.message.startsWith(`Bad server ${JSON.stringify(text)}: ${EXPECTED}`),
      text,
    );
});

words("refuses a server that is there twice, whatever its weight", () => {
  assert.throws(
    () => parseServers(["a:80", "a:80*2 backup"]),
    (error: unknown) =>
      error instanceof UsageError &&
      error.message === 'Bad server "a:80": expected each server once',
  );
});

words.run();

// ─── The file ────────────────────────────────────────────────────────────────

const files = suite("servers: file");
files.after.each(cleanUp);

/** Looks often; a test that must not be helped by that says NEVER. */
const OFTEN = { file: 0.01, names: 0.01, slow: 2 };
const NEVER = { file: 10_000, names: 10_000, slow: 2 };

const noResolver = (): Promise<string[]> => Promise.reject(new Error("no resolver"));

async function written(text: string): Promise<string> {
  const file = join(await temporaryFolder(), "servers.txt");
  await writeFile(file, text);
  return file;
}

/** Writes a whole new file and puts it in the place of the old one: no half of it is ever read. */
async function replace(file: string, text: string): Promise<void> {
  await writeFile(`${file}.new`, text);
  await rename(`${file}.new`, file);
}

/** What the directory says from now on; complaints on stderr are caught, too. */
function following(directory: Directory): {
  changes: string[];
  complaints: (string | undefined)[];
  said: string[];
} {
  const heard = { changes: [] as string[], complaints: [] as (string | undefined)[] };
  const said: string[] = [];
  const { error } = console;
  console.error = (line: string) => void said.push(line);
  later(() => {
    directory.close();
    console.error = error;
  });
  directory.follow({
    changed: (specs, by) => heard.changes.push(`${by}: ${specs.map(shortly).join(", ")}`),
    fileRead: (complaint) => heard.complaints.push(complaint),
    objectionTo: () => undefined,
  });
  return { ...heard, said };
}

files("holds a server a line, with comments, blank lines and either kind of line end", async () => {
  const file = await written(
    "# ours\n127.0.0.1:80\n\n  [::1]:81*3   # the big one\r\n" +
      "10.0.0.2:82 backup\t#*9\n#10.0.0.1:80\n",
  );
  const directory = await Directory.ofFile(file, noResolver, NEVER);
  assert.equal(directory.specs.map(shortly), [
    "127.0.0.1:80*1",
    "[::1]:81*3",
    "10.0.0.2:82*1 backup",
  ]);
});

const EMPTY = ":1: no server in the file: expected one host:port[*weight] [backup] a line";
const BAD = {
  "127.0.0.1:80\n\n# and\n127.0.0.1\n": `:4: Bad server "127.0.0.1": ${EXPECTED}`,
  "10.0.0.1:80 10.0.0.2:81\n": `:1: Bad server "10.0.0.1:80 10.0.0.2:81": ${EXPECTED}`,
  "10.0.0.1:80\n10.0.0.1:80*2\n": ':2: Bad server "10.0.0.1:80": expected each server once',
  "# none\n": EMPTY,
  "": EMPTY,
};
for (const [text, complaint] of Object.entries(BAD)) {
  files(`is refused by name and line: ${JSON.stringify(text)}`, async () => {
    const file = await written(text);
    const error: unknown = await Directory.ofFile(file).catch((error: unknown) => error);
    assert.instance(error, RunError);
    assert.is(String(error), `Error: ${file}${complaint}`);
  });
}

files("that is missing at the start is one line", async () => {
  const error: unknown = await Directory.ofFile("no/such").catch((error: unknown) => error);
  assert.is(String(error), "Error: Cannot read no/such: no such file or directory");
});

files("is read again when it changes, and said to have changed only when servers did", async () => {
  const file = await written("10.0.0.1:80\n");
  const { changes, complaints } = following(await Directory.ofFile(file, noResolver, OFTEN));
  await replace(file, "10.0.0.1:80 # a comment\n");
  await until(() => complaints.length > 0, "the file being read again");
  assert.equal(changes, []);
  await replace(file, "10.0.0.1:80*2\n10.0.0.2:80\n");
  await until(() => changes.length > 0, "the change");
  assert.is(changes.at(-1), "file: 10.0.0.1:80*2, 10.0.0.2:80*1");
});

files("a change between the first read and the first look is not missed", async () => {
  const file = await written("10.0.0.1:80\n");
  const directory = await Directory.ofFile(file, noResolver, NEVER);
  await replace(file, "10.0.0.2:80\n"); // of the same length, within the same moment
  const { changes } = following(directory);
  await until(() => changes.length > 0, "the change");
  assert.equal(changes, ["file: 10.0.0.2:80*1"]);
});

files("is read through a symbolic link that is turned to another folder", async () => {
  const folder = await temporaryFolder();
  for (const [name, text] of Object.entries({ one: "10.0.0.1:80\n", two: "10.0.0.2:80\n" })) {
    await mkdir(join(folder, name));
    await writeFile(join(folder, name, "servers"), text);
  }
  await symlink("one", join(folder, "..data"));
  await symlink("..data/servers", join(folder, "servers"));
  const directory = await Directory.ofFile(join(folder, "servers"), noResolver, OFTEN);
  assert.equal(directory.specs.map(shortly), ["10.0.0.1:80*1"]);
  const { changes } = following(directory);
  await symlink("two", join(folder, "..new"));
  await rename(join(folder, "..new"), join(folder, "..data"));
  await until(() => changes.length > 0, "the change");
  assert.equal(changes, ["file: 10.0.0.2:80*1"]);
});

files("that turns bad or vanishes changes nothing, is said once, and is good again", async () => {
  const file = await written("10.0.0.1:80\n");
  const directory = await Directory.ofFile(file, noResolver, OFTEN);
  const { changes, complaints, said } = following(directory);
  await replace(file, "10.0.0.1:80\nnonsense\n");
  await until(() => complaints.length > 0, "the complaint");
  assert.is(complaints[0], `${file}:2: Bad server "nonsense": ${EXPECTED}`);
  assert.equal(said, [`${complaints[0]}; the servers stay as they were`]);
  await rm(file);
  await until(() => complaints.length > 1, "the second complaint");
  assert.is(complaints[1], `Cannot read ${file}: no such file or directory`);
  await replace(file, "10.0.0.1:80\n");
  await until(() => complaints.length > 2, "the file being good again");
  assert.is(complaints[2], undefined);
  assert.equal([changes.length, said.length], [0, 2]);
  assert.equal(directory.specs.map(shortly), ["10.0.0.1:80*1"]);
});

files("reload reads it at once, and says again what is wrong with it", async () => {
  const file = await written("10.0.0.1:80\n");
  const directory = await Directory.ofFile(file, noResolver, NEVER);
  await replace(file, "nonsense\n");
  const { changes, complaints } = following(directory);
  await until(() => complaints.length === 1, "the first complaint");
  directory.reload();
  await until(() => complaints.length === 2, "the second complaint");
  await replace(file, "10.0.0.2:80\n");
  directory.reload();
  await until(() => changes.length > 0, "the change");
  assert.equal(changes, ["file: 10.0.0.2:80*1"]);
});

files("says nothing once it is closed", async () => {
  const file = await written("10.0.0.1:80\n");
  const directory = await Directory.ofFile(file, noResolver, NEVER);
  const { changes, complaints } = following(directory);
  await replace(file, "10.0.0.2:80\n");
  directory.reload();
  directory.close();
  directory.reload();
  await new Promise((resolve) => setTimeout(resolve, 50)); // time enough to read it
  assert.equal([changes, complaints], [[], []]);
});

files.run();

// ─── Names ───────────────────────────────────────────────────────────────────

const names = suite("servers: names");
names.after.each(cleanUp);

type Answer = readonly string[] | Error;

/** A resolver whose answers the test gives one by one; `asked` lists the names that wait. */
function byHand(): {
  resolve: (name: string) => Promise<readonly string[]>;
  asked: () => string[];
  answer: (name: string, answer: Answer) => void;
} {
  const waiting: { name: string; give: (answer: Answer) => void }[] = [];
  const resolve = (name: string): Promise<readonly string[]> => {
    const { promise, resolve: give, reject } = deferred<readonly string[]>();
    const settle = (answer: Answer): void => {
      if (answer instanceof Error) reject(answer);
      else give(answer);
    };
    waiting.push({ name, give: settle });
    return promise;
  };
  const answer = (name: string, text: Answer): void => {
    const place = waiting.findIndex((question) => question.name === name);
    const [question] = waiting.splice(place, place < 0 ? 0 : 1);
    assert.ok(question, `${name} was asked for`);
    question.give(text);
  };
  return { resolve, answer, asked: () => waiting.map(({ name }) => name) };
}

/** Has everything that was promised happen. */
const settled = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

names("each answer is taken as it comes, while the others are awaited", async () => {
  const { resolve, answer, asked } = byHand();
  const directory = new Directory(parseServers(["a:80*2", "b:80 backup", "10.0.0.9:80"]), resolve);
  const { changes } = following(directory);
  assert.equal(asked(), ["a", "b"]);
  answer("b", ["10.0.0.2", "10.0.0.1", "10.0.0.2"]);
  await settled();
  assert.equal(changes, [
    "names: a:80*2 unresolved, 10.0.0.1:80*1 backup, 10.0.0.2:80*1 backup, 10.0.0.9:80*1",
  ]);
  assert.equal(
    directory.specs.map(({ configuredHost }) => configuredHost),
    ["a", "b", "b", "10.0.0.9"],
  );
});

names("an IPv6 address counts only where the name has no other", async () => {
  const { resolve, answer } = byHand();
  const directory = new Directory(parseServers(["both:80", "six:80"]), resolve);
  following(directory);
  answer("both", ["2001:db8::1", "10.0.0.1"]);
  answer("six", ["2001:db8::2"]);
  await settled();
  assert.equal(directory.specs.map(shortly), ["10.0.0.1:80*1", "[2001:db8::2]:80*1"]);
});

names("the same address counts once, by the first that has it", async () => {
  const { resolve, answer } = byHand();
  const directory = new Directory(parseServers(["a:80*2", "10.0.0.1:80", "10.0.0.1:81"]), resolve);
  following(directory);
  answer("a", ["10.0.0.1"]);
  await settled();
  assert.equal(directory.specs.map(shortly), ["10.0.0.1:80*2", "10.0.0.1:81*1"]);
});

names("a name on several ports is asked for once, and is as many servers", async () => {
  const { resolve, answer, asked } = byHand();
  const directory = new Directory(parseServers(["a:80", "a:81"]), resolve);
  following(directory);
  assert.equal(asked(), ["a"]);
  answer("a", ["10.0.0.1"]);
  await settled();
  assert.equal(directory.specs.map(shortly), ["10.0.0.1:80*1", "10.0.0.1:81*1"]);
});

names("a name that never answers is asked for once, and holds up nobody", async () => {
  const { resolve, answer, asked } = byHand();
  const directory = new Directory(parseServers(["dead:80", "a:80"]), resolve, OFTEN);
  const { changes } = following(directory);
  for (const address of ["10.0.0.1", "10.0.0.2", "10.0.0.3"]) {
    await until(() => asked().includes("a"), "the next look-up");
    answer("a", [address]);
    await settled();
    assert.is(changes.at(-1), `names: dead:80*1 unresolved, ${address}:80*1`);
  }
  assert.equal(
    asked().filter((name) => name === "dead"),
    ["dead"],
  );
});

names("the order of an answer is no change", async () => {
  const { resolve, answer, asked } = byHand();
  const { changes } = following(new Directory(parseServers(["a:80"]), resolve, OFTEN));
  for (const addresses of [["10.0.0.1", "10.0.0.2"], ["10.0.0.2", "10.0.0.1"], ["10.0.0.2"]]) {
    await until(() => asked().length > 0, "the next look-up");
    answer("a", addresses);
    await settled();
  }
  assert.equal(changes, ["names: 10.0.0.1:80*1, 10.0.0.2:80*1", "names: 10.0.0.2:80*1"]);
});

names("a failed look-up keeps the last good answer, and is said once a failure", async () => {
  const { resolve, answer, asked } = byHand();
  const directory = new Directory(parseServers(["a:80"]), resolve, OFTEN);
  const { changes, said } = following(directory);
  const failure = new Error("it is broken");
  const answers = [["10.0.0.1"], failure, failure, [], ["10.0.0.1"], []];
  for (const next of answers) {
    await until(() => asked().length > 0, "the next look-up");
    answer("a", next);
    await settled();
  }
  assert.equal(changes, ["names: 10.0.0.1:80*1"]);
  assert.equal(said, [
    "Cannot look up a: it is broken; its last addresses stay",
    "Cannot look up a: it has no address; its last addresses stay",
  ]);
});

names("a name without an address so far stays unresolved, and that is said once", async () => {
  const { resolve, answer, asked } = byHand();
  const directory = new Directory(parseServers(["a:80"]), resolve, OFTEN);
  const { changes, said } = following(directory);
  for (let times = 0; times < 2; times += 1) {
    await until(() => asked().length > 0, "the next look-up");
    answer("a", Object.assign(new Error("x"), { code: "ENOTFOUND" }));
    await settled();
  }
  assert.equal(directory.specs.map(shortly), ["a:80*1 unresolved"]);
  assert.equal(said, ["Cannot look up a: the name does not resolve; no connection goes there"]);
  assert.equal(changes, []);
});

names(
  "slow names are asked for one after the other, and all at once when they are back",
  async () => {
    const { resolve, answer, asked } = byHand();
    const seconds = { ...NEVER, slow: 0 }; // every answer is a slow one
    const directory = new Directory(parseServers(["a:80", "b:80", "c:80"]), resolve, seconds);
    following(directory);
    for (const name of ["c", "b", "a"]) answer(name, new Error("late"));
    await settled();
    directory.reload();
    directory.reload();
    assert.equal(asked(), ["a"]);
    answer("a", ["10.0.0.1"]);
    await settled();
    assert.equal(asked(), []);
    directory.reload();
    assert.equal(asked(), ["b"]);
    seconds.slow = 10;
    answer("b", ["10.0.0.2"]);
    await settled();
    assert.equal(asked(), ["c"]);
  },
);

names(
  "a name that comes with a new file is asked for at once, one that goes is forgotten",
  async () => {
    const { resolve, answer, asked } = byHand();
    const file = await written("a:80\n");
    const directory = await Directory.ofFile(file, resolve, { ...NEVER, file: 0.01 });
    const { changes } = following(directory);
    assert.equal(asked(), ["a"]);
    await replace(file, "b:80\n"); // while the answer for a is still awaited
    await until(() => asked().includes("b"), "the new name being asked for");
    answer("a", ["10.0.0.1"]);
    answer("b", ["10.0.0.2"]);
    await settled();
    assert.equal(changes, ["file: b:80*1 unresolved", "names: 10.0.0.2:80*1"]);
  },
);

names("an answer that comes after the end changes nothing", async () => {
  const { resolve, answer } = byHand();
  const directory = new Directory(parseServers(["a:80"]), resolve);
  const { changes } = following(directory);
  directory.close();
  answer("a", ["10.0.0.1"]);
  await settled();
  assert.equal(changes, []);
});

names("the system's own resolver knows localhost, by its IPv4 address", async () => {
  const directory = new Directory(parseServers(["localhost:80"]));
  const { changes } = following(directory);
  await until(() => changes.length > 0, "the look-up of localhost");
  assert.equal(directory.specs.map(shortly), ["127.0.0.1:80*1"]);
});

names.run();
