import type { InferenceSession, Tensor } from "onnxruntime-web";
import type * as Ort from "onnxruntime-web";

import { AppError, outOfMemory } from "./errors";
import type { Manifest } from "./manifest";

type Kind = "float32" | "float16";

/** Keys and values of the tokens so far: [1, kv heads, tokens, head size] a layer. */
export interface Cache {
  readonly type: Kind;
  feeds(): Record<string, Tensor>;
  /** What the run writes into; null where it makes new tensors. */
  fetches(): Record<string, Tensor | null> | null;
  /** Take over what a run gave. */
  advance(results: Readonly<Record<string, Tensor>>): Promise<void>;
  truncate(length: number): Promise<void>;
}

/** On WASM, whose tensors lie in the same memory: each run gives the next, longer tensors. */
export class GrowingCache implements Cache {
  readonly type: Kind;
  private readonly past = new Map<string, Tensor>();

  constructor(
    private readonly ort: typeof Ort,
    session: InferenceSession,
    private readonly manifest: Manifest,
  ) {
    this.type = kindOf(session);
    this.clear();
  }

  feeds(): Record<string, Tensor> {
    return Object.fromEntries(this.past);
  }

  fetches(): null {
    return null;
  }

  async advance(results: Readonly<Record<string, Tensor>>): Promise<void> {
    for (const [past, present] of names(this.manifest)) {
      this.past.get(past)?.dispose();
      this.past.set(past, results[present]!);
    }
  }

  async truncate(length: number): Promise<void> {
    if (!length) return this.clear();
    const { kvHeads, headDim } = this.manifest;
    for (const [name, tensor] of this.past) {
      const size = tensor.dims[2]! * headDim;
      const data = tensor.data as Float32Array;
      const kept = data.slice(0, kvHeads * length * headDim);
      for (let head = 0; head < kvHeads; head++) {
        kept.set(data.subarray(head * size, head * size + length * headDim), head * length * headDim);
      }
      tensor.dispose();
      this.past.set(name, new this.ort.Tensor(this.type, kept, [1, kvHeads, length, headDim]));
    }
  }

  private clear(): void {
    const { kvHeads, headDim } = this.manifest;
    for (const [past] of names(this.manifest)) {
      this.past.get(past)?.dispose();
      const none = this.type === "float16" ? new Uint16Array(0) : new Float32Array(0);
      this.past.set(past, new this.ort.Tensor(this.type, none as Float32Array, [1, kvHeads, 0, headDim]));
    }
  }
}

interface GpuBuffer {
  destroy(): void;
}

interface GpuDevice {
  createBuffer(options: { size: number; usage: number }): GpuBuffer;
  pushErrorScope(filter: string): void;
  popErrorScope(): Promise<{ message: string } | null>;
}

const STORAGE_AND_COPIES = 0x80 | 0x04 | 0x08; // GPUBufferUsage.STORAGE, COPY_SRC and COPY_DST

/** On WebGPU: buffers for the whole context that stay on the device; past and present are the same. */
export class SharedCache implements Cache {
  private constructor(
    readonly type: Kind,
    private readonly tensors: Record<string, Tensor>,
    private readonly outputs: Record<string, Tensor | null>,
  ) {}

  static async create(
    ort: typeof Ort,
    session: InferenceSession,
    manifest: Manifest,
    context: number,
  ): Promise<SharedCache> {
    const type = kindOf(session);
    const device = (await (ort.env.webgpu as unknown as { device: unknown }).device) as GpuDevice;
    const dims = [1, manifest.kvHeads, context, manifest.headDim];
    const size = dims.reduce((product, each) => product * each, type === "float16" ? 2 : 4);
    const tensors: Record<string, Tensor> = {};
    const outputs: Record<string, Tensor | null> = { logits: null };
    device.pushErrorScope("out-of-memory");
    for (const [past, present] of names(manifest)) {
      const buffer = device.createBuffer({ size: Math.ceil(size / 16) * 16, usage: STORAGE_AND_COPIES });
      const tensor = ort.Tensor.fromGpuBuffer(buffer as never, { dataType: type, dims });
      tensors[past] = outputs[present] = tensor;
    }
    const error = await device.popErrorScope();
    if (error) throw outOfMemory(`WebGPU: ${error.message}`);
    return new SharedCache(type, tensors, outputs);
  }

  feeds(): Record<string, Tensor> {
    return this.tensors;
  }

  fetches(): Record<string, Tensor | null> {
    return this.outputs;
  }

  async advance(): Promise<void> {
    // The run appended in place.
  }

  async truncate(): Promise<void> {
    // The attention mask's length says how much of the buffers counts.
  }
}

function kindOf(session: InferenceSession): Kind {
  const first = session.inputMetadata.find((each) => each.name === "past_key_values.0.key");
  const type = first?.isTensor ? first.type : "float32";
  if (type !== "float32" && type !== "float16")
    throw new AppError(`the graph's cache is ${type}`, "Export the artifact again.");
  return type;
}

/** Names of past and present, layer by layer. */
function* names(manifest: Manifest): Generator<[string, string]> {
  for (let layer = 0; layer < manifest.layers; layer++) {
    for (const kind of ["key", "value"]) yield [`past_key_values.${layer}.${kind}`, `present.${layer}.${kind}`];
  }
}
