"""Graphs in int8: what is rounded, what stays, what the file says; no request to anybody."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from segtune.engines import onnxruntime_engine, openvino_engine
from segtune.export.layer_kinds import KINDS
from segtune.export.quantize import INT8_KINDS, _agreement, _classes, _classes_of, int8_layers, open_quantizer
from support.exports import network

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
random = np.random.default_rng(0)
INPUTS = [random.standard_normal((1, 3, 64, 96), dtype=np.float32) for _ in range(3)]


def test_onnxruntime_rounds_what_it_is_told(tmp_path: Path) -> None:
    graph = onnx.load_from_string(network(5)[1])
    expected = onnxruntime_engine.open_graph(network(5)[1], "auto", 1).run(INPUTS[0])
    quantizer = open_quantizer(graph, INPUTS, "onnxruntime")
    errors = {}
    for kinds in ((), ("classifier",), INT8_KINDS, KINDS):
        path = tmp_path / f"{len(kinds)}.onnx"
        rounded = quantizer.save(int8_layers(quantizer.layers, kinds), path)
        opened = onnxruntime_engine.open_graph(path, "auto", 1)
        errors[len(kinds)] = np.abs(opened.run(INPUTS[0]) - expected).max() / np.abs(expected).max()
        assert (rounded > 0) == (opened.precision == "int8") == bool(kinds)
    assert errors[0] < 1e-5
    # a step of 8 bits is 1/256 of the range of what is rounded, and sums have many terms
    assert 1e-4 < errors[1] < 0.1 and 1e-4 < errors[len(INT8_KINDS)] < 0.5
    nodes = onnx.load(tmp_path / "1.onnx").graph.node
    (classifier,) = (node for node in nodes if node.op_type == "Conv" and "classifier" in str(node.metadata_props))
    makers = {node.output[0]: node.op_type for node in nodes}
    assert [makers[name] for name in classifier.input] == ["DequantizeLinear"] * 3
    weights = [one for one in onnx.load(tmp_path / "1.onnx").graph.initializer if "classifier.weight_quant" in one.name]
    assert [one.data_type for one in weights] == [onnx.TensorProto.INT8]


def test_any_size_and_facts_stay(tmp_path: Path) -> None:
    graph = onnx.load_from_string(network(5)[1])
    onnx.helper.set_model_props(graph, {"license": "mit"})
    quantizer = open_quantizer(graph, INPUTS, "onnxruntime")
    quantizer.save(int8_layers(quantizer.layers), tmp_path / "q.onnx")
    run = onnxruntime_engine.open_graph(tmp_path / "q.onnx", "auto", 1).run
    assert run(np.zeros((2, 3, 65, 130), np.float32)).shape == (2, 5, 17, 33)
    onnx.checker.check_model(onnx.load(tmp_path / "q.onnx"))  # each node comes after those whose values it takes
    assert ("license", "mit") in [(one.key, one.value) for one in onnx.load(tmp_path / "q.onnx").metadata_props]


@pytest.mark.slow
def test_openvino(tmp_path: Path) -> None:
    pytest.importorskip("nncf")
    openvino = pytest.importorskip("openvino")
    graph = onnx.load_from_string(network(5)[1])
    expected = onnxruntime_engine.open_graph(network(5)[1], "auto", 1).run(INPUTS[0])
    quantizer = open_quantizer(graph, INPUTS, "openvino")
    rounded = {}
    for kinds in (("classifier",), ("softmax",), INT8_KINDS):
        path = tmp_path / f"{kinds[0]}{len(kinds)}.xml"
        rounded[kinds] = quantizer.save(int8_layers(quantizer.layers, kinds), path, {"license": "mit"})
        found = openvino_engine.open_graph(path, "fp32", 1).run(INPUTS[0])
        assert np.abs(found - expected).max() < 0.3 * np.abs(expected).max()
    assert rounded[("classifier",)] in {1, 2}  # its input, and its weights where they are not stored as integers
    assert rounded[("softmax",)] == 0  # nncf leaves it alone
    assert rounded[INT8_KINDS] > 5
    model = openvino.Core().read_model(path)
    assert model.get_rt_info(["segtune", "license"]).astype(str) == "mit"


@pytest.mark.slow
def test_layers_that_cost_too_much_stay_in_floating_point(tmp_path: Path) -> None:
    pytest.importorskip("nncf")
    openvino = pytest.importorskip("openvino")
    graph = onnx.load_from_string(network(5)[1])
    reference = openvino.Core().read_model(graph.SerializeToString())
    pairs = list(zip(INPUTS, _classes_of(reference, INPUTS), strict=True))
    rounded, agreement = {}, {}
    for max_drop in (None, 1.0, 0.02, 0.0):
        quantizer = open_quantizer(graph, INPUTS, "openvino", max_drop)
        path = tmp_path / f"{max_drop}.xml"
        rounded[max_drop] = quantizer.save(int8_layers(quantizer.layers), path)
        compiled = openvino.compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        agreement[max_drop] = _agreement(compiled, pairs)[0]
    assert agreement[None] < 0.98  # random weights have near ties everywhere
    assert agreement[1.0] < 0.98 <= agreement[0.02] <= agreement[0.0] == 1
    assert rounded[1.0] == rounded[None] > rounded[0.02] >= rounded[0.0]


def test_agreement_of_classes_by_hand() -> None:
    """Two inputs of 2x2: classes 0 0 1 1 against 0 1 1 1, and 2 2 2 2 twice."""
    answers = {1.0: np.array([0, 0, 1, 1]), 2.0: np.array([2, 2, 2, 2])}

    def compiled(pixel_values: np.ndarray) -> list[np.ndarray]:
        return [np.eye(3)[answers[pixel_values.item()]].T.reshape(1, 3, 2, 2)]

    pairs = [(np.array(1.0), np.array([[[0, 1], [1, 1]]])), (np.array(2.0), np.full((1, 2, 2), 2))]
    whole, each = _agreement(compiled, pairs)
    assert each == pytest.approx([(1 / 2 + 2 / 3) / 2, 1])
    assert whole == pytest.approx((1 / 2 + 2 / 3 + 1) / 3)


def test_one_logit_is_a_class_above_zero() -> None:
    found = _classes(lambda _: [np.array([[[[-1.0, 0.5]]]])], np.zeros(1))
    np.testing.assert_array_equal(found, [[[0, 1]]])


OFFLINE = """
import socket, sys
def refuse(*args, **options):
    raise SystemExit(f"a request: {args}")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
from segtune.export.quantize import _import_nncf
nncf = _import_nncf()
from nncf.telemetry import telemetry
telemetry.start_session("nncf_ov")
telemetry.send_event("nncf_ov", "a", "b")
telemetry.end_session("nncf_ov")
"""


@pytest.mark.slow
def test_nncf_tells_nobody(tmp_path: Path) -> None:
    pytest.importorskip("nncf")
    variables = {key: value for key, value in os.environ.items() if key != "CI"} | {"HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", OFFLINE], env=variables, check=True, timeout=300)
    assert list(tmp_path.iterdir()) == []  # else it keeps a number for this user
