from __future__ import annotations

import copy
import json
import math
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType

from segtune.data.config import TransformConfig
from segtune.data.dataset import DatasetConfig, find_label_map, load_segmentation_dataset
from segtune.errors import UsageError
from segtune.inference.evaluate import evaluate_model
from segtune.inference.processor import processor_from_transforms
from segtune.segformer.loading import load_model
from segtune.training.distributed import (
    DeferredScalars,
    Upload,
    check_device,
    compiled,
    environment,
    free_memory,
    gather_full,
    loading_processes,
    local_part,
    make_accelerator,
    numerics,
    shard_like,
)

Launch = Callable[..., list[str]]
LAUNCH_FILES = sorted((Path(__file__).resolve().parents[2] / "recipes" / "accelerate").glob("*.yaml"))


def test_processes_that_believe_to_be_alone_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    make_accelerator()
    monkeypatch.setenv("WORLD_SIZE", "2")  # another process was started, but no rendezvous took place
    with pytest.raises(UsageError, match="2 processes were started, but Accelerate sees 1"):
        make_accelerator()


def test_a_launch_file_does_not_divide_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """Accelerate's own accumulation steps, which `accelerate launch` passes on, would scale every gradient."""
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    weight = torch.ones((), requires_grad=True)
    make_accelerator().backward(3 * weight)
    assert weight.grad == 3


@pytest.mark.parametrize(("kind", "version"), [("DEEPSPEED", None), ("FSDP", 1)])
def test_ways_of_distributing_that_the_loop_does_not_know_are_refused(
    monkeypatch: pytest.MonkeyPatch, kind: str, version: int | None
) -> None:
    class Distributed(Accelerator):
        distributed_type = DistributedType(kind)
        is_fsdp2 = version == 2

    monkeypatch.setattr("segtune.training.distributed.Accelerator", Distributed)
    with pytest.raises(UsageError, match=rf"{kind} is not supported: .*fsdp.yaml divides it"):
        make_accelerator()


def test_environment() -> None:
    accelerator = make_accelerator("cpu", "bf16")
    found = environment(accelerator)
    assert (found["num_processes"], found["distributed"], found["mixed_precision"]) == (1, "NO", "bf16")
    assert {"segtune", "python", "torch", "transformers", "accelerate", "device", "threads"} < set(found)
    assert (found["matmul_precision"], found["deterministic"]) == ("highest", False)
    json.dumps(found)


# --- the device and how it computes ----------------------------------------------------------------------------------


def test_a_device_that_is_not_there_is_refused() -> None:
    assert check_device("cpu") == "cpu"
    for name in {"cuda", "mps"} - {check_device("auto")}:
        with pytest.raises(UsageError, match=f"training.device={name}: .* finds no such device here; auto takes"):
            make_accelerator(name)


def test_what_the_device_does_not_train_in_is_refused() -> None:
    """Accelerate would train in float32, and say float16."""
    with pytest.raises(UsageError, match=r"training\.mixed_precision fp16 is for GPUs"):
        make_accelerator("cpu", "fp16")


def test_a_gpu_without_kernels_is_refused_before_anything_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: [(7, 5), (6, 0)][index])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Tesla P100")
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75"])
    assert check_device() == "cuda"
    monkeypatch.setenv("LOCAL_RANK", "1")  # the process that takes the second one
    with pytest.raises(UsageError, match=r"Tesla P100 has compute capability 6\.0.* or set training.device=cpu"):
        make_accelerator()


