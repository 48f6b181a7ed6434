"""Logits to one token id: options, and a sampler that never sorts the vocabulary.

Definitions and order are those of transformers' logits processors: bias, repetition penalty, presence penalty,
temperature, top-k, top-p, min-p. Only what survives top-k is scaled and exponentiated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from edgeship_runtime.errors import EngineError, UsageError

_COLD = 1e-5  # temperatures below leave nothing but the largest logit in float32
_COLUMNS = 2048  # top-k bounds its threshold by that many maxima, or four times k if that is more
_BLOCK = 256  # weights are added up in blocks: a running sum over a whole vocabulary takes a millisecond and more
_BINS = 4096  # of the histogram that finds top-p's threshold
_SORTABLE = 4096  # candidates few enough to sort
_HEAP = 32  # bytes for each token: twice what top-p takes for its arrays in the worst case
_CUTS = (1e-3, 1e-5)  # weights that top-p looks above first: mostly they add up to enough


@dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """How to choose tokens and when to end; every value is checked on creation (UsageError)."""

    max_tokens: int | None = None
    """Tokens to generate at most; None: until the context is full."""
    temperature: float = 0.0
    """0 (or below 1e-5): greedy, the largest logit; then top_k, top_p, min_p and seed change nothing."""
    top_k: int = 0
    """Keep the k largest logits, and those equal to the k-th; 0: all."""
    top_p: float = 1.0
    """Keep the smallest set of most probable tokens whose probabilities add up to this, at least one; 1: all."""
    min_p: float = 0.0
    """Keep tokens at least this fraction as probable as the most probable one; 0: all."""
    repetition_penalty: float = 1.0
    """Divides positive and multiplies negative logits of tokens in prompt or answer (Keskar et al. 2019); 1: off."""
    presence_penalty: float = 0.0
    """Subtracted from the logits of tokens in the answer so far (the prompt does not count); 0: off."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """(token id, what to add to its logit) pairs; -inf bans a token. A mapping is taken too."""
    stop: tuple[str, ...] = ()
    """Strings that end the answer; none is given out, whole or in part. One string is taken too."""
    seed: int | None = None
    """Same seed, artifact, engine and threads: same tokens; None: a fresh one each time."""
    ignore_eos: bool = False
    """Go on past end-of-sequence tokens (for measurements)."""

    def __post_init__(self) -> None:
        """Bring `stop` and `logit_bias` to tuples and check every value."""
        stop, pairs = cast(Any, self.stop), cast(Any, self.logit_bias)
        if isinstance(pairs, Mapping):
            pairs = pairs.items()
        try:
            object.__setattr__(self, "stop", (stop,) if isinstance(stop, str) else tuple(stop))
            object.__setattr__(self, "logit_bias", tuple((token, bias) for token, bias in pairs))
        except (TypeError, ValueError):
            raise UsageError("expected stop as strings and logit_bias as pairs of token id and number") from None
        problems = _problems(self)
        if problems:
            raise UsageError("; ".join(problems), hint="see GenerationOptions for what each option means")

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Names of all options, in order."""
        return tuple(field.name for field in fields(cls))


def _problems(options: GenerationOptions) -> list[str]:
    """What is wrong with the options, each with what was expected and found."""
    found = [
        _whole("max_tokens", options.max_tokens, 1, none=True),
        _number("temperature", options.temperature, 0.0, math.inf),
        _whole("top_k", options.top_k, 0),
        _number("top_p", options.top_p, 0.0, 1.0),
        _number("min_p", options.min_p, 0.0, 1.0),
        _number("repetition_penalty", options.repetition_penalty, 0.0, math.inf, open_low=True),
        _number("presence_penalty", options.presence_penalty, -math.inf, math.inf),
        _whole("seed", options.seed, 0, none=True),
    ]
    for token, bias in options.logit_bias:
        found.append(_whole("logit_bias: token id", token, 0))
        if bias != -math.inf:
            found.append(_number(f"logit_bias of token {token}", bias, -math.inf, math.inf))
    if not all(isinstance(each, str) and each for each in options.stop):
        found.append("stop: expected strings of at least one character")
    if not isinstance(options.ignore_eos, bool):
        found.append(f"ignore_eos: expected True or False, found {options.ignore_eos!r}")
    return [problem for problem in found if problem]


def _whole(name: str, value: object, low: int, *, none: bool = False) -> str:
    if (none and value is None) or (isinstance(value, int) and not isinstance(value, bool) and value >= low):
        return ""
    return f"{name}: expected a whole number of at least {low}, found {value!r}"


def _number(name: str, value: object, low: float, high: float, *, open_low: bool = False) -> str:
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if number and low <= cast(float, value) <= high and not (open_low and value == low):
        return ""
    least = "more than" if open_low else "at least"
    span = f"{least} {low:g}" + (f" and at most {high:g}" if math.isfinite(high) else "")
    return f"{name}: expected a number{f' of {span}' if math.isfinite(low) else ''}, found {value!r}"


