"""Data sets written anew: nothing is lost, an interrupted conversion is completed, and other folders are left alone."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, DatasetDict, load_dataset
from PIL import Image

from segtune.data.config import DatasetConfig
from segtune.data.convert import convert as module
from segtune.data.convert.convert import JOURNAL, Conversion, Journal, convert
from segtune.data.convert.dataset_card import Count, Origin
from segtune.data.dataset import find_label_map, load_segmentation_dataset, open_dataset
from segtune.errors import DataError, UsageError
from segtune.files import write_atomic
from segtune.imageio.read import read_image, read_mask
from segtune.labels.label_map import LabelMap

COLORS = {"#0000ff": "sky", "#00ff00": None, "#ff0000": "road"}
SPLITS = {"train": 5, "val": 2, "test": 3}
Content = dict[str, tuple[np.ndarray, np.ndarray]]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of 30 x 50 with masks of colours; one lies in a folder of its own."""
    folder = tmp_path_factory.mktemp("source")
    generator = np.random.default_rng(0)
    for split, count in SPLITS.items():
        for number in range(count):
            name = f"inner/{number}" if number == 1 else str(number)
            for kind in ("images", "masks"):
                (folder / kind / split / name).parent.mkdir(parents=True, exist_ok=True)
            image = generator.integers(0, 256, (30, 50, 3), dtype=np.uint8)
            Image.fromarray(image).save(folder / "images" / split / f"{name}.jpg")
            ids = generator.integers(0, 3, (30, 50))
            mask = np.array([[0, 0, 255], [0, 255, 0], [255, 0, 0]], np.uint8)[ids]
            Image.fromarray(mask).save(folder / "masks" / split / f"{name}.png")
    labels = {"classes": COLORS, "name": "tiny", "source": "made up", "licence_as_stated": "CC0"}
    (folder / "classes.json").write_text(json.dumps(labels))
    return folder


def conversion(source: Path, output: Path, **options: Any) -> Conversion:
    label_map = find_label_map(DatasetConfig(path=str(source)))
    return Conversion(load_segmentation_dataset(source), label_map, output, origin=Origin.of(str(source)), **options)


def content(dataset: DatasetDict, label_map: LabelMap) -> Content:
    """Pixels and labels by split and id."""
    return {
        f"{split}/{row['id']}": (read_image(row["image"]), label_map.encode(read_mask(row["mask"])))
        for split, rows in dataset.items()
        for row in rows
    }


def content_of(folder: Path) -> Content:
    return content(load_segmentation_dataset(folder), find_label_map(DatasetConfig(path=str(folder))))


def assert_equal(left: Content, right: Content) -> None:
    assert list(left) == list(right)
    for name, pair in left.items():
        for one, other in zip(pair, right[name], strict=True):
            np.testing.assert_array_equal(one, other)


def read_parquet(folder: Path) -> DatasetDict:
    """What any user of `datasets` gets, with our names of the splits."""
    loaded = load_dataset(str(folder))
    return DatasetDict({{"validation": "val"}.get(split, split): rows for split, rows in loaded.items()})


def files(folder: Path) -> dict[str, int]:
    found = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.stat().st_mtime_ns for path in found}


# -- what is written --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 3])
def test_folder(source: Path, tmp_path: Path, workers: int) -> None:
    counts = convert(conversion(source, tmp_path / "out", workers=workers), progress=False)
    assert {split: count.samples for split, count in counts.items()} == SPLITS
    assert_equal(content_of(tmp_path / "out"), content_of(source))
    for path in source.glob("images/*/*.jpg"):
        assert (tmp_path / "out" / path.relative_to(source)).read_bytes() == path.read_bytes()
    for path in (tmp_path / "out" / "masks").rglob("*.png"):
        with Image.open(path) as mask:
            assert (mask.mode, set(np.unique(np.asarray(mask)))) == ("L", {0, 1, 255})
    labels = content_of(source).values()
    assert sum(sum(count.pixels) for count in counts.values()) == sum(pair[1].size for pair in labels)
    assert counts["test"].pixels[-1] == sum((pair[1] == 255).sum() for pair in list(labels)[-3:])


