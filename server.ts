#!/usr/bin/env -S node --import tsx
/**
 * server.ts - a ping server that simulates work.
 *
 * Counts the `PING!`s in what a client sends, however they are sliced or glued together, and
 * answers each with `PONG!` after a normally distributed sleep: in order, one at a time. The sleep
 * of a numbered one, `PING 4711!`, is drawn from its number, so that it costs the same on every
 * equal server. Only so many connections are served at once; the others are accepted, read and kept
 * waiting, first come, first served, until one closes. Anything else resets the connection.
 *
 *   tsx server.ts 127.0.0.1 65433
 *   tsx server.ts 127.0.0.1 65433 --mean 0 --sd 0 --log none
 *   tsx server.ts :: 65433 --slow 4-8:0.6
 */
import { createServer, type Server, type Socket } from "node:net";
import {
  type Address,
  amount,
  formatAddress,
  hostName,
  isMain,
  type Kind,
  LineWriter,
  listen,
  LONGEST_TIMER,
  mulberry32,
  oneOf,
  onStopSignals,
  portNumber,
  readValue,
  reasonOf,
  runScript,
  seedNumber,
  UsageError,
  wholeNumber,
  type Values,
} from "./lib.ts";

const WORD = Buffer.from("PING");
const SPACE = 0x20;
const BANG = 0x21;
const ZERO = 0x30;
const PONG = Buffer.from("PONG!");
/** Numbers of pings are below this. */
const NUMBERS = 2 ** 32;
/** Numbered pings of a client that may wait for their answers; its further bytes are not read. */
const MOST_WAITING = 1024;
/** How long a client may take to end a connection as well that we ended in order to stop. */
const GOODBYE_MS = 1000;

// ─── Bytes and sleeps ────────────────────────────────────────────────────────
// Pure: what a client has asked for, and how long an answer takes. Plain pings are only counted, so
// reading them need never pause, however much a client sends; numbers must be remembered.

/** Pings that follow each other in the stream: one with a number, or any number of plain ones. */
type Asking = { readonly number: number | undefined; times: number };

/**
 * What of a client's pings is not answered yet, and of the ping that it has begun: how many bytes,
 * and what their digits say so far.
 */
export type Asked = { readonly waiting: Asking[]; matched: number; number: number | undefined };

export const nothingAsked = (): Asked => ({ waiting: [], matched: 0, number: undefined });

/**
 * Takes in `chunk`. Returns its first byte that cannot belong to a `PING!` or a `PING 4711!`;
 * undefined when there is none.
 */
export function countPings(asked: Asked, chunk: Uint8Array): number | undefined {
  for (const byte of chunk) {
    if (!takeByte(asked, byte)) return byte;
  }
  return undefined;
}

/** Takes in one byte; false when it can belong to no ping. */
function takeByte(asked: Asked, byte: number): boolean {
  const isInWord = asked.matched < WORD.length;
  if (isInWord && byte !== WORD[asked.matched]) return false;
  if (!isInWord && byte === BANG) return endPing(asked);
  if (asked.matched === WORD.length && byte !== SPACE) return false;
  if (asked.matched > WORD.length && !takeDigit(asked, byte)) return false;
  asked.matched += 1;
  return true;
}

/** A number has no leading zeros, and is below `NUMBERS`. */
function takeDigit(asked: Asked, byte: number): boolean {
  const digit = byte - ZERO;
  if (!(digit >= 0 && digit <= 9) || asked.number === 0) return false;
  asked.number = (asked.number ?? 0) * 10 + digit;
  return asked.number < NUMBERS;
}

/** The ping is whole; false when it lacks the number that its space promised. */
function endPing(asked: Asked): boolean {
  const { number, waiting } = asked;
  if (number === undefined && asked.matched > WORD.length) return false;
  const last = waiting.at(-1);
  if (last && number === undefined && last.number === undefined) last.times += 1;
  else waiting.push({ number, times: 1 });
  asked.matched = 0;
  asked.number = undefined;
  return true;
}

