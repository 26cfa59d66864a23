"""`segtune export`: the files of a checkpoint for other runtimes, each with its certificate, or none at all."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from segtune import __version__
from segtune.bars import progress_bar
from segtune.engines.attention_blocks import attend_in_blocks
from segtune.engines.network import LogitsNetwork
from segtune.engines.onnx_model import INPUT, OUTPUT, SMALLEST_SIDE, logits_model
from segtune.errors import DataError, UsageError
from segtune.export import targets
from segtune.export.certificate import (
    FULL,
    HALF,
    Answer,
    Certificate,
    CertificateError,
    Picture,
    Thresholds,
    certify,
    checksums,
    write_certificate,
)
from segtune.export.diagnosis import where_it_differs
from segtune.export.product import describe, product_model
from segtune.export.quantize import int8_layers, open_quantizer
from segtune.export.sessions import Run, Runtime, computes_in_bf16, open_session
from segtune.export.sources import Source
from segtune.export.verdict import Candidate, verdict
from segtune.export.web import LEAST_INT8, PageModel, refuse_other_pictures, write_page
from segtune.export.web_runtime import BUNDLED, runtime_files
from segtune.files import fingerprint, write_folder
from segtune.inference.protocol import InferenceProtocol
from segtune.inference.segmenter import Segmenter, eval_mode, form_of
from segtune.labels.label_map import LabelMap
from segtune.segformer.checkpoint_files import CONFIG
from segtune.segformer.loading import split_revision
from segtune.segformer.upsampling import upsampled_at

if TYPE_CHECKING:
    import onnx

logger = logging.getLogger(__name__)

Target = Literal["onnx", "openvino", "torch", "web", "coreml"]

PRODUCT, LOGITS, HALF_LOGITS = "product.onnx", "onnx/model.onnx", "onnx/model_fp16.onnx"
INT8_PRODUCT = "product_int8.onnx"
INT8_LOGITS = "onnx/model_quantized.onnx"  # as optimum and transformers.js name it
OPENVINO_PRODUCT, OPENVINO_LOGITS, OPENVINO_INT8 = "product.xml", "openvino/model.xml", "openvino/model_int8.xml"
TORCH, COREML = "network.pt2", "network.mlpackage"
_WEIGHTS = re.compile(r"(model|pytorch_model).*\.(safetensors|bin)")


@dataclass(frozen=True)
class Settings:
    """How a checkpoint is exported.

    Attributes:
        size: (height, width) of the only images that the files take; None for any.
        confidence: the product graph also gives the probability of each pixel's class.
        fp16: also write the graph of logits in float16.
        int8: also write it in 8-bit integers, and say whether that is worth it; of a page in the browser, the product
            graph.
        max_drop: of mIoU that int8 may cost on the calibration images, see `open_quantizer`; None: not looked at.
        thresholds, half_thresholds: the least agreement of files in float32, and in fewer bits.
        license: of the weights, for the metadata.
        runtime: where a page in the browser finds ONNX Runtime Web, see `runtime_files`.
    """

    size: tuple[int, int] | None = None
    confidence: bool = False
    fp16: bool = False
    int8: bool = False
    max_drop: float | None = None
    thresholds: Thresholds = FULL
    half_thresholds: Thresholds = HALF
    license: str = "not stated"
    runtime: str = BUNDLED


def export_checkpoint(source: Source, target: Target, output: Path, settings: Settings) -> dict[str, Any]:
    """Write the files of a target into the folder `output`, which a reader finds whole or not at all.

    Returns:
        What `certificate.json` holds.

    Raises:
        UsageError: the checkpoint cannot be exported, or a package is missing.
        CertificateError: a file does not agree with the checkpoint; nothing is left.
    """
    processor = source.processor
    channels = source.model.config.num_channels
    if len(processor.image_mean) != channels:
        raise UsageError(
            f"{source.name}: the model reads {channels} channels, its preprocessor_config.json has image_mean for "
            f"{len(processor.image_mean)}"
        )
    if not InferenceProtocol.choose(processor).is_plain:
        logger.warning(
            "%s predicts in windows of %s (preprocessor_config.json), an exported file sees an image whole: it is "
            "compared with the checkpoint's prediction of whole images",
            source.name,
            processor.window,
        )
    if settings.size is not None:
        _refuse_other_sizes(source, settings.size)
    found: dict[str, Any] = {}

    def write(folder: Path) -> None:
        export = _Export(source, settings, folder, about(source, settings))
        export.write(target)
        found.update(export.certificate(target) | checksums(folder))
        write_certificate(folder, found)

    with eval_mode(source.model):
        write_folder(output, write)
    return found


def _refuse_other_sizes(source: Source, size: tuple[int, int]) -> None:
    """Raise DataError where no picture has the one size that the files are to take."""
    if not any(picture.image.shape[:2] == size for picture in source.pictures()):
        raise DataError(
            f"--size {size[0]}x{size[1]}: none of the {source.total} images has this size; export without --size, or "
            "compare on --images that have it"
        )


def about(source: Source, settings: Settings) -> dict[str, Any]:
    """What every file says of itself: classes, licence, how images are prepared, of which weights it was made."""
    label_map = LabelMap.from_config(source.model.config)
    local = Path(source.name)
    return {
        "segtune": __version__,
        "checkpoint": "/".join(local.parts[-2:]) if local.is_dir() else source.name,
        "sha256": checksum(source.name, source.model),
        "license": settings.license,
        "names": list(label_map.names),
        "colors": ["#{:02x}{:02x}{:02x}".format(*color) for color in label_map.colors],
        "ignore_index": label_map.ignore_index,
        "processor": source.processor.to_dict(),
        "calibration_temperature": source.model.config.calibration_temperature,
    }


def checksum(name: str, model: nn.Module) -> str:
    """SHA-256 of the file of a checkpoint's weights, as `sha256sum` prints it; of several files, of their list."""
    from transformers.utils import cached_file

    folder = Path(name)
    if not folder.is_dir():
        repo, revision = split_revision(name)
        revision = getattr(getattr(model, "config", None), "_commit_hash", None) or revision
        folder = Path(cached_file(repo, CONFIG, revision=revision, local_files_only=True)).parent
    files = [path for path in sorted(folder.iterdir()) if _WEIGHTS.fullmatch(path.name)]
    if safe := [path for path in files if path.suffix == ".safetensors"]:
        files = safe
    digests = [fingerprint(path)["sha256"] for path in files]
    if len(digests) == 1:
        return str(digests[0])
    lines = "".join(f"{digest}  {path.name}\n" for digest, path in zip(digests, files, strict=True))
    return hashlib.sha256(lines.encode()).hexdigest()


