"""What was measured on a device, from the reports of `edgeship validate`: it takes the place of an estimate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgeship.ship.report import Report, read_reports

REPORTS = Path("reports")
"""Where `edgeship validate` keeps its reports unless told otherwise."""


@dataclass(frozen=True)
class Measured:
    """The latest report of one artifact and format on one device; tokens per second, seconds, MB of 10^6 bytes."""

    time: str
    prefill: float
    decode: float
    load: float
    peak_mb: float | None

    def to_json(self) -> dict[str, Any]:
        """The figures as JSON values."""
        return asdict(self)


Measurements = Mapping[tuple[str, str, str], Measured]
"""By device, artifact and format."""


def read_measured(root: Path) -> tuple[Measurements, list[str]]:
    """The latest figures of every artifact and device under `root`, and what is wrong with files that are none.

    Emulated boards are left out: their speed says nothing of the board's. A directory that is not there holds none.
    """
    if not root.is_dir():
        return {}, []
    reports, wrong = read_reports(root)
    made: dict[tuple[str, str, str], Measured] = {}
    made |= {(r.device, r.artifact, r.format): m for _, r in reports if (m := _measured(r)) is not None}
    return made, wrong


def _measured(report: Report) -> Measured | None:
    prefill, decode, load = report.prefill, report.decode, report.load
    if report.board.emulated or not prefill or not decode or load is None:
        return None
    return Measured(report.time, prefill, decode, load, report.peak)
