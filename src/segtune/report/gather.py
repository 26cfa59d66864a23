"""Facts of a report, gathered from a run or checkpoint, its recipe, and a look at one split of the data."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from segtune.data.streaming import is_stream
from segtune.engines.engine_network import EngineNetwork
from segtune.evaluation import uncertainty
from segtune.evaluation.evaluation import Evaluation, file_name
from segtune.files import read_json_lines
from segtune.inference.evaluate_checkpoint import OpenedCheckpoint
from segtune.inference.processor import load_processor
from segtune.inference.protocol import InferenceProtocol
from segtune.labels.label_map import LabelMap
from segtune.report.examples import Examination, examine
from segtune.segformer.loading import load_model
from segtune.training.distributed import versions
from segtune.training.run_folder import FINAL, METRICS_FILE, RECIPE_FILE, REPORT_FILE, find_checkpoint
from segtune.viz.charts import LineChart

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)

AT_MOST = 200  # images that are looked at, at the end of a training


class Subject(NamedTuple):
    """What a report is about: the weights, and the run that they are of; None where they are in no run folder."""

    run: Path | None
    checkpoint: str

    @property
    def page(self) -> Path:
        """Where the report goes by default."""
        return (self.run or Path()) / REPORT_FILE


class Part(NamedTuple):
    """A part of a page that only some kinds of reports have: a table under a sentence, and charts.

    Attributes:
        anchor: by which links lead there.
        heads: of the columns, the first of which names the rows.
        rows: cells as they are shown.
    """

    anchor: str
    title: str
    text: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    charts: Sequence[LineChart] = ()


@dataclass
class Facts:
    """Everything that the page shows.

    Attributes:
        split: that was evaluated; None: nothing was.
        evaluation: of all images of the split.
        examination: of all of them or, after a training on much data, of some.
        scores: of `evaluation`.
        details: those of `examination`, boundaries, sizes and calibration among them.
        intervals: see `uncertainty.intervals`.
        records: lines of metrics.jsonl.
        images: of each split; None where they are not counted before they are read.
        pixels: of each class in each split, `(K + 1,)`, ignored pixels last.
        recipe: its text.
        environment: of the training or, where there is none, of the report.
        parts: that come before all others.
    """

    subject: Subject
    label_map: LabelMap
    recipe: str
    parameters: int = 0
    split: str | None = None
    protocol: str = ""
    temperature: float = 1.0
    evaluation: Evaluation | None = None
    examination: Examination | None = None
    scores: dict[str, Any] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    intervals: dict[str, Any] = field(default_factory=dict)
    records: list[dict[str, Any]] = field(default_factory=list)
    images: dict[str, int | None] = field(default_factory=dict)
    pixels: dict[str, np.ndarray] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    parts: Sequence[Part] = ()
    written: str = field(default_factory=lambda: time.strftime("%Y-%m-%d %H:%M"))


def find_subject(name: str) -> Subject:
    """A run folder, its best/ or final/, or a checkpoint: another folder or a Hub id.

    Raises:
        UsageError: a run folder that has no weights yet.
    """
    folder = Path(name)
    if (folder / RECIPE_FILE).is_file() or (folder.parent / RECIPE_FILE).is_file():
        run, checkpoint = find_checkpoint(folder)
        return Subject(run, str(checkpoint))
    return Subject(None, name)


def gather(
    subject: Subject,
    opened: OpenedCheckpoint,
    recipe: str,
    *,
    counted: Evaluation | None = None,
    at_most: int | None = None,
    group_by: str | None = None,
    pixels: Mapping[str, np.ndarray] | None = None,
    batch_size: int = 1,
) -> Facts:
    """Look at a split with a model, and put everything together.

    Args:
        opened: where its `split` is None, none is looked at.
        counted: an earlier evaluation of the same weights on the whole split, which then gives the scores.
        at_most: see `examine`.
        group_by: see `uncertainty.intervals`.
        pixels: of each class in each mask, by split, as `check_masks` returns them.
    """
    records = [] if subject.run is None else _records(subject.run)
    environments = [record["environment"] for record in records if "environment" in record]
    model, processor, label_map, split = opened.model, opened.processor, opened.label_map, opened.split
    facts = Facts(
        subject,
        label_map,
        recipe,
        parameters=model.num_parameters(),
        protocol=str(InferenceProtocol.choose(processor)),
        temperature=model.config.calibration_temperature,
        records=records,
        images={name: None if is_stream(rows) else len(rows) for name, rows in opened.dataset.items()},
        pixels={name: counts.sum(axis=0) for name, counts in (pixels or {}).items()},
        environment=environments[-1] if environments else _environment(model),
    )
    if split is not None:
        options: dict[str, Any] = {"counted": counted, "at_most": at_most, "batch_size": batch_size}
        facts.split = split
        facts.examination = examine(model, opened.rows, label_map, processor, **options)
        facts.evaluation = counted or facts.examination.evaluation
        facts.details = facts.examination.evaluation.scores()
        facts.scores = facts.details if counted is None else counted.scores()
        facts.intervals = uncertainty.intervals(facts.evaluation, group_by=group_by)
    return facts


def of_training(
    run: Path,
    dataset: Mapping[str, datasets.Dataset],
    label_map: LabelMap,
    *,
    pixels: Mapping[str, np.ndarray] | None,
    batch_size: int,
    device: torch.device,
) -> Facts:
    """The facts of a training that has ended: best/ on the validation split, as it was counted when it was saved.

    Of a large split some images are looked at in detail.
    """
    subject = find_subject(str(run))
    counts = run / file_name("val")
    model = load_model(subject.checkpoint).to(device)
    split = "val" if "val" in dataset else None
    return gather(
        subject,
        OpenedCheckpoint(subject.checkpoint, model, load_processor(model), label_map, dataset, split),
        (run / RECIPE_FILE).read_text(encoding="utf-8"),
        counted=Evaluation.load(counts) if counts.is_file() else None,
        at_most=AT_MOST,
        pixels=pixels,
        batch_size=batch_size,
    )


def _records(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; it is told where some are missing, since the curves then lack their points."""
    path = run / METRICS_FILE
    records = read_json_lines(path) if path.is_file() else []
    if not path.is_file():
        logger.warning("%s is no file: the report has no curves of the training", path)
    elif (run / FINAL).is_dir() and not any("ended" in record for record in records):
        logger.warning("%s breaks off before the end of the run, and so do the curves", path)
    return records


def _environment(model: Any) -> dict[str, Any]:
    return {
        **({"engine": f"{model.engine}, {model.precision}"} if isinstance(model, EngineNetwork) else {}),
        **versions(),
        "device": str(next(model.parameters()).device),
        "threads": torch.get_num_threads(),
    }
