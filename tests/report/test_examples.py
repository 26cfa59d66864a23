from __future__ import annotations

import numpy as np
import pytest

from segtune.data.dataset import load_segmentation_dataset
from segtune.evaluation.label_issues import LabelIssue
from segtune.labels.label_map import LabelMap
from segtune.report.examples import BEST, RANDOM, WORST, _choose, examine
from segtune.report.gather import Facts
from segtune.segformer.image_processing_segformer import SegformerImageProcessor
from support.report_data import Reader, write_data


def test_every_image_is_counted_and_the_right_ones_are_shown(facts: Facts) -> None:
    found = facts.examination
    assert found is not None and len(found.evaluation) == 12
    assert found.chosen["worst"] == ["doubted", "a9", "a8", "a7", "a6", "a5"]
    assert found.chosen["best"] == ["unsure", "a0", "a1"]
    assert sorted(found.chosen["random"]) == ["a2", "a3", "a4"]  # all that is left
    assert (found.chosen["suspects"], found.standing_out) == (["doubted"], 1)
    assert set(found.pictures) == {image for images in found.chosen.values() for image in images}


def test_what_is_said_of_an_image(facts: Facts) -> None:
    assert facts.examination is not None
    pictures = facts.examination.pictures
    worst = pictures["doubted"]
    assert worst.doubt == (0.5, (2, 0)) and worst.mistake == (2, 0, 0.5) and worst.wrong == 0.5
    assert worst.iou == pytest.approx((0 + 1 + 0) / 3)  # sky and car wrong, road right
    assert worst.layers.classes == {0, 1, 2}
    best = pictures["unsure"]
    assert (best.iou, best.wrong, best.mistake, best.doubt) == (1.0, 0.0, None, LabelIssue(0.0, None))
    nine = pictures["a9"]
    assert nine.doubt.share == 0  # wrong, but not sure
    assert nine.wrong == pytest.approx(36 * 16 / (32 * 48), abs=0.02)  # upsampled along the border of the classes
    assert nine.mistake is not None and nine.mistake[:2] == (1, 2)


def test_of_many_images_some_are_looked_at(tmp_path, processor: SegformerImageProcessor, label_map: LabelMap) -> None:
    write_data(tmp_path)
    data = load_segmentation_dataset(str(tmp_path), val_fraction=0)["test"]
    some = examine(Reader(), data, label_map, processor, at_most=4, progress=False)
    assert some.evaluation.counts.ids == ["a0", "a3", "a6", "a9"]
    assert some.chosen["worst"] == ["a9", "a6"] and some.chosen["best"] == ["a0", "a3"]
    whole = examine(Reader(), data, label_map, processor, progress=False).evaluation
    both = examine(Reader(), data, label_map, processor, counted=whole, at_most=4, progress=False)
    assert both.chosen["worst"][0] == "doubted"  # by what was counted before
    assert set(both.doubts) == {"a0", "a3", "a6", "a9"} and "doubted" in both.pictures


def test_no_image_is_worst_and_best_and_random() -> None:
    doubts = {f"{index:02}": LabelIssue(0.0, None) for index in range(40)}
    iou = {image: 1 - index / 100 for index, image in enumerate(doubts)}
    chosen, standing_out = _choose(iou, doubts)
    shown = [*chosen["worst"], *chosen["best"], *chosen["random"]]
    assert len(shown) == len(set(shown)) == WORST + BEST + RANDOM
    assert chosen["worst"][0] == "39" and chosen["best"] == ["00", "01", "02"]
    assert _choose(iou, doubts)[0] == chosen  # always the same
    assert (chosen["suspects"], standing_out) == ([], 0)
    one, _ = _choose({"00": 0.5, "nothing labelled": np.nan}, {"00": LabelIssue(0.01, (0, 1))})
    assert one == {"worst": ["00"], "best": [], "random": [], "suspects": ["00"]}
