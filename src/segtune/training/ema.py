"""Exponential moving average (EMA) of a model's weights, which evaluation and export may use in their place."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from segtune.errors import DataError
from segtune.training.distributed import local_part, shard_like

_UPDATES = "updates"


# torch.optim.swa_utils.AveragedModel is not used: it copies the module, which FSDP 2 refuses ("FSDP does not support
# deepcopy"), keeps averages of bf16 weights in bf16, copies frozen weights, and averages counters of batches.
class ExponentialMovingAverage:
    """A running mean of the weights over the steps: `average = d · average + (1 - d) · weight`.

    The decay warms up, `d = min(decay, (1 + t) / (10 + t))` after t updates, so that the first weights do not linger.
    Averaged are the parameters that train when it is made and, at the same decay, all floating-point buffers: a batch
    norm's statistics then belong to the averaged weights. Averages of half-precision tensors are kept in fp32.
    The model is always the same one, without the wrapper of a distributed run.

    Args:
        decay: in [0, 1), e.g. 0.999; 0 keeps the last weights.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay={decay} must lie in [0, 1)")
        self.decay = decay
        self.updates = 0
        self.averages = {
            name: value.detach().to(torch.promote_types(value.dtype, torch.float32), copy=True)
            for name, value in _tensors(model).items()
            # fp32, since a step of (1 - d) (w - a) is lost in bf16: with d = 0.999 and w near a it is less than half of
            # the last digit of a.
            if value.requires_grad or (value.is_floating_point() and not isinstance(value, nn.Parameter))
        }

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the weights after an optimiser step."""
        # With a constant decay the initial weights still count d^t after t steps: 37 % of the average after 1000 steps
        # of d = 0.999. The warm-up makes it a mean over about the last tenth of the steps until d is reached.
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        tensors = _tensors(model)
        # Sharded parameters are averaged shard by shard: an average of shards is the shard of the average.
        # lerp(a, w, 1 - d) = a + (1 - d) (w - a) = d a + (1 - d) w, of all tensors in a few kernels.
        averages = [local_part(average) for average in self.averages.values()]
        values = [local_part(tensors[name]).to(average.dtype) for name, average in self.averages.items()]
        torch._foreach_lerp_(averages, values, 1 - decay)
        self.updates += 1

    @contextmanager
    def swapped_in(self, model: nn.Module) -> Iterator[None]:
        """Inside, `model` holds the averages, in its own dtypes; afterwards exactly what it held before."""
        tensors = _tensors(model)
        before = {name: tensors[name].detach().clone() for name in self.averages}
        try:
            _copy(tensors, self.averages)
            yield
        finally:
            _copy(tensors, before)

    def state_dict(self) -> dict[str, Tensor]:
        """The averages by name and the number of `updates`, all tensors, as safetensors stores them."""
        return {_UPDATES: torch.tensor(self.updates), **self.averages}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state_dict` returned.

        Raises:
            DataError: the averages of another model.
        """
        expected = {name: tuple(value.shape) for name, value in self.state_dict().items()}
        given = {name: tuple(value.shape) for name, value in state.items()}
        differing = sorted(name for name in expected.keys() | given.keys() if expected.get(name) != given.get(name))
        if differing:
            name = differing[0]
            raise DataError(
                f"the averaged weights belong to another model: {len(differing)} tensors differ, e.g. {name} "
                f"({given.get(name, 'missing')} stored, {expected.get(name, 'none')} expected)"
            )
        self.updates = int(state[_UPDATES])
        _copy(self.averages, {name: shard_like(state[name], average) for name, average in self.averages.items()})


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return dict(itertools.chain(model.named_parameters(), model.named_buffers()))


@torch.no_grad()
def _copy(targets: Mapping[str, Tensor], sources: Mapping[str, Tensor]) -> None:
    for name, source in sources.items():
        # In place: DDP, FSDP and the optimiser hold references to these very tensors.
        targets[name].copy_(source)
