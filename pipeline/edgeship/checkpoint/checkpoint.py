"""A checkpoint directory as one mapping of lazy tensors, and the account of every one of them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeship.archs.base import Role
from edgeship.checkpoint.files import (
    CONFIG,
    INDEX,
    choose_weights,
    parse_index,
    read_limited,
    require_tokenizer,
    side_files,
)
from edgeship.checkpoint.safetensors import open_shard
from edgeship.checkpoint.strict_json import parse_object, show, some
from edgeship.errors import CheckpointError
from edgeship.tensors import LazyTensor

HEAD = "lm_head.weight"
DERIVED = ".rotary_emb.inv_freq"  # a buffer that old versions of transformers saved; it follows from config.json
WHICH_DIRECTORY = "give the directory that holds config.json, tokenizer.json and the safetensors files"
COMPARE_BYTES = 4 << 20  # of each tensor held while two are compared


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint; holding it costs no memory beyond names and shapes."""

    path: Path
    config: dict[str, Any]
    tensors: Mapping[str, LazyTensor]
    revision: str
    files: tuple[Path, ...]  # every file it is made of: config, tokenizer, index, weights


def open_checkpoint(path: Path, revision: str = "local") -> Checkpoint:
    """Open the checkpoint in the directory `path`, checking every header and the index, reading no weights.

    Raises CheckpointError when files are missing, damaged, contradictory or refused (pickle, GGUF).
    """
    names = _list(path)
    weights = choose_weights(names, str(path), lambda: read_limited(path / INDEX))
    config = read_config(path)
    require_tokenizer(names, str(path))
    shards = {name: open_shard(path / name) for name in weights}
    tensors = _merge(path, shards)
    used = set(side_files(names)) | set(weights)
    if INDEX in names:
        _check_index(path, shards)
        used.add(INDEX)
    return Checkpoint(path, config, tensors, revision, tuple(path / n for n in sorted(used)))


def read_config(path: Path) -> dict[str, Any]:
    """The config.json of the checkpoint directory `path` (or that very file), parsed strictly.

    Raises CheckpointError when it is missing, not one JSON object, repeats a key, or says the weights are quantized.
    """
    try:
        file = path / CONFIG if path.is_dir() else path
        found = "" if file.is_file() else f"no {CONFIG}" if path.is_dir() else "no such file or directory"
    except OSError as e:
        file, found = path, e.strerror or str(e)
    if found:
        raise CheckpointError(
            f"{path}: expected a checkpoint directory with {CONFIG}, found {found}.", hint=WHICH_DIRECTORY
        )
    config = parse_object(read_limited(file), str(file), "the configuration")
    quantized = config.get("quantization_config")
    if quantized is not None:
        method = quantized.get("quant_method") if isinstance(quantized, dict) else None
        raise CheckpointError(
            f"{file}: quantization_config: these weights are quantized already"
            + (f" ({show(method)})." if isinstance(method, str) else "."),
            hint="export the original BF16 model; quantizing twice only loses",
        )
    return config


def account(checkpoint: Checkpoint, roles: Sequence[Role]) -> dict[str, LazyTensor]:
    """The tensor of every role, by `role.key`: each found with its shape, and no tensor of the checkpoint left over.

    Left-over rotary buffers are passed over, and so is a head stored beside tied embeddings after it was compared
    with them. Raises CheckpointError listing everything else.
    """
    found: dict[str, LazyTensor] = {}
    problems = []
    for role in roles:
        tensor = checkpoint.tensors.get(role.tensor)
        if tensor is None:
            problems.append(f"{role.tensor}: missing, expected {list(role.shape)}")
        elif tensor.shape != role.shape:
            problems.append(
                f"{role.tensor}: expected shape {list(role.shape)} (from config.json), found {list(tensor.shape)} "
                f"in {Path(tensor.source).name}"
            )
        else:
            found[role.key] = tensor
    roles_of = Counter(role.tensor for role in roles)
    problems += [f"{name}: wanted by {n} roles" for name, n in roles_of.items() if n > 1]
    for name, tensor in checkpoint.tensors.items():
        if name in roles_of or name.endswith(DERIVED):
            continue
        problem = _left_over(tensor, found.get("embed.weight"))
        if problem:
            problems.append(f"{show(name)[1:-1]}: {problem}")
    if problems:
        raise CheckpointError(
            f"{checkpoint.path}: the tensors do not fit config.json, {len(problems)} problem(s):\n" + some(problems),
            hint="use the config.json that belongs to these weights; a checkpoint with additions (adapters, heads, "
            "vision) needs them merged or removed first",
        )
    return found


