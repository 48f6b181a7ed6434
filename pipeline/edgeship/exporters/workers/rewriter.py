"""Exports an encoder and its decoder with Optimum and quantizes them, in the environment of `optimum`."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from encoder import described, load, quantize  # type: ignore[import-not-found]
from numpy.typing import NDArray
from optimum.exporters.onnx import main_export
from run import Note, RefusedError
from transformers import AutoModelForSeq2SeqLM

INPUTS = (
    {"input_ids", "attention_mask"},
    {"input_ids", "encoder_attention_mask", "encoder_hidden_states"},
)
"""Of the encoder, and of the decoder."""

Ids = Sequence[int]


def work(request: dict[str, Any], note: Note) -> dict[str, Any]:
    """Write both graphs into `out`, and the logits of float model and graphs for the same answers into `answers`.

    `cases` are token ids, one list per text; the float model's greedy answers come back as `answers`.
    """
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    checkpoint, out, kept = (Path(request[key]) for key in ("checkpoint", "out", "answers"))
    torch.set_num_threads(request["threads"])
    note("optimum: the float model's own answers")
    model, parameters = _load(checkpoint)
    floats, answers = _float_answers(model, request)
    np.savez(kept / "float.npz", *floats)
    del model
    note("optimum: exporting encoder and decoder to ONNX")
    _export(checkpoint, kept / "export", request["graphs"])
    note(f"onnxruntime: quantization {request['quantization']}")
    for name in request["graphs"]:
        quantize(kept / "export" / name, out / name, request)
    np.savez(kept / "made.npz", *_graph_answers(out, request, answers))
    made_with = ", ".join(f"{name} {version(name)}" for name in ("optimum-onnx", "torch", "transformers"))
    return {"parameters": parameters, "answers": answers, "made_with": made_with}


def _load(checkpoint: Path) -> tuple[Any, int]:
    """The float model and its number of weights; refused where the checkpoint lacks some, which would be random."""
    model, found = load(AutoModelForSeq2SeqLM, checkpoint)
    if found["missing_keys"] or found["mismatched_keys"]:
        wrong = described(found["missing_keys"], found["mismatched_keys"])
        raise RefusedError(
            f"expected the weights of an encoder with a decoder, found none for {wrong}.",
            "give the whole checkpoint; set optimum.task to what it was trained for",
        )
    return model.eval(), sum(p.numel() for p in model.parameters())


def _float_answers(model: Any, request: dict[str, Any]) -> tuple[list[NDArray[np.float32]], list[list[int]]]:
    """For each text the logits `[tokens, vocabulary]` behind each token of the greedy answer, and that answer."""
    logits, answers = [], []
    with torch.no_grad():
        for ids in request["cases"]:
            given, answer = torch.tensor([ids]), [int(request["start"])]
            while True:
                out = model(
                    input_ids=given, attention_mask=torch.ones_like(given), decoder_input_ids=torch.tensor([answer])
                )
                token = int(out.logits[0, -1].argmax())
                if len(answer) == request["length"] or token in request["stop"]:
                    break
                answer.append(token)
            logits.append(out.logits[0].numpy())
            answers.append(answer)
    return logits, answers


def _export(checkpoint: Path, out: Path, names: Sequence[str]) -> None:
    try:
        # Without the cache of earlier tokens: one graph each for encoder and decoder, which every program can run.
        main_export(str(checkpoint), out, task="text2text-generation", library_name="transformers", do_validation=False)
    except (ValueError, KeyError, NotImplementedError) as error:
        text = " ".join(str(error).split())[:300]
        raise RefusedError(f"Optimum does not export this model for text2text-generation: {text}") from None
    for name, known in zip(names, INPUTS, strict=True):
        inputs = {each.name for each in onnx.load(out / name, load_external_data=False).graph.input}
        if "input_ids" not in inputs or inputs - known:
            raise RefusedError(f"{name}: expected a graph of {', '.join(sorted(known))}, found {', '.join(inputs)}.")


def _graph_answers(out: Path, request: dict[str, Any], answers: Sequence[Ids]) -> Iterator[NDArray[np.float32]]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = request["threads"]
    encoder, decoder = (
        onnxruntime.InferenceSession(str(out / name), options, providers=["CPUExecutionProvider"])
        for name in request["graphs"]
    )
    for ids, answer in zip(request["cases"], answers, strict=True):
        given = np.array([ids], np.int64)
        mask = np.ones_like(given)
        states = encoder.run(None, _feeds(encoder, input_ids=given, attention_mask=mask))[0]
        said = {"input_ids": np.array([answer], np.int64), "encoder_hidden_states": states}
        yield decoder.run(["logits"], _feeds(decoder, **said, encoder_attention_mask=mask))[0][0]


def _feeds(session: Any, **given: NDArray[Any]) -> dict[str, NDArray[Any]]:
    return {each.name: given[each.name] for each in session.get_inputs()}
