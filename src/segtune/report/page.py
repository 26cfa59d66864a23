"""The page of a report: one HTML file with numbers, pictures and curves; nothing is loaded from anywhere."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from segtune.evaluation import object_size
from segtune.evaluation.scores import plain, ratio
from segtune.labels.label_map import LabelMap
from segtune.report.gallery import gallery, suspects
from segtune.report.gather import Facts
from segtune.training.run_folder import RECIPE_FILE
from segtune.viz.charts import Axis, Series, line_chart
from segtune.viz.html import asset, bar, check_page, document, scrolled, section, swatch, tile, write_page
from segtune.viz.numbers import LEAST_OF_ALL, column_percent, interval, most_confused, number, percent, regions

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
    name = escape(str(facts.place.run / RECIPE_FILE)) if facts.place.run else "Every setting"
    return f"<details><summary>{name}</summary><pre>{escape(facts.recipe)}</pre></details>"


PAIRS = 8  # confusions that are named
SIZES = {"small": "small (below 32²)", "medium": "medium", "large": "large (from 96²)"}


def table(heads: Sequence[str], rows: Sequence[str], name: str, *, sorted_by: int | None = None) -> str:
    """A table that scrolls on narrow screens.

    Args:
        rows: HTML of whole rows; cells whose text is no number to sort by have `data-value`.
        sorted_by: make it sortable; the column by which it is sorted, from the largest value.
    """
    cells = []
    for column, head in enumerate(heads):
        button = head if sorted_by is None else f'<button type="button">{head}</button>'
        order = "" if sorted_by is None else f' aria-sort="{"descending" if column == sorted_by else "none"}"'
        cells.append(f'<th scope="col"{order}>{button}</th>')
    kind = ' class="sortable"' if sorted_by is not None else ""
    head, body = f"<thead><tr>{''.join(cells)}</tr></thead>", f"<tbody>{''.join(rows)}</tbody>"
    return scrolled(f"<table{kind}><caption>{escape(name)}</caption>{head}{body}</table>", name)


def name_cell(label_map: LabelMap, index: int) -> str:
    name = escape(label_map.names[index])
    return f'<th scope="row" data-value="{name}">{swatch(label_map.colors[index])}{name}</th>'


def value_cell(value: float | None, text: str | None = None) -> str:
    """A cell that is sorted by its value; an undefined one comes last."""
    known = value is not None and not np.isnan(value)
    return f'<td data-value="{value if known else ""}">{number(value) if text is None else text}</td>'


# --- classes ---------------------------------------------------------------------------------------------------------


def class_table(facts: Facts) -> str:
    """IoU with its interval as a bar, and the other scores, of every class; the classes with the most pixels first."""
    assert facts.examination is not None
    per_class, details = facts.scores["per_class"], facts.details["per_class"]
    pixels = max(sum(row["pixels"] for row in per_class.values()), 1)
    order = sorted(
        range(facts.label_map.num_labels), key=lambda index: -per_class[facts.label_map.names[index]]["pixels"]
    )
    rows = []
    for index in order:
        name = facts.label_map.names[index]
        row, ends = per_class[name], facts.intervals["per_class"][name]["bca"]
        scores = [value_cell(row[key]) for key in ("precision", "recall", "dice")]
        scores.append(value_cell(details[name]["boundary_iou"]))
        share = value_cell(row["pixels"] / pixels, column_percent(row["pixels"] / pixels))
        cells = [_iou_cell(row["iou"], ends), *scores, share, value_cell(row["images"], str(row["images"]))]
        rows.append(f"<tr>{name_cell(facts.label_map, index)}{''.join(cells)}</tr>")
    heads = ["class", "IoU", "precision", "recall", "Dice", "boundary IoU", "pixels", "images"]
    return (
        "<p>The line over a bar is the interval of the IoU. Recall is also called accuracy of the class. A click on a "
        f"heading sorts.</p>{table(heads, rows, 'Scores of each class', sorted_by=6)}"
    )


def _iou_cell(value: float | None, ends: Sequence[float | None]) -> str:
    if value is None:
        return value_cell(None, f'{bar(0)}<span class="soft">absent</span>')
    low, high = ends
    span = (
        "" if low is None or high is None else f'<b style="left:{100 * low:.1f}%;width:{100 * (high - low):.1f}%"></b>'
    )
    return value_cell(
        value, f'{bar(value, "ranged", span)}{number(value)} <small class="ends">{interval(ends)}</small>'
    )


# --- confusions ------------------------------------------------------------------------------------------------------


def confusion(names: Sequence[str], counts: np.ndarray) -> str:
    """The worst pairs in words, and what the page's script draws the matrix from."""
    pairs = "".join(
        f"<li>{percent(pair.share)} of <b>{escape(names[pair.truth])}</b> is taken for "
        f"<b>{escape(names[pair.predicted])}</b></li>"
        for pair in most_confused(counts, PAIRS)
    )
    data = json.dumps({"names": list(names), "counts": counts.tolist()}, separators=(",", ":")).replace("<", "\\u003c")
    named = f"<ul>{pairs}</ul>" if pairs else "<p>No class is taken for another to more than 1 %.</p>"
    return (
        f'<div class="beside"><div class="pairs"><h3>Worst pairs</h3>{named}</div><div class="matrix">'
        "<h3>Rows: truth, columns: prediction</h3>"
        '<div class="controls"><label>Percent of <select class="of">'
        '<option value="truth">the true class (rows add up to 100)</option>'
        '<option value="prediction">the predicted class (columns add up to 100)</option></select></label> '
        '<label>Order <select class="order"><option value="given">of the label map</option>'
        '<option value="recall">lowest recall first</option><option value="pixels">most pixels first</option>'
        '</select></label> <label class="which">Show <select class="number"></select></label></div>'
        f'<div class="scroll" role="region" aria-label="Confusion matrix" tabindex="0"></div>'
        f'<script type="application/json">{data}</script><noscript>The matrix is drawn by a script.</noscript>'
        "</div></div>"
    )


