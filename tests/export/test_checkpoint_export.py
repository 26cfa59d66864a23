"""Exports of a small checkpoint: their files, and that wrong ones are refused."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segtune.errors import DataError, UsageError
from segtune.export import checkpoint_export, product
from segtune.export.certificate import CertificateError, Thresholds, write_certificate
from segtune.export.checkpoint_export import Settings, export_checkpoint
from segtune.export.sources import Source, source_of_images, spread
from segtune.inference.predict import predict
from segtune.segformer.image_processing_segformer import SegformerImageProcessor
from segtune.segformer.loading import load_model
from support.exports import graph_with_tanh, network, sensitive_network

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


NOISE = Thresholds(0.99, 0.9)  # of a random network, whose logits are closer to each other than those of a trained one


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "checkpoint"
    network(5)[0].save_pretrained(folder)
    SegformerImageProcessor(size={"shortest_edge": 64}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder, random = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for number, (height, width) in enumerate([(64, 97), (130, 80), (64, 97)]):
        pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return sorted(folder.iterdir())


@pytest.fixture
def source(checkpoint: Path, images: list[Path], monkeypatch: pytest.MonkeyPatch) -> Source:
    """The graph is traced once for all tests."""
    graphs = {None: network(5)[1]}
    monkeypatch.setattr(checkpoint_export, "logits_model", lambda model, size: onnx.load_from_string(graphs[size]))
    return source_of_images(str(checkpoint), images, 10)


def test_layout_and_certificate(source: Source, checkpoint: Path, tmp_path: Path) -> None:
    output = tmp_path / "exported"
    found = export_checkpoint(
        source, "onnx", output, Settings(confidence=True, fp16=True, license="mit", half_thresholds=NOISE)
    )
    assert sorted(path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file()) == [
        "certificate.json",
        "config.json",
        "onnx/model.onnx",
        "onnx/model_fp16.onnx",
        "preprocessor_config.json",
        "product.onnx",
    ]
    stored = json.loads((output / "certificate.json").read_text())
    assert stored == {"format": 1} | found
    assert [(one["file"], one["precision"], one["passed"]) for one in stored["files"]] == [
        ("onnx/model.onnx", "fp32", True),
        ("product.onnx", "fp32", True),
        ("onnx/model_fp16.onnx", "fp16", True),
    ]
    assert stored["sha256"] == hashlib.sha256((checkpoint / "model.safetensors").read_bytes()).hexdigest()
    assert stored["files"][0]["images"] == 3 and stored["license"] == "mit"
    for name in ("onnx/model.onnx", "product.onnx"):
        facts = {one.key: one.value for one in onnx.load(output / name).metadata_props}
        assert facts["sha256"] == stored["sha256"] and facts["license"] == "mit"
        assert json.loads(facts["names"]) == [f"LABEL_{number}" for number in range(5)]
        assert json.loads(facts["processor"])["size"] == {"shortest_edge": 64}
        assert {"colors", "ignore_index", "segtune", "calibration_temperature"} <= facts.keys()
    # ONNX Runtime does not fuse attention, so that the product graph has it in blocks of queries, within a Loop
    graphs = [onnx.load(output / name).graph for name in ("product.onnx", "onnx/model.onnx")]
    assert [any(node.op_type == "Softmax" for node in graph.node) for graph in graphs] == [False, True]


def test_product_answers_as_predict(source: Source, images: list[Path], checkpoint: Path, tmp_path: Path) -> None:
    export_checkpoint(source, "onnx", tmp_path / "exported", Settings())
    session = onnxruntime.InferenceSession(tmp_path / "exported" / "product.onnx")
    for path in images:
        (mask,) = session.run(None, {"image": np.asarray(Image.open(path))})
        assert (mask != predict(str(checkpoint), path)).mean() < 5e-4


def test_openvino(source: Source, images: list[Path], tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    output = tmp_path / "exported"
    # its resize differs by one level in a few of thousands of bytes, which noise of a random network shows
    found = export_checkpoint(source, "openvino", output, Settings(thresholds=NOISE))
    assert {one["file"] for one in found["files"]} == {"openvino/model.xml", "product.xml"}
    model = openvino.Core().read_model(output / "product.xml")
    assert model.get_rt_info(["segtune", "sha256"]).astype(str) == found["sha256"]
    assert any(node.get_type_name() == "Softmax" for node in model.get_ops())  # of attention, which it fuses itself


def test_torch_program(source: Source, tmp_path: Path) -> None:
    found = export_checkpoint(source, "torch", tmp_path / "exported", Settings())
    assert (tmp_path / "exported" / "network.pt2").is_file() and found["files"][0]["agreement"] > 0.9995


@pytest.mark.slow
def test_coreml_is_made_and_not_run(source: Source, tmp_path: Path) -> None:
    pytest.importorskip("coremltools")
    found = export_checkpoint(source, "coreml", tmp_path / "exported", Settings())
    assert (tmp_path / "exported" / "network.mlpackage" / "Manifest.json").is_file()
    assert found["files"][0]["not_run"].startswith("CoreML runs on macOS alone")


def _nearest(text: str) -> str:
    """The class is picked at the quarter of the size, and then repeated."""
    text = text.replace("mixed = Add (from, moved)", "mixed = Identity (from)")
    return text.replace('mode = "linear"', 'mode = "nearest", nearest_mode = "floor"')


def _aligned(text: str) -> str:
    """Bilinear, with the centres of the corner pixels kept."""
    return text.replace('"half_pixel"', '"align_corners"')


@pytest.mark.parametrize("change", [_nearest, _aligned])
def test_wrong_upsampling_is_refused(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[str], str]
) -> None:
    right = product.product_text
    monkeypatch.setattr(product, "product_text", lambda **given: change(right(**given)))
    with pytest.raises(CertificateError, match=r"product\.onnx is not written: agreement 0\..* after the logits") as e:
        export_checkpoint(source, "onnx", tmp_path / "exported", Settings())
    assert e.value.exit_code == 1
    assert list(tmp_path.iterdir()) == []


def test_wrong_resize_is_refused(source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without antialiasing, as `Resize` of ONNX is by default."""
    right = product.product_text
    wrong = "wide = Identity (m)"
    monkeypatch.setattr(product, "product_text", lambda **given: right(**given).replace("wide = Max (n, m)", wrong))
    with pytest.raises(CertificateError, match=r"the preparation of the image \(resize, rescale, normalise\)"):
        export_checkpoint(source, "onnx", tmp_path / "exported", Settings())
    assert list(tmp_path.iterdir()) == []


