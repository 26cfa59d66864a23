from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from segtune.viz.charts import MOST_POINTS, Axis, Frame, LineChart, Scale, Series, line_chart
from support.html_reading import drawn


@pytest.mark.parametrize(
    ("values", "axis", "ticks"),
    [
        ([0.2, 0.81], Axis("mIoU"), ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        ([0.3, 1.4], Axis("loss"), ["0.00", "0.25", "0.50", "0.75", "1.00", "1.25", "1.50"]),
        ([1, 600], Axis("step"), ["0", "100", "200", "300", "400", "500", "600"]),
        ([0.3], Axis("confidence", 0, 1), ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        ([12.0, 19.0], Axis("x", None), ["12", "14", "16", "18", "20"]),
        ([-3.0], Axis("x", None), ["-3.0", "-2.5", "-2.0", "-1.5", "-1.0", "-0.5", "0.0"]),
        ([0.0], Axis("x"), ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
    ],
)
def test_axes_have_round_numbers_around_all_values(values: list[float], axis: Axis, ticks: list[str]) -> None:
    scale = axis.over(values)
    assert scale.numbers == ticks
    assert scale.low <= min(values) and max(values) <= scale.high and scale.title == axis.label


def test_small_numbers_have_a_power_of_ten() -> None:
    scale = Axis("rate").over([5.9e-5, 1e-7])
    assert scale.numbers == ["0", "1", "2", "3", "4", "5", "6"]
    assert scale.title == "rate, 10⁻⁵"


def test_points_lie_where_their_values_say() -> None:
    frame = Frame(Scale("x", [0, 10]), Scale("y", [0, 5]), width=168, height=152)  # 100 x 100 between the margins
    assert frame.place(0, 0) == (56, 112)
    assert frame.place(10, 5) == (156, 12)
    assert frame.place(2.5, 1) == (81, 92)


def parts(chart: LineChart | None) -> ElementTree.Element:
    return ElementTree.fromstring(drawn("viz/templates/charts.html", "line_chart", chart).strip())


def test_lines_have_a_legend_and_a_title() -> None:
    lines = [Series("a<b", [(0, 0), (10, 1)], "blue"), Series("c", [(5, 0.5)], "orange", [4.0])]
    figure = parts(line_chart("Two & more", lines, Axis("step"), Axis("mIoU"), diagonal=True))
    assert figure.find("svg").get("aria-label") == "Two & more"
    assert [group.get("class") for group in figure.iter("g")] == ["blue", "orange"]
    (dot,) = figure.iter("circle")
    assert (dot.get("r"), dot.find("title").text) == ("4.0", "c: 0.5 at 5")
    assert "".join(figure.find("figcaption").itertext()).split() == ["Two", "&", "morea<b", "c"]
    single = parts(line_chart("One", lines[:1], Axis("step"), Axis("mIoU")))
    assert "".join(single.find("figcaption").itertext()) == "One"
    nothing = line_chart("None", [Series("a", [], "blue")], Axis("step"), Axis("mIoU"))
    assert nothing is None and drawn("viz/templates/charts.html", "line_chart", nothing).strip() == ""


def test_long_lines_are_averaged_in_groups() -> None:
    points = [(float(step), float(step % 2)) for step in range(1, 8 * MOST_POINTS + 1)]  # 0 and 1 by turns
    figure = parts(line_chart("Long", [Series("a", points, "blue")], Axis("step"), Axis("loss")))
    (path,) = (group.find("path").get("d") for group in figure.iter("g"))
    heights = {float(y) for _, y in re.findall(r"([\d.]+) ([\d.]+)", path)}
    assert path.count("L") == MOST_POINTS - 1
    assert len(heights) == 1  # every group of 8 has a mean of 0.5
