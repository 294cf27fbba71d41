/**
 * load_balancer.test.ts - what the balancer promises about bytes, ends, retries, the queue and its
 * limits, with real sockets.
 */
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { formatAddress, mulberry32 } from "../lib.ts";
import { startServer } from "../server.ts";
import {
  ask,
  assertAllCounted,
  assertEnded,
  checkOf,
  cleanUp,
  coverNoChildren,
  DEAD,
  dial,
  echoing,
  failDials,
  later,
  listening,
  outcomeOf,
  serving,
  startBalancer,
  startNode,
  swallowing,
  type Talk,
  until,
  within,
} from "./helpers.ts";

coverNoChildren();

const MIB = 1024 * 1024;
/** 50 MiB that no one could mistake for other bytes. */
const BULK = randomBytes(50 * MIB);
/** A client and, once the balancer has connected them, its server's side. */
async function pair(
  options: Parameters<typeof startBalancer>[1] = {},
): Promise<{ client: Talk; server: Talk } & Awaited<ReturnType<typeof startBalancer>>> {
  const listener = await serving();
  const started = await startBalancer([listener.address], options);
  const client = await dial(started.port);
  return { client, server: await listener.next(), ...started };
}
const has = (talk: Talk, size: number): Promise<void> =>
  until(() => talk.size() >= size, `${size} bytes arriving`);

// ─── Bytes ───────────────────────────────────────────────────────────────────

const bytes = suite("bytes");
bytes.after.each(cleanUp);

bytes("carries 50 MiB to a client that has finished sending", async () => {
  const { client, server, balancer } = await pair();
  client.socket.end("send it all");
  assert.is(await outcomeOf(server), "end");
  assert.is(server.bytes().toString(), "send it all");
  server.socket.end(BULK);
  assert.is(await outcomeOf(client), "end");
  assert.ok(client.bytes().equals(BULK), "the same bytes");
  await assertEnded(balancer, { ok: 1 });
});

bytes("carries 50 MiB to a server that has finished sending", async () => {
  const { client, server, balancer } = await pair();
  server.socket.end("send it all");
  assert.is(await outcomeOf(client), "end");
  client.socket.end(BULK);
  assert.is(await outcomeOf(server), "end");
  assert.ok(server.bytes().equals(BULK), "the same bytes");
  await assertEnded(balancer, { ok: 1 });
});

bytes("carries different bytes both ways at once", async () => {
  const { client, server, balancer } = await pair();
  client.socket.end(BULK.subarray(0, 20 * MIB));
  server.socket.write(BULK.subarray(20 * MIB, 40 * MIB));
  assert.is(await outcomeOf(server), "end");
  server.socket.end();
  assert.is(await outcomeOf(client), "end");
  assert.ok(server.bytes().equals(BULK.subarray(0, 20 * MIB)));
  assert.ok(client.bytes().equals(BULK.subarray(20 * MIB, 40 * MIB)));
  await assertEnded(balancer, { ok: 1 });
  const { bytesToServer, bytesToClient } = balancer.status().servers[0] ?? {};
  assert.equal([bytesToServer, bytesToClient], [20 * MIB, 20 * MIB]);
});

bytes("carries bytes that come one by one", async () => {
  const { port } = await startBalancer([(await echoing()).address]);
  const client = await dial(port);
  for (let i = 0; i < 256; i += 1) {
    client.socket.write(Buffer.of(i));
    if (i % 8 === 0) await has(client, i);
  }
  client.socket.end();
  assert.is(await outcomeOf(client), "end");
  assert.equal(
    [...client.bytes()],
    Array.from({ length: 256 }, (_, i) => i),
  );
});

bytes("never mixes up the messages of 100 connections, slow readers among them", async () => {
  const { balancer, port } = await startBalancer([
    (await echoing()).address,
    (await echoing()).address,
  ]);
  const random = mulberry32(7);
  const talkers = Array.from({ length: 100 }, async (_, i) => {
    const client = await dial(port);
    for (let round = 0, sent = 0; round < 6; round += 1) {
      const size = Math.ceil(random() < 0.5 ? random() * 2000 : random() * 200_000);
      const start = Math.floor(random() * (BULK.length - size));
      const before = client.size();
      if (i % 4 === 0) client.socket.pause();
      client.socket.write(BULK.subarray(start, start + size));
      sent += size;
      if (i % 4 === 0) setTimeout(() => client.socket.resume(), random() * 40);
      await has(client, sent);
      assert.ok(
        client
          .bytes()
          .subarray(before)
          .equals(BULK.subarray(start, start + size)),
        `client ${i}, round ${round}`,
      );
    }
    client.socket.end();
    return outcomeOf(client);
  });
  assert.equal([...new Set(await Promise.all(talkers))], ["end"]);
  await assertEnded(balancer, { ok: 100 });
});

