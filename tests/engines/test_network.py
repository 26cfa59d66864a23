from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from segtune.engines.network import LogitsNetwork
from segtune.errors import UsageError
from support.random_networks import network_of


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"num_labels": 1},
        {"num_channels": 4, "num_labels": 60},
        {"hidden_sizes": (32, 64, 160, 256), "depths": (2, 2, 2, 2), "num_attention_heads": (1, 2, 5, 8)},  # B0
        {"hidden_act": "relu", "num_attention_heads": (2, 2, 1, 4), "reshape_last_stage": False},
    ],
)
@pytest.mark.parametrize("size", [(64, 64), (65, 97), (130, 41), (20, 9)])
def test_it_is_the_model(fields: dict[str, Any], size: tuple[int, int]) -> None:
    model = network_of(**fields)
    images = torch.randn(2, model.config.num_channels, *size)
    with torch.no_grad():
        expected = model(images).logits
        found = LogitsNetwork(model)(images)
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_it_shares_nothing_with_the_model() -> None:
    model = network_of()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for tensor in LogitsNetwork(model).state_dict().values():
        tensor.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_layers_of_others_are_refused() -> None:
    class Adapted(nn.Linear):
        pass

    model = network_of()
    model.segformer.encoder.block[0][0].attention.self.query = Adapted(8, 8)
    with pytest.raises(UsageError, match=r"attention\.self\.query is a Adapted, .* merge adapters first"):
        LogitsNetwork(model)
