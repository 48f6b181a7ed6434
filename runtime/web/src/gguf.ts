import type { Wllama } from "@wllama/wllama";

import type { Scores, Sequence } from "./engine";
import { AppError, asAppError, outOfMemory, ranOut } from "./errors";
import type { Manifest, Sampling } from "./manifest";

const CHUNK = 128; // tokens of a prompt per call: a stop comes in between
const MOST_SCORES = 200; // log probabilities that are asked for; acceptance files name up to 100 ids
const MOST_LINES = 50; // of what llama.cpp says
const TOO_LARGE = 2 ** 31; // bytes; wllama takes no such file

export interface GgufOptions {
  readonly threads: number;
  readonly context: number;
  /** Folder of the engine's files. */
  readonly base: URL;
}

/**
 * Load a GGUF artifact in llama.cpp's WASM build; AppError where the browser, the file or the memory does not allow it.
 *
 * wllama 2: version 3 takes text only, so that a sealed prompt could not be given as its token ids.
 */
export async function openGguf(model: Blob, manifest: Manifest, options: GgufOptions): Promise<Sequence> {
  if (model.size >= TOO_LARGE) {
    throw new AppError(
      `${manifest.modelFile} has ${Math.round(model.size / 1e6)} MB; llama.cpp in a browser takes files below 2147 MB.`,
      "Use the artifact's ONNX format, a smaller model, or fewer bits.",
    );
  }
  // wllama resolves addresses against the document, which a worker does not have.
  Object.assign(globalThis, { document: { baseURI: options.base.href } });
  const module = (await import(
    /* @vite-ignore */ new URL("wllama.min.js", options.base).href
  )) as typeof import("@wllama/wllama");
  const said: string[] = [];
  const note = (...words: unknown[]) => {
    said.push(words.map(String).join(" ").slice(0, 200));
    said.splice(0, said.length - MOST_LINES);
  };
  const url = (threads: string) => new URL(`${threads}-thread.wasm`, options.base).href;
  const wllama = new module.Wllama(
    { "single-thread/wllama.wasm": url("single"), "multi-thread/wllama.wasm": url("multi") },
    { logger: { debug: note, log: note, warn: note, error: note } },
  );
  try {
    await wllama.loadModel([model], {
      n_ctx: options.context,
      n_batch: Math.min(CHUNK, options.context),
      n_threads: options.threads,
    });
  } catch (cause) {
    const error = explained(cause, said);
    await wllama.exit().catch(() => undefined);
    throw new AppError(`wllama cannot load the model: ${error.message}`, error.hint);
  }
  return new GgufSequence(wllama, manifest, options.context, said);
}

/** wllama's own message is of its protocol; what llama.cpp said before tells what happened. */
function explained(cause: unknown, said: readonly string[]): AppError {
  const memory = said.find(ranOut);
  if (memory) return outOfMemory(memory);
  const line = said.findLast((each) => /error|fail|invalid/i.test(each));
  return asAppError(line ? new Error(line) : cause);
}

class GgufSequence implements Sequence {
  readonly name = `wllama ${__WLLAMA__}`;
  readonly kernels = "wasm-simd llama.cpp";
  readonly threads: number;
  readonly vocabSize: number;
  readonly chunk = CHUNK;

  constructor(
    private readonly wllama: Wllama,
    manifest: Manifest,
    readonly context: number,
    /** What llama.cpp said; the last line is the newest. */
    private readonly said: string[],
  ) {
    this.threads = wllama.getNumThreads() || 1;
    this.vocabSize = manifest.vocabSize;
  }

  evaluate(ids: readonly number[], last: boolean): Promise<void> {
    return this.call(async () => void (await this.wllama.decode([...ids], { skipLogits: !last })));
  }

  truncate(length: number): Promise<void> {
    return this.call(() => (length ? this.wllama.kvRemove(length, -1) : this.wllama.kvClear()));
  }

  begin(sampling: Sampling, prompt: readonly number[]): Promise<void> {
    const config = {
      temp: sampling.temperature,
      top_k: sampling.topK,
      top_p: sampling.topP,
      min_p: sampling.minP,
      typical_p: 1,
      penalty_repeat: sampling.repetitionPenalty,
      penalty_present: sampling.presencePenalty,
      penalty_freq: 0,
      penalty_last_n: this.context,
    };
    return this.call(() => this.wllama.samplingInit(config, sampling.repetitionPenalty === 1 ? [] : [...prompt]));
  }

  choose(): Promise<number> {
    return this.call(async () => {
      const { token } = await this.wllama.samplingSample();
      await this.wllama.samplingAccept([token]);
      return token;
    });
  }

  /** wllama gives probabilities: their logarithms are logits less a constant. */
  scores(): Promise<Scores> {
    return this.call(async () => {
      const found = await this.wllama.getLogits(Math.min(MOST_SCORES, this.vocabSize));
      const known = new Map(found.map(({ token, p }) => [token, Math.log(p)]));
      return { best: found[0]!.token, kind: "log probabilities", score: (id) => known.get(id) ?? null, logSum: 0 };
    });
  }

  logits(): Promise<Float32Array> {
    return Promise.reject(new AppError("wllama gives no logits, only the probabilities of the likeliest tokens"));
  }

  encode(text: string): Promise<number[]> {
    // llama.cpp does not normalize Unicode, which every Qwen since the second expects; as in edgeship_runtime.llama_tokens.
    const composed = this.wllama.getModelMetadata().meta["tokenizer.ggml.pre"] === "qwen2";
    return this.call(() => this.wllama.tokenize(composed ? text.normalize("NFC") : text, true));
  }

  close(): Promise<void> {
    return this.wllama.exit();
  }

  private async call<Result>(act: () => Promise<Result>): Promise<Result> {
    this.said.length = 0;
    try {
      return await act();
    } catch (cause) {
      const error = explained(cause, this.said);
      throw new AppError(`wllama could not run the model: ${error.message}`, error.hint);
    }
  }
}
