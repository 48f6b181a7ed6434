"""Thought and answer told apart, wherever the text is cut."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeship_runtime.talk.thinking import State, ThoughtParser, state_of_prompt, switch_in


def split(text: str, state: State = "start", cuts: list[int] | None = None) -> tuple[str, str]:
    parser = ThoughtParser(state)
    places = [0, *sorted(cuts or []), len(text)]
    found = [parser.push(text[a:b]) for a, b in pairwise(places)]
    found.append(parser.flush())
    return "".join(thought for thought, _ in found), "".join(answer for _, answer in found)


CASES: list[tuple[str, State, str, str]] = [
    ("Hello", "start", "", "Hello"),
    ("<think>\nHm.\n</think>\n\nHello", "start", "Hm.", "Hello"),
    ("\n <think>Hm.</think>Hello", "start", "Hm.", "Hello"),
    ("<think>\n\n</think>\n\nHello", "start", "", "Hello"),
    ("<think>\na\n\nb\n</think>\n\nHello\n", "start", "a\n\nb", "Hello\n"),
    ("<think>endless", "start", "endless", ""),
    ("<think>endless\n</thi", "start", "endless\n</thi", ""),
    ("<thinking> is a tag", "start", "", "<thinking> is a tag"),
    ("<thin", "start", "", "<thin"),
    ("  ", "start", "", "  "),
    ("Write <think>x</think>.", "start", "", "Write <think>x</think>."),
    ("Hm.\n</think>\n\nHello", "thinking", "Hm.", "Hello"),
    ("<think>x</think>", "text", "", "<think>x</think>"),
    ("<think>a</think>b</think><think>", "start", "a", "b</think><think>"),
    ("", "start", "", ""),
]


@pytest.mark.parametrize(("text", "state", "thought", "answer"), CASES)
def test_whole_and_letter_by_letter(text: str, state: State, thought: str, answer: str) -> None:
    assert split(text, state) == (thought, answer)
    assert split(text, state, list(range(1, len(text)))) == (thought, answer)


PIECES = st.lists(st.sampled_from(["<think>", "</think>", "\n", " ", "<", "th", "ink>", "</", "a", "🙂"]), max_size=12)


@given(PIECES, st.sampled_from(["start", "thinking", "text"]), st.data())
def test_the_cuts_change_nothing(pieces: list[str], state: State, data: st.DataObject) -> None:
    text = "".join(pieces)
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=6))
    assert split(text, state, cuts) == split(text, state)


def test_a_thought_streams_before_it_ends() -> None:
    parser = ThoughtParser()
    assert parser.push("<think>\nOne") == ("One", "")
    assert parser.push(" two.\n") == (" two.", "")
    assert parser.push("</th") == ("", "")
    assert parser.push("ree") == ("\n</three", "")


@pytest.mark.parametrize(
    ("prompt", "state"),
    [
        ("<|im_start|>assistant\n", "start"),
        ("<|im_start|>assistant\n<think>\n", "thinking"),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", "text"),
        ("a <think> b", "start"),
    ],
)
def test_where_an_answer_begins(prompt: str, state: str) -> None:
    assert state_of_prompt(prompt) == state


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([("user", "Hello")], None),
        ([("user", "Hello /no_think")], False),
        ([("user", "/think Hello")], True),
        ([("user", "/no_think or /think")], True),
        ([("system", "/no_think"), ("user", "Hello")], False),
        ([("user", "/no_think"), ("assistant", "/think"), ("user", "Hello")], False),
        ([("user", "/no_think"), ("user", "/think")], True),
        ([("user", "see path/think and /thinking")], None),
    ],
)
def test_the_last_switch_decides(messages: list[tuple[str, str]], expected: bool | None) -> None:
    told: list[dict[str, Any]] = [{"role": role, "content": content} for role, content in messages]
    assert switch_in(told) is expected
