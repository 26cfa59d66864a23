"""Three SGD steps of the training loop on eight images each, in one of several processes.

steps.py FILE [SETTINGS, …] [sharded]: the main process saves for each of the settings the first gradient that the
optimiser gets, the losses, and the model's state at the end.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from common import make_trainer, shard

import segtune.training.trainer
from segtune.training.distributed import gather_full
from segtune.training.trainer import SegmentationTrainer


def with_ignored_pixels(run: SegmentationTrainer) -> Iterator[list[dict[str, Any]]]:
    """Of the eight images of a step the first is wholly ignored, and of each other one another number of rows."""
    size, accelerator = run.config.batch_size, run.accelerator
    for micro_batches in run._batches():
        for micro_step, batch in enumerate(micro_batches):
            first = (micro_step * accelerator.num_processes + accelerator.process_index) * size
            for position, labels in enumerate(batch["labels"], start=first):
                labels[: 64 if position == 0 else 8 * position] = 255
        yield micro_batches


def three_steps(folder: Path, settings: dict[str, Any], sharded: bool) -> dict[str, Any]:
    run = make_trainer(folder, {"max_steps": 3, "learning_rate": 0.05, "warmup_steps": 0} | settings)
    assert all(hasattr(parameter, "full_tensor") == sharded for parameter in run.model.parameters())
    segtune.training.trainer.train_mode(run.model, run.config.freeze, run.config.batch_norm)
    gradients: list[dict[str, torch.Tensor]] = []
    step = run.optimizer.step

    def noting_step() -> None:
        named = run.accelerator.unwrap_model(run.model).named_parameters()
        gradients.append({name: gather_full(parameter.grad).clone() for name, parameter in named})
        step()

    run.optimizer.step = noting_step
    losses = [run._optimizer_step(micro_batches)[0].item() for micro_batches in with_ignored_pixels(run)]
    state = gather_full(run.accelerator.unwrap_model(run.model).state_dict())
    return {"gradient": gradients[0], "losses": losses, "state": state}


if __name__ == "__main__":
    file, sharded = Path(sys.argv[1]), sys.argv[3:] == ["sharded"]
    if sharded:
        shard()
    segtune.training.trainer.adamw = lambda groups, betas: torch.optim.SGD(groups)
    results = [three_steps(file.parent, settings, sharded) for settings in json.loads(sys.argv[2])]
    if os.environ["RANK"] == "0":
        torch.save(results, file)
