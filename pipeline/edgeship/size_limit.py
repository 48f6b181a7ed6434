"""The size that a recipe accepts: of all files of an artifact, as `edgeship-runtime verify` adds them up."""

from __future__ import annotations

from pathlib import Path

from edgeship.errors import FidelityError
from edgeship.recipe import Recipe


def over(recipe: Recipe, size: int) -> bool:
    """Whether so many bytes are more than `accept.size_mb`."""
    limit = recipe.accept.size_mb
    return limit is not None and size > limit * 1e6


def described(recipe: Recipe, size: int) -> str:
    """A size and the limit that it is over, each with the digits that tell them apart."""
    limit = recipe.accept.size_mb or 0.0
    digits = next((d for d in range(1, 6) if size * 10**d > 1e8 and round(size / 1e6, d) > limit), 6)
    return f"expected at most {limit:g} MB, found {size / 1e6:.{digits}f} MB"


def require_size(recipe: Recipe, what: str, size: int) -> None:
    """Raises FidelityError where `what`, of so many bytes, is over the recipe's limit."""
    if over(recipe, size):
        raise FidelityError(
            f"{recipe.name}: accept.size_mb: {described(recipe, size)}: {what}. The artifact was not sealed.",
            hint="raise the limit, or choose smaller types",
        )


def directory_size(directory: Path) -> int:
    """Bytes of all files below a directory."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
