"""Runs that learn from a teacher and from unlabelled pictures: how a step is divided, going on, what is logged."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from segtune.data.config import TransformConfig
from segtune.data.dataset import DatasetConfig, find_label_map, load_segmentation_dataset
from segtune.errors import UsageError
from segtune.inference.processor import processor_from_transforms
from segtune.labels.label_map import LabelMap
from segtune.training.checkpoint import save_model
from segtune.training.config import ModelConfig, TrainingConfig
from segtune.training.interrupts import StopRequest
from segtune.training.losses.distillation import distillation_loss
from segtune.training.model import build_model
from segtune.training.trainer import SegmentationTrainer
from support.workers.common import TINY

TRANSFORMS = TransformConfig(crop_size=64)
MEASURED = {"images_per_second", "waiting_for_data", "peak_memory_mb", "seconds"}
SEMI = {"start_step": 0, "ramp_steps": 0, "min_confidence": 0.0, "cutmix": 0.7}  # random weights are never sure

Data = tuple[Any, LabelMap]


@pytest.fixture(scope="module")
def data() -> Data:
    splits = load_segmentation_dataset("segtune://earth")
    return splits, find_label_map(DatasetConfig(path="segtune://earth"))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory, data: Data) -> Path:
    """Another network, with other widths, from other random weights."""
    folder = tmp_path_factory.mktemp("teacher") / "best"
    model = build_model(ModelConfig(config=TINY | {"decoder_hidden_size": 24}), data[1], seed=7)
    with torch.no_grad():
        model.decode_head.classifier.weight.mul_(20)  # so that it has opinions
    save_model(folder, model, processor_from_transforms(TRANSFORMS))
    return folder


def trainer(data: Data, folder: Path, model: dict[str, Any] | None = None, **fields: Any) -> SegmentationTrainer:
    splits, label_map = data
    given = {"output_dir": str(folder), "max_steps": 4, "batch_size": 4, "log_every": 1, "learning_rate": 1e-3}
    config = TrainingConfig(**given | fields)
    return SegmentationTrainer(
        build_model(ModelConfig(config=TINY | (model or {})), label_map, seed=config.seed),
        config,
        train_dataset=splits["train"].select(range(12)),
        eval_dataset=splits["val"].select(range(3)),
        label_map=label_map,
        transforms=TRANSFORMS,
        processor=processor_from_transforms(TRANSFORMS),
        recipe="# a recipe\n",
        unlabelled=splits["train"].select(range(12, 25)).remove_columns("mask") if config.semi else None,
    )


def guided(teacher: Path, kind: str) -> dict[str, Any]:
    distill = {"distill": {"teacher": str(teacher), "weight": 0.7, "temperature": 2}}
    semi = {"semi": SEMI, "ema_decay": 0.9}
    return {"distill": distill, "semi": semi, "both": distill | semi}[kind]


def lines(folder: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in record.items() if key not in MEASURED} for record in records]


def first_step(run: SegmentationTrainer) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """The gradient of the first step, with unequal numbers of ignored pixels, and its terms."""
    if run.guidance.semi is not None:  # some pixels are sure, and some are not
        run.guidance.semi.temperature = 5e-4
        run.guidance.semi.config = run.guidance.semi.config.model_copy(update={"min_confidence": 0.6})
    run.model.train()
    run.model.decode_head.batch_norm.eval()  # batch statistics differ between micro-batches: freeze them
    run.optimizer.zero_grad = lambda: None  # type: ignore[method-assign]
    micro_batches = next(run._batches())
    whole = torch.cat([batch["labels"] for batch in micro_batches])
    whole[0] = 255
    whole[1, :20] = 255
    for batch, labels in zip(micro_batches, whole.split(run.config.batch_size), strict=True):
        batch["labels"] = labels
    run._optimizer_step(micro_batches)
    return (
        {name: p.grad.clone() for name, p in run.model.named_parameters() if p.grad is not None},
        {name: float(value) for name, value in run.terms.items()},
    )


@pytest.mark.parametrize("split", [(2, 2), (1, 4)])
@pytest.mark.parametrize("kind", ["distill", "semi"])
def test_accumulation_gives_the_gradient_of_the_whole_batch(
    data: Data, teacher: Path, tmp_path: Path, kind: str, split: tuple[int, int]
) -> None:
    found = []
    for size, steps in ((4, 1), split):
        layout = {"batch_size": size, "accumulation_steps": steps}
        found.append(first_step(trainer(data, tmp_path / f"{size}", **layout, **guided(teacher, kind))))
    (whole, terms), (parts, others) = found
    assert terms == pytest.approx(others, rel=1e-5) and all(value > 0 for value in terms.values())
    assert terms.get("semi_share", 0.5) == pytest.approx(0.5, abs=0.4)
    largest = max(gradient.abs().max() for gradient in whole.values())
    for name, gradient in whole.items():
        scale = max(gradient.abs().max(), 1e-3 * largest)
        assert (gradient - parts[name]).abs().max() <= 1e-5 * scale, name


@pytest.mark.parametrize("kind", ["distill", "semi"])
def test_it_changes_the_gradient_by_the_term(data: Data, teacher: Path, tmp_path: Path, kind: str) -> None:
    """What the tests of invariance would not see: a term that is never added."""
    plain, _ = first_step(trainer(data, tmp_path / "plain", ema_decay=0.9))
    other, _ = first_step(trainer(data, tmp_path / "guided", **guided(teacher, kind)))
    assert max((plain[name] - other[name]).abs().max() / plain[name].abs().max() for name in plain) > 0.05


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["distill", "semi"])
def test_two_processes_compute_what_one_does(
    launch: Callable[..., list[str]], teacher: Path, tmp_path: Path, kind: str
) -> None:
    results = []
    settings = guided(teacher, kind) | {"batch_norm": "frozen"}
    for processes, size, steps in ((1, 8, 1), (2, 4, 1), (2, 1, 4)):
        file = tmp_path / f"{processes}-{size}.pt"
        layout = {"batch_size": size, "accumulation_steps": steps}
        launch(processes, "steps.py", str(file), json.dumps([settings | layout]))
        results += torch.load(file)
    for other in results[1:]:
        assert other["losses"] == pytest.approx(results[0]["losses"], rel=1e-5) and len(set(other["losses"])) == 3
        for part in ("gradient", "state"):
            values = {name: value for name, value in results[0][part].items() if value.is_floating_point()}
            largest = max(value.abs().max() for value in values.values())
            for name, value in values.items():
                scale = max(value.abs().max(), 1e-3 * largest)
                assert (value - other[part][name]).abs().max() <= 1e-5 * scale, (part, name)


@pytest.mark.parametrize("kind", ["distill", "both"])
@pytest.mark.parametrize("stop", [2, 3])
def test_stopped_and_resumed_is_exact(
    data: Data, teacher: Path, tmp_path: Path, kind: str, stop: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = guided(teacher, kind) | {"eval_every": 2, "max_steps": 5}
    fields["model"] = {"classifier_dropout_prob": 0.1, "drop_path_rate": 0.1}
    if kind == "both":
        fields["semi"] = SEMI | {"start_step": 1, "ramp_steps": 3}
    trainer(data, tmp_path / "whole", **fields).train()
    run = trainer(data, tmp_path / "stopped", **fields)
    with monkeypatch.context() as planted:
        planted.setattr(StopRequest, "reason", property(lambda self: "enough" if run.step == stop else None))
        assert run.train()["step"] == stop
    trainer(data, tmp_path / "stopped", resume="auto", **fields).train()
    for name in ("best", "final"):
        a, b = ((tmp_path / side / name / "model.safetensors").read_bytes() for side in ("whole", "stopped"))
        assert a == b
    ended = [record for record in lines(tmp_path / "stopped") if "ended" not in record]
    assert ended == [record for record in lines(tmp_path / "whole") if "ended" not in record]


def test_interrupted_while_it_calibrates_and_resumed_is_exact(
    data: Data, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The temperature is fitted once more, and no line is written twice."""
    fields = guided(teacher, "semi") | {"eval_every": 2}
    trainer(data, tmp_path / "whole", **fields).train()
    run = trainer(data, tmp_path / "stopped", **fields)
    calibrate = run.guidance.calibrate

    def interrupt(model: Any) -> None:
        calibrate(model)
        if run.step == 2 and run.evaluation_due:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as planted:
        planted.setattr(run.guidance, "calibrate", interrupt)
        assert run.train()["step"] == 2
    trainer(data, tmp_path / "stopped", resume="auto", **fields).train()
    a, b = ((tmp_path / side / "final" / "model.safetensors").read_bytes() for side in ("whole", "stopped"))
    assert a == b
    assert [line["step"] for line in lines(tmp_path / "stopped") if "mean_iou" in line] == [2, 4]


