"""What commands have in common: which process speaks, what stays quiet, files that are not overwritten."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from segtune.errors import UsageError

if TYPE_CHECKING:
    from segtune.recipe.recipe import Recipe


def first_sentence(command: Callable[..., None]) -> str:
    """Of what a command says of itself, for lists of commands: whole, where Click would cut it."""
    return " ".join((command.__doc__ or "").split("\n\n")[0].split())


def is_main_process() -> bool:
    return os.environ.get("RANK", "0") == "0"  # set by accelerate launch and torchrun


def resumed(words: Sequence[str]) -> list[str]:
    """The words of a `train` command, changed to go on with its run."""
    kept = [word for word in words if not word.startswith(("training.resume=", "training.overwrite="))]
    return [*kept, "training.resume=auto"]


def hide_bars_of_libraries() -> None:
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # one for each checkpoint that is read or written


def check_before_torch(settings: Recipe | None = None, checkpoint: str | None = None) -> None:
    """Tell at once of data or a checkpoint that is not there: what comes next imports torch, which takes seconds.

    Raises:
        UsageError: the folder of the data, or the checkpoint, does not exist.
    """
    from segtune.data import config
    from segtune.segformer import checkpoint_files

    if checkpoint is not None:
        checkpoint_files.refuse_missing(checkpoint)
    if settings is not None and settings.dataset.format != "hub":
        config.refuse_missing(settings.dataset.path)


def refuse_existing(path: Path, force: bool) -> None:
    if path.exists() and not force:
        raise UsageError(f"{path} exists already; name another file, or say --force to overwrite it")
