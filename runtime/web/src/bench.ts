import type { Stats } from "./engine";
import { AppError } from "./errors";
import { notLoaded, type Model } from "./model";
import type { BenchAbout, BenchOptions, BenchReport } from "./protocol";
import { round } from "./verify";

const STRIDE = 7919; // a prime: prompts walk the vocabulary without repeating themselves

/** Time greedy answers as edgeship_runtime.bench.measure does; the page adds the memory. */
export async function measure(
  model: Model,
  options: BenchOptions,
  about: BenchAbout,
  progress: (what: string, share: number) => void,
  stopped: () => boolean,
): Promise<BenchReport> {
  const { loaded, manifest } = model;
  const engine = model.engine?.sequence;
  if (!engine || !loaded) throw notLoaded();
  const { decode_tokens, repeats } = options;
  const prompt_tokens = Math.min(options.prompt_tokens, engine.context - decode_tokens);
  if (prompt_tokens < 1 || decode_tokens < 2 || repeats < 1) {
    throw new AppError(
      `${decode_tokens} tokens do not fit into a context of ${engine.context} beside a prompt`,
      "Choose a larger context.",
    );
  }
  const prompt = Array.from({ length: prompt_tokens }, (_, place) => ((place + 1) * STRIDE) % manifest.vocabSize);
  const runs: Stats[] = [];
  for (let turn = 0; turn < repeats; turn++) {
    progress(`answer ${turn + 1} of ${repeats}`, turn / repeats);
    const answer = await model.generate(prompt, decode_tokens, stopped);
    if (answer.finish === "cancelled") throw new AppError("The measurement was stopped.");
    runs.push(answer.stats);
  }
  const middle = (of: (stats: Stats) => number, digits: number) => round(median(runs.map(of)), digits);
  return {
    artifact: manifest.name,
    engine: engine.name,
    kernels: engine.kernels,
    threads: engine.threads,
    context: engine.context,
    prompt_tokens,
    decode_tokens: Math.min(decode_tokens, runs[0]!.tokens),
    repeats,
    load_s: round(loaded.seconds, 3),
    ttft_s: middle((run) => run.ttft, 4),
    prefill_tokens_per_s: middle((run) => rate(run.promptTokens - run.cachedTokens, run.prefill), 1),
    decode_tokens_per_s: middle((run) => rate(run.steps, run.decode), 1),
    peak_rss_mb: null,
    cpu: about.cpu,
    load_average: null,
    system: about.system,
    python: "none (JavaScript)",
    edgeship_runtime: about.edgeship,
  };
}

/** Tokens per second; 0 where no time passed. */
export function rate(tokens: number, seconds: number): number {
  return seconds > 0 ? tokens / seconds : 0;
}

function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const half = sorted.length >> 1;
  return sorted.length % 2 ? sorted[half]! : (sorted[half - 1]! + sorted[half]!) / 2;
}
