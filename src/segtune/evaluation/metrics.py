"""The metrics as `evaluate.Metric`s: any number of images in constant memory, no network, no files.

Each counts a pair of maps at a time, adds the counts up, and divides at the end; `evaluate.combine` takes them. Class
by class, an absent class is nan, and means leave it out.
"""

from __future__ import annotations

from typing import Any

import evaluate
import numpy as np
from evaluate.module import Features, Sequence, Value

from segtune.errors import DataError
from segtune.evaluation.boundary import WIDTH, boundary_counts, boundary_scores
from segtune.evaluation.calibration import calibration_scores, reliability_counts
from segtune.evaluation.confusion import as_maps, count_pairs, pairs_of_maps
from segtune.evaluation.object_size import size_counts, size_scores
from segtune.evaluation.scores import class_scores, mean, of_confusion, overall_scores

_INPUTS = """
Args:
    predictions: class ids, maps (height, width) of any integer type: arrays, tensors on any device, or a list.
    references: class ids of the same sizes; `ignore_index` marks pixels that do not count.
"""
_CONFIDENCES = """    confidences: probabilities of the predicted classes, maps of the same sizes.
"""
_PASCAL = """\
@article{everingham2010pascal,
  title={The Pascal Visual Object Classes (VOC) Challenge},
  author={Everingham, Mark and Van Gool, Luc and Williams, Christopher K. I. and Winn, John and Zisserman, Andrew},
  journal={International Journal of Computer Vision},
  year={2010}
}"""
_BOUNDARY = """\
@inproceedings{cheng2021boundary,
  title={Boundary {IoU}: Improving Object-Centric Image Segmentation Evaluation},
  author={Cheng, Bowen and Girshick, Ross and Doll{\\'a}r, Piotr and Berg, Alexander C. and Kirillov, Alexander},
  booktitle={CVPR},
  year={2021}
}
@inproceedings{csurka2013good,
  title={What is a good evaluation measure for semantic segmentation?},
  author={Csurka, Gabriela and Larlus, Diane and Perronnin, Florent},
  booktitle={BMVC},
  year={2013}
}"""
_COCO = """\
@inproceedings{lin2014coco,
  title={Microsoft {COCO}: Common Objects in Context},
  author={Lin, Tsung-Yi and Maire, Michael and Belongie, Serge and others},
  booktitle={ECCV},
  year={2014}
}"""
_CALIBRATION = """\
@inproceedings{guo2017calibration,
  title={On Calibration of Modern Neural Networks},
  author={Guo, Chuan and Pleiss, Geoff and Sun, Yu and Weinberger, Kilian Q.},
  booktitle={ICML},
  year={2017}
}"""


class _Streaming(evaluate.Metric):
    """A metric that keeps nothing but the sum of what `_count` makes of each pair of maps.

    Args:
        num_labels: number of classes K; ids run from 0 to `num_labels - 1`.
        ignore_index: id of the reference pixels that do not count.
    """

    _citation = _PASCAL
    _inputs: tuple[str, ...] = ("predictions", "references")

    def __init__(self, num_labels: int, ignore_index: int = 255) -> None:
        if num_labels < 1:
            raise ValueError(f"num_labels is at least 1, not {num_labels}")
        self.num_labels, self.ignore_index = num_labels, ignore_index
        self._start()
        super().__init__(keep_in_memory=True, seed=0)

    def _count(self, *args: Any, **kwargs: Any) -> np.ndarray:
        raise NotImplementedError

    def _scores(self, total: np.ndarray) -> dict[str, Any]:
        raise NotImplementedError

    def _start(self) -> None:
        self.total: Any = 0
        self._maps = 0

    def _info(self) -> evaluate.MetricInfo:
        types = {"predictions": "int64", "references": "int64", "confidences": "float32"}
        return evaluate.MetricInfo(
            description=type(self).__doc__,
            citation=self._citation,
            inputs_description=_INPUTS + (_CONFIDENCES if "confidences" in self._inputs else ""),
            features=Features({name: Sequence(Sequence(Value(types[name]))) for name in self._inputs}),
            streamable=True,
        )

    def _build_data_dir(self) -> str:
        return ""  # the base class would create a folder here

    def __len__(self) -> int:
        """Number of maps counted since the last `compute`."""
        return self._maps

    def add(
        self,
        *,
        prediction: Any = None,
        reference: Any = None,
        predictions: Any = None,
        references: Any = None,
        **others: Any,
    ) -> None:
        """Count one pair of maps."""
        predictions = predictions if prediction is None else prediction
        references = references if reference is None else reference
        self.add_batch(predictions=predictions, references=references, **others)

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
            self._count(*pair, **{name: maps[index] for name, maps in columns.items()})
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


