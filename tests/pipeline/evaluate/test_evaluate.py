"""`edgeship evaluate`: a table, JSON and a picture of what artifacts lost, and refusals that name what is wrong."""

from __future__ import annotations

import json
import re
import shutil
import struct
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

import tolerances
from checkpoints import write_checkpoint
from edgeship import cli
from edgeship.evaluate import plot
from edgeship.evaluate.plot import Axis, Point, write_plot
from exports import FLOAT32, built, recipe

INT4 = {"body": "int4", "embeddings": "int4", "head": "int4"}


@pytest.fixture(scope="module")
def artifacts(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with `float`, `int8` and `int4` in it, all in ONNX."""
    out = tmp_path_factory.mktemp("artifacts")
    for name, scheme in (("float", FLOAT32), ("int8", {**INT4, "body": "int8"}), ("int4", INT4)):
        built(recipe(name, scheme=scheme), out, checkpoint=checkpoint)
    return out


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = cli.run(["evaluate", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_fewer_bits_the_more_is_lost(
    artifacts: Path, checkpoint: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "made" / "plot.png"
    code, out, err = run(
        capsys, artifacts / "int4", artifacts / "int8" / "onnx", artifacts / "float", "--reference", checkpoint,
        "--text", text, "--tokens", 256, "--window", 64, "--greedy", 12, "--plot", picture, "--json",
    )  # fmt: skip
    assert (code, err) == (0, "")
    found: dict[str, Any] = json.loads(out)
    four, eight, whole = found["artifacts"]
    assert [each["name"] for each in found["artifacts"]] == ["int4", "int8", "float"]
    assert four["kl_mean"] > eight["kl_mean"] > whole["kl_mean"]
    assert whole["kl_mean"] == pytest.approx(0, abs=tolerances.FLOAT_KL)
    assert whole["top1"] == whole["top5"] == 1
    assert four["bits_per_weight"] < eight["bits_per_weight"] < whole["bits_per_weight"] == 32
    assert four["size_mb"] < eight["size_mb"] < whole["size_mb"]
    assert four["positions"] == 4 * 31
    assert whole["repetition"] == found["reference_repetition"]
    assert "perplexity.cpp" in found["definitions"]
    assert found["text"] == str(text)
    raw = picture.read_bytes()
    assert raw[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", raw[16:24]) == (plot.WIDTH, plot.HEIGHT)


def test_a_table_for_people(artifacts: Path, checkpoint: Path, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(
        capsys, artifacts / "int4", "--reference", checkpoint, "--text", text, "--tokens", 128, "--window", 64,
        "--greedy", 0,
    )  # fmt: skip
    assert code == 0
    for word in ("int4 onnxruntime", "KL mean", "perplexity", "62 positions", "–"):
        assert word in out, out
    assert "float model: 128 tokens" in err  # progress


def test_a_gguf_file_and_an_artifact_of_both_formats(
    checkpoint: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed (make llamacpp)")
    formats = ("onnx", "gguf")
    artifact = built(recipe("both", formats=formats), tmp_path, formats, checkpoint=checkpoint)
    (file,) = (artifact / "gguf").glob("*.gguf")
    code, out, _ = run(
        capsys, artifact, file, "--reference", checkpoint, "--text", text, "--tokens", 256, "--window", 64,
        "--greedy", 0, "--json",
    )  # fmt: skip
    assert code == 0
    onnx, gguf, bare = json.loads(out)["artifacts"]
    assert onnx["engine"].startswith("onnxruntime")
    assert gguf["engine"].startswith("llama-cpp-python")
    assert gguf["kl_mean"] == bare["kl_mean"]
    assert bare["bits_per_weight"] == pytest.approx(gguf["bits_per_weight"], rel=tolerances.FILE_BITS)
    assert onnx["kl_mean"] == pytest.approx(gguf["kl_mean"], rel=tolerances.ENGINES_KL)


def test_another_model_is_refused(
    artifacts: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_checkpoint(tmp_path / "other", layers=3, hidden=32)
    code, _, err = run(capsys, artifacts / "int4", "--reference", other, "--text", text, "--tokens", 64, "--window", 64)
    assert code == 2
    assert "layers 2 for 3, hidden size 64 for 32" in err
    assert "the checkpoint that the artifact was made from" in err


def test_a_reference_that_knows_the_ids_as_other_tokens_is_refused(
    artifacts: Path, checkpoint: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = shutil.copytree(checkpoint, tmp_path / "other")
    values = json.loads((other / "tokenizer.json").read_text())
    vocab = values["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    (other / "tokenizer.json").write_text(json.dumps(values))
    code, _, err = run(capsys, artifacts / "int4", "--reference", other, "--text", text)
    assert (code, "found 2 others, the first with id" in err) == (2, True)
    assert '"a" for "b"' in err or '"b" for "a"' in err
    assert "positions" not in err  # it was refused before the work


@pytest.mark.parametrize(("change", "noted"), [({}, False), ({"normalizer": {"type": "Lowercase"}}, True)])
def test_a_reference_that_splits_text_otherwise_is_noted(
    artifacts: Path,
    checkpoint: Path,
    text: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: dict[str, Any],
    noted: bool,
) -> None:
    other = shutil.copytree(checkpoint, tmp_path / "other")
    values = json.loads((other / "tokenizer.json").read_text()) | change
    (other / "tokenizer.json").write_text(json.dumps(values))  # written otherwise, too
    arguments = ("--reference", other, "--text", text, "--tokens", 64, "--window", 64, "--greedy", 0)
    code, _, err = run(capsys, artifacts / "int4", *arguments)
    assert (code, "its tokenizer.json is not the reference's" in err) == (0, noted)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["ABSENT", "--reference", "CHECKPOINT"], 8, "no such directory"),
        (["INT4", "--reference", "ABSENT"], 6, "absent"),
        (["INT4", "--reference", "CHECKPOINT", "--text", "ABSENT"], 2, "cannot be read"),
        (["INT4", "--reference", "CHECKPOINT", "--window", "257"], 2, "a model of 256 positions"),
        (["INT4", "--reference", "CHECKPOINT", "--tokens", "1"], 2, "--tokens"),
        (["INT4"], 2, "--reference"),
    ],
)
def test_refusals(
    artifacts: Path,
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    names = {"ABSENT": tmp_path / "absent", "CHECKPOINT": checkpoint, "INT4": artifacts / "int4"}
    ended, out, err = run(capsys, *(names.get(each, each) for each in arguments), "--json")
    assert ended == code
    said = json.loads(out)["error"]
    assert message in said["message"]
    assert said["hint"]
    assert "Traceback" not in err


def test_without_pillow_it_is_said_before_the_work(
    artifacts: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    code, _, err = run(capsys, artifacts / "int4", "--reference", checkpoint, "--plot", "plot.png")
    assert code == 10
    assert "pip install 'edgeship[plot]'" in err
    assert "float model" not in err


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("plot.svg", r"expected a file named \*\.png"),
        ("file/plot.png", "no file can be written at"),
        ("directory.png", "no file can be written at"),
        ("/proc/plot.png", "no file can be written at"),
        ("/proc/none/plot.png", "no file can be written at"),
    ],
)
def test_a_plot_that_cannot_be_is_refused_before_the_work(
    name: str, said: str, artifacts: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "directory.png").mkdir()
    code, _, err = run(capsys, artifacts / "int4", "--reference", checkpoint, "--plot", str(tmp_path / name))
    assert code == 2
    assert re.search(said, err)
    assert "float model" not in err
    assert len(list(tmp_path.iterdir())) == 2  # nothing was left by trying


def test_a_plot_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "plot.png").symlink_to("/dev/full")
    with pytest.raises(Exception, match="cannot be written") as caught:
        write_plot([Point("a", 1.0, 0.1)], tmp_path / "plot.png")
    assert getattr(caught.value, "exit_code", 0) == 8


def test_points_lie_where_their_values_are(tmp_path: Path) -> None:
    from PIL import Image

    points = [Point("small", 100.0, 0.1), Point("large", 400.0, 0.001), Point("exact", 1600.0, 0.0)]
    write_plot(points, tmp_path / "plot.png")
    image = Image.open(tmp_path / "plot.png").convert("RGB")
    dot = tuple(int(plot.DOT[i : i + 2], 16) for i in (1, 3, 5))
    x, y = plot._axes(points)
    assert y.low < 0.001 / 3 < 0.001 < 0.1 < y.high
    for point, height in zip(points, (0.1, 0.001, y.low * plot.FLOOR), strict=True):
        assert image.getpixel((round(x.at(point.size_mb)), round(y.at(height)))) == dot
    assert x.at(100) < x.at(400) < x.at(1600)
    assert x.at(400) - x.at(100) == pytest.approx(x.at(1600) - x.at(400))


def test_names_that_do_not_fit_are_listed_below(tmp_path: Path) -> None:
    from PIL import Image

    few = [Point(f"artifact-{i}", 100.0 * 2**i, 0.1 / 2**i) for i in range(5)]
    many = [Point(f"an-artifact-with-a-long-name-{i} onnxruntime", 100.0 + i % 4, 0.01 + 1e-4 * i) for i in range(25)]
    heights = []
    for points in (few, many):
        write_plot(points, tmp_path / "plot.png")
        heights.append(Image.open(tmp_path / "plot.png").size[1])
    assert heights == [plot.HEIGHT, plot.HEIGHT + 14 * plot.LINE]


def test_names_lie_within_the_axes_and_over_nothing() -> None:
    from PIL import Image, ImageDraw, ImageFont

    draw, font = ImageDraw.Draw(Image.new("RGB", (1, 1))), ImageFont.load_default(15)
    points = [Point(f"artifact-{i} onnxruntime", 1 + 0.3 * (i % 3), 0.001 * (1 + i % 2)) for i in range(6)]
    x, y = plot._axes(points)
    dots = [(x.at(p.size_mb), y.at(p.kl_mean)) for p in points]
    labels = plot._placed(draw, font, [p.name for p in points], dots)
    assert [label.text for label in labels] == [p.name for p in points]
    boxes = [draw.textbbox(label.at, label.text, font, label.anchor) for label in labels]
    assert all(plot._within(box) for box in boxes)
    assert not any(plot._overlap(a, b) for a, b in combinations(boxes, 2))


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [(0.9, 2.2, [1, 1.5, 2]), (10, 250, [10, 20, 50, 100, 200]), (1e-6, 1, [10.0**-n for n in range(6, -1, -1)])],
)
def test_ticks(low: float, high: float, ticks: list[float]) -> None:
    assert Axis(low, high, 0, 100).ticks() == pytest.approx(ticks)
