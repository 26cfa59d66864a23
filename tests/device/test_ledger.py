"""The counting itself, on cases small enough to count by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from segtune.segformer.cross_entropy import upsampled_cross_entropy
from support.ledger import Ledger


def meta(*shape: int, dtype: torch.dtype = torch.float32, grad: bool = False) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta", requires_grad=grad)


def test_views_and_empty_memory_are_no_launches() -> None:
    with Ledger() as ledger:
        meta(2, 3).t().reshape(3, 2)[0].detach()
    assert (ledger.launches, ledger.bytes) == (0, 0)


def test_launches_and_bytes_of_known_operators() -> None:
    a, b = meta(2, 3), meta(3, 4, dtype=torch.bfloat16)
    with Ledger() as ledger:
        a @ b.float()  # 3x4 halves to floats; then 2x3 and 3x4 to 2x4
        a.add_(1)  # read and written in place
        a + meta(3).expand(2, 3)  # three floats, read once
        torch.zeros_like(a)
        a.t().reshape(6)  # a copy
    assert ledger.kernels == {"_to_copy": 1, "mm": 1, "add_": 1, "add": 1, "zeros_like": 1, "clone": 1}
    cast, product = 12 * (2 + 4), 4 * (6 + 12 + 8)
    in_place, added, zeros, copied = 4 * 2 * 6, 4 * (6 + 3 + 6), 4 * 6, 4 * 2 * 6
    assert ledger.bytes == cast + product + in_place + added + zeros + copied


def test_scattering_touches_the_places_alone() -> None:
    x, index, values = meta(100, 8), meta(3, dtype=torch.long), meta(3, 8)
    with Ledger() as ledger:
        x.index_add_(0, index, values)
    assert ledger.bytes == ledger.traffic["index_add_"] == 3 * (3 * 8 + 4 * 24)  # three 8-byte places, 24 floats


def test_inference_mode_counts_the_same() -> None:
    counts = []
    for mode in (torch.no_grad, torch.inference_mode):
        with mode(), Ledger() as ledger:
            F.linear(meta(2, 3, 4), meta(5, 4)).reshape(-1).softmax(0)
        counts.append((ledger.kernels, ledger.bytes))
    assert counts[0] == counts[1]


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("_local_scalar_dense", lambda x: x[0, 0].item()),
        ("_local_scalar_dense", lambda x: bool(x[0, 0] > 0)),
        ("nonzero", lambda x: x.nonzero()),
        ("index", lambda x: x[x > 0]),
        ("index_put_", lambda x: x.__setitem__(x > 0, 1.0)),
        ("_to_copy", lambda x: x.tolist()),
        ("_to_copy", lambda x: x.cpu()),
    ],
)
def test_waits(name: str, call: Callable[[torch.Tensor], Any]) -> None:
    with Ledger() as ledger:
        call(meta(2, 3))
    assert ledger.waits == {name: 1} and not ledger.uploads


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("new_tensor", lambda x: x.new_tensor([1.0])),
        ("tensor", lambda x: torch.tensor([1.0], device="meta")),
        ("_to_copy", lambda x: torch.ones(3).to("meta")),
        ("copy_", lambda x: x.copy_(torch.ones(2, 3))),
        ("index", lambda x: x[torch.tensor([0, 1])]),
    ],
)
def test_uploads_wait(name: str, call: Callable[[torch.Tensor], Any]) -> None:
    with Ledger() as ledger:
        call(meta(2, 3))
    assert ledger.uploads == ledger.waits == {name: 1}


def test_what_is_neither_wait_nor_upload() -> None:
    x = meta(2, 3)
    with Ledger() as ledger:
        torch.ones(3).to("meta", non_blocking=True)
        x * torch.tensor(2.0)  # a number of the host goes along with the launch
        x[meta(2, dtype=torch.long)]
        torch.arange(3, device="meta")
    assert not ledger.waits and ledger.uploads == {"_to_copy": 1}


def test_numbers_are_answered_in_their_type() -> None:
    with Ledger(answer=3.0, found=7):
        assert meta(1).item() == 3.0
        assert meta(1, dtype=torch.long).item() == 3 and isinstance(meta(1, dtype=torch.long).item(), int)
        assert bool(meta(1, dtype=torch.bool))
        assert meta(2, 3).nonzero().shape == (7, 2)
    with Ledger() as ledger:
        assert torch.tensor([5.0]).item() == 5.0  # a real tensor has a real answer
    assert ledger.waits == {"_local_scalar_dense": 1}


def test_attention_is_one_kernel_each_way() -> None:
    q, k = meta(1, 2, 6, 8, grad=True), meta(1, 2, 3, 8, grad=True)
    with Ledger() as ledger:
        F.scaled_dot_product_attention(q, k, k).sum().backward()
    attention = [name for name in ledger.kernels if "attention" in name]
    assert [ledger.kernels[name] for name in attention] == [1, 1]


def test_calls_of_the_backward_pass_are_seen() -> None:
    class Tensors(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x * 2

        @staticmethod
        def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
            return grad * grad.new_tensor([2.0])

    with Ledger() as ledger:
        Tensors.apply(meta(3, grad=True)).sum().backward()
    assert ledger.uploads == {"new_tensor": 1}


def test_convolutions_keep_channels_last() -> None:
    x = meta(1, 4, 6, 6).to(memory_format=torch.channels_last).requires_grad_()
    with Ledger():
        y = F.conv2d(x, meta(4, 1, 3, 3), groups=4)
        (grad,) = torch.autograd.grad(y, x, torch.empty_like(y))
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert grad.is_contiguous(memory_format=torch.channels_last)


def test_float64_is_counted_or_refused() -> None:
    with Ledger() as ledger:
        meta(3).sum(dtype=torch.float64)
    assert ledger.doubles == {"sum": 1}
    with pytest.raises(TypeError, match="sum: this device has no float64"), Ledger(float64=False):
        torch.ones(3).sum(dtype=torch.float64)


def test_operators_without_a_deterministic_kernel_are_refused() -> None:
    x = torch.ones(1, 1, 2, 2, requires_grad=True)
    with pytest.raises(RuntimeError, match="upsample_bilinear2d_backward"), Ledger(deterministic=True):
        F.interpolate(x, size=(4, 4), mode="bilinear").sum().backward()


def test_operators_of_segtune_are_opened() -> None:
    logits, labels = meta(1, 3, 4, 4, grad=True), meta(1, 16, 16, dtype=torch.long)
    with Ledger() as ledger:
        upsampled_cross_entropy(logits, labels).backward()
    assert ledger.launches > 2 and "upsampled_cross_entropy" not in ledger.kernels
