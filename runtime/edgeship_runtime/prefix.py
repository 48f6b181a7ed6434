"""Prefix cache: engine states of conversations that are over or wait, in memory and on disk.

A state is the KV cache of a run of tokens. A prompt that begins as one of them is evaluated from where they part, so
the second turn of a conversation costs its new tokens alone, whichever conversation the engine held in between.
"""

from __future__ import annotations

import glob
import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from edgeship_runtime.engines import Engine
from edgeship_runtime.errors import ArtifactError, ContextError, EngineError, UsageError
from edgeship_runtime.files import describe_file
from edgeship_runtime.manifest import Manifest, manifest_json
from edgeship_runtime.prefix_files import Key, Prefix, PrefixFolder, common, load_prefix, save_prefix

if TYPE_CHECKING:
    from edgeship_runtime.model import Model

SHIPPED_SUFFIX = ".edgeship-prefix"
"""Of a prefix that lies beside an artifact's directory: its name with this."""
WORTH = 32
"""Tokens that must be won for a state to be saved or restored: evaluating fewer costs no more."""
MOST_STATES = 16
"""Conversations kept in memory: a small model's states are small, and each is looked at for every prompt."""


class Restorable(Protocol):
    """An engine whose KV cache can be taken out and put back."""

    def save(self) -> bytes | bytearray:
        """The state of all tokens held; raises EngineError when there is none to be had."""

    def restore(self, state: bytes | bytearray, tokens: Sequence[int]) -> None:
        """Hold `tokens` by the state they gave; raises EngineError, and holds nothing then, when it is another's."""


def key_of(engine: Engine, directory: Path, manifest: Manifest) -> Key:
    """What states of this engine and artifact belong to; reads all files where no manifest has their digests."""
    if manifest.sealed:
        digest = hashlib.sha256(manifest_json(manifest)).hexdigest()
    else:
        listed = "".join(f"{path.name} {describe_file(path).sha256}\n" for path in _unsealed_files(directory))
        digest = hashlib.sha256(listed.encode()).hexdigest()
    return Key(digest, engine.name, str(getattr(engine, "state_layout", "")))


def _unsealed_files(directory: Path) -> list[Path]:
    """The files of an artifact without a manifest: those in its directory, or a GGUF file with all its parts."""
    if directory.is_dir():
        return sorted(path for path in directory.iterdir() if path.is_file())
    name, part, rest = directory.name.partition("-00001-of-")
    return sorted(directory.parent.glob(f"{glob.escape(name)}-?????-of-{glob.escape(rest)}")) if part else [directory]


class PrefixCache:
    """States of several conversations within `limit_bytes`, the longest unused dropped first; safe in threads.

    With a folder, what is asked for and not in memory is read from it, and `keep` writes what is in memory to it.
    """

    def __init__(self, limit_bytes: int, folder: PrefixFolder | None = None) -> None:
        """Raises UsageError for a limit below 0."""
        if limit_bytes < 0:
            raise UsageError(f"a prefix cache of {limit_bytes} bytes was asked for; expected 0 or more")
        self._limit = limit_bytes
        self._folder = folder
        self._states: OrderedDict[tuple[int, ...], bytes | bytearray] = OrderedDict()
        self._lock = threading.RLock()
        self.used_bytes = 0
        """Of all states."""

    def __len__(self) -> int:
        return len(self._states)

    def put(self, prefix: Prefix) -> bool:
        """Keep a state; False when it alone is over the limit. States of what it begins with are no longer needed."""
        with self._lock:
            if len(prefix.state) > self._limit:
                return False
            for tokens in [each for each in self._states if each == prefix.tokens[: len(each)]]:
                self._drop(tokens)
            while len(self) >= MOST_STATES or self.used_bytes + len(prefix.state) > self._limit:
                self._drop(next(iter(self._states)))
            self._states[prefix.tokens] = prefix.state
            self.used_bytes += len(prefix.state)
            return True

    def find(self, prompt: Sequence[int]) -> tuple[Prefix, int] | None:
        """The state that shares most tokens with the prompt, and how many; None when none shares any."""
        with self._lock:
            best = max(self._states, key=lambda tokens: common(tokens, prompt), default=None)
            if best is None or not (shared := common(best, prompt)):
                return None
            self._states.move_to_end(best)
            return Prefix(best, self._states[best]), shared

    def clear(self) -> None:
        """Drop everything from memory."""
        with self._lock:
            self._states.clear()
            self.used_bytes = 0

    def keep(self, engine: Engine, held: Sequence[int]) -> None:
        """Write what is in memory, and what the engine holds, to the folder where there is one."""
        if self._folder is None:
            return
        if len(held) >= WORTH:
            self._take(engine, held)
        with self._lock:
            self._folder.store([Prefix(*state) for state in self._states.items()])

    def switch(self, engine: Engine, held: Sequence[int], prompt: Sequence[int]) -> list[int]:
        """Bring the engine, which holds `held`, to the state that serves the prompt best; return what it holds then.

        What it held is kept where another conversation would overwrite it. A state that the engine refuses is dropped.
        """
        here = common(held, prompt)
        with self._lock:
            found = self._best(prompt, here, engine.context)
        better = found is not None and found[1] >= here + WORTH
        if len(held) - (0 if better else here) >= WORTH:
            self._take(engine, held)
        if not better or found is None:
            return list(held)
        try:
            restorable(engine).restore(found[0].state, found[0].tokens)
        except (EngineError, ContextError, MemoryError):
            with self._lock:
                if found[0].tokens in self._states:
                    self._drop(found[0].tokens)
            engine.truncate(0)
            return []
        return list(found[0].tokens)

    def _take(self, engine: Engine, held: Sequence[int]) -> None:
        """Keep what the engine holds; without it that conversation is evaluated again."""
        if can_restore(engine):
            with suppress(EngineError, MemoryError):
                self.put(Prefix(tuple(held), restorable(engine).save()))

    def _best(self, prompt: Sequence[int], here: int, context: int) -> tuple[Prefix, int] | None:
        """The best state in memory, or on disk where that wins as many tokens as reading it is worth."""
        found = self.find(prompt)
        there = None if self._folder is None else self._folder.longest(prompt, context)
        if self._folder is None or there is None or there[1] < max(here, found[1] if found else 0) + WORTH:
            return found
        loaded = self._folder.load(there[0])
        if loaded is None:
            return found
        self.put(loaded)
        return loaded, there[1]

    def _drop(self, tokens: tuple[int, ...]) -> None:
        self.used_bytes -= len(self._states.pop(tokens))


