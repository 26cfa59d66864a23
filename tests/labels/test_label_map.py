"""The label contract: every way of making it, and what it does to masks."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from segtune.errors import DataError, UsageError
from segtune.labels.label_map import LabelError, LabelMap
from segtune.labels.mask_values import count_values

ROAD, CAR, BLACK = (128, 64, 128), (0, 0, 142), (0, 0, 0)


def colors_of(mask: np.ndarray, table: dict[int, tuple[int, int, int]]) -> np.ndarray:
    """Paint ids as colours, pixel by pixel."""
    return np.array([[table[int(value)] for value in row] for row in mask], dtype=np.uint8)


# -- making one -------------------------------------------------------------------------------------------------------


def test_names_are_numbered_in_order() -> None:
    labels = LabelMap.from_names(["sky", "road"])
    assert labels.num_labels == 2
    assert labels.id2label == {0: "sky", 1: "road"}
    assert labels.label2id == {"sky": 0, "road": 1}
    assert labels.ids == {0: 0, 1: 1, 255: None}
    assert labels.mask_colors is None


def test_ids_merge_by_name_and_are_numbered_by_ascending_id() -> None:
    labels = LabelMap.from_ids({11: "car", 8: "road", 7: "road", 0: None})
    assert labels.names == ("road", "car")
    assert labels.ids == {0: None, 7: 0, 8: 0, 11: 1}


def test_colors_are_numbered_in_the_order_given_and_displayed_as_stored() -> None:
    labels = LabelMap.from_colors({"#0000E6": "car", CAR: "car", "#804080": "road", BLACK: None})
    assert labels.names == ("car", "road")
    assert labels.mask_colors == {(0, 0, 230): 0, CAR: 0, ROAD: 1, BLACK: None}
    assert labels.colors == ((0, 0, 230), ROAD)
    assert labels.ids is None


@pytest.mark.parametrize(
    "colors",
    [
        [(1, 2, 3), "#040506"],
        {"sky": [1, 2, 3], "road": "#040506"},
        {"0": [1, 2, 3], "7": [4, 5, 6], "8": [9, 9, 9], "255": [0, 0, 0]},
    ],
)
def test_display_colors_by_position_name_or_id(colors: Any) -> None:
    assert LabelMap.from_ids({0: "sky", 7: "road", 8: "road"}, colors).colors == ((1, 2, 3), (4, 5, 6))


def test_classes_without_a_given_color_keep_the_default_one() -> None:
    default = LabelMap.from_names(["sky", "road"]).colors
    assert LabelMap.from_names(["sky", "road"], {"road": ROAD}).colors == (default[0], ROAD)


def test_default_colors_are_distinct_and_not_black() -> None:
    colors = np.array(LabelMap.from_names([f"class {i}" for i in range(200)]).colors)
    assert len(np.unique(colors, axis=0)) == 200
    assert colors.max(axis=1).min() > 80
    first = colors[:20].astype(int)
    distances = np.abs(first[:, None] - first[None]).sum(axis=2) + 1000 * np.eye(20)
    assert distances.min() >= 50


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LabelMap.from_names([]), "at least|list of class names"),
        (lambda: LabelMap.from_names("sky"), "must be a list, got the text 'sky'"),  # type: ignore[arg-type]
        (lambda: LabelMap.from_names(["sky", "sky"]), "'sky' is named twice"),
        (lambda: LabelMap.from_names(["sky", " "]), "class name ' ' is not text"),
        (lambda: LabelMap.from_ids({0: True}), "class name True is not text"),  # type: ignore[dict-item]
        (lambda: LabelMap.from_ids({"sky": "0"}), "'sky' is no mask id"),
        (lambda: LabelMap.from_ids({1.5: "sky"}), r"1\.5 is no mask id"),
        (lambda: LabelMap.from_ids({0: None}), "list of class names"),
        (lambda: LabelMap.from_names(["sky"], ignore_ids=[0]), "mask value 0 is both ignored and the class 'sky'"),
        (lambda: LabelMap.from_names(["sky", "car"], ignore_index=0), "ignore_index 0 is the training id of 'sky'"),
        (lambda: LabelMap.from_names(["sky", "car"], ignore_index=1), "ignore_index 1 is the training id of 'car'"),
        (
            lambda: LabelMap.from_names([f"class {i}" for i in range(300)], ignore_index=7),
            r"ignore_index 7 is the training id of 'class 7': .* such as -100 \(in a recipe, dataset.ignore_index\)",
        ),
        (lambda: LabelMap.from_names([f"class {i}" for i in range(60_000)]), "60000 classes: segtune takes 10000"),
        (lambda: LabelMap.from_ids({i: f"class {i}" for i in range(60_000)}), "60000 classes: segtune takes 10000"),
        (lambda: LabelMap.from_names(["sky"], [ROAD, CAR]), "2 colours for 1 classes"),
        (lambda: LabelMap.from_names(["sky"], {"sly": ROAD}), "'sly', which is no class: sky"),
        (lambda: LabelMap.from_names(["sky"], ["blue"]), "'blue' is no colour"),
        (lambda: LabelMap.from_colors({"#80408": "road"}), "'#80408' is no colour"),
        (lambda: LabelMap.from_colors({(256, 0, 0): "road"}), "is no colour"),
        (lambda: LabelMap(("sky",), ids={0: 0}, mask_colors={ROAD: 0}), "not both"),
        (lambda: LabelMap(("sky",), ids={0: 1}), "mask value 0 has the training id 1 among 1 classes"),
        (lambda: LabelMap.from_dict({"ids": {"0": "sky"}, "names": ["sky"]}), "training id 'sky'"),
        (lambda: LabelMap.from_dict({}), "no classes in"),
        (lambda: LabelMap.from_dict({"images": []}), "'images' is no mask id; write"),
    ],
)
def test_contradictions_are_refused(make: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make()


# -- files and configs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "names", "table"),
    [
        (["sky", "road"], ("sky", "road"), {0: 0, 1: 1, 255: None}),
        ({"0": "sky", "3": "road", "9": None}, ("sky", "road"), {0: 0, 3: 1, 9: None}),
        ({"10": "b", "9": "a"}, ("a", "b"), {9: 0, 10: 1}),
        ({"id2label": {"0": "sky", "1": "road"}}, ("sky", "road"), {0: 0, 1: 1}),
        ({"names": {0: "sky", 1: "road"}}, ("sky", "road"), {0: 0, 1: 1}),
        ({"classes": ["sky", "road"], "ignore_ids": [2, 3]}, ("sky", "road"), {0: 0, 1: 1, 2: None, 3: None}),
        ({"classes": {"0": "sky"}, "ignore_id": 11, "source": "x"}, ("sky",), {0: 0, 11: None}),
    ],
)
def test_files_of_ids(tmp_path: Path, data: Any, names: tuple[str, ...], table: dict[int, int | None]) -> None:
    path = tmp_path / "labels.json"
    path.write_text("\ufeff" + json.dumps(data), encoding="utf-8")
    labels = LabelMap.from_file(path)
    assert (labels.names, labels.ids, labels.ignore_index) == (names, table, 255)


def test_file_of_colors(tmp_path: Path) -> None:
    path = tmp_path / "labels.json"
    path.write_text(json.dumps({"classes": {"#804080": "road", "#00008e": "car"}, "ignore_id": "#000000"}))
    assert LabelMap.from_file(path) == LabelMap.from_colors({ROAD: "road", CAR: "car", BLACK: None})


def test_real_file(earth: Path) -> None:
    labels = LabelMap.from_file(earth / "classes.json")
    assert labels.names == ("water", "vegetation", "bare", "ice")
    assert labels.ids == {0: 0, 1: 1, 2: 2, 3: 3, 255: None}


def test_real_file_with_colors(camvid: Path) -> None:
    labels = LabelMap.from_file(camvid / "classes.json")
    assert labels.num_labels == 11
    assert labels.ids is not None and labels.ids[11] is None
    assert labels.colors[3] == (128, 64, 128)
    assert str(labels) == "11 classes (0 to 10; ignored: 255, 11)"


def test_file_errors_name_the_file(tmp_path: Path) -> None:
    broken, wrong = tmp_path / "broken.json", tmp_path / "wrong.json"
    broken.write_text("{")
    wrong.write_text('{"sky": 0.5}')
    with pytest.raises(UsageError, match=r"absent\.json: cannot read the class names: No such file"):
        LabelMap.from_file(tmp_path / "absent.json")
    with pytest.raises(UsageError, match=r"broken\.json is no JSON file: .*line 1"):
        LabelMap.from_file(broken)
    with pytest.raises(UsageError, match=r"wrong\.json: 'sky' is no mask id"):
        LabelMap.from_file(wrong)


MAPS = [
    LabelMap.from_names(["sky", "road"], ignore_index=-100),
    LabelMap.from_ids({7: "road", 8: "road", 11: "car", 0: None, -1: None}, {"car": CAR}),
    LabelMap.from_colors({ROAD: "road", (1, 2, 3): "road", BLACK: None}),
]


@pytest.mark.parametrize("labels", MAPS)
def test_round_trips(labels: LabelMap) -> None:
    assert LabelMap.from_dict(json.loads(json.dumps(labels.to_dict()))) == labels
    assert pickle.loads(pickle.dumps(labels)) == labels
    config = SimpleNamespace(**json.loads(json.dumps(labels.config_fields())))  # ids become texts, as in config.json
    assert LabelMap.from_config(config) == labels
    assert config.semantic_loss_ignore_index == labels.ignore_index


def test_round_trip_through_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    transformers.SegformerConfig(**MAPS[1].config_fields()).save_pretrained(tmp_path)
    config = transformers.SegformerConfig.from_pretrained(tmp_path)
    assert config.num_labels == 2
    assert LabelMap.from_config(config) == MAPS[1]


def test_config_without_a_saved_map() -> None:
    config = SimpleNamespace(id2label={1: "road", 0: "sky"}, semantic_loss_ignore_index=254)
    labels = LabelMap.from_config(config)
    assert (labels.names, labels.ignore_index) == (("sky", "road"), 254)
    twins = SimpleNamespace(id2label={0: "door", 1: "door", 2: "sky"})
    named = LabelMap.from_config(twins)
    assert (named.names, named.ignore_index) == (("door (0)", "door (1)", "sky"), 255)


def test_saved_map_of_a_replaced_head_is_passed_over() -> None:
    config = SimpleNamespace(**MAPS[0].config_fields() | {"id2label": {0: "a", 1: "b"}})
    assert LabelMap.from_config(config).names == ("a", "b")


def test_one_logit_stands_for_two_classes() -> None:
    assert LabelMap.from_config(SimpleNamespace(id2label={0: "LABEL_0"})).names == ("background", "foreground")
    saved = SimpleNamespace(id2label={0: "road"}, label_map=MAPS[0].to_dict())
    assert LabelMap.from_config(saved) == MAPS[0]


# -- masks ------------------------------------------------------------------------------------------------------------

MERGED = LabelMap.from_ids({0: None, 7: "road", 8: "road", 11: "car"})


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "int32", "uint32", "int64", "uint64", ">u2"])
def test_encode_ids(dtype: str) -> None:
    mask = np.array([[7, 8, 11], [0, 11, 7]], dtype=dtype)
    before = mask.copy()
    mask.setflags(write=False)
    labels = MERGED.encode(mask)
    assert labels.dtype == np.uint8
    assert labels.tolist() == [[0, 0, 1], [255, 1, 0]]
    np.testing.assert_array_equal(mask, before)


def test_encode_bool_and_binary() -> None:
    assert LabelMap.from_names(["no", "yes"]).encode(np.array([[True, False]])).tolist() == [[1, 0]]
    binary = LabelMap.from_ids({0: "background", 255: "foreground"})
    assert binary.encode(np.array([[0, 255]], dtype=np.uint8)).tolist() == [[0, 1]]  # named, so 255 is not ignored


def test_ignore_index_in_a_mask_is_ignored() -> None:
    labels = LabelMap.from_ids({0: "sky", 1: "road"}, ignore_index=9)
    assert labels.encode(np.array([[9, 1]], dtype=np.uint8)).tolist() == [[9, 1]]


def test_encode_large_and_negative_ids() -> None:
    labels = LabelMap.from_ids({-9999: None, 26001: "car", 70000: "bus"}, ignore_index=-100)
    encoded = labels.encode(np.array([[-9999, 26001, 70000, -100]]))
    assert encoded.dtype == np.int32
    assert encoded.tolist() == [[-100, 0, 1, -100]]


def test_more_than_255_classes() -> None:
    labels = LabelMap.from_names([f"class {i}" for i in range(300)], ignore_index=65535)
    encoded = labels.encode(np.array([[299, 255, 65535]], dtype=np.uint16))
    assert encoded.dtype == np.int32
    assert encoded.tolist() == [[299, 255, 65535]]


@pytest.mark.parametrize("alpha", [False, True])
def test_encode_colors(alpha: bool) -> None:
    labels = LabelMap.from_colors({ROAD: "road", CAR: "car", BLACK: None})
    mask = colors_of(np.array([[1, 2], [0, 1]]), {0: BLACK, 1: ROAD, 2: CAR})
    if alpha:
        mask = np.dstack([mask, np.array([[0, 255], [7, 9]], dtype=np.uint8)])
    assert labels.encode(mask).tolist() == [[0, 1], [255, 0]]
    assert labels.encode(mask.astype(np.int64)).tolist() == [[0, 1], [255, 0]]


def test_grey_stands_for_ids_and_ids_for_grey() -> None:
    mask = np.array([[7, 11], [0, 8]], dtype=np.uint8)
    assert MERGED.encode(np.dstack([mask] * 3)).tolist() == MERGED.encode(mask).tolist() == [[0, 1], [255, 0]]
    assert MERGED.encode(mask[:, :, None]).tolist() == [[0, 1], [255, 0]]
    black_and_white = LabelMap.from_colors({"#000000": "no", "#ffffff": "yes"})
    assert black_and_white.encode(np.array([[0, 255]], dtype=np.uint8)).tolist() == [[0, 1]]


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int64"])
def test_unknown_ids_are_counted(dtype: str) -> None:
    mask = np.array([[42, 42, 7], [43, 8, 255]], dtype=dtype)
    assert MERGED.unknown(mask) == {42: 2, 43: 1}
    with pytest.raises(LabelError) as error:
        MERGED.encode(mask)
    assert error.value.values == {42: 2, 43: 1}
    assert str(error.value) == (
        "the mask holds id 42 (2 pixels), id 43 (1 pixel): not one of the 2 classes (7, 8, 11; ignored: 255, 0)"
    )


def test_unknown_colors_are_counted() -> None:
    labels = LabelMap.from_colors({ROAD: "road"})
    mask = np.array([[ROAD, (1, 2, 3)]], dtype=np.uint8)
    assert labels.unknown(mask) == {(1, 2, 3): 1}
    with pytest.raises(LabelError, match=r"colour #010203 \(1 pixel\): not one of the 1 classes \(#804080"):
        labels.encode(mask)


def test_nothing_unknown() -> None:
    assert MERGED.unknown(np.array([[7, 255]], dtype=np.uint8)) == {}


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.array([[ROAD]], dtype=np.uint8), 'name its colours, as in {"#804080"'),
        (np.zeros((2, 2), np.float32), r"not float32 \(2, 2\)"),
        (np.zeros((2, 2, 2), np.uint8), r"\(2, 2, 2\)"),
        (np.zeros((1, 2, 2, 3), np.uint8), r"\(1, 2, 2, 3\)"),
    ],
)
def test_masks_of_another_kind(mask: np.ndarray, message: str) -> None:
    with pytest.raises(LabelError, match=message):
        MERGED.encode(mask)


def test_palette_indices_for_a_map_of_colors() -> None:
    with pytest.raises(LabelError, match="a grey or palette mask: name ids, not colours"):
        LabelMap.from_colors({ROAD: "road"}).encode(np.array([[1]], dtype=np.uint8))
    with pytest.raises(LabelError, match="colours are 0 to 255, but the mask holds 0 to 300"):
        LabelMap.from_colors({ROAD: "road"}).encode(np.array([[0, 300]], dtype=np.uint16))


def test_label_error_survives_a_process_boundary() -> None:
    error = pickle.loads(pickle.dumps(LabelError("broken", {42: 17})))
    assert isinstance(error, DataError)
    assert (str(error), error.values) == ("broken", {42: 17})


@pytest.mark.parametrize("dtype", ["uint8", "int64"])
def test_colorize(dtype: str) -> None:
    labels = LabelMap.from_names(["sky", "road"], [(1, 2, 3), ROAD])
    painted = labels.colorize(np.array([[1, 0, 255]], dtype=dtype))
    assert painted.dtype == np.uint8
    assert painted.tolist() == [[list(ROAD), [1, 2, 3], [0, 0, 0]]]
    with pytest.raises(LabelError, match=r"labels hold id 2 \(1 pixel\); training ids are 0 to 1"):
        labels.colorize(np.array([[2, 0]], dtype=dtype))


def test_colorize_many_classes_and_negative_ignore_index() -> None:
    labels = LabelMap.from_names([f"class {i}" for i in range(256)], ignore_index=-100)
    assert labels.colorize(np.array([[255]], dtype=np.uint8)).tolist() == [[list(labels.colors[255])]]
    assert labels.colorize(np.array([[-100]])).tolist() == [[[0, 0, 0]]]


# -- masked pixels ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32])
def test_masked_pixels_are_ignored_whatever_they_hold(dtype: Any) -> None:
    labels = LabelMap.from_names(["sky", "road"], ignore_index=254)
    mask = np.ma.masked_array(np.array([[0, 1, 99, 1]], dtype), [[False, False, True, True]])
    assert labels.encode(mask).tolist() == [[0, 1, 254, 254]]
    assert mask.data.tolist() == [[0, 1, 99, 1]]
    assert labels.unknown(mask) == {}
    assert labels.unknown(mask.data) == {99: 1}
    assert count_values(mask) == {0: 1, 1: 1}


def test_masked_colors_are_ignored() -> None:
    colors = np.ma.masked_array(np.array([[ROAD, CAR, (9, 9, 9)]], np.uint8), [[[False] * 3, [False] * 3, [True] * 3]])
    labels = LabelMap.from_colors({ROAD: "road", CAR: "car"})
    assert labels.encode(colors).tolist() == [[0, 1, 255]]
    assert count_values(colors) == {ROAD: 1, CAR: 1}


@pytest.mark.parametrize("keys", [("0-99999999999",), ("1-70000", "70001-140000"), ("0-999999999999999999",)])
def test_ranges_of_more_ids_than_masks_hold_are_refused(keys: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match=r"mask ids, as in '.*': at most 131072 are named"):
        LabelMap.from_ids({key: f"class {key}" for key in keys})
    assert LabelMap.from_ids({"0-65535": "all"}).num_labels == 1
    with pytest.raises(UsageError, match="is no mask id"):
        LabelMap.from_ids({str(10**30): "far"})


def test_many_names_are_compared_at_once() -> None:
    names = [f"class {number}" for number in range(9_000)]
    with pytest.raises(UsageError, match="'class 7' is named twice"):
        LabelMap.from_names([*names, "class 7"], ignore_index=-100)


@pytest.mark.parametrize(("count", "ignore_index"), [(255, 255), (256, 65535), (300, 65535)])
def test_where_255_is_a_class_a_wider_id_is_ignored(count: int, ignore_index: int) -> None:
    label_map = LabelMap.from_names([f"class {i}" for i in range(count)])
    assert label_map.ignore_index == ignore_index and LabelMap.from_dict(label_map.to_dict()) == label_map
    mask = np.array([[0, count - 1, ignore_index]], dtype=np.uint16)
    assert label_map.encode(mask).tolist() == mask.tolist()


ODD = [
    7,
    1e308,
    True,
    "a",
    b"a",
    [],
    [1],
    [["a"]],
    [{}],
    {},
    {"a": 1},
    {"a": [1]},
    {"a": [[1], 2, 3]},
    {1: {"a": "b"}},
    {None: "a"},
]
ODD_ENTRIES = [
    {"name": ["a"]},
    {"name": "a", "id": {}},
    {"name": "a", "id": [1]},
    {"name": "a", "color": [[1], 2, 3]},
    {"id": 1},
]


@pytest.mark.parametrize("base", [["a", "b"], {"0": "a", "1": "b"}, {"#000000": "a", "#010101": "b"}])
@pytest.mark.parametrize("key", ["ignore_id", "ignore_ids", "colors", "palette", "ignore_index", "ids", "mask_colors"])
def test_values_of_a_wrong_type_are_told_in_every_field(base: Any, key: str) -> None:
    """They make a label map, or raise UsageError and nothing else."""
    refused = 0
    for odd in ODD:
        for data in ({"classes": base, key: odd}, {"names": base, key: odd}, {"names": odd, "ids": {"0": 0}, key: odd}):
            try:
                assert isinstance(LabelMap.from_dict(data), LabelMap)
            except UsageError:
                refused += 1
    assert refused > len(ODD)


@pytest.mark.parametrize("key", ["classes", "names", "id2label", "label2id", "categories", "label_map"])
def test_classes_of_a_wrong_type_are_told(key: str) -> None:
    for odd in [*ODD, *([entry] for entry in ODD_ENTRIES)]:
        for data in ({key: odd}, odd):
            if odd in ({"a": 1}, {1: "a"}, [{"id": 1}]):
                continue
            with pytest.raises(UsageError):
                LabelMap.from_dict(data)


def test_colors_that_are_a_number() -> None:
    with pytest.raises(UsageError, match="colors is '1e\\+308': expected a list or a mapping; write a list of names"):
        LabelMap.from_dict({"classes": ["sky", "road"], "colors": 1e308})


def test_masks_of_one_bit_hold_ids() -> None:
    assert list(count_values(np.array([[True, False, True]]))) == [0, 1]
    assert not any(isinstance(value, bool) for value in count_values(np.array([[True, False]])))
