import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join, resolve } from "node:path";

import { describe, expect, it } from "vitest";

import { CHATS, DATE_STRING, parseChats } from "../src/acceptance";
import { loadTemplate } from "../src/template";
import { TextTokens } from "../src/tokenizer";

// Token ids and rendered templates are Python's, on what Python wrote: the acceptance files of artifacts (EDGESHIP_ARTIFACTS:
// folders, separated by colons) and llama.cpp's vectors for Qwen2's tokenizer.
const vectors = process.env.EDGESHIP_VECTORS ?? resolve(import.meta.dirname, "../../../../shared/qwen2-tokenizer");
const artifacts = (process.env.EDGESHIP_ARTIFACTS ?? "").split(":").filter(Boolean);

const text = (path: string) => readFileSync(path, "utf8");
const tokens = (folder: string) =>
  new TextTokens(
    JSON.parse(text(join(folder, "tokenizer.json"))),
    JSON.parse(text(join(folder, "tokenizer_config.json"))),
  );

describe.skipIf(!existsSync(join(vectors, "vectors.inp")))("llama.cpp's vectors for Qwen2", () => {
  it("gives the ids of every text, and the text of the ids", () => {
    const tokenizer = tokens(vectors);
    const inputs = text(join(vectors, "vectors.inp")).split("\n__ggml_vocab_test__\n");
    const outputs = text(join(vectors, "vectors.out")).split("\n");
    expect(inputs.length).toBeGreaterThan(40);
    inputs.forEach((input, place) => {
      const expected = outputs[place]!.trim().split(/\s+/).filter(Boolean).map(Number);
      expect(tokenizer.encode(input), JSON.stringify(input)).toEqual(expected);
      expect(tokenizer.decode(expected)).toBe(input.normalize("NFC"));
    });
  });
});

describe.skipIf(!artifacts.length).each(artifacts)("the acceptance set of %s", (folder) => {
  it("gives the same text and ids for every conversation", async () => {
    const tokenizer = tokens(folder);
    const names = readdirSync(folder, { recursive: true, encoding: "utf8" });
    const template = await loadTemplate(names, (name) => Promise.resolve(text(join(folder, name))));
    const cases = parseChats(text(join(folder, CHATS)));
    expect(cases.length).toBeGreaterThan(0);
    for (const each of cases) {
      const render = () =>
        template!.render(each.messages as never, {
          tools: each.tools,
          enableThinking: each.enableThinking,
          addGenerationPrompt: each.addGenerationPrompt,
          variables: { date_string: DATE_STRING },
        });
      if (each.rendered === null) {
        expect(render, each.name).toThrow();
        continue;
      }
      expect(render(), each.name).toBe(each.rendered);
      expect(tokenizer.encode(each.rendered), each.name).toEqual(each.tokenIds);
    }
  });
});
