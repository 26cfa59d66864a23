"""What commands have in common: which process speaks, what stays quiet, files that are not overwritten."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from segtune.errors import UsageError


def is_main_process() -> bool:
    return os.environ.get("RANK", "0") == "0"  # set by accelerate launch and torchrun


def resumed(words: Sequence[str]) -> list[str]:
    """The words of a `train` command, changed to go on with its run."""
    kept = [word for word in words if not word.startswith(("training.resume=", "training.overwrite="))]
    return [*kept, "training.resume=auto"]


def hide_bars_of_libraries() -> None:
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # one for each checkpoint that is read or written


def refuse_existing(path: Path, force: bool) -> None:
    if path.exists() and not force:
        raise UsageError(f"{path} exists already; name another file, or say --force to overwrite it")
