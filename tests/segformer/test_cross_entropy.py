from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from segtune.segformer import cross_entropy, upsampling
from segtune.segformer.cross_entropy import upsampled_cross_entropy
from segtune.segformer.upsampling import upsample
from support.upsampled import CASES, logits_and_labels


def reference(logits: torch.Tensor, labels: torch.Tensor, **options: object) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss and gradient of the plain formula in double precision."""
    x = logits.double().requires_grad_()
    options = {name: value.double() if torch.is_tensor(value) else value for name, value in options.items()}
    loss = F.cross_entropy(upsample(x, labels.shape[1:]), labels, ignore_index=255, **options)
    (gradient,) = torch.autograd.grad(loss, x)
    return loss.detach(), gradient


def assert_equals_plain(logits: torch.Tensor, labels: torch.Tensor, **options: object) -> None:
    x = logits.clone().requires_grad_()
    loss = upsampled_cross_entropy(x, labels, **options)
    loss.backward()
    expected, gradient = reference(logits, labels, **options)
    assert abs(loss.item() - expected.item()) <= 1e-6 * abs(expected.item())
    plain = logits.clone().requires_grad_()
    F.cross_entropy(upsample(plain, labels.shape[1:]), labels, ignore_index=255, **options).backward()
    rounding = (plain.grad - gradient).abs().max()  # of the plain formula in single precision
    assert (x.grad - gradient).abs().max() <= max(1e-6 * gradient.abs().max(), 1.5 * rounding)


@pytest.mark.parametrize(("num_labels", "small", "size"), CASES)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_loss_and_gradient_equal_the_plain_formula(
    num_labels: int, small: tuple[int, int], size: tuple[int, int], memory_format: torch.memory_format
) -> None:
    logits, labels = logits_and_labels(num_labels, small, size)
    labels[0, 0, 0] = 0  # at least one valid pixel
    assert_equals_plain(logits.contiguous(memory_format=memory_format), labels)


@pytest.mark.parametrize("size", [(64, 64), (50, 70)])
def test_logits_with_gaps_in_memory(size: tuple[int, int]) -> None:
    logits, labels = logits_and_labels(5, (16, 16), size)
    x = torch.zeros(2, 10, 16, 18)
    x[:, ::2, :, 1:-1] = logits
    x.requires_grad_()
    upsampled_cross_entropy(x[:, ::2, :, 1:-1], labels).backward()
    _, gradient = reference(logits, labels)
    torch.testing.assert_close(x.grad[:, ::2, :, 1:-1].double(), gradient, rtol=1e-5, atol=1e-9)
    assert x.grad[:, 1::2].abs().max() == 0


@pytest.mark.parametrize("size", [(64, 64), (50, 70)])
@pytest.mark.parametrize(
    "options",
    [
        {"label_smoothing": 0.1},
        {"weight": torch.linspace(0.0, 2.0, 19)},
        {"label_smoothing": 0.3, "weight": torch.linspace(0.5, 2.0, 19)},
    ],
)
def test_class_weights_and_label_smoothing(size: tuple[int, int], options: dict[str, object]) -> None:
    assert_equals_plain(*logits_and_labels(19, (16, 16), size), **options)


@pytest.mark.parametrize("scale", [30.0, 1e3, 1e5])
def test_logits_far_apart_neither_overflow_nor_underflow(scale: float) -> None:
    logits, labels = logits_and_labels(5, (8, 8), (32, 32), scale)
    loss = upsampled_cross_entropy(logits, labels)
    assert loss.item() == pytest.approx(reference(logits, labels)[0].item(), rel=1e-5)


def test_small_strips_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for size in ((64, 64), (65, 61)):
        logits, labels = logits_and_labels(19, (16, 16), size)
        whole = upsampled_cross_entropy(logits, labels)
        monkeypatch.setattr(upsampling, "_CPU_STRIP", 1)
        torch.testing.assert_close(upsampled_cross_entropy(logits, labels), whole)
        assert_equals_plain(logits, labels)
        monkeypatch.undo()


def test_loss_by_hand() -> None:
    logits = torch.tensor([[[[0.0, math.log(3.0)]], [[0.0, 0.0]]]])  # (1, 2, 1, 2)
    labels = torch.tensor([[[0, 0, 1, 255]], [[1, 255, 255, 255]]])[:1]  # (1, 1, 4)
    logit = [0.0, 0.25 * math.log(3), 0.75 * math.log(3)]  # of class 0 at the first three columns
    log_sum = [math.log(math.exp(value) + 1) for value in logit]
    total = (log_sum[0] - logit[0]) + (log_sum[1] - logit[1]) + log_sum[2]
    assert upsampled_cross_entropy(logits, labels, reduction="sum").item() == pytest.approx(total, rel=1e-6)
    assert upsampled_cross_entropy(logits, labels).item() == pytest.approx(total / 3, rel=1e-6)


@pytest.mark.parametrize("size", [(16, 16), (15, 17)])
def test_nothing_valid_gives_zero_and_zero_gradient(size: tuple[int, int]) -> None:
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    loss = upsampled_cross_entropy(logits, torch.full((1, *size), 255))
    loss.backward()
    assert loss.item() == 0 and torch.equal(logits.grad, torch.zeros_like(logits))


def test_label_types_and_negative_ignore_index() -> None:
    logits, labels = logits_and_labels(5, (4, 4), (16, 16))
    expected = upsampled_cross_entropy(logits, labels)
    assert upsampled_cross_entropy(logits, labels.to(torch.uint8)) == expected
    assert upsampled_cross_entropy(logits, labels.int()) == expected
    negative = torch.where(labels == 255, -100, labels)
    assert upsampled_cross_entropy(logits, negative, ignore_index=-100) == expected


@pytest.mark.parametrize("wrong", [5, 254, -1])
def test_label_outside_the_classes_is_named(wrong: int) -> None:
    logits, labels = logits_and_labels(5, (4, 4), (16, 16))
    labels[1, 3, 3] = wrong
    with pytest.raises(IndexError, match=f"label {wrong} is neither one of 5 classes nor 255"):
        upsampled_cross_entropy(logits, labels)


def test_second_derivative_is_refused() -> None:
    logits, labels = logits_and_labels(3, (4, 4), (16, 16))
    loss = upsampled_cross_entropy(logits.requires_grad_(), labels)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(loss, logits, create_graph=True)


def test_half_precision_and_autocast() -> None:
    logits, labels = logits_and_labels(5, (4, 4), (16, 16))
    half = logits.bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = upsampled_cross_entropy(half, labels)
    loss.backward()
    assert loss.dtype == torch.float32 and half.grad.dtype == torch.bfloat16
    torch.testing.assert_close(loss, upsampled_cross_entropy(logits.bfloat16().float(), labels))


def test_compiles_in_one_graph_and_keeps_the_operator_contract() -> None:
    logits, labels = logits_and_labels(5, (4, 4), (16, 16))
    compiled = torch.compile(
        lambda x, y: upsampled_cross_entropy(2 * x, y, label_smoothing=0.1), fullgraph=True, backend="aot_eager"
    )
    gradients = []
    for function in (compiled, lambda x, y: upsampled_cross_entropy(2 * x, y, label_smoothing=0.1)):
        x = logits.clone().requires_grad_()
        function(x, labels).backward()
        gradients.append(x.grad)
    torch.testing.assert_close(*gradients)
    arguments = (logits.clone().requires_grad_(), labels, None, 255, 0.0, True)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(cross_entropy._cross_entropy, arguments, test_utils=tests)


def test_no_gradient_is_computed_where_none_is_asked() -> None:
    logits, labels = logits_and_labels(5, (4, 4), (16, 16))
    assert not upsampled_cross_entropy(logits, labels).requires_grad
    with torch.no_grad():
        assert not upsampled_cross_entropy(logits.requires_grad_(), labels).requires_grad
