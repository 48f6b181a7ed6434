"""Bundles: what lies in one, that equal inputs give equal bytes, and what is refused before anything is made."""

from __future__ import annotations

import gzip
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from bundles import PIP, write_fake_wheel
from edgeship import catalog
from edgeship.cli import run
from edgeship.device import Device
from edgeship.errors import ArtifactError, DependencyError, PlanError, ResourceError, UsageError
from edgeship.progress import Silent
from edgeship.ship import archive, llamacpp_wheel, making, wheels
from edgeship.ship.bundle import make_bundle
from edgeship.ship.contents import read_contents
from edgeship.ship.making import Bundle
from edgeship_runtime.manifest import read_manifest
from small_disks import full
from toy_artifact import write_toy

PI = catalog.find_device("raspberry-pi-5-8gb")
Make = Callable[..., Bundle]


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Make:
    """`make_bundle` whose wheels come from no registry."""

    def collect(target: wheels.Target, engine: str, into: Path, *, llama: Path | None, **_: object) -> None:
        write_fake_wheel(into, "edgeship_runtime", {"edgeship_runtime/__init__.py": ""})
        write_fake_wheel(into, "numpy", {"numpy.py": ""}, tag="cp311-cp311-manylinux_2_28_aarch64")
        shutil.copy(PIP, into)
        if llama is not None:
            shutil.copy(llama, into)

    monkeypatch.setattr(wheels, "collect", collect)
    monkeypatch.setattr(llamacpp_wheel, "cache_directory", lambda: tmp_path / "no wheels")

    def made(artifact: Path | None, device: Device = PI, engine: str | None = "ort", **options: Any) -> Bundle:
        out = options.pop("out", tmp_path / "out")
        return make_bundle(artifact, device, engine, out, progress=Silent(), **options)

    return made


def members(made: Bundle) -> list[str]:
    return sorted(p.relative_to(made.path).as_posix() for p in made.path.rglob("*") if p.is_file())


# what lies in one


def test_layout(make: Make, artifact: Path) -> None:
    made = make(artifact)
    says = json.loads((made.path / "bundle.json").read_text())
    assert made.path.name == "toy-raspberry-pi-5-8gb-ort"
    assert sorted([*says["files"], "bundle.json"]) == members(made)
    assert {"install.sh", "README.md", "requirements.txt", "artifact/edgeship.json"} < set(says["files"])
    assert says["artifact"]["digest"] == says["files"]["artifact/edgeship.json"]["sha256"]
    assert says["target"] == {"os": "linux", "arch": "aarch64", "python": ["3.11"], "glibc": "2.28"}
    assert (made.path / "install.sh").stat().st_mode & 0o111
    assert made.digest[:12] in (made.path / "install.sh").read_text()
    lines = (made.path / "requirements.txt").read_text().splitlines()
    assert [line.split("==")[0] for line in lines] == ["edgeship-runtime", "numpy"]
    assert all(" --hash=sha256:" in line for line in lines)


def test_validate_reads_it(make: Make, artifact: Path) -> None:
    made = make(artifact)
    contents = read_contents(made.path)
    assert contents.manifest == read_manifest(made.path / "artifact")
    assert (contents.device, contents.engine) == (made.device, made.engine)


def test_no_placeholder_is_left(make: Make, artifact: Path) -> None:
    made = make(artifact)
    for name in ("install.sh", "README.md"):
        text = (made.path / name).read_text()
        assert not [
            word for word in text.split() if word.strip("'`:").startswith("@") and word.strip("'`:").endswith("@")
        ]
        assert "@NAME" not in text


def test_without_the_model(make: Make, artifact: Path) -> None:
    made = make(artifact, with_model=False)
    assert not any(name.startswith("artifact/") for name in members(made))
    assert json.loads((made.path / "bundle.json").read_text())["artifact"] is None
    assert make(None).path.name == "runtime-raspberry-pi-5-8gb-ort"


