import { describe, expect, it } from "vitest";

import { parseChats, parseGolden } from "../src/acceptance";
import { asAppError } from "../src/errors";
import { parseManifest } from "../src/manifest";
import { parseSite } from "../src/site";

const HASH = "a".repeat(64);
const part = { offset: 0, size: 4, sha256: HASH };
const file = { name: "model.onnx", size: 4, sha256: HASH, url: "model/model.onnx", parts: [part] };
const site = {
  schema: 1,
  name: "tiny",
  engine: "onnx",
  edgeship: "0.1.0",
  digest: HASH,
  bytes: 4,
  files: [file],
  graphs: {},
  engine_files: { wasm: [{ url: "engines/onnx/a.wasm", size: 1, sha256: HASH }] },
  results: null,
};
const read = (change: object) => parseSite(JSON.stringify({ ...site, ...change }));

describe("chats.json", () => {
  const chat = { name: "one", messages: [], add_generation_prompt: true, rendered: "a", token_ids: [1] };
  const chats = (change: object) => parseChats(JSON.stringify({ schema: 1, cases: [{ ...chat, ...change }] }));

  it("may have other ids by llama.cpp", () => {
    expect(chats({})[0]).toMatchObject({ tokenIds: [1], ggufTokenIds: [] });
    expect(chats({ gguf_token_ids: [2] })[0]).toMatchObject({ tokenIds: [1], ggufTokenIds: [2] });
    expect(() => chats({ gguf_token_ids: ["2"] })).toThrow(/gguf_token_ids/);
  });
});

describe("site.json", () => {
  it("is read", () => {
    const found = read({ results: "results" });
    expect(found).toMatchObject({ name: "tiny", engine: "onnx", digest: HASH, bytes: 4, results: "results" });
    expect(found.files[0]!.parts).toEqual([{ ...part, url: null }]);
    expect(found.engineFiles.wasm).toHaveLength(1);
  });

  it.each(["float16", "tiled"])("names its %s graph, which is one of its files", (variant) => {
    expect(read({}).graphs).toEqual({});
    expect(read({ graphs: { [variant]: "model.onnx" } }).graphs).toEqual({ [variant]: "model.onnx" });
    for (const name of ["other.onnx", "../model.onnx", "", 16])
      expect(() => read({ graphs: { [variant]: name } })).toThrow(/graphs/);
  });

  it.each([
    ["not JSON", "{"],
    ["a list", "[]"],
    ["another schema", JSON.stringify({ ...site, schema: 2 })],
    ["no digest", JSON.stringify({ ...site, digest: "abc" })],
    ["a foreign engine", JSON.stringify({ ...site, engine: "tflite" })],
  ])("is refused: %s", (_, text) => {
    expect(() => parseSite(text)).toThrow(/site\.json/);
  });

  it.each(["../a", "a/../b", "/a", "a//b", "", "a\\b", "C:a", "."])("refuses the file name %j", (name) => {
    expect(() => read({ files: [{ ...file, name }] })).toThrow(/name/);
  });

  it.each([
    "https://elsewhere.example/a",
    "//elsewhere.example/a",
    "/a",
    "../a",
    "a/../../b",
    "a/%2e%2e/b",
    "data:,a",
    "a?b",
    "blob:x",
  ])("refuses the address %j", (url) => {
    expect(() => read({ files: [{ ...file, url }] })).toThrow(/relative URL/);
    expect(() => read({ files: [{ ...file, parts: [{ ...part, url }] }] })).toThrow(/relative URL/);
    expect(() => read({ results: url })).toThrow(/relative URL/);
  });

  it.each([
    ["a gap", [part, { ...part, offset: 5 }]],
    ["too few bytes", []],
    ["too many", [part, { ...part, offset: 4 }]],
    ["a part too large to hash", [{ ...part, size: 65 << 20 }]],
  ])("refuses parts with %s", (_, parts) => {
    expect(() => read({ files: [{ ...file, parts }] })).toThrow(/parts/);
  });

  it("refuses a name that is given twice", () => {
    expect(() => read({ files: [file, file] })).toThrow(/every name once/);
  });
});

const manifest = {
  name: "tiny",
  format: "onnx",
  files: { "model.onnx": { size: 4, sha256: HASH } },
  budgets: { size_mb: 3, ram_mb: null },
  model: {
    vocab_size: 10,
    layers: 2,
    kv_heads: 1,
    head_dim: 4,
    context_length: 64,
    default_context: 32,
    eos_token_ids: [1],
  },
  sampling: { temperature: 0.7, top_k: 20, top_p: 0.8, min_p: 0, repetition_penalty: 1.1, presence_penalty: 0 },
};

describe("edgeship.json", () => {
  it("is read", () => {
    const found = parseManifest(JSON.stringify(manifest));
    expect(found).toMatchObject({ modelFile: "model.onnx", sizeBudgetMb: 3, eosIds: [1], defaultContext: 32 });
    expect(found.sampling).toMatchObject({ temperature: 0.7, topK: 20, repetitionPenalty: 1.1 });
  });

  it("names the GGUF file, and refuses an artifact without one", () => {
    const gguf = { ...manifest, format: "gguf", files: { "a-Q4_0.gguf": { size: 4, sha256: HASH } } };
    expect(parseManifest(JSON.stringify(gguf)).modelFile).toBe("a-Q4_0.gguf");
    expect(() => parseManifest(JSON.stringify({ ...gguf, files: {} }))).toThrow(/gguf/);
  });

  it("refuses a model that does not write text", () => {
    const embedder = { ...manifest, model: { ...manifest.model, task: "embed" } };
    expect(() => parseManifest(JSON.stringify(embedder))).toThrow(/embed/);
  });
});

describe("acceptance files", () => {
  it("keep refused conversations apart", () => {
    const given = { name: "a", messages: [], tools: null, enable_thinking: null, add_generation_prompt: true };
    const cases = [
      { ...given, error: "no" },
      { ...given, rendered: "x", token_ids: [1] },
    ];
    expect(parseChats(JSON.stringify({ schema: 1, cases })).map((each) => each.rendered)).toEqual([null, "x"]);
  });

  it("hold the tie tolerance to at most half a deviation, and want an id for each logit", () => {
    const position = { index: 0, top_ids: [1, 2], top_logits: [2, 1], std: 1 };
    const golden = {
      schema: 1,
      made_with: "x",
      tie_tolerance: 9,
      cases: [{ name: "a", prompt_ids: [3], continuation: [4], positions: [position] }],
    };
    expect(parseGolden(JSON.stringify(golden))).toMatchObject({ tieTolerance: 0.5, cases: [{ tokens: [3, 4] }] });
    golden.cases[0]!.positions[0]!.top_logits = [2];
    expect(() => parseGolden(JSON.stringify(golden))).toThrow(/top_ids/);
  });
});

describe("errors", () => {
  it.each([
    "std::bad_alloc",
    "Aborted(OOM)",
    "WebAssembly.Memory(): could not allocate memory",
    "Array buffer allocation failed",
    "Cannot allocate WebAssembly.Memory",
  ])("say what to choose instead: %s", (text) => expect(asAppError(new Error(text)).hint).toMatch(/smaller/));

  it("say that a full storage is resumable", () => {
    expect(asAppError(new DOMException("full", "QuotaExceededError")).hint).toMatch(/Resume/);
  });
});
