"""The options of `serve` and `service`, with the limits a server has unless told otherwise."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import fields
from typing import Any

from edgeship_runtime.server.settings import Settings

GROUPS: dict[str, tuple[tuple[str, str, str], ...]] = {
    "access": (
        ("api_key_file", "FILE", "hashes of the keys that are let in"),
        ("requests_per_minute", "N", "requests of one client in a minute; 0: any number"),
    ),
    "limits": (
        ("memory_mb", "MB", "resident memory above which idle models are unloaded before another is loaded"),
        ("parallel", "N", "answers of one model at once; default: up to 4, by memory"),
        ("queue_limit", "N", "requests that wait; beyond it clients get 429"),
        ("timeout_s", "S", "seconds for a request, its wait included"),
        ("stuck_s", "S", "seconds without a sign of life after which the engine counts as stuck"),
        ("grace_s", "S", "seconds for running answers when the server is told to end"),
        ("max_body", "BYTES", "size of a request"),
        ("max_messages", "N", "messages in a conversation"),
        ("max_inputs", "N", "texts in one request"),
        ("max_prompt_tokens", "N", "tokens of one prompt"),
        ("max_tokens", "N", "tokens to generate for one request"),
    ),
    "conversations that wait": (
        ("prefix_memory_mb", "MB", "memory for the states of conversations that wait, of each model; 0: none is kept"),
        ("prefix_dir", "DIR", "directory where such states outlive the server"),
        ("prefix_disk_mb", "MB", "what such states take there, of each model"),
    ),
}
"""Groups of options: the member of Settings, what its value is called, what it means."""
LIMITS = tuple(name for rows in GROUPS.values() for name, value, _ in rows if value not in ("FILE", "DIR"))
DEFAULTS = {each.name: each.default for each in fields(Settings)}
_FLOATS = ("MB", "S")
Make = Callable[..., argparse.ArgumentParser]
"""Adds a command that takes artifacts: to these commands, by this name, with a description and an example."""
Add = Callable[[argparse.ArgumentParser], None]


def flag(name: str) -> str:
    """The option for a member of Settings."""
    return "--" + dest(name).replace("_", "-")


def dest(name: str) -> str:
    """What the parsed option is called."""
    return name.removesuffix("_s")


def add_serve(commands: Any, make: Make, add_engine: Add) -> None:
    """Add the command `serve`."""
    description = "answer OpenAI's and Ollama's clients over HTTP, on this machine unless told otherwise"
    parser = make(commands, "serve", description, "serve artifacts/tiny-int4 --port 8080", artifacts="*")
    parser.add_argument("--new-key", metavar="NAME", help="add a key to --api-key-file, print it once, and end")
    parser.add_argument("--json", action="store_true", help="print the address, or the key, as one object")
    _add_server(parser, add_engine)


def add_service(commands: Any, make: Make, add_engine: Add) -> None:
    """Add the command `service`."""
    description = "serve artifacts as a systemd service of this user, started again when it fails"
    install = "service install artifacts/tiny-int4 --port 8080"
    form = argparse.RawDescriptionHelpFormatter
    parser: argparse.ArgumentParser = commands.add_parser(
        "service", help=description, description=description, epilog=_example(install), formatter_class=form
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True, parser_class=type(parser))
    made = make(actions, "install", "write the unit and start it", install, artifacts="*")
    first = len(made._actions)
    _add_server(made, add_engine)
    made.set_defaults(server_options=made._actions[first:])
    made.add_argument("--print", action="store_true", help="show the unit; write and start nothing")
    for name, text in (("uninstall", "end the service and remove its unit"), ("status", "say how the service is")):
        actions.add_parser(
            name,
            help=text,
            description=text,
            epilog=_example(f"service {name}"),
            formatter_class=form,
            allow_abbrev=False,
        )
    for each in actions.choices.values():
        each.add_argument("--name", default="edgeship", help="of the service (%(default)s)")
        each.add_argument("--json", action="store_true", help="print one object")


def _example(text: str) -> str:
    return f"example:\n  edgeship-runtime {text}"


def _add_server(parser: argparse.ArgumentParser, add_engine: Add) -> None:
    host, port = DEFAULTS["host"], DEFAULTS["port"]
    parser.add_argument("--host", default=host, help="address to listen at; beyond loopback a key is needed")
    parser.add_argument("--port", type=int, default=port, help="0 chooses one (%(default)s)")
    for title, rows in GROUPS.items():
        group = parser.add_argument_group(title)
        for name, value, text in rows:
            kind = str if value in ("FILE", "DIR") else float if value in _FLOATS else int
            group.add_argument(flag(name), type=kind, metavar=value, help=text + shown(name, " ({})"))
    add_engine(parser)


def shown(name: str, form: str) -> str:
    """The default of a limit in `form`, nothing where there is none."""
    value = DEFAULTS.get(name)
    return "" if value is None else form.format(f"{value:g}" if isinstance(value, float) else value)