for (const sizes of [[1500], [20_000], [30_000, 700, 17_000, 64_000, 1]]) {
  bytes(
    `keeps what waits for a slow reader apart from what is read next, in pieces of ${sizes} bytes`,
    async () => {
      const { client, server, balancer } = await pair();
      client.socket.pause();
      let sent = 0;
      const taken = (): number => balancer.status().servers[0]?.bytesToClient ?? 0;
      for (let i = 0, waited = 0; waited < 20; i += 1) {
        // until the balancer takes no more: what it took last waits in its own memory
        const size = sizes[i % sizes.length] ?? 1;
        if (taken() === sent) {
          server.socket.write(BULK.subarray(sent, sent + size));
          [sent, waited] = [sent + size, 0];
        } else waited += 1;
        await new Promise((resolve) => setImmediate(resolve));
      }
      client.socket.end().resume();
      server.socket.end();
      assert.is(await outcomeOf(client), "end");
      assert.ok(client.bytes().equals(BULK.subarray(0, sent)));
      await assertEnded(balancer, { ok: 1 });
    },
  );
}

bytes("lets the server speak first", async () => {
  const { client, server } = await pair();
  server.socket.write("220 hello");
  await has(client, 9);
  assert.is(client.bytes().toString(), "220 hello");
  assert.is(server.size(), 0);
});

bytes("takes no more from a server than a client who never reads leaves room for", async () => {
  const listener = await listening((socket) => {
    socket.end(BULK);
  });
  const { balancer, port } = await startBalancer([listener.address]);
  const clients = await Promise.all(
    Array.from({ length: 4 }, () => dial(port, { onread: undefined })),
  );
  for (const client of clients) client.socket.pause();
  const taken = await stillness(() => balancer.status().servers[0]?.bytesToClient ?? 0);
  assert.ok(taken > 0 && taken < 4 * 20 * MIB, `took ${taken} of ${4 * BULK.length} bytes`);
});

bytes("takes no more from a client than a server who never reads leaves room for", async () => {
  const listener = await listening((socket) => {
    socket.pause();
  });
  const { balancer, port } = await startBalancer([listener.address]);
  for (let i = 0; i < 4; i += 1) (await dial(port)).socket.end(BULK);
  const taken = await stillness(() => balancer.status().servers[0]?.bytesToServer ?? 0);
  assert.ok(taken > 0 && taken < 4 * 20 * MIB, `took ${taken} of ${4 * BULK.length} bytes`);
});

/** The value of `read` once it has stopped growing for a while: what is in its way is full. */
async function stillness(read: () => number): Promise<number> {
  let [value, same] = [read(), 0];
  await until(() => {
    same = value > 0 && read() === value ? same + 1 : 0;
    value = read();
    return same >= 40;
  }, "no further bytes");
  return value;
}

bytes("goes on where a reader that paused resumes", async () => {
  const { client, server, balancer } = await pair();
  client.socket.pause();
  server.socket.end(BULK);
  await stillness(() => balancer.status().servers[0]?.bytesToClient ?? 0);
  client.socket.end().resume();
  assert.is(await outcomeOf(client), "end");
  assert.ok(client.bytes().equals(BULK));
  await assertEnded(balancer, { ok: 1 });
});

bytes.run();

// ─── Ends ────────────────────────────────────────────────────────────────────

const ends = suite("ends");
ends.after.each(cleanUp);

const BROKEN = /^(ECONNRESET|EPIPE)$/;

ends("passes a server's reset on behind exactly the bytes that came before it", async () => {
  const { client, server, balancer } = await pair();
  const prefix = BULK.subarray(0, MIB);
  server.socket.write(prefix);
  await has(client, MIB);
  server.socket.resetAndDestroy();
  assert.is(await outcomeOf(client), "ECONNRESET");
  assert.ok(client.bytes().equals(prefix));
  await assertEnded(balancer, { server_reset: 1 });
});

