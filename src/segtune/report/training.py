"""How a training went, for the report: curves, what it took, what it ran on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from segtune.charts import Axis, Series, line_chart
from segtune.report.facts import Facts
from segtune.report.numbers import number, percent


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
