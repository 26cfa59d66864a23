"""The files of an export, one function for each kind."""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Mapping
from contextlib import redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from segtune.engines.network import LogitsNetwork
from segtune.errors import UsageError
from segtune.segformer.modeling_segformer import SegformerForSemanticSegmentation

if TYPE_CHECKING:
    import onnx

COREML_SIDE = 512  # of the image, where none is asked for: a CoreML model has one size


def save_onnx(model: onnx.ModelProto, path: Path) -> None:
    """Weights of two gigabytes and more would need a second file; a SegFormer has a sixth of that at most."""
    import onnx

    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)


def half_precision(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph in float16, with inputs and outputs of float32."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    level = logging.root.level
    half: onnx.ModelProto = convert_float_to_float16(copy, keep_io_types=True)
    logging.root.setLevel(level)
    return half


def save_openvino(model: onnx.ModelProto, path: Path, about: Mapping[str, Any]) -> None:
    """An ONNX graph as OpenVINO's `.xml` and `.bin`, in float32, with the facts as its runtime information."""
    try:
        import openvino
    except ModuleNotFoundError as error:
        raise UsageError(f"OpenVINO needs the package {error.name}: pip install 'segtune[openvino]'") from None
    write_openvino(openvino.Core().read_model(model.SerializeToString()), path, about)


def write_openvino(converted: Any, path: Path, about: Mapping[str, Any]) -> None:
    """A model of OpenVINO as `.xml` and `.bin`, with the facts as its runtime information."""
    import openvino

    for key, value in about.items():
        converted.set_rt_info(value if isinstance(value, str) else json.dumps(value), ["segtune", key])
    path.parent.mkdir(parents=True, exist_ok=True)
    openvino.save_model(converted, path, compress_to_fp16=False)


def save_torch(model: SegformerForSemanticSegmentation, path: Path, size: tuple[int, int] | None) -> None:
    """The network as a program of `torch.export`, of any batch and size or of one size."""
    network = LogitsNetwork(model)
    channels = model.config.num_channels
    if size is None:
        example, free = torch.zeros(2, channels, 96, 160), torch.export.Dim.DYNAMIC
        program = torch.export.export(network, (example,), dynamic_shapes=({0: free, 2: free, 3: free},))
    else:
        program = torch.export.export(network, (torch.zeros(1, channels, *size),))
    content = io.BytesIO()  # on a full disk, PyTorch's writer of files ends the process
    torch.export.save(program, content)
    path.write_bytes(content.getbuffer())


def save_coreml(
    model: SegformerForSemanticSegmentation, path: Path, size: tuple[int, int] | None, about: Mapping[str, Any]
) -> None:
    """The network as a CoreML package of one size, of float32; made, and not run, elsewhere than on macOS."""
    logging.getLogger("coremltools").setLevel(logging.ERROR)  # it complains of versions, and of not being on macOS
    network = LogitsNetwork(model)
    example = torch.zeros(1, model.config.num_channels, *(size or (COREML_SIDE, COREML_SIDE)))
    with warnings.catch_warnings(), redirect_stderr(io.StringIO()):  # several bars
        warnings.simplefilter("ignore")
        try:
            import coremltools
        except ModuleNotFoundError as error:
            raise UsageError(f"CoreML needs the package {error.name}: pip install 'segtune[coreml]'") from None
        package = coremltools.convert(
            torch.jit.trace(network, example),
            inputs=[coremltools.TensorType(name="pixel_values", shape=example.shape)],
            outputs=[coremltools.TensorType(name="logits")],
            convert_to="mlprogram",
            minimum_deployment_target=coremltools.target.iOS16,
            compute_precision=coremltools.precision.FLOAT32,
        )
    for key, value in about.items():
        package.user_defined_metadata[f"segtune.{key}"] = value if isinstance(value, str) else json.dumps(value)
    package.save(str(path))
