/**
 * status_page.test.ts - the script of the balancer's page, run without a browser: it gets one
 * status.json after the other on a clock of the test's, and the test reads what it has written.
 */
import { readFileSync } from "node:fs";
import { runInNewContext } from "node:vm";
import { suite } from "uvu";
import * as assert from "uvu/assert";

const HTML = readFileSync(new URL("../status_page.html", import.meta.url), "utf8");

// ─── A page to write on ──────────────────────────────────────────────────────
// As much of a browser as the script needs. What it does not have fails the test: an `innerHTML`
// above all, so that no name can become markup.

type Listener = (event?: unknown) => unknown;

class Element {
  readonly tag: string;
  readonly children: Element[] = [];
  readonly attributes = new Map<string, string>();
  readonly listeners = new Map<string, Listener>();
  readonly style: Record<string, string> = {};
  hidden = false;
  value = "";
  parentNode: Element | undefined;
  #text = "";

  constructor(tag: string) {
    this.tag = tag;
  }

  get textContent(): string {
    return this.#text + this.children.map((child) => child.textContent).join("");
  }
  set textContent(text: string) {
    this.replaceChildren();
    this.#text = text;
  }
  set innerHTML(_: string) {
    throw new Error("markup is not for the script to write");
  }
  get firstChild(): Element | undefined {
    return this.children[0];
  }
  set className(kind: string) {
    this.setAttribute("class", kind);
  }

  append(...nodes: (Element | string)[]): void {
    for (const node of nodes) this.#insert(this.children.length, node);
  }
  prepend(node: Element): void {
    this.#insert(0, node);
  }
  #insert(place: number, node: Element | string): void {
    const child = typeof node === "string" ? new Element("#text") : node;
    if (typeof node === "string") child.textContent = node;
    child.remove();
    child.parentNode = this;
    this.children.splice(place, 0, child);
  }
  replaceChildren(...nodes: Element[]): void {
    for (const child of [...this.children]) child.remove();
    this.#text = "";
    this.append(...nodes);
  }
  remove(): void {
    const siblings = this.parentNode?.children ?? [];
    if (siblings.includes(this)) siblings.splice(siblings.indexOf(this), 1);
    this.parentNode = undefined;
  }
  setAttribute(name: string, value: unknown): void {
    // a browser draws no such path, and says so in its console only
    assert.not.match(String(value), /NaN|Infinity|undefined/, `${this.tag} ${name}`);
    this.attributes.set(name, String(value));
  }
  getAttribute(name: string): string | null {
    return this.attributes.get(name) ?? null;
  }
  addEventListener(name: string, listener: Listener): void {
    this.listeners.set(name, listener);
  }
  focus(): void {}

  /** All below it with this tag. */
  all(tag: string): Element[] {
    const below = this.children.flatMap((child) => child.all(tag));
    return this.tag === tag ? [this, ...below] : below;
  }
  /** As a user does it: waits until the script has dealt with it. */
  async fire(name: string): Promise<void> {
    await this.listeners.get(name)?.();
  }
}

interface Reply {
  readonly ok: boolean;
  readonly status: number;
  readonly json: () => Promise<unknown>;
  readonly text: () => Promise<string>;
}

const reply = (body: unknown, status = 200): Reply => ({
  ok: status === 200,
  status,
  json: async () => structuredClone(body),
  text: async () => String(body),
});

/** The page's script, running, and what a test may do to it. */
class Page {
  readonly elements = new Map<string, Element>();
  readonly document = Object.assign(new Element("document"), {
    title: "",
    activeElement: undefined,
    getElementById: (id: string) => this.at(id),
    createElement: (tag: string) => new Element(tag),
    createElementNS: (_: string, tag: string) => new Element(tag),
  });
  readonly posts: string[] = [];
  /** What the balancer says to the next question; an error stands for no answer. */
  answer: Reply | Error = new Error("nobody there");
  postAnswer: Reply | Error = reply({});
  /** How many questions it has asked. */
  asked = 0;
  now = 1000;
  timer: (() => Promise<void>) | undefined;
  /** In how many milliseconds the timer was to go off. */
  delay = 0;

  at(id: string): Element {
    const tag = new RegExp(`<(\\w+)[^>]*\\sid="${id}"`).exec(HTML)?.[1];
    if (tag === undefined) throw new Error(`the page has no ${id}`);
    const element = this.elements.get(id) ?? new Element(tag);
    this.elements.set(id, element);
    return element;
  }

