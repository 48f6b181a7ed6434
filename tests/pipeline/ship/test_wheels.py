"""Wheels: what their names say, what is asked of pip, what its failures become, and real ones within their limits."""

from __future__ import annotations

import hashlib
import re
import socket
import subprocess
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundles import PIP, registry_problem, write_fake_wheel
from edgeship import catalog
from edgeship.errors import ArtifactError, DependencyError, EdgeshipError, PlanError, ResourceError, SourceError
from edgeship.progress import Silent
from edgeship.ship import llamacpp_wheel, wheels
from edgeship.ship.bundle import make_bundle
from edgeship.ship.wheel_files import read_wheel, write_wheel

PI = catalog.find_device("raspberry-pi-4-8gb")
ROOT = Path(__file__).parents[3]
RUNTIME_LIMIT = 200_000  # bytes, the server and its page included

Answer = Callable[[Sequence[str]], tuple[int, str]]


@pytest.fixture
def fetched() -> None:
    if registry_problem():
        pytest.skip(registry_problem())


# wheel files


@pytest.mark.parametrize(
    ("tag", "glibc", "fits"),
    [
        ("cp311-cp311-manylinux_2_27_aarch64.manylinux_2_28_aarch64", (2, 27), "aarch64"),
        ("cp310-abi3-manylinux2014_aarch64", (2, 17), "aarch64"),
        ("py3-none-linux_x86_64", None, "x86_64"),
        ("cp311-cp311-macosx_14_0_arm64", None, "aarch64"),
        ("cp310-abi3-macosx_10_9_universal2", None, "aarch64"),
        ("py3-none-any", None, "x86_64"),
    ],
)
def test_what_a_name_says(tmp_path: Path, tag: str, glibc: tuple[int, int] | None, fits: str) -> None:
    wheel = read_wheel(write_fake_wheel(tmp_path, "Some_Package.x", {"a.py": "1"}, tag=tag))
    assert (wheel.name, wheel.version) == ("some-package-x", "1.0")
    assert wheel.glibc == glibc
    assert wheel.suits(fits)
    assert wheel.suits("riscv64") == tag.endswith(("any", "universal2"))
    assert wheel.sha256 == hashlib.sha256(wheel.path.read_bytes()).hexdigest()


def test_files_that_are_no_wheels(tmp_path: Path) -> None:
    for name, content in (("a.whl", b""), ("a-1-py3-none-any.whl", b"PK not a zip")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ArtifactError, match="expected"):
            read_wheel(tmp_path / name)


@given(st.dictionaries(st.from_regex(r"[a-z]{1,8}(/[a-z]{1,8}\.py)?", fullmatch=True), st.binary(max_size=50)))
def test_a_written_wheel_holds_its_files_and_does_not_depend_on_their_order(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes]
) -> None:
    folder = tmp_path_factory.mktemp("wheels")
    files = files | {"x-1.dist-info/WHEEL": b"Tag: py3-none-any\n"}
    write_wheel(folder / "a", files)
    write_wheel(folder / "b", dict(reversed(files.items())))
    assert (folder / "a").read_bytes() == (folder / "b").read_bytes()
    with zipfile.ZipFile(folder / "a") as archive:
        assert {n: archive.read(n) for n in archive.namelist() if not n.endswith("RECORD")} == files
        record = archive.read("x-1.dist-info/RECORD").decode().splitlines()
    assert {line.split(",")[0] for line in record} == {*files, "x-1.dist-info/RECORD"}


def test_pip_installs_a_written_wheel(tmp_path: Path) -> None:
    path = write_fake_wheel(tmp_path, "toy", {"toy.py": "answer = 42\n"})
    done = wheels._pip(["install", "--no-index", "--no-deps", "--target", str(tmp_path / "there"), str(path)])
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "there/toy.py").is_file()


