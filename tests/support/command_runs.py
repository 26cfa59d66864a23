"""What tests of commands share."""

from __future__ import annotations

# what an answer that needs no network and no data must not import
HEAVY = (
    "torch",
    "transformers",
    "datasets",
    "numpy",
    "albumentations",
    "accelerate",
    "evaluate",
    "PIL",
    "yaml",
)

# changes to a recipe that make its training take seconds
TINY = [
    "transforms.crop_size=64",
    "model.config={hidden_sizes: [8, 16, 20, 32], depths: [1, 1, 1, 1], decoder_hidden_size: 16}",
    "training.max_steps=2",
    "training.batch_size=2",
    "training.device=cpu",
    "training.report=false",
]
