"""Small networks whose every weight counts."""

from __future__ import annotations

from typing import Any

import torch

from segtune.segformer.configuration_segformer import SegformerConfig
from segtune.segformer.modeling_segformer import SegformerForSemanticSegmentation

from .networks import TINY


def network_of(**fields: Any) -> SegformerForSemanticSegmentation:
    """With weights, biases and running statistics that are all of one size, so that none is lost unseen."""
    torch.manual_seed(0)
    model = SegformerForSemanticSegmentation(SegformerConfig(**({**TINY, "num_labels": 5} | fields))).eval()
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.is_floating_point():
                tensor.copy_(torch.rand_like(tensor) + 0.5 if "running_var" in name else 0.2 * torch.randn_like(tensor))
    return model
