"""What a page sends after it verified and measured, as a report: read as strictly as what a board says."""

from __future__ import annotations

import json
from typing import Any

from edgeship.errors import HostError
from edgeship.ship.report import Board, Check, Done, Report, line, now
from edgeship.ship.verdict import judge, read_sample, read_verify
from edgeship.ship.web_site import Site
from edgeship_runtime.errors import EdgeshipRuntimeError
from edgeship_runtime.strict import Fields, parse_json

SCHEMA = 1
MAX_RESULT = 1 << 18
"""Bytes; a page sends some ten thousand."""

_MEMBERS = ("schema", "device", "name", "engine", "digest", "browser", "verify", "bench")
_BROWSER = ("user_agent", "platform", "cores", "memory_gb", "isolated", "backend", "threads", "adapter")
_WHERE = "the result"
_SOFTWARE = ("swiftshader", "llvmpipe", "lavapipe", "warp", "basic render")
"""In the names of graphics adapters that are programs: their speed says nothing about a phone's."""


def read_result(raw: bytes, site: Site, host: str) -> Report:
    """The report of a page's result, sent from `host`; raises HostError with the first member that is wrong."""
    try:
        return _read(raw, site, host)
    except EdgeshipRuntimeError as error:
        raise HostError(error.message, hint=_HINT) from None


_HINT = "the page and the bundle are of different versions: reload the page while it is online"


def _read(raw: bytes, site: Site, host: str) -> Report:
    top = Fields(parse_json(raw, _WHERE), _WHERE, "", _MEMBERS)
    top.integer("schema", SCHEMA, SCHEMA)
    wanted = {
        "device": site.device.name,
        "name": site.artifact,
        "engine": site.manifest.format,
        "digest": site.site_digest,
    }
    for name, expected in wanted.items():
        top.text(name, choices=(expected,))
    if "verify" not in top:
        raise HostError("the result has a measurement and no verdict.", hint="verify in the page first, then send")
    browser = top.object("browser", _BROWSER)
    verify = _bytes(top, "verify")
    checks, agreement = read_verify(verify)
    samples = [read_sample(_bytes(top, "bench"), 0.0, "")] if "bench" in top else []
    board = _board(browser)
    checks += [*judge(samples, site.device, site.manifest, board.emulated), *_kernels(top)]
    passed = all(check.passed is not False for check in checks)
    return Report(
        time=now(),
        device=site.device.name,
        host=line(host),
        artifact=site.artifact,
        format="gguf" if site.manifest.format == "gguf" else "onnx",
        engine=site.engine,
        digest=site.artifact_digest[:12],
        verdict="pass" if passed else "fail",
        checks=tuple(checks),
        steps=_steps(top),
        board=board,
        agreement=agreement,
        samples=tuple(samples),
        notes=_notes(browser),
    )


def _bytes(top: Fields, name: str) -> bytes:
    value: Any = top.mapping(name, 64)
    return json.dumps(value).encode()


def _kernels(top: Fields) -> list[Check]:
    verify = top.object("verify", (), open=True)
    if "agreement" not in verify:
        return []
    told = verify.object("agreement", ("engine", "kernels"), open=True)
    found = f"{told.text('engine')}, {told.text('kernels')}"
    return [Check(name="kernels", passed=None, found=line(found))]


def _steps(top: Fields) -> tuple[Done, ...]:
    verify = top.object("verify", ("seconds", "verdict"), open=True)
    return (Done(name="verify", seconds=verify.number("seconds", 0, 1e9), said=line(verify.text("verdict"))),)


def _board(browser: Fields) -> Board:
    memory = browser.number("memory_gb", 0, 1e6) if "memory_gb" in browser else None
    adapter = line(browser.text("adapter")) if "adapter" in browser else ""
    software = browser.text("backend") == "webgpu" and any(name in adapter.lower() for name in _SOFTWARE)
    return Board(
        system=line(browser.text("platform", empty=True)),
        arch="wasm32",
        cpu=line(browser.text("user_agent")),
        model=adapter,
        ram_mb=None if memory is None else memory * 1000,
        emulated=f"WebGPU in software, {adapter}" if software else "",
    )


def _notes(browser: Fields) -> tuple[str, ...]:
    cores, threads = browser.integer("cores", 0, 1 << 20), browser.integer("threads", 0, 1 << 20)
    backend = browser.text("backend", choices=("wasm", "webgpu"))
    shared = "" if browser.flag("isolated") else "; no shared memory, so one thread"
    return (line(f"measured in a browser: {backend}, {threads} of {cores} threads{shared}"),)
