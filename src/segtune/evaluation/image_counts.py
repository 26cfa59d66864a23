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
    """

    def __init__(self, num_labels: int, columns: Sequence[str]) -> None:
        self.num_labels, self.columns = num_labels, tuple(columns)
        self._rows: dict[str, np.ndarray] = {}  # of each image: uint32 (n, 1 + columns), the class and its counts

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def ids(self) -> list[str]:
        """Of the images, in the order in which they came."""
        return list(self._rows)

    def append(self, image_id: str, counts: np.ndarray) -> None:
        """Keep the counts `(K, columns)` of one more image.

        Raises:
            DataError: an image of this id is there already, or one has 2^32 pixels of a class.
        """
        present = np.flatnonzero(counts[:, 1:3].any(axis=1))
        if counts.max(initial=0) > np.iinfo(np.uint32).max:
            raise DataError(f"image {image_id!r} has more than 2^32 pixels of a class: evaluate it in parts")
        self._append(image_id, np.column_stack([present, counts[present]]).astype(np.uint32))

    def extend(self, other: ImageCounts) -> None:
        """Add the images of another process or part.

        Raises:
            DataError: an image is in both.
            ValueError: the classes or columns differ.
        """
        if (self.num_labels, self.columns) != (other.num_labels, other.columns):
            raise ValueError("two sets of counts have different classes or columns")
        for image_id, rows in other._rows.items():
            self._append(image_id, rows)

    def _append(self, image_id: str, rows: np.ndarray) -> None:
        if image_id in self._rows:
            raise DataError(f"image {image_id!r} was counted twice: every image needs an id of its own")
        self._rows[image_id] = rows

    def _all_rows(self) -> tuple[np.ndarray, np.ndarray]:
        """How many rows each image has, `(images,)`, and all rows, uint32 `(rows, 1 + columns)`."""
        rows = np.concatenate([np.zeros((0, 1 + len(self.columns)), np.uint32), *self._rows.values()])
        return np.array([len(rows) for rows in self._rows.values()], dtype=np.int64), rows

    def rows(self, *columns: str) -> tuple[np.ndarray, ...]:
        """All rows: the image's number in `ids`, the class, and int64 counts of each column, all `(rows,)`."""
        numbers, rows = self._all_rows()
        wanted = [0, *(1 + self.columns.index(name) for name in columns)]
        return np.repeat(np.arange(len(self)), numbers), *rows[:, wanted].astype(np.int64).T

    def dense(self, *columns: str) -> tuple[np.ndarray, ...]:
        """Each column as float64 `(images, K)`, whole numbers, images in the order of `ids`."""
        image, classes, *counts = self.rows(*columns)
        tables = np.zeros((len(columns), len(self), self.num_labels))
        tables[:, image, classes] = counts
        return tuple(tables)

    def total(self, *columns: str) -> np.ndarray:
        """The sum of each column over all images, int64 `(K, columns)`."""
        total = np.zeros((self.num_labels, len(columns)), dtype=np.int64)
        _, classes, *counts = self.rows(*columns)
        np.add.at(total, classes, np.stack(counts, axis=1))
        return total

    def images_of_class(self) -> np.ndarray:
        """In how many images each class is in the reference, `(K,)`."""
        _, classes, reference = self.rows("reference")
        return np.bincount(classes[reference > 0], minlength=self.num_labels)

    def sort(self) -> None:
        """Bring the images into the order of their ids, so that it does not depend on the number of processes."""
        self._rows = dict(sorted(self._rows.items()))

    def arrays(self) -> dict[str, np.ndarray]:
        """All content as arrays for a file; `from_arrays` reads them."""
        numbers, rows = self._all_rows()
        names = {"ids": np.array(self.ids, dtype=np.str_), "columns": np.array(self.columns, dtype=np.str_)}
        return names | {"rows": numbers, "classes": rows[:, 0], "counts": rows[:, 1:]}

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray], num_labels: int) -> ImageCounts:
        """Raises ValueError where the arrays do not fit together."""
        counts = cls(num_labels, arrays["columns"].tolist())
        rows, ends = np.column_stack([arrays["classes"], arrays["counts"]]), np.cumsum(arrays["rows"])
        if rows.shape[1] != 1 + len(counts.columns) or ends[-1:].sum() != len(rows):
            raise ValueError("numbers of rows differ")
        for image_id, part in zip(arrays["ids"].tolist(), np.split(rows, ends[:-1]), strict=True):
            counts._append(image_id, part)
        return counts

    def fingerprint(self) -> str:
        """SHA-256 of the data that were evaluated: the ids, and the reference's pixels of each class in each image.

        The order of the images and the predictions do not matter.
        """
        digest = hashlib.sha256(f"{self.num_labels}".encode())
        for image_id, rows in sorted(self._rows.items()):
            digest.update(image_id.encode() + b"\0")
            digest.update(rows[rows[:, 2] > 0][:, [0, 2]].T.astype("<u4").tobytes())  # classes, then their pixels
        return digest.hexdigest()
