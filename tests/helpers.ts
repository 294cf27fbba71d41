/**
 * helpers.ts - what several test files need. Everything here has a deadline, because uvu has none,
 * and everything it opens is closed again by `cleanUp`, because all test files share one process.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { subscribe, unsubscribe } from "node:diagnostics_channel";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import {
  connect,
  createServer,
  type Server,
  type ServerOpts,
  Socket,
  type TcpNetConnectOpts,
} from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { Worker } from "node:worker_threads";
import * as assert from "uvu/assert";
import {
  type CheckSpec,
  completed,
  type LoadBalancer,
  type LoadBalancerOptions,
  parseServers,
  readCheck,
  type Reason,
  startLoadBalancer,
  type Status,
} from "../load_balancer.ts";

export const ROOT = fileURLToPath(new URL("..", import.meta.url));

/**
 * `promise`, or an error that names `what` once `seconds` have passed. Generous: it proves "did not
 * hang", no more.
 */
export async function within<T>(promise: Promise<T>, what: string, seconds = 20): Promise<T> {
  const { promise: late, reject } = deferred<never>();
  const timer = setTimeout(
    () => reject(new Error(`${what}: nothing after ${seconds} s`)),
    seconds * 1000,
  );
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

/** A promise and the functions that settle it. */
export function deferred<T>(): {
  promise: Promise<T>;
  resolve: (value: T) => void;
  reject: (error: Error) => void;
} {
  let resolve!: (value: T) => void;
  let reject!: (error: Error) => void;
  const promise = new Promise<T>((yes, no) => {
    resolve = yes;
    reject = no;
  });
  return { promise, resolve, reject };
}

/** Waits until `condition` holds, looking every few milliseconds. */
export async function until(condition: () => boolean, what: string, seconds = 20): Promise<void> {
  const deadline = performance.now() + seconds * 1000;
  while (!condition()) {
    if (performance.now() > deadline) throw new Error(`${what}: not so after ${seconds} s`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

// ─── Cleaning up ─────────────────────────────────────────────────────────────

const cleanups: (() => unknown)[] = [];

/** Has `undo` called by the next `cleanUp`, last registered first. */
export const later = (undo: () => unknown): void => void cleanups.push(undo);

/**
 * For `test.after.each`: undoes all that was opened. An error that is thrown here while a test
 * fails is lost by uvu, and that test with it: hence the exit code.
 */
export async function cleanUp(): Promise<void> {
  const errors: unknown[] = [];
  for (let undo = cleanups.pop(); undo; undo = cleanups.pop()) {
    await within(Promise.resolve().then(undo), "clean-up").catch((error: unknown) =>
      errors.push(error),
    );
  }
  if (errors.length === 0) return;
  console.error(...errors);
  process.once("exit", () => {
    process.exitCode = 1;
  });
  throw errors[0];
}

/** An empty folder that is removed again. */
export async function temporaryFolder(): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), "balancer-test-"));
  later(() => rm(folder, { recursive: true, force: true }));
  return folder;
}

export const readJson = (file: string) => JSON.parse(readFileSync(file, "utf8"));

// ─── Scripts as child processes ──────────────────────────────────────────────

export interface Running {
  readonly child: ChildProcess;
  /** What it has printed so far. */
  readonly output: { stdout: string; stderr: string };
  /** Its exit code, or the signal that ended it. */
  readonly exited: Promise<number | string>;
  /** The first match in stdout; fails when the script ends without it. */
  readonly printed: (pattern: RegExp) => Promise<RegExpExecArray>;
}

/**
 * Starts `node --import tsx SCRIPT ...args`, with the words of `under` before it; it is killed by
 * `cleanUp` if it still runs.
 */
export const start = (
  script: string,
  args: readonly string[] = [],
  cwd = ROOT,
  under: readonly string[] = [],
): Running =>
  startNode(
    ["--import", import.meta.resolve("tsx"), join(ROOT, script), ...args],
    script,
    cwd,
    under,
  );

