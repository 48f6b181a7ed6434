"""GGUF files as a whole: read back by gguf, and equal to what llama.cpp's converter and quantizer make."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, quantize

import ggufs
from checkpoints import write_checkpoint
from edgeship.archs.base import Rope
from edgeship.checkpoint.checkpoint import account, open_checkpoint
from edgeship.encodings import ENCODINGS
from edgeship.errors import PlanError
from edgeship.formats.gguf.layout import lay_out, llama3_factors
from edgeship.formats.gguf.write import GgufFile
from edgeship.tensors import EncodedRows

Recorded = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def recorded() -> Recorded:
    found: Recorded = json.loads(ggufs.RECORDED.read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize("kind", ggufs.TYPES)
@pytest.mark.parametrize("name", ggufs.CASES)
def test_tensors_are_those_of_llamacpp(name: str, kind: str, recorded: Recorded, tmp_path: Path) -> None:
    ggufs.write_gguf(ggufs.case(name, tmp_path), tmp_path / "ours.gguf", kind)
    assert ggufs.digest(tmp_path / "ours.gguf") == recorded[name]["digests"][kind]


@pytest.mark.parametrize("name", ggufs.CASES)
def test_keys_are_those_of_llamacpp(name: str, recorded: Recorded, tmp_path: Path) -> None:
    ggufs.write_gguf(ggufs.case(name, tmp_path), tmp_path / "ours.gguf", "F32")
    ours, theirs = ggufs.keys(tmp_path / "ours.gguf"), recorded[name]["keys"]
    different = ggufs.compare_keys(ours, theirs)
    assert {key for key in different if ggufs.reason_to_differ(key) is None} == set()
    shared = [key for key in theirs if key in ours]
    assert [key for key in ours if key in theirs] == shared, "in the same order"


def test_only_keys_that_are_listed_differ(recorded: Recorded) -> None:
    """No key of the converter's is missing here, whatever the reasons allow."""
    assert {key for case in recorded.values() for key in case["keys"] if ggufs.reason_to_differ(key)} == {
        "llama.context_length",
        "qwen2.context_length",
        "qwen3.context_length",
    }


@pytest.mark.parametrize("chunk", [1, 8, 1000])
def test_the_bytes_do_not_depend_on_the_chunks(chunk: int, tmp_path: Path) -> None:
    checkpoint = ggufs.case("llama-untied", tmp_path)
    for path, rows in ((tmp_path / "a.gguf", 7), (tmp_path / "b.gguf", chunk)):
        ggufs.write_gguf(checkpoint, path, chunk=rows)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_tensors_lie_aligned_and_apart(tmp_path: Path) -> None:
    layout = ggufs.write_gguf(ggufs.case("qwen2-untied", tmp_path), tmp_path / "m.gguf")
    file = (tmp_path / "m.gguf").read_bytes()
    assert len(file) == layout.size
    assert file.startswith(layout.header)
    at = len(layout.header)
    for place in layout.places:
        assert place.offset % 32 == 0
        assert file[at : place.offset] == bytes(place.offset - at), "zeros between tensors"
        at = place.offset + place.nbytes
    assert file[at:] == bytes(layout.size - at)
    found = {str(t.name): t for t in GGUFReader(tmp_path / "m.gguf").tensors}
    assert [(p.offset, p.nbytes) for p in layout.places] == [
        (found[p.name].data_offset, found[p.name].n_bytes) for p in layout.places
    ]


def test_a_file_is_reopened_as_it_was_left(tmp_path: Path) -> None:
    checkpoint = ggufs.case("qwen2-tied", tmp_path)
    layout = ggufs.write_gguf(checkpoint, tmp_path / "m.gguf")
    before = (tmp_path / "m.gguf").read_bytes()
    GgufFile(tmp_path / "m.gguf", layout).close()
    assert (tmp_path / "m.gguf").read_bytes() == before
    (tmp_path / "m.gguf").write_bytes(b"\xff" * 100)  # of another size: all of it is replaced
    file = GgufFile(tmp_path / "m.gguf", layout)
    assert file.read(layout.size - 40, 40) == bytes(40)
    assert file.size == layout.size
    file.close()


