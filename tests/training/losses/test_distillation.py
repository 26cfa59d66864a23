"""The divergence from a teacher against the plain formula, at full size."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from segtune.segformer.upsampling import upsample
from segtune.training.losses import distillation
from segtune.training.losses.distillation import distillation_loss

SHAPES = [
    ((4, 5), (4, 5), (16, 20)),  # the ratio of four
    ((4, 5), (7, 3), (13, 17)),  # any other, and a teacher of another size
    ((3, 3), (12, 12), (12, 12)),  # a teacher that answers at full size
]


def plain(student: Tensor, teacher: Tensor, counted: Tensor, temperature: float) -> Tensor:
    u, v = (upsample(logits, counted.shape[1:]) / temperature for logits in (student, teacher))
    divergence = F.kl_div(u.log_softmax(1), v.log_softmax(1), reduction="none", log_target=True).sum(1)  # (B, H, W)
    return temperature**2 * (divergence * counted).sum()


def case(shapes: tuple[tuple[int, int], ...], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (3 * torch.randn(2, 6, *size, generator=generator, dtype=torch.float64) for size in shapes[:2])
    counted = torch.rand(2, *shapes[2], generator=generator) < 0.7
    return student.to(dtype), teacher.to(dtype), counted


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("shapes", SHAPES)
@pytest.mark.parametrize("rows", [1, 5, 1000])
def test_it_equals_the_plain_formula_and_its_gradient(
    shapes: tuple[tuple[int, int], ...],
    temperature: float,
    dtype: torch.dtype,
    rows: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(distillation, "strip_rows", lambda elements, device: rows)
    student, teacher, counted = case(shapes, dtype)
    exact = student.double().requires_grad_()
    expected = plain(exact, teacher.double(), counted, temperature)
    (slope,) = torch.autograd.grad(expected, exact)
    x = student.clone().requires_grad_()
    found = distillation_loss(x, teacher, counted, temperature)
    (gradient,) = torch.autograd.grad(found, x)
    assert found.dtype == gradient.dtype == dtype
    assert abs(found.double() - expected) <= 1e-6 * abs(expected)
    assert (gradient.double() - slope).abs().max() <= 1e-6 * slope.abs().max()


def test_by_hand() -> None:
    """One pixel, two classes: p = (3/4, 1/4), q = (1/2, 1/2), so KL = 3/4 ln 3/2 + 1/4 ln 1/2."""
    student, teacher = torch.zeros(1, 2, 1, 1), torch.tensor([3.0, 1.0]).log().view(1, 2, 1, 1)
    expected = 0.75 * torch.tensor(1.5).log() + 0.25 * torch.tensor(0.5).log()
    counted = torch.ones(1, 1, 1, dtype=torch.bool)
    torch.testing.assert_close(distillation_loss(student, teacher, counted), expected)
    # at T = 2 the teacher's logits are divided by two: the same with the logits doubled, times four
    torch.testing.assert_close(distillation_loss(student, 2 * teacher, counted, 2.0), 4 * expected)


def test_a_teacher_that_agrees_teaches_nothing_and_nor_do_pixels_that_do_not_count() -> None:
    student, teacher, counted = case(SHAPES[0], torch.float64)
    x = student.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(distillation_loss(x, student, counted, 2.0), x)
    assert gradient.abs().max() < 1e-12
    loss = distillation_loss(x, teacher, torch.zeros_like(counted), 2.0)
    assert loss == 0 and torch.autograd.grad(loss, x)[0].abs().max() == 0


def test_half_precision_is_computed_in_float32_and_extremes_are_finite() -> None:
    student, teacher, counted = case(SHAPES[0], torch.float32)
    found = distillation_loss(student.bfloat16(), teacher.bfloat16(), counted)
    expected = distillation_loss(student.bfloat16().float(), teacher.bfloat16().float(), counted)
    assert found.dtype == torch.float32 and found == expected
    x = (1e4 * student).requires_grad_()
    loss = distillation_loss(x, -1e4 * teacher, counted)
    assert loss.isfinite() and torch.autograd.grad(loss, x)[0].isfinite().all()


def test_second_derivative_is_refused_and_other_classes_are() -> None:
    student, teacher, counted = case(SHAPES[0], torch.float32)
    x = student.clone().requires_grad_()
    with pytest.raises(RuntimeError, match="second derivative"):
        torch.autograd.grad(distillation_loss(x, teacher, counted), x, create_graph=True)
    with pytest.raises(ValueError, match="differ in images or classes"):
        distillation_loss(student, teacher[:, :5], counted)


PEAK = """
import resource, sys, torch
from segtune.training.losses.distillation import distillation_loss
classes, side = map(int, sys.argv[1:])
torch.set_num_threads(1)
def run(side, classes):
    x = torch.randn(1, classes, side // 4, side // 4, requires_grad=True)
    counted = torch.ones(1, side, side, dtype=torch.bool)
    distillation_loss(x, torch.randn(1, classes, side // 4, side // 4), counted).backward()
run(64, 2)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
run(side, classes)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def test_memory_does_not_grow_with_the_full_size() -> None:
    """150 classes at 1024 x 1024 are 629 MB for one map of float32, of which the plain formula holds several."""
    classes, side = 150, 1024
    command = [sys.executable, "-c", PEAK, str(classes), str(side)]
    peak = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    small = classes * (side // 4) ** 2 * 4  # a map of the logits' own size: 39 MB
    assert peak < 5 * small + 64 * 2**20 < 0.5 * classes * side**2 * 4
