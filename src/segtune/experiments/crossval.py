"""Cross-validation: every image of train and val is predicted by a model that has not seen it, and all count together.

The images of a fold judge its model and choose nothing: each training makes all its steps and is evaluated at its end,
without early stopping. What the best of several evaluations on the same images scored would be too high.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from segtune.data.checks import check_masks
from segtune.data.dataset import open_dataset
from segtune.data.lazy_rows import sample_ids
from segtune.data.splits import write_split_file
from segtune.data.tiles import without_tile
from segtune.errors import DataError, SegtuneError, UsageError, listed
from segtune.evaluation import uncertainty
from segtune.evaluation.evaluation import Evaluation, file_name
from segtune.experiments.folds import make_folds
from segtune.experiments.training_process import STOPPED, await_earlier, changes, refuse_launched, train_apart
from segtune.files import MODEL_MANIFEST, read_json, read_json_lines, write_atomic
from segtune.inference.evaluate import EvaluatedImage, evaluate_model, evaluated_images
from segtune.inference.evaluate_checkpoint import OpenedCheckpoint, open_checkpoint
from segtune.inference.protocol import InferenceProtocol
from segtune.recipe.recipe import Recipe, load_recipe
from segtune.recipe.yaml_file import parse_yaml, read_yaml
from segtune.report.examples import examine_by
from segtune.report.gather import AT_MOST, Facts, Part, Subject
from segtune.report.page import write_report
from segtune.training.checkpoint import WEIGHTS_FILE, check_model
from segtune.training.interrupts import Interrupted, StopRequest
from segtune.training.run_folder import FINAL, METRICS_FILE, RECIPE_FILE, REPORT_FILE
from segtune.training.run_lock import locked
from segtune.viz.numbers import interval, number

logger = logging.getLogger(__name__)

FOLDS_FILE, FOLDS, RESULT_FILE = "folds.json", "folds", "crossval.json"
MOST_CLASSES = 12  # that the table of folds has columns for
SPLIT = "out-of-fold"


@dataclass(frozen=True)
class Plan:
    """How the images are divided, as `folds.json` has it.

    Attributes:
        folds: the ids of each fold.
        test: ids that no fold has, and that stay the test split.
        pixels: of each class in each fold, `(K + 1,)`, ignored pixels last.
        settings: `folds`, `group_by`, `seed`.
    """

    folds: list[list[str]]
    test: list[str]
    pixels: list[list[int]]
    settings: dict[str, Any]

    def split(self, number: int) -> dict[str, list[str]]:
        """The splits of the training of fold `number`, from 1: the fold is its val."""
        others = [image for fold, ids in enumerate(self.folds, start=1) if fold != number for image in ids]
        splits = {"train": sorted(others), "val": self.folds[number - 1]}
        return splits | ({"test": self.test} if self.test else {})


def crossval(
    recipe: Recipe,
    folder: Path,
    *,
    folds: int = 5,
    group_by: str | None = None,
    seed: int = 0,
    launch: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Train each fold that is not done, count its images, and put everything together in `folder`.

    Args:
        recipe: its splits train and val are divided anew; test is left alone.
        folder: is made, or gone on with where it holds the same cross-validation.
        folds, group_by, seed: see `make_folds`.
        launch: see `train_apart`.

    Returns:
        JSON-able: the scores and intervals of all images together, see `Evaluation.scores` and `intervals`; before
        them `folder`, `report`, `split`, and `folds`: the number of images and the mean IoU of each.

    Raises:
        UsageError: the folder holds something else, or the images cannot be divided so.
        Interrupted: a signal came; the same call goes on.
        SegtuneError: a training failed.
    """
    refuse_launched()
    if recipe.dataset.streaming:
        raise UsageError("folds need all rows at hand: set dataset.streaming=false")
    with locked(folder, what="cross-validation", option="--output"), StopRequest() as request:
        plan = _planned(recipe, folder, {"folds": folds, "group_by": group_by, "seed": seed})
        for fold in range(1, folds + 1):
            with request.noted():
                _train(folder, fold, launch, request)
            request.check()
        return _together(folder, plan, group_by)


# --- the plan --------------------------------------------------------------------------------------------------------


