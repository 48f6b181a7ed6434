"""Many streaming clients at once against `edgeship-runtime serve`: is every stream's text right, does memory stay?

python tests/bench/load.py artifacts/tiny-int4 --clients 50 --duration 300

The artifact is the embedded tiny model; each of its formats is served in turn, and the duration is that of all. Right
is the text that a question gets when it is asked alone; only questions are asked whose every token leads by far, so
that kernels for several rows cannot turn them. Exits with 1 when a text is wrong, a status other than 200 is seen below
the queue's limit or other than 200 and 429 beyond it, or memory grows by more than 5 % after the warm-up.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import httpx

WARM_UP = 0.2  # of the duration
MOST_GROWTH = 1.05
LEAD = 1.0  # nats between the best two tokens
BURST = 60  # more requests than the queue takes, beside the clients
WORDS = ("hot", "tall", "fast", "big", "old", "happy", "up", "wet", "early", "hard", "light", "full", "open", "near")
NAMES = ("Ben", "Mia", "Noah", "Ella", "Tim", "Yuki", "Felix", "Lena")
QUESTIONS = [
    *(f"What is the opposite of {word}?" for word in WORDS),
    *(f"What is {a} plus {b}?" for a, b in itertools.product(range(2, 8), range(3, 9))),
    *(f"My name is {name}. What is my name?" for name in NAMES),
    *(f"What is the double of {number}?" for number in range(2, 12)),
]


@dataclass
class Tally:
    """What the clients saw."""

    statuses: Counter[int] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    """Texts that are not the right ones, and streams that ended without an end."""
    first_s: list[float] = field(default_factory=list)
    """Seconds to the first byte of the body, of each stream."""
    tokens: int = 0


@contextmanager
def server(artifact: Path, *options: str, name: str = "tiny") -> Generator[tuple[str, int], None, None]:
    """Address and process id of a server on a free port."""
    command = [sys.executable, "-m", "edgeship_runtime", "serve", f"{name}={artifact}", "--port", "0"]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [*command, "--requests-per-minute", "0", *options], stdout=subprocess.PIPE, stderr=log
        )
        try:
            yield _address(process, log), process.pid
        finally:
            process.terminate()
            process.wait(30)
    if process.returncode:
        raise SystemExit(f"the server ended with {process.returncode}")


def _address(process: subprocess.Popen[bytes], log: Any) -> str:
    for _ in range(600):
        log.seek(0)
        line = log.readline().decode().strip()
        if line.startswith("serving ") or process.poll() is not None:
            break
        time.sleep(0.05)
    if not line.startswith("serving "):
        raise SystemExit(f"the server did not start: {line}")
    return str(line.rpartition(" ")[2])


def rss_mb(pid: int) -> float:
    """Resident memory of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) * 1024 / 1e6


def body(question: str, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}]
    return {"model": "tiny", "messages": messages, "temperature": 0, "max_tokens": 48, **more}


def right_answers(url: str, most: int) -> dict[str, str]:
    """Questions and their answers, each asked alone; those where two tokens come close are left out."""
    answers = {}
    with httpx.Client(base_url=url, timeout=60) as client:
        for question in QUESTIONS:
            asked = body(question, logprobs=True, top_logprobs=2)
            choice = client.post("/v1/chat/completions", json=asked).raise_for_status().json()["choices"][0]
            tops = [[top["logprob"] for top in each["top_logprobs"]] for each in choice["logprobs"]["content"]]
            if choice["finish_reason"] == "stop" and all(best - second >= LEAD for best, second in tops):
                answers[question] = choice["message"]["content"]
            if len(answers) == most:
                break
    if len(answers) < 10:
        raise SystemExit(f"only {len(answers)} questions have clear answers: is this the embedded tiny model?")
    return answers


async def ask(client: httpx.AsyncClient, question: str, right: str, tally: Tally) -> int:
    """Ask one question in a stream and compare; return the status."""
    started, first, text, ended = time.perf_counter(), 0.0, "", False
    async with client.stream("POST", "/v1/chat/completions", json=body(question, stream=True)) as response:
        tally.statuses[response.status_code] += 1
        async for line in response.aiter_lines():
            first = first or time.perf_counter() - started
            if line.startswith("data: {"):
                event = json.loads(line[6:])
                for choice in event.get("choices", []):
                    text += choice["delta"].get("content") or ""
                    tally.tokens += 1
            ended = ended or line == "data: [DONE]"
    if response.status_code == 200:
        tally.first_s.append(first)
        if text != right or not ended:
            tally.wrong.append(f"{question} {text!r} instead of {right!r}, {'ended' if ended else 'not ended'}")
    return response.status_code