class _Export:
    """The files of one export, on their way."""

    def __init__(self, source: Source, settings: Settings, folder: Path, facts: Mapping[str, Any]) -> None:
        self.source, self.settings, self.folder, self.facts = source, settings, folder, facts
        model, processor = source.model, source.processor
        self.segmenter = Segmenter(model, processor, InferenceProtocol(), precision="fp32")
        self.label_map = LabelMap.from_config(model.config)
        self.files: list[dict[str, Any]] = []
        height_width = settings.size
        self.network_size = None if height_width is None else processor.target_size(*height_width)

    def write(self, target: Target) -> None:
        config, processor = self.source.model.config, self.source.processor
        self.folder.mkdir(parents=True, exist_ok=True)
        config.save_pretrained(self.folder)
        processor.save_pretrained(self.folder)
        write = {
            "onnx": self._onnx,
            "openvino": self._openvino,
            "torch": self._torch,
            "web": self._web,
            "coreml": self._coreml,
        }
        write[target]()

    def certificate(self, target: Target) -> dict[str, Any]:
        """JSON-able: what was compared with what, and for each file what was found."""
        size = self.settings.size
        return {
            "target": target,
            **{key: self.facts[key] for key in ("segtune", "checkpoint", "sha256", "license")},
            "compared_on": self.source.data,
            "image_size": None if size is None else list(size),
            "confidence": self.settings.confidence,
            "files": self.files,
            # a page is not timed: what it takes in a browser is not what it takes here
            **({"verdict": self._verdict()} if self.settings.int8 and target != "web" else {}),
        }

    def _verdict(self) -> dict[str, Any]:
        """Which of the graphs of logits to use; each was timed in turns with the checkpoint."""
        entries = [entry for entry in self.files if not entry["whole_chain"]]
        times = [entry["milliseconds"]["export"] / entry["milliseconds"]["checkpoint"] for entry in entries]
        nothing = {"difference": None, "interval": None}
        candidates = [
            Candidate(
                entry["precision"],
                {"agreement": entry["agreement"], "time": time / times[0], **(entry["true_mean_iou"] or nothing)},
            )
            for entry, time in zip(entries, times, strict=True)
        ]
        return verdict(candidates, self.settings.half_thresholds.agreement)

    # --- targets ---------------------------------------------------------------------------------------------------

    def _onnx(self) -> None:
        logits, product = self._graphs()
        targets.save_onnx(logits, self.folder / LOGITS)
        targets.save_onnx(product, self.folder / PRODUCT)
        self._check_logits(LOGITS, "onnxruntime", "fp32", logits)
        self._check_product(PRODUCT, "onnxruntime", product)
        if self.settings.fp16:
            targets.save_onnx(targets.half_precision(logits), self.folder / HALF_LOGITS)
            self._check_logits(HALF_LOGITS, "onnxruntime", "fp16", logits)
        if self.settings.int8:
            self._int8(INT8_LOGITS, "onnxruntime", logits)

    def _openvino(self) -> None:
        logits, product = self._graphs(fuses_attention=True)
        targets.save_openvino(logits, self.folder / OPENVINO_LOGITS, self.facts)
        targets.save_openvino(product, self.folder / OPENVINO_PRODUCT, self.facts)
        self._check_logits(OPENVINO_LOGITS, "openvino", "fp32", logits)
        if computes_in_bf16():
            self._check_logits(OPENVINO_LOGITS, "openvino", "bf16", logits, is_needed=False)  # of the same file
        self._check_product(OPENVINO_PRODUCT, "openvino", product)
        if self.settings.int8:
            self._int8(OPENVINO_INT8, "openvino", logits)

    def _int8(self, name: str, runtime: Runtime, logits: onnx.ModelProto) -> None:
        self._quantize(name, runtime, logits)
        self._check_logits(name, runtime, "int8", logits)

    def _quantize(self, name: str, runtime: Runtime, logits: onnx.ModelProto) -> None:
        """Write the graph of logits in 8-bit integers, calibrated on the training split."""
        if self.source.inputs is None:
            raise UsageError("--int8 is calibrated on images of the training split: name the data with --data")
        inputs, size = self.source.inputs(), self.network_size
        if size is not None and not (inputs := [one for one in inputs if one.shape[2:] == size]):
            raise UsageError(f"--int8 --size {size[0]}x{size[1]}: no image of the training split has this size")
        quantizer = open_quantizer(logits, inputs, runtime, self.settings.max_drop)
        with progress_bar(total=1, desc=f"quantise {name}", leave=False) as bar:
            quantizer.save(int8_layers(quantizer.layers), self.folder / name, self.facts)
            bar.update()

    def _torch(self) -> None:
        targets.save_torch(self.source.model, self.folder / TORCH, self.network_size)
        program = torch.export.load(self.folder / TORCH).module()
        self._check(TORCH, "torch", "fp32", self._answer_of(program))

    def _web(self) -> None:
        processor, runtime = self.source.processor, self.settings.runtime
        refuse_other_pictures(processor, self.source.model.config.num_channels)
        bundled = runtime_files(runtime)
        logits, product = self._graphs()
        models = [self._page_model_in_int8(logits)] if self.settings.int8 else []
        targets.save_onnx(product, self.folder / PRODUCT)
        self._check_product(PRODUCT, "onnxruntime", product)
        words = self._agreement_in_words()
        models.append(PageModel(PRODUCT, "check.bin", "float32", words, lambda image: self.segmenter(image).labels))
        about = {
            "Checkpoint": self.facts["checkpoint"],
            "SHA-256 of its weights": self.facts["sha256"],
            "Licence of the weights": self.facts["license"],
        }
        write_page(
            self.folder,
            models,
            self.facts["checkpoint"],
            about,
            self.label_map,
            processor,
            runtime=runtime,
            bundled=bundled,
            size=self.settings.size,
        )

    def _page_model_in_int8(self, logits: onnx.ModelProto) -> PageModel:
        """The product graph around the network in 8-bit integers: less to fetch."""
        import onnx

        self._quantize(INT8_PRODUCT, "onnxruntime", logits)  # the network alone, which its product then replaces
        network = onnx.load(self.folder / INT8_PRODUCT)
        product = product_model(network, self.source.processor, size=self.settings.size)
        describe(product, dict(self.facts))
        targets.save_onnx(product, self.folder / INT8_PRODUCT)
        answer = self._check_product(INT8_PRODUCT, "onnxruntime", product, "int8")
        return PageModel(
            INT8_PRODUCT, "check_int8.bin", "8-bit integers", self._agreement_in_words(), answer, LEAST_INT8
        )

    def _agreement_in_words(self) -> str:
        """Of the file that was certified last."""
        found = self.files[-1]
        return f"{found['agreement']:.6f} of the pixels of {found['images']} images"

    def _coreml(self) -> None:
        targets.save_coreml(self.source.model, self.folder / COREML, self.network_size, self.facts)
        self._check(COREML, "torch", "fp32", self._answer_of(LogitsNetwork(self.source.model)))
        self.files[-1]["not_run"] = (
            "CoreML runs on macOS alone: the package was converted and saved; what was compared is the network that it "
            "was converted from, in PyTorch"
        )

    def _graphs(self, *, fuses_attention: bool = False) -> tuple[onnx.ModelProto, onnx.ModelProto]:
        """From `pixel_values` to `logits`, and from the image to the mask, by an engine that fuses attention or not."""
        import onnx

        logits = logits_model(self.source.model, self.network_size)
        describe(logits, dict(self.facts))
        network = onnx.ModelProto()
        network.CopyFrom(logits if fuses_attention else attend_in_blocks(logits))
        temperature = self.segmenter.temperature if self.settings.confidence else None
        product = product_model(network, self.source.processor, size=self.settings.size, temperature=temperature)
        describe(product, dict(self.facts))
        return logits, product

    # --- what they answer ------------------------------------------------------------------------------------------

    def _check_product(self, name: str, runtime: Runtime, graph: onnx.ModelProto, precision: str = "fp32") -> Answer:
        """Certify a product graph; returns what answers by it."""
        run = open_session(self.folder / name, runtime)
        dtype = np.float32 if form_of(self.source.processor)[1] else np.uint8

        def answer(image: np.ndarray) -> np.ndarray:
            return run({"image": image.astype(dtype, copy=False)})["mask"]

        self._check(name, runtime, precision, answer, graph)
        return answer

    def _check_logits(
        self, name: str, runtime: Runtime, precision: str, graph: onnx.ModelProto, *, is_needed: bool = True
    ) -> None:
        computed = precision if runtime == "openvino" else "fp32"
        if computed == "int8":  # what is left in floating point
            computed = "bf16" if computes_in_bf16() else "fp32"
        run = open_session(self.folder / name, runtime, computed)
        self._check(name, runtime, precision, self._answer_of(partial(_logits_of, run)), graph, is_needed=is_needed)

    def _answer_of(self, network: Callable[[Tensor], Tensor]) -> Answer:
        """Of a network alone: the processor before it, upsampling and argmax after it are ours."""
        module = _Stand(network, self.source.model.config)
        segmenter = Segmenter(module, self.source.processor, InferenceProtocol(), precision="fp32")
        return lambda image: segmenter(image).labels

    def _check(
        self,
        name: str,
        runtime: str,
        precision: str,
        answer: Answer,
        graph: onnx.ModelProto | None = None,
        *,
        is_needed: bool = True,
    ) -> None:
        """Compare a file with the checkpoint.

        Args:
            is_needed: that they agree; else it is only said.

        Raises:
            CertificateError: they do not agree; the message says since which layer.
        """
        settings = self.settings
        thresholds = settings.thresholds if precision == "fp32" else settings.half_thresholds
        if precision == "int8":  # what it costs the classes is said, with the interval of the true mIoU
            thresholds = Thresholds(thresholds.agreement, 0.0)
        shown = self._pictures(f"certify {name}")
        try:
            found = certify(
                lambda image: self.segmenter(image).labels,
                answer,
                shown,
                self.label_map.names,
                thresholds=thresholds,
                margins=self._margins,
                ignore_index=self.label_map.ignore_index,
            )
        finally:
            shown.close()
        if is_needed and not found.passed:
            raise CertificateError(f"{name} is not written: {found}.{self._begins(found, runtime, precision, graph)}")
        entry = {"file": name, "runtime": runtime, "precision": precision, "whole_chain": "product" in name}
        self.files.append(entry | found.to_dict())

    def _pictures(self, what: str) -> Any:
        """The pictures of the certificate, with a bar; of a fixed size, those that have it."""
        bar = progress_bar(self.source.pictures(), desc=what, total=self.source.total, leave=False)
        return (picture for picture in bar if self._takes(picture))

    def _takes(self, picture: Picture) -> bool:
        """Whether a picture has the one size of the files; of files for any size, DataError where it is too small."""
        height, width = picture.image.shape[:2]
        if self.settings.size is not None:
            return (height, width) == self.settings.size
        if min(self.source.processor.target_size(height, width)) < SMALLEST_SIDE:
            raise DataError(
                f"{picture.id}: an image of {height}x{width} pixels, and exported files take sides of {SMALLEST_SIDE} "
                "or more: compare on others"
            )
        return True

    def _margins(
        self, image: np.ndarray, rows: np.ndarray, columns: np.ndarray, first: np.ndarray, second: np.ndarray
    ) -> np.ndarray:
        """How far apart the checkpoint's logits of two classes are at some pixels, `(n,)`."""
        logits = self.segmenter.logits(self.segmenter.open(image))
        at = [torch.from_numpy(one) for one in (rows, columns)]
        values = upsampled_at(logits, image.shape[:2], *at).numpy()  # (n, K)
        if values.shape[1] == 1:
            return values[:, 0]
        each = np.arange(len(values))
        return values[each, first] - values[each, second]

    def _begins(self, found: Certificate, runtime: str, precision: str, graph: onnx.ModelProto | None) -> str:
        """The layer where the worst picture's answer begins to differ, in words."""
        if precision != "fp32":
            return f" {precision} has too few bits for this network: use the file in float32"
        if graph is None or runtime not in ("onnxruntime", "openvino"):
            return ""
        worst = next(picture for picture in self.source.pictures() if picture.id == found.worst[0])
        model, processor, engine = self.source.model, self.source.processor, cast("Runtime", runtime)
        return f" The difference begins with {where_it_differs(graph, model, processor, worst.image, engine)}"


def _logits_of(run: Run, pixel_values: Tensor) -> Tensor:
    return torch.from_numpy(run({INPUT: np.ascontiguousarray(pixel_values.numpy())})[OUTPUT])


class _Stand(nn.Module):
    """Stands where a model does: a function from images to logits, in the place of a network."""

    def __init__(self, network: Callable[[Tensor], Tensor], config: Any) -> None:
        super().__init__()
        self.network, self.config = network, config
        self.place = nn.Parameter(torch.zeros(()), requires_grad=False)

    def forward(self, pixel_values: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.network(pixel_values))
