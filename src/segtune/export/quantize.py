"""Post-training quantisation to 8-bit integers: ONNX Runtime's and, for OpenVINO, nncf's.

Weights are symmetric with a scale for each output channel, maps have one scale each, from the extremes that calibration
images reach (ONNX Runtime) or from nncf's statistics, which also smooths activations (SmoothQuant) and corrects biases.
"""

from __future__ import annotations

import io
import logging
import os
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from transformers.modeling_outputs import SemanticSegmenterOutput

from segtune.engines.onnx_model import INPUT
from segtune.errors import UsageError
from segtune.export.layer_kinds import KINDS, Layer, layers_of
from segtune.imageio.raster import ArrayRaster
from segtune.inference.evaluate import labelled_image
from segtune.inference.segmenter import LOGIT_STRIDE, Segmenter
from segtune.labels.label_map import LabelMap
from segtune.segformer.image_processing_segformer import SegformerImageProcessor

if TYPE_CHECKING:
    import datasets
    import onnx

CALIBRATION_IMAGES = 32
# What the engines compute in floating point anyway, around which integers would have to be converted to and fro
FLOAT_KINDS = frozenset(
    {"softmax", "attention sums", "Mix-FFN activation", "residual sums", "layer norms", "head sums"}
)
INT8_KINDS = tuple(kind for kind in KINDS if kind not in FLOAT_KINDS)

Runtime = Literal["onnxruntime", "openvino"]


class Quantizer(Protocol):
    """Makes int8 graphs of one network, after one look at the calibration images.

    Attributes:
        layers: that may be taken.
        suffix: of the files.
    """

    layers: Sequence[Layer]
    suffix: str

    def save(self, names: Collection[str], path: Path) -> int:
        """Write the graph with the layers of these names in int8; return how many maps and weights are rounded."""


def open_quantizer(network: onnx.ModelProto, inputs: Sequence[np.ndarray], runtime: Runtime) -> Quantizer:
    """The quantiser that belongs to a runtime.

    Args:
        network: from `pixel_values` to `logits`, as `logits_model` makes it.
        inputs: of the network, `(1, C, h, w)` float32 each, see `network_inputs`.

    Raises:
        UsageError: the packages of the extra are not installed.
    """
    return _OnnxRuntime(network, inputs) if runtime == "onnxruntime" else _OpenVino(network, inputs)


def int8_layers(layers: Sequence[Layer], kinds: Collection[str] = INT8_KINDS) -> set[str]:
    """The names of the layers of some kinds; by default of those that int8 is made for: products with weights."""
    return {layer.name for layer in layers if layer.kind in kinds}


def network_inputs(
    rows: datasets.Dataset, label_map: LabelMap, processor: SegformerImageProcessor, count: int = CALIBRATION_IMAGES
) -> list[np.ndarray]:
    """What the network is given of images spread over a split: one whole image, or one window, of each.

    Returns:
        Arrays `(1, C, h, w)`, float32, normalised.

    Raises:
        UsageError: the split is streamed, or has no images.
        DataError: an image that cannot be read.
    """
    if not hasattr(rows, "__len__"):
        raise UsageError("int8 needs images of the training split, which is streamed: say dataset.streaming=false")
    if not len(rows):
        raise UsageError("int8 needs images of the training split, and it has none")
    seen = _OneInput(label_map.num_labels)
    segmenter = Segmenter(seen, processor)
    inputs = []
    for number in spread(len(rows), count):
        image = labelled_image(rows, number, label_map, segmenter.form).image
        for _ in segmenter.strips(ArrayRaster(image)):
            pass
        inputs.append(seen.take())
    return inputs


def spread(total: int, count: int) -> list[int]:
    """At most `count` of the numbers from 0 to `total` - 1, evenly."""
    return sorted({round(at) for at in np.linspace(0, total - 1, min(count, total))})


