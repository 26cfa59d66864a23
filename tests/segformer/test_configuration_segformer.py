from __future__ import annotations

import json
from pathlib import Path

import pytest
import transformers

from segtune.segformer.configuration_segformer import SegformerConfig


@pytest.mark.parametrize(
    ("variant", "depths", "width"),
    [
        ("b0", [2, 2, 2, 2], 256),
        ("b1", [2, 2, 2, 2], 256),
        ("b2", [3, 4, 6, 3], 768),
        ("b3", [3, 4, 18, 3], 768),
        ("b4", [3, 8, 27, 3], 768),
        ("B5", [3, 6, 40, 3], 768),
    ],
)
def test_presets(variant: str, depths: list[int], width: int) -> None:
    config = SegformerConfig.from_variant(variant, num_labels=19)
    assert (config.depths, config.decoder_hidden_size, config.num_labels) == (depths, width, 19)
    assert config.hidden_sizes == ([32, 64, 160, 256] if variant == "b0" else [64, 128, 320, 512])


def test_preset_takes_overrides_and_refuses_unknown_variants() -> None:
    assert SegformerConfig.from_variant("b0", drop_path_rate=0.2).drop_path_rate == 0.2
    with pytest.raises(ValueError, match="'b7' does not exist: choose one of b0"):
        SegformerConfig.from_variant("b7")


def test_defaults_are_those_of_transformers() -> None:
    ours, theirs = SegformerConfig().to_dict(), transformers.SegformerConfig().to_dict()
    assert (ours.pop("label_map"), ours.pop("calibration_temperature")) == (None, 1.0)
    same = {key: list(value) if isinstance(value, tuple) else value for key, value in theirs.items()}
    assert ours == same


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dropp": 0.3}, "no field 'dropp'"),
        ({"drop_path_rat": 0.3}, "'drop_path_rat' .did you mean 'drop_path_rate'"),
    ],
)
def test_unknown_names_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        SegformerConfig(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_sizes": (32, 64, 160)}, "one value for each of the 4 stages"),
        ({"num_attention_heads": (1, 2, 3, 8)}, r"\[2\]=160 is not divisible by num_attention_heads\[2\]=3"),
        ({"depths": (2, 0, 2, 2)}, r"depths=\[2, 0, 2, 2\] must be positive integers"),
        ({"sr_ratios": (8, 4, 2, 0.5)}, "sr_ratios"),
        ({"num_channels": 0}, "num_channels=0 must be a positive integer"),
        ({"decoder_hidden_size": -1}, "decoder_hidden_size=-1"),
        ({"drop_path_rate": 1.0}, r"drop_path_rate=1.0 must lie in \[0, 1\)"),
        ({"mlp_ratios": (4, 4, 4, 0)}, r"mlp_ratios\[3\]=0 must be positive"),
        ({"num_encoder_blocks": 0}, "num_encoder_blocks=0"),
    ],
)
def test_impossible_shapes_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SegformerConfig(**fields)


def test_file_keeps_fields_it_does_not_know(tmp_path: Path) -> None:
    dead_fields = {"image_size": 224, "downsampling_rates": [1, 4, 8, 16]}
    content = SegformerConfig(num_labels=3).to_dict() | dead_fields | {"mine": 1}
    (tmp_path / "config.json").write_text(json.dumps(content))
    config = SegformerConfig.from_pretrained(tmp_path)
    assert (config.mine, config.image_size, config.num_labels) == (1, 224, 3)
    config.save_pretrained(tmp_path / "again")
    again = json.loads((tmp_path / "again" / "config.json").read_text())
    assert (again["mine"], again["image_size"], again["downsampling_rates"]) == (1, 224, [1, 4, 8, 16])


def test_misspelt_override_of_a_file_is_refused(tmp_path: Path) -> None:
    SegformerConfig().save_pretrained(tmp_path)
    with pytest.raises(TypeError, match="'dropp'"):
        SegformerConfig.from_pretrained(tmp_path, dropp=0.3)


def test_another_number_of_labels_drops_the_old_names(tmp_path: Path) -> None:
    names = {"id2label": {0: "sky", 1: "road"}, "label2id": {"sky": 0, "road": 1}}
    SegformerConfig(**names, label_map={"a": 1}).save_pretrained(tmp_path)
    kept, changed = SegformerConfig.from_pretrained(tmp_path), SegformerConfig.from_pretrained(tmp_path, num_labels=3)
    assert kept.id2label == {0: "sky", 1: "road"} and kept.label_map == {"a": 1}
    assert len(changed.id2label) == changed.num_labels == 3 and changed.label_map is None


def test_transformers_reads_our_file_and_we_read_theirs(tmp_path: Path) -> None:
    SegformerConfig.from_variant("b2", num_labels=5, label_map={"names": ["a"]}).save_pretrained(tmp_path)
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    assert type(theirs) is transformers.SegformerConfig
    assert list(theirs.depths) == [3, 4, 6, 3] and theirs.num_labels == 5 and theirs.label_map == {"names": ["a"]}
    theirs.save_pretrained(tmp_path / "theirs")
    assert SegformerConfig.from_pretrained(tmp_path / "theirs").to_dict()["label_map"] == {"names": ["a"]}


def test_what_a_configuration_writes_makes_it_again() -> None:
    config = SegformerConfig(num_labels=7, depths=(1, 2, 1, 1), label_map=None, architectures=["SegformerModel"])
    for fields in (config.to_dict(), transformers.SegformerConfig(num_labels=7).to_dict()):
        again = SegformerConfig(**fields)
        assert (again.num_labels, again.depths) == (7, list(fields["depths"]))
    assert SegformerConfig(**config.to_dict()).to_dict() == config.to_dict()
    with pytest.raises(ValueError, match="model_type='bert' is not a SegFormer: expected 'segformer'"):
        SegformerConfig(model_type="bert")


def test_configurations_of_other_classes_become_ours() -> None:
    config = SegformerConfig()
    assert SegformerConfig.of(config) is config
    theirs = transformers.SegformerConfig(num_labels=4, attn_implementation="eager")
    ours = SegformerConfig.of(theirs)
    assert (ours.num_labels, ours._attn_implementation, ours.fused) == (4, "eager", True)


@pytest.mark.parametrize("key", ["_attn_implementation", "attn_implementation"])
def test_a_file_that_asks_for_a_kernel_of_the_hub_is_refused(tmp_path: Path, key: str) -> None:
    """By from_pretrained as well, before anything is fetched: it would be code of others."""
    config = SegformerConfig.from_variant("b0").to_dict() | {key: "kernels-community/flash-attn"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="'kernels-community/flash-attn' names code on the Hub"):
        SegformerConfig.from_pretrained(tmp_path)
