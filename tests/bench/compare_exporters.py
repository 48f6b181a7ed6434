"""One checkpoint through our own exporter and through Olive: size, seconds, peak memory, and what was lost.

`edgeship install-exporter olive` comes first. The loss is that of `edgeship evaluate`: mean KL divergence from the
float model, with the engine that runs the artifact on a device.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a script: the tests' own modules

from process import machine, measure, median

BIN = Path(sys.executable).parent
SIDES = {
    "ours": "scheme: {body: int4, embeddings: int8, head: int8}\n",
    "olive": "exporter: olive\nolive:\n  passes:\n"
    "    - {type: ModelBuilder, precision: int4, int4_block_size: 32, int4_accuracy_level: 4}\n",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="the directory of a checkpoint")
    parser.add_argument("--pairs", type=int, default=3, help="exports of each side; default: %(default)s")
    parser.add_argument("--tokens", type=int, default=2048, help="of the text to evaluate on; default: %(default)s")
    arguments = parser.parse_args()
    print(f"machine: {machine()}\n")
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        runs: dict[str, list[tuple[float, float, float]]] = {side: [] for side in SIDES}
        for _ in range(arguments.pairs):
            for side, recipe in SIDES.items():
                runs[side].append(export(work, side, recipe, arguments.checkpoint))
        lost = evaluate(work, arguments.checkpoint, arguments.tokens)
    print(f"{'':6} {'MB':>8} {'wall s':>8} {'CPU s':>8} {'peak MB':>8} {'KL mean':>9} {'top 1':>7}")
    for side, found in runs.items():
        wall, cpu, peak = (median(column) for column in zip(*found, strict=True))
        each = lost[side]
        made = f"{side:6} {each['size_mb']:8.1f} {wall:8.1f} {cpu:8.1f} {peak:8.0f}"
        print(f"{made} {each['kl_mean']:9.5f} {each['top1']:7.1%}")
    print(f"\nmachine after: {machine()}")


def export(work: Path, side: str, recipe: str, checkpoint: Path) -> tuple[float, float, float]:
    """Wall and CPU seconds and peak memory in MB of one export."""
    file = work / f"{side}.yaml"
    file.write_text(f"source: {{repo: bench/{side}}}\ncontext: 512\n{recipe}")
    command = [BIN / "edgeship", "export", file, "--checkpoint", checkpoint, "--out", work / "out", "--force"]
    run = measure([str(each) for each in command])
    return run.wall, run.cpu, run.peak_mb


def evaluate(work: Path, checkpoint: Path, tokens: int) -> dict[str, dict[str, float]]:
    """What `edgeship evaluate` says of each side."""
    artifacts = [work / "out" / side for side in SIDES]
    command = [BIN / "edgeship", "evaluate", *artifacts, "--reference", checkpoint, "--tokens", tokens]
    run = measure([*map(str, command), "--greedy", "0", "--json"])
    return {each["name"]: each for each in json.loads(run.output)["artifacts"]}


if __name__ == "__main__":
    main()
