"""Generated documentation: every table is whole, and a stale one is noticed."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeship import docs
from edgeship.encodings import ENCODINGS
from edgeship.errors import UsageError

README = Path(__file__).parents[2] / "README.md"


def columns(table: str) -> set[int]:
    return {line.replace("\\|", "").count("|") for line in table.splitlines()}


def test_the_field_table_has_every_field() -> None:
    table = docs.fields_table()
    assert len(columns(table)) == 1
    for row in (
        "| `extends` | text | – |",
        "| `source.host` | huggingface, modelscope, local | `huggingface` |",
        "| `source.repo` | text of the form owner/name | required |",
        "| `scheme.group_size` | 32, 64, 128 | `32` |",
        "| `context` | whole number from 16 to 1048576 | `4096` |",
        "| `sampling.top_p` | number above 0, at most 1 | `1.0` |",
        "| `accept.size_mb` | number above 0, at most 1000000 | – |",
    ):
        assert row in table
    assert "`name`" not in table


def test_the_other_tables() -> None:
    encodings, codes = docs.encodings_table(), docs.exit_codes_table()
    assert len(columns(encodings)) == len(columns(codes)) == 1
    assert all(f"| `{name}` |" in encodings for name in ENCODINGS)
    assert "| `int4-32` | 4 | 32 | MatMulNBits | 5 | Q4_0 | 4.5 |" in encodings
    assert "| `q4_k` | 4 | 256 | – | – | Q4_K | 4.5 |" in encodings
    assert "| 3 | A recipe does not parse, validate or exist |" in codes
    assert codes.index("| 9 |") < codes.index("| 10 |") < codes.index("| 130, 129, 143 |")


def test_rewrite_replaces_between_markers_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- generated: encodings -->\nold\n<!-- end -->\nafter\n")
    assert docs.main([str(page), "--check"]) == 1
    assert "is stale: run python -m edgeship.docs" in capsys.readouterr().err
    assert docs.main([str(page)]) == 0
    text = page.read_text()
    assert text.startswith("before\n<!-- generated: encodings -->\n| encoding |")
    assert text.endswith("\n<!-- end -->\nafter\n")
    assert docs.main([str(page), "--check"]) == 0


def test_a_marker_that_names_no_table_is_refused() -> None:
    with pytest.raises(UsageError, match="no table is called 'fields'"):
        docs.rewrite("<!-- generated: fields -->\n<!-- end -->")


def test_the_readme_is_not_stale() -> None:
    if not README.is_file() or "<!-- generated: " not in README.read_text():
        pytest.skip("no generated tables in README.md")
    assert docs.main([str(README), "--check"]) == 0
