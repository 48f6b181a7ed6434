import type { Wllama } from "@wllama/wllama";

import type { Answer, AnswerOptions, Engine, FinishReason, Scores } from "./engine";
import { AppError, asAppError } from "./errors";
import type { Manifest, Sampling } from "./manifest";

const MOST_SCORES = 100; // log probabilities that are asked for; acceptance files name up to 20 ids
const WHOLE_FILE = 2 ** 31; // bytes; wllama takes no larger file

export interface GgufOptions {
  readonly threads: number;
  readonly context: number;
  /** Folder of the engine's files. */
  readonly base: URL;
}

/** Load a GGUF artifact in llama.cpp's WASM build; AppError where the browser, the file or the memory does not allow it. */
export async function openGguf(model: Blob, manifest: Manifest, options: GgufOptions): Promise<Engine> {
  if (model.size >= WHOLE_FILE) {
    throw new AppError(
      `${manifest.modelFile} has ${Math.round(model.size / 1e6)} MB; llama.cpp in a browser takes files below 2147 MB.`,
      "Use the artifact's ONNX format, a smaller model, or fewer bits.",
    );
  }
  if (!memory64()) {
    throw new AppError(
      "This browser has no 64-bit WebAssembly memory, which llama.cpp's build needs.",
      "Use the artifact's ONNX format, or a newer browser (Chrome 133, Firefox 134).",
    );
  }
  const module = (await import(/* @vite-ignore */ new URL("wllama.min.js", options.base).href)) as typeof import("@wllama/wllama");
  const said: string[] = [];
  const silent = () => undefined;
  const note = (...words: unknown[]) => void said.push(words.map(String).join(" ").slice(0, 200));
  const wllama = new module.Wllama(
    { default: new URL("wllama.wasm", options.base).href },
    { suppressNativeLog: false, logger: { debug: silent, log: silent, warn: silent, error: note }, allowOffline: true },
  );
  wllama.setCompat(null as never); // the usual one would come from another host
  try {
    await wllama.loadModel([model], {
      n_ctx: options.context,
      n_threads: options.threads,
      n_gpu_layers: 0,
      n_parallel: 1,
      n_batch: 512,
      warmup: false,
      cache_type_k: "f16",
      cache_type_v: "f16",
    });
  } catch (cause) {
    const error = asAppError(said.length ? new Error(`${(cause as Error).message} ${said.at(-1)}`) : cause);
    await wllama.exit().catch(silent);
    throw new AppError(`wllama cannot load the model: ${error.message}`, error.hint);
  }
  const version = module.Wllama.getLibllamaVersion();
  return new GgufEngine(wllama, `wllama (llama.cpp ${version})`, options.context);
}

interface TokenProbability {
  readonly id: number;
  readonly logprob: number;
  readonly top_logprobs?: readonly TokenProbability[];
}

interface Completion {
  readonly choices: readonly {
    readonly finish_reason: string | null;
    readonly logprobs: { readonly content: readonly TokenProbability[] } | null;
  }[];
  readonly usage?: { readonly prompt_tokens_details?: { readonly cached_tokens?: number } } | null;
  readonly timings?: { readonly cache_n?: number; readonly prompt_ms?: number };
}

class GgufEngine implements Engine {
  readonly kernels = "wasm-simd llama.cpp";
  readonly threads: number;
  private useCache = true;

  constructor(
    private readonly wllama: Wllama,
    readonly name: string,
    readonly context: number,
  ) {
    this.threads = wllama.getNumThreads() || 1;
  }

