"""Files in, files out: what `segtune predict` writes, with a model that answers the red channel."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import nibabel
import numpy as np
import pytest
import rasterio
import torch
import torch.nn.functional as F
from PIL import Image
from rasterio.features import rasterize
from torch import nn

from segtune.errors import DataError, UsageError
from segtune.imageio.raster import any_size
from segtune.imageio.video import VideoReader, VideoWriter
from segtune.inference.outputs import Wanted, plan_targets, with_frames
from segtune.inference.predict_files import predict_files
from segtune.inference.protocol import InferenceProtocol
from segtune.inference.segmenter import Segmenter
from segtune.labels.label_map import LabelMap
from segtune.segformer.configuration_segformer import SegformerConfig
from segtune.segformer.image_processing_segformer import SegformerImageProcessor
from segtune.segformer.modeling_segformer import SegformerForSemanticSegmentation

LABELS = LabelMap.from_names(["sky", "road", "car"])
PLACE = {"crs": "EPSG:32633", "transform": rasterio.Affine(10, 0, 300000, 0, -10, 5600000)}
WHOLE, SLIDE = InferenceProtocol(), InferenceProtocol(64, 48)


class RedChannel(nn.Module):
    """Answers, at a quarter of the size, with the class that the red value names."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
        red = pixel_values[:, 0, ::4, ::4].round().long()
        return SimpleNamespace(logits=4 * F.one_hot(red, 3).movedim(-1, 1).float())


def segmenter(protocol: InferenceProtocol, batch_size: int = 1, channels: int = 3) -> Segmenter:
    fields = {"image_mean": [0.0] * channels, "image_std": [1.0] * channels}
    processor = SegformerImageProcessor(do_resize=False, do_rescale=False, do_normalize=False, **fields)
    return Segmenter(RedChannel(), processor, protocol, batch_size)


