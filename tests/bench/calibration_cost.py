"""What calibrating a recipe of the catalogue costs once: CPU minutes and memory, extrapolated from one block.

python tests/bench/calibration_cost.py qwen2.5-3b-int4, or: make bench-calibration RECIPE=qwen2.5-3b-int4

Random weights in the recipe's shape; one thread of BLAS, so that none waits for another. Timed are some steps of
writing text, and choosing the codes of a block with the recipe's tokens. What plan states counts the interpreter, the
tokenizer and the keys and values of all layers besides.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a script: the tests' own modules

from edgeship import archs, catalog
from edgeship.archs.base import Decoder
from edgeship.blas import one_thread
from edgeship.calibrate import quantize, sampler
from edgeship.calibration import Calibration
from edgeship.calibration_stages import calibrated, largest, stages
from edgeship.checkpoint.checkpoint import account, open_checkpoint
from edgeship.memory import peak_rss
from edgeship.plan import Plan, read_plan
from edgeship.progress import Silent
from edgeship.reference.forward import Pass
from edgeship.reference.weights import CheckpointWeights
from random_checkpoint import write

STEPS = 8


@contextmanager
def timed(spent: list[float]) -> Iterator[None]:
    """Add the CPU seconds of the block inside to `spent`."""
    before = time.process_time()
    yield
    spent.append(time.process_time() - before)


def text_minutes(decoder: Decoder, weights: CheckpointWeights, section: Calibration, layers: int) -> float:
    """CPU minutes of writing the section's text with `layers` layers, from some steps with the decoder's one."""
    block, head = list[float](), list[float]()
    with Pass(decoder, weights, section.sequences) as run:
        for step in range(STEPS + 1):
            with timed(block):
                hidden = run.extend([[step]] * section.sequences)
            with timed(head):
                sampler._draw(run, hidden, section.seed, step)
    each = layers * np.median(block[1:]) + np.median(head[1:])  # the first reads the file
    return float(each) * section.length / 60


def codes_minutes(plan: Plan, weights: CheckpointWeights, decoder: Decoder, home: Path) -> float:
    """CPU minutes of choosing the codes of the decoder's one block."""
    section, keys = plan.recipe.calibration, calibrated(plan)
    assert section is not None
    own = {role.key: keys[role.key] for role in decoder.roles() if role.key in keys}
    tokens = np.random.default_rng(0).integers(0, decoder.vocab_size, (section.sequences, section.length)).tolist()
    quantize.all_cores = one_thread  # seconds of work, not of waiting
    spent = list[float]()
    with timed(spent):
        quantize.Calibrator(decoder, weights, tokens, own, "gptq", home, Silent()).run()
    return spent[0] / 60


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", help="of the catalogue, with calibration")
    recipe = catalog.find(parser.parse_args().recipe)
    plan = read_plan(recipe)
    assert recipe.model is not None
    assert recipe.calibration is not None
    layers = plan.decoder.layers
    with tempfile.TemporaryDirectory() as home:
        path = write(
            recipe.model_copy(update={"model": {**recipe.model, "num_hidden_layers": 1}}), Path(home) / "model"
        )
        checkpoint = open_checkpoint(path)
        decoder = archs.read(checkpoint.config)
        weights = CheckpointWeights(account(checkpoint, decoder.roles()))
        before = peak_rss()
        codes = codes_minutes(plan, weights, decoder, Path(home) / "codes") * layers
        peak = peak_rss() - before
        text = text_minutes(decoder, weights, recipe.calibration, layers)
    section, stated = recipe.calibration, largest(stages(plan)).nbytes
    print(
        f"{recipe.name}: {section.tokens} tokens, {layers} blocks: text {text:.0f} CPU min, codes {codes:.0f} CPU min"
    )
    print(f"codes take {peak / 1e6:.0f} MB beside the interpreter; plan states {stated / 1e6:.0f} MB for everything")


if __name__ == "__main__":
    main()
