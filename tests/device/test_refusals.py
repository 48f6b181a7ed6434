"""What a board refuses, by step and with the next action; the version that works there stays the one in use."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from device.board import PYTHON, Board, make_host_key
from device.models import PI5
from device.shipping import Told, ended, host_of, make_bundle, standing, validate, variant

pytestmark = [pytest.mark.device, pytest.mark.timeout(3600)]

HOST_ERROR, DISK_FULL, VERIFY_FAILED, WRONG_MACHINE, NO_PYTHON = 12, 9, 14, 20, 10
LEFT = 12 << 20  # bytes that are left on a disk that is filled up

Make = Callable[..., tuple[str, Path]]


@pytest.fixture
def working(board: Board, tiny: Path, tmp_path: Path, say: Callable[[str], None]) -> tuple[str, ...]:
    """What is installed: a version that passed."""
    if board.model != PI5:
        pytest.skip("the same for every model")
    if not standing(board):
        bundle = make_bundle(tiny, board.model.device, "ort", tmp_path / "first", say)
        told = validate(bundle, board.model.device, board, tmp_path / "first-reports")
        assert told.code == 0, told.text
    found = standing(board)
    assert found[0] == found[1]
    return found


@pytest.fixture
def make(tiny: Path, tmp_path: Path, say: Callable[[str], None]) -> Make:
    """Makes a profile, which is the Pi's but for its name and fields, and a bundle for it."""

    def made(name: str, base: str = PI5.device, **fields: Any) -> tuple[str, Path]:
        profile = variant(tmp_path, base, name, **fields)
        return profile, make_bundle(tiny, profile, "ort", tmp_path / "bundles", say)

    return made


def refused(told: Told, board: Board, step: str, code: int, *words: str) -> None:
    """It ended with this code and named the step, the host and what to do next."""
    assert told.code == code, told.text
    assert "Traceback" not in told.text
    for each in (f"{host_of(board)}, step {step}: ", "hint: ", *words):
        assert each in told.text, told.text


def on_board(board: Board, bundle: Path, *names: str) -> tuple[int, str]:
    """Exit code and errors of install.sh, run by hand on the board beside some files of its bundle."""
    board.run("rm -rf by-hand")
    for name in ("install.sh", *names):
        board.put([bundle / name], f"by-hand/{Path(name).parent}")
    done = board.run("sh by-hand/install.sh")
    return done.returncode, done.stderr


def test_another_architecture(board: Board, working: tuple[str, ...], make: Make, tmp_path: Path) -> None:
    profile, bundle = make("a-laptop", "laptop-avx2", python=["3.11"])
    told = validate(bundle, profile, board, tmp_path / "reports")
    refused(told, board, "probe", HOST_ERROR, "expected a board of x86_64", "found aarch64", "--device")
    code, said = on_board(board, bundle)
    assert (code, "for x86_64" in said) == (WRONG_MACHINE, True), said
    assert standing(board) == working


def test_a_python_that_is_too_old(board: Board, working: tuple[str, ...], make: Make, tmp_path: Path) -> None:
    profile, bundle = make("newer-python", python=["3.13"])
    told = validate(bundle, profile, board, tmp_path / "reports")
    refused(told, board, "probe", HOST_ERROR, "expected Python 3.13", "found Python 3.11", "install python3.13")
    (pip,) = (bundle / "wheels").glob("pip-*.whl")
    code, said = on_board(board, bundle, "bundle.json", f"wheels/{pip.name}")
    assert (code, "Python 3.11" in said) == (NO_PYTHON, True), said
    assert standing(board) == working


def test_no_module_venv(board: Board, working: tuple[str, ...], make: Make, tmp_path: Path) -> None:
    profile, bundle = make("without-venv")
    library = board.root / PYTHON
    (library / "venv").rename(library / "venv.away")
    try:
        told = validate(bundle, profile, board, tmp_path / "reports")
    finally:
        (library / "venv.away").rename(library / "venv")
    refused(told, board, "install", HOST_ERROR, "no module venv", "apt install python3-venv")
    assert standing(board) == working


