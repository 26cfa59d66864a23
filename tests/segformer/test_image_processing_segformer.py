"""Our image processor against transformers' own, hand-computed values, and files exchanged both ways."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from enum import Enum
from inspect import signature
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor

from segtune.segformer import image_processing_segformer
from segtune.segformer.image_processing_segformer import (
    SegformerFeatureExtractor,
    SegformerImageProcessor,
    channels_last,
)
from segtune.segformer.upsampling import upsampled_prediction
from support.libraries import TheirProcessor as Theirs

other_fields = pytest.mark.filterwarnings("ignore:The following named arguments are not valid")  # says transformers 4
only_5 = pytest.mark.skipif(
    "Pil" not in Theirs.__name__, reason="transformers 4 has no shortest edge without torchvision"
)


def _photo(height: int, width: int, channels: int = 3, dtype: str = "uint8") -> np.ndarray:
    shape = (height, width, channels) if channels else (height, width)
    return np.random.default_rng(0).integers(0, 256, shape).astype(dtype)


def _plain(**fields: object) -> SegformerImageProcessor:
    """A processor that changes nothing but the layout and the type."""
    return SegformerImageProcessor(**{"do_resize": False, "do_rescale": False, "do_normalize": False, **fields})


# ---- parity with transformers ----


@pytest.mark.parametrize("fields", [
    {},
    {"size": {"height": 65, "width": 97}},
    pytest.param({"size": {"shortest_edge": 50}}, marks=only_5),
    {"size": 33, "resample": 3},
    {"size": {"height": 40, "width": 40}, "resample": 0, "do_normalize": False},
    {"do_resize": False, "rescale_factor": 1 / 127.5, "image_mean": [0.5, 0.4, 0.3], "image_std": [1.0, 0.5, 0.1]},
    {"do_rescale": False, "size": 31},
])  # fmt: skip
@pytest.mark.parametrize(("height", "width"), [(70, 113), (113, 71), (64, 64)])
@pytest.mark.parametrize("as_pil", [True, False])
def test_pixel_values_equal_those_of_transformers(fields, height, width, as_pil):
    photo = _photo(height, width)
    image = Image.fromarray(photo) if as_pil else photo
    ours = SegformerImageProcessor(**fields)(image, return_tensors="np")["pixel_values"]
    theirs = Theirs(**fields)(image, return_tensors="np")["pixel_values"]
    assert ours.shape == theirs.shape
    assert ours.dtype == np.float32
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("reduce", [True, False])
@pytest.mark.parametrize("size", [{"height": 33, "width": 48}, pytest.param({"shortest_edge": 90}, marks=only_5)])
def test_labels_equal_those_of_transformers(reduce, size):
    photo, mask = _photo(70, 61), _photo(70, 61, 0)
    assert {0, 1, 254, 255} <= set(np.unique(mask))
    ours = SegformerImageProcessor(size=size, do_reduce_labels=reduce)(photo, mask, return_tensors="pt")
    theirs = Theirs(size=size, do_reduce_labels=reduce)(photo, mask.copy(), return_tensors="pt")
    assert ours["labels"].dtype == torch.int64
    torch.testing.assert_close(ours["labels"], theirs["labels"], rtol=0, atol=0)


@pytest.mark.parametrize("targets", [None, [(31, 40), (64, 17)]])
def test_post_processing_equals_that_of_transformers(targets):
    torch.manual_seed(0)
    outputs = SimpleNamespace(logits=torch.randn(2, 5, 16, 16))
    ours = SegformerImageProcessor().post_process_semantic_segmentation(outputs, targets)
    theirs = Theirs().post_process_semantic_segmentation(outputs, targets)
    assert len(ours) == 2
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.dtype == torch.int64
        torch.testing.assert_close(mine, other, rtol=0, atol=0)


# ---- arguments of transformers ----


@pytest.fixture
def warned(monkeypatch) -> list[str]:
    """What the processor warns of."""
    messages: list[str] = []
    monkeypatch.setattr(image_processing_segformer.logger, "warning_once", messages.append)
    return messages


@only_5
@pytest.mark.parametrize(("arguments", "warning"), [
    ({"image_mean": 0.5, "image_std": 0.25}, None),
    ({"size": {"shortest_edge": 30, "longest_edge": 40}}, None),
    ({"size": {"max_height": 30, "max_width": 20}}, None),
    ({"size": 30, "default_to_square": False}, None),
    ({"size": [20, 30], "resample": 3}, None),
    ({"do_convert_rgb": True}, None),
    ({"input_data_format": "channels_last"}, None),
    ({"return_tensors": "np"}, None),
    ({"do_reduce_labels": True}, None),
    ({"device": "cpu", "disable_grouping": True, "data_format": "channels_first"}, None),
    ({"data_format": "channels_last"}, "data_format='channels_last' has no effect"),
    ({"do_center_crop": True, "crop_size": 20}, "do_center_crop=True has no effect"),
    ({"do_pad": True, "pad_size": 600}, "do_pad=True has no effect"),
    ({"image_seq_length": 9}, "image_seq_length=9 has no effect"),
])  # fmt: skip
@pytest.mark.parametrize("where", ["constructor", "file", "call"])
def test_arguments_of_transformers_do_the_same(arguments, warning, where, warned, tmp_path):
    photo, mask = _photo(40, 60), _photo(40, 60, 0)

    def results(kind):
        if where == "file":
            kind(**arguments).save_pretrained(tmp_path / kind.__name__)
        processor = {
            "constructor": lambda: kind(**arguments),
            "file": lambda: kind.from_pretrained(tmp_path / kind.__name__),
            "call": kind,
        }[where]()
        return processor(photo, mask.copy(), **(arguments if where == "call" else {}))

    ours, theirs = results(SegformerImageProcessor), results(Theirs)
    for name in ("pixel_values", "labels"):
        assert type(ours[name]) is type(theirs[name])
        np.testing.assert_array_equal(ours[name][0], theirs[name][0])
    assert any(warning in message for message in warned) if warning else not warned


@only_5
def test_sides_are_those_of_transformers_for_every_image():
    draw = np.random.default_rng(3)
    for _ in range(40):
        height, width, a, b = (int(side) for side in draw.integers(8, 90, 4))
        for size in (
            {"shortest_edge": a},
            {"shortest_edge": min(a, b), "longest_edge": max(a, b)},
            {"max_height": a, "max_width": b},
        ):
            image = np.zeros((height, width, 3), np.uint8)
            theirs = Theirs(size=size)(image)["pixel_values"][0].shape[1:]
            assert SegformerImageProcessor(size=size).target_size(height, width) == theirs, (height, width, size)


@pytest.mark.parametrize("where", ["constructor", "from_pretrained", "call"])
def test_reduce_labels_reduces_and_tells_its_present_name(where, warned, tmp_path):
    SegformerImageProcessor(do_reduce_labels=False).save_pretrained(tmp_path)
    processor = {
        "constructor": lambda: SegformerImageProcessor(reduce_labels=True),
        "from_pretrained": lambda: SegformerImageProcessor.from_pretrained(tmp_path, reduce_labels=True),
        "call": SegformerImageProcessor,
    }[where]()
    arguments = {"reduce_labels": True} if where == "call" else {}
    labels = processor(_photo(1, 3), np.array([[0, 1, 255]], np.uint8), do_resize=False, **arguments)["labels"][0]
    assert labels.tolist() == [[255, 0, 255]]
    assert len(set(warned)) == 1 and "do_reduce_labels" in warned[0]
    assert processor.do_reduce_labels is (where != "call")
    assert "reduce_labels" not in processor.to_dict()


def test_use_fast_changes_nothing(warned, tmp_path):
    SegformerImageProcessor(use_fast=False).save_pretrained(tmp_path)
    SegformerImageProcessor.from_pretrained(tmp_path, use_fast=False)
    assert not warned
    SegformerImageProcessor.from_pretrained(tmp_path, use_fast=True)
    assert "use_fast=True has no effect" in warned[0]


def test_none_is_the_default_and_a_subclass_may_have_others():
    class Mine(SegformerImageProcessor):
        size = {"height": 8, "width": 6}  # noqa: RUF012
        do_reduce_labels = True

    nothing = dict.fromkeys(image_processing_segformer.FIELDS)
    assert SegformerImageProcessor(**nothing).to_dict() == SegformerImageProcessor().to_dict()
    assert Mine(size=None)(_photo(9, 9))["pixel_values"][0].shape == (3, 8, 6)
    assert Mine().do_reduce_labels and not Mine(do_reduce_labels=False).do_reduce_labels
    assert SegformerFeatureExtractor is SegformerImageProcessor


@pytest.mark.parametrize(("name", "filter_"), [("nearest", 0), ("nearest-exact", 0), ("bilinear", 2), ("bicubic", 3)])
def test_filters_by_the_name_that_torchvision_gives_them(name, filter_):
    mode = Enum("InterpolationMode", {"ANY": name}).ANY  # torchvision's own is an Enum of these strings
    assert SegformerImageProcessor(resample=mode).resample == filter_
    assert SegformerImageProcessor(resample=name).resample == filter_
    assert SegformerImageProcessor(resample=Image.Resampling(filter_)).resample == filter_


def test_nested_lists_of_images_are_flattened():
    images = [[_photo(9, 8)], [_photo(9, 8), _photo(9, 8)]]
    assert _plain()(images, return_tensors="pt")["pixel_values"].shape == (3, 3, 9, 8)


@pytest.mark.parametrize("targets", [None, [(31, 40), (64, 17)]])
def test_scores_beside_the_maps_equal_those_of_transformers(targets):
    outputs = SimpleNamespace(logits=torch.randn(2, 5, 16, 16, generator=torch.Generator().manual_seed(0)))
    ours = SegformerImageProcessor().post_process_semantic_segmentation(outputs, targets, True)
    if "return_segmentation_scores" in signature(Theirs.post_process_semantic_segmentation).parameters:
        theirs = Theirs().post_process_semantic_segmentation(outputs, targets, True)
        assert type(ours[0]) is type(theirs[0])
        for mine, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(dict(mine), dict(other), rtol=0, atol=0)
    for one in ours:
        assert torch.equal(one.segmentation, one.segmentation_scores.argmax(0))


def test_post_processing_of_outputs_that_have_gradients():
    logits = torch.randn(2, 5, 16, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
    processor, outputs = SegformerImageProcessor(), SimpleNamespace(logits=logits)
    maps = processor.post_process_semantic_segmentation(outputs, [(31, 40), (64, 64)])
    expected = [torch.nn.functional.interpolate(logits[i : i + 1], s, mode="bilinear")[0].argmax(0)
                for i, s in enumerate([(31, 40), (64, 64)])]  # fmt: skip
    assert all(map(torch.equal, maps, expected))
    (scored, _) = processor.post_process_semantic_segmentation(outputs, None, return_segmentation_scores=True)
    scored.segmentation_scores.sum().backward()  # as with transformers, the scores keep theirs
    assert logits.grad[0].eq(1).all() and logits.grad[1].eq(0).all()


def test_target_sizes_may_be_a_tensor():
    outputs = SimpleNamespace(logits=torch.zeros(2, 3, 4, 4))
    maps = SegformerImageProcessor().post_process_semantic_segmentation(outputs, torch.tensor([[31, 40], [64, 17]]))
    assert [tuple(m.shape) for m in maps] == [(31, 40), (64, 17)]


def test_one_logit_is_decided_by_its_sign_at_full_size():
    logits = torch.tensor([[[[-1.0, 2.0]]]])  # (1, 1, 1, 2)
    # at width 4 the samples lie at -0.25, 0.25, 0.75, 1.25 (clamped to 0..1): -1, -0.25, 1.25, 2
    assert upsampled_prediction(logits, (1, 4)).tolist() == [[[0, 0, 1, 1]]]
    maps = SegformerImageProcessor().post_process_semantic_segmentation(SimpleNamespace(logits=logits), [(1, 4)])
    assert [m.tolist() for m in maps] == [[[0, 0, 1, 1]]]


def test_argmax_is_taken_after_upsampling():
    logits = torch.tensor([[[[3.0, 0.0, 0.0]], [[0.0, 0.0, 3.0]], [[2.1, 2.1, 2.1]]]])  # (1, 3, 1, 3)
    first_argmax = logits.argmax(1)[0, 0].tolist()
    assert first_argmax == [0, 2, 1]
    # the first class falls from 3 to 0 and is below 2.1 after a third of the way; nearest neighbour would wait for half
    assert upsampled_prediction(logits, (1, 9))[0, 0].tolist() == [0, 0, 2, 2, 2, 2, 2, 1, 1]


def test_as_many_target_sizes_as_images():
    with pytest.raises(ValueError, match="1 target_sizes were given for 2 images"):
        outputs = SimpleNamespace(logits=torch.zeros(2, 3, 4, 4))
        SegformerImageProcessor().post_process_semantic_segmentation(outputs, [(8, 8)])


# ---- images of all kinds ----


def test_normalisation_by_hand():
    image = np.array([[[0, 51, 255]]], dtype=np.uint8)
    processor = SegformerImageProcessor(do_resize=False, image_mean=[0.5, 0.1, 0.0], image_std=[0.5, 0.2, 4.0])
    values = processor(image, return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(values, np.array([-1.0, 0.5, 0.25]).reshape(1, 3, 1, 1), atol=1e-7)


def test_layouts_and_containers_give_the_same_values():
    photo = _photo(20, 30)
    wanted = _plain()(Image.fromarray(photo), return_tensors="np")["pixel_values"]
    assert wanted.shape == (1, 3, 20, 30)
    first = np.ascontiguousarray(photo.transpose(2, 0, 1))
    for image in (photo, first, torch.from_numpy(photo), torch.from_numpy(first), [photo], photo[None], (first,)):
        np.testing.assert_array_equal(_plain()(image, return_tensors="np")["pixel_values"], wanted)
    both = _plain()([Image.fromarray(photo), first], return_tensors="pt")["pixel_values"]
    assert both.shape == (2, 3, 20, 30)
    assert torch.equal(both[0], both[1])


def test_grey_alpha_and_palette_become_rgb():
    photo, grey = _photo(6, 5), _photo(6, 5, 0)
    wanted = _plain()(photo)["pixel_values"][0]
    alpha = np.dstack([photo, _photo(6, 5, 0)])
    for image in (alpha, alpha.transpose(2, 0, 1), Image.fromarray(alpha)):
        np.testing.assert_array_equal(_plain()(image)["pixel_values"][0], wanted)
    for image in (grey, grey[None], grey[:, :, None], Image.fromarray(grey), Image.fromarray(grey).convert("LA")):
        np.testing.assert_array_equal(_plain()(image)["pixel_values"][0], np.stack([grey] * 3))
    palette = Image.fromarray(np.array([[0, 1, 2]], dtype=np.uint8), "P")
    palette.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    palette.info["transparency"] = b"\x00\x80\xff"
    values = _plain()(palette)["pixel_values"][0]
    assert values[:, 0].T.tolist() == [[10, 20, 30], [40, 50, 60], [70, 80, 90]]
    bilevel = Image.fromarray(np.array([[True, False]]))
    assert _plain()(bilevel)["pixel_values"][0][0].tolist() == [[255, 0]]


def test_sixteen_bit_grey_becomes_eight_bit_rgb_and_stays_itself_in_one_channel():
    stored = np.array([[0, 255, 256, 65535]], dtype=np.uint16)
    image = Image.fromarray(stored)
    assert image.mode.startswith("I;16")
    assert _plain()(image)["pixel_values"][0][2].tolist() == [[0, 0, 1, 255]]
    single = _plain(image_mean=[0.5], image_std=[0.5])
    assert single(image)["pixel_values"][0].tolist() == [[[0, 255, 256, 65535]]]


@pytest.mark.parametrize("channels", [1, 2, 4, 7])
def test_any_number_of_channels(channels):
    image = _photo(40, 30, channels)
    processor = SegformerImageProcessor(
        size={"height": 21, "width": 17}, image_mean=[0.5] * channels, image_std=[0.25] * channels
    )
    values = processor(image, return_tensors="np")["pixel_values"]
    assert values.shape == (1, channels, 21, 17)
    np.testing.assert_array_equal(values, processor(image.transpose(2, 0, 1), return_tensors="np")["pixel_values"])
    for band in range(channels):  # no band may bleed into another, as alpha would
        grey = np.asarray(Image.fromarray(image[:, :, band]).resize((17, 21), Image.Resampling.BILINEAR))
        np.testing.assert_allclose(values[0, band], (grey / 255 - 0.5) / 0.25, atol=1e-6)


def test_floats_are_resized_without_rounding():
    ramp = np.linspace(0, 1, 8, dtype=np.float64)[None, :, None].repeat(4, 0).repeat(3, 2)  # (4, 8, 3)
    values = SegformerImageProcessor(do_rescale=False, do_normalize=False, size={"height": 4, "width": 4})(ramp)
    # each output pixel averages with weights 1/8, 3/8, 3/8, 1/8; on a ramp that is the middle of its two inputs
    expected = (ramp[0, 2:6:2, 0] + ramp[0, 3:7:2, 0]) / 2
    np.testing.assert_allclose(values["pixel_values"][0][0, 0, 1:3], expected, atol=1e-6)
    wide = np.full((4, 4, 3), 40000, dtype=np.uint16)
    sixteen = SegformerImageProcessor(size=2, rescale_factor=1 / 65535, do_normalize=False)
    np.testing.assert_allclose(sixteen(wide)["pixel_values"][0], 40000 / 65535, atol=1e-6)


def test_size_divisor_rounds_up_with_and_without_resizing():
    image, mask = _photo(60, 90), _photo(60, 90, 0)
    for fields, wanted in [
        ({"do_resize": False, "size_divisor": 32}, (64, 96)),
        ({"size": {"shortest_edge": 40}, "size_divisor": 16}, (48, 64)),
        ({"size": {"height": 32, "width": 64}, "size_divisor": 32}, (32, 64)),
    ]:
        batch = SegformerImageProcessor(**fields)(image, mask)
        assert batch["pixel_values"][0].shape == (3, *wanted)
        assert batch["labels"][0].shape == wanted


def test_a_float_image_between_zero_and_one_is_pointed_out(monkeypatch):
    warnings: list[str] = []
    monkeypatch.setattr(image_processing_segformer.logger, "warning_once", warnings.append)
    SegformerImageProcessor(size=8)(np.full((8, 8, 3), 0.5))
    SegformerImageProcessor(size=8)(np.full((8, 8, 3), 128.0))
    SegformerImageProcessor(size=8, do_rescale=False)(np.full((8, 8, 3), 0.5))
    assert len(warnings) == 1
    assert "do_rescale=False" in warnings[0]


@pytest.mark.parametrize(("image", "error", "message"), [
    ("photo.jpg", TypeError, "PIL image, a NumPy array or a tensor, not str"),
    (np.zeros((5, 6, 2), np.uint8), ValueError, "neither end"),
    (np.zeros((0, 5, 3), np.uint8), TypeError, r"\(0, 5, 3\)"),
    (np.zeros((4, 5), complex), TypeError, "complex"),
    ([], ValueError, "no image"),
])  # fmt: skip
def test_what_is_no_image_is_refused(image, error, message):
    with pytest.raises(error, match=message):
        SegformerImageProcessor()(image)


def test_input_data_format_settles_what_the_shape_leaves_open():
    image = _photo(3, 5)  # (3, 5, 3)
    assert _plain()(image)["pixel_values"][0].shape == (3, 5, 3)
    assert _plain()(image, input_data_format="channels_last")["pixel_values"][0].shape == (3, 3, 5)
    with pytest.raises(ValueError, match="channels_first or channels_last"):
        _plain()(image, input_data_format="last")
    with pytest.raises(ValueError, match="5 channels, image_mean and image_std have 3"):
        channels_last(_photo(3, 8, 5), 3, "channels_last")


def test_images_of_different_sizes_make_lists_but_no_tensor():
    images = [_photo(20, 30), _photo(30, 20)]
    values = _plain()(images)["pixel_values"]
    assert [value.shape for value in values] == [(3, 20, 30), (3, 30, 20)]
    with pytest.raises(ValueError, match=r"different sizes .*\(20, 30\)"):
        _plain()(images, return_tensors="pt")


# ---- masks ----


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int8", "uint16", "int32", "int64"])
def test_masks_of_every_integer_type_are_left_as_they_are(dtype):
    top = {"bool": 1, "uint8": 254, "int8": 127}.get(dtype, 300)
    mask = np.array([[0, 1, top], [top, 0, 1]]).astype(dtype)
    before = mask.copy()
    batch = _plain(do_reduce_labels=True)(_photo(2, 3), mask, return_tensors="np")
    expected = [[255, 0, top - 1], [top - 1, 255, 0]]
    assert batch["labels"][0].tolist() == expected
    assert batch["labels"].dtype == np.int64
    np.testing.assert_array_equal(mask, before)
    assert mask.dtype == np.dtype(dtype)
    resized = _plain(do_resize=True, size={"height": 4, "width": 6})(_photo(2, 3), torch.from_numpy(mask))["labels"][0]
    np.testing.assert_array_equal(resized, before.astype(np.int64).repeat(2, 0).repeat(2, 1))


def test_palette_masks_give_their_indices():
    mask = Image.fromarray(np.array([[0, 7, 255]], dtype=np.uint8), "P")
    mask.putpalette(list(range(256)) * 3)
    assert _plain()(_photo(1, 3), mask)["labels"][0].tolist() == [[0, 7, 255]]


def test_masks_with_an_axis_too_many_and_batches_of_masks():
    image, mask = _photo(4, 5), _photo(4, 5, 0)
    for form in (mask, mask[None], mask[:, :, None], [mask], [mask[None]], torch.from_numpy(mask)):
        labels = _plain()(image, form)["labels"]
        assert len(labels) == 1
        np.testing.assert_array_equal(labels[0], mask)
    assert _plain()([image, image], np.stack([mask, mask]), return_tensors="pt")["labels"].shape == (2, 4, 5)


@pytest.mark.parametrize(("mask", "error", "message"), [
    (np.zeros((4, 5)), TypeError, "integer ids; got float64"),
    ([np.zeros((4, 5, 3), np.uint8)], TypeError, "turn colours into ids"),
    (np.zeros((5, 4), np.uint8), ValueError, r"image 0 is \(4, 5\).*\(5, 4\)"),
    (np.zeros((2, 4, 5), np.uint8), ValueError, "1 images but 2 segmentation_maps"),
])  # fmt: skip
def test_wrong_masks_are_refused(mask, error, message):
    with pytest.raises(error, match=message):
        _plain()(_photo(4, 5), mask)


# ---- fields and files ----


def test_unknown_arguments_name_the_nearest_one(tmp_path):
    with pytest.raises(TypeError, match="'do_resise'; did you mean 'do_resize'"):
        SegformerImageProcessor(do_resise=False)
    with pytest.raises(TypeError, match="preprocess has no argument 'do_reduce_label'; did you mean"):
        SegformerImageProcessor()(_photo(4, 4), do_reduce_label=True)
    with pytest.raises(TypeError, match="'zzz'; there are: do_resize, size"):
        SegformerImageProcessor(zzz=1)
    SegformerImageProcessor().save_pretrained(tmp_path)
    with pytest.raises(TypeError, match="did you mean 'image_mean'"):
        SegformerImageProcessor.from_pretrained(tmp_path, image_meen=[0.5] * 3)


@pytest.mark.parametrize(("fields", "message"), [
    ({"size": {"height": 5}}, "size is"),
    ({"size": {"longest_edge": 9}}, "size is"),
    ({"size": {"min_pixels": 5, "max_pixels": 9}}, "size is"),
    ({"size": "30"}, "size is"),
    ({"size": [30]}, "size is"),
    ({"resample": "cubic"}, "not 'cubic'; there are"),
    ({"size": 0}, "at least 1, not 0"),
    ({"size_divisor": 1.5}, "size_divisor"),
    ({"resample": 17}, "17"),
    ({"value_range": [5, 5]}, "value_range"),
    ({"value_range": [5]}, "value_range"),
    ({"image_mean": [0.5]}, "one value per channel"),
    ({"image_std": [0.5, 0.0, 0.5]}, "none of image_std 0"),
])  # fmt: skip
def test_impossible_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        SegformerImageProcessor(**fields)


@other_fields
def test_value_range_is_kept_beside_the_fields_of_transformers(tmp_path):
    SegformerImageProcessor(rescale_factor=1e-4, value_range=(0, 10000)).save_pretrained(tmp_path)
    assert SegformerImageProcessor.from_pretrained(tmp_path).value_range == [0.0, 10000.0]
    assert AutoImageProcessor.from_pretrained(tmp_path).rescale_factor == 1e-4
    pictures = SegformerImageProcessor()
    assert pictures.value_range is None and "value_range" not in pictures.to_dict()


def test_overrides_hold_for_one_call():
    processor = SegformerImageProcessor(size=16)
    assert processor(_photo(9, 9), size={"height": 8, "width": 4})["pixel_values"][0].shape == (3, 8, 4)
    assert processor(_photo(9, 9), do_resize=False, size=None)["pixel_values"][0].shape == (3, 9, 9)
    assert processor.size == {"height": 16, "width": 16}
    assert processor(_photo(9, 9))["pixel_values"][0].shape == (3, 16, 16)


def test_ours_loads_in_transformers(tmp_path):
    ours = SegformerImageProcessor(
        size={"height": 40, "width": 56}, resample=3, image_mean=[0.1, 0.2, 0.3], do_reduce_labels=True
    )
    ours.save_pretrained(tmp_path)
    theirs = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(theirs).__module__.startswith("transformers.")
    photo, mask = _photo(31, 47), _photo(31, 47, 0)
    mine, other = ours(photo, mask, return_tensors="pt"), theirs(photo, mask.copy(), return_tensors="pt")
    torch.testing.assert_close(mine["pixel_values"], other["pixel_values"], rtol=0, atol=1e-6)
    assert torch.equal(mine["labels"], other["labels"])
    again = SegformerImageProcessor.from_pretrained(tmp_path)
    assert again.to_dict() == ours.to_dict()


@only_5
def test_theirs_loads_in_ours(tmp_path):
    theirs = Theirs(size={"shortest_edge": 40}, image_std=[0.5, 0.25, 0.125], do_reduce_labels=True)
    theirs.save_pretrained(tmp_path)
    ours = SegformerImageProcessor.from_pretrained(tmp_path)
    assert (ours.size, ours.do_reduce_labels, ours.image_std) == ({"shortest_edge": 40}, True, [0.5, 0.25, 0.125])
    photo = _photo(50, 61)
    torch.testing.assert_close(
        ours(photo, return_tensors="pt")["pixel_values"],
        theirs(photo, return_tensors="pt")["pixel_values"],
        rtol=0,
        atol=1e-6,
    )


@other_fields
def test_defaults_write_the_file_that_transformers_writes(tmp_path):
    theirs = json.loads(Theirs().to_json_string())
    assert json.loads(SegformerImageProcessor().to_json_string()) == theirs
    divided = SegformerImageProcessor(size_divisor=32)
    assert divided.to_dict() == {**theirs, "size_divisor": 32}
    divided.save_pretrained(tmp_path)
    assert SegformerImageProcessor.from_pretrained(tmp_path).size_divisor == 32
    assert AutoImageProcessor.from_pretrained(tmp_path).do_resize


@other_fields
def test_an_old_file_with_fields_nobody_knows(tmp_path):
    stored = {
        "feature_extractor_type": "SegformerFeatureExtractor",
        "reduce_labels": True,
        "size": 128,
        "resample": 2,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "do_normalize": True,
        "do_rescale": None,
        "camera": {"gain": 3},
        "preprocess": "not a field",
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(stored))
    processor = SegformerImageProcessor.from_pretrained(tmp_path, size=64)
    assert processor.do_reduce_labels
    assert processor.do_rescale
    assert processor.size == {"height": 64, "width": 64}
    assert processor(_photo(4, 4))["pixel_values"][0].shape == (3, 64, 64)
    processor.save_pretrained(tmp_path / "again")
    written = json.loads((tmp_path / "again" / "preprocessor_config.json").read_text())
    assert written["camera"] == {"gain": 3}
    assert written["do_reduce_labels"] is True
    assert written["image_processor_type"] == "SegformerImageProcessor"
    assert not {"reduce_labels", "feature_extractor_type"} & set(written)
    assert AutoImageProcessor.from_pretrained(tmp_path / "again").do_reduce_labels


def test_unused_arguments_come_back_on_request(tmp_path):
    SegformerImageProcessor().save_pretrained(tmp_path)
    processor, unused = SegformerImageProcessor.from_pretrained(tmp_path, size=9, other=1, return_unused_kwargs=True)
    assert processor.size == {"height": 9, "width": 9}
    assert unused == {"other": 1}
    read = SegformerImageProcessor.from_json_file(tmp_path / "preprocessor_config.json")
    assert read.to_dict() == SegformerImageProcessor().to_dict()


def test_pipelines_may_hand_over_the_dtype_of_the_model(tmp_path):
    SegformerImageProcessor(size=77).save_pretrained(tmp_path)
    processor = SegformerImageProcessor.from_pretrained(tmp_path, dtype="auto", torch_dtype=torch.bfloat16)
    assert processor.size == {"height": 77, "width": 77} and not hasattr(processor, "dtype")


def test_the_file_and_its_neighbours_work_as_hub_code(tmp_path):
    """`trust_remote_code` loads the copied sources outside the package."""
    source = Path(image_processing_segformer.__file__)
    for name in (source.name, "upsampling.py", "triton_kernels.py"):
        shutil.copy(source.with_name(name), tmp_path / name)
    config = SegformerImageProcessor(size=24).to_dict()
    config["auto_map"] = {"AutoImageProcessor": "image_processing_segformer.SegformerImageProcessor"}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    code = (
        "import sys, numpy\n"
        "from transformers import AutoImageProcessor\n"
        f"processor = AutoImageProcessor.from_pretrained({str(tmp_path)!r}, trust_remote_code=True)\n"
        "assert not any(name.split('.')[0] == 'segtune' for name in sys.modules)\n"
        "shape = processor(numpy.zeros((9, 9, 3), 'uint8'), return_tensors='pt')['pixel_values'].shape\n"
        "print(type(processor).__module__.split('.')[0], tuple(shape))\n"
    )
    environment = {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules"), "PATH": "/usr/bin:/bin"}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert result.stdout.split("\n")[0] == "transformers_modules (1, 3, 24, 24)", result.stderr
