/**
 * To be pasted into stress_test.ts: from the banner on. The imports below go to its head; `Health`
 * is already a name there.
 */
import type { FailureKind } from "./client.ts";
import { mulberry32, parseCommandLine, quantile } from "./lib.ts";
import {
  ALGORITHMS,
  algorithms,
  answered,
  asked,
  asks,
  type Attempt,
  type CheckResult,
  type Clock,
  type CheckSpec,
  failed,
  firstCheckIn,
  forgotten,
  type Guest,
  Health as HealthWatch,
  healthSettings,
  judge,
  newServer,
  OPTIONS as BALANCER_OPTIONS,
  ownPortOf,
  type Patient,
  Patients,
  type Picker,
  Places,
  type Probe,
  questionOf,
  type Server,
  type Sources,
  type Stage as ConnectionStage,
  STICKY,
  sweepPeriod,
  weigh,
} from "./load_balancer.ts";
import { countPings, drawSleep, nothingAsked, sleepOfNumber, type Work } from "./server.ts";
import {
  type Entry,
  type Observed,
  type Plan,
  type Progress,
  seedsFrom,
  type ServerSetup,
  type Stage,
  type Window,
} from "./stress_test.ts";

// These five are in stress_test.ts already.
const RECENT = 500;
const noErrors = (): Record<FailureKind, number> => ({
  connect: 0,
  timeout: 0,
  reset: 0,
  closed: 0,
  wrong: 0,
  shortage: 0,
  interrupted: 0,
});

// ─── In virtual time ─────────────────────────────────────────────────────────
// A plan carried out without sockets and without waiting: the clock jumps from one event to the
// next. Who goes where, who waits and which server is down is decided by the balancer's own parts,
// and how long an answer takes by server.ts. What is simulated is what lies around them: clients,
// slots, and connections that take no time.

/** Seconds that an answer of server `place` takes; a check may have no number. */
export type Sleep = (place: number, number: number | undefined, elapsed: number) => number;

/** Whom the plan is carried out against, in which world. */
export type VirtualSetup = {
  readonly plan: Pick<Plan, "requests" | "arrivals">;
  /** The numbers of a client's requests, one after the other. */
  readonly numbers: (client: number) => () => number;
  readonly addressOf: (client: number) => string;
  readonly servers: readonly ServerSetup[];
  readonly entry: Pick<Entry, "algorithm" | "balancerOptions">;
  /** Balancers that do not know of each other. */
  readonly balancers: number;
  /** The first one's seed, unless the entry gives one to all. The other streams derive from it. */
  readonly balancerSeed: number;
  readonly timeout: number;
  readonly reconnect: boolean;
  readonly fail?: Window | null;
  readonly hang?: Window | null;
  /** In place of the sleeps of server.ts. */
  readonly sleep?: Sleep;
  /** Told of each connection that reaches a server. */
  readonly met?: (client: number, place: number) => void;
};

/** Carries out a plan from beginning to end. */
export function simulate(setup: VirtualSetup): Observed {
  const run = new VirtualRun(setup);
  while (!run.advance(1_000_000)) continue;
  return run.observed();
}

/** The balancer's options that decide something here. */
const DECIDING: readonly string[] = [
  "--server-connections",
  "--queue-timeout",
  "--slow-start",
  "--check",
  "--check-interval",
  "--fall",
  "--rise",
  "--connect-timeout",
  "--retry-for",
  "--seed",
  "--max-connections",
  "--client-connections",
  "--on-down",
];

/** What is wrong with an entry's options in virtual time; undefined when nothing is. */
export function complaintAboutVirtual(balancerOptions: readonly string[]): string | undefined {
  const names = balancerOptions.map((word) => word.replace(/=.*/s, ""));
  const idle = names.find((name) => name.startsWith("--") && !DECIDING.includes(name));
  if (idle !== undefined)
    return `expected no ${idle}, which decides nothing in virtual time; what does: ${DECIDING.join(", ")}`;
  const { check } = parseCommandLine(BALANCER_OPTIONS, balancerOptions).values;
  if (ownPortOf(check) === undefined) return undefined;
  return `expected no port in --check ${check.text}: in virtual time nobody listens there`;
}

// --- the clock ---

/** Something that happens at its time. */
interface Happening {
  happen(at: number): void;
}

/** A moment behind `time`, as near as numbers allow. */
const justAfter = (time: number): number => time * (1 + Number.EPSILON) || Number.MIN_VALUE;

/**
 * What is to happen, in order: a binary heap. What was added first happens first among equals. Its
 * clock stands at what happened last.
 */
class Agenda {
  time = 0;
  #times = new Float64Array(1024);
  #turns = new Float64Array(1024);
  readonly #events: Happening[] = [];
  #added = 0;

  readonly clock: Clock = {
    now: () => this.time,
    after: (seconds, action) => {
      const alarm = new Alarm(action);
      // whoever waits for a moment must find it past
      const least = seconds > 0 ? justAfter(this.time) : this.time;
      this.add(Math.max(this.time + seconds, least), alarm);
      return () => alarm.cancel();
    },
  };

