"""One checkpoint through our own exporter, Olive and Optimum: size, seconds, peak memory, and what was lost.

`edgeship install-exporter NAME` comes first; a side whose exporter is not installed is left out and said. The loss is
that of `edgeship evaluate`, mean KL divergence from the float model: with the engine that runs the artifact on a
device, and for Optimum's graph, which the runtime does not run, with onnxruntime on the same windows of the same text.

Calibrated sides look at the same tokens: --sides native-gptq olive-gptq --calibration 8192 --no-loss CHECKPOINT.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import yaml

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a script: the tests' own modules

from edgeship.calibrate.text import read_tokens
from edgeship.calibration import Calibration
from edgeship.checkpoint.checkpoint import open_checkpoint
from edgeship.exporters import environment
from edgeship.plan import make_plan
from edgeship.recipe import Recipe, Source
from edgeship.text import open_text
from process import FailedCommandError, machine, measure, median

BIN = Path(sys.executable).parent
HERE = Path(__file__).parent
INT4 = {"body": "int4", "embeddings": "int8", "head": "int8"}
BUILDER = {"type": "ModelBuilder", "precision": "int4", "int4_block_size": 32, "int4_accuracy_level": 4}
GPTQ = {"type": "Gptq", "bits": 4, "group_size": 32, "sym": True, "data_config": "calibration"}
SIDES = ("native", "olive", "optimum", "native-gptq", "olive-gptq")


@dataclass(frozen=True)
class Task:
    """What all sides work on."""

    checkpoint: Path
    work: Path
    text: Path  # for calibration
    tokens: int
    sequence: int


@dataclass(frozen=True)
class Made:
    """One export."""

    wall: float
    cpu: float
    peak_mb: float


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="the directory of a checkpoint")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES[:3], help="default: %(default)s")
    parser.add_argument("--pairs", type=int, default=1, help="exports of each side; default: %(default)s")
    parser.add_argument("--tokens", type=int, default=2048, help="of the text to evaluate on; default: %(default)s")
    parser.add_argument("--calibration", type=int, default=8192, help="tokens to calibrate with; default: %(default)s")
    parser.add_argument("--sequence", type=int, default=512, help="of these seen together; default: %(default)s")
    parser.add_argument("--no-loss", action="store_true", help="random weights: what was lost says nothing")
    asked = parser.parse_args()
    print(f"machine: {machine()}\n", flush=True)
    sides = [side for side in asked.sides if installed(side)]
    with tempfile.TemporaryDirectory() as scratch:
        task = _task(asked.checkpoint.resolve(), Path(scratch), asked.calibration, asked.sequence)
        runs: dict[str, list[Made]] = {side: [] for side in sides}
        for _ in range(asked.pairs):
            for side in sides:
                try:
                    runs[side].append(export(task, side))
                except FailedCommandError as error:
                    print(f"{side}: {error}\n", flush=True)
                    continue
                print(f"{side}: {runs[side][-1]}", flush=True)
        runs = {side: made for side, made in runs.items() if made}
        lost = {} if asked.no_loss else evaluate(task, list(runs), asked.tokens)
        print(f"\n{'':12} {'MB':>8} {'wall s':>8} {'CPU s':>8} {'peak MB':>8} {'KL mean':>9} {'top 1':>7}")
        for side, made in runs.items():
            print(_row(side, size_mb(task, side), made, lost.get(side, {})))
    print(f"\nmachine after: {machine()}")


def _row(side: str, size: float, made: Sequence[Made], lost: dict[str, float]) -> str:
    wall, cpu, peak = (median([getattr(each, name) for each in made]) for name in ("wall", "cpu", "peak_mb"))
    row = f"{side:12} {size:8.1f} {wall:8.1f} {cpu:8.1f} {peak:8.0f}"
    return f"{row} {lost['kl_mean']:9.5f} {lost['top1']:7.1%}" if lost else row


def installed(side: str) -> bool:
    """Whether a side's exporter is there; says so where it is not."""
    name = side.split("-")[0]
    if name == "native" or environment.find(name).ready:
        return True
    print(f"{side}: left out: {name} is not installed (edgeship install-exporter {name})")
    return False


