"""Pictures per second of `segtune predict`: one process, several that share a folder, and Ray; then 10^8 on paper.

    python benchmarks/scale.py --pictures 200 --side 512 --workers 2

Each way is timed twice: with all masks to be made, and called again with none (what it takes to start). The difference
is what the pictures take, on Ray with the start of its cluster. Every worker has one thread.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from segtune.segformer.configuration_segformer import SegformerConfig
from segtune.segformer.image_processing_segformer import SegformerImageProcessor
from segtune.segformer.modeling_segformer import SegformerForSemanticSegmentation

CORPUS = 10**8
WORKERS = (1, 8, 64, 512, 4096)


def write_inputs(folder: Path, pictures: int, side: int, labels: int) -> None:
    """A B0 of random weights in `best`, and JPEGs in `in`."""
    torch.manual_seed(0)
    SegformerForSemanticSegmentation(SegformerConfig(num_labels=labels)).save_pretrained(folder / "best")
    SegformerImageProcessor(do_resize=False).save_pretrained(folder / "best")
    (folder / "in").mkdir()
    generator = np.random.default_rng(0)
    for number in range(pictures):
        small = Image.fromarray(generator.integers(0, 256, (32, 32, 3), dtype=np.uint8))
        small.resize((side, side), Image.Resampling.BICUBIC).save(folder / "in" / f"{number:06d}.jpg", quality=90)


def seconds(commands: list[tuple[list[str], dict[str, str]]]) -> float:
    """Until all of these commands have ended, which begin together."""
    begun = time.perf_counter()
    started = [subprocess.Popen(words, env={**os.environ, **variables}) for words, variables in commands]
    codes = [process.wait() for process in started]
    if any(codes):
        sys.exit(f"exit codes {codes}")
    return time.perf_counter() - begun


def commands_of(way: str, folder: Path, workers: int) -> list[tuple[list[str], dict[str, str]]]:
    """The commands of a way to predict all pictures, with their environments."""
    output = str(folder / f"out-{way}-{workers}")
    words = [sys.executable, "-m", "segtune", "predict", str(folder / "best"), str(folder / "in"), "--output", output]
    words += ["--resume", "--device", "cpu"]
    single = {"OMP_NUM_THREADS": "1"}
    if way == "ray":
        return [([*words, "--ray", "local"], single)]
    shares = [{"RANK": str(rank), "WORLD_SIZE": str(workers)} for rank in range(workers)]
    return [(words, single | share) for share in shares]


def main() -> None:
    """Print the two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--side", type=int, default=512, help="of a picture, in pixels")
    parser.add_argument("--labels", type=int, default=150)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--ways", default="processes,ray")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_inputs(folder, arguments.pictures, arguments.side, arguments.labels)
        print("| way | workers | start, s | pictures per second | of one worker |\n|---|---|---|---|---|", flush=True)
        rate = 0.0
        for way, workers in [("processes", 1), *((way, arguments.workers) for way in arguments.ways.split(","))]:
            commands = commands_of(way, folder, workers)
            total, start = seconds(commands), seconds(commands)
            own = arguments.pictures / (total - start) / workers
            rate = rate or own
            print(f"| {way} | {workers} | {start:.1f} | {own * workers:.2f} | {own / rate:.2f} |", flush=True)
    print(f"\n| workers | {CORPUS:.0e} pictures on paper |\n|---|---|")
    for workers in WORKERS:
        hours = CORPUS / rate / workers / 3600
        print(f"| {workers} | {hours / 24:.1f} days |" if hours > 48 else f"| {workers} | {hours:.1f} hours |")


if __name__ == "__main__":
    main()
