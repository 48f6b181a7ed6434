"""A static site of one artifact for the browser of a phone: the app, its engine, and the model in parts with hashes.

`site.json` is what the app reads; `bundle.json` names every file, and `edgeship serve-web` serves no other. The folder
`model/` is a model folder of transformers.js too: the weights lie in it once, under the name it wants, and the app
fetches them by ranges. An ONNX artifact has two more graphs on these weights: `float16` for GPUs with such floats, and
`tiled` for WebAssembly.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from importlib.resources import files as resources
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from edgeship import __version__
from edgeship.device import Device
from edgeship.errors import ArtifactError, PlanError
from edgeship.progress import Progress
from edgeship.ship import archive, half_graph, making, tiled_graph, transformers_js
from edgeship.ship.making import Bundle, Source
from edgeship.ship.web_app import App, audit_summary, find_app
from edgeship.sizes import format_size
from edgeship_runtime.engines import FORMAT_OF
from edgeship_runtime.errors import EdgeshipRuntimeError
from edgeship_runtime.facts import GENERATE
from edgeship_runtime.manifest import GENAI_NAME, MANIFEST_NAME, FileEntry, collect_files, describe_file
from edgeship_runtime.strict import Fields, read_json

SCHEMA = 1
KIND = "site"
BROWSER = "browser"
"""The `os` of devices that such bundles are for."""

GRAPHS = {"float16": half_graph.NAME, "tiled": tiled_graph.NAME}
"""Graphs beside the artifact's own, by what site.json calls them."""
PART = 8 << 20
"""Bytes of a part: what a connection that breaks costs at most."""
MAX_FILE = (1 << 31) - 1
"""Bytes of one file: what an ArrayBuffer holds in every browser, and wllama's own limit."""


def make_web_bundle(
    artifact: Path,
    device: Device,
    engine: str | None,
    out: Path,
    *,
    app: Path | None = None,
    split: bool = False,
    kind: archive.Kind | None = "gz",
    progress: Progress,
) -> Bundle:
    """Make OUT/NAME-DEVICE-ENGINE/ and an archive beside it; one of that name is replaced when all is done.

    `app`: a folder that was built; None: built from its sources with npm. `split`: each part is a file of its own, for
    hosts that limit sizes. `engine` and `kind` are those of `make_bundle`. Raises what that raises, PlanError for an
    artifact that no browser can hold, and what `find_app` raises.
    """
    making.check_engine(engine)
    if kind == "zst":
        archive.zstandard()  # refused before minutes of work
    order = [engine] if engine else [e for e in device.engines if e in making.ENGINES]
    source, engine = making.read_source(artifact, order, device.name, progress)
    _check(source)
    built = find_app(app, progress)
    name = making.safe_name(source.manifest.name)
    title = f"{name}-{device.name}-{engine}"
    with making.reported(out):
        out.mkdir(parents=True, exist_ok=True)
        with making.alone(out, title), TemporaryDirectory(dir=out, prefix=f".{title}.") as scratch:
            folder = Path(scratch) / title
            _copy_app(built, FORMAT_OF[engine], folder)
            placed = _place(source, folder, split=split, progress=progress)
            _write_site(source, placed, built, folder)
            digest, files = _describe(source, device, engine, name, built, folder, split=split)
            packed = making.pack(folder, kind, progress)
            final, packed = making.publish(folder, packed, out)
    sizes = _sizes(built, files)
    return Bundle(final, packed, name, device.name, engine, digest, files, sizes, audit_summary(built.audit))


def _sizes(app: App, files: Mapping[str, FileEntry]) -> dict[str, int]:
    """Bytes of the app, the engine, and the artifact."""
    by_folder = {"engine": "engines/", "artifact": "model/"}
    return {"app": sum(app.files[each].size for each in app.own)} | {
        what: sum(e.size for name, e in files.items() if name.startswith(folder)) for what, folder in by_folder.items()
    }


