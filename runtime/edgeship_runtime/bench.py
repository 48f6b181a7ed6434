"""What an artifact does on this machine: load time, time to the first token, tokens per second, memory."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from edgeship_runtime import __version__
from edgeship_runtime.answer import Stats
from edgeship_runtime.board import kernels
from edgeship_runtime.console import safe
from edgeship_runtime.cpu import cpu_name, load_average, peak_rss_mb
from edgeship_runtime.engines import formats
from edgeship_runtime.errors import UsageError
from edgeship_runtime.facts import GENERATE
from edgeship_runtime.loading import load
from edgeship_runtime.manifest import locate, read_manifest
from edgeship_runtime.model import Model

if TYPE_CHECKING:
    from edgeship_runtime.encoder import EncoderEngine

_STRIDE = 7919  # a prime: prompts walk the vocabulary without repeating themselves


@dataclass(frozen=True)
class BenchReport:
    """Medians over `repeats` answers to one prompt, each evaluated whole; MB are 10^6 bytes."""

    artifact: str
    engine: str
    kernels: str
    threads: int
    context: int
    prompt_tokens: int
    decode_tokens: int
    repeats: int
    load_s: float
    ttft_s: float
    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    peak_rss_mb: float | None
    """Of this whole process so far."""
    cpu: str
    load_average: float | None
    """Over the minute before the measurement; other work on the machine makes every figure worse."""
    system: str
    python: str
    edgeship_runtime: str

    def to_json(self) -> dict[str, object]:
        """Plain values for `json.dumps`."""
        return asdict(self)

    def table(self) -> str:
        """The report as aligned lines."""
        rss, load = self.peak_rss_mb, self.load_average
        rows = [
            ("artifact", self.artifact),
            ("engine", f"{self.engine}, {self.threads} {'thread' if self.threads == 1 else 'threads'}"),
            ("kernels", self.kernels),
            ("machine", f"{self.cpu}, {self.system}, load {'unknown' if load is None else load}"),
            ("context", f"{self.context} tokens"),
            ("load", f"{self.load_s:.2f} s"),
            (
                "first token" if self.decode_tokens else "answer",
                f"{self.ttft_s:.3f} s after a prompt of {self.prompt_tokens} tokens",
            ),
            ("prefill", f"{self.prefill_tokens_per_s:.1f} tokens/s"),
            ("decode", f"{self.decode_tokens_per_s:.1f} tokens/s over {self.decode_tokens} tokens"),
            ("peak memory", "unknown" if rss is None else f"{rss:.0f} MB"),
        ]
        lines = [f"{name:<12} {value}" for name, value in rows if name != "decode" or self.decode_tokens]
        return "\n".join(
            [*lines, f"median of {self.repeats}; edgeship-runtime {self.edgeship_runtime}, Python {self.python}"]
        )


def measure(
    path: str | Path,
    *,
    context: int | None = None,
    threads: int | None = None,
    prompt_tokens: int = 512,
    decode_tokens: int = 64,
    repeats: int = 3,
    engine: str | None = None,
    options: Mapping[str, Any] | None = None,
    progress: Callable[[str], None] | None = None,
) -> BenchReport:
    """Load the artifact and time `repeats` greedy answers; `context` None: what the measurement needs.

    `engine` and `options` are those of `load`.

    A prompt longer than the context leaves room for is cut to what fits; the report says how long it was.
    `progress` is told what comes next. The load is timed once, files may or may not be in the system's cache.
    Raises what `load` raises, and UsageError for numbers below 1 (`decode_tokens`: 2) or beyond the context.
    """
    for name, value, least in (("prompt", prompt_tokens, 1), ("decode", decode_tokens, 2), ("repeats", repeats, 1)):
        if value < least:
            raise UsageError(f"bench: expected at least {least} for {name}, found {value}")
    say = progress or (lambda _: None)
    before = load_average()
    say("loading")
    longest = read_manifest(locate(path, formats(engine))).model.context_length
    if context is None:
        context = min(prompt_tokens + decode_tokens, longest)
    with load(path, context=context, threads=threads, engine=engine, **(options or {})) as model:
        prompt_tokens = min(prompt_tokens, context - decode_tokens)
        if prompt_tokens < 1:
            raise UsageError(f"bench: {decode_tokens} tokens do not fit into a context of {context} beside a prompt")
        runs = []
        for turn in range(repeats):
            say(f"answer {turn + 1} of {repeats}")
            runs.append(_answer(model, prompt_tokens, decode_tokens))
        return BenchReport(
            artifact=model.manifest.name,
            engine=model.engine.name,
            kernels=kernels(model.engine.name),
            threads=model.engine.threads,
            context=model.engine.context,
            prompt_tokens=prompt_tokens,
            decode_tokens=min(decode_tokens, runs[0].tokens),
            repeats=repeats,
            load_s=round(model.load_s, 3),
            ttft_s=_median([run.ttft_s for run in runs], 4),
            prefill_tokens_per_s=_median([run.prefill_tokens_per_s for run in runs], 1),
            decode_tokens_per_s=_median([run.decode_tokens_per_s for run in runs], 1),
            peak_rss_mb=peak_rss_mb(),
            cpu=safe(cpu_name()),
            load_average=before,
            system=f"{platform.system()} {platform.machine()}",
            python=platform.python_version(),
            edgeship_runtime=__version__,
        )


def _answer(model: Model, prompt_tokens: int, decode_tokens: int) -> Stats:
    model.forget()
    size = model.engine.vocab_size
    prompt = [place * _STRIDE % size for place in range(1, prompt_tokens + 1)]
    if model.manifest.model.task != GENERATE:
        start = time.perf_counter()
        cast("EncoderEngine", model.engine).run([prompt])
        spent = time.perf_counter() - start
        return Stats(prompt_tokens, 0, 0, spent, spent, 0.0, 0)
    # The defaults of the artifact may hold penalties, which cost time; this is about the engine.
    options = model.options(
        temperature=0.0, repetition_penalty=1.0, presence_penalty=0.0, max_tokens=decode_tokens, ignore_eos=True
    )
    return model.generate(prompt, options).stats


def _median(values: list[float], digits: int) -> float:
    return round(statistics.median(values), digits)
