from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from rich.console import Console

from segtune.evaluation.evaluation import Evaluation
from segtune.evaluation.uncertainty import compare, intervals
from segtune.recipe.shipped import list_recipes
from segtune.viz.terminal import (
    bench_table,
    comparison_lines,
    comparison_table,
    evaluation_lines,
    evaluation_table,
    recipe_table,
    show,
)

NAMES = ("sky [blue]", "road", "a class with a name that is rather long", "bus")


def evaluated(wrong: float, **settings: Any) -> Evaluation:
    evaluation = Evaluation(NAMES, **settings)
    for index in range(12):
        labels = np.random.default_rng(index).integers(0, 3, (8, 8)).repeat(4, 0).repeat(4, 1)
        missed = np.random.default_rng(index + 100).random(labels.shape) < wrong
        prediction = np.where(missed & (labels == 2), 1, labels)
        evaluation.add(str(index), labels, prediction, np.full(labels.shape, 0.9, np.float32))
    return evaluation


def test_evaluation(capsys: pytest.CaptureFixture[str]) -> None:
    evaluation = evaluated(0.3, detailed=True)
    scores = evaluation.scores()
    result = (
        {"split": "val", "engine": "torch", "precision": "fp32"}
        | scores
        | {"intervals": intervals(evaluation, resamples=200)}
    )
    show(evaluation_table(result), *evaluation_lines(result))
    lines = capsys.readouterr().out.splitlines()
    rows = [line for line in lines if line.strip()]
    assert rows[2].split()[:5] == ["sky", "[blue]", "1.0000", "[1.000,", "1.000]"]  # no markup
    assert rows[4].startswith(f" {NAMES[2]}") or rows[4].startswith(NAMES[2])
    road, car = scores["per_class"]["road"], scores["per_class"][NAMES[2]]
    for row, text in ((road, rows[3]), (car, rows[4])):
        for key in ("iou", "accuracy", "precision", "recall", "dice", "boundary_iou"):
            assert f" {row[key]:.4f} " in text
        assert text.rstrip().endswith(" 12") and f" {100 * row['pixels'] / (12 * 32 * 32):.2f} % " in text
    assert rows[5].split()[:2] == ["bus", "absent"]
    assert rows[6].split()[:2] == ["mean", f"{scores['mean_iou']:.4f}"]
    assert any("kappa" in line for line in rows) and any("calibration error" in line for line in rows)
    low, high = result["intervals"]["mean_iou"]["bca"]
    assert rows[-1] == (
        f"val mIoU {scores['mean_iou']:.4f} [{low:.3f}, {high:.3f}] over 12 images "
        "(95 % BCa interval, 200 resamples of images)"
    )


def test_engine_and_precision_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    evaluation = evaluated(0.3, detailed=True)
    result = evaluation.scores() | {"split": "val", "intervals": intervals(evaluation, resamples=99)}
    show(*evaluation_lines(result | {"engine": "openvino", "precision": "bf16"}))
    assert "\ncomputed by openvino in bf16\nval mIoU " in capsys.readouterr().out


def test_bench(capsys: pytest.CaptureFixture[str]) -> None:
    ways: list[dict[str, Any]] = [
        {"name": "theirs", "ms": 20.04, "network_ms": 15.0, "speedup": 1.0, "agreement": 0.99996},
        {"name": "ours", "ms": 10.0, "network_ms": 8.0, "speedup": 2.004, "agreement": 1.0, "rival": "theirs"},
    ]
    ways[1]["speedup_over_rival"] = 2.004
    show(bench_table({"name": "b0", "size": 64, "labels": 5, "threads": 2, "ways": ways}))
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["theirs", "20.0", "15.0", "1.00", "1.0000"] in rows
    assert ["ours", "10.0", "8.0", "2.00", "2.00", "1.0000"] in rows


def test_comparison(capsys: pytest.CaptureFixture[str]) -> None:
    result = compare(evaluated(0.5), evaluated(0.2), resamples=199)
    show(comparison_table(result), *comparison_lines(result))
    rows = [line for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert [row.split()[0] for row in rows[2:5]] == ["a", "road", "mean"]  # those that changed, the largest first
    car = result["per_class"][NAMES[2]]
    for text in (f"{car['first']:.4f}", f"{car['second']:.4f}", f"{car['difference']:+.4f}", "0.0050"):
        assert text in rows[2]
    assert rows[5] == "2 of 3 classes changed (false discovery rate 5 %: q at most 0.05)"
    low, high = result["mean_iou"]["bca"]
    assert rows[6].startswith(
        f"mIoU of B - A: {result['mean_iou']['difference']:+.4f} [{low:+.3f}, {high:+.3f}], p = 0.0050"
    )
    assert rows[6].endswith("199 resamples of 12 images)")


def test_recipes_fit_into_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    """Every word of every cell is there, none is cut short, and no name is broken."""
    rows = [{**recipe.to_dict(), "name": recipe.short_name} for recipe in list_recipes()]
    Console(width=80).print(recipe_table(rows))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80 and "…" not in "".join(lines)
    assert [line.split()[0] for line in lines[4:] if line[1:2].strip()] == [row["name"] for row in rows]
    text = "".join("".join(lines).split())
    assert all(word in text for row in rows for word in row["size"].split())
