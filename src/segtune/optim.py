"""The optimiser of the paper: AdamW with parameter groups, and the learning-rate schedule as a function of the step."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def parameter_groups(
    model: nn.Module, learning_rate: float, weight_decay: float, head_lr_multiplier: float
) -> list[dict[str, Any]]:
    """AdamW groups of the trainable parameters: encoder and head, each with and without weight decay.

    Norms and biases (every tensor of one dimension) do not decay; what is not part of the encoder `segformer.*` learns
    at `head_lr_multiplier` times the rate (Xie et al. 2021, section 4.1). Empty groups are left out.
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            key = (name.startswith("segformer."), parameter.ndim > 1)
            groups.setdefault(key, []).append(parameter)
    return [
        {
            "name": f"{'encoder' if encoder else 'head'}_{'decay' if decay else 'no_decay'}",
            "params": parameters,
            "lr": learning_rate * (1.0 if encoder else head_lr_multiplier),
            "base_lr": learning_rate * (1.0 if encoder else head_lr_multiplier),
            "weight_decay": weight_decay if decay else 0.0,
        }
        for (encoder, decay), parameters in sorted(groups.items(), reverse=True)
    ]


def adamw(groups: list[dict[str, Any]], betas: tuple[float, float]) -> torch.optim.AdamW:
    """AdamW in its fused form where every parameter's device has one."""
    devices = {parameter.device.type for group in groups for parameter in group["params"]}
    return torch.optim.AdamW(groups, betas=betas, fused=devices <= {"cpu", "cuda"})


def poly_factor(step: int, max_steps: int, warmup_steps: int, start_factor: float = 1e-6, power: float = 1.0) -> float:
    """What the base learning rate is multiplied by at `step` (from 0): linear warm-up, then polynomial decay to 0."""
    if step < warmup_steps:
        return start_factor + (1 - start_factor) * step / warmup_steps
    return (1 - (step - warmup_steps) / max(max_steps - warmup_steps, 1)) ** power


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Give every group `factor` times its base rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
