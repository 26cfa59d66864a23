"""Engines side by side: from an image to its mask, with transformers' network and with ours, on the same weights."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from torch import Tensor, nn

from segtune.bars import progress_bar
from segtune.engines import onnxruntime_engine, openvino_engine
from segtune.engines.onnx_model import logits_model, to_onnx
from segtune.errors import UsageError
from segtune.segformer.configuration_segformer import VARIANTS, SegformerConfig
from segtune.segformer.image_processing_segformer import SegformerImageProcessor
from segtune.segformer.loading import load_model, without_bars
from segtune.segformer.modeling_segformer import SegformerForSemanticSegmentation
from segtune.segformer.upsampling import upsampled_prediction

BASE = "transformers, PyTorch"
_WARM_UPS = 2


class Way(NamedTuple):
    """From an image to a mask.

    Attributes:
        name: whose network, and what runs it in which precision.
        rival: the same engine with transformers' network, at its own best precision; None for transformers' ways.
        steps: image `(H, W, 3)` to pixel values `(1, 3, H, W)`, these to logits, these to the mask `(H, W)`.
    """

    name: str
    rival: str | None
    steps: tuple[Callable[[Any], Any], ...]


def bench_engines(
    variant: str | None, checkpoint: str | None = None, *, size: int, labels: int, repeats: int, engines: bool
) -> dict[str, Any]:
    """Times of every way in one process, interleaved: of each round the ways' times are compared with one another.

    Args:
        variant: "b0" … "b5", with random weights of the scale of trained ones; or a `checkpoint`.
        size: of the square image, a photograph-like picture of bytes.
        labels: of the network of random weights.
        repeats: rounds that are timed.
        engines: OpenVINO and ONNX Runtime as well.

    Returns:
        JSON-able: `name`, `size`, `labels`, `threads`, `repeats` and `ways`, each with `name`, `ms` from the image to
        the mask and `network_ms` of that (medians), `speedup` over transformers in PyTorch and, of ours, `rival` and
        `speedup_over_rival` (medians of the ratios of each round), and `agreement`: of its mask with ours in PyTorch.

    Raises:
        UsageError: no such variant or checkpoint, or the package of an engine is missing.
    """
    model = _model(variant, labels) if checkpoint is None else load_model(checkpoint)
    model.eval()
    if model.config.num_channels != 3:
        raise UsageError(f"{checkpoint} reads {model.config.num_channels} channels: bench is for images of three")
    with tempfile.TemporaryDirectory() as folder, without_bars():
        model.save_pretrained(folder)
        theirs = transformers.SegformerForSemanticSegmentation.from_pretrained(folder).eval()
    ways = [*_ways_of_theirs(theirs, size, engines), *_ways_of_ours(model, size, engines)]
    times, masks = _timed(ways, _picture(size), repeats)
    rows = []
    for way in ways:
        total, network = times[way.name].T
        row = {"name": way.name, "ms": 1e3 * statistics.median(total), "network_ms": 1e3 * statistics.median(network)}
        row["speedup"] = statistics.median(times[BASE][:, 0] / total)
        if way.rival is not None:
            row |= {"rival": way.rival, "speedup_over_rival": statistics.median(times[way.rival][:, 0] / total)}
        rows.append(row | {"agreement": float((masks[way.name] == masks["segtune, PyTorch"]).mean())})
    about = {"name": checkpoint or variant, "size": size, "labels": model.config.num_labels}
    return about | {"threads": torch.get_num_threads(), "repeats": repeats, "ways": rows}


def _timed(ways: Sequence[Way], image: np.ndarray, repeats: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Seconds of the whole and of the network, `(repeats, 2)`, and the mask, of each way."""
    times: dict[str, list[tuple[float, float]]] = {way.name: [] for way in ways}
    masks = {}
    with torch.inference_mode(), progress_bar(total=repeats + _WARM_UPS, desc="bench", leave=False) as bar:
        for number in range(repeats + _WARM_UPS):
            for way in ways:
                prepare, run, decide = way.steps
                begin = time.perf_counter()
                pixel_values = prepare(image)
                prepared = time.perf_counter()
                logits = run(pixel_values)
                ran = time.perf_counter()
                masks[way.name] = decide(logits)
                if number >= _WARM_UPS:
                    times[way.name].append((time.perf_counter() - begin, ran - prepared))
            bar.update()
    return {name: np.array(values) for name, values in times.items()}, masks


