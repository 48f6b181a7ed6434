"""Can this machine run an engine, and an artifact? What is there, what is missing, and what to do about it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from edgeship_runtime.board import ROOT, Board, compiled, foreign, kernels, read_board
from edgeship_runtime.console import safe
from edgeship_runtime.engines import FORMAT_OF
from edgeship_runtime.errors import EdgeshipRuntimeError
from edgeship_runtime.manifest import read_manifest
from edgeship_runtime.strict import show

UNFIT_EXIT_CODE = 16
"""Something stops an engine, or the artifact, from running here."""
PACKAGES = {"ort": "onnxruntime", "llamacpp": "llama-cpp-python"}
"""Name of an engine to the package it is in."""
_MODULES = {"ort": "onnxruntime", "llamacpp": "llama_cpp"}
_TIMEOUT_S = 120  # an engine is read from a slow card in a few seconds
_WORK_BYTES = 150_000_000  # Python, the engine's code, activations of a prompt
_HOT_C = 80  # where a Raspberry Pi begins to slow down


@dataclass(frozen=True)
class EngineState:
    """An engine's package, tried in a process of its own; `detail`: the signal, or what it said."""

    version: str | None
    state: Literal["ok", "missing", "crashes", "fails"]
    detail: str = ""
    kernels: str | None = None


@dataclass(frozen=True)
class Finding:
    """Something to know; an error stops something from running."""

    level: Literal["error", "warning", "note"]
    what: str
    hint: str = ""