  text(id: string): string {
    return this.at(id).textContent;
  }

  /** The texts of what `id` has in it. */
  texts(id: string): string[] {
    return this.at(id).children.map(({ textContent }) => textContent);
  }

  /** The events, without their time of day, newest first. */
  events(): string[] {
    return this.at("events").children.map(({ children }) => children[1]?.textContent.trim() ?? "");
  }

  /** The value beneath a name in one of the lists of numbers. */
  number(list: string, name: string): string | undefined {
    const pair = this.at(list).children.find(({ children }) => children[0]?.textContent === name);
    return pair?.children[1]?.textContent;
  }

  /** One cell of a server's row. */
  cell(server: string, column: string): string | undefined {
    const row = this.at("servers").children.find((one) => nameOf(one) === server);
    const isIt = (cell: Element): boolean => cell.getAttribute("data-label") === column;
    return row?.children.find(isIt)?.textContent;
  }

  /** Starts the script, whose first question is answered by `answer`. */
  async open(answer: Reply | Error): Promise<void> {
    this.answer = answer;
    const script = /<script type="module">(.*)<\/script>/s.exec(HTML)?.[1];
    runInNewContext(`"use strict"; { ${script} }`, {
      document: this.document,
      performance: { now: () => this.now * 1000 },
      Date: wallClock(() => this.now * 1000),
      AbortSignal,
      setTimeout: (callback: () => Promise<void>, delay: number) => {
        this.timer = callback;
        this.delay = delay;
        return callback;
      },
      clearTimeout: () => {
        this.timer = undefined;
      },
      fetch: (path: string, options: { method?: string }) => this.#fetch(path, options),
    });
    await new Promise(setImmediate);
  }

  async #fetch(path: string, { method }: { method?: string }): Promise<Reply> {
    if (method === "POST") this.posts.push(path);
    else this.asked += 1;
    const answer = method === "POST" ? this.postAnswer : this.answer;
    if (answer instanceof Error) throw answer;
    return answer;
  }

  /** Lets `seconds` pass, and has the timer's question answered. */
  async poll(answer: Reply | Error, seconds = 1): Promise<void> {
    this.now += seconds;
    this.answer = answer;
    const { timer } = this;
    if (timer === undefined) throw new Error("the page has stopped asking");
    await timer();
  }
}

/** A `Date` whose `now` is the test's. */
function wallClock(now: () => number): object {
  return class extends Date {
    static override now = now;
  };
}

const nameOf = (row: Element): string | undefined => row.children[0]?.children[0]?.textContent;

// ─── What a balancer says ────────────────────────────────────────────────────

const A = "127.0.0.1:65435";
const B = "127.0.0.1:65436";

function serverOf(server: string, more: object = {}): object {
  return {
    server,
    state: "up",
    draining: false,
    backup: false,
    since: 100,
    why: "",
    weight: 1,
    active: 0,
    total: 0,
    connectErrors: 0,
    checkFailures: 0,
    bytesToServer: 0,
    bytesToClient: 0,
    connectTime: null,
    turnTime: null,
    unanswered: 0,
    oldestUnanswered: null,
    lastCheck: null,
    ...more,
  };
}

/** A balancer that has run for `uptime` seconds. */
function statusOf(uptime: number, more: object = {}): Reply {
  return reply({
    algorithm: "round-robin",
    algorithms: ["round-robin", "least-connections"],
    listening: "127.0.0.1:65432",
    uptime,
    accepted: 0,
    active: 0,
    queued: 0,
    waiting: [],
    retries: 0,
    refusedByAddress: 0,
    fileError: null,
    ended: { ok: 0, client_reset: 0, server_reset: 0, no_server: 0 },
    turns: { buckets: [0.1, 0.2, 0.4], counts: [0, 0, 0, 0] },
    servers: [serverOf(A), serverOf(B)],
    ...more,
  });
}

const DOWN = { state: "down", since: 41, why: "connection refused" };

/** A page that has got its first answer, of a balancer that has run for 100 s. */
async function opened(more: object = {}): Promise<Page> {
  const page = new Page();
  await page.open(statusOf(100, more));
  return page;
}

const turnsOf = (...counts: number[]): object => ({
  turns: { buckets: [0.1, 0.2, 0.4], counts },
});

// ─── What is there ───────────────────────────────────────────────────────────

const shown = suite("the page shows");

