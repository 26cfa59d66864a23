from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from segtune.training.losses.loss_terms import (
    focal_loss,
    hard_pixels,
    hard_pixels_of_images,
    lovasz_loss,
    tversky_loss,
)


def test_focal_by_hand() -> None:
    p = torch.tensor([0.9, 0.2, 1.0], requires_grad=True)
    weighted = focal_loss(p.log(), 2.0, torch.tensor([1.0, 3.0, 5.0]))
    assert weighted.item() == pytest.approx(-(0.1**2) * math.log(0.9) - 3 * 0.8**2 * math.log(0.2))
    assert focal_loss(p.log(), 0.0).item() == pytest.approx(-math.log(0.9) - math.log(0.2))
    focal_loss(p.log(), 0.5).backward()
    assert p.grad is not None and p.grad.isfinite().all()  # of a certain pixel too


def lovasz_by_definition(p: Tensor, is_class: Tensor) -> float:
    """The integral over t in [0, 1] of `1 - IoU` where the pixels with an error of at least t are wrong."""
    errors = (is_class.double() - p).abs()
    levels = torch.cat([torch.zeros(1, dtype=torch.float64), errors.sort().values])
    total = 0.0
    for low, high in itertools.pairwise(levels):
        wrong = errors >= high
        right, union = (is_class & ~wrong).sum(), (is_class | wrong).sum()
        total += (high - low).item() * (1 - (right / union).item())
    return total


@pytest.mark.parametrize("seed", range(5))
def test_lovasz_equals_its_definition(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    p = torch.rand(9, generator=generator, dtype=torch.float64)
    is_class = torch.rand(9, generator=generator) < 0.4
    is_class[seed] = True
    p[:2] = 0.5  # equal errors
    assert lovasz_loss(p, is_class).item() == pytest.approx(lovasz_by_definition(p, is_class), rel=1e-6)


def test_lovasz_of_hard_predictions_is_one_minus_iou() -> None:
    p = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0])
    is_class = torch.tensor([True, True, False, True, False])
    assert lovasz_loss(p, is_class).item() == pytest.approx(1 - 2 / 4)
    assert lovasz_loss(is_class.float(), is_class).item() == 0
    assert lovasz_loss(1 - is_class.float(), is_class).item() == pytest.approx(1)


def test_tversky_by_hand() -> None:
    p, is_class = torch.tensor([0.9, 0.4, 0.2]), torch.tensor([True, True, False])
    assert tversky_loss(p, is_class, 0.3, 0.7).item() == pytest.approx(1 - 1.3 / (1.3 + 0.3 * 0.2 + 0.7 * 0.7))
    assert tversky_loss(p, is_class, 0.5, 0.5).item() == pytest.approx(1 - 2 * 1.3 / (1.5 + 2))


def test_hard_pixels_by_hand() -> None:
    log_p = torch.tensor([0.9, 0.2, 0.6, 0.8, 0.6]).log()
    assert hard_pixels(log_p, 0.7, 0.1).tolist() == [False, True, True, False, True]
    assert hard_pixels(log_p, 0.1, 0.2).tolist() == [False, True, False, False, False]
    assert hard_pixels(log_p, 0.1, 0.21).tolist() == [False, True, True, False, True]  # of equals, all
    assert hard_pixels(log_p, 0.1, 1.0).tolist() == [True] * 5


def test_hard_pixels_of_images_are_those_of_each_one() -> None:
    generator = torch.Generator().manual_seed(0)
    log_p = torch.rand(4, 50, generator=generator).log()
    valid = torch.rand(4, 50, generator=generator) < torch.tensor([1.0, 0.7, 0.3, -1.0])[:, None]
    for min_kept in (0.1, 0.5, 1.0):
        found = hard_pixels_of_images(log_p, valid, 0.2, min_kept)
        assert not found[~valid].any()
        for i in range(3):
            assert torch.equal(found[i][valid[i]], hard_pixels(log_p[i][valid[i]], 0.2, min_kept))


@pytest.mark.parametrize("function", [lovasz_loss, lambda p, y: tversky_loss(p, y, 0.3, 0.7)])
def test_rows_of_classes_are_taken_one_by_one(function: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    p = torch.rand(2, 3, 9, generator=generator, dtype=torch.float64)
    is_class = torch.rand(2, 3, 9, generator=generator) < 0.4
    is_class[..., 0] = True
    for image, label in itertools.product(range(2), range(3)):
        expected = function(p[image, label], is_class[image, label])
        torch.testing.assert_close(function(p, is_class)[image, label], expected)


@pytest.mark.parametrize("function", [lovasz_loss, lambda p, y: tversky_loss(p, y, 0.0, 1.0)])
def test_a_class_without_a_pixel_is_finite(function: Any) -> None:
    p = torch.tensor([[0.5, 0.0, 1.0]], requires_grad=True)
    value = function(p, torch.zeros(1, 3, dtype=torch.bool))
    value.sum().backward()
    assert value.isfinite().all() and p.grad is not None and p.grad.isfinite().all()
