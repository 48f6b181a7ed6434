"""Trains the tiny model: `python -m edgeship.tiny.train --out DIR [--steps N] [--seed 0]` (needs the extra `train`).

Text, tokenizer, weights and the order of the batches follow from the seed. On the same machine, with the same
versions and threads, the same seed gives the same bytes.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from torch.nn.functional import cross_entropy, linear
from transformers import Qwen2Config, Qwen2ForCausalLM

from edgeship.tiny.questions import Question, questions
from edgeship.tiny.text import CHAT_TEMPLATE, END_OF_TEXT, IM_END, IM_START, chatml, samples

VOCABULARY = 1536
CONTEXT = 1024
ADDED = (END_OF_TEXT, IM_START, IM_END, "<tool_call>", "</tool_call>")  # after the vocabulary, as Qwen's are
# Qwen2's: words with one leading character, digits one by one.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

STEPS = 4600
BATCH_TOKENS = 2048  # padded
MUON_RATE, ADAM_RATE, LAST_SHARE, WARM_UP = 0.02, 4e-3, 0.02, 50
DECAY = 0.1
PROMPT_WEIGHT = 0.2  # what users say is mostly chance: it counts less than stories and answers
HELD_OUT_SAMPLES = 400
IGNORED = -100


def config() -> dict[str, Any]:
    """config.json. Every linear layer's input is a multiple of 128, so that groups of 32, 64 and 128 fit."""
    end, im_end = VOCABULARY - len(ADDED), VOCABULARY - len(ADDED) + 2
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "vocab_size": VOCABULARY,
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_act": "silu",
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-06,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
        "torch_dtype": "bfloat16",
        "bos_token_id": end,
        "eos_token_id": im_end,
    }


def train_tokenizer(seed: int) -> Tokenizer:
    """A byte-level BPE tokenizer like Qwen2's: it takes any text, and knows the words of the training text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    bare = (_without_added(text) for text in islice(samples(seed, "train"), 20_000))
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(ADDED),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(bare, trainer)
    tokenizer.add_special_tokens(list(ADDED[:3]))
    tokenizer.add_tokens(list(ADDED[3:]))
    return tokenizer


def _without_added(text: str) -> str:
    for token in ADDED:
        text = text.replace(token, "\n")
    return text


@dataclass(frozen=True)
class Batch:
    """Right-padded sequences: ids and targets `[sequences, length]` int64, weights the same shape float32."""

    ids: Tensor
    targets: Tensor
    weights: Tensor


def encode(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of the texts, cut to the context."""
    return [e.ids[:CONTEXT] for e in tokenizer.encode_batch(list(texts), add_special_tokens=False)]


def _weights(ids: list[int], start: list[int], end: int) -> list[float]:
    """How much each token counts as a target: in full after `<|im_start|>assistant` and in plain text."""
    if ids[0] != start[0]:
        return [1.0] * len(ids)
    out, answering = [], False
    for i, token in enumerate(ids):
        out.append(1.0 if answering else PROMPT_WEIGHT)
        if token == end:
            answering = False
        elif ids[max(0, i + 1 - len(start)) : i + 1] == start:
            answering = True
    return out


def batch(tokenizer: Tokenizer, sequences: Sequence[list[int]]) -> Batch:
    """The sequences as one batch; the target of a position is the next token."""
    start, (end,) = encode(tokenizer, [f"{IM_START}assistant\n", IM_END])
    width = max(map(len, sequences))
    ids = torch.full((len(sequences), width), tokenizer.token_to_id(END_OF_TEXT))
    targets = torch.full((len(sequences), width), IGNORED)
    weights = torch.zeros(len(sequences), width)
    for row, sequence in enumerate(sequences):
        n = len(sequence)
        ids[row, :n] = torch.tensor(sequence)
        targets[row, : n - 1] = ids[row, 1:n]
        weights[row, : n - 1] = torch.tensor(_weights(sequence, start, end)[1:])
    return Batch(ids, targets, weights)


