"""Both formats and GGUF beside llama.cpp's own way (convert to f16, then llama-quantize), in one run.

    make bench-gguf BENCH="--llama-cpp SOURCES --bin BUILD/bin --checkpoint DIR"

SOURCES is a llama.cpp tree (the llama-cpp-python source distribution has one under vendor/), BUILD/bin holds its
llama-quantize. Figures are whole processes, medians over rounds in which every side runs once.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a script: the tests' own modules

from compare import figures, size_mb, warm_page_cache
from process import Run, machine, measure

BIN = Path(sys.executable).parent


def main() -> None:
    arguments = parse()
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        print(
            f"machine: {machine()}\ncheckpoint: {arguments.checkpoint.name}, {size_mb(arguments.checkpoint):.0f} MB\n"
        )
        warm_page_cache(arguments.checkpoint)
        sides = measure_sides(arguments, Path(scratch))
    print(f"{'':26s} {'wall s':>8s} {'CPU s':>8s} {'peak MB':>8s} {'written MB':>11s}")
    for side, found in sides.items():
        print("{:26s} {wall_s:8.1f} {cpu_s:8.1f} {peak_mb:8.0f} {written_mb:11.0f}".format(side, **found))
    report(sides)
    print(f"\nmachine after: {machine()}")
    if arguments.json:
        print(json.dumps(sides))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument(
        "--model", default="qwen2.5-1.5b", help="recipes MODEL-int4, -int8, -q4_k_m; default: %(default)s"
    )
    parser.add_argument("--llama-cpp", type=Path, required=True, help="llama.cpp's sources: convert_hf_to_gguf.py")
    parser.add_argument("--bin", type=Path, required=True, help="directory of llama-quantize")
    parser.add_argument("--types", nargs="+", default=["Q4_0", "Q8_0", "Q4_K_M"])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--scratch", type=Path, help="directory for artifacts (several GB)")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


RECIPES = {"Q4_0": "int4", "Q8_0": "int8", "Q4_K_M": "q4_k_m"}


def measure_sides(arguments: argparse.Namespace, work: Path) -> dict[str, dict[str, float]]:
    f16 = work / "f16.gguf"
    convert = [sys.executable, str(arguments.llama_cpp / "convert_hf_to_gguf.py"), str(arguments.checkpoint)]
    commands = {
        "ours, onnx and gguf": (ours(arguments, work, "int4", "onnx", "gguf"), work / "ours"),
        "ours, onnx alone": (ours(arguments, work, "int4", "onnx"), work / "ours"),
        "llama.cpp convert to f16": ([*convert, "--outtype", "f16", "--outfile", str(f16)], f16),
    }
    for kind in arguments.types:
        commands[f"ours, {kind}"] = (ours(arguments, work, RECIPES[kind], "gguf"), work / "ours")
        out = work / f"{kind}.gguf"
        commands[f"llama-quantize {kind}"] = ([str(arguments.bin / "llama-quantize"), str(f16), str(out), kind], out)
    runs: dict[str, list[Run]] = {side: [] for side in commands}
    written: dict[str, float] = {}
    for _ in range(arguments.rounds):
        for side, (command, product) in commands.items():
            runs[side].append(measure(command))
            written[side] = product.stat().st_size / 1e6 if product.is_file() else size_mb(product)
            if product != f16:
                shutil.rmtree(product, ignore_errors=True)
                product.unlink(missing_ok=True)
    return {side: figures(found) | {"written_mb": written[side]} for side, found in runs.items()}


def ours(arguments: argparse.Namespace, work: Path, scheme: str, *formats: str) -> list[str]:
    chosen = [part for form in formats for part in ("--format", form)]
    if scheme.startswith("int"):  # as llama-quantize rounds without an importance matrix
        chosen += ["--algorithm", "rtn"]
    chosen += ["--no-fidelity"]  # nobody else asks the float model anything
    return [
        str(BIN / "edgeship"), "export", f"{arguments.model}-{scheme}", "--checkpoint", str(arguments.checkpoint),
        "--out", str(work / "ours"), "--max-ram", "600MB", *chosen, "--force", "--json",
    ]  # fmt: skip


def report(sides: dict[str, dict[str, float]]) -> None:
    both, convert = sides["ours, onnx and gguf"]["wall_s"], sides["llama.cpp convert to f16"]
    alone = max(sides["ours, onnx alone"]["wall_s"], sides.get("ours, Q4_0", {"wall_s": 0.0})["wall_s"])
    print(f"\nboth formats over the slower alone: {both / alone:.2f} of the wall time")
    for side, found in sides.items():
        kind = side.removeprefix("llama-quantize ")
        if kind != side:
            wall, cpu = (sides[f"ours, {kind}"][k] / (convert[k] + found[k]) for k in ("wall_s", "cpu_s"))
            print(f"{kind}: ours takes {wall:.2f} of llama.cpp's wall time, {cpu:.2f} of its CPU seconds")


if __name__ == "__main__":
    main()
