/**
 * chromium.ts - drives a Chromium over `--remote-debugging-pipe`: the browser reads JSON messages
 * from its descriptor 3 and writes them to 4, and each of them ends in a NUL byte.
 */
import { type ChildProcess, spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { Readable, Writable } from "node:stream";
import { later, temporaryFolder, until, within } from "./helpers.ts";

const NAMES = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];
const FLAGS = [
  "--headless",
  "--no-sandbox", // which root must not have
  "--disable-gpu",
  "--disable-dev-shm-usage", // containers have 64 MiB of it
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
  "--remote-debugging-pipe",
];

/** What a message of the protocol may hold; the rest is read as `unknown`. */
interface Message {
  readonly id?: number;
  readonly method?: string;
  readonly params?: Record<string, unknown>;
  readonly result?: Record<string, unknown>;
  readonly error?: { readonly message: string };
}

/** A tab that shows one page. */
export interface Tab {
  /** The value of a JavaScript expression in the page; a promise is awaited. */
  readonly value: (expression: string) => Promise<unknown>;
  /** Waits until the expression is true. */
  readonly shows: (expression: string, seconds?: number) => Promise<void>;
  /** Any command, as `Page.captureScreenshot`. */
  readonly send: (method: string, params?: object) => Promise<Record<string, unknown>>;
  readonly resize: (width: number, height: number) => Promise<unknown>;
  /** What the console has complained about, and what nobody caught. */
  readonly complaints: () => readonly string[];
}

/** The name of a Chromium that runs: some systems have a command that only says where to get it. */
export function findChromium(): string | undefined {
  return NAMES.find((name) => spawnSync(name, ["--version"], { timeout: 10_000 }).status === 0);
}

/** Starts the browser, which `cleanUp` ends, and opens `url` in its only tab. */
export async function openTab(command: string, url: string): Promise<Tab> {
  const folder = await temporaryFolder();
  const child = spawn(command, [...FLAGS, `--user-data-dir=${folder}`, "about:blank"], {
    stdio: ["ignore", "ignore", "ignore", "pipe", "pipe"],
    detached: true, // a group of its own: its helpers are ended with it
  });
  later(() => endGroup(child));
  const complaints: string[] = [];
  const ask = talkTo(child, (message) => complaints.push(...complaintOf(message)));
  const { targetInfos } = await ask("Target.getTargets");
  const targetId = pageOf(targetInfos);
  const { sessionId } = await ask("Target.attachToTarget", { targetId, flatten: true });
  const send: Tab["send"] = (method, params = {}) => ask(method, params, String(sessionId));
  for (const domain of ["Page", "Runtime", "Log"]) await send(`${domain}.enable`);
  const tab = tabOf(send, complaints);
  await send("Page.navigate", { url });
  await tab.shows(`location.href !== "about:blank" && document.readyState === "complete"`);
  return tab;
}

function tabOf(send: Tab["send"], complaints: readonly string[]): Tab {
  const value: Tab["value"] = async (expression) => {
    const options = { expression, returnByValue: true, awaitPromise: true };
    const { result, exceptionDetails } = await send("Runtime.evaluate", options);
    if (exceptionDetails !== undefined)
      throw new Error(`${expression}: ${JSON.stringify(exceptionDetails)}`);
    return isRecord(result) ? result["value"] : undefined;
  };
  const shows: Tab["shows"] = async (expression, seconds = 15) => {
    const deadline = performance.now() + seconds * 1000;
    while ((await value(expression)) !== true) {
      if (performance.now() > deadline) throw new Error(`${expression}: not so in ${seconds} s`);
      await new Promise((resolve) => setTimeout(resolve, 30));
    }
  };
  const resize: Tab["resize"] = (width, height) =>
    send("Emulation.setDeviceMetricsOverride", {
      width,
      height,
      deviceScaleFactor: 1,
      mobile: false,
    });
  return { value, shows, send, resize, complaints: () => complaints };
}

// ─── The pipe ────────────────────────────────────────────────────────────────

type Ask = (
  method: string,
  params?: object,
  sessionId?: string,
) => Promise<Record<string, unknown>>;

/** Sends commands, and gives what was not an answer to `onEvent`. */
function talkTo(child: ChildProcess, onEvent: (message: Message) => void): Ask {
  const [, , , toBrowser, fromBrowser] = child.stdio;
  if (!(toBrowser instanceof Writable) || !(fromBrowser instanceof Readable))
    throw new Error("no pipe to the browser");
  const answers = new Map<number, Message>();
  let sent = 0;
  let unread = "";
  // a browser that ends breaks the pipe: the question then fails by its deadline
  toBrowser.on("error", () => undefined);
  fromBrowser.setEncoding("utf8").on("data", (text: string) => {
    const messages = (unread + text).split("\0");
    unread = messages.pop() ?? "";
    for (const message of messages.map(parse)) {
      if (message.id === undefined) onEvent(message);
      else answers.set(message.id, message);
    }
  });
  return async (method, params = {}, sessionId = undefined) => {
    sent += 1;
    const id = sent;
    toBrowser.write(`${JSON.stringify({ id, method, params, sessionId })}\0`);
    await until(() => answers.has(id), `Chromium answering ${method}`, 30);
    const { result, error } = answers.get(id) ?? {};
    answers.delete(id);
    if (error !== undefined) throw new Error(`${method}: ${error.message}`);
    return result ?? {};
  };
}

function parse(text: string): Message {
  const message: Message = JSON.parse(text);
  return message;
}

async function endGroup(child: ChildProcess): Promise<void> {
  if (child.pid === undefined || child.exitCode !== null) return;
  const closed = once(child, "exit");
  process.kill(-child.pid, "SIGKILL");
  await within(closed, "Chromium ending");
}

// ─── What comes out of it ────────────────────────────────────────────────────

const isRecord = (value: unknown): value is Record<string, unknown> =>
  typeof value === "object" && value !== null;

function pageOf(targets: unknown): unknown {
  const list: unknown[] = Array.isArray(targets) ? targets : [];
  const page = list.filter(isRecord).find((target) => target["type"] === "page");
  if (page === undefined) throw new Error("Chromium has no tab");
  return page["targetId"];
}

/** Exceptions, `console.error` and what the browser logs as an error: blocked, not found. */
function complaintOf({ method, params = {} }: Message): string[] {
  const isError =
    method === "Runtime.exceptionThrown" ||
    (method === "Runtime.consoleAPICalled" && params["type"] === "error") ||
    (method === "Log.entryAdded" && isRecord(params["entry"]) && isErrorEntry(params["entry"]));
  return isError ? [JSON.stringify(params)] : [];
}

const isErrorEntry = (entry: Record<string, unknown>): boolean => entry["level"] === "error";
