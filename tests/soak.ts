/**
 * soak.ts - a balancer among random clients and servers that are killed, stopped, slowed, reset and
 * restarted all the time.
 *
 * Afterwards every byte was right or its connection visibly broken, accepted = active + queued +
 * ended held at every look, and connections, descriptors and memory are back where they were. Exit
 * code 1 when anything of this is not so.
 *
 *   node --import tsx tests/soak.ts [--minutes 1] [--seed 1] [--algorithm least-connections]
 *                                   [--everything]
 *
 * With --everything the balancer has all of its options in play, and somebody drains, reweighs,
 * removes and adds servers, and switches the algorithm, all the time.
 *
 * The balancer runs in this process, so that only its own descriptors and memory are looked at;
 * servers and clients are children. A client's order (13 bytes) says which bytes it will send,
 * which it wants, and the server answers with its process id first: a reply that ends early and
 * cleanly is excused only when that very process had been killed, because the kernel ends a killed
 * process's connections with a FIN. (A client that has half-closed is excused for a server that
 * reset it, too: under Node 20 and 22 the client itself cannot tell.)
 */
import { type ChildProcess, fork } from "node:child_process";
import { once } from "node:events";
import { readdirSync } from "node:fs";
import { connect, createServer, type Socket } from "node:net";
import { setTimeout as pause } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import {
  amount,
  formatAddress,
  isMain,
  mulberry32,
  oneOf,
  type Options,
  parseCommandLine,
  runScript,
  seedNumber,
  type Values,
} from "../lib.ts";
import {
  ALGORITHMS,
  OPTIONS as BALANCER_OPTIONS,
  parseServers,
  type Started,
  startLoadBalancer,
} from "../load_balancer.ts";

const SELF = fileURLToPath(import.meta.url);
const SERVERS = 4;
const CLIENTS_AT_ONCE = 60;

// ─── The bytes ───────────────────────────────────────────────────────────────
// A stream is a place in one random table whose length is prime, so that a slice that is lost,
// doubled or from another connection never looks right.

const TABLE = Buffer.from(
  Uint8Array.from(
    { length: 1_048_573 },
    (
      (random) => () =>
        random() * 256
    )(mulberry32(4711)),
  ),
);

/** Bytes `from` to `from + size` of stream `start`; at most to the table's end. */
function streamBytes(start: number, from: number, size: number): Buffer {
  const place = (start + from) % TABLE.length;
  return TABLE.subarray(place, Math.min(TABLE.length, place + size));
}

function matches(chunk: Buffer, start: number, from: number): boolean {
  for (let done = 0; done < chunk.length;) {
    const expected = streamBytes(start, from + done, chunk.length - done);
    if (!expected.equals(chunk.subarray(done, done + expected.length))) return false;
    done += expected.length;
  }
  return true;
}

/** Sends `size` bytes of stream `start`, no faster than they are taken. */
async function send(socket: Socket, start: number, size: number): Promise<void> {
  for (let sent = 0; sent < size && !socket.destroyed;) {
    const chunk = streamBytes(start, sent, Math.min(size - sent, 60_000));
    sent += chunk.length;
    if (!socket.write(chunk)) await drained(socket);
  }
}

const drained = (socket: Socket): Promise<void> =>
  new Promise((resolve) => {
    const done = (): void => {
      socket.off("drain", done).off("close", done);
      resolve();
    };
    socket.on("drain", done).on("close", done);
  });

const PROXY = Buffer.from("PROXY ");

/** What follows a PROXY header, where there is one; nothing while it is not whole. */
function behindHeader(bytes: Buffer): Buffer {
  const length = Math.min(bytes.length, PROXY.length);
  if (!bytes.subarray(0, length).equals(PROXY.subarray(0, length))) return bytes;
  const end = bytes.indexOf("\r\n");
  return end < 0 ? Buffer.alloc(0) : bytes.subarray(end + 2);
}

// ─── A server ────────────────────────────────────────────────────────────────

/**
 * Listens on `port`; takes an order, checks the upload, answers with its process id and the
 * download, and ends.
 */
