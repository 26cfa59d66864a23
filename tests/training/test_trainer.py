from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from segtune.data.config import TransformConfig
from segtune.data.dataset import DatasetConfig, find_label_map, load_segmentation_dataset
from segtune.errors import SegtuneError, UsageError
from segtune.evaluation.evaluation import Evaluation
from segtune.inference.processor import processor_from_transforms
from segtune.labels.label_map import LabelMap
from segtune.segformer.checkpoint_files import refuse_missing
from segtune.segformer.loading import load_model
from segtune.training.checkpoint import check_model
from segtune.training.config import LossConfig, ModelConfig, TrainingConfig
from segtune.training.distributed import make_accelerator
from segtune.training.interrupts import LIMIT, StopRequest
from segtune.training.lora import load_adapter
from segtune.training.losses import image_terms
from segtune.training.model import build_model
from segtune.training.trainer import SegmentationTrainer
from segtune.viz.comparisons import Comparisons
from support.workers.common import TINY

TRANSFORMS = TransformConfig(crop_size=64)
MEASURED = {"images_per_second", "waiting_for_data", "peak_memory_mb", "seconds"}


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
        processor=processor_from_transforms(TRANSFORMS),
        recipe="# a recipe\n",
        splits=splits,
    )


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def computed(folder: Path) -> list[dict[str, Any]]:
    """The lines without what is measured."""
    return [{key: value for key, value in line.items() if key not in MEASURED} for line in lines(folder)]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_run_folder(data: tuple[Any, LabelMap], tmp_path: Path) -> None:
    result = trainer(data, tmp_path / "run", eval_every=2, save_every=1, keep_last=2).train()
    run = tmp_path / "run"
    assert sorted(path.name for path in run.iterdir()) == [
        "best", "checkpoints", "evaluation-val.npz", "final", "metrics.jsonl", "overlays", "recipe.yaml", "split.json"
    ]  # fmt: skip
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step-000002", "step-000003"]
    assert sorted(path.name for path in (run / "best").iterdir()) == [
        ".manifest.json", "config.json", "model.safetensors", "preprocessor_config.json"
    ]  # fmt: skip
    records = lines(run)
    assert records[0]["environment"]["num_processes"] == 1
    steps = [record for record in records[1:] if "loss" in record]
    evals = [record for record in records[1:] if "mean_iou" in record]
    assert [record["step"] for record in steps] == [1, 2, 3, 4]
    assert [record["step"] for record in evals] == [2, 4]
    assert steps[0]["epoch"] == pytest.approx(4 / 12, abs=1e-4)
    assert set(steps[0]) == {"step", "epoch", "loss", "lr", "grad_norm"} | MEASURED - {"seconds"}
    assert records[-1]["ended"] == "done" and records[-1]["step"] == 4 and records[-1]["peak_memory_mb"] > 50
    assert set(evals[0]["per_class"]) == {"water", "vegetation", "bare", "ice"}
    best = max(evals, key=lambda record: record["mean_iou"])
    assert result["best"] == {"step": best["step"], "mean_iou": best["mean_iou"]}
    kept = Evaluation.load(run / "evaluation-val.npz")
    assert kept.about == {"checkpoint": str(run / "best"), "split": "val", "step": best["step"]}
    assert kept.counts.ids == sorted(data[0]["val"]["id"])
    assert kept.scores() == {key: best[key] for key in kept.scores()}
    assert result["step"] == 4 and result["last"]["mean_iou"] == evals[-1]["mean_iou"]


