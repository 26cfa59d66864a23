"""The model card: facts about a run, put into `model_card.md`."""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from string import Template
from types import SimpleNamespace
from typing import Any

import yaml

from segtune.errors import SegtuneError
from segtune.files import read_json_lines
from segtune.hub.licenses import Ancestor, License, describe, hub_id, is_non_commercial, trace
from segtune.hub.stage import CODE_FILES, EXAMPLE, find_overlays, read_recipe
from segtune.labels.label_map import LabelMap
from segtune.labels.mask_values import show_value
from segtune.training.run_folder import FINAL, METRICS_FILE, OVERLAYS, RECIPE_FILE, SPLIT_FILE

TAGS = ("segtune", "segformer", "semantic-segmentation", "vision")


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
        url: of a file in the repository, without its name.
        parameters: how many the model has.
        line: the weights that it started from.
        pictures, example: names in the repository; the example is for the Hub's widget.
    """

    repo: str
    url: str
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

    def __str__(self) -> str:
        template = Template((files("segtune.hub") / "model_card.md").read_text(encoding="utf-8"))
        metadata = yaml.safe_dump(self.metadata(), sort_keys=False, allow_unicode=True, width=1000)
        text = template.substitute(
            metadata=metadata.strip(),
            title=self.repo.rpartition("/")[2],
            warning=self._warning(),
            summary=self._summary(),
            labels=self._labels(),
            results=self._results(),
            data=self._data(),
            training=self._training(),
            recipe=self.recipe_text.strip(),
            use=self._use(),
            limits="\n".join(f"- {line}" for line in self._limits()),
            license="\n".join(f"- {line}" for line in self._licenses()),
            environment=_table(("", "value"), self.environment.items()),
        )
        return re.sub(r"\n{3,}", "\n\n", text)

    @property
    def label_map(self) -> LabelMap:
        return LabelMap.from_config(SimpleNamespace(**self.config))

    # --- metadata ------------------------------------------------------------------------------------------------

    def metadata(self) -> dict[str, Any]:
        """What the Hub reads, see https://huggingface.co/docs/hub/model-cards."""
        name = self.repo.rpartition("/")[2]
        base = next((repo for ancestor in self.line if (repo := hub_id(ancestor.name))), None)
        found: dict[str, Any] = dict(self.license.metadata)
        found |= {"library_name": "transformers", "pipeline_tag": "image-segmentation"}
        found |= {"base_model": base, "base_model_relation": "finetune"} if base else {}
        found |= {"datasets": [self.data.hub_id]} if self.data.hub_id else {}
        found |= {"tags": list(TAGS), "metrics": ["mean_iou"]}
        if self.example:
            found["widget"] = [{"src": f"{self.url}{self.example}", "example_title": self.data.name}]
        if self.results:
            found["model-index"] = [{"name": name, "results": [self._model_index(self.results)]}]
        return found

    def _model_index(self, results: Results) -> dict[str, Any]:
        scores, ends = results.scores, results.intervals
        metrics = [("mean_iou", "mean IoU", scores["mean_iou"], ends.get(None))]
        for key, name in (("mean_accuracy", "mean class accuracy"), ("overall_accuracy", "pixel accuracy")):
            metrics.append((key, name, scores[key], None))
        for name, row in scores["per_class"].items():
            metrics.append(("iou", f"IoU of {name}", row["iou"], ends.get(name)))
        slug = re.sub(r"[^a-z0-9]+", "-", self.data.name.lower()).strip("-")
        return {
            "task": {"type": "image-segmentation", "name": "Semantic segmentation"},
            "dataset": {"type": self.data.hub_id or slug, "name": self.data.name, "split": results.split},
            "metrics": [
                {"type": key, "value": round(value, 4), "name": f"{name} {_interval(pair)}".strip()}
                for key, name, value, pair in metrics
                if value is not None
            ],
        }

    # --- text ----------------------------------------------------------------------------------------------------

    def _warning(self) -> str:
        found = []
        if self.license.is_non_commercial:
            whose = f", inherited from {self.license.origin}" if self.license.origin else ""
            found.append(f"> **Not for commercial use:** the weights are under {self.license}{whose}.")
        if self.data.is_non_commercial:
            found.append(f"> **The training data is not for commercial use:** {self.data.license}.")
        return "\n>\n".join(found)

    def _summary(self) -> str:
        start = f"Fine-tuned from {self.line[0].name}" if self.line else "Trained from random weights"
        number = self.data.images.get("train")
        lines = [
            f"A SegFormer of {_count(self.parameters)} parameters that gives every pixel of an image one of "
            f"{self.label_map.num_labels} classes. {start} on {f'{number} images of ' if number else ''}"
            f"{self.data.name}, with segtune."
        ]
        lines += [f"![image, truth and prediction]({self.pictures[0]})"] if self.pictures else []
        return "\n\n".join(lines)

    def _labels(self) -> str:
        label_map = self.label_map
        sources = (label_map.ids if label_map.ids is not None else label_map.mask_colors) or {}
        of_label = [[show_value(key) for key, to in sources.items() if to == i] for i in range(label_map.num_labels)]
        rows = [
            (i, label_map.names[i], f"`{show_value(label_map.colors[i])}`", ", ".join(of_label[i]))
            for i in range(label_map.num_labels)
        ]
        ignored = [show_value(key) for key, to in sources.items() if to is None] or [str(label_map.ignore_index)]
        return f"{_table(('id', 'class', 'colour', 'in the masks'), rows)}\n\nIgnored in masks: {', '.join(ignored)}."

    def _results(self) -> str:
        if self.results is None:
            return "The weights were not evaluated."
        split, scores, ends = self.results.split, self.results.scores, self.results.intervals
        rows = [(name, row["iou"], ends.get(name), row["accuracy"]) for name, row in scores["per_class"].items()]
        rows.append(("**mean**", scores["mean_iou"], ends.get(None), scores["mean_accuracy"]))
        cells = [(name, _number(iou), _interval(pair), _number(accuracy)) for name, iou, pair, accuracy in rows]
        heads: tuple[str, ...] = ("class", "IoU", "interval", "accuracy")
        table = (
            _table(heads, cells) if ends else _table(("class", "IoU", "accuracy"), [(c[0], c[1], c[3]) for c in cells])
        )
        number = scores.get("num_images") or self.data.images.get(split)
        sentences = [f"On {f'the {number} images of ' if number else ''}the {split} split, at the size of the masks."]
        if split == "val":
            sentences.append("The weights were chosen by this split, which flatters them.")
        if self.results.how:
            sentences.append(self.results.how)
        return f"{' '.join(sentences)}\n\n{table}"

    def _data(self) -> str:
        counts = _table(("split", "images"), self.data.images.items()) if self.data.images else ""
        where = f"[{self.data.name}](https://huggingface.co/datasets/{self.data.hub_id})"
        source = f" Source: {self.data.source}." if self.data.source else ""
        text = f"{where if self.data.hub_id else self.data.name}. Licence of the data: {self.data.license}.{source}"
        return f"{text}\n\n{counts}"

    def _training(self) -> str:
        training, transforms = self.recipe.get("training", {}), self.recipe.get("transforms", {})
        per_step = training.get("batch_size", 1) * training.get("accumulation_steps", 1)
        rows = [("images in a step", per_step * self.environment.get("num_processes", 1))]
        for key in ("max_steps", "learning_rate", "head_lr_multiplier", "weight_decay", "schedule", "mixed_precision"):
            rows.append((f"training.{key}", training.get(key)))
        rows += [("transforms.crop_size", transforms.get("crop_size")), ("training.seed", training.get("seed"))]
        return _table(("setting", "value"), [row for row in rows if row[1] is not None])

    def _use(self) -> str:
        channels, single = self.config.get("num_channels", 3), len(self.config["id2label"]) == 1
        name = "segtune_array" if channels != 3 else "segtune"
        parts = ["With segtune:", name]
        if channels != 3:
            parts += [f"Its images have {channels} channels; transformers' image processor knows RGB only."]
        else:
            parts += ["With transformers alone:", "transformers_one_logit" if single else "transformers"]
        if self.with_code:
            parts += ["With segtune's network, several times faster, without installing segtune:", "code"]
        return "\n\n".join(
            f"```python\n{Template(_SNIPPETS[part]).substitute(repo=self.repo, channels=channels)}```"
            if part in _SNIPPETS
            else part
            for part in parts
        )

    def _limits(self) -> Iterable[str]:
        yield "It answers one of its classes everywhere, also where none of them fits."
        yield "It knows images like those of its training data; other cameras, places, scales or light were not tested."
        if self.results:
            found = {name: row["iou"] for name, row in self.results.scores["per_class"].items()}
            absent = [name for name, iou in found.items() if iou is None]
            ranked = sorted((iou, name) for name, iou in found.items() if iou is not None)
            weak = [f"{name} ({iou:.2f})" for iou, name in ranked[:3] if iou < 0.5]
            if weak:
                yield f"The classes with the lowest IoU: {', '.join(weak)}."
            if absent:
                yield f"Not tested, since the {self.results.split} split does not hold them: {', '.join(absent)}."
        own = [f"`{name}` {value}" for name in ("size_divisor", "window", "stride") if (value := self._protocol(name))]
        if own:
            yield (
                f"It was evaluated with {', '.join(own)} (see `preprocessor_config.json`), which segtune does and "
                "transformers does not."
            )

    def _protocol(self, name: str) -> int | None:
        value = self.preprocessor.get(name)
        return None if value == 1 else value

    def _licenses(self) -> Iterable[str]:
        if self.license.origin:
            yield f"Weights: {self.license}, inherited from {self.license.origin}."
        elif self.license.metadata:
            yield f"Weights: {self.license}, chosen by the owner."
        else:
            yield "Weights: the owner has not stated a licence; without one, nobody else may use them. Ask."
        for ancestor in self.line:
            yield f"Started from {ancestor.name}: {describe(ancestor.license)}."
        yield f"Data: {self.data.license}."
        if self.with_code:
            yield "Code (the `.py` files): part of segtune, Apache License 2.0."


