/** lib.ts - what more than one of the five scripts needs, and nothing else:
 *  command lines, addresses, listening, signals and random numbers. */
import { once } from "node:events";
import { existsSync, realpathSync } from "node:fs";
import { isIP, type ListenOptions, type Server } from "node:net";
import { fileURLToPath } from "node:url";
import { getSystemErrorMap, parseArgs } from "node:util";

/** Bad input. The message quotes it and says what would be right; exit code 2. */
export class UsageError extends Error {}
/** Something the world refused (a port in use, nobody listening), in one line; exit code 1. */
export class RunError extends Error {}

/** The system's own words for a failed call: `connection refused` for ECONNREFUSED. */
export function reasonOf(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  if ("code" in error && error.code === "ENOTFOUND") return "the name does not resolve";
  if ("code" in error && error.code === "EAI_AGAIN") return "the name server does not answer";
  return ("errno" in error && getSystemErrorMap().get(Number(error.errno))?.[1]) || error.message;
}

// ─── Command lines ───────────────────────────────────────────────────────────
// A script declares its options once, in a table: --help, the checks and the types of the values
// derive from it.

/** How a text becomes a value: `read` gives undefined for one that is not what was `expected`. */
export type Kind<T> = { readonly expected: string; readonly read: (text: string) => T | undefined };

const numberKind = (shape: RegExp, min: number, max: number, expected: string): Kind<number> => ({
  expected,
  read: (text) =>
    shape.test(text) && Number(text) >= min && Number(text) <= max ? Number(text) : undefined,
});
export const wholeNumber = (min: number, max = 1_000_000_000): Kind<number> =>
  numberKind(/^\d{1,16}$/, min, max, `a whole number from ${min} to ${max}`);
/** A number of `unit`, not below 0, and so high that timers can still hold it as milliseconds. */
export const amount = (unit: string): Kind<number> =>
  numberKind(/^(\d+\.?\d*|\.\d+)$/, 0, 2_000_000, `a number of ${unit} from 0 to 2000000`);
export const someSeconds: Kind<number> = {
  expected: "a number of seconds above 0, at most 2000000",
  read: (text) => amount("seconds").read(text) || undefined,
};
export const anyText: Kind<string> = { expected: "a text", read: (text) => text || undefined };
export const oneOf = <const T extends string>(names: readonly T[]): Kind<T> => ({
  expected: names.join(", "),
  read: (text) => names.find((name) => name === text),
});

/** One without a `kind` is a flag; `value` is the placeholder in --help. */
type Option = Readonly<{ kind?: Kind<unknown>; value?: string; fallback?: string; help: string }>;
/** By name: `connectTimeout` is written `--connect-timeout`. */
export type Options = Readonly<Record<string, Option>>;
export type Values<O extends Options> = {
  [K in keyof O]: O[K] extends { kind: Kind<infer T> }
    ? O[K] extends { fallback: string }
      ? T
      : T | undefined
    : boolean;
};

/** How to call a script (what every usage error ends with), and what it does: an exit code. */
export type Script<O extends Options> = {
  readonly usage: string;
  readonly options: O;
  readonly main: (positionals: string[], values: Values<O>) => Promise<number>;
};
const flagOf = (key: string): string =>
  `--${key.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)}`;

export const bad = (name: string, text: string, expected: string): UsageError =>
  new UsageError(`Bad ${name} ${JSON.stringify(text)}: expected ${expected}`);

/** Reads `text` as `kind`. Throws a UsageError that names the argument. */
export function readValue<T>(name: string, kind: Kind<T>, text: string): T {
  const value = kind.read(text);
  if (value === undefined) throw bad(name, text, kind.expected + bracketHint(text));
  return value;
}

/** For who writes an IPv6 address and a port as `::1:80`. */
function bracketHint(text: string): string {
  const [, host = "", port] = /^([\da-fA-F:.]+):(\d+)(?![\da-fA-F:.])/.exec(text) ?? [];
  return isIP(host) === 6 ? `; an IPv6 address stands in brackets: [${host}]:${port}` : "";
}

/** Throws a UsageError that names the option that was meant, or all that there are. */
function refuseOption(name: string, known: readonly string[]): never {
  const [nearest] = known
    .map((option) => ({ option, distance: editDistance(name, option) }))
    .sort((a, b) => a.distance - b.distance);
  const letters = name.replace(/^-+/, "").length;
  const isNear = nearest !== undefined && nearest.distance <= Math.min(2, Math.ceil(letters / 3));
  const advice = isNear ? `did you mean ${nearest.option}?` : `expected ${known.join(", ")}`;
  throw new UsageError(`Unknown option ${JSON.stringify(name)}: ${advice}`);
}