def fingerprint(checkpoint: Checkpoint) -> str:
    """A sha256, in hex, that changes when the checkpoint's files do (names, sizes, times; config.json by content)."""
    digest = hashlib.sha256()
    for file in checkpoint.files:
        try:
            s = file.stat()
        except OSError as e:
            raise CheckpointError(
                f"{file}: cannot be read any more: {e.strerror}.", hint="do not change the checkpoint during an export"
            ) from e
        digest.update(f"{file.name}\0{s.st_size}\0{s.st_mtime_ns}\0".encode(errors="surrogateescape"))
    digest.update(read_limited(checkpoint.path / CONFIG))
    return digest.hexdigest()


def _list(path: Path) -> set[str]:
    try:
        if path.is_file():
            raise CheckpointError(f"{path}: expected a checkpoint directory, found a file.", hint=WHICH_DIRECTORY)
        return {p.name for p in path.iterdir() if p.is_file()}
    except OSError as e:
        raise CheckpointError(f"{path}: expected a checkpoint directory: {e.strerror}.", hint=WHICH_DIRECTORY) from e


def _merge(path: Path, shards: Mapping[str, Mapping[str, LazyTensor]]) -> dict[str, LazyTensor]:
    places: dict[str, list[str]] = {}
    for file, tensors in shards.items():
        for name in tensors:
            places.setdefault(name, []).append(file)
    twice = [f"{show(name)[1:-1]}: in {' and '.join(files)}" for name, files in places.items() if len(files) > 1]
    if twice:
        raise CheckpointError(
            f"{path}: {len(twice)} tensor(s) stored more than once:\n" + some(twice),
            hint="shards of two downloads are mixed here; download the checkpoint again into an empty directory",
        )
    return {name: tensor for tensors in shards.values() for name, tensor in tensors.items()}


def _check_index(path: Path, shards: Mapping[str, Mapping[str, LazyTensor]]) -> None:
    """The index and the shards name the same tensors in the same files."""
    index = parse_index(read_limited(path / INDEX), str(path / INDEX))
    problems = [
        f"{show(n)[1:-1]}: not in {file}, where the index puts it" for n, file in index.items() if n not in shards[file]
    ]
    problems += [
        f"{show(n)[1:-1]}: in {file}, not in the index"
        for file, tensors in shards.items()
        for n in tensors
        if n not in index
    ]
    if problems:
        raise CheckpointError(
            f"{path}: {INDEX} and the shards disagree, {len(problems)} problem(s):\n" + some(problems),
            hint="shards of two downloads are mixed here; download the checkpoint again into an empty directory",
        )


def _left_over(tensor: LazyTensor, embeddings: LazyTensor | None) -> str | None:
    """What is wrong with a tensor that no role uses, or None where nothing is."""
    if tensor.name != HEAD or embeddings is None:
        return f"not used by this architecture, found {list(tensor.shape)} in {Path(tensor.source).name}"
    if tensor.shape != embeddings.shape:
        return f"config.json ties it to {embeddings.name} {list(embeddings.shape)}, found {list(tensor.shape)}"
    row = _first_difference(tensor, embeddings)
    if row is None:
        return None
    return f"config.json (tie_word_embeddings) ties it to {embeddings.name}, but they differ, first in row {row}"


def _first_difference(a: LazyTensor, b: LazyTensor) -> int | None:
    """The first row in which two matrices of one shape differ, read in chunks; None where they are equal."""
    for start, stop in _chunks(a.shape[0], a.nbytes):
        differs = (_bits(a.rows(start, stop)) != _bits(b.rows(start, stop))).any(axis=1)
        if differs.any():
            return start + int(np.argmax(differs))
    return None


def _bits(values: NDArray[np.float32]) -> NDArray[np.uint32]:
    return values.view(np.uint32)  # as floats, NaN would differ from itself


def _chunks(rows: int, nbytes: int) -> Iterator[tuple[int, int]]:
    step = max(1, COMPARE_BYTES * rows // max(nbytes, 1))
    return ((a, min(a + step, rows)) for a in range(0, rows, step))
