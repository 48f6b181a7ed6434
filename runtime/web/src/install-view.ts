import type { App } from "./app";
import { at, attempt, bar, mb, onPress, show } from "./dom";

/** The first screen: what is to be downloaded, how far it is, and a way on after a cut. */
export function installView(app: App, done: () => void): void {
  let busy = false;
  const draw = () => {
    const { phase } = app;
    const site = app.site ?? app.model;
    at("install-title").textContent = phase === "update" ? `Update ${site.name}` : `Install ${site.name}`;
    const engine = site.engine === "onnx" ? "ONNX Runtime Web" : "llama.cpp";
    const bytes = app.backends.reduce(
      (sum, name) => sum + (site.engineFiles[name] ?? []).reduce((all, file) => all + file.size, 0),
      site.bytes,
    );
    at("install-what").textContent =
      `${mb(bytes)} are downloaded once and kept on this device: the model, and ${engine} to run it. After that the page works without a network.`;
    const button = at<HTMLButtonElement>("install-button");
    button.textContent = phase === "partial" ? "Resume" : phase === "update" ? "Update" : "Install";
    button.disabled = busy;
    show("pause-button", busy);
    if (!busy) {
      at("install-status").textContent =
        phase === "partial" ? `${mb(app.storedBytes)} of ${mb(site.bytes)} are here.` : "";
      bar("progress", phase === "partial" ? app.storedBytes / site.bytes : null);
    }
  };
  const run = async () => {
    if (busy) return;
    busy = true;
    draw();
    try {
      await app.install(({ done: count, total, what }) => {
        bar("progress", count / total);
        at("install-status").textContent = `${mb(count)} of ${mb(total)}: ${what}`;
      });
      done();
    } finally {
      busy = false;
      draw();
    }
  };
  onPress("install-button", run);
  onPress("pause-button", () => app.client.stop());
  at("update-button").addEventListener("click", () => void attempt(run));
  app.onChange(draw);
  draw();
}
