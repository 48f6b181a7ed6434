"""The importance of each input of each matrix, by role: read from a file and fitted to a model, or written to one."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgeship.archs.base import Decoder
from edgeship.errors import ArtifactError, DependencyError, PlanError
from edgeship.quant.imatrix import Importance, by_role, read_imatrix, write_imatrix


class Moments(Protocol):
    """What is known of a matrix's input: the mean of its squares `[columns]`, over so many tokens."""

    @property
    def second_moments(self) -> NDArray[np.float64]: ...
    @property
    def count(self) -> int: ...


def read_importance(path: Path, decoder: Decoder, required: Collection[str]) -> dict[str, Importance]:
    """Importance, float32 `[columns]`, by role key; `required` are the keys that are garbage without one.

    Raises RecipeError at a file that is none, PlanError at one of another model, DependencyError without `gguf`.
    """
    names, matrices = _names(decoder), [role for role in decoder.roles() if len(role.shape) == 2]
    return by_role(read_imatrix(path), matrices, names, required)


def write_importance(path: Path, found: Mapping[str, Moments], decoder: Decoder, *, dataset: str, chunk: int) -> None:
    """Write what calibration text gave as an importance matrix of the linear layers of the blocks.

    `dataset` names the text, `chunk` is the tokens of a sequence. Raises DependencyError without `gguf`, ArtifactError
    where the file cannot be written.
    """
    names = _names(decoder)
    bodies = [role.key for role in decoder.roles() if role.part == "body"]
    matrices = {names[key]: (found[key].second_moments, found[key].count) for key in bodies}
    try:
        write_imatrix(path, matrices, dataset=dataset, chunk=chunk)
    except OSError as error:
        raise ArtifactError(
            f"{path}: cannot be written: {error.strerror or error}.",
            hint="give a file in a directory that you may write to",
        ) from error


def _names(decoder: Decoder) -> dict[str, str]:
    """llama.cpp's name of each matrix, by role key."""
    try:
        from gguf import MODEL_ARCH_NAMES, get_tensor_name_map
    except ModuleNotFoundError as error:
        raise DependencyError(
            f"an importance matrix needs the package {error.name!r}, which is not installed.",
            hint="pip install 'edgeship[gguf]'",
        ) from error
    arch = next((arch for arch, name in MODEL_ARCH_NAMES.items() if name == decoder.model_type), None)
    if arch is None:
        raise PlanError(
            f"{decoder.model_type}: gguf knows no architecture of this name, so no importance matrix is of it.",
            hint="leave imatrix out and export to ONNX",
        )
    known = get_tensor_name_map(arch, decoder.layers)
    matrices = [role for role in decoder.roles() if len(role.shape) == 2]
    return {role.key: str(known.get_name(role.tensor, (".weight",))) for role in matrices}