def test_parquet_and_back_again(source: Path, tmp_path: Path) -> None:
    convert(conversion(source, tmp_path / "parquet", form="parquet", workers=2), progress=False)
    label_map = LabelMap.from_file(tmp_path / "parquet" / "labels.json")
    loaded = read_parquet(tmp_path / "parquet")
    assert {split: len(rows) for split, rows in loaded.items()} == SPLITS
    assert_equal(content(loaded, label_map), content_of(source))
    cells = loaded["train"].with_format("arrow")[0].to_pylist()[0]
    assert cells["image"]["bytes"] == (source / "images" / "train" / "0.jpg").read_bytes()
    convert(Conversion(loaded, label_map, tmp_path / "folder"), progress=False)
    assert_equal(content_of(tmp_path / "folder"), content_of(source))
    assert (tmp_path / "folder" / "images" / "train" / "inner" / "1.jpg").is_file()


def test_folders_of_one_name_are_told_apart(source: Path, tmp_path: Path) -> None:
    """`datasets` caches by the folder's name and what its card says."""
    label_map = find_label_map(DatasetConfig(path=str(source)))
    for number, split in enumerate(("val", "test")):
        dataset = DatasetDict(train=load_segmentation_dataset(source)[split])
        convert(Conversion(dataset, label_map, tmp_path / str(number) / "same", "parquet"), progress=False)
        assert len(read_parquet(tmp_path / str(number) / "same")["train"]) == SPLITS[split]


def test_parquet_in_shards(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHARD_BYTES", 5000)
    convert(conversion(source, tmp_path / "out", form="parquet"), progress=False)
    names = sorted(path.name for path in (tmp_path / "out" / "data").iterdir())
    assert sum(name.startswith("train-") for name in names) == 3 and "train-00002-of-00003.parquet" in names
    loaded = read_parquet(tmp_path / "out")
    assert_equal(content(loaded, LabelMap.from_file(tmp_path / "out" / "labels.json")), content_of(source))


def test_tiles_of_train_overlap_and_all_reassemble(source: Path, tmp_path: Path) -> None:
    counts = convert(conversion(source, tmp_path / "out", tile=20, overlap=8), progress=False)
    assert {split: count.samples for split, count in counts.items()} == {
        "train": 5 * 2 * 4,
        "val": 2 * 6,
        "test": 3 * 6,
    }
    assert sum(counts["test"].pixels) == 3 * 30 * 50 < sum(counts["train"].pixels)
    whole = content_of(source)
    found = {name: (np.full_like(pair[0], 99), np.full_like(pair[1], 99)) for name, pair in whole.items()}
    for name, pair in content_of(tmp_path / "out").items():
        sample, top, left = name[:-14], int(name[-12:-7]), int(name[-5:])
        for array, part in zip(found[sample], pair, strict=True):
            array[top : top + part.shape[0], left : left + part.shape[1]] = part
    assert_equal(found, whole)


@pytest.mark.parametrize("tile", [None, 32])
def test_arrays_with_bands_and_masks_of_shapes(tmp_path: Path, tile: int | None) -> None:
    """Images that no PNG holds stay arrays; masks that are drawn from polygons become files."""
    source = tmp_path / "source"
    (source / "images").mkdir(parents=True)
    bands = np.random.default_rng(0).integers(0, 10000, (40, 60, 6), dtype=np.uint16)
    np.save(source / "images" / "a.npy", bands)
    shape = {"label": "field", "points": [[10, 5], [50, 5], [50, 30], [10, 30]], "shape_type": "polygon"}
    (source / "images" / "a.json").write_text(
        json.dumps({"imagePath": "a.npy", "imageHeight": 40, "imageWidth": 60, "imageData": None, "shapes": [shape]})
    )
    dataset, label_map = open_dataset(DatasetConfig(path=str(source), format="labelme", val_fraction=0))
    convert(Conversion(dataset, label_map, tmp_path / "out", tile=tile), progress=False)
    found = load_segmentation_dataset(tmp_path / "out", val_fraction=0)["train"]
    expected, whole = label_map.encode(read_mask(dataset["train"][0]["mask"])), np.zeros((40, 60), np.uint8)
    for row in found:
        top, left = (0, 0) if tile is None else map(int, (row["id"][-12:-7], row["id"][-5:]))
        labels = label_map.encode(read_mask(row["mask"]))
        area = slice(top, top + labels.shape[0]), slice(left, left + labels.shape[1])
        np.testing.assert_array_equal(row["image"], bands[area])
        whole[area] = labels
    np.testing.assert_array_equal(whole, expected)
    assert 0.3 < expected.mean() < 0.6
    if tile is None:
        with pytest.raises(DataError, match="'images/a' is no picture that parquet readers can decode"):
            convert(Conversion(dataset, label_map, tmp_path / "parquet", "parquet"), progress=False)


def test_label_file_and_card(source: Path, tmp_path: Path) -> None:
    convert(conversion(source, tmp_path / "out", form="parquet"), progress=False)
    stated = json.loads((tmp_path / "out" / "labels.json").read_text(encoding="utf-8"))
    assert stated["ids"] == {"0": 0, "1": 1, "255": None} and stated["names"] == ["sky", "road"]
    assert (stated["name"], stated["source"], stated["license"]) == ("tiny", "made up", "CC0")
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    for line in ("# tiny", "- Source: made up", "- Licence: CC0", "| train | 5 | 7,500 |"):
        assert line in card.splitlines()
    assert "| sky | 0 | `#0000ff` | 49." in card or "| sky | 0 | `#0000ff` | 50." in card
    assert str(tmp_path) not in card and str(source.parent) not in card


# -- going on ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["folder", "parquet"])
@pytest.mark.parametrize("stop_at", [1, 2, 4, 6])
def test_an_interrupted_conversion_is_completed(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: Any, stop_at: int
) -> None:
    monkeypatch.setattr(module, "SHARD_BYTES", 5000)
    convert(conversion(source, tmp_path / "whole", form=form), progress=False)
    left = [stop_at]

    def replace(self: Path, target: Path) -> Path:
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        return original(self, target)

    original = Path.replace
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace)
        with pytest.raises(KeyboardInterrupt):
            convert(conversion(source, tmp_path / "out", form=form), progress=False)
    before = files(tmp_path / "out")
    journaled = tmp_path / "out" / JOURNAL
    lines = journaled.read_text().splitlines()[1:] if stop_at > 1 else []
    done = [name for line in lines for name in json.loads(line)["files"]]
    if stop_at > 4:
        assert done
        with journaled.open("a") as file:
            file.write('{"name": "train/4", "fil')  # torn
    time.sleep(0.01)
    convert(conversion(source, tmp_path / "out", form=form), progress=False)
    after = files(tmp_path / "out")
    assert set(after) == set(files(tmp_path / "whole"))  # no half file left
    assert [after[name] for name in done] == [before[name] for name in done]
    for name in after:
        if name != JOURNAL:
            assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_complete_conversion_is_not_repeated(source: Path, tmp_path: Path) -> None:
    first = convert(conversion(source, tmp_path / "out"), progress=False)
    before = files(tmp_path / "out")
    (tmp_path / "out" / "masks" / "train" / "2.png").unlink()
    time.sleep(0.01)
    assert convert(conversion(source, tmp_path / "out"), progress=False) == first
    after = files(tmp_path / "out")
    assert set(after) == set(before)
    written = {name for name in after if after[name] != before[name]} - {JOURNAL, "labels.json", "README.md"}
    assert written == {"images/train/2.jpg", "masks/train/2.png"}


