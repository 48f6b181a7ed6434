"""What an artifact is, from its manifest alone: no engine, no tokenizer, no numpy."""

from __future__ import annotations

from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from edgeship_runtime.engines import formats
from edgeship_runtime.facts import GENERATE
from edgeship_runtime.gguf_model import read_model
from edgeship_runtime.manifest import MANIFEST_NAME, Manifest, locate, read_manifest

_KV_BYTES = {"onnx": 4, "gguf": 2}  # of a key or value: float32, and float16 where not chosen otherwise


def describe(path: str | Path) -> dict[str, Any]:
    """Everything the manifest says, file sizes and what the KV cache costs, as plain values; raises ArtifactError.

    Sizes are in bytes, or in MB of 10^6 bytes where a name says so.
    """
    directory = locate(path, formats())
    manifest = read_manifest(directory)
    files = _file_sizes(directory, manifest)
    model = manifest.model
    per_token = model.layers * 2 * model.kv_heads * model.head_dim * _KV_BYTES[manifest.format]
    per_token *= model.task == GENERATE
    return {
        "artifact": str(directory),
        "name": manifest.name,
        "format": manifest.format,
        "sealed": manifest.sealed,
        "edgeship": manifest.edgeship,
        "source": asdict(manifest.source),
        "recipe": dict(manifest.recipe),
        "model": asdict(model),
        "weights": {"bits_per_weight": manifest.weights.bits_per_weight, "parts": dict(manifest.weights.parts)},
        "kv_cache": {"bytes_per_token": per_token, "mb": round(per_token * model.default_context / 1e6, 3)},
        "sampling": asdict(manifest.sampling),
        "ops": list(manifest.ops),
        "versions": {
            name: {"needed": needed, "installed": _installed(name)} for name, needed in manifest.versions.items()
        },
        "budgets": asdict(manifest.budgets),
        "hints": asdict(manifest.hints),
        "files": files,
        "size_mb": round(sum(files.values()) / 1e6, 3),
    }


def _file_sizes(directory: Path, manifest: Manifest) -> dict[str, int]:
    """Bytes of each file by name: as sealed, or for a directory that is not, as found."""
    if manifest.sealed:
        sizes = {name: entry.size for name, entry in manifest.files.items()}
        return dict(sorted((sizes | {MANIFEST_NAME: (directory / MANIFEST_NAME).stat().st_size}).items()))
    if directory.is_file():
        return {header.path.name: header.size for header in read_model(directory)}
    return {entry.name: entry.stat().st_size for entry in sorted(directory.iterdir()) if entry.is_file()}


def _installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except (metadata.PackageNotFoundError, ValueError):
        return None


def table(facts: dict[str, Any]) -> str:
    """The same for people."""
    model, weights, cache = facts["model"], facts["weights"], facts["kv_cache"]
    bits = weights["bits_per_weight"]
    needs = [
        f"{name} {each['needed']} ({each['installed'] or 'not installed'})" for name, each in facts["versions"].items()
    ]
    rows = [
        ("artifact", facts["artifact"]),
        ("what", f"{facts['name']}: {model['type']}, format {facts['format']}, {_seal(facts)}"),
        ("source", " ".join(filter(None, facts["source"].values()))),
        ("size", f"{facts['size_mb']:.1f} MB{_budget(facts['budgets']['size_mb'])}"),
        ("weights", f"{bits:.2f} bits per weight: {_pairs(weights['parts'])}" if bits else "not known"),
        ("model", f"{model['layers']} layers of {model['hidden_size']}, vocabulary of {model['vocab_size']}"),
        ("context", f"{model['default_context']} tokens, at most {model['context_length']}"),
        ("KV cache", f"{cache['bytes_per_token']} bytes a token, {cache['mb']:.1f} MB at the default context"),
        ("ends with", ", ".join(map(str, model["eos_token_ids"])) or "no token"),
        ("sampling", _pairs(facts["sampling"])),
        ("memory", _budget(facts["budgets"]["ram_mb"]).lstrip(", ") or "no budget"),
        ("threads", str(facts["hints"]["threads"] or "as many as physical cores")),
        ("needs", ", ".join(needs) or "not known"),
        ("operators", ", ".join(facts["ops"]) or "not known"),
    ]
    files = [f"  {size:>14,} {name}" for name, size in facts["files"].items()]
    return "\n".join([*(f"{name:<12} {text}" for name, text in rows), "files (bytes)", *files])


def _seal(facts: dict[str, Any]) -> str:
    return f"sealed by edgeship {facts['edgeship']}" if facts["sealed"] else f"not sealed: no {MANIFEST_NAME}"


def _budget(limit: float | None) -> str:
    return "" if limit is None else f", budget {limit:g} MB"


def _pairs(members: dict[str, Any]) -> str:
    return ", ".join(
        f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}" for name, value in members.items()
    )
