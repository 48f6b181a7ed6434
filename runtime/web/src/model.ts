import { GREEDY, MANIFEST, parseManifest, type Manifest } from "./manifest";
import { AppError } from "./errors";
import { Engine, type Answer } from "./engine";
import { openGguf } from "./gguf";
import { openOnnx } from "./onnx";
import type { ChatAnswer, Loaded, LoadOptions } from "./protocol";
import type { Site } from "./site";
import type { Store, SyncFile } from "./store";
import { loadTemplate, type ChatTemplate, type Message } from "./template";
import { TextTokens } from "./tokenizer";

/** The words around a model: files, tokenizer, chat template, and the engine once it is loaded. */
export class Model {
  engine: Engine | null = null;
  loaded: Loaded | null = null;

  private constructor(
    readonly store: Store,
    readonly site: Site,
    readonly manifest: Manifest,
    readonly tokens: TextTokens,
    readonly template: ChatTemplate | null,
  ) {}

  /** Read the small files of the installed model. */
  static async read(store: Store): Promise<Model> {
    const site = await store.installed();
    if (!site) throw new AppError("No model is installed.", "Press Install first.");
    const read = (name: string) => store.text(site.digest, name);
    const manifest = parseManifest(await read(MANIFEST));
    const names = Object.keys(manifest.files);
    if (!names.includes("tokenizer.json")) {
      throw new AppError("The artifact has no tokenizer.json.", "Export it again from a checkpoint that has one.");
    }
    const config = names.includes("tokenizer_config.json") ? JSON.parse(await read("tokenizer_config.json")) : {};
    const tokens = new TextTokens(JSON.parse(await read("tokenizer.json")), config);
    return new Model(store, site, manifest, tokens, await loadTemplate(names, read));
  }

  /** Load the weights; a second call is an error: memory is given back only when the worker ends. */
  async load(options: LoadOptions, base: string): Promise<Loaded> {
    if (this.loaded) throw new AppError("The model is loaded already.", "Reload the page.");
    const start = performance.now();
    const { manifest, site, store } = this;
    const context = Math.min(options.context ?? manifest.defaultContext, manifest.contextLength);
    const folder = new URL(`engines/${site.engine}/`, base);
    if (site.engine === "gguf") {
      const model = await store.file(site.digest, manifest.modelFile);
      this.engine = new Engine(await openGguf(model, manifest, { threads: options.threads, context, base: folder }));
    } else {
      const graph = options.half ? site.graphs.float16 : options.backend === "wasm" ? site.graphs.tiled : null;
      const model = await store.file(site.digest, graph ?? manifest.modelFile);
      const data: Record<string, { blob: Blob; open: () => Promise<SyncFile> }> = {};
      for (const name of Object.keys(manifest.files)) {
        if (!name.startsWith(`${manifest.modelFile}.`)) continue;
        const open = () => store.read(site.digest, name);
        data[name] = { blob: await store.file(site.digest, name), open };
      }
      this.engine = new Engine(await openOnnx({ model, data }, manifest, { ...options, context, base: folder }));
    }
    this.loaded = {
      engine: this.engine.sequence.name,
      kernels: this.engine.sequence.kernels,
      backend: options.backend,
      threads: this.engine.sequence.threads,
      context,
      contextLimit: manifest.contextLength,
      temperature: manifest.sampling.temperature,
      seconds: (performance.now() - start) / 1000,
    };
    return this.loaded;
  }

  /** Answer a conversation; `give` gets whole characters as they come. */
  async chat(
    messages: readonly Message[],
    temperature: number | null,
    give: (text: string) => void,
    stopped: () => boolean,
  ): Promise<ChatAnswer> {
    const { engine, manifest } = this;
    if (!engine) throw notLoaded();
    const text = this.template
      ? this.template.render(messages)
      : messages.map((each) => String(each.content)).join("\n");
    const prompt = this.tokens.encode(text);
    const stream = this.tokens.detokenizer();
    const parts: string[] = [];
    const out = (part: string) => {
      if (!part) return;
      parts.push(part);
      give(part);
    };
    const sampling = { ...manifest.sampling, ...(temperature === null ? {} : { temperature }) };
    const options = { sampling, maxTokens: engine.sequence.context, endIds: manifest.eosIds };
    const { finish, stats } = await engine.answer(prompt, options, (id) => out(stream.push(id)), stopped);
    out(stream.flush());
    return { text: parts.join(""), finish, stats };
  }

  /** `count` greedy tokens after `ids`, whatever they are; the cache is emptied before. */
  async generate(ids: readonly number[], count: number, stopped: () => boolean): Promise<Answer> {
    if (!this.engine) throw notLoaded();
    await this.engine.forget();
    return this.engine.answer(ids, { sampling: GREEDY, maxTokens: count, endIds: [] }, () => undefined, stopped);
  }

  async logits(ids: readonly number[]): Promise<Float32Array> {
    if (!this.engine) throw notLoaded();
    await this.engine.forget();
    return this.engine.logits(ids);
  }
}

export function notLoaded(): AppError {
  return new AppError("The model is not loaded.", "Load it first.");
}
