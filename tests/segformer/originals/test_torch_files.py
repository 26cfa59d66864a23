"""Files of NVlabs' code, mmsegmentation and LibreYOLO, written here name by name from our weights, and read back."""

from __future__ import annotations

import os
import random
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import segtune
from segtune.errors import DataError, UsageError
from segtune.inference.processor import load_processor
from segtune.segformer.configuration_segformer import SegformerConfig
from segtune.segformer.modeling_segformer import (
    SegformerForImageClassification,
    SegformerForSemanticSegmentation,
    SegformerModel,
)
from segtune.segformer.originals.convert_originals import convert_original, open_original, read_original
from segtune.segformer.parameter_names import name_in_transformers_5

TINY = {
    "hidden_sizes": (8, 16, 40, 64),
    "depths": (1, 2, 1, 1),
    "num_attention_heads": (1, 2, 5, 8),
    "mlp_ratios": (4, 4, 2, 1),
    "num_channels": 5,
}
Tensors = dict[str, Tensor]


def random_model(kind: Any = SegformerForSemanticSegmentation, **fields: Any) -> Any:
    """A model none of whose tensors is at its default."""
    torch.manual_seed(0)
    model = kind(SegformerConfig(**{**TINY, "decoder_hidden_size": 24, "num_labels": 3, **fields}))
    for value in model.state_dict().values():
        if value.is_floating_point():
            value.uniform_(0.1, 0.5) if value.ndim == 1 else value.normal_(std=0.2)
    return model.eval()


def both(target: Tensors, name: str, source: Tensors, own: str) -> None:
    target |= {f"{name}.{leaf}": source[f"{own}.{leaf}"] for leaf in ("weight", "bias")}


def nvlabs_encoder(own: Tensors, depths: tuple[int, ...]) -> Tensors:
    out: Tensors = {}
    for i, depth in enumerate(depths):
        both(out, f"patch_embed{i + 1}.proj", own, f"patch_embeddings.{i}.proj")
        both(out, f"patch_embed{i + 1}.norm", own, f"patch_embeddings.{i}.layer_norm")
        both(out, f"norm{i + 1}", own, f"layer_norm.{i}")
        for j in range(depth):
            theirs, ours = f"block{i + 1}.{j}", f"block.{i}.{j}"
            both(out, f"{theirs}.norm1", own, f"{ours}.layer_norm_1")
            both(out, f"{theirs}.norm2", own, f"{ours}.layer_norm_2")
            both(out, f"{theirs}.attn.q", own, f"{ours}.attention.self.query")
            for leaf in ("weight", "bias"):
                parts = [own[f"{ours}.attention.self.{part}.{leaf}"] for part in ("key", "value")]
                out[f"{theirs}.attn.kv.{leaf}"] = torch.cat(parts)
            both(out, f"{theirs}.attn.proj", own, f"{ours}.attention.output.dense")
            both(out, f"{theirs}.mlp.fc1", own, f"{ours}.mlp.dense1")
            both(out, f"{theirs}.mlp.dwconv.dwconv", own, f"{ours}.mlp.dwconv.dwconv")
            both(out, f"{theirs}.mlp.fc2", own, f"{ours}.mlp.dense2")
            if i < 3:
                both(out, f"{theirs}.attn.sr", own, f"{ours}.attention.self.sr")
                both(out, f"{theirs}.attn.norm", own, f"{ours}.attention.self.layer_norm")
    return out


