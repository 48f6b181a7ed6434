"""Sizes: what is read, what is written."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeship.errors import UsageError
from edgeship.sizes import format_count, format_size, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("600MB", 600_000_000),
        ("600mb", 600_000_000),
        (" 600 MB ", 600_000_000),
        ("600M", 600_000_000),
        ("1.5GiB", 3 << 29),
        ("2g", 2_000_000_000),
        ("512KiB", 512 << 10),
        ("1000", 1000),
        ("7B", 7),
    ],
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "MB", "-1MB", "0", "0.0001B", "1e9", "nan", "inf", "6OOMB", "1,5GB", "1 MB x", "٣MB"]
)
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--max-ram: expected a size") as caught:
        parse_size(text, "--max-ram")
    assert caught.value.hint


@given(st.text(max_size=20))
def test_any_text_is_a_size_or_refused(text: str) -> None:
    with contextlib.suppress(UsageError):
        assert parse_size(text) > 0


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 KB"),
        (57_344, "57.3 KB"),
        (999_499, "999 KB"),
        (999_999, "1.00 MB"),
        (16_777_216, "16.8 MB"),
        (1_098_774_528, "1.10 GB"),
        (12_483_386_112, "12.5 GB"),
    ],
)
def test_sizes_are_written(size: int, text: str) -> None:
    assert format_size(size) == text


def test_counts_are_written_as_model_names_do() -> None:
    assert [format_count(n) for n in (144_896, 494_032_768, 1_543_714_304, 7_615_616_512, 12)] == [
        "145K",
        "494M",
        "1.54B",
        "7.62B",
        "12",
    ]
