"""What a server is told at its start: where it listens, and every limit."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeship_runtime.errors import UsageError

MOST_PARALLEL = 64
"""llama.cpp's own limit on sequences, in its older versions."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Limits and addresses of a server; times in seconds, sizes in bytes unless the name says otherwise."""

    artifacts: Mapping[str, Path]
    """Name that requests give, to where the artifact lies."""
    host: str = "127.0.0.1"
    port: int = 8080
    keys: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of an API key in hexadecimal, to the name its holder has in logs; empty: no key is asked for."""
    context: int | None = None
    threads: int | None = None
    engine_options: Mapping[str, Any] = field(default_factory=dict)
    memory_mb: float | None = None
    """Resident memory above which idle models are unloaded before another is loaded; None: models stay."""
    prefix_memory_mb: float = 128.0
    """For states of conversations that wait, of each model; 0: none are kept."""
    prefix_dir: Path | None = None
    """Where they outlive the server; None: nowhere."""
    prefix_disk_mb: float = 1024.0
    """What they take there, of each model."""
    parallel: int | None = None
    """Requests that one model answers at once; None: as `lanes.lane_options` chooses."""
    queue_limit: int = 64
    """Requests that wait at most, the running ones not counted."""
    timeout_s: float = 600.0
    """For one request, its time in the queue included."""
    stuck_s: float = 600.0
    """Without a sign of life from the engine for so long, it counts as stuck."""
    grace_s: float = 10.0
    """What running answers are given when the server is told to end."""
    requests_per_minute: int = 600
    """Of one client; 0: no limit."""
    max_body: int = 4 << 20
    max_messages: int = 1000
    max_inputs: int = 256
    """Texts in one request."""
    max_prompt_tokens: int = 131_072
    max_tokens: int = 32_768

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        return is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Whether a host name or address means this machine."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check(settings: Settings) -> None:
    """Refuse what would not be safe or cannot work; raises UsageError."""
    if not settings.loopback and not settings.keys:
        raise UsageError(
            f"--host {settings.host} can be reached from other machines, and there is no API key",
            hint="make one with --api-key-file FILE --new-key NAME, or leave out --host",
        )
    low = {"queue_limit": 1, "max_body": 1, "max_messages": 1, "max_inputs": 1, "max_prompt_tokens": 1}
    low |= {"max_tokens": 1, "requests_per_minute": 0}
    if settings.parallel is not None and not 1 <= settings.parallel <= MOST_PARALLEL:
        raise UsageError(f"--parallel: expected 1 to {MOST_PARALLEL}, found {settings.parallel}")
    for name, least in low.items():
        if getattr(settings, name) < least:
            raise UsageError(f"--{name.replace('_', '-')}: expected at least {least}, found {getattr(settings, name)}")
    for name in ("prefix_memory_mb", "prefix_disk_mb"):
        if not 0 <= getattr(settings, name) < float("inf"):
            raise UsageError(f"--{name.replace('_', '-')}: expected at least 0, found {getattr(settings, name)}")
    if settings.memory_mb is not None and not 0 < settings.memory_mb < float("inf"):
        raise UsageError(f"--memory-mb: expected more than 0, found {settings.memory_mb:g}")
    for name in ("timeout_s", "stuck_s", "grace_s"):
        if not 0 < getattr(settings, name) < float("inf"):
            raise UsageError(
                f"--{name.removesuffix('_s')}: expected more than 0 seconds, found {getattr(settings, name)}"
            )
    if not 0 <= settings.port < 65536:
        raise UsageError(f"--port: expected 0 to 65535, found {settings.port}")


def name_artifacts(paths: list[str]) -> dict[str, Path]:
    """Names for artifacts: NAME=PATH says one, else the directory's or file's; raises UsageError for a name twice."""
    named: dict[str, Path] = {}
    for text in paths:
        name, equals, rest = text.partition("=")
        path = Path(rest if equals else text)
        if not equals:
            place = path.resolve()
            name = place.parent.name if place.name in ("onnx", "gguf") else place.name.removesuffix(".gguf")
        if not name or not name.isprintable() or len(name) > 200:
            raise UsageError(f"{text!r}: expected NAME=PATH with a name of 1 to 200 printable characters")
        if name in named:
            raise UsageError(
                f"two artifacts are called {name!r}: {named[name]} and {path}", hint="give one a name: NAME=PATH"
            )
        named[name] = path
    return named