def _planned(recipe: Recipe, folder: Path, settings: dict[str, Any]) -> Plan:
    """The plan that the folder holds, which must be of the same recipe, data and settings; a new one where there is
    none.
    """
    recipe = _of_folds(recipe, folder)
    stored = folder / RECIPE_FILE
    is_new = not (folder / FOLDS_FILE).exists()
    begun = {RECIPE_FILE, FOLDS}  # of a command that was killed before its plan was whole
    if is_new and any(path.name[0] != "." and path.name not in begun for path in folder.iterdir()):
        raise UsageError(f"{folder} holds something else than a cross-validation: name another folder by --output")
    if not is_new:
        _refuse_another(stored, recipe, folder, settings)
    rows, label_map = open_dataset(recipe.dataset)
    at_hand = {split: list(map(without_tile, sample_ids(rows[split]))) for split in rows}
    pool = {split: at_hand[split] for split in ("train", "val") if split in at_hand}
    if not pool:
        raise UsageError(
            f"dataset.path = {recipe.dataset.path}: no images of train or val to divide, only {', '.join(at_hand)}"
        )
    _refuse_alike(at_hand)
    if not is_new:
        plan = _read_plan(folder)
        if sorted({image for ids in pool.values() for image in ids}) != sorted(chain.from_iterable(plan.folds)):
            raise UsageError(
                f"the data is not what {folder} began with: restore it, or name another folder by --output"
            )
        return plan
    pixels = check_masks({split: rows[split] for split in pool}, label_map)
    ids = [image for split in pool for image in pool[split]]
    plan = _divided(ids, np.concatenate([pixels[split] for split in pool]), at_hand.get("test", []), settings)
    _warn_of_absent(plan, label_map.names)
    for fold in range(1, len(plan.folds) + 1):
        write_split_file(_split_file(folder, fold), plan.split(fold))
    write_atomic(stored, recipe.to_yaml())
    write_atomic(folder / FOLDS_FILE, json.dumps(plan.__dict__, indent=1, ensure_ascii=False) + "\n")
    return plan


