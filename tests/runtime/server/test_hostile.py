"""Hostile requests: errors of their own, nothing of the machine or of a prompt in answers and logs, and no way around.

The cases are those of tests/hostile_bodies.py and tests/hostile_http.py; each has a connection of its own.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import logging
import socket
import time
from collections.abc import Generator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeship_runtime.cli import main
from edgeship_runtime.server import connection as connection_module
from edgeship_runtime.server import service
from edgeship_runtime.server.gate import Gate
from edgeship_runtime.server.keys import digest
from edgeship_runtime.server.settings import Settings
from hostile import CHAT, SECRET, USER, Case
from hostile import http as request
from hostile_bodies import ASKING
from hostile_http import SENDING
from scripted import Engine, model_of
from served import COLD, Served, serving
from tolerances import HOSTILE_SECONDS
from toy_artifact import VOCAB

CASES = [*ASKING, *SENDING]


def exchange(served: Served, sent: bytes, seconds: float = 60) -> tuple[int | None, bytes]:
    """Status and body of the answer; no status where the server hung up."""
    host, port = served.url.removeprefix("http://").rsplit(":", 1)
    with socket.create_connection((host.strip("[]"), int(port)), timeout=seconds) as connection:
        with suppress(OSError):  # refused before all of it was sent
            connection.sendall(sent)
        return read(connection, sent.partition(b" ")[0].decode("latin-1"))


def read(connection: socket.socket, method: str = "GET") -> tuple[int | None, bytes]:
    answer = http.client.HTTPResponse(connection, method=method)
    try:
        answer.begin()
        return answer.status, answer.read()
    except (http.client.HTTPException, ConnectionError, TimeoutError):
        return None, b""


def check_text(text: str, served: Served) -> None:
    """Hold a text to what none may tell."""
    for artifact in served.server.settings.artifacts.values():
        assert str(artifact) not in text
        assert str(artifact.resolve()) not in text
    for told in ("Traceback", 'File "', ".py", "site-packages", "/home/", "/root/", "root:x:", "object at 0x"):
        assert told not in text, told


@pytest.fixture
def quiet(caplog: pytest.LogCaptureFixture) -> Generator[None, None, None]:
    """Nothing that the server's libraries log may be an error, which would come with a traceback."""
    with caplog.at_level(logging.INFO):
        yield
    assert [
        record.getMessage() for record in caplog.records if record.exc_info or record.levelno >= logging.ERROR
    ] == []
    assert SECRET not in caplog.text


def test_there_are_cases_enough() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 200


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_hostile_request_is_refused_and_learns_nothing(served: Served, case: Case) -> None:
    before = len(served.lines)
    start = time.monotonic()
    bare = case.name.startswith("HTTP: ")
    status, body = exchange(served, case.sent, 1 if bare else 60)
    assert time.monotonic() - start < HOSTILE_SECONDS
    assert (bare and status is None) or status in case.statuses, body[:300]
    text = body.decode("utf-8")
    if status is not None and status >= 400:
        check_text(text, served)
        assert SECRET not in text
    logged = json.dumps(served.lines[before:])
    assert SECRET not in logged
    check_text(logged, served)
    assert not served.events("engine_failed")


def test_after_all_that_the_answer_is_right(served: Served) -> None:
    assert served.ask().json()["choices"][0]["message"]["content"] == COLD
    assert served.get("/health").json()["status"] != "unhealthy"
    assert SECRET not in json.dumps(served.lines), "in no line, however late it came"


