from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from segtune.checkpoint import ModelConfig, build_model
from segtune.data.sources import DatasetConfig, find_label_map, load_segmentation_dataset
from segtune.data.transforms import TransformConfig
from segtune.errors import DataError, SegtuneError, UsageError
from segtune.inference import processor_for
from segtune.interrupts import StopRequest
from segtune.labels import LabelMap
from segtune.trainer import SegmentationTrainer, TrainingConfig, make_accelerator

TINY = {
    "hidden_sizes": [8, 16, 24, 32],
    "depths": [1, 1, 1, 1],
    "num_attention_heads": [1, 2, 3, 4],
    "decoder_hidden_size": 16,
    "classifier_dropout_prob": 0.0,
    "drop_path_rate": 0.0,
}
TRANSFORMS = TransformConfig(crop_size=64)


@pytest.fixture(scope="module")
def data() -> tuple[Any, LabelMap]:
    splits = load_segmentation_dataset("segtune://earth")
    splits["train"] = splits["train"].select(range(12))
    splits["val"] = splits["val"].select(range(3))
    return splits, find_label_map(DatasetConfig(path="segtune://earth"))


def trainer(
    data: tuple[Any, LabelMap], folder: Path, model: dict[str, Any] | None = None, **fields: Any
) -> SegmentationTrainer:
    splits, label_map = data
    config = TrainingConfig(
        **{"output_dir": str(folder), "max_steps": 4, "batch_size": 4, "log_every": 1, "learning_rate": 1e-3} | fields
    )
    return SegmentationTrainer(
        build_model(ModelConfig(config=TINY | (model or {})), label_map, seed=config.seed),
        config,
        train_dataset=splits["train"],
        eval_dataset=splits["val"],
        label_map=label_map,
        transforms=TRANSFORMS,
        processor=processor_for(TRANSFORMS),
        recipe="# a recipe\n",
        splits=splits,
    )


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_run_folder(data: tuple[Any, LabelMap], tmp_path: Path) -> None:
    result = trainer(data, tmp_path / "run", eval_every=2, save_every=1, keep_last=2).train()
    run = tmp_path / "run"
    assert sorted(path.name for path in run.iterdir()) == [
        "best", "checkpoints", "final", "metrics.jsonl", "recipe.yaml", "split.json"
    ]  # fmt: skip
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step-000002", "step-000003"]
    assert sorted(path.name for path in (run / "best").iterdir()) == [
        "config.json", "model.safetensors", "preprocessor_config.json"
    ]  # fmt: skip
    records = lines(run)
    assert records[0]["environment"]["num_processes"] == 1
    steps = [record for record in records[1:] if "loss" in record]
    evals = [record for record in records[1:] if "mean_iou" in record]
    assert [record["step"] for record in steps] == [1, 2, 3, 4]
    assert [record["step"] for record in evals] == [2, 4]
    assert steps[0]["epoch"] == pytest.approx(4 / 12, abs=1e-4)
    assert {"loss", "lr", "grad_norm", "images_per_second"} <= set(steps[0])
    assert set(evals[0]["per_class"]) == {"ocean", "humid", "arid", "polar"}
    best = max(evals, key=lambda record: record["mean_iou"])
    assert result["best"] == {"step": best["step"], "mean_iou": best["mean_iou"]}
    assert result["step"] == 4 and result["last"]["mean_iou"] == evals[-1]["mean_iou"]


def test_same_seed_same_run_whatever_the_workers(data: tuple[Any, LabelMap], tmp_path: Path) -> None:
    for name, fields in {"a": {}, "b": {"num_workers": 2}, "c": {"seed": 1}}.items():
        trainer(data, tmp_path / name, model={"classifier_dropout_prob": 0.1, "drop_path_rate": 0.1}, **fields).train()
    a, b, c = (weights(tmp_path / name / "final") for name in "abc")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not all(torch.equal(a[name], c[name]) for name in a)
    evals = [[line for line in lines(tmp_path / name) if "mean_iou" in line] for name in "ab"]
    assert evals[0] == evals[1]


