"""Prefix cache: engine states of conversations that are over or wait, in memory and on disk.

A state is the KV cache of a run of tokens. A prompt that begins as one of them is evaluated from where they part, so
the second turn of a conversation costs its new tokens alone, whichever conversation the engine held in between.

A state file is not trusted beyond its digest: it is read whole, compared, and only then given to the engine. Layout,
little-endian: magic `EDGEPFX1`, uint32 size of the header, the header (JSON: key, tokens, size,
sha256 of the tokens as JSON and the state), the state.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from edgeship_runtime.engines import Engine
from edgeship_runtime.errors import ArtifactError, ContextError, EngineError, ResourceError, UsageError
from edgeship_runtime.files import describe_file
from edgeship_runtime.manifest import Manifest, manifest_json, model_path
from edgeship_runtime.strict import Fields, parse_json, read_bytes

if TYPE_CHECKING:
    from edgeship_runtime.model import Model

SUFFIX = ".prefix"
SHIPPED_SUFFIX = ".edgeship-prefix"
"""Of a prefix that lies beside an artifact's directory: its name with this."""
WORTH = 32
"""Tokens that must be won for a state to be saved or restored: evaluating fewer costs no more."""
_MAGIC = b"EDGEPFX1"
_LEAD = struct.Struct("<8sI")
_MAX_HEADER = 16 << 20
_MAX_STATE = 1 << 40
_STALE = "it is made anew by saving it again; until then prompts are evaluated whole"


@runtime_checkable
class Restorable(Protocol):
    """An engine whose KV cache can be taken out and put back."""

    def save(self) -> bytes:
        """The state of all tokens held; raises EngineError when there is none to be had."""

    def restore(self, state: bytes, tokens: Sequence[int]) -> None:
        """Hold `tokens` by the state they gave; raises EngineError, and holds nothing then, when it is another's."""


@dataclass(frozen=True)
class Key:
    """What a state belongs to; any difference makes it stale."""

    artifact: str
    """sha256 of the manifest, or of the model's file where there is none."""
    engine: str
    """Package and version."""
    layout: str
    """What else the state's bytes depend on: the engine's own word."""

    def to_json(self) -> dict[str, str]:
        """Plain values."""
        return {"artifact": self.artifact, "engine": self.engine, "layout": self.layout}


@dataclass(frozen=True)
class Prefix:
    """Tokens and the engine state they gave."""

    tokens: tuple[int, ...]
    state: bytes


def key_of(engine: Engine, directory: Path, manifest: Manifest) -> Key:
    """What states of this engine and artifact belong to; reads the model's file where no manifest has its digest."""
    if manifest.sealed:
        digest = hashlib.sha256(manifest_json(manifest)).hexdigest()
    else:
        digest = describe_file(model_path(directory, manifest)).sha256
    return Key(digest, engine.name, str(getattr(engine, "state_layout", "")))


