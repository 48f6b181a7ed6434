import { Fields, parseJson } from "./fields";

/** Files and layouts are those of edgeship_runtime.acceptance. */
export const CHATS = "acceptance/chats.json";
export const GOLDEN = "acceptance/golden.json";
export const FIDELITY = "acceptance/fidelity.json";

/** Given to every acceptance render, as edgeship_runtime.acceptance.DATE_STRING. */
export const DATE_STRING = "26 Jul 2024";

export interface ChatCase {
  readonly name: string;
  readonly messages: unknown[];
  readonly tools: unknown[] | null;
  readonly enableThinking: boolean | null;
  readonly addGenerationPrompt: boolean;
  /** null: the template refuses this conversation. */
  readonly rendered: string | null;
  readonly tokenIds: readonly number[];
  /** As tokenIds, but where llama.cpp makes special tokens of plain ones, such as </s>; newer ones do. */
  readonly ggufTokenIds: readonly number[];
}

export interface Position {
  readonly index: number;
  readonly topIds: readonly number[];
  readonly topLogits: readonly number[];
  readonly std: number;
}

export interface GoldenCase {
  readonly name: string;
  readonly tokens: readonly number[];
  readonly positions: readonly Position[];
}

export interface Golden {
  readonly cases: readonly GoldenCase[];
  readonly tieTolerance: number;
  /** What the divergence from a float model's predictions may be on average, in nats; 0 in golden.json. */
  readonly klBudget: number;
}

export function parseChats(text: string): ChatCase[] {
  return open(text, CHATS)
    .items("cases")
    .map((each) => {
      const refused = each.value("error") !== undefined;
      return {
        name: each.text("name"),
        messages: each.list("messages"),
        tools: each.value("tools") == null ? null : each.list("tools"),
        enableThinking: each.value("enable_thinking") == null ? null : each.flag("enable_thinking"),
        addGenerationPrompt: each.flag("add_generation_prompt"),
        rendered: refused ? null : each.text("rendered"),
        tokenIds: refused ? [] : each.wholes("token_ids"),
        ggufTokenIds: each.value("gguf_token_ids") == null ? [] : each.wholes("gguf_token_ids"),
      };
    });
}

export function parseGolden(text: string, where: string = GOLDEN): Golden {
  const top = open(text, where);
  return {
    cases: top.items("cases").map((each) => ({
      name: each.text("name"),
      tokens: [...each.wholes("prompt_ids"), ...each.wholes("continuation")],
      positions: each.items("positions").map(readPosition),
    })),
    tieTolerance: Math.min(top.number("tie_tolerance"), 0.5),
    klBudget: top.value("kl_budget") == null ? 0 : top.number("kl_budget"),
  };
}

function readPosition(place: Fields): Position {
  const topIds = place.wholes("top_ids");
  const topLogits = place.numbers("top_logits");
  if (!topIds.length || topIds.length !== topLogits.length) place.fail("top_ids", "one for each logit", topIds);
  return { index: place.whole("index"), topIds, topLogits, std: place.number("std") };
}

function open(text: string, where: string): Fields {
  const top = new Fields(parseJson(text, where), where);
  if (top.value("schema") !== 1) top.fail("schema", "1", top.value("schema"));
  return top;
}
