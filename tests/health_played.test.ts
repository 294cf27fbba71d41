/**
 * health_played.test.ts - the judge of servers, without a socket and without waiting. First every
 * order of what may be seen of a server, held against a model of the rules. Then servers, clients
 * and checks in virtual time: who is well must never be called down, and who is not must be, soon.
 */
import { suite } from "uvu";
import * as assert from "uvu/assert";
import {
  type CheckResult,
  Health,
  type HealthRules,
  type HealthSettings,
  HealthState,
  learn,
  parseServers,
  type Probe,
  Server,
  type Sight,
} from "../load_balancer.ts";

// ─── The rules, once more ────────────────────────────────────────────────────
// A model that remembers what it has seen, where the code counts. Time goes in steps.

/** One count of clients' failed dials each `SOON` steps. */
const SOON = 4;
const RULES: HealthRules = {
  interval: 3 * SOON,
  fall: 3,
  rise: 2,
  onlyWhoFailed: false,
  clears: "nothing",
};

type By = "time-out" | "close" | "wrong";

class Model {
  up = true;
  since = 0;
  refusals: number[] = [];
  silences: By[] = [];
  passes = 0;
  dialCountedAt = -Infinity;
  /** When a silence began that a client's first byte may refute. */
  refutableAt = Infinity;

  copy(): Model {
    const { refusals, silences } = this;
    return Object.assign(new Model(), this, {
      refusals: [...refusals],
      silences: [...silences],
    });
  }

  see(sight: Sight, now: number, rules: HealthRules): "up" | "down" | undefined {
    if ("dialledAt" in sight) this.#seeClient(sight, now, rules);
    else this.#seeCheck(sight, now, rules);
    const hasFallen = Math.max(this.refusals.length, this.silences.length) >= rules.fall;
    if (this.up && hasFallen) return this.#turn("down", now);
    if (!this.up && this.passes >= rules.rise) return this.#turn("up", now);
    return undefined;
  }

  #turn(way: "up" | "down", now: number): "up" | "down" {
    this.up = way === "up";
    this.since = now;
    return way;
  }

  #seeCheck(
    sight: Exclude<Sight, { dialledAt: number }>,
    now: number,
    { clears }: HealthRules,
  ): void {
    if (sight.kind === "passed" || sight.kind === "answered") this.#endSilence();
    if (sight.kind === "passed") {
      this.refusals = [];
      this.passes += 1;
    }
    if (sight.kind === "queued" && !this.silences.includes("wrong")) this.silences = [];
    if (sight.kind === "refused") this.refusals.push(now);
    if (sight.kind === "silent") {
      this.silences.push(sight.by);
      const isClosed = clears === "a closed check" && sight.by === "close";
      if (isClosed || clears === "any silence") this.refutableAt = now;
    }
    if (sight.kind === "refused" || sight.kind === "silent") this.passes = 0;
  }

  #seeClient(sight: Extract<Sight, { dialledAt: number }>, now: number, rules: HealthRules): void {
    if (!this.up || sight.dialledAt < this.since) return;
    if (sight.kind === "dial accepted") this.refusals = [];
    const isDue = now - this.dialCountedAt >= rules.interval / rules.fall;
    if (sight.kind === "dial failed" && isDue) {
      this.dialCountedAt = now;
      this.refusals.push(now);
      this.passes = 0;
    }
    const refutes = sight.dialledAt >= this.refutableAt && !this.silences.includes("wrong");
    if (sight.kind === "first byte" && refutes) this.#endSilence();
  }

  #endSilence(): void {
    this.silences = [];
    this.refutableAt = Infinity;
  }
}

/** Where an order of sights has led. */
interface Place {
  readonly state: HealthState;
  readonly model: Model;
  readonly now: number;
  /** Failures of whatever kind since the last check that passed, for each question. */
  readonly refused: number;
  readonly silent: number;
  readonly before: Place | undefined;
  readonly sight: Sight | undefined;
}

const CHECKS: readonly Sight[] = [
  { kind: "passed" },
  { kind: "answered" },
  { kind: "queued" },
  { kind: "refused", why: "" },
  { kind: "silent", why: "", by: "time-out" },
  { kind: "silent", why: "", by: "close" },
  { kind: "silent", why: "", by: "wrong" },
];

/** Everything that may be seen next: a client has dialled now, or before something happened. */
function sightsAt({ state, now }: Place): Sight[] {
  const moments = new Set([now, state.since - 1, Math.min(now, state.clearableSince) - 1]);
  const byClients = [...moments].flatMap((dialledAt): Sight[] => [
    { kind: "dial failed", why: "", dialledAt },
    { kind: "dial accepted", dialledAt },
    { kind: "first byte", dialledAt },
  ]);
  return [...CHECKS, ...byClients];
}

/** Takes one step, and holds what was learned against the model. */
function step(from: Place, sight: Sight, seconds: number, rules: HealthRules): Place {
  const state = Object.assign(new HealthState(0), from.state);
  const model = from.model.copy();
  const now = from.now + seconds;
  const isRefusal = sight.kind === "refused" || sight.kind === "dial failed";
  const isPass = sight.kind === "passed";
  const refused = isPass ? 0 : from.refused + Number(isRefusal);
  const silent = isPass ? 0 : from.silent + Number(sight.kind === "silent");
  const place: Place = { state, model, now, refused, silent, before: from, sight };
  const change = learn(state, sight, now, rules);
  const expected = model.see(sight, now, rules);
  if (change !== expected || factsOf(state) !== factsOfModel(model))
    assert.unreachable(
      `${change} ${factsOf(state)}, not ${expected} ${factsOfModel(model)}: ${wayTo(place)}`,
    );
  const isEarly = Math.max(refused, silent) < rules.fall;
  if (change === "down" && isEarly) assert.unreachable(`down too early: ${wayTo(place)}`);
  return place;
}

