"""Answers in asyncio: `async for piece in model.stream(...)`, and the same for `converse(...)`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from typing import Protocol, TypeVar

Item = TypeVar("Item")
Item_co = TypeVar("Item_co", covariant=True)


class Answering(Iterator[Item_co], Protocol[Item_co]):
    """An answer on its way: `answer.Stream` or `talk.Conversation`."""

    def cancel(self) -> None:
        """End the answer before its next token, from any thread."""

    def close(self) -> None:
        """Stop generating."""


async def iterate(source: Answering[Item]) -> AsyncGenerator[Item, None]:
    """Give out an answer's items while the event loop goes on; the engine works in a thread of the loop's pool.

    When the task is cancelled, or the generator closed, the engine stops after the token it is at, and the model is
    free when this ends.
    """
    try:
        while True:
            step = asyncio.ensure_future(asyncio.to_thread(next, source, None))
            try:
                item = await asyncio.shield(step)
            except asyncio.CancelledError:
                source.cancel()
                await asyncio.wait([step])
                raise
            if item is None:
                return
            yield item
    finally:
        source.cancel()
        source.close()
