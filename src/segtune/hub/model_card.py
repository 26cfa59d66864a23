"""Model cards: facts about a run, which `templates/model_card.md` puts into words, and metadata for the Hub."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from safetensors import safe_open

from segtune.data.convert.dataset_card import Origin
from segtune.data.dataset import resolve_path
from segtune.errors import SegtuneError
from segtune.evaluation.evaluation import Evaluation, file_name
from segtune.evaluation.uncertainty import intervals
from segtune.files import read_json, read_json_lines
from segtune.hub.licenses import Ancestor, License, describe, hub_id, inherit, is_non_commercial, trace
from segtune.hub.privacy import public_name, without_local_paths
from segtune.hub.stage import CODE_FILES, EXAMPLE, find_overlays, read_recipe
from segtune.labels.label_map import LabelMap
from segtune.labels.mask_values import show_value
from segtune.training.run_folder import FINAL, METRICS_FILE, OVERLAYS, RECIPE_FILE, SPLIT_FILE
from segtune.viz.html import render
from segtune.viz.numbers import interval, number

ReadCard = Callable[[str, str], Mapping[str, Any]]  # (name on the Hub, "model" or "dataset") -> metadata

TAGS = ("segtune", "segformer", "semantic-segmentation", "vision")
SETTINGS = ("max_steps", "learning_rate", "head_lr_multiplier", "weight_decay", "schedule", "mixed_precision")
PROTOCOL = ("size_divisor", "window", "stride")  # what transformers' image processor does not do
DATASET_OF_HUB, DATASET_OF_SEGTUNE = "hub://", "segtune://"
_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")  # running statistics, which are no parameters


@dataclass(frozen=True)
class DataFacts:
    """What is known of the data: images by split, and what its own files or its card on the Hub say."""

    name: str
    images: Mapping[str, int] = field(default_factory=dict)
    hub_id: str | None = None
    license: str = "not stated"
    source: str | None = None
    is_non_commercial: bool = False


@dataclass(frozen=True)
class Results:
    """Scores of the pushed weights on a split, as `metrics.jsonl` has them.

    Attributes:
        intervals: by class name, and of the mean IoU under None; an end may be None.
        how: the intervals were made, a sentence.
    """

    split: str
    scores: Mapping[str, Any]
    intervals: Mapping[str | None, Sequence[float | None]] = field(default_factory=dict)
    how: str = ""


@dataclass(frozen=True)
class Card:
    """All that a model card says; `str` gives the text of README.md.

    Attributes:
        repo: `user/name`.
        parameters: how many the model has.
        line: the weights that it started from.
        teacher: of `training.distill`, and the weights that this started from; empty where there was none.
        unlabelled: the name of the folder of `dataset.unlabelled`.
        pictures, example: names in the repository; the example is for the Hub's widget.
        exports: the certificates of `segtune export`.
    """

    repo: str
    config: Mapping[str, Any]
    preprocessor: Mapping[str, Any]
    parameters: int
    recipe: Mapping[str, Any]
    recipe_text: str
    data: DataFacts
    line: Sequence[Ancestor]
    license: License
    results: Results | None = None
    environment: Mapping[str, Any] = field(default_factory=dict)
    pictures: Sequence[str] = ()
    example: str | None = None
    with_code: bool = False
    exports: Sequence[Mapping[str, Any]] = ()
    teacher: Sequence[Ancestor] = ()
    unlabelled: str | None = None

    def __str__(self) -> str:
        found = dict(self.results.scores["per_class"]) if self.results else {}
        iou = {name: row["iou"] for name, row in found.items()}
        ranked = sorted((value, name) for name, value in iou.items() if value is not None)
        text = render(
            "hub/templates/model_card.md",
            card=self,
            data=self.data,
            results=self.results,
            metadata=self.metadata().to_yaml(),
            parameters=f"{self.parameters / 1e6:.1f} million" if self.parameters >= 1e6 else f"{self.parameters:,}",
            line=[(public_name(ancestor.name), describe(ancestor.license)) for ancestor in self.line],
            origin=self.license.origin and public_name(self.license.origin),
            teacher=self._teacher(),
            images_of_results=self._images_of_results(),
            score=partial(number, undefined="absent"),
            channels=self.config.get("num_channels", 3),
            logits=len(self.config["id2label"]),
            settings=self._settings(),
            recipe=without_local_paths(self.recipe_text),
            weak=[(name, value) for value, name in ranked[:3] if value < 0.5],
            absent=[name for name, value in iou.items() if value is None],
            protocol={name: value for name in PROTOCOL if (value := self.preprocessor.get(name)) not in (None, 1)},
            **self._labels(),
        )
        return str(ModelCard(re.sub(r"\n{3,}", "\n\n", text)))

    def _teacher(self) -> dict[str, Any] | None:
        """Name and licence of the teacher; `origin` is what it has the licence from, where that is another name."""
        if not self.teacher:
            return None
        name, license = self.teacher[0].name, inherit(self.teacher, None)
        origin = public_name(license.origin) if license.origin not in (None, name) else None
        return {"name": public_name(name), "license": license, "origin": origin}

    def metadata(self) -> ModelCardData:
        """What the Hub reads, see https://huggingface.co/docs/hub/model-cards."""
        base = next((repo for ancestor in self.line if (repo := hub_id(ancestor.name))), None)
        example = {"src": self.example, "example_title": self.data.name}
        results = self._eval_results(self.results) if self.results else None
        license: Mapping[str, Any] = self.license.metadata
        return ModelCardData(
            **license,
            library_name="transformers",
            pipeline_tag="image-segmentation",
            base_model=base,
            base_model_relation="finetune" if base else None,
            datasets=[self.data.hub_id] if self.data.hub_id else None,
            tags=list(TAGS),
            metrics=["mean_iou"],
            widget=[example] if self.example else None,
            model_name=self.repo.rpartition("/")[2] if results else None,
            eval_results=results or None,
        )

    def _eval_results(self, results: Results) -> list[EvalResult]:
        """The scores of the weights, those that are defined, as the Hub's model index takes them."""
        scores, ends = results.scores, results.intervals
        slug = re.sub(r"[^a-z0-9]+", "-", self.data.name.lower()).strip("-")
        metrics = [
            ("mean_iou", "mean IoU", scores["mean_iou"], ends.get(None)),
            ("mean_accuracy", "mean class accuracy", scores["mean_accuracy"], None),
            ("overall_accuracy", "pixel accuracy", scores["overall_accuracy"], None),
            *(("iou", f"IoU of {name}", row["iou"], ends.get(name)) for name, row in scores["per_class"].items()),
        ]
        return [
            EvalResult(
                task_type="image-segmentation",
                task_name="Semantic segmentation",
                dataset_type=self.data.hub_id or slug or "data",
                dataset_name=self.data.name,
                dataset_split=results.split,
                metric_type=key,
                metric_name=f"{name} {interval(pair, '[{}, {}]')}".strip(),
                metric_value=round(value, 4),
            )
            for key, name, value, pair in metrics
            if value is not None
        ]

    def _labels(self) -> dict[str, Any]:
        """Name, colour and mask values of each class, and the mask values that are ignored."""
        label_map = LabelMap.from_config(SimpleNamespace(**self.config))
        sources = (label_map.ids if label_map.ids is not None else label_map.mask_colors) or {}
        classes = [
            {
                "name": name,
                "color": show_value(color),
                "sources": [show_value(k) for k, to in sources.items() if to == i],
            }
            for i, (name, color) in enumerate(zip(label_map.names, label_map.colors, strict=True))
        ]
        ignored = [show_value(key) for key, to in sources.items() if to is None]
        return {"classes": classes, "ignored": ignored or [label_map.ignore_index]}

    def _images_of_results(self) -> int | None:
        if self.results is None:
            return None
        return self.results.scores.get("num_images") or self.data.images.get(self.results.split)

    def _settings(self) -> list[tuple[str, Any]]:
        """The settings of the recipe that matter most; see `recipe.yaml` for all."""
        training, transforms = self.recipe.get("training", {}), self.recipe.get("transforms", {})
        per_step = training.get("batch_size", 1) * training.get("accumulation_steps", 1)
        rows = [("images in a step", per_step * self.environment.get("num_processes", 1))]
        rows += [(f"training.{key}", training.get(key)) for key in SETTINGS]
        rows += [("transforms.crop_size", transforms.get("crop_size")), ("training.seed", training.get("seed"))]
        return [(name, value) for name, value in rows if value is not None]


