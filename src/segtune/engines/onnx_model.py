"""A network as ONNX: the graph that maps `pixel_values` to `logits`."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from segtune.engines.network import LogitsNetwork
from segtune.errors import UsageError
from segtune.segformer.modeling_segformer import SegformerForSemanticSegmentation

if TYPE_CHECKING:
    import onnx

INPUT, OUTPUT = "pixel_values", "logits"  # as transformers, optimum and transformers.js name them
OPSET = 20  # the first one with Gelu as a single node
SMALLEST_SIDE = 29  # of an image in a graph of any size: below, the reduction of stage 1 has no whole patch of 8 x 8


def logits_model(model: SegformerForSemanticSegmentation, size: tuple[int, int] | None = None) -> onnx.ModelProto:
    """The graph from `pixel_values` `(B, C, H, W)`, float32, normalised, to `logits` `(B, K, H/4, W/4)`, rounded up.

    Args:
        size: height and width, where both are to be fixed, and the batch to one; by default all three are free, from
            29 pixels a side on.

    Raises:
        UsageError: the packages of the extra `onnx` are missing, or the model holds layers of others.
    """
    network = LogitsNetwork(model)
    if size is not None:
        return to_onnx(network, torch.zeros(1, model.config.num_channels, *size))
    # sizes that agree in nothing, so that the tracer takes no two for the same
    example = torch.zeros(2, model.config.num_channels, 96, 160)
    return to_onnx(network, example, {0: "batch", 2: "height", 3: "width"})


def to_onnx(
    network: nn.Module,
    example: Tensor,
    dynamic: dict[int, str] | None = None,
    *,
    inputs: tuple[str, ...] = (INPUT,),
    outputs: tuple[str, ...] = (OUTPUT,),
) -> onnx.ModelProto:
    """The graph of a network with one input, through `torch.export`.

    Args:
        dynamic: the names of the dimensions of the input that are free.

    Raises:
        UsageError: the packages of the extra `onnx` are missing.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise UsageError(f"ONNX needs the package {error.name}: pip install 'segtune[onnx]'") from None
    program: Any
    with _quiet():
        program = torch.onnx.export(
            network,
            (example,),
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_shapes=(dynamic,) if dynamic else None,
        )
    proto: onnx.ModelProto = program.model_proto
    return proto


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter says of packages that are not installed, and of PyTorch's own future."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        logger.setLevel(level)