  /** When the next thing happens; Infinity: never. */
  get next(): number {
    return this.#events.length === 0 ? Infinity : this.#times[0]!;
  }

  add(at: number, event: Happening): void {
    let place = this.#events.length;
    if (place === this.#times.length) this.#grow();
    this.#events.push(event);
    while (place > 0) {
      const above = (place - 1) >> 1;
      if (this.#times[above]! <= at) break;
      this.#move(above, place);
      place = above;
    }
    this.#put(place, at, this.#added, event);
    this.#added += 1;
  }

  /** The clock jumps to the next event, and that happens. */
  step(): void {
    const at = this.#times[0]!;
    const event = this.#events[0]!;
    this.#removeFirst();
    this.time = at;
    event.happen(at);
  }

  #removeFirst(): void {
    const last = this.#events.length - 1;
    const at = this.#times[last]!;
    const turn = this.#turns[last]!;
    const event = this.#events.pop()!;
    if (last === 0) return;
    let place = 0;
    for (;;) {
      const below = this.#earlierBelow(place);
      if (below === undefined || !this.#isBefore(below, at, turn)) break;
      this.#move(below, place);
      place = below;
    }
    this.#put(place, at, turn, event);
  }

  /** The earlier of the two places below `place`. */
  #earlierBelow(place: number): number | undefined {
    const left = 2 * place + 1;
    const right = left + 1;
    if (right < this.#events.length)
      return this.#isBefore(right, this.#times[left]!, this.#turns[left]!) ? right : left;
    return left < this.#events.length ? left : undefined;
  }

  #isBefore(place: number, at: number, turn: number): boolean {
    const own = this.#times[place]!;
    return own < at || (own === at && this.#turns[place]! < turn);
  }

  #move(from: number, to: number): void {
    this.#put(to, this.#times[from]!, this.#turns[from]!, this.#events[from]!);
  }

  #put(place: number, at: number, turn: number, event: Happening): void {
    this.#times[place] = at;
    this.#turns[place] = turn;
    this.#events[place] = event;
  }

  #grow(): void {
    const [times, turns] = [this.#times, this.#turns];
    this.#times = new Float64Array(2 * times.length);
    this.#turns = new Float64Array(2 * times.length);
    this.#times.set(times);
    this.#turns.set(turns);
  }
}

class Alarm implements Happening {
  #action: (() => void) | undefined;

  constructor(action: () => void) {
    this.#action = action;
  }

  cancel(): void {
    this.#action = undefined;
  }

  happen(): void {
    this.#action?.();
  }
}

/** What waits for something, but not for ever: a link of a chain, which its `Patience` makes. */
interface Waiter {
  /** Infinity while it does not wait. */
  until: number;
  before: Waiter | undefined;
  behind: Waiter | undefined;
  /** It has waited in vain. */
  givesUp(): void;
}

/**
 * Waiters that all wait equally long, so that the first in is the first to give up. One event
 * serves them all, and to leave costs nothing, however many there are.
 */
class Patience implements Happening {
  readonly #agenda: Agenda;
  readonly #seconds: number;
  #first: Waiter | undefined;
  #last: Waiter | undefined;
  #isAlarmSet = false;

  constructor(agenda: Agenda, seconds: number) {
    this.#agenda = agenda;
    this.#seconds = seconds;
  }

