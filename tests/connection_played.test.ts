/**
 * connection_played.test.ts - one connection, and every order of what can happen to it. Recorders
 * stand in for its sockets and its owner, and the clock is a number: nothing here waits. A scene is
 * played again and again, with another choice of events each time, until all have been tried; then
 * everything is closed, gently or not, and the books must balance.
 */
import { Socket } from "node:net";
import { suite } from "uvu";
import {
  Connection,
  type Owner,
  parseServers,
  ReadBuffers,
  Server,
  type Wire,
} from "../load_balancer.ts";

/** Throws `problem` unless `isSo`. Cheaper than uvu's, which is called a million times here. */
function must(isSo: boolean, problem: string): void {
  if (!isSo) throw new Error(problem);
}

// ─── Choices ─────────────────────────────────────────────────────────────────
// Whoever plays asks at each fork which way to go. The answers count like an odometer, so that in
// the end every way has been gone; or they are drawn, for ways too long to go them all.

interface Choices {
  /** One of `ways`, from 0 on. */
  pick(ways: number): number;
  /** Whether to go no further. */
  stops(): boolean;
}

/** Goes every way there is. */
class Every implements Choices {
  readonly #way: number[] = [];
  readonly #ways: number[] = [];
  #at = 0;

  pick(ways: number): number {
    const at = this.#at;
    this.#at += 1;
    this.#ways[at] = ways;
    this.#way[at] ??= 0;
    return this.#way[at];
  }

  stops(): boolean {
    return this.pick(2) === 1;
  }

