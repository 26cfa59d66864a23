"""A training from the command line, against the loop of transformers' example for semantic segmentation.

    python benchmarks/end_to_end.py --data ../shared/data/camvid --threads 2

One side is `segtune train`, the other the recipe of `run_semantic_segmentation_no_trainer.py`, written anew: a
DataLoader over a `datasets.Dataset` with Albumentations' pad, crop, flip and normalise; Accelerate; AdamW and a rate
that falls to 0 in a straight line; the model's own loss; after each epoch the logits upsampled, the argmax, and
evaluate's formula of the mean IoU. Both sides have the same data, shape of network from random weights, crops, batch,
steps and optimiser, and whole pictures at their own size in evaluations (the example squeezes them to squares), each in
a process of its own, as people start it: threads wait and memory is kept as PyTorch has it, or as `segtune train` does.

First both make a few steps and one evaluation, in turn, which gives images per second (loading, and an evaluation after
each epoch, included), seconds of an evaluation and peak memory. Then each trains as many steps as fit `--seconds`, and
its weights are scored on the test split, both by segtune.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from segtune.recipe.recipe import Recipe, load_recipe

BAR = 2.5  # times the images per second
SIDES = ("segtune", "transformers")


def changes(options: argparse.Namespace) -> list[str]:
    """What makes the recipe that of the example: its augmentation, its optimiser, and nothing beside training."""
    return [
        *([f"dataset.path={options.data}"] if options.data else []),
        "model.name=null",
        *(f"transforms.{key}" for key in (f"crop_size={options.size}", "scale=[1,1]", "photometric=false")),
        *(f"training.{key}" for key in (f"batch_size={options.batch_size}", f"learning_rate={options.learning_rate}")),
        *(f"training.{key}" for key in ("head_lr_multiplier=1", "warmup_steps=0", "schedule=poly", "num_workers=0")),
        *(f"training.{key}" for key in ("overlays=0", "report=false", "save_every=0", "log_every=1", "device=cpu")),
        *options.changes,
    ]


# --- one training of each side ---------------------------------------------------------------------------------------


def train_segtune(recipe: str, given: Sequence[str], steps: int, every: int, folder: Path) -> dict[str, float]:
    """Trains by the command; the figures of `metrics.jsonl`."""
    words = [f"training.max_steps={steps}", f"training.eval_every={every}", f"training.output_dir={folder}"]
    subprocess.run([sys.executable, "-m", "segtune", "-q", "train", recipe, *given, *words], check=True, stdout=2)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    images = load_recipe(recipe, given).training.batch_size
    training = sum(images / line["images_per_second"] for line in lines if "loss" in line)
    evaluations = sum("mean_iou" in line for line in lines)
    seconds = lines[-1]["seconds"]
    return figures(training, seconds - training, evaluations, steps, lines[-1]["peak_memory_mb"])


def figures(training: float, evaluating: float, evaluations: int, steps: int, peak: float) -> dict[str, float]:
    return {
        "step_s": training / steps,
        "evaluation_s": evaluating / max(evaluations, 1),
        "seconds": training + evaluating,
        "peak_memory_mb": peak,
    }


def train_transformers(recipe: str, given: Sequence[str], steps: int, every: int, folder: Path) -> dict[str, float]:
    """Trains by the loop of the example, in a fresh process."""
    job = {"recipe": recipe, "given": list(given), "steps": steps, "every": every, "folder": str(folder)}
    words = [sys.executable, __file__, "--job", json.dumps(job)]
    done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


TRAIN: dict[str, Callable[..., dict[str, float]]] = {"segtune": train_segtune, "transformers": train_transformers}


def example_loop(recipe: Recipe, steps: int, every: int, folder: Path) -> dict[str, float]:
    """The example's training; its weights and a processor are saved in `folder`."""
    import transformers
    from accelerate import Accelerator
    from torch.utils.data import DataLoader

    from segtune.data.dataset import open_dataset
    from segtune.inference.processor import processor_from_transforms
    from segtune.training.distributed import peak_memory_mb
    from segtune.training.model import build_model

    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(recipe.training.seed)
    dataset, label_map = open_dataset(recipe.dataset)
    ours = build_model(recipe.model, label_map, recipe.training.seed)
    fields = {key: value for key, value in ours.config.to_dict().items() if key != "label_map"}
    model = transformers.SegformerForSemanticSegmentation(transformers.SegformerConfig.from_dict(fields))
    batch_size, ignored = recipe.training.batch_size, label_map.ignore_index
    options: dict[str, Any] = {"batch_size": batch_size, "collate_fn": stacked}
    train, evaluation = transforms(recipe, ignored)
    training = DataLoader(prepared(dataset["train"], label_map, train), shuffle=True, **options)
    validation = DataLoader(prepared(dataset["val"], label_map, evaluation), **options)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.training.learning_rate)
    schedule = transformers.get_scheduler("polynomial", optimizer, 0, steps)
    accelerator = Accelerator(cpu=True)
    model, optimizer, training, validation, schedule = accelerator.prepare(
        model, optimizer, training, validation, schedule
    )
    begin, evaluating, evaluations, step = time.perf_counter(), 0.0, 0, 0
    while step < steps:
        model.train()
        for batch in training:
            loss = model(**batch).loss
            accelerator.backward(loss)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            step += 1
            if step % every == 0 or step == steps:
                start = time.perf_counter()
                score(accelerator, model, validation, label_map.num_labels, ignored)
                model.train()
                evaluating, evaluations = evaluating + time.perf_counter() - start, evaluations + 1
            if step == steps:
                break
    seconds = time.perf_counter() - begin
    accelerator.unwrap_model(model).save_pretrained(folder / "best")
    processor_from_transforms(recipe.transforms, recipe.evaluation).save_pretrained(folder / "best")
    return figures(seconds - evaluating, evaluating, evaluations, steps, peak_memory_mb("cpu"))


