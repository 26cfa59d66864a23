"""transformers.js loads the exported layout, in node and without a network: masks as of its Python pipeline."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from segtune.export.checkpoint_export import Settings, export_checkpoint
from segtune.export.sources import source_of_images
from segtune.inference.predict import predict
from segtune.segformer.image_processing_segformer import SegformerImageProcessor
from support.random_networks import network_of

pytestmark = pytest.mark.slow
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

PACKAGE = "@huggingface/transformers@4.3.2"
SCRIPT = Path(__file__).with_name("segment.mjs")


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which node finds transformers.js, and the script."""
    folder = tmp_path_factory.mktemp("node")
    reason = ""
    if shutil.which("node") is None or shutil.which("npm") is None:
        reason = "no node or npm (apt install nodejs npm)"
    else:
        (folder / "package.json").write_text('{"private": true}')
        command = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", PACKAGE]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)
        if done.returncode:
            reason = f"npm cannot install {PACKAGE}: {done.stderr.strip()[-300:]}"
    if reason:
        pytest.skip(reason)
    shutil.copy(SCRIPT, folder)
    return folder


def test_masks_of_transformers_js(node: Path, tmp_path: Path, earth: Path) -> None:
    model = network_of(num_labels=5)
    with torch.no_grad():  # so that every class wins somewhere
        model.decode_head.classifier.bias -= model(torch.randn(1, 3, 64, 64)).logits.mean((0, 2, 3))
    checkpoint = tmp_path / "checkpoint"
    model.save_pretrained(checkpoint)
    # whose resize is not Pillow's in node: there, libvips makes it
    SegformerImageProcessor(do_resize=False).save_pretrained(checkpoint)
    pictures = []
    for number, tile in enumerate(sorted((earth / "images" / "test").iterdir())[:3]):
        pictures.append(tmp_path / f"{number}.png")
        with Image.open(tile) as image:
            image.crop((0, 0, 180 - 13 * number, 180)).save(pictures[-1])
    source = source_of_images(str(checkpoint), pictures, 3)
    export_checkpoint(source, "onnx", tmp_path / "models" / "exported", Settings())
    variables = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "http_proxy": "http://127.0.0.1:9"}
    command = ["node", SCRIPT.name, str(tmp_path / "models"), "exported", *map(str, pictures)]
    done = subprocess.run(command, cwd=node, env=variables, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    theirs = transformers.SegformerForSemanticSegmentation.from_pretrained(checkpoint)
    processor = transformers.SegformerImageProcessor.from_pretrained(checkpoint)
    pipeline = transformers.pipeline("image-segmentation", model=theirs, image_processor=processor, device="cpu")
    for picture in pictures:
        ours = predict(str(checkpoint), picture)
        in_node = np.fromfile(f"{picture}.ids", np.uint8).reshape(ours.shape)
        in_python = np.full(ours.shape, 255, np.uint8)
        for region in pipeline(str(picture), subtask="semantic"):
            in_python[np.asarray(region["mask"]) > 0] = theirs.config.label2id[region["label"]]
        assert len(np.unique(ours)) > 1
        assert (in_node == in_python).mean() >= 0.999 and (in_node == ours).mean() >= 0.999