class Guide(Protocol):
    """Steers one answer token by token."""

    def forced(self) -> int | None:
        """The token that must come now, whatever the logits are; None to choose one."""

    def restrict(self, scores: NDArray[np.float32]) -> None:
        """Set the scores [vocab_size] of tokens that may not come now to -inf, in place."""

    def accept(self, token: int) -> None:
        """Take note of the token that was chosen."""


class Sampler:
    """Chooses the tokens of one answer; deterministic for a seed.

    `prompt` counts for the repetition penalty. Raises UsageError for a logit bias outside the vocabulary.
    """

    def __init__(
        self, options: GenerationOptions, vocab_size: int, prompt: Sequence[int] = (), guide: Guide | None = None
    ) -> None:
        self.options = options
        self._guide = guide
        self._random = np.random.default_rng(options.seed)
        self._bias_ids = np.array([token for token, _ in options.logit_bias], np.int64)
        self._bias = np.array([bias for _, bias in options.logit_bias], np.float32)
        if self._bias_ids.size and self._bias_ids.max() >= vocab_size:
            raise UsageError(f"logit_bias: token id {self._bias_ids.max()} is outside the vocabulary of {vocab_size}")
        self._seen = _IdSet(vocab_size, prompt if options.repetition_penalty != 1 else ())
        self._answer = _IdSet(vocab_size, ())
        self._changes = bool(options.logit_bias) or options.repetition_penalty != 1 or options.presence_penalty != 0
        self._changes = self._changes or guide is not None
        # Memory kept: fresh arrays of a vocabulary's size cost more in page faults than what is done with them.
        self._scores = np.empty(vocab_size if self._changes else 0, np.float32)
        self._scratch = np.empty((2, vocab_size if options.temperature >= _COLD else 0), np.float32)
        if options.top_p < 1:
            # top-p makes arrays whose sizes vary. glibc maps each anew, page by page, until it has freed a larger one.
            np.empty(_HEAP * vocab_size, np.uint8)

    def choose(self, logits: NDArray[np.float32]) -> int:
        """Choose the next token from logits [vocab_size] (left as they are) and remember it for the penalties.

        Raises EngineError when the logits are not numbers, or all of them are banned.
        """
        forced = None if self._guide is None else self._guide.forced()
        best = self._pick(logits) if forced is None else forced
        if self._guide is not None:
            self._guide.accept(best)
        self._seen.add(best)
        self._answer.add(best)
        return best

    def _pick(self, logits: NDArray[np.float32]) -> int:
        with np.errstate(over="ignore", invalid="ignore"):  # what becomes of it is looked at below
            scores = self.penalize(logits) if self._changes else logits
            best = int(scores.argmax())  # the first NaN, if there is one
            if not math.isfinite(scores[best]):
                raise EngineError(
                    f"the largest logit is {scores[best]}; no token can be chosen",
                    hint="the weights are damaged (run `edgeship-runtime verify`), or logit_bias bans every token",
                )
            if self.options.temperature >= _COLD:
                best = self._draw(*shortlist(scores, self.options, self._scratch))
        return best

    def penalize(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return logits with bias and penalties applied, in memory that the next call reuses."""
        scores = self._scores
        scores[:] = logits
        np.add.at(scores, self._bias_ids, self._bias)  # an id may be given twice
        penalty = self.options.repetition_penalty
        if penalty != 1:
            ids = self._seen.ids
            values = scores[ids]
            scores[ids] = np.where(values < 0, values * penalty, values / penalty)
        if self.options.presence_penalty:
            scores[self._answer.ids] -= self.options.presence_penalty
        if self._guide is not None:
            self._guide.restrict(scores)
        return scores

    def _draw(self, ids: NDArray[np.int64] | None, weights: NDArray[np.floating]) -> int:
        """A place with probability proportional to its weight, by inverse distribution: first its block, then it."""
        blocks = np.add.reduceat(weights, np.arange(0, len(weights), _BLOCK), dtype=np.float64)
        sums = np.cumsum(blocks)
        wanted = self._random.random() * sums[-1]
        block = min(int(np.searchsorted(sums, wanted, side="right")), len(sums) - 1)
        start = block * _BLOCK
        inside = np.cumsum(weights[start : start + _BLOCK], dtype=np.float64)
        rest = wanted - (sums[block - 1] if block else 0.0)
        place = start + min(int(np.searchsorted(inside, rest, side="right")), len(inside) - 1)
        return place if ids is None else int(ids[place])


def shortlist(
    scores: NDArray[np.float32], options: GenerationOptions, scratch: NDArray[np.float32]
) -> tuple[NDArray[np.int64] | None, NDArray[np.floating]]:
    """Ids that temperature, top-k, top-p and min-p leave, ascending (None: all), and their weights.

    A weight is the probability over that of the best token, so in 0..1; the weights do not add up to 1. `scratch`:
    [2, at least len(scores)]; the weights may lie in it.
    """
    ids = top_k_ids(scores, options.top_k) if 0 < options.top_k < len(scores) else None
    values = scores if ids is None else scores[ids]
    exponents, weights = scratch[:, : len(values)]
    np.subtract(values, values.max(), out=exponents)
    np.divide(exponents, np.float32(options.temperature), out=exponents)
    np.exp(exponents, out=weights)
    keep: NDArray[np.int64] | None = None
    if options.top_p < 1:
        keep = nucleus(exponents, weights, options.top_p)
    if options.min_p > 0:
        probable = weights >= options.min_p
        keep = np.flatnonzero(probable) if keep is None else keep[probable[keep]]
    if keep is None:
        return ids, weights
    return keep if ids is None else ids[keep], weights[keep]


def top_k_ids(scores: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Ids, ascending, of the k largest scores and of those equal to the k-th, -inf left out; 1 <= k <= len(scores)."""
    columns = max(_COLUMNS, 4 * k)
    slices = len(scores) // columns
    bound = -np.inf
    if slices > 1:
        # The k-th largest of the column maxima is no larger than the k-th largest score: a bound that leaves few.
        maxima = scores[: columns * slices].reshape(slices, columns).max(axis=0)
        if np.count_nonzero(maxima > -np.inf) >= k:  # a guide may have left few tokens
            bound = np.partition(maxima, columns - k)[columns - k]
    ids = np.flatnonzero(scores >= bound) if bound > -np.inf else np.flatnonzero(scores > -np.inf)
    if len(ids) <= k:
        return ids
    values = scores[ids]
    threshold = np.partition(values, len(values) - k)[len(values) - k]
    kept: NDArray[np.int64] = ids[values >= threshold]
    return kept


def nucleus(exponents: NDArray[np.float32], weights: NDArray[np.float32], top_p: float) -> NDArray[np.int64]:
    """Places, ascending, of the fewest largest weights that add up to `top_p` of all (at least one).

    `weights` is exp(`exponents`), the largest exponent 0. Of equal weights the first places are taken.
    """
    target = top_p * float(weights.sum(dtype=np.float64))
    for cut in _CUTS:
        above = np.flatnonzero(weights > cut)
        if float(weights[above].sum(dtype=np.float64)) >= target:
            places: NDArray[np.int64] = above[_heaviest(exponents[above], weights[above], target)]
            return places
    return _heaviest(exponents, weights, target)


def _heaviest(exponents: NDArray[np.float32], weights: NDArray[np.float32], target: float) -> NDArray[np.int64]:
    """The fewest places, ascending, whose weights reach the target; at least one; of equal ones the first."""
    if len(weights) <= _SORTABLE:
        return np.sort(_first_sorted(np.arange(len(weights)), weights, target))
    # Bins by exponent, the largest first: all bins before the one in which the sum reaches the target are kept.
    width = min(max(-float(exponents.min()), 1e-6), 40.0)
    scaled = np.minimum(exponents * np.float32(-(_BINS - 1) / width), np.float32(_BINS - 1))
    bins = scaled.astype(np.intp)
    sums = np.cumsum(np.bincount(bins, weights=weights, minlength=_BINS))
    edge = min(int(np.searchsorted(sums, target)), _BINS - 1)
    inside = np.flatnonzero(bins == edge)
    before = float(sums[edge - 1]) if edge else 0.0
    chosen = bins < edge
    chosen[_first_sorted(inside, weights[inside], target - before)] = True
    return np.flatnonzero(chosen)


def _first_sorted(places: NDArray[np.int64], weights: NDArray[np.float32], target: float) -> NDArray[np.int64]:
    """The fewest places, heaviest first, whose weights reach the target; at least one."""
    order = np.argsort(-weights, kind="stable")
    sums = np.cumsum(weights[order], dtype=np.float64)
    return places[order[: int(np.searchsorted(sums, target)) + 1]]


class _IdSet:
    """Distinct token ids as an array that grows in place."""

    def __init__(self, vocab_size: int, ids: Sequence[int]) -> None:
        self._member = np.zeros(vocab_size, np.bool_)
        known = np.unique(np.asarray(ids, np.int64))
        self._member[known] = True
        self._ids = np.concatenate([known, np.empty(256, np.int64)])
        self._count = len(known)

    @property
    def ids(self) -> NDArray[np.int64]:
        return self._ids[: self._count]

    def add(self, token: int) -> None:
        if self._member[token]:
            return
        self._member[token] = True
        if self._count == len(self._ids):
            self._ids = np.concatenate([self._ids, np.empty_like(self._ids)])
        self._ids[self._count] = token
        self._count += 1
