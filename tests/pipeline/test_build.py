"""Exports that are cut short, run twice, run out of disk, or are refused."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from checkpoints import write_checkpoint
from edgeship import build
from edgeship.errors import ArtifactError, CheckpointError, FidelityError, PlanError, ResourceError
from edgeship.partial import PartialExport, kept_for_another_run
from exports import Listener, built, export, recipe

INTERRUPTED = Path(__file__).parents[1] / "interrupted.py"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"), layers=3)


@pytest.fixture(scope="module")
def whole(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Digests of an export that nothing interrupted."""
    return digests(export(checkpoint, tmp_path_factory.mktemp("whole")))


def digests(directory: Path) -> dict[str, str]:
    files = sorted(p for p in directory.rglob("*") if p.is_file())
    return {str(p.relative_to(directory)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def run_until(checkpoint: Path, out: Path, point: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(INTERRUPTED), str(checkpoint), str(out), str(point)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_killed_at_random_points_it_leaves_nothing_half_and_resumes_to_the_same_bytes(
    checkpoint: Path, whole: dict[str, str], tmp_path: Path
) -> None:
    counted = run_until(checkpoint, tmp_path / "counted", 0)
    assert counted.returncode == 0, counted.stderr
    assert digests(tmp_path / "counted/case/onnx") == whole
    points = random.Random(5).sample(range(1, int(counted.stdout) + 1), 10)
    for point in points:
        out = tmp_path / f"at-{point}"
        assert run_until(checkpoint, out, point).returncode == -signal.SIGKILL
        final = out / "case" / "onnx"
        assert not final.exists() or digests(final) == whole, f"half an artifact after call {point}"
        if not final.exists():
            export(checkpoint, out)
        assert digests(final) == whole, f"resumed after call {point}"
        assert sorted(os.listdir(out / "case")) in (["onnx"], [".onnx.journal", "onnx"])


def test_a_resumed_export_keeps_finished_tensors_and_says_so(checkpoint: Path, tmp_path: Path) -> None:
    calls = int(run_until(checkpoint, tmp_path / "counted", 0).stdout)
    run_until(checkpoint, tmp_path, calls // 2)
    heard = Listener()
    built(recipe(), tmp_path, checkpoint=checkpoint, progress=heard)
    assert any("interrupted export was found" in note and " 0 of" not in note for note in heard.notes), heard.notes
    assert heard.advanced < sum(p.stat().st_size for p in checkpoint.glob("*.safetensors"))


def test_a_partial_export_of_another_recipe_is_not_resumed(
    checkpoint: Path, whole: dict[str, str], tmp_path: Path
) -> None:
    calls = int(run_until(checkpoint, tmp_path / "counted", 0).stdout)
    run_until(checkpoint, tmp_path, calls // 2)
    other = export(checkpoint, tmp_path, scheme={"body": "int8"})
    assert digests(other) != whole
    assert digests(export(checkpoint, tmp_path / "fresh", scheme={"body": "int8"})) == digests(other)


def test_the_same_input_gives_the_same_bytes_whatever_the_memory_limit(
    checkpoint: Path, whole: dict[str, str], tmp_path: Path
) -> None:
    made = built(recipe(), tmp_path, checkpoint=checkpoint, max_ram=500_000_000)
    assert digests(made / "onnx") == whole


def test_an_existing_artifact_is_kept_unless_forced(checkpoint: Path, whole: dict[str, str], tmp_path: Path) -> None:
    final = export(checkpoint, tmp_path)
    with pytest.raises(ArtifactError, match="exists already"):
        export(checkpoint, tmp_path, scheme={"body": "int8"})
    assert digests(final) == whole
    built(recipe(scheme={"body": "int8"}), tmp_path, checkpoint=checkpoint, force=True)
    assert digests(final) != whole
    assert os.listdir(tmp_path / "case") == ["onnx"]


def test_a_second_export_of_the_same_artifact_is_kept_out(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "case").mkdir()
    with PartialExport(tmp_path / "case/onnx", "other work"), pytest.raises(ArtifactError, match="right now"):
        export(checkpoint, tmp_path)


def test_a_forced_export_killed_between_its_renames_is_put_back(
    checkpoint: Path, whole: dict[str, str], tmp_path: Path
) -> None:
    final = export(checkpoint, tmp_path)
    final.rename(final.with_name(".onnx.old"))
    with pytest.raises(ArtifactError, match="exists already"):
        export(checkpoint, tmp_path)
    assert digests(final) == whole


def test_a_memory_limit_that_cannot_hold_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="--max-ram"):
        built(recipe(), tmp_path, checkpoint=checkpoint, max_ram=1 << 20)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_stop_the_export_by_name(tmp_path: Path, value: float) -> None:
    import numpy as np

    from checkpoints import random_weights, write_weights
    from edgeship.checkpoint.checkpoint import read_config

    bad = write_checkpoint(tmp_path / "bad")
    weights = random_weights(read_config(bad))
    weights["model.layers.1.mlp.up_proj.weight"][3, 5] = np.float32(value)
    write_weights(bad, weights)
    with pytest.raises(CheckpointError, match=r"model\.layers\.1\.mlp\.up_proj\.weight.*finite"):
        export(bad, tmp_path)
    assert not (tmp_path / "case").exists()


@pytest.fixture
def small_disk(tmp_path: Path):
    """A file system of 1 MB; needs the right to mount."""
    mount = tmp_path / "small"
    mount.mkdir()
    if shutil.which("mount") is None or os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs needs root")
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(mount)], capture_output=True).returncode:
        pytest.skip("this system lets nobody mount a tmpfs")
    yield mount
    subprocess.run(["umount", "-l", str(mount)], check=True)


def test_a_full_disk_is_foreseen(checkpoint: Path, small_disk: Path) -> None:
    with pytest.raises(ResourceError, match="free disk"):
        export(checkpoint, small_disk)


def test_a_disk_that_fills_midway_leaves_nothing_half_and_resumes(
    checkpoint: Path, whole: dict[str, str], small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "SEAL_SPACE", 0)
    ballast = small_disk / "ballast"
    free = shutil.disk_usage(small_disk).free
    data = next(
        size for name, size in sizes(checkpoint, small_disk.parent / "measured").items() if name.endswith(".data")
    )
    assert data < free, "the tiny export must fit an empty 1 MB disk"
    ballast.write_bytes(bytes(free - data - 8192))
    with pytest.raises(ResourceError, match="resumes"):
        export(checkpoint, small_disk)
    assert not (small_disk / "case/onnx").exists()
    ballast.unlink()
    assert digests(export(checkpoint, small_disk)) == whole


def sizes(checkpoint: Path, out: Path) -> dict[str, int]:
    made = export(checkpoint, out)
    return {p.name: p.stat().st_size for p in made.rglob("*")}


class TestKept:
    """What was found out before the first byte, beside the formats."""

    def test_a_refusal_leaves_what_another_export_uses(self, tmp_path: Path) -> None:
        kept = tmp_path / "out" / "name" / ".kept"
        with kept_for_another_run(kept):
            (kept / "found").touch()
            with pytest.raises(PlanError), kept_for_another_run(kept):
                raise PlanError("refused")
            assert (kept / "found").exists()
        assert not kept.exists()

    @pytest.mark.parametrize(("error", "left"), [(PlanError("a"), []), (KeyboardInterrupt(), ["found"])])
    def test_an_interruption_leaves_it_a_refusal_does_not(
        self, tmp_path: Path, error: BaseException, left: list[str]
    ) -> None:
        def run(kept: Path) -> None:
            with kept_for_another_run(kept):
                (kept / "found").touch()
                raise error

        with pytest.raises(type(error)):
            run(tmp_path / "out" / "name" / ".kept")
        assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == left
        assert (tmp_path / "out").exists() is bool(left)

    def test_a_mistake_spares_what_an_earlier_run_found(self, tmp_path: Path) -> None:
        kept = tmp_path / "out" / "name" / ".kept"

        def run(name: str, error: BaseException) -> None:
            with kept_for_another_run(kept):
                (kept / name).touch()
                raise error

        for name, error, left in (
            ("first", KeyboardInterrupt(), ["first"]),
            ("second", PlanError("--max-ram"), ["first"]),
            ("third", FidelityError("lost"), []),
        ):
            with pytest.raises(type(error)):
                run(name, error)
            assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == left
        assert list(tmp_path.iterdir()) == [] or not kept.exists()

    def test_nothing_found_leaves_nothing(self, tmp_path: Path) -> None:
        with pytest.raises(KeyboardInterrupt), kept_for_another_run(tmp_path / "out" / "name" / ".kept"):
            raise KeyboardInterrupt
        assert list(tmp_path.iterdir()) == []


def test_a_file_where_an_artifact_goes_is_not_replaced(checkpoint: Path, tmp_path: Path) -> None:
    final = tmp_path / "case" / "onnx"
    final.parent.mkdir()
    final.write_text("mine")
    with pytest.raises(ArtifactError, match="found a file; nothing was written"):
        built(recipe(), tmp_path, checkpoint=checkpoint, force=True)
    assert final.read_text() == "mine"
    assert list(final.parent.iterdir()) == [final]
