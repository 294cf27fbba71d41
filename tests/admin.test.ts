/**
 * admin.test.ts - what the balancer shows and lets switch over HTTP, and to whom.
 */
import { once } from "node:events";
import { type IncomingHttpHeaders, request } from "node:http";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { ALGORITHMS, REASONS, type ServerSpec } from "../load_balancer.ts";
import {
  ask,
  assertAllCounted,
  assertEnded,
  checkOf,
  cleanUp,
  CONNECTIONS,
  crowd,
  DEAD,
  dial,
  echoing,
  later,
  listening,
  outcomeOf,
  serving,
  startBalancer,
  until,
  within,
} from "./helpers.ts";

const ADMIN = { host: "127.0.0.1", port: 0 };

interface Answer {
  readonly code: number | undefined;
  readonly type: string;
  readonly headers: IncomingHttpHeaders;
  readonly body: string;
}

/** One request to the admin port. A `Host` or `Origin` may be forged. */
async function call(
  port: number,
  path: string,
  method = "GET",
  headers: Record<string, string> = {},
): Promise<Answer> {
  const sent = request({ host: "127.0.0.1", port, path, method, headers, agent: false }).end();
  const [response] = await within(once(sent, "response"), `${method} ${path}`);
  const chunks: Buffer[] = [];
  response.on("data", (chunk: Buffer) => chunks.push(chunk));
  await within(once(response, "end"), `the body of ${method} ${path}`);
  return {
    code: response.statusCode,
    type: String(response.headers["content-type"]),
    headers: response.headers,
    body: Buffer.concat(chunks).toString(),
  };
}

/** Code, type and body of an answer. */
async function plainOf(...args: Parameters<typeof call>) {
  const { code, type, body } = await call(...args);
  return { code, type, body };
}

/** A thousand servers. */
const CROWD = Array.from({ length: 1000 }, (_, i) => `127.0.0.1:${i + 1}`);

const codeOf = async (...args: Parameters<typeof call>): Promise<number | undefined> =>
  (await call(...args)).code;

/** A server that the command line could not name. */
const odd = (host: string): ServerSpec => ({
  host,
  port: 1,
  weight: 1,
  backup: false,
  resolved: false,
  configuredHost: host,
});

// ─── Status ──────────────────────────────────────────────────────────────────

const status = suite("status");
status.after.each(cleanUp);

status("gives everything there is to know of the balancer and its servers as JSON", async () => {
  const [echo, dead] = [(await echoing()).address, DEAD[0]];
  const { balancer, port, admin } = await startBalancer([`${dead}*3`, echo], {
    admin: ADMIN,
    fall: 1,
  });
  assert.is(await ask(port), "hello");
  await until(() => balancer.status().active === 0, "the connection's end");
  await until(() => Boolean(balancer.status().servers[0]?.lastCheck), "a check of who failed");
  const { code, type, body } = await call(admin, "/status.json");
  const times = ["uptime", "since", "seconds", "connectTime", "turnTime"];
  const numbers: Record<string, number> = {};
  const { turns, ...known } = JSON.parse(body, (key, value: unknown) => {
    if (!times.includes(key) || typeof value !== "number") return value;
    numbers[key] = value;
    return "a time";
  });
  assert.equal([code, type], [200, "application/json; charset=utf-8"]);
  assert.equal(known, {
    maxConnections: balancer.options.maxConnections,
    serverConnections: 0,
    algorithm: "round-robin",
    algorithms: ALGORITHMS,
    draining: false,
    refusedByAddress: 0,
    shortage: null,
    fileError: null,
    listening: `127.0.0.1:${port}`,
    uptime: "a time",
    accepted: 1,
    active: 0,
    queued: 0,
    retries: 1,
    ended: {
      ok: 1,
      client_reset: 0,
      server_reset: 0,
      idle_timeout: 0,
      no_server: 0,
      queue_timeout: 0,
      limit: 0,
      bad_proxy: 0,
      unanswered: 0,
      drain_forced: 0,
    },
    waiting: [],
    servers: [
      {
        server: dead,
        state: "down",
        draining: false,
        backup: false,
        since: "a time",
        why: "connection refused",
        weight: 3,
        active: 0,
        total: 1,
        connectErrors: 1,
        checkFailures: 1,
        bytesToServer: 0,
        bytesToClient: 0,
        connectTime: null,
        turnTime: null,
        unanswered: 0,
        oldestUnanswered: null,
        lastCheck: { result: "connection refused", seconds: "a time" },
      },
      {
        server: echo,
        state: "up",
        draining: false,
        backup: false,
        since: "a time",
        why: "",
        weight: 1,
        active: 0,
        total: 1,
        connectErrors: 0,
        checkFailures: 0,
        bytesToServer: 5,
        bytesToClient: 5,
        connectTime: "a time",
        turnTime: "a time",
        unanswered: 0,
        oldestUnanswered: null,
        lastCheck: null,
      },
    ],
  });
  assert.is(total(turns.counts), 1);
  for (const [name, seconds] of Object.entries(numbers))
    assert.ok(seconds > 0 && seconds < 10, `${name} is in seconds: ${seconds}`);
});

