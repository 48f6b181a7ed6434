"""Our llama.cpp engine beside `llama-bench` and llama-cpp-python's own high-level API: same file, same threads.

compare_decode.py FILE.gguf [--bench LLAMA_BENCH] [--threads 2] [--prompt 64] [--tokens 64] [--rounds 4]

Each measurement is a process of its own, and the sides take turns in changing order: what drifts on the machine,
drifts for all. Prints medians over the rounds and the median of the ratios of a round. On a machine with other work
these still scatter by a tenth, so the last lines are measured closer: in one process, in turns of four tokens in random
order, our engine, the loop that llama-bench times (llama_decode and llama_synchronize, random tokens) and the
high-level API's `generate`. Whose copy of the weights is loaded first matters by some per cent: both ways are shown.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from process import machine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--bench", type=Path, help="llama-bench; left out, only the Python sides are compared")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(SIDES[arguments.side](arguments)))
        return
    sides = [*SIDES, *(["llama-bench"] if arguments.bench else [])]
    runs: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
    print(machine())
    for turn in range(arguments.rounds):
        for side in sides if turn % 2 == 0 else sides[::-1]:
            runs[side].append(measure(side, arguments))
    ours = runs["edgeship-runtime"]
    for side, found in runs.items():
        prefill, decode = (statistics.median(values) for values in zip(*found, strict=True))
        ratios = [statistics.median(a[i] / b[i] for a, b in zip(ours, found, strict=True)) for i in (0, 1)]
        print(
            f"{side:<18} prefill {prefill:8.1f} tokens/s, decode {decode:7.2f} tokens/s; "
            f"edgeship-runtime / this: prefill {ratios[0]:.3f}, decode {ratios[1]:.3f}"
        )
    for first in ("edgeship-runtime", "llama-cpp-python"):
        for other, (ratio, ours_speed, speed) in in_turns(arguments, first).items():
            print(
                f"in turns, {TURNS} times {BLOCK} tokens, {first} loaded first: edgeship-runtime {ours_speed:.2f} "
                f"tokens/s, {other} {speed:.2f}, ratio {ratio:.4f}"
            )


TURNS, BLOCK = 60, 4


def in_turns(arguments: argparse.Namespace, first: str) -> dict[str, tuple[float, float, float]]:
    """Median ratio and both median speeds of our engine beside llama-bench's loop and the high-level API."""
    import edgeship_runtime
    from edgeship_runtime.engines.llama_library import library
    from edgeship_runtime.engines.llamacpp import FLASH_ATTENTION, KV_TYPES, _open_context

    lib, threads = library(), arguments.threads
    context = arguments.prompt + TURNS * BLOCK + 2 * BLOCK
    early = open_high_level(arguments, context) if first == "llama-cpp-python" else None
    with edgeship_runtime.load(arguments.file, threads=threads, context=context, engine="llamacpp") as model:
        size = model.engine.vocab_size
        ids = prompt(size, arguments)
        opened = _open_context(model.engine.loaded, context, threads, threads, KV_TYPES["f16"], FLASH_ATTENTION["auto"])
        array = (lib.llama_token * len(ids))(*ids)
        lib.llama_decode(opened.pointer, lib.llama_batch_get_one(array, len(ids)))
        lib.llama_synchronize(opened.pointer)
        answer = model.stream(ids, temperature=0.0, repetition_penalty=1.0, ignore_eos=True)
        next(answer)
        draw = random.Random(0)

        def ours() -> float:
            started, count = time.perf_counter(), 0
            while count < BLOCK:
                count += len(next(answer).token_ids)
            return count / (time.perf_counter() - started)

        def loop() -> float:
            started = time.perf_counter()
            for _ in range(BLOCK):
                array[0] = draw.randrange(size)
                lib.llama_decode(opened.pointer, lib.llama_batch_get_one(array, 1))
                lib.llama_synchronize(opened.pointer)
            return BLOCK / (time.perf_counter() - started)

        theirs = (early or open_high_level(arguments, context)).generate(ids, temp=0.0, repeat_penalty=1.0)
        next(theirs)

        def high_level() -> float:
            started = time.perf_counter()
            for _ in range(BLOCK):
                next(theirs)
            return BLOCK / (time.perf_counter() - started)

        sides = {"": ours, "llama-bench's loop": loop, "llama-cpp-python's generate": high_level}
        speeds: dict[str, list[float]] = {name: [] for name in sides}
        for turn in range(TURNS):
            for name in random.Random(turn).sample(list(sides), len(sides)):
                speeds[name].append(sides[name]())
    own = speeds.pop("")
    return {
        name: (
            statistics.median(a / b for a, b in zip(own, other, strict=True)),
            statistics.median(own),
            statistics.median(other),
        )
        for name, other in speeds.items()
    }


def open_high_level(arguments: argparse.Namespace, context: int) -> Any:
    from llama_cpp import Llama

    threads = arguments.threads
    return Llama(str(arguments.file), n_ctx=context, n_threads=threads, n_threads_batch=threads, verbose=False)


def measure(side: str, arguments: argparse.Namespace) -> tuple[float, float]:
    """Prefill and decode tokens per second of one process."""
    sizes = [("--prompt", arguments.prompt), ("--tokens", arguments.tokens), ("--threads", arguments.threads)]
    if side != "llama-bench":
        words = [word for name, value in sizes for word in (name, str(value))]
        command = [sys.executable, __file__, str(arguments.file), "--side", side, *words]
        prefill, decode = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
        return float(prefill), float(decode)
    common = [str(arguments.bench), "-m", str(arguments.file), "-t", str(arguments.threads), "-r", "1", "-o", "json"]
    speeds = []
    for words in (["-p", arguments.prompt, "-n", 0], ["-p", 0, "-n", arguments.tokens, "-d", arguments.prompt]):
        done = subprocess.run([*common, *map(str, words)], capture_output=True, check=True)
        speeds.append(float(json.loads(done.stdout)[0]["avg_ts"]))
    return speeds[0], speeds[1]


def edgeship_runtime(arguments: argparse.Namespace) -> tuple[float, float]:
    import edgeship_runtime

    context = arguments.prompt + arguments.tokens + 1
    with edgeship_runtime.load(arguments.file, threads=arguments.threads, context=context, engine="llamacpp") as model:
        options = {"temperature": 0.0, "repetition_penalty": 1.0, "ignore_eos": True}
        model.generate([1], max_tokens=2, **options)  # llama-bench warms up too
        model.forget()
        stats = model.generate(prompt(model.engine.vocab_size, arguments), max_tokens=arguments.tokens, **options).stats
        return stats.prefill_tokens_per_s, stats.decode_tokens_per_s


def llama_cpp_python(arguments: argparse.Namespace) -> tuple[float, float]:
    model = open_high_level(arguments, arguments.prompt + arguments.tokens + 1)
    next(model.generate([1], temp=0.0))
    model.reset()
    started = time.perf_counter()
    answer = model.generate(prompt(model.n_vocab(), arguments), temp=0.0, repeat_penalty=1.0)
    next(answer)
    first = time.perf_counter()
    for _ in range(arguments.tokens - 1):
        next(answer)
    return arguments.prompt / (first - started), (arguments.tokens - 1) / (time.perf_counter() - first)


def prompt(vocab: int, arguments: argparse.Namespace) -> list[int]:
    return [place * 7919 % vocab for place in range(1, arguments.prompt + 1)]


SIDES: dict[str, Callable[[argparse.Namespace], tuple[float, float]]] = {
    "edgeship-runtime": edgeship_runtime,
    "llama-cpp-python": llama_cpp_python,
}

if __name__ == "__main__":
    main()
