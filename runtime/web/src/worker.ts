import { measure } from "./bench";
import { AppError, asAppError } from "./errors";
import { install } from "./install";
import { Model } from "./model";
import type { BenchAbout, BenchOptions, Call, Calls, LoadOptions, Reply, Request } from "./protocol";
import { parseSite, type Backend, type EngineFile, type Site } from "./site";
import { Store } from "./store";
import type { Message } from "./template";
import { verify } from "./verify";

// Everything heavy runs here: downloads, hashes, tokens, the engine. One call at a time; a stop may come in between.

type Handlers = { [Name in Call]: (context: Context, ...args: Calls[Name]["args"]) => Promise<Calls[Name]["result"]> };

interface Context {
  readonly base: string;
  readonly progress: (value: unknown) => void;
}

let stop = false;
const stopped = () => stop;
let model: Promise<Model> | null = null;
let store: Promise<Store> | null = null;

const opened = () => (store ??= Store.open());

function current(): Promise<Model> {
  model ??= opened().then(Model.read);
  model.catch(() => (model = null));
  return model;
}

const handlers: Handlers = {
  async state(_, site: Site | null) {
    const files = await opened();
    return { installed: await files.installed(), storedBytes: site ? await files.storedBytes(site) : 0 };
  },
  async install({ base, progress }, json: string, backends: readonly Backend[]) {
    const site = parseSite(json);
    const job = { site, json, base, engineFiles: engineFiles(site, backends) };
    await navigator.locks.request("edgeship-install", { ifAvailable: true }, async (lock) => {
      if (!lock)
        throw new AppError("Another tab is installing the model already.", "Wait for it there, then reload this page.");
      await install(job, await opened(), progress, stopped);
    });
    model = null;
    return null;
  },
  async remove() {
    model = null;
    await (await opened()).clear();
    return null;
  },
  async load({ base }, options: LoadOptions) {
    return (await current()).load(options, base);
  },
  async chat({ progress }, messages: readonly Message[], temperature: number | null) {
    return (await current()).chat(messages, temperature, progress, stopped);
  },
  async encode(_, text: string) {
    return (await current()).tokens.encode(text);
  },
  async decode(_, ids: readonly number[]) {
    return (await current()).tokens.decode(ids);
  },
  async render(_, messages, tools, enableThinking, addGenerationPrompt, variables) {
    const { template } = await current();
    if (!template)
      throw new AppError(
        "The artifact has no chat template.",
        "Write to it as plain text, or export it from a chat model.",
      );
    return template.render(messages, { tools, enableThinking, addGenerationPrompt, variables });
  },
  async logits(_, ids: readonly number[]) {
    return (await current()).logits(ids);
  },
  async generate(_, ids: readonly number[], count: number) {
    return (await current()).generate(ids, count, stopped);
  },
  async verify({ base, progress }) {
    return verify(await current(), base, (what, share) => progress({ what, share }), stopped);
  },
  async bench({ progress }, options: BenchOptions, about: BenchAbout) {
    return measure(await current(), options, about, (what, share) => progress({ what, share }), stopped);
  },
};

/** Files of the engine for these backends; WebGPU's build is the one that this browser can run. */
function engineFiles(site: Site, backends: readonly Backend[]): EngineFile[] {
  const gpu = "Suspending" in WebAssembly ? "webgpu-jspi" : "webgpu-asyncify";
  return backends.flatMap((backend) => site.engineFiles[backend === "wasm" ? "wasm" : gpu] ?? []);
}

let turn: Promise<unknown> = Promise.resolve();

self.onmessage = ({ data }: MessageEvent<Request>) => {
  if ("stop" in data) {
    stop = true;
    return;
  }
  const { id, call, args, base } = data;
  const answer = (reply: Reply) => postMessage(reply);
  const context: Context = { base, progress: (progress) => answer({ id, progress }) };
  turn = turn.then(async () => {
    stop = false;
    try {
      const handler = handlers[call] as (context: Context, ...args: readonly unknown[]) => Promise<unknown>;
      answer({ id, result: await handler(context, ...args) });
    } catch (cause) {
      const { message, hint } = asAppError(cause);
      answer({ id, error: { message, hint } });
    }
  });
};
