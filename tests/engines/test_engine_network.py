from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

import segtune
from segtune.engines import engine_network
from segtune.engines.engine_network import open_engine, refuse_graph
from segtune.engines.openvino_engine import SHAPES
from segtune.errors import DataError, SegtuneError, UsageError
from segtune.inference.segmenter import Segmenter
from segtune.segformer.image_processing_segformer import SegformerImageProcessor
from segtune.segformer.modeling_segformer import SegformerForSemanticSegmentation

ENGINES = ("openvino", "onnxruntime")
Model = SegformerForSemanticSegmentation


@pytest.fixture
def copied(exported: Path, tmp_path: Path) -> Path:
    """The exported folder, to be changed."""
    return Path(shutil.copytree(exported, tmp_path / "copied"))


@pytest.mark.parametrize("engine", ENGINES)
def test_logits_are_those_of_the_model(engine: Any, model: Model, exported: Path) -> None:
    network = open_engine(exported, engine, "fp32").eval()
    assert (network.engine, network.precision, network.device.type) == (engine, "fp32", "cpu")
    assert network.config.id2label == model.config.id2label and network.config.calibration_temperature == 2
    sides = [(64, 64), (65, 97), (29, 30), (40, 41), (42, 43), (44, 45)]
    assert len(sides) > SHAPES  # the last ones share a graph of any shape
    for height, width in [*sides, *sides[:2]]:
        images = torch.randn(2, 3, height, width)
        with torch.no_grad():
            expected, found = model(images).logits, network(pixel_values=images).logits
        assert found.shape == expected.shape and found.dtype == torch.float32
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_answers_are_kept_when_the_next_one_is_made(exported: Path) -> None:
    for engine in ENGINES:
        network = open_engine(exported, engine)
        first = network(torch.ones(1, 3, 32, 32)).logits
        before = first.clone()
        network(torch.zeros(1, 3, 32, 32))
        assert torch.equal(first, before)


def test_openvino_computes_in_bf16_where_the_cpu_does(model: Model, exported: Path) -> None:
    import openvino

    can = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    network = open_engine(exported, "openvino")
    assert network.precision == ("bf16" if can else "fp32")
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected, found = model(images).logits, network(images).logits
    assert (found - expected).abs().max() <= 0.05 * expected.abs().max()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("options", [{}, {"window": 64, "stride": 48}, {"tta": True}, {"batch_size": 2}])
def test_predictions_are_those_of_the_model(engine: Any, options: dict[str, Any], model: Model, exported: Path) -> None:
    images = [np.random.default_rng(i).integers(0, 256, (96, 130, 3), dtype=np.uint8) for i in range(3)]
    processor = SegformerImageProcessor(do_resize=False)
    expected = segtune.predict(model, images, processor=processor, **options)
    found = segtune.predict(exported, images, engine=engine, precision="fp32", **options)
    for one, other in zip(expected, found, strict=True):
        assert one.dtype == other.dtype and (one == other).mean() >= 0.9995


