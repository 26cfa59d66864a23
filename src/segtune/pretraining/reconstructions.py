"""A picture of what a pretrained network paints: original, what it sees of it, and what it makes of that."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from segtune.data.config import TransformConfig
from segtune.files import atomic_path
from segtune.pretraining.masked_crops import MaskedCrops
from segtune.pretraining.masked_image_model import MaskedImageModel, hidden_pixels
from segtune.training.run_folder import OVERLAYS
from segtune.viz.comparisons import evenly_spaced
from segtune.viz.overlay import denormalize

RECONSTRUCTIONS = "reconstructions.png"
GAP = 8  # white pixels between pictures


@torch.no_grad()
def save_reconstructions(
    run: Path,
    network: MaskedImageModel,
    crops: MaskedCrops,
    transforms: TransformConfig,
    count: int,
    device: torch.device,
) -> Path | None:
    """Save up to `count` pictures below a run folder, each a row: original | hidden squares grey | painted.

    Painted are the hidden squares; the others show the original.

    Returns:
        The file; None where no picture is wanted.
    """
    if count == 0:
        return None
    chosen = evenly_spaced(range(len(crops)), count)
    batch = crops.__getitems__([(0, index) for index in chosen])
    pixels, mask = batch["pixel_values"].to(device), batch["mask"].to(device)
    network.eval()
    hidden = hidden_pixels(mask, pixels)[:, None]
    painted = torch.where(hidden, network(pixels, mask).float(), pixels)
    columns = [tensor.cpu().numpy() for tensor in (pixels, pixels.masked_fill(hidden, 0.0), painted)]
    rows = [np.concatenate([_framed(column[i], transforms) for column in columns], axis=1) for i in range(len(chosen))]
    path = run / OVERLAYS / RECONSTRUCTIONS
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        Image.fromarray(np.concatenate(rows)).save(temporary, format="PNG")
    return path


def _framed(pixel_values: np.ndarray, transforms: TransformConfig) -> np.ndarray:
    """Normalised pixels `(C, H, W)` as a picture `(H + gap, W + gap, 3)`."""
    return np.pad(denormalize(pixel_values, transforms), ((0, GAP), (0, GAP), (0, 0)), constant_values=255)
