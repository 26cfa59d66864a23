"""Attention in blocks of queries: the same numbers, of blocks that are no larger than they may be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from segtune.engines import attention_blocks
from segtune.engines.attention_blocks import attend_in_blocks
from segtune.engines.onnx_model import logits_model
from support.networks import first_stages
from support.random_networks import network_of

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


@pytest.fixture(scope="module")
def graph() -> Any:
    """Of two stages, with one head and with two."""
    return logits_model(network_of(**first_stages(2)))


def run(model: Any, images: np.ndarray, names: Sequence[str] = ("logits",)) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(list(names), {"pixel_values": images}))


def of_kind(model: Any, kind: str) -> list[Any]:
    return [node for node in model.graph.node if node.op_type == kind]


@pytest.mark.parametrize("block", [1, 200, 2**20], ids=["a query", "some queries", "all queries"])
@pytest.mark.parametrize("shape", [(1, 3, 64, 96), (2, 3, 65, 37)])
def test_values_are_those_of_all_queries_at_once(
    graph: Any, shape: tuple[int, ...], block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention_blocks, "BLOCK", block)
    changed = attend_in_blocks(graph)
    onnx.checker.check_model(changed, full_check=True)
    assert {found.domain for found in changed.opset_import} == {""}
    loops = of_kind(changed, "Loop")
    assert len(loops) == len(of_kind(graph, "Softmax")) == 2 and not of_kind(changed, "Softmax")
    counts = [loop.input[0] for loop in loops]
    changed.graph.output.extend(onnx.helper.make_tensor_value_info(n, onnx.TensorProto.INT64, []) for n in counts)
    images = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    logits, *blocks = run(changed, images, ["logits", *counts])
    expected = run(graph, images)[0]
    np.testing.assert_allclose(logits, expected, atol=1e-6 * np.abs(expected).max(), rtol=0)
    batch, _, height, width = shape
    for found, stride, ratio, heads in zip(blocks, (4, 8), (8, 4), (1, 2), strict=True):
        rows, columns = -(-height // stride), -(-width // stride)
        scores = batch * heads * (rows // ratio) * (columns // ratio)  # of one query in every map and head
        assert found == -(-rows * columns // max(1, block // scores))


def test_other_softmaxes_stay(graph: Any) -> None:
    """With a node in between, as a quantiser puts one there."""
    changed = onnx.ModelProto()
    changed.CopyFrom(graph)
    for number, softmax in enumerate(of_kind(changed, "Softmax")):
        between = onnx.helper.make_node("Identity", [softmax.input[0]], [f"between_{number}"])
        changed.graph.node.insert(list(changed.graph.node).index(softmax), between)
        softmax.input[0] = f"between_{number}"
    assert attend_in_blocks(changed) == changed
    assert attend_in_blocks(graph) != graph and not of_kind(graph, "Loop")
