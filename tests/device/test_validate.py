"""The whole path on each emulated board, with both engines: bundle, push, install offline, verify, bench, report."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from device.board import CAVEAT, Board
from device.shipping import FORMATS, answer, make_bundle, validation

pytestmark = [pytest.mark.device, pytest.mark.timeout(3600)]


@pytest.mark.parametrize("engine", FORMATS)
def test_validate(board: Board, engine: str, tiny: Path, tmp_path: Path, say: Callable[[str], None]) -> None:
    bundle = make_bundle(tiny, board.model.device, engine, tmp_path / "bundles", say)
    command = validation(bundle, board.model.device, board, tmp_path / "reports")
    board.run("rm -rf edgeship")
    seconds, reports = [], []
    for _ in range(2):
        started = time.monotonic()
        reports.append(answer(*command)["results"][0]["report"])
        seconds.append(time.monotonic() - started)
    say(f"{board.model.name}, {engine}: validated in {seconds[0]:.0f} s, again in {seconds[1]:.0f} s")
    for check in reports[0]["checks"]:
        say(f"  {check['name']}: {check['found']}")
    for report in reports:
        say(f"  verdict: {report['verdict']}, {CAVEAT}")
        say("  " + ", ".join(f"{step['name']} {step['seconds']:.1f} s" for step in report["steps"]))
        assert report["verdict"] == "pass"
        assert report["engine"] == engine
        assert report["board"]["arch"] == "aarch64"
        assert report["board"]["emulated"]
        assert report["agreement"]["wrong"] == 0
        (decode,) = (check for check in report["checks"] if check["name"] == "decode tokens/s")
        assert decode["passed"] is None
        assert "emulated" in decode["found"]
    said = {step["name"]: step["said"] for step in reports[1]["steps"]}
    assert said["push"].startswith("0 files, 0 B sent")
    assert said["install"].endswith("is there")
    assert said["verify"].startswith("pass, as at 20")
