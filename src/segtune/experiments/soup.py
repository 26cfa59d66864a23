"""A soup: the mean of the weights of several trainings, one network that costs what one costs.

Wortsman et al. 2022, "Model soups: averaging weights of multiple fine-tuned models improves accuracy without increasing
inference time" (arXiv 2203.05482). It works for trainings that began from the same weights: others lie in different
valleys of the loss, whose middle is a ridge. So the soup is greedy: the best goes in first, then one after another in
the order of their scores, and one stays only where the mean IoU on held-out images does not fall.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from segtune.bars import progress_bar
from segtune.data.lazy_rows import sample_ids
from segtune.data.splits import read_split_file
from segtune.data.tiles import without_tile
from segtune.errors import UsageError, listed
from segtune.evaluation import uncertainty
from segtune.evaluation.evaluation import Evaluation
from segtune.files import refuse_foreign
from segtune.inference.evaluate import evaluate_model
from segtune.inference.evaluate_checkpoint import OpenedCheckpoint, open_checkpoint
from segtune.recipe.recipe import Recipe, load_recipe
from segtune.segformer.loading import load_model
from segtune.training.checkpoint import MODEL_FILES, save_model
from segtune.training.run_folder import RECIPE_FILE, SPLIT_FILE

RESULT_FILE, CARD = "soup.json", "README.md"

Weights = dict[str, Tensor]


def greedy_soup(
    checkpoints: Sequence[str], recipe: Recipe, output: Path, *, split: str = "val", device: str | None = None
) -> dict[str, Any]:
    """Average the weights of those checkpoints that help, and save the network in `output`, a folder.

    Args:
        recipe: names the data on whose `split` is measured; no training may have seen these images.

    Returns:
        JSON-able, and kept as `soup.json` beside the weights: `output`, `split`, `num_images`; `ingredients`, the best
        first: `checkpoint`, `mean_iou` alone, `kept`, and `with_it`, the mean IoU of the soup with it; `mean_iou` of
        the soup; `over_best`: the difference to the best ingredient, see `uncertainty.compare`.

    Raises:
        UsageError: the checkpoints differ in shape or classes, or one was trained on the images.
    """
    opened = open_checkpoint(checkpoints[0], recipe, split=split, device=device)
    refuse_seen(checkpoints, recipe, sample_ids(opened.rows), split)
    weights = [_weights(name, opened) for name in checkpoints]
    bar = progress_bar(total=2 * len(checkpoints) - 1, desc="soup", unit="evaluation", leave=False)
    with bar:
        alone = []
        for each in weights:
            alone.append(_measured(opened, each))
            bar.update()
        order = sorted(range(len(checkpoints)), key=lambda index: -_mean_iou(alone[index]))
        soup = best = alone[order[0]]
        kept, rows = [order[0]], [_row(checkpoints, alone, order[0], kept=True, with_it=best)]
        for index in order[1:]:
            tried = _measured(opened, average([weights[number] for number in (*kept, index)]))
            bar.update()
            if is_better := _mean_iou(tried) >= _mean_iou(soup):
                kept, soup = [*kept, index], tried
            rows.append(_row(checkpoints, alone, index, kept=is_better, with_it=tried))
    opened.model.load_state_dict(average([weights[number] for number in kept]))
    compared = uncertainty.compare(best, soup)["mean_iou"]
    result = {"output": str(output), "split": split, "num_images": len(soup), "ingredients": rows}
    result |= {"mean_iou": _mean_iou(soup), "over_best": compared}
    _save(opened, output, result)
    return result


def refuse_output(output: Path, checkpoints: Sequence[str]) -> None:
    """Raise UsageError where a folder that a soup would replace holds an ingredient, or is none that one has made."""
    refuse_foreign(output, RESULT_FILE, (*MODEL_FILES, CARD), "--output", map(Path, checkpoints))


def average(states: Sequence[Mapping[str, Tensor]]) -> Weights:
    """The mean of each weight and of each running statistic, in float64; whole numbers are those of the first."""
    first = states[0]
    if len(states) == 1:
        return dict(first)
    return {
        name: torch.stack([state[name].double() for state in states]).mean(0).to(value.dtype)
        if value.is_floating_point()
        else value
        for name, value in first.items()
    }


def refuse_seen(checkpoints: Sequence[str], recipe: Recipe, ids: Sequence[str], split: str) -> None:
    """Raise UsageError where a run that holds one of the checkpoints was trained on images of `ids`, of the same data.

    What is chosen by images that one of the trainings has learned by heart is chosen in its favour.
    """
    images = set(map(without_tile, ids))
    for name in checkpoints:
        run = Path(name).parent
        if not ((run / SPLIT_FILE).is_file() and (run / RECIPE_FILE).is_file()):
            continue
        own = load_recipe(run / RECIPE_FILE).dataset.path
        seen = images.intersection(read_split_file(run / SPLIT_FILE).get("train", []))
        if seen and Path(own).absolute() == Path(recipe.dataset.path).absolute():
            raise UsageError(
                f"{name} was trained on {len(seen)} of the {len(images)} images of {split}, such as "
                f"{min(seen)!r}: measure on images that no ingredient has seen, by --split test, or by a recipe whose "
                "split holds them"
            )


def _weights(name: str, opened: OpenedCheckpoint) -> Weights:
    """The weights of a checkpoint, which have the names and shapes of the opened one's, on the CPU."""
    model: Any = opened.model
    if name == opened.name:
        return {key: value.detach().cpu().clone() for key, value in model.state_dict().items()}
    other = load_model(name, whole=True)
    if other.config.id2label != model.config.id2label:
        names = list(other.config.id2label.values())
        raise UsageError(f"the classes of {name} ({listed(names)}) are not those of {opened.name}: they do not average")
    shapes, own = (
        {key: tuple(value.shape) for key, value in network.state_dict().items()} for network in (other, model)
    )
    if differing := [key for key in own.keys() | shapes.keys() if own.get(key) != shapes.get(key)]:
        key = min(differing)
        raise UsageError(
            f"the weights of {name} do not have the shapes of {opened.name}, such as {key}: {shapes.get(key)} and "
            f"{own.get(key)}. Only networks of one shape average; segtune predict averages the answers of any"
        )
    return {key: value.detach() for key, value in other.state_dict().items()}


