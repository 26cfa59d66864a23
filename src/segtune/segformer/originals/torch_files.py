"""Checkpoints of PyTorch: those of NVlabs' code (the authors'), mmsegmentation and LibreYOLO, no tensor left over.

The names are those of Apache-2.0 and MIT sources: transformers' `convert_segformer_original_to_pytorch.py`,
mmsegmentation's `mit2mmseg.py`, LibreYOLO's `models/segformer/nn.py`. NVlabs and mmseg run the layer norms of the
blocks with eps 1e-6, where the published layout has 1e-5.
"""

from __future__ import annotations

import pickle
import re
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from segtune.errors import DataError, UsageError
from segtune.segformer.image_processing_segformer import IMAGENET_MEAN, IMAGENET_STD
from segtune.segformer.originals.source import Source, label_fields
from segtune.segformer.parameter_names import published_name

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
_HEAD = {  # of NVlabs, also found beside mmseg's encoder
    r"decode_head\.linear_c(?P<s>\d)\.proj\.": "decode_head.linear_c.{s}.proj.",
    r"decode_head\.linear_fuse\.conv\.": "decode_head.linear_fuse.",
    r"decode_head\.linear_fuse\.bn\.": "decode_head.batch_norm.",
    r"decode_head\.linear_pred\.": "decode_head.classifier.",
    r"head\.": "classifier.",
}
_HEADS = r"(decode_head|head)\."
_MMSEG_HEAD = re.compile(r"decode_head\.(convs\.|fusion_conv\.)")
_LEFT_OUT = {  # parts that training has and the network has not; what each of them is
    "auxiliary_head": r"auxiliary_head\.",
    "data_preprocessor": r"data_preprocessor\.",
    "decode_head.conv_seg, which this head does not call": r"decode_head\.conv_seg\.",
    "copies that mmcv's EMA hook keeps": r"ema_\w+$",
    "counters of averaged weights": r"(n_averaged|steps)$",
}
_IMAGENET = {"image_mean": list(IMAGENET_MEAN), "image_std": list(IMAGENET_STD)}  # inside LibreYOLO's network
_WRAPPERS = ("state_dict", "model", "model_state_dict", "ema_state_dict", "encoder")
# What torch.load raises, besides its refusal to run code, where bytes are missing, changed or of another format.
_NOT_A_CHECKPOINT = (
    *(AssertionError, AttributeError, LookupError, OverflowError, TypeError, ValueError, struct.error),
    *(EOFError, OSError, RuntimeError, zipfile.BadZipFile),
)
_FIRST = {
    "nvlabs": "patch_embed1.proj.weight",
    "mmseg": "layers.0.0.projection.weight",
    "libreyolo": "stages.0.patch_embeddings.proj.weight",
}


def read_torch(path: Path, wanted: str = "auto", *, encoder_only: bool = False) -> Source:
    """What a `.pth` or `.pt` file holds.

    Args:
        wanted: `auto`, or the layout that it must have.
        encoder_only: leave the head out.

    Raises:
        UsageError: a file of mmseg with its head, without `encoder_only`.
        DataError: no such file, one that would run code, or one of another network.
    """
    content = _load(path)
    tensors, left_out = _state(content)
    if unfit := [key for key, value in tensors.items() if not _is_plain(value)]:
        raise DataError(f"{path} is no SegFormer: {unfit[0]} is no plain tensor of numbers with all its bytes")
    layout = _layout(path, tensors, wanted)
    tensors = {re.sub(r"^(backbone|encoder)\.", "", key): value for key, value in tensors.items()}
    parts = {part: [key for key in tensors if re.match(pattern, key)] for part, pattern in _LEFT_OUT.items()}
    aside = {key for names in parts.values() for key in names}
    if encoder_only:
        parts["the head"] = [key for key in tensors if re.match(_HEADS, key) and key not in aside]
        aside.update(parts["the head"])
    kept = {key: value for key, value in tensors.items() if key not in aside}
    if any(map(_MMSEG_HEAD.match, kept)):
        raise UsageError(
            f"{path}: mmseg's decode head has a batch norm and a ReLU after each projection, which the published "
            "layout has not; --encoder-only takes over the encoder, to fine-tune from"
        )
    renamed, unknown = _rename(kept, layout)
    return Source(
        layout=layout,
        tensors=renamed,
        unknown=unknown,
        fields=_labels(path, content, renamed),
        processor=_IMAGENET if layout == "libreyolo" else _normalisation(tensors),
        left_out={part: names for part, names in (left_out | parts).items() if names},
        stated=_stated(content),
    )


