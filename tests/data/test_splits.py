from __future__ import annotations

import pytest

from segtune.data.splits import choose_split
from segtune.errors import UsageError


def test_splits() -> None:
    data = {"train": 0, "val": 0}
    assert choose_split(None, {**data, "test": 0}, "data") == "test"
    assert choose_split(None, data, "data") == "val"
    assert choose_split("train", data, "data") == "train"
    with pytest.raises(UsageError, match="--split test: data has train"):
        choose_split(None, {"train": 0}, "data")
    with pytest.raises(UsageError, match="--split test: data has train, val"):
        choose_split("test", data, "data")
