"""Which mask value is which class: label files of every name, names of the format, and contradictions between them."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from segtune.data.class_names import (
    LABEL_FILES,
    TABLES,
    find_file,
    label_map_of,
    listed_classes,
    number_classes,
    refuse_one_class,
)
from segtune.data.config import DatasetConfig
from segtune.errors import UsageError
from segtune.labels.label_map import LabelMap

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
        (["car", "road"], r'dataset\.labels: background: not named, though the data has it; .*{"background": null}'),
        ({"car": "car", "bus": "bus"}, r"dataset\.labels: background, road: not named.*and no 'bus'"),
        (["background", "Car", "road"], r"car: not named.*the labels have 'Car' for 'car'"),
        (
            {"0": "background", "1": "Auto", "2": "road"},
            r"car: not named.*1 is 'Auto' in the labels and 'car'",
        ),
        ({"1": "car", "2": "road"}, r"background: not named"),
    ],
)
def test_contradictions_with_the_format(tmp_path: Path, labels: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        label_map_of(config(tmp_path, labels=labels), tmp_path, CLASSES)


@pytest.mark.parametrize(
    "labels",
    [
        {"0": "background", "1": "road", "2": "car"},
        {"0": "background", "4": "road", "7": "sign", "9": "car"},
        {"categories": [{"id": 0, "name": "Background"}, {"id": 3, "name": "road"}, {"id": 5, "name": "car"}]},
        {"#000000": "background", "#804080": "road", "#400080": "car"},
        {"background": 0, "road": 1, "car": 2},
    ],
)
def test_names_count_more_than_numbers(tmp_path: Path, labels: Any) -> None:
    """The format numbers car 1 and road 2; whoever wrote the labels numbered otherwise."""
    for own in (label_map_of(config(tmp_path, labels=labels), tmp_path, CLASSES), beside(tmp_path, labels)):
        assert own is not None and own.ids is not None
        named = {value: own.names[target].lower() for value, target in own.ids.items() if target is not None}
        assert named == {0: "background", 1: "car", 2: "road"}
        assert own.names.index("road") < own.names.index("car")


def beside(root: Path, labels: Any) -> LabelMap | None:
    (root / "id2label.json").write_text(json.dumps(labels))
    return label_map_of(config(root), root, CLASSES)


def test_a_class_that_the_data_lacks_is_allowed(tmp_path: Path) -> None:
    """A second export may lack a class of the first."""
    labels = ["background", "sign", "car", "road"]
    found = label_map_of(config(tmp_path, labels=labels), tmp_path, CLASSES)
    assert found is not None and found.names == tuple(labels) and found.ids == {0: 0, 1: 2, 2: 3}


def test_files_beside_annotations_of_other_things_are_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        found = beside(tmp_path, {"0": "background", "1": "cat", "2": "dog"})
    assert found is not None and found.names == ("background", "car", "road")
    assert "id2label.json is passed over" in caplog.text and "car, road: not named" in caplog.text


def test_files_of_names_may_speak_of_the_format(tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text('{"road": "road", "car": null, "background": null}')
    chosen = config(tmp_path, labels="mine.json")
    assert listed_classes(chosen, tmp_path) == ["road", "car"]
    label_map = label_map_of(chosen, tmp_path, CLASSES)
    assert label_map is not None and label_map.names == ("road",)
    (tmp_path / "mine.json").write_text('{"bus": "bus"}')
    with pytest.raises(UsageError, match=r"mine\.json: background, car, road: not named.*and no 'bus'"):
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


def test_many_classes_have_a_wider_ignore_id(tmp_path: Path) -> None:
    """Where the recipe says nothing, or 255, which is a class then; another id of the labels is still told."""
    names = [f"c{i}" for i in range(256)]
    label_map = label_map_of(config(tmp_path, labels=names), tmp_path, None)
    assert label_map is not None and label_map.ignore_index == 65535
    chosen = label_map_of(config(tmp_path, labels=names, ignore_index=-100), tmp_path, None)
    assert chosen is not None and chosen.ignore_index == -100
    with pytest.raises(UsageError, match=r"ignore_index 7 is the training id .*dataset\.ignore_index"):
        label_map_of(config(tmp_path, labels=names, ignore_index=7), tmp_path, None)
    few = {"classes": ["sky", "road"], "ignore_index": 65535}
    with pytest.raises(UsageError, match=r"set dataset\.ignore_index=65535"):
        label_map_of(config(tmp_path, labels=few), tmp_path, None)


@pytest.mark.parametrize(
    ("labels", "example"),
    [
        (["crack"], '{"0": "background", "1": "crack"}'),
        ({"0": None, "255": "crack"}, '{"0": "background", "255": "crack"}'),
        ({"#ff0000": "crack"}, '{"#000000": "background", "#ff0000": "crack"}'),
    ],
)
def test_one_class_is_refused_with_what_to_write(tmp_path: Path, labels: Any, example: str) -> None:
    label_map = label_map_of(config(tmp_path, labels=labels), tmp_path, None)
    assert label_map is not None
    with pytest.raises(UsageError) as error:
        refuse_one_class(label_map, "mine")
    assert "mine: 'crack' is the only class" in str(error.value) and f"dataset.labels='{example}'" in str(error.value)
    refuse_one_class(LabelMap.from_dict(json.loads(example)), "mine")


def test_labels_of_the_recipe_win_and_that_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "classes.json").write_text('["sky", "road"]')
    label_map_of(config(tmp_path, labels=["sky", "road"]), tmp_path, None)
    label_map_of(config(tmp_path, labels="classes.json"), tmp_path, None)
    assert caplog.text == ""
    label_map = label_map_of(config(tmp_path, labels=["sea", "land"]), tmp_path, None)
    assert label_map is not None and label_map.names == ("sea", "land")
    path = tmp_path / "classes.json"
    assert f"the classes are those of dataset.labels; {path} names others and is passed over" in caplog.text
