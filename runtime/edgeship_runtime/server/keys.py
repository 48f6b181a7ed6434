"""API keys: made at random, kept as SHA-256 in a file of lines `NAME HASH`, compared in constant time.

A key has 256 random bits, so a slow hash would protect nothing that a fast one does not.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path

from edgeship_runtime.errors import UsageError

_LINE = re.compile(r"([A-Za-z0-9._-]{1,64}) ([0-9a-f]{64})")
_MAX_BYTES = 1 << 20


def digest(key: str) -> str:
    """SHA-256 of a key in hexadecimal."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def holder(keys: Mapping[str, str], key: str) -> str | None:
    """Name of the key's holder, None when there is none; takes as long whichever key is given."""
    wanted, found = digest(key), None
    for known, name in keys.items():
        if hmac.compare_digest(known, wanted):
            found = name
    return found


def read_keys(path: Path) -> dict[str, str]:
    """Hash to name of all keys in a file; raises UsageError for a file that is not one of keys."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            lines = file.read(_MAX_BYTES).decode("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read as API keys ({error})", hint="--new-key NAME makes one") from None
    if os.name == "posix" and mode & 0o022:
        raise UsageError(f"{path}: others may write to it, and so let themselves in", hint=f"chmod 600 {path}")
    keys: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None:
            raise UsageError(f"{path}:{number}: expected NAME and a SHA-256 in hexadecimal")
        keys[match[2]] = match[1]
    if not keys:
        raise UsageError(f"{path}: holds no key", hint="--new-key NAME makes one")
    return keys


def new_key(path: Path, name: str) -> str:
    """Make a key, add its hash to the file (readable by its owner alone) and return it; raises UsageError."""
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", name):
        raise UsageError(f"--new-key: expected 1 to 64 letters, digits, dots or dashes, found {name!r}")
    key = f"es-{secrets.token_urlsafe(32)}"
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(handle, "r+b") as file:
            if file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
                line = b"" if file.read(1) == b"\n" else b"\n"  # an editor may have left the last line open
            else:
                line = b""
            file.write(line + f"{name} {digest(key)}\n".encode())
    except OSError as error:
        raise UsageError(f"{path}: the key cannot be kept ({error})") from None
    return key
