"""The safetensors reader: values against the safetensors library, every malformed header refused, memory bounded."""

from __future__ import annotations

import json
import os
import random
import struct
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from checkpoints import narrow, write_safetensors
from edgeship.checkpoint import safetensors
from edgeship.checkpoint.safetensors import open_shard
from edgeship.errors import CheckpointError
from edgeship.tensors import LazyTensor

VALUES = np.random.default_rng(0).standard_normal((5, 4), dtype=np.float32)


def write(path: Path, header: Any, data: bytes = b"", size: int | None = None) -> Path:
    """A file with this header (bytes, or an object to encode), whatever it says, and this data."""
    blob = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(blob) if size is None else size) + blob + data)
    return path


def entry(dtype: str = "F32", shape: Any = (2,), begin: Any = 0, end: Any = 8) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_rows_equal_the_values_written(file: Path, dtype: str) -> None:
    write_safetensors(file, {"a": (dtype, narrow(VALUES, dtype)), "b": (dtype, narrow(VALUES[0], dtype))})
    tensors = open_shard(file)
    assert list(tensors) == ["a", "b"]
    a = tensors["a"]
    assert (a.shape, a.dtype, a.source, a.nbytes) == ((5, 4), dtype, str(file), narrow(VALUES, dtype).nbytes)
    stored = narrow(VALUES, dtype)
    as_float = (stored.astype(np.uint32) << 16).view(np.float32) if dtype == "BF16" else stored.astype(np.float32)
    for begin in range(6):
        for end in range(begin, 6):
            rows = a.rows(begin, end)
            assert rows.dtype == np.float32
            np.testing.assert_array_equal(rows, as_float[begin:end])
    np.testing.assert_array_equal(tensors["b"].rows(1, 3), as_float[0, 1:3])
    assert a.raw(0, 5).dtype == stored.dtype


@pytest.mark.parity
def test_reads_what_the_safetensors_library_writes(file: Path) -> None:
    numpy = pytest.importorskip("safetensors.numpy")
    expected: dict[str, NDArray[Any]] = {
        "w": VALUES,
        "half": VALUES.astype(np.float16),
        "scalar": np.asarray(3, np.float32),
        "empty": VALUES[:0],
    }
    numpy.save_file(expected, file, metadata={"format": "pt"})
    tensors = open_shard(file)
    assert tensors.keys() == expected.keys()
    for name in ("w", "half"):
        np.testing.assert_array_equal(tensors[name].rows(0, 5), expected[name].astype(np.float32))
    assert tensors["empty"].rows(0, 0).shape == (0, 4)
    assert tensors["scalar"].rows(0, 1) == [3]


def test_rows_outside_the_tensor(file: Path) -> None:
    write_safetensors(file, {"a": ("F32", VALUES)})
    for a, b in ((-1, 1), (0, 6), (3, 2)):
        with pytest.raises(IndexError):
            open_shard(file)["a"].rows(a, b)


def test_threads_read_at_once(file: Path) -> None:
    values = np.arange(4000 * 16, dtype=np.float32).reshape(4000, 16)
    write_safetensors(file, {"pad": ("F32", VALUES), "a": ("F32", values)})
    tensor = open_shard(file)["a"]
    ranges = [(a, a + n) for n in (1, 7, 300) for a in range(0, 3700, 97)]
    with ThreadPoolExecutor(8) as pool:
        for (a, b), rows in zip(ranges, pool.map(lambda r: tensor.rows(*r), ranges), strict=True):
            np.testing.assert_array_equal(rows, values[a:b])


def test_memory_is_that_of_the_rows_read(file: Path) -> None:
    values = np.zeros((4096, 1024), np.uint16)  # 8 MB
    write_safetensors(file, {"a": ("BF16", values)})
    tracemalloc.start()
    tensor = open_shard(file)["a"]
    for a in range(0, 4096, 64):
        tensor.raw(a, a + 64)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 600_000  # a chunk has 131,072 bytes


def test_the_descriptor_is_closed_with_the_last_tensor(file: Path) -> None:
    write_safetensors(file, {"a": ("F32", VALUES)})
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        open_shard(file)
    kept: LazyTensor = open_shard(file)["a"]
    assert len(os.listdir("/proc/self/fd")) <= before + 1
    np.testing.assert_array_equal(kept.rows(0, 5), VALUES)


