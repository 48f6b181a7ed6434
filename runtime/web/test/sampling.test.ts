import { describe, expect, it } from "vitest";

import { GREEDY } from "../src/manifest";
import { largest, Sampler, shortlist } from "../src/sampling";

const logits = () => Float32Array.from([0, 3, 2, 3, -1]);

describe("sampling", () => {
  it("takes the first of the largest when greedy", () => {
    expect(new Sampler(GREEDY).choose(logits())).toBe(1);
  });

  it("penalizes what the prompt and the answer hold", () => {
    const sampler = new Sampler({ ...GREEDY, repetitionPenalty: 2 }, [1]);
    expect([sampler.choose(logits()), sampler.choose(logits())]).toEqual([3, 2]);
    const present = new Sampler({ ...GREEDY, presencePenalty: 5 }, [1]);
    expect([present.choose(logits()), present.choose(logits()), present.choose(logits())]).toEqual([1, 3, 2]);
  });

  it("refuses logits that are no numbers", () => {
    expect(() => new Sampler(GREEDY).choose(Float32Array.from([1, NaN]))).toThrow(/largest logit/);
    expect(largest(Float32Array.from([1, NaN, 2]))).toBe(1);
  });

  it("cuts by top-k with ties, top-p and min-p", () => {
    const hot = { ...GREEDY, temperature: 1 };
    expect(shortlist(logits(), 3, { ...hot, topK: 1 }).ids).toEqual([1, 3]);
    expect(shortlist(logits(), 3, { ...hot, topP: 0.5 }).ids).toEqual([1, 3]);
    expect(shortlist(logits(), 3, { ...hot, topP: 0.01 }).ids).toEqual([1]);
    expect(shortlist(logits(), 3, { ...hot, minP: 0.3 }).ids).toEqual([1, 3, 2]);
    expect(shortlist(logits(), 3, hot).ids).toEqual([1, 3, 2, 0, 4]);
  });

  it("draws by weight", () => {
    const at = (random: number) => new Sampler({ ...GREEDY, temperature: 1 }, [], () => random).choose(logits());
    expect([at(0), at(0.5), at(0.999)]).toEqual([1, 3, 4]);
  });
});