/** From second `from` to second `to` after the start, sleeps have another mean. */
export type Slow = { readonly from: number; readonly to: number; readonly mean: number };

/** Reads `4-8:0.6`. */
export const slowPhase: Kind<Slow> = {
  expected: "FROM-TO:MEAN in seconds, such as 4-8:0.6",
  read(text) {
    const seconds = amount("seconds");
    const [from, to, mean] = (/^([\d.]+)-([\d.]+):([\d.]+)$/.exec(text) ?? [])
      .slice(1)
      .map(seconds.read);
    return from === undefined || to === undefined || mean === undefined || from >= to
      ? undefined
      : { from, to, mean };
  },
};

export type Work = { readonly mean: number; readonly sd: number; readonly slow?: Slow | undefined };

/**
 * One sleep, in seconds, begun `elapsed` seconds after the start: normally distributed (Box and
 * Muller 1958), redrawn while negative.
 */
export function drawSleep({ mean, sd, slow }: Work, random: () => number, elapsed: number): number {
  const centre = slow && elapsed >= slow.from && elapsed < slow.to ? slow.mean : mean;
  for (;;) {
    const normal = Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());
    const seconds = centre + sd * normal;
    if (seconds >= 0) return seconds;
  }
}

/** The sleep of a numbered ping: `drawSleep` with the number as its luck. */
export const sleepOfNumber = (work: Work, number: number, elapsed: number): number =>
  drawSleep(work, mulberry32(number), elapsed);

// ─── Server ──────────────────────────────────────────────────────────────────
// Sockets and slots. A connection waits or is served until it closes, and nothing else decides who
// is next; every connection ends in `#end` or `#reset`, or because its client left.

/** `log` takes one line; absent when nothing is logged. */
export type ServerOptions = Address &
  Work & {
    readonly maxConnections: number;
    readonly seed: number;
    readonly log?: ((line: string) => void) | undefined;
  };

type Connection = {
  readonly socket: Socket;
  readonly client: string;
  readonly asked: Asked;
  answered: number;
  /** It has a slot. */
  served: boolean;
  /** It has sent a byte. Who never does is a health check, and no line in the log. */
  spoken: boolean;
  /** Runs while an answer is in progress. */
  timer: NodeJS.Timeout | undefined;
};

/** Starts a server; it listens, at `address`, when the promise is fulfilled. Throws RunError. */
export async function startServer(options: ServerOptions): Promise<PingServer> {
  const server = new PingServer(options);
  await server.listen();
  return server;
}

export class PingServer {
  /** Where it really listens, once it does. */
  address: Address;
  readonly #options: ServerOptions;
  readonly #random: () => number;
  readonly #server: Server;
  readonly #served = new Set<Connection>();
  readonly #waiting = new Set<Connection>();
  #startedAt = 0;
  #stopping = false;

