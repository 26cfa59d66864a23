"""Contradictions that are asked about before training: pages, nodata that is a class; and masks of several modes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.TiffImagePlugin
import pytest

from segtune.data.checks import check_masks
from segtune.data.config import DatasetConfig
from segtune.data.dataset import open_dataset, save_split
from segtune.data.lazy_rows import decoded, sample_ids
from segtune.data.samples import read_pair
from segtune.errors import DataError, UsageError
from segtune.labels.label_map import LabelMap

LABELS = {"0": "background", "1": "box"}


def box(number: int = 0) -> np.ndarray:
    mask = np.zeros((16, 24), np.uint8)
    mask[2:6, number : number + 5] = 1
    return mask


def write(root: Path, name: str, pages: list[np.ndarray], **options: Any) -> None:
    first, *rest = map(PIL.Image.fromarray, pages)
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    first.save(root / name, save_all=True, append_images=rest, **options) if rest else first.save(
        root / name, **options
    )


def opened(root: Path, labels: Any = LABELS, **settings: Any) -> Any:
    return open_dataset(DatasetConfig(path=str(root), labels=labels, **{"val_fraction": 0, **settings}))


@pytest.fixture
def stacks(tmp_path: Path) -> Path:
    """Three files of four pages each."""
    for file in range(3):
        masks = [box(page) for page in range(4)]
        write(tmp_path, f"masks/vol{file}.tif", masks)
        write(tmp_path, f"images/vol{file}.tif", [mask * 100 + file for mask in masks])
    return tmp_path


def test_pages_are_asked_about(stacks: Path) -> None:
    message = (
        r"several pages or frames \(3\): images/vol0.tif \(4, its mask 4\).*dataset.frames=all makes a sample of each"
    )
    with pytest.raises(DataError, match=message):
        opened(stacks)


def test_pages_become_samples_of_one_split(stacks: Path) -> None:
    rows, label_map = opened(stacks, frames="all", val_fraction=0.34)
    ids = {split: sample_ids(found) for split, found in rows.items()}
    assert sorted(ids["train"] + ids["val"]) == [f"vol{file}@p{page}" for file in range(3) for page in range(4)]
    assert len(ids["val"]) == 4 and len({i.partition("@")[0] for i in ids["val"]}) == 1
    for split, found in rows.items():
        for number, sample_id in enumerate(ids[split]):
            image, labels = read_pair(decoded(found[number]), label_map)
            page = int(sample_id[-1])
            assert labels.tolist() == box(page).tolist()
            assert image[:, :, 0].tolist() == (box(page) * 100 + int(sample_id[3])).tolist()
    assert sum(counts[:, 1].sum() for counts in check_masks(rows, label_map).values()) == 12 * 20
    save_split(rows, stacks / "split.json")
    saved = json.loads((stacks / "split.json").read_text())
    assert sorted(saved["train"] + saved["val"]) == ["vol0", "vol1", "vol2"]
    again, _ = opened(stacks, frames="all", split_file="split.json")
    assert {split: sample_ids(found) for split, found in again.items()} == ids


def test_first_pages_alone(stacks: Path) -> None:
    rows, label_map = opened(stacks, frames="first")
    assert sample_ids(rows["train"]) == ["vol0", "vol1", "vol2"]
    assert read_pair(decoded(rows["train"][1]), label_map)[1].tolist() == box(0).tolist()


def test_tiles_of_pages(stacks: Path) -> None:
    pytest.importorskip("rasterio")
    big = [np.kron(box(page), np.ones((4, 4), np.uint8)) for page in range(2)]
    for kind in ("images", "masks"):
        for path in (stacks / kind).iterdir():
            path.unlink()
        write(stacks, f"{kind}/a.tif", big)
    rows, label_map = opened(stacks, frames="all", tile=48)
    ids = sample_ids(rows["train"])
    assert ids[0] == "a@p0@0,0" and len(ids) == 2 * 4
    place = ids.index("a@p1@0,0")
    assert read_pair(decoded(rows["train"][place]), label_map)[1].tolist() == big[1][:48, :48].tolist()


def test_a_stack_with_a_single_mask_cannot_be_divided(stacks: Path) -> None:
    write(stacks, "masks/vol1.tif", [box()])
    with pytest.raises(DataError, match=r"\(1\): images/vol1.tif \(4, its mask 1\)"):
        opened(stacks, frames="all")
    assert len(opened(stacks, frames="first")[0]["train"]) == 3


# -- nodata -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def rasters(tmp_path: Path) -> Path:
    """Masks whose file says that 0 is nodata."""
    for number in range(3):
        write(tmp_path, f"images/t{number}.png", [box(number) * 100])
        tags = PIL.TiffImagePlugin.ImageFileDirectory_v2()
        tags[42113] = "0"
        write(tmp_path, f"masks/t{number}.tif", [box(number)], tiffinfo=tags)
    return tmp_path


def test_nodata_that_is_a_class_is_asked_about(rasters: Path) -> None:
    message = r"is a class \(3\): masks/t0.tif \(nodata 0, which labels name 'background'\).*dataset.nodata=class"
    with pytest.raises(DataError, match=message):
        opened(rasters)
    with pytest.raises(DataError, match=r"nodata 0"):
        opened(rasters, {"#000000": "background", "#010101": "box"})


@pytest.mark.parametrize(("nodata", "background"), [("class", 16 * 24 - 20), ("ignore", 0)])
def test_nodata_is_what_the_recipe_says(rasters: Path, nodata: str, background: int) -> None:
    rows, label_map = opened(rasters, {**LABELS, "7": "other"}, nodata=nodata)
    labels = read_pair(decoded(rows["train"][0]), label_map)[1]
    assert ((labels == 0).sum(), (labels == 1).sum()) == (background, 20)


def test_nodata_that_no_class_has_is_ignored(rasters: Path) -> None:
    rows, label_map = opened(rasters, {"1": "box", "2": "other"})
    labels = read_pair(decoded(rows["train"][0]), label_map)[1]
    assert ((labels == label_map.ignore_index).sum(), (labels == 0).sum()) == (16 * 24 - 20, 20)


# -- modes ------------------------------------------------------------------------------------------------------------

COLORS = np.array([[0, 0, 0], [200, 30, 60]], np.uint8)


def test_colour_masks_in_several_modes_are_their_colours(tmp_path: Path) -> None:
    palette = PIL.Image.fromarray(1 - box())  # indices that are no ids
    palette.putpalette(COLORS[::-1].tobytes())
    rgb = PIL.Image.fromarray(COLORS[box()])
    for number, mask in enumerate((rgb, palette, rgb.convert("RGBA"))):
        for kind, picture in (("images", rgb), ("masks", mask)):
            (tmp_path / kind).mkdir(exist_ok=True)
            picture.save(tmp_path / kind / f"{number}.png")
    rows, label_map = opened(tmp_path, {"#000000": "background", "#c81e3c": "box"})
    for number in range(3):
        assert read_pair(decoded(rows["train"][number]), label_map)[1].tolist() == box().tolist()
    assert check_masks(rows, label_map)["train"].tolist() == [[16 * 24 - 20, 20, 0]] * 3


def test_ids_of_palette_pictures_are_their_indices() -> None:
    palette = PIL.Image.fromarray(box())
    palette.putpalette(COLORS[::-1].tobytes())
    labels = read_pair({"image": palette, "mask": palette}, LabelMap.from_dict(LABELS))[1]
    assert labels.tolist() == box().tolist()


# -- masks that were compressed with losses ---------------------------------------------------------------------------


@pytest.mark.parametrize(("suffix", "options"), [("jpg", {"quality": 95}), ("webp", {"quality": 60})])
def test_masks_of_a_lossy_format_are_refused(tmp_path: Path, suffix: str, options: dict[str, int]) -> None:
    """Their edges may hold ids that are named, and mean something else."""
    for number in range(3 if suffix == "jpg" else 2):
        write(tmp_path, f"images/{number}.png", [box(number) * 100 + number])
        mask = np.zeros((16, 24), np.uint8) if number == 2 else box(number) * 255  # one value alone is kept
        write(tmp_path, f"masks/{number}.{suffix}", [np.dstack([mask] * 3)], **options)
    with pytest.raises(
        DataError, match=rf"does not keep values.*\(2\): masks/0\.{suffix}, masks/1\.{suffix}\. Save masks"
    ):
        opened(tmp_path, {"0": "background", "255": "box"})
    if suffix == "webp":
        return  # whose greys become colours
    rows, label_map = opened(tmp_path, {"0-127": "background", "128-255": "box"})
    assert (read_pair(decoded(rows["train"][1]), label_map)[1] == 1).sum() == 20


def test_masks_of_one_bit_are_proposed_by_their_ids(tmp_path: Path) -> None:
    write(tmp_path, "images/a.png", [box() * 100])
    write(tmp_path, "masks/a.png", [box() == 1])
    with pytest.raises(UsageError, match=r'as in \{"0": "<class>", "1": "<class>"\}'):
        opened(tmp_path, None)
