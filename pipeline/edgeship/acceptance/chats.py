"""The conversations and prompts of an acceptance test, rendered and tokenized as they are on this machine."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml
from tokenizers import Tokenizer

from edgeship.acceptance.files import SCHEMA, write_file
from edgeship_runtime.acceptance import CHATS, DATE_STRING
from edgeship_runtime.chat import ChatTemplate
from edgeship_runtime.errors import TemplateError

CASES = Path(__file__).with_name("cases.yaml")


@dataclass(frozen=True)
class Prompt:
    """Token ids to continue, under the name of their case."""

    name: str
    ids: tuple[int, ...]


def write_chats(
    directory: Path, template: ChatTemplate | None, tokenizer: Tokenizer, ends: Mapping[str, int] = MappingProxyType({})
) -> Path:
    """Write `acceptance/chats.json`: every conversation through the template, and its token ids.

    A conversation that the template refuses is kept with its error; without a template there are no cases. Where a text
    holds one of `ends`, plain tokens that llama.cpp makes special ones, its ids by a GGUF's vocabulary are there too.
    """
    cases = [_render(case, template, tokenizer) for case in _cases()["chats"]] if template else []
    for case in cases:
        if any(end in case.get("rendered", "") for end in ends):
            case["gguf_token_ids"] = _encode_with(ends, case["rendered"], tokenizer)
    return write_file(directory / CHATS, {"schema": SCHEMA, "cases": cases})


def _render(case: Mapping[str, Any], template: ChatTemplate, tokenizer: Tokenizer) -> dict[str, Any]:
    given = {
        "messages": case["messages"],
        "tools": case.get("tools"),
        "enable_thinking": case.get("enable_thinking"),
        "add_generation_prompt": case.get("add_generation_prompt", True),
    }
    out = {"name": case["name"], **given}
    try:
        rendered = template.render(**given, date_string=DATE_STRING)
    except TemplateError as error:
        return out | {"error": error.message}
    return out | {"rendered": rendered, "token_ids": tokenizer.encode(rendered, add_special_tokens=False).ids}


def _encode_with(ends: Mapping[str, int], text: str, tokenizer: Tokenizer) -> list[int]:
    """Token ids where `ends` are special tokens too: what is between them is tokenized by itself."""
    ids: list[int] = []
    for part in re.split(f"({'|'.join(map(re.escape, ends))})", text):
        ids += [ends[part]] if part in ends else tokenizer.encode(part, add_special_tokens=False).ids
    return ids


def prompts(template: ChatTemplate | None, tokenizer: Tokenizer) -> list[Prompt]:
    """The prompts to continue as token ids; the chats among them only where a template takes them."""
    out = []
    for case in _cases()["prompts"]:
        if "text" in case:
            ids = tokenizer.encode(case["text"], add_special_tokens=True).ids
        else:
            ids = _render(case, template, tokenizer).get("token_ids", []) if template else []
        if ids:
            out.append(Prompt(case["name"], tuple(ids)))
    return out


@cache
def _cases() -> dict[str, Any]:
    cases: dict[str, Any] = yaml.safe_load(CASES.read_text(encoding="utf-8"))
    return cases
