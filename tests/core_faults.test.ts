/**
 * core_faults.test.ts - orders of events that broke promises once, with real sockets; dials that
 * fail late, servers that answer early, machines that run short.
 */
import { once } from "node:events";
import { connect, createServer, Socket } from "node:net";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { LoadBalancer, Log, type World } from "../load_balancer.ts";
import {
  ask,
  assertEnded,
  cleanUp,
  coverNoChildren,
  DEAD,
  dial,
  echoing,
  later,
  listening,
  optionsFor,
  outcomeOf,
  serving,
  startBalancer,
  startNode,
  until,
} from "./helpers.ts";

coverNoChildren();

const faults = suite("faults once seen");
faults.after.each(cleanUp);

/** A world in which every connect fails after `ms`, as it does at a server that is far away. */
function refusingAfter(ms: number): World {
  return {
    clock: {
      now: () => performance.now() / 1000,
      after(seconds, action) {
        const timer = setTimeout(action, seconds * 1000);
        return () => clearTimeout(timer);
      },
    },
    connect() {
      const socket = new Socket();
      Object.assign(socket, { connecting: true });
      const refusal = Object.assign(new Error("refused"), { code: "ECONNREFUSED" });
      setTimeout(() => socket.destroy(refusal), ms);
      return socket;
    },
  };
}

/** A balancer whose dials to the server at `port` are made by `connect`, and a client of it. */
async function dialledBy(connect: World["connect"], port: number) {
  const options = optionsFor([`127.0.0.1:${port}`], {});
  const { clock } = refusingAfter(0);
  const balancer = new LoadBalancer(options, new Log("none"), { clock, connect });
  later(() => balancer.stop(0));
  return { balancer, client: await dial((await balancer.listen()).port) };
}

for (const ms of [1, 20, 45, 120]) {
  faults(`ends a connection whose dial fails ${ms} ms after its client has reset`, async () => {
    const options = optionsFor([DEAD[0], DEAD[1]], { maxConnections: 30 });
    const balancer = new LoadBalancer(options, new Log("none"), refusingAfter(ms));
    later(() => balancer.stop(0));
    const { port } = await balancer.listen();
    for (let i = 0; i < 40; i += 1) {
      const client = connect(port, "127.0.0.1").on("error", () => undefined);
      client.once("connect", () => client.resetAndDestroy());
      await new Promise((resolve) => client.once("close", resolve));
    }
    await until(() => balancer.status().accepted === 40, "all being accepted");
    await until(() => balancer.status().active === 0, "all ending");
    assert.is(await balancer.stop(0), 0);
  });
}

faults("passes on what a server says early, while the client still uploads", async () => {
  const { address } = await listening((socket) => {
    socket.once("data", () => {
      socket.end("413 too large");
      setImmediate(() => socket.destroy());
    });
  });
  const { balancer, port } = await startBalancer([address]);
  let heard = 0;
  for (let i = 0; i < 10; i += 1) {
    const client = await dial(port);
    client.socket.write(Buffer.alloc(200_000));
    await outcomeOf(client);
    if (client.bytes().toString() === "413 too large") heard += 1;
    client.socket.destroy();
  }
  assert.ok(heard >= 9, `heard ${heard} of 10 times`);
  await until(() => balancer.status().active === 0, "all ending");
});

faults("no longer counts a connection that both sides have ended", async () => {
  const servers = [(await echoing()).address, (await echoing()).address];
  const { balancer, port } = await startBalancer(servers, { algorithm: "least-connections" });
  const held = await dial(port);
  held.socket.write("hello");
  await until(() => held.size() === 5, "an answer");
  for (let i = 0; i < 10; i += 1) assert.is(await ask(port), "hello");
  const totals = balancer.status().servers.map(({ total }) => total);
  assert.equal(totals.toSorted(), [1, 10]);
  held.socket.end();
});

