"""LoRA adapters as PEFT saves them: adapter_config.json and adapter_model.safetensors, checked whole before any use.

Source: peft 0.21, tuners/lora/config.py (fields), utils/other.py (`get_pattern_key`), utils/save_and_load.py (names).
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeship.checkpoint.files import read_limited
from edgeship.checkpoint.patterns import compile_all
from edgeship.checkpoint.safetensors import open_shard
from edgeship.checkpoint.strict_json import parse_object, show, some
from edgeship.errors import CheckpointError
from edgeship.tensors import LazyTensor

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MERGE_YOURSELF = "merge it with PEFT's own merge_and_unload() and export the checkpoint that this saves"

HEEDED = {"peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora"}
HARMLESS = {
    *("auto_mapping", "base_model_name_or_path", "revision", "task_type", "inference_mode", "peft_version"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save"),
    *("lora_dropout", "fan_in_fan_out", "megatron_core", "runtime_config", "qalora_group_size"),
    *("loftq_config", "eva_config", "init_lora_weights", "bias"),  # the last two are checked for their values
}
"""What says how the adapter was trained, or which tensors it has (they are in the file); all else must be unset."""

KEEPS_BASE = (True, False, None, "gaussian", "eva", "orthogonal", "true", "false")
"""Values of `init_lora_weights` that leave the weights beside the adapter as they were."""


@dataclass(frozen=True)
class Change:
    """What an adapter does to one matrix `[out, in]`: `scale * B A` added to it, after a replacement if it has one."""

    a: LazyTensor | None = None  # [r, in]
    b: LazyTensor | None = None  # [out, r]
    scale: float = 0.0
    magnitude: LazyTensor | None = None  # [out]: DoRA, the length that each row gets
    replacement: LazyTensor | None = None  # the tensor itself, where the adapter saved all of it
    transposed: bool = False  # an embedding's: A is [r, rows] and B is [columns, r]


@dataclass(frozen=True)
class Adapter:
    """An opened adapter: changes by the name of the tensor in the checkpoint; holding it costs no memory."""

    path: Path
    sha256: str  # of both files
    changes: Mapping[str, Change]


def open_adapter(path: Path, weights: Collection[str]) -> Adapter:
    """Open the LoRA adapter in the directory `path`, reading no weights but for their digest.

    `weights` are the model's, by name; a change to any other is given too, without its scale.
    Raises CheckpointError at files that are missing or damaged, at a kind of adapter that is not LoRA, and at every
    option of PEFT that would make another merge than this one, by its name.
    """
    config = _read_config(path)
    file = path / WEIGHTS
    if not file.is_file():
        pickled = (path / "adapter_model.bin").is_file()
        found = "adapter_model.bin, which holds pickle: it runs code when read" if pickled else "no such file"
        hint = f"save it again as safetensors (PEFT's default), or {MERGE_YOURSELF}" if pickled else _WHICH
        raise CheckpointError(f"{file}: expected the adapter's weights, found {found}.", hint=hint)
    changes = _changes(path, config, open_shard(file), weights)
    return Adapter(path, _digest(path / CONFIG, file), changes)


_WHICH = f"give a directory that PEFT's save_pretrained() wrote: it holds {CONFIG} and {WEIGHTS}"


def _read_config(path: Path) -> dict[str, Any]:
    file = path / CONFIG
    try:
        present = file.is_file()
    except OSError:
        present = False
    if not present:
        raise CheckpointError(f"{path}: expected an adapter's directory, found no {CONFIG}.", hint=_WHICH)
    config = parse_object(read_limited(file), str(file), "the adapter's configuration")
    kind = config.get("peft_type")
    if kind != "LORA":
        raise CheckpointError(
            f"{file}: peft_type: expected LORA, found {show(str(kind))}; it cannot be merged here.", hint=MERGE_YOURSELF
        )
    refused = [
        f"{show(k)[1:-1]}: {show(str(v), 60)[1:-1]}"
        for k, v in config.items()
        if k not in HEEDED | HARMLESS and v not in (None, False, "", 0) and v != [] and v != {}
    ]
    if config.get("bias", "none") != "none":
        refused.append(f"bias: {show(str(config['bias']), 60)[1:-1]}")
    if config.get("init_lora_weights") not in KEEPS_BASE:
        value = show(str(config["init_lora_weights"]), 60)[1:-1]
        refused.append(f"init_lora_weights: {value} (it changes the weights beside the adapter too)")
    if refused:
        raise CheckpointError(
            f"{file}: {len(refused)} option(s) that are not supported; merging without them would make another model:\n"
            + some(refused),
            hint=MERGE_YOURSELF,
        )
    return config


class _Scaling:
    """Rank and scale of each module, as the configuration has them."""

    def __init__(self, path: Path, config: Mapping[str, Any]) -> None:
        self._file, self._config = path / CONFIG, config
        self._ranks = self._patterns("rank_pattern")
        self._alphas = self._patterns("alpha_pattern")

    def of(self, module: str, rank: int) -> float:
        """What B A is multiplied by; raises CheckpointError where the tensors' rank is not the configuration's."""
        expected = self._number("r", 8, self._match(self._ranks, module))
        if expected != rank:
            raise CheckpointError(
                f"{self._file}: {module}: expected rank {expected:g}, found {rank} in {WEIGHTS}.",
                hint="the two files belong to different adapters; fetch the adapter again",
            )
        alpha = self._number("lora_alpha", 8, self._match(self._alphas, module))
        return alpha / math.sqrt(rank) if self._config.get("use_rslora") else alpha / rank

    def _patterns(self, key: str) -> list[tuple[re.Pattern[str], Any]]:
        patterns = self._config.get(key) or {}
        if not isinstance(patterns, dict):
            raise self._error(f"{key}: expected a mapping from module to number")
        named = {pattern: value for pattern, value in patterns.items() if pattern}
        try:
            return list(zip(compile_all(named), named.values(), strict=True))
        except ValueError as e:
            pattern, problem = e.args
            raise self._error(f"{key}: {show(pattern)}: {problem}") from None

    def _match(self, patterns: Sequence[tuple[re.Pattern[str], Any]], module: str) -> Any:
        return next((value for pattern, value in patterns if pattern.match(module)), None)

    def _number(self, key: str, default: int, value: Any) -> float:
        value = self._config.get(key, default) if value is None else value
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e6:
            raise self._error(f"{key}: expected a number above zero, found {show(str(value), 40)}")
        return float(value)

    def _error(self, text: str) -> CheckpointError:
        return CheckpointError(f"{self._file}: {text}.", hint="fetch the adapter again, or train it again")


PREFIX = "base_model.model."
_PARTS = {
    ".lora_A.weight": "a",
    ".lora_B.weight": "b",
    ".lora_embedding_A": "a",
    ".lora_embedding_B": "b",
    ".lora_magnitude_vector": "magnitude",
    ".lora_magnitude_vector.weight": "magnitude",
    ".base_layer.weight": "replacement",
}


def _changes(
    path: Path, config: Mapping[str, Any], tensors: Mapping[str, LazyTensor], weights: Collection[str]
) -> dict[str, Change]:
    """The adapter's tensors by the tensor of the checkpoint that they change."""
    scaling, parts, problems = _Scaling(path, config), dict[str, dict[str, Any]](), []
    for name, tensor in tensors.items():
        short = name.removeprefix(PREFIX)
        suffix = next((s for s in _PARTS if short.endswith(s)), None)
        if short == name:
            problems.append(f"{show(name)}: expected a name that starts with {PREFIX}")
        elif suffix is None and ".lora_" in short:
            problems.append(f"{show(name)}: a part of LoRA that is not known")
        elif suffix is None:  # saved whole: modules_to_save
            parts.setdefault(short, {})["replacement"] = tensor
        else:
            found = parts.setdefault(short.removesuffix(suffix) + ".weight", {})
            found[_PARTS[suffix]] = tensor
            found["transposed"] = found.get("transposed", False) or "lora_embedding" in suffix
    out = {}
    for target, found in parts.items():
        problem = _incomplete(target, found, bool(config.get("use_dora")))
        if problem:
            problems.append(f"{show(target)[1:-1]}: {problem}")
        elif "a" in found:  # a name of the file's own choosing is not matched with patterns
            known, rank = target in weights, found["a"].shape[0]
            out[target] = Change(**found, scale=scaling.of(target.removesuffix(".weight"), rank) if known else 0.0)
        else:
            out[target] = Change(replacement=found["replacement"])
    problems = problems or ([] if out else ["it holds no tensors"])
    if problems:
        raise CheckpointError(
            f"{path / WEIGHTS}: no adapter that can be merged, {len(problems)} problem(s):\n" + some(problems),
            hint=MERGE_YOURSELF,
        )
    return out


def _incomplete(target: str, found: Mapping[str, Any], dora: bool) -> str | None:
    """What is wrong with the parts of one change, or None where nothing is."""
    if ("a" in found) != ("b" in found):
        return f"lora_{'B' if 'a' in found else 'A'} is missing"
    if "a" not in found:
        return None if "replacement" in found else "a magnitude without lora_A and lora_B"
    if any(len(found[k].shape) != 2 or 0 in found[k].shape for k in "ab"):
        return f"expected matrices, found shapes {list(found['a'].shape)} and {list(found['b'].shape)}"
    if dora and found["transposed"]:
        return "DoRA of an embedding, which is not supported"
    if dora != ("magnitude" in found):
        return "use_dora is set, but there is no magnitude" if dora else "a magnitude (DoRA), but use_dora is not set"
    return None


def _digest(*files: Path) -> str:
    digest = hashlib.sha256()
    for file in files:
        try:
            with file.open("rb") as f:
                digest.update(hashlib.file_digest(f, "sha256").digest())
        except OSError as e:
            raise CheckpointError(f"{file}: cannot be read: {e.strerror}.", hint="check the path and its rights") from e
    return digest.hexdigest()
