"""Images per second of one loading worker, beside the pipeline of transformers' official example.

    python benchmarks/loading.py data/camvid            # a folder of images and masks, and synthetic 2048x1024 ones
    python benchmarks/loading.py --pairs 40 --json

Both sides read the same files with `datasets` and make the same batches of 512x512 crops: decoded, augmented,
normalised, stacked. Ours does what a recipe does by default: random resize, a crop of at most 75 % of one class, flip,
photometric distortion. Theirs does what examples/pytorch/semantic-segmentation/run_semantic_segmentation.py of
transformers does: pad, crop, flip. (Its PadIfNeeded has an argument that albumentations 2 no longer knows; here it pads
masks with 255, as its comment wants.) The sides alternate; the ratio is the median over pairs of batches.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import albumentations as A
import numpy as np
import torch
from albumentations.pytorch import ToTensorV2
from datasets import Dataset
from PIL import Image
from tqdm.auto import tqdm

from segtune.data.config import TransformConfig
from segtune.data.dataset import DatasetConfig, find_label_map, load_segmentation_dataset
from segtune.data.samples import SegmentationSamples
from segtune.data.transforms import TrainTransform

CROP = 512
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Batch = Callable[[list[int]], Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, help="of images and masks, with classes.json")
    parser.add_argument("--pairs", type=int, default=30, help="of batches, one of each side")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    torch.set_num_threads(1)  # as in a worker
    with tempfile.TemporaryDirectory() as temporary:
        synthetic = Path(temporary) / "synthetic 2048x1024"
        write_synthetic(synthetic)
        results = [measure(folder, options.pairs, options.batch_size) for folder in (*options.folders, synthetic)]
    print(json.dumps({"results": results}) if options.json else "\n".join(map(describe, results)))


def measure(folder: Path, pairs: int, batch_size: int) -> dict[str, Any]:
    """Both sides on the same batches, in turn."""
    dataset = load_segmentation_dataset(folder, val_fraction=0)["train"]
    label_map = find_label_map(DatasetConfig(path=str(folder)))
    ours = our_batches(SegmentationSamples(dataset, label_map, TrainTransform(TransformConfig(), 255), seed=0))
    sides = {"segtune": ours, "example": their_batches(dataset)}
    order = np.random.default_rng(0).permutation(pairs * batch_size) % len(dataset)
    batches = order.reshape(pairs, batch_size).tolist()
    for run in sides.values():
        run(batches[0])  # warm up
    seconds: dict[str, list[float]] = {"segtune": [], "example": []}
    for number, indices in enumerate(tqdm(batches, folder.name)):
        for side in list(sides)[:: 1 if number % 2 else -1]:
            start = time.process_time()
            sides[side](indices)
            seconds[side].append(time.process_time() - start)
    ratios = [theirs / mine for mine, theirs in zip(seconds["segtune"], seconds["example"], strict=True)]
    rates = {side: round(batch_size / statistics.median(times), 1) for side, times in seconds.items()}
    quartiles = [round(float(value), 3) for value in np.quantile(ratios, [0.25, 0.5, 0.75])]
    return {"data": folder.name, "images_per_second": rates, "ratio": quartiles[1], "ratio_quartiles": quartiles[::2]}


def describe(result: dict[str, Any]) -> str:
    rates, (low, high) = result["images_per_second"], result["ratio_quartiles"]
    return (
        f"{result['data']}: segtune {rates['segtune']} images/s, official example {rates['example']} images/s, "
        f"ratio {result['ratio']} (quartiles {low} to {high})"
    )


def our_batches(samples: SegmentationSamples) -> Batch:
    return lambda indices: samples.__getitems__([(0, index) for index in indices])


def their_batches(dataset: Dataset) -> Batch:
    """The example's pipeline as its Trainer runs it: a transform of the dataset, then a collator that stacks."""
    augment = A.Compose(
        [
            A.PadIfNeeded(CROP, CROP, border_mode=0, fill_mask=255, p=1.0),
            A.RandomCrop(CROP, CROP, p=1.0),
            A.HorizontalFlip(p=0.5),
            A.Normalize(MEAN, STD, p=1.0),
            ToTensorV2(),
        ]
    )

    def transform(rows: dict[str, list[Any]]) -> dict[str, torch.Tensor]:
        done = [
            augment(image=np.array(image.convert("RGB")), mask=np.array(mask))
            for image, mask in zip(rows["image"], rows["mask"], strict=True)
        ]
        pixel_values = torch.stack([sample["image"] for sample in done]).to(torch.float)
        return {"pixel_values": pixel_values, "labels": torch.stack([sample["mask"] for sample in done]).long()}

    transformed = dataset.with_transform(transform)

    def run(indices: list[int]) -> dict[str, torch.Tensor]:
        rows = transformed.__getitems__(indices)  # what a DataLoader asks for
        return {key: torch.stack([row[key] for row in rows]) for key in ("pixel_values", "labels")}

    return run


def write_synthetic(folder: Path, count: int = 16) -> None:
    """Photograph-like pictures of 2048x1024: smooth noise with grain as JPEG, regions of 19 classes as PNG."""
    generator = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (folder / kind / "train").mkdir(parents=True)
    for number in range(count):
        coarse = Image.fromarray(generator.integers(0, 256, (32, 64, 3), dtype=np.uint8)).resize((2048, 1024), 3)
        grain = generator.normal(0, 6, (1024, 2048, 3))
        image = Image.fromarray((np.asarray(coarse) + grain).clip(0, 255).astype(np.uint8))
        image.save(folder / "images" / "train" / f"{number:02}.jpg", quality=92)
        regions = generator.integers(0, 19, (16, 32), dtype=np.uint8)
        mask = Image.fromarray(regions).resize((2048, 1024), 0).rotate(number, fillcolor=255)
        mask.save(folder / "masks" / "train" / f"{number:02}.png")
    (folder / "classes.json").write_text(json.dumps({"classes": [f"class {i}" for i in range(19)], "ignore_id": 255}))


if __name__ == "__main__":
    main()
