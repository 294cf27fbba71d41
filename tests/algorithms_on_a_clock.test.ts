/**
 * What the algorithms do to waiting before many balancers, and with clients and servers that behave
 * badly, in virtual time. How they stand to queueing theory is in simulate.test.ts.
 */
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { quantile } from "../lib.ts";
import { type Algorithm, ALGORITHMS } from "../load_balancer.ts";
import { type Experiment, type Outcome, run } from "./queues.ts";

/** Normal, redrawn while it is negative. */
function normal(random: () => number, mean: number, sd: number): number {
  const polar = Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());
  const value = mean + sd * polar;
  return value < 0 ? normal(random, mean, sd) : value;
}
/** The times of those who were answered, in order. */
const answers = ({ seconds }: Outcome): number[] =>
  [...seconds].filter((value) => !Number.isNaN(value)).sort((a, b) => a - b);
/** The share of all but the `silent` clients who were answered within 0.1 s. */
const inTime = (outcome: Outcome, silent = 0): number =>
  answers(outcome).filter((value) => value <= 0.1).length / (outcome.seconds.length - silent);
function mean(values: readonly number[]): number {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}

// ─── Many balancers ──────────────────────────────────────────────────────────

const step = suite("a hundred balancers");

/** Mean wait for a slot. */
function waitOf(algorithm: Algorithm, balancers: number, pickerSeed?: number): number {
  const common = { algorithm, balancers, servers: 300, slots: 10 };
  const traffic = { rate: 18_000, clients: 18_000, service: () => 0.1 };
  const alike = pickerSeed === undefined ? {} : { pickerSeed };
  return mean([...run({ ...common, ...traffic, ...alike }).seconds]);
}

for (const algorithm of ALGORITHMS)
  step(
    `do not go in step: at most twice the time of one with all the traffic: ${algorithm}`,
    () => {
      const [one, many] = [waitOf(algorithm, 1), waitOf(algorithm, 100)];
      assert.ok(many <= 2 * one, `${many} against ${one}`);
    },
  );

step("would, if all began at the same place", () => {
  for (const algorithm of ["round-robin", "least-connections"] as const)
    assert.ok(waitOf(algorithm, 100, 1) > 2 * waitOf(algorithm, 1));
});

step.run();

// ─── Silent clients, slow and hung servers ───────────────────────────────────

const attack = suite("least-latency, on a clock");

const fiveServers = {
  algorithm: "least-latency",
  servers: 5,
  slots: 10,
  service: (random: () => number) => normal(random, 0.05, 0.005),
} as const;

for (const rate of [250, 100])
  attack(`does not herd because of four clients that say nothing more: ${rate} a second`, () => {
    for (const seed of [1, 2, 3])
      for (const first of [0, 100]) {
        const isSilent = (client: number): boolean => client >= first && client < first + 4;
        const outcome = run({ ...fiveServers, rate, clients: 8 * rate, seed, isSilent });
        assert.ok(inTime(outcome, 4) >= 0.9995);
        assert.ok(quantile(answers(outcome), 0.5) < 0.06);
        for (const count of outcome.served) {
          const share = count / (8 * rate);
          // one server may have most of the silent ones, and costs more then
          assert.ok(share > 0.05 && share < 0.4, outcome.served.join());
        }
      }
  });

attack("does not herd because of silent clients that come one after another", () => {
  const isSilent = (client: number): boolean => client % 25 === 0; // ten a second
  const outcome = run({ ...fiveServers, slots: 1000, rate: 250, clients: 5000, isSilent });
  assert.ok(inTime(outcome, 200) >= 0.9995);
  for (const count of outcome.served) assert.ok(count > 500, outcome.served.join());
});

attack(
  "answers 99.95 % in time while one of eleven is slow, with and without silent clients",
  () => {
    const slow: Experiment = {
      algorithm: "least-latency",
      servers: 11,
      slots: 10,
      rate: 400,
      clients: 12_000,
      service: (random, server, time) => {
        const isSlow = server === 10 && time >= 10 && time < 20;
        return normal(random, isSlow ? 0.6 : 0.02, 0.005);
      },
    };
    for (const seed of [1, 2, 3]) {
      assert.ok(inTime(run({ ...slow, seed })) >= 0.9995);
      for (const first of [400, 3990]) {
        const isSilent = (client: number): boolean => client >= first && client < first + 4;
        assert.ok(inTime(run({ ...slow, seed, isSilent }), 4) >= 0.9995);
      }
    }
  },
);

attack("notices within a moment that a server hangs", () => {
  for (const rate of [20, 250]) {
    const hangs: Experiment = {
      ...fiveServers,
      slots: 1000,
      rate,
      clients: 30 * rate,
      service: (random, server, time) =>
        server === 0 && time > 10 ? Infinity : normal(random, 0.05, 0.005),
    };
    const lost = [...run(hangs).seconds].filter(Number.isNaN).length;
    // a few before it shows, then one whenever the silence has doubled
    assert.ok(lost >= 1 && lost <= 4 + 250 * 0.05, `${rate}: ${lost}`);
  }
});

attack.run();
