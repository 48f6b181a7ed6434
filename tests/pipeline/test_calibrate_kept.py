"""What an export keeps of its calibration for another run: whole, or done again."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from edgeship import build
from edgeship.errors import ResourceError
from exports import contents, every_format
from small_disks import small_disk

OWN = {"tokens": 64, "sequence": 32}
RECIPES: dict[str, dict[str, Any]] = {
    "gptq": {"scheme": {"algorithm": "gptq", "embeddings": "int4", "head": "int4"}, "calibration": OWN},
    "mixed": {"scheme": {"mixed": {"bits_per_weight": 6.5, "tokens": 32}}, "calibration": OWN},
}


def interrupted(*_: object) -> Iterator[None]:
    raise KeyboardInterrupt
    yield


@pytest.fixture(scope="module")
def runs(small: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[dict[str, str], Path]]:
    """By kind of recipe: what an export makes, and what one leaves that is interrupted once all is known."""
    made = {}
    for name, given in RECIPES.items():
        home = tmp_path_factory.mktemp(name)
        whole = contents(every_format(small, home / "whole", **given))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(build, "stream", interrupted)
            with pytest.raises(KeyboardInterrupt):
                every_format(small, home / "cut", **given)
        made[name] = whole, home / "cut"
    return made


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "emptied": lambda raw: b"",
    "cut short": lambda raw: raw[: len(raw) // 2],
    "zeros": lambda raw: bytes(len(raw)),
}
KEPT = [
    ("mixed", "text-*.json"),
    ("mixed", "states-*.npy"),
    ("mixed", "statistics-*-0.npz"),
    ("mixed", "sensitivity-*.json"),
    ("gptq", "states-*.npy"),
    ("gptq", "embed.weight.codes"),
    ("gptq", "layers.0.attn.q.weight.codes"),
]


@pytest.mark.parametrize(
    ("recipe", "kind", "damage"),
    [(*kept, damage) for kept in KEPT for damage in DAMAGES if damage != "zeros" or "codes" not in kept[1]],
)
def test_what_is_damaged_counts_as_absent(
    recipe: str, kind: str, damage: str, runs: dict[str, tuple[dict[str, str], Path]], small: Path, tmp_path: Path
) -> None:
    whole, cut = runs[recipe]
    shutil.copytree(cut, tmp_path / "cut")
    files = list((tmp_path / "cut").rglob(kind))
    assert files
    for file in files:
        file.write_bytes(DAMAGES[damage](file.read_bytes()))
    assert contents(every_format(small, tmp_path / "cut", **RECIPES[recipe])) == whole


# What is kept takes room


@pytest.fixture
def long_text(tmp_path: Path) -> dict[str, Any]:
    """A recipe that keeps 4 MB of hidden states."""
    (tmp_path / "words.txt").write_text("The cat sat on the mat, and the dog by the door.\n" * 2000)
    calibration = {"text": str(tmp_path / "words.txt"), "tokens": 16384, "sequence": 64}
    return {"scheme": {"mixed": {"bits_per_weight": 6.5, "tokens": 32}}, "calibration": calibration}


def test_a_disk_that_is_full_of_what_is_kept(
    long_text: dict[str, Any], small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "_check_space", lambda *_: None)
    with (
        small_disk(tmp_path / "disk", megabytes=2) as disk,
        pytest.raises(ResourceError, match=r"No space left on device.*What was finished is kept"),
    ):
        every_format(small, disk, **long_text)


def test_room_for_what_is_kept_is_looked_for_first(
    long_text: dict[str, Any], small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage(NamedTuple):
        free: int

    def wanted(given: dict[str, Any]) -> float:
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "disk_usage", lambda _: Usage(0))
            with pytest.raises(ResourceError, match="of free disk, found") as refused:
                every_format(small, tmp_path / "out", **given)
        [found] = re.findall(r"expected ([0-9.]+) MB of free disk", refused.value.message)
        return float(found)

    short = dict(long_text, calibration=long_text["calibration"] | {"tokens": 64})
    before = wanted(long_text)
    assert before - wanted(short) > 8, "hidden states before and behind a block"
    with monkeypatch.context() as patch:
        patch.setattr(build, "stream", interrupted)
        with pytest.raises(KeyboardInterrupt):
            every_format(small, tmp_path / "out", **long_text)
    assert before - wanted(long_text) > 4, "what an earlier run kept needs no room again"