function serve(port: number): void {
  const sockets = new Set<Socket>();
  const server = createServer({ allowHalfOpen: true }, (socket) => {
    let start: Buffer = Buffer.alloc(0);
    let head = start;
    let received = 0;
    sockets.add(socket);
    socket
      .on("error", () => undefined)
      .on("close", () => sockets.delete(socket))
      .on("end", () => {
        if (head.length < 13) socket.end();
      });
    socket.on("data", (chunk: Buffer) => {
      if (head.length < 13) {
        start = Buffer.concat([start, chunk]);
        head = behindHeader(start);
        if (head.length < 13) return;
        chunk = head.subarray(13);
      }
      const [stream, upload, download] = [
        head.readUInt32LE(0),
        head.readUInt32LE(4),
        head.readUInt32LE(8),
      ];
      if (!matches(chunk, stream, received))
        process.send?.({ violation: `server got wrong bytes at ${received}` });
      const before = received;
      received += chunk.length;
      if (received >= upload && (before < upload || upload === 0))
        void answer(socket, stream + 1, download);
    });
  });
  process.on("message", () => {
    for (const socket of sockets) socket.resetAndDestroy();
  });
  process.on("disconnect", () => process.exit());
  server.listen(port, "127.0.0.1", () => {
    const bound = server.address();
    process.send?.({ port: typeof bound === "object" ? bound?.port : 0 });
  });
}

async function answer(socket: Socket, start: number, size: number): Promise<void> {
  const id = Buffer.alloc(4);
  id.writeUInt32LE(process.pid);
  socket.write(id);
  await send(socket, start, size);
  socket.end();
}

// ─── Clients ─────────────────────────────────────────────────────────────────

const BEHAVIOURS = ["plain", "half-close", "slow", "leaves", "resets", "silent"] as const;
type Outcome = {
  readonly kind: "whole" | "broken" | "left" | "short";
  readonly server: number;
  readonly behaviour: string;
};

/** One connection, and how it turned out. Wrong bytes throw. */
async function client(port: number, random: () => number, header: string): Promise<Outcome> {
  const behaviour = BEHAVIOURS[Math.floor(random() * BEHAVIOURS.length)] ?? "plain";
  const sizeOf = (): number =>
    Math.floor(random() * (random() < 0.03 ? 20_000_000 : random() < 0.2 ? 1_000_000 : 20_000));
  const [start, upload, download] = [Math.floor(random() * 2 ** 31), sizeOf(), sizeOf()];
  const socket = connect({ port, host: "127.0.0.1", allowHalfOpen: true });
  let [server, received, cut, ended, wrong] = [0, 0, false, false, ""];
  let head = Buffer.alloc(0);
  socket
    .on("error", () => {
      cut = true;
    })
    .on("end", () => {
      ended = true;
    });
  socket.on("data", (chunk: Buffer) => {
    if (head.length < 4) {
      head = Buffer.concat([head, chunk]);
      if (head.length < 4) return;
      server = head.readUInt32LE(0);
      chunk = head.subarray(4);
    }
    if (!matches(chunk, start + 1, received))
      wrong = `client got wrong bytes at ${received} of ${download}`;
    received += chunk.length;
    if (behaviour === "slow" && !socket.isPaused()) {
      socket.pause();
      setTimeout(() => socket.resume(), random() * 30);
    }
  });
  const closed = new Promise((resolve) => socket.once("close", resolve));
  const order = Buffer.alloc(13);
  [start, upload, download].forEach((value, i) => order.writeUInt32LE(value, i * 4));
  if (behaviour === "silent") {
    await pause(random() * 200);
    socket.destroy();
  } else {
    socket.write(header);
    socket.write(order);
    const sending = send(socket, start, upload);
    if (behaviour === "half-close") void sending.then(() => socket.end());
    if (behaviour === "leaves") setTimeout(() => socket.destroy(), random() * 100);
    if (behaviour === "resets")
      setTimeout(() => {
        if (!socket.destroyed) socket.resetAndDestroy();
      }, random() * 100);
    socket.once("end", () => {
      // Node 20 and 22 show data and a reset that come together as a clean end; this tells them
      // apart
      if (!socket.writableEnded) socket.write("");
      void sending.then(() => socket.end());
    });
  }
  await Promise.race([
    closed,
    pause(20_000, undefined, { ref: false }).then(() => {
      throw new Error(`a ${behaviour} client hung at ${received} of ${download} bytes`);
    }),
  ]);
  if (wrong) throw new Error(wrong);
  if (behaviour === "leaves" || behaviour === "resets" || behaviour === "silent")
    return { kind: "left", server, behaviour };
  if (cut || !ended) return { kind: "broken", server, behaviour };
  return { kind: head.length >= 4 && received === download ? "whole" : "short", server, behaviour };
}