def _check(source: Source) -> None:
    manifest = source.manifest
    if manifest.model.task != GENERATE:
        text = f"{source.directory}: a model for {manifest.model.task}; the browser app is for text generation."
        raise PlanError(text, hint="run it with transformers.js or onnxruntime-web in a page of your own")
    for name, entry in manifest.files.items():
        if entry.size > MAX_FILE:
            raise PlanError(
                f"{name}: {format_size(entry.size)}; a browser holds files of at most 2 GiB; nothing was made.",
                hint="choose a smaller recipe: edgeship recipes --device phone-web",
            )


def _copy_app(app: App, form: str, folder: Path) -> None:
    """Everything that was built but the other format's engine."""
    mine = set(app.engine_files(form))
    for name in app.files:
        if name in mine or not name.startswith("engines/"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(app.path / name, folder / name)


def _place(source: Source, folder: Path, *, split: bool, progress: Progress) -> list[dict[str, Any]]:
    """Copy the artifact into `model/`; returns the entries of site.json's `files`."""
    manifest, placed = source.manifest, []
    progress.start(sum(entry.size for entry in manifest.files.values()), "artifact")
    for name in sorted([MANIFEST_NAME, *manifest.files]):
        own = transformers_js.data_name(manifest) if name == transformers_js.DATA and not split else name
        entry = _place_file(source.directory / name, folder, f"model/{own}", split=split)
        _check_copy(name, FileEntry(entry["size"], entry["sha256"]), manifest.files.get(name))
        placed.append({"name": name} | entry)
        progress.advance(entry["size"], name)
    progress.finish()
    if manifest.format == "onnx":
        placed += _place_graphs(source, folder, split=split)
        if not split:
            _place_transformers_js(source, folder / "model")
    return placed


def _place_graphs(source: Source, folder: Path, *, split: bool) -> Iterator[dict[str, Any]]:
    raw = (source.directory / transformers_js.GRAPH).read_bytes()
    graphs = {half_graph.NAME: half_graph.half_graph(raw), tiled_graph.NAME: tiled_graph.tiled_graph(raw)}
    with TemporaryDirectory() as scratch:
        for name, graph in graphs.items():
            path = Path(scratch) / name
            path.write_bytes(graph)
            yield {"name": name} | _place_file(path, folder, f"model/{name}", split=split)


def _place_file(path: Path, folder: Path, url: str, *, split: bool) -> dict[str, Any]:
    whole, size = hashlib.sha256(), 0
    parts: list[dict[str, Any]] = []
    to = folder / url
    to.parent.mkdir(parents=True, exist_ok=True)
    if not split:
        to.touch()
    for i, piece in enumerate(_pieces(path)):
        part = {"offset": size, "size": len(piece), "sha256": hashlib.sha256(piece).hexdigest()}
        parts.append(part | ({"url": f"{url}.{i:03}"} if split else {}))
        with to.with_name(f"{to.name}.{i:03}").open("wb") if split else to.open("ab") as file:
            file.write(piece)
        whole.update(piece)
        size += len(piece)
    return {"size": size, "sha256": whole.hexdigest(), "url": url, "parts": parts}


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(PART):
            yield piece


def _check_copy(name: str, found: FileEntry, sealed: FileEntry | None) -> None:
    if sealed is not None and found != sealed:
        text = f"{name}: the copy is not what the artifact's manifest says; nothing was made."
        raise ArtifactError(text, hint="it was changed meanwhile; run it again")


def _place_transformers_js(source: Source, model: Path) -> None:
    manifest = source.manifest
    graph = transformers_js.graph((source.directory / transformers_js.GRAPH).read_bytes(), manifest)
    path = model / transformers_js.graph_name(manifest)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(graph)
    _write_json(model / "config.json", transformers_js.config(manifest, _attention_heads(source)))


def _attention_heads(source: Source) -> int:
    """As genai_config.json says it; without that file, as models whose heads together are as wide as they are."""
    model = source.manifest.model
    if GENAI_NAME not in source.manifest.files:
        return model.hidden_size // model.head_dim
    try:
        path = source.directory / GENAI_NAME
        top = Fields(read_json(path, 1 << 20), str(path), "", ("model",), open=True)
        decoder = top.object("model", ("decoder",), open=True).object("decoder", (), open=True)
        return decoder.integer("num_attention_heads", 1, 1 << 16)
    except EdgeshipRuntimeError as error:
        raise ArtifactError(error.message, hint=error.hint) from None


def _write_site(source: Source, placed: list[dict[str, Any]], app: App, folder: Path) -> None:
    by_name = {each["name"]: each["sha256"] for each in placed}
    graphs = {kind: name for kind, name in GRAPHS.items() if name in by_name}
    # The manifest names by hash all that the artifact brings.
    made_of = [by_name[name] for name in (MANIFEST_NAME, *graphs.values())]
    engine = app.engines[source.manifest.format]
    site = {
        "schema": SCHEMA,
        "name": source.manifest.name,
        "engine": source.manifest.format,
        "edgeship": __version__,
        "digest": hashlib.sha256(json.dumps([made_of, engine], sort_keys=True).encode()).hexdigest(),
        "bytes": sum(each["size"] for each in placed),
        "files": placed,
        "graphs": graphs,
        "engine_files": engine,
        "results": None,
    }
    _write_json(folder / "site.json", site)


def _describe(
    source: Source, device: Device, engine: str, name: str, app: App, folder: Path, *, split: bool
) -> tuple[str, dict[str, FileEntry]]:
    """Write README.md and bundle.json; returns the digest of all files, and those."""
    files = collect_files(folder)
    carried = {"device": device.name, "engine": engine, "files": {n: e.sha256 for n, e in files.items()}}
    digest = hashlib.sha256(json.dumps(carried, sort_keys=True).encode()).hexdigest()
    (folder / "README.md").write_text(_readme(source, device, app, split=split), encoding="utf-8")
    files = dict(sorted((files | {"README.md": describe_file(folder / "README.md")}).items()))
    licences = [{"name": one.name, "version": one.version, "licence": one.licence} for one in app.licences]
    body = {
        "schema": SCHEMA,
        "kind": KIND,
        "edgeship": __version__,
        "name": name,
        "device": device.to_json(),
        "engine": engine,
        "digest": digest,
        "artifact": {
            "name": source.manifest.name,
            "format": source.manifest.format,
            "digest": files[_manifest_file(files)].sha256,
        },
        "app": {"digest": app.digest, "size": sum(app.files[each].size for each in app.own)},
        "audit": audit_summary(app.audit),
        "licences": licences,
        "files": {n: {"size": entry.size, "sha256": entry.sha256} for n, entry in files.items()},
    }
    _write_json(folder / "bundle.json", body)
    return digest, files


def _manifest_file(files: Mapping[str, FileEntry]) -> str:
    plain = f"model/{MANIFEST_NAME}"
    return plain if plain in files else f"{plain}.000"


def _readme(source: Source, device: Device, app: App, *, split: bool) -> str:
    manifest = source.manifest
    rows = "\n".join(f"| {one.name} | {one.version} | {one.licence} |" for one in app.licences)
    values = {
        "NAME": manifest.name,
        "DEVICE": device.name,
        "LICENCES": rows,
        "AUDIT": audit_summary(app.audit),
        "TRANSFORMERS_JS": _transformers_js_section(source) if manifest.format == "onnx" and not split else "",
    }
    text = (resources("edgeship.ship") / "templates" / "web.md").read_text(encoding="utf-8")
    for key, value in values.items():
        text = text.replace(f"@{key}@", value)
    return text


def _transformers_js_section(source: Source) -> str:
    dtype = transformers_js.dtype(source.manifest)
    return f"""
## In transformers.js

`model/` is a model folder of transformers.js as well, with the same weights:

```js
import {{ env, pipeline }} from "@huggingface/transformers";
env.allowLocalModels = true;
env.localModelPath = "/"; // in a page: the path on its own host that `model` lies in; in Node: this folder
const generate = await pipeline("text-generation", "model", {{ dtype: "{dtype}" }});
```

In a page and without WebGPU it needs onnxruntime-web's build for WebAssembly alone, which the other leaves kernels out
of: `env.backends.onnx.wasm.wasmPaths = {{ mjs, wasm }}`, the addresses of `ort-wasm-simd-threaded.mjs` and `.wasm`.
"""


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
