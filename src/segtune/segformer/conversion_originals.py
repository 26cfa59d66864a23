"""Checkpoint conversion from NVlabs (the authors' code) and mmsegmentation: `.pth` files, no tensor left over.

The names are those of Apache-2.0 sources: transformers' `convert_segformer_original_to_pytorch.py` and mmsegmentation's
`mit2mmseg.py`. Both run the layer norms of the blocks with eps 1e-6, where the published layout has 1e-5.
"""

from __future__ import annotations

import pickle
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from segtune.errors import DataError, UsageError
from segtune.files import write_folder
from segtune.labels.label_map import LabelMap
from segtune.segformer.configuration_segformer import SegformerConfig
from segtune.segformer.conversion import tensor_faults
from segtune.segformer.image_processing_segformer import SegformerImageProcessor
from segtune.segformer.modeling_segformer import (
    SegformerForImageClassification,
    SegformerForSemanticSegmentation,
    SegformerModel,
    SegformerPreTrainedModel,
)

Layout = Literal["auto", "mmseg", "nvlabs"]

_BLOCK = {"nvlabs": r"block(?P<s>\d)\.(?P<b>\d+)\.", "mmseg": r"layers\.(?P<s>\d)\.1\.(?P<b>\d+)\."}
_ENCODER = {  # names in the file -> names in `encoder`; "a|b" are stored as one tensor
    "nvlabs": {
        r"patch_embed(?P<s>\d)\.proj\.": "patch_embeddings.{s}.proj.",
        r"patch_embed(?P<s>\d)\.norm\.": "patch_embeddings.{s}.layer_norm.",
        _BLOCK["nvlabs"] + r"norm(?P<n>[12])\.": "block.{s}.{b}.layer_norm_{n}.",
        _BLOCK["nvlabs"] + r"attn\.q\.": "block.{s}.{b}.attention.self.query.",
        _BLOCK["nvlabs"] + r"attn\.kv\.": "block.{s}.{b}.attention.self.key|value.",
        _BLOCK["nvlabs"] + r"attn\.proj\.": "block.{s}.{b}.attention.output.dense.",
        _BLOCK["nvlabs"] + r"attn\.sr\.": "block.{s}.{b}.attention.self.sr.",
        _BLOCK["nvlabs"] + r"attn\.norm\.": "block.{s}.{b}.attention.self.layer_norm.",
        _BLOCK["nvlabs"] + r"mlp\.fc(?P<n>[12])\.": "block.{s}.{b}.mlp.dense{n}.",
        _BLOCK["nvlabs"] + r"mlp\.dwconv\.dwconv\.": "block.{s}.{b}.mlp.dwconv.dwconv.",
        r"norm(?P<s>\d)\.": "layer_norm.{s}.",
    },
    "mmseg": {
        r"layers\.(?P<s>\d)\.0\.projection\.": "patch_embeddings.{s}.proj.",
        r"layers\.(?P<s>\d)\.0\.norm\.": "patch_embeddings.{s}.layer_norm.",
        _BLOCK["mmseg"] + r"norm(?P<n>[12])\.": "block.{s}.{b}.layer_norm_{n}.",
        _BLOCK["mmseg"] + r"attn\.attn\.in_proj_": "block.{s}.{b}.attention.self.query|key|value.",
        _BLOCK["mmseg"] + r"attn\.attn\.out_proj\.": "block.{s}.{b}.attention.output.dense.",
        _BLOCK["mmseg"] + r"attn\.sr\.": "block.{s}.{b}.attention.self.sr.",
        _BLOCK["mmseg"] + r"attn\.norm\.": "block.{s}.{b}.attention.self.layer_norm.",
        _BLOCK["mmseg"] + r"ffn\.layers\.0\.": "block.{s}.{b}.mlp.dense1.",
        _BLOCK["mmseg"] + r"ffn\.layers\.1\.": "block.{s}.{b}.mlp.dwconv.dwconv.",
        _BLOCK["mmseg"] + r"ffn\.layers\.4\.": "block.{s}.{b}.mlp.dense2.",
        r"layers\.(?P<s>\d)\.2\.": "layer_norm.{s}.",
    },
}
_HEAD = {  # of NVlabs
    r"decode_head\.linear_c(?P<s>\d)\.proj\.": "decode_head.linear_c.{s}.proj.",
    r"decode_head\.linear_fuse\.conv\.": "decode_head.linear_fuse.",
    r"decode_head\.linear_fuse\.bn\.": "decode_head.batch_norm.",
    r"decode_head\.linear_pred\.": "decode_head.classifier.",
    r"head\.": "classifier.",
}
_UNUSED = r"decode_head\.conv_seg\."  # every head of that code has it, this one does not call it
CARD = """\
---
license: other
license_name: nvidia-source-code-license
license_link: https://github.com/NVlabs/SegFormer/blob/master/LICENSE
library_name: transformers
tags:
- segformer
---

Converted from `{name}` by segtune.

The weights that NVIDIA has published are for non-commercial use, and so is what started from them; mmseg's pre-trained
encoders are conversions of them. Weights that were trained from random ones are their owner's: then change this card.
"""
# What torch.load raises, besides its refusal to run code, where bytes are missing, changed or of another format.
_NOT_A_CHECKPOINT = (
    *(AssertionError, AttributeError, LookupError, OverflowError, TypeError, ValueError, struct.error),
    *(EOFError, OSError, RuntimeError),
)
_FIRST = {"nvlabs": "patch_embed1.proj.weight", "mmseg": "layers.0.0.projection.weight"}


