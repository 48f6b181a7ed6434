"""Prompt to tokens to text: chat template, prefix reuse, sampling, stops, streaming.

with load("artifacts/tiny-int4") as model:
    for piece in model.stream([{"role": "user", "content": "Who are you?"}], max_tokens=100):
        print(piece.text, end="", flush=True)
"""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from edgeship_runtime.answer import Clock, FinishReason, Label, Piece, Result, Stats, Stream
from edgeship_runtime.chat import ChatTemplate
from edgeship_runtime.decode import Writer
from edgeship_runtime.engines import Engine
from edgeship_runtime.errors import ContextError, EdgeshipRuntimeError, TemplateError, UsageError
from edgeship_runtime.manifest import Manifest
from edgeship_runtime.prefix import WORTH, PrefixCache, restorable
from edgeship_runtime.prefix_files import Prefix, common
from edgeship_runtime.sampling import GenerationOptions, Guide, Sampler
from edgeship_runtime.strict import nearest
from edgeship_runtime.tokens import TextTokens

if TYPE_CHECKING:
    pass

Message = Mapping[str, Any]
Tool = Mapping[str, Any]
Prompt = str | Sequence[int] | Sequence[Message]
"""Raw text (no template), token ids, or messages for the chat template."""

_PREFILL = 512  # prompt tokens between looks at a cancellation, where the engine runs no fewer at once


