"""Triton's kernels without a GPU: run by its interpreter (`conftest.py` asks for it), or counted on meta tensors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

KERNELS = ("_loss_kernel", "_gradient_kernel", "_prediction_kernel")


@contextmanager
def used() -> Iterator[pytest.MonkeyPatch]:
    """Loss and prediction take the kernels, on every device; skips the test where Triton is missing."""
    pytest.importorskip("triton")
    with pytest.MonkeyPatch.context() as patch:
        for caller in ("upsampling", "cross_entropy"):
            patch.setattr(f"segtune.segformer.{caller}.has_kernels", lambda logits: True)
        yield patch


@contextmanager
def counted() -> Iterator[None]:
    """Meta tensors are taken as on CUDA with Triton, for a `Ledger`."""
    with used() as patch:
        for name in KERNELS:
            patch.setattr(f"segtune.segformer.triton_kernels.{name}", CountedKernel(name))
        yield


class CountedKernel:
    """Stands for a kernel on meta tensors: a launch for the `Ledger` in use; reads and writes its tensors once."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return self._launch

    def _launch(self, *args: Any) -> None:
        ledger: Any = _get_current_dispatch_mode()
        ledger.kernels[self.name] += 1
        ledger.traffic[self.name] += sum(x.numel() * x.element_size() for x in args if isinstance(x, Tensor))
