"""The Chromium that the system has, driven by Playwright; a test that needs it skips where either is absent."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WIDTHS = {"desktop": (1280, 800), "phone": (390, 844)}


@contextmanager
def chromium(*arguments: str) -> Iterator[Any]:
    """A browser without a window."""
    playwright = pytest.importorskip("playwright.sync_api", reason="pages are driven by Playwright")
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    with playwright.sync_playwright() as run:
        found = run.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", *arguments])
        yield found
        found.close()


@contextmanager
def opened(browser: Any, url: str, size: str) -> Iterator[Any]:
    """A page at the width of a desktop or a phone.

    A fault in its script, a resource that its policy refuses, or an address elsewhere fails the test.
    """
    width, height = WIDTHS[size]
    context = browser.new_context(viewport={"width": width, "height": height}, has_touch=size == "phone")
    page = context.new_page()
    page.set_default_timeout(15_000)
    faults: list[str] = []
    asked: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda each: faults.append(each.text) if "Content Security" in each.text else None)
    page.on("request", lambda each: asked.append(each.url))
    page.goto(url)
    page.wait_for_selector("#model option", state="attached")
    yield page
    context.close()
    assert faults == []
    assert [each for each in asked if not each.startswith((url, "data:"))] == []


def answered(page: Any) -> str:
    """The last answer on the page, once it is whole."""
    page.wait_for_selector("#send:visible")
    return str(page.locator("article.assistant .text").last.text_content())