def _of_folds(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe of all folds, but for what differs between them."""
    recipe = recipe.with_changes("hub", push=None)
    never = {"resume": "never", "overwrite": False, "report": False}
    unchosen = {"eval_every": None, "early_stopping_patience": None}
    return recipe.with_changes("training", output_dir=str(folder), **never, **unchosen)


def _refuse_another(stored: Path, recipe: Recipe, folder: Path, settings: Mapping[str, Any]) -> None:
    before = _read_plan(folder).settings
    if differing := [
        f"--{name.replace('_', '-')} {before.get(name)}" for name in settings if before.get(name) != settings[name]
    ]:
        raise UsageError(
            f"{folder} was divided with {', '.join(differing)}: say so, or name another folder by --output"
        )
    if not stored.is_file() or read_yaml(stored, Recipe.model_fields) != parse_yaml(recipe.to_yaml()):
        raise UsageError(
            f"{folder} was begun with another recipe, which its {RECIPE_FILE} has: give the same one, or name another "
            "folder by --output"
        )


def _refuse_alike(at_hand: Mapping[str, Sequence[str]]) -> None:
    """An id must stand for one image, whatever split it is in."""
    seen: dict[str, str] = {}
    alike = [image for split, ids in at_hand.items() for image in set(ids) if seen.setdefault(image, split) != split]
    if alike:
        raise DataError(
            f"images of several splits have one id ({len(alike)}): {listed(sorted(alike))}. Folds mix the splits: "
            "rename the files"
        )


def _divided(ids: Sequence[str], pixels: np.ndarray, test: Sequence[str], settings: dict[str, Any]) -> Plan:
    """Tiles and pages of one file stay together: `ids` are those of files, once for each row of `pixels`."""
    files, file_of = np.unique(np.array(ids), return_inverse=True)
    counts = np.zeros((len(files), pixels.shape[1]), np.int64)
    np.add.at(counts, file_of.reshape(-1), pixels)
    options = {"group_by": settings["group_by"], "seed": settings["seed"]}
    folds = make_folds(files.tolist(), counts[:, :-1], settings["folds"], **options)
    place = {name: index for index, name in enumerate(files.tolist())}
    totals = [counts[[place[name] for name in fold]].sum(axis=0).tolist() for fold in folds]
    return Plan(folds, sorted(set(test)), totals, settings)


def _warn_of_absent(plan: Plan, names: Sequence[str]) -> None:
    table = np.array(plan.pixels)[:, :-1]  # (folds, K)
    for fold, counts in enumerate(table, start=1):
        if alone := [
            names[index] for index in np.flatnonzero((table.sum(axis=0) > 0) & (counts == table.sum(axis=0))).tolist()
        ]:
            logger.warning("fold %d has all images of %s: its training sees none", fold, listed(alone))


def _read_plan(folder: Path) -> Plan:
    path = folder / FOLDS_FILE
    try:
        plan = TypeAdapter(Plan).validate_python(Plan(**read_json(path)).__dict__)
        if len(plan.folds) != plan.settings.get("folds") or len(plan.pixels) != len(plan.folds):
            raise ValueError(f"it has {len(plan.folds)} folds")
    except (ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{path} is damaged ({reason}): restore it, or remove {folder}") from error
    return plan


def _split_file(folder: Path, fold: int) -> Path:
    return folder / FOLDS / f"{fold}.json"


def _counts_file(folder: Path, fold: int) -> Path:
    return folder / FOLDS / f"{fold}.npz"


def fold_run(folder: Path, fold: int) -> Path:
    """The run folder of a fold, from 1."""
    return folder / FOLDS / str(fold)


# --- one fold --------------------------------------------------------------------------------------------------------


def _train(folder: Path, fold: int, launch: Sequence[str] | None, request: StopRequest) -> None:
    """Train a fold, or go on with it, unless it is done."""
    run = fold_run(folder, fold)
    await_earlier(run, request)
    if _is_done(run) or request.reason:
        return
    settings: dict[str, Any] = {"dataset.split_file": str(_split_file(folder, fold)), "training.output_dir": str(run)}
    settings |= {"training.resume": "auto", "dataset.check_masks": False}  # they were checked for the plan
    logger.info("fold %d: %s", fold, run)
    code = train_apart([str(folder / RECIPE_FILE), *changes(settings)], launch, request)
    if code == STOPPED:
        raise Interrupted(request.reason or "a training was asked to stop")
    if code or not _is_done(run):
        raise SegtuneError(f"fold {fold}: its training ended with exit code {code}; the same command goes on with it")


def _is_done(run: Path) -> bool:
    """Whether the last weights of a run are there, and are what was written: they come last."""
    try:
        check_model(run / FINAL)
    except DataError:
        return False
    return True


def _opened(folder: Path, fold: int) -> OpenedCheckpoint:
    run = fold_run(folder, fold)
    recipe = load_recipe(run / RECIPE_FILE)
    device = None if recipe.training.device == "auto" else recipe.training.device
    return open_checkpoint(run / FINAL, recipe, split="val", device=device)


def _precision(recipe: Recipe) -> Any:
    """As the network trained."""
    return "fp32" if recipe.training.mixed_precision == "no" else recipe.training.mixed_precision


def _count(folder: Path, fold: int) -> Evaluation:
    """The counts of a fold's images, by the last weights of its training; kept beside its run."""
    path, run = _counts_file(folder, fold), fold_run(folder, fold)
    weights = read_json(run / FINAL / MODEL_MANIFEST)[WEIGHTS_FILE]["sha256"]
    if path.exists():
        try:
            kept = Evaluation.load(path)
            if kept.about.get("weights") == weights:
                return kept
        except DataError as error:
            logger.warning("%s: the images of fold %d are counted anew", error, fold)
    opened, recipe = _opened(folder, fold), load_recipe(run / RECIPE_FILE)
    evaluation = evaluate_model(
        opened.model,
        opened.rows,
        opened.label_map,
        opened.processor,
        evaluation=Evaluation(opened.label_map.names, opened.label_map.ignore_index, detailed=True),
        batch_size=recipe.evaluation.batch_size,
        precision=_precision(recipe),
    )
    evaluation.counts.sort()
    evaluation.about = {"checkpoint": str(run / FINAL), "split": "val", "weights": weights}
    evaluation.save(path)
    return evaluation


# --- all folds together ----------------------------------------------------------------------------------------------


def _together(folder: Path, plan: Plan, group_by: str | None) -> dict[str, Any]:
    """Write the evaluation of all images, the figures and the report."""
    numbers = range(1, len(plan.folds) + 1)
    parts = [_count(folder, fold) for fold in numbers]
    scores = [part.scores() for part in parts]
    pooled = Evaluation(parts[0].names, parts[0].ignore_index, detailed=True)
    for part in parts:
        pooled.merge(part)
    pooled.counts.sort()
    pooled.about = {"checkpoint": str(folder), "split": SPLIT, "folds": len(parts)}
    pooled.save(folder / file_name("val"))
    intervals = uncertainty.intervals(pooled, group_by=group_by)
    of_folds = [
        {"fold": fold, "images": len(part), "mean_iou": each["mean_iou"]}
        for fold, part, each in zip(numbers, parts, scores, strict=True)
    ]
    result = {"folder": str(folder), "report": str(folder / REPORT_FILE), "split": SPLIT, "folds": of_folds}
    result |= pooled.scores() | {"intervals": intervals}
    write_atomic(folder / RESULT_FILE, json.dumps(result, indent=2) + "\n")
    write_report(_facts(folder, plan, pooled, scores, intervals), folder / REPORT_FILE)
    return result


def _facts(
    folder: Path, plan: Plan, pooled: Evaluation, scores: Sequence[dict[str, Any]], intervals: dict[str, Any]
) -> Facts:
    """What the report says: of many images, some are looked at in detail, each by the model of its fold."""
    first = _opened(folder, 1)
    examination = examine_by(_look(folder, plan), pooled.counts.ids, first.label_map, counted=pooled, at_most=AT_MOST)
    records = read_json_lines(fold_run(folder, 1) / METRICS_FILE)
    titles = [f"fold {fold}" for fold in range(1, len(plan.folds) + 1)]
    return Facts(
        Subject(folder, str(folder)),
        first.label_map,
        (folder / RECIPE_FILE).read_text(encoding="utf-8"),
        parameters=first.model.num_parameters(),
        split=SPLIT,
        protocol=str(InferenceProtocol.choose(first.processor)),
        evaluation=pooled,
        examination=examination,
        scores=pooled.scores(),
        details=examination.evaluation.scores(),
        intervals=intervals,
        images={title: len(ids) for title, ids in zip(titles, plan.folds, strict=True)},
        pixels={title: np.array(counts) for title, counts in zip(titles, plan.pixels, strict=True)},
        environment=next((record["environment"] for record in reversed(records) if "environment" in record), {}),
        parts=[_part(scores, pooled.scores(), intervals)],
    )


def _look(folder: Path, plan: Plan) -> Any:
    def look(images: Collection[str]) -> Iterator[EvaluatedImage]:
        for fold, files in enumerate(plan.folds, start=1):
            if not {without_tile(image) for image in images} & set(files):
                continue
            opened, recipe = _opened(folder, fold), load_recipe(fold_run(folder, fold) / RECIPE_FILE)
            places = [place for place, image in enumerate(sample_ids(opened.rows)) if image in images]
            yield from evaluated_images(
                opened.model,
                opened.rows,
                opened.label_map,
                opened.processor,
                indices=places,
                confidence=True,
                precision=_precision(recipe),
            )

    return look


def _part(scores: Sequence[dict[str, Any]], pooled: dict[str, Any], intervals: dict[str, Any]) -> Part:
    """The table of the folds."""
    names = list(pooled["per_class"])
    shown = names if len(names) <= MOST_CLASSES else []
    rows = [(f"fold {number}", each) for number, each in enumerate(scores, start=1)]
    cells = [
        [
            title,
            str(each["num_images"]),
            number(each["mean_iou"]),
            *(number(each["per_class"][n]["iou"]) for n in shown),
        ]
        for title, each in [*rows, ("all images together", pooled)]
    ]
    values = [each["mean_iou"] for each in scores if each["mean_iou"] is not None]
    spread = f"{number(float(np.mean(values)))} ± {number(float(np.std(values, ddof=1)))}" if len(values) > 1 else "–"
    text = (
        f"Each image was predicted by the model whose training did not see it. The mean IoU of all images together is "
        f"{number(pooled['mean_iou'])} {interval(intervals['mean_iou']['bca'], '({} – {})')}; the mean and standard "
        f"deviation of the {len(scores)} folds are {spread}. A fold has fewer images, and may lack a class, so that "
        "its mean is another number."
    )
    return Part("folds", "Folds", text, ["fold", "images", "mean IoU", *shown], cells)
