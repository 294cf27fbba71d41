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

// ─── Failures and names ──────────────────────────────────────────────────────

/** How many requests failed, by kind: none so far. */
export const noErrors = () => ({
  connect: 0, // no connection
  timeout: 0,
  reset: 0, // the other side's, before the answer
  closed: 0, // likewise
  wrong: 0, // other bytes than one `PONG!` a request
  shortage: 0, // we have no descriptor or port left to connect from; it says nothing of the others
  interrupted: 0, // our own `close` before the answer
});
export type FailureKind = keyof ReturnType<typeof noErrors>;
const isFailureKind = (name: string): name is FailureKind => name in noErrors();
export const failureKinds = Object.keys(noErrors()).filter(isFailureKind);

/** What the system says when it is ours that is used up. */
const SHORTAGES: readonly unknown[] = ["EMFILE", "ENFILE", "EADDRNOTAVAIL", "ENOBUFS"];

/** A request that got no answer. */
export class RequestError extends RunError {
  readonly kind: FailureKind;
  constructor(kind: FailureKind, message: string) {
    super(message);
    this.kind = kind;
  }
}

/**
 * All addresses of a name, IPv4 first. Connecting to a name costs a look-up and a race between its
 * addresses every time (happy eyeballs); looked up once, it costs neither. Throws RunError.
 */
export async function resolveAddresses({ host, port }: Address): Promise<Address[]> {
  const found = await lookup(host, { all: true, verbatim: false }).catch((error: unknown) => {
    throw new RunError(`Cannot resolve ${JSON.stringify(host)}: ${reasonOf(error)}`);
  });
  return found.map(({ address }) => ({ host: address, port }));
}

// ─── Client ──────────────────────────────────────────────────────────────────
// A client has at most one socket and at most one request. Whatever happens to the two ends in
// `#succeed` or `#fail`; a socket that was dropped is no longer listened to.

/** Shared by all clients: each looks at its bytes before the next read. */
const readBuffer = Buffer.alloc(64);

type Request = {
  /** Undefined when no more than a connection was asked for. */
  readonly ping: Buffer | string | undefined;
  readonly resolve: (seconds: number) => void;
  readonly reject: (error: RequestError) => void;
  readonly since: number;
  readonly deadline: NodeJS.Timeout;
};

/** `timeout`: seconds, for one request; `localAddress`: one of this machine's, to come from. */
export type ClientOptions = { readonly timeout?: number; readonly localAddress?: string };

export class Client {
  readonly #addresses: readonly Address[];
  readonly #timeout: number;
  readonly #localAddress: string | undefined;
  /** Which of the addresses is dialled, first the one that accepted last time. */
  #place = 0;
  /** Why dials have failed since one succeeded or all did. */
  #refusals: RequestError[] = [];
  #socket: Socket | undefined;
  #connected = false;
  #request: Request | undefined;
  /** How many bytes of the answer are there. */
  #matched = 0;
  /** What broke the connection while nobody asked: the next request fails with it. */
  #broken: RequestError | undefined;

  /** `addresses` are tried in turn, and should hold no names: see `resolveAddresses`. */
  constructor(addresses: readonly Address[], { timeout = 30, localAddress }: ClientOptions = {}) {
    this.#addresses = addresses;
    this.#timeout = timeout;
    this.#localAddress = localAddress;
  }

  /**
   * Connects, unless there is a connection. Fulfilled with the seconds it took. Throws
   * RequestError.
   */
  async connect(): Promise<number> {
    if (this.#socket) return 0;
    const connected = this.#begin(performance.now(), undefined);
    this.#open();
    return connected;
  }

  /**
   * Sends `PING!`, or `PING 4711!` when there is a number, on a new connection if there is none.
   * Fulfilled with the seconds from `since` (a moment of `performance.now()`) to the last byte of
   * the answer. A failure ends the connection. Throws RequestError.
   */
  request(since = performance.now(), number?: number): Promise<number> {
    const broken = this.#broken;
    this.#broken = undefined;
    if (broken) return Promise.reject(broken);
    const answer = this.#begin(since, number === undefined ? PING : `PING ${number}!`);
    if (this.#socket) this.#send();
    else this.#open();
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

  get #address(): Address {
    return this.#addresses[this.#place % this.#addresses.length]!;
  }

  #begin(since: number, ping: Request["ping"]): Promise<number> {
    if (this.#request) throw new Error("a client makes one request at a time");
    return new Promise((resolve, reject) => {
      const left = Math.max(0, since + this.#timeout * 1000 - performance.now());
      const deadline = setTimeout(this.#onDeadline, left);
      this.#request = { ping, resolve, reject, since, deadline };
    });
  }

  #open(): void {
    const socket = connect({
      ...this.#address,
      localAddress: this.#localAddress,
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
        this.#refusals = [];
        if (this.#request?.ping) this.#send();
        else this.#succeed();
      });
  }

  #send(): void {
    this.#matched = 0;
    if (this.#request?.ping) this.#socket?.write(this.#request.ping);
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
      return this.#fail("reset", `Lost the connection to ${this.#where}: ${reasonOf(error)}`);
    const isOurs = "code" in error && SHORTAGES.includes(error.code);
    const message = `Cannot connect to ${this.#where}: ${reasonOf(error)}`;
    this.#dialFailed(new RequestError(isOurs ? "shortage" : "connect", message));
  }

  /**
   * On to the next address; the request fails when there is none, for what the first one said. A
   * machine without IPv6 lacks an address of its own for the second: that is no shortage.
   */
  #dialFailed(error: RequestError): void {
    this.#place += 1;
    this.#refusals.push(error);
    const { kind, message } = this.#refusals[0] ?? error;
    if (this.#refusals.length === this.#addresses.length) return this.#fail(kind, message);
    this.#drop()?.destroy();
    this.#open();
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
    this.#refusals = [];
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
  const client = new Client(await resolveAddresses(address));
  await client.connect();
  const seconds = await client.request();
  client.close();
  console.log(`PONG!\nResponse time: ${seconds.toFixed(4)} seconds`);
  return 0;
}

if (isMain(import.meta))
  void runScript({ usage: "How to Use: tsx client.ts", options: OPTIONS, main });
