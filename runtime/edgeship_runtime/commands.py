"""What the commands do, but for `chat`; each takes parsed arguments and returns an exit code."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeVar

from edgeship_runtime.console import Progress, print_json, safe
from edgeship_runtime.errors import UsageError

if TYPE_CHECKING:
    from edgeship_runtime.answer import Result
    from edgeship_runtime.model import Model
    from edgeship_runtime.talk.events import Answer

Finished = TypeVar("Finished", bound=Iterable[Any])

_MAX_PROMPT = 1 << 26  # bytes from standard input: more than any context holds


def run(args: argparse.Namespace) -> int:
    """Answer one prompt on standard output."""
    from edgeship_runtime.talk.asking import Screen, read_asked, stats_line

    asked = read_asked(args)
    if args.raw and (conversational := [flag for flag, given in _conversational(args) if given]):
        raise UsageError(f"--raw has no chat template for {' and '.join(conversational)}", hint="leave out --raw")
    text = _read_prompt() if args.prompt == "-" else args.prompt
    if not text:
        raise UsageError("the prompt is empty", hint='give some text: edgeship-runtime run ARTIFACT "Hello"')
    from edgeship_runtime.loading import load

    found: Result | Answer
    given = {"context": args.context, "threads": args.threads, "prefix": args.prefix, **engine_options(args)}
    with load(args.artifact, **given) as model:
        if args.raw:
            with model.stream(text, **asked.overrides) as stream:
                found = finish(stream).result if args.json else Screen().raw(stream)
        else:
            with asked.converse(model, [*asked.opening.messages, {"role": "user", "content": text}]) as events:
                found = finish(events).answer if args.json else Screen().conversation(events)
        if args.json:
            print_json({"artifact": str(model.directory), **found.to_json()})
    if args.stats:
        print(stats_line(found.stats), file=sys.stderr)
    if found.finish_reason == "context" and not args.json:
        print("the context is full: the answer ends here; a larger --context leaves more room", file=sys.stderr)
    return 0


def _conversational(args: argparse.Namespace) -> list[tuple[str, bool]]:
    """The options of a conversation, and whether each is given."""
    names = ("system", "system_file", "preset", "thinking_budget", "schema", "regex", "tools")
    flags = [(f"--{name.replace('_', '-')}", getattr(args, name) is not None) for name in names]
    return [*flags, ("--think", args.think is True), ("--no-think", args.think is False)]


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


def _read_prompt() -> str:
    raw = sys.stdin.buffer.read(_MAX_PROMPT + 1)
    if len(raw) > _MAX_PROMPT:
        raise UsageError(f"standard input holds more than {_MAX_PROMPT >> 20} MB, which no context does")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"standard input is not UTF-8 text (byte {error.start})") from None


def finish(answer: Finished) -> Finished:
    """Generate an answer without showing it."""
    for _ in answer:
        pass
    return answer


def prefix(args: argparse.Namespace) -> int:
    """Evaluate what all conversations begin with, once, and keep what came of it."""
    from edgeship_runtime.talk.prefix_command import prefix as make

    return make(args)


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
