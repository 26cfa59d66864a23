from __future__ import annotations

import numpy as np
import pytest
from datasets import Dataset, Features, Image, Value

from segtune.errors import UsageError
from segtune.export.calibration_inputs import network_inputs, spread
from segtune.labels.label_map import LabelMap
from segtune.segformer.image_processing_segformer import SegformerImageProcessor

LABELS = LabelMap.from_names(["sky", "road"])


def rows_of(count: int, size: tuple[int, int]) -> Dataset:
    features = Features({"id": Value("string"), "image": Image(), "mask": Image()})
    rows = {
        "id": [str(number) for number in range(count)],
        "image": [np.full((*size, 3), 10 * number, dtype=np.uint8) for number in range(count)],
        "mask": [np.zeros(size, dtype=np.uint8) for _ in range(count)],
    }
    return Dataset.from_dict(rows, features=features)


def test_they_are_what_the_network_sees() -> None:
    processor = SegformerImageProcessor(do_resize=False, image_mean=[0.5] * 3, image_std=[0.25] * 3)
    found = network_inputs(rows_of(9, (48, 64)), LABELS, processor, 3)
    assert [one.shape for one in found] == [(1, 3, 48, 64)] * 3
    expected = [(10 * number / 255 - 0.5) / 0.25 for number in (0, 4, 8)]
    assert [one.mean() for one in found] == pytest.approx(expected, abs=1e-5)
    assert all(one.dtype == np.float32 and np.ptp(one) == 0 for one in found)


def test_of_windows_one_for_each_image() -> None:
    processor = SegformerImageProcessor(do_resize=False, window=32, stride=32)
    found = network_inputs(rows_of(2, (64, 96)), LABELS, processor)
    assert [one.shape for one in found] == [(1, 3, 32, 32)] * 2


def test_no_images() -> None:
    with pytest.raises(UsageError, match="has none"):
        network_inputs(rows_of(1, (32, 32)).select([]), LABELS, SegformerImageProcessor())
    streamed = rows_of(1, (32, 32)).to_iterable_dataset()
    with pytest.raises(UsageError, match=r"dataset\.streaming=false"):
        network_inputs(streamed, LABELS, SegformerImageProcessor())


def test_spread() -> None:
    assert list(spread(10, 3)) == [0, 4, 9]
    assert list(spread(2, 5)) == [0, 1]
