"""The examples of docs/deployment.md that need no segtune, on an export of a small checkpoint."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segtune.export.product import describe, product_model
from segtune.export.targets import save_onnx
from segtune.inference.segmenter import Segmenter
from segtune.segformer.image_processing_segformer import SegformerImageProcessor
from support.exports import network

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A product graph, and a photo."""
    folder = tmp_path_factory.mktemp("exported")
    model = product_model(onnx.load_from_string(network(5)[1]), SegformerImageProcessor(do_resize=False))
    describe(model, {"names": [*"abcde"], "colors": ["#000000", "#ff0000", "#00ff00", "#0000ff", "#ffffff"]})
    save_onnx(model, folder / "product.onnx")
    pixels = np.random.default_rng(0).integers(0, 256, (65, 97, 3), dtype=np.uint8)
    for name in ("photo.png", "photo.ppm"):
        Image.fromarray(pixels).save(folder / name)
    return folder


def expected(folder: Path) -> np.ndarray:
    segmenter = Segmenter(network(5)[0], SegformerImageProcessor(do_resize=False))
    return segmenter(folder / "photo.png").labels


def test_python(exported: Path) -> None:
    words = [sys.executable, EXAMPLES / "segment.py", *(exported / name for name in ("product.onnx", "photo.png"))]
    done = subprocess.run([*words, exported / "mask.png"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    mask = Image.open(exported / "mask.png")
    assert (np.asarray(mask) != expected(exported)).sum() <= 2
    assert mask.getpalette()[3:6] == [255, 0, 0] and "%" in done.stdout
    lines = (EXAMPLES / "segment.py").read_text(encoding="utf-8").splitlines()
    assert not [line for line in lines if "import" in line and "segtune" in line and not line.startswith('"""')]


@pytest.mark.slow
def test_cpp(exported: Path, tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    config = Path(openvino.__path__[0]) / "cmake"
    if shutil.which("cmake") is None or shutil.which("c++") is None or not config.is_dir():
        pytest.skip("no cmake, no compiler, or an OpenVINO without its headers")
    for words in (["-S", EXAMPLES, "-B", tmp_path, f"-DOpenVINO_DIR={config}"], ["--build", tmp_path]):
        built = subprocess.run(["cmake", *words], capture_output=True, text=True)
        assert built.returncode == 0, built.stdout + built.stderr
    words = [tmp_path / "segment", exported / "product.onnx", exported / "photo.ppm", tmp_path / "mask.pgm"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (np.asarray(Image.open(tmp_path / "mask.pgm")) != expected(exported)).sum() <= 2
    again = subprocess.run([*words[:2], exported / "photo.png", words[3]], capture_output=True, text=True)
    assert again.returncode == 1 and again.stderr == "the photo is no binary PPM of bytes\n"