def test_the_archive_unpacks_to_the_folder(make: Make, artifact: Path, tmp_path: Path) -> None:
    made = make(artifact)
    assert made.archive is not None
    with tarfile.open(made.archive) as packed:
        assert {m.mtime for m in packed} == {archive.TIME}
        assert {m.mode for m in packed if m.name.endswith(".sh")} == {0o755}
        packed.extractall(tmp_path / "there", filter="data")
    for name in members(made):
        assert (tmp_path / "there" / made.path.name / name).read_bytes() == (made.path / name).read_bytes()


# same inputs, same bytes


def test_reproducible(make: Make, artifact: Path, tmp_path: Path) -> None:
    one = make(artifact)
    later = shutil.copytree(artifact, tmp_path / "elsewhere", copy_function=shutil.copyfile)
    two = make(later, out=tmp_path / "out 2")
    assert one.archive is not None
    assert two.archive is not None
    assert one.archive.read_bytes() == two.archive.read_bytes()
    assert one.digest == two.digest


def test_the_digest_tells_devices_apart(make: Make, artifact: Path) -> None:
    assert make(artifact).digest != make(artifact, PI.model_copy(update={"name": "another"})).digest


def test_made_again_replaces_the_old(make: Make, artifact: Path) -> None:
    made = make(artifact)
    (made.path / "old").touch()
    again = make(artifact, kind=None)
    assert "old" not in members(again)
    assert again.archive is None
    assert [p.name for p in again.path.parent.iterdir()] == [again.path.name]


def test_what_a_killed_command_left_is_removed(make: Make, tmp_path: Path) -> None:
    left = tmp_path / "out/.runtime-raspberry-pi-5-8gb-ort.abc123/wheels"
    left.mkdir(parents=True)
    other = tmp_path / "out/.runtime-raspberry-pi-4-8gb-ort.abc123"
    other.mkdir()
    made = make(None, kind=None)
    assert sorted(p.name for p in made.path.parent.iterdir()) == [other.name, made.path.name]


