"""Distributed training: the Accelerator and its device, shards (FSDP 2), what goes to the device and comes back."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import accelerate
import psutil
import torch
import transformers
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType, GradientAccumulationPlugin, send_to_device
from torch import Tensor, nn
from torch.utils._pytree import tree_map

import segtune
from segtune.engines.cpu_threads import cores
from segtune.errors import UsageError
from segtune.inference.device import Precision, best_device, choose_precision, refuse_gpu_without_kernels

_UNKNOWN = {DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM}  # FSDP 2 is known
_CGROUPS = (  # of version 2, then 1: where, the limit, what is used, and what of that is cache
    (Path("/sys/fs/cgroup"), "memory.max", "memory.current", "inactive_file"),
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
_COMPILERS = ("g++", "clang++", "c++", "cl")


def make_accelerator(device: str = "auto", mixed_precision: str = "no") -> Accelerator:
    """The Accelerator of a run: on the device that is asked for, never one of several that ignore each other.

    Args:
        device: see `check_device`.

    Raises:
        UsageError: the device cannot be used (see `check_device`); several processes were started, but this one
            believes to be alone, so that all would write into one folder; or a way of distributing that the loop does
            not know.
    """
    # Accelerate takes a GPU where there is one. Its CPU mode must be asked for; without it, processes on CPUs would not
    # form a group and each would train alone.
    kind = check_device(device, mixed_precision)
    # A notebook may start a second run with another precision, or on another device.
    AcceleratorState._reset_state()
    before = PartialState._shared_state.get("device")
    if before is not None and before.type != kind and not torch.distributed.is_initialized():
        PartialState._reset_state()
    accelerator = Accelerator(
        cpu=kind == "cpu",
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


def check_device(device: str = "auto", mixed_precision: str = "no") -> str:
    """The kind of device that `training.device` means on this machine: "cpu", "cuda" or "mps".

    Args:
        device: one of these, or `auto` for the accelerator that is there.
        mixed_precision: of the training, which the device must be able to compute in.

    Raises:
        UsageError: there is no such device, PyTorch has no kernels for it, or it does not train in that precision.
    """
    kind = best_device() if device == "auto" else device
    found = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not found[kind]:
        build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
        raise UsageError(
            f"training.device={kind}: PyTorch {torch.__version__}, built for {build}, finds no such device here; "
            f"auto takes what is there ({best_device()})"
        )
    if kind == "cuda":
        refuse_gpu_without_kernels(int(os.environ.get("LOCAL_RANK", "0")), "training.device=cpu")
    if mixed_precision != "no":
        choose_precision(cast(Precision, mixed_precision), torch.device(kind), "training.mixed_precision")
    return kind


@contextmanager
def numerics(device: torch.device, matmul_precision: str = "auto", deterministic: bool = False) -> Iterator[None]:
    """How PyTorch computes in the block: the precision of float32 products, and the same bits in every run.

    Args:
        matmul_precision: `highest`, `high`, `medium`, or `auto` for TF32 on CUDA and float32 elsewhere.
        deterministic: operations without a deterministic way raise; matters on CUDA, on CPUs all are so.
    """
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    chosen = ("high" if device.type == "cuda" else "highest") if matmul_precision == "auto" else matmul_precision
    torch.set_float32_matmul_precision(chosen)
    torch.backends.cudnn.allow_tf32 = chosen != "highest"  # of convolutions
    try:
        with _deterministic() if deterministic else nullcontext():
            yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


@contextmanager
def _deterministic() -> Iterator[None]:
    # cuBLAS sums in the same order where it has a workspace of a fixed size, which it reads at its first product. Of
    # the kinds of attention, those of flash and cuDNN add up gradients by atomics; the one that saves memory has a
    # deterministic way, which the flag below chooses.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    kinds = torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.cudnn_sdp_enabled()
    memory: Any = torch.utils.deterministic
    filled = memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.backends.cuda.enable_flash_sdp(False)
    torch.backends.cuda.enable_cudnn_sdp(False)
    memory.fill_uninitialized_memory = False  # every such tensor is written before it is read
    try:
        yield
    finally:
        memory.fill_uninitialized_memory = filled
        torch.backends.cuda.enable_cudnn_sdp(kinds[1])
        torch.backends.cuda.enable_flash_sdp(kinds[0])
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def compiled(model: nn.Module, accelerator: Accelerator) -> Any:
    """The prepared model, compiled at its first call for the one size of the crops; the model itself stays as it is.

    Raises:
        UsageError: there is nothing to compile with, or the model is sharded.
    """
    if is_sharded(accelerator):
        raise UsageError("training.compile=true does not go with FSDP: set training.compile=false")
    # PyTorch writes C++ for CPUs; for CUDA, Triton's kernels are called from code that a C compiler makes.
    named = [os.environ[name] for name in ("CXX", "CC") if os.environ.get(name)]
    missing = [] if any(map(shutil.which, [*named, *_COMPILERS])) else [f"a C++ compiler ({', '.join(_COMPILERS)})"]
    if accelerator.device.type == "cuda" and find_spec("triton") is None:
        missing.append("the package triton")
    if missing:
        raise UsageError(f"training.compile=true needs {' and '.join(missing)}: install that, or leave it out")
    return torch.compile(model, dynamic=False)


def loading_processes(device: torch.device) -> int:
    """How many processes load data for this one where the recipe does not say: the rule of `training.num_workers`."""
    # On a CPU the step itself takes every core, and evaluations do. Processes that are not forked import the script
    # that started the training once more: only who asks for them knows that it bears that.
    method = multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0]
    if device.type != "cuda" or method != "fork":
        return 0
    beside = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # training processes on this machine
    return max(1, min(8, cores() // beside - 1))


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


# --- beside the step: what goes to the device, and what comes back ---------------------------------------------------


class Upload:
    """Moves micro-batches to the device; on CUDA beside what it computes, since the copies have a stream of their own.

    Labels, where there are some, travel as the bytes they are stored in, and are int64 on the device.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, micro_batches: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The same, with tensors on the device: "pixel_values" (B, C, h, w) float32, "labels" (B, h, w) int64."""
        if self.stream is None:
            return self._moved(micro_batches)
        with torch.cuda.stream(self.stream):
            moved = self._moved(micro_batches)
        # The kernels that are queued from now on wait for the copies; those of the step before, which are queued
        # already, do not. The memory belongs to the stream of the copies: it may be given away only when this one is
        # done with it, too.
        computing = torch.cuda.current_stream(self.device)
        computing.wait_stream(self.stream)
        for batch in moved:
            distances = batch.get("distances")
            tensors = [batch[name] for name in ("pixel_values", "labels", "mask", "real") if name in batch]
            tensors += [distances.of, distances.maps] if distances else []
            tensors += [value for value in batch.get("unlabelled", {}).values() if isinstance(value, torch.Tensor)]
            for tensor in tensors:
                tensor.record_stream(computing)
        return moved

    def _moved(self, micro_batches: list[dict[str, Any]]) -> list[dict[str, Any]]:
        moved = send_to_device(micro_batches, self.device, non_blocking=True)
        return [batch | ({"labels": batch["labels"].long()} if "labels" in batch else {}) for batch in moved]


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


class Agreement:
    """Whether any process has a reason to stop, so that all of them stop at the same step."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self._flags = DeferredScalars(accelerator.device)

    def __call__(self, reason: str | None) -> str | None:
        """The reason of this process, or that another one has one; all processes call this after each step."""
        if self.accelerator.num_processes == 1:
            return reason
        # A process that stopped alone would leave the others waiting in the next all-reduce for ever. On a GPU the sum
        # is read one step late: late by the same step in all of them.
        flag = torch.full((1,), float(reason is not None), device=self.accelerator.device)
        asked = self._flags.put(self.accelerator.reduce(flag, "sum"))
        return (reason or "another process was asked to") if asked and asked[0][0] else None


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
        "matmul_precision": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "threads": torch.get_num_threads(),
    }


def free_memory() -> int:
    """Bytes that this process may still take: of the machine or, where that has fewer, of its container (cgroup)."""
    free = int(psutil.virtual_memory().available)
    for folder, limit, used, cache in _CGROUPS:
        try:
            most = int((folder / limit).read_text())  # "max" where there is none
            statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            # Pages of files that were read lately count as used, and are given up before anything is refused.
            taken = int((folder / used).read_text()) - int(statistics.get(cache, 0))
        except (OSError, ValueError):
            continue
        free = min(free, max(most - taken, 0))
    return free


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