def test_requirements(tmp_path: Path) -> None:
    for version in ("310", "311"):
        write_fake_wheel(tmp_path, "numpy", {"n.py": version}, tag=f"cp{version}-cp{version}-linux_aarch64")
    (tmp_path / PIP.name).write_bytes(PIP.read_bytes())
    text = wheels.requirements(wheels.read_wheels(tmp_path))
    assert re.fullmatch(r"numpy==1\.0( --hash=sha256:[0-9a-f]{64}){2}\n", text)  # and no pip
    write_fake_wheel(tmp_path, "numpy", {}, version="2.0")
    with pytest.raises(ArtifactError, match=r"one version of numpy, found 1\.0 and 2\.0"):
        wheels.requirements(wheels.read_wheels(tmp_path))


def test_installed_bytes_count_one_python(tmp_path: Path) -> None:
    for version in ("310", "311"):
        write_fake_wheel(tmp_path, "numpy", {"n.py": "x" * 10_000}, tag=f"cp{version}-cp{version}-linux_aarch64")
    assert 10_000 < wheels.installed_bytes(wheels.read_wheels(tmp_path)) < 12_000


def test_pins_are_the_constraints() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = dict(line.lower().replace("_", "-").split("==") for line in lines if "==" in line)
    assert {name: pinned[name] for name in wheels.PINS if name != wheels.INSTALLER} == {
        name: version for name, version in wheels.PINS.items() if name != wheels.INSTALLER
    }
    assert pinned[wheels.LLAMA] == llamacpp_wheel.VERSION


