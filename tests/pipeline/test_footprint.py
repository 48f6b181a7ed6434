"""Footprints: bytes and memory in each format, against sums worked out here and what was measured."""

from __future__ import annotations

from typing import Any

import pytest

from edgeship import catalog
from edgeship.encodings import ENCODINGS
from edgeship.footprint import Memory
from edgeship.plan import make_plan, read_plan
from edgeship.recipe import Recipe
from planned import CONFIG, recipe

BODY = 2 * (2 * 256 * 256 + 2 * 128 * 256 + 3 * 256 * 512)
TABLE = 1000 * 256
FLOAT = 2 * (256 + 2 * 128 + 2 * 256) + 256


def memory(form: str, config: dict[str, Any] = CONFIG, **fields: Any) -> Memory:
    return next(iter(make_plan(recipe(formats=[form], **fields), config).footprints.values())).memory


def test_memory_in_onnxruntime() -> None:
    m = memory("onnx")
    rope = 2 * 512 * 32 * 4
    assert m.kv_per_token == 2 * 2 * 2 * 64 * 4  # layers, K and V, heads, head size, float32
    assert m.kv_total == 256 * m.kv_per_token
    assert m.repacked == BODY // 2 + TABLE + 2 * (BODY + TABLE) // 32 * 4
    assert m.weights == (BODY + TABLE) // 32 * 4 + FLOAT * 4 + rope
    assert m.total == m.weights + m.repacked + m.kv_total + m.runtime
    wide = memory("onnx", scheme={"body": "float16"})
    assert wide.repacked == 4 * BODY + TABLE + 2 * TABLE // 32 * 4


def test_memory_in_llama_cpp() -> None:
    m = memory("gguf")
    assert m.kv_per_token == 2 * 2 * 2 * 64 * 2  # float16
    assert m.repacked == BODY * 18 // 32  # int4 is Q4_0
    assert m.weights == TABLE * 34 // 32 + FLOAT * 4
    untied = memory("gguf", CONFIG | {"tie_word_embeddings": False})
    assert (untied.weights, untied.repacked) == (m.weights, m.repacked)  # of the embedding table only rows are read
    assert memory("gguf", scheme={"mix": "Q6_K"}).repacked == 0


@pytest.mark.parametrize("encoding", [e for e in ENCODINGS.values() if e.gguf], ids=lambda e: e.name)
def test_bytes_in_gguf_are_those_of_the_gguf_package(encoding: Any) -> None:
    constants = pytest.importorskip("gguf.constants")
    block, size = constants.GGML_QUANT_SIZES[constants.GGMLQuantizationType[encoding.gguf]]
    assert (max(encoding.group, 1), encoding.block) == (block, size)
    assert encoding.gguf_bytes((3, 512)) == 3 * 512 // block * size
    assert encoding.fits(512)
    assert encoding.fits(block * 3)
    assert encoding.fits(block * 3 + 1) is (block == 1)


def test_the_estimates_are_near_what_was_measured() -> None:
    """AVX2 and AVX-512, after loading these artifacts.

    onnxruntime 1.31: 1,309 MB anonymous and 201 MB of the file. llama.cpp of llama-cpp-python 0.3.36: its buffer
    CPU_REPACK of 702.84 and 596.53 MiB; files that llama-quantize made of 934,954,528 and 986,048,032 bytes.
    """
    both = read_plan(catalog.find("qwen2.5-1.5b-int4")).footprints
    assert both["onnx"].memory.repacked == pytest.approx(1309e6, rel=0.05)
    assert both["onnx"].memory.weights == pytest.approx(201e6, rel=0.06)
    assert both["gguf"].memory.repacked / (1 << 20) == pytest.approx(702.84, abs=0.01)
    mixed = read_plan(catalog.find("qwen2.5-1.5b-q4_k_m")).footprints["gguf"]
    assert mixed.memory.repacked / (1 << 20) == pytest.approx(596.53, abs=0.01)
    assert mixed.size_bytes == pytest.approx(986_048_032, rel=1e-4)
    recipe = Recipe.model_validate(
        catalog.find("qwen2.5-1.5b-int4").model_dump()
        | {"scheme": {"mix": "Q4_0"}, "formats": ("gguf",), "calibration": None}
    )
    assert read_plan(recipe).footprints["gguf"].size_bytes == pytest.approx(934_954_528, rel=1e-4)
