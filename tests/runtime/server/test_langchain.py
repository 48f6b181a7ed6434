"""The real `langchain-openai` package against a running server, on both engines."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from pydantic import BaseModel

from edgeship_runtime import load
from served import COLD, HOT, Served, serving

langchain = pytest.importorskip("langchain_openai")
SAID = HOT[0]["content"]


class Weather(BaseModel):
    """How the weather is in a city."""

    city: Literal["Ulm", "Bonn"]


@pytest.fixture
def chat(served: Served) -> Any:
    return langchain.ChatOpenAI(
        base_url=f"{served.url}/v1", api_key="none", model="tiny", temperature=0, max_retries=0, stream_usage=True
    )


def test_invoke(chat: Any) -> None:
    found = chat.invoke(SAID)
    assert found.content == COLD
    assert found.response_metadata["finish_reason"] == "stop"
    assert found.usage_metadata["output_tokens"] == 7


def test_stream(chat: Any) -> None:
    chunks = list(chat.stream(SAID))
    assert "".join(chunk.content for chunk in chunks) == COLD
    assert sum(chunk.usage_metadata["output_tokens"] for chunk in chunks if chunk.usage_metadata) == 7


def test_several_at_once_in_asyncio(chat: Any) -> None:
    async def ask() -> list[Any]:
        return list(await asyncio.gather(*(chat.ainvoke(SAID) for _ in range(4))))

    assert [found.content for found in asyncio.run(ask())] == [COLD] * 4


def test_batch(chat: Any) -> None:
    assert [found.content for found in chat.batch([SAID, SAID])] == [COLD] * 2


@pytest.mark.parametrize("stream", [False, True])
def test_bind_tools(chat: Any, stream: bool) -> None:
    pytest.importorskip("llguidance")
    bound = chat.bind_tools([Weather], tool_choice="required").bind(max_tokens=80)
    if stream:
        chunks = list(bound.stream(SAID))
        found = sum(chunks[1:], chunks[0])
    else:
        found = bound.invoke(SAID)
    (call,) = found.tool_calls[:1]
    assert call["name"] == "Weather"
    assert Weather(**call["args"]).city in ("Ulm", "Bonn")
    # The call and its result go back, as an agent sends them.
    result = {"role": "tool", "tool_call_id": call["id"], "content": "warm"}
    after = bound.bind(tool_choice="none", max_tokens=4).invoke([*HOT, found, *[result] * len(found.tool_calls)])
    assert after.usage_metadata["output_tokens"] >= 1


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_output(chat: Any, method: str) -> None:
    pytest.importorskip("llguidance")
    found = chat.bind(max_tokens=80).with_structured_output(Weather, method=method).invoke(SAID)
    assert isinstance(found, Weather)


def test_responses(served: Served) -> None:
    chat = langchain.ChatOpenAI(
        base_url=f"{served.url}/v1", api_key="none", model="tiny", temperature=0, max_retries=0, use_responses_api=True
    )
    assert chat.invoke(SAID).text == COLD
    assert "".join(chunk.text for chunk in chat.stream(SAID)) == COLD


def test_errors_are_the_packages_own(chat: Any) -> None:
    import openai

    with pytest.raises(openai.NotFoundError):
        chat.bind(model="large").invoke(SAID)


def test_embeddings_of_an_encoder_equal_the_models_own(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    from encoders import modules, write_encoder

    directory, _ = write_encoder(tmp_path / "a", "feature-extraction", modules())
    texts = ["one text", "and another"]
    with serving({"encoder": directory}) as running, load(directory, threads=1) as model:
        # The length check counts with OpenAI's own tokenizer, which it would download.
        client = langchain.OpenAIEmbeddings(
            base_url=f"{running.url}/v1", api_key="none", model="encoder", check_embedding_ctx_length=False
        )
        np.testing.assert_allclose(client.embed_documents(texts), model.embed(texts), atol=1e-5)
        np.testing.assert_allclose(client.embed_query(texts[0]), model.embed(texts)[0], atol=1e-5)