def test_a_tied_head_of_its_own_type_is_stored_apart(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "c")
    plan, _ = ggufs.draw_up(checkpoint, "Q4_0", scheme={"body": "int4", "embeddings": "int4", "head": "int8"})
    plan = replace(plan, shared_head=False)
    names = {p.name: p.kind for p in lay_out(plan, ()).places}
    assert names["token_embd.weight"] == GGMLQuantizationType.Q4_0
    assert names["output.weight"] == GGMLQuantizationType.Q8_0


def test_rows_of_a_head_are_interleaved_for_llama_only(tmp_path: Path) -> None:
    _, layout = ggufs.draw_up(ggufs.case("llama-untied", tmp_path))
    assert {p.name for p in layout.places if p.heads} == {
        f"blk.{i}.attn_{part}.{kind}" for i in range(2) for part in "qk" for kind in ("weight", "bias")
    }
    q = layout.by_key["layers.0.attn.q.weight"]
    size, half = q.rows // 4, q.rows // 8
    assert list(q.targets(0, q.rows)[:4]) == [0, 2, 4, 6]
    assert list(q.targets(half, half + 2)) == [1, 3]
    assert sorted(q.targets(size, 2 * size)) == list(range(size, 2 * size))
    assert not any(p.heads for p in ggufs.draw_up(ggufs.case("qwen3-tied", tmp_path))[1].places)


def test_rows_that_ggml_encoded_are_stored_as_they_are(tmp_path: Path) -> None:
    checkpoint = ggufs.case("llama-tied", tmp_path)
    whole = ggufs.write_gguf(checkpoint, tmp_path / "a.gguf", "Q8_0")
    plan, layout = ggufs.draw_up(checkpoint, "Q8_0")
    tensors = account(open_checkpoint(checkpoint), plan.decoder.roles())
    file = GgufFile(tmp_path / "b.gguf", layout)
    for place in layout.places:
        rows = tensors[place.role.key].rows(0, place.rows)
        if place.encoding.quantized:
            file.put(place.role.key, 0, EncodedRows("Q8_0", quantize(rows, GGMLQuantizationType.Q8_0)))
        else:
            file.put(place.role.key, 0, rows)
    file.close()
    assert whole == layout
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


@pytest.mark.parametrize(
    ("settings", "kind", "message"),
    [
        ({}, "Q4_K", r"model\.embed_tokens\.weight \[320, 64\]: rows of 64 do not divide into Q4_K's blocks of 256"),
        ({"model_type": "qwen3", "rope_scaling": ggufs.LLAMA3}, "Q4_0", "llama3 rope scaling for llama only"),
    ],
)
def test_what_llamacpp_cannot_hold_is_refused(
    settings: dict[str, Any], kind: str, message: str, tmp_path: Path
) -> None:
    checkpoint = write_checkpoint(tmp_path / "c", **settings)
    with pytest.raises(PlanError, match=message) as raised:
        ggufs.draw_up(checkpoint, kind)
    assert raised.value.hint


def test_a_type_that_gguf_has_not_is_refused(tmp_path: Path) -> None:
    plan, _ = ggufs.draw_up(write_checkpoint(tmp_path / "c"))
    plan = replace(plan, tensors=tuple(replace(t, encoding=ENCODINGS["int4-128"]) for t in plan.tensors))
    with pytest.raises(PlanError, match="GGUF has no type for int4-128"):
        lay_out(plan, ())


@pytest.mark.parity
@pytest.mark.parametrize("theta", [1e4, 5e5])
@pytest.mark.parametrize("size", [64, 96, 128])
@pytest.mark.parametrize("original", [256, 8192])
def test_llama3_factors_are_torchs_bit_for_bit(theta: float, size: int, original: int) -> None:
    """generate_extra_tensors in conversion/llama.py, in its own words."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    scaling = {**ggufs.LLAMA3, "factor": 32.0, "original_max_position_embeddings": original}
    expected: list[float] = []
    for frequency in 1.0 / (theta ** (torch.arange(0, size, 2, dtype=torch.float32) / size)):
        wavelength = 2 * np.pi / frequency
        if wavelength < original / 4.0:
            expected.append(1)
        elif wavelength > original / 1.0:
            expected.append(32.0)
        else:
            smooth = (original / wavelength - 1.0) / (4.0 - 1.0)
            expected.append(1 / ((1 - smooth) / 32.0 + smooth))
    factors = llama3_factors(Rope(theta, size, scaling))
    assert factors.dtype == np.float32
    assert np.array_equal(factors, torch.tensor(expected, dtype=torch.float32).numpy())
