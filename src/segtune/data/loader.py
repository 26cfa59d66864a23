"""The training data loader: the micro-batches of each optimiser step, from rows at hand or from a stream."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from segtune.data.config import TransformConfig
from segtune.data.rare_classes import training_transform
from segtune.data.samples import SegmentationSamples, StepSampler, as_tensors, collate
from segtune.data.streaming import ShardStream, State, StreamedSamples, StreamSampler, is_stream
from segtune.errors import SegtuneError, UsageError
from segtune.labels.label_map import LabelMap

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)

REMEMBERED = 64  # steps whose states of a stream are kept: the log asks for those of earlier steps


class TrainingBatches:
    """The training samples of one process, step after step; the same for any number of workers.

    Args:
        rows: a data set, or a stream of one (`data.streaming.open_stream`).
        transforms: describes the augmentation, see `training_transform`.
        seed: decides the order of the samples and their augmentation.
        buffer: the number of rows of a stream that are shuffled together.
        distances_from: batches have the distance maps of the classes from this one on, see `SegmentationSamples`.

    Raises:
        UsageError: the data set is empty, or `transforms` does not suit it.
    """

    def __init__(
        self,
        rows: datasets.Dataset | datasets.IterableDataset,
        label_map: LabelMap,
        transforms: TransformConfig,
        seed: int,
        *,
        batch_size: int,
        accumulation_steps: int = 1,
        process_index: int = 0,
        num_processes: int = 1,
        buffer: int = 256,
        distances_from: int | None = None,
    ) -> None:
        self.streamed = is_stream(rows)
        if not self.streamed and len(rows) == 0:
            raise UsageError("the training split is empty")
        transform = training_transform(transforms, rows, label_map)
        samples = StreamedSamples if self.streamed else SegmentationSamples
        self.samples = samples(rows, label_map, transform, seed, distances_from)
        self.seed, self.buffer = seed, buffer
        self.batch_size, self.accumulation_steps = batch_size, accumulation_steps
        self.process_index, self.num_processes = process_index, num_processes
        self.stream_state: State | None = None  # to start from; None = the first row
        self.sampler: StepSampler | StreamSampler | None = None
        self.warned = False

    @property
    def layout(self) -> tuple[int, int, int]:
        """How the images of a step are divided: batch size, accumulation steps, processes."""
        return self.batch_size, self.accumulation_steps, self.num_processes

    @property
    def images_per_step(self) -> int:
        """Of all processes together."""
        return math.prod(self.layout)

    def steps(
        self,
        start_step: int,
        max_steps: int,
        *,
        num_workers: int = 0,
        pin_memory: bool = False,
        worker_init_fn: Callable[[int], None] | None = None,
    ) -> Iterator[list[dict[str, Any]]]:
        """The micro-batches of each step from `start_step` on, as `collate` makes them.

        To go on in the middle of a stream, `restore` its state first.

        Raises:
            DataError: a sample cannot be read or does not fit the label map; names the sample.
        """
        self.sampler = self._sampler(start_step, max_steps)
        loader = iter(
            DataLoader(
                ErrorsAsValues(self.samples),
                batch_sampler=self.sampler,
                collate_fn=collate,
                num_workers=num_workers,
                pin_memory=pin_memory,
                worker_init_fn=worker_init_fn,
                generator=torch.Generator(),  # its own, so that a resumed run finds the global one as it was left
            )
        )
        for step in range(start_step, max_steps):
            if isinstance(self.sampler, StreamSampler):
                self.sampler.forget(step - REMEMBERED)
            yield [self._received(next(loader)) for _ in range(self.accumulation_steps)]

    def _received(self, batch: dict[str, Any] | SegtuneError) -> dict[str, Any]:
        """A batch as it came from a worker, in tensors; raises the error that came instead."""
        if isinstance(batch, SegtuneError):
            raise batch
        if isinstance(batch["labels"], np.ndarray) and not self.warned:
            self.warned = True
            logger.warning(
                "shared memory (/dev/shm) is too small for the batches of the loading processes, which are copied "
                "instead: docker run --shm-size=2g gives more, training.num_workers=0 needs none"
            )
        return as_tensors(batch)

    def state_after(self, step: int) -> State | None:
        """Where the stream of this process is when `step` steps are done; None where the step says it all."""
        return self.sampler.state_after(step) if isinstance(self.sampler, StreamSampler) else None

    def restore(self, states: Sequence[State | None] | None) -> None:
        """Let `steps` go on in a stream from where this process was; rows at hand need the step only.

        Args:
            states: of each process, what `state_after` was at the step to start from; None of a run without a stream.

        Raises:
            UsageError: the stream was read by another number of processes, or there was none.
        """
        if not self.streamed:
            return
        if states is None or len(states) != self.num_processes:
            raise UsageError(
                f"the training state is of {len(states or ())} streaming processes, now there are "
                f"{self.num_processes}: go on with as many, or start a new run"
            )
        self.stream_state = states[self.process_index]

    def epoch(self, step: int) -> float:
        """How often the samples have been seen after `step` steps; of a stream, in whole numbers."""
        if self.streamed:
            return float((self.state_after(step) or {}).get("epoch", 0))
        return step * self.images_per_step / len(self.samples)

    def _sampler(self, start_step: int, max_steps: int) -> StepSampler | StreamSampler:
        steps = {"accumulation_steps": self.accumulation_steps, "start_step": start_step, "max_steps": max_steps}
        processes = {"process_index": self.process_index, "num_processes": self.num_processes}
        if self.streamed:
            stream = ShardStream(self.samples.dataset, self.buffer, self.seed, **processes)
            return StreamSampler(stream, self.batch_size, state=self.stream_state, **steps)
        return StepSampler(len(self.samples), self.batch_size, seed=self.seed, **steps, **processes)


class ErrorsAsValues(Dataset):
    """Batches of samples, or the error of one, to be raised where it arrives.

    A DataLoader would put the traceback of its worker into the message of what a worker raises: right for a bug, but a
    fault of the data is to be one line.
    """

    def __init__(self, samples: Any) -> None:
        self.samples = samples

    def __getitems__(self, keys: Sequence[Any]) -> dict[str, Any] | SegtuneError:
        try:
            return self.samples.__getitems__(keys)
        except SegtuneError as error:
            return error
