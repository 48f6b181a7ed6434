"""Acceptance files for the toy artifact, from the same model in numpy and the artifact's own template and tokenizer."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edgeship_runtime.acceptance import DATE_STRING
from edgeship_runtime.chat import load_template
from edgeship_runtime.errors import TemplateError
from edgeship_runtime.manifest import collect_files, read_manifest, write_manifest
from edgeship_runtime.tokens import read_tokenizer
from toy_artifact import Toy

CONVERSATIONS: list[dict[str, Any]] = [
    {"name": "one", "messages": [{"role": "user", "content": "What colour is the sky?"}]},
    {"name": "two", "messages": [{"role": "system", "content": "你好"}, {"role": "user", "content": "🙂"}]},
    {"name": "refused", "messages": [{"role": "user", "content": [{"type": "image"}]}]},
]
PROMPTS = {"short": [5], "long": [5, 17, 300, 5, 44, 2, 199, 63, 63, 8, 120]}
CONTINUED = 6
TOP = 5


def write_acceptance(toy: Toy, change: Callable[[str, Any], None] = lambda name, value: None) -> Path:
    """Write both acceptance files, `change` them (name and value, in place), seal anew; return the directory."""
    directory = toy.directory
    (directory / "acceptance").mkdir(exist_ok=True)
    for name, value in (("chats", chats(directory)), ("golden", golden(toy))):
        change(name, value)
        (directory / "acceptance" / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
    return seal(directory)


def seal(directory: Path) -> Path:
    """Bring the manifest up to date with the files."""
    manifest = read_manifest(directory)
    write_manifest(directory, replace(manifest, files=collect_files(directory, skip=("edgeship.json",))))
    return directory


def chats(directory: Path) -> dict[str, Any]:
    """`acceptance/chats.json` of the directory's template and tokenizer."""
    template = load_template(directory, read_manifest(directory))
    assert template is not None
    tokenizer = read_tokenizer(directory / "tokenizer.json")
    cases = []
    for conversation in CONVERSATIONS:
        case = conversation | {"tools": None, "enable_thinking": None, "add_generation_prompt": True}
        try:
            text = template.render(conversation["messages"], date_string=DATE_STRING)
            case |= {"rendered": text, "token_ids": tokenizer.encode(text)}
        except TemplateError as error:
            case |= {"error": error.message}
        cases.append(case)
    return {"schema": 1, "cases": cases}


def golden(toy: Toy) -> dict[str, Any]:
    """`acceptance/golden.json` of the toy's own weights."""
    cases = []
    for name, prompt in PROMPTS.items():
        tokens, positions = list(prompt), []
        for index in range(len(prompt) + CONTINUED - 1):
            logits = toy.logits(tokens[: index + 1])[-1]
            best = np.argsort(-logits)[:TOP]
            positions.append(
                {
                    "index": index,
                    "top_ids": best.tolist(),
                    "top_logits": [float(logit) for logit in logits[best]],
                    "std": float(logits.std()),
                }
            )
            if index + 1 == len(tokens):
                tokens.append(int(best[0]))
        cases.append(
            {
                "name": name,
                "prompt_ids": prompt,
                "continuation": tokens[len(prompt) :],
                "positions": positions,
            }
        )
    return {"schema": 1, "made_with": "numpy", "tie_tolerance": 0.1, "cases": cases}
