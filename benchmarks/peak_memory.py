"""The most memory that a process needs for the mask of one large image: in PyTorch, and by the product graphs.

    python benchmarks/peak_memory.py --side 2048 --labels 150

A B0 of random weights is exported to ONNX and OpenVINO; each way then runs in a process of its own, on one image:
transformers and segtune in PyTorch, the others without. Told are the resident memory with the model loaded and at most,
as Linux counts both, and the seconds until the mask.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

WAYS = ("transformers", "segtune", "ONNX Runtime", "OpenVINO")
LIMIT = 600  # seconds for a way
Answer = Callable[[np.ndarray], np.ndarray]  # an image (H, W, 3) uint8 -> its mask (H, W)


def write_models(folder: Path, labels: int) -> None:
    """A B0 of random weights in `best`, and its product graphs."""
    import torch

    from segtune.engines.attention_blocks import attend_in_blocks
    from segtune.engines.onnx_model import logits_model
    from segtune.export.product import product_model
    from segtune.export.targets import save_onnx, save_openvino
    from segtune.segformer.configuration_segformer import SegformerConfig
    from segtune.segformer.image_processing_segformer import SegformerImageProcessor
    from segtune.segformer.modeling_segformer import SegformerForSemanticSegmentation

    torch.manual_seed(0)
    model = SegformerForSemanticSegmentation(SegformerConfig(num_labels=labels)).eval()
    processor = SegformerImageProcessor(do_resize=False)
    model.save_pretrained(folder / "best")
    processor.save_pretrained(folder / "best")
    network = logits_model(model)
    save_onnx(product_model(attend_in_blocks(network), processor), folder / "product.onnx")
    save_openvino(product_model(network, processor), folder / "product.xml", {})


def open_model(way: str, folder: Path, threads: int) -> Answer:
    """What makes masks, with nothing else of segtune loaded where it needs nothing."""
    if way == "ONNX Runtime":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(folder / "product.onnx", options, providers=["CPUExecutionProvider"])
        return lambda image: session.run(["mask"], {"image": image})[0]
    if way == "OpenVINO":
        import openvino

        settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
        compiled = openvino.Core().compile_model(folder / "product.xml", "CPU", settings)
        return lambda image: np.array(compiled({"image": image})["mask"])
    import torch

    torch.set_num_threads(threads)
    if way == "transformers":
        return _transformers(folder / "best")
    from segtune.inference.processor import load_processor
    from segtune.inference.segmenter import Segmenter
    from segtune.segformer.loading import load_model

    model = load_model(str(folder / "best")).eval()
    segmenter = Segmenter(model, load_processor(model), precision="fp32")
    return lambda image: segmenter(image).labels


def _transformers(checkpoint: Path) -> Answer:
    """Processor, network, and logits of full size for an argmax: as its documentation predicts."""
    import torch
    import transformers

    processor = transformers.SegformerImageProcessor.from_pretrained(checkpoint)
    model = transformers.SegformerForSemanticSegmentation.from_pretrained(checkpoint).eval()

    @torch.inference_mode()
    def answer(image: np.ndarray) -> np.ndarray:
        outputs = model(**processor(image, return_tensors="pt"))
        mask: np.ndarray = processor.post_process_semantic_segmentation(outputs, target_sizes=[image.shape[:2]])[
            0
        ].numpy()
        return mask

    return answer


def measure(way: str, folder: Path, side: int, threads: int) -> dict[str, Any]:
    """Megabytes of this process, with the model loaded and at most, and the seconds that the image took."""
    patches = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    image = np.asarray(Image.fromarray(patches).resize((side, side), Image.Resampling.BICUBIC))
    answer = open_model(way, folder, threads)
    loaded = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forgets the peak of loading
    start = time.perf_counter()
    mask = answer(image)
    seconds = time.perf_counter() - start
    return {"loaded": loaded, "peak": _memory("VmHWM"), "seconds": round(seconds, 1), "classes": len(np.unique(mask))}


def _memory(entry: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{entry}:")) // 1024


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=2048, help="of the image, in pixels")
    parser.add_argument("--labels", type=int, default=150)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.way:
        print(json.dumps(measure(arguments.way, arguments.folder, arguments.side, arguments.threads)))
        return
    with tempfile.TemporaryDirectory() as name:
        write_models(Path(name), arguments.labels)
        print("| way | model loaded, MB | at most, MB | for the image, MB | s |\n|---|---|---|---|---|", flush=True)
        # Where other processes compute, threads that spin while they wait cost minutes.
        environment = {"OMP_WAIT_POLICY": "PASSIVE"} | os.environ
        for way in WAYS:
            words = [sys.executable, *sys.argv, "--way", way, "--folder", name]
            try:
                done = subprocess.run(
                    words, stdout=subprocess.PIPE, text=True, check=False, env=environment, timeout=LIMIT
                )
            except subprocess.TimeoutExpired:
                print(f"| {way} | not done after {LIMIT} s | | | |", flush=True)
                continue
            if done.returncode:
                print(f"| {way} | ended with {done.returncode} | | | |", flush=True)
                continue
            found = json.loads(done.stdout)
            added = found["peak"] - found["loaded"]
            print(f"| {way} | {found['loaded']} | {found['peak']} | {added} | {found['seconds']} |", flush=True)


if __name__ == "__main__":
    main()
