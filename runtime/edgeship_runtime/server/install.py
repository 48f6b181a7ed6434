"""The command `service`: a systemd user unit for `serve`, written, started, looked at and removed."""

from __future__ import annotations

import argparse
import getpass
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from edgeship_runtime.console import print_json, safe
from edgeship_runtime.errors import DependencyError, ServiceError, UsageError
from edgeship_runtime.server import systemd
from edgeship_runtime.server.ready import check_ready
from edgeship_runtime.server.serve import listen, read_settings
from edgeship_runtime.server.settings import Settings

_LINGER = Path("/var/lib/systemd/linger")
_PATHS = ("FILE", "DIR")
"""How values that are paths are called, or begin to be; those of a unit are absolute."""


def service(args: argparse.Namespace) -> int:
    """Install, remove or look at the service; raises UsageError, ArtifactError, DependencyError, ServiceError."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", args.name):
        raise UsageError(f"--name: expected 1 to 64 letters, digits, dots or dashes, found {safe(args.name)!r}")
    return {"install": _install, "uninstall": _uninstall, "status": _status}[args.action](args)


def unit_path(name: str) -> Path:
    """Where the unit of this user lies (systemd.unit(5))."""
    home = os.environ.get("XDG_CONFIG_HOME", "")
    return (Path(home) if home.startswith("/") else Path.home() / ".config") / "systemd" / "user" / f"{name}.service"


def _install(args: argparse.Namespace) -> int:
    settings = read_settings(args)
    check_ready(settings)
    if not settings.port:
        raise UsageError("--port 0: a service needs a port that its clients can know")
    path = unit_path(args.name)
    made = _service(args, settings)
    if args.print:
        text = systemd.unit(made, version=_version())
        if args.json:
            print_json({"unit": str(path), "text": text, "memory_bytes": made.memory_bytes})
        else:
            print(text, end="")
        return 0
    _need_systemd()
    if _run("is-active", "--quiet", path.name).returncode:
        listen(settings.host, settings.port).close()  # a port that is taken is said now, not in the journal
    changed = _write(path, systemd.unit(made, version=_version()))
    _systemctl("daemon-reload")
    _systemctl("enable", "--quiet", path.name)
    _systemctl("restart" if changed else "start", path.name, show=args.name)
    _say_installed(args, settings, path, made, changed)
    return 0


def _service(args: argparse.Namespace, settings: Settings) -> systemd.Service:
    names = [f"{name}={path.absolute()}" for name, path in settings.artifacts.items()]
    return systemd.Service(
        name=args.name,
        description=f"edgeship: {', '.join(settings.artifacts)}",
        program=sys.executable,
        # -P: no module is taken from the directory that the service happens to start in.
        arguments=["-P", "-m", "edgeship_runtime", "serve", *_options(args), "--", *names],
        memory_bytes=systemd.memory_limit(settings),
        grace_s=settings.grace_s,
    )


def _options(args: argparse.Namespace) -> list[str]:
    """The options of `serve` that were given, as it takes them."""
    words = []
    for option in args.server_options:
        value = getattr(args, option.dest)
        if value == option.default:
            continue
        flag = option.option_strings[-1]
        if option.nargs == 0:
            words.append(flag)
            continue
        for each in value if isinstance(value, list) else [value]:
            words.append(f"{flag}={Path(each).absolute() if (option.metavar or '').startswith(_PATHS) else each}")
    return words


def _need_systemd() -> None:
    by_hand = "start it by hand with `edgeship-runtime serve`, or let --print show the unit"
    if shutil.which("systemctl") is None:
        raise DependencyError("services are systemd's here, and this machine has no systemctl", hint=by_hand)
    done = _run("show", "--property=Version")
    if done.returncode:
        raise ServiceError(
            f"this user's systemd does not answer ({_said(done)})",
            hint="log in as the user (su and sudo start none), or turn lingering on first: loginctl enable-linger USER",
        )


def _version() -> int | None:
    """Of systemd; None where it cannot be asked."""
    try:
        said = subprocess.run(
            ["systemctl", "--version"], capture_output=True, text=True, timeout=10, check=False
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.match(r"systemd (\d{1,6})\b", said)
    return int(found[1]) if found else None


def _write(path: Path, text: str) -> bool:
    """Put the unit in its place, whole or not at all; False when it was there already."""
    old = _ours(path)
    if old == text:
        return False
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError as error:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        raise ServiceError(f"{path}: cannot be written ({error})", hint="check the disk and its permissions") from None
    return True


def _ours(path: Path) -> str | None:
    """The unit's text, None where there is none; raises UsageError for one that was not written here."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ServiceError(f"{path}: cannot be read ({error})") from None
    if not text.startswith(systemd.MARK):
        raise UsageError(
            f"{path}: a unit that `service install` did not write; it is left alone", hint="take another --name"
        )
    return text


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["systemctl", "--user", "--no-pager", *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=180, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        raise ServiceError(f"systemctl cannot be run ({error})") from None


def _systemctl(*arguments: str, show: str = "") -> None:
    done = _run(*arguments)
    if done.returncode:
        hint = f"journalctl --user --unit {show} --lines 20 --no-pager" if show else ""
        raise ServiceError(f"systemctl --user {' '.join(arguments)} failed: {_said(done)}", hint=hint)


def _said(done: subprocess.CompletedProcess[str]) -> str:
    return safe(" ".join((done.stderr or done.stdout).split()))[:500] or f"exit code {done.returncode}"


def _say_installed(
    args: argparse.Namespace, settings: Settings, path: Path, made: systemd.Service, changed: bool
) -> None:
    lingers = False
    with suppress(KeyError, OSError):  # a user without a name
        lingers = (_LINGER / getpass.getuser()).exists()
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    url = f"http://{host}:{settings.port}"
    if args.json:
        facts = {"unit": str(path), "changed": changed, "url": url, "lingers": lingers}
        print_json(facts | {"memory_bytes": made.memory_bytes})
        return
    lines = [
        f"{'installed' if changed else 'already installed'}: {path}",
        f"{url}, at most {made.memory_bytes / 1e6:.0f} MB of memory, started again when it fails",
        "",
        f"what it says   journalctl --user --unit {args.name} --follow",
        f"how it is      edgeship-runtime service status{_named(args.name)}",
        f"to remove it   edgeship-runtime service uninstall{_named(args.name)}",
    ]
    if not lingers:
        lines.append("from boot on   loginctl enable-linger      (until then it runs while you are logged in)")
    print(safe("\n".join(lines)))


def _named(name: str) -> str:
    return "" if name == "edgeship" else f" --name {name}"


def _uninstall(args: argparse.Namespace) -> int:
    path = unit_path(args.name)
    there = _ours(path) is not None
    if there:
        _need_systemd()
        _run("disable", "--now", "--quiet", path.name)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise ServiceError(f"{path}: cannot be removed ({error})") from None
        _systemctl("daemon-reload")
        _run("reset-failed", path.name)
    if args.json:
        print_json({"unit": str(path), "removed": there})
    else:
        print(f"{'removed' if there else 'nothing to remove'}: {safe(str(path))}")
    return 0


_SHOWN = {"ActiveState": "active", "SubState": "state", "UnitFileState": "enabled", "Result": "result"}
_COUNTED = {"NRestarts": "restarts", "MemoryCurrent": "memory_bytes", "MemoryMax": "memory_max_bytes", "MainPID": "pid"}


def _status(args: argparse.Namespace) -> int:
    path = unit_path(args.name)
    there = _ours(path) is not None
    facts: dict[str, Any] = {"unit": str(path), "installed": there}
    if there:
        _need_systemd()
        facts |= _shown(_run("show", f"--property={','.join([*_SHOWN, *_COUNTED])}", path.name).stdout.splitlines())
    runs = facts.get("active") == "active"
    if args.json:
        print_json(facts | {"runs": runs})
    else:
        print(
            "\n".join(f"{name:<18} {'unknown' if value is None else safe(str(value))}" for name, value in facts.items())
        )
        if not there:
            print("\nto install it: edgeship-runtime service install ARTIFACT")
    return 0 if runs else ServiceError.exit_code


def _shown(lines: Sequence[str]) -> dict[str, Any]:
    said = dict(line.split("=", 1) for line in lines if "=" in line)
    words = {ours: said.get(theirs) or None for theirs, ours in _SHOWN.items()}
    counts = {ours: int(said[key]) if said.get(key, "").isdecimal() else None for key, ours in _COUNTED.items()}
    return words | {name: None if count == 2**64 - 1 else count for name, count in counts.items()}
