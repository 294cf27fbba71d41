/**
 * Clients of one request each before equal servers, in virtual time: what the pickers do to waiting.
 */
import { mulberry32 } from "../lib.ts";
import { type Algorithm, type Candidate, hash, newCost } from "../load_balancer.ts";
import { drawPlan, seedsFrom, VirtualRun } from "../stress_test.ts";

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
  /** The client of this number asks and is never answered (default: none). */
  readonly isSilent?: (client: number) => boolean;
  /** For all balancers alike: the seed of their pickers (default: each has its own). */
  readonly pickerSeed?: number;
};
/** Per client, in the order of their arrival: seconds until the answer (silent ones have none). */
export type Outcome = { readonly seconds: readonly number[]; readonly served: readonly number[] };

/** Longer than any experiment: who is not answered gives up when all is over. */
const FOR_EVER = 1e6;

export function run(experiment: Experiment): Outcome {
  const { algorithm, clients, rate, slots, service, isSilent, balancers = 1 } = experiment;
  const { seed = 1, pickerSeed } = experiment;
  const served = new Array<number>(experiment.servers).fill(0);
  const nextSeed = seedsFrom(seed);
  const plan = drawPlan(clients, 1, rate, nextSeed);
  const luck = mulberry32(plan.luck);
  const alike = pickerSeed === undefined ? [] : ["--seed", String(pickerSeed)];
  const virtual = new VirtualRun({
    plan,
    numbers: (client) => () => client,
    addressOf: (client) => `10.1.${client >> 8}.${client & 255}`,
    servers: served.map(() => ({ mean: 0, sd: 0, slots, weight: 1, slow: null })),
    entry: { algorithm, balancerOptions: ["--check", "none", ...alike] },
    balancers,
    balancerSeed: nextSeed(),
    timeout: FOR_EVER,
    reconnect: false,
    sleep: (place, client = NaN, time) =>
      isSilent?.(client) ? Infinity : service(luck, place, time),
    met: (_, place) => (served[place]! += 1),
  });
  while (!virtual.advance(1_000_000)) continue;
  return { seconds: virtual.observed().times.map(([seconds = NaN]) => seconds), served };
}
