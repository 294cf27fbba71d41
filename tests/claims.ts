/**
 * How often the verdict is wrong: pairs of set-ups are simulated whose answer is known, and the
 * verdict of generate_graphs.ts is read as a user reads it. As a program, for many pairs:
 *
 *     node --import tsx tests/claims.ts PAIRS [CLIENTS] [RATE] [RUNS]
 */
import { setupOf, type Setup, verdict } from "../generate_graphs.ts";
import { isMain } from "../lib.ts";
import { drawPlan, numbersOf, seedsFrom, VirtualRun } from "../stress_test.ts";

/** What is compared: two algorithms, under the same plan, with the same luck or with another. */
export interface Question {
  readonly algorithms: readonly [string, string];
  readonly luck: "the same" | "another";
  readonly pairs: number;
  readonly clients: number;
  readonly rate: number;
  readonly runs: number;
}

/** A share of pairs each: a difference was claimed; the interval held the true one. */
export interface Answer {
  readonly claimed: number;
  readonly held: number;
  /** By how much the second algorithm is later, over all pairs, in seconds. */
  readonly truth: number;
}

const server = { mean: 0.05, sd: 0.02, slots: 10, weight: 1, slow: null };
const servers = new Array<typeof server>(5).fill(server);

/** The first requests of one run, in seconds. */
function firstsOf(algorithm: string, seed: number, luckOf: number, question: Question): number[] {
  const nextSeed = seedsFrom(seed);
  const plan = drawPlan(question.clients, 5, question.rate, nextSeed);
  const { luck } = drawPlan(1, 5, 1, seedsFrom(luckOf));
  const run = new VirtualRun({
    plan,
    numbers: (client) => numbersOf(luckOf === seed ? plan.luck : luck, client),
    addressOf: () => "127.0.0.1",
    servers,
    entry: { algorithm, balancerOptions: [] },
    balancers: 1,
    balancerSeed: nextSeed(),
    timeout: 30,
    reconnect: false,
  });
  while (!run.advance(1_000_000)) continue;
  return run.observed().times.map(([first]) => first ?? NaN);
}

/** What one file and its runs.json would hold of these runs. */
function measured(name: string, seeds: readonly number[], runs: readonly number[][]): Setup {
  const firsts = runs.flat();
  const times = {
    values: Float64Array.from(firsts),
    starts: Uint32Array.from({ length: firsts.length + 1 }, (_, place) => place),
  };
  return setupOf(name, name, times, {
    session: "one",
    algorithm: name,
    servers: [],
    plan: {},
    runsAsked: runs.length,
    simulated: true,
    runs: runs.map(({ length }, place) => ({
      seed: seeds[place] ?? 0,
      clients: length,
      planned: length,
      answered: length,
      firstFailed: [],
      interrupted: false,
      disturbed: [],
    })),
  });
}

const mean = (values: readonly number[]): number =>
  values.reduce((sum, value) => sum + value, 0) / values.length;

/** Carries out all pairs, and reads each verdict. Seeds are never used twice. */
export function ask(question: Question): Answer {
  const { pairs, runs, luck } = question;
  const [a, b] = question.algorithms;
  const seen: { readonly claims: boolean; readonly low: number; readonly high: number }[] = [];
  const later: number[] = [];
  for (let pair = 0; pair < pairs; pair++) {
    const seeds = Array.from({ length: runs }, (_, run) => 1 + pair * runs + run);
    const luckOf = (seed: number): number => (luck === "the same" ? seed : seed + 1e6);
    const first = seeds.map((seed) => firstsOf(a, seed, seed, question));
    const second = seeds.map((seed) => firstsOf(b, seed, luckOf(seed), question));
    const sentence = verdict([measured("a", seeds, first), measured("b", seeds, second)]);
    const limits = /paired runs (\S+) to (\S+) s/.exec(sentence);
    if (limits === null) throw new Error(sentence);
    const isReversed = mean(second.map(mean)) < mean(first.map(mean));
    const [low, high] = [Number(limits[1]), Number(limits[2])];
    const claims = sentence.includes(" sooner than ");
    seen.push(isReversed ? { claims, low: -high, high: -low } : { claims, low, high });
    later.push(mean(second.map(mean)) - mean(first.map(mean)));
  }
  const truth = a === b ? 0 : mean(later);
  return {
    claimed: seen.filter(({ claims }) => claims).length / pairs,
    held: seen.filter(({ low, high }) => low <= truth && truth <= high).length / pairs,
    truth,
  };
}

function main(): void {
  const [pairs = 200, clients = 1000, rate = 300, runs = 6] = process.argv.slice(2).map(Number);
  const questions = [
    { algorithms: ["round-robin", "round-robin"], luck: "another" },
    { algorithms: ["round-robin", "round-robin"], luck: "the same" },
    { algorithms: ["least-connections", "round-robin"], luck: "another" },
    { algorithms: ["least-connections", "round-robin"], luck: "the same" },
  ] as const;
  for (const question of questions) {
    const { claimed, held, truth } = ask({ ...question, pairs, clients, rate, runs });
    const [a, b] = question.algorithms;
    console.log(
      `${a}, ${b}, ${question.luck} luck: claimed ${(100 * claimed).toFixed(1)} %,`,
      `the interval holds ${truth.toFixed(4)} s in ${(100 * held).toFixed(1)} %`,
    );
  }
}

if (isMain(import.meta)) main();
