"""Confusion matrix: pixels of every pair of classes, the one place where ids of predictions and references meet."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from segtune.errors import DataError, listed

_CHUNK = 1 << 18  # pixels counted at a time, so that what is made of them stays in the cache


def count_pairs(prediction: np.ndarray, reference: np.ndarray, num_labels: int, ignore_index: int = 255) -> np.ndarray:
    """The confusion matrix of two maps.

    Args:
        prediction: ids, any shape and integer type; not looked at where the reference is ignored.
        reference: ids of the same shape; pixels of `ignore_index` do not count.

    Returns:
        int64 `(K, K)`; row = reference, column = prediction.

    Raises:
        DataError: an id that is no class, named with its number of pixels.
    """
    prediction, reference = prediction.reshape(-1), reference.reshape(-1)
    with _one_thread():
        return _count(prediction, reference, num_labels, ignore_index)


@contextmanager
def _one_thread() -> Iterator[None]:
    """One thread of PyTorch in the block: a chunk is counted sooner than a thread answers whose core is busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _count(prediction: np.ndarray, reference: np.ndarray, num_labels: int, ignore_index: int) -> np.ndarray:
    """`count_pairs` of flat maps."""
    shift = ignore_index if 0 <= ignore_index < 256 else 0
    pairs = np.zeros(1 << 16, dtype=np.int64)  # of (reference - shift) % 256 and prediction: small codes where K is
    for start in range(0, reference.size, _CHUNK):
        chunk = slice(start, start + _CHUNK)
        pred, ref = _as_bytes(prediction[chunk]), _as_bytes(reference[chunk])
        if pred is None or ref is None:
            return _count_wide(prediction, reference, num_labels, ignore_index)
        found = _pairs_of_bytes(pred, ref - np.uint8(shift))
        pairs[: len(found)] += found
    table = np.roll(pairs.reshape(256, 256), shift, axis=0)
    if 0 <= ignore_index < 256:
        table[ignore_index] = 0
    if table[num_labels:].any() or table[:, num_labels:].any():
        check_ids(prediction, reference, num_labels, ignore_index)
    counts = np.zeros((num_labels, num_labels), dtype=np.int64)
    counts[:256, :256] = table[:num_labels, :num_labels]
    return counts


def pairs_of_maps(predictions: Any, references: Any) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The pairs `(H, W)` of one pair of maps, of batches `(B, H, W)`, or of lists of maps whose sizes differ.

    Raises:
        DataError: maps that are not integer ids or that do not pair up.
    """
    pred, ref = as_maps(predictions), as_maps(references)
    for name, maps in (("predictions", pred), ("references", ref)):
        if wrong := [ids.dtype for ids in maps if ids.dtype.kind not in "iub"]:
            raise DataError(f"{name} are integer ids (take the argmax of logits), not {wrong[0]}")
    if len(pred) != len(ref):
        raise DataError(f"{len(pred)} predictions but {len(ref)} references")
    for index, (prediction, reference) in enumerate(zip(pred, ref, strict=True)):
        if prediction.shape != reference.shape:
            raise DataError(
                f"map {index}: the prediction is {prediction.shape}, its reference {reference.shape}; "
                "bring the prediction to the size of the mask first"
            )
        yield prediction, reference


def check_ids(prediction: np.ndarray, reference: np.ndarray, num_labels: int, ignore_index: int = 255) -> None:
    """Refuse ids that are no class; the maps are those of `count_pairs`.

    Raises:
        DataError: an id that is no class, named with its number of pixels.
    """
    valid = reference != ignore_index
    fix = f"; pixels that do not count need {ignore_index}"
    for name, ids, hint in (("references", reference[valid], fix), ("predictions", prediction[valid], "")):
        values, counts = np.unique(ids[(ids < 0) | (ids >= num_labels)], return_counts=True)
        if values.size:
            found = listed([f"{value} ({count} pixels)" for value, count in zip(values, counts, strict=True)])
            raise DataError(f"{name} hold id {found}, but classes are 0 to {num_labels - 1}{hint}")


def _pairs_of_bytes(prediction: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """How often each `reference * 256 + prediction` occurs, up to the largest that does.

    Maps consist of long runs of one pair, and it is the runs that are counted; where they are short, the pixels.
    """
    change = prediction[1:] != prediction[:-1]
    change |= reference[1:] != reference[:-1]
    if np.count_nonzero(change) * 8 < change.size:
        last = np.append(np.flatnonzero(change), change.size)  # of each run
        codes = reference[last].astype(np.intp) << 8 | prediction[last]
        return np.bincount(codes, weights=np.diff(last, prepend=-1)).astype(np.int64)
    codes = reference.astype(np.uint16)
    codes <<= 8
    codes |= prediction
    signed = codes.view(np.int16) if reference.max() < 128 else codes.astype(np.int32)
    return torch.bincount(torch.from_numpy(signed)).numpy()  # NumPy's would copy to int64 first


def _count_wide(prediction: np.ndarray, reference: np.ndarray, num_labels: int, ignore_index: int) -> np.ndarray:
    """Ids of any size: checked first, then counted as one number per pair."""
    check_ids(prediction, reference, num_labels, ignore_index)
    valid = reference != ignore_index
    codes = reference[valid].astype(np.int64) * num_labels + prediction[valid].astype(np.int64)
    return np.bincount(codes, minlength=num_labels**2).reshape(num_labels, num_labels)


def _as_bytes(ids: np.ndarray) -> np.ndarray | None:
    """The same ids as uint8, or None where one does not fit."""
    if ids.dtype == np.uint8:
        return ids
    if ids.dtype != bool and ids.size and int(np.bitwise_or.reduce(ids)) & ~0xFF:
        return None
    return ids.astype(np.uint8)


def as_maps(values: Any) -> list[np.ndarray]:
    """Maps `(H, W)` of one map, a batch `(B, H, W)`, or a list of either: arrays, tensors or nested lists.

    Raises:
        DataError: anything else.
    """
    parts = list(values) if isinstance(values, (list, tuple)) else [values]
    arrays = [_array(part) for part in parts]
    if arrays and all(array.ndim == 1 for array in arrays):  # the rows of one map
        arrays = [_array(values)]
    for array in arrays:
        if array.ndim not in (2, 3):
            raise DataError(f"maps are (height, width) or (batch, height, width), not {array.shape}")
    return [ids for array in arrays for ids in (array if array.ndim == 3 else [array])]


def _array(values: Any) -> np.ndarray:
    if hasattr(values, "detach"):  # a torch tensor, on whatever device
        values = values.detach().cpu().numpy()
    try:
        return np.asarray(values)
    except ValueError as error:
        raise DataError(f"ids come as maps (height, width) of integers: {error}") from error
