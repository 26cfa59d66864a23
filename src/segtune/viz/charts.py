"""Line charts: round axes and places of points, which `templates/charts.html` draws as SVG."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

WIDTH, HEIGHT = 360, 220
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 12, 40  # margins
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

    @property
    def circles(self) -> list[tuple[tuple[float, float], float]]:
        """Points with the radius of each; none where none are drawn."""
        return list(zip(self.points, self.dots or (), strict=False))


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
    def marks(self) -> list[tuple[float, str]]:
        """The ticks, each with its number."""
        return list(zip(self.ticks, self.numbers, strict=True))

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
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    top: int = TOP

    @property
    def right(self) -> int:
        return self.width - RIGHT

    @property
    def bottom(self) -> int:
        return self.height - BOTTOM

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Where a point is in the picture, from its upper left corner."""
        across = (x - self.x.low) / (self.x.high - self.x.low)
        up = (y - self.y.low) / (self.y.high - self.y.low)
        return self.left + across * (self.right - self.left), self.bottom - up * (self.bottom - self.top)

    def path(self, points: Iterable[tuple[float, float]]) -> str:
        """The line through points, as the attribute `d` of an SVG path."""
        return "M" + "L".join("{:.1f} {:.1f}".format(*self.place(*point)) for point in points)


class LineChart(NamedTuple):
    """What the macro `line_chart` of charts.html draws.

    Attributes:
        title: what it shows; also its name for those who do not see it.
        diagonal: ends of the line on which both values are equal; empty: it is not drawn.
    """

    title: str
    frame: Frame
    lines: Sequence[Series]
    diagonal: Sequence[tuple[float, float]] = ()

    @property
    def legend(self) -> list[tuple[str, str]]:
        """Names and colours of the lines, where there are several."""
        return [(line.name, line.color) for line in self.lines] if len(self.lines) > 1 else []


def line_chart(title: str, series: Sequence[Series], x: Axis, y: Axis, *, diagonal: bool = False) -> LineChart | None:
    """A chart of one or several lines; None where there is no point.

    Args:
        diagonal: also draw where both values are equal.
    """
    series = [line._replace(points=_thinned(line.points)) if line.dots is None else line for line in series]
    points = [point for line in series for point in line.points]
    if not points:
        return None
    frame = Frame(x.over([across for across, _ in points]), y.over([up for _, up in points]))
    ends = max(frame.x.low, frame.y.low), min(frame.x.high, frame.y.high)
    return LineChart(title, frame, series, [(end, end) for end in ends] if diagonal else ())


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most `MOST_POINTS` points: the last place and the mean value of groups of neighbours."""
    size = -(-len(points) // MOST_POINTS)
    groups = [points[start : start + size] for start in range(0, len(points), size or 1)]
    return [(group[-1][0], math.fsum(value for _, value in group) / len(group)) for group in groups]