  add(waiter: Waiter): void {
    waiter.until = this.#agenda.time + this.#seconds;
    waiter.before = this.#last;
    if (this.#last === undefined) this.#first = waiter;
    else this.#last.behind = waiter;
    this.#last = waiter;
    if (!this.#isAlarmSet) this.#setAlarm(waiter.until);
  }

  delete(waiter: Waiter): void {
    if (waiter.until === Infinity) return;
    const { before, behind } = waiter;
    if (before === undefined) this.#first = behind;
    else before.behind = behind;
    if (behind === undefined) this.#last = before;
    else behind.before = before;
    waiter.until = Infinity;
    waiter.before = undefined;
    waiter.behind = undefined;
  }

  happen(at: number): void {
    this.#isAlarmSet = false;
    for (let first = this.#first; first !== undefined && first.until <= at; first = this.#first) {
      this.delete(first);
      first.givesUp();
    }
    if (this.#first !== undefined && !this.#isAlarmSet) this.#setAlarm(this.#first.until);
  }

  #setAlarm(at: number): void {
    this.#isAlarmSet = true;
    this.#agenda.add(at, this);
  }
}

// --- servers ---

/** A connection to a simulated server, as that sees it. */
abstract class Call implements Happening {
  target: VirtualServer | undefined = undefined;
  hasSlot = false;
  /** It has gone, or been cut: nothing that was to happen happens. */
  hasLeft = false;
  /** It has asked, and waits for the answer; and when that is due, once the server works on it. */
  isAsking = false;
  number: number | undefined = undefined;
  dueAt = Infinity;
  /** The answer has come. */
  abstract answered(): void;
  /** The server has died. */
  abstract cut(): void;

  happen(at: number): void {
    if (at === this.dueAt) this.target?.wake(this);
  }
}

/** A server with slots, as in server.ts: a connection keeps its slot until it leaves. */
class VirtualServer {
  readonly place: number;
  readonly #agenda: Agenda;
  readonly #slots: number;
  readonly #sleep: Sleep;
  readonly #served = new Set<Call>();
  /** Who waits for a slot, from `#head` on; some of them have left. Before it there is nobody. */
  #line: (Call | undefined)[] = [];
  #head = 0;
  /** Whose doings it has not seen yet, since it hangs. */
  #unseen: Call[] = [];
  #startedAt = 0;
  #hangsUntil = 0;
  isListening = true;

  constructor(agenda: Agenda, place: number, slots: number, sleep: Sleep) {
    this.#agenda = agenda;
    this.place = place;
    this.#slots = slots;
    this.#sleep = sleep;
  }

  get isHanging(): boolean {
    return this.#hangsUntil > 0;
  }

  /** Everybody who is connected to it. */
  get calls(): Call[] {
    const here: Call[] = [];
    for (const call of new Set([...this.#served, ...this.#line, ...this.#unseen])) {
      if (call !== undefined && !call.hasLeft) here.push(call);
    }
    return here;
  }

  enter(call: Call): void {
    call.target = this;
    if (this.isHanging) this.#unseen.push(call);
    else this.#admit(call);
  }

  /** `call`, which is here already, asks for something. */
  ask(call: Call): void {
    if (this.isHanging) this.#unseen.push(call);
    else this.#answer(call);
  }

  leave(call: Call): void {
    call.hasLeft = true;
    call.dueAt = Infinity;
    if (this.isHanging) this.#unseen.push(call);
    else this.#release(call);
  }

  /** The sleep of `call` is over. */
  wake(call: Call): void {
    if (this.isHanging) {
      call.dueAt = this.#hangsUntil;
      this.#agenda.add(call.dueAt, call);
      return;
    }
    call.dueAt = Infinity;
    call.isAsking = false;
    call.answered();
  }

  #admit(call: Call): void {
    if (this.#served.size < this.#slots) this.#serve(call);
    else this.#line.push(call);
  }

  #serve(call: Call): void {
    this.#served.add(call);
    call.hasSlot = true;
    this.#answer(call);
  }

  #answer(call: Call): void {
    if (!call.hasSlot || !call.isAsking || call.dueAt < Infinity) return;
    const now = this.#agenda.time;
    const seconds = this.#sleep(this.place, call.number, now - this.#startedAt);
    if (seconds === Infinity) return;
    call.dueAt = now + seconds;
    this.#agenda.add(call.dueAt, call);
  }

  #release(call: Call): void {
    if (!this.#served.delete(call)) return;
    const next = this.#nextInLine();
    if (next !== undefined) this.#serve(next);
  }

  #nextInLine(): Call | undefined {
    while (this.#head < this.#line.length) {
      const call = this.#line[this.#head];
      this.#line[this.#head] = undefined;
      this.#head += 1;
      if (this.#head > 64 && 2 * this.#head > this.#line.length) this.#shorten();
      if (call !== undefined && !call.hasLeft) return call;
    }
    return undefined;
  }

  #shorten(): void {
    this.#line = this.#line.slice(this.#head);
    this.#head = 0;
  }

  /** It still accepts, as a kernel does, and sees and says nothing until then. */
  hang(until: number): void {
    if (!this.isListening) return;
    this.#hangsUntil = until;
    this.#agenda.clock.after(until - this.#agenda.time, () => this.#goOn());
  }

  /** What fell due while it hung is said first; then it looks at what has come. */
  #goOn(): void {
    this.#hangsUntil = 0;
    this.#agenda.clock.after(0, () => this.#catchUp());
  }

  #catchUp(): void {
    const unseen = this.#unseen;
    this.#unseen = [];
    for (const call of unseen) if (call.hasLeft) this.#release(call);
    for (const call of new Set(unseen)) {
      if (call.hasLeft) continue;
      if (call.hasSlot) this.#answer(call);
      else this.#admit(call);
    }
  }

  die(): void {
    const { calls } = this;
    this.isListening = false;
    this.#hangsUntil = 0;
    this.#served.clear();
    this.#line = [];
    this.#head = 0;
    this.#unseen = [];
    for (const call of calls) this.#cut(call);
  }

  #cut(call: Call): void {
    call.hasLeft = true;
    call.dueAt = Infinity;
    call.cut();
  }

  restart(): void {
    this.isListening = true;
    this.#startedAt = this.#agenda.time;
  }
}

// --- checks ---

/** What a check says to a ping server, and what that makes of it. */
type Question = {
  readonly holds: boolean;
  /** The numbers of its pings, undefined for a plain one. */
  readonly pings: readonly (number | undefined)[];
  /** A byte of it belongs to no ping: the server resets it. */
  readonly isWrong: boolean;
};

function virtualQuestion(check: CheckSpec): Question {
  const pings = nothingAsked();
  const isSecure = check.kind === "http" && check.isSecure; // no ping begins as TLS does
  const wrong = countPings(pings, questionOf(check, ""));
  const numbers = pings.waiting.flatMap(({ number, times }) => Array(times).fill(number));
  return { holds: !asks(check), pings: numbers, isWrong: isSecure || wrong !== undefined };
}

