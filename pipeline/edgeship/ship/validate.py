"""One bundle on one or several boards at once, and a verdict from each."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from edgeship.errors import EdgeshipError, UsageError, VerdictError
from edgeship.ship.contents import Contents
from edgeship.ship.course import Options
from edgeship.ship.installer import ANDROID
from edgeship.ship.native_course import Native
from edgeship.ship.plain import Plain
from edgeship.ship.report import Report, histories, read_reports, write_report
from edgeship.ship.report_html import page
from edgeship.ship.steps import Validation
from edgeship.ship.teller import Teller
from edgeship.ship.transports import Transport


@dataclass(frozen=True)
class Outcome:
    """What came of one host: a report and where it is kept, or the error that ended it; neither from a dry run."""

    host: str
    report: Report | None = None
    path: Path | None = None
    error: EdgeshipError | None = None
    regressions: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """0 for a pass, VerdictError's for a fail, else the error's own."""
        if self.error:
            return self.error.exit_code
        return VerdictError.exit_code if self.report and self.report.verdict == "fail" else 0

    def to_json(self) -> dict[str, object]:
        """Plain values for `json.dumps`."""
        if self.error:
            e = self.error
            body = {"kind": e.kind, "message": e.message, "hint": e.hint, "exit_code": e.exit_code}
            return {"host": self.host, "error": body}
        report = self.report.model_dump(mode="json", by_alias=True) if self.report else None
        return {
            "host": self.host,
            "report": report,
            "path": str(self.path) if self.path else None,
            "regressions": list(self.regressions),
        }


def validate(
    contents: Contents,
    hosts: Sequence[str],
    options: Options,
    *,
    open_transport: Callable[[str], Transport],
    reports: Path,
    teller: Teller,
    plain: bool = False,
) -> list[Outcome]:
    """Validate on every host, all at once; an error of one host does not end the others.

    `plain`: `contents` are of an artifact, for hosts that have a runtime, and not of a bundle. A bundle for Android is
    run by the native program in it.
    Raises UsageError for a host given twice.
    """
    twice = next((host for i, host in enumerate(hosts) if host in hosts[:i]), None)
    if twice:
        raise UsageError(f"--host {twice} is given twice", hint="give each board once")
    transports = [open_transport(host) for host in hosts]
    stopped = threading.Event()
    writing = threading.Lock()

    def work(transport: Transport) -> Outcome:
        kind = Plain if plain else Native if contents.system == ANDROID else Validation
        validation = kind(transport, contents, options, teller, stopped)
        try:
            report = validation.run()
            if report is None:
                return Outcome(transport.host)
            with writing:
                return keep_report(transport.host, report, reports)
        except EdgeshipError as error:
            teller.say(transport.host, f"failed: {error.message}")
            return Outcome(transport.host, error=error)
        finally:
            transport.close()

    pool = ThreadPoolExecutor(len(transports))
    try:
        return list(pool.map(work, transports))
    finally:
        stopped.set()
        for transport in transports:
            transport.close()
        pool.shutdown(cancel_futures=True)
        teller.close()


def keep_report(host: str, report: Report, reports: Path) -> Outcome:
    """Keep the report with a page that shows it beside earlier ones of the same device."""
    earlier = [r for _, r in read_reports(reports, report.device)[0]] if reports.is_dir() else []
    mine = (report.device, report.artifact, report.format, report.engine, bool(report.board.emulated))
    history = next(
        h for h in histories([*earlier, report]) if (h.device, h.artifact, h.format, h.engine, h.emulated) == mine
    )
    path = write_report(reports, report, page(history))
    return Outcome(host, report, path, regressions=history.regressions())
