from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image

from segtune.data.config import DatasetConfig, TransformConfig
from segtune.doctor.case import Case
from segtune.doctor.check_label_issues import find_label_issues
from segtune.doctor.examine import examine
from segtune.evaluation.label_issues import SURE
from segtune.labels.label_map import LabelMap
from segtune.recipe.recipe import Recipe
from segtune.segformer.image_processing_segformer import SegformerImageProcessor

LABELS = LabelMap.from_names(["dark", "bright"])
PROCESSOR = SegformerImageProcessor(do_resize=False, image_mean=[0.5] * 3, image_std=[0.5] * 3)


class Threshold(torch.nn.Module):
    """Answers 1 where the image is bright, as sure as `scale` makes it."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(scale))

    def forward(self, pixel_values: torch.Tensor) -> Any:
        bright = torch.nn.functional.avg_pool2d(pixel_values.mean(1, keepdim=True), 4)  # (B, 1, H/4, W/4), -1 to 1
        return SimpleNamespace(logits=torch.cat([-bright, bright], 1) * self.scale)


def write_case(folder: Path, shares: Sequence[float]) -> Case:
    """Dark images, and masks with these shares of them called bright."""
    for number, share in enumerate(shares):
        mask = np.zeros((20, 20), np.uint8)
        mask.flat[: round(400 * share)] = 1
        for kind, array in (("images", np.zeros((20, 20, 3), np.uint8)), ("masks", mask)):
            (folder / kind).mkdir(exist_ok=True)
            Image.fromarray(array).save(folder / kind / f"{number}.png")
    (folder / "labels.json").write_text(json.dumps(LABELS.names))
    return examine(
        Recipe(dataset=DatasetConfig(path=str(folder), val_fraction=0), transforms=TransformConfig(crop_size=16))
    ).case


def test_a_model_that_is_not_sure_contradicts_nothing(tmp_path: Path) -> None:
    unsure = float(np.log(SURE / (1 - SURE)) / 2 * 0.98)  # logits of -s and s give the probability sigmoid(2 s)
    case = write_case(tmp_path, [0.5])
    for scale, share in ((unsure, 0), (unsure / 0.96, 0.5)):
        found = find_label_issues(case, case.index.samples, Threshold(scale), PROCESSOR)
        assert found is not None and found.numbers["shares"] == {"0": share}


def test_masks_that_stand_out_are_ranked(tmp_path: Path) -> None:
    case = write_case(tmp_path, [0, 0.04, 0, 0.3, 0.04, 0, 0.45, 0])
    found = find_label_issues(case, case.index.samples, Threshold(5.0), PROCESSOR)
    assert found is not None
    assert (found.severity, found.files) == ("warning", ("masks/6.png", "masks/3.png"))
    assert list(found.numbers["shares"].items())[:2] == [("6", 0.45), ("3", 0.3)]
    assert "2 masks of 8 stand out, the clearest with 45 % of the pixels" in found.message
    assert "mostly dark where the mask says bright" in found.message
    calm = find_label_issues(case, [s for s in case.index.samples if s.id not in "63"], Threshold(5.0), PROCESSOR)
    assert calm is not None and calm.severity == "info" and "0 masks of 6 stand out" in calm.message
    assert find_label_issues(case, [], Threshold(5.0), PROCESSOR) is None
