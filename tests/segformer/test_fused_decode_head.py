from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from segtune.segformer.configuration_segformer import SegformerConfig
from segtune.segformer.fused_decode_head import FusedDecodeHead, HeadWeights, SumNormClassify
from segtune.segformer.modeling_segformer import SegformerForSemanticSegmentation, feature_maps
from support import networks

TINY = {**networks.TINY, "num_labels": 5, "drop_path_rate": 0.0}


def apply_head(noise: torch.Tensor | None, *inputs: torch.Tensor) -> torch.Tensor:
    first, weight, bias, norm_weight, norm_bias, classify_weight, classify_bias, *maps = inputs
    weights = HeadWeights(weight, bias, norm_weight, norm_bias, classify_weight, classify_bias)
    return SumNormClassify.apply(first, noise, nn.BatchNorm2d(4, track_running_stats=False), *weights, *maps)


@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize("strip", [1, 2**19])
def test_head_gradients_against_finite_differences(dropout: bool, strip: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segtune.segformer.upsampling._CPU_STRIP", strip)
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
    features = [torch.randn(2, c, *size) for size, c in zip(sizes, TINY["hidden_sizes"], strict=True)]
    results = []
    for fused in (True, False):
        head.load_state_dict(start)
        head.zero_grad()
        leaves = [feature.clone().requires_grad_() for feature in features]
        torch.manual_seed(1)
        if fused:
            assert FusedDecodeHead.applies(head, leaves)
            logits = head(leaves)
        else:
            noise = torch.empty(2, 16).bernoulli_(1 - p).div_(1 - p)[:, :, None, None] if p else 1.0
            logits = head.classifier(F.relu(head.batch_norm(head._fuse(feature_maps(leaves, head.config)))) * noise)
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
    logits = head([torch.randn(1, size, 2, 2) for size in TINY["hidden_sizes"]])
    assert torch.equal(logits[..., 0, 0], logits[..., 1, 1])
    kept = logits[0, :, 0, 0]
    assert sorted(kept.unique().tolist()) == pytest.approx([0.0, 1 / 0.75])
    assert (kept == 0).float().mean().item() == pytest.approx(0.25, abs=0.04)