  async answer(prompt: readonly number[], options: AnswerOptions, give: (id: number) => void, stopped: () => boolean): Promise<Answer> {
    this.checkRoom(prompt);
    const start = performance.now();
    const ends = new Set(options.endIds);
    const ids: number[] = [];
    const abort = new AbortController();
    const most = Math.min(options.maxTokens, this.context - prompt.length);
    let finish: FinishReason = most < options.maxTokens ? "context" : "length";
    let first = 0;
    let prefilled = 0;
    let cached = 0;
    const take = (chunk: Completion) => {
      cached = chunk.timings?.cache_n ?? cached;
      for (const token of chunk.choices[0]?.logprobs?.content ?? []) {
        if (abort.signal.aborted) return;
        first ||= performance.now();
        prefilled ||= (chunk.timings?.prompt_ms ?? 0) / 1000;
        if (ends.has(token.id)) finish = "stop";
        else if (stopped()) finish = "cancelled";
        else {
          ids.push(token.id);
          give(token.id);
          continue;
        }
        abort.abort();
      }
      if (chunk.choices[0]?.finish_reason === "stop" && !abort.signal.aborted) finish = "stop";
    };
    await this.complete({ prompt, max_tokens: most, ignore_eos: !ends.size, ...words(options.sampling), stream: true, onData: take, abortSignal: abort.signal });
    const end = performance.now();
    const stats = {
      promptTokens: prompt.length,
      cachedTokens: cached,
      tokens: ids.length,
      ttft: ((first || end) - start) / 1000,
      prefill: prefilled || ((first || end) - start) / 1000,
      decode: (end - (first || end)) / 1000,
      steps: Math.max(ids.length - 1, 0),
    };
    return { ids, finish, stats };
  }

  async scores(tokens: readonly number[], wanted: readonly number[]): Promise<Scores> {
    this.checkRoom(tokens);
    const answer = (await this.complete({
      prompt: tokens,
      max_tokens: 1,
      temperature: 0,
      logprobs: Math.max(MOST_SCORES, wanted.length),
    })) as Completion;
    const first = answer.choices[0]?.logprobs?.content[0];
    if (!first) throw new AppError("wllama gave no probabilities", "The engine is another than this page was made for.");
    const known = new Map((first.top_logprobs ?? []).map((each) => [each.id, each.logprob]));
    const best = [...known].reduce((a, b) => (b[1] > a[1] ? b : a))[0];
    return { best, kind: "log probabilities", score: (id) => known.get(id) ?? null, logSum: 0 };
  }

  logits(): Promise<Float32Array> {
    return Promise.reject(new AppError("wllama gives no logits, only the log probabilities of the likeliest tokens"));
  }

  async forget(): Promise<void> {
    this.useCache = false; // for the next prompt
  }

  async close(): Promise<void> {
    await this.wllama.exit();
  }

  private checkRoom(prompt: readonly number[]): void {
    if (prompt.length < this.context) return;
    throw new AppError(
      `The conversation has ${prompt.length} tokens and the context is ${this.context}.`,
      "Start a new chat, or choose a larger context in Settings.",
    );
  }

  private async complete(request: Record<string, unknown>): Promise<unknown> {
    const full = { n_probs: 1, logprobs: 1, cache_prompt: this.useCache, timings_per_token: true, ...request };
    this.useCache = true;
    try {
      return await this.wllama.createCompletion(full as never);
    } catch (cause) {
      if ((cause as Error).name === "AbortError") return null;
      const error = asAppError(cause);
      throw new AppError(`wllama could not run the model: ${error.message}`, error.hint);
    }
  }
}

/** Sampling in llama.cpp's words; its samplers run in the order given. */
function words(sampling: Sampling): Record<string, unknown> {
  return {
    temperature: sampling.temperature,
    top_k: sampling.topK,
    top_p: sampling.topP,
    min_p: sampling.minP,
    repeat_penalty: sampling.repetitionPenalty,
    repeat_last_n: -1,
    presence_penalty: sampling.presencePenalty,
    samplers: ["penalties", "temperature", "top_k", "top_p", "min_p"],
  };
}

function memory64(): boolean {
  try {
    new WebAssembly.Memory({ address: "i64", initial: 1n } as never);
    return true;
  } catch {
    return false;
  }
}
