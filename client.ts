#!/usr/bin/env -S node --import tsx
/**
 * client.ts - asks a ping server, or a balancer before it, and says how long the answer took.
 *
 * The class `Client` is what the stress test is made of: one connection at a time, one request at a
 * time, and every failure of one of a few kinds.
 *
 *   tsx client.ts
 *   tsx client.ts --host 127.0.0.1 --port 65433
 */
import { lookup } from "node:dns/promises";
import { connect, type Socket } from "node:net";
import {
  type Address,
  formatAddress,
  hostName,
  isMain,
  reasonOf,
  RunError,
  runScript,
  UsageError,
  type Values,
  wholeNumber,
} from "./lib.ts";

const PING = Buffer.from("PING!");
const PONG = Buffer.from("PONG!");
const TIMEOUT_SECONDS = 30;

// ─── Failures and names ──────────────────────────────────────────────────────

/**
 * `connect`: no connection; `reset`, `closed`: the other side's, before the answer; `wrong`: other
 * bytes than one `PONG!` a request; `interrupted`: our own `close` before the answer.
 */
export const failureKinds = [
  "connect",
  "timeout",
  "reset",
  "closed",
  "wrong",
  "interrupted",
] as const;
export type FailureKind = (typeof failureKinds)[number];

/** A request that got no answer. */
export class RequestError extends RunError {
  readonly kind: FailureKind;
  constructor(kind: FailureKind, message: string) {
    super(message);
    this.kind = kind;
  }
}

/**
 * The same address with its name looked up, IPv4 first. Connecting to a name costs a look-up and a
 * race between its addresses every time (happy eyeballs); looked up once, it costs neither. Throws
 * RunError.
 */
export async function resolveAddress({ host, port }: Address): Promise<Address> {
  const found = await lookup(host, { verbatim: false }).catch((error: unknown) => {
    throw new RunError(`Cannot resolve ${JSON.stringify(host)}: ${reasonOf(error)}`);
  });
  return { host: found.address, port };
}

// ─── Client ──────────────────────────────────────────────────────────────────
// A client has at most one socket and at most one request. Whatever happens to the two ends in
// `#succeed` or `#fail`; a socket that was dropped is no longer listened to.

/**
 * Shared by all clients: each looks at its bytes before the next read. More than an answer is
 * wrong, so it can be small.
 */
const readBuffer = Buffer.alloc(64);

type Request = {
  readonly resolve: (seconds: number) => void;
  readonly reject: (error: RequestError) => void;
  readonly since: number;
  readonly deadline: NodeJS.Timeout;
};

export class Client {
  readonly #address: Address;
  readonly #timeout: number;
  #socket: Socket | undefined;
  #connected = false;
  #request: Request | undefined;
  /** How many bytes of the answer are there. */
  #matched = 0;
  /** What broke the connection while nobody asked: the next request fails with it. */
  #broken: RequestError | undefined;

  /**
   * `address` should hold no name, see `resolveAddress`; `timeout` is in seconds, for one request.
   */
  constructor(address: Address, timeout = TIMEOUT_SECONDS) {
    this.#address = address;
    this.#timeout = timeout;
  }

