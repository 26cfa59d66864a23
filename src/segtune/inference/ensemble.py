"""An ensemble: several networks of the same classes, the mean of whose probabilities decides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from segtune.errors import UsageError
from segtune.segformer.image_processing_segformer import SegformerImageProcessor


class Ensemble(nn.Module):
    """Stands where one network does in prediction and evaluation; `Segmenter` runs its members one after another.

    Each member sees the image as its own processor prepares it, so that sizes and architectures may differ.

    Args:
        members: networks with `config` and `name_or_path`, as `open_network` returns them.
        processors: one for each.

    Attributes:
        config: of the first member, with the names and colours of the classes.
        name_or_path: where the first member's image processor lies.

    Raises:
        UsageError: members of other classes, or of another number of logits.
    """

    def __init__(self, members: Sequence[nn.Module], processors: Sequence[SegformerImageProcessor]) -> None:
        super().__init__()
        first: Any = members[0]
        for other in members[1:]:
            _refuse_other_classes(first, other)
        self.members = nn.ModuleList(members)
        self.processors = tuple(processors)
        self.config, self.name_or_path = first.config, first.name_or_path

    @property
    def device(self) -> torch.device:
        """Of the first member."""
        device: torch.device = self.members[0].device  # type: ignore[assignment]
        return device

    def num_parameters(self) -> int:
        """Of all members together."""
        return sum(member.num_parameters() for member in self.members)  # type: ignore[operator]


def first_member(network: nn.Module) -> nn.Module:
    """The network itself, or the first of an ensemble."""
    return network.members[0] if isinstance(network, Ensemble) else network


def _refuse_other_classes(first: Any, other: Any) -> None:
    own, theirs = (
        (net.config.num_labels, tuple(net.config.id2label[index] for index in sorted(net.config.id2label)))
        for net in (first, other)
    )
    if own != theirs:
        raise UsageError(
            f"the classes differ, and so do not average: {first.name_or_path} has {own[0]} ({', '.join(own[1])}), "
            f"{other.name_or_path} has {theirs[0]} ({', '.join(theirs[1])})"
        )
