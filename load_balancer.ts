#!/usr/bin/env -S node --import tsx
/**
 * load_balancer.ts - spread TCP connections over a set of servers.
 *
 * Picks a server for each client connection and copies bytes both ways. It never reads them, so it
 * carries any protocol over TCP; it does not cache, pool or encrypt.
 *
 *   tsx load_balancer.ts round-robin
 *   tsx load_balancer.ts least-connections --port 8080 --servers 10.0.0.1:80,10.0.0.2:80*2
 *
 * How to read it: `Server` says what is known of a server, and who writes it. Algorithms, Health
 * and Places decide and see no socket: read any of them alone. Relay is the life of one connection,
 * from stage to stage. Dispatch ties them together, without a socket; Balancer adds sockets and
 * time-outs. Options are declared in Command line, and used elsewhere. README.md says what it does.
 */
import { execFileSync } from "node:child_process";
import { lookup } from "node:dns/promises";
import { promises, readdirSync, readFileSync } from "node:fs";
import http, { type IncomingMessage, type ServerResponse } from "node:http";
import { BlockList, connect, createServer, isIP, SocketAddress } from "node:net";
import type { Server as Listener, Socket, TcpNetConnectOpts } from "node:net";
import { networkInterfaces } from "node:os";
import { connect as secure } from "node:tls";
import { isatty } from "node:tty";
import { type Address, formatAddress, hostName, listen, parseAddress, portNumber } from "./lib.ts";
import { amount, anyText, bad, type Kind, oneOf, readValue, someSeconds } from "./lib.ts";
import { isMain, onStopSignals, type Options, parseCommandLine, type Values } from "./lib.ts";
import { LineWriter, LONGEST_TIMER, mulberry32, seedNumber, wholeNumber } from "./lib.ts";
import { reasonOf, RunError, runScript, UsageError } from "./lib.ts";

/** The servers to balance over, when --servers names no others. */
const SERVERS = [65433, 65434, 65435, 65436, 65437].map((port) => `127.0.0.1:${port}`);

// ─── Servers ─────────────────────────────────────────────────────────────────
// What the balancer knows of a server, by who writes it: places, algorithms, health, or nobody but
// the counters. Then the texts that name servers: a list, a file, and names that DNS resolves.

/** What is not marked otherwise is written by dispatch and the balancer. */
export class Server {
  readonly name: string;
  readonly hash: number; // of its name, for `source-hash`
  readonly address: Address;
  spec: ServerSpec; // as it is configured now
  weight: number; // the configured one x warmth, above 0 where it may be picked
  open = 0; // connections, counted from the pick; written by places
  credit = 0; // how many it is owed by `creditor`, who takes turns (below 0: it is ahead)
  creditor: object | undefined = undefined; // written by algorithms, as `credit` and `cost`
  readonly cost = newCost(); // what `least-latency` knows of its turns
  draining = false; // taken out by hand: it gets no new clients
  switchedAt: number; // when it was last drained or made ready
  warmSince = -Infinity; // since when its slow start counts
  readonly health: HealthState; // written by the health section
  readonly stats = new Stats(); // counted for people to see; nothing decides by it
  constructor(spec: ServerSpec, now: number) {
    this.name = formatAddress(spec);
    this.address = { host: spec.host, port: spec.port };
    this.hash = hash(this.name);
    this.spec = spec;
    this.weight = spec.weight;
    this.switchedAt = now;
    this.health = new HealthState(now);
  }
}

class Stats {
  total = 0;
  connectErrors = 0;
  checkFailures = 0;
  bytesToServer = 0;
  connectTime: number | null = null; // means in seconds, null before the first sample
  turnTime: number | null = null;
  readonly connectTimes = newHistogram(BUCKETS);
  readonly turnTimes = newHistogram(BUCKETS);
}

/** For the metrics: bounds in seconds that Prometheus' users expect. */
const BUCKETS = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10];
/** For the page's median and p95: from 1 ms to 10 s, each 1.2 times the one before. */
const FINE_BUCKETS = Array.from({ length: 52 }, (_, i) => Math.min(10, 0.001 * 1.2 ** i));

/** How many samples were at most each bound and above the one before; the last, above all. */
const newHistogram = (bounds: readonly number[]) => {
  const counts = new Array<number>(bounds.length + 1).fill(0);
  return { bounds, counts, sum: 0 };
};

function count(histogram: ReturnType<typeof newHistogram>, seconds: number): void {
  const { bounds, counts } = histogram;
  let place = 0;
  while (seconds > (bounds[place] ?? Infinity)) place += 1;
  counts[place] = (counts[place] ?? 0) + 1;
  histogram.sum += seconds;
}

/** A new sample has an eighth of the weight, as with TCP's round trips (RFC 6298). */
const smooth = (mean: number | null, sample: number): number =>
  mean === null ? sample : mean + (sample - mean) / 8;

export type ServerSpec = Address & {
  readonly weight: number; // 0 drains it
  readonly backup: boolean; // only for when no other is left
  readonly configuredHost: string; // as written; `host` is one address of it. For Host and SNI
  readonly resolved: boolean; // false: `host` is a name without an address, and never dialled
};

const serverPort = wholeNumber(1, 65535);
const serverSpec: Kind<ServerSpec> = {
  expected:
    'host:port, host:port*weight, or either with " backup" behind it, ' +
    "with a port from 1 to 65535 and a weight from 0 to 1000",
  read(text) {
    const [, place = "", stars = "1", backup] =
      /^([^\s*]+)(?:\*(\S*))?(\s+backup)?$/.exec(text) ?? [];
    const address = parseAddress(place);
    const weight = wholeNumber(0, 1000).read(stars);
    if (address === undefined || address.port === 0 || weight === undefined) return undefined;
    const resolved = isIP(address.host) !== 0;
    const isBackup = backup !== undefined;
    return { ...address, weight, backup: isBackup, configuredHost: address.host, resolved };
  },
};

/** Reads a list of servers. Throws a UsageError about the first that is wrong, or there twice. */
export function parseServers(texts: readonly string[]): ServerSpec[] {
  const specs = new Map<string, ServerSpec>();
  for (const text of texts) addServer(specs, text.trim());
  return [...specs.values()];
}

type Objection = LoadBalancer["objectionTo"];
function addServer(specs: Map<string, ServerSpec>, text: string, objectionTo?: Objection): void {
  const spec = readValue("server", serverSpec, text);
  const name = formatAddress(spec);
  if (specs.has(name)) throw bad("server", name, "each server once");
  const objection = objectionTo?.([spec]);
  if (objection !== undefined) throw objection;
  specs.set(name, spec);
}

const textOf = (file: string): Promise<string | RunError> =>
  promises
    .readFile(file, "utf8")
    .catch((error: unknown) => new RunError(`Cannot read ${file}: ${reasonOf(error)}`));