/** Keeps clients coming until told to stop, and reports each outcome to the parent. */
async function clients(port: number, seed: number, everything: boolean): Promise<void> {
  const random = mulberry32(seed);
  let running = true;
  process.on("message", () => {
    running = false;
  });
  process.on("disconnect", () => process.exit());
  const oneAfterAnother = async (): Promise<void> => {
    while (running) {
      const host = Math.floor(random() * 250);
      const header = everything ? `PROXY TCP4 10.0.0.${host} 127.0.0.1 4711 80\r\n` : "";
      await client(port, random, header).then(
        (outcome) => process.send?.(outcome),
        (error: Error) => process.send?.({ violation: error.message }),
      );
      await pause(random() * 20);
    }
  };
  await Promise.all(Array.from({ length: CLIENTS_AT_ONCE }, oneAfterAnother));
  process.disconnect();
}

// ─── The chaos, and the verdict ──────────────────────────────────────────────

/** A server process that can be replaced by a new one on the same port. */
class Victim {
  child: ChildProcess | undefined;
  port = 0;

  async start(violated: (what: string) => void): Promise<void> {
    this.child = fork(SELF, ["server", String(this.port)]);
    const [message] = await once(this.child, "message");
    this.port = message.port;
    this.child.on("message", ({ violation }: { violation: string }) => violated(violation));
  }

  async kill(): Promise<void> {
    this.child?.kill("SIGKILL");
    if (this.child !== undefined) await once(this.child, "exit");
  }
}

/**
 * One act of violence against a random server. Returns once it is over and the server runs again.
 */
async function violence(
  victim: Victim,
  random: () => number,
  harmed: { killed: Set<number>; reset: Set<number> },
  violated: (what: string) => void,
): Promise<string> {
  const act = ["kill", "stop", "reset"][Math.floor(random() * 3)] ?? "kill";
  const pid = victim.child?.pid ?? 0;
  if (act === "kill") {
    harmed.killed.add(pid);
    await victim.kill();
    await pause(random() * 1000);
    await victim.start(violated);
  } else if (act === "stop") {
    victim.child?.kill("SIGSTOP");
    await pause(200 + random() * 1500);
    victim.child?.kill("SIGCONT");
  } else {
    harmed.reset.add(pid);
    victim.child?.send("reset");
  }
  return act;
}

/** All that stands in the balancer's help, as far as it does not choose where it listens. */
function everyOption(): Values<typeof BALANCER_OPTIONS> {
  const order = Buffer.alloc(13); // for three bytes of stream 0
  order.writeUInt32LE(3, 8);
  const hex = (bytes: Buffer): string =>
    [...bytes].map((byte) => `\\x${byte.toString(16).padStart(2, "0")}`).join("");
  const check = `${hex(order)}=>${hex(streamBytes(1, 0, 3))}`;
  const words = `--server-connections 25 --queue-timeout 5 --retry-for 2 --abort-on-close
    --client-connections 40 --slow-start 2 --on-down reset --send-proxy --accept-proxy 127.0.0.0/8
    --connect-timeout 0.5 --check-interval 0.5 --fall 2 --rise 1 --idle-timeout 15 --check ${check}`;
  return parseCommandLine(BALANCER_OPTIONS, words.split(/\s+/)).values;
}

/** Asks the admin interface, and changes something about the servers or the algorithm. */
async function meddle(
  { balancer, admin }: Started,
  addresses: readonly string[],
  random: () => number,
): Promise<void> {
  const any = <T>(list: readonly T[]): T | undefined => list[Math.floor(random() * list.length)];
  const kinds = ["", "", "*0", "*3", " backup"];
  for (const path of ["/status.json", "/metrics", "/"])
    await (await fetch(`http://${formatAddress(admin ?? { host: "", port: 0 })}${path}`)).text();
  balancer.setDraining(any(addresses) ?? "", random() < 0.5);
  if (random() < 0.3) balancer.setAlgorithm(any(ALGORITHMS) ?? "random");
  const kept = addresses.filter(() => random() < 0.8).map((address) => `${address}${any(kinds)}`);
  if (random() < 0.3 && kept.length > 0) balancer.setServers(parseServers(kept), "file");
}

const OPTIONS = {
  everything: { help: "with all options in play, and somebody who meddles" },
  minutes: { kind: amount("minutes"), value: "N", fallback: "1", help: "how long" },
  seed: { kind: seedNumber, value: "N", fallback: "1", help: "of clients and chaos" },
  algorithm: {
    kind: oneOf(ALGORITHMS),
    value: "NAME",
    fallback: "least-connections",
    help: "of the balancer",
  },
} as const satisfies Options;

