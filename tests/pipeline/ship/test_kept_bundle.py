"""A bundle is made again for a validation only where it would become another one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from acceptance_files import write_acceptance
from edgeship.ship import kept_bundle
from edgeship.ship.kept_bundle import KeptBundle
from tiny_bundle import device, write_bundle
from toy_artifact import write_toy


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    write_acceptance(write_toy(tmp_path / "artifact"))
    return tmp_path / "artifact"


@pytest.fixture
def kept(tmp_path: Path, artifact: Path) -> Callable[..., KeptBundle]:
    """Where a bundle has been made, and a note of what it is made of."""
    (tmp_path / "bundles").mkdir()
    (tmp_path / "wheels").mkdir()

    def make(**fields: object) -> KeptBundle:
        return KeptBundle(artifact, device(**fields), "ort", tmp_path / "bundles", tmp_path / "wheels")

    made = make()
    assert made.find() is None, "nothing was made yet"
    assert made._plain is not None
    write_bundle(tmp_path / "bundles" / kept_bundle._title(made._plain))
    assert made.find() is None, "made by hand, of who knows what"
    (tmp_path / "wheels/fetched.whl").touch()  # wheels that are fetched join those that were there
    made.remember()
    return make


def test_found(kept: Callable[..., KeptBundle]) -> None:
    found = kept().find()
    assert found is not None
    assert found.digest12 == "0123456789ab"


@pytest.mark.parametrize("what", ["device", "wheels", "artifact", "damaged", "bundle", "note", "program"])
def test_made_again(
    kept: Callable[..., KeptBundle], what: str, tmp_path: Path, artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (bundle,) = (each for each in (tmp_path / "bundles").iterdir() if each.is_dir())
    if what == "wheels":
        (tmp_path / "wheels/another.whl").touch()
    elif what == "artifact":
        manifest = artifact / "edgeship.json"
        manifest.write_text(manifest.read_text() + "\n")
    elif what == "damaged":  # making a bundle of it says so
        (artifact / "model.onnx.data").write_bytes(b"")
    elif what == "bundle":
        (bundle / "artifact/model.onnx.data").write_bytes(b"")
    elif what == "note":
        next((tmp_path / "bundles").glob(".*.made-of")).write_bytes(b"\xff")
    elif what == "program":
        monkeypatch.setattr(kept_bundle, "__version__", "0.0.0")
    assert kept(**({"python": ["3.9"]} if what == "device" else {})).find() is None
