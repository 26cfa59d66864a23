"""Evaluation of a checkpoint: scores with error bars on one split of a data set."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from segtune.data.config import DatasetConfig, TransformConfig
from segtune.data.dataset import open_dataset
from segtune.data.lazy_rows import sample_ids
from segtune.data.splits import choose_split
from segtune.engines.engine_network import Engine
from segtune.errors import UsageError
from segtune.evaluation import uncertainty
from segtune.evaluation.evaluation import Evaluation
from segtune.inference.config import EvaluationConfig
from segtune.inference.device import Precision
from segtune.inference.evaluate import evaluate_model
from segtune.inference.open_network import engine_of, open_networks, precision_of
from segtune.inference.parallel.count_blocks import SharedCount, count_blocks
from segtune.inference.parallel.processes import weights_digest
from segtune.inference.processor import load_processor, processor_from_transforms
from segtune.inference.protocol import InferenceProtocol
from segtune.labels.label_map import LabelMap
from segtune.segformer.image_processing_segformer import SegformerImageProcessor
from segtune.viz.comparisons import Comparisons

if TYPE_CHECKING:
    import datasets

    from segtune.engines.engine_network import EngineNetwork
    from segtune.inference.ensemble import Ensemble
    from segtune.segformer.modeling_segformer import SegformerForSemanticSegmentation

# a folder or Hub id; or several, whose probabilities are averaged
Checkpoints = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


class DataSettings(Protocol):
    """What evaluation needs of a recipe."""

    @property
    def dataset(self) -> DatasetConfig: ...

    @property
    def transforms(self) -> TransformConfig: ...

    @property
    def evaluation(self) -> EvaluationConfig: ...


@dataclass
class CheckpointEvaluation:
    """The scores of a checkpoint on a split, with error bars.

    Attributes:
        checkpoint: its folder or Hub id; of an ensemble, those of all with " + " between.
        split: that was evaluated.
        protocol: how images were seen, such as "whole" or "slide 1024 stride 768".
        precision: in which the network ran: "fp32", "bf16", "fp16" or "int8".
        engine: what ran it: "torch", "openvino" or "onnxruntime".
        evaluation: the counts of each image, which `save` keeps for `segtune compare`.
        scores: see `Evaluation.scores`.
        intervals: see `uncertainty.intervals`.
    """

    checkpoint: str
    split: str
    protocol: str
    precision: str
    engine: str
    evaluation: Evaluation
    scores: dict[str, Any]
    intervals: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: the scores, before them what was evaluated and how, behind them `intervals`."""
        about = {"checkpoint": self.checkpoint, "split": self.split, "protocol": self.protocol}
        return (
            about | {"precision": self.precision, "engine": self.engine} | self.scores | {"intervals": self.intervals}
        )

    def save(self, path: str | Path) -> None:
        """Keep the counts of each image in a file (.npz) that `segtune compare` and `Evaluation.load` read."""
        self.evaluation.save(path)


class OpenedCheckpoint(NamedTuple):
    """A checkpoint, ready to run over a split of a data set whose classes are its own.

    Attributes:
        name: its folder or Hub id; of an ensemble, those of all with " + " between.
        dataset: the rows of all splits; `rows` are those of `split`.
        split: None where the data has none to evaluate.
    """

    name: str
    model: SegformerForSemanticSegmentation | EngineNetwork | Ensemble
    processor: SegformerImageProcessor
    label_map: LabelMap
    dataset: Mapping[str, Any]
    split: str | None

    @property
    def rows(self) -> datasets.Dataset:
        rows: datasets.Dataset = self.dataset[self.split or "val"]
        return rows


def evaluate_checkpoint(
    checkpoint: Checkpoints,
    data: str | os.PathLike[str] | DataSettings,
    *,
    split: str = "test",
    window: int | None = None,
    stride: int | None = None,
    tta: bool = False,
    group_by: str | None = None,
    boundary_width: float | None = None,
    overlays: str | os.PathLike[str] | None = None,
    limit_overlays: int = 12,
    batch_size: int = 1,
    device: str | None = None,
    precision: Precision = "auto",
    engine: Engine = "torch",
    progress: bool = True,
) -> CheckpointEvaluation:
    """Score a checkpoint on one split of a data set, at the masks' own size, with bootstrap intervals.

    Args:
        checkpoint: a folder such as "runs/demo/best", or a Hub id "user/name" or "user/name@revision". With an engine
            also an exported folder or file. Of a list of them, the mean of the probabilities counts.
        data: a recipe, as `load_recipe` returns it; or the path of a data set whose masks hold what the checkpoint was
            trained on.
        split: "train", "val" or "test".
        window: side of the windows, a multiple of 32; 0 for the whole image at once. Default is what the checkpoint's
            processor says.
        stride: pixels from one window to the next; default is the processor's or three quarters of the window.
        tta: average the probabilities over six scales from 0.5 to 1.75, each with and without a flip.
        group_by: a regular expression; images whose ids agree in what it finds are resampled together.
        boundary_width: the margin that boundary IoU looks at, as a share of the image's diagonal; default is 0.02.
        overlays: a folder for pictures image | truth | prediction of `limit_overlays` samples, spread over the split.
        batch_size: images of one size, or windows of one image, that run at once.
        device: "cpu", "cuda", "mps", …; default is the best there is.
        precision: "fp32", "bf16" or "fp16"; "auto" is half precision on GPUs that have units for it, float32 elsewhere.
            An engine has its own, see `open_engine`.
        engine: what runs the network: "torch", or on a CPU "openvino" or "onnxruntime".
        progress: show a bar on stderr.

    Raises:
        UsageError: no such checkpoint, data set, split or device; the labels of both differ; no such window or groups.
        DataError: a file that cannot be read, or a mask that the label map does not fit; the message names the sample.
    """
    found = evaluate_share(
        checkpoint,
        data,
        None,
        split=split,
        window=window,
        stride=stride,
        tta=tta,
        group_by=group_by,
        boundary_width=boundary_width,
        overlays=overlays,
        limit_overlays=limit_overlays,
        batch_size=batch_size,
        device=device,
        precision=precision,
        engine=engine,
        progress=progress,
    )
    assert found is not None  # one process counts all
    return found


