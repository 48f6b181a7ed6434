"""The web page: its headers, and what a person does with it, in Chromium at a desktop's and a phone's width."""

from __future__ import annotations

import json
import re
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from chromium import WIDTHS, answered
from edgeship_runtime import load
from edgeship_runtime.model import Model
from served import Served, serving
from toy_artifact import write_toy

ROOT = Path(__file__).parents[3]


class Slow:
    """An engine that says letters, and takes its time over each once `seconds` says so."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self.seconds = 0.0
        self.evaluations = 0

    def evaluate(self, tokens: Sequence[int]) -> Any:
        time.sleep(self.seconds)
        self.evaluations += 1
        logits = np.zeros_like(self._engine.evaluate(tokens))
        logits[32 + self._engine.length % 26] = 99  # A to Z in the order of byte-level vocabularies
        return logits

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)


def speaking(engines: list[Slow]) -> Callable[[Path], Model]:
    """Opens models whose engines say letters; the list gets each engine."""

    def open_model(path: Path) -> Model:
        model = load(path, threads=1, context=96)
        engines.append(Slow(model.engine))
        model.engine = engines[-1]
        return model

    return open_model


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy(tmp_path_factory.mktemp("page") / "toy" / "onnx").directory


@pytest.fixture(scope="module")
def engines() -> list[Slow]:
    """Those of the server, once it has loaded its model."""
    return []


@pytest.fixture(scope="module")
def served(artifact: Path, engines: list[Slow]) -> Iterator[Served]:
    with serving({"toy": artifact}, open_model=speaking(engines)) as found:
        yield found


@pytest.fixture(autouse=True)
def _at_once_again(engines: list[Slow]) -> Iterator[None]:
    yield
    for engine in engines:
        engine.seconds = 0.0


def settings(page: Any) -> None:
    """Show the settings, which a desktop's width shows from the start."""
    if page.locator("#controls").is_hidden():
        page.click("#tune")


def chat(page: Any, text: str, tokens: int = 8) -> None:
    page.evaluate("n => document.getElementById('max_tokens').value = n", tokens)
    page.fill("#prompt", text)
    page.click("#send")


def script(page: Any, *turns: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Answer the page's next requests with these deltas, a turn each; returns the requests as they come."""
    asked: list[dict[str, Any]] = []

    def fulfil(route: Any) -> None:
        asked.append(route.request.post_data_json)
        chunks: list[Any] = [{"choices": [{"delta": delta}]} for delta in turns[len(asked) - 1]]
        chunks.append({"choices": [{"delta": {}, "finish_reason": "stop"}]})
        lines = [json.dumps(chunk) for chunk in chunks] + ["[DONE]"]
        body = "".join(f"data: {line}\n\n" for line in lines)
        route.fulfill(status=200, content_type="text/event-stream", body=body)

    page.route("**/v1/chat/completions", fulfil)
    return asked


class TestFiles:
    def test_headers(self, served: Served) -> None:
        for path in ("/", "/page/style.css", "/page/app.js"):
            response = httpx.get(served.url + path)
            assert response.status_code == 200
            policy = response.headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            assert "*" not in policy
            assert response.headers["x-frame-options"] == "DENY"
            assert response.headers["x-content-type-options"] == "nosniff"

    @pytest.mark.parametrize("path", ["/page/", "/page/page.py", "/page/..%2fpage.py", "/page/index.html"])
    def test_nothing_else_is_served(self, served: Served, path: str) -> None:
        response = httpx.get(served.url + path)
        assert response.status_code == 404
        assert "import" not in response.text

    @pytest.mark.parametrize("size", WIDTHS.values(), ids=WIDTHS)
    def test_the_readme_shows_it(self, size: tuple[int, int]) -> None:
        name = f".github/images/page-{size[0]}.png"
        assert f'src="{name}"' in (ROOT / "README.md").read_text(encoding="utf-8")
        raw = (ROOT / name).read_bytes()
        assert struct.unpack(">II", raw[16:24]) == size
        assert len(raw) < 100_000

    def test_no_outside_resource_and_no_html_from_text(self) -> None:
        folder = resources.files("edgeship_runtime.server") / "page_files"
        for file in folder.iterdir():
            text = file.read_text(encoding="utf-8")
            assert not re.findall(r"https?:|//[a-z]+\.|@import|url\(", text), file.name
            assert not re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text), file.name
            assert len(text.splitlines()) < 400


