"""Reports of validations: one JSON file each under `reports/DEVICE/DIGEST/`, read back as strictly as written.

What a board says passes through these models before it is kept: bounded, finite, one printable line a text.
"""

from __future__ import annotations

import os
import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from edgeship.errors import ArtifactError
from edgeship_runtime.errors import EdgeshipRuntimeError
from edgeship_runtime.strict import parse_json, read_bytes

SCHEMA = 1
MAX_REPORT = 1 << 20  # bytes
KEPT = 2000  # reports read from one folder, the newest

_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"


def _one_line(text: str) -> str:
    if not text.isprintable():
        raise ValueError("expected one line of printable text")
    return text


Line = Annotated[str, Field(max_length=500), AfterValidator(_one_line)]
Number = Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False)]
Celsius = Annotated[float, Field(ge=-100, le=300, allow_inf_nan=False)]
Counted = Annotated[int, Field(ge=0, le=1 << 40)]


class Strict(BaseModel):
    """Frozen, no unknown members, no conversion between types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Check(Strict):
    """One point of the verdict; `passed` None: not judged, and `found` says why."""

    name: Line
    passed: bool | None
    found: Line
    wanted: Line = ""


class Done(Strict):
    """One step of the validation."""

    name: Line
    seconds: Number
    said: Line = ""


class Finding(Strict):
    """What the doctor on the board has to say."""

    level: Line
    what: Line
    hint: Line = ""


class Board(Strict):
    """The board as it was found."""

    system: Line = ""
    arch: Line = ""
    python: Line = ""
    cpu: Line = ""
    model: Line = ""
    isa: Annotated[tuple[Line, ...], Field(max_length=64)] = ()
    ram_mb: Number | None = None
    free_mb: Number | None = None
    clock_off_s: Annotated[float, Field(ge=-1e12, le=1e12, allow_inf_nan=False)] = 0.0
    emulated: Line = ""
    """What emulates it; empty for a real board."""
    findings: Annotated[tuple[Finding, ...], Field(max_length=100)] = ()


class Sample(Strict):
    """One process of `bench`: loaded, answered once, ended; temperature, clock and throttling right after."""

    load_s: Number
    ttft_s: Number
    prefill_tokens_per_s: Number
    decode_tokens_per_s: Number
    peak_rss_mb: Number | None
    prompt_tokens: Counted
    decode_tokens: Counted
    threads: Counted
    at_s: Number
    celsius: Celsius | None = None
    mhz: Number | None = None
    throttled: Line = ""
    watts: Number | None = None
    """Mean power from the load to the end."""
    power_sensor: Line = ""


class Agreement(Strict):
    """What `verify` found of the engine's tokens against the golden ones."""

    positions: Counted
    equal: Counted
    near_ties: Counted
    wrong: Counted
    max_logit_error_std: Number


class Report(Strict):
    """One validation of one artifact on one board."""

    schema_: int = Field(default=SCHEMA, ge=SCHEMA, le=SCHEMA, alias="schema")
    time: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")]
    device: Annotated[str, Field(pattern=_NAME)]
    host: Line
    artifact: Annotated[str, Field(pattern=_NAME)]
    format: Literal["onnx", "gguf"]
    engine: Literal["ort", "llamacpp"]
    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]
    verdict: Literal["pass", "fail"]
    checks: Annotated[tuple[Check, ...], Field(max_length=64)]
    steps: Annotated[tuple[Done, ...], Field(max_length=64)]
    board: Board
    agreement: Agreement | None = None
    samples: Annotated[tuple[Sample, ...], Field(max_length=5000)] = ()
    notes: Annotated[tuple[Line, ...], Field(max_length=100)] = ()

    @property
    def decode(self) -> float | None:
        """Tokens per second, the median of all samples."""
        return _median(s.decode_tokens_per_s for s in self.samples)

    @property
    def prefill(self) -> float | None:
        """Tokens per second, the median of all samples."""
        return _median(s.prefill_tokens_per_s for s in self.samples)

    @property
    def ttft(self) -> float | None:
        """Seconds to the first token, the median of all samples."""
        return _median(s.ttft_s for s in self.samples)

    @property
    def load(self) -> float | None:
        """Seconds to load: of the first sample, before its files are in the board's cache."""
        return self.samples[0].load_s if self.samples else None

    @property
    def peak(self) -> float | None:
        """MB of 10^6 bytes, the most of all samples."""
        return max((s.peak_rss_mb for s in self.samples if s.peak_rss_mb is not None), default=None)

    @property
    def watts(self) -> float | None:
        """Mean power of a run, the median of all samples whose sensor said it."""
        return _median(s.watts for s in self.samples if s.watts is not None)

    def to_json(self) -> bytes:
        """The bytes of the report's file."""
        return f"{self.model_dump_json(by_alias=True, indent=2)}\n".encode()


