"""How the files of an acceptance test are written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SCHEMA = 1


def write_file(file: Path, value: Any) -> Path:
    """Write a JSON value on one line; its directory is made where it is missing."""
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")
    return file
