"""The graph of an ONNX artifact with 16-bit activations and KV cache, on the same weights, for GPUs that have them.

Scales, norms, biases and rotary tables stay float32 in the data file and are cast, which onnxruntime does once, when it
loads the model. Scales of the shared grid are 16-bit numbers already, so the weights are the same to the bit. Logits
are given as float32.
"""

from __future__ import annotations

import onnx
from onnx import GraphProto, TensorProto, helper

NAME = "model.float16.onnx"
"""What bundles call it."""

_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)


def half_graph(raw: bytes) -> bytes:
    """The graph `raw` for 16-bit floats; names of inputs, outputs and external data stay as they are."""
    model = onnx.load_model_from_string(raw)
    graph = model.graph
    renamed = {tensor.name: f"{tensor.name}.half" for tensor in graph.initializer if tensor.data_type in _FLOATS}
    for node in graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = renamed.get(name, name)
        if node.op_type == "Cast":
            _cast_to_half(node)
    casts = [helper.make_node("Cast", [name], [to], name=to, to=TensorProto.FLOAT16) for name, to in renamed.items()]
    nodes = [*casts, *graph.node, _logits(graph)]
    del graph.node[:]
    graph.node.extend(nodes)
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type in _FLOATS:
            value.type.tensor_type.elem_type = TensorProto.FLOAT if value.name == "logits" else TensorProto.FLOAT16
    return bytes(model.SerializeToString(deterministic=True))


def _cast_to_half(node: onnx.NodeProto) -> None:
    for attribute in node.attribute:
        if attribute.name == "to" and attribute.i == TensorProto.FLOAT:
            attribute.i = TensorProto.FLOAT16


def _logits(graph: GraphProto) -> onnx.NodeProto:
    """A node that gives `logits` as float32; what made them gives another name from now on."""
    for node in graph.node:
        for place, name in enumerate(node.output):
            if name == "logits":
                node.output[place] = "logits.half"
    return helper.make_node("Cast", ["logits.half"], ["logits"], name="logits.float32", to=TensorProto.FLOAT)