def test_a_second_run_may_take_another_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a notebook: Accelerate keeps the device of the first."""
    make_accelerator()
    monkeypatch.setitem(PartialState._shared_state, "device", torch.device("meta"))
    assert make_accelerator("cpu").device.type == "cpu"


@pytest.mark.parametrize(
    ("device", "asked", "chosen"),
    [
        ("cuda", "auto", "high"),
        ("cpu", "auto", "highest"),
        ("cuda", "highest", "highest"),
        ("cuda", "medium", "medium"),
    ],
)
def test_precision_of_products_holds_for_the_block(device: str, asked: str, chosen: str) -> None:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    with numerics(torch.device(device), asked):
        assert torch.get_float32_matmul_precision() == chosen
        assert torch.backends.cudnn.allow_tf32 == (chosen != "highest")
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before


def test_deterministic_holds_for_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    cuda = torch.backends.cuda
    kinds = cuda.flash_sdp_enabled, cuda.cudnn_sdp_enabled, cuda.mem_efficient_sdp_enabled, cuda.math_sdp_enabled
    before = [enabled() for enabled in kinds]
    with numerics(torch.device("cpu"), deterministic=True):
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
        assert [enabled() for enabled in kinds] == [False, False, *before[2:]]
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert not torch.are_deterministic_algorithms_enabled()
    assert [enabled() for enabled in kinds] == before
    assert torch.utils.deterministic.fill_uninitialized_memory


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_without_a_compiler_compiling_is_refused(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    model, accelerator = torch.nn.Linear(1, 1), SimpleNamespace(device=torch.device(kind))
    monkeypatch.setattr("segtune.training.distributed.find_spec", lambda name: None)
    monkeypatch.setattr("segtune.training.distributed.shutil.which", lambda name: None)
    with pytest.raises(UsageError, match=r"training.compile=true needs a C\+\+ compiler \(g\+\+, ") as caught:
        compiled(model, accelerator)
    assert ("and the package triton" in str(caught.value)) == (kind == "cuda")
    monkeypatch.setattr(torch, "compile", lambda model, dynamic: (model, dynamic))
    monkeypatch.setattr("segtune.training.distributed.find_spec", lambda name: "there")
    monkeypatch.setattr("segtune.training.distributed.shutil.which", lambda name: "there")
    assert compiled(model, accelerator) == (model, False)
    accelerator.is_fsdp2 = True
    with pytest.raises(UsageError, match="does not go with FSDP"):
        compiled(model, accelerator)


@pytest.mark.parametrize(
    ("device", "method", "cores", "beside", "expected"),
    [
        ("cuda", "fork", 2, 1, 1),  # Colab
        ("cuda", "fork", 4, 2, 1),  # two T4s on Kaggle
        ("cuda", "fork", 16, 1, 8),
        ("cuda", "fork", 1, 1, 1),
        ("cuda", "spawn", 16, 1, 0),
        ("cpu", "fork", 16, 1, 0),
        ("mps", "spawn", 16, 1, 0),
    ],
)
def test_rule_of_loading_processes(
    monkeypatch: pytest.MonkeyPatch, device: str, method: str, cores: int, beside: int, expected: int
) -> None:
    monkeypatch.setattr("multiprocessing.get_start_method", lambda allow_none: None)
    monkeypatch.setattr("multiprocessing.get_all_start_methods", lambda: [method, "other"])
    monkeypatch.setattr("segtune.training.distributed.cores", lambda: cores)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(beside))
    assert loading_processes(torch.device(device)) == expected


def test_free_memory_is_that_of_the_container_where_it_has_less(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=1000))
    monkeypatch.setattr("segtune.training.distributed._CGROUPS", ((tmp_path, "memory.max", "memory.current", "cache"),))
    assert free_memory() == 1000
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 300\ncache 400\n")
    assert free_memory() == 1000
    (tmp_path / "memory.max").write_text("900\n")
    assert free_memory() == 900 - (700 - 400)  # what is only cached is given up


# --- beside the step -------------------------------------------------------------------------------------------------


def micro_batch(dtype: torch.dtype) -> dict[str, Any]:
    return {"pixel_values": torch.ones(1, 3, 2, 2), "labels": torch.tensor([[[0, 255]]], dtype=dtype), "ids": ["a"]}


def test_labels_travel_as_bytes_and_arrive_as_ids() -> None:
    (moved,) = Upload(torch.device("cpu"))([micro_batch(torch.uint8)])
    assert moved["labels"].dtype == torch.int64 and moved["labels"].tolist() == [[[0, 255]]]
    assert moved["ids"] == ["a"] and moved["pixel_values"].dtype == torch.float32


def test_a_gpu_copies_beside_what_it_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a stream of its own, for which the one that computes waits, and which keeps the memory until that is done."""
    events: list[Any] = []

    class Stream:
        def __init__(self, device: torch.device) -> None:
            self.name = "copies"

        def wait_stream(self, other: Any) -> None:
            events.append((self.name, "waits for", other.name))

    class Moved:
        def __init__(self, name: str) -> None:
            self.name = name

        def long(self) -> Moved:
            events.append((self.name, "widened"))
            return self

        def record_stream(self, stream: Any) -> None:
            events.append((self.name, "kept for", stream.name))

    @contextmanager
    def within(stream: Any) -> Iterator[None]:
        events.append((stream.name, "begins"))
        yield
        events.append((stream.name, "ends"))

    def send(batches: list[dict[str, Any]], device: torch.device, non_blocking: bool) -> list[dict[str, Any]]:
        events.append(("send", str(device), non_blocking))
        return [{name: Moved(name) for name in batch} for batch in batches]

    computing = Stream(torch.device("cuda"))
    computing.name = "computing"
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", within)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: computing)
    monkeypatch.setattr("segtune.training.distributed.send_to_device", send)
    Upload(torch.device("cuda"))([micro_batch(torch.uint8)])
    assert events == [
        ("copies", "begins"),
        ("send", "cuda", True),
        ("labels", "widened"),
        ("copies", "ends"),
        ("computing", "waits for", "copies"),
        ("pixel_values", "kept for", "computing"),
        ("labels", "kept for", "computing"),
    ]


