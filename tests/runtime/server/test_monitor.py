"""/health, /metrics, /v1/stats and the log: what they say, when it changes, and what never stands in them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from edgeship_runtime.server import monitor
from edgeship_runtime.server.keys import new_key, read_keys
from edgeship_runtime.server.serve import build
from edgeship_runtime.server.settings import Settings
from edgeship_runtime.server.telemetry import Log, Telemetry
from served import HOT, Served, serving
from toy_artifact import write_toy
from toy_gguf import FORMS

COOL = {"temperature_c": 50.0, "throttled": (), "ram_mb": 8000.0, "ram_free_mb": 6000.0}


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The parts of a server that nobody asked anything, on a machine that is well."""
    artifact = write_toy(tmp_path / "toy" / "onnx").directory
    made = build(Settings(artifacts={"toy": artifact}, memory_mb=10_000.0, queue_limit=10), log=Log(lambda _: None))
    monkeypatch.setattr(Telemetry, "board", lambda _: COOL)
    monkeypatch.setattr(monitor.shutil, "disk_usage", lambda _: SimpleNamespace(free=5_000_000_000))
    monkeypatch.setattr(monitor, "allowed_mb", lambda: None)
    made.service.scheduler.start()
    yield made.service
    made.service.scheduler.close()


def check(service: Any, name: str) -> dict[str, Any]:
    (found,) = (each for each in monitor.health(service)["checks"] if each["name"] == name)
    return found


