"""The most memory that this process has held so far."""

from __future__ import annotations

import sys
from pathlib import Path

import torch


def peak_memory_mb(device: str | torch.device) -> float:
    """Megabytes: of the allocator on a CUDA device, else of the whole process."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    status = Path("/proc/self/status")
    if status.exists():  # unlike getrusage, not inherited from the process that started this one
        return int(status.read_text().split("VmHWM:")[1].split()[0]) * 1024 / 1e6
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6
