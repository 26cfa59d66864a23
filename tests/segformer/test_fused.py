from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from segtune.segformer.configuration_segformer import SegformerConfig
from segtune.segformer.fused import MixFFN, NormReluClassify
from segtune.segformer.modeling_segformer import (
    SegformerDecodeHead,
    SegformerForSemanticSegmentation,
    SegformerMixFFN,
)

TINY = {
    "hidden_sizes": (8, 16, 24, 32),
    "depths": (1, 1, 1, 1),
    "num_attention_heads": (1, 2, 3, 4),
    "decoder_hidden_size": 16,
    "num_labels": 5,
    "drop_path_rate": 0.0,
}


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


def apply_classify(
    x: torch.Tensor,
    norm_weight: torch.Tensor,
    norm_bias: torch.Tensor,
    noise: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor,
) -> torch.Tensor:
    return NormReluClassify.apply(x, norm_weight, norm_bias, None, None, 0.1, 1e-5, noise, weight, bias)


@pytest.mark.parametrize("dropout", [False, True])
def test_classifier_gradients_against_finite_differences(dropout: bool) -> None:
    torch.manual_seed(0)
    shapes = [(2, 4, 3, 5), (4,), (4,), (3, 4), (3,)]
    x, norm_weight, norm_bias, weight, bias = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes)
    noise = torch.tensor([[2.0, 0, 2, 2], [0, 2, 2, 0]], dtype=torch.float64) if dropout else None
    assert torch.autograd.gradcheck(apply_classify, (x, norm_weight, norm_bias, noise, weight, bias))


@pytest.mark.parametrize("p", [0.0, 0.5])
def test_head_equals_its_modules(p: float) -> None:
    """Outputs, gradients and running statistics, with the same dropout draw."""
    torch.manual_seed(0)
    head = SegformerForSemanticSegmentation(SegformerConfig(**TINY, classifier_dropout_prob=p)).decode_head.train()
    nn.init.normal_(head.batch_norm.weight)
    nn.init.normal_(head.batch_norm.bias)
    start = {name: value.clone() for name, value in head.state_dict().items()}
    x = torch.randn(2, 16, 6, 7).contiguous(memory_format=torch.channels_last)
    results = []
    for fused in (True, False):
        head.load_state_dict(start)
        head.zero_grad()
        leaf = x.clone().requires_grad_()
        torch.manual_seed(1)
        if fused:
            assert head._is_fusible()
            logits = head._classify_fused(leaf)
        else:
            noise = torch.empty(2, 16).bernoulli_(1 - p).div_(1 - p)[:, :, None, None] if p else 1.0
            logits = head.classifier(F.relu(head.batch_norm(leaf)) * noise)
        logits.square().sum().backward()
        grads = {name: value.grad for name, value in head.named_parameters() if value.grad is not None}
        results.append((logits.detach(), leaf.grad, grads, {n: v.clone() for n, v in head.batch_norm.named_buffers()}))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)
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
    logits = head._classify_fused(torch.randn(1, 2000, 2, 2))
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
    assert kept[0] < 0.75 * kept[1]


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
