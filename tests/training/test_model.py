"""Models of a recipe: fresh, from a checkpoint, and with other input channels."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

from segtune.errors import UsageError
from segtune.labels.label_map import LabelMap
from segtune.segformer.configuration_segformer import SegformerConfig
from segtune.segformer.modeling_segformer import SegformerForSemanticSegmentation
from segtune.training.config import ModelConfig
from segtune.training.model import adapt_input_channels, build_model, set_input_channels
from support.networks import TINY

LABELS = LabelMap.from_ids({7: "road", 8: "road", 11: "car", 0: None}, colors={"car": (1, 2, 3)}, ignore_index=-100)
IMAGE = torch.randn(2, 3, 64, 48, generator=torch.Generator().manual_seed(0))


def test_fresh_model_follows_label_map_and_seed() -> None:
    config = ModelConfig(config=TINY)
    first, same, other = (build_model(config, LABELS, seed=seed) for seed in (1, 1, 2))
    assert first.config.id2label == {0: "road", 1: "car"} and first.config.semantic_loss_ignore_index == -100
    assert LabelMap.from_config(first.config) == LABELS
    weights = [model.decode_head.classifier.weight for model in (first, same, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_building_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    build_model(ModelConfig(config=TINY), LABELS)
    assert torch.equal(torch.rand(3), expected)


def test_pretrained_model_keeps_its_encoder_and_takes_the_new_labels(tmp_path: Path) -> None:
    source = transformers.SegformerForSemanticSegmentation(transformers.SegformerConfig(num_labels=150, **TINY))
    source.save_pretrained(tmp_path)
    model = build_model(ModelConfig(name=str(tmp_path), config={"drop_path_rate": 0.3}), LABELS)
    assert model.config.num_labels == 2 and model.config.drop_path_rate == 0.3
    assert LabelMap.from_config(model.config) == LABELS
    head = source.decode_head.linear_fuse.weight
    assert torch.equal(model.decode_head.linear_fuse.weight, head)
    assert model.decode_head.classifier.weight.shape == (2, 16, 1, 1)


def test_one_logit_is_for_two_classes() -> None:
    binary = LabelMap.from_names(["background", "crack"])
    model = build_model(ModelConfig(num_labels=1, config=TINY), binary)
    assert model.decode_head.classifier.out_channels == 1
    assert model.config.id2label == {0: "crack"} and LabelMap.from_config(model.config) == binary
    with pytest.raises(UsageError, match="num_labels=1 is for two classes, but the label map has 3: a, b, c"):
        build_model(ModelConfig(num_labels=1, config=TINY), LabelMap.from_names(["a", "b", "c"]))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"config": {"num_labels": 3}}, "num_labels, which the label map decides"),
        ({"config": {"dropp": 3}}, "no field 'dropp'"),
        ({"config": {"num_attention_heads": [1, 2, 3, 8]}}, "not divisible"),
        ({"variant": "b9"}, "b0"),
    ],
)
def test_wrong_settings_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig(**fields)


def test_checkpoint_keeps_its_stages(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A recipe's smaller network for random weights must not throw away a checkpoint's encoder."""
    base = build_model(ModelConfig(config=TINY), LABELS, seed=1)
    base.save_pretrained(tmp_path / "base")
    config = {"hidden_sizes": [16, 32, 40, 64], "decoder_hidden_size": 24, "drop_path_rate": 0.3}
    model = build_model(ModelConfig(name=str(tmp_path / "base"), config=config), LABELS)
    encoder = base.segformer.state_dict()
    assert all(torch.equal(value, encoder[name]) for name, value in model.segformer.state_dict().items())
    assert model.config.decoder_hidden_size == 24 and model.config.drop_path_rate == 0.3
    assert f"model.config: hidden_sizes describes random weights; {tmp_path / 'base'} has its own" in caplog.text


# --- input channels --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "base"
    torch.manual_seed(0)
    SegformerForSemanticSegmentation(SegformerConfig(**TINY, num_labels=5)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("channels", "method", "expected"),
    [
        (1, "inflate", [7.0]),
        (2, "inflate", [5.0, 2.0]),
        (4, "inflate", [0.5, 2.0, 4.0, 0.5]),
        (7, "inflate", [1 / 3, 1.0, 2.0, 1 / 3, 1.0, 2.0, 1 / 3]),
        (1, "average", [7.0]),
        (4, "average", [1.75] * 4),
    ],
)
def test_filters_by_hand(channels: int, method: str, expected: list[float]) -> None:
    weight = torch.tensor([1.0, 2.0, 4.0]).view(1, 3, 1, 1).expand(2, 3, 5, 5)
    adapted = adapt_input_channels(weight, channels, method)  # type: ignore[arg-type]
    assert adapted.shape == (2, channels, 5, 5) and adapted.is_contiguous()
    torch.testing.assert_close(adapted, torch.tensor(expected).view(1, -1, 1, 1).expand(2, channels, 5, 5))


@pytest.mark.parametrize("method", ["inflate", "average"])
@pytest.mark.parametrize("channels", [1, 2, 4, 6, 13])
def test_grey_image_looks_the_same_with_any_number_of_channels(base: Path, method: str, channels: int) -> None:
    model = SegformerForSemanticSegmentation.from_pretrained(base)
    grey = IMAGE[:, :1]
    with torch.no_grad():
        before = model(grey.expand(-1, 3, -1, -1)).logits
        set_input_channels(model, channels, method)  # type: ignore[arg-type]
        torch.testing.assert_close(model(grey.expand(-1, channels, -1, -1)).logits, before, rtol=1e-4, atol=1e-5)


def test_new_channels_survive_a_round_trip_and_leave_the_rest(base: Path, tmp_path: Path) -> None:
    model = SegformerForSemanticSegmentation.from_pretrained(base)
    start = load_file(base / "model.safetensors")
    assert set_input_channels(model, 5, "inflate") is model
    conv = "segformer.encoder.patch_embeddings.0.proj.weight"
    assert {name for name, value in model.state_dict().items() if not torch.equal(value, start[name])} == {conv}
    model.save_pretrained(tmp_path)
    loaded = SegformerForSemanticSegmentation.from_pretrained(tmp_path)
    assert loaded.config.num_channels == loaded.segformer.encoder.patch_embeddings[0].proj.in_channels == 5
    image = torch.randn(1, 5, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(loaded(image).logits, model(image).logits)
    with pytest.raises(ValueError, match=r"expected \(batch, 5, height, width\)"):
        model(IMAGE)


def test_random_filters_are_drawn_as_for_a_new_model(base: Path) -> None:
    def convolution(seed: int) -> torch.nn.Conv2d:
        model = SegformerForSemanticSegmentation.from_pretrained(base)
        torch.manual_seed(seed)
        return set_input_channels(model, 64, "random").segformer.encoder.patch_embeddings[0].proj

    first, again, other = convolution(0), convolution(0), convolution(1)
    assert torch.equal(first.weight, again.weight) and not torch.equal(first.weight, other.weight)
    assert first.weight.std().item() == pytest.approx((2 / (8 * 49)) ** 0.5, rel=0.05)
    assert first.bias.abs().max() == 0 and first.weight.requires_grad


def test_same_number_of_channels_changes_nothing(base: Path) -> None:
    model = SegformerForSemanticSegmentation.from_pretrained(base)
    weight = model.segformer.encoder.patch_embeddings[0].proj.weight
    assert set_input_channels(model, 3, "random").segformer.encoder.patch_embeddings[0].proj.weight is weight
