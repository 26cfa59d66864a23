from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from segtune.hub.stage import AUTO_MAPS, CODE_FILES
from segtune.segformer import fused
from segtune.segformer.configuration_segformer import SegformerConfig
from segtune.segformer.fused import (
    FusedMixFFN,
    FusedProjections,
    JointKeyValue,
    MatrixReduction,
    MixFFN,
    MixFFNWeights,
    NormQueryKeyValue,
    ProjectionWeights,
    is_plain,
    mix_ffn,
)
from segtune.segformer.fused_decode_head import ComposedFusion, FusedDecodeHead, StripDecodeHead
from segtune.segformer.modeling_segformer import SegformerForSemanticSegmentation, SegformerMLP
from support import networks

TINY = {**networks.TINY, "num_labels": 5, "drop_path_rate": 0.0}


@pytest.mark.parametrize("grad", [False, True])
def test_each_fast_path_applies_to_an_untouched_network(grad: bool) -> None:
    model = SegformerForSemanticSegmentation(SegformerConfig(**TINY)).train(grad)
    features = [torch.zeros(1, 8, 8, size) for size in TINY["hidden_sizes"]]
    with torch.set_grad_enabled(grad):
        for (block,) in model.segformer.encoder.block:
            attention = block.attention.self
            assert FusedMixFFN.applies(block, torch.zeros(1, 8, 8, 8))
            assert FusedProjections.applies(block, torch.zeros(1, 8, 8, 1))
            assert JointKeyValue.applies(attention, torch.zeros(1, 8, 8))
            assert attention.ratio == 1 or MatrixReduction.applies(attention, torch.zeros(1, 8, 8, 8))
        assert ComposedFusion.applies(model.decode_head, features)
        assert FusedDecodeHead.applies(model.decode_head, features) is grad
        assert StripDecodeHead.applies(model.decode_head, features) is not grad


def test_a_class_of_the_same_name_elsewhere_is_not_plain() -> None:
    assert is_plain(SegformerMLP(2, 3), "SegformerMLP")
    assert not is_plain(type("SegformerMLP", (SegformerMLP,), {})(2, 3), "SegformerMLP")
    assert not is_plain(type("Linear", (nn.Linear,), {})(2, 3), nn.Linear)


def mix_ffn_inputs(dtype: torch.dtype, channels: int = 4, wide: int = 8) -> list[torch.Tensor]:
    torch.manual_seed(0)
    shapes = [(2, 3, 5, channels), (channels,), (channels,), (wide, channels), (wide,), (wide, 1, 3, 3), (wide,)]
    return [torch.randn(shape, dtype=dtype) for shape in [*shapes, (channels, wide), (channels,)]]


