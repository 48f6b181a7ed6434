"""A report as one HTML page: nothing is loaded from anywhere, no script runs, every text is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from edgeship.ship.plot import Series, line_plot
from edgeship.ship.report import Check, History, Report

_SHOWN = 30  # earlier reports in the comparison

# The policy is a second lock behind the escaping: even a text that got through could load and run nothing.
_HEAD = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
  color: #1c2733; background: #fff; overflow-wrap: anywhere }}
h1 {{ font-size: 1.4rem; margin-bottom: .2rem }}
h2 {{ font-size: 1.05rem; margin: 2rem 0 .4rem }}
table {{ border-collapse: collapse; width: 100% }}
th, td {{ text-align: left; padding: .25rem .8rem .25rem 0; border-bottom: 1px solid #dde3e9; vertical-align: top }}
th {{ font-weight: 600 }}
td.n {{ text-align: right; font-variant-numeric: tabular-nums }}
.verdict {{ display: inline-block; padding: .1rem .7rem; border-radius: .3rem; color: #fff; font-weight: 600 }}
.pass {{ background: #1a7f4b }} .fail {{ background: #b3261e }}
.yes {{ color: #1a7f4b }} .no {{ color: #b3261e; font-weight: 600 }} .open {{ color: #6b7785 }}
svg {{ width: 100%; height: auto }}
figure {{ margin: 0 0 1rem }} figcaption {{ color: #556270 }}
</style>
</head>
<body>
"""


def page(history: History) -> str:
    """The latest report of a history as a page, with the earlier ones beside it."""
    r = history.latest
    parts = [
        _HEAD.format(title=escape(f"{r.artifact} on {r.device}: {r.verdict}")),
        f"<h1>{escape(r.artifact)} on {escape(r.device)}</h1>",
        f'<p><span class="verdict {"pass" if r.verdict == "pass" else "fail"}">{escape(r.verdict)}</span> '
        f"{escape(r.engine)}, {escape(r.format)} {escape(r.digest)}, {escape(r.host)}, {escape(r.time)}</p>",
        _notes(r.notes),
        "<h2>Checks</h2>",
        _table(("", "check", "found", "wanted"), (_check_cells(c) for c in r.checks)),
        _regressions(history),
        _samples(r),
        _history(history),
        "<h2>Board</h2>",
        _table((), _board_cells(r)),
        "<h2>Steps</h2>",
        _table(("step", "seconds", ""), ((_td(s.name), _td(f"{s.seconds:.1f}", "n"), _td(s.said)) for s in r.steps)),
        "</body>\n</html>\n",
    ]
    return "\n".join(part for part in parts if part)


def _td(text: str, kind: str = "") -> str:
    return f'<td class="{kind}">{escape(text)}</td>' if kind else f"<td>{escape(text)}</td>"


def _table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = f"<tr>{''.join(f'<th>{escape(h)}</th>' for h in headers)}</tr>\n" if headers else ""
    lines = [f"<tr>{''.join(cells)}</tr>\n" for cells in rows]
    return f"<table>\n{head}{''.join(lines)}</table>"


def _check_cells(check: Check) -> tuple[str, ...]:
    word, kind = {True: ("pass", "yes"), False: ("FAIL", "no"), None: ("–", "open")}[check.passed]
    return _td(word, kind), _td(check.name), _td(check.found), _td(check.wanted)


def _notes(notes: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f"<ul>{items}</ul>" if notes else ""


def _regressions(history: History) -> str:
    found = history.regressions()
    if not found:
        return ""
    items = "".join(f"<li>{escape(each)}</li>" for each in found)
    return f'<h2>Worse than before</h2>\n<ul class="no">{items}</ul>'


def _samples(r: Report) -> str:
    if not r.samples:
        return ""
    at = [s.at_s for s in r.samples]
    decode = Series("decode", "tokens/s", list(zip(at, [s.decode_tokens_per_s for s in r.samples], strict=True)))
    heat = Series("temperature", "°C", [(s.at_s, s.celsius) for s in r.samples if s.celsius is not None])
    clock = Series("clock", "MHz", [(s.at_s, s.mhz) for s in r.samples if s.mhz is not None])
    memory = Series("peak memory", "MB", [(s.at_s, s.peak_rss_mb) for s in r.samples if s.peak_rss_mb is not None])
    figures = [_figure("Decode speed of each run, and the temperature after it", line_plot(decode, heat, "seconds"))]
    if memory.points:
        figures.append(_figure("Peak memory of each run", line_plot(memory, None, "seconds", zero=True)))
    power = Series("power", "W", [(s.at_s, s.watts) for s in r.samples if s.watts is not None])
    if power.points:
        figures.append(_figure("Mean power of each run", line_plot(power, None, "seconds", zero=True)))
    if clock.points:
        figures.append(_figure("Clock after each run", line_plot(clock, None, "seconds")))
    return "<h2>Measured</h2>\n" + _table((), _medians(r)) + "\n" + "\n".join(figures)


def _medians(r: Report) -> Iterable[tuple[str, ...]]:
    first = r.samples[0]
    told = (
        ("load, first run", r.load, "s"),
        (f"first token, after {first.prompt_tokens} tokens", r.ttft, "s"),
        ("prefill", r.prefill, "tokens/s"),
        (f"decode, {first.decode_tokens} tokens", r.decode, "tokens/s"),
        ("peak memory", r.peak, "MB"),
    )
    for name, value, unit in told:
        yield _td(name), _td("not known" if value is None else f"{value:.4g} {unit}")
    if r.watts is not None:
        sensor = next(s.power_sensor for s in r.samples if s.watts is not None)
        yield _td(f"power ({sensor})"), _td(f"{r.watts:.4g} W")
    yield _td("runs"), _td(f"{len(r.samples)}, {first.threads} threads; medians")


def _history(history: History) -> str:
    reports = history.reports[-_SHOWN:]
    if len(reports) < 2:
        return ""
    rows = [
        (
            _td(r.time),
            _td(r.digest),
            _td(r.verdict, "yes" if r.verdict == "pass" else "no"),
            _td(_number(r.decode), "n"),
            _td(_number(r.prefill), "n"),
            _td(_number(r.peak), "n"),
        )
        for r in reversed(reports)
    ]
    points = [(float(i), r.decode) for i, r in enumerate(reports, 1) if r.decode is not None]
    plot = line_plot(Series("decode", "tokens/s", points), None, "run", zero=True) if len(points) > 1 else ""
    headers = ("time", "digest", "verdict", "decode tokens/s", "prefill tokens/s", "peak MB")
    return "\n".join(["<h2>Runs on this device</h2>", _figure("Decode speed, run by run", plot), _table(headers, rows)])


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _figure(caption: str, svg: str) -> str:
    return f"<figure><figcaption>{escape(caption)}</figcaption>\n{svg}</figure>" if svg else ""


def _board_cells(r: Report) -> Iterable[tuple[str, ...]]:
    b = r.board
    told = (
        ("processor", ", ".join(filter(None, (b.cpu, b.model)))),
        ("system", ", ".join(filter(None, (b.system, b.arch, f"Python {b.python}" if b.python else "")))),
        ("instruction sets", " ".join(b.isa)),
        ("memory", "" if b.ram_mb is None else f"{b.ram_mb:.0f} MB, {b.free_mb or 0:.0f} MB free"),
        ("emulated by", b.emulated),
        *((f.level, f"{f.what}{': ' if f.hint else ''}{f.hint}") for f in b.findings),
    )
    for name, text in told:
        if text:
            yield _td(name), _td(text)
