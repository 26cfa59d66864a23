"""HDF5 files of weights, read so that nothing in them leads elsewhere: no links, no bytes of other files, no bombs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any

import numpy as np

from segtune.errors import DataError, UsageError

SIGNATURE = b"\x89HDF\r\n\x1a\n"
# Of a tensor, of the block that HDF5 unpacks at once, and of all tensors together, which are 2 GB: the largest of any
# SegFormer has 9 million, a B5 with the two moments of its optimizer 250 million.
_MOST_VALUES, _MOST_IN_ALL = 2**28, 2**29
_MOST_OBJECTS, _DEEPEST = 50_000, 40  # of groups and tensors; the largest preset has 3,500


@contextmanager
def opened(name: str, file: IO[bytes]) -> Iterator[Mapping[str, Any]]:
    """The data sets of an open HDF5 file by their path in it, `a/b/vars/0`; `read` gives their values.

    Args:
        name: of the file, for messages.

    Raises:
        UsageError: h5py, which reads such files, is missing.
        DataError: no HDF5 file, a damaged one, or one that reaches into other files.
    """
    try:
        import h5py
    except ImportError:
        raise UsageError(f"{name} is an HDF5 file, which h5py reads: pip install 'segtune[keras]'") from None
    try:
        with h5py.File(file, "r") as root:
            found = dict(_walk(name, root, h5py))
            if (count := sum(dataset.size or 0 for dataset in found.values())) > _MOST_IN_ALL:
                raise DataError(f"{name} holds {count:,} numbers, which is more than any network needs")
            yield found
    except DataError:
        raise
    except MemoryError as error:
        raise DataError(f"{name} asks for more memory than there is: fetch or copy it once more") from error
    except (ArithmeticError, LookupError, OSError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{name} is damaged, or no HDF5 file ({reason}): fetch or copy it once more") from error


def read(name: str, path: str, dataset: Any) -> np.ndarray:
    """The values of a data set as float32.

    Raises:
        DataError: it holds no numbers, or more than any network has.
    """
    block = math.prod(dataset.chunks or ())
    if dataset.size is None or dataset.size > _MOST_VALUES or block > _MOST_VALUES:
        raise DataError(f"{name}: {path} has the shape {dataset.shape}, which is more than any network needs")
    is_bfloat16 = dataset.attrs.get("dtype") == "bfloat16" and dataset.dtype.itemsize == 2  # which HDF5 has not
    if not is_bfloat16 and dataset.dtype.kind not in "fiu":
        raise DataError(f"{name}: {path} holds {dataset.dtype}, and no numbers")
    values = dataset[()]
    if is_bfloat16:
        wide = np.ascontiguousarray(values).view(np.uint16).astype(np.uint32) << 16
        return wide.view(np.float32).reshape(dataset.shape)
    return np.asarray(values, dtype=np.float32)


def _walk(name: str, root: Any, h5py: Any) -> Iterator[tuple[str, Any]]:
    """Every data set below a group with its path; links to other places are refused, wherever they lead."""
    pending, seen = [("", root)], 0
    while pending:
        prefix, group = pending.pop()
        for key in group:
            path, seen = f"{prefix}{key}", seen + 1
            if seen > _MOST_OBJECTS or path.count("/") > _DEEPEST:
                raise DataError(f"{name} holds more groups than any network needs")
            if not isinstance(group.get(key, getlink=True), h5py.HardLink):
                raise DataError(f"{name}: {path} is a link to another place: refused")
            item = group[key]
            if isinstance(item, h5py.Group):
                pending.append((f"{path}/", item))
            elif isinstance(item, h5py.Dataset):
                if item.external or item.is_virtual:
                    raise DataError(f"{name}: {path} takes its bytes from other files: refused")
                yield path, item