def test_truncated_after_it_was_opened(file: Path) -> None:
    write_safetensors(file, {"a": ("F32", VALUES)})
    tensor = open_shard(file)["a"]
    os.truncate(file, file.stat().st_size - 4)
    tensor.rows(0, 4)
    with pytest.raises(CheckpointError, match="became shorter") as e:
        tensor.rows(3, 5)
    assert '"a"' in e.value.message
    assert str(file) in e.value.message


MALFORMED = [
    ("hole at the start", {"a": entry(begin=4, end=12)}, 12, '"a".*expected 0'),
    ("hole between", {"a": entry(), "b": entry(begin=12, end=20)}, 20, '"b".*a hole'),
    ("overlap", {"a": entry(), "b": entry(begin=4, end=12)}, 12, '"b".*overlaps.*"a"'),
    ("same place twice", {"a": entry(), "b": entry()}, 8, "overlaps"),
    ("beyond the end", {"a": entry()}, 7, '"a".*cut short'),
    ("trailing bytes", {"a": entry()}, 9, "1 bytes"),
    ("no tensors but data", {}, 3, "3 bytes"),
    ("end before begin", {"a": entry(begin=8, end=0)}, 8, '"a".*before'),
    ("shape too small", {"a": entry(shape=[1])}, 8, '"a".*takes 4 bytes'),
    ("shape too large", {"a": entry(shape=[2**40, 2**40])}, 8, '"a".*takes'),
    ("negative dimension", {"a": entry(shape=[-2])}, 8, '"a": shape'),
    ("bool dimension", {"a": entry(shape=[True, 2])}, 8, '"a": shape'),
    ("float dimension", {"a": entry(shape=[2.0])}, 8, '"a": shape'),
    ("huge dimension", {"a": entry(shape=[10**19])}, 8, '"a": shape.*too large'),
    ("many dimensions", {"a": entry(shape=[1] * 33)}, 4, '"a": shape'),
    ("nested dimension", {"a": entry(shape=[[[2]]])}, 8, '"a": shape'),
    ("negative offset", {"a": entry(begin=-8, end=0)}, 8, '"a": data_offsets'),
    ("bool offset", {"a": entry(begin=False, end=8)}, 8, '"a": data_offsets'),
    ("offsets as text", {"a": entry(begin="0")}, 8, '"a": data_offsets'),
    ("three offsets", {"a": {**entry(), "data_offsets": [0, 4, 8]}}, 8, '"a": data_offsets'),
    ("dtype not a name", {"a": {**entry(), "dtype": 5}}, 8, '"a": dtype'),
    ("a field missing", {"a": {"dtype": "F32", "shape": [2]}}, 8, '"a": expected an object'),
    ("a field too many", {"a": {**entry(), "strides": [1]}}, 8, '"a": expected an object'),
    ("tensor not an object", {"a": [1, 2]}, 8, '"a": expected an object'),
    ("metadata not text", {"__metadata__": {"n": 1}, "a": entry()}, 8, "__metadata__"),
    ("metadata not an object", {"__metadata__": [], "a": entry()}, 8, "__metadata__"),
    ("a list", [], 0, "does not start"),
    ("key twice", b'{"a":%s,"a":%s}' % ((json.dumps(entry()).encode(),) * 2), 8, '"a" occurs twice'),
    ("field twice", b'{"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}', 8, "occurs twice"),
    ("not JSON", b"{]", 0, "not JSON"),
    ("not UTF-8", b'{"\xff":1}', 0, "UTF-8"),
    ("UTF-16", '{"a":1}'.encode("utf-16-le"), 0, "does not start|not JSON"),
    ("NaN", b'{"a":NaN}', 0, "NaN"),
    ("nested too deeply", b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}", 0, "nested too deeply"),
    ("endless number", b'{"a":' + b"1" * 10_000 + b"}", 0, "out of range"),
    ("leading space", b' {"a":1}', 0, "does not start"),
    ("empty header", b"", 8, "does not start"),
    ("FP8", {"a": entry("F8_E4M3", [8])}, 8, r'"a": "F8_E4M3"'),
    ("quantized", {"a.qweight": entry("I32", [2])}, 8, "I32"),
    ("double", {"a": entry("F64", [1])}, 8, "F64"),
    ("unknown type", {"a": entry("Q\ud800", [1])}, 8, "of another type"),
]


