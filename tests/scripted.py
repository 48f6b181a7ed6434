"""A model whose engine says what the test tells it, over a real byte-level tokenizer, with a template that thinks."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from checkpoints import write_tokenizer
from edgeship_runtime.chat import ChatTemplate
from edgeship_runtime.manifest import Manifest, parse_manifest
from edgeship_runtime.model import Model
from edgeship_runtime.talk import Conversation
from edgeship_runtime.talk.events import Event
from edgeship_runtime.talk.thinking import CLOSING
from edgeship_runtime.tokens import Tokenizer, read_tokenizer
from manifests import VALID
from toy_artifact import END, VOCAB

USER: list[dict[str, Any]] = [{"role": "user", "content": "Hello"}]

# Tools, calls, thoughts and the empty thought of `enable_thinking=False`, as Qwen3's own template has them.
TEMPLATE = """\
{%- if tools %}{{- 'tools:' }}{%- for tool in tools %}{{- ' ' + tool.function.name }}{%- endfor %}{{- '\\n' }}
{%- endif %}
{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' + message.content }}
{%- for call in message.tool_calls or [] %}
{{- '<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' + (call.function.arguments | tojson) }}
{{- '}\\n</tool_call>' }}{%- endfor %}{{- '<|im_end|>\\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}"""

Say = Callable[[int, Sequence[int]], NDArray[np.float32]]
"""Logits of a step of the answer, counted from 0, after the tokens that are held."""


class Engine:
    """An engine whose logits a function makes."""

    name = "scripted 1"
    threads = 1

    def __init__(self, say: Say, context: int = 20_000) -> None:
        self.vocab_size = VOCAB
        self.context = context
        self.held: list[int] = []
        self.steps = 0
        self._say = say
        self._prompt = 0

    @property
    def length(self) -> int:
        return len(self.held)

    def evaluate(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Append the tokens; the first that come are the prompt."""
        self.held += tokens
        self.steps += 1
        self._prompt = self._prompt or len(self.held)
        return self._say(len(self.held) - self._prompt, self.held)

    def truncate(self, length: int) -> None:
        """Keep the first tokens; what comes next is a prompt."""
        del self.held[length:]
        self._prompt = 0

    def close(self) -> None:
        """Nothing to free."""


@cache
def tokenizer() -> Tokenizer:
    """The tokenizer of the tiny checkpoints: 320 tokens, none of them a tag."""
    with TemporaryDirectory() as folder:
        write_tokenizer(Path(folder))
        return read_tokenizer(Path(folder) / "tokenizer.json")


def manifest() -> Manifest:
    """A manifest whose model is greedy."""
    facts = VALID["model"] | {"vocab_size": VOCAB, "eos_token_ids": list(END)}
    sampling = VALID["sampling"] | {"temperature": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0}
    return parse_manifest(json.dumps(VALID | {"model": facts, "sampling": sampling}).encode())


def model_of(engine: Engine, template: str = TEMPLATE) -> Model:
    """A model over the engine."""
    return Model(engine, tokenizer(), manifest(), ChatTemplate(template))  # type: ignore[arg-type]


def sure(token: int) -> NDArray[np.float32]:
    """Logits that leave no doubt of a token."""
    logits = np.zeros(VOCAB, np.float32)
    logits[token] = 9
    return logits


def saying(*texts: str, template: str = TEMPLATE) -> Model:
    """A model that wants to say the texts, an end token between them, then nothing but the letter x."""
    script: list[int] = []
    for text in texts:
        script += [*tokenizer().encode(text), END[0]]
    return saying_tokens(script, after=tokenizer().encode("x")[0], template=template)


def saying_tokens(script: Sequence[int], *, after: int = END[0], template: str = TEMPLATE) -> Model:
    """A model that wants to say the tokens, then nothing but one other."""

    def say(step: int, held: Sequence[int]) -> NDArray[np.float32]:
        return sure(script[step] if step < len(script) else after)

    return model_of(Engine(say), template)


def thinking_on(thought: str, answer: str) -> Model:
    """A model that says the thought, its last token again and again, until it is closed for it; then it answers."""
    thinking, closing, told = (tokenizer().encode(text) for text in (thought, CLOSING, answer))

    def say(step: int, held: Sequence[int]) -> NDArray[np.float32]:
        said = list(held[len(held) - step :]) if step else []
        ends = (at + len(closing) for at in range(step) if said[at : at + len(closing)] == closing)
        past = next((said[end:] for end in ends), None)
        return sure(thinking[min(step, len(thinking) - 1)] if past is None else [*told, END[0]][len(past)])

    return model_of(Engine(say))


def finished(events: Conversation) -> list[Event]:
    """All events of an answer."""
    with events:
        return list(events)


def tool(name: str, **properties: Any) -> dict[str, Any]:
    """A tool whose arguments are all required."""
    schema = {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}
    return {"type": "function", "function": {"name": name, "description": f"It does {name}.", "parameters": schema}}


ADD = tool("add", a={"type": "integer"}, b={"type": "integer"})
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>'
"""What a model says that calls it."""