def test_terms_are_logged_beside_the_loss_and_add_up(data: Data, teacher: Path, tmp_path: Path) -> None:
    fields = guided(teacher, "both") | {"semi": SEMI | {"start_step": 2, "ramp_steps": 2}}
    trainer(data, tmp_path / "run", **fields).train()
    steps = [line for line in lines(tmp_path / "run") if "loss" in line]
    assert all(line["distill"] > 0 for line in steps)
    assert [line["semi"] > 0 for line in steps] == [False, False, True, True]
    assert all(0 < line["semi_share"] <= 1 for line in steps[2:])
    # the first step has the distillation alone beside the cross-entropy, which a run without it shows
    trainer(data, tmp_path / "plain", ema_decay=0.9).train()
    plain = next(line for line in lines(tmp_path / "plain") if "loss" in line)
    assert "distill" not in plain
    assert steps[0]["loss"] == pytest.approx(plain["loss"] + 0.7 * steps[0]["distill"], rel=1e-5)


def test_the_weight_follows_its_ramp(data: Data, teacher: Path, tmp_path: Path) -> None:
    fields = {"semi": {"weight": 2, "start_step": 10, "ramp_steps": 4}, "ema_decay": 0.9, "max_steps": 100}
    semi = trainer(data, tmp_path / "run", **fields).guidance.semi
    assert semi is not None
    expected = [0.0, 2 * 2.718281828 ** (-5 * 0.5625), 2 * 2.718281828 ** (-5 * 0.25), 2.0, 2.0]
    assert [semi.weight(step) for step in (9, 10, 11, 13, 99)] == pytest.approx(expected)


