"""Trains a Qwen3-shaped model of 20M weights on Python's documentation and source, for measuring what 4 bits cost.

train_model.py OUT [--steps N] [--seed 0] writes a checkpoint as the hub serves one, and beside its weights
`calibration.txt` (text it was trained on) and `held-out.txt` (text it never saw).
"""

from __future__ import annotations

import argparse
import ast
import json
import math
import random
import sysconfig
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch.nn.functional import cross_entropy
from transformers import Qwen3Config, Qwen3ForCausalLM

from checkpoints import CHAT_TEMPLATE, SPECIAL, SPLIT

VOCABULARY = 8192
LENGTH, SEQUENCES = 512, 4  # of a batch
STEPS = 400
MUON_RATE, ADAM_RATE, DECAY, WARM_UP = 0.02, 4e-3, 0.1, 10
HELD_OUT = 16  # every so many documents
SAMPLE = 400_000  # characters of each text file
LEFT_OUT = ("/test", "/site-packages/", "/lib2to3/", "/idlelib/", "/encodings/", "/turtledemo/", "/pydoc_data/")


def documents() -> list[str]:
    """The language reference, and each module of the standard library: its docstrings as prose, then its source."""
    out = [topics[name] for name in sorted(topics)]
    home = Path(sysconfig.get_paths()["stdlib"])
    for file in sorted(home.rglob("*.py")):
        if any(part in f"/{file.relative_to(home)}" for part in LEFT_OUT):
            continue
        with suppress(UnicodeDecodeError, SyntaxError):
            source = file.read_text(encoding="utf-8")
            out += [*_prose(file.stem, ast.parse(source)), source]
    return [text for text in out if len(text) > 200]


def _prose(module: str, tree: ast.Module) -> Iterator[str]:
    named = (ast.FunctionDef, ast.ClassDef)
    entries = [(module, ast.get_docstring(tree))]
    entries += [(f"{module}.{n.name}", ast.get_docstring(n)) for n in ast.walk(tree) if isinstance(n, named)]
    yield "\n\n".join(f"{name}\n{text}" for name, text in entries if text)


def split(seed: int) -> tuple[list[str], list[str]]:
    """Documents for training, and those held out, each shuffled."""
    texts = documents()
    random.Random(seed).shuffle(texts)
    return [t for i, t in enumerate(texts) if i % HELD_OUT], texts[::HELD_OUT]