  /** Turns to the next way; false when all have been gone. */
  next(): boolean {
    this.#at = 0;
    for (let at = this.#ways.length - 1; at >= 0; at -= 1) {
      const next = (this.#way[at] ?? 0) + 1;
      this.#ways.length = at + 1;
      this.#way.length = at + 1;
      this.#way[at] = next;
      if (next < (this.#ways[at] ?? 0)) return true;
    }
    return false;
  }
}

/** Goes ways at random, the same ones each time. */
class Drawn implements Choices {
  #state: number;

  constructor(seed: number) {
    this.#state = seed;
  }

  pick(ways: number): number {
    this.#state = (Math.imul(this.#state, 1664525) + 1013904223) >>> 0;
    return Math.floor((this.#state / 2 ** 32) * ways);
  }

  stops(): boolean {
    return false;
  }
}

// ─── A recorder of a socket ──────────────────────────────────────────────────
// It behaves as Node's do where the relay can tell. What is written to it is compared with what
// should come, when it is taken: a buffer that is read into again too early shows.

/** What each side says, over and over; the period is prime: no order but the right one fits. */
const PERIOD = 251;
const LONGEST = 64 * 1024;
const SAID = Buffer.from(Array.from({ length: PERIOD }, (_, i) => i));
const STREAM = Buffer.alloc(LONGEST + PERIOD, SAID);
const textAt = (offset: number, length: number): Buffer =>
  STREAM.subarray(offset % PERIOD, (offset % PERIOD) + length);

/** `fast` takes what is written at once; `lagging` later; `stuck` has each byte fill its buffer. */
type Pace = "fast" | "lagging" | "stuck";

/** `done`: both directions have ended; `lost`: the peer has reset it. */
type Fate = "open" | "done" | "lost" | "destroyed" | "reset";

/** Methods of sockets return the socket; nobody looks at it. */
const NOBODY = new Socket();

class Recorder implements Wire {
  readonly name: string;
  readonly pace: Pace;
  readonly now: () => number;
  connection: Connection | undefined;
  connecting = false;
  destroyed = false;
  writableEnded = false;
  writableFinished = false;
  writableNeedDrain = false;
  readonly localAddress = "127.0.0.1";
  readonly localPort = 1;
  fate: Fate = "open";
  wasConnected = false;
  isPaused = false;
  hasFinished = false;
  isClosed = false;
  /** It was given time for what was written to it to arrive. */
  hadGrace = false;
  /** When something was written to it last, and when it was reset. */
  writtenAt = -Infinity;
  resetAt = Infinity;
  /** Bytes that this side has said and that were taken in; written to it; and that reached it. */
  said = 0;
  written = 0;
  arrived = 0;
  /** What goes before: said by a client, written to a server. */
  header = "";
  putBack: Buffer | undefined;
  #waiting: Uint8Array[] = [];
  #corks = 0;
  #onDrain: ((...args: never[]) => void)[] = [];

  constructor(name: string, pace: Pace, now: () => number) {
    this.name = name;
    this.pace = pace;
    this.now = now;
  }

  get writable(): boolean {
    return !this.writableEnded && !this.destroyed;
  }

  get writableLength(): number {
    const waiting = this.#waiting.reduce((sum, { length }) => sum + length, 0);
    return this.pace === "stuck" ? waiting * LONGEST : waiting;
  }

  /** Something that was written, an end perhaps, is still under way. */
  get isBusy(): boolean {
    return this.#waiting.length > 0 || (this.writableEnded && !this.writableFinished);
  }

  get canBeRead(): boolean {
    return !this.connecting && !this.destroyed && !this.hasFinished && !this.isPaused;
  }

  write(bytes: Uint8Array | string): boolean {
    must(!this.writableEnded, `written to the ${this.name} after its end`);
    must(!this.destroyed, `written to the ${this.name}, which is destroyed`);
    must(!this.connecting, `written to the ${this.name} before it was connected`);
    if (typeof bytes === "string") return this.#writeHeader(bytes);
    if (bytes.length === 0) return true;
    must(this.header === "" || this.name === "client", "bytes before the header");
    this.written += bytes.length;
    this.writtenAt = this.now();
    if (this.pace === "fast") this.#take(bytes);
    else this.#waiting.push(bytes);
    this.writableNeedDrain = this.writableLength >= LONGEST;
    return !this.writableNeedDrain;
  }

  #writeHeader(text: string): boolean {
    must(text === this.header && this.written === 0, "another header, or not before everything");
    this.header = "";
    return true;
  }

  #take(bytes: Uint8Array): void {
    const isRight = textAt(this.arrived, bytes.length).equals(bytes);
    must(isRight, `other bytes written to the ${this.name} than the other side has said`);
    this.arrived += bytes.length;
  }

  /** The kernel takes everything that waits. */
  flush(): void {
    for (const bytes of this.#waiting) this.#take(bytes);
    this.#waiting = [];
    if (this.writableEnded) this.#finish();
    if (!this.writableNeedDrain) return;
    this.writableNeedDrain = false;
    const listeners = this.#onDrain;
    this.#onDrain = [];
    for (const listener of listeners) listener.call(this);
  }

  end(): Socket {
    must(!this.destroyed && !this.writableEnded, `the ${this.name} ended twice`);
    this.writableEnded = true;
    if (this.pace === "fast") this.#finish();
    return NOBODY;
  }

  #finish(): void {
    this.writableFinished = true;
    this.endIfBothHave();
  }

  endIfBothHave(): void {
    if (this.writableFinished && this.hasFinished) this.meet("done");
  }

  destroy(): Socket {
    this.meet("destroyed");
    return NOBODY;
  }

  resetAndDestroy(): Socket {
    const isShuttingDown = this.writableEnded && !this.writableFinished && !this.#waiting.length;
    must(!this.connecting, `the ${this.name} reset while it connects, which Node puts off`);
    must(!isShuttingDown, `the ${this.name} reset while it shuts down, which libuv refuses`);
    this.resetAt = this.now();
    this.meet("reset");
    return NOBODY;
  }

  meet(fate: Fate): void {
    if (this.destroyed) return;
    this.destroyed = true;
    this.fate = fate;
  }

  pause(): Socket {
    this.isPaused = true;
    return NOBODY;
  }

  resume(): Socket {
    this.isPaused = false;
    return NOBODY;
  }

  unshift(chunk: Buffer): void {
    must(this.putBack === undefined, "two chunks put back");
    this.putBack = chunk;
  }

  once(event: string | symbol, listener: (...args: never[]) => void): Socket {
    must(event === "drain", `somebody listens for ${String(event)}`);
    this.#onDrain.push(listener);
    return NOBODY;
  }

  cork(): void {
    this.#corks += 1;
  }

  uncork(): void {
    this.#corks -= 1;
  }

  get isCorked(): boolean {
    return this.#corks !== 0;
  }
}

// ─── A scene ─────────────────────────────────────────────────────────────────

interface Scene {
  readonly start: "greeting" | "queued" | "dialling" | "relaying";
  /** How many events deep every order is played. */
  readonly depth: number;
  readonly client: Pace;
  readonly server: Pace;
  /** Each event comes so many seconds after the one before it. */
  readonly tick: number;
  readonly abortOnClose: boolean;
  /** The servers are sent this first. */
  readonly header: string;
  /** Nobody but time and the balancer itself ends anything: see `EVENTS`. */
  readonly events: "sides" | "all";
}
const SCENE: Scene = {
  start: "relaying",
  depth: 5,
  client: "fast",
  server: "fast",
  tick: 0.03,
  abortOnClose: false,
  header: "",
  events: "sides",
};

const GREETING = "PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n";
const HOLD = 0.2;
const GRACE = 0.05;
/** Made once: an error takes longer to make than the rest of a play. */
const WENT_WRONG = new Error("reset, refused or late");
const SERVERS = parseServers(["127.0.0.1:1", "127.0.0.1:2"]);
/** Shared, as in a balancer: what one connection leaves behind in them may hurt the next. */
const BUFFERS = new ReadBuffers();

/** What is to be said of servers by the event that happens now. */
interface Hopes {
  suspicion: boolean;
}

/** Plays the owner, the two peers and the loop of one connection, and keeps the books. */
class Play implements Owner {
  readonly buffers = BUFFERS;
  readonly turnTimes = { bounds: [], counts: [], sum: 0 };
  readonly options: { readonly abortOnClose: boolean };
  readonly scene: Scene;
  readonly client: Recorder;
  readonly connection: Connection;
  readonly trace: string[] = [];
  /** Every socket to a server there was; only the last can still be in use. */
  readonly upstreams: Recorder[] = [];
  readonly servers = SERVERS.map((spec) => new Server(spec, 1));
  readonly #choices: Choices;
  readonly #held = new Set<Server>();
  readonly #resuming: Recorder[] = [];
  readonly #toReset = new Set<Recorder>();
  readonly #hopes: Hopes = { suspicion: false };
  #graces = 0;
  #now = 1;
  isTurnAwaited = false;
  #hasBegun = false;
  #ends = 0;
  #reason: string | undefined;
  /** Which side was lost first, in which stage, and before its own FIN. */
  clientLostWhile = "";
  serverLostFirst = false;
  /** The owner itself has closed it. */
  isClosedByOwner = false;

  constructor(scene: Scene, choices: Choices) {
    this.scene = scene;
    this.#choices = choices;
    this.options = { abortOnClose: scene.abortOnClose };
    this.client = new Recorder("client", scene.client, () => this.#now);
    if (scene.start === "greeting") this.client.header = GREETING;
    this.connection = new Connection(this, this.client, { host: "192.0.2.1", port: 1 });
    this.client.connection = this.connection;
    this.#begin();
  }

  #begin(): void {
    const { start } = this.scene;
    if (start === "greeting") this.connection.greet();
    if (start === "queued") this.connection.queue();
    if (start === "dialling" || start === "relaying") this.dial();
    if (start === "relaying") this.connect();
    this.#hasBegun = true;
  }

  get upstream(): Recorder | undefined {
    return this.upstreams.at(-1);
  }

  get isOver(): boolean {
    return this.#ends > 0;
  }

  get untried(): readonly Server[] {
    const { tried } = this.connection;
    return this.servers.filter((server) => !tried.some((attempt) => attempt.server === server));
  }

  // --- as the owner ---

  now(): number {
    return this.#now;
  }

  headerFor(): string {
    return this.scene.header;
  }

  place(): void {
    must(!this.client.destroyed, "a place for a client that has gone");
    must(!this.#hasLeft, "a place for a client that has left");
    if (this.untried.length === 0) return this.connection.close("no_server");
    const way = this.#hasBegun ? this.#choices.pick(2) : 0;
    if (way === 0) this.dial();
    else this.connection.queue();
  }

  dial(): void {
    const [server] = this.untried;
    if (server === undefined) throw new Error("no server left to dial");
    must(this.upstreams.length < SERVERS.length, "a server is tried twice");
    const wire = new Recorder("server", this.scene.server, () => this.#now);
    wire.connecting = true;
    wire.header = this.scene.header;
    must(this.#held.size === 0, "a second place while it has one");
    this.#held.add(server);
    this.upstreams.push(wire);
    wire.connection = this.connection;
    this.connection.dial(server, wire);
  }

  rest(): void {}

  left(_: Connection, server: Server): void {
    must(this.#held.delete(server), `left ${server.name}, where it has no place`);
  }

  dialFailed(): boolean {
    return false;
  }

  connected(_: Connection, server: Server): void {
    must(this.#held.has(server), "connected to a server where it has no place");
  }

  readonly health = {
    hold: HOLD,
    caresForFirstBytes: (): boolean => true,
    saw: (server: Server): void => {
      must(this.#held.has(server), "the first byte of a server where it has no place");
    },
    suspect: (server: Server): void => {
      must(this.#held.has(server), "suspects a server where it has no place");
      must(this.#hopes.suspicion, "suspects a server without a reason");
      this.#hopes.suspicion = false;
    },
  };

  soon(what: Connection | Wire): void {
    if (!(what instanceof Connection)) return void this.#resuming.push(this.#recorderOf(what));
    must(!this.isTurnAwaited || this.connection.stage === "relaying", "put off for nothing");
    this.isTurnAwaited = true;
  }

  resetLater(wire: Wire): void {
    this.#graces += 1;
    wire.pause();
    this.#toReset.add(this.#recorderOf(wire));
  }

  #recorderOf(wire: Wire): Recorder {
    const found = [this.client, ...this.upstreams].find((recorder) => recorder === wire);
    if (found === undefined) throw new Error("a socket of somebody else");
    return found;
  }

  gone(connection: Connection): void {
    this.#ends += 1;
    must(this.#ends === 1, "it ends twice");
    must(
      connection.stage === "ended" && connection.reason !== undefined,
      "an end without a reason",
    );
  }

  /** A client that has ended its side and waits: without a byte it has left, or as it is told. */
  get #hasLeft(): boolean {
    return this.client.hasFinished && (this.client.said === 0 || this.scene.abortOnClose);
  }

  // --- as the peers and the loop ---

  get isTurnDue(): boolean {
    return this.isTurnAwaited || this.#resuming.length > 0;
  }

  get hasToReset(): boolean {
    return this.#toReset.size > 0;
  }

  endTurn(): void {
    const resuming = this.#resuming.splice(0);
    const isAwaited = this.isTurnAwaited;
    this.isTurnAwaited = false;
    if (isAwaited) this.connection.turnEnds();
    for (const wire of resuming) if (!wire.destroyed) wire.resume();
  }

  endGrace(): void {
    for (const wire of this.#toReset) {
      wire.hadGrace = true;
      const isShuttingDown =
        wire.writableEnded && wire.writableLength === 0 && !wire.writableFinished;
      if (wire.connecting || isShuttingDown) wire.destroy();
      else if (!wire.destroyed) wire.resetAndDestroy();
    }
    this.#toReset.clear();
  }

  /** The client says `length` bytes, or what was put back once more; its header first. */
  clientSays(length: number): void {
    const { client } = this;
    const chunk = client.putBack ?? this.#newChunk(length);
    client.putBack = undefined;
    this.connection.clientSent(chunk);
    if (client.putBack !== undefined) return;
    if (this.#hadBeenDecided) client.said -= this.#payloadOf(chunk);
  }

  /** What comes after the end is decided is dropped, and may be. */
  get #hadBeenDecided(): boolean {
    return this.#reason !== undefined;
  }

  #payloadOf(chunk: Buffer): number {
    return chunk.length - this.#headerBytes;
  }
  #headerBytes = 0;

  #newChunk(length: number): Buffer {
    const { client } = this;
    const isSmall = length < LONGEST;
    const half = Math.ceil(client.header.length / 2);
    const taken = isSmall && client.header.length === GREETING.length ? half : undefined;
    const header = client.header.slice(0, taken);
    client.header = client.header.slice(header.length);
    this.#headerBytes = header.length;
    const size = taken === undefined ? Math.min(length, LONGEST - header.length) : 0;
    const chunk = textAt(client.said, size);
    client.said += size;
    return header === "" ? chunk : Buffer.concat([Buffer.from(header), chunk]);
  }

  serverSays(wire: Recorder, length: number): void {
    const buffer = this.buffers.onread.buffer();
    buffer.set(textAt(wire.said, length));
    if (this.connection.stage === "relaying") wire.said += length;
    if (!this.connection.serverSent(length, buffer)) wire.isPaused = true;
    must(this.connection.askedAt === 0 || this.#hadBeenDecided, "an answer that is not told");
  }

  clientEnds(): void {
    const { connection, client, scene } = this;
    if (connection.stage === "dialling" && scene.abortOnClose) this.#hopeForGivenUpDial();
    client.hasFinished = true;
    connection.clientFinished();
    client.endIfBothHave();
  }

  serverEnds(wire: Recorder): void {
    this.#hopeForEarlyEnd(wire);
    wire.hasFinished = true;
    this.connection.serverFinished();
    wire.endIfBothHave();
  }

  loseClient(): void {
    const { connection, client } = this;
    if (!client.hasFinished && !this.#hadBeenDecided) this.clientLostWhile = connection.stage;
    if (connection.stage === "dialling") this.#hopeForGivenUpDial();
    this.#forgetPutBack();
    client.meet("lost");
    connection.clientLost();
  }

  /** What was put back to be read once more goes with a reset, which shows. */
  #forgetPutBack(): void {
    const { client } = this;
    if (client.putBack !== undefined) client.said -= this.#payloadOf(client.putBack);
    client.putBack = undefined;
  }

  loseServer(wire: Recorder): void {
    if (!wire.hasFinished && !this.#hadBeenDecided) this.serverLostFirst = true;
    this.#hopeForEarlyEnd(wire);
    wire.meet("lost");
    this.connection.serverLost(WENT_WRONG);
  }

  failDial(wire: Recorder): void {
    wire.meet("lost");
    this.#tryAnother(() => this.connection.serverLost(WENT_WRONG));
  }

  /** A dial's deadline passes. */
  giveUpDial(): void {
    this.#tryAnother(() => this.connection.dialFailed(WENT_WRONG));
  }

  /** `fail` has a dial fail: a client that still wants one gets another. */
  #tryAnother(fail: () => void): void {
    const { connection } = this;
    const isWanted = connection.stage === "dialling" && !this.#hasLeft && this.untried.length > 1;
    fail();
    if (isWanted) must(["queued", "dialling"].includes(connection.stage), "no other server tried");
  }

  connect(): void {
    const { connection, upstream } = this;
    if (upstream === undefined) return;
    const graces = this.#graces;
    upstream.connecting = false;
    upstream.wasConnected = true;
    connection.connected();
    if (this.#hadBeenDecided) must(this.#graces > graces, "no grace for what a leaver has said");
  }

  close(wire: Recorder): void {
    wire.isClosed = true;
    if (!wire.hasFinished && !this.#hadBeenDecided) throw new Error("closed by nobody");
    this.connection.sideClosed(wire);
  }

  closeByOwner(reason: Parameters<Connection["close"]>[0]): void {
    this.isClosedByOwner = true;
    this.connection.close(reason);
  }

  /** What a sweep does when not much has passed, and a second. */
  sweep(): void {
    this.connection.askStoppedSide();
    must(!this.connection.isQuietFor(1000, this.#now), "idle too early");
    this.#now += 1;
  }

  /** What a sweep does, twice: the first sees what has moved. */
  idle(isProved: boolean): void {
    const { connection } = this;
    connection.askStoppedSide();
    connection.isQuietFor(50, this.#now);
    this.#now += 100;
    if (isProved) for (const { health } of this.servers) health.provedAt = this.#now;
    must(connection.isQuietFor(50, this.#now), "not idle after 100 s of silence");
    connection.close("idle_timeout");
  }

  #hopeForGivenUpDial(): void {
    this.#hopes.suspicion = this.#now - this.connection.dialledAt > HOLD;
  }

  #hopeForEarlyEnd(wire: Recorder): void {
    const { connection, client } = this;
    const isEarly = this.#now - connection.connectedAt < HOLD;
    const isUnasked = !client.hasFinished && wire.said === 0;
    this.#hopes.suspicion = connection.stage === "relaying" && isEarly && isUnasked;
  }

  // --- events ---

  happen(event: GameEvent): void {
    this.trace.push(event.name);
    this.#now += this.scene.tick;
    this.#hopes.suspicion = false;
    event.happen(this);
    must(!this.#hopes.suspicion, "a reason to suspect the server is passed over");
    this.#look();
  }

  /** What must be so at any moment. */
  #look(): void {
    const { connection, client, upstream } = this;
    this.#reason ??= connection.reason;
    must(connection.reason === this.#reason, "its reason changes");
    must(!client.isCorked && upstream?.isCorked !== true, "a socket stays corked");
    const holds = this.#held.size;
    must(holds === 0 || connection.server !== undefined, "a place that it has forgotten");
    must(holds === 1 || connection.server === undefined, "a server where it has no place");
    must(connection.stage !== "queued" || !this.#hasLeft, "a client that has left waits in line");
    const turns = this.servers.reduce((sum, { cost }) => sum + cost.waiting, 0);
    must(turns === (connection.askedAt === 0 ? 0 : 1), "another turn than its server was told of");
    if (this.isOver) must(this.#isAllClosed, "it ends while a socket is open");
    if (connection.stage === "relaying" && upstream?.destroyed && upstream.fate !== "lost")
      must(holds === 0 || !upstream.isClosed, "a place where its socket is closed");
    if (connection.stage === "relaying" && !this.isTurnAwaited) this.#lookAtEnds();
  }

  /** An end has been passed on when the loop's turn is over; with both, the place is free. */
  #lookAtEnds(): void {
    const { client, upstream } = this;
    if (upstream === undefined) return;
    if (client.hasFinished) must(!upstream.writable, "the client's FIN is held back");
    if (upstream.hasFinished) must(!client.writable, "the server's FIN is held back");
    const isAllWritten = !client.isBusy && !upstream.isBusy;
    if (client.hasFinished && upstream.hasFinished && isAllWritten && upstream.fate === "destroyed")
      must(this.#held.size === 0, "a place for a connection that both sides have ended");
  }

  get #isAllClosed(): boolean {
    return this.client.isClosed && this.upstreams.every(({ destroyed }) => destroyed);
  }

  play(): void {
    for (let i = 0; i < this.scene.depth && !this.isOver; i += 1) {
      const events = EVENTS.filter((event) => event.isPossible(this));
      if (events.length === 0 || this.#choices.stops()) break;
      const event = events[this.#choices.pick(events.length)];
      if (event !== undefined) this.happen(event);
    }
    const isGentle = this.#choices.pick(2) === 0;
    this.trace.push(isGentle ? "; gently:" : "; all are lost:");
    this.#playOut(isGentle ? GENTLY : LOST);
    this.#look();
    this.#balance();
  }

  /** Has the first possible one of `names` happen until there is none. */
  #playOut(names: readonly string[]): void {
    for (let i = 0; i < 60 && !this.isOver; i += 1) {
      const event = names
        .map((name) => EVENTS.find((known) => known.name === name))
        .find((known) => known?.isPossible(this));
      if (event === undefined) break;
      this.happen(event);
    }
    must(this.isOver, `it stays for ever, ${this.connection.stage}`);
  }

  /** What must be so when all is over. */
  #balance(): void {
    must(this.#held.size === 0, "it ends and keeps its place");
    must(this.connection.askedAt === 0, "it ends and its turn does not");
    const reached = this.upstreams.find(({ wasConnected }) => wasConnected);
    if (reached === undefined) return this.#mustBreak(this.client, "without a server");
    const { client } = this;
    if (reached.arrived < client.said) this.#mustBreak(reached, "and has not got all");
    if (client.arrived < reached.said) this.#mustBreak(client, "and has not got all");
    if (this.clientLostWhile !== "") this.#mustBreak(reached, "whose client was lost");
    if (this.serverLostFirst) this.#mustBreak(client, "whose server was lost");
    for (const wire of [client, reached]) this.#mustHaveHadGrace(wire);
    const isUnsaid = this.#reason === "idle_timeout" && !reached.hasFinished;
    if (isUnsaid && reached.arrived < client.said)
      this.#mustBreak(client, "whose bytes the idle server has not taken");
    const isLeft = ["dialling", "relaying"].includes(this.clientLostWhile);
    if (isLeft && reached.fate !== "lost" && !this.isClosedByOwner)
      must(reached.written === client.said, "what a client said before it was lost is not written");
  }

  /** A reset that is passed on discards nothing that was written just before. */
  #mustHaveHadGrace(wire: Recorder): void {
    const isPassedOn = this.#reason === "client_reset" || this.#reason === "server_reset";
    if (!isPassedOn || wire.hadGrace) return;
    must(wire.fate !== "destroyed", `a reset that the ${wire.name} will never see`);
    if (wire.fate !== "reset") return;
    const hasJustMoved = wire.resetAt - wire.writtenAt < GRACE;
    must(!hasJustMoved && wire.arrived === wire.written, `the ${wire.name} is reset at once`);
  }

  /** Whoever has not got everything must see it. */
  #mustBreak({ name, fate }: Recorder, why: string): void {
    must(fate === "reset" || fate === "lost", `a clean end (${fate}) for a ${name} ${why}`);
  }
}

// ─── Events ──────────────────────────────────────────────────────────────────
// Only what can happen: no bytes behind a FIN, nothing of a socket that is closed or not read from.

interface GameEvent {
  readonly name: string;
  isPossible(play: Play): boolean;
  happen(play: Play): void;
}

/** An event of the socket to a server, in use or not. */
function ofServer(
  name: string,
  isPossible: (wire: Recorder, play: Play) => boolean,
  happen: (play: Play, wire: Recorder) => void,
): GameEvent {
  return {
    name,
    isPossible: (play) => {
      const { upstream } = play;
      if (upstream === undefined || upstream.connection === undefined) return false;
      return isPossible(upstream, play);
    },
    happen: (play) => {
      if (play.upstream !== undefined) happen(play, play.upstream);
    },
  };
}

const hasAll = ({ scene }: Play): boolean => scene.events === "all";
const isRelaying = ({ connection, client, upstream }: Play): boolean =>
  connection.stage === "relaying" && !client.destroyed && upstream?.destroyed === false;
/** The loop looks for the idle at the start of a turn, when nothing waits for its end. */
const isIdle = (play: Play): boolean => hasAll(play) && isRelaying(play) && !play.isTurnDue;

const EVENTS: readonly GameEvent[] = [
  {
    name: "client's bytes",
    isPossible: ({ client }) => client.canBeRead,
    happen: (play) => play.clientSays(3),
  },
  {
    name: "client's many bytes",
    isPossible: (play) => hasAll(play) && play.client.canBeRead && !play.client.putBack,
    happen: (play) => play.clientSays(LONGEST),
  },
  {
    name: "client's FIN",
    isPossible: ({ client }) => client.canBeRead && client.putBack === undefined,
    happen: (play) => play.clientEnds(),
  },
  {
    name: "client lost",
    isPossible: ({ client }) => !client.destroyed,
    happen: (play) => play.loseClient(),
  },
  {
    name: "client writable",
    isPossible: ({ client }) => !client.destroyed && client.isBusy,
    happen: ({ client }) => client.flush(),
  },
  {
    name: "client closed",
    isPossible: ({ client }) => client.destroyed && !client.isClosed,
    happen: (play) => play.close(play.client),
  },
  ofServer(
    "connected",
    (wire) => wire.connecting && !wire.destroyed,
    (play) => play.connect(),
  ),
  ofServer(
    "dial failed",
    (wire) => wire.connecting && !wire.destroyed,
    (play, wire) => play.failDial(wire),
  ),
  ofServer(
    "server's bytes",
    (wire) => wire.canBeRead,
    (play, wire) => play.serverSays(wire, 3),
  ),
  ofServer(
    "server's many bytes",
    (wire, play) => hasAll(play) && wire.canBeRead,
    (play, wire) => play.serverSays(wire, LONGEST / 2),
  ),
  ofServer(
    "server's FIN",
    (wire) => wire.canBeRead,
    (play, wire) => play.serverEnds(wire),
  ),
  ofServer(
    "server lost",
    (wire) => !wire.connecting && !wire.destroyed,
    (play, wire) => play.loseServer(wire),
  ),
  ofServer(
    "server writable",
    (wire) => !wire.destroyed && wire.isBusy,
    (_, wire) => wire.flush(),
  ),
  // `close` comes behind the loop's turn in which the socket was destroyed, in libuv's last phase.
  ofServer(
    "server closed",
    (wire, play) => wire.destroyed && !wire.isClosed && !play.isTurnAwaited,
    (play, wire) => play.close(wire),
  ),
  {
    name: "turn ends",
    isPossible: (play) => play.isTurnDue,
    happen: (play) => play.endTurn(),
  },
  {
    name: "grace over",
    isPossible: (play) => play.hasToReset,
    happen: (play) => play.endGrace(),
  },
  {
    name: "admitted",
    isPossible: ({ connection, untried }) => connection.stage === "queued" && untried.length > 0,
    happen: (play) => play.dial(),
  },
  {
    name: "queue's deadline",
    isPossible: ({ connection }) => connection.stage === "queued",
    happen: (play) => play.closeByOwner("queue_timeout"),
  },
  {
    name: "greeting's deadline",
    isPossible: ({ connection }) => connection.stage === "greeting",
    happen: (play) => play.closeByOwner("bad_proxy"),
  },
  {
    name: "dial's deadline",
    isPossible: ({ connection }) => connection.stage === "dialling",
    happen: (play) => play.giveUpDial(),
  },
  {
    name: "idle",
    isPossible: isIdle,
    happen: (play) => play.idle(false),
  },
  {
    name: "a second passes",
    isPossible: isIdle,
    happen: (play) => play.sweep(),
  },
  {
    name: "idle, the server well",
    isPossible: isIdle,
    happen: (play) => play.idle(true),
  },
  {
    name: "server is down",
    isPossible: (play) => hasAll(play) && isRelaying(play),
    happen: (play) => play.closeByOwner("server_reset"),
  },
  {
    name: "drain's end",
    isPossible: (play) => hasAll(play) && !play.isOver,
    happen: (play) => {
      play.closeByOwner("drain_forced");
      play.endGrace();
    },
  },
];

/** How it ends when nobody means harm: every byte must arrive, and nothing may wait for ever. */
const GENTLY = [
  "turn ends",
  "client writable",
  "server writable",
  "client closed",
  "server closed",
  "grace over",
  "connected",
  "admitted",
  "client's FIN",
  "server's FIN",
  "client's bytes",
  "queue's deadline",
];
/** How it ends when both peers vanish. */
const LOST = [
  "client lost",
  "dial failed",
  "server lost",
  "client closed",
  "turn ends",
  "server closed",
  "grace over",
];

// ─── The tests ───────────────────────────────────────────────────────────────

function playOne(scene: Scene, choices: Choices): void {
  const play = new Play(scene, choices);
  try {
    play.play();
  } catch (error) {
    const why = error instanceof Error ? error.message : String(error);
    throw new Error(`${why}\n  from ${scene.start}: ${play.trace.join(", ")}`, { cause: error });
  }
}

/** Plays every order, and some at random that are longer. */
function playAll(scene: Scene): void {
  const every = new Every();
  do playOne(scene, every);
  while (every.next());
  const long: Scene = { ...scene, depth: LONG.depth, events: "all" };
  for (let seed = 0; seed < LONG.plays; seed += 1) playOne(long, new Drawn(seed));
}
const LONG = { plays: 300, depth: 24 } as const;

const played = suite("a connection, every order of events");

const SCENES: readonly (readonly [string, Partial<Scene>])[] = [
  ["relaying", { depth: 6 }],
  ["relaying to a client that reads late", { client: "lagging" }],
  ["relaying to a client that does not read", { client: "stuck" }],
  ["relaying to a server that reads late", { server: "lagging" }],
  ["relaying to a server that does not read", { server: "stuck" }],
  ["relaying, with whatever the balancer itself may do", { depth: 4, events: "all" }],
  [
    "relaying to a client that reads late, with all that",
    { depth: 4, events: "all", client: "lagging" },
  ],
  [
    "relaying among slow peers, with all that",
    { depth: 4, events: "all", client: "stuck", server: "stuck" },
  ],
  ["dialling", { start: "dialling" }],
  ["dialling slowly", { start: "dialling", tick: 0.15, server: "stuck" }],
  ["dialling, with --abort-on-close", { start: "dialling", tick: 0.15, abortOnClose: true }],
  ["dialling, with a header to send", { start: "dialling", header: "PROXY UNKNOWN\r\n" }],
  ["queued", { start: "queued", events: "all" }],
  ["queued, with --abort-on-close", { start: "queued", abortOnClose: true }],
  ["greeting", { start: "greeting", depth: 4, events: "all" }],
];
for (const [name, given] of SCENES)
  played(`ends once, loses nothing unseen and leaves nothing behind: ${name}`, () => {
    playAll({ ...SCENE, ...given });
  });

/** Plays just these events, one after the other. */
function playThese(scene: Scene, names: readonly string[]): void {
  const play = new Play(scene, new Drawn(1));
  for (const name of names) {
    const event = EVENTS.find((known) => known.name === name);
    if (event === undefined || !event.isPossible(play)) throw new Error(`${name} cannot happen`);
    play.happen(event);
  }
}

played("is idle since its server was there, however long it has waited before", () => {
  const waits = 600; // seconds; nobody may be idle before 1000
  const scene: Scene = { ...SCENE, start: "queued", events: "all", tick: waits };
  playThese(scene, ["admitted", "connected", "a second passes"]);
});

played.run();
