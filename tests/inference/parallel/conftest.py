from __future__ import annotations

from pathlib import Path

import pytest
import torch

from segtune.data.config import DatasetConfig, TransformConfig
from segtune.data.dataset import find_label_map
from segtune.inference.processor import processor_from_transforms
from segtune.segformer.configuration_segformer import SegformerConfig
from segtune.segformer.modeling_segformer import SegformerForSemanticSegmentation
from support.networks import TINY


@pytest.fixture(scope="session")
def checkpoint(earth: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny network of random weights for the embedded data, with the classes of these."""
    labels = find_label_map(DatasetConfig(path=str(earth)))
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("parallel") / "best"
    model = SegformerForSemanticSegmentation(SegformerConfig(**TINY, **labels.config_fields()))
    model.save_pretrained(folder)
    processor_from_transforms(TransformConfig()).save_pretrained(folder)
    return folder
