"""The page of a report: one HTML file with numbers, pictures and curves; nothing is loaded from anywhere."""

from __future__ import annotations

from html import escape
from pathlib import Path

import numpy as np

from segtune.charts import Axis, Series, line_chart
from segtune.page import asset, check_page, document, section, tile, write_page
from segtune.report.facts import Facts
from segtune.report.numbers import LEAST_OF_ALL, interval, most_confused, number, percent, regions
from segtune.report.pictures import gallery, suspects
from segtune.report.tables import class_table, confusion, data_table, size_table, table
from segtune.report.training import environment, training

COMMAND = "report"
WEAK = 3  # classes that are named


def write_report(facts: Facts, path: Path) -> None:
    """Write the page of a report; an earlier one is replaced.

    Raises:
        UsageError: the file is there and is something else.
    """
    check_page(path, COMMAND, "--output")
    write_page(path, page(facts))


def page(facts: Facts) -> str:
    """The whole page."""
    parts = [("Training", training(facts), "training"), ("Data", data_table(facts), "data")]
    if facts.evaluation is not None and facts.examination is not None:
        parts = [*_evaluation(facts), *parts]
    parts += [("Recipe", _recipe(facts), "recipe"), ("Environment", environment(facts), "environment")]
    shown = [part for part in parts if part[1]]
    links = "".join(f'<a href="#{anchor}">{title}</a>' for title, _, anchor in shown)
    body = _headline(facts) + f'<nav aria-label="Sections">{links}</nav>'
    body += "\n".join(section(*part) for part in shown)
    title = f"{_name(facts)}: mIoU {number(facts.scores['mean_iou'])}" if facts.scores else _name(facts)
    style, script = asset("report/report.css"), asset("report/report.js")
    return document(title, body, command=COMMAND, style=style, script=script)


def _evaluation(facts: Facts) -> list[tuple[str, str, str]]:
    names, evaluation = facts.label_map.names, facts.evaluation
    assert evaluation is not None
    return [
        ("In short", _in_short(facts), "short"),
        ("Images", gallery(facts), "images"),
        ("Classes", class_table(facts), "classes"),
        ("Confusions", confusion(names, evaluation.confusion), "confusions"),
        ("Boundaries and sizes", f'<div class="beside">{_boundaries(facts)}{size_table(facts)}</div>', "boundaries"),
        ("Calibration", _calibration(facts), "calibration"),
        ("Suspected label errors", suspects(facts), "suspects"),
    ]


def _name(facts: Facts) -> str:
    return facts.place.run.resolve().name if facts.place.run else facts.place.checkpoint


# --- the headline ----------------------------------------------------------------------------------------------------


def _headline(facts: Facts) -> str:
    evaluated = f"{facts.split} split, {facts.scores['num_images']} images, " if facts.scores else "Not evaluated, "
    about = f"{evaluated}checkpoint {facts.place.checkpoint}, {facts.written}"
    classes = (str(facts.label_map.num_labels), "classes", "")
    size = (f"{facts.parameters / 1e6:.1f} M", "parameters", "")
    tiles = [classes, size]
    if facts.scores:
        scores, ends = facts.scores, interval(facts.intervals["mean_iou"]["bca"])
        details = facts.details
        tiles = [
            (number(scores["mean_iou"]), "mean IoU", ends),
            (number(scores["overall_accuracy"]), "pixel accuracy", ""),
            (number(details["mean_boundary_iou"]), "boundary IoU", ""),
            (number(details["calibration"]["all"]["ece"]), "calibration error", ""),
            *tiles,
        ]
    shown = "".join(tile(value, text, note) for value, text, note in tiles)
    return (
        f'<header><h1>{escape(_name(facts))}</h1><p class="soft path">{escape(about)}</p>'
        f'<div class="tiles">{shown}</div>{_how(facts)}</header>'
    )


def _how(facts: Facts) -> str:
    """What the interval of the headline means."""
    if not facts.scores:
        return ""
    how, units = facts.intervals, facts.intervals["units"]
    drawn = f"{units} groups of images" if how["unit"] == "group" else f"the {units} images"
    return (
        f'<p class="soft note">Intervals are {100 * how["level"]:g} % bootstrap intervals (BCa, {how["resamples"]:,} '
        f"resamples of {drawn}); they say how much another set of such images could differ, not another training.</p>"
    )


def _in_short(facts: Facts) -> str:
    """The findings in words."""
    lines = [_weakest(facts), _largest_confusion(facts), _near_boundaries(facts), _confidence(facts), _doubted(facts)]
    return f"<ul>{''.join(f'<li>{line}</li>' for line in lines if line)}</ul>"


def _weakest(facts: Facts) -> str:
    rows = {name: row["iou"] for name, row in facts.scores["per_class"].items() if row["iou"] is not None}
    absent = [name for name, row in facts.scores["per_class"].items() if row["pixels"] == 0]
    weak = sorted(rows, key=lambda name: rows[name])[: min(WEAK, len(rows) - 1)]
    text = ", ".join(f"<b>{escape(name)}</b> {number(rows[name])}" for name in weak)
    left = f" Not in these images: {', '.join(map(escape, absent))}." if absent else ""
    return (f"Lowest IoU: {text}." if text else "") + left