const TIMED_OUT: CheckResult = { kind: "silent", why: "no answer in time", by: "time-out" };
const WRONG: CheckResult = { kind: "silent", why: "another answer than expected", by: "wrong" };
const CLOSED: CheckResult = { kind: "silent", why: "accepted, and closed", by: "close" };
const REFUSED = {
  kind: "refused",
  why: "connection refused",
  code: "ECONNREFUSED",
} as const satisfies CheckResult;

/** One check of a simulated server. It takes a slot there as any connection does. */
class CheckCall extends Call {
  readonly #check: CheckSpec;
  readonly #question: Question;
  readonly #report: (result: CheckResult) => void;
  #answers = 0;
  #isOver = false;
  #cancelAlarm: () => void = () => undefined;

  constructor(check: CheckSpec, question: Question, report: (result: CheckResult) => void) {
    super();
    this.#check = check;
    this.#question = question;
    this.#report = report;
  }

  /** A bare connection holds for `hold` seconds; a question has `seconds` to be answered. */
  begin(target: VirtualServer, clock: Clock, hold: number, seconds: number): void {
    const { holds, isWrong } = this.#question;
    const verdictIn = (after: number, verdict: CheckResult): void => {
      this.#cancelAlarm = clock.after(after, () => this.#finish(verdict));
    };
    if (!target.isListening) return verdictIn(0, REFUSED);
    if (isWrong && !target.isHanging) return verdictIn(0, CLOSED);
    if (holds && hold === 0) return verdictIn(0, { kind: "passed" });
    if (holds) verdictIn(hold, { kind: "passed" });
    else verdictIn(seconds, TIMED_OUT);
    this.#askNext();
    target.enter(this);
  }

  /** Lets go of it; nothing is reported any more. */
  cancel(): void {
    this.#isOver = true;
    this.#cancelAlarm();
    // what was asked is still answered, as the server does not see who has gone
    if (!this.isAsking && !this.hasLeft) this.target?.leave(this);
  }