class MeanIoU(_Streaming):
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

    def _count(self, prediction: np.ndarray, reference: np.ndarray) -> np.ndarray:
        return count_pairs(prediction, reference, self.num_labels, self.ignore_index)  # (K, K)

    def _scores(self, total: np.ndarray) -> dict[str, Any]:
        counts = of_confusion(total)
        of_class, overall = class_scores(*counts), overall_scores(*counts)
        means = {key: float(overall[key]) for key in ("mean_iou", "mean_accuracy", "overall_accuracy")}
        return means | {f"per_category_{key}": of_class[key] for key in ("iou", "accuracy")}


class SegmentationScores(MeanIoU):
    """Everything that a confusion matrix says: see `scores.overall_scores` and, per category, `scores.class_scores`.

    The keys of `MeanIoU`, `mean_precision`, `mean_dice`, `frequency_weighted_iou`, `kappa`, `per_category_precision`,
    `per_category_recall`, `per_category_dice` and `confusion` (int64 `(K, K)`, row = reference).
    """

    def _scores(self, total: np.ndarray) -> dict[str, Any]:
        counts = of_confusion(total)
        overall = {key: float(value) for key, value in overall_scores(*counts).items()}
        of_class = {f"per_category_{key}": value for key, value in class_scores(*counts).items()}
        return overall | of_class | {"confusion": total}


class MeanImageIoU(_Streaming):
    """The mean over images of the mean IoU of the classes that occur in the image: `mean_image_iou`.

    Images whose pixels are all ignored are left out; nan where no other is there.
    """

    def _count(self, prediction: np.ndarray, reference: np.ndarray) -> np.ndarray:
        confusion = count_pairs(prediction, reference, self.num_labels, self.ignore_index)
        iou = mean(class_scores(*of_confusion(confusion))["iou"])
        return np.array([0.0, 0.0] if np.isnan(iou) else [iou, 1.0])

    def _scores(self, total: np.ndarray) -> dict[str, Any]:
        return {"mean_image_iou": float(total[0] / total[1]) if total[1] else float("nan")}


class BoundaryScores(_Streaming):
    """Boundary IoU (Cheng et al. 2021) and boundary F1 (Csurka et al. 2013), counts of all images added up first.

    `mean_boundary_iou`, `mean_boundary_f1`, `per_category_boundary_iou`, `per_category_boundary_f1`.

    Args:
        num_labels, ignore_index: as of `MeanIoU`.
        width: of the band of boundary IoU, as a share of the image's diagonal.
    """

    _citation = _BOUNDARY

    def __init__(self, num_labels: int, ignore_index: int = 255, width: float = WIDTH) -> None:
        self.width = width
        super().__init__(num_labels, ignore_index)

    def _count(self, prediction: np.ndarray, reference: np.ndarray) -> np.ndarray:
        count_pairs(prediction, reference, self.num_labels, self.ignore_index)  # refuses ids out of range
        return boundary_counts(prediction, reference, self.num_labels, self.ignore_index, self.width)

    def _scores(self, total: np.ndarray) -> dict[str, Any]:
        return _named(boundary_scores(total))


class SizeScores(_Streaming):
    """IoU of small, medium and large objects; `segtune.evaluation.object_size` says which pixel belongs to which.

    `mean_iou_small`, `per_category_iou_small` and so on.
    """

    _citation = _COCO

    def _count(self, prediction: np.ndarray, reference: np.ndarray) -> np.ndarray:
        count_pairs(prediction, reference, self.num_labels, self.ignore_index)  # refuses ids out of range
        return size_counts(prediction, reference, self.num_labels, self.ignore_index)

    def _scores(self, total: np.ndarray) -> dict[str, Any]:
        return _named(size_scores(total))


class CalibrationError(_Streaming):
    """Expected calibration error and reliability curve (Guo et al. 2017), of all pixels and of those near boundaries.

    `ece`, `mce`, `confidence`, `accuracy` and `bins` of all pixels, and the same with `boundary_` before it.

    Args:
        num_labels, ignore_index: as of `MeanIoU`.
        width: how far the boundary reaches, as a share of the image's diagonal.
    """

    _citation = _CALIBRATION
    _inputs = ("predictions", "references", "confidences")

    def __init__(self, num_labels: int, ignore_index: int = 255, width: float = WIDTH) -> None:
        self.width = width
        super().__init__(num_labels, ignore_index)

    def _count(self, prediction: np.ndarray, reference: np.ndarray, confidences: np.ndarray) -> np.ndarray:
        count_pairs(prediction, reference, self.num_labels, self.ignore_index)  # refuses ids out of range
        return reliability_counts(prediction, reference, confidences, self.num_labels, self.ignore_index, self.width)

    def _scores(self, total: np.ndarray) -> dict[str, Any]:
        scores = calibration_scores(total)
        return scores["all"] | {f"boundary_{key}": value for key, value in scores["boundary"].items()}


def _named(scores: dict[str, Any]) -> dict[str, Any]:
    """Means as numbers, scores of each class as `per_category_…`."""
    return {key if np.ndim(value) == 0 else f"per_category_{key}": _item(value) for key, value in scores.items()}


def _item(value: Any) -> Any:
    return float(value) if np.ndim(value) == 0 else value
