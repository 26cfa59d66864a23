"""Counting against hand-computed cases, scikit-learn and evaluate's formula."""

from __future__ import annotations

import numpy as np
import pytest
import sklearn.metrics
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from segtune.errors import DataError
from segtune.evaluation.confusion import as_maps, check_ids, count_pairs, pairs_of_maps


def random_maps(seed: int, num_labels: int, ignore_index: int, shape: tuple[int, ...], dtype: str, cell: int = 1):
    """A prediction and a reference that agree in part; constant in cells, as real maps are in large parts."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, num_labels, [-(-side // cell) for side in shape])
    prediction = small.repeat(cell, 0).repeat(cell, 1)[: shape[0], : shape[1]]
    reference = np.where(rng.random(shape) < 0.05, rng.integers(0, num_labels, shape), np.roll(prediction, 1, axis=1))
    reference[: shape[0] // 8] = ignore_index
    return prediction.astype(dtype), reference.astype(dtype)


def formula_of_evaluate(prediction, reference, num_labels, ignore_index):
    """evaluate's mean_iou counts with masks and three histograms."""
    valid = reference != ignore_index
    prediction, reference = prediction[valid], reference[valid]
    bins = {"bins": num_labels, "range": (0, num_labels - 1)}
    correct = np.histogram(prediction[prediction == reference], **bins)[0]
    return correct, np.histogram(reference, **bins)[0], np.histogram(prediction, **bins)[0]


