from __future__ import annotations

import math
from functools import partial
from typing import Any

import datasets
import numpy as np
import PIL.Image
import pytest
import torch

from segtune.data.config import TransformConfig
from segtune.doctor.dry_run import dry_run, frequency_entropy
from segtune.labels.label_map import LabelMap
from segtune.segformer.configuration_segformer import SegformerConfig
from segtune.segformer.modeling_segformer import SegformerForSemanticSegmentation, segmentation_loss

LABELS = LabelMap.from_names(["sky", "road"])
TRANSFORMS = TransformConfig(crop_size=32, scale=(1.0, 1.0), max_class_share=1, photometric=False)


cross_entropy = partial(segmentation_loss, ignore_index=255)


def rows(learnable: bool = True, ignored: bool = False, number: int = 10) -> datasets.Dataset:
    """Bright areas are class 1, or the classes have nothing to do with the image."""
    generator = np.random.default_rng(0)
    masks = [generator.integers(0, 2, (40, 40), dtype=np.uint8) for _ in range(number)]
    if learnable:
        masks = [np.kron(generator.integers(0, 2, (2, 2)), np.ones((20, 20))).astype(np.uint8) for _ in range(number)]
    noise = [generator.integers(0, 60, (40, 40, 1), dtype=np.uint8) for _ in range(number)]
    images = [
        np.repeat(n + 150 * m[:, :, None] * learnable, 3, axis=2).astype(np.uint8)
        for m, n in zip(masks, noise, strict=True)
    ]
    masks = [np.full_like(mask, 255) if ignored else mask for mask in masks]
    columns = {
        "id": [str(i) for i in range(number)],
        "image": [PIL.Image.fromarray(image) for image in images],
        "mask": [PIL.Image.fromarray(mask) for mask in masks],
    }
    features = datasets.Features({"id": datasets.Value("string"), "image": datasets.Image(), "mask": datasets.Image()})
    return datasets.Dataset.from_dict(columns, features=features)


@pytest.fixture
def model() -> SegformerForSemanticSegmentation:
    torch.manual_seed(0)
    sizes = {"hidden_sizes": [8, 16, 20, 32], "depths": [1, 1, 1, 1], "decoder_hidden_size": 32, "drop_path_rate": 0.0}
    config = SegformerConfig.from_variant("b0", **sizes, classifier_dropout_prob=0.0, **LABELS.config_fields())
    return SegformerForSemanticSegmentation(config)


def run(model: Any, data: datasets.Dataset, loss: Any = cross_entropy) -> dict[str, Any]:
    return {finding.code: finding for finding in dry_run(model, data, LABELS, TRANSFORMS, loss, batch_size=3)}


def test_model_learns_what_can_be_learned(model: Any) -> None:
    found = run(model, rows())
    assert [finding.severity for finding in found.values()] == ["info", "info"]
    step, heart = found["dry-run"], found["learn-by-heart"]
    assert "a step of 3 crops of 32x32 took" in step.message
    assert step.numbers["loss"] == pytest.approx(math.log(2), abs=0.3)
    losses, target = heart.numbers["losses"], heart.numbers["target"]
    assert 0 < target <= math.log(2) / 2
    assert 3 <= len(losses) < 100
    assert np.mean(losses[-3:]) <= target < np.mean(losses[-4:-1])  # it stops as soon as it may


def test_noise_cannot_be_learned_by_heart(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segtune.doctor.dry_run.STEPS", 12)
    found = run(model, rows(learnable=False))["learn-by-heart"]
    assert (found.severity, len(found.numbers["losses"])) == ("error", 12)
    assert "is not reached" in found.message and found.fix


def test_ignored_labels_are_an_error(model: Any) -> None:
    assert run(model, rows(ignored=True))["learn-by-heart"].message == "8 crops of 32x32 hold ignored pixels only"


def test_loss_that_is_no_number_ends_the_dry_run(model: Any) -> None:
    (found,) = run(model, rows(), lambda logits, labels: logits.sum() * math.inf).values()
    assert (found.code, found.severity) == ("dry-run", "error")
    assert len(found.numbers["not_finite"]) > 10


def test_parameters_without_a_gradient_are_named(model: Any) -> None:
    (found,) = run(model, rows(), lambda logits, labels: model.decode_head.classifier.bias.sum()).values()
    assert found.severity == "error"
    assert "segformer.encoder.patch_embeddings.0.proj.weight" in found.numbers["without_gradient"]


def test_step_that_fails_says_why(model: Any) -> None:
    def fail(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("out of memory\nand a long tail")

    (found,) = run(model, rows(), fail).values()
    assert found.message == "a step of 3 crops of 32x32 fails: out of memory"


def test_entropy_of_frequencies() -> None:
    assert frequency_entropy(torch.tensor([0, 0, 0, 5])) == pytest.approx(
        -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    )
    assert frequency_entropy(torch.tensor([3, 3])) == 0