def _largest_confusion(facts: Facts) -> str:
    assert facts.evaluation is not None
    found = most_confused(facts.evaluation.confusion, 1)
    if not found:
        return ""
    pair, names = found[0], facts.label_map.names
    return (
        f"Largest confusion: {percent(pair.share)} of <b>{escape(names[pair.truth])}</b> is taken for "
        f"<b>{escape(names[pair.predicted])}</b>."
    )


def _near_boundaries(facts: Facts) -> str:
    assert facts.examination is not None
    near = regions(facts.examination.evaluation)["boundary"]
    if np.isnan(near.mistakes):
        return ""
    return (
        f"{percent(near.mistakes)} of the mistakes lie near a boundary, where {percent(near.pixels)} of the pixels are."
    )


def _confidence(facts: Facts) -> str:
    assert facts.examination is not None
    found = facts.details["calibration"]["all"]
    if found["confidence"] is None:
        return ""
    gap = 100 * (found["confidence"] - found["accuracy"])
    how = (
        "about as sure as it is right"
        if abs(gap) < 1
        else f"{abs(gap):.0f} points too {'sure' if gap > 0 else 'unsure'}"
    )
    return f"The model is {how}: mean confidence {percent(found['confidence'])}, accuracy {percent(found['accuracy'])}."


def _doubted(facts: Facts) -> str:
    assert facts.examination is not None
    count = facts.examination.standing_out
    if not count:
        return ""
    masks = f"{count} masks look" if count > 1 else "One mask looks"
    return f'{masks} wrong to a model that is sure: <a href="#suspects">have a look</a>.'


# --- parts -----------------------------------------------------------------------------------------------------------


def _boundaries(facts: Facts) -> str:
    assert facts.examination is not None
    evaluation = facts.examination.evaluation
    scores = facts.details
    rows = [
        f'<tr><th scope="row">{name}</th><td>{percent(region.pixels)}</td><td>{number(region.accuracy)}</td>'
        f"<td>{percent(region.mistakes)}</td></tr>"
        for name, region in zip(("near a boundary", "interior"), regions(evaluation).values(), strict=True)
    ]
    width = f"{100 * evaluation.boundary_width:g} %"
    shown = table(["region", "pixels", "accuracy", "mistakes"], rows, "Shares of the pixels and of all mistakes")
    return (
        f"<div><p>Near a boundary means within {width} of the image's diagonal of another class of the truth"
        f"{_of_some(facts)}. Boundary IoU {number(scores['mean_boundary_iou'])}, boundary F1 "
        f"{number(scores['mean_boundary_f1'])}; by class in the table above.</p>{shown}</div>"
    )


def _of_some(facts: Facts) -> str:
    """Said where not all images were looked at in detail."""
    assert facts.examination is not None and facts.evaluation is not None
    some, every = len(facts.examination.evaluation), len(facts.evaluation)
    return f" (counted in {some} of {every} images; segtune report counts in all)" if some < every else ""


def _calibration(facts: Facts) -> str:
    assert facts.examination is not None
    found = facts.details["calibration"]
    series = []
    for (name, color), region in zip(
        (("all pixels", "blue"), ("near boundaries", "orange")), found.values(), strict=True
    ):
        bins, total = region["bins"], max(sum(region["bins"]["pixels"]), 1)
        kept = [
            (confidence, accuracy, pixels / total)
            for confidence, accuracy, pixels in zip(bins["confidence"], bins["accuracy"], bins["pixels"], strict=True)
            if pixels >= LEAST_OF_ALL * total
        ]
        dots = [2 + 7 * share**0.5 for _, _, share in kept]
        series.append(Series(name, [(x, y) for x, y, _ in kept], color, dots))
    errors = ", ".join(
        f"{number(region['ece'])} {'of all pixels' if name == 'all' else 'near boundaries'}"
        for name, region in found.items()
    )
    scaled = f"with the temperature {facts.temperature:g}" if facts.temperature != 1 else "without temperature scaling"
    title = "Accuracy of pixels by the confidence in their class"
    axes = Axis("confidence", 0, 1), Axis("accuracy", 0, 1)
    return (
        f'<div class="beside"><div class="charts">{line_chart(title, series, *axes, diagonal=True)}</div><div>'
        f"<p>Expected calibration error {errors} ({scaled}; <code>segtune calibrate</code> fits one). On the dashed "
        "line a confidence of 0.8 is right in 80 % of the cases; below it, the model is too sure. Dots are as large as "
        f"their share of the pixels, the smallest of less than {percent(LEAST_OF_ALL)} left out{_of_some(facts)}.</p>"
        "</div></div>"
    )


def _recipe(facts: Facts) -> str:
    name = escape(str(facts.place.run / "recipe.yaml")) if facts.place.run else "Every setting"
    return f"<details><summary>{name}</summary><pre>{escape(facts.recipe)}</pre></details>"
