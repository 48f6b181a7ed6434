"""The choice of types under a budget, and the sensitivities it goes by."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeship.quant.mixed import Option, choose


def total(options: Sequence[Option]) -> tuple[int, float]:
    return sum(o.nbytes for o in options), sum(o.loss for o in options)


def test_bits_go_where_a_byte_saves_the_most() -> None:
    options = {
        "large": [Option("4", 400, 8.0), Option("8", 800, 1.0)],  # 7 for 400
        "small": [Option("4", 40, 2.0), Option("8", 80, 0.1)],  # 1.9 for 40
        "dull": [Option("4", 40, 0.2), Option("8", 80, 0.1)],
    }

    def names(budget: int) -> dict[str, str]:
        return {key: option.encoding for key, option in choose(options, budget).items()}

    assert names(480) == {"large": "4", "small": "4", "dull": "4"}
    assert names(560) == {"large": "4", "small": "8", "dull": "8"}  # large would not fit
    assert names(920) == {"large": "8", "small": "8", "dull": "4"}
    assert names(10_000) == {"large": "8", "small": "8", "dull": "8"}
    with pytest.raises(ValueError, match="1 bytes more than the budget"):
        choose(options, 479)


def test_what_costs_more_and_gains_nothing_is_not_taken() -> None:
    options = {"a": [Option("4", 4, 1.0), Option("5", 5, 1.0), Option("6", 6, 2.0), Option("8", 8, 0.5)]}
    assert choose(options, 7)["a"].encoding == "4"
    assert choose(options, 8)["a"].encoding == "8"


OPTIONS = st.lists(
    st.builds(Option, st.just("x"), st.integers(1, 50), st.floats(0, 10, allow_nan=False)), min_size=1, max_size=4
)


@settings(max_examples=300, deadline=None)
@given(st.lists(OPTIONS, min_size=1, max_size=5), st.integers(0, 250))
def test_within_the_budget_and_a_step_from_the_best(tensors: list[list[Option]], budget: int) -> None:
    options = {str(i): each for i, each in enumerate(tensors)}
    possible = [total(each) for each in itertools.product(*tensors)]
    fitting = [loss for nbytes, loss in possible if nbytes <= budget]
    if not fitting:
        with pytest.raises(ValueError, match="more than the budget"):
            choose(options, budget)
        return
    chosen = choose(options, budget)
    assert all(chosen[key] in options[key] for key in options)
    nbytes, loss = total(list(chosen.values()))
    assert nbytes <= budget
    step = max(max(o.loss for o in each) - min(o.loss for o in each) for each in tensors)
    assert min(fitting) - 1e-9 <= loss <= min(fitting) + step + 1e-9
    assert chosen == choose(dict(reversed(options.items())), budget)
