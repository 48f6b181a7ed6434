"""A build of llama.cpp with a CPU backend per processor: its folder is handed to ggml, and no other build's is."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from edgeship_runtime.engines import llama_library


@pytest.mark.parametrize(
    ("library", "loaded"), [("libggml-cpu-armv8.0_1.so", True), ("libggml-cpu.so", False), ("libggml-base.so", False)]
)
def test_variants_are_loaded_where_there_are_some(tmp_path: Path, library: str, loaded: bool) -> None:
    asked: list[bytes] = []

    def load(folder: bytes) -> None:
        asked.append(folder)

    (tmp_path / library).touch()
    module = SimpleNamespace(_base_path=tmp_path, _lib=SimpleNamespace(ggml_backend_load_all_from_path=load))
    llama_library._load_variants(cast(Any, module))
    assert asked == ([os.fsencode(tmp_path)] if loaded else [])
