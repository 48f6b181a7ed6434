import { AppError } from "./errors";
import { Fields, parseJson } from "./fields";

/** How tokens are chosen; meanings are those of edgeship_runtime.sampling. */
export interface Sampling {
  readonly temperature: number;
  readonly topK: number;
  readonly topP: number;
  readonly minP: number;
  readonly repetitionPenalty: number;
  readonly presencePenalty: number;
}

export const GREEDY: Sampling = {
  temperature: 0,
  topK: 0,
  topP: 1,
  minP: 0,
  repetitionPenalty: 1,
  presencePenalty: 0,
};

export interface FileEntry {
  readonly size: number;
  readonly sha256: string;
}

/** What the page needs of `edgeship.json`. */
export interface Manifest {
  readonly name: string;
  readonly format: "onnx" | "gguf";
  readonly files: Readonly<Record<string, FileEntry>>;
  readonly modelFile: string;
  readonly sizeBudgetMb: number | null;
  readonly eosIds: readonly number[];
  readonly vocabSize: number;
  readonly layers: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly contextLength: number;
  readonly defaultContext: number;
  readonly sampling: Sampling;
}

export const MANIFEST = "edgeship.json";

/** Check the text of an `edgeship.json`. */
export function parseManifest(text: string): Manifest {
  const top = new Fields(parseJson(text, MANIFEST), MANIFEST);
  const format = top.text("format");
  if (format !== "onnx" && format !== "gguf") return top.fail("format", "onnx or gguf", format);
  const model = top.inner("model");
  const task = model.textOrNull("task");
  if (task !== null && task !== "generate") {
    throw new AppError(
      `${MANIFEST}: this page runs models that write text; this one's task is ${task}`,
      "Use a Pi or a computer.",
    );
  }
  const files: Record<string, FileEntry> = {};
  const listed = top.inner("files");
  for (const name of listed.names()) {
    const entry = listed.inner(name);
    files[name] = { size: entry.whole("size"), sha256: entry.text("sha256") };
  }
  const gguf = Object.keys(files)
    .sort()
    .find((name) => name.endsWith(".gguf"));
  const sampling = top.inner("sampling");
  const budgets = top.inner("budgets");
  return {
    name: top.text("name"),
    format,
    files,
    modelFile: format === "gguf" ? (gguf ?? top.fail("files", "a .gguf file", files)) : "model.onnx",
    sizeBudgetMb: budgets.value("size_mb") == null ? null : budgets.number("size_mb"),
    eosIds: model.wholes("eos_token_ids"),
    vocabSize: model.whole("vocab_size", 1),
    layers: model.whole("layers", 1),
    kvHeads: model.whole("kv_heads", 1),
    headDim: model.whole("head_dim", 1),
    contextLength: model.whole("context_length", 1),
    defaultContext: model.whole("default_context", 1),
    sampling: {
      temperature: sampling.number("temperature"),
      topK: sampling.whole("top_k"),
      topP: sampling.number("top_p"),
      minP: sampling.number("min_p"),
      repetitionPenalty: sampling.number("repetition_penalty"),
      presencePenalty: sampling.number("presence_penalty"),
    },
  };
}