def transforms(recipe: Recipe, ignored: int) -> tuple[Any, Any]:
    """Of training, and of evaluation."""
    import albumentations as A
    from albumentations.pytorch import ToTensorV2

    size, settings = recipe.transforms.crop_size, recipe.transforms
    height, width = (size, size) if isinstance(size, int) else size
    last = [A.Normalize(settings.mean, settings.std, max_pixel_value=255.0), ToTensorV2()]
    pad = A.PadIfNeeded(height, width, border_mode=0, fill=0, fill_mask=ignored)
    return A.Compose([pad, A.RandomCrop(height, width), A.HorizontalFlip(p=0.5), *last]), A.Compose(last)


def prepared(rows: Any, label_map: Any, transform: Any) -> Any:
    """The rows with `pixel_values` and `labels`, made when they are asked for."""
    from segtune.data.lazy_rows import decoded, undecoded
    from segtune.data.samples import read_pair

    class Prepared(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(rows)

        def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
            image, labels = read_pair(decoded(undecoded(rows)[number]), label_map)
            made = transform(image=np.ascontiguousarray(image), mask=labels)
            return {"pixel_values": made["image"], "labels": made["mask"].long()}

    return Prepared()


def stacked(samples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {key: torch.stack([sample[key] for sample in samples]) for key in samples[0]}


def score(accelerator: Any, model: torch.nn.Module, batches: Any, num_labels: int, ignored: int) -> float:
    """The mean IoU as the example and evaluate's formula compute it."""
    model.eval()
    totals = np.zeros((3, num_labels))
    for batch in batches:
        with torch.no_grad():
            logits = model(**batch).logits
        size = batch["labels"].shape[-2:]
        found = torch.nn.functional.interpolate(logits, size=size, mode="bilinear", align_corners=False).argmax(1)
        found, labels = accelerator.gather_for_metrics((found, batch["labels"]))
        for prediction, reference in zip(found.numpy(), labels.numpy(), strict=True):
            valid = reference != ignored
            prediction, reference = prediction[valid], reference[valid]
            maps = (prediction[prediction == reference], prediction, reference)
            totals += [np.histogram(ids, bins=num_labels, range=(0, num_labels - 1))[0] for ids in maps]
    union = totals[1] + totals[2] - totals[0]
    return float(np.nanmean(totals[0] / np.where(union == 0, np.nan, union)))


# --- both, in turn ---------------------------------------------------------------------------------------------------


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """All figures, JSON-able."""
    from segtune.data.dataset import open_dataset

    given = changes(options)
    recipe = load_recipe(options.recipe, given)
    epoch = max(1, len(open_dataset(recipe.dataset)[0]["train"]) // options.batch_size)
    rounds: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as place:
        for number in range(options.rounds):
            for side in SIDES if number % 2 else SIDES[::-1]:
                folder = Path(place) / f"{side}-{number}"
                rounds[side].append(TRAIN[side](options.recipe, given, options.steps, options.steps, folder))
                print(side, json.dumps(rounds[side][-1]), file=sys.stderr, flush=True)
        result: dict[str, Any] = {"steps_of_an_epoch": epoch, "threads": torch.get_num_threads()}
        for side in SIDES:
            rows = [row | {"images_per_second": rate(row, epoch, options.batch_size)} for row in rounds[side]]
            result[side] = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
        rates = [[rate(row, epoch, options.batch_size) for row in rounds[side]] for side in SIDES]
        result["ratio"] = statistics.median(a / b for a, b in zip(*rates, strict=True))
        for side in SIDES if options.seconds else ():
            folder = Path(place) / f"{side}-long"
            steps = max(1, round(options.seconds * result[side]["images_per_second"] / options.batch_size))
            row = TRAIN[side](options.recipe, given, steps, epoch, folder)
            result[side] |= {"steps": steps, "trained_s": row["seconds"], "test_miou": test_miou(folder, recipe)}
    return result


def rate(row: dict[str, float], epoch: int, batch_size: int) -> float:
    """Images per second of a training that evaluates once an epoch."""
    return batch_size / (row["step_s"] + row["evaluation_s"] / epoch)


def test_miou(folder: Path, recipe: Recipe) -> float:
    from segtune.inference.evaluate_checkpoint import evaluate_checkpoint

    found = evaluate_checkpoint(folder / "best", recipe, split="test", device="cpu", progress=False)
    return float(found.scores["mean_iou"])


def table(result: dict[str, Any]) -> str:
    """The figures of both, side by side, and whether the bar is met."""
    rows = {
        "images_per_second": ("images per second", "{:.2f}"),
        "step_s": ("seconds of a step", "{:.2f}"),
        "evaluation_s": ("seconds of an evaluation", "{:.1f}"),
        "peak_memory_mb": ("peak memory, MB", "{:.0f}"),
        "steps": ("steps in equal time", "{}"),
        "trained_s": ("seconds trained", "{:.0f}"),
        "test_miou": ("test mIoU then", "{:.4f}"),
    }
    lines = [f"{'':<28}{'segtune':>12}{'transformers':>14}"]
    for key, (name, form) in rows.items():
        if key in result["segtune"]:
            mine, theirs = (form.format(result[side][key]) for side in SIDES)
            lines.append(f"{name:<28}{mine:>12}{theirs:>14}")
    verdict = "met" if result["ratio"] >= BAR else "missed"
    lines.append(f"{result['ratio']:.2f} times the images per second: the bar of {BAR} is {verdict}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--recipe", default="camvid", help="of segtune, which names network and data (default: camvid)")
    add("--data", help="dataset.path of the recipe")
    add("--size", type=int, default=224, help="side of the crops in pixels (default: 224)")
    add("--batch-size", type=int, default=8, help="images in a step (default: 8)")
    add("--learning-rate", type=float, default=6e-4, help="of both (default: 6e-4, for random weights)")
    add("--steps", type=int, default=6, help="of a training that is timed (default: 6)")
    add("--rounds", type=int, default=3, help="of timed trainings of both (default: 3)")
    add("--seconds", type=float, default=120.0, help="of the trainings that are scored; 0 for none (default: 120)")
    add("--threads", type=int, help="of PyTorch in each process (default: as it finds them)")
    add("--json", action="store_true", help="print one JSON object and nothing else")
    add("changes", nargs="*", metavar="section.key=value", help="further changes to the recipe")
    add("--job", help=argparse.SUPPRESS)  # JSON, of a fresh process that this one starts
    options = parser.parse_args(arguments)
    if options.threads:
        os.environ["OMP_NUM_THREADS"] = str(options.threads)
        torch.set_num_threads(options.threads)
    if options.job:
        job = json.loads(options.job)
        recipe = load_recipe(job["recipe"], job["given"])
        print(json.dumps(example_loop(recipe, job["steps"], job["every"], Path(job["folder"]))))
        return
    result = compare(options)
    print(json.dumps(result) if options.json else table(result))


if __name__ == "__main__":
    main()