def image(height: int, width: int, channels: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (H, W, C) whose red values are classes in 8x8 blocks, and these classes (H, W)."""
    blocks = np.random.default_rng(height).integers(0, 3, (-(-height // 8), -(-width // 8)), dtype=np.uint8)
    labels = blocks.repeat(8, axis=0).repeat(8, axis=1)[:height, :width]
    pixels = np.full((height, width, channels), 99, dtype=np.uint8)
    pixels[:, :, 0] = labels
    return pixels, labels


def save_geotiff(path: Path, pixels: np.ndarray, **fields: object) -> None:
    height, width, count = pixels.shape
    profile = {"driver": "GTiff", "height": height, "width": width, "count": count, "dtype": pixels.dtype.name}
    with rasterio.open(path, "w", **profile, **PLACE, **fields) as file:
        file.write(pixels.transpose(2, 0, 1))


def run(
    sources: list[Path], output: Path, protocol: InferenceProtocol, wanted: Wanted | None = None, **fields: int
) -> int:
    wanted = wanted or Wanted()
    targets = plan_targets(sources, output, wanted)
    return predict_files(segmenter(protocol, **fields), LABELS, sources, targets, output, wanted)


def ids(path: Path) -> np.ndarray:
    with Image.open(path) as mask:
        return np.array(mask)


@pytest.mark.parametrize("kind", ["tif", "geo", "nii.gz"])
@pytest.mark.parametrize("wanted", ["all", "first"])
def test_pages_and_slices_become_masks(tmp_path: Path, kind: str, wanted: Literal["all", "first"]) -> None:
    stack = [image(64, 64)[0], image(72, 64)[0][:64], image(80, 64)[0][:64]]
    path = tmp_path / "in" / ("a.nii.gz" if kind == "nii.gz" else "a.tif")
    path.parent.mkdir()
    if kind == "nii.gz":
        volume = np.stack([page[:, :, 0].T for page in stack], axis=-1)  # (X, Y, Z)
        nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), path)
    else:
        first, *rest = map(Image.fromarray, stack)
        first.save(path, save_all=True, append_images=rest, tiffinfo={33550: (1.0, 1.0, 0.0)} if kind == "geo" else {})
    sources, frames = with_frames([path], wanted)
    targets = plan_targets(sources, tmp_path / "out", Wanted(confidence="png"), frames=frames)
    found = predict_files(segmenter(WHOLE), LABELS, sources, targets, tmp_path / "out", Wanted(confidence="png"))
    expected = [page[:, :, 0] for page in stack[: 3 if wanted == "all" else 1]]
    assert found == len(expected)
    for number, labels in enumerate(expected):
        (mask,) = (tmp_path / "out").glob(f"a@p{number}.*")
        centres = (slice(2, None, 8), slice(2, None, 8))
        assert np.array_equal(ids(mask)[centres], labels[centres])
        assert (tmp_path / "out" / f"a@p{number}_confidence.png").is_file()
    assert len(list((tmp_path / "out").iterdir())) == 2 * len(expected)
    with pytest.raises(DataError, match=r"holds 3 pages or frames.*--frames all"):
        run([path], tmp_path / "none", WHOLE)


@pytest.mark.parametrize("protocol", [WHOLE, SLIDE])
def test_pictures_become_masks(tmp_path: Path, protocol: InferenceProtocol) -> None:
    (tmp_path / "in").mkdir()
    sources, truth = [], {}
    for number, size in enumerate([(80, 96), (300, 64), (80, 96), (64, 40)]):
        pixels, truth[f"{number}"] = image(*size)
        sources.append(tmp_path / "in" / f"{number}.png")
        Image.fromarray(pixels).save(sources[-1])
    assert run(sources, tmp_path / "out", protocol, batch_size=2) == 4
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["0.png", "1.png", "2.png", "3.png"]
    for name, labels in truth.items():
        found = ids(tmp_path / "out" / f"{name}.png")
        assert found.shape == labels.shape
        centres = (slice(2, None, 8), slice(2, None, 8))
        assert np.array_equal(found[centres], labels[centres])


@pytest.mark.parametrize("protocol", [WHOLE, SLIDE])
def test_a_geotiff_stays_in_its_place(tmp_path: Path, protocol: InferenceProtocol) -> None:
    pixels, _ = image(320, 280)
    pixels[0, 0] = 1
    save_geotiff(tmp_path / "map.tif", pixels, nodata=1)
    wanted = Wanted(overlay=True, confidence="tif", polygons="geojson")
    run([tmp_path / "map.tif"], tmp_path / "out", protocol, wanted)
    with rasterio.open(tmp_path / "out" / "map.tif") as mask:
        assert (mask.crs.to_epsg(), mask.transform, mask.nodata) == (32633, PLACE["transform"], 255)
        found = mask.read(1)
    assert found[0, 0] == 255  # no data in the input, ignored in the output
    assert (found[1:] != 255).all()
    with rasterio.open(tmp_path / "out" / "map_confidence.tif") as confidence:
        assert (confidence.crs.to_epsg(), confidence.transform) == (32633, PLACE["transform"])
        values = confidence.read(1)
    assert values.dtype == np.float32
    assert values[11, 11] == pytest.approx(np.exp(4) / (np.exp(4) + 2), abs=1e-3)
    content = json.loads((tmp_path / "out" / "map.geojson").read_text())
    shapes = [(feature["geometry"], feature["properties"]["id"]) for feature in content["features"]]
    assert np.array_equal(rasterize(shapes, found.shape, fill=255, transform=PLACE["transform"]), found)
    with Image.open(tmp_path / "out" / "map_overlay.png") as picture:
        assert picture.width == 560  # enlarged


def test_no_data_is_not_ignored_where_a_mask_cannot_say_so(tmp_path: Path) -> None:
    save_geotiff(tmp_path / "map.tif", image(64, 64)[0], nodata=1)
    label_map = LabelMap.from_names(["sky", "road", "car"], ignore_index=-100)
    sources, out = [tmp_path / "map.tif"], tmp_path / "out"
    targets = plan_targets(sources, out, Wanted())
    predict_files(segmenter(WHOLE), label_map, sources, targets, out, Wanted())
    assert ids(out / "map.tif").max() == 2


@pytest.mark.parametrize("protocol", [WHOLE, SLIDE])
def test_more_channels_than_colors(tmp_path: Path, protocol: InferenceProtocol) -> None:
    pixels, labels = image(100, 70, channels=5)
    save_geotiff(tmp_path / "map.tif", pixels)
    run([tmp_path / "map.tif"], tmp_path / "out", protocol, channels=5)
    assert np.array_equal(ids(tmp_path / "out" / "map.tif")[2::8, 2::8], labels[2::8, 2::8])
    with pytest.raises(DataError, match=r"map\.tif: an image of 5 channels, the model reads 3"):
        run([tmp_path / "map.tif"], tmp_path / "three", protocol)
    run([tmp_path / "map.tif"], tmp_path / "five", protocol, Wanted(overlay=True), channels=5)
    with Image.open(tmp_path / "five" / "map_overlay.png") as picture:
        assert picture.mode == "RGB"  # of the first three


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif"])
def test_large_files_are_read_by_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    pixels, _ = image(400, 200)
    Image.fromarray(pixels).save(tmp_path / name)
    run([tmp_path / name], tmp_path / "whole", SLIDE, Wanted(overlay=True, confidence="png"))
    monkeypatch.setattr("segtune.imageio.raster.LARGE", 1000)
    monkeypatch.setattr("segtune.imageio.raster.open_image", None)
    monkeypatch.setattr("segtune.inference.predict_files.PICTURE_SIDE", 100)
    run([tmp_path / name], tmp_path / "rows", SLIDE, Wanted(overlay=True, confidence="png"))
    for file in ("a.png", "a_confidence.png"):
        assert np.array_equal(ids(tmp_path / "whole" / file), ids(tmp_path / "rows" / file))
    with Image.open(tmp_path / "rows" / "a_overlay.png") as picture:
        assert picture.width == 50 * 5  # every fourth pixel, enlarged
    monkeypatch.undo()
    monkeypatch.setattr("segtune.imageio.raster.LARGE", 1000)
    monkeypatch.setattr("segtune.imageio.raster.find_spec", lambda name: None)
    with caplog.at_level(logging.WARNING):
        run([tmp_path / name], tmp_path / "memory", SLIDE)
    assert f"{name}: read into memory as a whole; pip install 'segtune[geo]'" in caplog.text
    assert np.array_equal(ids(tmp_path / "whole" / "a.png"), ids(tmp_path / "memory" / "a.png"))


def test_turned_photographs_are_not_read_by_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segtune.imageio.raster.LARGE", 1000)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(image(64, 96)[0]).save(tmp_path / "a.jpg", exif=exif)
    run([tmp_path / "a.jpg"], tmp_path / "out", SLIDE)
    assert ids(tmp_path / "out" / "a.png").shape == (96, 64)


def test_pictures_above_pillows_limit_are_read_on_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    Image.fromarray(image(64, 96)[0]).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png: .* PIL\.Image\.MAX_IMAGE_PIXELS = None lifts the limit"):
        run([tmp_path / "a.png"], tmp_path / "out", WHOLE)
    with any_size():
        run([tmp_path / "a.png"], tmp_path / "out", WHOLE)
    assert Image.MAX_IMAGE_PIXELS == 1000
    monkeypatch.undo()
    assert ids(tmp_path / "out" / "a.png").shape == (64, 96)


def test_one_coco_file_for_all(tmp_path: Path) -> None:
    sources = [tmp_path / "in" / name for name in ("x/a.png", "b.png")]
    for source in sources:
        source.parent.mkdir(exist_ok=True, parents=True)
        Image.fromarray(image(64, 40)[0]).save(source)
    run(sources, tmp_path / "out", WHOLE, Wanted(polygons="coco"))
    content = json.loads((tmp_path / "out" / "annotations.coco.json").read_text())
    assert [entry["file_name"] for entry in content["images"]] == ["x/a.png", "b.png"]
    assert {entry["image_id"] for entry in content["annotations"]} == {1, 2}


def test_labelme_names_its_image(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    Image.fromarray(image(64, 40)[0]).save(tmp_path / "in" / "a.png")
    run([tmp_path / "in" / "a.png"], tmp_path / "out" / "deep", WHOLE, Wanted(polygons="labelme", min_region=64))
    content = json.loads((tmp_path / "out" / "deep" / "a.json").read_text())
    assert (tmp_path / "out" / "deep" / content["imagePath"]).resolve() == tmp_path / "in" / "a.png"
    assert {shape["label"] for shape in content["shapes"]} == {"sky", "road", "car"}


def test_a_video_becomes_masks_and_a_video(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "clip.mp4", Fraction(10)) as video:
        for red in (0, 60, 120, 180):
            video.write(np.full((96, 64, 3), (red, 0, 0), dtype=np.uint8))

    class Bright(RedChannel):
        def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
            return super().forward((pixel_values / 80).clamp(0, 2))

    model = segmenter(WHOLE, batch_size=3)
    model.model = Bright()
    sources, wanted = [tmp_path / "clip.mp4"], Wanted(overlay=True)
    targets = plan_targets(sources, tmp_path / "out", wanted)
    assert predict_files(model, LABELS, sources, targets, tmp_path / "out", wanted) == 4
    masks = sorted((tmp_path / "out" / "clip").iterdir())
    assert [mask.name for mask in masks] == [f"{number:06d}.png" for number in range(4)]
    assert [int(np.median(ids(mask))) for mask in masks] == [0, 1, 2, 2]
    assert ids(masks[0]).shape == (96, 64)
    shown = VideoReader(tmp_path / "out" / "clip_overlay.mp4")
    assert (shown.num_frames, shown.rate) == (4, 10)
    assert next(iter(shown)).shape == (480, 320, 3)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["clip", "clip_overlay.mp4"]
    with pytest.raises(UsageError, match="exist already"):
        plan_targets(sources, tmp_path / "out", wanted)


@pytest.mark.parametrize("protocol", [WHOLE, SLIDE])
def test_what_fails_halfway_leaves_no_file(tmp_path: Path, protocol: InferenceProtocol) -> None:
    pixels, _ = image(320, 100)
    pixels[300] = 7  # no class: the model fails
    Image.fromarray(pixels).save(tmp_path / "a.png")
    with pytest.raises(RuntimeError):
        run([tmp_path / "a.png"], tmp_path / "out", protocol, Wanted(confidence="png", polygons="coco"))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / "a.png"]


def test_a_broken_file_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    Image.fromarray(image(64, 40)[0]).save(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "b.jpg").write_text("no image")
    (tmp_path / "in" / "c.tif").write_text("no image")
    (tmp_path / "in" / "d.mp4").write_text("no video")
    with pytest.raises(DataError, match=r"c\.tif"):
        run([tmp_path / "in" / "a.png", tmp_path / "in" / "c.tif"], tmp_path / "c", WHOLE)
    assert not (tmp_path / "c").exists()
    for name in ("b.jpg", "d.mp4"):
        with pytest.raises(DataError, match=name):
            run([tmp_path / "in" / "a.png", tmp_path / "in" / name], tmp_path / name, WHOLE, Wanted(overlay=True))
        assert sorted(path.name for path in (tmp_path / name).iterdir()) == ["a.png", "a_overlay.png"]


PEAK = """
import sys
from pathlib import Path
from segtune.cli.main import main
try:
    main(sys.argv[1:])
except SystemExit as left:
    assert not left.code
print(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="peak memory is read from /proc")
def test_memory_does_not_grow_with_the_height(tmp_path: Path) -> None:
    """Four times the rows: the image has 38 MB more, its quarter-size logits 60 MB more, its mask 13 MB more.

    GDAL's cache of 64 MB is not full after the smaller one.
    """
    model = SegformerForSemanticSegmentation(
        SegformerConfig(
            hidden_sizes=(8, 16, 24, 32), depths=(1, 1, 1, 1), num_attention_heads=(1, 2, 4, 8), decoder_hidden_size=16,
            num_labels=19,
        )
    )  # fmt: skip
    model.save_pretrained(tmp_path / "model")
    peaks = []
    for height in (2048, 8192):
        (tmp_path / str(height)).mkdir()
        source = tmp_path / str(height) / "a.tif"
        save_geotiff(source, image(height, 2048)[0])
        command = ["predict", tmp_path / "model", source, "--output", tmp_path / f"out{height}", "--window", "512"]
        done = subprocess.run(
            [sys.executable, "-c", PEAK, *map(str, command)],
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout.split()[-1]) / 1000)
        assert ids(tmp_path / f"out{height}" / "a.tif").shape == (height, 2048)
    assert peaks[1] - peaks[0] < 75, peaks
