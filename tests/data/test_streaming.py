"""Streamed shards: every row once an epoch, in an order that states, processes and workers do not change."""

from __future__ import annotations

import json
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from datasets import Dataset, Image

from segtune.cli.main import main
from segtune.data.config import DatasetConfig, TransformConfig
from segtune.data.dataset import open_dataset
from segtune.data.loader import TrainingBatches
from segtune.data.streaming import ShardStream, StreamSampler
from segtune.errors import DataError, UsageError
from segtune.labels.label_map import LabelMap

SHARDS = (4, 1, 6, 3, 5)  # rows
TOTAL = sum(SHARDS)


def write_shards(folder: Path, sizes: tuple[int, ...] = SHARDS, split: str = "train", wrong: int = -1) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    start = 0
    for shard, size in enumerate(sizes):
        numbers = range(start, start + size)
        start += size
        columns = {
            "id": [f"{i:02}" for i in numbers],
            "image": [PIL.Image.fromarray(np.full((8, 9, 3), 10 * i, np.uint8)) for i in numbers],
            "mask": [PIL.Image.fromarray(np.full((8, 9), 7 if i == wrong else i % 2, np.uint8)) for i in numbers],
        }
        table = Dataset.from_dict(columns).cast_column("image", Image()).cast_column("mask", Image())
        table.to_parquet(folder / f"{split}-{shard:05d}-of-{len(sizes):05d}.parquet")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shards")
    write_shards(root / "data")
    write_shards(root / "data", (3,), "validation")
    (root / "labels.json").write_text('["even", "odd"]')
    return root


@pytest.fixture(scope="module")
def opened(folder: Path) -> tuple[Any, LabelMap]:
    return open_dataset(DatasetConfig(path=str(folder), streaming=True))


def ids(keys: Any) -> list[str]:
    return [key.row["id"] for key, _ in keys]


# -- opening ----------------------------------------------------------------------------------------------------------


