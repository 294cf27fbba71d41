/**
 * places.test.ts - who may go where, and who waits in which line: plain calls, no socket.
 */
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { type Guest, parseServers, Places, Server } from "../load_balancer.ts";

const serversOf = (...texts: string[]): Server[] =>
  parseServers(texts.map((text) => `10.0.0.${text}`)).map((spec) => new Server(spec, 0));

/** A client that has failed at `tried`. */
const guest = (...tried: readonly Server[]): Guest => ({
  clientAddress: "192.0.2.1",
  tried: tried.map((server) => ({ server, why: "connection refused" })),
});

/** Places where each goes to the first server that it may go to. */
function placesOf(servers: readonly Server[], limit: number, sticky: boolean): Places<Guest> {
  const places = new Places(limit);
  places.setServers(servers);
  places.setPicker((candidates) => candidates[0]!, sticky);
  return places;
}
const freely = (servers: readonly Server[], limit = 1) => placesOf(servers, limit, false);
const stickily = (servers: readonly Server[], limit = 1) => placesOf(servers, limit, true);

/** The name of the server, or what there is instead: what shows in an error is short then. */
const nameOf = (place: Server | "waits" | "none" | undefined): string | undefined =>
  typeof place === "object" ? place.name : place;

/** Asserts that `guest` gets `wanted`. */
function enters(places: Places<Guest>, guest: Guest, wanted: Server | "waits" | "none"): void {
  assert.is(nameOf(places.enter(guest)), nameOf(wanted));
}

/** Asserts that `guest` is admitted to `to` when something is free at `server`. */
function admits(places: Places<Guest>, server: Server, guest: Guest, to: Server): void {
  const admission = places.admit(server);
  assert.is(nameOf(admission?.to), nameOf(to));
  assert.ok(admission?.guest === guest, "the right client");
}

const free = suite("places");

free("a server that has just filled up is not offered to the next", () => {
  const places = freely(serversOf("1:80", "2:80"));
  const names = [1, 2, 3].map(() => nameOf(places.enter(guest())));
  assert.equal(names, ["10.0.0.1:80", "10.0.0.2:80", "waits"]);
});

free("a server that was left is offered again", () => {
  const [first, second] = serversOf("1:80", "2:80") as [Server, Server];
  const places = freely([first, second]);
  for (const server of [first, second]) enters(places, guest(), server);
  places.leave(first);
  enters(places, guest(), first);
});

free("the last of eight tries goes to a backup, although others are untried", () => {
  const primaries = serversOf(..."12345678".split("").map((digit) => `1:${digit}`));
  const [backup] = serversOf("2:80 backup") as [Server];
  const places = freely([...primaries, backup]);
  enters(places, guest(...primaries.slice(0, 6)), primaries[6]!);
  enters(places, guest(...primaries.slice(0, 7)), backup);
  enters(places, guest(...primaries), "none");
});

free("with all down, a primary is tried first and a backup then", () => {
  const [primary, backup] = serversOf("1:80", "2:80 backup") as [Server, Server];
  for (const { health } of [primary, backup]) health.up = false;
  const places = freely([primary, backup]);
  enters(places, guest(), primary);
  enters(places, guest(primary), backup);
});

free("who has failed somewhere and waits holds up no newcomer", () => {
  const [first, second] = serversOf("1:80", "2:80") as [Server, Server];
  const places = freely([first, second]);
  for (const server of [first, second]) enters(places, guest(), server);
  const [failed, newcomer] = [guest(first), guest()];
  for (const waiter of [failed, newcomer]) enters(places, waiter, "waits");
  places.leave(first);
  admits(places, first, newcomer, first);
  assert.not.ok(places.admit());
});

free("who has failed at a server does not get its free place", () => {
  const [first, second] = serversOf("1:80", "2:80") as [Server, Server];
  const places = freely([first, second], 2);
  enters(places, guest(), first);
  enters(places, guest(first), second);
});

free.run();

const sticky = suite("places of a sticky algorithm");

/** A server that is full, and who waits for it. */
function oneWaits() {
  const [first, second] = serversOf("1:80", "2:80") as [Server, Server];
  const places = stickily([first, second]);
  enters(places, guest(), first);
  const waiter = guest();
  enters(places, waiter, "waits");
  return { places, first, second, waiter };
}

sticky("nobody is admitted while their server is full, or another has room", () => {
  const { places, first, second } = oneWaits();
  assert.not.ok(places.admit(first));
  assert.not.ok(places.admit(second));
});

sticky("who waits gets their own server when it has room", () => {
  const { places, first, waiter } = oneWaits();
  places.leave(first);
  admits(places, first, waiter, first);
});

sticky("who has left the line is passed over", () => {
  const { places, first, waiter } = oneWaits();
  const next = guest();
  enters(places, next, "waits");
  places.forget(waiter);
  places.leave(first);
  admits(places, first, next, first);
});

sticky("who waits for a server that goes waits for another one then", () => {
  const { places, first, second, waiter } = oneWaits();
  places.setServers([second]);
  admits(places, second, waiter, second);
  places.leave(first);
  assert.not.ok(places.admit(first));
});

sticky("who has moved to another line is not found in the one before", () => {
  const { places, first, second, waiter } = oneWaits();
  const next = guest();
  places.setServers([second]);
  admits(places, second, waiter, second);
  enters(places, next, "waits");
  places.leave(second);
  assert.not.ok(places.admit(first));
  admits(places, second, next, second);
});

sticky("only those in a server's line are asked about when it has room", () => {
  const [first, second] = serversOf("1:80", "2:80") as [Server, Server];
  const asked: string[] = [];
  const places = new Places<Guest>(1);
  places.setServers([first, second]);
  places.setPicker((candidates, client) => {
    asked.push(client);
    return candidates[client === "second's" ? 1 : 0]!;
  }, true);
  const visitors = ["first's", "first's", "second's", "second's"].map((clientAddress) => {
    return { clientAddress, tried: [] };
  });
  for (const visitor of visitors) places.enter(visitor);
  asked.length = 0;
  places.leave(second);
  admits(places, second, visitors[3]!, second);
  assert.equal(asked, ["second's"]);
});

sticky("who waits for a full server holds up nobody who belongs to another", () => {
  const [first, second] = serversOf("1:80", "2:80") as [Server, Server];
  const places = new Places<Guest>(1);
  places.setServers([first, second]);
  places.setPicker((candidates, client) => candidates[client === "second's" ? 1 : 0]!, true);
  const visitors = ["first's", "second's", "first's", "second's"].map((clientAddress) => {
    return { clientAddress, tried: [] };
  });
  for (const visitor of visitors) places.enter(visitor);
  places.leave(second);
  assert.ok(places.admit()?.guest === visitors[3]);
});

sticky.run();