class Model:
    """A loaded artifact and one conversation's KV cache. One answer at a time: a second one meanwhile is refused."""

    def __init__(
        self,
        engine: Engine,
        tokenizer: TextTokens,
        manifest: Manifest,
        template: ChatTemplate | EdgeshipRuntimeError | None = None,
        *,
        directory: Path | None = None,
        load_s: float = 0.0,
    ) -> None:
        """Put the parts together (`load` does); an error in place of the template is raised when one is needed."""
        self.engine = engine
        self.tokenizer = tokenizer
        self.manifest = manifest
        self.directory = directory or Path()
        self.load_s = load_s
        sampling = manifest.sampling
        self.defaults = GenerationOptions(**asdict(sampling))
        self._template = template
        self.prefixes: PrefixCache | None = None
        self._held: list[int] = []  # the tokens of the KV cache
        self._busy = threading.Lock()  # held for a whole answer
        self._running = threading.Lock()  # held while the engine works, so that it is not closed under its feet
        self._closed = False

    def lanes(self) -> list[Model]:
        """This model first, and one for each further sequence that its engine runs beside it; they share a cache."""
        engines: Sequence[Engine] = getattr(self.engine, "lanes", (self.engine,))
        found = [self]
        for engine in engines[1:]:
            lane = Model(engine, self.tokenizer, self.manifest, self._template, directory=self.directory)
            lane.prefixes = self.prefixes
            found.append(lane)
        return found

    def options(self, base: GenerationOptions | None = None, **overrides: Any) -> GenerationOptions:
        """`base` (the artifact's defaults when None) with some options replaced; raises UsageError."""
        for name in overrides:
            if name not in GenerationOptions.names():
                raise UsageError(f"there is no option {name!r}", hint=nearest(name, GenerationOptions.names()))
        return replace(base or self.defaults, **overrides)

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Tool] | None = None,
        enable_thinking: bool | None = None,
        add_generation_prompt: bool = True,
    ) -> str:
        """Text of a conversation by the checkpoint's template; raises TemplateError, also when it has none."""
        if isinstance(self._template, EdgeshipRuntimeError):
            raise self._template
        if self._template is None:
            raise TemplateError(
                f"{self.directory}: the artifact has no chat template", hint="give raw text instead of messages"
            )
        return self._template.render(messages, tools, enable_thinking, add_generation_prompt)

    def encode(
        self, prompt: Prompt, *, tools: Sequence[Tool] | None = None, enable_thinking: bool | None = None
    ) -> list[int]:
        """Token ids of a prompt; tools and enable_thinking are for messages only (UsageError otherwise)."""
        if not isinstance(prompt, str | bytes) and prompt and isinstance(prompt[0], Mapping):
            messages = cast(Sequence[Message], prompt)
            return self.tokenizer.encode(self.render(messages, tools=tools, enable_thinking=enable_thinking))
        if tools is not None or enable_thinking is not None:
            raise UsageError("tools and enable_thinking go with messages; the prompt is raw text or token ids")
        if isinstance(prompt, str):
            return self.tokenizer.encode(prompt, special=True)
        if isinstance(prompt, bytes) or not all(isinstance(each, int) for each in prompt):
            raise UsageError("expected a prompt of text, token ids (int), or messages (each a mapping)")
        return list(cast(Sequence[int], prompt))

    def stream(
        self,
        prompt: Prompt,
        options: GenerationOptions | None = None,
        *,
        tools: Sequence[Tool] | None = None,
        enable_thinking: bool | None = None,
        guide: Guide | None = None,
        **overrides: Any,
    ) -> Stream:
        """Answer a prompt piece by piece; the prompt and the options are checked before this returns.

        `guide` (fresh for each answer) forces and forbids tokens.

        Raises UsageError (options, prompt), TemplateError, ContextError (the prompt leaves no room for an answer);
        while iterating EngineError, and UsageError when another answer of this model is not finished.
        """
        start = time.perf_counter()
        self._check_open()
        chosen = self.options(options, **overrides)
        ids = self.encode(prompt, tools=tools, enable_thinking=enable_thinking)
        self._check_prompt(ids)
        sampler = Sampler(chosen, self.engine.vocab_size, ids, guide)
        cancelled = threading.Event()
        return Stream(self._answer(ids, chosen, sampler, cancelled, time.perf_counter() - start), cancelled)

    def generate(
        self,
        prompt: Prompt,
        options: GenerationOptions | None = None,
        *,
        tools: Sequence[Tool] | None = None,
        enable_thinking: bool | None = None,
        **overrides: Any,
    ) -> Result:
        """Answer a prompt; see `stream`."""
        stream = self.stream(prompt, options, tools=tools, enable_thinking=enable_thinking, **overrides)
        for _ in stream:
            pass
        return stream.result

    def generate_batch(
        self, prompts: Sequence[Prompt], options: GenerationOptions | None = None, **overrides: Any
    ) -> list[Result]:
        """Answer prompts, in their order; all are checked before the first is run. See `stream` and `lanes`."""
        from edgeship_runtime.talk.several import generate_batch

        return generate_batch(self, prompts, options, **overrides)

    def chat(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Tool] | None = None,
        enable_thinking: bool | None = None,
        **overrides: Any,
    ) -> Result:
        """Answer a conversation; what it shares with the one before is not evaluated again."""
        if isinstance(messages, str) or not all(isinstance(each, Mapping) for each in messages) or not messages:
            raise UsageError('expected messages: [{"role": "user", "content": "..."}]')
        return self.generate(messages, tools=tools, enable_thinking=enable_thinking, **overrides)

    def embed(self, texts: str | Sequence[str], *, batch_size: int | None = None) -> NDArray[np.float32]:
        """Vectors of texts, float32 [texts, size], each cut to the context; UsageError where the model embeds none.

        Texts are run 32 together, but one by one if int8 activations would share a range; `batch_size` chooses.
        """
        raise self._generates("embeds")

    def classify(self, texts: str | Sequence[str], *, batch_size: int | None = None) -> list[list[Label]]:
        """Labels of texts, the likeliest first, or the best for each token; UsageError where the model has none."""
        raise self._generates("classifies")

    def _generates(self, verb: str) -> UsageError:
        return UsageError(f"{self.manifest.name} generates text; it {verb} none")

    def forget(self) -> None:
        """Empty the KV cache, so that the next prompt is evaluated whole."""
        with _Exclusive(self._busy):
            self._check_open()
            self.engine.truncate(0)
            self._held = []

    @property
    def held(self) -> tuple[int, ...]:
        """The tokens of the KV cache."""
        return tuple(self._held)

    def hold(self, prefix: Prefix) -> None:
        """Bring the KV cache to a saved state, so that a prompt that begins as it does is not evaluated whole.

        Raises EngineError for a state of another model or an engine that takes none, ContextError for too long a one.
        """
        with _Exclusive(self._busy):
            self._check_open()
            self._held = []
            restorable(self.engine).restore(prefix.state, prefix.tokens)
            self._held = list(prefix.tokens)

    def keep(self) -> None:
        """Have the prefix cache keep what the KV cache holds, on disk where it has a folder; between two answers."""
        if self.prefixes is not None and not self._closed:
            self.prefixes.keep(self.engine, self._held)

    def close(self) -> None:
        """Free the model's memory; an unfinished stream ends with a UsageError. A second call does nothing."""
        with self._running:
            self.keep()
            self._closed = True
            self._held = []
            self.engine.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise UsageError("the model is closed", hint="load the artifact again")

    def _check_prompt(self, ids: Sequence[int]) -> None:
        if not ids:
            raise UsageError("the prompt is empty: it has no tokens", hint="give some text, or a message")
        if len(ids) >= self.engine.context:
            raise ContextError(
                f"the prompt has {len(ids)} tokens and the context is {self.engine.context}: no room for an answer",
                hint="load the artifact with a larger context, or shorten the conversation",
            )

    def _answer(
        self,
        prompt: list[int],
        options: GenerationOptions,
        sampler: Sampler,
        cancelled: threading.Event,
        spent: float,
    ) -> Generator[Piece, None, Result]:
        """Generate; `spent` seconds went by before, on template and tokenizer."""
        with _Exclusive(self._busy):
            clock = Clock()
            cached = self._reuse(prompt)
            logits = self._prefill(prompt[cached:], cancelled)
            token = -1 if logits is None else sampler.choose(logits)
            prefill = clock.lap()
            writer = Writer(self.tokenizer.detokenizer(), options.stop)
            ends = () if options.ignore_eos else self.manifest.model.eos_token_ids
            room = self.engine.context - len(prompt)
            limit = min(options.max_tokens or room, room)
            finish: FinishReason | None = "cancelled" if logits is None else None
            decode, steps = 0.0, 0
            while finish is None:
                if token in ends:
                    finish = "stop"
                else:
                    writer.push(token)
                    if writer.stopped:
                        finish = "stop"
                    elif len(writer.tokens) == limit:
                        finish = "length" if limit == options.max_tokens else "context"
                if finish is None and cancelled.is_set():
                    finish = "cancelled"
                if finish is None:
                    if writer.ready:
                        decode += clock.lap()
                        yield Piece(*writer.take())
                        clock.lap()
                        if cancelled.is_set():
                            finish = "cancelled"
                            break
                    token = sampler.choose(self._evaluate([token]))
                    steps += 1
            writer.finish()
            decode += clock.lap()
            if writer.ready or writer.waiting:
                yield Piece(*writer.take())
            stats = Stats(len(prompt), cached, len(writer.tokens), spent + prefill, prefill, decode, steps)
            return Result(writer.text, tuple(writer.tokens), finish, writer.stop_string, stats)

    def _reuse(self, prompt: Sequence[int]) -> int:
        """Cut the KV cache to what it shares with the prompt, less the last token, whose logits are needed."""
        if self.prefixes is not None:
            with self._running:
                self._check_open()
                before, self._held = self._held, []  # an interrupt leaves the engine in no known state
                self._held = self.prefixes.switch(self.engine, before, prompt[:-1])
                self._share(prompt[:-1])
        shared = common(self._held, prompt[:-1])
        self.engine.truncate(shared)
        del self._held[shared:]
        return shared

    def _share(self, prompt: Sequence[int]) -> None:
        """Hold what another sequence of the engine holds of the prompt, where that is worth it."""
        if hasattr(self.engine, "share"):
            here, self._held = self._held, []
            taken = self.engine.share(prompt, common(here, prompt) + WORTH)
            self._held = list(prompt[:taken]) if taken else here

    def _prefill(self, tokens: Sequence[int], cancelled: threading.Event) -> NDArray[np.float32] | None:
        """Evaluate a prompt's tokens part by part; None when cancelled between two of them."""
        logits: NDArray[np.float32] | None = None
        size = min(_PREFILL, getattr(self.engine, "chunk", _PREFILL))
        for start in range(0, len(tokens), size):
            if cancelled.is_set():
                return None
            logits = self._evaluate(tokens[start : start + size])
        return logits

    def _evaluate(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        with self._running:
            self._check_open()
            try:
                logits = self.engine.evaluate(tokens)
            except BaseException:  # an interrupt too: the engine may have taken some of the tokens
                self._held = [*self._held, *tokens][: self.engine.length]
                raise
            self._held.extend(tokens)
            return logits


class _Exclusive:
    """Holds the model for one answer, or refuses."""

    def __init__(self, lock: threading.Lock) -> None:
        self._lock = lock

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            raise UsageError(
                "the model is still busy with another answer",
                hint="read that stream to its end or close() it first; for answers in parallel load the model twice",
            )

    def __exit__(self, *_: object) -> None:
        self._lock.release()
