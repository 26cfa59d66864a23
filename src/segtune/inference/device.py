"""Devices: the accelerator that is there, and a model on the one that a user has named."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

from segtune.errors import UsageError

Network = TypeVar("Network", bound=nn.Module)


def best_device() -> str:
    """The accelerator that is there ("cuda" or "mps"), or "cpu"."""
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


def to_device(model: Network, device: str | torch.device | None) -> Network:
    """The model on a device that a user has named, by default on the best; UsageError where there is none such."""
    try:
        return model.to(device or best_device())
    except (RuntimeError, AssertionError) as error:  # of a torch without that kind of device
        raise UsageError(f"--device {device}: {str(error).splitlines()[0]}") from error
