from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from segtune.data.unlabelled.views import UnlabelledBatches
from segtune.pretraining.config import PretrainingRecipe
from segtune.pretraining.masked_crops import MaskedCrops, random_squares


@pytest.mark.parametrize(
    ("patches", "ratio", "hidden"),
    [((7, 7), 0.6, 30), ((2, 2), 0.6, 3), ((2, 2), 0.9, 3), ((1, 2), 0.01, 1), ((4, 5), 0.5, 10)],
)
def test_so_many_squares_are_hidden(patches: tuple[int, int], ratio: float, hidden: int) -> None:
    rng = np.random.default_rng(0)
    masks = [random_squares(patches, ratio, rng) for _ in range(200)]
    assert all(mask.shape == patches and mask.sum() == hidden for mask in masks)
    often = np.mean(masks, axis=0)  # each square as often as any other: within five standard deviations
    share = hidden / math.prod(patches)
    assert np.abs(often - share).max() < 5 * math.sqrt(share * (1 - share) / 200) + 1e-9


def test_a_sample_depends_on_seed_epoch_and_index_only(
    rows: Any, settings: Callable[..., PretrainingRecipe], tmp_path: Path
) -> None:
    crops = MaskedCrops(rows, settings(tmp_path))
    both = crops.__getitems__([(0, 1), (3, 4)])
    assert both["pixel_values"].shape == (2, 3, 64, 64) and both["pixel_values"].dtype == torch.float32
    assert both["mask"].shape == (2, 2, 2) and both["mask"].sum(dim=(1, 2)).tolist() == [3, 3]
    again = MaskedCrops(rows, settings(tmp_path)).__getitems__([(3, 4)])
    for name in ("pixel_values", "mask", "real"):
        assert torch.equal(both[name][1:], again[name])
    other = MaskedCrops(rows, settings(tmp_path, "training.seed=1")).__getitems__([(3, 4)])
    later = crops.__getitems__([(4, 4)])
    for sample in (other, later):
        assert not torch.equal(sample["pixel_values"], again["pixel_values"])
    masks = crops.__getitems__([(epoch, 0) for epoch in range(20)])["mask"]
    assert len(masks.unique(dim=0)) == 4  # of 2 x 2 squares, one is seen


def test_batches_do_not_depend_on_how_a_step_is_divided(
    rows: Any, settings: Callable[..., PretrainingRecipe], tmp_path: Path
) -> None:
    crops = MaskedCrops(rows, settings(tmp_path))

    def masks(layout: tuple[int, int, int]) -> torch.Tensor:
        shares = [UnlabelledBatches(crops, layout, 1, process, 0).steps(1, 3) for process in range(layout[2])]
        micro_steps = [[batch["pixel_values"] for step in share for batch in step] for share in shares]
        return torch.cat([batch for together in zip(*micro_steps, strict=True) for batch in together])

    whole = masks((4, 1, 1))
    assert whole.shape == (8, 3, 64, 64)
    assert torch.equal(masks((2, 2, 1)), whole) and torch.equal(masks((1, 2, 2)), whole)
    assert UnlabelledBatches(crops, (2, 2, 1), 1, 0, 0).epoch(3) == 2.0
