"""What goes wrong on phones: each ends in a clear message, and in a state that goes on when it is put right."""

from __future__ import annotations

import os
import re
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from acceptance_files import seal
from edgeship import catalog
from edgeship.progress import Silent
from edgeship.ship.web_app import App
from edgeship.ship.web_bundle import PART, make_web_bundle
from phone import MINUTES, NO_HALF, Host, Phone, cut_after, flipped, phone, serving

pytestmark = [pytest.mark.web, pytest.mark.timeout(600)]

TOKENIZER = "model/tokenizer.json"
WEIGHTS = "model/onnx/model_q4.onnx_data"
NORM = "norm.weight"


@contextmanager
def opened(
    playwright: Any, site: Path, folder: Path, query: str = "?backend=wasm&threads=1", **options: Any
) -> Iterator[tuple[Host, Phone]]:
    isolated = options.pop("isolated", True)
    with (
        serving(site, folder / "reports", isolated=isolated) as host,
        phone(playwright, host.url, folder / "profile", **options) as here,
    ):
        here.open(query)
        yield host, here


def works(here: Phone) -> None:
    """The model answers."""
    assert len(here.ask("generate", [1, 2, 3], 2)["ids"]) == 2


def resumes(host: Host, here: Phone) -> None:
    """Once it is put right, the same button goes on, and fetches no more than it has to."""
    host.cut.clear()
    here.page.tap("#message-close")
    here.install()
    assert here.ask("state")["phase"] == "installed"
    works(here)


def test_a_download_that_is_cut(playwright: Any, sites: dict[str, Path], tmp_path: Path) -> None:
    with opened(playwright, sites["onnx"], tmp_path) as (host, here):
        host.cut[TOKENIZER] = cut_after(1000)
        here.page.tap("#install-button")
        said = here.message()
        assert re.search(r"download was cut at .*tokenizer\.json", said)
        assert "What has arrived is kept" in said
        assert here.ask("state")["phase"] == "partial"
        assert here.page.inner_text("#install-button") == "Resume"
        before = host.asked.count(WEIGHTS)
        assert before == 1
        resumes(host, here)
        assert host.asked.count(WEIGHTS) == before  # what had arrived was not fetched again


def test_a_host_that_goes_away(playwright: Any, sites: dict[str, Path], tmp_path: Path) -> None:
    with opened(playwright, sites["onnx"], tmp_path) as (host, here):
        port = int(host.url.rsplit(":", 1)[1].strip("/"))
        host.stop()
        here.page.tap("#install-button")
        assert "cut" in here.message()
        with serving(sites["onnx"], tmp_path / "reports", port=port) as again:
            resumes(again, here)


@pytest.mark.parametrize("name", [TOKENIZER, WEIGHTS, "model/edgeship.json"])
def test_a_wrong_hash(playwright: Any, sites: dict[str, Path], tmp_path: Path, name: str) -> None:
    with opened(playwright, sites["onnx"], tmp_path) as (host, here):
        host.cut[name] = flipped
        here.page.tap("#install-button")
        said = here.message()
        assert "its sha256 differs" in said
        assert "was not stored" in said
        state = here.ask("state")
        assert not state["installed"]
        resumes(host, here)


@pytest.mark.parametrize("megabytes", [1, 8])
def test_a_quota_that_is_too_small(playwright: Any, sites: dict[str, Path], tmp_path: Path, megabytes: int) -> None:
    with opened(playwright, sites["onnx"], tmp_path) as (host, here):
        session = here.context.new_cdp_session(here.page)
        quota = {"origin": host.url.rstrip("/"), "quotaSize": megabytes * 1_000_000}
        session.send("Storage.overrideQuotaForOrigin", quota)
        here.page.tap("#install-button")
        said = here.message()
        assert "gives this page no more room" in said
        assert "Free space on the device" in said
        assert not here.ask("state")["installed"]
        assert WEIGHTS not in host.asked  # what cannot be kept is not downloaded
        session.send("Storage.overrideQuotaForOrigin", {"origin": quota["origin"]})
        resumes(host, here)


def test_a_quota_that_is_known_before(playwright: Any, sites: dict[str, Path], tmp_path: Path) -> None:
    """Chromium says a made-up quota where it is overridden, so the worker is told one."""
    little = "navigator.storage.estimate = async () => ({ quota: 5e6, usage: 1e6 });"
    with opened(playwright, sites["onnx"], tmp_path, offline=False) as (host, here):
        [worker] = [name for name in host.site.files if name.startswith("assets/worker-") and name.endswith(".js")]
        script = little + (host.site.path / worker).read_text(encoding="utf-8")
        headers = {"Cross-Origin-Embedder-Policy": "require-corp", "Content-Type": "text/javascript"}
        here.context.route(f"**/{worker}", lambda route: route.fulfill(body=script, headers=headers))
        here.open("?backend=wasm&threads=1")
        here.page.tap("#install-button")
        said = here.message()
        assert re.search(r"needs \d+ MB and the browser gives this page 4 MB", said)
        assert "Nothing was downloaded" in said
        assert WEIGHTS not in host.asked
        here.context.unroute(f"**/{worker}")
        here.open("?backend=wasm&threads=1")
        here.install()
        works(here)