def read_original(path: str | Path, layout: Layout = "auto", *, encoder_only: bool = False) -> SegformerPreTrainedModel:
    """Our model with the weights of a `.pth` file.

    Class names and colours are taken over where the file has them. Number of heads and strides, which no file holds,
    are those of the paper: heads of as many channels as the first stage, strides of half the kernel.

    Args:
        layout: `auto`: by the names in the file.
        encoder_only: leave the head out. mmseg's cannot be taken over: it has a batch norm and a ReLU after each of
            its projections, where the authors' and the published layout have none.

    Returns:
        A `SegformerForSemanticSegmentation`; of an ImageNet encoder a `SegformerForImageClassification`, of an encoder
        without any head a `SegformerModel`.

    Raises:
        UsageError: a file of mmseg with a head, without `encoder_only`.
        DataError: no such file, one that would run code, one of another network, or tensors missing or left over.
    """
    tensors, meta = _read(Path(path))
    found = _layout(path, tensors, layout)
    tensors = {key.removeprefix("backbone."): value for key, value in tensors.items()}
    head = [key for key in tensors if re.match(r"(decode_head|auxiliary_head|head)\.", key)]
    if encoder_only:
        tensors = {key: value for key, value in tensors.items() if key not in head}
    elif found == "mmseg" and head:
        raise UsageError(
            f"{path}: mmseg's decode head has a batch norm and a ReLU after each projection, which the published "
            "layout has not; --encoder-only takes over the encoder, to fine-tune from"
        )
    renamed, unknown = _rename(tensors, found)
    model = _build(path, renamed, meta)
    if faults := tensor_faults(model.state_dict(), renamed | unknown):
        raise DataError(f"{path} is no SegFormer of {found}: {faults}")
    model.load_state_dict(renamed)
    return model.eval()


def convert_original(
    path: str | Path, output: str | Path, layout: Layout = "auto", *, encoder_only: bool = False
) -> SegformerPreTrainedModel:
    """Write a `.pth` file as a checkpoint folder: weights, configuration, image processor, a card with the licence.

    Args and errors are those of `read_original`; besides, a UsageError where `output` exists. Returns the model.
    """
    output = Path(output)
    if output.exists():
        raise UsageError(f"{output} exists already: name a folder that does not")
    model = read_original(path, layout, encoder_only=encoder_only)

    def write(folder: Path) -> None:
        model.save_pretrained(folder)
        SegformerImageProcessor(do_resize=False).save_pretrained(folder)
        (folder / "README.md").write_text(CARD.format(name=Path(path).name), encoding="utf-8")

    write_folder(output, write)
    return model


