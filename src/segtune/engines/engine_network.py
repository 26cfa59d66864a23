"""A network that OpenVINO or ONNX Runtime runs, in the place of one of PyTorch: images in, logits out."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from transformers.modeling_outputs import SemanticSegmenterOutput

from segtune.engines import onnxruntime_engine, openvino_engine
from segtune.engines.attention_blocks import attend_in_blocks
from segtune.engines.graph import CHECKSUMS, Opened
from segtune.engines.onnx_model import INPUT, OUTPUT, SMALLEST_SIDE, logits_model
from segtune.engines.packages import require
from segtune.errors import DataError, UsageError
from segtune.files import fingerprint
from segtune.segformer.checkpoint_files import CERTIFICATE_FILE, CONFIG, check_config, has_weights, read_json
from segtune.segformer.configuration_segformer import SegformerConfig
from segtune.segformer.loading import load_model
from segtune.segformer.modeling_segformer import SegformerForSemanticSegmentation

Engine = Literal["torch", "openvino", "onnxruntime"]

GRAPHS = {  # of an exported folder, by engine: the first one that is there is taken
    "openvino": ("openvino/model.xml", "onnx/model.onnx"),
    "onnxruntime": ("onnx/model.onnx",),
}
_PACKAGES = {"openvino": ("openvino",), "onnxruntime": ("onnx", "onnxruntime")}
_SUFFIXES = {"openvino": (".xml", ".onnx"), "onnxruntime": (".onnx",)}


class EngineNetwork(nn.Module):
    """Stands where a `SegformerForSemanticSegmentation` does in prediction and evaluation; on a CPU, without gradients.

    Attributes:
        config: of the checkpoint, with the names and colours of its classes and its temperature.
        name_or_path: where the image processor is looked for.
        engine: "openvino" or "onnxruntime".
        precision: see `Opened`.
    """

    digest: Tensor

    def __init__(
        self, config: SegformerConfig, name_or_path: str, engine: str, opened: Opened, content: Iterable[bytes] = ()
    ) -> None:
        super().__init__()
        self.config, self.name_or_path, self.engine = config, name_or_path, engine
        self.precision, self._opened = opened.precision, opened
        # says to callers where images go, and in which type
        self.place = nn.Parameter(torch.zeros(()), requires_grad=False)
        # stands for the weights, where results of the same weights are told from those of others
        digest = hashlib.sha256()
        for part in content:
            digest.update(part)
        self.register_buffer("digest", torch.tensor(list(digest.digest()), dtype=torch.uint8))

    def _apply(self, *args: Any, **kwargs: Any) -> EngineNetwork:
        """What `to(device)` and the like call."""
        moved: EngineNetwork = super()._apply(*args, **kwargs)
        if self.place.device.type != "cpu":
            raise UsageError(f"device {self.place.device}: {self.engine} runs on the CPU here")
        return moved

    @property
    def device(self) -> torch.device:
        return self.place.device

    def num_parameters(self) -> int:
        return self._opened.parameters

    def forward(self, pixel_values: Tensor) -> SemanticSegmenterOutput:
        """Logits `(B, K, H/4, W/4)`, sides rounded up, of normalised images `(B, C, H, W)`, float32.

        Raises:
            DataError: images of other channels, or smaller than a graph of any size takes.
        """
        if pixel_values.ndim != 4 or pixel_values.shape[1] != self.config.num_channels:
            raise DataError(
                f"pixel_values has shape {tuple(pixel_values.shape)}, "
                f"expected (batch, {self.config.num_channels}, height, width)"
            )
        height, width = pixel_values.shape[2:]
        self.check_size(height, width)
        images = np.ascontiguousarray(pixel_values.detach().float().numpy())
        batches = np.split(images, len(images)) if self._opened.given[0] == 1 else [images]
        logits = np.concatenate([self._opened.run(each) for each in batches])
        kernel, stride = self.config.patch_sizes[0], self.config.strides[0]
        sides = ((side + 2 * (kernel // 2) - kernel) // stride + 1 for side in (height, width))  # of the first stage
        expected = (len(images), self.config.num_labels, *sides)
        if logits.shape != expected:
            raise DataError(
                f"{self.name_or_path}: the graph answers {logits.shape}, the logits of a SegFormer are {expected}: it "
                "is that of another network; export the checkpoint once more"
            )
        return SemanticSegmenterOutput(logits=torch.from_numpy(logits))

    def check_size(self, height: int, width: int) -> None:
        """Raise DataError where the graph takes no image of this size."""
        sides = tuple(self._opened.given[2:])
        if None not in sides and sides != (height, width):
            raise DataError(
                f"an image of {height}x{width} pixels: {self.name_or_path} was exported for {sides[0]}x{sides[1]} "
                "alone; export without --size"
            )
        if None in sides and min(height, width) < SMALLEST_SIDE:
            raise DataError(
                f"an image of {height}x{width} pixels: --engine {self.engine} takes sides of {SMALLEST_SIDE} or more; "
                "--engine torch takes any"
            )


def open_engine(
    source: SegformerForSemanticSegmentation | str | os.PathLike[str],
    engine: str,
    precision: str = "auto",
    threads: int | None = None,
) -> EngineNetwork:
    """A checkpoint or an exported graph, ready to run in an engine.

    Args:
        source: a model; a checkpoint's folder or Hub id, which is converted in memory; an exported folder, in which
            `GRAPHS` are looked for; or a file `.onnx` or `.xml`, with a `config.json` beside it or one folder above.
        engine: "openvino" or "onnxruntime".
        precision: "auto" is what the engine is fastest in: with OpenVINO bf16 on a CPU that computes in it; "fp32".
        threads: of the engine; default is PyTorch's number.

    Raises:
        UsageError: there is no such engine, precision, file or package; the message says what to do.
        DataError: the file is damaged or another graph than that of logits, or is not of its `config.json`.
    """
    if engine not in _SUFFIXES:
        raise UsageError(f"--engine {engine}: give one of {', '.join(get_args(Engine))}")
    require(f"--engine {engine}", *_PACKAGES[engine])
    open_graph = {"openvino": openvino_engine.open_graph, "onnxruntime": onnxruntime_engine.open_graph}[engine]
    threads = torch.get_num_threads() if threads is None else threads
    path = None if isinstance(source, SegformerForSemanticSegmentation) else find_graph(source, engine)
    if path is None:
        require(f"--engine {engine} converts a checkpoint, which", "onnx", "onnxscript")
        model = source if isinstance(source, SegformerForSemanticSegmentation) else load_model(os.fspath(source))
        graph = logits_model(model)
        if engine == "onnxruntime":
            graph = attend_in_blocks(graph)
        opened = open_graph(graph.SerializeToString(), precision, threads)
        content = (value.cpu().contiguous().view(-1).view(torch.uint8).numpy() for value in model.state_dict().values())
        return EngineNetwork(model.config, model.name_or_path, engine, opened, map(bytes, content))
    folder = _folder_of(path)
    config = SegformerConfig.from_dict(read_json(folder / CONFIG))
    files = [path, path.with_suffix(".bin")] if path.suffix == ".xml" else [path]
    _check_sums(folder, files)
    opened = open_graph(path, precision, threads)
    _check_shapes(path, opened, config)
    return EngineNetwork(config, str(folder), engine, opened, map(Path.read_bytes, files))


def find_graph(source: str | os.PathLike[str], engine: str) -> Path | None:
    """The exported graph that `source` is or holds; None for a checkpoint, which is to be converted.

    Raises:
        UsageError: a file that is no graph, or one of another engine.
    """
    path = Path(source)
    if path.is_dir():
        found = next((path / name for name in GRAPHS[engine] if (path / name).is_file()), None)
        if found is None and not has_weights(path):
            _refuse_other_engine(path, engine)
        return found
    if not path.exists():
        return None
    if path.suffix not in _SUFFIXES[engine]:
        raise UsageError(
            f"{path}: --engine {engine} reads {' and '.join(_SUFFIXES[engine])}, their folders, and checkpoints"
        )
    return path


def _refuse_other_engine(folder: Path, engine: str) -> None:
    """Raise UsageError for a folder that was exported for another engine."""
    for other, names in GRAPHS.items():
        if other != engine and any((folder / name).is_file() for name in names):
            raise UsageError(
                f"{folder} was exported for {other}, and holds no weights: say --engine {other}, or export it once "
                "more with --to onnx"
            )


def refuse_graph(source: str | os.PathLike[str]) -> None:
    """Raise UsageError where PyTorch is asked to run what was exported for engines."""
    path = Path(source)
    for engine in ("onnxruntime", "openvino"):
        if path.is_file() and path.suffix in _SUFFIXES[engine]:
            raise UsageError(f"{path} is an exported graph: say --engine {engine}")
        if path.is_dir() and find_graph(path, engine) and not has_weights(path):
            raise UsageError(
                f"{path} holds an exported graph and no weights: say --engine {engine}, where a command takes it, or "
                "give the checkpoint itself"
            )


def _folder_of(path: Path) -> Path:
    """The folder of the `config.json` that a graph belongs to."""
    for folder in (path.parent, path.parent.parent):
        if (folder / CONFIG).is_file():
            check_config(folder / CONFIG)
            return folder
    raise UsageError(
        f"{path} has no {CONFIG} beside it or one folder above: its classes and channels stand there; "
        "copy it from the checkpoint"
    )


def _check_sums(folder: Path, files: Sequence[Path]) -> None:
    """Raise DataError for files other than those that the certificate of their folder was made of.

    An engine reads weights that lie wrong as well as those that lie right.
    """
    certificate = folder / CERTIFICATE_FILE
    if not certificate.is_file():
        return
    known = read_json(certificate).get(CHECKSUMS) or {}
    for file in files:
        expected = known.get(file.relative_to(folder).as_posix())
        if expected is not None and fingerprint(file).get("sha256") != expected:
            what = "damaged, or another file" if file.is_file() else "missing"
            raise DataError(
                f"{file} is {what}: {certificate} was made of one with another checksum. Copy the export once more; or "
                "remove the certificate, which does not speak for this file"
            )


def _check_shapes(path: Path, opened: Opened, config: SegformerConfig) -> None:
    given, made = opened.given, opened.made
    expected = f"its {CONFIG} says {config.num_channels} channels and {config.num_labels} labels"
    if len(given) != 4 or len(made) != 4:
        raise DataError(f"{path} is not the graph from {INPUT} to {OUTPUT} of a SegFormer: export it once more")
    if given[1] not in (None, config.num_channels) or made[1] not in (None, config.num_labels):
        raise DataError(f"{path} has {given[1]} channels and {made[1]} labels, {expected}: copy both from one export")
