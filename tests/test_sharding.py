"""What is not sharded stays as it is; sharded runs of real processes are in test_processes.py."""

from __future__ import annotations

import torch

from segtune.sharding import own_part, part_of, whole


def test_whole_tensors_stay_as_they_are() -> None:
    value = torch.ones(3)
    tree = {"a": [value, 1], "b": {"c": "text", "d": None}}
    same = whole(tree)
    assert same == tree and same["a"][0] is value
    assert part_of(value, torch.zeros(3)) is value and own_part(value) is value
