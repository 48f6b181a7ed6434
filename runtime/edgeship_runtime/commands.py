"""What the commands do, but for `chat`; each takes parsed arguments and returns an exit code."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from edgeship_runtime.console import Progress, print_json, safe, visible
from edgeship_runtime.errors import UsageError

if TYPE_CHECKING:
    from edgeship_runtime.answer import Result, Stats, Stream
    from edgeship_runtime.model import Model

_MAX_PROMPT = 1 << 26  # bytes from standard input: more than any context holds
_SAMPLING = (
    "max_tokens",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "seed",
    "stop",
)
_GREEDY = {"temperature": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0}


def run(args: argparse.Namespace) -> int:
    """Answer one prompt on standard output."""
    options = conversation_options(args)
    if args.raw and (args.system is not None or args.think is not None):
        names = "--system, --preset, --think and --no-think"
        raise UsageError(f"--raw has no chat template for {names}", hint="leave out --raw")
    text = _read_prompt() if args.prompt == "-" else args.prompt
    if not text:
        raise UsageError("the prompt is empty", hint='give some text: edgeship-runtime run ARTIFACT "Hello"')
    from edgeship_runtime.loading import load

    with load(args.artifact, context=args.context, threads=args.threads, **engine_options(args)) as model:
        prompt: Any = text if args.raw else [*system_message(args.system), {"role": "user", "content": text}]
        stream = model.stream(prompt, enable_thinking=args.think, **options)
        with stream:
            result = finish(stream) if args.json else show_answer(stream)
        if args.json:
            print_json({"artifact": str(model.directory), **result.to_json()})
    if args.stats:
        print(stats_line(result.stats), file=sys.stderr)
    if result.finish_reason == "context" and not args.json:
        print("the context is full: the answer ends here; a larger --context leaves more room", file=sys.stderr)
    return 0


def conversation_options(args: argparse.Namespace) -> dict[str, Any]:
    """Sampling options of the preset and the command line, the latter first; raises UsageError.

    The preset's system message and thinking become the command line's, where it says nothing of them.
    """
    given = sampling_options(args)
    settings = dict(map(_setting, args.set or ()))
    if args.preset is None:
        if settings:
            raise UsageError("--set fills in a preset, and none is given", hint="for instance --preset coding")
        return given
    if args.system is not None:
        raise UsageError("--preset and --system both say the system message", hint="leave out one of them")
    from edgeship_runtime.talk.presets import read_preset

    preset = read_preset(args.preset).fill(settings)
    args.system = preset.system
    args.think = preset.thinking if args.think is None else args.think
    return {**preset.options, **given}


def _setting(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise UsageError(f"--set: expected NAME=VALUE, found {safe(text)!r}", hint="for instance --set language=Python")
    return name, value


def sampling_options(args: argparse.Namespace) -> dict[str, Any]:
    """Sampling options that were given on the command line; raises UsageError."""
    given = {name: getattr(args, name) for name in _SAMPLING if getattr(args, name) is not None}
    if args.greedy and given.get("temperature"):
        raise UsageError(f"--greedy and --temperature {given['temperature']:g} contradict each other")
    if args.logit_bias:
        given["logit_bias"] = tuple(map(_bias, args.logit_bias))
    from edgeship_runtime.sampling import GenerationOptions

    GenerationOptions(**given)  # what is wrong with them is said before a model is loaded
    return {**_GREEDY, **given} if args.greedy else given


def engine_options(args: argparse.Namespace) -> dict[str, Any]:
    """The engine's name and the options for it that were given on the command line; raises UsageError."""
    names = ("engine", "batch_threads", "kv_type", "flash_attention", "mmap")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    return given | ({"lora": dict(map(_adapter, args.lora))} if args.lora else {})


def _adapter(text: str) -> tuple[str, float]:
    name, equals, scale = text.rpartition("=")
    if not equals:
        return text, 1.0
    try:
        return name, float(scale)
    except ValueError:
        raise UsageError(
            f"--lora: expected FILE or FILE=NUMBER, found {safe(text)!r}", hint="for instance --lora style.gguf=0.5"
        ) from None


def _bias(text: str) -> tuple[int, float]:
    token, _, bias = text.partition("=")
    try:
        return int(token), float(bias)
    except ValueError:
        raise UsageError(
            f"--logit-bias: expected ID=NUMBER, found {safe(text)!r}", hint="for instance --logit-bias 42=-inf"
        ) from None


def _read_prompt() -> str:
    raw = sys.stdin.buffer.read(_MAX_PROMPT + 1)
    if len(raw) > _MAX_PROMPT:
        raise UsageError(f"standard input holds more than {_MAX_PROMPT >> 20} MB, which no context does")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"standard input is not UTF-8 text (byte {error.start})") from None


def system_message(text: str | None) -> list[dict[str, str]]:
    """The messages that open a conversation."""
    return [] if text is None else [{"role": "system", "content": text}]


def show_answer(stream: Stream, parts: list[str] | None = None) -> Result:
    """Print an answer as it comes and end its last line; `parts` collects what is shown, also of an answer cut off."""
    # What a model writes may hold terminal commands; a file or a pipe gets it as it is.
    shown: Callable[[str], str] = visible if sys.stdout.isatty() else str
    last = ""
    for piece in stream:
        sys.stdout.write(shown(piece.text))
        sys.stdout.flush()
        last = piece.text or last
        if parts is not None:
            parts.append(piece.text)
    if not last.endswith("\n"):
        sys.stdout.write("\n")
        sys.stdout.flush()
    return stream.result


