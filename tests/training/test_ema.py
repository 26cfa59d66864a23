from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from segtune.errors import DataError
from segtune.training.ema import ExponentialMovingAverage


class Small(nn.Module):
    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2, dtype=dtype))
        self.frozen = nn.Parameter(torch.ones(2, dtype=dtype), requires_grad=False)
        self.norm = nn.BatchNorm1d(2)

    @torch.no_grad()
    def set(self, value: float) -> None:
        self.weight.fill_(value)
        self.norm.running_mean.fill_(value)
        self.norm.num_batches_tracked.fill_(int(value))


def test_average_by_hand() -> None:
    model = Small()
    ema = ExponentialMovingAverage(model, decay=0.25)
    expected = 0.0
    for value, decay in ((8.0, 1 / 10), (4.0, 2 / 11), (2.0, 3 / 12), (6.0, 0.25)):
        model.set(value)
        ema.update(model)
        expected = decay * expected + (1 - decay) * value
        assert ema.averages["weight"].tolist() == pytest.approx([expected, expected])
        assert ema.averages["norm.running_mean"].tolist() == pytest.approx([expected, expected])
    assert ema.updates == 4
    assert set(ema.averages) == {"weight", "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var"}


def test_equals_the_plain_recursion_over_many_steps() -> None:
    model = Small()
    ema = ExponentialMovingAverage(model, decay=0.9)
    values = torch.randn(200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = 0.0
    for step, value in enumerate(values.tolist()):
        model.set(value)
        ema.update(model)
        decay = min(0.9, (1 + step) / (10 + step))
        expected += (1 - decay) * (value - expected)
    assert ema.averages["weight"].tolist() == pytest.approx([expected] * 2, abs=1e-6)


def test_decay_zero_keeps_the_last_weights() -> None:
    model = Small()
    ema = ExponentialMovingAverage(model, decay=0.0)
    model.set(0.3)
    ema.update(model)
    assert torch.equal(ema.averages["weight"], model.weight.detach())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_swapped_in_and_out_again(dtype: torch.dtype) -> None:
    model = Small(dtype)
    ema = ExponentialMovingAverage(model, decay=0.999)
    model.set(3.0)
    ema.update(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    storage = model.weight.data_ptr()
    with ema.swapped_in(model):
        assert model.weight.dtype == dtype
        assert torch.equal(model.weight, ema.averages["weight"].to(dtype))
        assert model.weight.tolist() == pytest.approx([2.7, 2.7], rel=1e-2)
        assert model.norm.running_mean.tolist() == pytest.approx([2.7, 2.7])
        assert model.norm.num_batches_tracked == 3 and model.frozen.tolist() == [1.0, 1.0]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.weight.data_ptr() == storage and model.weight.requires_grad


def test_weights_come_back_after_an_error() -> None:
    model = Small()
    ema = ExponentialMovingAverage(model, decay=0.5)
    model.set(5.0)
    with pytest.raises(RuntimeError, match="stop"), ema.swapped_in(model):
        assert model.weight.tolist() == [0.0, 0.0]
        raise RuntimeError("stop")
    assert model.weight.tolist() == [5.0, 5.0]


def test_half_precision_weights_are_averaged_in_full() -> None:
    model = Small(torch.bfloat16)
    model.set(1.0)
    ema = ExponentialMovingAverage(model, decay=0.999)
    ema.updates = 100_000  # past the warm-up
    model.set(2.0)
    for _ in range(10):
        ema.update(model)
    assert ema.averages["weight"].dtype == torch.float32
    assert ema.averages["weight"].tolist() == pytest.approx([2 - 0.999**10] * 2)  # bf16 would not leave 1


def test_goes_on_from_a_file_as_if_never_stopped(tmp_path: Path) -> None:
    model = Small()
    straight = ExponentialMovingAverage(model, decay=0.9)
    for value in (1.0, 2.0):
        model.set(value)
        straight.update(model)
    save_file(straight.state_dict(), tmp_path / "ema.safetensors")
    resumed = ExponentialMovingAverage(Small(), decay=0.9)
    resumed.load_state_dict(load_file(tmp_path / "ema.safetensors"))
    model.set(3.0)
    straight.update(model)
    resumed.update(model)
    assert resumed.updates == 3
    assert straight.averages.keys() == resumed.averages.keys()
    assert all(torch.equal(value, resumed.averages[name]) for name, value in straight.averages.items())


def test_averages_of_another_model_are_refused() -> None:
    ema = ExponentialMovingAverage(Small(), decay=0.9)
    state = ema.state_dict()
    del state["weight"]
    with pytest.raises(DataError, match=r"1 tensors differ, e.g. weight \(missing stored, \(2,\) expected\)"):
        ema.load_state_dict(state)
    with pytest.raises(DataError, match=r"weight \(\(3,\) stored"):
        ema.load_state_dict({**state, "weight": torch.zeros(3)})


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_decay_has_a_range(decay: float) -> None:
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\)"):
        ExponentialMovingAverage(Small(), decay)
