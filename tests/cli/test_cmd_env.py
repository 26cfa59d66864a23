from __future__ import annotations

import builtins
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import segtune
from segtune.cli import cmd_env
from segtune.engines import cpu_threads


def test_names_versions_and_processors(segtune_command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code, out, err = segtune_command("env")
    assert (code, err) == (0, "")
    rows = dict(line.split("  ", 1) for line in out.splitlines())
    found = {name: value.strip() for name, value in rows.items()}
    assert found["segtune"] == segtune.__version__
    assert found["torch"] == torch.__version__
    assert found["python"].startswith(f"{sys.version_info.major}.{sys.version_info.minor}.")
    assert {"transformers", "datasets", "accelerate", "albumentations", "numpy", "scipy"} <= found.keys()
    assert {"rasterio [geo]", "peft [lora]", "CPU", "GPU", "PyTorch built for"} <= found.keys()
    assert found["HF_HUB_OFFLINE"] == "1"


def test_json_is_one_object(segtune_command: Any) -> None:
    found = json.loads(segtune_command("env", "--json").out)
    assert found == cmd_env.describe_environment()
    assert found["processors"]["torch_threads"] == torch.get_num_threads()
    assert "pytest" not in found["packages"] and not cmd_env.DEVELOPMENT & found["extras"].keys()


def test_says_nothing_about_the_user(segtune_command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = {"HF_TOKEN": "hf_secret", "WANDB_API_KEY": "0123abcd", "HF_HOME": "/somewhere/private", "USER": "ada77"}
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    for option in ([], ["--json"]):
        out = segtune_command("env", *option).out
        named = [*secrets.values(), str(Path.home()), str(Path(__file__).parents[2]), platform.node()]
        assert [word for word in named if word in out] == []


def test_package_that_is_missing(segtune_command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    required = ["absent>=1", "torch>=2", "gone>=1; extra == 'rare'", 'lost; extra == "dev"']
    monkeypatch.setattr(cmd_env.metadata, "requires", lambda name: required)
    lines = segtune_command("env").out.splitlines()
    missing = [line.split("  ")[0] for line in lines if line.endswith("not installed")]
    assert missing == ["absent", "gone [rare]"]
    assert not any(line.startswith("lost") for line in lines)


def test_broken_torch_is_reported_and_the_rest_is_printed(
    segtune_command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def fail(name: str, *arguments: Any, **options: Any) -> Any:
        if name == "torch":
            raise OSError("libcudart.so.12: cannot open shared object file")
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", fail)
    code, out, _ = segtune_command("env")
    assert code == 0
    assert "OSError: libcudart.so.12" in out and "pytorch.org" in out and "transformers" in out


def test_accelerators_are_named(segtune_command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = SimpleNamespace(name="NVIDIA T4", total_memory=15 * 2**30, major=7, minor=5)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: gpu)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    out = segtune_command("env").out
    assert "NVIDIA T4, 15 GiB, 7.5; NVIDIA T4, 15 GiB, 7.5" in out and "CUDA 12.8" in out


def waiting_threads(**variables: str) -> tuple[str, str | None]:
    """What a command says of its threads, and the variable, which is read when PyTorch is loaded."""
    named = ("OMP_WAIT_POLICY", "SEGTUNE_OMP_WAIT_POLICY", "LOCAL_WORLD_SIZE")
    kept = {name: value for name, value in os.environ.items() if name not in named}
    words = [sys.executable, "-m", "segtune", "env", "--json"]
    done = subprocess.run(words, env=kept | variables, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    return found["waiting_threads"], found["variables"].get("OMP_WAIT_POLICY")


def test_threads_that_wait_sleep_where_there_are_more_of_them_than_cores() -> None:
    threads = cpu_threads.cores() + 1
    told, value = waiting_threads(OMP_NUM_THREADS=str(threads))
    assert told == f"asleep: {threads} threads share {threads - 1} cores" and value == "PASSIVE"
    assert waiting_threads(OMP_NUM_THREADS="1") == ("spinning: a single thread waits for no other", None)
    told, value = waiting_threads(OMP_NUM_THREADS="2", LOCAL_WORLD_SIZE=str(threads))
    assert told.startswith(f"asleep: {threads} processes of 2 threads share") and value == "PASSIVE"


def test_what_the_user_says_of_waiting_threads_stays() -> None:
    for given, shown in (("ACTIVE", "spinning"), ("PASSIVE", "asleep")):
        told = f"{shown}: OMP_WAIT_POLICY={given} was set"
        assert waiting_threads(OMP_NUM_THREADS="1", OMP_WAIT_POLICY=given) == (told, given)


def test_the_page_says_how_threads_wait(segtune_command: Any) -> None:
    lines = segtune_command("env").out.splitlines()
    assert sum(line.startswith("waiting threads ") for line in lines) == 1
