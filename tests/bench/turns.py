"""Both runtimes in one process, a few tokens each in turn: prints decode tokens/s of both and their ratio as JSON.

turns.py ARTIFACT THREADS ours|theirs

Two processes, one after the other, differ by more than the runtimes do where a machine's speed drifts; in turns both
meet the same machine. Which side is loaded first (the last argument) matters a little: ask for both and take the mean.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

PROMPT, BURST, ROUNDS = 128, 8, 24
PAUSE = 0.02  # seconds: threads of the side that has finished go to sleep
CONTEXT = PROMPT + BURST * (ROUNDS + 1) + 1


def main() -> None:
    artifact, threads, first = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    openers = {"ours": open_ours, "theirs": open_theirs}
    ids = np.random.default_rng(0).integers(0, 50_000, PROMPT).tolist()
    steps = {side: openers[side](artifact, threads, ids) for side in sorted(openers, key=lambda s: s != first)}
    times: dict[str, list[float]] = {"ours": [], "theirs": []}
    for turn in range(ROUNDS):
        for side in sorted(steps, reverse=bool(turn % 2)):
            time.sleep(PAUSE)
            started = time.perf_counter()
            for _ in range(BURST):
                steps[side]()
            times[side].append((time.perf_counter() - started) / BURST)
    ratios = [b / a for a, b in zip(times["ours"], times["theirs"], strict=True)]
    print(
        json.dumps(
            {side: 1 / statistics.median(each) for side, each in times.items()} | {"ratio": statistics.median(ratios)}
        )
    )


def open_ours(artifact: Path, threads: int, ids: list[int]) -> Callable[[], None]:
    import edgeship_runtime

    engine = edgeship_runtime.load(artifact, threads=threads, context=CONTEXT).engine
    token = [int(engine.evaluate(ids).argmax())]

    def step() -> None:
        token[0] = int(engine.evaluate(token).argmax())

    return step


def open_theirs(artifact: Path, threads: int, ids: list[int]) -> Callable[[], None]:
    import onnxruntime_genai as og

    config = og.Config(str(artifact))
    config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
    model = og.Model(config)
    parameters = og.GeneratorParams(model)
    parameters.set_search_options(max_length=CONTEXT, min_length=CONTEXT, do_sample=False)
    generator = og.Generator(model, parameters)
    generator.append_tokens(ids)
    generator.generate_next_token()

    def step() -> None:
        generator.generate_next_token()

    return step


if __name__ == "__main__":
    main()
