"""Several prompts in one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgeship_runtime.answer import Result
from edgeship_runtime.model import Model, Prompt
from edgeship_runtime.sampling import GenerationOptions


def generate_batch(
    model: Model, prompts: Sequence[Prompt], options: GenerationOptions | None = None, **overrides: Any
) -> list[Result]:
    """Answer prompts, in their order; all are checked before the first is run, and raise what `Model.stream` raises.

    One runs at a time, those with a common beginning one after the other, so that it is evaluated once.
    """
    ids = [model.encode(prompt) for prompt in prompts]
    for each in ids:
        model.stream(each, options, **overrides).close()
    results = {
        place: model.generate(ids[place], options, **overrides)
        for place in sorted(range(len(ids)), key=ids.__getitem__)
    }
    return [results[place] for place in range(len(ids))]
