"""Time, memory and work of segtune's SegFormer and transformers', side by side on the same weights.

    python benchmarks/compare_transformers.py --variants b0,b1 --train-batch-size 2
    python benchmarks/compare_transformers.py --labels 19 --plot cost.png   # also against the size (needs matplotlib)

Times are taken interleaved in one process and compared pair by pair, so that a machine that slows down slows both;
every peak of memory is that of a fresh process.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
import transformers
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode, _FlopCounterMode
from tqdm.auto import tqdm
from transformers.utils import logging

import segtune
from segtune.errors import SegtuneError, UsageError
from segtune.segformer.configuration_segformer import VARIANTS, SegformerConfig
from segtune.segformer.cpu_products import prefers_onednn
from segtune.segformer.loading import load_model
from segtune.segformer.modeling_segformer import SegformerForSemanticSegmentation
from segtune.segformer.upsampling import upsampled_prediction
from segtune.training.distributed import peak_memory_mb
from segtune.training.optim import adamw, parameter_groups

Task = Literal["forward", "predict", "train"]
TASKS: tuple[Task, ...] = ("forward", "predict", "train")
LABELS = {"forward": "forward", "predict": "prediction, full-size mask", "train": "training step (AdamW)"}


@dataclass(frozen=True)
class Bench:
    """What is measured: one network at one input."""

    variant: str = "b0"
    checkpoint: str | None = None
    size: int = 512
    labels: int = 150
    batch: int = 1
    train_batch: int = 1
    dtype: str = "fp32"
    device: str = "cpu"
    repeats: int = 7
    compile: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in ("fp32", "bf16"):
            raise UsageError(f"dtype {self.dtype!r}: fp32 or bf16")
        if self.variant not in VARIANTS and self.checkpoint is None:
            raise UsageError(f"variant {self.variant!r} does not exist: {', '.join(VARIANTS)}")
        for name in ("size", "labels", "batch", "train_batch", "repeats"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} = {getattr(self, name)}: at least 1")

    @property
    def name(self) -> str:
        return self.checkpoint or self.variant


def run_bench(bench: Bench, progress: bool = True) -> dict[str, Any]:
    """All figures of one network, JSON-able; see `table` for what they mean."""
    ours, theirs = models(bench)
    steps = 2 * len(TASKS) + 2 + bench.compile
    with tqdm(total=steps, desc=f"bench {bench.name}", disable=not progress) as bar:
        result: dict[str, Any] = {"bench": asdict(bench), "threads": torch.get_num_threads()}
        result |= {"torch": torch.__version__, "transformers": transformers.__version__}
        result["matmul_gflops"] = matmul_gflops(bench.device)
        result["products"] = "oneDNN" if prefers_onednn() else "F.linear"
        result["gmacs"] = {"segtune": gmacs(ours, bench), "transformers": gmacs(theirs, bench)}
        result["largest_difference"] = _largest_difference(ours, theirs, bench)
        bar.update()
        for task in TASKS:
            with _calls(ours, theirs, task, bench) as calls:
                result[task] = compare(*calls, bench.repeats)
            bar.update()
        if bench.compile:
            result["compiled"] = compiled(ours, bench)
            bar.update()
        result["saved_bytes"] = {"segtune": saved_bytes(ours, bench), "transformers": saved_bytes(theirs, bench)}
        bar.update()
        del ours, theirs
        for task in TASKS:
            result[task]["peak_mb"] = {side: peak_memory(bench, side, task) for side in ("segtune", "transformers")}
            bar.update()
    return result


# --- the two networks ------------------------------------------------------------------------------------------------


def run_benches(benches: Sequence[Bench]) -> list[dict[str, Any]]:
    """The figures of several networks, each measured in a fresh process: a larger one leaves memory for the next."""
    if len(benches) == 1:
        return [run_bench(benches[0])]
    return [json.loads(_in_fresh_process({"bench": asdict(bench)})) for bench in benches]


def models(bench: Bench) -> tuple[nn.Module, nn.Module]:
    """Ours and transformers' with the same weights, exchanged through a file."""
    ours = make_model(bench, "segtune")
    with tempfile.TemporaryDirectory() as folder:
        ours.save_pretrained(folder)
        theirs = transformers.SegformerForSemanticSegmentation.from_pretrained(folder)
    return ours, theirs.to(bench.device)


