"""What several rows at once are worth, in the engine and in the server: tokens/s of all clients together.

python tests/bench/batching.py artifacts/qwen2.5-0.5b-int4

First each engine alone: M tokens of one sequence in one run beside M runs of one token, the fastest of each; that is
what a batch of M sequences can win, their attention left out. Then a server of each format, with as many lanes as
clients and with one lane, in turns. About four minutes on two cores; the machine should have nothing else to do.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import httpx

import edgeship_runtime
from load import server
from process import machine

FORMS = ("onnx", "gguf")
ROWS = (2, 4, 8)
CLIENTS = (1, 2, 4, 8)
PROMPT, TOKENS = 64, 48
WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "red", "blue", "green", "cat", "dog", "bird")


def rows(artifact: Path, threads: int | None, repeats: int) -> dict[str, Any]:
    """Milliseconds of a run over one token, and how many times as many tokens/s a run over M of them gives."""
    with edgeship_runtime.load(artifact, threads=threads, context=1024) as model:
        engine = model.engine
        engine.evaluate(list(range(5, 5 + PROMPT)))

        def run(count: int) -> float:
            started = time.perf_counter()
            engine.evaluate(list(range(9, 9 + count)))
            taken = time.perf_counter() - started
            engine.truncate(PROMPT)
            return taken

        best = {count: min(run(count) for _ in range(6 * repeats)) for count in (1, *ROWS)}
        wins = {f"{count}_rows_win": round(count * best[1] / best[count], 2) for count in ROWS}
        one = {"engine": engine.name, "threads": engine.threads, "one_ms": round(1e3 * best[1], 2)}
        return {**one, **wins}


async def clients(url: str, count: int) -> tuple[float, float]:
    """Tokens/s of so many clients together, and the mean seconds to the first."""

    async def one(client: httpx.AsyncClient, number: int) -> float:
        prompt = " ".join(WORDS[(number + place) % len(WORDS)] for place in range(PROMPT))
        body = {"model": "served", "prompt": f"{time.time_ns()} {prompt}", "max_tokens": TOKENS, "temperature": 0}
        started, first = time.perf_counter(), 0.0
        asked = {**body, "ignore_eos": True, "stream": True}
        async with client.stream("POST", "/v1/completions", json=asked) as response:
            response.raise_for_status()
            async for _ in response.aiter_bytes():
                first = first or time.perf_counter() - started
        return first

    async with httpx.AsyncClient(base_url=url, timeout=300) as client:
        started = time.perf_counter()
        firsts = await asyncio.gather(*(one(client, number) for number in range(count)))
        return count * TOKENS / (time.perf_counter() - started), sum(firsts) / count


def served(artifact: Path, threads: int | None, repeats: int) -> list[dict[str, Any]]:
    """Every number of clients, together and one after the other, in turns."""
    options = [] if threads is None else [f"--threads={threads}"]
    together = ["--parallel", str(max(CLIENTS)), "--context", "512", *options]
    alone = ["--parallel", "1", "--context", "512", *options]
    found = []
    with (
        server(artifact, *together, name="served") as (one_url, _),
        server(artifact, *alone, name="served") as (other_url, _),
    ):
        for url in (one_url, other_url):
            asyncio.run(clients(url, 1))
        for count in CLIENTS:
            taken: dict[str, list[tuple[float, float]]] = {one_url: [], other_url: []}
            for turn in range(repeats):
                for url in sorted(taken, reverse=bool(turn % 2)):
                    taken[url].append(asyncio.run(clients(url, count)))
            ratios = [a / b for (a, _), (b, _) in zip(taken[one_url], taken[other_url], strict=True)]
            row = {"clients": count, "ratio": round(median(ratios), 2)}
            for name, url in (("together", one_url), ("in_turn", other_url)):
                row[f"{name}_tokens_per_s"] = round(median(speed for speed, _ in taken[url]), 1)
                row[f"{name}_first_s"] = round(median(first for _, first in taken[url]), 2)
            found.append(row)
    return found


def main() -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path, help="with onnx/ and gguf/")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--repeats", type=int, default=2)
    args = parser.parse_args()
    print(machine(), flush=True)
    for form in FORMS:
        print(json.dumps(rows(args.artifact / form, args.threads, args.repeats)), flush=True)
    for form in FORMS:
        for row in served(args.artifact / form, args.threads, args.repeats):
            print(json.dumps({"format": form, **row}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