KEY = "es-right"
NO_KEYS: list[dict[str, str]] = [
    {},
    *(
        {"Authorization": value}
        for value in ("", "Bearer", "Bearer ", "Bearer wrong", f"Bearer {KEY}x", f"Bearer {KEY[:-1]}")
    ),
    *(
        {"Authorization": value}
        for value in (KEY, f"Basic {KEY}", f"Token {KEY}", f"Bearer Bearer {KEY}", f"Bearer {digest(KEY)}")
    ),
    *(
        {"Authorization": value}
        for value in (f"Bearer {KEY},{KEY}", f"Bearer\u00e9{KEY}", "Bearer " + "x" * 50_000, f"Bearer {KEY.upper()}")
    ),
    *({name: KEY} for name in ("X_API_Key", "Api_Key", "Proxy_Authorization", "Cookie", "X_Authorization")),
    *(
        {name: "127.0.0.1"}
        for name in ("X_Forwarded_For", "X_Real_IP", "True_Client_IP", "X_Client_IP", "X_Remote_Addr")
    ),
    {"Forwarded": "for=127.0.0.1;host=localhost;proto=http"},
    {"X_Forwarded_Host": "localhost", "X_Forwarded_Proto": "https"},
    {"X_Original_URL": "/health", "X_Rewrite_URL": "/health"},
    {"X_HTTP_Method_Override": "OPTIONS"},
    {"Host": "localhost"},
    {"Host": "127.0.0.1:80"},
    {"Referer": "http://localhost/"},
]


@pytest.fixture(scope="module")
def open_to_all(tiny: Path) -> Generator[Served, None, None]:
    """A server on all addresses of the machine, as it may be with a key alone."""
    with serving({"tiny": tiny / "onnx"}, host="0.0.0.0", keys={digest(KEY): "ann"}, requests_per_minute=0) as running:
        yield running


@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/openapi.json", "/v1/chat/completions"])
@pytest.mark.parametrize("given", NO_KEYS, ids=str)
def test_nothing_takes_the_place_of_a_key(open_to_all: Served, path: str, given: dict[str, str]) -> None:
    line = f"{'POST' if path.endswith('completions') else 'GET'} {path}"
    status, body = exchange(
        open_to_all, request(line, json.dumps({"model": "tiny", "messages": USER}).encode(), **given)
    )
    assert status in (400, 401), body
    check_text(body.decode(), open_to_all)
    assert SECRET not in body.decode()


@pytest.mark.parametrize(
    "path",
    [
        f"/v1/models?api_key={KEY}",
        f"/v1/models?key={KEY}",
        "/page/../v1/models",
        "/page/%2e%2e/v1/models",
        "//v1/models",
    ],
)
def test_no_address_takes_the_place_of_a_key(open_to_all: Served, path: str) -> None:
    status, body = exchange(open_to_all, request(f"GET {path}"))
    assert status in (401, 404)
    assert b"tiny" not in body


def test_the_key_itself_opens_and_a_second_one_does_not_help(open_to_all: Served) -> None:
    right = f"Authorization: Bearer {KEY}"
    for lines, expected in (
        ([right], 200),
        (["Authorization: Bearer wrong", right, "Authorization: Bearer other"], 401),
    ):
        sent = "\r\n".join(["GET /v1/models HTTP/1.1", "Host: localhost", "Connection: close", *lines, "", ""])
        assert exchange(open_to_all, sent.encode())[0] == expected


