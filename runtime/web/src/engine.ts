import type { Sampling } from "./manifest";

/** What one engine's answer took, in seconds and tokens. */
export interface Stats {
  readonly promptTokens: number;
  readonly cachedTokens: number;
  readonly tokens: number;
  readonly ttft: number;
  readonly prefill: number;
  readonly decode: number;
  readonly steps: number;
}

export type FinishReason = "stop" | "length" | "context" | "cancelled";

export interface Answer {
  readonly ids: number[];
  readonly finish: FinishReason;
  readonly stats: Stats;
}

export interface AnswerOptions {
  readonly sampling: Sampling;
  readonly maxTokens: number;
  /** Tokens that end the answer; empty to go on past all of them. */
  readonly endIds: readonly number[];
}

/** Scores of the next token: logits, or log probabilities, which are logits up to a constant. */
export interface Scores {
  readonly best: number;
  readonly kind: "logits" | "log probabilities";
  /** The score of an id; null where the engine does not say. */
  score(id: number): number | null;
  /** ln of the sum of all exponentials: subtracted from a score it gives the log probability. */
  readonly logSum: number;
}

/** One sequence and its KV cache on one model; not for two calls at once. */
export interface Engine {
  /** Package and version, for reports. */
  readonly name: string;
  readonly kernels: string;
  readonly threads: number;
  readonly context: number;
  /** Continue `prompt`; ids are given out as they come, `stopped` is asked before every token. */
  answer(prompt: readonly number[], options: AnswerOptions, give: (id: number) => void, stopped: () => boolean): Promise<Answer>;
  /** What follows `tokens`; `wanted` are ids whose scores must be known. */
  scores(tokens: readonly number[], wanted: readonly number[]): Promise<Scores>;
  /** All logits [vocab] after `ids`; AppError where the engine does not give them. */
  logits(ids: readonly number[]): Promise<Float32Array>;
  /** Let go of the tokens in the cache. */
  forget(): Promise<void>;
  close(): Promise<void>;
}

/** Let messages in (a stop among them): engines that run to the end of a token would keep them out. */
export function breathe(): Promise<void> {
  return new Promise((resolve) => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => {
      port1.close();
      resolve();
    };
    port2.postMessage(null);
  });
}
