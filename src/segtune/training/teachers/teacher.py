"""Teachers of distillation: networks that were trained before, whose classes are matched with ours by name."""

from __future__ import annotations

import hashlib
import logging
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSemanticSegmentation
from transformers.image_processing_utils import BaseImageProcessor

from segtune.data.class_names import plain
from segtune.errors import DataError, UsageError, listed
from segtune.files import is_full_disk
from segtune.hub_errors import fault_of_hub
from segtune.labels.label_map import LabelMap
from segtune.segformer.checkpoint_files import CONFIG, PROCESSOR, check_saved, read_json
from segtune.segformer.image_processing_segformer import SegformerImageProcessor
from segtune.segformer.loading import load_model, split_revision, without_bars
from segtune.training.losses.loss_terms import two_logits

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SharedClasses:
    """The classes that student and teacher both know.

    Attributes:
        student: training ids, ascending.
        teacher: the teacher's id of each.
        count: how many classes the student tells apart.
    """

    student: tuple[int, ...]
    teacher: tuple[int, ...]
    count: int

    @property
    def is_all(self) -> bool:
        """Whether the teacher knows every class of the student."""
        return len(self.student) == self.count

    @classmethod
    def by_name(cls, student: Sequence[str], teacher: Sequence[str], name: str) -> SharedClasses:
        """Match names that are equal but for case, blanks and signs between words; what is left over is logged.

        Raises:
            UsageError: fewer than two classes have a name in common, of which nothing could be learned.
        """
        places: dict[str, int] = {}
        for number, label in enumerate(teacher):
            places.setdefault(plain(label), number)
        shared = [(number, places[plain(label)]) for number, label in enumerate(student) if plain(label) in places]
        if len(shared) < 2:
            raise UsageError(
                f"training.distill.teacher={name} shares {len(shared)} classes with the data set by name, and two are "
                f"needed: it knows {listed(teacher, 8)}; the data set has {listed(student, 8)}. Rename the classes in "
                "dataset.labels as the teacher calls them, or take another teacher"
            )
        ours, theirs = zip(*shared, strict=True)
        alone = [label for number, label in enumerate(student) if number not in ours]
        unused = [label for number, label in enumerate(teacher) if number not in theirs]
        if alone or unused:
            logger.info(
                "distillation: %d classes shared with %s by name; without it: %s (their pixels teach nothing); "
                "of the teacher alone: %s",
                len(shared),
                name,
                listed(alone, 8) or "none",
                listed(unused, 8) or "none",
            )
        return cls(ours, theirs, len(student))