/** Every sight up to there, with its time. */
function wayTo({ before, sight, now }: Place): string {
  if (before === undefined) return "";
  return `${wayTo(before)}\n  ${now}: ${JSON.stringify(sight)}`;
}

const factsOf = ({ up, since, refused, silent, passed }: HealthState): string =>
  [up, since, refused, silent, passed].join();
const factsOfModel = ({ up, since, refusals, silences, passes }: Model): string =>
  [up, since, refusals.length, silences.length, passes].join();

/** Places with the same key have the same future: long ago is long ago, and many are many. */
function keyOf({ state, now, refused, silent }: Place, { fall, rise }: HealthRules): string {
  const { up, since, clearableSince, dialCountedAt, passed, wrong } = state;
  const counts = [state.refused, state.silent, refused, silent].map((n) => Math.min(n, fall));
  const sinceDial = Math.min(now - dialCountedAt, SOON);
  const order = clearableSince === Infinity ? "never" : Math.sign(clearableSince - since);
  const isFresh = [now === since, now === clearableSince];
  return [up, wrong, ...counts, Math.min(passed, rise), sinceDial, order, isFresh].join();
}

/** Breadth first over all places, as many sights deep. Returns how many places there are. */
function playSights(rules: HealthRules, depth: number): number {
  const state = new HealthState(0);
  const beginning = { model: new Model(), now: 0, refused: 0, silent: 0 };
  let front: Place[] = [{ ...beginning, state, before: undefined, sight: undefined }];
  const known = new Set<string>();
  for (let i = 0; i < depth; i += 1) {
    const next: Place[] = [];
    for (const place of front) {
      for (const reached of stepsFrom(place, rules)) {
        const key = keyOf(reached, rules);
        if (known.has(key)) continue;
        known.add(key);
        next.push(reached);
      }
    }
    front = next;
  }
  return known.size;
}

function* stepsFrom(place: Place, rules: HealthRules): Generator<Place> {
  for (const sight of sightsAt(place)) {
    yield step(place, sight, 1, rules);
    yield step(place, sight, SOON, rules);
  }
}

const sights = suite("every order of sights");

for (const clears of ["nothing", "a closed check", "any silence"] as const)
  sights(`is judged as the rules say, ten deep, when a first byte clears ${clears}`, () => {
    const places = playSights({ ...RULES, clears }, 10);
    assert.ok(places > 500, `only ${places} places`);
  });

sights.run();

// ─── Virtual time ────────────────────────────────────────────────────────────

interface Planned {
  readonly at: number;
  readonly order: number;
  action: () => void;
}

/** Actions in the order of their times; at the same time, in the order in which they were put. */
class Time {
  now = 0;
  #actions: Planned[] = [];
  #count = 0;

  /** Has `action` happen at `at`; the result takes that back. */
  at(at: number, action: () => void): () => void {
    this.#count += 1;
    const item = { at: Math.max(at, this.now), order: this.#count, action };
    this.#put(item);
    return () => {
      item.action = () => undefined;
    };
  }

  in(seconds: number, action: () => void): () => void {
    return this.at(this.now + seconds, action);
  }

  /** Every `seconds`, from now on. */
  every(seconds: number, action: () => void): void {
    this.in(seconds, () => {
      action();
      this.every(seconds, action);
    });
  }

  #put(item: Planned): void {
    const heap = this.#actions;
    let place = heap.push(item) - 1;
    while (place > 0) {
      const above = (place - 1) >> 1;
      if (!isBefore(item, heap[above])) break;
      swap(heap, place, above);
      place = above;
    }
  }

  #take(): Planned | undefined {
    const heap = this.#actions;
    swap(heap, 0, heap.length - 1);
    const first = heap.pop();
    let place = 0;
    for (;;) {
      const below = isBefore(heap[2 * place + 2], heap[2 * place + 1])
        ? 2 * place + 2
        : 2 * place + 1;
      if (!isBefore(heap[below], heap[place])) return first;
      swap(heap, place, below);
      place = below;
    }
  }

  /** Lets time pass up to `end`. */
  run(end: number): void {
    while ((this.#actions[0]?.at ?? Infinity) <= end) {
      const next = this.#take();
      if (next === undefined) break;
      this.now = next.at;
      next.action();
    }
    this.now = end;
  }
}

function isBefore(a: Planned | undefined, b: Planned | undefined): boolean {
  if (a === undefined || b === undefined) return a !== undefined;
  return a.at < b.at || (a.at === b.at && a.order < b.order);
}

function swap<T>(items: T[], one: number, other: number): void {
  const [a, b] = [items[one], items[other]];
  if (a === undefined || b === undefined) return;
  items[one] = b;
  items[other] = a;
}

/** The balancer's loop. While it stands still nothing reaches it. */
class Loop {
  readonly time: Time;
  #standsUntil = 0;

