"""The file of API keys: who may write to it, and what an editor leaves of it."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from edgeship_runtime.errors import UsageError
from edgeship_runtime.server.keys import digest, holder, new_key, read_keys


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")
@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_file_that_others_may_write_to_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "keys"
    new_key(path, "ann")
    path.chmod(mode)
    with pytest.raises(UsageError, match="others may write") as caught:
        read_keys(path)
    assert caught.value.hint == f"chmod 600 {path}"
    path.chmod(0o644)
    assert read_keys(path)


@pytest.mark.parametrize("end", ["", "\n", "\n\n", "\n# and a remark"])
def test_a_key_is_added_on_a_line_of_its_own(tmp_path: Path, end: str) -> None:
    path = tmp_path / "keys"
    path.write_text(f"ann {digest('one')}{end}")
    path.chmod(0o600)
    key = new_key(path, "bob")
    keys = read_keys(path)
    assert holder(keys, "one") == "ann"
    assert holder(keys, key) == "bob"


def test_keys_cannot_be_guessed(tmp_path: Path) -> None:
    keys = {new_key(tmp_path / "keys", "ann") for _ in range(100)}
    assert len(keys) == 100
    assert all(re.fullmatch(r"es-[\w-]{43}", key) for key in keys), "256 bits in base64"


def test_a_place_that_is_no_file(tmp_path: Path) -> None:
    for work in (read_keys, lambda path: new_key(path, "ann")):
        with pytest.raises(UsageError):
            work(tmp_path)
