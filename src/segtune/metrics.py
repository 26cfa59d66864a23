"""Mean intersection over union, streamed: a confusion matrix is all that is kept."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import evaluate
import numpy as np
from evaluate.module import Features, Sequence, Value

from segtune.errors import DataError

_CHUNK = 1 << 18  # pixels counted at a time, so that the 64-bit copies np.bincount makes stay in the cache

_DESCRIPTION = "Mean intersection over union of semantic segmentation, over all pixels of all images."
_INPUTS = """
Args:
    predictions: class ids, maps (height, width) of any integer type: arrays, tensors on any device, or a list.
    references: class ids of the same sizes; `ignore_index` marks pixels that do not count.
"""
_CITATION = """\
@article{everingham2010pascal,
  title={The Pascal Visual Object Classes (VOC) Challenge},
  author={Everingham, Mark and Van Gool, Luc and Williams, Christopher K. I. and Winn, John and Zisserman, Andrew},
  journal={International Journal of Computer Vision},
  year={2010}
}"""


class ConfusionMatrix:
    """Pixel counts of every pair of classes.

    Args:
        num_labels: number of classes K; ids run from 0 to K - 1.
        ignore_index: id of the reference pixels that do not count. What is predicted there is not looked at.

    Attributes:
        counts: int64 `(K, K)`; row = reference, column = prediction.
    """

    def __init__(self, num_labels: int, ignore_index: int = 255) -> None:
        if num_labels < 1:
            raise ValueError(f"num_labels is at least 1, not {num_labels}")
        self.num_labels = num_labels
        self.ignore_index = ignore_index
        self.counts = np.zeros((num_labels, num_labels), dtype=np.int64)

    def update(self, predictions: Any, references: Any) -> int:
        """Count one pair of maps, a batch `(B, H, W)`, or lists of maps whose sizes differ; return the number of maps.

        Raises:
            DataError: maps that are not integer ids, that do not pair up, or that hold an id out of range; the matrix
                is then left as it was.
        """
        added, maps = np.zeros_like(self.counts), 0
        for prediction, reference in _pairs(predictions, references):
            maps += len(prediction) if prediction.ndim == 3 else 1
            added += self._count(prediction.reshape(-1), reference.reshape(-1))  # (K, K)
        self.counts += added
        return maps

    def merge(self, other: ConfusionMatrix) -> ConfusionMatrix:
        """Add the counts of another matrix, of another process for instance, to this one; return this one."""
        if (self.num_labels, self.ignore_index) != (other.num_labels, other.ignore_index):
            raise ValueError(
                f"two matrices differ: num_labels {self.num_labels} and {other.num_labels}, "
                f"ignore_index {self.ignore_index} and {other.ignore_index}"
            )
        self.counts += other.counts
        return self

    def __add__(self, other: ConfusionMatrix) -> ConfusionMatrix:
        return ConfusionMatrix(self.num_labels, self.ignore_index).merge(self).merge(other)

    def compute(self) -> dict[str, Any]:
        """The keys of evaluate's mean_iou.

        Returns:
            `mean_iou`, `mean_accuracy` and `overall_accuracy` (floats between 0 and 1, nan where nothing was
            counted), `per_category_iou` and `per_category_accuracy` (float64 `(K,)`; nan for a class that has no
            pixel: for IoU neither in references nor in predictions, for accuracy in no reference). The means skip
            nan.
        """
        correct = self.counts.diagonal().astype(np.float64)
        references, predictions = self.counts.sum(axis=1), self.counts.sum(axis=0)
        iou = _ratio(correct, references + predictions - correct)
        accuracy = _ratio(correct, references)
        return {
            "mean_iou": _mean(iou),
            "mean_accuracy": _mean(accuracy),
            "overall_accuracy": float(_ratio(correct.sum(), self.counts.sum())),
            "per_category_iou": iou,
            "per_category_accuracy": accuracy,
        }

    def _count(self, prediction: np.ndarray, reference: np.ndarray) -> np.ndarray:
        """Counts `(K, K)` of two flat id arrays."""
        total = np.zeros_like(self.counts)
        for start in range(0, reference.size, _CHUNK):
            chunk = slice(start, start + _CHUNK)
            pred, ref = _as_bytes(prediction[chunk]), _as_bytes(reference[chunk])
            if pred is None or ref is None:
                total += self._count_wide(prediction[chunk], reference[chunk])
            else:
                total += self._count_bytes(pred, ref)
        return total

    def _count_bytes(self, prediction: np.ndarray, reference: np.ndarray) -> np.ndarray:
        """Ids that fit into a byte: every pair of bytes is counted in one pass, and only then are ids checked."""
        pairs = np.bincount(reference.astype(np.uint16) << 8 | prediction, minlength=1 << 16).reshape(256, 256)
        if 0 <= self.ignore_index < 256:
            pairs[self.ignore_index] = 0
        k = min(self.num_labels, 256)
        self._check_ids("references", dict(enumerate(pairs[k:].sum(axis=1), start=k)))
        self._check_ids("predictions", dict(enumerate(pairs[:, k:].sum(axis=0), start=k)))
        counts = np.zeros_like(self.counts)
        counts[:k, :k] = pairs[:k, :k]
        return counts

    def _count_wide(self, prediction: np.ndarray, reference: np.ndarray) -> np.ndarray:
        """Ids of any size: checked first, then counted as one number per pair."""
        valid = reference != self.ignore_index
        k = self.num_labels
        kept: list[np.ndarray] = []
        for name, ids in (("references", reference), ("predictions", prediction)):
            ids = ids[valid]
            wrong = ids[(ids < 0) | (ids >= k)]
            self._check_ids(name, dict(zip(*np.unique(wrong, return_counts=True), strict=True)))
            kept.append(ids.astype(np.int64))
        return np.bincount(kept[0] * k + kept[1], minlength=k * k).reshape(k, k)

    def _check_ids(self, name: str, found: dict[Any, Any]) -> None:
        wrong = {int(value): int(count) for value, count in found.items() if count}
        if not wrong:
            return
        listed = ", ".join(f"{value} ({count} pixels)" for value, count in list(wrong.items())[:5])
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        fix = f"; pixels that do not count need {self.ignore_index}" if name == "references" else ""
        raise DataError(f"{name} hold id {listed}{more}, but classes are 0 to {self.num_labels - 1}{fix}")


class MeanIoU(evaluate.Metric):
    """`evaluate`'s mean_iou as a stream: any number of images in constant memory, no network, no files.

    Args:
        num_labels: number of classes; ids run from 0 to `num_labels - 1`.
        ignore_index: id of the reference pixels that do not count.

    Example:
        >>> metric = MeanIoU(num_labels=2)
        >>> metric.add_batch(predictions=[[[0, 1]]], references=[[[0, 255]]])
        >>> metric.compute()["mean_iou"]
        1.0
    """

    def __init__(self, num_labels: int, ignore_index: int = 255) -> None:
        self.confusion = ConfusionMatrix(num_labels, ignore_index)
        self._maps = 0
        super().__init__(keep_in_memory=True, seed=0)

    def _info(self) -> evaluate.MetricInfo:
        ids = Sequence(Sequence(Value("int64")))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=Features({"predictions": ids, "references": ids}),
            streamable=True,
        )

    def _build_data_dir(self) -> str:
        return ""  # the base class would create a folder here

    def __len__(self) -> int:
        """Number of maps counted since the last `compute`."""
        return self._maps

    def add(
        self, *, prediction: Any = None, reference: Any = None, predictions: Any = None, references: Any = None
    ) -> None:
        """Count one pair of maps."""
        self.add_batch(
            predictions=predictions if prediction is None else prediction,
            references=references if reference is None else reference,
        )

    def add_batch(self, *, predictions: Any, references: Any) -> None:
        """Count a batch of maps, or lists of maps whose sizes differ."""
        self._maps += self.confusion.update(predictions, references)

    def compute(self, *, predictions: Any = None, references: Any = None) -> dict[str, Any]:
        """Count these maps, if given, then return the metric of everything counted and start anew."""
        if predictions is not None or references is not None:
            self.add_batch(predictions=predictions, references=references)
        if not len(self):
            raise ValueError("nothing to compute: call add or add_batch first, or pass predictions and references")
        result = self.confusion.compute()
        self.confusion = ConfusionMatrix(self.confusion.num_labels, self.confusion.ignore_index)
        self._maps = 0
        return result


def _pairs(predictions: Any, references: Any) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    pred, ref = _maps(predictions, "predictions"), _maps(references, "references")
    if len(pred) != len(ref):
        raise DataError(f"{len(pred)} predictions but {len(ref)} references")
    for index, (prediction, reference) in enumerate(zip(pred, ref, strict=True)):
        if prediction.shape != reference.shape:
            raise DataError(
                f"map {index}: the prediction is {prediction.shape}, its reference {reference.shape}; "
                "bring the prediction to the size of the mask first"
            )
        yield prediction, reference


def _maps(values: Any, name: str) -> list[np.ndarray]:
    """A list of maps as arrays; one array, of one map or a batch, is a list of one."""
    if isinstance(values, (list, tuple)) and len(values) and not isinstance(values[0], (int, np.integer)):
        maps = [_array(value) for value in values]
    else:
        maps = [_array(values)]
    for array in maps:
        if array.dtype.kind not in "iub":
            raise DataError(f"{name} are integer ids (take the argmax of logits), not {array.dtype}")
    return maps


def _array(values: Any) -> np.ndarray:
    if hasattr(values, "detach"):  # a torch tensor, on whatever device
        values = values.detach().cpu().numpy()
    try:
        return np.asarray(values)
    except ValueError as error:
        raise DataError(f"ids come as maps (height, width) of integers: {error}") from error


def _as_bytes(ids: np.ndarray) -> np.ndarray | None:
    """The same ids as uint8, or None where one does not fit."""
    if ids.dtype == np.uint8:
        return ids
    if ids.dtype != bool and (ids.min() < 0 or ids.max() > 255):
        return None
    return ids.astype(np.uint8)


def _ratio(part: Any, whole: Any) -> np.ndarray:
    """`part / whole`, nan where `whole` is 0."""
    whole = np.asarray(whole, dtype=np.float64)
    return np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0)


def _mean(values: np.ndarray) -> float:
    present = values[~np.isnan(values)]
    return float(present.mean()) if present.size else float("nan")
