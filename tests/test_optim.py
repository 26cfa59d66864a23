from __future__ import annotations

import pytest
import torch

from segtune.optim import adamw, parameter_groups, poly_factor, set_learning_rate
from segtune.segformer.configuration_segformer import SegformerConfig
from segtune.segformer.modeling_segformer import SegformerForSemanticSegmentation


def test_groups_follow_the_paper() -> None:
    model = SegformerForSemanticSegmentation(SegformerConfig(depths=(1, 1, 1, 1)))
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


def test_schedule_by_hand() -> None:
    factors = [poly_factor(step, 10, 4, start_factor=0.2) for step in range(10)]
    assert factors == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])
    assert poly_factor(10, 10, 4) == 0.0
    assert [poly_factor(step, 4, 0, power=2.0) for step in range(4)] == pytest.approx([1.0, 9 / 16, 4 / 16, 1 / 16])
    assert poly_factor(3, 4, 0, power=0.0) == 1.0


def test_rate_is_set_from_the_base_of_each_group() -> None:
    weight, bias = torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(2))
    groups = [{"params": [weight], "lr": 1.0, "base_lr": 1.0}, {"params": [bias], "lr": 10.0, "base_lr": 10.0}]
    optimizer = adamw(groups, (0.9, 0.999))
    set_learning_rate(optimizer, 0.5)
    set_learning_rate(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 2.5]
