"""What a board's sensors said during a measurement: heat, clock, throttling, power. Lines KEY=VALUE, none trusted."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean

from edgeship.ship.report import line

_LINES = 20_000
_MOST_WATTS = 10_000.0
_SENSORS = 64  # names of power sensors that are kept apart
_RAIL = re.compile(
    r"(?P<name>\w{1,40})_(?P<kind>[AV]) (?:current|volt)\(\d{1,3}\)=(?P<value>\d{1,6}\.\d{1,12})[AV]", re.ASCII
)


@dataclass(frozen=True)
class Sensed:
    """Degrees, MHz, the firmware's word on throttling, and the mean power in watts with the sensor that said it.

    None, or empty, for what is missing or absurd. `boot` is the board's boot id when the measurement ended.
    """

    celsius: float | None = None
    mhz: float | None = None
    throttled: str = ""
    watts: float | None = None
    power_sensor: str = ""
    boot: str = ""


def read_sensors(text: str) -> Sensed:
    """Read what a measurement printed beside its answer."""
    told: dict[str, list[str]] = {}
    lines = [each.partition("=") for each in text.splitlines()[:_LINES]]
    for key, equals, value in lines:
        if equals:
            told.setdefault(key, []).append(value)
    degrees = [n / 1000 for n in _numbers(told.get("millidegrees", ())) if -50_000 < n < 200_000]
    clocks = [n / 1000 for n in _numbers(told.get("khz", ())) if n > 0]
    sensor, watts = _power(told, [(key, value) for key, _, value in lines])
    return Sensed(
        celsius=max(degrees, default=None),
        mhz=max(clocks, default=None),
        throttled=line(told.get("throttled", [""])[-1], 40),
        watts=watts,
        power_sensor=sensor,
        boot=line(told.get("boot", [""])[-1], 100),
    )


def _numbers(texts: Iterable[str]) -> list[int]:
    return [int(text) for text in texts if _is_number(text.removeprefix("-"))]


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 19


def _power(told: dict[str, list[str]], lines: list[tuple[str, str]]) -> tuple[str, float | None]:
    """The sensor that saw the most: of a whole and its parts, that is the whole."""
    found = _rails(told.get("microwatts", ())) | _counters(told)
    pmic = _pmic(lines)
    if pmic is not None:
        found["rails of the PMIC together"] = pmic
    sane = {name: watts for name, watts in found.items() if 0 < watts < _MOST_WATTS}
    if not sane:
        return "", None
    name = max(sane, key=lambda each: sane[each])
    return line(name, 80), round(sane[name], 3)


def _rails(texts: Iterable[str]) -> dict[str, float]:
    """Mean watts by sensor, of readings in microwatts."""
    seen: dict[str, list[float]] = {}
    for value, _, name in (text.partition(" ") for text in texts):
        if _is_number(value) and name and (name in seen or len(seen) < _SENSORS):
            seen.setdefault(name, []).append(int(value) / 1e6)
    return {name: fmean(values) for name, values in seen.items()}


def _counters(told: dict[str, list[str]]) -> dict[str, float]:
    """Mean watts by counter of microjoules, from its first reading to its last; each says where it begins anew."""
    times = [float(text) for text in told.get("uptime", ()) if re.fullmatch(r"\d{1,12}\.\d{1,3}", text, re.ASCII)]
    if len(times) < 2 or times[-1] <= times[0]:
        return {}
    seen: dict[str, list[tuple[int, int]]] = {}
    for text in told.get("microjoules", ()):
        value, most, name = [*text.split(" ", 2), "", ""][:3]
        if _is_number(value) and _is_number(most) and name and (name in seen or len(seen) < _SENSORS):
            seen.setdefault(name, []).append((int(value), int(most)))
    found = {}
    for name, readings in seen.items():
        begin, (end, size) = readings[0][0], readings[-1]
        spent = end - begin if end >= begin else end - begin + size
        if spent > 0:
            found[name] = spent / 1e6 / (times[-1] - times[0])
    return found


def _pmic(lines: list[tuple[str, str]]) -> float | None:
    """Mean watts of all rails together, each second's currents times their voltages."""
    totals: list[float] = []
    rails: dict[str, dict[str, float]] = {}

    def close() -> None:
        watts = sum(rail["A"] * rail["V"] for rail in rails.values() if len(rail) == 2)
        if watts:
            totals.append(watts)
        rails.clear()

    for key, value in lines:
        if key == "tick":
            close()
        elif key == "pmic" and (told := _RAIL.fullmatch(value)):
            rails.setdefault(told["name"], {})[told["kind"]] = float(told["value"])
    close()
    return fmean(totals) if totals else None
