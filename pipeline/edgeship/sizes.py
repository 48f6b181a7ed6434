"""Sizes as people write and read them: `600MB`, `1.5GiB`."""

from __future__ import annotations

import re

from edgeship.errors import UsageError

UNITS = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 1 << 10,
    "mib": 1 << 20,
    "gib": 1 << 30,
    "tib": 1 << 40,
}
_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?) ?([a-z]*)", re.IGNORECASE | re.ASCII)


def parse_size(text: str, option: str = "size") -> int:
    """Bytes in a size such as `600MB` or `1.5GiB` (`k`, `M`, `G` mean powers of 1000); raises UsageError."""
    match = _SIZE.fullmatch(text.strip())
    unit = match[2].lower() if match else ""
    unit = unit + "b" if unit in ("k", "m", "g", "t") else unit
    if match is None or unit not in UNITS:
        raise UsageError(
            f"{option}: expected a size such as 600MB or 1.5GiB, found {text[:40]!r}.",
            hint="units: B, KB, MB, GB, TB (powers of 1000) and KiB, MiB, GiB, TiB (powers of 1024)",
        )
    size = int(float(match[1]) * UNITS[unit])
    if size <= 0:
        raise UsageError(f"{option}: expected a size above zero, found {text!r}.", hint="write for example 600MB")
    return size


def format_size(size: float) -> str:
    """A size in bytes, in the largest decimal unit that leaves at least one digit before the point: `1.10 GB`."""
    for unit in ("TB", "GB", "MB", "KB"):
        if abs(size) >= 0.9995 * UNITS[unit.lower()]:
            value = size / UNITS[unit.lower()]
            digits = 0 if abs(value) >= 99.95 else 1 if abs(value) >= 9.995 else 2
            return f"{value:.{digits}f} {unit}"
    return f"{size:.0f} B"


def format_count(number: int) -> str:
    """A number of weights as model names write it: `494M`, `1.54B`."""
    for unit, size in (("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if number >= 0.9995 * size:
            value = number / size
            return f"{value:.{0 if value >= 99.5 else 1 if value >= 9.95 else 2}f}{unit}"
    return str(number)