  constructor(time: Time) {
    this.time = time;
  }

  standStill(seconds: number): void {
    this.#standsUntil = this.time.now + seconds;
  }

  get #isStanding(): boolean {
    return this.time.now < this.#standsUntil;
  }

  /** Something comes in from a socket. */
  receive(action: () => void): void {
    if (this.#isStanding) this.time.at(this.#standsUntil, action);
    else action();
  }

  /** A timer, which is told whether it comes late; what came in before it goes first. */
  after(seconds: number, action: (isLate: boolean) => void): () => void {
    return this.#plan(seconds, action, TURN);
  }

  /** The timer of a check: late, it tells nothing, and that at once. */
  judgeAfter(seconds: number, action: (isLate: boolean) => void): () => void {
    return this.#plan(seconds, action, -TURN);
  }

  #plan(seconds: number, action: (isLate: boolean) => void, turn: number): () => void {
    const due = this.time.now + seconds;
    let cancel = this.time.at(due, () => {
      const isLate = this.#standsUntil - due > STOOD_STILL;
      const wake = this.#standsUntil + (isLate ? turn : TURN);
      cancel = this.time.at(this.#isStanding ? wake : due, () => action(isLate));
    });
    return () => cancel();
  }
}
const TURN = 1e-6;
const STOOD_STILL = 0.1;

// ─── Servers ─────────────────────────────────────────────────────────────────
// A process behind a kernel: the kernel accepts up to its backlog, whatever the process does.

/**
 * `dead`: nobody listens. `hung`: the process is stopped. `deaf`: it serves whom it has, and
 * accepts nobody. `shut`: it closes whatever it accepts. `wrong`: it answers nonsense. `lame`: it
 * serves its clients, but what checks ask for hangs.
 */
type Mode = "well" | "dead" | "hung" | "deaf" | "shut" | "wrong" | "lame";

interface Nature {
  readonly backlog: number;
  /** Connections that are served at once, and how long one accept takes. */
  readonly slots: number;
  readonly acceptSeconds: number;
  readonly answerSeconds: number;
  /** It closes a connection that has said nothing for so long. */
  readonly closesSilentAfter: number;
}
const ROOMY: Nature = {
  backlog: 511,
  slots: Infinity,
  acceptSeconds: 0,
  answerSeconds: 0.005,
  closesSilentAfter: Infinity,
};

/** What a peer hears of its connection. */
interface Ear {
  readonly opened: () => void;
  readonly refused: () => void;
  readonly answered: (isRight: boolean) => void;
  readonly closed: () => void;
}

class Machine {
  readonly time: Time;
  readonly nature: Nature;
  mode: Mode = "well";
  line: Visit[] = [];
  served = new Set<Visit>();
  #isAccepting = false;

  constructor(time: Time, nature: Nature) {
    this.time = time;
    this.nature = nature;
  }

  become(mode: Mode): void {
    this.mode = mode;
    if (mode === "dead") {
      const all = [...this.line, ...this.served];
      this.line = [];
      this.served.clear();
      for (const visit of all) visit.beClosed();
    }
    for (const visit of this.served) visit.beServed();
    this.accept();
  }

  visit(ear: Ear): Visit {
    return new Visit(this, ear);
  }

  /** Takes the next one in line, if it can. */
  accept(): void {
    const { nature, mode, line, served } = this;
    if (this.#isAccepting || mode === "hung" || mode === "deaf") return;
    if (served.size >= nature.slots) return;
    const visit = line.shift();
    if (visit === undefined) return;
    this.#isAccepting = true;
    this.time.in(nature.acceptSeconds, () => {
      this.#isAccepting = false;
      this.accept();
    });
    if (visit.isOver) return;
    if (mode === "shut") return visit.beClosed();
    served.add(visit);
    visit.beServed();
  }
}

/** How long after the last time a SYN is sent again that nobody has answered, in seconds. */
const SYN_AGAIN = [1, 2, 4];
const TRIP = 0.0005;

type Words = "nothing" | "question" | "check" | "junk";

class Visit {
  readonly machine: Machine;
  readonly #ear: Ear;
  isOver = false;
  #said: Words = "nothing";
  #isAnswering = false;
  #isIn = false;

  constructor(machine: Machine, ear: Ear) {
    this.machine = machine;
    this.#ear = ear;
    this.#knock(0);
  }

  /** Its SYN arrives, for the first time or again. */
  #knock(before: number): void {
    const { machine } = this;
    if (this.isOver) return;
    if (machine.mode === "dead") {
      this.isOver = true;
      this.#hear(this.#ear.refused);
    } else if (machine.line.length < machine.nature.backlog) {
      this.#isIn = true;
      machine.line.push(this);
      this.#hear(this.#ear.opened);
      machine.time.in(TRIP, () => machine.accept());
    } else {
      const wait = SYN_AGAIN[before];
      if (wait !== undefined) machine.time.in(wait, () => this.#knock(before + 1));
    }
  }

  #hear(news: () => void): void {
    this.machine.time.in(TRIP, news);
  }

  say(words: Words): void {
    if (this.isOver || words === "nothing") return;
    this.#said = words;
    this.beServed();
  }

  /** It goes: its slot is free, though a line is not left before one is at its head. */
  leave(): void {
    this.isOver = true;
    if (this.machine.served.delete(this)) this.machine.accept();
  }

