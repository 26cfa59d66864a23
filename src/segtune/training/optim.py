"""Optimisation: AdamW's parameter groups, learning-rate schedules with warm-up, frozen parts of the model."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import partial
from typing import Any, cast, get_args

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from segtune.errors import UsageError
from segtune.segformer.modeling_segformer import SegformerEncoder
from segtune.training.config import BatchNormMode, FreezeConfig, ScheduleName, TrainingConfig

_ENCODER_LAYER = re.compile(r"segformer\.encoder\.(patch_embeddings|block|layer_norm)\.(\d+)\.(?:(\d+)\.)?")


# --- parameter groups ------------------------------------------------------------------------------------------------


def parameter_groups(
    model: nn.Module,
    learning_rate: float,
    weight_decay: float,
    head_lr_multiplier: float,
    layer_decay: float = 1.0,
) -> list[dict[str, Any]]:
    """AdamW groups of the trainable parameters: encoder and head, each with and without weight decay.

    Norms and biases (every tensor of one dimension) do not decay; what is not part of the encoder `segformer.*` learns
    at `head_lr_multiplier` times the rate (Xie et al. 2021, section 4.1). Empty groups are left out.

    With `layer_decay` below 1 every block of the encoder is a layer with groups of its own, whose rate is multiplied by
    `layer_decay ** distance from the last block`, frozen blocks counted (Clark et al. 2020, arXiv 2003.10555). A patch
    embedding belongs to the first block of its stage, a stage's norm to the last. The topmost layer comes first.
    """
    depths = [len(cast(nn.ModuleList, stage)) for stage in _encoder(model).block] if layer_decay != 1 else []
    groups: dict[tuple[float, str, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            distance, part = _part(name, depths)
            groups.setdefault((distance, part, parameter.ndim > 1), []).append(parameter)
    described = []
    for (distance, part, decay), parameters in sorted(groups.items(), key=lambda item: (item[0][0], not item[0][2])):
        rate = learning_rate * (head_lr_multiplier if part == "head" else layer_decay**distance)
        described.append(
            {
                "name": f"{part}_{'decay' if decay else 'no_decay'}",
                "params": parameters,
                "lr": rate,
                "base_lr": rate,
                "weight_decay": weight_decay if decay else 0.0,
            }
        )
    return described


def _part(name: str, depths: list[int]) -> tuple[float, str]:
    """A parameter's distance from the last block of the encoder, infinite for the head, and the name of its part."""
    if not name.startswith("segformer."):
        return math.inf, "head"
    if not depths:
        return 0, "encoder"
    match = _ENCODER_LAYER.match(name)
    if match is None:
        raise ValueError(f"parameter {name} belongs to no block of the encoder")
    # The rate is base · decay^distance, distance being the number of blocks between this one and the last: those of
    # this stage and of the later ones, less the block itself and those below it.
    kind, stage = match[1], int(match[2])
    block = {"patch_embeddings": 0, "layer_norm": depths[stage] - 1}.get(kind)
    if block is None:
        block = int(match[3])
    return sum(depths[stage:]) - 1 - block, f"encoder_stage{stage + 1}_block{block + 1}"


def adamw(groups: list[dict[str, Any]], betas: tuple[float, float]) -> torch.optim.AdamW:
    """AdamW in its fused form where every parameter's device has one."""
    devices = {parameter.device.type for group in groups for parameter in group["params"]}
    return torch.optim.AdamW(groups, betas=betas, fused=devices <= {"cpu", "cuda"})


# --- learning rate ---------------------------------------------------------------------------------------------------


def schedule_of(config: TrainingConfig) -> Callable[[int], float]:
    """Step -> what the base learning rate is multiplied by in a training; see `schedule_factor`."""
    return partial(
        schedule_factor,
        config.schedule,
        max_steps=config.max_steps,
        warmup_steps=config.warmup,
        start_factor=config.warmup_start_factor,
        power=config.power,
        decay_share=config.decay_share,
    )


def schedule_factor(
    name: ScheduleName,
    step: int,
    max_steps: int,
    warmup_steps: int,
    start_factor: float = 1e-6,
    power: float = 1.0,
    decay_share: float = 0.2,
) -> float:
    """What the base learning rate is multiplied by at `step` (from 0): linear warm-up, then the schedule.

    Args:
        name: the schedule: `poly` falls to 0 as `(1 - progress) ** power`, `cosine` as half a cosine wave, `constant`
            does not fall; `wsd` (warm-up, stable, decay; Hu et al. 2024, arXiv 2404.06395) stays at 1, then falls like
            `poly`.
        max_steps: the step at which the rate reaches 0.
        start_factor: the factor of the warm-up's first step.
        power: the exponent of `poly` and of the fall of `wsd`.
        decay_share: the part of `max_steps` over which `wsd` falls, at most what the warm-up leaves.
    """
    if name not in get_args(ScheduleName):
        raise ValueError(f"schedule {name!r} does not exist: choose one of {', '.join(get_args(ScheduleName))}")
    # Warm-up: from f_0 in a straight line to 1, f(s) = f_0 + (1 - f_0) s / w.
    if step < warmup_steps:
        return start_factor + (1 - start_factor) * step / warmup_steps
    if name == "constant":
        return 1.0
    falling = max_steps - warmup_steps
    if name == "wsd":
        falling = min(round(decay_share * max_steps), falling)
    # The last `falling` steps fall from 1 to 0: progress p = (s - (max - falling)) / falling, and f = (1 - p)^power, or
    # half a cosine wave, f = (1 + cos(pi p)) / 2. For poly and cosine everything after the warm-up falls.
    progress = max(step - (max_steps - falling), 0) / max(falling, 1)
    return (1 + math.cos(math.pi * progress)) / 2 if name == "cosine" else (1 - progress) ** power


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Give every group `factor` times its base rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor


# --- frozen parts ----------------------------------------------------------------------------------------------------


def freeze(model: nn.Module, config: FreezeConfig) -> None:
    """Let the frozen parameters not require gradients; call it before `parameter_groups`, which leaves them out.

    Raises:
        UsageError: the encoder has no such stage.
    """
    for module in _frozen_stages(model, config):
        module.requires_grad_(False)


def train_mode(model: nn.Module, config: FreezeConfig, batch_norm: BatchNormMode = "local") -> None:
    """Put the model into training mode, but its frozen parts into evaluation mode; use it in place of `model.train()`.

    Args:
        model: may be wrapped, as DDP does.
        batch_norm: where it is frozen, batch norm uses its stored mean and variance and leaves them as they are; its
            scale and shift still learn.
    """
    model.train()
    # Evaluation mode, too, for what is frozen: drop path would disturb features that nothing adapts to.
    for module in _frozen_stages(model, config) + (_batch_norms(model) if batch_norm == "frozen" else []):
        module.eval()


def _frozen_stages(model: nn.Module, config: FreezeConfig) -> list[nn.Module]:
    if not (config.encoder or config.stages):
        return []
    encoder = _encoder(model)
    count = len(encoder.block)
    outside = [stage for stage in config.stages if not 1 <= stage <= count]
    if outside:
        raise UsageError(f"freeze.stages names stage {outside[0]}, but the encoder has the stages 1 to {count}")
    stages = range(count) if config.encoder else [stage - 1 for stage in config.stages]
    return [parts[i] for i in stages for parts in (encoder.patch_embeddings, encoder.block, encoder.layer_norm)]


def _batch_norms(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


def _encoder(model: nn.Module) -> SegformerEncoder:
    for module in model.modules():
        if isinstance(module, SegformerEncoder):
            return module
    raise TypeError(f"{type(model).__name__} has no segtune encoder")
