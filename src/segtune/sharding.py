"""Tensors of which every process holds a part (torch's `fully_shard`): put together, and taken apart again.

Both talk to the other processes, so that all must call them at the same point; `own_part` does not.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_map


def whole(tree: Any) -> Any:
    """The same nested lists and dictionaries, with every sharded tensor put together."""
    return tree_map(lambda value: value.full_tensor() if _is_sharded(value) else value, tree)


def part_of(value: Tensor, like: Tensor) -> Tensor:
    """This process's part of a whole tensor, sharded as `like` is; the tensor itself where `like` is whole."""
    if not _is_sharded(like) or _is_sharded(value):
        return value
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)


def own_part(value: Tensor) -> Tensor:
    """What this process holds of a tensor, in the same memory; talks to nobody."""
    return value.to_local() if _is_sharded(value) else value  # type: ignore[attr-defined]


def _is_sharded(value: Any) -> bool:
    return hasattr(value, "full_tensor")  # a DTensor, whose module takes long to import
