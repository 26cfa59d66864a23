from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from segtune.segformer import upsampling
from segtune.segformer.upsampling import upsample, upsampled_at, upsampled_confidence, upsampled_prediction
from support.upsampled import CASES, logits_and_labels


@pytest.mark.parametrize(("num_labels", "small", "size"), [*CASES, (300, (8, 8), (33, 20)), (19, (47, 62), (187, 250))])
@pytest.mark.parametrize("smooth", [False, True])
def test_prediction_equals_argmax_of_the_upsampled_logits(
    num_labels: int, small: tuple[int, int], size: tuple[int, int], smooth: bool
) -> None:
    logits = logits_and_labels(num_labels, small, size)[0]
    if smooth:  # few classes win anywhere
        logits = upsample(F.avg_pool2d(logits, 3, 2, 1), small) + torch.linspace(0, 3, num_labels)[:, None, None]
    prediction = upsampled_prediction(logits, size)
    assert prediction.dtype == torch.int64
    assert torch.equal(prediction, upsample(logits, size).argmax(1))


@pytest.mark.parametrize("strip", [1, 800, 2**15])
def test_prediction_in_strips_equals_that_of_the_whole(strip: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 6, 13, 9, generator=generator)
    logits[:, 3, :6] += 9  # a class that wins in a part of the picture
    monkeypatch.setattr(upsampling, "_PREDICTED", strip)
    assert torch.equal(upsampled_prediction(logits, (52, 36)), upsample(logits, (52, 36)).argmax(1))


@pytest.mark.parametrize("small", [(1, 1), (1, 5), (5, 1), (2, 2), (33, 7)])
def test_prediction_of_small_and_narrow_maps(small: tuple[int, int]) -> None:
    logits = torch.randn(3, 4, *small, generator=torch.Generator().manual_seed(0))
    size = (4 * small[0], 4 * small[1])
    assert torch.equal(upsampled_prediction(logits, size), upsample(logits, size).argmax(1))


@pytest.mark.parametrize("size", [(24, 24), (20, 31)])
def test_infinite_logits_lose_or_win(size: tuple[int, int]) -> None:
    """As those of a class that is excluded. In the plain formula an edge's share of 0 makes them NaN."""
    logits = torch.randn(1, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    logits[:, :2] = -torch.inf
    logits[:, 2, :3] = -torch.inf
    logits[:, 3, 5] = torch.inf
    finite = logits.clamp(-1e20, 1e20)
    assert torch.equal(upsampled_prediction(logits, size), upsample(finite, size).argmax(1))


def test_prediction_of_equal_logits_is_the_first_class() -> None:
    assert torch.equal(upsampled_prediction(torch.zeros(1, 4, 2, 2), (8, 8)), torch.zeros(1, 8, 8, dtype=torch.int64))


def test_a_class_that_wins_only_between_pixels_is_found() -> None:
    logits = torch.tensor([[[[3.0, 0.0]], [[0.0, 3.0]], [[2.0, 2.0]]]])  # (1, 3, 1, 2)
    assert logits.argmax(1).tolist() == [[[0, 1]]]
    assert upsampled_prediction(logits, (1, 8)).tolist() == [[[0, 0, 0, 2, 2, 1, 1, 1]]]


def test_classes_that_win_nowhere_are_not_upsampled(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(1, 50, 8, 8)
    logits[:, 7] += 100
    monkeypatch.setattr(upsampling, "upsample", None)
    assert torch.equal(upsampled_prediction(logits, (32, 32)), torch.full((1, 32, 32), 7))


def test_one_logit_is_a_threshold() -> None:
    logits = torch.tensor([[[[-1.0, 2.0]]]])
    assert upsampled_prediction(logits, (1, 4)).tolist() == [[[0, 0, 1, 1]]]


@pytest.mark.parametrize(("num_labels", "small", "size"), CASES)
@pytest.mark.parametrize("strip", [1, 2**19])
def test_confidence_equals_the_largest_softmax(
    num_labels: int, small: tuple[int, int], size: tuple[int, int], strip: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upsampling, "_CPU_STRIP", strip)
    logits, _ = logits_and_labels(num_labels, small, size)
    expected = upsample(logits, size).softmax(1).amax(1)
    torch.testing.assert_close(upsampled_confidence(logits, size), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("num_labels", "small", "size"), CASES)
def test_values_at_pixels_are_those_of_the_upsampled_map(
    num_labels: int, small: tuple[int, int], size: tuple[int, int]
) -> None:
    logits = logits_and_labels(num_labels, small, size)[0][:1]
    places = torch.randperm(size[0] * size[1], generator=torch.Generator().manual_seed(0))[:50]
    rows, columns = places // size[1], places % size[1]
    expected = upsample(logits, size)[0][:, rows, columns].T
    torch.testing.assert_close(upsampled_at(logits, size, rows, columns), expected, rtol=1e-4, atol=1e-4)


def test_confidence_of_one_logit() -> None:
    logits = torch.tensor([-2.0, 0.0, 3.0]).view(1, 1, 1, 3)
    expected = torch.tensor([[[2.0, 0.0, 3.0]]]).sigmoid()
    torch.testing.assert_close(upsampled_confidence(logits, (1, 3)), expected)


def test_not_a_number_does_not_crash() -> None:
    assert upsampled_prediction(torch.full((1, 3, 2, 2), float("nan")), (8, 8)).shape == (1, 8, 8)