_SNIPPETS = {
    "segtune": """\
import segtune

mask = segtune.predict("$repo", "photo.jpg")  # (height, width), ids as above
segtune.overlay("photo.jpg", mask, segtune.LabelMap.from_pretrained("$repo")).save("overlay.png")
""",
    "segtune_array": """\
import segtune

mask = segtune.predict("$repo", image)  # of an array (height, width, $channels); (height, width), ids as above
""",
    "transformers": """\
from transformers import pipeline

segment = pipeline("image-segmentation", model="$repo")
masks = {found["label"]: found["mask"] for found in segment("photo.jpg")}
```

```python
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

processor = AutoImageProcessor.from_pretrained("$repo")
model = AutoModelForSemanticSegmentation.from_pretrained("$repo").eval()
image = Image.open("photo.jpg").convert("RGB")
with torch.no_grad():
    outputs = model(**processor(image, return_tensors="pt"))
mask = processor.post_process_semantic_segmentation(outputs, target_sizes=[image.size[::-1]])[0]
""",
    "transformers_one_logit": """\
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

processor = AutoImageProcessor.from_pretrained("$repo")
model = AutoModelForSemanticSegmentation.from_pretrained("$repo").eval()
image = Image.open("photo.jpg").convert("RGB")
with torch.no_grad():
    logits = model(**processor(image, return_tensors="pt")).logits  # (1, 1, height/4, width/4)
logits = torch.nn.functional.interpolate(logits, image.size[::-1], mode="bilinear")
mask = (logits[0, 0] > 0).long()  # one logit: do not take the argmax
""",
    "code": """\
from transformers import AutoModelForSemanticSegmentation

model = AutoModelForSemanticSegmentation.from_pretrained("$repo", trust_remote_code=True)
""",
}