async function main(
  _: string[],
  { minutes, seed, algorithm, everything }: Values<typeof OPTIONS>,
): Promise<number> {
  const violations: string[] = [];
  const violated = (what: string): void => void violations.push(what);
  const harmed = { killed: new Set<number>(), reset: new Set<number>() };
  const outcomes: Outcome[] = [];
  const acts: Record<string, number> = {};
  const victims = Array.from({ length: SERVERS }, () => new Victim());
  for (const victim of victims) await victim.start(violated);
  const addresses = victims.map(({ port }) => `127.0.0.1:${port}`);
  const { maxConnections, serversFile, admin, ...all } = everyOption();
  const started = await startLoadBalancer({
    ...(everything ? { ...all, admin: { host: "127.0.0.1", port: 0 } } : {}),
    algorithm,
    seed,
    port: 0,
    log: "none",
    connectTimeout: 0.5,
    checkInterval: 0.5,
    idleTimeout: 15,
    servers: parseServers(addresses),
  });
  const { balancer, address } = started;
  const look = (): void => {
    const { accepted, active, queued, ended } = balancer.status();
    if (accepted !== active + queued + Object.values(ended).reduce((a, b) => a + b))
      violated("accepted is not active + queued + ended");
  };
  const descriptors = (): number => readdirSync("/dev/fd").length;
  const before = descriptors();

  const crowd = fork(SELF, ["clients", String(address.port), String(seed), String(everything)]);
  crowd.on("message", (outcome: Outcome & { violation?: string }) => {
    if (outcome.violation) violated(outcome.violation);
    else outcomes.push(outcome);
  });
  const left = once(crowd, "exit");
  const end = performance.now() + minutes * 60_000;
  const memory: number[] = []; // MiB, once a second
  const watch = setInterval(look, 50);
  const weigh = setInterval(() => memory.push(process.memoryUsage().rss / 2 ** 20), 1000);
  const random = mulberry32(seed + 1);
  while (performance.now() < end) {
    const victim = victims[Math.floor(random() * SERVERS)];
    if (victim) {
      const act = await violence(victim, random, harmed, violated);
      acts[act] = (acts[act] ?? 0) + 1;
    }
    if (everything) await meddle(started, addresses, random);
    await pause(random() * 600);
  }
  balancer.setServers(parseServers(addresses), "file");
  for (const name of addresses) balancer.setDraining(name, false);
  crowd.send("stop");
  await left;
  const deadline = performance.now() + 20_000;
  while (balancer.status().active > 0 && performance.now() < deadline) await pause(50);
  for (const interval of [watch, weigh]) clearInterval(interval);
  await pause(100);
  const { accepted, active, ended, retries, servers } = balancer.status();
  const after = descriptors();
  for (const { kind, server, behaviour } of outcomes) {
    const excused =
      server === 0
        ? harmed.killed.size > 0
        : harmed.killed.has(server) || (behaviour === "half-close" && harmed.reset.has(server));
    if (kind === "short" && !excused)
      violated(
        `a ${behaviour} client's reply ended early and cleanly, and its server had not been killed`,
      );
  }
  if (active > 0 || servers.some((server) => server.active !== 0))
    violated(`${active} connections are still open`);
  // a check or two may be under way
  if (after > before + SERVERS) violated(`${after} descriptors are open, ${before} were before`);
  const [early = 0, late = 0] = [
    memory.slice(0, memory.length >> 1),
    memory.slice(memory.length >> 1),
  ].map((half) => Math.max(...half));
  await balancer.stop(0);
  for (const victim of victims) await victim.kill();

  const kinds = Object.fromEntries(
    ["whole", "broken", "short", "left"].map((kind) => [
      kind,
      outcomes.filter((outcome) => outcome.kind === kind).length,
    ]),
  );
  console.log(
    `${outcomes.length} clients in ${minutes} min, seed ${seed}, ${algorithm}: ${JSON.stringify(kinds)}`,
  );
  console.log(`violence: ${JSON.stringify(acts)}`);
  console.log(`accepted ${accepted}, retries ${retries}, ended ${JSON.stringify(ended)}`);
  console.log(
    `descriptors ${before} -> ${after}, memory at most ${early.toFixed(0)} MiB in the first half, ${late.toFixed(0)} MiB in the second`,
  );
  console.log(
    violations.length === 0
      ? "no violation"
      : `${violations.length} VIOLATIONS, such as: ${[...new Set(violations)].slice(0, 5).join("; ")}`,
  );
  return violations.length === 0 ? 0 : 1;
}

if (isMain(import.meta)) {
  const [role, port, seed, everything] = process.argv.slice(2);
  if (role === "server") serve(Number(port));
  else if (role === "clients") void clients(Number(port), Number(seed), everything === "true");
  else
    await runScript({
      usage: "How to Use: node --import tsx tests/soak.ts",
      options: OPTIONS,
      main,
    });
}
