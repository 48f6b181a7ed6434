"""The graph of an ONNX artifact with large products in tiles, on the same weights, for WebAssembly.

onnxruntime has no kernels there that multiply by quantized weights: it makes a whole matrix float32, 544 MB for the
head of a 0.5B model, and multiplies by that. Row by row of the weights the tiles are the same numbers, and their floats
stay in the processor's cache.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx
from onnx import GraphProto, NodeProto, TensorProto, helper

NAME = "model.tiled.onnx"
"""What bundles call it."""
TILE = 2 << 20
"""Bytes of a tile's weights as float32."""

_ROWS = 16  # a tile has a multiple of so many
_BY_ROW = (1, 2, 3, 5)
"""Inputs of MatMulNBits with a row for each output: weights, scales, zero points, and bias; as in onnxruntime's
docs/ContribOperators.md."""


def tiled_graph(raw: bytes, tile: int = TILE) -> bytes:
    """The graph `raw` with every product of quantized weights larger than `tile` bytes of float32 in such tiles.

    Products whose weights do not lie in external data row by row stay whole.
    """
    model = onnx.load_model_from_string(raw)
    graph = model.graph
    stored = {each.name: each for each in graph.initializer}
    pieces: dict[str, TensorProto] = {}
    nodes = [made for node in graph.node for made in _tiled(node, stored, pieces, tile)]
    left = _inputs(graph.node) - _inputs(nodes)  # only tiles use them now
    _replace(graph, nodes, [each for each in graph.initializer if each.name not in left] + list(pieces.values()))
    return bytes(model.SerializeToString(deterministic=True))


def _inputs(nodes: Iterable[NodeProto]) -> set[str]:
    return {name for node in nodes for name in node.input}


def _replace(graph: GraphProto, nodes: list[NodeProto], stored: list[TensorProto]) -> None:
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(stored)


def _tiled(
    node: NodeProto, stored: dict[str, TensorProto], pieces: dict[str, TensorProto], tile: int
) -> Iterator[NodeProto]:
    """The node, or one for each of its tiles and their concatenation; parts of its weights go into `pieces`."""
    sizes = {each.name: each.i for each in node.attribute if each.name in ("K", "N")}
    places = [place for place, name in enumerate(node.input) if place in _BY_ROW and name]
    rows = max(tile // (4 * sizes["K"]) // _ROWS, 1) * _ROWS if len(sizes) == 2 else 0
    if node.op_type != "MatMulNBits" or sizes["N"] <= rows or not _by_row(node, places, stored, sizes["N"]):
        yield node
        return
    names = []
    for start in range(0, sizes["N"], rows):
        end = min(start + rows, sizes["N"])
        part = NodeProto()
        part.CopyFrom(node)
        part.name = part.output[0] = f"{node.output[0]}.{start}"
        next(each for each in part.attribute if each.name == "N").i = end - start
        for place in places:
            piece = _piece(stored[node.input[place]], start, end)
            part.input[place] = piece.name
            pieces[piece.name] = piece
        names.append(part.name)
        yield part
    yield helper.make_node("Concat", names, [node.output[0]], name=node.name, axis=-1)


def _by_row(node: NodeProto, places: list[int], stored: dict[str, TensorProto], rows: int) -> bool:
    weights = [stored.get(node.input[place]) for place in places]
    return all(each is not None and each.external_data and each.dims[0] == rows for each in weights)


def _piece(whole: TensorProto, start: int, end: int) -> TensorProto:
    """Rows `start` to `end` of a tensor in external data."""
    data = {each.key: each.value for each in whole.external_data}
    row = int(data["length"]) // whole.dims[0]
    piece = TensorProto(name=f"{whole.name}.{start}", data_type=whole.data_type, dims=[end - start, *whole.dims[1:]])
    piece.data_location = TensorProto.EXTERNAL
    placed = {"location": data["location"], "offset": int(data["offset"]) + start * row, "length": (end - start) * row}
    for key, value in placed.items():
        piece.external_data.add(key=key, value=str(value))
    return piece
