"""Conversations in turn and over a restart of the server: what was evaluated once is not evaluated again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgeship_runtime import cli
from edgeship_runtime.errors import UsageError
from edgeship_runtime.prefix import shipped_path
from edgeship_runtime.server.settings import Settings, check
from served import Served, serving
from toy_gguf import FORMS

STORIES = [
    " ".join(f"The {thing} number {i} is {colour}." for i in range(30))
    for thing, colour in (("cat", "red"), ("dog", "blue"))
]


def ask(served: Served, story: str, *more: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The answer to a story and what followed, and its usage."""
    messages = [{"role": "user", "content": story}, *more]
    answer = served.post(
        "/v1/chat/completions", {"model": "tiny", "messages": messages, "temperature": 0, "max_tokens": 8}
    ).json()
    return answer["choices"][0]["message"]["content"], answer["usage"]


@pytest.mark.parametrize("form", FORMS)
def test_conversations_in_turn_and_after_a_restart(tiny: Path, form: str, tmp_path: Path) -> None:
    said: list[str] = []
    with serving({"tiny": tiny / form}, prefix_dir=tmp_path) as served:
        for story in STORIES:
            text, usage = ask(served, story)
            assert usage["prompt_tokens_details"]["cached_tokens"] < 32
            said.append(text)
        for story, text in zip(STORIES, said, strict=True):
            again, usage = ask(
                served, story, {"role": "assistant", "content": text}, {"role": "user", "content": "Hm?"}
            )
            assert usage["prompt_tokens_details"]["cached_tokens"] > usage["prompt_tokens"] - 60
    assert list(tmp_path.rglob("*.prefix"))
    with serving({"tiny": tiny / form}, prefix_dir=tmp_path) as served:
        for story, text in zip(STORIES, said, strict=True):
            again, usage = ask(served, story)
            assert usage["prompt_tokens_details"]["cached_tokens"] == usage["prompt_tokens"] - 1
            assert again == text
        assert served.events("prefix") == []


@pytest.mark.parametrize("form", FORMS)
def test_a_prefix_beside_the_artifact_serves_every_conversation(tiny: Path, form: str) -> None:
    opening = {"role": "system", "content": STORIES[0]}
    shipped = shipped_path(tiny / form)
    assert cli.main(["prefix", str(tiny / form), "--system", STORIES[0]]) == 0
    try:
        with serving({"tiny": tiny / form}) as served:
            for question in ("Hi", "Who are you?", "What is the opposite of hot?"):
                found = served.ask(messages=[opening, {"role": "user", "content": question}], max_tokens=4).json()
                assert found["usage"]["prompt_tokens_details"]["cached_tokens"] > 200
    finally:
        shipped.unlink()


def test_damaged_files_cost_time_and_nothing_else(tiny: Path, tmp_path: Path) -> None:
    with serving({"tiny": tiny / "onnx"}, prefix_dir=tmp_path) as served:
        text, _ = ask(served, STORIES[0])
    for path in tmp_path.rglob("*.prefix"):
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    with serving({"tiny": tiny / "onnx"}, prefix_dir=tmp_path) as served:
        again, usage = ask(served, STORIES[0])
        assert (again, usage["prompt_tokens_details"]["cached_tokens"]) == (text, 0)
        (line,) = served.events("prefix")
        assert "not a whole prefix file" in line["problem"]
        assert str(tmp_path) not in line["problem"]


def test_a_directory_that_cannot_be_is_logged_and_requests_are_answered(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with serving({"tiny": tiny / "onnx"}, prefix_dir=tmp_path / "file") as served:
        assert ask(served, STORIES[0])[0]
        assert "cannot be kept there" in served.events("prefix")[0]["problem"]


@pytest.mark.parametrize("name", ["prefix_memory_mb", "prefix_disk_mb"])
def test_limits_below_nothing(name: str) -> None:
    with pytest.raises(UsageError, match=name.replace("_", "-")):
        check(Settings(artifacts={}, **{name: -1.0}))  # type: ignore[arg-type]