  constructor(options: ServerOptions) {
    this.address = options;
    this.#options = options;
    this.#random = mulberry32(options.seed);
    // The same high-water mark on every version of Node; a client that does not read must not
    // behave differently.
    this.#server = createServer(
      { allowHalfOpen: true, noDelay: true, highWaterMark: 16 * 1024 },
      (socket) => this.#accept(socket),
    );
  }

  /** How many connections have a slot, and how many wait for one. */
  get counts(): { served: number; waiting: number } {
    return { served: this.#served.size, waiting: this.#waiting.size };
  }

  async listen(): Promise<void> {
    this.address = await listen(this.#server, {
      host: this.#options.host,
      port: this.#options.port,
      backlog: 4096,
    });
    this.#startedAt = performance.now();
    this.#server.on("error", (error) =>
      this.#options.log?.(`Cannot accept a connection: ${reasonOf(error)}`),
    );
  }

  /**
   * Stops listening, finishes the answer in progress of each connection and ends it. Fulfilled when
   * none is left.
   */
  close(): Promise<void> {
    this.#stopping = true;
    const closed = new Promise<void>((resolve) => this.#server.close(() => resolve()));
    for (const connection of [...this.#served, ...this.#waiting]) this.#endIfDone(connection);
    return closed;
  }

  /**
   * Resets every connection, so that a `close` has nothing left to wait for. Returns how many there
   * were.
   */
  cut(): number {
    const open = [...this.#served, ...this.#waiting];
    for (const connection of open) this.#reset(connection);
    return open.length;
  }

  #accept(socket: Socket): void {
    // undefined when the client has left already
    const { remoteAddress: host, remotePort: port } = socket;
    const client =
      host === undefined || port === undefined ? "unknown" : formatAddress({ host, port });
    const connection: Connection = {
      socket,
      client,
      asked: nothingAsked(),
      answered: 0,
      served: false,
      spoken: false,
      timer: undefined,
    };
    socket
      .on("error", (error) => this.#say(connection, "Lost", `: ${reasonOf(error)}`))
      .on("data", (chunk: Buffer) => this.#take(connection, chunk))
      .on("end", () => this.#ended(connection))
      .on("drain", () => this.#answer(connection))
      .on("close", () => this.#closed(connection));
    this.#waiting.add(connection);
    this.#fillSlots();
  }

  #say({ spoken, client }: Connection, what: string, more = ""): void {
    if (spoken) this.#options.log?.(`${what} client ${client}${more}`);
  }

  #introduce(connection: Connection): void {
    connection.spoken = true;
    if (connection.served) return this.#say(connection, "Serving");
    const before = [...this.#waiting].indexOf(connection);
    this.#say(connection, "Connected", `, who waits for a slot with ${before} before it`);
  }

  /** Gives free slots to those who have waited longest. */
  #fillSlots(): void {
    for (const connection of this.#waiting) {
      if (this.#served.size >= this.#options.maxConnections || this.#stopping) return;
      this.#waiting.delete(connection);
      this.#served.add(connection);
      connection.served = true;
      this.#say(connection, "Serving");
      this.#answer(connection);
    }
  }

  #take(connection: Connection, chunk: Buffer): void {
    if (!connection.spoken) this.#introduce(connection);
    const { asked, socket } = connection;
    const wrong = countPings(asked, chunk);
    if (wrong === undefined) {
      if (asked.waiting.length >= MOST_WAITING) socket.pause();
      return this.#answer(connection);
    }
    const byte = `0x${wrong.toString(16).padStart(2, "0")}`;
    this.#say(connection, "Protocol error of", `: byte ${byte} is no part of "PING!"`);
    this.#reset(connection);
  }

  /**
   * The client has finished sending, and still gets its answers; without any it gives up its place.
   */
  #ended(connection: Connection): void {
    const { socket, asked } = connection;
    const { matched } = asked;
    if (matched > 0)
      this.#say(
        connection,
        "Protocol error of",
        `: the stream ends ${matched} bytes into a "PING!"`,
      );
    // Node 20 shows a reset that arrives together with data as a clean end. An empty write tells
    // them apart: it fails after a reset.
    if (asked.waiting.length > 0) socket.write("");
    this.#endIfDone(connection);
  }

  /**
   * Answers until an answer takes time or the client does not read; `'drain'` or the timer go on
   * from there.
   */
  #answer(connection: Connection): void {
    const { socket, asked } = connection;
    if (!connection.served || connection.timer) return;
    socket.cork(); // thousands of `PING!`s may come in one chunk: their answers leave together
    while (asked.waiting.length > 0 && !this.#stopping && !socket.writableNeedDrain) {
      const seconds = this.#sleep(asked.waiting[0]?.number);
      if (seconds > 0) {
        const ms = Math.min(Math.round(seconds * 1000), LONGEST_TIMER);
        connection.timer = setTimeout(this.#afterSleep, ms, connection);
        break;
      }
      this.#send(connection);
    }
    socket.uncork();
    this.#endIfDone(connection);
  }

  #sleep(number: number | undefined): number {
    const elapsed = (performance.now() - this.#startedAt) / 1000;
    if (number === undefined) return drawSleep(this.#options, this.#random, elapsed);
    return sleepOfNumber(this.#options, number, elapsed);
  }

  readonly #afterSleep = (connection: Connection): void => {
    connection.timer = undefined;
    this.#send(connection);
    this.#answer(connection);
  };

  #send(connection: Connection): void {
    const { asked, socket } = connection;
    const first = asked.waiting[0]!;
    first.times -= 1;
    if (first.times === 0) asked.waiting.shift();
    connection.answered += 1;
    socket.write(PONG);
    if (asked.waiting.length < MOST_WAITING && socket.isPaused()) socket.resume();
  }

  /**
   * Ends a connection that waits for nothing more: its client has finished and is answered, or the
   * server stops.
   */
  #endIfDone({ socket, asked, timer }: Connection): void {
    const isAnswered = socket.readableEnded && asked.waiting.length === 0;
    if (timer || socket.writableEnded || !(this.#stopping || isAnswered)) return;
    socket.end();
    // a client may never end its side
    if (!socket.readableEnded) setTimeout(() => socket.destroy(), GOODBYE_MS).unref();
  }

  #reset({ socket }: Connection): void {
    if (socket.writableEnded)
      socket.destroy(); // libuv refuses a reset while a FIN is on its way
    else socket.resetAndDestroy();
  }

  #closed(connection: Connection): void {
    clearTimeout(connection.timer);
    this.#served.delete(connection);
    this.#waiting.delete(connection);
    this.#say(connection, "Closed", ` after ${connection.answered} answers`);
    this.#fillSlots();
  }
}

// ─── Command line ────────────────────────────────────────────────────────────

const seconds = { kind: amount("seconds"), value: "SECONDS" } as const;

const OPTIONS = {
  mean: { ...seconds, fallback: "0.5", help: "mean of the sleep before an answer" },
  sd: { ...seconds, fallback: "0.2", help: "its standard deviation" },
  slow: {
    kind: slowPhase,
    value: "FROM-TO:MEAN",
    help: "another mean from one second to another after the start",
  },
  maxConnections: {
    kind: wholeNumber(1),
    value: "N",
    fallback: "10",
    help: "connections served at once; further ones wait",
  },
  seed: { kind: seedNumber, value: "N", help: "repeats the sleeps of another run" },
  log: {
    kind: oneOf(["text", "none"]),
    value: "text|none",
    fallback: "text",
    help: "a line for each client",
  },
} as const;

async function main(
  positionals: string[],
  { log, ...values }: Values<typeof OPTIONS>,
): Promise<number> {
  const [host, port, extra] = positionals;
  if (host === undefined) throw new UsageError("");
  if (port === undefined)
    throw new UsageError(
      `Missing port after ${JSON.stringify(host)}: expected ${portNumber.expected}`,
    );
  if (extra !== undefined)
    throw new UsageError(`Bad argument ${JSON.stringify(extra)}: expected a host and a port only`);
  const lines = new LineWriter();
  process.on("exit", () => lines.flush());
  const server = await startServer({
    ...values,
    host: readValue("host", hostName, host),
    port: readValue("port", portNumber, port),
    seed: values.seed ?? Math.floor(Math.random() * 2 ** 32),
    log: log === "text" ? (line) => lines.write(line) : undefined,
  });
  let cut = 0;
  const stopped = new Promise<void>((resolve) =>
    onStopSignals(
      () => void server.close().then(resolve),
      () => {
        cut += server.cut();
      },
    ),
  );
  console.log(`Listening on ${formatAddress(server.address)}`);
  await stopped;
  return cut > 0 ? 1 : 0;
}

if (isMain(import.meta))
  void runScript({ usage: "How to Use: tsx server.ts [host] [port]", options: OPTIONS, main });