def test_a_student_of_some_of_the_classes_learns_where_the_teacher_knows_them(
    data: Data, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Names differ in case and order, one class is the data's alone and one the teacher's."""
    names = ["Ice", "bare", "tundra", "WATER"]
    model = build_model(ModelConfig(config=TINY), LabelMap.from_names(names), seed=3)
    save_model(tmp_path / "teacher", model, processor_from_transforms(TRANSFORMS))
    caplog.set_level("INFO", "segtune")
    run = trainer(data, tmp_path / "run", distill={"teacher": str(tmp_path / "teacher"), "temperature": 1})
    assert data[1].names == ("water", "vegetation", "bare", "ice")
    assert "3 classes shared" in caplog.text and "vegetation" in caplog.text and "tundra" in caplog.text
    batch = next(run._batches())[0]
    run.guidance.prepare([batch], 0, run.model)
    logits = run.model(batch["pixel_values"]).logits.detach()
    known = torch.isin(batch["labels"], torch.tensor([0, 2, 3]))
    theirs = model.eval()(batch["pixel_values"]).logits.detach()[:, [3, 1, 0]]
    expected = distillation_loss(logits[:, [0, 2, 3]], theirs, known) / known.sum()
    counts = run.guidance.prepare([batch], 0, run.model)
    assert counts.tolist() == [known.sum()]
    _, shares = run.guidance(logits, batch, counts)
    assert float(shares[0]) == pytest.approx(float(expected), rel=1e-6)


def test_teachers_that_fit_nothing_are_refused(data: Data, tmp_path: Path) -> None:
    other = build_model(ModelConfig(config=TINY), LabelMap.from_names(["cat", "dog", "water"]))
    save_model(tmp_path / "teacher", other, processor_from_transforms(TRANSFORMS))
    for name, message in (
        (tmp_path / "teacher", r"shares 1 classes with the data set by name, and two are needed: it knows cat, dog"),
        (tmp_path / "nowhere", r"cannot be loaded|no such"),
        (Path(__file__), "is a file"),
    ):
        with pytest.raises(UsageError, match=message):
            trainer(data, tmp_path / "run", distill={"teacher": str(name)})


def test_other_unlabelled_pictures_are_refused_on_resume(data: Data, teacher: Path, tmp_path: Path) -> None:
    fields = guided(teacher, "semi") | {"save_every": 2}
    trainer(data, tmp_path / "run", **fields).train()
    again = trainer(data, tmp_path / "run", resume="auto", **fields)
    again.guidance.pictures = "others"
    with pytest.raises(UsageError, match=r"dataset.unlabelled holds other pictures than the run began with"):
        again.train()


def test_pictures_and_settings_go_together(data: Data, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="set ema_decay"):
        TrainingConfig(semi={})
    run = trainer(data, tmp_path / "run", ema_decay=0.9)
    with pytest.raises(UsageError, match="give both"):
        run.guidance.find_sources(TRANSFORMS, (1, 1, 1), data[0]["train"].remove_columns("mask"), None)


def test_workers_change_nothing(data: Data, teacher: Path, tmp_path: Path) -> None:
    for workers in (0, 2):
        trainer(data, tmp_path / str(workers), num_workers=workers, **guided(teacher, "semi")).train()
    a, b = (load_file(tmp_path / name / "final" / "model.safetensors") for name in ("0", "2"))
    assert all(torch.equal(a[name], b[name]) for name in a)
