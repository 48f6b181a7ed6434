"""Checks what Olive's ModelBuilder hands to onnxruntime-genai's builder unread, by what that says of itself."""

from __future__ import annotations

import inspect
import re
from typing import Any

from onnxruntime_genai.models import builder
from workflow_words import unknown

UNUSABLE = {
    "config_only": "it makes no model",
    "exclude_embeds": "the graph would take embeddings, and the runtime gives it token ids",
    "exclude_lm_head": "the graph would give no logits, which the runtime reads",
    "filename": "the names of files are Olive's",
    "hf_token": "nothing is downloaded here, and the recipe goes into the artifact's manifest",
}
"""Options that are there and make nothing that can be shipped."""


def check_builder(options: dict[str, Any]) -> list[str]:
    """What is wrong with the options of a ModelBuilder; the builder ignores those that it does not know.

    Its help text and its own check of a command line name them; Olive calls neither.
    """
    spoken = inspect.getsource(builder.get_args)
    switches = re.findall(r'^ {8}"(\w+)",$', inspect.getsource(builder.check_extra_options), re.MULTILINE)
    known = {*re.findall(r"^ {16}(\w+) = ", spoken, re.MULTILINE), *switches}
    extra = options.get("extra_options") or {}
    problems = [f"extra_options: {unknown('option', each, known)}" for each in extra if each not in known]
    problems += [f"{each}: {UNUSABLE[each]}" for each in UNUSABLE if options.get(each) or extra.get(each)]
    for key in switches:
        if key in extra and not isinstance(extra[key], bool):  # any text would count as true
            problems.append(f"extra_options: {key} {extra[key]!r}: expected true or false")
    return problems + _of_algorithm(extra.get("int4_algo_config", options.get("int4_algo_config")), spoken)


def _of_algorithm(chosen: Any, spoken: str) -> list[str]:
    """One that the builder does not know is to it the same as none."""
    listed = re.search(r"int4_algo_config = .*\n.*options are: (.*)", spoken)
    known = re.findall(r"'(\w+)'", listed[1]) if listed else []
    return [unknown("int4_algo_config", chosen, known)] if known and chosen is not None and chosen not in known else []