# --- what is known ----------------------------------------------------------------------------------------------------


def read_front_matter(text: str) -> dict[str, Any]:
    """The metadata of a card; empty where it has none that can be read."""
    found = re.match(r"\ufeff?---\s*\n(.*?)\n---\s*(\n|$)", text, re.DOTALL)
    try:
        metadata = yaml.safe_load(found.group(1)) if found else None
    except yaml.YAMLError:
        return {}
    return metadata if isinstance(metadata, dict) else {}


def teacher_of(recipe: Mapping[str, Any]) -> str | None:
    """The checkpoint that a run's recipe names as the teacher of a distillation."""
    distill = recipe.get("training", {}).get("distill") or {}
    return distill.get("teacher")


def lineage(base: str | None, read: ReadCard) -> list[Ancestor]:
    """The weights that a model started from: `base`, a folder, Hub id or None, and what that started from.

    Args:
        read: gives the metadata of a card on the Hub, empty where there is none.
    """
    return trace(base, lambda name: _card_of_weights(name, read))


def describe_run(
    staged: Path, checkpoint: Path, repo: str, line: Sequence[Ancestor], license: License, read: ReadCard
) -> Card:
    """The card of what `stage` has put into a folder.

    Args:
        checkpoint: as `stage` returned it.
        read: see `lineage`.
    """
    recipe = read_recipe(staged)
    unlabelled = recipe["dataset"].get("unlabelled")
    metrics = staged / METRICS_FILE
    records = read_json_lines(metrics) if metrics.is_file() else []
    environments = [record["environment"] for record in records if "environment" in record]
    return Card(
        repo=repo,
        config=read_json(staged / "config.json"),
        preprocessor=read_json(staged / "preprocessor_config.json"),
        parameters=_count_parameters(staged / "model.safetensors"),
        recipe=recipe,
        recipe_text=(staged / RECIPE_FILE).read_text(encoding="utf-8"),
        data=_data_facts(recipe["dataset"]["path"], staged / SPLIT_FILE, read),
        line=line,
        license=license,
        results=_counted(staged) or _logged(records, recipe, checkpoint.name == FINAL),
        environment=environments[-1] if environments else {},
        pictures=[path.relative_to(staged).as_posix() for path in find_overlays(staged / OVERLAYS)],
        example=EXAMPLE if (staged / EXAMPLE).is_file() else None,
        with_code=(staged / CODE_FILES[0]).is_file(),
        exports=[read_json(path) for path in sorted(staged.glob("certificate-*.json"))],
        teacher=lineage(teacher_of(recipe), read),
        unlabelled=unlabelled and re.split(r"[/\\]", unlabelled.rstrip("/\\"))[-1],
    )


