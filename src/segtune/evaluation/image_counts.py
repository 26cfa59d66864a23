"""Counts of each image: kept one by one, so that errors can be estimated and runs compared later.

Of each image only the classes that occur in it, in the reference or predicted, have a row of counts: 200,000 images
with a dozen classes each take some tens of megabytes, whatever the size of the images.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from segtune.errors import DataError


class ImageCounts:
    """Integer counts of each image and class.

    Args:
        num_labels: number of classes K.
        columns: what is counted; the first three are "correct", "reference" and "prediction", pixels of each class.

    Attributes:
        ids: of the images, in the order in which they came.
    """

    def __init__(self, num_labels: int, columns: Sequence[str]) -> None:
        self.num_labels, self.columns = num_labels, tuple(columns)
        self.ids: list[str] = []
        self._known: set[str] = set()
        self._classes: list[np.ndarray] = []  # of each image: (n,)
        self._counts: list[np.ndarray] = []  # of each image: (n, columns)

    def __len__(self) -> int:
        return len(self.ids)

    def append(self, image_id: str, counts: np.ndarray) -> None:
        """Keep the counts `(K, columns)` of one more image.

        Raises:
            DataError: an image of this id is there already, or one has 2^32 pixels of a class.
        """
        present = np.flatnonzero(counts[:, 1:3].any(axis=1))
        if counts.max(initial=0) > np.iinfo(np.uint32).max:
            raise DataError(f"image {image_id!r} has more than 2^32 pixels of a class: evaluate it in parts")
        self._append(image_id, present.astype(np.uint32), counts[present].astype(np.uint32))

    def extend(self, other: ImageCounts) -> None:
        """Add the images of another process or part.

        Raises:
            DataError: an image is in both.
            ValueError: the classes or columns differ.
        """
        if (self.num_labels, self.columns) != (other.num_labels, other.columns):
            raise ValueError("two sets of counts have different classes or columns")
        for image_id, classes, counts in zip(other.ids, other._classes, other._counts, strict=True):
            self._append(image_id, classes, counts)

    def _append(self, image_id: str, classes: np.ndarray, counts: np.ndarray) -> None:
        if image_id in self._known:
            raise DataError(f"image {image_id!r} was counted twice: every image needs an id of its own")
        self.ids.append(image_id)
        self._known.add(image_id)
        self._classes.append(classes)
        self._counts.append(counts)

    def rows(self, *columns: str) -> tuple[np.ndarray, ...]:
        """All rows: the image's number in `ids`, the class, and int64 counts of each column, all `(rows,)`."""
        image = np.repeat(np.arange(len(self)), [len(classes) for classes in self._classes])
        classes = np.concatenate([np.zeros(0, np.uint32), *self._classes]).astype(np.int64)
        counts = np.concatenate([np.zeros((0, len(self.columns)), np.uint32), *self._counts])
        return image, classes, *(counts[:, self.columns.index(name)].astype(np.int64) for name in columns)

    def dense(self, *columns: str) -> tuple[np.ndarray, ...]:
        """Each column as float64 `(images, K)`, whole numbers, images in the order of `ids`."""
        image, classes, *counts = self.rows(*columns)
        tables = tuple(np.zeros((len(self), self.num_labels)) for _ in columns)
        for table, values in zip(tables, counts, strict=True):
            table[image, classes] = values
        return tables

    def total(self, *columns: str) -> np.ndarray:
        """The sum of each column over all images, int64 `(K, columns)`."""
        total = np.zeros((self.num_labels, len(columns)), dtype=np.int64)
        _, classes, *counts = self.rows(*columns)
        for column, values in enumerate(counts):
            np.add.at(total[:, column], classes, values)
        return total

    def images_of_class(self) -> np.ndarray:
        """In how many images each class is in the reference, `(K,)`."""
        _, classes, reference = self.rows("reference")
        return np.bincount(classes[reference > 0], minlength=self.num_labels)

    def sort(self) -> None:
        """Bring the images into the order of their ids, so that it does not depend on the number of processes."""
        order = sorted(range(len(self)), key=self.ids.__getitem__)
        self.ids = [self.ids[index] for index in order]
        self._classes = [self._classes[index] for index in order]
        self._counts = [self._counts[index] for index in order]

    def arrays(self) -> dict[str, np.ndarray]:
        """All content as arrays for a file; `from_arrays` reads them."""
        counts = np.concatenate([np.zeros((0, len(self.columns)), np.uint32), *self._counts])
        return {
            "ids": np.array(self.ids, dtype=np.str_),
            "rows": np.array([len(classes) for classes in self._classes], dtype=np.int64),
            "classes": np.concatenate([np.zeros(0, np.uint32), *self._classes]),
            "counts": counts,
            "columns": np.array(self.columns, dtype=np.str_),
        }

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray], num_labels: int) -> ImageCounts:
        """Raises ValueError where the arrays do not fit together."""
        counts = cls(num_labels, arrays["columns"].tolist())
        ends = np.cumsum(arrays["rows"])
        if arrays["counts"].shape != (len(arrays["classes"]), len(counts.columns)) or ends[-1:].sum() != len(
            arrays["classes"]
        ):
            raise ValueError("numbers of rows differ")
        parts = (np.split(arrays[name], ends[:-1]) for name in ("classes", "counts"))
        for image_id, classes, values in zip(arrays["ids"].tolist(), *parts, strict=True):
            counts._append(image_id, classes, values)
        return counts

    def fingerprint(self) -> str:
        """SHA-256 of the data that were evaluated: the ids, and the reference's pixels of each class in each image.

        The order of the images and the predictions do not matter.
        """
        digest = hashlib.sha256(f"{self.num_labels}".encode())
        for index in sorted(range(len(self)), key=self.ids.__getitem__):
            reference = self._counts[index][:, 1]
            classes = self._classes[index][reference > 0]
            digest.update(self.ids[index].encode() + b"\0")
            digest.update(np.stack([classes, reference[reference > 0]]).astype("<u4").tobytes())
        return digest.hexdigest()
