"""The command `edgeship-runtime`: parses, calls one function of `commands` or `repl`, and reports errors.

Importing this imports nothing heavy: `--help` and a mistyped option answer at once, on a slow board too.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NoReturn

from edgeship_runtime import __version__
from edgeship_runtime.console import INTERRUPTED, print_json, safe
from edgeship_runtime.errors import ArtifactError, EdgeshipRuntimeError, ResourceError, UsageError
from edgeship_runtime.server.options import add_serve, add_service

PIPE_CLOSED = 141
"""128 + SIGPIPE: whoever read our output has seen enough."""
_EXHAUSTED = (errno.ENOSPC, errno.ENOMEM, errno.EMFILE, getattr(errno, "EDQUOT", errno.ENOSPC))
_SCREEN = 2000  # characters of an error message

_EPILOG = """example:
  edgeship-runtime run artifacts/tiny-int4 "What is the opposite of hot?"

exit codes: 0 done, 2 usage, 8 artifact, 9 disk or memory, 10 a package is missing, 11 context full,
12 engine, 13 chat template, 14 verify failed, 15 nothing to verify against, 16 unfit machine,
17 the service does not run, 130 interrupted, 141 output closed, 1 a defect of edgeship.
EDGESHIP_DEBUG=1 shows where an error comes from."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; errors go to stderr, and with --json to stdout as an object too."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    as_json = "--json" in arguments
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal that cannot show a character shows a question mark
            stream.reconfigure(errors="replace")
    try:
        code = _dispatch(arguments)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        with suppress(OSError):
            print(file=sys.stderr)
        # Threads of the engine may be in the middle of loading; unwinding them can abort the process.
        return INTERRUPTED if argv is not None else _leave(INTERRUPTED)
    except BrokenPipeError:
        return PIPE_CLOSED if argv is not None else _leave(PIPE_CLOSED)
    except Exception as error:
        if os.environ.get("EDGESHIP_DEBUG"):
            raise
        return _report(_known(error), as_json)


def _dispatch(arguments: list[str]) -> int:
    args = build_parser().parse_args(arguments)
    if args.command == "chat":
        from edgeship_runtime.repl import chat

        return chat(args)
    from edgeship_runtime import commands

    return int(getattr(commands, args.command)(args))


def _known(error: Exception) -> EdgeshipRuntimeError:
    """The error itself, or for one that nobody foresaw the nearest kind."""
    if isinstance(error, EdgeshipRuntimeError):
        return error
    if isinstance(error, MemoryError):
        return ResourceError("memory ran out", hint="a smaller --context needs less")
    if isinstance(error, OSError) and error.errno in _EXHAUSTED:
        return ResourceError(f"the system ran out of something: {error}")
    if isinstance(error, OSError):
        return ArtifactError(f"a file cannot be used: {error}", hint="check that it exists and may be read")
    text = " ".join(str(error).split())
    return EdgeshipRuntimeError(
        f"a defect of edgeship: {type(error).__name__}: {text}",
        hint="run it again with EDGESHIP_DEBUG=1 and report what it shows",
    )


def _report(error: EdgeshipRuntimeError, as_json: bool) -> int:
    message, hint = safe(error.message[:_SCREEN]), safe(error.hint[:_SCREEN])
    if as_json:
        print_json({"error": error.to_json() | {"message": message, "hint": hint}}, indent=None)
    print(f"error: {message}\n\nhint: {hint}" if hint else f"error: {message}", file=sys.stderr)
    return error.exit_code