/** How many letters must be put in, left out or changed to make `b` of `a` (Levenshtein 1966). */
function editDistance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, place) => place);
  for (const [index, letter] of [...a].entries()) {
    const next = [index + 1];
    for (const [place, other] of [...b].entries()) {
      const changed = (row[place] ?? 0) + (letter === other ? 0 : 1);
      const added = Math.min(row[place + 1] ?? 0, next[place] ?? 0) + 1;
      next.push(Math.min(changed, added));
    }
    row = next;
  }
  return row.at(-1) ?? 0;
}

/** Splits `argv` into positionals and the values of `options`. Throws UsageError. */
export function parseCommandLine<O extends Options>(
  options: O,
  argv: readonly string[],
): { positionals: string[]; values: Values<O> } {
  const keys = new Map(Object.keys(options).map((key) => [flagOf(key), key]));
  const formOf = (key: string) => ({ type: options[key]?.kind ? "string" : "boolean" }) as const;
  const forms = Object.fromEntries([...keys].map(([flag, key]) => [flag.slice(2), formOf(key)]));
  const lenient = { strict: false, allowPositionals: true, tokens: true } as const;
  const { tokens } = parseArgs({ args: [...argv], options: forms, ...lenient });
  const positionals = new Map<number, string>(); // by place in argv
  const values: Record<string, unknown> = {};
  for (const [key, { kind, fallback }] of Object.entries(options))
    values[key] = kind ? fallback && kind.read(fallback) : false;
  for (const token of tokens) {
    const text = argv[token.index] ?? "";
    // -3 is a bad number, not the option 3
    if (token.kind === "positional" || /^-\.?\d/.test(text)) positionals.set(token.index, text);
    if (token.kind !== "option" || positionals.has(token.index)) continue;
    const key = keys.get(token.rawName);
    if (key === undefined) refuseOption(text.replace(/=.*/s, ""), [...keys.keys(), "--help"]);
    const kind = options[key]?.kind;
    if (!kind && token.value !== undefined) throw bad(token.rawName, token.value, "no value");
    if (kind && (token.value === undefined || (!token.inlineValue && keys.has(token.value))))
      throw new UsageError(`Missing value of "${token.rawName}": expected ${kind.expected}`);
    values[key] = kind ? readValue(token.rawName, kind, token.value ?? "") : true;
  }
  // each key was set above, by its own kind
  return { positionals: [...positionals.values()], values: values as Values<O> };
}

function helpOf({ usage, options }: { readonly usage: string; readonly options: Options }): string {
  const row = (flag: string, help: string): string => `  ${flag.padEnd(30)} ${help}`;
  const rows = Object.entries(options).map(([key, { value = "", fallback, help }]) =>
    row(`${flagOf(key)} ${value}`, help + (fallback === undefined ? "" : ` (default ${fallback})`)),
  );
  return [usage, "Options:", ...rows, row("--help", "this text")].join("\n");
}

/** Errors of input and of the world become one line; a bug keeps its stack. */
export async function runScript<O extends Options>(script: Script<O>): Promise<void> {
  for (const stream of [process.stdout, process.stderr]) {
    // output that cannot be written is no reason for a balancer to stop
    stream.on("error", () => undefined);
    stream.once("error", (error: NodeJS.ErrnoException) => {
      // whoever read us has gone, or the terminal has
      if (error.code === "EPIPE" || error.code === "EIO") return;
      process.exitCode ??= 1;
      console.error(`Cannot write the output: ${reasonOf(error)}`);
    });
  }
  const argv = process.argv.slice(2);
  if (argv.includes("--help")) return console.log(helpOf(script));
  try {
    const { positionals, values } = parseCommandLine(script.options, argv);
    process.exitCode = (await script.main(positionals, values)) || process.exitCode;
  } catch (error) {
    if (!(error instanceof UsageError || error instanceof RunError)) throw error;
    const isUsage = error instanceof UsageError;
    process.exitCode = isUsage ? 2 : 1;
    console.error([error.message, isUsage ? script.usage : ""].filter(Boolean).join("\n"));
  }
}

/** True when `meta` belongs to the program itself, not to a module that another script imports. */
export function isMain(meta: { readonly url: string }): boolean {
  const program = process.argv[1] ?? "";
  const file = [`${program}.ts`, program].find(existsSync); // tsx takes `client` for client.ts
  return file !== undefined && realpathSync(file) === fileURLToPath(meta.url);
}

// ─── Addresses, listening, signals ───────────────────────────────────────────

