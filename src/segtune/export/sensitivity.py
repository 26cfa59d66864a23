"""Which layers may be computed in 8-bit integers: each kind quantised alone, and all the others without it."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from segtune.bars import progress_bar
from segtune.engines import onnxruntime_engine, openvino_engine
from segtune.engines.engine_network import EngineNetwork
from segtune.engines.graph import Opened
from segtune.engines.onnx_model import logits_model
from segtune.errors import UsageError
from segtune.evaluation.evaluation import Evaluation
from segtune.evaluation.uncertainty import compare
from segtune.export.calibration_inputs import CALIBRATION_IMAGES, network_inputs, spread
from segtune.export.layer_kinds import KINDS, PARTS, Layer
from segtune.export.quantize import (
    int8_layers,
    open_quantizer,
)
from segtune.export.sessions import Runtime
from segtune.export.verdict import Candidate, verdict
from segtune.inference.evaluate import evaluated_images
from segtune.inference.evaluate_checkpoint import DataSettings, OpenedCheckpoint, open_checkpoint
from segtune.segformer.modeling_segformer import SegformerForSemanticSegmentation

IMAGES = 20
REPEATS = 9  # of a timing, in turns with float32


class Choice(NamedTuple):
    """A row of the table: what is quantised.

    Attributes:
        group: "all", "kind" or "part".
        name: of the kind or part; of all, "every layer" or "int8" (the kinds that an export quantises).
        layers: names of those that are quantised.
        others: whether these are all but the kind or part.
    """

    group: str
    name: str
    layers: frozenset[str]
    others: bool = False


def sensitivity(
    checkpoint: str | os.PathLike[str],
    data: str | os.PathLike[str] | DataSettings,
    *,
    runtime: Runtime = "onnxruntime",
    split: str | None = None,
    images: int = IMAGES,
    calibration: int = CALIBRATION_IMAGES,
    agreement: float = 0.99,
    progress: bool = True,
) -> dict[str, Any]:
    """Quantise each kind of layer alone, and all but it, and compare with float32 on labelled images.

    Every kind is tried that there is, also those that stay in floating point in an export (`INT8_KINDS` says which do
    not); a quantiser that leaves a kind alone whatever it is told makes a row with `rounded` 0.

    Args:
        data: a recipe, or the path of a data set; it needs a training split, whose images calibrate.
        runtime: "onnxruntime", whose own quantiser takes every kind; or "openvino", with nncf.
        split: that is evaluated; by default test where the data has it, else val.
        images: of the split, spread over it.
        calibration: images of the training split.
        agreement: the least that a file may have to be recommended.

    Returns:
        JSON-able: what was measured on (`checkpoint`, `runtime`, `split`, `images`, `calibration`, `threads`), the
        `rows`, and the `verdict`. A row has `group`, `name`, `others`, `layers` and `rounded` (numbers of layers and of
        rounded maps and weights), `agreement` (the share of pixels with the class of float32), `mean_iou` of the true
        masks, `difference` from that of float32 with its `interval` (paired bootstrap), `milliseconds` of the network
        for one input, and `time`, the median of its ratios to float32 in turns.

    Raises:
        UsageError: no such checkpoint, data or split, or a package is missing.
        DataError: a file that cannot be read, or a mask that the label map does not fit.
    """
    opened = open_checkpoint(checkpoint, data, split=split, device="cpu")
    if "train" not in opened.dataset:
        raise UsageError("int8 is calibrated on images of the training split, and the data has none")
    assert isinstance(opened.model, SegformerForSemanticSegmentation)  # no engine was asked for
    network = logits_model(opened.model)
    inputs = network_inputs(opened.dataset["train"], opened.label_map, opened.processor, calibration)
    quantizer = open_quantizer(network, inputs, runtime)
    graph = network.SerializeToString()
    table = _Table(opened, runtime, spread(len(opened.rows), images), inputs[0])
    candidates, rows = [], []
    with tempfile.TemporaryDirectory() as folder:
        reference = table.open(graph, "fp32")
        table.measure_reference(reference)
        plain = table.row(reference, "float32")
        candidates.append(Candidate("fp32", plain))
        if runtime == "openvino" and (half := table.open(graph, "auto")).precision == "bf16":
            candidates.append(Candidate("bf16", table.row(half, "bf16")))
        for number, choice in enumerate(_bar(_choices(quantizer.layers), hidden=not progress)):
            path = Path(folder, f"{number}{quantizer.suffix}")
            rounded = quantizer.save(choice.layers, path)
            row = _about(choice, rounded)
            if rounded:
                row |= table.row(table.open(path, "fp32"), choice.name)
            rows.append(row)
            if choice.name == "int8":
                # as an engine runs it: what stays in floating point is in bfloat16 where that is faster
                candidates.append(Candidate("int8", table.row(table.open(path, "auto"), "int8")))
    return {
        "checkpoint": opened.name,
        "runtime": runtime,
        "split": opened.split,
        "images": len(table.indices),
        "calibration": len(inputs),
        "threads": torch.get_num_threads(),
        "input": list(inputs[0].shape[2:]),
        "mean_iou": plain["mean_iou"],
        "files": [candidate.to_dict() for candidate in candidates],
        "rows": rows,
        "verdict": verdict(candidates, agreement),
    }


def _bar(choices: Sequence[Choice], hidden: bool) -> Iterable[Choice]:
    bar: Iterable[Choice] = progress_bar(choices, desc="quantise", unit="graph", hidden=hidden, leave=False)
    return bar


def _choices(layers: Sequence[Layer]) -> list[Choice]:
    every = frozenset(layer.name for layer in layers)
    usual = frozenset(int8_layers(layers))
    choices = [Choice("all", "every layer", every), Choice("all", "int8", usual)]
    groups = (("kind", KINDS, "kind"), ("part", PARTS, "part"))
    for others in (False, True):
        for group, names, field in groups:
            for name in names:
                chosen = frozenset(layer.name for layer in layers if getattr(layer, field) == name)
                if chosen:
                    # of a part, what an export would quantise; of a kind, all of it
                    pool = usual if group == "part" else every
                    choices.append(Choice(group, name, pool - chosen if others else pool & chosen, others))
    return choices


def _about(choice: Choice, rounded: int) -> dict[str, Any]:
    about = {"group": choice.group, "name": choice.name, "others": choice.others}
    return about | {"layers": len(choice.layers), "rounded": rounded}


class _Table:
    """Measures graphs against the one in float32, on the same images."""

    def __init__(self, opened: OpenedCheckpoint, runtime: Runtime, indices: Sequence[int], sample: np.ndarray) -> None:
        self.opened, self.runtime, self.indices, self._sample = opened, runtime, indices, sample

    def open(self, graph: Path | bytes, precision: str) -> Opened:
        module = onnxruntime_engine if self.runtime == "onnxruntime" else openvino_engine
        return module.open_graph(graph, precision, torch.get_num_threads())

    def measure_reference(self, reference: Opened) -> None:
        self._reference = reference
        self._masks, self._truth = self._answers(reference)

    def row(self, graph: Opened, name: str) -> dict[str, Any]:
        masks, truth = (self._masks, self._truth) if graph is self._reference else self._answers(graph)
        same = sum(int((mask == self._masks[key]).sum()) for key, mask in masks.items())
        row: dict[str, Any] = {"agreement": same / sum(mask.size for mask in masks.values())}
        found = compare(self._truth, truth)["mean_iou"] if len(truth) > 1 else None
        row["mean_iou"] = truth.scores()["mean_iou"]
        row["difference"] = found["difference"] if found else row["mean_iou"] - self._truth.scores()["mean_iou"]
        row["interval"] = found["bca"] if found else None
        own, ratio = in_turns(lambda: self._reference.run(self._sample), lambda: graph.run(self._sample))
        return row | {"milliseconds": own, "time": ratio}

    def _answers(self, graph: Opened) -> tuple[dict[str, np.ndarray], Evaluation]:
        model, label_map = self.opened.model, self.opened.label_map
        network: nn.Module = EngineNetwork(model.config, model.name_or_path, self.runtime, graph)
        evaluation, masks = Evaluation(label_map.names, label_map.ignore_index), {}
        found = evaluated_images(
            network, self.opened.rows, label_map, self.opened.processor, indices=self.indices, progress=False
        )
        for image in found:
            evaluation.add(image.id, image.labels, image.prediction)
            masks[image.id] = image.prediction
        return masks, evaluation


def in_turns(reference: Callable[[], Any], other: Callable[[], Any]) -> tuple[float, float]:
    """Milliseconds of the other, and its time as a share of the reference's: medians over calls in turns."""
    seconds: list[list[float]] = [[], []]
    for _ in range(REPEATS + 1):
        for times, call in zip(seconds, (reference, other), strict=True):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
    first, second = (times[1:] for times in seconds)  # the first calls prepare
    ratios = [b / a for a, b in zip(first, second, strict=True)]
    return round(1000 * statistics.median(second), 2), round(statistics.median(ratios), 3)


