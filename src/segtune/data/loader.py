"""What feeds the training loop: the micro-batches of each step, from rows at hand or from a stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader, Dataset

from segtune.data.samples import SegmentationSamples, StepSampler, collate
from segtune.data.streaming import ShardStream, State, StreamedSamples, StreamSampler, is_stream
from segtune.data.transforms import TrainTransform
from segtune.errors import SegtuneError, UsageError
from segtune.labels.label_map import LabelMap

if TYPE_CHECKING:
    import datasets

REMEMBERED = 64  # steps whose states of a stream are kept, for what is logged late


class TrainingBatches:
    """The training samples of one process, step after step; the same for any number of workers.

    Args:
        rows: a data set, or a stream of one (`data.streaming.open_stream`).
        buffer: rows of a stream that are shuffled together.
    """

    def __init__(
        self,
        rows: datasets.Dataset | datasets.IterableDataset,
        label_map: LabelMap,
        transform: TrainTransform,
        seed: int,
        *,
        batch_size: int,
        accumulation_steps: int = 1,
        process_index: int = 0,
        num_processes: int = 1,
        buffer: int = 256,
    ) -> None:
        self.streamed = is_stream(rows)
        self.samples = (StreamedSamples if self.streamed else SegmentationSamples)(rows, label_map, transform, seed)
        self.seed, self.buffer = seed, buffer
        self.batch_size, self.accumulation_steps = batch_size, accumulation_steps
        self.process_index, self.num_processes = process_index, num_processes
        self.sampler: StepSampler | StreamSampler | None = None

    def steps(
        self,
        start_step: int,
        max_steps: int,
        state: State | None = None,
        *,
        num_workers: int = 0,
        pin_memory: bool = False,
        worker_init_fn: Callable[[int], None] | None = None,
    ) -> Iterator[list[dict[str, Any]]]:
        """The micro-batches of each step from `start_step` on, as `collate` makes them.

        Args:
            state: of a stream, what `state_after(start_step)` was in the run that goes on.

        Raises:
            DataError: a sample cannot be read or does not fit the label map; names the sample.
        """
        self.sampler = self._sampler(start_step, max_steps, state)
        loader = iter(
            DataLoader(
                _ErrorsAsValues(self.samples),
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
            yield [_raise_errors(next(loader)) for _ in range(self.accumulation_steps)]

    def state_after(self, step: int) -> State | None:
        """Where the stream of this process is when `step` steps are done; None where the step says it all."""
        return self.sampler.state_after(step) if isinstance(self.sampler, StreamSampler) else None

    def place_of(self, states: Sequence[State | None] | None) -> State | None:
        """The state of this process among those of a training state.

        Raises:
            UsageError: the stream was read by another number of processes, or there was none.
        """
        if not self.streamed:
            return None
        if states is None or len(states) != self.num_processes:
            raise UsageError(
                f"the training state is of {len(states or ())} streaming processes, now there are "
                f"{self.num_processes}: go on with as many, or start a new run"
            )
        return states[self.process_index]

    def epoch(self, step: int) -> float:
        """How often the samples have been seen after `step` steps; of a stream, in whole numbers."""
        if self.streamed:
            return float((self.state_after(step) or {}).get("epoch", 0))
        return step * self.batch_size * self.accumulation_steps * self.num_processes / len(self.samples)

    def _sampler(self, start_step: int, max_steps: int, state: State | None) -> StepSampler | StreamSampler:
        if self.streamed:
            stream = ShardStream(self.samples.dataset, self.buffer, self.seed, self.process_index, self.num_processes)
            return StreamSampler(
                stream,
                self.batch_size,
                accumulation_steps=self.accumulation_steps,
                start_step=start_step,
                max_steps=max_steps,
                state=state,
            )
        return StepSampler(
            len(self.samples),
            self.batch_size,
            accumulation_steps=self.accumulation_steps,
            process_index=self.process_index,
            num_processes=self.num_processes,
            seed=self.seed,
            start_step=start_step,
            max_steps=max_steps,
        )


class _ErrorsAsValues(Dataset):
    """Batches of samples, or the error of one, to be raised where it arrives.

    A DataLoader would put the traceback of its worker into the message of what a worker raises: right for a bug, but a
    fault of the data is to be one line.
    """

    def __init__(self, samples: SegmentationSamples) -> None:
        self.samples = samples

    def __getitems__(self, keys: Sequence[Any]) -> dict[str, Any] | SegtuneError:
        try:
            return self.samples.__getitems__(keys)
        except SegtuneError as error:
            return error


def _raise_errors(batch: dict[str, Any] | SegtuneError) -> dict[str, Any]:
    if isinstance(batch, SegtuneError):
        raise batch
    return batch
