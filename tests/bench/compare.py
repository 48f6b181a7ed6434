"""Export and runtime beside onnxruntime-genai on the same checkpoint, in one run: `make bench`.

Each pair of runs is made one after the other, ours and theirs in turn, and figures are medians over the pairs, so
that a machine that drifts does not favour a side. Both round to nearest and ask the float model nothing, as the builder
does: ours is run with --algorithm rtn --no-fidelity, and a line below says what it takes with the float model's
predictions for the device to compare with. Ratios are theirs over ours for cost, ours over theirs for speed: above 1 is
better.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a script: the tests' own modules

from process import Run, machine, measure, median

HERE = Path(__file__).parent
BIN = Path(sys.executable).parent


def main() -> None:
    arguments = parse()
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        work = Path(scratch)
        checkpoint = arguments.checkpoint or random_checkpoint(arguments.recipe, work)
        print(f"machine: {machine()}")
        print(f"checkpoint: {checkpoint.name} for {arguments.recipe}, {size_mb(checkpoint):.0f} MB\n")
        report = {"machine": machine(), "recipe": arguments.recipe}
        report["export"] = compare_exports(arguments, checkpoint, work)
        if not arguments.no_runtime:
            report["runtime"] = compare_runtimes(arguments, work / "ours" / arguments.recipe / "onnx")
        print(f"\nmachine after: {machine()}")
    if arguments.json:
        print(json.dumps(report))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="qwen2.5-0.5b-int4", help="default: %(default)s")
    parser.add_argument("--checkpoint", type=Path, help="a directory; without it, random weights in the recipe's shape")
    parser.add_argument("--max-ram", default="600MB", help="default: %(default)s")
    parser.add_argument("--pairs", type=int, default=3, help="runs of each side; default: %(default)s")
    parser.add_argument("--threads", type=int, default=2, help="of both runtimes; default: %(default)s")
    parser.add_argument("--prompt-tokens", type=int, default=512, help="default: %(default)s")
    parser.add_argument("--decode-tokens", type=int, default=64, help="default: %(default)s")
    parser.add_argument(
        "--no-peer", action="store_true", help="our export only (a checkpoint the peer's memory cannot hold)"
    )
    parser.add_argument("--no-runtime", action="store_true", help="export only")
    parser.add_argument("--scratch", type=Path, help="directory for checkpoints and artifacts (several GB)")
    parser.add_argument("--json", action="store_true", help="the report as one JSON object at the end")
    return parser.parse_args()


def random_checkpoint(name: str, work: Path) -> Path:
    from edgeship import catalog
    from random_checkpoint import write

    return write(catalog.find(name), work / "checkpoint")


def compare_exports(arguments: argparse.Namespace, checkpoint: Path, work: Path) -> dict[str, dict[str, float]]:
    ours, theirs = work / "ours", work / "theirs"
    own = [
        str(BIN / "edgeship"), "export", arguments.recipe, "--checkpoint", str(checkpoint), "--out", str(ours),
        "--max-ram", arguments.max_ram, "--format", "onnx", "--force", "--json", "--algorithm", "rtn",
    ]  # fmt: skip
    peer = [
        sys.executable,
        "-m",
        "onnxruntime_genai.models.builder",
        "-m",
        str(checkpoint),
        "-o",
        str(theirs),
        "-p",
        "int4",
        "-e",
        "cpu",
    ]
    warm_page_cache(checkpoint)
    runs: dict[str, list[Run]] = {"edgeship": [], "genai builder": [], "edgeship, float": []}
    for _ in range(arguments.pairs):
        runs["edgeship, float"].append(measure(own))
        runs["edgeship"].append(measure([*own, "--no-fidelity"]))
        if not arguments.no_peer:
            shutil.rmtree(theirs, ignore_errors=True)
            runs["genai builder"].append(measure(peer))
    print("both round to nearest (--algorithm rtn --no-fidelity; float: with the float model's predictions)")
    print(f"export                wall s    CPU s   peak MB   size MB   ({arguments.pairs} runs each, medians)")
    report = {}
    for side, path in (("edgeship", ours), ("genai builder", theirs), ("edgeship, float", ours)):
        if runs[side]:
            report[side] = figures(runs[side]) | {"size_mb": size_mb(path)}
            print("{:18s} {wall_s:9.2f} {cpu_s:8.2f} {peak_mb:9.0f} {size_mb:9.0f}".format(side, **report[side]))
    if runs["genai builder"]:
        pairs = list(zip(runs["edgeship"], runs["genai builder"], strict=True))
        wall, cpu, peak = (
            median([getattr(b, k) / getattr(a, k) for a, b in pairs]) for k in ("wall", "cpu", "peak_mb")
        )
        report["ratio"] = {"wall": wall, "cpu": cpu, "peak": peak}
        print(f"theirs over ours   {wall:9.2f} {cpu:8.2f} {peak:9.2f}")
    return report


def figures(runs: list[Run]) -> dict[str, float]:
    return {
        "wall_s": median([r.wall for r in runs]),
        "cpu_s": median([r.cpu for r in runs]),
        "peak_mb": max(r.peak_mb for r in runs),
    }


def compare_runtimes(arguments: argparse.Namespace, artifact: Path) -> dict[str, dict[str, float]]:
    options = [str(arguments.threads), str(arguments.prompt_tokens), str(arguments.decode_tokens)]
    sides: dict[str, list[dict[str, float]]] = {"edgeship-runtime": [], "onnxruntime-genai": []}
    for _ in range(arguments.pairs):
        for side, results in sides.items():
            run = measure([sys.executable, str(HERE / "generate.py"), side, str(artifact), *options])
            results.append(json.loads(run.output) | {"peak_mb": run.peak_mb})
    print(f"\nsame artifact, {arguments.threads} threads   load s   prefill/s   decode/s   end RSS MB   peak MB")
    report = {}
    for side, results in sides.items():
        report[side] = {k: median([r[k] for r in results]) for k in results[0]}
        row = "{:26s} {load_s:8.2f} {prefill:11.1f} {decode:10.2f} {rss_mb:12.0f} {peak_mb:9.0f}"
        print(row.format(side, **report[side]))
    ratios = {
        k: median([a[k] / b[k] for a, b in zip(*sides.values(), strict=True)]) for k in report["edgeship-runtime"]
    }
    report["ratio"] = {k: v if k in ("prefill", "decode") else 1 / v for k, v in ratios.items()}
    print(
        "{:26s} {load_s:8.2f} {prefill:11.2f} {decode:10.2f} {rss_mb:12.2f} {peak_mb:9.2f}".format(
            "ratio (above 1 is better)", **report["ratio"]
        )
    )
    report["in turns"] = {k: median([t[k] for t in turns(artifact, arguments)]) for k in ("ours", "theirs", "ratio")}
    print(
        "decode in turns, in one process: {ours:.2f} and {theirs:.2f} tokens/s, ratio {ratio:.3f}".format(
            **report["in turns"]
        )
    )
    return report


def turns(artifact: Path, arguments: argparse.Namespace) -> list[dict[str, float]]:
    """Decode speeds where both take turns, each side loaded first as often as the other."""
    return [
        json.loads(
            measure([sys.executable, str(HERE / "turns.py"), str(artifact), str(arguments.threads), side]).output
        )
        for _ in range(arguments.pairs)
        for side in ("ours", "theirs")
    ]


def warm_page_cache(checkpoint: Path) -> None:
    for path in checkpoint.glob("*.safetensors"):
        with path.open("rb") as f:
            while f.read(1 << 24):
                pass


def size_mb(path: Path) -> float:
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file()) / 1e6


if __name__ == "__main__":
    main()
