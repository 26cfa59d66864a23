from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import onnx
import pytest
import torch
from PIL import Image

import segtune
from segtune.engines import engine_network
from segtune.engines.engine_network import open_engine, refuse_graph
from segtune.engines.onnx_model import logits_model
from segtune.engines.openvino_engine import SHAPES
from segtune.errors import DataError, SegtuneError, UsageError
from segtune.export.certificate import checksums, write_certificate
from segtune.inference.evaluate import evaluate_model
from segtune.inference.open_network import open_network
from segtune.inference.protocol import InferenceProtocol
from segtune.inference.segmenter import Segmenter
from segtune.labels.label_map import LabelMap
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


def convolution(path: Path, stride: int) -> None:
    """A graph of the right names that is no SegFormer."""
    shapes = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", channels, None, None])
        for name, channels in (("pixel_values", 3), ("logits", 4))
    ]
    weight = onnx.helper.make_tensor("w", onnx.TensorProto.FLOAT, (4, 3, 3, 3), np.ones(108))
    node = onnx.helper.make_node("Conv", ["pixel_values", "w"], ["logits"], strides=[stride, stride], pads=[1, 1, 1, 1])
    graph = onnx.helper.make_graph([node], "g", shapes[:1], shapes[1:], [weight])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10), path)


@pytest.mark.parametrize("engine", ENGINES)
def test_logits_of_another_size_are_one_line(engine: Any, copied: Path) -> None:
    convolution(copied / "onnx" / "model.onnx", stride=2)
    with pytest.raises(DataError, match=r"answers \(1, 4, 32, 40\), the logits of a SegFormer are \(1, 4, 16, 20\)"):
        segtune.predict(copied, np.zeros((64, 80, 3), np.uint8), engine=engine)


@pytest.mark.parametrize("options", [{}, {"window": 64}, {"tta": True}])
def test_an_image_that_is_too_small_is_named(options: dict[str, Any], exported: Path, tmp_path: Path) -> None:
    side = 28 if options != {"tta": True} else 40  # of which the smallest scale has 20
    Image.new("RGB", (100, side)).save(tmp_path / "thin.png")
    with pytest.raises(DataError, match=rf"^{tmp_path}/thin\.png: an image of \d+x\d+ pixels: --engine onnxruntime"):
        segtune.predict(exported, tmp_path / "thin.png", engine="onnxruntime", **options)
    Image.new("L", (100, side)).save(tmp_path / "mask.png")
    files = {"id": ["a"], "image": [str(tmp_path / "thin.png")], "mask": [str(tmp_path / "mask.png")]}
    data = datasets.Dataset.from_dict(files).cast_column("image", datasets.Image())
    data = data.cast_column("mask", datasets.Image())
    network = open_engine(exported, "onnxruntime")
    labels = LabelMap.from_names(["a", "b", "c", "d"])
    with pytest.raises(DataError, match=r"^sample 'a': an image of \d+x\d+ pixels: --engine onnxruntime takes sides"):
        evaluate_model(
            network,
            data,
            labels,
            SegformerImageProcessor(do_resize=False),
            protocol=InferenceProtocol.choose(SegformerImageProcessor(do_resize=False), **options),
        )


@pytest.mark.parametrize("engine", ENGINES)
def test_a_graph_of_one_size_takes_batches_and_names_others(
    engine: Any, model: Model, copied: Path, tmp_path: Path
) -> None:
    (copied / "onnx" / "model.onnx").write_bytes(logits_model(model, (64, 80)).SerializeToString())
    images = [np.random.default_rng(i).integers(0, 256, (64, 80, 3), dtype=np.uint8) for i in range(3)]
    expected = segtune.predict(model, images, processor=SegformerImageProcessor(do_resize=False))
    found = segtune.predict(copied, images, engine=engine, precision="fp32", batch_size=2)
    assert all((one == other).mean() >= 0.9995 for one, other in zip(expected, found, strict=True))
    Image.new("RGB", (64, 80)).save(tmp_path / "turned.png")
    with pytest.raises(
        DataError, match=rf"turned\.png: an image of 80x64 pixels: {copied} was exported for 64x80 alone"
    ):
        segtune.predict(copied, tmp_path / "turned.png", engine=engine)


def test_files_are_those_of_the_certificate(copied: Path) -> None:
    write_certificate(copied, checksums(copied))
    open_engine(copied, "onnxruntime")
    path = copied / "onnx" / "model.onnx"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1  # a weight
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"^{path} is damaged, or another file: {copied}/certificate\.json was made"):
        open_engine(copied, "onnxruntime")
    (copied / "certificate.json").unlink()
    open_engine(copied, "onnxruntime")


def test_an_export_for_another_engine_is_one_line(copied: Path) -> None:
    (copied / "onnx").rename(copied / "openvino")
    (copied / "openvino" / "model.onnx").rename(copied / "openvino" / "model.xml")
    with pytest.raises(UsageError, match="was exported for openvino, and holds no weights: say --engine openvino"):
        open_engine(copied, "onnxruntime")


def test_a_device_that_is_none_is_one_line(exported: Path) -> None:
    with pytest.raises(UsageError, match="--device nonsense: --engine openvino runs on the CPU here"):
        open_network(exported, "nonsense", "openvino")


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