shown("the algorithm, the totals, and a row for each server from the first answer on", async () => {
  const busy = { active: 3, total: 1234, connectTime: 0.0004, turnTime: 0.0523, weight: 2 };
  const lastCheck = { result: "passed", seconds: 0.8 };
  const page = await opened({
    accepted: 5000,
    active: 3,
    servers: [serverOf(A, { ...busy, bytesToClient: 1_230_000, lastCheck }), serverOf(B)],
  });
  assert.is(page.text("about"), "On 127.0.0.1:65432, running for 100 s");
  assert.is(page.at("algorithm").value, "round-robin");
  assert.equal(page.texts("algorithm"), ["round-robin", "least-connections"]);
  assert.is(page.number("totals", "accepted"), "5,000");
  assert.is(page.number("totals", "active"), "3");
  assert.equal(page.texts("wrong"), ["All 2 servers are up"]);
  assert.is(page.document.title, "Load balancer");
  assert.is(page.cell(A, "state"), "up for 100 schecked 800 ms ago: passed");
  assert.is(page.cell(A, "open"), "3");
  assert.is(page.cell(A, "total"), "1,234");
  assert.is(page.cell(A, "turn time"), "52 ms");
  assert.is(page.cell(A, "connect time"), "0.40 ms");
  assert.is(page.cell(A, "to client"), "1.2 MB");
  assert.is(page.cell(B, "turn time"), "–");
  assert.is(page.text("queue"), "Nobody waits.");
  assert.equal(page.events(), []);
});

shown("a dash for what this balancer does not say", async () => {
  const page = new Page();
  await page.open(reply({ algorithm: "random", servers: [{ server: A, state: "up" }] }));
  assert.equal(page.texts("algorithm"), ["random"]);
  assert.is(page.text("about"), "On –, running for –");
  assert.is(page.number("totals", "refused by the limit of one address"), "–");
  for (const column of ["open", "total", "turn time", "to server", "waiting turns"])
    assert.is(page.cell(A, column), "–", column);
  await page.poll(reply({ algorithm: "random", servers: [{ server: A, state: "up" }] }));
  assert.equal(page.texts("wrong"), ["The server is up"]);
});

shown("in words which servers are down, why and for how long", async () => {
  const page = await opened({ servers: [serverOf(A), serverOf(B, DOWN)] });
  assert.equal(page.texts("wrong"), [`1 of 2 servers down: ${B} refuses connections, for 41 s`]);
  assert.is(page.document.title, "1 of 2 servers down – Load balancer");
  assert.is(page.text("spoken"), "1 of 2 servers down", "nothing that runs is spoken");
  assert.is(page.cell(B, "state"), "down for 41 s: connection refused");
});

shown("that no server takes clients, and a servers file that was refused", async () => {
  const drained = { state: "draining", draining: true };
  const page = await opened({
    servers: [serverOf(A, drained), serverOf(B, { ...DOWN, why: "no answer in time" })],
    fileError: "line 3: expected host:port",
  });
  assert.equal(page.texts("wrong"), [
    "The servers file was refused, and changes nothing: line 3: expected host:port",
    "No server takes clients",
    `1 of 2 servers down: ${B} (no answer in time), for 41 s`,
  ]);
});

shown("who waits in the queue, and the first for how long", async () => {
  const waiting = [
    { client: "10.0.0.7:1", seconds: 3.2 },
    { client: "10.0.0.8:2", seconds: 1 },
  ];
  const page = await opened({ queued: 17, waiting });
  assert.equal(page.texts("wrong"), ["clients wait: 17, the first for 3.2 s"]);
  assert.is(
    page.text("queue"),
    "17 waiting, the longest: 10.0.0.7:1 for 3.2 s, 10.0.0.8:2 for 1.0 s",
  );
  assert.is(page.text("spoken"), "clients wait");
});

shown("a server that gives nobody a byte while turns wait, though it is up", async () => {
  const hung = { unanswered: 12, bytesToClient: 5 };
  const page = await opened();
  const poll = (second: number): Promise<void> => {
    const waits = serverOf(B, { ...hung, oldestUnanswered: second });
    return page.poll(statusOf(100 + second, { servers: [serverOf(A), waits] }));
  };
  for (let second = 1; second <= 5; second += 1) await poll(second);
  const late = page.texts("wrong");
  for (let second = 6; second <= 7; second += 1) await poll(second);
  assert.equal(late, ["All 2 servers are up"], "not at once");
  assert.equal(page.texts("wrong"), [
    `A server answers nobody: ${B} for 6.0 s, while 12 turns wait, the first for 7.0 s`,
  ]);
  assert.is(page.cell(B, "waiting turns"), "12first 7.0 s");
  const gives = { ...hung, bytesToClient: 6, oldestUnanswered: 8 };
  await page.poll(statusOf(108, { servers: [serverOf(A), serverOf(B, gives)] }));
  assert.equal(page.texts("wrong"), ["All 2 servers are up"], "a slow answer is not a hung server");
});

