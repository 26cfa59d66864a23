"""Checkpoints: models as `from_pretrained` reads them, and training states from which a run resumes exactly."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors.torch import load_file, save_file

from segtune.errors import DataError
from segtune.files import MODEL_MANIFEST, check_manifest, write_folder, write_manifest
from segtune.segformer.image_processing_segformer import SegformerImageProcessor
from segtune.segformer.modeling_segformer import SegformerPreTrainedModel
from segtune.training.distributed import gather_full, shard_like
from segtune.training.lora import merged, save_adapter

logger = logging.getLogger(__name__)

STATE_FILE, MANIFEST_FILE = "training_state.pt", "manifest.json"
WEIGHTS_FILE = "model.safetensors"
MODEL_FILES = ("config.json", WEIGHTS_FILE, "preprocessor_config.json")  # in best/ and final/


def save_model(
    folder: Path,
    model: SegformerPreTrainedModel,
    processor: SegformerImageProcessor,
    texts: Mapping[str, str] | None = None,
) -> None:
    """Write what `from_pretrained` needs, all at once: a reader sees the old folder or the new one.

    A hidden manifest has the checksums (`check_model`). Of a model with adapters: the merged network, and the adapters
    with the head in `adapter/`.

    Args:
        texts: further files, by name; by default none.
    """
    adapted = hasattr(model, "peft_config")

    def write(target: Path) -> None:
        (merged(model) if adapted else model).save_pretrained(target)
        if adapted:
            save_adapter(model, target / "adapter")
        processor.save_pretrained(target)
        for name, text in (texts or {}).items():
            (target / name).write_text(text, encoding="utf-8")
        write_manifest(target, MODEL_MANIFEST)

    write_folder(folder, write)


def save_state(
    folder: Path,
    accelerator: Accelerator,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    texts: Mapping[str, str] | None = None,
) -> None:
    """Write all that a resumed run needs: weights, optimiser, loss scaler, every process's random state, `state`.

    All processes call this, the main one writes.

    Args:
        texts: further files of the state, by name; by default none.
    """
    content = {
        "optimizer": gather_full(optimizer.state_dict()),
        "scaler": accelerator.scaler.state_dict() if accelerator.scaler is not None else None,
        "random": gather_object([_random_state(accelerator)]),  # of every process, by its index
        "state": gather_full(state),
    }
    # Gathering is collective: every process takes part, though only the main one has a use for the result.
    weights = gather_full(accelerator.unwrap_model(model).state_dict())
    if not accelerator.is_main_process:
        return

    def write(target: Path) -> None:
        save_file({name: value.contiguous() for name, value in weights.items()}, target / WEIGHTS_FILE)
        torch.save(content, target / STATE_FILE)
        for name, text in (texts or {}).items():
            (target / name).write_text(text, encoding="utf-8")
        # The manifest comes last: a folder that has one was written to its end; its checksums tell bits that rotted.
        write_manifest(target, MANIFEST_FILE)

    write_folder(folder, write)


def load_state(
    folder: Path, accelerator: Accelerator, model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    """Put weights, optimiser, scaler and this process's random state back; returns `state`.

    Raises:
        DataError: a file is missing or torn (see `check_state`).
    """
    # Exact means bit for bit: the next step must see the weights, AdamW's moments and step counts, the loss scale, and
    # the random numbers (dropout, drop path) that the uninterrupted run would have seen. Sample order and augmentation
    # are functions of seed, epoch and index, the learning rate one of the step: neither has a state.
    check_state(folder)
    weights = load_file(folder / WEIGHTS_FILE)
    content = torch.load(folder / STATE_FILE, map_location="cpu", weights_only=True)
    network = accelerator.unwrap_model(model)
    current = network.state_dict()
    network.load_state_dict({name: shard_like(value, current.get(name, value)) for name, value in weights.items()})
    optimizer.load_state_dict(content["optimizer"])
    # AdamW's moments have the shape of their parameter and are sharded with it; its step count is a scalar in each.
    for parameter, slots in optimizer.state.items():
        for name, value in slots.items():
            if value.shape == parameter.shape:
                slots[name] = shard_like(value, parameter)
    if accelerator.scaler is not None and content["scaler"] is not None:
        accelerator.scaler.load_state_dict(content["scaler"])
    # With another number of processes no generator continues one of before: dropout then draws other numbers.
    if len(content["random"]) == accelerator.num_processes:
        _set_random_state(content["random"][accelerator.process_index], accelerator)
    return dict(content["state"])


def check_state(folder: Path) -> None:
    """Raise DataError where a training state is not byte by byte what was written."""
    check_manifest(folder, MANIFEST_FILE, (WEIGHTS_FILE, STATE_FILE))


def check_model(folder: Path) -> None:
    """Raise DataError where a saved model is not what was written; of one without a manifest, where it is not whole."""
    if not (folder / MODEL_MANIFEST).exists():  # of an earlier version
        for name in MODEL_FILES:
            if not (folder / name).is_file():
                raise DataError(f"{folder / name} is missing")
        return
    check_manifest(folder, MODEL_MANIFEST, MODEL_FILES)


def _generators(accelerator: Accelerator) -> dict[str, Any]:
    """The modules of torch that hold the random generators of this process: the CPU's, and its device's."""
    modules = {"cpu": torch.random, "cuda": torch.cuda, "mps": torch.mps}
    return {name: modules[name] for name in dict.fromkeys(("cpu", accelerator.device.type)) if name in modules}


def _random_state(accelerator: Accelerator) -> dict[str, Any]:
    return {name: module.get_rng_state() for name, module in _generators(accelerator).items()}


def _set_random_state(state: dict[str, Any], accelerator: Accelerator) -> None:
    for name, module in _generators(accelerator).items():
        if name in state:  # a run may go on on another kind of device
            module.set_rng_state(state[name])


def saved_states(folder: Path) -> list[Path]:
    """The training states below `folder`, oldest first; any may be torn (`check_state`)."""
    return sorted((path for path in folder.glob("step-*") if path.is_dir()), key=lambda path: (len(path.name), path))
