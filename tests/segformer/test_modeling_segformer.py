from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from segtune.segformer import upsampling
from segtune.segformer.configuration_segformer import SegformerConfig
from segtune.segformer.fused_decode_head import ComposedFusion
from segtune.segformer.modeling_segformer import (
    SegformerForImageClassification,
    SegformerForSemanticSegmentation,
    SegformerModel,
    feature_maps,
    segmentation_loss,
    valid_pixels,
)
from support import networks

TINY = networks.TINY


def tiny(**fields: object) -> SegformerForSemanticSegmentation:
    torch.manual_seed(0)
    return SegformerForSemanticSegmentation(SegformerConfig(**{"num_labels": 3, **TINY, **fields}))


def images(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def labels_of(*shape: int, num_labels: int = 3) -> torch.Tensor:
    return torch.randint(0, num_labels, shape, generator=torch.Generator().manual_seed(2))


# --- forward ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (31, 31), (16, 200), (33, 97), (64, 64)])
def test_any_size_gives_a_quarter_rounded_up(size: tuple[int, int]) -> None:
    model = tiny().eval()
    with torch.no_grad():
        output = model(images(2, 3, *size), output_hidden_states=True)
    height, width = (math.ceil(side / 4) for side in size)
    assert output.logits.shape == (2, 3, height, width)
    assert torch.isfinite(output.logits).all()
    assert output.hidden_states[-1].shape == (2, 32, *(math.ceil(side / 32) for side in size))


def test_any_number_of_channels_and_a_clear_error_for_another() -> None:
    model = tiny(num_channels=6).eval()
    assert model(images(1, 6, 32, 32)).logits.shape == (1, 3, 8, 8)
    with pytest.raises(ValueError, match=r"shape \(1, 3, 32, 32\), expected \(batch, 6, height, width\)"):
        model(images(1, 3, 32, 32))


def test_misspelt_arguments_raise() -> None:
    with pytest.raises(TypeError, match="lables"):
        tiny().forward(images(1, 3, 32, 32), lables=None)


def test_maps_are_channels_last_views() -> None:
    output = tiny().eval()(images(2, 3, 64, 48), output_hidden_states=True)
    for state in (*output.hidden_states, output.logits):
        assert state.is_contiguous(memory_format=torch.channels_last)


def test_tuple_output_and_what_it_holds() -> None:
    model = tiny().eval()
    labels = labels_of(1, 32, 32)
    loss, logits, states, attentions = model(
        images(1, 3, 32, 32), labels, output_attentions=True, output_hidden_states=True, return_dict=False
    )
    expected = model(images(1, 3, 32, 32), labels=labels)
    assert torch.equal(logits, expected.logits) or torch.allclose(logits, expected.logits, atol=1e-6)
    assert loss.shape == () and len(states) == len(attentions) == 4
    assert expected.hidden_states is None and expected.attentions is None
    encoder = SegformerModel(model.config).eval()
    assert encoder(images(1, 3, 32, 32), return_dict=False)[0].shape == (1, 32, 1, 1)


def test_attention_weights_sum_to_one() -> None:
    attentions = tiny().eval()(images(1, 3, 64, 64), output_attentions=True).attentions
    assert [tuple(a.shape) for a in attentions] == [(1, 1, 256, 4), (1, 2, 64, 4), (1, 3, 16, 4), (1, 4, 4, 4)]
    for weights in attentions:
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))


def test_last_stage_stays_a_sequence_without_reshape() -> None:
    output = SegformerModel(SegformerConfig(**TINY, reshape_last_stage=False)).eval()(images(1, 3, 64, 96))
    assert output.last_hidden_state.shape == (1, 6, 32)


