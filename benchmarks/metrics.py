"""Time and memory of the metrics: python benchmarks/metrics.py [--pairs 500]

Counting is compared with the formula of evaluate's mean_iou (masks and three histograms an image), pair by pair on the
same arrays of 1024×2048 pixels with 19 classes, in one thread: maps of regions, as real ones are, and pure noise, as
bytes and as the int64 that evaluate takes. Then the peak memory of a fresh process that counts few or many pairs, the
cost of everything that a detailed evaluation counts, and the time of 10,000 bootstrap resamples of 2,000 images.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from segtune.evaluation.bootstrap import RESAMPLES
from segtune.evaluation.confusion import count_pairs
from segtune.evaluation.evaluation import Evaluation
from segtune.evaluation.uncertainty import compare, intervals
from segtune.training.distributed import peak_memory_mb

NUM_LABELS, IGNORED, SHAPE, CELL = 19, 255, (1024, 2048), 64


def pair(seed: int, kind: str, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """A prediction and a reference of which a tenth is ignored."""
    rng = np.random.default_rng(seed)
    if kind == "noise":
        prediction, reference = rng.integers(0, NUM_LABELS, (2, *SHAPE), dtype=np.uint8)
    else:
        small = rng.integers(0, NUM_LABELS, (SHAPE[0] // CELL, SHAPE[1] // CELL), dtype=np.uint8)
        reference = small.repeat(CELL, 0).repeat(CELL, 1)
        prediction = np.roll(reference, (3, 5), (0, 1))  # wrong along all boundaries
    reference[: SHAPE[0] // 10] = IGNORED
    return prediction.astype(dtype), reference.astype(dtype)


def formula_of_evaluate(prediction: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, ...]:
    """Correct, reference and predicted pixels of each class, as evaluate's mean_iou counts them."""
    valid = reference != IGNORED
    prediction, reference = prediction[valid], reference[valid]
    maps = (prediction[prediction == reference], reference, prediction)
    return tuple(np.histogram(ids, bins=NUM_LABELS, range=(0, NUM_LABELS - 1))[0] for ids in maps)


def timed(function: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    start = time.perf_counter()
    result = function(*arguments)
    return result, time.perf_counter() - start


def compare_speed(pairs: int, kind: str, dtype: str) -> None:
    seconds, totals = [0.0, 0.0], np.zeros((2, 3, NUM_LABELS), dtype=np.int64)
    for seed in range(pairs):
        maps = pair(seed, kind, dtype)
        confusion, ours = timed(count_pairs, *maps, NUM_LABELS, IGNORED)
        theirs, reference = timed(formula_of_evaluate, *maps)
        own = (confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0))
        totals += np.stack([np.stack(own), np.stack(theirs)])
        seconds = [seconds[0] + ours, seconds[1] + reference]
    assert (totals[0] == totals[1]).all()
    print(
        f"{kind}, {dtype}: {pairs} pairs in {seconds[0]:.2f} s, the formula takes {seconds[1]:.2f} s: "
        f"{seconds[1] / seconds[0]:.1f} times faster",
        flush=True,
    )


def peak_memory(pairs: int) -> float:
    """MB of a fresh process that counts so many pairs image by image."""
    words = [sys.executable, __file__, "--count", str(pairs)]
    return float(subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True).stdout)


def count(pairs: int) -> None:
    evaluation = Evaluation([str(k) for k in range(NUM_LABELS)], IGNORED)
    for seed in range(pairs):
        prediction, reference = pair(seed, "regions", "uint8")
        evaluation.add(str(seed), reference, prediction)
    evaluation.scores()
    print(peak_memory_mb("cpu"))


def time_details() -> None:
    evaluation = Evaluation([str(k) for k in range(NUM_LABELS)], IGNORED, detailed=True)
    prediction, reference = pair(0, "regions", "uint8")
    confidence = np.random.default_rng(0).uniform(0.2, 1, SHAPE).astype(np.float32)
    seconds = [timed(evaluation.add, str(i), reference, prediction, confidence)[1] for i in range(5)]
    print(f"boundaries, object sizes and calibration of an image: {1000 * np.median(seconds):.0f} ms", flush=True)


def time_bootstrap(images: int, num_labels: int) -> None:
    evaluations = []
    for seed in range(2):
        evaluation, rng = Evaluation([str(k) for k in range(num_labels)]), np.random.default_rng(0)
        for image in range(images):
            counts = np.zeros((num_labels, 3), dtype=np.int64)
            present = rng.choice(num_labels, 12, replace=False)
            counts[present, 1:] = rng.integers(1000, 20_000, (12, 1))
            counts[:, 0] = counts[:, 1] * np.random.default_rng((seed, image)).uniform(0.3, 1, num_labels)
            evaluation.counts.append(f"{image:06}", counts)
        evaluations.append(evaluation)
    what = f"{RESAMPLES} resamples of {images} images × {num_labels} classes"
    print(f"{what}: {timed(intervals, evaluations[0])[1]:.2f} s; compare: {timed(compare, *evaluations)[1]:.2f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=500, help="of masks that are counted (default: 500)")
    parser.add_argument("--count", type=int, help=argparse.SUPPRESS)  # of a fresh process that this one starts
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.count:
        count(arguments.count)
        return
    for kind in ("regions", "noise"):
        for dtype in ("uint8", "int64"):
            compare_speed(arguments.pairs, kind, dtype)
    few = max(1, arguments.pairs // 10)
    memory = [peak_memory(pairs) for pairs in (few, arguments.pairs)]
    print(f"peak memory of a process: {memory[0]:.0f} MB for {few} pairs, {memory[1]:.0f} MB for {arguments.pairs}")
    time_details()
    time_bootstrap(2000, 150)


if __name__ == "__main__":
    main()
