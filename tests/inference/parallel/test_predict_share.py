"""Shares of many files: every mask once, and what is there stays as it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from segtune.errors import DataError, UsageError
from segtune.inference.outputs import COCO_FILE, Wanted, plan_targets
from segtune.inference.parallel.predict_share import Predicted, predict_share
from segtune.inference.parallel.processes import Processes
from segtune.inference.predict_files import predict_files
from segtune.inference.segmenter import Segmenter
from segtune.labels.label_map import LabelMap
from segtune.segformer.image_processing_segformer import SegformerImageProcessor

LABELS = LabelMap.from_names(["dark", "bright"])
SIDES = (16, 20, 24, 28, 32, 36, 40)
Predict = Callable[..., Predicted | None]


class Red(nn.Module):
    """Answers whether the red channel is bright."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(1))

    def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
        red = nn.functional.avg_pool2d(pixel_values[:, :1], 4, ceil_mode=True)
        return SimpleNamespace(logits=torch.cat([-red, red], 1) * self.factor)


def segmenter(factor: float = 1.0) -> Segmenter:
    model = Red()
    model.factor.data.fill_(factor)
    return Segmenter(model, SegformerImageProcessor(do_resize=False), precision="fp32")


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    (tmp_path / "in").mkdir()
    generator = np.random.default_rng(0)
    for number, side in enumerate(SIDES):
        coarse = generator.integers(0, 2, (4, 4, 3), np.uint8) * 255
        Image.fromarray(coarse).resize((side, side)).save(tmp_path / "in" / f"{number}.png")
    return sorted((tmp_path / "in").iterdir())


@pytest.fixture
def predict(photos: list[Path], tmp_path: Path) -> Predict:
    def run(
        index: int = 0, count: int = 1, wanted: Wanted | None = None, *, resume: bool = False, factor: float = 1.0
    ) -> Predicted | None:
        out, wanted = tmp_path / "out", wanted or Wanted()
        targets = plan_targets(photos, out, wanted, overwrite=True)
        job = (segmenter(factor), LABELS, photos, targets, out, wanted)
        return predict_share(*job, Processes(index, count), resume=resume)

    return run


def masks(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.*") if path.is_file()}


def whole(photos: list[Path], folder: Path, wanted: Wanted) -> dict[str, bytes]:
    """What one process makes that knows nothing of shares."""
    predict_files(segmenter(), LABELS, photos, plan_targets(photos, folder, wanted), folder, wanted)
    return masks(folder)


@pytest.mark.parametrize("wanted", [Wanted(), Wanted(overlay=True, confidence="png", polygons="coco")])
def test_shares_make_what_one_process_makes(
    predict: Predict, photos: list[Path], tmp_path: Path, wanted: Wanted
) -> None:
    expected = whole(photos, tmp_path / "alone", wanted)
    assert predict(2, 3, wanted) is None and predict(0, 3, wanted) is None
    assert COCO_FILE not in masks(tmp_path / "out") and len(list((tmp_path / "out").glob("?.png"))) == 5
    assert predict(1, 3, wanted) == Predicted(7, 0)
    assert masks(tmp_path / "out") == expected
    assert [path.name for path in (tmp_path / "out" / ".predict").iterdir()] == ["settings.json"]


def test_the_command_called_again_does_nothing(predict: Predict, photos: list[Path], tmp_path: Path) -> None:
    wanted = Wanted(polygons="coco")
    predict(wanted=wanted)
    for photo in photos:
        photo.write_bytes(b"cannot be read")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir() if path.is_file()}
    assert predict(wanted=wanted, resume=True) == Predicted(7, 7)
    assert [predict(index, 2, wanted, resume=True) for index in (0, 1)] == [None, Predicted(7, 3)]
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_what_is_missing_is_made(predict: Predict, photos: list[Path], tmp_path: Path) -> None:
    wanted = Wanted(polygons="coco")
    expected = whole(photos, tmp_path / "alone", wanted)
    broken = photos[4].read_bytes()
    photos[4].write_bytes(b"cannot be read")
    with pytest.raises(DataError, match=r"4\.png"):
        predict(wanted=wanted)
    assert COCO_FILE not in masks(tmp_path / "out") and 0 < len(masks(tmp_path / "out")) < 7
    photos[4].write_bytes(broken)
    result = predict(wanted=wanted, resume=True)
    assert result is not None and result.masks == 7 and result.before >= 3
    assert masks(tmp_path / "out") == expected
    (tmp_path / "out" / "2.png").unlink()
    assert predict(resume=True) == Predicted(7, 6)
    assert masks(tmp_path / "out") == expected
    (tmp_path / "out" / COCO_FILE).write_text(json.dumps({"images": [{"file_name": "0.png"}]}))
    assert predict(wanted=wanted, resume=True) == Predicted(7, 0)  # its polygons are those of all images
    assert masks(tmp_path / "out") == expected


def test_what_is_there_is_kept_unless_asked(predict: Predict, tmp_path: Path) -> None:
    predict()
    with pytest.raises(UsageError, match=r"out/0\.png and 6 more exist already; name another folder, or say --resume"):
        predict()
    with pytest.raises(UsageError, match=r"masks that were made with weights \w{16}, now it is \w{16}: name another"):
        predict(resume=True, factor=2.0)
    with pytest.raises(UsageError, match=r"out/1\.png and 2 more exist already"):
        predict(1, 2)


def test_masks_of_others_are_no_reason_to_stop(predict: Predict, tmp_path: Path) -> None:
    """Processes begin at different times: the masks that one finds may be those of another one, of the same command."""
    predict(0, 2)
    assert predict(1, 2) == Predicted(7, 0)
