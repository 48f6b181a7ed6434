"""Who is let in, how often, with how much; and that hostile requests get errors of their own."""

from __future__ import annotations

import asyncio
import json
import socket
import stat
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import json_values
from edgeship_runtime.errors import DependencyError, UsageError
from edgeship_runtime.server.connection import Connection
from edgeship_runtime.server.fields import Body, parse_object
from edgeship_runtime.server.gate import RateLimit
from edgeship_runtime.server.keys import digest, holder, new_key, read_keys
from edgeship_runtime.server.problems import RequestError
from edgeship_runtime.server.serve import build
from edgeship_runtime.server.settings import Settings, check, is_loopback, name_artifacts
from served import HOT, Served, serving

SECRET = "a-very-secret-prompt"
POSTS = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
    "/api/chat",
    "/api/generate",
    "/api/embed",
)


def test_beyond_loopback_a_key_is_demanded() -> None:
    artifacts = {"a": Path("a")}
    for host in ("0.0.0.0", "192.168.1.5", "::", "board.local", ""):
        with pytest.raises(UsageError, match="no API key"):
            check(Settings(artifacts=artifacts, host=host))
        check(Settings(artifacts=artifacts, host=host, keys={digest("k"): "me"}))
    for host in ("127.0.0.1", "localhost", "::1", "127.9.9.9"):
        check(Settings(artifacts=artifacts, host=host))
    assert not is_loopback("127.0.0.1.example.org")


@pytest.mark.parametrize(
    "wrong", [{"queue_limit": 0}, {"timeout_s": 0.0}, {"timeout_s": float("nan")}, {"port": 70000}]
)
def test_settings_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="expected"):
        check(Settings(artifacts={"a": Path("a")}, **wrong))


@pytest.mark.parametrize("package", ["starlette", "uvicorn", "prometheus_client"])
def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(DependencyError) as caught:
        build(Settings(artifacts={"a": Path("a")}))
    assert caught.value.hint == "pip install 'edgeship-runtime[server]'"


def test_names_of_artifacts(tmp_path: Path) -> None:
    found = name_artifacts(["here/tiny/onnx", "here/other", "it=here/tiny/gguf", "some.gguf"])
    assert list(found) == ["tiny", "other", "it", "some"]
    with pytest.raises(UsageError, match="two artifacts are called 'tiny'"):
        name_artifacts(["a/tiny", "b/tiny"])


def test_keys_are_kept_as_hashes_for_the_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    first, second = new_key(path, "ann"), new_key(path, "bob")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert first not in path.read_text()
    keys = read_keys(path)
    assert (holder(keys, first), holder(keys, second)) == ("ann", "bob")
    assert holder(keys, first[:-1]) is None
    assert holder(keys, digest(first)) is None


@pytest.mark.parametrize("text", ["", "ann plain-key\n", "# only a remark\n", "\xff"])
def test_a_file_without_keys_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "keys").write_text(text, encoding="latin-1")
    with pytest.raises(UsageError):
        read_keys(tmp_path / "keys")


def test_a_key_is_asked_for_everywhere_but_at_health(tiny: Path) -> None:
    with serving({"tiny": tiny / "onnx"}, keys={digest("right"): "ann"}) as served:
        assert served.get("/health").status_code == 200
        for path in ("/v1/models", "/v1/stats", "/metrics", "/api/tags", "/nothing", "/health/../v1/models"):
            refused = served.get(path)
            assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
        for path in POSTS:
            assert served.post(path, {}).status_code == 401
        for wrong in ("Bearer wrong", "Bearer", "right", f"Bearer {digest('right')}", "Basic right"):
            assert served.get("/v1/models", headers={"Authorization": wrong}).status_code == 401
        assert served.get("/v1/models", headers={"Authorization": "Bearer right"}).status_code == 200
        served.wait(lambda: served.events("request")[-1]["client"] == "ann")


def test_pages_of_other_origins_and_names_that_resolve_to_us_are_refused(served: Served) -> None:
    for headers in ({"Origin": "https://example.org"}, {"Origin": "null"}, {"Host": "example.org"}):
        assert served.get("/v1/models", headers=headers).status_code == 403
    assert served.get("/v1/models", headers={"Origin": served.url}).status_code == 200
    assert served.get("/v1/models", headers={"Host": "localhost:99"}).status_code == 200


def test_rate_of_a_client() -> None:
    now = [0.0]
    limit = RateLimit(2, lambda: now[0])
    limit.take("a")
    limit.take("a")
    limit.take("b")
    with pytest.raises(RequestError) as caught:
        limit.take("a")
    assert (caught.value.status, caught.value.retry_after_s) == (429, 31)
    now[0] = 30.0
    limit.take("a")
    with pytest.raises(RequestError):
        limit.take("a")


def test_too_many_requests_say_when_to_come_back(tiny: Path) -> None:
    with serving({"tiny": tiny / "onnx"}, requests_per_minute=3) as served:
        found = [served.get("/v1/models") for _ in range(5)]
    assert [each.status_code for each in found] == [200, 200, 200, 429, 429]
    assert 1 <= int(found[-1].headers["retry-after"]) <= 21


