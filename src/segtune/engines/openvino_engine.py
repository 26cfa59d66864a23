"""The graph in OpenVINO, on a CPU."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from segtune.engines.graph import Opened, refuse_names, refused, unreadable
from segtune.engines.onnx_model import INPUT
from segtune.errors import UsageError

SHAPES = 4  # for which a graph of fixed shape is compiled
_PRECISIONS = {"fp32": "f32", "bf16": "bf16"}


def open_graph(graph: Path | bytes, precision: str, threads: int) -> Opened:
    """A graph, ready to run: see `engine_network.open_engine`."""
    import openvino

    core = openvino.Core()
    if precision not in ("auto", *_PRECISIONS):
        raise UsageError(f"--precision {precision}: with --engine openvino give auto, fp32 or bf16")
    if precision == "auto":
        precision = "bf16" if "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES") else "fp32"
    try:
        model = core.read_model(graph)
    except RuntimeError as error:
        raise unreadable(graph, "OpenVINO", error) from error
    inputs, outputs = ([name for port in ports for name in port.names] for ports in (model.inputs, model.outputs))
    refuse_names(graph, inputs, outputs)
    operations = model.get_ops()
    is_quantized = any(each.get_type_name() == "FakeQuantize" for each in operations)
    constants = [each for each in operations if each.get_type_name() == "Constant"]
    settings = {
        "INFERENCE_PRECISION_HINT": _PRECISIONS[precision],
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "ENABLE_CPU_PINNING": False,  # pinned threads wait for their core where another process is busy on it
    }
    return Opened(
        _Runner(core, model, settings, graph),
        "int8" if is_quantized else precision,
        _sides(model.inputs[0]),
        _sides(model.outputs[0]),
        sum(math.prod(each.shape) for each in constants),
    )


class _Runner:
    """Runs a graph, for the first few shapes in a form that is compiled for each.

    A fixed shape takes a third less time: attention is then fused to one kernel, shapes are not computed anew, and
    layouts are chosen beforehand. But compiling takes a second and keeps a copy of the weights, so that images of many
    sizes get one graph for any shape.
    """

    def __init__(self, core: Any, model: Any, settings: dict[str, Any], graph: Path | bytes) -> None:
        self._core, self._model, self._settings, self._graph = core, model, settings, graph
        self._fixed: dict[tuple[int, ...], Any] = {}
        self._any: Any = None

    def __call__(self, images: np.ndarray) -> np.ndarray:
        try:
            logits: np.ndarray = self._request(images.shape).infer([images], share_inputs=True)[0]
        except RuntimeError as error:
            raise refused(self._graph, images, error) from error
        return logits

    def _request(self, shape: tuple[int, ...]) -> Any:
        if shape in self._fixed:
            return self._fixed[shape]
        if len(self._fixed) < SHAPES:
            model = self._model.clone()
            model.reshape({INPUT: list(shape)})
            self._fixed[shape] = self._compiled(model)
            return self._fixed[shape]
        self._any = self._any or self._compiled(self._model)
        return self._any

    def _compiled(self, model: Any) -> Any:
        return self._core.compile_model(model, "CPU", self._settings).create_infer_request()


def _sides(port: Any) -> list[int | None]:
    return [None if side.is_dynamic else side.get_length() for side in port.partial_shape]
