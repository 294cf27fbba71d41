#!/usr/bin/env -S node --import tsx
/**
 * server.ts - a ping server that simulates work.
 *
 * Counts the `PING!`s in what a client sends, however they are sliced or glued together, and
 * answers each with `PONG!` after a normally distributed sleep: in order, one at a time. Only so
 * many connections are served at once; the others are accepted, read and kept waiting, first come,
 * first served, until one closes. Anything but `PING!` resets the connection.
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

const PING = Buffer.from("PING!");
const PONG = Buffer.from("PONG!");
/**
 * How long a client may take, once we have ended a connection in order to stop, to end it as well.
 */
const GOODBYE_MS = 1000;

// ─── Bytes and sleeps ────────────────────────────────────────────────────────
// Pure: what a client has asked for, and how long an answer takes. All that is remembered of a
// client's bytes are two numbers, so memory is bounded however much it sends, and reading need
// never pause.

/** `unanswered` whole `PING!`s, then the first `matched` bytes of another one. */
export type Asked = { unanswered: number; matched: number };

/**
 * Takes in `chunk`. Returns its first byte that cannot belong to a `PING!`; undefined when there is
 * none.
 */
export function countPings(asked: Asked, chunk: Uint8Array): number | undefined {
  for (let i = 0; i < chunk.length; i++) {
    if (chunk[i] !== PING[asked.matched]) return chunk[i];
    asked.matched++;
    if (asked.matched === PING.length) {
      asked.matched = 0;
      asked.unanswered++;
    }
  }
  return undefined;
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

// ─── Server ──────────────────────────────────────────────────────────────────
// Sockets and slots. A connection waits or is served until it closes, and nothing else decides who
// is next; every connection ends in `#end` or `#reset`, or because its client left.

export type ServerOptions = Address &
  Work & {
    readonly maxConnections: number;
    readonly seed: number;
    /** Takes one line; absent when nothing is logged. */
    readonly log?: ((line: string) => void) | undefined;
  };

type Connection = {
  readonly socket: Socket;
  readonly client: string;
  readonly asked: Asked;
  answered: number;
  /** It has a slot. */
  served: boolean;
  /** Runs while an answer is in progress. */
  timer: NodeJS.Timeout | undefined;
};

/**
 * Starts a server; it is listening, at `address`, when the promise is fulfilled. Throws RunError.
 */
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
      asked: { unanswered: 0, matched: 0 },
      answered: 0,
      served: false,
      timer: undefined,
    };
    socket
      .on("error", (error) => this.#options.log?.(`Lost client ${client}: ${reasonOf(error)}`))
      .on("data", (chunk: Buffer) => this.#take(connection, chunk))
      .on("end", () => this.#ended(connection))
      .on("drain", () => this.#answer(connection))
      .on("close", () => this.#closed(connection));
    this.#waiting.add(connection);
    this.#fillSlots();
    if (!connection.served)
      this.#options.log?.(
        `Connected client ${client}, who waits for a slot with ${this.#waiting.size - 1} before it`,
      );
  }

  /** Gives free slots to those who have waited longest. */
  #fillSlots(): void {
    for (const connection of this.#waiting) {
      if (this.#served.size >= this.#options.maxConnections || this.#stopping) return;
      this.#waiting.delete(connection);
      this.#served.add(connection);
      connection.served = true;
      this.#options.log?.(`Serving client ${connection.client}`);
      this.#answer(connection);
    }
  }

  #take(connection: Connection, chunk: Buffer): void {
    const wrong = countPings(connection.asked, chunk);
    if (wrong === undefined) return this.#answer(connection);
    this.#options.log?.(
      `Protocol error of client ${connection.client}: byte 0x${wrong.toString(16).padStart(2, "0")} is no part of "PING!"`,
    );
    this.#reset(connection);
  }

  /**
   * The client has finished sending, and still gets its answers; without any it gives up its place.
   */
  #ended(connection: Connection): void {
    const { socket, client, asked } = connection;
    if (asked.matched > 0)
      this.#options.log?.(
        `Protocol error of client ${client}: the stream ends ${asked.matched} bytes into a "PING!"`,
      );
    // Node 20 shows a reset that arrives together with data as a clean end. An empty write tells
    // them apart: it fails after a reset.
    if (asked.unanswered > 0) socket.write("");
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
    while (asked.unanswered > 0 && !this.#stopping && !socket.writableNeedDrain) {
      const seconds = drawSleep(
        this.#options,
        this.#random,
        (performance.now() - this.#startedAt) / 1000,
      );
      if (seconds > 0) {
        connection.timer = setTimeout(
          this.#afterSleep,
          Math.min(Math.round(seconds * 1000), LONGEST_TIMER),
          connection,
        );
        break;
      }
      this.#send(connection);
    }
    socket.uncork();
    this.#endIfDone(connection);
  }

  readonly #afterSleep = (connection: Connection): void => {
    connection.timer = undefined;
    this.#send(connection);
    this.#answer(connection);
  };

  #send(connection: Connection): void {
    connection.asked.unanswered--;
    connection.answered++;
    connection.socket.write(PONG);
  }

  /**
   * Ends a connection that waits for nothing more: its client has finished and is answered, or the
   * server stops.
   */
  #endIfDone({ socket, asked, timer }: Connection): void {
    if (
      timer ||
      socket.writableEnded ||
      !(this.#stopping || (socket.readableEnded && asked.unanswered === 0))
    )
      return;
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
    this.#options.log?.(`Closed client ${connection.client} after ${connection.answered} answers`);
    this.#fillSlots();
  }
}

// ─── Command line ────────────────────────────────────────────────────────────

const OPTIONS = {
  mean: {
    kind: amount("seconds"),
    value: "SECONDS",
    fallback: "0.5",
    help: "mean of the sleep before an answer",
  },
  sd: {
    kind: amount("seconds"),
    value: "SECONDS",
    fallback: "0.2",
    help: "its standard deviation",
  },
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