/** Starts `node ...args`; errors call it `name`. */
export function startNode(
  args: readonly string[],
  name: string,
  cwd = ROOT,
  under: readonly string[] = [],
): Running {
  const [command = "", ...words] = [...under, process.execPath, ...args];
  // uvu's; with NO_COLOR beside it, Node warns on the stderr that tests read
  const { FORCE_COLOR, ...env } = process.env;
  const child = spawn(command, words, { cwd, env, stdio: ["ignore", "pipe", "pipe"] });
  const output = { stdout: "", stderr: "" };
  child.stdout.setEncoding("utf8").on("data", (text: string) => {
    output.stdout += text;
  });
  child.stderr.setEncoding("utf8").on("data", (text: string) => {
    output.stderr += text;
  });
  const exited = once(child, "close").then(([code, signal]: unknown[]) =>
    typeof code === "number" ? code : String(signal),
  );
  let ended = false;
  void exited.then(() => {
    ended = true;
  });
  later(() => {
    child.kill("SIGKILL");
    return exited;
  });
  const printed = async (pattern: RegExp): Promise<RegExpExecArray> => {
    await until(() => pattern.test(output.stdout) || ended, `${name} printing ${pattern}`);
    const match = pattern.exec(output.stdout);
    if (!match)
      throw new Error(
        `${name} ended without printing ${pattern}: ${output.stdout}${output.stderr}`,
      );
    return match;
  };
  return { child, output, exited, printed };
}

/** Runs a script to its end. */
export async function run(
  script: string,
  args: readonly string[] = [],
  cwd = ROOT,
): Promise<{ code: number | string; stdout: string; stderr: string }> {
  const { output, exited } = start(script, args, cwd);
  const code = await within(exited, `${script} ${args.join(" ")}`, 60);
  return { code, ...output };
}

/**
 * Runs command lines (a script and its arguments) that end at once by themselves, all of them in
 * one process.
 */
export async function runEach(
  lines: readonly (readonly string[])[],
  under: readonly string[] = [],
): Promise<{ code: number; stdout: string; stderr: string }[]> {
  const args = [JSON.stringify(lines)];
  const { output, exited } = start("tests/command_lines.ts", args, undefined, under);
  assert.is(await within(exited, "the command lines", 60), 0, output.stderr);
  return JSON.parse(output.stdout);
}

/**
 * From now on what this file starts says nothing of its coverage, which costs each start half as
 * much again: other files cover the same lines.
 */
export function coverNoChildren(): void {
  process.env["NODE_V8_COVERAGE"] = "";
}

/** The same for what is started by what this file starts. */
export function coverNoGrandchildren(): void {
  const preload = "data:text/javascript,process.env.NODE_V8_COVERAGE=''";
  process.env["NODE_OPTIONS"] = `--import=${preload}`;
}

// ─── Sockets ─────────────────────────────────────────────────────────────────

export interface Listening {
  readonly server: Server;
  readonly port: number;
  /** `127.0.0.1:PORT` */
  readonly address: string;
  readonly sockets: Set<Socket>;
}

/**
 * A TCP server on a free port. Errors of its sockets are left to `onConnection`, and ignored where
 * it does not care.
 */
export async function listening(
  onConnection: (socket: Socket) => void,
  options: ServerOpts = { allowHalfOpen: true },
  port = 0,
): Promise<Listening> {
  const sockets = new Set<Socket>();
  const server = createServer(options, (socket) => {
    sockets.add(socket);
    socket.on("error", () => undefined).on("close", () => sockets.delete(socket));
    onConnection(socket);
  });
  await within(once(server.listen(port, "127.0.0.1"), "listening"), "listening");
  const bound = server.address();
  if (bound === null || typeof bound === "string") throw new Error("no port");
  later(() => {
    for (const socket of sockets) socket.destroy();
    return new Promise((resolve) => server.close(resolve));
  });
  return { server, port: bound.port, address: `127.0.0.1:${bound.port}`, sockets };
}

/** `socket`, which the test holds one end of, and what the other end has done so far. */
export interface Talk {
  readonly socket: Socket;
  /** How many bytes have come, and the bytes. */
  readonly size: () => number;
  readonly bytes: () => Buffer;
  /** How the other side finished: `end`, or the code of the error. */
  readonly outcome: Promise<string>;
}

const codeOf = (error: Error): string => ("code" in error ? String(error.code) : error.message);