def batches(tokenizer: Tokenizer, seed: int) -> Iterator[Batch]:
    """Training batches without end: sequences of like length together, so that little is padded."""
    rng, source = random.Random(seed), samples(seed, "train")
    while True:
        sequences = sorted(encode(tokenizer, list(islice(source, 2048))), key=len)
        groups: list[list[list[int]]] = [[]]
        for sequence in sequences:
            if len(sequence) * (len(groups[-1]) + 1) > BATCH_TOKENS and groups[-1]:
                groups.append([])
            groups[-1].append(sequence)
        rng.shuffle(groups)
        yield from (batch(tokenizer, group) for group in groups)


def token_losses(model: Qwen2ForCausalLM, b: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Of every position that has a target: cross-entropy in nats, weight, and whether greedy decoding hits it."""
    hidden = model.model(input_ids=b.ids).last_hidden_state
    kept = b.targets != IGNORED
    logits = linear(hidden[kept], model.lm_head.weight)
    targets = b.targets[kept]
    return cross_entropy(logits, targets, reduction="none"), b.weights[kept], logits.argmax(-1) == targets


@dataclass(frozen=True)
class Score:
    """Quality on held-out text: nats per token (of all, of answers and stories), share of questions answered right."""

    loss: float
    answer_loss: float
    right: float

    def __str__(self) -> str:
        return f"loss {self.loss:.4f}, of answers and stories {self.answer_loss:.4f}, questions right {self.right:.1%}"


@torch.no_grad()  # type: ignore[untyped-decorator]
def evaluate(model: Qwen2ForCausalLM, tokenizer: Tokenizer, seed: int = 0, count: int = HELD_OUT_SAMPLES) -> Score:
    """The score on the first `count` held-out samples of the seed and on every held-out question."""
    sequences = sorted(encode(tokenizer, list(islice(samples(seed, "held-out"), count))), key=len)
    parts = [token_losses(model, batch(tokenizer, sequences[i : i + 16])) for i in range(0, len(sequences), 16)]
    loss, weight = torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])
    held_out = [q for q in questions() if q.split == "held-out"]
    wrong = wrong_answers(model, tokenizer, held_out)
    return Score(loss.mean().item(), loss[weight == 1].mean().item(), 1 - len(wrong) / len(held_out))


@torch.no_grad()  # type: ignore[untyped-decorator]
def wrong_answers(model: Qwen2ForCausalLM, tokenizer: Tokenizer, asked: Sequence[Question]) -> list[Question]:
    """The questions that greedy decoding does not answer word for word, asked under the default system prompt."""
    wrong = []
    for i in range(0, len(asked), 32):
        group = asked[i : i + 32]
        texts = [
            chatml([{"role": "user", "content": q.ask}, {"role": "assistant", "content": q.answer}]) for q in group
        ]
        b = batch(tokenizer, encode(tokenizer, [text.removesuffix("\n") for text in texts]))
        _, weight, hit = token_losses(model, b)
        lengths = (b.targets != IGNORED).sum(1).tolist()
        for q, w, h in zip(group, weight.split(lengths), hit.split(lengths), strict=True):
            if not h[w == 1].all():
                wrong.append(q)
    return wrong


def _share(step: int, steps: int) -> float:
    """The learning rate of a step as a share of its peak: a short rise, then half a cosine."""
    if step < WARM_UP:
        return (step + 1) / WARM_UP
    done = (step - WARM_UP) / max(1, steps - WARM_UP)
    return LAST_SHARE + (1 - LAST_SHARE) * (1 + math.cos(math.pi * done)) / 2


def _optimizers(model: Qwen2ForCausalLM) -> list[tuple[torch.optim.Optimizer, float]]:
    """Optimizers with their peak rates: Muon for linear layers, where it needs half of AdamW's steps, else AdamW."""
    body = [p for name, p in model.named_parameters() if p.dim() > 1 and "embed" not in name]
    rest = [p for name, p in model.named_parameters() if p.dim() == 1 or "embed" in name]
    return [
        (torch.optim.Muon(body, weight_decay=DECAY), MUON_RATE),
        (torch.optim.AdamW(rest, weight_decay=0.0, betas=(0.9, 0.98)), ADAM_RATE),
    ]


def train(tokenizer: Tokenizer, steps: int, seed: int) -> Qwen2ForCausalLM:
    """A model trained from random weights, with its progress on standard output."""
    torch.manual_seed(seed)
    model = Qwen2ForCausalLM(Qwen2Config(**config()))
    optimizers = _optimizers(model)
    began, tokens, recent = time.monotonic(), 0, 0.0
    for step, b in enumerate(islice(batches(tokenizer, seed), steps)):
        loss, weight, _ = token_losses(model, b)
        total = (loss * weight).sum() / weight.sum()
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, peak in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = peak * _share(step, steps)
            optimizer.step()
            optimizer.zero_grad()
        tokens, recent = tokens + len(loss), recent + total.item()
        if (step + 1) % 200 == 0:
            seconds = time.monotonic() - began
            print(
                f"step {step + 1} of {steps}, training loss {recent / 200:.4f}, {seconds:.0f} s, {tokens} tokens",
                flush=True,
            )
            recent = 0.0
        if (step + 1) % 1000 == 0 and step + 1 < steps:
            print(f"held out: {evaluate(model, tokenizer, seed, 100)}", flush=True)
    return model


def write(model: Qwen2ForCausalLM, tokenizer: Tokenizer, out: Path) -> None:
    """Writes the checkpoint folder; weights are rounded to BF16, in the model too."""
    out.mkdir(parents=True, exist_ok=True)
    model.to(torch.bfloat16)
    weights = {k: v.detach().clone() for k, v in model.state_dict().items() if k != "lm_head.weight"}
    (out / "model.safetensors").write_bytes(save(weights, metadata={"format": "pt"}))
    model.to(torch.float32)
    tokenizer.save(str(out / "tokenizer.json"))
    ids = {token: tokenizer.token_to_id(token) for token in ADDED}
    plain = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    _write_json(out / "config.json", config())
    _write_json(
        out / "tokenizer_config.json",
        {
            "add_bos_token": False,
            "add_prefix_space": False,
            "added_tokens_decoder": {
                str(i): {"content": token, **plain, "special": token in ADDED[:3]} for token, i in ids.items()
            },
            "additional_special_tokens": [IM_START, IM_END],
            "bos_token": None,
            "chat_template": CHAT_TEMPLATE,
            "clean_up_tokenization_spaces": False,
            "eos_token": IM_END,
            "errors": "replace",
            "model_max_length": CONTEXT,
            "pad_token": END_OF_TEXT,
            "split_special_tokens": False,
            "tokenizer_class": "Qwen2Tokenizer",
            "unk_token": None,
        },
    )
    _write_json(
        out / "generation_config.json",
        {
            "bos_token_id": ids[END_OF_TEXT],
            "pad_token_id": ids[END_OF_TEXT],
            "eos_token_id": [ids[IM_END], ids[END_OF_TEXT]],
            "do_sample": True,
            "temperature": 0.7,
            "top_k": 20,
            "top_p": 0.8,
            "repetition_penalty": 1.0,
        },
    )


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m edgeship.tiny.train", description="Train the tiny model.")
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args(arguments)
    began = time.monotonic()
    torch.set_num_threads(2)
    tokenizer = train_tokenizer(asked.seed)
    model = train(tokenizer, asked.steps, asked.seed)
    print(f"held out, float32: {evaluate(model, tokenizer, asked.seed)}")
    write(model, tokenizer, asked.out)
    print(f"held out, bfloat16: {evaluate(model, tokenizer, asked.seed)}")
    print(f"{(time.monotonic() - began) / 60:.0f} minutes, {time.process_time() / 60:.0f} of CPU")


if __name__ == "__main__":
    main()
