/**
 * helpers.ts - what several test files need. Everything here has a deadline, because uvu has none, and everything it
 * opens is closed again by `cleanUp`, because all test files share one process.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import { createServer, type Server, type ServerOpts, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

const ROOT = fileURLToPath(new URL("..", import.meta.url));

/** `promise`, or an error that names `what` once `seconds` have passed. Generous: it proves "did not hang", no more. */
export async function within<T>(promise: Promise<T>, what: string, seconds = 20): Promise<T> {
  const { promise: late, reject } = deferred<never>();
  const timer = setTimeout(() => reject(new Error(`${what}: nothing after ${seconds} s`)), seconds * 1000);
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

/** A promise and the functions that settle it. */
export function deferred<T>(): { promise: Promise<T>; resolve: (value: T) => void; reject: (error: Error) => void } {
  let resolve!: (value: T) => void;
  let reject!: (error: Error) => void;
  const promise = new Promise<T>((yes, no) => { resolve = yes; reject = no; });
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

/** For `test.after.each`: undoes all that was opened. */
export async function cleanUp(): Promise<void> {
  for (let undo = cleanups.pop(); undo; undo = cleanups.pop()) await within(Promise.resolve(undo()), "clean-up");
}

/** An empty folder that is removed again. */
export async function temporaryFolder(): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), "balancer-test-"));
  later(() => rm(folder, { recursive: true, force: true }));
  return folder;
}

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

/** Starts `node --import tsx SCRIPT ...args`; it is killed by `cleanUp` if it still runs. */
export function start(script: string, args: readonly string[] = [], cwd = ROOT): Running {
  const child = spawn(process.execPath, ["--import", import.meta.resolve("tsx"), join(ROOT, script), ...args], { cwd, stdio: ["ignore", "pipe", "pipe"] });
  const output = { stdout: "", stderr: "" };
  child.stdout.setEncoding("utf8").on("data", (text: string) => { output.stdout += text; });
  child.stderr.setEncoding("utf8").on("data", (text: string) => { output.stderr += text; });
  const exited = once(child, "close").then(([code, signal]: unknown[]) => (typeof code === "number" ? code : String(signal)));
  let ended = false;
  void exited.then(() => { ended = true; });
  later(() => { child.kill("SIGKILL"); return exited; });
  const printed = async (pattern: RegExp): Promise<RegExpExecArray> => {
    await until(() => pattern.test(output.stdout) || ended, `${script} printing ${pattern}`);
    const match = pattern.exec(output.stdout);
    if (!match) throw new Error(`${script} ended without printing ${pattern}: ${output.stdout}${output.stderr}`);
    return match;
  };
  return { child, output, exited, printed };
}

/** Runs a script to its end. */
export async function run(script: string, args: readonly string[] = [], cwd = ROOT): Promise<{ code: number | string; stdout: string; stderr: string }> {
  const { output, exited } = start(script, args, cwd);
  const code = await within(exited, `${script} ${args.join(" ")}`, 60);
  return { code, ...output };
}

// ─── Sockets ─────────────────────────────────────────────────────────────────

export interface Listening {
  readonly server: Server;
  readonly port: number;
  /** `127.0.0.1:PORT` */
  readonly address: string;
  readonly sockets: Set<Socket>;
}

/** A TCP server on a free port. Errors of its sockets are left to `onConnection`, and ignored where it does not care. */
export async function listening(onConnection: (socket: Socket) => void, options: ServerOpts = { allowHalfOpen: true }, port = 0): Promise<Listening> {
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