function follow(socket: Socket): { talk: Talk; take: (chunk: Buffer) => void } {
  const chunks: Buffer[] = [];
  let size = 0;
  const { promise: outcome, resolve } = deferred<string>();
  socket
    .on("error", (error) => resolve(codeOf(error)))
    .on("end", () => {
      // Node 20 and 22 report data and a reset that arrive together as data and a clean end; a
      // write of nothing tells.
      if (socket.writableEnded) resolve("end");
      else socket.write(Buffer.alloc(0), (error) => resolve(error ? codeOf(error) : "end"));
    })
    .on("close", () => resolve("closed"));
  const take = (chunk: Buffer): void => {
    size += chunk.length;
    chunks.push(chunk);
  };
  return { take, talk: { socket, size: () => size, bytes: () => Buffer.concat(chunks), outcome } };
}

/** Reads everything that comes from an accepted `socket`. */
export function listenTo(socket: Socket): Talk {
  const { talk, take } = follow(socket);
  socket.on("data", take);
  return talk;
}

/**
 * Connects to `port` and reads everything. One read a turn of the loop, so that a reset right
 * behind data is seen even after our own end.
 */
export async function dial(port: number, options: Partial<TcpNetConnectOpts> = {}): Promise<Talk> {
  let take: ((chunk: Buffer) => void) | undefined;
  const callback = (count: number, buffer: Uint8Array): boolean => {
    take?.(Buffer.from(buffer.subarray(0, count)));
    setImmediate(() => {
      if (!socket.destroyed) socket.resume();
    });
    return false;
  };
  const socket = connect({
    host: "127.0.0.1",
    port,
    allowHalfOpen: true,
    noDelay: true,
    onread: { buffer: Buffer.alloc(64 * 1024), callback },
    ...options,
  });
  later(() => socket.destroy());
  const connected = once(socket, "connect");
  const { talk, take: takeBytes } = follow(socket);
  take = takeBytes;
  await within(
    connected.catch(() => undefined),
    `connecting to port ${port}`,
  ); // an error is the outcome
  return talk;
}

export const outcomeOf = ({ outcome }: Talk): Promise<string> =>
  within(outcome, "the other side finishing");

/** Says `text`, ends, and returns the answer; the outcome when that was no clean end. */
export async function ask(port: number, text = "hello"): Promise<string> {
  const client = await dial(port);
  client.socket.end(text);
  const outcome = await outcomeOf(client);
  return outcome === "end" ? client.bytes().toString() : outcome;
}

/** The clients of a crowd. By hand: CONNECTIONS=10000. */
export const CONNECTIONS = Number(process.env["CONNECTIONS"] ?? 1500);

/** `CONNECTIONS` clients that ask, `atOnce` of them side by side. */
export function crowd(
  port: number,
  atOnce: number,
): { left: () => number; outcomes: Promise<[string, number][]> } {
  let left = CONNECTIONS;
  const outcomes = new Map<string, number>();
  const churn = async (): Promise<void> => {
    while ((left -= 1) >= 0) {
      const outcome = await ask(port);
      outcomes.set(outcome, (outcomes.get(outcome) ?? 0) + 1);
    }
  };
  const all = Promise.all(Array.from({ length: atOnce }, churn));
  return { left: () => left, outcomes: all.then(() => [...outcomes]) };
}

/** Has the next `times` attempts of balancers to connect (clients' or checks') fail with `code`. */
export function failDials(code: string, times: number, checks = false): { left: () => number } {
  let left = times;
  const onSocket = (message: unknown): void => {
    if (
      typeof message !== "object" ||
      message === null ||
      !("socket" in message) ||
      !(message.socket instanceof Socket)
    )
      return;
    const { socket } = message;
    queueMicrotask(() => {
      // by then a balancer has marked it as its own
      if (left === 0 || (socket.connection === undefined && !checks)) return;
      left -= 1;
      socket.destroy(Object.assign(new Error("what"), { code }));
    });
  };
  subscribe("net.client.socket", onSocket);
  later(() => unsubscribe("net.client.socket", onSocket));
  return { left: () => left };
}

/** An accepted connection as the test's server has it: `next()` waits for one. */
export async function serving(
  port = 0,
): Promise<Listening & { next: () => Promise<Talk>; count: () => number }> {
  const accepted: Talk[] = [];
  let taken = 0;
  const listener = await listening((socket) => accepted.push(listenTo(socket)), undefined, port);
  const next = async (): Promise<Talk> => {
    await until(() => accepted.length > taken, "a connection");
    const talk = accepted[taken++];
    if (talk === undefined) throw new Error("no connection");
    return talk;
  };
  return { ...listener, next, count: () => accepted.length };
}

