"""What a busy core costs: python benchmarks/busy_machine.py [--repeats 9] [--threads 2]

Each path of the library is timed alone, and beside one process that keeps a core busy, as a loading process or a
second run does; the two in turn, so that a machine that slows down slows both. Bars: no path takes more than 2.5 times
its time alone, and counting is never slower than the formula of evaluate's mean_iou (benchmarks/metrics.py).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from metrics import IGNORED, NUM_LABELS, formula_of_evaluate, pair

from segtune.data.config import TransformConfig
from segtune.data.dataset import DatasetConfig, open_dataset
from segtune.data.loader import TrainingBatches
from segtune.evaluation.confusion import count_pairs
from segtune.inference.evaluate import evaluate_model
from segtune.inference.predict import predict
from segtune.segformer.configuration_segformer import SegformerConfig
from segtune.segformer.image_processing_segformer import SegformerImageProcessor
from segtune.segformer.modeling_segformer import SegformerForSemanticSegmentation
from segtune.training.optim import adamw, parameter_groups

LIMIT = 2.5
SECONDS = 0.25  # of a path's calls that make one sample, at least


def paths(variant: str, size: int) -> dict[str, Callable[[], Any]]:
    """What is timed, by name."""
    rows, label_map = open_dataset(DatasetConfig(path="segtune://earth"))
    torch.manual_seed(0)
    model = SegformerForSemanticSegmentation(SegformerConfig.from_variant(variant, **label_map.config_fields())).eval()
    pixels, labels = torch.randn(2, 3, size, size), torch.randint(label_map.num_labels, (2, size, size))
    optimizer = adamw(parameter_groups(model, 1e-6, 0.01, 1.0), (0.9, 0.999))
    processor = SegformerImageProcessor(do_resize=False)
    val = rows["val"].select(range(4))
    photo = val[0]["image"]
    steps = TrainingBatches(rows["train"], label_map, TransformConfig(crop_size=size), 0, batch_size=2)
    loaded = steps.steps(0, 1_000_000)

    def forward() -> None:
        with torch.inference_mode():
            model.eval()(pixels[:1])

    def step() -> None:
        model.train()(pixels, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    found: dict[str, Callable[[], Any]] = {
        "forward pass": forward,
        "training step of 2 crops": step,
        "loading a batch of 2": partial(next, loaded),
        "prediction of a tile": partial(predict, model, photo, processor=processor),
        "prediction in windows": partial(predict, model, photo, processor=processor, window=96),
        "evaluation of 4 tiles": partial(evaluate_model, model, val, label_map, processor, progress=False),
    }
    for kind in ("regions", "noise"):
        maps = pair(0, kind, "uint8")
        found[f"counting {kind}"] = partial(count_pairs, *maps, NUM_LABELS, IGNORED)
        found[f"evaluate's formula, {kind}"] = partial(formula_of_evaluate, *maps)
    return found


def burn() -> None:
    """Works as long as the process that started this one lives."""
    parent = multiprocessing.parent_process()
    while parent is not None and parent.is_alive():
        sum(range(1_000_000))


@contextmanager
def busy_process() -> Iterator[None]:
    """One more process, which keeps a core busy."""
    process = multiprocessing.get_context("spawn").Process(target=burn, daemon=True)
    process.start()
    time.sleep(1.0)
    try:
        yield
    finally:
        process.kill()
        process.join()


def sample(call: Callable[[], Any]) -> float:
    """Seconds of a call: the mean of as many as take a quarter of a second."""
    start, calls = time.perf_counter(), 0
    while calls == 0 or time.perf_counter() - start < SECONDS:
        call()
        calls += 1
    return (time.perf_counter() - start) / calls


def measure(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, dict[str, float]]:
    """Of each path: median seconds alone and beside the busy process, and the median of their paired ratios."""
    for call in calls.values():
        call()
    alone: dict[str, list[float]] = {name: [] for name in calls}
    beside: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            alone[name].append(sample(call))
        with busy_process():
            for name, call in calls.items():
                beside[name].append(sample(call))
    return {
        name: {
            "alone_s": statistics.median(alone[name]),
            "busy_s": statistics.median(beside[name]),
            "ratio": statistics.median(b / a for a, b in zip(alone[name], beside[name], strict=True)),
        }
        for name in calls
    }


def verdicts(found: dict[str, dict[str, float]]) -> list[str]:
    """What misses a bar, in words."""
    own = {name: row for name, row in found.items() if "formula" not in name}
    slow = {name: row["ratio"] for name, row in own.items() if row["ratio"] > LIMIT}
    missed = [f"{name} takes {ratio:.2f} times its time alone" for name, ratio in slow.items()]
    for kind in ("regions", "noise"):
        mine, theirs = found[f"counting {kind}"], found[f"evaluate's formula, {kind}"]
        slower = [key[:-2] for key in ("alone_s", "busy_s") if mine[key] > theirs[key]]
        missed += [f"counting {kind} is slower than the formula ({when})" for when in slower]
    return missed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="of each path, alone and beside (default: 5)")
    parser.add_argument("--threads", type=int, help="of PyTorch (default: as it finds them)")
    parser.add_argument("--variant", default="b0", help="of the network (default: b0)")
    parser.add_argument("--size", type=int, default=224, help="side of the crops in pixels (default: 224)")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    found = measure(paths(options.variant, options.size), options.repeats)
    if options.json:
        print(json.dumps({"threads": torch.get_num_threads(), "paths": found, "missed": verdicts(found)}))
        return
    print(f"{options.variant}, {options.size}², {torch.get_num_threads()} threads{'':<12}alone       busy    ratio")
    for name, row in found.items():
        print(f"{name:<30}{1e3 * row['alone_s']:>9.1f} ms{1e3 * row['busy_s']:>8.1f} ms{row['ratio']:>8.2f}")
    print("; ".join(verdicts(found)) or "every bar is met")


if __name__ == "__main__":
    if "OMP_WAIT_POLICY" not in os.environ:
        # It is read when torch is imported: waiting threads sleep, as in commands on a busy machine.
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | {"OMP_WAIT_POLICY": "PASSIVE"})
    main()
