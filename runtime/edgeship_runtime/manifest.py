"""The contract of an artifact directory, `edgeship.json`: what it is, where it is from, which files, which limits.

The pipeline writes it through `write_manifest`, the runtime reads it through `read_manifest`; both go through the
same checks. A directory made by onnxruntime-genai's builder has no such file: the facts a run needs are then read
from its `genai_config.json`, and the manifest is marked as not sealed.

`read_manifest`, `write_manifest`, `locate` and `artifact_file` raise ArtifactError and nothing else.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from edgeship_runtime.errors import ArtifactError
from edgeship_runtime.facts import (
    GENERATE,
    MAX_CONTEXT,
    MAX_VOCAB,
    Budgets,
    Hints,
    ModelFacts,
    SamplingDefaults,
    SourceFacts,
    WeightFacts,
    model_facts,
    read_budgets,
    read_hints,
    read_model,
    read_sampling,
    read_source,
    read_weights,
    sampling_defaults,
)
from edgeship_runtime.files import (
    MAX_FILES,
    FileEntry,
    FileProblem,
    Progress,
    collect_files,
    compare_files,
    describe_file,
    names_problem,
    resolve_inside,
)
from edgeship_runtime.strict import Fields, parse_json, read_bytes, read_json, show

__all__ = [
    "Budgets",
    "FileEntry",
    "FileProblem",
    "Hints",
    "Manifest",
    "ModelFacts",
    "SamplingDefaults",
    "SourceFacts",
    "WeightFacts",
    "artifact_file",
    "check_files",
    "collect_files",
    "describe_file",
    "locate",
    "manifest_json",
    "model_path",
    "parse_manifest",
    "read_manifest",
    "write_manifest",
]

SCHEMA = 1
KNOWN_SCHEMAS = (1,)
FORMATS = ("onnx", "gguf")
"""Format directories of an artifact, in the order in which they are looked for."""
MANIFEST_NAME = "edgeship.json"
GENAI_NAME = "genai_config.json"
MAX_MANIFEST_BYTES = 1 << 20

UNSEALED_CONTEXT = 4096
"""KV-cache positions where no manifest says: the model's maximum can cost gigabytes."""
GGUF_SUFFIX = ".gguf"


@dataclass(frozen=True)
class Manifest:
    """One artifact directory of one format; `files` are '/'-separated names relative to it."""

    name: str
    format: str
    edgeship: str
    source: SourceFacts
    recipe: Mapping[str, Any]
    model: ModelFacts
    sampling: SamplingDefaults
    weights: WeightFacts
    ops: tuple[str, ...]
    versions: Mapping[str, str]
    budgets: Budgets
    files: Mapping[str, FileEntry]
    hints: Hints
    schema: int = SCHEMA
    sealed: bool = True
    """False for a directory without edgeship.json: there is nothing to verify it against. Not written."""
    model_file: str = "model.onnx"
    """Name of the file the engine opens. Not written: a rule of the format for sealed artifacts."""


def locate(path: Path | str, formats: Sequence[str] = FORMATS) -> Path:
    """The artifact meant by `path`: a directory itself, its first format directory in `formats`, or a GGUF file."""
    path = Path(path)
    try:
        is_directory, is_file, exists = path.is_dir(), path.is_file(), path.exists()
    except (OSError, ValueError) as error:  # a NUL in the path, a name too long, no permission
        raise ArtifactError(f"{show(str(path))}: not a path that can be opened ({error})") from None
    if is_file and path.suffix.lower() == GGUF_SUFFIX:
        return path
    if not is_directory:
        raise _no_directory(path, exists)
    if _is_partial(path.resolve()):
        raise _unfinished(path)
    for candidate in (path, *(path / name for name in formats)):
        if (candidate / MANIFEST_NAME).exists() or (candidate / GENAI_NAME).exists():
            return candidate
    entries = sorted(path.iterdir())
    for entry in entries:
        if _is_partial(entry):
            raise _unfinished(entry)
    alone = next((entry for entry in entries if entry.suffix == GGUF_SUFFIX and entry.is_file()), None)
    raise ArtifactError(
        f"{path}: no artifact here: looked for {MANIFEST_NAME} and {GENAI_NAME} in it and in "
        f"{' and '.join(f'{name}/' for name in formats)}",
        hint=f"a GGUF file is given by its own name: {alone}"
        if alone
        else "give the directory that `edgeship export` printed, for instance artifacts/tiny-int4",
    )


