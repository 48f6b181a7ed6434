"""Results that a page sends: a report each, or refused in words; how many, and how large."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeship.errors import HostError
from edgeship.ship.report import parse_report, read_reports
from edgeship.ship.web_results import MAX_RESULT, read_result
from edgeship.ship.web_server import Limit
from edgeship.ship.web_site import Site
from json_values import JSON, changed
from web_apps import AGENT

Ask = Callable[..., httpx.Response]


def test_a_result_becomes_a_report(ask: Ask, site: Site, told: dict[str, Any], tmp_path: Path) -> None:
    answer = ask("POST", "/results", json=told)
    assert answer.status_code == 201, answer.text
    found, wrong = read_reports(tmp_path / "reports")
    assert not wrong
    [(path, report)] = found
    sealed = hashlib.sha256((site.path / "model/edgeship.json").read_bytes()).hexdigest()
    assert path.parts[-3:-1] == ("phone-web", sealed[:12])
    assert path.with_suffix(".html").is_file()
    assert answer.json() == {"report": path.name, "verdict": report.verdict}
    assert (report.device, report.engine, report.host) == ("phone-web", "ort", "192.168.1.20")
    assert report.verdict == "pass"
    assert {"hashes", "templates", "tokens", "fidelity", "verify", "kernels"} <= {c.name for c in report.checks}
    assert report.board.cpu == AGENT
    assert report.board.arch == "wasm32"
    assert report.samples[0].threads == 1
    assert report.notes == ("measured in a browser: wasm, 2 of 8 threads",)


def test_a_failed_verdict_is_kept_as_one(ask: Ask, told: dict[str, Any]) -> None:
    failed = told | {"verify": told["verify"] | {"verdict": "fail", "failures": ["tokens: one: the token ids differ"]}}
    assert ask("POST", "/results", json=failed).json()["verdict"] == "fail"


def test_a_software_adapter_is_not_judged_by_its_speed(ask: Ask, told: dict[str, Any], tmp_path: Path) -> None:
    slow = changed(changed(told, "bench/decode_tokens_per_s", 0.1), "browser/adapter", "google swiftshader")
    assert ask("POST", "/results", json=slow).json()["verdict"] == "fail"
    assert ask("POST", "/results", json=changed(slow, "browser/backend", "webgpu")).json()["verdict"] == "pass"
    emulated = {report.board.emulated for _, report in read_reports(tmp_path / "reports")[0]}
    assert emulated == {"", "WebGPU in software, google swiftshader"}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("schema", 2),
        ("device", "raspberry-pi-5-8gb"),
        ("device", "../../etc"),
        ("name", "other"),
        ("engine", "gguf"),
        ("digest", "0" * 64),
        ("browser/user_agent", "a\x1b[31m"),
        ("browser/user_agent", "a" * 2000),
        ("browser/cores", 1.5),
        ("browser/cores", -1),
        ("browser/isolated", 1),
        ("browser/backend", "cuda"),
        ("browser/more", "x"),
        ("more", 1),
        ("browser", ...),
        ("verify", None),
        ("verify", []),
        ("verify/verdict", "perfect"),
        ("verify/agreement/wrong", -1),
        ("verify/agreement/kernels", 5),
        ("verify/failures", "none"),
        ("bench", []),
        ("bench/decode_tokens_per_s", -5),
        ("bench/decode_tokens_per_s", "fast"),
        ("bench/threads", True),
    ],
)
def test_a_result_with_one_thing_wrong(ask: Ask, told: dict[str, Any], path: str, value: Any, tmp_path: Path) -> None:
    answer = ask("POST", "/results", json=changed(told, path, value))
    assert answer.status_code == 422
    error = answer.json()["error"]
    assert error["message"].isprintable()
    assert error["hint"]
    assert not (tmp_path / "reports").exists()


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[]", b'{"schema": 1, "schema": 1}', b"\xff", b'{"schema": NaN}', b"[" * 5000]
)
def test_what_is_no_json(ask: Ask, raw: bytes) -> None:
    answer = ask("POST", "/results", content=raw, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422


def test_bounds_of_a_result(ask: Ask, told: dict[str, Any], tmp_path: Path) -> None:
    json_type = {"Content-Type": "application/json"}
    assert ask("POST", "/results", content=b" " * (MAX_RESULT + 1), headers=json_type).status_code == 413
    assert ask("POST", "/results", content=b"{}", headers={"Content-Type": "text/plain"}).status_code == 415
    other = {"Origin": "https://evil.example"}
    assert ask("POST", "/results", json=told, headers=other).status_code == 403
    assert ask("POST", "/results", json=told, headers={"Origin": "null"}).status_code == 403
    assert not (tmp_path / "reports").exists()
    assert ask("POST", "/results", json=told, headers={"Origin": "http://phone.test"}).status_code == 201


def test_too_many_results(ask: Ask, told: dict[str, Any]) -> None:
    codes = [ask("POST", "/results", json=told | {"schema": 2}).status_code for _ in range(8)]
    assert codes == [422] * 6 + [429] * 2


def test_the_limit_passes() -> None:
    limit = Limit(each=2, total=3)
    assert [limit.wait("a", t) for t in (0.0, 1.0)] == [0.0, 0.0]
    assert limit.wait("a", 2.0) == 58.0
    assert limit.wait("b", 2.0) == 0.0
    assert limit.wait("c", 3.0) == 57.0
    assert limit.wait("a", 60.5) == 0.0


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    value=JSON,
    member=st.sampled_from(["schema", "browser", "verify", "bench", "digest", "verify/agreement", "verify/size"]),
)
def test_any_value_is_refused_in_words_or_read(told: dict[str, Any], site: Site, value: Any, member: str) -> None:
    raw = json.dumps(changed(told, member, value)).encode()
    with suppress(HostError):  # what pydantic itself would say is none
        report = read_result(raw, site, "phone")
        assert parse_report(report.to_json(), "here") == report
