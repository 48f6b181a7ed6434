"""The ONNX graph of a decoder: fused contrib operators, external weights, names that onnxruntime-genai expects.

Operator definitions: onnxruntime, docs/ContribOperators.md. Input and output names: onnxruntime-genai's
genai_config.json. Shapes in comments: B batch, S new tokens, T past and new tokens, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from edgeship import __version__
from edgeship.archs.base import Decoder
from edgeship.encodings import Encoding
from edgeship.formats.onnx.layout import Layout, Region
from edgeship.plan import Plan

OPSET, IR_VERSION, CONTRIB = 21, 10, "com.microsoft"
DATA_TYPES = {"uint8": TensorProto.UINT8, "float16": TensorProto.FLOAT16, "float32": TensorProto.FLOAT}


class _Graph:
    """Nodes and initializers under construction; each method adds one node and returns its output's name."""

    def __init__(self, plan: Plan, layout: Layout, data_file: str) -> None:
        self.plan, self.layout, self.data_file = plan, layout, data_file
        self.nodes: list[NodeProto] = []
        self.constants: dict[str, TensorProto] = {}
        self.weights: dict[str, TensorProto] = {}
        self.encodings = {t.role.key: t.encoding for t in plan.stored()}

    def node(
        self, op: str, name: str, inputs: Sequence[str], outputs: int | Sequence[str] = 1, **attributes: Any
    ) -> str:
        """Add a standard operator; its outputs are named after it unless names are given."""
        return self._add(op, name, inputs, outputs, "", attributes)

    def contrib(
        self, op: str, name: str, inputs: Sequence[str], outputs: int | Sequence[str] = 1, **attributes: Any
    ) -> str:
        """Add one of onnxruntime's own operators."""
        return self._add(op, name, inputs, outputs, CONTRIB, attributes)

    def _add(
        self, op: str, name: str, inputs: Sequence[str], outputs: int | Sequence[str], domain: str, attributes: Any
    ) -> str:
        names = [name] + [f"{name}.{i}" for i in range(1, outputs)] if isinstance(outputs, int) else list(outputs)
        self.nodes.append(helper.make_node(op, list(inputs), names, name=name, domain=domain, **attributes))
        return names[0]

    def constant(self, name: str, value: Any, dtype: type = np.int64) -> str:
        self.constants.setdefault(name, numpy_helper.from_array(np.array(value, dtype), name))
        return name

    def weight(self, region: Region, dims: Sequence[int] = (), name: str = "") -> str:
        """An initializer that points into the data file; a second name and other dims make a second view."""
        name = name or region.name
        if name not in self.weights:
            tensor = TensorProto(name=name, data_type=DATA_TYPES[region.dtype], dims=dims or region.dims)
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (("location", self.data_file), ("offset", region.offset), ("length", region.nbytes)):
                tensor.external_data.add(key=key, value=str(value))
            self.weights[name] = tensor
        return name

    def region(self, key: str) -> Region:
        return self.layout.regions[key]

    def linear(self, name: str, x: str, key: str, encoding: Encoding, bias: str = "") -> str:
        """x times the weight of region `key` ([out, in]), plus a bias region where given."""
        region = self.region(key)
        if encoding.quantized:
            scales = self.region(key + ".scales")
            rows, groups = scales.dims
            inputs = [x, self.weight(region), self.weight(scales)]
            if bias:
                inputs += ["", "", self.weight(self.region(bias))]
            # accuracy_level 4 rounds activations to 8 bits; without it 8-bit weights run hundreds of times slower.
            return self.contrib(
                "MatMulNBits", name, inputs, K=groups * encoding.group, N=rows,
                bits=encoding.bits, block_size=encoding.group, accuracy_level=4,
            )  # fmt: skip
        out = self.contrib("FusedMatMul", f"{name}.product" if bias else name, [x, self.float32(region)], transB=1)
        return self.node("Add", name, [out, self.weight(self.region(bias))]) if bias else out

    def float32(self, region: Region) -> str:
        """A float weight as float32; onnxruntime folds the cast of a float16 one when it loads the model."""
        if region.dtype == "float32":
            return self.weight(region)
        name = region.name + ".float32"
        if not any(n.name == name for n in self.nodes):
            self.node("Cast", name, [self.weight(region)], to=TensorProto.FLOAT)
        return name

    def embed(self) -> str:
        """Token ids [B, S] to hidden states [B, S, D]."""
        region, encoding = self.region("embed.weight"), self.encodings["embed.weight"]
        if not encoding.quantized:
            if region.dtype == "float32":
                return self.node("Gather", "embed", [self.weight(region), "input_ids"], axis=0)
            rows = self.node("Gather", "embed.rows", [self.weight(region), "input_ids"], axis=0)
            return self.node("Cast", "embed", [rows], to=TensorProto.FLOAT)
        vocab, groups, blob = region.dims
        # A second initializer on the same bytes: the gather wants two dimensions where the head's product wants three.
        data = self.weight(region, (vocab, groups * blob), "embed.weight.rows")
        return self.contrib(
            "GatherBlockQuantized", "embed", [data, "input_ids", self.weight(self.region("embed.weight.scales"))],
            bits=encoding.bits, block_size=encoding.group, gather_axis=0, quantize_axis=1,
        )  # fmt: skip

    def lengths(self) -> None:
        """`lengths.last` [B] int32, past and new tokens less one, and `lengths.total`, the same of the longest."""
        counts = self.node("ReduceSum", "lengths.counts", ["attention_mask", self.constant("axis_1", [1])], keepdims=0)
        last = self.node("Sub", "lengths.last64", [counts, self.constant("one", 1)])
        self.node("Cast", "lengths.last", [last], to=TensorProto.INT32)
        shape = self.node("Shape", "lengths.mask", ["attention_mask"])
        self.node("Gather", "lengths.total64", [shape, self.constant("one", 1)], axis=0)
        self.node("Cast", "lengths.total", ["lengths.total64"], to=TensorProto.INT32)

    def last_index(self) -> None:
        """`last.index` [B, 1]: the row of the new tokens that holds each sequence's last one.

        Prompts of a batch are padded on the right, as GroupQueryAttention demands; while decoding, S is 1 and the
        index is 0 for all.
        """
        shape = self.node("Shape", "last.shape", ["input_ids"])
        new = self.node("Gather", "last.new", [shape, self.constant("one", 1)], axis=0)
        past = self.node("Sub", "last.past", ["lengths.total64", new])
        index = self.node("Sub", "last.offset", ["lengths.last64", past])
        top = self.node("Sub", "last.top", [new, self.constant("one", 1)])
        bounded = self.node("Clip", "last.bounded", [index, self.constant("zero", 0), top])
        self.node("Unsqueeze", "last.index", [bounded, self.constant("axis_1", [1])])

    def last_only(self, name: str, x: str) -> str:
        """[B, S, D] to [B, 1, D]: the last token of each sequence."""
        row = self.node("GatherND", f"{name}.row", [x, "last.index"], batch_dims=1)
        return self.node("Unsqueeze", name, [row, self.constant("axis_1", [1])])

    def attention(self, i: int, x: str, d: Decoder) -> str:
        """Hidden states [B, S, D] to attention's heads [B, S, heads * head_dim], before the output projection."""
        p = f"layers.{i}.attn."
        encoding = self.encodings[p + "q.weight"]
        qkv = self.linear(p + "qkv", x, p + "qkv.weight", encoding, p + "qkv.bias" if d.qkv_bias else "")
        q, kv = d.heads * d.head_dim, d.kv_heads * d.head_dim
        inputs = [qkv, "", ""]
        if d.qk_norm:
            sizes = self.constant("qkv_sizes", [q, kv, kv])
            self.node("Split", p + "split", [qkv, sizes], [p + "q", p + "k", p + "v"], axis=-1)
            inputs = [self._head_norm(p + "q", d), self._head_norm(p + "k", d), p + "v"]
        past = [f"past_key_values.{i}.key", f"past_key_values.{i}.value"]
        rope = [self.weight(self.layout.cos), self.weight(self.layout.sin)]
        return self.contrib(
            "GroupQueryAttention", p + "heads", [*inputs, *past, "lengths.last", "lengths.total", *rope],
            [p + "heads", f"present.{i}.key", f"present.{i}.value"],
            num_heads=d.heads, kv_num_heads=d.kv_heads, do_rotary=1, rotary_interleaved=0, scale=d.head_dim**-0.5,
        )  # fmt: skip

    def _head_norm(self, x: str, d: Decoder) -> str:
        """RMS norm of each head of [B, S, n * head_dim], before the rotation."""
        split = self.node("Reshape", x + ".split", [x, self.constant("by_head", [0, 0, -1, d.head_dim])])
        gamma = self.weight(self.region(x + "_norm.weight"))
        normed = self.node(
            "SimplifiedLayerNormalization", x + ".normed", [split, gamma], axis=-1, epsilon=d.norm_eps, stash_type=1
        )
        return self.node("Reshape", x + ".rotatable", [normed, self.constant("flat", [0, 0, -1])])

    def feed_forward(self, i: int, x: str) -> str:
        p = f"layers.{i}.mlp."
        gate = self.linear(p + "gate", x, p + "gate.weight", self.encodings[p + "gate.weight"])
        up = self.linear(p + "up", x, p + "up.weight", self.encodings[p + "up.weight"])
        active = self.contrib("QuickGelu", p + "silu", [gate], alpha=1.0)  # x * sigmoid(alpha x) is SiLU at alpha 1
        product = self.node("Mul", p + "product", [active, up])
        return self.linear(p + "down", product, p + "down.weight", self.encodings[p + "down.weight"])

    def add_and_norm(self, name: str, residual: str, x: str, gamma: str, eps: float) -> tuple[str, str]:
        """(normed sum, sum) of the residual stream and a block's output."""
        inputs = [residual, x, self.weight(self.region(gamma))]
        outputs = [name, "", "", name + ".residual"]
        self.contrib("SkipSimplifiedLayerNormalization", name, inputs, outputs, epsilon=eps)
        return name, name + ".residual"


