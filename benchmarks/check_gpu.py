"""Everything that only a GPU can show, in one command of at most 8 minutes: python benchmarks/check_gpu.py

    PYTHONPATH=src python benchmarks/check_gpu.py --output gpu

Needs torch, transformers, accelerate, safetensors, numpy and Pillow, and segtune on the path; what the sections
`training` and `resume` need beside that is optional: they are left out where it is missing. Each section ends with
verdicts, a line each; all figures go to `check_gpu.json`, and tables of the profiler beside it. On a CPU, `--tiny` runs
all of it in a minute, so that it works on the day. The exit code is 1 where a verdict fails.

Sections: machine (versions, bandwidth, products, cost of a launch); parity (logits and gradients against transformers,
in float32, TF32, bfloat16, float16); loss (the cross-entropy against the formula in float64); waits (how often the CPU
waits for the GPU); speed (B0 to B5, forward pass, prediction and training step, both libraries in turn); memory (peaks,
and the largest batch under 16 GB); profile; training (the demo in each precision); resume (killed and gone on with).
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F

from segtune.segformer import modeling_segformer
from segtune.segformer.configuration_segformer import SegformerConfig
from segtune.segformer.modeling_segformer import SegformerForSemanticSegmentation
from segtune.segformer.parameter_names import published_name
from segtune.segformer.upsampling import upsample, upsampled_prediction

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
MEMORY = 16 * 10**9  # bytes of a T4, nearly
LOSS_SCALE = 65536.0  # a GradScaler's first one, which no gradient may overflow at
TINY: dict[str, Any] = {
    "hidden_sizes": (8, 16, 24, 32),
    "depths": (1, 1, 1, 1),
    "num_attention_heads": (1, 2, 3, 4),
    "decoder_hidden_size": 16,
}


@dataclass
class Check:
    """What is checked, where, and what was found so far."""

    device: torch.device
    tiny: bool
    output: Path
    budget: float
    started: float = field(default_factory=time.monotonic)
    figures: dict[str, Any] = field(default_factory=dict)
    verdicts: list[tuple[str, str]] = field(default_factory=list)  # "ok", "FAIL" or "left out", and what

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def left(self) -> float:
        """Seconds of the budget."""
        return self.budget - (time.monotonic() - self.started)

    @property
    def size(self) -> int:
        return 64 if self.tiny else 512

    @property
    def labels(self) -> int:
        return 5 if self.tiny else 150

    @property
    def batch(self) -> int:
        return 2 if self.tiny else 16

    def variants(self, *names: str) -> tuple[str, ...]:
        return names[:1] if self.tiny else names

    def judge(self, passed: bool, what: str) -> None:
        self._say("ok" if passed else "FAIL", what)

    def leave_out(self, what: str) -> None:
        self._say("left out", what)

    def _say(self, verdict: str, what: str) -> None:
        self.verdicts.append((verdict, what))
        print(f"{verdict:<9}{what}", flush=True)

    def wait(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()


# --- the two networks ------------------------------------------------------------------------------------------------


def models(check: Check, variant: str) -> tuple[nn.Module, nn.Module]:
    """Ours and transformers', with the same random weights of the scale of trained ones; no dropout."""
    fields: dict[str, Any] = {"num_labels": check.labels, "drop_path_rate": 0.0, "classifier_dropout_prob": 0.0}
    config = SegformerConfig(**TINY, **fields) if check.tiny else SegformerConfig.from_variant(variant, **fields)
    torch.manual_seed(0)
    ours = SegformerForSemanticSegmentation(config)
    with torch.no_grad():
        for parameter in ours.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
    with tempfile.TemporaryDirectory() as folder:
        ours.save_pretrained(folder)
        theirs = transformers.SegformerForSemanticSegmentation.from_pretrained(folder)
    return ours.to(check.device), theirs.to(check.device)


