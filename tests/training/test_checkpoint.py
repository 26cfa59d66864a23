from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from segtune.errors import DataError, UsageError
from segtune.files import read_json_lines, write_folder
from segtune.labels.label_map import LabelMap
from segtune.segformer.image_processing_segformer import SegformerImageProcessor
from segtune.segformer.loading import load_model, split_revision
from segtune.training.checkpoint import save_model, saved_states
from segtune.training.model import ModelConfig, build_model

TINY = {
    "hidden_sizes": [8, 16, 24, 32],
    "depths": [1, 1, 1, 1],
    "num_attention_heads": [1, 2, 3, 4],
    "decoder_hidden_size": 16,
}
LABELS = LabelMap.from_ids({7: "road", 8: "road", 11: "car", 0: None}, colors={"car": (1, 2, 3)}, ignore_index=-100)


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


def test_save_and_load_is_exact_and_read_by_transformers(tmp_path: Path) -> None:
    model = build_model(ModelConfig(config=TINY), LABELS).eval()
    for _ in range(2):  # the second one replaces the first
        save_model(tmp_path / "best", model, SegformerImageProcessor(do_resize=False))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best"]
    pixel_values = torch.randn(1, 3, 64, 64)
    again = load_model(tmp_path / "best").eval()
    theirs = transformers.AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "best").eval()
    with torch.no_grad():
        logits = model(pixel_values).logits
        assert torch.equal(again(pixel_values).logits, logits)
        torch.testing.assert_close(theirs(pixel_values).logits, logits, rtol=1e-4, atol=1e-6)
    assert LabelMap.from_config(again.config) == LABELS
    assert transformers.AutoImageProcessor.from_pretrained(tmp_path / "best").do_resize is False


def test_missing_checkpoints_have_clear_messages(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        load_model(tmp_path / "nowhere")
    (tmp_path / "run" / "best").mkdir(parents=True)
    (tmp_path / "run" / "best" / "config.json").write_text("{}")
    with pytest.raises(UsageError, match=r"did you mean .*run/best\?"):
        load_model(tmp_path / "run")
    with pytest.raises(UsageError, match="checkpoint nobody/nothing cannot be loaded"):
        load_model("nobody/nothing")
    with pytest.raises(UsageError, match="cannot be loaded"):
        load_model(tmp_path / "run" / "best")


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


def test_revision_is_part_of_the_name_of_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert split_revision("nvidia/mit-b0@v1.0") == ("nvidia/mit-b0", "v1.0")
    assert split_revision("nvidia/mit-b0") == ("nvidia/mit-b0", None)
    (tmp_path / "runs@home").mkdir()
    assert split_revision("runs@home") == ("runs@home", None)


class Harmful:
    def __reduce__(self) -> Any:
        return os.system, ("touch harmed",)


def test_older_files_are_read_and_do_not_run_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = build_model(ModelConfig(config=TINY), LABELS)
    model.config.save_pretrained("old")
    torch.save(model.state_dict(), "old/pytorch_model.bin")
    weights = load_model("old").state_dict()
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    torch.save({**model.state_dict(), "hook": Harmful()}, "old/pytorch_model.bin")
    with pytest.raises(DataError, match=r"old: its pytorch_model\.bin is no pure .* asks for \w+\.system\. .*refused"):
        load_model("old")
    assert not Path("harmed").exists()


def test_a_write_that_fails_leaves_the_old_folder(tmp_path: Path) -> None:
    target = tmp_path / "best"
    write_folder(target, lambda folder: (folder / "a").write_text("old"))

    def fail(folder: Path) -> None:
        (folder / "a").write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_folder(target, fail)
    assert (target / "a").read_text() == "old"


def test_json_lines_without_a_torn_end(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert read_json_lines(tmp_path / "m.jsonl") == [{"step": 1}, {"step": 2}]


def test_states_are_in_the_order_of_their_steps(tmp_path: Path) -> None:
    for step in (1_000_000, 20, 999_999):
        (tmp_path / f"step-{step:06d}").mkdir()
    assert [path.name for path in saved_states(tmp_path)] == ["step-000020", "step-999999", "step-1000000"]