ends("passes a client's reset on behind exactly the bytes that came before it", async () => {
  const { client, server, balancer } = await pair();
  const prefix = BULK.subarray(0, MIB);
  client.socket.write(prefix);
  await has(server, MIB);
  client.socket.resetAndDestroy();
  assert.is(await outcomeOf(server), "ECONNRESET");
  assert.ok(server.bytes().equals(prefix));
  await assertEnded(balancer, { client_reset: 1 });
});

/**
 * A reset in the same turn as the data before it: both wait in the balancer's kernel when it looks.
 */
async function sayAndReset(speaker: Talk): Promise<void> {
  await new Promise<void>((resolve) => speaker.socket.write("last words", () => resolve()));
  speaker.socket.resetAndDestroy();
}

for (let round = 1; round <= 3; round += 1) {
  // which of the two is seen first is a matter of luck
  ends(`passes on a server's reset right behind data (${round})`, async () => {
    const { client, server, balancer } = await pair();
    client.socket.write("hello");
    await has(server, 5);
    await sayAndReset(server);
    assert.match(await outcomeOf(client), BROKEN);
    assert.is(client.bytes().toString(), "last words");
    await assertEnded(balancer, { server_reset: 1 });
  });

  ends(`passes on a client's reset right behind data (${round})`, async () => {
    const { client, server, balancer } = await pair();
    await sayAndReset(client);
    assert.match(await outcomeOf(server), BROKEN);
    assert.is(server.bytes().toString(), "last words");
    await assertEnded(balancer, { client_reset: 1 });
  });

  ends(
    `passes on a server's reset right behind data to a client that has finished sending (${round})`,
    async () => {
      const { client, server, balancer } = await pair();
      client.socket.end("hello");
      assert.is(await outcomeOf(server), "end");
      await sayAndReset(server);
      assert.match(await outcomeOf(client), BROKEN);
      assert.is(client.bytes().toString(), "last words");
      await assertEnded(balancer, { server_reset: 1 });
    },
  );

  ends(
    `passes on a client's reset right behind data to a server that has finished sending (${round})`,
    async () => {
      const { client, server, balancer } = await pair();
      server.socket.end("hello");
      assert.is(await outcomeOf(client), "end");
      await sayAndReset(client);
      assert.match(await outcomeOf(server), BROKEN);
      assert.is(server.bytes().toString(), "last words");
      await assertEnded(balancer, { client_reset: 1 });
    },
  );
}

ends(
  "delivers an exact prefix of a long reply that is followed by a reset 50 ms later, and then the reset",
  async () => {
    const listener = await listening((socket) => {
      socket.write(BULK.subarray(0, 4 * MIB));
      setTimeout(() => socket.resetAndDestroy(), 50);
    });
    const { port } = await startBalancer([listener.address]);
    const client = await dial(port);
    assert.match(await outcomeOf(client), BROKEN);
    const sent = client.bytes();
    assert.ok(BULK.subarray(0, sent.length).equals(sent), "a prefix");
  },
);

ends("delivers a whole short reply that is followed by a reset 50 ms later", async () => {
  const listener = await listening((socket) => {
    socket.write(BULK.subarray(0, 100_000));
    setTimeout(() => socket.resetAndDestroy(), 50);
  });
  const { port } = await startBalancer([listener.address]);
  const client = await dial(port);
  assert.match(await outcomeOf(client), BROKEN);
  assert.is(client.size(), 100_000);
});

ends("passes on the reset of a client that sent nothing", async () => {
  const { client, server, balancer } = await pair();
  client.socket.resetAndDestroy();
  assert.is(await outcomeOf(server), "ECONNRESET");
  await assertEnded(balancer, { client_reset: 1 });
});

ends("passes on an end without a byte, each way", async () => {
  const { client, server, balancer } = await pair();
  client.socket.end();
  assert.is(await outcomeOf(server), "end");
  server.socket.end();
  assert.is(await outcomeOf(client), "end");
  await assertEnded(balancer, { ok: 1 });
});