def read_front_matter(text: str) -> dict[str, Any]:
    """The metadata of a card; empty where it has none that can be read."""
    found = re.match(r"\ufeff?---\s*\n(.*?)\n---\s*(\n|$)", text, re.DOTALL)
    try:
        metadata = yaml.safe_load(found.group(1)) if found else None
    except yaml.YAMLError:
        return {}
    return metadata if isinstance(metadata, dict) else {}


def _table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', '&#124;') for cell in line)} |" for line in lines)


def _count(number: int) -> str:
    return f"{number / 1e6:.1f} million" if number >= 1e6 else f"{number:,}"


def _number(value: float | None) -> str:
    return "absent" if value is None else f"{value:.3f}"


def _interval(ends: Sequence[float | None] | None) -> str:
    if ends is None or ends[0] is None or ends[1] is None:
        return ""
    return f"[{ends[0]:.3f}, {ends[1]:.3f}]"


ReadCard = Callable[[str, str], Mapping[str, Any]]  # (name on the Hub, "model" or "dataset") -> metadata

DATASET_OF_HUB, DATASET_OF_SEGTUNE = "hub://", "segtune://"


def lineage(base: str | None, read: ReadCard) -> list[Ancestor]:
    """The weights that a model started from: `base`, a folder, Hub id or None, and what that started from.

    Args:
        read: gives the metadata of a card on the Hub, empty where there is none.
    """
    return trace(base, lambda name: _card_of_weights(name, read))


