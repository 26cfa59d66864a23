"""Which mask value is which class: label files of every name, names of the format, and contradictions between them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from segtune.data.class_names import LABEL_FILES, TABLES, find_file, label_map_of, listed_classes, number_classes
from segtune.data.config import DatasetConfig
from segtune.errors import UsageError

CLASSES = {0: "background", 1: "car", 2: "road"}


def config(root: Path, **options: Any) -> DatasetConfig:
    return DatasetConfig(path=str(root), **options)


@pytest.mark.parametrize("name", LABEL_FILES)
def test_label_files_are_found_by_their_names(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text('["sky", "road"]' if name.endswith("json") else "sky 1 2 3\nroad 4 5 6\n")
    label_map = label_map_of(config(tmp_path), tmp_path, None)
    assert label_map is not None and label_map.names == ("sky", "road")


def test_nothing_says_anything(tmp_path: Path) -> None:
    assert label_map_of(config(tmp_path), tmp_path, None) is None


def test_the_names_of_the_format(tmp_path: Path) -> None:
    label_map = label_map_of(config(tmp_path), tmp_path, CLASSES)
    assert label_map is not None and (label_map.names, label_map.ids) == (
        ("background", "car", "road"),
        {0: 0, 1: 1, 2: 2},
    )
    void = label_map_of(config(tmp_path), tmp_path, CLASSES | {0: None})
    assert void is not None and (void.names, void.ids) == (("car", "road"), {0: None, 1: 0, 2: 1})


@pytest.mark.parametrize(
    ("labels", "names", "ids"),
    [
        (["road", "background", "car"], ("road", "background", "car"), {0: 1, 1: 2, 2: 0}),
        ({"road": "way", "car": None, "background": "rest"}, ("way", "rest"), {0: 1, 1: None, 2: 0}),
        ({"car": "thing", "road": "thing", "background": None}, ("thing",), {0: None, 1: 0, 2: 0}),
        ({"classes": {"car": "car", "road": "road", "background": "rest"}, "colors": {"rest": "#010203"}},
         ("car", "road", "rest"), {0: 2, 1: 0, 2: 1}),
        ({"0": None, "1": "car", "2": "road"}, ("car", "road"), {0: None, 1: 0, 2: 1}),
    ],
)  # fmt: skip
def test_labels_by_the_names_of_the_format(
    tmp_path: Path, labels: Any, names: tuple[str, ...], ids: dict[int, Any]
) -> None:
    label_map = label_map_of(config(tmp_path, labels=labels), tmp_path, CLASSES)
    assert label_map is not None and (label_map.names, label_map.ids) == (names, ids)
    if "rest" in names and "colors" in labels:
        assert label_map.colors[2] == (1, 2, 3)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["car", "road"], r'dataset\.labels: background: not named, though the data has them; .*{"background": null}'),
        ({"car": "car", "bus": "bus"}, r"dataset\.labels: the data has no class 'bus'; it has background, car, road"),
    ],
)
def test_contradictions_with_the_format(tmp_path: Path, labels: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        label_map_of(config(tmp_path, labels=labels), tmp_path, CLASSES)


def test_files_of_names_may_speak_of_the_format(tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text('{"road": "road", "car": null, "background": null}')
    chosen = config(tmp_path, labels="mine.json")
    assert listed_classes(chosen, tmp_path) == ["road", "car"]
    label_map = label_map_of(chosen, tmp_path, CLASSES)
    assert label_map is not None and label_map.names == ("road",)
    (tmp_path / "mine.json").write_text('{"bus": "bus"}')
    with pytest.raises(UsageError, match=r"mine\.json: the data has no class 'bus'"):
        label_map_of(chosen, tmp_path, CLASSES)


def test_files_beside_annotations_count_where_they_name_the_same(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("car\nroad\n")  # YOLO's, without the background
    label_map = label_map_of(config(tmp_path), tmp_path, CLASSES)
    assert label_map is not None and label_map.names == ("background", "car", "road")
    (tmp_path / "labels.txt").write_text("__ignore__\n_background_\nroad\ncar\n")  # LabelMe's
    label_map = label_map_of(config(tmp_path), tmp_path, CLASSES)
    assert label_map is not None and label_map.names == ("background", "road", "car")


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (None, ["background", "a", "b", "c"]),
        (["c", "background", "a", "b"], ["background", "c", "a", "b"]),
        ({"b": "x", "zebra": "y"}, ["background", "b", "a", "c"]),
        ({"0": "b"}, ["background", "a", "b", "c"]),
        ({"#000000": "b"}, ["background", "a", "b", "c"]),
    ],
)
def test_numbers_follow_the_recipe(tmp_path: Path, labels: Any, expected: list[str]) -> None:
    assert list(number_classes(["a", "b", "c"], config(tmp_path, labels=labels), tmp_path).values()) == expected


def test_settings_that_belong_together(tmp_path: Path) -> None:
    for wrong in (
        {"overlap": 8},
        {"tile": 64, "overlap": 64},
        {"tile": 8},
        {"splits": {"dev": "x"}},
        {"format": "zip"},
    ):
        with pytest.raises(ValueError, match=r"overlap|tile|splits|format"):
            config(tmp_path, **wrong)


def test_tables_inside_the_package(tmp_path: Path) -> None:
    assert find_file("segtune://lip.json", tmp_path) == TABLES / "lip.json"
    label_map = label_map_of(config(tmp_path, labels="segtune://cityscapes.json"), tmp_path, None)
    assert label_map is not None and (label_map.num_labels, label_map.names[0], label_map.ids[7]) == (19, "road", 0)
    with pytest.raises(
        UsageError, match=r"no file 'segtune://cityscape\.json' in the package; it has ade20k\.json, camv"
    ):
        find_file("segtune://cityscape.json", tmp_path)