def _ways_of_theirs(model: Any, size: int, engines: bool) -> list[Way]:
    """As the documentation of transformers has it: its processor, its network, its post-processing."""
    processor = transformers.SegformerImageProcessor(size={"height": size, "width": size})

    def prepare(image: np.ndarray) -> Tensor:
        pixel_values: Tensor = processor(images=image, return_tensors="pt")["pixel_values"]
        return pixel_values

    def decide(logits: Tensor) -> np.ndarray:
        outputs = transformers.modeling_outputs.SemanticSegmenterOutput(logits=logits)
        mask: np.ndarray = processor.post_process_semantic_segmentation(outputs, target_sizes=[(size, size)])[0].numpy()
        return mask

    ways = [Way(BASE, None, (prepare, lambda x: model(pixel_values=x).logits, decide))]
    if engines:
        graph = to_onnx(_Logits(model).eval(), torch.zeros(2, 3, 96, 160), {0: "batch", 2: "height", 3: "width"})
        runs = _runs(graph.SerializeToString())
        ways += [Way(f"transformers, {name}", None, (prepare, run, decide)) for name, run in runs.items()]
    return ways


def _ways_of_ours(model: SegformerForSemanticSegmentation, size: int, engines: bool) -> list[Way]:
    processor = SegformerImageProcessor(size={"height": size, "width": size})

    def prepare(image: np.ndarray) -> Tensor:
        pixel_values: Tensor = processor(image, return_tensors="pt")["pixel_values"]
        return pixel_values

    def decide(logits: Tensor) -> np.ndarray:
        return upsampled_prediction(logits, (size, size))[0].numpy()

    ways = [Way("segtune, PyTorch", BASE, (prepare, lambda x: model(pixel_values=x).logits, decide))]
    if engines:
        runs = _runs(logits_model(model).SerializeToString())
        best = next(iter(runs))
        for name, run in runs.items():
            rival = best if name.startswith("OpenVINO") else name
            ways.append(Way(f"segtune, {name}", f"transformers, {rival}", (prepare, run, decide)))
    return ways


def _runs(graph: bytes) -> dict[str, Callable[[Tensor], Tensor]]:
    """Pixel values to logits, by engine and precision; the first one is OpenVINO at its best."""
    threads = torch.get_num_threads()
    opened = [("OpenVINO", openvino_engine.open_graph(graph, "auto", threads))]
    if opened[0][1].precision != "fp32":
        opened.append(("OpenVINO", openvino_engine.open_graph(graph, "fp32", threads)))
    opened.append(("ONNX Runtime", onnxruntime_engine.open_graph(graph, "auto", threads)))
    return {f"{engine} {each.precision}": _on_tensors(each.run) for engine, each in opened}


def _on_tensors(run: Callable[[np.ndarray], np.ndarray]) -> Callable[[Tensor], Tensor]:
    return lambda x: torch.from_numpy(run(x.numpy()))


class _Logits(nn.Module):
    """transformers' network with one output."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        logits: Tensor = self.model(pixel_values=pixel_values, return_dict=False)[0]
        return logits


def _model(variant: str | None, labels: int) -> SegformerForSemanticSegmentation:
    """Random weights, of the scale of trained ones so that the output varies."""
    if variant not in VARIANTS:
        raise UsageError(f"variant {variant!r} does not exist: give some of {','.join(VARIANTS)}")
    torch.manual_seed(0)
    model = SegformerForSemanticSegmentation(SegformerConfig.from_variant(variant, num_labels=labels))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
    return model


def _picture(size: int) -> np.ndarray:
    """Soft shapes of many scales, `(size, size, 3)` uint8, with the spectrum of photographs."""
    rng = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.fftfreq(size)[None]) + 1 / size
    spectrum = np.fft.fft2(rng.normal(size=(3, size, size))) / frequency
    planes = np.fft.ifft2(spectrum).real
    low, high = planes.min(), planes.max()
    return ((planes - low) / (high - low) * 255).astype(np.uint8).transpose(1, 2, 0)
