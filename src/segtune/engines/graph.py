"""A graph in an engine, and what is said of one that is no graph of a SegFormer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from segtune.engines.onnx_model import INPUT, OUTPUT
from segtune.errors import DataError

Shape = Sequence[int | None]  # None: a free side

CHECKSUMS = "checksums"  # in the certificate of an export: the SHA-256 of each file, by its path in the folder


class Opened(NamedTuple):
    """A graph that an engine is ready to run.

    Attributes:
        run: images `(B, C, H, W)` to logits `(B, K, h, w)`, float32 both.
        precision: that it computes in: "fp32", "bf16" or, where its weights or maps are 8-bit integers, "int8".
        given: the shape of the images.
        made: the shape of the logits.
        parameters: how many numbers it holds.
    """

    run: Callable[[np.ndarray], np.ndarray]
    precision: str
    given: Shape
    made: Shape
    parameters: int


def refuse_names(graph: Path | bytes, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Raise DataError where a graph is not the one from `pixel_values` to `logits`."""
    if list(inputs) != [INPUT] or list(outputs) != [OUTPUT]:
        raise DataError(
            f"{named(graph)} maps {', '.join(inputs)} to {', '.join(outputs)}, and --engine runs the graph from "
            f"{INPUT} to {OUTPUT}: give {_home(graph)} of an export"
        )


def _home(graph: Path | bytes) -> str:
    """Where an export has the graph of logits in the format of this one."""
    return "openvino/model.xml" if isinstance(graph, Path) and graph.suffix == ".xml" else "onnx/model.onnx"


def unreadable(graph: Path | bytes, engine: str, error: Exception) -> DataError:
    return DataError(f"{named(graph)} is damaged, or no graph that {engine} reads: {_last_line(error)}")


def refused(graph: Path | bytes, images: np.ndarray, error: Exception) -> DataError:
    return DataError(f"{named(graph)} does not take images of shape {images.shape}: {_last_line(error)}")


def named(graph: Path | bytes) -> str:
    """What messages call a graph."""
    return str(graph) if isinstance(graph, Path) else "the converted checkpoint"


def _last_line(error: Exception) -> str:
    """Of what an engine says; the lines before name its own source files."""
    return next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
