import type { Backend } from "./site";

interface Gpu {
  requestAdapter(): Promise<{
    info?: { vendor?: string; architecture?: string; description?: string };
    features: { has(name: string): boolean };
  } | null>;
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
  /** Whether the GPU's shaders have 16-bit floats. */
  readonly halfFloats: boolean;
}

export async function lookAround(): Promise<Browser> {
  const nav = navigator as Navigator & { deviceMemory?: number; gpu?: Gpu; userAgentData?: { platform?: string } };
  return {
    userAgent: nav.userAgent,
    platform: nav.userAgentData?.platform || nav.platform || "unknown",
    cores: nav.hardwareConcurrency || 1,
    memoryGb: nav.deviceMemory ?? null,
    isolated: crossOriginIsolated,
    ...(await lookAtGpu(nav.gpu)),
  };
}

async function lookAtGpu(gpu: Gpu | undefined): Promise<Pick<Browser, "adapter" | "halfFloats">> {
  try {
    const found = await gpu?.requestAdapter();
    if (!found) return { adapter: null, halfFloats: false };
    const { vendor = "", architecture = "", description = "" } = found.info ?? {};
    const adapter = [vendor, architecture, description].filter(Boolean).join(" ") || "WebGPU adapter";
    return { adapter, halfFloats: found.features.has("shader-f16") };
  } catch {
    return { adapter: null, halfFloats: false };
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
