import { describe, expect, it } from "vitest";

import type { Golden, Position } from "../src/acceptance";
import type { Scores } from "../src/engine";
import { Comparison, divergence } from "../src/verify";

const position: Position = { index: 3, topIds: [5, 6, 7], topLogits: [4, 3.9, 1], std: 1 };
const golden: Golden = {
  cases: [{ name: "a", tokens: [1, 2, 3, 4], positions: [position] }],
  tieTolerance: 0.3,
  klBudget: 0,
};
const engine = { name: "e", kernels: "k" };

function scores(values: Record<number, number>, kind: Scores["kind"] = "logits"): Scores {
  const ids = Object.keys(values).map(Number);
  const best = ids.reduce((a, b) => (values[b]! > values[a]! ? b : a));
  const logSum = Math.log(ids.reduce((sum, id) => sum + Math.exp(values[id]!), 0));
  return { best, kind, score: (id) => values[id] ?? null, logSum };
}

function compare(found: Scores, floats: Golden | null = null) {
  const comparison = new Comparison(golden, floats);
  comparison.compare("a", position, found, floats?.cases[0]!.positions[0] ?? null);
  return { agreement: comparison.agreement(engine), failures: comparison.failures };
}

describe("agreement", () => {
  it("passes what is equal", () => {
    const { agreement, failures } = compare(scores({ 5: 4, 6: 3.9, 7: 1 }));
    expect(agreement).toMatchObject({ positions: 1, equal: 1, near_ties: 0, wrong: 0, max_logit_error: 0 });
    expect(failures).toEqual([]);
  });

  it("tolerates a near tie and shows its gap", () => {
    const { agreement, failures } = compare(scores({ 5: 3.9, 6: 4, 7: 1 }));
    expect(agreement).toMatchObject({ equal: 0, near_ties: 1, wrong: 0 });
    expect(agreement.ties[0]).toMatchObject({ case: "a", index: 3, expected: 5, chosen: 6, tolerated: true });
    expect(agreement.ties[0]!.gap_std).toBeCloseTo(0.1);
    expect(failures).toEqual([]);
  });

  it("fails another token, an unknown one, a logit that is far off, and no numbers", () => {
    expect(compare(scores({ 5: 4, 6: 3.9, 7: 4.1 })).failures.join()).toMatch(
      /expected token 5, found 7, 3\.000 deviations behind/,
    );
    expect(compare(scores({ 5: 4, 6: 3.9, 7: 1, 8: 9 })).failures.join()).toMatch(/not among the golden best/);
    expect(compare(scores({ 5: 4.6, 6: 3.9, 7: 1 })).failures.join()).toMatch(/off by 0\.60 deviations/);
    expect(compare(scores({ 5: NaN, 6: 1 })).failures.join()).toMatch(/no numbers/);
    expect(compare(scores({ 5: 4, 6: 3.9 })).failures.join()).toMatch(/1 of the golden best/);
  });

  it("compares log probabilities up to a constant", () => {
    const { agreement, failures } = compare(scores({ 5: -1, 6: -1.1, 7: -4 }, "log probabilities"));
    expect(agreement.max_logit_error).toBeCloseTo(0);
    expect(failures).toEqual([]);
    expect(compare(scores({ 5: -1, 6: -3, 7: -4 }, "log probabilities")).failures.join()).toMatch(/off by/);
  });

  it("holds the divergence from a float model to its budget", () => {
    const half: Position = { index: 3, topIds: [5, 6], topLogits: [Math.log(0.5), Math.log(0.5)], std: 1 };
    expect(divergence(half, scores({ 5: 0, 6: 0 }))).toBeCloseTo(0);
    expect(divergence(half, scores({ 5: Math.log(3), 6: 0 }))).toBeCloseTo(
      0.5 * Math.log(0.5 / 0.75) + 0.5 * Math.log(2),
    );
    const floats = { ...golden, klBudget: 0.001, cases: [{ ...golden.cases[0]!, positions: [half] }] };
    expect(compare(scores({ 5: 4, 6: 3.9, 7: 1 }), floats).failures.join()).toMatch(/nats from the float model/);
  });
});