/** A server that sends back what it gets, and ends when its client does. */
export const echoing = (port = 0): Promise<Listening> =>
  listening((socket) => void socket.pipe(socket), undefined, port);

/** Addresses at which nobody listens. */
export const DEAD = ["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"] as const;

/**
 * A port whose SYNs are dropped: its backlog is full and its thread asleep. `wake` lets it accept;
 * then it answers each client that ends with the number of bytes it sent, and ends. Waiting clients
 * get there when the kernel repeats their SYN, after a second.
 */
export async function swallowing(): Promise<{ address: string; wake: () => void }> {
  const shared = new SharedArrayBuffer(4);
  const code = `const { parentPort, workerData } = require("node:worker_threads");
    const server = require("node:net").createServer({ allowHalfOpen: true }, (socket) => {
      let size = 0;
      socket.on("error", () => undefined).on("data", (chunk) => { size += chunk.length; }).on("end", () => socket.end(String(size)));
    }).listen({ port: 0, host: "127.0.0.1", backlog: 1 }, () => {
      parentPort.postMessage(server.address().port);
      Atomics.wait(new Int32Array(workerData), 0, 0);
    });`;
  const worker = new Worker(code, { eval: true, workerData: shared, execArgv: [] });
  later(() => worker.terminate());
  const [port]: unknown[] = await within(once(worker, "message"), "the worker's port");
  for (let i = 0; i < 2; i += 1) await dial(Number(port));
  return {
    address: `127.0.0.1:${port}`,
    wake: () => {
      Atomics.store(new Int32Array(shared), 0, 1);
      Atomics.notify(new Int32Array(shared), 0);
    },
  };
}

// ─── Balancers ───────────────────────────────────────────────────────────────

/** accepted = active + queued + the sum of ended, at every moment. */
export function assertAllCounted({ accepted, active, queued, ended }: Status): void {
  const sum = Object.values(ended).reduce((total, count) => total + count, active + queued);
  assert.is(
    sum,
    accepted,
    `every accepted connection is counted once: ${JSON.stringify({ accepted, active, queued, ended })}`,
  );
}

/** A check as --check has it. */
export function checkOf(text: string): CheckSpec {
  const spec = readCheck.read(text);
  if (spec === undefined) throw new Error(`not a check: ${text}`);
  return spec;
}

/** A seed by which turns begin with the first server, and go on in order. */
const IN_ORDER = 1876;

/** Options of a balancer over `servers` on a free port, silent and without checks. */
export const optionsFor = (
  servers: readonly string[],
  options: Partial<LoadBalancerOptions> = {},
): LoadBalancerOptions =>
  completed({
    algorithm: "round-robin",
    servers: parseServers(servers),
    port: 0,
    log: "none",
    check: checkOf("none"),
    seed: IN_ORDER,
    idleTimeout: 30,
    connectTimeout: 5,
    ...options,
  });

/**
 * Starts a balancer over `servers`, without checks unless `options` say otherwise. `cleanUp` stops
 * it and asserts that it counted rightly.
 */
export async function startBalancer(
  servers: readonly string[],
  options: Partial<LoadBalancerOptions> = {},
): Promise<{ balancer: LoadBalancer; port: number; admin: number }> {
  const { balancer, address, admin } = await startLoadBalancer(optionsFor(servers, options));
  later(async () => {
    assertAllCounted(balancer.status());
    await balancer.stop(0);
    assertAllCounted(balancer.status());
    assertIdle(balancer.status());
  });
  return { balancer, port: address.port, admin: admin?.port ?? 0 };
}

function assertIdle({ active, queued, servers }: Status): void {
  assert.equal(
    [active, queued, ...servers.map((server) => server.active)],
    [0, 0, ...servers.map(() => 0)],
    "nothing is active or queued",
  );
}

/**
 * Waits until every connection of `balancer` has ended, and asserts that they ended for these
 * reasons and no others.
 */
export async function assertEnded(
  balancer: LoadBalancer,
  reasons: Partial<Record<Reason, number>>,
): Promise<void> {
  await until(
    () => balancer.status().active + balancer.status().queued === 0,
    "all connections ending",
  ).catch(() => undefined);
  const { ended } = balancer.status();
  assert.equal(Object.fromEntries(Object.entries(ended).filter(([, count]) => count > 0)), reasons);
  assertIdle(balancer.status());
}
