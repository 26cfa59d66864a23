from __future__ import annotations

import json

import numpy as np
import pytest

from segtune.errors import UsageError
from segtune.evaluation.bootstrap import bootstrap
from segtune.evaluation.evaluation import Evaluation
from segtune.evaluation.scores import ratio
from segtune.evaluation.uncertainty import compare, expanded_level, intervals, units_of

NAMES = ("sky", "road", "car", "bus")


def evaluated(wrong: float, seed: int = 0, ids=range(30), data_seed: int = 7) -> Evaluation:
    """Images of three classes, with a share of "car" predicted as "road" that differs between images."""
    evaluation, rng = Evaluation(NAMES), np.random.default_rng(seed)
    for index in ids:
        labels = np.random.default_rng((data_seed, index)).choice(3, (20, 20), p=(0.5, 0.3, 0.2))
        missed = (labels == 2) & (rng.random(labels.shape) < rng.uniform(0, 2 * wrong))
        evaluation.add(f"v{index % 6}/{index}", labels, np.where(missed, 1, labels))
    return evaluation


def test_intervals_hold_the_scores():
    evaluation = evaluated(0.3)
    found = intervals(evaluation, resamples=2000)
    json.dumps(found, allow_nan=False)
    scores = evaluation.scores()
    assert (found["unit"], found["units"], found["level"], found["resamples"]) == ("image", 30, 0.95, 2000)
    for kind in ("bca", "percentile"):
        low, high = found["mean_iou"][kind]
        assert low < scores["mean_iou"] < high and high - low < 0.1
        low, high = found["per_class"]["car"][kind]
        assert low < scores["per_class"]["car"]["iou"] < high
    assert found["per_class"]["sky"]["bca"] == [1, 1]
    assert found["per_class"]["bus"] == {"bca": [None, None], "percentile": [None, None], "defined": 0}


def test_two_images_have_the_widest_interval():
    found = intervals(evaluated(0.3, ids=range(2)), resamples=200)
    alone = [evaluated(0.3, ids=range(2)).image_iou(), evaluated(0.3, ids=range(2)).scores()["mean_iou"]]
    low, high = found["mean_iou"]["bca"]
    assert low == pytest.approx(min(alone[0]), abs=1e-6) and high == pytest.approx(max(alone[0]), abs=1e-6)
    assert low < alone[1] < high


def test_groups_are_resampled_as_a_whole():
    evaluation = Evaluation(NAMES)
    for video in range(8):  # ten times the same image is no more than one image
        labels = np.random.default_rng(video).integers(0, 2, (20, 20))
        missed = np.random.default_rng(video + 50).random(labels.shape) < 0.05 * video
        for frame in range(10):
            evaluation.add(f"{video}/{frame}", labels, np.where(missed, 1 - labels, labels))
    of_images, of_groups = intervals(evaluation), intervals(evaluation, group_by="^[^/]+")
    assert (of_groups["unit"], of_groups["units"]) == ("group", 8)
    width = [np.diff(found["mean_iou"]["percentile"])[0] for found in (of_images, of_groups)]
    assert width[1] == pytest.approx(width[0] * 10**0.5, rel=0.25)
    with pytest.raises(UsageError, match=r"--group-by /: all images are one group \(/\)"):
        intervals(evaluation, group_by="/")
    with pytest.raises(UsageError, match="no images"):
        intervals(Evaluation(NAMES))


def simulated(seed: int, number: int) -> np.ndarray:
    """Correct pixels and union of one class in each image; its IoU, of expected sums, is 5 / 6."""
    rng = np.random.default_rng(seed)
    union = rng.gamma(2.0, 1000, number).round() + 1
    return np.stack([union * rng.beta(5, 1, number), union], axis=1)


@pytest.mark.parametrize(("number", "data_sets"), [(80, 1000), (200, 500)])
def test_coverage(number, data_sets):
    """Nominal 95 % intervals hold the true value in 92 to 98 % of simulated data sets."""
    held, level = [], expanded_level(0.95, number)
    for seed in range(data_sets):
        found = bootstrap(simulated(seed, number), lambda s: ratio(*np.split(s, 2, -1)), level=level, resamples=600)
        held.append([ends[0] <= 5 / 6 <= ends[1] for ends in (found.bca[0], found.percentile[0])])
    assert all(0.92 <= share <= 0.98 for share in np.mean(held, axis=0))


def test_coverage_of_a_difference():
    """The same for two runs on the same images, of which the second misses a tenth more on average."""
    held, level = [], expanded_level(0.95, 80)
    for seed in range(500):
        correct, union = simulated(seed, 80).T
        missed = correct * np.random.default_rng(seed + 10_000).uniform(0.8, 1.0, 80)
        counts = np.stack([correct, union, missed, union], axis=1)
        found = bootstrap(
            counts, lambda s: ratio(s[..., 2:3] - s[..., :1], s[..., 1:2]), level=level, resamples=600, seed=seed
        )
        held.append(found.bca[0, 0] <= -0.1 * 5 / 6 <= found.bca[0, 1])
    assert 0.92 <= np.mean(held) <= 0.98


