"""The graph in ONNX Runtime, on a CPU."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from segtune.engines.graph import Opened, refuse_names, refused, unreadable
from segtune.engines.onnx_model import INPUT, OUTPUT
from segtune.errors import UsageError

_QUANTIZED = {"DequantizeLinear", "DynamicQuantizeLinear"}


def open_graph(graph: Path | bytes, precision: str, threads: int) -> Opened:
    """A graph, ready to run: see `engine_network.open_engine`."""
    import onnx
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    if precision not in ("auto", "fp32"):
        raise UsageError(f"--precision {precision}: ONNX Runtime computes in what the file holds; give auto or fp32")
    failures = tuple(each for each in vars(state).values() if isinstance(each, type) and issubclass(each, Exception))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # its errors are raised; it need not print them as well
    # a thread that spins for its next work keeps a core from another process
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except failures as error:
        raise unreadable(graph, "ONNX Runtime", error) from error
    inputs, outputs = session.get_inputs(), session.get_outputs()
    refuse_names(graph, [each.name for each in inputs], [each.name for each in outputs])

    def run(images: np.ndarray) -> np.ndarray:
        try:
            logits: np.ndarray = session.run([OUTPUT], {INPUT: images})[0]
        except failures as error:
            raise refused(graph, images, error) from error
        return logits

    proto = onnx.load_from_string(graph) if isinstance(graph, bytes) else onnx.load(graph, load_external_data=False)
    is_quantized = any(node.op_type in _QUANTIZED for node in proto.graph.node)
    parameters = sum(math.prod(tensor.dims) for tensor in proto.graph.initializer)
    return Opened(run, "int8" if is_quantized else "fp32", _sides(inputs[0]), _sides(outputs[0]), parameters)


def _sides(port: Any) -> list[int | None]:
    return [side if isinstance(side, int) else None for side in port.shape]
