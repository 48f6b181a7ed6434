import { AppError } from "./errors";
import type { Call, Calls, Loaded, LoadOptions, Reply, Request } from "./protocol";

interface Pending {
  readonly resolve: (value: never) => void;
  readonly reject: (error: AppError) => void;
  readonly progress: (value: never) => void;
}

/** The worker, from the page's side. */
export class Client {
  private worker = this.start();
  private pending = new Map<number, Pending>();
  private next = 1;
  /** What is loaded, null before. */
  loaded: Loaded | null = null;
  private wanted = "";

  constructor(private readonly base: string) {}

  call<Name extends Call>(
    name: Name,
    args: Calls[Name]["args"],
    progress: (value: never) => void = () => undefined,
  ): Promise<Calls[Name]["result"]> {
    const id = this.next++;
    return new Promise((resolve, reject) => {
      this.pending.set(id, { resolve, reject, progress });
      this.worker.postMessage({ id, call: name, args, base: this.base } satisfies Request);
    });
  }

  /** End what runs before its next token, part or answer. */
  stop(): void {
    this.worker.postMessage({ stop: true } satisfies Request);
  }

  /** Load the model unless it is loaded that way; another way needs another worker, whose memory is fresh. */
  async load(options: LoadOptions): Promise<Loaded> {
    const wanted = JSON.stringify(options);
    if (this.loaded && this.wanted === wanted) return this.loaded;
    if (this.wanted) this.restart();
    this.wanted = wanted;
    try {
      return (this.loaded = await this.call("load", [options]));
    } catch (cause) {
      this.restart();
      throw cause;
    }
  }

  /** End the worker and all that it holds. */
  restart(): void {
    this.worker.terminate();
    this.fail(new AppError("The model was let go of."));
    this.loaded = null;
    this.wanted = "";
    this.worker = this.start();
  }

  private start(): Worker {
    const worker = new Worker(new URL("./worker.ts", import.meta.url), { type: "module" });
    worker.onmessage = ({ data }: MessageEvent<Reply>) => this.take(data);
    worker.onerror = (event) => {
      event.preventDefault();
      const hint =
        "Reload the page. If it happens again, choose a smaller context or the WASM backend in Settings, or a smaller model.";
      this.fail(
        new AppError(
          `The engine ended: ${event.message || "the worker could not be started, or ran out of memory"}.`,
          hint,
        ),
      );
    };
    return worker;
  }

  private take(reply: Reply): void {
    const waiting = this.pending.get(reply.id);
    if (!waiting) return;
    if ("progress" in reply) return waiting.progress(reply.progress as never);
    this.pending.delete(reply.id);
    if ("error" in reply) waiting.reject(new AppError(reply.error.message, reply.error.hint));
    else waiting.resolve(reply.result as never);
  }

  private fail(error: AppError): void {
    const waiting = [...this.pending.values()];
    this.pending.clear();
    for (const each of waiting) each.reject(error);
  }
}
