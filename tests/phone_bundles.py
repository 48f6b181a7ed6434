"""Bundles for a phone whose runner is a script: it says what the real one says, and no phone is needed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bundles import PIP, write_fake_wheel
from edgeship import catalog
from edgeship.progress import Silent
from edgeship.ship import android_runner, wheels
from edgeship.ship.bundle import make_bundle
from edgeship.ship.making import Bundle

PHONE = catalog.find_device("android-flagship")
DOCTOR = {
    "schema": 1,
    "device": {
        "model": "Phone",
        "isa": ["dotprod", "fp16"],
        "ram_bytes": 8_000_000_000,
        "ram_free_bytes": 4_000_000_000,
    },
    "engines": {"llamacpp": {"version": "0.3.36", "state": "ok", "detail": "", "kernels": "dotprod"}},
    "findings": [],
}
VERIFY = {
    "verdict": "pass",
    "intact": True,
    "templates": None,
    "tokens": {"cases": 3, "equal": 3},
    "agreement": {"positions": 9, "equal": 9, "near_ties": 0, "wrong": 0, "max_logit_error_std": 0.01},
    "skipped": ["templates"],
    "failures": [],
}
BENCH = {
    "load_s": 0.5,
    "ttft_s": 0.2,
    "prefill_tokens_per_s": 40.0,
    "decode_tokens_per_s": 12.0,
    "peak_rss_mb": 100.0,
    "prompt_tokens": 8,
    "decode_tokens": 4,
    "threads": 4,
}
_RUNNER = """#!/bin/sh
case $1 in
  doctor) cat <<'END'
@DOCTOR@
END
  exit @UNFIT@ ;;
  verify) cat <<'END'
@VERIFY@
END
  exit @CODE@ ;;
  bench) cat <<'END'
@BENCH@
END
  ;;
esac
"""


def write_runner(path: Path, **answers: Any) -> None:
    """A script in the place of the runner; `doctor`, `verify`, `bench`, `code` and `unfit` change what it says."""
    told = {"doctor": DOCTOR, "verify": VERIFY, "bench": BENCH} | answers
    text = _RUNNER.replace("@CODE@", str(answers.get("code", 0))).replace("@UNFIT@", str(answers.get("unfit", 0)))
    for name in ("doctor", "verify", "bench"):
        text = text.replace(f"@{name.upper()}@", json.dumps(told[name]))
    path.write_text(text)
    path.chmod(0o755)


def make_phone_bundle(
    artifact: Path | None, folder: Path, monkeypatch: pytest.MonkeyPatch, extra: str = "", **answers: Any
) -> Bundle:
    """A bundle for a phone, its wheels stand-ins; `extra`: the tag of one with compiled code among them."""
    programs = folder / "programs"
    programs.mkdir(parents=True)
    write_runner(programs / "edgeship-runner", **answers)
    (programs / "LICENSES.txt").write_text("MIT\n")
    found = SimpleNamespace(files={path.name: path for path in programs.iterdir()})

    def collect(target: wheels.Target, into: Path, **_: object) -> None:
        modules = {"edgeship_runtime/__init__.py": "", "edgeship_runtime/model.py": "import numpy\n"}
        write_fake_wheel(into, "edgeship_runtime", modules)
        write_fake_wheel(into, "jinja2", {"jinja2/__init__.py": ""})
        if extra:
            write_fake_wheel(into, "markupsafe", {"markupsafe/__init__.py": ""}, tag=extra)
        shutil.copy(PIP, into)

    monkeypatch.setattr(android_runner, "find_runner", lambda cache=None: found)
    monkeypatch.setattr(wheels, "collect_pure", collect)
    return make_bundle(artifact, PHONE, None, folder / "out", kind=None, progress=Silent())
