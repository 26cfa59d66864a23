from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator
from PIL import Image

from segtune.errors import UsageError
from segtune.training.trackers import Trackers


@pytest.fixture
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


def events(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0}).Reload()


def test_tensorboard_gets_numbers_settings_and_pictures(accelerator: Accelerator, tmp_path: Path) -> None:
    trackers = Trackers(accelerator, ("tensorboard",), tmp_path)
    trackers.start(0, {"training": {"learning_rate": 1e-3, "betas": (0.9, 0.999)}})
    trackers.log("train", {"step": 10, "loss": 0.5, "note": "no number"})
    trackers.log("val", {"step": 10, "mean_iou": 0.25, "per_class": {"car": {"iou": None, "accuracy": 0.125}}})
    Image.new("RGB", (6, 4), (255, 0, 0)).save(tmp_path / "picture.png")
    trackers.log_picture("overlays/one", tmp_path / "picture.png", 10)
    trackers.finish()

    found = events(tmp_path / "tensorboard")
    assert set(found.Tags()["scalars"]) == {"train/loss", "val/mean_iou", "val/per_class/car/accuracy"}
    (scalar,) = found.Scalars("val/mean_iou")
    assert (scalar.step, scalar.value) == (10, 0.25)
    (picture,) = found.Images("overlays/one")
    assert (picture.step, picture.width, picture.height) == (10, 6, 4)
    text = found.Tensors("settings/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "training/learning_rate: 0.001" in text and "training/betas: (0.9, 0.999)" in text


def test_a_resumed_run_forgets_what_came_after_its_state(accelerator: Accelerator, tmp_path: Path) -> None:
    for first, losses in ((0, [4.0, 3.0, 9.0]), (2, [2.0])):  # killed after step 3, resumed from step 2
        trackers = Trackers(accelerator, ("tensorboard",), tmp_path)
        trackers.start(first, {})
        for step, loss in enumerate(losses, start=first + 1):
            trackers.log("train", {"step": step, "loss": loss})
        trackers.finish()
    found = events(tmp_path / "tensorboard").Scalars("train/loss")
    assert [(scalar.step, scalar.value) for scalar in found] == [(1, 4.0), (2, 3.0), (3, 2.0)]


def test_without_names_nothing_is_sent(accelerator: Accelerator, tmp_path: Path) -> None:
    trackers = Trackers(accelerator, (), tmp_path)
    trackers.start(0, {"a": 1})
    trackers.log("train", {"step": 1, "loss": 0.5})
    trackers.log_picture("x", tmp_path / "nowhere.png", 1)
    trackers.finish()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["tensorboard", "trackio", "wandb", "mlflow"])
def test_a_tracker_that_is_not_installed(
    accelerator: Accelerator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: Any
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UsageError, match=rf"training.trackers names {name}, .*: pip install 'segtune\[{name}\]'"):
        Trackers(accelerator, (name,), tmp_path)
