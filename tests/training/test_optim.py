from __future__ import annotations

import pytest
import torch
from torch import nn

from segtune.errors import UsageError
from segtune.segformer.configuration_segformer import SegformerConfig
from segtune.segformer.modeling_segformer import SegformerDropPath, SegformerForSemanticSegmentation
from segtune.training.config import FreezeConfig
from segtune.training.optim import (
    adamw,
    freeze,
    parameter_groups,
    schedule_factor,
    set_learning_rate,
    train_mode,
)


def tiny(depths: tuple[int, ...] = (1, 1, 1, 1)) -> SegformerForSemanticSegmentation:
    torch.manual_seed(0)
    return SegformerForSemanticSegmentation(
        SegformerConfig(
            depths=depths,
            hidden_sizes=(8, 16, 24, 32),
            num_attention_heads=(1, 2, 3, 4),
            decoder_hidden_size=16,
            num_labels=5,
            drop_path_rate=0.5,
        )
    )


# --- parameter groups ------------------------------------------------------------------------------------------------


def test_groups_follow_the_paper() -> None:
    model = tiny()
    frozen = model.segformer.encoder.patch_embeddings[0].proj.weight.requires_grad_(False)
    groups = {group["name"]: group for group in parameter_groups(model, 6e-5, 0.01, 10.0)}
    assert list(groups) == ["encoder_decay", "encoder_no_decay", "head_decay", "head_no_decay"]
    assert {name: (group["lr"], group["weight_decay"]) for name, group in groups.items()} == {
        "encoder_decay": (6e-5, 0.01),
        "encoder_no_decay": (6e-5, 0.0),
        "head_decay": (pytest.approx(6e-4), 0.01),
        "head_no_decay": (pytest.approx(6e-4), 0.0),
    }
    grouped = [id(p) for group in groups.values() for p in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(p) for p in model.parameters()} - {id(frozen)}
    no_decay = {id(p) for name in ("encoder_no_decay", "head_no_decay") for p in groups[name]["params"]}
    for name, parameter in model.named_parameters():
        if "norm" in name or name.endswith("bias"):
            assert id(parameter) in no_decay, name
    assert id(model.decode_head.classifier.weight) in {id(p) for p in groups["head_decay"]["params"]}


def test_rate_falls_from_block_to_block() -> None:
    model = tiny(depths=(2, 1, 2, 1))
    groups = parameter_groups(model, 1.0, 0.01, 10.0, layer_decay=0.5)
    assert [group["name"] for group in groups][::2] == [
        "encoder_stage4_block1_decay",
        "encoder_stage3_block2_decay",
        "encoder_stage3_block1_decay",
        "encoder_stage2_block1_decay",
        "encoder_stage1_block2_decay",
        "encoder_stage1_block1_decay",
        "head_decay",
    ]
    rates = {id(p): group["base_lr"] for group in groups for p in group["params"]}
    assert {id(p) for p in model.parameters()} == set(rates)
    expected = {
        "encoder.patch_embeddings.0.proj.weight": 1 / 32,
        "encoder.block.0.0.mlp.dense1.weight": 1 / 32,
        "encoder.block.0.1.attention.self.query.bias": 1 / 16,
        "encoder.layer_norm.0.weight": 1 / 16,
        "encoder.patch_embeddings.1.layer_norm.bias": 1 / 8,
        "encoder.layer_norm.1.weight": 1 / 8,
        "encoder.patch_embeddings.2.proj.bias": 1 / 4,
        "encoder.block.2.1.layer_norm_1.weight": 1 / 2,
        "encoder.layer_norm.2.bias": 1 / 2,
        "encoder.patch_embeddings.3.proj.weight": 1.0,
        "encoder.layer_norm.3.bias": 1.0,
    }
    assert {name: rates[id(model.segformer.get_parameter(name))] for name in expected} == expected
    assert rates[id(model.decode_head.classifier.weight)] == 10.0
    assert all(group["lr"] == group["base_lr"] for group in groups)


def test_layers_keep_their_rate_when_others_are_frozen() -> None:
    model = tiny()
    freeze(model, FreezeConfig(stages=(4,)))
    groups = parameter_groups(model, 1.0, 0.01, 1.0, layer_decay=0.5)
    assert (groups[0]["name"], groups[0]["lr"]) == ("encoder_stage3_block1_decay", 0.5)


def test_rate_is_set_from_the_base_of_each_group() -> None:
    weight, bias = torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(2))
    groups = [{"params": [weight], "lr": 1.0, "base_lr": 1.0}, {"params": [bias], "lr": 10.0, "base_lr": 10.0}]
    optimizer = adamw(groups, (0.9, 0.999))
    set_learning_rate(optimizer, 0.5)
    set_learning_rate(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 2.5]


# --- learning rate ---------------------------------------------------------------------------------------------------


