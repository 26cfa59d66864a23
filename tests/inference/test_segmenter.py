"""In which form a model's processor takes images."""

from __future__ import annotations

from typing import Any

import pytest

from segtune.data.config import TransformConfig
from segtune.inference.processor import processor_from_transforms
from segtune.inference.segmenter import form_of
from segtune.segformer.image_processing_segformer import SegformerImageProcessor


@pytest.mark.parametrize(("value_range", "raw"), [(None, False), ((0, 255), True), ((0, 10000), True), ((-1, 1), True)])
def test_a_declared_range_of_values_is_stored(value_range: Any, raw: bool) -> None:
    """Also one that happens to be that of 8-bit pictures: files are read as in training."""
    transforms = TransformConfig(value_range=value_range, mean=(0.5,) * 4, std=(0.1,) * 4)
    processor = SegformerImageProcessor.from_dict(processor_from_transforms(transforms).to_dict())
    assert form_of(processor) == (4, raw)


@pytest.mark.parametrize(
    ("factor", "raw"),
    [(0.00392156862745098, False), (0.003921569, False), (1 / 65535, True), (1.0, True)],
)
def test_processors_without_a_range_tell_it_by_their_factor(factor: float, raw: bool) -> None:
    """As those of published checkpoints do."""
    processor = SegformerImageProcessor.from_dict({"rescale_factor": factor})
    assert processor.value_range is None
    assert form_of(processor) == (3, raw)
