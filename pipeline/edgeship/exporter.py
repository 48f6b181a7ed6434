"""The fields of a recipe that other exporters than our own read: Optimum, for encoders, and Olive, for its passes."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from edgeship import olive_paths
from edgeship.yaml_model import AsTuple, Frozen, Line

ExporterName = Literal["native", "optimum", "olive"]
Task = Literal["feature-extraction", "text-classification", "token-classification", "text2text-generation"]
Block = dict[str, Any]

EVERYWHERE = frozenset({"name", "description", "source", "exporter", "accept"})
READ_BY: dict[str, frozenset[str]] = {
    "optimum": EVERYWHERE | {"optimum"},
    "olive": EVERYWHERE | {"olive", "context", "sampling"},
}
"""The fields of a recipe that an exporter reads; any other one is refused with it."""


class Optimum(Frozen):
    """How Optimum exports an encoder, and how onnxruntime quantizes it."""

    task: Task = Field(
        default="feature-extraction",
        description="what the model is for; feature-extraction embeds, text2text-generation is for encoder and decoder",
    )
    quantization: Literal["dynamic", "static", "none"] = Field(
        default="dynamic",
        description="int8 weights; the range of activations is found at each run, or once on `calibration`",
    )
    per_channel: bool = Field(default=True, description="a scale for each column of a weight instead of one for all")
    calibration: Annotated[Line, Field(min_length=1)] | None = Field(
        default=None,
        description="texts for static quantization, one per line: a file, absolute or relative to the recipe's",
    )
    pooling: Literal["mean", "cls", "lasttoken"] | None = Field(
        default=None, description="how tokens become one vector; else what the checkpoint's modules.json says"
    )
    normalize: bool | None = Field(
        default=None,
        description="whether vectors get length 1; else what the checkpoint's modules.json says, true if it has none",
    )
    max_length: int | None = Field(
        default=None, ge=8, le=1 << 16, description="tokens read of a text; else what the checkpoint says"
    )

    @model_validator(mode="after")
    def _together(self) -> Self:
        wants = {
            "per_channel": self.quantization != "none",
            "calibration": self.quantization == "static",
            "pooling": self.task == "feature-extraction",
            "normalize": self.task == "feature-extraction",
        }
        for key, fits in wants.items():
            if not fits and key in self.model_fields_set and getattr(self, key) is not None:
                beside = "task" if key in ("pooling", "normalize") else "quantization"
                text = f"'{{key}}' has no effect with {beside}: {getattr(self, beside)}; remove one of them"
                raise PydanticCustomError("no_effect", text, {"key": key})
        if self.quantization == "static" and self.task == "text2text-generation":
            text = "'quantization' is not static for two graphs that feed each other; remove it, or say dynamic"
            raise PydanticCustomError("form", text, {"key": "quantization"})
        if self.quantization == "static" and self.calibration is None:
            text = "static quantization needs texts to find ranges on: give 'calibration', or quantization: dynamic"
            raise PydanticCustomError("form", text)
        return self


class Olive(Frozen):
    """The workflow that Olive runs on the checkpoint; its own schema checks it before it starts."""

    passes: Annotated[tuple[Block, ...], AsTuple] = Field(
        default=({"type": "ModelBuilder", "precision": "int4", "int4_block_size": 32, "int4_accuracy_level": 4},),
        min_length=1,
        max_length=16,
        description="Olive's passes in order, each with its `type` and options; default: ModelBuilder, int4",
    )
    data_configs: Annotated[tuple[Block, ...], AsTuple] = Field(
        default=(),
        max_length=16,
        description="Olive's data sets, which passes that calibrate name; their files as seen from the recipe's",
    )

    @model_validator(mode="after")
    def _typed(self) -> Self:
        for place, each in enumerate(self.passes):
            if not isinstance(each.get("type"), str):
                raise PydanticCustomError("form", f"passes[{place}]: expected a `type`, the name of an Olive pass")
        return self


LIMITS = {"optimum": ("size_mb", "cosine"), "olive": ("size_mb",)}
"""The limits of `accept` that an exporter keeps; all but `cosine` are kept by our own."""


def given(model: Frozen, inherited: Collection[str]) -> set[str]:
    """The fields that a file gave; null gives none, and nor does a default of the recipe that it extends."""
    fields = type(model).model_fields
    said = {key: getattr(model, key) for key in model.model_fields_set}
    return {key for key, v in said.items() if v is not None and (key not in inherited or v != fields[key].default)}


def refuse_misplaced(exporter: str, fields: set[str], limits: set[str]) -> None:
    """Raise PydanticCustomError at one of the fields, or of those of `accept`, that the exporter does not read."""
    others = {"optimum", "olive"} if exporter == "native" else fields - READ_BY[exporter]
    for key in sorted(fields & others):
        owner = key if key in ("optimum", "olive") else "native"
        text = "'{key}' goes with exporter: {owner}, found {exporter}; remove one of them"
        raise PydanticCustomError("of_exporter", text, {"key": key, "owner": owner, "exporter": exporter})
    wrong = limits & {"cosine"} if exporter == "native" else limits.difference(LIMITS[exporter])
    for key in sorted(wrong):
        text = "'{limit}' does not go with exporter: {exporter}; remove it"
        raise PydanticCustomError("of_exporter", text, {"key": "accept", "limit": key, "exporter": exporter})


def fields_of(exporter: str, values: dict[str, Any]) -> dict[str, Any]:
    """Of a whole recipe's JSON values those that an exporter reads, its own section with the defaults it stands for."""
    section = values[exporter] or (Optimum() if exporter == "optimum" else Olive()).model_dump(mode="json")
    if section.get("calibration"):
        section |= {"calibration": _name(section["calibration"])}
    if exporter == "olive":
        passes = [olive_paths.of_pass(each, _name) for each in section["passes"]]
        section |= {
            "passes": passes,
            "data_configs": [olive_paths.of_data(each, _name) for each in section["data_configs"]],
        }
    limits = {key: values["accept"][key] for key in LIMITS[exporter]}
    return {key: values[key] for key in READ_BY[exporter]} | {exporter: section, "accept": limits}


def _name(path: str) -> str:
    return Path(path).name
