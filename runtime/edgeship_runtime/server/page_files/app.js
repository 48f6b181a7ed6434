// Chat over /v1/chat/completions. What comes from the model is only ever set as text, never as HTML.

const at = (id) => document.getElementById(id);
const NUMBERS = ["temperature", "top_p", "top_k", "max_tokens", "seed"];
const KEPT = [...NUMBERS, "model", "thinking", "system", "tools"];
const MEMORY_EVERY_MS = 5000;
const SPEED_EVERY_MS = 500;
const UNREACHED = "the server is not reached";

let messages = [];
let running = null;
let partial = null; // the answer that is coming, not yet one of the messages
let speed = "";
let memory = "";

function store(name, value) {
  try {
    sessionStorage.setItem(name, value);
  } catch {
    // A browser that keeps nothing, or is full: the chat goes on without being kept.
  }
}

function restore(name, otherwise) {
  try {
    const kept = JSON.parse(sessionStorage.getItem(name));
    return kept?.constructor === otherwise.constructor ? kept : otherwise;
  } catch {
    return otherwise;
  }
}

function save() {
  store("messages", JSON.stringify(messages));
  store("prompt", JSON.stringify(at("prompt").value));
  store("settings", JSON.stringify(Object.fromEntries(KEPT.map((id) => [id, at(id).value]))));
}

function headers() {
  const key = at("key").value.trim();
  return { "Content-Type": "application/json", ...(key && { Authorization: `Bearer ${key}` }) };
}

function unreached(error) {
  throw error.name === "AbortError" ? error : new Error(UNREACHED);
}

async function failure(response) {
  const body = await response.json().catch(() => ({}));
  const wait = response.headers.get("Retry-After");
  const text = (body.error?.message ?? `the server answered ${response.status}`) + (wait ? ` (again in ${wait} s)` : "");
  return Object.assign(new Error(text), { status: response.status });
}

async function read(path) {
  const response = await fetch(path, { headers: headers() }).catch(unreached);
  if (!response.ok) throw await failure(response);
  return response.json();
}

// Elements

function element(kind, name, text = "") {
  const made = document.createElement(kind);
  made.className = name;
  made.textContent = text;
  return made;
}

function append(part) {
  const log = at("log");
  const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 80;
  part();
  if (atEnd) log.scrollTop = log.scrollHeight;
}

function folded(name, title) {
  const box = element("details", name);
  box.append(element("summary", "", title), element("div", "text"));
  return box;
}

// A message on the page; `show` brings it to what the message holds by now.
class Bubble {
  constructor(message) {
    this.message = message;
    this.root = element("article", message.role);
    this.text = element("div", "text");
    this.calls = [];
    this.root.append(this.text);
    at("log").append(this.root);
    this.show();
  }

  show() {
    const { content, reasoning_content: thought, tool_calls: calls = [] } = this.message;
    if (thought) {
      this.thought ??= this.root.insertBefore(folded("thought", ""), this.text);
      this.thought.firstChild.textContent = content || calls.length || !running ? "Thought" : "Thinking …";
      this.thought.lastChild.textContent = thought;
    }
    this.text.textContent = content ?? "";
    calls.forEach((call, i) => {
      this.calls[i] ??= this.root.appendChild(folded("call", ""));
      this.calls[i].firstChild.textContent = `Tool call: ${call.function.name}`;
      this.calls[i].children[1].textContent = call.function.arguments;
    });
  }

  note(text, kind = "note") {
    const line = element("p", kind, text);
    if (kind === "error") line.setAttribute("role", "alert");
    this.root.append(line);
  }

  // Fields for what the tools gave; the answer goes on once they are sent.
  askResults() {
    const fields = this.calls.map((box, i) => {
      const field = element("textarea", "result");
      field.rows = 1;
      field.placeholder = "Result";
      field.setAttribute("aria-label", `Result of ${this.message.tool_calls[i].function.name}`);
      box.open = true;
      box.append(field);
      return field;
    });
    const button = element("button", "results", "Send results");
    button.type = "button";
    button.addEventListener("click", () => {
      if (running) return;
      button.remove();
      fields.forEach((field, i) => {
        field.readOnly = true;
        say({ role: "tool", tool_call_id: this.message.tool_calls[i].id, content: field.value });
      });
      answer();
    });
    this.root.append(button);
  }
}

function say(message) {
  messages.push(message);
  append(() => new Bubble(message));
  save();
}

function showFigures() {
  at("figures").textContent = [speed, memory].filter(Boolean).join(" · ");
}

async function showMemory() {
  if (document.hidden) return;
  try {
    const { rss_mb: used } = await read("/v1/stats");
    memory = used === null ? "" : `${Math.round(used)} MB memory`;
  } catch (error) {
    memory = error.message === UNREACHED ? UNREACHED : "";
  }
  showFigures();
}

// Requests

function request() {
  const body = { model: at("model").value, stream: true, stream_options: { include_usage: true } };
  for (const id of NUMBERS) {
    if (at(id).value !== "") body[id] = Number(at(id).value);
  }
  if (at("thinking").value) body.enable_thinking = at("thinking").value === "true";
  if (at("tools").value.trim()) body.tools = JSON.parse(at("tools").value);
  const system = at("system").value.trim();
  // Old thoughts stay here: templates leave them out, and the request is shorter.
  const past = messages.map(({ reasoning_content: _, ...rest }) => rest);
  body.messages = system ? [{ role: "system", content: system }, ...past] : past;
  return body;
}

// The objects of a stream of server-sent events; one may come in several parts, or several in one.
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const lines = (held + value).split("\n");
    held = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data:")) continue;
      const data = line.slice(5).trim();
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}

