"""What is said about a run while it goes on: the progress bar, the lines of `metrics.jsonl`."""

from __future__ import annotations

import math
import platform
import time
from types import TracebackType
from typing import Any

import accelerate
import torch
import transformers
from accelerate import Accelerator
from torch import Tensor
from tqdm.auto import tqdm

import segtune
from segtune.errors import SegtuneError
from segtune.run_folder import RunFolder


class Watch:
    """A context around the steps of a run that shows and writes how they go.

    Args:
        first_step: how many steps were made before.
        images_per_epoch: training samples.
        images_per_step: of all processes.
    """

    def __init__(
        self,
        run: RunFolder,
        accelerator: Accelerator,
        *,
        first_step: int,
        max_steps: int,
        log_every: int,
        images_per_step: int,
        images_per_epoch: int,
    ) -> None:
        self.run = run
        self.accelerator = accelerator
        self.max_steps = max_steps
        self.log_every = log_every
        self.images_per_step = images_per_step
        self.images_per_epoch = images_per_epoch
        self.step = first_step
        self.meter = Meter()

    def __enter__(self) -> Watch:
        hidden = not self.accelerator.is_local_main_process
        self.bar = tqdm(total=self.max_steps, initial=self.step, desc="train", unit="step", disable=hidden)
        self.meter = Meter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.close()

    def add(self, loss: Tensor, norm: Tensor, learning_rate: float) -> None:
        """Take note of a step: its loss, its gradient's norm before clipping, the encoder's learning rate."""
        self.step += 1
        self.meter.add(loss)
        self.bar.update()
        if self.step % self.log_every == 0 or self.step == self.max_steps:
            self._write_line(norm, learning_rate)

    def _write_line(self, norm: Tensor, learning_rate: float) -> None:
        loss, steps_per_second = self.meter.close()
        if not math.isfinite(loss):
            raise SegtuneError(
                f"the loss is {loss} at step {self.step}: lower training.learning_rate, set training.max_grad_norm=1, "
                "or train without training.mixed_precision=fp16"
            )
        self.bar.set_postfix(loss=f"{loss:.4f}", lr=f"{learning_rate:.2e}")
        self.run.write(
            {
                "step": self.step,
                "epoch": round(self.step * self.images_per_step / self.images_per_epoch, 4),
                "loss": loss,
                "lr": learning_rate,
                "grad_norm": float(norm),
                "images_per_second": round(steps_per_second * self.images_per_step, 3),
            }
        )


class Meter:
    """Losses and time since the last line of the log."""

    def __init__(self) -> None:
        self._open()

    def _open(self) -> None:
        self.losses: list[Tensor] = []
        self.started = time.perf_counter()

    def add(self, loss: Tensor) -> None:
        self.losses.append(loss)

    def close(self) -> tuple[float, float]:
        """Mean loss and steps per second; starts anew."""
        loss = torch.stack(self.losses).mean().item()
        rate = len(self.losses) / max(time.perf_counter() - self.started, 1e-9)
        self._open()
        return loss, rate


def environment(accelerator: Accelerator) -> dict[str, Any]:
    """What a run ran on, for the first line of `metrics.jsonl`."""
    return {
        "segtune": segtune.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "accelerate": accelerate.__version__,
        "device": torch.cuda.get_device_name() if accelerator.device.type == "cuda" else str(accelerator.device),
        "num_processes": accelerator.num_processes,
        "mixed_precision": accelerator.mixed_precision,
        "threads": torch.get_num_threads(),
    }
