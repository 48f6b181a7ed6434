import { Template } from "@huggingface/jinja";

import { AppError } from "./errors";

const SPECIAL_TOKENS = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
// Names under which libraries put an assistant's reasoning, as in edgeship_runtime.chat.
const REASONING = ["reasoning_content", "thinking", "reasoning"];
const TEMPLATE_FILE = "chat_template.jinja";
const TEMPLATE_FOLDER = "additional_chat_templates/";
const MESSAGE_HINT = 'A message is {"role": "user", "content": "..."}.';

export type Message = Readonly<Record<string, unknown>>;

export interface RenderOptions {
  readonly tools?: readonly unknown[] | null;
  readonly enableThinking?: boolean | null;
  readonly addGenerationPrompt?: boolean;
  readonly variables?: Readonly<Record<string, unknown>>;
}

/** The checkpoint's own chat template: text equal to that of edgeship_runtime.chat.ChatTemplate. */
export class ChatTemplate {
  private readonly templates = new Map<string, Template>();
  private readonly variables: Record<string, unknown>;

  constructor(sources: Readonly<Record<string, string>>, variables: Readonly<Record<string, unknown>> = {}) {
    if (!Object.hasOwn(sources, "default"))
      throw new AppError("no chat template is named 'default'", "Export the artifact again.");
    this.variables = { ...variables };
    for (const [name, source] of Object.entries(sources)) this.templates.set(name, compile(source));
  }

  /** The conversation as the text the model was trained on; AppError where the template refuses it. */
  render(messages: readonly Message[], options: RenderOptions = {}): string {
    const { tools = null, enableThinking = null, addGenerationPrompt = true, variables = {} } = options;
    if (!Array.isArray(messages) || !messages.length)
      throw new AppError("messages: the conversation is empty", MESSAGE_HINT);
    const template = (tools && this.templates.get("tool_use")) || this.templates.get("default")!;
    const given = {
      ...this.variables,
      ...variables,
      ...(enableThinking === null ? {} : { enable_thinking: enableThinking }),
      messages: messages.map(checkMessage),
      tools,
      documents: variables.documents ?? null,
      add_generation_prompt: addGenerationPrompt,
    };
    try {
      return template.render(given);
    } catch (cause) {
      throw new AppError(
        `the chat template refuses the conversation: ${(cause as Error).message}`,
        "Start a new chat: the model was not trained on conversations of this form.",
      );
    }
  }
}

/** The template of an artifact; null where it has none. `read` gives a file's text. */
export async function loadTemplate(
  names: readonly string[],
  read: (name: string) => Promise<string>,
): Promise<ChatTemplate | null> {
  const config = names.includes("tokenizer_config.json")
    ? (JSON.parse(await read("tokenizer_config.json")) as Record<string, unknown>)
    : {};
  const sources: Record<string, string> = {};
  if (names.includes(TEMPLATE_FILE)) sources.default = lines(await read(TEMPLATE_FILE));
  for (const name of names) {
    if (!name.startsWith(TEMPLATE_FOLDER) || !name.endsWith(".jinja")) continue;
    sources[name.slice(TEMPLATE_FOLDER.length, -".jinja".length)] = lines(await read(name));
  }
  if (!Object.keys(sources).length) {
    const given = config.chat_template;
    if (typeof given === "string") sources.default = given;
    else if (Array.isArray(given)) {
      for (const each of given as { name: string; template: string }[]) sources[each.name] = each.template;
    } else return null;
  }
  const tokens: Record<string, string> = {};
  for (const name of SPECIAL_TOKENS) {
    const value = config[name];
    const content = typeof value === "object" && value !== null ? (value as { content?: unknown }).content : value;
    if (typeof content === "string" && content) tokens[name] = content;
  }
  return new ChatTemplate(sources, tokens);
}

// Python reads text files with line ends made one kind, and so does transformers.
function lines(text: string): string {
  return text.replace(/\r\n?/g, "\n");
}

function compile(source: string): Template {
  try {
    return new Template(source);
  } catch (cause) {
    throw new AppError(`the chat template does not parse: ${(cause as Error).message}`, "Export the artifact again.");
  }
}

/** A copy without members that are null, reasoning under the names that templates read. */
function checkMessage(message: Message, place: number): Message {
  if (typeof message !== "object" || message === null) {
    throw new AppError(`messages[${place}]: expected an object`, MESSAGE_HINT);
  }
  const copy = Object.fromEntries(Object.entries(message).filter(([, value]) => value !== null && value !== undefined));
  if (typeof copy.role !== "string") throw new AppError(`messages[${place}].role: expected text`, MESSAGE_HINT);
  const content = copy.content ?? "";
  if (typeof content !== "string" && !Array.isArray(content)) {
    throw new AppError(`messages[${place}].content: expected text or a list of parts`, MESSAGE_HINT);
  }
  const name = REASONING.find((each) => each in copy);
  return name === undefined ? copy : { thinking: copy[name], ...copy, reasoning_content: copy[name] };
}