def test_by_hand():
    counts = count_pairs(np.array([[0, 0, 1], [1, 2, 2]]), np.array([[0, 1, 1], [255, 2, 0]]), 4)
    assert counts.tolist() == [[1, 0, 1, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize("cell", [1, 32])  # pixels are counted, runs are counted
@pytest.mark.parametrize(("num_labels", "ignore_index", "dtype"), [
    (4, 255, "uint8"),
    (4, 255, "int64"),
    (4, -100, "int64"),
    (4, 0, "uint8"),
    (150, 255, "int16"),
    (256, -1, "int32"),
    (256, 300, "uint16"),
    (300, 255, "int32"),
    (300, 65535, "uint16"),
    (1, 255, "uint8"),
])  # fmt: skip
def test_equals_scikit_learn_and_the_formula_of_evaluate(num_labels, ignore_index, dtype, cell):
    prediction, reference = random_maps(0, num_labels, ignore_index, (601, 700), dtype, cell)  # more than one chunk
    counts = count_pairs(prediction, reference, num_labels, ignore_index)
    valid = reference != ignore_index
    if num_labels == 1:  # the others warn of a single class
        assert counts.tolist() == [[valid.sum()]]
        return
    theirs = sklearn.metrics.confusion_matrix(reference[valid], prediction[valid], labels=range(num_labels))
    np.testing.assert_array_equal(counts, theirs)
    own = (counts.diagonal(), counts.sum(axis=1), counts.sum(axis=0))
    for ours, others in zip(own, formula_of_evaluate(prediction, reference, num_labels, ignore_index), strict=True):
        np.testing.assert_array_equal(ours, others)


def test_long_runs_are_counted_from_the_first_pixel_on():
    prediction, reference = np.ones((4, 100), np.uint8), np.zeros((4, 100), np.uint8)
    reference[2:] = 1
    assert count_pairs(prediction, reference, 2).tolist() == [[0, 200], [0, 200]]


@pytest.mark.parametrize("largest", [127, 128, 129])  # codes of 16 bits change their sign at 128
def test_many_classes_in_short_runs(largest):
    reference = np.arange(largest + 1, dtype=np.uint8)[None].repeat(3, 0)
    counts = count_pairs(reference[:, ::-1], reference, 150, -100)
    assert counts[range(largest + 1), range(largest, -1, -1)].tolist() == [3] * (largest + 1)
    assert counts.sum() == reference.size


@pytest.mark.parametrize("ignore_index", [-1, 0, 255, 256])
def test_bytes_without_an_ignored_pixel(ignore_index):
    maps = np.ones((2, 3), np.uint8)
    assert count_pairs(maps, maps, 2, ignore_index).tolist() == [[0, 0], [0, 6]]


def test_no_pixels():
    assert count_pairs(np.zeros((0, 3), np.uint8), np.zeros((0, 3), np.uint8), 2).tolist() == [[0, 0], [0, 0]]
    assert count_pairs(np.ones((1, 1), bool), np.ones((1, 1), bool), 2).tolist() == [[0, 0], [0, 1]]


@pytest.mark.parametrize("dtype", ["uint8", "int64"])
@pytest.mark.parametrize("ignore_index", [255, -100])
def test_ids_out_of_range_are_named(dtype, ignore_index):
    good, bad = np.array([[0, 1, 2, 1]], dtype), np.array([[0, 7, 7, 9]], dtype)
    fix = f"classes are 0 to 2; pixels that do not count need {ignore_index}"
    with pytest.raises(DataError, match=rf"references hold id 7 \(2 pixels\), 9 \(1 pixels\), but {fix}"):
        count_pairs(good, bad, 3, ignore_index)
    with pytest.raises(DataError, match=r"predictions hold id 7 \(2 pixels\), 9 \(1 pixels\), but classes are 0 to 2$"):
        count_pairs(bad, good, 3, ignore_index)


def test_negative_and_large_ids_are_out_of_range():
    with pytest.raises(DataError, match=r"id -1 \(1 pixels\)"):
        count_pairs(np.array([[0]]), np.array([[-1]]), 3)
    with pytest.raises(DataError, match=r"id 256 \(1 pixels\)"):
        count_pairs(np.array([[256]]), np.array([[0]]), 3)
    with pytest.raises(DataError, match="and 1 more"):
        count_pairs(np.zeros((1, 6), int), np.arange(10, 16)[None], 3)


@pytest.mark.parametrize("predicted", [255, -7, 1])
def test_what_is_predicted_on_ignored_pixels_does_not_matter(predicted):
    counts = count_pairs(np.array([[0, predicted]]), np.array([[0, 255]]), 2)
    assert counts.tolist() == [[1, 0], [0, 0]]


def test_arrays_tensors_lists_and_batches_are_the_same_maps():
    maps = np.arange(3 * 6 * 7).reshape(3, 6, 7)
    forms = [list(maps), maps, torch.from_numpy(maps), [torch.from_numpy(m) for m in maps], maps.tolist()]
    forms += [np.asfortranarray(maps), [maps[:2], maps[2]]]
    for form in forms:
        np.testing.assert_array_equal(np.stack(as_maps(form)), maps)
    np.testing.assert_array_equal(as_maps(maps[0].tolist())[0], maps[0])  # rows of one map


@pytest.mark.parametrize(("predictions", "references", "message"), [
    (np.zeros((2, 3), int), np.zeros((3, 2), int), r"prediction is \(2, 3\), its reference \(3, 2\)"),
    ([np.zeros((2, 3), int)], [np.zeros((2, 3), int)] * 2, "1 predictions but 2 references"),
    (np.zeros((2, 3)), np.zeros((2, 3), int), "predictions are integer ids .*float64"),
    (torch.zeros(2, 3).long(), torch.zeros(2, 3), "references are integer ids .*float32"),
    ([[[0, 1], [0]]], [[[0, 1], [0, 1]]], "maps"),
    (np.zeros((1, 2, 3, 4), int), np.zeros((1, 2, 3, 4), int), r"maps are \(height, width\)"),
    (np.zeros(5, int), np.zeros(5, int), r"not \(5,\)"),
])  # fmt: skip
def test_maps_that_do_not_fit_are_refused(predictions, references, message):
    with pytest.raises(DataError, match=message):
        list(pairs_of_maps(predictions, references))


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_counts_are_those_of_one_pixel_after_another(data: st.DataObject) -> None:
    num_labels = data.draw(st.integers(1, 300))
    ignore_index = data.draw(st.sampled_from([-100, num_labels, 255 if num_labels <= 255 else 999]))
    shape = data.draw(array_shapes(min_dims=1, max_dims=3, max_side=8))
    ids = st.integers(0, num_labels - 1)
    prediction = data.draw(arrays(np.int64, shape, elements=ids | st.integers(-1000, 1000).filter(lambda i: i != 0)))
    reference = data.draw(arrays(np.int64, shape, elements=ids | st.just(ignore_index)))
    prediction = np.where(reference == ignore_index, prediction, prediction % num_labels)
    naive = np.zeros((num_labels, num_labels), int)
    for row, column in zip(reference.flat, prediction.flat, strict=True):
        if row != ignore_index:
            naive[row, column] += 1
    np.testing.assert_array_equal(count_pairs(prediction, reference, num_labels, ignore_index), naive)
    check_ids(prediction, reference, num_labels, ignore_index)
    wrong = data.draw(st.integers(num_labels, 2000).filter(lambda i: i != ignore_index) | st.integers(-90, -1))
    reference.flat[data.draw(st.integers(0, reference.size - 1))] = wrong
    for refuse in (count_pairs, check_ids):
        with pytest.raises(DataError, match=rf"references hold id {wrong} \(1 pixels\)"):
            refuse(prediction.clip(0, num_labels - 1), reference, num_labels, ignore_index)


def test_counting_waits_for_no_other_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine the partner of a small operation may come late. Afterwards the threads are as before."""
    bincount, threads = torch.bincount, []
    monkeypatch.setattr(torch, "bincount", lambda ids: (threads.append(torch.get_num_threads()), bincount(ids))[1])
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        noise = np.random.default_rng(0).integers(0, 5, (2, 64, 64), dtype=np.uint8)
        assert count_pairs(*noise, 5).sum() == 64 * 64
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert threads == [1]