def mmseg_encoder(own: Tensors, depths: tuple[int, ...]) -> Tensors:
    out: Tensors = {}
    for i, depth in enumerate(depths):
        both(out, f"layers.{i}.0.projection", own, f"patch_embeddings.{i}.proj")
        both(out, f"layers.{i}.0.norm", own, f"patch_embeddings.{i}.layer_norm")
        both(out, f"layers.{i}.2", own, f"layer_norm.{i}")
        for j in range(depth):
            theirs, ours = f"layers.{i}.1.{j}", f"block.{i}.{j}"
            both(out, f"{theirs}.norm1", own, f"{ours}.layer_norm_1")
            both(out, f"{theirs}.norm2", own, f"{ours}.layer_norm_2")
            for leaf in ("weight", "bias"):
                parts = [own[f"{ours}.attention.self.{part}.{leaf}"] for part in ("query", "key", "value")]
                out[f"{theirs}.attn.attn.in_proj_{leaf}"] = torch.cat(parts)
            both(out, f"{theirs}.attn.attn.out_proj", own, f"{ours}.attention.output.dense")
            both(out, f"{theirs}.ffn.layers.0", own, f"{ours}.mlp.dense1")
            both(out, f"{theirs}.ffn.layers.1", own, f"{ours}.mlp.dwconv.dwconv")
            both(out, f"{theirs}.ffn.layers.4", own, f"{ours}.mlp.dense2")
            for layer in (0, 4):
                out[f"{theirs}.ffn.layers.{layer}.weight"] = out[f"{theirs}.ffn.layers.{layer}.weight"][..., None, None]
            if i < 3:
                both(out, f"{theirs}.attn.sr", own, f"{ours}.attention.self.sr")
                both(out, f"{theirs}.attn.norm", own, f"{ours}.attention.self.layer_norm")
    return out


def encoder_of(model: Any) -> Tensors:
    return dict(getattr(model, "segformer", model).encoder.state_dict())


def nvlabs_segmenter(model: Any) -> Tensors:
    out = {f"backbone.{name}": value for name, value in nvlabs_encoder(encoder_of(model), TINY["depths"]).items()}
    own = model.state_dict()
    for i in range(4):
        both(out, f"decode_head.linear_c{i + 1}.proj", own, f"decode_head.linear_c.{i}.proj")
    out["decode_head.linear_fuse.conv.weight"] = own["decode_head.linear_fuse.weight"]
    for leaf in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
        out[f"decode_head.linear_fuse.bn.{leaf}"] = own[f"decode_head.batch_norm.{leaf}"]
    both(out, "decode_head.linear_pred", own, "decode_head.classifier")
    return out | {"decode_head.conv_seg.weight": torch.rand(3, 24, 1, 1), "decode_head.conv_seg.bias": torch.rand(3)}


def pixels(channels: int = 5) -> Tensor:
    return torch.randn(1, channels, 65, 97, generator=torch.Generator().manual_seed(1))


def answers(model: Any) -> Tensor:
    with torch.no_grad():
        return model(pixels())[0]


def assert_same(got: Any, expected: Any) -> None:
    assert type(got) is type(expected)
    own, theirs = got.state_dict(), expected.state_dict()
    assert own.keys() == theirs.keys()
    assert all(torch.equal(own[key], theirs[key]) for key in own)
    assert torch.equal(answers(got), answers(expected))


# --- the same network ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "module."])
def test_segmenter_of_nvlabs(tmp_path: Path, prefix: str) -> None:
    model = random_model()
    tensors = {f"{prefix}{name}": value for name, value in nvlabs_segmenter(model).items()}
    meta = {"CLASSES": ("sky", "road", "tree"), "PALETTE": [[1, 2, 3], [4, 5, 6], [7, 8, 9]], "iter": 7}
    torch.save({"meta": meta, "state_dict": tensors, "optimizer": {"state": {}}}, tmp_path / "a.pth")
    got = read_original(tmp_path / "a.pth")
    assert_same(got, model)
    assert segtune.LabelMap.from_config(got.config).names == ("sky", "road", "tree")
    assert segtune.LabelMap.from_config(got.config).colors == ((1, 2, 3), (4, 5, 6), (7, 8, 9))


def test_imagenet_encoder_of_nvlabs(tmp_path: Path) -> None:
    model = random_model(SegformerForImageClassification)
    tensors = nvlabs_encoder(encoder_of(model), TINY["depths"])
    both(tensors, "head", dict(model.state_dict()), "classifier")
    torch.save(tensors, tmp_path / "mit_b0.pth")
    assert_same(read_original(tmp_path / "mit_b0.pth", "nvlabs"), model)


