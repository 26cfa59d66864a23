"""What is said about a run while it goes on: the progress bar, lines of `metrics.jsonl`, what slows or breaks it."""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from tqdm.auto import tqdm

from segtune.errors import SegtuneError
from segtune.training.distributed import DeferredScalars, peak_memory_mb
from segtune.training.run_folder import NON_FINITE, RunFolder
from segtune.training.trackers import Trackers
from segtune.viz.comparisons import Overlays

logger = logging.getLogger(__name__)

MicroBatches = list[dict[str, Any]]

STARVING = 0.3  # of the time waited for data: then a line says so


class TrainingProgress:
    """A context around the steps of a run that shows and writes how they go.

    Args:
        first_step: how many steps were made before.
        epoch: how often the training samples have been seen after a step.
        images_per_step: of all processes.
        num_workers: processes that load data, for advice.
    """

    def __init__(
        self,
        run: RunFolder,
        accelerator: Accelerator,
        trackers: Trackers,
        *,
        first_step: int,
        max_steps: int,
        log_every: int,
        images_per_step: int,
        epoch: Callable[[int], float],
        num_workers: int,
    ) -> None:
        self.run = run
        self.accelerator = accelerator
        self.trackers = trackers
        self.step = first_step
        self.max_steps = max_steps
        self.log_every = log_every
        self.images_per_step = images_per_step
        self.epoch = epoch
        self.num_workers = num_workers
        self.late = DeferredScalars(accelerator.device)
        self.meter = Throughput()

    def __enter__(self) -> TrainingProgress:
        hidden = not self.accelerator.is_local_main_process
        self.bar = tqdm(total=self.max_steps, initial=self.step, desc="train", unit="step", disable=hidden)
        self.started = time.perf_counter()
        self.meter = Throughput()
        self.warned = False
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.close()
        self.trackers.finish()

    def loaded(self, batches: Iterator[MicroBatches]) -> Iterator[MicroBatches]:
        """The same; from here on counts the time of a step, and how long the device was idle for want of data."""
        while True:
            self.asked = time.perf_counter()
            micro_batches = next(batches, None)
            if micro_batches is None:
                return
            self.waited = 0.0 if self.late.is_waiting() else time.perf_counter() - self.asked
            yield micro_batches

    def add(self, loss: Tensor, norm: Tensor, learning_rate: float, micro_batches: MicroBatches) -> None:
        """Take note of a step: its loss, its gradient's norm before clipping, the encoder's rate, its samples.

        Raises:
            SegtuneError: a loss or gradient is not finite: on a CPU that of this step, else that of the one before, so
                that no step waits for the device; `settle` asks at once.
        """
        self.step += 1
        self._check(self.late.put(torch.stack((loss, norm.to(loss.dtype))), (self.step, micro_batches)))
        self.meter.add(loss, time.perf_counter() - self.asked, self.waited)
        self.bar.update()
        if self.step % self.log_every == 0 or self.step == self.max_steps:
            self.flush()
            self._write_line(float(norm), learning_rate)

    def flush(self) -> None:
        """Wait for the last step and check it; before its weights are evaluated or saved."""
        self._check(self.late.take())

    def scores(self, scores: dict[str, Any], overlays: Overlays) -> None:
        """Write the result of an evaluation of this step, and send the pictures that were drawn."""
        record = {"step": self.step, "split": "val", **scores}
        self.run.write(record)
        self.trackers.log("val", record)
        for name, path in overlays.drawn():
            self.trackers.log_picture(f"overlays/{name}", path, self.step)

    def finish(self, reason: str) -> None:
        """Write why the run, or this part of it, ended, and what it took."""
        if reason != "done":
            logger.info("the run ends at step %d: %s", self.step, reason)
        self.run.write(
            {
                "step": self.step,
                "ended": reason,
                "seconds": round(time.perf_counter() - self.started, 3),
                "peak_memory_mb": round(peak_memory_mb(self.accelerator.device), 1),
            }
        )

    def _write_line(self, norm: float, learning_rate: float) -> None:
        loss, rate, share = self.meter.close()
        rate *= self.images_per_step
        record = {
            "step": self.step,
            "epoch": round(self.epoch(self.step), 4),
            "loss": loss,
            "lr": learning_rate,
            "grad_norm": norm if math.isfinite(norm) else None,  # of a step that the loss scaler skips
            "images_per_second": round(rate, 3),
            "waiting_for_data": round(share, 3),
            "peak_memory_mb": round(peak_memory_mb(self.accelerator.device), 1),
        }
        self.run.write(record)
        self.trackers.log("train", record)
        self.bar.set_postfix_str(f"loss={loss:.4f}, lr={learning_rate:.2e}, {rate:.1f} images/s")
        share = self.meter.data_wait_share()
        if share and not self.warned:
            self.warned = True
            logger.warning(
                "loading data is the bottleneck: %.0f %% of the time went by waiting for it "
                "(training.num_workers=%d, this machine has %s CPUs)",
                100 * share,
                self.num_workers,
                os.cpu_count(),
            )

    def _check(self, numbers: tuple[list[float], Any] | None) -> None:
        if numbers is None:
            return
        (loss, norm), (step, micro_batches) = numbers
        scaled = self.accelerator.scaler is not None  # then a gradient that overflows is expected, and skipped
        if math.isfinite(loss) and (scaled or math.isfinite(norm)):
            return
        folder = self._keep(step, loss, norm, micro_batches)
        what = f"loss is {loss}" if not math.isfinite(loss) else f"gradient's norm is {norm}"
        raise SegtuneError(
            f"the {what} at step {step}, whose samples are kept in {folder}: look at them, lower "
            "training.learning_rate, set training.max_grad_norm=1, or train without training.mixed_precision=fp16"
        )

    def _keep(self, step: int, loss: float, norm: float, micro_batches: MicroBatches) -> str:
        """Save the samples of a step, by their ids and as the network saw them; every process its own."""
        folder = self.run.path / NON_FINITE / f"step-{step:06d}"
        folder.mkdir(parents=True, exist_ok=True)
        own = self.accelerator.process_index
        batches = [{key: _on_cpu(value) for key, value in batch.items()} for batch in micro_batches]
        torch.save(batches, folder / f"batches-{own}.pt")
        ids = gather_object([[batch["ids"] for batch in micro_batches]])  # processes x micro-batches x images
        if self.accelerator.is_main_process:
            record = {"step": step, "loss": str(loss), "grad_norm": str(norm), "ids": ids}
            (folder / "samples.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        self.accelerator.wait_for_everyone()
        return str(folder)


def _on_cpu(value: Any) -> Any:
    return value.cpu() if isinstance(value, Tensor) else value


class Throughput:
    """What steps cost: their time, without evaluations and saving, and how much of it went by waiting for data."""

    def __init__(self) -> None:
        self.total_steps, self.total_seconds, self.total_waited = -1, 0.0, 0.0
        self._open()

    def _open(self) -> None:
        self.losses: list[Tensor] = []
        self.seconds = self.waited = 0.0

    def add(self, loss: Tensor, seconds: float, waited: float) -> None:
        """Take note of a step."""
        self.losses.append(loss)
        self.seconds += seconds
        self.waited += waited
        if self.total_steps >= 0:  # in the first one, workers start and the device warms up
            self.total_seconds += seconds
            self.total_waited += waited
        self.total_steps += 1

    def close(self) -> tuple[float, float, float]:
        """Mean loss, steps per second and share of the time waited, of the steps since the last call."""
        loss = torch.stack(self.losses).mean().item()
        seconds = max(self.seconds, 1e-9)
        result = loss, len(self.losses) / seconds, self.waited / seconds
        self._open()
        return result

    def data_wait_share(self) -> float:
        """Share of the run's time waited for data, where it is the bottleneck; 0 where not, or too early to say."""
        share = self.total_waited / max(self.total_seconds, 1e-9)
        return share if self.total_steps >= 10 and share > STARVING else 0.0