/** The servers in the text of a file, one a line, `#` starts a comment; or what is wrong there. */
function serversIn(file: string, text: string | RunError, objectionTo?: Objection) {
  if (text instanceof RunError) return text;
  const specs = new Map<string, ServerSpec>();
  for (const [index, line] of text.split("\n").entries()) {
    const entry = line.replace(/#.*/, "").trim();
    try {
      if (entry !== "") addServer(specs, entry, objectionTo);
    } catch (error) {
      return new RunError(`${file}:${index + 1}: ${reasonOf(error)}`);
    }
  }
  const expected = "no server in the file: expected one host:port[*weight] [backup] a line";
  return specs.size > 0 ? [...specs.values()] : new RunError(`${file}:1: ${expected}`);
}

export type Resolver = (name: string) => Promise<readonly string[]>;
const systemResolver: Resolver = async (name) =>
  (await lookup(name, { all: true })).map(({ address }) => address);

type KnownName = ReturnType<typeof newName>;
const newName = (name: string) => ({
  name,
  addresses: new Array<string>(), // its last good answer; none yet is empty
  isAsked: false,
  askedAt: 0,
  isSlow: false, // its last look-up took so long that its like must not hold up the others
  isFailing: false, // and that was said
});

export type DirectoryListener = {
  readonly changed: (specs: readonly ServerSpec[], by: "file" | "names") => void;
  readonly fileRead: (complaint: string | undefined) => void; // undefined: it is good again
  readonly objectionTo: Objection;
};

/** Seconds between two looks at the file, between two look-ups, and from which on one is slow. */
const DIRECTORY_SECONDS = { file: 1, names: 10, slow: 2 };

/** What the configured servers are at the moment. A name is looked up here and not for each
 *  connection, so that DNS can be the directory; when that fails its last good answer stays. Node
 *  has two threads for look-ups: slow names share one, in turn, so that the other is free. */
export class Directory {
  #configured: readonly ServerSpec[];
  readonly #resolve: Resolver;
  readonly #seconds: typeof DIRECTORY_SECONDS;
  readonly #names = new Map<string, KnownName>();
  #timers: NodeJS.Timeout[] = [];
  #file: string | undefined;
  #lastRead: string | undefined; // what says the same is no change
  #isReading = false;
  #isReadAgain = false;
  #listener: DirectoryListener | undefined;
  #isClosed = false;
  constructor(specs: readonly ServerSpec[], resolve = systemResolver, seconds = DIRECTORY_SECONDS) {
    this.#configured = specs;
    this.#resolve = resolve;
    this.#seconds = seconds;
  }

  /** With the servers of a file, which must be good. Throws a RunError that names the line. */
  static async ofFile(file: string, resolve = systemResolver, seconds = DIRECTORY_SECONDS) {
    const text = await textOf(file);
    const specs = serversIn(file, text);
    if (specs instanceof RunError) throw specs;
    const directory = new Directory(specs, resolve, seconds);
    directory.#file = file;
    directory.#lastRead = String(text);
    return directory;
  }

  /** The servers that there are, each once: of a name as many as it has addresses. */
  get specs(): ServerSpec[] {
    const servers = new Map<string, ServerSpec>();
    for (const spec of this.#configured) {
      const hosts = this.#names.get(spec.host)?.addresses ?? [];
      const found = hosts.map((host) => ({ ...spec, host, resolved: true }));
      for (const server of found.length > 0 ? found : [spec]) {
        const name = formatAddress(server);
        if (!servers.has(name)) servers.set(name, server);
      }
    }
    return [...servers.values()];
  }

  follow(listener: DirectoryListener): void {
    this.#listener = listener;
    this.#takeNames();
    void this.#readFile(); // it may have changed since it was first read
    this.#timers = [
      setInterval(() => this.#lookUpAll(), this.#seconds.names * 1000),
      setInterval(() => void this.#readFile(), this.#seconds.file * 1000),
    ];
  }

  /** Looks at the file, and at every name, now. What is wrong with the file is said again. */
  reload(): void {
    if (this.#isClosed) return;
    this.#lookUpAll();
    this.#lastRead = undefined;
    void this.#readFile();
  }

  /** From now on nothing is said, and nothing begins. A look-up under way cannot be called off. */
  close(): void {
    this.#isClosed = true;
    for (const timer of this.#timers) clearInterval(timer);
  }

  /** One read at a time, so that none overtakes a newer one; who asks meanwhile has one more. */
  async #readFile(): Promise<void> {
    this.#isReadAgain = true;
    if (this.#file === undefined || this.#isReading) return;
    this.#isReading = true;
    while (this.#isReadAgain && !this.#isClosed) {
      this.#isReadAgain = false;
      const text = await textOf(this.#file);
      // the text, not its time of change: that misses a second one at once, and a turned link
      if (this.#isClosed || String(text) === this.#lastRead) continue;
      this.#lastRead = String(text);
      const specs = serversIn(this.#file, text, this.#listener?.objectionTo);
      const isBad = specs instanceof RunError;
      if (isBad) console.error(`${specs.message}; the servers stay as they were`);
      this.#listener?.fileRead(isBad ? specs.message : undefined);
      if (isBad || JSON.stringify(specs) === JSON.stringify(this.#configured)) continue;
      this.#configured = specs;
      this.#listener?.changed(this.specs, "file");
      this.#takeNames();
    }
    this.#isReading = false;
  }

  #takeNames(): void {
    const hosts = new Set(this.#configured.map(({ host }) => host));
    for (const name of this.#names.keys()) if (!hosts.has(name)) this.#names.delete(name);
    for (const name of hosts) {
      if (isIP(name) !== 0 || this.#names.has(name)) continue;
      const known = newName(name);
      this.#names.set(name, known);
      void this.#ask(known);
    }
  }

  #lookUpAll(): void {
    for (const known of this.#names.values()) if (!known.isSlow) void this.#ask(known);
    this.#askNextSlow();
  }

  /** Of the slow ones one at a time, who has waited longest. */
  #askNextSlow(): void {
    const slow = [...this.#names.values()].filter(({ isSlow }) => isSlow);
    const [next] = slow.sort((a, b) => a.askedAt - b.askedAt);
    if (next !== undefined && !slow.some(({ isAsked }) => isAsked)) void this.#ask(next);
  }

  async #ask(known: KnownName): Promise<void> {
    if (known.isAsked) return;
    known.isAsked = true;
    known.askedAt = performance.now();
    let why = "it has no address";
    const answer = await this.#resolve(known.name).catch((error: unknown): string[] => {
      why = reasonOf(error);
      return [];
    });
    if (this.#isClosed) return;
    const wasSlow = known.isSlow;
    known.isAsked = false;
    known.isSlow = performance.now() - known.askedAt > this.#seconds.slow * 1000;
    if (wasSlow && !known.isSlow) this.#askNextSlow(); // the resolver is back
    const wasFailing = known.isFailing;
    known.isFailing = answer.length === 0;
    if (known.isFailing) {
      const isNew = known.addresses.length === 0;
      const next = isNew ? "no connection goes there" : "its last addresses stay";
      if (!wasFailing) console.error(`Cannot look up ${known.name}: ${why}; ${next}`);
      return;
    }
    const isV4 = answer.some((address) => isIP(address) === 4); // else both families would count
    const chosen = answer.filter((address) => isIP(address) === (isV4 ? 4 : 6));
    const addresses = [...new Set(chosen)].sort();
    if (addresses.join() === known.addresses.join()) return;
    known.addresses = addresses;
    if (this.#names.get(known.name) === known) this.#listener?.changed(this.specs, "names");
  }
}

// ─── Algorithms ──────────────────────────────────────────────────────────────
// Each picks one of the servers it is shown; it never sees a socket. To add one, add it to the
// table: help, validation, tests and the laboratory derive from it.

type Seen = "name" | "hash" | "weight" | "open" | "credit" | "creditor" | "cost";
export type Candidate = Pick<Server, Seen>; // what a picker sees of a server
/** Picks one of `servers`, never none: the same array, in the same order, until one changes. */
export type Picker = <S extends Candidate>(servers: readonly S[], clientAddress: string) => S;
/** What an algorithm may use: random numbers in [0, 1), and a monotonic clock in seconds. */
export type Sources = { readonly random: () => number; readonly now: () => number };

/** Each makes a fresh picker: for each balancer, and when a configured weight has changed. */
export const algorithms = {
  "round-robin": (sources) => {
    const shareOf = newTurns(sources);
    return (servers) => {
      const share = shareOf(servers);
      let best = at(servers, 0);
      let most = -Infinity;
      for (const server of servers) {
        const credit = server.credit + server.weight * share;
        server.credit = credit;
        if (credit <= most + TIE) continue;
        most = credit;
        best = server;
      }
      best.credit -= 1;
      return best;
    };
  },
  // Ties fall to whom round-robin owes most. Who was too busy for its turn has no claim later.
  "least-connections": (sources) => {
    const shareOf = newTurns(sources);
    return (servers) => {
      const share = shareOf(servers);
      let best = at(servers, 0);
      for (const server of servers) {
        const difference = server.open * best.weight - best.open * server.weight; // per weight
        if (difference > 0) continue;
        if (difference < 0) best = server;
        else if (owed(server, share) > owed(best, share) + TIE) best = server;
      }
      const most = owed(best, share);
      for (const server of servers) server.credit = Math.min(owed(server, share), most);
      best.credit -= 1;
      return best;
    };
  },

  random: ({ random }) => {
    const draws = newDraws();
    return (servers) => at(servers, draws.place(servers, random()));
  },
  // Mitzenmacher 2001: the second takes nearly all of the gain. It must differ, or 1 in n is blind.
  "two-choices": ({ random }) => {
    const draws = newDraws();
    return (servers) => {
      const place = draws.place(servers, random());
      const one = at(servers, place);
      if (servers.length === 1) return one;
      const other = at(servers, draws.otherPlace(place, random()));
      // on a tie the first, which was drawn by weight
      return other.open * one.weight < one.open * other.weight ? other : one;
    };
  },

  "least-latency": ({ random, now }) => {
    let nextLook = -Infinity; // for servers that are to be tried whatever their cost
    return (servers) => {
      const time = now();
      const start = Math.floor(random() * servers.length); // ties fall to a random one
      const due = time < nextLook ? undefined : findDue(servers, start, time);
      if (due !== undefined) due.cost.triedAt = time;
      else if (time >= nextLook) nextLook = time + LOOK_EVERY;
      const best = due ?? cheapest(servers, start, time);
      best.cost.pickedAt = time;
      return best;
    };
  },

  "source-hash": () => homeOf,
} satisfies Record<string, (sources: Sources) => Picker>;

export type Algorithm = keyof typeof algorithms;
const isAlgorithm = (name: string): name is Algorithm => name in algorithms;
export const ALGORITHMS = Object.keys(algorithms).filter(isAlgorithm);
/** Those by which a client belongs to one server, and waits for it when it is full. */
export const STICKY: ReadonlySet<Algorithm> = new Set(["source-hash"]);

function at<T>(items: readonly T[], place: number): T {
  const item = items[place];
  if (item === undefined) throw new RangeError(`there is no item ${place} of ${items.length}`);
  return item;
}

const TIE = 1e-9; // credits that differ by less are equal: they are sums of fractions
/** What a server is owed at a pick that gives each unit of weight `share` of a connection. */
const owed = (server: Candidate, share: number): number => server.credit + server.weight * share;

/** Smooth weighted round robin, as nginx does it: weights 5, 1, 1 give a a b a c a a, not a a a a a
 *  b c. At each pick everyone is owed its share of one connection, and who is owed most gets it.
 *  Unlike nginx's units of weight, connections mean the same after a weight has changed. The begin
 *  is drawn, or balancers would go in step. Returns what one unit of weight is due at a pick. */
function newTurns({ random }: Sources) {
  const creditor = {};
  let known: readonly Candidate[] | undefined;
  let share = 0;
  return (servers: readonly Candidate[]): number => {
    if (servers === known) return share;
    share = 1 / totalWeight(servers);
    for (const server of servers) {
      if (server.creditor !== creditor) server.credit = 0; // the middle: neither owed nor ahead
      server.creditor = creditor;
    }
    if (known === undefined) beginAt(random(), servers);
    known = servers;
    return share;
  };
}

/** Gives `servers` the credits that they have after some picks, the part `phase` in [0, 1) of a
 *  whole round. How many of these went to whom is told by the largest remainders (Hamilton's
 *  method), nearly always as playing them would; but of 10,000 servers a round is too long. */
function beginAt(phase: number, servers: readonly Candidate[]): void {
  const total = totalWeight(servers);
  const least = servers.reduce((weight, server) => Math.min(weight, server.weight), Infinity);
  const picks = Math.floor(phase * Math.max(total, total / least));
  let left = picks;
  for (const server of servers) {
    const due = (picks * server.weight) / total;
    const whole = Math.floor(due + TIE);
    server.credit = due - whole;
    left -= whole;
  }
  const inSteps = (server: Candidate): number => Math.round(server.credit / TIE);
  const byRemainder = [...servers].sort((a, b) => inSteps(b) - inSteps(a));
  for (const server of byRemainder.slice(0, left)) server.credit -= 1;
}

const totalWeight = (servers: readonly Candidate[]): number =>
  servers.reduce((sum, { weight }) => sum + weight, 0);

/** Draws by weight in constant time: a table says where to begin to look (Chen and Asau 1974). */
function newDraws() {
  let known: readonly Candidate[] = [];
  let ends = new Float64Array(0); // the sum of the weights up to and with each
  let starts = new Uint32Array(0);
  let total = 0;
  let partsPerWeight = 0;
  const endOf = (place: number): number => ends[place] ?? 0;

  function meet(servers: readonly Candidate[]): void {
    known = servers;
    ends = new Float64Array(servers.length);
    starts = new Uint32Array(servers.length);
    total = 0;
    for (const [place, server] of servers.entries()) {
      total += server.weight;
      ends[place] = total;
    }
    partsPerWeight = servers.length / total;
    let place = 0;
    for (let part = 0; part < starts.length; part += 1) {
      while (endOf(place) * partsPerWeight <= part) place += 1;
      starts[part] = place;
    }
  }

  /** The place whose part of the total `point` lies in. */
  function placeOf(point: number): number {
    const last = ends.length - 1;
    let place = starts[Math.floor(point * partsPerWeight)] ?? last;
    while (place < last && endOf(place) <= point) place += 1;
    return place;
  }
  return {
    place(servers: readonly Candidate[], luck: number): number {
      if (servers !== known) meet(servers);
      return placeOf(luck * total);
    },
    /** One of the others, by weight; to be asked for after `place`, of the same two or more. */
    otherPlace(place: number, luck: number): number {
      const begin = place === 0 ? 0 : endOf(place - 1);
      const weight = endOf(place) - begin;
      const point = luck * (total - weight);
      const other = placeOf(point < begin ? point : point + weight);
      if (other !== place) return other;
      return place > 0 ? place - 1 : place + 1; // rounded across a border
    },
  };
}

/** Weighted rendezvous hashing (Thaler & Ravishankar 1998; weights: Schindelhauer & Schomaker
 *  2005): each server scores each client, so that one that leaves takes only its own clients with
 *  it. The highest -weight / ln(u) wins, which for equal weights is the highest u. */
export function homeOf<S extends Candidate>(servers: readonly S[], clientAddress: string): S {
  const client = hash(clientAddress);
  let best = at(servers, 0);
  let highest = 0;
  for (const server of servers) {
    let mixed = client ^ server.hash; // MurmurHash3's finalizer spreads each bit over all 32
    mixed = Math.imul(mixed ^ (mixed >>> 16), 0x85ebca6b);
    mixed = Math.imul(mixed ^ (mixed >>> 13), 0xc2b2ae35);
    const u = (((mixed ^ (mixed >>> 16)) >>> 0) + 0.5) / 2 ** 32;
    if (server.weight === best.weight) {
      if (u <= highest) continue;
    } else if (Math.log(u) / server.weight <= Math.log(highest) / best.weight) continue;
    highest = u;
    best = server;
  }
  return best;
}

/** FNV-1a, 32 bits. */
export function hash(key: string): number {
  let value = 0x811c9dc5;
  for (let i = 0; i < key.length; i += 1) value = Math.imul(value ^ key.charCodeAt(i), 0x01000193);
  return value >>> 0;
}

/** What `least-latency` knows of a server. All times are on one monotonic clock, in seconds. */
export type Cost = ReturnType<typeof newCost>;
export const newCost = () => ({
  seconds: 0, // peak EWMA of its turns, as it was at `shownAt`; 0 without history
  shownAt: 0,
  waiting: 0, // turns begun since it last answered somebody
  silentSince: -Infinity, // since then there has been such a turn without a break
  pickedAt: -Infinity, // the last time by least-latency
  triedAt: Infinity, // when the trial began whose answer is awaited
});

const DECAY = 10; // a cost falls to 1/e of itself in so many seconds without a new sample
const DEFAULT_COST = 0.03; // seconds that a server is taken to need while none has a history
const TRY_AGAIN = 20; // who was not picked for so many seconds is tried once, whatever its cost
const PATIENCE = 1; // so many seconds of silence, at least, before somebody is sent to find out
const LOOK_EVERY = 0.1; // how often a busy balancer looks for such servers, in seconds
const MOST_SILENCE = 8; // silence counts as at most so many times what the server has last shown

/** A client's turn has begun at `now`: not before its bytes went to the server. */
export function asked(cost: Cost, now: number): void {
  if (cost.waiting === 0) cost.silentSince = now;
  cost.waiting += 1;
}

/** A turn that began at `began` was answered. Whoever waits since before speaks for nobody now. */
export function answered(cost: Cost, began: number, now: number): void {
  cost.waiting = 0;
  took(cost, began, now - began, now);
}

/** A turn that began at `began` has ended without an answer, by its client or ours. */
export function forgotten(cost: Cost, began: number): void {
  if (cost.waiting > 0 && began >= cost.silentSince) cost.waiting -= 1;
}

/** Takes one turn into the peak EWMA (Finagle's): slower counts at once, faster by and by. */
export function took(cost: Cost, began: number, seconds: number, now: number): void {
  const kept = Math.exp((cost.shownAt - now) / DECAY);
  const decayed = cost.seconds * kept;
  const isTrial = began >= cost.triedAt; // whose outcome replaces what was known before
  if (isTrial) cost.triedAt = Infinity;
  if (isTrial || seconds > decayed) cost.seconds = seconds;
  else cost.seconds = decayed + seconds * (1 - kept);
  cost.shownAt = now;
}

/** The cost now, in seconds; `unknown` without history. Silence counts before an answer proves it,
 *  but only towards everybody, and within bounds: no silent client speaks for a server. */
export function costOf(cost: Cost, now: number, unknown: number): number {
  const isKnown = cost.seconds > 0;
  const known = isKnown ? cost.seconds * Math.exp((cost.shownAt - now) / DECAY) : unknown;
  if (cost.waiting === 0) return known;
  const most = MOST_SILENCE * (isKnown ? cost.seconds : unknown);
  return Math.max(known, Math.min(now - cost.silentSince, most));
}

/** Not above `costOf`, and cheaper: exp(-x) >= 1 - x. Most are out by it, without an exp. */
const lowestPossible = (cost: Cost, now: number): number =>
  cost.seconds * (1 - (now - cost.shownAt) / DECAY);

/** What to expect of a server without history: as much as of the best that has one. */
function lowestKnown(servers: readonly Candidate[], now: number): number {
  let lowest = Infinity;
  for (const { cost } of servers) {
    if (cost.seconds === 0 || lowestPossible(cost, now) >= lowest) continue;
    lowest = Math.min(lowest, costOf(cost, now, 0));
  }
  return lowest === Infinity ? DEFAULT_COST : lowest;
}

/** The first from `start` on and round that is due whatever its cost: not picked for long, or
 *  silent for longer than it needs. A silence is tested each time that it has doubled. */
function findDue<S extends Candidate>(servers: readonly S[], start: number, now: number) {
  for (let i = 0; i < servers.length; i += 1) {
    const server = turned(servers, start, i);
    const { pickedAt, waiting, silentSince, seconds } = server.cost;
    const left = now - pickedAt; // alone
    if (left < PATIENCE) continue;
    const isSilent = waiting > 0 && now - silentSince > Math.max(PATIENCE, seconds);
    if (left >= TRY_AGAIN || (isSilent && left >= pickedAt - silentSince)) return server;
  }
  return undefined;
}

/** The `i`th of `items` when `start` is counted as the first. */
function turned<T>(items: readonly T[], start: number, i: number): T {
  const place = start + i;
  return at(items, place < items.length ? place : place - items.length);
}

/** Of the lowest cost x (open + 1) per weight; of those alike, the first from `start` on. */
function cheapest<S extends Candidate>(servers: readonly S[], start: number, now: number): S {
  let best = at(servers, 0);
  let lowest = Infinity;
  let unknown = 0; // looked up only when a server is met that needs it
  for (let i = 0; i < servers.length; i += 1) {
    const server = turned(servers, start, i);
    const { cost } = server;
    const share = (server.open + 1) / server.weight;
    if (lowestPossible(cost, now) * share >= lowest) continue;
    if (cost.seconds === 0 && unknown === 0) unknown = lowestKnown(servers, now);
    const load = costOf(cost, now, unknown) * share;
    if (load >= lowest) continue;
    lowest = load;
    best = server;
  }
  return best;
}

// ─── Health ──────────────────────────────────────────────────────────────────
// Is a server up? Two questions, each with its own count of failures in a row: does it accept
// (`refused`), and does it answer (`silent`)? Only checks bring a server up. Clients may help to
// take it down, no faster than checks would; what they send, and how they leave, never counts.
// `learn` decides and is pure; `Health` runs one check of a server at a time, on a given clock.

/** A server's health, and where its checks stand. What is not marked is written here alone. */
export class HealthState {
  up = true;
  since: number; // when it went up or down, in seconds on the balancer's clock, as all times here
  why = ""; // it is down; "" while it is up
  refused = 0; // failures in a row to accept
  silent = 0; // and to answer
  passed = 0; // checks in a row
  failing = false; // the last check failed
  wrong = false; // a check got other bytes than it wants, which nothing clears but a pass
  clearableSince = Infinity; // the first byte of a client who has dialled since clears `silent`
  dialCountedAt = -Infinity; // the last client's dial that counted as a failure
  received = 0; // bytes that it has given, counted by the relay
  receivedBefore = 0; // `received` as its row of failures began; while down: at the last check
  reached = false; // once: "address not available" is then our shortage and not its absence
  provedAt = -Infinity; // when it last gave a byte, as the sweep sees, or passed a check that asks
  lastCheck: { readonly result: string; readonly at: number } | undefined = undefined;
  begunAt = -Infinity; // when the last check began
  hurriedAt = -Infinity; // when the last one began that a suspicion had made due
  suspected = false; // it closed at once, or let a client wait: the next check looks closely
  lookedClosely = false; // the last check did
  lineMoved = false; // since the last check began: first byte on a connection dialled before it
  overtaken = false; // and one dialled after it did
  cancelCheck: (() => void) | undefined = undefined; // of the one under way
  cancelTimer: (() => void) | undefined = undefined; // of the next one; none: it is not watched
  constructor(now: number) {
    this.since = now;
  }
}

/** How servers are checked, and the rules by which they are judged. Times in seconds. */
export interface HealthSettings {
  readonly interval: number;
  readonly fall: number;
  readonly rise: number;
  readonly onlyWhoFailed: boolean; // nobody that works is checked (`--check none`)
  /** Which silence a client's first byte clears: a closed check is one that got no byte. */
  readonly clears: "any silence" | "a closed check" | "nothing";
  readonly asks: boolean; // it sends or expects something; a bare connect holds, when in doubt
  readonly elsewhere: boolean; // at another port, where it cannot tell whether the server accepts
}
export type HealthRules = Omit<HealthSettings, "asks" | "elsewhere">;

/** `answered`: at another port; `queued`: no byte in time, but the server's line moves. */
type CheckSight =
  | { readonly kind: "passed" | "answered" | "queued" }
  | { readonly kind: "refused"; readonly why: string }
  | { readonly kind: "silent"; readonly why: string; readonly by: "time-out" | "close" | "wrong" };

/** What a client's connection may tell, and when that was dialled. */
type ClientSight =
  | { readonly kind: "dial failed"; readonly why: string; readonly dialledAt: number }
  | { readonly kind: "dial accepted" | "first byte"; readonly dialledAt: number };
export type Sight = CheckSight | ClientSight;

/** Takes in one sight. Says whether the server went up or down by it. */
export function learn(state: HealthState, sight: Sight, now: number, rules: HealthRules) {
  takeIn(state, sight, now, rules);
  const goesUp = !state.up && state.passed >= rules.rise;
  const goesDown = state.up && Math.max(state.refused, state.silent) >= rules.fall;
  if (goesUp || goesDown) {
    state.up = goesUp;
    state.since = now;
  }
  if (state.up) state.why = "";
  if (goesUp) return "up";
  return goesDown ? "down" : undefined;
}

/** Clients' sights count only while the server is up, and only of dials since it came up. */
function takeIn(state: HealthState, sight: Sight, now: number, rules: HealthRules): void {
  const isOfClient = "dialledAt" in sight;
  const counts = !isOfClient || (state.up && sight.dialledAt >= state.since);
  if (!isOfClient) state.failing = sight.kind === "refused" || sight.kind === "silent";
  switch (sight.kind) {
    case "passed":
      state.refused = 0;
      state.passed += 1;
      return clearSilence(state);
    case "answered":
      return clearSilence(state);
    case "queued":
      if (!state.wrong) state.silent = 0;
      return;
    case "refused":
      return countFailure(state, "refused", sight.why);
    case "silent":
      if (sight.by === "wrong") state.wrong = true;
      if (rules.clears === "any silence") state.clearableSince = now;
      if (rules.clears === "a closed check" && sight.by === "close") state.clearableSince = now;
      return countFailure(state, "silent", sight.why);
    case "dial failed":
      if (!counts || now - state.dialCountedAt < rules.interval / rules.fall) return;
      state.dialCountedAt = now;
      return countFailure(state, "refused", sight.why);
    case "dial accepted":
      state.reached = true;
      if (counts) state.refused = 0;
      return;
    case "first byte":
      if (counts && sight.dialledAt >= state.clearableSince && !state.wrong) clearSilence(state);
  }
}

function clearSilence(state: HealthState): void {
  state.silent = 0;
  state.wrong = false;
  state.clearableSince = Infinity;
}

function countFailure(state: HealthState, question: "refused" | "silent", why: string): void {
  if (state.refused === 0 && state.silent === 0) state.receivedBefore = state.received;
  state.passed = 0;
  state[question] += 1;
  state.why = why;
}

/** When the next check is due; Infinity: not before something happens. */
function nextCheckAt(state: HealthState, { interval, fall, onlyWhoFailed }: HealthRules): number {
  const { up, begunAt } = state;
  const soon = interval / fall;
  const hurried = state.suspected ? state.hurriedAt + interval : Infinity;
  if (up && state.failing) return Math.min(begunAt + soon, hurried);
  if (!up || !onlyWhoFailed) return Math.min(begunAt + interval, hurried);
  const afterDial = state.refused > 0 ? state.dialCountedAt + soon : Infinity;
  return Math.min(Math.max(afterDial, begunAt + soon), hurried);
}

/** Monotonic time, in seconds. The result of `after` takes its action back. */
export interface Clock {
  readonly now: () => number;
  readonly after: (seconds: number, action: () => void) => () => void;
}

type Report = (result: CheckResult) => void;
/** Does one check and reports once, or is cancelled by the function returned. */
export type Probe = (server: Server, hold: number, beside: boolean, report: Report) => () => void;

/** How a check went. `late` (we stood still) and `short` (of descriptors, ports) tell nothing. */
export type CheckResult = { readonly kind: "late" } | { readonly kind: "short" } | Finding;
type Finding =
  | { readonly kind: "passed" }
  | { readonly kind: "refused"; readonly why: string; readonly code: string }
  | Extract<CheckSight, { readonly kind: "silent" }>;

export type Teller = "check" | "client"; // who told that a server is up or down
const HOLD = 0.2; // the longest that a check which looks closely holds its connection, in seconds

interface HealthEvents {
  readonly changed: (server: Server, by: Teller) => void; // it went up or down
  readonly stillDown: (server: Server) => void; // one more check of it has failed
}

/** Watches servers: one check at a time for each, an interval after the last one began. */
export class Health {
  readonly #settings: HealthSettings;
  readonly #clock: Clock;
  readonly #probe: Probe;
  readonly #events: HealthEvents;
  constructor(settings: HealthSettings, clock: Clock, probe: Probe, events: HealthEvents) {
    this.#settings = settings;
    this.#clock = clock;
    this.#probe = probe;
    this.#events = events;
  }

  /** How long a connection must last without a byte before its end raises no suspicion. */
  get hold(): number {
    return Math.min(HOLD, this.#settings.interval / 2);
  }

  /** Checks it from then on. One without an address is down, and stays so. */
  watch(server: Server, delay: number): void {
    const { health, spec } = server;
    if (!spec.resolved) {
      health.up = false;
      health.since = this.#clock.now();
      health.why = "unresolved";
      return;
    }
    health.begunAt = this.#clock.now() + delay - this.#settings.interval;
    health.hurriedAt = -Infinity;
    health.cancelTimer = () => undefined;
    this.#schedule(server);
  }

  forget({ health }: Server): void {
    health.cancelTimer?.();
    health.cancelCheck?.();
    health.cancelTimer = undefined;
    health.cancelCheck = undefined;
  }

  /** A client's dial or first byte. To be called where it may count: see `learn`. */
  saw(server: Server, sight: ClientSight): void {
    const { health } = server;
    if (health.cancelTimer === undefined) return;
    if (sight.kind === "first byte") {
      if (sight.dialledAt < health.begunAt) health.lineMoved = true;
      else health.overtaken = true;
    }
    this.#learn(server, sight, "client");
    this.#schedule(server);
  }

  /** A server closed a connection at once, or a client gave up its dial: look closely, now. */
  suspect(server: Server): void {
    const { health } = server;
    if (health.cancelTimer === undefined || health.suspected) return;
    health.suspected = true;
    this.#schedule(server);
  }

  /** Whether a first byte may tell anything now; asked for each connection, so it is cheap. */
  caresForFirstBytes({ health }: Server): boolean {
    return health.silent > 0 || health.cancelCheck !== undefined;
  }

  /** Has the next check begin `at` its time, unless one is under way or `server` is forgotten. */
  #schedule(server: Server, at = nextCheckAt(server.health, this.#settings)): void {
    const { health } = server;
    if (health.cancelTimer === undefined || health.cancelCheck !== undefined) return;
    health.cancelTimer();
    health.cancelTimer = () => undefined;
    if (at === Infinity) return;
    const seconds = Math.max(0, at - this.#clock.now());
    health.cancelTimer = this.#clock.after(seconds, () => this.#check(server));
  }

  #check(server: Server): void {
    const { health } = server;
    const { asks, elsewhere } = this.#settings;
    const isInDoubt = health.suspected || health.silent > 0 || !health.up;
    const hold = !asks && isInDoubt ? this.hold : 0;
    const beside = elsewhere && (health.refused > 0 || !health.up);
    health.begunAt = this.#clock.now();
    if (health.suspected) health.hurriedAt = health.begunAt;
    health.lookedClosely = health.suspected;
    health.suspected = false;
    health.lineMoved = false;
    health.overtaken = false;
    health.cancelCheck = this.#probe(server, hold, beside, (result) => {
      health.cancelCheck = undefined;
      this.#take(server, result, beside);
    });
  }

  #take(server: Server, result: CheckResult, beside: boolean): void {
    const { health } = server;
    const { asks, elsewhere } = this.#settings;
    const now = this.#clock.now();
    if (result.kind === "late" || result.kind === "short") {
      health.suspected ||= health.lookedClosely;
      // late: we stood still, perhaps before we had asked
      return this.#schedule(server, result.kind === "late" ? now : undefined);
    }
    const wasDown = !health.up;
    const hasPassed = result.kind === "passed";
    health.lastCheck = { result: hasPassed ? "passed" : result.why, at: now };
    if (!hasPassed) server.stats.checkFailures += 1;
    if (hasPassed && asks) health.provedAt = now;
    if ((beside || !elsewhere) && result.kind !== "refused") health.reached = true;
    const isAcceptUntested = elsewhere && !beside && health.refused > 0;
    const isFull = asks && !elsewhere && health.lineMoved && !health.overtaken;
    const isQueued = isFull && result.kind === "silent" && result.by === "time-out";
    let sight: Sight = isQueued ? { kind: "queued" } : result;
    if (hasPassed && isAcceptUntested) sight = { kind: "answered" };
    this.#learn(server, sight, "check");
    if (wasDown && !health.up && !hasPassed) this.#events.stillDown(server);
    if (!health.up) health.receivedBefore = health.received; // from now on others count
    this.#schedule(server);
  }

  #learn(server: Server, sight: Sight, by: Teller): void {
    const change = learn(server.health, sight, this.#clock.now(), this.#settings);
    if (change !== undefined) this.#events.changed(server, by);
  }
}

const COLDEST = 0.05; // the share of its weight with which a slow start begins
/** How much of its weight a server gets that has been back since `since`. */
export function warmth(since: number, now: number, slowStart: number): number {
  if (slowStart === 0) return 1;
  return Math.min(1, Math.max(COLDEST, (now - since) / slowStart));
}

/** Gives every server the weight that pickers see; says whether one has changed. */
export function weigh(servers: readonly Server[], now: number, slowStart: number): boolean {
  let hasChanged = false;
  for (const server of servers) {
    const weight = server.spec.weight * warmth(server.warmSince, now, slowStart);
    hasChanged ||= weight !== server.weight;
    server.weight = weight;
  }
  return hasChanged;
}

// ─── Checks ──────────────────────────────────────────────────────────────────
// What --check asks of a server, what counts as its answer, and one check of one server. Judging is
// pure. `runCheck` alone touches a socket; what its outcome means is for the health section to say.

/** What --check asks for, written as `text`. An anchored `expect` is how the answer must begin. */
export type CheckSpec = Readonly<
  { text: string } & (
    | { kind: "tcp" | "none" }
    | { kind: "http"; isSecure: boolean; port: number | undefined; path: string }
    | { kind: "exchange"; send: Buffer; expect: Buffer; isAnchored: boolean }
  )
>;

const MOST_ANSWER = 64 * 1024; // bytes of an answer are looked at
const ESCAPES: Readonly<Record<string, string>> = { r: "\r", n: "\n", t: "\t" };
export const readCheck: Kind<CheckSpec> = {
  expected:
    "tcp, ping, http[s][:[PORT][/PATH]], none, or SEND=>EXPECT with a text to expect, " +
    "which may begin with ^, and the escapes \\r \\n \\t \\xHH \\\\ \\^",
  read(text) {
    if (text === "tcp" || text === "none") return { kind: text, text };
    const exchange = text === "ping" ? "PING!=>^PONG!" : text;
    const arrow = exchange.indexOf("=>"); // the first counts; one in SEND is written =\x3e
    if (arrow >= 0) {
      const wanted = exchange.slice(arrow + 2);
      const isAnchored = wanted.startsWith("^");
      const send = bytesOf(exchange.slice(0, arrow));
      const expect = bytesOf(isAnchored ? wanted.slice(1) : wanted);
      if (send === undefined || expect === undefined || expect.length === 0) return undefined;
      return { kind: "exchange", text, send, expect, isAnchored };
    }
    const match = /^http(s?)(?::(\d{1,5})?(\/[\x21-\x7e]*)?)?$/.exec(text);
    if (match === null || text.includes("://")) return undefined; // a URL names no server of ours
    const [, letter, digits, path = "/"] = match;
    const port = digits === undefined ? undefined : serverPort.read(digits);
    if (digits !== undefined && port === undefined) return undefined;
    return { kind: "http", text, isSecure: letter === "s", port, path };
  },
};

/** `text` in UTF-8 with its escapes replaced; undefined where one is unknown. */
function bytesOf(text: string): Buffer | undefined {
  const bytes = Buffer.from(text).toString("latin1"); // a character for each byte
  if (!/^(?:[^\\]|\\x[\da-fA-F]{2}|\\[rnt\\^])*$/.test(bytes)) return undefined;
  const replaced = bytes.replace(/\\(?:x(..)|(.))/g, (_, hex?: string, letter = "") =>
    hex === undefined ? (ESCAPES[letter] ?? letter) : String.fromCharCode(parseInt(hex, 16)),
  );
  return Buffer.from(replaced, "latin1");
}

/** The port that the check itself names: then --check-port must not name one, too. */
export const ownPortOf = (spec: CheckSpec): number | undefined =>
  spec.kind === "http" ? spec.port : undefined;
/** Whether the check wants an answer; `tcp` and `none` only want a connection. */
export const asks = (spec: CheckSpec): boolean => spec.kind === "http" || spec.kind === "exchange";

export function questionOf(spec: CheckSpec, host: string): Buffer {
  if (spec.kind === "exchange") return spec.send;
  if (spec.kind !== "http") return Buffer.alloc(0);
  const name = host.includes(":") ? `[${host}]` : host;
  return Buffer.from(`GET ${spec.path} HTTP/1.0\r\nHost: ${name}\r\n\r\n`);
}

const STATUS = "HTTP/1.1 200 "; // any 2xx or 3xx passes, once the character behind it has come
/** What the answer so far amounts to. At the end, "more" is a wrong answer, or none of no bytes. */
export function judge(spec: CheckSpec, answer: Buffer): "more" | "passed" | "wrong" {
  if (spec.kind === "http") {
    const start = answer.toString("latin1", 0, STATUS.length);
    const completed = start + STATUS.slice(start.length);
    if (!/^HTTP\/\d\.\d \d{3}[ \r\n]$/.test(completed)) return "wrong";
    if (start.length < STATUS.length) return "more";
    return /^.{9}[23]/.test(start) ? "passed" : "wrong";
  }
  if (spec.kind !== "exchange") return answer.length > 0 ? "passed" : "more";
  const { expect, isAnchored } = spec;
  const seen = answer.subarray(0, isAnchored ? expect.length : MOST_ANSWER);
  if (seen.includes(expect)) return "passed";
  const mayCome = isAnchored ? beginsLike(seen, expect) : seen.length < MOST_ANSWER;
  return mayCome ? "more" : "wrong";
}

export interface CheckOrder {
  readonly address: Address;
  readonly host: string; // as it is configured, for Host and SNI
  readonly spec: CheckSpec;
  readonly connectSeconds: number; // how long the connect may take
  readonly seconds: number; // and all of it
  readonly holdSeconds: number; // a check that does not ask wants it to stay open so long
  readonly prefix: string; // goes before everything else: a PROXY header, or nothing
  readonly connect: World["connect"];
}

/** Checks a server once and reports once, never before it has returned what calls the check off. */
export function runCheck(order: CheckOrder, report: Report): () => void {
  const run = new CheckRun(order, report);
  return () => run.close();
}

/** What fails for want of something here says nothing about a server. */
const OUR_SHORTAGES: readonly string[] = ["EMFILE", "ENFILE", "ENOBUFS", "ENOMEM"];
const PASSED: CheckResult = { kind: "passed" };
const UNCONNECTED: CheckResult = { kind: "refused", why: "no connection in time", code: "" };

class CheckRun {
  readonly #order: CheckOrder;
  readonly #report: Report;
  readonly #deadline: number; // when all must be over, in ms
  readonly #plain: Socket;
  #socket: Socket; // speaks over the plain one: itself, or TLS
  #isAccepted = false;
  #answer: Buffer = NOTHING;
  #cancelWait = (): void => undefined;
  #isOver = false;
  constructor(order: CheckOrder, report: Report) {
    this.#order = order;
    this.#report = report;
    this.#deadline = performance.now() + order.seconds * 1000;
    this.#plain = order.connect({ ...order.address, autoSelectFamily: false });
    this.#socket = this.#plain;
    this.#plain.on("error", (error) => this.#failed(error));
    this.#plain.on("connect", () => this.#connected());
    this.#wait(order.connectSeconds * 1000, () => this.#finish(UNCONNECTED));
  }

  close(): void {
    this.#isOver = true; // nothing is reported any more
    this.#cancelWait();
    this.#socket.destroy();
    this.#plain.destroy();
  }

  #finish(result: CheckResult): void {
    if (this.#isOver) return;
    this.close();
    this.#report(result);
  }

  /** Pronounces `verdict` in `ms` and a loop's turn later: what lay in the kernel is read first. */
  #wait(ms: number, verdict: () => void): void {
    this.#cancelWait();
    const due = performance.now() + ms;
    const timer = setTimeout(() => {
      if (performance.now() - due > STOOD_STILL * 1000) return this.#finish({ kind: "late" });
      const immediate = setImmediate(verdict);
      this.#cancelWait = () => clearImmediate(immediate);
    }, ms);
    this.#cancelWait = () => clearTimeout(timer);
  }

  #connected(): void {
    const { address, spec, host, prefix, holdSeconds } = this.#order;
    if (this.#isOver) return;
    if (isSelfConnected(this.#plain, address.port)) return this.#failed(new Error(MET_ITSELF));
    this.#isAccepted = true;
    if (prefix !== "") this.#plain.write(prefix);
    if (!asks(spec) && holdSeconds === 0) return this.#finish(PASSED);
    if (spec.kind === "http" && spec.isSecure) {
      const name = isIP(host) === 0 ? { servername: host } : {}; // SNI is for names only
      // the certificate is not verified: the check asks who answers
      this.#socket = secure({ socket: this.#plain, rejectUnauthorized: false, ...name });
      this.#socket.on("error", (error) => this.#failed(error));
    }
    const closed = (): void => this.#unanswered("accepted, and closed without a byte", "close");
    this.#socket.on("data", (chunk: Buffer) => {
      this.#answer = Buffer.concat([this.#answer, chunk]);
      const judgement = judge(spec, this.#answer);
      if (judgement === "passed") this.#finish(PASSED);
      if (judgement === "wrong") this.#unanswered("", "close");
    });
    this.#socket.on("end", closed).on("close", closed);
    if (!asks(spec)) return this.#wait(holdSeconds * 1000, () => this.#finish(PASSED));
    const question = questionOf(spec, host);
    if (question.length > 0) this.#socket.write(question);
    const left = Math.max(0, this.#deadline - performance.now());
    this.#wait(left, () => this.#unanswered("no answer in time", "time-out"));
  }

  /** Nothing more will come: what has come so far is a wrong answer, else there was none. */
  #unanswered(why: string, by: "close" | "time-out"): void {
    if (this.#answer.length === 0) return this.#finish({ kind: "silent", why, by });
    const start = this.#answer.toString("latin1", 0, 40);
    const [, status] = /^HTTP\/\d\.\d (\d{3})\s/.exec(start) ?? [];
    const isStatus = this.#order.spec.kind === "http" && status !== undefined;
    const other = `another answer than expected: ${JSON.stringify(start)}`;
    this.#finish({ kind: "silent", why: isStatus ? `status ${status}` : other, by: "wrong" });
  }

  #failed(error: Error): void {
    const code = codeOf(error);
    const [, tlsReason] = /:SSL routines:[^:]*:([^:]+)/.exec(error.message) ?? []; // OpenSSL's
    const why = tlsReason === undefined ? reasonOf(error) : `TLS: ${tlsReason}`;
    if (OUR_SHORTAGES.includes(code)) return this.#finish({ kind: "short" });
    // nobody refuses by a reset: it came as soon as the connection stood, before we had looked
    if (code === "ECONNRESET") this.#isAccepted = true;
    if (this.#isAccepted) this.#unanswered(`accepted, then: ${why}`, "close");
    else this.#finish({ kind: "refused", why, code });
  }
}

const MET_ITSELF = "connected to itself: nobody listens";
const [lowest = 0, highest = 65535] = dialPorts();
/** On its way to a free port of this machine, a connection may meet itself (RFC 9293, 3.5). */
const isSelfConnected = (socket: Socket, port: number): boolean =>
  port >= lowest && // first: each word from the socket costs a call of the system
  port <= highest &&
  socket.localPort === port &&
  socket.localAddress === socket.remoteAddress;

/** From the first to the last port that this machine dials from, where Linux tells us. */
function dialPorts(): number[] {
  try {
    return readFileSync("/proc/sys/net/ipv4/ip_local_port_range", "utf8").split("\t").map(Number);
  } catch {
    return [];
  }
}

// ─── Places ──────────────────────────────────────────────────────────────────
// Who may go where: which servers take clients now, how many connections each has, and who waits in
// which order. Pure: it sees no socket and no clock. A place is taken at the pick and left once.

export type Attempt = { readonly server: Server; readonly why: string }; // a dial that failed
/** A client that wants a place, and where it has failed already. */
export type Guest = { readonly clientAddress: string; readonly tried: readonly Attempt[] };
const MOST_TRIED = 8; // servers are tried for one client; then there is none for it
const isEnabled = ({ draining, spec }: Server): boolean =>
  !draining && spec.weight > 0 && spec.resolved;
const takesClients = (server: Server): boolean => server.health.up && isEnabled(server);

export class Places<G extends Guest> {
  #primaries: readonly Server[] = [];
  #backups: readonly Server[] = [];
  readonly #limit: number;
  #pick: Picker | undefined;
  #sticky = false;
  #serving: readonly Server[] | undefined; // for who has not failed anywhere, until `refresh`
  #free: readonly Server[] | undefined; // those of them with a place; undefined: to be found anew
  readonly #line = new Map<G, Server | undefined>(); // those that wait, in order
  readonly #lines = new Map<Server, Set<G>>(); // if sticky, also by the server each belongs to
  constructor(limit: number) {
    this.#limit = limit || Infinity; // connections per server at once; 0 is no limit
  }

  /** Picks by `pick` from now on; `sticky`: it is always the same server for the same client. */
  setPicker(pick: Picker, sticky: boolean): void {
    this.#pick = pick;
    this.#sticky = sticky;
    this.refresh();
  }

  setServers(servers: readonly Server[]): void {
    this.#primaries = servers.filter(({ spec }) => !spec.backup);
    this.#backups = servers.filter(({ spec }) => spec.backup);
    this.refresh();
  }

  /** To be called when a server may take clients now, or not any more, or weighs something else. */
  refresh(): void {
    this.#serving = undefined;
    this.#free = undefined;
    this.#lines.clear();
    if (!this.#sticky) return;
    for (const guest of this.#line.keys()) this.#wait(guest, this.#choose(guest));
  }

  /** Finds `guest` a server and takes a place there; else it waits in line, or there is `none`. */
  enter(guest: G): Server | "waits" | "none" {
    const choice = this.#choose(guest);
    if (choice === "none") return "none";
    if (choice !== "anybody" && choice.open < this.#limit) return this.#take(choice);
    this.#wait(guest, choice);
    return "waits";
  }

  /** Gives up a place at `server`. Somebody in line may be admitted then. */
  leave(server: Server): void {
    if (server.open === this.#limit) this.#free = undefined;
    server.open -= 1;
  }

  forget(guest: G): void {
    const server = this.#line.get(guest);
    this.#line.delete(guest);
    if (server !== undefined) this.#lines.get(server)?.delete(guest);
  }

  /** The first in line who can be served, at `server` if that is given; taken out of the line. */
  admit(server?: Server): { readonly guest: G; readonly to: Server | "none" } | undefined {
    if (this.#line.size === 0) return undefined;
    const isOwn = this.#sticky && server !== undefined;
    const line = isOwn ? this.#lines.get(server) : this.#line;
    let newcomersWait = false;
    for (const guest of line?.keys() ?? []) {
      const isNewcomer = guest.tried.length === 0 && !this.#sticky;
      if (isNewcomer && newcomersWait) continue; // as the one before it
      const choice = this.#choose(guest);
      const waits = choice === "anybody" || (choice !== "none" && choice.open >= this.#limit);
      if (isNewcomer && waits) newcomersWait = true;
      if (waits) continue;
      this.forget(guest);
      return { guest, to: choice === "none" ? "none" : this.#take(choice) };
    }
    return undefined;
  }

  #take(server: Server): Server {
    server.open += 1;
    server.stats.total += 1;
    if (server.open === this.#limit) this.#free = undefined;
    return server;
  }

  #wait(guest: G, choice: Server | "anybody" | "none"): void {
    const server = typeof choice === "object" ? choice : undefined;
    this.#line.set(guest, server);
    if (server === undefined) return;
    const line = this.#lines.get(server) ?? new Set();
    this.#lines.set(server, line.add(guest));
  }

  /** One server: go there or, if full, wait for it. `anybody`: all are full, and any will do. */
  #choose(guest: G): Server | "anybody" | "none" {
    const serving = this.#servingFor(guest);
    if (serving.length === 0 || guest.tried.length >= MOST_TRIED) return "none";
    const candidates = this.#sticky ? serving : this.#freeOf(serving);
    if (candidates.length === 0) return "anybody";
    const server: Server | undefined = this.#pick?.(candidates, guest.clientAddress);
    if (server === undefined) throw new TypeError("the algorithm picked no server"); // a bug
    return server;
  }

  #freeOf(serving: readonly Server[]): readonly Server[] {
    if (this.#limit === Infinity) return serving;
    if (serving === this.#serving && this.#free !== undefined) return this.#free;
    const free = serving.filter(({ open }) => open < this.#limit);
    if (serving === this.#serving) this.#free = free;
    return free;
  }

  /** Backups are for those who have failed at all others, and for the time when no other serves.
   *  With no server left up, one that is down may still be better than none. */
  #servingFor({ tried }: G): readonly Server[] {
    if (tried.length === 0 && this.#serving !== undefined) return this.#serving;
    const isTried = (server: Server): boolean => tried.some((attempt) => attempt.server === server);
    const among = (servers: readonly Server[], mayServe: (server: Server) => boolean): Server[] =>
      servers.filter((server) => mayServe(server) && !isTried(server));
    const isLastTry = tried.length === MOST_TRIED - 1;
    let serving = isLastTry ? among(this.#backups, takesClients) : [];
    if (serving.length === 0) serving = among(this.#primaries, takesClients);
    if (serving.length === 0) serving = among(this.#backups, takesClients);
    if (serving.length === 0) serving = among(this.#primaries, isEnabled);
    if (serving.length === 0) serving = among(this.#backups, isEnabled);
    if (tried.length === 0) this.#serving = serving;
    return serving;
  }
}

// ─── PROXY protocol ──────────────────────────────────────────────────────────
// How balancers tell each other whom the bytes come from (HAProxy's doc/proxy-protocol.txt). We
// write version 1 and read both. Pure: bytes and addresses in, a verdict out.

export const PROXY_UNKNOWN = "PROXY UNKNOWN\r\n";
/** `::ffff:10.0.0.1` is 10.0.0.1, as a socket that listens on both families has it. */
export const plainHost = (host: string): string => host.replace(/^::ffff:(?=\d+\.)/i, "");

/** The header (version 1). Where the families differ, the IPv4 address is written as IPv6. */
export function proxyHeader(from: Address, to: Address): string {
  const hosts = [from.host, to.host].map((host) => plainHost(host).replace(/%.*$/, "")); // no zone
  const families = hosts.map(isIP);
  if (families.includes(0)) return PROXY_UNKNOWN;
  const family = families.includes(6) ? 6 : 4;
  const [source, target] = hosts.map((host) => {
    if (isIP(host) >= family) return host;
    const [a = 0, b = 0, c = 0, d = 0] = host.split(".").map(Number);
    return `::ffff:${((a << 8) | b).toString(16)}:${((c << 8) | d).toString(16)}`; // without dots
  });
  return `PROXY TCP${family} ${source} ${target} ${from.port} ${to.port}\r\n`;
}

/** `done`: a header of `length` bytes; without a `client` it is whoever has connected. */
export type ProxyReading =
  | { readonly kind: "more" }
  | { readonly kind: "bad" }
  | { readonly kind: "done"; readonly length: number; readonly client: Address | undefined };

const MORE: ProxyReading = { kind: "more" };
const BAD: ProxyReading = { kind: "bad" };
const SIGNATURE_V1 = Buffer.from("PROXY ");
const SIGNATURE_V2 = Buffer.from("\r\n\r\n\0\r\nQUIT\n");
const LONGEST_V1 = 107; // bytes of version 1, with its line end
/** Reads a PROXY header, as far as it has come; what is malformed is bad as soon as it shows. */
export function readProxyHeader(bytes: Buffer): ProxyReading {
  if (beginsLike(bytes, SIGNATURE_V1)) return readV1(bytes.toString("latin1", 0, LONGEST_V1));
  return beginsLike(bytes, SIGNATURE_V2) ? readV2(bytes) : BAD;
}

/** Whether `bytes` begin with `wanted`, or are its beginning. */
function beginsLike(bytes: Buffer, wanted: Buffer): boolean {
  const length = Math.min(bytes.length, wanted.length);
  return bytes.subarray(0, length).equals(wanted.subarray(0, length));
}

const isPort = (text: string): boolean => /^(0|[1-9]\d{0,4})$/.test(text) && Number(text) <= 65535;
/** A line, PROXY TCP4 192.0.2.1 192.0.2.2 51234 443: each word is judged as it comes. */
function readV1(text: string): ProxyReading {
  if (text.length < SIGNATURE_V1.length) return MORE;
  const end = text.indexOf("\r\n");
  if (end < 0 && text.length === LONGEST_V1) return BAD;
  const line = end < 0 ? text.replace(/\r$/, "") : text.slice(0, end); // CR ends the last word, too
  const isCut = line === text;
  const [, name = "", ...words] = line.split(" ");
  const length = end + 2;
  if (name === "UNKNOWN") return end < 0 ? MORE : { kind: "done", length, client: undefined };
  const mayBecome = ["TCP4", "TCP6", "UNKNOWN"].some((known) => known.startsWith(name));
  if (isCut && words.length === 0) return mayBecome ? MORE : BAD;
  if (!/^TCP[46]$/.test(name) || words.length > 4 || (!isCut && words.length < 4)) return BAD;
  const letters = name === "TCP4" ? /^[\d.]{0,15}$/ : /^[\da-fA-F:.]{0,45}$/;
  const areGood = words.every((word, place) => {
    const mayGoOn = isCut && place === words.length - 1;
    if (place >= 2) return isPort(word) || (mayGoOn && word === "");
    return letters.test(word) && (mayGoOn || `TCP${isIP(word)}` === name);
  });
  if (!areGood) return BAD;
  if (end < 0) return MORE;
  const [host = "", , port] = words;
  return { kind: "done", length, client: clientAt(host, Number(port)) };
}

const familyOf = (host: string): "ipv4" | "ipv6" => (isIP(host) === 6 ? "ipv6" : "ipv4");
/** The client, its address in the one way in which sockets write it. */
function clientAt(address: string, port: number): Address {
  const { address: host } = new SocketAddress({ address, family: familyOf(address) });
  return { host: plainHost(host), port };
}

const HEAD_V2 = 16; // bytes before the addresses
const ADDRESS_BYTES = [0, 12, 36, 216]; // by family: none, IPv4, IPv6, UNIX
/** Signature, version and command, family and transport, length, addresses; TLVs are skipped. */
function readV2(bytes: Buffer): ProxyReading {
  const [command, transport] = bytes.subarray(SIGNATURE_V2.length);
  if (command === undefined) return MORE;
  if (command !== 0x20 && command !== 0x21) return BAD;
  if (transport === undefined) return MORE;
  const isLocal = command === 0x20; // a check by whoever is before us; the rest says nothing
  const least = isLocal ? 0 : ADDRESS_BYTES[transport >> 4];
  if (least === undefined || (!isLocal && (transport & 15) > 2)) return BAD;
  if (bytes.length < HEAD_V2) return MORE;
  const size = bytes.readUInt16BE(HEAD_V2 - 2);
  if (size < least) return BAD;
  const length = HEAD_V2 + size;
  if (bytes.length < length) return MORE;
  const isTcp = !isLocal && (transport === 0x11 || transport === 0x21); // over IPv4, IPv6
  if (!isTcp) return { kind: "done", length, client: undefined };
  const hostBytes = transport === 0x11 ? 4 : 16;
  const source = bytes.subarray(HEAD_V2, HEAD_V2 + hostBytes);
  const groups = source.toString("hex").replace(/(....)(?=.)/g, "$1:"); // as in an IPv6 address
  const port = bytes.readUInt16BE(HEAD_V2 + 2 * hostBytes); // behind both hosts
  const client = clientAt(transport === 0x11 ? source.join(".") : groups, port);
  return { kind: "done", length, client };
}

export const cidrList: Kind<BlockList> = {
  expected: "networks such as 10.0.0.0/8,fd00::/8,192.0.2.7",
  read(text) {
    const list = new BlockList();
    for (const entry of text.split(",")) {
      const [written = "", digits, rest] = entry.trim().split("/");
      const host = plainHost(written);
      if (isIP(host) === 0 || host.includes("%") || rest !== undefined) return undefined;
      const shift = host === written ? 0 : 96; // ::ffff:10.0.0.0/104 is 10.0.0.0/8
      const most = shift + (isIP(host) === 4 ? 32 : 128);
      const prefix = digits === undefined ? most : wholeNumber(shift, most).read(digits);
      if (prefix === undefined) return undefined;
      list.addSubnet(host, prefix - shift, familyOf(host));
    }
    return list;
  },
};

export function isWithin(list: BlockList, host: string): boolean {
  const plain = plainHost(host).replace(/%.*$/, "");
  return isIP(plain) !== 0 && list.check(plain, familyOf(plain));
}

// ─── Relay ───────────────────────────────────────────────────────────────────
// A connection is two sockets, bytes both ways, a stage, and one way out: whatever happens ends in
// `#settle` once both sockets are closed. What it needs of the world it asks of its owner. Handlers
// are shared and find theirs through the socket: closures would cost more than the forwarding.

/** How an accepted connection may end, and how many have at the start. */
const NO_ENDS = {
  ok: 0,
  client_reset: 0,
  server_reset: 0,
  idle_timeout: 0,
  no_server: 0,
  queue_timeout: 0,
  limit: 0,
  bad_proxy: 0,
  unanswered: 0,
  drain_forced: 0,
};
export type Reason = keyof typeof NO_ENDS;
export const REASONS = Object.keys(NO_ENDS).filter((key): key is Reason => key in NO_ENDS);
/** Bytes that are held back for a slow reader before its source is paused; also a small read. */
const BUFFER_SIZE = 64 * 1024;
/** What a connection needs of a socket. A `Socket` is one; so is a test's recorder. */
export type Wire = Pick<Socket, Writes | Reads | Ends | "writableFinished" | "once" | "connection">;
type Writes = "write" | "cork" | "uncork" | "writable" | "writableLength" | "writableNeedDrain";
type Reads = "pause" | "resume" | "unshift" | "connecting" | "localAddress" | "localPort";
type Ends = "end" | "destroy" | "resetAndDestroy" | "destroyed" | "writableEnded";
/** `greeting`: a PROXY header comes first; `queued`: no place; `closing`: its end is decided. */
export type Stage = "greeting" | "queued" | "dialling" | "relaying" | "closing" | "ended";
export type Owner = Pick<LoadBalancer, Means | Moves> & { readonly health: Watch; options: Wishes };
type Watch = Pick<Health, "saw" | "suspect" | "caresForFirstBytes" | "hold">;
type Wishes = Pick<LoadBalancerOptions, "abortOnClose">;
type Means = "buffers" | "turnTimes" | "now" | "headerFor" | "soon" | "resetLater";
type Moves = "place" | "rest" | "left" | "dialFailed" | "connected" | "gone";
/** One direction: bytes so far, whether some moved since the last sweep, whether it has ended. */
type Flow = { bytes: number; moved: boolean; ended: boolean };

/** What a connection starts with, shared by all: most never put anything in. */
const NO_CHUNKS: Buffer[] = [];
const NO_ATTEMPTS: readonly Attempt[] = [];
const NOTHING = Buffer.alloc(0);

export class Connection implements Guest {
  readonly owner: Owner;
  readonly client: Wire;
  source: Address; // whom the bytes come from: the peer, or whom its PROXY header names
  readonly acceptedAt: number;
  stage: Stage = "queued";
  reason: Reason | undefined = undefined;
  upstream: Wire | undefined = undefined;
  server: Server | undefined = undefined; // where it has a place
  reached: Server | undefined = undefined; // where it was connected to
  tried: readonly Attempt[] = NO_ATTEMPTS;
  countedAs = ""; // the key under which its client's connections are counted; "" while it is not
  ranShort = false; // a dial failed for want of our own descriptors or ports
  readonly up: Flow = { bytes: 0, moved: false, ended: false };
  readonly down: Flow = { bytes: 0, moved: false, ended: false };
  /** When things happened; 0 for not yet. A turn begins with `askedAt`; it ends, and that is 0. */
  dialledAt = 0;
  connectedAt = 0;
  firstByteAt = 0;
  askedAt = 0;
  quietSince: number;
  queuedAt = 0;
  queuedFor = 0; // seconds, all stays in the queue together
  #kept = NO_CHUNKS; // client's bytes that no server has been given yet
  #keptBytes = 0;
  #isPutOff = false;
  #isRereading = false;
  #clientClosed = false;
  #endsUnanswered = false;
  constructor(owner: Owner, client: Wire, source: Address) {
    this.owner = owner;
    this.client = client;
    this.source = source;
    this.acceptedAt = owner.now();
    this.quietSince = this.acceptedAt;
  }

  get clientAddress(): string {
    return this.source.host;
  }
  get isSilent(): boolean {
    return this.up.bytes + this.#keptBytes === 0;
  }

  greet(): void {
    this.stage = "greeting";
  }
  queue(): void {
    this.stage = "queued";
    this.queuedAt = this.owner.now();
  }

  dial(server: Server, wire: Wire): void {
    this.#leaveQueue();
    this.stage = "dialling";
    this.server = server;
    this.upstream = wire;
    this.dialledAt = this.owner.now();
    this.connectedAt = 0;
  }

  #leaveQueue(): void {
    if (this.queuedAt > 0) this.queuedFor += this.owner.now() - this.queuedAt;
    this.queuedAt = 0;
  }

  connected(): void {
    const { server, upstream } = this;
    if (upstream === undefined || server === undefined) return;
    this.connectedAt = this.owner.now();
    this.quietSince = this.connectedAt;
    this.reached = server;
    this.owner.connected(this, server);
    const isLate = this.stage === "closing"; // its client has left: what it said still arrives
    if (!isLate) this.stage = "relaying";
    const header = this.owner.headerFor(this);
    if (header !== "") upstream.write(header);
    if (!this.isSilent) this.#beginTurn(server);
    this.#flush(upstream);
    if (isLate) this.owner.resetLater(upstream);
    else if (this.up.ended) this.#putOff();
  }

  dialFailed(error: Error): void {
    const { server, upstream } = this;
    if (server === undefined) return;
    if (upstream !== undefined) upstream.connection = undefined; // which hears no more of it
    upstream?.destroy();
    this.upstream = undefined;
    this.tried = [...this.tried, { server, why: reasonOf(error) }];
    if (this.owner.dialFailed(this, server, error)) this.ranShort = true;
    this.#leave();
    if (this.stage === "closing") return this.#settle();
    if (this.up.ended && this.#hasLeft()) return this.close("client_reset");
    this.queue();
    this.owner.place(this);
  }

  // --- the client's side ---
  clientSent(chunk: Buffer): void {
    const { stage, upstream, server } = this;
    if (stage === "closing" || stage === "ended") return;
    if (HIDES_RESETS && this.client.writableEnded && this.#reread(chunk)) return;
    if (stage === "relaying" && upstream && this.askedAt === 0 && this.#keptBytes === 0) {
      if (server !== undefined) this.#beginTurn(server);
      return this.#sendUp(upstream, chunk);
    }
    // A server may answer early and close. Writing to it then fails, and would lose its last words:
    // so later chunks of a turn wait until what has come in during this turn of the loop is read.
    if (this.#kept === NO_CHUNKS) this.#kept = [chunk];
    else this.#kept.push(chunk);
    this.#keptBytes += chunk.length;
    if (this.#keptBytes >= BUFFER_SIZE && stage !== "greeting") this.client.pause();
    if (stage === "relaying") this.#putOff();
    if (stage === "greeting") this.#readGreeting();
  }

  #readGreeting(): void {
    const bytes = Buffer.concat(this.#kept);
    this.#kept = [bytes];
    const greeting = readProxyHeader(bytes);
    if (greeting.kind === "more") return;
    if (greeting.kind === "bad") return this.close("bad_proxy");
    if (greeting.client !== undefined) this.source = greeting.client;
    const rest = bytes.subarray(greeting.length);
    this.#kept = rest.length > 0 ? [rest] : NO_CHUNKS;
    this.#keptBytes = rest.length;
    if (rest.length < BUFFER_SIZE) this.client.resume();
    this.owner.rest(this);
    this.queue();
    this.owner.place(this);
  }

  clientFinished(): void {
    this.up.ended = true;
    if (this.stage === "greeting") return this.close(this.isSilent ? "client_reset" : "bad_proxy");
    // One that gives up in the queue has left as surely as one that resets, and is counted as such.
    if (this.stage === "queued" && this.#hasLeft()) return this.close("client_reset");
    if (this.stage === "dialling" && this.owner.options.abortOnClose) this.clientLost();
    if (this.stage === "relaying") this.#putOff();
  }

  #hasLeft(): boolean {
    return this.isSilent || this.owner.options.abortOnClose;
  }

  /** Before its server is there, too: a server that lets clients wait is suspect. */
  clientLost(): void {
    const { owner, server } = this;
    const hasWaited = owner.now() - this.dialledAt > owner.health.hold;
    if (this.stage === "dialling" && server && hasWaited) owner.health.suspect(server);
    this.close("client_reset");
  }

  // --- the server's side ---
  /** Returns false when no more should be read for now. */
  serverSent(size: number, buffer: Uint8Array): boolean {
    const { server, client, upstream, owner } = this;
    if (this.stage !== "relaying" || upstream === undefined) return false;
    if (server !== undefined) {
      server.health.received += size;
      if (this.down.bytes === 0) {
        this.firstByteAt = owner.now();
        if (owner.health.caresForFirstBytes(server))
          owner.health.saw(server, { kind: "first byte", dialledAt: this.dialledAt });
      }
      if (this.askedAt !== 0) this.#endTurn(server);
    }
    this.down.moved = true;
    this.down.bytes += size;
    if (!owner.buffers.writeTo(client, size, buffer)) {
      client.once("drain", onDrain);
      return false;
    }
    if (!HIDES_RESETS || !upstream.writableEnded) return true;
    owner.soon(upstream); // by then a reset behind these bytes shows as one
    return false;
  }

  serverFinished(): void {
    this.down.ended = true;
    if (this.stage !== "relaying") return;
    this.#suspectEarlyEnd();
    if (this.askedAt !== 0 && !this.up.ended) this.#endsUnanswered = true;
    this.#putOff();
  }

  serverLost(error: Error): void {
    if (this.connectedAt === 0) return this.dialFailed(error);
    if (this.stage === "relaying") this.#suspectEarlyEnd();
    this.close("server_reset");
  }

  /** A server that closes at once, unasked and without a byte, may not really have accepted. */
  #suspectEarlyEnd(): void {
    const { server, owner } = this;
    if (server === undefined || this.down.bytes > 0 || this.up.ended) return;
    if (owner.now() - this.connectedAt < owner.health.hold) owner.health.suspect(server);
  }

  #sendUp(upstream: Wire, chunk: Buffer): void {
    this.up.moved = true;
    this.up.bytes += chunk.length;
    if (this.server !== undefined) this.server.stats.bytesToServer += chunk.length;
    if (upstream.write(chunk)) return;
    this.client.pause();
    upstream.once("drain", onDrain);
  }

  #flush(upstream: Wire): void {
    const chunks = this.#kept;
    const wasFull = this.#keptBytes >= BUFFER_SIZE;
    this.#kept = NO_CHUNKS;
    this.#keptBytes = 0;
    if (chunks.length > 1) upstream.cork();
    for (const chunk of chunks) this.#sendUp(upstream, chunk);
    if (chunks.length > 1) upstream.uncork();
    if (wasFull && !upstream.writableNeedDrain) this.client.resume();
  }

  #beginTurn(server: Server): void {
    this.askedAt = this.owner.now();
    asked(server.cost, this.askedAt);
  }

  #endTurn({ cost, stats }: Server): void {
    const now = this.owner.now();
    const seconds = now - this.askedAt;
    answered(cost, this.askedAt, now);
    this.askedAt = 0;
    stats.turnTime = smooth(stats.turnTime, seconds);
    count(stats.turnTimes, seconds);
    count(this.owner.turnTimes, seconds);
  }

  #putOff(): void {
    if (this.#isPutOff) return;
    this.#isPutOff = true;
    this.owner.soon(this);
  }

  /** Writes and ends what was put off. Both ends at once need no shutdowns: one close each does. */
  turnEnds(): void {
    this.#isPutOff = false;
    const { client, upstream, up, down } = this;
    if (this.stage !== "relaying" || upstream === undefined) return;
    if (this.#keptBytes > 0) this.#flush(upstream);
    const isAllSaid = client.writableLength === 0 && upstream.writableLength === 0;
    if (up.ended && down.ended && isAllSaid) {
      this.#leave();
      client.destroy();
      upstream.destroy();
      return;
    }
    if (up.ended && !upstream.writableEnded) upstream.end();
    if (down.ended && !client.writableEnded) client.end();
  }

  /** Puts `chunk` back for the next turn, once: by then a reset behind it shows as one. */
  #reread(chunk: Buffer): boolean {
    this.#isRereading = !this.#isRereading;
    if (!this.#isRereading) return false;
    this.client.pause();
    this.client.unshift(chunk);
    this.owner.soon(this.client);
    return true;
  }

  /** What was held back for `wire` has been written: its source may go on. */
  drained(wire: Wire): void {
    if (this.stage === "closing" || this.stage === "ended") return;
    if (wire === this.client) this.upstream?.resume();
    else if (this.#keptBytes < BUFFER_SIZE) this.client.resume();
  }

  /** A side that is not read from shows no reset by itself; a write of nothing does. */
  askStoppedSide(): void {
    const { client, upstream, stage } = this;
    if (stage === "closing" || stage === "ended") return;
    const isFull = stage !== "relaying" && this.#keptBytes >= BUFFER_SIZE;
    let stopped = client.writableNeedDrain ? upstream : undefined;
    if (isFull || upstream?.writableNeedDrain) stopped = client;
    if (stopped?.writable && stopped.writableLength === 0) stopped.write(NOTHING);
  }

  isQuietFor(seconds: number, now: number): boolean {
    const { up, down } = this;
    if (up.moved || down.moved) this.quietSince = now;
    up.moved = false;
    down.moved = false;
    return this.stage === "relaying" && now - this.quietSince >= seconds;
  }

  /** Decides the end: each socket is closed as `reason` looks to it. The first reason stands. */
  close(reason: Reason): void {
    const { stage, upstream, client } = this;
    if (stage === "closing" || stage === "ended") return;
    const mayFlush = reason === "client_reset" || reason === "idle_timeout";
    if (mayFlush && stage === "relaying" && upstream) this.#flush(upstream);
    if (reason !== "client_reset" || stage !== "dialling") {
      this.#kept = NO_CHUNKS;
      this.#keptBytes = 0;
    }
    this.#leaveQueue();
    this.stage = "closing";
    this.reason = reason;
    this.owner.rest(this);
    for (const wire of [client, upstream]) {
      if (wire === undefined || wire.destroyed) continue;
      if (reason === "client_reset" || reason === "server_reset") this.#passOnReset(wire);
      else if (reason === "idle_timeout" && this.#mayEndCleanly(wire)) wire.destroy();
      else reset(wire);
    }
  }

  /** Half a reply must not look whole: an idle client gets a FIN only if its server proved well. */
  #mayEndCleanly(wire: Wire): boolean {
    const { client, upstream, server } = this;
    if (wire !== client) return wire.writableLength === 0;
    const isSent = client.writableLength === 0 && (upstream?.writableLength ?? 0) === 0;
    return isSent && server !== undefined && server.health.provedAt > this.quietSince;
  }

  /** What came before a reset goes first; a reset discards even what the kernel still holds. */
  #passOnReset(wire: Wire): void {
    const flow = wire === this.client ? this.down : this.up;
    const hasJustMoved = flow.moved || this.owner.now() - this.quietSince < GRACE;
    const isBusy = wire.connecting || wire.writableLength > 0 || isShuttingDown(wire);
    if (hasJustMoved || isBusy) this.owner.resetLater(wire);
    else reset(wire);
  }

  sideClosed(wire: Wire): void {
    if (wire === this.client) {
      this.#clientClosed = true;
      if (!this.up.ended) this.clientLost();
    } else if (wire === this.upstream) {
      if (this.stage === "dialling") return this.dialFailed(new Error("closed"));
      if (!this.down.ended) this.close("server_reset");
      this.upstream = undefined;
      this.#leave();
    }
    this.#settle();
  }

  /** Gives up its place, once; a turn that still waits for its answer will have none. */
  #leave(): void {
    const { server } = this;
    if (server === undefined) return;
    if (this.askedAt !== 0) forgotten(server.cost, this.askedAt);
    this.askedAt = 0;
    this.server = undefined;
    this.owner.left(this, server);
  }

  /** The only way to `ended`: both sides are closed. */
  #settle(): void {
    if (this.stage === "ended" || !this.#clientClosed || this.upstream !== undefined) return;
    this.#leave();
    this.stage = "ended";
    this.reason ??= this.#endsUnanswered ? "unanswered" : "ok";
    this.owner.gone(this);
  }
}

declare module "node:net" {
  interface Socket {
    connection?: Connection | undefined;
  }
}

// --- handlers, shared by all sockets ---
function handled(socket: Socket, connection: Connection): Socket {
  socket.connection = connection;
  return socket.on("error", onError).on("end", onEnd).on("close", onClose);
}

function onClientData(this: Socket, chunk: Buffer): void {
  this.connection?.clientSent(chunk);
}
function onDrain(this: Wire): void {
  this.connection?.drained(this);
}
function onClose(this: Socket): void {
  this.connection?.sideClosed(this);
}

function onConnect(this: Socket): void {
  const { connection } = this;
  if (connection === undefined) return;
  if (!isSelfConnected(this, connection.server?.address.port ?? 0)) return connection.connected();
  this.resetAndDestroy(); // so that the port is free again at once
  connection.dialFailed(new Error(MET_ITSELF));
}

function onEnd(this: Socket): void {
  if (HIDES_RESETS && !this.writableEnded && !this.destroyed) this.write(NOTHING);
  const { connection } = this;
  if (this === connection?.client) connection.clientFinished();
  else connection?.serverFinished();
}

function onError(this: Socket, error: Error): void {
  const { connection } = this;
  if (this === connection?.client) connection.clientLost();
  else connection?.serverLost(error);
}

/** Before libuv 1.52 (Node 20, 22), a reset behind data looks like an end: writing nothing asks. */
const [uvMajor = 0, uvMinor = 0] = (process.versions["uv"] ?? "").split(".").map(Number);
const HIDES_RESETS = uvMajor === 1 && uvMinor < 52;
/** Reading of a client must stop behind a chunk that is put back to be read once more. */
const CLIENT_HIGH_WATER_MARK = HIDES_RESETS ? 1 : BUFFER_SIZE;
const GRACE = 0.05; // seconds that the kernel has for bytes before a reset discards them
const LONGEST_GRACE = 2; // and for those that it has not taken yet

/** Its last bytes are with the kernel and the FIN is on its way: libuv refuses to reset it. */
const isShuttingDown = (wire: Wire): boolean =>
  wire.writableEnded && wire.writableLength === 0 && !wire.writableFinished;

function reset(wire: Wire): void {
  if (wire.connecting || isShuttingDown(wire)) wire.destroy();
  else wire.resetAndDestroy();
}

/** Sockets to be reset when what was written to them has had its chance to arrive. */
export function newResets(now: () => number) {
  const waiting = new Map<Wire, { readonly deadline: number; at: number }>();
  let timer: NodeJS.Timeout | undefined;
  const look = (time: number): void => {
    for (const [wire, when] of waiting) {
      if (wire.writableLength > 0) when.at = time + GRACE;
      if (time < Math.min(when.at, when.deadline) && !wire.destroyed) continue;
      waiting.delete(wire);
      if (!wire.destroyed) reset(wire);
    }
    if (waiting.size > 0) return;
    clearInterval(timer);
    timer = undefined;
  };
  return {
    add(wire: Wire): void {
      const time = now();
      wire.pause();
      waiting.set(wire, { deadline: time + LONGEST_GRACE, at: time + GRACE });
      timer ??= setInterval(() => look(now()), (GRACE / 2) * 1000);
    },
    allNow: (): void => look(Infinity),
  };
}

const BULK = 16 * 1024; // a read of so many bytes is a bulk transfer, worth a buffer of its own
const BULK_BUFFER_SIZE = 128 * 1024; // more costs less a byte, but each stalled reader holds one

/** The buffers into which servers' bytes are read. Small reads of all connections share one and are
 *  copied out at once: an idle connection holds none. A bulk transfer has one of its own, which is
 *  written as it stands, and read into again only if nothing of it was left queued. */
export class ReadBuffers {
  readonly #shared: Uint8Array = Buffer.allocUnsafeSlow(BUFFER_SIZE);
  #next = this.#shared;
  /** For `connect`: Node asks for the next buffer at the start, and after each callback. */
  readonly onread = {
    buffer: (): Uint8Array => {
      const next = this.#next;
      this.#next = this.#shared;
      return next;
    },
    callback(this: Socket, size: number, buffer: Uint8Array): boolean {
      return this.connection?.serverSent(size, buffer) ?? false;
    },
  };

  /** Writes the first `size` bytes of `buffer` to `wire`; false when it should not get more. */
  writeTo(wire: Wire, size: number, buffer: Uint8Array): boolean {
    const bytes = buffer.subarray(0, size);
    const isShared = buffer === this.#shared;
    wire.write(isShared ? Buffer.from(bytes) : bytes);
    if (size >= BULK) {
      const isFree = !isShared && wire.writableLength === 0;
      this.#next = isFree ? buffer : Buffer.allocUnsafeSlow(BULK_BUFFER_SIZE);
    }
    return wire.writableLength < BUFFER_SIZE;
  }
}

// ─── Dispatch ────────────────────────────────────────────────────────────────
// Where each client goes, as `Places` and `Health` decide; limits of an address, waits, and who is
// reset with a server. No socket is seen: whoever extends it (virtual time, too) accepts and dials.

/** What dispatch sees of a client's connection. */
type Travels = "clientAddress" | "tried" | "stage" | "server" | "countedAs" | "ranShort" | "queue";
export type Traveller = Pick<Connection, Travels> & { close(reason: Reason): void };

export abstract class Dispatcher<T extends Traveller> {
  readonly options: LoadBalancerOptions;
  readonly now: () => number;
  readonly health: Health;
  servers: readonly Server[] = []; // written by whoever extends it
  algorithm: Algorithm;
  protected readonly open = new Set<T>(); // whoever extends it adds, `gone` removes
  protected readonly counts = { accepted: 0, retries: 0, refusedByAddress: 0 }; // for people to see
  protected readonly places: Places<T>;
  protected readonly queue: Deadlines<T>; // those in line for a place
  protected readonly patients: Patients<T>;
  readonly #random: () => number;
  readonly #addresses = new Map<string, number>(); // how many connections each address has
  constructor(options: LoadBalancerOptions, clock: Clock, patience: Clock) {
    const { queueTimeout, retryFor, seed } = options;
    this.options = options;
    this.now = clock.now;
    this.algorithm = options.algorithm;
    this.#random = mulberry32(seed);
    this.places = new Places(options.serverConnections);
    this.queue = new Deadlines(queueTimeout, patience, (late) => late.close("queue_timeout"));
    this.patients = new Patients(Math.min(retryFor, queueTimeout), this, patience);
    this.health = new Health(healthSettings(options), clock, (...order) => this.probe(...order), {
      changed: (server, by) => this.healthChanged(server, by),
      stillDown: (server) => this.#resetConnectionsOf(server),
    });
  }

  /** Sets out for `server`. Whoever gets there, or fails, says so by `accepted` or `refused`. */
  protected abstract dial(client: T, server: Server): void;
  protected abstract probe(...order: Parameters<Probe>): () => void;

  /** Dials a server, or queues or closes; counted once among those of its client's address. */
  place(client: T): void {
    const most = this.options.clientConnections;
    if (most > 0 && client.countedAs === "") {
      const key = addressKey(client.clientAddress);
      const open = this.#addresses.get(key) ?? 0;
      if (open >= most) {
        this.counts.refusedByAddress += 1;
        return client.close("limit");
      }
      this.#addresses.set(key, open + 1);
      client.countedAs = key;
    }
    const place = this.places.enter(client);
    if (place !== "waits") return this.#goTo(client, place);
    client.queue();
    this.queue.add(client);
  }

  #goTo(client: T, server: Server | "none"): void {
    if (server !== "none") return this.dial(client, server);
    if (client.ranShort) client.close("limit");
    else if (!this.patients.take(client)) client.close("no_server");
  }

  #admitOne(server?: Server): boolean {
    const admission = this.places.admit(server);
    if (admission === undefined) return false;
    this.queue.delete(admission.guest);
    this.#goTo(admission.guest, admission.to);
    return true;
  }

  /** It waits for nothing any more. */
  rest(client: T): void {
    this.patients.forget(client);
    this.queue.delete(client);
    this.places.forget(client);
  }

  /** It holds its place at `server` no longer; once for each place. */
  left(_: T, server: Server): void {
    this.places.leave(server);
    this.#admitOne(server);
  }

  gone(client: T): void {
    const others = (this.#addresses.get(client.countedAs) ?? 1) - 1;
    if (others > 0) this.#addresses.set(client.countedAs, others);
    else this.#addresses.delete(client.countedAs);
    this.open.delete(client);
  }

  protected refused(server: Server, why: string, dialledAt: number): void {
    server.stats.connectErrors += 1;
    // as a turn of that length: no fast failure may look fast to an algorithm
    took(server.cost, dialledAt, this.options.connectTimeout, this.now());
    this.health.saw(server, { kind: "dial failed", why, dialledAt });
  }

  protected accepted(server: Server, dialledAt: number): void {
    if (server.health.refused > 0 || !server.health.reached)
      this.health.saw(server, { kind: "dial accepted", dialledAt });
  }

  setAlgorithm(name: Algorithm): void {
    const make: (sources: Sources) => Picker = algorithms[name];
    this.algorithm = name;
    this.places.setPicker(make({ random: this.#random, now: this.now }), STICKY.has(name));
    this.serversChanged();
  }

  protected serversChanged(): void {
    weigh(this.servers, this.now(), this.options.slowStart);
    this.places.refresh();
    while (this.#admitOne()) continue;
  }

  protected healthChanged(server: Server, _: Teller): void {
    const { up } = server.health;
    if (up) server.warmSince = this.now();
    this.serversChanged(); // first, or who waits would get the places that the reset frees
    if (up) this.patients.retry();
    else this.#resetConnectionsOf(server);
  }

  /** With `--on-down reset`, unless the server still gives bytes to somebody. */
  #resetConnectionsOf(server: Server): void {
    const { received, receivedBefore } = server.health;
    if (this.options.onDown !== "reset" || received > receivedBefore) return;
    const isThere = (client: T) => client.server === server && client.stage === "relaying";
    const those = [...this.open].filter(isThere); // and not who gets a place that they leave
    for (const client of those) client.close("server_reset");
  }

  /** To be done now and then: see `sweepPeriod`. */
  protected sweep(): void {
    const { slowStart } = this.options;
    if (slowStart > 0 && weigh(this.servers, this.now(), slowStart)) this.places.refresh();
    this.patients.retry();
  }
}

const SWEEP = 1; // seconds between two looks at everything that merely must not be forgotten
export const sweepPeriod = ({ idleTimeout, slowStart }: LoadBalancerOptions): number =>
  Math.min(SWEEP, (idleTimeout || Infinity) / 4, (slowStart || Infinity) / 4);

/** The key under which a client's connections are counted: of IPv6 a network of 64 bits. */
function addressKey(address: string): string {
  if (isIP(address) !== 6) return address;
  const host = address.replace(/%.*/, "");
  const zeros = 8 - host.split(":").filter(Boolean).length;
  const full = host.replace("::", `:${"0:".repeat(zeros)}`);
  return `${full.split(":").filter(Boolean).slice(0, 4).join(":")}::/64`;
}

export function healthSettings(options: LoadBalancerOptions): HealthSettings {
  const { check, checkPort, checkInterval, fall, rise } = options;
  const elsewhere = (checkPort ?? ownPortOf(check)) !== undefined;
  // which silence a client's first byte refutes: see `takeIn`
  let clears: HealthSettings["clears"] = asks(check) ? "nothing" : "any silence";
  if (check.text === "ping") clears = "a closed check";
  if (elsewhere) clears = "nothing";
  return {
    interval: checkInterval,
    fall,
    rise,
    onlyWhoFailed: check.kind === "none",
    clears,
    asks: asks(check),
    elsewhere,
  };
}

/** Things that wait equally long, and until when: the first in expires first, so one timer does. */
export class Deadlines<T> extends Map<T, number> {
  readonly add: (item: T) => void;
  constructor(seconds: number, clock: Clock, expire: (item: T, late: number) => void) {
    super();
    let isAlarmSet = false;
    let coming = this.entries(); // a new iterator would pass by all those that have gone
    let first: [T, number] | undefined;
    const wakeIn = (wait: number): void => {
      isAlarmSet = true;
      clock.after(wait, look);
    };
    const look = (): void => {
      const now = clock.now();
      for (first ??= coming.next().value; first; first = coming.next().value) {
        const [item, deadline] = first;
        if (this.get(item) !== deadline) continue;
        if (deadline > now) return wakeIn(deadline - now);
        this.delete(item);
        expire(item, now - deadline); // which may add to us
      }
      coming = this.entries();
      isAlarmSet = false;
    };
    this.add = (item) => {
      this.set(item, clock.now() + seconds);
      if (!isAlarmSet) wakeIn(seconds);
    };
  }
}

/** Clients that have failed everywhere and wait for a server that comes back (`--retry-for`). Each
 *  second, and when a server comes up, the first of them dials; its success releases the others. */
class Patients<T extends Traveller> {
  readonly #owner: Dispatcher<T>;
  readonly #isAllowed: boolean;
  readonly #patience: Deadlines<T>; // all of them, also while they dial
  readonly #spent = new WeakSet<T>();
  readonly waiting = new Set<T>();
  constructor(seconds: number, owner: Dispatcher<T>, clock: Clock) {
    this.#owner = owner;
    this.#isAllowed = seconds > 0;
    this.#patience = new Deadlines(seconds, clock, (client) => {
      this.#spent.add(client);
      if (this.waiting.delete(client)) client.close("no_server");
    });
  }

  /** False when `client` may not wait, or not any longer. */
  take(client: T): boolean {
    if (!this.#isAllowed || this.#spent.has(client)) return false;
    if (!this.#patience.has(client)) this.#patience.add(client);
    this.waiting.add(client);
    client.queue();
    return true;
  }

  retry(): void {
    const [first] = this.waiting;
    if (first === undefined) return;
    this.#send(first);
    if (first.stage === "queued" && !this.waiting.has(first)) this.#release(); // it is in line
  }

  served(client: T): void {
    if (this.#patience.delete(client) || this.#spent.has(client)) this.#release();
  }

  forget(client: T): void {
    this.#patience.delete(client);
    this.waiting.delete(client);
  }

  #release(): void {
    for (const client of [...this.waiting]) this.#send(client);
  }

  #send(client: T): void {
    this.waiting.delete(client);
    client.tried = NO_ATTEMPTS;
    this.#owner.place(client);
  }
}

// ─── Balancer ────────────────────────────────────────────────────────────────
// Dispatch with sockets, timers and a log: accepts, dials, checks, stops; connect, idle and drain
// time-outs. What changes while it runs is here, in dispatch, `Connection`, `Places` or `Server`.

type Dial = TcpNetConnectOpts & { readonly highWaterMark?: number };
export type World = { readonly clock: Clock; readonly connect: (options: Dial) => Socket };
const realClock: Clock = {
  now: () => performance.now() / 1000,
  after(seconds, action) {
    const timer = setTimeout(action, Math.min(seconds * 1000, LONGEST_TIMER)).unref();
    return () => clearTimeout(timer);
  },
};
const realWorld: World = { clock: realClock, connect };
/** For deadlines: what lay in the kernel while we stood still is read before they are looked at. */
const patientClock: Clock = {
  ...realClock,
  after: (seconds, action) => realClock.after(seconds, () => setImmediate(action)),
};

const REMEMBER = 600; // seconds that a server is known which has vanished from the file or from DNS
const CHECK_MOMENTS = 20; // of an interval, at which checks begin: together they wake us less often
/** When the first check is due of a server that stands at `phase`, in [0, 1), of the list. */
export const firstCheckIn = (phase: number, interval: number): number =>
  (Math.floor(phase * CHECK_MOMENTS) / CHECK_MOMENTS) * interval;
const STOOD_STILL = 0.1; // a timer that is later than this, in seconds, shows that we stood still
const LATE = new Error("no answer while we stood still"); // which tells nothing of the server
/** Of both sides. Without a time-out, the system asks whether a silent peer is still there. */
const socketOptions = ({ idleTimeout }: LoadBalancerOptions) => ({
  allowHalfOpen: true,
  noDelay: true,
  keepAlive: idleTimeout === 0,
  keepAliveInitialDelay: 60_000, // milliseconds
});
export type Editor = "start" | "file" | "names" | "admin"; // who changed which servers there are

export class LoadBalancer extends Dispatcher<Connection> {
  readonly buffers = new ReadBuffers();
  readonly log: Log;
  isDraining = false; // it is about to stop: `/healthz` says so
  fileError: string | null = null; // why the servers file was refused last, if it was
  readonly turnTimes = newHistogram(FINE_BUCKETS);
  readonly resetLater = (wire: Wire): void => this.#resets.add(wire);
  readonly onStopped: (() => void)[] = []; // for when the last connection has ended after `stop`
  readonly #world: World;
  readonly #dialOptions: Omit<Dial, "host" | "port"> = {
    ...socketOptions(this.options),
    onread: this.buffers.onread,
    autoSelectFamily: false,
    highWaterMark: BUFFER_SIZE,
  };
  /** Servers configured no more: they finish their connections, and are known if they return. */
  readonly #past = new Map<string, { readonly server: Server; readonly removedAt: number }>();
  readonly #listener: Listener;
  #address: Address | undefined; // where it listens, once it does
  readonly #startedAt = this.now();
  readonly #connecting: Deadlines<Connection>; // they await a PROXY header, or a server to accept
  readonly #resets = newResets(this.now);
  readonly #sweeper = setInterval(() => this.sweep(), sweepPeriod(this.options) * 1000);
  #later: (Connection | Wire)[] = [];
  #shortage = { why: "", at: -Infinity }; // what this machine ran short of last, and when
  readonly #ended = { ...NO_ENDS };
  #allGone: () => void = () => undefined;
  #endDelay: () => void = () => undefined;
  constructor(options: LoadBalancerOptions, log: Log, world = realWorld) {
    super(options, world.clock, patientClock);
    this.log = log;
    this.#world = world;
    this.#connecting = new Deadlines(options.connectTimeout, patientClock, (connection, late) => {
      if (connection.stage === "greeting") return connection.close("bad_proxy");
      connection.dialFailed(late > STOOD_STILL ? LATE : new Error("no answer in time"));
    });
    const listening = { ...socketOptions(options), highWaterMark: CLIENT_HIGH_WATER_MARK };
    this.#listener = createServer(listening, (client) => this.#accept(client));
    this.setAlgorithm(options.algorithm);
    this.setServers(options.servers, "start");
  }

  /** Returns the real address. Throws RunError. */
  async listen(): Promise<Address> {
    const { host, port, reusePort, inherited } = this.options;
    const how = inherited === undefined ? { reusePort } : { fd: inherited };
    const where = inherited === undefined ? formatAddress(this.options) : "the inherited socket";
    this.#address = await listen(this.#listener, { host, port, backlog: 4096, ...how }, where);
    return this.#address;
  }

  /** To one of them that is the balancer, which would call itself for ever. */
  objectionTo(specs: readonly Address[]): UsageError | undefined {
    const own = this.#address;
    const itself = specs.find(({ host, port }) => port === own?.port && meets(host, own.host));
    const right = "another address than the one that the balancer listens on";
    return itself && bad("server", formatAddress(itself), right);
  }

  /** Who stays or returns is known. Changes nothing, and says why, if one is the balancer. */
  setServers(specs: readonly ServerSpec[], by: Editor): void {
    const objection = this.objectionTo(specs);
    if (objection) return console.error(`${objection.message}; the servers stay as they were`);
    const leaving = new Map(this.servers.map((server) => [server.name, server]));
    const added: Server[] = [];
    let isReweighted = false;
    this.servers = specs.map((spec) => {
      const name = formatAddress(spec);
      const known = leaving.get(name);
      // one that was here within ten minutes is the same one
      const server = known ?? this.#past.get(name)?.server ?? new Server(spec, this.now());
      const before = server.spec.weight;
      server.spec = spec;
      leaving.delete(name);
      this.#past.delete(name);
      if (known === undefined) added.push(server);
      else if (before !== spec.weight) {
        isReweighted = true;
        if (server.draining) return server; // as the admin interface has said
        const words = `weight ${spec.weight}`; // 0 drains as well
        if (spec.weight === 0) this.#switched(server, "draining", by, words);
        else if (before === 0) this.#switched(server, "ready", by, words);
      }
      return server;
    });
    for (const server of leaving.values()) {
      this.#past.set(server.name, { server, removedAt: this.now() });
      this.health.forget(server);
      if (!server.spec.resolved) continue; // a name has found its addresses
      const rest = server.open === 0 ? "" : `${server.open} of its connections go on`;
      this.log.server(server, "removed", by, rest);
    }
    for (const [place, server] of added.entries()) this.#add(server, place / added.length, by);
    this.places.setServers(this.servers);
    if (isReweighted) this.setAlgorithm(this.algorithm);
    else this.serversChanged();
  }

  #switched(server: Server, state: "draining" | "ready", by: Editor, why: string): void {
    server.switchedAt = this.now();
    server.warmSince = this.now();
    this.log.server(server, state, by, why);
  }

  #add(server: Server, phase: number, by: Editor): void {
    const isStart = by === "start";
    const delay = isStart ? firstCheckIn(phase, this.options.checkInterval) : 0;
    this.health.watch(server, delay);
    if (isStart) return;
    server.warmSince = this.now();
    this.log.server(server, "added", by, server.draining ? "still drained" : "");
  }

  setDraining(name: string, draining: boolean): "done" | "unknown" | "weightless" {
    const server = this.servers.find((candidate) => candidate.name === name);
    if (server === undefined) return "unknown";
    if (!draining && server.spec.weight === 0) return "weightless";
    if (server.draining === draining) return "done";
    server.draining = draining;
    this.#switched(server, draining ? "draining" : "ready", "admin", "");
    this.serversChanged();
    return "done";
  }

  protected override healthChanged(server: Server, by: Teller): void {
    const { up, why, passed } = server.health;
    this.log.server(server, up ? "up" : "down", by, up ? `${passed} checks passed in a row` : why);
    if (!up && !this.servers.some(takesClients))
      this.log.say("No server is left that takes clients");
    super.healthChanged(server, by);
  }

  override setAlgorithm(name: Algorithm): void {
    const from = this.algorithm;
    const words = `The algorithm is ${name} now; it was ${from}`;
    if (name !== from) this.log.say(words, "algorithm", { from, to: name });
    super.setAlgorithm(name);
  }

  #accept(client: Socket): void {
    const { acceptProxy, maxConnections } = this.options;
    this.counts.accepted += 1;
    const host = plainHost(client.remoteAddress ?? "unknown"); // it may have gone already
    const connection = new Connection(this, client, { host, port: client.remotePort ?? 0 });
    handled(client, connection).on("data", onClientData);
    this.open.add(connection);
    if (this.open.size > maxConnections) return connection.close("limit");
    if (acceptProxy === undefined) return this.place(connection);
    if (client.remoteAddress === undefined) return connection.close("client_reset"); // but whose?
    if (!isWithin(acceptProxy, host)) return this.place(connection);
    connection.greet();
    this.#connecting.add(connection);
  }

  protected dial(connection: Connection, server: Server): void {
    if (connection.tried.length > 0) this.counts.retries += 1;
    const { host, port } = server.address;
    const upstream = this.#world.connect({ ...this.#dialOptions, host, port });
    handled(upstream, connection).on("connect", onConnect);
    connection.dial(server, upstream);
    this.#connecting.add(connection);
  }

  headerFor({ source, client }: Connection): string {
    if (!this.options.sendProxy) return "";
    const { localAddress = "", localPort = 0 } = client;
    return proxyHeader(source, { host: localAddress, port: localPort });
  }

  override rest(connection: Connection): void {
    this.#connecting.delete(connection);
    super.rest(connection);
  }

  override left(connection: Connection, server: Server): void {
    super.left(connection, server);
    if (server.open === 0 && this.#past.has(server.name))
      this.log.say(`Server ${server.name} is gone: its last connection has ended`);
  }

  /** A dial of it failed; `error` says how. True when that is our own shortage. */
  dialFailed(connection: Connection, server: Server, error: Error): boolean {
    const { dialledAt } = connection;
    const why = reasonOf(error);
    this.#connecting.delete(connection);
    if (isOurShortage(codeOf(error), server.health)) {
      this.#shortage = { why, at: this.now() };
      return true;
    }
    if (error !== LATE) this.refused(server, why, dialledAt);
    return false;
  }

  connected(connection: Connection, server: Server): void {
    const { dialledAt, connectedAt } = connection;
    const { stats } = server;
    this.#connecting.delete(connection);
    this.patients.served(connection);
    stats.connectTime = smooth(stats.connectTime, connectedAt - dialledAt);
    count(stats.connectTimes, connectedAt - dialledAt);
    this.accepted(server, dialledAt);
    this.log.connected(connection);
  }

  /** When the loop's turn ends: has a connection do what it put off, or reads on from a wire. */
  soon(what: Connection | Wire): void {
    this.#later.push(what);
    if (this.#later.length === 1) setImmediate(this.#turnEnds);
  }

  readonly #turnEnds = (): void => {
    const later = this.#later;
    this.#later = [];
    for (const what of later) {
      if (what instanceof Connection) what.turnEnds();
      else if (!what.destroyed) what.resume();
    }
  };

  override gone(connection: Connection): void {
    super.gone(connection);
    this.#ended[connection.reason ?? "ok"] += 1;
    this.log.ended(connection, this.now());
    if (this.open.size === 0) this.#allGone();
  }

  /** At another port a check only shows silence: `beside` it goes a connect to the server's own. */
  protected probe(...[server, hold, beside, report]: Parameters<Probe>): () => void {
    const { check, checkPort, checkInterval, connectTimeout, sendProxy } = this.options;
    const port = checkPort ?? ownPortOf(check);
    const own: CheckOrder = {
      address: server.address,
      host: server.spec.configuredHost,
      spec: port === undefined ? check : { kind: "tcp", text: "tcp" },
      connectSeconds: Math.min(connectTimeout, checkInterval),
      seconds: checkInterval,
      holdSeconds: hold,
      prefix: sendProxy ? PROXY_UNKNOWN : "",
      connect: this.#world.connect,
    };
    const orders = port === undefined || beside ? [own] : [];
    if (port !== undefined)
      orders.push({ ...own, address: { ...server.address, port }, spec: check, prefix: "" });
    const results: CheckResult[] = [];
    const stops = orders.map((order) =>
      runCheck(order, (result) => {
        results.push(judged(result, order, server));
        if (results.length === orders.length) report(mostTelling(results));
      }),
    );
    return () => stops.forEach((stop) => stop());
  }

  protected override sweep(): void {
    const now = this.now();
    const { idleTimeout } = this.options;
    for (const connection of this.open) {
      const { down, server } = connection;
      connection.askStoppedSide();
      if (down.moved && server !== undefined) server.health.provedAt = now;
      if (connection.isQuietFor(idleTimeout || Infinity, now)) connection.close("idle_timeout");
    }
    for (const [name, { server, removedAt }] of this.#past)
      if (now - removedAt > REMEMBER && server.open === 0) this.#past.delete(name);
    super.sweep();
  }

  /** For `delay` seconds it only says that it will stop, and still accepts; then it stops. */
  async drain(delay: number, seconds: number): Promise<number> {
    const open = this.open.size;
    const words = `Stopping: ${open} ${open === 1 ? "connection is" : "connections are"} open`;
    this.isDraining = true;
    this.log.say(words, "drain", { active: open });
    if (delay > 0)
      await new Promise<void>((resolve) => {
        this.#endDelay = resolve;
        realClock.after(delay, resolve);
      });
    return this.stop(seconds);
  }

  /** Stops listening, lets connections finish for `seconds`, resets the rest and counts those. */
  async stop(seconds: number): Promise<number> {
    this.isDraining = true;
    if (this.#listener.listening) this.#listener.close();
    const cancelCut = realClock.after(seconds, () => this.cut());
    const allGone = new Promise<void>((resolve) => {
      this.#allGone = resolve;
    });
    if (this.open.size > 0) await allGone;
    cancelCut();
    clearInterval(this.#sweeper);
    for (const server of this.servers) this.health.forget(server);
    for (const action of this.onStopped) action();
    this.log.say("", "stopped", { cut: this.#ended.drain_forced });
    this.log.flush();
    return this.#ended.drain_forced;
  }

  cut(): void {
    this.#endDelay();
    for (const connection of this.open) connection.close("drain_forced");
    this.#resets.allNow();
  }

  /** Times in seconds, null: unknown. Always accepted = active + queued + the sum of ended. */
  status() {
    const now = this.now();
    const turns = this.#pendingTurns(now);
    const waiting = [...this.queue.keys(), ...this.patients.waiting];
    const removed = [...this.#past.values()].filter(({ server }) => server.open > 0);
    return {
      algorithm: this.algorithm,
      algorithms: ALGORITHMS,
      listening: this.#address === undefined ? "" : formatAddress(this.#address),
      draining: this.isDraining,
      uptime: now - this.#startedAt,
      maxConnections: this.options.maxConnections, // Infinity, null in JSON: no limit
      serverConnections: this.options.serverConnections, // 0: no limit
      ...this.counts,
      active: this.open.size - waiting.length,
      queued: waiting.length,
      waiting: waiting.slice(0, 10).map(({ source, acceptedAt }) => {
        return { client: formatAddress(source), seconds: now - acceptedAt };
      }),
      shortage: now - this.#shortage.at < 60 ? this.#shortage.why : null,
      fileError: this.fileError,
      ended: { ...this.#ended },
      // the last count is of the turns above all buckets
      turns: { buckets: this.turnTimes.bounds, counts: this.turnTimes.counts },
      servers: [
        ...this.servers.map((server) => statusOf(server, stateOf(server), now, turns.get(server))),
        ...removed.map(({ server }) => statusOf(server, "removed", now, turns.get(server))),
      ],
    };
  }

  #pendingTurns(now: number): Map<Server, Pending> {
    const pending = new Map<Server, Pending>();
    for (const { server, askedAt } of this.open) {
      if (server === undefined || askedAt === 0) continue;
      const { unanswered, oldestUnanswered } = pending.get(server) ?? NONE_PENDING;
      const oldest = Math.max(oldestUnanswered ?? 0, now - askedAt);
      pending.set(server, { unanswered: unanswered + 1, oldestUnanswered: oldest });
    }
    return pending;
  }
}

/** Whether who connects to `target` may reach a socket that listens on `listening`. */
function meets(target: string, listening: string): boolean {
  const [host = "", own = ""] = [target, listening].map(plainHost);
  const everywhere = ["0.0.0.0", "::"]; // as a target: this machine
  const interfaces = Object.values(networkInterfaces()).flatMap((addresses = []) => addresses);
  const isHere = (host: string): boolean =>
    /^127\.|^::1$/.test(host) || interfaces.some(({ address }) => address === host);
  if (everywhere.includes(host)) return everywhere.includes(own) || isHere(own);
  return host === own || (everywhere.includes(own) && isHere(host));
}

const codeOf = (error: Error): string => ("code" in error ? String(error.code) : "");
/** EADDRNOTAVAIL from a server never reached: this machine has no IPv6; later: no port is left. */
const isOurShortage = (code: string, { reached }: HealthState): boolean =>
  OUR_SHORTAGES.includes(code) || (code === "EADDRNOTAVAIL" && reached);

/** A shortage of ours tells nothing; a refusal at another port, that the server is silent. */
function judged(result: CheckResult, { address }: CheckOrder, server: Server): CheckResult {
  if (result.kind !== "refused") return result;
  if (isOurShortage(result.code, server.health)) return { kind: "short" };
  if (address === server.address) return result;
  return { kind: "silent", why: result.why, by: "time-out" };
}

const TELLING = ["late", "short", "refused", "silent", "passed"]; // of several, the first counts
const mostTelling = (results: readonly CheckResult[]): CheckResult =>
  results.reduce((a, b) => (TELLING.indexOf(b.kind) < TELLING.indexOf(a.kind) ? b : a));

// ─── Status and log ──────────────────────────────────────────────────────────
// What people and programs are told: a server's row of `status()`, and a line for what happens.

export type Status = ReturnType<LoadBalancer["status"]>;
export type ServerStatus = ReturnType<typeof statusOf>;
/** The turns of a server that wait for an answer now, and for how many seconds the oldest has. */
type Pending = { readonly unanswered: number; readonly oldestUnanswered: number | null };
const NONE_PENDING: Pending = { unanswered: 0, oldestUnanswered: null };
type ServerState = "up" | "down" | "draining" | "removed";
function stateOf(server: Server): ServerState {
  if (!server.health.up) return "down";
  return isEnabled(server) ? "up" : "draining";
}

function statusOf(server: Server, state: ServerState, now: number, pending = NONE_PENDING) {
  const { health, stats, spec, switchedAt } = server;
  const { connectTimes, turnTimes, ...counted } = stats;
  const { lastCheck } = health;
  const since = state === "down" ? health.since : Math.max(health.since, switchedAt);
  return {
    server: server.name,
    state,
    draining: server.draining || spec.weight === 0,
    backup: spec.backup,
    since: now - since,
    why: health.why,
    weight: spec.weight,
    active: server.open,
    ...counted,
    bytesToClient: health.received,
    ...pending,
    lastCheck: lastCheck ? { result: lastCheck.result, seconds: now - lastCheck.at } : null,
  };
}

const LOGS = ["text", "json", "none"] as const;
const EVENTS = {
  up: "is up",
  down: "is down",
  draining: "is drained",
  ready: "is ready again",
  added: "was added",
  removed: "was removed",
};

const rounded = (seconds: number): number => Number(seconds.toFixed(6)); // to microseconds
/** Shows control characters as \x1b, so that nothing in a line can end it or move the cursor. */
const escapeControls = (text: string, sign: string): string =>
  text.replace(/[\x00-\x1f\x7f-\x9f]/g, (c) => sign + Buffer.from(c, "latin1").toString("hex"));

export class Log {
  readonly #format: (typeof LOGS)[number];
  readonly #lines = new LineWriter();
  readonly flush = (): void => this.#lines.flush();
  constructor(format: (typeof LOGS)[number]) {
    this.#format = format;
  }

  /** Without words it is for programs only, without an event for people only. */
  say(words: string, event = "", fields: object = {}): void {
    if (this.#format === "text" && words !== "") this.#lines.write(escapeControls(words, "\\x"));
    if (this.#format !== "json" || event === "") return;
    const line = JSON.stringify({ time: new Date().toISOString(), event, ...fields });
    this.#lines.write(escapeControls(line, "\\u00")); // JSON has escaped those below a blank
  }

  /** Said whatever the format is: whoever started us waits for it. */
  announce(event: string, at: Address, words: (address: string) => string): void {
    const address = formatAddress(at);
    if (this.#format === "none") this.#lines.write(words(address));
    this.say(words(address), event, { address });
    this.flush();
  }

  connected({ source, reached }: Connection): void {
    if (this.#format !== "text") return;
    this.say(`Connected client ${formatAddress(source)} to server ${reached?.name}`);
  }

  ended(connection: Connection, now: number): void {
    const { reason, reached, dialledAt, connectedAt, firstByteAt } = connection;
    if (this.#format === "none" || (this.#format === "text" && reason === "ok")) return;
    const client = formatAddress(connection.source);
    const seconds = now - connection.acceptedAt;
    const tried = connection.tried.map(({ server, why }) => ({ server: server.name, why }));
    const attempts = tried.map(({ server, why }) => `${server}: ${why}`).join("; ");
    const afterwards = attempts === "" ? "" : ` (tried ${attempts})`;
    const server = reached === undefined ? "no server" : `server ${reached.name}`;
    const end = `ended after ${seconds.toFixed(3)} s: ${reason}${afterwards}`;
    // HAProxy calls the parts of the time Tw (queued), Tc and Tr
    this.say(`Connection of client ${client} to ${server} ${end}`, "end", {
      client,
      server: reached?.name ?? null,
      seconds: rounded(seconds),
      queued: rounded(connection.queuedFor),
      connect: connectedAt === 0 ? null : rounded(connectedAt - dialledAt),
      firstByte: firstByteAt === 0 ? null : rounded(firstByteAt - connectedAt),
      bytesToServer: connection.up.bytes,
      bytesToClient: connection.down.bytes,
      reason,
      tried,
    });
  }

  server({ name }: Server, state: keyof typeof EVENTS, by: Teller | Editor, why: string): void {
    const because = state === "added" ? ` (${why})` : `: ${why}`;
    const words = `Server ${name} ${EVENTS[state]}${why === "" ? "" : because}`;
    this.say(words, "server", { server: name, state, by, why });
  }
}

// ─── Admin ───────────────────────────────────────────────────────────────────
// A page, JSON and metrics made from `status()`, and the switches. HTTP is Node's; nothing here can
// hold up the relay, and a page of another site can neither read nor switch anything.

type Answer = { readonly code: number; readonly type: string; readonly body: string };
const ok = (type: string, body: string): Answer => ({ code: 200, type, body });
const json = (what: unknown): Answer => ok("application/json; charset=utf-8", JSON.stringify(what));
const TEXT = "text/plain; charset=utf-8";
const plain = (code: number, text: string): Answer => ({ code, type: TEXT, body: `${text}\n` });
const PATHS =
  "/, /status.json, /metrics, /healthz, /algorithm/NAME or /servers/HOST:PORT/drain or /ready";
const ADMIN_CONNECTIONS = 32;

/** Another site's page has a foreign origin, or a name that was pointed at us (DNS rebinding). */
function isForeign({ headers: { host = "", origin }, method }: IncomingMessage, path: string) {
  const isPost = method === "POST";
  if (isPost && origin !== undefined && origin !== `http://${host}`) return true;
  // Kubernetes and Prometheus ask under whatever name the machine has
  if (!isPost && (path === "/healthz" || path === "/metrics")) return false;
  const name = /^(.*?)(:\d+)?$/.exec(host.toLowerCase())?.[1] ?? "";
  return name !== "localhost" && isIP(name.replace(/^\[|\]$/g, "")) === 0;
}

function adminOf(balancer: LoadBalancer, mayWrite: boolean): (request: IncomingMessage) => Answer {
  const html = readFileSync(new URL("status_page.html", import.meta.url), "utf8");
  const pages = new Map<string, () => Answer>([
    ["/", () => ok("text/html; charset=utf-8", html)],
    ["/status.json", () => json(balancer.status())],
    ["/metrics", thrifty(() => metricsOf(balancer))],
    ["/healthz", () => healthOf(balancer)],
  ]);
  return (request) => {
    const { method, url = "" } = request;
    const path = url.replace(/\?.*/s, "");
    if (isForeign(request, path))
      return plain(403, "Forbidden: expected an address or localhost as host, no foreign origin");
    const page = pages.get(path);
    const isRead = method === "GET" || method === "HEAD";
    if (page !== undefined) return isRead ? page() : plain(405, "Expected GET");
    const [, wanted] = /^\/algorithm\/([^/]+)$/.exec(path) ?? [];
    const [, server, action] = /^\/servers\/([^/]+)\/(drain|ready)$/.exec(path) ?? [];
    const target = server ?? wanted;
    if (target === undefined) return plain(404, `Expected ${PATHS}`);
    if (method !== "POST") return plain(405, "Expected POST");
    if (!mayWrite)
      return plain(403, "Forbidden: not on a loopback address; --admin-writable allows it");
    const name = decoded(target);
    if (action === undefined) {
      const algorithm = ALGORITHMS.find((known) => known === name);
      if (algorithm === undefined) return plain(404, `Expected one of ${KNOWN}`);
      balancer.setAlgorithm(algorithm);
      return json({ algorithm });
    }
    const result = balancer.setDraining(name, action === "drain");
    if (result === "unknown") return plain(404, "No such server");
    if (result === "weightless") return plain(409, "Its weight is 0: its configuration drains it");
    return json(balancer.status().servers.find((row) => row.server === name));
  };
}

function healthOf({ isDraining, servers }: LoadBalancer): Answer {
  if (isDraining) return plain(503, "draining");
  return servers.some(takesClients) ? plain(200, "ok") : plain(503, "no server takes clients");
}

function decoded(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch (error) {
    if (error instanceof URIError) return text;
    throw error;
  }
}

/** At most a twentieth of the time goes into making answers, and none is older than a second. */
function thrifty(make: () => Answer): () => Answer {
  let made: Answer | undefined;
  let staleAt = 0;
  return () => {
    const startedAt = performance.now();
    if (made !== undefined && startedAt < staleAt) return made;
    made = make();
    const now = performance.now();
    staleAt = now + Math.min(1000, 20 * (now - startedAt));
    return made;
  };
}

/** Few clients at once, little time for each: they share descriptors and a core with the relay. */
async function startAdmin(balancer: LoadBalancer, wanted: Address): Promise<Address> {
  const isLoopback = wanted.host === "localhost" || /^127\.|^::1$/.test(wanted.host);
  const answer = adminOf(balancer, balancer.options.adminWritable || isLoopback);
  const limits = {
    headersTimeout: 2000,
    requestTimeout: 3000,
    keepAliveTimeout: 3000,
    connectionsCheckingInterval: 500,
  };
  const server = http.createServer(limits, inTurn(answer));
  server.maxConnections = ADMIN_CONNECTIONS;
  server.maxRequestsPerSocket = 100; // they may come all at once
  server.timeout = 3000; // without a byte either way: nobody reads the answer
  balancer.onStopped.push(() => {
    server.close();
    server.closeAllConnections();
  });
  return listen(server, wanted);
}

const HEADERS = {
  "cache-control": "no-store",
  "x-content-type-options": "nosniff",
  "content-security-policy":
    "default-src 'self' 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'",
};

/** Answers one request of a connection after the other: all answers at once would fill memory. */
function inTurn(answer: (request: IncomingMessage) => Answer) {
  const last = new WeakMap<Socket, Promise<void>>();
  return (request: IncomingMessage, response: ServerResponse): void => {
    const { socket } = request;
    const send = (): Promise<void> =>
      new Promise((resolve) => {
        response.on("close", resolve);
        if (socket.destroyed) return resolve();
        const { code, type, body } = answer(request);
        request.resume();
        response.writeHead(code, { ...HEADERS, "content-type": type });
        response.end(request.method === "HEAD" ? undefined : body);
      });
    last.set(socket, (last.get(socket) ?? Promise.resolve()).then(send));
  };
}

function family(name: string, help: string, lines: readonly string[], kind = "gauge"): string {
  const type = name.endsWith("_total") ? "counter" : kind;
  const samples = lines.map((line) => `balancer_${name}${line}\n`).join("");
  return `# HELP balancer_${name} ${help}\n# TYPE balancer_${name} ${type}\n${samples}`;
}

const label = (name: string, value: string): string =>
  `${name}="${value.replace(/[\\"]/g, "\\$&").replaceAll("\n", "\\n")}"`;

function metricsOf(balancer: LoadBalancer): Answer {
  const s = balancer.status();
  const own = (name: string, help: string, value: number) => family(name, help, [` ${value}`]);
  const each = (name: string, help: string, valueOf: (row: ServerStatus) => number): string => {
    const lines = s.servers.map((row) => `{${label("server", row.server)}} ${valueOf(row)}`);
    return family(`server_${name}`, help, lines);
  };
  const ends = REASONS.map((reason) => `{${label("reason", reason)}} ${s.ended[reason]}`);
  const full = "Clients refused: their address had its fill.";
  const isRefused = Number(s.fileError !== null);
  const families = [
    family("info", "The algorithm that picks servers.", [`{${label("algorithm", s.algorithm)}} 1`]),
    own("uptime_seconds", "Seconds since the start.", s.uptime),
    own("connections_accepted_total", "Client connections accepted.", s.accepted),
    own("connections_active", "Client connections open and not queued.", s.active),
    own("connections_queued", "Client connections that wait for a server.", s.queued),
    own("retries_total", "Attempts at another server after a failed connect.", s.retries),
    own("refused_by_address_total", full, s.refusedByAddress),
    own("servers_file_refused", "Whether the servers file was bad when read last.", isRefused),
    family("connections_ended_total", "Connections ended, by reason.", ends),
    each("up", "Whether the server is up.", (row) => Number(row.why === "")),
    each("draining", "Whether the server gets no new connections.", (row) => Number(row.draining)),
    each("weight", "Configured weight.", (row) => row.weight),
    each("connections_active", "Open connections, counted from the pick.", (row) => row.active),
    each("connections_total", "Connections given to the server.", (row) => row.total),
    each("turns_unanswered", "Turns that wait for an answer.", (row) => row.unanswered),
    each("connect_errors_total", "Failed connects.", (row) => row.connectErrors),
    each("check_failures_total", "Failed health checks.", (row) => row.checkFailures),
    each("sent_bytes_total", "Bytes sent to the server.", (row) => row.bytesToServer),
    each("received_bytes_total", "Bytes received from the server.", (row) => row.bytesToClient),
    histograms(balancer, "connect", "Time to connect."),
    histograms(balancer, "turn", "Time from a client's first byte to the server's next."),
  ];
  return ok("text/plain; version=0.0.4; charset=utf-8", families.join(""));
}

function histograms({ servers }: LoadBalancer, what: "connect" | "turn", help: string): string {
  const lines = servers.flatMap(({ name, stats }) => {
    const { bounds, counts, sum } = stats[`${what}Times`];
    const who = label("server", name);
    let total = 0;
    const buckets = counts.map((n, i) => {
      total += n;
      return `_bucket{${who},${label("le", String(bounds[i] ?? "+Inf"))}} ${total}`;
    });
    return [...buckets, `_sum{${who}} ${sum}`, `_count{${who}} ${total}`];
  });
  return family(`server_${what}_seconds`, help, lines, "histogram");
}

// ─── Command line ────────────────────────────────────────────────────────────
// Options, signals, the files and names that the servers come from, and the limits of this machine.

const serverList: Kind<readonly ServerSpec[]> = {
  expected: "host:port[*weight][ backup],...",
  read: (text) => parseServers(text.split(",")),
};
const adminAddress: Kind<Address> = {
  expected: "a port or host:port",
  read: (text) => parseAddress(text.includes(":") ? text : `127.0.0.1:${text}`),
};

export const option = <T>(kind: Kind<T>, value: string, fallback: string) => ({
  help: (help: string) => ({ kind, value, fallback, help }),
});
export const given = <T>(kind: Kind<T>, value: string) => ({
  help: (help: string) => ({ kind, value, help }),
});
const time = (fallback: string, kind = amount("seconds")) => option(kind, "SECONDS", fallback);

export const OPTIONS = {
  host: option(hostName, "HOST", "127.0.0.1").help("address to listen on"),
  port: option(portNumber, "PORT", "65432").help("port to listen on; 0 = any free one"),
  servers: given(serverList, "LIST").help(
    "host:port[*weight][ backup],... (default: 127.0.0.1 with the ports 65433 to 65437)",
  ),
  serversFile: given(anyText, "FILE").help(
    "one host:port[*weight] [backup] a line, # comments; read again on SIGHUP and on change",
  ),
  connectTimeout: time("2", someSeconds).help("for one attempt to connect to a server"),
  idleTimeout: time("600").help("no byte either way for this long ends a connection; 0 = never"),
  maxConnections: given(wholeNumber(1), "N").help(
    "clients at once (default: what the file-descriptor limit allows)",
  ),
  onDown: option(oneOf(["keep", "reset"]), "keep|reset", "keep").help(
    "what becomes of the open connections of a server that goes down",
  ),
  clientConnections: option(wholeNumber(0), "N", "0").help(
    "connections of one client address at once, the next is refused; 0 = no limit",
  ),
  serverConnections: option(wholeNumber(0), "N", "0").help(
    "connections per server at once, further clients queue; 0 = no limit",
  ),
  queueTimeout: time("30").help("longest wait in that queue"),
  retryFor: time("0").help(
    "a client whose dials have all failed waits so long for a server that comes back",
  ),
  abortOnClose: { help: "a client that ends its side while it waits has left, even after bytes" },
  check: option(readCheck, "CHECK", "tcp").help(
    "tcp, ping, http[s][:[PORT][/PATH]], SEND=>EXPECT, or none",
  ),
  checkPort: given(serverPort, "PORT").help("where checks go, when not to the server's own port"),
  checkInterval: time("2", someSeconds).help("between two checks of a server"),
  fall: option(wholeNumber(1), "N", "3").help("failures in a row that take a server down"),
  rise: option(wholeNumber(1), "N", "2").help("checks passed in a row that bring it up again"),
  reusePort: {
    help: "several balancers may listen on the same port, one a core (Node 22.12 and later)",
  },
  drainDelay: time("0").help(
    "after SIGTERM /healthz says 503, and clients are still accepted for so long",
  ),
  drainTimeout: time("30").help("how long open connections may then take"),
  sendProxy: {
    help: "PROXY protocol (v1) header to the servers, so that they learn the client's address",
  },
  acceptProxy: given(cidrList, "CIDR,...").help(
    "a client from there must begin with a PROXY header (v1 or v2), which says who it is",
  ),
  slowStart: time("0").help("a server that comes back gets its full weight only after this long"),
  admin: given(adminAddress, "[HOST:]PORT").help(
    "status page, JSON, metrics (default: off; host 127.0.0.1)",
  ),
  adminWritable: { help: "take POST also where the admin address is not loopback" },
  log: option(oneOf(LOGS), "text|json|none", "text").help("what to print about connections"),
  seed: given(seedNumber, "N").help("repeats the random picks of a run (default: drawn)"),
} as const satisfies Options;

type Given = Values<typeof OPTIONS>;
export type LoadBalancerOptions = Omit<Given, "servers" | "maxConnections" | "seed"> & {
  readonly algorithm: Algorithm;
  readonly servers: readonly ServerSpec[];
  readonly maxConnections: number;
  readonly seed: number;
  readonly inherited?: number | undefined; // the descriptor of a socket that listens already
};

/** What `options` leaves out is as on the command line. */
export function completed(options: SomeOptions): LoadBalancerOptions {
  const { values } = parseCommandLine(OPTIONS, []);
  const { servers = parseServers(SERVERS), maxConnections = Infinity } = options;
  const { seed = Math.floor(Math.random() * 2 ** 32) } = options;
  return { ...values, ...options, servers, maxConnections, seed };
}
type SomeOptions = Partial<Given> & Pick<LoadBalancerOptions, "algorithm" | "inherited">;

/** With its admin pages if they are wanted. Throws RunError or UsageError. */
export async function startLoadBalancer(wanted: SomeOptions) {
  const options = completed(wanted);
  const { servers, serversFile, admin } = options;
  const isListed = serversFile === undefined;
  const directory = isListed ? new Directory(servers) : await Directory.ofFile(serversFile);
  const { specs } = directory;
  const others = specs.length + (admin === undefined ? 0 : ADMIN_CONNECTIONS);
  const maxConnections = allowedConnections(options.maxConnections, others);
  const settings = { ...options, servers: specs, maxConnections };
  const balancer = new LoadBalancer(settings, new Log(options.log));
  try {
    const address = await balancer.listen();
    const objection = balancer.objectionTo(specs);
    if (objection && isListed) throw objection;
    if (objection) throw new RunError(`${serversFile}: ${objection.message}`);
    const page = admin && (await startAdmin(balancer, admin));
    directory.follow({
      changed: (specs, by) => balancer.setServers(specs, by),
      fileRead(complaint) {
        balancer.fileError = complaint ?? null;
      },
      objectionTo: (specs) => balancer.objectionTo(specs),
    });
    balancer.onStopped.push(() => directory.close());
    return { balancer, directory, address, admin: page };
  } catch (error) {
    await balancer.stop(0);
    throw error;
  }
}

/** How many clients of those `wanted` fit into our descriptors, at two sockets each; warns. */
function allowedConnections(wanted: number, others: number): number {
  const { limit, open } = descriptors();
  const spare = open + 16 + others; // what Node may open, a check of each server, the admin pages
  const allowed = Math.max(1, Math.floor((limit - spare) / 2));
  const hint = `the limit of file descriptors is ${limit}`;
  const needs = `--max-connections ${wanted} needs ${2 * wanted + spare} file descriptors`;
  if (wanted === Infinity && allowed < 100)
    console.error(`Only ${allowed} clients at once: ${hint}; raise it with ulimit -n`);
  if (wanted !== Infinity && wanted > allowed)
    console.error(`${needs} and ${hint}: allowing ${allowed}`);
  return Math.min(wanted, allowed);
}

/** The limit of file descriptors, and how many are open; a guess where that cannot be found out. */
function descriptors(): { readonly limit: number; readonly open: number } {
  const isLinux = process.platform === "linux";
  const inShell = (): string => execFileSync("sh", ["-c", "ulimit -n"], { encoding: "utf8" });
  try {
    const open = readdirSync("/dev/fd").length;
    const text = isLinux ? readFileSync("/proc/self/limits", "utf8") : inShell();
    const [, limit = Infinity] = /^(?:Max open files +)?(\d+)/m.exec(text) ?? [];
    return { limit: Number(limit), open };
  } catch (error) {
    const what = "the limit of file descriptors";
    console.error(`Cannot find out ${what} (${reasonOf(error)}): taking it for 1024`);
    return { limit: 1024, open: 32 };
  }
}

const KNOWN = ALGORITHMS.join(", ");
const USAGE = `How to Use: tsx load_balancer.ts [algorithm]\nAvailable algorithms: ${KNOWN}`;

/** A socket that whoever started us listens on already (systemd). Throws RunError or UsageError. */
function inheritedSocket(env: NodeJS.ProcessEnv): number | undefined {
  const { LISTEN_FDS, LISTEN_PID } = env;
  if (LISTEN_FDS === undefined || LISTEN_PID === undefined) return undefined;
  if (LISTEN_PID !== String(process.pid)) {
    console.error(`The inherited socket is for process ${LISTEN_PID}, and this is ${process.pid}`);
    return undefined;
  }
  if (LISTEN_FDS !== "1") throw new RunError(bad("LISTEN_FDS", LISTEN_FDS, "one socket").message);
  const surplus = process.argv.find((word) => /^--(host|port|reuse-port)(=|$)/.test(word));
  if (surplus === undefined) return 3; // systemd's sockets begin behind the standard streams
  throw bad("option", surplus, "none beside LISTEN_FDS");
}

/** Before anything is awaited: process 1 of a container does not die of an unhandled signal. */
function onSignals(stop: () => void, stopNow: () => void, reload: () => boolean): void {
  onStopSignals(stop, stopNow, ["SIGINT", "SIGTERM", "SIGQUIT"]);
  const onTerminal = [0, 1, 2].filter((fd) => isatty(fd));
  process.on("SIGHUP", () => {
    const hasHungUp = onTerminal.length > 0 && !onTerminal.some((fd) => isatty(fd));
    if (hasHungUp || (!reload() && onTerminal.length > 0)) stop();
  });
  const ignore = (signal: string): void =>
    console.error(`${signal} changes nothing: SIGHUP reads the servers file`);
  process.on("SIGUSR1", ignore).on("SIGUSR2", ignore);
}

/** Writes to a terminal block, even if nobody reads it (Ctrl-S); Node has no switch for that. */
function neverBlock(stream: NodeJS.WriteStream): void {
  const handle: unknown = Reflect.get(stream, "_handle");
  const setBlocking: unknown = Reflect.get(Object(handle), "setBlocking");
  if (stream.isTTY && typeof setBlocking === "function") setBlocking.call(handle, false);
}

/** Checks what no option can tell alone, and runs. Throws UsageError or RunError. */
async function main([name, extra]: string[], options: Given): Promise<number> {
  const { servers, serversFile, check, checkPort, reusePort } = options;
  const algorithm = ALGORITHMS.find((known) => known === name);
  if (name === undefined) throw new UsageError("");
  if (extra !== undefined) throw bad("argument", extra, "one algorithm and options");
  if (algorithm === undefined)
    throw new UsageError(`Unknown algorithm ${JSON.stringify(name)}: expected ${KNOWN}`);
  if (servers !== undefined && serversFile !== undefined)
    throw bad("--servers-file", serversFile, "either --servers or --servers-file");
  if (checkPort !== undefined && ownPortOf(check) !== undefined)
    throw bad("--check", check.text, "no port in it beside --check-port");
  const { node } = process.versions;
  const [major = 0, minor = 0] = node.split(".").map(Number);
  if (reusePort && (major < 22 || (major === 22 && minor < 12)))
    throw new RunError(`--reuse-port needs Node 22.12 or later, and this is ${node}`);
  return runAsProgram(algorithm, options);
}

/** One balancer from its start to its end, and to the exit code. Throws RunError or UsageError. */
async function runAsProgram(algorithm: Algorithm, options: Given): Promise<number> {
  let running: Awaited<ReturnType<typeof startLoadBalancer>> | undefined;
  let exitCode = 0;
  const stopAsked = new Promise<void>((stop) => {
    const reload = (): boolean => {
      running?.directory.reload();
      return options.serversFile !== undefined;
    };
    onSignals(stop, () => running?.balancer.cut(), reload);
  });
  neverBlock(process.stdout);
  neverBlock(process.stderr);
  const inherited = inheritedSocket(process.env);
  running = await startLoadBalancer({ ...options, algorithm, inherited });
  const { balancer, address, admin } = running;
  process.once("uncaughtException", (error) => {
    // a bug: say so, give the others a moment, and do not go on with broken state
    console.error(error.stack);
    exitCode = 1;
    void balancer.stop(1).then(() => leave(1));
  });
  balancer.log.announce("listening", address, (where) => `Listening on ${where}`);
  if (admin) balancer.log.announce("admin", admin, (where) => `Admin on http://${where}/`);
  await stopAsked;
  const cut = await balancer.drain(options.drainDelay, options.drainTimeout);
  const were = cut === 1 ? "connection was" : "connections were";
  if (cut > 0) console.error(`${cut} ${were} cut off when the drain ended`);
  return leave(cut > 0 ? 1 : exitCode);
}

/** Ends the program, though whoever reads its output may have stopped. */
function leave(code: number): number {
  setTimeout(() => process.exit(code), 1000).unref();
  process.exitCode = code;
  return code;
}

if (isMain(import.meta)) void runScript({ usage: USAGE, options: OPTIONS, main });