function take(message, delta) {
  if (delta.reasoning_content) message.reasoning_content = (message.reasoning_content ?? "") + delta.reasoning_content;
  if (delta.content) message.content += delta.content;
  for (const part of delta.tool_calls ?? []) {
    message.tool_calls ??= [];
    const call = (message.tool_calls[part.index] ??= { id: "", type: "function", function: { name: "", arguments: "" } });
    if (part.id) call.id = part.id;
    call.function.name += part.function?.name ?? "";
    call.function.arguments += part.function?.arguments ?? "";
  }
}

// Tokens a second while they come: a piece is about a token, the server tells the true figure at the end.
function meter() {
  let pieces = 0;
  let first = 0;
  let shown = 0;
  return (now) => {
    pieces += 1;
    if (pieces === 2) first = shown = now; // the one before it opens the message
    if (now - shown < SPEED_EVERY_MS) return;
    shown = now;
    speed = `about ${((1000 * (pieces - 2)) / (now - first)).toFixed(1)} tokens/s`;
    showFigures();
  };
}

async function receive(body, bubble, signal) {
  const message = bubble.message;
  const options = { method: "POST", headers: headers(), body: JSON.stringify(body), signal };
  const response = await fetch("/v1/chat/completions", options).catch(unreached);
  if (!response.ok) throw await failure(response);
  const rate = meter();
  let finish = null;
  for await (const chunk of events(response.body)) {
    if (chunk.error) throw new Error(chunk.error.message);
    const choice = chunk.choices?.[0];
    if (choice) {
      take(message, choice.delta ?? {});
      rate(performance.now());
      finish = choice.finish_reason ?? finish;
      append(() => bubble.show());
    }
    if (chunk.timings) {
      const { decode_tokens_per_s: decode, ttft_s: first } = chunk.timings;
      const wait = first < 1 ? `${Math.round(first * 1000)} ms` : `${first.toFixed(1)} s`;
      speed = `${decode.toFixed(decode < 100 ? 1 : 0)} tokens/s · first token after ${wait}`;
      showFigures();
    }
  }
  if (finish === null) throw new Error("the connection ended before the answer did");
  return finish;
}

async function answer() {
  const bubble = new Bubble({ role: "assistant", content: "" });
  const message = bubble.message;
  running = new AbortController();
  partial = message;
  busy(true);
  try {
    const finish = await receive(request(), bubble, running.signal);
    if (finish === "length") bubble.note("Cut off: the token limit or the context is reached.");
    if (message.tool_calls) append(() => bubble.askResults());
  } catch (error) {
    // What a tool call holds so far cannot be run, and a template may refuse it.
    delete message.tool_calls;
    if (running.signal.aborted) bubble.note("Stopped.");
    else append(() => bubble.note(`${error.message}`, "error"));
  } finally {
    running = null;
    keep();
    busy(false);
    bubble.show();
    showMemory();
  }
}

// Keeps what there is of the running answer. A question without any goes back where it was typed: two in a row are
// what many templates refuse.
function keep() {
  if (!partial) return;
  if (running) delete partial.tool_calls; // half a call
  if (partial.content || partial.tool_calls) messages.push(partial);
  else if (messages.at(-1)?.role === "user") {
    const { content } = messages.pop();
    at("prompt").value ||= content;
  }
  partial = null;
  save();
}

function busy(now) {
  const keyboard = (now ? at("send") : at("stop")).matches(":focus-visible");
  at("send").hidden = now;
  at("stop").hidden = !now;
  at("fresh").disabled = now;
  // A screen reader reads the answer once it is whole.
  at("log").setAttribute("aria-busy", String(now));
  if (keyboard) (now ? at("stop") : at("prompt")).focus();
}

// Starting

function restoreChat() {
  for (const [id, value] of Object.entries(restore("settings", {}))) {
    if (KEPT.includes(id) && id !== "model") at(id).value = value;
  }
  messages = restore("messages", []);
  const bubbles = messages.map((message) => new Bubble(message));
  if (messages.at(-1)?.tool_calls) bubbles.at(-1).askResults();
  at("prompt").value = restore("prompt", "");
  at("log").scrollTop = at("log").scrollHeight;
}

async function fillModels() {
  try {
    const { data } = await read("/v1/models");
    const wanted = restore("settings", {}).model;
    at("model").replaceChildren(...data.map(({ id }) => new Option(id, id, false, id === wanted)));
  } catch (error) {
    speed = error.message;
    if (error.status === 401) {
      tune(true);
      at("key").focus();
    }
  }
  showFigures();
}

at("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const content = at("prompt").value.trim();
  if (running || !content) return;
  at("prompt").value = "";
  say({ role: "user", content });
  answer();
});

at("prompt").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  at("form").requestSubmit();
});

at("stop").addEventListener("click", () => running?.abort());

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") running?.abort();
});

// A page that is left in the middle of an answer keeps what came of it.
addEventListener("pagehide", () => {
  keep();
  save();
});

at("fresh").addEventListener("click", () => {
  messages = [];
  at("log").replaceChildren();
  save();
  at("prompt").focus();
});

function tune(shown) {
  at("controls").hidden = !shown;
  at("tune").setAttribute("aria-expanded", String(shown));
}

at("tune").addEventListener("click", () => tune(at("controls").hidden));

at("controls").addEventListener("change", save);
at("model").addEventListener("change", save);
at("key").addEventListener("change", () => {
  speed = "";
  fillModels();
});

tune(matchMedia("(min-width: 60rem)").matches);
restoreChat();
fillModels();
showMemory();
setInterval(showMemory, MEMORY_EVERY_MS);
