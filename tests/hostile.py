"""A request by someone who means a server harm: bytes, and the statuses that may come back."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

SECRET = "the-secret-of-the-prompt"
"""Stands in every prompt; it may come back in an answer, and never in an error or a log."""

CHAT, TEXT, RESPONSES, EMBED = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings"
USER: list[Any] = [{"role": "user", "content": f"{SECRET} What is the opposite of hot?"}]
WRONG = (400,)
FINE_OR_WRONG = (200, 400)


@dataclass(frozen=True)
class Case:
    """Bytes for a new connection, and what may be answered; what is no HTTP may also have no answer at all."""

    name: str
    sent: bytes
    statuses: tuple[int, ...] = WRONG


def http(line: str, body: bytes = b"", host: str | None = "localhost", **headers: str) -> bytes:
    """A request; underscores of header names become dashes."""
    given = {"Host": host, "Connection": "close", "Content-Length": str(len(body))}
    given |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"{line} HTTP/1.1", *(f"{name}: {value}" for name, value in given.items() if value is not None)]
    return "\r\n".join(lines).encode("utf-8", "surrogateescape") + b"\r\n\r\n" + body


def posted(name: str, path: str, body: object, statuses: tuple[int, ...] = WRONG, **headers: str) -> Case:
    """A body posted as JSON, or as it is when it is bytes."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode("utf-8", "surrogatepass")
    return Case(
        f"{path} {name}", http(f"POST {path}", raw, **{"Content-Type": "application/json", **headers}), statuses
    )


def chat(name: str, statuses: tuple[int, ...] = WRONG, **members: Any) -> Case:
    """A conversation of the tiny model with other members."""
    return posted(name, CHAT, {"model": "tiny", "messages": USER, "max_tokens": 4, **members}, statuses)


def text(name: str, statuses: tuple[int, ...] = WRONG, **members: Any) -> Case:
    """A text to be continued, with other members."""
    return posted(name, TEXT, {"model": "tiny", "prompt": SECRET, "max_tokens": 4, **members}, statuses)