def inputs(check: Check, batch: int) -> tuple[Tensor, Tensor]:
    """Pixels `(B, 3, S, S)` and labels `(B, S, S)` of regions, with an ignored edge."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(batch, 3, check.size, check.size, generator=generator)
    coarse = torch.randint(check.labels, (batch, 1, check.size // 16, check.size // 16), generator=generator)
    labels = F.interpolate(coarse.float(), size=(check.size, check.size))[:, 0].long()
    labels[:, :4] = 255
    return pixels.to(check.device), labels.to(check.device)


@contextmanager
def precision(check: Check, name: str) -> Iterator[None]:
    """`fp32`, `tf32`, or autocast to `bf16` or `fp16`."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest" if name == "fp32" else "high")
    torch.backends.cudnn.allow_tf32 = name != "fp32"
    try:
        with torch.autocast(check.device.type, HALF[name]) if name in HALF else nullcontext():
            yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def step_of(check: Check, model: nn.Module, batch: int, name: str) -> Callable[[], None]:
    """A training step: forward pass, loss, backward pass, AdamW; a scaled loss where that is needed."""
    pixels, labels = inputs(check, batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=check.device.type in ("cpu", "cuda"))
    scaler = torch.amp.GradScaler(check.device.type, enabled=name == "fp16")

    def run() -> None:
        model.train()
        with precision(check, name):
            loss = model(pixel_values=pixels, labels=labels).loss
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    return run


def forward_of(check: Check, model: nn.Module, batch: int, name: str, predict: bool = False) -> Callable[[], Tensor]:
    """A forward pass, or a prediction `(B, S, S)`: ours as the library makes it, the other by upsampling and argmax."""
    pixels, _ = inputs(check, batch)
    is_ours = isinstance(model, SegformerForSemanticSegmentation)

    def run() -> Tensor:
        with torch.inference_mode(), precision(check, name):
            logits: Tensor = model.eval()(pixel_values=pixels).logits
            if not predict:
                return logits
            size = pixels.shape[2:]
            return upsampled_prediction(logits, size) if is_ours else upsample(logits.float(), size).argmax(1)

    return run


# --- sections --------------------------------------------------------------------------------------------------------


def machine(check: Check) -> dict[str, Any]:
    """What the figures were taken on."""
    found: dict[str, Any] = {"torch": torch.__version__, "transformers": transformers.__version__}
    found |= {"python": platform.python_version(), "cuda": torch.version.cuda, "cores": os.cpu_count()}
    if check.on_gpu:
        properties = torch.cuda.get_device_properties(check.device)
        found |= {"gpu": properties.name, "memory": properties.total_memory, "built_for": torch.cuda.get_arch_list()}
        found["capability"] = [properties.major, properties.minor]
    side, repeats = (128, 2) if check.tiny else (8192, 10)
    block = torch.ones(side, side, device=check.device)
    found["copy_gb_s"] = 2 * 4 * side**2 / seconds_of(check, block.clone, repeats) / 1e9
    for name in ("fp32", "tf32", *HALF):
        factor = block.to(HALF.get(name, torch.float32))
        with precision(check, "fp32" if name == "fp32" else "tf32"):
            seconds = seconds_of(check, partial(torch.matmul, factor, factor), repeats)
        found[f"{name}_tflop_s"] = 2 * side**3 / seconds / 1e12
    one = torch.ones(1, device=check.device)

    def launches() -> None:
        for _ in range(1000):
            one.add_(1)

    found["launch_us"] = 1e3 * seconds_of(check, launches, 3)
    check.judge(True, f"machine: {found.get('gpu', 'CPU')}, PyTorch {found['torch']}")
    return found


def seconds_of(check: Check, call: Callable[[], Any], repeats: int) -> float:
    """Median seconds of a call, waiting for the device."""
    call()
    times = []
    for _ in range(repeats):
        check.wait()
        start = time.perf_counter()
        call()
        check.wait()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def parity(check: Check) -> dict[str, Any]:
    """Logits and gradients of both, against those of transformers in float32."""
    found: dict[str, Any] = {}
    for variant in check.variants("b0", "b2", "b5"):
        pair = dict(zip(("segtune", "transformers"), models(check, variant), strict=True))
        exact = outcome(check, pair["transformers"], "fp32")
        for name in ("fp32", "tf32", *HALF):
            errors = {side: distance(outcome(check, model, name), exact) for side, model in pair.items()}
            found[f"{variant} {name}"] = errors
            logits, gradients = errors["segtune"]
            if name == "fp32":
                passed, bar = logits <= 1e-5 and gradients <= 1e-4, "1e-5 and 1e-4"
            else:
                factor = 4.0 if check.tiny else 1.2  # in a tiny network, chance decides
                limits = [max(factor * error, 1e-5) for error in errors["transformers"]]
                passed = logits <= limits[0] and gradients <= limits[1]
                bar = f"{limits[0]:.1e} and {limits[1]:.1e}, {factor} times transformers'"
            check.judge(
                passed, f"parity {variant} {name}: logits {logits:.1e}, gradients {gradients:.1e} (at most {bar})"
            )
    return found


