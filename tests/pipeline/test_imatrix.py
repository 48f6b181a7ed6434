"""Importance matrices: files as llama-imatrix writes them, broken ones, and ones of another model."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from edgeship import archs, tiny
from edgeship.calibrate import Statistics, statistics
from edgeship.checkpoint.checkpoint import account, open_checkpoint
from edgeship.errors import ArtifactError, PlanError, RecipeError
from edgeship.quant.imatrix import by_role, read_imatrix
from edgeship.quant.importance import read_importance, write_importance
from edgeship.reference.weights import CheckpointWeights
from mix_models import decoder, gguf_name, matrices, write_imatrix
from tolerances import IMPORTANCE

MODEL = decoder("odd-172")
NAMES = {r.key: gguf_name(r.key) for r in MODEL.roles() if r.part != "float"}
SIZES = {name: dims[-1] for name, dims in matrices(MODEL).items() if name != "token_embd.weight"}


def write(path: Path, *, kind: str = "imatrix", **tensors: Any) -> Path:
    """A GGUF with these arrays, `__` in a name standing for its dots."""
    writer = gguf.GGUFWriter(path, kind)
    writer.add_type(kind)
    for name, values in tensors.items():
        writer.add_tensor(name.replace("__", "."), np.asarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_sums_are_divided_by_counts(tmp_path: Path) -> None:
    sums, none = np.array([[6, 3, 0]], np.float32), np.array([[0, 0]], np.float32)
    file = write(
        tmp_path / "im.gguf",
        a__weight__in_sum2=sums, a__weight__counts=np.array([[3]], np.float32),
        b__weight__in_sum2=none, b__weight__counts=np.array([[0]], np.float32),
    )  # fmt: skip
    matrix = read_imatrix(file)
    assert {name: values.tolist() for name, values in matrix.items()} == {"a.weight": [2, 1, 0], "b.weight": [1, 1]}
    assert all(values.dtype == np.float32 for values in matrix.values())


def test_importance_by_role(tmp_path: Path) -> None:
    write_imatrix(tmp_path / "im.gguf", SIZES)
    found = by_role(read_imatrix(tmp_path / "im.gguf"), MODEL.roles(), NAMES)
    assert set(found) == {r.key for r in MODEL.roles() if r.part == "body"}
    assert found["layers.2.mlp.down.weight"].shape == (172,)


def test_the_matrix_of_another_model_is_refused() -> None:
    matrix = {name: np.ones(size, np.float32) for name, size in SIZES.items()}
    matrix["blk.0.attn_q.weight"] = np.ones(64, np.float32)
    matrix["blk.1.attn_q.weight"] = np.zeros(128, np.float32)
    matrix["blk.7.attn_q.weight"] = np.ones(128, np.float32)
    del matrix["blk.2.ffn_down.weight"]
    with pytest.raises(PlanError) as caught:
        by_role(matrix, MODEL.roles(), NAMES, {"embed.weight", "layers.0.attn.k.weight"})
    assert caught.value.message.splitlines()[1:] == [
        "  - blk.7.attn_q.weight: no weight of the model is called so",
        "  - token_embd.weight: missing",
        "  - blk.0.attn_q.weight: 64 values for 128 inputs",
        "  - blk.1.attn_q.weight: all zero, which would erase the weight",
        "  - blk.2.ffn_down.weight: missing",
    ]
    many = {f"x{i}": np.ones(1, np.float32) for i in range(30)}
    with pytest.raises(PlanError, match="and 20 more"):
        by_role(many | {name: np.ones(size, np.float32) for name, size in SIZES.items()}, MODEL.roles(), NAMES)


def test_the_matrix_of_a_smaller_model_is_refused() -> None:
    matrix = {name: np.ones(size, np.float32) for name, size in SIZES.items() if not name.startswith("blk.2.")}
    with pytest.raises(PlanError, match=r"not of this model.*\n  - blk.2.attn_q.weight: missing"):
        by_role(matrix, MODEL.roles(), NAMES)


ONE = np.ones((1, 1), np.float32)


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({"kind": "model"}, "its general.type is 'model'"),
        ({"a": ONE}, "it holds no sums of inputs"),
        ({"a__in_sum2": ONE}, "a.counts is missing"),
        ({"a__in_sum2": ONE, "a__counts": np.ones((2, 1), np.float32)}, "a has 2 counts, as experts have"),
        ({"a__in_sum2": ONE * np.nan, "a__counts": ONE}, "a holds NaN, infinity or a negative number"),
        ({"a__in_sum2": -ONE, "a__counts": ONE}, "a holds NaN, infinity or a negative number"),
        ({"a__in_sum2": ONE, "a__counts": ONE * np.inf}, "a holds NaN, infinity or a negative number"),
        ({"a__in_sum2": np.ones((2, 2), np.float16), "a__counts": ONE}, "a.in_sum2 is F16, not F32"),
    ],
)
def test_what_is_no_importance_matrix_is_refused(tmp_path: Path, tensors: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError, match="expected an importance matrix as llama-imatrix writes it") as caught:
        read_imatrix(write(tmp_path / "im.gguf", **tensors))
    assert says in caught.value.message
    assert "llama-imatrix" in caught.value.hint


def test_what_is_no_gguf_is_refused(tmp_path: Path) -> None:
    (tmp_path / "old.dat").write_bytes(b"\x02\0\0\0\x05\0\0\0hello")
    for path in (tmp_path / "old.dat", tmp_path / "absent.gguf", tmp_path):
        with pytest.raises(RecipeError, match="expected an importance matrix"):
            read_imatrix(path)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_fuzz_damaged_files(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    home = tmp_path_factory.getbasetemp()
    whole = home / "whole.gguf"
    if not whole.exists():
        write(whole, a__weight__in_sum2=np.ones((1, 8), np.float32), a__weight__counts=ONE)
    raw = bytearray(whole.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at] = data.draw(st.integers(0, 255))
    damaged = home / "damaged.gguf"
    damaged.write_bytes(bytes(raw[: data.draw(st.integers(0, len(raw)))]))
    with contextlib.suppress(RecipeError):  # nothing else may come
        assert all(np.isfinite(values).all() for values in read_imatrix(damaged).values())


# importance that is measured here

LINE = "Once upon a time there was a fox who asked: what is the opposite of hot? The answer number {i} is cold, and 7 plus {i} makes another number.\n"  # noqa: E501
RECORDED = {
    "blk.0.attn_q.weight": ([0.16212162, 0.13280478, 0.14626477, 0.13571869], 13.37464905),
    "blk.3.attn_output.weight": ([0.17869985, 0.33788401, 0.15267774, 0.14844142], 27.72165871),
    "blk.5.ffn_up.weight": ([1.05652392, 0.74297649, 0.86406267, 1.54980981], 144.36280823),
    "blk.5.ffn_down.weight": ([5.09130001, 0.99298674, 0.00293225, 1.46153712], 1824.08349609),
}
"""Mean squares of the first four inputs, and the sum of all: `llama-imatrix -c 64` (llama.cpp of llama-cpp-python
0.3.36) of the embedded tiny model as F32, on LINE with i = 1 to 12."""


@pytest.mark.parity
def test_what_is_measured_equals_llama_imatrix(tmp_path: Path) -> None:
    home = Path(tiny.__file__).parent / "checkpoint"
    checkpoint = open_checkpoint(home)
    model = archs.read(checkpoint.config)
    text = "".join(LINE.format(i=i) for i in range(1, 13))
    ids = Tokenizer.from_file(str(home / "tokenizer.json")).encode(text, add_special_tokens=False).ids
    chunks = [ids[a : a + 64] for a in range(0, len(ids) - 63, 64)]
    found = statistics(model, CheckpointWeights(account(checkpoint, model.roles())), chunks)
    write_importance(tmp_path / "im.gguf", found, model, dataset="text", chunk=64)
    written = read_imatrix(tmp_path / "im.gguf")
    assert len(written) == 42
    for name, (values, total) in RECORDED.items():
        np.testing.assert_allclose(written[name][:4], values, rtol=IMPORTANCE)
        assert float(written[name].sum()) == pytest.approx(total, rel=IMPORTANCE)


def sums(seed: int = 0) -> dict[str, Statistics]:
    rng = np.random.default_rng(seed)
    return {r.key: Statistics(rng.random(r.shape[-1]), 640) for r in MODEL.roles() if len(r.shape) == 2}


def test_a_written_matrix_is_read_again(tmp_path: Path) -> None:
    found, file = sums(), tmp_path / "im.gguf"
    write_importance(file, found, MODEL, dataset="calibration.txt", chunk=512)
    read = read_importance(file, MODEL, [])
    assert set(read) == {r.key for r in MODEL.roles() if r.part == "body"}
    for key, values in read.items():
        np.testing.assert_allclose(values, found[key].second_moments, rtol=1e-6)
    fields = gguf.GGUFReader(file).fields
    assert fields["general.type"].contents() == "imatrix"
    assert fields["imatrix.datasets"].contents() == ["calibration.txt"]
    assert (fields["imatrix.chunk_count"].contents(), fields["imatrix.chunk_size"].contents()) == (2, 512)
    assert "general.architecture" not in fields
    assert list(tmp_path.iterdir()) == [file]


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="cannot be written"):
        write_importance(tmp_path / "absent" / "im.gguf", sums(), MODEL, dataset="x", chunk=1)
    (tmp_path / "im.gguf").mkdir()
    with pytest.raises(ArtifactError, match="cannot be written"):
        write_importance(tmp_path / "im.gguf", sums(), MODEL, dataset="x", chunk=1)
    assert [each.name for each in tmp_path.iterdir()] == ["im.gguf"]
