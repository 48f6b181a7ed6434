"""The page as it is used: on both engines, left and reloaded in the middle, by keyboard, without a network."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chromium import answered, opened
from edgeship_runtime.server import chat as chat_route
from served import COLD, Served, serving
from toy_gguf import needs_llamacpp

STORY = "Tell me a story."


@pytest.fixture
def desktop(browser: Any, tiny: Path) -> Iterator[Any]:
    with serving({"tiny": tiny / "onnx"}) as running, opened(browser, running.url, "desktop") as found:
        yield found


class Slowly:
    """Has every token of a chat take its time, and counts them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
        self.tokens = 0
        turn = chat_route.turn

        def slow(*arguments: Any) -> Iterator[Any]:
            for event in turn(*arguments):
                time.sleep(seconds)
                self.tokens += 1
                yield event

        monkeypatch.setattr(chat_route, "turn", slow)


def ask(page: Any, text: str) -> None:
    page.evaluate("document.getElementById('temperature').value = 0")
    page.fill("#prompt", text)
    page.click("#send")


def started(page: Any) -> None:
    """Wait until something of the answer is there."""
    page.locator("article.assistant:last-child .text", has_text=re.compile(r"\w{3}")).wait_for()


def test_chat_stop_reload(page: Any, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """On each engine and at each width."""
    ask(page, "What is the opposite of hot?")
    assert answered(page) == COLD
    page.locator("#figures", has_text="tokens/s").wait_for()
    page.locator("#figures", has_text="MB memory").wait_for()

    slowly = Slowly(monkeypatch, 0.05)
    ask(page, STORY)
    started(page)
    page.click("#stop")
    page.wait_for_selector("text=Stopped.")
    time.sleep(0.5)
    there = slowly.tokens
    time.sleep(0.3)
    assert slowly.tokens == there, "the engine went on"
    stopped = page.locator("article.assistant .text").last.text_content()
    assert stopped.startswith("Once")

    page.reload()
    assert page.locator("article.user .text").all_text_contents() == ["What is the opposite of hot?", STORY]
    assert page.locator("article.assistant .text").all_text_contents() == [COLD, stopped]
    ask(page, "What sound does a cow make?")
    assert "moo" in answered(page)


def test_reload_in_the_middle_of_an_answer(desktop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    Slowly(monkeypatch, 0.2)
    ask(desktop, STORY)
    started(desktop)
    desktop.reload()
    kept = desktop.locator("article.assistant .text").text_content()
    assert kept.startswith("Once")
    assert len(kept) < 150
    assert desktop.locator("#send").is_visible()
    assert desktop.input_value("#prompt") == ""


def test_a_question_without_an_answer_goes_back_where_it_was_typed(
    desktop: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    Slowly(monkeypatch, 1.0)
    ask(desktop, STORY)
    desktop.reload()
    assert desktop.locator("article").count() == 0
    assert desktop.input_value("#prompt") == STORY


def test_the_server_is_gone(desktop: Any) -> None:
    desktop.context.set_offline(True)
    ask(desktop, "Hello?")
    desktop.wait_for_selector("text=the server is not reached")
    assert desktop.input_value("#prompt") == "Hello?"
    desktop.context.set_offline(False)
    ask(desktop, "What is the opposite of hot?")
    assert answered(desktop) == COLD


@pytest.mark.parametrize("kept", ["{oops", "[", "{}", "null", "7"])
def test_a_session_that_was_tampered_with(desktop: Any, kept: str) -> None:
    names = ("messages", "settings", "prompt")
    desktop.add_init_script("".join(f"sessionStorage.setItem({name!r}, {kept!r});" for name in names))
    desktop.reload()
    ask(desktop, "What is the opposite of hot?")
    assert answered(desktop) == COLD


def test_by_keyboard(desktop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    Slowly(monkeypatch, 0.05)
    desktop.evaluate("document.getElementById('temperature').value = 0")
    assert desktop.evaluate("document.activeElement.id") == "prompt", "one may type at once"
    desktop.keyboard.type("Tell me")
    desktop.keyboard.press("Shift+Enter")
    desktop.keyboard.type("a story.")
    assert desktop.input_value("#prompt") == "Tell me\na story."
    desktop.keyboard.press("Enter")
    started(desktop)
    assert desktop.get_attribute("#log", "aria-busy") == "true"
    desktop.keyboard.press("Escape")
    desktop.wait_for_selector("text=Stopped.")
    assert desktop.get_attribute("#log", "aria-busy") == "false"
    desktop.keyboard.type(STORY)
    desktop.keyboard.press("Tab")
    desktop.keyboard.press("Enter")
    started(desktop)
    assert desktop.evaluate("document.activeElement.id") == "stop", "the focus is not lost with the button"
    desktop.keyboard.press("Enter")
    desktop.wait_for_selector("#send:visible")
    assert desktop.evaluate("document.activeElement.id") == "prompt"


CONTRAST = """() => {
  const light = (color) => {
    const [r, g, b] = color.match(/[\\d.]+/g).slice(0, 3).map((v) => v / 255)
      .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (element) => {
    const color = getComputedStyle(element).backgroundColor;
    return color === "rgba(0, 0, 0, 0)" ? ground(element.parentElement) : color;
  };
  const shown = [...document.querySelectorAll("h1, label, p, button, summary, article .text, input, select")];
  return shown.filter((each) => each.checkVisibility()).map((each) => {
    const [a, b] = [light(getComputedStyle(each).color), light(ground(each))].sort((x, y) => y - x);
    return [each.outerHTML.slice(0, 60), (a + 0.05) / (b + 0.05)];
  });
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_has_a_name_and_can_be_read(desktop: Any, scheme: str) -> None:
    desktop.emulate_media(color_scheme=scheme)
    ask(desktop, "What is the opposite of hot?")
    answered(desktop)
    for role, name in (
        ("heading", "edgeship"),
        ("combobox", "Model"),
        ("button", "New chat"),
        ("button", "Settings"),
        ("region", "Settings"),
        ("spinbutton", "Temperature"),
        ("combobox", "Thinking"),
        ("log", "Conversation"),
        ("textbox", "Message"),
        ("button", "Send"),
    ):
        assert desktop.get_by_role(role, name=name, exact=True).count() == 1, (role, name)
    unnamed = "[...document.querySelectorAll('input, select, textarea')].filter(e => !e.labels.length).map(e => e.id)"
    assert desktop.evaluate(unnamed) == []
    found = desktop.evaluate(CONTRAST)
    assert len(found) > 12
    # WCAG 2.2, 1.4.3: 4.5 to 1 for text of this size.
    assert [each for each in found if each[1] < 4.5] == []


def test_the_settings_open_and_close(browser: Any, tiny: Path) -> None:
    with serving({"tiny": tiny / "onnx"}) as running:
        for size, first in (("desktop", "true"), ("phone", "false")):
            with opened(browser, running.url, size) as page:
                assert page.get_attribute("#tune", "aria-expanded") == first
                page.click("#tune")
                assert page.locator("#controls").is_visible() == (first == "false")
                assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
                head = page.locator("header button").last.bounding_box()
                assert head["y"] < 40, "the head is one line of buttons"


@needs_llamacpp
def test_two_artifacts_are_chosen_between(browser: Any, tiny: Path) -> None:
    with (
        serving({"one": tiny / "onnx", "other": tiny / "gguf"}) as running,
        opened(browser, running.url, "phone") as page,
    ):
        page.select_option("#model", "other")
        ask(page, "What is the opposite of hot?")
        assert answered(page) == COLD
        assert [line["model"] for line in running.events("loaded")] == ["other"]
        page.reload()
        page.wait_for_selector("#model option", state="attached")
        assert page.input_value("#model") == "other"