def test_without_webgpu(playwright: Any, sites: dict[str, Path], tmp_path: Path) -> None:
    with opened(playwright, sites["onnx"], tmp_path, "?backend=webgpu") as (_, here):
        state = here.ask("state")
        assert (state["backend"], state["adapter"]) == ("wasm", None)
        assert "no WebGPU adapter" in here.message()  # what was asked for and cannot be had
        here.install()
        with pytest.raises(Exception, match="no WebGPU adapter"):
            here.ask("load", {"backend": "webgpu"})
        works(here)
        here.page.tap("#nav-settings")
        assert here.page.locator("#backend option").all_inner_texts() == ["WASM"]


def test_without_16_bit_floats(playwright: Any, sites: dict[str, Path], tmp_path: Path) -> None:
    with opened(playwright, sites["onnx"], tmp_path, "?backend=webgpu&floats=16", gpu=True) as (_, here):
        state = here.ask("state")
        if state["half"]:
            pytest.skip("the shaders of this browser's adapter have 16-bit floats")
        assert state["backend"] == "webgpu"
        assert "no 16-bit floats" in here.message()
        here.install()
        with pytest.raises(Exception, match="shader-f16"):
            here.ask("load", {"half": True})
        here.page.tap("#nav-settings")
        assert here.page.is_hidden("#floats-row")


def test_a_model_that_overflows_16_bits(playwright: Any, artifact: Path, app: App, tmp_path: Path) -> None:
    folder = tmp_path / "loud"
    shutil.copytree(artifact / "onnx", folder)
    (norm,) = (
        t for t in onnx.load(folder / "model.onnx", load_external_data=False).graph.initializer if t.name == NORM
    )
    place = {each.key: each.value for each in norm.external_data}
    weights = np.memmap(folder / "model.onnx.data", np.float32, "r+", int(place["offset"]), tuple(norm.dims))
    weights *= 1e6
    weights.flush()
    seal(folder)
    device = catalog.find_device("phone-web")
    site = make_web_bundle(folder, device, "ort", tmp_path / "out", app=app.path, kind=None, progress=Silent()).path
    with opened(playwright, site, tmp_path, "?backend=webgpu&floats=16", gpu=True) as (_, here):
        if not here.ask("state")["half"]:
            pytest.skip(NO_HALF)
        here.install()
        with pytest.raises(Exception, match="overflow"):
            works(here)
        here.page.tap("#nav-settings")
        here.page.select_option("#floats", "32")
        works(here)


def test_without_shared_memory(playwright: Any, sites: dict[str, Path], tmp_path: Path) -> None:
    with opened(playwright, sites["onnx"], tmp_path, "?backend=wasm&threads=4", isolated=False) as (_, here):
        state = here.ask("state")
        assert (state["isolated"], state["threads"]) == (False, 1)
        assert "SharedArrayBuffer" in here.message()
        here.install()
        with pytest.raises(Exception, match="Threads need SharedArrayBuffer"):
            here.ask("load", {"threads": 2})
        works(here)
        here.page.tap("#nav-settings")
        assert "one thread" in here.page.inner_text("#abilities").lower()


def test_a_tab_that_is_killed_while_it_writes(playwright: Any, app: App, artifact: Path, tmp_path: Path) -> None:
    """The browser is ended in the middle of a file of several parts, and a new one goes on with the same profile."""
    site = larger_site(app, artifact, tmp_path)
    name = "model/ballast.bin"
    with serving(site, tmp_path / "reports") as host:
        host.cut[name] = slowly
        with phone(playwright, host.url, tmp_path / "profile") as here:
            here.open("?backend=wasm&threads=1")
            here.page.evaluate("() => { document.querySelector('#install-button').click() }")
            here.until("document.querySelector('#progress').value > 0.8", 2 * MINUTES)
            kill(tmp_path / "profile")
        host.cut.clear()
        fetched = host.asked.count(name)
        with phone(playwright, host.url, tmp_path / "profile") as here:
            here.open("?backend=wasm&threads=1")
            state = here.ask("state")
            assert (state["installed"], state["phase"]) == (False, "partial")
            here.install()
            assert host.asked.count(name) - fetched < BALLAST_PARTS  # whole parts were kept
            assert here.ask("verify")["intact"] is True
            works(here)


BALLAST_PARTS = 5


def slowly(body: bytes) -> bytes:
    time.sleep(0.002)
    return body


def kill(profile: Path) -> None:
    """End the browser of a profile, as the system does when memory is short: nothing is written after."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # ended meanwhile
            if f"--user-data-dir={profile}".encode() in (process / "cmdline").read_bytes().split(b"\0"):
                os.kill(int(process.name), signal.SIGKILL)


def larger_site(app: App, artifact: Path, folder: Path) -> Path:
    """The artifact with a file of several parts in it."""
    directory = Path(shutil.copytree(artifact / "onnx", folder / "large"))
    with (directory / "ballast.bin").open("wb") as file:
        for _ in range(BALLAST_PARTS):
            file.write(bytes(PART))
    seal(directory)
    device = catalog.find_device("phone-web")
    return make_web_bundle(directory, device, "ort", folder / "out", app=app.path, kind=None, progress=Silent()).path
