"""What the files of a run say for its model card."""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from segtune.card import Card, DataFacts, Results, read_front_matter
from segtune.checkpoint import read_json_lines
from segtune.errors import SegtuneError
from segtune.licences import Ancestor, Licence, describe, hub_id, is_non_commercial, trace
from segtune.release import CODE_FILES, EXAMPLE, RECIPE, find_overlays, read_recipe
from segtune.run_folder import METRICS_FILE

ReadCard = Callable[[str, str], Mapping[str, Any]]  # (name on the Hub, "model" or "dataset") -> metadata

DATASET_OF_HUB, DATASET_OF_SEGTUNE = "hub://", "segtune://"


def lineage(base: str | None, read: ReadCard) -> list[Ancestor]:
    """The weights that a model started from: `base`, a folder, Hub id or None, and what that started from.

    Args:
        read: gives the metadata of a card on the Hub, empty where there is none.
    """
    return trace(base, lambda name: _card_of_weights(name, read))


def describe_run(
    staged: Path, checkpoint: Path, repo: str, url: str, line: Sequence[Ancestor], licence: Licence, read: ReadCard
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
        recipe_text=(staged / RECIPE).read_text(encoding="utf-8"),
        data=_data_facts(recipe["dataset"]["path"], staged / "split.json", read),
        line=line,
        licence=licence,
        results=_counted(staged) or _logged(records, recipe, checkpoint.name == "final"),
        environment=environments[-1] if environments else {},
        pictures=[path.relative_to(staged).as_posix() for path in find_overlays(staged / "overlays")],
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
    if (folder.parent / RECIPE).is_file():
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
        licence=describe(metadata).rstrip("."),
        source=source and source.rstrip("."),
        is_non_commercial=is_non_commercial(metadata),
    )


def _facts_in_folder(path: str) -> dict[str, Any]:
    """What README.md and the label file of a folder say about the data."""
    from segtune.data.sources import LABEL_FILES, resolve_path

    try:
        root = resolve_path(path)
    except SegtuneError:  # the data is not on this machine
        return {}
    facts: dict[str, Any] = {}
    for name in LABEL_FILES:
        content = _read_json(root / name) if (root / name).is_file() else {}
        if isinstance(content, dict):
            facts |= {key: content[key] for key in ("name", "source") if isinstance(content.get(key), str)}
            licences = [value for key, value in content.items() if re.match("licen[cs]e", key)]
            facts |= {"license": licences[0]} if licences else {}
    if (root / "README.md").is_file():
        facts |= read_front_matter((root / "README.md").read_text(encoding="utf-8"))
    return facts


def _counted(staged: Path) -> Results | None:
    """The evaluation on the test split, else the validation split, with intervals."""
    from segtune.evaluation import Evaluation, file_name
    from segtune.uncertainty import intervals

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
