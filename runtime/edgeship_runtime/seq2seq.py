"""Models that rewrite a text (encoder and decoder): verified here, and run by other programs.

`acceptance/seq2seq.json` holds what the float model continued some texts with, and at each of those places its logits,
less their mean over the vocabulary, of the 16 likeliest tokens, as float16 in base64.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgeship_runtime.encoder import cosine
from edgeship_runtime.engines.checks import check_ids, check_version, choose_threads
from edgeship_runtime.engines.ort import import_onnxruntime, open_session, translated
from edgeship_runtime.errors import EngineError, UsageError
from edgeship_runtime.manifest import Manifest, artifact_file
from edgeship_runtime.strict import Fields, read_json, show
from edgeship_runtime.tokens import read_tokenizer

if TYPE_CHECKING:
    from edgeship_runtime.verify import Agreement, Count

ENCODER, DECODER = "encoder_model.onnx", "decoder_model.onnx"
GOLDEN = "acceptance/seq2seq.json"
BEST = 16
_MAX_BYTES = 1 << 24


def refusal(directory: Path, manifest: Manifest) -> UsageError:
    """Why such a model is not loaded, and what runs it."""
    return UsageError(
        f"{manifest.name} is for {manifest.model.task}: this runtime verifies it and does not run it",
        hint=f"pip install optimum-onnx[onnxruntime], then optimum.onnxruntime.ORTModelForSeq2SeqLM.from_pretrained("
        f'"{directory}", use_cache=False)',
    )


class Graphs:
    """Encoder and decoder on onnxruntime sessions."""

    def __init__(self, directory: Path, manifest: Manifest, threads: int | None) -> None:
        ort = import_onnxruntime()
        check_version("onnxruntime", ort.__version__, manifest)
        self.name, self._vocabulary = f"onnxruntime {ort.__version__}", manifest.model.vocab_size
        self._encoder, self._decoder = (
            open_session(ort, artifact_file(directory, manifest, name), choose_threads(threads, manifest))
            for name in (ENCODER, DECODER)
        )

    def logits(self, text: Sequence[int], answer: Sequence[int]) -> NDArray[np.float32]:
        """The decoder's logits `[tokens, vocabulary]` for each token of an answer to a text; raises EngineError."""
        ids, given = (np.array([check_ids(each, self._vocabulary)], np.int64) for each in (text, answer))
        mask = np.ones_like(ids)
        try:
            states = self._encoder.run(None, _feeds(self._encoder, input_ids=ids, attention_mask=mask))[0]
            said = {"input_ids": given, "encoder_hidden_states": states, "encoder_attention_mask": mask}
            out = self._decoder.run(["logits"], _feeds(self._decoder, **said))[0]
        except Exception as error:  # onnxruntime raises its own types, and RuntimeError
            raise translated(error, "onnxruntime could not run the model", EngineError) from None
        if out.shape != (1, len(answer), self._vocabulary):
            raise EngineError(f"the decoder's output has the shape {out.shape}")
        return np.asarray(out[0], np.float32)


def _feeds(session: Any, **given: NDArray[Any]) -> dict[str, NDArray[Any]]:
    return {each.name: given[each.name] for each in session.get_inputs()}


def centered(logits: NDArray[np.float32], ids: NDArray[np.int64]) -> NDArray[np.float32]:
    """Logits `[tokens, vocabulary]`, less their mean, of the ids `[tokens, n]`: what two models are compared by."""
    away = logits - logits.mean(axis=-1, keepdims=True)
    return np.take_along_axis(away, ids, axis=-1).ravel()


def check(directory: Path, manifest: Manifest, threads: int | None) -> tuple[Count, Agreement, list[str]]:
    """Compare tokens and logits with those of the float model; raises ArtifactError, EngineError."""
    from edgeship_runtime.board import kernels
    from edgeship_runtime.verify import Agreement, Count

    path = artifact_file(directory, manifest, GOLDEN)
    top = Fields(read_json(path, _MAX_BYTES), str(path), "", ("schema", "made_with", "least_cosine", "cases"))
    top.integer("schema", 1, 1)
    least, most = top.number("least_cosine", 0, 1), manifest.model.vocab_size - 1
    tokenizer = read_tokenizer(artifact_file(directory, manifest, "tokenizer.json"))
    tokenizer.cut(manifest.model.default_context)
    same, cosines, errors, failures = 0, [], [0.0], []
    graphs = Graphs(directory, manifest, threads)
    for i, item in enumerate(top.items("cases", 1000)):
        case = top.inner(item, f"cases[{i}]", ("text", "token_ids", "answer_ids", "top_ids", "values"))
        text, answer = case.prose("text", limit=1 << 20), case.integers("answer_ids", 0, most, limit=1 << 12)
        ids = np.array(case.integers("top_ids", 0, most, limit=1 << 16), np.int64)
        try:
            golden = np.frombuffer(base64.b64decode(case.prose("values", limit=1 << 22)), "<f2").astype(np.float32)
        except ValueError as error:
            raise case.error("values", f"expected float16 in base64 ({error})") from None
        if not len(answer) or ids.shape != golden.shape or len(ids) % len(answer):
            raise case.error("top_ids", "expected as many as values, and equally many for each token of the answer")
        tokens = list(case.integers("token_ids", 0, most, limit=1 << 20))
        if not tokens:
            raise case.error("token_ids", "expected at least one token")
        same += tokenizer.tokens(text).ids == tokens
        found = centered(graphs.logits(tokens, answer), ids.reshape(len(answer), -1))
        cosines.append(cosine(golden, found))
        errors.append(float(np.abs(golden - found).max()))
        if cosines[-1] < least:
            failures.append(f"agreement: {show(text)}: cosine to the float model {cosines[-1]:.4f}, below {least:g}")
    if same < len(cosines):
        failures.append(f"tokens: the ids of {len(cosines) - same} texts differ")
    good, found_least = sum(each >= least for each in cosines), round(min(cosines, default=0.0), 5)
    counted, worst = (len(cosines), good, 0, len(cosines) - good), round(max(errors), 5)
    agreement = Agreement(graphs.name, *counted, worst, 0.0, kernels(graphs.name), (), found_least)
    return Count(len(cosines), same), agreement, failures
