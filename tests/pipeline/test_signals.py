"""SIGTERM and SIGHUP: a command ends as by Ctrl-C, cleans up, and says by its exit code which it was."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tolerances import CUT_SHORT_SECONDS

PROGRAM = """\
import pathlib, signal, sys, time
signal.signal(signal.SIGHUP, signal.SIG_{hangup})
from edgeship import build, cli
def export(*_, **__):
    try:
        print("at work", flush=True)
        for _ in range(6000):  # one that comes just before a long sleep begins would wait for its end
            time.sleep(0.01)
    finally:
        time.sleep(0.5)
        pathlib.Path(sys.argv[-1], "cleaned").touch()
build.export = export
sys.argv[1:] = ["export", "tiny-int4", "--out", sys.argv[-1]]
cli.main()
"""


def start(tmp_path: Path, hangup: str = "DFL") -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROGRAM.format(hangup=hangup), str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "at work\n"
    return process


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_it_and_it_cleans_up(tmp_path: Path, number: signal.Signals, code: int) -> None:
    process = start(tmp_path)
    process.send_signal(number)
    _, errors = process.communicate(timeout=CUT_SHORT_SECONDS)
    assert process.returncode == code
    assert errors.strip() == ("interrupted" if number != signal.SIGHUP else "")  # to whom, without a terminal?
    assert (tmp_path / "cleaned").exists()


def test_a_second_signal_does_not_cut_the_cleaning_short(tmp_path: Path) -> None:
    process = start(tmp_path)
    for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGHUP):
        process.send_signal(number)
    process.communicate(timeout=CUT_SHORT_SECONDS)
    assert process.returncode in (129, 143)  # pending at the same time, they have no order
    assert (tmp_path / "cleaned").exists()


def test_what_nohup_ignores_stays_ignored(tmp_path: Path) -> None:
    process = start(tmp_path, "IGN")
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=CUT_SHORT_SECONDS)
    assert process.returncode == 143
    assert (tmp_path / "cleaned").exists()