def test_confidence_has_the_temperature_of_the_checkpoint(model: Model, exported: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    processor = SegformerImageProcessor(do_resize=False)
    expected, found = (
        Segmenter(network, processor)(image, confidence=True)
        for network in (model, open_engine(exported, "onnxruntime"))
    )
    assert expected.confidence is not None and found.confidence is not None
    np.testing.assert_allclose(found.confidence, expected.confidence, atol=1e-4)


def test_a_model_is_converted_in_memory(model: Model, exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = onnx.load(exported / "onnx" / "model.onnx")
    monkeypatch.setattr(engine_network, "logits_model", {model: graph}.__getitem__)
    network = open_engine(model, "onnxruntime")
    assert network.config is model.config and network.num_parameters() > 1000
    image = np.zeros((40, 40, 3), np.uint8)
    processor = SegformerImageProcessor(do_resize=False)
    assert np.array_equal(
        segtune.predict(model, image, processor=processor, engine="openvino"),
        segtune.predict(network, image, processor=processor),
    )


@pytest.mark.parametrize("engine", ENGINES)
def test_what_is_converted_attends_in_blocks_where_the_engine_does_not_fuse(
    model: Model, exported: Path, engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, given = onnx.load(exported / "onnx" / "model.onnx"), []
    module = getattr(engine_network, f"{engine}_engine")
    right = module.open_graph
    monkeypatch.setattr(engine_network, "logits_model", {model: graph}.__getitem__)
    monkeypatch.setattr(module, "open_graph", lambda *words: given.append(words[0]) or right(*words))
    open_engine(model, engine)
    kinds = {node.op_type for node in onnx.load_from_string(given[0]).graph.node}
    assert ("Softmax" in kinds) == (engine == "openvino")


def test_a_file_has_its_config_beside_it_or_above(exported: Path, copied: Path) -> None:
    shutil.move(copied / "onnx" / "model.onnx", copied / "own.onnx")
    for path in (exported / "onnx" / "model.onnx", copied / "own.onnx"):
        network = open_engine(path, "openvino")
        assert network.name_or_path == str(exported if path.parent.name == "onnx" else copied)


def test_an_openvino_file_comes_first(copied: Path) -> None:
    import openvino

    (copied / "openvino").mkdir()
    core = openvino.Core()
    openvino.save_model(core.read_model(copied / "onnx" / "model.onnx"), copied / "openvino" / "model.xml")
    (copied / "onnx" / "model.onnx").write_bytes(b"damaged")
    assert open_engine(copied, "openvino")(torch.zeros(1, 3, 32, 32)).logits.shape == (1, 4, 8, 8)
    (copied / "openvino" / "model.bin").write_bytes(b"")
    with pytest.raises(DataError, match=r"model\.xml is damaged, or no graph that OpenVINO reads"):
        open_engine(copied, "openvino")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("content", [b"", b"no graph", "cut"])
def test_a_damaged_file_is_one_line(engine: Any, content: Any, copied: Path) -> None:
    path = copied / "onnx" / "model.onnx"
    path.write_bytes(path.read_bytes()[:-5000] if content == "cut" else content)
    with pytest.raises(DataError, match=rf"^{path} is damaged, or no graph that \w+( Runtime)? reads: .*$"):
        open_engine(copied, engine)


@pytest.mark.parametrize("engine", ENGINES)
def test_another_graph_is_one_line(engine: Any, copied: Path) -> None:
    path = copied / "onnx" / "model.onnx"
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in ("image", "mask")]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["image"], ["mask"])], "g", values[:1], values[1:])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10), path)
    with pytest.raises(DataError, match=r"maps image to mask, and --engine runs the graph from pixel_values to logits"):
        open_engine(copied, engine)


def test_a_config_of_another_network_is_one_line(copied: Path) -> None:
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | {"num_channels": 4}))
    with pytest.raises(DataError, match=r"has 3 channels and 4 labels, its config\.json says 4 channels and 4 labels"):
        open_engine(copied, "openvino")
    (copied / "config.json").unlink()
    with pytest.raises(UsageError, match=r"model\.onnx has no config\.json beside it or one folder above"):
        open_engine(copied, "openvino")


@pytest.mark.parametrize(
    ("engine", "precision", "message"),
    [
        ("tensorrt", "auto", "--engine tensorrt: give one of torch, openvino, onnxruntime"),
        ("openvino", "fp16", "--precision fp16: with --engine openvino give auto, fp32 or bf16"),
        ("onnxruntime", "bf16", "--precision bf16: ONNX Runtime computes in what the file holds; give auto or fp32"),
    ],
)
def test_what_there_is_not(engine: Any, precision: str, message: str, exported: Path) -> None:
    with pytest.raises(UsageError, match=message):
        open_engine(exported, engine, precision)


@pytest.mark.parametrize(("engine", "extra"), [("openvino", "openvino"), ("onnxruntime", "onnx")])
def test_a_missing_package_is_one_line(
    engine: Any, extra: str, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, engine, None)
    with pytest.raises(UsageError, match=rf"needs the package {engine}: pip install 'segtune\[{extra}\]'"):
        open_engine(exported, engine)


def test_images_that_do_not_fit(exported: Path) -> None:
    network = open_engine(exported, "onnxruntime")
    with pytest.raises(DataError, match=r"shape \(1, 4, 64, 64\), expected \(batch, 3, height, width\)"):
        network(torch.zeros(1, 4, 64, 64))
    with pytest.raises(DataError, match=r"an image of 20x64 pixels: --engine onnxruntime takes sides of 29 or more"):
        network(torch.zeros(1, 3, 20, 64))
    with pytest.raises(UsageError, match="device cuda: --engine onnxruntime runs on the CPU here"):
        segtune.predict(exported, np.zeros((64, 64, 3), np.uint8), engine="onnxruntime", device="cuda")
    with pytest.raises(UsageError, match="device meta: onnxruntime runs on the CPU here"):
        network.to("meta")


def test_pytorch_refuses_exported_graphs(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"model\.onnx is an exported graph: say --engine onnxruntime"):
        refuse_graph(exported / "onnx" / "model.onnx")
    with pytest.raises(UsageError, match="holds an exported graph and no weights: say --engine onnxruntime"):
        segtune.predict(exported, np.zeros((64, 64, 3), np.uint8))
    with pytest.raises(UsageError, match=r"reads \.onnx, their folders, and checkpoints"):
        open_engine(exported / "config.json", "onnxruntime")
    with pytest.raises(SegtuneError, match="does not exist"):
        open_engine(tmp_path / "nothing" / "here", "openvino")
    refuse_graph(tmp_path)