def test_a_tracker_gets_what_the_log_gets(data: tuple[Any, LabelMap], tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer(data, tmp_path / "run", max_steps=2, trackers=("tensorboard",), overlays=2).train()
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    step, scores = lines(tmp_path / "run")[2:4]
    assert [scalar.step for scalar in events.Scalars("train/loss")] == [1, 2]
    assert events.Scalars("train/loss")[1].value == pytest.approx(step["loss"])
    assert events.Scalars("val/mean_iou")[0].value == pytest.approx(scores["mean_iou"])
    pictures = events.Tags()["images"]
    assert len(pictures) == 2 and all(name.startswith("overlays/earth_") for name in pictures)
    assert len(list((tmp_path / "run" / "overlays" / "step-000002").glob("*.jpg"))) == 2


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


@pytest.mark.parametrize(("rate", "equal"), [(0.0, True), (0.9, False)])
def test_drop_path_draws_depend_on_the_division(
    data: tuple[Any, LabelMap], tmp_path: Path, rate: float, equal: bool
) -> None:
    """What the README says is not equal: blocks draw in turn, so that two micro-batches get other draws than one."""
    losses = []
    for batch_size, accumulation_steps in ((4, 1), (2, 2)):
        fields = {"batch_size": batch_size, "accumulation_steps": accumulation_steps, "batch_norm": "frozen"}
        fields |= {"learning_rate": 1e-2, "overlays": 0, "model": {"drop_path_rate": rate}}
        trainer(data, tmp_path / f"{batch_size}", **fields).train()
        losses.append([line["loss"] for line in lines(tmp_path / f"{batch_size}") if "loss" in line])
    assert (losses[0] == pytest.approx(losses[1], rel=1e-4)) == equal


def test_resume_is_exact(data: tuple[Any, LabelMap], tmp_path: Path) -> None:
    fields = {"save_every": 2, "eval_every": 2, "model": {"classifier_dropout_prob": 0.1, "drop_path_rate": 0.1}}
    trainer(data, tmp_path / "whole", **fields).train()
    stopped = trainer(data, tmp_path / "stopped", **fields)
    original = stopped.run.write

    def stop(record: dict[str, Any]) -> None:
        original(record)
        if record.get("step") == 3:
            raise KeyboardInterrupt

    stopped.run.write = stop
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    result = trainer(data, tmp_path / "stopped", resume="auto", **fields).train()
    a, b = weights(tmp_path / "whole" / "final"), weights(tmp_path / "stopped" / "final")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert computed(tmp_path / "whole") == computed(tmp_path / "stopped")
    assert result["step"] == 4


@pytest.mark.parametrize("fields", [{"accumulation_steps": 2, "batch_size": 2}, {"ema_decay": 0.9}, {"num_workers": 2}])
def test_stopped_on_request_and_resumed_is_exact(
    data: tuple[Any, LabelMap], tmp_path: Path, fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = {"eval_every": 2, "model": {"classifier_dropout_prob": 0.1, "drop_path_rate": 0.1}} | fields
    whole = trainer(data, tmp_path / "whole", **fields).train()
    assert "stopped" not in whole
    run = trainer(data, tmp_path / "stopped", time_limit="1h", **fields)
    with monkeypatch.context() as planted:
        planted.setattr(StopRequest, "reason", property(lambda self: "enough" if run.step == 3 else None))
        result = run.train()
    assert result["stopped"] == "enough" and result["step"] == 3
    assert not (tmp_path / "stopped" / "final").exists()
    trainer(data, tmp_path / "stopped", resume="auto", **fields).train()
    for name in ("best", "final"):
        a, b = ((tmp_path / run / name / "model.safetensors").read_bytes() for run in ("whole", "stopped"))
        assert a == b
    evals = [[line for line in lines(tmp_path / run) if "mean_iou" in line] for run in ("whole", "stopped")]
    assert evals[0] == evals[1] and len(evals[0]) == 2


@pytest.mark.parametrize("interrupted", [1, 2])
@pytest.mark.parametrize("fields", [{}, {"ema_decay": 0.9}])
def test_stopped_in_an_evaluation_and_resumed_is_exact(
    data: tuple[Any, LabelMap],
    tmp_path: Path,
    fields: dict[str, Any],
    interrupted: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of two evaluations either one, between its images; the second is after the last step."""
    fields = {"eval_every": 2, "save_every": 0, "model": {"classifier_dropout_prob": 0.1}} | fields
    trainer(data, tmp_path / "whole", **fields).train()
    run, save = trainer(data, tmp_path / "stopped", **fields), Comparisons.save

    def interrupt(self: Comparisons, *image: Any) -> None:
        save(self, *image)
        if run.step == 2 * interrupted:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as planted:
        planted.setattr(Comparisons, "save", interrupt)
        result = run.train()
    assert (result["stopped"], result["step"]) == ("SIGTERM was received", 2 * interrupted)
    assert not (tmp_path / "stopped" / "final").exists()
    trainer(data, tmp_path / "stopped", resume="auto", **fields).train()
    for name in ("best", "final"):
        a, b = ((tmp_path / side / name / "model.safetensors").read_bytes() for side in ("whole", "stopped"))
        assert a == b
    evals = [[line for line in lines(tmp_path / side) if "mean_iou" in line] for side in ("whole", "stopped")]
    assert evals[0] == evals[1] and len(evals[0]) == 2


def test_a_time_limit_that_leaves_no_step_is_told_and_kept(
    data: tuple[Any, LabelMap], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    result = trainer(data, tmp_path / "run", time_limit="1s").train()
    assert (result["step"], result["stopped"]) == (0, "training.time_limit is reached")
    assert "training.time_limit=1s cannot suffice for one step and saving" in caplog.text
    assert trainer(data, tmp_path / "run", resume="auto").train()["step"] == 4


def stop_at(planted: pytest.MonkeyPatch, run: SegmentationTrainer, step: int, reason: str) -> None:
    planted.setattr(StopRequest, "reason", property(lambda self: reason if run.step == step else None))


@pytest.mark.parametrize("fields", [{}, {"ema_decay": 0.5}])
def test_a_time_limit_before_the_first_evaluation_leaves_the_weights(
    data: tuple[Any, LabelMap], tmp_path: Path, fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a checkpoint in the training state; what follows is as if it was not there."""
    trainer(data, tmp_path / "whole", **fields).train()
    run = trainer(data, tmp_path / "run", **fields)
    with monkeypatch.context() as planted:
        stop_at(planted, run, 2, LIMIT)
        result = run.train()
    folder = tmp_path / "run" / "checkpoints" / "step-000002" / "model"
    assert (result["step"], result["stopped"], result["best"], result["weights"]) == (2, LIMIT, {}, str(folder))
    saved, state = weights(folder), weights(folder.parent)
    expected = state if run.ema is None else state | run.ema.averages
    assert all(torch.equal(saved[name], value) for name, value in expected.items()) and saved.keys() == state.keys()
    assert load_model(folder).config.id2label == dict(enumerate(data[1].names))
    with pytest.raises(UsageError, match=r"did you mean .*step-000002/model?"):
        refuse_missing(tmp_path / "run")
    assert not any((tmp_path / "run" / name).exists() for name in ("best", "final"))
    trainer(data, tmp_path / "run", resume="auto", keep_last=1, **fields).train()
    for name in ("best", "final"):
        a, b = ((tmp_path / side / name / "model.safetensors").read_bytes() for side in ("whole", "run"))
        assert a == b


def test_weights_are_left_by_a_limit_alone_and_before_a_best_alone(
    data: tuple[Any, LabelMap], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for reason, step, every in (("SIGTERM was received", 2, None), (LIMIT, 3, 2)):
        run = trainer(data, tmp_path / reason, eval_every=every)
        with monkeypatch.context() as planted:
            stop_at(planted, run, step, reason)
            result = run.train()
        assert (result["stopped"], result["weights"]) == (reason, None)
        assert not list((tmp_path / reason).glob("checkpoints/*/model"))


@pytest.mark.slow
def test_an_evaluation_that_outlasts_the_time_limit_is_left_and_made_up_for(
    data: tuple[Any, LabelMap], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fields = {"eval_every": 2, "time_limit": "10s", "save_every": 0}
    with monkeypatch.context() as planted:
        planted.setattr(Comparisons, "save", lambda self, *image: threading.Event().wait(600))
        result = trainer(data, tmp_path / "run", **fields).train()
        assert (result["step"], result["stopped"]) == (2, "training.time_limit is reached")
        with StopRequest(10, started=time.monotonic() - 4) as request:
            result = trainer(data, tmp_path / "run", resume="auto", **fields).train(request)
        assert result["step"] == 2
        assert "training.time_limit=10s cannot suffice for one evaluation and saving" in caplog.text
    assert trainer(data, tmp_path / "run", resume="auto", **(fields | {"time_limit": None})).train()["step"] == 4
    assert [line["step"] for line in lines(tmp_path / "run") if "mean_iou" in line] == [2, 4]


@pytest.mark.parametrize("damaged", ["model.safetensors", "config.json", "preprocessor_config.json", "."])
@pytest.mark.parametrize("keep_last", [3, 1])
def test_a_damaged_best_is_told_and_restored_where_a_state_has_it(
    data: tuple[Any, LabelMap],
    tmp_path: Path,
    damaged: str,
    keep_last: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    run, fields = tmp_path / "run", {"eval_every": 2, "save_every": 1, "keep_last": keep_last, "ema_decay": 0.5}
    first = trainer(data, run, **fields)
    with monkeypatch.context() as planted:
        planted.setattr(StopRequest, "reason", property(lambda self: "enough" if first.step == 3 else None))
        assert first.train()["best"]["step"] == 2
    whole = (run / "best" / "model.safetensors").read_bytes()
    if damaged == ".":
        shutil.rmtree(run / "best")
    else:
        content = bytearray((run / "best" / damaged).read_bytes())
        content[random.Random(damaged).randrange(len(content))] ^= 4
        (run / "best" / damaged).write_bytes(content)
    again = trainer(data, run, resume="auto", **fields)
    again.validation._is_better = lambda value: not again.validation.best  # type: ignore[method-assign]
    best = again.train()["best"]
    assert str(run / "best") in caplog.text
    if keep_last == 3:
        assert best["step"] == 2 and "best/ is restored from" in caplog.text
        assert (run / "best" / "model.safetensors").read_bytes() == whole
    else:
        assert best["step"] == 4 and "no training state of step 2 is left" in caplog.text
    check_model(run / "best")


def test_the_images_of_a_step_may_be_divided_anew(
    data: tuple[Any, LabelMap], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fields = {"save_every": 2, "batch_norm": "frozen", "schedule": "constant"}
    trainer(data, tmp_path / "run", **fields).train()
    with pytest.raises(UsageError, match=r"took 4 images, 4 x 1 x 1 .* now 2, 2 x 1 x 1: change training.batch_size"):
        trainer(data, tmp_path / "run", resume="auto", batch_size=2, **fields).train()
    assert lines(tmp_path / "run")[-1]["ended"] == "done"  # nothing was touched
    before = weights(tmp_path / "run" / "final")
    result = trainer(data, tmp_path / "run", resume="auto", batch_size=2, accumulation_steps=2, **fields).train()
    assert "took 4 images, 4 x 1 x 1" in caplog.text and "now 4, 2 x 2 x 1" in caplog.text
    after = weights(tmp_path / "run" / "final")
    assert result["step"] == 4
    assert all(torch.allclose(after[name], value, rtol=1e-3, atol=1e-4) for name, value in before.items())


def test_a_state_of_another_run_has_no_best_yet(data: tuple[Any, LabelMap], tmp_path: Path) -> None:
    trainer(data, tmp_path / "old", save_every=2, eval_every=1).train()
    state = str(tmp_path / "old" / "checkpoints" / "step-000002")
    result = trainer(data, tmp_path / "new", resume=state, learning_rate=1e-9).train()
    assert result["best"]["step"] == 4 and (tmp_path / "new" / "best" / "model.safetensors").is_file()
    with pytest.raises(UsageError, match=r"is of step 2: training.max_steps=2 is done"):
        trainer(data, tmp_path / "other", resume=state, max_steps=2).train()


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


@pytest.mark.parametrize(("schedule", "last"), [("poly", 0.25), ("constant", 1.0)])
def test_schedule_and_freezing_reach_the_optimiser(
    data: tuple[Any, LabelMap], tmp_path: Path, schedule: str, last: float
) -> None:
    frozen = {"freeze": {"stages": (1, 2)}, "batch_norm": "frozen"}
    run = trainer(data, tmp_path / "run", schedule=schedule, warmup_steps=0, layer_decay=0.5, **frozen)
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
    with pytest.raises(
        UsageError,
        match=r"holds a run \(recipe.yaml, split.json, metrics.jsonl, best, final, overlays, evaluation-val.npz\)",
    ):
        trainer(data, tmp_path / "run", max_steps=1).train()
    assert [set(line) & {"environment", "loss", "mean_iou", "ended"} for line in lines(tmp_path / "run")] == [
        {"environment"}, {"loss"}, {"mean_iou"}, {"ended"}
    ]  # fmt: skip
    trainer(data, tmp_path / "run", max_steps=1, seed=1, overwrite=True).train()
    after = weights(tmp_path / "run" / "final")
    assert not all(torch.equal(before[name], after[name]) for name in before)
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"


def test_it_learns(data: tuple[Any, LabelMap], tmp_path: Path) -> None:
    trainer(data, tmp_path / "run", max_steps=40, learning_rate=3e-3, head_lr_multiplier=1).train()
    losses = [line["loss"] for line in lines(tmp_path / "run") if "loss" in line]
    assert sum(losses[-5:]) < 0.85 * sum(losses[:5])


@pytest.mark.parametrize("num_labels", [pytest.param(1, marks=pytest.mark.slow), 4])
@pytest.mark.parametrize(
    "loss",
    [
        {"focal": 1},
        {"ohem": 1, "ohem_min_kept": 0.8},
        {"dice": 1},
        {"tversky": 1},
        {"lovasz": 1},
        {"cross_entropy": 1, "boundary": 0.02},
    ],
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
        processor=processor_from_transforms(TRANSFORMS),
    ).train()
    values = [line["loss"] for line in lines(tmp_path / "run") if "loss" in line]
    assert len(values) == 20
    assert sum(values[-5:]) < 0.95 * sum(values[:5])


def test_the_boundary_loss_is_computed_of_distances_that_were_loaded(
    data: tuple[Any, LabelMap], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_terms, "signed_distance", None)
    loss = LossConfig(cross_entropy=1, boundary=0.02)
    assert trainer(data, tmp_path / "run", max_steps=1, loss=loss).train()["step"] == 1


def test_without_validation_the_last_weights_are_the_best(data: tuple[Any, LabelMap], tmp_path: Path) -> None:
    run = trainer(data, tmp_path / "run", max_steps=1)
    run.eval_dataset = None
    assert run.train()["best"] == {}
    assert (tmp_path / "run" / "best" / "model.safetensors").read_bytes() == (
        tmp_path / "run" / "final" / "model.safetensors"
    ).read_bytes()


def test_non_finite_loss_stops(data: tuple[Any, LabelMap], tmp_path: Path) -> None:
    """At once, not at the next line of the log; the samples are kept, and what was best before as well."""
    run = trainer(data, tmp_path / "run", eval_every=1, log_every=100, max_steps=3)
    best = []
    validate = run._validate

    def spoil(at_once: Any) -> dict[str, Any]:
        scores = validate(at_once)
        best.append((tmp_path / "run" / "best" / "model.safetensors").read_bytes())
        with torch.no_grad():
            run.model.decode_head.classifier.bias.fill_(float("nan"))
        return scores

    run._validate = spoil
    with pytest.raises(SegtuneError, match="the loss is nan at step 2, whose samples are kept in") as caught:
        run.train()
    assert caught.value.exit_code == 1
    kept = json.loads((tmp_path / "run" / "non_finite" / "step-000002" / "samples.json").read_text())
    assert len(kept["ids"][0][0]) == 4 and set(kept["ids"][0][0]) <= set(data[0]["train"]["id"])
    assert best == [(tmp_path / "run" / "best" / "model.safetensors").read_bytes()]


def counted(scores: Callable[[], dict[str, Any]]) -> SimpleNamespace:
    """Stands for an evaluation with these scores."""
    return SimpleNamespace(scores=scores, save=lambda path: None)


def test_a_run_ends_early_when_it_gets_no_better(data: tuple[Any, LabelMap], tmp_path: Path) -> None:
    """Also when it is resumed in between: the evaluations without a better one go on being counted."""
    values = [0.1, 0.3, 0.2, 0.3, 0.1, 0.4]
    fields = {"eval_every": 1, "save_every": 1, "max_steps": 6, "early_stopping_patience": 3}

    def start(folder: str, **more: Any) -> dict[str, Any]:
        run = trainer(data, tmp_path / folder, **fields, **more)
        run.validation.count = lambda model, dataset, on_image: counted(lambda: {"mean_iou": values[run.step - 1]})
        return run.train()

    result = start("run")
    assert result["step"] == 5 and result["best"] == {"step": 2, "mean_iou": 0.3} and "stopped" not in result
    assert lines(tmp_path / "run")[-1]["ended"] == "early: no better mean_iou in 3 evaluations"
    final = (tmp_path / "run" / "final" / "model.safetensors").read_bytes()
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-000004")
    shutil.rmtree(tmp_path / "run" / "final")
    assert start("run", resume="auto") == result
    assert (tmp_path / "run" / "final" / "model.safetensors").read_bytes() == final


def test_adapters_train_go_on_and_leave_a_plain_model(data: tuple[Any, LabelMap], tmp_path: Path) -> None:
    splits, label_map = data
    base = tmp_path / "base"
    build_model(ModelConfig(config=TINY), label_map).save_pretrained(base)

    def start(folder: str, **fields: Any) -> None:
        config = {"output_dir": str(tmp_path / folder), "max_steps": 4, "batch_size": 2, "save_every": 2}
        SegmentationTrainer(
            build_model(ModelConfig(name=str(base), lora={"rank": 2}), label_map),
            TrainingConfig(**config, learning_rate=1e-2, **fields),
            train_dataset=splits["train"],
            eval_dataset=splits["val"],
            label_map=label_map,
            transforms=TRANSFORMS,
            processor=processor_from_transforms(TRANSFORMS),
        ).train()

    start("whole")
    start("resumed", resume=str(tmp_path / "whole" / "checkpoints" / "step-000002"))
    assert weights(tmp_path / "whole" / "final").keys() == load_file(base / "model.safetensors").keys()
    for file in ("model.safetensors", "adapter/adapter_model.safetensors"):
        a, b = ((tmp_path / name / "final" / file).read_bytes() for name in ("whole", "resumed"))
        assert a == b, file
    final = tmp_path / "whole" / "final"
    adapted = load_adapter(load_model(base), final / "adapter").eval()
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        plain = load_model(final).eval()(image).logits
        torch.testing.assert_close(adapted(image).logits, plain, rtol=1e-4, atol=1e-5)


def test_bf16_and_gradient_checkpointing_run(data: tuple[Any, LabelMap], tmp_path: Path) -> None:
    result = trainer(
        data, tmp_path / "run", max_steps=2, mixed_precision="bf16", gradient_checkpointing=True, max_grad_norm=1.0
    ).train()
    assert result["step"] == 2
    assert all(value.dtype != torch.bfloat16 for value in weights(tmp_path / "run" / "final").values())


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
    assert stdout.splitlines()[-2] == "no best/ yet, which the first evaluation writes"
    assert "training.resume=auto" in stdout.splitlines()[-1]
    assert "Traceback" not in stderr
    assert len(list((tmp_path / "run" / "checkpoints").glob("step-*"))) == 1


# --- as on a GPU -----------------------------------------------------------------------------------------------------


@pytest.fixture
def scaled(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """float16 with a loss that is scaled by the parameter, on the CPU: what Accelerate sets up on a GPU."""

    def make(device: str, mixed_precision: str) -> Any:
        accelerator = make_accelerator("cpu")
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=request.param, growth_interval=2)
        accelerator.native_amp = True
        accelerator.state._mixed_precision = "fp16"
        return accelerator

    monkeypatch.setattr("segtune.training.trainer.make_accelerator", make)


@pytest.mark.parametrize("scaled", [2.0**24], indirect=True)
def test_the_loss_scale_finds_its_size_and_is_resumed(scaled: None, data: tuple[Any, LabelMap], tmp_path: Path) -> None:
    settings = {"max_steps": 9, "save_every": 7, "keep_last": 1, "batch_size": 1}
    run = trainer(data, tmp_path / "run", **settings)
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    run.train()
    steps = [line for line in computed(tmp_path / "run") if "loss" in line]
    assert steps[0]["grad_norm"] is None and steps[0]["loss_scale"] == 2.0**23
    assert 1 <= steps[-1]["loss_scale"] < 2.0**23 and any(step["grad_norm"] for step in steps)
    weight = "segformer.encoder.block.0.0.mlp.dense1.weight"
    assert not torch.equal(run.model.state_dict()[weight], before[weight])
    whole = weights(tmp_path / "run" / "final")
    trainer(data, tmp_path / "run", resume="auto", **settings).train()
    assert [line for line in computed(tmp_path / "run") if "loss" in line] == steps
    again = weights(tmp_path / "run" / "final")
    assert all(torch.equal(again[name], value) for name, value in whole.items())


@pytest.mark.parametrize("scaled", [2.0**-6], indirect=True)
def test_gradients_that_overflow_for_ever_end_the_run(scaled: None, data: tuple[Any, LabelMap], tmp_path: Path) -> None:
    run = trainer(data, tmp_path / "run", max_steps=200, log_every=100, batch_size=1)
    next(run.model.parameters()).register_hook(lambda gradient: gradient * torch.inf)
    with pytest.raises(SegtuneError, match=r"norm is \w+ at step 4, as in 4 steps in a row"):
        run.train()
    assert not (tmp_path / "run" / "final").exists()


def test_a_deterministic_run_is_the_same_again(data: tuple[Any, LabelMap], tmp_path: Path) -> None:
    """No operation that the loop or an evaluation takes is refused."""
    for name in ("one", "two"):
        trainer(data, tmp_path / name, max_steps=2, batch_size=2, deterministic=True).train()
    assert lines(tmp_path / "two")[0]["environment"]["deterministic"] is True
    assert not torch.are_deterministic_algorithms_enabled()
    one, two = (weights(tmp_path / name / "final") for name in ("one", "two"))
    assert all(torch.equal(two[name], value) for name, value in one.items())


@pytest.mark.slow
def test_a_compiled_step_learns_the_same(
    data: tuple[Any, LabelMap], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced and differentiated as for the compiler, which itself is left out: it takes minutes."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    settings = {"max_steps": 2, "batch_size": 1}
    for name, compile in (("plain", False), ("compiled", True)):
        trainer(data, tmp_path / name, {"drop_path_rate": 0.0}, compile=compile, **settings).train()
    runs = (lines(tmp_path / name) for name in ("plain", "compiled"))
    plain, compiled = ([line["loss"] for line in run if "loss" in line] for run in runs)
    assert len(plain) == 2 and compiled == pytest.approx(plain, rel=1e-3)