const total = (counts: readonly number[]): number => counts.reduce((sum, n) => sum + n, 0);

status("counts all turns in buckets fine enough for quantiles", async () => {
  const { balancer, port, admin } = await startBalancer([(await echoing()).address], {
    admin: ADMIN,
  });
  const client = await dial(port);
  for (let turn = 1; turn <= 5; turn += 1) {
    client.socket.write("x");
    await until(() => client.size() === turn, "the echo");
  }
  await until(() => total(balancer.status().turns.counts) === 5, "five turns");
  const { buckets, counts } = JSON.parse((await call(admin, "/status.json")).body).turns;
  assert.equal([buckets[0], buckets.at(-1), total(counts)], [0.001, 10, 5]);
  assert.is(counts.length, buckets.length + 1, "the last count is of what is above all");
  for (let i = 1; i < buckets.length; i += 1)
    assert.ok(buckets[i] / buckets[i - 1] > 1 && buckets[i] / buckets[i - 1] <= 1.2 + 1e-9);
});

status("shows how many turns wait for an answer, and for how long the first", async () => {
  const silent = await serving();
  const { balancer, port, admin } = await startBalancer([silent.address], { admin: ADMIN });
  const clients = [await dial(port), await dial(port)];
  const [first, second] = [await silent.next(), await silent.next()];
  for (const { socket } of clients) socket.write("hello");
  const row = async () => JSON.parse((await call(admin, "/status.json")).body).servers[0];
  await until(() => balancer.status().servers[0]?.unanswered === 2, "two turns");
  const { oldestUnanswered } = await row();
  assert.ok(oldestUnanswered > 0 && oldestUnanswered < 10, `${oldestUnanswered} s`);
  for (const { socket } of [first, second]) socket.write("!");
  await until(() => balancer.status().servers[0]?.unanswered === 0, "two answers");
  assert.is((await row()).oldestUnanswered, null);
});

status("shows what the last check has found, and when", async () => {
  const { admin, balancer } = await startBalancer([(await echoing()).address, DEAD[0]], {
    admin: ADMIN,
    check: checkOf("tcp"),
    checkInterval: 0.1,
  });
  await until(() => balancer.status().servers[1]?.state === "down", "the second going down");
  const { servers } = JSON.parse((await call(admin, "/status.json")).body);
  assert.equal(
    servers.map(({ lastCheck }: { lastCheck: { result: string } }) => lastCheck.result),
    ["passed", "connection refused"],
  );
  for (const { lastCheck } of servers)
    assert.ok(lastCheck.seconds >= 0 && lastCheck.seconds < 5, `${lastCheck.seconds} s`);
});

status("a server that is down and drained is down, since it went down", async () => {
  const { balancer, admin } = await startBalancer([DEAD[0]], {
    admin: ADMIN,
    check: checkOf("tcp"),
    checkInterval: 0.1,
    fall: 1,
  });
  const row = () => balancer.status().servers[0];
  await until(() => row()?.state === "down", "it going down");
  await until(() => (row()?.since ?? 0) > 0.1, "a tenth of a second");
  assert.is(await codeOf(admin, `/servers/${DEAD[0]}/drain`, "POST"), 200);
  assert.equal([row()?.state, row()?.draining], ["down", true]);
  assert.ok((row()?.since ?? 0) > 0.1);
});

