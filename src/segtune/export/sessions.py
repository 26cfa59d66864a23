"""ONNX Runtime and OpenVINO as plain functions, for graphs of any inputs and outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from segtune.errors import DataError, UsageError

Runtime = Literal["onnxruntime", "openvino"]
Run = Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]  # inputs by name -> outputs by name

_EXTRAS = {"onnxruntime": "onnx", "openvino": "openvino"}


def open_session(graph: Path | bytes, runtime: Runtime, precision: str = "fp32") -> Run:
    """An ONNX graph, or with OpenVINO also an `.xml`, ready to run on the CPU with PyTorch's number of threads.

    Args:
        precision: "fp32", or with OpenVINO "bf16".

    Raises:
        UsageError: the runtime is not installed.
        DataError: it cannot read or run the graph.
    """
    try:
        return _onnxruntime(graph) if runtime == "onnxruntime" else _openvino(graph, precision)
    except ModuleNotFoundError as error:
        raise UsageError(
            f"{runtime} needs the package {error.name}: pip install 'segtune[{_EXTRAS[runtime]}]'"
        ) from None


def _onnxruntime(graph: Path | bytes) -> Run:
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    faults = tuple(each for each in vars(state).values() if isinstance(each, type) and issubclass(each, Exception))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # faults are raised; they need not be printed as well
    # as engines open it: threads that spin for their next work cost most where other processes compute
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except faults as error:
        raise DataError(f"{_name(graph)} cannot be read by ONNX Runtime: {_first_line(error)}") from error
    names = [output.name for output in session.get_outputs()]

    def run(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        try:
            return dict(zip(names, session.run(names, dict(inputs)), strict=True))
        except faults as error:
            raise DataError(f"{_name(graph)} cannot be run by ONNX Runtime: {_first_line(error)}") from error

    return run


def _openvino(graph: Path | bytes, precision: str) -> Run:
    import openvino

    settings = {
        "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision],
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    try:
        compiled = openvino.Core().compile_model(openvino.Core().read_model(graph), "CPU", settings)
    except RuntimeError as error:
        raise DataError(f"{_name(graph)} cannot be read by OpenVINO: {_first_line(error)}") from error
    request = compiled.create_infer_request()

    def run(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        try:
            found = request.infer(dict(inputs))
        except RuntimeError as error:
            raise DataError(f"{_name(graph)} cannot be run by OpenVINO: {_first_line(error)}") from error
        return {output.any_name: np.array(found[output]) for output in compiled.outputs}

    return run


def computes_in_bf16() -> bool:
    """Whether OpenVINO says that this CPU has units for bfloat16."""
    import openvino

    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def _name(graph: Path | bytes) -> str:
    return "the graph" if isinstance(graph, bytes) else str(graph)


def _first_line(error: Any) -> str:
    return str(error).strip().splitlines()[0]
