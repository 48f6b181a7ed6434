import { App } from "./app";
import { chatView } from "./chat-view";
import { checkView } from "./check-view";
import { at, attempt, onPress, say, show } from "./dom";
import { hooks } from "./hooks";
import { installView } from "./install-view";
import { settingsView } from "./settings-view";
import "./style.css";

const VIEWS = ["chat", "check", "settings"] as const;
type View = (typeof VIEWS)[number];
let view: View = "chat";

function navigate(app: App, to: View): void {
  view = to;
  const installed = app.installed !== null;
  show("install", !installed || (to === "settings" && app.installing));
  show("chat", installed && to === "chat");
  show("check", installed && to === "check");
  show("settings", installed && to === "settings");
  for (const each of VIEWS) {
    const button = at<HTMLButtonElement>(`nav-${each}`);
    button.disabled = !installed;
    button.toggleAttribute("aria-current", false);
    if (installed && each === to) button.setAttribute("aria-current", "page");
  }
}

function status(app: App): void {
  const { loaded } = app.client;
  at("name").textContent = app.model.name;
  document.title = app.model.name;
  const threads = loaded && loaded.threads > 1 ? `, ${loaded.threads} threads` : "";
  const words = { wasm: "WASM", webgpu: "WebGPU" };
  const half = loaded?.kernels.endsWith("float16") ? ", 16-bit floats" : "";
  at("status").textContent = loaded
    ? `${words[loaded.backend]}${half}${threads}`
    : app.phase === "update"
      ? "update available"
      : "";
}

async function keepApp(): Promise<void> {
  if (!("serviceWorker" in navigator)) {
    say("This browser cannot keep the page for offline use here.", "Open it over https, or at localhost.");
    return;
  }
  await navigator.serviceWorker.register("sw.js", { scope: "./" }).catch((cause: Error) => {
    say(`The page cannot be kept for offline use (${cause.message}).`, "It works while its host can be reached.");
  });
}

await attempt(async () => {
  at("message-close").addEventListener("click", () => say(""));
  void keepApp();
  if (!isSecureContext) {
    say(
      "This address is not secure, so the browser keeps no files and no threads for it.",
      "Open the page over https, or at localhost.",
    );
    return;
  }
  const app = await App.start();
  Object.assign(window, { edgeship: hooks(app) });
  installView(app, () => navigate(app, "chat"));
  chatView(app);
  checkView(app);
  settingsView(app);
  for (const each of VIEWS) onPress(`nav-${each}`, () => navigate(app, each));
  app.onChange(() => {
    status(app);
    navigate(app, view);
  });
  app.changed();
  const instead = app.insteadOfChosen();
  if (instead) say(...instead);
  if (app.endedWhileLoading()) {
    say(
      "The page ended while it was loading the model: the device has most likely not enough memory for it.",
      "Close other tabs, choose a smaller context or the WASM backend in Settings, or use a smaller model.",
    );
  }
});
