"""Whether the two formats of an artifact hold the same weights: every number of both, compared bit for bit.

Both sides are read from what the files say of themselves and not from how this package lays them out: a GGUF file by
the `gguf` package, a graph by its initializers and the definition of MatMulNBits (onnxruntime, ContribOperators.md).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from numpy.typing import NDArray

from edgeship.errors import ArtifactError, UsageError
from edgeship.progress import Progress
from edgeship_runtime.errors import EdgeshipRuntimeError
from edgeship_runtime.gguf_model import read_model
from edgeship_runtime.manifest import Manifest, artifact_file, model_path, read_manifest

Floats = NDArray[np.float32]
Rows = Callable[[int, int], Floats]

CHUNK = 1 << 21  # numbers compared at a time

# Names inside a layer: llama.cpp's, and the graph's with the part of a packed tensor that it is.
LAYER = {
    "attn_norm": ("attn_norm", ""),
    "attn_q": ("attn.qkv", "q"),
    "attn_k": ("attn.qkv", "k"),
    "attn_v": ("attn.qkv", "v"),
    "attn_q_norm": ("attn.q_norm", ""),
    "attn_k_norm": ("attn.k_norm", ""),
    "attn_output": ("attn.o", ""),
    "ffn_norm": ("mlp_norm", ""),
    "ffn_gate": ("mlp.gate", ""),
    "ffn_up": ("mlp.up", ""),
    "ffn_down": ("mlp.down", ""),
}
WHOLE = {"token_embd": "embed", "output_norm": "norm", "output": "head"}
NOT_WEIGHTS = ("rope_freqs.weight",)  # a table that follows from the config; the graph holds cos and sin instead

HINT = "export the recipe again, with both formats"


@dataclass(frozen=True)
class TensorDiff:
    """A tensor whose numbers are not the same in both files."""

    name: str
    values: int
    different: int
    largest: float  # difference, in the weight's unit


@dataclass(frozen=True)
class Diff:
    """What a comparison of two formats found."""

    artifact: str
    tensors: int
    values: int
    different: tuple[TensorDiff, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def diff(artifact: Path, progress: Progress) -> Diff:
    """Compare `artifact`/onnx with `artifact`/gguf.

    Raises UsageError where the artifact has not both formats, ArtifactError where a file is damaged or the two do not
    hold the same tensors.
    """
    onnx_dir, gguf_dir = artifact / "onnx", artifact / "gguf"
    if not artifact.is_dir():
        raise UsageError(f"{artifact}: expected an artifact's directory, found none.", hint="check the path")
    absent = [d.name for d in (onnx_dir, gguf_dir) if not d.is_dir()]
    if absent:
        raise UsageError(
            f"{artifact}: expected an artifact with both formats, found no {' and no '.join(absent)}/ in it.", hint=HINT
        )
    try:
        graph = _Graph(onnx_dir, read_manifest(onnx_dir))
        path = model_path(gguf_dir, read_manifest(gguf_dir))
        read_model(path)  # a damaged file ends here and not inside the reader
    except EdgeshipRuntimeError as error:
        raise ArtifactError(error.message, hint=error.hint or HINT) from None
    reader = gguf.GGUFReader(path)
    tensors = {t.name: t for t in reader.tensors if t.name not in NOT_WEIGHTS}
    sides = _match(tensors, graph, _heads(reader))
    progress.start(sum(tensor.n_bytes for tensor in reader.tensors), "comparing")
    found = []
    for name, shape, ours, theirs in sides:
        each = _compare(name, shape, ours, theirs)
        if each.different:
            found.append(each)
        progress.advance(int(tensors[name].n_bytes), name)
    progress.finish()
    return Diff(str(artifact), len(sides), sum(prod(shape) for _, shape, _, _ in sides), tuple(found))


def _compare(name: str, shape: tuple[int, int], ours: Rows, theirs: Rows) -> TensorDiff:
    step = max(1, CHUNK // shape[1])
    different, largest = 0, 0.0
    for a in range(0, shape[0], step):
        b = min(a + step, shape[0])
        x, y = ours(a, b), theirs(a, b)
        unequal = x.view(np.uint32) != y.view(np.uint32)
        if unequal.any():
            different += int(unequal.sum())
            largest = max(largest, float(np.abs(x[unequal] - y[unequal]).max()))
    return TensorDiff(name, prod(shape), different, largest)


def _match(
    tensors: Mapping[str, gguf.ReaderTensor], graph: _Graph, heads: Mapping[str, int]
) -> list[tuple[str, tuple[int, int], Rows, Rows]]:
    """Name, shape `[rows, columns]` and both readers of every tensor; raises ArtifactError for one that is alone."""
    sides, taken = [], set()
    for name, tensor in sorted(tensors.items(), key=lambda item: _order(item[0])):
        key, part = _graph_name(name)
        columns = int(tensor.shape[0])
        rows = int(tensor.n_elements) // columns
        shape = (rows, columns) if len(tensor.shape) > 1 else (1, rows * columns)
        found = graph.find(key)
        if found is None:
            raise ArtifactError(f"{name}: expected {key} in the graph, found no such weight.", hint=HINT)
        taken.add(key)
        start = 0
        if part:  # q, k and v lie one behind the other
            sizes = [int(tensors[_sibling(name, p)].shape[-1]) for p in "qkv"]
            start = list(itertools.accumulate(sizes, initial=0))["qkv".index(part)]
        sides.append((name, shape, _shifted(found, start, shape), _gguf_rows(tensor, heads.get(part, 0))))
    alone = sorted(graph.names() - taken - ({"head.weight"} if "output.weight" not in tensors else set()))
    if alone:
        raise ArtifactError(
            f"the graph has {', '.join(alone[:5])}{' …' if alone[5:] else ''}, and the GGUF file does not.", hint=HINT
        )
    return sides


def _order(name: str) -> tuple[int, str]:
    parts = name.split(".")
    return (int(parts[1]), name) if parts[0] == "blk" and parts[1].isdigit() else (-1, name)


def _sibling(name: str, part: str) -> str:
    head, _, last = name.rpartition(".")
    return f"{head[:-1]}{part}.{last}"


def _graph_name(name: str) -> tuple[str, str]:
    """The graph's name of llama.cpp's tensor, and which part of a packed one it is."""
    parts = name.split(".")
    if len(parts) == 2 and parts[0] in WHOLE:
        return f"{WHOLE[parts[0]]}.{parts[1]}", ""
    if len(parts) == 4 and parts[0] == "blk" and parts[2] in LAYER:
        key, part = LAYER[parts[2]]
        return f"layers.{parts[1]}.{key}.{parts[3]}", part
    raise ArtifactError(f"{name}: a tensor of the GGUF file that no graph of edgeship has.", hint=HINT)


def _heads(reader: gguf.GGUFReader) -> dict[str, int]:
    """Heads whose rows llama.cpp interleaves, by part: those of q and k of the architecture `llama`."""
    architecture = reader.fields["general.architecture"].contents()
    if architecture != "llama":
        return {}
    names = {"q": f"{architecture}.attention.head_count", "k": f"{architecture}.attention.head_count_kv"}
    return {part: int(reader.fields[name].contents()) for part, name in names.items()}


def _gguf_rows(tensor: gguf.ReaderTensor, heads: int) -> Rows:
    data = np.asarray(tensor.data)
    data = data.reshape(-1, data.shape[-1]) if data.ndim > 1 else data.reshape(1, -1)
    if heads:
        # Row 2 j + s of a head is row j of half s in transformers (`LlamaModel.permute` in conversion/llama.py).
        order = np.arange(len(data)).reshape(heads, -1, 2).transpose(0, 2, 1).reshape(-1)
        return lambda a, b: _as_float(data[order[a:b]], tensor.tensor_type)
    return lambda a, b: _as_float(data[a:b], tensor.tensor_type)


def _as_float(rows: NDArray[Any], kind: gguf.GGMLQuantizationType) -> Floats:
    return np.ascontiguousarray(gguf.dequantize(np.ascontiguousarray(rows), kind), np.float32)


def _shifted(rows: Rows, start: int, shape: tuple[int, int]) -> Rows:
    if shape[0] == 1:  # a vector, of which a part may be meant
        return lambda a, b: rows(0, 1)[:, start : start + shape[1]]
    return lambda a, b: rows(start + a, start + b)


class _Graph:
    """The weights of an ONNX artifact by the names of its initializers."""

    def __init__(self, directory: Path, manifest: Manifest) -> None:
        self._where = artifact_file(directory, manifest, manifest.model_file)
        try:
            model = onnx.load(str(self._where), load_external_data=False)
        except (DecodeError, OSError, ValueError) as error:
            raise ArtifactError(f"{self._where}: not an ONNX graph ({error})", hint=HINT) from None
        self._data = np.memmap(artifact_file(directory, manifest, f"{manifest.model_file}.data"), np.uint8, "r")
        self._tensors = {t.name: t for t in model.graph.initializer if t.external_data}
        weight = {"MatMulNBits": 1, "GatherBlockQuantized": 0}  # which input of the operator it is
        self._bits = {
            node.input[weight[node.op_type]]: next(a.i for a in node.attribute if a.name == "bits")
            for node in model.graph.node
            if node.op_type in weight
        }

    def names(self) -> set[str]:
        """Weights and vectors; not scales, nor the rotary tables."""
        names = {name.removesuffix(".rows") for name in self._tensors}
        return {n for n in names if not n.endswith(".scales") and n not in ("rope.cos", "rope.sin")}

    def find(self, key: str) -> Rows | None:
        """Rows of a weight `[rows, columns]`; a vector is one row. None where there is none of that name."""
        name = key if key in self._tensors else f"{key}.rows"
        if name not in self._tensors:
            return None
        values = self._array(name)
        if f"{key}.scales" not in self._tensors:
            flat = values.reshape(-1, values.shape[-1]) if values.ndim > 1 else values.reshape(1, -1)
            return lambda a, b: np.ascontiguousarray(flat[a:b], np.float32)
        scales = self._array(f"{key}.scales")
        bits = self._bits[name]
        codes = values.reshape(len(values), -1)
        return lambda a, b: _dequantize(codes[a:b], scales[a:b], bits)

    def _array(self, name: str) -> NDArray[Any]:
        tensor = self._tensors[name]
        where = {each.key: each.value for each in tensor.external_data}
        start, size = int(where["offset"]), int(where["length"])
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        if start < 0 or start + size > self._data.size or size != prod(tensor.dims) * dtype.itemsize:
            raise ArtifactError(
                f"{self._where}: {name}: expected {prod(tensor.dims) * dtype.itemsize} bytes at {start}, found a file "
                f"of {self._data.size}.",
                hint=HINT,
            )
        array: NDArray[Any] = self._data[start : start + size].view(dtype).reshape(tuple(tensor.dims))
        return array


def _dequantize(codes: NDArray[np.uint8], scales: Floats, bits: int) -> Floats:
    """Rows of codes `[rows, bytes]` and scales `[rows, groups]` as numbers: (code - 2^(bits - 1)) * scale."""
    if bits == 4:
        codes = np.stack([codes & 15, codes >> 4], axis=-1).reshape(len(codes), -1)
    centred = codes.astype(np.float32) - np.float32(1 << (bits - 1))
    grouped = centred.reshape(*scales.shape, -1) * scales[..., None].astype(np.float32)
    return np.ascontiguousarray(grouped.reshape(len(codes), -1))
