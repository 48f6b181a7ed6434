"""An artifact in the page of its bundle, beside native engines with one thread: memory of the tab, tokens per second.

compare_web.py ARTIFACT [--formats onnx gguf] [--prompt 16] [--tokens 8] [--threads 1] [--rounds 1]

Each round runs headless Chromium, which installs the bundle, loads the model and answers, and the native engine by
turns. A tab's memory is the most that its renderer process held of its own, with its share of pages that it has in
common with other processes of the browser (PSS, looked at five times a second), in MB of 10^6 bytes; beside it stands
what the kernel counts with shared pages whole (VmHWM). Ends with 1 where a tab took 1,500 MB or more.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

sys.path += [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "web")]

from edgeship import catalog
from edgeship.progress import Silent
from edgeship.ship.web_app import find_app
from edgeship.ship.web_bundle import make_web_bundle
from phone import phone, serving
from process import machine

ENGINES = {"onnx": "ort", "gguf": "llamacpp"}
LIMIT_MB = 1500


@dataclass(frozen=True)
class Run:
    """Tokens per second, seconds to load, and MB of the tab (0 for a native engine)."""

    load_s: float
    prefill: float
    decode: float
    peak_mb: float = 0.0
    pss_mb: float = 0.0


class Tab(threading.Thread):
    """Looks at the renderers of a browser's profile until told to end; keeps the most that any of them held."""

    def __init__(self, profile: Path) -> None:
        super().__init__(daemon=True)
        self._profile = f"--user-data-dir={profile}".encode()
        self._ended = threading.Event()
        self.peak = self.pss = 0.0

    def run(self) -> None:
        while not self._ended.wait(0.2):
            for process in _children(self._profile):
                with suppress(OSError, StopIteration):
                    self.peak = max(self.peak, _kilobytes(process / "status", "VmHWM:") / 1000 * 1.024)
                    self.pss = max(self.pss, _kilobytes(process / "smaps_rollup", "Pss:") / 1000 * 1.024)

    def end(self) -> None:
        self._ended.set()
        self.join()


def _children(profile: bytes) -> list[Path]:
    """Renderers whose ancestor runs with the profile."""
    parents: dict[str, str] = {}
    roots: set[str] = set()
    renderers = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, IndexError):
            command = (process / "cmdline").read_bytes()
            parents[process.name] = (process / "stat").read_text().rsplit(")", 1)[1].split()[1]
            roots |= {process.name} if profile in command.split(b"\0") else set()
            renderers += [process] if b"--type=renderer" in command else []
    return [process for process in renderers if _descends(process.name, parents, roots)]


def _descends(pid: str, parents: dict[str, str], roots: set[str]) -> bool:
    while pid in parents:
        if pid in roots:
            return True
        pid = parents[pid]
    return False


def _kilobytes(path: Path, name: str) -> float:
    return float(next(line for line in path.read_text().splitlines() if line.startswith(name)).split()[1])


def in_the_page(playwright: Any, site: Path, scratch: Path, arguments: argparse.Namespace) -> Run:
    """Install, load, and answer a prompt greedily."""
    prompt = [7919 * place % arguments.vocabulary for place in range(1, arguments.prompt + 1)]
    profile = scratch / "profile"
    tab = Tab(profile)
    with serving(site, scratch / "reports") as host, phone(playwright, host.url, profile, slower=1) as here:
        here.open(f"?backend=wasm&threads={arguments.threads}&context=512")
        here.install(minutes=10)
        here.open(f"?backend=wasm&threads={arguments.threads}&context=512")  # a page that has installed nothing
        tab.start()
        loaded = here.ask("load", {"backend": "wasm", "threads": arguments.threads, "context": 512})
        found = here.ask("generate", prompt, arguments.tokens)
        tab.end()
    speeds = found["prefill_tokens_per_s"], found["decode_tokens_per_s"]
    return Run(loaded["seconds"], *speeds, tab.peak, tab.pss)


def natively(directory: Path, engine: str, arguments: argparse.Namespace) -> Run:
    """The runtime's own bench, in a process of its own."""
    given = ["--prompt-tokens", str(arguments.prompt), "--decode-tokens", str(arguments.tokens), "--repeats", "1"]
    command = [sys.executable, "-m", "edgeship_runtime", "bench", str(directory), "--engine", engine, *given]
    done = subprocess.run([*command, "--threads", "1", "--json"], capture_output=True, text=True, check=True)
    told = json.loads(done.stdout)
    return Run(told["load_s"], told["prefill_tokens_per_s"], told["decode_tokens_per_s"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--formats", nargs="+", choices=list(ENGINES), default=["onnx"])
    parser.add_argument("--prompt", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=1)
    arguments = parser.parse_args()
    app, device, worst = find_app(None, Silent()), catalog.find_device("phone-web"), 0.0
    print(machine())
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        for form in arguments.formats:
            directory, engine = arguments.artifact / form, ENGINES[form]
            arguments.vocabulary = json.loads((directory / "edgeship.json").read_text())["model"]["vocab_size"]
            out = Path(folder) / form
            made = make_web_bundle(directory, device, engine, out, app=app.path, kind=None, progress=Silent())
            pairs = []
            for turn in range(arguments.rounds):
                scratch = out / str(turn)
                scratch.mkdir()
                there = in_the_page(playwright, made.path, scratch, arguments)
                pairs.append((there, natively(directory, engine, arguments)))
                _tell(form, *pairs[-1])
            ratio = statistics.median(page.decode / native.decode for page, native in pairs)
            print(f"{form}: page / native, one thread: decode {ratio:.3f}, the median of {len(pairs)}")
            worst = max([worst, *(page.pss_mb for page, _ in pairs)])
    print(f"the largest tab held {worst:.0f} MB; at most {LIMIT_MB} MB are allowed")
    return int(worst >= LIMIT_MB)


def _tell(form: str, page: Run, native: Run) -> None:
    print(
        f"{form}: page: load {page.load_s:.1f} s, prefill {page.prefill:.2f}, decode {page.decode:.2f} tokens/s, tab "
        f"{page.pss_mb:.0f} MB (VmHWM {page.peak_mb:.0f}); native: load {native.load_s:.1f} s, prefill "
        f"{native.prefill:.1f}, decode {native.decode:.1f} tokens/s",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
