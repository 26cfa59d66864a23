"""Files as keras-hub writes them, put together here variable by variable from our weights, and read back.

`test_parity.py` compares with keras-hub itself.
"""

from __future__ import annotations

import io
import json
import random
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from segtune.errors import DataError, UsageError
from segtune.segformer.configuration_segformer import SegformerConfig
from segtune.segformer.modeling_segformer import (
    SegformerForImageClassification,
    SegformerForSemanticSegmentation,
    SegformerModel,
)
from segtune.segformer.originals.convert_originals import convert_original, open_original, read_original
from segtune.segformer.originals.hdf5 import read

h5py = pytest.importorskip("h5py")

SHAPE: dict[str, Any] = {
    "hidden_sizes": (8, 16, 24, 32),
    "depths": (1, 2, 1, 1),
    "num_attention_heads": (1, 2, 3, 4),
    "hidden_act": "gelu_pytorch_tanh",
}
CONFIG = {
    "module": "keras_hub.src.models.mit.mit_backbone",
    "config": {
        "layerwise_depths": [1, 2, 1, 1],
        "hidden_dims": [8, 16, 24, 32],
        "layerwise_num_heads": [1, 2, 3, 4],
        "layerwise_strides": [4, 2, 2, 2],
    },
}
Arrays = dict[str, np.ndarray]


def random_model(kind: Any = SegformerForSemanticSegmentation, **fields: Any) -> Any:
    """A model none of whose tensors is at its default."""
    torch.manual_seed(0)
    model = kind(SegformerConfig(**{**SHAPE, "decoder_hidden_size": 12, "num_labels": 3, **fields}))
    for value in model.state_dict().values():
        if value.is_floating_point():
            value.uniform_(0.1, 0.5) if value.ndim == 1 else value.normal_(std=0.2)
    return model.eval()


def kernel(value: torch.Tensor, depthwise: bool = False) -> np.ndarray:
    """A weight of PyTorch as Keras has it."""
    axes = {2: (1, 0), 4: (2, 3, 0, 1) if depthwise else (2, 3, 1, 0)}[value.ndim]
    return value.numpy().transpose(axes)


def numbered(name: str, number: int) -> str:
    return f"{name}_{number}" if number else name


def encoder_arrays(model: Any, start: str = "layers/") -> Arrays:
    own = dict(getattr(model, "segformer", model).encoder.state_dict())
    out: Arrays = {}

    def put(place: str, name: str) -> None:
        weight = own[f"{name}.weight"]
        out[f"{start}{place}/vars/0"] = weight.numpy() if weight.ndim == 1 else kernel(weight, "dwconv" in name)
        out[f"{start}{place}/vars/1"] = own[f"{name}.bias"].numpy()

    blocks = [(i, j) for i, depth in enumerate(model.config.depths) for j in range(depth)]
    for i in range(4):
        patches = numbered("overlapping_patching_and_embedding", i)
        put(f"{patches}/proj", f"patch_embeddings.{i}.proj")
        put(f"{patches}/norm", f"patch_embeddings.{i}.layer_norm")
        put(numbered("layer_normalization", i), f"layer_norm.{i}")
    for number, (i, j) in enumerate(blocks):
        theirs, ours = numbered("hierarchical_transformer_encoder", number), f"block.{i}.{j}"
        put(f"{theirs}/norm1", f"{ours}.layer_norm_1")
        put(f"{theirs}/norm2", f"{ours}.layer_norm_2")
        for short, name in (("q", "self.query"), ("k", "self.key"), ("v", "self.value"), ("proj", "output.dense")):
            put(f"{theirs}/attn/{short}", f"{ours}.attention.{name}")
        put(f"{theirs}/mlp/fc1", f"{ours}.mlp.dense1")
        put(f"{theirs}/mlp/dwconv", f"{ours}.mlp.dwconv.dwconv")
        put(f"{theirs}/mlp/fc2", f"{ours}.mlp.dense2")
        if i < 3:
            put(f"{theirs}/attn/sr", f"{ours}.attention.self.sr")
            put(f"{theirs}/attn/norm", f"{ours}.attention.self.layer_norm")
        out[f"{start}{theirs}/drop_path/seed/vars/0"] = np.array([number, 7], dtype=np.uint32)
    return out


