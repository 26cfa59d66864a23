"""transformers' models, already in memory, as ours: the same parameters, the same answers, clear refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import nn

import segtune
from segtune.errors import UsageError
from segtune.inference.processor import load_processor
from segtune.segformer.conversion import from_transformers
from segtune.segformer.parameter_names import published_name

TINY = {"depths": [1, 2, 1, 1], "hidden_sizes": [8, 16, 24, 32], "decoder_hidden_size": 16}
ODD = {"num_channels": 4, "sr_ratios": [4, 2, 1, 1], "strides": [2, 2, 2, 2], "mlp_ratios": [2, 3, 4, 2]}
SEGMENTATION, CLASSIFICATION, ENCODER = NAMES = [
    "SegformerForSemanticSegmentation",
    "SegformerForImageClassification",
    "SegformerModel",
]


def theirs(name: str = SEGMENTATION, **fields: Any) -> Any:
    """A transformers model whose biases, norms and running statistics are away from their defaults."""
    torch.manual_seed(0)
    settings = {**TINY, "num_attention_heads": [1, 2, 3, 4], "num_labels": 5, **fields}
    model = getattr(transformers, name)(transformers.SegformerConfig(**settings))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    if name == SEGMENTATION:
        nn.init.uniform_(model.decode_head.batch_norm.running_var, 0.5, 2.0)
    return model.eval()


def pixels(model: Any, *size: int) -> torch.Tensor:
    return torch.randn(2, model.config.num_channels, *size, generator=torch.Generator().manual_seed(1))


# --- the same network ------------------------------------------------------------------------------------------------


B0 = {"depths": [2, 2, 2, 2], "hidden_sizes": [32, 64, 160, 256], "num_attention_heads": [1, 2, 5, 8]}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("fields", [{}, ODD, {**B0, "decoder_hidden_size": 256}], ids=["tiny", "odd", "b0"])
def test_same_answers_from_the_same_tensors(name: str, fields: dict[str, Any]) -> None:
    model = theirs(name, **fields)
    ours = segtune.from_transformers(model)
    assert type(ours) is getattr(segtune, name)
    for tensors in ("parameters", "buffers"):
        found = [{id(tensor) for tensor in getattr(each, tensors)()} for each in (ours, model)]
        assert found[0] == found[1]
    with torch.no_grad():
        expected, got = (each(pixels(model, 65, 97))[0] for each in (model, ours))
    assert (got - expected).abs().max() <= 2e-5 * expected.abs().max()


def test_names_of_transformers_4_are_the_published_ones() -> None:
    """Our modules carry them, so that a model with them finds each tensor at its own place."""

    ours = from_transformers(theirs())
    assert [published_name(name) for name in ours.state_dict()] == list(ours.state_dict())


def test_saved_files_are_those_of_transformers(tmp_path: Path) -> None:
    model = theirs()
    model.save_pretrained(tmp_path / "theirs")
    from_transformers(model).save_pretrained(tmp_path / "ours")
    expected, got = (load_file(tmp_path / side / "model.safetensors") for side in ("theirs", "ours"))
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[key], got[key]) for key in expected)


def test_gradients_and_steps_are_shared() -> None:
    model = theirs(classifier_dropout_prob=0.0, drop_path_rate=0.0).train()
    ours = from_transformers(model)
    labels = torch.randint(0, 5, (2, 64, 64))
    gradients = []
    for each in (model, ours):
        model.zero_grad()
        each(pixel_values=pixels(model, 64, 64), labels=labels).loss.backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for expected, got in zip(*gradients, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-5)
    assert ours.decode_head.classifier.weight.grad is model.decode_head.classifier.weight.grad
    assert model.decode_head.batch_norm.num_batches_tracked == 2
    torch.optim.SGD(ours.parameters(), lr=0.1).step()
    with torch.no_grad():
        expected, got = (each.eval()(pixels(model, 64, 64)).logits for each in (model, ours))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_no_random_numbers_are_drawn() -> None:
    model = theirs()
    before = torch.get_rng_state()
    from_transformers(model)
    assert torch.equal(torch.get_rng_state(), before)


# --- its state -------------------------------------------------------------------------------------------------------


def test_config_dtype_and_frozen_parameters_are_kept() -> None:
    model = theirs(id2label={0: "sky", 1: "road"}, label2id={"sky": 0, "road": 1}, num_labels=2).to(torch.bfloat16)
    model.segformer.requires_grad_(False)
    model.config.note = "ours"  # a field that nobody knows
    ours = from_transformers(model)
    assert ours.dtype == torch.bfloat16 and ours.device == model.device
    assert ours.config.id2label == {0: "sky", 1: "road"} and ours.config.note == "ours"
    assert not any(parameter.requires_grad for parameter in ours.segformer.parameters())
    assert all(parameter.requires_grad for parameter in ours.decode_head.parameters())
    ours.config.id2label[0] = "heaven"
    assert model.config.id2label[0] == "sky"


def test_mode_of_every_layer_is_kept() -> None:
    model = theirs().train()
    model.decode_head.batch_norm.eval()  # frozen statistics
    model.segformer.get_submodule(
        next(name for name, _ in model.segformer.named_modules() if name.endswith("0"))
    ).eval()
    ours = from_transformers(model)
    assert ours.training and ours.decode_head.training and ours.decode_head.dropout.training
    assert not ours.decode_head.batch_norm.training
    assert not ours.segformer.encoder.patch_embeddings[0].training
    assert all(module.training for module in ours.segformer.encoder.block[1].modules())
    assert not any(module.training for module in from_transformers(theirs()).modules())


def test_image_processor_is_found_where_the_model_came_from(tmp_path: Path) -> None:
    theirs().save_pretrained(tmp_path)
    segtune.SegformerImageProcessor(size={"height": 77, "width": 99}).save_pretrained(tmp_path)
    ours = from_transformers(transformers.SegformerForSemanticSegmentation.from_pretrained(tmp_path))
    assert ours.name_or_path == str(tmp_path)
    assert load_processor(ours).size == {"height": 77, "width": 99}


def test_ours_stays_ours() -> None:
    ours = from_transformers(theirs())
    assert from_transformers(ours) is ours


# --- refusals --------------------------------------------------------------------------------------------------------


def test_another_architecture_is_refused() -> None:
    config = transformers.ResNetConfig(hidden_sizes=[8, 8], depths=[1, 1], embedding_size=8)
    with pytest.raises(UsageError, match=r"SegformerForSemanticSegmentation.*, not transformers\..*\.ResNetModel"):
        from_transformers(transformers.ResNetModel(config))
    with pytest.raises(UsageError, match=r"not torch\.nn.*\.Linear"):
        from_transformers(nn.Linear(1, 1))


def test_class_with_a_forward_of_its_own_is_refused() -> None:
    derived = type(SEGMENTATION, (transformers.SegformerForSemanticSegmentation,), {"__module__": "mine"})
    with pytest.raises(UsageError, match=rf"not mine\.{SEGMENTATION}"):
        from_transformers(derived(theirs().config))


def adapted(model: Any) -> Any:
    projection = "q_proj" if any(name.endswith("q_proj") for name, _ in model.named_modules()) else "query"
    return peft.LoraConfig(target_modules=[projection])


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft asks
def test_adapters_are_refused() -> None:
    model = theirs()
    with pytest.raises(UsageError, match=r"not peft\..*\.PeftModel; .*adapters merged"):
        from_transformers(peft.get_peft_model(model, adapted(model)))
    with pytest.raises(
        UsageError, match=r"block\.0\.0\.attention\.self\.query is a peft\..*\.Linear, .*merge adapters"
    ):
        from_transformers(model)  # peft adapted it in place


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
def test_merged_adapters_are_welcome() -> None:
    model = theirs()
    merged = peft.get_peft_model(model, adapted(model)).merge_and_unload()
    assert from_transformers(merged).decode_head.classifier.weight is merged.decode_head.classifier.weight


def test_layer_of_another_class_with_the_same_weights_is_refused() -> None:
    model = nn.SyncBatchNorm.convert_sync_batchnorm(theirs())
    with pytest.raises(UsageError, match=r"decode_head\.batch_norm is a torch\..*\.SyncBatchNorm"):
        from_transformers(model)


def test_tensors_that_are_missing_left_over_or_of_another_shape_are_listed() -> None:
    model = theirs()
    model.decode_head.classifier = nn.Conv2d(16, 7, 1, bias=False)
    model.decode_head.register_parameter("scale", nn.Parameter(torch.ones(1)))
    expected = (
        r"missing: decode_head\.classifier\.bias; left over: decode_head\.scale; "
        r"of another shape: decode_head\.classifier\.weight$"
    )
    with pytest.raises(UsageError, match=expected):
        from_transformers(model)


def test_long_lists_are_cut() -> None:
    model = theirs()
    model.decode_head = nn.Identity()
    with pytest.raises(UsageError, match=r"missing: decode_head\.batch_norm\.bias, .* and 8 more$"):
        from_transformers(model)
