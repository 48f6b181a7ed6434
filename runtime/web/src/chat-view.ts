import type { App } from "./app";
import { at, attempt, onPress, show } from "./dom";
import { rate } from "./bench";
import { AppError } from "./errors";

type Turn = {
  readonly role: "user" | "assistant";
  readonly content: string;
};

/** The conversation; it lives as long as the page. */
export function chatView(app: App): void {
  const turns: Turn[] = [];
  const input = at<HTMLTextAreaElement>("input");
  let busy = false;
  let halted = false;

  const ready = () => {
    show("send", !busy);
    show("stop", busy);
    show("new-chat", turns.length > 0 && !busy);
    show("empty", !turns.length);
  };
  const ask = async () => {
    const content = input.value.trim();
    if (busy || !content) return;
    busy = true;
    halted = false;
    input.value = "";
    const asked = bubble("user", content);
    const answer = bubble("assistant", "");
    answer.classList.add("busy");
    turns.push({ role: "user", content });
    ready();
    try {
      if (!app.client.loaded) {
        at("speed").textContent = "Loading the model…";
        await app.load();
        if (halted) throw new AppError("The question was not asked.", "Press Send to ask it.");
      }
      at("speed").textContent = "Reading…";
      const result = await app.client.call("chat", [turns, app.settings.temperature], (text: string) => {
        answer.append(text);
        at("speed").textContent = "";
        at("transcript").scrollTop = at("transcript").scrollHeight;
      });
      turns.push({ role: "assistant", content: result.text });
      const { stats, finish } = result;
      const words = [
        `${rate(stats.steps, stats.decode).toFixed(1)} tokens/s`,
        `first after ${stats.ttft.toFixed(2)} s`,
        `${stats.tokens} tokens`,
      ];
      if (finish === "cancelled") words.push("stopped");
      if (finish === "context") words.push("the context is full: start a new chat");
      at("speed").textContent = words.join(" · ");
    } catch (cause) {
      // The question goes back to where it can be sent again.
      turns.length = turns.findLastIndex((turn) => turn.role === "user");
      asked.remove();
      answer.remove();
      input.value = content;
      at("speed").textContent = "";
      throw cause;
    } finally {
      answer.classList.remove("busy");
      busy = false;
      ready();
    }
  };

  at("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    void attempt(ask);
  });
  input.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing || matchMedia("(pointer: coarse)").matches) return;
    event.preventDefault();
    void attempt(ask);
  });
  onPress("stop", () => {
    halted = true;
    app.client.stop();
  });
  onPress("new-chat", () => {
    turns.length = 0;
    for (const each of at("transcript").querySelectorAll(".message")) each.remove();
    at("speed").textContent = "";
    ready();
    input.focus();
  });
  ready();
}

function bubble(role: Turn["role"], text: string): HTMLElement {
  const place = document.createElement("p");
  place.className = `message ${role}`;
  place.textContent = text;
  at("transcript").append(place);
  at("transcript").scrollTop = at("transcript").scrollHeight;
  return place;
}
