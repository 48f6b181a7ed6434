"""Models that embed or classify texts: pooling by sentence-transformers' module files, labels by config.json."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn, cast

import numpy as np
from numpy.typing import NDArray

from edgeship_runtime.answer import Label
from edgeship_runtime.engines.checks import check_context, check_ids, check_version, choose_threads
from edgeship_runtime.engines.ort import import_onnxruntime, open_session, translated
from edgeship_runtime.errors import ArtifactError, EngineError, UsageError
from edgeship_runtime.facts import EMBED, LABEL_TOKENS, REWRITE
from edgeship_runtime.manifest import Manifest, artifact_file
from edgeship_runtime.model import Model
from edgeship_runtime.strict import Fields, read_json, show
from edgeship_runtime.tokens import Tokenizer, read_tokenizer

if TYPE_CHECKING:
    from edgeship_runtime.verify import Agreement, Count

MODULES = "modules.json"
CONFIG = "config.json"
GOLDEN = "acceptance/encoder.json"

BATCH = 32
"""Texts run together."""

FLOOR = 0.02
"""Of the size of a classifier's logits: differences that hardly count where it answers all texts alike."""

POOLINGS = {"mean": "mean_tokens", "cls": "cls_token", "lasttoken": "lasttoken"}
"""Ways of making the vectors of tokens one, and what sentence-transformers calls them."""

_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
_MAX_BYTES = 1 << 24

Pair = tuple[NDArray[np.float32], NDArray[np.float32]]
"""What the float model answers to a text, and what the artifact does."""


