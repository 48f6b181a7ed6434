"""POST /v1/completions and /v1/embeddings, as https://platform.openai.com/docs/api-reference describes them.

`logprobs` with `echo` scores the prompt too, which is how evaluation harnesses measure likelihoods; its tokens are
run one by one then, because engines give the logits of the last token alone.
"""

from __future__ import annotations

import base64
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from edgeship_runtime.answer import Stats
from edgeship_runtime.encoder import no_tokens
from edgeship_runtime.facts import EMBED
from edgeship_runtime.model import Model
from edgeship_runtime.server.asks import TextAsk, read_completion, too_long
from edgeship_runtime.server.chat import FINISH
from edgeship_runtime.server.logprobs import Recorder, TokenScore, recording, spell
from edgeship_runtime.server.problems import RequestError
from edgeship_runtime.server.service import Service, event
from edgeship_runtime.server.settings import Settings
from edgeship_runtime.server.turn import check_text

_EMBED_AT_ONCE = 32


@dataclass(frozen=True)
class Part:
    """Text of the answer to the prompt `index`, and the scores of its tokens where they were asked for."""

    index: int
    text: str
    scores: dict[str, Any] | None = None


@dataclass(frozen=True)
class End:
    """The end of one prompt's answer."""

    index: int
    finish: str
    stats: Stats


async def completions(service: Service, request: Request) -> Response:
    """Answer /v1/completions."""
    body = await service.body(request)
    ask = read_completion(body, service.settings)
    wants_stream = body.flag("stream")
    wants_usage = body.body("stream_options").flag("include_usage")
    job = service.submit(request, ask.model, lambda model: text_work(model, ask, service.settings))
    service.note_prompt(request, "\n".join(str(prompt) for prompt in ask.prompts))
    head = {
        "id": f"cmpl-{secrets.token_hex(12)}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": ask.model,
    }

    def note(stats: Stats) -> None:
        service.note_answer(request, job, stats)

    if wants_stream:
        return await service.stream(
            request, job, lambda items: _chunks(items, head, wants_usage, note), "text/event-stream"
        )
    items = await service.whole(request, job)
    choices = []
    for end in (item for item in items if isinstance(item, End)):
        parts = [item for item in items if isinstance(item, Part) and item.index == end.index]
        choices.append(
            {
                "index": end.index,
                "text": "".join(part.text for part in parts),
                "logprobs": _joined([part.scores for part in parts if part.scores is not None]),
                "finish_reason": end.finish,
            }
        )
    stats = _total([item.stats for item in items if isinstance(item, End)])
    note(stats)
    return JSONResponse({**head, "choices": choices, "usage": _usage(stats)})


async def _chunks(
    items: AsyncIterator[Any], head: dict[str, Any], wants_usage: bool, note: Callable[[Stats], None]
) -> AsyncGenerator[str, None]:
    empty = {"usage": None} if wants_usage else {}
    ends: list[Stats] = []
    async for item in items:
        choice = {"index": item.index, "text": "", "logprobs": None, "finish_reason": None}
        if isinstance(item, End):
            ends.append(item.stats)
            choice["finish_reason"] = item.finish
        else:
            choice |= {"text": item.text, "logprobs": item.scores}
        yield event({**head, "choices": [choice], **empty})
    stats = _total(ends)
    note(stats)
    if wants_usage:
        yield event({**head, "choices": [], "usage": _usage(stats)})
    yield "data: [DONE]\n\n"


def text_work(model: Model, ask: TextAsk, settings: Settings) -> Generator[Part | End, None, None]:
    """Continue the prompts one after the other, on the engine's thread."""
    for index, prompt in enumerate(ask.prompts):
        if isinstance(prompt, str):
            check_text(model, prompt, settings)
        ids = model.encode(prompt)
        if len(ids) > settings.max_prompt_tokens:
            raise too_long(settings.max_prompt_tokens)
        if max(ids, default=0) >= model.engine.vocab_size:
            known = f"token ids below {model.engine.vocab_size}, which is how many the model has"
            raise RequestError(f"prompt: expected {known}", param="prompt", code="invalid_value")
        scored = ask.logprobs is not None
        with recording(model, ask.logprobs or 0, prompt=ask.echo) if scored else nullcontext() as recorder:
            yield from _continue(model, ask, index, ids, recorder)


