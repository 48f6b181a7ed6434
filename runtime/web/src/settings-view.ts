import type { App } from "./app";
import { at, mb, onPress, show } from "./dom";

const NAMES = { wasm: "WASM", webgpu: "WebGPU" };

/** Backend, threads, context, temperature; what is stored, and how to be rid of it. */
export function settingsView(app: App): void {
  const [backend, floats, threads, context, temperature] = [
    at<HTMLSelectElement>("backend"),
    at<HTMLSelectElement>("floats"),
    at<HTMLInputElement>("threads"),
    at<HTMLInputElement>("context"),
    at<HTMLInputElement>("temperature"),
  ];
  const draw = () => {
    const { browser, settings, phase } = app;
    const { backend: chosen, threads: count, half } = app.loadOptions;
    backend.replaceChildren(...app.backends.map((name) => new Option(NAMES[name], name, false, name === chosen)));
    show("floats-row", chosen === "webgpu" && app.hasHalf);
    floats.value = half ? "16" : "32";
    threads.value = String(count);
    threads.disabled = !browser.isolated;
    context.value = settings.context === null ? "" : String(settings.context);
    context.placeholder = app.client.loaded ? String(app.client.loaded.context) : "the model's";
    temperature.value = settings.temperature === null ? "" : String(settings.temperature);
    temperature.placeholder = app.client.loaded ? String(app.client.loaded.temperature) : "the model's";
    at("abilities").textContent = [
      browser.adapter === null
        ? "This browser has no WebGPU adapter: the processor does the work."
        : `WebGPU: ${browser.adapter}${browser.halfFloats ? ", with 16-bit floats" : ""}.`,
      browser.isolated
        ? `${browser.cores} cores, threads can be used.`
        : "One thread: SharedArrayBuffer needs the COOP and COEP headers and a secure address.",
      app.model.engine === "gguf" ? "GGUF runs on the processor here." : "",
    ].join(" ");
    show("update-button", phase === "update" && !app.installing);
    void storage(app);
  };
  const number = (input: HTMLInputElement) =>
    input.value === "" || !input.validity.valid ? null : Number(input.value);
  // What is loaded another way is let go of; the next message loads it again.
  const reload = () => app.client.loaded && app.client.restart();
  backend.addEventListener("change", () => (reload(), app.choose({ backend: backend.value as "wasm" | "webgpu" })));
  floats.addEventListener("change", () => (reload(), app.choose({ floats: Number(floats.value) })));
  threads.addEventListener("change", () => (reload(), app.choose({ threads: number(threads) })));
  context.addEventListener("change", () => (reload(), app.choose({ context: number(context) })));
  temperature.addEventListener("change", () => app.choose({ temperature: number(temperature) }));
  onPress("remove-button", () => app.remove());
  app.onChange(draw);
  draw();
}

async function storage(app: App): Promise<void> {
  const { usage = 0, quota = 0 } = await navigator.storage.estimate();
  const kept = (await navigator.storage.persisted?.())
    ? "kept until removed"
    : "the browser may clear it when space is short";
  at("storage").textContent = `${app.model.name}: ${mb(usage)} used of ${mb(quota)} that the browser gives; ${kept}.`;
}