def evaluate_share(
    checkpoint: Checkpoints,
    data: str | os.PathLike[str] | DataSettings,
    shared: SharedCount | None,
    *,
    split: str,
    window: int | None,
    stride: int | None,
    tta: bool,
    group_by: str | None,
    boundary_width: float | None,
    overlays: str | os.PathLike[str] | None,
    limit_overlays: int,
    batch_size: int,
    device: str | None,
    precision: Precision,
    engine: Engine = "torch",
    progress: bool = True,
) -> CheckpointEvaluation | None:
    """As `evaluate_checkpoint`, in one of several processes, or from where an earlier command was stopped.

    Args:
        shared: where counts are kept until all are there; None counts all images in this process.

    Returns:
        None unless this process ended last: that one has the counts of all.
    """
    how: dict[str, Any] = {"device": device, "engine": engine, "precision": precision}
    opened = open_checkpoint(checkpoint, data, split=split, group_by=group_by, **how)
    label_map = opened.label_map
    pictures = None
    if overlays is not None:
        pictures = Comparisons(Path(overlays), label_map, sample_ids(opened.rows), limit_overlays, overview=True)
    protocol = InferenceProtocol.choose(opened.processor, window, stride, tta)
    computed = precision_of(opened.model, precision)
    named = {"checkpoint": opened.name, "split": split, "protocol": str(protocol), "precision": computed}
    named["engine"] = engine_of(opened.model)
    make = partial(Evaluation, label_map.names, label_map.ignore_index, detailed=True, boundary_width=boundary_width)
    options: dict[str, Any] = {"model": opened.model, "label_map": label_map, "processor": opened.processor}
    options |= {"protocol": protocol, "batch_size": batch_size, "precision": precision, "progress": progress}
    on_image = pictures.save if pictures else None
    about = named | {"calibration_temperature": opened.model.config.calibration_temperature}
    about |= {"weights": weights_digest(opened.model)}
    evaluation: Evaluation | None
    if shared is None:
        evaluation = evaluate_model(dataset=opened.rows, evaluation=make(), on_image=on_image, **options)
    elif evaluation := shared.earlier(about, make().boundary_width, sample_ids(opened.rows)):
        if shared.processes.index:
            return None  # one is enough to say what is there
    else:
        settings = {name: value for name, value in about.items() if name != "checkpoint"}
        settings |= {"boundary width": make().boundary_width}
        evaluation = count_blocks(opened.rows, make, shared, settings, on_image, confidence=True, **options)
    if evaluation is None:
        return None
    if pictures:
        if absent := pictures.absent():  # other processes drew them
            positions = [number for number, i in enumerate(sample_ids(opened.rows)) if i in absent]
            evaluate_model(dataset=opened.rows, on_image=on_image, indices=positions, **options)
        pictures.save_overview()
    evaluation.counts.sort()
    evaluation.about = about
    intervals = uncertainty.intervals(evaluation, group_by=group_by)
    return CheckpointEvaluation(**named, evaluation=evaluation, scores=evaluation.scores(), intervals=intervals)


def open_checkpoint(
    checkpoint: Checkpoints,
    data: str | os.PathLike[str] | DataSettings,
    *,
    split: str | None = "test",
    group_by: str | None = None,
    device: str | None = None,
    engine: Engine = "torch",
    precision: Precision = "auto",
) -> OpenedCheckpoint:
    """Load a checkpoint and open the data that it is to be run on.

    Args:
        split: default is test where the data has it, else val.
        group_by: is checked before the checkpoint is loaded, see `uncertainty.units_of`.
        checkpoint, data, device, engine, precision: see `evaluate_checkpoint`.

    Raises:
        UsageError: see `evaluate_checkpoint`.
    """
    names = [os.fspath(one) for one in ([checkpoint] if isinstance(checkpoint, (str, os.PathLike)) else checkpoint)]
    name, model, default = " + ".join(names), None, None
    if isinstance(data, (str, os.PathLike)):
        model = open_networks(names, device, engine, precision)
        labels = LabelMap.from_config(model.config)
        config = DatasetConfig(path=os.fspath(data), labels=labels.to_dict(), ignore_index=labels.ignore_index)
    else:
        config, default = data.dataset, partial(processor_from_transforms, data.transforms, data.evaluation)
    at_hand = config.model_copy(update={"streaming": config.streaming and split != "train"})
    dataset, label_map = open_dataset(at_hand)
    split = choose_split(split, dataset, config.path)
    uncertainty.units_of(sample_ids(dataset[split]), group_by)
    model = model or open_networks(names, device, engine, precision, default=default)
    _check_same_labels(name, LabelMap.from_config(model.config), config.path, label_map)
    return OpenedCheckpoint(name, model, load_processor(model, default), label_map, dataset, split)


def _check_same_labels(checkpoint: str, own: LabelMap, path: str, label_map: LabelMap) -> None:
    if own.names != label_map.names:
        raise UsageError(
            f"the labels disagree: {checkpoint} has {own.num_labels} ({', '.join(own.names)}), {path} has "
            f"{label_map.num_labels} ({', '.join(label_map.names)}); dataset.labels can name the checkpoint's"
        )