def test_train_is_a_stream_and_the_rest_is_at_hand(opened: tuple[Any, LabelMap]) -> None:
    dataset, label_map = opened
    assert label_map.names == ("even", "odd")
    assert list(dataset) == ["train", "val"]
    assert dataset["train"].num_shards == len(SHARDS)
    assert list(dataset["val"]["id"]) == ["00", "01", "02"]
    assert sorted(next(iter(dataset["train"]))) == ["id", "image", "mask"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tile": 64}, r"dataset\.tile needs all rows at hand"),
        ({"split_file": "x.json"}, r"dataset\.split_file needs all rows at hand"),
        ({"on_error": "skip"}, r"dataset\.on_error needs all rows at hand"),
        ({"splits": {"val": "validation"}}, "no training split to stream"),
        ({"images": "picture"}, "has no column 'picture'"),
    ],
)
def test_what_streams_cannot_do(folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        open_dataset(DatasetConfig(path=str(folder), streaming=True, **options))


def test_other_formats_are_refused(earth: Path) -> None:
    with pytest.raises(
        UsageError, match=r"was read as folder, but dataset\.streaming reads parquet files and data sets"
    ):
        open_dataset(DatasetConfig(path=str(earth), streaming=True))


def test_rows_without_ids_are_named_by_their_place(tmp_path: Path) -> None:
    write_shards(tmp_path, (2,))
    Dataset.from_parquet(
        str(tmp_path / "train-00000-of-00001.parquet"), cache_dir=str(tmp_path / "cache")
    ).remove_columns("id").to_parquet(tmp_path / "train-00000-of-00001.parquet")
    dataset, _ = open_dataset(DatasetConfig(path=str(tmp_path), streaming=True, labels=["a", "b"]))
    assert sorted(ids(islice(ShardStream(dataset["train"], 2, 0).rows(), 2))) == ["00000-000000", "00000-000001"]


# -- the order --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("buffer", [1, 4, 1000])
def test_every_row_once_an_epoch(opened: tuple[Any, LabelMap], buffer: int) -> None:
    keys = list(islice(ShardStream(opened[0]["train"], buffer, seed=3).rows(), 2 * TOTAL))
    epochs = [keys[:TOTAL], keys[TOTAL:]]
    for number, epoch in enumerate(epochs):
        assert sorted(ids(epoch)) == [f"{i:02}" for i in range(TOTAL)]
        assert {key.epoch for key, _ in epoch} == {number}
    assert ids(epochs[0]) != ids(epochs[1])
    assert ids(epochs[0]) != sorted(ids(epochs[0]))
    assert ids(islice(ShardStream(opened[0]["train"], buffer, seed=4).rows(), TOTAL)) != ids(epochs[0])


@pytest.mark.parametrize("num_processes", [2, 3, 5, 7])
def test_processes_share_an_epoch(opened: tuple[Any, LabelMap], num_processes: int) -> None:
    seen: Counter[str] = Counter()
    for process in range(num_processes):
        for key, _ in ShardStream(opened[0]["train"], 4, 3, process, num_processes).rows():
            if key.epoch:
                break
            seen[key.row["id"]] += 1
    assert seen == Counter({f"{i:02}": 1 for i in range(TOTAL)})


def test_more_processes_than_rows(opened: tuple[Any, LabelMap]) -> None:
    with pytest.raises(UsageError, match="an epoch has no rows for process 30: fewer rows than processes"):
        next(ShardStream(opened[0]["train"], 4, 3, 30, 31).rows())


@pytest.mark.parametrize("buffer", [1, 4, 1000])
@pytest.mark.parametrize("num_processes", [1, 2, 7])
def test_any_state_goes_on_with_the_next_row(opened: tuple[Any, LabelMap], buffer: int, num_processes: int) -> None:
    stream = ShardStream(opened[0]["train"], buffer, 5, 1 % num_processes, num_processes)
    whole = list(islice(stream.rows(), TOTAL + 7))
    for taken in range(1, TOTAL + 4):
        state = whole[taken - 1][1]
        assert all(type(value) is int for value in state.values())
        following = list(islice(stream.rows(state), 3))
        assert [(key[:2], after) for key, after in following] == [
            (key[:2], after) for key, after in whole[taken : taken + 3]
        ]


def test_going_on_reads_the_block_only(opened: tuple[Any, LabelMap], monkeypatch: pytest.MonkeyPatch) -> None:
    stream = ShardStream(opened[0]["train"], 4, 5)
    state = list(islice(stream.rows(), 14))[-1][1]
    read = []
    rows = stream._rows

    def counted(*place: int) -> Any:
        for found in rows(*place):
            read.append(found)
            yield found

    monkeypatch.setattr(stream, "_rows", counted)
    next(stream.rows(state))
    assert len(read) == 4


# -- steps ------------------------------------------------------------------------------------------------------------


def batches(opened: tuple[Any, LabelMap], **options: Any) -> TrainingBatches:
    dataset, label_map = opened
    transforms = TransformConfig(crop_size=8, scale=(1, 1))
    settings = {"batch_size": 2, "accumulation_steps": 2, "buffer": 4} | options
    return TrainingBatches(settings.pop("rows", dataset["train"]), label_map, transforms, 7, **settings)


def names(steps: Any) -> list[list[str]]:
    return [[name for batch in step for name in batch["ids"]] for step in steps]


def test_workers_change_nothing(opened: tuple[Any, LabelMap]) -> None:
    expected = list(batches(opened).steps(0, 6))
    assert [len(step) for step in expected] == [2] * 6
    for workers in (1, 2):
        found = list(batches(opened).steps(0, 6, num_workers=workers))
        assert names(found) == names(expected)
        for left, right in zip(found, expected, strict=True):
            for one, other in zip(left, right, strict=True):
                assert torch.equal(one["pixel_values"], other["pixel_values"])
                assert torch.equal(one["labels"], other["labels"])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [1, 3, 5])
def test_a_run_goes_on_where_it_stopped(opened: tuple[Any, LabelMap], workers: int, stop: int) -> None:
    """Workers are some batches ahead of the step that is saved."""
    whole = list(batches(opened).steps(0, 8))
    first = batches(opened)
    steps = first.steps(0, 8, num_workers=workers)
    done = [next(steps) for _ in range(stop)]
    state = first.state_after(stop)
    del steps
    resumed = batches(opened)
    resumed.restore([state])
    rest = list(resumed.steps(stop, 8))
    assert names(done + rest) == names(whole)
    assert torch.equal(rest[0][0]["pixel_values"], whole[stop][0]["pixel_values"])
    epoch = [name for step in names(done + rest) for name in step][:TOTAL]
    assert len(set(epoch)) == TOTAL


