"""The GGUF side of an export: one file for llama.cpp and what is built on it, and Ollama's Modelfile."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgeship.formats.gguf.layout import Layout, lay_out
from edgeship.formats.gguf.metadata import file_name, make_metadata
from edgeship.formats.gguf.modelfile import make_modelfile
from edgeship.formats.gguf.read import GgufWeights
from edgeship.formats.gguf.vocabulary import read_vocabulary
from edgeship.formats.gguf.write import GgufFile
from edgeship.plan import Plan
from edgeship.reference.weights import Weights
from edgeship.text import TextSide
from edgeship_runtime.chat import ChatTemplate


@dataclass(frozen=True)
class GgufArtifact:
    """A GGUF artifact drawn up: its plan, and every byte of its file but the weights."""

    plan: Plan
    layout: Layout
    data_file: str
    name: Literal["gguf"] = "gguf"

    @property
    def size(self) -> int:
        return self.layout.size

    @property
    def starts(self) -> Mapping[str, int]:
        return {p.role.key: p.offset for p in self.layout.places}

    @property
    def versions(self) -> Mapping[str, str]:
        return {"llama-cpp-python": ">=0.3.36"}

    def open(self, path: Path) -> GgufFile:
        return GgufFile(path, self.layout)

    def write_model(self, directory: Path) -> Sequence[str]:
        return ()

    def write_companions(
        self, directory: Path, text: TextSide, template: ChatTemplate | None, note: Callable[[str], None]
    ) -> Sequence[str]:
        made = make_modelfile(self.plan, self.data_file, text, template)
        (directory / "Modelfile").write_text(made.text, encoding="utf-8")
        for each in made.notes:
            note(f"Modelfile: {each}")
        return ("Modelfile",)

    def operators(self) -> Sequence[str]:
        return ()

    def weights(self, directory: Path) -> AbstractContextManager[Weights]:
        return GgufWeights(directory / self.data_file, self.layout)


def draw_up(plan: Plan, text: TextSide, revision: str) -> GgufArtifact:
    """The GGUF side of an export; raises PlanError or CheckpointError where llama.cpp cannot hold the model."""
    vocabulary = read_vocabulary(text.files, text.special, plan.decoder.vocab_size)
    metadata = make_metadata(plan, vocabulary, text.files, revision)
    return GgufArtifact(plan, lay_out(plan, metadata), file_name(plan))
