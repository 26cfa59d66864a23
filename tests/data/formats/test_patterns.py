"""Patterns of file names: what they match."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from segtune.data.formats.patterns import is_pattern, match_files
from segtune.errors import UsageError


def write(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(np.zeros((2, 3), np.uint8)).save(path)


def found(root: Path, pattern: str, classes: tuple[str, ...] = ()) -> list[tuple[str, str | None, str | None]]:
    return [(match.id, match.split, match.kind) for match in match_files(root, pattern, classes)]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("**/*_rgb.png", [("1", None, None), ("x/1", None, None), ("x/y/2", None, None)]),
        ("*/*_rgb.png", [("x/1", None, None)]),
        ("x/y/*.*", [("2_label", None, None), ("2_rgb", None, None), ("3.b", None, None)]),
        ("x/?_rgb.png", [("1", None, None)]),
        ("x/?????.png", [("1_rgb", None, None)]),
        ("{split}/*_{split}.png", [("a", "train", None), ("b", "VAL", None)]),
        ("{class}/*_rgb.*", [("1", None, "x")]),
        ("absent/*.png", []),
    ],
)
def test_matches(tmp_path: Path, pattern: str, expected: list[tuple[str, str | None, str | None]]) -> None:
    write(tmp_path, "1_rgb.png", "x/1_rgb.png", "x/y/2_rgb.png", "x/y/2_label.png", "x/y/3.b.tif")
    write(tmp_path, "train/a_train.png", "VAL/b_val.png", "train/c_val.png", ".x/4_rgb.png", "x/._1_rgb.png")
    (tmp_path / "x/y/4_rgb.txt").touch()
    assert sorted(found(tmp_path, pattern), key=str) == sorted(expected, key=str)


def test_classes_that_hold_the_sign_before_them(tmp_path: Path) -> None:
    write(tmp_path, "00000_skin.png", "00000_l_brow.png", "00000_hair_net.png")
    assert found(tmp_path, "*_{class}.png", ("brow", "l_brow", "skin")) == [
        ("00000", None, "l_brow"),
        ("00000", None, "skin"),
    ]


@pytest.mark.parametrize("pattern", ["/a/*.png", "../*.png", "{name}/*.png", "*.{jpg,png}"])
def test_other_patterns_are_refused(tmp_path: Path, pattern: str) -> None:
    with pytest.raises(UsageError, match=r"a pattern is a path below dataset\.path"):
        list(match_files(tmp_path, pattern))


def test_what_is_a_pattern() -> None:
    assert [is_pattern(text) for text in ("images", None, "a/*.png", "{split}/a", "a?b", "x.y")] == [
        False, False, True, True, True, False
    ]  # fmt: skip