@dataclass(frozen=True)
class Probe:
    """What was found."""

    device: Board
    engines: dict[str, EngineState]
    findings: tuple[Finding, ...]
    artifact: dict[str, Any] | None = None

    @property
    def exit_code(self) -> int:
        """0, or UNFIT_EXIT_CODE when a finding is an error."""
        return UNFIT_EXIT_CODE if any(each.level == "error" for each in self.findings) else 0

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dumps`."""
        return {"schema": 1, **asdict(self)}

    def table(self) -> str:
        """The same for people."""
        board, need = self.device, self.artifact
        kinds = [f"{each.count} x {each.kind}{f' at {each.mhz} MHz' if each.mhz else ''}" for each in board.cores]
        heat = "unknown" if board.temperature_c is None else f"{board.temperature_c:.0f} °C"
        page = f"pages of {board.page_size // 1024} KiB" if board.page_size else None
        rows = [
            ("machine", board.model),
            ("system", _list(f"{board.os} {board.arch}", board.libc, f"Python {board.python}", page)),
            ("cores", _list(*kinds)),
            ("features", "unknown" if board.isa is None else " ".join(board.isa) or "none that engines look for"),
            ("memory", f"{_gb(board.ram_bytes)}, {_gb(board.ram_free_bytes)} free"),
            ("swap", f"{_gb(board.swap_bytes)}, {_gb(board.swap_free_bytes)} free"),
            ("disk", f"{_gb(board.disk_free_bytes)} free"),
            ("clock", f"{board.mhz or 'unknown'} MHz now, governor {board.governor or 'unknown'}"),
            ("heat", _list(heat, *(("not throttled",) if board.throttled == () else board.throttled or ()))),
            *((name, _engine(PACKAGES[name], each)) for name, each in self.engines.items()),
            *(
                [("artifact", f"{need['name']}: engine {need['engine']}, about {_gb(need['need_bytes'])} of memory")]
                if need
                else ()
            ),
        ]
        lines = [f"{name:<12} {text}" for name, text in rows]
        for each in self.findings:
            lines += [f"{each.level}: {each.what}", *([f"  {each.hint}"] if each.hint else [])]
        return "\n".join(lines)


def probe(
    artifact: str | Path | None = None, *, root: Path = ROOT, progress: Callable[[str], None] = lambda _: None
) -> Probe:
    """Look at this machine and try its engines; raises ArtifactError for an artifact whose manifest cannot be read.

    /proc and /sys are read below `root`; `progress` is told what is being tried.
    """
    from edgeship_runtime.info import describe

    facts = describe(artifact) if artifact else None
    need = _need(facts) if facts else None
    board = read_board(root, Path(facts["artifact"]) if facts else Path())
    engines = {}
    for name, package in PACKAGES.items():
        progress(f"trying {package}")
        engines[name] = try_engine(name, root)
    found = [*_machine(board), *_engines(engines, need), *_state(board), *_room(board, need)]
    found += _versions(Path(facts["artifact"])) if facts else []
    found.sort(key=lambda each: ("error", "warning", "note").index(each.level))
    return Probe(board, engines, tuple(found), need)


def try_engine(name: str, root: Path = ROOT) -> EngineState:
    """Load an engine in a process of its own, which a wheel built for another processor ends."""
    try:
        version = safe(metadata.version(PACKAGES[name]))[:40]
    except metadata.PackageNotFoundError:  # onnxruntime-gpu and its like hold the same module
        if find_spec(_MODULES[name]) is None:
            return EngineState(None, "missing")
        version = "of unknown version"
    program = "import sys; from edgeship_runtime.doctor import child; child(*sys.argv[1:])"
    # The same modules as here, and none of the working directory.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        command = [sys.executable, "-P", "-c", program, name, str(root)]
        none = subprocess.DEVNULL
        ended = subprocess.run(command, stdin=none, capture_output=True, env=environment, timeout=_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return EngineState(version, "fails", f"no end after {_TIMEOUT_S} s")
    except OSError as error:
        return EngineState(version, "fails", safe(str(error)))
    code = ended.returncode
    said = [safe(line)[:400] for line in ended.stderr.decode("utf-8", "replace").split("\n") if line.strip()]
    if code < 0 or code > 255:  # Windows ends a process with its exception's number
        with suppress(ValueError):
            return EngineState(version, "crashes", signal.Signals(-code).name)
        return EngineState(version, "crashes", f"exit code {code:#x}")
    try:
        told = json.loads(ended.stdout.decode("utf-8", "replace").strip().rpartition("\n")[2])
        lacking, kind = list(told["foreign"]), str(told["kernels"])
    except (ValueError, TypeError, KeyError):
        return EngineState(version, "fails", said[-1] if said else f"exit code {code}")
    if lacking:
        detail = f"SIGILL: built for {', '.join(lacking)}, which this processor lacks"
        return EngineState(version, "crashes", detail, kind)
    return EngineState(version, "ok", kernels=kind)


def child(name: str, root: str) -> None:
    """What `try_engine` runs: load the engine and print its kernels and the instructions it needs in vain, as JSON."""
    with suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # no core file on a small disk
    try:
        if name == "ort":
            import onnxruntime

            onnxruntime.SessionOptions()
        built = compiled() if name == "llamacpp" else frozenset()
        if name == "llamacpp" and not built:
            sys.exit("it has no library for this processor")
    except (EdgeshipRuntimeError, ImportError, OSError, AttributeError) as error:
        sys.exit(" ".join(str(error.__context__ or error).split()))  # the first says which module, or why not
    at = Path(root)
    print("\n" + json.dumps({"kernels": kernels(PACKAGES[name], at), "foreign": foreign(built, at)}))


def _need(facts: dict[str, Any]) -> dict[str, Any]:
    """What an artifact asks for: its engine, and about how much memory at the default context."""
    engine = next(name for name, form in FORMAT_OF.items() if form == facts["format"])
    cache = int(facts["kv_cache"]["mb"] * 1e6)
    total = sum(facts["files"].values()) + cache + _WORK_BYTES
    return {"name": facts["name"], "engine": engine, "need_bytes": total, "kv_bytes": cache}


def _machine(board: Board) -> list[Finding]:
    found = []
    if board.bits < 64:
        hint = "install a 64-bit system, such as Raspberry Pi OS (64-bit)"
        found.append(Finding("error", "this Python is of 32 bits: engines have no wheels for it", hint))
    if board.os == "linux" and "glibc" not in (board.libc or ""):
        found.append(Finding("warning", "no glibc: onnxruntime has no wheel for this system", "use Debian or the like"))
    fast = {"aarch64": "dotprod", "x86_64": "avx2"}.get(board.arch)
    if board.isa is not None and fast and fast not in board.isa:
        # On an emulated Raspberry Pi 4, and with MatMulNBits' own fp32 path on x86.
        slow = "about ten times" if fast == "dotprod" else "some five times"
        what = f"no {fast}: onnxruntime computes 4-bit weights in fp32, {slow} slower"
        found.append(Finding("warning", what, "prefer the GGUF artifact, which llama.cpp runs"))
    return found


def _engines(engines: dict[str, EngineState], need: dict[str, Any] | None) -> list[Finding]:
    found = []
    for name, each in engines.items():
        if need and need["engine"] != name:
            continue
        install = f"pip install 'edgeship-runtime[{name}]'"
        if each.state == "missing" and need:
            found.append(Finding("error", f"the artifact needs {PACKAGES[name]}, which is not installed", install))
        elif each.state in ("crashes", "fails"):
            what = f"{PACKAGES[name]} {each.version} {each.state} ({each.detail}): nothing can run with it"
            hint = (
                "install a wheel that is built for this processor"
                if each.state == "crashes" or "processor" in each.detail
                else f"install it again: {install}"
            )
            found.append(Finding("error", what, hint))
    if not need and all(each.state == "missing" for each in engines.values()):
        hint = "pip install 'edgeship-runtime[ort]' or 'edgeship-runtime[llamacpp]'"
        found.append(Finding("warning", "no engine is installed", hint))
    return found


def _versions(path: Path) -> list[Finding]:
    """Packages that the artifact asks for and that are older, or not there; its engine is another's business."""
    from edgeship_runtime.engines.checks import check_version

    found, manifest = [], read_manifest(path)
    for package in manifest.versions:
        try:
            check_version(package, metadata.version(package), manifest)
        except EdgeshipRuntimeError as error:
            found.append(Finding("error", error.message, error.hint))
        except (metadata.PackageNotFoundError, ValueError):
            if package not in PACKAGES.values():
                found.append(Finding("error", f"the artifact needs {show(package)}, which is not installed"))
    return found


def _state(board: Board) -> list[Finding]:
    found = []
    held = _list(*board.throttled or ())
    cool = "add a heat sink or a fan, or use fewer threads"
    if held:
        hint = "use the board's own power supply" if "voltage" in held else cool
        found.append(Finding("warning" if "now" in held else "note", f"the clock is held back: {held}", hint))
    if (board.temperature_c or 0) >= _HOT_C:
        found.append(Finding("warning", f"{board.temperature_c:.0f} °C: it is about to slow down", cool))
    if board.governor == "powersave" and board.arch == "aarch64":  # on x86 it is the usual one, and fast
        command = "echo performance | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor"
        found.append(Finding("warning", "the governor powersave keeps the lowest clock", command))
    names = [name for name, value in vars(board).items() if value is None and name != "libc"]
    missing = [name.removesuffix("_bytes").removesuffix("_c").replace("_", " ") for name in names]
    return [*found, Finding("note", f"the system does not say: {_list(*missing)}")] if missing else found


def _room(board: Board, need: dict[str, Any] | None) -> list[Finding]:
    found = []
    free, swap, disk = board.ram_free_bytes, board.swap_bytes, board.disk_free_bytes
    if need and free is not None and need["need_bytes"] > free:
        what = f"the artifact needs about {_gb(need['need_bytes'])} of memory, and {_gb(free)} are free"
        hint = f"end other programs, take a smaller model, or a smaller --context (its cache: {_gb(need['kv_bytes'])})"
        found.append(Finding("error", what, hint))
    elif free is not None and free < 500e6:
        found.append(Finding("warning", f"only {_gb(free)} of memory are free", "end other programs"))
    if swap is not None and swap - (board.swap_free_bytes or 0) > 100e6:
        found.append(Finding("warning", "swap is in use: memory was short", "end other programs"))
    if swap == 0 and (board.ram_bytes or 4e9) < 4e9:
        found.append(Finding("note", "no swap: a process that needs more memory than there is, is ended", "zram helps"))
    if disk is not None and disk < 1e9:
        found.append(Finding("warning", f"only {_gb(disk)} of disk are free", "remove what is not needed"))
    return found


def _engine(package: str, each: EngineState) -> str:
    text = f"{package} {each.version}: {each.state}" if each.version else f"{package}: missing"
    return _list(
        text + (f" ({each.detail})" if each.detail else ""), f"kernels {each.kernels}" if each.kernels else None
    )


def _list(*parts: str | None) -> str:
    return ", ".join(part for part in parts if part)


def _gb(size: int | None) -> str:
    return "unknown" if size is None else f"{size / 1e9:.2f} GB"