shown("what ended badly in the last minute, and nothing older", async () => {
  const page = await opened({ ended: { ok: 10, client_reset: 0, server_reset: 4 } });
  assert.equal(page.texts("wrong"), ["All 2 servers are up"]);
  await page.poll(statusOf(101, { ended: { ok: 15, client_reset: 3, server_reset: 6 } }));
  assert.equal(page.texts("wrong"), [
    "In the last minute 2 of 10 connections ended badly: server reset 2",
  ]);
  assert.is(page.number("ended", "server reset"), "6 (25.0 %)");
  for (let second = 2; second <= 62; second += 2)
    await page.poll(
      statusOf(100 + second, { ended: { ok: 15, client_reset: 3, server_reset: 6 } }),
      2,
    );
  assert.equal(page.texts("wrong"), ["All 2 servers are up"]);
});

shown("no server as hung that usually takes long, or is down anyway", async () => {
  const waits = (oldest: number): object => ({ unanswered: 1, oldestUnanswered: oldest });
  const slow = (oldest: number): object => serverOf(A, { ...waits(oldest), turnTime: 2 });
  const down = (oldest: number): object => serverOf(B, { ...DOWN, ...waits(oldest) });
  const page = await opened({ servers: [slow(0), down(0)] });
  for (let second = 1; second <= 12; second += 1)
    await page.poll(statusOf(100 + second, { servers: [slow(second), down(second)] }));
  assert.equal(page.texts("wrong"), [`1 of 2 servers down: ${B} refuses connections, for 41 s`]);
});

shown("the only server, and those that are only finishing, for what they are", async () => {
  const removed = serverOf(B, { state: "removed" });
  const page = await opened({ servers: [serverOf(A, DOWN), removed] });
  assert.equal(page.texts("wrong"), [
    "No server takes clients",
    `The server is down: ${A} refuses connections, for 41 s`,
  ]);
});

shown(
  "a server that has just changed as fresh, and one that is down and drained as both",
  async () => {
    const fresh = serverOf(B, { ...DOWN, since: 2, draining: true });
    const page = await opened({ servers: [serverOf(A, { backup: true }), fresh] });
    const classes = page.at("servers").children.map((row) => row.getAttribute("class"));
    assert.equal(classes, ["up", "down fresh"]);
    assert.is(page.cell(B, "state"), "down, drained for 2.0 s: connection refused");
    assert.is(page.cell(A, "server"), `${A}backup`);
  },
);

shown("how near the limits are, where the balancer says so", async () => {
  const limits = { maxConnections: 1000, serverConnections: 10 };
  const page = await opened({ ...limits, active: 7, servers: [serverOf(A, { active: 7 })] });
  assert.is(page.number("totals", "active"), "7 of 1,000");
  assert.is(page.cell(A, "open"), "7 of 10");
});

shown("numbers as people read them", async () => {
  const bytes = async (count: number): Promise<string | undefined> => {
    const page = await opened({ servers: [serverOf(A, { bytesToClient: count })] });
    return page.cell(A, "to client");
  };
  assert.is(await bytes(999), "999 B");
  assert.is(await bytes(1000), "1.0 kB");
  assert.is(await bytes(999_600), "1.0 MB");
  const busy = await opened({ servers: [serverOf(A, { active: 12 })] });
  const texts = busy
    .at("open-chart")
    .all("text")
    .map(({ textContent }) => textContent);
  assert.equal(texts, ["0", "5", "10", "15", "now", "−30 s", "−60 s"]);
});

shown("names as text, whatever is in them", async () => {
  const name = `<img src=x onerror="alert(1)">&amp;`;
  const page = await opened({ servers: [serverOf(name, { ...DOWN, why: "<b>" }), serverOf(A)] });
  assert.is(page.cell(name, "server"), name);
  assert.equal(page.texts("wrong"), [`1 of 2 servers down: ${name} (<b>), for 41 s`]);
  assert.equal(page.at("servers").all("img"), []);
});