def test_published_configurations_are_found(tmp_path: Path) -> None:
    """b1 has the depths of b0 and other widths; the other fields are the paper's."""
    config = SegformerConfig.from_variant("b1", num_labels=7)
    model = SegformerForImageClassification(config)
    tensors = nvlabs_encoder(encoder_of(model), (2, 2, 2, 2))
    both(tensors, "head", dict(model.state_dict()), "classifier")
    torch.save(tensors, tmp_path / "mit_b1.pth")
    found = read_original(tmp_path / "mit_b1.pth").config
    names = ("hidden_sizes", "depths", "num_attention_heads", "sr_ratios", "mlp_ratios", "patch_sizes", "strides")
    assert {name: getattr(found, name) for name in names} == {name: getattr(config, name) for name in names}


def test_encoder_of_mmseg(tmp_path: Path) -> None:
    model = random_model(SegformerModel)
    torch.save(mmseg_encoder(encoder_of(model), TINY["depths"]), tmp_path / "mit_b0.pth")
    assert_same(read_original(tmp_path / "mit_b0.pth"), model)


def test_attention_of_mmseg_is_the_one_of_pytorch(tmp_path: Path) -> None:
    """mmseg runs `nn.MultiheadAttention`, which says which third of in_proj is the query, the key and the value."""
    model = random_model(SegformerModel)
    tensors = mmseg_encoder(encoder_of(model), TINY["depths"])
    torch.save(tensors, tmp_path / "a.pth")
    ours = read_original(tmp_path / "a.pth").encoder.block[3][0].attention
    theirs = nn.MultiheadAttention(64, 8, batch_first=True).eval()
    start = "layers.3.1.0.attn.attn."
    theirs.load_state_dict({key.removeprefix(start): value for key, value in tensors.items() if key.startswith(start)})
    x = torch.randn(1, 3, 5, 64)
    with torch.no_grad():
        expected = theirs(*[x.flatten(1, 2)] * 3)[0].view(x.shape)
        torch.testing.assert_close(ours(x)[0], expected)


def test_head_of_mmseg_is_refused_and_its_encoder_taken(tmp_path: Path) -> None:
    model = random_model(SegformerModel)
    encoder = mmseg_encoder(encoder_of(model), TINY["depths"])
    tensors = {f"backbone.{name}": value for name, value in encoder.items()}
    tensors |= {"decode_head.convs.0.conv.weight": torch.rand(1), "auxiliary_head.conv_seg.bias": torch.rand(1)}
    torch.save({"state_dict": tensors}, tmp_path / "a.pth")
    with pytest.raises(UsageError, match=r"ReLU after each projection.* --encoder-only"):
        read_original(tmp_path / "a.pth")
    assert_same(read_original(tmp_path / "a.pth", encoder_only=True), model)


def test_auxiliary_parts_of_mmseg_are_named_and_counted(tmp_path: Path) -> None:
    """A training of mmengine: two heads, the preprocessor, and weights beside the averaged ones."""
    model = random_model(SegformerModel)
    encoder = mmseg_encoder(encoder_of(model), TINY["depths"])
    tensors = {f"backbone.{name}": value for name, value in encoder.items()}
    tensors |= {f"decode_head.convs.{i}.conv.weight": torch.rand(1) for i in range(4)}
    tensors |= {"decode_head.fusion_conv.bn.bias": torch.rand(1), "decode_head.conv_seg.bias": torch.rand(1)}
    tensors |= {"auxiliary_head.convs.0.conv.weight": torch.rand(1), "auxiliary_head.conv_seg.bias": torch.rand(1)}
    tensors |= {"data_preprocessor.mean": torch.tensor([51.0, 102.0, 153.0, 0.0, 0.0]).view(-1, 1, 1)}
    tensors |= {"data_preprocessor.std": torch.full((5, 1, 1), 25.5)}
    trained = {f"module.{name}": torch.zeros_like(value) for name, value in tensors.items()}
    torch.save({"state_dict": tensors, "ema_state_dict": trained | {"steps": torch.tensor(3)}}, tmp_path / "a.pth")
    found = open_original(tmp_path / "a.pth", encoder_only=True)
    assert_same(found.model("a.pth"), model)
    assert {part: len(names) for part, names in found.left_out.items()} == {
        "ema_state_dict, beside the weights": len(tensors) + 1,
        "auxiliary_head": 2,
        "data_preprocessor": 2,
        "decode_head.conv_seg, which this head does not call": 1,
        "the head": 5,
    }
    assert found.described_left_out()[1] == (
        "auxiliary_head (2 tensors: auxiliary_head.convs.0.conv.weight, auxiliary_head.conv_seg.bias)"
    )
    assert found.processor == {"image_mean": [0.2, 0.4, 0.6, 0.0, 0.0], "image_std": [0.1] * 5}


