"""A device profile: what a machine has, as far as an artifact on it is concerned, every number with its source.

`read_device` is the one way from a file to a `Device`; `local.py` makes one of the machine it runs on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, Field, ValidationError
from pydantic_core import PydanticCustomError

from edgeship import yaml_source
from edgeship.encodings import WeightType
from edgeship.errors import DeviceError
from edgeship.fields import did_you_mean, explain, found
from edgeship.quant.mixes import MixName
from edgeship.yaml_model import NAME, AsTuple, Distinct, Frozen, Kind, Line, extended, load
from edgeship.yaml_source import Document, Problem

Os = Literal["linux", "macos", "windows", "android", "browser"]
Arch = Literal["aarch64", "x86_64", "wasm32"]
Isa = Literal["dotprod", "fp16", "i8mm", "sve", "avx2", "avx512", "vnni"]
EngineName = Literal["llamacpp", "ort"]

ISA: tuple[Isa, ...] = get_args(Isa)
"""Instruction sets that engines choose kernels by; `vnni` is AVX512-VNNI or AVX-VNNI, `fp16` arithmetic in float16."""

LOCAL = "local"
"""The name of the machine that the command runs on, which has no file."""

Short = Annotated[str, Field(min_length=1, max_length=60)]
Note = Annotated[Line, Field(min_length=1)]


def _form(pattern: str, example: str) -> AfterValidator:
    def check(value: str) -> str:
        if not re.fullmatch(pattern, value, re.ASCII):
            raise PydanticCustomError("form", "expected a value such as {example}", {"example": example})
        return value

    return AfterValidator(check)


Python = Annotated[Short, _form(r"3\.[0-9]{1,2}", "'3.11'")]
Tag = Annotated[Short, _form("[a-z][a-z0-9_]*", "manylinux_2_28_aarch64")]


class Cores(Frozen):
    """Cores of one kind."""

    kind: Short = Field(description="the core's name, such as Cortex-A76")
    count: int = Field(ge=1, le=1024, description="physical cores of the kind")
    mhz: int = Field(ge=100, le=10_000, description="clock under sustained load of all of them, in MHz")
    efficiency: bool = Field(default=False, description="small cores beside faster ones; estimates leave them out")


class Budgets(Frozen):
    """Limits an artifact should stay within."""

    ram_share: float = Field(gt=0, le=1, description="share of the RAM that the OS leaves which an artifact may take")
    min_decode: float | None = Field(default=None, gt=0, le=1e6, description="tokens/s below which it is too slow")


class Device(Frozen):
    """One machine, or one model of machine."""

    name: str = Field(pattern=NAME, description="the file's name without .yaml")
    description: Line = Field(default="", description="one line that says what the machine is")
    os: Os = Field(description="operating system")
    arch: Arch = Field(description="architecture of the system's user space")
    libc: Short | None = Field(default=None, description="the C library and its version, such as glibc 2.36")
    python: Annotated[tuple[Python, ...], AsTuple, Distinct] = Field(
        description="Python versions that bundles are made for; none for a browser"
    )
    cores: Annotated[tuple[Cores, ...], AsTuple] = Field(min_length=1, description="cores by kind, the fastest first")
    isa: Annotated[tuple[Isa, ...], AsTuple, Distinct] = Field(
        description="instruction sets that all cores have, of those that engines choose kernels by"
    )
    page_size: int = Field(ge=4096, le=1 << 16, description="bytes of a memory page")
    ram_mb: float = Field(gt=0, le=1e8, description="memory that the system sees, in MB of 10^6 bytes")
    os_mb: float = Field(ge=0, le=1e8, description="of that, what system and services hold, in MB")
    bandwidth_gbps: float = Field(
        gt=0, le=1e5, description="what all cores together read from memory, in GB of 10^9 bytes per second"
    )
    storage_mbps: float = Field(gt=0, le=1e6, description="sequential reading from storage, in MB per second")
    engines: Annotated[tuple[EngineName, ...], AsTuple, Distinct] = Field(
        min_length=1, description="engines that run there, the preferred first"
    )
    engines_reason: Note = Field(description="why that order, in one line")
    encodings: Annotated[tuple[Short, ...], AsTuple, Distinct] = Field(
        min_length=1, description="types that run well, as `scheme.body` or `scheme.mix` of a recipe, the best first"
    )
    wheel_tags: Annotated[tuple[Tag, ...], AsTuple, Distinct] = Field(
        description="platform tags of wheels that install there (pip --platform); empty where none are published"
    )
    budgets: Budgets = Field(description="limits an artifact should stay within")
    sources: dict[str, Note] = Field(description="by field, where its numbers come from; an estimate says so")

    @property
    def ram_bytes(self) -> int:
        return round(self.ram_mb * 1e6)

    @property
    def os_bytes(self) -> int:
        return round(self.os_mb * 1e6)

    @property
    def free_bytes(self) -> int:
        """RAM that the system leaves."""
        return max(0, self.ram_bytes - self.os_bytes)

    @property
    def budget_bytes(self) -> int:
        """RAM an artifact may take: the budget's share of what the system leaves."""
        return int(self.free_bytes * self.budgets.ram_share)

    @cached_property
    def working_cores(self) -> tuple[Cores, ...]:
        """The cores that set the pace: all but small ones, unless there are only those."""
        return tuple(c for c in self.cores if not c.efficiency) or self.cores

    def to_json(self) -> dict[str, Any]:
        """The profile as JSON values."""
        return self.model_dump(mode="json")