def test_a_cpu_hands_numbers_out_at_once() -> None:
    scalars = DeferredScalars(torch.device("cpu"))
    assert scalars.put(torch.tensor([1.0, 2.0]), "first") == ([1.0, 2.0], "first")
    assert scalars.take() is None and not scalars.is_waiting()


def test_another_device_is_asked_one_step_later(monkeypatch: pytest.MonkeyPatch) -> None:
    class Event:
        done = False

        def record(self) -> None: ...

        def query(self) -> bool:
            return self.done

        def synchronize(self) -> None:
            self.done = True

    monkeypatch.setattr(torch.cuda, "Event", Event)
    scalars = DeferredScalars(torch.device("cuda"))
    assert scalars.put(torch.tensor([1.0]), "first") is None
    assert scalars.is_waiting()
    assert scalars.put(torch.tensor([2.0]), "second") == ([1.0], "first")
    assert scalars.take() == ([2.0], "second")
    assert scalars.take() is None and not scalars.is_waiting()


# --- launch files ----------------------------------------------------------------------------------------------------


def test_launch_files_are_all_there() -> None:
    assert [path.stem for path in LAUNCH_FILES] == ["cpu", "fsdp", "multi_gpu", "multi_node", "one_gpu"]


@pytest.mark.parametrize("path", LAUNCH_FILES, ids=lambda path: path.stem)
def test_accelerate_reads_the_launch_file(path: Path) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    text = path.read_text()
    assert f"accelerate launch --config_file recipes/accelerate/{path.name}" in text.split("compute_environment")[0]
    assert re.search(r"\b(Run|Not run)\b", text), "what was run, and what was not"
    config = load_config_from_file(str(path))  # refuses names that it does not know
    assert config.num_processes == yaml.safe_load(text)["num_processes"]


