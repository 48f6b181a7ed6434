"""GET /health, /metrics and /v1/stats: how the server is, each check with its threshold and what to do about it."""

from __future__ import annotations

import os
import time
from typing import Any

from edgeship_runtime import __version__
from edgeship_runtime.server.service import Service
from edgeship_runtime.server.telemetry import rss_mb

_HOT_C = 80.0  # boards begin to throttle between 80 and 85 degrees
_FULL = 0.8  # of the queue
_RANK = ("healthy", "degraded", "unhealthy")


def health(service: Service) -> dict[str, Any]:
    """All checks and the worst of their states."""
    checks = [_engine(service), _queue(service), _memory(service), _heat(service), _artifacts(service)]
    worst = max((check["status"] for check in checks), key=_RANK.index)
    return {"status": worst, "version": __version__, "checks": checks}


def _check(name: str, status: str, value: object, threshold: object, advice: str) -> dict[str, Any]:
    found = {"name": name, "status": status, "value": value, "threshold": threshold}
    return found if status == "healthy" else found | {"advice": advice}


def _engine(service: Service) -> dict[str, Any]:
    scheduler, limit = service.scheduler, service.settings.stuck_s
    state = "stuck" if scheduler.stuck else "ready" if scheduler.alive else "ended"
    advice = "start the server again; if it recurs, try fewer --threads and run `edgeship-runtime verify`"
    return _check("engine", "healthy" if state == "ready" else "unhealthy", state, f"{limit:g} s", advice)


def _queue(service: Service) -> dict[str, Any]:
    waiting, limit = service.scheduler.waiting, service.settings.queue_limit
    status = "degraded" if waiting >= _FULL * limit else "healthy"
    return _check("queue", status, waiting, limit, "requests come faster than they are answered: send fewer")


def _memory(service: Service) -> dict[str, Any]:
    rss, limit = rss_mb(), service.settings.memory_mb
    status = "degraded" if rss is not None and limit is not None and rss > limit else "healthy"
    value = None if rss is None else round(rss, 1)
    return _check("memory_mb", status, value, limit, "serve fewer or smaller artifacts, or a smaller --context")


def _heat(service: Service) -> dict[str, Any]:
    board = service.telemetry.board()
    heat = board["temperature_c"]
    bad = bool(board["throttled"]) or (heat is not None and heat >= _HOT_C)
    return _check(
        "temperature_c", "degraded" if bad else "healthy", heat, _HOT_C, "cool the board, or use fewer threads"
    )


def _artifacts(service: Service) -> dict[str, Any]:
    lost = [name for name, path in service.settings.artifacts.items() if not os.path.exists(path)]
    advice = "an artifact is gone from the disk: put it back, or start the server without it"
    return _check("artifacts_missing", "degraded" if lost else "healthy", lost, [], advice)


def watch(service: Service) -> None:
    """Add the gauges to the metrics."""
    scheduler, shelf, telemetry = service.scheduler, service.shelf, service.telemetry
    telemetry.watch("queue_length", "Requests that wait.", lambda: scheduler.waiting)
    telemetry.watch("running", "Requests at the engine.", lambda: float(scheduler.running))
    telemetry.watch("models_loaded", "Models in memory.", lambda: len(shelf.loaded))
    telemetry.watch("kv_tokens", "Tokens in the KV caches.", lambda: sum(used for used, _ in _kv(service).values()))
    telemetry.watch(
        "kv_capacity_tokens", "Tokens they have room for.", lambda: sum(all for _, all in _kv(service).values())
    )
    telemetry.watch("resident_bytes", "Resident memory.", lambda: None if (rss := rss_mb()) is None else rss * 1e6)
    telemetry.watch("temperature_celsius", "The hottest sensor.", lambda: telemetry.board()["temperature_c"])
    telemetry.watch("throttled", "1 while the board is slowed down.", lambda: _throttled(service))


def _throttled(service: Service) -> float | None:
    found = service.telemetry.board()["throttled"]
    return None if found is None else float(bool(found))


def _kv(service: Service) -> dict[str, tuple[int, int]]:
    """Tokens held and room for them, of each loaded model that has a KV cache."""
    engines = {name: model.engine for name, model in service.shelf.loaded.items()}
    return {name: (getattr(engine, "length", 0), getattr(engine, "context", 0)) for name, engine in engines.items()}


def stats(service: Service) -> dict[str, Any]:
    """The body of /v1/stats."""
    rss = rss_mb()
    return {
        "uptime_s": round(time.time() - service.telemetry.started, 1),
        "rss_mb": None if rss is None else round(rss, 1),
        "queue": {"waiting": service.scheduler.waiting, "limit": service.settings.queue_limit},
        "running": service.scheduler.running,
        "models": {name: {"kv_tokens": used, "context": room} for name, (used, room) in _kv(service).items()},
        "board": service.telemetry.board(),
        "last_answers": service.telemetry.averages(),
    }
