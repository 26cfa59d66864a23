"""The micro-batches of steps from rows at hand; those of streams are in test_streaming."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import torch

from segtune.data.config import TransformConfig
from segtune.data.dataset import DatasetConfig, find_label_map, load_segmentation_dataset
from segtune.data.loader import TrainingBatches
from segtune.errors import UsageError


@pytest.fixture
def make(earth: Path) -> Any:
    rows = load_segmentation_dataset(earth)["train"].select(range(6))
    label_map = find_label_map(DatasetConfig(path=str(earth)))

    def made(rows: Any = rows, **options: Any) -> TrainingBatches:
        return TrainingBatches(rows, label_map, TransformConfig(crop_size=16), 5, **options)

    return made


def ids(steps: Any) -> list[list[list[str]]]:
    return [[batch["ids"] for batch in step] for step in steps]


def test_how_the_images_of_a_step_are_divided(make: Any) -> None:
    batches = make(batch_size=2, accumulation_steps=3, num_processes=4, process_index=3)
    assert batches.layout == (2, 3, 4) and batches.images_per_step == 24
    assert batches.epoch(1) == 24 / 6
    (step,) = batches.steps(0, 1)
    assert [batch["pixel_values"].shape for batch in step] == [(2, 3, 16, 16)] * 3
    assert [batch["labels"].shape for batch in step] == [(2, 16, 16)] * 3


def test_the_processes_share_the_images_of_a_step(make: Any) -> None:
    parts = [ids(make(batch_size=1, num_processes=3, process_index=index).steps(0, 2)) for index in range(3)]
    whole = ids(make(batch_size=3).steps(0, 2))
    assert [[part[step][0][0] for part in parts] for step in (0, 1)] == [step[0] for step in whole]


def test_a_run_goes_on_at_its_step_and_leaves_the_global_generator_alone(make: Any) -> None:
    whole = list(make(batch_size=2).steps(0, 5))
    resumed = make(batch_size=2)
    resumed.restore(None)  # rows at hand need the step only
    torch.manual_seed(3)
    before = torch.get_rng_state()
    rest = list(resumed.steps(3, 5))
    assert torch.equal(torch.get_rng_state(), before)
    assert ids(rest) == ids(whole[3:]) and resumed.state_after(5) is None
    assert torch.equal(rest[0][0]["pixel_values"], whole[3][0]["pixel_values"])


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("unable to allocate shared memory(shm) for file </torch_1_2>: No space left on device (28)"),
        OSError(errno.ENOSPC, "No space left on device"),
    ],
)
def test_without_shared_memory_batches_are_copied(
    make: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    def refuse(self: torch.Tensor) -> None:
        raise error

    expected = list(make(batch_size=2, distances_from=0).steps(0, 3))
    monkeypatch.setattr(torch.Tensor, "share_memory_", refuse)
    found = list(make(batch_size=2, distances_from=0).steps(0, 3, num_workers=1))
    assert ids(found) == ids(expected)
    for (a,), (b,) in zip(found, expected, strict=True):
        assert torch.equal(a["pixel_values"], b["pixel_values"]) and torch.equal(a["labels"], b["labels"])
        assert torch.equal(a["distances"].maps, b["distances"].maps) and torch.equal(
            a["distances"].of, b["distances"].of
        )
        assert a["distances"].per_image == b["distances"].per_image
    assert caplog.text.count("docker run --shm-size=2g gives more, training.num_workers=0 needs none") == 1


def test_nothing_to_train_on_is_refused(make: Any) -> None:
    empty = make(batch_size=1).samples.dataset.select([])
    with pytest.raises(UsageError, match="the training split is empty"):
        make(empty, batch_size=1)


def test_a_stream_of_another_number_of_processes_is_refused(make: Any) -> None:
    batches = make(batch_size=1, num_processes=2)
    batches.streamed = True
    with pytest.raises(UsageError, match="of 1 streaming processes, now there are 2"):
        batches.restore([{"epoch": 0}])
    with pytest.raises(UsageError, match="of 0 streaming processes"):
        batches.restore(None)
    batches.process_index = 1
    batches.restore([{"epoch": 0}, {"epoch": 1}])
    assert batches.stream_state == {"epoch": 1}
