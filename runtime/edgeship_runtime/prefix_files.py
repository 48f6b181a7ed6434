"""Engine states on disk: one to a file, and a folder of them for one artifact.

A file is not trusted beyond its digest: it is read whole, compared, and only then given to an engine. Layout,
little-endian: magic `EDGEPFX1`, uint32 size of the header, the header (JSON: key, tokens, size,
sha256 of the tokens as JSON and the state), the state.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from edgeship_runtime.errors import ArtifactError, ResourceError
from edgeship_runtime.strict import Fields, open_regular, parse_json

SUFFIX = ".prefix"
_MAGIC = b"EDGEPFX1"
_LEAD = struct.Struct("<8sI")
_MAX_HEADER = 16 << 20
_MAX_STATE = 1 << 40
_STALE = "it is made anew by saving it again; until then prompts are evaluated whole"


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
    state: bytes | bytearray


def common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens both begin with."""
    first, second = tuple(first), tuple(second)
    low, high = 0, min(len(first), len(second))
    if first[:high] == second[:high]:
        return high
    while high - low > 1:  # the first `low` agree, the first `high` do not; a loop over all takes milliseconds
        middle = (low + high) // 2
        low, high = (middle, high) if first[low:middle] == second[low:middle] else (low, middle)
    return low


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


@dataclass(frozen=True)
class _Header:
    """What a file says of itself, checked for form alone."""

    tokens: tuple[int, ...]
    size: int
    sha256: str
    start: int
    """Where the state begins."""


def _read_header(raw: bytes, path: Path, key: Key) -> _Header:
    """Read what a file begins with; raises ArtifactError when it is damaged or another's."""
    if len(raw) < _LEAD.size:
        raise _damaged(path, f"expected at least {_LEAD.size} bytes, found {len(raw)}")
    magic, length = _LEAD.unpack_from(raw)
    if magic != _MAGIC or length > len(raw) - _LEAD.size:
        raise _damaged(path, "it does not begin as a prefix file does")
    start = _LEAD.size + length
    top = Fields(parse_json(raw[_LEAD.size : start], str(path)), str(path), "", ("key", "tokens", "size", "sha256"))
    found = top.object("key", ("artifact", "engine", "layout"))
    for name, wanted in key.to_json().items():
        there = found.text(name, limit=1000)
        if there != wanted:
            raise ArtifactError(
                f"{path}: the prefix is stale: its {name} is {there[:100]!r}, expected {wanted[:100]!r}", hint=_STALE
            )
    tokens = top.integers("tokens", 0, (1 << 31) - 1, limit=1 << 24)
    return _Header(tokens, top.integer("size", 0, _MAX_STATE), top.text("sha256", limit=64), start)


def peek_tokens(path: Path, key: Key) -> tuple[int, ...]:
    """The tokens that a file says it holds, the state unread; raises ArtifactError as `load_prefix`."""
    with open_regular(path) as file:
        lead = file.read(_LEAD.size)
        size = _LEAD.unpack(lead)[1] if len(lead) == _LEAD.size else 0
        return _read_header(lead + file.read(min(size, _MAX_HEADER)), path, key).tokens


def load_prefix(path: Path, key: Key) -> Prefix:
    """Read a state and check all of it; raises ArtifactError when it is damaged or belongs to something else."""
    with open_regular(path) as file:
        try:
            lead = file.read(_LEAD.size)
            size = _LEAD.unpack(lead)[1] if len(lead) == _LEAD.size else 0
            header = _read_header(lead + file.read(min(size, _MAX_HEADER)), path, key)
            left = os.fstat(file.fileno()).st_size - header.start
            if left != header.size:
                raise _damaged(path, f"expected a state of {header.size} bytes, found {left}")
            state = file.read(left)
        except OSError as error:
            raise ArtifactError(f"{path}: cannot be read ({error})", hint=_STALE) from None
    if _digest(header.tokens, state) != header.sha256:
        raise _damaged(path, "the sha256 of tokens and state is another")
    return Prefix(header.tokens, state)


