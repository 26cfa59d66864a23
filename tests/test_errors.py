"""Messages of errors that name what is read."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from segtune.errors import DataError, UsageError, is_out_of_memory, naming, printable
from segtune.imageio.read import ReadError
from segtune.labels.label_map import LabelError


def test_what_is_read_is_named_once() -> None:
    with pytest.raises(DataError, match=r"^a\.png: broken$"), naming("a.png"), naming("a.png"):
        raise DataError("broken")
    with pytest.raises(ReadError, match=r"^a\.png: cannot be read \(broken\)$"), naming("a.png"):
        raise ReadError("a.png", "broken")


def test_named_errors_keep_their_values() -> None:
    with pytest.raises(LabelError, match=r"^sample 'a': the mask holds id 9$") as error, naming("sample 'a'"):
        raise LabelError("the mask holds id 9", {9: 4})
    assert error.value.values == {9: 4}


def test_other_errors_stay_as_they_are() -> None:
    for error in (UsageError("wrong"), TypeError("a bug")):
        with pytest.raises(type(error)) as found, naming("a.png"):
            raise error
        assert found.value is error


def test_what_steers_a_terminal_is_written_out() -> None:
    assert printable("a\x1b[2Jb\x07\r\x9b\u202ec\u2066\x00") == r"a\x1b[2Jb\x07\r\x9b\u202ec\u2066\x00"
    kept = "Straße дорога\n\t\u0634\u0631\u200f 道路 🛣"
    assert printable(kept) == kept


def test_errors_of_memory_are_told_from_others() -> None:
    for ask in (lambda: torch.empty(2**55), lambda: np.empty(2**55)):
        with pytest.raises((RuntimeError, MemoryError)) as caught:
            ask()
        assert is_out_of_memory(caught.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    assert is_out_of_memory(OSError(12, "Cannot allocate memory"))
    assert is_out_of_memory(RuntimeError("could not create a primitive"))  # oneDNN
    with pytest.raises(RuntimeError) as other:
        torch.ones(2, 3) @ torch.ones(2, 3)
    assert not is_out_of_memory(other.value)
    assert not is_out_of_memory(KeyError("out of memory"))  # a name that somebody looks for
