"""Distributed training: the Accelerator, sharded tensors (FSDP 2), scalars read without waiting, the environment."""

from __future__ import annotations

import atexit
import os
import platform
import sys
from pathlib import Path
from typing import Any

import accelerate
import psutil
import torch
import transformers
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, GradientAccumulationPlugin
from torch import Tensor, nn
from torch.utils._pytree import tree_map

import segtune
from segtune.errors import UsageError

_UNKNOWN = {DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM}  # FSDP 2 is known


def make_accelerator(device: str = "auto", mixed_precision: str = "no") -> Accelerator:
    """The Accelerator of a run: on the CPU where nothing else is there, never one of several that ignore each other.

    Args:
        device: `cpu`, or `auto` for the accelerator that is there.

    Raises:
        UsageError: several processes were started, but this one believes to be alone, so that all would write into
            one folder; or a way of distributing that the loop does not know.
    """
    # Accelerate takes a GPU where there is one. Its CPU mode must be asked for; without it, processes on CPUs would not
    # form a group and each would train alone.
    on_cpu = device == "cpu" or not (torch.cuda.is_available() or torch.backends.mps.is_available())
    AcceleratorState._reset_state()  # a notebook may start a second run with another precision
    accelerator = Accelerator(
        cpu=on_cpu,
        mixed_precision=mixed_precision,
        # The loop divides by the pixels of the global batch; Accelerate, told of accumulation by a launch file, would
        # divide every loss by the number of steps once more.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
    )
    if accelerator.num_processes > 1:
        atexit.register(_leave)
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started != accelerator.num_processes:
        raise UsageError(
            f"{started} processes were started, but Accelerate sees {accelerator.num_processes}: "
            "launch with `accelerate launch --config_file recipes/accelerate/<yours>.yaml -m segtune train …`"
        )
    if accelerator.distributed_type in _UNKNOWN and not is_sharded(accelerator):
        raise UsageError(
            f"{accelerator.distributed_type.value} is not supported: where the optimiser does not fit a GPU, "
            "recipes/accelerate/fsdp.yaml divides it (FSDP with fsdp_version: 2)"
        )
    return accelerator


def _leave() -> None:
    """Threads of a process group that is still there when the interpreter ends may abort it."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


# --- sharded and replicated state ------------------------------------------------------------------------------------


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether every process holds only its part of the parameters."""
    return getattr(accelerator, "is_fsdp2", False)


def gather_full(tree: Any) -> Any:
    """The same nested lists and dictionaries, with every sharded tensor gathered; all processes must call this."""
    return tree_map(lambda value: value.full_tensor() if _is_sharded(value) else value, tree)


def shard_like(value: Tensor, like: Tensor) -> Tensor:
    """The shard that this process holds of a full tensor, divided as `like` is; the tensor itself where `like` is full.

    All processes must call this.
    """
    if not _is_sharded(like) or _is_sharded(value):
        return value
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)


def local_part(value: Tensor) -> Tensor:
    """The shard that this process holds of a tensor, in the same memory; no communication."""
    return value.to_local() if _is_sharded(value) else value  # type: ignore[attr-defined]


def _is_sharded(value: Any) -> bool:
    return hasattr(value, "full_tensor")  # a DTensor, whose module takes long to import


@torch.no_grad()
def share_buffers(model: nn.Module, accelerator: Accelerator) -> None:
    """Give every process the main one's buffers, so that all evaluate the model that the main one saves."""
    # Parameters are equal in all processes, since their gradients are. The running mean and variance of a local batch
    # norm are not: each process has seen other images.
    if accelerator.num_processes > 1:
        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, 0)


# --- scalars of a step -----------------------------------------------------------------------------------------------


class DeferredScalars:
    """Scalars of a step, copied from the device without making it wait: on a GPU they are read one step later.

    A CPU has them at once.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._pending: tuple[Tensor, Any, Any] | None = None

    def put(self, numbers: Tensor, context: Any = None) -> tuple[list[float], Any] | None:
        """Start to copy `(N,)` numbers; returns those that are there, with the context that came with them."""
        if self.device.type != "cuda":
            return numbers.tolist(), context
        # Kernels are queued, and Python is a step ahead of the device. Reading a number at once (`.item()`) would stop
        # Python until the queue is empty, and the device then until Python has filled it again. Instead the copy is
        # queued too, an event marks its end, and what is waited for is the event of the step before.
        ready = self.take()
        event = torch.cuda.Event()
        copy = numbers.to("cpu", non_blocking=True)
        event.record()
        self._pending = copy, context, event
        return ready

    def take(self) -> tuple[list[float], Any] | None:
        """The numbers put last, where they were not returned yet; waits for them."""
        if self._pending is None:
            return None
        copy, context, event = self._pending
        event.synchronize()
        self._pending = None
        return copy.tolist(), context

    def is_waiting(self) -> bool:
        """Whether the device has not yet computed the numbers put last."""
        return self._pending is not None and not self._pending[2].query()


# --- what a run runs on ----------------------------------------------------------------------------------------------


def versions() -> dict[str, str]:
    """Versions of the packages that decide a model's numbers, by name."""
    return {
        "segtune": segtune.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def environment(accelerator: Accelerator) -> dict[str, Any]:
    """Versions, device, processes and precision of a run, for `metrics.jsonl`."""
    return {
        **versions(),
        "accelerate": accelerate.__version__,
        "device": torch.cuda.get_device_name() if accelerator.device.type == "cuda" else str(accelerator.device),
        "num_processes": accelerator.num_processes,
        "distributed": accelerator.distributed_type.value,
        "mixed_precision": accelerator.mixed_precision,
        "threads": torch.get_num_threads(),
    }


def peak_memory_mb(device: str | torch.device) -> float:
    """Peak memory in megabytes: what the allocator took of a CUDA device, else what the process took."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    status = Path("/proc/self/status")
    if status.exists():  # unlike getrusage, not inherited from the process that started this one
        return int(status.read_text().split("VmHWM:")[1].split()[0]) * 1024 / 1e6
    if sys.platform == "win32":
        return float(psutil.Process().memory_info().peak_wset) / 1e6
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6