ends(
  "keeps the bytes and the end of a client that finishes while it is being connected",
  async () => {
    const { address, wake } = await swallowing();
    const { balancer, port } = await startBalancer([address]);
    const client = await dial(port);
    client.socket.end("all I have to say");
    await until(() => balancer.status().servers[0]?.active === 1, "the dial");
    wake();
    assert.is(await outcomeOf(client), "end");
    assert.is(client.bytes().toString(), "17");
    await assertEnded(balancer, { ok: 1 });
  },
);

ends("leaves no orphan behind when a client goes while it is being connected", async () => {
  const { address } = await swallowing();
  const { balancer, port } = await startBalancer([address]);
  const client = await dial(port);
  await until(() => balancer.status().servers[0]?.active === 1, "the dial");
  client.socket.resetAndDestroy();
  await assertEnded(balancer, { client_reset: 1 });
});

ends("takes no more from a client than its buffer holds while it is being connected", async () => {
  const { address } = await swallowing();
  const { balancer, port } = await startBalancer([address], { connectTimeout: 0.5 });
  const client = await dial(port);
  client.socket.end(BULK);
  await until(() => balancer.status().servers[0]?.active === 1, "the dial");
  const written = await stillness(
    () => client.socket.bytesWritten - client.socket.writableLength + 1,
  );
  assert.ok(written < 20 * MIB);
  assert.match(await outcomeOf(client), BROKEN);
  await assertEnded(balancer, { no_server: 1 });
});

/** A process that sends without end. */
async function streaming(): Promise<{ address: string; kill: (signal: NodeJS.Signals) => void }> {
  const code = `require("node:net").createServer((socket) => {
    const more = () => { while (socket.write(Buffer.alloc(65536, "x"))); };
    socket.on("drain", more).on("error", () => undefined); more();
  }).listen(0, "127.0.0.1", function () { console.log("port " + this.address().port); });`;
  const { child, printed } = startNode(["-e", code], "a stream");
  const [, port] = await printed(/port (\d+)/);
  return { address: `127.0.0.1:${port}`, kill: (signal) => void child.kill(signal) };
}

ends("outlives a server that is killed in mid-stream", async () => {
  const { address, kill } = await streaming();
  const { balancer, port } = await startBalancer([address, (await echoing()).address]);
  const [streamed, echoed] = [await dial(port), await dial(port)];
  echoed.socket.write("hello");
  await has(streamed, MIB);
  kill("SIGKILL");
  await outcomeOf(streamed); // an end: that is what the kernel says for a killed process
  streamed.socket.destroy();
  // its sockets close one by one
  while ((await outcomeOf(await dial(Number(address.split(":")[1])))) !== "ECONNREFUSED") continue;
  echoed.socket.end(" again");
  assert.is(await outcomeOf(echoed), "end");
  assert.is(echoed.bytes().toString(), "hello again");
  for (let i = 0; i < 4; i += 1) assert.is(await ask(port), "hello");
  await until(() => balancer.status().active === 0, "all connections ending");
});

ends("waits for a server that is stopped in mid-stream, and goes on with it", async () => {
  const { address, kill } = await streaming();
  const { balancer, port } = await startBalancer([address]);
  const client = await dial(port);
  await has(client, MIB);
  kill("SIGSTOP");
  const size = await stillness(() => client.size());
  assert.is(balancer.status().active, 1);
  kill("SIGCONT");
  await has(client, size + MIB);
});

ends("gives up a server that is stopped in mid-stream after the idle time-out", async () => {
  const { address, kill } = await streaming();
  const { balancer, port } = await startBalancer([address], { idleTimeout: 0.3 });
  const client = await dial(port);
  await has(client, MIB);
  kill("SIGSTOP");
  assert.match(await outcomeOf(client), BROKEN, "half a reply does not look whole");
  await assertEnded(balancer, { idle_timeout: 1 });
});

ends("resets an idle client whose server has not proved well since", async () => {
  const { client, server, balancer } = await pair({ idleTimeout: 0.2 });
  client.socket.write("hello");
  assert.is(await outcomeOf(server), "end");
  assert.match(await outcomeOf(client), BROKEN);
  server.socket.end();
  await assertEnded(balancer, { idle_timeout: 1 });
});

