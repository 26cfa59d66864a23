"""A model that says what is red, and twelve images that it gets right or not in known ways."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

NAMES = ["sky", "<road>", "car", "ghost"]  # a name that is no HTML, a class that occurs nowhere
HEIGHT, WIDTH = 32, 48
RECORDS = [
    {"environment": {"torch": "2.0", "device": "cpu"}},
    *(
        {
            "step": step,
            "epoch": step / 10,
            "loss": 1 / step,
            "lr": 1e-3 / step,
            "images_per_second": 4.0,
            "waiting_for_data": 0.25,
            "peak_memory_mb": 1500.0,
        }
        for step in (1, 2, 3, 4)
    ),
    *({"step": step, "split": "val", "mean_iou": value} for step, value in ((2, 0.25), (4, 0.5))),
    {"ended": "done", "seconds": 130.0, "peak_memory_mb": 1700.0},
]


class Reader(nn.Module):
    """Answers with the class that the red value names, the less surely the greener an image is."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(7))
        self.config = SimpleNamespace(calibration_temperature=1.0)

    def num_parameters(self) -> int:
        return 7

    def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
        red, green = pixel_values[:, 0, ::4, ::4].round().long(), pixel_values[:, 1, ::4, ::4]
        logits = F.one_hot(red, len(NAMES)).movedim(-1, 1).float()
        return SimpleNamespace(logits=logits * (12 - green[:, None]))


def write_image(folder: Path, split: str, name: str, said: np.ndarray, labels: np.ndarray, green: int = 0) -> None:
    """An image of which the reader says `said`, and its mask."""
    image = np.stack([said, np.full_like(said, green), np.zeros_like(said)], axis=-1).astype(np.uint8)
    for kind, array in (("images", image), ("masks", labels.astype(np.uint8))):
        path = folder / kind / split / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(path)


def write_data(folder: Path) -> None:
    """Images "a0" to "a9", of which the reader gets 0 to 9 columns of 4 wrong; "doubted"; "unsure" of all it says."""
    (folder / "classes.json").write_text(json.dumps({"classes": NAMES}))
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    labels[HEIGHT // 2 :] = 1
    write_image(folder, "train", "t", labels, labels)
    for number in range(10):
        said = labels.copy()
        said[HEIGHT // 2 :, : 4 * number] = 2  # road is taken for car
        write_image(folder, "test", f"a{number}", said, labels, green=11)
    half = np.where(labels == 0, 2, labels)
    write_image(folder, "test", "doubted", labels, half)  # sky where the mask says car
    write_image(folder, "test", "unsure", labels, labels, green=11)
