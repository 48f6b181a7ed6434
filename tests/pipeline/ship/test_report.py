"""Reports: kept and read back strictly, compared, and shown on a page that no board can write into."""

from __future__ import annotations

import json
import math
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeship import cli
from edgeship.errors import ArtifactError, HostError, VerdictError
from edgeship.ship.plot import Series, line_plot, ticks
from edgeship.ship.probe import with_doctor
from edgeship.ship.report import (
    MAX_REPORT,
    Board,
    History,
    Report,
    histories,
    line,
    parse_report,
    read_reports,
    write_report,
)
from edgeship.ship.report_html import page
from edgeship.ship.sensors import Sensed, read_sensors
from edgeship.ship.verdict import judge, read_sample, read_verify
from tiny_bundle import device

SCRIPT = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'><svg/onload=alert(1)>"
SAMPLE: dict[str, Any] = {
    "load_s": 1.5,
    "ttft_s": 0.5,
    "prefill_tokens_per_s": 50.0,
    "decode_tokens_per_s": 10.0,
    "peak_rss_mb": 900.0,
    "prompt_tokens": 512,
    "decode_tokens": 64,
    "threads": 4,
    "at_s": 12.0,
    "celsius": 61.5,
    "mhz": 2400.0,
    "throttled": "0x0",
}


def value(**fields: Any) -> dict[str, Any]:
    """A report as JSON values; `decode` and `peak` are those of its samples."""
    sample = SAMPLE | {
        "decode_tokens_per_s": fields.pop("decode", 10.0),
        "peak_rss_mb": fields.pop("peak", 900.0),
    }
    return {
        "schema": 1,
        "time": "2026-11-22T19:00:00Z",
        "device": "raspberry-pi-5-8gb",
        "host": "pi@10.0.0.7",
        "artifact": "tiny-int4",
        "format": "onnx",
        "engine": "ort",
        "digest": "0123456789ab",
        "verdict": "pass",
        "checks": [{"name": "hashes", "passed": True, "found": "every file has its sha256", "wanted": ""}],
        "steps": [{"name": "probe", "seconds": 1.0, "said": "fine"}],
        "board": {"cpu": "Cortex-A76", "isa": ["dotprod"], "emulated": fields.pop("emulated", "")},
        "agreement": {"positions": 9, "equal": 9, "near_ties": 0, "wrong": 0, "max_logit_error_std": 0.1},
        "samples": [sample, sample | {"at_s": 30.0}],
        "notes": [],
        **fields,
    }


def report(**fields: Any) -> Report:
    return parse_report(json.dumps(value(**fields)).encode(), "here")


