"""A scripted engine that cuts its answer into tokens at every place: events, budget and history stay the same."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest

from edgeship_runtime.chat import ChatTemplate
from edgeship_runtime.talk import converse
from edgeship_runtime.talk.events import (
    Done,
    Event,
    Reasoning,
    Text,
    ToolCallArguments,
    ToolCallFinished,
    ToolCallStarted,
)
from edgeship_runtime.talk.messages import for_template
from qwen_files import chat_template
from scripted import ADD, CALL, USER, saying, saying_tokens, thinking_on, tokenizer, tool
from toy_artifact import VOCAB

FIND = tool("find", text={"type": "string"})
TAG = '<tool_call>\n{"name": "find", "arguments": {"text": "</tool_call> é🙂"}}\n</tool_call>'
ANSWER = f"<think>\nOne é🙂 two.\n</think>\n\nLet me add.\n{CALL}\n{TAG}"

Seen = tuple[str, str, list[tuple[str, Any]], tuple[str, ...], str]


def ask(model: Any, **given: Any) -> tuple[list[Event], Seen]:
    """All events of an answer, and what they amount to."""
    with converse(model, USER, **given) as events:
        seen = list(events)
    answer = events.answer
    calls = [(call.name, json.loads(call.arguments)) for call in answer.tool_calls]
    return seen, (answer.reasoning or "", answer.text, calls, answer.problems, answer.finish_reason)


def cutting(text: str, *places: int) -> Any:
    """A model that says a text in tokens that end at these bytes."""
    raw, ids, last = text.encode(), list[int](), 0
    for place in [*places, len(raw)]:
        ids += spelled(raw[last:place])
        last = place
    return saying_tokens(ids)


def spelled(raw: bytes) -> list[int]:
    """Ids of bytes that may begin and end inside of a character."""
    try:
        return tokenizer().encode(raw.decode())
    except UnicodeDecodeError:
        return [single_bytes()[raw[at : at + 1]] for at in range(len(raw))]


@cache
def single_bytes() -> dict[bytes, int]:
    spellings = {tokenizer().bytes_of(token): token for token in range(VOCAB)}
    return {spelling: token for spelling, token in spellings.items() if len(spelling) == 1}


class TestEveryCut:
    def test_the_same_events_wherever_a_token_ends(self) -> None:
        _, want = ask(saying(ANSWER), tools=[ADD, FIND])
        calls = [("add", {"a": 1, "b": 2}), ("find", {"text": "</tool_call> é🙂"})]
        assert want == ("One é🙂 two.", "Let me add.", calls, (), "tool_calls")
        for place in range(1, len(ANSWER.encode())):
            seen, found = ask(cutting(ANSWER, place), tools=[ADD, FIND])
            assert found == want, f"cut at {place}"
            joined = "".join(each.text for each in seen if isinstance(each, Reasoning | Text))
            assert joined == want[0] + want[1]
            kinds = [type(each) for each in seen if not isinstance(each, Reasoning | Text)]
            assert kinds == [ToolCallStarted, ToolCallArguments, ToolCallFinished] * 2 + [Done]

    def test_byte_by_byte(self) -> None:
        _, want = ask(saying(ANSWER), tools=[ADD, FIND])
        assert ask(cutting(ANSWER, *range(1, len(ANSWER.encode()))), tools=[ADD, FIND])[1] == want

    @pytest.mark.parametrize(
        ("body", "reason"),
        [
            ("add(1, 2)", "not JSON"),
            ('{"name": "sub", "arguments": {}}', "no tool 'sub'"),
            ('{"name": "add", "arguments": [1]}', "no object"),
            ('{"name": "add", "arguments": {"a": 1', "not JSON"),
        ],
    )
    def test_a_malformed_call_is_text_with_a_reason_wherever_it_is_cut(self, body: str, reason: str) -> None:
        said = f"<tool_call>\n{body}\n</tool_call>\n{CALL}"
        for place in range(1, len(said), 3):
            _, (_, text, calls, problems, finish) = ask(cutting(said, place), tools=[ADD], enable_thinking=False)
            assert text == f"<tool_call>\n{body}\n</tool_call>"
            assert (calls, finish) == ([("add", {"a": 1, "b": 2})], "tool_calls")
            assert reason in problems[0]

    def test_a_call_without_its_last_tag_counts(self) -> None:
        said = CALL.removesuffix("\n</tool_call>")
        _, (_, text, calls, problems, finish) = ask(saying(said), tools=[ADD], enable_thinking=False)
        assert (text, calls, problems, finish) == ("", [("add", {"a": 1, "b": 2})], (), "tool_calls")


class TestBudget:
    def test_every_budget_cuts_the_thought_there_and_the_answer_comes(self) -> None:
        words = "<think>\nincomprehensibilities é🙂 and so on, and on, and on"
        whole = words.removeprefix("<think>\n")
        for budget in range(len(tokenizer().encode(words)) - 12):
            _, (reasoning, text, *_) = ask(thinking_on(words, "Done."), thinking_budget=budget, max_tokens=300)
            told, last, end = reasoning.partition("Considering the limited time")
            assert (last, end.endswith("directly now.")) == ("Considering the limited time", True)
            assert whole.startswith(told.rstrip("\n").rstrip("�")), budget
            assert text == "Done."

    def test_a_budget_keeps_the_form_of_what_follows(self) -> None:
        wanted = {"type": "json_schema", "json_schema": {"schema": {"enum": ["yes", "no"]}}}
        endless = "<think>\n" + "and so on " * 50
        _, (reasoning, text, *_) = ask(saying(endless), thinking_budget=7, response_format=wanted, max_tokens=300)
        assert reasoning
        assert json.loads(text) in ("yes", "no")

    def test_a_budget_and_a_call_that_must_come(self) -> None:
        endless = "<think>\n" + "and so on " * 50
        choice = {"type": "function", "function": {"name": "add"}}
        given: dict[str, Any] = {"tools": [ADD, FIND], "tool_choice": choice, "max_tokens": 900}
        _, (reasoning, text, calls, problems, _) = ask(saying(endless), thinking_budget=7, **given)
        assert reasoning
        assert (text, problems, [name for name, _ in calls]) == ("", (), ["add"])


HISTORY: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is 1 + 2? /think"},
    {"role": "assistant", "content": "3.", "reasoning_content": "old thought"},
    {"role": "user", "content": "And 2 + 3, and where is é🙂?"},
    {
        "role": "assistant",
        "content": "Let me see.",
        "reasoning_content": "new thought",
        "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 2, "b": 3}'}},
            {"id": "2", "type": "function", "function": {"name": "find", "arguments": '{"text": "é🙂"}'}},
        ],
    },
    {"role": "tool", "tool_call_id": "1", "content": "5"},
    {"role": "tool", "tool_call_id": "2", "content": [{"type": "text", "text": "here"}]},
]


@pytest.mark.parametrize("name", ["Qwen-Qwen3-0.6B", "Qwen-Qwen2.5-7B-Instruct"])
@pytest.mark.parametrize("turns", [*range(2, len(HISTORY) + 1)])
@pytest.mark.parametrize("thinking", [None, True, False])
def test_history_is_rendered_as_transformers_renders_it(name: str, turns: int, thinking: bool | None) -> None:
    source = chat_template(name)
    utils = pytest.importorskip("transformers.utils.chat_template_utils")
    told = for_template(HISTORY[:turns])
    variables = {} if thinking is None else {"enable_thinking": thinking}
    theirs, _ = utils.render_jinja_template(
        [told], tools=[ADD, FIND], chat_template=source, add_generation_prompt=True, **variables
    )
    ours = ChatTemplate(source).render(told, [ADD, FIND], thinking)
    assert ours == theirs[0]
    assert "old thought" not in ours or turns == 3  # the last answer's own is still there
    if "Qwen3" in name and turns > 4:
        assert "<think>\nnew thought\n</think>" in ours
