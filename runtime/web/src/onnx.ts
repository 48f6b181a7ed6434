import type { InferenceSession, Tensor } from "onnxruntime-web";
import type * as Ort from "onnxruntime-web";

import type { Scores, Sequence } from "./engine";
import { AppError, asAppError } from "./errors";
import { GrowingCache, SharedCache, type Cache } from "./kv";
import type { Manifest, Sampling } from "./manifest";
import { largest, Sampler } from "./sampling";
import type { Backend } from "./site";
import { LazyBytes } from "./lazy";
import type { SyncFile } from "./store";

/** Tokens of a prompt per run, as edgeship_runtime.engines.ort.CHUNK. */
const CHUNK = 128;
/** On WebGPU: from 32 tokens on other shaders run, whose logits were half a deviation off (1.30, software adapter). */
const GPU_CHUNK = 31;
const WIDER = "Choose 32 bits for the GPU's floats, or the WASM backend, in Settings.";

export interface OnnxFiles {
  readonly model: Blob;
  /** External data by the name that the graph gives it: as a blob, and as a file that is open for reading. */
  readonly data: Readonly<Record<string, { readonly blob: Blob; readonly open: () => Promise<SyncFile> }>>;
}

export interface OnnxOptions {
  readonly backend: Backend;
  readonly threads: number;
  readonly context: number;
  /** Folder of the engine's files. */
  readonly base: URL;
}

/** Load an ONNX artifact; AppError where the browser, the graph or the memory does not allow it. */
export async function openOnnx(files: OnnxFiles, manifest: Manifest, options: OnnxOptions): Promise<Sequence> {
  const ort = await loadOrt(options);
  const gpu = options.backend === "webgpu";
  const opened: LazyBytes[] = [];
  let session: InferenceSession;
  try {
    const data: { path: string; data: Blob | Uint8Array }[] = [];
    for (const [path, { blob, open }] of Object.entries(files.data)) {
      if (buildOf(options.backend) === ".jspi")
        data.push({ path, data: blob }); // that build reads blobs piece by piece
      else data.push({ path, data: opened[opened.push(LazyBytes.over(await open())) - 1]! });
    }
    session = await ort.InferenceSession.create(new Uint8Array(await files.model.arrayBuffer()), {
      executionProviders: [gpu ? "webgpu" : "wasm"],
      externalData: data,
      graphOptimizationLevel: "all",
      enableMemPattern: false, // patterns are kept per shape, and every token has another
      logSeverityLevel: 3,
    });
  } catch (cause) {
    const error = asAppError(cause);
    const hint = gpu ? "Choose the WASM backend in Settings." : error.hint;
    throw new AppError(`onnxruntime-web cannot load the model: ${error.message}`, hint);
  } finally {
    for (const file of opened) file.close();
  }
  checkGraph(session, manifest);
  const cache = gpu
    ? await SharedCache.create(ort, session, manifest, options.context)
    : new GrowingCache(ort, session, manifest);
  return new OnnxSequence(ort, session, manifest, cache, options);
}

/** WebGPU waits for the device: by the browser's own means where it has them, else in a larger and slower build. */
function buildOf(backend: Backend): "" | ".jspi" | ".asyncify" {
  if (backend === "wasm") return "";
  return "Suspending" in WebAssembly ? ".jspi" : ".asyncify";
}

/** onnxruntime-web's own files, of the build that the backend needs; see scripts/finish.mjs. */
async function loadOrt(options: OnnxOptions): Promise<typeof Ort> {
  const build = buildOf(options.backend);
  const loader = { "": "ort.wasm.min.mjs", ".jspi": "ort.jspi.min.mjs", ".asyncify": "ort.webgpu.min.mjs" }[build];
  const ort = (await import(/* @vite-ignore */ new URL(loader, options.base).href)) as typeof Ort;
  const wasm = new URL(`ort-wasm-simd-threaded${build}.wasm`, options.base).href;
  ort.env.wasm.wasmPaths = { wasm, mjs: wasm.replace(/\.wasm$/, ".mjs") };
  ort.env.wasm.numThreads = options.threads;
  ort.env.wasm.proxy = false; // this is a worker already
  return ort;
}

class OnnxSequence implements Sequence {
  readonly name: string;
  readonly kernels: string;
  readonly threads: number;
  readonly context: number;
  readonly vocabSize: number;
  readonly chunk: number;
  private length = 0;
  private last: Float32Array | null = null;
  private sampler: Sampler | null = null;
  private readonly allLogits: boolean;

