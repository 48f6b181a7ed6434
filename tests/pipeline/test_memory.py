"""A memory limit becomes workers and chunks that respect it, or an error that names the least that works."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeship.errors import PlanError
from edgeship.memory import BYTES_PER_ELEMENT, CHUNK_ELEMENTS, RESERVED, divide
from edgeship.sizes import parse_size


@given(st.integers(1 << 20, 1 << 34), st.integers(1, 1 << 18))
def test_the_limit_holds_or_is_refused(max_ram: int, widest: int) -> None:
    try:
        budget = divide(max_ram, widest)
    except PlanError as error:
        needed = re.search(r"--max-ram (\S+ ?[A-Z]*B)", error.hint)
        assert needed is not None
        assert parse_size(needed[1]) > max_ram * 0.999
        return
    assert RESERVED + budget.workers * budget.chunk * BYTES_PER_ELEMENT <= max_ram
    assert widest <= budget.chunk
    assert budget.workers >= 1


def test_what_the_error_asks_for_is_enough() -> None:
    with pytest.raises(PlanError) as refused:
        divide(1 << 20, 4096)
    needed = re.search(r"--max-ram (.*) or more", refused.value.hint)
    assert needed is not None
    assert divide(parse_size(needed[1]), 4096).workers == 1


def test_more_memory_does_not_make_chunks_grow_without_end() -> None:
    assert divide(1 << 36, 4096).chunk == CHUNK_ELEMENTS


def test_peak_is_that_of_this_process() -> None:
    """In a process of its own: this one may have held more before, and a peak does not fall."""
    grow = "from edgeship.memory import peak_rss; a = peak_rss(); held = b'x' * (64 << 20); print(peak_rss() - a)"
    done = subprocess.run([sys.executable, "-c", grow], capture_output=True, text=True, check=True)
    assert (60 << 20) <= int(done.stdout) <= (80 << 20)
