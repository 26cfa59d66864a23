"""Small data sets on disk, made of arrays."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segtune.data.config import DatasetConfig, TransformConfig
from segtune.doctor.examine import Diagnosis, examine
from segtune.doctor.findings import Finding
from segtune.recipe.recipe import Recipe
from support.faults import faults

Pair = tuple[Any, Any]  # image and mask: arrays, or functions that write a file


@pytest.fixture
def diagnose(tmp_path: Path) -> Callable[..., Diagnosis]:
    """Writes samples (split -> pairs of image and mask) and examines them."""

    def run(
        samples: Mapping[str, Sequence[Pair]],
        labels: Any = ("sky", "road", "car"),
        transforms: TransformConfig | None = None,
        **settings: Any,
    ) -> Diagnosis:
        for split, pairs in samples.items():
            for number, pair in enumerate(pairs):
                for kind, content in zip(("images", "masks"), pair, strict=True):
                    path = tmp_path / kind / split / f"{split}{number:02}.png"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    content(path) if callable(content) else Image.fromarray(content).save(path, compress_level=1)
        if labels is not None:
            (tmp_path / "labels.json").write_text(json.dumps(labels), encoding="utf-8")
        settings = {"path": str(tmp_path), "val_fraction": 0} | settings
        return examine(
            Recipe(dataset=DatasetConfig(**settings), transforms=transforms or TransformConfig(crop_size=16))
        )

    return run


@pytest.fixture
def find(diagnose: Callable[..., Diagnosis]) -> Callable[..., Finding | None]:
    """The finding of a code in what `diagnose` says, if any."""

    def run(code: str, *arguments: Any, **options: Any) -> Finding | None:
        findings = [finding for finding in diagnose(*arguments, **options).findings if finding.code == code]
        assert len(findings) <= 1
        return findings[0] if findings else None

    return run


@pytest.fixture
def noise() -> Callable[..., np.ndarray]:
    """Images (16, 16, 3) that differ from each other."""
    generator = np.random.default_rng(0)

    def draw(size: tuple[int, int] = (16, 16)) -> np.ndarray:
        return generator.integers(0, 256, (*size, 3), dtype=np.uint8)

    return draw


@pytest.fixture
def stripes() -> np.ndarray:
    """A mask (16, 16) of ids 0, 1 and 2 in columns of 6, 5 and 5."""
    return np.repeat(np.repeat(np.arange(3, dtype=np.uint8), (6, 5, 5))[None], 16, axis=0)


@pytest.fixture
def one_odd(diagnose: Any, noise: Any, stripes: np.ndarray) -> Callable[..., dict[str, Any]]:
    """The faults of eleven sound samples and a mask."""

    def run(mask: Any, labels: Any = ("sky", "road", "car"), **settings: Any) -> dict[str, Any]:
        pairs = [(noise(), stripes) for _ in range(11)] + [(noise(), mask)]
        return faults(diagnose({"train": pairs}, labels, **settings))

    return run


@pytest.fixture
def all_like(diagnose: Any, noise: Any) -> Callable[..., dict[str, Any]]:
    """The faults of six samples with one mask."""

    def run(mask: Any, labels: Any = ("sky", "road", "car"), **settings: Any) -> dict[str, Any]:
        return faults(diagnose({"train": [(noise(), mask) for _ in range(6)]}, labels, **settings))

    return run
