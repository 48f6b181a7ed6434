"""How close to its float model an artifact has to be, and what is said where it is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeship.errors import FidelityError
from edgeship.exporter import Optimum
from edgeship.recipe import Recipe

LEAST_COSINE = {"dynamic": 0.95, "static": 0.95, "none": 0.999}
"""Least similarity to the float model where the recipe says none.

MiniLM, int8 dynamic, on x86 with VNNI: 0.993 on average; how low single texts go depends on them, 0.984 was found.
Classifiers made of it, with one or two labels: 0.996. Processors without VNNI round more. A wrong table, pooling or
kernel is far below.
"""


def least_cosine(recipe: Recipe) -> float:
    """Least cosine similarity to the float model."""
    return recipe.accept.cosine or LEAST_COSINE[(recipe.optimum or Optimum()).quantization]


def too_far(recipe: Recipe, found: str) -> FidelityError:
    """The refusal of an artifact that is not as close as it has to be; `found` says to what, and how close it is."""
    options = recipe.optimum or Optimum()
    given = "" if recipe.accept.cosine else " (the default)"
    if options.quantization == "none":
        hint = "the graph itself answers otherwise, in float32: another model of its kind may export better"
    elif options.quantization == "dynamic" and options.per_channel:
        hint = "optimum: {quantization: none} keeps float32; or allow more: accept: {cosine: ...}"
    else:
        hint = "optimum: quantization: dynamic with per_channel: true loses least; none keeps float32"
    return FidelityError(
        f"accept.cosine: expected at least {least_cosine(recipe):g}{given} {found}. The artifact was not sealed.",
        hint=hint,
    )


def read_answers(path: Path) -> list[NDArray[np.float32]]:
    """A model's answers as its worker wrote them, one array for each text."""
    with np.load(path, allow_pickle=False) as arrays:
        return [np.asarray(arrays[f"arr_{place}"], np.float32) for place in range(len(arrays.files))]
