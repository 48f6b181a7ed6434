"""The whole way on a phone: install, lose the network, chat, stop, reload, verify; on every backend."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from edgeship.ship.report import read_reports
from phone import MINUTES, NO_HALF, phone, serving

pytestmark = [pytest.mark.web, pytest.mark.timeout(900)]


@dataclass(frozen=True)
class Way:
    form: str
    backend: str
    threads: int
    floats: int = 32

    def __str__(self) -> str:
        return f"{self.form}-{self.backend}-{self.threads}-{self.floats}"


WAYS = [
    Way("onnx", "wasm", 1),
    Way("onnx", "wasm", 2),
    Way("onnx", "webgpu", 1),
    Way("onnx", "webgpu", 1, floats=16),
    Way("gguf", "wasm", 1),
]


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_the_whole_way(playwright: Any, sites: dict[str, Path], tmp_path: Path, way: Way) -> None:
    query = f"?backend={way.backend}&threads={way.threads}&floats={way.floats}&temperature=0"
    with (
        serving(sites[way.form], tmp_path / "reports") as host,
        phone(playwright, host.url, tmp_path / "profile", gpu=way.backend == "webgpu") as here,
    ):
        here.open(query)
        if way.floats == 16 and not here.ask("state")["half"]:
            pytest.skip(NO_HALF)
        assert here.ask("state")["phase"] == "absent"
        here.install()
        state = here.ask("state")
        assert (state["installed"], state["phase"]) == (True, "installed")
        assert state["digest"] == host.site.site_digest
        port = int(host.url.rsplit(":", 1)[1].strip("/"))
        host.stop()  # no network, and no host either
        here.context.set_offline(True)
        here.open(query)
        state = here.ask("state")
        assert (state["backend"], state["threads"], state["isolated"]) == (way.backend, way.threads, True)
        chats(here, "What sound does a cow make?", "moo")
        stops(here)
        here.open(query)  # reload, still alone
        verdict = verifies(here, 10 if way.backend == "webgpu" else 3)
        assert verdict["verdict"] == "pass", verdict["failures"]
        agreement = verdict["agreement"]
        assert agreement["wrong"] == 0
        if way.backend == "webgpu":
            assert agreement["kernels"] == f"webgpu float{way.floats}"
        assert verdict["templates"]["equal"] == verdict["templates"]["cases"] > 0
        assert verdict["tokens"]["equal"] == verdict["tokens"]["cases"] > 0
        print(f"{way}: {json.dumps(agreement)}")
        if way.backend != "webgpu":  # in software it takes minutes, and says nothing
            here.page.tap("#bench-button")
            here.page.wait_for_selector("#bench-button:not([disabled])", timeout=5 * MINUTES)
        here.context.set_offline(False)
        with serving(sites[way.form], tmp_path / "reports", port=port):
            here.page.evaluate("() => window.edgeship.state()")  # the page learns that its host is back
            here.page.tap("#send-result")
            here.until("document.querySelector('#check-status').textContent.includes('host has it')")
        assert here.complaints == []
    [(_, report)], wrong = read_reports(tmp_path / "reports")
    assert not wrong
    assert (report.device, report.verdict) == ("phone-web", "pass")
    assert all(sample.decode_tokens_per_s > 0 for sample in report.samples)
    assert len(report.samples) == (way.backend != "webgpu")


def chats(here: Any, question: str, answer: str) -> None:
    here.page.fill("#input", question)
    here.page.tap("#send")
    here.page.wait_for_selector("#send:not([hidden])", timeout=2 * MINUTES)
    assert here.page.is_hidden("#message"), here.message()
    said = here.page.locator(".message.assistant").last.inner_text()
    assert answer in said.lower()


def stops(here: Any) -> None:
    """A long answer ends within a token of the button, and what was said stays."""
    here.page.fill("#input", "Tell me a long story about a dog and a cat.")
    here.page.tap("#send")
    here.until("[...document.querySelectorAll('.message.assistant')].slice(1).at(-1)?.textContent.length > 3")
    here.page.evaluate("() => document.querySelector('#stop').click()")
    here.page.wait_for_selector("#send:not([hidden])", timeout=5000)


def verifies(here: Any, minutes: int) -> dict[str, Any]:
    here.page.tap("#nav-check")
    here.page.tap("#verify-button")
    here.page.wait_for_selector("#verify-button:not([disabled])", timeout=minutes * MINUTES)
    assert here.page.is_hidden("#message"), here.message()
    told: dict[str, Any] = json.loads(here.page.inner_text("#verdict"))["verify"]
    return told
