"""Experiment trackers through Accelerate: TensorBoard, trackio, Weights & Biases, MLflow."""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from PIL import Image

from segtune.config import flatten
from segtune.errors import UsageError
from segtune.training.config import TrackerName

logger = logging.getLogger(__name__)


class Trackers:
    """The trackers of a run; without names, none. Everything is sent by the main process.

    Args:
        folder: of the run; TensorBoard writes into its `tensorboard/`. The run's name elsewhere is that of the folder,
            the project's `segtune` (or `$WANDB_PROJECT`, `$MLFLOW_EXPERIMENT_NAME`).
    """

    def __init__(self, accelerator: Accelerator, names: Sequence[TrackerName], folder: Path) -> None:
        self.accelerator = accelerator
        self.names = names if accelerator.is_main_process else ()
        self.folder = folder
        for name in self.names:
            _import(name)

    def start(self, step: int, settings: Mapping[str, Any]) -> None:
        """Begin, or after a resume go on after `step`, with the settings of the run as nested mappings."""
        if not self.names:
            return
        project = os.environ.get("WANDB_PROJECT", "segtune")
        name = self.folder.resolve().name
        options: dict[str, dict[str, Any]] = {
            "tensorboard": {"purge_step": step + 1, "logging_dir": str(self.folder)},
            "trackio": {"name": name},
            "wandb": {"name": name, "dir": str(self.folder)},
            "mlflow": {"run_name": name},
        }
        self.accelerator.log_with = [
            LOGGER_TYPE_TO_CLASS[each]("tensorboard" if each == "tensorboard" else project, **options[each])
            for each in self.names
        ]
        # `init_trackers` appends to those of an earlier start, which would then get every number as well.
        self.accelerator.trackers = []
        self.accelerator.init_trackers(project)
        values = {key: _plain(value) for key, value in flatten(settings)}
        for tracker in self.accelerator.trackers:
            # TensorBoard's own way (hparams) would show the settings as a second run.
            if tracker.name == "tensorboard":
                text = "\n".join(f"    {key}: {value}" for key, value in values.items())
                tracker.log({"settings": text}, step=step)
            else:
                tracker.store_init_configuration(values)

    def log(self, split: str, record: Mapping[str, Any]) -> None:
        """Send the numbers of a line of `metrics.jsonl`, as `split/name`."""
        if self.names:
            numbers = {
                key: value for key, value in flatten(record) if isinstance(value, (int, float)) and key != "step"
            }
            self.accelerator.log({f"{split}/{key}": value for key, value in numbers.items()}, step=record["step"])

    def log_picture(self, name: str, path: Path, step: int) -> None:
        """Send a picture that was saved to a file."""
        for tracker in self.accelerator.trackers:
            pixels = np.asarray(Image.open(path))  # (H, W, 3)
            if tracker.name == "tensorboard":
                tracker.log_images({name: pixels[None]}, step=step, dataformats="NHWC")
            elif tracker.name == "wandb":
                tracker.log_images({name: [pixels]}, step=step)
            elif tracker.name == "trackio":
                tracker.log({name: _import("trackio").Image(pixels)}, step=step)
            else:
                tracker.log_artifact(str(path), f"{name}/step-{step:06d}")

    def finish(self) -> None:
        """Send what is left."""
        for tracker in self.accelerator.trackers:
            tracker.finish()
        self.accelerator.trackers = []


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UsageError(
            f"training.trackers names {name}, which cannot be imported ({error}): pip install 'segtune[{name}]'"
        ) from error


def _plain(value: Any) -> bool | int | float | str:
    return value if isinstance(value, (bool, int, float, str)) else str(value)
