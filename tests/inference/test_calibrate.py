from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from segtune.errors import DataError, UsageError
from segtune.inference.calibrate import config_file, fit_temperature, store_temperature
from segtune.labels.label_map import LabelMap
from segtune.segformer.configuration_segformer import SegformerConfig
from segtune.segformer.image_processing_segformer import SegformerImageProcessor

LABELS = LabelMap.from_names(["a", "b", "c"])


class Overconfident(nn.Module):
    """Answers with the logits that masks were drawn from, times three; the image's red value tells which they are."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.tensor([[1.0, 0.0, -1.0], [-0.5, 0.5, 1.5]]) * 3)

    def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
        logits = self.table[pixel_values[:, 0].round().long()]  # (1, H, W, K)
        return SimpleNamespace(logits=logits.movedim(-1, 1))


def drawn(number: int) -> datasets.Dataset:
    """Images half of one kind and half of the other, with masks drawn from the probabilities of their kind."""
    model, rng = Overconfident(), np.random.default_rng(0)
    probabilities = (model.table / 3).softmax(-1).detach().numpy()
    rows: dict[str, list] = {"id": [], "image": [], "mask": []}
    for index in range(number):
        kinds = np.zeros((40, 50), np.uint8)
        kinds[:, 25:] = 1
        mask = (probabilities.cumsum(1)[kinds] < rng.random((40, 50, 1))).sum(-1).clip(max=2).astype(np.uint8)
        mask[:4] = 255
        rows["id"].append(str(index))
        rows["image"].append(Image.fromarray(np.stack([kinds] * 3, -1)))
        rows["mask"].append(Image.fromarray(mask))
    features = datasets.Features(id=datasets.Value("string"), image=datasets.Image(), mask=datasets.Image())
    return datasets.Dataset.from_dict(rows, features)


def processor() -> SegformerImageProcessor:
    return SegformerImageProcessor(do_resize=False, do_rescale=False, do_normalize=False)


def test_temperature_undoes_what_makes_a_model_overconfident() -> None:
    fit = fit_temperature(Overconfident(), drawn(10), LABELS, processor(), progress=False)
    assert fit.pixels == 10 * 36 * 50
    assert fit.temperature() == pytest.approx(3, rel=0.1)
    assert fit.nll(3.0) < fit.nll(1.0)


def test_a_part_of_the_pixels_is_taken_the_same_each_time() -> None:
    fits = [fit_temperature(Overconfident(), drawn(4), LABELS, processor(), pixels=400, progress=False) for _ in "ab"]
    assert fits[0].pixels == 400
    assert fits[0].temperature() == fits[1].temperature() == pytest.approx(3, rel=0.3)


def test_what_cannot_be_fitted_is_named() -> None:
    with pytest.raises(DataError, match=r"sample '0': .*id 2 "):
        fit_temperature(Overconfident(), drawn(1), LabelMap.from_names(["a", "b"]), processor(), progress=False)
    ignored = LabelMap.from_ids({0: "a", 1: "b", 2: "c"}, ignore_ids=[255])
    nothing = drawn(1).map(lambda row: {"mask": Image.new("L", (50, 40), 255)})
    with pytest.raises(DataError, match="no labelled pixel"):
        fit_temperature(Overconfident(), nothing, ignored, processor(), progress=False)


def test_temperature_is_stored_beside_everything_else(tmp_path: Path) -> None:
    SegformerConfig(num_labels=3).save_pretrained(tmp_path)
    before = json.loads((tmp_path / "config.json").read_text())
    store_temperature(config_file(str(tmp_path)), 1.7)
    after = json.loads((tmp_path / "config.json").read_text())
    assert after == before | {"calibration_temperature": 1.7}
    assert SegformerConfig.from_pretrained(tmp_path).calibration_temperature == 1.7
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    with pytest.raises(UsageError, match=r"nvidia/x is no folder with a config\.json"):
        config_file("nvidia/x")
    with pytest.raises(ValueError, match="calibration_temperature=0 must be positive"):
        SegformerConfig(calibration_temperature=0)