def test_one_command_at_a_time(make: Make, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with (
        FileLock(tmp_path / "out/.runtime-raspberry-pi-5-8gb-ort.lock"),
        pytest.raises(ArtifactError, match="another command is making runtime-raspberry-pi-5-8gb-ort"),
    ):
        make(None)


def test_gzip_says_nothing_of_time_or_name(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/file").write_bytes(b"x")
    archive.write_archive(tmp_path / "folder", tmp_path / "a.tar.gz", "gz")
    assert (tmp_path / "a.tar.gz").read_bytes()[3:8] == b"\0" * 5  # no flags, no time
    assert gzip.decompress((tmp_path / "a.tar.gz").read_bytes()).startswith(b"folder/file\0")


def test_zstandard(make: Make, artifact: Path) -> None:
    try:
        archive.zstandard()
    except DependencyError:
        with pytest.raises(DependencyError, match="needs a Python that can write zstandard") as caught:
            make(artifact, kind="zst")
        assert "pip install zstandard" in caught.value.hint
        return
    made = make(artifact, kind="zst")
    assert made.archive is not None
    first = made.archive.read_bytes()
    assert first[:4] == b"\x28\xb5\x2f\xfd"
    again = make(artifact, kind="zst").archive
    assert again is not None
    assert again.read_bytes() == first


# what is refused


def nothing(tmp_path: Path) -> bool:
    return not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_an_altered_artifact(make: Make, artifact: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(artifact, tmp_path / "copy")
    (copy / "onnx/model.onnx").write_bytes(b"?")
    with pytest.raises(ArtifactError, match=r"not intact: model.onnx"):
        make(copy)
    assert nothing(tmp_path)


def test_an_unsealed_artifact(make: Make, tmp_path: Path) -> None:
    write_toy(tmp_path / "toy/onnx", sealed=False)
    with pytest.raises(ArtifactError, match=r"expected edgeship.json, found none"):
        make(tmp_path / "toy")


def test_no_artifact(make: Make, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no such directory"):
        make(tmp_path / "nothing")


def test_an_engine_of_the_other_format(make: Make, artifact: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="format onnx, which llamacpp does not run"):
        make(artifact / "onnx", engine="llamacpp")
    assert make(artifact, engine=None).engine == "ort"  # the device prefers llamacpp, and there is no GGUF


def test_systems_without_bundles(make: Make, artifact: Path) -> None:
    for change in ({"os": "windows"}, {"wheel_tags": (), "libc": None}):
        with pytest.raises(PlanError, match="bundles are for systems with a POSIX shell"):
            make(artifact, PI.model_copy(update=change))
    with pytest.raises(UsageError, match="no engine 'tensorrt'"):
        make(artifact, engine="tensorrt")


def test_wheels_of_another_architecture(make: Make, artifact: Path, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="expected a wheel for x86_64, found one for manylinux_2_28_aarch64"):
        make(artifact, PI.model_copy(update={"arch": "x86_64"}))
    assert nothing(tmp_path)


def test_llamacpp_needs_its_wheel(make: Make, tmp_path: Path) -> None:
    with pytest.raises(DependencyError, match=r"no wheel of llama\.cpp for aarch64") as caught:
        make(None, engine="llamacpp")
    assert "edgeship wheel-llamacpp --device raspberry-pi-5-8gb" in caught.value.hint
    keep = tmp_path / "keep"
    keep.mkdir()
    write_fake_wheel(keep, "llama_cpp_python", {}, tag="py3-none-linux_x86_64")
    with pytest.raises(DependencyError):
        make(None, engine="llamacpp", wheels=keep)
    write_fake_wheel(keep, "llama_cpp_python", {}, tag="py3-none-manylinux_2_34_aarch64")
    made = make(None, engine="llamacpp", wheels=keep)
    assert json.loads((made.path / "bundle.json").read_text())["target"]["glibc"] == "2.34"


def test_a_folder_that_is_no_bundle(make: Make, tmp_path: Path) -> None:
    mine = tmp_path / "out/runtime-raspberry-pi-5-8gb-ort"
    mine.mkdir(parents=True)
    (mine / "letters").touch()
    with pytest.raises(ArtifactError, match="exists and is no bundle"):
        make(None)
    assert [p.name for p in mine.iterdir()] == ["letters"]


def test_a_full_disk(make: Make, artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "write_archive", full)
    with pytest.raises(ResourceError, match="the disk is full; nothing was made"):
        make(artifact)
    assert nothing(tmp_path)


@pytest.mark.parametrize(
    ("name", "safe"), [("qwen2.5-1.5b", "qwen2.5-1.5b"), ("../../x", "x"), ("a b'$(c)", "a-b-c"), ("..", "artifact")]
)
def test_names_are_safe_in_paths(name: str, safe: str) -> None:
    assert making.safe_name(name) == safe


# the command


def test_command(make: Make, artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "bundle",
        str(artifact),
        "--device",
        "raspberry-pi-5-8gb",
        "--engine",
        "ort",
        "--out",
        str(tmp_path / "out"),
    ]
    assert run([*arguments, "--json"]) == 0
    says = json.loads(capsys.readouterr().out)
    assert Path(says["archive"]).stat().st_size == says["archive_bytes"]
    assert sum(says["sizes"].values()) < says["size_bytes"]
    about = ["bundle", "archive", "archive_bytes", "name", "device", "engine", "digest", "size_bytes", "sizes"]
    assert list(says) == about
    assert run(arguments) == 0
    out = capsys.readouterr().out
    assert "edgeship_runtime-1.0-py3-none-any.whl" in out
    assert "install.sh" in out


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--device", "raspberry-pi-5-8gb"], 2, "expected an artifact, found none"),
        (["--no-model", "--device", "raspberry-pi-5-8gb", "--archive", "rar"], 2, "expected gz, zst or none"),
        (["--no-model"], 2, "--device"),
        (["nothing", "--device", "raspberry-pi-5-8gb"], 8, "no such directory"),
    ],
)
def test_command_refuses(capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, said: str) -> None:
    assert run(["bundle", *arguments]) == code
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("command", ["bundle", "wheel-llamacpp"])
def test_help_has_an_example(capsys: pytest.CaptureFixture[str], command: str) -> None:
    assert run([command, "--help"]) == 0
    out = capsys.readouterr().out
    assert f"Example: edgeship {command}" in out
    assert "--json" in out
