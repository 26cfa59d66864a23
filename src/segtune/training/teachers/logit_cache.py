"""A teacher's logits on disk, by what the teacher saw: one file for each crop.

A crop is known by its pixel values, so that what is read is what the teacher would have answered, up to the rounding to
16 bits, which logits get whether they come from the disk or not. Crops come again where they are fixed, and in every
run with the same data, transforms and seed: another weight, temperature, student or rate. Random crops of one run do
not, and the folder grows by `S · h · w · 2` bytes for each.
"""

from __future__ import annotations

import hashlib
import logging
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from segtune.errors import UsageError
from segtune.files import atomic_path, is_full_disk
from segtune.training.teachers.teacher import Teacher

logger = logging.getLogger(__name__)


class LogitCache:
    """A folder of a teacher's logits; those of another teacher lie in another folder of it, and are never taken.

    Args:
        folder: of all teachers; it is made where it is missing. Several trainings may use it at the same time.

    Raises:
        UsageError: the folder cannot be made.
    """

    def __init__(self, folder: Path, teacher: Teacher) -> None:
        self.teacher, self.folder = teacher, folder / teacher.digest()
        others = [path.name for path in folder.glob("*") if path.is_dir() and path != self.folder]
        if others and not self.folder.exists():
            logger.warning(
                "%s holds logits of other teachers (%s): those of this one are made anew", folder, ", ".join(others)
            )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if is_full_disk(error):
                raise
            raise UsageError(
                f"training.distill.cache={folder} cannot be a folder of logits ({error.strerror}): name another one"
            ) from error
        self.found = self.made = 0

    def __call__(self, pixel_values: Tensor) -> Tensor:
        """The logits `(B, S, h, w)` of crops `(B, C, H, W)`, rounded to float16."""
        paths = [self._path(crop) for crop in pixel_values.cpu().numpy()]
        kept = [_read(path) for path in paths]
        shapes = {None if logits is None else logits.shape for logits in kept}
        # of one shape, or they are not what was kept of these crops
        if None not in shapes and len(shapes) == 1:
            self.found += len(kept)
            return torch.from_numpy(np.stack(kept)).to(pixel_values.device).float()  # type: ignore[arg-type]
        # all of them, also where some are there: an answer may depend on the batch in its last digit
        logits = self.teacher(pixel_values).half()
        self.made += len(kept)
        for path, array in zip(paths, logits.cpu().numpy(), strict=True):
            with atomic_path(path, shared=True) as temporary, temporary.open("wb") as file:
                np.savez(file, logits=array)  # an archive has checksums
        return logits.float()

    def _path(self, crop: np.ndarray) -> Path:
        key = hashlib.sha256(repr(crop.shape).encode() + np.ascontiguousarray(crop).data.tobytes()).hexdigest()
        return self.folder / key[:2] / f"{key[2:34]}.npz"


def _read(path: Path) -> np.ndarray | None:
    """Logits `(S, h, w)`; None where there are none, or the file is damaged."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as found:
            array: np.ndarray = found["logits"]
    except (OSError, ValueError, EOFError, KeyError, TypeError, RuntimeError, zipfile.BadZipFile, zlib.error):
        return None
    return array if array.dtype == np.float16 and array.ndim == 3 else None