@dataclass(frozen=True)
class Pooling:
    """How the vectors of tokens become one: their mean, the first or the last, of length 1 if `normalize`."""

    kind: str  # of `POOLINGS`
    normalize: bool

    def __call__(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """The vector [size] of rows [tokens, size]."""
        vector: NDArray[np.float32] = rows.mean(axis=0) if self.kind == "mean" else rows[-(self.kind == "lasttoken")]
        return np.asarray(vector / max(float(np.linalg.norm(vector)), 1e-12)) if self.normalize else vector


@dataclass(frozen=True)
class Scores:
    """Names of the labels, and what makes logits their scores: "softmax", "sigmoid", "none" (regression)."""

    names: tuple[str, ...]
    function: str

    def __call__(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Scores of logits [..., labels]."""
        if logits.shape[-1] != len(self.names):
            raise EngineError(f"the graph knows {logits.shape[-1]} labels, {CONFIG} {len(self.names)}")
        if self.function == "none":
            return logits
        apart = self.function == "sigmoid"
        high = np.zeros(1, np.float32) if apart else logits.max(axis=-1, keepdims=True)
        powers = np.exp(np.clip(logits - high, -80, 80))
        return np.asarray(powers / (powers + 1 if apart else powers.sum(axis=-1, keepdims=True)))

    def similarity(self, pairs: Sequence[Pair]) -> float:
        """How alike the logits of all texts are, the float model's first: their cosine if they are equally long.

        One text alone tells nothing: a single number always points where another does, and two that share a softmax
        are one number. So all are one vector, and taken from the float model's mean of each label, where an answer that
        never changes has nothing in common with its answers.
        """
        if any(a.shape != b.shape for a, b in pairs):
            return 0.0
        wanted, found = (
            np.concatenate(side).astype(np.float64).reshape(-1, len(self.names)) for side in zip(*pairs, strict=True)
        )
        with np.errstate(all="ignore"):
            if self.function == "softmax":  # what all labels of a text share changes no score
                wanted, found = (each - each.mean(axis=1, keepdims=True) for each in (wanted, found))
            middle, floor = wanted.mean(axis=0), 2 * np.square(FLOOR * wanted).sum()
            size = float(np.square(wanted - middle).sum() + np.square(found - middle).sum() + floor)
            return float(1 - np.square(wanted - found).sum() / size) if size > 0 and np.isfinite(size) else 0.0


def read_reading(directory: Path, manifest: Manifest) -> Pooling | Scores:
    """How the graph's output is to be read; raises ArtifactError for files that do not say."""
    if manifest.model.task == EMBED:
        return _pooling(directory, manifest)
    return read_scores(artifact_file(directory, manifest, CONFIG), manifest.model.task)


def read_scores(path: Path, task: str) -> Scores:
    """What transformers' pipeline makes of a classifier's logits, by its config.json; raises ArtifactError."""
    config = Fields(read_json(path, _MAX_BYTES), str(path), "", (), ("id2label", "num_labels"), open=True)
    if "id2label" in config:
        labels = config.text_mapping("id2label", 1 << 16)
    else:  # as transformers names them, which leaves out two
        count = config.integer("num_labels", 1, 1 << 16) if "num_labels" in config else 2
        labels = {str(i): f"LABEL_{i}" for i in range(count)}
    if set(labels) != {str(i) for i in range(len(labels))} or not labels:
        raise config.error("id2label", "expected the labels 0, 1 and so on")
    function, problem = "softmax", config.value("problem_type")
    if task != LABEL_TOKENS and problem == "regression":
        function = "none"
    elif task != LABEL_TOKENS and (problem == "multi_label_classification" or len(labels) == 1):
        function = "sigmoid"
    return Scores(tuple(labels[str(i)] for i in range(len(labels))), function)


def _pooling(directory: Path, manifest: Manifest) -> Pooling:
    path = artifact_file(directory, manifest, MODULES)
    top = Fields({"modules": read_json(path, _MAX_BYTES)}, str(path), "", ("modules",))
    kinds, asked = [], list[str]()
    for i, item in enumerate(top.items("modules", 16)):
        module = top.inner(item, f"modules[{i}]", ("path", "type"), ("idx", "name"))
        kinds.append(module.text("type").rpartition(".")[2])
        if kinds[-1] == "Pooling":
            file = artifact_file(directory, manifest, f"{module.text('path')}/{CONFIG}")
            said = Fields(read_json(file, _MAX_BYTES), str(file), "", (), open=True)
            asked = [kind for kind, name in POOLINGS.items() if said.value(f"pooling_mode_{name}") is True]
            if len(asked) != 1:
                raise said.error("", f"expected the pooling of one of {', '.join(POOLINGS.values())}")
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise top.error("modules", f"expected Transformer, Pooling and perhaps Normalize, found {', '.join(kinds)}")
    return Pooling(asked[0], len(kinds) == 3)


class Encoder(Model):
    """A loaded encoder: `embed` or `classify`, what its task is."""

    def __init__(self, engine: EncoderEngine, manifest: Manifest, directory: Path) -> None:
        """Read what lies beside the graph (`load` does all of it)."""
        tokenizer = read_tokenizer(artifact_file(directory, manifest, "tokenizer.json"))
        tokenizer.cut(engine.context)
        super().__init__(engine, tokenizer, manifest, directory=directory)
        self._reading = read_reading(directory, manifest)

    def embed(self, texts: str | Sequence[str], *, batch_size: int | None = None) -> NDArray[np.float32]:
        if not isinstance(self._reading, Pooling):
            raise self._other("embeds no texts")
        vectors = [vector for vector, _ in self._answers(texts, batch_size)]
        return np.array(vectors, np.float32).reshape(len(vectors), self.manifest.model.hidden_size)

    def classify(self, texts: str | Sequence[str], *, batch_size: int | None = None) -> list[list[Label]]:
        if isinstance(self._reading, Pooling):
            raise self._other("classifies no texts")
        names, out = self._reading.names, []
        for scores, tokens in self._answers(texts, batch_size):
            if scores.ndim == 1:
                ranked = np.argsort(-scores, kind="stable")
                out.append([Label(names[i], float(scores[i])) for i in ranked])
                continue
            tokens = zip(scores, tokens.offsets, tokens.special_tokens_mask, strict=True)
            out.append(
                [Label(names[row.argmax()], float(row.max()), *span) for row, span, other in tokens if not other]
            )
        return out

    def _answers(self, texts: str | Sequence[str], batch_size: int | None) -> list[tuple[NDArray[np.float32], Any]]:
        """Vector or scores, and tokens, of every text; texts of like length are run together.

        Not by default where activations are quantized as they come: all that is run together shares a range.
        """
        self._check_open()
        texts = [texts] if isinstance(texts, str) else texts
        if batch_size is None:
            batch_size = 1 if any("DynamicQuantize" in op for op in self.manifest.ops) else BATCH
        if batch_size < 1 or not all(isinstance(text, str) for text in texts):
            raise UsageError("expected texts, and a batch size of 1 or more")
        tokens = [cast(Tokenizer, self.tokenizer).tokens(text) for text in texts]
        for number, each in enumerate(tokens, 1):
            if not each.ids:
                raise no_tokens(number)
        order = sorted(range(len(texts)), key=lambda place: len(tokens[place].ids))
        found: list[Any] = [None] * len(texts)
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            with self._running:
                self._check_open()
                rows = cast(EncoderEngine, self.engine).run([tokens[place].ids for place in batch])
            for place, row in zip(batch, rows, strict=True):
                found[place] = (self._reading(row), tokens[place])
        return found

    def render(self, messages: Any, **given: Any) -> NoReturn:
        raise self._other("generates no text")

    def stream(self, prompt: Any, options: Any = None, **given: Any) -> NoReturn:
        raise self._other("generates no text")

    def _other(self, what: str) -> UsageError:
        return UsageError(f"{self.manifest.name} {what}: it is for {self.manifest.model.task}")


def no_tokens(number: int) -> UsageError:
    """Why a text, counted from 1, has no answer."""
    return UsageError(f"text {number} has no tokens", hint="leave it out")


class EncoderEngine:
    """An encoder on an onnxruntime session; an `engines.Engine` that continues nothing."""

    def __init__(self, ort: ModuleType, session: Any, manifest: Manifest, context: int, threads: int) -> None:
        facts = manifest.model
        self.name, self.threads = f"onnxruntime {ort.__version__}", threads
        self.vocab_size, self.context, self.length = facts.vocab_size, context, 0
        self._session, self._task, self._pad = session, facts.task, facts.pad_token_id or 0
        self._inputs = [each.name for each in session.get_inputs()]
        self._output = session.get_outputs()[0].name
        if "input_ids" not in self._inputs or set(self._inputs) - set(_INPUTS):
            raise ArtifactError(f"the graph takes {show(', '.join(self._inputs))}, expected {', '.join(_INPUTS)}")

    def run(self, texts: Sequence[Sequence[int]]) -> Iterator[NDArray[np.float32]]:
        """The graph's output for each of texts of token ids: [tokens, size], or [labels]."""
        if self._session is None:
            raise EngineError("the engine is closed", hint="load the artifact again")
        width = max(map(len, texts))
        ids = np.full((len(texts), width), self._pad, np.int64)
        mask = np.zeros_like(ids)
        for row, text in enumerate(texts):
            ids[row, : len(text)] = check_ids(text, self.vocab_size)
            mask[row, : len(text)] = 1
        places = np.broadcast_to(np.arange(width), ids.shape)
        given = dict(zip(_INPUTS, (ids, mask, np.zeros_like(ids), places), strict=True))
        try:
            out = self._session.run([self._output], {name: given[name] for name in self._inputs})[0]
        except Exception as error:  # onnxruntime raises its own types, and RuntimeError
            raise translated(error, "onnxruntime could not run the model", EngineError) from None
        by_token = self._task in (EMBED, LABEL_TOKENS)
        if out.ndim != 2 + by_token or out.shape[0] != len(texts) or (by_token and out.shape[1] != width):
            raise EngineError(f"the graph's output has the shape {out.shape}, which is not for {self._task}")
        return (row[: len(text)] if by_token else row for row, text in zip(out.astype(np.float32), texts, strict=True))

    def evaluate(self, tokens: Sequence[int]) -> NoReturn:
        raise EngineError(f"a model for {self._task} continues no tokens")

    def truncate(self, length: int) -> None:
        """Nothing is kept between texts."""

    def close(self) -> None:
        self._session = None


def open_encoder(directory: Path, manifest: Manifest, context: int, threads: int | None) -> Encoder:
    """Load an encoder that reads at most `context` tokens of a text; raises as `engines.ort.open_engine`."""
    if manifest.model.task == REWRITE:
        from edgeship_runtime.seq2seq import refusal

        raise refusal(directory, manifest)
    start = time.perf_counter()
    ort = import_onnxruntime()
    check_version("onnxruntime", ort.__version__, manifest)
    check_context(context, manifest)
    threads = choose_threads(threads, manifest)
    session = open_session(ort, artifact_file(directory, manifest, manifest.model_file), threads)
    made = Encoder(EncoderEngine(ort, session, manifest, context, threads), manifest, directory)
    made.load_s = time.perf_counter() - start
    return made


def check(directory: Path, manifest: Manifest, threads: int | None) -> tuple[Count, Agreement, list[str]]:
    """Compare tokens and answers with those of the float model: `acceptance/encoder.json`; raises ArtifactError.

    Values are vectors or scores, as float16 (schema 1), or a classifier's logits, as float32, which are compared
    together (schema 2).
    """
    from edgeship_runtime.board import kernels
    from edgeship_runtime.verify import Agreement, Count

    path = artifact_file(directory, manifest, GOLDEN)
    top = Fields(read_json(path, _MAX_BYTES), str(path), "", ("schema", "made_with", "least_cosine", "cases"))
    schema, least, failures = top.integer("schema", 1, 2), top.number("least_cosine", 0, 1), []
    with closing(open_encoder(directory, manifest, manifest.model.default_context, threads)) as model:
        reading, together = model._reading, None
        if isinstance(reading, Scores) and schema == 2:
            together, model._reading = reading, replace(reading, function="none")
        elif isinstance(reading, Scores) and (reading.function == "none" or len(reading.names) == 1):
            # With schema 1 a regression's values are scores, too.
            model._reading = replace(reading, function="sigmoid" if len(reading.names) == 1 else "softmax")
        texts, same, pairs = _answered(model, top, "<f4" if together else "<f2")
        name = model.engine.name
    if together and pairs:
        cosines, places = [together.similarity(pairs)] * len(pairs), ["all texts together"]
    else:
        cosines, places = [cosine(*pair) for pair in pairs], [show(text) for text in texts]
    for place, found in zip(places, cosines, strict=False):
        if found < least:
            failures.append(f"agreement: {place}: cosine to the float model {found:.4f}, below {least:g}")
    if same < len(cosines):
        failures.append(f"tokens: the ids of {len(cosines) - same} texts differ")
    good, found_least = sum(each >= least for each in cosines), round(min(cosines, default=0.0), 5)
    worst = round(max((float(np.abs(a - b).max()) for a, b in pairs if a.shape == b.shape), default=0.0), 5)
    agreement = Agreement(name, len(cosines), good, 0, len(cosines) - good, worst, 0.0, kernels(name), (), found_least)
    return Count(len(cosines), same), agreement, failures


def _answered(model: Encoder, top: Fields, kind: str) -> tuple[list[str], int, list[Pair]]:
    """The texts, how many of them become the tokens they should, and the float model's values and those found."""
    texts, same, pairs = [], 0, []
    for i, item in enumerate(top.items("cases", 1000)):
        case = top.inner(item, f"cases[{i}]", ("text", "token_ids", "values"))
        texts.append(text := case.prose("text", limit=1 << 20))
        try:
            golden = np.frombuffer(base64.b64decode(case.prose("values", limit=1 << 22)), kind).astype(np.float32)
        except ValueError as error:
            raise case.error("values", f"expected {np.dtype(kind)} in base64 ({error})") from None
        # One text at a time: int8 activations share a range over all that is run together.
        ((found, tokens),) = model._answers(text, 1)
        same += tokens.ids == list(case.integers("token_ids", 0, model.engine.vocab_size - 1, limit=1 << 20))
        pairs.append((golden, found.ravel()))
    return texts, same, pairs


def cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Cosine similarity of two vectors; 0 where they differ in length, and where one is zero or no number."""
    size = float(np.linalg.norm(a)) * float(np.linalg.norm(b)) if a.shape == b.shape else 0.0
    return float(a @ b) / size if size > 0 and np.isfinite(size) else 0.0
