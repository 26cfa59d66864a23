from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from segtune.data.splits import (
    SPLITS,
    all_names,
    choose_split,
    draw_val,
    meant_ids,
    read_split_file,
    read_split_lists,
    split_in,
    split_names,
    split_of,
    write_split_file,
)
from segtune.errors import UsageError

IDS = st.lists(st.text("abc019/_", min_size=1, max_size=8), unique=True, min_size=1, max_size=40)
FRACTIONS = st.floats(0, 0.9)


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
    assert [split_of(name, SPLITS) for name in ("Training", "valid", "TEST", "extra")] == ["train", "val", "test", None]
    own = split_names({"train": "fit", "val": None})
    assert all_names(own) == ["fit"]
    assert (split_of("Fit", own), split_of("train", own)) == ("train", None)
    assert all_names(split_names(None))[:3] == ["train", "training", "val"]


@pytest.mark.parametrize(
    ("text", "split"),
    [
        ("instances_val2017", "val"),
        ("train-00000-of-00020", "train"),
        ("Testing", "test"),
        ("trainval", None),
        ("a1", None),
    ],
)
def test_words_of_files_name_splits(text: str, split: str | None) -> None:
    assert split_in(text, SPLITS) == split


def test_words_with_their_digits_come_first() -> None:
    assert split_in("train_set2", split_names({"train": "set", "val": "set2"})) == "val"


@given(IDS, FRACTIONS, st.integers(0, 9))
@example(["a", "b", "c"], 0.0, 0)
@example(["a"], 0.5, 0)
@settings(deadline=None, max_examples=60)
def test_val_is_the_share_that_is_asked_for_and_train_keeps_one(ids: list[str], fraction: float, seed: int) -> None:
    val = draw_val(ids, fraction, seed)
    assert val == sorted(set(val)) and set(val) <= set(ids)
    assert len(val) == min(max(1, round(len(ids) * fraction)) if fraction else 0, len(ids) - 1)


@given(IDS, FRACTIONS, st.integers(0, 9), st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=30)
def test_val_depends_on_ids_and_seed_alone(ids: list[str], fraction: float, seed: int, rng: object) -> None:
    shuffled = list(ids)
    rng.shuffle(shuffled)  # type: ignore[attr-defined]
    assert draw_val(shuffled, fraction, seed) == draw_val(ids, fraction, seed)


@given(IDS, FRACTIONS, st.data())
@settings(deadline=None, max_examples=60)
def test_val_stays_nearly_the_same_without_a_sample(ids: list[str], fraction: float, data: st.DataObject) -> None:
    gone = data.draw(st.sampled_from(ids))
    before, after = set(draw_val(ids, fraction, 0)), set(draw_val([i for i in ids if i != gone], fraction, 0))
    assert len((before ^ after) - {gone}) <= 1


def test_seeds_draw_other_samples() -> None:
    ids = [f"{number:03}" for number in range(100)]
    drawn = {tuple(draw_val(ids, 0.2, seed)) for seed in range(5)}
    assert len(drawn) == 5
    assert all(len(val) == 20 for val in drawn)


@given(st.dictionaries(st.sampled_from(list(SPLITS)), IDS))
@settings(deadline=None, max_examples=20)
def test_split_files_come_back(tmp_path_factory: pytest.TempPathFactory, splits: dict[str, list[str]]) -> None:
    path = tmp_path_factory.mktemp("split") / "far" / "below" / "split.json"
    write_split_file(path, {})
    write_split_file(path, splits)  # what is there already is replaced
    assert read_split_file(path) == {split: sorted(ids) for split, ids in splits.items()}


def test_split_files_are_for_people_too(tmp_path: Path) -> None:
    write_split_file(tmp_path / "split.json", {"val": ["K\u00f6ln"]})
    assert (tmp_path / "split.json").read_text(encoding="utf-8") == '{\n "val": [\n  "K\u00f6ln"\n ]\n}\n'


def test_split_files_are_read_in_composed_letters(tmp_path: Path) -> None:
    (tmp_path / "split.json").write_text('\ufeff{"val": ["b", "Ko\u0308ln"]}', encoding="utf-8")
    assert read_split_file(tmp_path / "split.json") == {"val": ["K\u00f6ln", "b"]}


@pytest.mark.parametrize(
    "content", ["[]", "{", '{"train": "a"}', '{"train": [1]}', '{"dev": []}', '{"test": {"a": 1}}']
)
def test_other_files_are_no_split_files(tmp_path: Path, content: str) -> None:
    (tmp_path / "split.json").write_text(content)
    with pytest.raises(UsageError, match=r"split\.json is no split file"):
        read_split_file(tmp_path / "split.json")


def test_lists_of_a_split_hold_an_id_a_line(tmp_path: Path) -> None:
    (tmp_path / "training.txt").write_text("b 1\n\n  \na 0\n")
    (tmp_path / "val.txt").write_text("")
    assert read_split_lists(tmp_path, "{split}.txt", SPLITS) == {"train": ["a 0", "b 1"], "val": []}
    with pytest.raises(UsageError, match=r"none of lists/train\.txt, lists/training\.txt, lists/val\.txt"):
        read_split_lists(tmp_path, "lists/{split}.txt", SPLITS)


@pytest.mark.parametrize(
    ("entry", "meant"),
    [
        ("a", "a"),
        ("a 1", "a"),
        ("a.jpg", "a"),
        ("images/a.jpg", "a"),
        ("C:\\data\\images\\a.JPG", "a"),
        ("/CamVid/train/a.png /CamVid/trainannot/a.png", "a"),
        ("im 0", "im 0"),
        ("images/im 0.png", "im 0"),
        ("bonn/a", "bonn/a"),
        ("img/bonn/a.png", "bonn/a"),
        ("v1.2", "v1.2"),
        ("v1.2.png", "v1.2"),
        ("other.png", "other.png"),
    ],
)
def test_what_entries_of_lists_mean(entry: str, meant: str) -> None:
    assert meant_ids([entry], {"a", "im 0", "bonn/a", "v1.2", "im"}) == [meant]
