/** The verdict over hundreds of pairs whose answer is known. */
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { ask } from "./claims.ts";

const claims = suite("the verdict's claims");
const size = { pairs: 150, clients: 100, rate: 300, runs: 6 };

claims("between a set-up and itself, with other luck, are as rare as 95 % promises", () => {
  const algorithms = ["round-robin", "round-robin"] as const;
  const { claimed, held } = ask({ ...size, algorithms, luck: "another" });
  // 5 % of 150 pairs are 7.5 +- 2.7, and the seeds are fixed
  assert.ok(claimed > 0 && claimed < 0.11, `claimed ${claimed}`);
  assert.ok(held > 0.89, `held ${held}`);
});

claims("hold the true difference, and find it with the same luck", () => {
  const algorithms = ["least-connections", "round-robin"] as const;
  const { claimed, held, truth } = ask({
    ...size,
    pairs: 100,
    clients: 150,
    algorithms,
    luck: "the same",
  });
  assert.ok(truth > 0.001, `truth ${truth}`);
  assert.ok(held > 0.89, `held ${held}`);
  assert.ok(claimed > 0.8, `claimed ${claimed}`);
});

claims.run();