def apply_mix_ffn(x: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
    return MixFFN.apply(x, 1e-5, *MixFFNWeights(*weights))


def test_mix_ffn_gradients_against_finite_differences() -> None:
    inputs = [value.requires_grad_() for value in mix_ffn_inputs(torch.float64)]
    assert torch.autograd.gradcheck(apply_mix_ffn, inputs)


@pytest.mark.parametrize("strip", [1, 100, 2**19])
def test_mix_ffn_does_not_depend_on_the_strips(strip: int, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = [value.requires_grad_() for value in mix_ffn_inputs(torch.float64)]
    whole = apply_mix_ffn(*inputs)
    grads = torch.autograd.grad(whole.square().sum(), inputs)
    monkeypatch.setattr("segtune.segformer.upsampling._CPU_STRIP", strip)
    in_strips = apply_mix_ffn(*inputs)
    torch.testing.assert_close(in_strips, whole)
    torch.testing.assert_close(torch.autograd.grad(in_strips.square().sum(), inputs), grads)
    with torch.no_grad():
        torch.testing.assert_close(mix_ffn(inputs[0], 1e-5, MixFFNWeights(*inputs[1:])), whole)


@pytest.mark.parametrize(("ratio", "size"), [(1, (3, 2)), (2, (4, 6)), (2, (5, 3))])
def test_query_key_value_gradients_against_finite_differences(ratio: int, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    c = 4
    shapes = [(2, *size, c), (c,), (c,), (c, c), (c,), (2 * c, c), (2 * c,)]
    shapes += [(c, ratio**2 * c), (c,), (c,), (c,)] if ratio > 1 else []
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]

    def project(x: torch.Tensor, *weights: torch.Tensor) -> object:
        return NormQueryKeyValue.apply(x, ratio, 1e-5, 1e-5, *ProjectionWeights(*weights))

    assert torch.autograd.gradcheck(project, inputs)


def test_mix_ffn_equals_its_formula() -> None:
    x, norm_weight, norm_bias, weight1, bias1, conv, conv_bias, weight2, bias2 = mix_ffn_inputs(torch.float32)
    y = F.linear(F.layer_norm(x, (4,), norm_weight, norm_bias, 1e-5), weight1, bias1).permute(0, 3, 1, 2)
    y = F.gelu(F.conv2d(y, conv, conv_bias, padding=1, groups=8)).permute(0, 2, 3, 1)
    got = apply_mix_ffn(x, norm_weight, norm_bias, weight1, bias1, conv, conv_bias, weight2, bias2)
    torch.testing.assert_close(got, F.linear(y, weight2, bias2))


def test_mix_ffn_with_frozen_weights_passes_the_gradient_on() -> None:
    inputs = mix_ffn_inputs(torch.float64)
    inputs[0].requires_grad_()
    assert torch.autograd.gradcheck(apply_mix_ffn, inputs)
    apply_mix_ffn(*inputs).sum().backward()
    assert all(value.grad is None for value in inputs[1:])


def test_fused_network_keeps_less_and_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model = SegformerForSemanticSegmentation(SegformerConfig(**TINY, classifier_dropout_prob=0.0)).train()
    pixel_values = torch.randn(2, 3, 64, 64)
    labels = torch.randint(0, 5, (2, 64, 64))
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    grads, kept = [], []
    for fast in (True, False):
        if not fast:
            for path in (FusedProjections, FusedMixFFN, FusedDecodeHead):
                monkeypatch.setattr(path, "applies", lambda *_: False)
        storages: dict[int, int] = {}

        def pack(tensor: torch.Tensor, storages: dict[int, int] = storages) -> torch.Tensor:
            if tensor.untyped_storage().data_ptr() not in parameters:
                storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        model.zero_grad()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = model(pixel_values, labels=labels).loss
        loss.backward()
        kept.append(sum(storages.values()))
        grads.append([parameter.grad.clone() for parameter in model.parameters()])
    torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-6)
    assert kept[0] < 0.5 * kept[1]


def test_bf16_autocast_trains() -> None:
    torch.manual_seed(0)
    model = SegformerForSemanticSegmentation(SegformerConfig(**TINY, classifier_dropout_prob=0.1)).train()
    pixel_values, labels = torch.randn(2, 3, 64, 64), torch.randint(0, 5, (2, 64, 64))
    grads = []
    for enabled in (True, False):
        model.zero_grad()
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = model(pixel_values, labels=labels).loss
        loss.backward()
        grads.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    assert torch.isfinite(grads[0]).all()
    assert F.cosine_similarity(*grads, dim=0) > 0.98


def test_second_derivative_is_refused() -> None:
    inputs = [value.requires_grad_() for value in mix_ffn_inputs(torch.float32)]
    with pytest.raises(RuntimeError, match="the Mix-FFN keeps too little for a second derivative"):
        torch.autograd.grad(apply_mix_ffn(*inputs).sum(), inputs[0], create_graph=True)


@pytest.mark.slow
def test_fast_paths_apply_to_code_from_the_hub(tmp_path: Path) -> None:
    """There the network's files belong to another package, whose classes are plain in their turn."""
    for name in CODE_FILES:
        shutil.copy(Path(fused.__file__).with_name(name), tmp_path / name)
    model = SegformerForSemanticSegmentation(SegformerConfig(**TINY))
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"auto_map": AUTO_MAPS["config.json"]}))
    code = (
        "import sys, torch\n"
        "from transformers import AutoModelForSemanticSegmentation as Auto\n"
        f"model = Auto.from_pretrained({str(tmp_path)!r}, trust_remote_code=True).train()\n"
        "assert not any(name.split('.')[0] == 'segtune' for name in sys.modules)\n"
        "network = sys.modules[type(model).__module__]\n"
        "block = model.segformer.encoder.block[0][0]\n"
        "x = torch.zeros(1, 8, 8, 8)\n"
        "print(network.FusedMixFFN.applies(block, x), network.FusedProjections.applies(block, x))\n"
        "print(network.FusedDecodeHead.applies(model.decode_head, [x]))\n"
    )
    environment = {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules"), "PATH": "/usr/bin:/bin"}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=240)
    assert result.stdout.split() == ["True"] * 3, result.stderr
