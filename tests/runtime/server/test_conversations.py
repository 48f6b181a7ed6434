"""Tools, thought with a budget and forms of answers by the embedded model: in Python and over HTTP, on both engines."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Generator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from edgeship.tiny.text import TOOLS
from edgeship_runtime import load
from edgeship_runtime.chat import ChatTemplate
from edgeship_runtime.model import Model
from edgeship_runtime.server.answers import CHAT, CHAT_CHUNK
from edgeship_runtime.talk import converse
from random_schemas import random_schema, validate
from scripted import saying
from served import COLD, HOT, Served, serving
from toy_gguf import FORMS

SCHEMAS = int(os.environ.get("EDGESHIP_SCHEMAS", "20"))
"""Random ones, for each engine; a thousand take some minutes."""
WEATHER = [{"role": "user", "content": "What is the weather in Paris?"}]
TOLD: dict[str, Any] = {"tools": list(TOOLS), "temperature": 0.0, "max_tokens": 120}
SCHEMA = {
    "type": "object",
    "properties": {"sky": {"enum": ["sunny", "rainy"]}, "degrees": {"type": "integer", "minimum": -9, "maximum": 35}},
    "required": ["sky", "degrees"],
    "additionalProperties": False,
}
AS_SCHEMA = {"type": "json_schema", "json_schema": {"name": "weather", "schema": SCHEMA}}
# The embedded model knows no thought: this template begins one, as those of models that always think do.
THINKING = """\
{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}{{- '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}
{%- else %}{{- '<think>\\n' }}{%- endif %}"""


@pytest.fixture(scope="module", params=FORMS)
def place(request: pytest.FixtureRequest, tiny: Path) -> Path:
    return tiny / str(request.param)


@pytest.fixture(scope="module")
def model(place: Path) -> Generator[Model, None, None]:
    with load(place, threads=1) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def thinker(place: Path) -> Generator[Model, None, None]:
    with load(place, threads=1) as loaded:
        yield Model(loaded.engine, loaded.tokenizer, loaded.manifest, ChatTemplate(THINKING))


def answer_of(model: Model, messages: list[dict[str, Any]], **given: Any) -> Any:
    with converse(model, messages, **given) as events:
        for _ in events:
            pass
    return events.answer


class TestInPython:
    def test_the_model_calls_a_tool_and_reads_its_result(self, model: Model) -> None:
        first = answer_of(model, WEATHER, **TOLD)
        (call,) = first.tool_calls
        assert (call.name, json.loads(call.arguments)) == ("get_weather", {"city": "Paris"})
        assert (first.text, first.finish_reason) == ("", "tool_calls")
        result = {"role": "tool", "tool_call_id": call.id, "content": '{"sky": "windy", "degrees": 13}'}
        second = answer_of(model, [*WEATHER, first.message(), result], **TOLD)
        assert (second.text, second.finish_reason) == ("It is windy in Paris, with 13 degrees.", "stop")

    def test_choices(self, model: Model) -> None:
        assert answer_of(model, HOT, **TOLD).text == COLD
        named = {"type": "function", "function": {"name": "set_light"}}
        (call,) = answer_of(model, HOT, tool_choice=named, **TOLD).tool_calls
        assert call.name == "set_light"
        jsonschema.validate(json.loads(call.arguments), TOOLS[2]["function"]["parameters"])
        assert answer_of(model, HOT, tool_choice="required", **TOLD).tool_calls
        assert not answer_of(model, WEATHER, tool_choice="none", **TOLD).tool_calls

    def test_a_schema_and_an_expression(self, model: Model) -> None:
        found = answer_of(model, WEATHER, response_format=AS_SCHEMA, temperature=1.0, seed=1)
        jsonschema.validate(json.loads(found.text), SCHEMA)
        wanted = {"type": "regex", "pattern": "(yes|no)[.!]"}
        assert answer_of(model, HOT, response_format=wanted).text in ("yes.", "yes!", "no.", "no!")

    def test_random_schemas(self, model: Model) -> None:
        pick = random.Random(2)
        finished = 0
        for seed in range(SCHEMAS):
            wanted = random_schema(pick)
            asked = {"type": "json_schema", "json_schema": {"schema": wanted}}
            found = answer_of(model, HOT, response_format=asked, temperature=1.0, seed=seed, max_tokens=300)
            if found.finish_reason == "stop":  # a small model can go on with a string until it is cut
                validate(json.loads(found.text), wanted)
                finished += 1
        assert finished >= SCHEMAS // 2

    @pytest.mark.parametrize("budget", [0, 1, 8])
    def test_a_thought_ends_with_its_budget(self, thinker: Model, budget: int) -> None:
        found = answer_of(thinker, HOT, thinking_budget=budget, max_tokens=200, temperature=0.0)
        assert found.reasoning is not None
        assert found.reasoning.endswith("directly now.")
        assert found.finish_reason in ("stop", "length")
        assert found.text
        assert "</think>" not in found.text
        told = answer_of(
            thinker, HOT, thinking_budget=budget, max_tokens=200, temperature=0.0, response_format=AS_SCHEMA
        )
        jsonschema.validate(json.loads(told.text), SCHEMA)

    def test_no_thought_where_none_is_wanted(self, thinker: Model) -> None:
        silent = [{"role": "user", "content": f"{HOT[0]['content']} /no_think"}]
        for found in (
            answer_of(thinker, HOT, enable_thinking=False, thinking_budget=3, max_tokens=20),
            answer_of(thinker, silent, thinking_budget=3, max_tokens=20),
        ):
            assert (found.reasoning, found.reasoning_tokens) == (None, 0)


class TestOverHttp:
    def test_tools(self, served: Served) -> None:
        asked = {"tools": list(TOOLS), "max_tokens": 120}
        choice = served.ask(messages=WEATHER, **asked).json()["choices"][0]
        (call,) = choice["message"]["tool_calls"]
        assert choice["finish_reason"] == "tool_calls"
        assert json.loads(call["function"]["arguments"]) == {"city": "Paris"}
        result = {"role": "tool", "tool_call_id": call["id"], "content": '{"sky": "windy", "degrees": 13}'}
        second = served.ask(messages=[*WEATHER, choice["message"], result], **asked).json()
        assert second["choices"][0]["message"]["content"] == "It is windy in Paris, with 13 degrees."

    def test_forms(self, served: Served) -> None:
        found = served.ask(messages=WEATHER, response_format=AS_SCHEMA).json()["choices"][0]
        jsonschema.validate(json.loads(found["message"]["content"]), SCHEMA)
        assert found["finish_reason"] == "stop"

    def test_what_is_not_enforced_is_refused_by_name(self, served: Served) -> None:
        wanted = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}
        refused = served.ask(response_format={"type": "json_schema", "json_schema": {"schema": wanted}})
        assert refused.status_code == 400
        assert "#/properties/a uses uniqueItems, which is not enforced" in refused.json()["error"]["message"]

    @pytest.mark.parametrize("stream", [False, True])
    def test_a_budget(self, place: Path, stream: bool) -> None:
        def thinking(path: Path) -> Model:
            loaded = load(path, threads=1)
            return Model(loaded.engine, loaded.tokenizer, loaded.manifest, ChatTemplate(THINKING))

        with serving({"tiny": place}, open_model=thinking) as served:
            found = served.ask(thinking_budget=5, max_tokens=100, stream=stream, response_format=AS_SCHEMA)
            if stream:
                lines = [line[6:] for line in found.text.splitlines() if line.startswith("data: {")]
                deltas = [json.loads(line)["choices"][0]["delta"] for line in lines]
                thought = "".join(each.get("reasoning_content") or "" for each in deltas)
                text = "".join(each.get("content") or "" for each in deltas)
            else:
                message = found.json()["choices"][0]["message"]
                thought, text = message["reasoning_content"], message["content"]
                assert found.json()["usage"]["completion_tokens_details"]["reasoning_tokens"] > 5
            assert thought.endswith("directly now.")
            jsonschema.validate(json.loads(text), SCHEMA)

    @pytest.mark.parametrize("stream", [False, True])
    def test_a_malformed_call_is_text_with_a_reason(self, tmp_path: Path, stream: bool) -> None:
        said = "<tool_call>\nget_weather(Paris)\n</tool_call>"
        with serving({"tiny": tmp_path}, open_model=lambda path: saying(said)) as served:
            found = served.ask(tools=list(TOOLS), enable_thinking=False, max_tokens=200, stream=stream)
        assert found.status_code == 200
        if stream:
            chunks = [json.loads(line[6:]) for line in found.text.splitlines() if line.startswith("data: {")]
            for chunk in chunks:
                jsonschema.validate(chunk, CHAT_CHUNK)
            deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
            text = "".join(each.get("content", "") for each in deltas)
            problems = [problem for each in deltas for problem in each.get("tool_call_problems", ())]
        else:
            jsonschema.validate(found.json(), CHAT)
            message = found.json()["choices"][0]["message"]
            text, problems = message["content"], message["tool_call_problems"]
        assert text == said
        assert len(problems) == 1
        assert "it is not JSON" in problems[0]
