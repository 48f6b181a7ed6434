"""The app as npm builds it: its size, what it says of what is shipped, and that equal sources give equal bytes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgeship.progress import Silent
from edgeship.ship.web_app import App, find_app

pytestmark = [pytest.mark.web, pytest.mark.timeout(600)]

LARGEST = 300_000
SHIPPED = {"onnxruntime-web", "@wllama/wllama", "@huggingface/jinja", "@huggingface/tokenizers"}


def test_the_app_is_small(app: App) -> None:
    """Without engines and model."""
    size = sum(app.files[name].size for name in app.own)
    print(f"the app: {size / 1000:.0f} KB")
    assert 0 < size < LARGEST


def test_every_licence_is_there(app: App) -> None:
    named = {each.name: each for each in app.licences}
    assert set(named) >= SHIPPED
    for each in app.licences:
        assert each.licence in ("MIT", "Apache-2.0", "BSD-3-Clause", "BSD-2-Clause", "ISC"), each.name
        assert len(each.text) > 400, each.name


def test_the_bundles_say_so(sites: dict[str, Path], app: App) -> None:
    for folder in sites.values():
        says = json.loads((folder / "bundle.json").read_text())
        assert {each["name"] for each in says["licences"]} == {each.name for each in app.licences}
        assert says["audit"]
        assert says["app"]["size"] < LARGEST
        assert (folder / "audit.json").is_file()


def test_nothing_of_another_host_is_in_the_app(app: App) -> None:
    for name in app.own:
        text = (app.path / name).read_text(encoding="utf-8", errors="replace")
        for line in text.split("fetch(")[1:]:
            assert not line.lstrip("`\"'").startswith("http"), name


def test_the_same_sources_give_the_same_bytes(app: App, tmp_path: Path) -> None:
    again = find_app(None, Silent(), tmp_path / "cache")
    said = {"audit.json"}  # what a registry says changes with the day
    assert {n: e for n, e in again.files.items() if n not in said} == {
        n: e for n, e in app.files.items() if n not in said
    }