shown("the twenty of a thousand servers that matter most, and finds the others", async () => {
  const many = (): object[] =>
    Array.from({ length: 1000 }, (_, i) => {
      if (i === 500 || i === 900) return serverOf(`10.0.0.1:${i + 1000}`, DOWN);
      return serverOf(`10.0.0.1:${i + 1000}`, { active: i === 700 ? 50 : 1 });
    });
  const page = await opened({ servers: many() });
  const rows = (): (string | undefined)[] => page.at("servers").children.map(nameOf);
  assert.is(rows().length, 20);
  assert.equal(rows().slice(0, 2), ["10.0.0.1:1500", "10.0.0.1:1900"]);
  assert.ok(rows().includes("10.0.0.1:1700"), "the busiest is among them");
  assert.is(page.text("hidden"), "Shown: the 20 that matter most. Hidden: 980 others.");
  assert.is(page.at("open-chart").all("path").length, 9, "eight lines, and a band for the rest");
  page.at("find").value = "1:1234";
  await page.at("find").fire("input");
  assert.equal(rows(), ["10.0.0.1:1234"]);
  assert.is(page.text("hidden"), "1 of 1,000 match.");
  page.at("find").value = "REFUSED";
  await page.at("find").fire("input");
  assert.equal(rows(), ["10.0.0.1:1500", "10.0.0.1:1900"]);
});

shown("rows that stay in place while the counts of a thousand servers move", async () => {
  const many = (turn: number): object[] =>
    Array.from({ length: 1000 }, (_, i) => serverOf(`s${i}:1`, { active: 10 + ((i + turn) % 4) }));
  const page = await opened({ servers: many(0) });
  const rows = page.at("servers").children.map(nameOf);
  const lines = page.texts("open-legend").map((text) => text.replace(/ .*/, ""));
  await page.poll(statusOf(101, { servers: many(1) }));
  assert.equal(page.at("servers").children.map(nameOf), rows);
  assert.equal(
    page.texts("open-legend").map((text) => text.replace(/ .*/, "")),
    lines,
    "each line keeps its colour",
  );
});

shown("the same eight lines in the same colours, until another server matters more", async () => {
  const ten = (least: number[], down = -1): object[] =>
    Array.from({ length: 10 }, (_, i) => {
      if (i === down) return serverOf(`s${i}:1`, DOWN);
      return serverOf(`s${i}:1`, { active: least.includes(i) ? 10 : 11 });
    });
  const page = await opened({ servers: ten([0, 1]) });
  const lines = (): string =>
    page
      .texts("open-legend")
      .slice(0, 8)
      .join()
      .replace(/:1 \d+/g, "");
  assert.is(lines(), "s2,s3,s4,s5,s6,s7,s8,s9");
  await page.poll(statusOf(101, { servers: ten([8, 9]) }));
  assert.is(lines(), "s2,s3,s4,s5,s6,s7,s8,s9");
  await page.poll(statusOf(102, { servers: ten([4], 0) }));
  assert.is(lines(), "s2,s3,s0,s5,s6,s7,s8,s9");
});

shown.run();

// ─── What changes ────────────────────────────────────────────────────────────

const changes = suite("the page notes");

changes("a server that goes down and comes back, with a mark at the time it happened", async () => {
  const page = await opened();
  const down = serverOf(B, { ...DOWN, since: 0.25 });
  await page.poll(statusOf(101, { servers: [serverOf(A), down] }));
  assert.equal(page.events(), [`▼ ${B} down: connection refused`]);
  const [mark] = page.at("open-chart").all("g");
  assert.is(mark?.all("title")[0]?.textContent, `${B} down: connection refused`);
  // a minute is 538 pixels wide and ends at 590; see drawChart
  assert.is(mark?.all("line")[0]?.getAttribute("x1"), String(Math.round(590 - (538 * 0.25) / 60)));
  await page.poll(statusOf(102, { servers: [serverOf(A), serverOf(B, { since: 0.1 })] }));
  assert.is(page.events()[0], `▲ ${B} up`);
  assert.is(page.at("turn-chart").all("g").length, 2, "a mark for each kind");
});

