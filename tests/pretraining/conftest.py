from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from segtune.data.dataset import load_segmentation_dataset
from segtune.pretraining.config import PretrainingRecipe, load_pretraining
from support.networks import TINY

SMALL = (
    f"model.config={ {name: list(value) if isinstance(value, tuple) else value for name, value in TINY.items()} }",
    "transforms.crop_size=64",
    "training.max_steps=4",
    "training.batch_size=4",
    "training.log_every=1",
    "training.device=cpu",
    "training.overlays=0",
    "training.learning_rate=1e-2",
)


@pytest.fixture(scope="session")
def rows() -> Any:
    return load_segmentation_dataset("segtune://earth")["train"].select(range(6)).remove_columns("mask")


@pytest.fixture
def settings(earth: Path) -> Callable[..., PretrainingRecipe]:
    """The settings of a pretraining of seconds on satellite tiles."""

    def load(folder: Path, *overrides: str) -> PretrainingRecipe:
        return load_pretraining(str(earth / "images" / "val"), folder, [*SMALL, *overrides])

    return load