def outcome(check: Check, model: nn.Module, name: str) -> dict[str, Tensor]:
    """The logits, and every gradient by its published name; of float16 with the loss scaled."""
    pixels, labels = inputs(check, 2)
    scale = LOSS_SCALE if name == "fp16" else 1.0
    with precision(check, name):
        output = model.train()(pixel_values=pixels, labels=labels)
    (output.loss * scale).backward()
    gradients = {key: value.grad for key, value in model.named_parameters()}
    found = {published_name(key): value.double() / scale for key, value in gradients.items() if value is not None}
    found["logits"] = output.logits.detach().double()
    model.zero_grad()
    return found


def distance(found: dict[str, Tensor], exact: dict[str, Tensor]) -> tuple[float, float]:
    """Of logits and of all gradients together, relative to the norm; inf where something is not finite."""
    logits = found["logits"] - exact["logits"]
    names = sorted(exact.keys() - {"logits"})
    off = torch.stack([(found[name] - exact[name]).square().sum() for name in names]).sum()
    norm = torch.stack([exact[name].square().sum() for name in names]).sum()
    errors = (logits.norm() / exact["logits"].norm()).item(), (off / norm).sqrt().item()
    first, second = (error if math.isfinite(error) else math.inf for error in errors)
    return first, second


def loss(check: Check) -> dict[str, Any]:
    """The cross-entropy and its gradient, against the formula in float64 on the CPU."""
    found: dict[str, Any] = {}
    cases: dict[str, dict[str, Any]] = {
        "ratio four": {},
        "odd sizes": {"size": (37, 50)},
        "two labels": {"labels": 2},
        "many labels": {"labels": 150},
        "weights": {"weighted": True},
        "smoothing": {"label_smoothing": 0.1},
        "weights and smoothing, odd sizes": {"weighted": True, "label_smoothing": 0.1, "size": (61, 35)},
        "nothing valid": {"ignored": True},
    }
    for name, case in cases.items():
        errors, plain = loss_errors(check, **case)
        found[name] = {"segtune": errors, "formula": plain}
        passed = all(error <= max(1e-6, 1.2 * other) for error, other in zip(errors, plain, strict=True))
        told = f"off by {errors[0]:.1e}, its gradient by {errors[1]:.1e}"
        check.judge(passed, f"loss, {name}: {told} (the formula in float32: {plain[0]:.1e} and {plain[1]:.1e})")
    return found


