"""The page of a report: one HTML file with numbers, pictures and curves, which `templates/page.html` lays out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from segtune.evaluation import object_size
from segtune.evaluation.label_issues import SURE
from segtune.evaluation.scores import plain, ratio
from segtune.report.examples import Examination
from segtune.report.gallery import LAYERS, gallery, suspects
from segtune.report.gather import Facts
from segtune.report.mistakes import LEAST_OF_ALL, most_confused, regions
from segtune.training.run_folder import RECIPE_FILE
from segtune.viz.charts import Axis, LineChart, Series, line_chart
from segtune.viz.html import check_page, render, write_page
from segtune.viz.layers import SURELY_WRONG, WRONG
from segtune.viz.numbers import count, duration, interval, number, percent

COMMAND = "report"
WEAK = 3  # classes that are named
PAIRS = 8  # confusions that are named
SIZES = {"small": "small (below 32²)", "medium": "medium", "large": "large (from 96²)"}
SECTIONS_OF_EVALUATION = {
    "short": "In short",
    "images": "Images",
    "classes": "Classes",
    "confusions": "Confusions",
    "boundaries": "Boundaries and sizes",
    "calibration": "Calibration",
    "suspects": "Suspected label errors",
}


def write_report(facts: Facts, path: Path) -> None:
    """Write the page of a report; an earlier one is replaced.

    Raises:
        UsageError: the file is there and is something else.
    """
    check_page(path, COMMAND, "--output")
    write_page(path, page(facts))


def page(facts: Facts) -> str:
    """The whole page, as HTML; what nothing is known of is left out."""
    run, trained = facts.subject.run, training(facts)
    name = run.resolve().name if run else facts.subject.checkpoint
    return render(
        "report/templates/page.html",
        command=COMMAND,
        title=f"{name}: mIoU {number(facts.scores['mean_iou'])}" if facts.scores else name,
        name=name,
        facts=facts,
        sections={
            **{part.anchor: part.title for part in facts.parts},
            **(SECTIONS_OF_EVALUATION if facts.scores else {}),
            **({"training": "Training"} if trained else {}),
            "data": "Data",
            "recipe": "Recipe",
            "environment": "Environment",
        },
        tiles=_tiles(facts),
        training=trained,
        data=data(facts),
        checkpoint=Path(facts.subject.checkpoint).name if run else facts.subject.checkpoint,
        recipe_name=RECIPE_FILE if run else "Every setting",
        environment=environment(facts),
        layers=LAYERS,
        wrong=WRONG,
        surely_wrong=SURELY_WRONG,
        sure_from=f"{SURE:g}",
        least=LEAST_OF_ALL,
        **(_evaluation(facts, facts.examination) if facts.examination is not None else {}),
    )


def _tiles(facts: Facts) -> list[tuple[str, str, str]]:
    """The numbers of the headline, what each is, and what stands beside it."""
    size = [
        (str(facts.label_map.num_labels), "classes", ""),
        (f"{facts.parameters / 1e6:.1f} M", "parameters", ""),
    ]
    if not facts.scores:
        return size
    return [
        (number(facts.scores["mean_iou"]), "mean IoU", interval(facts.intervals["mean_iou"]["bca"])),
        (number(facts.scores["overall_accuracy"]), "pixel accuracy", ""),
        (number(facts.details["mean_boundary_iou"]), "boundary IoU", ""),
        (number(facts.details["calibration"]["all"]["ece"]), "calibration error", ""),
        *size,
    ]


# --- the evaluation --------------------------------------------------------------------------------------------------


def _evaluation(facts: Facts, examination: Examination) -> dict[str, Any]:
    assert facts.evaluation is not None
    per_class = facts.scores["per_class"]
    known = {name: row["iou"] for name, row in per_class.items() if row["iou"] is not None}
    return {
        "weak": sorted(known.items(), key=lambda item: item[1])[: min(WEAK, len(known) - 1)],
        "absent": [name for name, row in per_class.items() if row["pixels"] == 0],
        "confusions": most_confused(facts.evaluation.confusion, PAIRS),
        "regions": regions(examination.evaluation),
        "shown": gallery(facts, examination),
        "doubted": suspects(facts, examination),
        "classes": _classes(facts),
        "sizes": _sizes(facts, examination),
        "calibration": _calibration(facts),
    }


def _classes(facts: Facts) -> list[tuple[int, dict[str, Any], Sequence[float | None]]]:
    """Training id, scores, and interval of the IoU of each class, the most frequent first."""
    per_class, pixels = facts.scores["per_class"], sum(row["pixels"] for row in facts.scores["per_class"].values())
    rows = []
    for index, (name, row) in enumerate(per_class.items()):
        boundary_iou = facts.details["per_class"][name]["boundary_iou"]
        more = {"boundary_iou": boundary_iou, "share": row["pixels"] / max(pixels, 1)}
        rows.append((index, row | more, facts.intervals["per_class"][name]["bca"]))
    return sorted(rows, key=lambda row: -row[1]["pixels"])


def _sizes(facts: Facts, examination: Examination) -> dict[str, Any]:
    """IoU of each class by the size of objects, and the share of the pixels that are in objects of this size."""
    counts = examination.evaluation.counts.total(*object_size.COLUMNS)
    pixels = counts.reshape(facts.label_map.num_labels, len(object_size.SIZES), 3)[:, :, 1].sum(axis=0)
    shares = map(percent, ratio(pixels, pixels.sum()).tolist())
    heads = [(text, f"{share} of the pixels") for text, share in zip(SIZES.values(), shares, strict=True)]
    return {
        "heads": ["class", *heads],
        "mean": [facts.details[f"mean_iou_{size}"] for size in SIZES],
        "rows": [[row[f"iou_{size}"] for size in SIZES] for row in facts.details["per_class"].values()],
    }


def _calibration(facts: Facts) -> LineChart | None:
    """Accuracy against confidence; dots are as large as their share of the pixels."""
    lines = (("all pixels", "blue"), ("near boundaries", "orange"))
    series = []
    for (name, color), region in zip(lines, facts.details["calibration"].values(), strict=True):
        bins, total = region["bins"], max(sum(region["bins"]["pixels"]), 1)
        found = zip(bins["confidence"], bins["accuracy"], bins["pixels"], strict=True)
        kept = [bin for bin in found if bin[2] >= LEAST_OF_ALL * total]
        dots = [2 + 7 * (pixels / total) ** 0.5 for _, _, pixels in kept]
        series.append(Series(name, [(x, y) for x, y, _ in kept], color, dots))
    title = "Accuracy of pixels by the confidence in their class"
    return line_chart(title, series, Axis("confidence", 0, 1), Axis("accuracy", 0, 1), diagonal=True)


# --- data, training, environment -------------------------------------------------------------------------------------


def data(facts: Facts) -> dict[str, Any]:
    """Images of each split and, where the masks were counted, the share of its labelled pixels of each class.

    The most frequent classes of the first split come first.
    """
    images = {split: "a stream" if number is None else count(number, "image") for split, number in facts.images.items()}
    if not facts.pixels:
        return {"images": images}
    shares = [plain(ratio(counts[:-1], counts[:-1].sum())) for counts in facts.pixels.values()]
    first = next(iter(facts.pixels.values()))
    return {
        "heads": ["class", *((split, images[split]) for split in facts.pixels)],
        "rows": [(i, [of[i] for of in shares]) for i in np.argsort(-first[:-1], kind="stable").tolist()],
        "ignored": [float(ratio(counts[-1], counts.sum())) for counts in facts.pixels.values()],
    }


def training(facts: Facts) -> dict[str, Any]:
    """Curves and timing; empty where there is no training to tell of."""
    steps = [record for record in facts.records if "loss" in record]
    if not steps:
        return {}
    evaluations = [record for record in facts.records if record.get("split") == "val"]
    scores = _points(evaluations, "mean_iou")
    best = f", best {number(max(value for _, value in scores))}" if scores else ""
    charts = [
        _curve(f"Loss of the training, {steps[-1]['loss']:.3f} at the end", "loss", _points(steps, "loss"), "orange"),
        _curve(f"Mean IoU on the validation split{best}", "mIoU", scores, "blue", dots=True),
        _curve("Learning rate of the encoder", "rate", _points(steps, "lr"), "green"),
    ]
    return {"charts": charts, "timing": _timing(facts.records, steps)}


def _points(records: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    """Steps and values, without those that are no numbers."""
    found = [(float(record["step"]), float(record[key])) for record in records if record.get(key) is not None]
    return [(step, value) for step, value in found if np.isfinite(value)]


def _curve(
    title: str, label: str, points: list[tuple[float, float]], color: str, dots: bool = False
) -> LineChart | None:
    series = Series(label, points, color, [3.0] * len(points) if dots else None)
    return line_chart(title, [series], Axis("step"), Axis(label))


def _timing(records: Sequence[Mapping[str, Any]], steps: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Of all parts of a run that was gone on with."""
    parts = [record for record in records if "ended" in record]
    found = {"steps": f"{steps[-1]['step']:,} ({steps[-1]['epoch']:.1f} epochs)"}
    if parts:
        again = f", in {len(parts)} parts" if len(parts) > 1 else ""
        found["time"] = duration(sum(record["seconds"] for record in parts)) + again
    speed, waiting = (
        float(np.median([record[key] for record in steps])) for key in ("images_per_second", "waiting_for_data")
    )
    memory = max(record["peak_memory_mb"] for record in (*steps, *parts))
    return found | {
        "speed": f"{speed:.1f} images a second",
        "waiting for data": f"{percent(waiting)} of the time",
        "peak memory": f"{memory / 1000:.1f} GB",
    }


def environment(facts: Facts) -> dict[str, str]:
    """What it ran on and what was looked at with."""
    found = {key.replace("_", " "): str(value) for key, value in facts.environment.items()}
    if facts.examination is not None:
        found["evaluation protocol"] = facts.protocol
        images = count(len(facts.examination.evaluation), "image")
        found["time of this report"] = f"{duration(facts.examination.seconds)} for {images}"
    return found
