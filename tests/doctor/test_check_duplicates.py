from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segtune.data.index import Sample
from segtune.doctor.check_duplicates import sequences


def picture(seed: int, size: int = 64) -> np.ndarray:
    """A smooth picture, unlike those of other seeds."""
    small = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((size, size), Image.Resampling.BICUBIC))


MASK = np.repeat(np.repeat(np.arange(2, dtype=np.uint8), 32)[None], 64, axis=0)


def found_in(diagnosis: Any) -> dict[str, Any]:
    codes = (
        "duplicates",
        "leaked-duplicates",
        "conflicting-duplicates",
        "near-duplicates",
        "leaked-near-duplicates",
        "leaked-sequence",
    )
    return {finding.code: finding for finding in diagnosis.findings if finding.code in codes}


def test_different_pictures_are_no_twins(diagnose: Any) -> None:
    splits = {"train": [(picture(i), MASK) for i in range(20)], "val": [(picture(i), MASK) for i in range(20, 30)]}
    assert found_in(diagnose(splits)) == {}


def test_copies_within_and_across_splits(diagnose: Any) -> None:
    splits = {
        "train": [(picture(0), MASK), (picture(1), MASK), (picture(1), MASK)],
        "test": [(picture(0), MASK), (picture(2), MASK)],
    }
    found = found_in(diagnose(splits))
    assert {code: (f.severity, f.files) for code, f in found.items()} == {
        "leaked-duplicates": ("error", ("images/train/train00.png", "images/test/test00.png")),
        "duplicates": ("warning", ("images/train/train01.png", "images/train/train02.png")),
    }
    assert [sample.id for sample in found["leaked-duplicates"].drop] == ["train00"]  # test keeps its own
    assert [sample.id for sample in found["duplicates"].drop] == ["train01"]


def test_copy_with_another_mask_is_disputed(diagnose: Any) -> None:
    found = found_in(diagnose({"train": [(picture(0), MASK), (picture(0), MASK[:, ::-1]), (picture(1), MASK)]}))
    assert set(found) == {"duplicates", "conflicting-duplicates"}
    assert len(found["conflicting-duplicates"].drop) == 2


@pytest.mark.parametrize("change", ["jpeg", "half", "bright", "contrast", "mirror"])
def test_changed_copies_are_near(diagnose: Any, tmp_path: Path, change: str) -> None:
    original = picture(0)
    if change == "jpeg":
        Image.fromarray(original).save(tmp_path / "x.jpg", quality=40)
        copy = np.asarray(Image.open(tmp_path / "x.jpg"))
    else:
        copy = {
            "half": original[::2, ::2],
            "bright": (original * 0.8).astype(np.uint8) + 30,
            "contrast": (original * 0.5).astype(np.uint8),
            "mirror": original[:, ::-1],
        }[change]
    mask = MASK[::2, ::2] if change == "half" else MASK
    others = [(picture(i), MASK) for i in range(1, 6)]
    found = found_in(diagnose({"train": [(original, MASK), *others], "test": [(copy, mask)]}))
    assert set(found) == {"leaked-near-duplicates"}
    assert found["leaked-near-duplicates"].files == ("images/train/train00.png", "images/test/test00.png")
    assert ("1 of them mirrored" in found["leaked-near-duplicates"].message) == (change == "mirror")
    assert [sample.id for sample in found["leaked-near-duplicates"].drop] == ["train00"]


# -- look-alikes ------------------------------------------------------------------------------------------------------


def _grid(size: int = 96) -> tuple[np.ndarray, np.ndarray]:
    rows, columns = np.mgrid[:size, :size] / size - 0.5
    return rows, columns


def eye(seed: int) -> np.ndarray:
    """A bright disc on black with vessels of its own."""
    generator, (rows, columns) = np.random.default_rng(seed), _grid()
    inside = np.hypot(rows, columns) < 0.45
    vessels = np.zeros(rows.shape)
    for _ in range(8):
        slope, bend, place = generator.normal(0, 1, 3)
        vessels += np.exp(-(((rows - slope * columns * 0.5 - bend * columns**2 - place * 0.2) * 60) ** 2))
    grey = np.where(inside, 150 - 60 * np.hypot(rows, columns) - 70 * vessels.clip(0, 1), 2)
    return np.dstack([grey, grey * 0.6, grey * 0.3]).clip(0, 255).astype(np.uint8)


def chest(seed: int) -> np.ndarray:
    """Two dark lungs, ribs at nearly the same places, and soft spots of its own."""
    generator, (rows, columns) = np.random.default_rng(seed), _grid()
    lungs = sum(np.exp(-(((columns - side) / 0.13) ** 2) - (rows / 0.3) ** 2) for side in (-0.2, 0.2))
    ribs = np.cos(2 * np.pi * (8 * rows + generator.normal(0, 0.12)))
    soft = Image.fromarray(generator.normal(0, 1, (12, 12)).astype(np.float32)).resize(
        rows.shape, Image.Resampling.BICUBIC
    )
    grey = (190 - 120 * lungs + 12 * ribs * lungs + 9 * np.asarray(soft)).clip(0, 255).astype(np.uint8)
    return np.dstack([grey] * 3)


