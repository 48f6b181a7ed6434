"""Encoder with decoder through Optimum: exported and quantized in its environment, compared with the float model."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from edgeship.checkpoint.files import TOKENIZER
from edgeship.checkpoint.strict_json import show
from edgeship.errors import CheckpointError
from edgeship.exporter import Optimum
from edgeship.exporters import environment as environments
from edgeship.exporters.agreement import least_cosine, read_answers, too_far
from edgeship.exporters.base import Job, Made, described, manifest, ship, weight_bytes, whole, write_card
from edgeship.exporters.pooling import sequence_limit
from edgeship.exporters.texts import TEXTS
from edgeship.tokenizer import GENERATION, TOKENIZER_CONFIG, open_tokenizer, read_optional
from edgeship_runtime.encoder import cosine
from edgeship_runtime.facts import ModelFacts, SamplingDefaults, WeightFacts
from edgeship_runtime.manifest import write_manifest
from edgeship_runtime.seq2seq import BEST, DECODER, ENCODER, GOLDEN, centered

POSITIONS = 512
"""Tokens read of a text where relative positions set no limit: what T5 was trained with."""
ANSWER = 16  # tokens of an answer that are compared
SIDE_FILES = ["config.json", GENERATION, TOKENIZER, TOKENIZER_CONFIG, "special_tokens_map.json"]
EXAMPLE = """\
pip install 'optimum-onnx[onnxruntime]'
python -c "from optimum.onnxruntime import ORTModelForSeq2SeqLM as M; from transformers import AutoTokenizer as T
t, m = T.from_pretrained('.'), M.from_pretrained('.', use_cache=False)
print(t.decode(m.generate(**t('A text.', return_tensors='pt'))[0], skip_special_tokens=True))\""""


@dataclass(frozen=True)
class _Pair:
    facts: ModelFacts
    tokenizer: Tokenizer  # cuts texts as the runtime does
    start: int  # the token that every answer begins with


def write(job: Job, options: Optimum) -> Made:
    """Export, quantize, compare and seal. Raises FidelityError where it is too far from the float model."""
    pair = _read(job, options)
    asked = [pair.tokenizer.encode(text).ids for text in TEXTS]
    request = {
        "checkpoint": str(job.source.path.resolve()),
        "out": str(job.directory.resolve()),
        "answers": str(job.scratch),
        "graphs": [ENCODER, DECODER],
        "quantization": options.quantization,
        "per_channel": options.per_channel,
        "cases": asked,
        "start": pair.start,
        "stop": list(pair.facts.eos_token_ids),
        "length": ANSWER,
        "threads": job.threads,
    }
    answer = environments.run(job.environment, "rewriter", request, job.progress)
    close = _compare(job, asked, answer)
    files = ship(job, SIDE_FILES)
    size, count = weight_bytes(files), int(answer["parameters"])
    kind = "float32" if options.quantization == "none" else "int8"
    weights = WeightFacts(round(min(64.0, 8 * size / count), 4), {"body": kind, "embeddings": kind})
    made = manifest(job, pair.facts, SamplingDefaults(), files, weights, graphs=(ENCODER, DECODER))
    write_card(job, pair.facts.type, options.task, count, size, close, EXAMPLE)
    made = replace(made, files=described(job.directory))
    write_manifest(job.directory, made)
    return Made(round(8 * size / count, 3), close)


def _read(job: Job, options: Optimum) -> _Pair:
    """Everything of the checkpoint but its weights, checked before the long work."""
    config, path = job.source.config, job.source.path
    if not config.get("is_encoder_decoder"):
        raise CheckpointError(
            f"{path}: expected an encoder and a decoder, found one of the two ({str(config.get('model_type'))[:40]}).",
            hint="set optimum.task to what the model is for; a decoder is exported with exporter: native",
        )
    vocab, hidden = whole(config, "vocab_size"), whole(config, "d_model", "hidden_size")
    layers, heads = (
        whole(config, "num_decoder_layers", "decoder_layers", "num_layers"),
        whole(config, "num_heads", "decoder_attention_heads"),
    )
    start, ends, pad = _special(path, config, vocab)
    said = config.get("max_position_embeddings", config.get("n_positions", POSITIONS))
    tokenizer = open_tokenizer(path / TOKENIZER, vocab)
    length = sequence_limit(path, tokenizer, options, said if isinstance(said, int) and said >= 1 else POSITIONS)
    tokenizer.enable_truncation(length)
    facts = ModelFacts(
        type=str(config.get("model_type", ""))[:100],
        vocab_size=vocab,
        layers=layers,
        kv_heads=heads,
        head_dim=max(1, hidden // heads),
        hidden_size=hidden,
        context_length=length,
        default_context=length,
        bos_token_id=None,
        eos_token_ids=ends,
        pad_token_id=pad,
        logits="all",
        task=options.task,
    )
    return _Pair(facts, tokenizer, start)


def _special(path: Path, config: Mapping[str, Any], vocab: int) -> tuple[int, tuple[int, ...], int]:
    """The token that begins an answer, those that end it, and padding, found where transformers looks to generate.

    generation_config.json goes before config.json. Raises CheckpointError at an id that is no token, and at none.
    """
    generation = read_optional(path / GENERATION)

    def ids(name: str, *others: str) -> tuple[int, ...]:
        said = (values.get(key) for key in (name, *others) for values in (generation, config))
        value = next((each for each in said if each is not None), None)
        found = value if isinstance(value, list) and value else [value]
        if any(isinstance(each, bool) or not isinstance(each, int) or not 0 <= each < vocab for each in found):
            raise CheckpointError(
                f"{path}: {name}: expected a token id below {vocab} in {GENERATION} or config.json, found "
                f"{'none' if value is None else show(str(value), 40)}.",
                hint=f"take {name} from the model's documentation into {GENERATION}"
                if value is None
                else "restore the file as it was published",
            )
        return tuple(found)

    ends = ids("eos_token_id")
    return ids("decoder_start_token_id", "bos_token_id")[0], ends, ids("pad_token_id", "eos_token_id")[0]


def _compare(job: Job, asked: list[list[int]], answer: dict[str, Any]) -> str:
    """Write the float model's logits as golden values; how close the artifact's are, in words."""
    floats, found = (read_answers(job.scratch / name) for name in ("float.npz", "made.npz"))
    cases, cosines, equal, positions = [], [], 0, 0
    for place, (ours, theirs) in enumerate(zip(floats, found, strict=True)):
        best = np.argsort(-ours, axis=-1, kind="stable")[:, :BEST]
        values = centered(ours, best)
        cosines.append(cosine(values, centered(theirs, best)))
        equal, positions = equal + int((theirs.argmax(axis=-1) == best[:, 0]).sum()), positions + len(ours)
        cases.append(
            {
                "text": TEXTS[place],
                "token_ids": asked[place],
                "answer_ids": answer["answers"][place],
                "top_ids": best.ravel().tolist(),
                "values": base64.b64encode(values.astype("<f2").tobytes()).decode(),
            }
        )
    worst, mean = min(cosines), sum(cosines) / len(cosines)
    if worst < least_cosine(job.recipe):
        text = show(TEXTS[cosines.index(worst)])
        raise too_far(job.recipe, f"to the float model, found {worst:.4f} at {text} (mean {mean:.4f})")
    golden = {
        "schema": 1,
        "made_with": f"float32, {answer['made_with']}",
        "least_cosine": least_cosine(job.recipe),
        "cases": cases,
    }
    (job.directory / GOLDEN).parent.mkdir(exist_ok=True)
    (job.directory / GOLDEN).write_text(json.dumps(golden, ensure_ascii=False) + "\n", encoding="utf-8")
    tokens = f"{equal} of {positions} tokens equal"
    return f"logits: cosine similarity to the float model {mean:.4f}, at least {worst:.4f}; {tokens}"