  beClosed(): void {
    if (this.isOver) return;
    this.leave();
    if (this.#isIn) this.#hear(this.#ear.closed);
  }

  /** The process attends to it, if it can. */
  beServed(): void {
    const { machine } = this;
    const { answerSeconds, closesSilentAfter } = machine.nature;
    if (!machine.served.has(this) || machine.mode === "hung" || this.#isAnswering) return;
    if (this.#said === "junk") return this.beClosed();
    if (this.#said === "check" && machine.mode === "lame") return;
    if (this.#said !== "nothing") {
      this.#isAnswering = true;
      machine.time.in(answerSeconds, () => this.#answer());
    } else if (closesSilentAfter < Infinity) {
      machine.time.in(closesSilentAfter, () => this.#closeIfSilent());
    }
  }

  #answer(): void {
    this.#isAnswering = false;
    const { machine } = this;
    if (this.isOver || machine.mode === "hung") return;
    this.#said = "nothing";
    const isRight = machine.mode !== "wrong";
    this.#hear(() => this.#ear.answered(isRight));
  }

  #closeIfSilent(): void {
    if (this.#said === "nothing" && this.machine.mode !== "hung") this.beClosed();
  }
}

// ─── The balancer's part ─────────────────────────────────────────────────────
// Checks as `runCheck` does them, and clients' connections as far as health hears of them.

type Check = "tcp" | "none" | "ping" | "asking" | "elsewhere";

const TIMES = { interval: 2, fall: 3, rise: 2 } as const;
const CONNECT_TIMEOUT = 5;
const BARE = { ...TIMES, asks: false, elsewhere: false, clears: "any silence" } as const;
const ASKING = { ...TIMES, asks: true, onlyWhoFailed: false } as const;
const SETTINGS: Readonly<Record<Check, HealthSettings>> = {
  tcp: { ...BARE, onlyWhoFailed: false },
  none: { ...BARE, onlyWhoFailed: true },
  ping: { ...ASKING, elsewhere: false, clears: "a closed check" },
  asking: { ...ASKING, elsewhere: false, clears: "nothing" },
  elsewhere: { ...ASKING, elsewhere: true, clears: "nothing" },
};

interface Change {
  readonly at: number;
  readonly up: boolean;
}

const PASSED: CheckResult = { kind: "passed" };

interface Question {
  readonly asks: boolean;
  readonly hold: number;
}

/** One check of one machine, with the time-outs of `runCheck`. */
class Call {
  readonly #loop: Loop;
  readonly #question: Question;
  readonly #report: (result: CheckResult) => void;
  readonly #deadline: number;
  readonly #visit: Visit;
  #cancelTimer: () => void = () => undefined;
  #isOver = false;

  constructor(
    loop: Loop,
    machine: Machine,
    question: Question,
    report: (result: CheckResult) => void,
  ) {
    this.#loop = loop;
    this.#question = question;
    this.#report = report;
    this.#deadline = loop.time.now + TIMES.interval;
    const connectSeconds = Math.min(CONNECT_TIMEOUT, TIMES.interval);
    this.#wait(connectSeconds, { kind: "refused", why: "late", code: "" });
    this.#visit = machine.visit({
      refused: () => this.#hear({ kind: "refused", why: "refused", code: "ECONNREFUSED" }),
      closed: () => this.#hear({ kind: "silent", why: "closed", by: "close" }),
      answered: (isRight) =>
        this.#hear(isRight ? PASSED : { kind: "silent", why: "wrong", by: "wrong" }),
      opened: () => loop.receive(() => this.#opened()),
    });
  }

  cancel(): void {
    this.#isOver = true;
    this.#cancelTimer();
    this.#visit.leave();
  }

  #hear(result: CheckResult): void {
    this.#loop.receive(() => this.#end(result));
  }

  #end(result: CheckResult): void {
    if (this.#isOver) return;
    this.cancel();
    this.#report(result);
  }

  #wait(seconds: number, verdict: CheckResult): void {
    this.#cancelTimer();
    this.#cancelTimer = this.#loop.judgeAfter(seconds, (isLate) =>
      this.#end(isLate ? { kind: "late" } : verdict),
    );
  }

  #opened(): void {
    const { asks, hold } = this.#question;
    if (this.#isOver) return;
    if (!asks && hold === 0) return this.#end(PASSED);
    if (!asks) return this.#wait(hold, PASSED);
    this.#visit.say("check");
    const left = Math.max(0, this.#deadline - this.#loop.time.now);
    this.#wait(left, { kind: "silent", why: "late", by: "time-out" });
  }
}

interface Manners {
  readonly says: "nothing" | "question" | "junk";
  /** It gives up a dial that takes longer, in seconds. */
  readonly patience?: number;
  /** How long it stays when it has been answered. */
  readonly stays?: number;
}

/** A client's connection, as far as health hears of it. */
class Client {
  readonly #world: World;
  readonly #manners: Manners;
  readonly #dialledAt: number;
  readonly #visit: Visit;
  readonly #cancelTimer: () => void;
  #connectedAt = Infinity;
  #hasByte = false;
  #isOver = false;

  constructor(world: World, manners: Manners) {
    const { loop, time, machine } = world;
    const { patience = Infinity } = manners;
    this.#world = world;
    this.#manners = manners;
    this.#dialledAt = time.now;
    this.#cancelTimer = loop.after(CONNECT_TIMEOUT, (isLate) => this.#timedOut(isLate));
    this.#visit = machine.visit({
      refused: () => loop.receive(() => this.#failed()),
      opened: () => loop.receive(() => this.#opened()),
      answered: () => loop.receive(() => this.#answered()),
      closed: () => loop.receive(() => this.#closed()),
    });
    if (patience < Infinity) time.in(patience, () => loop.receive(() => this.#giveUp(patience)));
  }

  ask(): void {
    this.#visit.say("question");
  }

  leave(): void {
    this.#isOver = true;
    this.#cancelTimer();
    this.#visit.leave();
  }

  #timedOut(isLate: boolean): void {
    if (this.#connectedAt < Infinity) return;
    if (isLate) this.leave();
    else this.#failed();
  }

  #failed(): void {
    const { health, server } = this.#world;
    if (this.#isOver) return;
    this.leave();
    health.saw(server, { kind: "dial failed", why: "", dialledAt: this.#dialledAt });
  }

  #opened(): void {
    const { health, server, time } = this.#world;
    const { says } = this.#manners;
    if (this.#isOver) return;
    this.#connectedAt = time.now;
    if (server.health.refused > 0 || !server.health.reached)
      health.saw(server, { kind: "dial accepted", dialledAt: this.#dialledAt });
    this.#visit.say(says);
  }

  #answered(): void {
    const { health, server, time } = this.#world;
    const { stays = 0 } = this.#manners;
    if (this.#isOver) return;
    if (!this.#hasByte && health.caresForFirstBytes(server))
      health.saw(server, { kind: "first byte", dialledAt: this.#dialledAt });
    this.#hasByte = true;
    if (stays < Infinity) time.in(stays, () => this.leave());
  }

  #closed(): void {
    const { health, server, time } = this.#world;
    if (this.#isOver) return;
    this.leave();
    const isEarly = time.now - this.#connectedAt < health.hold;
    if (!this.#hasByte && isEarly) health.suspect(server);
  }

  #giveUp(waited: number): void {
    const { health, server } = this.#world;
    if (this.#isOver || this.#connectedAt < Infinity) return;
    this.leave();
    if (waited > health.hold) health.suspect(server);
  }
}

interface Change {
  readonly at: number;
  readonly up: boolean;
}

/** One server behind a balancer. Checks of the kind `elsewhere` go to its agent. */
class World {
  readonly time = new Time();
  readonly loop = new Loop(this.time);
  readonly machine: Machine;
  readonly agent: Machine;
  readonly server: Server;
  readonly health: Health;
  readonly changes: Change[] = [];
  /** When each check began. */
  readonly begun: number[] = [];
  /** The most failures in a row that it was ever blamed for. */
  mostBlame = 0;
  /** Failed checks of it while it was down. */
  stillDown = 0;
  /** The balancer has no descriptor left for a check. */
  isShort = false;
  readonly #settings: HealthSettings;
  #checksNow = 0;

  constructor(check: Check, nature: Partial<Nature> = {}, rules: Partial<HealthRules> = {}) {
    const { time, loop } = this;
    const [spec] = parseServers(["127.0.0.1:1"]);
    if (spec === undefined) throw new Error("no server");
    this.#settings = { ...SETTINGS[check], ...rules };
    this.machine = new Machine(time, { ...ROOMY, ...nature });
    this.agent = new Machine(time, { ...ROOMY, answerSeconds: this.machine.nature.answerSeconds });
    this.server = new Server(spec, 0);
    const clock = {
      now: () => time.now,
      after: (seconds: number, action: () => void) => loop.after(seconds, action),
    };
    this.health = new Health(this.#settings, clock, this.#probe, {
      changed: ({ health }) => this.changes.push({ at: time.now, up: health.up }),
      stillDown: () => {
        this.stillDown += 1;
      },
    });
    this.health.watch(this.server, 0);
  }

  readonly #probe: Probe = (_, hold, beside, report) => {
    const { asks, elsewhere } = this.#settings;
    this.begun.push(this.time.now);
    this.#checksNow += 1;
    assert.is(this.#checksNow, 1, "two checks of a server at once");
    const done = (result: CheckResult): void => {
      const { health } = this.server;
      this.#checksNow -= 1;
      report(result);
      this.mostBlame = Math.max(this.mostBlame, health.refused, health.silent);
    };
    if (this.isShort) return this.time.in(TRIP, () => done({ kind: "short" }));
    if (elsewhere) return this.#callAgent(hold, beside, done);
    const call = new Call(this.loop, this.machine, { asks, hold }, done);
    return () => call.cancel();
  };

  /** Asks the agent, and beside it the server's own port whether it accepts. */
  #callAgent(hold: number, beside: boolean, done: (result: CheckResult) => void): () => void {
    const { loop, agent, machine } = this;
    const results: CheckResult[] = [];
    const take = (result: CheckResult): void => {
      results.push(result);
      if (results.length === calls.length) done(worstOf(results));
    };
    const calls = [
      new Call(loop, agent, { asks: true, hold: 0 }, (result) => take(asSilence(result))),
    ];
    if (beside) calls.push(new Call(loop, machine, { asks: false, hold }, take));
    return () => calls.forEach((call) => call.cancel());
  }

  /** `count` clients come within `seconds`; nobody does while the server is down. */
  crowd(count: number, seconds: number, manners: Manners): void {
    for (let i = 0; i < count; i += 1)
      this.time.in((i * seconds) / count, () => this.come(manners));
  }

  come(manners: Manners): Client | undefined {
    return this.server.health.up ? new Client(this, manners) : undefined;
  }
}

const worstOf = (results: readonly CheckResult[]): CheckResult =>
  results.find(({ kind }) => kind === "refused") ??
  results.find(({ kind }) => kind !== "passed") ??
  PASSED;

/** At another port a check cannot tell whether the server accepts. */
const asSilence = (result: CheckResult): CheckResult =>
  result.kind === "refused" ? { kind: "silent", why: result.why, by: "time-out" } : result;

/** The everyday: clients who ask and go, some who say nothing, some who talk nonsense. */
function everyday(world: World): void {
  world.time.every(1, () => {
    world.crowd(12, 1, { says: "question" });
    world.crowd(2, 1, { says: "nothing" });
    world.crowd(2, 1, { says: "junk" });
  });
}

// ─── Checks that tell nothing ────────────────────────────────────────────────

const telling = suite("a check that tells nothing");

interface Asked {
  readonly at: number;
  readonly hold: number;
  readonly report: (result: CheckResult) => void;
}

/** A server whose checks the test answers itself. */
function byHand() {
  const time = new Time();
  const asked: Asked[] = [];
  const probe: Probe = (_, hold, __, report) => {
    asked.push({ at: time.now, hold, report });
    return () => undefined;
  };
  const clock = {
    now: () => time.now,
    after: (seconds: number, action: () => void) => time.in(seconds, action),
  };
  const silent = { changed: () => undefined, stillDown: () => undefined };
  const health = new Health(SETTINGS.tcp, clock, probe, silent);
  const server = new Server(parseServers(["127.0.0.1:1"])[0]!, 0);
  health.watch(server, 0);
  time.run(0);
  return { time, asked, health, server };
}

telling("is repeated at once when we stood still, and in its time when we ran short", () => {
  const { time, asked } = byHand();
  time.run(1);
  asked[0]?.report({ kind: "late" });
  time.run(1);
  asked[1]?.report({ kind: "short" });
  time.run(4);
  assert.equal(
    asked.map(({ at }) => at),
    [0, 1, 1 + TIMES.interval],
  );
});

telling("leaves a suspicion as it was: the next check looks as closely", () => {
  const { time, asked, health, server } = byHand();
  asked[0]?.report(PASSED);
  health.suspect(server);
  time.run(0);
  asked[1]?.report({ kind: "short" });
  time.run(TIMES.interval);
  asked[2]?.report(PASSED);
  time.run(2 * TIMES.interval);
  assert.equal(
    asked.map(({ hold }) => hold),
    [0, health.hold, health.hold, 0],
  );
});

telling.run();

// ─── Who is well ─────────────────────────────────────────────────────────────

const CHECKS_OF_ALL: readonly Check[] = ["tcp", "none", "ping", "asking", "elsewhere"];

const well = suite("a server that is well");

interface Trial {
  readonly name: string;
  readonly nature?: Partial<Nature>;
  readonly seconds: number;
  readonly happen: (world: World) => void;
}

const TRIALS: readonly Trial[] = [
  { name: "when nobody comes", seconds: 60, happen: () => undefined },
  { name: "on an ordinary day", seconds: 60, happen: everyday },
  {
    name: "among clients who talk nonsense",
    seconds: 30,
    happen: (world) => world.time.every(1, () => world.crowd(60, 0.1, { says: "junk" })),
  },
  {
    name: "when it closes connections that are silent for half a second",
    nature: { closesSilentAfter: 0.5 },
    seconds: 60,
    happen: (world) => world.crowd(600, 60, { says: "nothing" }),
  },
  {
    name: "when it closes silent connections a moment after a check would have gone",
    nature: { closesSilentAfter: 0.25 },
    seconds: 60,
    happen: (world) => world.crowd(600, 60, { says: "nothing" }),
  },
  {
    name: "under a crowd that its kernel cannot take in",
    nature: { backlog: 5, acceptSeconds: 0.003 },
    seconds: 20,
    happen: (world) => {
      world.time.every(5, () => world.crowd(1500, 0.1, { says: "question" }));
    },
  },
  {
    name: "under more clients than it can ever serve",
    nature: { backlog: 5, acceptSeconds: 0.01 },
    seconds: 20,
    happen: (world) => {
      world.time.every(1, () => world.crowd(200, 1, { says: "question" }));
    },
  },
  {
    name: "among clients who give up their dials",
    nature: { backlog: 5, acceptSeconds: 0.01 },
    seconds: 20,
    happen: (world) => {
      world.time.every(1, () => world.crowd(200, 0.5, { says: "question", patience: 0.3 }));
    },
  },
  {
    name: "when all its slots are taken and its line is long, but moves",
    nature: { slots: 5 },
    seconds: 60,
    happen: (world) => {
      world.time.every(1, () => world.crowd(12, 1, { says: "question", stays: 0.5 }));
    },
  },
  {
    name: "when the balancer stands still",
    nature: { answerSeconds: 0.6 },
    seconds: 60,
    happen: (world) => {
      everyday(world);
      for (const [i, seconds] of [1.3, 1.5, 2.1, 3, 8, 5, 1.9].entries())
        world.time.in(3 + 7.7 * i, () => world.loop.standStill(seconds));
    },
  },
  {
    name: "when the balancer stands still again and again",
    nature: { answerSeconds: 0.6 },
    seconds: 60,
    happen: (world) => {
      everyday(world);
      world.time.every(1.7, () => world.loop.standStill(1.3));
    },
  },
  {
    name: "when the balancer hardly ever moves",
    nature: { answerSeconds: 0.6 },
    seconds: 60,
    happen: (world) => {
      everyday(world);
      world.time.every(2.8, () => world.loop.standStill(2.5));
    },
  },
  {
    name: "when the balancer runs out of descriptors",
    seconds: 60,
    happen: (world) => {
      everyday(world);
      world.isShort = true;
    },
  },
];

for (const { name, nature, seconds, happen } of TRIALS)
  well(`stays up ${name}`, () => {
    for (const check of CHECKS_OF_ALL) {
      const world = new World(check, nature);
      happen(world);
      world.time.run(seconds);
      assert.equal(world.changes, [], check);
    }
  });

well("is not checked with none", () => {
  const world = new World("none");
  world.time.every(1, () => world.crowd(20, 1, { says: "question" }));
  world.time.run(60);
  assert.is(world.begun.length, 0);
});

well("is checked once an interval, however many clients it closes at once", () => {
  for (const check of CHECKS_OF_ALL) {
    const world = new World(check);
    world.crowd(3000, 60, { says: "junk" });
    world.time.run(60);
    assert.ok(world.begun.length <= 31, `${world.begun.length} checks, ${check}`);
  }
});

well("is not blamed once for a line that moves", () => {
  for (const check of ["ping", "asking"] as const) {
    const world = new World(check, { slots: 5 });
    world.time.every(1, () => world.crowd(12, 1, { says: "question", stays: 0.5 }));
    world.time.run(60);
    assert.ok(world.server.stats.checkFailures > 5, "the line is never long");
    assert.is(world.mostBlame, 0, check);
  }
});

well("is checked an interval after the last check began, and sooner while one fails", () => {
  const world = new World("ping", { answerSeconds: 0.6 });
  world.time.at(3.9, () => world.machine.become("dead"));
  world.time.at(4.1, () => world.machine.become("well"));
  world.time.run(9);
  const soon = 4 + TIMES.interval / TIMES.fall;
  assert.equal(world.begun.map(round), [0, 2, 4, soon, soon + 2, soon + 4].map(round));
});

well("is checked once after a dial that failed, with none", () => {
  const world = new World("none");
  world.time.at(3, () => world.machine.become("dead"));
  world.time.at(3.05, () => void world.come({ says: "question" }));
  world.time.at(3.1, () => world.machine.become("well"));
  world.time.run(20);
  assert.equal(world.begun.map(round), [
    round(3.05 + (2 * TRIP) / 2 + TIMES.interval / TIMES.fall),
  ]);
  assert.is(world.server.health.refused, 0);
});

const round = (seconds: number): number => Math.round(seconds * 100) / 100;

well.run();

// ─── Who is not ──────────────────────────────────────────────────────────────

const NOTICED = TIMES.fall * TIMES.interval + TIMES.interval;
const BACK = TIMES.rise * TIMES.interval + TIMES.interval;
/** A kernel that goes on accepting has first to be full, and its clients must have waited. */
const FILLED = CONNECT_TIMEOUT + 1;
const FAULT = { from: 7, to: 26, end: 36 } as const;

interface Fault {
  readonly mode: Mode;
  /** The checks that can see it, and how much longer they may take for that. */
  readonly seen: Partial<Record<Check, number>>;
}

const FAULTS: readonly Fault[] = [
  { mode: "dead", seen: { tcp: 0, none: 0, ping: 0, asking: 0, elsewhere: 0 } },
  { mode: "hung", seen: { tcp: 1, none: FILLED, ping: 0, asking: 0, elsewhere: FILLED } },
  { mode: "deaf", seen: { tcp: 1, none: FILLED, ping: 0, asking: 0, elsewhere: FILLED } },
  { mode: "shut", seen: { tcp: 0, none: 0, ping: 0, asking: 0 } },
  { mode: "wrong", seen: { ping: 0, asking: 0 } },
  { mode: "lame", seen: { ping: 0, asking: 0 } },
];

/** Where in the interval of its checks the fault begins and ends. */
const PHASES = [0, 0.7, 1.99];

/** Down once, in time, and up once, in time. */
function assertNoticed({ changes }: World, from: number, to: number, noticed: number): void {
  const [down, up] = changes;
  const times = JSON.stringify(changes);
  assert.equal(
    changes.map((change) => change.up),
    [false, true],
    `${times}`,
  );
  assert.ok(down && down.at >= from && down.at <= from + noticed, `down at ${times}`);
  assert.ok(up && up.at >= to && up.at <= to + BACK, `up at ${times}`);
}

function* faultsSeen(): Generator<readonly [Fault, Check, number]> {
  for (const fault of FAULTS) {
    for (const check of CHECKS_OF_ALL) {
      const extra = fault.seen[check];
      if (extra !== undefined) yield [fault, check, extra];
    }
  }
}

const ill = suite("a server with a fault");

for (const [{ mode }, check, extra] of faultsSeen())
  ill(`goes down in time and comes back in time: ${mode}, with ${check}`, () => {
    for (const phase of PHASES) {
      const world = new World(check, { backlog: 5 });
      const { from, to, end } = FAULT;
      everyday(world);
      world.time.at(from + phase, () => world.machine.become(mode));
      world.time.at(to + phase, () => world.machine.become("well"));
      world.time.run(end);
      assertNoticed(world, from + phase, to + phase, NOTICED + extra);
    }
  });

ill("goes down in time when no client comes", () => {
  for (const check of ["tcp", "ping", "asking"] as const) {
    const world = new World(check);
    world.time.at(FAULT.from, () => world.machine.become("dead"));
    world.time.at(FAULT.to, () => world.machine.become("well"));
    world.time.run(FAULT.end);
    assertNoticed(world, FAULT.from, FAULT.to, NOTICED);
  }
});

for (const mode of ["dead", "hung", "deaf", "wrong"] as const)
  ill(`goes down in time and comes back in time: its agent ${mode}`, () => {
    for (const phase of PHASES) {
      const world = new World("elsewhere");
      everyday(world);
      world.time.at(FAULT.from + phase, () => world.agent.become(mode));
      world.time.at(FAULT.to + phase, () => world.agent.become("well"));
      world.time.run(FAULT.end);
      assertNoticed(world, FAULT.from + phase, FAULT.to + phase, NOTICED);
    }
  });

ill("goes down in time though it goes on serving whom it has accepted", () => {
  for (const [check, extra] of [
    ["tcp", 1],
    ["ping", 0],
    ["asking", 0],
    ["none", FILLED],
  ] as const) {
    const world = new World(check, { backlog: 5 });
    const { time } = world;
    const chats = Array.from({ length: 60 }, () =>
      world.come({ says: "nothing", stays: Infinity }),
    );
    chats.slice(0, 10).forEach((chat) => time.every(0.5, () => chat?.ask()));
    chats.slice(10).forEach((chat, i) => time.at(FAULT.from + i, () => chat?.ask()));
    everyday(world);
    time.at(FAULT.from, () => world.machine.become("deaf"));
    time.at(FAULT.to, () => world.machine.become("well"));
    time.run(FAULT.end);
    assertNoticed(world, FAULT.from, FAULT.to, NOTICED + extra);
  }
});

ill("is not taken for one that was reached because its agent was asked", () => {
  const world = new World("elsewhere");
  world.machine.become("dead");
  world.agent.become("dead");
  world.time.run(3);
  assert.not(world.server.health.reached);
});

ill("goes down soon after the first check that fails, when no client comes", () => {
  const world = new World("tcp");
  world.time.at(4.1, () => world.machine.become("dead"));
  world.time.run(20);
  const [down] = world.changes;
  assert.ok(down && down.at < 6 + TIMES.interval, `down at ${down?.at}`);
});

ill("goes down with none after a single client's dial has failed", () => {
  const world = new World("none");
  world.time.at(4, () => world.machine.become("dead"));
  world.time.at(5, () => void world.come({ says: "question" }));
  world.time.run(20);
  const [down] = world.changes;
  assert.ok(down && down.at < 5 + NOTICED, `down at ${down?.at}`);
});

ill("is not brought up by its agent, which was asked before it fell", () => {
  const world = new World("elsewhere", { answerSeconds: 1.9 }, { rise: 1 });
  world.time.every(0.1, () => world.come({ says: "question" }));
  world.time.at(6.05, () => world.machine.become("dead")); // a check has just begun
  world.time.run(FAULT.to);
  assert.is(world.changes.length, 1);
});

ill(
  "is told of at each check that fails while it is down, not at the one that took it down",
  () => {
    const world = new World("tcp");
    world.time.at(5, () => world.machine.become("dead"));
    world.time.run(20);
    const [down] = world.changes;
    const later = world.begun.filter((at) => down !== undefined && at > down.at);
    assert.ok(later.length > 3);
    assert.is(world.stillDown, later.length);
  },
);

ill("goes down in time when the balancer has descriptors again", () => {
  const world = new World("ping");
  world.isShort = true;
  world.time.at(9, () => {
    world.isShort = false;
    world.machine.become("hung");
  });
  world.time.run(30);
  const [down] = world.changes;
  assert.ok(down && down.at > 9 && down.at < 9 + NOTICED, `down at ${down?.at}`);
});

ill("goes down and comes back each time that it is started again", () => {
  for (const check of CHECKS_OF_ALL) {
    const world = new World(check);
    everyday(world);
    for (const from of [15, 55, 95]) {
      world.time.at(from, () => world.machine.become("dead"));
      world.time.at(from + 20, () => world.machine.become("well"));
    }
    world.time.run(130);
    const states = world.changes.map(({ up }) => up);
    assert.equal(states, [false, true, false, true, false, true], check);
  }
});

ill("goes down in time though the balancer stands still now and then", () => {
  for (const check of ["tcp", "ping", "asking"] as const) {
    const world = new World(check, { answerSeconds: 0.6 });
    world.time.every(6.1, () => world.loop.standStill(2.5));
    world.time.at(FAULT.from, () => world.machine.become("dead"));
    world.time.at(FAULT.to, () => world.machine.become("well"));
    world.time.run(FAULT.end);
    assertNoticed(world, FAULT.from, FAULT.to, NOTICED + 2.5);
  }
});

ill.run();
