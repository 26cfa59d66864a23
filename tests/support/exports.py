"""Networks of one stage, which say as much about what lies around them, and their graphs, traced once."""

from __future__ import annotations

import functools
from typing import Any

import torch

from segtune.engines.network import LogitsNetwork
from segtune.engines.onnx_model import logits_model, to_onnx
from segtune.segformer.modeling_segformer import SegformerForSemanticSegmentation

from .networks import first_stages
from .random_networks import network_of


@functools.cache
def network(num_labels: int, channels: int = 3) -> tuple[SegformerForSemanticSegmentation, bytes]:
    """With the mean taken out of each class's logits, so that every one wins somewhere."""
    model = network_of(num_labels=num_labels, num_channels=channels, **first_stages(1))
    with torch.no_grad():
        logits = model(torch.randn(1, channels, 64, 64)).logits
        model.decode_head.classifier.bias -= logits.mean((0, 2, 3))
    return model, logits_model(model).SerializeToString()


@functools.cache
def sensitive_network() -> SegformerForSemanticSegmentation:
    """Of 300 classes that are close to each other, and with larger weights: what a wrong activation does shows."""
    model = network_of(num_labels=300, **first_stages(2))
    with torch.no_grad():
        for weight in (one for one in model.parameters() if one.ndim > 1):
            weight *= 2
        model.decode_head.classifier.bias -= model(torch.randn(1, 3, 64, 64)).logits.mean((0, 2, 3))
    return model


def graph_with_tanh(model: SegformerForSemanticSegmentation) -> Any:
    """The graph of a network with the approximation of GELU that other exports have used."""
    wrong: Any = LogitsNetwork(model)
    for stage in wrong.stages:
        for block in stage.blocks:
            block.activation = torch.nn.GELU(approximate="tanh")
    return to_onnx(wrong, torch.zeros(2, 3, 96, 160), {0: "batch", 2: "height", 3: "width"})