ends("ends an idle connection with FIN to both, when its server gives others bytes", async () => {
  const { address } = await listening((socket) => {
    socket.on("data", () => setInterval(() => socket.write("tick"), 20).unref());
  });
  const { balancer, port } = await startBalancer([address], { idleTimeout: 0.4 });
  const busy = await dial(port);
  busy.socket.write("talk to me");
  await has(busy, 4);
  const idle = await dial(port);
  assert.is(await outcomeOf(idle), "end");
  idle.socket.end();
  busy.socket.destroy();
  await assertEnded(balancer, { idle_timeout: 1, client_reset: 1 });
});

ends(
  "ends an idle connection with FIN to both, when its server passes checks that ask",
  async () => {
    const server = await startServer({
      host: "127.0.0.1",
      port: 0,
      mean: 0,
      sd: 0,
      maxConnections: 10,
      seed: 1,
    });
    later(async () => {
      server.cut();
      await server.close();
    });
    const { balancer, port } = await startBalancer([formatAddress(server.address)], {
      idleTimeout: 0.5,
      check: checkOf("ping"),
      checkInterval: 0.05,
    });
    const client = await dial(port);
    client.socket.write("PING!");
    assert.is(await outcomeOf(client), "end");
    assert.is(client.bytes().toString(), "PONG!");
    client.socket.end();
    await assertEnded(balancer, { idle_timeout: 1 });
  },
);

