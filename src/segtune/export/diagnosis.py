"""Where an export begins to answer otherwise than its checkpoint: layer by layer, on one image."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from segtune.engines.network import LogitsNetwork
from segtune.engines.onnx_model import INPUT, OUTPUT
from segtune.export.sessions import Runtime, open_session
from segtune.segformer.image_processing_segformer import SegformerImageProcessor
from segtune.segformer.modeling_segformer import SegformerForSemanticSegmentation

if TYPE_CHECKING:
    import onnx

TOLERANCE = 2e-5  # of the largest value of a layer; what float32 makes in another order is a tenth of it
SCOPES = "pkg.torch.onnx.name_scopes"  # metadata of a node: the modules that it was traced in, the outermost first


def where_it_differs(
    graph: onnx.ModelProto,
    model: SegformerForSemanticSegmentation,
    processor: SegformerImageProcessor,
    image: np.ndarray,
    runtime: Runtime = "onnxruntime",
) -> str:
    """In words, the first layer of a graph whose values differ from the checkpoint's.

    Args:
        graph: from `pixel_values` to `logits`, or a product graph.
        model, processor: of the checkpoint.
        image: `(H, W, C)`, as the segmenter reads it.
    """
    pixel_values = processor(image, return_tensors="pt", input_data_format="channels_last")["pixel_values"]
    expected = _values_of_modules(LogitsNetwork(model), pixel_values)
    is_product = any(given.name == "image" for given in graph.graph.input)
    names = _outputs_of_modules(graph)
    shown = list(dict.fromkeys([*names.values(), OUTPUT, *([INPUT] if is_product else [])]))
    feed = {"image": _typed(graph, image)} if is_product else {INPUT: pixel_values.numpy()}
    found = open_session(_with_outputs(graph, shown), runtime)(feed)
    if is_product and not _agree(found[INPUT], pixel_values.numpy()):
        return "the preparation of the image (resize, rescale, normalise)"
    for module, value in expected.items():
        if module in names and not _agree(found[names[module]], value):
            return f"the layer {module}"
    if not _agree(found[OUTPUT], expected[""]):
        return "the logits"
    return "the upsampling and the choice of the class, after the logits"


def _values_of_modules(network: LogitsNetwork, pixel_values: torch.Tensor) -> dict[str, np.ndarray]:
    """What each module gives, by its name, in the order in which they end; the network's own name is ""."""
    found: dict[str, np.ndarray] = {}

    def keep(name: str) -> Any:
        def hook(_module: Any, _given: Any, output: Any) -> None:
            if isinstance(output, torch.Tensor):
                found[name] = output.numpy()

        return hook

    for name, module in network.named_modules():
        module.register_forward_hook(keep(name))
    with torch.inference_mode():
        network(pixel_values)
    return found


def _outputs_of_modules(graph: onnx.ModelProto) -> dict[str, str]:
    """The value that each module's last node makes, by the module's name."""
    import onnx

    float32 = {
        value.name for value in graph.graph.value_info if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    }
    found: dict[str, str] = {}
    for node in graph.graph.node:
        if node.output[0] not in float32:
            continue
        scopes = next((entry.value for entry in node.metadata_props if entry.key == SCOPES), None)
        if scopes is None:
            continue
        for module in ast.literal_eval(scopes)[:-1]:  # the last one is the operation itself
            if module:
                found[module] = node.output[0]
    return found


def _with_outputs(graph: onnx.ModelProto, names: list[str]) -> bytes:
    """The graph, with some of its values as its only outputs."""
    import onnx
    from onnx import helper

    changed = onnx.ModelProto()
    changed.CopyFrom(graph)
    del changed.graph.output[:]
    changed.graph.output.extend(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names)
    return changed.SerializeToString()


def _typed(graph: onnx.ModelProto, image: np.ndarray) -> np.ndarray:
    import onnx

    is_bytes = graph.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    return image if is_bytes else image.astype(np.float32)


def _agree(found: np.ndarray, expected: np.ndarray) -> bool:
    """Whether values are equal up to rounding, in whatever order of axes they lie."""
    if found.size != expected.size:
        return True  # nodes were joined, so that this one is another value
    if found.shape != expected.shape:
        found, expected = np.sort(found, axis=None), np.sort(expected, axis=None)
    return bool(np.abs(found - expected).max() <= TOLERANCE * np.abs(expected).max())
