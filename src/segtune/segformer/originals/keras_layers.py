"""Layers of keras-hub's networks as ours: which is which, by its path and its shapes, and their kernels as PyTorch's.

Only the end of a path is looked at, so that an encoder is found alone, in a SegFormer and in a model around it. Kernels
are `(height, width, in, out)` and `(in, out)`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from segtune.errors import DataError

_PATCHES, _BLOCK = (
    rf"(?:^|/){name}(?:_(?P<n>\d+))?/"
    for name in ("overlapping_patching_and_embedding", "hierarchical_transformer_encoder")
)
_PARTS = {  # end of a layer's path -> its name in `encoder`; `#` is the number of the stage, or of the block
    f"{_PATCHES}proj$": "patch_embeddings.#.proj",
    f"{_PATCHES}norm$": "patch_embeddings.#.layer_norm",
    r"(?:^|/)layer_normalization(?:_(?P<n>\d+))?$": "layer_norm.#",
    f"{_BLOCK}norm1$": "block.#.layer_norm_1",
    f"{_BLOCK}norm2$": "block.#.layer_norm_2",
    f"{_BLOCK}attn/q$": "block.#.attention.self.query",
    f"{_BLOCK}attn/k$": "block.#.attention.self.key",
    f"{_BLOCK}attn/v$": "block.#.attention.self.value",
    f"{_BLOCK}attn/proj$": "block.#.attention.output.dense",
    f"{_BLOCK}attn/sr$": "block.#.attention.self.sr",
    f"{_BLOCK}attn/norm$": "block.#.attention.self.layer_norm",
    f"{_BLOCK}mlp/fc1$": "block.#.mlp.dense1",
    f"{_BLOCK}mlp/dwconv$": "block.#.mlp.dwconv.dwconv",
    f"{_BLOCK}mlp/fc2$": "block.#.mlp.dense2",
}
_FUSE, _BATCH_NORM = r"(?:^|/)sequential/layers/conv2d$", r"(?:^|/)sequential/layers/batch_normalization$"
_DENSE, _CLASSIFIER = r"(?:^|/)dense(?:_\d+)?$", r"(?:^|/)layers/conv2d$"
Variables = dict[int, np.ndarray]  # of a layer, by number: kernel or gamma, bias or beta, moving mean, moving variance


def has_encoder(layers: Iterable[str]) -> bool:
    """Whether a layer with one of these paths is a block of an encoder."""
    return any(re.search(_BLOCK, layer) for layer in layers)


def encoder_tensors(path: Path, layers: dict[str, Variables], depths: Sequence[int]) -> dict[str, Tensor]:
    """The tensors of the encoder under their names below `encoder`; they are taken out of `layers`.

    Args:
        depths: blocks of each stage, where the configuration tells them; else a block belongs to the stage that has as
            many channels.
    """
    found: dict[str, Variables] = {}
    for layer in sorted(layers):
        for pattern, name in _PARTS.items():
            if match := re.search(pattern, layer):
                place = name.replace("#", match["n"] or "0")
                if place not in found:  # else it is the same layer by another way: what is there first counts
                    found[place] = layers[layer]
                del layers[layer]
                break
    sizes = _channels(path, found, "layer_norm", "")
    widths = _channels(path, found, "block", ".layer_norm_1")
    if len(depths) != len(sizes) or sum(depths) != len(widths):
        depths = [widths.count(size) for size in sizes]
    if widths != [size for size, depth in zip(sizes, depths, strict=True) for _ in range(depth)]:
        raise DataError(f"{path}: blocks of {widths} channels do not belong to stages of {sizes}")
    stages = [f"{stage}.{block}" for stage, depth in enumerate(depths) for block in range(depth)]
    named = {}
    for place, variables in found.items():
        kind, number, rest = re.fullmatch(r"(\w+)\.(\d+)(.*)", place).groups()  # type: ignore[union-attr]
        if kind == "block" and int(number) >= len(stages):
            raise DataError(f"{path} is no whole SegFormer: it has a block {number}, and {len(stages)} in order")
        named[f"{kind}.{stages[int(number)] if kind == 'block' else number}{rest}"] = variables
    return {name: value for place, found in named.items() for name, value in _tensors(place, found).items()}


def _channels(path: Path, found: Mapping[str, Variables], kind: str, rest: str) -> list[int]:
    """The number of channels of the layer norms `kind.0rest`, `kind.1rest`, …"""
    matches = (re.fullmatch(rf"{kind}\.(\d+){re.escape(rest)}", place) for place in found)
    numbers = sorted(int(match[1]) for match in matches if match)
    if numbers != list(range(len(numbers))) or not numbers:
        raise DataError(f"{path} is no whole SegFormer: of the layers {kind}.#{rest} it has the numbers {numbers}")
    norms = [found[f"{kind}.{number}{rest}"] for number in numbers]
    if not all(0 in norm and norm[0].ndim == 1 for norm in norms):
        raise DataError(f"{path} is no SegFormer of keras-hub: a {kind}.#{rest} has no scale")
    return [len(norm[0]) for norm in norms]


def head_tensors(layers: dict[str, Variables], sizes: Sequence[int]) -> dict[str, Tensor]:
    """The tensors of a decode head, or of a classifier, under our names; they are taken out of `layers`.

    Args:
        sizes: channels of the stages, by which the projections of the decode head are told from each other.
    """
    projections = [layer for layer in layers if re.search(_DENSE, layer) and 0 in layers[layer]]
    fuse = next((layer for layer in layers if re.search(_FUSE, layer)), None)
    named: dict[str, str] = {}
    if fuse is None and len(projections) == 1:
        named[projections[0]] = "classifier"
    elif fuse is not None and len(set(sizes)) == len(sizes):
        inputs = {layer: layers[layer][0].shape[0] for layer in projections if layers[layer][0].ndim == 2}
        named |= {layer: f"decode_head.linear_c.{sizes.index(n)}.proj" for layer, n in inputs.items() if n in sizes}
        named[fuse] = "decode_head.linear_fuse"
        named |= {layer: "decode_head.batch_norm" for layer in layers if re.search(_BATCH_NORM, layer)}
        named |= {
            layer: "decode_head.classifier" for layer in layers if re.search(_CLASSIFIER, layer) and layer not in named
        }
    return {name: value for layer, place in named.items() for name, value in _tensors(place, layers.pop(layer)).items()}


def _tensors(place: str, variables: Variables) -> dict[str, Tensor]:
    """The variables of a layer as PyTorch has them, under the name of the layer."""
    leaves = ("weight", "bias", "running_mean", "running_var")
    named = {f"{place}.{leaves[i] if i < len(leaves) else i}": value for i, value in variables.items()}
    tensors = {name: torch.from_numpy(_as_pytorch(value, "dwconv" in place)) for name, value in named.items()}
    if f"{place}.running_var" in tensors:
        tensors[f"{place}.num_batches_tracked"] = torch.tensor(0)
    return tensors


def _as_pytorch(value: np.ndarray, depthwise: bool) -> np.ndarray:
    """A kernel `(height, width, in, out)`, or of a depthwise layer `(height, width, channels, 1)`, or `(in, out)`."""
    if value.ndim == 4:
        return value.transpose(2, 3, 0, 1) if depthwise else value.transpose(3, 2, 0, 1)  # (out, in, height, width)
    return value.transpose() if value.ndim == 2 else value
