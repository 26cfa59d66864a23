"""What a checkpoint of others holds, under our names; and the network that its shapes describe."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from segtune.errors import DataError, UsageError, listed
from segtune.labels.label_map import LabelMap
from segtune.segformer.configuration_segformer import SegformerConfig
from segtune.segformer.conversion import tensor_faults
from segtune.segformer.modeling_segformer import (
    SegformerForImageClassification,
    SegformerForSemanticSegmentation,
    SegformerModel,
    SegformerPreTrainedModel,
)

logger = logging.getLogger(__name__)

_SHOWN = 4  # names of a part that is left out
_LABELS = ("id2label", "label2id", "label_map", "num_labels", "semantic_loss_ignore_index")
IMPOSSIBLE = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)  # of odd shapes


@dataclass(frozen=True)
class Source:
    """What a checkpoint of others holds, under our names.

    Attributes:
        layout: whose names it had: `nvlabs`, `mmseg`, `libreyolo` or `keras`.
        tensors: by name in our network; those of the encoder with `segformer.` in front where there is a head.
        unknown: tensors whose names mean nothing, under these.
        fields: of the configuration, where the checkpoint has what no shape tells.
        processor: of the image processor, where the checkpoint says how pictures were normalised.
        left_out: parts that are not taken over on purpose, each with the names of its tensors.
        stated: the licence that the checkpoint itself states; None where it states none.
    """

    layout: str
    tensors: Mapping[str, Tensor]
    unknown: Mapping[str, Tensor] = field(default_factory=dict)
    fields: Mapping[str, Any] = field(default_factory=dict)
    processor: Mapping[str, Any] = field(default_factory=dict)
    left_out: Mapping[str, Sequence[str]] = field(default_factory=dict)
    stated: str | None = None

    def model(self, path: object) -> SegformerPreTrainedModel:
        """The network with these weights in float32, in evaluation mode.

        A `SegformerForSemanticSegmentation`; of a classifier a `SegformerForImageClassification`, of an encoder alone
        a `SegformerModel`. Nothing is allocated before every shape fits.

        Args:
            path: of the checkpoint, for messages.

        Raises:
            DataError: another network, or tensors missing or left over.
        """
        try:
            with torch.device("meta"):
                model = _build(path, self.tensors, self.fields)
        except DataError:
            raise
        except IMPOSSIBLE as error:
            raise DataError(f"{path} is no SegFormer: {' '.join(str(error).split())[:200]}") from error
        wanted = model.state_dict()
        if faults := tensor_faults(wanted, {**self.tensors, **self.unknown}):
            raise DataError(f"{path} is no SegFormer of {self.layout}: {faults}")
        own = {key: value.to(wanted[key].dtype) for key, value in self.tensors.items()}
        copies = {key: value.clone(memory_format=torch.contiguous_format) for key, value in own.items()}
        model.load_state_dict(copies, assign=True)
        return model.eval()

    def described_left_out(self) -> list[str]:
        """One text for each part that was left out: its name, how many tensors, and the first of their names."""
        return [
            f"{part} ({len(names)} tensor{'s' if len(names) > 1 else ''}: {listed(names, _SHOWN)})"
            for part, names in self.left_out.items()
            if names
        ]


def _build(path: object, tensors: Mapping[str, Tensor], given: Mapping[str, Any]) -> SegformerPreTrainedModel:
    """A model of the shapes of the tensors, its weights still random."""
    prefix = "segformer.encoder." if any(key.startswith("segformer.") for key in tensors) else "encoder."
    encoder = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    fields = _encoder_fields(path, encoder) | {key: value for key, value in given.items() if key not in _LABELS}
    if "decode_head.classifier.weight" in tensors:
        number, fields["decoder_hidden_size"] = tensors["decode_head.classifier.weight"].shape[:2]
        labels = {key: value for key, value in given.items() if key in _LABELS} or {"num_labels": number}
        return SegformerForSemanticSegmentation(SegformerConfig(**fields, **labels))
    if "classifier.weight" in tensors:
        number = len(tensors["classifier.weight"])
        return SegformerForImageClassification(SegformerConfig(**fields, num_labels=number))
    return SegformerModel(SegformerConfig(**fields))


def _encoder_fields(path: object, encoder: Mapping[str, Tensor]) -> dict[str, Any]:
    """What the shapes of an encoder's tensors tell, under their names below `encoder`.

    Number of heads and strides, which no shape tells, are those of the paper: heads of as many channels as the first
    stage, strides of half the kernel.
    """
    stages = range(len({key.split(".")[1] for key in encoder if key.startswith("patch_embeddings.")}))
    try:
        patches = [encoder[f"patch_embeddings.{i}.proj.weight"].shape for i in stages]
        widths = [encoder[f"block.{i}.0.mlp.dense1.weight"].shape[0] for i in stages]
    except KeyError as error:
        raise DataError(f"{path} is no whole SegFormer: {error} is missing") from error
    sizes = [shape[0] for shape in patches]
    if any(size % sizes[0] for size in sizes):
        raise DataError(f"{path}: stages of {sizes} channels have no number of heads that follows from the paper's")
    reductions = [encoder.get(f"block.{i}.0.attention.self.sr.weight") for i in stages]
    return {
        "num_channels": patches[0][1],
        "num_encoder_blocks": len(stages),
        "hidden_sizes": sizes,
        "num_attention_heads": [size // sizes[0] for size in sizes],
        "depths": [len({k.split(".")[2] for k in encoder if k.startswith(f"block.{i}.")}) for i in stages],
        "patch_sizes": [shape[2] for shape in patches],
        "strides": [(shape[2] + 1) // 2 for shape in patches],
        "sr_ratios": [1 if weight is None else weight.shape[2] for weight in reductions],
        "mlp_ratios": [width // size for width, size in zip(widths, sizes, strict=True)],
    }


def label_fields(path: object, names: Sequence[str] | None, number: int, colors: Any = None) -> dict[str, Any]:
    """Names and colours of the classes as fields of a configuration, where there is one for each; else their number.

    Args:
        path: of the checkpoint, for the warning where they are none that can be taken over.
    """
    if not names or len(names) != number or len(set(names)) != number:
        return {"num_labels": number}
    is_palette = isinstance(colors, (list, tuple)) and len(colors) == number
    try:
        return LabelMap.from_names(list(names), colors if is_palette else None).config_fields()
    except UsageError as error:
        logger.warning("%s: names and colours of its classes are left out: %s", path, error)
        return {"num_labels": number}
