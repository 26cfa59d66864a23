from __future__ import annotations

import numpy as np
import pytest

from segtune.errors import DataError
from segtune.evaluation.image_counts import ImageCounts

COLUMNS = ("correct", "reference", "prediction")


def filled(num_labels: int = 5) -> tuple[ImageCounts, np.ndarray]:
    tables = np.zeros((3, num_labels, 3), dtype=np.int64)
    tables[0, 1], tables[0, 4] = (3, 5, 4), (0, 0, 1)
    tables[2, 1] = (7, 7, 2**32 - 1)
    counts = ImageCounts(num_labels, COLUMNS)
    for image_id, table in zip(("b", "a", "c"), tables, strict=True):
        counts.append(image_id, table)
    return counts, tables


def test_keeps_what_was_counted():
    counts, tables = filled()
    assert len(counts) == 3 and counts.ids == ["b", "a", "c"]
    for column, dense in enumerate(counts.dense(*COLUMNS)):
        np.testing.assert_array_equal(dense, tables[:, :, column])
    np.testing.assert_array_equal(counts.total("prediction", "correct"), tables.sum(axis=0)[:, [2, 0]])
    assert counts.images_of_class().tolist() == [0, 2, 0, 0, 0]
    image, classes, reference = counts.rows("reference")
    assert (image.tolist(), classes.tolist(), reference.tolist()) == ([0, 0, 2], [1, 4, 1], [5, 0, 7])


def test_an_empty_one_has_sums_too():
    counts = ImageCounts(4, COLUMNS)
    assert counts.total("correct").tolist() == [[0]] * 4
    assert counts.dense("correct")[0].shape == (0, 4)


def test_parts_add_up_whatever_their_order():
    whole, tables = filled()
    parts = [ImageCounts(5, COLUMNS) for _ in range(2)]
    for index, image_id in ((2, "c"), (0, "b"), (1, "a")):
        parts[index % 2].append(image_id, tables[index])
    parts[1].extend(parts[0])
    parts[1].sort()
    assert parts[1].ids == ["a", "b", "c"]
    np.testing.assert_array_equal(parts[1].dense("correct")[0], tables[[1, 0, 2], :, 0])
    assert parts[1].fingerprint() == whole.fingerprint()
    with pytest.raises(DataError, match="image 'b' was counted twice"):
        parts[1].extend(whole)
    with pytest.raises(ValueError, match="different classes"):
        parts[1].extend(ImageCounts(6, COLUMNS))


def test_images_are_counted_once_and_not_too_large():
    counts, tables = filled()
    with pytest.raises(DataError, match="image 'c' was counted twice"):
        counts.append("c", tables[0])
    with pytest.raises(DataError, match="image 'd' has more than 2\\^32 pixels"):
        counts.append("d", tables[2] + 1)
    assert len(counts) == 3


def test_arrays_give_it_back():
    counts, tables = filled()
    arrays = counts.arrays()
    back = ImageCounts.from_arrays(arrays, 5)
    assert back.ids == counts.ids and back.columns == COLUMNS
    np.testing.assert_array_equal(back.dense("prediction")[0], tables[:, :, 2])
    for name in ("classes", "counts", "rows", "ids"):
        with pytest.raises(ValueError):
            ImageCounts.from_arrays(arrays | {name: arrays[name][:-1]}, 5)


def test_fingerprint_is_that_of_the_data():
    counts, tables = filled()
    changed = []
    for image, column in ((0, 0), (0, 2), (0, 1)):
        other = ImageCounts(5, COLUMNS)
        for index, image_id in enumerate(("b", "a", "c")):
            table = tables[index].copy()
            table[1, column] += index == image
            other.append(image_id, table.clip(max=2**32 - 1))
        changed.append(other.fingerprint() != counts.fingerprint())
    assert changed == [False, False, True]  # predictions do not matter, the reference does


def test_memory_does_not_grow_with_classes_that_do_not_occur():
    counts = ImageCounts(150, COLUMNS)
    table = np.zeros((150, 3), dtype=np.int64)
    table[:12] = 1000
    for index in range(100):
        counts.append(str(index), table)
    arrays = counts.arrays()
    assert arrays["counts"].nbytes + arrays["classes"].nbytes == 100 * 12 * 16