# --- real processes --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fsdp() -> dict[str, str]:
    """What `accelerate launch` puts into the environment for our launch file."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    file = str(LAUNCH_FILES[0].with_name("fsdp.yaml"))
    arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args(["--config_file", file, "x.py"]))
    variables = {name: value for name, value in prepare_multi_gpu_env(arguments).items() if name.startswith("FSDP_")}
    assert variables["FSDP_VERSION"] == "2" and variables["FSDP_TRANSFORMER_CLS_TO_WRAP"] == "SegformerBlock"
    return variables


Way = tuple[str, int, int, str, str]
Steps = dict[Way, dict[str, Any]]
LOSSES = {"": {}, "sum": {"cross_entropy": 1, "dice": 0.5, "lovasz": 0.5, "class_weights": [0.5, 1, 2, 4]}}


@pytest.fixture(scope="module")
def steps(launch: Launch, fsdp: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Steps:
    """Three steps of eight images: by how processes work together, batch size, accumulation, batch norm, loss."""
    folder, found = tmp_path_factory.mktemp("steps"), {}
    frozen = {size: [(*size, "frozen", loss) for loss in LOSSES] for size in ((8, 1), (4, 2), (1, 8), (4, 1), (1, 4))}
    for mode, processes, ways in (
        ("alone", 1, [*frozen[8, 1], *frozen[4, 2], *frozen[1, 8], (8, 1, "local", "")]),
        ("ddp", 2, [*frozen[4, 1], *frozen[1, 4], (4, 1, "sync", ""), (4, 1, "local", "")]),
        ("sharded", 2, [(4, 1, "frozen", ""), (1, 4, "frozen", ""), (4, 1, "sync", "")]),
    ):
        names = ("batch_size", "accumulation_steps", "batch_norm", "loss")
        settings = json.dumps([dict(zip(names, (*way[:3], LOSSES[way[3]]), strict=True)) for way in ways])
        file = str(folder / f"{mode}.pt")
        said = launch(processes, "steps.py", file, settings, *["sharded"] * (mode == "sharded"), **fsdp)
        assert not any("Warning" in each for each in said), said  # such as strides of gradients that cost a copy
        found |= {(mode, *way): result for way, result in zip(ways, torch.load(file), strict=True)}
    return found


def assert_same(one: dict[str, Any], other: dict[str, Any], leave_out: str = "nothing") -> None:
    """The gradient that the optimiser first gets, the losses, and the parameters after three steps."""
    assert one["losses"] == pytest.approx(other["losses"], rel=1e-5) and len(set(one["losses"])) == 3
    for part in ("gradient", "state"):
        values = {name: value for name, value in one[part].items() if value.is_floating_point()}
        largest = max(value.abs().max() for value in values.values())
        assert largest > 0 and len(values) > 100
        for name, value in values.items():
            if not name.endswith(leave_out):
                scale = max(value.abs().max(), 1e-3 * largest)
                assert (value - other[part][name]).abs().max() <= 1e-5 * scale, (part, name)


@pytest.mark.slow
@pytest.mark.parametrize("loss", list(LOSSES))
@pytest.mark.parametrize(
    ("mode", "size", "accumulation"), [("alone", 4, 2), ("alone", 1, 8), ("ddp", 4, 1), ("ddp", 1, 4)]
)
def test_a_batch_of_eight_is_the_same_however_it_is_divided(
    steps: Steps, mode: str, size: int, accumulation: int, loss: str
) -> None:
    """Unequal numbers of ignored pixels; the first image, and so a micro-batch of one, is wholly ignored."""
    assert_same(steps["alone", 8, 1, "frozen", loss], steps[mode, size, accumulation, "frozen", loss])


@pytest.mark.slow
@pytest.mark.parametrize(("size", "accumulation"), [(4, 1), (1, 4)])
def test_sharded_steps_equal_those_of_one_process(steps: Steps, size: int, accumulation: int) -> None:
    assert_same(steps["alone", 8, 1, "frozen", ""], steps["sharded", size, accumulation, "frozen", ""])


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["ddp", "sharded"])
def test_synchronised_batch_norm_sees_the_images_of_all_processes(steps: Steps, mode: str) -> None:
    whole = steps["alone", 8, 1, "local", ""]
    # the gradient of a shift before a batch norm is nothing but rounding
    assert_same(whole, steps[mode, 4, 1, "sync", ""], leave_out="proj.bias")
    assert steps["ddp", 4, 1, "local", ""]["losses"][0] != pytest.approx(whole["losses"][0], rel=1e-4)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As in the processes that are launched, so that rounding is the same."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def evals(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "mean_iou" in line]


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "batch_norm"), [([], "local"), (["sharded"], "sync")])
def test_a_run_of_two_processes(
    launch: Launch, fsdp: dict[str, str], one_thread: None, tmp_path: Path, mode: list[str], batch_norm: str
) -> None:
    """Every one of seven images is evaluated once, by the model that is saved; resumed, it is the same run."""
    settings = {"max_steps": 4, "batch_size": 2, "eval_every": 2, "save_every": 1, "keep_last": 4, "ema_decay": 0.5}
    settings |= {"batch_norm": batch_norm, "learning_rate": 1e-3}
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    runs = {
        str(whole): settings,
        str(resumed): settings | {"resume": str(whole / "checkpoints" / "step-000002")},
    }
    launch(2, "run.py", json.dumps(runs), *mode, **fsdp)
    first = json.loads((whole / "metrics.jsonl").read_text().splitlines()[0])
    assert first["environment"]["num_processes"] == 2
    label_map = find_label_map(DatasetConfig(path="segtune://earth"))
    scores = evaluate_model(
        copy.deepcopy(load_model(whole / "best")),  # in aligned memory, as in training
        load_segmentation_dataset("segtune://earth")["val"].select(range(7)),
        label_map,
        processor_from_transforms(TransformConfig(crop_size=64)),
    ).scores()
    best = max(evals(whole), key=lambda line: line["mean_iou"])
    assert scores == {key: best[key] for key in scores}
    assert len(list((whole / "overlays").glob("step-000004/*.jpg"))) == 4  # drawn by both
    assert (whole / "final" / "model.safetensors").read_bytes() == (
        resumed / "final" / "model.safetensors"
    ).read_bytes()
    assert evals(whole)[1:] == evals(resumed)


@pytest.mark.slow
def test_a_sharded_run_in_half_precision(launch: Launch, fsdp: dict[str, str], tmp_path: Path) -> None:
    """FSDP casts the shards to bfloat16 and computes in it; evaluations run in it too, and weights are saved whole."""
    settings = {"max_steps": 2, "batch_size": 2, "mixed_precision": "bf16", "batch_norm": "sync", "log_every": 1}
    launch(2, "run.py", json.dumps({str(tmp_path / "run"): settings}), "sharded", **fsdp)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["environment"]["mixed_precision"] == "bf16"
    assert all(math.isfinite(line["loss"]) and line["grad_norm"] > 0 for line in lines if "loss" in line)
    weights = load_model(tmp_path / "run" / "best").state_dict()
    assert all(value.dtype == torch.float32 for value in weights.values() if value.is_floating_point())


@pytest.mark.slow
def test_two_machines_train_together(tmp_path: Path) -> None:
    """Two launchers with ranks of their own meet on loopback; each has a folder of its own."""
    file = next(path for path in LAUNCH_FILES if path.stem == "multi_node")
    text = file.read_text()
    assert text.count("use_cpu: false") == 1
    (tmp_path / "nodes.yaml").write_text(text.replace("use_cpu: false", "use_cpu: true"))
    launcher = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
    launcher += ["--config_file", str(tmp_path / "nodes.yaml"), "--num_machines", "2", "--num_processes", "2"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    launcher += ["--main_process_ip", "127.0.0.1", "--main_process_port", port]
    command = ["-m", "segtune", "train", "demo", "training.max_steps=3", "training.batch_size=2"]
    command += ["transforms.crop_size=64", "training.output_dir=run", "training.device=cpu"]
    running = []
    for rank in (0, 1):
        folder = tmp_path / f"machine{rank}"
        folder.mkdir()
        arguments = [*launcher, "--machine_rank", str(rank), *command]
        running.append(
            subprocess.Popen(arguments, cwd=folder, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        )
    said = [process.communicate(timeout=300) for process in running]
    assert [process.returncode for process in running] == [0, 0], said
    first = json.loads((tmp_path / "machine0" / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert first["environment"]["num_processes"] == 2
    assert (tmp_path / "machine0" / "run" / "final" / "model.safetensors").is_file()
    assert {path.name for path in (tmp_path / "machine1" / "run").iterdir()} <= {"overlays"}  # only one writes
    assert "best val mIoU" in said[0][0] and said[1][0] == ""


def test_whole_tensors_stay_as_they_are() -> None:
    value = torch.ones(3)
    tree = {"a": [value, 1], "b": {"c": "text", "d": None}}
    same = gather_full(tree)
    assert same == tree and same["a"][0] is value
    assert shard_like(value, torch.zeros(3)) is value and local_part(value) is value