def can_restore(engine: Engine) -> bool:
    """Whether an engine, or what it is wrapped in, gives out its state and takes it back."""
    return hasattr(engine, "save") and hasattr(engine, "restore")


def restorable(engine: Engine) -> Restorable:
    """The engine, as one whose state can be saved; raises EngineError for one that cannot."""
    if not can_restore(engine):
        raise EngineError(f"{engine.name} cannot save its state", hint="prompts are evaluated whole")
    return cast(Restorable, cast(Any, engine))


def shipped_path(directory: Path) -> Path:
    """Where the prefix shipped with an artifact lies: beside its directory, whose files the manifest names."""
    return directory.with_name(directory.name + SHIPPED_SUFFIX)


def remember(
    model: Model,
    limit_bytes: int,
    directory: Path | None = None,
    report: Callable[[str], None] = lambda _: None,
    *,
    disk_bytes: int | None = None,
) -> PrefixCache:
    """Give a model a cache of its own, kept in a folder under `directory` beyond this process where one is given.

    `disk_bytes`: of the folder at most, `limit_bytes` when None; `report` hears of files that are stale, damaged or
    cannot be written. Raises UsageError for a limit below 0, ResourceError for a directory that cannot be had.
    """
    folder = None
    if directory is not None:
        place = hashlib.sha256(str(model.directory.resolve()).encode()).hexdigest()[:16]
        key = key_of(model.engine, model.directory, model.manifest)
        folder = PrefixFolder(directory / place, key, limit_bytes if disk_bytes is None else disk_bytes, report)
    model.prefixes = PrefixCache(limit_bytes, folder)
    return model.prefixes


def resume(model: Model, path: Path | None = None) -> bool:
    """Have a model hold the state of a file; with None that shipped with its artifact, where there is one that fits.

    Raises ArtifactError (damaged, stale, another artifact's), ContextError, EngineError for a file that was named.
    """
    shipped = shipped_path(model.directory)
    if path is None and not shipped.is_file():
        return False
    try:
        prefix = load_prefix(path or shipped, key_of(model.engine, model.directory, model.manifest))
        model.hold(prefix)
    except (ArtifactError, ContextError, EngineError, MemoryError):
        if path is not None:
            raise
        return False  # answers are the same without it, and only come later
    return True


def save_model_prefix(model: Model, path: Path) -> Prefix:
    """Write what the model's KV cache holds, between two answers; raises EngineError (nothing held), ResourceError."""
    prefix = Prefix(tuple(model.held), restorable(model.engine).save())
    save_prefix(path, key_of(model.engine, model.directory, model.manifest), prefix)
    return prefix
