/**
 * soak.ts - a balancer among random clients (they reset, half-close, desert, idle or read slowly at
 * random moments) and servers that are killed, stopped, reset, refuse and come back all the time.
 *
 * Afterwards every byte was right or its connection visibly broken, accepted = active + queued +
 * ended held at every look, and connections, descriptors and memory are back where they were;
 * SIGTERM ends the balancer. Exit code 1 when anything of this is not so.
 *
 *   node --import tsx tests/soak.ts [--minutes 1] [--seed 1] [--algorithm least-connections]
 *   node --import tsx tests/soak.ts --clients 10000 [--everything]
 *
 * With --everything the balancer has all of its options in play, and somebody drains, reweighs,
 * removes and adds servers, and switches the algorithm, all the time.
 *
 * The balancer is the program, started with a few lines that tell its heap and descriptors; servers
 * and clients are children, too. A client's order (13 bytes) says which bytes it will send, which
 * it wants, and the server answers with its process id first: a reply that ends early and cleanly
 * is excused only when that very process had been killed, because the kernel ends a killed
 * process's connections with a FIN. (A client that has half-closed is excused for a server that
 * reset it, too: under Node 20 and 22 the client itself cannot tell.)
 */
import { type ChildProcess, fork } from "node:child_process";
import { once } from "node:events";
import { rmSync, writeFileSync } from "node:fs";
import { connect, createServer, type Server, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as pause } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import {
  amount,
  isMain,
  mulberry32,
  oneOf,
  type Options,
  runScript,
  seedNumber,
  type Values,
  wholeNumber,
} from "../lib.ts";
import { ALGORITHMS, type Status } from "../load_balancer.ts";

const SELF = fileURLToPath(import.meta.url);
const BALANCER = fileURLToPath(new URL("../load_balancer.ts", import.meta.url));
const SERVERS_FILE = join(tmpdir(), `soak-${process.pid}.servers`);
const SERVERS = 4;
const CLIENTS_AT_ONCE = 100;
/** Clients before the balancer is weighed for the first time: what has to be compiled is. */
const WARM_UP = 500;

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
  process.on("message", (act) => {
    if (act === "reset") for (const socket of sockets) socket.resetAndDestroy();
    if (act === "refuse") refuseForAMoment(server);
  });
  process.on("disconnect", () => process.exit());
  server.listen(port, "127.0.0.1", () => {
    const bound = server.address();
    process.send?.({ port: typeof bound === "object" ? bound?.port : 0 });
  });
}

/** Takes nobody new; those who are there are served. */
function refuseForAMoment(server: Server): void {
  const bound = server.address();
  if (bound === null || typeof bound === "string") return; // it refuses already
  server.removeAllListeners("listening"); // its port has been told
  server.close();
  setTimeout(() => server.listen(bound.port, "127.0.0.1"), 700);
}

async function answer(socket: Socket, start: number, size: number): Promise<void> {
  const id = Buffer.alloc(4);
  id.writeUInt32LE(process.pid);
  socket.write(id);
  await send(socket, start, size);
  socket.end();
}

// ─── Clients ─────────────────────────────────────────────────────────────────

const BEHAVIOURS = ["plain", "half-close", "slow", "leaves", "resets", "silent", "idle"] as const;
/** How long an idle client stays at most, in ms; the balancer's idle time-out is half of it. */
const LONGEST_IDLE = 4000;
/** Some send or want up to so many bytes. */
const MOST_BYTES = 20_000_000;
type Outcome = {
  readonly kind: "whole" | "broken" | "left" | "short";
  readonly server: number;
  readonly behaviour: string;
};