@pytest.mark.parametrize(
    "host",
    ["0.0.0.0", "::", "0", "", "*", "127.1", "127.0.0.1.example.org", "8.8.8.8", "localhost.example.org", "[::]"],
)
def test_without_a_key_there_is_no_listening_beyond_loopback(
    tiny: Path, host: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", str(tiny / "onnx"), "--host", host, "--port", "0"]) == 2
    told = capsys.readouterr().err
    assert "API key" in told
    assert "Traceback" not in told


def address_of_this_machine() -> str:
    """An address that other machines would reach this one by."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        try:
            asking.connect(("192.0.2.1", 9))  # sends nothing
        except OSError:
            pytest.skip("this machine has no network")
        return str(asking.getsockname()[0])


def test_what_listens_on_loopback_cannot_be_reached_by_another_address(served: Served, open_to_all: Served) -> None:
    here = address_of_this_machine()
    port = int(served.url.rsplit(":", 1)[1])
    with pytest.raises(OSError), socket.create_connection((here, port), timeout=5):  # noqa: PT011
        pass
    other = Served(f"http://{here}:{open_to_all.url.rsplit(':', 1)[1]}", open_to_all.server)
    assert other.get("/v1/models").status_code == 401
    assert other.get("/v1/models", headers={"Authorization": f"Bearer {KEY}"}).status_code == 200


def test_the_sixth_version_of_the_protocol(tiny: Path) -> None:
    try:
        with socket.socket(socket.AF_INET6) as asking:
            asking.bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no IPv6")
    with serving({"tiny": tiny / "onnx"}, host="::1") as running:
        running.url = running.url.replace("127.0.0.1", "[::1]")
        assert running.get("/v1/models").status_code == 200
        assert running.get("/v1/models", headers={"Host": "[2001:db8::1]"}).status_code == 403
        assert running.get("/v1/models", headers={"Origin": "http://[2001:db8::1]"}).status_code == 403


def test_chunks_without_end_are_cut_off(tiny: Path) -> None:
    with serving({"tiny": tiny / "onnx"}, max_body=100_000) as running:
        head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        host, port = running.url.removeprefix("http://").rsplit(":", 1)
        with socket.create_connection((host, int(port)), timeout=20) as connection:
            connection.sendall(head)
            with pytest.raises(ConnectionError):
                connection.sendall((b"1000\r\n" + b"x" * 4096 + b"\r\n") * 10_000)
        running.wait(lambda: bool(running.events("request")))
        assert running.events("request")[-1]["status"] == 413


def test_a_body_that_never_comes_is_not_waited_for(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "_BODY_S", 0.3)
    with serving({"tiny": tiny / "onnx"}) as running:
        host, port = running.url.removeprefix("http://").rsplit(":", 1)
        with socket.create_connection((host, int(port)), timeout=20) as connection:
            connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{")
            status, body = read(connection)
    assert status == 408
    assert b"did not come" in body


def test_headers_that_never_end_are_not_waited_for_and_long_answers_are(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "_HEADERS_S", 0.3)

    def slow(step: int, held: Sequence[int]) -> NDArray[np.float32]:
        time.sleep(0.05 if step else 0)
        return np.eye(1, VOCAB, ord("a"), dtype=np.float32)[0]

    with serving({"tiny": tiny}, open_model=lambda _: model_of(Engine(slow))) as running:
        host, port = running.url.removeprefix("http://").rsplit(":", 1)
        with (
            socket.create_connection((host, int(port)), timeout=20) as silent,
            socket.create_connection((host, int(port)), timeout=20) as slowly,
        ):
            for byte in b"GET /v1/models HTTP/1.1":
                with suppress(OSError):
                    slowly.sendall(bytes([byte]))
                time.sleep(0.05)
            assert [silent.recv(1), slowly.recv(1)] == [b"", b""]
        with running.client() as client:
            found = client.post(CHAT, json={"model": "tiny", "messages": USER, "max_tokens": 30}).json()
            assert found["usage"]["completion_tokens"] == 30
            assert client.get("/v1/models").status_code == 200


@pytest.mark.parametrize("begun", [False, True])
def test_what_nobody_expected_is_a_503_or_the_end_of_the_connection(begun: bool) -> None:
    async def falls(scope: Any, receive: Any, send: Any) -> None:
        if begun:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError(f"{SECRET} at {__file__}")

    sent: list[Any] = []
    noted: list[int] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request", "body": b""}

    gate = Gate(falls, Settings(artifacts={}), lambda scope, status, seconds: noted.append(status))
    scope = {"type": "http", "path": "/v1/models", "headers": [], "client": None, "method": "GET"}
    asyncio.run(gate(scope, receive, send))
    assert noted == [200 if begun else 503]
    assert scope["edgeship.failure"] == "RuntimeError"
    assert SECRET not in str(sent)