# --- sizes, data -----------------------------------------------------------------------------------------------------


def size_table(facts: Facts) -> str:
    """IoU of each class by the size of objects, and the share of the pixels that are in objects of this size."""
    assert facts.examination is not None
    evaluation, label_map = facts.examination.evaluation, facts.label_map
    scores = facts.details
    counts = evaluation.counts.total(*object_size.COLUMNS).reshape(label_map.num_labels, len(object_size.SIZES), 3)[
        :, :, 1
    ]
    share = ratio(counts.sum(axis=0), counts.sum())
    means = "".join(
        f"<td><b>{number(scores[f'mean_iou_{size}'])}</b> {_mini(scores[f'mean_iou_{size}'])}</td>" for size in SIZES
    )
    rows = [f'<tr><th scope="row"><b>mean</b></th>{means}</tr>']
    rows += [
        f"<tr>{name_cell(label_map, index)}"
        + "".join(f"<td>{number(row[f'iou_{size}'])} {_mini(row[f'iou_{size}'])}</td>" for size in SIZES)
        + "</tr>"
        for index, row in enumerate(scores["per_class"].values())
    ]
    heads = [
        "class",
        *(
            f"{text}<small>{percent(part)} of the pixels</small>"
            for text, part in zip(SIZES.values(), share, strict=True)
        ),
    ]
    shown = table(heads, rows, "IoU by the size of objects, in pixels of the mask")
    return f'<div class="sizes"><h3>Sizes of objects</h3>{shown}</div>'


def _mini(value: float | None) -> str:
    """A small bar; only its place where there is no value."""
    return bar(value or 0, "mini" if value is not None else "mini none")


