"""Losses against hand-computed cases, definitions and monai's.

segmentation-models-pytorch is no reference here: importing it needs torchvision, which segtune's environment lacks.
torchmetrics has scores of hard predictions only: its Dice is compared at such predictions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import monai.losses
import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.segmentation import dice_score

from segtune.data.samples import DistanceMaps
from segtune.errors import UsageError
from segtune.segformer.modeling_segformer import segmentation_loss, valid_pixels
from segtune.segformer.upsampling import upsample
from segtune.training.config import LossConfig
from segtune.training.losses import image_terms
from segtune.training.losses.segmentation_loss import SegmentationLoss

TERMS = ("focal", "ohem", "dice", "tversky", "lovasz", "boundary")
WEIGHTS = [0.5, 2.0, 1.0, 0.0, 3.0]
CONFIGS: list[dict[str, Any]] = [
    {},
    {"cross_entropy": 1, "label_smoothing": 0.2},
    {"cross_entropy": 1, "label_smoothing": 0.2, "class_weights": WEIGHTS},
    *({term: 1} for term in TERMS),
    {"focal": 1, "focal_gamma": 0.5, "class_weights": WEIGHTS},
    {"ohem": 1, "ohem_threshold": 0.3, "ohem_min_kept": 0.4, "class_weights": WEIGHTS},
    {"cross_entropy": 0.7, "dice": 0.5, "focal": 2, "lovasz": 0.1, "boundary": 0.01, "class_weights": WEIGHTS},
]
NAME_OF = {id(config): "+".join(config) or "default" for config in CONFIGS}


def name(config: dict[str, Any]) -> str:
    return NAME_OF[id(config)]


def loss_of(num_labels: int, ignore_index: int = 255, **fields: Any) -> SegmentationLoss:
    classes = max(num_labels, 2)
    if "class_weights" in fields:
        fields = fields | {"class_weights": fields["class_weights"][:classes]}
    return SegmentationLoss(LossConfig(**fields), [f"class {i}" for i in range(classes)], ignore_index)


def batch(
    num_labels: int, images: int = 3, small: tuple[int, int] = (4, 5), size: tuple[int, int] = (13, 17)
) -> tuple[Tensor, Tensor]:
    """Logits in double precision and labels of patches, with more ignored pixels from image to image."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(images, num_labels, *small, generator=generator, dtype=torch.float64)
    patches = torch.rand(images, max(num_labels, 2), 3, 4, generator=generator)
    labels = upsample(patches, size).argmax(1)
    for i in range(images):
        labels[i].view(-1)[torch.randperm(labels[i].numel(), generator=generator)[: 10 + 20 * i]] = 255
    return logits, labels


def gradient_of(function: Callable[[Tensor], Tensor], logits: Tensor) -> tuple[Tensor, Tensor]:
    x = logits.clone().requires_grad_()
    value = function(x)
    return value.detach(), torch.autograd.grad(value, x)[0]


