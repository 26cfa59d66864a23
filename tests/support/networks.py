"""A network that takes milliseconds, for tests that do not care which."""

from __future__ import annotations

from typing import Any

TINY = {
    "hidden_sizes": (8, 16, 24, 32),
    "depths": (1, 1, 1, 1),
    "num_attention_heads": (1, 2, 3, 4),
    "decoder_hidden_size": 16,
}


def first_stages(count: int) -> dict[str, Any]:
    """`TINY` of so many stages, which the tracers of PyTorch get through in a fraction of the time."""
    per_stage = {
        "hidden_sizes": TINY["hidden_sizes"],
        "depths": TINY["depths"],
        "num_attention_heads": TINY["num_attention_heads"],
        "sr_ratios": (8, 4, 2, 1),
        "patch_sizes": (7, 3, 3, 3),
        "strides": (4, 2, 2, 2),
        "mlp_ratios": (4, 4, 4, 4),
    }
    fields: dict[str, Any] = {name: values[:count] for name, values in per_stage.items()}
    return fields | {"num_encoder_blocks": count, "decoder_hidden_size": TINY["decoder_hidden_size"]}
