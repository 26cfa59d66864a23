from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch

from segtune.engines.onnx_model import logits_model
from segtune.errors import UsageError
from segtune.segformer.modeling_segformer import SegformerForSemanticSegmentation
from support.networks import first_stages
from support.random_networks import network_of

pytest.importorskip("onnxruntime")


def run(graph: Any, images: np.ndarray) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    logits: np.ndarray = session.run(["logits"], {"pixel_values": images})[0]
    return logits


@pytest.fixture(scope="module")
def model() -> SegformerForSemanticSegmentation:
    return network_of(**first_stages(2), num_channels=4, num_labels=1)


@pytest.fixture(scope="module")
def graph(model: SegformerForSemanticSegmentation) -> Any:
    return logits_model(model)


@pytest.mark.parametrize("shape", [(1, 4, 64, 64), (3, 4, 65, 97), (2, 4, 29, 130)])
def test_one_graph_for_all_sizes(
    model: SegformerForSemanticSegmentation, graph: Any, shape: tuple[int, int, int, int]
) -> None:
    images = torch.randn(shape)
    with torch.no_grad():
        expected = model(images).logits.numpy()
    np.testing.assert_allclose(run(graph, images.numpy()), expected, atol=1e-5 * np.abs(expected).max(), rtol=0)


def test_dimensions_have_names(graph: Any) -> None:
    (given,), (made,) = graph.graph.input, graph.graph.output
    assert (given.name, made.name) == ("pixel_values", "logits")
    dims = given.type.tensor_type.shape.dim
    assert [dim.dim_param or dim.dim_value for dim in dims] == ["batch", 4, "height", "width"]


def test_a_fixed_size_may_be_smaller_than_a_patch() -> None:
    model = network_of(**first_stages(1))
    images = torch.randn(1, 3, 20, 41)
    with torch.no_grad():
        expected = model(images).logits.numpy()
    graph = logits_model(model, (20, 41))
    assert [dim.dim_value for dim in graph.graph.input[0].type.tensor_type.shape.dim] == [1, 3, 20, 41]
    np.testing.assert_allclose(run(graph, images.numpy()), expected, atol=1e-5 * np.abs(expected).max(), rtol=0)


def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UsageError, match=r"ONNX needs the package onnxscript: pip install 'segtune\[onnx\]'"):
        logits_model(network_of())
