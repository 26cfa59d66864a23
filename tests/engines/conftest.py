from __future__ import annotations

from pathlib import Path

import pytest

from segtune.engines.onnx_model import logits_model
from segtune.segformer.image_processing_segformer import SegformerImageProcessor
from segtune.segformer.modeling_segformer import SegformerForSemanticSegmentation
from support.networks import first_stages
from support.random_networks import network_of


@pytest.fixture(scope="session")
def model() -> SegformerForSemanticSegmentation:
    return network_of(**first_stages(2), num_labels=4, calibration_temperature=2.0)


@pytest.fixture(scope="session")
def exported(model: SegformerForSemanticSegmentation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as exports have it: `onnx/model.onnx`, and beside the folder the configuration and the processor."""
    folder = tmp_path_factory.mktemp("exported")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").write_bytes(logits_model(model).SerializeToString())
    model.config.save_pretrained(folder)
    SegformerImageProcessor(do_resize=False).save_pretrained(folder)
    return folder