def test_another_host_key(board: Board, working: tuple[str, ...], make: Make, tmp_path: Path) -> None:
    profile, bundle = make("same-board")
    known = board.known_hosts.read_text()
    make_host_key(board.folder, board.port, known=False)
    try:
        told = validate(bundle, profile, board, tmp_path / "reports")
        assert board.known_hosts.read_text() == known
    finally:
        make_host_key(board.folder, board.port)
    refused(told, board, "probe", HOST_ERROR, "has changed", "compare the fingerprint", "ssh-keygen -R")
    assert standing(board) == working


def test_a_disk_that_is_too_small(board: Board, working: tuple[str, ...], make: Make, tmp_path: Path) -> None:
    profile, bundle = make("small-disk")
    with board.small_disk(100_000_000):
        told = validate(bundle, profile, board, tmp_path / "reports")
        assert board.run("find . -name '.edgeship-*'").stdout == ""
    refused(told, board, "space", DISK_FULL, "too small", "nothing was sent", "free ")
    assert standing(board) == working


@contextmanager
def filling(board: Board, moment: Callable[[str], bool]) -> Iterator[Callable[[str], None]]:
    """Fills the board's disk at a moment, and frees it afterwards."""
    full: list[str] = []

    def on_line(line: str) -> None:
        if not full and moment(line):
            full.append(line)
            take = f"$(( $(df -Pk . | awk 'END {{ print $4 }}') * 1024 - {LEFT} ))"
            board.run(f"head -c {take} /dev/zero > ballast")

    yield on_line
    assert full
    board.run("rm -f ballast")


def test_a_disk_that_fills_up(board: Board, working: tuple[str, ...], make: Make, tmp_path: Path) -> None:
    profile, bundle = make("filling-disk")
    with board.small_disk(500_000_000):
        with filling(board, lambda line: ended(line) == "space") as on_line:
            told = validate(bundle, profile, board, tmp_path / "reports", on_line)
        refused(told, board, "push", DISK_FULL, "disk is full", "free some space")
        with filling(board, lambda line: "installing the wheels" in line) as on_line:
            told = validate(bundle, profile, board, tmp_path / "reports", on_line)
        refused(told, board, "install", DISK_FULL, "is full", "free ")
        assert standing(board) == ()
        assert board.run("find . -name '.edgeship-*'").stdout == ""
        told = validate(bundle, profile, board, tmp_path / "reports")
        assert told.code == 0, told.text
    assert standing(board) == working


def damage(board: Board, pattern: str) -> None:
    """Change one byte of a file on the board."""
    done = board.run(f"f=$(ls {pattern}) && printf x | dd of=$f bs=1 seek=999 conv=notrunc")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("name", "code"), [("wheels/edgeship_runtime-*.whl", HOST_ERROR), ("artifact/model.onnx.data", VERIFY_FAILED)]
)
def test_damage_after_the_push(
    board: Board, working: tuple[str, ...], make: Make, tmp_path: Path, name: str, code: int
) -> None:
    profile, bundle = make("damaged")

    def on_line(line: str) -> None:
        if ended(line) == "push":
            damage(board, f"edgeship/.bundles/tiny-int4/{digest}/{name}")

    digest = (bundle / "install.sh").read_text().partition("\ndigest='")[2][:12]
    told = validate(bundle, profile, board, tmp_path / "reports", on_line)
    if code == HOST_ERROR:
        refused(told, board, "install", code, "its bytes are not those of the bundle", "copy it")
    else:
        assert told.code == code, told.text
        (hashes,) = (check for check in told.report["checks"] if check["name"] == "hashes")
        assert hashes["passed"] is False
        assert "install: refused" in told.text
    assert standing(board) == working


def test_damage_of_what_is_installed(board: Board, working: tuple[str, ...], tiny: Path, tmp_path: Path) -> None:
    bundle = make_bundle(tiny, board.model.device, "ort", tmp_path / "bundles", lambda _: None)
    damage(board, "edgeship/tiny-int4/current/artifact/model.onnx.data")
    told = validate(bundle, board.model.device, board, tmp_path / "reports")
    assert told.code == 0, told.text
    assert any("damaged" in note for note in told.report["notes"]), told.text
    assert standing(board) == working