class TestHealth:
    def test_every_check_has_a_threshold_and_advice(self, service: Any) -> None:
        found = monitor.health(service)
        assert found["status"] == "healthy", found
        assert len(found["checks"]) == len({each["name"] for each in found["checks"]}) == 9
        for each in found["checks"]:
            assert set(each) == {"name", "status", "value", "threshold", "advice"}
            assert each["threshold"].keys() <= {"degraded", "unhealthy"}
            assert each["threshold"]
            assert len(each["advice"]) > 20
        json.dumps(found, allow_nan=False)

    @pytest.mark.parametrize(
        ("name", "board"),
        [
            ("temperature_c", {"temperature_c": monitor.HOT_C}),
            ("throttled", {"throttled": ("under-voltage now", "too hot since the start")}),
            ("memory_free_mb", {"ram_free_mb": 300.0}),
        ],
    )
    def test_the_board(self, service: Any, monkeypatch: pytest.MonkeyPatch, name: str, board: dict[str, Any]) -> None:
        assert check(service, name)["status"] == "healthy"
        monkeypatch.setattr(Telemetry, "board", lambda _: COOL | board)
        assert check(service, name)["status"] == monitor.health(service)["status"] == "degraded"

    def test_what_was_is_not_what_is(self, service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Telemetry, "board", lambda _: COOL | {"throttled": ("too hot since the start",)})
        assert check(service, "throttled")["status"] == "healthy"
        silent = dict.fromkeys(COOL)
        monkeypatch.setattr(Telemetry, "board", lambda _: silent)
        assert monitor.health(service)["status"] == "healthy", "a board that tells nothing is not ill for it"

    def test_memory_beside_what_is_allowed(self, service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        rss = monitor.rss_mb() or 0.0
        monkeypatch.setattr(monitor, "allowed_mb", lambda: rss / 0.8)
        assert check(service, "memory_mb")["status"] == "healthy"
        monkeypatch.setattr(monitor, "allowed_mb", lambda: rss / 1.5)
        assert check(service, "memory_mb")["status"] == "degraded"

    def test_the_service_managers_limit(self, tmp_path: Path) -> None:
        (tmp_path / "proc/self").mkdir(parents=True)
        group = tmp_path / "sys/fs/cgroup/user.slice/edgeship.service"
        group.mkdir(parents=True)
        assert monitor.allowed_mb(tmp_path) is None
        (tmp_path / "proc/self/cgroup").write_text("1:cpu:/\n0::/user.slice/edgeship.service\n")
        assert monitor.allowed_mb(tmp_path) is None
        for text, limit in (("1500000000\n", 1500.0), ("max\n", None)):
            (group / "memory.max").write_text(text)
            assert monitor.allowed_mb(tmp_path) == limit

    def test_disk_queue_and_artifacts(self, service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(monitor.shutil, "disk_usage", lambda _: SimpleNamespace(free=100_000_000))
        assert check(service, "disk_free_mb")["status"] == "degraded"
        for waiting, status in ((7, "healthy"), (8, "degraded")):
            monkeypatch.setattr(type(service.scheduler), "waiting", property(lambda _, n=waiting: n))
            assert check(service, "queue")["status"] == status
        (path,) = service.settings.artifacts.values()
        path.rename(path.with_name("moved"))
        assert check(service, "artifacts_missing")["value"] == ["toy"]

    def test_requests_that_fail(self, service: Any) -> None:
        for status in [200] * 10 + [503, 500]:
            service.telemetry.request("/v1/chat/completions", status)
        assert check(service, "failed_share")["status"] == "healthy", "two are no rule"
        for status in (503, 429, 400, 404, 499, 500):
            service.telemetry.request("/v1/chat/completions", status)
        service.telemetry.request("/metrics", 503)
        found = check(service, "failed_share")
        assert (found["status"], found["value"]) == ("degraded", round(4 / 18, 3))
        for _ in range(50):
            service.telemetry.request("/api/chat", 200)
        assert check(service, "failed_share")["status"] == "healthy"

    def test_an_engine_that_is_stuck_or_gone(self, service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(type(service.scheduler), "stuck", property(lambda _: True))
        assert check(service, "engine")["value"] == "stuck"
        assert monitor.health(service)["status"] == "unhealthy"
        monkeypatch.undo()
        service.scheduler.close()
        assert check(service, "engine")["value"] == "ended"

    def test_without_the_key_no_more_than_the_status(self, tiny: Path, tmp_path: Path) -> None:
        key = new_key(tmp_path / "keys", "me")
        with serving({"tiny": tiny}, keys=read_keys(tmp_path / "keys")) as served:
            assert served.get("/health").json().keys() == {"status"}
            headers = {"Authorization": f"Bearer {key}"}
            assert "checks" in served.get("/health", headers=headers).json()
            headers = {"Authorization": f"Bearer {key}x"}
            assert served.get("/health", headers=headers).json().keys() == {"status"}


def metrics(served: Served) -> dict[str, Any]:
    """Metric families by name, as Prometheus' own client reads them."""
    answer = served.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    return {family.name: family for family in text_string_to_metric_families(answer.text)}


def value(families: dict[str, Any], family: str, sample: str = "") -> float:
    name = f"{family}{sample}"
    return sum(each.value for each in families[family].samples if each.name == name)


def test_metrics_count_what_was_answered(served: Served) -> None:
    before = metrics(served)
    answers = [served.ask(max_tokens=4).json() for _ in range(2)]
    answers.append(served.ask(max_tokens=3, stream=True, stream_options={"include_usage": True}))
    served.wait(
        lambda: value(metrics(served), "edgeship_tokens", "_total") - value(before, "edgeship_tokens", "_total") >= 11
    )
    after = metrics(served)

    def grown(family: str, sample: str = "") -> float:
        return value(after, family, sample) - (value(before, family, sample) if family in before else 0)

    asked = sum(answer["usage"]["prompt_tokens"] for answer in answers[:2]) / 2
    assert grown("edgeship_tokens", "_total") == 11
    assert grown("edgeship_prompt_tokens", "_total") == 3 * asked
    assert grown("edgeship_time_to_first_token_seconds", "_count") == 3
    assert grown("edgeship_decode_tokens_per_second", "_count") == 3
    assert 0 < grown("edgeship_time_to_first_token_seconds", "_sum") < 30
    for family in ("edgeship_time_to_first_token_seconds", "edgeship_decode_tokens_per_second"):
        buckets = [each for each in after[family].samples if each.name.endswith("_bucket")]
        counts = [each.value for each in buckets]
        assert counts == sorted(counts)
        assert buckets[-1].labels == {"model": "tiny", "le": "+Inf"}
    requests = [each for each in after["edgeship_requests"].samples if each.labels.get("status") == "200"]
    assert {"/v1/chat/completions", "/metrics"} <= {each.labels["route"] for each in requests}


def test_gauges(served: Served) -> None:
    served.ask(max_tokens=2)
    families = metrics(served)
    assert 10e6 < value(families, "edgeship_resident_bytes") < 10e9
    assert value(families, "edgeship_queue_length") == 0
    assert value(families, "edgeship_queue_limit") == 64
    assert 0 < value(families, "edgeship_kv_tokens") <= value(families, "edgeship_kv_capacity_tokens")
    assert value(families, "edgeship_healthy") in (0.5, 1)
    assert value(families, "edgeship_models_loaded") == 1
    for family in families.values():
        assert all(math.isfinite(each.value) for each in family.samples), family.name


def test_heat_is_told_where_the_board_tells_it(service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def shown() -> dict[str, float]:
        families = text_string_to_metric_families(service.telemetry.metrics().decode())
        return {each.name: each.samples[0].value for each in families if each.samples}

    assert (shown()["edgeship_temperature_celsius"], shown()["edgeship_throttled"]) == (50.0, 0.0)
    monkeypatch.setattr(Telemetry, "board", lambda _: COOL | {"throttled": ("throttled now",)})
    assert shown()["edgeship_throttled"] == 1.0
    silent = dict.fromkeys(COOL)
    monkeypatch.setattr(Telemetry, "board", lambda _: silent)
    assert shown().keys() & {"edgeship_temperature_celsius", "edgeship_throttled"} == set()


def test_averages_are_over_the_last_answers(served: Served) -> None:
    for _ in range(2):
        assert served.ask(max_tokens=4).status_code == 200
    found = served.get("/v1/stats").json()
    average = found["last_answers"]
    assert average["answers"] >= 2
    assert 0 < average["ttft_s"] < 30
    assert average["decode_tokens_per_s"] > 1
    assert average["queue_s"] >= 0
    assert 0 < average["tokens"] <= average["answers"] * 4096
    assert found["models"]["tiny"]["kv_tokens"] > 0
    assert found["board"].keys() == COOL.keys()


class TestLog:
    @pytest.mark.parametrize("form", FORMS)
    def test_a_hash_and_lengths_instead_of_text(self, tiny: Path, form: str) -> None:
        with serving({"tiny": tiny / form}) as served:
            for content in ("my secret plan", "my secret plan", "another secret"):
                served.ask(messages=[{"role": "user", "content": content}], max_tokens=2, user="Iris")
            served.wait(lambda: len(served.events("request")) == 3)
        first, second, other = served.events("request")
        assert first["prompt_hash"] == second["prompt_hash"] != other["prompt_hash"]
        assert len(first["prompt_hash"]) == 16
        assert first["characters"] >= len("my secret plan")
        assert first["tokens"] == 2
        assert first["prompt_tokens"] > 0
        assert {"time", "event", "client", "method", "route", "status", "seconds", "model"} <= first.keys()
        assert "secret" not in json.dumps(served.lines)
        assert "Iris" not in json.dumps(served.lines)

    def test_the_hash_is_keyed(self) -> None:
        import hashlib

        logs = [Log(lambda _: None), Log(lambda _: None)]
        prints = {log.fingerprint("hello") for log in logs}
        assert len(prints) == 2, "another process cannot look a prompt up"
        assert hashlib.sha256(b"hello").hexdigest()[:16] not in prints

    def test_a_reader_that_left_is_no_failure(self) -> None:
        def gone(_: str) -> None:
            raise BrokenPipeError

        Log(gone)("anything", value=1)


def test_nothing_that_was_asked_stands_in_metrics_or_stats(served: Served) -> None:
    served.ask(messages=[*HOT, {"role": "user", "content": "zebra-stripes"}], max_tokens=2)
    served.get("/v1/zebra-stripes")
    served.post("/v1/chat/completions", {"model": "zebra-stripes", "messages": HOT})
    for path in ("/metrics", "/v1/stats", "/health"):
        assert "zebra" not in served.get(path).text
    assert "zebra" not in json.dumps(served.lines)
