"""Ensembles: the mean of the probabilities of several networks, against the plain formula."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from segtune.errors import UsageError
from segtune.inference import segmenter as module
from segtune.inference.ensemble import Ensemble
from segtune.inference.open_network import engine_of, open_networks, precision_of
from segtune.inference.predict import predict
from segtune.inference.protocol import InferenceProtocol
from segtune.inference.segmenter import Segmenter
from segtune.segformer.configuration_segformer import SegformerConfig
from segtune.segformer.image_processing_segformer import SegformerImageProcessor
from segtune.segformer.modeling_segformer import SegformerForSemanticSegmentation
from support.networks import TINY

SIZE = (150, 97)


def network(
    seed: int, num_labels: int = 5, temperature: float = 1.0, **config: Any
) -> SegformerForSemanticSegmentation:
    """Logits that differ from pixel to pixel, not by rounding only."""
    torch.manual_seed(seed)
    own = SegformerConfig(**TINY | config, num_labels=num_labels, calibration_temperature=temperature)
    model = SegformerForSemanticSegmentation(own).eval()
    with torch.no_grad():
        model.decode_head.classifier.weight.mul_(60)
    return model


def processor(side: int | None = None) -> SegformerImageProcessor:
    size = {"shortest_edge": side} if side else 512
    return SegformerImageProcessor(do_resize=side is not None, size=size)


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)


def probabilities(
    model: SegformerForSemanticSegmentation, own: SegformerImageProcessor, image: np.ndarray, temperature: float = 1.0
) -> torch.Tensor:
    """`(K, H, W)`, all of it at once."""
    with torch.inference_mode():
        logits = model(pixel_values=own(image, return_tensors="pt")["pixel_values"]).logits / temperature
        full = F.interpolate(logits, SIZE, mode="bilinear", align_corners=False)[0]
    return full.softmax(0) if len(full) > 1 else torch.cat([1 - full.sigmoid(), full.sigmoid()])


@pytest.mark.parametrize("num_labels", [5, 1])
def test_the_mean_of_the_probabilities_decides(image: np.ndarray, num_labels: int) -> None:
    """Members of other architectures that see the image at other sizes."""
    labels = {"num_labels": num_labels}
    models = [network(0, **labels), network(1, **labels, depths=(2, 1, 1, 1)), network(2, **labels)]
    processors = [processor(), processor(64), processor()]
    found = Segmenter(Ensemble(models, processors), processors[0])(image, confidence=True)
    parts = [probabilities(*pair, image) for pair in zip(models, processors, strict=True)]
    best, ids = (sum(parts) / 3).max(0)  # type: ignore[union-attr]
    assert (found.labels == ids.numpy()).mean() > 0.9999  # where two classes are equal up to rounding
    assert found.confidence is not None
    assert np.abs(found.confidence - best.numpy()).max() < 1e-5
    alone = [part.argmax(0).numpy() for part in parts]
    assert all((found.labels != labels).mean() > 0.005 for labels in alone)  # it is no single one


def test_each_member_has_its_own_temperature(image: np.ndarray) -> None:
    """The decision is that of the plain probabilities, the confidence the mean of the calibrated ones."""
    models = [network(0, temperature=2.0), network(1, temperature=0.5)]
    own = processor()
    found = Segmenter(Ensemble(models, [own, own]), own)(image, confidence=True)
    ids = sum(probabilities(model, own, image) for model in models).argmax(0)  # type: ignore[union-attr]
    honest = sum(probabilities(model, own, image, t) for model, t in zip(models, (2.0, 0.5), strict=True)) / 2
    expected = honest.gather(0, ids[None])[0].numpy()  # type: ignore[union-attr]
    assert (found.labels == ids.numpy()).mean() > 0.9999
    assert found.confidence is not None and np.abs(found.confidence - expected).mean() < 1e-5


@pytest.mark.parametrize(
    "protocol", [InferenceProtocol(), InferenceProtocol(64, 48), InferenceProtocol(scales=(0.5, 1.0), flip=True)]
)
def test_a_network_beside_itself_answers_as_it_does_alone(image: np.ndarray, protocol: InferenceProtocol) -> None:
    own, model = processor(), network(0)
    twice = Segmenter(Ensemble([model, model], [own, own]), own, protocol)(image)
    assert (twice.labels == Segmenter(model, own, protocol)(image).labels).mean() > 0.9999


def test_no_map_of_full_height_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a tall image, rows are upsampled in bands: their number does not depend on the height."""
    heights: list[int] = []
    plain = module.upsample

    def noted(x: torch.Tensor, size: Any) -> torch.Tensor:
        heights.append(size[0])
        return plain(x, size)

    monkeypatch.setattr(module, "upsample", noted)
    own, tall = processor(), np.zeros((1500, 64, 3), np.uint8)
    found = Segmenter(Ensemble([network(0), network(1)], [own, own]), own)(tall)
    assert found.labels.shape == (1500, 64)
    assert heights and max(heights) <= module.STRIP and sum(heights) >= 1500


def test_members_must_agree() -> None:
    own = processor()
    with pytest.raises(UsageError, match="the classes differ, and so do not average"):
        Ensemble([network(0), network(1, num_labels=3)], [own, own])
    other = SegformerImageProcessor(do_resize=False, value_range=(0, 1000))
    with pytest.raises(UsageError, match="takes other channels or values"):
        Segmenter(Ensemble([network(0), network(1)], [own, other]), own)


def test_folders_are_opened_together(tmp_path: Path, image: np.ndarray) -> None:
    for number in range(2):
        network(number).save_pretrained(tmp_path / str(number))
        processor().save_pretrained(tmp_path / str(number))
    folders = [tmp_path / "0", tmp_path / "1"]
    both = open_networks(folders, "cpu")
    assert isinstance(both, Ensemble) and (precision_of(both, "auto"), engine_of(both)) == ("fp32", "torch")
    assert both.num_parameters() == 2 * both.members[0].num_parameters()  # type: ignore[operator]
    assert not isinstance(open_networks(folders[:1], "cpu"), Ensemble)
    expected = Segmenter(Ensemble([network(0), network(1)], [processor()] * 2), processor())(image)
    assert np.array_equal(predict(both, image), expected.labels)
