"""Connections, power and wheels that fail on the way to a board: the step is done again, or refused by name."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from device.board import Board
from device.models import PI4, PI5
from device.shipping import NAME, ended, host_of, make_bundle, need_engine, standing, validate
from edgeship_runtime.doctor import UNFIT_EXIT_CODE

pytestmark = [pytest.mark.device, pytest.mark.timeout(3600)]

Say = Callable[[str], None]

# A step, the one whose end says that it begins, and seconds after which it is under way on an emulated board.
STEPS = {
    "space": ("probe", 0.1),
    "push": ("space", 1.0),
    "install": ("push", 6.0),
    "doctor": ("install", 1.0),
    "verify": ("doctor", 2.0),
    "bench": ("verify", 1.5),
    "fetch": ("bench", 0.0),
}
# How it is interrupted, and in which steps.
INTERRUPTIONS: dict[str, tuple[Callable[[Board], None], tuple[str, ...]]] = {
    "the connection is cut": (Board.cut_connections, tuple(STEPS)),
    "the power fails": (Board.cut_power, ("push", "install", "verify", "bench")),
    "it restarts, seconds long": (lambda board: board.cut_power(4), ("install", "bench")),
}


def only(board: Board, model: object) -> None:
    """Skip on the other model: the same for every one, and minutes long."""
    if board.model != model:
        pytest.skip("the same for every model")


@pytest.mark.parametrize("how", INTERRUPTIONS)
def test_interrupted_in_its_steps_it_goes_on(board: Board, tiny: Path, tmp_path: Path, how: str, say: Say) -> None:
    only(board, PI5)
    interrupt, steps = INTERRUPTIONS[how]
    bundle = make_bundle(tiny, board.model.device, "ort", tmp_path / "bundles", say)
    board.run("rm -rf edgeship")
    after = {STEPS[step][0]: STEPS[step][1] for step in steps}

    def on_line(line: str) -> None:
        delay = after.pop(ended(line) or "", None)
        if delay is not None:
            time.sleep(delay)
            interrupt(board)

    told = validate(bundle, board.model.device, board, tmp_path / "reports", on_line)
    assert told.code == 0, told.text
    assert after == {}
    found = told.report
    assert found["verdict"] == "pass"
    say(f"{how}: " + "; ".join(note for note in found["notes"] if "resumed" in note))
    for step in ("install", "bench"):
        assert any(note.startswith(f"{step}: ") and "resumed" in note for note in found["notes"]), told.text
    if interrupt is not Board.cut_connections:
        assert any(note.startswith("bench: ") and "restart" in note for note in found["notes"]), told.text
    current, digest, *names = standing(board)
    assert current == digest == bundle_digest(bundle)
    assert sorted(names) == sorted([current, "current"])
    assert board.run(f"find edgeship/{NAME} -name .edgeship-half").stdout == ""


def bundle_digest(bundle: Path) -> str:
    """The name of the bundle's version on a board."""
    script = (bundle / "install.sh").read_text()
    return script.partition("\ndigest='")[2].partition("'")[0]


def test_a_board_that_is_gone_before_it_was_reached(board: Board, tiny: Path, tmp_path: Path, say: Say) -> None:
    only(board, PI5)
    bundle = make_bundle(tiny, board.model.device, "ort", tmp_path / "bundles", say)
    board.cut_power(20)
    told = validate(bundle, board.model.device, board, tmp_path / "reports")
    assert told.code == 12, told.text
    assert f"{host_of(board)}, step probe: no connection" in told.text
    assert "hint: check that the board is on" in told.text
    time.sleep(20)


@pytest.fixture
def another_build(tiny: Path, tmp_path: Path, board: Board, say: Say) -> Path:
    """A bundle whose llama.cpp was built for a Pi 5 alone."""
    if board.model != PI4:
        pytest.skip("needs a board with fewer instructions")
    need_engine("llamacpp", PI5.device, say, cpu="device")
    return make_bundle(tiny, PI5.device, "llamacpp", tmp_path / "bundles", say)


def test_a_build_for_another_processor_is_refused(
    board: Board, another_build: Path, tiny: Path, tmp_path: Path, say: Say
) -> None:
    board.run("rm -rf edgeship")
    told = validate(another_build, PI5.device, board, tmp_path / "reports")
    say("\n  ".join(told.text.strip().splitlines()[-3:]))
    assert told.code == 12, told.text
    assert "Traceback" not in told.text
    assert f"{host_of(board)}, step install: llama-cpp-python" in told.text
    assert "crashes" in told.text
    assert "hint: make a bundle for this device" in told.text
    assert board.run(f"ls edgeship/{NAME}").stdout == ""  # no version, and no link to one


def test_the_doctor_finds_a_build_for_another_processor(board: Board, another_build: Path) -> None:
    board.put([another_build / "wheels"], "other")
    install = "python3 -m venv other/venv && other/venv/bin/pip install --no-index --no-deps --no-compile"
    done = board.run(
        f"{install} $(ls other/wheels/*.whl | grep -v /pip-) && other/venv/bin/edgeship-runtime doctor --json"
    )
    assert done.returncode == UNFIT_EXIT_CODE, done.stderr + done.stdout
    told = json.loads(done.stdout[done.stdout.index("{\n") :])  # after what pip says
    state = told["engines"]["llamacpp"]
    assert state["state"] == "crashes"
    assert "DOTPROD" in state["detail"]
