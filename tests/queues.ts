/**
 * Servers, balancers and clients on a clock that jumps: what the pickers do to waiting, without a
 * socket. Each server has slots; who finds none free queues there, first come, first served.
 */
import { mulberry32 } from "../lib.ts";
import {
  type Algorithm,
  algorithms,
  answered,
  asked,
  type Candidate,
  hash,
  newCost,
  type Picker,
} from "../load_balancer.ts";

/** A server as a picker sees it, of which nothing is known yet. */
export function candidate(name: string, weight = 1): Candidate {
  return {
    name,
    hash: hash(name),
    weight,
    open: 0,
    credit: 0,
    creditor: undefined,
    cost: newCost(),
  };
}

/** Where a list keeps its least: a binary heap. */
class Heap<T> {
  readonly #items: { readonly at: number; readonly value: T }[] = [];

  push(at: number, value: T): void {
    const item = { at, value };
    let place = this.#items.push(item) - 1;
    while (place > 0) {
      const above = (place - 1) >> 1;
      const other = this.#items[above]!;
      if (other.at <= at) break;
      this.#items[place] = other;
      place = above;
    }
    this.#items[place] = item;
  }

  pop(): { readonly at: number; readonly value: T } | undefined {
    const least = this.#items[0];
    const last = this.#items.pop();
    if (last === undefined || last === least) return least;
    let place = 0;
    for (let below = 1; below < this.#items.length; below = 2 * place + 1) {
      const right = this.#items[below + 1];
      if (right !== undefined && right.at < this.#items[below]!.at) below += 1;
      if (this.#items[below]!.at >= last.at) break;
      this.#items[place] = this.#items[below]!;
      place = below;
    }
    this.#items[place] = last;
    return least;
  }
}

export type Experiment = {
  readonly algorithm: Algorithm;
  readonly servers: number;
  readonly slots: number;
  /** Clients a second, with exponential times between them, and how many there are. */
  readonly rate: number;
  readonly clients: number;
  /** What a request takes on `server` at `time`, in seconds; Infinity: it is never answered. */
  readonly service: (random: () => number, server: number, time: number) => number;
  /** Balancers that do not know of each other, of which each client meets one (default 1). */
  readonly balancers?: number;
  readonly seed?: number;
  /** The client of this number sends one byte and waits for ever (default: none does). */
  readonly isSilent?: (client: number) => boolean;
  /** For all balancers alike: the seed of their pickers (default: each has its own). */
  readonly pickerSeed?: number;
  /** What is told of turns; for comparisons. */
  readonly learn?: Learn;
  readonly make?: (name: string) => Candidate;
  readonly picker?: (random: () => number, now: () => number) => Picker;
};
export type Learn = {
  readonly asked: (server: Candidate, now: number) => void;
  readonly answered: (server: Candidate, began: number, now: number) => void;
};
/** Per client, in the order of their arrival: seconds until the answer (silent ones have none). */
export type Outcome = { readonly seconds: Float64Array; readonly served: number[] };

type Visit = {
  readonly client: number;
  readonly arrived: number;
  readonly server: number;
  readonly seen: Candidate;
};
const LEARN: Learn = {
  asked: ({ cost }, now) => asked(cost, now),
  answered: ({ cost }, began, now) => answered(cost, began, now),
};

export function run(experiment: Experiment): Outcome {
  const { algorithm, clients, rate, slots, seed = 1, learn = LEARN } = experiment;
  const { balancers = 1, make = candidate } = experiment;
  let time = 0;
  const now = (): number => time;
  // a stream for each purpose: a pick must not know the service times
  const random = mulberry32(seed);
  const luck = mulberry32(seed + 1_000_000);
  const makePicker =
    experiment.picker ?? ((draw, clock) => algorithms[algorithm]({ random: draw, now: clock }));
  const hosts = Array.from({ length: balancers }, (_, i) => {
    const servers = Array.from({ length: experiment.servers }, (__, j) => make(`10.0.0.${j}:80`));
    const pick = makePicker(mulberry32(experiment.pickerSeed ?? seed + 7919 * (i + 1)), now);
    return { servers, pick, places: new Map(servers.map((server, j) => [server, j])) };
  });
  const free = new Array<number>(experiment.servers).fill(slots);
  const queues = Array.from({ length: experiment.servers }, (): Visit[] => []);
  const served = new Array<number>(experiment.servers).fill(0);
  const seconds = new Float64Array(clients).fill(NaN);
  const ends = new Heap<Visit>();

  function begin(visit: Visit): void {
    free[visit.server]! -= 1;
    const isSilent = experiment.isSilent?.(visit.client) ?? false;
    const stay = isSilent ? Infinity : experiment.service(luck, visit.server, time);
    if (stay < Infinity) ends.push(time + stay, visit);
  }

  function end({ client, arrived, server, seen }: Visit): void {
    seconds[client] = time - arrived;
    seen.open -= 1;
    learn.answered(seen, arrived, time);
    free[server]! += 1;
    const next = queues[server]!.shift();
    if (next !== undefined) begin(next);
  }

  function arrive(client: number): void {
    const host = hosts[balancers === 1 ? 0 : Math.floor(random() * balancers)]!;
    const seen = host.pick(host.servers, `10.1.${client >> 8}.${client & 255}`);
    const server = host.places.get(seen)!;
    const visit = { client, arrived: time, server, seen };
    served[server]! += 1;
    seen.open += 1;
    learn.asked(seen, time);
    if (free[server]! > 0) begin(visit);
    else queues[server]!.push(visit);
  }

  let client = 0;
  let nextEnd = ends.pop();
  let arrival = -Math.log(1 - random()) / rate;
  while (client < clients || nextEnd !== undefined) {
    if (nextEnd !== undefined && (client === clients || nextEnd.at <= arrival)) {
      time = nextEnd.at;
      end(nextEnd.value);
      nextEnd = ends.pop();
      continue;
    }
    time = arrival;
    if (nextEnd !== undefined) ends.push(nextEnd.at, nextEnd.value);
    arrive(client);
    nextEnd = ends.pop();
    client += 1;
    arrival += -Math.log(1 - random()) / rate;
  }
  return { seconds, served };
}
