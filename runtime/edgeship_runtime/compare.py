"""Two artifacts, or two engines, side by side: the same prompts, then the same measurements, each in its own process.

A process of its own for each side makes load time and memory honest. For the prompts the first side answers greedily
and the second is given the same tokens: so one difference does not decide all that come after it.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, TYPE_CHECKING, Any

from edgeship_runtime.engines import formats
from edgeship_runtime.errors import EdgeshipRuntimeError, EngineError, ResourceError, UsageError
from edgeship_runtime.facts import GENERATE
from edgeship_runtime.info import describe
from edgeship_runtime.manifest import locate, read_manifest

if TYPE_CHECKING:
    from edgeship_runtime.model import Model

PROMPTS = (
    "The capital of France is",
    "What is the opposite of hot?",
    "def fibonacci(n):\n",
    "春天来了，",
)
"""Texts to continue where neither side has golden prompts."""

_ORDER = (0, 1, 1, 0)  # sides in the order they are measured: what drifts meanwhile, drifts for both
_MAX_TOKENS = 4096
_SHOWN = 5  # differences in the table


@dataclass(frozen=True)
class Side:
    """One side: the better load time and the means of the other figures of two processes; MB are 10^6 bytes."""

    artifact: str
    engine: str
    threads: int
    size_mb: float
    load_s: float
    ttft_s: float
    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    peak_rss_mb: float | None


@dataclass(frozen=True)
class Difference:
    """A position where the second side chose another token; `gap_std`: the first side's best two logits apart."""

    prompt: str
    position: int
    tokens: tuple[int, int]
    gap_std: float