def test_wrong_activation_is_refused(images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = sensitive_network(), SegformerImageProcessor(do_resize=False)
    model.save_pretrained(tmp_path / "checkpoint")
    processor.save_pretrained(tmp_path / "checkpoint")
    source = source_of_images(str(tmp_path / "checkpoint"), images, 10)
    monkeypatch.setattr(checkpoint_export, "logits_model", lambda model, size: graph_with_tanh(model))
    with pytest.raises(CertificateError, match=r"onnx/model\.onnx is not written: .* layer stages\.0\.blocks\.0\.act"):
        export_checkpoint(source, "onnx", tmp_path / "exported", Settings())
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_size_that_no_image_has(source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told before anything is converted, which for a huge size takes all memory."""
    monkeypatch.setattr(checkpoint_export, "logits_model", lambda model, size: pytest.fail("converted"))
    with pytest.raises(DataError, match="--size 40x40: none of the 3 images has this size"):
        export_checkpoint(source, "onnx", tmp_path / "exported", Settings(size=(40, 40)))
    assert list(tmp_path.iterdir()) == []


def test_picture_that_is_too_small_is_named(
    source: Source, images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint_export, "logits_model", lambda model, size: onnx.load_from_string(network(5)[1]))
    Image.new("RGB", (28, 40)).save(tmp_path / "thin.png")
    thin = source_of_images(source.name, [tmp_path / "thin.png", *images], 10)
    thin = thin._replace(processor=SegformerImageProcessor(do_resize=False))
    with pytest.raises(
        DataError, match=rf"^{tmp_path}/thin\.png: an image of 40x28 pixels, and exported files take sides"
    ):
        export_checkpoint(thin, "onnx", tmp_path / "exported", Settings())
    assert [path.name for path in tmp_path.iterdir()] == ["thin.png"]


def test_what_was_exported_is_no_checkpoint(tmp_path: Path) -> None:
    network(5)[0].config.save_pretrained(tmp_path)
    write_certificate(tmp_path, {})
    with pytest.raises(UsageError, match=rf"^{tmp_path} holds what was exported of a checkpoint, and no weights: give"):
        load_model(str(tmp_path))


def test_certificate_has_the_checksum_of_every_file(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint_export, "logits_model", lambda model, size: onnx.load_from_string(network(5)[1]))
    folder = tmp_path / "exported"
    export_checkpoint(source, "onnx", folder, Settings(thresholds=NOISE))
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    certificate = json.loads(files.pop("certificate.json").read_text())
    expected = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}
    assert certificate["checksums"] == expected and "onnx/model.onnx" in expected


@pytest.mark.slow
def test_full_disk_is_an_error_of_the_torch_file(tmp_path: Path) -> None:
    """PyTorch's writer of files ends the process where it cannot write."""
    code = (
        "import resource, sys\nfrom pathlib import Path\nfrom segtune.export.targets import save_torch\n"
        "from support.exports import network\nmodel = network(5)[0]\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n    save_torch(model, Path(sys.argv[1]), None)\n"
        "except OSError as error:\n    print(type(error).__name__)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "network.pt2")]
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "OSError\n"), done.stderr


def test_processor_of_other_channels(source: Source, tmp_path: Path) -> None:
    wrong = source._replace(processor=SegformerImageProcessor(image_mean=[0.5], image_std=[0.5]))
    with pytest.raises(UsageError, match=r"the model reads 3 channels, its preprocessor_config\.json .* for 1"):
        export_checkpoint(wrong, "onnx", tmp_path / "exported", Settings())


def test_windows_are_warned_of(source: Source, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    processor: Any = SegformerImageProcessor(do_resize=False, window=64)
    export_checkpoint(source._replace(processor=processor), "onnx", tmp_path / "exported", Settings())
    assert "an exported file sees an image whole" in caplog.text


def test_spread() -> None:
    assert list(spread(10, 4)) == [0, 3, 6, 9] and list(spread(3, 100)) == [0, 1, 2] and list(spread(0, 5)) == []


def test_int8(source: Source, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    inputs = [random.standard_normal((1, 3, 64, 96), dtype=np.float32) for _ in range(3)]
    calibrated = source._replace(inputs=lambda: inputs)
    output = tmp_path / "exported"
    found = export_checkpoint(calibrated, "onnx", output, Settings(int8=True, half_thresholds=Thresholds(0.5, 0.1)))
    assert (output / "onnx" / "model_quantized.onnx").stat().st_size < (output / "onnx" / "model.onnx").stat().st_size
    assert [(one["file"], one["precision"]) for one in found["files"]][-1] == ("onnx/model_quantized.onnx", "int8")
    assert found["files"][-1]["agreement"] < 1
    assert found["verdict"]["recommended"] in {"fp32", "int8"}
    with pytest.raises(CertificateError, match=r"model_quantized\.onnx is not written: .* too few bits"):
        export_checkpoint(
            calibrated, "onnx", tmp_path / "refused", Settings(int8=True, half_thresholds=Thresholds(0.99999, 0.99999))
        )
    with pytest.raises(UsageError, match=r"--int8 is calibrated on .* --data"):
        export_checkpoint(source, "onnx", tmp_path / "refused", Settings(int8=True))
    assert not (tmp_path / "refused").exists()
