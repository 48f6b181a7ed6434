"""Progress: plain lines where nobody watches, a bar on a terminal, nothing where asked."""

from __future__ import annotations

import io
import time

import pytest

from edgeship import progress
from edgeship.progress import Bar, Lines, Progress, Silent, downloads, progress_for
from terminals import Terminal


class Recorded:
    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []

    def start(self, total_bytes: int, label: str) -> None:
        self.calls.append(("start", total_bytes, label))

    def advance(self, n: int, name: str) -> None:
        self.calls.append(("advance", n, name))

    def note(self, text: str) -> None:
        self.calls.append(("note", text))

    def finish(self) -> None:
        self.calls.append(("finish",))


def work(p: Progress) -> None:
    p.finish()  # harmless before a start
    p.start(4_000_000, "tiny [bold]int4")
    p.advance(1_000_000, "model.embed_tokens.weight")
    p.note("a [red]note")
    p.advance(3_000_000, "model.norm.weight")
    p.finish()
    p.finish()


def test_the_fitting_progress_is_chosen() -> None:
    assert isinstance(progress_for(quiet=True), Silent)
    assert isinstance(progress_for(quiet=False, stream=io.StringIO()), Lines)
    assert isinstance(progress_for(quiet=False, stream=Terminal()), Bar)


def test_lines_tell_rate_and_time_left_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    out = io.StringIO()
    lines = Lines(out)
    lines.start(4_000_000, "tiny")
    lines.advance(500_000, "a")
    now += 5
    lines.advance(500_000, "b")
    now += 1
    lines.advance(3_000_000, "c")
    lines.finish()
    assert out.getvalue().splitlines() == [
        "tiny: 4.00 MB",
        "tiny: 25 % of 4.00 MB, 200 KB/s, 15 s left, b",
        "tiny: done, 4.00 MB in 6.0 s",
    ]


def test_lines_without_a_total(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    out = io.StringIO()
    lines = Lines(out)
    lines.start(0, "reading")
    lines.advance(0, "a")
    lines.advance(2_000, "b")
    lines.finish()
    assert "2.00 KB, " in out.getvalue()
    assert "left" not in out.getvalue()


def test_a_bar_names_the_tensor_and_takes_no_markup() -> None:
    out = Terminal()
    work(Bar(out))
    for said in ("tiny [bold]int4", "a [red]note", "4.0/4.0 MB"):
        assert said in out.getvalue()


def test_silence() -> None:
    work(Silent())
    out = io.StringIO()
    work(Lines(out))
    assert "a [red]note\n" in out.getvalue()


def test_downloads_become_steps() -> None:
    recorded = Recorded()
    tell = downloads(recorded)
    tell("config.json", 700, 700)  # too small to tell
    tell("a.safetensors", 1_000_000, 3_000_000)
    tell("a.safetensors", 3_000_000, 3_000_000)
    tell("b.safetensors", 2_000_000, 4_000_000)
    tell("b.safetensors", 500_000, 4_000_000)  # from the beginning again
    assert recorded.calls == [
        ("finish",),
        ("start", 3_000_000, "download a.safetensors"),
        ("advance", 1_000_000, "a.safetensors"),
        ("advance", 2_000_000, "a.safetensors"),
        ("finish",),
        ("finish",),
        ("start", 4_000_000, "download b.safetensors"),
        ("advance", 2_000_000, "b.safetensors"),
        ("finish",),
        ("start", 4_000_000, "download b.safetensors"),
        ("advance", 500_000, "b.safetensors"),
    ]
