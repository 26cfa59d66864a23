"""What is chosen of a pool, and the reasons that are given, by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from segtune.labels.label_map import LabelMap
from segtune.selection.choice import choose
from segtune.selection.page import why
from segtune.selection.survey import Pool, Surveyed

LABELS = LabelMap.from_names(["road", "sign"])


def pool(*images: tuple[str, list[float], list[int], list[float]]) -> Pool:
    return Pool([Surveyed(Path(name), *map(np.array, numbers)) for name, *numbers in images])


POOL = pool(
    ("sure.jpg", [0.0, 0.0], [100, 0], [0.0, 0.0]),
    ("doubted.jpg", [40.0, 0.0], [100, 0], [1.0, 0.0]),
    ("twin.jpg", [39.0, 0.0], [100, 0], [1.0, 0.0]),
    ("sign.jpg", [0.0, 9.0], [50, 50], [0.0, 3.0]),
)


def test_uncertain_and_different() -> None:
    # 350 and 50 of 400 pixels: the weights are sqrt(1 / (2 * 7/8)) and sqrt(1 / (2 * 1/8)) = 2
    choice = choose(POOL, LABELS, 2, breadth=2)
    assert [image.path.name for image in choice.images] == ["doubted.jpg", "sign.jpg"]
    doubted, sign = choice.images
    assert doubted.score == pytest.approx(0.4 * (4 / 7) ** 0.5) and sign.score == pytest.approx(0.18)
    assert [image.rank for image in choice.images] == [1, 3]
    assert sign.nearest == Path("doubted.jpg") and doubted.nearest is None
    assert sign.distance == pytest.approx(10**0.5 / np.mean([np.hypot(0.5, 0.75)] * 3 + [np.hypot(0.5, 2.25)]))
    assert [(reason.name, reason.share) for reason in sign.reasons] == [("sign", 1)]
    assert choice.candidates == 4 and choice.scores == sorted(choice.scores, reverse=True)
    assert why(doubted) == ["score 0.302, rank 1 of the pool", "unsure of road 100 %", "the most uncertain of all"]
    assert why(sign)[1] == "unsure of sign 100 % (rare: ×2.0)"
    assert why(sign)[2].endswith("from the closest chosen before it, doubted.jpg")


def test_by_uncertainty_alone() -> None:
    choice = choose(POOL, LABELS, 2, breadth=1)
    assert [image.path.name for image in choice.images] == ["doubted.jpg", "twin.jpg"]
    assert choice.images[1].distance == 0


def test_more_than_there_are() -> None:
    choice = choose(POOL, LABELS, 50, breadth=4)
    assert {image.path for image in choice.images} == {image.path for image in POOL.images}
    assert [row.name for row in choice.classes] == ["road", "sign"]
    assert [row.in_pool for row in choice.classes] == pytest.approx([7 / 8, 1 / 8])
    assert sum(row.of_score for row in choice.classes) == pytest.approx(1)


def test_one_image_of_which_nothing_is_doubted() -> None:
    choice = choose(pool(("sure.jpg", [0.0, 0.0], [4, 0], [2.0])), LABELS, 1, breadth=4)
    assert choice.images[0].score == 0 and choice.images[0].reasons == ()
    assert choice.images[0].to_dict() == {
        "image": "sure.jpg", "score": 0, "rank": 1, "classes": {}, "nearest": None, "distance": None
    }  # fmt: skip
