"""Checks the local files that a data set of a workflow names; nothing is downloaded here."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from glob import glob, has_magic
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from workflow_words import Findings, unknown

READERS = ("arrow", "csv", "json", "parquet", "text")  # of `datasets`, for files of these kinds
LOCAL = "local files go as data_name: json (or text, csv, parquet), data_files: FILE"


def check_files(params: dict[str, Any], findings: Findings) -> None:
    """The params of `huggingface_dataset`: data of this machine, which `datasets` can read, and its split."""
    name, files = params["data_name"], params.get("data_files")
    say = findings.problems.append
    where = "load_dataset_config"
    if name not in READERS and not (Path(name).is_absolute() and Path(name).exists()):
        say(f"{where}: data_name {name!r} would be downloaded, and exporters open no connection; {LOCAL}")
    elif name in READERS and files is None and params.get("data_dir") is None:
        say(f"{where}: expected data_files for data_name {name!r}, found none; {LOCAL}")
    base = Path(params.get("data_dir") or "/")
    if not base.is_dir():
        say(f"{where}: data_dir: no such directory: {base}")
        return
    listed = _flat(files)
    if listed is None:
        say(f"{where}: data_files {files!r}: expected a path, a list of them, or one for each split")
        return
    for each in listed:
        if "://" in each:
            say(f"{where}: data_files {each!r} would be downloaded, and exporters open no connection; {LOCAL}")
        elif not (glob(str(base / each), recursive=True) if has_magic(each) else (base / each).is_file()):
            say(f"{where}: data_files: no such file: {base / each}")
        elif (base / each).is_file() and not (base / each).stat().st_size:
            say(f"{where}: data_files: expected some text, found an empty file: {base / each}")
    if files is not None:
        splits = list(files) if isinstance(files, dict) else ["train"]
        split = str(params.get("split")).partition("[")[0]
        if params.get("split") is not None and "+" not in split and split not in splits:
            say(f"{where}: split {split!r} is not in data_files; say split: {splits[0]}")
    if find_spec("datasets") is None:
        say(f"{where}: {findings.lack('datasets')}; raw_dataset reads token ids without it")
    else:
        _check_keywords(params, findings)


def _flat(files: Any) -> list[str] | None:
    """The paths of `data_files`, or None where it has another form."""
    values = list(files.values()) if isinstance(files, dict) else [files]
    each = [path for value in values for path in (value if isinstance(value, list) else [value])]
    return [] if files is None else each if all(isinstance(path, str) and path for path in each) else None


def _check_keywords(params: dict[str, Any], findings: Findings) -> None:
    """Whatever else goes to `load_dataset`, which hands what it does not know to the reader of the files."""
    from datasets import load_dataset, load_dataset_builder
    from olive.data.component.load_dataset import huggingface_dataset

    known = set(inspect.signature(huggingface_dataset).parameters) | set(inspect.signature(load_dataset).parameters)
    known -= {"kwargs", "config_kwargs", "path", "name"}
    more = [key for key in params if key not in known]
    if not more or params["data_name"] not in READERS or findings.problems:
        return
    files = {"data_files": params.get("data_files"), "data_dir": params.get("data_dir")}
    reader = load_dataset_builder(params["data_name"], **files).config
    known |= set(vars(reader))
    for key in more:
        if key not in known:
            findings.problems.append("load_dataset_config: huggingface_dataset: " + unknown("param", key, known))


def check_dummy(params: dict[str, Any], findings: Findings) -> None:
    """The params of `dummy_dataset`, which is all ones."""
    findings.problems += [f"load_dataset_config: {each}" for each in _of_lists(params)]


def check_raw(params: dict[str, Any], findings: Findings) -> None:
    """The params of `raw_dataset`, which reads arrays out of a directory for each input."""
    problems = _of_lists(params)
    base = params["data_dir"]
    if not isinstance(base, str) or not Path(base).is_dir():
        problems.append(f"data_dir: no such directory: {base}")
    if not problems:
        problems += _of_arrays(params)
    findings.problems += [f"load_dataset_config: {each}" for each in problems]


def _of_lists(params: dict[str, Any]) -> list[str]:
    """Lists as long as each other, of what Olive reads there."""
    forms: dict[str, tuple[str, Callable[[Any], bool]]] = {
        "input_names": ("names", _is_text),
        "input_shapes": ("lists of sizes, such as [128]", _is_shape),
        "input_types": ("numpy's types, such as int64", _is_type),
        "input_dirs": ("directories in data_dir", _is_text),
    }
    problems = []
    names = params["input_names"]
    for key, (what, fits) in forms.items():
        value = params.get(key)
        if value is None:
            continue
        if not isinstance(value, list) or not value or not all(fits(each) for each in value):
            problems.append(f"{key} {value!r}: expected a list of {what}")
        elif isinstance(names, list) and len(value) != len(names):
            problems.append(f"{key}: expected one for each of the {len(names)} input_names, found {len(value)}")
    for key in ("input_suffix", "input_order_file", "annotations_file"):
        if params.get(key) is not None and not isinstance(params[key], str):
            problems.append(f"{key} {params[key]!r}: expected a text")
    return problems


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_shape(value: Any) -> bool:
    return isinstance(value, list) and all(type(each) is int and each > 0 for each in value)


def _is_type(value: Any) -> bool:
    try:
        return isinstance(value, str) and bool(np.dtype(value))
    except TypeError:
        return False


def _of_arrays(params: dict[str, Any]) -> list[str]:
    """The files themselves: the same in each input's directory, each of its input's size."""
    base, names = Path(params["data_dir"]), params["input_names"]
    for key in ("input_order_file", "annotations_file"):
        if params.get(key) and not (base / params[key]).is_file():
            return [f"{key}: no such file: {base / params[key]}"]
    directories = [base / each for each in params.get("input_dirs") or names]
    for directory in directories:
        if not directory.is_dir():
            return [f"expected a directory of files for each input, found none: {directory}"]
    if params.get("input_order_file"):
        files = (base / params["input_order_file"]).read_text(encoding="utf-8", errors="replace").split("\n")
        files = [each.strip() for each in files if each.strip()]
    else:
        files = sorted(path.name for path in directories[0].glob(f"*{params.get('input_suffix') or ''}"))
    if not files:
        return [f"expected files in {directories[0]}, found none"]
    types = params.get("input_types") or ["float32"] * len(names)
    for directory, shape, kind in zip(directories, params["input_shapes"], types, strict=True):
        size = math.prod(shape) * np.dtype(kind).itemsize
        for file in files:
            path = directory / file
            if not path.is_file():
                return [f"no such file: {path}"]
            if path.stat().st_size != size:
                found = path.stat().st_size
                return [
                    f"{path}: expected {size} bytes for {shape} of {kind}, found {found}; see input_shapes, input_types"
                ]
    return []