@pytest.mark.parametrize("split", [(2, 2), (1, 4)])
@pytest.mark.parametrize("loss", [{}, {"cross_entropy": 1, "dice": 0.5, "class_weights": [0.5, 1, 2, 4]}])
def test_accumulation_gives_the_gradient_of_the_whole_batch(
    data: tuple[Any, LabelMap], tmp_path: Path, split: tuple[int, int], loss: dict[str, Any]
) -> None:
    gradients = []
    for batch_size, accumulation_steps in ((4, 1), split):
        fields = {"batch_size": batch_size, "accumulation_steps": accumulation_steps, "loss": loss}
        run = trainer(data, tmp_path / f"{batch_size}", **fields)
        run.model.train()
        run.model.decode_head.batch_norm.eval()  # batch statistics differ between micro-batches: freeze them
        run.optimizer.zero_grad = lambda: None  # keep the gradient
        micro_batches = next(run._batches())
        assert [len(batch["labels"]) for batch in micro_batches] == [batch_size] * accumulation_steps
        whole = torch.cat([batch["labels"] for batch in micro_batches])
        whole[0] = 255  # the first micro-batch of 1 x 4 is wholly ignored
        for batch, labels in zip(micro_batches, whole.split(batch_size), strict=True):
            batch["labels"] = labels
        run._optimizer_step(micro_batches)
        gradients.append({name: p.grad.clone() for name, p in run.model.named_parameters()})
    largest = max(gradient.abs().max() for gradient in gradients[0].values())
    assert largest > 0
    for name, gradient in gradients[0].items():
        scale = max(gradient.abs().max(), 1e-3 * largest)
        assert (gradient - gradients[1][name]).abs().max() <= 1e-5 * scale, name


def test_resume_is_exact(data: tuple[Any, LabelMap], tmp_path: Path) -> None:
    fields = {"save_every": 2, "eval_every": 2, "model": {"classifier_dropout_prob": 0.1, "drop_path_rate": 0.1}}
    trainer(data, tmp_path / "whole", **fields).train()
    stopped = trainer(data, tmp_path / "stopped", **fields)
    original = stopped._log

    def stop(window: Any, norm: Any, bar: Any) -> None:
        original(window, norm, bar)
        if stopped.step == 3:
            raise KeyboardInterrupt

    stopped._log = stop
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    result = trainer(data, tmp_path / "stopped", resume="auto", **fields).train()
    a, b = weights(tmp_path / "whole" / "final"), weights(tmp_path / "stopped" / "final")
    assert all(torch.equal(a[name], b[name]) for name in a)
    strip = lambda records: [{k: v for k, v in r.items() if k != "images_per_second"} for r in records]  # noqa: E731
    assert strip(lines(tmp_path / "whole")) == strip(lines(tmp_path / "stopped"))
    assert result["step"] == 4


