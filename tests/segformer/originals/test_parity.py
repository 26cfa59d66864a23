"""Numerical parity with keras-hub and LibreYOLO: their networks with random weights, saved by them, converted.

They run in an interpreter of their own, `.venv-weights`, which `make test-weights` makes: what they bring along is
nothing that segtune should be tested beside.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from segtune.segformer.image_processing_segformer import SegformerImageProcessor
from segtune.segformer.modeling_segformer import (
    SegformerBlock,
    SegformerForImageClassification,
    SegformerForSemanticSegmentation,
    SegformerModel,
)
from segtune.segformer.originals.convert_originals import convert_original, read_original

ROOT = Path(__file__).resolve().parents[3]
PYTHON = Path(os.environ.get("SEGTUNE_WEIGHTS_PYTHON", ROOT / ".venv-weights" / "bin" / "python"))
pytestmark = pytest.mark.slow


def answers_of(library: str, folder: Path) -> Path:
    """What a worker script leaves in a folder."""
    if not PYTHON.is_file():
        pytest.skip(f"no {PYTHON} with {library} (make test-weights makes it)")
    script = ROOT / "tests" / "support" / "workers" / f"{library}_weights.py"
    done = subprocess.run([str(PYTHON), str(script), str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def keras_hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return answers_of("keras", tmp_path_factory.mktemp("keras"))


@pytest.fixture(scope="module")
def libreyolo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return answers_of("libreyolo", tmp_path_factory.mktemp("libreyolo"))


def relative_difference(got: Tensor, expected: Tensor) -> float:
    """The largest difference, as a part of the largest value."""
    return float((got - expected).abs().max() / expected.abs().max())


def channels_first(value: Any) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(value, -1, 1)))


def as_keras_hub(model: Any) -> Any:
    """With the eps that keras-hub gives the layer norms of its blocks, which no checkpoint of ours can state."""
    for block in model.modules():
        if isinstance(block, SegformerBlock):
            for norm in (block.layer_norm_1, block.layer_norm_2):
                assert isinstance(norm, nn.LayerNorm)
                norm.eps = 1e-6
    return model


@pytest.mark.parametrize("name", ["b0", "b2"])
@pytest.mark.parametrize("form", [".keras", ".weights.h5", "_preset"])
def test_segformer_of_keras_hub(keras_hub: Path, name: str, form: str) -> None:
    model = read_original(keras_hub / f"{name}{form}")
    assert isinstance(model, SegformerForSemanticSegmentation)
    answers = np.load(keras_hub / f"{name}.npz")
    pixels, expected = channels_first(answers["pixels"]), channels_first(answers["logits"])
    with torch.no_grad():
        as_saved = relative_difference(model(pixels).logits, expected)
        exact = relative_difference(as_keras_hub(model)(pixels).logits, expected)
    print(f"{name}{form}: {exact:.1e}, with the published eps {as_saved:.1e}")
    assert exact < 1e-5 and as_saved < 1e-5


@pytest.mark.parametrize("name", ["b0", "b2"])
@pytest.mark.parametrize("form", ["_mit.weights.h5", "_mit_preset"])
def test_encoder_of_keras_hub(keras_hub: Path, name: str, form: str) -> None:
    model = read_original(keras_hub / f"{name}{form}")
    assert isinstance(model, SegformerModel)
    answers = np.load(keras_hub / f"{name}.npz")
    with torch.no_grad():
        states = as_keras_hub(model)(channels_first(answers["pixels"]), output_hidden_states=True).hidden_states
    for i, state in enumerate(states):
        assert relative_difference(state, channels_first(answers[f"stage{i}"])) < 1e-5, i


@pytest.mark.parametrize("name", ["b0", "b2"])
def test_classifier_of_keras_hub(keras_hub: Path, name: str) -> None:
    model = read_original(keras_hub / f"{name}_classifier.keras")
    assert isinstance(model, SegformerForImageClassification)
    answers = np.load(keras_hub / f"{name}.npz")
    with torch.no_grad():
        logits = model(channels_first(answers["pixels"])).logits
    assert relative_difference(logits, torch.from_numpy(answers["classes"])) < 1e-5


def test_pictures_are_normalised_as_by_keras_hub(keras_hub: Path, tmp_path: Path) -> None:
    convert_original(keras_hub / "b0_preset", tmp_path / "out")
    processor = SegformerImageProcessor.from_pretrained(tmp_path / "out")
    answers = np.load(keras_hub / "b0.npz")
    pictures = [picture.astype(np.uint8) for picture in answers["pictures"]]
    got = processor(pictures, return_tensors="pt")["pixel_values"]
    assert relative_difference(got, channels_first(answers["pixels"])) < 1e-5


@pytest.mark.parametrize("name", ["b0", "b2"])
def test_segformer_of_libreyolo(libreyolo: Path, name: str) -> None:
    """At odd sizes too; it normalises inside, as the image processor does here."""
    model = read_original(libreyolo / f"{name}.pt")
    answers = torch.load(libreyolo / f"{name}_answers.pt", weights_only=True)
    processor = SegformerImageProcessor(do_resize=False, do_rescale=False)
    pixels = processor(list(answers["pictures"]), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        difference = relative_difference(model(pixels).logits, answers["logits"])
    print(f"{name}: {difference:.1e}")
    assert difference < 1e-5
    assert model.config.id2label[4] == "class 4"
