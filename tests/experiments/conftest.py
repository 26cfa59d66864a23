"""Trainings in this process, in the place of processes of their own."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from segtune import finetune
from segtune.recipe.recipe import Recipe, load_recipe
from support.networks import TINY

SIDE = 32


def write_stripes(root: Path, splits: dict[str, int], first_of_all: int = 0) -> Path:
    """Images whose left part is dark ground and whose right part is a bright class; ids are unique over splits."""
    number = first_of_all
    generator = np.random.default_rng(0)
    for split, count in splits.items():
        for _ in range(count):
            mask = np.zeros((SIDE, SIDE), np.uint8)
            mask[:, 8 + 4 * (number % 4) :] = 1
            image = np.where(mask[..., None] == 1, 200, 40) + generator.integers(0, 20, (SIDE, SIDE, 3))
            for kind, array in (("images", image.astype(np.uint8)), ("masks", mask)):
                path = root / kind / split / f"s{number % 3}_{number:02d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                PIL.Image.fromarray(array).save(path)
            number += 1
    (root / "classes.json").write_text('{"classes": ["ground", "thing"]}')
    return root


@pytest.fixture
def stripes(tmp_path: Path) -> Path:
    """Eight images to train on, four of val, four of test."""
    return write_stripes(tmp_path / "data", {"train": 8, "val": 4, "test": 4})


@pytest.fixture
def tiny_recipe(stripes: Path, tmp_path: Path) -> Callable[..., Recipe]:
    def make(**changes: Any) -> Recipe:
        settings = {"max_steps": 4, "batch_size": 2, "device": "cpu", "num_workers": 0, "save_every": 2, "log_every": 1}
        settings |= {"output_dir": str(tmp_path / "run"), "learning_rate": 0.01, "head_lr_multiplier": 1} | changes
        path = tmp_path / "tiny.yaml"
        lines = [f"dataset: {{path: {stripes}}}", "transforms: {crop_size: 32, photometric: false}"]
        lines += [f"model: {{config: {dict(TINY)!r}}}".replace("(", "[").replace(")", "]").replace("'", "")]
        path.write_text("\n".join([*lines, f"training: {settings!r}".replace("'", "").replace("None", "null")]))
        return load_recipe(path)

    return make


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Each training runs in this process; the words of each."""
    from segtune.experiments import crossval, tune

    told: list[list[str]] = []

    def train(words: Sequence[str], launch: Any, request: Any, go_on: Callable[[], bool] = lambda: True) -> int:
        told.append(list(words))
        assert launch is None and "WORLD_SIZE" not in os.environ
        result = finetune.train(load_recipe(words[0], words[1:]))
        go_on()
        return 3 if "stopped" in result else 0

    monkeypatch.setattr(crossval, "train_apart", train)
    monkeypatch.setattr(tune, "train_apart", train)
    return told
