// After `vite build`: the engines' files beside the app, what they are (engines.json), the licences of all that is
// shipped, what `npm audit` says, and the service worker's list of files.
import { execFile } from "node:child_process";
import { createHash } from "node:crypto";
import { copyFileSync, existsSync, mkdirSync, readdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const dist = join(root, "dist");
const modules = join(root, "node_modules");

const ORT = "onnxruntime-web/dist";
const BUILDS = {
  wasm: ["ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"],
  "webgpu-jspi": ["ort.jspi.min.mjs", "ort-wasm-simd-threaded.jspi.mjs", "ort-wasm-simd-threaded.jspi.wasm"],
  "webgpu-asyncify": [
    "ort.webgpu.min.mjs",
    "ort-wasm-simd-threaded.asyncify.mjs",
    "ort-wasm-simd-threaded.asyncify.wasm",
  ],
};
const WLLAMA = {
  "wllama.min.js": "@wllama/wllama/esm/index.min.js",
  "single-thread.wasm": "@wllama/wllama/esm/single-thread/wllama.wasm",
  "multi-thread.wasm": "@wllama/wllama/esm/multi-thread/wllama.wasm",
};

// What onnxruntime-web brings for its WebGL backend, which is in none of the builds above.
const LEFT_OUT = ["flatbuffers", "guid-typescript", "long", "platform", "protobufjs"];

const digest = (path) => createHash("sha256").update(readFileSync(path)).digest("hex");

/** Copy a file of node_modules unchanged; its entry of engines.json. */
function ship(from, url) {
  const to = join(dist, url);
  mkdirSync(dirname(to), { recursive: true });
  copyFileSync(join(modules, from), to);
  return { url, size: statSync(to).size, sha256: digest(to) };
}

function engines() {
  const onnx = {};
  for (const [name, files] of Object.entries(BUILDS))
    onnx[name] = files.map((file) => ship(`${ORT}/${file}`, `engines/onnx/${file}`));
  const wasm = Object.entries(WLLAMA).map(([name, from]) => ship(from, `engines/gguf/${name}`));
  return { onnx, gguf: { wasm } };
}

/** The packages that end up on a phone, and those they bring. */
function licences() {
  const found = new Map();
  const add = (name) => {
    const folder = join(modules, name);
    if (found.has(name) || LEFT_OUT.includes(name) || !existsSync(join(folder, "package.json"))) return;
    const about = JSON.parse(readFileSync(join(folder, "package.json"), "utf8"));
    const file = readdirSync(folder).find((each) => /^licen[cs]e/i.test(each));
    // Packages of onnxruntime carry no text: it is their project's, kept in licences/.
    const text = file
      ? readFileSync(join(folder, file), "utf8")
      : name.startsWith("onnxruntime")
        ? kept("onnxruntime")
        : "";
    found.set(name, { name, version: about.version, licence: about.license ?? "see text", text });
    for (const each of Object.keys(about.dependencies ?? {})) add(each);
  };
  for (const name of Object.keys(JSON.parse(readFileSync(join(root, "package.json"), "utf8")).dependencies)) add(name);
  const inside = `in wllama ${found.get("@wllama/wllama").version}`;
  found.set("llama.cpp", { name: "llama.cpp", version: inside, licence: "MIT", text: kept("llama.cpp") });
  return [...found.values()].sort((a, b) => (a.name < b.name ? -1 : 1));
}

const kept = (name) => readFileSync(join(root, "licences", `${name}.txt`), "utf8");

async function audit() {
  const run = promisify(execFile)("npm", ["audit", "--omit=dev", "--json"], {
    cwd: root,
    timeout: 60_000,
    maxBuffer: 1 << 24,
  });
  const { stdout } = await run.catch((error) => error); // npm exits with 1 where it finds something
  try {
    const said = JSON.parse(stdout);
    return said.vulnerabilities ? said : { error: said.error?.summary || said.message || "npm audit gave no answer" };
  } catch {
    return { error: "npm audit could not ask the registry" };
  }
}

/** The app's files by URL: what the service worker keeps. */
function appFiles() {
  const names = readdirSync(dist, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) =>
      join(entry.parentPath, entry.name)
        .slice(dist.length + 1)
        .replaceAll("\\", "/"),
    );
  return names.filter((name) => !/^(engines\/|sw\.js$|.*\.json$)/.test(name)).sort();
}

const files = appFiles();
const worker = join(dist, "sw.js");
const shell = ["./", ...files.filter((name) => name !== "index.html")];
const code = readFileSync(worker, "utf8");
const all = createHash("sha256").update(code);
for (const name of files) all.update(`${name} ${digest(join(dist, name))}\n`);
writeFileSync(
  worker,
  code.replace("__APP_FILES__", shell.join(" ")).replace("__APP_DIGEST__", all.digest("hex").slice(0, 12)),
);
writeFileSync(join(dist, "engines.json"), `${JSON.stringify(engines(), null, 1)}\n`);
writeFileSync(join(dist, "licences.json"), `${JSON.stringify(licences(), null, 1)}\n`);
writeFileSync(join(dist, "audit.json"), `${JSON.stringify(await audit(), null, 1)}\n`);
const size = [...files, "sw.js"].reduce((sum, name) => sum + statSync(join(dist, name)).size, 0);
console.log(`the app: ${(size / 1e3).toFixed(0)} KB in ${files.length + 1} files`);
