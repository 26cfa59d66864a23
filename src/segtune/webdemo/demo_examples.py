"""Pictures to try in the web demo: those of the run that a checkpoint lies in, or those that were named."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from segtune.errors import UsageError
from segtune.hub.stage import example_pictures
from segtune.imageio.read import is_picture
from segtune.training.run_folder import RECIPE_FILE

COUNT, SIDE = 4, 2048


def find_examples(checkpoint: Path, named: Sequence[str | os.PathLike[str]] | None, folder: Path) -> list[Path]:
    """Pictures in `folder`, which is made: copies of those that were named or, where None, of the run's data.

    Raises:
        UsageError: one that was named does not exist, or is no picture.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if named is None:
        run = checkpoint.resolve().parent
        contents = example_pictures(run, COUNT, SIDE) if (run / RECIPE_FILE).is_file() else []
        for number, content in enumerate(contents, start=1):
            (folder / f"example-{number}.jpg").write_bytes(content)
        return sorted(folder.iterdir())
    for number, path in enumerate(map(Path, named), start=1):
        if not path.is_file() or not is_picture(path.name):
            raise UsageError(f"example {path}: {'it is no picture' if path.is_file() else 'no such file'}")
        shutil.copyfile(path, folder / f"{number}-{path.name}")
    return sorted(folder.iterdir())