def loss_errors(
    check: Check,
    size: tuple[int, int] = (64, 96),
    labels: int = 19,
    weighted: bool = False,
    label_smoothing: float = 0.0,
    ignored: bool = False,
) -> list[tuple[float, float]]:
    """How far off loss and gradient are, relative to the loss and the largest gradient: ours, and the plain formula."""
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(2, labels, 16, 24, generator=generator)
    target = torch.randint(labels, (2, *size), generator=generator)
    target[:, : size[0] if ignored else 5] = 255
    weight = torch.rand(labels, generator=generator) + 0.5 if weighted else None
    settings: dict[str, Any] = {"label_smoothing": label_smoothing, "reduction": "sum"}

    def formula(x: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
        full = F.interpolate(x, size=size, mode="bilinear", align_corners=False)
        return F.cross_entropy(full, target, weight, ignore_index=255, **settings)

    def own(x: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
        return modeling_segformer.upsampled_cross_entropy(x, target, 255, weight, **settings)

    def outcome(function: Callable[..., Tensor], device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        x = logits.to(device, dtype).requires_grad_()
        value = function(x, target.to(device), None if weight is None else weight.to(device, dtype))
        (gradient,) = torch.autograd.grad(value, x)
        return value.detach().cpu().double(), gradient.cpu().double()

    value, gradient = outcome(formula, torch.device("cpu"), torch.float64)
    found = []
    for function in (own, formula):
        a, b = outcome(function, check.device, torch.float32)
        off = (a - value).abs() / value.abs().clamp(min=1e-30), (b - gradient).abs().max()
        found.append((off[0].item(), (off[1] / gradient.abs().max().clamp(min=1e-30)).item()))
    return found


def speed(check: Check) -> dict[str, Any]:
    """Milliseconds of the device, both libraries in turn, and the ratio of the medians; the CPU's own time, too."""
    found: dict[str, Any] = {}
    has_bf16 = not check.on_gpu or torch.cuda.get_device_capability(check.device) >= (8, 0)
    half = "bf16" if has_bf16 else "fp16"
    plans = [(variant, half) for variant in check.variants("b0", "b2", "b1", "b3", "b4", "b5")]
    plans += [(variant, name) for name in ("tf32", "fp16", "bf16") for variant in check.variants("b0", "b2")]
    for variant, name in dict.fromkeys(plans):
        if check.left < 0.4 * check.budget:
            check.leave_out(f"speed {variant} {name}: no time is left")
            continue
        ours, theirs = models(check, variant)
        tasks: dict[str, Callable[[nn.Module], Callable[[], Any]]] = {
            "forward 1": partial(forward_of, check, batch=1, name=name),
            f"forward {check.batch}": partial(forward_of, check, batch=check.batch, name=name),
            "predict 1": partial(forward_of, check, batch=1, name=name, predict=True),
            "step 2": partial(step_of, check, batch=2, name=name),
            f"step {check.batch}": partial(step_of, check, batch=check.batch, name=name),
        }
        for task, make in tasks.items():
            row = in_turn(check, make(ours), make(theirs))
            found[f"{variant} {name} {task}"] = row
            times = f"{row['segtune_ms']:.2f} ms, transformers {row['transformers_ms']:.2f} ms"
            check.judge(
                check.tiny or row["ratio"] >= 1, f"speed {variant} {name} {task}: {times}, {row['ratio']:.2f} times"
            )
    return found


def in_turn(check: Check, ours: Callable[[], Any], theirs: Callable[[], Any]) -> dict[str, float]:
    """Medians over pairs of calls, as many as fit a second, after some to warm up."""
    calls = {"segtune": ours, "transformers": theirs}
    for _ in range(1 if check.tiny else 5):
        for call in calls.values():
            call()
    check.wait()
    device: dict[str, list[float]] = {side: [] for side in calls}
    host: dict[str, list[float]] = {side: [] for side in calls}
    start = time.monotonic()
    while len(device["segtune"]) < 3 or (time.monotonic() - start < 1.0 and len(device["segtune"]) < 50):
        for side, call in calls.items():
            begun = time.perf_counter()
            if check.on_gpu:
                events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
                events[0].record()
                call()
                events[1].record()
                host[side].append(time.perf_counter() - begun)
                events[1].synchronize()
                device[side].append(events[0].elapsed_time(events[1]) / 1e3)
            else:
                call()
                host[side].append(time.perf_counter() - begun)
                device[side].append(host[side][-1])
        if check.tiny and len(device["segtune"]) >= 3:
            break
    found = {f"{side}_ms": 1e3 * statistics.median(times) for side, times in device.items()}
    found |= {f"{side}_host_ms": 1e3 * statistics.median(times) for side, times in host.items()}
    pairs = zip(device["segtune"], device["transformers"], strict=True)
    return found | {"ratio": statistics.median(theirs / ours for ours, theirs in pairs)}


def waits(check: Check) -> dict[str, Any]:
    """How often a call makes the CPU wait for the GPU."""
    if not check.on_gpu:
        check.leave_out("waits: there is no GPU to wait for")
        return {}
    found: dict[str, Any] = {}
    ours, theirs = models(check, "b0")
    for side, model in (("segtune", ours), ("transformers", theirs)):
        calls = {
            "forward": forward_of(check, model, 2, "bf16"),
            "predict": forward_of(check, model, 2, "bf16", predict=True),
            "step": step_of(check, model, 2, "bf16"),
        }
        for task, call in calls.items():
            call()
            torch.cuda.set_sync_debug_mode("warn")
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                call()
            torch.cuda.set_sync_debug_mode("default")
            places = [f"{one.filename}:{one.lineno}" for one in caught if "synchroniz" in str(one.message)]
            found[f"{side} {task}"] = places
            if side == "segtune":
                check.judge(not places, f"waits in a {task}: {len(places)} {', '.join(places[:3])}".rstrip())
    return found


def memory(check: Check) -> dict[str, Any]:
    """Peaks of the allocator, and the largest batch of a training step under 16 GB."""
    if not check.on_gpu:
        check.leave_out("memory: the allocator counts on GPUs only")
        return {}
    found: dict[str, Any] = {}
    total = torch.cuda.get_device_properties(check.device).total_memory
    for variant in check.variants("b0", "b2"):
        largest: dict[str, int] = {}
        for side, model in zip(("segtune", "transformers"), models(check, variant), strict=True):
            for task, call in {
                "forward": forward_of(check, model, check.batch, "bf16"),
                "step": step_of(check, model, check.batch, "bf16"),
            }.items():
                call()
                torch.cuda.reset_peak_memory_stats()
                call()
                found[f"{variant} {task} {side}_mb"] = torch.cuda.max_memory_allocated() / 1e6
            largest[side] = largest_batch(check, model, min(1.0, MEMORY / total))
        mine, theirs = (found[f"{variant} step {side}_mb"] for side in largest)
        check.judge(mine <= theirs, f"memory of a step, {variant}: {mine:.0f} MB, transformers {theirs:.0f} MB")
        found[f"{variant} largest batch"] = largest
        check.judge(
            largest["segtune"] >= 1.5 * largest["transformers"],
            f"largest batch under 16 GB, {variant}: {largest['segtune']}, transformers {largest['transformers']}",
        )
    return found


def largest_batch(check: Check, model: nn.Module, share: float) -> int:
    """By doubling and halving, to an eighth; within a share of the GPU's memory."""
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(share, check.device)

    def fits(batch: int) -> bool:
        try:
            step_of(check, model, batch, "bf16")()
            check.wait()
            return True
        except torch.OutOfMemoryError:
            return False
        finally:
            model.zero_grad()
            torch.cuda.empty_cache()

    low = 4
    while low < 1024 and fits(2 * low):
        low *= 2
    high, step = 2 * low, max(1, low // 8)
    while high - low > step:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    torch.cuda.set_per_process_memory_fraction(1.0, check.device)
    return low


# --- trainings -------------------------------------------------------------------------------------------------------


def missing_package() -> str | None:
    """A package without which segtune does not train, where one is not installed."""
    try:
        importlib.import_module("segtune.cli.main")
        importlib.import_module("segtune.finetune")
    except ImportError as error:
        return error.name or str(error)
    return None


def train_words(check: Check, folder: Path, steps: int, *changes: str) -> list[str]:
    """The command that trains the demo for some steps."""
    words = [f"max_steps={steps}", f"output_dir={folder}", "report=false", "overlays=0", "warmup_steps=0"]
    words += [f"device={check.device.type}", "num_workers=0", *changes]
    if check.tiny:
        words += ["batch_size=2", "log_every=1"]
        own = ["transforms.crop_size=32", f"model.config={json.dumps(TINY)}"]
    else:
        words += ["log_every=10"]
        own = []
    return [sys.executable, "-m", "segtune", "-q", "train", "demo", *(f"training.{word}" for word in words), *own]


def train(check: Check, folder: Path, steps: int, *changes: str) -> list[dict[str, Any]]:
    """Trains the demo; the lines of its log."""
    done = subprocess.run(train_words(check, folder, steps, *changes), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"segtune train ended with {done.returncode}: {done.stderr.strip().splitlines()[-1:]}")
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def training(check: Check) -> dict[str, Any]:
    """The demo in float32, bfloat16 and, on a GPU, float16: the loss falls, and scores are alike."""
    if package := missing_package():
        check.leave_out(f"training: {package} is not installed")
        return {}
    found: dict[str, Any] = {}
    steps = 4 if check.tiny else 200
    with tempfile.TemporaryDirectory() as place:
        for name in ("no", "bf16", *(["fp16"] if check.on_gpu else [])):
            log = train(check, Path(place) / name, steps, f"mixed_precision={name}")
            losses = [line["loss"] for line in log if "loss" in line]
            rates = [line["images_per_second"] for line in log if "loss" in line]
            score = next(line["mean_iou"] for line in reversed(log) if "mean_iou" in line)
            found[name] = {"first": losses[0], "last": losses[-1], "mean_iou": score, "images_per_second": rates[-1]}
            passed = check.tiny or (losses[-1] < 0.8 * losses[0] and score >= found["no"]["mean_iou"] - 0.03)
            told = f"loss {losses[0]:.3f} to {losses[-1]:.3f}, mIoU {score:.3f}, {rates[-1]:.0f} images/s"
            check.judge(passed and all(map(math.isfinite, losses)), f"training, mixed_precision={name}: {told}")
    return found


def resume(check: Check) -> dict[str, Any]:
    """A run that is killed and gone on with ends as one that was not, to the last bit where it is deterministic."""
    if package := missing_package():
        check.leave_out(f"resume: {package} is not installed")
        return {}
    found: dict[str, Any] = {}
    steps, state = (4, 2) if check.tiny else (60, 20)
    for deterministic in (True,) if check.tiny else (True, False):
        with tempfile.TemporaryDirectory() as place:
            whole, killed = Path(place) / "whole", Path(place) / "killed"
            changes = (f"save_every={state}", f"deterministic={str(deterministic).lower()}")
            train(check, whole, steps, *changes)
            words = train_words(check, killed, steps, *changes)
            process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            while process.poll() is None and not any((killed / "checkpoints").glob("step-*/manifest.json")):
                time.sleep(0.01)
            process.kill()
            process.wait()
            shutil.rmtree(killed / "final", ignore_errors=True)
            train(check, killed, steps, *changes, "resume=auto")
            difference = largest_difference(whole / "final", killed / "final")
        found["deterministic" if deterministic else "default"] = difference
        told = f"resume after kill -9, training.deterministic={str(deterministic).lower()}: "
        check.judge(difference == 0 if deterministic else difference < 0.1, f"{told}weights differ by {difference:.1e}")
    return found


def largest_difference(one: Path, other: Path) -> float:
    """Between the weights of two folders."""
    from safetensors.torch import load_file

    first, second = (load_file(folder / "model.safetensors") for folder in (one, other))
    return max((value.double() - second[name].double()).abs().max().item() for name, value in first.items())


def profile(check: Check) -> dict[str, Any]:
    """Tables of what takes the time: a forward pass, a prediction and a step of B0."""
    found: dict[str, Any] = {}
    activities = [torch.profiler.ProfilerActivity.CPU]
    if check.on_gpu:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    ours, _ = models(check, "b0")
    name = "tf32" if check.on_gpu else "fp32"
    calls = {
        "forward": forward_of(check, ours, check.batch, name),
        "predict": forward_of(check, ours, 1, name, predict=True),
        "step": step_of(check, ours, check.batch, name),
    }
    for task, call in calls.items():
        call()
        with torch.profiler.profile(activities=activities) as profiler:
            call()
            check.wait()
        key = "self_cuda_time_total" if check.on_gpu else "self_cpu_time_total"
        table = profiler.key_averages().table(sort_by=key, row_limit=25)
        path = check.output / f"profile-{task}.txt"
        path.write_text(table + "\n", encoding="utf-8")
        found[task] = path.name
    check.judge(True, f"profile: {', '.join(found.values())}")
    return found


# --- all of it -------------------------------------------------------------------------------------------------------

SECTIONS: dict[str, Callable[[Check], dict[str, Any]]] = {
    "machine": machine,
    "parity": parity,
    "loss": loss,
    "waits": waits,
    "speed": speed,
    "memory": memory,
    "profile": profile,
    "training": training,
    "resume": resume,
}


def run(check: Check, names: Sequence[str]) -> None:
    """Every section, whatever becomes of the others; the figures are written after each."""
    for name in names:
        begun = time.monotonic()
        try:
            if check.left > 0:
                check.figures[name] = SECTIONS[name](check)
            else:
                check.leave_out(f"{name}: no time is left")
        except Exception as error:  # the next section is worth as much
            traceback.print_exc()
            check.judge(False, f"{name}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
        if check.on_gpu:
            torch.cuda.empty_cache()
        seconds = check.figures.setdefault("seconds", {})
        seconds[name] = round(time.monotonic() - begun, 1)
        content = {"device": str(check.device), "tiny": check.tiny, "verdicts": check.verdicts, **check.figures}
        (check.output / "check_gpu.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--output", type=Path, default=Path("check_gpu"), help="folder of JSON and tables (default: check_gpu)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: the GPU if there is one")
    add("--tiny", action="store_true", help="a small network and small pictures, to see that all runs through")
    add("--budget", type=float, default=460.0, help="seconds after which sections are left out (default: 460)")
    add("--sections", default=",".join(SECTIONS), help="some of them, separated by commas (default: all)")
    options = parser.parse_args(arguments)
    names = options.sections.split(",")
    if unknown := [name for name in names if name not in SECTIONS]:
        parser.error(f"--sections {unknown[0]}: choose from {', '.join(SECTIONS)}")
    transformers.utils.logging.disable_progress_bar()
    options.output.mkdir(parents=True, exist_ok=True)
    check = Check(torch.device(options.device), options.tiny, options.output, options.budget)
    run(check, names)
    failed = sum(verdict == "FAIL" for verdict, _ in check.verdicts)
    print(f"{len(check.verdicts)} verdicts, {failed} failed; {options.output / 'check_gpu.json'}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
