"""A survey looks at each image once, leaves out what cannot be read, and goes on where it was stopped."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from segtune.errors import DataError, UsageError
from segtune.inference.protocol import InferenceProtocol
from segtune.inference.segmenter import Segmenter
from segtune.segformer.configuration_segformer import SegformerConfig
from segtune.segformer.image_processing_segformer import SegformerImageProcessor
from segtune.segformer.modeling_segformer import SegformerForSemanticSegmentation
from segtune.segformer.upsampling import upsample
from segtune.selection.acquisition import UncertaintyGrid
from segtune.selection.encoder_features import PooledFeatures
from segtune.selection.survey import FIELDS, Pool, survey
from support.networks import TINY

WHOLE, WINDOWS, FLIPPED = {}, {"window": 32, "stride": 32}, {"tta": True}


def segmenter(seed: int = 0, batch_size: int = 1, **protocol: Any) -> Segmenter:
    torch.manual_seed(seed)
    network = SegformerForSemanticSegmentation(SegformerConfig(**TINY, num_labels=4)).eval()
    processor = SegformerImageProcessor(do_resize=False)
    chosen = InferenceProtocol.choose(processor, protocol.get("window"), protocol.get("stride"), "tta" in protocol)
    return Segmenter(PooledFeatures(network), processor, chosen, batch_size)


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{name}.png" for name in "abcde"]
    for number, path in enumerate(paths):
        size = (64, 96) if number % 2 else (96, 64)
        noise = np.random.default_rng(number).integers(0, 255, (*size, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
    return paths


def same(first: Pool, second: Pool) -> bool:
    paths = [image.path for image in first.images] == [image.path for image in second.images]
    return paths and all(np.array_equal(first.table(name), second.table(name)) for name in FIELDS)


def test_uncertainty_and_features_are_those_of_the_plain_formulas(images: list[Path], tmp_path: Path) -> None:
    own = segmenter()
    pool = survey(own, images[:1], 4, tmp_path / "record.jsonl")
    network: Any = own.model.network
    with torch.inference_mode():
        values = own.processor([Image.open(images[0])], return_tensors="pt")["pixel_values"]
        output = network(values, output_hidden_states=True)
        best, labels = upsample(output.logits, (96, 64)).softmax(1).max(1)
    grid = UncertaintyGrid((96, 64), 4)
    grid.add(labels[0].numpy(), best[0].numpy())
    expected = grid.result()  # but for pixels where two classes are equal up to rounding
    assert pool.images[0].sums.sum() == pytest.approx(expected.sums.sum(), rel=1e-5)
    assert np.abs(pool.images[0].pixels - expected.pixels).sum() < 20
    assert pool.images[0].features == pytest.approx(output.hidden_states[-1].mean((2, 3))[0].numpy(), abs=1e-5)


@pytest.mark.parametrize("protocol", [WHOLE, WINDOWS, FLIPPED], ids=["whole", "windows", "tta"])
def test_batches_and_order_make_no_difference(images: list[Path], tmp_path: Path, protocol: dict[str, Any]) -> None:
    one = survey(segmenter(**protocol), images, 4, tmp_path / "1")
    two = survey(segmenter(batch_size=2, **protocol), images[::-1], 4, tmp_path / "2")
    assert [image.path for image in two.images] == images[::-1]
    for name in FIELDS:
        assert np.allclose(one.table(name), two.table(name)[::-1], rtol=1e-4, atol=1e-5), name


@pytest.mark.parametrize("protocol", [WHOLE, WINDOWS], ids=["whole", "windows"])
def test_what_cannot_be_read_is_named_and_left_out(
    images: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture, protocol: dict[str, Any]
) -> None:
    whole = survey(segmenter(**protocol), images, 4, tmp_path / "whole")
    images[1].write_bytes(images[1].read_bytes()[:200])
    images[3].write_bytes(b"")
    pool = survey(segmenter(**protocol), [*images, tmp_path / "gone.png"], 4, tmp_path / "record")
    assert [image.path.stem for image in pool.images] == ["a", "c", "e"]
    assert np.array_equal(pool.table("features"), whole.table("features")[::2])
    assert list(pool.faults) == [str(path) for path in (images[1], images[3], tmp_path / "gone.png")]
    assert all(path in fault for path, fault in pool.faults.items())
    assert len(caplog.messages) == 3
    with pytest.raises(DataError, match=r"none of the 1 images can be read: .*d\.png"):
        survey(segmenter(), images[3:4], 4, tmp_path / "nothing")


def test_it_goes_on_where_it_was_stopped(images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = tmp_path / "record.jsonl"
    whole = survey(segmenter(), images, 4, record)
    lines = record.read_bytes().splitlines(keepends=True)
    assert len(lines) == 6
    record.write_bytes(b"".join(lines[:3]) + lines[3][:50])  # killed while the third image was noted
    own = segmenter()
    opened: list[str] = []
    monkeypatch.setattr(own, "open", lambda path: (opened.append(path.stem), Segmenter.open(own, path))[1])
    assert same(survey(own, images, 4, record, resume=True), whole)
    assert opened == ["c", "d", "e"]
    assert record.read_bytes().splitlines(keepends=True) == lines
    os.utime(images[4], ns=(0, 0))  # changed since
    survey(own, images[2:], 4, record, resume=True)
    assert opened == ["c", "d", "e", "e"]
    assert not same(survey(segmenter(1), images, 4, record), whole)  # anew
    with pytest.raises(UsageError, match="notes of images that were made with weights"):
        survey(segmenter(), images, 4, record, resume=True)
    calibrated = segmenter(1)
    calibrated.temperature = 1.5
    with pytest.raises(UsageError, match=r"made with temperature 1\.0, now it is 1\.5"):
        survey(calibrated, images, 4, record, resume=True)
    with pytest.raises(UsageError, match="made with protocol whole, now it is slide 32"):
        survey(segmenter(1, **WINDOWS), images, 4, record, resume=True)


def test_rows_of_another_form_are_looked_at_again(images: list[Path], tmp_path: Path) -> None:
    record = tmp_path / "record.jsonl"
    whole = survey(segmenter(), images, 4, record)
    first, *rows = record.read_text(encoding="utf-8").splitlines()
    damaged = [json.dumps({"image": str(images[0])}), "[]", "x", *rows[1:]]
    record.write_text("\n".join([first, *damaged]) + "\n", encoding="utf-8")
    assert same(survey(segmenter(), images, 4, record, resume=True), whole)


@pytest.mark.parametrize(
    "damage",
    [
        lambda row: {name: value for name, value in row.items() if name != "features"},
        lambda row: row | {"sums": 5},
        lambda row: row | {"sums": [*row["sums"], 1.0]},
        lambda row: row | {"pixels": ["a"] * 4},
        lambda row: row | {"features": row["features"][:-1]},
        lambda row: row | {"features": [float("nan")] * len(row["features"])},
    ],
)
def test_a_damaged_line_is_looked_at_again(
    damage: Any, images: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own, record = segmenter(), tmp_path / "record.jsonl"
    whole = survey(own, images, 4, record)
    lines = record.read_text().splitlines()
    lines[2] = json.dumps(damage(json.loads(lines[2])))
    record.write_text("\n".join(lines) + "\n")
    assert same(survey(own, images, 4, record, resume=True), whole)
    assert "1 lines are damaged, their images are looked at again" in caplog.text
