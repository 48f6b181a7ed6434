import { AppError } from "./errors";
import { Fields, parseJson } from "./fields";

export type EngineKind = "onnx" | "gguf";
export type Backend = "wasm" | "webgpu";
const VARIANTS = ["float16", "tiled"] as const;
type Variant = (typeof VARIANTS)[number];

/** Consecutive bytes of a file; with a `url` of its own it is fetched whole, else as a range of the file's. */
export interface Part {
  readonly offset: number;
  readonly size: number;
  readonly sha256: string;
  readonly url: string | null;
}

export interface SiteFile {
  readonly name: string;
  readonly size: number;
  readonly sha256: string;
  readonly url: string;
  readonly parts: readonly Part[];
}

/** A file that an engine needs, beside the app. */
export interface EngineFile {
  readonly url: string;
  readonly size: number;
  readonly sha256: string;
}

/** What `site.json` says. */
export interface Site {
  readonly name: string;
  readonly engine: EngineKind;
  readonly edgeship: string;
  readonly digest: string;
  readonly bytes: number;
  readonly files: readonly SiteFile[];
  /** Files with further graphs on the same weights: for GPUs with 16-bit floats, and with products in tiles for WASM. */
  readonly graphs: Readonly<Partial<Record<Variant, string>>>;
  readonly engineFiles: Readonly<Record<string, readonly EngineFile[]>>;
  readonly results: string | null;
}

const MAX_PART = 64 << 20; // a part is held in memory while it is hashed

/** Check the text of a `site.json`. */
export function parseSite(text: string): Site {
  const top = new Fields(parseJson(text, "site.json"), "site.json");
  if (top.whole("schema") !== 1) {
    throw new AppError(`site.json: schema ${top.whole("schema")}; this app knows 1`, "Make the bundle again.");
  }
  const engine = top.text("engine");
  if (engine !== "onnx" && engine !== "gguf") return top.fail("engine", "onnx or gguf", engine);
  const digest = hex(top, "digest");
  const files = top.items("files").map(readFile);
  const bytes = files.reduce((sum, file) => sum + file.size, 0);
  if (new Set(files.map((file) => file.name)).size !== files.length) top.fail("files", "every name once", files);
  const graphs: Partial<Record<Variant, string>> = {};
  const listed = top.inner("graphs");
  for (const variant of VARIANTS) {
    const graph = listed.textOrNull(variant);
    if (graph === null) continue;
    if (!files.some((file) => file.name === graph)) listed.fail(variant, "the name of one of the files", graph);
    graphs[variant] = graph;
  }
  const groups = top.inner("engine_files");
  const engineFiles: Record<string, EngineFile[]> = {};
  for (const name of groups.names()) {
    engineFiles[name] = groups
      .items(name)
      .map((each) => ({ url: relative(each, "url"), size: each.whole("size"), sha256: hex(each, "sha256") }));
  }
  const results = top.textOrNull("results") === null ? null : relative(top, "results");
  const [name, edgeship] = [top.text("name"), top.text("edgeship")];
  return { name, engine, edgeship, digest, bytes, files, graphs, engineFiles, results };
}

function readFile(file: Fields): SiteFile {
  const name = file.text("name");
  if (
    !/^[^\\:<>"|?*\0]{1,240}$/.test(name) ||
    name.split("/").some((part) => part === "" || part === "." || part === "..")
  ) {
    file.fail("name", "a path inside the model's folder", name);
  }
  const size = file.whole("size");
  const parts = file.items("parts").map((part) => ({
    offset: part.whole("offset"),
    size: part.whole("size", 1),
    sha256: hex(part, "sha256"),
    url: part.textOrNull("url") === null ? null : relative(part, "url"),
  }));
  let end = 0;
  for (const part of parts) {
    if (part.offset !== end || part.size > MAX_PART)
      file.fail("parts", "parts in order, without gaps, of up to 64 MiB", parts);
    end += part.size;
  }
  if (end !== size) file.fail("parts", `${size} bytes in all`, end);
  return { name, size, sha256: hex(file, "sha256"), url: relative(file, "url"), parts };
}

/** A URL below the site's own folder: the site's files may name no other place. */
function relative(fields: Fields, name: string): string {
  const url = fields.text(name);
  if (
    !/^[A-Za-z0-9_~%@+=,()!-][^\\?#:]*$/.test(url) ||
    url.split("/").some((part) => part === ".." || /^(%2e){1,2}$/i.test(part))
  ) {
    fields.fail(name, "a relative URL inside the site", url);
  }
  return url;
}

function hex(fields: Fields, name: string): string {
  const value = fields.text(name);
  return /^[0-9a-f]{64}$/.test(value) ? value : fields.fail(name, "64 lower-case hex digits", value);
}