def _is_partial(path: Path) -> bool:
    return path.name.startswith(".") and path.name.endswith(".partial") and path.is_dir()


def _unfinished(path: Path) -> ArtifactError:
    return ArtifactError(
        f"{path}: an export that was interrupted, not an artifact",
        hint="run the same `edgeship export` command again: it goes on where it stopped",
    )


def _no_directory(path: Path, exists: bool) -> ArtifactError:
    if exists:
        return ArtifactError(
            f"{path}: expected the directory of an artifact or a .gguf file, found a file of another kind",
            hint=f"try its directory: {path.parent}",
        )
    try:
        siblings = [each.name for each in path.parent.iterdir() if _may_be_meant(each)]
    except OSError:
        siblings = []
    close = difflib.get_close_matches(path.name, siblings, n=1)
    hint = f"did you mean {path.parent / close[0]}?" if close else "`edgeship export` makes artifacts/NAME"
    return ArtifactError(f"{path}: no such {'file' if path.suffix == GGUF_SUFFIX else 'directory'}", hint=hint)


def _may_be_meant(entry: Path) -> bool:
    return entry.name[0] != "." and (entry.is_dir() or entry.suffix == GGUF_SUFFIX)


def read_manifest(directory: Path | str) -> Manifest:
    """Read `edgeship.json` of an artifact directory, or where there is none the facts in `genai_config.json`.

    Of a GGUF file the facts in its header.
    """
    directory = Path(directory)
    if directory.suffix.lower() == GGUF_SUFFIX and not directory.is_dir():
        from edgeship_runtime.unsealed import read_gguf

        return read_gguf(directory)
    if not (directory / MANIFEST_NAME).exists() and (directory / GENAI_NAME).exists():
        return _read_genai(directory)
    raw = read_bytes(resolve_inside(directory, MANIFEST_NAME), MAX_MANIFEST_BYTES)
    manifest = parse_manifest(raw, str(directory / MANIFEST_NAME))
    for name in manifest.files:
        resolve_inside(directory, name)
    return manifest


