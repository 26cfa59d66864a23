from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from segtune.segformer.configuration_segformer import SegformerConfig
from segtune.segformer.fused import MixFFN, NormQueryKeyValue, SumNormClassify, mix_ffn
from segtune.segformer.modeling_segformer import (
    SegformerBlock,
    SegformerDecodeHead,
    SegformerForSemanticSegmentation,
    SegformerMixFFN,
)
from support import networks

TINY = {**networks.TINY, "num_labels": 5, "drop_path_rate": 0.0}


def mix_ffn_inputs(dtype: torch.dtype, channels: int = 4, wide: int = 8) -> list[torch.Tensor]:
    torch.manual_seed(0)
    shapes = [(2, 3, 5, channels), (channels,), (channels,), (wide, channels), (wide,), (wide, 1, 3, 3), (wide,)]
    return [torch.randn(shape, dtype=dtype) for shape in [*shapes, (channels, wide), (channels,)]]


def apply_mix_ffn(
    x: torch.Tensor, norm_weight: torch.Tensor, norm_bias: torch.Tensor, *others: torch.Tensor
) -> torch.Tensor:
    return MixFFN.apply(x, norm_weight, norm_bias, 1e-5, *others)


def test_mix_ffn_gradients_against_finite_differences() -> None:
    inputs = [value.requires_grad_() for value in mix_ffn_inputs(torch.float64)]
    assert torch.autograd.gradcheck(apply_mix_ffn, inputs)