def data_table(facts: Facts) -> str:
    """Images of each split and, where the masks were counted, the share of its labelled pixels of each class.

    The most frequent classes of the first split come first.
    """
    images = {split: "a stream" if count is None else _images(count) for split, count in facts.images.items()}
    if not facts.pixels:
        rows = [f'<tr><th scope="row">{split}</th><td>{count}</td></tr>' for split, count in images.items()]
        return table(["split", "size"], rows, "Images of each split")
    shares = {split: plain(ratio(counts[:-1], counts[:-1].sum())) for split, counts in facts.pixels.items()}
    first = next(iter(facts.pixels.values()))
    rows = [
        f"<tr>{name_cell(facts.label_map, index)}"
        + "".join(value_cell(of[index], f"{column_percent(of[index])} {_mini(of[index])}") for of in shares.values())
        + "</tr>"
        for index in np.argsort(-first[:-1], kind="stable").tolist()
    ]
    ignored = (column_percent(float(ratio(counts[-1], counts.sum()))) for counts in facts.pixels.values())
    cells = "".join(f"<td>{share} {_mini(None)}</td>" for share in ignored)
    rows.append(f'<tr class="last"><th scope="row">ignored, of all pixels</th>{cells}</tr>')
    heads = ["class", *(f"{split}<small>{images[split]}</small>" for split in facts.pixels)]
    return table(heads, rows, "Share of the labelled pixels", sorted_by=1)


def _images(count: int) -> str:
    return f"{count:,} image{'' if count == 1 else 's'}"


def training(facts: Facts) -> str:
    """Curves and timing; empty where there is no training to tell of."""
    steps = [record for record in facts.records if "loss" in record]
    if not steps:
        return ""
    evaluations = [record for record in facts.records if record.get("split") == "val" and "mean_iou" in record]
    scores = [(float(record["step"]), record["mean_iou"]) for record in evaluations if record["mean_iou"] is not None]
    best = f", best {number(max(value for _, value in scores))}" if scores else ""
    charts = [
        _curve(f"Loss of the training, {steps[-1]['loss']:.3f} at the end", "loss", _points(steps, "loss"), "orange"),
        _curve(f"Mean IoU on the validation split{best}", "mIoU", scores, "blue", dots=True),
        _curve("Learning rate of the encoder", "rate", _points(steps, "lr"), "green"),
    ]
    return f'<div class="charts">{"".join(charts)}</div>{_facts(_timing(facts.records, steps))}'


def _points(records: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    """Steps and values, without those that are no numbers."""
    found = [(float(record["step"]), float(record[key])) for record in records if record.get(key) is not None]
    return [(step, value) for step, value in found if np.isfinite(value)]


def _curve(title: str, label: str, points: list[tuple[float, float]], color: str, dots: bool = False) -> str:
    series = Series(label, points, color, [3.0] * len(points) if dots else None)
    return line_chart(title, [series], Axis("step"), Axis(label))


def _timing(records: Sequence[Mapping[str, Any]], steps: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Of all parts of a run that was gone on with."""
    parts = [record for record in records if "ended" in record]
    found = {"steps": f"{steps[-1]['step']:,} ({steps[-1]['epoch']:.1f} epochs)"}
    if parts:
        again = f", in {len(parts)} parts" if len(parts) > 1 else ""
        found["time"] = duration(sum(record["seconds"] for record in parts)) + again
    found["speed"] = f"{np.median([record['images_per_second'] for record in steps]):.1f} images a second"
    found["waiting for data"] = (
        f"{percent(float(np.median([record['waiting_for_data'] for record in steps])))} of the time"
    )
    memory = max(record["peak_memory_mb"] for record in (*steps, *parts))
    return found | {"peak memory": f"{memory / 1000:.1f} GB"}


def environment(facts: Facts) -> str:
    """What it ran on and what was looked at with."""
    found = {key.replace("_", " "): str(value) for key, value in facts.environment.items()}
    if facts.examination is not None:
        images = len(facts.examination.evaluation)
        found["evaluation protocol"] = facts.protocol
        found["time of this report"] = f"{duration(facts.examination.seconds)} for {images} images"
    return _facts(found)


def _facts(found: Mapping[str, str]) -> str:
    rows = "".join(f"<div><dt>{escape(key)}</dt><dd>{escape(value)}</dd></div>" for key, value in found.items())
    return f'<dl class="facts">{rows}</dl>'


def duration(seconds: float) -> str:
    """'12 s', '3 min 5 s', '2 h 10 min'."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
