"""Logits of exported graphs against transformers: float32 exactly, int4 and int8 on dequantized weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import onnxruntime as ort
import pytest
import torch
from transformers import AutoModelForCausalLM

import tolerances
from checkpoints import write_checkpoint
from exports import FLOAT32, export

pytestmark = pytest.mark.parity

LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
HEADS = {1: (4, 4), 2: (4, 2), 7: (7, 1)}  # GQA ratio: query heads, key-value heads


class Graph:
    """An exported model run by stock onnxruntime with plain arrays: no code of the runtime."""

    def __init__(self, directory: Path) -> None:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        self.session = ort.InferenceSession(directory / "model.onnx", options, providers=["CPUExecutionProvider"])
        self.caches = [i for i in self.session.get_inputs() if i.name.startswith("past_key_values.")]

    def run(
        self, ids: np.ndarray, mask: np.ndarray, past: dict[str, np.ndarray] | None = None
    ) -> tuple[np.ndarray, Any]:
        """Logits and the new cache; ids [batch, new], mask [batch, past and new]."""
        batch = len(ids)
        if past is None:
            past = {c.name: np.zeros((batch, c.shape[1], 0, c.shape[3]), np.float32) for c in self.caches}
        names = [o.name for o in self.session.get_outputs()]
        out = dict(zip(names, self.session.run(None, {"input_ids": ids, "attention_mask": mask, **past}), strict=True))
        logits = out.pop("logits")
        return logits, {k.replace("present", "past_key_values"): v for k, v in out.items()}


def reference(checkpoint: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, attn_implementation="eager").eval()


def expected(model: Any, ids: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(torch.from_numpy(ids[None])).logits[0].numpy()


def assert_close(got: np.ndarray, want: np.ndarray, relative: float) -> None:
    worst = np.abs(got - want).max() / np.abs(want).max()
    assert worst <= relative, f"largest difference {worst:.2e} of the largest logit, allowed {relative:.0e}"


def prompts(vocab: int, lengths: list[int]) -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    return [rng.integers(0, vocab, n) for n in lengths]


@pytest.mark.parametrize("ratio", [1, 2, 7])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("model_type", ["qwen2", "qwen3", "llama"])
def test_float32_equals_transformers(tmp_path: Path, model_type: str, tied: bool, ratio: int) -> None:
    heads, kv_heads = HEADS[ratio]
    shape = {"heads": heads, "kv_heads": kv_heads, "hidden": 16 * heads, "tied": tied}
    checkpoint = write_checkpoint(tmp_path / "checkpoint", model_type, **shape)
    graph = Graph(export(checkpoint, tmp_path, scheme=FLOAT32, logits="all"))
    check_whole_prompt_and_steps(graph, reference(checkpoint))
    check_padded_batch(graph, reference(checkpoint))


@pytest.mark.parametrize(
    ("model_type", "scaling"),
    [("llama", LLAMA3), ("qwen2", YARN), ("qwen3", YARN)],
    ids=["llama3", "yarn", "yarn-qwen3"],
)
def test_rope_scaling_equals_transformers(tmp_path: Path, model_type: str, scaling: dict[str, Any]) -> None:
    checkpoint = write_checkpoint(
        tmp_path / "checkpoint", model_type, rope_scaling=scaling, max_position_embeddings=128
    )
    graph = Graph(export(checkpoint, tmp_path, scheme=FLOAT32, logits="all"))
    ids = prompts(320, [120])[0]  # well past the 32 positions the scaling stretches
    logits, _ = graph.run(ids[None], np.ones((1, 120), np.int64))
    assert_close(logits[0], expected(reference(checkpoint), ids), tolerances.EXPORTED_LOGITS)


def test_a_recipes_rope_scaling_is_that_of_config_json(tmp_path: Path) -> None:
    plain = write_checkpoint(tmp_path / "plain", "qwen2", max_position_embeddings=32)
    yarn = write_checkpoint(tmp_path / "yarn", "qwen2", rope_scaling=YARN, max_position_embeddings=32)
    scaling = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
    graph = Graph(export(plain, tmp_path, scheme=FLOAT32, logits="all", rope_scaling=scaling))
    ids = prompts(320, [100])[0]
    logits, _ = graph.run(ids[None], np.ones((1, 100), np.int64))
    assert_close(logits[0], expected(reference(yarn), ids), tolerances.EXPORTED_LOGITS)


def test_biases_of_llama_equal_transformers(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", "llama", attention_bias=True)
    check_whole_prompt_and_steps(
        Graph(export(checkpoint, tmp_path, scheme=FLOAT32, logits="all")), reference(checkpoint)
    )


def check_whole_prompt_and_steps(graph: Graph, model: Any) -> None:
    """A prompt at once, and the same in two chunks and then token by token over the cache."""
    ids = prompts(320, [12])[0]
    want = expected(model, ids)
    whole, _ = graph.run(ids[None], np.ones((1, 12), np.int64))
    assert_close(whole[0], want, tolerances.EXPORTED_LOGITS)
    past, rows = None, []
    for a, b in [(0, 5), (5, 9), (9, 10), (10, 11), (11, 12)]:
        logits, past = graph.run(ids[None, a:b], np.ones((1, b), np.int64), past)
        rows.append(logits[0])
    assert_close(np.concatenate(rows), want, tolerances.EXPORTED_LOGITS)


def check_padded_batch(graph: Graph, model: Any) -> None:
    """Prompts of different lengths, padded on the right, equal each prompt alone."""
    rows = prompts(320, [7, 12, 3])
    ids, mask = pad(rows)
    logits, _ = graph.run(ids, mask)
    for row, got in zip(rows, logits, strict=True):
        assert_close(got[: len(row)], expected(model, row), tolerances.EXPORTED_LOGITS)


def pad(rows: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    width = max(map(len, rows))
    ids = np.stack([np.pad(r, (0, width - len(r))) for r in rows])
    return ids, np.stack([np.arange(width) < len(r) for r in rows]).astype(np.int64)


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3"])
def test_last_position_only_is_the_last_of_all_also_in_a_padded_batch(tmp_path: Path, model_type: str) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", model_type)
    graph, model = Graph(export(checkpoint, tmp_path, scheme=FLOAT32)), reference(checkpoint)
    rows = prompts(320, [7, 12, 3])
    logits, _ = graph.run(*pad(rows))
    assert logits.shape == (3, 1, 320)
    for row, got in zip(rows, logits, strict=True):
        assert_close(got[0], expected(model, row)[-1], tolerances.EXPORTED_LOGITS)
    past = None
    for a, b in [(0, 4), (4, 11), (11, 12)]:
        logits, past = graph.run(rows[1][None, a:b], np.ones((1, b), np.int64), past)
        assert_close(logits[0, 0], expected(model, rows[1])[b - 1], tolerances.EXPORTED_LOGITS)


QUANTIZED = {
    "int4": {"body": "int4", "embeddings": "int8", "head": "int8"},
    "int8": {"body": "int8", "embeddings": "int8", "head": "int8"},
    "int4-all": {"body": "int4", "embeddings": "int4", "head": "int4"},
    "head-apart": {"body": "int8", "embeddings": "float16", "head": "int4"},
}
GGML = {"int4": gguf.GGMLQuantizationType.Q4_0, "int8": gguf.GGMLQuantizationType.Q8_0}


@pytest.mark.parametrize("scheme", QUANTIZED)
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("model_type", ["qwen2", "qwen3", "llama"])
def test_quantized_equals_transformers_on_dequantized_weights(
    tmp_path: Path, model_type: str, tied: bool, scheme: str
) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", model_type, tied=tied, layers=1)
    parts = QUANTIZED[scheme]
    model = reference(checkpoint)
    dequantize(model, parts)
    graph = Graph(export(checkpoint, tmp_path, scheme=parts, logits="all"))
    ids = prompts(320, [12])[0]
    logits, _ = graph.run(ids[None], np.ones((1, 12), np.int64))
    want = expected(model, ids)
    rms = np.sqrt(np.mean((logits[0] - want) ** 2) / np.mean(want**2))
    assert rms <= tolerances.INT8_ACTIVATIONS_RMS, f"root mean square error {rms:.3f} of the logits'"


def dequantize(model: Any, parts: dict[str, str]) -> None:
    """Replace the weights of a transformers model by ggml's round trip of them, part by part."""
    head = model.lm_head.weight.detach().clone()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name == "model.embed_tokens.weight":
                weight.copy_(round_trip(weight, parts["embeddings"]))
            elif weight.dim() == 2 and name != "lm_head.weight":
                weight.copy_(round_trip(weight, parts["body"]))
        # Untie: the head may be stored in another encoding than the table it is tied to.
        model.lm_head.weight = torch.nn.Parameter(round_trip(head, parts["head"]))


def round_trip(weight: torch.Tensor, kind: str) -> torch.Tensor:
    values = weight.detach().numpy()
    if kind == "float16":
        return torch.from_numpy(values.astype(np.float16).astype(np.float32))
    return torch.from_numpy(gguf.dequantize(gguf.quantize(values, GGML[kind]), GGML[kind]))
