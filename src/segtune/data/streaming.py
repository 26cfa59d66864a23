"""Streaming: training from shards of parquet that are read in passing; a data set may be larger than the disk."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from datasets import IterableDataset
from torch.utils.data import Sampler

from segtune.data.config import DatasetConfig
from segtune.data.formats import hub_parquet
from segtune.data.lazy_rows import undecoded
from segtune.data.samples import SegmentationSamples
from segtune.errors import UsageError

Row = dict[str, Any]
State = dict[str, int]
SHARD = 2**32  # more than the rows of a shard
START: State = {"block": 0, "place": 0, "row": 0, "offset": 0}  # of an epoch


class StreamKey(NamedTuple):
    """A row that was read, as the key of a training sample.

    Attributes:
        number: that of the shard times 2**32, and that of the row in it.
        row: "id", "image" and "mask", pictures undecoded.
    """

    epoch: int
    number: int
    row: Row


class ShardStream:
    """The rows of a data set in shards, epoch after epoch, as one process sees them.

    The shards of an epoch come in an order of its own, dealt to the processes in turn (where there are fewer shards
    than processes, the rows of each are). Rows are shuffled within blocks of `buffer`. So the order depends on seed,
    epoch and the number of processes only, and a state is a few numbers: going on reads from the start of the block.

    Args:
        dataset: a streaming `datasets.IterableDataset` with the columns "image" and "mask".
        buffer: rows of a block; they are held in memory as they are stored.

    Raises:
        UsageError: an epoch of this process has no rows.
    """

    def __init__(
        self, dataset: IterableDataset, buffer: int, seed: int, process_index: int = 0, num_processes: int = 1
    ) -> None:
        self.dataset = undecoded(dataset)
        self.buffer = buffer
        self.seed = seed
        self.process_index, self.num_processes = process_index, num_processes

    def rows(self, state: State | None = None) -> Iterator[tuple[StreamKey, State]]:
        """Rows without end, each with the state to go on from after it."""
        at = state or {"epoch": 0, **START}
        while True:
            found = at["block"] > 0
            for block, start, end in self._blocks(at):
                found = True
                order = np.random.default_rng([self.seed, at["epoch"], start["block"]]).permutation(len(block))
                for offset in range(start["offset"], len(block)):
                    after = start | {"offset": offset + 1} if offset + 1 < len(block) else end
                    yield block[order[offset]], after
                block.clear()  # before the next one is read
            if not found:
                raise UsageError(f"an epoch has no rows for process {self.process_index}: fewer rows than processes?")
            at = {"epoch": at["epoch"] + 1, **START}

    def _blocks(self, at: State) -> Iterator[tuple[list[StreamKey], State, State]]:
        """The blocks of an epoch from a state on, each with the states of its start and its end."""
        start, block = at, []
        for key, place in self._rows(at["epoch"], at["place"], at["row"]):
            block.append(key)
            if len(block) == self.buffer:
                here = {"place": place, "row": key.number % SHARD + 1, "offset": 0}
                end = {"epoch": at["epoch"], "block": start["block"] + 1, **here}
                yield block, start, end
                start, block = end, []
        if block:
            yield block, start, {"epoch": at["epoch"] + 1, **START}

    def _rows(self, epoch: int, first_place: int, first_row: int) -> Iterator[tuple[StreamKey, int]]:
        """The rows of this process in an epoch, each with the place of its shard, from a row of a shard on."""
        count = self.dataset.num_shards
        order = np.random.default_rng([self.seed, epoch]).permutation(count)
        by_shard = count >= self.num_processes
        order = order[self.process_index :: self.num_processes] if by_shard else order
        for place in range(first_place, len(order)):
            shard, skipped = int(order[place]), first_row if place == first_place else 0
            rows = self.dataset.shard(count, shard)
            for number, row in enumerate(rows.skip(skipped) if skipped else rows, start=skipped):
                if by_shard or (shard + number) % self.num_processes == self.process_index:
                    row.setdefault("id", f"{shard:05d}-{number:06d}")
                    yield StreamKey(epoch, shard * SHARD + number, row), place


class StreamSampler(Sampler[list[StreamKey]]):
    """The micro-batches of one process, step after step: a `batch_sampler`, as `StepSampler` is.

    It reads the stream in the main process, so that the samples do not depend on the number of workers.

    Args:
        state: what `state_after` gave for `start_step`; None starts with the first row.
    """

    def __init__(
        self,
        stream: ShardStream,
        batch_size: int,
        *,
        accumulation_steps: int = 1,
        start_step: int = 0,
        max_steps: int,
        state: State | None = None,
    ) -> None:
        self.stream = stream
        self.batch_size, self.accumulation_steps = batch_size, accumulation_steps
        self.start_step, self.max_steps = start_step, max_steps
        self.states: dict[int, State | None] = {start_step: state}

    def __len__(self) -> int:
        return max(0, self.max_steps - self.start_step) * self.accumulation_steps

    def __iter__(self) -> Iterator[list[StreamKey]]:
        keys = self.stream.rows(self.states[self.start_step])
        for step in range(self.start_step, self.max_steps):
            for _ in range(self.accumulation_steps):
                batch = list(islice(keys, self.batch_size))
                self.states[step + 1] = batch[-1][1]
                yield [key for key, _ in batch]

    def state_after(self, step: int) -> State | None:
        """What a sampler with `start_step=step` goes on from."""
        return self.states[step]

    def forget(self, step: int) -> None:
        """Let go of the state of a step that nobody will go on from."""
        self.states.pop(step, None)


class StreamedSamples(SegmentationSamples):
    """Augmented training samples of streamed rows: the key holds the row."""

    def __len__(self) -> int:
        raise TypeError("how many rows a stream has is not known before it is read")

    def _row(self, key: Any) -> Row:
        return key.row

    def _describe(self, key: Any) -> str:
        return f"sample {key.row['id']!r} (shard {key.number // SHARD}, row {key.number % SHARD})"


def open_stream(config: DatasetConfig, root: Path, name: str) -> IterableDataset:
    """The training split of a data set in parquet or of the Hub, to be read in passing.

    Raises:
        UsageError: another format, an option that needs all rows at hand, or no training split.
    """
    if name not in ("parquet", "hub"):
        raise UsageError(
            f"{root} was read as {name}, but dataset.streaming reads parquet files and data sets of the Hub: "
            "segtune data convert --to parquet makes them"
        )
    needless = {"tile": config.tile, "split_file": config.split_file, "on_error": config.on_error == "skip"}
    if given := [option for option, value in needless.items() if value]:
        raise UsageError(f"dataset.{given[0]} needs all rows at hand: leave it out, or set dataset.streaming=false")
    streams = hub_parquet.open_streams(root, name, config, ("train",))
    if "train" not in streams:
        raise UsageError(f"{root}: no training split to stream")
    return streams["train"]


def is_stream(rows: Any) -> bool:
    """Whether rows are read in passing."""
    return isinstance(rows, IterableDataset)