def head_arrays(model: Any, start: str = "layers/") -> Arrays:
    head, out = model.decode_head, {}
    for number, stage in enumerate((3, 2, 1, 0)):  # a functional model lists what is deeper in its graph first
        place = f"{start}seg_former_backbone/layers/{numbered('dense', number)}"
        out[f"{place}/vars/0"] = kernel(head.linear_c[stage].proj.weight.detach())
        out[f"{place}/vars/1"] = head.linear_c[stage].proj.bias.detach().numpy()
    fuse = f"{start}seg_former_backbone/layers/sequential/layers"
    out[f"{fuse}/conv2d/vars/0"] = kernel(head.linear_fuse.weight.detach())
    norm = head.batch_norm
    for i, value in enumerate((norm.weight.detach(), norm.bias.detach(), norm.running_mean, norm.running_var)):
        out[f"{fuse}/batch_normalization/vars/{i}"] = value.numpy()
    out[f"{start}conv2d/vars/0"] = kernel(head.classifier.weight.detach())
    out[f"{start}conv2d/vars/1"] = head.classifier.bias.detach().numpy()
    return out


def segmenter_arrays(model: Any) -> Arrays:
    inside = "layers/seg_former_backbone/layers/functional/layers/"
    return encoder_arrays(model, inside) | head_arrays(model)


def write_h5(target: Any, arrays: Arrays) -> None:
    with h5py.File(target, "w") as file:
        for path, value in arrays.items():
            file[path] = value


def write_keras(target: Path, arrays: Arrays, config: Any = CONFIG) -> None:
    content = io.BytesIO()
    write_h5(content, arrays)
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr("metadata.json", "{}")
        archive.writestr("config.json", json.dumps(config))
        archive.writestr("model.weights.h5", content.getvalue())


def assert_same(got: Any, expected: Any) -> None:
    assert type(got) is type(expected)
    own, theirs = got.state_dict(), expected.state_dict()
    assert own.keys() == theirs.keys()
    assert all(torch.equal(own[key], theirs[key]) for key in own)
    pixels = torch.randn(1, 3, 65, 97, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(got(pixels)[0], expected(pixels)[0])


# --- the same network ------------------------------------------------------------------------------------------------


def test_encoder(tmp_path: Path) -> None:
    model = random_model(SegformerModel)
    write_h5(tmp_path / "mit.weights.h5", encoder_arrays(model))
    assert_same(read_original(tmp_path / "mit.weights.h5"), model)
    found = open_original(tmp_path / "mit.weights.h5")
    assert {part: len(names) for part, names in found.left_out.items()} == {"states of random generators": 5}


def test_segmenter_as_archive_and_as_weights(tmp_path: Path) -> None:
    model = random_model()
    write_keras(tmp_path / "mine.keras", segmenter_arrays(model))
    write_h5(tmp_path / "mine.weights.h5", segmenter_arrays(model))
    for name in ("mine.keras", "mine.weights.h5"):
        assert_same(read_original(tmp_path / name), model)
    assert read_original(tmp_path / "mine.keras").config.hidden_act == "gelu_pytorch_tanh"


def test_converted_folder_is_read_by_transformers(tmp_path: Path) -> None:
    """Its GELU included, which is not the usual one."""
    model = random_model()
    write_keras(tmp_path / "mine.keras", segmenter_arrays(model))
    convert_original(tmp_path / "mine.keras", tmp_path / "out")
    theirs = transformers.AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "out").eval()
    pixels = torch.randn(1, 3, 65, 97, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(theirs(pixels).logits, model(pixels).logits, rtol=1e-4, atol=1e-5)


def test_classifier(tmp_path: Path) -> None:
    model = random_model(SegformerForImageClassification)
    arrays = encoder_arrays(model, "layers/mi_t_backbone/layers/")
    arrays["layers/dense/vars/0"] = kernel(model.classifier.weight.detach())
    arrays["layers/dense/vars/1"] = model.classifier.bias.detach().numpy()
    write_h5(tmp_path / "mit.weights.h5", arrays)
    assert_same(read_original(tmp_path / "mit.weights.h5"), model)


def test_encoder_of_a_segmenter(tmp_path: Path) -> None:
    model = random_model()
    write_keras(tmp_path / "mine.keras", segmenter_arrays(model))
    found = open_original(tmp_path / "mine.keras", encoder_only=True)
    got = found.model("mine.keras")
    assert type(got) is SegformerModel
    expected = model.segformer.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in got.state_dict().items())
    assert len(found.left_out["the head"]) == 4 * 2 + 1 + 4 + 2  # projections, fusion, batch norm, classifier