def _task(checkpoint: Path, work: Path, tokens: int, sequence: int) -> Task:
    text = checkpoint / "calibration.txt"
    if not text.is_file():
        text = work / "calibration.txt"
        text.write_text("\n\n".join(topics[name] for name in sorted(topics)), encoding="utf-8")
    return Task(checkpoint, work, text, tokens, sequence)


def recipe(task: Task, side: str) -> dict[str, Any]:
    """The recipe of a side."""
    calibration = {"text": str(task.text), "tokens": task.tokens, "sequence": task.sequence}
    made: dict[str, Any] = {"source": {"repo": f"bench/{side}"}, "context": 512}
    if side == "native":
        return made | {"scheme": INT4}
    if side == "native-gptq":
        return made | {"scheme": INT4 | {"algorithm": "gptq"}, "calibration": calibration}
    if side == "olive":
        return made | {"exporter": "olive", "olive": {"passes": [BUILDER]}}
    return made | {"exporter": "olive", "olive": {"passes": [GPTQ, BUILDER], "data_configs": [olive_data(task)]}}


def olive_data(task: Task) -> dict[str, Any]:
    """The calibration tokens as files that Olive reads by itself, and the data set that names them."""
    section = Calibration(text=str(task.text), tokens=task.tokens, sequence=task.sequence)
    source = open_checkpoint(task.checkpoint)
    mine = Recipe(name="bench", source=Source(repo="bench/bench"))
    found = read_tokens(section, open_text(source, make_plan(mine, source.config)))
    for name in ("input_ids", "attention_mask"):
        (task.work / "data" / name).mkdir(parents=True, exist_ok=True)
    for place, ids in enumerate(found):
        np.asarray(ids, "<i8").tofile(task.work / "data" / "input_ids" / f"{place:04}.bin")
        np.ones(len(ids), "<i8").tofile(task.work / "data" / "attention_mask" / f"{place:04}.bin")
    data = {
        "data_dir": str(task.work / "data"),
        "input_names": ["input_ids", "attention_mask"],
        "input_shapes": [[task.sequence], [task.sequence]],
        "input_types": ["int64", "int64"],
    }
    return {"name": "calibration", "load_dataset_config": {"type": "raw_dataset", "params": data}}


def export(task: Task, side: str) -> Made:
    """Run one export and measure it, with all that it starts."""
    if side == "optimum":
        python = str(environment.find("optimum").python)
        command = [python, str(HERE / "optimum_decoder.py"), str(task.checkpoint), str(task.work / "optimum")]
    else:
        file = task.work / f"{side}.yaml"
        file.write_text(yaml.safe_dump(recipe(task, side)))
        out, ram = ["--out", task.work / "out", "--force"], ["--max-ram", "2GB"] if side == "native-gptq" else []
        command = [
            str(each) for each in [BIN / "edgeship", "export", file, "--checkpoint", task.checkpoint, *out, *ram]
        ]
    run = measure(command)
    return Made(run.wall, run.cpu, run.peak_mb)


def size_mb(task: Task, side: str) -> float:
    """Megabytes of the graph and its weights."""
    where = task.work / "optimum" if side == "optimum" else task.work / "out" / side / "onnx"
    return sum(file.stat().st_size for file in where.glob("model.onnx*")) / 1e6


def evaluate(task: Task, sides: Sequence[str], tokens: int) -> dict[str, dict[str, float]]:
    """What each side lost, on the checkpoint's held-out text or the help pages that Python brings."""
    held_out = task.checkpoint / "held-out.txt"
    text = ["--text", held_out] if held_out.is_file() else []
    ours = [side for side in sides if side != "optimum"]
    found: dict[str, dict[str, float]] = {}
    if ours:
        artifacts = [task.work / "out" / side for side in ours]
        command = [BIN / "edgeship", "evaluate", *artifacts, "--reference", task.checkpoint, "--tokens", tokens, *text]
        run = measure([*map(str, command), "--greedy", "0", "--json"])
        found = {each["name"]: each for each in json.loads(run.output)["artifacts"]}
    if "optimum" in sides:
        from graph_loss import graph_loss

        graph = task.work / "optimum" / "model.onnx"
        found["optimum"] = graph_loss(graph, task.checkpoint, held_out if text else None, tokens)
    return found


if __name__ == "__main__":
    main()