def test_gradient_checkpointing_changes_nothing() -> None:
    model = tiny(drop_path_rate=0.0, classifier_dropout_prob=0.0).train()
    labels = labels_of(1, 64, 64)
    grads = []
    for checkpointing in (False, True):
        model._set_gradient_checkpointing(
            checkpointing, lambda f, *a: torch.utils.checkpoint.checkpoint(f, *a, use_reentrant=False)
        )
        assert all(block.gradient_checkpointing is checkpointing for (block,) in model.segformer.encoder.block)
        model.zero_grad()
        model(images(1, 3, 64, 64), labels=labels).loss.backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize("train", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("stages", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_compiles_as_one_graph(stages: int, train: bool) -> None:
    model = tiny(**networks.first_stages(stages), drop_path_rate=0.0, classifier_dropout_prob=0.0).train(train)
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend="aot_eager")
    inputs = {"pixel_values": images(1, 3, 40, 72), "labels": labels_of(1, 40, 72)}
    plain, fast = model(**inputs), compiled(**inputs)
    torch.testing.assert_close(fast.logits, plain.logits)
    torch.testing.assert_close(fast.loss, plain.loss)


def test_bf16_autocast_stays_near_fp32() -> None:
    model = tiny().eval()
    with torch.no_grad():
        exact = model(images(1, 3, 64, 64)).logits
        with torch.autocast("cpu", torch.bfloat16):
            rough = model(images(1, 3, 64, 64)).logits
    assert rough.dtype == torch.bfloat16
    assert (rough.float() - exact).abs().max() < 0.05 * exact.abs().max()


def test_bf16_weights_run() -> None:
    output = tiny().eval().to(torch.bfloat16)(images(1, 3, 64, 64).to(torch.bfloat16), labels=labels_of(1, 64, 64))
    assert output.logits.dtype == torch.bfloat16 and torch.isfinite(output.loss)


def test_drop_path_rises_linearly_and_drops_whole_samples() -> None:
    model = tiny(depths=(2, 2, 2, 2), drop_path_rate=0.7)
    rates = [block.drop_path.p for stage in model.segformer.encoder.block for block in stage]
    assert rates == pytest.approx([0.1 * i for i in range(8)])
    drop = model.segformer.encoder.block[3][1].drop_path.train()
    torch.manual_seed(0)
    out = drop(torch.ones(4000, 1, 1, 2))
    assert sorted(out.unique().tolist()) == pytest.approx([0.0, 1 / 0.3])
    assert torch.equal(out[..., 0], out[..., 1])
    assert out.mean().item() == pytest.approx(1.0, abs=0.1)


# --- decode head -----------------------------------------------------------------------------------------------------


def literal_logits(model: SegformerForSemanticSegmentation, pixel_values: torch.Tensor) -> torch.Tensor:
    states = model.segformer(pixel_values, output_hidden_states=True).hidden_states
    features = feature_maps(states, model.config)
    head = model.decode_head
    return head.classifier(head.dropout(F.relu(head.batch_norm(head._fuse(features)))))


@pytest.mark.parametrize("train", [False, True])
def test_composed_head_equals_the_literal_one(train: bool) -> None:
    model = tiny(classifier_dropout_prob=0.0, drop_path_rate=0.0).train(train)
    nn.init.uniform_(model.decode_head.batch_norm.running_var, 0.5, 2.0)
    nn.init.normal_(model.decode_head.batch_norm.running_mean)
    for mlp in model.decode_head.linear_c:
        nn.init.normal_(mlp.proj.bias)
    torch.testing.assert_close(
        model(images(2, 3, 65, 97)).logits, literal_logits(model, images(2, 3, 65, 97)), rtol=1e-4, atol=1e-5
    )


class Doubled(nn.Linear):
    """Stands for an adapted or quantised projection: its output is not that of its stored weight."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


@pytest.mark.parametrize("where", ["projection", "hook", "key", "sr"])
def test_replaced_or_hooked_modules_are_called(where: str) -> None:
    model = tiny(initializer_range=0.3).eval()
    before = model(images(1, 3, 64, 64)).logits
    head, attention = model.decode_head, model.segformer.encoder.block[0][0].attention.self
    if where == "projection":
        head.linear_c[1].proj = Doubled(16, 16)
    elif where == "key":
        attention.key = Doubled(8, 8)
    elif where == "sr":
        attention.sr.register_forward_hook(lambda module, args, out: 2 * out)
    else:
        head.linear_c[0].proj.register_forward_hook(lambda module, args, out: out + 1)
    after = model(images(1, 3, 64, 64)).logits
    assert not torch.allclose(before, after, atol=1e-6)
    if where in ("projection", "hook"):
        assert not ComposedFusion.applies(head, [])
        torch.testing.assert_close(after, literal_logits(model, images(1, 3, 64, 64)))


def test_frozen_batch_norm_in_training_uses_its_statistics() -> None:
    model = tiny(classifier_dropout_prob=0.0, drop_path_rate=0.0).train()
    model.decode_head.batch_norm.eval()
    frozen = model(images(2, 3, 32, 32)).logits
    torch.testing.assert_close(frozen, model.eval()(images(2, 3, 32, 32)).logits)
    model.train()(images(2, 3, 32, 32))
    assert model.decode_head.batch_norm.num_batches_tracked == 1


@pytest.mark.parametrize("strip", [1, 1000, 10**9])
@pytest.mark.parametrize("autocast", [False, True])
def test_strips_of_any_height_give_the_same_logits(strip: int, autocast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny(initializer_range=0.3).eval()
    nn.init.normal_(model.decode_head.batch_norm.running_mean)
    for size in ((65, 97), (128, 64), (5, 40)):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            whole = model(images(2, 3, *size)).logits.detach()  # with autograd, nothing runs in strips
            monkeypatch.setattr(upsampling, "_CPU_STRIP", strip)
            with torch.no_grad():
                in_strips = model(images(2, 3, *size)).logits
            monkeypatch.undo()
        assert (
            in_strips.dtype == whole.dtype and in_strips.is_contiguous()
        )  # one plane a label, as the prediction reads it
        tolerance = 0.05 if autocast else 1e-5
        assert (in_strips.float() - whole.float()).abs().max() <= tolerance * whole.float().abs().max()


def test_dropout_that_is_on_counts_without_autograd_too() -> None:
    """With a frozen batch norm, or to sample predictions: the head may not skip it for running in strips."""
    model = tiny(classifier_dropout_prob=0.5, initializer_range=0.3).eval()
    with torch.no_grad():
        quiet = model(images(1, 3, 64, 64)).logits
        model.decode_head.dropout.train()
        first, second = (model(images(1, 3, 64, 64)).logits for _ in range(2))
    assert not torch.allclose(first, quiet) and not torch.allclose(first, second)


# --- loss ------------------------------------------------------------------------------------------------------------


def test_loss_is_the_mean_over_valid_pixels() -> None:
    logits, labels = images(2, 3, 4, 6), labels_of(2, 16, 24)
    labels[0, :8] = 255
    expected = F.cross_entropy(
        F.interpolate(logits, size=(16, 24), mode="bilinear", align_corners=False), labels, ignore_index=255
    )
    torch.testing.assert_close(segmentation_loss(logits, labels), expected)
    total = segmentation_loss(logits, labels, reduction="sum")
    torch.testing.assert_close(total / valid_pixels(labels), expected)
    assert valid_pixels(labels) == (labels != 255).sum()


@pytest.mark.parametrize("num_labels", [1, 3])
def test_all_ignored_batch_gives_zero_loss_and_finite_gradients(num_labels: int) -> None:
    model = tiny(num_labels=num_labels).train()
    loss = model(images(2, 3, 32, 32), labels=torch.full((2, 32, 32), 255)).loss
    loss.backward()
    assert loss.item() == 0
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in model.parameters())


def test_binary_loss_ignores_and_divides_by_valid_pixels() -> None:
    logits = torch.zeros(1, 1, 2, 2, requires_grad=True)
    labels = torch.tensor([[[1, 0], [255, 255]]])
    loss = segmentation_loss(logits, labels)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2))
    torch.testing.assert_close(logits.grad, torch.tensor([[[[-0.25, 0.25], [0.0, 0.0]]]]))


def test_binary_model_learns() -> None:
    model = tiny(num_labels=1).train()
    pixel_values = images(2, 3, 32, 32)
    labels = torch.zeros(2, 32, 32, dtype=torch.long)
    labels[1], labels[:, :4] = 1, 255
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(40):
        loss = model(pixel_values, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_ignore_index_that_is_a_label_and_labels_of_a_wrong_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="ignore_index=2 is one of the 3 labels"):
        segmentation_loss(images(1, 3, 4, 4), labels_of(1, 16, 16), ignore_index=2)
    with pytest.raises(ValueError, match=r"labels has shape \(1, 1, 16, 16\), expected \(1, height, width\)"):
        segmentation_loss(images(1, 3, 4, 4), labels_of(1, 1, 16, 16))


def test_classifier_losses() -> None:
    config = SegformerConfig(**TINY, num_labels=4)
    output = SegformerForImageClassification(config)(images(2, 3, 32, 32), labels=torch.tensor([0, 3]))
    torch.testing.assert_close(output.loss, F.cross_entropy(output.logits, torch.tensor([0, 3])))
    regressor = SegformerForImageClassification(SegformerConfig(**TINY, num_labels=1))
    output = regressor(images(2, 3, 32, 32), labels=torch.tensor([0.5, 2.0]))
    torch.testing.assert_close(output.loss, F.mse_loss(output.logits[:, 0], torch.tensor([0.5, 2.0])))


# --- initialisation --------------------------------------------------------------------------------------------------


def test_initial_weights() -> None:
    model = tiny(hidden_sizes=(64, 64, 60, 64), depths=(1, 1, 1, 1))
    block = model.segformer.encoder.block[0][0]
    assert block.attention.self.query.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert block.mlp.dwconv.dwconv.weight.std().item() == pytest.approx((2 / 9) ** 0.5, rel=0.1)
    assert model.decode_head.classifier.weight.std().item() == pytest.approx(0.02, rel=0.5)
    assert torch.equal(block.layer_norm_1.weight, torch.ones(64)) and not block.mlp.dense1.bias.any()