  answered(): void {
    if (this.#isOver) return this.target?.leave(this);
    this.#answers += 1;
    const judgement = judge(this.#check, Buffer.from("PONG!".repeat(this.#answers)));
    if (judgement === "passed") return this.#finish({ kind: "passed" });
    if (judgement === "wrong") return this.#finish(WRONG);
    this.#askNext();
    this.target?.ask(this);
  }

  cut(): void {
    if (!this.#isOver) this.#finish(this.#answers > 0 ? WRONG : CLOSED);
  }

  #askNext(): void {
    const { pings } = this.#question;
    this.isAsking = this.#answers < pings.length;
    this.number = pings[this.#answers];
  }

  #finish(result: CheckResult): void {
    const isLate = result === TIMED_OUT && this.#answers > 0;
    this.cancel();
    this.#report(isLate ? WRONG : result);
  }
}

// --- balancers ---

/** Where a client connects: a balancer, or the one server of the baseline. */
interface Door {
  accept(connection: Passage): void;
  /** A dial of it was refused. */
  refused(connection: Passage): void;
  asks(connection: Passage): void;
  answered(connection: Passage): void;
  /** The server has died. */
  lost(connection: Passage): void;
  leave(connection: Passage): void;
}

/** A client's connection. */
class Passage extends Call implements Guest, Patient, Waiter {
  readonly door: Door;
  readonly visitor: Visitor;
  readonly clientAddress: string;
  stage: ConnectionStage = "queued";
  tried: readonly Attempt[] = NOT_TRIED;
  /** Where the balancer has given it a place, since when, and since when it awaits its answer. */
  server: Server | undefined = undefined;
  dialledAt = 0;
  askedAt = -1;
  hasAnswer = false;
  isCounted = false;
  until = Infinity;
  before: Waiter | undefined = undefined;
  behind: Waiter | undefined = undefined;

  constructor(door: Door, visitor: Visitor, clientAddress: string) {
    super();
    this.door = door;
    this.visitor = visitor;
    this.clientAddress = clientAddress;
  }

  override happen(at: number): void {
    if (this.stage === "dialling") this.door.refused(this);
    else super.happen(at);
  }

  queue(): void {
    this.stage = "queued";
  }

  answered(): void {
    this.door.answered(this);
    this.visitor.answered();
  }

  cut(): void {
    this.door.lost(this);
    this.visitor.failed("closed");
  }

  /** It has waited in the balancer's queue for too long. */
  givesUp(): void {
    this.close();
  }

  /** The balancer resets it. */
  close(): void {
    this.leave();
    this.visitor.failed("reset");
  }

  /** The client's doing, or because of what the balancer did. */
  leave(): void {
    if (this.stage === "ended") return;
    this.door.leave(this);
    this.stage = "ended";
  }
}
const NOT_TRIED: readonly Attempt[] = [];

/** No balancer: the one server there is. */
class Baseline implements Door {
  readonly #server: VirtualServer;
  readonly #met: VirtualSetup["met"];

  constructor(server: VirtualServer, met: VirtualSetup["met"]) {
    this.#server = server;
    this.#met = met;
  }

  accept(connection: Passage): void {
    if (!this.#server.isListening) return this.refused(connection);
    this.#met?.(connection.visitor.client, this.#server.place);
    connection.stage = "relaying";
    this.#server.enter(connection);
  }

  refused(connection: Passage): void {
    connection.stage = "ended";
    connection.visitor.failed("connect");
  }

  asks(connection: Passage): void {
    this.#server.ask(connection);
  }

  answered(): void {}

  lost(connection: Passage): void {
    connection.stage = "ended";
  }

  leave(connection: Passage): void {
    this.#server.leave(connection);
  }
}

/** What all balancers of a run have in common. */
type Shared = {
  readonly agenda: Agenda;
  readonly targets: readonly VirtualServer[];
  readonly weights: readonly number[];
  readonly algorithm: keyof typeof algorithms;
  readonly options: ReturnType<typeof optionsOf>;
  readonly met: VirtualSetup["met"];
};

const optionsOf = (words: readonly string[]) => parseCommandLine(BALANCER_OPTIONS, words).values;

/** Servers have addresses, by which `source-hash` tells them apart. */
const specOf = (place: number, weight: number) => ({
  host: `10.0.${place >> 8}.${place & 255}`,
  port: 65433,
  weight,
  backup: false,
  configuredHost: "",
  resolved: true,
});

/** Carries out, without sockets, what the parts of load_balancer.ts decide. */
class VirtualBalancer implements Door {
  readonly #shared: Shared;
  readonly #servers: readonly Server[];
  readonly #targets = new Map<Server, VirtualServer>();
  readonly #places: Places<Passage>;
  readonly #health: HealthWatch;
  readonly #queue: Patience;
  readonly #patients: Patients<Passage>;
  readonly #question: Question;
  readonly #addresses = new Map<string, number>();
  #open = 0;

  constructor(shared: Shared, seed: number) {
    const { agenda, targets, weights, algorithm, options } = shared;
    const { clock } = agenda;
    this.#shared = shared;
    this.#servers = weights.map((weight, place) => newServer(specOf(place, weight), agenda.time));
    for (const [place, server] of this.#servers.entries())
      this.#targets.set(server, targets[place]!);
    this.#question = virtualQuestion(options.check);
    this.#places = new Places(options.serverConnections);
    this.#queue = new Patience(agenda, options.queueTimeout);
    const patience = Math.min(options.retryFor, options.queueTimeout);
    this.#patients = new Patients(patience, { place: (guest) => this.#place(guest) }, clock);
    this.#health = new HealthWatch(healthSettings(options), clock, this.#probe, {
      changed: (server) => this.#healthChanged(server),
      stillDown: (server) => this.#resetConnectionsOf(server),
    });
    const make: (sources: Sources) => Picker = algorithms[algorithm];
    const pick = make({ random: mulberry32(seed), now: clock.now });
    this.#places.setPicker(pick, STICKY.has(algorithm));
    this.#start();
  }

  #start(): void {
    const { agenda, options } = this.#shared;
    for (const [place, server] of this.#servers.entries()) {
      const delay = firstCheckIn(place / this.#servers.length, options.checkInterval);
      this.#health.watch(server, delay);
    }
    weigh(this.#servers, agenda.time, options.slowStart);
    this.#places.setServers(this.#servers);
    const looks = options.slowStart > 0 || options.retryFor > 0;
    if (looks) agenda.clock.after(sweepPeriod(options), () => this.#sweep());
  }

  accept(connection: Passage): void {
    this.#open += 1;
    const { maxConnections = Infinity } = this.#shared.options;
    if (this.#open > maxConnections) return connection.close();
    this.#place(connection);
  }

  #place(connection: Passage): void {
    if (!this.#admitsAddress(connection)) return connection.close();
    const place = this.#places.enter(connection);
    if (place === "none") return this.#noServerFor(connection);
    if (place !== "waits") return this.#dial(connection, place);
    connection.queue();
    this.#queue.add(connection);
  }

  #noServerFor(connection: Passage): void {
    if (!this.#patients.take(connection)) connection.close();
  }

  #admitsAddress(connection: Passage): boolean {
    const most = this.#shared.options.clientConnections;
    if (most === 0 || connection.isCounted) return true;
    const open = this.#addresses.get(connection.clientAddress) ?? 0;
    if (open >= most) return false;
    this.#addresses.set(connection.clientAddress, open + 1);
    connection.isCounted = true;
    return true;
  }

  #dial(connection: Passage, server: Server): void {
    const { agenda } = this.#shared;
    const target = this.#targets.get(server)!;
    connection.server = server;
    connection.dialledAt = agenda.time;
    connection.stage = "dialling";
    if (target.isListening) this.#connected(connection, server, target);
    else agenda.add(agenda.time, connection);
  }

  #connected(connection: Passage, server: Server, target: VirtualServer): void {
    const { dialledAt } = connection;
    const { health } = server;
    connection.stage = "relaying";
    this.#patients.served(connection);
    if (health.refused > 0 || !health.reached)
      this.#health.saw(server, { kind: "dial accepted", dialledAt });
    this.#shared.met?.(connection.visitor.client, target.place);
    this.#beginTurn(connection, server);
    target.enter(connection);
  }

  refused(connection: Passage): void {
    const { server, dialledAt } = connection;
    const { agenda, options } = this.#shared;
    if (server === undefined) return;
    const why = REFUSED.why;
    connection.tried = [...connection.tried, { server, why }];
    server.stats.connectErrors += 1;
    failed(server.cost, dialledAt, options.connectTimeout, agenda.time);
    this.#health.saw(server, { kind: "dial failed", why, dialledAt });
    this.#giveUpPlace(connection);
    connection.queue();
    this.#place(connection);
  }

  #beginTurn(connection: Passage, server: Server): void {
    connection.askedAt = this.#shared.agenda.time;
    asked(server.cost, connection.askedAt);
  }

  asks(connection: Passage): void {
    if (connection.server !== undefined) this.#beginTurn(connection, connection.server);
    connection.target?.ask(connection);
  }

  answered(connection: Passage): void {
    const { server, dialledAt, askedAt } = connection;
    if (server === undefined) return;
    server.health.received += ANSWER_BYTES;
    const isFirst = !connection.hasAnswer;
    connection.hasAnswer = true;
    if (isFirst && this.#health.caresForFirstBytes(server))
      this.#health.saw(server, { kind: "first byte", dialledAt });
    answered(server.cost, askedAt, this.#shared.agenda.time);
    connection.askedAt = -1;
  }

  lost(connection: Passage): void {
    const { server, dialledAt, hasAnswer } = connection;
    const lasted = this.#shared.agenda.time - dialledAt;
    if (server !== undefined && !hasAnswer && lasted < this.#health.hold)
      this.#health.suspect(server);
    connection.leave();
  }

  leave(connection: Passage): void {
    this.#queue.delete(connection);
    this.#places.forget(connection);
    this.#patients.forget(connection);
    if (connection.target !== undefined && !connection.hasLeft) connection.target.leave(connection);
    this.#giveUpPlace(connection);
    this.#open -= 1;
    if (connection.isCounted) this.#releaseAddress(connection.clientAddress);
  }

  #giveUpPlace(connection: Passage): void {
    const { server, askedAt } = connection;
    if (server === undefined) return;
    if (askedAt >= 0) forgotten(server.cost, askedAt);
    connection.askedAt = -1;
    connection.server = undefined;
    this.#places.leave(server);
    this.#admitOne(server);
  }

  #releaseAddress(address: string): void {
    const left = (this.#addresses.get(address) ?? 1) - 1;
    if (left > 0) this.#addresses.set(address, left);
    else this.#addresses.delete(address);
  }

  #admitOne(server?: Server): boolean {
    const admission = this.#places.admit(server);
    if (admission === undefined) return false;
    const { guest, to } = admission;
    this.#queue.delete(guest);
    if (to === "none") this.#noServerFor(guest);
    else this.#dial(guest, to);
    return true;
  }

  #serversChanged(): void {
    weigh(this.#servers, this.#shared.agenda.time, this.#shared.options.slowStart);
    this.#places.refresh();
    while (this.#admitOne()) continue;
  }

  #healthChanged(server: Server): void {
    const { up } = server.health;
    if (up) server.warmSince = this.#shared.agenda.time;
    else this.#resetConnectionsOf(server);
    this.#serversChanged();
    if (up) this.#patients.retry();
  }

  /** With `--on-down reset`, unless the server still gives bytes to somebody. */
  #resetConnectionsOf(server: Server): void {
    const { received, receivedBefore } = server.health;
    if (this.#shared.options.onDown !== "reset" || received > receivedBefore) return;
    for (const call of this.#targets.get(server)?.calls ?? []) {
      if (call instanceof Passage && call.server === server) call.close();
    }
  }

  readonly #probe: Probe = (server, hold, _, report) => {
    const { agenda, options } = this.#shared;
    const call = new CheckCall(options.check, this.#question, report);
    call.begin(this.#targets.get(server)!, agenda.clock, hold, options.checkInterval);
    return () => call.cancel();
  };

  #sweep(): void {
    const { agenda, options } = this.#shared;
    const { slowStart } = options;
    if (slowStart > 0 && weigh(this.#servers, agenda.time, slowStart)) this.#places.refresh();
    this.#patients.retry();
    agenda.clock.after(sweepPeriod(options), () => this.#sweep());
  }
}
const ANSWER_BYTES = 5;

// --- clients ---

/** What a client needs of its run. */
interface Host {
  readonly agenda: Agenda;
  readonly timeouts: Patience;
  readonly reconnect: boolean;
  connect(visitor: Visitor): Passage;
  record(visitor: Visitor, seconds: number): void;
  recordFailure(visitor: Visitor, kind: FailureKind): void;
  gone(visitor: Visitor): void;
}

/** A client that carries out its part of the plan, one request after the other. */
class Visitor implements Waiter, Happening {
  readonly client: number;
  readonly door: Door;
  readonly #host: Host;
  readonly #nextNumber: () => number;
  #left: number;
  /** Requests that were answered or have failed, and how many were answered. */
  made = 0;
  answers = 0;
  until = Infinity;
  before: Waiter | undefined = undefined;
  behind: Waiter | undefined = undefined;
  #since = 0;
  #connection: Passage | undefined = undefined;

  constructor(
    host: Host,
    { client, requests }: { readonly client: number; readonly requests: number },
    door: Door,
    nextNumber: () => number,
  ) {
    this.#host = host;
    this.client = client;
    this.door = door;
    this.#left = requests;
    this.#nextNumber = nextNumber;
  }

  /** It makes the next request of its plan, on a new connection. */
  happen(): void {
    this.#begin();
    const connection = this.#host.connect(this);
    this.#connection = connection;
    this.#ask(connection);
    this.door.accept(connection);
  }

  #begin(): void {
    this.#since = this.#host.agenda.time;
    this.#host.timeouts.add(this);
  }

  #ask(connection: Passage): void {
    connection.isAsking = true;
    connection.number = this.#nextNumber();
  }

  answered(): void {
    const connection = this.#connection;
    this.#host.timeouts.delete(this);
    this.#host.record(this, this.#host.agenda.time - this.#since);
    this.made += 1;
    this.answers += 1;
    this.#left -= 1;
    if (connection === undefined) return;
    if (this.#left === 0) this.#leave(connection);
    else if (this.#host.reconnect) this.#reconnect(connection);
    else this.#goOn(connection);
  }

  #goOn(connection: Passage): void {
    this.#begin();
    this.#ask(connection);
    this.door.asks(connection);
  }

  /** The balancer hears of the new connection before the old one has ended on both sides. */
  #reconnect(old: Passage): void {
    this.happen();
    old.leave();
  }

  #leave(connection: Passage): void {
    connection.leave();
    this.#connection = undefined;
    this.#host.gone(this);
  }

  givesUp(): void {
    this.#connection?.leave();
    this.failed("timeout");
  }

  /** The request failed, and its connection is gone. */
  failed(kind: FailureKind): void {
    this.#host.timeouts.delete(this);
    this.#host.recordFailure(this, kind);
    this.#connection = undefined;
    this.made += 1;
    this.#left -= 1;
    if (this.#left === 0) this.#host.gone(this);
    else this.#host.agenda.add(this.#host.agenda.time, this);
  }
}

/** One run, step by step, so that somebody can look on and end it. */
export class VirtualRun implements Host {
  readonly agenda = new Agenda();
  readonly timeouts: Patience;
  readonly reconnect: boolean;
  readonly #setup: VirtualSetup;
  readonly #doors: readonly Door[];
  readonly #nextDoor: () => number;
  readonly #planned: number;
  /** Each client's answers lie where all requests of those before it end. */
  readonly #times: Float64Array;
  readonly #starts: Float64Array;
  readonly #counts: Uint32Array;
  readonly #firstFailed: number[] = [];
  readonly #errors = noErrors();
  readonly #stages: Record<Stage, number>;
  readonly #recent: number[] = [];
  #firstFailure: string | null = null;
  #answered = 0;
  #arrived = 0;
  #isStopped = false;

  constructor(setup: VirtualSetup) {
    const { plan, timeout, reconnect, balancerSeed } = setup;
    const clients = plan.requests.length;
    this.#setup = setup;
    this.timeouts = new Patience(this.agenda, timeout);
    this.reconnect = reconnect;
    this.#starts = new Float64Array(clients);
    this.#counts = new Uint32Array(clients);
    this.#planned = this.#layOut(plan.requests);
    this.#times = new Float64Array(this.#planned);
    this.#stages = { toCome: clients, waiting: 0, talking: 0, done: 0 };
    // not the balancer's own stream, from which it picks
    const nextSeed = seedsFrom(balancerSeed ^ 0x2545f491);
    this.#nextDoor = mulberry32(nextSeed());
    this.#doors = this.#open(nextSeed);
  }

  #layOut(requests: readonly number[]): number {
    let planned = 0;
    for (let client = 0; client < requests.length; client += 1) {
      this.#starts[client] = planned;
      planned += requests[client]!;
    }
    return planned;
  }

  #open(nextSeed: () => number): Door[] {
    const { entry, servers, met } = this.#setup;
    const algorithm = ALGORITHMS.find((name) => name === entry.algorithm);
    const needed = algorithm === undefined ? servers.slice(0, 1) : servers;
    const sleep = this.#setup.sleep ?? sleepsOf(needed, nextSeed);
    const targets = needed.map(
      ({ slots }, place) => new VirtualServer(this.agenda, place, slots, sleep),
    );
    this.#scheduleFaults(targets.at(-1)!);
    if (algorithm === undefined) return [new Baseline(targets[0]!, met)];
    const shared: Shared = {
      agenda: this.agenda,
      targets,
      weights: needed.map(({ weight }) => weight),
      algorithm,
      options: optionsOf(entry.balancerOptions),
      met,
    };
    return this.#seeds(shared.options.seed, nextSeed).map(
      (seed) => new VirtualBalancer(shared, seed),
    );
  }

