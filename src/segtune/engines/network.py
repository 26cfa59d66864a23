"""The network that is exported: the same function in plain operations, as few as there can be.

Everything is in evaluation mode. Besides what the decode head saves by its order (see `fused_decode_head`):

- the two layers of a Mix-FFN are 1x1 convolutions, so that what is transposed has C channels and not 4·C, and engines
  keep the 4·C channels in a layout of their own from the first convolution to the last,
- keys and values come of one product, the scale of the scores lies in the queries' weights, and with a single head the
  output projection lies in the values' weights: the rows of the softmax sum to one, so that biases pass through.

Letters: B batch, K labels, C channels, H W size, N = H·W tokens, D decoder width, R sequence-reduction ratio (side).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segtune.errors import UsageError
from segtune.segformer.fused_decode_head import compose
from segtune.segformer.modeling_segformer import SegformerForSemanticSegmentation

_LAYERS = ("torch.nn.", "segtune.segformer.", "transformers.activations")  # whose weights say all that they do


class LogitsNetwork(nn.Module):
    """What `model(pixel_values).logits` is, up to rounding, for export; it shares no memory with the model.

    Raises:
        UsageError: the model holds layers of others (adapters, quantised ones), whose weights do not tell what they do.
    """

    def __init__(self, model: SegformerForSemanticSegmentation) -> None:
        super().__init__()
        for name, module in model.named_modules():
            if not type(module).__module__.startswith(_LAYERS):
                raise UsageError(
                    f"{name} is a {type(module).__name__}, which cannot be exported: merge adapters first "
                    "(merge_and_unload), or load the checkpoint anew"
                )
        model = copy.deepcopy(model).float()
        encoder = model.segformer.encoder
        parts = zip(encoder.patch_embeddings, encoder.block, encoder.layer_norm, strict=True)
        with torch.no_grad():
            self.stages = nn.ModuleList(_Stage(*each) for each in parts)
            self.head = _Head(model.decode_head)
        self.eval().requires_grad_(False)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Logits `(B, K, H/4, W/4)`, sides rounded up, of normalised images `(B, C, H, W)`, float32."""
        maps, x = [], pixel_values
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        logits: Tensor = self.head(maps)
        return logits


class _Stage(nn.Module):
    def __init__(self, embed: Any, blocks: Any, norm: Any) -> None:
        super().__init__()
        self.embed, self.embed_norm = embed.proj, embed.layer_norm
        self.blocks = nn.ModuleList(map(_Block, blocks))
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)  # (B, C, H, W)
        size = x.shape[2:]
        x = self.embed_norm(_tokens(x))  # (B, N, C)
        for block in self.blocks:
            x = block(x, size)
        return _planes(self.norm(x), size)


class _Block(nn.Module):
    def __init__(self, block: Any) -> None:
        super().__init__()
        self.attention_norm, self.attention = block.layer_norm_1, _Attention(block.attention)
        self.mlp_norm, mlp = block.layer_norm_2, block.mlp
        self.expand = _pointwise(mlp.dense1.weight, mlp.dense1.bias)
        self.depthwise, self.activation = mlp.dwconv.dwconv, mlp.activation
        self.contract = _pointwise(mlp.dense2.weight, mlp.dense2.bias)

    def forward(self, x: Tensor, size: Sequence[int]) -> Tensor:
        x = x + self.attention(self.attention_norm(x), size)
        y = self.expand(_planes(self.mlp_norm(x), size))  # (B, 4·C, H, W)
        return x + _tokens(self.contract(self.activation(self.depthwise(y))))


class _Attention(nn.Module):
    """Equation 1 and 2 of the paper."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        own, dense = attention.self, attention.output["dense"]
        self.heads, self.ratio = own.heads, own.ratio
        if self.ratio > 1:
            self.reduce, self.norm = own.sr, own.layer_norm
        self.query = own.query
        scale = (own.query.out_features // own.heads) ** -0.5
        self.query.weight *= scale
        self.query.bias *= scale
        value, bias = own.value.weight, own.value.bias
        self.output = None if self.heads == 1 else dense
        if self.output is None:
            value, bias = dense.weight @ value, dense.weight @ bias + dense.bias
        self.key_value = nn.Linear(value.shape[1], 2 * len(value))
        self.key_value.weight.copy_(torch.cat([own.key.weight, value]))
        self.key_value.bias.copy_(torch.cat([own.key.bias, bias]))

    def forward(self, x: Tensor, size: Sequence[int]) -> Tensor:
        reduced = x
        if self.ratio > 1:
            reduced = self.norm(_tokens(self.reduce(self._at_least_one_patch(_planes(x, size)))))  # (B, N/R², C)
        key, value = self.key_value(reduced).chunk(2, dim=-1)
        # (B, heads, ·, C/heads), with one head as well: OpenVINO's fused attention takes four dimensions
        query, key, value = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in (self.query(x), key, value))
        y = (query @ key.transpose(-1, -2)).softmax(-1) @ value
        y = y.transpose(1, 2).flatten(2)  # (B, N, C)
        return y if self.output is None else self.output(y)

    def _at_least_one_patch(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        if height >= self.ratio and width >= self.ratio:
            return x
        return F.pad(x, (0, max(self.ratio - width, 0), 0, max(self.ratio - height, 0)))


class _Head(nn.Module):
    def __init__(self, head: Any) -> None:
        super().__init__()
        weights, bias = compose(head, fold=True)
        biases = [bias, *[None] * (len(weights) - 1)]
        self.projections = nn.ModuleList(map(_pointwise, weights, biases))
        self.classifier = head.classifier

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        size = maps[0].shape[2:]
        total, *others = (projection(x) for projection, x in zip(self.projections, maps, strict=True))
        for x in others:
            total = total + F.interpolate(x, size=size, mode="bilinear", align_corners=False)  # (B, D, H, W)
        logits: Tensor = self.classifier(total.relu())
        return logits


def _pointwise(weight: Tensor, bias: Tensor | None) -> nn.Conv2d:
    conv = nn.Conv2d(weight.shape[1], len(weight), 1, bias=bias is not None)
    conv.weight.copy_(weight[:, :, None, None])
    if bias is not None and conv.bias is not None:
        conv.bias.copy_(bias)
    return conv


def _tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)  # (B, C, H, W) to (B, N, C)


def _planes(x: Tensor, size: Sequence[int]) -> Tensor:
    return x.transpose(1, 2).unflatten(2, size)  # (B, N, C) to (B, C, H, W)
