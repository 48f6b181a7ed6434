"""A type for every tensor under a budget of bytes: more bits go where a byte of them saves the most loss."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgeship.encodings import Encoding


@dataclass(frozen=True)
class Option:
    """One way to store a tensor."""

    encoding: str
    nbytes: int
    loss: float  # expected of the model with this tensor stored so; tensors' losses add up


def choose(options: Mapping[str, Sequence[Option]], budget: int) -> dict[str, Option]:
    """An option for each tensor, with the least total loss found within `budget` bytes.

    Greedy over each tensor's lower convex hull of loss over bytes (the relaxation of the multiple-choice knapsack:
    Sinha and Zoltners 1979), then over what still fits. It misses the best choice by less than one step's gain. Equal
    inputs give equal choices. Raises ValueError where even the smallest options do not fit.
    """
    steps: list[tuple[float, str, int]] = []
    hulls = {key: _hull(of) for key, of in options.items()}
    chosen = dict.fromkeys(hulls, 0)
    left = budget - sum(hull[0].nbytes for hull in hulls.values())
    if left < 0:
        raise ValueError(f"the smallest types take {-left} bytes more than the budget of {budget}")

    def offer(key: str) -> None:
        at, hull = chosen[key], hulls[key]
        if at + 1 < len(hull):
            heapq.heappush(steps, (-_slope(hull[at], hull[at + 1]), key, at + 1))

    for key in hulls:
        offer(key)
    while steps:
        _, key, to = heapq.heappop(steps)
        cost = hulls[key][to].nbytes - hulls[key][chosen[key]].nbytes
        if cost <= left:  # what does not fit any more blocks this tensor only
            left -= cost
            chosen[key] = to
            offer(key)
    return {key: hulls[key][at] for key, at in chosen.items()}


def assumed(encodings: Sequence[Encoding], nbytes: Mapping[str, int], weights: int) -> list[Option]:
    """The options of a tensor that nothing was measured of: each bit more quarters the error, each weight counts alike.

    `nbytes` is what the tensor takes by encoding name.
    """
    return [Option(e.name, nbytes[e.name], weights * 4.0 ** -(8 * nbytes[e.name] / weights)) for e in encodings]


def _slope(a: Option, b: Option) -> float:
    """What each byte from `a` to the larger `b` saves."""
    return (a.loss - b.loss) / (b.nbytes - a.nbytes)


def _hull(options: Sequence[Option]) -> list[Option]:
    """The options that some price of a byte makes best, the smallest first."""
    hull: list[Option] = []
    for option in sorted(options, key=lambda o: (o.nbytes, o.loss)):
        if hull and (option.nbytes == hull[-1].nbytes or option.loss >= hull[-1].loss):
            continue
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) <= _slope(hull[-1], option):
            hull.pop()
        hull.append(option)
    return hull
