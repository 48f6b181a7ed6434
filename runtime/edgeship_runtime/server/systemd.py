"""The text of a systemd user unit that serves artifacts: quoting, memory limit, what the service may not do.

Every directive works in a user's own service manager without privileges: those that need a mount namespace or
capabilities (ProtectSystem=, PrivateTmp=, CapabilityBoundingSet=) keep a user service from starting on many systems.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeship_runtime.console import safe
from edgeship_runtime.engines import formats
from edgeship_runtime.errors import UsageError
from edgeship_runtime.info import describe
from edgeship_runtime.manifest import locate
from edgeship_runtime.server.lanes import MOST_LANES
from edgeship_runtime.server.settings import Settings

MARK = "# Written by `edgeship-runtime service install`, which replaces it."
"""First line of a unit that may be replaced and removed."""
_BASE_BYTES = 250_000_000  # Python, the web server, an engine's code, activations of a prompt
_TOKENIZER_BYTES = 600  # per vocabulary entry, the larger of both engines (measured on Qwen's)
_HEADROOM = 1.25
_STEPS_SINCE = 254  # the systemd that knows RestartSteps=


@dataclass(frozen=True, kw_only=True)
class Service:
    """What a unit is made from; `program` and `arguments` are run without a shell."""

    name: str
    description: str
    program: str
    arguments: Sequence[str]
    memory_bytes: int
    grace_s: float


def memory_limit(settings: Settings) -> int:
    """Bytes above which the service is ended: what its manifests say it needs, and a quarter more.

    A manifest's `budgets.ram_mb` is taken as it stands. Without one: weights twice (engines keep a copy in their own
    layout), KV caches and tokenizer. Of models that are unloaded above `memory_mb` the largest. Raises ArtifactError.
    """
    needs = [_need_bytes(path, settings) for path in settings.artifacts.values()]
    limit = settings.memory_mb
    total = sum(needs) if limit is None else max([*needs, limit * 1e6 - _BASE_BYTES])
    return round((total + _BASE_BYTES) * _HEADROOM)


def _need_bytes(path: Path, settings: Settings) -> float:
    facts = describe(locate(path, formats(settings.engine_options.get("engine"))))
    model, budget = facts["model"], facts["budgets"]["ram_mb"]
    kept = settings.prefix_memory_mb * 1e6
    lanes = settings.parallel or MOST_LANES
    cache = float(facts["kv_cache"]["bytes_per_token"]) * (settings.context or model["default_context"])
    if budget is not None and settings.context is None:  # the budget has one lane's cache in it
        return float(budget) * 1e6 + (lanes - 1) * cache + kept
    return float(2 * sum(facts["files"].values()) + lanes * cache + _TOKENIZER_BYTES * model["vocab_size"]) + kept


def unit(service: Service, *, version: int | None = None) -> str:
    """The unit's text for a systemd of this version (None: the newest); raises UsageError for what it cannot hold."""
    waits = "RestartSec=2\nRestartSteps=6\nRestartMaxDelaySec=120"
    if version is not None and version < _STEPS_SINCE:
        waits = "RestartSec=15"
    command = " ".join([_program(service.program), *map(quote, service.arguments)])
    return f"""\
{MARK}
#   what it says   journalctl --user --unit {service.name} --follow
#   how it is      edgeship-runtime service status --name {service.name}
#   to remove it   edgeship-runtime service uninstall --name {service.name}
# It runs while its user is logged in; from boot on with: loginctl enable-linger USER

[Unit]
Description={_line(service.description)}
StartLimitIntervalSec=0

[Service]
Type=notify
NotifyAccess=main
ExecStart={command}
# Not after a wrong command line (2) or for a package that is not installed (10): the same would come of it.
Restart=on-failure
RestartPreventExitStatus=2 10
{waits}
TimeoutStartSec=120
TimeoutStopSec={round(service.grace_s) + 15}
# The server gives a sign of life while its engine does.
WatchdogSec=60
MemoryMax={service.memory_bytes}
OOMPolicy=stop
# A dump of its memory would hold what people wrote.
LimitCORE=0
UMask=0077
NoNewPrivileges=yes
LockPersonality=yes
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM

[Install]
WantedBy=default.target
"""


def quote(text: str) -> str:
    """An argument of ExecStart= as systemd.service(5) and systemd.syntax(7) read it; raises UsageError.

    For a command line that begins with ":", in which "$" stands for itself.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{safe(text)!r}: expected UTF-8, which is all that a unit can hold") from None
    if "\0" in text:
        raise UsageError(f"{safe(text)!r}: an argument cannot hold a NUL")
    named = {"\\": "\\\\", '"': '\\"', "%": "%%", "\n": "\\n", "\t": "\\t"}
    escaped = (named.get(each) or (each if " " <= each != "\x7f" else f"\\x{ord(each):02x}") for each in text)
    return f'"{"".join(escaped)}"'


def _program(path: str) -> str:
    """The program, which systemd refuses with quotes, backslashes or control characters in its name."""
    quoted = quote(path)
    if any(each < " " or each in "\"'\\\x7f" for each in path):
        raise UsageError(
            f"{safe(path)!r}: systemd runs no program whose path has quotes or control characters",
            hint="install edgeship-runtime in a virtual environment elsewhere",
        )
    return f'":{quoted[1:]}'


def _line(text: str) -> str:
    return "".join(each if each.isprintable() else " " for each in text).replace("%", "%%")[:200].rstrip("\\ ")
