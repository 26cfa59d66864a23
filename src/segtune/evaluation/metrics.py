"""Segmentation metrics as `evaluate.Metric`s: any number of images in constant memory, no network, no files.

Each counts a pair of maps at a time, adds the counts up, and divides at the end; `evaluate.combine` takes them. Class
by class, an absent class is nan, and means leave it out. What tells the metrics apart is how a pair of maps is counted
(`_count`) and which scores the sum of all counts gives (`_scores`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import evaluate
import numpy as np
from evaluate.module import Features, Sequence, Value

from segtune.errors import DataError
from segtune.evaluation.boundary import WIDTH, boundary_counts, boundary_scores
from segtune.evaluation.calibration import calibration_scores, reliability_counts
from segtune.evaluation.confusion import as_maps, check_ids, count_pairs, pairs_of_maps
from segtune.evaluation.object_size import size_counts, size_scores
from segtune.evaluation.scores import class_scores, mean, of_confusion, overall_scores, ratio

_INPUTS = {  # name -> type and meaning
    "predictions": (
        "int64",
        "class ids, maps (height, width) of any integer type: arrays, tensors, lists",
    ),
    "references": ("int64", "class ids of the same sizes; `ignore_index` marks pixels that do not count"),
    "confidences": ("float32", "probabilities of the predicted classes, maps of the same sizes"),
}


class _StreamingMetric(evaluate.Metric):
    """A metric that keeps nothing but the sum of what `_count` makes of each pair of maps.

    Args:
        num_labels: number of classes K; ids run from 0 to `num_labels - 1`.
        ignore_index: id of the reference pixels that do not count.
    """

    _count: Callable[..., np.ndarray]  # of prediction, reference, perhaps confidences, and `_settings`
    _scores: Callable[[Any], dict[str, Any]]
    _inputs: tuple[str, ...] = ("predictions", "references")
    _citation = "Everingham et al. 2010, The Pascal Visual Object Classes Challenge, doi:10.1007/s11263-009-0275-4"

    def __init__(self, num_labels: int, ignore_index: int = 255) -> None:
        if num_labels < 1:
            raise ValueError(f"num_labels is at least 1, not {num_labels}")
        self._settings: dict[str, Any] = {"num_labels": num_labels, "ignore_index": ignore_index}
        self._start()
        super().__init__(keep_in_memory=True, seed=0)

    def _start(self) -> None:
        self.total: Any = 0
        self._maps = 0

    def _info(self) -> evaluate.MetricInfo:
        inputs = {name: _INPUTS[name] for name in self._inputs}
        return evaluate.MetricInfo(
            description=type(self).__doc__,
            citation=self._citation,
            inputs_description="\n".join(["Args:", *(f"    {name}: {text}." for name, (_, text) in inputs.items())]),
            features=Features({name: Sequence(Sequence(Value(dtype))) for name, (dtype, _) in inputs.items()}),
            streamable=True,
        )

    def _build_data_dir(self) -> str:
        return ""  # the base class would create a folder here

    def __len__(self) -> int:
        """Number of maps counted since the last `compute`."""
        return self._maps

    def add(self, *, prediction: Any = None, reference: Any = None, **others: Any) -> None:
        """Count one pair of maps."""
        named = {"predictions": prediction, "references": reference}
        self.add_batch(**{name: value for name, value in named.items() if value is not None} | others)

    def add_batch(self, *, predictions: Any, references: Any, **others: Any) -> None:
        """Count a batch of maps `(B, H, W)`, or lists of maps whose sizes differ.

        Raises:
            DataError: maps that are not integer ids, that do not pair up, or that hold an id out of range; then
                nothing is counted.
        """
        pairs = list(pairs_of_maps(predictions, references))
        columns = {name: as_maps(values) for name, values in others.items()}
        if wrong := [name for name, maps in columns.items() if [m.shape for m in maps] != [p.shape for p, _ in pairs]]:
            raise DataError(f"{wrong[0]} and predictions differ in number or size")
        counts = [
            self._count(*pair, **{name: maps[index] for name, maps in columns.items()}, **self._settings)
            for index, pair in enumerate(pairs)
        ]
        self.total = self.total + sum(counts)
        self._maps += len(counts)

    def compute(self, *, predictions: Any = None, references: Any = None, **others: Any) -> dict[str, Any]:
        """Count these maps, if given, then return the metric of everything counted and start anew."""
        if predictions is not None or references is not None:
            self.add_batch(predictions=predictions, references=references, **others)
        if not len(self):
            raise ValueError("nothing to compute: call add or add_batch first, or pass predictions and references")
        result = self._scores(self.total)
        self._start()
        return result


def _checked(count: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """`count`, which trusts the ids that it is given, after a check that refuses those out of range."""

    def checked(prediction: np.ndarray, reference: np.ndarray, **settings: Any) -> np.ndarray:
        check_ids(prediction, reference, settings["num_labels"], settings["ignore_index"])
        return count(prediction, reference, **settings)

    return staticmethod(checked)


def _named(scores: dict[str, Any]) -> dict[str, Any]:
    """Means as numbers, scores of each class as `per_category_…`."""
    means = {key: float(value) for key, value in scores.items() if np.ndim(value) == 0}
    return means | {f"per_category_{key}": value for key, value in scores.items() if key not in means}


class MeanIoU(_StreamingMetric):
    """Mean intersection over union over all pixels of all images, with the keys of evaluate's mean_iou.

    `mean_iou`, `mean_accuracy` and `overall_accuracy` (floats between 0 and 1, nan where nothing was counted),
    `per_category_iou` and `per_category_accuracy` (float64 `(K,)`; nan for a class that has no pixel: for IoU neither
    in references nor in predictions, for accuracy in no reference).

    Args:
        num_labels: number of classes; ids run from 0 to `num_labels - 1`.
        ignore_index: id of the reference pixels that do not count.

    Example:
        >>> metric = MeanIoU(num_labels=2)
        >>> metric.add_batch(predictions=[[[0, 1]]], references=[[[0, 255]]])
        >>> metric.compute()["mean_iou"]
        1.0
    """

    _count = staticmethod(count_pairs)  # (K, K)

    @staticmethod
    def _scores(total: np.ndarray) -> dict[str, Any]:
        scores = SegmentationScores._scores(total)
        of_classes = ("per_category_iou", "per_category_accuracy")
        return {key: scores[key] for key in ("mean_iou", "mean_accuracy", "overall_accuracy", *of_classes)}


class SegmentationScores(_StreamingMetric):
    """Everything that a confusion matrix says: see `scores.overall_scores` and, per category, `scores.class_scores`.

    The keys of `MeanIoU`, `mean_precision`, `mean_dice`, `frequency_weighted_iou`, `kappa`, `per_category_precision`,
    `per_category_recall`, `per_category_dice` and `confusion` (int64 `(K, K)`, row = reference).
    """

    _count = staticmethod(count_pairs)  # (K, K)

    @staticmethod
    def _scores(total: np.ndarray) -> dict[str, Any]:
        counts = of_confusion(total)
        return _named(overall_scores(*counts) | class_scores(*counts)) | {"confusion": total}


class MeanImageIoU(_StreamingMetric):
    """The mean over images of the mean IoU of the classes that occur in the image: `mean_image_iou`.

    Images whose pixels are all ignored are left out; nan where no other is there.
    """

    @staticmethod
    def _count(prediction: np.ndarray, reference: np.ndarray, **settings: Any) -> np.ndarray:
        iou = mean(class_scores(*of_confusion(count_pairs(prediction, reference, **settings)))["iou"])
        return np.array([0.0, 0.0] if np.isnan(iou) else [iou, 1.0])

    @staticmethod
    def _scores(total: np.ndarray) -> dict[str, Any]:
        return {"mean_image_iou": float(ratio(*total))}


class SizeScores(_StreamingMetric):
    """IoU of small, medium and large objects; `segtune.evaluation.object_size` says which pixel belongs to which.

    `mean_iou_small`, `per_category_iou_small` and so on.
    """

    _citation = "Lin et al. 2014, Microsoft COCO: Common Objects in Context, arXiv:1405.0312"
    _count = _checked(size_counts)
    _scores = staticmethod(lambda total: _named(size_scores(total)))


class BoundaryScores(_StreamingMetric):
    """Boundary IoU (Cheng et al. 2021) and boundary F1 (Csurka et al. 2013), counts of all images added up first.

    `mean_boundary_iou`, `mean_boundary_f1`, `per_category_boundary_iou`, `per_category_boundary_f1`.

    Args:
        num_labels, ignore_index: as of `MeanIoU`.
        width: of the margin inside each class along its boundary, as a share of the image's diagonal.
    """

    _citation = (
        "Cheng et al. 2021, Boundary IoU: Improving Object-Centric Image Segmentation Evaluation, arXiv:2103.16562; "
        "Csurka et al. 2013, What is a good evaluation measure for semantic segmentation?, BMVC"
    )
    _count = _checked(boundary_counts)
    _scores = staticmethod(lambda total: _named(boundary_scores(total)))

    def __init__(self, num_labels: int, ignore_index: int = 255, width: float = WIDTH) -> None:
        super().__init__(num_labels, ignore_index)
        self._settings["width"] = width


class CalibrationError(BoundaryScores):
    """Expected calibration error and reliability curve (Guo et al. 2017), of all pixels and of those near boundaries.

    `ece`, `mce`, `confidence`, `accuracy` and `bins` of all pixels, and the same with `boundary_` before it.

    Args:
        num_labels, ignore_index: as of `MeanIoU`.
        width: how far the boundary reaches, as a share of the image's diagonal.
    """

    _citation = "Guo et al. 2017, On Calibration of Modern Neural Networks, arXiv:1706.04599"
    _inputs = ("predictions", "references", "confidences")
    _count = _checked(reliability_counts)

    @staticmethod
    def _scores(total: np.ndarray) -> dict[str, Any]:
        scores = calibration_scores(total)
        return scores["all"] | {f"boundary_{key}": value for key, value in scores["boundary"].items()}
