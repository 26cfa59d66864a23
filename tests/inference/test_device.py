from __future__ import annotations

import pytest
import torch
from torch import nn

from segtune.errors import UsageError
from segtune.inference.device import best_device, to_device


def test_the_best_device_is_there() -> None:
    assert torch.zeros(1, device=best_device()).device.type == best_device()
    assert next(to_device(nn.Linear(1, 1), None).parameters()).device.type == best_device()


def test_a_device_that_is_not_there_is_named() -> None:
    assert next(to_device(nn.Linear(1, 1), "cpu").parameters()).device.type == "cpu"
    with pytest.raises(UsageError, match="--device toaster: "):
        to_device(nn.Linear(1, 1), "toaster")