changes("a server that is drained, made ready, added and removed", async () => {
  const page = await opened();
  const drained = { state: "draining", draining: true };
  await page.poll(statusOf(101, { servers: [serverOf(A, drained), serverOf(B)] }));
  await page.poll(statusOf(102));
  await page.poll(statusOf(103, { servers: [serverOf(A), serverOf(B), serverOf("c:1")] }));
  const removed = serverOf(B, { state: "removed" });
  await page.poll(statusOf(104, { servers: [serverOf(A), removed, serverOf("c:1")] }));
  await page.poll(statusOf(105, { servers: [serverOf(A)] }));
  assert.equal(page.events(), [
    "− c:1 removed",
    `− ${B} removed`,
    "+ c:1 added",
    `▷ ${A} ready`,
    `‖ ${A} drained`,
  ]);
});

changes("a server that is drained while it is down", async () => {
  const page = await opened({ servers: [serverOf(B, DOWN)] });
  await page.poll(statusOf(101, { servers: [serverOf(B, { ...DOWN, draining: true })] }));
  assert.equal(page.events(), [`‖ ${B} drained`]);
});

changes("when it happened, not when it was seen", async () => {
  const page = await opened();
  const down = serverOf(B, { ...DOWN, since: 30 });
  await page.poll(statusOf(160, { servers: [serverOf(A), down] }), 60);
  const time = page.at("events").children[0]?.children[0]?.textContent;
  assert.is(time, new Date((page.now - 30) * 1000).toLocaleTimeString());
});

changes("with one mark what falls together, and with no word across another", async () => {
  const names = [A, B, "c:1"];
  const page = await opened({ servers: names.map((name) => serverOf(name)) });
  const down = names.map((name) => serverOf(name, { ...DOWN, since: 0.5 }));
  await page.poll(statusOf(101, { servers: down }));
  const chart = page.at("turn-chart");
  assert.is(chart.all("g").length, 1);
  await page.poll(statusOf(102, { servers: down, algorithm: "random" }));
  await page.poll(statusOf(104, { servers: down, algorithm: "two-choices" }), 2);
  const named = chart.all("text").filter(({ textContent }) => /random|two/.test(textContent));
  assert.is(named.length, 1, "there is room for one of two names");
  assert.is(named[0]?.getAttribute("text-anchor"), "end", "which stays within the picture");
});

changes("many servers that go down at once as one event, and at most twenty events", async () => {
  const names = Array.from({ length: 50 }, (_, i) => `s${i}:1`);
  const page = await opened({ servers: names.map((name) => serverOf(name)) });
  await page.poll(statusOf(101, { servers: names.map((name) => serverOf(name, DOWN)) }));
  assert.equal(page.events(), ["▼ 50 servers down: s0:1, s1:1, s2:1 and 47 more"]);
  for (let second = 2; second < 32; second += 1)
    await page.poll(statusOf(100 + second, { algorithm: `a${second}`, servers: [] }));
  assert.is(page.events().length, 20);
  assert.is(page.events()[0], "◆ Algorithm: a30 → a31");
});

changes("another algorithm", async () => {
  const page = await opened();
  await page.poll(statusOf(101, { algorithm: "least-connections" }));
  assert.equal(page.events(), ["◆ Algorithm: round-robin → least-connections"]);
  assert.is(page.at("algorithm").value, "least-connections");
  const words = page
    .at("turn-chart")
    .all("text")
    .map(({ textContent }) => textContent);
  assert.ok(words.includes("least-connections"), "the mark names it");
});

changes("a balancer that does not answer, waits, and goes on", async () => {
  const page = await opened();
  await page.poll(new Error("refused"));
  const said = page.text("gone");
  assert.match(
    said,
    /^No answer since .*: the balancer has gone or cannot be reached\. What is be/,
  );
  assert.is(page.document.title, "Gone – Load balancer");
  assert.is(page.at("main").getAttribute("class"), "old");
  for (let second = 0; second < 9; second += 1) await page.poll(new Error("refused"));
  assert.is(page.text("gone"), said, "said once");
  await page.poll(statusOf(111));
  assert.is(page.text("gone"), "");
  assert.is(page.at("main").getAttribute("class"), "");
  assert.equal(page.events(), ["… Answers again, after 10 s"]);
  await page.poll(statusOf(112));
  await page.poll(reply("no", 403));
  assert.match(page.text("gone"), /: it answers 403\./);
});

