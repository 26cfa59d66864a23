"""Post-training quantisation to 8-bit integers: ONNX Runtime's and, for OpenVINO, nncf's.

Weights are symmetric with a scale for each output channel, maps have one scale each, from the extremes that calibration
images reach (ONNX Runtime) or from nncf's statistics, which also smooths activations (SmoothQuant) and corrects biases.
"""

from __future__ import annotations

import io
import logging
import os
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from segtune.engines.onnx_model import INPUT
from segtune.errors import UsageError
from segtune.evaluation.confusion import count_pairs
from segtune.evaluation.scores import of_confusion, overall_scores
from segtune.export.layer_kinds import KINDS, Layer, layers_of
from segtune.export.sessions import Runtime
from segtune.export.targets import write_openvino

if TYPE_CHECKING:
    import onnx

# What the engines compute in floating point anyway, around which integers would have to be converted to and fro
FLOAT_KINDS = frozenset(
    {"softmax", "attention sums", "Mix-FFN activation", "residual sums", "layer norms", "head sums"}
)
INT8_KINDS = tuple(kind for kind in KINDS if kind not in FLOAT_KINDS)


class Quantizer(Protocol):
    """Makes int8 graphs of one network, after one look at the calibration images.

    Attributes:
        layers: that may be taken.
        suffix: of the files.
    """

    layers: Sequence[Layer]
    suffix: str

    def save(self, names: Collection[str], path: Path, about: Mapping[str, Any] | None = None) -> int:
        """Write the graph with the layers of these names in int8; return how many maps and weights are rounded.

        Args:
            about: facts for the file's metadata; those of the network stay in ONNX files.
        """


def open_quantizer(
    network: onnx.ModelProto, inputs: Sequence[np.ndarray], runtime: Runtime, max_drop: float | None = None
) -> Quantizer:
    """The quantiser that belongs to a runtime.

    Args:
        network: from `pixel_values` to `logits`, as `logits_model` makes it.
        inputs: of the network, `(1, C, h, w)` float32 each, see `network_inputs`.
        max_drop: of the mIoU with which the classes of the inputs' logits agree with those in floating point, 1 without
            quantisation. Layers that cost more go back to floating point, those first that cost most (nncf's accuracy
            control, for OpenVINO alone). None: all stay in int8, whatever they cost.

    Raises:
        UsageError: the packages of the extra are not installed.
    """
    return _OnnxRuntime(network, inputs) if runtime == "onnxruntime" else _OpenVino(network, inputs, max_drop)


def int8_layers(layers: Sequence[Layer], kinds: Collection[str] = INT8_KINDS) -> set[str]:
    """The names of the layers of some kinds; by default of those that int8 is made for: products with weights."""
    return {layer.name for layer in layers if layer.kind in kinds}


class _OnnxRuntime:
    """A pair of QuantizeLinear and DequantizeLinear around what is computed in int8."""

    suffix = ".onnx"

    def __init__(self, network: onnx.ModelProto, inputs: Sequence[np.ndarray]) -> None:
        try:
            import onnx
            from onnxruntime.quantization.calibrate import CalibrationMethod, create_calibrator
        except ModuleNotFoundError as error:
            raise UsageError(f"int8 needs the package {error.name}: pip install 'segtune[onnx]'") from None
        self.layers: Sequence[Layer] = layers_of(network)
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

    def save(self, names: Collection[str], path: Path, about: Mapping[str, Any] | None = None) -> int:
        import onnx

        if not names:  # of which the quantiser thinks that all are meant
            onnx.save(self._network, path)
            return 0
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
        quantizer.model.topological_sort()  # the quantiser puts what it adds at the end, which ONNX forbids
        made = quantizer.model.model
        onnx.save(made, path)
        return sum(node.op_type == "DequantizeLinear" for node in made.graph.node)


