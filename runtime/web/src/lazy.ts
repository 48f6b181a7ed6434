import type { SyncFile } from "./store";

/**
 * A file that looks like its bytes and is read where it is asked for: `subarray` is all that onnxruntime-web calls on
 * external data, so that the weights are in memory once and not twice while they are loaded.
 */
export class LazyBytes extends Uint8Array {
  private file: SyncFile | null = null;
  private scratch = new Uint8Array(0);

  static over(file: SyncFile): LazyBytes {
    const bytes = new LazyBytes(0);
    bytes.file = file;
    return bytes;
  }

  // What typed arrays make of themselves (`slice`, `map`) are plain bytes.
  static get [Symbol.species](): Uint8ArrayConstructor {
    return Uint8Array;
  }

  override get byteLength(): number {
    return this.file?.getSize() ?? 0;
  }

  override get length(): number {
    return this.byteLength;
  }

  /** Bytes that hold until the next call: they are copied at once, and garbage of a model's size would stay for long. */
  override subarray(begin = 0, end = this.byteLength): Uint8Array<ArrayBuffer> {
    const size = Math.max(end - begin, 0);
    if (this.scratch.length < size) {
      this.free();
      this.scratch = new Uint8Array(size);
    }
    const bytes = this.scratch.subarray(0, size);
    const count = this.file?.read(bytes, { at: begin }) ?? 0;
    if (count !== size) throw new Error(`expected ${size} bytes of a weight file, found ${count}`);
    return bytes;
  }

  close(): void {
    this.file?.close();
    this.file = null;
    this.free();
  }

  // At once where the browser can (2024 and later), else when it next collects garbage.
  private free(): void {
    (this.scratch.buffer as ArrayBuffer & { transfer?: (size: number) => ArrayBuffer }).transfer?.(0);
    this.scratch = new Uint8Array(0);
  }
}
