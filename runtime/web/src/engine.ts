import { AppError } from "./errors";
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

/** A loaded model with one sequence and its KV cache: what onnxruntime-web and wllama have in common. */
export interface Sequence {
  /** Package and version, for reports. */
  readonly name: string;
  readonly kernels: string;
  readonly threads: number;
  readonly context: number;
  readonly vocabSize: number;
  /** Tokens that one call of `evaluate` takes at most. */
  readonly chunk: number;
  /** Append ids to the cache; `last`: scores are wanted after them. */
  evaluate(ids: readonly number[], last: boolean): Promise<void>;
  /** Keep the first `length` tokens of the cache. */
  truncate(length: number): Promise<void>;
  /** Begin an answer to `prompt`. */
  begin(sampling: Sampling, prompt: readonly number[]): Promise<void>;
  /** The next token by the scores after the last evaluated one. */
  choose(): Promise<number>;
  /** Scores after the last evaluated token. */
  scores(): Promise<Scores>;
  /** All logits [vocab] after the last evaluated token; AppError where the engine does not give them. */
  logits(): Promise<Float32Array>;
  /** Ids of a text by the vocabulary inside the model's file; absent where it has none. */
  encode?(text: string): Promise<number[]>;
  close(): Promise<void>;
}

/** Answers and scores on a sequence, whose cache is kept for prompts that begin alike; not for two calls at once. */
export class Engine {
  private tokens: number[] = [];

  constructor(readonly sequence: Sequence) {}

  /** Continue `prompt`; ids are given out as they come, `stopped` is asked before every token. */
  async answer(
    prompt: readonly number[],
    options: AnswerOptions,
    give: (id: number) => void,
    stopped: () => boolean,
  ): Promise<Answer> {
    const { sequence } = this;
    const start = performance.now();
    const cached = await this.keep(prompt);
    const ends = new Set(options.endIds);
    const ids: number[] = [];
    let finish: FinishReason = "cancelled";
    await sequence.begin(options.sampling, prompt);
    let going = await this.evaluate(prompt.slice(cached), stopped);
    const prefilled = performance.now();
    let first = 0;
    let steps = 0;
    while (going && !stopped()) {
      const id = await sequence.choose();
      first ||= performance.now();
      if (ends.has(id)) finish = "stop";
      else {
        ids.push(id);
        give(id);
        if (ids.length >= options.maxTokens) finish = "length";
        else if (this.tokens.length >= sequence.context) finish = "context";
      }
      if (finish !== "cancelled") break;
      going = await this.evaluate([id], stopped);
      if (going) steps++;
    }
    const end = performance.now();
    first ||= end;
    const stats = {
      promptTokens: prompt.length,
      cachedTokens: cached,
      tokens: ids.length,
      ttft: (first - start) / 1000,
      prefill: (prefilled - start) / 1000,
      decode: (end - first) / 1000,
      steps,
    };
    return { ids, finish, stats };
  }

  /** What follows `tokens`. */
  async scores(tokens: readonly number[]): Promise<Scores> {
    await this.evaluate(tokens.slice(await this.keep(tokens)), () => false);
    return this.sequence.scores();
  }

  /** All logits [vocab] after `tokens`. */
  async logits(tokens: readonly number[]): Promise<Float32Array> {
    await this.evaluate(tokens.slice(await this.keep(tokens)), () => false);
    return this.sequence.logits();
  }

  /** Let go of the tokens in the cache. */
  async forget(): Promise<void> {
    this.tokens = [];
    await this.sequence.truncate(0);
  }

  /** Keep what the cache and `prompt` begin with alike, at least one token left to evaluate; its length. */
  private async keep(prompt: readonly number[]): Promise<number> {
    const { context, vocabSize } = this.sequence;
    if (!prompt.length) throw new AppError("there are no tokens to evaluate");
    const bad = prompt.find((id) => !(Number.isInteger(id) && id >= 0 && id < vocabSize));
    // Engines read past their tables without a word.
    if (bad !== undefined) throw new AppError(`token id ${bad} is outside the vocabulary of ${vocabSize}`);
    if (prompt.length > context) {
      throw new AppError(
        `The conversation has ${prompt.length} tokens and the context is ${context}.`,
        "Start a new chat, or choose a larger context in Settings.",
      );
    }
    let same = 0;
    while (same < this.tokens.length && same < prompt.length - 1 && this.tokens[same] === prompt[same]) same++;
    if (same < this.tokens.length) {
      this.tokens.length = same;
      await this.sequence.truncate(same);
    }
    return same;
  }

  /** Append ids to the cache, a chunk at a time; false when stopped between chunks. */
  private async evaluate(ids: readonly number[], stopped: () => boolean): Promise<boolean> {
    const { chunk } = this.sequence;
    for (let start = 0; start < ids.length; start += chunk) {
      const part = ids.slice(start, start + chunk);
      const last = start + chunk >= ids.length;
      await this.sequence.evaluate(part, last);
      this.tokens.push(...part);
      await breathe();
      if (!last && stopped()) return false;
    }
    return true;
  }
}

/** Let messages in (a stop among them): engines that run to the end of a token would keep them out. */
function breathe(): Promise<void> {
  return new Promise((resolve) => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => {
      port1.close();
      resolve();
    };
    port2.postMessage(null);
  });
}
