"""GET /health, /metrics and /v1/stats: how the server is, each check with its thresholds and what to do about it."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from edgeship_runtime import __version__
from edgeship_runtime.server.service import Service
from edgeship_runtime.server.telemetry import rss_mb

HOT_C = 80.0  # boards begin to throttle between 80 and 85 degrees
_FULL = 0.8  # of the queue
_FAILED = 0.2  # of the last requests; at least _FEW of them
_FEW = 3
_NEAR = 0.9  # of the memory that the service manager allows
_SCARCE = 0.05  # of the machine's memory
_DISK_MB = 200.0
_RANK = ("healthy", "degraded", "unhealthy")


def health(service: Service) -> dict[str, Any]:
    """All checks and the worst of their states."""
    checks = [check(service) for check in _CHECKS]
    worst = max((check["status"] for check in checks), key=_RANK.index)
    return {"status": worst, "version": __version__, "checks": checks}


def _check(name: str, status: str, value: object, advice: str, **thresholds: object) -> dict[str, Any]:
    """`thresholds`: from where on the status is degraded or unhealthy."""
    return {"name": name, "status": status, "value": value, "threshold": thresholds, "advice": advice}


def _degraded(bad: bool) -> str:
    return "degraded" if bad else "healthy"


def _engine(service: Service) -> dict[str, Any]:
    scheduler, limit = service.scheduler, service.settings.stuck_s
    state = "stuck" if scheduler.stuck else "ready" if scheduler.alive else "ended"
    advice = "start the server again; if it recurs, try fewer --threads and run `edgeship-runtime verify`"
    status = "healthy" if state == "ready" else "unhealthy"
    return _check("engine", status, state, advice, unhealthy=f"no sign of life for {limit:g} s")


def _failures(service: Service) -> dict[str, Any]:
    failed, requests = service.telemetry.failures()
    share = round(failed / requests, 3) if requests else 0.0
    bad = failed >= _FEW and share >= _FAILED
    advice = "the log says what failed; run `edgeship-runtime verify` on the artifact, `doctor` for the machine"
    return _check("failed_share", _degraded(bad), share, advice, degraded=_FAILED)


def _queue(service: Service) -> dict[str, Any]:
    waiting, most = service.scheduler.waiting, max(1, round(_FULL * service.settings.queue_limit))
    advice = "requests come faster than they are answered: send fewer, or serve a smaller model"
    return _check("queue", _degraded(waiting >= most), waiting, advice, degraded=most)


def _memory(service: Service) -> dict[str, Any]:
    rss, allowed = rss_mb(), allowed_mb()
    limits = [service.settings.memory_mb, None if allowed is None else _NEAR * allowed]
    limit = min((each for each in limits if each is not None), default=None)
    advice = "serve fewer or smaller artifacts, or a smaller --context"
    bad = rss is not None and limit is not None and rss > limit
    return _check("memory_mb", _degraded(bad), _rounded(rss), advice, degraded=_rounded(limit))


def _free_memory(service: Service) -> dict[str, Any]:
    board = service.telemetry.board()
    free, least = board["ram_free_mb"], board["ram_mb"] and _SCARCE * board["ram_mb"]
    advice = "end other programs, or take a smaller model or --context: what does not fit is ended or swapped"
    bad = free is not None and least is not None and free < least
    return _check("memory_free_mb", _degraded(bad), _rounded(free), advice, degraded=_rounded(least))


def _heat(service: Service) -> dict[str, Any]:
    heat = service.telemetry.board()["temperature_c"]
    advice = "cool the board with a heat sink or a fan, or use fewer --threads"
    return _check("temperature_c", _degraded(heat is not None and heat >= HOT_C), heat, advice, degraded=HOT_C)


def _throttling(service: Service) -> dict[str, Any]:
    found = service.telemetry.board()["throttled"]
    advice = "the clock is held back: cool the board; for under-voltage use the board's own power supply"
    value = None if found is None else list(found)
    return _check("throttled", _degraded(bool(held_back(found))), value, advice, degraded="anything now")


def held_back(throttled: tuple[str, ...] | None) -> list[str]:
    """Of what `Board.throttled` says, what holds at this moment."""
    return [each for each in throttled or () if each.endswith(" now")]


def _disk(service: Service) -> dict[str, Any]:
    free = None
    for place in {Path(), *service.settings.artifacts.values()}:
        with suppress(OSError):
            here = shutil.disk_usage(place).free / 1e6
            free = here if free is None else min(free, here)
    advice = "remove what is not needed: logs and saved prefixes cannot be written on a full disk"
    bad = free is not None and free < _DISK_MB
    return _check("disk_free_mb", _degraded(bad), _rounded(free), advice, degraded=_DISK_MB)


def _artifacts(service: Service) -> dict[str, Any]:
    lost = [name for name, path in service.settings.artifacts.items() if not os.path.exists(path)]
    advice = "an artifact is gone from the disk: put it back, or start the server without it"
    return _check("artifacts_missing", _degraded(bool(lost)), lost, advice, degraded="any")


_CHECKS = (_engine, _failures, _queue, _memory, _free_memory, _heat, _throttling, _disk, _artifacts)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 1)


def allowed_mb(root: Path = Path("/")) -> float | None:
    """What the service manager lets this process have (cgroup v2 memory.max), MB of 10^6 bytes; None for no limit."""
    with suppress(OSError, ValueError):
        groups = (root / "proc/self/cgroup").read_text().splitlines()
        group = next((line[3:].lstrip("/") for line in groups if line.startswith("0::")), None)
        if group is not None:
            return int((root / "sys/fs/cgroup" / group / "memory.max").read_text()) / 1e6
    return None


def watch(service: Service) -> None:
    """Add the gauges to the metrics."""
    scheduler, shelf, telemetry = service.scheduler, service.shelf, service.telemetry
    telemetry.watch("queue_length", "Requests that wait.", lambda: scheduler.waiting)
    telemetry.watch("queue_limit", "Requests that may wait.", lambda: service.settings.queue_limit)
    telemetry.watch("running", "Requests at the engine.", lambda: float(scheduler.running))
    telemetry.watch("models_loaded", "Models in memory.", lambda: len(shelf.loaded))
    telemetry.watch("kv_tokens", "Tokens in the KV caches.", lambda: sum(used for used, _ in _kv(service).values()))
    telemetry.watch(
        "kv_capacity_tokens", "Tokens they have room for.", lambda: sum(room for _, room in _kv(service).values())
    )
    telemetry.watch("resident_bytes", "Resident memory.", lambda: None if (rss := rss_mb()) is None else rss * 1e6)
    telemetry.watch("temperature_celsius", "The hottest sensor.", lambda: telemetry.board()["temperature_c"])
    telemetry.watch("throttled", "1 while the board's clock is held back.", lambda: _throttled(telemetry.board()))
    telemetry.watch("healthy", "1 healthy, 0.5 degraded, 0 unhealthy.", lambda: _score(service))


def _score(service: Service) -> float:
    return 1 - _RANK.index(health(service)["status"]) / 2


def _throttled(board: Mapping[str, Any]) -> float | None:
    found = board["throttled"]
    return None if found is None else float(bool(held_back(found)))


def _kv(service: Service) -> dict[str, tuple[int, int]]:
    """Tokens held and room for them, of each loaded model that has a KV cache."""
    engines = {name: model.engine for name, model in service.shelf.loaded.items()}
    lanes = {name: getattr(engine, "lanes", (engine,)) for name, engine in engines.items()}
    return {
        name: (sum(getattr(each, "length", 0) for each in found), sum(getattr(each, "context", 0) for each in found))
        for name, found in lanes.items()
    }


def stats(service: Service) -> dict[str, Any]:
    """The body of /v1/stats."""
    return {
        "uptime_s": round(time.time() - service.telemetry.started, 1),
        "rss_mb": _rounded(rss_mb()),
        "queue": {"waiting": service.scheduler.waiting, "limit": service.settings.queue_limit},
        "running": service.scheduler.running,
        "models": {name: {"kv_tokens": used, "context": room} for name, (used, room) in _kv(service).items()},
        "board": service.telemetry.board(),
        "last_answers": service.telemetry.averages(),
    }
