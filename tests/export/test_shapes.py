"""Exports of networks of the usual sizes, on both runtimes: B2 with 60 labels, one logit, four channels, odd images."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

import segtune
from benchmarks.export_agreement import RANDOM, write_random
from segtune.engines.onnx_model import logits_model
from segtune.export import checkpoint_export
from segtune.export.checkpoint_export import Settings, export_checkpoint
from segtune.export.sources import Source, source_of_images

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")
pytest.importorskip("onnxscript")
pytestmark = pytest.mark.slow

SIZES = [(97, 65), (65, 97), (125, 167), (120, 160)]  # height, width


class Exported(NamedTuple):
    checkpoint: Path
    images: list[Path]
    source: Source
    graph: Any


@pytest.fixture(scope="module", params=RANDOM)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A checkpoint of random weights whose every class wins somewhere, its graph, and pictures of several sizes."""
    folder, fields = tmp_path_factory.mktemp("shape"), RANDOM[request.param]
    channels = fields.get("num_channels", 3)
    (folder / "images").mkdir()
    images = []
    for number, (height, width) in enumerate(SIZES):
        patches = np.random.default_rng(number).integers(0, 256, (9, 9, channels), dtype=np.uint8)
        images.append(folder / "images" / f"{number}.{'png' if number % 2 else 'tif'}")
        Image.fromarray(patches).resize((width, height), Image.Resampling.BICUBIC).save(images[-1])
    write_random(folder / "checkpoint", fields, np.asarray(Image.open(images[-1])))
    source = source_of_images(str(folder / "checkpoint"), images, len(images))
    return Exported(folder / "checkpoint", images, source, logits_model(source.model))


@pytest.mark.parametrize("target", ["onnx", "openvino"])
def test_masks_are_those_of_the_checkpoint(
    case: Exported, target: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint_export, "logits_model", lambda model, size: case.graph)
    output = tmp_path / "exported"
    found = export_checkpoint(case.source, target, output, Settings())  # refuses less than 0.9995
    of_fp32 = [entry for entry in found["files"] if entry["precision"] == "fp32"]
    assert [entry["whole_chain"] for entry in of_fp32] == [False, True]
    for entry in of_fp32:
        assert entry["images"] == len(SIZES) and entry["pixels"] == sum(h * w for h, w in SIZES)
        assert entry["differing_pixels"] == entry["of_these_ties"]
    engine = "onnxruntime" if target == "onnx" else "openvino"
    expected = segtune.predict(case.checkpoint, case.images)
    masks = segtune.predict(output, case.images, engine=engine, precision="fp32")
    for one, other, size in zip(expected, masks, SIZES, strict=True):
        assert one.shape == other.shape == size
        assert (one == other).mean() >= 0.9995
    assert len(np.unique(np.concatenate([mask.ravel() for mask in expected]))) > 1