def _card_of_weights(name: str, read: ReadCard) -> Mapping[str, Any]:
    """The metadata of a Hub id's card or of a folder's; of a run's folder without card, what the run started from."""
    repo, folder = hub_id(name), Path(name)
    if repo:
        return read(repo, "model")
    if (folder / "README.md").is_file():
        return read_front_matter((folder / "README.md").read_text(encoding="utf-8"))
    if (folder.parent / RECIPE_FILE).is_file():
        return {"base_model": read_recipe(folder.parent).get("model", {}).get("name")}
    return {}


def _data_facts(path: str, split_file: Path, read: ReadCard) -> DataFacts:
    images = {split: len(ids) for split, ids in read_json(split_file).items()} if split_file.is_file() else {}
    repo = hub_id(path.removeprefix(DATASET_OF_HUB)) if path.startswith(DATASET_OF_HUB) else None
    metadata = dict(read(repo, "dataset")) if repo else _facts_in_folder(path)
    source = "part of segtune" if path.startswith(DATASET_OF_SEGTUNE) else metadata.get("source")
    return DataFacts(
        name=metadata.get("pretty_name") or metadata.get("name") or repo or Path(path).name,
        images=images,
        hub_id=repo,
        license=describe(metadata).rstrip("."),
        source=source and source.rstrip("."),
        is_non_commercial=is_non_commercial(metadata),
    )


def _facts_in_folder(path: str) -> dict[str, Any]:
    """What the label file and README.md of a folder say about the data; where they differ, what README.md says."""
    facts: dict[str, Any] = dict(Origin.of(path).entries())
    with suppress(SegtuneError):  # the data is not on this machine
        card = resolve_path(path) / "README.md"
        facts |= read_front_matter(card.read_text(encoding="utf-8")) if card.is_file() else {}
    return facts


def _counted(staged: Path) -> Results | None:
    """The evaluation on the test split, else the validation split, with intervals."""
    split = next((split for split in ("test", "val") if (staged / file_name(split)).is_file()), None)
    if split is None:
        return None
    evaluation = Evaluation.load(staged / file_name(split))
    found = intervals(evaluation)
    ends = {None: found["mean_iou"]["bca"], **{name: row["bca"] for name, row in found["per_class"].items()}}
    how = (
        f"Intervals: {100 * found['level']:g} %, BCa bootstrap of {found['resamples']} resamples of the images; they "
        "are too narrow where images resemble each other, as frames of a video do."
    )
    return Results(split, evaluation.scores(), ends, how)


def _logged(records: Sequence[Mapping[str, Any]], recipe: Mapping[str, Any], last: bool) -> Results | None:
    """The evaluation on the validation split of the best weights, or of the last ones."""
    metric = recipe.get("training", {}).get("best_metric", "mean_iou").split("/")
    sign = -1 if recipe.get("training", {}).get("best_direction") == "min" else 1

    def value(record: Any) -> float:
        for key in metric:
            record = record[key]
        return -math.inf if record is None else sign * record

    found = [record for record in records if record.get("split") == "val" and "mean_iou" in record]
    if not found:
        return None
    return Results("val", found[-1] if last else max(found, key=value))


def _count_parameters(weights: Path) -> int:
    """From the header of a safetensors file."""
    with safe_open(weights, framework="numpy") as file:
        names = [name for name in file.keys() if not name.endswith(_BUFFERS)]  # noqa: SIM118 (it is no mapping)
        return sum(math.prod(file.get_slice(name).get_shape()) for name in names)
