"""Fetches from the stand-in hub as a user would, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hub_standin import Standin

# The hub client reads HF_ENDPOINT and HF_HOME when it is imported, hence a process of its own. Nobody waits for
# retries, and the client keeps what arrived in steps of 500 bytes instead of 10 MB, so that small files can resume.
DRIVER = """
import json, sys, time, types
time.sleep = lambda seconds: None
import huggingface_hub.constants
huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE = 500
from edgeship.checkpoint import hub
from edgeship.errors import EdgeshipError
source = types.SimpleNamespace(**json.loads(sys.argv[1]))
calls = []
try:
    path, revision = hub.fetch(source, sys.argv[2], progress=lambda *call: calls.append(call))
    out = {"path": str(path), "revision": revision}
except EdgeshipError as e:
    out = {"error": type(e).__name__, "message": e.message, "hint": e.hint}
print(json.dumps(out | {"progress": calls}))
"""


@dataclass
class Outcome:
    """What one fetch gave."""

    path: Path | None = None
    revision: str | None = None
    error: str | None = None
    message: str = ""
    hint: str = ""
    progress: list[tuple[str, int, int]] = field(default_factory=list)

    @property
    def names(self) -> set[str]:
        assert self.path is not None, self.message
        return {p.name for p in self.path.iterdir() if not p.name.startswith(".")}


@dataclass
class Client:
    """One user's caches and settings, on one host."""

    host: str
    standin: Standin
    home: Path
    env: dict[str, str] = field(default_factory=dict)

    def fetch(self, want: str = "all", repo: str = "owner/model", revision: str = "main", **env: str) -> Outcome:
        clean = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy") and not k.startswith("HF_")}
        clean |= {
            "HF_ENDPOINT": self.standin.url,
            "HF_HOME": str(self.home / "hf"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "MODELSCOPE_ENDPOINT": self.standin.url,
            "MODELSCOPE_CACHE": str(self.home / "ms"),
        }
        source = {"host": self.host, "repo": repo, "revision": revision, "path": None}
        done = subprocess.run(
            [sys.executable, "-c", DRIVER, json.dumps(source), want],
            env=clean | self.env | env,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        out: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        out["progress"] = [tuple(p) for p in out["progress"]]
        outcome = Outcome(**{**out, "path": Path(out["path"]) if "path" in out else None})
        if outcome.error:
            assert outcome.hint, outcome.message
        return outcome