def _measured(opened: OpenedCheckpoint, weights: Weights) -> Evaluation:
    model: Any = opened.model
    model.load_state_dict(weights)
    return evaluate_model(model, opened.rows, opened.label_map, opened.processor)


def _mean_iou(evaluation: Evaluation) -> float:
    value = evaluation.scores()["mean_iou"]
    return -1.0 if value is None else float(value)


def _row(
    checkpoints: Sequence[str], alone: Sequence[Evaluation], index: int, *, kept: bool, with_it: Evaluation
) -> dict[str, Any]:
    scores = {"mean_iou": _mean_iou(alone[index]), "with_it": _mean_iou(with_it)}
    return {"checkpoint": checkpoints[index], "kept": kept} | scores


def _save(opened: OpenedCheckpoint, output: Path, result: dict[str, Any]) -> None:
    """The network, its processor, the figures, and a card that says what it is made of."""
    kept = [f"- {row['checkpoint']} (alone: {row['mean_iou']:.4f})" for row in result["ingredients"] if row["kept"]]
    left = len(result["ingredients"]) - len(kept)
    card = [
        f"# {output.name}: a soup of SegFormers",
        "",
        f"The mean of the weights of {len(kept)} trainings (greedy soup, Wortsman et al. 2022, arXiv 2203.05482). On "
        f"the {result['num_images']} images of the {result['split']} split, by which they were chosen, it has a mean "
        f"IoU of {result['mean_iou']:.4f}. {left} more were tried and left out. All figures are in {RESULT_FILE}.",
        "",
        *kept,
    ]
    texts = {RESULT_FILE: json.dumps(result, indent=2) + "\n", CARD: "\n".join(card) + "\n"}
    save_model(output, opened.model, opened.processor, texts)  # type: ignore[arg-type]