changes("another balancer at the same address, whose counts begin anew", async () => {
  const page = await opened({ accepted: 900, ...turnsOf(900, 0, 0, 0) });
  await page.poll(statusOf(101, { accepted: 990, ...turnsOf(990, 0, 0, 0) }));
  const down = { servers: [serverOf(A), serverOf(B, DOWN)] };
  await page.poll(statusOf(0.5, { algorithm: "random", ...down, ...turnsOf(0, 100, 0, 0) }));
  assert.equal(page.events(), ["↻ Another balancer: random, running for 500 ms"]);
  assert.is(page.number("totals", "accepted per second"), "–");
  assert.equal(page.texts("turn-legend"), ["median –", "p95 –"]);
  await page.poll(statusOf(1.5, { algorithm: "random", ...down, ...turnsOf(0, 200, 0, 0) }));
  assert.equal(page.texts("turn-legend"), ["median 150 ms", "p95 195 ms"]);
  const line = page.at("open-chart").all("path")[1]?.getAttribute("d") ?? "";
  assert.is(line.split("M").length - 1, 2, `two lines, one for each balancer: ${line}`);
});

changes("another balancer over many servers or none, which are drawn all the same", async () => {
  const many = Array.from({ length: 30 }, (_, i) => serverOf(`s${i}:1`));
  const page = await opened({ servers: many });
  await page.poll(statusOf(0.5, { servers: [] }));
  await page.poll(statusOf(0.5, { servers: many }));
  assert.is(page.at("open-chart").all("path").length, 9);
});

changes("another balancer even when it has run longer than the last one had", async () => {
  const page = await opened();
  await page.poll(new Error("refused"));
  await page.poll(statusOf(150), 100);
  assert.equal(page.events(), ["↻ Another balancer: round-robin, running for 3 min"]);
});

changes("no other balancer when an answer takes long", async () => {
  const page = await opened();
  const quick = statusOf(103);
  const json = async (): Promise<unknown> => {
    page.now += 2.5;
    return quick.json();
  };
  await page.poll({ ...quick, json }, 3);
  await page.poll(statusOf(106.5));
  assert.equal(page.events(), []);
});

changes.run();

// ─── Turn times ──────────────────────────────────────────────────────────────

const turns = suite("turn times");

turns("are those of the last seconds, not of all time", async () => {
  const page = await opened(turnsOf(5000, 0, 0, 0));
  for (let second = 1; second <= 10; second += 1)
    await page.poll(statusOf(100 + second, turnsOf(5000, 0, 100 * second, 0)));
  assert.equal(page.texts("turn-legend"), ["median 300 ms", "p95 390 ms"]);
});

turns("follow a change within five seconds, and not with every poll", async () => {
  const page = await opened(turnsOf(0, 0, 0, 0));
  for (let second = 1; second <= 10; second += 1)
    await page.poll(statusOf(100 + second, turnsOf(100 * second, 0, 0, 0)));
  for (let second = 1; second <= 2; second += 1)
    await page.poll(statusOf(110 + second, turnsOf(1000, 0, 100 * second, 0)));
  assert.is(page.texts("turn-legend")[0], "median 83 ms");
  for (let second = 3; second <= 5; second += 1)
    await page.poll(statusOf(110 + second, turnsOf(1000, 0, 100 * second, 0)));
  assert.is(page.texts("turn-legend")[0], "median 300 ms");
});

turns("have a median from 5 turns on, and a p95 from 59", async () => {
  const page = await opened(turnsOf(0, 0, 0, 0));
  await page.poll(statusOf(101, turnsOf(4, 0, 0, 0)));
  assert.equal(page.texts("turn-legend"), ["median –", "p95 –"]);
  await page.poll(statusOf(102, turnsOf(58, 0, 0, 0)));
  assert.equal(page.texts("turn-legend"), ["median 50 ms", "p95 –"]);
  await page.poll(statusOf(103, turnsOf(59, 0, 0, 0)));
  assert.equal(page.texts("turn-legend"), ["median 50 ms", "p95 95 ms"]);
});

turns("reach back up to half a minute for enough of them, and no further", async () => {
  const page = await opened(turnsOf(0, 0, 0, 0));
  for (let second = 2; second <= 28; second += 2)
    await page.poll(statusOf(100 + second, turnsOf(100, 0, 0, 0)), 2);
  assert.equal(page.texts("turn-legend"), ["median 50 ms", "p95 95 ms"]);
  await page.poll(statusOf(133, turnsOf(100, 0, 0, 0)), 5);
  assert.equal(page.texts("turn-legend"), ["median –", "p95 –"]);
});

turns("above the last bucket are over its edge", async () => {
  const page = await opened();
  await page.poll(statusOf(101, turnsOf(100, 0, 0, 50)));
  assert.equal(page.texts("turn-legend"), ["median 75 ms", "p95 over 400 ms"]);
});

