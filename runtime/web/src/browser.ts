import type { Backend } from "./site";

interface Gpu {
  requestAdapter(): Promise<{ info?: { vendor?: string; architecture?: string; description?: string } } | null>;
}

/** What this browser can do. */
export interface Browser {
  readonly userAgent: string;
  readonly platform: string;
  readonly cores: number;
  readonly memoryGb: number | null;
  /** Whether threads can share memory: COOP and COEP headers came with the page. */
  readonly isolated: boolean;
  /** The GPU's name; null where WebGPU has no adapter. */
  readonly adapter: string | null;
}

export async function lookAround(): Promise<Browser> {
  const nav = navigator as Navigator & { deviceMemory?: number; gpu?: Gpu; userAgentData?: { platform?: string } };
  return {
    userAgent: nav.userAgent,
    platform: nav.userAgentData?.platform || nav.platform || "unknown",
    cores: nav.hardwareConcurrency || 1,
    memoryGb: nav.deviceMemory ?? null,
    isolated: crossOriginIsolated,
    adapter: await adapterName(nav.gpu),
  };
}

async function adapterName(gpu: Gpu | undefined): Promise<string | null> {
  try {
    const adapter = await gpu?.requestAdapter();
    if (!adapter) return null;
    const { vendor = "", architecture = "", description = "" } = adapter.info ?? {};
    return [vendor, architecture, description].filter(Boolean).join(" ") || "WebGPU adapter";
  } catch {
    return null;
  }
}

/** Threads to begin with: half of the cores, as phones have slow ones and fast ones. */
export function usualThreads(browser: Browser): number {
  return browser.isolated ? Math.max(1, Math.min(4, browser.cores >> 1)) : 1;
}

/** Backends in the order to choose from. */
export function backends(browser: Browser, engine: "onnx" | "gguf"): Backend[] {
  return engine === "onnx" && browser.adapter !== null ? ["webgpu", "wasm"] : ["wasm"];
}

/** Memory of the page and its workers in MB of 10^6 bytes; null where the browser does not say. */
export async function memoryMb(): Promise<number | null> {
  const { measureUserAgentSpecificMemory: measure } = performance as Performance & {
    measureUserAgentSpecificMemory?: () => Promise<{ bytes: number }>;
  };
  if (!measure || !crossOriginIsolated) return null;
  try {
    // Browsers wait for a garbage collection, which may be long in coming.
    const late = new Promise<null>((resolve) => setTimeout(() => resolve(null), 25_000));
    const found = await Promise.race([measure.call(performance), late]);
    return found && Math.round(found.bytes / 1e5) / 10;
  } catch {
    return null;
  }
}
