"""One process or several: how they are started, agree, and what they run on."""

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
    on_cpu = device == "cpu" or not (torch.cuda.is_available() or torch.backends.mps.is_available())
    AcceleratorState._reset_state()  # a notebook may start a second run with another precision
    accelerator = Accelerator(
        cpu=on_cpu,
        mixed_precision=mixed_precision,
        # the loop divides by the pixels of the whole step; a launch file must not divide once more
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


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether every process holds only its part of the parameters."""
    return getattr(accelerator, "is_fsdp2", False)


@torch.no_grad()
def share_buffers(model: nn.Module, accelerator: Accelerator) -> None:
    """Give every process the main one's buffers: its batch norm has seen other images."""
    if accelerator.num_processes > 1:
        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, 0)


class DeferredScalars:
    """Numbers of a step, read without making the device wait.

    A CPU has them at once. Another device is still busy with a step when Python is done with it, so that it is asked
    for the numbers of the step before, while it computes this one.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._waiting: tuple[Tensor, Any, Any] | None = None

    def put(self, numbers: Tensor, context: Any = None) -> tuple[list[float], Any] | None:
        """Hand in `(N,)` numbers on the device; get those that are there, with what was handed in with them."""
        if self.device.type != "cuda":
            return numbers.tolist(), context
        ready = self.take()
        event = torch.cuda.Event()
        copy = numbers.to("cpu", non_blocking=True)
        event.record()
        self._waiting = copy, context, event
        return ready

    def take(self) -> tuple[list[float], Any] | None:
        """What was handed in last and not yet handed out; waits for it."""
        if self._waiting is None:
            return None
        copy, context, event = self._waiting
        event.synchronize()
        self._waiting = None
        return copy.tolist(), context

    def is_waiting(self) -> bool:
        """Whether the device has not yet come to what was handed in last."""
        return self._waiting is not None and not self._waiting[2].query()


def versions() -> dict[str, str]:
    """Of what decides a model's numbers, by name."""
    return {
        "segtune": segtune.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def environment(accelerator: Accelerator) -> dict[str, Any]:
    """What a run runs on, for `metrics.jsonl`."""
    return {
        **versions(),
        "accelerate": accelerate.__version__,
        "device": torch.cuda.get_device_name() if accelerator.device.type == "cuda" else str(accelerator.device),
        "num_processes": accelerator.num_processes,
        "distributed": accelerator.distributed_type.value,
        "mixed_precision": accelerator.mixed_precision,
        "threads": torch.get_num_threads(),
    }


def gather_full(tree: Any) -> Any:
    """The same nested lists and dictionaries, with every sharded tensor put together."""
    return tree_map(lambda value: value.full_tensor() if _is_sharded(value) else value, tree)


def shard_like(value: Tensor, like: Tensor) -> Tensor:
    """This process's part of a whole tensor, sharded as `like` is; the tensor itself where `like` is whole."""
    if not _is_sharded(like) or _is_sharded(value):
        return value
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)


def local_part(value: Tensor) -> Tensor:
    """What this process holds of a tensor, in the same memory; talks to nobody."""
    return value.to_local() if _is_sharded(value) else value  # type: ignore[attr-defined]


def _is_sharded(value: Any) -> bool:
    return hasattr(value, "full_tensor")  # a DTensor, whose module takes long to import


def peak_memory_mb(device: str | torch.device) -> float:
    """Megabytes: of the allocator on a CUDA device, else of the whole process."""
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