def _reader(inputs: Sequence[np.ndarray]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.waiting: Iterator[np.ndarray] = iter(inputs)

        def get_next(self) -> Mapping[str, np.ndarray] | None:
            array = next(self.waiting, None)
            return None if array is None else {INPUT: array}

    return Reader()


class _OpenVino:
    """nncf, whose statistics are taken anew for each graph."""

    suffix = ".xml"

    def __init__(self, network: onnx.ModelProto, inputs: Sequence[np.ndarray], max_drop: float | None = None) -> None:
        _import_nncf()
        self.layers: Sequence[Layer] = layers_of(network)
        self._graph = network.SerializeToString()
        self._inputs = list(inputs)
        self._max_drop = max_drop

    def save(self, names: Collection[str], path: Path, about: Mapping[str, Any] | None = None) -> int:
        import openvino

        made = openvino.Core().read_model(self._graph)
        with _quiet():
            made = self._quantized(made, self._kept(names))
        write_openvino(made, path, about or {})
        return sum(operation.get_type_name() == "FakeQuantize" for operation in made.get_ops())

    def _kept(self, names: Collection[str]) -> list[str]:
        """What nncf calls the layers that stay as they are.

        The layer that makes the network's output has the output's name there; a bias is a layer apart.
        """
        return [
            name + suffix
            for layer in self.layers
            if layer.name not in names
            for name in (layer.name, layer.output)
            for suffix in ("", "/WithoutBiases")
        ]

    def _quantized(self, model: Any, kept: list[str]) -> Any:
        nncf = _import_nncf()
        settings: dict[str, Any] = {
            "subset_size": len(self._inputs),
            "model_type": nncf.ModelType.TRANSFORMER,
            "ignored_scope": nncf.IgnoredScope(names=kept, validate=False),
        }
        dataset = nncf.Dataset(self._inputs)
        if self._max_drop is None:
            return nncf.quantize(model, dataset, **settings)
        reference = _classes_of(model, self._inputs)
        return nncf.quantize_with_accuracy_control(
            model,
            dataset,
            nncf.Dataset(list(zip(self._inputs, reference, strict=True)), lambda pair: pair[0]),
            _agreement,
            max_drop=self._max_drop,
            drop_type=nncf.DropType.ABSOLUTE,
            **settings,
        )


def _classes_of(model: Any, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The class of each of the logits of an OpenVINO graph, as it stands."""
    import openvino

    compiled = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return [_classes(compiled, one) for one in inputs]


def _classes(compiled: Any, pixel_values: np.ndarray) -> np.ndarray:
    """(1, h/4, w/4) int: the largest logit's; of one logit, whether it is above 0."""
    logits = compiled(pixel_values)[0]
    found: np.ndarray = logits.argmax(1) if logits.shape[1] > 1 else (logits[:, 0] > 0).astype(np.int64)
    return found


def _agreement(compiled: Any, pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> tuple[float, list[float]]:
    """The mIoU between a graph's classes and the reference's over all inputs, and of each input alone."""
    counts = []
    for pixel_values, reference in pairs:
        found = _classes(compiled, pixel_values)
        num_labels = 1 + int(max(found.max(), reference.max()))
        counts.append(count_pairs(found, reference, num_labels, ignore_index=-1))
    most = max(len(one) for one in counts)
    whole = np.sum([np.pad(one, (0, most - len(one))) for one in counts], axis=0)
    mean_iou, *each = (float(overall_scores(*of_confusion(one))["mean_iou"]) for one in (whole, *counts))
    return mean_iou, each


def _import_nncf() -> Any:
    # nncf tells Google Analytics of each use, and numbers the user, except where it takes itself to be tested
    before = os.environ.get("CI")
    os.environ["CI"] = "true"
    os.environ.setdefault("NNCF_CI", "1")
    try:
        import nncf
        import openvino  # noqa: F401
    except ModuleNotFoundError as error:
        raise UsageError(f"int8 for OpenVINO needs {error.name}: pip install 'segtune[quantize]'") from None
    finally:
        del os.environ["CI"]
        if before is not None:
            os.environ["CI"] = before
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
