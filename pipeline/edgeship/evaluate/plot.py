"""Size against mean KL divergence of all artifacts, as a PNG: both axes logarithmic, drawn with Pillow."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import ceil, floor, log10
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeship.errors import ArtifactError, DependencyError, UsageError

if TYPE_CHECKING:
    from PIL import ImageDraw

WIDTH, HEIGHT = 900, 560
LEFT, RIGHT, TOP, BOTTOM = 110, 40, 50, 70
INK, GRID, DOT = "#26323c", "#dfe5ea", "#1f5fa8"
SMALLEST_KL = 1e-7  # where a float artifact is drawn: a logarithm has no zero


@dataclass(frozen=True)
class Point:
    """One artifact: its size in MB, its mean KL divergence in nats."""

    name: str
    size_mb: float
    kl_mean: float


@dataclass(frozen=True)
class Axis:
    """A logarithmic axis from `low` to `high`, drawn between two pixels."""

    low: float
    high: float
    start: int
    end: int

    def at(self, value: float) -> float:
        """The pixel of a value."""
        share = (log10(value) - log10(self.low)) / (log10(self.high) - log10(self.low))
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round numbers within: the shorter the axis, the more of them to a power of ten."""
        powers = range(floor(log10(self.low)), ceil(log10(self.high)) + 1)
        decades = log10(self.high / self.low)
        steps = (1, 1.5, 2, 3, 4, 5, 7) if decades < 1 else (1, 2, 5) if decades < 3 else (1,)
        ticks = [step * 10.0**power for power in powers for step in steps]
        return [t for t in ticks if self.low * 0.999 <= t <= self.high * 1.001]


def require(path: Path) -> None:
    """Raises UsageError where no PNG can be at `path`, DependencyError without Pillow: before anything long."""
    if path.suffix.lower() != ".png":
        raise UsageError(f"--plot: expected a file named *.png, found {path}.", hint="the plot is a PNG")
    above = next(each for each in path.absolute().parents if each.exists())
    if not above.is_dir() or not os.access(above, os.W_OK) or path.is_dir():
        raise UsageError(f"--plot: no file can be written at {path}.", hint="give one in a directory of yours")
    try:
        import PIL.Image  # noqa: F401
    except ImportError:
        raise DependencyError(
            "expected the package pillow, which draws the plot, found none.",
            hint="pip install 'edgeship[plot]', or leave out --plot",
        ) from None


def write_plot(points: Sequence[Point], path: Path) -> None:
    """Write the PNG of one point at least; raises as `require` does, and ArtifactError where it cannot be written."""
    require(path)
    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(15)
    x = _axis([p.size_mb for p in points], LEFT, WIDTH - RIGHT)
    y = _axis([max(p.kl_mean, SMALLEST_KL) for p in points], HEIGHT - BOTTOM, TOP)
    for tick in x.ticks():
        draw.line((x.at(tick), TOP, x.at(tick), HEIGHT - BOTTOM), fill=GRID)
        draw.text((x.at(tick), HEIGHT - BOTTOM + 8), f"{tick:g}", INK, font, anchor="ma")
    for tick in y.ticks():
        draw.line((LEFT, y.at(tick), WIDTH - RIGHT, y.at(tick)), fill=GRID)
        draw.text((LEFT - 8, y.at(tick)), f"{tick:g}", INK, font, anchor="rm")
    draw.rectangle((LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM), outline=INK)
    draw.text((WIDTH / 2, HEIGHT - 26), "size on disk, MB", INK, font, anchor="ma")
    draw.text((LEFT, TOP - 28), "mean KL divergence from the float model, nats", INK, font, anchor="la")
    _draw_points(draw, font, points, x, y)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, "PNG")
    except (OSError, ValueError) as error:
        hint = "give --plot a file in a directory that you may write to"
        raise ArtifactError(f"{path}: the plot cannot be written ({error}).", hint=hint) from None


def _draw_points(draw: ImageDraw.ImageDraw, font: Any, points: Sequence[Point], x: Axis, y: Axis) -> None:
    dots = [(x.at(point.size_mb), y.at(max(point.kl_mean, SMALLEST_KL))) for point in points]
    taken: list[tuple[float, float, float, float]] = [(at - 5, up - 5, at + 5, up + 5) for at, up in dots]
    for dot in taken:
        draw.ellipse(dot, fill=DOT)
    for point, (at, height) in zip(points, dots, strict=True):
        right = at < (LEFT + WIDTH - RIGHT) / 2
        sides = [(at + 10, "lm"), (at - 10, "rm")] if right else [(at - 10, "rm"), (at + 10, "lm")]
        for shift, (place, anchor) in product((0, -18, 18, -36, 36, -54, 54), sides):  # past the names already there
            box = draw.textbbox((place, height + shift), point.name, font, anchor)
            if box[0] > LEFT and box[2] < WIDTH - RIGHT and not any(_overlap(box, other) for other in taken):
                break
        taken.append(box)
        if shift:
            draw.line((at, height, place, height + shift), fill=DOT)
        draw.text((place, height + shift), point.name, INK, font, anchor=anchor)


def _axis(values: Sequence[float], start: int, end: int) -> Axis:
    """From a little below the smallest value to a little above the largest, an octave at least."""
    return Axis(min(values) / 1.5, max(values) * 1.5, start, end)


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