KIND = Kind("device", DeviceError, "edgeship devices", Device)

KEYS = ("extends", *(f for f in Device.model_fields if f != "name"))
"""The top-level keys of a profile's file."""

SOURCED = ("cores", "isa", "page_size", "ram_mb", "os_mb", "bandwidth_gbps", "storage_mbps", "budgets")
"""The fields that need an entry in `sources`."""


def read_device(path: Path, catalogue: Mapping[str, Path] | None = None) -> Device:
    """The device in a YAML file; `catalogue` is where `extends: name` looks, after the file's own directory.

    Raises DeviceError with every problem of the file and its line.
    """
    document = load(path, KIND)
    if not re.fullmatch(NAME, path.stem) or path.stem == LOCAL:
        text = f"the device is called {found(path.stem)} after its file; expected letters, digits, '.', '_' and '-'"
        text = "the name 'local' is that of the machine itself; rename the file" if path.stem == LOCAL else text
        document.problems.append(Problem(document.start, text))
    problems = list(document.problems)
    device = None
    if document.data is not None:
        document, whole = extended(document, path, catalogue or {}, problems, KIND)
        device = _validated(document, path.stem, problems)
        if not whole:  # what the base might hold is not missing
            problems = [p for p in problems if not p.text.startswith(("missing key", "sources: expected"))]
    if problems or device is None:
        count = "one problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise DeviceError(
            f"{path}: {count}; nothing was done.\n{yaml_source.show(problems)}",
            hint="the fields of a device: README.md, or `edgeship schema --devices` for an editor that completes them",
        )
    return device


def _validated(document: Document, name: str, problems: list[Problem]) -> Device | None:
    assert document.data is not None
    data = {k: v for k, v in document.data.items() if k != "extends"}
    if "name" in data:
        text = "unknown key 'name'; a device is called after its file"
        problems.append(Problem(document.place(("name",), key=True), text))
    problems += _unsourced(document)
    safe = name if re.fullmatch(NAME, name) else "device"  # the unsafe name is a problem already
    try:
        device = Device.model_validate(data | {"name": safe})
    except ValidationError as e:
        for error in e.errors(include_url=False):
            place = document.place(error["loc"], key=error["type"] == "extra_forbidden")
            problems.append(Problem(place, explain(Device, dict(error), KEYS)))
        return None
    problems += _unknown_encodings(device, document)
    problems += _not_of_its_system(device, document)
    if device.os_mb >= device.ram_mb:
        text = f"os_mb: expected less than ram_mb ({device.ram_mb:g}), found {device.os_mb:g}"
        problems.append(Problem(document.place(("os_mb",)), text))
    return device


def _unknown_encodings(device: Device, document: Document) -> list[Problem]:
    known = (*get_args(WeightType), *get_args(MixName))
    return [
        Problem(
            document.place(("encodings", i)),
            f"encodings[{i}]: no type is called {found(name)}{did_you_mean(name, known)}",
        )
        for i, name in enumerate(device.encodings)
        if name not in known
    ]


def _not_of_its_system(device: Device, document: Document) -> list[Problem]:
    """What a browser has and a machine with Python has not, and the other way round."""
    browser = device.os == "browser"
    wanted = {
        "arch": ("wasm32" if browser else "another than wasm32", browser == (device.arch == "wasm32")),
        "python": ("none" if browser else "at least one version", browser != bool(device.python)),
        "wheel_tags": ("none", not (browser and device.wheel_tags)),
    }
    return [
        Problem(document.place((name,)), f"{name}: expected {text} where os is {device.os}")
        for name, (text, good) in wanted.items()
        if not good
    ]


def _unsourced(document: Document) -> list[Problem]:
    """Numbers without a source, sources of nothing, and numbers laid over a base whose source was left standing."""
    assert document.data is not None
    sources = document.data.get("sources")
    if not isinstance(sources, dict):
        return []  # the model refuses that
    problems = []
    for field in SOURCED:
        if field not in document.data:
            continue
        place, written = document.place((field,), key=True), document.place(("sources", field), key=True)
        if field not in sources:
            text = f"sources: expected where {field!r} comes from, found nothing; an estimate is called 'estimate'"
            problems.append(Problem(place, text))
        elif place.source == document.source != written.source:
            text = f"sources: expected a source of its own for {field!r}, found that of the profile it extends"
            problems.append(Problem(place, text))
    for field in sources:
        if field not in Device.model_fields or field in ("name", "sources"):
            text = f"sources: no field is called {found(field)}{did_you_mean(field, SOURCED)}"
            problems.append(Problem(document.place(("sources", field), key=True), text))
    return problems
