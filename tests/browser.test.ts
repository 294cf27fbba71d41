/**
 * browser.test.ts - the balancer's page in a real browser, where there is one: first of a small
 * stand-in for the balancer, which says what the tests want; then of a real one with real servers.
 */
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { createServer, type ServerResponse } from "node:http";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { Client } from "../client.ts";
import { formatAddress } from "../lib.ts";
import { type PingServer, startServer } from "../server.ts";
import { findChromium, openTab, type Tab } from "./chromium.ts";
import { checkOf, cleanUp, later, startBalancer, within } from "./helpers.ts";

const HTML = readFileSync(new URL("../status_page.html", import.meta.url));
const SERVERS = ["127.0.0.1:65433", "127.0.0.1:65434", "127.0.0.1:65435"];
const HOSTILE = `<img src=x onerror="document.title='taken'">`;
const LONG = `${"a".repeat(60)}.example.org:65433`;

// ─── A balancer of the tests ─────────────────────────────────────────────────

/** What the tests do to a balancer; a real one could do the same. */
interface Balancer {
  readonly url: string;
  readonly servers: string[];
  readonly drained: Set<string>;
  readonly killed: Set<string>;
  algorithm: string;
  /** Ends it, and starts another at the same address. */
  restart: () => void;
}

/** A balancer that answers 90 turns between two polls, and has run for as long as it says. */
class StandIn implements Balancer {
  readonly servers = [...SERVERS];
  readonly drained = new Set<string>();
  readonly killed = new Set<string>();
  algorithm = "round-robin";
  url = "";
  #started = performance.now() - 60_000;
  #turns = 0;

  restart(): void {
    this.#started = performance.now();
    this.#turns = 0;
    this.algorithm = "round-robin";
    this.drained.clear();
  }

