"""Dry run: one training step at the recipe's size, then a few samples overfitted, before a run is started.

A model that cannot learn eight samples by heart will not learn a thousand: the masks do not belong to the images, most
labels are ignored, or something in the learning is broken.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from segtune.bars import progress_bar
from segtune.data.config import TransformConfig
from segtune.data.samples import SegmentationSamples
from segtune.data.transforms import TrainTransform
from segtune.doctor.findings import Finding
from segtune.labels.label_map import LabelMap
from segtune.segformer.modeling_segformer import SegformerForSemanticSegmentation, segmentation_loss
from segtune.viz.numbers import by, count

if TYPE_CHECKING:
    import datasets

SAMPLES = 8  # learned by heart
SIDE = 256  # of their crops, at most
STEPS = 100
LEARNING_RATE = 1e-3  # constant: random weights learn with it, and pretrained ones
FALL = 0.5  # of the cross-entropy that class frequencies alone give, where the loss must fall to
WINDOW = 3  # losses in the mean that must have fallen

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Model = SegformerForSemanticSegmentation


def dry_run(
    model: Model,
    rows: datasets.Dataset,
    label_map: LabelMap,
    transforms: TransformConfig,
    loss: Loss,
    batch_size: int,
) -> list[Finding]:
    """Try a model on training samples: a step of the recipe's size, then `SAMPLES` crops over and over.

    Args:
        model: is changed; starts as it comes, on its device.
        rows: with `id`, `image` and `mask`.
        loss: of logits (B, K, h, w) and labels (B, H, W), a scalar, for the one step; the other learning is done with
            the cross-entropy.
        batch_size: of the one step.
    """
    device = model.device
    found = _try_step(model, _batch(rows, label_map, transforms, batch_size, device), loss)
    if found.severity == "error":
        return [found]
    size = transforms.crop_size
    height, width = (size, size) if isinstance(size, int) else size
    small = transforms.model_copy(update={"crop_size": (min(height, SIDE), min(width, SIDE))})
    return [found, _learn_by_heart(model, _batch(rows, label_map, small, SAMPLES, device), label_map)]


def _batch(
    rows: datasets.Dataset, label_map: LabelMap, transforms: TransformConfig, number: int, device: str
) -> dict[str, Any]:
    """Augmented training samples, spread over the split."""
    samples = SegmentationSamples(rows, label_map, TrainTransform(transforms, label_map.ignore_index), seed=0)
    batch = samples.__getitems__([(i, i * len(rows) // number % len(rows)) for i in range(number)])
    return {"pixel_values": batch["pixel_values"].to(device), "labels": batch["labels"].to(device, torch.int64)}


def _try_step(model: Model, batch: dict[str, Any], loss: Loss) -> Finding:
    """One forward and backward pass: do the loss and every gradient come out as numbers?"""
    step = f"a step of {count(len(batch['labels']), 'crop')} of {by(tuple(batch['labels'].shape[1:]))}"
    started = time.perf_counter()
    try:
        value = _backward(model.train(), batch, loss)
    except RuntimeError as error:  # torch.OutOfMemoryError is one, and so is that of the CPU's allocator
        fix = "training.batch_size=1 training.accumulation_steps=N, or a smaller transforms.crop_size"
        return Finding("dry-run", "error", f"{step} fails: {str(error).splitlines()[0]}", fix=(fix,))
    seconds = time.perf_counter() - started
    missing = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    broken = [name for name, p in model.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
    model.zero_grad()
    numbers = {"loss": value, "seconds": seconds, "without_gradient": missing, "not_finite": broken}
    if not math.isfinite(value) or broken:
        what = f"gives the loss {value:.4g}, and {count(len(broken), 'gradient')} that are no numbers"
        fix = "training.mixed_precision=no, and look at transforms.mean and std"
    elif missing:
        what = f"leaves {count(len(missing), 'parameter')} without a gradient, such as {missing[0]}"
        fix = "training.freeze names what is not meant to learn"
    else:
        what = f"took {seconds:.1f} s; its loss is {value:.3f}"
        return Finding("dry-run", "info", f"{step} {what}", numbers=numbers)
    return Finding("dry-run", "error", f"{step} {what}", numbers=numbers, fix=(fix,))


def _learn_by_heart(model: Model, batch: dict[str, Any], label_map: LabelMap) -> Finding:
    """The same crops at every step, without weight decay, until the loss has fallen far enough, or `STEPS` are over."""
    labels = batch["labels"]
    told = f"{count(len(labels), 'crop')} of {by(tuple(labels.shape[1:]))}"
    valid = labels[labels != label_map.ignore_index]
    if not len(valid):
        fix = "dataset.labels: are classes ignored that should not be?"
        return Finding("learn-by-heart", "error", f"{told} hold ignored pixels only", fix=(fix,))
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), LEARNING_RATE, weight_decay=0.0)
    losses: list[float] = []
    target = math.inf
    for _ in progress_bar(range(STEPS), desc="learning by heart", leave=False):
        losses.append(_backward(model, batch, partial(segmentation_loss, ignore_index=label_map.ignore_index)))
        target = FALL * (frequency_entropy(valid) or losses[0])
        optimizer.step()
        optimizer.zero_grad()
        last = sum(losses[-WINDOW:]) / len(losses[-WINDOW:])
        if not math.isfinite(last) or (len(losses) >= WINDOW and last <= target):
            break
    fell = last <= target
    return Finding(
        "learn-by-heart",
        "info" if fell else "error",
        f"{told}, learned by heart: in {count(len(losses), 'step')} the cross-entropy goes from {losses[0]:.3f} to "
        f"{last:.3f}; {target:.3f}, half of what class frequencies alone give, is {'' if fell else 'not '}reached",
        numbers={"losses": losses, "target": target},
        fix=() if fell else ("look at the samples on the page (--html): do the masks belong to the images?",),
    )


def frequency_entropy(labels: torch.Tensor) -> float:
    """The mean cross-entropy, in nats, of always answering the frequencies of the labels (N,)."""
    shares = labels.unique(return_counts=True)[1].double() / len(labels)
    return float(-(shares * shares.log()).sum())


def _backward(model: Model, batch: dict[str, Any], loss: Loss) -> float:
    value = loss(model(batch["pixel_values"]).logits, batch["labels"])
    value.backward()
    return value.item()
