"""What sentence-transformers puts before a text: a checkpoint's prompts, told to people, for nothing here adds them."""

from __future__ import annotations

from pathlib import Path

from edgeship.checkpoint.files import PROMPTS
from edgeship.checkpoint.strict_json import DAMAGED, show
from edgeship.errors import CheckpointError
from edgeship.tokenizer import read_optional

LONGEST = 1000  # characters of a prompt that are shown


def read_prompts(directory: Path) -> dict[str, str]:
    """The prompts that a text can begin with, by name; those that are empty are left out.

    Raises CheckpointError where one of them begins every text: vectors without it would be others.
    """
    path = directory / PROMPTS
    said = read_optional(path)
    prompts, default = said.get("prompts") or {}, said.get("default_prompt_name")
    if not isinstance(prompts, dict) or not all(isinstance(each, str) for each in prompts.values()):
        raise CheckpointError(f"{path}: prompts: expected texts by name, found something else.", hint=DAMAGED)
    if default is not None and (not isinstance(default, str) or default not in prompts):
        raise CheckpointError(
            f"{path}: default_prompt_name: expected the name of a prompt, found {show(str(default))}.", hint=DAMAGED
        )
    if default is not None and prompts[default]:
        raise CheckpointError(
            f"{path}: default_prompt_name: sentence-transformers begins every text with {show(prompts[default])}, "
            "which nothing here does: the vectors would be others.",
            hint="set it to null in a copy of the checkpoint, and begin the texts with the prompt yourself",
        )
    return {name: text for name, text in prompts.items() if text}


def told(prompts: dict[str, str], *, pooled: bool) -> str:
    """What people are to do about prompts, in words, and nothing without any; `pooled`: their tokens count, too."""
    if not prompts:
        return ""
    listed = ", ".join(f"{show(text, LONGEST)} ({show(name)[1:-1]})" for name, text in prompts.items())
    if pooled:
        return f"texts are embedded as they are given; begin them with the model's prompts yourself: {listed}"
    return (
        f"texts are embedded as they are given; with its prompts the model cannot be used here, for their tokens count "
        f"in the mean, where sentence-transformers leaves them out: {listed}"
    )
