"""Conversations over a scripted engine: thought, budget, tools, formats, cancelling; the history a template sees."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema
import pytest

from edgeship_runtime import load
from edgeship_runtime.chat import ChatTemplate
from edgeship_runtime.errors import UsageError
from edgeship_runtime.talk import converse
from edgeship_runtime.talk.events import (
    Done,
    Reasoning,
    Text,
    ToolCallArguments,
    ToolCallFinished,
    ToolCallStarted,
)
from edgeship_runtime.talk.messages import for_template
from edgeship_runtime.talk.thinking import CLOSING
from qwen_files import chat_template
from scripted import ADD, CALL, TEMPLATE, USER, finished, saying, thinking_on, tokenizer, tool

FIND = tool("find", text={"type": "string", "maxLength": 12})
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"sum": {"type": "integer", "maximum": 999, "minimum": 0}, "sure": {"type": "boolean"}},
    "required": ["sum", "sure"],
    "additionalProperties": False,
}
AS_SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}


class TestThinking:
    def test_thought_and_text_stream_apart(self) -> None:
        events = converse(saying("<think>\nOne and two.\n</think>\n\nThree."), USER)
        seen = finished(events)
        assert "".join(each.text for each in seen if isinstance(each, Reasoning)) == "One and two."
        assert "".join(each.text for each in seen if isinstance(each, Text)) == "Three."
        assert len([each for each in seen if isinstance(each, Reasoning)]) > 2, "it comes piece by piece"
        assert isinstance(seen[-1], Done)
        answer = events.answer
        assert (answer.reasoning, answer.text, answer.finish_reason) == ("One and two.", "Three.", "stop")
        thought = tokenizer().encode("<think>\nOne and two.\n</think>")
        assert answer.reasoning_tokens == pytest.approx(len(thought), abs=1)
        assert answer.message() == {"role": "assistant", "content": "Three.", "reasoning_content": "One and two."}

    @pytest.mark.parametrize("budget", [0, 1, 3, 30])
    def test_a_spent_budget_closes_the_thought_and_the_answer_comes(self, budget: int) -> None:
        closing = tokenizer().encode(CLOSING)
        model = thinking_on("<think>\n" + "and so on " * 200, "Three.")
        events = converse(model, USER, thinking_budget=budget, max_tokens=400)
        finished(events)
        assert events.answer.reasoning is not None
        assert events.answer.reasoning.endswith("the thinking directly now.")
        assert events.answer.text == "Three."
        spent = events.answer.reasoning_tokens - len(closing)
        tag = len(tokenizer().encode("<think>"))
        assert budget <= spent <= budget + tag + 2

    def test_a_budget_that_is_not_reached_changes_nothing(self) -> None:
        text = "<think>\nShort.\n</think>\n\nThree."
        assert converse_tokens(saying(text), thinking_budget=100) == converse_tokens(saying(text))

    def test_a_template_that_opens_the_thought(self) -> None:
        template = TEMPLATE.replace("assistant\\n' }}\n{%- if enable", "assistant\\n<think>\\n' }}\n{%- if enable")
        assert template != TEMPLATE
        events = converse(saying("Hm.\n</think>\n\nThree.", template=template), USER)
        finished(events)
        assert (events.answer.reasoning, events.answer.text) == ("Hm.", "Three.")

    @pytest.mark.parametrize(
        ("content", "given", "closed"),
        [
            ("Hello", None, False),
            ("Hello", False, True),
            ("Hello /no_think", None, True),
            ("Hello /no_think", True, False),
            ("/no_think Hello /think", None, False),
        ],
    )
    def test_switches_and_enable_thinking(self, content: str, given: bool | None, closed: bool) -> None:
        model = saying("<think>x</think>y")
        events = converse(model, [{"role": "user", "content": content}], enable_thinking=given)
        finished(events)
        # After an empty thought of the template's, the tag is text.
        assert (events.answer.reasoning, events.answer.text) == ((None, "<think>x</think>y") if closed else ("x", "y"))

    @pytest.mark.parametrize("budget", [-1, True, "5", 1.5])
    def test_a_wrong_budget(self, budget: Any) -> None:
        with pytest.raises(UsageError, match="thinking_budget: expected a whole number"):
            converse(saying("x"), USER, thinking_budget=budget)


def converse_tokens(model: Any, **options: Any) -> tuple[int, ...]:
    events = converse(model, USER, **options)
    finished(events)
    return events.answer.tokens


class TestTools:
    def test_calls_come_as_events_in_order(self) -> None:
        events = converse(saying(f"Let me add.\n{CALL}\n{CALL}"), USER, tools=[ADD])
        seen = [each for each in finished(events) if not isinstance(each, Text)]
        kinds = [ToolCallStarted, ToolCallArguments, ToolCallFinished]
        assert [type(each) for each in seen] == [*kinds, *kinds, Done]
        assert [each.index for each in seen[:-1] if not isinstance(each, Reasoning | Done)] == [0, 0, 0, 1, 1, 1]
        assert events.answer.finish_reason == "tool_calls"
        assert events.answer.text == "Let me add."
        assert [json.loads(call.arguments) for call in events.answer.tool_calls] == [{"a": 1, "b": 2}] * 2

    def test_results_go_back_through_the_template(self) -> None:
        model = saying(CALL)
        events = converse(model, USER, tools=[ADD])
        finished(events)
        call = events.answer.tool_calls[0]
        history = [*USER, events.answer.message(), {"role": "tool", "tool_call_id": call.id, "content": "3"}]
        prompt = model.render(for_template(history), tools=[ADD])
        assert '{"name": "add", "arguments": {"a": 1, "b": 2}}' in prompt
        assert "<|im_start|>tool\n3<|im_end|>" in prompt

    def test_none_offers_no_tools_and_reads_no_calls(self) -> None:
        model = saying(CALL)
        events = converse(model, USER, tools=[ADD], tool_choice="none")
        finished(events)
        assert (events.answer.text, events.answer.tool_calls) == (CALL, ())
        assert model.render(USER, tools=[ADD]).startswith("tools: add")
        held = model.engine.held  # type: ignore[attr-defined]
        assert not tokenizer().decode(held).startswith("tools:")

    @pytest.mark.parametrize("thought", ["", "<think>\nHm.\n</think>\n\n"])
    def test_required_makes_a_model_call_that_would_rather_talk(self, thought: str) -> None:
        events = converse(
            saying(thought + "No thanks."), USER, tools=[ADD], tool_choice="required", enable_thinking=bool(thought)
        )
        finished(events)
        assert events.answer.tool_calls
        for call in events.answer.tool_calls:
            jsonschema.validate(json.loads(call.arguments), ADD["function"]["parameters"])
        assert events.answer.reasoning == ("Hm." if thought else None)
        assert (events.answer.text, events.answer.finish_reason) == ("", "tool_calls")

    def test_a_named_tool_is_the_one_that_is_called_once(self) -> None:
        choice = {"type": "function", "function": {"name": "find"}}
        events = converse(saying(CALL + CALL), USER, tools=[ADD, FIND], tool_choice=choice, enable_thinking=False)
        finished(events)
        assert [call.name for call in events.answer.tool_calls] == ["find"]
        jsonschema.validate(json.loads(events.answer.tool_calls[0].arguments), FIND["function"]["parameters"])

    def test_references_of_a_tools_schema_are_followed(self) -> None:
        place = tool("go", to={"$ref": "#/$defs/place"})
        place["function"]["parameters"]["$defs"] = {"place": {"enum": ["north", "south"]}}
        events = converse(saying("x"), USER, tools=[place], tool_choice="required", enable_thinking=False)
        finished(events)
        assert json.loads(events.answer.tool_calls[0].arguments)["to"] in ("north", "south")

    @pytest.mark.parametrize(
        ("tools", "choice", "reason"),
        [
            (None, "required", "there are no tools"),
            ([ADD], "always", 'no choice "always"'),
            ([ADD], {"type": "function", "function": {"name": "sub"}}, 'names "sub"'),
            ([ADD], {"function": 3}, "no choice"),
            ([ADD], 5, "no choice"),
            ([{"type": "function"}], "auto", r"tools\[0\].function.name"),
            ([{"function": {"name": ""}}], "auto", r"tools\[0\].function.name"),
            ([tool("x", y={"not": {"type": "string"}})], "required", "/arguments/properties/y uses not"),
        ],
    )
    def test_what_cannot_be_is_said_before_the_engine_runs(self, tools: Any, choice: Any, reason: str) -> None:
        model = saying("x")
        with pytest.raises(UsageError, match=reason):
            converse(model, USER, tools=tools, tool_choice=choice)
        assert model.engine.length == 0


class TestFormats:
    @pytest.mark.parametrize("thought", ["", "<think>\nHm.\n</think>\n\n", "<think>\nHm.</think>"])
    def test_json_schema(self, thought: str) -> None:
        events = converse(saying(thought + "{} or 12"), USER, response_format=AS_SCHEMA, enable_thinking=bool(thought))
        finished(events)
        jsonschema.validate(json.loads(events.answer.text), SCHEMA)
        assert events.answer.finish_reason == "stop"
        assert events.answer.reasoning == ("Hm." if thought else None)

    def test_a_model_that_thinks_by_default_thinks_first_and_cannot_end_there(self) -> None:
        events = converse(saying("<think>\nHm.", "</think>\n\n7"), USER, response_format=AS_SCHEMA, thinking_budget=20)
        finished(events)
        assert events.answer.reasoning is not None
        jsonschema.validate(json.loads(events.answer.text), SCHEMA)

    def test_what_fits_is_left_as_the_model_says_it(self) -> None:
        text = '{"sum": 42, "sure": true}'
        events = converse(saying(text + " indeed"), USER, response_format=AS_SCHEMA, enable_thinking=False)
        finished(events)
        assert events.answer.text == text

    def test_json_object(self) -> None:
        model = saying('{"a": [1, {"b": "<think>"}]}')
        events = converse(model, USER, response_format={"type": "json_object"}, enable_thinking=False)
        finished(events)
        assert json.loads(events.answer.text) == {"a": [1, {"b": "<think>"}]}
        assert events.answer.reasoning is None

    @pytest.mark.parametrize("pattern", [r"[0-9]{3}/[a-c]{2}", r"a\/b\\", "one\ntwo", r"(yes|no), 🙂"])
    def test_regex(self, pattern: str) -> None:
        wanted = {"type": "regex", "pattern": pattern}
        events = converse(saying("no, 🙂 way"), USER, response_format=wanted, enable_thinking=False)
        finished(events)
        assert re.fullmatch(pattern, events.answer.text)

    @pytest.mark.parametrize("said", [CALL, '{"sum": 3, "sure": true}'])
    def test_a_format_leaves_the_tools_open(self, said: str) -> None:
        events = converse(saying(said), USER, tools=[ADD], response_format=AS_SCHEMA, enable_thinking=False)
        finished(events)
        assert bool(events.answer.tool_calls) == (said == CALL)
        assert events.answer.text == ("" if said == CALL else said)

    def test_text_is_no_constraint(self) -> None:
        assert converse_tokens(saying("Hi."), response_format={"type": "text"}) == tuple(tokenizer().encode("Hi."))

    @pytest.mark.parametrize(
        ("wanted", "reason"),
        [
            ({"type": "xml"}, 'expected text, json_object, json_schema and regex, found "xml"'),
            ({}, "response_format.type"),
            ("json", "expected an object"),
            ({"type": "json_schema"}, "expected a JSON schema"),
            ({"type": "json_schema", "json_schema": {"schema": {"type": "objct"}}}, "Invalid type: objct"),
            ({"type": "json_schema", "json_schema": {"schema": {"not": {}}}}, "uses not, which is not enforced"),
            ({"type": "json_schema", "json_schema": {"schema": {"const": float("nan")}}}, "not JSON"),
            ({"type": "json_schema", "json_schema": {"schema": {"x": "y" * (1 << 18)}}}, "at most 262144"),
            ({"type": "json_schema", "json_schema": {"schema": {"$ref": "#"}}}, "cannot be kept"),
            ({"type": "json_schema", "json_schema": {"schema": {"$ref": "http://localhost/x"}}}, "is not followed"),
            ({"type": "regex", "pattern": "("}, "invalid regex"),
            ({"type": "regex"}, "expected a regular expression"),
        ],
    )
    def test_a_wrong_format_is_said_before_the_engine_runs(self, wanted: Any, reason: str) -> None:
        model = saying("x")
        with pytest.raises(UsageError, match=reason):
            converse(model, USER, response_format=wanted)
        assert model.engine.length == 0

    def test_an_expression_beyond_llguidances_limits_is_a_usage_error(self) -> None:
        wanted = {"type": "regex", "pattern": "(a{1000}){1000}"}
        with pytest.raises(UsageError, match="cannot be kept to what was asked for: lexer error"):
            finished(converse(saying("a"), USER, response_format=wanted, enable_thinking=False))

    def test_ignore_eos_contradicts_a_form(self) -> None:
        with pytest.raises(UsageError, match="ignore_eos"):
            converse(saying("x"), USER, response_format=AS_SCHEMA, ignore_eos=True)

    def test_both_engines(self, artifact: str) -> None:
        with load(artifact) as model:
            asked = [{"role": "user", "content": "a"}]
            small = {"enum": ["ab", "c", 12]}
            wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": small}}
            events = converse(model, asked, response_format=wanted, temperature=1.0, seed=3, enable_thinking=False)
            finished(events)
            assert json.loads(events.answer.text) in ("ab", "c", 12)


class TestMessages:
    def test_what_openai_sends_is_what_templates_take(self) -> None:
        call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
        told = for_template(
            [
                {"role": "developer", "content": [{"type": "text", "text": "Be"}, {"type": "text", "text": "brief."}]},
                {"role": "assistant", "content": None, "tool_calls": [call]},
            ]
        )
        assert told[0] == {"role": "system", "content": "Be\nbrief."}
        assert told[1]["content"] == ""
        assert told[1]["tool_calls"][0]["function"]["arguments"] == {"a": 1}
        assert call["function"] == {"name": "add", "arguments": '{"a": 1}'}, "what was given is not changed"

    @pytest.mark.parametrize("part", [{"type": "image_url", "image_url": {"url": "x"}}, {"type": "text"}])
    def test_other_parts_are_refused(self, part: dict[str, Any]) -> None:
        with pytest.raises(UsageError, match=r"messages\[0\].content\[0\]: expected text"):
            for_template([{"role": "user", "content": [part]}])

    def test_old_thoughts_are_left_out_as_qwen3s_template_says(self) -> None:
        source = chat_template("Qwen-Qwen3-0.6B")
        chat_template_utils = pytest.importorskip("transformers.utils.chat_template_utils")
        answer = converse(saying("<think>\nold thought\n</think>\n\nFirst."), USER)
        finished(answer)
        call = {"id": "c", "type": "function", "function": {"name": "add", "arguments": '{"a": 1, "b": 2}'}}
        current = {"role": "assistant", "content": None, "reasoning_content": "new thought", "tool_calls": [call]}
        result = {"role": "tool", "tool_call_id": "c", "content": "3"}
        told = for_template([*USER, answer.answer.message(), {"role": "user", "content": "Add."}, current, result])
        ours = ChatTemplate(source).render(told, [ADD])
        assert "old thought" not in ours
        assert "<think>\nnew thought\n</think>" in ours
        theirs, _ = chat_template_utils.render_jinja_template(
            [told], tools=[ADD], chat_template=source, add_generation_prompt=True
        )
        assert ours == theirs[0]
