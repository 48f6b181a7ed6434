"""What a format is to the pipeline: drawn up from a plan before the first byte, then filled while weights stream by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from edgeship.plan import Plan
from edgeship.reference.weights import Weights
from edgeship.tensors import EncodedRows, QuantizedRows
from edgeship.text import TextSide
from edgeship_runtime.chat import ChatTemplate


class DataFile(Protocol):
    """The large file of an artifact, written in place; `put` is safe from several threads."""

    @property
    def size(self) -> int: ...

    def put(self, key: str, a: int, rows: QuantizedRows | EncodedRows | NDArray[np.float32]) -> None:
        """Store the rows of the tensor `key` that begin at row `a`."""

    def complete(self) -> None:
        """Store what does not come from the checkpoint, once all tensors are there."""

    def sync(self) -> None:
        """Bring what was written to the disk itself."""

    def read(self, offset: int, size: int) -> bytes: ...

    def close(self) -> None: ...


class Format(Protocol):
    """One format's side of one export. Everything it writes is a function of plan and text."""

    @property
    def name(self) -> Literal["onnx", "gguf"]:
        """The artifact's directory, and `format` in its manifest."""

    @property
    def data_file(self) -> str: ...

    @property
    def size(self) -> int:
        """Bytes of the data file."""

    @property
    def starts(self) -> Mapping[str, int]:
        """By key of each stored tensor, the offset before which nothing of it lies."""

    @property
    def versions(self) -> Mapping[str, str]:
        """What the artifact needs to run: package to version specifier."""

    def open(self, path: Path) -> DataFile:
        """Open or reopen the data file and reserve its size; raises OSError (ENOSPC) where that does not fit."""

    def write_model(self, directory: Path) -> Sequence[str]:
        """Write the model's small files (a graph); returns their names."""

    def write_companions(
        self, directory: Path, text: TextSide, template: ChatTemplate | None, note: Callable[[str], None]
    ) -> Sequence[str]:
        """Write what other runtimes read beside the model; returns the names, notes what could not be said there."""

    def operators(self) -> Sequence[str]:
        """The operators a runtime must have, sorted; empty where the format has none."""

    def weights(self, directory: Path) -> AbstractContextManager[Weights]:
        """The artifact's own numbers, for the reference pass."""


class DrawUp(Protocol):
    """What the `artifact` module of a format offers as `draw_up`."""

    def __call__(self, plan: Plan, text: TextSide, revision: str) -> Format: ...
