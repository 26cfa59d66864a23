"""Masks that do not lie on their images; the street scenes are real, since drawn ones fit too well."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segtune.doctor.alignment import REACH, Alignment
from segtune.doctor.check_alignment import common_shift, is_shifted, usual_alignments

LABELS = {str(i): str(i) for i in range(12)}
Change = Callable[[np.ndarray], np.ndarray]


@pytest.fixture(scope="session")
def scenes(camvid: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """Twelve pairs of one drive, in steps that make them different."""
    paths = sorted((camvid / "images" / "train").glob("0001TP*.jpg"))[::5][:12]
    assert len(paths) == 12
    masks = [camvid / "masks" / "train" / f"{path.stem}.png" for path in paths]
    part = slice(40, 296), slice(60, 420)
    return [(np.array(Image.open(a))[part], np.array(Image.open(b))[part]) for a, b in zip(paths, masks, strict=True)]


@pytest.fixture
def about_fits(diagnose: Any, scenes: Any) -> Callable[..., dict[str, Any]]:
    """Findings about alignment, where the masks of some samples are changed."""

    def run(change: Change, which: range = range(12)) -> dict[str, Any]:
        pairs = [(image, change(mask) if i in which else mask) for i, (image, mask) in enumerate(scenes)]
        found = diagnose({"train": pairs}, LABELS).findings
        return {f.code: f for f in found if f.code in ("shifted-masks", "mirrored-masks", "misfit-masks")}

    return run


def test_right_masks_fit(about_fits: Any) -> None:
    assert about_fits(lambda mask: mask) == {}


def test_all_masks_shifted(about_fits: Any) -> None:
    (found,) = about_fits(lambda mask: np.roll(mask, (3, -4), (0, 1))).values()
    assert (found.code, found.severity) == ("shifted-masks", "error")
    down, right = found.numbers["shift"]
    assert abs(down + 3) <= 1 and abs(right - 4) <= 1
    assert "numpy.roll" in found.fix[0] and not found.drop


def test_few_masks_shifted(about_fits: Any) -> None:
    (found,) = about_fits(lambda mask: np.roll(mask, 6, 1), range(2)).values()
    assert (found.code, found.severity) == ("shifted-masks", "warning")
    assert sorted(found.files) == ["masks/train/train00.png", "masks/train/train01.png"]
    assert all(abs(down) <= 1 and abs(right + 6) <= 1 for down, right in found.numbers["shifts"].values())
    assert "right" in found.message


def test_one_pixel_is_no_shift(about_fits: Any) -> None:
    assert about_fits(lambda mask: np.roll(mask, 1, 1)) == {}


@pytest.mark.parametrize(
    ("change", "pose"), [(np.fliplr, "mirrored left to right"), (np.flipud, "mirrored top to bottom")]
)
@pytest.mark.parametrize(("which", "severity"), [(range(1), "warning"), (range(12), "error")])
def test_mirrored_masks(about_fits: Any, change: Change, pose: str, which: range, severity: str) -> None:
    found = about_fits(change, which)
    assert set(found) == {"mirrored-masks"}
    assert (found["mirrored-masks"].severity, found["mirrored-masks"].numbers["pose"]) == (severity, pose)
    assert found["mirrored-masks"].numbers["count"] == len(which)


def test_mask_of_another_image(about_fits: Any, scenes: Any) -> None:
    other = scenes[6][1]
    (found,) = about_fits(lambda _: other, range(3, 4)).values()
    assert (found.code, found.severity, found.files) == ("misfit-masks", "warning", ("masks/train/train03.png",))
    assert [sample.id for sample in found.drop] == ["train03"]


def test_all_masks_of_other_images(diagnose: Any, scenes: Any) -> None:
    images, masks = zip(*scenes, strict=True)
    pairs = list(zip(images, [*masks[1:], masks[0]], strict=True))
    (found,) = (f for f in diagnose({"train": pairs}, LABELS).findings if f.code == "misfit-masks")
    assert found.numbers["count"] == 12 and not found.drop
    assert "do the names belong to each other?" in found.message


def fit_at(down: int, right: int, best: float, here: float, noise: float = 0.02) -> Alignment:
    surface = np.zeros((2 * REACH + 1, 2 * REACH + 1), dtype=np.float32)
    surface[REACH, REACH] = here
    surface[REACH + down, REACH + right] = best
    return Alignment((down, right), here, best, noise, surface, 1)


@pytest.mark.parametrize(
    ("alignment", "usual", "shifted"),
    [
        (fit_at(0, 5, 0.2, 0.05), None, True),
        (fit_at(0, 1, 0.2, 0.05), None, False),  # within the tolerance
        (fit_at(0, 5, 0.2, 0.18), None, False),  # nearly as good where it is
        (fit_at(0, 5, 0.1, 0.02), None, False),  # chance reaches that
        (fit_at(0, 5, 0.1, 0.02), 0.2, True),  # but not half of the usual correlation of a well drawn split
        (fit_at(0, 5, 0.1, 0.02), 0.4, False),
    ],
)
def test_shift_needs_evidence(alignment: Alignment, usual: float | None, shifted: bool) -> None:
    assert is_shifted(alignment, usual) == shifted


def test_common_shift_needs_a_majority() -> None:
    there, here = fit_at(4, 0, 0.2, 0.02), fit_at(0, 0, 0.2, 0.2)
    assert common_shift([there] * 12) == (4, 0)
    assert common_shift([there] * 5 + [here] * 7) is None
    assert common_shift([there] * 9) is None  # too few
    assert usual_alignments([]) == {}