class TestChat:
    def test_an_answer_streams_in(self, page: Any, engines: list[Slow]) -> None:
        chat(page, "Hi", 1)
        answered(page)
        page.click("#fresh")
        engines[0].seconds = 0.1
        chat(page, "Hello", 12)
        seen, speeds = set(), set()
        while page.locator("#stop").is_visible():
            seen.add(page.locator("article.assistant .text").last.text_content())
            speeds.add(page.text_content("#figures").partition(" ")[0])
        assert len(seen) > 3, "it came in parts"
        assert "about" in speeds
        answered(page)
        assert re.search(r"[\d.]+ tokens/s · first token after \d+ ms", page.text_content("#figures"))
        page.locator("#figures", has_text="MB memory").wait_for()

    def test_stop_stops_the_engine(self, page: Any, engines: list[Slow]) -> None:
        chat(page, "Hi", 1)
        answered(page)
        page.click("#fresh")
        engine = engines[0]
        engine.seconds = 0.1
        chat(page, "Go on", 60)
        page.locator("article.assistant .text", has_text=re.compile("[A-Z]")).wait_for()
        page.click("#stop")
        page.wait_for_selector("text=Stopped.")
        time.sleep(0.4)
        there = engine.evaluations
        time.sleep(0.4)
        assert engine.evaluations == there
        engine.seconds = 0
        page.click("#fresh")
        chat(page, "Again", 3)
        assert answered(page)

    def test_a_reload_keeps_the_chat(self, page: Any) -> None:
        chat(page, "Remember me")
        said = answered(page)
        page.reload()
        assert page.locator("article.user .text").text_content() == "Remember me"
        assert page.locator("article.assistant .text").text_content() == said
        assert page.input_value("#max_tokens") == "8"
        page.click("#fresh")
        page.reload()
        assert page.locator("article").count() == 0

    def test_nothing_is_wider_than_the_screen(self, page: Any) -> None:
        script(page, [{"content": "long" * 300 + "\n" + "x " * 300}])
        settings(page)
        chat(page, "w" * 500)
        answered(page)
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        assert page.evaluate("document.getElementById('log').scrollWidth <= window.innerWidth")
        box = page.locator("#send").bounding_box()
        assert box["x"] + box["width"] <= page.viewport_size["width"]
        assert box["y"] + box["height"] <= page.viewport_size["height"]

    def test_settings_are_sent(self, page: Any) -> None:
        asked = script(page, [{"content": "yes"}])
        settings(page)
        page.fill("#temperature", "0.5")
        page.fill("#top_p", "0.9")
        page.fill("#seed", "7")
        page.select_option("#thinking", "false")
        page.fill("#system", "Be brief.")
        chat(page, "Hi", 9)
        answered(page)
        (body,) = asked
        sent = {name: body.get(name) for name in ("temperature", "top_p", "top_k", "seed", "max_tokens")}
        assert sent == {"temperature": 0.5, "top_p": 0.9, "top_k": None, "seed": 7, "max_tokens": 9}
        assert body["enable_thinking"] is False
        assert body["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]


class TestParts:
    def test_a_thought_is_folded_and_not_sent_again(self, page: Any) -> None:
        asked = script(
            page,
            [{"reasoning_content": "They "}, {"reasoning_content": "greet."}, {"content": "Hello!"}],
            [{"content": "Well."}],
        )
        chat(page, "Hi")
        assert answered(page) == "Hello!"
        thought = page.locator(".thought .text")
        assert thought.text_content() == "They greet."
        assert not thought.is_visible()
        page.click(".thought summary")
        assert thought.is_visible()
        chat(page, "How are you?")
        answered(page)
        assert asked[1]["messages"][1] == {"role": "assistant", "content": "Hello!"}

    def test_tool_calls_and_their_results(self, page: Any) -> None:
        def part(index: int, **function: str) -> dict[str, Any]:
            return {"index": index, "function": function}

        calls = [
            {"tool_calls": [{**part(i, name=f"look_{i}", arguments=""), "id": f"call-{i}", "type": "function"}]}
            for i in (0, 1)
        ]
        texts = [{"tool_calls": [part(0, arguments='{"a"')]}, {"tool_calls": [part(0, arguments=": 1}")]}]
        asked = script(page, [*calls, *texts], [{"content": "Both seen."}])
        settings(page)
        page.fill("#tools", json.dumps([{"type": "function", "function": {"name": "look_0"}}]))
        chat(page, "Look")
        page.wait_for_selector(".results")
        assert page.locator(".call summary").all_text_contents() == ["Tool call: look_0", "Tool call: look_1"]
        assert page.locator(".call .text").first.text_content() == '{"a": 1}'
        page.locator(".result").nth(0).fill("red")
        page.locator(".result").nth(1).fill("blue")
        page.click(".results")
        page.wait_for_selector("text=Both seen.")
        assert asked[0]["tools"][0]["function"]["name"] == "look_0"
        _, said, *results = asked[1]["messages"]
        assert [call["function"]["arguments"] for call in said["tool_calls"]] == ['{"a": 1}', ""]
        assert results == [
            {"role": "tool", "tool_call_id": "call-0", "content": "red"},
            {"role": "tool", "tool_call_id": "call-1", "content": "blue"},
        ]

    def test_what_the_model_writes_stays_text(self, page: Any) -> None:
        hostile = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"
        script(page, [{"reasoning_content": hostile, "content": hostile}])
        chat(page, hostile)
        assert answered(page) == hostile
        assert page.locator("article img, article script").count() == 0
        assert page.title() == "edgeship"


class TestFailures:
    def test_the_servers_refusal_is_shown(self, page: Any) -> None:
        chat(page, "word " * 400)
        page.wait_for_selector(".error")
        assert "tokens" in page.text_content(".error")
        assert page.locator("#send").is_visible()

    def test_tools_that_are_no_json(self, page: Any) -> None:
        settings(page)
        page.fill("#tools", "[oops")
        chat(page, "Hi")
        page.wait_for_selector(".error")
        assert "JSON" in page.text_content(".error")

    def test_a_stream_cut_short(self, page: Any) -> None:
        line = json.dumps({"choices": [{"delta": {"content": "Half an"}}]})
        page.route(
            "**/v1/chat/completions",
            lambda route: route.fulfill(status=200, content_type="text/event-stream", body=f"data: {line}\n\n"),
        )
        chat(page, "Hi")
        page.wait_for_selector(".error")
        assert answered(page) == "Half an"
        assert "ended before" in page.text_content(".error")

    def test_with_a_key(self, browser: Any, artifact: Path, tmp_path: Path) -> None:
        from edgeship_runtime.server.keys import new_key, read_keys

        key = new_key(tmp_path / "keys", "me")
        with serving({"toy": artifact}, open_model=speaking([]), keys=read_keys(tmp_path / "keys")) as served:
            page = browser.new_page()
            page.goto(served.url)
            page.locator("#figures", has_text="API key").wait_for()
            page.wait_for_selector("#key:focus")
            assert "not reached" not in page.text_content("#figures")
            page.fill("#key", key)
            page.press("#key", "Tab")
            page.wait_for_selector("#model option", state="attached")
            chat(page, "Hi", 3)
            assert answered(page)
            assert key not in page.evaluate("JSON.stringify({...sessionStorage, ...localStorage})")
            page.close()
