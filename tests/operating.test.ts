/**
 * operating.test.ts - changing the servers of a running balancer: the servers file, names as the
 * directory, slow start; and what servers are told about their clients.
 */
import { once } from "node:events";
import { rename, rm, writeFile } from "node:fs/promises";
import { BlockList, createServer } from "node:net";
import { networkInterfaces } from "node:os";
import { join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { Directory, parseServers, warmth } from "../load_balancer.ts";
import {
  ask,
  assertEnded,
  checkOf,
  cleanUp,
  CONNECTIONS,
  coverNoChildren,
  crowd,
  DEAD,
  dial,
  echoing,
  later,
  listening,
  listenTo,
  outcomeOf,
  run,
  runEach,
  type Running,
  serving,
  start,
  startBalancer,
  temporaryFolder,
  until,
  within,
} from "./helpers.ts";

coverNoChildren();

const SCRIPT = "load_balancer.ts";

// ─── Servers file ────────────────────────────────────────────────────────────

const files = suite("servers file");
files.after.each(cleanUp);

const written = async (text: string): Promise<string> => {
  const file = join(await temporaryFolder(), "servers.txt");
  await writeFile(file, text);
  return file;
};
files(
  "that is missing or bad at the start, or given together with --servers, gets one line and no balancer",
  async () => {
    const file = await written("nonsense\n");
    const [missing, bad, both] = await runEach(
      [["no-such-file.txt"], [file], [file, "--servers", "127.0.0.1:80"]].map((args) => [
        ...[SCRIPT, "random", "--servers-file", ...args],
      ]),
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

files("that comes to hold the balancer itself changes nothing, and that is said", async () => {
  const server = await naming();
  const { child, port, file, output, printed } = await following([server], ["--admin", "0"]);
  const [, admin] = await printed(/Admin on http:\/\/127\.0\.0\.1:(\d+)\/\n/);
  await replace(file, `${server}\n127.0.0.1:${port}\n`);
  child.kill("SIGHUP");
  await until(() => output.stderr.endsWith("\n"), "the complaint");
  assert.is(
    output.stderr,
    `${file}:2: Bad server "127.0.0.1:${port}": expected another address than the one that the balancer listens on; the servers stay as they were\n`,
  );
  for (let i = 0; i < 3; i += 1) assert.is(await ask(port), server);
  const status = async () => JSON.parse(await pageOf(Number(admin), "/status.json"));
  assert.match((await status()).fileError, /servers\.txt:2: Bad server/);
  const said = output.stderr;
  child.kill("SIGHUP"); // reads it again: it is as bad as before
  await until(() => output.stderr === said + said, "the complaint once more");
  assert.match((await status()).fileError, /servers\.txt:2: Bad server/);
  assert.is((await status()).servers.length, 1);
  await replace(file, `${server}*2\n`);
  child.kill("SIGHUP");
  const isTaken = async (): Promise<boolean> => (await status()).fileError === null;
  while (!(await isTaken())) continue;
});

/** The body that an admin port answers with. */
async function pageOf(admin: number, path: string): Promise<string> {
  const client = await dial(admin);
  client.socket.write(`GET ${path} HTTP/1.0\r\nHost: localhost\r\n\r\n`);
  await outcomeOf(client);
  return client.bytes().toString().split("\r\n\r\n").slice(1).join("");
}

files("that holds the balancer itself at the start gets one line and no balancer", async () => {
  const { port, server } = await listening(() => undefined);
  await new Promise((resolve) => server.close(resolve)); // it was free, and is again
  const file = await written(`127.0.0.1:9\n127.0.0.1:${port}\n`);
  const { code, stdout, stderr } = await run(SCRIPT, [
    ...["random", "--port", String(port), "--servers-file", file],
  ]);
  assert.equal(
    { code, stdout, stderr },
    {
      code: 1,
      stdout: "",
      stderr: `${file}: Bad server "127.0.0.1:${port}": expected another address than the one that the balancer listens on\n`,
    },
  );
});

files(
  "may be replaced again and again under continuous new connections without losing one",
  async () => {
    const servers = await Promise.all(Array.from({ length: 4 }, () => echoing()));
    const names = servers.map(({ address }) => address);
    const { child, port, file, output } = await following(names.slice(0, 2), ["--seed", "1"]);
    const { left, outcomes } = crowd(port, 20);
    let reloads = 0;
    for (; left() > 0; reloads += 1) {
      await replace(file, names.filter((_, i) => i !== reloads % 4).join("\n"));
      child.kill("SIGHUP");
      await until(
        () => output.stdout.split("was added").length > reloads + 1 || left() <= 0,
        "the reload",
      );
    }
    assert.equal(await within(outcomes, "all clients", 60), [["hello", CONNECTIONS]]);
    assert.ok(reloads >= 4, `${reloads} reloads`);
    assert.is(output.stderr, "");
  },
);

files.run();

// ─── Names ───────────────────────────────────────────────────────────────────

const names = suite("names");
names.after.each(cleanUp);

names(
  "without an answer are servers that are down and never dialled, until they have one",
  async () => {
    const { address, port: serverPort } = await echoing();
    const book = new Map<string, readonly string[]>();
    const resolve = async (name: string): Promise<readonly string[]> => book.get(name) ?? [];
    const directory = new Directory(parseServers([`later.invalid:${serverPort}`]), resolve);
    later(() => directory.close());
    const { balancer, port } = await startBalancer([], {
      servers: directory.specs,
      check: checkOf("tcp"),
      checkInterval: 0.02,
    });
    const states = (): string[] =>
      balancer.status().servers.map(({ server, state, total }) => `${server} ${state} ${total}`);
    assert.equal(states(), [`later.invalid:${serverPort} down 0`]);
    assert.is(await ask(port), "ECONNRESET");
    assert.equal(states(), [`later.invalid:${serverPort} down 0`]);
    book.set("later.invalid", ["127.0.0.1"]);
    directory.follow({
      changed: (specs, by) => balancer.setServers(specs, by),
      fileRead: () => undefined,
      objectionTo: () => undefined,
    });
    await until(() => states()[0] === `${address} up 0`, "the name having an address");
    assert.is(await ask(port), "hello");
    await assertEnded(balancer, { ok: 1, no_server: 1 });
  },
);

names("in a servers file that is read again give the same servers, with their counts", async () => {
  const { port: serverPort, address } = await echoing();
  const program = await following([`localhost:${serverPort}`], ["--admin", "0"]);
  const [, admin] = await program.printed(/Admin on http:\/\/127\.0\.0\.1:(\d+)\/\n/);
  await program.printed(new RegExp(`Server ${address} was added`)); // the start waits for no name
  assert.is(await ask(program.port), "hello");
  const added = await naming();
  await replace(program.file, `localhost:${serverPort}\n${added}\n`);
  program.child.kill("SIGHUP");
  await program.printed(new RegExp(`Server ${added} was added`));
  assert.match(
    await pageOf(Number(admin), "/status.json"),
    new RegExp(`"server":"${address}","state":"up".*?"total":1,.*"server":"${added}"`),
  );
  program.child.kill("SIGTERM");
  assert.is(await within(program.exited, "the program ending"), 0);
  assert.is(program.output.stderr, "");
});

names.run();

// ─── Changing servers ────────────────────────────────────────────────────────

const changes = suite("changing servers");
changes.after.each(cleanUp);

changes("a new weight holds at once, and counts stay", async () => {
  const [a, b] = [await naming(), await naming()];
  const { balancer, port } = await startBalancer([a, b]);
  for (let i = 0; i < 4; i += 1) await ask(port);
  balancer.setServers(parseServers([`${a}*3`, b]), "file");
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
  balancer.setServers(parseServers([full.address, added]), "file");
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
  balancer.setServers(parseServers([stays.address]), "file");
  balancer.setServers(parseServers([again.address, stays.address]), "file");
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
  balancer.setServers(parseServers([stays.address]), "file");
  const [before, of] = [gone.count(), stays.count()];
  await until(() => stays.count() > of + 5, "checks of the other");
  assert.ok(gone.count() <= before + 1, "none but one that was under way");
});

changes("a removed server is seen until its last connection has ended", async () => {
  const [gone, stays] = [await serving(), await naming()];
  const { balancer, port } = await startBalancer([gone.address, stays]);
  const clients = [await dial(port), await gone.next()];
  await ask(port);
  const { accepted } = balancer.status();
  balancer.setServers(parseServers([stays]), "file");
  const seen = (): string[] =>
    balancer.status().servers.map(({ server, state, active }) => `${server} ${state} ${active}`);
  assert.equal(seen(), [`${stays} up 0`, `${gone.address} removed 1`]);
  assert.is(accepted, 2);
  for (const { socket } of clients) socket.end();
  await assertEnded(balancer, { ok: 2 });
  assert.equal(seen(), [`${stays} up 0`]);
});

changes("a server that returns is the same one: drained it stays, and its counts", async () => {
  const [again, stays] = [await naming(), await naming()];
  const { balancer, port } = await startBalancer([again, stays]);
  for (let i = 0; i < 4; i += 1) await ask(port);
  balancer.setDraining(again, true);
  balancer.setServers(parseServers([stays]), "file");
  balancer.setServers(parseServers([again, stays]), "file");
  assert.equal(
    balancer.status().servers.map(({ state, total }) => [state, total]),
    [
      ["draining", 2],
      ["up", 2],
    ],
  );
  for (let i = 0; i < 4; i += 1) assert.is(await ask(port), stays);
});

changes("a server that returns is down if it was, and is checked at once", async () => {
  const gone = await echoing();
  gone.server.close();
  const stays = await naming();
  const { balancer, port } = await startBalancer([gone.address, stays], {
    check: checkOf("tcp"),
    checkInterval: 2,
    fall: 1,
    rise: 1,
  });
  const state = (): string | undefined => balancer.status().servers[0]?.state;
  await until(() => state() === "down", "it going down");
  balancer.setServers(parseServers([stays]), "file");
  await echoing(gone.port);
  balancer.setServers(parseServers([gone.address, stays]), "file");
  assert.is(state(), "down");
  assert.is(await ask(port), stays);
  await until(() => state() === "up", "it coming up, before an interval is over", 1.5);
});

changes("a server of weight 0 is drained by configuration", async () => {
  const [a, b] = [await naming(), await naming()];
  const { balancer, port } = await startBalancer([`${a}*0`, b]);
  for (let i = 0; i < 4; i += 1) assert.is(await ask(port), b);
  assert.equal(
    balancer.status().servers.map(({ state, draining }) => [state, draining]),
    [
      ["draining", true],
      ["up", false],
    ],
  );
  assert.is(balancer.setDraining(a, false), "weightless");
  balancer.setServers(parseServers([a, b]), "file");
  assert.is(balancer.status().servers[0]?.state, "up");
  assert.equal(new Set([await ask(port), await ask(port)]), new Set([a, b]));
});

changes("a weight of 0 and back leaves a server drained that the admin page drained", async () => {
  const [a, b] = [await naming(), await naming()];
  const { balancer } = await startBalancer([a, b]);
  balancer.setDraining(a, true);
  const said: string[] = [];
  balancer.log.server = (server, state) => void said.push(`${server.name} ${state}`);
  balancer.setServers(parseServers([`${a}*0`, b]), "file");
  balancer.setServers(parseServers([`${a}*5`, b]), "file");
  assert.equal(said, [], "for nothing has changed");
  assert.is(balancer.status().servers[0]?.state, "draining");
  assert.is(balancer.setDraining(a, false), "done");
});

changes("a list that holds the balancer itself changes nothing", async () => {
  const a = await naming();
  const { balancer, port } = await startBalancer([a]);
  for (const host of ["127.0.0.1", "0.0.0.0", "[::ffff:127.0.0.1]"]) {
    const itself = `${host}:${port}`;
    const specs = parseServers([a, itself]);
    assert.is(
      balancer.objectionTo(specs)?.message,
      `Bad server "${itself}": expected another address than the one that the balancer listens on`,
    );
    balancer.setServers(specs, "names");
    assert.is(balancer.fileError, null, "nothing is wrong with a file");
  }
  assert.equal(
    balancer.status().servers.map(({ server }) => server),
    [a],
  );
  assert.is(await ask(port), a);
});

changes.run();

// ─── Slow start ──────────────────────────────────────────────────────────────

const slow = suite("slow start");
slow.after.each(cleanUp);

/** A balancer over two servers, of which the second has just come back. */
async function returned(slowStart: number) {
  const [a, gone] = [await naming(), await listening(() => undefined)];
  await new Promise((resolve) => gone.server.close(resolve));
  const { balancer, port } = await startBalancer([a, gone.address], {
    check: checkOf("tcp"),
    checkInterval: 0.05,
    fall: 1,
    rise: 1,
    slowStart,
  });
  const state = (): string | undefined => balancer.status().servers[1]?.state;
  await until(() => state() === "down", "the second being down");
  const back = await listening((socket) => socket.end(gone.address), undefined, gone.port);
  await until(() => state() === "up", "the second being up again");
  return { balancer, port, b: back.address };
}

/** How many of `clients` are served by `server`. */
async function shareOf(server: string, port: number, clients: number): Promise<number> {
  let served = 0;
  for (let i = 0; i < clients; i += 1) if ((await ask(port)) === server) served += 1;
  return served;
}

slow("gives a server that came back a small share of the clients at first", async () => {
  const { port, b } = await returned(1000);
  assert.is(await shareOf(b, port, 42), 2, "a twentieth of the other's");
});

slow("goes up steadily to the full weight", async () => {
  const warmths = [0, 1, 2.5, 5, 7.5, 10, 11].map((age) => warmth(100, 100 + age, 10));
  assert.equal(warmths, [0.05, 0.1, 0.25, 0.5, 0.75, 1, 1]);
  assert.is(warmth(100, 100, 0), 1, "without a slow start");
});

slow("is over after its time", async () => {
  const { balancer, port, b } = await returned(0.3);
  await until(() => (balancer.status().servers[1]?.since ?? 0) > 0.4, "the slow start's end");
  assert.is(await shareOf(b, port, 20), 10);
  assert.is(balancer.status().servers[1]?.weight, 1, "the status shows what was configured");
});

slow(
  "holds for a server that was added or made ready again, but not for the first ones",
  async () => {
    const [a, b, c] = [await naming(), await naming(), await naming()];
    const { balancer, port } = await startBalancer([a, b], { slowStart: 1000 });
    assert.is(await shareOf(b, port, 4), 2);
    balancer.setServers(parseServers([a, b, c]), "file");
    assert.is(await shareOf(c, port, 41), 1);
    balancer.setDraining(a, true);
    balancer.setDraining(a, false);
    assert.is(await shareOf(b, port, 44), 40);
  },
);

slow("is off unless asked for", async () => {
  const { port, b } = await returned(0);
  assert.is(await shareOf(b, port, 20), 10);
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

proxy("stands before a check that merely connects, too, but not at another port", async () => {
  const [server, agent] = [await serving(), await serving()];
  await startBalancer([server.address], {
    sendProxy: true,
    check: checkOf("tcp"),
    checkInterval: 0.05,
  });
  await startBalancer([server.address], {
    sendProxy: true,
    check: checkOf("x=>y"),
    checkPort: agent.port,
    checkInterval: 0.2,
  });
  const [there, elsewhere] = [await server.next(), await agent.next()];
  await Promise.all([outcomeOf(there), outcomeOf(elsewhere)]);
  assert.equal(
    [there.bytes().toString(), elsewhere.bytes().toString()],
    ["PROXY UNKNOWN\r\n", "x"],
  );
});

proxy.run();

// ─── PROXY protocol, from clients ────────────────────────────────────────────

const accepting = suite("accepted PROXY headers");
accepting.after.each(cleanUp);

/** A balancer that wants a header from the addresses in `networks`, over a server that listens. */
async function wanting(networks: string, options: Parameters<typeof startBalancer>[1] = {}) {
  const list = new BlockList();
  list.addSubnet(networks, 8, "ipv4");
  const server = await serving();
  const { balancer, port } = await startBalancer([server.address], {
    acceptProxy: list,
    ...options,
  });
  return { balancer, port, server };
}

accepting("say who the client is, whatever pieces they come in", async () => {
  const { port, server } = await wanting("127.0.0.0", { sendProxy: true });
  const client = await dial(port);
  const header = "PROXY TCP4 10.1.2.3 10.9.9.9 5000 80\r\nhello";
  for (const byte of header) {
    client.socket.write(byte);
    await new Promise((resolve) => setImmediate(resolve));
  }
  client.socket.end();
  const talk = await server.next();
  assert.is(await outcomeOf(talk), "end");
  assert.is(talk.bytes().toString(), `PROXY TCP4 10.1.2.3 127.0.0.1 5000 ${port}\r\nhello`);
});

for (const [what, bytes] of [
  ["is missing", "GET / HTTP/1.1\r\n\r\n"],
  ["is malformed", "PROXY TCP4 10.1.2.3 10.9.9.9 5000\r\n"],
  ["is longer than the protocol allows", `PROXY TCP4 ${"1".repeat(200)}`],
] as const) {
  accepting(`reset who sends one that ${what}, which is counted as bad_proxy`, async () => {
    const { balancer, port, server } = await wanting("127.0.0.0");
    const client = await dial(port);
    client.socket.write(bytes);
    assert.is(await outcomeOf(client), "ECONNRESET");
    await assertEnded(balancer, { bad_proxy: 1 });
    assert.is(server.count(), 0);
  });
}

accepting("may be as long as version 2 allows", async () => {
  const { balancer, port, server } = await wanting("127.0.0.0");
  const client = await dial(port);
  const head = Buffer.from("\r\n\r\n\0\r\nQUIT\n\x21\x00\xff\xff", "latin1"); // and of no family
  client.socket.end(Buffer.concat([head, Buffer.alloc(65_535, 1), Buffer.from("hello")]));
  const talk = await server.next();
  assert.is(await outcomeOf(talk), "end");
  assert.is(talk.bytes().toString(), "hello");
  talk.socket.end();
  await assertEnded(balancer, { ok: 1 });
});

accepting("are waited for no longer than a connect may take", async () => {
  const { balancer, port } = await wanting("127.0.0.0", { connectTimeout: 0.1 });
  const client = await dial(port);
  client.socket.write("PROXY ");
  assert.is(await outcomeOf(client), "ECONNRESET");
  await assertEnded(balancer, { bad_proxy: 1 });
});

accepting("are not missed by who leaves without a byte: it is a probe", async () => {
  const { balancer, port } = await wanting("127.0.0.0");
  const client = await dial(port);
  client.socket.end();
  await outcomeOf(client);
  await assertEnded(balancer, { client_reset: 1 });
});

accepting("are bytes like any others from everywhere else", async () => {
  const { port, server } = await wanting("10.0.0.0");
  const client = await dial(port);
  client.socket.end("PROXY TCP4 nonsense\r\n");
  const talk = await server.next();
  assert.is(await outcomeOf(talk), "end");
  assert.is(talk.bytes().toString(), "PROXY TCP4 nonsense\r\n");
});

accepting.run();

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