def test_heads_and_depths_of_the_configuration_count(tmp_path: Path) -> None:
    """Two stages of one width cannot be told apart by their channels, nor can heads of another number."""
    model = random_model(hidden_sizes=(8, 16, 16, 32), num_attention_heads=(2, 4, 4, 8))
    about = {"layerwise_depths": [1, 2, 1, 1], "hidden_dims": [8, 16, 16, 32], "layerwise_num_heads": [2, 4, 4, 8]}
    write_keras(tmp_path / "mine.keras", encoder_arrays(model), {"config": about})
    got = read_original(tmp_path / "mine.keras").config
    assert (got.depths, got.num_attention_heads) == ([1, 2, 1, 1], [2, 4, 4, 8])
    write_h5(tmp_path / "mine.weights.h5", encoder_arrays(model))
    with pytest.raises(DataError, match="do not belong to stages"):
        read_original(tmp_path / "mine.weights.h5")


def test_optimizer_is_left_out_by_name(tmp_path: Path) -> None:
    arrays = segmenter_arrays(random_model()) | {"optimizer/vars/0": np.array(3), "optimizer/vars/1": np.ones(4)}
    write_keras(tmp_path / "mine.keras", arrays)
    described = open_original(tmp_path / "mine.keras").described_left_out()
    assert "the optimizer (2 tensors: optimizer/vars/0, optimizer/vars/1)" in described


# --- the folder of a preset ------------------------------------------------------------------------------------------


@pytest.fixture
def preset(tmp_path: Path) -> Path:
    folder, model = tmp_path / "preset", random_model()
    folder.mkdir()
    write_h5(folder / "task.weights.h5", segmenter_arrays(model))
    write_h5(folder / "model.weights.h5", encoder_arrays(model))
    (folder / "config.json").write_text(json.dumps(CONFIG))
    converter = {"scale": [1 / (255 * s) for s in (0.2, 0.25, 0.5)], "offset": [-0.5 / s for s in (0.2, 0.25, 0.5)]}
    (folder / "preprocessor.json").write_text(json.dumps({"config": {"image_converter": {"config": converter}}}))
    (folder / "README.md").write_text(
        "---\nlibrary_name: keras-hub\n---\nWeights are released under the MIT License. …"
    )
    return folder


def test_preset_with_its_normalisation_and_licence(preset: Path, tmp_path: Path) -> None:
    done = convert_original(preset, tmp_path / "out")
    assert_same(done.model, random_model())
    kept = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())
    assert kept["image_mean"] == [0.5, 0.5, 0.5] and kept["image_std"] == [0.2, 0.25, 0.5]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "The checkpoint itself states: 'MIT License'." in card and "not settled" in card
    assert 'license_name: "unsettled-mit-or-nvidia-source-code-license"' in card


def test_preset_of_two_files_that_complete_each_other(preset: Path) -> None:
    """As keras-hub saves it today: the head apart from the rest."""
    arrays = segmenter_arrays(model := random_model())
    inside = "layers/seg_former_backbone/"
    write_h5(preset / "task.weights.h5", {key: value for key, value in arrays.items() if not key.startswith(inside)})
    rest = {key.removeprefix(inside): value for key, value in arrays.items() if key.startswith(inside)}
    write_h5(preset / "model.weights.h5", rest)
    assert_same(read_original(preset), model)


def test_preset_of_two_whole_files(preset: Path) -> None:
    """As those of 2024 are: the file of the task counts, the other one is not read."""
    inside = "layers/seg_former_backbone/"
    rest = {
        key.removeprefix(inside): value + 1
        for key, value in segmenter_arrays(random_model()).items()
        if key.startswith(inside)
    }
    write_h5(preset / "model.weights.h5", rest)
    assert_same(read_original(preset), random_model())