def test_average_that_is_alone_in_a_file_is_taken(tmp_path: Path) -> None:
    model = random_model(SegformerModel)
    encoder = mmseg_encoder(encoder_of(model), TINY["depths"])
    average = {f"module.backbone.{name}": value for name, value in encoder.items()} | {"steps": torch.tensor(3)}
    torch.save({"ema_state_dict": average}, tmp_path / "a.pth")
    found = open_original(tmp_path / "a.pth")
    assert_same(found.model("a.pth"), model)
    assert found.left_out == {"counters of averaged weights": ["steps"]}


def test_copies_of_the_older_ema_hook_are_left_out(tmp_path: Path) -> None:
    """mmcv kept them as buffers of the model, dots replaced."""
    model = random_model()
    tensors = nvlabs_segmenter(model)
    tensors |= {f"ema_{name.replace('.', '_')}": torch.zeros_like(value) for name, value in list(tensors.items())[:7]}
    torch.save({"state_dict": tensors}, tmp_path / "a.pth")
    found = open_original(tmp_path / "a.pth")
    assert_same(found.model("a.pth"), model)
    assert len(found.left_out["copies that mmcv's EMA hook keeps"]) == 7


def test_head_of_the_authors_beside_the_encoder_of_mmseg(tmp_path: Path) -> None:
    """Not mmseg's own head, but one whose layers the published layout has."""
    model = random_model()
    head = {name: value for name, value in nvlabs_segmenter(model).items() if name.startswith("decode_head.")}
    encoder = mmseg_encoder(encoder_of(model), TINY["depths"])
    torch.save(
        {"state_dict": {f"backbone.{name}": value for name, value in encoder.items()} | head}, tmp_path / "a.pth"
    )
    assert_same(read_original(tmp_path / "a.pth"), model)


def libreyolo_segmenter(model: Any) -> Tensors:
    """LibreYOLO calls its modules as transformers 5 does in memory, and the encoder `encoder`."""
    names = {key: name_in_transformers_5(key).replace("segformer.", "encoder.") for key in model.state_dict()}
    return {names[key]: value for key, value in model.state_dict().items()}


def test_segmenter_of_libreyolo(tmp_path: Path) -> None:
    model = random_model()
    content = {"model": libreyolo_segmenter(model), "names": {0: "sky", 1: "road", 2: "tree"}, "nc": 3, "size": "b0"}
    assert "encoder.stages.0.blocks.0.attention.sequence_reduction.layer_norm.bias" in content["model"]
    torch.save(content, tmp_path / "LibreSegformerb0-sem.pt")
    got = read_original(tmp_path / "LibreSegformerb0-sem.pt")
    assert_same(got, model)
    assert segtune.LabelMap.from_config(got.config).names == ("sky", "road", "tree")
    assert open_original(tmp_path / "LibreSegformerb0-sem.pt").layout == "libreyolo"


def test_encoder_of_libreyolo(tmp_path: Path) -> None:
    """As its pre-training saves it, to be given as `pretrained_encoder=`."""
    model = random_model(SegformerModel)
    state = {name_in_transformers_5(key).removeprefix("encoder."): value for key, value in model.state_dict().items()}
    torch.save({"encoder": state, "size": "b0"}, tmp_path / "a.pt")
    assert_same(read_original(tmp_path / "a.pt", "libreyolo"), model)