def flat(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The valid pixels of one image in a row: (1, K, 1, N) at the size of the labels, and labels (1, 1, N)."""
    valid = labels != 255
    return upsample(logits, labels.shape[1:]).movedim(1, -1)[valid].t()[None, :, None], labels[valid][None, None]


# --- how the batch is divided ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_labels", [1, 5])
@pytest.mark.parametrize("config", CONFIGS, ids=name)
def test_division_of_the_batch_changes_nothing(num_labels: int, config: dict[str, Any]) -> None:
    """8 x 1, 4 x 2 and 1 x 8, with unequal numbers of ignored pixels and one image wholly ignored."""
    loss = loss_of(num_labels, **config)
    logits, labels = batch(num_labels, images=8)
    labels[3] = 255
    results = []
    for size in (8, 4, 1):
        parts = labels.split(size)
        counts = torch.stack([loss.count(part) for part in parts]).sum(0)

        def step(x: Tensor, size: int = size, parts: Any = parts, counts: Tensor = counts) -> Tensor:
            return torch.stack([loss(*pair, counts) for pair in zip(x.split(size), parts, strict=True)]).sum()

        results.append(gradient_of(step, logits))
    value, gradient = results[0]
    assert value != 0 and gradient.abs().max() > 0
    torch.testing.assert_close(loss(logits, labels).to(value.dtype), value, rtol=1e-6, atol=0)
    for other_value, other in results[1:]:
        assert abs(other_value - value) <= 1e-6 * abs(value)
        assert (other - gradient).abs().max() <= 1e-6 * gradient.abs().max()


def test_mean_over_each_micro_batch_would_differ() -> None:
    """What the counts of the global batch are for."""
    for config in ({}, {"dice": 1}):
        loss = loss_of(5, **config)
        logits, labels = batch(5, images=4)
        labels[0] = 255
        alone = torch.stack([loss(*pair) for pair in zip(logits.split(1), labels.split(1), strict=True)]).mean()
        assert abs(alone - loss(logits, labels)) > 0.01


@pytest.mark.parametrize("num_labels", [1, 5])
def test_counts_are_pixels_or_weights_and_images(num_labels: int) -> None:
    _, labels = batch(num_labels)
    labels[1] = 255
    assert loss_of(num_labels).count(labels).tolist() == [(labels != 255).sum(), 2]
    weights = torch.tensor(WEIGHTS)
    weighted = loss_of(num_labels, class_weights=WEIGHTS).count(labels)
    assert weighted.tolist() == [weights[labels[labels != 255]].sum(), 2]


# --- cross-entropy ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_labels", [1, 5])
def test_the_default_is_the_plain_cross_entropy_to_the_last_bit(num_labels: int) -> None:
    logits, labels = batch(num_labels)
    logits = logits.float()
    loss = loss_of(num_labels)
    found = gradient_of(lambda x: loss(x, labels), logits)
    expected = gradient_of(
        lambda x: segmentation_loss(x, labels, reduction="sum") / valid_pixels(labels).clamp(min=1), logits
    )
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert found[0].dtype == torch.float32


@pytest.mark.parametrize("num_labels", [1, 5])
@pytest.mark.parametrize(
    "options",
    [{"class_weights": WEIGHTS}, {"label_smoothing": 0.2}, {"class_weights": WEIGHTS, "label_smoothing": 0.2}],
)
def test_cross_entropy_equals_torch_over_the_global_batch(num_labels: int, options: dict[str, Any]) -> None:
    logits, labels = batch(num_labels)
    loss = loss_of(num_labels, cross_entropy=1, **options)

    def reference(x: Tensor) -> Tensor:
        x = torch.cat([torch.zeros_like(x), x], 1) if num_labels == 1 else x
        weight = torch.tensor(WEIGHTS[: x.shape[1]], dtype=x.dtype) if "class_weights" in options else None
        smoothing = options.get("label_smoothing", 0.0)
        full = upsample(x, labels.shape[1:])
        return F.cross_entropy(full, labels, weight, ignore_index=255, label_smoothing=smoothing)

    value, gradient = gradient_of(lambda x: loss(x, labels), logits)
    expected, of_reference = gradient_of(reference, logits)
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)
    assert (gradient - of_reference).abs().max() <= 1e-6 * of_reference.abs().max()


# --- against other implementations -----------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 3.0])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_focal_equals_monai(gamma: float, weights: list[float] | None) -> None:
    logits, labels = batch(5)
    loss = (
        loss_of(5, focal=1, focal_gamma=gamma, class_weights=weights)
        if weights
        else loss_of(5, focal=1, focal_gamma=gamma)
    )
    monai_loss = monai.losses.FocalLoss(
        gamma=gamma, weight=None, alpha=weights, use_softmax=True, to_onehot_y=True, reduction="none"
    )
    full = upsample(logits, labels.shape[1:])
    valid = labels != 255
    per_pixel = monai_loss(full, labels.where(valid, 0)[:, None]).sum(1)  # (B, H, W)
    of_pixel = torch.tensor(weights or [1.0] * 5, dtype=torch.float64)[labels[valid]]
    expected = per_pixel[valid].sum() / of_pixel.sum()
    assert loss(logits, labels).item() == pytest.approx(expected.item(), rel=1e-6)


def test_binary_focal_equals_monai() -> None:
    logits, labels = batch(1)
    valid = labels != 255
    full = upsample(logits, labels.shape[1:])
    per_pixel = monai.losses.FocalLoss(gamma=2.0, reduction="none")(full, labels.where(valid, 0)[:, None].double())
    expected = per_pixel[:, 0][valid].mean()
    assert loss_of(1, focal=1)(logits, labels).item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("num_labels", [1, 5])
@pytest.mark.parametrize(
    ("config", "alpha", "beta"),
    [
        ({"dice": 1}, None, None),
        ({"tversky": 1}, 0.3, 0.7),
        ({"tversky": 1, "tversky_alpha": 1, "tversky_beta": 2}, 1, 2),
    ],
)
def test_dice_and_tversky_equal_monai(num_labels: int, config: dict[str, Any], alpha: Any, beta: Any) -> None:
    """monai averages over all classes: those that an image lacks are left out here."""
    logits, labels = batch(num_labels)
    options = {"softmax": True, "to_onehot_y": True} if num_labels > 1 else {"sigmoid": True}
    options |= {"smooth_nr": 0.0, "smooth_dr": 0.0, "reduction": "none"}
    if alpha is None:
        reference = monai.losses.DiceLoss(**options)
    else:
        reference = monai.losses.TverskyLoss(alpha=alpha, beta=beta, **options)
    expected = []
    for image, label in zip(logits.split(1), labels.split(1), strict=True):
        row, ids = flat(image, label)
        of_class = reference(row, ids[:, None]).view(-1)  # (K,)
        expected.append(of_class[ids.unique()].mean() if num_labels > 1 else of_class[0])
    value = loss_of(num_labels, **config)(logits, labels)
    assert value.item() == pytest.approx(torch.stack(expected).mean().item(), rel=1e-6)


def test_dice_of_hard_predictions_equals_torchmetrics() -> None:
    logits, labels = batch(3, images=2)
    labels = labels.where(labels != 255, 0)
    prediction = upsample(logits, labels.shape[1:]).argmax(1)
    hard = 1e3 * F.one_hot(prediction, 3).movedim(-1, 1).double()  # (B, K, H, W)
    scores = dice_score(prediction, labels, num_classes=3, average="none", input_format="index")  # (B, K)
    assert all(len(each.unique()) == 3 for each in labels)
    assert loss_of(3, dice=1)(hard, labels).item() == pytest.approx(1 - scores.mean().item(), rel=1e-6)


@pytest.mark.parametrize("num_labels", [1, 4])
def test_boundary_equals_monai(num_labels: int) -> None:
    logits, labels = batch(num_labels)
    labels = labels.where(labels != 255, 1)
    options = {"softmax": True, "to_onehot_y": True} if num_labels > 1 else {"sigmoid": True}
    reference = monai.losses.BoundaryLoss(reduction="none", **options)
    expected = []
    for image, label in zip(logits.split(1), labels.split(1), strict=True):
        target = label if num_labels > 1 else label[:, None].double()
        of_class = reference(upsample(image, labels.shape[1:]), target)[0]  # (K,)
        expected.append(of_class[label.unique()].mean() if num_labels > 1 else of_class[0])
    value = loss_of(num_labels, boundary=1)(logits, labels)
    assert value.item() == pytest.approx(torch.stack(expected).mean().item(), rel=1e-6)


@pytest.mark.parametrize("num_labels", [1, 4])
def test_boundary_takes_the_distances_that_come_with_the_batch(
    num_labels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits, labels = batch(num_labels)
    loss = loss_of(num_labels, boundary=1)
    expected = loss(logits.float(), labels)
    distances = DistanceMaps.of_labels(labels, 255, first=int(num_labels == 1))
    monkeypatch.setattr(image_terms, "signed_distance", None)  # not a second time
    assert torch.equal(loss(logits.float(), labels, None, distances), expected)


def test_ohem_by_hand() -> None:
    p = torch.tensor([[0.9, 0.2, 0.6, 0.5], [0.1, 0.8, 0.4, 0.5]])  # (K, N); of the labels: 0.9, 0.2, 0.4, 0.5
    logits, labels = p.log().view(1, 2, 1, 4), torch.tensor([[[0, 0, 1, 255]]])
    mean = -(math.log(0.2) + math.log(0.4)) / 2
    assert loss_of(2, ohem=1)(logits, labels).item() == pytest.approx(mean, rel=1e-6)
    weighted = -(3 * math.log(0.2) + math.log(0.4)) / 4
    assert loss_of(2, ohem=1, class_weights=[3, 1])(logits, labels).item() == pytest.approx(weighted, rel=1e-6)


def test_ohem_is_averaged_over_images_beside_other_terms() -> None:
    """Two images of other numbers of hard pixels, and one without a valid one, which does not count."""
    p = torch.tensor([[[0.9, 0.2, 0.4]], [[0.1, 0.5, 0.95]], [[0.3, 0.3, 0.3]]])  # (B, 1, N) of class 0
    logits = torch.cat([p, 1 - p], 1).log()[:, :, None]  # (B, K, 1, N)
    labels = torch.tensor([[[0, 0, 0]], [[0, 0, 0]], [[255, 255, 255]]])
    hard = [-(math.log(0.2) + math.log(0.4)) / 2, -(math.log(0.1) + math.log(0.5)) / 2]
    ohem = (hard[0] + hard[1]) / 2
    assert loss_of(2, ohem=1)(logits, labels).item() == pytest.approx(ohem, rel=1e-6)
    mean = -sum(math.log(value) for value in (0.9, 0.2, 0.4, 0.1, 0.5, 0.95)) / 6
    loss = loss_of(2, ohem=0.5, cross_entropy=2)
    assert loss(logits, labels).item() == pytest.approx(0.5 * ohem + 2 * mean, rel=1e-6)
    counts = loss.count(labels)  # of one global batch: the shares of its images add up
    shares = [loss(*pair, counts).item() for pair in zip(logits.split(1), labels.split(1), strict=True)]
    assert sum(shares) == pytest.approx(0.5 * ohem + 2 * mean, rel=1e-6)
    assert shares[1] == pytest.approx(
        0.5 * hard[1] / 2 - 2 * (math.log(0.1) + math.log(0.5) + math.log(0.95)) / 6, rel=1e-6
    )


# --- ignored pixels, absent classes, extreme logits ------------------------------------------------------------------


@pytest.mark.parametrize("num_labels", [1, 5])
@pytest.mark.parametrize("term", ["focal", "ohem", "dice", "tversky", "lovasz"])
def test_ignored_pixels_are_as_if_they_were_not_there(num_labels: int, term: str) -> None:
    logits, labels = batch(num_labels, images=1)
    loss = loss_of(num_labels, **{term: 1})
    assert loss(*flat(logits, labels)).item() == pytest.approx(loss(logits, labels).item(), rel=1e-9)


def test_ignored_pixels_are_neither_inside_nor_outside_an_outline() -> None:
    logits, labels = batch(5, images=1, small=(12, 16), size=(12, 16))
    labels[labels == 255] = 0
    labels[:, :, 10:] = 255
    loss = loss_of(5, boundary=1)
    assert loss(logits, labels).item() == pytest.approx(loss(logits[..., :10], labels[..., :10]).item(), rel=1e-9)


@pytest.mark.parametrize("num_labels", [1, 5])
@pytest.mark.parametrize("config", CONFIGS, ids=name)
def test_nothing_valid_gives_zero_and_zero_gradient(num_labels: int, config: dict[str, Any]) -> None:
    logits, labels = batch(num_labels)
    value, gradient = gradient_of(lambda x: loss_of(num_labels, **config)(x, torch.full_like(labels, 255)), logits)
    assert value == 0 and torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("num_labels", [1, 5])
@pytest.mark.parametrize("config", CONFIGS, ids=name)
@pytest.mark.parametrize("label", [0, 1])
def test_images_of_one_class_are_finite(num_labels: int, config: dict[str, Any], label: int) -> None:
    logits, labels = batch(num_labels)
    value, gradient = gradient_of(lambda x: loss_of(num_labels, **config)(x, torch.full_like(labels, label)), logits)
    assert value.isfinite() and gradient.isfinite().all()
    if num_labels == 1 and label == 0 and next(iter(config), "") in {"dice", "tversky", "lovasz", "boundary"}:
        assert value == 0 and gradient.abs().max() == 0  # no foreground: nothing to compare


@pytest.mark.parametrize("num_labels", [1, 5])
@pytest.mark.parametrize("config", CONFIGS, ids=name)
def test_extreme_logits_stay_finite(num_labels: int, config: dict[str, Any]) -> None:
    logits, labels = batch(num_labels)
    value, gradient = gradient_of(lambda x: loss_of(num_labels, **config)(x, labels), 1e4 * logits.float())
    assert value.isfinite() and gradient.isfinite().all()


def test_pixels_of_classes_that_weigh_nothing() -> None:
    logits, labels = batch(5)
    for term in ("cross_entropy", "focal", "ohem"):
        loss = loss_of(5, **{term: 1}, class_weights=WEIGHTS)
        assert loss(logits, torch.full_like(labels, 3)) == 0


@pytest.mark.parametrize(("num_labels", "wrong"), [(5, 5), (1, 2)])
def test_label_outside_the_classes_is_named(num_labels: int, wrong: int) -> None:
    logits, labels = batch(num_labels)
    labels[0, 0, 0] = wrong
    with pytest.raises(IndexError, match=f"label {wrong} is neither one of {max(num_labels, 2)} classes nor 255"):
        loss_of(num_labels, dice=1)(logits, labels)


def test_label_types_and_negative_ignore_index() -> None:
    logits, labels = batch(5)
    for config in ({}, {"dice": 1, "focal": 1, "boundary": 1}):
        expected = loss_of(5, **config)(logits, labels)
        assert loss_of(5, **config)(logits, labels.to(torch.uint8)) == expected
        negative = torch.where(labels == 255, -100, labels)
        assert loss_of(5, ignore_index=-100, **config)(logits, negative) == expected


# --- gradients, precision, memory ------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_labels", [1, 4])
@pytest.mark.parametrize("config", [config for config in CONFIGS if config and "cross_entropy" not in config], ids=name)
def test_gradient_is_that_of_the_value(num_labels: int, config: dict[str, Any]) -> None:
    logits, labels = batch(num_labels, images=2, small=(3, 2), size=(7, 5))
    loss = loss_of(num_labels, **config)
    x = logits.contiguous(memory_format=torch.channels_last).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x, labels), (x,))


def test_weighted_sum_adds_up() -> None:
    logits, labels = batch(5)
    parts = {
        "cross_entropy": 0.5,
        "focal": 2.0,
        "ohem": 0.3,
        "dice": 1.5,
        "lovasz": 0.2,
        "boundary": 0.01,
        "tversky": 3,
    }
    value, gradient = gradient_of(lambda x: loss_of(5, **parts)(x, labels), logits)
    each = [gradient_of(lambda x, t=term: loss_of(5, **{t: 1})(x, labels), logits) for term in parts]
    weights = list(parts.values())
    expected = sum(weight * part for weight, (part, _) in zip(weights, each, strict=True))
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)
    total = sum(weight * part for weight, (_, part) in zip(weights, each, strict=True))
    torch.testing.assert_close(gradient, total, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("num_labels", [1, 5])
@pytest.mark.parametrize("config", CONFIGS, ids=name)
def test_autocast_computes_in_float32(num_labels: int, config: dict[str, Any]) -> None:
    logits, labels = batch(num_labels)
    half = logits.bfloat16()
    loss = loss_of(num_labels, **config)

    def under_autocast(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return loss(x, labels)

    value, gradient = gradient_of(under_autocast, half)
    expected, of_expected = gradient_of(lambda x: loss(x, labels), half.float())
    assert value.dtype == torch.float32 and gradient.dtype == torch.bfloat16
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient, of_expected.bfloat16())


def test_second_derivative_is_refused() -> None:
    logits, labels = batch(5)
    with pytest.raises(RuntimeError, match="keeps too little for a second derivative"):
        torch.autograd.grad(loss_of(5, dice=1)(logits.requires_grad_(), labels), logits, create_graph=True)


def test_images_are_upsampled_one_by_one_and_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    monkeypatch.setattr(image_terms, "upsample", lambda x, size: sizes.append(len(x)) or upsample(x, size))
    kept = []
    logits, labels = batch(5)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()) or tensor, lambda t: t):
        loss_of(5, dice=1, lovasz=1, focal=1)(logits.requires_grad_(), labels).backward()
    assert sizes == [1, 1, 1]
    assert kept and max(kept) == logits.numel()


# --- settings --------------------------------------------------------------------------------------------------------


def test_terms_that_are_named_are_the_loss() -> None:
    assert LossConfig().cross_entropy == 1
    assert LossConfig(class_weights={"a": 2.0}).cross_entropy == 1
    assert LossConfig(dice=0.5).cross_entropy == 0
    mixed = LossConfig(cross_entropy=1, dice=0.5)
    assert (mixed.cross_entropy, mixed.dice) == (1, 0.5)
    assert LossConfig(**mixed.model_dump()) == mixed


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dice": 0}, "every term weighs 0: give one of cross_entropy, focal, ohem, dice"),
        ({"dice": -1}, "greater than or equal to 0"),
        ({"dice": math.inf}, "finite"),
        ({"dise": 1}, "Extra inputs"),
        ({"dice": 1, "focal_gamma": 3}, "focal_gamma belongs to focal, which weighs 0"),
        ({"dice": 1, "label_smoothing": 0.1}, "label_smoothing belongs to cross_entropy, which weighs 0"),
        (
            {"dice": 1, "class_weights": "inverse"},
            "class_weights belong to cross_entropy, focal, ohem, which all weigh 0",
        ),
        ({"effective_number_beta": 0.9}, "belongs to class_weights: effective_number"),
        ({"class_weights": "inverted"}, "inverse"),
        ({"class_weights": {"road": -1}}, "greater than or equal to 0"),
        ({"tversky": 1, "tversky_beta": 0}, "greater than 0"),
    ],
)
def test_settings_that_contradict_each_other(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        LossConfig(**fields)


def test_counted_weights_become_numbers_by_name() -> None:
    pixels = np.array([[90, 10, 0], [50, 0, 0]])
    config = LossConfig(cross_entropy=1, class_weights="effective_number", effective_number_beta=0.99)
    counted = config.counted(pixels, ("a", "b", "c"))
    assert isinstance(counted.class_weights, dict)
    assert list(counted.class_weights) == ["a", "b", "c"] and counted.class_weights["c"] == 1
    assert counted.class_weights["b"] > 3 * counted.class_weights["a"]
    assert all(value == float(f"{value:.6g}") for value in counted.class_weights.values())
    assert LossConfig(**counted.model_dump()) == counted
    assert counted.counted(pixels, ("a", "b", "c")) is counted
    with pytest.raises(UsageError, match=r"class_weights=effective_number stands for numbers"):
        SegmentationLoss(config, ("a", "b", "c"))


def test_class_weights_by_name() -> None:
    logits, labels = batch(3)
    by_name = SegmentationLoss(LossConfig(class_weights={"class 1": 4}), [f"class {i}" for i in range(3)])
    assert by_name(logits, labels) == loss_of(3, class_weights=[1, 4, 1])(logits, labels)
    with pytest.raises(UsageError, match="names 'clas 1', which is no class: did you mean 'class 1'"):
        LossConfig(class_weights={"clas 1": 4}).weights(["class 0", "class 1"])