@pytest.mark.parametrize("fields", [{"accumulation_steps": 2, "batch_size": 2}, {"ema_decay": 0.9}, {"num_workers": 2}])
def test_stopped_on_request_and_resumed_is_exact(
    data: tuple[Any, LabelMap], tmp_path: Path, fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = {"eval_every": 2, "model": {"classifier_dropout_prob": 0.1, "drop_path_rate": 0.1}} | fields
    whole = trainer(data, tmp_path / "whole", **fields).train()
    assert "stopped" not in whole
    run = trainer(data, tmp_path / "stopped", time_limit="1s", **fields)
    monkeypatch.setattr(StopRequest, "reason", property(lambda self: "enough" if run.step == 3 else None))
    result = run.train()
    assert result["stopped"] == "enough" and result["step"] == 3
    assert not (tmp_path / "stopped" / "final").exists()
    trainer(data, tmp_path / "stopped", resume="auto", **fields).train()
    for name in ("best", "final"):
        a, b = ((tmp_path / run / name / "model.safetensors").read_bytes() for run in ("whole", "stopped"))
        assert a == b
    evals = [[line for line in lines(tmp_path / run) if "mean_iou" in line] for run in ("whole", "stopped")]
    assert evals[0] == evals[1] and len(evals[0]) == 2


def test_averaged_weights_are_evaluated_and_saved(data: tuple[Any, LabelMap], tmp_path: Path) -> None:
    run = trainer(data, tmp_path / "run", ema_decay=0.5, save_every=3)
    run.train()
    final, last = weights(tmp_path / "run" / "final"), run.model.state_dict()
    assert run.ema is not None
    average = run.ema.state_dict()
    differing = [name for name in final if not torch.equal(final[name], last[name])]
    assert len(differing) > 50
    assert all(torch.equal(final[name], average[name].to(final[name].dtype)) for name in differing)
    with pytest.raises(UsageError, match=r"saved without training.ema_decay"):
        trainer(data, tmp_path / "other", save_every=3).train()
        trainer(data, tmp_path / "other", resume="auto", ema_decay=0.5).train()


def test_a_torn_training_state_is_named_and_the_one_before_is_taken(
    data: tuple[Any, LabelMap], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Every file cut at every tenth of its length, one after another."""
    trainer(data, tmp_path / "run", save_every=1, keep_last=2).train()
    states = tmp_path / "run" / "checkpoints"
    whole = tmp_path / "whole"
    shutil.copytree(states / "step-000003", whole)
    files = sorted(whole.iterdir())
    assert [file.name for file in files] == ["manifest.json", "model.safetensors", "training_state.pt"]
    resumed = trainer(data, tmp_path / "run", resume="auto")
    for file in files:
        for tenth in range(10):
            shutil.rmtree(states / "step-000003", ignore_errors=True)
            shutil.copytree(whole, states / "step-000003")
            content = file.read_bytes()
            (states / "step-000003" / file.name).write_bytes(content[: len(content) * tenth // 10])
            caplog.clear()
            assert resumed._newest_state() == states / "step-000002"
            assert file.name in caplog.text and "the one before is taken" in caplog.text
            assert not (states / "step-000003").exists()
    damaged = bytearray((whole / "model.safetensors").read_bytes())
    damaged[-1] ^= 1
    (whole / "model.safetensors").write_bytes(damaged)
    with pytest.raises(DataError, match=r"model.safetensors is not what was written: its checksum differs"):
        trainer(data, tmp_path / "run", resume=str(whole)).train()
    shutil.rmtree(states)
    caplog.clear()
    assert resumed._newest_state() is None
    assert "holds no training state to go on from: starting from the first step" in caplog.text


def test_what_a_killed_process_was_replacing_comes_back(data: tuple[Any, LabelMap], tmp_path: Path) -> None:
    run = tmp_path / "run"
    trainer(data, run, max_steps=2, save_every=1).train()
    (run / "best").rename(run / ".best.old")  # killed between the two renames
    shutil.copytree(run / "final", run / ".final.tmp")
    (run / "checkpoints" / "step-000001").rename(run / "checkpoints" / ".step-000001.old")
    resumed = trainer(data, run, max_steps=2, resume="auto")
    resumed._open_run_folder()
    assert {path.name for path in run.iterdir()} >= {"best", "final", "checkpoints"}
    assert not list(run.glob(".*"))
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-000001"]


def test_training_states_by_default() -> None:
    assert TrainingConfig(max_steps=300).state_every == 30
    assert TrainingConfig(max_steps=4).state_every == 1
    assert TrainingConfig(save_every=0).state_every is None
    assert TrainingConfig(save_every=7).state_every == 7


@pytest.mark.parametrize(("schedule", "last"), [("poly", 0.25), ("constant", 1.0)])
def test_schedule_and_freezing_reach_the_optimiser(
    data: tuple[Any, LabelMap], tmp_path: Path, schedule: str, last: float
) -> None:
    frozen = {"stages": (1, 2), "batch_norm": "statistics"}
    run = trainer(data, tmp_path / "run", schedule=schedule, warmup_steps=0, freeze=frozen, layer_decay=0.5)
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    run.train()
    rates = [line["lr"] for line in lines(tmp_path / "run") if "loss" in line]
    assert rates[-1] == pytest.approx(last * rates[0])
    changed = {name for name, value in run.model.state_dict().items() if not torch.equal(value, before[name])}
    assert "segformer.encoder.block.2.0.mlp.dense1.weight" in changed
    assert not any(name.startswith(("segformer.encoder.block.0", "segformer.encoder.block.1")) for name in changed)
    assert not any("running" in name for name in changed)


def test_a_run_is_never_overwritten_unasked(data: tuple[Any, LabelMap], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    trainer(data, tmp_path / "run", max_steps=1).train()
    before = weights(tmp_path / "run" / "final")
    with pytest.raises(UsageError, match=r"holds a run \(recipe.yaml, split.json, metrics.jsonl, best, final\)"):
        trainer(data, tmp_path / "run", max_steps=1).train()
    assert len(lines(tmp_path / "run")) == 3
    trainer(data, tmp_path / "run", max_steps=1, seed=1, overwrite=True).train()
    after = weights(tmp_path / "run" / "final")
    assert not all(torch.equal(before[name], after[name]) for name in before)
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"


def test_it_learns(data: tuple[Any, LabelMap], tmp_path: Path) -> None:
    trainer(data, tmp_path / "run", max_steps=25, learning_rate=3e-3, head_lr_multiplier=1).train()
    losses = [line["loss"] for line in lines(tmp_path / "run") if "loss" in line]
    assert sum(losses[-5:]) < 0.85 * sum(losses[:5])


@pytest.mark.parametrize("num_labels", [1, 4])
@pytest.mark.parametrize(
    "loss",
    [{"focal": 1}, {"ohem": 1}, {"dice": 1}, {"tversky": 1}, {"lovasz": 1}, {"cross_entropy": 1, "boundary": 0.02}],
)
def test_it_learns_with_other_losses(
    data: tuple[Any, LabelMap], tmp_path: Path, num_labels: int, loss: dict[str, float]
) -> None:
    splits, label_map = data
    if num_labels == 1:
        label_map = LabelMap.from_ids({0: "sea", 1: "land", 2: "land", 3: "land", 255: None})
    config = TrainingConfig(
        output_dir=str(tmp_path / "run"), max_steps=20, batch_size=4, log_every=1, learning_rate=5e-3, loss=loss
    )
    SegmentationTrainer(
        build_model(ModelConfig(config=TINY, num_labels=1 if num_labels == 1 else None), label_map),
        config,
        train_dataset=splits["train"],
        eval_dataset=None,
        label_map=label_map,
        transforms=TRANSFORMS,
        processor=processor_for(TRANSFORMS),
    ).train()
    values = [line["loss"] for line in lines(tmp_path / "run") if "loss" in line]
    assert len(values) == 20
    assert sum(values[-5:]) < 0.95 * sum(values[:5])


def test_without_validation_the_last_weights_are_the_best(data: tuple[Any, LabelMap], tmp_path: Path) -> None:
    run = trainer(data, tmp_path / "run", max_steps=1)
    run.eval_dataset = None
    assert run.train()["best"] == {}
    assert (tmp_path / "run" / "best" / "model.safetensors").read_bytes() == (
        tmp_path / "run" / "final" / "model.safetensors"
    ).read_bytes()


def test_non_finite_loss_stops(data: tuple[Any, LabelMap], tmp_path: Path) -> None:
    run = trainer(data, tmp_path / "run")
    with torch.no_grad():
        run.model.decode_head.classifier.bias.fill_(float("nan"))
    with pytest.raises(SegtuneError, match="the loss is nan at step 1"):
        run.train()


def test_bf16_and_gradient_checkpointing_run(data: tuple[Any, LabelMap], tmp_path: Path) -> None:
    result = trainer(
        data, tmp_path / "run", max_steps=2, mixed_precision="bf16", gradient_checkpointing=True, max_grad_norm=1.0
    ).train()
    assert result["step"] == 2
    assert all(value.dtype != torch.bfloat16 for value in weights(tmp_path / "run" / "final").values())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"warmup_steps": 10, "max_steps": 10}, "warmup_steps=10 must be below max_steps=10"),
        ({"betas": (0.9, 1.0)}, "betas"),
        ({"batch_size": 0}, "batch_size"),
        ({"time_limit": "8.5h"}, "is no duration"),
        ({"schedule": "linear"}, "poly"),
    ],
)
def test_wrong_settings_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainingConfig(**fields)


def test_warmup_defaults_to_a_twentieth() -> None:
    assert TrainingConfig(max_steps=300).warmup == 15
    assert TrainingConfig(max_steps=160_000).warmup == 1500
    assert TrainingConfig(max_steps=300, warmup_steps=0).warmup == 0


def test_processes_that_believe_to_be_alone_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    make_accelerator(TrainingConfig())
    monkeypatch.setenv("WORLD_SIZE", "2")  # another process was started, but no rendezvous took place
    with pytest.raises(UsageError, match="2 processes were started, but Accelerate sees 1"):
        make_accelerator(TrainingConfig())


def segtune_train(folder: Path, *overrides: str) -> subprocess.Popen[str]:
    settings = ["training.max_steps=8", "training.batch_size=2", "training.eval_every=4", "transforms.crop_size=64"]
    command = [sys.executable, "-m", "segtune", "train", "demo", f"training.output_dir={folder}", *settings, *overrides]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides", [["training.num_workers=2"], ["training.accumulation_steps=2", "training.ema_decay=0.9"]]
)
def test_killed_at_random_moments_and_resumed_is_exact(tmp_path: Path, overrides: list[str]) -> None:
    """The processes are those of a user; SIGKILL leaves no time to save anything."""
    generator = random.Random(0)
    whole = segtune_train(tmp_path / "A", *overrides)
    _, stderr = whole.communicate(timeout=300)
    assert whole.returncode == 0, stderr
    kills, seen = 0, 0
    while True:
        run = segtune_train(tmp_path / "B", "training.resume=auto", *overrides)
        if kills < 3:
            while run.poll() is None and len(list((tmp_path / "B").glob("checkpoints/step-*"))) + kills <= seen:
                time.sleep(0.05)
            time.sleep(generator.random())
            if run.poll() is None:
                run.kill()
                run.communicate()
                kills, seen = kills + 1, seen + 1
                continue
        _, stderr = run.communicate(timeout=300)
        assert run.returncode == 0, stderr
        break
    assert kills >= 2
    for name in ("final", "best"):
        a, b = ((tmp_path / side / name / "model.safetensors").read_bytes() for side in "AB")
        assert a == b, name
    evals = [[line for line in lines(tmp_path / side) if "mean_iou" in line] for side in "AB"]
    assert evals[0] == evals[1] and len(evals[0]) == 2


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_everything_and_exits_with_3(tmp_path: Path, number: signal.Signals) -> None:
    settings = ["training.max_steps=5000", "training.log_every=1", "training.save_every=0", "training.num_workers=1"]
    run = segtune_train(tmp_path / "run", *settings)
    metrics = tmp_path / "run" / "metrics.jsonl"
    while run.poll() is None and not (metrics.exists() and '"loss"' in metrics.read_text()):  # a step was made
        time.sleep(0.05)
    run.send_signal(number)
    stdout, stderr = run.communicate(timeout=300)
    assert run.returncode == 3, stderr
    assert f"everything saved: {number.name} was received" in stdout
    assert "training.resume=auto" in stdout.splitlines()[-1]
    assert "Traceback" not in stderr
    assert len(list((tmp_path / "run" / "checkpoints").glob("step-*"))) == 1