@dataclass(frozen=True)
class Closeness:
    """Logits of the second side against the first; errors plain, and in standard deviations of the logits (`_std`)."""

    prompts: int
    same_ids: int | None
    """Prompts whose text became the same token ids on both sides; None where prompts were given as ids."""
    positions: int
    equal: int
    max_error: float
    mean_error: float
    max_error_std: float
    mean_error_std: float
    differences: tuple[Difference, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """What `compare` found."""

    first: Side
    second: Side
    closeness: Closeness

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dumps`."""
        return asdict(self)

    def table(self) -> str:
        """The comparison as aligned lines, then where tokens differ."""
        a, b, near = self.first, self.second, self.closeness
        rows = [
            ("artifact", a.artifact, b.artifact),
            ("engine", a.engine, b.engine),
            ("threads", str(a.threads), str(b.threads)),
            ("size", f"{a.size_mb:.1f} MB", f"{b.size_mb:.1f} MB"),
            ("load", f"{a.load_s:.2f} s", f"{b.load_s:.2f} s"),
            ("first token", f"{a.ttft_s:.3f} s", f"{b.ttft_s:.3f} s"),
            ("prefill", *(f"{side.prefill_tokens_per_s:.1f} tokens/s" for side in (a, b))),
            ("decode", *(f"{side.decode_tokens_per_s:.1f} tokens/s" for side in (a, b))),
            ("peak memory", *(f"{side.peak_rss_mb or 0:.0f} MB" for side in (a, b))),
        ]
        width = max(len(first) for _, first, _ in rows)
        lines = [f"{name:<12} {first:<{width}}  {second}" for name, first, second in rows]
        if near.same_ids is not None:
            lines.append(f"{'prompts':<12} {near.same_ids} of {near.prompts} have the same token ids")
        lines += [
            f"{'tokens':<12} {near.equal} of {near.positions} the same, in {near.prompts} prompts",
            f"{'logits':<12} apart by {near.max_error:.4f} at most and {near.mean_error:.5f} on average "
            f"({near.max_error_std:.3f} and {near.mean_error_std:.4f} deviations)",
        ]
        lines += [
            f"  {each.prompt}, position {each.position}: {each.tokens[0]} and {each.tokens[1]}, "
            f"best two {each.gap_std:.4f} deviations apart"
            for each in near.differences[:_SHOWN]
        ]
        more = len(near.differences) - _SHOWN
        return "\n".join([*lines, *([f"  and {more} more"] if more > 0 else [])])


def compare(
    first: str | Path,
    second: str | Path,
    *,
    engines: Sequence[str | None] = (None, None),
    threads: int | None = None,
    prompts: Sequence[str] = (),
    tokens: int = 16,
    prompt_tokens: int = 128,
    decode_tokens: int = 32,
    repeats: int = 3,
    context: int | None = None,
    options: Mapping[str, Any] | None = None,
    progress: Callable[[str], None] | None = None,
) -> Comparison:
    """Compare two artifacts; `engines` names one for each, `options` go to both.

    `prompts` are texts to continue by `tokens` tokens each; without them those of an artifact's acceptance test are
    taken, or a few texts. The other numbers are those of `bench.measure`. Raises what loading either side raises.
    """
    if not 1 <= tokens <= _MAX_TOKENS:
        raise UsageError(f"compare: expected 1 to {_MAX_TOKENS} tokens, found {tokens}")
    say = progress or (lambda _: None)
    places = [locate(path, formats(engine)) for path, engine in zip((first, second), engines, strict=True)]
    for place in places:
        if (task := read_manifest(place).model.task) != GENERATE:
            raise UsageError(f"{place} is for {task}; compare is for text generation")
    common = {"threads": threads, "context": context, "options": dict(options or {})}
    jobs = [{"artifact": str(at), "engine": engine, **common} for at, engine in zip(places, engines, strict=True)]
    say("the same prompts")
    with TemporaryDirectory(prefix="edgeship-compare-") as folder:
        work = {"prompts": _prompts(places, prompts), "tokens": tokens, "logits": str(Path(folder) / "logits")}
        answers = _ask({**jobs[0], **work})
        found = _ask({**jobs[1], **work, **answers})
    speeds: tuple[list[Any], list[Any]] = ([], [])
    for turn, side in enumerate(_ORDER):
        say(f"measurement {turn + 1} of {len(_ORDER)}")
        numbers = {"prompt_tokens": prompt_tokens, "decode_tokens": decode_tokens, "repeats": repeats}
        speeds[side].append(_ask({**jobs[side], "measure": numbers}))
    differences = tuple(
        Difference(prompt, position, (int(a), int(b)), gap) for prompt, position, (a, b), gap in found["differences"]
    )
    first_side, second_side = (_side(place, runs) for place, runs in zip(places, speeds, strict=True))
    return Comparison(first_side, second_side, Closeness(**{**found, "differences": differences}))


def _prompts(places: Sequence[Path], texts: Sequence[str]) -> list[dict[str, Any]]:
    """Names with texts or token ids: those asked for, the golden ones of a sealed artifact, or PROMPTS."""
    if not texts:
        from edgeship_runtime.acceptance import GOLDEN, read_golden

        for place in places:
            manifest = read_manifest(place)
            if GOLDEN in manifest.files:
                cases = read_golden(place, manifest).cases
                return [{"name": case.name, "ids": list(case.prompt)} for case in cases]
    return [{"name": json.dumps(text[:30], ensure_ascii=False), "text": text} for text in texts or PROMPTS]


def _side(place: Path, runs: Sequence[Mapping[str, Any]]) -> Side:
    def mean(name: str) -> float:
        return round(statistics.fmean(run[name] for run in runs), 4)

    peaks = [run["peak_rss_mb"] for run in runs]
    return Side(
        artifact=str(place),
        engine=runs[0]["engine"],
        threads=runs[0]["threads"],
        size_mb=describe(place)["size_mb"],
        load_s=min(run["load_s"] for run in runs),
        ttft_s=mean("ttft_s"),
        prefill_tokens_per_s=mean("prefill_tokens_per_s"),
        decode_tokens_per_s=mean("decode_tokens_per_s"),
        peak_rss_mb=None if None in peaks else max(peaks),
    )


def _ask(job: Mapping[str, Any]) -> Any:
    """Give a job to a process of its own (see `_work`); raise what it raised."""
    command = [sys.executable, "-m", "edgeship_runtime.compare"]
    here = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        command,
        input=json.dumps(job),
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONPATH": here},
        check=False,
    )
    if done.returncode < 0:
        hint = "memory may have run out: a smaller context needs less"
        raise ResourceError(f"{job['artifact']}: the process was ended by signal {-done.returncode}", hint=hint)
    try:
        value = json.loads(done.stdout)
    except ValueError:
        last = (done.stderr.strip().splitlines() or ["nothing was said"])[-1]
        raise EdgeshipRuntimeError(f"{job['artifact']}: the process failed: {last}") from None
    if "error" in value:
        said = value["error"]
        kinds = {kind.kind: kind for kind in EdgeshipRuntimeError.__subclasses__()}
        raise kinds.get(said["kind"], EdgeshipRuntimeError)(said["message"], hint=said["hint"])
    return value


def _work(job: Mapping[str, Any]) -> dict[str, Any]:
    """What a process does: measure, answer the prompts and keep the logits, or follow answers and compare."""
    common = {"engine": job["engine"], "threads": job["threads"], "context": job["context"]}
    if "measure" in job:
        from edgeship_runtime.bench import measure

        return measure(job["artifact"], **common, options=job["options"], **job["measure"]).to_json()
    from edgeship_runtime.loading import load

    with load(job["artifact"], **common, **job["options"]) as model:
        if "answers" in job:
            with Path(job["logits"]).open("rb") as file:
                return _follow(model, job, file)
        with Path(job["logits"]).open("wb") as file:
            answers = [_answer(model, _ids(model, prompt), job["tokens"], file) for prompt in job["prompts"]]
        return {"answers": answers, "vocab_size": model.engine.vocab_size}


def _ids(model: Model, prompt: Mapping[str, Any]) -> list[int]:
    return list(prompt["ids"]) if "ids" in prompt else model.encode(prompt["text"])


def _answer(model: Model, ids: list[int], count: int, file: IO[bytes]) -> dict[str, Any]:
    """The likeliest tokens, up to an end token; the logits behind them go to `file`, float32 [tokens, vocab]."""
    engine, tokens, new = model.engine, list[int](), ids
    engine.truncate(0)
    while True:
        logits = engine.evaluate(new)
        file.write(logits.tobytes())
        tokens.append(int(logits.argmax()))
        if len(tokens) == count or tokens[-1] in model.manifest.model.eos_token_ids:
            return {"ids": ids, "tokens": tokens}
        new = tokens[-1:]


def _follow(model: Model, job: Mapping[str, Any], file: IO[bytes]) -> dict[str, Any]:
    """Evaluate the other side's prompts and tokens, and compare with its logits in `file`."""
    import numpy as np

    columns = min(job["vocab_size"], model.engine.vocab_size)
    errors: list[tuple[float, float, float]] = []  # largest, mean, and the deviation of the logits
    differences = []
    for prompt, answer in zip(job["prompts"], job["answers"], strict=True):
        model.engine.truncate(0)
        new = answer["ids"]
        for position, token in enumerate(answer["tokens"]):
            mine = model.engine.evaluate(new)
            theirs = np.fromfile(file, np.float32, count=job["vocab_size"])
            apart = np.abs(mine[:columns] - theirs[:columns])
            errors.append((float(apart.max()), float(apart.mean()), float(theirs.std()) or 1.0))
            if (chosen := int(mine.argmax())) != token:
                best, next_best = np.partition(theirs, -2)[:-3:-1]
                gap = float(best - next_best) / errors[-1][2]
                differences.append((prompt["name"], position, (token, chosen), round(gap, 5)))
            new = [token]
    if not np.isfinite(errors).all():
        raise EngineError("logits are not numbers", hint="check both sides with `edgeship-runtime verify`")
    same = [_ids(model, prompt) == answer["ids"] for prompt, answer in zip(job["prompts"], job["answers"], strict=True)]
    texts = any("text" in prompt for prompt in job["prompts"])
    return {
        "prompts": len(job["prompts"]),
        "same_ids": sum(same) if texts else None,
        "positions": len(errors),
        "equal": len(errors) - len(differences),
        "max_error": round(max(largest for largest, _, _ in errors), 6),
        "mean_error": round(statistics.fmean(mean for _, mean, _ in errors), 6),
        "max_error_std": round(max(largest / std for largest, _, std in errors), 6),
        "mean_error_std": round(statistics.fmean(mean / std for _, mean, std in errors), 6),
        "differences": differences,
    }


def _main() -> int:
    try:
        value = _work(json.load(sys.stdin))
    except EdgeshipRuntimeError as error:
        value = {"error": error.to_json()}
    json.dump(value, sys.stdout)
    return 0


if __name__ == "__main__":
    raise SystemExit(_main())
