"""The `scheme.mixed:` section of a recipe: what each tensor may be stored as, and what all may take."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from edgeship.encodings import WeightType
from edgeship.yaml_model import AsTuple, Distinct, Frozen


class Mixed(Frozen):
    """Types for a mixed scheme to choose from, and its budget."""

    types: Annotated[tuple[WeightType, ...], AsTuple, Distinct] = Field(
        default=("int4", "int8"), min_length=2, max_length=8, description="what each tensor may be stored as"
    )
    bits_per_weight: float | None = Field(
        default=None, gt=0, le=32, description="the budget, in bits stored per weight, scales and norms included"
    )
    budget_mb: float | None = Field(
        default=None,
        gt=0,
        le=1e6,
        description="the budget, in MB of 10^6 bytes of the file that holds the weights; laid over a base by `extends` "
        "one budget replaces the other",
    )
    tokens: int = Field(
        default=512, ge=32, le=65536, description="of the calibration text, those that sensitivity is measured on"
    )

    @model_validator(mode="after")
    def _one_budget(self) -> Self:
        if (self.bits_per_weight is None) == (self.budget_mb is None):
            text = "expected one budget, bits_per_weight or budget_mb, found {found}"
            found = "none" if self.budget_mb is None else "both"
            raise PydanticCustomError("one_budget", text, {"key": "budget_mb", "found": found})
        return self