status(
  "counts every accepted connection exactly once at each of 100 looks at a churning run",
  async () => {
    const moody = await listening((socket) => {
      socket.once("data", () =>
        Math.random() < 0.5 ? socket.resetAndDestroy() : socket.end("bye"),
      );
    });
    const { port, admin } = await startBalancer(
      [DEAD[0], (await echoing()).address, moody.address],
      { admin: ADMIN, serverConnections: 2, queueTimeout: 0.05, maxConnections: 30 },
    );
    let running = true;
    const churn = async (): Promise<void> => {
      while (running) {
        const { socket, outcome } = await dial(port);
        if (Math.random() < 0.2) socket.resetAndDestroy();
        else if (Math.random() < 0.8) socket.end("hello");
        else setTimeout(() => socket.destroy(), 60); // longer than others wait
        await within(outcome, "an end");
      }
    };
    const clients = Array.from({ length: 40 }, churn);
    const looks = [];
    for (let i = 0; i < 100; i += 1) {
      const look = JSON.parse((await call(admin, "/status.json")).body);
      assertAllCounted(look);
      looks.push(look);
    }
    running = false;
    await Promise.all(clients);
    const busy = looks.filter(({ active, queued }) => active > 0 && queued > 0).length;
    assert.ok(busy > 50, `${busy} of 100 looks had active and queued connections`);
    assert.ok(looks.at(-1).accepted > looks[0].accepted + 100, "connections came all the time");
  },
);

status("a poll of a thousand servers costs less than 20 ms of the processor", async () => {
  const { admin } = await startBalancer(CROWD, { admin: ADMIN });
  for (const path of ["/status.json", "/"]) {
    const costs: number[] = [];
    for (let i = 0; i < 15; i += 1) {
      const before = process.cpuUsage();
      await call(admin, path);
      const { user, system } = process.cpuUsage(before);
      costs.push((user + system) / 1000);
    }
    const median = costs.sort((a, b) => a - b)[7] ?? Infinity;
    if (process.env["SHOW"]) console.log(`\n${path}: ${median.toFixed(2)} ms a poll`);
    assert.ok(median < 20, `${path}: ${median} ms, with what its client takes`);
  }
});

status("shows who has waited longest in the queue", async () => {
  const server = await serving();
  const { balancer, port, admin } = await startBalancer([server.address], {
    admin: ADMIN,
    serverConnections: 1,
  });
  const [, second] = [await dial(port), await dial(port), await dial(port)];
  await until(() => balancer.status().queued === 2, "two in the queue");
  const { waiting, queued } = JSON.parse((await call(admin, "/status.json")).body);
  assert.is(queued, 2);
  assert.is(waiting.length, 2);
  assert.is(waiting[0].client, `127.0.0.1:${second?.socket.localPort}`);
  assert.ok(waiting[0].seconds >= waiting[1].seconds && waiting[0].seconds < 10);
});

status("shows the first ten of the queue, whoever else waits", async () => {
  const server = await serving();
  const { balancer, port } = await startBalancer([server.address], { serverConnections: 1 });
  for (let i = 0; i < 13; i += 1) await dial(port);
  await until(() => balancer.status().queued === 12, "twelve in the queue");
  assert.is(balancer.status().waiting.length, 10);
});

status.run();

// ─── Metrics ─────────────────────────────────────────────────────────────────

const metrics = suite("metrics");
metrics.after.each(cleanUp);

