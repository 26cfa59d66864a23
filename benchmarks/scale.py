"""Pictures per second of `segtune predict`: one process, several that share a folder, and Ray; then 10^8 on paper.

    python benchmarks/scale.py --pictures 200 --side 512 --workers 2

Each way is timed twice: with all masks to be made, and called again with none (what it takes to start). The difference
is what the pictures take, on Ray with the start of its cluster. Every worker has one thread; Ray has one for each core.
On paper, a picture takes the processor time of one process, which other work on the machine changes little.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from segtune.segformer.configuration_segformer import SegformerConfig
from segtune.segformer.image_processing_segformer import SegformerImageProcessor
from segtune.segformer.modeling_segformer import SegformerForSemanticSegmentation

CORPUS = 10**8
WORKERS = (1, 64, 512, 4096)
HEAD = """| way | workers | start, s | pictures per second | of one worker | processor: start of one, s | a picture, s |
|---|---|---|---|---|---|---|"""


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


class Cost(NamedTuple):
    """Seconds: until all commands have ended, and of processors, without those of a Ray cluster."""

    wall: float
    processor: float


def cost(commands: list[tuple[list[str], dict[str, str]]]) -> Cost:
    """Of commands that begin together."""
    begun, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    started = [
        subprocess.Popen(words, env={**os.environ, **variables}, stdout=subprocess.DEVNULL)
        for words, variables in commands
    ]
    codes = [process.wait() for process in started]
    if any(codes):
        sys.exit(f"exit codes {codes}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Cost(time.perf_counter() - begun, used)


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
        print(HEAD, flush=True)
        rate = of_picture = 0.0
        for way, workers in [("processes", 1), *((way, arguments.workers) for way in arguments.ways.split(","))]:
            many = (os.cpu_count() or 1) if way == "ray" else workers
            commands = commands_of(way, folder, workers)
            total, start = cost(commands), cost(commands)
            own = arguments.pictures / (total.wall - start.wall) / many
            used = (total.processor - start.processor) / arguments.pictures
            rate, of_picture = rate or own, of_picture or used
            processor = ("", "") if way == "ray" else (f"{start.processor / many:.1f}", f"{used:.3f}")
            cells = (way, many, f"{start.wall:.1f}", f"{own * many:.2f}", f"{own / rate:.2f}", *processor)
            print(f"| {' | '.join(map(str, cells))} |", flush=True)
    print(f"\n| cores | {CORPUS:.0e} pictures on paper |\n|---|---|")
    for workers in WORKERS:
        hours = CORPUS * of_picture / workers / 3600
        print(f"| {workers} | {hours / 24:.1f} days |" if hours > 48 else f"| {workers} | {hours:.1f} hours |")


if __name__ == "__main__":
    main()
