"""Terminal tables: of an evaluation, of a comparison, of the shipped recipes and their settings."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table

from segtune.errors import printable
from segtune.viz.numbers import interval, number

Row = dict[str, Any]


def show(*parts: RenderableType) -> None:
    """Print to stdout: as wide as the terminal or, into a file or pipe, as wide as it takes."""
    width = None if sys.stdout.isatty() else 200
    console = Console(width=width, markup=False, highlight=False, emoji=False)
    for part in parts:
        part = printable(part) if isinstance(part, str) else part
        console.print(part, soft_wrap=isinstance(part, str))


def evaluation_table(result: Row) -> Table:
    """The scores of each class, of `Evaluation.scores()` (detailed) with `uncertainty.intervals` in it."""
    level = f"{100 * result['intervals']['level']:g} %"
    columns = ["IoU", level, "accuracy", "precision", "recall", "Dice", "boundary IoU", "pixels", "images"]
    table = _table("class", columns)
    pixels = sum(row["pixels"] for row in result["per_class"].values())
    for name, row in result["per_class"].items():
        scores = (row[key] for key in ("accuracy", "precision", "recall", "dice", "boundary_iou"))
        share = f"{100 * row['pixels'] / pixels:.2f} %" if pixels else "0"
        ends = _interval(result["intervals"]["per_class"][name]["bca"])
        iou = "absent" if row["iou"] is None else _number(row["iou"])
        table.add_row(_cell(name), iou, ends, *map(_number, scores), share, f"{row['images']}")
    table.add_section()
    means = (result[f"mean_{key}"] for key in ("accuracy", "precision", "accuracy", "dice", "boundary_iou"))
    ends = _interval(result["intervals"]["mean_iou"]["bca"])
    table.add_row("mean", _number(result["mean_iou"]), ends, *map(_number, means), "", "")
    return table


def evaluation_lines(result: Row) -> Iterable[str]:
    """What is said below the table: the headline comes last."""
    yield _line(
        ("pixel accuracy", result["overall_accuracy"]),
        ("frequency-weighted IoU", result["frequency_weighted_iou"]),
        ("Cohen's kappa", result["kappa"]),
        ("mean over images of their mIoU", result["mean_image_iou"]),
    )
    sizes = ((f"mIoU of {size} objects", result[f"mean_iou_{size}"]) for size in ("small", "medium", "large"))
    yield _line(("boundary IoU", result["mean_boundary_iou"]), ("boundary F1", result["mean_boundary_f1"]), *sizes)
    error = {region: values["ece"] for region, values in result["calibration"].items()}
    yield _line(("calibration error", error["all"]), ("near boundaries", error["boundary"]))
    if (result["engine"], result["precision"]) != ("torch", "fp32"):
        yield f"computed by {result['engine']} in {result['precision']}"
    yield _headline(result)


def _headline(result: Row) -> str:
    score = number(result["mean_iou"], 4, undefined="undefined")
    ends = _interval(result["intervals"]["mean_iou"]["bca"])
    how = result["intervals"]
    text = f"{result['split']} mIoU {score} {ends}".rstrip() + f" over {result['num_images']} images"
    if not ends:
        return text
    units = f"{how['units']} groups" if how["unit"] == "group" else "images"
    return f"{text} ({100 * how['level']:g} % BCa interval, {how['resamples']} resamples of {units})"


def bench_table(result: Row) -> Table:
    """Every way from an image to its mask, of `engine_bench.bench_engines`."""
    about = f"{result['name']}, {result['size']}x{result['size']}, {result['labels']} labels"
    columns = ["ms", "network", "speedup", "over its rival", "agreement"]
    table = _table(f"{about}, {result['threads']} threads", columns)
    for way in result["ways"]:
        rival = f"{way['speedup_over_rival']:.2f}" if "rival" in way else ""
        times = (f"{way['ms']:.1f}", f"{way['network_ms']:.1f}", f"{way['speedup']:.2f}")
        table.add_row(_cell(way["name"]), *times, rival, f"{way['agreement']:.4f}")
    return table


def comparison_table(result: Row) -> Table:
    """The classes that changed, of `uncertainty.compare`, the largest difference first, and the mean."""
    level = f"{100 * result['level']:g} %"
    table = _table("class", ["A", "B", "B - A", level, "p", "q", "images"])
    changed = [(name, row) for name, row in result["per_class"].items() if row["changed"]]
    for name, row in sorted(changed, key=lambda item: -abs(item[1]["difference"])):
        table.add_row(_cell(name), *_compared(row), _number(row["q_value"]), f"{row['images']}")
    table.add_section()
    table.add_row("mean IoU", *_compared(result["mean_iou"]), "", f"{result['num_images']}")
    return table


def _compared(row: Row) -> list[str]:
    """The cells of both runs' scores, their difference, its interval and p-value."""
    scores = [_number(row["first"]), _number(row["second"]), _number(row["difference"], signed=True)]
    return [*scores, _interval(row["bca"], signed=True), _number(row["p_value"])]


def comparison_lines(result: Row) -> Iterable[str]:
    """What is said below the table."""
    known = [row for row in result["per_class"].values() if row["p_value"] is not None]
    changed = sum(row["changed"] for row in known)
    yield f"{changed} of {len(known)} classes changed (false discovery rate 5 %: q at most 0.05)"
    row, units = result["mean_iou"], f"{result['units']} {result['unit']}s"
    ends = _interval(row["bca"], signed=True)
    text = f"mIoU of B - A: {_number(row['difference'], signed=True)} {ends}".rstrip()
    yield (
        f"{text}, p = {_number(row['p_value'])} ({100 * result['level']:g} % BCa interval of a paired bootstrap, "
        f"paired permutation test; {result['resamples']} resamples of {units})"
    )


def recipe_table(recipes: Sequence[Row]) -> Table:
    """Which recipes there are, of `name`, `data`, `size`, `license`, `checked`; those of `template` in a part below."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("recipe", no_wrap=True)
    for name, ratio in (("data set", 5), ("images", 4), ("licence of the data", 4)):
        table.add_column(name, overflow="fold", ratio=ratio)
    table.add_column("checked")
    for index, row in enumerate(recipes):
        if row["template"] and index and not recipes[index - 1]["template"]:
            table.add_section()
        table.add_row(*(row[key] for key in ("name", "data", "size", "license", "checked")))
    return table


def settings_table(settings: Sequence[Row]) -> Table:
    """The settings of a recipe, of `list_settings`, a part for each section."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name, ratio in (("key", None), ("type", 3), ("default", 2), ("what it does", 8)):
        table.add_column(name, no_wrap=ratio is None, overflow="fold", ratio=ratio)
    for _, section in itertools.groupby(settings, key=lambda row: row["key"].split(".")[0]):
        for row in section:
            default = "required" if row["required"] else json.dumps(row["default"], ensure_ascii=False)
            key = f"{row['key']} †" if row["may_change_on_resume"] else row["key"]
            table.add_row(key, row["type"], default, row["description"])
        table.add_section()
    return table


def _table(first: str, others: Sequence[str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(first, overflow="fold")
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _cell(name: str) -> str:
    """A name on one line, which a line break in it would not leave."""
    return printable(" ".join(name.split("\n")))


def _line(*parts: tuple[str, float | None]) -> str:
    return ", ".join(f"{name} {_number(value)}" for name, value in parts)


def _number(value: float | None, signed: bool = False) -> str:
    return number(value, 4, signed=signed, undefined="-")


def _interval(ends: Sequence[float | None], signed: bool = False) -> str:
    return interval(ends, "[{}, {}]", signed=signed)