  /**
   * Connects, unless there is a connection. Fulfilled with the seconds it took. Throws
   * RequestError.
   */
  async connect(): Promise<number> {
    if (this.#socket) return 0;
    const connected = this.#begin(performance.now());
    this.#open(false);
    return connected;
  }

  /**
   * Sends `PING!`, on a new connection if there is none. Fulfilled with the seconds from `since` (a
   * moment of `performance.now()`) to the last byte of the answer. A failure ends the connection.
   * Throws RequestError.
   */
  request(since = performance.now()): Promise<number> {
    const broken = this.#broken;
    this.#broken = undefined;
    if (broken) return Promise.reject(broken);
    const answer = this.#begin(since);
    if (this.#socket) this.#send();
    else this.#open(true);
    return answer;
  }

  /**
   * Ends the connection. A request without an answer is rejected as interrupted, and the server
   * sees a reset.
   */
  close(): void {
    if (this.#request)
      return this.#fail("interrupted", `Interrupted before the answer from ${this.#where}`);
    this.#drop()?.destroy();
    this.#broken = undefined;
  }

  get #where(): string {
    return formatAddress(this.#address);
  }

  #begin(since: number): Promise<number> {
    if (this.#request) throw new Error("a client makes one request at a time");
    return new Promise((resolve, reject) => {
      const left = Math.max(0, since + this.#timeout * 1000 - performance.now());
      this.#request = { resolve, reject, since, deadline: setTimeout(this.#onDeadline, left) };
    });
  }

  #open(ask: boolean): void {
    const socket = connect({
      ...this.#address,
      noDelay: true,
      allowHalfOpen: true, // or `#onEnd` could not find out whether it was a reset
      // a read allocates nothing
      onread: { buffer: readBuffer, callback: (length) => this.#onRead(length) },
    });
    this.#socket = socket;
    socket
      .on("error", (error) => {
        if (socket === this.#socket) this.#onError(error);
      })
      .on("end", () => {
        if (socket === this.#socket) this.#onEnd(socket);
      })
      .on("connect", () => {
        this.#connected = true;
        if (ask) this.#send();
        else this.#succeed();
      });
  }

  #send(): void {
    this.#matched = 0;
    this.#socket?.write(PING);
  }

  #onRead(length: number): boolean {
    for (let i = 0; i < length; i++) {
      // undefined after the answer, too
      const expected = this.#request ? PONG[this.#matched++] : undefined;
      if (readBuffer[i] === expected) continue;
      this.#fail("wrong", `Wrong answer from ${this.#where}: expected one "PONG!" for a "PING!"`);
      return false;
    }
    if (this.#matched === PONG.length) this.#succeed();
    return true;
  }

  #onError(error: Error): void {
    if (this.#connected)
      this.#fail("reset", `Lost the connection to ${this.#where}: ${reasonOf(error)}`);
    else this.#fail("connect", `Cannot connect to ${this.#where}: ${reasonOf(error)}`);
  }

  /**
   * Node 20 shows a reset that arrives together with data as a clean end. An empty write tells them
   * apart: it fails after a reset.
   */
  #onEnd(socket: Socket): void {
    socket.write("", (error) => {
      if (!error && socket === this.#socket)
        this.#fail("closed", `${this.#where} closed the connection before its answer`);
    });
  }

  readonly #onDeadline = (): void => {
    this.#fail(
      "timeout",
      `${this.#connected ? "No answer from" : "No connection to"} ${this.#where} within ${this.#timeout} s`,
    );
  };

  #succeed(): void {
    const request = this.#take();
    request?.resolve((performance.now() - request.since) / 1000);
  }

  #fail(kind: FailureKind, message: string): void {
    const socket = this.#drop();
    // Where somebody still works on the answer, a reset says at once that nobody waits for it.
    if (kind === "timeout" || kind === "wrong" || kind === "interrupted") socket?.resetAndDestroy();
    socket?.destroy();
    const error = new RequestError(kind, message);
    const request = this.#take();
    if (request) request.reject(error);
    else this.#broken = error;
  }

  #take(): Request | undefined {
    const request = this.#request;
    this.#request = undefined;
    clearTimeout(request?.deadline);
    return request;
  }

  #drop(): Socket | undefined {
    const socket = this.#socket;
    this.#socket = undefined;
    this.#connected = false;
    return socket;
  }
}

// ─── Command line ────────────────────────────────────────────────────────────

const OPTIONS = {
  host: { kind: hostName, value: "HOST", fallback: "127.0.0.1", help: "whom to ask" },
  port: { kind: wholeNumber(1, 65535), value: "PORT", fallback: "65432", help: "and where" },
} as const;

async function main([extra]: string[], address: Values<typeof OPTIONS>): Promise<number> {
  if (extra !== undefined)
    throw new UsageError(`Bad argument ${JSON.stringify(extra)}: expected --host or --port`);
  const client = new Client(await resolveAddress(address));
  await client.connect();
  const seconds = await client.request();
  client.close();
  console.log(`PONG!\nResponse time: ${seconds.toFixed(4)} seconds`);
  return 0;
}

if (isMain(import.meta))
  void runScript({ usage: "How to Use: tsx client.ts", options: OPTIONS, main });
