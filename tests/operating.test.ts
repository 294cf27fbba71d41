/**
 * operating.test.ts - changing the servers of a running balancer: the servers file, names as the
 * directory, slow start; and what servers are told about their clients.
 */
import { once } from "node:events";
import { rename, rm, writeFile } from "node:fs/promises";
import { createServer } from "node:net";
import { networkInterfaces } from "node:os";
import { join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import {
  Directory,
  type LoadBalancer,
  parseServers,
  readServersFile,
  startLoadBalancer,
} from "../load_balancer.ts";
import {
  ask,
  checkOf,
  cleanUp,
  DEAD,
  dial,
  echoing,
  later,
  listening,
  listenTo,
  outcomeOf,
  run,
  type Running,
  serving,
  start,
  startBalancer,
  temporaryFolder,
  until,
  within,
} from "./helpers.ts";

const SCRIPT = "load_balancer.ts";

// ─── Servers file ────────────────────────────────────────────────────────────

const files = suite("servers file");
files.after.each(cleanUp);

const written = async (text: string): Promise<string> => {
  const file = join(await temporaryFolder(), "servers.txt");
  await writeFile(file, text);
  return file;
};
const messageOf = async (promise: Promise<unknown>): Promise<string> =>
  promise.then(
    () => "no error",
    (error: Error) => error.message,
  );

files(
  "holds a server a line, with weights, comments, blank lines and either kind of line end",
  async () => {
    const file = await written(
      "# ours\n127.0.0.1:80\n\n  [::1]:81*3   # the big one\r\nweb.internal:82\t#*9\n#10.0.0.1:80\n",
    );
    assert.equal(await readServersFile(file), [
      { host: "127.0.0.1", port: 80, weight: 1 },
      { host: "::1", port: 81, weight: 3 },
      { host: "web.internal", port: 82, weight: 1 },
    ]);
  },
);

const BAD: readonly (readonly [what: string, text: string, message: string])[] = [
  [
    "a line that is no server",
    "127.0.0.1:80\n\n# and\n127.0.0.1\n",
    ':4: Bad server "127.0.0.1": expected host:port or host:port*weight, with a port from 1 to 65535 and a weight from 1 to 1000',
  ],
  [
    "two servers in a line",
    "127.0.0.1:80 127.0.0.1:81",
    ':1: Bad server "127.0.0.1:80 127.0.0.1:81": expected host:port or host:port*weight, with a port from 1 to 65535 and a weight from 1 to 1000',
  ],
  [
    "the same server twice",
    "127.0.0.1:80\n127.0.0.1:80*2\n",
    ':2: Bad server "127.0.0.1:80": expected each server once',
  ],
  [
    "comments and nothing else",
    "# none\n",
    ":1: no server in the file: expected one host:port[*weight] a line",
  ],
  ["nothing", "", ":1: no server in the file: expected one host:port[*weight] a line"],
];
for (const [what, text, message] of BAD) {
  files(`that holds ${what} is refused by name and line`, async () => {
    const file = await written(text);
    assert.is(await messageOf(readServersFile(file)), file + message);
  });
}

files(
  "that is missing or bad at the start, or given together with --servers, gets one line and no balancer",
  async () => {
    const file = await written("nonsense\n");
    const [missing, bad, both] = await Promise.all(
      [["no-such-file.txt"], [file], [file, "--servers", "127.0.0.1:80"]].map((args) =>
        run(SCRIPT, ["random", "--servers-file", ...args]),
      ),
    );
    assert.equal(missing, {
      code: 1,
      stdout: "",
      stderr: "Cannot read no-such-file.txt: no such file or directory\n",
    });
    assert.is(bad?.code, 1);
    assert.match(bad?.stderr ?? "", /servers\.txt:1: Bad server "nonsense": expected .*\n$/);
    assert.is(both?.code, 2);
    assert.match(
      both?.stderr ?? "",
      /^Bad --servers-file ".*": expected either --servers or --servers-file\n/,
    );
  },
);

/** The program over a servers file that lists `servers`. */
async function following(
  servers: readonly string[],
  options: readonly string[] = [],
): Promise<Running & { port: number; file: string }> {
  const file = await written(`${servers.join("\n")}\n`);
  const running = start(SCRIPT, [
    "round-robin",
    "--port",
    "0",
    "--check",
    "none",
    "--servers-file",
    file,
    ...options,
  ]);
  const [, port] = await running.printed(/Listening on 127\.0\.0\.1:(\d+)\n/);
  return { ...running, port: Number(port), file };
}

/** Replaces a file in one step, as an operator should. */
async function replace(file: string, text: string): Promise<void> {
  await writeFile(`${file}.new`, text);
  await rename(`${file}.new`, file);
}

/** A server that says its own name and ends. */
async function naming(): Promise<string> {
  const server = await listening((socket) => socket.end(server.address));
  return server.address;
}

files("is read again on SIGHUP; a server that was removed finishes its connections", async () => {
  const [leaving, added] = [await serving(), await naming()];
  const { child, port, file, printed, output, exited } = await following([leaving.address]);
  const client = await dial(port);
  const open = await leaving.next();
  await replace(file, `${added}*2 # the new one\n`);
  child.kill("SIGHUP");
  await printed(
    new RegExp(
      `Server ${leaving.address} was removed: 1 of its connections go on\nServer ${added} was added\n`,
    ),
  );
  for (let i = 0; i < 3; i += 1) assert.is(await ask(port), added);
  client.socket.end("still here");
  assert.is(await outcomeOf(open), "end");
  open.socket.end("and so am I");
  assert.is(await outcomeOf(client), "end");
  assert.is(client.bytes().toString(), "and so am I");
  assert.is(open.bytes().toString(), "still here");
  child.kill("SIGTERM");
  assert.is(await within(exited, "the program ending"), 0);
  assert.is(output.stderr, "");
});

files("is read again when it changes", async () => {
  const [before, after] = [await naming(), await naming()];
  const { port, file, printed } = await following([before]);
  assert.is(await ask(port), before);
  await replace(file, `${after}\n`);
  await printed(/was added/);
  assert.is(await ask(port), after);
});

files(
  "that has become bad, empty or missing changes nothing, and that is said with its line",
  async () => {
    const server = await naming();
    const { child, port, file, output } = await following([server], ["--log", "none"]);
    const complaint = async (pattern: RegExp): Promise<void> => {
      output.stderr = "";
      child.kill("SIGHUP");
      await until(() => pattern.test(output.stderr), `the complaint ${pattern}`);
      assert.is(await ask(port), server);
    };
    await replace(file, `${DEAD[0]}\n127.0.0.1:99999\n`);
    await complaint(
      /servers\.txt:2: Bad server "127\.0\.0\.1:99999": expected .*; the servers stay as they were\n/,
    );
    await replace(file, "# gone\n");
    await complaint(/servers\.txt:1: no server in the file: .*; the servers stay as they were\n/);
    await rm(file);
    await complaint(
      /^Cannot read .*servers\.txt: no such file or directory; the servers stay as they were\n/,
    );
  },
);

/** By hand: CONNECTIONS=10000. */
const CONNECTIONS = Number(process.env["CONNECTIONS"] ?? 1500);

files(
  "may be replaced again and again under continuous new connections without losing one",
  async () => {
    const servers = await Promise.all(Array.from({ length: 4 }, () => echoing()));
    const names = servers.map(({ address }) => address);
    const { child, port, file, output } = await following(names.slice(0, 2), ["--seed", "1"]);
    let left = CONNECTIONS;
    const outcomes = new Map<string, number>();
    const churn = async (): Promise<void> => {
      while ((left -= 1) >= 0) {
        const outcome = await ask(port);
        outcomes.set(outcome, (outcomes.get(outcome) ?? 0) + 1);
      }
    };
    const clients = Promise.all(Array.from({ length: 20 }, churn));
    let reloads = 0;
    for (; left > 0; reloads += 1) {
      await replace(file, names.filter((_, i) => i !== reloads % 4).join("\n"));
      child.kill("SIGHUP");
      await until(
        () => output.stdout.split("was added").length > reloads + 1 || left <= 0,
        "the reload",
      );
    }
    await within(clients, "all clients", 60);
    assert.equal([...outcomes], [["hello", CONNECTIONS]]);
    assert.ok(reloads >= 4, `${reloads} reloads`);
    assert.is(output.stderr, "");
  },
);

files.run();

// ─── Names ───────────────────────────────────────────────────────────────────

const names = suite("names");
names.after.each(cleanUp);

/**
 * A directory over `texts` whose resolver answers from `book`; a name that is not in it fails. What
 * it complains of goes to `said`.
 */
function looking(
  texts: readonly string[],
  book: Record<string, readonly string[]>,
): { directory: Directory; said: string[]; asked: string[] } {
  const [said, asked]: string[][] = [[], []];
  const { error } = console;
  console.error = (line: string) => said?.push(line);
  later(() => {
    console.error = error;
  });
  const directory = new Directory(parseServers(texts), async (name) => {
    asked?.push(name);
    const answer = book[name];
    if (answer === undefined) throw Object.assign(new Error("getaddrinfo"), { code: "ENOTFOUND" });
    return answer;
  });
  return { directory, said: said ?? [], asked: asked ?? [] };
}
const spec = (host: string, port: number, weight = 1) => ({ host, port, weight });

names("stand for all their addresses, each with the name's port and weight", async () => {
  const { directory } = looking(["web:80*3", "10.0.0.9:81"], {
    web: ["10.0.0.2", "10.0.0.1", "2001:db8::1"],
  });
  assert.equal(await directory.lookUp(), [
    spec("10.0.0.1", 80, 3),
    spec("10.0.0.2", 80, 3),
    spec("2001:db8::1", 80, 3),
    spec("10.0.0.9", 81),
  ]);
});

names("are looked up once each, and addresses never", async () => {
  const { directory, asked } = looking(["web:80", "web:81", "10.0.0.9:80", "[::1]:80"], {
    web: ["10.0.0.1"],
  });
  await directory.lookUp();
  assert.equal(asked, ["web"]);
  assert.ok(directory.hasNames);
  assert.not.ok(looking(["10.0.0.9:80", "[::1]:80"], {}).directory.hasNames);
});

names("that share an address give one server", async () => {
  const { directory } = looking(["a:80", "b:80", "10.0.0.1:80"], {
    a: ["10.0.0.1"],
    b: ["10.0.0.1", "10.0.0.2"],
  });
  assert.equal(
    (await directory.lookUp()).map(({ host }) => host),
    ["10.0.0.1", "10.0.0.2"],
  );
});

names("follow their answer as it changes", async () => {
  const book: Record<string, readonly string[]> = { web: ["10.0.0.1"] };
  const { directory, said } = looking(["web:80"], book);
  await directory.lookUp();
  book["web"] = ["10.0.0.2", "10.0.0.3"];
  assert.equal(await directory.lookUp(), [spec("10.0.0.2", 80), spec("10.0.0.3", 80)]);
  assert.equal(said, []);
});

names(
  "keep their last good answer when the resolver fails or answers with nothing, and that is said once",
  async () => {
    const book: Record<string, readonly string[]> = { web: ["10.0.0.1", "10.0.0.2"] };
    const { directory, said } = looking(["web:80"], book);
    const before = await directory.lookUp();
    delete book["web"];
    for (let i = 0; i < 3; i += 1) assert.equal(await directory.lookUp(), before);
    assert.equal(said, ["Cannot look up web: the name does not resolve; its last addresses stay"]);
    book["web"] = ["10.0.0.3"];
    assert.equal(await directory.lookUp(), [spec("10.0.0.3", 80)]);
    book["web"] = [];
    assert.equal(await directory.lookUp(), [spec("10.0.0.3", 80)]);
    assert.is(said[1], "Cannot look up web: it has no address; its last addresses stay");
  },
);

names("without an answer are servers that are down, until they have one", async () => {
  const { address, port: serverPort } = await echoing();
  const book: Record<string, readonly string[]> = {};
  const { directory, said } = looking([`later.invalid:${serverPort}`], book);
  const { balancer } = await startLoadBalancer({
    algorithm: "round-robin",
    servers: await directory.lookUp(),
    port: 0,
    log: "none",
    fall: 1,
    checkInterval: 0.05,
  });
  later(() => balancer.stop(0));
  const states = (): string[] =>
    balancer.status().servers.map(({ server, state, why }) => `${server} ${state} ${why}`.trim());
  await until(() => states()[0]?.includes(" down ") === true, "the name being down");
  assert.match(states()[0] ?? "", new RegExp(`^later\\.invalid:${serverPort} down `));
  book["later.invalid"] = ["127.0.0.1"];
  balancer.setServers(await directory.lookUp());
  assert.equal(states(), [`${address} up`]);
  assert.equal(said, []);
});

names(
  "may be looked up again on SIGHUP without a word: the servers that stay keep their counts",
  async () => {
    const { port: serverPort, address } = await echoing();
    const { child, exited, printed, output } = start(SCRIPT, [
      "round-robin",
      "--port",
      "0",
      "--check",
      "none",
      "--servers",
      `localhost:${serverPort}`,
      "--admin",
      "0",
    ]);
    const [, port] = await printed(/Listening on 127\.0\.0\.1:(\d+)\n/);
    const [, admin] = await printed(/Admin on http:\/\/127\.0\.0\.1:(\d+)\/\n/);
    assert.is(await ask(Number(port)), "hello");
    child.kill("SIGHUP");
    const served = async (): Promise<string> => {
      const client = await dial(Number(admin));
      client.socket.write(
        "GET /status.json HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
      );
      await outcomeOf(client);
      return client.bytes().toString();
    };
    assert.match(await served(), new RegExp(`"server":"${address}","state":"up".*?"total":1,`));
    child.kill("SIGTERM");
    assert.is(await within(exited, "the program ending"), 0);
    assert.is(output.stderr, "");
  },
);

names.run();

// ─── Changing servers ────────────────────────────────────────────────────────

const changes = suite("changing servers");
changes.after.each(cleanUp);

changes("a new weight holds at once, and counts stay", async () => {
  const [a, b] = [await naming(), await naming()];
  const { balancer, port } = await startBalancer([a, b]);
  for (let i = 0; i < 4; i += 1) await ask(port);
  balancer.setServers(parseServers([`${a}*3`, b]));
  assert.equal(
    balancer.status().servers.map(({ weight, total }) => [weight, total]),
    [
      [3, 2],
      [1, 2],
    ],
  );
  const answers = [];
  for (let i = 0; i < 8; i += 1) answers.push(await ask(port));
  assert.is(answers.filter((answer) => answer === a).length, 6);
});

changes("a queued client gets a server that was added", async () => {
  const [full, added] = [await serving(), await naming()];
  const { balancer, port } = await startBalancer([full.address], { serverConnections: 1 });
  await dial(port);
  const queued = await dial(port);
  await until(() => balancer.status().queued === 1, "one in the queue");
  balancer.setServers(parseServers([full.address, added]));
  assert.is(await outcomeOf(queued), "end");
  assert.is(queued.bytes().toString(), added);
});

changes("a server that comes back is still as full as it was", async () => {
  const [again, stays] = [await serving(), await serving()];
  const { balancer, port } = await startBalancer([again.address, stays.address], {
    serverConnections: 1,
  });
  for (let i = 0; i < 2; i += 1) await dial(port);
  await until(() => balancer.status().active === 2, "both full");
  balancer.setServers(parseServers([stays.address]));
  balancer.setServers(parseServers([again.address, stays.address]));
  await dial(port);
  await until(() => balancer.status().queued === 1, "the third in the queue");
  assert.equal(
    balancer.status().servers.map(({ active, total }) => [active, total]),
    [
      [1, 1],
      [1, 1],
    ],
  );
});

changes("a server that was removed is not checked any more", async () => {
  const [gone, stays] = [await serving(), await serving()];
  const { balancer } = await startBalancer([gone.address, stays.address], {
    check: checkOf("tcp"),
    checkInterval: 0.02,
  });
  await until(() => gone.count() > 2, "checks");
  balancer.setServers(parseServers([stays.address]));
  const [before, of] = [gone.count(), stays.count()];
  await until(() => stays.count() > of + 5, "checks of the other");
  assert.ok(gone.count() <= before + 1, "none but one that was under way");
});

changes.run();

// ─── Slow start ──────────────────────────────────────────────────────────────

const slow = suite("slow start");
slow.after.each(cleanUp);

const fail = (balancer: LoadBalancer, place: number): void => {
  for (let i = 0; i < 3; i += 1) balancer.health.failed(balancer.servers[place]!, "a test", false);
};
const heal = (balancer: LoadBalancer, place: number): void => {
  for (let i = 0; i < 3; i += 1) balancer.health.succeeded(balancer.servers[place]!, true);
};

slow("gives a server that came back a small share of the clients at first", async () => {
  const [a, b] = [await naming(), await naming()];
  const { balancer, port } = await startBalancer([a, b], {
    check: checkOf("tcp"),
    slowStart: 1000,
  });
  fail(balancer, 1);
  assert.is(balancer.servers[1]?.up, false);
  heal(balancer, 1);
  assert.is(balancer.servers[1]?.up, true);
  const answers = [];
  for (let i = 0; i < 42; i += 1) answers.push(await ask(port));
  assert.is(answers.filter((answer) => answer === b).length, 2, "a twentieth of the other's");
});

slow("raises the weight steadily to the full one", async () => {
  const { balancer } = await startBalancer([await naming(), `${await naming()}*4`], {
    check: checkOf("tcp"),
    slowStart: 0.4,
  });
  fail(balancer, 1);
  heal(balancer, 1);
  const weights = new Set<number>();
  await until(() => weights.add(balancer.servers[1]?.weight ?? 0).has(4), "the full weight");
  const seen = [...weights];
  assert.is(seen[0], 0.2);
  assert.equal(
    seen,
    [...seen].sort((x, y) => x - y),
  );
  assert.ok(seen.length >= 4, `in steps: ${seen}`);
  assert.is(balancer.status().servers[1]?.weight, 4, "the status shows what was configured");
});

slow(
  "holds for a server that was added or made ready again, but not for the first ones",
  async () => {
    const { balancer } = await startBalancer([DEAD[0]], { slowStart: 1000 });
    balancer.setServers(parseServers([DEAD[0], DEAD[1]]));
    assert.equal(
      balancer.servers.map(({ weight }) => weight),
      [1, 0.05],
    );
    balancer.setDraining(DEAD[0], true);
    balancer.setDraining(DEAD[0], false);
    assert.equal(
      balancer.servers.map(({ weight }) => weight),
      [0.05, 0.05],
    );
  },
);

slow("is off unless asked for", async () => {
  const { balancer } = await startBalancer([DEAD[0], DEAD[1]], { check: checkOf("tcp") });
  fail(balancer, 1);
  heal(balancer, 1);
  assert.equal(
    balancer.servers.map(({ up, weight }) => [up, weight]),
    [
      [true, 1],
      [true, 1],
    ],
  );
});

slow.run();

// ─── PROXY protocol ──────────────────────────────────────────────────────────

const proxy = suite("PROXY protocol");
proxy.after.each(cleanUp);

const hasIPv6 = Object.values(networkInterfaces()).some((addresses) =>
  addresses?.some(({ address }) => address === "::1"),
);

/**
 * What a server gets from a client that connects to `to` while the balancer listens on `host`, and
 * what it should get.
 */
async function assertHeader(
  host: string,
  to: string,
  header: (clientPort: number, port: number) => string,
): Promise<void> {
  const server = await serving();
  const { port } = await startBalancer([server.address], { host, sendProxy: true });
  const client = await dial(port, { host: to });
  const { localPort = 0 } = client.socket;
  client.socket.end("early bytes");
  const talk = await server.next();
  assert.is(await outcomeOf(talk), "end");
  assert.is(talk.bytes().toString(), `${header(localPort, port)}early bytes`);
}

proxy("names an IPv4 client before its first byte", () =>
  assertHeader(
    "127.0.0.1",
    "127.0.0.1",
    (from, to) => `PROXY TCP4 127.0.0.1 127.0.0.1 ${from} ${to}\r\n`,
  ),
);
(hasIPv6 ? proxy : proxy.skip)("names an IPv6 client before its first byte", () =>
  assertHeader("::1", "::1", (from, to) => `PROXY TCP6 ::1 ::1 ${from} ${to}\r\n`),
);
(hasIPv6 ? proxy : proxy.skip)("names an IPv4 client of an IPv6 socket by its IPv4 address", () =>
  assertHeader("::", "127.0.0.1", (from, to) => `PROXY TCP4 127.0.0.1 127.0.0.1 ${from} ${to}\r\n`),
);

proxy(
  "comes before anything else also when the server speaks first, and is not counted as the client's bytes",
  async () => {
    const server = await serving();
    const { balancer, port } = await startBalancer([server.address], { sendProxy: true });
    const client = await dial(port);
    const talk = await server.next();
    await until(() => talk.size() > 0, "the header");
    assert.match(talk.bytes().toString(), /^PROXY TCP4 .*\r\n$/);
    talk.socket.end("220 welcome");
    assert.is(await outcomeOf(client), "end");
    assert.is(client.bytes().toString(), "220 welcome");
    assert.is(balancer.status().servers[0]?.bytesToServer, 0);
  },
);

proxy("is sent again, once, to the next server when a connect fails", async () => {
  const server = await serving();
  const { port } = await startBalancer([DEAD[0], server.address], { sendProxy: true });
  (await dial(port)).socket.end("hello");
  const talk = await server.next();
  assert.is(await outcomeOf(talk), "end");
  assert.match(talk.bytes().toString(), /^PROXY TCP4 [^\r\n]*\r\nhello$/);
});

proxy("stands before a ping check as well, as UNKNOWN", async () => {
  const seen: string[] = [];
  const server = await listening((socket) => {
    const talk = listenTo(socket);
    socket.on("data", () => {
      if (!talk.bytes().toString().endsWith("PING!")) return;
      seen.push(talk.bytes().toString());
      socket.end("PONG!");
    });
  });
  const { balancer } = await startBalancer([server.address], {
    sendProxy: true,
    check: checkOf("ping"),
    checkInterval: 0.05,
    fall: 1,
  });
  await until(() => seen.length >= 3, "three checks");
  assert.equal([...new Set(seen)], ["PROXY UNKNOWN\r\nPING!"]);
  assert.is(balancer.status().servers[0]?.state, "up");
});

proxy.run();

// ─── Several balancers on a port ─────────────────────────────────────────────

const sharing = suite("reuse port");
sharing.after.each(cleanUp);

const [major = 0, minor = 0] = process.versions.node.split(".").map(Number);
const canShare = process.platform === "linux" && (major > 22 || (major === 22 && minor >= 12));

(canShare ? sharing.skip : sharing)("is refused in one line where Node cannot", async () => {
  const { code, stdout, stderr } = await run(SCRIPT, ["random", "--port", "0", "--reuse-port"]);
  assert.equal(
    [code, stdout, stderr],
    [1, "", `--reuse-port needs Node 22.12 or later, and this is ${process.versions.node}\n`],
  );
});

(canShare ? sharing : sharing.skip)(
  "lets two balancers listen on one port, and both serve",
  async () => {
    const { address } = await echoing();
    const free = createServer().listen(0, "127.0.0.1");
    await within(once(free, "listening"), "a free port");
    const bound = free.address();
    const port = String(typeof bound === "object" && bound !== null ? bound.port : 0);
    await new Promise((resolve) => free.close(resolve));
    const pair = [0, 1].map(() =>
      start(SCRIPT, ["random", "--port", port, "--reuse-port", "--servers", address]),
    );
    for (const { printed } of pair) await printed(/Listening/);
    await until(
      () =>
        pair.every(({ output }) => output.stdout.includes("Connected client")) ||
        (void ask(Number(port)), false),
      "both serving",
    );
  },
);

sharing.run();
