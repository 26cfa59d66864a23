"""Logits and labels whose sizes are at every kind of ratio, for what upsamples."""

from __future__ import annotations

import torch

# (K, (h, w), (H, W)): a ratio of four, other whole ratios, none, shrinking, single pixels
CASES = [
    (2, (4, 6), (16, 24)),
    (19, (16, 16), (64, 64)),
    (150, (16, 24), (64, 96)),
    (5, (8, 12), (16, 36)),
    (7, (17, 25), (65, 97)),
    (4, (16, 16), (5, 9)),
    (3, (1, 1), (4, 4)),
    (3, (1, 9), (3, 30)),
    (3, (2, 2), (1, 1)),
]


def logits_and_labels(
    num_labels: int, small: tuple[int, int], size: tuple[int, int], scale: float = 3.0
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = scale * torch.randn(2, num_labels, *small, generator=generator)
    labels = torch.randint(0, num_labels, (2, *size), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.2] = 255
    return logits, labels