def test_epochs_are_counted(opened: tuple[Any, LabelMap], folder: Path) -> None:
    streamed = batches(opened)
    steps = streamed.steps(0, 12)
    assert streamed.epoch(0) == 0.0
    counted = []
    for step, _ in enumerate(steps, start=1):
        counted.append(streamed.epoch(step))
    assert counted == [float(4 * step // TOTAL) for step in range(1, 13)]
    at_hand, _ = open_dataset(DatasetConfig(path=str(folder)))
    mapped = batches(opened, rows=at_hand["train"], num_processes=2)
    assert mapped.epoch(3) == 3 * 8 / TOTAL
    assert mapped.state_after(3) is None


def test_the_same_rows_at_hand_and_streamed(opened: tuple[Any, LabelMap], folder: Path) -> None:
    at_hand, _ = open_dataset(DatasetConfig(path=str(folder)))
    mapped = [name for step in names(batches(opened, rows=at_hand["train"]).steps(0, 9)) for name in step]
    streamed = [name for step in names(batches(opened).steps(0, 9)) for name in step]
    assert Counter(mapped[:TOTAL]) == Counter(streamed[:TOTAL])


def test_errors_name_the_sample_and_its_place(tmp_path: Path) -> None:
    write_shards(tmp_path, (2, 2), wrong=3)
    found = open_dataset(DatasetConfig(path=str(tmp_path), streaming=True, labels=["even", "odd"]))
    with pytest.raises(DataError, match=r"sample '03' \(shard 1, row 1\): the mask holds id 7 \(72 pixels\)"):
        list(batches(found).steps(0, 2))


def test_a_sampler_knows_its_length(opened: tuple[Any, LabelMap]) -> None:
    sampler = StreamSampler(ShardStream(opened[0]["train"], 4, 5), 3, accumulation_steps=2, start_step=1, max_steps=4)
    assert len(sampler) == len(list(sampler)) == 6


# -- a run ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_from_a_saved_state_ends_with_the_same_weights(folder: Path, tmp_path: Path, workers: int) -> None:
    (tmp_path / "recipe.yaml").write_text(
        f"dataset: {{path: {folder}, streaming: true, shuffle_buffer: 3}}\n"
        "transforms: {crop_size: 16}\n"
        "model: {config: {hidden_sizes: [8, 16, 40, 64], depths: [1, 1, 1, 1], decoder_hidden_size: 16}}\n"
        "training: {max_steps: 6, save_every: 2, log_every: 1, batch_size: 2, accumulation_steps: 2}\n"
    )

    def train(name: str, *options: str) -> bytes:
        with pytest.raises(SystemExit) as left:
            main(
                [
                    "train",
                    str(tmp_path / "recipe.yaml"),
                    f"training.output_dir={tmp_path / name}",
                    *options,
                    f"training.num_workers={workers}",
                ]
            )
        assert left.value.code in (0, None)
        return (tmp_path / name / "final" / "model.safetensors").read_bytes()

    whole = train("a")
    lines = [json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines if "loss" in line] == [float(4 * step // TOTAL) for step in range(1, 7)]
    assert not (tmp_path / "a" / "split.json").exists()
    assert train("b", f"training.resume={tmp_path}/a/checkpoints/step-000004") == whole


def test_what_a_run_cannot_do_with_a_stream(folder: Path, tmp_path: Path, capsys: Any) -> None:
    options = [f"dataset.path={folder}", "dataset.streaming=true", f"training.output_dir={tmp_path / 'x'}"]
    with pytest.raises(SystemExit):
        main(["train", "camvid", *options, "model.name=null", "transforms.mean=counted", "transforms.std=counted"])
    assert "transforms.mean=counted needs all rows at hand" in capsys.readouterr().err