def _load(path: Path) -> Mapping[str, Any]:
    """The content of a file, as far as it can be read without running code of others."""
    try:
        _refuse_bomb(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        raise DataError(
            f"{path} holds more than tensors{f' ({wanted[1]})' if wanted else ''}, and loading that could run code: "
            'refused. If you trust the file: torch.save(torch.load(path, weights_only=False)["state_dict"], other_path)'
        ) from error
    except DataError:
        raise
    except _NOT_A_CHECKPOINT as error:
        raise DataError(f"{path} is no checkpoint of PyTorch ({type(error).__name__})") from error
    return content if isinstance(content, Mapping) else {}


def _refuse_bomb(path: Path) -> None:
    """PyTorch packs nothing: an archive that is larger when it is unpacked was made by somebody else."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
    if unpacked > path.stat().st_size:
        raise DataError(
            f"{path} is no checkpoint of PyTorch: it unpacks to {unpacked:,} bytes, and PyTorch packs nothing"
        )


def _state(content: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, list[str]]]:
    """The tensors of a file by name; and what is left out beside them.

    mmengine stores averaged weights as `state_dict` and those that training goes on with as `ema_state_dict`; a file
    with the latter alone holds the average under that name.
    """
    found = [key for key in _WRAPPERS if isinstance(content.get(key), Mapping)]
    states = {key: _named(content[key]) for key in found}
    chosen = next((key for key in found if states[key]), None)
    beside = sorted(states["ema_state_dict"]) if "ema_state_dict" in found and chosen != "ema_state_dict" else []
    return states[chosen] if chosen else _named(content), {"ema_state_dict, beside the weights": beside}


def _named(state: Mapping[Any, Any]) -> dict[str, Tensor]:
    return {str(key).removeprefix("module."): value for key, value in state.items() if isinstance(value, Tensor)}


def _is_plain(value: Tensor) -> bool:
    """Whether a tensor is dense, of real numbers, and has a place for each of them: else it may seem larger than all
    memory.
    """
    if value.layout != torch.strided or value.is_quantized or value.is_complex() or value.device.type != "cpu":
        return False
    return value.numel() * value.element_size() <= value.untyped_storage().nbytes()


def _layout(path: Path, tensors: Mapping[str, Tensor], wanted: str) -> str:
    prefixes = ("", "backbone.", "encoder.")
    fitting = [name for name, key in _FIRST.items() if any(f"{prefix}{key}" in tensors for prefix in prefixes)]
    if not fitting or wanted not in ("auto", *fitting):
        what = "mmseg, NVlabs or LibreYOLO" if wanted == "auto" else wanted
        names = ", ".join(list(tensors)[:3]) or "no tensors"
        raise DataError(f"{path} is no SegFormer of {what}: it holds {names}, …")
    return fitting[0]


def _rename(tensors: Mapping[str, Tensor], layout: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors under our names, and those whose names mean nothing."""
    heads = any(re.match(_HEADS, key) for key in tensors)
    renamed: dict[str, Tensor] = {}
    unknown: dict[str, Tensor] = {}
    for key, value in tensors.items():
        names = _our_names(key, layout)
        if names is None:
            unknown[key] = value
            continue
        if key.endswith("weight") and ".mlp.dense" in names[0]:
            value = value.flatten(1)  # mmseg's are 1x1 convolutions
        parts = value.chunk(len(names)) if len(names) > 1 else [value]
        if len(parts) != len(names):
            raise ValueError(f"{key} has the shape {list(value.shape)}, and holds {len(names)} tensors")
        for name, part in zip(names, parts, strict=True):
            renamed[f"segformer.{name}" if heads and name.startswith("encoder.") else name] = part
    return renamed, unknown


def _our_names(key: str, layout: str) -> list[str] | None:
    """What a tensor of the file is with us: one name, or those of its parts."""
    if layout == "libreyolo":  # the names of transformers 5 in memory
        name = published_name(key)
        return [name] if name.startswith(("encoder.", "decode_head.")) else None
    encoder = {pattern: f"encoder.{name}" for pattern, name in _ENCODER[layout].items()}
    for pattern, name in (encoder | _HEAD).items():
        if match := re.match(pattern, key):
            groups = match.groupdict()
            if "s" in groups and (layout == "nvlabs" or name.startswith("decode_head.")):  # counts from 1
                groups["s"] = str(int(groups["s"]) - 1)
            start, _, last = name.format(**groups).removesuffix(".").rpartition(".")
            return [f"{start}.{part}.{key[match.end() :]}".lstrip(".") for part in last.split("|")]
    return None


def _labels(path: Path, content: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Names and colours of the classes, where a file has them for each: mmseg's `meta`, LibreYOLO's `names`."""
    if (classifier := tensors.get("decode_head.classifier.weight")) is None or not classifier.ndim:
        return {}
    meta = _mapping(content.get("meta"))
    about = {str(key).lower(): value for key, value in {**meta, **_mapping(meta.get("dataset_meta"))}.items()}
    found = [about.get("classes"), content.get("names")]
    names: Any = next((value for value in found if isinstance(value, (list, tuple, Mapping)) and value), None)
    if isinstance(names, Mapping):
        names = [names[key] for key in sorted(names, key=lambda key: int(str(key)) if str(key).isdecimal() else -1)]
    return label_fields(path, names and [str(name) for name in names], len(classifier), about.get("palette"))


def _mapping(value: Any) -> Mapping[Any, Any]:
    return value if isinstance(value, Mapping) else {}


def _normalisation(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Mean and deviation of 8-bit pictures that mmseg's preprocessor holds, as the image processor has them."""
    mean, std = (tensors.get(f"data_preprocessor.{name}") for name in ("mean", "std"))
    if mean is None or std is None or mean.numel() != std.numel() or not bool((std > 0).all()):
        return {}
    return {
        "image_mean": [round(float(value) / 255, 6) for value in mean.flatten()],
        "image_std": [round(float(value) / 255, 6) for value in std.flatten()],
    }


def _stated(content: Mapping[str, Any]) -> str | None:
    """The licence that LibreYOLO's newer files state of their weights."""
    stated = content.get("weight_license")
    return str(stated) if isinstance(stated, str) and stated.strip() else None
