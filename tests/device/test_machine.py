"""The whole path on a machine of its own kernel: 16 KiB pages, 2 GB of memory, and a clock that is wrong by years."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from device.board import Board
from device.machine import MEMORY_MB, PAGE
from device.shipping import FORMATS, ended, make_bundle, validate

pytestmark = [pytest.mark.device, pytest.mark.timeout(3600)]

DEVICE = "raspberry-pi-5-8gb"  # its profile has the page size; the memory is that of the smallest Pi 5 there is


def test_it_has_a_kernel_of_its_own(machine: Board) -> None:
    said = machine.run("getconf PAGESIZE; date +%Y; grep MemTotal /proc/meminfo").stdout.split()
    assert said[:2] == [str(PAGE), "2016"]
    assert 0.9 * MEMORY_MB < int(said[3]) / 1024 < MEMORY_MB


def test_the_limit_of_memory_is_real(machine: Board) -> None:
    done = machine.run("python3 -c 'x = bytearray(3 << 30)'; echo $?", timeout=300)
    assert done.stdout.strip() in ("1", "137")  # refused, or ended by the kernel


@pytest.mark.parametrize("engine", FORMATS)
def test_validate(machine: Board, engine: str, tiny: Path, tmp_path: Path, say: Callable[[str], None]) -> None:
    """For the second engine it is reset while it measures."""
    bundle = make_bundle(tiny, DEVICE, engine, tmp_path / "bundles", say)
    reset = engine == "llamacpp"

    def on_line(line: str) -> None:
        step = ended(line)
        if step:
            say("  " + line.partition(": ")[2])
        if step == "verify" and reset:
            time.sleep(3)
            machine.inflict("system_reset")

    told = validate(bundle, DEVICE, machine, tmp_path / "reports", on_line)
    assert told.code == 0, told.text
    report = told.report
    for check in report["checks"]:
        say(f"  {check['name']}: {check['found']}")
    assert report["verdict"] == "pass"
    assert report["agreement"]["wrong"] == 0
    assert report["board"]["ram_mb"] < MEMORY_MB * 1.05
    assert "QEMU" in report["board"]["emulated"]
    assert report["board"]["clock_off_s"] < -5 * 365 * 86400
    assert any("clock is off by" in note and "years" in note for note in report["notes"])
    assert report["time"] > "2025"
    assert any(note.startswith("bench: ") and "restart" in note for note in report["notes"]) == reset, told.text
