"""LoRA adapters merged into a checkpoint while its rows stream by: W + scale * B A, computed in float32.

Formulas: `get_delta_weight` in peft/tuners/lora/layer.py, and `DoraLinearVariant.merge_safe` in variants.py (DoRA:
arXiv:2402.09353, equation 5). PEFT rounds the sum to the checkpoint's type; here it stays float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeship.archs.base import Decoder, Role
from edgeship.checkpoint.peft import MERGE_YOURSELF, Adapter, Change, open_adapter
from edgeship.checkpoint.safetensors import elements
from edgeship.checkpoint.strict_json import show, some
from edgeship.errors import CheckpointError
from edgeship.tensors import LazyTensor

Floats = NDArray[np.float32]

__all__ = ["Adapter", "merge", "open_adapters"]


def open_adapters(paths: Sequence[str], decoder: Decoder) -> tuple[Adapter, ...]:
    """The adapters in these directories, each checked against the decoder; raises CheckpointError at any that misfits.

    Every tensor of an adapter changes exactly one weight of the decoder, or the adapter is refused.
    """
    roles = {role.tensor: role for role in decoder.roles()}
    adapters = tuple(open_adapter(Path(path), roles) for path in paths)
    for adapter in adapters:
        problems = []
        for target, change in adapter.changes.items():
            problem = _misfit(target, roles.get(target), change, decoder, alone=len(adapters) == 1)
            if problem:
                problems.append(f"{show(target)[1:-1]}: {problem}")
        if problems:
            raise CheckpointError(
                f"{adapter.path}: the adapter does not fit this model, {len(problems)} problem(s):\n" + some(problems),
                hint=f"give an adapter that was trained on this very checkpoint; or {MERGE_YOURSELF}",
            )
    return adapters


def merge(
    tensors: Mapping[str, LazyTensor], roles: Sequence[Role], adapters: Sequence[Adapter]
) -> dict[str, LazyTensor]:
    """The tensors by role key with the adapters' changes, one after the other; rows are merged when they are read."""
    out = dict(tensors)
    for adapter in adapters:
        for role in roles:
            if role.tensor in adapter.changes:
                out[role.key] = _changed(out[role.key], adapter.changes[role.tensor], adapter.path)
    return out


def _misfit(target: str, role: Role | None, change: Change, decoder: Decoder, *, alone: bool) -> str | None:
    """Why a change cannot be made to a tensor, or None where it can."""
    if role is None:
        tied = decoder.tied and target == "lm_head.weight"
        return f"no weight of the model is called so{' (config.json ties the head to the embeddings)' if tied else ''}"
    whole = change.replacement
    if whole is not None and decoder.tied and role.part == "embeddings" and change.a is None:
        return "saved whole, while config.json ties the head to it: the two may differ by now"
    if whole is not None and whole.shape != role.shape:
        return f"expected shape {list(role.shape)}, found {list(whole.shape)} (was the vocabulary extended?)"
    if change.a is None or change.b is None:
        return None
    if role.part == "float" or change.transposed != (role.part == "embeddings"):
        return "LoRA of another kind than this weight's"
    rows, columns = reversed(role.shape) if change.transposed else role.shape
    expected = [(change.a.shape[0], columns), (rows, change.a.shape[0])]
    if [change.a.shape, change.b.shape] != expected:
        return f"expected A and B of {expected[0]} and {expected[1]}, found {change.a.shape} and {change.b.shape}"
    if change.magnitude is not None and change.magnitude.shape != (rows,):
        return f"expected a magnitude of {rows} rows, found {list(change.magnitude.shape)}"
    if change.magnitude is not None and not alone:
        return "DoRA together with another adapter, which is not supported"
    return None


def _changed(base: LazyTensor, change: Change, adapter: Path) -> LazyTensor:
    start = replace(change.replacement, name=base.name) if change.replacement is not None else base
    if change.a is None:
        return start
    source = f"{start.source} with the adapter {adapter}"  # either may hold what is no number
    return LazyTensor(base.name, base.shape, "F32", source, _Merged(start, change))


class _Merged:
    """Reads rows of `base` with the change made to them, float32."""

    def __init__(self, base: LazyTensor, change: Change) -> None:
        self._base, self._change = base, change

    def __call__(self, a: int, b: int) -> Floats:
        change = self._change
        out = _embedding_delta(change, a, b) if change.transposed else _delta(change, a, b)
        out *= np.float32(change.scale)
        out += self._base.rows(a, b)
        if change.magnitude is not None:
            lengths = np.sqrt(np.einsum("rc,rc->r", out, out, dtype=np.float64)).astype(np.float32)
            with np.errstate(divide="ignore", invalid="ignore"):  # an all-zero row ends as NaN, where rounding finds it
                out *= (change.magnitude.rows(a, b) / lengths)[:, None]
        return out


def _delta(change: Change, a: int, b: int) -> Floats:
    """Rows [a, b) of B A, `[b - a, in]`."""
    assert change.a is not None
    assert change.b is not None
    out: Floats = change.b.rows(a, b) @ change.a.rows(0, change.a.shape[0])
    return out


def _embedding_delta(change: Change, a: int, b: int) -> Floats:
    """Rows [a, b) of (B A)^T, `[b - a, columns]`; of A, which is as wide as the vocabulary, these columns are read."""
    assert change.a is not None
    assert change.b is not None
    (rank, width), values = change.a.shape, elements(change.a)
    left = np.stack([values.rows(i * width + a, i * width + b) for i in range(rank)], axis=1)
    out: Floats = left @ change.b.rows(0, change.b.shape[0]).T
    return out
