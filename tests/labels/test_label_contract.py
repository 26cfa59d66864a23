"""The label contract as properties: from ids or colours to training ids, by any form that a label map takes."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segtune.errors import UsageError
from segtune.labels.label_map import LabelError, LabelMap

NAMES = st.sampled_from(["road", "sky", "tree", "car", "pole", "sign"])
IDS = st.one_of(st.integers(0, 254), st.integers(300, 70_000))
COLORS = st.tuples(*[st.integers(0, 255)] * 3)


def classes(keys: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[Any, str | None]]:
    """Mask value -> name, with values that are merged and values that are ignored; at least one has a name."""
    table = st.dictionaries(keys, st.one_of(NAMES, st.none()), min_size=1, max_size=12)
    return table.filter(lambda found: any(found.values()))


def mask_of(values: list[Any], size: int = 40) -> np.ndarray:
    """(8, size / 8) or (8, size / 8, 3): every value at least once, where there are up to `size`."""
    return np.array([values[i % len(values)] for i in range(size)]).reshape(8, size // 8, *np.shape(values[0]))


@given(classes(IDS))
@settings(deadline=None, max_examples=60)
def test_ids_become_the_training_id_of_their_name(table: dict[int, str | None]) -> None:
    label_map = LabelMap.from_ids(table)
    assert list(label_map.names) == list(dict.fromkeys(name for _, name in sorted(table.items()) if name))
    mask = mask_of(list(table))
    labels = label_map.encode(mask)
    for mask_id, label in zip(mask.ravel().tolist(), labels.ravel().tolist(), strict=True):
        name = table[mask_id]
        assert label == (255 if name is None else label_map.names.index(name))


@given(classes(COLORS))
@settings(deadline=None, max_examples=60)
def test_colors_become_the_training_id_of_their_name(table: dict[Any, str | None]) -> None:
    label_map = LabelMap.from_colors(table)
    mask = mask_of(list(table)).astype(np.uint8)
    labels = label_map.encode(mask)
    alpha = np.random.default_rng(0).integers(0, 256, mask.shape[:2], dtype=np.uint8)
    np.testing.assert_array_equal(label_map.encode(np.dstack([mask, alpha])), labels)
    for color, label in zip(mask.reshape(-1, 3).tolist(), labels.ravel().tolist(), strict=True):
        name = table[tuple(color)]
        assert label == (255 if name is None else label_map.names.index(name))
    for label, name in enumerate(label_map.names):  # a class is shown in its first mask colour
        assert label_map.colors[label] == next(color for color, found in table.items() if found == name)


@given(classes(st.integers(0, 254)))
@settings(deadline=None, max_examples=40)
def test_labels_do_not_depend_on_how_a_mask_is_stored(table: dict[int, str | None]) -> None:
    label_map = LabelMap.from_ids(table)
    mask = mask_of([*table, 255])
    labels = label_map.encode(mask)
    for dtype in (np.uint8, np.uint16, np.int32, np.int64):
        np.testing.assert_array_equal(label_map.encode(mask.astype(dtype)), labels)
    grey = np.repeat(mask.astype(np.uint8)[:, :, None], 3, axis=2)
    np.testing.assert_array_equal(label_map.encode(grey), labels)
    hidden = np.ma.masked_array(mask, mask == next(iter(table)))
    np.testing.assert_array_equal(label_map.encode(hidden), np.where(hidden.mask, 255, labels))


@given(classes(IDS), st.sampled_from([255, 254, -100, 70_001]))
@settings(deadline=None, max_examples=40)
def test_ignored_pixels_are_no_class(table: dict[int, str | None], ignore_index: int) -> None:
    label_map = LabelMap.from_ids(table, ignore_index=ignore_index)
    labels = label_map.encode(mask_of([*table, ignore_index] if ignore_index not in table else list(table)))
    assert not 0 <= label_map.ignore_index < label_map.num_labels
    assert set(labels.ravel().tolist()) <= {*range(label_map.num_labels), ignore_index}
    assert (label_map.colorize(labels)[labels == ignore_index] == 0).all()
    counts = [int((labels == label).sum()) for label in (*range(label_map.num_labels), ignore_index)]
    assert label_map.count_pixels(labels).tolist() == counts


@given(st.integers(1, 6), st.integers(-3, 9))
@settings(deadline=None, max_examples=30)
def test_an_ignore_index_that_is_a_class_is_refused(number: int, ignore_index: int) -> None:
    names = [f"class {i}" for i in range(number)]
    if 0 <= ignore_index < number:
        with pytest.raises(UsageError, match="is the training id of"):
            LabelMap.from_names(names, ignore_index=ignore_index)
    else:
        assert LabelMap.from_names(names, ignore_index=ignore_index).ignore_index == ignore_index


@given(st.one_of(classes(IDS).map(LabelMap.from_ids), classes(COLORS).map(LabelMap.from_colors)))
@settings(deadline=None, max_examples=60)
def test_label_maps_come_back_from_json_and_from_a_config(label_map: LabelMap) -> None:
    data = json.loads(json.dumps(label_map.to_dict()))
    assert LabelMap.from_dict(data) == label_map
    assert LabelMap.from_dict(data).to_dict() == label_map.to_dict()
    assert LabelMap.from_config(SimpleNamespace(**label_map.config_fields())) == label_map


@given(classes(st.integers(0, 200)), st.dictionaries(st.integers(201, 254), st.integers(1, 5), min_size=1, max_size=4))
@settings(deadline=None, max_examples=40)
def test_values_without_a_name_are_refused_and_counted(table: dict[int, str | None], strange: dict[int, int]) -> None:
    label_map = LabelMap.from_ids(table)
    mask = np.array([[*table, *(value for value, count in strange.items() for _ in range(count))]], np.uint8)
    with pytest.raises(LabelError) as error:
        label_map.encode(mask)
    assert error.value.values == label_map.unknown(mask) == strange
