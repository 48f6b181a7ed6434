"""The local paths in an Olive workflow: absolute where it is read, and mere names where it is kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Block = dict[str, Any]
Change = Callable[[str], str]

SCRIPTS = ("user_script", "script_dir")
SOURCE = "load_dataset_config"


def of_data(config: Block, change: Change) -> Block:
    """A data set with its paths changed. Files beside a `data_dir` are relative to that."""
    config = _of_keys(config, SCRIPTS, change)
    source = config.get(SOURCE)
    if not isinstance(source, dict):
        return config
    params = source["params"] if isinstance(source.get("params"), dict) else {}
    keys = ("data_files",) if source.get("data_dir", params.get("data_dir")) is None else ("data_dir",)
    inner = {"params": _of_keys(params, keys, change)} if params else {}
    return config | {SOURCE: _of_keys(source, keys, change) | inner}


def of_pass(given: Block, change: Change) -> Block:
    """A pass with its paths changed, those of data sets that it says in place included."""
    given = _of_keys(given, SCRIPTS, change)
    inline = {key: value for key, value in given.items() if key.endswith("data_config") and isinstance(value, dict)}
    return given | {key: of_data(value, change) for key, value in inline.items()}


def _of_keys(block: Block, keys: tuple[str, ...], change: Change) -> Block:
    return block | {key: _changed(block[key], change) for key in keys if key in block}


def _changed(value: Any, change: Change) -> Any:
    """A path, several, or one for each split; addresses stay, as does what is no path at all."""
    if isinstance(value, list):
        return [_changed(each, change) for each in value]
    if isinstance(value, dict):
        return {key: _changed(each, change) for key, each in value.items()}
    return change(value) if isinstance(value, str) and "://" not in value else value
