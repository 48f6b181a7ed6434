"""Progress of several boards: lines that name the host on a pipe, a table on a terminal."""

from __future__ import annotations

import io
import re

from edgeship.ship.teller import LiveTable, Silent, Teller, teller_for
from terminals import Terminal


def work(teller: Teller) -> None:
    for host in ("pi@a", "pi@b"):
        teller.begin(host, "push")
        teller.share(host, "push", 5_000_000, 10_000_000, "model[red]")
        teller.say(host, "push: [bold]half")
        teller.end(host, "push", 1.5, "2 files")
    teller.close()


def test_lines() -> None:
    stream = io.StringIO()
    work(teller_for(stream, quiet=False))
    assert stream.getvalue().splitlines() == [
        line for host in ("pi@a", "pi@b") for line in (f"{host}: push: [bold]half", f"{host}: push: 2 files (1.5 s)")
    ]


def test_bytes_every_few_seconds() -> None:
    stream = io.StringIO()
    teller = teller_for(stream, quiet=False)
    teller.share("pi@a", "push", 5_000_000, 10_000_000, "model")
    teller.share("pi@a", "push", 6_000_000, 10_000_000, "model")
    assert stream.getvalue() == "pi@a: push: 50 % of 10.0 MB, model\n"


def test_table() -> None:
    stream = Terminal()
    teller = teller_for(stream, quiet=False)
    assert isinstance(teller, LiveTable)
    work(teller)
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue())
    assert "pi@a: push: 2 files (1.5 s)" in shown
    assert "host" in shown


def test_quiet() -> None:
    stream = Terminal()
    teller = teller_for(stream, quiet=True)
    assert isinstance(teller, Silent)
    work(teller)
    assert stream.getvalue() == ""
