"""Tool calls read out of a stream, wherever it is cut; what is no call stays text."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import json_values
from edgeship_runtime.talk.events import Text, ToolCall
from edgeship_runtime.talk.tool_calls import CallParser

Seen = tuple[str, list[tuple[str, Any]], list[str]]


def read(text: str, cuts: list[int] | None = None, names: tuple[str, ...] = ("add", "find")) -> Seen:
    """Text, calls and problems."""
    parser = CallParser(names)
    found: list[Text | ToolCall] = []
    for a, b in pairwise([0, *sorted(cuts or []), len(text)]):
        found += parser.push(text[a:b])
    found += parser.flush()
    texts = [part for part in found if isinstance(part, Text)]
    calls = [(part.name, json.loads(part.arguments)) for part in found if isinstance(part, ToolCall)]
    return "".join(part.text for part in texts), calls, [part.problem for part in texts if part.problem]


def call(name: str, arguments: Any) -> str:
    return f'<tool_call>\n{{"name": {json.dumps(name)}, "arguments": {json.dumps(arguments)}}}\n</tool_call>'


ADD = call("add", {"a": 1, "b": 2})
TAG = call("find", {"text": 'say "</tool_call>" and <tool_call>'})

CASES: list[tuple[str, str, list[tuple[str, Any]]]] = [
    ("Hello <b>", "Hello <b>", []),
    (ADD, "", [("add", {"a": 1, "b": 2})]),
    (f"Let me add.\n{ADD}\n", "Let me add.", [("add", {"a": 1, "b": 2})]),
    (f"{ADD}\n{TAG}\n", "", [("add", {"a": 1, "b": 2}), ("find", {"text": 'say "</tool_call>" and <tool_call>'})]),
    (ADD + ADD, "", [("add", {"a": 1, "b": 2})] * 2),
    (ADD.removesuffix("\n</tool_call>"), "", [("add", {"a": 1, "b": 2})]),
    ('<tool_call>{"name": "add"}</tool_call>', "", [("add", {})]),
    ('<tool_call>{"arguments": "{\\"a\\": 1}", "name": "add"}</tool_call>', "", [("add", {"a": 1})]),
    ('<tool_call>{"name": "find", "arguments": {"t": "\\ud800"}}</tool_call>', "", [("find", {"t": "\ud800"})]),
    (f"{ADD}\nDone.", "\nDone.", [("add", {"a": 1, "b": 2})]),
    ("1 <tool_cal", "1 <tool_cal", []),
    ("ends in space \n", "ends in space \n", []),
]


@pytest.mark.parametrize(("text", "shown", "calls"), CASES)
def test_calls_and_text(text: str, shown: str, calls: list[tuple[str, Any]]) -> None:
    assert read(text) == (shown, calls, [])
    assert read(text, list(range(1, len(text)))) == (shown, calls, [])


MALFORMED = [
    ("<tool_call>\nadd(1, 2)\n</tool_call>", "not JSON"),
    ('<tool_call>{"name": "add", "arguments": [1]}</tool_call>', "no object"),
    ('<tool_call>{"name": "add", "arguments": "1, 2"}</tool_call>', "not JSON"),
    ('<tool_call>{"name": 3}</tool_call>', 'an object with "name"'),
    ('<tool_call>{"name": "sub", "arguments": {}}</tool_call>', "no tool 'sub'"),
    ('<tool_call>{"name": "add", "arguments": {"a": NaN}}</tool_call>', "no number"),
    ('<tool_call>{"name": "add", "arguments": {"a": ' + "9" * 5000 + "}}</tool_call>", "not JSON"),
    ("<tool_call>" + "[" * 100_000 + "</tool_call>", "nested too deep"),
    ('<tool_call>{"name": "add", "argu', "ended before </tool_call>"),
    ('<tool_call>{"name": "add}</tool_call>', "ended before </tool_call>"),
    ("<tool_call></tool_call>", "not JSON"),
    ("<tool_call>", "ended before"),
]


@pytest.mark.parametrize(("text", "reason"), MALFORMED)
def test_a_malformed_call_stays_text_with_a_reason(text: str, reason: str) -> None:
    shown, calls, problems = read(text)
    assert (shown, calls) == (text, [])
    assert len(problems) == 1
    assert reason in problems[0]


def test_a_malformed_call_does_not_take_its_neighbours_with_it() -> None:
    open_string = '<tool_call>{"name": "add}</tool_call>'
    shown, calls, problems = read(f"{ADD}\n{open_string}\n{ADD}")
    assert shown == open_string
    assert [name for name, _ in calls] == ["add", "add"]
    assert len(problems) == 1


PIECES = st.sampled_from([ADD, TAG, *(text for text, _ in MALFORMED if len(text) < 200), "<tool_call>", "</tool_call>"])
LETTERS = st.sampled_from(["\n", " ", "a", '"', "\\", "{", "}", "<", "tool_call>"])


@given(st.lists(PIECES | LETTERS, max_size=8), st.data())
def test_the_cuts_change_nothing(pieces: list[str], data: st.DataObject) -> None:
    text = "".join(pieces)
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=8))
    assert read(text, cuts) == read(text)


VALUES = json_values.values(finite=True, letters=20)


@given(st.lists(st.dictionaries(st.text(max_size=8), VALUES, max_size=4), min_size=1, max_size=4), st.data())
def test_what_is_written_is_read_back(arguments: list[dict[str, Any]], data: st.DataObject) -> None:
    text = "\n".join(call("find", each) for each in arguments)
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=8))
    assert read(text, cuts) == ("", [("find", each) for each in arguments], [])


def test_every_call_has_an_id_of_its_own() -> None:
    parser = CallParser(("add",))
    ids = {part.id for part in parser.push(ADD * 20) if isinstance(part, ToolCall)}
    assert len(ids) == 20
