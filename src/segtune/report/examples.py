"""Examples for the report: one look of a model at a labelled split, and which of its images are worth showing."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from torch import nn

from segtune.data.lazy_rows import sample_ids
from segtune.evaluation.evaluation import Evaluation
from segtune.evaluation.label_issues import LabelIssue, clearest_pair, label_issue, ranked, suspects
from segtune.imageio.read import for_display
from segtune.inference.evaluate import EvaluatedImage, evaluated_images
from segtune.labels.label_map import LabelMap
from segtune.segformer.image_processing_segformer import SegformerImageProcessor
from segtune.viz.comparisons import evenly_spaced
from segtune.viz.layers import Layers, layers

if TYPE_CHECKING:
    import datasets

WORST, BEST, RANDOM, SUSPECTS = 6, 3, 3, 6  # images that are shown

Look = Callable[[Collection[str]], Iterator[EvaluatedImage]]  # at the images of these ids, with confidences


class Picture(NamedTuple):
    """An image that is shown.

    Attributes:
        iou: mean IoU of the classes that occur in it.
        wrong: share of the labelled pixels.
        mistake: truth and prediction of its most frequent mistake, as training ids, and its share of the labelled
            pixels; None where nothing is wrong.
    """

    id: str
    iou: float
    wrong: float
    mistake: tuple[int, int, float] | None
    doubt: LabelIssue
    layers: Layers


@dataclass
class Examination:
    """What was found.

    Attributes:
        evaluation: of the images that were looked at, detailed.
        doubts: of the same, by id.
        chosen: ids to show, by what they show: "worst", "best", "random", "suspects".
        standing_out: how many of the suspects stand out; the others only rank next.
        pictures: of all chosen images, by id.
        seconds: that the look took.
    """

    evaluation: Evaluation
    doubts: dict[str, LabelIssue]
    chosen: dict[str, list[str]]
    standing_out: int
    pictures: dict[str, Picture] = field(default_factory=dict)
    seconds: float = 0.0


def examine(
    model: nn.Module,
    dataset: datasets.Dataset,
    label_map: LabelMap,
    processor: SegformerImageProcessor,
    *,
    counted: Evaluation | None = None,
    at_most: int | None = None,
    batch_size: int = 1,
    progress: bool = True,
) -> Examination:
    """Look at the images of a split once, then once more at the few that are shown.

    Args:
        counted: an earlier evaluation of the same weights on the whole split, by which the worst and best are chosen.
        at_most: look at so many images, evenly spaced; default is all.
        model, dataset, label_map, processor, batch_size, progress: see `evaluated_images`.

    Raises:
        DataError, UsageError: see `evaluated_images`.
    """
    options: dict[str, Any] = {"confidence": True, "batch_size": batch_size, "progress": progress}
    ids = sample_ids(dataset)

    def look(images: Collection[str]) -> Iterator[EvaluatedImage]:
        places = [place for place, image in enumerate(ids) if image in images]
        return evaluated_images(model, dataset, label_map, processor, indices=places, **options)

    return examine_by(look, ids, label_map, counted=counted, at_most=at_most)


def examine_by(
    look: Look,
    ids: Sequence[str],
    label_map: LabelMap,
    *,
    counted: Evaluation | None = None,
    at_most: int | None = None,
) -> Examination:
    """`examine`, whichever model looks at which image.

    Args:
        look: is called twice, for the images that are looked at and for those that are shown.
        ids: of all images.
    """
    started = time.perf_counter()
    evaluation, doubts = Evaluation(label_map.names, label_map.ignore_index, detailed=True), {}
    for found in look(set(evenly_spaced(ids, len(ids) if at_most is None else at_most))):
        assert found.confidence is not None
        evaluation.add(found.id, found.labels, found.prediction, found.confidence)
        doubts[found.id] = label_issue(found.labels, found.prediction, found.confidence, label_map.ignore_index)
    evaluation.counts.sort()
    doubts = dict(sorted(doubts.items()))
    whole = evaluation if counted is None else counted
    iou = dict(zip(whole.counts.ids, whole.image_iou().tolist(), strict=True))
    chosen, standing_out = _choose(iou, doubts)
    shown = {image for images in chosen.values() for image in images}
    pictures = {found.id: _picture(found, iou[found.id], label_map) for found in look(shown)}
    seconds = time.perf_counter() - started
    return Examination(evaluation, doubts, chosen, standing_out, pictures, seconds)


def _choose(iou: Mapping[str, float], doubts: Mapping[str, LabelIssue]) -> tuple[dict[str, list[str]], int]:
    """Which images are shown, and how many of the suspects stand out; no image is worst, best and random at once."""
    ordered = sorted((image for image, value in iou.items() if not np.isnan(value)), key=lambda image: iou[image])
    worst = ordered[: min(WORST, -(-len(ordered) // 2))]
    best = ordered[::-1][: min(BEST, len(ordered) - len(worst))]
    random = _drawn(ordered, {*worst, *best}, RANDOM)
    doubted = suspects(doubts)
    shown = doubted[:SUSPECTS] or [image for image in ranked(doubts) if doubts[image].share][: SUSPECTS // 2]
    return {"worst": worst, "best": best, "random": random, "suspects": shown}, len(doubted)


def _drawn(images: Sequence[str], without: Collection[str], number: int) -> list[str]:
    """Some of the images, always the same."""
    left = sorted(set(images) - set(without))
    order = np.random.default_rng(0).permutation(len(left))[:number]
    return sorted(left[index] for index in order.tolist())


def _picture(found: EvaluatedImage, iou: float, label_map: LabelMap) -> Picture:
    assert found.confidence is not None
    valid = found.labels != label_map.ignore_index
    wrong = valid & (found.prediction != found.labels)
    total = max(int(valid.sum()), 1)
    most = clearest_pair(found.labels, found.prediction, wrong)
    mistake = (*most[0], most[1] / total) if most else None
    return Picture(
        found.id,
        iou,
        float(wrong.sum() / total),
        mistake,
        label_issue(found.labels, found.prediction, found.confidence, label_map.ignore_index),
        layers(for_display(found.image), found.labels, found.prediction, found.confidence, label_map),
    )
