from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from segtune.pretraining.config import PretrainingRecipe
from segtune.pretraining.masked_crops import MaskedCrops
from segtune.pretraining.pretrainer import build_network
from segtune.pretraining.reconstructions import GAP, save_reconstructions
from segtune.viz.overlay import denormalize


def test_seen_squares_are_the_originals_and_hidden_ones_grey_then_painted(
    rows: Any, settings: Callable[..., PretrainingRecipe], tmp_path: Path
) -> None:
    recipe = settings(tmp_path)
    crops, network = MaskedCrops(rows, recipe), build_network(recipe)
    with torch.no_grad():
        for head in network.heads.values():
            head.weight.zero_()
            head.bias.fill_(0.25)  # painted is 1 everywhere: four heads are summed
    device = torch.device("cpu")
    assert save_reconstructions(tmp_path, network, crops, recipe.transforms, 0, device) is None
    path = save_reconstructions(tmp_path, network, crops, recipe.transforms, 2, device)
    assert path is not None
    with Image.open(path) as picture:
        pixels = np.asarray(picture)
    assert pixels.shape == (2 * (64 + GAP), 3 * (64 + GAP), 3)
    batch = crops.__getitems__([(0, 0), (0, 3)])
    grey, light = (denormalize(np.full((3, 1, 1), value, np.float32), recipe.transforms)[0, 0] for value in (0, 1))
    for number in range(2):
        row = pixels[number * (64 + GAP) :][:64]
        original, masked, painted = (row[:, column * (64 + GAP) :][:, :64] for column in range(3))
        hidden = np.kron(batch["mask"][number].numpy(), np.ones((32, 32), dtype=bool))
        assert hidden.sum() == 3 * 32 * 32
        assert (original == denormalize(batch["pixel_values"][number].numpy(), recipe.transforms)).all()
        assert (masked[~hidden] == original[~hidden]).all() and (painted[~hidden] == original[~hidden]).all()
        assert (masked[hidden] == grey).all() and (painted[hidden] == light).all()
