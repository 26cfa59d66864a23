from __future__ import annotations

from collections import Counter

import pytest

from segtune.errors import DataError
from segtune.export.layer_kinds import KINDS, layers_of
from support.exports import network

onnx = pytest.importorskip("onnx")


def test_every_kind_of_layer_of_one_stage() -> None:
    graph = onnx.load_from_string(network(5)[1])
    layers = layers_of(graph)
    # one block of one head, whose output projection lies in the values; the head sums nothing up, and has its ReLU
    found = Counter(layer.kind for layer in layers)
    assert found == {
        "patch embeddings": 1,
        "layer norms": 5,  # of the embedding, before attention, of the reduced tokens, before Mix-FFN, of the stage
        "sequence reduction": 1,
        "queries": 2,  # product and bias
        "keys and values": 2,
        "attention scores": 1,
        "softmax": 1,
        "attention sums": 1,
        "residual sums": 2,
        "Mix-FFN dense 1": 1,
        "depthwise convolutions": 1,
        "Mix-FFN activation": 1,
        "Mix-FFN dense 2": 1,
        "head projections": 1,
        "head sums": 1,
        "classifier": 1,
    }
    assert set(KINDS) - set(found) == {"attention output"}
    assert {layer.part for layer in layers} == {"stage 1", "head"}
    nodes = {node.name: node for node in graph.graph.node}
    assert [nodes[layer.name].op_type for layer in layers if layer.kind == "classifier"] == ["Conv"]
    assert next(layer.output for layer in layers if layer.kind == "classifier") == "logits"


def test_a_graph_of_others_is_refused() -> None:
    graph = onnx.load_from_string(network(5)[1])
    for node in graph.graph.node:
        del node.metadata_props[:]
    with pytest.raises(DataError, match="does not tell its layers"):
        layers_of(graph)
