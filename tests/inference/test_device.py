from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from segtune.errors import UsageError
from segtune.inference.device import (
    _tell_where_bf16_is_slow,
    best_device,
    choose_precision,
    refuse_gpu_without_kernels,
    to_device,
)


def test_the_best_device_is_there() -> None:
    assert torch.zeros(1, device=best_device()).device.type == best_device()
    assert next(to_device(nn.Linear(1, 1), None).parameters()).device.type == best_device()


def test_a_device_that_is_not_there_is_named() -> None:
    assert next(to_device(nn.Linear(1, 1), "cpu").parameters()).device.type == "cpu"
    with pytest.raises(UsageError, match="--device toaster: "):
        to_device(nn.Linear(1, 1), "toaster")


# --- GPUs, faked ------------------------------------------------------------------------------------------------------


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Lets PyTorch say that a GPU of a capability is there, and for which ones it was built."""

    def there_is(capability: tuple[int, int], *built: str) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index=None: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda index=None: "Tesla P100-PCIE-16GB")
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: list(built))

    return there_is


@pytest.mark.parametrize(
    ("capability", "built", "runs"),
    [
        ((6, 0), ("sm_70", "sm_75", "sm_80"), False),  # Kaggle's P100
        ((7, 5), ("sm_70", "sm_75", "sm_80"), True),
        ((8, 9), ("sm_75", "sm_80", "sm_86", "sm_90"), True),  # L4: code of its major version
        ((8, 0), ("sm_86",), False),  # of a later minor version
        ((10, 0), ("sm_90",), False),
        ((10, 0), ("sm_90", "compute_90"), True),  # PTX is compiled for later ones
        ((9, 0), ("sm_90a",), True),
        ((9, 1), ("sm_90a",), False),
        ((12, 0), ("sm_100", "sm_120"), True),
        ((6, 0), (), True),  # nothing is known
    ],
)
def test_a_gpu_that_pytorch_was_not_built_for_is_named(
    gpu: Callable[..., None], capability: tuple[int, int], built: tuple[str, ...], runs: bool
) -> None:
    gpu(capability, *built)
    with nullcontext() if runs else pytest.raises(UsageError) as caught:
        refuse_gpu_without_kernels(0, "training.device=cpu")
    if not runs:
        message = str(caught.value)
        assert "P100-PCIE-16GB has compute capability" in message and ", ".join(built) in message
        assert "GPU T4 x2" in message and message.endswith("or set training.device=cpu")


def test_a_model_is_not_moved_to_such_a_gpu(gpu: Callable[..., None]) -> None:
    gpu((6, 0), "sm_70")
    with pytest.raises(UsageError, match=r"compute capability 6\.0, .* or set --device cpu"):
        to_device(nn.Linear(1, 1), None)


@pytest.mark.parametrize(
    ("capability", "precision"), [((6, 1), "fp32"), ((7, 5), "fp16"), ((8, 0), "bf16"), ((9, 0), "bf16")]
)
def test_half_precision_is_what_the_gpu_was_made_for(
    gpu: Callable[..., None], capability: tuple[int, int], precision: str
) -> None:
    gpu(capability)
    assert choose_precision("auto", torch.device("cuda")) == precision
    assert choose_precision("fp32", torch.device("cuda")) == "fp32"


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_without_a_gpu_of_nvidia_auto_is_float32(device: str) -> None:
    assert choose_precision("auto", torch.device(device)) == "fp32"


def test_what_a_cpu_cannot_compute_in_is_refused() -> None:
    with pytest.raises(UsageError, match="--precision fp16 is for GPUs: on a CPU give fp32"):
        choose_precision("fp16", torch.device("cpu"))
    with pytest.raises(UsageError, match="int8: give one of auto, fp32, bf16, fp16"):
        choose_precision("int8", torch.device("cpu"))  # type: ignore[arg-type]


@pytest.mark.parametrize(("found", "said"), [({"avx512_bf16": False}, 1), ({"avx512_bf16": True}, 0), ({}, 0)])
def test_a_chip_without_bf16_is_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, found: dict[str, bool], said: int
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
    _tell_where_bf16_is_slow.cache_clear()
    for _ in range(2):
        assert choose_precision("bf16", torch.device("cpu")) == "bf16"
    assert caplog.text.count("this CPU has no bf16") == said
    _tell_where_bf16_is_slow.cache_clear()
