"""In which form a model's processor takes images, and in which precision a model runs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from segtune.data.config import TransformConfig
from segtune.inference.processor import processor_from_transforms
from segtune.inference.protocol import InferenceProtocol
from segtune.inference.segmenter import Segmenter, form_of, joined
from segtune.segformer.image_processing_segformer import SegformerImageProcessor


@pytest.mark.parametrize(("value_range", "raw"), [(None, False), ((0, 255), True), ((0, 10000), True), ((-1, 1), True)])
def test_a_declared_range_of_values_is_stored(value_range: Any, raw: bool) -> None:
    """Also one that happens to be that of 8-bit pictures: files are read as in training."""
    transforms = TransformConfig(value_range=value_range, mean=(0.5,) * 4, std=(0.1,) * 4)
    processor = SegformerImageProcessor.from_dict(processor_from_transforms(transforms).to_dict())
    assert form_of(processor) == (4, raw)


@pytest.mark.parametrize(
    ("factor", "raw"),
    [(0.00392156862745098, False), (0.003921569, False), (1 / 65535, True), (1.0, True)],
)
def test_processors_without_a_range_tell_it_by_their_factor(factor: float, raw: bool) -> None:
    """As those of published checkpoints do."""
    processor = SegformerImageProcessor.from_dict({"rescale_factor": factor})
    assert processor.value_range is None
    assert form_of(processor) == (3, raw)


class Product(nn.Module):
    """Logits out of one product, whose type is kept."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, pixel_values: Tensor) -> Any:
        self.computed = self.layer(pixel_values[..., ::4, ::4].movedim(1, -1))
        return SimpleNamespace(logits=self.computed.movedim(-1, 1))


@pytest.mark.parametrize(
    ("precision", "weights", "computed"),
    [
        ("auto", torch.float32, torch.float32),
        ("fp32", torch.float32, torch.float32),
        ("bf16", torch.float32, torch.bfloat16),
        ("auto", torch.bfloat16, torch.bfloat16),  # such a model runs as it is
    ],
)
def test_a_model_runs_in_the_precision_that_is_asked_for(
    precision: Any, weights: torch.dtype, computed: torch.dtype
) -> None:
    model = Product().to(weights)
    segmenter = Segmenter(model, SegformerImageProcessor(do_resize=False), precision=precision)
    assert segmenter(np.zeros((8, 8, 3), dtype=np.uint8)).labels.shape == (8, 8)
    assert model.computed.dtype == computed


# --- as on a GPU -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["cuda", "mps"])
@pytest.mark.parametrize("settings", [{}, {"size": {"shortest_edge": 12}}, {"do_rescale": False, "do_resize": False}])
def test_on_a_device_pictures_travel_as_bytes_and_mean_the_same(
    monkeypatch: pytest.MonkeyPatch, kind: str, settings: dict[str, Any]
) -> None:
    """The ways of a device, on CPU tensors: the same predictions, whole and in windows, and of several in a batch."""
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (20, 24, 3), dtype=np.uint8) for _ in range(5)]
    torch.manual_seed(0)
    processor = SegformerImageProcessor(**settings)

    def predictions(protocol: InferenceProtocol, size: int) -> list[tuple[int, Any]]:
        segmenter = Segmenter(model, processor, protocol, size, precision="fp32")
        answers = segmenter.segment(((key, segmenter.open(image)) for key, image in enumerate(images)), confidence=True)
        return [(key, joined(strips)) for key, strips in answers]

    model, seen = Product().eval(), []
    ways = ((InferenceProtocol(), 2), (InferenceProtocol(), 1), (InferenceProtocol(window=32, flip=True), 1))
    expected = [predictions(*way) for way in ways]
    monkeypatch.setattr(Segmenter, "_kind", kind)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    monkeypatch.setattr(torch.cuda, "Event", lambda: SimpleNamespace(record=lambda: None, synchronize=lambda: None))
    normalized = Segmenter._normalized
    monkeypatch.setattr(
        Segmenter, "_normalized", lambda self, pixels: (seen.append(pixels.dtype), normalized(self, pixels))[1]
    )
    for way, before in zip(ways, expected, strict=True):
        for (key, one), (other, two) in zip(predictions(*way), before, strict=True):
            assert key == other
            np.testing.assert_array_equal(one.labels, two.labels)
            np.testing.assert_allclose(one.confidence, two.confidence, atol=1e-5)
    assert set(seen) == {torch.uint8}


def test_a_gpu_has_the_next_batch_before_the_last_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    segmenter = Segmenter(Product(), SegformerImageProcessor())
    for kind, expected in (("cpu", "a A b B c C"), ("cuda", "a b A c B C")):
        monkeypatch.setattr(Segmenter, "_kind", kind)
        order.clear()
        for key, _ in segmenter._one_ahead((order.append(name), (name, []))[1] for name in "abc"):
            order.append(key.upper())
        assert " ".join(order) == expected
