"""Exports an encoder with Optimum and quantizes it with onnxruntime, in the environment of `optimum`."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
import transformers
from numpy.typing import NDArray
from onnxruntime import quantization
from optimum.exporters.onnx import main_export
from run import Note, RefusedError

CLASSES = {
    "feature-extraction": "AutoModel",
    "text-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
}
INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
UNUSED = "pooler."  # a layer that training adds, of which an embedding makes no use

Ids = Sequence[int]


def work(request: dict[str, Any], note: Note) -> dict[str, Any]:
    """Write `model.onnx` into `out`, and what the float model and the graph answer to `cases` into `answers`.

    `cases` are token ids, one list per text; the answers are `float.npz` and `made.npz`, arrays in that order.
    """
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    checkpoint, out, answers = (Path(request[key]) for key in ("checkpoint", "out", "answers"))
    torch.set_num_threads(request["threads"])
    note("optimum: the float model's own answers")
    model, parameters = _load(checkpoint, request["task"])
    cases = request["cases"]
    np.savez(answers / "float.npz", *_float_answers(model, cases))
    del model
    note("optimum: exporting to ONNX")
    _export(checkpoint, answers / "export", request["task"])
    note(f"onnxruntime: quantization {request['quantization']}")
    quantize(answers / "export" / "model.onnx", out / "model.onnx", request)
    np.savez(answers / "made.npz", *_graph_answers(out / "model.onnx", cases, request["threads"]))
    made_with = ", ".join(f"{name} {version(name)}" for name in ("optimum-onnx", "torch", "transformers"))
    return {"parameters": parameters, "made_with": made_with}


def _load(checkpoint: Path, task: str) -> tuple[Any, int]:
    """The float model and its number of weights; refused where the checkpoint lacks some, which would be random."""
    model, found = load(getattr(transformers, CLASSES[task]), checkpoint)
    missing = [name for name in found["missing_keys"] if UNUSED not in name or task != "feature-extraction"]
    if missing or found["mismatched_keys"]:
        wrong = described(missing, found["mismatched_keys"])
        raise RefusedError(
            f"expected the weights of a model for {task}, found none for {wrong}.",
            "give the checkpoint that was trained for the task, or set optimum.task to what it was trained for",
        )
    return model.eval(), sum(p.numel() for name, p in model.named_parameters() if UNUSED not in name)


def described(missing: Sequence[str], mismatched: Sequence[tuple[str, Any, Any]]) -> str:
    """The first few weights that are not there, or not as config.json has them."""
    others = [f"{name} {list(wanted)} (there is one of {list(there)})" for name, there, wanted in mismatched]
    return ", ".join([*missing, *others][:3])


def load(kind: Any, checkpoint: Path) -> tuple[Any, dict[str, Any]]:
    """A model of transformers, and what was missing or of another shape; refused where it cannot be made at all."""
    try:
        model, found = kind.from_pretrained(
            checkpoint, output_loading_info=True, dtype=torch.float32, ignore_mismatched_sizes=True
        )
    except MemoryError:
        raise
    except Exception as error:  # as many kinds as there are models: each reads config.json with code of its own
        text = " ".join(str(error).split())[:300]
        raise RefusedError(
            f"transformers {version('transformers')} does not load the checkpoint: {type(error).__name__}: {text}",
            "check its config.json, and whether this version knows the model",
        ) from None
    return model, found


def _float_answers(model: Any, cases: Sequence[Ids]) -> Iterator[NDArray[np.float32]]:
    with torch.no_grad():
        for ids in cases:
            given = torch.tensor([ids])
            yield model(input_ids=given, attention_mask=torch.ones_like(given))[0][0].numpy()


def _graph_answers(path: Path, cases: Sequence[Ids], threads: int) -> Iterator[NDArray[np.float32]]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    for ids in cases:
        yield session.run(None, _feeds(session.get_inputs(), ids))[0][0]


def _feeds(inputs: Any, ids: Ids) -> dict[str, NDArray[np.int64]]:
    given = np.array([ids], np.int64)
    values = (given, np.ones_like(given), np.zeros_like(given), np.arange(given.size)[None])
    known = dict(zip(INPUTS, values, strict=True))
    return {each.name: known[each.name] for each in inputs}


def _export(checkpoint: Path, out: Path, task: str) -> None:
    try:
        # As plain transformers: the wrapper for sentence-transformers would put the pooling into the graph.
        main_export(str(checkpoint), out, task=task, library_name="transformers", do_validation=False)
    except (ValueError, KeyError, NotImplementedError) as error:
        text = " ".join(str(error).split())[:300]
        raise RefusedError(f"Optimum does not export this model for {task}: {text}") from None
    graph = onnx.load(out / "model.onnx", load_external_data=False).graph
    inputs = [each.name for each in graph.input]
    if "input_ids" not in inputs or set(inputs) - set(INPUTS):
        raise RefusedError(f"expected a graph of token ids and a mask, found the inputs {', '.join(inputs)}.")


def quantize(source: Path, target: Path, request: dict[str, Any]) -> None:
    """Write the graph with int8 weights as `request` has it, or as it is."""
    how = {"per_channel": request["per_channel"], "weight_type": quantization.QuantType.QInt8}
    if request["quantization"] == "none":
        os.replace(source, target)
        for data in source.parent.glob(f"{source.name}*data"):
            raise RefusedError(f"expected a graph of less than 2 GB, found its weights in {data.name}.")
    elif request["quantization"] == "dynamic":
        quantization.quantize_dynamic(source, target, **how)
    else:
        quantization.quantize_static(
            source,
            target,
            _Texts(source, request["calibration"]),
            quant_format=quantization.QuantFormat.QOperator,
            activation_type=quantization.QuantType.QUInt8,
            op_types_to_quantize=["MatMul", "Gather"],
            **how,
        )


class _Texts(quantization.CalibrationDataReader):  # type: ignore[misc]
    """Feeds texts of token ids to onnxruntime's calibration, one at a time."""

    def __init__(self, model: Path, texts: Sequence[Ids]) -> None:
        self._inputs = onnx.load(model, load_external_data=False).graph.input
        self._texts = iter(texts)

    def get_next(self) -> dict[str, NDArray[np.int64]] | None:
        """The next text's inputs, None after the last."""
        ids = next(self._texts, None)
        return None if ids is None else _feeds(self._inputs, ids)
