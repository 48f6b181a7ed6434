"""What goes wrong while a server runs: clients leave, engines fail, artifacts vanish, the system says end."""

from __future__ import annotations

import json
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

import command_line
from edgeship_runtime import prefix_files
from edgeship_runtime.engines.batch import Lane
from edgeship_runtime.server import service
from served import COLD, HOT, Served, serving
from small_disks import full, small_disk
from toy_gguf import FORMS


def text_of(response: httpx.Response) -> str:
    chunks = [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: {")]
    return "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])


def slow(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Make every run of the engine take a while."""
    evaluate = Lane.evaluate

    def slowly(self: Lane, tokens: Any) -> Any:
        time.sleep(seconds)
        return evaluate(self, tokens)

    monkeypatch.setattr(Lane, "evaluate", slowly)


LEAVE = 250
"""Clients that leave, on each engine."""


def leave(port: int, chance: random.Random) -> None:
    """Ask for an answer without end, and go away somewhere in the middle."""
    stream = chance.random() < 0.8
    body = json.dumps({"model": "tiny", "messages": HOT, "stream": stream, "ignore_eos": True}).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
    whole = head + body
    with socket.create_connection(("127.0.0.1", port)) as connection:
        if chance.random() < 0.5:  # without a word, as when the network breaks
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if chance.random() < 0.3:
            connection.sendall(whole[: chance.randrange(len(whole))])
            return
        connection.sendall(whole)
        connection.settimeout(chance.choice([0.001, 0.01, 0.1]))
        with suppress(TimeoutError, ConnectionError):
            for _ in range(chance.randrange(4)):
                connection.recv(chance.randrange(1, 400))


def test_clients_that_leave_at_any_point_free_the_engine(served: Served) -> None:
    port, chance = int(served.url.rpartition(":")[2]), random.Random(7)
    with ThreadPoolExecutor(10) as pool:
        list(pool.map(lambda seed: leave(port, random.Random(seed)), chance.sample(range(10**6), LEAVE)))
    scheduler = served.server.service.scheduler
    served.wait(lambda: not scheduler.running and not scheduler.waiting)
    for _ in range(5):
        assert served.ask().json()["choices"][0]["message"]["content"] == COLD
    assert not served.events("engine_failed")


@pytest.mark.parametrize("stream", [False, True])
def test_the_engine_stops_soon_after_its_client_left(tiny: Path, monkeypatch: pytest.MonkeyPatch, stream: bool) -> None:
    slow(monkeypatch, 0.5)
    with serving({"tiny": tiny / "onnx"}) as served:
        body = {"model": "tiny", "prompt": "Once", "max_tokens": 900, "stream": stream}
        with served.client() as client:
            if stream:
                with client.stream("POST", "/v1/completions", json=body) as response:
                    assert next(response.iter_lines()).startswith("data: ")
            else:
                with pytest.raises(httpx.ReadTimeout):
                    client.post("/v1/completions", json=body, timeout=0.5)
        assert served.server.service.scheduler.running
        served.wait(lambda: not served.server.service.scheduler.running, 20)  # the whole answer takes 46 seconds
        monkeypatch.undo()
        assert served.ask().json()["choices"][0]["message"]["content"] == COLD


def test_many_clients_at_once_get_their_own_answers_and_beyond_the_queue_only_429(tiny: Path) -> None:
    questions = {"hot": COLD, "tall": "", "fast": ""}
    with serving({"tiny": tiny / "onnx"}, queue_limit=12, requests_per_minute=0) as served:

        def ask(word: str) -> httpx.Response:
            messages = [{"role": "user", "content": f"What is the opposite of {word}?"}]
            return served.ask(messages=messages, stream=True, max_tokens=20)

        for word in questions:
            questions[word] = text_of(ask(word))
        assert questions["hot"] == COLD
        with ThreadPoolExecutor(40) as pool:
            words = list(questions) * 40
            found = list(pool.map(ask, words))
    assert {each.status_code for each in found} <= {200, 429}
    for word, each in zip(words, found, strict=True):
        if each.status_code == 200:
            assert text_of(each) == questions[word]
            assert each.text.endswith("data: [DONE]\n\n")
        else:
            assert int(each.headers["retry-after"]) >= 1
    assert sum(each.status_code == 200 for each in found) >= 12


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("runs", [0, 4])
def test_an_engine_that_fails_is_opened_again(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, runs: int, form: str
) -> None:
    left = [runs]
    evaluate = Lane.evaluate

    def failing(self: Any, tokens: Any) -> Any:
        left[0] -= 1
        if left[0] == -1:
            raise RuntimeError("/a/path of the engine")
        return evaluate(self, tokens)

    monkeypatch.setattr(Lane, "evaluate", failing)
    with serving({"tiny": tiny / form}) as served:
        broken = served.ask(stream=True)
        if runs:
            last = json.loads(broken.text.strip().splitlines()[-1].removeprefix("data: "))
            assert (broken.status_code, last["error"]["code"]) == (200, "engine")
            assert "[DONE]" not in broken.text
        else:
            assert broken.status_code == 503
        assert "path" not in broken.text
        assert served.ask().json()["choices"][0]["message"]["content"] == COLD
        assert len(served.events("loaded")) == 2


@pytest.mark.parametrize("form", FORMS)
def test_an_engine_that_is_stuck(tiny: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    comes_back, stuck = threading.Event(), threading.Event()
    evaluate = Lane.evaluate

    def hanging(self: Any, tokens: Any) -> Any:
        if stuck.is_set():
            comes_back.wait(20)
        return evaluate(self, tokens)

    monkeypatch.setattr(Lane, "evaluate", hanging)
    with serving({"tiny": tiny / form}, stuck_s=0.5) as served, ThreadPoolExecutor(6) as pool:
        assert served.ask().status_code == 200
        stuck.set()
        lost = [each.result() for each in [pool.submit(served.ask) for _ in range(6)]]
        assert {(each.status_code, each.json()["error"]["code"]) for each in lost} == {(503, "stuck")}
        refused = served.ask()
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "stuck")
        health = served.get("/health")
        assert (health.status_code, health.json()["status"]) == (503, "unhealthy")
        stuck.clear()
        comes_back.set()
        served.wait(lambda: not served.server.service.scheduler.running)
        assert served.ask().json()["choices"][0]["message"]["content"] == COLD
        assert served.get("/health").status_code == 200
        assert served.events("stuck")


@pytest.mark.parametrize("form", FORMS)
def test_a_disk_that_is_full_while_prefixes_are_saved(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    long = [{"role": "user", "content": "What is the opposite of hot? " * 12}]
    with serving({"tiny": tiny / form}, prefix_dir=tmp_path / "states") as served:
        right = served.ask(messages=long, max_tokens=20).json()["choices"][0]["message"]["content"]
        with monkeypatch.context() as patch:
            patch.setattr(prefix_files.os, "fsync", full)
            served.server.service.shelf.drop("tiny")
        assert not [each for each in (tmp_path / "states").rglob("*") if each.is_file()]
        assert served.events("prefix")
        assert str(tmp_path) not in json.dumps(served.lines)
        again = served.ask(messages=long, max_tokens=20).json()
        assert again["choices"][0]["message"]["content"] == right
        assert served.ask().json()["choices"][0]["message"]["content"] == COLD
    assert [each for each in (tmp_path / "states").rglob("*") if each.is_file()], "there is room again"


@pytest.mark.parametrize("form", FORMS)
def test_a_disk_without_room_for_a_prefix(tiny: Path, tmp_path: Path, form: str) -> None:
    with small_disk(tmp_path / "disk") as disk:
        filler = disk / "filler"
        with suppress(OSError), filler.open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass
        with serving({"tiny": tiny / form}, prefix_dir=disk) as served:
            assert served.ask().status_code == 200
            served.server.service.shelf.drop("tiny")  # which saves what it holds
            assert [each for each in disk.rglob("*") if each.is_file()] == [filler]
            assert served.events("prefix")
            assert served.ask().json()["choices"][0]["message"]["content"] == COLD


@pytest.mark.parametrize("form", FORMS)
def test_an_artifact_that_is_deleted(tiny: Path, tmp_path: Path, form: str) -> None:
    place = tmp_path / "here"
    shutil.copytree(tiny / form, place)
    with serving({"tiny": place}) as served:
        assert served.ask().status_code == 200
        shutil.rmtree(place)
        assert served.ask().json()["choices"][0]["message"]["content"] == COLD
        served.server.service.shelf.drop("tiny")
        gone = served.ask()
        assert gone.status_code == 503
        assert str(tmp_path) not in gone.text
        assert served.get("/health").json()["status"] == "degraded"
        shutil.copytree(tiny / form, place)
        assert served.ask().json()["choices"][0]["message"]["content"] == COLD
        assert str(tmp_path) not in json.dumps(served.lines)


def test_a_request_that_takes_too_long(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow(monkeypatch, 0.1)
    with serving({"tiny": tiny / "onnx"}, timeout_s=0.6) as served:
        late = served.ask(max_tokens=500, temperature=2, seed=1)
        assert (late.status_code, late.json()["error"]["code"]) == (503, "timeout")


def test_a_form_that_needs_a_missing_package_is_refused_and_the_model_stays(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with serving({"tiny": tiny / "onnx"}) as served:
        refused = served.ask(response_format={"type": "json_object"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "unsupported")
        assert "edgeship-runtime[structured]" in refused.text
        assert served.ask().status_code == 200
        assert len(served.events("loaded")) == 1


def test_a_body_that_never_comes_whole(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "_BODY_S", 0.2)
    with serving({"tiny": tiny / "onnx"}) as served:
        with socket.create_connection(("127.0.0.1", int(served.url.rpartition(":")[2])), timeout=5) as connection:
            connection.sendall(b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{")
            assert connection.recv(100).startswith(b"HTTP/1.1 408")
        assert served.ask().status_code == 200


def started(tiny: Path, *options: str) -> tuple[subprocess.Popen[bytes], str]:
    process = command_line.start("serve", f"tiny={tiny}", "--port", "0", "--threads", "1", *options)
    assert process.stderr is not None
    url = process.stderr.readline().decode().strip().rpartition(" ")[2]
    end = time.monotonic() + 120
    while True:
        try:
            assert httpx.get(f"{url}/health").status_code == 200
            return process, url
        except httpx.TransportError:
            assert time.monotonic() < end
            time.sleep(0.05)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_told_to_end_under_load_it_ends_streams_cleanly(tiny: Path, sent: signal.Signals, form: str) -> None:
    process, url = started(tiny / form, "--grace", "1")
    found: list[httpx.Response | Exception] = []

    def ask() -> None:
        body = {"model": "tiny", "prompt": "Once", "max_tokens": 1000, "ignore_eos": True, "stream": True}
        while not found or isinstance(found[-1], httpx.Response):
            try:
                found.append(httpx.post(f"{url}/v1/completions", json=body, timeout=120))
            except httpx.TransportError as error:
                found.append(error)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    end = time.monotonic() + 120
    while len(found) < 3:
        assert time.monotonic() < end
        time.sleep(0.01)
    process.send_signal(sent)
    _, errors = process.communicate(timeout=60)
    for thread in threads:
        thread.join(60)
    assert process.returncode == 0, errors.decode()
    assert b"Traceback" not in errors
    lasts = []
    for each in found:
        if not isinstance(each, httpx.Response):
            assert "complete message body" not in str(each), "a stream was cut off"
        elif each.status_code == 200:
            lasts.append(each.text.strip().splitlines()[-1])
            assert lasts[-1] == "data: [DONE]" or "error" in json.loads(lasts[-1].removeprefix("data: "))
        else:
            assert each.status_code == 503
    assert len(lasts) >= 3
    assert json.loads(errors.splitlines()[-1])["event"] == "ended"


def test_what_the_command_refuses(tiny: Path, tmp_path: Path) -> None:
    def refused(*arguments: str) -> str:
        process = command_line.start("serve", *arguments)
        _, errors = process.communicate(timeout=60)
        assert process.returncode in (2, 8, 9)
        return errors.decode()

    assert "no API key" in refused(str(tiny), "--host", "0.0.0.0")
    assert "no artifact to serve" in refused()
    assert "no such directory" in refused(str(tmp_path / "nothing"))
    assert "--queue-limit: expected at least 1" in refused(str(tiny), "--queue-limit", "0")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "cannot listen" in refused(str(tiny), "--port", str(taken.getsockname()[1]))


def test_the_address_and_keys_as_json(tiny: Path, tmp_path: Path) -> None:
    made = command_line.start("serve", "--new-key", "ann", "--api-key-file", str(tmp_path / "keys"), "--json")
    key = json.loads(made.communicate(timeout=60)[0])
    assert key == {"name": "ann", "key": key["key"]}
    process, url = started(tiny, "--json")
    process.terminate()
    out, _ = process.communicate(timeout=60)
    assert json.loads(out) == {"artifacts": ["tiny"], "url": url}


def test_a_key_made_by_the_command_opens_the_server(tiny: Path, tmp_path: Path) -> None:
    keys = str(tmp_path / "keys")
    made = command_line.start("serve", "--new-key", "ann", "--api-key-file", keys)
    key = made.communicate(timeout=60)[0].decode().strip()
    process, url = started(tiny, "--api-key-file", keys)
    try:
        assert httpx.get(f"{url}/v1/models").status_code == 401
        assert httpx.get(f"{url}/v1/models", headers={"Authorization": f"Bearer {key}"}).status_code == 200
    finally:
        process.terminate()
        process.communicate(timeout=60)