  constructor(
    private readonly ort: typeof Ort,
    private readonly session: InferenceSession,
    manifest: Manifest,
    private readonly cache: Cache,
    options: OnnxOptions,
  ) {
    this.name = `onnxruntime-web ${ort.env.versions.web ?? ort.env.versions.common}`;
    this.kernels = options.backend === "webgpu" ? `webgpu ${cache.type}` : "wasm-simd fp32";
    this.threads = options.backend === "webgpu" ? 1 : (ort.env.wasm.numThreads ?? 1);
    this.context = options.context;
    this.chunk = options.backend === "webgpu" ? GPU_CHUNK : CHUNK;
    this.vocabSize = manifest.vocabSize;
    const logits = session.outputMetadata.find((each) => each.name === "logits");
    this.allLogits = !(logits?.isTensor && logits.shape[1] === 1);
  }

  async evaluate(ids: readonly number[], last: boolean): Promise<void> {
    const { ort } = this;
    const total = this.length + ids.length;
    const feeds: Record<string, Tensor> = {
      ...this.cache.feeds(),
      input_ids: new ort.Tensor("int64", BigInt64Array.from(ids, BigInt), [1, ids.length]),
      attention_mask: new ort.Tensor("int64", new BigInt64Array(total).fill(1n), [1, total]),
    };
    if (this.session.inputNames.includes("position_ids")) {
      const places = BigInt64Array.from(ids, (_, place) => BigInt(this.length + place));
      feeds.position_ids = new ort.Tensor("int64", places, [1, ids.length]);
    }
    try {
      const fetches = this.cache.fetches();
      const results = await (fetches ? this.session.run(feeds, fetches) : this.session.run(feeds));
      await this.cache.advance(results);
      this.last = last ? await this.lastRow(results.logits!) : null;
    } catch (cause) {
      if (cause instanceof AppError) throw cause;
      const error = asAppError(cause);
      const gpu = this.cache.type === "float16" ? WIDER : "Choose the WASM backend in Settings.";
      const hint = this.kernels.startsWith("webgpu") ? gpu : error.hint;
      throw new AppError(`onnxruntime-web could not run the model: ${error.message}`, hint);
    }
    this.length = total;
  }

  async truncate(length: number): Promise<void> {
    this.length = length;
    this.last = null;
    await this.cache.truncate(length);
  }

  async begin(sampling: Sampling, prompt: readonly number[]): Promise<void> {
    this.sampler = new Sampler(sampling, prompt);
  }

  async choose(): Promise<number> {
    return this.sampler!.choose(await this.logits());
  }

  async scores(): Promise<Scores> {
    const logits = await this.logits();
    const best = largest(logits);
    let sum = 0;
    for (const value of logits) sum += Math.exp(value - logits[best]!);
    return { best, kind: "logits", score: (id) => logits[id] ?? null, logSum: logits[best]! + Math.log(sum) };
  }

  async logits(): Promise<Float32Array> {
    if (!this.last) throw new AppError("there are no logits: nothing was evaluated");
    return this.last;
  }

  async close(): Promise<void> {
    await this.session.release();
  }

  private async lastRow(logits: Tensor): Promise<Float32Array> {
    const data = (await logits.getData()) as Float32Array | Uint16Array;
    const start = this.allLogits ? data.length - this.vocabSize : 0;
    const row = data.subarray(start, start + this.vocabSize);
    const numbers =
      logits.type === "float16" && row instanceof Uint16Array
        ? Float32Array.from(row, halfToFloat)
        : Float32Array.from(row);
    logits.dispose();
    if (this.cache.type === "float16" && !numbers.every(Number.isFinite))
      throw new AppError("16-bit floats are too small for this model: its numbers overflow.", WIDER);
    return numbers;
  }
}

/** An IEEE half, given as its bits. */
function halfToFloat(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -14 * (fraction / 1024));
}

/** The graph's inputs and outputs against the manifest, as edgeship_runtime.engines.ort does. */
function checkGraph(session: InferenceSession, manifest: Manifest): void {
  const wanted = ["input_ids", "attention_mask"];
  const given = ["logits"];
  for (let layer = 0; layer < manifest.layers; layer++) {
    wanted.push(`past_key_values.${layer}.key`, `past_key_values.${layer}.value`);
    given.push(`present.${layer}.key`, `present.${layer}.value`);
  }
  const missing = [
    ...wanted.filter((name) => !session.inputNames.includes(name)),
    ...given.filter((name) => !session.outputNames.includes(name)),
  ];
  const foreign = session.inputNames.filter((name) => !wanted.includes(name) && name !== "position_ids");
  if (missing.length || foreign.length) {
    throw new AppError(
      `the graph is not the one that the artifact describes: missing ${missing.slice(0, 3).join(", ") || "nothing"}, not known ${foreign.slice(0, 3).join(", ") || "nothing"}`,
      "Export the artifact again.",
    );
  }
}