def train_tokenizer(texts: Sequence[str]) -> Tokenizer:
    """A byte-level BPE tokenizer, as Qwen's are."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY - len(SPECIAL), initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer


def config(tokenizer: Tokenizer) -> dict[str, Any]:
    """config.json. Every matrix has rows of a multiple of 256, so that K-quants fit."""
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": VOCABULARY,
        "hidden_size": 512,
        "intermediate_size": 1536,
        "num_hidden_layers": 5,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 64,
        "hidden_act": "silu",
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-06,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "use_sliding_window": False,
        "torch_dtype": "bfloat16",
        "bos_token_id": tokenizer.token_to_id(SPECIAL[0]),
        "eos_token_id": tokenizer.token_to_id(SPECIAL[2]),
    }


def token_stream(tokenizer: Tokenizer, texts: Sequence[str]) -> torch.Tensor:
    """All texts one after the other, int64, an end-of-text token after each."""
    end = tokenizer.token_to_id(SPECIAL[0])
    encoded = tokenizer.encode_batch(list(texts), add_special_tokens=False)
    return torch.tensor([i for e in encoded for i in (*e.ids, end)])


def batches(stream: torch.Tensor, seed: int) -> Iterator[torch.Tensor]:
    """Token ids `[sequences, length + 1]` without end, from places drawn anew each time all have been seen."""
    rng = random.Random(seed)
    while True:
        starts = list(range(0, len(stream) - LENGTH, LENGTH))
        rng.shuffle(starts)
        for i in range(0, len(starts) - SEQUENCES + 1, SEQUENCES):
            yield torch.stack([stream[a : a + LENGTH + 1] for a in starts[i : i + SEQUENCES]])


def loss_of(model: Qwen3ForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of the next token, in nats."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=ids[:, :-1]).logits
    return cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())


def train(model: Qwen3ForCausalLM, stream: torch.Tensor, steps: int, seed: int) -> None:
    """Muon for the matrices and AdamW for the rest, on a cosine; progress on standard output."""
    parameters = dict(model.named_parameters())
    matrices = [p for name, p in parameters.items() if p.dim() > 1 and "embed" not in name]
    rest = [p for name, p in parameters.items() if p.dim() == 1 or "embed" in name]
    optimizers = (
        (torch.optim.Muon(matrices, weight_decay=DECAY), MUON_RATE),
        (torch.optim.AdamW(rest, weight_decay=0.0, betas=(0.9, 0.98)), ADAM_RATE),
    )
    began, source = time.monotonic(), batches(stream, seed)
    for step in range(steps):
        loss = loss_of(model, next(source))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        share = min((step + 1) / WARM_UP, 0.02 + 0.49 * (1 + math.cos(math.pi * step / steps)))
        for optimizer, peak in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = peak * share
            optimizer.step()
            optimizer.zero_grad()
        if step % 20 == 19:
            print(f"step {step + 1} of {steps}: {loss.item():.3f} nats, {time.monotonic() - began:.0f} s", flush=True)


@torch.no_grad()
def held_out_loss(model: Qwen3ForCausalLM, stream: torch.Tensor, count: int = 8) -> float:
    """Nats per token over `count` batches of a text."""
    source = batches(stream, 0)
    return sum(loss_of(model, next(source)).item() for _ in range(count)) / count


def write(model: Qwen3ForCausalLM, tokenizer: Tokenizer, out: Path) -> None:
    """Write the checkpoint's files to the directory `out`; weights are rounded to BF16."""
    weights = {k: v.detach().to(torch.bfloat16).contiguous() for k, v in model.state_dict().items()}
    weights.pop("lm_head.weight", None)
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save(str(out / "tokenizer.json"))
    ids = {token: tokenizer.token_to_id(token) for token in SPECIAL}
    plain = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    files: dict[str, dict[str, Any]] = {
        "config.json": config(tokenizer),
        "generation_config.json": {"bos_token_id": ids[SPECIAL[0]], "eos_token_id": [ids[SPECIAL[2]], ids[SPECIAL[0]]]},
        "tokenizer_config.json": {
            "add_bos_token": False,
            "add_prefix_space": False,
            "added_tokens_decoder": {str(i): {"content": token, **plain} for token, i in ids.items()},
            "bos_token": None,
            "chat_template": CHAT_TEMPLATE,
            "clean_up_tokenization_spaces": False,
            "eos_token": SPECIAL[2],
            "errors": "replace",
            "model_max_length": 2048,
            "pad_token": SPECIAL[0],
            "tokenizer_class": "Qwen2Tokenizer",
            "unk_token": None,
        },
    }
    for name, value in files.items():
        (out / name).write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train a small model to measure quantization with.")
    parser.add_argument("out", type=Path, help="directory of the checkpoint")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    torch.manual_seed(asked.seed)
    asked.out.mkdir(parents=True, exist_ok=True)
    training, held_out = split(asked.seed)
    for name, texts in (("calibration.txt", training), ("held-out.txt", held_out)):
        (asked.out / name).write_text("\n\n".join(texts)[:SAMPLE], encoding="utf-8")
    tokenizer = train_tokenizer(training)
    stream, unseen = token_stream(tokenizer, training), token_stream(tokenizer, held_out)
    model = Qwen3ForCausalLM(Qwen3Config(**config(tokenizer)))
    print(f"{model.num_parameters() / 1e6:.1f}M weights, {len(stream) / 1e6:.1f}M tokens of text", flush=True)
    train(model, stream, asked.steps, asked.seed)
    print(f"held out: {held_out_loss(model, unseen):.3f} nats")
    write(model, tokenizer, asked.out)


if __name__ == "__main__":
    main()