ends("leaves a connection alone on which bytes go one way", async () => {
  const { client, server, balancer } = await pair({ idleTimeout: 0.3 });
  const since = performance.now();
  while (performance.now() - since < 700) {
    const size = client.size();
    server.socket.write("tick");
    await has(client, size + 4);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  assert.is(balancer.status().active, 1);
  client.socket.end();
  server.socket.end();
  await assertEnded(balancer, { ok: 1 });
});

ends("ends an idle connection whose client has finished sending", async () => {
  const { client, server, balancer } = await pair({ idleTimeout: 0.2 });
  client.socket.end("hello");
  assert.is(await outcomeOf(server), "end");
  assert.match(await outcomeOf(client), BROKEN);
  await assertEnded(balancer, { idle_timeout: 1 });
});

ends("resets an idle connection whose reader is stuck: bytes are missing", async () => {
  const { client, server, balancer } = await pair({ idleTimeout: 0.3 });
  client.socket.pause();
  server.socket.write(BULK);
  await until(() => balancer.status().active === 0, "the idle time-out");
  client.socket.resume();
  assert.match(await outcomeOf(client), BROKEN);
  assert.ok(client.size() < BULK.length);
  await assertEnded(balancer, { idle_timeout: 1 });
});

ends("lets a connection idle for ever when asked to", async () => {
  const { client, server, balancer } = await pair({ idleTimeout: 0 });
  const other = await startBalancer([(await echoing()).address], { idleTimeout: 0.2 });
  assert.match(await outcomeOf(await dial(other.port)), BROKEN); // a clock
  client.socket.end();
  server.socket.end();
  await assertEnded(balancer, { ok: 1 });
});

ends.run();

// ─── Retries ─────────────────────────────────────────────────────────────────

const retries = suite("retries");
retries.after.each(cleanUp);

for (const check of ["tcp", "none"] as const) {
  retries(
    `fails none of 300 clients when one of three servers is dead (check ${check})`,
    async () => {
      const { balancer, port } = await startBalancer(
        [(await echoing()).address, DEAD[0], (await echoing()).address],
        { check: checkOf(check), checkInterval: 0.2 },
      );
      const answers = await Promise.all(Array.from({ length: 300 }, () => ask(port)));
      assert.equal([...new Set(answers)], ["hello"]);
      await assertEnded(balancer, { ok: 300 });
      assert.ok((balancer.status().servers[1]?.connectErrors ?? 0) > 0);
      await until(() => balancer.status().servers[1]?.state === "down", "its being called down");
    },
  );
}

retries(
  "delivers what a client said before its reset, although the server was only being connected to",
  async () => {
    let got = "";
    const { address } = await listening(
      (socket) =>
        void socket.on("data", (chunk: Buffer) => {
          got += chunk.toString();
        }),
    );
    const { balancer, port } = await startBalancer([address]);
    const { socket } = await dial(port);
    socket.write("abc");
    socket.resetAndDestroy();
    await until(() => got === "abc", "the three bytes");
    await assertEnded(balancer, { client_reset: 1 });
  },
);

retries(
  "resets a client at once when all servers are dead, and serves the next when one is back",
  async () => {
    const { port: back, server } = await echoing();
    server.close();
    const { balancer, port } = await startBalancer([DEAD[0], `127.0.0.1:${back}`, DEAD[1]]);
    for (let i = 0; i < 5; i += 1) assert.match(await outcomeOf(await dial(port)), BROKEN);
    assert.is(balancer.status().retries, 10);
    await echoing(back);
    for (let i = 0; i < 5; i += 1)
      assert.is(await ask(port), "hello", "a server that is down is the last resort");
    await assertEnded(balancer, { no_server: 5, ok: 5 });
  },
);

retries(
  "fails none of 20 clients when an address swallows SYNs, none waits much longer than the time-out",
  async () => {
    const { address } = await swallowing();
    const { balancer, port } = await startBalancer([address, (await echoing()).address], {
      connectTimeout: 1,
    });
    const waits = await Promise.all(
      Array.from({ length: 20 }, async () => {
        const since = performance.now();
        assert.is(await ask(port), "hello");
        return performance.now() - since;
      }),
    );
    assert.ok(Math.max(...waits) < 1900, `waited ${Math.max(...waits)} ms`);
    await assertEnded(balancer, { ok: 20 });
  },
);

retries("keeps what the client has said for the server that it gets in the end", async () => {
  const { address } = await swallowing();
  const { balancer, port } = await startBalancer([address, DEAD[0], (await echoing()).address], {
    connectTimeout: 0.2,
  });
  const text = BULK.toString("hex", 0, 40_000);
  assert.is(await ask(port, text), text);
  await assertEnded(balancer, { ok: 1 });
  assert.is(balancer.status().retries, 2);
});

retries("goes on to the next server on an error that nobody has heard of", async () => {
  failDials("EWHATEVER", 1);
  const { balancer, port } = await startBalancer([
    (await echoing()).address,
    (await echoing()).address,
  ]);
  assert.is(await ask(port), "hello");
  await assertEnded(balancer, { ok: 1 });
  assert.equal(
    balancer.status().servers.map((server) => server.connectErrors),
    [1, 0],
  );
});

retries("does not blame a server for this machine's shortage, and tries the others", async () => {
  failDials("EMFILE", 1);
  const servers = [(await echoing()).address, (await echoing()).address];
  const { balancer, port } = await startBalancer(servers, { fall: 1 });
  assert.is(await ask(port), "hello");
  await assertEnded(balancer, { ok: 1 });
  for (const { state, connectErrors } of balancer.status().servers)
    assert.equal([state, connectErrors], ["up", 0]);
});

for (const code of ["EMFILE", "EADDRNOTAVAIL"]) {
  retries(`counts as limit whom nobody can be dialled for: ${code}`, async () => {
    const servers = [(await echoing()).address, (await echoing()).address];
    const { balancer, port } = await startBalancer(servers, { fall: 1 });
    for (const _ of servers) assert.is(await ask(port), "hello", "each was reached once");
    failDials(code, 2);
    assert.match(await outcomeOf(await dial(port)), BROKEN);
    await assertEnded(balancer, { ok: 2, limit: 1 });
    for (const { state, connectErrors } of balancer.status().servers)
      assert.equal([state, connectErrors], ["up", 0]);
    assert.ok(balancer.status().shortage);
  });
}

retries("blames a server that was never reached for having no way to it", async () => {
  failDials("EADDRNOTAVAIL", 1);
  const servers = [(await echoing()).address, (await echoing()).address];
  const { balancer, port } = await startBalancer(servers, { fall: 1 });
  assert.is(await ask(port), "hello");
  assert.equal(
    balancer.status().servers.map(({ state }) => state),
    ["down", "up"],
  );
});

retries("does not repeat what a server has already been told", async () => {
  const first = await listening((socket) => {
    socket.once("data", () => socket.resetAndDestroy());
  });
  const second = await serving();
  const { balancer, port } = await startBalancer([first.address, second.address]);
  assert.match(await ask(port), BROKEN);
  assert.is(second.count(), 0);
  await assertEnded(balancer, { server_reset: 1 });
});

retries.run();

// ─── The queue and the limits ────────────────────────────────────────────────

const limits = suite("limits");
limits.after.each(cleanUp);

/** A balancer whose only server takes one connection, which is taken; the others will queue. */
async function oneSlot(options: Parameters<typeof startBalancer>[1] = {}) {
  const listener = await serving();
  const { balancer, port } = await startBalancer([listener.address], {
    serverConnections: 1,
    ...options,
  });
  const holder = await dial(port);
  const held = await listener.next();
  const queue = async (size: number): Promise<void> =>
    until(() => balancer.status().queued === size, `${size} in the queue`);
  return { listener, balancer, port, holder, held, queue };
}

limits("serves the queue in order", async () => {
  const { listener, balancer, port, holder, held, queue } = await oneSlot();
  const waiting: Talk[] = [];
  for (let i = 0; i < 4; i += 1) {
    waiting.push(await dial(port));
    waiting[i]?.socket.end(`number ${i}`);
    await queue(i + 1);
  }
  holder.socket.end();
  held.socket.end();
  for (let i = 0; i < 4; i += 1) {
    const server = await listener.next();
    assert.is(await outcomeOf(server), "end");
    assert.is(server.bytes().toString(), `number ${i}`);
    assert.is(balancer.status().servers[0]?.active, 1);
    server.socket.end("thanks");
    assert.is(await outcomeOf(waiting[i] ?? holder), "end");
  }
  await assertEnded(balancer, { ok: 5 });
});

limits("resets who has waited in the queue for too long", async () => {
  const { balancer, port, holder, held } = await oneSlot({ queueTimeout: 0.2 });
  const since = performance.now();
  const waiting = await Promise.all([dial(port), dial(port)]);
  assert.equal(await Promise.all(waiting.map(outcomeOf)), ["ECONNRESET", "ECONNRESET"]);
  assert.ok(performance.now() - since >= 190);
  holder.socket.end();
  held.socket.end();
  await assertEnded(balancer, { ok: 1, queue_timeout: 2 });
});

limits("forgets at once who leaves the queue by a reset", async () => {
  const { balancer, port, holder, held, queue } = await oneSlot();
  const waiting = await dial(port);
  waiting.socket.write("hello");
  await queue(1);
  waiting.socket.resetAndDestroy();
  await queue(0);
  holder.socket.end();
  held.socket.end();
  await assertEnded(balancer, { ok: 1, client_reset: 1 });
});

limits("takes a FIN without a byte in the queue for leaving", async () => {
  const { balancer, port, holder, held, queue } = await oneSlot();
  const waiting = await dial(port);
  await queue(1);
  waiting.socket.end();
  await outcomeOf(waiting);
  holder.socket.end();
  held.socket.end();
  await assertEnded(balancer, { ok: 1, client_reset: 1 });
});

limits("keeps the place of a client that finishes sending in the queue", async () => {
  const { listener, balancer, port, holder, held, queue } = await oneSlot();
  const waiting = await dial(port);
  waiting.socket.end("hello");
  await queue(1);
  holder.socket.end();
  held.socket.end();
  const server = await listener.next();
  assert.is(await outcomeOf(server), "end");
  assert.is(server.bytes().toString(), "hello");
  server.socket.end("and hello to you");
  assert.is(await outcomeOf(waiting), "end");
  await assertEnded(balancer, { ok: 2 });
});

limits("forgets a flooding client that leaves the queue by a reset", async () => {
  const { balancer, port, holder, held, queue } = await oneSlot({ idleTimeout: 2 });
  const waiting = await dial(port);
  waiting.socket.write(BULK.subarray(0, 10 * MIB));
  await queue(1);
  await stillness(() => waiting.socket.bytesWritten - waiting.socket.writableLength + 1);
  waiting.socket.resetAndDestroy();
  await queue(0);
  holder.socket.end();
  held.socket.end();
  await assertEnded(balancer, { ok: 1, client_reset: 1 });
});

limits(
  "notices that a server has gone whose client does not read, and gives that client time for what there is",
  async () => {
    const listener = await serving();
    const { balancer, port } = await startBalancer([listener.address], { idleTimeout: 2 });
    const client = await dial(port, { onread: undefined });
    const server = await listener.next();
    client.socket.pause();
    server.socket.write(BULK);
    const taken = await stillness(() => balancer.status().servers[0]?.bytesToClient ?? 0);
    server.socket.resetAndDestroy();
    // before the idle time-out
    await until(() => balancer.status().servers[0]?.active === 0, "the server's side closing", 1.5);
    let size = 0;
    client.socket
      .on("data", (chunk: Buffer) => {
        size += chunk.length;
      })
      .resume();
    assert.match(await outcomeOf(client), BROKEN);
    assert.is(size, taken);
    await assertEnded(balancer, { server_reset: 1 });
  },
);

limits("gives a freed place to the queue, not to a newcomer", async () => {
  const { listener, port, holder, held, queue } = await oneSlot();
  const waiting = await dial(port);
  waiting.socket.write("first");
  await queue(1);
  holder.socket.resetAndDestroy();
  assert.match(await outcomeOf(held), BROKEN);
  const newcomer = await dial(port);
  newcomer.socket.write("second");
  const server = await listener.next();
  await has(server, 5);
  assert.is(server.bytes().toString(), "first");
  await queue(1);
});

limits("never opens more connections to a server than it may have", async () => {
  let [open, most] = [0, 0];
  const listener = await listening((socket) => {
    most = Math.max(most, ++open);
    socket
      .on("close", () => {
        open -= 1;
      })
      .pipe(socket);
  });
  const { balancer, port } = await startBalancer([listener.address, DEAD[0]], {
    serverConnections: 3,
    algorithm: "least-connections",
  });
  const answers = await Promise.all(Array.from({ length: 60 }, () => ask(port)));
  assert.equal([...new Set(answers)], ["hello"]);
  // the balancer's side may close a moment before the server's
  assert.ok(most <= 4, `${most} at once`);
  await assertEnded(balancer, { ok: 60 });
});

limits("resets at once whoever comes when the limit is reached", async () => {
  const { port, balancer } = await startBalancer([(await echoing()).address], {
    maxConnections: 2,
  });
  const [one, two] = [await dial(port), await dial(port)];
  assert.is(await outcomeOf(await dial(port)), "ECONNRESET");
  one.socket.end("still here");
  assert.is(await outcomeOf(one), "end");
  assert.is(one.bytes().toString(), "still here");
  await until(() => balancer.status().active === 1, "a free place");
  assert.is(await ask(port), "hello");
  two.socket.end();
  await assertEnded(balancer, { ok: 3, limit: 1 });
});

limits("counts every connection once, whatever became of it", async () => {
  const { address } = await swallowing();
  const moody = await listening((socket) => {
    socket.once("data", (chunk) =>
      chunk[0] === 114 ? socket.resetAndDestroy() : socket.end(chunk),
    );
  });
  const { balancer, port } = await startBalancer([moody.address, address, DEAD[0]], {
    connectTimeout: 0.2,
    idleTimeout: 0.4,
    serverConnections: 20,
    queueTimeout: 0.3,
  });
  const random = mulberry32(3);
  await Promise.all(
    Array.from({ length: 150 }, async () => {
      const client = await dial(port);
      const what = random();
      if (what < 0.2) client.socket.resetAndDestroy();
      else if (what < 0.4) client.socket.end();
      else if (what < 0.6) client.socket.end("reset me");
      else if (what < 0.8) client.socket.end("hello");
      assertAllCounted(balancer.status());
      await outcomeOf(client);
      client.socket.destroy();
    }),
  );
  await until(
    () => balancer.status().active + balancer.status().queued === 0,
    "all connections ending",
  );
  assert.is(balancer.status().accepted, 150);
  assert.equal(
    balancer.status().servers.map((server) => server.active),
    [0, 0, 0],
  );
});

limits("listens and dials over IPv6 as well", async () => {
  const listener = await echoing();
  const v6 = new Promise<boolean>((resolve) => {
    listener.server
      .once("close", () =>
        listener.server.once("error", () => resolve(false)).listen(0, "::1", () => resolve(true)),
      )
      .close();
  });
  if (!(await within(v6, "listening on ::1"))) return; // this machine has none
  const bound = listener.server.address();
  if (bound === null || typeof bound === "string") throw new Error("no port");
  const { port, balancer } = await startBalancer([`[::1]:${bound.port}`], { host: "::1" });
  const client = await dial(port, { host: "::1" });
  client.socket.end("hello");
  await within(once(client.socket, "close"), "the end");
  assert.is(client.bytes().toString(), "hello");
  assert.match(balancer.status().listening, /^\[::1\]:\d+$/);
  await assertEnded(balancer, { ok: 1 });
});

limits.run();
