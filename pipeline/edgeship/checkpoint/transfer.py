"""What the hub modules share: the shape of their arguments, retries, hashes and the errors they have in common."""

from __future__ import annotations

import errno
import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from edgeship.errors import EdgeshipError, ResourceError, SourceError

Want = Literal["config", "all"]
Progress = Callable[[str, int, int], None]
"""Called with a file's name, the bytes it has, and the bytes it will have."""

ATTEMPTS = 5  # in a row without a byte gained; huggingface_hub's and modelscope's own clients use the same
FIRST_PAUSE = 1.0  # seconds; doubles with every attempt
BLOCK = 1 << 20
ALTERED = "run the same command again; if it happens twice, a proxy or mirror on the way alters files"


def no_progress(file: str, done: int, total: int) -> None:
    """For callers that do not watch."""


def pause(attempt: int) -> None:
    """Wait before attempt `attempt` (1, 2, ...) at the same request."""
    time.sleep(FIRST_PAUSE * 2 ** (attempt - 1))


def offline() -> bool:
    """Whether HF_HUB_OFFLINE asks that no hub be contacted."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def sha256_of(path: Path) -> str:
    """The sha256 of a file's content, in hex."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def wrong_hash(place: str, file: str, expected: str, found: str) -> SourceError:
    """The error for a file whose content is not what the hub announced; it has been removed."""
    return SourceError(
        f"{place}: {file}: expected content with sha256 {expected}, received {found}. The file was removed.",
        hint=ALTERED,
    )


def unreachable(place: str, reason: str) -> SourceError:
    """The error for a hub that does not answer while the cache does not hold what is needed."""
    return SourceError(
        f"{place}: cannot be reached ({reason}), and the cache does not hold all of it.",
        hint="check the network, proxy and certificates; or download the checkpoint elsewhere and pass its directory "
        "with --checkpoint",
    )


def not_cached(place: str) -> SourceError:
    """The error for offline mode without the files."""
    return SourceError(
        f"{place}: HF_HUB_OFFLINE is set, and the cache does not hold all of it.",
        hint="unset HF_HUB_OFFLINE to download it, or pass a directory with --checkpoint",
    )


def storage_error(error: OSError, place: str, directory: Path) -> EdgeshipError:
    """The error for a cache directory that cannot take the download."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ResourceError(
            f"{place}: the disk of {directory} is full. What was downloaded so far is kept.",
            hint="free some space, or move the cache (HF_HOME, MODELSCOPE_CACHE) to another disk, and run it again",
        )
    return ResourceError(
        f"{place}: {directory} cannot be written: {error.strerror or error}.",
        hint="check the rights of the cache directory, or move it (HF_HOME, MODELSCOPE_CACHE)",
    )
