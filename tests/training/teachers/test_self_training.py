from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from segtune.inference.calibrate import NothingLabelledError
from segtune.labels.label_map import LabelMap
from segtune.segformer.image_processing_segformer import SegformerImageProcessor
from segtune.training.config import SemiConfig
from segtune.training.teachers import self_training as module
from segtune.training.teachers.self_training import SelfTraining

CLASSES = LabelMap.from_names(["a", "b"])


def semi(**fields: Any) -> SelfTraining:
    return SelfTraining(SemiConfig(**fields), 100, CLASSES, SegformerImageProcessor(), None)


def sees_first_channel(pixel_values: torch.Tensor) -> Any:
    """Logits (0, x) of the first channel x at every pixel: class b where it is positive."""
    x = pixel_values[:, :1]
    return SimpleNamespace(logits=torch.cat((torch.zeros_like(x), x), 1))


def teacher(pixel_values: torch.Tensor) -> Any:
    return sees_first_channel(pixel_values)


def views(weak: torch.Tensor) -> dict[str, Any]:
    shape = (len(weak), *weak.shape[2:])
    none = torch.zeros((0, *weak.shape[1:]))
    return {
        "weak": weak,
        "real": torch.ones(shape, dtype=torch.bool),
        "partner": none,
        "partner_real": torch.ones((0, *shape[1:]), dtype=torch.bool),
        "partner_of": torch.zeros(0, dtype=torch.int64),
        "boxes": torch.zeros((0, 4), dtype=torch.int64),
    }


def test_pixels_are_labelled_where_the_teacher_is_sure_and_no_padding_is() -> None:
    """sigmoid(3) = 0.953 is sure at 0.9, sigmoid(2) = 0.881 is not; at temperature 0.5 it is sigmoid(4) = 0.982."""
    weak = torch.tensor([[3.0, -3.0], [2.0, 3.0]]).expand(1, 3, 2, 2)
    batch = views(weak)
    batch["real"][0, 1, 1] = False
    self_training = semi(min_confidence=0.9)
    self_training.label(teacher, batch)  # type: ignore[arg-type]
    assert batch["labels"].tolist() == [[[1, 0], [255, 255]]] and batch["counted"] == 3
    self_training.temperature = 0.5
    self_training.label(teacher, batch)  # type: ignore[arg-type]
    assert batch["labels"].tolist() == [[[1, 0], [1, 255]]]


def test_the_box_of_the_partner_has_its_labels_and_its_padding() -> None:
    weak = torch.full((2, 3, 4, 4), 9.0)
    batch = views(weak)
    batch["partner"], batch["partner_of"] = torch.full((1, 3, 4, 4), -9.0), torch.tensor([1])
    batch["partner_real"] = torch.ones((1, 4, 4), dtype=torch.bool)
    batch["partner_real"][0, 2] = False
    batch["boxes"] = torch.tensor([[1, 3, 0, 2]])  # rows 1 and 2, columns 0 and 1
    semi().label(teacher, batch)  # type: ignore[arg-type]
    assert batch["labels"][0].unique().tolist() == [1]
    assert batch["labels"][1].tolist() == [[1, 1, 1, 1], [0, 0, 1, 1], [255, 255, 1, 1], [1, 1, 1, 1]]
    assert batch["counted"] == 30


def test_the_loss_is_summed_over_sure_pixels() -> None:
    batch = {"labels": torch.tensor([[[1, 255], [0, 255]]])}
    logits = torch.zeros(1, 2, 2, 2)
    torch.testing.assert_close(semi().loss(logits, batch), 2 * torch.tensor(2.0).log())


def test_start_and_ramp_are_shares_of_the_run_by_default() -> None:
    found = semi()
    assert (found.start_step, found.ramp_steps, found.weight(9), found.weight(30)) == (10, 20, 0.0, 1.0)
    assert 0 < found.weight(10) < found.weight(20) < 1


def test_a_validation_split_without_a_label_calibrates_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fit(*given: object, **options: object) -> None:
        raise NothingLabelledError("there is no labelled pixel")

    monkeypatch.setattr(module, "fit_temperature", fit)
    found = semi()
    found.eval_dataset, found.temperature = object(), None  # type: ignore[assignment]
    found.calibrate(nn.Identity())
    assert found.temperature == 1.0 and "confidences are not calibrated" in caplog.text