/** One connection, and how it turned out. Wrong bytes throw. */
async function client(port: number, random: () => number, header: string): Promise<Outcome> {
  const behaviour = BEHAVIOURS[Math.floor(random() * BEHAVIOURS.length)] ?? "plain";
  const sizeOf = (): number => {
    const kind = random();
    const most = kind < 0.01 ? MOST_BYTES : 20_000;
    return Math.floor(random() * (kind < 0.2 ? Math.max(most, 1_000_000) : most));
  };
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
  if (behaviour === "silent" || behaviour === "idle") {
    const longest = behaviour === "idle" ? LONGEST_IDLE : 200;
    await Promise.race([closed, pause(random() * longest)]);
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
  if (["leaves", "resets", "silent", "idle"].includes(behaviour))
    return { kind: "left", server, behaviour };
  if (cut || !ended) return { kind: "broken", server, behaviour };
  return { kind: head.length >= 4 && received === download ? "whole" : "short", server, behaviour };
}

/** Keeps clients coming, `most` or until told to stop, and reports each outcome to the parent. */
async function clients(
  port: number,
  seed: number,
  most: number,
  everything: boolean,
): Promise<void> {
  const random = mulberry32(seed);
  let left = most;
  process.on("message", () => {
    left = 0;
  });
  process.on("disconnect", () => process.exit());
  const oneAfterAnother = async (): Promise<void> => {
    while (left > 0) {
      left -= 1;
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

// ─── The balancer ────────────────────────────────────────────────────────────

/** What a process holds. */
interface Weight {
  readonly descriptors: number;
  /** In MiB, after a collection. */
  readonly heap: number;
  readonly memory: number;
}

/** Loaded before the program: answers each message with its weight, and keeps nobody alive. */
const SCALES = `import { readdirSync } from "node:fs";
  process.on("message", () => {
    globalThis.gc();
    const { heapUsed, rss } = process.memoryUsage();
    const descriptors = readdirSync("/dev/fd").length;
    process.send({ descriptors, heap: heapUsed / 2 ** 20, memory: rss / 2 ** 20 });
  });
  process.channel.unref();`;

/** What is in the balancer's help and not in every soak. */
function everyOption(): string[] {
  const order = Buffer.alloc(13); // for three bytes of stream 0
  order.writeUInt32LE(3, 8);
  const hex = (bytes: Buffer): string =>
    [...bytes].map((byte) => `\\x${byte.toString(16).padStart(2, "0")}`).join("");
  const check = `${hex(order)}=>${hex(streamBytes(1, 0, 3))}`;
  const words = `--retry-for 2 --abort-on-close --client-connections 40 --slow-start 2
    --on-down reset --send-proxy --accept-proxy 127.0.0.0/8 --fall 2 --rise 1 --check ${check}`;
  return words.split(/\s+/);
}

/** The program, as it is watched and ended from outside. */
class Subject {
  readonly port: number;
  readonly addresses: readonly string[];
  readonly #child: ChildProcess;
  readonly #admin: string;

  static async start(algorithm: string, seed: number, servers: readonly number[], more: string[]) {
    const addresses = servers.map((port) => `127.0.0.1:${port}`);
    writeFileSync(SERVERS_FILE, addresses.join("\n"));
    const options = {
      "--servers-file": SERVERS_FILE,
      "--server-connections": "6",
      "--queue-timeout": "1",
      "--connect-timeout": "0.5",
      "--check-interval": "0.5",
      "--idle-timeout": String(LONGEST_IDLE / 2000),
      "--seed": String(seed),
    };
    const always = ["--port", "0", "--admin", "0", "--log", "none"];
    const words = [algorithm, ...always, ...Object.entries(options).flat(), ...more];
    const child = fork(BALANCER, words, {
      execArgv: [
        ...["--expose-gc", ...process.execArgv, "--import"],
        `data:text/javascript,${encodeURIComponent(SCALES)}`,
      ],
      stdio: ["ignore", "pipe", "inherit", "ipc"],
    });
    let output = "";
    child.stdout?.setEncoding("utf8").on("data", (text: string) => {
      output += text;
    });
    while (!output.includes("Admin on ") && child.exitCode === null) await pause(10);
    return new Subject(child, output, addresses);
  }

  private constructor(child: ChildProcess, output: string, addresses: readonly string[]) {
    const [, port, admin = ""] = /^Listening on .*:(\d+)\nAdmin on (\S+)\n/.exec(output) ?? [];
    this.addresses = addresses;
    this.#child = child;
    this.#admin = admin;
    this.port = Number(port);
  }

  async status(): Promise<Status> {
    const response = await fetch(`${this.#admin}status.json`);
    const status: Status = JSON.parse(await response.text());
    return status;
  }

  /** Drains or readies a server, switches the algorithm, and writes another servers file. */
  async meddle(random: () => number): Promise<void> {
    const any = (list: readonly string[]): string => list[Math.floor(random() * list.length)] ?? "";
    const act = random() < 0.5 ? "drain" : "ready";
    await this.#post(`servers/${any(this.addresses)}/${act}`);
    if (random() < 0.3) await this.#post(`algorithm/${any(ALGORITHMS)}`);
    for (const page of ["", "metrics"]) await (await fetch(`${this.#admin}${page}`)).text();
    if (random() < 0.7) return;
    const kinds = ["", "", "*0", "*3", " backup"];
    const kept = this.addresses.filter(() => random() < 0.8);
    writeFileSync(SERVERS_FILE, kept.map((address) => address + any(kinds)).join("\n"));
  }

  /** All servers are there, alike and ready. */
  async mend(): Promise<void> {
    writeFileSync(SERVERS_FILE, this.addresses.join("\n"));
    for (const address of this.addresses) await this.#post(`servers/${address}/ready`);
  }

  async #post(path: string): Promise<void> {
    await (await fetch(`${this.#admin}${path}`, { method: "POST" })).text();
  }

  async weigh(): Promise<Weight> {
    const answered = once(this.#child, "message");
    this.#child.send("weigh");
    const [weight]: Weight[] = await answered;
    if (weight === undefined) throw new Error("no weight");
    return weight;
  }

  /** What SIGTERM comes to: undefined when it ends with 0 within a few seconds. */
  async end(): Promise<string | undefined> {
    const exited = once(this.#child, "exit");
    this.#child.kill("SIGTERM");
    const late = pause(5000, undefined, { ref: false });
    const [code, signal] = (await Promise.race([exited, late])) ?? ["none after 5 s"];
    if (code === "none after 5 s") this.#child.kill("SIGKILL");
    return code === 0 ? undefined : `exit code ${code ?? signal} on SIGTERM`;
  }

  kill(): void {
    this.#child.kill("SIGKILL");
  }
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

/** All that happens in one soak. */
class Soak {
  readonly violations: string[] = [];
  readonly outcomes: Outcome[] = [];
  readonly acts: Record<string, number> = {};
  readonly victims = Array.from({ length: SERVERS }, () => new Victim());
  readonly #killed = new Set<number>();
  readonly #reset = new Set<number>();
  readonly #random: () => number;

  readonly #everything: boolean;

  constructor(seed: number, everything: boolean) {
    this.#everything = everything;
    this.#random = mulberry32(seed + 1);
  }

  readonly violated = (what: string): void => void this.violations.push(what);

  /** Lets clients come, `most` or until `end` is called; they are over when `left` is fulfilled. */
  crowd(port: number, seed: number, most: number) {
    const words = [port, seed, most, this.#everything].map(String);
    const child = fork(SELF, ["clients", ...words]);
    child.on("message", (outcome: Outcome & { violation?: string }) => {
      if (outcome.violation) this.violated(outcome.violation);
      else this.outcomes.push(outcome);
    });
    return { left: once(child, "exit"), end: () => child.send("stop") };
  }

  /** One act of violence after the other, until `isOver`; then all servers run. */
  async rage(subject: Subject, isOver: () => boolean): Promise<void> {
    while (!isOver()) {
      if (this.#everything) await subject.meddle(this.#random);
      const victim = this.victims[Math.floor(this.#random() * SERVERS)];
      if (victim === undefined) return;
      const act = ["kill", "stop", "reset", "refuse"][Math.floor(this.#random() * 4)] ?? "kill";
      this.acts[act] = (this.acts[act] ?? 0) + 1;
      await this.#harm(victim, act);
      await pause(this.#random() * 600);
    }
  }

  async #harm(victim: Victim, act: string): Promise<void> {
    const pid = victim.child?.pid ?? 0;
    if (act === "kill") {
      this.#killed.add(pid);
      await victim.kill();
      await pause(this.#random() * 1000);
      await victim.start(this.violated);
    } else if (act === "stop") {
      victim.child?.kill("SIGSTOP");
      await pause(200 + this.#random() * 1500);
      victim.child?.kill("SIGCONT");
    } else {
      if (act === "reset") this.#reset.add(pid);
      victim.child?.send(act);
    }
  }

  /** A reply that ended early and cleanly is a violation unless its server was killed. */
  judgeOutcomes(): void {
    for (const { kind, server, behaviour } of this.outcomes) {
      const isExcused =
        server === 0
          ? this.#killed.size > 0
          : this.#killed.has(server) || (behaviour === "half-close" && this.#reset.has(server));
      if (kind === "short" && !isExcused)
        this.violated(`a ${behaviour} client's reply ended early and cleanly, by no killed server`);
    }
  }

  look({ accepted, active, queued, ended }: Status): void {
    const sum = Object.values(ended).reduce((a, b) => a + b, active + queued);
    if (accepted !== sum) this.violated("accepted is not active + queued + ended");
  }

  /** Waits until nobody is connected any more. */
  async quiet(subject: Subject): Promise<Status> {
    const deadline = performance.now() + 20_000;
    let status = await subject.status();
    while (status.active + status.queued > 0 && performance.now() < deadline) {
      await pause(100);
      status = await subject.status();
    }
    const isHeld = status.servers.some(({ active }) => active !== 0);
    if (status.active + status.queued > 0 || isHeld)
      this.violated(`${status.active} connections are still open, ${status.queued} queued`);
    return status;
  }
}

const OPTIONS = {
  everything: { help: "with all options in play, and somebody who meddles" },
  minutes: { kind: amount("minutes"), value: "N", fallback: "1", help: "how long" },
  clients: { kind: wholeNumber(1), value: "N", help: "how many, in place of how long" },
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
  { minutes, clients: most, seed, algorithm, everything }: Values<typeof OPTIONS>,
): Promise<number> {
  const soak = new Soak(seed, everything);
  const { victims } = soak;
  for (const victim of victims) await victim.start(soak.violated);
  const ports = victims.map(({ port }) => port);
  const more = everything ? everyOption() : [];
  const subject = await Subject.start(algorithm, seed, ports, more);
  process.once("exit", () => {
    rmSync(SERVERS_FILE, { force: true });
    subject.kill();
    for (const { child } of victims) child?.kill("SIGKILL");
  });
  await soak.crowd(subject.port, seed + 2, WARM_UP).left;
  await soak.quiet(subject);
  const before = await subject.weigh();

  const { left, end } = soak.crowd(subject.port, seed, most ?? Infinity);
  const watch = setInterval(() => {
    void subject.status().then((status) => soak.look(status));
  }, 100);
  let isOver = false;
  void left.then(() => {
    isOver = true;
  });
  const deadline = most === undefined ? performance.now() + minutes * 60_000 : Infinity;
  await soak.rage(subject, () => isOver || performance.now() > deadline);
  await subject.mend();
  if (!isOver) end();
  await left;
  clearInterval(watch);
  const status = await soak.quiet(subject);
  const after = await subject.weigh();
  soak.judgeOutcomes();
  // a check or two, and a look, may be under way
  if (after.descriptors > before.descriptors + SERVERS + 1)
    soak.violated(`${after.descriptors} descriptors are open, ${before.descriptors} were before`);
  if (after.heap > before.heap + 4)
    soak.violated(`the heap is ${after.heap.toFixed(1)} MiB, it was ${before.heap.toFixed(1)}`);
  const failure = await subject.end();
  if (failure !== undefined) soak.violated(failure);
  for (const victim of victims) await victim.kill();
  report(soak, status, before, after);
  return soak.violations.length === 0 ? 0 : 1;
}

function report(soak: Soak, status: Status, before: Weight, after: Weight): void {
  const { outcomes, acts, violations } = soak;
  const kinds: Record<string, number> = {};
  for (const { kind } of outcomes) kinds[kind] = (kinds[kind] ?? 0) + 1;
  const sizes = ({ heap, memory }: Weight): string =>
    `heap ${heap.toFixed(1)} MiB, memory ${memory.toFixed(0)} MiB`;
  const few = [...new Set(violations)].slice(0, 5).join("; ");
  const { accepted, active, queued, retries, ended, algorithm } = status;
  console.log(`${outcomes.length} clients, ${algorithm}: ${JSON.stringify(kinds)}`);
  console.log(`violence: ${JSON.stringify(acts)}`);
  console.log(`accepted ${accepted}, retries ${retries}, ended ${JSON.stringify(ended)}`);
  console.log(`active ${active}, queued ${queued}`);
  console.log(`before: ${before.descriptors} descriptors, ${sizes(before)}`);
  console.log(`after:  ${after.descriptors} descriptors, ${sizes(after)}`);
  const isClean = violations.length === 0;
  console.log(isClean ? "no violation" : `${violations.length} VIOLATIONS, such as: ${few}`);
}

if (isMain(import.meta)) {
  const [role, port, seed, most, everything] = process.argv.slice(2);
  if (role === "server") serve(Number(port));
  else if (role === "clients")
    void clients(Number(port), Number(seed), Number(most), everything === "true");
  else
    await runScript({
      usage: "How to Use: node --import tsx tests/soak.ts",
      options: OPTIONS,
      main,
    });
}
