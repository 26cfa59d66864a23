"""`segtune train`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import typer

from segtune.cli.common import hide_bars_of_libraries, is_main_process, load_checked, resumed, say
from segtune.cli.options import OverridesArgument, RecipeArgument
from segtune.training.interrupts import StopRequest, process_start, seconds


def train(recipe: RecipeArgument, overrides: OverridesArgument = None) -> None:
    """Fine-tune what a recipe describes; the run folder keeps the weights, the metrics and the resolved recipe.

    `segtune recipes keys [SECTION]` explains every key that may be changed, as in training.max_steps=100.
    Paths are relative to the current folder. Several processes: accelerate launch -m segtune train RECIPE …
    """
    with StopRequest(_given_limit(overrides or ()), process_start(), importing=True):
        settings = load_checked(recipe, overrides, trains=True)
        from segtune import finetune

        hide_bars_of_libraries()
    result = finetune.train(settings, started=process_start())
    stopped = result.get("stopped")
    if is_main_process():
        is_done = not stopped or "left" in result
        lines = _closing_lines(result) if is_done else _stopped_lines([recipe, *(overrides or ())], result)
        say("\n".join(lines))
    if stopped:
        raise typer.Exit(3)


def _given_limit(overrides: Sequence[str]) -> int | None:
    """Seconds of a time limit in the command itself; the recipe has its say when it is read."""
    with suppress(ValueError):
        for text in reversed(overrides):
            if text.startswith("training.time_limit="):
                return seconds(text.partition("=")[2])
    return None


def _stopped_lines(words: Sequence[str], result: dict[str, Any]) -> list[str]:
    return [
        f"stopped at step {result['step']}, everything saved: {result['stopped']}",
        f"next: {shlex.join(['segtune', 'train', *resumed(words)])}",
    ]


def _closing_lines(result: dict[str, Any]) -> list[str]:
    from segtune.training.run_folder import BEST, OVERLAYS, RECIPE_FILE

    folder = Path(result["output_dir"])
    lines = []
    for metric, value in result["best"].items():
        if metric != "step":
            name = "mIoU" if metric == "mean_iou" else metric
            lines.append(f"best val {name} {value:.4f} at step {result['best']['step']}")
    lines.append(f"run folder: {folder}")
    if result.get("report"):
        lines.append(f"report: {result['report']}")
    if result.get("pushed"):
        lines.append(f"pushed to {result['pushed']}")
    if "left" in result:
        return [*lines, *(f"next: {shlex.join(command)}" for command in result["left"])]
    split = next((split for split in ("test", "val") if split in result["splits"]), None)
    if split:
        words = ["segtune", "evaluate", str(folder / BEST), str(folder / RECIPE_FILE), "--split", split]
        lines.append(f"next: {shlex.join([*words, '--overlays', str(folder / OVERLAYS)])}")
    return lines
