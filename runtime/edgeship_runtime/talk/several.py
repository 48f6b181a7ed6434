"""Several prompts in one call."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from edgeship_runtime.answer import Result
from edgeship_runtime.model import Model, Prompt
from edgeship_runtime.sampling import GenerationOptions


def generate_batch(
    model: Model, prompts: Sequence[Prompt], options: GenerationOptions | None = None, **overrides: Any
) -> list[Result]:
    """Answer prompts, in their order; all are checked before the first is run, and raise what `Model.stream` raises.

    As many run together as the model has lanes (`load(path, sequences=4)` on llama.cpp); those with a common beginning
    one after the other, so that it is evaluated once.
    """
    ids = [model.encode(prompt) for prompt in prompts]
    for each in ids:
        model.stream(each, options, **overrides).close()
    waiting = deque(sorted(range(len(ids)), key=ids.__getitem__))
    results: dict[int, Result] = {}

    def take() -> int | None:
        with suppress(IndexError):  # another lane took the last
            return waiting.popleft()
        return None

    def work(lane: Model) -> None:
        while (place := take()) is not None:
            try:
                results[place] = lane.generate(ids[place], options, **overrides)
            except BaseException:
                waiting.clear()  # the others end with what they are at
                raise

    lanes = model.lanes()
    if len(lanes) == 1:
        work(model)
    else:
        with ThreadPoolExecutor(len(lanes), "edgeship-batch") as pool:
            for done in [pool.submit(work, lane) for lane in lanes]:
                done.result()
    return [results[place] for place in range(len(ids))]
