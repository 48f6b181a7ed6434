"""Size against mean KL divergence of all artifacts, as a PNG: both axes logarithmic, drawn with Pillow."""

from __future__ import annotations

import tempfile
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
LEFT, RIGHT, TOP, BOTTOM = 110, 40, 50, 80
INK, GRID, DOT = "#26323c", "#dfe5ea", "#1f5fa8"
NEXT_TO_NOTHING = 1e-5  # nats: a float artifact's, whose kernels only sum in another order
FLOOR = 1.15  # of the axis' lowest value, where those are drawn: a logarithm has no zero
LINE = 22  # pixels between lines of the list
SHIFTS = (0, -18, 18, -36, 36, -54, 54)  # of a name against its point, in pixels

Box = tuple[float, float, float, float]


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


@dataclass(frozen=True)
class Label:
    """A text beside a point."""

    text: str
    at: tuple[float, float]
    anchor: str  # of Pillow: which part of the text lies there
    shift: int  # pixels above or below its point


def require(path: Path) -> None:
    """Raises UsageError where no PNG can be at `path`, DependencyError without Pillow: before anything long."""
    if path.suffix.lower() != ".png":
        raise UsageError(f"--plot: expected a file named *.png, found {path}.", hint="the plot is a PNG")
    above = next(each for each in path.absolute().parents if each.exists())
    try:
        if path.exists():
            path.open("ab").close()
        else:  # rights alone do not tell: nothing can be made in /proc
            tempfile.TemporaryFile(dir=above).close()
    except OSError as error:
        hint = "give one in a directory of yours"
        raise UsageError(f"--plot: no file can be written at {path} ({error.strerror}).", hint=hint) from None
    try:
        import PIL.Image  # noqa: F401
    except ImportError:
        raise DependencyError(
            "expected the package pillow, which draws the plot, found none.",
            hint="pip install 'edgeship[plot]', or leave out --plot",
        ) from None


def write_plot(points: Sequence[Point], path: Path) -> None:
    """Write the PNG of one point at least; raises as `require` does, and ArtifactError where it cannot be written.

    Where the names do not fit beside their points, these have numbers, and the names are listed below.
    """
    require(path)
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(15)
    x, y = _axes(points)
    dots = [(x.at(point.size_mb), y.at(max(point.kl_mean, y.low * FLOOR))) for point in points]
    names = [point.name + (f" ({point.kl_mean:.1g} nats)" if _exact(point, y) else "") for point in points]
    scratch = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    labels = _placed(scratch, font, names, dots)
    listed = [] if labels else [f"{number}  {name}" for number, name in enumerate(names, 1)]
    image = Image.new("RGB", (WIDTH, HEIGHT + LINE * -(-len(listed) // 2) + (LINE if listed else 0)), "white")
    draw = ImageDraw.Draw(image)
    _draw_axes(draw, font, x, y)
    for at, up in dots:
        draw.ellipse((at - 5, up - 5, at + 5, up + 5), fill=DOT)
    numbers = [str(number) for number in range(1, len(points) + 1)]
    for label, (at, up) in zip(labels or _placed(scratch, font, numbers, dots, crowded=True), dots, strict=True):
        if label.shift:
            draw.line((at, up, *label.at), fill=DOT)
        draw.text(label.at, label.text, INK, font, anchor=label.anchor)
    for number, text in enumerate(listed):
        column, row = divmod(number, -(-len(listed) // 2))
        place = (LEFT + column * (WIDTH - LEFT) / 2, HEIGHT + row * LINE)
        draw.text(place, _cut(draw, font, text, (WIDTH - LEFT) / 2 - 10), INK, font, anchor="la")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, "PNG")
    except (OSError, ValueError) as error:
        hint = "give --plot a file in a directory that you may write to"
        raise ArtifactError(f"{path}: the plot cannot be written ({error}).", hint=hint) from None


def _axes(points: Sequence[Point]) -> tuple[Axis, Axis]:
    """Sizes, and divergences but for those that are next to nothing: they would leave the others no room."""
    some = [p.kl_mean for p in points if p.kl_mean > NEXT_TO_NOTHING] or [NEXT_TO_NOTHING]
    low = [min(some) / 3] if min(p.kl_mean for p in points) <= NEXT_TO_NOTHING else []
    x = _axis([p.size_mb for p in points], LEFT, WIDTH - RIGHT)
    return x, _axis([*some, *low], HEIGHT - BOTTOM, TOP)


def _exact(point: Point, y: Axis) -> bool:
    """Whether a point lies below the axis, and is drawn at its end."""
    return point.kl_mean < y.low * FLOOR


def _draw_axes(draw: ImageDraw.ImageDraw, font: Any, x: Axis, y: Axis) -> None:
    for tick in x.ticks():
        draw.line((x.at(tick), TOP, x.at(tick), HEIGHT - BOTTOM), fill=GRID)
        draw.text((x.at(tick), HEIGHT - BOTTOM + 8), f"{tick:g}", INK, font, anchor="ma")
    for tick in y.ticks():
        draw.line((LEFT, y.at(tick), WIDTH - RIGHT, y.at(tick)), fill=GRID)
        draw.text((LEFT - 8, y.at(tick)), f"{tick:g}", INK, font, anchor="rm")
    draw.rectangle((LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM), outline=INK)
    draw.text((WIDTH / 2, HEIGHT - 40), "size on disk, MB", INK, font, anchor="ma")
    draw.text((LEFT, TOP - 28), "mean KL divergence from the float model, nats", INK, font, anchor="la")


def _placed(
    draw: ImageDraw.ImageDraw,
    font: Any,
    texts: Sequence[str],
    dots: Sequence[tuple[float, float]],
    *,
    crowded: bool = False,
) -> list[Label]:
    """A place beside its dot for each text, within the axes and clear of all else; none where there is not one for all.

    `crowded`: the last place tried for those that have none.
    """
    taken: list[Box] = [(at - 5, up - 5, at + 5, up + 5) for at, up in dots]
    out: list[Label] = []
    for text, (at, up) in zip(texts, dots, strict=True):
        right = at < (LEFT + WIDTH - RIGHT) / 2
        sides = [(10, "lm"), (-10, "rm")] if right else [(-10, "rm"), (10, "lm")]
        for shift, (aside, anchor) in product(SHIFTS, sides):
            label = Label(text, (at + aside, up + shift), anchor, shift)
            box = draw.textbbox(label.at, text, font, anchor)
            if _within(box) and not any(_overlap(box, other) for other in taken):
                break
        else:
            if not crowded:
                return []
        taken.append(box)
        out.append(label)
    return out


def _cut(draw: ImageDraw.ImageDraw, font: Any, text: str, width: float) -> str:
    """A text, or as much of its end as has room."""
    if draw.textlength(text, font) <= width:
        return text
    number, _, name = text.partition("  ")
    while name and draw.textlength(f"{number}  …{name}", font) > width:
        name = name[1:]
    return f"{number}  …{name}"


def _within(box: Box) -> bool:
    return box[0] > LEFT and box[2] < WIDTH - RIGHT and box[1] > TOP and box[3] < HEIGHT - BOTTOM


def _axis(values: Sequence[float], start: int, end: int) -> Axis:
    """From a little below the smallest value to a little above the largest, an octave at least."""
    return Axis(min(values) / 1.5, max(values) * 1.5, start, end)


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