class Page(HTMLParser):
    """What a browser would make of a page: elements, attributes that do something, and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


SAFE_TAGS = {
    *("html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "span", "table", "tr", "th", "td"),
    *("ul", "li", "figure", "figcaption", "svg", "line", "text", "polyline", "circle"),
}


class TestKept:
    def test_written_and_read(self, tmp_path: Path) -> None:
        made = report()
        path = write_report(tmp_path / "reports", made, "a page")
        assert path == tmp_path / "reports/raspberry-pi-5-8gb/0123456789ab/20261122T190000Z.json"
        assert path.with_suffix(".html").read_text() == "a page"
        found, wrong = read_reports(tmp_path / "reports")
        assert found == [(path, made)]
        assert wrong == []
        assert sorted(p.name for p in path.parent.iterdir()) == [path.with_suffix(".html").name, path.name]

    def test_same_second_twice(self, tmp_path: Path) -> None:
        paths = {write_report(tmp_path, report()) for _ in range(3)}
        assert {p.name for p in paths} == {f"20261122T190000Z{n}.json" for n in ("", "-2", "-3")}

    @pytest.mark.parametrize(
        "fields",
        [
            {"device": "../../etc"},
            {"device": "a/b"},
            {"device": ".."},
            {"device": "a\n"},
            {"digest": "../../../../x"},
            {"digest": "0123456789ab\n"},
            {"time": "2026-11-22T19:00:00Z\n"},
            {"time": "../../../2026"},
            {"artifact": "../x"},
            {"verdict": "maybe"},
            {"schema": 2},
            {"schema": True},
            {"unknown": 1},
            {"host": "a\x1b[2J"},
            {"host": "x" * 501},
            {"decode": -1.0},
            {"decode": "10"},
            {"samples": [SAMPLE] * 5001},
            {"checks": [{"name": "x"}]},
            {"notes": ["a\nb"]},
        ],
    )
    def test_refused(self, fields: dict[str, Any]) -> None:
        with pytest.raises(ArtifactError):
            report(**fields)

    @pytest.mark.parametrize(
        "raw",
        [
            b"",
            b"\xff",
            b"[" * 100_000,
            b'{"a": ' * 500 + b"1" + b"}" * 500,
            json.dumps(value()).replace("10.0", "NaN").encode(),
            json.dumps(value()).replace("10.0", "1e999").encode(),
            json.dumps(value()).replace('{"schema": 1', '{"schema": 1, "schema": 1').encode(),
        ],
    )
    def test_no_report_at_all(self, raw: bytes) -> None:
        with pytest.raises(ArtifactError):
            parse_report(raw, "here")

    def test_others_beside_are_named_and_skipped(self, tmp_path: Path) -> None:
        path = write_report(tmp_path, report())
        path.with_name("huge.json").write_bytes(b" " * (MAX_REPORT + 1))
        path.with_name("bad.json").write_text('{"device": "\\u001b[2J"}')
        found, wrong = read_reports(tmp_path)
        assert [p for p, _ in found] == [path]
        assert len(wrong) == 2
        assert all(text.isprintable() for text in wrong)

    def test_a_link_does_not_lead_out(self, tmp_path: Path) -> None:
        (tmp_path / "reports").mkdir()
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "reports/raspberry-pi-5-8gb").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(ArtifactError, match="leads out"):
            write_report(tmp_path / "reports", report())
        assert not list((tmp_path / "elsewhere").rglob("*.*"))

    def test_no_right_to_write(self, tmp_path: Path) -> None:
        (tmp_path / "reports").write_text("a file")
        with pytest.raises(ArtifactError, match="cannot be written"):
            write_report(tmp_path / "reports", report())


MEMBERS = st.sampled_from(
    ["verdict", "intact", "templates", "agreement", "device", "findings", "engines", "load_s", "ort"]
)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just("pass")


class TestBoardAnswers:
    @given(st.recursive(LEAVES, lambda x: st.lists(x) | st.dictionaries(MEMBERS | st.text(), x), max_leaves=20))
    def test_anything_is_read_or_refused(self, answer: Any) -> None:
        raw = json.dumps(answer).encode()
        for read in (read_verify, lambda r: read_sample(r, 0.0, ""), lambda r: with_doctor(Board(), r, "ort")):
            said = ""
            try:
                read(raw)
            except HostError as error:
                said = error.message
            assert said.isprintable()

    def test_texts_of_the_doctor_become_one_line(self) -> None:
        told = {
            "device": {"model": "a\x1b[2J\nb" * 1000, "isa": ["x\ny"], "ram_bytes": 10**30, "ram_free_bytes": True},
            "findings": [{"level": 3, "what": SCRIPT, "hint": None}] * 500,
            "engines": {"ort": {"kernels": "k" * 10_000}},
        }
        board, kernels = with_doctor(Board(), json.dumps(told).encode(), "ort")
        again = Board.model_validate_json(board.model_dump_json())
        assert again == board
        assert (board.ram_mb, board.free_mb) == (None, None)
        assert len(kernels) == 100
        assert len(board.findings) == 100

    def test_sensors(self) -> None:
        told = "millidegrees=48000\nmillidegrees=61500\nkhz=1500000\nkhz=2400000\nthrottled=0x50000\nother=1"
        assert read_sensors(told) == Sensed(celsius=61.5, mhz=2400.0, throttled="0x50000")
        assert read_sensors("millidegrees=9999999\nmillidegrees=x\nkhz=-1\nkhz=٣") == Sensed()

    @given(st.text(max_size=300))
    def test_any_sensors(self, text: str) -> None:
        told = read_sensors(text)
        assert told.celsius is None or -100 < told.celsius < 300
        assert told.mhz is None or told.mhz > 0
        assert told.throttled.isprintable()

    def test_emulated_speed_is_not_judged(self) -> None:
        made = report()
        manifest = _Manifest()
        checks = {c.name: c for c in judge(made.samples, device(), manifest, "QEMU")}  # type: ignore[arg-type]
        assert checks["decode tokens/s"].passed is None
        assert checks["RAM MB"].passed is True

    def test_a_long_run_is_judged_by_its_end(self) -> None:
        speeds = [20.0] * 6 + [4.0, 4.0]
        samples = [report(decode=speed).samples[0] for speed in speeds]
        least = device(budgets={"ram_share": 0.5, "min_decode": 5.0})
        checks = {c.name: c for c in judge(samples, least, _Manifest(), "")}  # type: ignore[arg-type]
        assert checks["sustained tokens/s"].found == "4.00 in the last quarter, 20.00 in the first"
        assert checks["decode tokens/s"].passed is False

    def test_throttling_is_told(self) -> None:
        samples = [report().samples[0].model_copy(update={"throttled": "0x50005"})]
        checks = {c.name: c for c in judge(samples, device(), _Manifest(), "")}  # type: ignore[arg-type]
        assert "0x50005" in checks["throttled"].found


class _Manifest:
    class budgets:  # noqa: N801
        size_mb = None
        ram_mb = None

    files: dict[str, Any] = {}  # noqa: RUF012


class TestCompared:
    def at(self, n: int, **fields: Any) -> Report:
        return report(time=f"2026-11-{n:02}T19:00:00Z", **fields)

    def one(self, *reports: Report) -> History:
        (found,) = histories(reports)
        return found

    def test_first_run_has_nothing_to_compare(self) -> None:
        assert self.one(self.at(1)).changes() == ()

    def test_same_is_no_regression(self) -> None:
        assert self.one(self.at(1), self.at(2)).regressions() == ()

    @pytest.mark.parametrize(
        ("fields", "said"),
        [
            ({"decode": 8.9}, "decode tokens/s: 8.9, was 10 (-11 %)"),
            ({"peak": 1000.0}, "peak memory MB: 1000, was 900 (+11 %)"),
            ({"verdict": "fail"}, "verdict: fail (see the report), was pass"),
        ],
    )
    def test_worse(self, fields: dict[str, Any], said: str) -> None:
        assert self.one(self.at(1), self.at(2), self.at(3, **fields)).regressions() == (said,)

    @pytest.mark.parametrize("fields", [{"decode": 9.1}, {"decode": 20.0}, {"peak": 100.0}])
    def test_noise_and_gains_are_none(self, fields: dict[str, Any]) -> None:
        assert self.one(self.at(1), self.at(2, **fields)).regressions() == ()

    def test_one_slow_run_before_is_outvoted(self) -> None:
        made = [self.at(1), self.at(2, decode=1.0), self.at(3), self.at(4, decode=5.0)]
        assert len(self.one(*made).regressions()) == 1

    def test_another_artifact_of_the_name_is_compared(self) -> None:
        assert self.one(self.at(1), self.at(2, digest="ffffffffffff", decode=5.0)).regressions()

    def test_emulated_boards_stand_apart_and_have_no_speed(self) -> None:
        found = histories([self.at(1), self.at(2, emulated="QEMU"), self.at(3, emulated="QEMU", decode=1.0)])
        assert [(h.emulated, len(h.reports), h.regressions()) for h in found] == [(False, 1, ()), (True, 2, ())]

    def test_command(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for each in (self.at(1), self.at(2, decode=5.0), self.at(3, device="laptop")):
            write_report(tmp_path, each)
        assert cli.run(["report", str(tmp_path)]) == VerdictError.exit_code
        assert "worse: raspberry-pi-5-8gb, tiny-int4, ort: decode tokens/s: 5, was 10" in capsys.readouterr().out
        assert cli.run(["report", str(tmp_path), "--device", "laptop", "--json"]) == 0
        (found,) = json.loads(capsys.readouterr().out)["histories"]
        assert (found["device"], found["runs"], found["regressions"]) == ("laptop", 1, [])
        assert cli.run(["report", str(tmp_path), "--device", "../x"]) == 2


class TestPage:
    def test_holds_what_the_report_says_and_loads_nothing(self) -> None:
        earlier = report(time="2026-11-21T19:00:00Z", decode=20.0)
        shown = Page(page(histories([earlier, report()])[0]))
        assert shown.open == []
        assert shown.tags <= SAFE_TAGS
        assert {"src", "href", "onclick", "onload"} & shown.attributes == set()
        for text in (
            "tiny-int4 on raspberry-pi-5-8gb",
            "Cortex-A76",
            "Worse than before",
            "temperature, °C",
            "Runs on this device",
        ):
            assert text in shown.text

    @given(st.text(min_size=1, max_size=200) | st.just(SCRIPT))
    def test_no_text_of_a_board_becomes_markup(self, text: str) -> None:
        bad = line(text)
        made = report(
            host=bad,
            checks=[{"name": bad, "passed": None, "found": bad, "wanted": bad}],
            steps=[{"name": bad, "seconds": 1.0, "said": bad}],
            board={"cpu": bad, "model": bad, "system": bad, "isa": [bad], "emulated": bad}
            | {"findings": [{"level": bad, "what": bad, "hint": bad}]},
            notes=[bad],
        )
        shown = Page(page(histories([made])[0]))
        assert shown.open == []
        assert shown.tags <= SAFE_TAGS
        assert not {name for name in shown.attributes if name.startswith("on") or name in ("src", "href", "style")}
        assert bad in shown.text

    def test_reports_without_measurements(self) -> None:
        made = report(samples=[], agreement=None, verdict="fail")
        assert "Measured" not in Page(page(histories([made, made])[0])).text


numbers = st.floats(0, 1e12, allow_nan=False)


class TestPlot:
    @given(
        st.lists(st.tuples(numbers, numbers), min_size=1, max_size=50),
        st.lists(st.tuples(numbers, numbers), max_size=5),
    )
    def test_any_numbers_give_an_image_within_its_frame(
        self, left: list[tuple[float, float]], right: list[tuple[float, float]]
    ) -> None:
        root = ElementTree.fromstring(line_plot(Series("<a>", "&", left), Series("b", "°C", right), "x"))
        for each in root.iter("{http://www.w3.org/2000/svg}circle"):
            assert -1 <= float(each.attrib["cx"]) <= 721
            assert -1 <= float(each.attrib["cy"]) <= 241

    @given(numbers, numbers)
    def test_ticks_cover_and_are_few(self, a: float, b: float) -> None:
        low, high = sorted((a, b))
        found = ticks(low, high)
        assert 2 <= len(found) <= 9
        assert found == sorted(set(found))
        assert found[0] <= low or math.isclose(found[0], low, rel_tol=1e-6)
        assert found[-1] >= high or math.isclose(found[-1], high, rel_tol=1e-6)

    def test_many_points_are_thinned_out(self) -> None:
        points = [(float(i), float(i % 7)) for i in range(100_000)]
        assert len(line_plot(Series("a", "b", points), None, "x")) < 40_000

    def test_nothing_to_show(self) -> None:
        assert line_plot(Series("a", "b", []), None, "x") == ""
