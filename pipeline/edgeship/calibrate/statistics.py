"""What the inputs of each linear layer look like on calibration text: second moments, and Hessians."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from edgeship.archs.base import Decoder
from edgeship.blas import add_product, all_cores, product
from edgeship.calibration import STRIPE
from edgeship.kept import written_whole
from edgeship.progress import Progress
from edgeship.reference.arithmetic import Floats
from edgeship.reference.blocks import Walk, walk_blocks
from edgeship.reference.weights import HEAD, Weights

Moments = NDArray[np.float64]


@dataclass(frozen=True)
class Statistics:
    """The inputs x `[tokens, columns]` of one weight, summed up."""

    second_moments: Moments  # [columns]: the mean of x squared over the tokens
    count: int  # tokens


class Sums:
    """Sums of squares over batches of one input, and of products of columns where `hessian` asks for them."""

    def __init__(self, columns: int, *, hessian: bool = False, through: Floats | None = None) -> None:
        """`through`, a weight `[rows, columns]`, has differences summed as they come out of it: fewer if it narrows."""
        self.count = 0
        self._squares = np.zeros(columns, np.float64)
        self._products = np.zeros((columns, columns), np.float32) if hessian else None
        self._through = through
        self._cross: Floats | None = None

    def add(self, x: Floats, exact: Floats | None = None) -> None:
        """Count in the input x `[T, columns]` of a batch, and how far it is from the `exact` one, `[T, columns]`."""
        if exact is not None:
            away: Floats = exact - x
            if self._through is not None:
                away = product(away, self._through.T)
            if self._cross is None:
                self._cross = np.zeros((away.shape[1], x.shape[1]), np.float32)
            for a in range(0, away.shape[1], STRIPE):
                add_product(self._cross[a : a + STRIPE], away[:, a : a + STRIPE].T, x)
        self.count += len(x)
        self._squares += np.einsum("tc,tc->c", x, x, dtype=np.float64)
        if self._products is not None:
            for a in range(0, x.shape[1], STRIPE):  # above the diagonal only: the other half mirrors it
                add_product(self._products[a : a + STRIPE, a:], x[:, a : a + STRIPE].T, x[:, a:])

    def moments(self) -> Moments:
        """The mean squares, `[columns]`."""
        return self._squares / max(self.count, 1)

    def missing(self, rows: Floats, a: int) -> Floats | None:
        """What a weight's outputs lack, times its inputs, as a mean `[n, columns]`, for its `rows` from a.

        None where no exact inputs were given.
        """
        if self._cross is None:
            return None
        lacking = product(rows, self._cross) if self._through is None else self._cross[a : a + len(rows)].copy()
        lacking /= np.float32(max(self.count, 1))
        return lacking

    def take_upper(self) -> Floats:
        """The Hessian, of which only the upper triangle holds numbers to use; it is the caller's from here on."""
        assert self._products is not None
        products, self._products = self._products, None
        products /= np.float32(max(self.count, 1))
        return products


def statistics(
    decoder: Decoder,
    weights: Weights,
    tokens: Sequence[Sequence[int]],
    *,
    progress: Progress | None = None,
    directory: Path | None = None,
    digest: str = "",
) -> dict[str, Statistics]:
    """The statistics of every linear layer's input, by the role key of its weight, over the token sequences.

    "head.weight" answers for a tied model too. The float pass goes block by block; with `directory` it resumes at a
    block, `digest` naming the weights. Raises ValueError as `Walk` does.
    """
    walk = Walk(decoder, weights, tokens, directory=directory, digest=digest)
    out = _load(directory, walk)
    if out is None:
        walk.start_over()
        out = {}
    sums: dict[tuple[str, ...], Sums] = {}

    def see(keys: Sequence[str], x: Floats) -> None:
        site = tuple(keys)
        if site not in sums:
            sums[site] = Sums(x.shape[1])
        sums[site].add(x)

    for index in walk_blocks(walk, see, progress):
        found = {key: Statistics(total.moments(), total.count) for site, total in sums.items() for key in site}
        _save(directory, walk, index, found)
        out |= found
        sums.clear()
    with all_cores():
        for batch in walk.batches:
            see((HEAD,), walk.final(batch))
    return out | {HEAD: Statistics(sums[HEAD,].moments(), sums[HEAD,].count)}


def _file(directory: Path, walk: Walk, index: int) -> Path:
    return directory / f"statistics-{walk.digest}-{index}.npz"


def _save(directory: Path | None, walk: Walk, index: int, found: Mapping[str, Statistics]) -> None:
    if directory is None:
        return
    arrays: dict[str, NDArray[np.generic]] = {}
    for key, each in found.items():
        arrays[f"{key} moments"], arrays[f"{key} count"] = each.second_moments, np.asarray(each.count)
    with written_whole(_file(directory, walk, index)) as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # numpy's stub takes its other parameter for one of these


def _load(directory: Path | None, walk: Walk) -> dict[str, Statistics] | None:
    """The statistics of the blocks that the walk has behind it; None where some cannot be read."""
    out: dict[str, Statistics] = {}
    try:
        for index in range(walk.done) if directory is not None else ():
            assert directory is not None
            out |= _read(_file(directory, walk, index))
    except (OSError, ValueError, EOFError, KeyError, BadZipFile):
        return None
    return out


def _read(file: Path) -> dict[str, Statistics]:
    out = {}
    with np.load(file) as arrays:
        for name in arrays.files:
            key, what = name.split(" ")
            if what == "moments":
                out[key] = Statistics(arrays[name], int(arrays[f"{key} count"]))
    return out
