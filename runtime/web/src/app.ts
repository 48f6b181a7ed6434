import { backends, lookAround, usualThreads, type Browser } from "./browser";
import { Client } from "./client";
import { AppError } from "./errors";
import type { InstallProgress } from "./install";
import type { Loaded, LoadOptions, Verdict, BenchReport } from "./protocol";
import { parseSite, type Backend, type Site } from "./site";

export type Phase = "absent" | "partial" | "installed" | "update";

interface Settings {
  backend: Backend | null;
  threads: number | null;
  context: number | null;
  temperature: number | null;
  /** Bits of the GPU's floats: 16 or 32; null for 16 where it has them. */
  floats: number | null;
}

const SETTINGS = "edgeship-settings";
const LOADING = "edgeship-loading";

/** What the page knows: the site, what is installed of it, the worker, and the person's choices. */
export class App {
  readonly base = new URL(".", location.href).href.replace(/[?#].*$/, "");
  readonly client = new Client(this.base);
  /** The site that the host has; null where it cannot be reached. */
  site: Site | null = null;
  siteJson = "";
  installed: Site | null = null;
  storedBytes = 0;
  installing = false;
  verdict: Verdict | null = null;
  bench: BenchReport | null = null;
  readonly settings: Settings;
  private readonly listeners: (() => void)[] = [];

  private constructor(readonly browser: Browser) {
    this.settings = readSettings();
  }

  static async start(): Promise<App> {
    const app = new App(await lookAround());
    await app.refresh();
    return app;
  }

  /** Called whenever something here has changed. */
  onChange(listener: () => void): void {
    this.listeners.push(listener);
  }

  changed(): void {
    for (const listener of this.listeners) listener();
  }

  /** Ask the host and the store again. */
  async refresh(): Promise<void> {
    const answer = await fetch(new URL("site.json", this.base), { cache: "no-cache" }).catch(() => null);
    if (answer?.ok) {
      this.siteJson = await answer.text();
      this.site = parseSite(this.siteJson);
    }
    const state = await this.client.call("state", [this.site]);
    this.installed = state.installed;
    this.storedBytes = state.storedBytes;
    if (!this.site && !this.installed) {
      throw new AppError(
        "The site has no site.json, or there is no connection.",
        "Open the page again when its host can be reached.",
      );
    }
    this.changed();
  }

  get phase(): Phase {
    if (this.installed) return this.site && this.site.digest !== this.installed.digest ? "update" : "installed";
    return this.storedBytes ? "partial" : "absent";
  }

  /** The site that is used: what is installed, else what the host has. */
  get model(): Site {
    return (this.installed ?? this.site)!;
  }

  get backends(): Backend[] {
    return backends(this.browser, this.model.engine);
  }

  get loadOptions(): LoadOptions {
    const { backend, threads, context, floats } = this.settings;
    const known = backend && this.backends.includes(backend) ? backend : this.backends[0]!;
    const count = this.browser.isolated ? (threads ?? usualThreads(this.browser)) : 1;
    return { backend: known, threads: count, context, half: known === "webgpu" && this.hasHalf && floats !== 32 };
  }

  /** Whether the model can be run with 16-bit floats here. */
  get hasHalf(): boolean {
    return this.browser.halfFloats && this.model.graphs.float16 !== undefined;
  }

  /** What was chosen and cannot be had here, and what is done instead; null when all can. */
  insteadOfChosen(): [message: string, hint: string] | null {
    const { backend, threads, floats } = this.settings;
    if (backend === "webgpu" && this.model.engine === "gguf") {
      return [
        "GGUF artifacts run on the processor here, not on WebGPU.",
        "The ONNX format of the artifact runs on WebGPU.",
      ];
    }
    if (backend === "webgpu" && this.browser.adapter === null) {
      return [
        "This browser has no WebGPU adapter.",
        "The processor does the work (WASM); a newer browser may have one.",
      ];
    }
    if (floats === 16 && backend !== "wasm" && this.browser.adapter !== null && !this.hasHalf) {
      return ["This GPU's shaders have no 16-bit floats.", "It computes with 32 bits, which takes more memory."];
    }
    if ((threads ?? 1) > 1 && !this.browser.isolated) {
      return [
        "This page has no SharedArrayBuffer, so one thread does the work.",
        "Serve it over https with the headers Cross-Origin-Opener-Policy: same-origin and Cross-Origin-Embedder-Policy: require-corp.",
      ];
    }
    return null;
  }

  /** Bring the model here; a download that was cut goes on. */
  async install(progress: (value: InstallProgress) => void): Promise<void> {
    if (!this.site)
      throw new AppError(
        "There is no connection to the site.",
        "What has arrived is kept: press Resume when it is back.",
      );
    this.installing = true;
    this.changed();
    await navigator.storage.persist?.().catch(() => false); // so that the browser does not clear it when space is short
    try {
      await this.client.call("install", [this.siteJson, this.backends], progress as (value: never) => void);
    } finally {
      this.installing = false;
      await this.refresh();
    }
    this.client.restart();
    this.changed();
  }

  async remove(): Promise<void> {
    this.client.restart();
    await this.client.call("remove", []);
    await caches.delete("engines");
    this.verdict = this.bench = null;
    await this.refresh();
  }

  async load(options: Partial<LoadOptions> = {}): Promise<Loaded> {
    const wanted = { ...this.loadOptions, ...options };
    if (wanted.backend === "webgpu" && !this.backends.includes("webgpu")) {
      throw new AppError("This browser has no WebGPU adapter for this model.", "Choose the WASM backend in Settings.");
    }
    if (wanted.half && !(wanted.backend === "webgpu" && this.hasHalf)) {
      throw new AppError(
        "16-bit floats need WebGPU and a GPU whose shaders have them (shader-f16).",
        "Choose 32 bits in Settings.",
      );
    }
    if (wanted.threads > 1 && !this.browser.isolated) {
      throw new AppError(
        "Threads need SharedArrayBuffer, which this page does not have.",
        "Choose one thread, or serve the page with the headers Cross-Origin-Opener-Policy and Cross-Origin-Embedder-Policy.",
      );
    }
    keep(LOADING, JSON.stringify(wanted));
    try {
      return await this.client.load(wanted);
    } finally {
      keep(LOADING, null);
      this.changed();
    }
  }

  /** How the model was being loaded when the page ended last; null when that ended well. */
  endedWhileLoading(): string | null {
    try {
      const wanted = localStorage.getItem(LOADING);
      localStorage.removeItem(LOADING);
      return wanted;
    } catch {
      return null;
    }
  }

  choose(settings: Partial<Settings>): void {
    Object.assign(this.settings, settings);
    keep(SETTINGS, JSON.stringify(this.settings));
    this.changed();
  }
}

function keep(name: string, value: string | null): void {
  try {
    if (value === null) localStorage.removeItem(name);
    else localStorage.setItem(name, value);
  } catch {
    // Without storage a choice holds until the page is closed.
  }
}

/** What was chosen before; the page's address comes first. */
function readSettings(): Settings {
  let kept: Record<string, unknown> = {};
  try {
    kept = (JSON.parse(localStorage.getItem(SETTINGS) ?? "{}") ?? {}) as Record<string, unknown>;
  } catch {
    // As on the first day.
  }
  const asked = new URLSearchParams(location.search);
  const pick = (name: string) => asked.get(name) ?? kept[name] ?? null;
  const number = (name: string, least: number) => {
    const value = pick(name);
    return value !== null && value !== "" && Number(value) >= least ? Number(value) : null;
  };
  const backend = pick("backend");
  return {
    backend: backend === "wasm" || backend === "webgpu" ? backend : null,
    threads: number("threads", 1),
    context: number("context", 16),
    temperature: number("temperature", 0),
    floats: number("floats", 16),
  };
}