def describe_run(
    staged: Path, checkpoint: Path, repo: str, url: str, line: Sequence[Ancestor], license: License, read: ReadCard
) -> Card:
    """The card of what `stage` has put into a folder.

    Args:
        checkpoint: as `stage` returned it.
        url: of a file in the repository, without its name.
        read: see `lineage`.
    """
    recipe = read_recipe(staged)
    metrics = staged / METRICS_FILE
    records = read_json_lines(metrics) if metrics.is_file() else []
    environments = [record["environment"] for record in records if "environment" in record]
    return Card(
        repo=repo,
        url=url,
        config=_read_json(staged / "config.json"),
        preprocessor=_read_json(staged / "preprocessor_config.json"),
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
    images = {split: len(ids) for split, ids in _read_json(split_file).items()} if split_file.is_file() else {}
    repo = hub_id(path.removeprefix(DATASET_OF_HUB))
    metadata = dict(read(repo, "dataset")) if repo else _facts_in_folder(path)
    if not metadata and not path.startswith(DATASET_OF_HUB):  # a folder that is no longer here
        repo = None
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
    """What README.md and the label file of a folder say about the data."""
    from segtune.data.dataset import LABEL_FILES, resolve_path

    try:
        root = resolve_path(path)
    except SegtuneError:  # the data is not on this machine
        return {}
    facts: dict[str, Any] = {}
    for name in LABEL_FILES:
        content = _read_json(root / name) if (root / name).is_file() else {}
        if isinstance(content, dict):
            facts |= {key: content[key] for key in ("name", "source") if isinstance(content.get(key), str)}
            licenses = [value for key, value in content.items() if re.match("licen[cs]e", key)]
            facts |= {"license": licenses[0]} if licenses else {}
    if (root / "README.md").is_file():
        facts |= read_front_matter((root / "README.md").read_text(encoding="utf-8"))
    return facts


def _counted(staged: Path) -> Results | None:
    """The evaluation on the test split, else the validation split, with intervals."""
    from segtune.evaluation.evaluation import Evaluation, file_name
    from segtune.evaluation.uncertainty import intervals

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
    """From the header of a safetensors file; running statistics do not count."""
    with weights.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(size))
    buffers = ("__metadata__", "running_mean", "running_var", "num_batches_tracked")
    return sum(math.prod(entry["shape"]) for name, entry in header.items() if not name.endswith(buffers))


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
