"""What the server tells of itself: JSON lines in the log, Prometheus metrics, averages of the last answers.

No text of a prompt or an answer goes anywhere: a log line has lengths, and a hash under a key that this process
made and forgets, so that equal prompts can be seen and none can be looked up.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from edgeship_runtime.answer import Stats
from edgeship_runtime.board import read_board
from edgeship_runtime.errors import missing_package

_KEPT = 200  # answers that the averages are over
_LAST = 50  # requests that the share of failures is over
_BOARD_S = 5.0  # seconds that a reading of the board's sensors serves
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_SPEEDS = (0.5, 1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256, 512, 1024)


class Log:
    """Writes an object per line; a reader that went away is no failure."""

    def __init__(self, write: Callable[[str], Any] | None = None) -> None:
        """`write` takes a line; standard error when None."""
        self._write = write or _to_stderr
        self._lock = threading.Lock()
        self._key = secrets.token_bytes(32)

    def __call__(self, event: str, **members: Any) -> None:
        """Write one line."""
        time_text = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": time_text, "event": event, **members}, default=str)
        with self._lock:
            try:
                self._write(line + "\n")
            except (OSError, ValueError):
                return

    def fingerprint(self, text: str) -> str:
        """16 hexadecimal digits that are equal for equal texts, in this process only."""
        return hmac.new(self._key, text.encode("utf-8", "replace"), hashlib.sha256).hexdigest()[:16]


def _to_stderr(line: str) -> None:
    sys.stderr.write(line)
    sys.stderr.flush()


def rss_mb(path: Path = Path("/proc/self/statm")) -> float | None:
    """Resident memory of this process in MB of 10^6 bytes; None where the system does not tell."""
    try:
        pages = int(path.read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
    except (OSError, ValueError, IndexError, AttributeError):
        return None


@dataclass(frozen=True)
class Sample:
    """One answer: seconds in the queue, to the first token as the client saw it, and its own stats."""

    queued_s: float
    first_s: float
    stats: Stats


class Telemetry:
    """Counters and averages; its methods may be called from any thread."""

    def __init__(self) -> None:
        try:
            import prometheus_client as prometheus
        except ImportError:
            raise missing_package("prometheus-client", "server", "/metrics") from None
        self._prometheus = prometheus
        self.registry = prometheus.CollectorRegistry()
        self._samples: deque[Sample] = deque(maxlen=_KEPT)
        self._failed: deque[bool] = deque(maxlen=_LAST)
        self._lock = threading.Lock()
        self._board: tuple[float, dict[str, Any]] = (-1e9, {})
        self.started = time.time()
        ours: dict[str, Any] = {"namespace": "edgeship", "registry": self.registry}
        self._requests = prometheus.Counter("requests", "Requests answered.", ["route", "status"], **ours)
        self._prompt = prometheus.Counter("prompt_tokens", "Tokens of prompts.", ["model"], **ours)
        self._cached = prometheus.Counter(
            "prompt_tokens_cached", "Prompt tokens found in the KV cache.", ["model"], **ours
        )
        self._tokens = prometheus.Counter("tokens", "Tokens generated.", ["model"], **ours)
        first = "From a request's arrival to its first token."
        self._first = prometheus.Histogram("time_to_first_token_seconds", first, ["model"], buckets=_SECONDS, **ours)
        speed = "Tokens a second after the first, of one answer."
        self._speed = prometheus.Histogram("decode_tokens_per_second", speed, ["model"], buckets=_SPEEDS, **ours)

    def watch(self, name: str, text: str, read: Callable[[], float | None]) -> None:
        """Add a gauge that is read when the metrics are, and left out while it is None."""
        self.registry.register(_Gauge(self._prometheus, "edgeship_" + name, text, read))

    def request(self, route: str, status: int) -> None:
        """Count a request."""
        self._requests.labels(route, str(status)).inc()
        if route.startswith(("/v1/", "/api/")):
            with self._lock:
                self._failed.append(500 <= status < 600)

    def failures(self) -> tuple[int, int]:
        """How many of the last requests failed, and of how many."""
        with self._lock:
            return sum(self._failed), len(self._failed)

    def answer(self, model: str, sample: Sample) -> None:
        """Count an answer."""
        stats = sample.stats
        self._prompt.labels(model).inc(stats.prompt_tokens)
        self._cached.labels(model).inc(stats.cached_tokens)
        self._tokens.labels(model).inc(stats.tokens)
        self._first.labels(model).observe(sample.first_s)
        if stats.decode_tokens_per_s:
            self._speed.labels(model).observe(stats.decode_tokens_per_s)
        with self._lock:
            self._samples.append(sample)

    def metrics(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return bytes(self._prometheus.generate_latest(self.registry))

    def averages(self) -> dict[str, Any]:
        """Means over the last answers, None where there were none."""
        with self._lock:
            samples = list(self._samples)
        stats = [sample.stats for sample in samples]
        return {
            "answers": len(samples),
            "queue_s": _mean([sample.queued_s for sample in samples]),
            "ttft_s": _mean([sample.first_s for sample in samples]),
            "decode_tokens_per_s": _mean([each.decode_tokens_per_s for each in stats if each.steps]),
            "prefill_tokens_per_s": _mean([each.prefill_tokens_per_s for each in stats if each.prefill_s]),
            "prompt_tokens": _mean([each.prompt_tokens for each in stats]),
            "cached_tokens": _mean([each.cached_tokens for each in stats]),
            "tokens": _mean([each.tokens for each in stats]),
        }

    def board(self) -> dict[str, Any]:
        """Temperature in degrees Celsius, what throttles the board, memory in MB of 10^6 bytes; blocks a while.

        None for what the board does not tell.
        """
        then, found = self._board
        if time.monotonic() - then > _BOARD_S:
            board = read_board()
            found = {
                "temperature_c": board.temperature_c,
                "throttled": board.throttled,
                "ram_mb": board.ram_bytes and round(board.ram_bytes / 1e6, 1),
                "ram_free_mb": board.ram_free_bytes and round(board.ram_free_bytes / 1e6, 1),
            }
            self._board = (time.monotonic(), found)
        return found


class _Gauge:
    """A collector of one gauge."""

    def __init__(self, prometheus: Any, name: str, text: str, read: Callable[[], float | None]) -> None:
        self._family = prometheus.metrics_core.GaugeMetricFamily
        self._name, self._text, self._read = name, text, read

    def describe(self) -> list[Any]:
        """The gauge's name, for the registry, without reading it."""
        return [self._family(self._name, self._text)]

    def collect(self) -> Iterator[Any]:
        """The gauge, where it has a value."""
        value = self._read()
        if value is not None:
            yield self._family(self._name, self._text, value=value)


def _mean(values: list[Any]) -> float | None:
    return round(sum(values) / len(values), 4) if values else None