export type Address = { readonly host: string; readonly port: number };
export const portNumber = wholeNumber(0, 65535);
/** A name, an IPv4 address, or an IPv6 address with or without its brackets. */
export const hostName: Kind<string> = {
  expected: "a name or an address",
  read: (text) => /^(?:\[([\da-fA-F:.]+)\]|[^\s[\]/]+)$/.exec(text)?.slice(0, 2).findLast(Boolean),
};

/** Reads `127.0.0.1:80`, `name:80` or `[::1]:80`; undefined for anything else. */
export function parseAddress(text: string): Address | undefined {
  const [, v6, host = v6, digits = ""] =
    /^(?:\[([\da-fA-F:.]+)\]|([^\s[\]:*/]+)):(\d+)$/.exec(text) ?? [];
  const port = portNumber.read(digits);
  return host === undefined || port === undefined ? undefined : { host, port };
}
export const formatAddress = ({ host, port }: Address): string =>
  host.includes(":") ? `[${host}]:${port}` : `${host}:${port}`;

/** Returns the real address: port 0 asks the system for a free one. Throws RunError. */
export async function listen(
  server: Server,
  options: ListenOptions & Address,
  where = formatAddress(options),
): Promise<Address> {
  const failed = (error: unknown): never => {
    throw new RunError(`Cannot listen on ${where}: ${reasonOf(error)}`);
  };
  await once(server.listen(options), "listening").catch(failed);
  const bound = server.address();
  if (bound === null || typeof bound === "string") return failed("not a TCP address");
  return { host: bound.address, port: bound.port };
}

/** A repeat within a second is the same signal: the tsx wrapper may deliver one twice. */
export function onStopSignals(
  stop: () => void,
  stopNow: () => void,
  signals: readonly NodeJS.Signals[] = ["SIGINT", "SIGTERM"],
): void {
  let first: number | undefined;
  const onSignal = (): void => {
    if (first === undefined) stop();
    else if (performance.now() - first > 1000) stopNow();
    first ??= performance.now();
    setTimeout(() => undefined, 100); // who ends at once must not be killed by the repeat
  };
  for (const signal of signals) process.on(signal, onSignal);
}

// ─── Timers and output ───────────────────────────────────────────────────────

export const LONGEST_TIMER = 2 ** 31 - 1; // in milliseconds; one that is longer fires at once

/** Whether a megabyte waits for the reader. */
const isStalled = (): boolean => process.stdout.writableLength > 1 << 20;

/**
 * Lines for standard output that are written together: a system call for each would cost a busy
 * server most of its time. A slow reader costs lines, not memory, and how many is said on stderr.
 */
export class LineWriter {
  static readonly #EVERY_MS = 50;
  #lines: string[] = [];
  #dropped = 0;
  #timer: NodeJS.Timeout | undefined;

  /** Takes `line`, which holds no newline. */
  write(line: string): void {
    if (isStalled()) this.#dropped += 1;
    else this.#lines.push(line);
    this.#timer ??= setTimeout(() => this.#look(), LineWriter.#EVERY_MS);
  }

  /** Writes what waits; to be called once more at the end. */
  flush(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    if (this.#lines.length > 0) process.stdout.write(`${this.#lines.join("\n")}\n`);
    this.#lines = [];
    if (this.#dropped === 0) return;
    console.error(`${this.#dropped} log lines were dropped: their reader was too slow`);
    this.#dropped = 0;
  }

  /** Waits on, while lines were dropped and the reader has not caught up. */
  #look(): void {
    if (!isStalled() || this.#dropped === 0) return this.flush();
    this.#timer = setTimeout(() => this.#look(), LineWriter.#EVERY_MS).unref();
  }
}

// ─── Samples and random numbers ──────────────────────────────────────────────

/** The `p`-quantile of sorted values by interpolation (Hyndman and Fan 1996, type 7), or NaN. */
export function quantile(values: ArrayLike<number>, p: number): number {
  const place = (values.length - 1) * p;
  const below = values[Math.floor(place)] ?? NaN;
  const above = values[Math.ceil(place)] ?? NaN;
  return below + (above - below) * (place - Math.floor(place));
}

/** Whether one of `n` values lies beyond the `p`-quantile with 95 % certainty (p99: of 299). */
export const carries = (n: number, p: number): boolean => n >= Math.log(0.05) / Math.log(p);

export const seedNumber = wholeNumber(0, 2 ** 32 - 1);
/** Numbers in [0, 1), the same ones for the same seed: mulberry32, by Tommy Ettinger. */
export function mulberry32(seed: number): () => number {
  let state = seed | 0;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4294967296;
  };
}