# pip, played


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch) -> Callable[[Answer], list[Sequence[str]]]:
    """Puts an answer in the place of pip; returns the list that its calls are noted in."""

    def play(answer: Answer) -> list[Sequence[str]]:
        asked: list[Sequence[str]] = []

        def called(arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
            asked.append(arguments)
            code, said = answer(arguments)
            return subprocess.CompletedProcess(arguments, code, "", said)

        monkeypatch.setattr(wheels, "_pip", called)
        return asked

    return play


def collect(tmp_path: Path, keep: Path | None = None, device: wheels.Target = PI) -> None:
    (tmp_path / "into").mkdir(exist_ok=True)
    wheels.collect(device, "llamacpp", tmp_path / "into", keep=keep, llama=None, progress=Silent())


def test_what_is_asked_of_pip(tmp_path: Path, pip: Callable[[Answer], list[Sequence[str]]]) -> None:
    asked = pip(lambda arguments: (0, ""))
    collect(tmp_path, device=PI.model_copy(update={"python": ("3.11", "3.13")}))
    assert [a[a.index("--python-version") + 1] for a in asked[:2]] == ["3.11", "3.13"]
    assert [a for a, before in zip(asked[0][1:], asked[0], strict=False) if before == "--platform"] == [*PI.wheel_tags]
    assert {"--only-binary=:all:", "--no-deps", "numpy==2.4.6"} < set(asked[0])
    assert not any("onnxruntime" in part for part in asked[0])
    assert asked[2][0] == "wheel"


@pytest.mark.parametrize(
    ("change", "tags"),
    [
        ({}, PI.wheel_tags),
        ({"wheel_tags": ()}, PI.wheel_tags),
        ({"wheel_tags": (), "libc": "glibc 2.27"}, PI.wheel_tags[1:]),
        ({"wheel_tags": (), "libc": "glibc 2.12"}, ()),
        ({"wheel_tags": (), "libc": "musl 1.2.5"}, ()),
        ({"wheel_tags": (), "libc": None}, ()),
        ({"wheel_tags": (), "os": "android"}, ()),
    ],
)
def test_platform_tags(change: dict[str, object], tags: tuple[str, ...]) -> None:
    assert wheels.platform_tags(PI.model_copy(update=change)) == tags


def test_kept_wheels_come_first(tmp_path: Path, pip: Callable[[Answer], list[Sequence[str]]]) -> None:
    def answer(arguments: Sequence[str]) -> tuple[int, str]:
        if "--no-index" in arguments:
            return (0 if list(keep.glob("numpy*")) else 1), ""
        if arguments[0] == "download":
            write_fake_wheel(tmp_path / "into", "numpy", {})
        return 0, ""

    keep = tmp_path / "keep"
    asked = pip(answer)
    collect(tmp_path, keep)
    assert [p.name for p in keep.iterdir()] == ["numpy-1.0-py3-none-any.whl"]
    asked.clear()
    collect(tmp_path, keep)
    assert [("--no-index" in a) for a in asked if a[0] == "download"] == [True]


@pytest.mark.parametrize(
    ("said", "kind", "message"),
    [
        (
            "ERROR: No matching distribution found for numpy==2.4.6",
            PlanError,
            "no wheel of numpy==2.4.6 for Python 3.11",
        ),
        (
            "WARNING: Retrying after NewConnectionError\nERROR: No matching distribution found for numpy==2.4.6",
            SourceError,
            "cannot be reached",
        ),
        ("ERROR: Could not install: [Errno 28] No space left on device", ResourceError, "the disk is full"),
        ("ERROR: 403 Client Error: Forbidden", SourceError, "403 Client Error"),
        ("", SourceError, "did not give the wheels"),
    ],
)
def test_what_pip_s_failures_become(
    tmp_path: Path, pip: Callable[[Answer], list[Sequence[str]]], said: str, kind: type[EdgeshipError], message: str
) -> None:
    pip(lambda arguments: (1, said))
    with pytest.raises(kind, match=re.escape(message)) as caught:
        collect(tmp_path)
    assert caught.value.hint


def test_a_runtime_that_cannot_be_built(tmp_path: Path, pip: Callable[[Answer], list[Sequence[str]]]) -> None:
    pip(lambda arguments: (arguments[0] == "wheel", "no hatchling"))
    with pytest.raises(DependencyError, match="the runtime's wheel could not be had: no hatchling"):
        collect(tmp_path)


# real ones


def test_the_runtime_s_wheel_is_small_and_reproducible(tmp_path: Path) -> None:
    pytest.importorskip("hatchling", reason="the build backend is hatchling")
    made = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        wheels._runtime(tmp_path / name, None)
        made += list((tmp_path / name).iterdir())
    assert made[0].read_bytes() == made[1].read_bytes()
    assert read_wheel(made[0]).name == wheels.RUNTIME
    assert made[0].stat().st_size < RUNTIME_LIMIT


@pytest.mark.usefixtures("fetched")
def test_a_pi_s_bundles_stay_within_their_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep = tmp_path / "keep"
    made = make_bundle(None, PI, "ort", tmp_path / "out", wheels=keep, kind=None, progress=Silent())
    assert made.size < 45_000_000
    held = {w.name for w in wheels.read_wheels(made.path / "wheels")}
    assert held == {*wheels.NEEDED["ort"], wheels.RUNTIME, wheels.INSTALLER}
    llama = llamacpp_wheel.find_wheel(PI)
    if llama is not None:
        made = make_bundle(None, PI, "llamacpp", tmp_path / "out", wheels=keep, kind=None, progress=Silent())
        assert made.size < 25_000_000
    monkeypatch.setenv("PIP_INDEX_URL", "http://192.0.2.1/")  # documentation's network: nobody answers
    again = make_bundle(None, PI, "ort", tmp_path / "again", wheels=keep, kind=None, progress=Silent())
    assert (
        again.digest == make_bundle(None, PI, "ort", tmp_path / "out", wheels=keep, kind=None, progress=Silent()).digest
    )


@pytest.mark.usefixtures("fetched")
def test_a_python_without_wheels(tmp_path: Path) -> None:
    device = PI.model_copy(update={"python": ("3.99",)})
    with pytest.raises(PlanError, match=r"no wheel of \S+ for Python 3\.99"):
        make_bundle(None, device, "ort", tmp_path / "out", progress=Silent())
    assert not list((tmp_path / "out").iterdir())


def test_nobody_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as listener:  # a port where nothing listens once it is closed
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    for name, value in {"INDEX_URL": f"http://127.0.0.1:{port}/", "RETRIES": "1", "TIMEOUT": "1"}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(SourceError, match="cannot be reached"):
        make_bundle(None, PI, "ort", tmp_path / "out", progress=Silent())
