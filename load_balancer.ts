#!/usr/bin/env -S node --import tsx
/**
 * load_balancer.ts - spread TCP connections over a set of servers.
 *
 * Picks a server for each client connection and copies bytes both ways until both sides have
 * finished. It never reads the bytes, so it carries any protocol over TCP; it does not cache, pool
 * or encrypt.
 *
 *   tsx load_balancer.ts round-robin
 *   tsx load_balancer.ts least-connections --port 8080 --servers 10.0.0.1:80,10.0.0.2:80*2
 *
 * What it promises about bytes, half-closes, resets, retries and limits is listed in README.md.
 */
import { execFileSync } from "node:child_process";
import { lookup } from "node:dns/promises";
import { readdirSync, readFileSync, unwatchFile, watchFile } from "node:fs";
import { readFile } from "node:fs/promises";
import {
  createServer as createHttpServer,
  type IncomingMessage,
  type ServerResponse,
} from "node:http";
import { connect, createServer, isIP, type Server as Listener, type Socket } from "node:net";
import {
  type Address,
  amount,
  anyText,
  formatAddress,
  hostName,
  isMain,
  type Kind,
  listen,
  mulberry32,
  oneOf,
  onStopSignals,
  type Options,
  parseAddress,
  parseCommandLine,
  portNumber,
  readValue,
  reasonOf,
  RunError,
  runScript,
  seedNumber,
  someSeconds,
  UsageError,
  type Values,
  wholeNumber,
} from "./lib.ts";

/** The servers to balance over, when --servers names no others. */
const SERVERS = [
  "127.0.0.1:65433",
  "127.0.0.1:65434",
  "127.0.0.1:65435",
  "127.0.0.1:65436",
  "127.0.0.1:65437",
];

// ─── Servers ─────────────────────────────────────────────────────────────────
// What the balancer knows about each server. The algorithms read it, the health section and the
// relay write it.

/** A server as the command line names it. */
export type ServerSpec = Address & { readonly weight: number };

export interface Server {
  readonly address: Address;
  /** `127.0.0.1:65433`, its name in logs and in the status. */
  readonly name: string;
  /** What the algorithms see: less than `fullWeight` during a slow start. */
  weight: number;
  fullWeight: number;
  up: boolean;
  draining: boolean;
  /** Since when it is up or down (on the balancer's clock, in seconds), and why it is down. */
  since: number;
  why: string;
  /** Came back on probation: one connection at a time until one of them succeeds. */
  onTrial: boolean;
  /** Its open connections from before the trial, which do not count as the one. */
  elders: number;
  /** Failures and successes in a row, of checks and of real connects alike. */
  failures: number;
  successes: number;
  /**
   * The last failures were of a kind that a bare connect cannot refute: accepted, and closed at
   * once.
   */
  suspect: boolean;
  /**
   * How long it will be left alone next time, in seconds, when no check can tell whether it is
   * back; and until when it is now, in ms.
   */
  penalty: number;
  heldUntil: number;
  /** Gave a byte to a client since the last look. */
  spoke: boolean;
  /** Open connections, counted from the pick. */
  active: number;
  total: number;
  connectErrors: number;
  checkFailures: number;
  bytesToServer: number;
  bytesToClient: number;
  /** Exponentially weighted means in seconds, null before the first sample. */
  connectTime: number | null;
  turnTime: number | null;
  readonly connectTimes: Histogram;
  readonly turnTimes: Histogram;
  /** Where it stands in taking turns: what that means is the algorithm's own affair. */
  credit: number;
  /**
   * Peak EWMA of its turn times in seconds, as it was at `costAt`; 0 without history. See
   * `observe`.
   */
  cost: number;
  costAt: number;
  /**
   * When each connection that waits for an answer began to, in seconds, the oldest first (kept for
   * `least-latency` only).
   */
  readonly asked: Map<object, number>;
  oldestAsked: number;
  /** Of its name, for `source-hash`. */
  readonly hash: number;
  /** Its next check, or its next chance. */
  timer: NodeJS.Timeout | undefined;
}

/** A server as it is before anything is known of it. */
export function newServer({ weight, ...address }: ServerSpec): Server {
  const name = formatAddress(address);
  return {
    address,
    name,
    weight,
    fullWeight: weight,
    up: true,
    draining: false,
    since: clock(),
    why: "",
    onTrial: false,
    elders: 0,
    failures: 0,
    successes: 0,
    suspect: false,
    penalty: PENALTY.first,
    heldUntil: 0,
    spoke: false,
    active: 0,
    total: 0,
    connectErrors: 0,
    checkFailures: 0,
    bytesToServer: 0,
    bytesToClient: 0,
    connectTime: null,
    turnTime: null,
    connectTimes: newHistogram(),
    turnTimes: newHistogram(),
    credit: 0,
    cost: 0,
    costAt: 0,
    asked: new Map(),
    oldestAsked: Infinity,
    hash: hash(name),
    timer: undefined,
  };
}

/** Monotonic, in seconds. */
const clock = (): number => performance.now() / 1000;

/**
 * How many samples were at most each of BUCKETS seconds and above the one before; the last count is
 * for those above all.
 */
export interface Histogram {
  readonly counts: number[];
  sum: number;
}
const BUCKETS = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10];
const newHistogram = (): Histogram => ({
  counts: Array.from({ length: BUCKETS.length + 1 }, () => 0),
  sum: 0,
});

function count(histogram: Histogram, seconds: number): void {
  let bucket = 0;
  while (seconds > (BUCKETS[bucket] ?? Infinity)) bucket += 1;
  histogram.counts[bucket] = (histogram.counts[bucket] ?? 0) + 1;
  histogram.sum += seconds;
}

/** `host:port` or `host:port*weight`. */
const serverSpec: Kind<ServerSpec> = {
  expected:
    "host:port or host:port*weight, with a port from 1 to 65535 and a weight from 1 to 1000",
  read(text) {
    const [place = "", stars, rest] = text.split("*");
    const address = parseAddress(place);
    const weight = stars === undefined ? 1 : wholeNumber(1, 1000).read(stars);
    return address === undefined || address.port === 0 || weight === undefined || rest !== undefined
      ? undefined
      : { ...address, weight };
  },
};

/**
 * Reads a list of `serverSpec`s. Throws a UsageError about the first one that is wrong, or there
 * twice.
 */
export function parseServers(texts: readonly string[]): ServerSpec[] {
  const specs = new Map<string, ServerSpec>();
  for (const text of texts) addServer(specs, text.trim());
  return [...specs.values()];
}

function addServer(specs: Map<string, ServerSpec>, text: string): void {
  const spec = readValue("server", serverSpec, text);
  const name = formatAddress(spec);
  if (specs.has(name))
    throw new UsageError(`Bad server ${JSON.stringify(name)}: expected each server once`);
  specs.set(name, spec);
}

/**
 * Reads a servers file: one server a line, `#` starts a comment. Throws a RunError that names the
 * line.
 */
