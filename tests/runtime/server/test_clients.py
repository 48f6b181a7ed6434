"""The real `openai` and `ollama` packages against a running server, on both engines."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Generator
from pathlib import Path
from typing import Any, Literal

import jsonschema
import numpy as np
import pytest
from pydantic import BaseModel

from edgeship_runtime import load
from scripted import saying
from served import COLD, HOT, Served, serving
from tolerances import SERVED_LOGPROB_AT_ONCE

openai = pytest.importorskip("openai")
ollama = pytest.importorskip("ollama")
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Ulm", "Bonn"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture
def client(served: Served) -> Any:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0, timeout=30)


@pytest.fixture
def other(served: Served) -> Any:
    return ollama.Client(host=served.url, timeout=30)


def test_openai_chat(client: Any) -> None:
    found = client.chat.completions.create(model="tiny", messages=HOT, temperature=0)
    assert found.choices[0].message.content == COLD
    assert found.choices[0].finish_reason == "stop"
    assert found.usage.total_tokens == found.usage.prompt_tokens + found.usage.completion_tokens


def test_an_answer_goes_on_beyond_its_end_where_a_load_generator_asks_for_that(client: Any) -> None:
    beyond = {"ignore_eos": True}
    chat = client.chat.completions.create(model="tiny", messages=HOT, temperature=0, max_tokens=40, extra_body=beyond)
    text = client.completions.create(model="tiny", prompt="Once", temperature=0, max_tokens=300, extra_body=beyond)
    for found, tokens in ((chat, 40), (text, 300)):
        assert (found.usage.completion_tokens, found.choices[0].finish_reason) == (tokens, "length")
    with pytest.raises(openai.BadRequestError, match="ignore_eos contradicts"):
        client.chat.completions.create(
            model="tiny", messages=HOT, response_format={"type": "json_object"}, extra_body=beyond
        )


def test_openai_chat_streamed_is_the_same_text_and_usage_comes_last(client: Any) -> None:
    whole = client.chat.completions.create(model="tiny", messages=HOT, temperature=0)
    with client.chat.completions.create(
        model="tiny", messages=HOT, temperature=0, stream=True, stream_options={"include_usage": True}
    ) as stream:
        chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == COLD
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_openai_max_tokens_ends_with_length(client: Any) -> None:
    found = client.chat.completions.create(model="tiny", messages=HOT, temperature=0, max_completion_tokens=2)
    assert (found.choices[0].finish_reason, found.usage.completion_tokens) == ("length", 2)


def test_openai_stop_and_seed(client: Any) -> None:
    found = client.chat.completions.create(model="tiny", messages=HOT, temperature=0, stop=[" is"])
    assert found.choices[0].message.content == "The opposite of hot"
    texts = {
        client.chat.completions.create(model="tiny", messages=HOT, temperature=2, seed=5, max_tokens=8)
        .choices[0]
        .message.content
        for _ in range(2)
    }
    assert len(texts) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_openai_chat_logprobs_are_those_of_the_tokens(client: Any, stream: bool) -> None:
    asked = {"model": "tiny", "messages": HOT, "temperature": 0, "max_tokens": 5}
    found = client.chat.completions.create(**asked, logprobs=True, top_logprobs=3, stream=stream)
    choices = [chunk.choices[0] for chunk in found] if stream else [found.choices[0]]
    scores = [score for choice in choices if choice.logprobs for score in choice.logprobs.content]
    said = [choice.delta if stream else choice.message for choice in choices]
    assert "".join(score.token for score in scores) == "".join(each.content or "" for each in said)
    assert len(scores) == 5
    for score in scores:
        assert len(score.top_logprobs) == 3
        assert score.logprob == score.top_logprobs[0].logprob <= 0


@pytest.mark.parametrize("stream", [False, True])
def test_openai_tool_call_of_a_named_tool_is_valid_and_its_result_is_taken_back(client: Any, stream: bool) -> None:
    pytest.importorskip("llguidance")
    asked = {"model": "tiny", "messages": HOT, "tools": [WEATHER], "tool_choice": "required", "max_tokens": 80}
    found = client.chat.completions.create(**asked, stream=stream, temperature=0)
    if stream:
        deltas = [chunk.choices[0].delta.tool_calls for chunk in found]
        calls = [call for delta in deltas for call in delta or ()]
        name, arguments = calls[0].function.name, "".join(call.function.arguments or "" for call in calls)
        identity = calls[0].id
    else:
        assert found.choices[0].finish_reason == "tool_calls"
        call = found.choices[0].message.tool_calls[0]
        name, arguments, identity = call.function.name, call.function.arguments, call.id
    assert name == "weather"
    jsonschema.validate(json.loads(arguments), WEATHER["function"]["parameters"])
    function = {"name": name, "arguments": arguments}
    turns = [
        *HOT,
        {"role": "assistant", "tool_calls": [{"id": identity, "type": "function", "function": function}]},
        {"role": "tool", "tool_call_id": identity, "content": "warm"},
    ]
    after = client.chat.completions.create(model="tiny", messages=turns, tools=[WEATHER], max_tokens=4)
    assert after.usage.completion_tokens >= 1


@pytest.mark.parametrize("stream", [False, True])
def test_openai_json_schema(client: Any, stream: bool) -> None:
    pytest.importorskip("llguidance")
    schema = {
        "type": "object",
        "properties": {"good": {"type": "boolean"}, "size": {"enum": [1, 2]}},
        "required": ["good", "size"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "it", "schema": schema}}
    asked = {"model": "tiny", "messages": HOT, "response_format": form, "max_tokens": 60, "seed": 1}
    found = client.chat.completions.create(**asked, stream=stream)
    if stream:
        text = "".join(chunk.choices[0].delta.content or "" for chunk in found)
    else:
        text = found.choices[0].message.content
    jsonschema.validate(json.loads(text), schema)


class Judged(BaseModel):
    good: bool
    size: Literal[1, 2]


def test_openai_parses_answers_into_a_class(client: Any) -> None:
    pytest.importorskip("llguidance")
    found = client.chat.completions.parse(model="tiny", messages=HOT, response_format=Judged, max_tokens=60)
    assert isinstance(found.choices[0].message.parsed, Judged)
    other = client.responses.parse(model="tiny", input=HOT, text_format=Judged, max_output_tokens=60)
    assert isinstance(other.output_parsed, Judged)


def test_openai_in_asyncio(served: Served) -> None:
    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:

            async def one() -> str:
                asked = {"model": "tiny", "messages": HOT, "temperature": 0}
                stream = await client.chat.completions.create(**asked, stream=True)
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

            return await asyncio.gather(*(one() for _ in range(6)))

    assert asyncio.run(ask()) == [COLD] * 6


@pytest.mark.parametrize("stream", [False, True])
def test_openai_completion_with_echo_scores_every_token_as_the_model_does(
    client: Any, served: Served, stream: bool
) -> None:
    found = client.completions.create(
        model="tiny", prompt="Once upon a time", max_tokens=3, temperature=0, echo=True, logprobs=2, stream=stream
    )
    parts = [chunk.choices[0] for chunk in found if chunk.choices] if stream else [found.choices[0]]
    scores = [part.logprobs for part in parts if part.logprobs]
    tokens = [token for score in scores for token in score.tokens]
    logprobs = [value for score in scores for value in score.token_logprobs]
    offsets = [value for score in scores for value in score.text_offset]
    text = "".join(part.text for part in parts)
    assert text.startswith("Once upon a time")
    assert "".join(tokens) == text
    assert [text[start : start + len(token)] for start, token in zip(offsets, tokens, strict=True)] == tokens
    with load(served.server.settings.artifacts["tiny"], threads=1) as model:
        ids = model.encode("Once upon a time")
        ids += model.generate(ids, max_tokens=3, temperature=0).tokens
        expected: list[float] = []
        for place in range(1, len(ids)):
            model.engine.truncate(0)
            logits = model.engine.evaluate(ids[:place]).astype(np.float64)
            expected.append(float(logits[ids[place]] - logits.max() - np.log(np.exp(logits - logits.max()).sum())))
    assert logprobs[0] is None
    assert logprobs[1:] == pytest.approx(expected, abs=SERVED_LOGPROB_AT_ONCE)
    assert all(len(top) <= 2 for score in scores for top in score.top_logprobs if top)


def test_openai_completion_of_token_ids_in_batches_as_evaluation_harnesses_send_them(client: Any) -> None:
    found = client.completions.create(
        model="tiny", prompt=[[5, 6, 7], [8, 9]], max_tokens=0, echo=True, logprobs=1, temperature=0
    )
    assert [choice.index for choice in found.choices] == [0, 1]
    assert [len(choice.logprobs.tokens) for choice in found.choices] == [3, 2]
    for choice in found.choices:
        assert choice.logprobs.token_logprobs[0] is None
        assert all(math.isfinite(value) for value in choice.logprobs.token_logprobs[1:])


def test_openai_completion_scores_the_end_token_too_as_evaluation_harnesses_expect(client: Any, served: Served) -> None:
    with load(served.server.settings.artifacts["tiny"], threads=1) as model:
        ids = [*model.encode(model.render(HOT)), *model.encode(COLD)]
    found = client.completions.create(model="tiny", prompt=ids, max_tokens=1, temperature=0, echo=True, logprobs=1)
    scores = found.choices[0].logprobs
    assert (found.choices[0].finish_reason, found.usage.completion_tokens) == ("stop", 0)
    assert len(scores.tokens) == len(scores.token_logprobs) == len(scores.top_logprobs) == len(ids) + 1
    assert scores.token_logprobs[-1] == max(scores.top_logprobs[-1].values())
    assert math.exp(scores.token_logprobs[-1]) > 0.5
    assert scores.text_offset[-1] == len(found.choices[0].text)


def test_openai_responses(client: Any) -> None:
    found = client.responses.create(model="tiny", input=HOT[0]["content"], temperature=0)
    assert (found.output_text, found.status) == (COLD, "completed")
    assert found.usage.total_tokens == found.usage.input_tokens + found.usage.output_tokens
    short = client.responses.create(model="tiny", input=HOT, temperature=0, max_output_tokens=2)
    assert (short.status, short.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    with pytest.raises(openai.BadRequestError, match="stores no conversation"):
        client.responses.create(model="tiny", input="a", previous_response_id="resp_1")


def test_openai_responses_streamed(client: Any) -> None:
    with client.responses.stream(model="tiny", input=HOT[0]["content"], temperature=0) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == COLD
    assert final.output_text == COLD
    assert events[0].sequence_number == 0


@pytest.mark.parametrize("stream", [False, True])
def test_openai_responses_call_a_tool_and_take_its_result(client: Any, stream: bool) -> None:
    pytest.importorskip("llguidance")
    tool = {"type": "function", **WEATHER["function"]}
    asked = {"model": "tiny", "input": HOT, "tools": [tool], "tool_choice": "required", "max_output_tokens": 80}
    found = client.responses.create(**asked, stream=stream)
    if stream:
        found = list(found)[-1].response
    (call,) = [item for item in found.output if item.type == "function_call"]
    jsonschema.validate(json.loads(call.arguments), WEATHER["function"]["parameters"])
    said = {"type": "function_call_output", "call_id": call.call_id, "output": "warm"}
    given = {"type": "function_call", "call_id": call.call_id, "name": call.name, "arguments": call.arguments}
    after = client.responses.create(model="tiny", input=[*HOT, given, said], tools=[tool], max_output_tokens=3)
    assert after.usage.output_tokens >= 1


def test_openai_models(client: Any) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("large")


def test_openai_errors_are_the_packages_own(client: Any) -> None:
    with pytest.raises(openai.NotFoundError, match="there are: tiny"):
        client.chat.completions.create(model="large", messages=HOT)
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="tiny", messages=HOT, temperature=7)
    assert caught.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "hot " * 3000}], stream=True)
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match="embeds none"):
        client.embeddings.create(model="tiny", input="a")


@pytest.mark.parametrize("stream", [False, True])
def test_ollama_chat_and_generate(other: Any, stream: bool) -> None:
    options = {"temperature": 0, "num_predict": 20}
    found = other.chat("tiny", messages=HOT, options=options, stream=stream)
    parts = list(found) if stream else [found]
    assert "".join(part.message.content for part in parts) == COLD
    assert (parts[-1].done, parts[-1].done_reason) == (True, "stop")
    assert parts[-1].eval_count == 7
    made = other.generate("tiny", HOT[0]["content"], options=options, stream=stream)
    assert "".join(part.response for part in (made if stream else [made])) == COLD


def test_ollama_raw_prompt_takes_no_template(other: Any, client: Any) -> None:
    found = other.generate("tiny", "Once upon a", raw=True, options={"temperature": 0, "num_predict": 1})
    plain = client.completions.create(model="tiny", prompt="Once upon a", temperature=0, max_tokens=1)
    assert found.response == plain.choices[0].text == " time"


def test_ollama_names_and_errors(other: Any) -> None:
    assert [model.model for model in other.list().models] == ["tiny"]
    assert other.chat("tiny:latest", messages=HOT, options={"num_predict": 1}).done
    with pytest.raises(ollama.ResponseError) as caught:
        other.chat("large", messages=HOT)
    assert caught.value.status_code == 404
    with pytest.raises(ollama.ResponseError, match="parts of text"):
        other.chat("tiny", messages=[{"role": "user", "content": "a", "images": [b"abcd"]}])


@pytest.mark.parametrize("stream", [False, True])
def test_ollama_format_is_a_schema(other: Any, stream: bool) -> None:
    pytest.importorskip("llguidance")
    members = {"a": {"type": "boolean"}}
    schema = {"type": "object", "properties": members, "required": ["a"], "additionalProperties": False}
    found = other.chat("tiny", messages=HOT, format=schema, options={"num_predict": 60, "seed": 2}, stream=stream)
    text = "".join(part.message.content or "" for part in (found if stream else [found]))
    jsonschema.validate(json.loads(text), schema)


def test_embeddings_of_an_encoder_equal_the_models_own(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    from encoders import modules, write_encoder

    directory, _ = write_encoder(tmp_path / "a", "feature-extraction", modules())
    texts = ["one text", "and another"]
    with serving({"encoder": directory}) as running, load(directory, threads=1) as model:
        expected = model.embed(texts)
        client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0)
        found = client.embeddings.create(model="encoder", input=texts)
        np.testing.assert_allclose([each.embedding for each in found.data], expected, atol=1e-5)
        other = ollama.Client(host=running.url).embed("encoder", texts)
        np.testing.assert_allclose(other.embeddings, expected, atol=1e-5)


@pytest.fixture(scope="module")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> Generator[Served, None, None]:
    """A server of a model that thinks, says something and calls a tool twice."""
    call = '<tool_call>\n{"name": "weather", "arguments": {"city": "Ulm"}}\n</tool_call>'
    said = f"<think>\nfirst\n</think>\n\nLet me look.\n{call}\n{call}"
    with serving({"tiny": tmp_path_factory.mktemp("none")}, open_model=lambda path: saying(said)) as running:
        yield running


@pytest.mark.parametrize("stream", [False, True])
def test_openai_gets_thought_text_and_tool_calls(scripted: Served, stream: bool) -> None:
    client = openai.OpenAI(base_url=f"{scripted.url}/v1", api_key="none", max_retries=0, timeout=30)
    asked = {"model": "tiny", "messages": HOT, "tools": [WEATHER], "max_tokens": 400}
    if stream:
        with client.chat.completions.stream(**asked) as events:
            thought = "".join(
                event.chunk.choices[0].delta.reasoning_content or ""
                for event in events
                if event.type == "chunk" and hasattr(event.chunk.choices[0].delta, "reasoning_content")
            )
            found = events.get_final_completion()
    else:
        found = client.chat.completions.create(**asked)
        thought = found.choices[0].message.reasoning_content
    message = found.choices[0].message
    assert (thought, message.content, found.choices[0].finish_reason) == ("first", "Let me look.", "tool_calls")
    assert [(call.function.name, json.loads(call.function.arguments)) for call in message.tool_calls] == [
        ("weather", {"city": "Ulm"})
    ] * 2
    assert len({call.id for call in message.tool_calls}) == 2


@pytest.mark.parametrize("stream", [False, True])
def test_ollama_gets_thought_text_and_tool_calls(scripted: Served, stream: bool) -> None:
    client = ollama.Client(host=scripted.url, timeout=30)
    options = {"num_predict": 400}
    found = client.chat("tiny", messages=HOT, tools=[WEATHER], think=True, options=options, stream=stream)
    messages = [part.message for part in (found if stream else [found])]
    assert "".join(message.thinking or "" for message in messages) == "first"
    assert "".join(message.content or "" for message in messages) == "Let me look."
    calls = [call.function for message in messages for call in message.tool_calls or ()]
    assert [(call.name, call.arguments) for call in calls] == [("weather", {"city": "Ulm"})] * 2
    # Its messages go back as they came, with the tool's answer.
    said = {"role": "assistant", "content": "", "tool_calls": [{"function": dict(calls[0])}]}
    answer = {"role": "tool", "tool_name": "weather", "content": "warm"}
    assert client.chat("tiny", messages=[*HOT, said, answer], options={"num_predict": 2}).done