@pytest.mark.parametrize(("header", "data", "text"), [m[1:] for m in MALFORMED], ids=[m[0] for m in MALFORMED])
def test_malformed(file: Path, header: Any, data: int, text: str) -> None:
    with pytest.raises(CheckpointError, match=f"(?s){text}") as e:
        open_shard(write(file, header, bytes(data)))
    assert str(file) in e.value.message
    assert e.value.hint
    assert len(e.value.message) < 1000
    str(e.value).encode()  # printable, lone surrogates and all


def test_hints_say_what_to_export_instead(file: Path) -> None:
    for dtype, text in (("F8_E5M2", "FP8"), ("I32", "GPTQ"), ("U8", "GPTQ"), ("BOOL", "BF16")):
        with pytest.raises(CheckpointError) as e:
            open_shard(write(file, {"a": entry(dtype, [8])}, bytes(8)))
        assert text in e.value.hint


def test_header_sizes(file: Path) -> None:
    for content, text in (
        (b"", "too short"),
        (b"\x08\0\0\0", "too short"),
        (struct.pack("<Q", 2**63) + b"{}", "the limit is"),
        (struct.pack("<Q", safetensors.HEADER_LIMIT + 1), "the limit is"),
        (struct.pack("<Q", 100) + b"{}", "cut short"),
        (b"version https://git-lfs.github.com/spec/v1\n", "the limit is"),
    ):
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match=text):
            open_shard(file)


def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("missing", "pipe", "."):
        with pytest.raises(CheckpointError) as e:
            open_shard(tmp_path / name)
        assert e.value.hint


def test_trailing_spaces_and_any_order_are_allowed(file: Path) -> None:
    header = json.dumps({"b": entry(begin=8, end=16), "a": entry(), "none": entry(shape=[0], begin=8, end=8)}).encode()
    tensors = open_shard(write(file, header + b"   ", struct.pack("<4f", 1, 2, 3, 4)))
    assert list(tensors) == ["a", "none", "b"]
    assert tensors["b"].rows(0, 2).tolist() == [3, 4]


def _parses_or_refuses(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    try:
        tensors = open_shard(path)
    except CheckpointError as error:
        str(error).encode()
        return
    for t in tensors.values():
        t.rows(0, t.shape[0] if t.shape else 1)


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_fuzz_bytes(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.safetensors"
    _parses_or_refuses(path, content)
    _parses_or_refuses(path, struct.pack("<Q", len(content)) + content)


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["F32", "BF16", "F8"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "F16", "F8_E4M3"]) | JSON_VALUES,
        "shape": st.lists(st.integers(0, 4), max_size=3) | JSON_VALUES,
        "data_offsets": st.lists(st.integers(0, 40), min_size=2, max_size=2) | JSON_VALUES,
    }
)


@given(st.dictionaries(st.text(max_size=5), ENTRIES | JSON_VALUES, max_size=4), st.integers(0, 60))
@settings(max_examples=400, deadline=None)
def test_fuzz_headers(tmp_path_factory: pytest.TempPathFactory, header: dict[str, Any], data: int) -> None:
    blob = json.dumps(header).encode()
    path = tmp_path_factory.getbasetemp() / "fuzz.safetensors"
    _parses_or_refuses(path, struct.pack("<Q", len(blob)) + blob + bytes(data))


@given(st.integers(0, 2**32), st.integers(1, 6))
@settings(max_examples=300, deadline=None)
def test_fuzz_mutations_of_a_valid_file(tmp_path_factory: pytest.TempPathFactory, seed: int, changes: int) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.safetensors"
    write_safetensors(
        path, {"a": ("F32", VALUES), "b": ("BF16", narrow(VALUES, "BF16")), "c": ("F16", narrow(VALUES, "F16"))}
    )
    content, rng = bytearray(path.read_bytes()), random.Random(seed)
    header = 8 + int.from_bytes(content[:8], "little")
    for _ in range(changes):
        at = rng.randrange(min(header, len(content)))
        match rng.randrange(4):
            case 0:
                content[at] = rng.randrange(256)
            case 1:
                content[at] = rng.choice(b'0123456789[]{},:"-.eE ')
            case 2:
                del content[at]
            case 3:
                content = content[: rng.randrange(8, len(content) + 1)]
        if len(content) <= 8:
            break
    _parses_or_refuses(path, bytes(content))
