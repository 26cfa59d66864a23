from __future__ import annotations

import json
import math
import zipfile

import numpy as np
import pytest

from segtune.errors import DataError, UsageError
from segtune.evaluation.evaluation import Evaluation, file_name, find_evaluations
from segtune.evaluation.metrics import BoundaryScores, CalibrationError, MeanImageIoU, SegmentationScores, SizeScores

NAMES = ("sky", "road", "car", "bus")


def samples(number: int, seed: int = 0):
    """(id, labels, prediction, confidence) of images of different sizes; "bus" occurs nowhere."""
    rng = np.random.default_rng(seed)
    for index in range(number):
        shape = tuple(rng.integers(20, 90, 2))
        labels = rng.integers(0, 3, (shape[0] // 8 + 1, shape[1] // 8 + 1)).repeat(8, 0).repeat(8, 1)
        labels = labels[: shape[0], : shape[1]].astype(np.uint8)
        prediction = np.where(rng.random(shape) < 0.2, rng.integers(0, 3, shape), labels).astype(np.uint8)
        labels[rng.random(shape) < 0.05] = 255
        yield f"drive{index % 3}/{index:03}", labels, prediction, rng.uniform(0.3, 1, shape).astype(np.float32)


def evaluated(number: int = 7, **settings) -> Evaluation:
    evaluation = Evaluation(NAMES, **settings)
    for sample in samples(number):
        evaluation.add(*sample)
    return evaluation


def test_scores_are_those_of_the_metrics():
    evaluation = evaluated(detailed=True, boundary_width=0.03)
    found = evaluation.scores()
    json.dumps(found, allow_nan=False)
    _, labels, predictions, confidences = map(list, zip(*samples(7), strict=True))
    pair = {"predictions": predictions, "references": labels}
    overall = SegmentationScores(4).compute(**pair)
    for key in ("mean_iou", "mean_accuracy", "overall_accuracy", "mean_dice", "frequency_weighted_iou", "kappa"):
        assert found[key] == pytest.approx(overall[key], rel=1e-12)
    assert found["mean_image_iou"] == pytest.approx(MeanImageIoU(4).compute(**pair)["mean_image_iou"])
    details = BoundaryScores(4, width=0.03).compute(**pair) | SizeScores(4).compute(**pair)
    for key, value in (overall | details).items():
        if key.startswith("per_category_"):
            own = [row[key.removeprefix("per_category_")] for row in found["per_class"].values()]
            np.testing.assert_allclose([math.nan if v is None else v for v in own], value, rtol=1e-12)
    assert found["mean_boundary_f1"] == details["mean_boundary_f1"]
    calibration = CalibrationError(4, width=0.03).compute(**pair, confidences=confidences)
    assert found["calibration"]["all"]["ece"] == pytest.approx(calibration["ece"])
    assert found["calibration"]["boundary"]["ece"] == pytest.approx(calibration["boundary_ece"])
    np.testing.assert_array_equal(evaluation.confusion, overall["confusion"])
    bus = found["per_class"]["bus"]
    assert (bus["iou"], bus["precision"], bus["boundary_f1"], bus["pixels"], bus["images"]) == (None,) * 3 + (0, 0)


def test_a_plain_one_has_pixels_only():
    found = evaluated().scores()
    assert list(found["per_class"]["car"]) == ["iou", "accuracy", "precision", "recall", "dice", "pixels", "images"]
    assert "mean_boundary_iou" not in found and "calibration" not in found
    detailed = evaluated(detailed=True).scores()
    assert found["per_class"]["car"]["iou"] == detailed["per_class"]["car"]["iou"]


def test_nothing_and_ignored_images_have_no_scores():
    for evaluation in (Evaluation(NAMES), Evaluation(NAMES, detailed=True)):
        assert evaluation.scores()["mean_iou"] is None
        evaluation.add("x", np.full((4, 5), 255), np.zeros((4, 5), int), np.ones((4, 5), np.float32))
        found = evaluation.scores()
        assert (found["num_images"], found["mean_iou"], found["mean_image_iou"]) == (1, None, None)
        assert evaluation.counts.ids == ["x"]


def test_image_iou():
    evaluation = Evaluation(NAMES)
    evaluation.add("a", np.array([[0, 1]]), np.array([[0, 1]]))
    evaluation.add("b", np.array([[0, 0, 255]]), np.array([[0, 1, 2]]))
    evaluation.add("c", np.array([[255]]), np.array([[2]]))
    np.testing.assert_array_equal(evaluation.image_iou(), [1, 0.25, np.nan])


def test_parts_of_several_processes_add_up(tmp_path):
    whole, parts = evaluated(detailed=True), [Evaluation(NAMES, detailed=True) for _ in range(3)]
    for index, sample in enumerate(samples(7)):
        parts[index % 3].add(*sample)
    merged = parts[2].merge(parts[0]).merge(parts[1])
    assert merged is parts[2] and len(merged) == 7
    assert merged.scores() == whole.scores()
    for name, evaluation in (("a", whole), ("b", merged)):
        evaluation.save(tmp_path / name)
    with zipfile.ZipFile(tmp_path / "a") as a, zipfile.ZipFile(tmp_path / "b") as b:
        assert [a.read(name) for name in a.namelist()] == [b.read(name) for name in b.namelist()]
    with pytest.raises(DataError, match="was counted twice"):
        merged.merge(parts[0])
    with pytest.raises(ValueError, match="two evaluations differ"):
        merged.merge(Evaluation(NAMES))


def test_faults_name_the_image():
    evaluation = Evaluation(NAMES)
    with pytest.raises(DataError, match=r"image 'x': the labels are \(2, 3\), the prediction \(3, 2\)"):
        evaluation.add("x", np.zeros((2, 3), int), np.zeros((3, 2), int))
    with pytest.raises(DataError, match="image 'x': predictions hold id 4"):
        evaluation.add("x", np.zeros((2, 3), int), np.full((2, 3), 4))
    assert len(evaluation) == 0 and evaluation.confusion.sum() == 0


# the file


def test_file_gives_everything_back(tmp_path):
    evaluation = evaluated(detailed=True, boundary_width=0.01, ignore_index=255)
    evaluation.about = {"split": "test", "checkpoint": "runs/x/best"}
    path = tmp_path / "new" / "folder" / file_name("test")
    evaluation.save(path)
    back = Evaluation.load(path)
    assert back.scores() == evaluation.scores()
    assert (back.about, back.names, back.boundary_width) == (evaluation.about, NAMES, 0.01)
    assert back.counts.ids == sorted(back.counts.ids) and len(back) == 7
    assert [file.name for file in path.parent.iterdir()] == ["evaluation-test.npz"]
    with np.load(path, allow_pickle=False) as file:  # as documented, for others to read
        assert file["counts"].shape == (file["rows"].sum(), len(file["columns"]))
        assert file["reliability"].shape == (7, 2, 15, 3)
        assert json.loads(str(file["about"]))["fingerprint"] == back.counts.fingerprint()


def test_a_plain_one_is_saved_without_calibration(tmp_path):
    evaluated().save(tmp_path / "x.npz")
    assert Evaluation.load(tmp_path / "x.npz").scores() == evaluated().scores()


def test_files_that_are_no_evaluation_are_refused(tmp_path):
    path = tmp_path / "x.npz"
    with pytest.raises(UsageError, match="no such evaluation"):
        Evaluation.load(path)
    evaluated().save(path)
    content = path.read_bytes()
    for broken in (content[: len(content) // 2], b"", b"text", content[:200] + b"\0" * 9 + content[209:]):
        path.write_bytes(broken)
        with pytest.raises(DataError, match=r"x\.npz is no evaluation saved by segtune, or is torn"):
            Evaluation.load(path)
    np.savez(path, ids=np.array(["a"]))
    with pytest.raises(DataError, match="is no evaluation"):
        Evaluation.load(path)


def test_changed_data_and_later_formats_are_refused(tmp_path):
    path = tmp_path / "x.npz"
    evaluated().save(path)
    with np.load(path) as file:
        arrays = dict(file)
    counts = arrays["counts"].copy()
    counts[0, 1] += 1
    np.savez(path, **arrays | {"counts": counts})
    with pytest.raises(DataError, match="the fingerprint of its data differs"):
        Evaluation.load(path)
    about = json.loads(str(arrays["about"])) | {"format": 2}
    np.savez(path, **arrays | {"about": np.array(json.dumps(about))})
    with pytest.raises(DataError, match="has format 2, this version of segtune reads 1"):
        Evaluation.load(path)


def test_evaluations_of_runs_are_found(tmp_path):
    for run, splits in (("a", ("val", "test")), ("b", ("val",)), ("c", ("val", "test")), ("d", ())):
        (tmp_path / run).mkdir()
        for split in splits:
            (tmp_path / run / file_name(split)).touch()
    a, b, c, d = (tmp_path / run for run in "abcd")

    def names(*runs, split=None):
        return [path.relative_to(tmp_path).as_posix() for path in find_evaluations(runs, split)]

    assert names(a, c) == ["a/evaluation-test.npz", "c/evaluation-test.npz"]
    assert names(a, b) == ["a/evaluation-val.npz", "b/evaluation-val.npz"]
    assert names(a, c, split="val") == ["a/evaluation-val.npz", "c/evaluation-val.npz"]
    assert names(str(b / file_name("val")), a) == ["b/evaluation-val.npz", "a/evaluation-test.npz"]
    with pytest.raises(UsageError, match=f"segtune evaluate {d}/best {d}/recipe.yaml --split test --save {d}"):
        find_evaluations([a, d])
    with pytest.raises(UsageError, match="no such run folder"):
        find_evaluations([a, tmp_path / "e"])
