"""The report of a search: the best trial on images that the search did not see, all trials, and what mattered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from segtune.evaluation import uncertainty
from segtune.experiments.search_space import as_text
from segtune.inference.evaluate import evaluate_model
from segtune.inference.evaluate_checkpoint import open_checkpoint
from segtune.recipe.recipe import Recipe
from segtune.report.gather import AT_MOST, Facts, Part, Subject, gather
from segtune.report.page import write_report
from segtune.training.run_folder import RECIPE_FILE, REPORT_FILE
from segtune.viz.charts import Axis, LineChart, Series, line_chart
from segtune.viz.numbers import count, duration, interval, number, percent

MOST_TRIALS = 200  # rows of the table


def final_score(best: Path, recipe: Recipe, own: Path | None) -> tuple[Facts, dict[str, Any] | None]:
    """What a report says of the best weights on test; and their difference to those of the recipe's own values.

    Args:
        best, own: folders of weights.
        recipe: of the trials, with their splits.
    """
    device = None if recipe.training.device == "auto" else recipe.training.device
    opened = open_checkpoint(best, recipe, split="test", device=device)
    counted = evaluate_model(opened.model, opened.rows, opened.label_map, opened.processor)
    counted.counts.sort()
    text = (best.parent / RECIPE_FILE).read_text(encoding="utf-8")
    facts = gather(Subject(best.parent, str(best)), opened, text, counted=counted, at_most=AT_MOST)
    if own is None:
        return facts, None
    before = open_checkpoint(own, recipe, split="test", device=device)
    theirs = evaluate_model(before.model, before.rows, before.label_map, before.processor)
    return facts, uncertainty.compare(theirs, counted)["mean_iou"]


def write_tune_report(facts: Facts, result: Mapping[str, Any], folder: Path) -> None:
    """Write the page of a search into its folder."""
    parts = [_trials(result), *([_importance(result)] if result["importance"] else [])]
    subject = Subject(folder, facts.subject.checkpoint)  # the page bears the name of the search, not of a trial
    write_report(replace(facts, subject=subject, parts=parts), folder / REPORT_FILE)


def _trials(result: Mapping[str, Any]) -> Part:
    trials = [trial for trial in result["trials"] if trial["value"] is not None]
    best, names = result["best"], list(result["best"]["values"])
    sign = -1 if result["direction"] == "max" else 1
    ordered = sorted(trials, key=lambda trial: (trial["state"] != "complete", sign * trial["value"]))[:MOST_TRIALS]
    rows = [
        [
            f"{trial['number']}{' (the recipe)' if trial['is_own'] else ''}",
            "stopped early" if trial["state"] == "pruned" else trial["state"],
            number(trial["value"], 4),
            *(as_text(trial["values"].get(name)) for name in names),
        ]
        for trial in ordered
    ]
    test = result["test"]
    text = (
        f"{count(len(result['trials']), 'trial')} in {duration(result['seconds'])}. Trial {best['number']} has the "
        f"best {result['metric']} on the validation split, {number(best['value'], 4)}. That number is too high, since "
        f"the search chose by it; on {test['num_images']} images that it did not see, the mean IoU is "
        f"{number(test['mean_iou'], 4)}{_over_own(result['over_own'])}. What follows is of this trial on those images."
    )
    heads = ["trial", "state", result["metric"], *(name.partition(".")[2] for name in names)]
    chart = _chart(trials, result["metric"])
    return Part("search", "Search", text, heads, rows, [chart] if chart else [])


def _over_own(compared: Mapping[str, Any] | None) -> str:
    if compared is None:
        return ""
    ends = interval(compared["bca"], " ({} – {})", signed=True)
    return f", {number(compared['difference'], 4, signed=True)}{ends} against the recipe's own values"


def _chart(trials: list[dict[str, Any]], metric: str) -> LineChart | None:
    complete = [(float(trial["number"]), float(trial["value"])) for trial in trials if trial["state"] == "complete"]
    if len(complete) < 2:
        return None
    series = [Series(metric, complete, "blue", [3.0] * len(complete))]
    return line_chart("Value of each complete trial", series, Axis("trial"), Axis(metric, None))


def _importance(result: Mapping[str, Any]) -> Part:
    rows = [
        [name, percent(share), as_text(result["best"]["values"].get(name))]
        for name, share in result["importance"].items()
    ]
    text = (
        "How much of the difference between the best trials and the others each setting explains (PED-ANOVA, Watanabe "
        "et al. 2023). Of few trials this is a hint and no finding."
    )
    return Part("importance", "What mattered", text, ["setting", "share", "best value"], rows)
