"""The importance of each input of each matrix, by role: an importance matrix file fitted to a model."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from edgeship.archs.base import Decoder
from edgeship.errors import DependencyError
from edgeship.quant.imatrix import Importance, by_role, read_imatrix


def read_importance(path: Path, decoder: Decoder, required: Collection[str]) -> dict[str, Importance]:
    """Importance, float32 `[columns]`, by role key; `required` are the keys that are garbage without one.

    Raises RecipeError at a file that is none, PlanError at one of another model, DependencyError without `gguf`.
    """
    try:
        from gguf import MODEL_ARCH_NAMES, get_tensor_name_map
    except ModuleNotFoundError as error:
        raise DependencyError(
            f"reading an importance matrix needs the package {error.name!r}, which is not installed.",
            hint="pip install 'edgeship[gguf]'",
        ) from error
    arch = next(arch for arch, name in MODEL_ARCH_NAMES.items() if name == decoder.model_type)
    known = get_tensor_name_map(arch, decoder.layers)
    matrices = [role for role in decoder.roles() if len(role.shape) == 2]
    names = {role.key: str(known.get_name(role.tensor, (".weight",))) for role in matrices}
    return by_role(read_imatrix(path), matrices, names, required)