def _digest(tokens: Sequence[int], state: bytes | bytearray) -> str:
    digest = hashlib.sha256(json.dumps(list(tokens)).encode())
    digest.update(state)
    return digest.hexdigest()


def _damaged(path: Path, found: str) -> ArtifactError:
    return ArtifactError(f"{path}: not a whole prefix file: {found}", hint=_STALE)


class PrefixFolder:
    """The saved states of one artifact on one engine, at most `limit_bytes`, the longest unused removed first."""

    def __init__(self, directory: Path, key: Key, limit_bytes: int, report: Callable[[str], None]) -> None:
        """Read what is there; what is stale or damaged is removed and told to `report`. Raises ResourceError."""
        self._directory = directory
        self._key = key
        self._limit = limit_bytes
        self._report = report
        self._known: dict[tuple[int, ...], Path] = {}
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)  # what was said can be read out of a state
            for draft in directory.glob(".*.partial"):
                draft.unlink()
            found = sorted(directory.glob(f"*{SUFFIX}"), key=lambda path: path.stat().st_mtime)
        except OSError as error:
            raise ResourceError(f"{directory}: prefixes cannot be kept there ({error})") from None
        for path in found:
            try:
                self._known[peek_tokens(path, key)] = path
            except (ArtifactError, OSError) as error:
                self._remove(path, str(error))

    def __len__(self) -> int:
        return len(self._known)

    def longest(self, prompt: Sequence[int], limit: int) -> tuple[tuple[int, ...], int] | None:
        """Of the states of at most `limit` tokens the one that shares most with the prompt, and how many."""
        shares = [(common(tokens, prompt), tokens) for tokens in self._known if len(tokens) <= limit]
        shared, tokens = max(shares, default=(0, ()))
        return (tokens, shared) if shared else None

    def load(self, tokens: tuple[int, ...]) -> Prefix | None:
        """Read and check the state of one of the known tokens; None, and it is removed, when it cannot be used."""
        path = self._known[tokens]
        try:
            found = load_prefix(path, self._key)
        except MemoryError:
            return None  # there may be more of it next time
        except (ArtifactError, OSError) as error:
            del self._known[tokens]
            self._remove(path, str(error))
            return None
        with suppress(OSError):  # a disk that cannot be written: then it is as old as it was
            os.utime(path)
        if found.tokens != tokens:  # the file is another than the one that was looked at
            del self._known[tokens]
            return None
        return found

    def store(self, states: Iterable[Prefix]) -> None:
        """Write the states that are not there yet; what the disk does not take is told to `report`."""
        for prefix in states:
            if prefix.tokens in self._known or len(prefix.state) > self._limit:
                continue
            for tokens in [each for each in self._known if each == prefix.tokens[: len(each)]]:
                self._remove(self._known.pop(tokens))
            name = hashlib.sha256(json.dumps(prefix.tokens).encode()).hexdigest()[:24]
            path = self._directory / f"{name}{SUFFIX}"
            try:
                self._make_room(len(prefix.state) + _LEAD.size + 512 + 12 * len(prefix.tokens))  # its header, at most
                save_prefix(path, self._key, prefix)
            except (ResourceError, OSError) as error:
                self._report(str(error))
                return
            self._known[prefix.tokens] = path

    def _make_room(self, size: int) -> None:
        """Remove the longest unused until `size` bytes fit."""
        ages = sorted(self._known.items(), key=lambda item: item[1].stat().st_mtime if item[1].exists() else 0.0)
        used = sum(path.stat().st_size for _, path in ages if path.exists())
        for tokens, path in ages:
            if used + size <= self._limit:
                return
            used -= path.stat().st_size if path.exists() else 0
            del self._known[tokens]
            self._remove(path)

    def _remove(self, path: Path, reason: str = "") -> None:
        with suppress(OSError):
            path.unlink(missing_ok=True)
        if reason:
            self._report(reason)
