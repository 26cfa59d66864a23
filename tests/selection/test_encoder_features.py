"""The features are those of the encoder, in the order of the inputs, and change nothing of the logits."""

from __future__ import annotations

import pytest
import torch

from segtune.segformer.configuration_segformer import SegformerConfig
from segtune.segformer.modeling_segformer import SegformerForSemanticSegmentation
from segtune.selection.encoder_features import PooledFeatures
from support.networks import TINY


@pytest.mark.parametrize("reshape", [True, False])
def test_features_are_means_of_the_last_map(reshape: bool) -> None:
    torch.manual_seed(0)
    network = SegformerForSemanticSegmentation(SegformerConfig(**TINY, num_labels=3, reshape_last_stage=reshape)).eval()
    tapped = PooledFeatures(network)
    images = torch.randn(3, 3, 64, 96)
    with torch.inference_mode():
        logits = tapped(pixel_values=images).logits
        assert torch.equal(logits, network(pixel_values=images).logits)
        states = network.segformer(images, output_hidden_states=True).hidden_states[-1]
    maps = states.flatten(2) if reshape else states.transpose(1, 2)  # (B, C, N)
    expected = maps.numpy().mean(2)
    assert tapped.take(1) == pytest.approx(expected[0], abs=1e-5)
    assert tapped.take() == pytest.approx(expected[1:].mean(0), abs=1e-5)
