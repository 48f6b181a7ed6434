"""The ONNX side of an export: graph, external data, and what onnxruntime-genai and Foundry Local read."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from onnx import ModelProto

from edgeship.formats.onnx.genai import genai_config, inference_model
from edgeship.formats.onnx.graph import make_model, operators
from edgeship.formats.onnx.layout import Layout, lay_out
from edgeship.formats.onnx.write import OnnxDataFile
from edgeship.plan import Plan
from edgeship.reference.weights import StoredWeights, Weights
from edgeship.text import TextSide
from edgeship_runtime.chat import ChatTemplate

GRAPH_FILE, DATA_FILE = "model.onnx", "model.onnx.data"


@dataclass(frozen=True)
class OnnxArtifact:
    """An ONNX artifact drawn up: its plan, and every offset in its data file."""

    plan: Plan
    layout: Layout
    name: Literal["onnx"] = "onnx"
    data_file: str = DATA_FILE

    @property
    def size(self) -> int:
        return self.layout.size

    @property
    def starts(self) -> Mapping[str, int]:
        # Scales lie behind the codes of their region and before the next region, so codes come first.
        return {p.role.key: p.offset for p in self.layout.places}

    @property
    def versions(self) -> Mapping[str, str]:
        # The first onnxruntime that loads the graph: before it, GatherBlockQuantized knows no `bits`.
        return {"onnxruntime": ">=1.23"}

    def open(self, path: Path) -> OnnxDataFile:
        return OnnxDataFile(path, self.layout, self.plan.decoder.rope)

    @cached_property
    def _model(self) -> ModelProto:
        return make_model(self.plan, self.layout, DATA_FILE)

    def write_model(self, directory: Path) -> Sequence[str]:
        (directory / GRAPH_FILE).write_bytes(self._model.SerializeToString(deterministic=True))
        return (GRAPH_FILE,)

    def write_companions(
        self, directory: Path, text: TextSide, template: ChatTemplate | None, note: Callable[[str], None]
    ) -> Sequence[str]:
        companions = {
            "genai_config.json": genai_config(self.plan, text.special, text.tokenizer.token_to_id, GRAPH_FILE),
            "inference_model.json": inference_model(self.plan.recipe.name, template),
        }
        for name, value in companions.items():
            _write_json(directory / name, value)
        return tuple(companions)

    def operators(self) -> Sequence[str]:
        return operators(self._model)

    def weights(self, directory: Path) -> AbstractContextManager[Weights]:
        return StoredWeights(directory / DATA_FILE, {p.role.key: p for p in self.layout.places})


def draw_up(plan: Plan, text: TextSide, revision: str) -> OnnxArtifact:
    """The ONNX side of an export; text and revision do not show in the data file."""
    return OnnxArtifact(plan, lay_out(plan))


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