def test_bodies_that_are_too_large(tiny: Path) -> None:
    with serving({"tiny": tiny / "onnx"}, max_body=1000, max_messages=2, max_inputs=2, max_tokens=9) as served:
        assert served.ask(stop="x" * 2000).status_code == 413
        with served.client() as client:  # chunked: no length is told beforehand
            sent = client.post("/v1/completions", content=(b"x" * 100 for _ in range(20)))
        assert sent.status_code == 413
        for wrong in ({"messages": HOT * 3}, {"max_tokens": 10}, {"n": 2}, {"frequency_penalty": 1}):
            assert served.ask(**wrong).json()["error"]["param"] == next(iter(wrong))
        body = {"model": "tiny", "prompt": ["a", "b", "c"]}
        assert served.post("/v1/completions", body).json()["error"]["param"] == "prompt"
        assert served.ask(max_tokens=2).status_code == 200


def test_prompts_that_are_too_long(tiny: Path) -> None:
    with serving({"tiny": tiny / "onnx"}, max_prompt_tokens=20) as served:
        long = {"model": "tiny", "prompt": "hot " * 30}
        assert served.post("/v1/completions", long).json()["error"]["code"] == "context_length_exceeded"
        found = served.ask(messages=[{"role": "user", "content": "hot " * 30}]).json()
        assert found["error"]["code"] == "context_length_exceeded"


RAW = [
    b"",
    b"[]",
    b"null",
    b"{",
    b'{"model": NaN}',
    b'{"a": "\\ud800"}',
    b"\xff\xfe",
    b'{"a":' * 100_000,
    b"[" * 100_000,
    b'{"seed": ' + b"9" * 10_000 + b"}",
    b"model=tiny",
]


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize("raw", RAW)
def test_what_is_no_json_object_is_a_400(served: Served, path: str, raw: bytes) -> None:
    with served.client() as client:
        found = client.post(path, content=raw)
    assert found.status_code == 400
    assert "Traceback" not in found.text


ODD = json_values.values(finite=True)
ORDINARY = {"messages": HOT, "prompt": "a", "input": "a", "max_tokens": 1, "max_output_tokens": 1}
ORDINARY |= {"options": {"num_predict": 1}}
SWITCHES = "stream echo logprobs raw think system format stream_options text instructions encoding_format suffix tools"
LIMITS = "max_tokens temperature top_p top_k stop seed top_logprobs logit_bias n best_of thinking_budget"
RULES = "tool_choice response_format chat_template_kwargs enable_thinking previous_response_id"
MEMBERS = sorted({*ORDINARY, *SWITCHES.split(" "), *LIMITS.split(" "), *RULES.split(" ")})


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=st.sampled_from(POSTS), odd=st.dictionaries(st.sampled_from(MEMBERS), ODD, min_size=1, max_size=3))
def test_odd_members_never_break_the_server(served: Served, path: str, odd: dict[str, Any]) -> None:
    found = served.post(path, {"model": "tiny"} | ORDINARY | odd)
    assert found.status_code in (200, 400), found.text
    assert "Traceback" not in found.text
    assert str(served.server.settings.artifacts["tiny"]) not in found.text


def test_nothing_of_a_prompt_is_logged(served: Served) -> None:
    before = len(served.lines)
    for path in (f"/{SECRET}", f"/v1/models/{SECRET}"):
        served.get(path)
    served.ask(messages=[{"role": "user", "content": SECRET}], max_tokens=1)
    served.ask(messages=[{"role": SECRET, "content": SECRET}], max_tokens=1, stream=True)
    served.post("/v1/completions", {"model": SECRET, "prompt": SECRET})
    served.post("/api/generate", {"model": "tiny", "prompt": SECRET, "system": SECRET, "options": {SECRET: SECRET}})
    served.wait(lambda: len(served.lines) >= before + 6)
    written = json.dumps(served.lines[before:])
    assert SECRET not in written
    assert "prompt_hash" in written


@given(st.binary(max_size=40))
def test_parsing_a_body_gives_an_object_or_a_400(raw: bytes) -> None:
    try:
        found: Body | int = parse_object(raw)
    except RequestError as error:
        found = error.status
    assert found == 400 or isinstance(found, Body)


def test_health_metrics_and_stats(served: Served) -> None:
    served.ask(max_tokens=3)
    health = served.get("/health").json()
    assert health["status"] == "healthy"
    assert {check["name"] for check in health["checks"]} >= {"engine", "queue", "memory_mb", "temperature_c"}
    from prometheus_client.parser import text_string_to_metric_families

    families = {family.name: family for family in text_string_to_metric_families(served.get("/metrics").text)}
    tokens = sum(sample.value for sample in families["edgeship_tokens"].samples if sample.name.endswith("_total"))
    assert tokens >= 3
    assert "edgeship_time_to_first_token_seconds" in families
    stats = served.get("/v1/stats").json()
    assert stats["last_answers"]["answers"] >= 1
    assert stats["last_answers"]["ttft_s"] > 0


def test_the_page_is_served_with_its_headers(served: Served) -> None:
    found = served.get("/")
    assert found.status_code == 200
    assert "default-src 'none'" in found.headers["content-security-policy"]


def test_an_answer_is_not_kept_back_until_the_client_has_acknowledged_its_headers(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, at_once = Connection.connection_made, list[bool]()

    def noted(self: Connection, transport: asyncio.Transport) -> None:
        made(self, transport)
        at_once.append(bool(transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)))

    monkeypatch.setattr(Connection, "connection_made", noted)
    assert served.get("/v1/models").status_code == 200
    assert at_once == [True]
