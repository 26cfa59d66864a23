"""Requests of the web demo, with a model that answers the red channel: what `segtune predict` writes, within limits."""

from __future__ import annotations

import json
import os
import struct
import time
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from PIL.ImageFile import ImageFile
from torch import nn

from segtune.errors import DataError
from segtune.inference.outputs import Wanted, plan_targets
from segtune.inference.predict_files import predict_files
from segtune.inference.protocol import InferenceProtocol
from segtune.inference.segmenter import Segmenter
from segtune.labels.label_map import LabelMap
from segtune.segformer.image_processing_segformer import SegformerImageProcessor
from segtune.webdemo import request
from segtune.webdemo.request import Limits, about, colored, sampled, segment_files, small_picture

LABELS = LabelMap.from_names(["sky", "road", "car"])
ALL = Wanted(overlay=True, confidence="png", polygons="geojson")


class RedChannel(nn.Module):
    """Answers, at a quarter of the size, with the class that the red value names."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))
        self.seen: list[tuple[int, ...]] = []

    def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
        self.seen.append(tuple(pixel_values.shape[2:]))
        red = pixel_values[:, 0, ::4, ::4].round().long()
        return SimpleNamespace(logits=4 * F.one_hot(red, 3).movedim(-1, 1).float())


@pytest.fixture
def segmenter() -> Segmenter:
    fields = {"image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    processor = SegformerImageProcessor(do_resize=False, do_rescale=False, do_normalize=False, **fields)
    return Segmenter(RedChannel().eval(), processor, InferenceProtocol())


def save(path: Path, height: int = 64, width: int = 96, car: int = 32) -> Path:
    """Sky, and `car` columns of car on the right."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, width - car :, 0] = 2
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def test_files_are_those_of_predict(segmenter: Segmenter, tmp_path: Path) -> None:
    uploads = [save(tmp_path / "in" / "a.png"), save(tmp_path / "in" / "b.png", car=64)]
    output, found = segment_files(segmenter, LABELS, uploads, tmp_path / "demo", ALL, Limits())
    targets = plan_targets(uploads, tmp_path / "predicted", ALL)
    predict_files(segmenter, LABELS, uploads, targets, tmp_path / "predicted", ALL)
    written = {path.name: path.read_bytes() for path in output.iterdir()}
    assert written == {path.name: path.read_bytes() for path in (tmp_path / "predicted").iterdir()}
    assert len(written) == 8
    assert [[path.name for path in one.files] for one in found] == [
        [f"{name}{end}" for end in (".png", "_overlay.png", "_confidence.png", ".geojson")] for name in "ab"
    ]
    assert [path.name for path in output.parent.iterdir()] == ["masks"]  # the pictures are gone


def test_what_is_told_of_a_picture(segmenter: Segmenter, tmp_path: Path) -> None:
    _, (one,) = segment_files(segmenter, LABELS, [save(tmp_path / "a.png")], tmp_path / "demo", Wanted(), Limits())
    told = about(one, LABELS)
    shares = {item["name"]: item.pop("share") for item in told["classes"]}
    assert shares == pytest.approx({"sky": 2 / 3, "car": 1 / 3}, abs=0.03)  # logits are interpolated at the border
    assert told == {
        "name": "a.png",
        "height": 64,
        "width": 96,
        "protocol": "whole",
        "classes": [
            {"id": 0, "name": "sky", "color": "#{:02x}{:02x}{:02x}".format(*LABELS.colors[0])},
            {"id": 2, "name": "car", "color": "#{:02x}{:02x}{:02x}".format(*LABELS.colors[2])},
        ],
    }
    json.dumps(told)


def test_pictures_of_one_name_do_not_meet(segmenter: Segmenter, tmp_path: Path) -> None:
    uploads = [save(tmp_path / place / "a.png", car=car) for place, car in (("x", 16), ("y", 32), ("z", 64))]
    output, found = segment_files(segmenter, LABELS, uploads, tmp_path / "demo", Wanted(polygons="coco"), Limits())
    assert [one.name for one in found] == ["a.png", "a-2.png", "a-3.png"]
    assert [round(1 - one.shares[0].part, 1) for one in found] == [0.2, 0.3, 0.3]
    assert all(one.files[-1] == output / "annotations.coco.json" for one in found)
    images = json.loads((output / "annotations.coco.json").read_text())["images"]
    assert [image["file_name"] for image in images] == ["a.png", "a-2.png", "a-3.png"]