  /** One for all, where the entry gives one; else the first has its own as it has beside sockets. */
  #seeds(given: number | undefined, nextSeed: () => number): number[] {
    const { balancers, balancerSeed } = this.#setup;
    return Array.from({ length: balancers }, (_, place) => {
      if (given !== undefined) return given;
      return place === 0 ? balancerSeed : nextSeed();
    });
  }

  #scheduleFaults(last: VirtualServer): void {
    const { fail, hang } = this.#setup;
    const { clock } = this.agenda;
    if (fail) {
      clock.after(fail.from, () => last.die());
      clock.after(fail.to, () => last.restart());
    }
    if (hang) clock.after(hang.from, () => last.hang(hang.to));
  }

  /** Lets at most so many events happen; true when all is over. */
  advance(events: number): boolean {
    const { arrivals } = this.#setup.plan;
    const clients = arrivals.length;
    for (let i = 0; i < events; i += 1) {
      if (this.#stages.done === clients || this.#isStopped) return true;
      const arrival = this.#arrived < clients ? arrivals[this.#arrived]! : Infinity;
      if (arrival <= this.agenda.next) this.#arrive(arrival);
      else this.agenda.step();
    }
    return false;
  }

  #arrive(at: number): void {
    const client = this.#arrived;
    this.#arrived += 1;
    this.agenda.time = at;
    const count = this.#doors.length;
    const place = count === 1 ? 0 : Math.floor(this.#nextDoor() * count);
    const requests = this.#setup.plan.requests[client]!;
    const nextNumber = this.#setup.numbers(client);
    this.#move("toCome", "waiting");
    new Visitor(this, { client, requests }, this.#doors[place]!, nextNumber).happen();
  }

  connect(visitor: Visitor): Passage {
    return new Passage(visitor.door, visitor, this.#setup.addressOf(visitor.client));
  }

  record({ client, answers }: Visitor, seconds: number): void {
    this.#times[this.#starts[client]! + answers] = Math.round(seconds * 1e6) / 1e6;
    this.#counts[client] = answers + 1;
    if (answers === 0) this.#move("waiting", "talking");
    this.#recent[this.#answered % RECENT] = seconds;
    this.#answered += 1;
  }

  recordFailure({ client, made }: Visitor, kind: FailureKind): void {
    this.#errors[kind] += 1;
    if (made === 0) this.#firstFailed.push(client);
    this.#firstFailure ??= this.#failureWords(kind);
  }

  #failureWords(kind: FailureKind): string {
    if (kind === "connect") return "Cannot connect: connection refused";
    if (kind === "timeout") return `No answer within ${this.#setup.timeout} s`;
    if (kind === "reset") return "Lost the connection: connection reset by peer";
    return "The connection was closed before its answer";
  }

  gone({ answers }: Visitor): void {
    this.#move(answers > 0 ? "talking" : "waiting", "done");
  }

  #move(from: Stage, to: Stage): void {
    this.#stages[from] -= 1;
    this.#stages[to] += 1;
  }

  /** Requests in flight fail as interrupted; those that nobody has made yet count as nothing. */
  stop(): void {
    const isOver = this.#stages.done === this.#counts.length;
    if (this.#isStopped || isOver) return;
    this.#isStopped = true;
    this.#errors.interrupted += this.#stages.waiting + this.#stages.talking;
  }

  get progress(): Progress {
    return {
      ...this.#stages,
      planned: this.#planned,
      answered: this.#answered,
      failed: Object.values(this.#errors).reduce((sum, n) => sum + n, 0),
      p50: quantile(
        this.#recent.toSorted((a, b) => a - b),
        0.5,
      ),
      seconds: this.agenda.time,
    };
  }

  observed(): Observed {
    return {
      times: Array.from(this.#counts, (count, client) => this.#timesOf(client, count)),
      planned: this.#planned,
      errors: this.#errors,
      firstFailure: this.#firstFailure,
      firstFailed: this.#firstFailed.toSorted((a, b) => a - b),
      seconds: this.agenda.time,
      interrupted: this.#isStopped,
      tester: { utilization: 0, stall: 0, startLag: 0 },
    };
  }

  #timesOf(client: number, count: number): number[] {
    const start = this.#starts[client]!;
    const times = new Array<number>(count);
    for (let i = 0; i < count; i += 1) times[i] = this.#times[start + i]!;
    return times;
  }
}

/** The sleeps of server.ts; what has no number is drawn from a stream of the server's own. */
function sleepsOf(servers: readonly ServerSetup[], nextSeed: () => number): Sleep {
  const works = servers.map(({ mean, sd, slow }): Work => ({ mean, sd, slow: slow ?? undefined }));
  const streams = servers.map(() => mulberry32(nextSeed()));
  return (place, number, elapsed) => {
    const work = works[place]!;
    if (number !== undefined) return sleepOfNumber(work, number, elapsed);
    return drawSleep(work, streams[place]!, elapsed);
  };
}
