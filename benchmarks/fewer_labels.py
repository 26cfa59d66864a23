"""Whether what promises better models from fewer labels keeps that promise: arms of one budget, compared on CamVid.

    python benchmarks/fewer_labels.py --data ../shared/data/camvid --steps 300 --seeds 0 1 2 --arms a b

Every arm is trained by `segtune train camvid` from random weights of B0's shape (but for teachers), with the same
number of steps, crops of 224², batches of 8 and averaged weights, and scored on the test split. The arms of a
comparison have the same seeds, and so the same labelled images. Their difference is the mean over the seeds of the
difference in test mIoU; its interval is that of a paired bootstrap over the test images, in which all runs see the same
resample. It does not hold the spread of seeds, which stands beside it.

What is done lies in `--folder`, and is not done again. The result is `fewer-labels.json` there and, with `--page`, the
table between the markers of that page.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from segtune.data.dataset import load_segmentation_dataset
from segtune.data.lazy_rows import sample_ids
from segtune.evaluation.bootstrap import LEVEL, bootstrap
from segtune.evaluation.evaluation import PIXELS, Evaluation
from segtune.evaluation.scores import mean, ratio
from segtune.evaluation.uncertainty import expanded_level
from segtune.files import write_atomic

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
EVALUATION = "evaluation-test.npz"
COMMON = (
    "model.name=null",
    "transforms.crop_size=224",
    "training.batch_size=8",
    "training.learning_rate=6e-4",
    "training.head_lr_multiplier=1",
    "training.ema_decay=0.99",
    "training.eval_every=null",
    "training.report=false",
    "training.overlays=0",
    "training.save_every=0",
    "training.device=cpu",
)


@dataclass(frozen=True)
class Bench:
    """What all runs have in common: the data, where runs lie, and how long they train."""

    data: Path
    folder: Path
    steps: int
    recipe: str = "camvid"
    changes: tuple[str, ...] = ()
    teacher: str = "b2"
    teacher_steps: int = 0
    pretrain_steps: int = 0
    more: int = 50  # images that are chosen

    @property
    def images(self) -> Path:
        """The folder of the training images."""
        return self.data.absolute() / "images" / "train"

    def run_folder(self, name: str, seed: int) -> Path:
        """Where the run of an arm lies."""
        return self.folder / f"{name}-{self.steps}-{seed}"

    def splits(self) -> dict[str, list[str]]:
        """Split -> ids, as the data has them."""
        return {split: sample_ids(rows) for split, rows in load_segmentation_dataset(str(self.data)).items()}

    def eighth(self, seed: int) -> list[str]:
        """The ids of an eighth of the training images, drawn by the seed."""
        train = self.splits()["train"]
        drawn = np.random.default_rng(seed).permutation(len(train))[: max(1, round(len(train) / 8))]
        return sorted(train[number] for number in drawn)

    def only(self, name: str, seed: int, train: Sequence[str], *, val: bool = True) -> list[str]:
        """The setting by which these ids are all of train; val and test are those of the data, or val is left out."""
        path = self.folder / f"{name}-{seed}.json"
        splits = {split: ids for split, ids in self.splits().items() if val or split != "val"}
        write_atomic(path, json.dumps(splits | {"train": sorted(train)}))
        return [f"dataset.split_file={path.absolute()}"]

    def settings(self, seed: int, changes: Sequence[str], steps: int | None = None) -> list[str]:
        """Recipe and changes of a training."""
        base = [self.recipe, f"dataset.path={self.data.absolute()}", *COMMON, *self.changes, *changes]
        return [*base, f"training.max_steps={steps or self.steps}", f"training.seed={seed}"]

    def train(self, name: str, seed: int, changes: Sequence[str], steps: int | None = None, order: int = 0) -> Path:
        """Train a run and score its weights on the test split, unless that is done; returns its folder.

        Args:
            order: another one sees the images in another order.
        """
        run = self.run_folder(name, seed)
        if not (run / EVALUATION).is_file():
            settings = self.settings(seed + 1000 * order, changes, steps)
            segtune("train", *settings, f"training.output_dir={run}", "training.overwrite=true")
            self.score([run / "final"], run / "recipe.yaml", run)
        return run

    def score(self, checkpoints: Sequence[Path], recipe: Path, folder: Path) -> None:
        """Score one checkpoint, or several as an ensemble, on the test split; `folder` gets the evaluation."""
        words = [*map(str, checkpoints), str(recipe), "--split", "test", "--save", str(folder / EVALUATION)]
        segtune("evaluate", *words)


def segtune(*words: str) -> None:
    """Run a command of segtune; what it says goes to stderr."""
    print("segtune", *words, file=sys.stderr, flush=True)
    subprocess.run([sys.executable, "-m", "segtune", "-q", *words], check=True, stdout=2)


# --- the arms: name them here to add one ------------------------------------------------------------------------------


def few(bench: Bench, seed: int) -> Path:
    """An eighth of the labels."""
    return bench.train("few", seed, bench.only("few", seed, bench.eighth(seed)))


def few_and_unlabelled(bench: Bench, seed: int) -> Path:
    """The same eighth, and the folder of all training images without the labels of the others."""
    changes = [f"dataset.unlabelled={bench.images}", "training.semi={}"]
    return bench.train("few-and-unlabelled", seed, [*bench.only("few", seed, bench.eighth(seed)), *changes])


def few_from_pretrained(bench: Bench, seed: int) -> Path:
    """The same eighth, and an encoder that was pretrained on all training images."""
    steps = bench.pretrain_steps or bench.steps
    encoder = bench.folder.absolute() / f"pretrained-{steps}-{seed}"
    if not (encoder / "final").is_dir():
        kept = ("model.config=", "transforms.crop_size=")
        shared = [text for text in (*COMMON, *bench.changes) if text.startswith(kept)]
        own = [f"training.seed={seed}", "training.device=cpu", "training.save_every=0", "training.overwrite=true"]
        segtune("pretrain", str(bench.images), "--steps", str(steps), "--output", str(encoder), *shared, *own)
    changes = [*bench.only("few", seed, bench.eighth(seed)), f"model.name={encoder / 'final'}"]
    return bench.train(f"few-from-pretrained-{steps}", seed, changes)


def small(bench: Bench, seed: int) -> Path:
    """B0 on all labels."""
    return bench.train("small", seed, [])


def small_with_teacher(bench: Bench, seed: int) -> Path:
    """B0 on all labels and a teacher, which was trained on the same labels."""
    steps, larger = bench.teacher_steps or bench.steps, [f"model.variant={bench.teacher}"]
    name = f"teacher-{bench.teacher}-{steps}"
    teacher = bench.train(name, seed, larger, steps) / "final"
    return bench.train(f"small-with-{name}", seed, [f"training.distill={{teacher: {teacher.absolute()}}}"])


def ensemble(bench: Bench, seed: int) -> Path:
    """Five folds of the same eighth; the mean of the five models decides."""
    folder = bench.run_folder("folds", seed)
    if not (folder / EVALUATION).is_file():
        settings = bench.settings(seed, bench.only("folds", seed, bench.eighth(seed), val=False))
        segtune("crossval", *settings, "--folds", "5", "--output", str(folder))
        bench.score(sorted(folder.glob("folds/*/final")), folder / "recipe.yaml", folder)
    return folder


def further(bench: Bench, seed: int, number: int = 0) -> Path:
    """The model of the same eighth trained for a third of the steps more, in one of several orders of the images."""
    start = ["model.name=" + str((few(bench, seed) / "final").absolute()), "training.learning_rate=2e-4"]
    splits, steps = bench.only("few", seed, bench.eighth(seed)), max(1, bench.steps // 3)
    return bench.train(f"further-{number}", seed, [*splits, *start], steps, number)


def soup(bench: Bench, seed: int) -> Path:
    """The weights of four such models, averaged where that is better on the validation split."""
    runs = [further(bench, seed, number) for number in range(4)]
    folder = bench.run_folder("soup", seed)
    if not (folder / EVALUATION).is_file():
        words = [*(str(run / "final") for run in runs), str(runs[0] / "recipe.yaml")]
        segtune("soup", *words, "--output", str(folder), "--force")
        bench.score([folder], runs[0] / "recipe.yaml", folder)
    return folder


def pool(bench: Bench, seed: int) -> dict[str, Path]:
    """Id -> image, of the training images that are not in the eighth."""
    taken = set(bench.eighth(seed))
    files = sorted(path for path in bench.images.rglob("*") if path.is_file())
    ids = {path.relative_to(bench.images).with_suffix("").as_posix(): path for path in files}
    return {name: ids[name] for name in bench.splits()["train"] if name not in taken}


def chosen_at_random(bench: Bench, seed: int) -> Path:
    """The same eighth and 50 more images, drawn by the seed."""
    names = sorted(pool(bench, seed))
    drawn = np.random.default_rng(1000 + seed).permutation(len(names))[: bench.more]
    train = bench.eighth(seed) + [names[number] for number in drawn]
    return bench.train("random", seed, bench.only("random", seed, train))


def chosen(bench: Bench, seed: int) -> Path:
    """The same eighth and 50 more images, which `segtune select` chose by the model of the eighth."""
    folder, images = bench.folder / f"selection-{bench.steps}-{seed}", pool(bench, seed)
    if not (folder / "selection.json").is_file():
        words = ["--number", str(bench.more), "--output", str(folder), "--overwrite"]
        segtune("select", str(few(bench, seed) / "final"), *map(str, images.values()), *words)
    selection = json.loads((folder / "selection.json").read_text(encoding="utf-8"))
    taken = {Path(row["image"]).resolve() for row in selection["selected"]}
    train = bench.eighth(seed) + [name for name, path in images.items() if path.resolve() in taken]
    return bench.train("selected", seed, bench.only("selected", seed, train))


@dataclass(frozen=True)
class Comparison:
    """Two ways of training, of which the second is to be better.

    Attributes:
        arms: each makes the run of a seed, and returns its folder, which holds `evaluation-test.npz`.
    """

    what: str
    names: tuple[str, str]
    arms: tuple[Callable[[Bench, int], Path], Callable[[Bench, int], Path]]


COMPARISONS: dict[str, Comparison] = {
    "a": Comparison(
        "unlabelled pictures (`training.semi`)",
        ("1/8 of the labels", "and the other 7/8 without labels"),
        (few, few_and_unlabelled),
    ),
    "b": Comparison(
        "a larger teacher (`training.distill`)", ("B0 alone", "B0 with a teacher"), (small, small_with_teacher)
    ),
    "c": Comparison(
        "an ensemble (`segtune crossval`)", ("1/8 of the labels", "five folds of it together"), (few, ensemble)
    ),
    "soup": Comparison(
        "a soup (`segtune soup`)", ("1/8 of the labels, a third more steps", "four such, averaged"), (further, soup)
    ),
    "d": Comparison(
        "what to label next (`segtune select`)",
        ("1/8 of the labels and 50 at random", "and 50 that were selected"),
        (chosen_at_random, chosen),
    ),
    "e": Comparison(
        "a pretrained encoder (`segtune pretrain`)",
        ("1/8 of the labels", "from an encoder of all training images without labels"),
        (few, few_from_pretrained),
    ),
}


# --- the result -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """Of the runs of several seeds on the same images: the mean difference in mIoU and its interval."""

    first: list[float]
    second: list[float]
    estimate: float
    low: float
    high: float
    images: int
    names: tuple[str, str] = field(default=("", ""))


def difference(pairs: Sequence[tuple[Evaluation, Evaluation]]) -> Difference:
    """The paired bootstrap over test images of the mean difference over seeds.

    Raises:
        ValueError: the evaluations are of different images.
    """
    evaluations = [evaluation for pair in pairs for evaluation in pair]
    ids = sorted(evaluations[0].counts.ids)
    if any(sorted(evaluation.counts.ids) != ids for evaluation in evaluations):
        raise ValueError("the runs were scored on different images")
    counts = np.concatenate([iou_counts(evaluation, ids) for evaluation in evaluations], axis=1)  # (N, 2 · seeds · 2 K)

    def statistic(sums: np.ndarray) -> np.ndarray:
        scores = [mean(ratio(*np.split(part, 2, axis=-1))) for part in np.split(sums, len(evaluations), axis=-1)]
        return np.mean([second - first for first, second in zip(scores[::2], scores[1::2], strict=True)], axis=0)[
            ..., None
        ]

    found = bootstrap(counts, statistic, level=expanded_level(LEVEL, len(ids)))
    low, high = found.bca[0].tolist()
    first, second = ([float(pair[side].scores()["mean_iou"]) for pair in pairs] for side in (0, 1))
    return Difference(first, second, float(found.estimate[0]), low, high, len(ids))


def iou_counts(evaluation: Evaluation, ids: Sequence[str]) -> np.ndarray:
    """Intersection, then union, of each class in each image, `(N, 2 K)`, the images in the order of `ids`."""
    place = {name: number for number, name in enumerate(ids)}
    units = np.array([place[name] for name in evaluation.counts.ids])
    image, classes, correct, reference, prediction = evaluation.counts.rows(*PIXELS)
    num_labels = len(evaluation.names)
    counts = np.zeros((len(ids), 2 * num_labels))
    np.add.at(counts, (units[image], classes), correct)
    np.add.at(counts, (units[image], num_labels + classes), reference + prediction - correct)
    return counts


def verdict(row: Mapping[str, Any]) -> str:
    """What the interval says."""
    return "better" if row["low"] > 0 else "worse" if row["high"] < 0 else "no difference shown"


def markdown(result: Mapping[str, Any]) -> str:
    """The table of a result, with what it was made by."""
    lines = [
        f"`{result['command']}`",
        "",
        "| | | first: test mIoU by seed | second | difference | 95 % interval | |",
        "|---|---|---|---|---|---|---|",
    ]
    for key, row in result["comparisons"].items():
        first, second = (", ".join(f"{100 * value:.1f}" for value in row[side]) for side in ("first", "second"))
        lines.append(
            f"| ({key}) {row['what']} | {row['names'][0]}; {row['names'][1]} | {first} | {second} | "
            f"{100 * row['estimate']:+.2f} | {100 * row['low']:+.2f} to {100 * row['high']:+.2f} | {verdict(row)} |"
        )
    return "\n".join(lines)


def write_page(page: Path, table: str) -> None:
    """Put a table between the markers of a page."""
    text = page.read_text(encoding="utf-8")
    pattern = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", flags=re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"{page} has no {BEGIN} … {END}")
    write_atomic(page, pattern.sub(lambda _: f"{BEGIN}\n\n{table}\n\n{END}", text))


def refuse_another(folder: Path, settings: Mapping[str, Any]) -> None:
    """Runs of other settings are no runs of these: stop where the folder holds such."""
    path = folder / "settings.json"
    if path.is_file() and json.loads(path.read_text(encoding="utf-8")) != settings:
        sys.exit(f"{folder} holds runs of other settings ({path}): name another --folder")
    write_atomic(path, json.dumps(settings) + "\n")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="the folder of CamVid, or of another data set of --recipe")
    add("--folder", type=Path, default=Path("runs/fewer-labels"), help="where runs and result lie")
    add("--steps", type=int, default=300, help="of every arm")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    add("--arms", nargs="+", choices=sorted(COMPARISONS), default=sorted(COMPARISONS))
    add("--teacher", default="b2", help="shape of the teacher of (b)")
    add("--teacher-steps", type=int, default=0, help="of the teacher; 0 = as every arm")
    add("--pretrain-steps", type=int, default=0, help="of the encoder of (e); 0 = as every arm")
    add("--more", type=int, default=50, help="images that are labelled next, in (d)")
    add("--threads", type=int, default=2)
    add("--recipe", default="camvid")
    add("--page", type=Path, help="a page whose table is replaced")
    add("--changes", nargs="*", default=[], help="further section.key=value of all runs")
    options = parser.parse_args(arguments)
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    options.folder.mkdir(parents=True, exist_ok=True)
    bench = Bench(
        options.data, options.folder, options.steps, options.recipe, tuple(options.changes), options.teacher,
        options.teacher_steps, options.pretrain_steps, options.more,
    )  # fmt: skip
    settings = {"recipe": bench.recipe, "data": str(bench.data), "changes": list(bench.changes), "more": bench.more}
    refuse_another(options.folder, settings)
    seeds = " ".join(map(str, options.seeds))
    command = f"python benchmarks/fewer_labels.py --data {options.data} --steps {options.steps} --seeds {seeds}"
    command += f" --teacher {bench.teacher}"
    command += f" --teacher-steps {bench.teacher_steps}" * bool(bench.teacher_steps)
    command += f" --pretrain-steps {bench.pretrain_steps}" * bool(bench.pretrain_steps)
    command += f" --more {bench.more}" * (bench.more != Bench.more)
    command += f" --changes {shlex.join(bench.changes)}" if bench.changes else ""
    result: dict[str, Any] = {"command": f"{command} --arms {' '.join(options.arms)}", "comparisons": {}}
    for key in options.arms:
        comparison, pairs = COMPARISONS[key], []
        for seed in options.seeds:
            runs = [arm(bench, seed) for arm in comparison.arms]
            pairs.append((Evaluation.load(runs[0] / EVALUATION), Evaluation.load(runs[1] / EVALUATION)))
        found = vars(difference(pairs)) | {"what": comparison.what, "names": comparison.names}
        result["comparisons"][key] = found
        write_atomic(options.folder / "fewer-labels.json", json.dumps(result, indent=1) + "\n")
    print(markdown(result))
    if options.page is not None:
        write_page(options.page, markdown(result))


if __name__ == "__main__":
    main()
