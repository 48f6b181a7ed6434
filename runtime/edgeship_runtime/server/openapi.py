"""GET /openapi.json: every route with the schemas that its requests are held to, as OpenAPI 3.1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgeship_runtime import __version__
from edgeship_runtime.server import answers
from edgeship_runtime.server.schemas import Made
from edgeship_runtime.server.settings import Settings

_JSON = "application/json"
# Path: what it does, its answer, a part of a streamed one.
_POSTS: Mapping[str, tuple[str, Made, Made | None]] = {
    "/v1/chat/completions": ("Answer a conversation, as OpenAI's API does.", answers.CHAT, answers.CHAT_CHUNK),
    "/v1/completions": (
        "Continue texts, or score them: `echo` with `logprobs`.",
        answers.COMPLETION,
        answers.COMPLETION_CHUNK,
    ),
    "/v1/embeddings": ("Vectors of texts.", answers.EMBEDDINGS, None),
    "/v1/responses": ("Answer a conversation; nothing is stored.", answers.RESPONSE, answers.RESPONSE_EVENT),
    "/api/chat": ("Answer a conversation, as Ollama does.", answers.OLLAMA_CHAT, answers.OLLAMA_CHAT),
    "/api/generate": ("Answer a prompt, as Ollama does.", answers.OLLAMA_GENERATE, answers.OLLAMA_GENERATE),
    "/api/embed": ("Vectors of texts, as Ollama gives them.", answers.OLLAMA_EMBED, None),
}
_GETS: Mapping[str, tuple[str, Made]] = {
    "/v1/models": ("The artifacts that are served.", answers.MODELS),
    "/v1/models/{name}": ("One of them.", answers.MODEL),
    "/v1/stats": ("Memory, queue and averages over the last answers.", answers.STATS),
    "/api/tags": ("The artifacts that are served, as Ollama lists them.", answers.TAGS),
    "/api/version": ("The version of the runtime.", answers.VERSION),
    "/health": ("Whether the server is well, check by check; 503 when it is not.", answers.HEALTH),
    "/openapi.json": ("This document.", {"type": "object", "required": ["openapi", "info", "paths"]}),
}
_TEXTS = {
    "/metrics": ("What Prometheus collects.", "text/plain"),
    "/": ("The web page.", "text/html"),
    "/page/style.css": ("A part of the page.", "text/css"),
    "/page/app.js": ("A part of the page.", "text/javascript"),
}
_OPEN = ("/", "/health", "/page/style.css", "/page/app.js")
_REFUSED = {
    "400": "The request is wrong; `param` names the member.",
    "401": "An API key is needed.",
    "403": "A page of another origin, or another name than localhost.",
    "404": "There is no such model or address.",
    "408": "The body did not come in time.",
    "413": "The body is too large.",
    "429": "Too many requests, or a full queue: `Retry-After` tells when to come again.",
    "503": "The model cannot answer now.",
}
_EXAMPLES: Mapping[str, Made] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "What is the opposite of hot?"}]},
    "/v1/completions": {"prompt": "Once upon a time"},
    "/v1/embeddings": {"input": "some text"},
    "/v1/responses": {"input": "What is the opposite of hot?"},
    "/api/chat": {"messages": [{"role": "user", "content": "What is the opposite of hot?"}], "stream": False},
    "/api/generate": {"prompt": "What is the opposite of hot?", "stream": False},
    "/api/embed": {"input": "some text"},
}


def document(settings: Settings, requests: Mapping[str, Made]) -> dict[str, Any]:
    """The document; `requests`: the schemas by path that bodies are checked with."""
    secured: dict[str, Any] = {"security": [{"key": []}]} if settings.keys else {}
    key = {"type": "http", "scheme": "bearer", "description": "An API key of this server."}
    paths: dict[str, Any] = {path: {"post": _post(settings, path, requests[path])} for path in _POSTS}
    paths |= {path: {"get": _get(path, about, _JSON, schema)} for path, (about, schema) in _GETS.items()}
    paths |= {path: {"get": _get(path, about, kind, {"type": "string"})} for path, (about, kind) in _TEXTS.items()}
    name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
    paths["/v1/models/{name}"]["get"]["parameters"] = [name]
    return {
        "openapi": "3.1.0",
        "info": {"title": "edgeship-runtime", "version": __version__, "license": {"name": "Apache-2.0"}},
        **secured,
        "paths": paths,
        "components": {
            "schemas": {"OpenAIError": answers.OPENAI_ERROR, "OllamaError": answers.OLLAMA_ERROR},
            "securitySchemes": {"key": key} if settings.keys else {},
        },
    }


def _post(settings: Settings, path: str, schema: Made) -> dict[str, Any]:
    about, answer, part = _POSTS[path]
    content: dict[str, Any] = {_JSON: {"schema": answer}}
    if part is not None:
        # OpenAPI 3.1 has no word for a sequence: the schema is that of an element, as readers of streams take it.
        kind, streamed = (
            ("application/x-ndjson", part) if path.startswith("/api/") else ("text/event-stream", _sent(part))
        )
        content[kind] = {"schema": streamed}
    example = {"model": next(iter(settings.artifacts)), **_EXAMPLES[path]}
    return {
        "summary": about,
        "operationId": path.strip("/").replace("/", "_"),
        "requestBody": {"required": True, "content": {_JSON: {"schema": schema, "example": example}}},
        "responses": {"200": {"description": "The answer.", "content": content}, **_errors(path, *_REFUSED)},
    }


def _sent(part: Made) -> Made:
    """A server-sent event: JSON, and at the end of OpenAI's older routes a mark that is none."""
    sent = {"type": "string", "contentMediaType": _JSON, "contentSchema": part}
    data = {"anyOf": [{"const": "[DONE]"}, sent]}
    return {"type": "object", "properties": {"event": {"type": "string"}, "data": data}, "required": ["data"]}


def _get(path: str, about: str, kind: str, schema: Made) -> dict[str, Any]:
    found: dict[str, Any] = {
        "summary": about,
        "operationId": path.strip("/").replace("/", "_").replace("{", "").replace("}", "") or "page",
        "responses": {
            "200": {"description": "The answer.", "content": {kind: {"schema": schema}}},
            **_errors(path, "400", "401", "403", "404", "413", "429", "503"),
        },
    }
    if path == "/health":
        found["responses"]["503"] = {"description": "Unhealthy.", "content": {kind: {"schema": schema}}}
    return found | ({"security": []} if path in _OPEN else {})


def _errors(path: str, *statuses: str) -> dict[str, Any]:
    reference = f"#/components/schemas/{'OllamaError' if path.startswith('/api/') else 'OpenAIError'}"
    content = {_JSON: {"schema": {"$ref": reference}}}
    retry = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}}
    found: dict[str, Any] = {status: {"description": _REFUSED[status], "content": content} for status in statuses}
    for status in ("429", "503"):
        found[status] |= {"headers": retry}
    return found