def test_large_pictures_are_cut_into_windows_unless_told_otherwise(
    segmenter: Segmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request, "LARGEST_WHOLE", 96 * 128)
    monkeypatch.setattr(request, "WINDOW", 64)
    uploads = [save(tmp_path / "a.png", 96, 128), save(tmp_path / "b.png", 600, 128)]
    told: list[tuple[float, str]] = []
    tell = lambda part, what: told.append((part, what))  # noqa: E731
    _, found = segment_files(segmenter, LABELS, uploads, tmp_path / "demo", Wanted(), Limits(), tell=tell)
    assert [one.protocol for one in found] == ["whole", "slide 64 stride 48"]
    assert max(segmenter.model.seen[1:]) == (64, 64)
    parts = [part for part, _ in told]
    assert parts == sorted(parts) and parts[0] == 0.0 and parts[-1] == 1.0
    assert 0.5 + 256 / 1200 in parts  # by rows
    assert {what for _, what in told} == {"picture 1 of 2", "picture 2 of 2"}
    _, (whole,) = segment_files(segmenter, LABELS, uploads[1:], tmp_path / "demo", Wanted(), Limits(), may_cut=False)
    assert whole.protocol == "whole"


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (Limits(megabytes=1e-4), r"^a\.png has 0\.0 MB: at most 0\.0001 are taken$"),
        (Limits(megapixels=0.006), r"^a\.png has 96 x 64 pixels: at most 0\.006 million are taken$"),
        (Limits(pictures=0), r"^1 picture: at most 0 are taken at once$"),
        (Limits(seconds=-1), r"^this takes longer than -1 s: give a smaller picture, or fewer of them$"),
    ],
)
def test_limits(segmenter: Segmenter, tmp_path: Path, limits: Limits, words: str) -> None:
    upload = save(tmp_path / "a.png")
    with pytest.raises(DataError, match=words):
        segment_files(segmenter, LABELS, [upload], tmp_path / "demo", Wanted(), limits)
    assert not (tmp_path / "demo").exists() or list((tmp_path / "demo").iterdir()) == []
    assert segmenter.model.seen == []


def test_a_picture_of_a_huge_size_is_refused_before_it_is_decoded(
    segmenter: Segmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = b"IHDR" + struct.pack(">2I5B", 60_000, 60_000, 1, 0, 0, 0, 0)
    header = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + size + struct.pack(">I", zlib.crc32(size))
    (tmp_path / "huge.png").write_bytes(header + struct.pack(">I", 2**20) + b"IDAT" + bytes(100))
    monkeypatch.setattr(ImageFile, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(DataError, match=r"^huge\.png has 60,000 x 60,000 pixels: at most 50 million are taken$"):
        segment_files(segmenter, LABELS, [tmp_path / "huge.png"], tmp_path / "demo", Wanted(), Limits())


@pytest.mark.parametrize("name", ["a.png", "a.txt", "noending"])
def test_what_is_no_picture_is_named_without_its_place(segmenter: Segmenter, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"no picture")
    with pytest.raises(DataError, match=f"^{name}: ") as caught:
        segment_files(segmenter, LABELS, [tmp_path / name], tmp_path / "demo", Wanted(), Limits())
    assert str(tmp_path) not in str(caught.value)
    assert list((tmp_path / "demo").iterdir()) == []


def test_pictures_of_the_page(tmp_path: Path) -> None:
    picture = small_picture(save(tmp_path / "a.png", 1500, 3000))
    assert picture.shape == (512, 1024, 3)
    ids = np.arange(16, dtype=np.uint8).reshape(4, 4) % 3
    assert np.array_equal(sampled(ids, (2, 4)), ids[[1, 3]])
    assert np.array_equal(sampled(ids, (4, 4)), ids)
    grey = np.full((1, 3, 3), 100, np.uint8)
    shown = colored(grey, np.array([[0, 1, 2]], np.uint8), LABELS, [1])
    assert shown[0, [0, 2]].tolist() == [[100] * 3] * 2
    assert shown[0, 1].tolist() == [round(35 + 0.65 * value) for value in LABELS.colors[1]]


def test_uploads_are_not_touched(segmenter: Segmenter, tmp_path: Path) -> None:
    upload = save(tmp_path / "a.png")
    os.utime(upload, (1, 1))
    before = upload.read_bytes()
    segment_files(segmenter, LABELS, [upload], tmp_path / "demo", Wanted(), Limits())
    assert upload.read_bytes() == before and upload.stat().st_mtime == 1 < time.time()