def test_poly_by_hand() -> None:
    factors = [schedule_factor("poly", step, 10, 4, start_factor=0.2) for step in range(11)]
    assert factors == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6, 0.0])
    squares = [schedule_factor("poly", step, 4, 0, power=2.0) for step in range(4)]
    assert squares == pytest.approx([1.0, 9 / 16, 4 / 16, 1 / 16])


def test_cosine_by_hand() -> None:
    root = 2**0.5 / 4
    factors = [schedule_factor("cosine", step, 6, 2, start_factor=0.5) for step in range(7)]
    assert factors == pytest.approx([0.5, 0.75, 1.0, 0.5 + root, 0.5, 0.5 - root, 0.0])


def test_constant_warms_up_too() -> None:
    assert [schedule_factor("constant", step, 4, 2, start_factor=0.0) for step in range(5)] == [0, 0.5, 1, 1, 1]


def test_wsd_by_hand() -> None:
    factors = [schedule_factor("wsd", step, 10, 2, start_factor=0.0, decay_share=0.4) for step in range(11)]
    assert factors == pytest.approx([0, 0.5, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0])
    squares = [schedule_factor("wsd", step, 10, 0, power=2.0, decay_share=0.2) for step in (7, 8, 9, 10)]
    assert squares == pytest.approx([1, 1, 0.25, 0])


def test_wsd_falls_over_at_most_what_the_warm_up_leaves() -> None:
    factors = [schedule_factor("wsd", step, 6, 2, decay_share=1.0) for step in range(2, 7)]
    assert factors == [schedule_factor("poly", step, 6, 2) for step in range(2, 7)]
    assert [schedule_factor("wsd", step, 4, 0, decay_share=0.0) for step in range(4)] == [1, 1, 1, 1]


def test_unknown_schedule_is_refused() -> None:
    with pytest.raises(ValueError, match="'linear' does not exist: choose one of poly, cosine, constant, wsd"):
        schedule_factor("linear", 0, 10, 5)  # type: ignore[arg-type]


# --- frozen parts ----------------------------------------------------------------------------------------------------


def trainable(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_frozen_stages_do_not_learn() -> None:
    model = tiny()
    freeze(model, FreezeConfig(stages=(1, 3)))
    assert {name for name, _ in model.named_parameters()} - trainable(model) == {
        f"segformer.encoder.{name}"
        for name, _ in model.segformer.encoder.named_parameters()
        if name.split(".")[1] in {"0", "2"}
    }
    model = tiny()
    freeze(model, FreezeConfig(encoder=True))
    assert trainable(model) == {f"decode_head.{name}" for name, _ in model.decode_head.named_parameters()}


def test_a_step_leaves_frozen_weights_as_they_were() -> None:
    model, config = tiny(), FreezeConfig(stages=(1, 2))
    freeze(model, config)
    train_mode(model, config)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = adamw(parameter_groups(model, 0.1, 0.01, 1.0), (0.9, 0.999))
    model(torch.randn(2, 3, 64, 64), labels=torch.randint(0, 5, (2, 64, 64))).loss.backward()
    optimizer.step()
    unchanged = {name for name, value in model.state_dict().items() if torch.equal(value, before[name])}
    expected = {name for name in before if name.startswith("segformer.") and name.split(".")[3] in {"0", "1"}}
    assert len(expected) > 40
    # a key's bias adds the same to all scores of a query: its gradient is zero up to rounding
    assert {name for name in unchanged ^ expected if not name.endswith("key.bias")} == set()


def test_frozen_stages_run_without_drop_path_whatever_wraps_the_model() -> None:
    model, config = tiny(), FreezeConfig(stages=(1, 2))
    wrapped = nn.Sequential(model)
    for _ in range(2):  # in evaluation and back
        wrapped.eval()
        train_mode(wrapped, config, "frozen")
    drops = [module.training for module in model.modules() if isinstance(module, SegformerDropPath)]
    assert drops == [False, False, True, True]
    assert not model.decode_head.batch_norm.training and model.decode_head.dropout.training
    train_mode(wrapped, FreezeConfig())
    assert all(module.training for module in wrapped.modules())


def test_frozen_statistics_stay_while_the_scale_learns() -> None:
    model = tiny()
    train_mode(model, FreezeConfig(), "frozen")
    assert trainable(model) == {name for name, _ in model.named_parameters()}
    before = {name: value.clone() for name, value in model.decode_head.batch_norm.named_buffers()}
    model(torch.randn(2, 3, 64, 64), labels=torch.randint(0, 5, (2, 64, 64))).loss.backward()
    assert all(torch.equal(value, before[name]) for name, value in model.decode_head.batch_norm.named_buffers())
    assert model.decode_head.batch_norm.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("stage", [0, 5])
def test_stage_that_is_not_there_is_named(stage: int) -> None:
    with pytest.raises(UsageError, match=rf"freeze.stages names stage {stage}, but the encoder has the stages 1 to 4"):
        freeze(tiny(), FreezeConfig(stages=(stage,)))