turns("of more than five minutes ago have left the chart", async () => {
  const page = await opened();
  for (let second = 2; second <= 400; second += 2) await page.poll(statusOf(100 + second), 2);
  const path = page.at("open-chart").all("path")[1]?.getAttribute("d") ?? "";
  assert.is(path.split("L").length, 151, "one point every two seconds, for five minutes");
});

turns.run();

// ─── Asking and telling ──────────────────────────────────────────────────────

const telling = suite("the page tells the balancer");

telling("to switch the algorithm", async () => {
  const page = await opened();
  page.at("algorithm").value = "least-connections";
  page.answer = statusOf(101, { algorithm: "least-connections" });
  await page.at("algorithm").fire("change");
  assert.equal(page.posts, ["algorithm/least-connections"]);
  assert.is(page.at("algorithm").value, "least-connections");
  assert.match(page.text("said"), /Switched to least-connections$/);
  assert.equal(page.events(), ["◆ Algorithm: round-robin → least-connections"]);
});

telling("and takes back what was refused", async () => {
  const page = await opened();
  page.postAnswer = reply("Forbidden: read only", 403);
  page.at("algorithm").value = "least-connections";
  await page.at("algorithm").fire("change");
  assert.is(page.at("algorithm").value, "round-robin");
  assert.match(page.text("said"), /Refused \(403\): Forbidden: read only$/);
  page.postAnswer = new Error("gone");
  await page.at("algorithm").fire("change");
  assert.match(page.text("said"), /No answer: it may not have been done$/);
});

telling("a choice that somebody is making is not overwritten by a poll", async () => {
  const page = await opened();
  page.at("algorithm").value = "least-connections";
  await page.poll(statusOf(101));
  assert.is(page.at("algorithm").value, "least-connections");
});

telling("to drain a server and to make it ready", async () => {
  const name = "[::1]:65433";
  const page = await opened({ servers: [serverOf(name), serverOf(A)] });
  const [button] = page.at("servers").all("button");
  assert.is(button?.textContent, "drain");
  assert.is(button?.getAttribute("aria-label"), `drain ${name}`);
  const drained = { state: "draining", draining: true };
  page.answer = statusOf(101, { servers: [serverOf(name, drained), serverOf(A)] });
  await button?.fire("click");
  assert.is(button?.textContent, "ready");
  await button?.fire("click");
  assert.equal(page.posts, [
    "servers/%5B%3A%3A1%5D%3A65433/drain",
    "servers/%5B%3A%3A1%5D%3A65433/ready",
  ]);
});

telling("nothing about a server that is only finishing", async () => {
  const page = await opened({ servers: [serverOf(A, { state: "removed", active: 2 })] });
  assert.is(page.at("servers").all("button")[0]?.hidden, true);
});

telling("and asks nothing while its tab is hidden", async () => {
  const page = await opened();
  const { document } = page;
  Object.assign(document, { hidden: true });
  await document.fire("visibilitychange");
  assert.is(page.timer, undefined);
  Object.assign(document, { hidden: false });
  page.now += 60;
  page.answer = statusOf(160);
  const asked = page.asked;
  await document.fire("visibilitychange");
  await new Promise(setImmediate);
  assert.is(page.asked, asked + 1, "at once when it is seen again");
  assert.is(page.text("about"), "On 127.0.0.1:65432, running for 3 min");
  const line = page.at("open-chart").all("path")[1]?.getAttribute("d") ?? "";
  assert.is(line.split("M").length - 1, 2, "no line joins what it has not seen");
});

telling("and does not begin again with an answer that finds its tab hidden", async () => {
  const page = await opened();
  assert.is(page.delay, 1000, "else once a second");
  Object.assign(page.document, { hidden: true });
  await page.poll(statusOf(101));
  assert.is(page.timer, undefined);
});

telling("and an answer that a later one has overtaken changes nothing", async () => {
  const page = await opened();
  let release = (): void => undefined;
  const held = new Promise<void>((resolve) => {
    release = resolve;
  });
  const slow = statusOf(101, { accepted: 1 });
  const first = page.poll({ ...slow, json: () => held.then(slow.json) });
  page.now += 0.5;
  page.answer = statusOf(101.5, { accepted: 2 });
  await page.at("algorithm").fire("change");
  release();
  await first;
  assert.is(page.number("totals", "accepted"), "2");
});

telling.run();
