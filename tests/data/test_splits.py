from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from segtune.data.splits import (
    SPLITS,
    all_names,
    choose_split,
    draw_val,
    read_split_file,
    read_split_lists,
    split_in,
    split_names,
    split_of,
)
from segtune.errors import UsageError


def test_splits() -> None:
    data = {"train": 0, "val": 0}
    assert choose_split(None, {**data, "test": 0}, "data") == "test"
    assert choose_split(None, data, "data") == "val"
    assert choose_split("train", data, "data") == "train"
    with pytest.raises(UsageError, match="--split test: data has train"):
        choose_split(None, {"train": 0}, "data")
    with pytest.raises(UsageError, match="--split test: data has train, val"):
        choose_split("test", data, "data")


def test_names_of_splits() -> None:
    assert split_names(None) is SPLITS
    given = split_names({"train": "fit", "val": None})
    assert given == {"train": ("fit",)} and all_names(given) == ["fit"]
    assert [split_of(name, SPLITS) for name in ("Training", "VALID", "test", "extra")] == ["train", "val", "test", None]
    assert split_of("train", given) is None and split_of("FIT", given) == "train"


@pytest.mark.parametrize(
    ("text", "split"),
    [
        ("instances_val2017", "val"),
        ("train-00000-of-00020", "train"),
        ("Testing", "test"),
        ("trainer_notes", None),
        ("", None),
    ],
)
def test_the_split_that_a_file_name_says(text: str, split: str | None) -> None:
    assert split_in(text, SPLITS) == split


def test_a_split_file(tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    path.write_text(json.dumps({"val": ["u\u0308", "a"], "train": []}))
    assert read_split_file(path) == {"train": [], "val": ["a", "ü"]}  # sorted, and composed as file names are read


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"train": ["a"], "tset": ["b"]}, "it holds 'tset'"),
        ({"train": "a"}, "ids are lists of texts"),
        ({"train": {"a": 1}}, "ids are lists of texts"),
        ({"train": ["a", 1]}, "ids are lists of texts"),
        (["a"], "is no split file"),
    ],
)
def test_another_form_of_split_file_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "split.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UsageError, match=message):
        read_split_file(path)


def test_split_lists(tmp_path: Path) -> None:
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "train.txt").write_text("b 1\n\na 0\n")
    (tmp_path / "lists" / "training.txt").write_text("of the other name\n")
    (tmp_path / "lists" / "valid.txt").write_text("c\n")
    assert read_split_lists(tmp_path, "lists/{split}.txt", SPLITS) == {"train": ["a", "b"], "val": ["c"]}
    with pytest.raises(UsageError, match=r"has no list of a split: none of x/train.txt, x/training.txt, x/val.txt"):
        read_split_lists(tmp_path, "x/{split}.txt", SPLITS)


@pytest.mark.parametrize(
    ("number", "fraction", "drawn"), [(10, 0.2, 2), (10, 0.01, 1), (10, 0.0, 0), (4, 1.0, 3), (1, 0.5, 0), (3, 0.5, 2)]
)
def test_how_many_are_drawn_for_validation(number: int, fraction: float, drawn: int) -> None:
    """At least one where a share is asked for, and never all: one is left to train on."""
    ids = [f"id{i}" for i in range(number)]
    found = draw_val(ids, fraction, seed=0)
    assert len(found) == drawn and found == sorted(set(found)) and set(found) <= set(ids)


def test_the_draw_depends_on_ids_and_seed_only() -> None:
    ids = [f"id{i}" for i in range(200)]
    drawn = draw_val(ids, 0.1, seed=0)
    assert draw_val(reversed(ids), 0.1, seed=0) == drawn != draw_val(ids, 0.1, seed=1)
    more = draw_val([*ids, "another", "one more"], 0.1, seed=0)
    assert len(set(drawn) & set(more)) >= len(drawn) - 2
