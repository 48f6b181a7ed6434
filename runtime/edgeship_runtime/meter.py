"""What a chat template's render may use: weights of values, prices of operations, a budget and a clock.

Weights are about bytes: characters of text, and NODE for every value. See `edgeship_runtime.sandbox`, which asks
for the price of an operation before it runs and weighs what came of it.
"""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import ItemsView, Iterable, KeysView, Mapping, ValuesView
from typing import Any

import jinja2

MAX_VALUE = 1 << 24
"""Weight of the heaviest single value: four times the text of a million tokens."""
BUDGET = 1 << 28
"""Weight of all values a render may make together: 256 MB, if it kept them all."""
COMPILE_LIMIT_S = 10.0
"""Constant expressions are computed when a template is compiled."""

NODE = 16
_MAX_BITS = 1 << 16  # of an integer: enough for anything but arithmetic for its own sake
_MAX_PLACES = 1000  # decimal places in `round`, whose power of ten is computed in full
_SPLITS = frozenset(("split", "rsplit", "splitlines", "partition", "rpartition"))
_PADS = frozenset(("ljust", "rjust", "center", "zfill"))
_BACKWARD = frozenset(("rfind", "rindex", "rsplit", "rpartition"))
_BLANKS = tuple(letter for letter in map(chr, range(0x3001)) if letter.isspace())  # what `split()` splits at
_PART = 1024  # items read from an iterator between two looks at the budget

_CONTAINERS: Any = list | tuple | set | frozenset | Mapping | KeysView | ValuesView | ItemsView


class LimitError(jinja2.TemplateError):
    """A template asked for more time or memory than any chat needs."""


class Meter:
    """What one render has used so far, and the weights of the conversation it was given."""

    def __init__(self, time_limit_s: float = COMPILE_LIMIT_S) -> None:
        self.used = 0
        self._limit_s = time_limit_s
        self._deadline = time.monotonic() + time_limit_s
        self._given: dict[int, int] = {}

    def give(self, value: object) -> int:
        """Remember the weight of an input and of all inside it: it is looked up again on every use of it."""
        if isinstance(value, Mapping):
            weight = NODE + sum(self.give(item) for pair in value.items() for item in pair)
        elif isinstance(value, list | tuple):
            weight = NODE + sum(map(self.give, value))
        else:
            return self.weigh(value)
        self._given[id(value)] = weight
        return weight

    def limit(self, weight: int) -> None:
        """Raise LimitError when a value of this weight is too heavy."""
        if weight > MAX_VALUE:
            raise LimitError(f"it makes a value larger than {MAX_VALUE >> 20} MB")

    def charge(self, weight: int) -> None:
        """Pay for making something of this weight; raises LimitError when it or the sum is too much."""
        self.limit(weight)
        self.used += weight + NODE
        if self.used > BUDGET:
            raise LimitError(f"it makes more than {BUDGET >> 20} MB in all")
        if time.monotonic() > self._deadline:
            raise LimitError(f"it takes longer than {self._limit_s:g} seconds")

    def weigh(self, value: object) -> int:
        """The weight of a value and all it holds, a value held twice counted twice; stops counting at MAX_VALUE."""
        total = 0
        waiting: list[Any] = [value]
        while waiting:
            item = waiting.pop()
            if isinstance(item, str | bytes):
                total += NODE + len(item)
            elif isinstance(item, _CONTAINERS):
                if id(item) in self._given:
                    total += self._given[id(item)]
                    continue
                total += NODE + NODE * len(item)
                if total > MAX_VALUE:
                    break
                waiting.extend(itertools.chain.from_iterable(item.items()) if isinstance(item, Mapping) else item)
            else:
                total += NODE + (item.bit_length() >> 3 if isinstance(item, int) else 0)
            if total > MAX_VALUE:
                break
        return total

    def keep(self, value: Any) -> Any:
        """Limit a new value by all it holds, charge it for itself (what it holds was paid for), and return it."""
        self.limit(self.weigh(value))
        self.charge(_own_weight(value))
        return value

    def read(self, values: Any) -> Any:
        """The same values with a length: iterators are read into a list, places paid for as they fill."""
        if hasattr(values, "__len__") or not isinstance(values, Iterable):
            return values
        found: list[Any] = []
        source = iter(values)
        while part := list(itertools.islice(source, _PART)):
            self.charge(NODE * len(part))
            found += part
        return found


def _own_weight(value: Any) -> int:
    if isinstance(value, str | bytes):
        return len(value)
    return NODE * len(value) if isinstance(value, _CONTAINERS) else 0


