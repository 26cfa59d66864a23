"""The data card: what is stated is repeated, what is not is said to be so, and shares are those of the pixels."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from segtune.data.convert.dataset_card import NOT_STATED, Count, Origin, data_card
from segtune.labels.label_map import LabelMap

LABELS = LabelMap.from_ids({0: "sky", 1: "ro|ad", 2: "ro|ad", 11: None}, colors={"sky": "#0000ff", "ro|ad": "#804080"})
COUNTS = {"train": Count(2, [30, 10, 60]), "val": Count(1, [0, 5, 0]), "test": Count(1, [0, 0, 7])}


def card(origin: Origin, form: str = "folder", tile: int | None = None, overlap: int = 0) -> tuple[dict, list[str]]:
    """Front matter and lines."""
    _, front, text = data_card(origin, LABELS, COUNTS, form, tile, overlap).split("---\n", 2)
    return yaml.safe_load(front), text.splitlines()


@pytest.mark.parametrize("key", ["license", "licence", "licence_as_stated"])
def test_origin_of_a_label_file(tmp_path: Path, key: str) -> None:
    stated = {"classes": ["a"], "name": "mine", "source": " a drone ", key: "CC0", "ignore_id": 255}
    (tmp_path / "classes.json").write_text(json.dumps(stated))
    origin = Origin.of(str(tmp_path))
    assert origin == Origin("mine", tmp_path.name, "a drone", "CC0")
    assert origin.entries() == {"name": "mine", "source": "a drone", "license": "CC0"}


@pytest.mark.parametrize("content", [None, "no json", "[1]", '{"license": 3, "source": " "}'])
def test_origin_that_is_not_stated(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "labels.json").write_text(content)
    assert Origin.of(f"{tmp_path}/") == Origin(tmp_path.name, tmp_path.name, NOT_STATED, NOT_STATED)


def test_origin_that_is_no_folder() -> None:
    assert Origin.of("hub://user/name") == Origin("hub://user/name", "hub://user/name")
    assert Origin.of("/nowhere/at-all").data == "at-all"


def test_front_matter() -> None:
    assert card(Origin())[0] == {"pretty_name": "data set", "task_categories": ["image-segmentation"]}
    front, _ = card(Origin("x: y", license="see # there"), "parquet")
    assert (front["pretty_name"], front["license"], front["license_details"]) == ("x: y", "other", "see # there")
    assert "configs" not in front  # see _metadata


def test_text() -> None:
    _, lines = card(Origin("mine", "folder", "a drone"), tile=64, overlap=8)
    for line in (
        "# mine",
        "- Converted from: folder",
        "- Source: a drone",
        "- Licence: not stated",
        "| train | 2 | 100 |",
        "| class | id | colour | % of train | % of val | % of test |",
        "| sky | 0 | `#0000ff` | 75.000 | 0.000 | – |",
        "| ro&#124;ad | 1, 2 | `#804080` | 25.000 | 100.000 | – |",
        "| *ignored, of all pixels* | | | 60.000 | 0.000 | 100.000 |",
    ):
        assert line in lines
    assert any("ignored: 11" in line for line in lines) and any("cut into tiles" in line for line in lines)


def test_how_it_is_loaded() -> None:
    assert any("dataset.path" in line for line in card(Origin())[1])
    assert any("load_dataset" in line for line in card(Origin(), "parquet")[1])


def test_words_of_others_break_neither_tables_nor_the_page(tmp_path: Path) -> None:
    hostile, shown = "a|b\n<script>`*c*`", "a&#124;b &lt;script>&#96;&#42;c&#42;&#96;"
    label_map = LabelMap.from_ids({0: hostile}, colors={hostile: "#0000ff"})
    text = data_card(
        Origin(hostile, hostile, hostile, hostile), label_map, {"train": Count(1, [4, 0])}, "folder", None, 0
    )
    lines = text.splitlines()
    for line in (f"# {shown}", f"- Source: {shown}", f"- Licence: {shown}", f"| {shown} | 0 | `#0000ff` | 100.000 |"):
        assert line in lines
    assert "<script" not in text.split("---\n", 2)[2]
    assert yaml.safe_load(text.split("---\n")[1])["license_details"] == hostile


def test_card_names_no_path_of_this_machine(tmp_path: Path) -> None:
    assert str(tmp_path.parent) not in data_card(Origin.of(str(tmp_path)), LABELS, COUNTS, "folder", None, 0)
