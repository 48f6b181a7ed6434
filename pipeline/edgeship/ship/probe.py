"""What a board is before anything is installed there: a few POSIX commands, and the doctor in the bundle's wheel."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgeship.errors import HostError, ResourceError
from edgeship.ship.contents import Contents
from edgeship.ship.report import Board, Finding, line
from edgeship.ship.transports import Transport
from edgeship.ship.transports.command import last_line
from edgeship.sizes import format_size
from edgeship_runtime.errors import EdgeshipRuntimeError
from edgeship_runtime.strict import Fields, parse_json

MARGIN = 64 << 20  # bytes that stay free: a full disk breaks more than this

_QUICK = 120.0  # seconds for commands that answer at once on an idle board
_CLOCK_OFF = 86400.0  # seconds of difference that are worth a note

_FACTS = r"""
printf 'home=%s\n' "$HOME"
printf 'system=%s\n' "$(uname -s)"
printf 'arch=%s\n' "$(uname -m)"
printf 'boot=%s\n' "$(cat /proc/sys/kernel/random/boot_id 2>/dev/null)"
printf 'clock=%s\n' "$(date -u +%s)"
printf 'free=%s\n' "$(df -Pk "$HOME" 2>/dev/null | tail -n 1)"
model=$(tr -d '\0' < /proc/device-tree/model 2>/dev/null)
[ -n "$model" ] || model=$(getprop ro.product.model 2>/dev/null)
printf 'model=%s\n' "$model"
printf 'qemu=%s\n' "${QEMU_CPU-}"
# What is installed needs no look for a Python: it has its own, which says its version before it begins to start.
if [ -n "$2" ] && [ "$(cat -- "$1/.edgeship-installed" 2>/dev/null)" = "$2" ]; then
  told=$("$1/venv/bin/python" -I --version 2>/dev/null)
  case $told in
    "Python "*)
      printf 'python=%s %s 64\n' "$1/venv/bin/python" "${told#Python }"
      current=$(readlink -- "$(dirname -- "$1")/current")
      [ "$current" = "$(basename -- "$1")" ] && echo installed=yes
      exit 0 ;;
  esac
  echo installed=broken
fi
for each in PYTHONS python3; do
  command -v "$each" >/dev/null 2>&1 || continue
  told=$("$each" -I -c 'import struct, sys; print("%d.%d.%d" % sys.version_info[:3], struct.calcsize("P") * 8)') &&
  printf 'python=%s %s\n' "$each" "$told" && break