export async function readServersFile(file: string): Promise<ServerSpec[]> {
  const text = await readFile(file, "utf8").catch((error: unknown) => {
    throw new RunError(`Cannot read ${file}: ${reasonOf(error)}`);
  });
  const specs = new Map<string, ServerSpec>();
  for (const [index, line] of text.split("\n").entries()) {
    const entry = line.replace(/#.*/, "").trim();
    try {
      if (entry !== "") addServer(specs, entry);
    } catch (error) {
      throw new RunError(`${file}:${index + 1}: ${reasonOf(error)}`);
    }
  }
  if (specs.size === 0)
    throw new RunError(`${file}:1: no server in the file: expected one host:port[*weight] a line`);
  return [...specs.values()];
}

/** The addresses of a host name. */
export type Resolver = (name: string) => Promise<readonly string[]>;
const systemResolver: Resolver = async (name) =>
  (await lookup(name, { all: true })).map(({ address }) => address);

/**
 * What the configured servers are at the moment: every address of a name is a server, so that DNS
 * can be the directory. A name is looked up here, not for each connection, which would cost a
 * thread each time. When that fails its last good answer stays, and that is said once; a name that
 * has never had one stands for itself, and is down until it resolves.
 */
export class Directory {
  specs: readonly ServerSpec[];
  readonly #resolve: Resolver;
  readonly #known = new Map<string, readonly string[]>();
  readonly #stale = new Set<string>();

  constructor(specs: readonly ServerSpec[], resolve = systemResolver) {
    this.specs = specs;
    this.#resolve = resolve;
  }

  get hasNames(): boolean {
    return this.specs.some(({ host }) => isIP(host) === 0);
  }

  /** Looks up every name and returns the servers that there are, each once. */
  async lookUp(): Promise<ServerSpec[]> {
    const names = [
      ...new Set(this.specs.map(({ host }) => host).filter((host) => isIP(host) === 0)),
    ];
    await Promise.all(
      names.map(async (name) => {
        const answer = await this.#resolve(name).catch(reasonOf);
        if (typeof answer !== "string" && answer.length > 0) {
          this.#known.set(name, [...answer].sort());
          this.#stale.delete(name);
        } else if (this.#known.has(name) && !this.#stale.has(name)) {
          this.#stale.add(name);
          console.error(
            `Cannot look up ${name}: ${typeof answer === "string" ? answer : "it has no address"}; its last addresses stay`,
          );
        }
      }),
    );
    const servers = this.specs.flatMap((spec) =>
      (this.#known.get(spec.host) ?? [spec.host]).map((host) => ({ ...spec, host })),
    );
    return [...new Map(servers.map((server) => [formatAddress(server), server])).values()];
  }
}

// ─── Algorithms ──────────────────────────────────────────────────────────────
// Each picks one of the servers it is shown; it never sees a socket. To add one, add it to the
// table: help, validation, tests and the laboratory derive from it.

/** Picks one of `servers`, which is never empty and holds only servers that may be picked now. */
export type Picker = (servers: readonly Server[], clientAddress: string) => Server;

/**
 * What an algorithm may use of the world: random numbers in [0, 1), and a monotonic clock in
 * seconds.
 */
export type Sources = { readonly random: () => number; readonly now: () => number };

/** Each entry makes a fresh picker, so that two balancers never share anything. */
export const algorithms = {
  "round-robin": () => takeTurns,

  // Ties take turns by a virtual time that each pick moves on by 1 / weight (start-time fair
  // queueing, Goyal et al. 1996).
  "least-connections": () => {
    let time = 0;
    return (servers) => {
      let best = first(servers);
      for (const server of servers) {
        // per weight, without dividing
        const difference = server.active * best.weight - best.active * server.weight;
        if (
          difference < 0 ||
          (difference === 0 && Math.max(time, server.credit) < Math.max(time, best.credit))
        )
          best = server;
      }
      time = Math.max(time, best.credit);
      best.credit = time + 1 / best.weight;
      return best;
    };
  },

  random:
    ({ random }) =>
    (servers) => {
      let left = random() * servers.reduce((sum, server) => sum + server.weight, 0);
      return servers.find((server) => (left -= server.weight) < 0) ?? first(servers);
    },

  // Mitzenmacher 2001: the second choice takes nearly all of the gain. The two must differ, or one
  // pick in n is blind.
  "two-choices":
    ({ random }) =>
    (servers) => {
      const one = Math.floor(random() * servers.length);
      const other = Math.floor(random() * (servers.length - 1));
      const a = servers[one] ?? first(servers);
      const b = servers[other < one ? other : other + 1] ?? a;
      // on a tie the first, which is a random one
      return b.active * a.weight < a.active * b.weight ? b : a;
    },

  "least-latency":
    ({ random, now }) =>
    (servers) => {
      const time = now();
      const start = Math.floor(random() * servers.length); // ties fall to a random one
      let best = first(servers);
      let lowest = Infinity;
      let unknown = 0; // looked up only when a server is met that needs it
      for (let i = 0; i < servers.length; i += 1) {
        const server =
          servers[start + i < servers.length ? start + i : start + i - servers.length] ?? best;
        const share = (server.active + 1) / server.weight;
        // exp(-x) >= 1 - x: most are out without an exp
        if (server.cost * (1 - (time - server.costAt) / DECAY) * share >= lowest) continue;
        if (server.cost === 0 && unknown === 0) unknown = typicalCost(servers, time);
        const load = costOf(server, time, unknown) * share;
        if (load < lowest) {
          lowest = load;
          best = server;
        }
      }
      return best;
    },

  // Weighted rendezvous hashing (Thaler & Ravishankar 1998): each server scores each client; a
  // server that leaves takes only its own clients with it. The highest -weight / ln(u) wins, which
  // for equal weights is the highest u.
  "source-hash": () => (servers, clientAddress) => {
    const client = hash(clientAddress);
    let best = first(servers);
    let highest = -1;
    for (const server of servers) {
      const u = (mix(client ^ server.hash) + 0.5) / 2 ** 32;
      if (
        server.weight === best.weight
          ? u > highest
          : Math.log(u) / server.weight > Math.log(highest) / best.weight
      )
        [highest, best] = [u, server];
    }
    return best;
  },
} satisfies Record<string, (sources: Sources) => Picker>;

export type Algorithm = keyof typeof algorithms;
export const ALGORITHMS = Object.keys(algorithms).filter(
  (name): name is Algorithm => name in algorithms,
);

function first(servers: readonly Server[]): Server {
  const server = servers[0];
  if (server === undefined) throw new RangeError("an algorithm picks from at least one server");
  return server;
}

/**
 * Smooth weighted round robin, as nginx does it: weights 5, 1, 1 give a a b a c a a, not a a a a a
 * b c.
 */
function takeTurns(servers: readonly Server[]): Server {
  let total = 0;
  let best: Server | undefined;
  for (const server of servers) {
    server.credit += server.weight;
    total += server.weight;
    if (best === undefined || server.credit > best.credit) best = server;
  }
  best ??= first(servers);
  best.credit -= total;
  return best;
}

/**
 * A cost that a server has shown falls to 1/e of itself in this many seconds without a new sample.
 */
const DECAY = 10;
/** What a server is taken to need, in seconds, while no server has a history. */
const DEFAULT_COST = 0.03;

/**
 * Takes one turn time into the server's peak EWMA (Finagle's): a slower one counts at once, a
 * faster one by and by.
 */
export function observe(server: Server, seconds: number, now: number): void {
  const kept = Math.exp((server.costAt - now) / DECAY);
  const decayed = server.cost * kept;
  server.cost = seconds > decayed ? seconds : decayed + seconds * (1 - kept);
  server.costAt = now;
}

/**
 * The cost of a server now, in seconds; `unknown` without history. It decays while it is only read,
 * so that a once-slow server is tried again; and a turn that has already lasted longer counts as it
 * stands: its server is slow now, before its answer proves it.
 */
export function costOf(server: Server, now: number, unknown: number): number {
  const shown = server.cost > 0 ? server.cost * Math.exp((server.costAt - now) / DECAY) : unknown;
  return Math.max(shown, now - server.oldestAsked);
}

/** What to expect of a server without history: the mean of those that have one. */
function typicalCost(servers: readonly Server[], now: number): number {
  const known = servers.filter((server) => server.cost > 0);
  return (
    known.reduce((sum, server) => sum + costOf(server, now, 0), 0) / known.length || DEFAULT_COST
  );
}

/** FNV-1a, 32 bits. */
function hash(text: string): number {
  let value = 0x811c9dc5;
  for (let i = 0; i < text.length; i += 1)
    value = Math.imul(value ^ text.charCodeAt(i), 0x01000193);
  return value >>> 0;
}

/** Spreads every bit of a hash over all 32 (MurmurHash3's finalizer). */
function mix(value: number): number {
  value = Math.imul(value ^ (value >>> 16), 0x85ebca6b);
  value = Math.imul(value ^ (value >>> 13), 0xc2b2ae35);
  return (value ^ (value >>> 16)) >>> 0;
}

// ─── Relay ───────────────────────────────────────────────────────────────────
// A connection is two sockets, bytes both ways, and one place (`end`) that decides how it ends. The
// handlers are shared by all connections and find theirs through the socket: closures for each
// would cost more than the forwarding.

/** How an accepted connection may end. */
export const REASONS = [
  "ok",
  "client_reset",
  "server_reset",
  "idle_timeout",
  "no_server",
  "queue_timeout",
  "limit",
  "drain_forced",
] as const;
export type Reason = (typeof REASONS)[number];

/**
 * Bytes that a socket may hold back for a slow reader before its source is paused; also the size of
 * a small read.
 */
const BUFFER_SIZE = 64 * 1024;
/**
 * A read of this many bytes or more is a bulk transfer, and worth a buffer of its own, of this
 * size: larger ones cost less a byte (see the journal on cost), but each reader that has stalled
 * holds one.
 */
const BULK = 16 * 1024;
const BULK_BUFFER_SIZE = 128 * 1024;
const NOTHING = Buffer.alloc(0);

/**
 * Before libuv 1.52 (Node 20 and 22), data and a reset that arrive together are reported as data
 * and a clean end. A write of nothing asks the kernel for the error; on a socket that has been
 * ended, only a later read does.
 */
const [uvMajor = 0, uvMinor = 0] = (process.versions["uv"] ?? "").split(".").map(Number);
const HIDES_RESETS = uvMajor === 1 && uvMinor < 52;
/**
 * Reading of a client stops behind a chunk that `reread` puts back, which takes this; what may be
 * written to it is counted, not asked of the stream.
 */
const CLIENT_HIGH_WATER_MARK = HIDES_RESETS ? 1 : BUFFER_SIZE;

declare module "node:net" {
  interface Socket {
    /** The connection that it is a side of. */
    connection?: Connection | undefined;
  }
}

class Connection {
  readonly balancer: LoadBalancer;
  readonly client: Socket;
  readonly clientAddress: string;
  readonly clientName: string;
  readonly acceptedAt: number;
  /** The socket to the server, from the dial on. */
  upstream: Socket | undefined = undefined;
  /** The server that counts this connection as one of its own. */
  server: Server | undefined = undefined;
  serverName: string | null = null;
  /** Servers that could not be connected to. */
  tried: Server[] = [];
  /** Sent by the client before there was a server to send it to. */
  early: Buffer[] = [];
  earlyBytes = 0;
  relaying = false;
  rereading = false;
  clientEnded = false;
  serverEnded = false;
  clientClosed = false;
  reason: Reason | undefined = undefined;
  bytesToServer = 0;
  bytesToClient = 0;
  /** Bytes went that way since the last sweep. */
  movedToServer = false;
  movedToClient = false;
  dialledAt = 0;
  connectedAt = 0;
  quietSince: number;
  /** When the client began the turn that the server has not answered yet; 0 between turns. */
  askedAt = 0;

  constructor(balancer: LoadBalancer, client: Socket) {
    this.balancer = balancer;
    this.client = client;
    this.acceptedAt = this.quietSince = clock();
    client.connection = this;
    client.on("error", onError).on("data", onClientData).on("end", onEnd).on("close", onClose);
    const { remoteAddress, remotePort } = client; // undefined once the client has gone, so read now
    this.clientAddress = remoteAddress?.replace(/^::ffff:(?=\d+\.)/, "") ?? "unknown";
    this.clientName = formatAddress({ host: this.clientAddress, port: remotePort ?? 0 });
  }

  /**
   * Starts an attempt at `server`. It ends in `balancer.connected` or `balancer.connectFailed`, or
   * with the connection.
   */
  dial(server: Server): void {
    this.dialledAt = clock();
    const { onread } = this.balancer.readBuffers;
    const options = {
      ...server.address,
      onread,
      allowHalfOpen: true,
      noDelay: true,
      autoSelectFamily: false,
      highWaterMark: BUFFER_SIZE,
    };
    const upstream = connect(options);
    upstream.connection = this;
    this.upstream = upstream
      .on("error", onError)
      .on("connect", onConnect)
      .on("end", onEnd)
      .on("close", onClose);
  }

  /** Gives up the current attempt, without a word to its socket's handlers. */
  abandonDial(): void {
    if (this.upstream === undefined) return;
    this.upstream.connection = undefined;
    this.upstream.destroy();
    this.upstream = undefined;
  }

  /** The server is there: everything that waited for it goes out. */
  startRelay(upstream: Socket): void {
    this.relaying = true;
    this.connectedAt = this.quietSince = clock();
    const { early } = this;
    this.early = [];
    if (this.balancer.options.sendProxy) upstream.write(proxyHeader(this.client));
    for (const chunk of early) this.toServer(upstream, chunk);
    if (!upstream.writableNeedDrain) this.client.resume();
    if (this.clientEnded) this.balancer.halfCloseSoon(this);
  }

  fromClient(chunk: Buffer): void {
    if (this.relaying && this.upstream !== undefined) return this.toServer(this.upstream, chunk);
    this.early.push(chunk);
    this.earlyBytes += chunk.length;
    if (this.earlyBytes >= BUFFER_SIZE) this.client.pause();
  }

  /** Puts `chunk` back for the next turn, once: by then a reset behind it shows as one. */
  reread(chunk: Buffer): boolean {
    this.rereading = !this.rereading;
    if (!this.rereading) return false;
    this.client.pause().unshift(chunk);
    this.balancer.resumeSoon(this.client);
    return true;
  }

  toServer(upstream: Socket, chunk: Buffer): void {
    this.movedToServer = true;
    this.bytesToServer += chunk.length;
    if (this.server !== undefined) this.server.bytesToServer += chunk.length;
    if (this.askedAt === 0) this.balancer.asked(this);
    if (upstream.write(chunk)) return;
    this.client.pause();
    upstream.once("drain", onDrain);
  }

  /** Returns false when no more should be read for now. */
  toClient(upstream: Socket, size: number, buffer: Uint8Array): boolean {
    const { server, client } = this;
    if (server !== undefined) {
      server.bytesToClient += size;
      if (this.bytesToClient === 0 || !server.spoke) this.balancer.spoke(server);
      if (this.askedAt !== 0) this.balancer.answered(this, server);
    }
    this.movedToClient = true;
    this.bytesToClient += size;
    if (!this.balancer.readBuffers.writeTo(client, size, buffer)) {
      client.once("drain", onDrain);
      return false;
    }
    if (!HIDES_RESETS || !upstream.writableEnded) return true;
    this.balancer.resumeSoon(upstream); // by then a reset behind these bytes shows as one
    return false;
  }

  /** One side has said its last byte. */
  sideEnded(side: Socket): void {
    if (side === this.client) this.clientEnded = true;
    else this.serverEnded = true;
    if (this.closedEarly(side))
      this.balancer.failed(this.server, "accepted, and closed without a byte", true);
    if (this.relaying) this.balancer.halfCloseSoon(this);
    else if (this.bytesToServer + this.earlyBytes === 0) this.balancer.leaveQueue(this);
  }

  /** A server that closes within a second, unasked and without a byte, has not really accepted. */
  closedEarly(side: Socket): boolean {
    return (
      side === this.upstream &&
      this.relaying &&
      this.bytesToClient === 0 &&
      !this.clientEnded &&
      clock() - this.connectedAt < 1
    );
  }

  /** The trial is over also when nobody speaks: its server has not closed within that second. */
  hasPassedTrial(now: number): boolean {
    return (
      this.relaying &&
      this.reason === undefined &&
      this.dialledAt >= (this.server?.since ?? now) &&
      now - this.connectedAt >= 1
    );
  }

  /**
   * Passes on the ends that have come in. With both there and nothing left to write, one close each
   * does for two shutdowns.
   */
  halfClose(): void {
    const { client, upstream } = this;
    if (this.reason !== undefined || upstream === undefined) return;
    if (
      this.clientEnded &&
      this.serverEnded &&
      client.writableLength === 0 &&
      upstream.writableLength === 0
    ) {
      client.destroy();
      upstream.destroy();
      return;
    }
    if (this.clientEnded && !upstream.writableEnded) upstream.end();
    if (this.serverEnded && !client.writableEnded) client.end();
  }

  /**
   * Ends the connection for `reason`, in the way that this reason looks to each side. The first
   * reason stands.
   */
  end(reason: Reason): void {
    if (this.reason !== undefined) return;
    this.reason = reason;
    // else an attempt that succeeds at once still delivers it
    if (reason !== "client_reset" || this.upstream === undefined) this.early = [];
    this.balancer.forget(this);
    for (const socket of [this.client, this.upstream]) {
      if (socket === undefined || socket.destroyed) continue;
      if (reason === "client_reset" || reason === "server_reset") this.passOnReset(socket);
      else if (reason === "idle_timeout" && socket.writableLength === 0) socket.destroy();
      else reset(socket);
    }
  }

  /**
   * What was received before a reset goes first; a reset discards even what the kernel still holds,
   * hence the grace.
   */
  passOnReset(socket: Socket): void {
    const moved =
      (socket === this.client ? this.movedToClient : this.movedToServer) ||
      (clock() - this.quietSince) * 1000 < Resets.GRACE;
    if (moved || socket.writableLength > 0 || isShuttingDown(socket))
      this.balancer.resetSoon(socket);
    else reset(socket);
  }

  /**
   * A side that is not read from shows no reset by itself; a write of nothing does. To be called
   * now and then.
   */
  askStoppedSide(): void {
    const { client, upstream } = this;
    const stopped = !this.relaying
      ? this.earlyBytes >= BUFFER_SIZE && client
      : upstream?.writableNeedDrain
        ? client
        : client.writableNeedDrain && upstream;
    if (stopped && stopped.writable && stopped.writableLength === 0) stopped.write(NOTHING);
  }

  sideClosed(side: Socket): void {
    const ended = side === this.client ? this.clientEnded : this.serverEnded;
    if (side === this.client) this.clientClosed = true;
    else this.upstream = undefined;
    if (!ended) this.end(side === this.client ? "client_reset" : "server_reset");
    if (side !== this.client) this.balancer.leaveServer(this);
    if (this.clientClosed && this.upstream === undefined) this.balancer.ended(this);
  }
}

/** The PROXY protocol's first line (version 1), which tells a server whom the bytes come from. */
function proxyHeader({ remoteAddress, remotePort, localAddress, localPort }: Socket): string {
  const [from = "", to = ""] = [remoteAddress, localAddress].map((address) =>
    address?.replace(/^::ffff:(?=\d+\.)|%.*$/g, ""),
  ); // no zone (fe80::1%eth0) either
  return isIP(from) === 0 || isIP(from) !== isIP(to)
    ? PROXY_UNKNOWN
    : `PROXY TCP${isIP(from)} ${from} ${to} ${remotePort} ${localPort}\r\n`;
}
const PROXY_UNKNOWN = "PROXY UNKNOWN\r\n";

function onClientData(this: Socket, chunk: Buffer): void {
  const connection = this.connection;
  if (connection === undefined || connection.reason !== undefined) return;
  if (HIDES_RESETS && this.writableEnded && connection.reread(chunk)) return;
  connection.fromClient(chunk);
}

function onServerData(this: Socket, size: number, buffer: Uint8Array): boolean {
  return (
    this.connection !== undefined &&
    this.connection.reason === undefined &&
    this.connection.toClient(this, size, buffer)
  );
}

function onConnect(this: Socket): void {
  this.connection?.balancer.connected(this.connection, this);
}

function onEnd(this: Socket): void {
  if (HIDES_RESETS && !this.writableEnded && !this.destroyed) this.write(NOTHING);
  this.connection?.sideEnded(this);
}

/** What was held back for `this` has been written: its source may go on. */
function onDrain(this: Socket): void {
  const connection = this.connection;
  const source = this === connection?.client ? connection.upstream : connection?.client;
  if (connection?.reason === undefined) source?.resume();
}

function onError(this: Socket, error: Error): void {
  const connection = this.connection;
  if (connection === undefined) return; // an attempt that was given up
  if (this === connection.client) return connection.end("client_reset");
  if (!connection.relaying) return connection.balancer.connectFailed(connection, error);
  if (connection.closedEarly(this))
    connection.balancer.failed(connection.server, "accepted, and reset without a byte", true);
  connection.end("server_reset");
}

function onClose(this: Socket): void {
  this.connection?.sideClosed(this);
}

/**
 * Its last bytes are with the kernel and the FIN is on its way: libuv refuses to reset such a
 * socket.
 */
const isShuttingDown = (socket: Socket): boolean =>
  socket.writableEnded && socket.writableLength === 0 && !socket.writableFinished;

function reset(socket: Socket): void {
  if (socket.connecting || isShuttingDown(socket)) socket.destroy();
  else socket.resetAndDestroy();
}

/**
 * The buffers into which servers' bytes are read. Small reads of all connections share one and are
 * copied out at once, so that an idle connection holds none. A bulk transfer reads into a buffer of
 * its own, which is written as it stands; it is read into again only if that write left nothing
 * queued, because what is queued still points into it.
 */
class ReadBuffers {
  readonly #shared: Uint8Array = Buffer.allocUnsafeSlow(BUFFER_SIZE);
  #next = this.#shared;
  /** For `connect`: Node asks for the next buffer at the start, and after each callback. */
  readonly onread = { buffer: (): Uint8Array => this.#take(), callback: onServerData };

  #take(): Uint8Array {
    const next = this.#next;
    this.#next = this.#shared;
    return next;
  }

  /**
   * Writes the first `size` bytes of `buffer` to `socket`; false when it should not be given more.
   */
  writeTo(socket: Socket, size: number, buffer: Uint8Array): boolean {
    const bytes = buffer.subarray(0, size);
    const bulk = size >= BULK;
    if (buffer === this.#shared) {
      if (bulk) this.#next = Buffer.allocUnsafeSlow(BULK_BUFFER_SIZE);
      socket.write(Buffer.from(bytes));
    } else {
      socket.write(bytes);
      if (bulk)
        this.#next =
          socket.writableLength === 0 ? buffer : Buffer.allocUnsafeSlow(BULK_BUFFER_SIZE);
    }
    return socket.writableLength < BUFFER_SIZE;
  }
}

/**
 * Things that all may wait equally long: the first in is the first to expire, so one timer serves
 * them all.
 */
class Deadlines<T> {
  readonly #deadlines = new Map<T, number>();
  readonly #wait: number;
  readonly #expire: (item: T) => void;
  #timer: NodeJS.Timeout | undefined;

  constructor(seconds: number, expire: (item: T) => void) {
    this.#wait = seconds * 1000;
    this.#expire = expire;
  }

  get size(): number {
    return this.#deadlines.size;
  }

  [Symbol.iterator](): IterableIterator<T> {
    return this.#deadlines.keys();
  }

  add(item: T): void {
    this.#deadlines.set(item, performance.now() + this.#wait);
    this.#timer ??= setTimeout(() => this.#look(), this.#wait).unref();
  }

  delete(item: T): boolean {
    return this.#deadlines.delete(item);
  }

  #look(): void {
    const now = performance.now();
    for (const [item, deadline] of this.#deadlines) {
      if (deadline > now) break;
      this.#deadlines.delete(item);
      // which may add to us: so the next time is set afterwards, for the first that waits then
      this.#expire(item);
    }
    const [next] = this.#deadlines.values();
    this.#timer =
      next === undefined ? undefined : setTimeout(() => this.#look(), next - now).unref();
  }
}

/**
 * Sockets that are to be reset when what was written to them has had its chance to arrive: a few of
 * them, looked at often.
 */
class Resets {
  /**
   * How long unwritten bytes are waited for, and how long the kernel has for those that it was
   * given; in ms.
   */
  static readonly PATIENCE = 2000;
  static readonly GRACE = 50;
  readonly #waiting = new Map<Socket, { readonly deadline: number; at: number }>();
  #timer: NodeJS.Timeout | undefined;

  add(socket: Socket): void {
    const now = performance.now();
    socket.pause();
    this.#waiting.set(socket, { deadline: now + Resets.PATIENCE, at: now + Resets.GRACE });
    this.#timer ??= setInterval(() => this.#look(performance.now()), Resets.GRACE / 2);
  }

  /** Waits no longer for any of them. */
  now(): void {
    this.#look(Infinity);
  }

  #look(now: number): void {
    for (const [socket, when] of this.#waiting) {
      if (socket.writableLength > 0) when.at = now + Resets.GRACE;
      if (now < Math.min(when.at, when.deadline) && !socket.destroyed) continue;
      this.#waiting.delete(socket);
      if (!socket.destroyed) reset(socket);
    }
    if (this.#waiting.size > 0) return;
    clearInterval(this.#timer);
    this.#timer = undefined;
  }
}

// ─── Health ──────────────────────────────────────────────────────────────────
// Active checks, spread over the interval, and the failures of real connections, in one count of
// failures in a row.

/**
 * Seconds that a failed server is left alone when no check can tell that it is back: at first, and
 * at most.
 */
const PENALTY = { first: 10, most: 60 } as const;
/**
 * Checks are spread over so many moments of the interval; with many servers a few at a time wake
 * the process less often.
 */
const CHECK_SLOTS = 20;
/** The share of its weight with which a slow start begins. */
const SLOWEST_START = 0.05;
const CHECKS = ["tcp", "ping", "none"] as const;
type Check = (typeof CHECKS)[number];
type HealthSettings = Pick<
  LoadBalancerOptions,
  "check" | "checkInterval" | "connectTimeout" | "fall" | "rise" | "sendProxy" | "slowStart"
>;

/**
 * Connects to `server`, for `ping` asks as well, and reports once: undefined for success, else why
 * not.
 */
function probe(
  server: Server,
  check: Check,
  seconds: number,
  hello: string,
  report: (why: string | undefined) => void,
): void {
  const socket = connect({ ...server.address, autoSelectFamily: false });
  let answer = "";
  const finish = (why: string | undefined, tellsNothing = false): void => {
    clearTimeout(timer);
    socket
      .removeAllListeners()
      .on("error", () => undefined)
      .destroy();
    if (!tellsNothing) report(why);
  };
  const timer = setTimeout(
    () => finish(check === "tcp" ? "no connection in time" : "no PONG! in time"),
    seconds * 1000,
  );
  socket.on("error", (error) => finish(reasonOf(error), OUR_SHORTAGE.includes(codeOf(error))));
  if (check === "tcp") return void socket.on("connect", () => finish(undefined));
  socket
    .on("connect", () => socket.write(`${hello}PING!`))
    .on("end", () => finish("closed before its PONG!"));
  socket.on("data", (bytes) => {
    answer += bytes.toString("latin1");
    if (answer.length >= 5) finish(answer === "PONG!" ? undefined : "another answer than PONG!");
  });
}

/** Decides from successes and failures which servers are up. `changed` hears of every change. */
class Health {
  readonly #settings: HealthSettings;
  readonly #changed: (server: Server, why: string) => void;

  constructor(settings: HealthSettings, changed: (server: Server, why: string) => void) {
    this.#settings = settings;
    this.#changed = changed;
  }

  /** Starts the checks of a server; `phase` from 0 to 1 is its place in the interval. */
  start(server: Server, phase: number): void {
    const { check, checkInterval } = this.#settings;
    if (check === "none") return;
    const slot = Math.floor(phase * CHECK_SLOTS) / CHECK_SLOTS;
    server.timer = setTimeout(
      () => {
        this.#check(server);
        server.timer = setInterval(() => this.#check(server), checkInterval * 1000);
      },
      slot * checkInterval * 1000,
    );
  }

  stop(server: Server): void {
    clearTimeout(server.timer);
    server.timer = undefined;
  }

  #check(server: Server): void {
    const { check, checkInterval, connectTimeout, sendProxy } = this.#settings;
    const busy = server.spoke; // a full server lets the check wait, but it answers its clients
    server.spoke = false;
    if (check === "ping" && busy) return this.succeeded(server, true);
    probe(
      server,
      check,
      check === "ping" ? checkInterval : Math.min(checkInterval, connectTimeout),
      sendProxy ? PROXY_UNKNOWN : "",
      (why) => {
        if (server.timer === undefined) return; // stopped meanwhile
        if (why === undefined) return this.succeeded(server, check === "ping");
        if (check === "ping" && server.spoke) return;
        server.checkFailures += 1;
        this.failed(server, why, false);
      },
    );
  }

  /**
   * Takes in a success. A bare connect (`spoke` false) does not clear a server that accepts and
   * closes at once.
   */
  succeeded(server: Server, spoke: boolean): void {
    if (server.up && server.suspect && !spoke) return;
    server.failures = 0;
    server.successes += 1;
    if (spoke) [server.suspect, server.penalty] = [false, PENALTY.first];
    const isBack =
      !server.up &&
      server.successes >= this.#settings.rise &&
      performance.now() >= server.heldUntil;
    if (isBack) this.#set(server, true, server.suspect, `${server.successes} successes in a row`);
    else if (server.up && server.onTrial) this.#set(server, true, false, "its trial went well");
  }

  /** Takes in a failure; `suspect` when the connect itself had succeeded. */
  failed(server: Server, why: string, suspect: boolean): void {
    const { fall, check } = this.#settings;
    const relapsed = server.onTrial;
    server.successes = 0;
    server.failures += 1;
    server.suspect ||= suspect;
    if (!server.up || (server.failures < fall && !relapsed)) return;
    this.#set(server, false, false, why);
    if (check !== "none" && !relapsed) return; // the checks will tell when it is back
    server.heldUntil = performance.now() + server.penalty * 1000;
    if (check === "none")
      setTimeout(() => {
        if (!server.up) this.#set(server, true, true, "to be tried by one connection");
      }, server.penalty * 1000).unref();
    server.penalty = Math.min(server.penalty * 2, PENALTY.most);
  }

  /**
   * Gives servers that came back their weight, in proportion to the time since; to be called now
   * and then.
   */
  warmUp(servers: readonly Server[]): void {
    for (const server of servers) {
      if (server.weight === server.fullWeight) continue;
      const share = (clock() - server.since) / this.#settings.slowStart;
      server.weight = server.fullWeight * Math.min(1, Math.max(SLOWEST_START, share));
    }
  }

  /** A server that has just come, or come back, gets its weight by and by. */
  easeIn(server: Server): void {
    server.since = clock();
    if (this.#settings.slowStart > 0) server.weight = server.fullWeight * SLOWEST_START;
  }

  #set(server: Server, up: boolean, onTrial: boolean, why: string): void {
    if (onTrial) server.elders = server.active;
    if (up && !server.up) this.easeIn(server);
    else if (up !== server.up) server.since = clock();
    Object.assign(server, { up, onTrial, successes: 0, why: up ? "" : why });
    if (up) server.failures = 0;
    this.#changed(server, why);
  }
}

// ─── Balancer ────────────────────────────────────────────────────────────────
// Gives each client a server, counts, and knows when to stop. Everything that changes while it runs
// is here, in a `Connection` or in a `Server`.

export interface Status {
  algorithm: Algorithm;
  listening: string;
  uptime: number;
  accepted: number;
  active: number;
  queued: number;
  retries: number;
  ended: Record<Reason, number>;
  /** Who stands at the head of the queue, and for how many seconds. */
  waiting: { client: string; seconds: number }[];
  /** `since`: seconds in this state; `why`: the last failure of one that is down. */
  servers: ({
    server: string;
    state: "up" | "down" | "draining";
    since: number;
    why: string;
  } & Pick<
    Server,
    | "weight"
    | "active"
    | "total"
    | "connectErrors"
    | "checkFailures"
    | "bytesToServer"
    | "bytesToClient"
    | "connectTime"
    | "turnTime"
  >)[];
}

/** Failures to connect that are this machine's shortage, not the server's fault. */
const OUR_SHORTAGE = ["EMFILE", "ENFILE", "EADDRNOTAVAIL", "ENOBUFS", "ENOMEM"];
const codeOf = (error: unknown): string =>
  error instanceof Error && "code" in error ? String(error.code) : "";

export class LoadBalancer {
  readonly options: LoadBalancerOptions;
  readonly health: Health;
  readonly readBuffers = new ReadBuffers();
  servers: Server[] = [];
  /** Removed, with connections still open. */
  #leaving: Server[] = [];
  /** It has stopped listening and waits for the open connections. */
  draining = false;
  /** Those that may be picked now: up, not draining, with a connection free. */
  #eligible: Server[] = [];
  readonly #pick: Picker;
  readonly #log: Log;
  readonly #listener: Listener;
  #listening = "";
  readonly #startedAt = clock();
  readonly #open = new Set<Connection>();
  readonly #queue: Deadlines<Connection>;
  readonly #dialling: Deadlines<Connection>;
  readonly #resets = new Resets();
  readonly #sweeper: NodeJS.Timeout;
  #ending: Connection[] = [];
  #resuming: Socket[] = [];
  #turnScheduled = false;
  #accepted = 0;
  #retries = 0;
  readonly #ended: Record<Reason, number> = Object.fromEntries(
    REASONS.map((reason) => [reason, 0]),
  ) as Record<Reason, number>;
  #stopped: (() => void) | undefined;
  readonly #undo: (() => void)[] = [];

  constructor(options: LoadBalancerOptions, log: Log) {
    this.options = options;
    this.#log = log;
    this.#pick = algorithms[options.algorithm]({ random: mulberry32(options.seed), now: clock });
    this.health = new Health(options, (server, why) => {
      if (!this.servers.includes(server)) return; // removed, and finishing its connections
      log.server(server, `is ${server.up ? (server.onTrial ? "on trial" : "up") : "down"}: ${why}`);
      this.#refresh();
    });
    this.#queue = new Deadlines(options.queueTimeout, (connection) =>
      connection.end("queue_timeout"),
    );
    this.#dialling = new Deadlines(options.connectTimeout, (connection) =>
      this.connectFailed(connection, new Error("no answer in time")),
    );
    this.#listener = createServer(
      { allowHalfOpen: true, noDelay: true, highWaterMark: CLIENT_HIGH_WATER_MARK },
      (client) => this.#accept(client),
    );
    const period = Math.min(
      1,
      ...[options.idleTimeout, options.slowStart]
        .filter((time) => time > 0)
        .map((time) => time / 4),
    );
    this.#sweeper = setInterval(() => this.#sweep(), period * 1000);
    this.setServers(options.servers);
  }

  /** Starts listening; returns the real address. Throws RunError. */
  async listen(): Promise<Address> {
    const { host, port, reusePort } = this.options;
    const address = await listen(this.#listener, {
      host,
      port,
      backlog: 4096,
      ...(reusePort ? { reusePort } : {}),
    });
    this.#listening = formatAddress(address);
    return address;
  }

  /**
   * Balances over `specs` from now on. Servers that stay keep their counts; those that go finish
   * their connections.
   */
  setServers(specs: readonly ServerSpec[]): void {
    const before = new Set(this.servers);
    const known = new Map([...this.#leaving, ...before].map((server) => [server.name, server]));
    this.servers = specs.map((spec) => {
      const server = known.get(formatAddress(spec)) ?? newServer(spec);
      if (server.fullWeight !== spec.weight) server.weight = server.fullWeight = spec.weight;
      return server;
    });
    this.#leaving = [...known.values()].filter(
      (server) => server.active > 0 && !this.servers.includes(server),
    );
    for (const server of before) {
      if (this.servers.includes(server)) continue;
      this.health.stop(server);
      this.#log.server(server, `was removed: ${server.active} of its connections go on`);
    }
    this.servers.forEach((server, place) => {
      if (before.has(server)) return;
      server.draining = false; // it may be back from an earlier removal
      this.health.start(server, place / this.servers.length);
      if (before.size === 0) return; // it is the start
      this.health.easeIn(server);
      this.#log.server(server, "was added");
    });
    this.#refresh();
  }

  /**
   * Gives a server no new connections, or gives it some again. False when there is no such server.
   */
  setDraining(name: string, draining: boolean): boolean {
    const server = this.servers.find((candidate) => candidate.name === name);
    if (server === undefined) return false;
    if (server.draining !== draining && server.up) this.health.easeIn(server);
    server.draining = draining;
    this.#refresh();
    return true;
  }

  #accept(client: Socket): void {
    this.#accepted += 1;
    const connection = new Connection(this, client);
    this.#open.add(connection);
    if (this.#open.size > this.options.maxConnections) connection.end("limit");
    else this.#place(connection);
  }

  // --- choosing ---

  #limitOf(server: Server): number {
    return Math.min(
      server.onTrial ? server.elders + 1 : Infinity,
      this.options.serverConnections || Infinity,
    );
  }

  /** To be called when a server may have become eligible, or ceased to be. */
  #refresh(): void {
    this.#eligible = this.servers.filter(
      (server) => server.up && !server.draining && server.active < this.#limitOf(server),
    );
    for (const connection of this.#queue) {
      const choice = this.#choose(connection);
      if (choice === "wait" && this.#eligible.length === 0) return;
      if (choice === "wait") continue;
      this.#queue.delete(connection);
      this.#assign(connection, choice);
    }
  }

  /**
   * A server that has not been tried; `wait` while all of those are full; undefined when there is
   * none left.
   */
  #choose(connection: Connection): Server | "wait" | undefined {
    const isUsual = connection.tried.length === 0 && this.#eligible.length > 0;
    return isUsual
      ? this.#pick(this.#eligible, connection.clientAddress)
      : this.#chooseAmongRest(connection);
  }

  #chooseAmongRest({ tried, clientAddress }: Connection): Server | "wait" | undefined {
    const isUntried = (server: Server): boolean => !tried.includes(server);
    const free = this.#eligible.filter(isUntried);
    if (free.length > 0) return this.#pick(free, clientAddress);
    const rest = this.servers.filter((server) => !server.draining && isUntried(server));
    if (rest.some((server) => server.up)) return "wait";
    const down = rest.filter((server) => server.active < this.#limitOf(server)); // a last resort
    return down.length > 0 ? this.#pick(down, clientAddress) : rest.length > 0 ? "wait" : undefined;
  }

  #place(connection: Connection): void {
    const choice = this.#choose(connection);
    if (choice === "wait") this.#queue.add(connection);
    else this.#assign(connection, choice);
  }

  #assign(connection: Connection, server: Server | undefined): void {
    if (server === undefined) return connection.end("no_server");
    if (connection.tried.length > 0) this.#retries += 1;
    connection.server = server;
    connection.serverName = server.name;
    server.active += 1;
    server.total += 1;
    if (server.active === this.#limitOf(server)) this.#refresh();
    this.#dialling.add(connection);
    connection.dial(server);
  }

  /** Un-counts a connection on its server: once, however often it is called. */
  leaveServer(connection: Connection): void {
    const { server } = connection;
    if (server === undefined) return;
    if (connection.askedAt !== 0) this.#forgetTurn(connection, server);
    connection.server = undefined;
    server.active -= 1;
    if (server.onTrial && server.elders > 0 && connection.dialledAt < server.since)
      server.elders -= 1;
    else if (server.onTrial && connection.relaying && connection.reason === undefined)
      this.health.succeeded(server, true);
    if (server.active === this.#limitOf(server) - 1) this.#refresh();
  }

  leaveQueue(connection: Connection): void {
    if (this.#queue.delete(connection)) connection.end("client_reset");
  }

  // --- what connections report ---

  connected(connection: Connection, upstream: Socket): void {
    const { server } = connection;
    this.#dialling.delete(connection);
    if (server === undefined) return;
    const seconds = clock() - connection.dialledAt;
    server.connectTime = smooth(server.connectTime, seconds);
    count(server.connectTimes, seconds);
    if (server.failures > 0 || !server.up || server.onTrial) this.health.succeeded(server, false);
    this.#log.connected(connection);
    connection.startRelay(upstream);
  }

  /** An attempt failed: the connection goes to a server that it has not tried. */
  connectFailed(connection: Connection, error: unknown): void {
    const { server } = connection;
    this.#dialling.delete(connection);
    connection.abandonDial();
    if (server === undefined) return;
    const code = codeOf(error);
    connection.tried.push(server);
    if (!OUR_SHORTAGE.includes(code)) {
      server.connectErrors += 1;
      // a fast failure must not look like a fast server
      observe(server, this.options.connectTimeout, clock());
      this.health.failed(server, reasonOf(error), false);
    }
    this.leaveServer(connection);
    if (code === "EMFILE" || code === "ENFILE") connection.end("limit");
    else if (connection.reason === undefined) this.#place(connection);
  }

  failed(server: Server | undefined, why: string, suspect: boolean): void {
    if (server !== undefined) this.health.failed(server, why, suspect);
  }

  /** The client has begun a turn. */
  asked(connection: Connection): void {
    connection.askedAt = clock();
    const { server } = connection;
    if (server === undefined || this.options.algorithm !== "least-latency") return;
    server.asked.set(connection, connection.askedAt);
    server.oldestAsked = Math.min(server.oldestAsked, connection.askedAt);
  }

  /** The server's first byte of an answer. */
  answered(connection: Connection, server: Server): void {
    const now = clock();
    const seconds = now - connection.askedAt;
    server.turnTime = smooth(server.turnTime, seconds);
    count(server.turnTimes, seconds);
    observe(server, seconds, now);
    this.#forgetTurn(connection, server);
  }

  #forgetTurn(connection: Connection, server: Server): void {
    if (server.asked.delete(connection) && connection.askedAt === server.oldestAsked) {
      server.oldestAsked = server.asked.values().next().value ?? Infinity;
    }
    connection.askedAt = 0;
  }

  /** A server gave a byte: it is well. */
  spoke(server: Server): void {
    server.spoke = true;
    if (server.failures > 0 || server.suspect || server.onTrial || !server.up)
      this.health.succeeded(server, true);
  }

  /** The connection is about to end: it no longer waits for anything. */
  forget(connection: Connection): void {
    this.#queue.delete(connection);
    this.#dialling.delete(connection);
  }

  resetSoon(socket: Socket): void {
    this.#resets.add(socket);
  }

  /** Both its sockets are closed. */
  ended(connection: Connection): void {
    if (!this.#open.delete(connection)) return;
    connection.reason ??= "ok";
    this.#ended[connection.reason] += 1;
    this.#log.ended(connection);
    if (this.#open.size === 0) this.#stopped?.();
  }

  // --- at the end of the loop's turn ---

  halfCloseSoon(connection: Connection): void {
    this.#ending.push(connection);
    this.#scheduleTurn();
  }

  resumeSoon(socket: Socket): void {
    this.#resuming.push(socket);
    this.#scheduleTurn();
  }

  #scheduleTurn(): void {
    if (this.#turnScheduled) return;
    this.#turnScheduled = true;
    setImmediate(() => {
      const [ending, resuming] = [this.#ending, this.#resuming];
      [this.#ending, this.#resuming, this.#turnScheduled] = [[], [], false];
      for (const connection of ending) connection.halfClose();
      for (const socket of resuming) if (!socket.destroyed) socket.resume();
    });
  }

  // --- time ---

  #sweep(): void {
    const { idleTimeout, slowStart } = this.options;
    if (slowStart > 0) this.health.warmUp(this.servers);
    const now = clock();
    for (const connection of this.#open) {
      if (connection.reason === undefined) connection.askStoppedSide();
      if (connection.server?.onTrial && connection.hasPassedTrial(now))
        this.health.succeeded(connection.server, true);
      if (connection.movedToServer || connection.movedToClient) {
        connection.quietSince = now;
        connection.movedToServer = connection.movedToClient = false;
      } else if (
        connection.relaying &&
        idleTimeout > 0 &&
        now - connection.quietSince >= idleTimeout
      )
        connection.end("idle_timeout");
    }
  }

  /**
   * Stops listening, lets open connections finish for `seconds`, resets the rest, and returns how
   * many that were.
   */
  async stop(seconds: number): Promise<number> {
    this.draining = true;
    const finished = new Promise<void>((resolve) => {
      this.#stopped = resolve;
    });
    if (this.#listener.listening) this.#listener.close();
    const deadline = setTimeout(() => this.cut(), seconds * 1000);
    if (this.#open.size > 0) await finished;
    clearTimeout(deadline);
    clearInterval(this.#sweeper);
    for (const server of this.servers) this.health.stop(server);
    for (const undo of this.#undo) undo();
    this.#log.flush();
    return this.#ended.drain_forced;
  }

  /** Has `undo` called when the last connection has ended after `stop`. */
  whenStopped(undo: () => void): void {
    this.#undo.push(undo);
  }

  /** Resets every open connection. */
  cut(): void {
    for (const connection of this.#open) connection.end("drain_forced");
    this.#resets.now();
  }

  #headOfQueue(): Status["waiting"] {
    const waiting: Status["waiting"] = [];
    for (const { clientName, acceptedAt } of this.#queue) {
      if (waiting.push({ client: clientName, seconds: clock() - acceptedAt }) === 10) break;
    }
    return waiting;
  }

  /**
   * Everything that the status page and the metrics show. At every moment accepted = active +
   * queued + the sum of ended.
   */
  status(): Status {
    return {
      algorithm: this.options.algorithm,
      listening: this.#listening,
      uptime: clock() - this.#startedAt,
      accepted: this.#accepted,
      active: this.#open.size - this.#queue.size,
      queued: this.#queue.size,
      retries: this.#retries,
      ended: { ...this.#ended },
      waiting: this.#headOfQueue(),
      servers: this.servers.map((server) => ({
        server: server.name,
        state: server.draining ? "draining" : server.up ? "up" : "down",
        since: clock() - server.since,
        why: server.why,
        weight: server.fullWeight,
        active: server.active,
        total: server.total,
        connectErrors: server.connectErrors,
        checkFailures: server.checkFailures,
        bytesToServer: server.bytesToServer,
        bytesToClient: server.bytesToClient,
        connectTime: server.connectTime,
        turnTime: server.turnTime,
      })),
    };
  }
}

/**
 * An exponentially weighted mean that gives a new sample an eighth of the weight (as TCP does with
 * round trips, RFC 6298).
 */
const smooth = (mean: number | null, sample: number): number =>
  mean === null ? sample : mean + (sample - mean) / 8;

// ─── Log ─────────────────────────────────────────────────────────────────────
// Lines wait a moment and are written together. A reader of the log that is too slow costs lines,
// not memory.

const LOGS = ["text", "json", "none"] as const;

export class Log {
  static readonly #MOST = 1 << 20;
  readonly #format: (typeof LOGS)[number];
  #lines: string[] = [];
  #dropped = 0;
  #timer: NodeJS.Timeout | undefined;

  constructor(format: (typeof LOGS)[number]) {
    this.#format = format;
  }

  connected({ clientName, serverName }: Connection): void {
    if (this.#format === "text")
      this.#line(`Connected client ${clientName} to server ${serverName}`);
  }

  ended({
    clientName,
    serverName,
    acceptedAt,
    bytesToServer,
    bytesToClient,
    reason,
  }: Connection): void {
    if (this.#format === "none" || (this.#format === "text" && reason === "ok")) return;
    const seconds = Number((clock() - acceptedAt).toFixed(6));
    if (this.#format === "json")
      this.#line(
        JSON.stringify({
          client: clientName,
          server: serverName,
          seconds,
          bytesToServer,
          bytesToClient,
          reason,
        }),
      );
    else
      this.#line(
        `Connection of client ${clientName} to ${serverName === null ? "no server" : `server ${serverName}`} ended after ${seconds.toFixed(3)} s: ${reason}`,
      );
  }

  /** What became of a server. In json the lines are about connections, so this goes to stderr. */
  server({ name }: Server, what: string): void {
    const line = escapeControls(`Server ${name} ${what}`);
    if (this.#format === "text") this.#line(line);
    else if (this.#format === "json") console.error(line);
  }

  #line(line: string): void {
    if (process.stdout.writableLength > Log.#MOST) this.#dropped += 1;
    else this.#lines.push(line);
    this.#timer ??= setTimeout(() => this.flush(), 50);
  }

  flush(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    if (this.#dropped > 0 && this.#lines.length > 0)
      console.error(`${this.#dropped} log lines were dropped: their reader was too slow`);
    if (this.#lines.length > 0) process.stdout.write(`${this.#lines.join("\n")}\n`);
    [this.#lines, this.#dropped] = [[], 0];
  }
}

/**
 * Shows control characters as \x1b, so that nothing in a line can end it or move the terminal's
 * cursor.
 */
const escapeControls = (text: string): string =>
  text.replace(
    /[\x00-\x1f\x7f-\x9f]/g,
    (character) => `\\x${character.charCodeAt(0).toString(16).padStart(2, "0")}`,
  );

// ─── Admin ───────────────────────────────────────────────────────────────────
// A page, JSON and metrics made from `status()`, and the two switches of a server. HTTP is Node's;
// nothing here can hold up the relay, and a page of another site can neither read nor switch
// anything.

const JSON_TYPE = "application/json; charset=utf-8";

/**
 * A request reached through another name than ours may come from a page whose name was pointed at
 * us (DNS rebinding).
 */
function isForeign({ headers: { host = "", origin }, method }: IncomingMessage): boolean {
  const name = /^(.*?)(:\d+)?$/.exec(host.toLowerCase())?.[1] ?? "";
  if (name !== "localhost" && isIP(name.replace(/^\[|\]$/g, "")) === 0) return true;
  return method === "POST" && origin !== undefined && origin !== `http://${host}`;
}

/** Status code, content type and body for a request. */
function answerAdmin(
  balancer: LoadBalancer,
  request: IncomingMessage,
): [code: number, type: string, body: string] {
  if (isForeign(request))
    return [
      403,
      "text/plain",
      "Forbidden: expected an address or localhost as the host, and no foreign origin\n",
    ];
  const path = request.url?.replace(/\?.*/, "") ?? "";
  const [, encoded, action] = /^\/servers\/([^/]+)\/(drain|ready)$/.exec(path) ?? [];
  if (encoded !== undefined) {
    if (request.method !== "POST") return [405, "text/plain", "Expected POST\n"];
    const server = decoded(encoded);
    if (!balancer.setDraining(server, action === "drain"))
      return [404, "text/plain", "No such server\n"];
    return [
      200,
      JSON_TYPE,
      JSON.stringify(balancer.status().servers.find((row) => row.server === server)),
    ];
  }
  const page = PAGES.get(path);
  if (page === undefined)
    return [
      404,
      "text/plain",
      "Expected /, /status.json, /metrics, /healthz or /servers/HOST:PORT/drain or /ready\n",
    ];
  return request.method === "GET" || request.method === "HEAD"
    ? page(balancer)
    : [405, "text/plain", "Expected GET\n"];
}

function decoded(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch (error) {
    if (error instanceof URIError) return text;
    throw error;
  }
}

/**
 * Serves the admin pages. Few clients at once, little time to ask and to read: they share
 * descriptors and a core with the relay.
 */
async function startAdmin(balancer: LoadBalancer, wanted: Address): Promise<Address> {
  const server = createHttpServer(
    {
      headersTimeout: 2000,
      requestTimeout: 3000,
      keepAliveTimeout: 3000,
      connectionsCheckingInterval: 500,
    },
    (request, response: ServerResponse) => {
      const [code, type, body] = answerAdmin(balancer, request);
      request.resume();
      response.writeHead(code, {
        "content-type": type,
        "cache-control": "no-store",
        "x-content-type-options": "nosniff",
        "content-security-policy": "default-src 'self' 'unsafe-inline'; frame-ancestors 'none'",
      });
      response.end(request.method === "HEAD" ? undefined : body);
    },
  );
  server.maxConnections = ADMIN_CONNECTIONS;
  server.maxRequestsPerSocket = 100; // they may come all at once
  server.timeout = 3000; // without a byte either way: nobody reads the answer
  balancer.whenStopped(() => {
    server.close();
    server.closeAllConnections();
  });
  return listen(server, wanted);
}
const ADMIN_CONNECTIONS = 32;

const jsonOf = (balancer: LoadBalancer): [number, string, string] => [
  200,
  JSON_TYPE,
  JSON.stringify(balancer.status()),
];

function healthOf(balancer: LoadBalancer): [number, string, string] {
  if (balancer.draining) return [503, "text/plain", "draining\n"];
  const isUp = balancer.status().servers.some(({ state }) => state === "up");
  return isUp ? [200, "text/plain", "ok\n"] : [503, "text/plain", "no server is up\n"];
}

/** The status in Prometheus' text format. */
function metricsOf(balancer: LoadBalancer): [number, string, string] {
  const { algorithm, uptime, accepted, active, queued, retries, ended } = balancer.status();
  const label = (name: string, value: string): string =>
    `${name}="${value.replace(/[\\"\n]/g, (character) => (character === "\n" ? "\\n" : `\\${character}`))}"`;
  const family = (
    name: string,
    type: "counter" | "gauge" | "histogram",
    help: string,
    samples: readonly (readonly [labels: string, value: number, suffix?: string])[],
  ): string =>
    [
      `# HELP ${name} ${help}`,
      `# TYPE ${name} ${type}`,
      ...samples.map(
        ([labels, value, suffix = ""]) => `${name}${suffix}${labels && `{${labels}}`} ${value}`,
      ),
    ].join("\n");
  const perServer = (value: (server: Server) => number): [string, number][] =>
    balancer.servers.map((server) => [label("server", server.name), value(server)]);
  const histogram = (of: (server: Server) => Histogram): [string, number, string][] =>
    balancer.servers.flatMap((server) => {
      const { counts, sum } = of(server);
      const name = label("server", server.name);
      let total = 0;
      const buckets = counts.map((count, i): [string, number, string] => [
        `${name},le="${BUCKETS[i] ?? "+Inf"}"`,
        (total += count),
        "_bucket",
      ]);
      return [...buckets, [name, sum, "_sum"], [name, total, "_count"]];
    });
  return [
    200,
    "text/plain; version=0.0.4; charset=utf-8",
    [
      family("balancer_info", "gauge", "The algorithm that picks servers.", [
        [label("algorithm", algorithm), 1],
      ]),
      family("balancer_uptime_seconds", "gauge", "Seconds since the start.", [["", uptime]]),
      family("balancer_connections_accepted_total", "counter", "Client connections accepted.", [
        ["", accepted],
      ]),
      family("balancer_connections_active", "gauge", "Client connections open and not queued.", [
        ["", active],
      ]),
      family("balancer_connections_queued", "gauge", "Client connections that wait for a server.", [
        ["", queued],
      ]),
      family(
        "balancer_connections_ended_total",
        "counter",
        "Client connections ended, by reason.",
        REASONS.map((reason) => [label("reason", reason), ended[reason]]),
      ),
      family(
        "balancer_retries_total",
        "counter",
        "Attempts at another server after a failed connect.",
        [["", retries]],
      ),
      family(
        "balancer_server_up",
        "gauge",
        "Whether the server is up.",
        perServer(({ up }) => Number(up)),
      ),
      family(
        "balancer_server_draining",
        "gauge",
        "Whether the server gets no new connections.",
        perServer(({ draining }) => Number(draining)),
      ),
      family(
        "balancer_server_weight",
        "gauge",
        "Configured weight.",
        perServer(({ fullWeight }) => fullWeight),
      ),
      family(
        "balancer_server_connections_active",
        "gauge",
        "Open connections, counted from the pick.",
        perServer(({ active }) => active),
      ),
      family(
        "balancer_server_connections_total",
        "counter",
        "Connections given to the server.",
        perServer(({ total }) => total),
      ),
      family(
        "balancer_server_connect_errors_total",
        "counter",
        "Failed connects.",
        perServer(({ connectErrors }) => connectErrors),
      ),
      family(
        "balancer_server_check_failures_total",
        "counter",
        "Failed health checks.",
        perServer(({ checkFailures }) => checkFailures),
      ),
      family(
        "balancer_server_sent_bytes_total",
        "counter",
        "Bytes sent to the server.",
        perServer(({ bytesToServer }) => bytesToServer),
      ),
      family(
        "balancer_server_received_bytes_total",
        "counter",
        "Bytes received from the server.",
        perServer(({ bytesToClient }) => bytesToClient),
      ),
      family(
        "balancer_server_connect_seconds",
        "histogram",
        "Time to connect.",
        histogram(({ connectTimes }) => connectTimes),
      ),
      family(
        "balancer_server_turn_seconds",
        "histogram",
        "Time from a client's first byte to the server's next byte.",
        histogram(({ turnTimes }) => turnTimes),
      ),
    ].join("\n") + "\n",
  ];
}

/**
 * The page is empty: its script fills in /status.json every second, as text, so that no name can
 * become markup.
 */
const pageOf = (): [number, string, string] => [200, "text/html; charset=utf-8", PAGE];
const PAGES = new Map([
  ["/", pageOf],
  ["/status.json", jsonOf],
  ["/metrics", metricsOf],
  ["/healthz", healthOf],
]);

const PAGE = `<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><title>Load balancer</title>
<style>
  :root { color-scheme: light dark; --ink: #1f2328; --muted: #59636e; --line: #d0d7de; --ground: #fff; --bad: #a34700; --good: #00704f }
  @media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --muted: #9198a1; --line: #3d444d; --ground: #0d1117; --bad: #e69f00; --good: #2fbf94 } }
  body { font: 16px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--ground); max-width: 80rem; margin: 0 auto; padding: 1rem; font-variant-numeric: tabular-nums }
  h1 { font-size: 1.3rem; margin: 0 } h2 { font-size: 1.05rem; margin: 1.6rem 0 .3rem } p { margin: .2rem 0 } #about, dt, th, .none { color: var(--muted) }
  #verdict { font-size: 1.15rem; margin: .8rem 0; padding-left: .7rem; border-left: .3rem solid var(--good) } #verdict.bad { border-color: var(--bad) }
  #gone { color: var(--ground); background: var(--bad); padding: .4rem .7rem; border-radius: .3rem; margin: .6rem 0 } #gone:empty { display: none } .old { opacity: .45 }
  dl { display: flex; flex-wrap: wrap; gap: .4rem 1.8rem; margin: .6rem 0 } dt { font-size: .85rem } dd { margin: 0; font-size: 1.25rem }
  table { border-collapse: collapse; width: 100% } th, td { text-align: right; padding: .35rem .5rem; border-bottom: 1px solid var(--line); font-weight: 400 }
  thead th { font-size: .85rem } tbody th { color: inherit; overflow-wrap: anywhere } td { white-space: nowrap } td:nth-child(2) { width: 30% } th:nth-child(-n+2), td:nth-child(2) { text-align: left; white-space: normal }
  .down, .bad dd { color: var(--bad) } .up { color: var(--good) } .draining { color: var(--muted) } .down, .draining { font-weight: 600 }
  button { font: inherit; font-size: .85rem; padding: .25rem .7rem; color: inherit; background: none; border: 1px solid var(--line); border-radius: .3rem; cursor: pointer }
  @media (max-width: 60rem) {
    thead { position: absolute; clip-path: inset(50%) } tr { display: grid; grid-template-columns: repeat(auto-fill, minmax(6rem, 1fr)); align-items: end; gap: .2rem .6rem; padding: .7rem 0; border-bottom: 1px solid var(--line) }
    tbody th, tbody td { border: 0; padding: 0; text-align: left } td:nth-child(2) { width: auto } tbody th { font-weight: 600; grid-column: 1 / -2 } td:nth-child(2) { grid-column: 1 / -1 } td:last-child { grid-area: 1 / -2; justify-self: end }
    td::before { content: attr(data-label); display: block; color: var(--muted); font-size: .8rem } td:nth-child(2)::before, td:last-child::before { content: none }
  }
</style></head><body>
<h1>Load balancer</h1><p id="about">Loading…</p><p id="gone" role="alert"></p>
<main id="main">
<p id="verdict" role="status"></p>
<dl id="totals"></dl>
<h2>Servers</h2><table role="table"><thead role="rowgroup"><tr role="row" id="head"></tr></thead><tbody role="rowgroup" id="servers"></tbody></table>
<h2>How connections ended</h2><dl id="ended"></dl>
<h2>Queue</h2><p id="queue"></p>
</main>
<noscript><p>This page needs its script. <a href="status.json">status.json</a> and <a href="metrics">metrics</a> say the same.</p></noscript>
<script>
const at = (id) => document.getElementById(id);
const put = (element, text, kind) => { if (element.textContent !== String(text)) element.textContent = text; if (kind !== undefined && element.className !== kind) element.className = kind; };
const make = (tag, text, role) => { const e = document.createElement(tag); e.textContent = text; if (role) e.setAttribute("role", role); return e; };
const many = (n) => n.toLocaleString("en");
const time = (s) => s === null ? "–" : s < 0.0995 ? (s * 1000).toPrecision(2) + " ms" : s < 0.9995 ? Math.round(s * 1000) + " ms" : s < 10 ? s.toFixed(1) + " s" : s < 120 ? Math.round(s) + " s" : s < 7200 ? Math.round(s / 60) + " min" : s < 172800 ? Math.round(s / 3600) + " h" : Math.round(s / 86400) + " days";
const size = (n) => { let i = 0; while (n >= 999.5 && i < 5) { n /= 1000; i++; } return (i && n < 99.5 ? n.toPrecision(2) : Math.round(n)) + " " + ["B", "kB", "MB", "GB", "TB", "PB"][i]; };
const share = (n, all) => all ? (100 * n / all).toFixed(n && n / all < 0.001 ? 3 : 1) + " %" : "–";
const columns = [["server", (r) => r.server], ["state", (r) => r.state + " for " + time(r.since) + (r.why ? ": " + r.why : "")], ["weight", (r) => r.weight], ["open", (r) => many(r.active)], ["total", (r) => many(r.total)],
  ["failed connects", (r) => many(r.connectErrors)], ["failed checks", (r) => many(r.checkFailures)], ["to server", (r) => size(r.bytesToServer)], ["to client", (r) => size(r.bytesToClient)], ["connect time", (r) => time(r.connectTime)], ["turn time", (r) => time(r.turnTime)]];
const rank = { down: 0, draining: 1, up: 2 };
const rows = new Map(), seen = [];
at("head").replaceChildren(...[...columns.map(([name]) => name), "switch"].map((name) => { const th = make("th", name, "columnheader"); th.scope = "col"; return th; }));
function pairs(list, entries) {
  entries.forEach(([name, value, kind], i) => {
    if (!list.children[i]) { const div = document.createElement("div"); div.append(make("dt", name), make("dd", "")); list.append(div); }
    put(list.children[i].lastChild, value);
    list.children[i].className = kind || "";
  });
}
function rowOf(name) {
  const tr = make("tr", "", "row"), button = make("button", "");
  tr.append(...columns.map(([label], i) => { const cell = make(i ? "td" : "th", "", i ? "cell" : "rowheader"); cell.dataset.label = label; return cell; }), make("td", "", "cell"));
  button.onclick = async () => { await fetch("servers/" + encodeURIComponent(name) + "/" + button.textContent, { method: "POST" }).catch(() => undefined); refresh(); };
  tr.lastChild.append(button);
  return tr;
}
function showServers(servers) {
  const focused = document.activeElement;
  const sorted = servers.slice().sort((a, b) => rank[a.state] - rank[b.state]).map((r) => {
    if (!rows.has(r.server)) rows.set(r.server, rowOf(r.server));
    const tr = rows.get(r.server), button = tr.lastChild.firstChild;
    columns.forEach(([, of], i) => put(tr.children[i], of(r), i === 1 ? r.state : ""));
    put(button, r.state === "draining" ? "ready" : "drain");
    button.setAttribute("aria-label", button.textContent + " " + r.server);
    return tr;
  });
  if (sorted.length === at("servers").children.length && sorted.every((tr, i) => tr === at("servers").children[i])) return;
  at("servers").replaceChildren(...sorted);
  focused.focus();
}
function show(s) {
  put(at("about"), s.algorithm + " on " + s.listening + ", running for " + time(s.uptime));
  const of = (state) => s.servers.filter((r) => r.state === state).length;
  const down = of("down"), draining = of("draining"), n = s.servers.length;
  put(at("verdict"), (down ? down + " of " + n + (n === 1 ? " server is down" : " servers are down") : draining ? "No server is down" : n === 1 ? "The server is up" : "All " + n + " servers are up") + (draining ? ", " + draining + " draining" : "") + (s.queued ? ", clients are waiting" : ""), down || s.queued ? "bad" : "");
  document.title = (down ? down + " down – " : "") + "Load balancer";
  const all = Object.values(s.ended).reduce((a, b) => a + b, 0), bad = all - s.ended.ok;
  seen.push({ all, bad });
  const then = seen.length > 60 ? seen.shift() : seen[0], badNow = bad - then.bad;
  pairs(at("totals"), [["active", many(s.active)], ["queued", many(s.queued), s.queued ? "bad" : ""], ["accepted", many(s.accepted)], ["retries", many(s.retries)], ["ended badly", share(bad, all)],
    ["badly, last minute", many(badNow) + " of " + many(all - then.all), badNow ? "bad" : ""]]);
  showServers(s.servers);
  pairs(at("ended"), Object.entries(s.ended).map(([reason, n]) => [reason.replace("_", " "), many(n) + (n && all ? " (" + share(n, all) + ")" : ""), reason !== "ok" && n ? "bad" : n ? "" : "none"]));
  put(at("queue"), s.queued ? many(s.queued) + " waiting, longest: " + s.waiting.map((w) => w.client + " for " + time(w.seconds)).join(", ") : "Nobody is waiting.");
}
let timer;
async function refresh() {
  clearTimeout(timer);
  try {
    show(await (await fetch("status.json", { signal: AbortSignal.timeout(3000) })).json());
    put(at("gone"), "");
    at("main").className = "";
  } catch {
    if (!at("gone").textContent) put(at("gone"), "No answer since " + new Date().toLocaleTimeString() + ": the balancer has gone or cannot be reached. What is below is old.");
    document.title = "Gone – Load balancer";
    at("main").className = "old";
  }
  timer = setTimeout(refresh, 1000);
}
refresh();
</script></body></html>
`;

// ─── Command line ────────────────────────────────────────────────────────────

const seconds = amount("seconds");
const serverList: Kind<readonly ServerSpec[]> = {
  expected: "host:port[*weight],...",
  read: (text) => parseServers(text.split(",")),
};
const adminAddress: Kind<Address> = {
  expected: "a port or host:port",
  read: (text) => parseAddress(text.includes(":") ? text : `127.0.0.1:${text}`),
};

export const OPTIONS = {
  host: { kind: hostName, value: "HOST", fallback: "127.0.0.1", help: "address to listen on" },
  port: {
    kind: portNumber,
    value: "PORT",
    fallback: "65432",
    help: "port to listen on; 0 = any free one",
  },
  servers: {
    kind: serverList,
    value: "LIST",
    help: "host:port[*weight],... (default: 127.0.0.1 with the ports 65433 to 65437)",
  },
  serversFile: {
    kind: anyText,
    value: "FILE",
    help: "one host:port[*weight] a line, # comments; read again on SIGHUP and when it changes",
  },
  connectTimeout: {
    kind: someSeconds,
    value: "SECONDS",
    fallback: "2",
    help: "for one attempt to connect to a server",
  },
  idleTimeout: {
    kind: seconds,
    value: "SECONDS",
    fallback: "600",
    help: "no byte either way for this long ends a connection; 0 = never",
  },
  maxConnections: {
    kind: wholeNumber(1),
    value: "N",
    help: "clients at once (default: what the file-descriptor limit allows)",
  },
  serverConnections: {
    kind: wholeNumber(0),
    value: "N",
    fallback: "0",
    help: "connections per server at once, further clients queue; 0 = no limit",
  },
  queueTimeout: {
    kind: seconds,
    value: "SECONDS",
    fallback: "30",
    help: "longest wait in that queue",
  },
  check: {
    kind: oneOf(CHECKS),
    value: "tcp|ping|none",
    fallback: "tcp",
    help: "active health check",
  },
  checkInterval: {
    kind: someSeconds,
    value: "SECONDS",
    fallback: "2",
    help: "between two checks of a server",
  },
  fall: {
    kind: wholeNumber(1),
    value: "N",
    fallback: "3",
    help: "failures in a row that take a server down",
  },
  rise: {
    kind: wholeNumber(1),
    value: "N",
    fallback: "2",
    help: "successes in a row that bring it up again",
  },
  reusePort: {
    help: "several balancers may listen on the same port, one a core (Node 22.12 and later)",
  },
  drainTimeout: {
    kind: seconds,
    value: "SECONDS",
    fallback: "30",
    help: "how long SIGTERM waits for open connections",
  },
  sendProxy: {
    help: "PROXY protocol (v1) header to the servers, so that they learn the client's address",
  },
  slowStart: {
    kind: seconds,
    value: "SECONDS",
    fallback: "0",
    help: "a server that comes back gets its full weight only after this long",
  },
  admin: {
    kind: adminAddress,
    value: "[HOST:]PORT",
    help: "status page, JSON, metrics (default: off; host 127.0.0.1)",
  },
  log: {
    kind: oneOf(LOGS),
    value: "text|json|none",
    fallback: "text",
    help: "what to print about connections",
  },
  seed: {
    kind: seedNumber,
    value: "N",
    help: "repeats the random picks of a run (default: drawn)",
  },
} as const satisfies Options;

export type LoadBalancerOptions = Omit<
  Values<typeof OPTIONS>,
  "servers" | "serversFile" | "maxConnections" | "seed"
> & { algorithm: Algorithm; servers: readonly ServerSpec[]; maxConnections: number; seed: number };

/**
 * A balancer that is listening, and where; the admin page too, if wanted. What `options` leaves out
 * is as on the command line. Throws RunError.
 */
export async function startLoadBalancer(
  options: Partial<LoadBalancerOptions> & { algorithm: Algorithm },
): Promise<{ balancer: LoadBalancer; address: Address; admin: Address | undefined }> {
  const { maxConnections, seed, servers, serversFile, ...defaults } = parseCommandLine(
    OPTIONS,
    [],
  ).values;
  const settings = {
    ...defaults,
    servers: parseServers(SERVERS),
    seed: Math.floor(Math.random() * 2 ** 32),
    maxConnections: Infinity,
    ...options,
  };
  settings.maxConnections = allowedConnections(
    settings.maxConnections,
    settings.servers.length + (settings.admin === undefined ? 0 : ADMIN_CONNECTIONS),
  );
  const balancer = new LoadBalancer(settings, new Log(settings.log));
  try {
    const address = await balancer.listen();
    return {
      balancer,
      address,
      admin: settings.admin && (await startAdmin(balancer, settings.admin)),
    };
  } catch (error) {
    await balancer.stop(0);
    throw error;
  }
}

/**
 * How many clients fit into the descriptors of this process, at two sockets each; at most `wanted`,
 * and says so when that is more.
 */
function allowedConnections(wanted: number, others: number): number {
  const { limit, open } = descriptors();
  // what Node may open, checks under way and the admin page
  const spare = open + 16 + Math.min(others, 200);
  const allowed = Math.max(1, Math.floor((limit - spare) / 2));
  if (wanted === Infinity && allowed < 100)
    console.error(
      `The limit of ${limit} file descriptors allows only ${allowed} clients at once: raise it with ulimit -n`,
    );
  if (wanted !== Infinity && wanted > allowed)
    console.error(
      `--max-connections ${wanted} needs ${2 * wanted + spare} file descriptors and the limit is ${limit}: allowing ${allowed}`,
    );
  return Math.min(wanted, allowed);
}

/**
 * The limit of file descriptors, and how many are open; what POSIX guarantees on any system where
 * neither can be found out.
 */
function descriptors(): { limit: number; open: number } {
  try {
    const open = readdirSync("/dev/fd").length;
    if (process.platform !== "linux")
      return {
        limit: Number(execFileSync("sh", ["-c", "ulimit -n"], { encoding: "utf8" })) || Infinity,
        open,
      };
    return {
      limit: Number(
        /^Max open files\s+(\d+)/m.exec(readFileSync("/proc/self/limits", "utf8"))?.[1] ?? Infinity,
      ),
      open,
    };
  } catch (error) {
    console.error(
      `Cannot find out the limit of file descriptors (${reasonOf(error)}): taking it for 1024`,
    );
    return { limit: 1024, open: 32 };
  }
}

const USAGE = `How to Use: tsx load_balancer.ts [algorithm]\nAvailable algorithms: ${ALGORITHMS.join(", ")}`;

/** Throws a UsageError that names the algorithms there are. */
function readAlgorithm(name: string): Algorithm {
  const algorithm = ALGORITHMS.find((known) => known === name);
  if (algorithm === undefined)
    throw new UsageError(
      `Unknown algorithm ${JSON.stringify(name)}: expected ${ALGORITHMS.join(", ")}`,
    );
  return algorithm;
}

/** Seconds between two looks at a servers file, and between two look-ups of host names. */
const RELOAD = { file: 1, names: 10 } as const;

/**
 * Keeps the balancer's servers as the file and the resolver have them: one update after the other,
 * so that none overtakes a newer one.
 */
function follow(balancer: LoadBalancer, directory: Directory, file: string | undefined): void {
  let last = Promise.resolve();
  let waiting = 0;
  let stopped = false;
  const update = async (readAgain: boolean): Promise<void> => {
    try {
      if (readAgain && file !== undefined) directory.specs = await readServersFile(file);
      const servers = await directory.lookUp();
      if (!stopped) balancer.setServers(servers);
    } catch (error) {
      if (!(error instanceof RunError)) throw error;
      console.error(`${error.message}; the servers stay as they were`);
    }
    waiting -= 1;
  };
  const updateInTurn = (readAgain: boolean): void => {
    waiting += 1;
    last = last.then(() => update(readAgain));
  };
  const names = setInterval(() => {
    if (directory.hasNames && waiting === 0) updateInTurn(false);
  }, RELOAD.names * 1000);
  process.on("SIGHUP", () => updateInTurn(true));
  if (file !== undefined)
    watchFile(file, { interval: RELOAD.file * 1000 }, () => updateInTurn(true));
  balancer.whenStopped(() => {
    stopped = true;
    clearInterval(names);
    if (file !== undefined) unwatchFile(file);
  });
}

async function main(
  [name, ...rest]: string[],
  { servers, serversFile, maxConnections, seed, ...values }: Values<typeof OPTIONS>,
): Promise<number> {
  if (name === undefined) throw new UsageError("");
  if (rest[0] !== undefined)
    throw new UsageError(
      `Bad argument ${JSON.stringify(rest[0])}: expected one algorithm and options`,
    );
  const algorithm = readAlgorithm(name);
  if (servers !== undefined && serversFile !== undefined)
    throw new UsageError(
      `Bad --servers-file ${JSON.stringify(serversFile)}: expected either --servers or --servers-file`,
    );
  const [major = 0, minor = 0] = process.versions.node.split(".").map(Number);
  if (values.reusePort && (major < 22 || (major === 22 && minor < 12)))
    throw new RunError(
      `--reuse-port needs Node 22.12 or later, and this is ${process.versions.node}`,
    );
  const directory = new Directory(
    serversFile === undefined
      ? (servers ?? parseServers(SERVERS))
      : await readServersFile(serversFile),
  );
  const { balancer, address, admin } = await startLoadBalancer({
    ...values,
    algorithm,
    servers: await directory.lookUp(),
    ...(maxConnections === undefined ? {} : { maxConnections }),
    ...(seed === undefined ? {} : { seed }),
  });
  follow(balancer, directory, serversFile);
  let crashed = false;
  const stopping = new Promise<number>((resolve) => {
    onStopSignals(
      () => resolve(balancer.stop(values.drainTimeout)),
      () => balancer.cut(),
    );
    process.once("uncaughtException", (error) => {
      // a bug: say so, give the others a moment, and do not go on with broken state
      console.error(error.stack);
      crashed = true;
      resolve(balancer.stop(1));
    });
  });
  console.log(`Listening on ${formatAddress(address)}`);
  if (admin !== undefined) console.log(`Admin on http://${formatAddress(admin)}/`);
  const cut = await stopping;
  if (cut > 0)
    console.error(
      `${cut} ${cut === 1 ? "connection was" : "connections were"} cut off when the drain ended`,
    );
  const code = cut > 0 || crashed ? 1 : 0;
  // whoever reads our output may have stopped reading it
  setTimeout(() => process.exit(code), 1000).unref();
  return code;
}

if (isMain(import.meta)) void runScript({ usage: USAGE, options: OPTIONS, main });
