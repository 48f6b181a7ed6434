"""`edgeship-runtime doctor` on an emulated board, out of the wheel alone: nothing is installed there."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from boards import plant
from device.board import Board
from device.wheels import runtime_wheel

pytestmark = pytest.mark.device

COMPILER = "aarch64-linux-gnu-gcc"
NEWER = """
#include <arm_neon.h>
volatile int8_t bytes[16];
__attribute__((constructor)) void start(void) {
    int8x16_t a = vld1q_s8((int8_t *)bytes);
    bytes[0] = vgetq_lane_s32(vdotq_s32(vdupq_n_s32(0), a, a), 0);
}
"""
LOADS_IT = (
    "import ctypes, pathlib\nctypes.CDLL(pathlib.Path(__file__).with_name('newer.so'))\nSessionOptions = object\n"
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runtime_wheel(tmp_path_factory.mktemp("wheel"))


def doctor(board: Board, wheel: Path, *before: str) -> tuple[int, Any]:
    path = ":".join([*before, f"doctor/{wheel.name}"])
    done = board.run(f"PYTHONPATH={path} python3 -m edgeship_runtime doctor --json")
    assert done.stderr == ""
    return done.returncode, json.loads(done.stdout)


def test_a_bare_board(board: Board, wheel: Path) -> None:
    board.put([wheel], "doctor")
    code, found = doctor(board, wheel)
    device, old = found["device"], board.model.name == "pi4"
    assert (code, device["model"], device["arch"]) == (0, board.model.title, "aarch64")
    assert device["libc"] == "glibc 2.36"
    assert device["isa"] == ([] if old else ["dotprod", "fp16"])
    assert [(each["kind"], each["count"]) for each in device["cores"]] == [(f"Cortex-A7{2 if old else 6}", 4)]
    assert {each["state"] for each in found["engines"].values()} == {"missing"}
    assert any("no dotprod" in each["what"] for each in found["findings"]) == old


def test_a_wheel_for_a_pi_5_is_refused_on_a_pi_4(board: Board, wheel: Path, tmp_path: Path) -> None:
    compiler = shutil.which(COMPILER)
    if compiler is None:
        pytest.skip(f"{COMPILER} is not installed")
    package = {"onnxruntime/__init__.py": LOADS_IT, "onnxruntime-1.0.dist-info/METADATA": "Version: 1.0\n"}
    site = plant(tmp_path / "site", package)
    source = tmp_path / "newer.c"
    source.write_text(NEWER)
    target = str(site / "onnxruntime/newer.so")
    command = [compiler, "-O2", "-shared", "-fPIC", "-march=armv8.2-a+dotprod", str(source), "-o", target]
    subprocess.run(command, check=True)
    board.put([wheel, site], "doctor")
    code, found = doctor(board, wheel, "doctor/site")
    engine = found["engines"]["ort"]
    if board.model.name == "pi4":
        assert (code, engine["state"], engine["detail"]) == (16, "crashes", "SIGILL")
    else:
        assert (code, engine["state"], engine["kernels"]) == (0, "ok", "dotprod KleidiAI")