# --- the folder that is written --------------------------------------------------------------------------------------


def test_converted_folder_is_read_by_transformers_and_trained_from(tmp_path: Path) -> None:
    model = random_model(num_channels=3)
    torch.save({"state_dict": nvlabs_segmenter(model)}, tmp_path / "a.pth")
    convert_original(tmp_path / "a.pth", tmp_path / "out")
    theirs = transformers.AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        torch.testing.assert_close(theirs(pixels(3)).logits, model(pixels(3)).logits, rtol=1e-4, atol=1e-5)
    ours = segtune.SegformerForSemanticSegmentation.from_pretrained(tmp_path / "out")
    assert not load_processor(ours).do_resize
    assert "non-commercial" in (tmp_path / "out" / "README.md").read_text()
    with pytest.raises(UsageError, match="exists already"):
        convert_original(tmp_path / "a.pth", tmp_path / "out")


def test_encoder_alone_is_a_start_for_segmentation(tmp_path: Path) -> None:
    model = random_model(SegformerModel)
    torch.save(mmseg_encoder(encoder_of(model), TINY["depths"]), tmp_path / "a.pth")
    convert_original(tmp_path / "a.pth", tmp_path / "out")
    ours, info = SegformerForSemanticSegmentation.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert all(name.startswith("decode_head.") for name in info["missing_keys"])
    assert torch.equal(ours.segformer.encoder.layer_norm[3].weight, model.encoder.layer_norm[3].weight)


# --- refusals --------------------------------------------------------------------------------------------------------


class Harmful:
    def __reduce__(self) -> Any:
        return os.system, ("touch harmed",)


