"""What goes wrong on the way to a board: the power fails in each step, and a wheel is for another processor."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from device.board import Board
from device.models import PI4, PI5
from device.shipping import EDGESHIP, make_bundle, validation
from edgeship import catalog
from edgeship.ship.llamacpp_wheel import find_wheel
from edgeship_runtime.doctor import UNFIT_EXIT_CODE

pytestmark = [pytest.mark.device, pytest.mark.timeout(3600)]

# A step, the one whose end says that it begins, and seconds after which it is well under way.
STEPS = [("push", "space", 1.0), ("install", "push", 4.0), ("bench", "verify", 1.5)]


def need_pi5_build() -> None:
    """Skip where llama.cpp was not built for the Pi 5's processor alone."""
    wheel = find_wheel(catalog.find_device(PI5.device))
    if wheel is None or "-all-" in wheel.parent.name:
        pytest.skip(f"not built: edgeship wheel-llamacpp --device {PI5.device} --cpu device")


@pytest.mark.parametrize(("step", "before", "delay"), STEPS, ids=[step for step, _, _ in STEPS])
def test_a_power_cut_in_a_step_is_survived(
    board: Board, tiny: Path, tmp_path: Path, step: str, before: str, delay: float
) -> None:
    if board.model != PI5:
        pytest.skip("the same for every model")
    bundle = make_bundle(tiny, board.model.device, "ort", tmp_path / "bundles")
    board.run("rm -rf edgeship")
    command = [EDGESHIP, *validation(bundle, board.model.device, board, tmp_path / "reports")]
    told = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as running:
        assert running.stdout
        for line in running.stdout:
            told.append(line)
            if f": {before}: " in line and line.endswith(" s)\n"):  # the end of a step, not its progress
                time.sleep(delay)
                board.cut_power()
                before = "none"
    assert running.returncode == 0, "".join(told)
    (report,) = (tmp_path / "reports").rglob("*.json")
    found = json.loads(report.read_text())
    assert found["verdict"] == "pass"
    assert any(note.startswith(f"{step}: ") and "resumed" in note for note in found["notes"]), found["notes"]
    whole, half = (
        board.run(f"find edgeship/tiny-int4 -name .edgeship-{name}").stdout for name in ("installed", "half")
    )
    assert len(whole.split()) == 1
    assert half == ""
    assert board.run("cat edgeship/tiny-int4/current/.edgeship-installed").returncode == 0


def test_a_build_for_another_processor_is_refused(
    board: Board, tiny: Path, tmp_path: Path, say: Callable[[str], None]
) -> None:
    if board.model != PI4:
        pytest.skip("needs a board with fewer instructions")
    need_pi5_build()
    bundle = make_bundle(tiny, PI5.device, "llamacpp", tmp_path / "bundles")
    board.run("rm -rf edgeship")
    command = [EDGESHIP, *validation(bundle, PI5.device, board, tmp_path / "reports")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    say("\n  ".join(done.stderr.strip().splitlines()[-3:]))
    assert done.returncode not in (0, 1), done.stderr
    assert "Traceback" not in done.stderr
    assert "hint:" in done.stderr
    assert board.run("ls edgeship/tiny-int4").stdout == ""  # no version, and no link to one


def test_the_doctor_finds_a_build_for_another_processor(board: Board, tiny: Path, tmp_path: Path) -> None:
    if board.model != PI4:
        pytest.skip("needs a board with fewer instructions")
    need_pi5_build()
    bundle = make_bundle(tiny, PI5.device, "llamacpp", tmp_path / "bundles")
    board.put([bundle / "wheels"], "other")
    install = "python3 -m venv other/venv && other/venv/bin/pip install --no-index --no-deps --no-compile"
    done = board.run(
        f"{install} $(ls other/wheels/*.whl | grep -v /pip-) && other/venv/bin/edgeship-runtime doctor --json"
    )
    assert done.returncode == UNFIT_EXIT_CODE, done.stderr + done.stdout
    told = json.loads(done.stdout[done.stdout.index("{\n") :])  # after what pip says
    state = told["engines"]["llamacpp"]
    assert state["state"] == "crashes"
    assert "DOTPROD" in state["detail"]