class Teacher(nn.Module):
    """A network in evaluation mode whose logits are those of the shared classes, in the student's order.

    Args:
        network: its output has `.logits` `(B, L, h, w)`, of any size.
        classes: which of the L classes are whose.
        scale, shift: per channel, make the pixel values that it was trained on of the student's: `x * scale + shift`.
    """

    def __init__(
        self, network: nn.Module, classes: SharedClasses, scale: Sequence[float], shift: Sequence[float]
    ) -> None:
        super().__init__()
        self.network = network.requires_grad_(False).eval()
        self.classes = classes
        self.scale: Tensor
        self.shift: Tensor
        self.order: Tensor
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float32)[:, None, None])
        self.register_buffer("shift", torch.tensor(shift, dtype=torch.float32)[:, None, None])
        self.register_buffer("order", torch.tensor(classes.teacher))

    def train(self, mode: bool = True) -> Teacher:
        """It stays in evaluation mode, whatever is asked for."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, pixel_values: Tensor) -> Tensor:
        """Logits `(B, S, h, w)` of the S shared classes, float32.

        Args:
            pixel_values: `(B, C, H, W)`, normalised as the student's.
        """
        logits: Tensor = self.network(pixel_values=pixel_values * self.scale + self.shift).logits.float()
        if logits.shape[1] == 1:
            logits = two_logits(logits, dim=1)
        return logits.index_select(1, self.order)

    def digest(self) -> str:
        """16 hexadecimal digits that differ for another network, another match of classes or another normalisation."""
        found = hashlib.sha256(repr((self.classes, type(self.network).__name__)).encode())
        for name, value in sorted(self.state_dict().items()):
            found.update(name.encode())
            found.update(
                value.detach().cpu().contiguous().view(torch.uint8).numpy() if value.ndim else str(value).encode()
            )
        return found.hexdigest()[:16]


def load_teacher(
    name: str,
    label_map: LabelMap,
    processor: SegformerImageProcessor,
    size: tuple[int, int],
    device: torch.device,
    autocast: AbstractContextManager[Any] | None = None,
) -> Teacher:
    """A checkpoint of segtune, or any `AutoModelForSemanticSegmentation` of transformers, as a teacher on a device.

    Args:
        name: a folder, or a Hub id `user/name` or `user/name@revision`.
        label_map: the student's classes.
        processor: says how the student's pixel values are normalised.
        size: of the crops that it will see, `(height, width)`; it is tried on one.
        autocast: the context in which it will run.

    Raises:
        UsageError: no such checkpoint, one without a segmentation head, without a class in common, of other channels,
            or one that does not take crops of this size.
        DataError: a file of it is damaged, or the Hub does not hand it out.
    """
    network = _load(name)
    names = LabelMap.from_config(network.config).names
    classes = SharedClasses.by_name(label_map.names, names, name)
    teacher = Teacher(network, classes, *_normalisation(name, processor)).to(device)
    shape = (1, len(processor.image_mean), *size)
    try:
        with autocast or nullcontext():
            logits = teacher(torch.zeros(shape, device=device))
    except (ValueError, RuntimeError, IndexError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError(
            f"training.distill.teacher={name} does not take crops of {size[0]}x{size[1]} with {shape[1]} channels: "
            f"{reason}"
        ) from error
    logger.info("distillation from %s: %d classes, logits of %s", name, len(classes.student), tuple(logits.shape[2:]))
    return teacher


def _load(name: str) -> nn.Module:
    source, revision = split_revision(name)
    # What a checkpoint brings along of code is not run, nor is the user asked for it.
    options: dict[str, Any] = {"trust_remote_code": False} | ({"revision": revision} if revision else {})
    try:
        if Path(source).exists() and not Path(source).is_dir():
            raise UsageError(f"training.distill.teacher={name} is a file: name the folder of a checkpoint")
        is_here = os.path.lexists(Path(source) / CONFIG)
        about = read_json(Path(source) / CONFIG) if is_here else AutoConfig.from_pretrained(source, **options).to_dict()
        given = about.get("architectures")
        heads = list(map(str, given)) if isinstance(given, list) else []
        if heads and not any("SemanticSegmentation" in head for head in heads):
            raise UsageError(
                f"training.distill.teacher={name} is a {heads[0]}, without a head for semantic segmentation: name one "
                "that was trained to segment"
            )
        if about.get("model_type") == "segformer":
            return load_model(name, whole=True)
        with without_bars():
            network, info = AutoModelForSemanticSegmentation.from_pretrained(
                source, output_loading_info=True, **options
            )
    except (UsageError, DataError):
        raise
    except Exception as error:  # whatever transformers stumbles over: the configuration and the weights are of others
        if isinstance(error, MemoryError) or is_full_disk(error):
            raise
        if fault := fault_of_hub(error):
            raise DataError(f"training.distill.teacher={name} cannot be fetched: {fault}") from error
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UsageError(
            f"training.distill.teacher={name} cannot be loaded: {reason} (it is to be a checkpoint of segtune, or of a "
            "model for semantic segmentation of transformers)"
        ) from error
    fresh = {key if isinstance(key, str) else key[0] for key in (*info["missing_keys"], *info["mismatched_keys"])}
    if fresh := fresh & dict(network.named_parameters()).keys():
        raise UsageError(
            f"training.distill.teacher={name} does not hold all weights of a {type(network).__name__}: without "
            f"{listed(sorted(fresh), 3)} it would answer at random"
        )
    whole: nn.Module = network
    return whole


def _normalisation(name: str, processor: SegformerImageProcessor) -> tuple[list[float], list[float]]:
    """Per channel, what makes the teacher's pixel values of the student's: `x * scale + shift`.

    With p a number of the file, the student sees (f p - m) / s and the teacher was trained on (f' p - m') / s'. So
    p = (s x + m) / f, and the teacher's value is x times s f' / (f s'), plus (m f' / f - m') / s'.

    Raises:
        UsageError: the teacher's image processor does something else to pictures, or to others.
        DataError: it is damaged.
    """
    what = f"training.distill.teacher={name}"
    saved, channels = _saved_processor(name), len(processor.image_mean)
    if saved.get("do_flip_channel_order"):
        raise UsageError(f"{what} reads blue, green and red instead of red, green and blue: take another teacher")
    means, deviations = (_per_channel(what, saved, key) for key in ("image_mean", "image_std"))
    for values in (means, deviations):
        if values is not None and len(values) not in (1, channels):
            raise UsageError(f"{what} reads {len(values)} channels, the data set has {channels}")
    mean, std = (
        list(own) if values is None else values * channels if len(values) == 1 else values
        for values, own in ((means, processor.image_mean), (deviations, processor.image_std))
    )
    if not saved.get("do_normalize", True):
        mean, std = [0.0] * channels, [1.0] * channels
    if 0.0 in std:
        raise DataError(
            f"{what}: image_std of its {PROCESSOR} is 0 in a channel: copy it from the checkpoint once more"
        )
    ranges = [_range(what, given) for given in (saved.get("value_range"), processor.value_range)]
    if saved and ranges[0] != ranges[1]:
        raise UsageError(
            f"{what} was trained on values from {ranges[0][0]:g} to {ranges[0][1]:g}, "
            f"transforms.value_range is {ranges[1][0]:g} to {ranges[1][1]:g}"
        )
    own = processor.rescale_factor if processor.do_rescale else 1.0
    factor = _per_channel(what, saved, "rescale_factor") or [1 / 255 if saved else own]
    ratio = (factor[0] if saved.get("do_rescale", True) else 1.0) / own
    both = list(zip(processor.image_mean, processor.image_std, mean, std, strict=True))
    scale = [s * ratio / other_s for _, s, _, other_s in both]
    return scale, [(m * ratio - other_m) / other_s for m, _, other_m, other_s in both]


def _saved_processor(name: str) -> Mapping[str, Any]:
    """The image processor that was saved beside a teacher; empty, and told, where none was."""
    source, revision = split_revision(name)
    folder = Path(source)
    if folder.is_dir():
        check_saved(folder, [PROCESSOR])
        if os.path.lexists(folder / PROCESSOR):  # damage of it is no absence
            return read_json(folder / PROCESSOR)
    try:
        saved, _ = BaseImageProcessor.get_image_processor_dict(source, **({"revision": revision} if revision else {}))
    except (OSError, ValueError):
        logger.warning("%s has no image processor: it gets the pixel values of the student", name)
        return {}
    return dict(saved)


def _per_channel(what: str, saved: Mapping[str, Any], key: str) -> list[float] | None:
    """The numbers that a processor has under a key; None where it has none."""
    given = saved.get(key)
    values = given if isinstance(given, (list, tuple)) else [given]
    if given is None:
        return None
    numbers = [float(value) for value in values if isinstance(value, (int, float)) and math.isfinite(value)]
    if not numbers or len(numbers) < len(values):
        raise DataError(f"{what}: {key} of its {PROCESSOR} is {given!r}, and no number for each channel")
    return numbers


def _range(what: str, given: Any) -> tuple[float, float]:
    """Of the values that pictures are given in."""
    low, high = _per_channel(what, {"value_range": given or [0, 255]}, "value_range") or (0.0, 255.0)
    return low, high