def make_model(plan: Plan, layout: Layout, data_file: str) -> ModelProto:
    """The model of a plan, its weights external in `data_file` at the layout's offsets."""
    g = _Graph(plan, layout, data_file)
    logits = _wire(g, plan)
    d = plan.decoder
    outputs = [
        helper.make_tensor_value_info(logits, TensorProto.FLOAT, ["batch_size", "logits_length", d.vocab_size]),
        *_cache(d, "present.{}.{}", "total_sequence_length"),
    ]
    initializers = [*g.constants.values(), *g.weights.values()]
    graph = helper.make_graph(g.nodes, "decoder", _inputs(d), outputs, initializers)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(CONTRIB, 1)]
    return helper.make_model(
        graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="edgeship", producer_version=__version__
    )


def _wire(g: _Graph, plan: Plan) -> str:
    d = plan.decoder
    g.lengths()
    if plan.recipe.logits == "last":
        g.last_index()
    residual = g.embed()
    gamma = g.weight(g.region("layers.0.attn_norm.weight"))
    x = g.node(
        "SimplifiedLayerNormalization",
        "layers.0.attn_norm",
        [residual, gamma],
        axis=-1,
        epsilon=d.norm_eps,
        stash_type=1,
    )
    for i in range(d.layers):
        heads = g.attention(i, x, d)
        if i == d.layers - 1 and plan.recipe.logits == "last":
            # Nothing after the last attention mixes positions: the rest runs for the last token only.
            heads, residual = g.last_only("last.heads", heads), g.last_only("last.residual", residual)
        o = f"layers.{i}.attn.o"
        x = g.linear(o, heads, o + ".weight", g.encodings[o + ".weight"], o + ".bias" if d.output_bias else "")
        x, residual = g.add_and_norm(f"layers.{i}.mlp_norm", residual, x, f"layers.{i}.mlp_norm.weight", d.norm_eps)
        x = g.feed_forward(i, x)
        following = "norm" if i == d.layers - 1 else f"layers.{i + 1}.attn_norm"
        x, residual = g.add_and_norm(following, residual, x, following + ".weight", d.norm_eps)
    head = "embed.weight" if plan.shared_head else "head.weight"
    return g.linear("logits", x, head, g.encodings[head])


def _inputs(d: Decoder) -> list[Any]:
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch_size", "sequence_length"])
    mask = helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["batch_size", "total_sequence_length"])
    return [ids, mask, *_cache(d, "past_key_values.{}.{}", "past_sequence_length")]


def _cache(d: Decoder, names: str, length: str) -> list[Any]:
    dims = ["batch_size", d.kv_heads, length, d.head_dim]
    return [
        helper.make_tensor_value_info(names.format(i, kind), TensorProto.FLOAT, dims)
        for i in range(d.layers)
        for kind in ("key", "value")
    ]


def operators(model: ModelProto) -> list[str]:
    """The distinct operators of a model, `domain.Name`, sorted: what a runtime must have."""
    nodes: Iterable[NodeProto] = model.graph.node
    return sorted({f"{n.domain or 'ai.onnx'}.{n.op_type}" for n in nodes})
