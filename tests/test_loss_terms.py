from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from segtune.loss_terms import focal_loss, hard_pixels, lovasz_loss, signed_distance, tversky_loss


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


def test_signed_distance_by_brute_force() -> None:
    labels = torch.tensor(
        [
            [0, 0, 0, 0, 0, -1],
            [0, 1, 1, 1, 0, -1],
            [0, 1, 1, 1, 0, 2],
            [0, 1, 1, 1, 0, 2],
            [0, 0, 0, 0, 0, 2],
        ]
    )
    points = [(y, x) for y in range(5) for x in range(6)]
    for label in (0, 1, 2):
        found = signed_distance(labels, label)
        for y, x in points:
            if labels[y, x] == label:
                others = [math.dist((y, x), other) for other in points if labels[other] not in (label, -1)]
                assert found[y, x].item() == pytest.approx(1 - min(others))
            else:
                inside = [math.dist((y, x), other) for other in points if labels[other] == label]
                assert found[y, x].item() == pytest.approx(min(inside))
    assert signed_distance(torch.tensor([[1, -1], [1, 1]]), 1).tolist() == [[0, 0], [0, 0]]
