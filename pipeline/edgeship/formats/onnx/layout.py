"""Where every value lies in model.onnx.data, known from the plan before the first byte is written."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

from edgeship.archs.base import Role
from edgeship.encodings import Encoding
from edgeship.footprint import PAGE
from edgeship.plan import Plan, PlannedTensor

LINE = 64  # small vectors only need the alignment of a cache line


@dataclass(frozen=True)
class Region:
    """A tensor in the data file: what an initializer of the graph points at."""

    name: str
    dtype: str  # "uint8", "float16" or "float32"
    dims: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        return prod(self.dims) * {"uint8": 1, "float16": 2, "float32": 4}[self.dtype]


@dataclass(frozen=True)
class Place:
    """Where the rows of one checkpoint tensor go: row r of its codes (or floats) and of its scales."""

    role: Role
    encoding: Encoding
    offset: int
    row_bytes: int
    scale_offset: int  # meaningful for quantized encodings
    scale_row_bytes: int  # 0 for floats

    @property
    def rows(self) -> int:
        return self.role.shape[0]

    @property
    def columns(self) -> int:
        return prod(self.role.shape[1:])

    @property
    def nbytes(self) -> int:
        return self.rows * (self.row_bytes + self.scale_row_bytes)


@dataclass(frozen=True)
class Layout:
    """All of model.onnx.data: regions by initializer name, places in file order, and the rotary tables."""

    regions: dict[str, Region]
    places: tuple[Place, ...]
    cos: Region
    sin: Region
    size: int


def lay_out(plan: Plan) -> Layout:
    """Assign every tensor of the plan its offset; q, k and v of a layer share one region."""
    pen = _Pen()
    for group in _groups(plan.stored()):
        pen.put(group)
    d, positions = plan.decoder, plan.rope_positions
    cos = pen.region("rope.cos", "float32", (positions, d.head_dim // 2))
    sin = pen.region("rope.sin", "float32", (positions, d.head_dim // 2))
    return Layout(pen.regions, tuple(pen.places), cos, sin, pen.at)


def _groups(tensors: Iterable[PlannedTensor]) -> list[tuple[str, list[PlannedTensor]]]:
    """Tensors that share a region, under its name, in file order: q, k, v weights, q, k, v biases, or one alone."""
    named: dict[str, list[PlannedTensor]] = {}
    for t in tensors:
        owner, _, last = t.role.key.rpartition(".")
        packed = owner.endswith((".attn.q", ".attn.k", ".attn.v"))
        name = f"{owner[:-1]}qkv.{last}" if packed else t.role.key
        named.setdefault(name, []).append(t)
    return list(named.items())


class _Pen:
    """The write position while the layout is drawn."""

    def __init__(self) -> None:
        self.at = 0
        self.regions: dict[str, Region] = {}
        self.places: list[Place] = []

    def region(self, name: str, dtype: str, dims: tuple[int, ...]) -> Region:
        size = Region(name, dtype, dims, 0).nbytes
        step = PAGE if size >= PAGE else LINE
        self.at = -(-self.at // step) * step
        self.regions[name] = region = Region(name, dtype, dims, self.at)
        self.at += size
        return region

    def put(self, named: tuple[str, list[PlannedTensor]]) -> None:
        name, tensors = named
        encoding, rows = tensors[0].encoding, sum(t.role.shape[0] for t in tensors)
        rest = tensors[0].role.shape[1:]
        if not encoding.quantized:
            at, step = self.region(name, encoding.name, (rows, *rest)).offset, prod(rest) * encoding.bits // 8
            scale_at = scale_step = 0
        else:
            groups = rest[0] // encoding.group
            codes = self.region(name, "uint8", (rows, groups, encoding.group * encoding.bits // 8))
            scales = self.region(name + ".scales", "float32", (rows, groups))
            at, scale_at = codes.offset, scales.offset
            step, scale_step = groups * encoding.group * encoding.bits // 8, groups * 4
        for t in tensors:
            self.places.append(Place(t.role, encoding, at, step, scale_at, scale_step))
            at += t.role.shape[0] * step
            scale_at += t.role.shape[0] * scale_step