def _read(path: Path) -> tuple[dict[str, Tensor], Mapping[str, Any]]:
    """The tensors of a file by name, and what it says beside them."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        raise DataError(
            f"{path} holds more than tensors{f' ({wanted[1]})' if wanted else ''}, and loading that could run code: "
            'refused. If you trust the file: torch.save(torch.load(path, weights_only=False)["state_dict"], other_path)'
        ) from error
    except _NOT_A_CHECKPOINT as error:
        raise DataError(f"{path} is no checkpoint of PyTorch ({type(error).__name__})") from error
    content = content if isinstance(content, Mapping) else {}
    tensors = next((content[key] for key in ("state_dict", "model") if isinstance(content.get(key), Mapping)), content)
    named = {key.removeprefix("module."): value for key, value in tensors.items() if isinstance(value, Tensor)}
    return named, content.get("meta") or {}


def _layout(path: str | Path, tensors: Mapping[str, Tensor], wanted: Layout) -> str:
    fitting = [name for name, key in _FIRST.items() if key in tensors or f"backbone.{key}" in tensors]
    if not fitting or wanted not in ("auto", *fitting):
        what = "mmseg or NVlabs" if wanted == "auto" else wanted
        names = ", ".join(list(tensors)[:3]) or "no tensors"
        raise DataError(f"{path} is no SegFormer of {what}: it holds {names}, …")
    return fitting[0]


def _rename(tensors: Mapping[str, Tensor], layout: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors under our names, and those whose names mean nothing."""
    heads = any(key.startswith(("decode_head.", "head.")) for key in tensors)
    renamed: dict[str, Tensor] = {}
    unknown: dict[str, Tensor] = {}
    for key, value in tensors.items():
        names = _our_names(key, layout)
        if names is None:
            unknown |= {} if re.match(_UNUSED, key) else {key: value}
            continue
        if key.endswith("weight") and ".mlp.dense" in names[0]:
            value = value.flatten(1)  # mmseg's are 1x1 convolutions
        parts = value.chunk(len(names)) if len(names) > 1 else [value]
        for name, part in zip(names, parts, strict=True):
            renamed[f"segformer.{name}" if heads and name.startswith("encoder.") else name] = part.clone()
    return renamed, unknown


def _our_names(key: str, layout: str) -> list[str] | None:
    """What a tensor of the file is with us: one name, or those of its parts."""
    encoder = {pattern: f"encoder.{name}" for pattern, name in _ENCODER[layout].items()}
    for pattern, name in (encoder | (_HEAD if layout == "nvlabs" else {})).items():
        if match := re.match(pattern, key):
            groups = match.groupdict()
            if layout == "nvlabs" and "s" in groups:  # counts from 1
                groups["s"] = str(int(groups["s"]) - 1)
            start, _, last = name.format(**groups).removesuffix(".").rpartition(".")
            return [f"{start}.{part}.{key[match.end() :]}".lstrip(".") for part in last.split("|")]
    return None


def _build(path: str | Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> SegformerPreTrainedModel:
    """A model of the shapes of the tensors, its weights still random."""
    prefix = "segformer.encoder." if any(key.startswith("segformer.") for key in tensors) else "encoder."
    encoder = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
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
    fields: dict[str, Any] = {
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
    if "decode_head.classifier.weight" in tensors:
        number, fields["decoder_hidden_size"] = tensors["decode_head.classifier.weight"].shape[:2]
        return SegformerForSemanticSegmentation(SegformerConfig(**fields, **_label_fields(meta, number)))
    if "classifier.weight" in tensors:
        number = len(tensors["classifier.weight"])
        return SegformerForImageClassification(SegformerConfig(**fields, num_labels=number))
    return SegformerModel(SegformerConfig(**fields))


def _label_fields(meta: Mapping[str, Any], number: int) -> dict[str, Any]:
    """Names and colours of the classes, where a file has them for each."""
    about = {key.lower(): value for key, value in {**meta, **(meta.get("dataset_meta") or {})}.items()}
    names, colors = about.get("classes"), about.get("palette")
    if not names or len(names) != number or len(set(names)) != number:
        return {"num_labels": number}
    return LabelMap.from_names(list(names), colors if colors and len(colors) == number else None).config_fields()
