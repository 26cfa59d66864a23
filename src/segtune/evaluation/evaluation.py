"""Evaluation of predictions: pixels counted image by image, added up to scores, saved, read back."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from segtune.errors import DataError, UsageError
from segtune.evaluation import boundary, calibration, object_size
from segtune.evaluation.image_counts import ImageCounts
from segtune.evaluation.scores import class_scores, mean, overall_scores, plain, ratio
from segtune.files import atomic_path

PIXELS = ("correct", "reference", "prediction")
FORMAT = 1


def file_name(split: str) -> str:
    """Of the evaluation of a split, in a run folder."""
    return f"evaluation-{split}.npz"


def find_evaluations(runs: Sequence[str | Path], split: str | None = None) -> list[Path]:
    """The evaluation files of runs, of the same split: test where all have it, else val, unless `split` says.

    Args:
        runs: run folders, or files that `Evaluation.save` wrote.

    Raises:
        UsageError: a run has none; the message says how to make it.
    """
    paths = [Path(run) for run in runs]
    if missing := [path for path in paths if not path.exists()]:
        raise UsageError(f"{missing[0]}: no such run folder or evaluation")
    folders = [path for path in paths if not path.is_file()]
    splits = [split] if split else ["test", "val"]
    chosen = next((name for name in splits if all((path / file_name(name)).is_file() for path in folders)), splits[0])
    for folder in folders:
        if not (folder / file_name(chosen)).is_file():
            raise UsageError(
                f"{folder} has no {file_name(chosen)}: make it with segtune evaluate {folder}/best "
                f"{folder}/recipe.yaml --split {chosen} --save {folder}"
            )
    return [path if path.is_file() else path / file_name(chosen) for path in paths]


class Evaluation:
    """Streams over images: add each, then ask for the scores. Parts of several processes are merged.

    Args:
        names: of the classes, by training id.
        ignore_index: label of the pixels that do not count.
        detailed: also count boundaries and object sizes and, where confidences are given, calibration.
        boundary_width: of the boundary, as a share of the image's diagonal; default `boundary.WIDTH`.

    Attributes:
        counts: pixels of each image and class.
        confusion: int64 `(K, K)` of all images; row = reference, column = prediction.
        about: what a file says beside the counts: the split, the checkpoint, …; JSON-able.
    """

    def __init__(
        self,
        names: Sequence[str],
        ignore_index: int = 255,
        *,
        detailed: bool = False,
        boundary_width: float | None = None,
    ) -> None:
        self.names, self.ignore_index, self.detailed = tuple(names), ignore_index, detailed
        self.boundary_width = boundary.WIDTH if boundary_width is None else boundary_width
        columns = PIXELS + (boundary.COLUMNS + object_size.COLUMNS if detailed else ())
        self.counts = ImageCounts(len(self.names), columns)
        self.confusion = np.zeros((len(self.names),) * 2, dtype=np.int64)
        self.reliability: dict[str, np.ndarray] = {}  # of an image: (regions, bins, 3)
        self.about: dict[str, Any] = {}

    def __len__(self) -> int:
        return len(self.counts)

    def add(
        self, image_id: str, labels: np.ndarray, prediction: np.ndarray, confidence: np.ndarray | None = None
    ) -> None:
        """Count one image.

        Args:
            labels: training ids or `ignore_index`, `(H, W)`.
            prediction: training ids `(H, W)`.
            confidence: probability of the prediction `(H, W)`; used where the evaluation is detailed.

        Raises:
            DataError: maps of different sizes, an id that is no class, or an image that was counted already.
        """
        from segtune.evaluation.confusion import count_pairs  # torch, which reading a file can do without

        if labels.shape != prediction.shape:
            raise DataError(f"image {image_id!r}: the labels are {labels.shape}, the prediction {prediction.shape}")
        num_labels, ignored = len(self.names), self.ignore_index
        try:
            confusion = count_pairs(prediction, labels, num_labels, ignored)
        except DataError as error:
            raise DataError(f"image {image_id!r}: {error}") from error
        columns = [confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)]
        if self.detailed:
            columns += [*boundary.boundary_counts(prediction, labels, num_labels, ignored, self.boundary_width).T]
            columns += [*object_size.size_counts(prediction, labels, num_labels, ignored).T]
        self.counts.append(image_id, np.stack(columns, axis=1))  # (K, columns)
        self.confusion += confusion
        if self.detailed and confidence is not None:
            self.reliability[image_id] = calibration.reliability_counts(
                prediction, labels, confidence, num_labels, ignored, self.boundary_width
            )

    def merge(self, other: Evaluation) -> Evaluation:
        """Add the images of another process's evaluation to this one; return this one.

        Raises:
            DataError: an image is in both.
            ValueError: the evaluations do not count the same.
        """
        own, theirs = ((e.names, e.ignore_index, e.detailed, e.boundary_width) for e in (self, other))
        if own != theirs:
            raise ValueError(f"two evaluations differ: {own} and {theirs}")
        self.counts.extend(other.counts)
        self.confusion += other.confusion
        self.reliability |= other.reliability
        return self

    # --- scores --------------------------------------------------------------------------------------------------

    def scores(self) -> dict[str, Any]:
        """Everything that was counted as JSON-able numbers; None where a class is absent.

        Counts of all images are added before anything is divided; only `mean_image_iou` is a mean over images (of the
        mean IoU of the classes that occur in the image).
        """
        pixels = self.counts.total(*PIXELS).T
        result: dict[str, Any] = {"num_images": len(self), **overall_scores(*pixels)}
        result["mean_image_iou"] = mean(np.sort(self.image_iou()))  # whatever the order of the images
        per_class = class_scores(*pixels)
        if self.detailed:
            details = boundary.boundary_scores(self.counts.total(*boundary.COLUMNS))
            details |= object_size.size_scores(self.counts.total(*object_size.COLUMNS))
            for name, value in details.items():
                (per_class if np.ndim(value) else result)[name] = value
        per_class |= {"pixels": pixels[1], "images": self.counts.images_of_class()}
        columns = {key: plain(values) for key, values in per_class.items()}
        rows = (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))
        result["per_class"] = dict(zip(self.names, rows, strict=True))
        if self.reliability:
            result["calibration"] = calibration.calibration_scores(np.sum([*self.reliability.values()], axis=0))
        return dict(plain(result))

    def image_iou(self) -> np.ndarray:
        """The mean IoU of each image over the classes that occur in it, `(images,)`; nan where all is ignored."""
        image, _, correct, reference, prediction = self.counts.rows(*PIXELS)
        iou = ratio(correct, reference + prediction - correct)
        number = np.bincount(image, minlength=len(self))
        return ratio(np.bincount(image, weights=iou, minlength=len(self)), number)

    # --- the file ------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write a NumPy archive (.npz) that `load` reads; images are sorted by id.

        Entries: `ids` (N,), `rows` (N,) (how many rows of `classes` and `counts` are an image's), `classes` (M,),
        `counts` (M, columns), `columns`, `names` (K,), `confusion` (K, K), `reliability` (N, regions, bins, 3) where
        every image has one, and `about`: JSON with the format's version, the settings, the fingerprint of the data
        and what `about` says.
        """
        path = Path(path)
        self.counts.sort()
        about = {
            "format": FORMAT,
            "fingerprint": self.counts.fingerprint(),
            "ignore_index": self.ignore_index,
            "detailed": self.detailed,
            "boundary_width": self.boundary_width,
            "about": self.about,
        }
        arrays: dict[str, Any] = {**self.counts.arrays(), "names": np.array(self.names), "confusion": self.confusion}
        if self.reliability:
            arrays["reliability"] = np.stack([self.reliability[image_id] for image_id in self.counts.ids])
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, about=np.array(json.dumps(about)), **arrays)

    @classmethod
    def load(cls, path: str | Path) -> Evaluation:
        """Read what `save` wrote.

        Raises:
            UsageError: there is no such file.
            DataError: the file is torn, is no evaluation, or is of a later version of segtune.
        """
        try:
            with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            about = json.loads(str(arrays["about"]))
            if about["format"] != FORMAT:
                raise DataError(f"{path} has format {about['format']}, this version of segtune reads {FORMAT}")
            settings = {key: about[key] for key in ("detailed", "boundary_width")}
            evaluation = cls(arrays["names"].tolist(), about["ignore_index"], **settings)
            evaluation.counts = ImageCounts.from_arrays(arrays, len(evaluation.names))
        except FileNotFoundError:
            raise UsageError(f"{path}: no such evaluation") from None
        except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{path} is no evaluation saved by segtune, or is torn ({error})") from error
        if evaluation.counts.fingerprint() != about["fingerprint"]:
            raise DataError(f"{path} is not what was written: the fingerprint of its data differs")
        evaluation.confusion, evaluation.about = arrays["confusion"], about["about"]
        if "reliability" in arrays:
            evaluation.reliability = dict(zip(evaluation.counts.ids, arrays["reliability"], strict=True))
        return evaluation