def _median(values: Iterable[float]) -> float | None:
    found = list(values)
    return statistics.median(found) if found else None


def line(text: object, limit: int = 500) -> str:
    """Any text as one printable line for a report."""
    flat = " ".join(str(text).split())
    shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in flat)
    return shown if len(shown) <= limit else f"{shown[: limit - 1]}…"


def now() -> str:
    """This machine's time, UTC: a board's clock may be off by years."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_report(raw: bytes, where: str) -> Report:
    """Check the bytes of a report; raises ArtifactError with the first member that is wrong."""
    try:
        parse_json(raw, where)  # depth, repeated members and numbers that are none, which pydantic lets through
        return Report.model_validate_json(raw)
    except EdgeshipRuntimeError as error:
        raise ArtifactError(error.message, hint="remove the file, and validate again") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise ArtifactError(
            f"{where}: {line(place, 100)}: {line(first['msg'], 200)}", hint="remove the file, and validate again"
        ) from None


def write_report(root: Path, report: Report, page: str = "") -> Path:
    """Keep a report, and its page beside it: both whole or not at all. Returns the JSON file; raises ArtifactError."""
    folder = root / report.device / report.digest
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not folder.resolve().is_relative_to(root.resolve()):
            raise ArtifactError(f"{folder}: a link leads out of {root}; nothing was written", hint="remove the link")
        path = _claimed(folder, re.sub("[:-]", "", report.time), report.to_json())
        if page:
            draft = path.with_suffix(".html.part")
            draft.write_text(page, encoding="utf-8")
            draft.replace(path.with_suffix(".html"))
    except OSError as error:
        hint = "give --reports a directory that you may write to"
        raise ArtifactError(f"{folder}: the report cannot be written: {error.strerror}", hint=hint) from None
    return path


def _claimed(folder: Path, stem: str, raw: bytes) -> Path:
    """Write under the first free name: two boards may end in the same second."""
    draft = folder / f".{stem}.{os.getpid()}.{id(raw)}"
    draft.write_bytes(raw)
    try:
        for n in range(1, 1000):
            path = folder / (f"{stem}.json" if n == 1 else f"{stem}-{n}.json")
            try:
                os.link(draft, path)
            except FileExistsError:
                continue
            except OSError:  # a disk without links
                if path.exists():
                    continue
                draft.replace(path)
            return path
    finally:
        draft.unlink(missing_ok=True)
    raise ArtifactError(f"{folder}: a thousand reports of one second", hint="remove old ones")


def read_reports(root: Path, device: str | None = None) -> tuple[list[tuple[Path, Report]], list[str]]:
    """All reports under `root` (of one device), oldest first, and what is wrong with files that are none.

    Raises ArtifactError where there is no such directory.
    """
    if not root.is_dir():
        hint = "edgeship validate ARTIFACT --device DEVICE --host HOST makes the first report"
        raise ArtifactError(f"{root}: no such directory", hint=hint)
    found: list[tuple[Path, Report]] = []
    wrong: list[str] = []
    paths = sorted(root.glob(f"{device or '*'}/*/*.json"), key=lambda path: path.name)
    for path in paths[-KEPT:]:
        try:
            report = parse_report(read_bytes(path, MAX_REPORT), str(path))
        except (ArtifactError, EdgeshipRuntimeError) as error:
            wrong.append(line(error.message))
            continue
        found.append((path, report))
    return sorted(found, key=lambda each: (each[1].time, each[0].name)), wrong


@dataclass(frozen=True)
class Change:
    """One figure of the latest report against the median of those before it."""

    name: str
    before: float
    after: float
    worse: bool

    @property
    def share(self) -> float:
        """Relative change; 0.1 is ten per cent more."""
        return (self.after - self.before) / self.before if self.before else 0.0


@dataclass(frozen=True)
class History:
    """All reports of one artifact, format and engine on one device, oldest first; emulated boards apart."""

    device: str
    artifact: str
    format: str
    engine: str
    emulated: bool
    reports: tuple[Report, ...]

    @property
    def latest(self) -> Report:
        return self.reports[-1]

    def changes(self) -> tuple[Change, ...]:
        """What the latest report changed, where it can be compared."""
        if len(self.reports) < 2:
            return ()
        before = self.reports[-1 - _BASELINE : -1]
        made = []
        for name, share, sign in _FIGURES:
            if self.emulated and name not in _WITHOUT_SPEED:
                continue
            old, new = (
                _median(v for v in (_figure(r, name) for r in before) if v is not None),
                _figure(self.latest, name),
            )
            if old is not None and new is not None:
                made.append(Change(name, old, new, sign * (new - old) > share * old))
        return tuple(made)

    def regressions(self) -> tuple[str, ...]:
        """What got worse, in words."""
        said = [
            f"{c.name}: {c.after:.4g}, was {c.before:.4g} ({100 * c.share:+.0f} %)" for c in self.changes() if c.worse
        ]
        if len(self.reports) > 1 and (self.latest.verdict, self.reports[-2].verdict) == ("fail", "pass"):
            failed = ", ".join(c.name for c in self.latest.checks if c.passed is False)
            said.insert(0, f"verdict: fail ({failed or 'see the report'}), was pass")
        return tuple(said)

    def to_json(self) -> dict[str, object]:
        """Plain values for `json.dumps`."""
        return {
            "device": self.device,
            "artifact": self.artifact,
            "format": self.format,
            "engine": self.engine,
            "emulated": self.emulated,
            "runs": len(self.reports),
            "latest": {"time": self.latest.time, "digest": self.latest.digest, "verdict": self.latest.verdict},
            "changes": [asdict(c) for c in self.changes()],
            "regressions": list(self.regressions()),
        }


_BASELINE = 5  # reports before the latest whose median it is compared with
_FIGURES = (  # the share by which a figure may change before it is called worse, and which way is worse
    ("decode tokens/s", 0.1, -1),
    ("prefill tokens/s", 0.1, -1),
    ("first token s", 0.15, 1),
    ("load s", 0.3, 1),
    ("peak memory MB", 0.05, 1),
    ("wrong tokens", 0.0, 1),
    ("near ties", 0.5, 1),
)
_WITHOUT_SPEED = ("peak memory MB", "wrong tokens", "near ties")  # what an emulated board can tell


def _figure(report: Report, name: str) -> float | None:
    told = report.agreement
    return {
        "decode tokens/s": report.decode,
        "prefill tokens/s": report.prefill,
        "first token s": report.ttft,
        "load s": report.load,
        "peak memory MB": report.peak,
        "wrong tokens": told.wrong if told else None,
        "near ties": told.near_ties if told else None,
    }[name]


def histories(reports: Sequence[Report]) -> tuple[History, ...]:
    """Reports, oldest first, gathered by what they can be compared with."""
    groups: dict[tuple[str, str, str, str, bool], list[Report]] = {}
    for r in reports:
        groups.setdefault((r.device, r.artifact, r.format, r.engine, bool(r.board.emulated)), []).append(r)
    return tuple(History(*key, tuple(group)) for key, group in sorted(groups.items()))