# -- what is refused --------------------------------------------------------------------------------------------------


def test_other_folders_are_left_alone(source: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"holds other things \(notes.txt\): name a new folder"):
        convert(conversion(source, tmp_path), progress=False)
    assert files(tmp_path).keys() == {"notes.txt"}


@pytest.mark.parametrize(
    ("options", "what"),
    [({"tile": 20}, "tile"), ({"form": "parquet"}, "form"), ({"tile": 20, "overlap": 3}, "tile, overlap")],
)
def test_conversions_do_not_mix(source: Path, tmp_path: Path, options: dict[str, Any], what: str) -> None:
    convert(conversion(source, tmp_path / "out"), progress=False)
    before = files(tmp_path / "out")
    with pytest.raises(UsageError, match=rf"holds a conversion with other settings \({what}\)"):
        convert(conversion(source, tmp_path / "out", **options), progress=False)
    assert files(tmp_path / "out") == before


@pytest.mark.parametrize(
    ("options", "message"),
    [({"tile": 0}, "tile=0"), ({"overlap": 5}, "overlap=5"), ({"tile": 9, "overlap": 9}, "below tile=9")],
)
def test_options_are_checked(source: Path, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        conversion(source, tmp_path, **options)


def rows_with_ids(source: Path, *ids: str) -> DatasetDict:
    rows = load_segmentation_dataset(source)["test"].select(range(len(ids)))
    columns = {"id": list(ids)} | {name: rows[name] for name in ("image", "mask")}
    return DatasetDict(test=Dataset.from_dict(columns, features=rows.features))


@pytest.mark.parametrize("sample_id", ["../outside", "/etc/x", "a/../../x", "c:x", "a\\b", ""])
def test_ids_that_lead_out_of_the_folder(source: Path, tmp_path: Path, sample_id: str) -> None:
    label_map = find_label_map(DatasetConfig(path=str(source)))
    with pytest.raises(DataError, match="cannot be the name of a file"):
        convert(Conversion(rows_with_ids(source, sample_id), label_map, tmp_path / "out"), progress=False)
    assert set(files(tmp_path)) == {f"out/{JOURNAL}"}


@pytest.mark.parametrize("form", ["folder", "parquet"])
def test_a_mask_that_does_not_fit_ends_it(source: Path, tmp_path: Path, form: Any) -> None:
    label_map = LabelMap.from_colors({"#0000ff": "sky", "#00ff00": None})
    with pytest.raises(DataError, match=r"sample '\d' \(.*images.*, .*masks.*\): the mask holds colour #ff0000"):
        convert(Conversion(load_segmentation_dataset(source), label_map, tmp_path / "out", form), progress=False)
    assert not (tmp_path / "out" / "README.md").exists()


# -- real data --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_camvid_to_parquet_and_back(camvid: Path, tmp_path: Path) -> None:
    """Byte for byte: the masks as arrays, and the files of images and masks."""
    convert(conversion(camvid, tmp_path / "parquet", form="parquet", workers=2), progress=False)
    label_map = LabelMap.from_file(tmp_path / "parquet" / "labels.json")
    convert(Conversion(read_parquet(tmp_path / "parquet"), label_map, tmp_path / "folder", workers=2), progress=False)
    compared = 0
    for path in sorted(camvid.glob("masks/*/*.png")):
        below = path.relative_to(camvid)
        with Image.open(path) as left, Image.open(tmp_path / "folder" / below) as right:
            assert np.asarray(left).tobytes() == np.asarray(right).tobytes()
        image = below.with_suffix(".jpg").as_posix().replace("masks", "images", 1)
        assert (camvid / image).read_bytes() == (tmp_path / "folder" / image).read_bytes()
        compared += 1
    assert compared == 701
    assert label_map == find_label_map(DatasetConfig(path=str(camvid)))


def finish(journal: Journal, name: str) -> None:
    write_atomic(journal.folder / name, b"content")
    journal.add(name, [name], Count(1, [2, 3]))


def test_what_was_finished_is_found_again(tmp_path: Path) -> None:
    first = Journal(tmp_path / "out", {"tile": 3})
    finish(first, "a")
    finish(first, "b")
    (tmp_path / "out" / "b").unlink()
    second = Journal(tmp_path / "out", {"tile": 3})
    assert [second.has(name) for name in "abc"] == [True, False, False]
    assert second.count("a") == Count(1, [2, 3])


@pytest.mark.parametrize("torn", ['{"name": "b", "fi', '{"name": "b"}\nrubbish\n{"name": "c", "files": []}\n', ""])
def test_torn_lines_are_dropped(tmp_path: Path, torn: str, caplog: pytest.LogCaptureFixture) -> None:
    finish(Journal(tmp_path, {}), "a")
    with (tmp_path / JOURNAL).open("a") as file:
        file.write(torn)
    again = Journal(tmp_path, {})
    assert again.has("a") and "rubbish" not in again.done
    assert ("line 4 of 5" in caplog.text) == ("rubbish" in torn)  # a torn end is what a kill leaves
    finish(again, "d")
    assert [json.loads(line).get("name") for line in (tmp_path / JOURNAL).read_text().splitlines()][-1] == "d"
    assert Journal(tmp_path, {}).has("d")


@pytest.mark.parametrize(
    ("settings", "what"), [({"tile": 4, "form": "x"}, "tile"), ({"tile": 4, "form": "y"}, "tile, form")]
)
def test_other_settings(tmp_path: Path, settings: dict[str, Any], what: str) -> None:
    finish(Journal(tmp_path, {"tile": 3, "form": "x"}), "a")
    with pytest.raises(UsageError, match=rf"other settings \({what}\)"):
        Journal(tmp_path, settings)
    assert Journal(tmp_path, {"tile": 3, "form": "x"}).has("a")


def test_folders_of_other_things(tmp_path: Path) -> None:
    for number in range(7):
        (tmp_path / f"{number}.txt").touch()
    with pytest.raises(UsageError, match=r"holds other things \(0.txt, 1.txt, 2.txt, 3.txt, 4.txt and 2 more\)"):
        Journal(tmp_path, {})
    assert len(list(tmp_path.iterdir())) == 7