def finish(stream: Stream) -> Result:
    """Generate an answer without showing it."""
    for _ in stream:
        pass
    return stream.result


def stats_line(stats: Stats) -> str:
    """Counts and speed of one answer on a line."""
    cached = f", {stats.cached_tokens} of them kept from before" if stats.cached_tokens else ""
    return (
        f"[{stats.prompt_tokens} prompt tokens{cached}, first token after {stats.ttft_s:.2f} s, prefill "
        f"{stats.prefill_tokens_per_s:.0f} tokens/s; {stats.tokens} tokens, {stats.decode_tokens_per_s:.1f} tokens/s]"
    )


def embed(args: argparse.Namespace) -> int:
    """Print a line of numbers for each text."""
    with _loaded(args) as model:
        vectors = model.embed(_texts(args), batch_size=args.batch_size).tolist()
    if args.json:
        print_json({"embeddings": vectors}, indent=None)
    else:
        print("\n".join(" ".join(f"{each:.6g}" for each in vector) for vector in vectors))
    return 0


def classify(args: argparse.Namespace) -> int:
    """Print the labels of each text."""
    texts = _texts(args)
    with _loaded(args) as model:
        labels = model.classify(texts, batch_size=args.batch_size)
    if args.json:
        print_json({"labels": [[vars(each) for each in found] for found in labels]})
        return 0
    for text, found in zip(texts, labels, strict=True):
        print(safe(text))
        for each in found:
            print(safe(f"  {each.score:.4f}  {each.name}  {text[each.start : each.end] if each.end else ''}".rstrip()))
    return 0


def _loaded(args: argparse.Namespace) -> Model:
    from edgeship_runtime.loading import load

    return load(args.artifact, context=args.context, threads=args.threads)


def _texts(args: argparse.Namespace) -> list[str]:
    return [line for text in args.texts for line in (_read_prompt().splitlines() if text == "-" else [text])]


def info(args: argparse.Namespace) -> int:
    """Say what an artifact is; opens no engine."""
    from edgeship_runtime.info import describe, table

    facts = describe(args.artifact)
    if args.json:
        print_json(facts)
    else:
        print(safe(table(facts)))
    return 0


def verify(args: argparse.Namespace) -> int:
    """Check an artifact against what was sealed; the exit code says the verdict."""
    from edgeship_runtime.verify import verify as check

    given = engine_options(args)
    with Progress() as progress:
        verdict = check(
            args.artifact,
            threads=args.threads,
            context=args.context,
            engine=given.pop("engine", None),
            options=given,
            skip=args.skip,
            progress=progress.share,
        )
    if args.json:
        print_json(verdict.to_json())
    else:
        print(safe(verdict.table()))
    return verdict.exit_code


def bench(args: argparse.Namespace) -> int:
    """Measure an artifact on this machine."""
    from edgeship_runtime.bench import measure

    given = engine_options(args)
    with Progress() as progress:
        report = measure(
            args.artifact,
            context=args.context,
            threads=args.threads,
            engine=given.pop("engine", None),
            options=given,
            prompt_tokens=args.prompt_tokens,
            decode_tokens=args.decode_tokens,
            repeats=args.repeats,
            progress=progress.say,
        )
    if args.json:
        print_json(report.to_json())
    else:
        print(safe(report.table()))
    return 0


def doctor(args: argparse.Namespace) -> int:
    """Examine this machine; the exit code says whether something stops an engine or the artifact."""
    from edgeship_runtime.doctor import probe

    with Progress() as progress:
        found = probe(args.artifact, progress=progress.say)
    if args.json:
        print_json(found.to_json())
    else:
        print(safe(found.table()))
    return found.exit_code


def compare(args: argparse.Namespace) -> int:
    """Compare two artifacts or engines."""
    from edgeship_runtime.compare import compare as compare_both

    options = engine_options(args)
    both = options.pop("engine", None)
    engines = [name or None for name in args.engines.split(",")] if args.engines else [both, both]
    if len(engines) != 2:
        raise UsageError(f"--engines: expected two names, found {safe(args.engines)!r}", hint="--engines ort,llamacpp")
    with Progress() as progress:
        comparison = compare_both(
            args.artifact,
            args.other,
            engines=engines,
            threads=args.threads,
            context=args.context,
            prompts=args.prompt,
            tokens=args.tokens,
            prompt_tokens=args.prompt_tokens,
            decode_tokens=args.decode_tokens,
            repeats=args.repeats,
            options=options,
            progress=progress.say,
        )
    if args.json:
        print_json(comparison.to_json())
    else:
        print(safe(comparison.table()))
    return 0


def serve(args: argparse.Namespace) -> int:
    """Serve artifacts over HTTP until told to end."""
    from edgeship_runtime.server.serve import serve as listen

    return listen(args)


def service(args: argparse.Namespace) -> int:
    """Install, remove or look at the service that serves artifacts."""
    from edgeship_runtime.server.install import service as work

    return work(args)