faults("does not take its own socket for a server", async () => {
  const { port: gone, server } = await echoing();
  server.close();
  await once(server, "close");
  const { port } = await startBalancer([`127.0.0.1:${gone}`], {});
  const itself: World["connect"] = () =>
    connect({ port: gone, host: "127.0.0.1", localPort: gone });
  const { balancer, client } = await dialledBy(itself, gone);
  client.socket.write("hello?");
  assert.match(await outcomeOf(client), /ECONNRESET|EPIPE/);
  assert.is(client.bytes().toString(), "", "its own bytes do not come back");
  assert.is(balancer.status().servers[0]?.connectErrors, 1);
  const real = createServer().listen(gone, "127.0.0.1");
  await once(real, "listening"); // the port was given up
  real.close();
  assert.ok(port > 0);
});

faults("counts as unanswered whose server ends before its answer", async () => {
  const code = `require("node:net").createServer((s) => { s.resume(); console.log("accepted"); })
    .listen(0, "127.0.0.1", function () { console.log("port " + this.address().port); });`;
  const { child, printed } = startNode(["-e", code], "a silent server");
  const [, port] = await printed(/port (\d+)/);
  const started = await startBalancer([`127.0.0.1:${port}`]);
  const clients = [await dial(started.port), await dial(started.port), await dial(started.port)];
  for (const { socket } of clients.slice(1)) socket.write("a question");
  await until(() => started.balancer.status().servers[0]?.unanswered === 2, "two asking");
  await printed(/(accepted\n[^]*){3}/); // whom it has not accepted, its end would reset
  child.kill("SIGKILL");
  for (const client of clients) await outcomeOf(client);
  for (const { socket } of clients) socket.end();
  await until(() => started.balancer.status().active === 0, "all ending");
  const { ended } = started.balancer.status();
  // a process that is killed resets who has unread bytes
  assert.is(ended.unanswered + ended.server_reset, 2);
  assert.is(ended.ok, 1);
});

faults("does not count as unanswered who has ended first", async () => {
  const server = await serving();
  const { balancer, port } = await startBalancer([server.address]);
  const client = await dial(port);
  client.socket.end("a message");
  const held = await server.next();
  assert.is(await outcomeOf(held), "end");
  held.socket.end();
  assert.is(await outcomeOf(client), "end");
  await assertEnded(balancer, { ok: 1 });
});

faults("shows a removed server until its last connection has ended", async () => {
  const { balancer, port } = await startBalancer([(await echoing()).address]);
  const client = await dial(port);
  client.socket.write("hello");
  await until(() => client.size() === 5, "an answer");
  balancer.setServers(optionsFor([(await echoing()).address], {}).servers, "file");
  const states = (): string[] => balancer.status().servers.map(({ state }) => state);
  assert.equal(states(), ["up", "removed"]);
  client.socket.end();
  await until(() => states().length === 1, "its disappearance");
  await assertEnded(balancer, { ok: 1 });
});

faults("hands its place to the next when a queued client times out", async () => {
  const listener = await serving();
  const { balancer, port } = await startBalancer([listener.address], {
    serverConnections: 1,
    queueTimeout: 0.05,
  });
  const holder = await dial(port);
  const held = await listener.next();
  const late = await dial(port);
  assert.match(await outcomeOf(late), /ECONNRESET/);
  holder.socket.destroy();
  held.socket.destroy();
  await until(() => balancer.status().servers[0]?.active === 0, "a free place");
  const next = await dial(port);
  await listener.next();
  next.socket.destroy();
});

faults("takes a server for one whose port it happens to dial from", async () => {
  const { port } = await echoing();
  const alike: World["connect"] = (wanted) =>
    connect({ ...wanted, localPort: port, localAddress: "127.0.0.2" });
  const { client } = await dialledBy(alike, port);
  client.socket.end("hello");
  assert.is(await outcomeOf(client), "end");
  assert.is(client.bytes().toString(), "hello");
});

faults.run();
