"""Encoder features: what a network's encoder makes of an image, kept aside while its logits are computed."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


class PooledFeatures(nn.Module):
    """A network that also keeps the mean over the pixels of its encoder's last feature map, `(C,)`, of each input.

    Args:
        network: a SegFormer, whose output has `hidden_states` where these are asked for.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.config: Any = network.config
        self._kept: deque[Tensor] = deque()

    def forward(self, pixel_values: Tensor) -> Any:
        """The network's output for `(B, C, H, W)`."""
        output = self.network(pixel_values=pixel_values, output_hidden_states=True)
        last = output.hidden_states[-1]  # (B, C, h, w), or (B, N, C) where the configuration says so
        pooled = last.flatten(2).mean(2) if last.ndim == 4 else last.mean(1)  # (B, C)
        self._kept.extend(pooled.float().unbind())
        return output

    def take(self, count: int | None = None) -> np.ndarray:
        """The mean of the features of the next `count` inputs, in the order in which they came; None: of all that wait.

        Returns:
            float32, `(C,)`.
        """
        number = len(self._kept) if count is None else count
        return torch.stack([self._kept.popleft() for _ in range(number)]).mean(0).cpu().numpy()