  status(): object {
    this.#turns += 90;
    return {
      algorithm: this.algorithm,
      algorithms: ["round-robin", "least-connections"],
      listening: "127.0.0.1:65432",
      uptime: (performance.now() - this.#started) / 1000,
      accepted: this.#turns,
      active: 6,
      queued: 0,
      waiting: [],
      retries: 0,
      refusedByAddress: 0,
      ended: { ok: this.#turns - 6, server_reset: 0 },
      turns: { buckets: [0.05, 0.1], counts: [this.#turns, this.#turns / 10, 0] },
      servers: this.servers.map((server) => this.#row(server)),
    };
  }

  #row(server: string): object {
    const draining = this.drained.has(server);
    const isDown = this.killed.has(server);
    const state = draining ? "draining" : "up";
    return {
      server,
      state: isDown ? "down" : state,
      draining,
      since: isDown ? 2 : 41,
      why: isDown ? "connection refused" : "",
      weight: 1,
      active: isDown ? 0 : 3,
      total: this.#turns,
      connectErrors: 0,
      checkFailures: 0,
      bytesToServer: 1234,
      bytesToClient: this.#turns,
      connectTime: 0.0004,
      turnTime: 0.0523,
      unanswered: 1,
      oldestUnanswered: 0.02,
      lastCheck: { result: "passed", seconds: 0.4 },
    };
  }

  /** What a POST to `path` brings about: whether there was such a thing. */
  told(path: string): boolean {
    const [, what, name = "", action] = path.split("/").map(decodeURIComponent);
    if (what === "algorithm") this.algorithm = name;
    else if (action === "drain") this.drained.add(name);
    else if (action === "ready") this.drained.delete(name);
    return what === "algorithm" || this.servers.includes(name);
  }
}

async function standIn(): Promise<StandIn> {
  const balancer = new StandIn();
  const web = createServer((request, response) => {
    request.resume();
    const { method, url = "" } = request;
    if (method === "POST") return void send(response, balancer.told(url) ? 200 : 404, "done");
    if (url === "/") return void send(response, 200, HTML);
    if (url === "/status.json") return void send(response, 200, JSON.stringify(balancer.status()));
    send(response, 404, "nothing there");
  });
  web.listen(0, "127.0.0.1");
  await within(once(web, "listening"), "listening");
  later(() => {
    web.closeAllConnections();
    web.close();
  });
  const address = web.address();
  if (address === null || typeof address === "string") throw new Error("no port");
  balancer.url = `http://127.0.0.1:${address.port}/`;
  return balancer;
}

function send(response: ServerResponse, code: number, body: string | Buffer): void {
  response.writeHead(code, {
    "content-type": typeof body === "string" ? "application/json" : "text/html; charset=utf-8",
    "content-security-policy": "default-src 'self' 'unsafe-inline'; frame-ancestors 'none'",
  });
  response.end(body);
}

// ─── In the browser ──────────────────────────────────────────────────────────
// One browser for all of these: each of them goes on where the one before has stopped.

const browser = suite("in a browser");
const chromium = findChromium();
let tab: Tab;
let balancer: Balancer;

const test: typeof browser | typeof browser.skip = chromium === undefined ? browser.skip : browser;

browser.before(async () => {
  if (chromium === undefined) return;
  balancer = await standIn();
  tab = await openTab(chromium, balancer.url);
});
browser.after(cleanUp);

/** Whether `id` says `text`, as a condition in the page. */
const says = (id: string, text: string): string =>
  `document.getElementById("${id}").textContent.includes(${JSON.stringify(text)})`;

const button = (server: string): string =>
  `document.querySelector('button[aria-label$=" ${server}"]')`;

test("the page opens, and rows and charts fill", async () => {
  await tab.shows(says("wrong", "All 3 servers are up"));
  assert.is(await tab.value(`document.querySelectorAll("#servers tr").length`), 3);
  await tab.shows(`document.querySelectorAll("#open-chart path.s").length === 3`);
  await tab.shows(says("turn-legend", "p95 73 ms"));
  await tab.shows(`document.querySelector("#turn-chart path.s1").getTotalLength() > 2`);
});

test("an address stands on one line at 1280 pixels", async () => {
  await tab.resize(1280, 900);
  const lines = `[...document.querySelectorAll("#servers th span")].map(
    (name) => name.getClientRects().length)`;
  assert.equal(await tab.value(lines), [1, 1, 1]);
});

/** The user picks an algorithm. */
const choose = (algorithm: string): Promise<unknown> =>
  tab.value(`(() => {
    const select = document.getElementById("algorithm");
    select.value = "${algorithm}";
    select.dispatchEvent(new Event("change"));
  })()`);

test("the select switches the algorithm", async () => {
  await choose("least-connections");
  await tab.shows(says("events", "round-robin → least-connections"));
  assert.is(balancer.algorithm, "least-connections");
  await tab.shows(`document.querySelectorAll("#turn-chart .mark").length === 1`);
});

test("a button drains a server, and the keyboard makes it ready", async () => {
  const server = SERVERS[1] ?? "";
  await tab.value(`${button(server)}.click()`);
  await tab.shows(`${button(server)}.textContent === "ready"`);
  assert.equal([...balancer.drained], [server]);
  await tab.value(`${button(server)}.focus()`);
  for (const type of ["keyDown", "keyUp"])
    await tab.send("Input.dispatchKeyEvent", { type, key: "Enter", code: "Enter", text: "\r" });
  await tab.shows(`${button(server)}.textContent === "drain"`);
  assert.ok(await tab.value(`document.activeElement === ${button(server)}`), "the focus stays");
});

test("a killed server shows", async () => {
  balancer.killed.add(SERVERS[0] ?? "");
  await tab.shows(says("wrong", `1 of 3 servers down: ${SERVERS[0]} refuses connections, for`));
  await tab.shows(`document.querySelectorAll("#servers tr.down").length === 1`);
});

test("another balancer at the same address is taken up", async () => {
  balancer.restart();
  await tab.shows(says("events", "Another balancer: round-robin"));
  assert.is(await tab.value(`document.getElementById("algorithm").value`), "round-robin");
});

test("nothing is wider than a window of 400 pixels, whatever the names", async () => {
  balancer.servers.push(HOSTILE, LONG);
  for (let i = 0; i < 30; i += 1) balancer.servers.push(`10.0.0.1:${i + 1}`);
  await tab.resize(400, 800);
  await tab.shows(says("hidden", "Hidden: 15 others"));
  await tab.value(`new Promise(requestAnimationFrame)`);
  assert.is(await tab.value(`document.documentElement.scrollWidth > innerWidth`), false);
  await tab.value(`(() => {
    const find = document.getElementById("find");
    find.value = "<IMG";
    find.dispatchEvent(new Event("input"));
  })()`);
  assert.is(await tab.value(`document.querySelector("#servers th span").textContent`), HOSTILE);
});

test("and the console has nothing to complain of", async () => {
  assert.equal(tab.complaints(), []);
  assert.is.not(await tab.value(`document.title`), "taken");
});

// ─── With a real balancer ────────────────────────────────────────────────────

/** A ping server that works a little. */
async function working(): Promise<PingServer> {
  const server = await startServer({
    host: "127.0.0.1",
    port: 0,
    mean: 0.02,
    sd: 0.005,
    maxConnections: 10,
    seed: 1,
  });
  later(() => end(server));
  return server;
}

async function end(server: PingServer): Promise<void> {
  const closed = server.close();
  server.cut();
  await closed;
}

/** Clients that ask again and again, whatever becomes of it, until the tests are over. */
function load(port: number, count: number): void {
  let isOver = false;
  const ask = async (): Promise<void> => {
    const client = new Client([{ host: "127.0.0.1", port }], { timeout: 5 });
    while (!isOver) {
      await client.request().catch(() => new Promise((resolve) => setTimeout(resolve, 50)));
    }
    client.close();
  };
  const all = Promise.all(Array.from({ length: count }, ask));
  later(() => {
    isOver = true;
    return all;
  });
}

test("a real balancer is watched, switched, drained, hurt and restarted", async () => {
  const [victim, ...others] = [await working(), await working(), await working()] as const;
  const names = [victim, ...others].map(({ address }) => formatAddress(address));
  const options = { check: checkOf("tcp"), checkInterval: 0.2, fall: 1 };
  const here = { host: "127.0.0.1", port: 0 };
  const first = await startBalancer(names, { ...options, admin: here });
  load(first.port, 6);
  await tab.resize(1280, 900);
  await tab.send("Page.navigate", { url: `http://127.0.0.1:${first.admin}/` });
  await tab.shows(says("wrong", "All 3 servers are up"));
  assert.is(await tab.value(`document.querySelectorAll("#servers tr").length`), 3);

  await choose("least-connections");
  await tab.shows(says("events", "round-robin → least-connections"));
  assert.is(first.balancer.status().algorithm, "least-connections");
  const [hurt = "", drained = ""] = names;
  await tab.value(`${button(drained)}.click()`);
  await tab.shows(`${button(drained)}.textContent === "ready"`);
  assert.is(first.balancer.status().servers[1]?.state, "draining");
  await tab.shows(`document.querySelectorAll("#open-chart path.s").length === 3`);
  await tab.shows(`document.querySelector("#turn-chart path.s1").getTotalLength() > 2`);

  await end(victim);
  await tab.shows(says("wrong", `1 of 3 servers down: ${hurt} refuses connections, for`));
  await first.balancer.stop(0);
  await startBalancer(names, {
    ...options,
    port: first.port,
    admin: { host: "127.0.0.1", port: first.admin },
  });
  await tab.shows(says("events", "Another balancer: round-robin"));
  await tab.resize(400, 800);
  await tab.value(`new Promise(requestAnimationFrame)`);
  assert.is(await tab.value(`document.documentElement.scrollWidth > innerWidth`), false);
  // that nobody listened for a moment is logged by the browser, not by the page
  const complaints = tab.complaints().filter((text) => !text.includes("net::ERR_CONNECTION"));
  assert.equal(complaints, []);
});

browser.run();
