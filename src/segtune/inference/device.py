"""Devices: which are there, whether PyTorch has kernels for them, and the precision that a network runs in on one."""

from __future__ import annotations

import logging
import re
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Literal, TypeVar, get_args

import torch
from torch import nn

from segtune.errors import UsageError

logger = logging.getLogger(__name__)

Network = TypeVar("Network", bound=nn.Module)
Precision = Literal["auto", "fp32", "bf16", "fp16"]

_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def best_device() -> str:
    """The accelerator that is there ("cuda" or "mps"), or "cpu"."""
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


def to_device(model: Network, device: str | torch.device | None, option: str = "--device") -> Network:
    """The model on a device that a user has named, by default on the best.

    Args:
        option: by which it was named, for the message.

    Raises:
        UsageError: there is none such, or PyTorch has no kernels for it.
    """
    name = device or best_device()
    try:
        place = torch.device(name)
        if place.type == "cuda" and torch.cuda.is_available():
            refuse_gpu_without_kernels(place.index, f"{option} cpu")
        return model.to(place)
    except (RuntimeError, AssertionError) as error:  # of a torch without that kind of device
        raise UsageError(f"{option} {name}: {str(error).splitlines()[0]}") from error


def refuse_gpu_without_kernels(index: int | None, without: str) -> None:
    """Refuse a GPU of an architecture for which the installed PyTorch was not built, before its first kernel fails.

    Args:
        index: of the GPU; None for the current one.
        without: what to set to do without it, for the message.

    Raises:
        UsageError: names the GPU, what PyTorch was built for, and the ways out.
    """
    built, (major, minor) = torch.cuda.get_arch_list(), torch.cuda.get_device_capability(index)
    if torch.version.hip is not None or not built or _runs_on(built, major, minor):
        return
    name = torch.cuda.get_device_name(index)
    raise UsageError(
        f"{name} has compute capability {major}.{minor}, for which PyTorch {torch.__version__} has no kernels (it was "
        f"built for {', '.join(built)}): choose another GPU (on Kaggle: Settings, Accelerator, GPU T4 x2), install a "
        f"PyTorch that was built for this one (https://pytorch.org/get-started/previous-versions), or set {without}"
    )


def _runs_on(built: list[str], major: int, minor: int) -> bool:
    """Whether code for any of the architectures, such as "sm_80" or "compute_90", runs on a GPU of this capability."""
    # Machine code (sm) runs within its major version, from its minor version on; PTX (compute) is compiled for every
    # later GPU. A letter behind the number ties it to that one capability ("a") or its family ("f").
    for name in built:
        if (match := re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", name)) is None:
            continue
        own = int(match[2]), int(match[3])
        if match[4]:
            fits = own == (major, minor)
        else:
            fits = own <= (major, minor) and (match[1] == "compute" or own[0] == major)
        if fits:
            return True
    return False


# --- precision -------------------------------------------------------------------------------------------------------


def choose_precision(precision: Precision, device: torch.device, option: str = "--precision") -> Precision:
    """What a network of float32 weights runs in on a device: "fp32", "bf16" or "fp16".

    Args:
        precision: `auto` is half precision on GPUs that have units for it (bfloat16 from Ampere on, float16 on Volta
            and Turing), and float32 elsewhere.
        option: by which it was asked for, for messages.

    Raises:
        UsageError: there is no such precision, or it is float16 on a CPU.
    """
    if precision not in get_args(Precision):
        raise UsageError(f"{option} {precision}: give one of {', '.join(get_args(Precision))}")
    if precision == "auto":
        if device.type != "cuda":
            return "fp32"
        capability = torch.cuda.get_device_capability(device)
        return "bf16" if capability >= (8, 0) else "fp16" if capability >= (7, 0) else "fp32"
    if precision == "fp16" and device.type == "cpu":
        raise UsageError(f"{option} fp16 is for GPUs: on a CPU give fp32, or bf16 where the chip computes in it")
    if precision == "bf16":
        _tell_where_bf16_is_slow(device)
    return precision


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """The context in which a network of float32 weights runs in a precision (not "auto")."""
    return torch.autocast(device.type, _TYPES[precision]) if precision in _TYPES else nullcontext()


@cache
def _tell_where_bf16_is_slow(device: torch.device) -> None:
    """Say once that a chip does not compute in bfloat16, which then takes longer than float32."""
    if device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device) < (8, 0):
        logger.warning("%s has no bf16: it is emulated, and slow; fp16 is fast", torch.cuda.get_device_name(device))
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()  # PyTorch from 2.10 on tells
    known = [name for name in ("avx512_bf16", "amx_bf16", "arm_bf16", "bf16") if name in capabilities]
    if device.type == "cpu" and known and not any(capabilities[name] for name in known):
        logger.warning("this CPU has no bf16: it is emulated, and slower than fp32")