@pytest.mark.parametrize("band", [1, 100, 2**19])
def test_mix_ffn_does_not_depend_on_the_bands(band: int, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = [value.requires_grad_() for value in mix_ffn_inputs(torch.float64)]
    whole = apply_mix_ffn(*inputs)
    grads = torch.autograd.grad(whole.square().sum(), inputs)
    monkeypatch.setattr("segtune.segformer.upsampling._CPU_BAND", band)
    banded = apply_mix_ffn(*inputs)
    torch.testing.assert_close(banded, whole)
    torch.testing.assert_close(torch.autograd.grad(banded.square().sum(), inputs), grads)
    x, norm_weight, norm_bias, *others = inputs
    with torch.no_grad():
        torch.testing.assert_close(mix_ffn(x, norm_weight, norm_bias, 1e-5, *others), whole)


@pytest.mark.parametrize(("ratio", "size"), [(1, (3, 2)), (2, (4, 6)), (2, (5, 3))])
def test_query_key_value_gradients_against_finite_differences(ratio: int, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    c = 4
    shapes = [(2, *size, c), (c,), (c,), (c, c), (c,), (2 * c, c), (2 * c,)]
    shapes += [(c, ratio**2 * c), (c,), (c,), (c,)] if ratio > 1 else []
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]

    def project(x: torch.Tensor, norm_weight: torch.Tensor, norm_bias: torch.Tensor, *others: torch.Tensor) -> object:
        reduction = (*others[4:], 1e-5) if ratio > 1 else ()
        return NormQueryKeyValue.apply(x, norm_weight, norm_bias, 1e-5, *others[:4], ratio, *reduction)

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


def apply_head(noise: torch.Tensor | None, *inputs: torch.Tensor) -> torch.Tensor:
    first, weight, bias, norm_weight, norm_bias, classify_weight, classify_bias, *maps = inputs
    norm = (norm_weight, norm_bias, None, None, 0.1, 1e-5, None)
    return SumNormClassify.apply(first, weight, bias, *norm, noise, classify_weight, classify_bias, *maps)


@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize("band", [1, 2**19])
def test_head_gradients_against_finite_differences(dropout: bool, band: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segtune.segformer.upsampling._CPU_BAND", band)
    torch.manual_seed(0)
    shapes = [(2, 3, 5, 2), (4, 2), (4,), (4,), (4,), (3, 4), (3,), (2, 2, 3, 4), (2, 1, 1, 4)]
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    noise = torch.tensor([[2.0, 0, 2, 2], [0, 2, 2, 0]], dtype=torch.float64) if dropout else None
    assert torch.autograd.gradcheck(lambda *x: apply_head(noise, *x), inputs)


def test_head_with_a_frozen_encoder_gives_the_same_other_gradients() -> None:
    torch.manual_seed(0)
    shapes = [(2, 3, 5, 2), (4, 2), (4,), (4,), (4,), (3, 4), (3,), (2, 2, 3, 4)]
    inputs = [torch.randn(shape, requires_grad=True) for shape in shapes]
    full = torch.autograd.grad(apply_head(None, *inputs).square().sum(), inputs)
    inputs[0] = inputs[0].detach()
    frozen = torch.autograd.grad(apply_head(None, *inputs).square().sum(), inputs[1:])
    torch.testing.assert_close(frozen, full[1:], rtol=0, atol=0)


@pytest.mark.parametrize("p", [0.0, 0.5])
@pytest.mark.parametrize("offset", [0.0, 300.0])
def test_head_equals_its_modules(p: float, offset: float) -> None:
    """Outputs, gradients and running statistics, with the same dropout draw; with a mean far from 0 too."""
    torch.manual_seed(0)
    config = SegformerConfig(**TINY, classifier_dropout_prob=p)
    head = SegformerForSemanticSegmentation(config).decode_head.train()
    nn.init.normal_(head.batch_norm.weight)
    nn.init.normal_(head.batch_norm.bias)
    for mlp in head.linear_c:
        nn.init.normal_(mlp.proj.weight)
        nn.init.constant_(mlp.proj.bias, offset)
    nn.init.normal_(head.linear_fuse.weight)
    start = {name: value.clone() for name, value in head.state_dict().items()}
    sizes = [(9, 13), (5, 7), (3, 4), (2, 2)]
    features = [torch.randn(2, *size, c) for size, c in zip(sizes, TINY["hidden_sizes"], strict=True)]
    results = []
    for fused in (True, False):
        head.load_state_dict(start)
        head.zero_grad()
        leaves = [feature.clone().requires_grad_() for feature in features]
        torch.manual_seed(1)
        if fused:
            assert head._is_fusible()
            logits = head(leaves)
        else:
            noise = torch.empty(2, 16).bernoulli_(1 - p).div_(1 - p)[:, :, None, None] if p else 1.0
            logits = head.classifier(F.relu(head.batch_norm(head._fuse_literally(leaves))) * noise)
        logits.square().sum().backward()
        grads = {name: value.grad for name, value in head.named_parameters() if not name.endswith("proj.bias")}
        inputs = [leaf.grad for leaf in leaves]
        results.append((logits.detach(), inputs, grads, {n: v.clone() for n, v in head.batch_norm.named_buffers()}))
    tolerance = 1e-4 if offset == 0 else 5e-3  # 300 is a hundred standard deviations
    scale = results[1][2]["linear_fuse.weight"].abs().max().item()
    torch.testing.assert_close(*results, rtol=tolerance, atol=tolerance * max(1.0, scale / 10))
    assert results[0][3]["num_batches_tracked"] == 1


def test_dropout_drops_whole_channels_at_its_rate() -> None:
    torch.manual_seed(0)
    head = SegformerForSemanticSegmentation(
        SegformerConfig(**{**TINY, "decoder_hidden_size": 2000, "num_labels": 2000}, classifier_dropout_prob=0.25)
    ).decode_head.train()
    with torch.no_grad():
        head.batch_norm.bias.fill_(1.0)
        head.batch_norm.weight.zero_()  # every channel is 1 after the norm
        head.classifier.weight.copy_(torch.eye(2000)[:, :, None, None])
        head.classifier.bias.zero_()
    logits = head([torch.randn(1, 2, 2, size) for size in TINY["hidden_sizes"]])
    assert torch.equal(logits[..., 0, 0], logits[..., 1, 1])
    kept = logits[0, :, 0, 0]
    assert sorted(kept.unique().tolist()) == pytest.approx([0.0, 1 / 0.75])
    assert (kept == 0).float().mean().item() == pytest.approx(0.25, abs=0.04)


def test_fused_network_keeps_less_and_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model = SegformerForSemanticSegmentation(SegformerConfig(**TINY, classifier_dropout_prob=0.0)).train()
    pixel_values = torch.randn(2, 3, 64, 64)
    labels = torch.randint(0, 5, (2, 64, 64))
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    grads, kept = [], []
    for fused in (True, False):
        if not fused:
            monkeypatch.setattr(SegformerMixFFN, "is_fusible", lambda self: False)
            monkeypatch.setattr(SegformerDecodeHead, "_is_fusible", lambda self: False)
            monkeypatch.setattr(SegformerBlock, "_can_fuse_norm", lambda self, x: False)
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