def summary(result: dict[str, Any]) -> Iterator[str]:
    """What is said below the table: on what it was measured, each file, and which one to use."""
    yield (
        f"{result['runtime']}, {result['threads']} threads, inputs of {result['input'][0]}x{result['input'][1]}; "
        f"{result['images']} images of {result['split']}, calibrated on {result['calibration']} of train; float32 has "
        f"mIoU {result['mean_iou']:.4f}; time as a share of float32's"
    )
    for file in result["files"]:
        yield (
            f"{file['name']}: {file['milliseconds']:.1f} ms, {file['time']:.2f} of fp32's, agreement "
            f"{file['agreement']:.4f}, mIoU {file['mean_iou']:.4f}"
        )
    yield from result["verdict"]["reasons"]


def sensitivity_markdown(result: dict[str, Any]) -> str:
    """The rows as a table for documents: one for each kind and part, alone and all but it side by side."""
    lines = [
        "| quantised | alone: agreement | mIoU lost | time | all but it: agreement | mIoU lost | time |",
        "|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*lines, *(f"| {' | '.join(cells)} |" for cells in table_cells(result))]) + "\n"


def table_cells(result: dict[str, Any]) -> Iterator[list[str]]:
    """Of each line of the table: the name, then agreement, mIoU lost and time, alone and without it."""
    rows = result["rows"]
    without = {(row["group"], row["name"]): row for row in rows if row["others"]}
    for row in rows:
        if not row["others"]:
            other = without.get((row["group"], row["name"]))
            yield [row["name"], *_cells(row), *(_cells(other) if other else [""] * 3)]


def _cells(row: dict[str, Any]) -> list[str]:
    if not row["rounded"]:
        return ["stays float", "", ""]
    lost, ends = -row["difference"] + 0.0, row["interval"]
    interval = f" [{-ends[1]:+.4f}, {-ends[0]:+.4f}]" if ends and None not in ends else ""
    return [f"{row['agreement']:.4f}", f"{lost:+.4f}{interval}", f"{row['time']:.2f}"]
