"""Line charts as inline SVG: colours come from the page's style, so that they follow light and dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

WIDTH, HEIGHT = 360.0, 220.0
LEFT, RIGHT, TOP, BOTTOM = 56.0, 12.0, 12.0, 40.0  # margins
MOST_POINTS = 400  # of a line: more are averaged in groups
SMALL = 0.01  # numbers of an axis below it are written with a power of ten
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


class Series(NamedTuple):
    """A line.

    Attributes:
        color: a name of the page's style: blue, orange, green or purple.
        dots: radius of each point, pixels; None draws none.
    """

    name: str
    points: Sequence[tuple[float, float]]
    color: str
    dots: Sequence[float] | None = None


class Axis(NamedTuple):
    """What an axis is called and where it ends; None: where the points end, rounded."""

    label: str
    low: float | None = 0.0
    high: float | None = None

    def over(self, values: Sequence[float]) -> Scale:
        """The axis with four to eight round numbers that hold all values and the ends that are given."""
        low = min(values) if self.low is None else self.low
        high = max(values) if self.high is None else self.high
        high = high if high > low else low + (abs(low) or 1.0)
        power = 10.0 ** math.floor(math.log10((high - low) / 4))
        step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if (high - low) / (power * factor) <= 6)
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        return Scale(self.label, [round(number * step, 12) for number in range(first, last + 1)])


class Scale(NamedTuple):
    """An axis as it is drawn, with round numbers from its lowest to its highest value."""

    label: str
    ticks: Sequence[float]

    @property
    def exponent(self) -> int:
        """The power of ten that is left out of the numbers of a scale of small ones, and is said in its title."""
        largest = max(map(abs, self.ticks))
        return math.floor(math.log10(largest)) if 0 < largest < SMALL else 0

    @property
    def numbers(self) -> list[str]:
        """What stands at the ticks, all with the same number of digits after the point."""
        values = [f"{tick / 10**self.exponent:g}" for tick in self.ticks]
        decimals = max(len(value.partition(".")[2]) for value in values)
        return [f"{float(value):.{decimals}f}" for value in values]

    @property
    def title(self) -> str:
        return f"{self.label}, 10{str(self.exponent).translate(_RAISED)}" if self.exponent else self.label

    @property
    def low(self) -> float:
        return self.ticks[0]

    @property
    def high(self) -> float:
        return self.ticks[-1]


class Frame(NamedTuple):
    """Axes, and the place for what is drawn between them; sizes in pixels."""

    x: Scale
    y: Scale
    width: float = WIDTH
    height: float = HEIGHT

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Where a point is in the picture, from its upper left corner."""
        across = (x - self.x.low) / (self.x.high - self.x.low)
        up = (y - self.y.low) / (self.y.high - self.y.low)
        return LEFT + across * (self.width - LEFT - RIGHT), self.height - BOTTOM - up * (self.height - TOP - BOTTOM)

    def figure(self, title: str, content: str, legend: str = "") -> str:
        """The figure around what is drawn: grid, numbers, labels; the title below, and for those who do not see it."""
        right, bottom = self.width - RIGHT, self.height - BOTTOM
        grid = "".join(
            f'<path class="grid" d="M{LEFT} {at:.1f}H{right}"/>'
            f'<text x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{text}</text>'
            for value, text in zip(self.y.ticks, self.y.numbers, strict=True)
            for at in [self.place(self.x.low, value)[1]]
        ) + "".join(
            f'<text x="{self.place(value, self.y.low)[0]:.1f}" y="{bottom + 18}" text-anchor="middle">{text}</text>'
            for value, text in zip(self.x.ticks, self.x.numbers, strict=True)
        )
        across, up = f'x="{(LEFT + right) / 2:.0f}" y="{self.height - 4}"', f"translate(12 {(TOP + bottom) / 2:.0f})"
        labels = (
            f'<text {across} text-anchor="middle">{escape(self.x.title)}</text>'
            f'<text transform="{up} rotate(-90)" text-anchor="middle">{escape(self.y.title)}</text>'
        )
        key = f'<span class="key">{legend}</span>' if legend else ""
        return (
            f'<figure class="chart"><svg viewBox="0 0 {self.width:.0f} {self.height:.0f}" role="img" '
            f'aria-label="{escape(title)}">{grid}{labels}{content}</svg><figcaption>{escape(title)}{key}</figcaption>'
            "</figure>"
        )


def line_chart(title: str, series: Sequence[Series], x: Axis, y: Axis, *, diagonal: bool = False) -> str:
    """A figure with one or several lines, a legend where there are several; empty where there is no point.

    Args:
        title: what it shows; also its name for those who do not see it.
        diagonal: also draw where both values are equal.
    """
    series = [line._replace(points=_thinned(line.points)) if line.dots is None else line for line in series]
    points = [point for line in series for point in line.points]
    if not points:
        return ""
    frame = Frame(x.over([across for across, _ in points]), y.over([up for _, up in points]))
    content = "".join(_line(line, [frame.place(*point) for point in line.points]) for line in series)
    if diagonal:
        low, high = max(frame.x.low, frame.y.low), min(frame.x.high, frame.y.high)
        ends = [frame.place(value, value) for value in (low, high)]
        content = f'<path class="diagonal" d="{_path(ends)}"/>{content}'
    legend = "".join(f'<span class="{line.color}"><i></i>{escape(line.name)}</span>' for line in series)
    return frame.figure(title, content, legend if len(series) > 1 else "")


def _line(line: Series, places: Sequence[tuple[float, float]]) -> str:
    dots = "".join(
        f'<circle cx="{at_x:.1f}" cy="{at_y:.1f}" r="{radius:.1f}"><title>{escape(line.name)}: {value:.4g} at {at:.4g}'
        "</title></circle>"
        for (at_x, at_y), (at, value), radius in zip(places, line.points, line.dots or (), strict=False)
    )
    return f'<g class="{line.color}"><path d="{_path(places)}"/>{dots}</g>'


def _path(places: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most `MOST_POINTS` points: the last place and the mean value of groups of neighbours."""
    size = -(-len(points) // MOST_POINTS)
    groups = [points[start : start + size] for start in range(0, len(points), size or 1)]
    return [(group[-1][0], math.fsum(value for _, value in group) / len(group)) for group in groups]