def _continue(
    model: Model, ask: TextAsk, index: int, ids: list[int], recorder: Recorder | None
) -> Generator[Part | End, None, None]:
    text, offset, place = "", 0, len(ids)

    def scored(tokens: list[int], first: int) -> dict[str, Any] | None:
        nonlocal offset
        if recorder is None:
            return None
        found = _scores(model, [recorder.at(first + i, token) for i, token in enumerate(tokens)], offset)
        offset += sum(map(len, found["tokens"]))
        return found

    with model.stream(ids, **ask.overrides) as stream:
        for number, piece in enumerate(stream):
            if number == 0 and ask.echo:  # only now has the prompt been run
                text = model.tokenizer.decode(ids)
                yield Part(index, text, scored(ids, 0))
            if not ask.nothing:
                yield Part(index, piece.text, scored(list(piece.token_ids), place))
            place += len(piece.token_ids)
        result = stream.result
    if ask.echo and not text:
        yield Part(index, model.tokenizer.decode(ids), scored(ids, 0))
    if recorder is not None and not ask.nothing and result.finish_reason == "stop" and result.stop_string is None:
        # Harnesses count on a score for every token asked for, the end token too.
        ends = [recorder.at(place, token) for token in model.manifest.model.eos_token_ids]
        likeliest = max(ends, key=lambda end: -np.inf if end.logprob is None else end.logprob)
        yield Part(index, "", scored([likeliest.token], place))
    stats = replace(result.stats, tokens=0) if ask.nothing else result.stats
    yield End(index, "length" if ask.nothing else FINISH[result.finish_reason], stats)


def _scores(model: Model, scores: list[TokenScore], offset: int) -> dict[str, Any]:
    """`logprobs` of a completion; `offset`: where the first token's text begins."""
    texts = [spell(model, score.token) for score in scores]
    starts = [offset + sum(map(len, texts[:i])) for i in range(len(texts))]
    top: list[dict[str, float] | None] = []
    for score in scores:
        likely: dict[str, float] = {}
        for token, logprob in score.top:
            likely.setdefault(spell(model, token), logprob)  # of tokens spelled alike the likeliest
        top.append(None if score.logprob is None else likely)
    return {
        "tokens": texts,
        "token_logprobs": [score.logprob for score in scores],
        "top_logprobs": top,
        "text_offset": starts,
    }


def _joined(scores: list[dict[str, Any]]) -> dict[str, Any] | None:
    if not scores:
        return None
    return {name: [value for each in scores for value in each[name]] for name in scores[0]}


def _total(stats: list[Stats]) -> Stats:
    """The sum over several prompts."""
    if len(stats) == 1:
        return stats[0]
    return Stats(
        sum(each.prompt_tokens for each in stats),
        sum(each.cached_tokens for each in stats),
        sum(each.tokens for each in stats),
        stats[0].ttft_s if stats else 0.0,
        sum(each.prefill_s for each in stats),
        sum(each.decode_s for each in stats),
        sum(each.steps for each in stats),
    )


def _usage(stats: Stats) -> dict[str, Any]:
    return {
        "prompt_tokens": stats.prompt_tokens,
        "completion_tokens": stats.tokens,
        "total_tokens": stats.prompt_tokens + stats.tokens,
        "prompt_tokens_details": {"cached_tokens": stats.cached_tokens},
    }


async def embeddings(service: Service, request: Request) -> Response:
    """Answer /v1/embeddings."""
    body = await service.body(request)
    name = body.text("model")
    form = body.text("encoding_format", "float")
    vectors, tokens = await embed(service, request, name, body.listed("input"))
    data = [
        {"object": "embedding", "index": i, "embedding": _encoded(vector, form)} for i, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return JSONResponse({"object": "list", "data": data, "model": name, "usage": usage})


def _encoded(vector: NDArray[np.float32], form: str) -> object:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode() if form == "base64" else vector.tolist()


async def embed(
    service: Service, request: Request, name: str, texts: list[str]
) -> tuple[list[NDArray[np.float32]], int]:
    """Vectors of texts, and how many tokens those have."""

    def work(model: Model) -> Generator[Any, None, None]:
        for start in range(0, len(texts), _EMBED_AT_ONCE):
            batch = texts[start : start + _EMBED_AT_ONCE]
            counts = [len(model.tokenizer.encode(text, special=True)) for text in batch]
            if 0 in counts and model.manifest.model.task == EMBED:
                raise no_tokens(start + counts.index(0) + 1)
            yield list(model.embed(batch)), sum(counts)

    job = service.submit(request, name, work)
    service.note_prompt(request, "\n".join(texts))
    batches = await service.whole(request, job)
    return [vector for vectors, _ in batches for vector in vectors], sum(tokens for _, tokens in batches)