def test_what_needs_no_conversion(preset: Path, tmp_path: Path) -> None:
    convert_original(preset, tmp_path / "out")
    with pytest.raises(DataError, match=r"out needs no conversion: it is a checkpoint, for model\.name"):
        convert_original(tmp_path / "out", tmp_path / "again")


def test_older_converters_of_pictures(preset: Path) -> None:
    """`(scale x - mean) / sqrt(variance)` is ours where the scale is 1/255."""
    older = {"scale": 1 / 255, "mean": [0.485, 0.456, 0.406], "variance": [0.229**2, 0.224**2, 0.225**2]}
    (preset / "preprocessor.json").write_text(json.dumps(older))
    assert open_original(preset).processor == {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


def test_preset_of_an_encoder_alone(preset: Path) -> None:
    (preset / "task.weights.h5").unlink()
    assert type(read_original(preset)) is SegformerModel


# --- refusals --------------------------------------------------------------------------------------------------------


def test_what_is_missing_or_left_over_is_named(tmp_path: Path) -> None:
    arrays = segmenter_arrays(random_model())
    gone = "layers/seg_former_backbone/layers/functional/layers/hierarchical_transformer_encoder_2/attn/k/vars/1"
    del arrays[gone]
    arrays["layers/spatial_gate/vars/0"] = np.ones(3, dtype=np.float32)
    write_h5(tmp_path / "a.weights.h5", arrays)
    expected = (
        r"missing: segformer\.encoder\.block\.1\.1\.attention\.self\.key\.bias; left over: layers/spatial_gate/vars/0"
    )
    with pytest.raises(DataError, match=expected):
        read_original(tmp_path / "a.weights.h5")


def test_other_files(tmp_path: Path) -> None:
    write_h5(tmp_path / "resnet.weights.h5", {"layers/conv2d/vars/0": np.ones((3, 3, 3, 8))})
    with pytest.raises(DataError, match=r"no SegFormer of keras-hub: it holds layers/conv2d"):
        read_original(tmp_path / "resnet.weights.h5")
    write_h5(tmp_path / "old.h5", {"model_weights/a/kernel:0": np.ones(2)})
    with pytest.raises(DataError, match=r"it holds model_weights/a/kernel:0\. If it is one, save it with"):
        read_original(tmp_path / "old.h5")
    with zipfile.ZipFile(tmp_path / "empty.keras", "w") as archive:
        archive.writestr("config.json", "{}")
    with pytest.raises(DataError, match=r"holds no model\.weights\.h5"):
        read_original(tmp_path / "empty.keras")
    with pytest.raises(DataError, match="no preset of keras-hub"):
        read_original(tmp_path)
    for name in ("none.keras", "none.weights.h5"):
        with pytest.raises(DataError, match="no such file"):
            read_original(tmp_path / name)


def test_links_and_bytes_of_other_files_are_refused(tmp_path: Path) -> None:
    """A checkpoint that is converted may be published: it must not take along what lies elsewhere on this machine."""
    secret = tmp_path / "secret"
    secret.write_bytes(b"s" * 32)
    write_h5(tmp_path / "other.h5", {"x": np.ones(8)})
    arrays = encoder_arrays(random_model(SegformerModel))
    scale = "layers/layer_normalization/vars/0"
    del arrays[scale]
    for what, match in (
        ("external", "link to another place"),
        ("soft", "link to another place"),
        ("raw", "other files"),
    ):
        write_h5(tmp_path / "a.weights.h5", arrays)
        with h5py.File(tmp_path / "a.weights.h5", "a") as file:
            if what == "external":
                file[scale] = h5py.ExternalLink(str(tmp_path / "other.h5"), "/x")
            elif what == "soft":
                file[scale] = h5py.SoftLink("/layers/layer_normalization/vars/1")
            else:
                file.create_dataset(scale, (8,), "f4", external=[(str(secret), 0, 32)])
        with pytest.raises(DataError, match=f"{match}.*: refused|{match}"):
            convert_original(tmp_path / "a.weights.h5", tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_absurd_sizes_are_refused_before_memory_is_taken(tmp_path: Path) -> None:
    arrays = encoder_arrays(random_model(SegformerModel))
    write_h5(tmp_path / "a.weights.h5", arrays)
    with h5py.File(tmp_path / "a.weights.h5", "a") as file:
        file.create_dataset("layers/extra/vars/0", (2**20, 2**20), "f4", chunks=(1024, 1024))  # a file of some KB
    with pytest.raises(DataError, match="more than any network needs"):
        read_original(tmp_path / "a.weights.h5")


def test_groups_without_end_are_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        group = file.create_group("a")
        group["b"] = group  # which holds itself
    with pytest.raises(DataError, match="more groups than any network needs"):
        read_original(tmp_path / "a.h5")


def test_bfloat16_of_keras(tmp_path: Path) -> None:
    """HDF5 has no such type: Keras writes two bytes, and says so beside them."""
    with h5py.File(tmp_path / "a.h5", "w") as file:
        bits = (np.array([1.5, -2.0], dtype=np.float32).view(np.uint32) >> 16).astype(np.uint16)
        file.create_dataset("x", data=bits.view("V2")).attrs["dtype"] = "bfloat16"
        file["y"] = np.array([b"text"])
        assert read("a.h5", "x", file["x"]).tolist() == [1.5, -2.0]
        with pytest.raises(DataError, match=r"y holds .*, and no numbers"):
            read("a.h5", "y", file["y"])


@pytest.mark.parametrize("suffix", ["weights.h5", "keras"])
def test_damaged_files_are_one_message(tmp_path: Path, suffix: str) -> None:
    """Whatever HDF5 makes of missing or changed bytes, it is the file's fault and no traceback; or does not matter."""
    path, model = tmp_path / f"a.{suffix}", random_model(SegformerModel)
    (write_keras if suffix == "keras" else write_h5)(path, encoder_arrays(model))
    content, generator, said = path.read_bytes(), random.Random(0), list[str]()
    for _ in range(60):
        damaged = bytearray(content[: generator.choice((len(content), generator.randrange(1, len(content))))])
        for at in generator.choices(range(min(len(damaged), 30_000)), k=40):
            damaged[at] = generator.randrange(256)
        path.write_bytes(damaged)
        try:
            read_original(path)
        except DataError as error:
            said.append(str(error))
    assert len(said) > 20
    assert all(text.startswith(str(path)) and "\n" not in text for text in said)


def test_missing_package_is_said_with_the_fix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_h5(tmp_path / "a.weights.h5", {"x": np.ones(2)})
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with pytest.raises(UsageError, match=r"h5py reads: pip install 'segtune\[keras\]'"):
        read_original(tmp_path / "a.weights.h5")


def test_many_tensors_are_refused_as_one_large_one_is(tmp_path: Path) -> None:
    """Packed zeros: a file of some KB whose tensors have 32 GB."""
    with h5py.File(tmp_path / "a.weights.h5", "w") as file:
        for number in range(64):
            place = f"layers/{numbered('hierarchical_transformer_encoder', number)}/attn/q/vars/0"
            file.create_dataset(place, (2**14, 2**13), "f4", chunks=(2**10, 2**10), compression="gzip")
    with pytest.raises(DataError, match="holds 8,589,934,592 numbers, which is more than any network needs"):
        read_original(tmp_path / "a.weights.h5")


def test_what_is_no_number_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        wide = file.create_dataset("x", (2**20,), np.dtype([("a", "f4", (2**12,))]), chunks=(1,))
        block = file.create_dataset("y", (1,), "f4", chunks=(2**29,), maxshape=(None,))
        with pytest.raises(DataError, match="and no numbers"):
            read("a.h5", "x", wide)
        with pytest.raises(DataError, match="more than any network needs"):
            read("a.h5", "y", block)


def test_absurd_names_are_the_fault_of_the_file(tmp_path: Path) -> None:
    place = f"hierarchical_transformer_encoder_{'9' * 5000}/attn/q/vars/0"
    write_h5(tmp_path / "a.weights.h5", {place: np.ones((2, 2))})
    with pytest.raises(DataError, match=r"a\.weights\.h5 is no"):
        read_original(tmp_path / "a.weights.h5")


def test_a_long_configuration_takes_no_time(tmp_path: Path) -> None:
    write_keras(tmp_path / "a.keras", encoder_arrays(random_model(SegformerModel)), [[0] * 2_000_000])
    assert type(read_original(tmp_path / "a.keras")) is SegformerModel
