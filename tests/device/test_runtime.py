"""The runtime on each emulated board: installed without a network, verified, measured."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from device.board import CAVEAT, Board
from device.wheels import ort_wheels, runtime_wheel
from edgeship import catalog

pytestmark = [pytest.mark.device, pytest.mark.timeout(3600)]

Say = Callable[[str], None]

# Deviations, of golden logits in float32: a Pi 4 has no dotprod, so onnxruntime multiplies int4 weights in float32
# (measured 2e-5); a Pi 5 rounds activations to 8 bits (0.07). The runtime's own limit is for models of many layers.
LOGITS_STD = {"pi4": 1e-3, "pi5": 0.2}
ONE_THREAD = "--threads 1"  # emulated threads wait for each other far longer than they work


@pytest.fixture(scope="session")
def installed(
    board: Board, tiny: Path, tmp_path_factory: pytest.TempPathFactory, say: Say
) -> Callable[..., dict[str, Any]]:
    """Runs `edgeship-runtime ... --json` on a board that has it and the ONNX artifact."""
    wheels = [*ort_wheels(), runtime_wheel(tmp_path_factory.mktemp("wheel"))]
    started = time.monotonic()
    board.put(wheels, "wheels")
    board.put([tiny / "onnx"], "tiny")
    names = " ".join(f"wheels/{wheel.name}" for wheel in wheels)
    install = f"python3 -m venv venv && venv/bin/pip install --no-index --no-deps --no-compile {names}"
    done = board.run(install, timeout=1800)
    assert done.returncode == 0, done.stderr + done.stdout
    size = sum(wheel.stat().st_size for wheel in wheels) / 1e6
    say(f"{board.model.name}: {len(wheels)} wheels, {size:.1f} MB, installed in {time.monotonic() - started:.0f} s")

    def command(name: str, *arguments: str) -> dict[str, Any]:
        line = " ".join(["venv/bin/edgeship-runtime", name, "tiny/onnx", "--json", *arguments])
        done = board.run(line, timeout=1200)
        assert done.returncode == 0, done.stderr + done.stdout
        value: dict[str, Any] = json.loads(done.stdout)
        return value

    return command


def test_verify(board: Board, installed: Callable[..., dict[str, Any]], say: Say) -> None:
    verdict = installed("verify", ONE_THREAD)
    agreement = verdict["agreement"]
    say(
        f"{board.model.name}: {agreement['equal']} of {agreement['positions']} tokens equal, "
        f"{agreement['near_ties']} near ties, logits off by {agreement['max_logit_error']} "
        f"({agreement['max_logit_error_std']} deviations) at most, {verdict['seconds']:.0f} s"
    )
    for tie in agreement["ties"]:
        say(f"  {tie['case']}, position {tie['index']}: {tie['chosen']} for {tie['expected']}, {tie['gap_std']} apart")
    assert verdict["verdict"] == "pass"
    assert verdict["intact"] is True
    for check in ("templates", "tokens"):
        assert verdict[check]["equal"] == verdict[check]["cases"] > 0
    assert agreement["engine"].startswith("onnxruntime")
    assert agreement["wrong"] == 0
    assert agreement["max_logit_error_std"] < LOGITS_STD[board.model.name]


def test_the_doctor_knows_the_board(board: Board, installed: Callable[..., dict[str, Any]], say: Say) -> None:
    told = installed("doctor")
    ort = told["engines"]["ort"]
    say(f"{board.model.name}: onnxruntime takes {ort['kernels']}")
    assert ort["state"] == "ok"
    assert told["device"]["arch"] == "aarch64"
    assert set(told["device"]["isa"]) == set(catalog.find_device(board.model.device).isa)


def test_bench(board: Board, installed: Callable[..., dict[str, Any]], say: Say) -> None:
    report = installed("bench", ONE_THREAD, "--prompt-tokens 16 --decode-tokens 4 --repeats 1")
    say(f"{board.model.name}: decode {report['decode_tokens_per_s']} tokens/s, {CAVEAT}")
    assert report["system"] == "Linux aarch64"
    assert report["decode_tokens_per_s"] > 0


def test_damage_on_the_way_is_found(board: Board, installed: Callable[..., dict[str, Any]]) -> None:
    installed("info")
    broken = "rm -rf broken; cp -r tiny broken; printf x | dd of=broken/onnx/model.onnx.data bs=1 seek=999 conv=notrunc"
    done = board.run(f"{broken} 2>/dev/null; venv/bin/edgeship-runtime verify broken/onnx")
    assert done.returncode == 14
    assert "model.onnx.data" in done.stdout
