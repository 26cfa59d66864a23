"""The product graph: an image of any size in, its mask at that size out, everything between inside one ONNX model."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from segtune.errors import UsageError
from segtune.export.graph_text import FILTERS, product_text, size_text
from segtune.inference.segmenter import form_of
from segtune.segformer.image_processing_segformer import SegformerImageProcessor

if TYPE_CHECKING:
    import onnx

OPERATORS = ""  # ONNX's own domain
NETWORK = "network/"  # what the names of the network's values begin with


def product_model(
    network: onnx.ModelProto,
    processor: SegformerImageProcessor,
    *,
    size: tuple[int, int] | None = None,
    temperature: float | None = None,
) -> onnx.ModelProto:
    """From image to mask.

    Args:
        network: `pixel_values` (1, C, h, w) to `logits` (1, K, h/4, w/4), float32.
        processor: how an image is resized and normalised.
        size: (height, width) of the only images that the model takes; None for any.
        temperature: adds `confidence`, of logits divided by it.

    Returns:
        A model with the input `image` (H, W, C), uint8 or, where the processor takes other numbers than those of 8-bit
        pictures, float32; and the output `mask` (H, W), uint8 (int32 for more than 256 labels), and `confidence`
        (H, W) float32 in (0, 1].

    Raises:
        UsageError: the processor does what cannot be built into a model.
    """
    import onnx
    from onnx import inliner, parser

    opset = next(found.version for found in network.opset_import if found.domain == OPERATORS)
    image = ("height", "width") if size is None else (str(size[0]), str(size[1]))
    text = product_text(
        image=image,
        channels=len(processor.image_mean),
        is_float=form_of(processor)[1],
        num_logits=num_logits(network),
        resize=size_text(processor.size if processor.do_resize else None, processor.size_divisor),
        factor=processor.rescale_factor if processor.do_rescale else 1.0,
        mean=list(processor.image_mean) if processor.do_normalize else [0.0] * len(processor.image_mean),
        std=list(processor.image_std) if processor.do_normalize else [1.0] * len(processor.image_mean),
        temperature=temperature,
        opset=opset,
        ir_version=network.ir_version,
        resample=_known_filter(processor),
        rows_first=pillow_turns_rows_first(),
    )
    model = inliner.inline_local_functions(parser.parse_model(text))
    _insert(model.graph, network.graph)
    known = {found.domain for found in model.opset_import}
    model.opset_import.extend(found for found in network.opset_import if found.domain not in known)
    onnx.checker.check_model(model)
    return model


def num_logits(network: onnx.ModelProto) -> int:
    """K of the output `logits` (B, K, h, w)."""
    return int(network.graph.output[0].type.tensor_type.shape.dim[1].dim_value)


def pillow_turns_rows_first() -> bool:
    """Whether the Pillow that is installed resizes rows first where that is less work, as it does from version 13 on.

    Each pass rounds to bytes, so that the order shows in the pixels.
    """
    noise = np.random.default_rng(0).integers(0, 256, (40, 20), dtype=np.uint8)
    image = Image.fromarray(noise)
    found, columns_first = (
        np.asarray(one)
        for one in (
            image.resize((19, 10), Image.Resampling.BILINEAR),
            image.resize((19, 40), Image.Resampling.BILINEAR).resize((19, 10), Image.Resampling.BILINEAR),
        )
    )
    return not np.array_equal(found, columns_first)


def describe(model: onnx.ModelProto, about: dict[str, Any]) -> None:
    """Write facts into the model's metadata, whose values are text: JSON where they are no text."""
    from onnx import helper

    entries = {key: value if isinstance(value, str) else json.dumps(value) for key, value in about.items()}
    helper.set_model_props(model, entries)


def _known_filter(processor: SegformerImageProcessor) -> int:
    if processor.resample not in FILTERS:
        name = Image.Resampling(processor.resample).name.lower()
        raise UsageError(f"resample={name} of the image processor is not known to export: bilinear and bicubic are")
    return processor.resample


def _insert(graph: onnx.GraphProto, network: onnx.GraphProto) -> None:
    """Put a network in the place of the one node that stands for it."""
    from onnx import compose

    compose.add_prefix_graph(network, NETWORK, inplace=True)
    place = next(number for number, node in enumerate(graph.node) if node.domain == "segtune")
    call = graph.node[place]
    renamed = {network.input[0].name: call.input[0], network.output[0].name: call.output[0]}
    before, after = list(graph.node[:place]), list(graph.node[place + 1 :])
    del graph.node[:]
    graph.node.extend(before)
    for node in network.node:
        for names in (node.input, node.output):
            for number, name in enumerate(names):
                names[number] = renamed.get(name, name)
        graph.node.append(node)
    graph.node.extend(after)
    graph.initializer.extend(network.initializer)
    graph.value_info.extend(network.value_info)