def common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens both begin with."""
    count = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        count += 1
    return count


class PrefixCache:
    """States of several conversations within `limit_bytes`, the longest unused dropped first. Not thread-safe."""

    def __init__(self, limit_bytes: int) -> None:
        """Raises UsageError for a limit below 0."""
        if limit_bytes < 0:
            raise UsageError(f"a prefix cache of {limit_bytes} bytes was asked for; expected 0 or more")
        self._limit = limit_bytes
        self._states: OrderedDict[tuple[int, ...], bytes] = OrderedDict()
        self.used_bytes = 0
        """Of all states."""

    def __len__(self) -> int:
        return len(self._states)

    def put(self, prefix: Prefix) -> bool:
        """Keep a state; False when it alone is over the limit. States of what it begins with are no longer needed."""
        for tokens in [each for each in self._states if each == prefix.tokens[: len(each)]]:
            self._drop(tokens)
        if len(prefix.state) > self._limit:
            return False
        while self.used_bytes + len(prefix.state) > self._limit:
            self._drop(next(iter(self._states)))
        self._states[prefix.tokens] = prefix.state
        self.used_bytes += len(prefix.state)
        return True

    def find(self, prompt: Sequence[int]) -> tuple[Prefix, int] | None:
        """The state that shares most tokens with the prompt, and how many; None when none shares any."""
        best = max(self._states, key=lambda tokens: common(tokens, prompt), default=None)
        if best is None or not (shared := common(best, prompt)):
            return None
        self._states.move_to_end(best)
        return Prefix(best, self._states[best]), shared

    def clear(self) -> None:
        """Drop everything."""
        self._states.clear()
        self.used_bytes = 0

    def switch(self, engine: Engine, held: Sequence[int], prompt: Sequence[int]) -> list[int]:
        """Bring the engine, which holds `held`, to the state that serves the prompt best; return what it holds then.

        What it held is kept where another conversation would overwrite it. A state that the engine refuses is dropped.
        """
        here = common(held, prompt)
        found = self.find(prompt)
        better = found is not None and found[1] >= here + WORTH
        if isinstance(engine, Restorable) and len(held) - (0 if better else here) >= WORTH:
            with suppress(EngineError, MemoryError):  # without it that conversation is evaluated again
                self.put(Prefix(tuple(held), engine.save()))
        if not better or found is None:
            return list(held)
        try:
            restorable(engine).restore(found[0].state, found[0].tokens)
        except (EngineError, ContextError, MemoryError):
            if found[0].tokens in self._states:
                self._drop(found[0].tokens)
            engine.truncate(0)
            return []
        return list(found[0].tokens)

    def _drop(self, tokens: tuple[int, ...]) -> None:
        self.used_bytes -= len(self._states.pop(tokens))


def save_prefix(path: Path, key: Key, prefix: Prefix) -> None:
    """Write a state whole or not at all; raises ResourceError when the disk does not take it, and leaves no part."""
    members = {
        "key": key.to_json(),
        "tokens": list(prefix.tokens),
        "size": len(prefix.state),
        "sha256": _digest(prefix.tokens, prefix.state),
    }
    header = json.dumps(members, separators=(",", ":")).encode()
    draft = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with draft.open("wb") as file:
            file.write(_LEAD.pack(_MAGIC, len(header)) + header)
            file.write(prefix.state)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError as error:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        raise ResourceError(
            f"{path}: the prefix of {len(prefix.state) / 1e6:.1f} MB cannot be written ({error})",
            hint="free some space; nothing else depends on the file",
        ) from None


def load_prefix(path: Path, key: Key) -> Prefix:
    """Read a state and check all of it; raises ArtifactError when it is damaged or belongs to something else."""
    try:
        size = path.stat().st_size
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read ({error})", hint=_STALE) from None
    raw = read_bytes(path, size)
    if len(raw) < _LEAD.size:
        raise _damaged(path, f"expected at least {_LEAD.size} bytes, found {len(raw)}")
    magic, length = _LEAD.unpack_from(raw)
    if magic != _MAGIC or length > min(_MAX_HEADER, len(raw) - _LEAD.size):
        raise _damaged(path, "it does not begin as a prefix file does")
    start = _LEAD.size + length
    top = Fields(parse_json(raw[_LEAD.size : start], str(path)), str(path), "", ("key", "tokens", "size", "sha256"))
    found = top.object("key", ("artifact", "engine", "layout"))
    written = Key(*(found.text(name, limit=1000) for name in ("artifact", "engine", "layout")))
    for name, there in written.to_json().items():
        wanted = key.to_json()[name]
        if there != wanted:
            raise ArtifactError(
                f"{path}: the prefix is stale: its {name} is {there[:100]!r}, expected {wanted[:100]!r}", hint=_STALE
            )
    state = raw[start:]
    if len(state) != top.integer("size", 0, _MAX_STATE):
        raise _damaged(path, f"expected a state of {top.value('size')} bytes, found {len(state)}")
    tokens = top.integers("tokens", 0, (1 << 31) - 1, limit=1 << 24)
    if _digest(tokens, state) != top.text("sha256", limit=64):
        raise _damaged(path, "the sha256 of tokens and state is another")
    return Prefix(tokens, state)


def _digest(tokens: Sequence[int], state: bytes) -> str:
    digest = hashlib.sha256(json.dumps(list(tokens)).encode())
    digest.update(state)
    return digest.hexdigest()


def _damaged(path: Path, found: str) -> ArtifactError:
    return ArtifactError(f"{path}: not a whole prefix file: {found}", hint=_STALE)


def shipped_path(directory: Path) -> Path:
    """Where the prefix shipped with an artifact lies: beside its directory, whose files the manifest names."""
    return directory.with_name(directory.name + SHIPPED_SUFFIX)


def restorable(engine: Engine) -> Restorable:
    """The engine, as one whose state can be saved; raises EngineError for one that cannot."""
    if not isinstance(engine, Restorable):
        raise EngineError(f"{engine.name} cannot save its state", hint="prompts are evaluated whole")
    return engine


def remember(model: Model, limit_bytes: int) -> PrefixCache:
    """Give a model a cache of its own; the prefix shipped beside its artifact is in it, unless it is stale."""
    cache = PrefixCache(limit_bytes)
    path = shipped_path(model.directory)
    if path.is_file():
        with suppress(ArtifactError):  # stale or damaged: answers are the same without it, and only come later
            cache.put(load_prefix(path, key_of(model.engine, model.directory, model.manifest)))
    model.prefixes = cache
    return cache


def save_model_prefix(model: Model, path: Path) -> Prefix:
    """Write what the model's KV cache holds, between two answers; raises EngineError (nothing held), ResourceError."""
    prefix = Prefix(tuple(model._held), restorable(model.engine).save())
    save_prefix(path, key_of(model.engine, model.directory, model.manifest), prefix)
    return prefix