def operator_price(meter: Meter, operator: str, left: Any, right: Any) -> int:
    """What an operator would make at most; raises LimitError when that is too heavy with all it holds."""
    if operator == "%":
        return _format_price(meter, left, right) if isinstance(left, str | bytes) else 0
    if operator == "+":
        if not (_sized(left) and _sized(right)):
            return 0
        meter.limit((meter.weigh(left) + meter.weigh(right)) * _escape_factor(left, right))
        return (_own_weight(left) + _own_weight(right)) * _escape_factor(left, right)
    if isinstance(left, int) and isinstance(right, int):
        power = left.bit_length() * max(right, 0)
        bits = power if operator == "**" else left.bit_length() + right.bit_length()
        if bits > _MAX_BITS:
            raise LimitError(f"it computes a number of {bits} bits")
        return bits >> 3
    if operator == "*" and (_sized(left) or _sized(right)):
        values, times = (left, right) if _sized(left) else (right, left)
        if isinstance(times, int) and times > 0:
            meter.limit(meter.weigh(values) * times)
            return _own_weight(values) * times
    return 0


def method_price(meter: Meter, name: str, text: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """What calling a method of a string would make at most."""
    size = len(text) * _escape_factor(text)
    if name in ("format", "format_map"):
        return size + _format_price(meter, text, (args, kwargs), sign="{")
    if name == "replace":
        return _replace_price(text, *args[:2]) if len(args) > 1 else size
    if name == "join":
        count = len(args[0]) if args and hasattr(args[0], "__len__") else 0
        return size * count + sum(map(meter.weigh, args)) * _escape_factor(text)
    if name in _PADS:
        return size + _whole(args)
    price = 0  # other methods make no more than their text, which is charged when it is there
    separator = next((item for item in args if isinstance(item, str | bytes)), None)
    if name in _SPLITS:
        parts = text.count(separator) if separator else _count_blanks(text)
        price += 2 * NODE * min(parts, _whole(args) or parts)
    if name in _BACKWARD and separator:
        price += len(text) * len(separator) // NODE  # searched backwards in as many steps, not linearly
    return price


def _count_blanks(text: str | bytes) -> int:
    return sum(map(text.count, _BLANKS)) if isinstance(text, str) else len(text)


def filter_price(meter: Meter, name: str, values: list[Any], kwargs: Mapping[str, Any]) -> int:
    """What applying a filter would make at most, where that can be more than a few times its value."""
    if not values:
        return 0
    value, arguments = values[0], [*values[1:], *kwargs.values()]
    if name == "format":
        return _format_price(meter, str(value), (arguments,))
    if name == "replace" and len(arguments) > 1:
        return _replace_price(*(str(item) for item in (value, *arguments[:2])))
    if name == "join":
        separator = max((len(item) for item in arguments if isinstance(item, str)), default=0)
        return meter.weigh(value) + separator * (len(value) if hasattr(value, "__len__") else 0)
    if name == "indent":
        by = max([_whole(arguments), *(len(item) for item in arguments if isinstance(item, str)), 4])
        return len(str(value)) + by * (str(value).count("\n") + 1)
    if name == "round" and _whole(arguments) > _MAX_PLACES:
        raise LimitError(f"it rounds to {_whole(arguments)} places")
    if name == "sum" and any(_sized(item) for item in arguments if not isinstance(item, str)):
        raise LimitError("it sums lists, which takes time in the square of their length")
    if name == "list" and isinstance(value, str):
        return len(value) * 2 * NODE
    return _whole(arguments) * NODE if name in ("center", "batch", "slice") else 0


def _format_price(meter: Meter, form: Any, arguments: Any, sign: str = "%") -> int:
    """Every field may repeat the longest argument and be padded to the largest number in sight."""
    text = form if isinstance(form, str) else form.decode("latin-1")
    count = text.count(sign)
    if not count:
        return len(text)
    width = max((int(digits) for digits in re.findall(r"\d+", text) if len(digits) < 10), default=0)
    if re.search(r"\d{10}", text):
        raise LimitError("it formats with a width of ten digits or more")
    return len(text) + count * (meter.weigh(arguments) * _escape_factor(form) + width + _largest(arguments))


def _replace_price(text: Any, old: Any, new: Any) -> int:
    if not all(isinstance(item, str) for item in (text, old, new)) and not isinstance(text, bytes):
        return len(text)
    count: int = text.count(old)
    return (len(text) + count * len(new)) * _escape_factor(text)


def _whole(arguments: Iterable[Any]) -> int:
    """The largest whole number among arguments, 0 without one."""
    return max((abs(item) for item in arguments if isinstance(item, int)), default=0)


def _largest(value: Any) -> int:
    """The largest whole number anywhere in format arguments: `{:{width}}` and `%*d` take their width from there."""
    if isinstance(value, int):
        return min(abs(value), MAX_VALUE + 1)
    if isinstance(value, Mapping):
        return max(map(_largest, value.values()), default=0)
    return max(map(_largest, value), default=0) if isinstance(value, list | tuple) else 0


def _sized(value: Any) -> bool:
    return isinstance(value, str | bytes | list | tuple)


def _escape_factor(*values: Any) -> int:
    """Markup escapes what it is joined with: one quote becomes five characters."""
    return 6 if any(hasattr(value, "__html__") for value in values) else 1
