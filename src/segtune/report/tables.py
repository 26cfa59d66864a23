"""Tables of a report: classes, the confusion matrix, sizes of objects, pixels of the data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape

import numpy as np

from segtune import objects
from segtune.labels import LabelMap
from segtune.page import bar, scrolled, swatch
from segtune.report.facts import Facts
from segtune.report.numbers import column_percent, interval, most_confused, number, percent
from segtune.scores import plain, ratio

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
    counts = evaluation.counts.total(*objects.COLUMNS).reshape(label_map.num_labels, len(objects.SIZES), 3)[:, :, 1]
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
