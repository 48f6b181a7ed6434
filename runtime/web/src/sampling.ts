import { AppError } from "./errors";
import type { Sampling } from "./manifest";

const COLD = 1e-5; // temperatures below leave nothing but the largest logit in float32

/** Chooses the tokens of one answer; definitions and order are those of edgeship_runtime.sampling.Sampler. */
export class Sampler {
  private readonly seen = new Set<number>();
  private readonly answer = new Set<number>();

  constructor(
    private readonly options: Sampling,
    prompt: readonly number[] = [],
    private readonly random: () => number = Math.random,
  ) {
    if (options.repetitionPenalty !== 1) for (const id of prompt) this.seen.add(id);
  }

  /** Choose the next token from logits [vocab] (penalties are written into them) and remember it. */
  choose(logits: Float32Array): number {
    this.penalize(logits);
    let best = largest(logits);
    if (!Number.isFinite(logits[best])) {
      throw new AppError(
        `the largest logit is ${logits[best]}; no token can be chosen`,
        "Run the check: the weights may be damaged.",
      );
    }
    if (this.options.temperature >= COLD) best = this.draw(logits, logits[best]!);
    this.seen.add(best);
    this.answer.add(best);
    return best;
  }

  private penalize(logits: Float32Array): void {
    const { repetitionPenalty, presencePenalty } = this.options;
    if (repetitionPenalty !== 1) {
      for (const id of this.seen) {
        const value = logits[id]!;
        logits[id] = value < 0 ? value * repetitionPenalty : value / repetitionPenalty;
      }
    }
    if (presencePenalty) for (const id of this.answer) logits[id]! -= presencePenalty;
  }

  private draw(logits: Float32Array, best: number): number {
    const { ids, weights } = shortlist(logits, best, this.options);
    let rest = this.random() * weights.reduce((sum, weight) => sum + weight, 0);
    for (let place = 0; place < ids.length; place++) {
      rest -= weights[place]!;
      if (rest < 0) return ids[place]!;
    }
    return ids[0]!;
  }
}

/** What temperature, top-k, top-p and min-p leave, heaviest first; a weight is the probability over the best's. */
export function shortlist(logits: Float32Array, best: number, options: Sampling): { ids: number[]; weights: number[] } {
  const { temperature, topK, topP, minP } = options;
  // A weight below 1e-9 of the best is never drawn in practice; leaving them out keeps the sort short.
  const floor = best + temperature * Math.log(1e-9);
  let ids: number[] = [];
  for (let id = 0; id < logits.length; id++) if (logits[id]! >= floor) ids.push(id);
  ids.sort((a, b) => logits[b]! - logits[a]! || a - b);
  if (topK > 0 && topK < ids.length) {
    const least = logits[ids[topK - 1]!]!;
    ids = ids.filter((id) => logits[id]! >= least);
  }
  let weights = ids.map((id) => Math.exp((logits[id]! - best) / temperature));
  let keep = ids.length;
  if (topP < 1) {
    const target = topP * weights.reduce((sum, weight) => sum + weight, 0);
    let sum = 0;
    keep = Math.max(1, weights.findIndex((weight) => (sum += weight) >= target) + 1);
  }
  if (minP > 0) keep = Math.min(keep, weights.filter((weight) => weight >= minP).length);
  ids = ids.slice(0, keep);
  weights = weights.slice(0, keep);
  return { ids, weights };
}

/** Place of the largest value, the first NaN where there is one. */
export function largest(values: Float32Array): number {
  let best = 0;
  for (let place = 0; place < values.length; place++) {
    const value = values[place]!;
    if (Number.isNaN(value)) return place;
    if (value > values[best]!) best = place;
  }
  return best;
}
