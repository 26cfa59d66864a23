"""Training progress and logging: the bar, `metrics.jsonl`, trackers, throughput, losses that are not finite."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from accelerate.utils import gather_object, send_to_device
from torch import Tensor

from segtune.bars import is_quiet, notebook, progress_bar
from segtune.engines.cpu_threads import cores
from segtune.errors import SegtuneError
from segtune.training.config import TrainingConfig
from segtune.training.distributed import DeferredScalars, peak_memory_mb
from segtune.training.run_folder import NON_FINITE, RunFolder
from segtune.training.trackers import Trackers
from segtune.viz.comparisons import Comparisons
from segtune.viz.live_table import LiveTable
from segtune.viz.numbers import number

logger = logging.getLogger(__name__)

MicroBatches = list[dict[str, Any]]

SKIPPED_AT_MOST = 50  # steps in a row whose gradient overflows; a loss scale of 65536 is then halved to 2^-34
LOWEST_SCALE = 1e-3  # of the loss: gradients of a loss that is smaller still do not overflow for its size
DATA_BOUND = 0.3  # share of the time spent waiting for data from which on the run is told that loading limits it


class Batches(Protocol):
    """What the log asks of whatever gives a run its samples."""

    @property
    def images_per_step(self) -> int: ...

    def epoch(self, step: int, /) -> float: ...


class TrainingProgress:
    """Shows and logs how the steps of a run go: progress bar or, in a notebook, table; `metrics.jsonl`, trackers.

    Args:
        run: the folder whose `metrics.jsonl` is written.
        batches: tell epochs and images per step.
        settings: the run's settings as nested mappings, for the trackers.

    Raises:
        UsageError: a tracker that `config` names is not installed.
    """

    def __init__(self, run: RunFolder, config: TrainingConfig, batches: Batches, settings: Mapping[str, Any]) -> None:
        self.run = run
        self.config = config
        self.batches = batches
        self.settings = settings
        self.accelerator = run.accelerator
        self.trackers = Trackers(run.accelerator, config.trackers, run.path)
        self.scalars = DeferredScalars(run.accelerator.device)
        self.throughput = Throughput()
        self.table: LiveTable | None = None
        self.terms: dict[str, list[Tensor]] = {}
        self.step = 0
        self.skipped = 0  # steps in a row that the loss scaler skipped
        self.warned = False

    @contextmanager
    def logged_from(self, step: int) -> Iterator[None]:
        """A context around the steps of a run that has made `step` steps before: opens bar and trackers."""
        self.step = self.first = step
        self.started = time.perf_counter()
        self.trackers.start(step, self.settings)
        hidden = not self.accelerator.is_local_main_process
        total = self.config.max_steps
        if notebook() is not None and not hidden and not is_quiet():
            self.table, hidden = LiveTable(total, step), True
        with progress_bar(total=total, initial=step, desc="train", unit="step", hidden=hidden) as self.bar:
            try:
                yield
            finally:
                self.trackers.finish()

    def timed(self, steps: Iterator[MicroBatches]) -> Iterator[MicroBatches]:
        """Pass the micro-batches on, and measure the time of each step and how long the device waited for data."""
        while True:
            self.step_started = time.perf_counter()
            micro_batches = next(steps, None)
            if micro_batches is None:
                return
            # A GPU that still computes the step before does not miss the data: loading was hidden behind it.
            is_busy = self.scalars.is_waiting()
            self.waited = 0.0 if is_busy else time.perf_counter() - self.step_started
            yield micro_batches

    def add(
        self,
        loss: Tensor,
        norm: Tensor,
        learning_rate: float,
        micro_batches: MicroBatches,
        terms: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Log a step: its loss, its gradient's norm before clipping, the encoder's learning rate, its samples.

        Args:
            terms: further numbers of the step by name, whose mean over the steps of a line is written beside the loss.

        Raises:
            SegtuneError: a loss or gradient is not finite: on a CPU that of this step, else that of the one before, so
                that no step waits for the device; `flush` asks at once. With a scaled loss, where gradients may
                overflow, it is the 50th gradient in a row, or the loss scale has fallen below 0.001.
        """
        self.step += 1
        self._check(self.scalars.put(torch.stack((loss, norm.to(loss.dtype))), (self.step, micro_batches)))
        self.throughput.add(loss, time.perf_counter() - self.step_started, self.waited)
        for name, value in (terms or {}).items():
            self.terms.setdefault(name, []).append(value)
        self.bar.update()
        if self.step % self.config.log_every == 0 or self.step == self.config.max_steps:
            self.flush()
            self._write_line(float(norm), learning_rate)

    def flush(self) -> None:
        """Wait for the last step and check it; before its weights are evaluated or saved."""
        self._check(self.scalars.take())

    def evaluating(self) -> None:
        """Tell who watches a notebook that an evaluation begins."""
        if self.table is not None:
            self.table.evaluating()

    def scores(self, scores: dict[str, Any], overlays: Comparisons) -> None:
        """Write the result of an evaluation of this step, and send the pictures that were drawn."""
        record = {"step": self.step, "split": "val", **scores}
        self.run.write(record)
        self.trackers.log("val", record)
        if self.table is not None:
            self.table.evaluated(self.step, scores.get("mean_iou"))
        elif self.bar.disable and self.accelerator.is_local_main_process:  # a log has lines in the place of a bar
            score = number(scores.get("mean_iou"), 4)
            logger.info("step %d of %d: val mIoU %s", self.step, self.config.max_steps, score)
        for name, path in overlays.saved():
            self.trackers.log_picture(f"overlays/{name}", path, self.step)

    def finish(self, reason: str) -> None:
        """Write why the run, or this part of it, ended, and what it took."""
        if self.table is not None:
            self.table.finish("done" if reason == "done" else f"ended: {reason}")
        if self.skipped and self.skipped == self.step - self.first:
            logger.warning("all %d gradients overflowed: the weights are those of before the first step", self.skipped)
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
        loss, rate, share = self.throughput.close()
        rate *= self.batches.images_per_step
        record: dict[str, Any] = {
            "step": self.step,
            "epoch": round(self.batches.epoch(self.step), 4),
            "loss": loss,
            **{name: torch.stack(values).mean().item() for name, values in self.terms.items()},
            "lr": learning_rate,
            "grad_norm": norm if math.isfinite(norm) else None,  # of a step that the loss scaler skips
            "images_per_second": round(rate, 3),
            "waiting_for_data": round(share, 3),
            "peak_memory_mb": round(peak_memory_mb(self.accelerator.device), 1),
        }
        self.terms.clear()
        if self.accelerator.scaler is not None:
            record["loss_scale"] = self.accelerator.scaler.get_scale()
        self.run.write(record)
        self.trackers.log("train", record)
        self.bar.set_postfix_str(f"loss={loss:.4f}, lr={learning_rate:.2e}, {rate:.1f} images/s")
        if self.table is not None:
            self.table.log(self.step, loss, learning_rate, rate)
        share = self.throughput.data_wait_share()
        if share and not self.warned:
            self.warned = True
            logger.warning(
                "loading data is the bottleneck: %.0f %% of the time went by waiting for it "
                "(training.num_workers=%d, of %d cores)",
                100 * share,
                self.config.num_workers,
                cores(),
            )

    def _check(self, numbers: tuple[list[float], Any] | None) -> None:
        if numbers is None:
            return
        (loss, norm), (step, micro_batches) = numbers
        # With fp16 the loss is scaled. A gradient that overflows is expected then: the scaler skips the step and halves
        # the scale. Where that goes on and on, no scale is small enough, and the weights stay what they are.
        if math.isfinite(loss) and math.isfinite(norm):
            self.skipped = 0
            return
        what, since = f"loss is {loss}", ","
        if math.isfinite(loss):
            what = f"gradient's norm is {norm}"
            if self.accelerator.scaler is not None:
                self.skipped += 1
                if not self._is_beyond_scaling():
                    return
                since = f", as in {self.skipped} steps in a row, so that the weights no longer change,"
        folder = self._save_samples(step, loss, norm, micro_batches)
        raise SegtuneError(
            f"the {what} at step {step}{since} whose samples are kept in {folder}: look at them, lower "
            "training.learning_rate, set training.max_grad_norm=1, or train without training.mixed_precision=fp16"
        )

    def _is_beyond_scaling(self) -> bool:
        """Whether to give up on a gradient that overflows; only then is the scaler asked, for which a GPU waits."""
        return self.skipped >= SKIPPED_AT_MOST or self.accelerator.scaler.get_scale() < LOWEST_SCALE

    def _save_samples(self, step: int, loss: float, norm: float, micro_batches: MicroBatches) -> str:
        """Save the samples of a step, by their ids and as the network saw them; every process its own."""
        folder = self.run.path / NON_FINITE / f"step-{step:06d}"
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(send_to_device(micro_batches, "cpu"), folder / f"batches-{self.accelerator.process_index}.pt")
        ids = gather_object([[batch["ids"] for batch in micro_batches]])  # processes x micro-batches x images
        if self.accelerator.is_main_process:
            record = {"step": step, "loss": str(loss), "grad_norm": str(norm), "ids": ids}
            (folder / "samples.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        self.accelerator.wait_for_everyone()
        return str(folder)


class Throughput:
    """Mean loss, steps per second (without evaluations and saving), and the share of time spent waiting for data."""

    def __init__(self) -> None:
        self.total_steps, self.total_seconds, self.total_waited = -1, 0.0, 0.0
        self._reset()

    def _reset(self) -> None:
        self.losses: list[Tensor] = []
        self.seconds = self.waited = 0.0

    def add(self, loss: Tensor, seconds: float, waited: float) -> None:
        """Add a step, which took so many seconds, some of them spent waiting for data."""
        self.losses.append(loss)
        self.seconds += seconds
        self.waited += waited
        # The first step does not count: workers start in it, and the device warms up.
        if self.total_steps >= 0:
            self.total_seconds += seconds
            self.total_waited += waited
        self.total_steps += 1

    def close(self) -> tuple[float, float, float]:
        """Mean loss, steps per second and share of time spent waiting, of the steps since the last call."""
        loss = torch.stack(self.losses).mean().item()
        seconds = max(self.seconds, 1e-9)
        result = loss, len(self.losses) / seconds, self.waited / seconds
        self._reset()
        return result

    def data_wait_share(self) -> float:
        """Share of the run's time spent waiting for data where that limits it; 0 where not, or too early to say."""
        share = self.total_waited / max(self.total_seconds, 1e-9)
        return share if self.total_steps >= 10 and share > DATA_BOUND else 0.0