def make_model(bench: Bench, side: str) -> Any:
    """The network of one side; from random weights, of the scale of trained ones so that the output varies."""
    torch.manual_seed(0)
    if bench.checkpoint:
        if side == "segtune":
            return load_model(bench.checkpoint).to(bench.device)
        return transformers.SegformerForSemanticSegmentation.from_pretrained(bench.checkpoint).to(bench.device)
    config = SegformerConfig.from_variant(bench.variant, num_labels=bench.labels)
    if side == "segtune":
        model = SegformerForSemanticSegmentation(config)
    else:
        fields = {key: value for key, value in config.to_dict().items() if key != "label_map"}
        model = transformers.SegformerForSemanticSegmentation(transformers.SegformerConfig.from_dict(fields))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
    return model.to(bench.device)


def inputs(bench: Bench, batch: int) -> tuple[Tensor, Tensor]:
    """Normalised photographs `(B, C, S, S)` out of the embedded dataset, and random labels `(B, S, S)`."""
    folder = Path(segtune.__file__).parent / "data" / "earth" / "images" / "test"
    files = sorted(folder.glob("*.jpg"))
    pictures = [Image.open(files[i % len(files)]).resize((bench.size, bench.size)) for i in range(batch)]
    pixels = np.stack([np.asarray(picture.convert("RGB"), dtype=np.float32) for picture in pictures])
    pixel_values = torch.from_numpy((pixels / 255 - 0.45) / 0.225).permute(0, 3, 1, 2).contiguous()
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(0, bench.labels, (batch, 1, bench.size // 16 + 1, bench.size // 16 + 1), generator=generator)
    labels = F.interpolate(coarse.float(), size=(bench.size, bench.size))[:, 0].long()
    return pixel_values.to(bench.device), labels.to(bench.device)


@contextmanager
def _calls(
    ours: nn.Module, theirs: nn.Module, task: Task, bench: Bench
) -> Iterator[tuple[Callable[[], Any], Callable[[], Any]]]:
    yield call(ours, "segtune", task, bench), call(theirs, "transformers", task, bench)
    for model in (ours, theirs):
        model.zero_grad(set_to_none=True)


def call(model: nn.Module, side: str, task: Task, bench: Bench) -> Callable[[], Any]:
    """A function that does the task once, waiting for the device."""
    pixel_values, labels = inputs(bench, bench.train_batch if task == "train" else bench.batch)
    if task == "train":
        return _training_step(model.train(), pixel_values, labels, bench)
    model.eval()

    def run() -> Tensor:
        with torch.inference_mode(), _precision(bench):
            logits = model(pixel_values).logits  # (B, K, S/4, S/4)
            if task == "predict" and side == "segtune":
                logits = upsampled_prediction(logits, pixel_values.shape[2:])
            elif task == "predict":
                size = pixel_values.shape[2:]
                logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=False).argmax(1)
        _wait(bench)
        return logits

    return run


def _training_step(model: nn.Module, pixel_values: Tensor, labels: Tensor, bench: Bench) -> Callable[[], Any]:
    optimizer = adamw(parameter_groups(model, 1e-6, 0.01, 1.0), (0.9, 0.999))

    def run() -> None:
        optimizer.zero_grad()
        with _precision(bench):
            loss = model(pixel_values, labels=labels).loss
        loss.backward()
        optimizer.step()
        _wait(bench)

    return run


def _precision(bench: Bench) -> AbstractContextManager[Any]:
    return torch.autocast(bench.device.split(":")[0], torch.bfloat16) if bench.dtype == "bf16" else nullcontext()


def _wait(bench: Bench) -> None:
    if torch.device(bench.device).type != "cpu":
        torch.accelerator.synchronize()


# --- measures --------------------------------------------------------------------------------------------------------


def compare(ours: Callable[[], Any], theirs: Callable[[], Any], repeats: int) -> dict[str, Any]:
    """Seconds of both, interleaved, and the quartiles of the paired ratios theirs / ours, by wall and by CPU time."""
    samples: dict[str, list[tuple[float, float]]] = {"segtune": [], "transformers": []}
    for call_once in (ours, theirs):
        call_once()  # warm up
    for i in range(repeats):
        order = [("segtune", ours), ("transformers", theirs)]
        for side, call_once in order if i % 2 else order[::-1]:
            wall, cpu = time.perf_counter(), time.process_time()
            call_once()
            samples[side].append((time.perf_counter() - wall, time.process_time() - cpu))
    result: dict[str, Any] = {}
    for index, clock in enumerate(("wall", "cpu")):
        mine, other = ([sample[index] for sample in samples[side]] for side in ("segtune", "transformers"))
        ratios = [b / a for a, b in zip(mine, other, strict=True) if a > 0]
        quartiles = np.quantile(ratios, [0.25, 0.5, 0.75]).tolist() if ratios else [float("nan")] * 3
        result[clock] = {
            "segtune_s": statistics.median(mine),
            "transformers_s": statistics.median(other),
            "ratio": quartiles[1],
            "ratio_quartiles": [quartiles[0], quartiles[2]],
        }
    return result


def compiled(model: nn.Module, bench: Bench) -> dict[str, Any]:
    """Our forward pass under `torch.compile` against the same one without; `compile_s` is the first call."""
    fast = call(cast(nn.Module, torch.compile(model)), "segtune", "forward", bench)
    plain = call(model, "segtune", "forward", bench)
    start = time.perf_counter()
    fast()
    seconds = time.perf_counter() - start
    wall = compare(fast, plain, bench.repeats)["wall"]
    return {
        "compile_s": seconds,
        "compiled_s": wall["segtune_s"],
        "eager_s": wall["transformers_s"],
        "ratio": wall["ratio"],
        "ratio_quartiles": wall["ratio_quartiles"],
    }


def matmul_gflops(device: str, size: int = 1536) -> float:
    """What the machine's fp32 matrix product does, the best of five: the limit that any network stays below.

    On a CPU of the faster library, MKL (or what else PyTorch was built with) or oneDNN.
    """
    a = torch.randn(size, size, device=device)
    products: list[Callable[[], Tensor]] = [lambda: a @ a]
    if device == "cpu" and hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        products.append(lambda: cast(Tensor, torch.ops.mkldnn._linear_pointwise(a, a, None, "none", [], "")))
    best = float("inf")
    for product in products * 5:
        start = time.perf_counter()
        product().sum().item()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best / 1e9


def gmacs(model: Any, bench: Bench) -> float:
    """Multiply-accumulates (10^9) of one forward pass of one image, counted on the meta device."""
    with torch.device("meta"):
        copy = type(model)(model.config).eval()
    counter = FlopCounterMode(display=False)
    with _FlopCounterMode(counter):  # without its hooks, at which our fast paths would step aside
        copy(torch.empty(1, model.config.num_channels, bench.size, bench.size, device="meta"))
    return counter.get_total_flops() / 2e9


def saved_bytes(model: nn.Module, bench: Bench) -> int:
    """Bytes that one forward pass with loss keeps for the backward pass, parameters aside, each storage once."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    pixel_values, labels = inputs(bench, bench.train_batch)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), _precision(bench):
        loss = model.train()(pixel_values, labels=labels).loss
    del loss
    return sum(kept.values())


def _largest_difference(ours: nn.Module, theirs: nn.Module, bench: Bench) -> float:
    """Between the logits, as a share of the largest logit."""
    a, b = (call(model, side, "forward", bench)().float() for model, side in ((ours, "segtune"), (theirs, "")))
    return ((a - b).abs().max() / b.abs().max()).item()


def peak_memory(bench: Bench, side: str, task: Task) -> float:
    """Megabytes that a fresh process needs at most to do the task twice; on a GPU, those of its allocator."""
    return float(_in_fresh_process({"bench": asdict(bench), "side": side, "task": task}))


def _in_fresh_process(job: dict[str, Any]) -> str:
    """The last line that it prints; its progress bar is shown."""
    words = [sys.executable, __file__, "--job", json.dumps(job)]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SegtuneError(f"measuring {job['bench']['checkpoint'] or job['bench']['variant']} failed: see above")
    return done.stdout.splitlines()[-1]


def _do(job: str) -> None:
    """The part of a measurement that another process asked for by `_in_fresh_process`."""
    settings = json.loads(job)
    bench = Bench(**settings["bench"])
    if "task" not in settings:
        print(json.dumps(run_bench(bench)))
        return
    run = call(make_model(bench, settings["side"]), settings["side"], settings["task"], bench)
    run()
    run()
    print(peak_memory_mb(bench.device))


def cost_curve(bench: Bench, sizes: Sequence[int], progress: bool = True) -> list[dict[str, Any]]:
    """Time and peak memory of prediction for each size, of both."""
    rows = []
    for size in tqdm(sizes, desc="cost curve", disable=not progress):
        at = replace(bench, size=size, repeats=min(bench.repeats, 3))
        with _calls(*models(at), "predict", at) as calls:
            row = compare(*calls, at.repeats)["wall"]
        row |= {f"{side}_mb": peak_memory(at, side, "predict") for side in ("segtune", "transformers")}
        rows.append({"size": size, **row})
    return rows


# --- showing ---------------------------------------------------------------------------------------------------------


def table(results: Sequence[dict[str, Any]]) -> str:
    """A readable table, one block a network."""
    lines = []
    for result in results:
        bench = result["bench"]
        lines += [
            f"{bench['checkpoint'] or bench['variant']}, {bench['size']}x{bench['size']}, {bench['labels']} labels, "
            f"{bench['dtype']}, {bench['device']} ({result['threads']} threads), batch {bench['batch']}, "
            f"training {bench['train_batch']}",
            f"{'':<28}{'segtune':>12}{'transformers':>14}{'ratio':>8}   quartiles",
        ]
        for task in TASKS:
            wall, peak = result[task]["wall"], result[task]["peak_mb"]
            low, high = wall["ratio_quartiles"]
            lines.append(
                f"{LABELS[task]:<28}{wall['segtune_s'] * 1e3:>9.0f} ms{wall['transformers_s'] * 1e3:>11.0f} ms"
                f"{wall['ratio']:>7.2f}x   {low:.2f} to {high:.2f}"
            )
            lines.append(_row("  peak memory", peak, "MB", 1))
        if "compiled" in result:
            times = result["compiled"]
            lines.append(
                f"our forward, compiled {times['compiled_s'] * 1e3:.0f} ms, eager {times['eager_s'] * 1e3:.0f} ms "
                f"({times['ratio']:.2f}x, after {times['compile_s']:.0f} s of compiling)"
            )
        lines.append(_row("saved for backward", result["saved_bytes"], "MB", 1e-6))
        lines.append(_row("multiply-accumulates", result["gmacs"], "G", 1, digits=2))
        reached = 2 * result["gmacs"]["segtune"] * bench["batch"] / result["forward"]["wall"]["segtune_s"]
        lines.append(
            f"largest difference of logits {result['largest_difference']:.1e} of the largest; matrix product "
            f"{result['matmul_gflops']:.0f} GFLOP/s, of which our forward reaches "
            f"{reached / result['matmul_gflops']:.0%} by {result['products']}"
        )
        lines.append("")
    return "\n".join(lines).rstrip()


def _row(label: str, values: dict[str, float], unit: str, factor: float, digits: int = 0) -> str:
    mine, other = values["segtune"] * factor, values["transformers"] * factor
    return f"{label:<28}{mine:>9.{digits}f} {unit:<2}{other:>11.{digits}f} {unit:<2}{other / mine:>7.2f}x"


def plot_curve(rows: Sequence[dict[str, Any]], title: str, path: Path) -> None:
    """Time and memory against resolution, both axes logarithmic, as a PNG (needs matplotlib)."""
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import LogLocator
    except ImportError:
        raise UsageError("--plot needs matplotlib: pip install 'matplotlib>=3.8'") from None
    figure = Figure(figsize=(9, 4), layout="constrained")
    sizes = [row["size"] for row in rows]
    for axes, key, label in zip(figure.subplots(1, 2), ("s", "mb"), ("seconds", "peak memory, MB"), strict=True):
        for side, color in (("transformers", "#b0b0b0"), ("segtune", "#1a6fb0")):
            axes.plot(sizes, [row[f"{side}_{key}"] for row in rows], "o-", color=color, label=side)
        axes.set(xscale="log", yscale="log", xlabel="side of the image, pixels", ylabel=label)
        axes.set_xticks(sizes, [str(size) for size in sizes], minor=False)
        axes.minorticks_off()
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.grid(alpha=0.3)
    figure.axes[0].legend(frameon=False)
    figure.suptitle(title)
    figure.savefig(path, dpi=150)


# --- the command line ------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and prints what the options ask for; leaves with code 2 at wrong ones, with 1 at failures."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    if options.job:
        _do(options.job)
        return
    try:
        report(options)
    except SegtuneError as error:
        parser.exit(error.exit_code, f"error: {error}\n")


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--variants", default="b0", help="of the network, separated by commas: b0 to b5 (default: b0)")
    add("--checkpoint", help="a checkpoint instead of random weights")
    add("--size", type=int, default=512, help="side of the square input in pixels (default: 512)")
    add("--labels", type=int, default=150, help="number of classes (default: 150)")
    add("--batch-size", type=int, default=1, help="images in a forward pass (default: 1)")
    add("--train-batch-size", type=int, default=1, help="images in a training step (default: 1)")
    add("--dtype", default="fp32", help="fp32, or bf16 for autocast (default: fp32)")
    add("--device", default="cpu", help="cpu, cuda, mps, … (default: cpu)")
    add("--repeats", type=int, default=7, help="pairs of timings (default: 7)")
    add("--compile", action="store_true", help="also time our forward pass under torch.compile")
    add("--json", action="store_true", help="print one JSON object and nothing else")
    add("--plot", type=Path, metavar="PNG", help="also draw time and memory of prediction against the size")
    add("--plot-sizes", type=whole_numbers, default="256,512,1024,2048", help="sides for --plot (default: %(default)s)")
    add("--job", help=argparse.SUPPRESS)  # JSON, of a fresh process that this one starts
    return parser


def whole_numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def report(options: argparse.Namespace) -> None:
    logging.disable_progress_bar()  # one for each checkpoint that is read or written
    benches = [
        Bench(
            variant=variant,
            checkpoint=options.checkpoint,
            size=options.size,
            labels=options.labels,
            batch=options.batch_size,
            train_batch=options.train_batch_size,
            dtype=options.dtype,
            device=options.device,
            repeats=options.repeats,
            compile=options.compile,
        )
        for variant in (["b0"] if options.checkpoint else options.variants.lower().split(","))
    ]
    results = run_benches(benches)
    curve = cost_curve(benches[0], options.plot_sizes) if options.plot else None
    if curve:
        title = f"SegFormer {benches[0].name}, {options.labels} labels, {options.dtype}, {options.device}"
        plot_curve(curve, title, options.plot)
    print(json.dumps({"results": results, "curve": curve}) if options.json else table(results))
    if curve:
        print(f"cost curve: {options.plot}", file=sys.stderr if options.json else sys.stdout)


if __name__ == "__main__":
    main()
