"""Pairs of image and labels, training samples in and out of workers, and which samples make up a step."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from segtune.data.config import TransformConfig
from segtune.data.dataset import DatasetConfig, find_label_map, load_segmentation_dataset
from segtune.data.loader import TrainingBatches
from segtune.data.samples import SegmentationSamples, StepSampler, collate, open_pair, read_pair, smallest_type
from segtune.data.transforms import TrainTransform
from segtune.errors import DataError, UsageError
from segtune.imageio.read import read_image
from segtune.labels.distance_maps import signed_distance
from segtune.labels.label_map import LabelError, LabelMap

GREY = np.array([[0, 100], [200, 255]], dtype=np.uint8)
RGB = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
BANDS = np.random.default_rng(1).integers(0, 10000, (4, 5, 6), dtype=np.uint16)

# -- samples ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def samples(earth: Path) -> SegmentationSamples:
    dataset = load_segmentation_dataset(earth)["train"]
    label_map = find_label_map(DatasetConfig(path=str(earth)))
    transform = TrainTransform(TransformConfig(crop_size=(64, 96)), label_map.ignore_index)
    return SegmentationSamples(dataset, label_map, transform, seed=3)


@pytest.mark.parametrize(
    ("ignore_index", "dtype"), [(255, torch.uint8), (-100, torch.int16), (256, torch.int16), (40_000, torch.int64)]
)
def test_labels_are_as_small_as_their_ids(ignore_index: int, dtype: torch.dtype) -> None:
    assert smallest_type(LabelMap.from_names(["sky", "road"], ignore_index=ignore_index)) == dtype


def test_sample(samples: SegmentationSamples) -> None:
    sample = samples[2, 5]
    assert len(samples) == 94
    assert sample["id"] == samples.dataset["id"][5]
    assert (sample["pixel_values"].dtype, sample["pixel_values"].shape) == (torch.float32, (3, 64, 96))
    assert (sample["labels"].dtype, sample["labels"].shape) == (torch.uint8, (64, 96))
    assert set(sample["labels"].unique().tolist()) <= {0, 1, 2, 3, 255}
    assert not torch.equal(sample["pixel_values"], samples[3, 5]["pixel_values"])


def test_distance_maps_come_with_the_batch(samples: SegmentationSamples) -> None:
    keys = [(0, 1), (0, 2), (0, 3)]
    assert "distances" not in samples.__getitems__(keys)
    samples.distances_from = 1
    batch = samples.__getitems__(keys)
    of, maps, per_image = batch["distances"]
    shown = [[label for label in ids.unique().tolist() if label not in (0, 255)] for ids in batch["labels"]]
    assert of.tolist() == [[i, label] for i, labels in enumerate(shown) for label in labels]
    assert per_image == tuple(map(len, shown)) and sum(per_image) == len(maps) > 0
    for (i, label), found in zip(of.tolist(), maps, strict=True):
        ids = batch["labels"][i].long().where(batch["labels"][i] != 255, -1)
        assert torch.equal(found, torch.from_numpy(signed_distance(ids.numpy(), label)).float())


def test_workers_change_nothing(samples: SegmentationSamples) -> None:
    def batches(**options: Any) -> list[dict[str, Any]]:
        sampler = StepSampler(len(samples), 3, seed=1, max_steps=4, **options.pop("sampler", {}))
        return list(DataLoader(samples, batch_sampler=sampler, collate_fn=collate, **options))

    torch.manual_seed(0)
    expected = batches(num_workers=0)
    torch.manual_seed(1)
    for options in ({"num_workers": 1}, {"num_workers": 2}):
        found = batches(**options)
        assert [batch["ids"] for batch in found] == [batch["ids"] for batch in expected]
        for left, right in zip(found, expected, strict=True):
            assert torch.equal(left["pixel_values"], right["pixel_values"])
            assert torch.equal(left["labels"], right["labels"])
    resumed = batches(num_workers=2, sampler={"start_step": 3})
    assert torch.equal(resumed[0]["pixel_values"], expected[3]["pixel_values"])


def write_sample(folder: Path, mask: np.ndarray) -> Dataset:
    for kind, array in (("images", np.zeros((*mask.shape, 3), np.uint8)), ("masks", mask)):
        (folder / kind).mkdir()
        PIL.Image.fromarray(array).save(folder / kind / "a b.png")
    return load_segmentation_dataset(folder)["train"]


def test_errors_name_the_sample_and_its_files(tmp_path: Path) -> None:
    dataset = write_sample(tmp_path, np.full((4, 4), 42, np.uint8))
    transform = TrainTransform(TransformConfig(crop_size=4), 255)
    samples = SegmentationSamples(dataset, LabelMap.from_names(["sky"]), transform, seed=0)
    message = r"sample 'a b' \(image .*images/a b\.png, mask .*masks/a b\.png\): the mask holds id 42 \(16 pixels\)"
    with pytest.raises(LabelError, match=message) as error:
        samples[0, 0]
    assert error.value.values == {42: 16}
    (tmp_path / "images" / "a b.png").write_bytes(b"gone")
    with pytest.raises(DataError, match=r"sample 'a b' .*images/a b\.png: cannot be read \(it is no picture"):
        samples[0, 0]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bug_is_no_fault_of_the_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    """It keeps its type and shows the line, across processes too."""
    dataset = write_sample(tmp_path, np.zeros((4, 4), np.uint8))
    config = TransformConfig(crop_size=4)
    batches = TrainingBatches(dataset, LabelMap.from_names(["sky"]), config, seed=0, batch_size=1)
    for bug in (TypeError("planted"), MemoryError("planted"), UsageError("planted")):

        def plant(*_: Any, bug: Exception = bug) -> None:
            raise bug

        monkeypatch.setattr(batches.samples.transform, "write", plant)
        with pytest.raises(type(bug), match="planted") as error:
            next(batches.steps(0, 1, num_workers=workers))
        assert "sample" not in str(error.value) or "in plant" in str(error.value)  # the traceback of the worker
        assert ("in plant" in str(error.value)) == (workers > 0 and not isinstance(bug, UsageError))


@pytest.mark.parametrize("workers", [0, 1])
def test_faults_of_samples_are_one_line(tmp_path: Path, workers: int) -> None:
    dataset = write_sample(tmp_path, np.full((4, 4), 42, np.uint8))
    config = TransformConfig(crop_size=4)
    batches = TrainingBatches(dataset, LabelMap.from_names(["sky"]), config, seed=0, batch_size=1)
    with pytest.raises(LabelError, match=r"^sample 'a b' .*: the mask holds id 42 .*$") as error:
        next(batches.steps(0, 1, num_workers=workers))
    assert error.value.values == {42: 16}
    (tmp_path / "images" / "a b.png").write_bytes(b"gone")
    with pytest.raises(DataError, match=r"^sample 'a b' .*images/a b\.png: cannot be read \(it is no picture.*\)$"):
        next(batches.steps(0, 1, num_workers=workers))


def test_errors_of_workers_name_the_sample(tmp_path: Path) -> None:
    dataset = write_sample(tmp_path, np.full((4, 4), 42, np.uint8))
    transform = TrainTransform(TransformConfig(crop_size=4), 255)
    samples = SegmentationSamples(dataset, LabelMap.from_names(["sky"]), transform, seed=0)
    loader = DataLoader(samples, batch_sampler=StepSampler(1, 1, max_steps=1), num_workers=1, collate_fn=collate)
    with pytest.raises(LabelError, match="sample 'a b'"):
        next(iter(loader))


# -- steps ------------------------------------------------------------------------------------------------------------


def test_every_epoch_holds_every_sample_once() -> None:
    batches = list(StepSampler(10, 4, max_steps=5))
    assert [len(batch) for batch in batches] == [4] * 5
    keys = [key for batch in batches for key in batch]
    assert [epoch for epoch, _ in keys] == [0] * 10 + [1] * 10
    for epoch in (keys[:10], keys[10:]):
        assert sorted(index for _, index in epoch) == list(range(10))
    assert [index for _, index in keys[:10]] != [index for _, index in keys[10:]]


def test_order_is_the_permutation_of_seed_and_epoch() -> None:
    expected = [(e, int(i)) for e in range(2) for i in np.random.default_rng([7, e]).permutation(3)]
    assert [key for batch in StepSampler(3, 2, seed=7, max_steps=3) for key in batch] == expected
    assert list(StepSampler(30, 2, max_steps=3)) == list(StepSampler(30, 2, seed=0, max_steps=3))
    assert list(StepSampler(30, 2, seed=8, max_steps=3)) != list(StepSampler(30, 2, seed=7, max_steps=3))


# Samples of the data set, batch size, accumulation steps, processes.
DIVISIONS = st.tuples(st.integers(1, 12), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3))


def steps_of(num_samples: int, layout: tuple[int, int, int], **options: int) -> list[list[Any]]:
    """The keys of each step, of all its micro-batches and processes in the order of the endless stream."""
    batch_size, accumulation_steps, num_processes = layout
    samplers = [
        StepSampler(
            num_samples,
            batch_size,
            accumulation_steps=accumulation_steps,
            process_index=process_index,
            num_processes=num_processes,
            **options,
        )
        for process_index in range(num_processes)
    ]
    assert {len(list(sampler)) for sampler in samplers} == {len(sampler) for sampler in samplers}
    micro_steps = [[key for batch in batches for key in batch] for batches in zip(*samplers, strict=True)]
    starts = range(0, len(micro_steps), accumulation_steps)
    return [[key for keys in micro_steps[i : i + accumulation_steps] for key in keys] for i in starts]


@given(DIVISIONS, st.integers(0, 3))
@settings(deadline=None, max_examples=15)
def test_every_index_comes_once_in_an_epoch(division: tuple[int, int, int, int], seed: int) -> None:
    num_samples, *layout = division
    stream = [key for step in steps_of(num_samples, tuple(layout), seed=seed, max_steps=9) for key in step]
    assert len(stream) == 9 * math.prod(layout)
    assert [epoch for epoch, _ in stream] == [position // num_samples for position in range(len(stream))]
    for start in range(0, len(stream) - num_samples + 1, num_samples):
        assert sorted(index for _, index in stream[start : start + num_samples]) == list(range(num_samples))
    assert len(set(stream)) == len(stream)


@given(DIVISIONS, st.integers(0, 3))
@settings(deadline=None, max_examples=40)
def test_a_step_holds_the_same_samples_however_it_is_divided(division: tuple[int, int, int, int], seed: int) -> None:
    num_samples, *layout = division
    whole = steps_of(num_samples, (math.prod(layout), 1, 1), seed=seed, max_steps=5)
    assert steps_of(num_samples, tuple(layout), seed=seed, max_steps=5) == whole


@given(DIVISIONS, st.integers(0, 7), st.data())
@settings(deadline=None, max_examples=40)
def test_a_run_resumed_at_any_step_goes_on(division: tuple[int, int, int, int], start: int, data: Any) -> None:
    """Also where the images of a step are then divided in another way."""
    num_samples, *layout = division
    whole = steps_of(num_samples, tuple(layout), max_steps=6)
    images = math.prod(layout)
    batch_size = data.draw(st.sampled_from([size for size in range(1, images + 1) if images % size == 0]))
    for resumed in (tuple(layout), (batch_size, images // batch_size, 1)):
        assert steps_of(num_samples, resumed, start_step=start, max_steps=6) == whole[start:]


def test_fewer_samples_than_a_batch() -> None:
    assert list(StepSampler(1, 3, max_steps=2)) == [[(0, 0), (1, 0), (2, 0)], [(3, 0), (4, 0), (5, 0)]]


def test_a_sampler_can_be_read_again() -> None:
    sampler = StepSampler(5, 2, max_steps=4)
    assert list(sampler) == list(sampler)


def test_sampler_past_its_end_is_empty() -> None:
    assert (len(StepSampler(5, 2, start_step=9, max_steps=4)), list(StepSampler(5, 2, start_step=9, max_steps=4))) == (
        0,
        [],
    )


@pytest.mark.parametrize("name", ["num_samples", "batch_size", "accumulation_steps", "num_processes"])
def test_sampler_refuses_zero(name: str) -> None:
    with pytest.raises(UsageError, match=f"{name} 0"):
        StepSampler(**{"num_samples": 2, "batch_size": 2, "max_steps": 2} | {name: 0})


def test_sampler_refuses_a_process_that_is_not_there() -> None:
    with pytest.raises(UsageError, match="process_index 2 is not below num_processes 2"):
        StepSampler(2, 2, process_index=2, num_processes=2, max_steps=1)


def test_a_batch_holds_its_samples(samples: SegmentationSamples) -> None:
    keys = [(0, 4), (1, 4), (0, 9)]
    batch = samples.__getitems__(keys)
    assert (batch["pixel_values"].shape, batch["labels"].shape) == ((3, 3, 64, 96), (3, 64, 96))
    for number, key in enumerate(keys):
        sample = samples[key]
        assert sample["id"] == batch["ids"][number]
        assert torch.equal(sample["pixel_values"], batch["pixel_values"][number])
        assert torch.equal(sample["labels"], batch["labels"][number])


# -- windows ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_windows_of_pictures_are_parts_of_the_whole(mode: str) -> None:
    large = np.random.default_rng(3).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    picture = PIL.Image.fromarray(large)
    picture = PIL.Image.fromarray(large[:, :, 0].astype(np.uint16) * 257) if mode == "I;16" else picture.convert(mode)
    ids = large[:, :, 1] % 3
    image, labels = open_pair(
        {"image": picture, "mask": PIL.Image.fromarray(ids)}, LabelMap.from_names(["a", "b", "c"])
    )
    assert image.shape == labels.shape == (20, 30)
    whole = read_image(picture)
    for area in ((slice(3, 17), slice(0, 30)), (slice(0, 20), slice(0, 30)), (slice(None), slice(5, 6))):
        np.testing.assert_array_equal(image[area], whole[area])
        np.testing.assert_array_equal(labels[area], ids[area])
    np.testing.assert_array_equal(labels[::4, 1::3], ids[::4, 1::3])


def test_windows_of_arrays_ignore_what_is_missing() -> None:
    missing = np.zeros((4, 5), bool)
    missing[1, 2:] = True
    image = np.ma.masked_array(BANDS, np.dstack([missing] * 6))
    row = {"image": image, "mask": np.ones((4, 5), np.uint8)}
    pixels, labels = open_pair(row, LabelMap.from_names(["a", "b"]), 6, raw=True)
    area = slice(1, 3), slice(1, 4)
    assert labels[area].tolist() == [[1, 255, 255], [1, 1, 1]]
    np.testing.assert_array_equal(pixels[area], np.where(missing[..., None], 0, BANDS)[area])
    assert labels[:, :].sum() == 17 + 3 * 255


def test_only_the_window_is_checked_against_the_label_map() -> None:
    row = {"image": RGB, "mask": np.array([[0, 0, 9, 9, 9]] * 4, np.uint8)}
    _, labels = open_pair(row, LabelMap.from_names(["sky"]))
    assert labels[:, :2].tolist() == [[0, 0]] * 4
    with pytest.raises(LabelError, match=r"id 9 \(12 pixels\)"):  # all that there are
        labels[:, 1:3]


def test_missing_data_is_black_and_ignored() -> None:
    image = np.ma.masked_array(np.full((1, 3, 3), 9, np.uint8), [[[False] * 3, [True] * 3, [True, False, False]]])
    assert read_image(image).tolist() == [[[9, 9, 9], [0, 0, 0], [0, 9, 9]]]
    row = {"image": image, "mask": np.array([[1, 1, 0]], np.uint8)}
    read, labels = read_pair(row, LabelMap.from_names(["sky", "road"]))
    assert (read.shape, labels.tolist()) == ((1, 3, 3), [[1, 255, 0]])


def test_partners_of_other_sizes_are_refused() -> None:
    row = {"image": RGB, "mask": np.zeros((5, 4), np.uint8)}
    with pytest.raises(DataError, match=r"the image is \(4, 5\) \(height, width\), its mask \(5, 4\)"):
        read_pair(row, LabelMap.from_names(["sky"]))