def test_few_images_get_wider_intervals():
    assert [round(expanded_level(0.95, units), 3) for units in (5, 20, 80, 100_000)] == [0.998, 0.968, 0.955, 0.95]
    assert expanded_level(0.9, 1) == 0.9


def test_a_run_with_itself():
    found = compare(evaluated(0.3), evaluated(0.3), resamples=500)
    json.dumps(found, allow_nan=False)
    mean = found["mean_iou"]
    assert (mean["difference"], mean["bca"], mean["percentile"], mean["p_value"]) == (0, [0, 0], [0, 0], 1)
    for name in NAMES[:3]:
        row = found["per_class"][name]
        assert (row["difference"], row["p_value"], row["q_value"], row["changed"]) == (0, 1, 1, False)
    bus = found["per_class"]["bus"]
    assert (bus["difference"], bus["p_value"], bus["q_value"], bus["changed"], bus["images"]) == (None,) * 3 + (
        False,
        0,
    )


def test_a_better_run():
    first, second = evaluated(0.4), evaluated(0.1, seed=1)
    found = compare(first, second, resamples=999)
    mean, scores = found["mean_iou"], [run.scores()["mean_iou"] for run in (first, second)]
    assert [mean["first"], mean["second"]] == pytest.approx(scores)
    assert mean["difference"] == pytest.approx(scores[1] - scores[0]) and mean["difference"] > 0.05
    assert 0 < mean["bca"][0] < mean["difference"] < mean["bca"][1]
    assert mean["p_value"] == 1 / 1000
    assert {name: row["changed"] for name, row in found["per_class"].items()} == {
        "sky": False, "road": True, "car": True, "bus": False,
    }  # fmt: skip
    back = compare(second, first, resamples=999)["mean_iou"]
    assert back["difference"] == -mean["difference"] and back["p_value"] == mean["p_value"]
    grouped = compare(first, second, group_by=r"^v\d", resamples=999)
    assert (grouped["unit"], grouped["units"]) == ("group", 6)
    assert grouped["mean_iou"]["difference"] == mean["difference"]


def test_runs_that_differ_by_chance_only():
    found = compare(evaluated(0.3, seed=1), evaluated(0.3, seed=2), resamples=999)
    assert found["mean_iou"]["bca"][0] < 0 < found["mean_iou"]["bca"][1]
    assert found["mean_iou"]["p_value"] > 0.05
    assert not any(row["changed"] for row in found["per_class"].values())


def test_the_order_of_the_images_does_not_matter():
    first, second = evaluated(0.4), evaluated(0.1, seed=1)
    shuffled = evaluated(0.4, ids=range(0))
    labels_of = evaluated(0.4)
    order = np.random.default_rng(0).permutation(30)
    for image_id in np.array(labels_of.counts.ids)[order]:
        shuffled.counts._append(image_id, labels_of.counts._rows[image_id])
    assert compare(shuffled, second, resamples=99)["mean_iou"] == compare(first, second, resamples=99)["mean_iou"]


def test_other_images_masks_and_classes_are_refused():
    run = evaluated(0.3)
    with pytest.raises(
        UsageError, match=r"on different images; only in the first: v0/0, v1/1; only in the second: v0/30$"
    ):
        compare(run, evaluated(0.3, ids=range(2, 31)))
    with pytest.raises(UsageError, match=r"only in the first: v0/0, v0/12, v0/18, v0/24, v0/6 and 25 more$"):
        compare(run, evaluated(0.3, ids=range(0)))
    other = evaluated(0.3, ids=range(29))
    labels = np.zeros((20, 20), int)
    other.add("v5/29", labels, labels)
    with pytest.raises(UsageError, match="masks that the runs were evaluated on differ: v5/29; evaluate both"):
        compare(run, other)
    with pytest.raises(UsageError, match="the classes differ: sky, road, car, bus and a, b, c, d"):
        compare(run, Evaluation(("a", "b", "c", "d")))


def test_groups():
    ids = ["drive2/7", "drive1/3", "drive2/1"]
    for pattern in ("^[^/]+", r"drive(\d)", "(drive)(.)"):
        unit, groups = units_of(ids, pattern)
        assert unit == "group" and groups.tolist() == [1, 0, 1]
    with pytest.raises(UsageError, match="--group-by x: does not occur in 3 ids, such as 'drive2/7'"):
        units_of(ids, "x")
    with pytest.raises(UsageError, match=r"--group-by \(: no regular expression"):
        units_of(ids, "(")
