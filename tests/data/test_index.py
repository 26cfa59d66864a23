"""The index: usable samples and problems side by side, nothing raised."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from segtune.data.dataset import DatasetConfig, load_segmentation_dataset, scan_dataset
from segtune.data.index import DatasetIndex, Sample
from segtune.errors import DataError


def write(path: Path, size: tuple[int, int] = (4, 6)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(np.zeros(size, np.uint8)).save(path)


@pytest.fixture
def faulty(tmp_path: Path) -> Path:
    """Three good samples, and one of each fault."""
    for name in ("good", "fine", "sound", "lone image", "other size", "torn", "double"):
        write(tmp_path / f"images/train/{name}.png")
    for name in ("good", "fine", "sound", "lone mask", "torn", "double"):
        write(tmp_path / f"masks/train/{name}.png")
    write(tmp_path / "masks/train/other size.png", (4, 7))
    write(tmp_path / "masks/train/double.tif")
    write(tmp_path / "masks/val/x.png")
    (tmp_path / "images/train/torn.png").write_bytes(b"")
    return tmp_path


def test_samples_and_problems(faulty: Path) -> None:
    index = scan_dataset(DatasetConfig(path=str(faulty), val_fraction=0.3))
    assert {sample.id for sample in index.samples} == {"fine", "good", "sound", "double"}
    assert [sample.split for sample in index.samples] == ["train"] * 3 + ["val"]
    row = next(sample for sample in index.samples if sample.id == "good")
    image, mask = faulty / "images/train/good.png", faulty / "masks/train/good.png"
    assert row == Sample("good", row.split, image, mask, (4, 6))
    assert {problem.kind: problem.files for problem in index.problems} == {
        "split_without_images": ("masks/val",),
        "image_without_mask": ("images/train/lone image.png",),
        "mask_without_image": ("masks/train/lone mask.png",),
        "name_twice": ("masks/train/double.png",),
        "unreadable": ("images/train/torn.png",),
        "size_mismatch": ("images/train/other size.png",),
    }
    with pytest.raises(DataError) as error:
        load_segmentation_dataset(faulty)
    assert all(problem.message in str(error.value) for problem in index.problems)


def test_problem_files_are_all_there_and_the_message_is_short(tmp_path: Path) -> None:
    for number in range(9):
        write(tmp_path / f"images/{number}.png")
    write(tmp_path / "masks/0.png")
    (problem,) = scan_dataset(DatasetConfig(path=str(tmp_path))).problems
    assert problem.files == tuple(f"images/{number}.png" for number in range(1, 9))
    assert problem.message.endswith("(8): " + ", ".join(problem.files[:5]) + " and 3 more")


def test_nothing_left_is_an_error() -> None:
    index = DatasetIndex(Path("data"))
    index.report("unreadable", "files that cannot be read", {"a.png": "a.png"}, "Replace them")
    with pytest.raises(DataError, match=r"data: nothing is left .* files that cannot be read \(1\): a\.png"):
        index.raise_or_skip("skip")
