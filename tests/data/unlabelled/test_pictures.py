from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segtune.data.config import DatasetConfig, TransformConfig
from segtune.data.dataset import open_dataset
from segtune.data.lazy_rows import sample_ids
from segtune.data.unlabelled.pictures import open_unlabelled
from segtune.errors import DataError, UsageError


def picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (8, 10, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    for number, split in enumerate(("train", "train", "val", "test")):
        picture(root / "images" / split / f"s{number}.png", number)
        mask = root / "masks" / split / f"s{number}.png"
        mask.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 10), number % 2, dtype=np.uint8)).save(mask)
    (root / "classes.json").write_text('["a", "b"]')
    return root


def opened(labelled: Path, folder: Path, **fields: Any) -> list[str]:
    config = DatasetConfig(path=str(labelled), unlabelled=str(folder), **fields)
    return sample_ids(open_unlabelled(config, open_dataset(config)[0]))


def test_pictures_of_any_split_are_left_out_by_content_and_by_id(
    labelled: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "segtune")
    folder = tmp_path / "more"
    picture(folder / "new.png", 50)
    picture(folder / "deep" / "other.png", 51)
    shutil.copy(folder / "new.png", folder / "twice.png")
    shutil.copy(labelled / "images" / "test" / "s3.png", folder / "renamed.png")
    with Image.open(labelled / "images" / "val" / "s2.png") as stored:
        stored.save(folder / "another.tif")  # the same pixels in another file
    picture(folder / "s0.png", 52)  # the id of one in train, with other pixels
    picture(folder / "test" / "s3.png", 53)  # an id below the folder of its split
    (folder / "notes.txt").write_text("no picture")
    picture(folder / ".hidden.png", 54)
    assert opened(labelled, folder) == ["deep/other", "new"]
    for part in (
        "2 unlabelled pictures",
        "1 with the pixels of one in test",
        "1 with the pixels of one in val",
        "1 with the id of one in train",
        "1 with the id of one in test",
        "1 copies of each other",
    ):
        assert part in caplog.text


def test_the_folder_of_all_pictures_gives_those_without_a_label(labelled: Path, tmp_path: Path) -> None:
    """Data in which only some have masks, and the folder that all of them came from."""
    shutil.copytree(labelled / "images", tmp_path / "all")
    picture(tmp_path / "all" / "train" / "new.png", 60)
    assert opened(labelled, tmp_path / "all") == ["train/new"]


def test_what_cannot_be_learned_from_is_told(labelled: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"dataset.unlabelled=.*nowhere: there is no such folder"):
        opened(labelled, tmp_path / "nowhere")
    with pytest.raises(
        DataError, match=r"no picture to learn from without labels \(.* with the pixels of one in train"
    ):
        opened(labelled, labelled / "images")
    folder = tmp_path / "more"
    picture(folder / "good.png", 70)
    (folder / "bad.png").write_bytes(b"not a picture")
    with pytest.raises(DataError, match=r"pictures that cannot be read \(1\): bad.png"):
        opened(labelled, folder)
    assert opened(labelled, folder, on_error="skip") == ["good"]
    pages = [Image.new("RGB", (10, 8), color) for color in ("red", "blue")]
    pages[0].save(folder / "pages.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(DataError, match=r"several pages or frames \(1\): pages.tif"):
        opened(labelled, folder, on_error="skip")


def test_masks_are_no_pictures(labelled: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The whole data set is named, in which the masks lie beside the pictures."""
    caplog.set_level("INFO", "segtune")
    picture(labelled / "new" / "n.png", 70)
    assert opened(labelled, labelled) == ["new/n"]
    assert "4 that are masks" in caplog.text


def test_a_picture_that_cannot_be_decoded_is_refused_or_left_out(labelled: Path, tmp_path: Path) -> None:
    """Its header is whole; and one of other channels than the network reads."""
    folder = tmp_path / "more"
    picture(folder / "new.png", 80)
    picture(folder / "torn.png", 81)
    (folder / "torn.png").write_bytes((folder / "torn.png").read_bytes()[:-60])
    np.save(folder / "deep.npy", np.zeros((8, 10, 12), np.uint8))
    config = DatasetConfig(path=str(labelled), unlabelled=str(folder))
    rows, transforms = open_dataset(config)[0], TransformConfig()
    told = r"cannot be learned from \(2\): .*deep.npy: an image of 8 channels.*torn.png.*on_error=skip"
    with pytest.raises(DataError, match=told):
        open_unlabelled(config, rows, transforms)
    found = open_unlabelled(config.model_copy(update={"on_error": "skip"}), rows, transforms)
    assert sample_ids(found) == ["new"]