class _OneInput(nn.Module):
    """Stands in the place of a network, and keeps one of the inputs that it is given, each with the same chance."""

    def __init__(self, num_labels: int) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.zeros(()), requires_grad=False)
        self.num_labels, self.given = num_labels, 0
        self.draw = np.random.default_rng(0)
        self.kept = torch.zeros(0)

    def forward(self, pixel_values: Tensor) -> SemanticSegmenterOutput:
        for one in pixel_values.split(1):
            self.given += 1
            if self.draw.integers(self.given) == 0:
                self.kept = one
        sides = (-(-side // LOGIT_STRIDE) for side in pixel_values.shape[2:])
        return SemanticSegmenterOutput(logits=torch.zeros(len(pixel_values), self.num_labels, *sides))

    def take(self) -> np.ndarray:
        self.given = 0
        return self.kept.numpy().copy()


class _OnnxRuntime:
    """A pair of QuantizeLinear and DequantizeLinear around what is computed in int8."""

    suffix = ".onnx"

    def __init__(self, network: onnx.ModelProto, inputs: Sequence[np.ndarray]) -> None:
        try:
            import onnx
            from onnxruntime.quantization.calibrate import CalibrationMethod, create_calibrator
        except ModuleNotFoundError as error:
            raise UsageError(f"int8 needs the package {error.name}: pip install 'segtune[onnx]'") from None
        self.layers = layers_of(network)
        self._network = onnx.shape_inference.infer_shapes(network)  # tells maps from shapes
        names = {layer.name for layer in self.layers}
        self._operations = sorted({node.op_type for node in network.graph.node if node.name in names})
        with tempfile.TemporaryDirectory() as folder, _quiet():
            onnx.save(network, path := Path(folder, "network.onnx"))
            calibrator = create_calibrator(
                path,
                self._operations,
                augmented_model_path=str(Path(folder, "augmented.onnx")),
                calibrate_method=CalibrationMethod.MinMax,
            )
            calibrator.collect_data(_reader(inputs))
            self._ranges = calibrator.compute_data()
            del calibrator  # it holds the file open, which Windows would not remove

    def save(self, names: Collection[str], path: Path) -> int:
        import onnx
        from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
        from onnxruntime.quantization.quant_utils import QuantType

        network = onnx.ModelProto()
        network.CopyFrom(self._network)
        quantizer = QDQQuantizer(
            network,
            per_channel=True,
            reduce_range=False,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QInt8,
            tensors_range=self._ranges,
            nodes_to_quantize=sorted(names),
            nodes_to_exclude=[],
            op_types_to_quantize=self._operations,
            extra_options={},
        )
        with _quiet():
            quantizer.quantize_model()
        made = quantizer.model.model
        onnx.save(made, path)
        return sum(node.op_type == "DequantizeLinear" for node in made.graph.node)


def _reader(inputs: Sequence[np.ndarray]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.waiting: Iterator[np.ndarray] = iter(inputs)

        def get_next(self) -> Mapping[str, np.ndarray] | None:
            array = next(self.waiting, None)
            return None if array is None else {INPUT: array}

    return Reader()


class _OpenVino:
    """nncf, whose statistics are taken anew for each graph."""

    suffix = ".xml"

    def __init__(self, network: onnx.ModelProto, inputs: Sequence[np.ndarray]) -> None:
        _import_nncf()
        self.layers = layers_of(network)
        self._graph = network.SerializeToString()
        self._inputs = list(inputs)

    def save(self, names: Collection[str], path: Path) -> int:
        import openvino

        nncf = _import_nncf()
        made = openvino.Core().read_model(self._graph)
        # a layer that makes the network's output has the output's name there
        kept = [name for layer in self.layers if layer.name not in names for name in (layer.name, layer.output)]
        with _quiet():
            made = nncf.quantize(
                made,
                nncf.Dataset(self._inputs),
                subset_size=len(self._inputs),
                model_type=nncf.ModelType.TRANSFORMER,
                ignored_scope=nncf.IgnoredScope(names=kept, validate=False),
            )
        openvino.save_model(made, path, compress_to_fp16=False)
        return sum(operation.get_type_name() == "FakeQuantize" for operation in made.get_ops())


def _import_nncf() -> Any:
    # nncf tells Google Analytics of each use, except where it takes itself to be in its own tests
    os.environ.setdefault("NNCF_CI", "1")
    try:
        import nncf
        import openvino  # noqa: F401
    except ModuleNotFoundError as error:
        raise UsageError(f"int8 for OpenVINO needs {error.name}: pip install 'segtune[quantize]'") from None
    return nncf


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what quantisers say of axes, of pre-processing and of their progress."""
    loggers = [logging.getLogger(), logging.getLogger("nncf")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with redirect_stdout(io.StringIO()):  # where nncf draws its bars
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