done
exit 0
"""
_ARCHES = {"arm64": "aarch64", "amd64": "x86_64"}


@dataclass(frozen=True)
class Facts:
    """What the POSIX commands said; `python` is the first that a bundle for this device can use, empty for none.

    `installed` is `yes`, `broken` where this version is marked as installed and its Python does not start, or empty.
    """

    home: str
    boot: str
    free_bytes: int | None
    python: str
    installed: str
    board: Board


def read_facts(transport: Transport, pythons: Sequence[str], prefix: str = "", digest: str = "") -> Facts:
    """Ask the board; `pythons` are the versions that the device's bundles are made for.

    `prefix` and `digest`: the folder on the board and the version that may be installed in it. Raises HostError.
    """
    names = " ".join(f"python{version}" for version in pythons)
    sent = time.time()
    done = transport.run(["sh", "-c", _FACTS.replace("PYTHONS", names), "sh", prefix, digest], timeout=_QUICK)
    if done.code and not transport.pretends:
        hint = "the board needs a POSIX shell as its user's login shell"
        raise HostError(f"the board does not answer: {last_line(done.stderr)}", hint=hint)
    told: dict[str, list[str]] = {}
    for key, equals, value in (each.partition("=") for each in done.stdout.splitlines()):
        if equals:
            told.setdefault(key, []).append(line(value, 300))
    first = {key: values[0] for key, values in told.items()}
    home = first.get("home", "")
    if not transport.pretends and not home.startswith("/"):
        raise HostError(f"the board's HOME is {home!r}, which is no place to install to", hint="set HOME there")
    found = [words for each in told.get("python", ()) if len(words := each.split()) == 3]
    # Another Python than the wheels are for is named in the error.
    fit = next((w for w in found if w[1].rpartition(".")[0] in pythons and w[2] == "64"), None)
    shown = fit or next(iter(found), None)
    board = Board(
        system=first.get("system", "").lower(),
        arch=_ARCHES.get(first.get("arch", ""), first.get("arch", "")),
        python=f"{shown[1]}{'' if shown[2] == '64' else f' of {shown[2]} bits'}" if shown else "",
        model=first.get("model", ""),
        clock_off_s=_clock(first.get("clock", ""), (sent + time.time()) / 2),
        emulated=_emulation(first),
    )
    return Facts(
        home=home,
        boot=first.get("boot", ""),
        free_bytes=_free(first.get("free", "")),
        python=fit[0] if fit else "",
        installed=first.get("installed", ""),
        board=board,
    )


def read_board(
    transport: Transport, contents: Contents, pythons: Sequence[str] = (), prefix: str = "", digest: str = ""
) -> Facts:
    """What `read_facts` says of a board that `contents` can run on; raises HostError where it is another machine."""
    facts = read_facts(transport, pythons, prefix, digest)
    if not transport.pretends:
        check_machine(facts, contents.arch, contents.system, pythons, contents.device)
    return facts


def check_machine(facts: Facts, arch: str, system: str, pythons: Sequence[str], device: str) -> None:
    """Raise HostError where a bundle for `device` cannot run on this board; no `pythons`: any is good."""
    board = facts.board
    another = "give --device the profile of this board (edgeship devices lists them), or check --host"
    expected = {"macos": "darwin", "android": "linux"}.get(system, system)
    if board.system != expected:
        raise HostError(f"expected {system} for {device}, found {board.system or 'nothing'}", hint=another)
    if board.arch != arch:
        raise HostError(f"expected a board of {arch} for {device}, found {board.arch or 'nothing'}", hint=another)
    if pythons and not facts.python:
        found = f"Python {board.python}" if board.python else "none"
        wanted = " or ".join(pythons)
        hint = f"install python{pythons[0]} with its module venv there, or make a bundle for a device with that Python"
        raise HostError(f"expected Python {wanted} on the board, found {found}; nothing was sent", hint=hint)


def check_space(facts: Facts, needed: int) -> str:
    """Say what is free and what is needed, in bytes; raises ResourceError when it does not fit."""
    if facts.free_bytes is None:
        return f"{format_size(needed)} needed; the board does not say what is free"
    said = f"{format_size(needed)} needed, {format_size(facts.free_bytes)} free"
    if needed + MARGIN > facts.free_bytes:
        hint = f"free {format_size(needed + MARGIN - facts.free_bytes)} there, or remove older versions with --prune"
        raise ResourceError(f"the board's disk is too small: {said} at {facts.home}; nothing was sent", hint=hint)
    return said


def with_doctor(board: Board, raw: bytes, engine: str) -> tuple[Board, str]:
    """The board with what the doctor's JSON adds, and the kernels that `engine` takes there (empty: not known).

    Raises HostError for an answer that is no doctor's.
    """
    try:
        top = Fields(
            parse_json(raw, "the doctor's answer"), "the doctor's answer", "", ("device", "findings"), open=True
        )
        device = top.object("device", (), open=True)
        findings = [_finding(each) for each in top.items("findings", 1000)[:100]]
        state = _member(_member(top.value("engines"), engine), "kernels")
    except EdgeshipRuntimeError as error:
        hint = "the board runs the runtime of the bundle; make the bundle again"
        raise HostError(f"what came back is no report: {error.message}", hint=hint) from None
    isa = device.value("isa")
    told = {
        "cpu": line(device.value("model") or ""),
        "isa": tuple(line(each, 40) for each in isa[:64]) if isinstance(isa, list) else (),
        "ram_mb": _megabytes(device.value("ram_bytes")),
        "free_mb": _megabytes(device.value("ram_free_bytes")),
        "findings": tuple(findings),
    }
    return board.model_copy(update=told), line(state, 100) if isinstance(state, str) else ""


def _finding(value: Any) -> Finding:
    told = [line(_member(value, name) or "") for name in ("level", "what", "hint")]
    return Finding(level=told[0], what=told[1], hint=told[2])


def _member(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, dict) else None


def _megabytes(value: Any) -> float | None:
    sane = isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 50
    return round(value / 1e6, 1) if sane else None


def _free(text: str) -> int | None:
    """Bytes from a line of `df -Pk`; a mount point may hold blanks, a device hardly."""
    words = text.split()
    return int(words[3]) * 1024 if len(words) >= 6 and words[3].isdigit() and len(words[3]) < 16 else None


def _clock(text: str, here: float) -> float:
    off = float(text) - here if text.lstrip("-").isdigit() and len(text) < 13 else 0.0
    return round(off) if abs(off) > _CLOCK_OFF else 0.0


def _emulation(told: dict[str, str]) -> str:
    """What emulates the board, as far as it lets on."""
    if told.get("qemu"):
        return f"QEMU user mode, {told['qemu']}"
    return "QEMU, virt" if "dummy-virt" in told.get("model", "") else ""
