"""A decoder through Optimum as its users do it: exported with its KV cache, then int8 by onnxruntime.

Runs in the environment of `edgeship install-exporter optimum`: optimum_decoder.py CHECKPOINT OUT
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from onnxruntime import quantization
from optimum.exporters.onnx import main_export


def main(checkpoint: str, out: Path) -> None:
    """Write OUT/model.onnx."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out) as scratch:
        main_export(checkpoint, scratch, task="text-generation-with-past", do_validation=False)
        quantization.quantize_dynamic(
            Path(scratch) / "model.onnx",
            out / "model.onnx",
            per_channel=True,
            weight_type=quantization.QuantType.QInt8,
            use_external_data_format=sum(f.stat().st_size for f in Path(scratch).glob("model.onnx*")) > 1 << 30,
        )


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