def cells(seed: int) -> np.ndarray:
    """Round cells on an even ground."""
    generator, (rows, columns) = np.random.default_rng(seed), _grid()
    grey = np.full(rows.shape, 90.0)
    for row, column in generator.uniform(-0.5, 0.5, (25, 2)):
        grey += 80 * (np.hypot(rows - row, columns - column) < 0.05)
    return np.dstack([grey.clip(0, 255).astype(np.uint8)] * 3)


def texture(seed: int) -> np.ndarray:
    """A fabric: a grid that is the same everywhere, with noise."""
    generator, (rows, columns) = np.random.default_rng(seed), _grid()
    grey = 120 + 60 * np.sign(np.sin(60 * rows) * np.sin(60 * columns)) + generator.normal(0, 25, rows.shape)
    return np.dstack([grey.clip(0, 255).astype(np.uint8)] * 3)


LIKE_EACH_OTHER = [eye, chest, cells, texture]
HALVES = np.repeat(np.repeat(np.arange(2, dtype=np.uint8), 48)[None], 96, axis=0)


@pytest.mark.parametrize("draw", LIKE_EACH_OTHER)
def test_pictures_that_look_alike_are_no_leak(diagnose: Any, draw: Any) -> None:
    pairs = [(draw(seed), HALVES) for seed in range(24)]
    assert found_in(diagnose({"train": pairs[:16], "val": pairs[16:20], "test": pairs[20:]})) == {}
    # numbered through, with a val split that is drawn from them
    assert found_in(diagnose({"train": pairs[:16]}, val_fraction=0.25)) == {}


@pytest.mark.parametrize("draw", LIKE_EACH_OTHER)
def test_copy_among_pictures_that_look_alike_is_found(diagnose: Any, tmp_path: Path, draw: Any) -> None:
    pairs = [(draw(seed), HALVES) for seed in range(20)]
    Image.fromarray(draw(3)).save(tmp_path / "x.jpg", quality=70)
    copies = [np.asarray(Image.open(tmp_path / "x.jpg")), (draw(5) * 0.8).astype(np.uint8), draw(7)[:, ::-1]]
    found = found_in(diagnose({"train": pairs, "test": [(np.ascontiguousarray(copy), HALVES) for copy in copies]}))
    assert set(found) == {"leaked-near-duplicates"}
    assert {s.id for s in found["leaked-near-duplicates"].drop} == {"train03", "train05", "train07"}


def sample(name: str, split: str = "train") -> Sample:
    return Sample(name, split, Path("a"), Path("b"))


@pytest.mark.parametrize(
    ("names", "groups"),
    [
        (["a_2", "a_10", "b_1"], {"a_#": [(2, 0), (10, 1)], "b_#": [(1, 2)]}),
        (["x_0001_leftImg8bit", "x_0002_leftImg8bit"], {"x_#_leftImg8bit": [(1, 0), (2, 1)]}),
        (["p1/s3", "p1/s4", "p2/s3"], {"p1/s#": [(3, 0), (4, 1)], "p2/s#": [(3, 2)]}),
        (["plain", "names"], {}),
    ],
)
def test_sequences_share_all_but_a_number(names: list[str], groups: dict[str, list[tuple[int, int]]]) -> None:
    assert sequences([sample(name) for name in names]) == groups


def frames(seed: int, number: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """A camera that moves across a picture."""
    wide = picture(seed, 160)
    return [(np.ascontiguousarray(wide[:64, 4 * i : 4 * i + 64]), MASK) for i in range(number)]


def test_frames_of_one_video_in_two_splits(diagnose: Any, tmp_path: Path) -> None:
    video = frames(0, 20)
    diagnose({"train": video[:15], "val": video[15:]})
    for split, number, name in [("train", i, i) for i in range(15)] + [("val", i, 15 + i) for i in range(5)]:
        for kind in ("images", "masks"):
            folder = tmp_path / kind / split
            (folder / f"{split}{number:02}.png").rename(folder / f"drive_{name:03}.png")
    found = found_in(diagnose({}))["leaked-sequence"]
    assert found.severity == "warning"
    assert found.numbers == {
        "count": 1,
        "sequences": {"drive_#": {"train": 15, "val": 5}},
        "outside_train": 5,
        "next_to_train": 1,
    }
    assert found.files == ("images/val/drive_015.png",)


def test_numbered_photographs_are_no_sequence(diagnose: Any, tmp_path: Path) -> None:
    """Drawn at random, without a val split: names alone do not make a video."""
    diagnose({"train": [(picture(i), MASK) for i in range(20)]}, val_fraction=0.3)
    assert found_in(diagnose({}, val_fraction=0.3)) == {}


def test_val_drawn_from_a_video_is_a_leak(diagnose: Any) -> None:
    found = found_in(diagnose({"train": frames(3, 24)}, val_fraction=0.25))
    assert found["leaked-sequence"].numbers["outside_train"] == 6