/** The samples by name and labels, after a check of every line. */
async function scrape(admin: number): Promise<Map<string, number>> {
  const { code, type, body } = await call(admin, "/metrics");
  assert.equal([code, type], [200, "text/plain; version=0.0.4; charset=utf-8"]);
  assert.ok(body.endsWith("\n"));
  const samples = new Map<string, number>();
  const families = new Set<string>();
  let family = "";
  let kind = "";
  for (const line of body.trimEnd().split("\n")) {
    const [, word, name = "", rest = ""] = /^# (HELP|TYPE) (\w+) (.+)$/.exec(line) ?? [];
    if (word === "HELP") {
      assert.not.ok(families.has(name), `${name} is announced once`);
      families.add((family = name));
    } else if (word === "TYPE") {
      assert.is(name, family);
      kind = rest;
      assert.is(kind === "counter", name.endsWith("_total"), `${name} is a ${kind}`);
    } else {
      const [, sample = "", value = ""] =
        /^(\w+(?:\{\w+="(?:[^"\\\n]|\\[\\"n])*"(?:,\w+="[^"]*")*\})?) (-?[\d.]+(?:e[+-]?\d+)?)$/.exec(
          line,
        ) ?? [];
      assert.ok(sample.startsWith(family) && sample !== "", `a sample of ${family}: ${line}`);
      assert.match(
        sample.slice(family.length),
        kind === "histogram" ? /^_(bucket|sum|count)\{/ : /^(\{|$)/,
      );
      assert.not.ok(samples.has(sample), `${sample} is there once`);
      samples.set(sample, Number(value));
    }
  }
  return samples;
}

metrics("say what the status says, in samples that Prometheus can read", async () => {
  const echo = (await echoing()).address;
  const { balancer, port, admin } = await startBalancer([DEAD[0], echo], { admin: ADMIN, fall: 1 });
  for (let i = 0; i < 3; i += 1) assert.is(await ask(port), "hello");
  await until(() => balancer.status().ended.ok === 3, "three ends");
  const samples = await scrape(admin);
  const of = (name: string, server: string): number | undefined =>
    samples.get(`balancer_${name}{server="${server}"}`);
  assert.is(samples.get("balancer_connections_accepted_total"), 3);
  assert.is(samples.get("balancer_connections_active"), 0);
  assert.is(samples.get("balancer_retries_total"), 1);
  assert.equal(
    REASONS.map((reason) => samples.get(`balancer_connections_ended_total{reason="${reason}"}`)),
    [3, 0, 0, 0, 0, 0, 0, 0, 0, 0],
  );
  assert.equal([of("server_up", DEAD[0]), of("server_up", echo)], [0, 1]);
  assert.equal(
    [
      of("server_connect_errors_total", DEAD[0]),
      of("server_connections_total", echo),
      of("server_sent_bytes_total", echo),
    ],
    [1, 3, 15],
  );
});

metrics("have histograms that grow from bucket to bucket, up to the count", async () => {
  const echo = (await echoing()).address;
  const { balancer, port, admin } = await startBalancer([echo], { admin: ADMIN });
  for (let i = 0; i < 20; i += 1) assert.is(await ask(port), "hello");
  await until(() => balancer.status().ended.ok === 20, "twenty ends");
  const samples = await scrape(admin);
  for (const name of ["connect", "turn"]) {
    const histogram = [...samples].filter(([sample]) =>
      sample.startsWith(`balancer_server_${name}_seconds_bucket`),
    );
    const edges = histogram.map(([sample]) =>
      Number(/le="(.*)"/.exec(sample)?.[1]?.replace("+Inf", "Infinity")),
    );
    const counts = histogram.map(([, count]) => count);
    assert.equal(
      edges,
      [...edges].sort((a, b) => a - b),
    );
    assert.equal(
      counts,
      [...counts].sort((a, b) => a - b),
    );
    assert.is(edges.at(-1), Infinity);
    assert.is(counts.at(-1), 20);
    assert.is(samples.get(`balancer_server_${name}_seconds_count{server="${echo}"}`), 20);
    const sum = samples.get(`balancer_server_${name}_seconds_sum{server="${echo}"}`) ?? 0;
    assert.ok(sum > 0 && sum < 20, `a sum of seconds: ${sum}`);
  }
});

metrics("escape what a server's name may hold", async () => {
  const { admin } = await startBalancer([], { servers: [odd('a"b\\c\nd')], admin: ADMIN });
  const samples = await scrape(admin);
  assert.is(samples.get('balancer_server_up{server="a\\"b\\\\c\\nd:1"}'), 0);
});

metrics.run();

// ─── Health and switches ─────────────────────────────────────────────────────

const switches = suite("health and switches");
switches.after.each(cleanUp);

switches("healthz is 200 with a server up, and 503 without", async () => {
  const { port, admin } = await startBalancer([DEAD[0]], { admin: ADMIN, fall: 1 });
  assert.equal(await plainOf(admin, "/healthz"), {
    code: 200,
    type: "text/plain; charset=utf-8",
    body: "ok\n",
  });
  await ask(port);
  assert.equal(await plainOf(admin, "/healthz"), {
    code: 503,
    type: "text/plain; charset=utf-8",
    body: "no server takes clients\n",
  });
});

switches("healthz is 503 while the balancer drains", async () => {
  const { balancer, port, admin } = await startBalancer([(await echoing()).address], {
    admin: ADMIN,
  });
  const client = await dial(port);
  client.socket.write("hello");
  await until(() => client.size() === 5, "the echo");
  const stopped = balancer.stop(20);
  assert.equal(await plainOf(admin, "/healthz"), {
    code: 503,
    type: "text/plain; charset=utf-8",
    body: "draining\n",
  });
  client.socket.end();
  assert.is(await within(stopped, "the stop"), 0);
  await assertGone(admin);
});

async function assertGone(port: number): Promise<void> {
  assert.is(await outcomeOf(await dial(port)), "ECONNREFUSED");
}

switches(
  "a drained server keeps its connections and gets no new ones until it is ready again",
  async () => {
    const [a, b] = [await serving(), await serving()];
    const { balancer, port, admin } = await startBalancer([a.address, b.address], { admin: ADMIN });
    const first = await dial(port);
    const open = await a.next();
    const { code, body } = await call(admin, `/servers/${a.address}/drain`, "POST");
    assert.equal([code, JSON.parse(body).state], [200, "draining"]);
    for (let i = 0; i < 4; i += 1) await dial(port);
    await until(() => b.count() === 4, "four at the other");
    assert.is(a.count(), 1);
    first.socket.end("hello");
    assert.is(await outcomeOf(open), "end");
    assert.is(open.bytes().toString(), "hello");
    assert.is(
      JSON.parse(
        (await call(admin, `/servers/${encodeURIComponent(a.address)}/ready`, "POST")).body,
      ).state,
      "up",
    );
    for (let i = 0; i < 4; i += 1) await dial(port);
    await until(() => a.count() === 3, "turns again");
    assert.is(balancer.status().servers[0]?.state, "up");
  },
);

switches("healthz is 503 when every server is drained", async () => {
  const { address } = await echoing();
  const { admin } = await startBalancer([address], { admin: ADMIN });
  await call(admin, `/servers/${address}/drain`, "POST");
  assert.is(await codeOf(admin, "/healthz"), 503);
});

switches("a drained server shows since when, and a second drain does not change that", async () => {
  const { address } = await echoing();
  const { balancer, admin } = await startBalancer([address], { admin: ADMIN });
  const since = (): number => balancer.status().servers[0]?.since ?? 0;
  await until(() => since() > 0.1, "a tenth of a second");
  await call(admin, `/servers/${address}/drain`, "POST");
  assert.ok(since() < 0.1);
  await until(() => since() > 0.1, "a tenth of a second");
  await call(admin, `/servers/${address}/drain`, "POST");
  assert.ok(since() > 0.1);
});

switches("the algorithm is switched by name, and only later picks are concerned", async () => {
  const [a, b] = [await serving(), await serving()];
  const { balancer, port, admin } = await startBalancer([a.address, b.address], { admin: ADMIN });
  await dial(port);
  await a.next();
  const { code, body } = await call(admin, "/algorithm/least-connections", "POST");
  assert.equal([code, JSON.parse(body)], [200, { algorithm: "least-connections" }]);
  assert.is(balancer.status().algorithm, "least-connections");
  assert.equal(
    balancer.status().servers.map(({ active }) => active),
    [1, 0],
  );
  await dial(port);
  await b.next();
  assert.is((await scrape(admin)).get('balancer_info{algorithm="least-connections"}'), 1);
});

switches(
  "an algorithm that is none of them is 404 with the names, and switches nothing",
  async () => {
    const { balancer, admin } = await startBalancer([DEAD[0]], { admin: ADMIN });
    for (const name of ["fastest", "constructor", "%zz", "Round-Robin"]) {
      const { code, body } = await call(admin, `/algorithm/${name}`, "POST");
      assert.equal([code, body], [404, `Expected one of ${ALGORITHMS.join(", ")}\n`]);
    }
    assert.is(await codeOf(admin, "/algorithm/random"), 405);
    assert.is(balancer.status().algorithm, "round-robin");
  },
);

switches("under a crowd, algorithms that change all the time lose nobody", async () => {
  const servers = await Promise.all(Array.from({ length: 3 }, () => echoing()));
  const { balancer, port, admin } = await startBalancer(
    servers.map(({ address }) => address),
    { admin: ADMIN, serverConnections: 1 },
  );
  const { left, outcomes } = crowd(port, 40);
  let [looks, queued] = [0, 0];
  for (; left() > 0; looks += 1) {
    const name = ALGORITHMS[looks % ALGORITHMS.length] ?? "random";
    if (looks % 10 > 0) balancer.setAlgorithm(name);
    else assert.is(await codeOf(admin, `/algorithm/${name}`, "POST"), 200);
    const look = balancer.status();
    assertAllCounted(look);
    assert.is(look.algorithm, name);
    if (look.queued > 0) queued += 1;
    await new Promise((resolve) => setImmediate(resolve));
  }
  assert.equal(await within(outcomes, "all clients", 60), [["hello", CONNECTIONS]]);
  assert.ok(queued > 100, `somebody queued at ${queued} of ${looks} looks`);
  await assertEnded(balancer, { ok: CONNECTIONS });
});

switches("a server of weight 0 cannot be made ready: 409", async () => {
  const { address } = await echoing();
  const { balancer, admin } = await startBalancer([`${address}*0`, DEAD[0]], { admin: ADMIN });
  const { code, body } = await call(admin, `/servers/${address}/ready`, "POST");
  assert.equal([code, body], [409, "Its weight is 0: its configuration drains it\n"]);
  assert.is(balancer.status().servers[0]?.state, "draining");
});

switches("a name that no URL can hold is an unknown server", async () => {
  const { admin } = await startBalancer([(await echoing()).address], { admin: ADMIN });
  for (const path of ["/servers/%zz/drain", "/algorithm/%zz"])
    assert.is(await codeOf(admin, path, "POST"), 404);
});

switches("every address of 127.0.0.0/8 is loopback", async () => {
  const { admin } = await startBalancer([(await echoing()).address], {
    admin: { host: "127.0.0.2", port: 0 },
  });
  const options = { host: "127.0.0.2", port: admin, path: "/algorithm/random", method: "POST" };
  const [response] = await within(once(request(options).end(), "response"), "an answer");
  response.resume();
  assert.is(response.statusCode, 200);
});

switches("beyond loopback nothing is switched, unless that is allowed", async () => {
  const { address } = await echoing();
  for (const adminWritable of [false, true]) {
    const { balancer, admin } = await startBalancer([address], {
      admin: { host: "0.0.0.0", port: 0 },
      adminWritable,
    });
    const codes = [
      await codeOf(admin, `/servers/${address}/drain`, "POST"),
      await codeOf(admin, "/algorithm/random", "POST"),
      await codeOf(admin, "/status.json"),
    ];
    const { algorithm, servers } = balancer.status();
    const seen = [codes, algorithm, servers[0]?.state];
    if (adminWritable) assert.equal(seen, [[200, 200, 200], "random", "draining"]);
    else assert.equal(seen, [[403, 403, 200], "round-robin", "up"]);
  }
});

switches("an unknown server is 404, and so is an unknown path", async () => {
  const { admin } = await startBalancer([(await echoing()).address], { admin: ADMIN });
  for (const path of ["/servers/127.0.0.1:9/drain", "/servers/%zz/ready"])
    assert.equal(await plainOf(admin, path, "POST"), {
      code: 404,
      type: "text/plain; charset=utf-8",
      body: "No such server\n",
    });
  for (const path of [
    "/nothing",
    "/servers",
    "/servers/127.0.0.1:9/stop",
    "//",
    "/constructor",
    "/__proto__",
  ])
    assert.is(await codeOf(admin, path), 404, path);
});

switches("a wrong method is 405 and switches nothing", async () => {
  const { address } = await echoing();
  const { balancer, admin } = await startBalancer([address], { admin: ADMIN });
  for (const method of ["GET", "PUT", "DELETE"])
    assert.is(await codeOf(admin, `/servers/${address}/drain`, method), 405, method);
  for (const path of ["/", "/status.json", "/metrics", "/healthz"])
    assert.is(await codeOf(admin, path, "POST"), 405, path);
  assert.is(balancer.status().servers[0]?.state, "up");
});

switches("HEAD is answered without a body", async () => {
  const { admin } = await startBalancer([(await echoing()).address], { admin: ADMIN });
  assert.equal(await plainOf(admin, "/healthz", "HEAD"), {
    code: 200,
    type: "text/plain; charset=utf-8",
    body: "",
  });
});

switches.run();

// ─── Strangers ───────────────────────────────────────────────────────────────

const strangers = suite("strangers");
strangers.after.each(cleanUp);

strangers("a foreign Host is 403: another site's name may have been pointed here", async () => {
  const { admin } = await startBalancer([(await echoing()).address], { admin: ADMIN });
  for (const host of [
    "evil.example",
    "evil.example:65431",
    "localhost.evil.example",
    "127.0.0.1.evil.example",
    "evil.example:80@127.0.0.1",
    "[evil]",
  ]) {
    for (const path of ["/", "/status.json"])
      assert.is(await codeOf(admin, path, "GET", { host }), 403, `${host} ${path}`);
    for (const path of ["/algorithm/random", "/servers/127.0.0.1:1/drain", "/healthz"])
      assert.is(await codeOf(admin, path, "POST", { host }), 403, `${host} ${path}`);
  }
});

strangers("healthz and metrics answer to any Host, as Kubernetes and Prometheus ask", async () => {
  const { admin } = await startBalancer([(await echoing()).address], { admin: ADMIN });
  for (const host of ["balancer.default.svc:9000", "evil.example", ""]) {
    for (const path of ["/healthz", "/metrics"])
      assert.is(await codeOf(admin, path, "GET", { host }), 200, `${host} ${path}`);
  }
});

strangers("an address or localhost as the Host is fine", async () => {
  const { admin } = await startBalancer([(await echoing()).address], { admin: ADMIN });
  for (const host of [
    "127.0.0.1",
    `127.0.0.1:${admin}`,
    "localhost",
    "localhost:80",
    "10.1.2.3:65431",
    "[::1]",
    "[::1]:65431",
    "[2001:db8::1]:80",
  ]) {
    assert.is(await codeOf(admin, "/status.json", "GET", { host }), 200, host);
  }
});

strangers(
  "a POST with a foreign Origin is 403 and switches nothing; the page's own Origin is fine",
  async () => {
    const { address } = await echoing();
    const { balancer, admin } = await startBalancer([address], { admin: ADMIN });
    const drain = (origin: string, host = `127.0.0.1:${admin}`): Promise<number | undefined> =>
      codeOf(admin, `/servers/${address}/drain`, "POST", { origin, host });
    for (const origin of [
      "http://evil.example",
      "null",
      "",
      `https://127.0.0.1:${admin}`,
      "http://127.0.0.1:1",
      `http://127.0.0.1:${admin}.evil.example`,
    ])
      assert.is(await drain(origin), 403, origin);
    assert.is(balancer.status().servers[0]?.state, "up");
    assert.is(await drain(`http://127.0.0.1:${admin}`), 200);
    assert.is(await drain("http://[::1]:65431", "[::1]:65431"), 200);
  },
);

strangers("no name can become markup: it is in the JSON, which is not taken for HTML", async () => {
  const host = "<img src=x onerror=alert(1)>";
  const { admin } = await startBalancer([], { servers: [odd(host)], admin: ADMIN });
  const page = await call(admin, "/");
  assert.equal([page.code, page.type], [200, "text/html; charset=utf-8"]);
  assert.not.match(page.body, /<img/);
  const { type, body, headers } = await call(admin, "/status.json");
  assert.is(type, "application/json; charset=utf-8");
  assert.is(headers["x-content-type-options"], "nosniff");
  assert.is(JSON.parse(body).servers[0].server, `${host}:1`);
});

strangers("nothing is cached, framed, or loaded from elsewhere", async () => {
  const { admin } = await startBalancer([(await echoing()).address], { admin: ADMIN });
  for (const path of ["/", "/status.json", "/metrics", "/healthz", "/nothing"]) {
    const { headers } = await call(admin, path);
    assert.is(headers["cache-control"], "no-store", path);
    assert.match(
      String(headers["content-security-policy"]),
      /^default-src 'self' .*frame-ancestors 'none'/,
    );
  }
});

strangers("1 MiB of header is refused", async () => {
  const { admin } = await startBalancer([(await echoing()).address], { admin: ADMIN });
  const client = await dial(admin);
  client.socket.write(`GET / HTTP/1.1\r\nHost: localhost\r\nX: ${"x".repeat(1 << 20)}\r\n\r\n`);
  await outcomeOf(client);
  const answer = client.bytes().toString();
  // a reset may overtake the 431
  assert.ok(answer === "" || answer.startsWith("HTTP/1.1 431 "), answer.slice(0, 80));
  assert.is(await codeOf(admin, "/healthz"), 200);
});

strangers(
  "clients beyond 32 and clients that are slow to ask or ask too much are dropped, and then there is room again",
  async () => {
    const { port, admin } = await startBalancer([(await echoing()).address], { admin: ADMIN });
    const since = performance.now();
    const slow = await Promise.all(Array.from({ length: 40 }, () => dial(admin)));
    slow.forEach(({ socket }, i) => {
      if (i % 3 === 0)
        socket.write("GET / HTTP/1.1\r\nHost: local"); // never ends its header
      else if (i % 3 === 1)
        socket.write(
          "POST /servers/x/drain HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nx",
        ); // nor its body
      // wants 3,000 answers
      else socket.write("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(3000));
    });
    const drip = setInterval(
      () =>
        slow.forEach(({ socket }, i) => {
          if (i % 3 !== 2 && socket.writable && socket.writableLength === 0) socket.write("x");
        }),
      100,
    );
    later(() => clearInterval(drip));
    assert.is(await ask(port), "hello", "the relay does not care");
    await within(Promise.all(slow.map(({ outcome }) => outcome)), "all of them dropped");
    assert.ok(performance.now() - since > 1000, "not all at once");
    const served = slow.map(({ bytes }) => bytes().toString().split("HTTP/1.1 200 ").length - 1);
    assert.ok(Math.max(...served) <= 100, `100 answers are enough: ${served}`);
    assert.is(await codeOf(admin, "/healthz"), 200);
  },
);

const STATUS = "GET /status.json HTTP/1.1\r\nHost: localhost\r\n";
/** 16 MB of answers: more than the kernel holds for who does not read. */
const PIPELINED = 40;

/** A client that has asked for the status so often, and reads nothing before it is told to. */
async function unread(admin: number) {
  const client = await dial(admin, { onread: undefined });
  client.socket.write(`${STATUS}\r\n`.repeat(PIPELINED - 1));
  client.socket.write(`${STATUS}Connection: close\r\n\r\n`);
  const read = async (): Promise<string[]> => {
    const chunks: Buffer[] = [];
    client.socket.on("data", (chunk: Buffer) => chunks.push(chunk));
    await outcomeOf(client);
    return Buffer.concat(chunks).toString().split("HTTP/1.1 200 OK").slice(1);
  };
  return { read };
}

strangers("an answer is made when the one before it has been taken", async () => {
  const { admin } = await startBalancer(CROWD, { admin: ADMIN });
  const { read } = await unread(admin);
  assert.is(await codeOf(admin, "/algorithm/random", "POST"), 200, "the requests have come before");
  const answers = await read();
  assert.is(answers.length, PIPELINED);
  assert.match(answers.at(0) ?? "", '"algorithm":"round-robin"');
  assert.match(answers.at(-1) ?? "", '"algorithm":"random"');
});

strangers("who does not read, or never ends its request, is dropped after seconds", async () => {
  const { admin } = await startBalancer(CROWD, { admin: ADMIN });
  const since = performance.now();
  const { read } = await unread(admin);
  const endless = await dial(admin);
  endless.socket.write("POST /x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999\r\n\r\n");
  const drip = setInterval(() => {
    if (endless.socket.writable) endless.socket.write("x");
  }, 100);
  later(() => clearInterval(drip));
  await within(endless.outcome, "the end of a request that never ends", 10);
  // Node looks every three seconds, and may find that the last write has got on since
  await until(() => performance.now() - since > 7000, "the time that one has to read");
  const { length } = await read();
  assert.ok(length > 0 && length < PIPELINED, `${length} of ${PIPELINED} answers`);
});

strangers("nobody who is slow to ask keeps a balancer from its end", async () => {
  const { balancer, admin } = await startBalancer([DEAD[0]], { admin: ADMIN });
  const slow = await dial(admin);
  slow.socket.write("GET / HTTP/1.1\r\nHost: local");
  assert.is(await codeOf(admin, "/metrics"), 200, "it has come");
  await balancer.stop(0);
  await within(slow.outcome, "being dropped", 1);
});

strangers.run();
