"""Kaggle's tables of run lengths, against masks that are encoded here as the competitions' own scripts do it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segtune.data.config import DatasetConfig
from segtune.data.dataset import open_dataset
from segtune.errors import DataError, UsageError
from segtune.imageio.read import read_mask
from support.pairs import write_image


def encode(mask: list[list[int]]) -> str:
    """Pairs of a first pixel and a length, from 1 on down the columns, counted one pixel after the other."""
    pixels = [value for column in np.array(mask).T.tolist() for value in column]
    pairs: list[int] = []
    for number, value in enumerate(pixels, start=1):
        if value and number > 1 and pixels[number - 2]:
            pairs[-1] += 1
        elif value:
            pairs += [number, 1]
    return " ".join(map(str, pairs))


ONE = [[1, 1, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1]]
TWO = [[0, 0, 0, 0, 0, 0], [0, 0, 0, 1, 1, 0], [0, 0, 0, 1, 1, 0], [0, 0, 0, 0, 0, 0]]


def masks(root: Path, **options: Any) -> tuple[tuple[str, ...], dict[str, list[list[int]]]]:
    for name in ("a", "b"):
        write_image(root / f"train_images/{name}.jpg")
    dataset, label_map = open_dataset(DatasetConfig(path=str(root), val_fraction=0, **options))
    rows = dataset["train"]
    return label_map.names, {row["id"].rpartition("/")[2]: read_mask(row["mask"]).tolist() for row in rows}


def test_encoding_by_hand() -> None:
    assert encode(ONE) == "1 2 5 3 24 1"


@pytest.mark.parametrize(
    ("text", "names", "expected"),
    [
        (f"ImageId,EncodedPixels\na.jpg,{encode(ONE)}\na.jpg,{encode(TWO)}\nb.jpg,\n", ("foreground",),
         {"a": np.maximum(ONE, TWO), "b": np.zeros((4, 6))}),
        (f"id,rle_mask\na,{encode(ONE)}\nb,{encode(TWO)}\n", ("foreground",), {"a": ONE, "b": TWO}),
        (f"ImageId,EncodedPixels,ClassId\na.jpg,{encode(ONE)},3\na.jpg,{encode(TWO)},10\nb.jpg, -1,3\n",
         ("class 3", "class 10"), {"a": np.array(ONE) + 2 * np.array(TWO), "b": np.zeros((4, 6))}),
        (f"id,class,segmentation\na,stomach,{encode(ONE)}\na,bowel,{encode(TWO)}\nb,bowel,\nb,stomach,\n",
         ("bowel", "stomach"), {"a": 2 * np.array(ONE) + np.array(TWO), "b": np.zeros((4, 6))}),
        (f"ImageId_ClassId,EncodedPixels\na.jpg_1,{encode(ONE)}\na.jpg_2,\nb.jpg_2,{encode(TWO)}\n",
         ("class 1", "class 2"), {"a": ONE, "b": 2 * np.array(TWO)}),
    ],
)  # fmt: skip
def test_tables_of_competitions(tmp_path: Path, text: str, names: tuple[str, ...], expected: dict[str, Any]) -> None:
    """Of Airbus' ships, TGS' salt, the Severstal steel (two forms) and UW-Madison's organs."""
    (tmp_path / "train.csv").write_text(text)
    (tmp_path / "sample_submission.csv").write_text("ImageId,EncodedPixels\na.jpg,1 1\n")
    assert masks(tmp_path) == (
        ("background", *names),
        {key: np.array(value).tolist() for key, value in expected.items()},
    )
    assert masks(tmp_path, masks="train.csv")[0] == ("background", *names)


@pytest.mark.parametrize(
    ("row", "error", "message"),
    [
        (
            "a.jpg,0 3",
            DataError,
            r"train\.csv: .*row 1: .*run lengths that leave the picture of \(4, 6\): pixels c",
        ),
        ("a.jpg,22 4", DataError, "row 1: .*run lengths that leave the picture"),
        ("a.jpg,1 2 3", DataError, "row 1: .*run lengths are pairs of whole numbers"),
        ("a.jpg,1 x", DataError, "row 1: .*run lengths are pairs of whole numbers"),
        ("c.jpg,1 1", DataError, r"annotated images that are not there \(1\): c\.jpg"),
        (",1 1", UsageError, r"train\.csv, row 1: it names no image"),
    ],
)
def test_faulty_rows_are_named(tmp_path: Path, row: str, error: type[Exception], message: str) -> None:
    (tmp_path / "train.csv").write_text(f"ImageId,EncodedPixels\n{row}\nb.jpg,1 1\n")
    with pytest.raises(error, match=message):
        masks(tmp_path, format="rle", masks="train.csv")


def test_several_tables_are_a_question(tmp_path: Path) -> None:
    for name in ("one.csv", "two.csv"):
        (tmp_path / name).write_text("ImageId,EncodedPixels\na.jpg,1 1\n")
    with pytest.raises(UsageError, match=r"several tables of run lengths for train: one\.csv, two\.csv; choose"):
        masks(tmp_path)
    (tmp_path / "one.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UsageError, match=r"one\.csv: no columns of images and run lengths, such as .*, but a, b"):
        masks(tmp_path, format="rle", masks="one.csv")
