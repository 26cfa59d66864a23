"""`segtune env`: versions, processors and settings, as a bug report needs them.

Nothing here tells who or where: no user, host or path, and of the environment's variables only those in `VARIABLES`.
"""

from __future__ import annotations

import json
import os
import platform
import re
from importlib import metadata
from typing import Any

import typer

import segtune
from segtune.cli.options import JsonOption
from segtune.engines import cpu_threads

DEVELOPMENT = {"dev", "docs", "test"}  # extras that no user's run depends on
VARIABLES = (  # their values are numbers and switches; never a token, an address or a folder
    "ACCELERATE_MIXED_PRECISION",
    "CUDA_VISIBLE_DEVICES",
    "HF_DATASETS_OFFLINE",
    "HF_HUB_OFFLINE",
    "LOCAL_WORLD_SIZE",
    "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "PYTORCH_ENABLE_MPS_FALLBACK",
    "TRANSFORMERS_OFFLINE",
    "WORLD_SIZE",
)


def env(as_json: JsonOption = False) -> None:
    """Print what a bug report needs: versions, processors, settings. It names no user, path or token."""
    facts = describe_environment()
    typer.echo(json.dumps(facts) if as_json else "\n".join(_lines(facts)))


def describe_environment() -> dict[str, Any]:
    """Versions of segtune, Python and the packages (None: not installed), the processors, some variables; JSON-able."""
    packages, extras = _required()
    return {
        "segtune": segtune.__version__,
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in packages},
        "extras": {extra: {name: _version(name) for name in names} for extra, names in extras.items()},
        "processors": _processors(),
        "waiting_threads": str(cpu_threads.settled[-1]) if cpu_threads.settled else None,
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }


def _required() -> tuple[list[str], dict[str, list[str]]]:
    """The packages that segtune needs, and those of each extra for users, as its metadata states them."""
    packages: list[str] = []
    extras: dict[str, list[str]] = {}
    for line in metadata.requires("segtune") or []:
        (name,) = re.findall(r"^[\w.-]+", line)
        extra = re.search(r"""extra == ["']([\w-]+)""", line)
        if extra is None:
            packages.append(name)
        elif extra[1] not in DEVELOPMENT:
            extras.setdefault(extra[1], []).append(name)
    return packages, extras


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processors() -> dict[str, Any]:
    """Cores, PyTorch's threads and accelerators; where PyTorch is missing or broken, `torch_error` says so."""
    facts: dict[str, Any] = {"cores": os.cpu_count()}
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a library of CUDA or Windows that cannot be loaded
        return facts | {"torch_error": f"{type(error).__name__}: {error}"}
    facts |= {"torch_threads": torch.get_num_threads(), "cuda": torch.version.cuda, "rocm": torch.version.hip}
    gpus = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    facts["gpus"] = [f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB, {gpu.major}.{gpu.minor}" for gpu in gpus]
    return facts | {"mps": torch.backends.mps.is_available()}


def _lines(facts: dict[str, Any]) -> list[str]:
    rows = {name: facts[name] for name in ("segtune", "python", "platform")} | facts["packages"]
    for extra, versions in facts["extras"].items():
        rows |= {f"{name} [{extra}]": version for name, version in versions.items()}
    rows |= _processor_rows(facts["processors"]) | {"waiting threads": facts["waiting_threads"]} | facts["variables"]
    width = max(map(len, rows))
    return [f"{name:<{width}}  {'not installed' if value is None else value}" for name, value in rows.items()]


def _processor_rows(found: dict[str, Any]) -> dict[str, str]:
    if "torch_error" in found:
        hint = "PyTorch does not load; see https://pytorch.org/get-started/locally for a build that fits"
        return {"CPU": f"{found['cores']} cores", "torch": f"{found['torch_error']} ({hint})"}
    builds = [f"{name} {found[key]}" for name, key in (("CUDA", "cuda"), ("ROCm", "rocm")) if found[key]]
    rows = {"CPU": f"{found['cores']} cores, {found['torch_threads']} threads of PyTorch"}
    rows["GPU"] = "; ".join(found["gpus"]) or ("Apple (MPS)" if found["mps"] else "none")
    return rows | {"PyTorch built for": ", ".join(builds) or "the CPU"}
