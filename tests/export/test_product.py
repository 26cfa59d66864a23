"""The product graph against the segmenter, on networks of one stage, which say as much about what lies around them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segtune.engines.onnx_model import logits_model
from segtune.errors import UsageError
from segtune.export import product
from segtune.export.graph_text import BAND
from segtune.export.product import pillow_turns_rows_first, product_model
from segtune.inference.segmenter import Segmenter
from segtune.segformer.image_processing_segformer import SegformerImageProcessor
from support.exports import network

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
onnx = pytest.importorskip("onnx")

SIZES = [(97, 65), (40, 31), (64, 96), (120, 33)]


def run(model: Any, image: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(None, {"image": image}))


def check(num_labels: int, settings: Mapping[str, Any], channels: int = 3, dtype: type = np.uint8) -> None:
    model, graph = network(num_labels, channels)
    processor = SegformerImageProcessor(**settings)
    segmenter = Segmenter(model, processor)
    segmenter.temperature = 1.7
    plain = product_model(onnx.load_from_string(graph), processor)
    sure = product_model(onnx.load_from_string(graph), processor, temperature=1.7)
    assert [one.name for one in plain.graph.output] == ["mask"]
    for number, (height, width) in enumerate(SIZES):
        random = np.random.default_rng(number)
        image = random.integers(0, 256, (height, width, channels)).astype(dtype)
        expected = segmenter(image, confidence=True)
        (mask,), (again, confidence) = run(plain, image), run(sure, image)
        assert mask.dtype == expected.labels.dtype and mask.shape == (height, width)
        assert len(np.unique(mask)) > 1
        for found in (mask, again):  # of equal logits, rounding may pick the other
            assert (found != expected.labels).sum() <= 2
        np.testing.assert_allclose(confidence, expected.confidence, atol=1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        {"do_resize": False},
        {"do_resize": False, "size_divisor": 32},
        {"size": {"height": 64, "width": 96}},
        {"size": {"shortest_edge": 64}},
        {"size": {"height": 48, "width": 40}, "resample": 3, "do_normalize": False},
    ],
    ids=["as it is", "multiple", "fixed", "shortest edge", "cubic"],
)
def test_what_the_segmenter_answers(settings: Mapping[str, Any]) -> None:
    check(5, settings)


def test_one_logit_of_four_channels() -> None:
    check(1, {"do_resize": False, "image_mean": [0.5] * 4, "image_std": [0.2] * 4}, channels=4)


def test_more_classes_than_a_byte_holds() -> None:
    check(300, {"size": {"shortest_edge": 32}})


def test_numbers_of_a_declared_range() -> None:
    settings = {"size": {"height": 32, "width": 64}, "rescale_factor": 1 / 255, "value_range": (0, 255)}
    check(5, settings, dtype=np.float32)


def test_many_bands_make_one_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bands of 3 rows, so that the last one reaches beyond the image."""
    monkeypatch.setattr("segtune.export.graph_text.BAND", 5 * 65 * 3)
    assert BAND > 5 * 97 * 65
    check(5, {"do_resize": False})


def test_a_fixed_size_takes_no_other() -> None:
    model, _ = network(5)
    processor = SegformerImageProcessor(do_resize=False)
    graph = product_model(logits_model(model, (64, 96)), processor, size=(64, 96))
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    np.testing.assert_array_equal(run(graph, image)[0], Segmenter(model, processor)(image).labels)
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument, match="dimensions"):
        run(graph, image[:40])


@pytest.mark.parametrize("resample", [2, 3])
@pytest.mark.parametrize("rows_first", [False, True])
def test_resize_is_that_of_pillow(resample: int, rows_first: bool) -> None:
    """To the last bit, in the order that the graph was built for."""
    from onnx import inliner, parser

    from segtune.export import graph_text

    text = f"""
    <ir_version: 10, opset_import: ["" : 20, "segtune" : 1]>
    resize (uint8[H, W, C] image, int64[1] new_height, int64[1] new_width) => (uint8[C, h, w] planes)
    {{
        height = Shape <start = 0, end = 1> (image)
        width = Shape <start = 1, end = 2> (image)
        {graph_text._resized("uint8", 3, rows_first)}
    }}
    {graph_text._resample(20, graph_text.FILTERS[resample], False)}
    """
    model = inliner.inline_local_functions(parser.parse_model(text)).SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    random = np.random.default_rng(0)
    sizes = [(40, 20, 10, 19), (33, 25, 128, 64), (65, 97, 65, 31), (31, 41, 31, 41), (7, 5, 1, 3), (300, 30, 31, 29)]
    for height, width, *size in sizes:
        pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        target = [np.array([side]) for side in size]
        planes = session.run(None, {"image": pixels, "new_height": target[0], "new_width": target[1]})[0]
        down_first = rows_first and size[0] < height and height - size[0] > 2 * (width - size[1])
        between = (width, size[0]) if down_first else (size[1], height)
        image = Image.fromarray(pixels).resize(between, resample).resize(size[::-1], resample)
        np.testing.assert_array_equal(planes.transpose(1, 2, 0), np.asarray(image))


def test_order_of_pillow_is_looked_up() -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (90, 40, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    between = (40, 20) if pillow_turns_rows_first() else (39, 90)
    in_two = image.resize(between, Image.Resampling.BILINEAR).resize((39, 20), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(np.asarray(image.resize((39, 20), Image.Resampling.BILINEAR)), np.asarray(in_two))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"resample": 1}, "resample=lanczos of the image processor is not known to export"),
        ({"size": {"shortest_edge": 512, "longest_edge": 2048}}, "the image processor's size .* is not known"),
    ],
)
def test_what_cannot_be_built_is_refused(settings: Mapping[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        product_model(onnx.load_from_string(network(5)[1]), SegformerImageProcessor(**settings))


def test_facts_are_text() -> None:
    graph = onnx.load_from_string(network(5)[1])
    product.describe(graph, {"license": "mit", "names": ["sky", "road"], "ignore_index": 255})
    assert {one.key: one.value for one in graph.metadata_props if one.key in ("license", "names", "ignore_index")} == {
        "license": "mit",
        "names": '["sky", "road"]',
        "ignore_index": "255",
    }


@pytest.mark.parametrize("num_labels", [1, 5])
@pytest.mark.parametrize("temperature", [None, 1.7])
def test_runtimes_have_nothing_to_say(
    num_labels: int, temperature: float | None, capfd: pytest.CaptureFixture[str]
) -> None:
    """ONNX Runtime warns on standard error of values that nothing takes."""
    processor = SegformerImageProcessor(size={"shortest_edge": 64})
    graph = product_model(onnx.load_from_string(network(num_labels)[1]), processor, temperature=temperature)
    run(graph, np.zeros((40, 60, 3), np.uint8))
    assert capfd.readouterr().err == ""


def test_full_size_logits_exist_nowhere() -> None:
    """What is at the full size is made, and decided, in the body of the loop over bands alone."""
    found = product_model(onnx.load_from_string(network(5)[1]), SegformerImageProcessor(do_resize=False))
    (loop,) = (node for node in found.graph.node if node.op_type == "Loop")
    inside = [node.op_type for node in loop.attribute[0].g.node]
    assert inside.count("Resize") == inside.count("ArgMax") == 1
    outside = found.graph.node[list(found.graph.node).index(loop) + 1 :]
    assert [node.op_type for node in outside] == ["Concat", "Reshape", "Slice"]