def test_file_that_would_run_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": nvlabs_segmenter(random_model()), "hook": Harmful()}, tmp_path / "a.pth")
    with pytest.raises(DataError, match=r"a\.pth holds more than tensors \(\w+\.system\).*: refused"):
        convert_original(tmp_path / "a.pth", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pth"]


def test_every_tensor_must_have_its_place(tmp_path: Path) -> None:
    tensors = nvlabs_segmenter(random_model())
    tensors["backbone.block1.0.attn.rel_pos"] = torch.rand(3)
    tensors["decode_head.extra.weight"] = torch.rand(3)
    del tensors["backbone.norm2.bias"]
    torch.save(tensors, tmp_path / "a.pth")
    expected = (
        r"missing: segformer\.encoder\.layer_norm\.1\.bias; "
        r"left over: block1\.0\.attn\.rel_pos, decode_head\.extra\.weight"
    )
    with pytest.raises(DataError, match=expected):
        read_original(tmp_path / "a.pth")


def test_other_networks_and_other_files(tmp_path: Path) -> None:
    torch.save({"conv1.weight": torch.rand(2, 3)}, tmp_path / "resnet.pth")
    with pytest.raises(DataError, match=r"no SegFormer of mmseg, NVlabs or LibreYOLO: it holds conv1\.weight"):
        read_original(tmp_path / "resnet.pth")
    torch.save(nvlabs_segmenter(random_model()), tmp_path / "a.pth")
    with pytest.raises(DataError, match="no SegFormer of mmseg: it holds backbone"):
        read_original(tmp_path / "a.pth", "mmseg")
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(DataError, match=r"text\.pth"):
        read_original(tmp_path / "text.pth")
    with pytest.raises(DataError, match="no such file"):
        read_original(tmp_path / "none.pth")
    with pytest.raises(DataError, match=r"is no preset of keras-hub: it holds neither"):
        read_original(tmp_path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")
@pytest.mark.parametrize("zipped", [True, False])
def test_damaged_files_are_one_message(tmp_path: Path, zipped: bool) -> None:
    """Whatever the unpickler makes of missing or changed bytes, it is the file's fault and no traceback."""
    path, said = tmp_path / "a.pth", set()
    torch.save({"a.weight": torch.rand(2, 2), "meta": ("x", 1.5)}, path, _use_new_zipfile_serialization=zipped)
    content, generator = path.read_bytes(), random.Random(0)
    for _ in range(200):
        damaged = bytearray(content[: generator.choice((len(content), generator.randrange(1, len(content))))])
        for at in generator.choices(range(len(damaged)), k=3):
            damaged[at] = generator.randrange(256)
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"a\.pth (is no|holds more than tensors)") as refusal:
            read_original(path)
        said.add(str(refusal.value).removeprefix(str(path)).partition(":")[0])
    assert len(said) > 3


def _unfit(change: Any, tmp_path: Path) -> str:
    tensors = nvlabs_encoder(encoder_of(random_model(SegformerModel)), TINY["depths"])
    change(tensors)
    torch.save(tensors, tmp_path / "a.pth")
    with pytest.raises(DataError) as error:
        convert_original(tmp_path / "a.pth", tmp_path / "out")
    assert not (tmp_path / "out").exists() and "\n" not in str(error.value)
    assert str(error.value).startswith(str(tmp_path / "a.pth"))
    return str(error.value)


def test_tensors_that_hold_fewer_bytes_than_numbers_are_refused(tmp_path: Path) -> None:
    """One number that is said to be a million million: PyTorch stores that in a few bytes."""
    name = "patch_embed1.proj.weight"
    for change in (
        lambda tensors: tensors.update({name: torch.zeros(1).expand(2**20, 2**20)}),
        lambda tensors: tensors.update({name: tensors[name].to_sparse()}),
        lambda tensors: tensors.update({name: tensors[name].to(torch.complex64)}),
        lambda tensors: tensors.update({name: torch.empty(8, 5, 7, 7, device="meta")}),
    ):
        assert f"{name} is no plain tensor" in _unfit(change, tmp_path)


def test_shapes_that_no_layer_has_are_the_fault_of_the_file(tmp_path: Path) -> None:
    for name in ("block1.0.attn.kv.weight", "block1.0.mlp.fc1.weight", "patch_embed1.proj.weight", "norm1.weight"):
        for value in (torch.tensor(1.0), torch.zeros(0), torch.zeros(0, 3)):
            _unfit(lambda tensors, name=name, value=value: tensors.update({name: value}), tmp_path)


def test_a_packed_archive_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(10**6)}, tmp_path / "whole.pth")
    with zipfile.ZipFile(tmp_path / "whole.pth") as whole, zipfile.ZipFile(tmp_path / "a.pth", "w", 8) as packed:
        for entry in whole.infolist():
            packed.writestr(entry.filename, whole.read(entry))
    with pytest.raises(DataError, match=r"a\.pth is no checkpoint of PyTorch: it unpacks to 4,0\d\d,\d\d\d bytes"):
        open_original(tmp_path / "a.pth")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no named pipes")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.pth")
    with pytest.raises(DataError, match="is a named pipe or a device"):
        open_original(tmp_path / "a.pth")


@pytest.mark.parametrize(
    "meta",
    [
        {"CLASSES": ("sky", "road", "tree"), "PALETTE": 7},
        {"CLASSES": ("sky", "road", "tree"), "PALETTE": torch.zeros(3, 3)},
        {"CLASSES": torch.zeros(3), "PALETTE": [[1, 2, 3]] * 3},
        {"CLASSES": {"²": "a", "b": "b", 3: "c"}},
        {"CLASSES": ("sky", " ", "tree")},
        {"CLASSES": ("sky", "road", "tree"), "PALETTE": [["x"], [300, 0, 0], None]},
    ],
)
def test_classes_that_make_no_sense_do_not_hinder(tmp_path: Path, meta: dict[str, Any]) -> None:
    model = random_model()
    torch.save({"meta": meta, "state_dict": nvlabs_segmenter(model)}, tmp_path / "a.pth")
    assert_same(read_original(tmp_path / "a.pth"), model)