def _leave(code: int) -> NoReturn:
    """End the process at once with what is written so far; what cannot be written no longer matters."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


class _Parser(argparse.ArgumentParser):
    """argparse with the project's errors in place of its own exit."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, hint=f"see {self.prog} --help")


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = _Parser(
        "edgeship-runtime",
        description="Runs and verifies edgeship artifacts; opens no connection (serve waits for them).",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"edgeship-runtime {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=_Parser)
    _add_run(commands)
    _add_chat(commands)
    _add_prefix_command(commands)
    _add_texts(commands, "embed", "print a vector for each text")
    _add_texts(commands, "classify", "print labels with their scores for each text")
    _add_info(commands)
    _add_verify(commands)
    _add_bench(commands)
    _add_compare(commands)
    _add_doctor(commands)
    add_serve(commands, _command, _add_engine)
    add_service(commands, _command, _add_engine)
    return parser


def _command(
    commands: Any, name: str, description: str, example: str, artifacts: str | None = None
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=description,
        description=description,
        epilog=f"example:\n  edgeship-runtime {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    found = "artifacts/NAME, a directory inside it, or a GGUF file"
    parser.add_argument("artifact", metavar="ARTIFACT", nargs=artifacts, help=found)
    return parser


def _add_run(commands: Any) -> None:
    examples = (
        'run artifacts/tiny-int4 "Once upon a time" --raw --greedy --max-tokens 60',
        'run artifacts/NAME "Sort a list." --preset coding --set language=Python',
        'run artifacts/NAME "Why is the sky blue?" --think --thinking-budget 200',
        'run artifacts/NAME "Invent a person." --schema person.json',
        'run artifacts/NAME "Is water wet?" --regex "(yes|no)"',
        'run artifacts/NAME "How warm is it in Ulm?" --tools tools.json --json',
    )
    parser = _command(commands, "run", "answer one prompt", "\n  edgeship-runtime ".join(examples))
    parser.add_argument("prompt", metavar="PROMPT", help="the prompt; - reads it from standard input")
    parser.add_argument("--raw", action="store_true", help="continue the text as it is, without the chat template")
    _add_sampling(parser)
    _add_conversation(parser)
    _add_prefix(parser)
    _add_engine(parser)
    parser.add_argument("--stats", action="store_true", help="print counts and speed to standard error")
    parser.add_argument("--json", action="store_true", help="print one object at the end instead of text as it comes")


def _add_chat(commands: Any) -> None:
    parser = _command(commands, "chat", "talk, turn by turn", 'chat artifacts/tiny-int4 --system "Be brief."')
    _add_sampling(parser)
    _add_conversation(parser)
    _add_prefix(parser)
    _add_engine(parser)
    parser.add_argument("--stats", action="store_true", help="print counts and speed after every answer")
    parser.add_argument("--json", action="store_true", help="print one object per answer, a line each")


def _add_prefix_command(commands: Any) -> None:
    description = "evaluate what all conversations begin with, once, into a file beside the artifact"
    parser = _command(commands, "prefix", description, "prefix artifacts/tiny-int4 --system-file manual.txt")
    parser.add_argument("--out", metavar="FILE", help="write it there, for --prefix (default: where it is found)")
    _add_opening(parser.add_argument_group("conversation"))
    _add_engine(parser)
    parser.add_argument("--json", action="store_true", help="print one object")


def _add_prefix(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--prefix", metavar="FILE", help="begin with what `prefix --out` wrote (default: the one beside the artifact)"
    )


def _add_texts(commands: Any, name: str, description: str) -> None:
    parser = _command(commands, name, description, f'{name} artifacts/NAME "A text." "Another one."')
    parser.add_argument("texts", metavar="TEXT", nargs="+", help="a text; - reads one per line from standard input")
    parser.add_argument("--context", type=int, metavar="N", help="tokens read of a text (default: the artifact's)")
    parser.add_argument("--threads", type=int, metavar="N", help="engine threads (default: the physical cores)")
    parser.add_argument("--batch-size", type=int, metavar="N", help="texts run together (default: 32; int8: 1)")
    parser.add_argument("--json", action="store_true", help="print one object")


def _add_info(commands: Any) -> None:
    parser = _command(commands, "info", "say what an artifact is, without running it", "info artifacts/tiny-int4")
    parser.add_argument("--json", action="store_true", help="print one object")


def _add_verify(commands: Any) -> None:
    parser = _command(
        commands,
        "verify",
        "check files, templates, tokens and logits against what was sealed",
        "verify artifacts/tiny-int4",
    )
    # Names are checked by verify() itself, whose module would make every start slow.
    parser.add_argument("--skip", action="append", default=[], metavar="CHECK", help="leave a check out; repeatable")
    _add_engine(parser)
    parser.add_argument("--json", action="store_true", help="print the verdict as one object")


def _add_bench(commands: Any) -> None:
    parser = _command(commands, "bench", "measure load time, speed and memory", "bench artifacts/tiny-int4 --threads 2")
    _add_measurement(parser, prompt=512, decode=64)
    _add_engine(parser)
    parser.add_argument("--json", action="store_true", help="print the report as one object")


def _add_compare(commands: Any) -> None:
    example = "compare artifacts/tiny-int4/onnx artifacts/tiny-int4/gguf"
    parser = _command(commands, "compare", "the same prompts and measurements on two artifacts or engines", example)
    parser.add_argument("other", metavar="OTHER", help="what to compare it with")
    parser.add_argument("--engines", metavar="A,B", help="an engine for each, for instance ort,llamacpp")
    parser.add_argument(
        "--prompt", action="append", default=[], metavar="TEXT", help="text to continue on both; repeatable"
    )
    parser.add_argument("--tokens", type=int, default=16, metavar="N", help="tokens to continue each by (%(default)s)")
    _add_measurement(parser, prompt=128, decode=32)
    _add_engine(parser)
    parser.add_argument("--json", action="store_true", help="print the comparison as one object")


def _add_doctor(commands: Any) -> None:
    description = "say what this machine is, what it lacks, and whether engines and an artifact run on it"
    parser = _command(commands, "doctor", description, "doctor artifacts/tiny-int4", artifacts="?")
    parser.add_argument("--json", action="store_true", help="print one object")


def _add_measurement(parser: argparse.ArgumentParser, *, prompt: int, decode: int) -> None:
    group = parser.add_argument_group("measurement")
    group.add_argument("--prompt-tokens", type=int, default=prompt, metavar="N", help="tokens to prefill (%(default)s)")
    group.add_argument(
        "--decode-tokens", type=int, default=decode, metavar="N", help="tokens to generate (%(default)s)"
    )
    group.add_argument(
        "--repeats", type=int, default=3, metavar="N", help="answers to take the median of (%(default)s)"
    )


def _add_engine(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("engine")
    group.add_argument("--context", type=int, metavar="N", help="tokens of the KV cache (default: the artifact's)")
    group.add_argument("--threads", type=int, metavar="N", help="engine threads (default: the physical cores)")
    group.add_argument("--engine", metavar="NAME", help="ort or llamacpp; also chooses between onnx/ and gguf/")
    group = parser.add_argument_group("llama.cpp")
    group.add_argument("--batch-threads", type=int, metavar="N", help="threads for prompts (default: as --threads)")
    group.add_argument(
        "--kv-type", metavar="TYPE", help="of keys and values: f16 (default), or q8_0 for half the memory"
    )
    group.add_argument("--flash-attention", metavar="WHEN", help="auto (default), on or off")
    group.add_argument("--lora", action="append", metavar="FILE[=SCALE]", help="add a LoRA adapter; repeatable")
    group.add_argument(
        "--no-mmap", dest="mmap", action="store_false", default=None, help="read the weights instead of mapping them"
    )


def _add_conversation(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("conversation")
    _add_opening(group)
    group.add_argument("--thinking-budget", type=int, metavar="N", help="tokens after which the thought is closed")
    form = group.add_mutually_exclusive_group()
    form.add_argument("--schema", metavar="FILE", help="keep the answer to a JSON schema")
    form.add_argument("--regex", metavar="PATTERN", help="keep the answer to a regular expression")


def _add_opening(group: Any) -> None:
    group.add_argument("--system", metavar="TEXT", help="system message")
    group.add_argument("--system-file", metavar="FILE", help="system message, from a file")
    group.add_argument(
        "--preset", metavar="NAME", help="reasoning, coding, multilingual, one of yours, or the path of a TOML file"
    )
    group.add_argument("--set", action="append", metavar="NAME=VALUE", help="fill in the preset; repeatable")
    thinking = group.add_mutually_exclusive_group()
    thinking.add_argument("--think", action="store_true", default=None, help="ask for thinking, where the model can")
    thinking.add_argument("--no-think", dest="think", action="store_false", default=None, help="ask for none")
    group.add_argument("--tools", metavar="FILE", help="tools to offer, a JSON list; calls are printed")


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("sampling (defaults: the artifact's)")
    group.add_argument("--greedy", action="store_true", help="the likeliest token, without the artifact's penalties")
    group.add_argument(
        "--max-tokens", type=int, metavar="N", help="tokens to generate (default: until the context is full)"
    )
    group.add_argument("--temperature", type=float, metavar="T", help="0 is greedy")
    group.add_argument("--top-k", type=int, metavar="K", help="0 is off")
    group.add_argument("--top-p", type=float, metavar="P", help="1 is off")
    group.add_argument("--min-p", type=float, metavar="P", help="0 is off")
    group.add_argument("--repetition-penalty", type=float, metavar="X", help="1 is off")
    group.add_argument("--presence-penalty", type=float, metavar="X", help="0 is off")
    group.add_argument("--seed", type=int, metavar="N", help="same seed, same answer")
    group.add_argument("--stop", action="append", metavar="TEXT", help="end the answer before this text; repeatable")
    group.add_argument(
        "--logit-bias", action="append", metavar="ID=X", help="add X to a token's logit, -inf bans it; repeatable"
    )