async def load(url: str, pid: int, answers: dict[str, str], clients: int, seconds: float) -> tuple[Tally, list[float]]:
    """Keep so many clients asking; what they saw, and the server's memory every half second."""
    tally, memory = Tally(), []
    end = time.perf_counter() + seconds
    questions = itertools.cycle(answers.items())

    async def one() -> None:
        async with httpx.AsyncClient(base_url=url, timeout=120) as client:
            while time.perf_counter() < end:
                await ask(client, *next(questions), tally)

    async def watch() -> None:
        while time.perf_counter() < end:
            memory.append(rss_mb(pid))
            await asyncio.sleep(0.5)

    await asyncio.gather(watch(), *(one() for _ in range(clients)))
    return tally, memory


async def overload(url: str, answers: dict[str, str], requests: int) -> Tally:
    """So many requests in one moment."""
    tally, questions = Tally(), itertools.cycle(answers.items())
    limits = httpx.Limits(max_connections=requests)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as client:
        await asyncio.gather(*(ask(client, *next(questions), tally) for _ in range(requests)))
    return tally


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


def measure(artifact: Path, clients: int, seconds: float, questions: int, options: list[str]) -> dict[str, Any]:
    """Load one format, and look whether all is as it should be."""
    limit = max(clients, 8)
    with server(artifact, "--queue-limit", str(limit), *options) as (url, pid):
        answers = right_answers(url, questions)
        tally, memory = asyncio.run(load(url, pid, answers, clients, seconds))
        beyond = asyncio.run(overload(url, answers, limit + BURST))
        final = asyncio.run(overload(url, answers, 1))
    warm = int(WARM_UP * len(memory))
    before, after = median(memory[warm // 2 : warm + 1]), max(memory[warm:])
    checks = {
        "every text is right": not tally.wrong and not beyond.wrong and not final.wrong,
        "no status but 200": set(tally.statuses) == {200} and set(final.statuses) == {200},
        "beyond the queue only 429": set(beyond.statuses) == {200, 429},
        "memory stays": after <= MOST_GROWTH * before,
    }
    return {
        "artifact": str(artifact),
        "clients": clients,
        "seconds": round(seconds, 1),
        "questions": len(answers),
        "streams": tally.statuses.total(),
        "statuses": dict(tally.statuses),
        "wrong": len(tally.wrong) + len(beyond.wrong) + len(final.wrong),
        "examples": [*tally.wrong, *beyond.wrong, *final.wrong][:3],
        "events_per_s": round(tally.tokens / seconds, 1),
        "first_byte_p50_ms": round(1e3 * percentile(tally.first_s, 0.5), 1),
        "first_byte_p99_ms": round(1e3 * percentile(tally.first_s, 0.99), 1),
        "rss_mb_warm": round(before, 1),
        "rss_mb_most": round(after, 1),
        "rss_growth": round(after / before - 1, 4),
        "beyond_the_queue": dict(beyond.statuses),
        "checks": checks,
        "ok": all(checks.values()),
    }


def main() -> int:
    """0 when all is as it should be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path, help="of the tiny model, with onnx/ and gguf/")
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--duration", type=float, default=300, metavar="S", help="seconds of all formats together")
    parser.add_argument("--questions", type=int, default=len(QUESTIONS), metavar="N", help="different ones at most")
    parser.add_argument("--format", action="append", choices=["onnx", "gguf"], help="this alone; repeatable")
    parser.add_argument("--option", action="append", default=[], metavar="TEXT", help="for `serve`; repeatable")
    args = parser.parse_args()
    formats = args.format or ["onnx", "gguf"]
    found = []
    for form in formats:
        found.append(
            measure(args.artifact / form, args.clients, args.duration / len(formats), args.questions, args.option)
        )
        print(json.dumps(found[-1], indent=1), flush=True)
    return 0 if all(each["ok"] for each in found) else 1


if __name__ == "__main__":
    sys.exit(main())
