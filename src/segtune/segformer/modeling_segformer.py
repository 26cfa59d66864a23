"""SegFormer (Xie et al. 2021, arXiv 2105.15203), top to bottom.

A feature map is one contiguous `(B, H, W, C)` tensor: linear layers see `(…, C)`, convolutions see the same memory
through `permute(0, 3, 1, 2)` as a channels-last image. Parameter names are those of the published checkpoints.

Letters: B batch, K labels, C channels, H W size, N = H·W tokens, D decoder width, R sequence-reduction ratio (side).
"""

from __future__ import annotations

import itertools
import logging
import pickle
import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.activations import ACT2FN, GELUActivation
from transformers.modeling_outputs import BaseModelOutput, ImageClassifierOutput, SemanticSegmenterOutput

from .configuration_segformer import SegformerConfig
from .fused import MixFFN, NormQueryKeyValue, SumNormClassify, mix_ffn, windows
from .upsampling import band_rows, neighbours, upsample, upsampled_cross_entropy, upsampled_rows

logger = logging.getLogger(__name__)


# --- encoder: the hierarchical Mix Transformer (section 3.1) ---------------------------------------------------------


class SegformerOverlapPatchEmbeddings(nn.Module):
    """Overlapped patch merging: a strided convolution whose kernel is wider than its stride, then a layer norm."""

    def __init__(self, in_channels: int, hidden_size: int, patch_size: int, stride: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, hidden_size, patch_size, stride, patch_size // 2)
        self.layer_norm = nn.LayerNorm(hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        x = self.proj(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # (B, H/stride, W/stride, C)
        return self.layer_norm(x)


class SegformerEfficientSelfAttention(nn.Module):
    """Queries from every token, keys and values from a map whose sides are R times smaller (equations 1 and 2)."""

    def __init__(self, config: SegformerConfig, hidden_size: int, heads: int, ratio: int) -> None:
        super().__init__()
        self.config = config
        self.heads = heads
        self.ratio = ratio
        self.dropout = config.attention_probs_dropout_prob
        self.query = nn.Linear(hidden_size, hidden_size)
        self.key = nn.Linear(hidden_size, hidden_size)
        self.value = nn.Linear(hidden_size, hidden_size)
        if ratio > 1:
            self.sr = nn.Conv2d(hidden_size, hidden_size, ratio, ratio)
            self.layer_norm = nn.LayerNorm(hidden_size)

    def forward(
        self, x: Tensor, output_attentions: bool = False, norm: nn.LayerNorm | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Attend within `(B, H, W, C)`, after `norm` where it is given."""
        b, h, w, c = x.shape
        if norm is not None:
            query, key, value = self._project_fused(x, norm)
        else:
            query = self._split_heads(self.query(x))  # (B, heads, N, d)
            key, value = self._keys_and_values(self._reduce(x))  # (B, heads, N/R², d) each
        dropout = self.dropout if self.training else 0.0
        if output_attentions or self.config._attn_implementation == "eager":
            out, weights = _eager_attention(query, key, value, dropout)
        else:
            out, weights = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout), None
        return out.transpose(1, 2).reshape(b, h, w, c), weights

    def can_fuse_norm(self, x: Tensor) -> bool:
        """Whether `NormQueryKeyValue` does the same as a layer norm and these modules: nothing replaced or hooked."""
        r = self.ratio
        if min(x.shape[1:3]) < r or not _is_plain(self, SegformerEfficientSelfAttention):
            return False
        if r > 1 and not (_is_convolution(self.sr, r, stride=r) and _is_plain(self.layer_norm, nn.LayerNorm)):
            return False
        return all(_is_plain(module, nn.Linear) for module in (self.query, self.key, self.value))

    def _project_fused(self, x: Tensor, norm: nn.LayerNorm) -> tuple[Tensor, Tensor, Tensor]:
        reduction: tuple[Any, ...] = ()
        if self.ratio > 1:
            matrix = self.sr.weight.permute(0, 2, 3, 1).flatten(1)  # (C, R²·C)
            reduction = (matrix, self.sr.bias, self.layer_norm.weight, self.layer_norm.bias, self.layer_norm.eps)
        query, key_value = NormQueryKeyValue.apply(
            x,
            norm.weight,
            norm.bias,
            norm.eps,
            self.query.weight,
            self.query.bias,
            torch.cat((self.key.weight, self.value.weight)),
            torch.cat((self.key.bias, self.value.bias)),
            self.ratio,
            *reduction,
        )
        key, value = key_value.chunk(2, -1)  # (B, N/R², C) each
        return self._split_heads(query), self._split_heads(key), self._split_heads(value)

    def _split_heads(self, x: Tensor) -> Tensor:
        x = x.flatten(1, -2)  # (B, N, C)
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, N, d)

    def _reduce(self, x: Tensor) -> Tensor:
        """Sequence reduction. Kernel and stride are equal, so that the convolution is one matrix product."""
        _, h, w, c = x.shape
        r = self.ratio
        if r == 1:
            return x.flatten(1, 2)  # (B, N, C)
        if h < r or w < r:  # smaller than one window: zeros below and to the right, as a convolution pads
            x = F.pad(x, (0, 0, 0, max(r - w, 0), 0, max(r - h, 0)))
        if not _is_convolution(self.sr, r, stride=r):
            x = self.sr(x.permute(0, 3, 1, 2)).flatten(2).transpose(1, 2)  # (B, N/R², C)
        else:
            matrix = self.sr.weight.permute(0, 2, 3, 1).reshape(c, -1)  # (C, R²·C)
            x = F.linear(windows(x, r), matrix, self.sr.bias)  # (B, N/R², C)
        return self.layer_norm(x)

    def _keys_and_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if not (_is_plain(self.key, nn.Linear) and _is_plain(self.value, nn.Linear)):
            return self._split_heads(self.key(x)), self._split_heads(self.value(x))
        weight = torch.cat((self.key.weight, self.value.weight))
        bias = torch.cat((self.key.bias, self.value.bias))
        key, value = F.linear(x, weight, bias).chunk(2, -1)  # (B, N/R², C) each
        return self._split_heads(key), self._split_heads(value)


class SegformerAttention(nn.Module):
    def __init__(self, config: SegformerConfig, hidden_size: int, heads: int, ratio: int) -> None:
        super().__init__()
        self.self = SegformerEfficientSelfAttention(config, hidden_size, heads, ratio)
        self.output = nn.ModuleDict({"dense": nn.Linear(hidden_size, hidden_size)})
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self, x: Tensor, output_attentions: bool = False, norm: nn.LayerNorm | None = None
    ) -> tuple[Tensor, Tensor | None]:
        x, weights = self.self(x, output_attentions, norm)
        return self.dropout(self.output["dense"](x)), weights  # (B, H, W, C)


class SegformerDepthwiseConv(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(channels, channels, 3, 1, 1, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.dwconv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # (B, H, W, C)


class SegformerMixFFN(nn.Module):
    """Mix-FFN (equation 3): the zero-padded 3x3 convolution stands in for a positional encoding."""

    def __init__(self, config: SegformerConfig, hidden_size: int, ratio: float) -> None:
        super().__init__()
        width = int(hidden_size * ratio)
        self.dense1 = nn.Linear(hidden_size, width)
        self.dwconv = SegformerDepthwiseConv(width)
        self.activation = ACT2FN[config.hidden_act]
        self.dense2 = nn.Linear(width, hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dwconv(self.dense1(x))  # (B, H, W, ratio·C)
        x = self.dropout(self.activation(x))
        return self.dropout(self.dense2(x))  # (B, H, W, C)

    def is_fusible(self) -> bool:
        """Whether `MixFFN` does the same: GELU, no dropout, and nothing replaced or hooked."""
        modules: list[tuple[nn.Module, type[nn.Module]]] = [
            (self, SegformerMixFFN),
            (self.dense1, nn.Linear),
            (self.dwconv, SegformerDepthwiseConv),
            (self.activation, GELUActivation),
            (self.dense2, nn.Linear),
            (self.dropout, nn.Dropout),
        ]
        if not all(_is_plain(module, kind) for module, kind in modules):
            return False
        width = self.dense1.out_features
        no_dropout = self.dropout.p == 0 or not self.dropout.training
        return no_dropout and _is_convolution(self.dwconv.dwconv, 3, padding=1, groups=width)


class SegformerDropPath(nn.Module):
    """Stochastic depth per sample (Huang et al. 2016, arXiv 1603.09382)."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if self.p == 0.0 or not self.training:
            return x
        keep = 1 - self.p
        mask = x.new_empty((x.shape[0], *[1] * (x.ndim - 1))).bernoulli_(keep)
        return x * mask.div_(keep)

    def extra_repr(self) -> str:
        return f"p={self.p:.3g}"


class SegformerBlock(nn.Module):
    def __init__(
        self, config: SegformerConfig, hidden_size: int, heads: int, ratio: int, mlp_ratio: float, drop_path: float
    ) -> None:
        super().__init__()
        self.layer_norm_1 = nn.LayerNorm(hidden_size)
        self.attention = SegformerAttention(config, hidden_size, heads, ratio)
        self.drop_path = SegformerDropPath(drop_path)
        self.layer_norm_2 = nn.LayerNorm(hidden_size)
        self.mlp = SegformerMixFFN(config, hidden_size, mlp_ratio)

    def forward(self, x: Tensor, output_attentions: bool = False) -> tuple[Tensor, Tensor | None]:
        norm = self.layer_norm_1
        if self._can_fuse_norm(x):
            y, weights = self.attention(x, output_attentions, norm)
        else:
            y, weights = self.attention(norm(x), output_attentions)
        x = x + self.drop_path(y)
        return x + self.drop_path(self._mix_ffn(x)), weights  # (B, H, W, C)

    def _can_fuse_norm(self, x: Tensor) -> bool:
        attention = self.attention
        free = torch.is_grad_enabled() and not torch.compiler.is_compiling()
        plain = _is_plain(self.layer_norm_1, nn.LayerNorm) and _is_plain(attention, SegformerAttention)
        return free and plain and attention.self.can_fuse_norm(x)

    def _mix_ffn(self, x: Tensor) -> Tensor:
        norm, mlp = self.layer_norm_2, self.mlp
        compiling = torch.compiler.is_compiling()  # a compiler decides on its own what to keep
        if compiling or not (_is_plain(norm, nn.LayerNorm) and mlp.is_fusible()):
            return mlp(norm(x))
        first, conv, last = mlp.dense1, mlp.dwconv.dwconv, mlp.dense2
        parameters = (first.weight, first.bias, conv.weight, cast(Tensor, conv.bias), last.weight, last.bias)
        function = MixFFN.apply if torch.is_grad_enabled() else mix_ffn
        return function(x, norm.weight, norm.bias, norm.eps, *parameters)


class SegformerEncoder(nn.Module):
    def __init__(self, config: SegformerConfig) -> None:
        super().__init__()
        sizes = (config.num_channels, *config.hidden_sizes)
        total = sum(config.depths)
        rates = iter([config.drop_path_rate * i / max(total - 1, 1) for i in range(total)])  # rising with depth
        stages = range(config.num_encoder_blocks)
        self.patch_embeddings = nn.ModuleList(
            SegformerOverlapPatchEmbeddings(sizes[i], sizes[i + 1], config.patch_sizes[i], config.strides[i])
            for i in stages
        )
        self.block = nn.ModuleList(
            nn.ModuleList(
                SegformerBlock(
                    config,
                    config.hidden_sizes[i],
                    config.num_attention_heads[i],
                    config.sr_ratios[i],
                    config.mlp_ratios[i],
                    next(rates),
                )
                for _ in range(config.depths[i])
            )
            for i in stages
        )
        self.layer_norm = nn.ModuleList(nn.LayerNorm(size) for size in config.hidden_sizes)
        self.gradient_checkpointing = False

    def forward(self, pixel_values: Tensor, output_attentions: bool = False) -> tuple[list[Tensor], list[Tensor]]:
        """Feature maps `(B, H_i, W_i, C_i)` of every stage, and the attention weights where asked for."""
        x = pixel_values.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)  # (B, H, W, C)
        features, attentions = [], []
        for embed, stage, norm in zip(self.patch_embeddings, self.block, self.layer_norm, strict=True):
            x = embed(x)
            for block in cast(nn.ModuleList, stage).children():
                if self.gradient_checkpointing and self.training:
                    x, weights = cast(Any, self._gradient_checkpointing_func)(block.__call__, x, output_attentions)
                else:
                    x, weights = block(x, output_attentions)
                if output_attentions:
                    attentions.append(weights)
            x = norm(x)
            features.append(x)
        return features, attentions


# --- decode head: all-MLP (section 3.2) ------------------------------------------------------------------------------


class SegformerMLP(nn.Module):
    def __init__(self, hidden_size: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(hidden_size, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)  # (B, H_i, W_i, D)


class SegformerDecodeHead(nn.Module):
    """All-MLP decode head that never builds the concatenation.

    Between the four projections and the fusing 1x1 convolution there is no non-linearity, and bilinear upsampling is
    linear per channel with weights that sum to one. So `fuse(concat(up(P_i x_i + b_i)))` equals
    `sum_i up((F_i P_i) x_i) + sum_i F_i b_i`: the composed D x C_i products run at each stage's own resolution.
    The stored parameters stay the published ones.
    """

    def __init__(self, config: SegformerConfig) -> None:
        super().__init__()
        width = config.decoder_hidden_size
        self.linear_c = nn.ModuleList(SegformerMLP(size, width) for size in config.hidden_sizes)
        self.linear_fuse = nn.Conv2d(width * len(self.linear_c), width, 1, bias=False)
        self.batch_norm = nn.BatchNorm2d(width)
        self.dropout = nn.Dropout2d(config.classifier_dropout_prob)  # channel dropout, as the authors trained
        self.classifier = nn.Conv2d(width, config.num_labels, 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Logits `(B, K, H_1, W_1)` from feature maps `(B, H_i, W_i, C_i)`, stage 1 first."""
        fold = self._can_fold_batch_norm()
        if not self._can_compose():
            return self._classify(self.batch_norm(self._fuse_literally(features)))
        if fold and self._can_use_bands(features[0].device):
            return self._logits_in_bands(features)
        if not fold and self._is_fusible():
            return self._train_fused(features)
        x = self._fuse_composed(features, fold)
        return self._classify(x if fold else self.batch_norm(x))

    def _classify(self, x: Tensor) -> Tensor:
        return self.classifier(self.dropout(F.relu(x)))  # (B, K, H_1, W_1)

    def _can_compose(self) -> bool:
        """Whether every projection is the plain module; adapted, quantised or hooked ones must be called."""
        return _is_convolution(self.linear_fuse, 1, bias=False) and all(
            _is_plain(mlp, SegformerMLP) and _is_plain(cast(SegformerMLP, mlp).proj, nn.Linear) for mlp in self.linear_c
        )

    def _fuse_literally(self, features: Sequence[Tensor]) -> Tensor:
        size = features[0].shape[1:3]
        maps = [upsample(mlp(x).permute(0, 3, 1, 2), size) for mlp, x in zip(self.linear_c, features, strict=True)]
        return self.linear_fuse(torch.cat(maps[::-1], dim=1))  # stage 4 comes first; (B, D, H_1, W_1)

    def _fuse_composed(self, features: Sequence[Tensor], fold: bool) -> Tensor:
        weights, bias = self._compose(fold)
        size = features[0].shape[1:3]
        x = F.linear(features[0], weights[0], bias).permute(0, 3, 1, 2)  # (B, D, H_1, W_1)
        for feature, weight in zip(features[1:], weights[1:], strict=True):  # in place, autograd would copy the views
            x = x + upsample(F.linear(feature, weight).permute(0, 3, 1, 2), size)
        return x

    def _can_use_bands(self, device: torch.device) -> bool:
        free = not (torch.is_grad_enabled() or torch.compiler.is_compiling())
        drops = self.dropout.training and self.dropout.p > 0  # as with a frozen batch norm, or for sampling
        plain = _is_plain(self.dropout, nn.Dropout2d) and _is_convolution(self.classifier, 1)
        return free and plain and not drops and device.type == "cpu"

    def _logits_in_bands(self, features: Sequence[Tensor]) -> Tensor:
        """The whole head over bands of rows: no map of D channels at the size of stage 1 leaves the cache."""
        first, *others = features
        height, width = first.shape[1:3]
        weights, bias = self._compose(fold=True)
        maps = [F.linear(x, weight) for x, weight in zip(others, weights[1:], strict=True)]  # (B, H_i, W_i, D)
        places = [neighbours(x.shape[1], height, x.device) for x in maps]
        dtype = maps[0].dtype if maps else first.dtype  # autocast's, where it is on
        weight, bias, classify_bias = (x.to(dtype) for x in (weights[0], bias, cast(Tensor, self.classifier.bias)))
        classify, classify_bias = self.classifier.weight.flatten(1).to(dtype), classify_bias[:, None]  # (K, D), (K, 1)
        logits = torch.empty((len(first), len(classify), height, width), dtype=dtype, device=first.device)
        rows = band_rows(width * len(bias), first.device)
        with _full_precision(first.device.type):
            for i, start in itertools.product(range(len(first)), range(0, height, rows)):
                band = slice(start, min(start + rows, height))
                x = F.linear(first[i, band].to(dtype), weight, bias)  # (rows, W_1, D)
                for other, place in zip(maps, places, strict=True):
                    x += upsampled_rows(other[i], place, band, width)
                x = F.relu_(x).flatten(0, 1)  # (rows W_1, D)
                torch.addmm(classify_bias, classify, x.t(), out=logits[i, :, band].flatten(1))
        return logits  # (B, K, H_1, W_1)

    def _compose(self, fold: bool) -> tuple[list[Tensor], Tensor]:
        """Weights `F_i P_i` of shape (D, C_i), stage 1 first, and the bias (D,); with the batch norm if `fold`."""
        dtype = self.linear_fuse.weight.dtype
        exact = torch.promote_types(dtype, torch.float32)
        fuse = self.linear_fuse.weight.flatten(1).to(exact)  # (D, 4·D)
        parts = fuse.chunk(len(self.linear_c), dim=1)[::-1]  # stage 4 comes first in the concatenation
        projections = [cast(SegformerMLP, mlp).proj for mlp in self.linear_c]
        with _full_precision(fuse.device.type):
            weights = [part @ proj.weight.to(exact) for part, proj in zip(parts, projections, strict=True)]
            bias = fuse @ torch.cat([proj.bias.to(exact) for proj in reversed(projections)])
        norm = self.batch_norm
        if fold and norm.running_mean is not None and norm.running_var is not None:
            scale = norm.weight.to(exact) * torch.rsqrt(norm.running_var.to(exact) + norm.eps)
            weights = [scale[:, None] * weight for weight in weights]
            bias = (bias - norm.running_mean.to(exact)) * scale + norm.bias.to(exact)
        return [weight.to(dtype) for weight in weights], bias.to(dtype)

    def _is_fusible(self) -> bool:
        """Whether `SumNormClassify` does the same as the modules after the projections, with batch statistics."""
        norm = self.batch_norm
        plain = _is_batch_norm(norm) and norm.affine and norm.momentum is not None
        plain = plain and _is_plain(self.dropout, nn.Dropout2d) and _is_convolution(self.classifier, 1)
        return torch.is_grad_enabled() and not torch.compiler.is_compiling() and norm.training and plain

    def _train_fused(self, features: Sequence[Tensor]) -> Tensor:
        norm, p = self.batch_norm, self.dropout.p
        first, *others = features
        (weight, *weights), bias = self._compose(fold=False)
        maps = [F.linear(x, other) for x, other in zip(others, weights, strict=True)]  # (B, H_i, W_i, D)
        noise = None
        if self.dropout.training and p > 0:
            noise = bias.new_empty((len(first), len(bias))).bernoulli_(1 - p).div_(1 - p)  # (B, D)
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked.add_(1)
        statistics = (norm.running_mean, norm.running_var, norm.momentum, norm.eps, _shared_by(norm))
        classify = self.classifier.weight.flatten(1), cast(Tensor, self.classifier.bias)  # (K, D), (K,)
        return SumNormClassify.apply(first, weight, bias, norm.weight, norm.bias, *statistics, noise, *classify, *maps)

    def _can_fold_batch_norm(self) -> bool:
        norm = self.batch_norm
        return _is_batch_norm(norm) and not norm.training and norm.running_mean is not None and norm.weight is not None


# --- models ----------------------------------------------------------------------------------------------------------


class SegformerPreTrainedModel(PreTrainedModel):
    """Loading, saving and initialisation; reads and writes the files of transformers' SegFormer classes."""

    config_class = SegformerConfig
    base_model_prefix = "segformer"
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    _no_split_modules = ["SegformerBlock"]  # noqa: RUF012
    _supports_sdpa = True
    _can_compile_fullgraph = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1):
            fan_out = module.out_channels * module.weight[0, 0].numel() / module.groups
            nn.init.normal_(module.weight, std=(2 / fan_out) ** 0.5)  # He et al. 2015
        elif isinstance(module, (nn.Linear, nn.Conv2d)):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
        elif isinstance(module, (nn.LayerNorm, nn.BatchNorm2d)):
            nn.init.ones_(module.weight)
        else:
            return
        if module.bias is not None:
            nn.init.zeros_(module.bias)
        if isinstance(module, nn.BatchNorm2d):
            for buffer, value in ((module.running_mean, 0), (module.running_var, 1), (module.num_batches_tracked, 0)):
                nn.init.constant_(cast(Tensor, buffer), value)

    def _wants_states(self, output_hidden_states: bool | None) -> bool:
        return bool(self.config.output_hidden_states if output_hidden_states is None else output_hidden_states)

    def _as_asked(self, output: Any, return_dict: bool | None) -> Any:
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """transformers' `from_pretrained`, which says in one line what was loaded and what starts fresh.

        Raises:
            UnpicklingError: a `pytorch_model.bin` that is no pure file of tensors; its code does not run.
            RuntimeError: tensors of another shape (another number of labels, say) without
                `ignore_mismatched_sizes=True`, which starts them afresh.
        """
        with_info = kwargs.pop("output_loading_info", False)
        with _without_loading_report() as report:
            try:
                model, info = super().from_pretrained(
                    pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs
                )
            except (pickle.UnpicklingError, OSError) as error:
                refusal: BaseException | None = error
                while not isinstance(refusal, pickle.UnpicklingError):  # transformers 4 wraps it in an OSError
                    if refusal is None:
                        raise
                    refusal = refusal.__context__
                found = re.search(r"GLOBAL (\S+)", str(refusal))
                raise pickle.UnpicklingError(
                    f"{pretrained_model_name_or_path}: its pytorch_model.bin is no pure file of tensors"
                    f"{f', it asks for {found[1]}' if found else ''}. Loading it could run code, so it is refused: "
                    "ask for a model.safetensors"
                ) from error
            except RuntimeError as error:
                if "ignore_mismatched_sizes" not in str(error) and "size mismatch" not in str(error):
                    raise
                raise RuntimeError(
                    f"{pretrained_model_name_or_path} holds tensors of another shape than this {cls.__name__}: pass "
                    "ignore_mismatched_sizes=True to start them afresh.\n" + "\n".join([*report, str(error)])
                ) from None
        message = _loading_summary(model, info)
        if message:
            logger.warning("%s: %s", pretrained_model_name_or_path, message)
        return (model, info) if with_info else model


class SegformerModel(SegformerPreTrainedModel):
    """The hierarchical Mix Transformer encoder."""

    def __init__(self, config: SegformerConfig) -> None:
        config.check()
        super().__init__(config)
        self.encoder = SegformerEncoder(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The first patch embedding; Accelerate (FSDP) and peft ask for it."""
        return self.encoder.patch_embeddings[0]

    def forward(
        self,
        pixel_values: Tensor,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutput | tuple[Any, ...]:
        """Encode a batch.

        Args:
            pixel_values: normalised images, `(B, C, H, W)`, floating point, any H and W.
            output_attentions: also return the attention weights `(B, heads, N_i, N_i/R_i²)` of every block.
            output_hidden_states: also return the feature maps `(B, C_i, H_i, W_i)` of every stage.
            return_dict: a `BaseModelOutput` (default) or a tuple of what is not None.

        Returns:
            `last_hidden_state` of shape `(B, C_4, H/32, W/32)`, sides rounded up, as a view of channels-last memory.
        """
        config = self.config
        if pixel_values.ndim != 4 or pixel_values.shape[1] != config.num_channels:
            raise ValueError(
                f"pixel_values has shape {tuple(pixel_values.shape)}, "
                f"expected (batch, {config.num_channels}, height, width)"
            )
        attend = config.output_attentions if output_attentions is None else output_attentions
        features, attentions = self.encoder(pixel_values, bool(attend))
        states = self._public(features)
        output = BaseModelOutput(
            last_hidden_state=states[-1],
            hidden_states=states if self._wants_states(output_hidden_states) else None,
            attentions=tuple(attentions) if attend else None,
        )
        return self._as_asked(output, return_dict)

    def _public(self, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Channels-first views; the last one stays a sequence `(B, N, C)` where `reshape_last_stage` is off."""
        states = [feature.permute(0, 3, 1, 2) for feature in features]
        if not self.config.reshape_last_stage:
            states[-1] = features[-1].flatten(1, 2)
        return tuple(states)

    def _feature_maps(self, states: Sequence[Tensor]) -> list[Tensor]:
        """What `_public` was made of, `(B, H_i, W_i, C_i)`."""
        maps = list(states)
        if not self.config.reshape_last_stage:
            kernel, stride = self.config.patch_sizes[-1], self.config.strides[-1]
            size = [(side + 2 * (kernel // 2) - kernel) // stride + 1 for side in maps[-2].shape[2:]]
            maps[-1] = maps[-1].unflatten(1, size).permute(0, 3, 1, 2)
        return [each.permute(0, 2, 3, 1) for each in maps]


class SegformerForSemanticSegmentation(SegformerPreTrainedModel):
    """SegFormer with the all-MLP decode head."""

    def __init__(self, config: SegformerConfig) -> None:
        super().__init__(config)
        self.segformer = SegformerModel(config)
        self.decode_head = SegformerDecodeHead(config)
        self.post_init()

    @property
    def accepts_loss_kwargs(self) -> bool:
        """Whether transformers' Trainer is to pass `num_items_in_batch`, in which it counts labels other than -100.

        With another ignore id its count would be wrong; it then averages the losses of the micro-batches.
        """
        return self.config.semantic_loss_ignore_index == -100

    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
    ) -> SemanticSegmenterOutput | tuple[Any, ...]:
        """Segment a batch.

        Args:
            pixel_values: normalised images, `(B, C, H, W)`, floating point, any H and W.
            labels: training ids `(B, height, width)`, integer, of any size; `config.semantic_loss_ignore_index` is
                left out of the loss.
            output_attentions: see `SegformerModel.forward`.
            output_hidden_states: the same.
            return_dict: the same.
            num_items_in_batch: what the summed loss is divided by in place of this batch's valid pixels: those of all
                micro-batches of an optimiser step.

        Returns:
            `logits` of shape `(B, K, H/4, W/4)`, sides rounded up; `loss`, if labels are given: the mean over valid
            pixels of the cross-entropy of logits upsampled to the labels' size (binary cross-entropy for K = 1), and 0
            where no pixel is valid.
        """
        encoded = self.segformer(pixel_values, output_attentions, output_hidden_states=True, return_dict=True)
        features = self.segformer._feature_maps(encoded.hidden_states)
        logits = self.decode_head(features)
        loss = None
        if labels is not None:
            reduction = "mean" if num_items_in_batch is None else "sum"
            loss = segmentation_loss(logits, labels, self.config.semantic_loss_ignore_index, reduction)
            if num_items_in_batch is not None:
                loss = loss / torch.as_tensor(num_items_in_batch, device=loss.device).clamp(min=1)
        output = SemanticSegmenterOutput(
            loss=loss,
            logits=logits,
            hidden_states=encoded.hidden_states if self._wants_states(output_hidden_states) else None,
            attentions=encoded.attentions,
        )
        return self._as_asked(output, return_dict)


class SegformerForImageClassification(SegformerPreTrainedModel):
    """SegFormer's encoder with a linear classifier on the averaged last stage (ImageNet pre-training)."""

    def __init__(self, config: SegformerConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.segformer = SegformerModel(config)
        self.classifier = nn.Linear(config.hidden_sizes[-1], config.num_labels)
        self.post_init()

    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> ImageClassifierOutput | tuple[Any, ...]:
        """Classify a batch `(B, C, H, W)`; `labels` are class ids `(B,)`, or floats `(B,)` to regress when K = 1.

        Returns:
            `logits` of shape `(B, K)` and, with labels, the mean `loss`.
        """
        encoded = self.segformer(pixel_values, output_attentions, output_hidden_states=True, return_dict=True)
        features = self.segformer._feature_maps(encoded.hidden_states)
        logits = self.classifier(features[-1].mean(dim=(1, 2)))  # (B, K)
        loss = None
        if labels is not None and self.num_labels == 1:
            loss = F.mse_loss(logits.squeeze(1), labels.to(logits.dtype).view(-1))
        elif labels is not None:
            loss = F.cross_entropy(logits, labels)
        output = ImageClassifierOutput(
            loss=loss,
            logits=logits,
            hidden_states=encoded.hidden_states if self._wants_states(output_hidden_states) else None,
            attentions=encoded.attentions,
        )
        return self._as_asked(output, return_dict)


# --- loss and helpers ------------------------------------------------------------------------------------------------


def segmentation_loss(logits: Tensor, labels: Tensor, ignore_index: int = 255, reduction: str = "mean") -> Tensor:
    """Cross-entropy over valid pixels of `logits` (B, K, h, w) upsampled to the size of `labels` (B, H, W).

    One channel (K = 1) means binary labels {0, 1} and binary cross-entropy. Pixels equal to `ignore_index` (and, for
    K = 1, negative ones) do not count.

    Args:
        reduction: `"mean"` over valid pixels (0 with zero gradients where there is none) or `"sum"`, for a caller who
            divides by the valid pixels of a larger batch (`valid_pixels`).
    """
    if labels.ndim != 3 or labels.shape[0] != logits.shape[0]:
        raise ValueError(f"labels has shape {tuple(labels.shape)}, expected ({logits.shape[0]}, height, width)")
    if 0 <= ignore_index < max(logits.shape[1], 2):
        raise ValueError(f"ignore_index={ignore_index} is one of the {logits.shape[1]} labels: choose e.g. 255 or -100")
    if logits.shape[1] > 1:
        return upsampled_cross_entropy(logits, labels, ignore_index, reduction=reduction)
    logits = upsample(logits.float(), labels.shape[1:])[:, 0]  # (B, H, W)
    valid = (labels != ignore_index) & (labels >= 0)
    target = torch.where(valid, labels, 0).to(logits.dtype)
    total = (F.binary_cross_entropy_with_logits(logits, target, reduction="none") * valid).sum()
    return total if reduction == "sum" else total / valid.sum().clamp(min=1)


def valid_pixels(labels: Tensor, ignore_index: int = 255) -> Tensor:
    """The number of pixels that count in the loss: neither `ignore_index` nor negative."""
    return ((labels != ignore_index) & (labels >= 0)).sum()


def _eager_attention(query: Tensor, key: Tensor, value: Tensor, dropout: float) -> tuple[Tensor, Tensor]:
    scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5  # (B, heads, N, N/R²)
    weights = F.dropout(scores.softmax(-1, dtype=torch.float32).to(query.dtype), dropout)
    return weights @ value, weights


def _full_precision(device_type: str) -> AbstractContextManager[Any]:
    """Autocast off; the meta device has none."""
    return nullcontext() if device_type == "meta" else torch.autocast(device_type, enabled=False)


def _is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether `module` is exactly `kind` and nothing listens to its calls, so that its weights may be read instead."""
    return type(module) is kind and not (
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def _is_convolution(
    module: nn.Module, kernel: int, *, stride: int = 1, padding: int = 0, groups: int = 1, bias: bool = True
) -> bool:
    """Whether `module` is a plain convolution of these settings, without dilation, padding with zeros."""
    if not _is_plain(module, nn.Conv2d):
        return False
    conv = cast(nn.Conv2d, module)
    settings = (conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups, conv.padding_mode)
    wanted = ((kernel, kernel), (stride, stride), (padding, padding), (1, 1), groups, "zeros")
    return settings == wanted and (conv.bias is not None) is bias


def _is_batch_norm(module: nn.Module) -> bool:
    return _is_plain(module, nn.BatchNorm2d) or _is_plain(module, nn.SyncBatchNorm)


def _shared_by(norm: nn.Module) -> Any:
    """The group of processes whose batches a batch norm joins; None where it sees only its own."""
    if not (isinstance(norm, nn.SyncBatchNorm) and torch.distributed.is_available()):
        return None
    if not torch.distributed.is_initialized():
        return None
    group = norm.process_group or torch.distributed.group.WORLD
    return group if torch.distributed.get_world_size(group) > 1 else None


@contextmanager
def _without_loading_report() -> Iterator[list[str]]:
    """Keep transformers' own table of missing and unexpected keys out of the log, in the list that this yields."""
    source = logging.getLogger("transformers.modeling_utils")
    report: list[str] = []

    def keep(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if "LOAD REPORT" in text or "newly initialized" in text or "were not used when" in text:
            report.append(text)
            return False
        return True

    source.addFilter(keep)
    try:
        yield report
    finally:
        source.removeFilter(keep)


def _loading_summary(model: nn.Module, info: dict[str, Any]) -> str:
    """One line that says what was loaded and what starts fresh; empty if the checkpoint fitted exactly."""
    mismatched = {key if isinstance(key, str) else key[0] for key in info["mismatched_keys"]}
    fresh = set(info["missing_keys"]) | mismatched
    unused = set(info["unexpected_keys"])
    if not fresh and not unused:
        return ""
    loaded = set(model.state_dict()) - fresh
    parts = (("loaded", loaded), ("starts fresh:", fresh), ("not used:", unused))
    return "; ".join(f"{what} {_parts(keys)}" for what, keys in parts if keys)


def _parts(keys: set[str]) -> str:
    """The parts of the network that `keys` belong to, e.g. `encoder (192 tensors), decode_head (16 tensors)`."""
    paths = [key.removeprefix("segformer.").split(".") for key in sorted(keys)]
    head = {path[1] for path in paths if path[0] == "decode_head"}
    counts: dict[str, int] = {}
    for path in paths:
        part = "decode_head.classifier" if path[0] == "decode_head" and head == {"classifier"} else path[0]
        counts[part] = counts.get(part, 0) + 1
    return ", ".join(f"{part} ({count} tensor{'s' if count > 1 else ''})" for part, count in counts.items())
