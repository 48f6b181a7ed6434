"""Packed codes read back by onnxruntime's own operators give the grid's values."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from edgeship.formats.onnx.packing import pack, unpack
from edgeship.quant.rtn import quantize


def weights(rows: int, columns: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((rows, columns)).astype(np.float32)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group", [32, 64, 128])
def test_unpack_is_the_inverse(bits: int, group: int) -> None:
    q = quantize(weights(6, 256), bits, group)
    blob = group * bits // 8
    back = unpack(pack(q).reshape(6, -1, blob), q.scales.reshape(6, -1), bits)
    np.testing.assert_array_equal(back.dequantize(), q.dequantize())


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group", [32, 64, 128])
def test_gather_block_quantized_reads_the_grid(bits: int, group: int) -> None:
    q = quantize(weights(6, 256), bits, group)
    node = helper.make_node(
        "GatherBlockQuantized", ["data", "ids", "scales"], ["y"], domain="com.microsoft",
        bits=bits, block_size=group, gather_axis=0, quantize_axis=1,
    )  # fmt: skip
    feeds = {"data": pack(q).reshape(6, -1), "scales": q.scales.reshape(6, -1)}
    got = run(node, feeds, {"ids": np.array([[5, 0, 3]])})
    np.testing.assert_array_equal(got[0], q.dequantize()[[5, 0, 3]])


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group", [32, 64, 128])
def test_matmul_nbits_reads_the_grid(bits: int, group: int) -> None:
    q = quantize(weights(6, 256), bits, group)
    node = helper.make_node(
        "MatMulNBits", ["x", "data", "scales"], ["y"], domain="com.microsoft",
        K=256, N=6, bits=bits, block_size=group, accuracy_level=0,
    )  # fmt: skip
    feeds = {"data": pack(q).reshape(6, 256 // group, -1), "scales": q.scales.reshape(6, -1)}
    got = run(node, feeds, {"x": np.eye(256, dtype=np.float32)})
    np.testing.assert_array_equal(got.T, q.dequantize())


def run(node, constants: dict[str, np.ndarray], inputs: dict[str, np.ndarray]) -> np.ndarray:
    """One node's output, its constants as initializers."""
    ins = [
        helper.make_tensor_value_info(k, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape) for k, v in inputs.items()
    ]
    initializers = [
        helper.make_tensor(
            k, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape, np.ascontiguousarray(v).tobytes(), raw=True
        )
        for k, v in constants.items()
    ]
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "one", ins, [out], initializers)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, inputs)[0]
