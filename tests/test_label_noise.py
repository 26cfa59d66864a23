from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from segtune.data.config import DatasetConfig
from segtune.data.doctor.examine import examine
from segtune.data.transforms import TransformConfig
from segtune.label_noise import SURE, doubt, find_label_noise
from segtune.labels import LabelMap
from segtune.segformer.image_processing_segformer import SegformerImageProcessor

LABELS = LabelMap.from_names(["dark", "bright"])
PROCESSOR = SegformerImageProcessor(do_resize=False, image_mean=[0.5] * 3, image_std=[0.5] * 3)


class Threshold(torch.nn.Module):
    """Answers 1 where the image is bright, as sure as `scale` makes it."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(scale))

    def forward(self, pixel_values: torch.Tensor) -> Any:
        bright = pixel_values.mean(1, keepdim=True)  # (B, 1, H, W), -1 to 1
        return SimpleNamespace(logits=torch.cat([-bright, bright], 1) * self.scale)


def halves(share: float) -> tuple[np.ndarray, np.ndarray]:
    """An image of a dark and a bright half, and its mask with this share of the dark half called bright."""
    image = np.zeros((20, 20, 3), np.uint8)
    image[:, 10:] = 255
    mask = np.zeros((20, 20), np.uint8)
    mask[:, 10:] = 1
    mask[: round(20 * share), :10] = 1
    return image, mask


def test_sure_contradictions_are_counted() -> None:
    image, mask = halves(0.5)
    mask[:, 19] = 255  # ignored pixels do not count
    found = doubt(Threshold(5.0), image, mask, LABELS, PROCESSOR)
    assert found == (pytest.approx(100 / 380), "bright", "dark")
    assert doubt(Threshold(5.0), *halves(0), LABELS, PROCESSOR) == (0.0, "", "")


def test_a_model_that_is_not_sure_contradicts_nothing() -> None:
    unsure = float(np.log(SURE / (1 - SURE)) / 2 * 0.98)  # logits of -s and s give the probability sigmoid(2 s)
    assert doubt(Threshold(unsure), *halves(0.5), LABELS, PROCESSOR).share == 0
    assert doubt(Threshold(unsure / 0.96), *halves(0.5), LABELS, PROCESSOR).share == 0.25


def test_masks_that_stand_out_are_ranked(tmp_path: Path) -> None:
    for number, share in enumerate([0, 0.05, 0, 0.6, 0.05, 0, 0.9, 0]):
        for kind, array in zip(("images", "masks"), halves(share), strict=True):
            (tmp_path / kind).mkdir(exist_ok=True)
            Image.fromarray(array).save(tmp_path / kind / f"{number}.png")
    (tmp_path / "labels.json").write_text(json.dumps(LABELS.names))
    case = examine(DatasetConfig(path=str(tmp_path), val_fraction=0), TransformConfig(crop_size=16)).case
    found = find_label_noise(case, case.scan.samples, Threshold(5.0), PROCESSOR)
    assert found is not None
    assert (found.severity, found.files) == ("warning", ("masks/6.png", "masks/3.png"))
    assert list(found.numbers["shares"].items())[:2] == [("6", 0.45), ("3", 0.3)]
    assert "2 masks of 8 stand out, the clearest with 45 % of the pixels" in found.message
    assert "mostly dark where the mask says bright" in found.message
    calm = find_label_noise(case, [s for s in case.scan.samples if s.id not in "63"], Threshold(5.0), PROCESSOR)
    assert calm is not None and calm.severity == "info" and "0 masks of 6 stand out" in calm.message
    assert find_label_noise(case, [], Threshold(5.0), PROCESSOR) is None
