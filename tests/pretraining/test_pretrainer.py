from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import SegformerForSemanticSegmentation as Theirs

from segtune.errors import DataError, UsageError
from segtune.pretraining.config import PretrainingRecipe, load_pretraining
from segtune.pretraining.pretrainer import Pretrainer, build_network, pretrain
from segtune.segformer.configuration_segformer import SegformerConfig
from segtune.segformer.loading import load_model
from segtune.segformer.modeling_segformer import SegformerForSemanticSegmentation
from segtune.training.interrupts import StopRequest
from support.networks import TINY

Settings = Callable[..., PretrainingRecipe]
WEIGHTS = "model.safetensors"


def losses(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def test_final_is_the_encoder_of_a_segmentation_model(
    settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = settings(tmp_path / "run", "training.max_steps=2", "training.overlays=3")
    result = pretrain(recipe)
    run = tmp_path / "run"
    assert result == {
        "output_dir": str(run),
        "step": 2,
        "reconstructions": str(run / "overlays" / "reconstructions.png"),
    }
    assert sorted(path.name for path in run.iterdir()) == [
        "checkpoints", "final", "metrics.jsonl", "overlays", "recipe.yaml"
    ]  # fmt: skip
    with Image.open(result["reconstructions"]) as picture:
        assert picture.size == (3 * (64 + 8), 3 * (64 + 8)) and np.asarray(picture).std() > 10
    stored = load_file(run / "final" / WEIGHTS)
    start = build_network(recipe).segformer.state_dict()
    assert set(stored) == set(start) and not all(torch.equal(stored[name], start[name]) for name in start)
    model = load_model(run / "final", num_labels=5)
    assert "starts fresh: decode_head" in caplog.text and "not used" not in caplog.text
    assert model.config.drop_path_rate == 0.1 and model.config.num_labels == 5
    for loaded in (model, Theirs.from_pretrained(run / "final")):
        encoder = loaded.segformer.state_dict() if loaded is model else None
        if encoder is not None:
            assert {name: value.tolist() for name, value in encoder.items()} == {
                name: value.tolist() for name, value in stored.items()
            }
        else:
            x = torch.randn(1, 3, 64, 64)
            with torch.no_grad():
                theirs = loaded.eval().segformer(x).last_hidden_state
                ours = model.eval().segformer(x).last_hidden_state
            torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)


def test_same_seed_same_run_whatever_the_workers(settings: Settings, tmp_path: Path) -> None:
    for number, (name, more) in enumerate(
        {"a": (), "b": ("training.num_workers=2",), "c": ("training.seed=1",)}.items()
    ):
        torch.manual_seed(number)  # what was drawn before does not matter
        pretrain(settings(tmp_path / name, *more))
    a, b, c = (load_file(tmp_path / name / "final" / WEIGHTS) for name in "abc")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not all(torch.equal(a[name], c[name]) for name in a)


@pytest.mark.parametrize("split", [(2, 2), (1, 4)])
def test_accumulation_gives_the_gradient_of_the_whole_batch(
    settings: Settings, rows: Any, tmp_path: Path, split: tuple[int, int]
) -> None:
    gradients = []
    for batch_size, accumulation_steps in ((4, 1), split):
        recipe = settings(
            tmp_path,
            f"training.batch_size={batch_size}",
            f"training.accumulation_steps={accumulation_steps}",
            "training.max_grad_norm=null",
            "transforms.scale=[0.2, 0.4]",  # of 180 pixels: most crops are padded, each by another part
        )
        run = Pretrainer(recipe, rows, build_network(recipe))
        run.optimizer.zero_grad = lambda: None  # keep the gradient
        micro_batches = next(run._micro_batches())
        assert [len(batch["mask"]) for batch in micro_batches] == [batch_size] * accumulation_steps
        assert len({int(batch["real"].sum()) for batch in micro_batches}) == accumulation_steps
        run._optimizer_step(micro_batches)
        gradients.append({name: p.grad.clone() for name, p in run.model.named_parameters()})
    largest = max(gradient.abs().max() for gradient in gradients[0].values())
    assert largest > 0
    for name, gradient in gradients[0].items():
        scale = max(gradient.abs().max(), 1e-3 * largest)
        assert (gradient - gradients[1][name]).abs().max() <= 1e-5 * scale, name


def test_the_loss_is_the_mean_over_hidden_values_but_padding(settings: Settings, rows: Any, tmp_path: Path) -> None:
    recipe = settings(tmp_path, "transforms.scale=[0.2, 0.4]")
    run = Pretrainer(recipe, rows, build_network(recipe))
    (batch,) = next(run._micro_batches())
    with torch.no_grad():
        painted = run.model(batch["pixel_values"], batch["mask"])
    hidden = np.kron(batch["mask"].numpy(), np.ones((32, 32), dtype=bool)) & batch["real"].numpy()
    errors = (painted - batch["pixel_values"]).abs().numpy().transpose(0, 2, 3, 1)[hidden]  # (M, 3)
    loss, _ = run._optimizer_step([batch])
    assert loss.item() == pytest.approx(errors.mean(dtype=np.float64), rel=1e-5)


def test_stopped_and_resumed_is_exact(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "stopped" not in pretrain(settings(tmp_path / "whole"))
    original = Pretrainer._optimizer_step

    def step(self: Pretrainer, micro_batches: list[dict[str, Any]]) -> Any:
        if self.step == 2:
            signal.raise_signal(signal.SIGTERM)
        return original(self, micro_batches)

    with monkeypatch.context() as planted:
        planted.setattr(Pretrainer, "_optimizer_step", step)
        result = pretrain(settings(tmp_path / "stopped"))
    assert (result["stopped"], result["step"]) == ("SIGTERM was received", 3)
    assert not (tmp_path / "stopped" / "final").exists()
    with pytest.raises(UsageError, match="holds a run"):
        pretrain(settings(tmp_path / "stopped"))
    with pytest.raises(UsageError, match=r"(?s)other settings.*masking\.ratio: 0\.6 then, 0\.5 now"):
        pretrain(settings(tmp_path / "stopped", "training.resume=auto", "masking.ratio=0.5"))
    pretrain(settings(tmp_path / "stopped", "training.resume=auto"))
    a, b = ((tmp_path / name / "final" / WEIGHTS).read_bytes() for name in ("whole", "stopped"))
    assert a == b and losses(tmp_path / "whole") == losses(tmp_path / "stopped")
    state = f"training.resume={tmp_path / 'stopped/checkpoints/step-000003'}"
    with pytest.raises(UsageError, match=r"training\.max_steps=3 is done"):
        pretrain(settings(tmp_path / "new", state, "training.max_steps=3"))


def test_a_time_limit_stops_before_its_end(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reasons = iter([None, None, "training.time_limit is reached"])
    monkeypatch.setattr(StopRequest, "reason", property(lambda self: next(reasons)))
    result = pretrain(settings(tmp_path / "run", "training.time_limit=1h"))
    assert (result["stopped"], result["step"]) == ("training.time_limit is reached", 2)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()][-1].startswith("step-00000")


def test_a_checkpoint_is_pretrained_on_and_channels_follow_the_pictures(settings: Settings, tmp_path: Path) -> None:
    model = SegformerForSemanticSegmentation(SegformerConfig(**TINY, num_labels=3))
    model.save_pretrained(tmp_path / "start")
    words = ["model.config={}", f"model.name={tmp_path / 'start'}", "transforms.mean=[0.5]", "transforms.std=[0.25]"]
    recipe = settings(tmp_path / "run", *words)
    network = build_network(recipe)
    theirs, ours = model.segformer.state_dict(), network.segformer.state_dict()
    first = "encoder.patch_embeddings.0.proj.weight"
    assert ours[first].shape == (8, 1, 7, 7) and torch.equal(
        ours["encoder.layer_norm.3.weight"], theirs["encoder.layer_norm.3.weight"]
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs if name != first)
    pretrain(recipe.with_changes("training", max_steps=1))
    assert json.loads((tmp_path / "run" / "final" / "config.json").read_text())["num_channels"] == 1


def test_what_cannot_be_learned_from_is_told(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no picture to learn from"):
        pretrain(load_pretraining(str(tmp_path / "empty"), tmp_path / "run", ["training.device=cpu"]))
    with pytest.raises(UsageError, match="stage 5, but the encoder has the stages 1 to 4"):
        pretrain(settings(tmp_path / "run", "masking.stages=[5]"))
    with pytest.raises(UsageError, match=r"model\.config describes random weights"):
        settings(tmp_path / "run", "model.name=a/b")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_loss_falls_on_tiles(settings: Settings, tmp_path: Path) -> None:
    words = ["training.max_steps=120", "training.batch_size=8", "training.learning_rate=3e-3"]
    pretrain(settings(tmp_path / "run", *words))
    found = losses(tmp_path / "run")
    assert len(found) == 120 and np.mean(found[-20:]) < 0.8 * np.mean(found[:5])