def write_manifest(directory: Path | str, manifest: Manifest) -> Path:
    """Check and write `edgeship.json`, in place or not at all; equal manifests give equal bytes."""
    path = Path(directory) / MANIFEST_NAME
    raw = manifest_json(manifest)
    parse_manifest(raw, str(path))
    draft = path.with_name(f".{MANIFEST_NAME}.{os.getpid()}")
    try:
        with draft.open("wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise ArtifactError(f"{path}: cannot be written ({error})", hint="check the disk and its permissions") from None
    return path


def manifest_json(manifest: Manifest) -> bytes:
    """The bytes of `edgeship.json`: UTF-8, keys sorted, two spaces, a final newline."""
    members = asdict(manifest)
    del members["sealed"], members["model_file"]
    if members["model"]["task"] == GENERATE:
        del members["model"]["task"]
    try:
        text = json.dumps(members, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
        return f"{text}\n".encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ArtifactError(f"the manifest holds what JSON cannot ({error})", hint="a defect of edgeship") from None


def artifact_file(directory: Path, manifest: Manifest, name: str) -> Path:
    """The path of a file that the engine or tokenizer is about to open.

    Raises ArtifactError when the manifest does not name it, it is missing, not a file, of another size than sealed,
    or a link leads out of the directory. Bytes are not hashed here: that is what `verify` is for.
    """
    if manifest.sealed and name not in manifest.files:
        hint = "an unnamed file is not trusted: export the artifact again rather than adding files to it"
        raise ArtifactError(f"{directory}: {name} is needed and {MANIFEST_NAME} does not name it", hint=hint)
    path = resolve_inside(directory, name)
    damaged = "run `edgeship-runtime verify` on the directory, or copy it again from where it came from"
    if not path.is_file():
        raise ArtifactError(f"{path}: the file is needed and does not exist", hint=damaged)
    entry = manifest.files.get(name)
    if entry and path.stat().st_size != entry.size:
        found = f"expected {entry.size} bytes, found {path.stat().st_size}"
        raise ArtifactError(f"{path}: {found}: the file was cut short or replaced", hint=damaged)
    return path


def model_path(directory: Path, manifest: Manifest) -> Path:
    """The path of the file the engine opens; `directory` is the artifact, or a GGUF file. Raises as `artifact_file`."""
    return directory if directory.is_file() else artifact_file(directory, manifest, manifest.model_file)


def check_files(
    directory: Path, manifest: Manifest, progress: Progress | None = None, *, threads: int = 4
) -> list[FileProblem]:
    """Compare every file with its sealed size and sha256, and name the missing and the unnamed; empty when intact."""
    return compare_files(directory, manifest.files, unlisted=(MANIFEST_NAME,), progress=progress, threads=threads)


_WRITTEN = tuple(each.name for each in fields(Manifest) if each.name not in ("sealed", "model_file"))


def parse_manifest(raw: bytes, where: str = MANIFEST_NAME) -> Manifest:
    """Check the bytes of an `edgeship.json`; `where` names it in errors."""
    value = parse_json(raw, where)
    known = ", ".join(map(str, KNOWN_SCHEMAS))
    schema = Fields(value, where, "", ("schema",), open=True).value("schema")
    if isinstance(schema, bool) or not isinstance(schema, int) or schema not in KNOWN_SCHEMAS:
        raise ArtifactError(
            f"{where}: schema version {show(schema)}; this edgeship-runtime knows {known}",
            hint="a newer artifact needs a newer runtime: pip install --upgrade edgeship-runtime",
        )
    top = Fields(value, where, "", _WRITTEN)
    form = top.text("format", choices=FORMATS)
    files = _read_files(top)
    return Manifest(
        name=top.text("name", limit=200),
        format=form,
        edgeship=top.text("edgeship", limit=100),
        source=read_source(top),
        recipe=top.mapping("recipe", 100),
        model=read_model(top),
        sampling=read_sampling(top),
        weights=read_weights(top),
        ops=top.texts("ops", limit=1000),
        versions=top.text_mapping("versions"),
        budgets=read_budgets(top),
        files=files,
        hints=read_hints(top),
        schema=schema,
        model_file=_model_file(form, files),
    )


def _model_file(form: str, files: Mapping[str, FileEntry]) -> str:
    return next((name for name in sorted(files) if name.endswith(".gguf")), "") if form == "gguf" else "model.onnx"


def _read_files(top: Fields) -> dict[str, FileEntry]:
    members = top.mapping("files", MAX_FILES)
    problem = names_problem([MANIFEST_NAME, *members])
    if problem:
        raise top.error("files", problem, "do not use this artifact")
    listed = top.object("files", (), tuple(members))
    entries = {}
    for name in members:
        entry = listed.object(name, ("size", "sha256"))
        digest = entry.text("sha256", limit=64)
        if len(digest) != 64 or set(digest) - set("0123456789abcdef"):
            raise entry.error("sha256", f"expected 64 lower-case hex digits, found {show(digest)}")
        entries[name] = FileEntry(entry.integer("size", 0, 1 << 50), digest)
    return entries


def _read_genai(directory: Path) -> Manifest:
    """Facts of a directory made by onnxruntime-genai's builder, whose members are its own and not listed here."""
    path = resolve_inside(directory, GENAI_NAME)
    top = Fields(read_json(path, MAX_MANIFEST_BYTES), str(path), "", ("model",), open=True)
    model = top.object("model", ("decoder", "type", "vocab_size", "context_length", "eos_token_id"), open=True)
    decoder = model.object("decoder", ("filename",), open=True)
    single = isinstance(model.value("eos_token_id"), int)
    low, high = 0, MAX_VOCAB
    eos = (model.integer("eos_token_id", low, high),) if single else model.integers("eos_token_id", low, high, limit=64)
    context = model.integer("context_length", 1, MAX_CONTEXT)
    facts = model_facts(
        model,
        heads=("num_hidden_layers", "num_key_value_heads", "head_size"),
        eos=eos,
        default_context=min(context, UNSEALED_CONTEXT),
        logits="all",
        sizes=decoder,
    )
    search = top.object("search", (), open=True) if "search" in top else Fields({}, str(path), "search", ())
    sampling = sampling_defaults(search, SamplingDefaults())
    if search.value("do_sample") is False:
        sampling = SamplingDefaults(temperature=0.0, repetition_penalty=sampling.repetition_penalty)
    name = directory.resolve().name
    model_file = decoder.text("filename")
    resolve_inside(directory, model_file)
    return Manifest(
        name=name,
        format="onnx",
        edgeship="",
        source=SourceFacts("local", name, ""),
        recipe={},
        model=facts,
        sampling=sampling,
        weights=WeightFacts(None),
        ops=(),
        versions={},
        budgets=Budgets(),
        files={},
        hints=Hints(),
        sealed=False,
        model_file=model_file,
    )
