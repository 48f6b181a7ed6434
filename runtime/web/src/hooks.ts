import type { App } from "./app";
import { runBench, runVerify, results, sendResults } from "./check-view";
import { rate } from "./bench";
import type { BenchOptions, LoadOptions } from "./protocol";
import type { Message } from "./template";

/** `window.edgeship`: what the page does, for scripts and tests. */
export function hooks(app: App) {
  const { client } = app;
  return {
    async state() {
      await app.refresh();
      return {
        installed: app.installed !== null,
        phase: app.phase,
        digest: app.installed?.digest ?? null,
        stored_bytes: app.storedBytes,
        ...app.loadOptions,
        isolated: app.browser.isolated,
        adapter: app.browser.adapter,
        offline_ready: app.installed !== null && navigator.serviceWorker?.controller != null,
        loaded: client.loaded,
      };
    },
    install: () => app.install(() => undefined),
    remove: () => app.remove(),
    load: (options: Partial<LoadOptions> = {}) => app.load(options),
    async unload() {
      client.restart();
      app.changed();
    },
    encode: (text: string) => client.call("encode", [text]),
    decode: (ids: number[]) => client.call("decode", [ids]),
    render: (
      messages: Message[],
      tools: unknown[] | null = null,
      thinking: boolean | null = null,
      prompt = true,
      extra: Record<string, unknown> = {},
    ) => client.call("render", [messages, tools, thinking, prompt, extra]),
    async logits(ids: number[]) {
      if (!client.loaded) await app.load();
      return Array.from(await client.call("logits", [ids]));
    },
    async generate(ids: number[], count: number) {
      if (!client.loaded) await app.load();
      const { ids: given, stats } = await client.call("generate", [ids, count]);
      return {
        ids: given,
        ttft_s: stats.ttft,
        prefill_tokens_per_s: rate(stats.promptTokens - stats.cachedTokens, stats.prefill),
        decode_tokens_per_s: rate(stats.steps, stats.decode),
      };
    },
    verify: () => runVerify(app),
    bench: (options: Partial<BenchOptions> = {}) => runBench(app, options),
    results: async () => results(app),
    send: () => sendResults(app),
  };
}
