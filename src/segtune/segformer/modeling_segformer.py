"""SegFormer (Xie et al. 2021, arXiv 2105.15203), top to bottom.

A feature map is one contiguous `(B, H, W, C)` tensor: linear layers see `(…, C)`, convolutions see the same memory
through `permute(0, 3, 1, 2)` as a channels-last image. Parameter names are those of the published checkpoints.

Where a fast path applies (`fused`, `fused_decode_head`), it gives the same as the lines below it; those lines are the
network of the paper, and what runs under a compiler, a tracer or `torch.func`, where a layer was replaced or hooked,
and with `config.fused = False`.

Letters: B batch, K labels, C channels, H W size, N = H·W tokens, D decoder width, R sequence-reduction ratio (side).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PretrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput, ImageClassifierOutput, SemanticSegmenterOutput

from .configuration_segformer import SegformerConfig
from .cross_entropy import upsampled_cross_entropy
from .fused import (
    AddedDropPath,
    DirectAttention,
    DirectLinear,
    FusedMixFFN,
    FusedProjections,
    JointKeyValue,
    MatrixReduction,
    may_fuse,
)
from .fused_decode_head import ComposedFusion, DroppedClassifier, FusedDecodeHead, StripDecodeHead
from .loading_report import load_with_report
from .parameter_names import published_name
from .upsampling import upsample

if TYPE_CHECKING:  # from a folder, transformers 4 takes the files that this one names, and none that only those name
    from .cpu_products import linear  # noqa: F401
    from .triton_kernels import predict  # noqa: F401

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

    def forward(self, x: Tensor, output_attentions: bool = False) -> tuple[Tensor, Tensor | None]:
        """Attend within a map `(B, H, W, C)`; with the weights `(B, heads, N, N/R²)` where asked for."""
        reduced = self._reduce(x)  # (B, N/R², C)
        if JointKeyValue.applies(self, x):
            key, value = JointKeyValue.run(self, reduced)
        else:
            key, value = self.key(reduced), self.value(reduced)
        y, weights = self.attend(self.query(x).flatten(1, 2), key, value, output_attentions)
        return y.view_as(x), weights

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, output_attentions: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Equation 1: `softmax(Q Kᵀ / sqrt(d)) V` in every head, of `(B, N, C)` and twice `(B, N/R², C)`."""
        # N or N/R² tokens in each of the heads: (B, heads, ·, d)
        query, key, value = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (query, key, value))
        dropout, weights = self.dropout if self.training else 0.0, None
        if output_attentions or self.config._attn_implementation == "eager":
            out, weights = _eager_attention(query, key, value, dropout)
        elif DirectAttention.applies(self.config, query, key, value, dropout):
            out = DirectAttention.run(query, key, value)
        else:
            out = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
        return out.transpose(1, 2).flatten(2), weights  # (B, N, C)

    def _reduce(self, x: Tensor) -> Tensor:
        """Equation 2, the sequence reduction: `norm(W_s unfold(x))`, patches of R x R pixels becoming one token."""
        _, h, w, _ = x.shape
        r = self.ratio
        if r == 1:
            return x.flatten(1, 2)  # (B, N, C)
        if h < r or w < r:  # smaller than one patch: zeros below and to the right, as a convolution pads
            x = F.pad(x, (0, 0, 0, max(r - w, 0), 0, max(r - h, 0)))
        if MatrixReduction.applies(self, x):
            x = MatrixReduction.run(self, x)
        else:
            x = self.sr(x.permute(0, 3, 1, 2)).flatten(2).transpose(1, 2)  # (B, N/R², C)
        return self.layer_norm(x)


class SegformerAttention(nn.Module):
    def __init__(self, config: SegformerConfig, hidden_size: int, heads: int, ratio: int) -> None:
        super().__init__()
        self.config = config
        self.self = SegformerEfficientSelfAttention(config, hidden_size, heads, ratio)
        self.output = nn.ModuleDict({"dense": nn.Linear(hidden_size, hidden_size)})
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, x: Tensor, output_attentions: bool = False) -> tuple[Tensor, Tensor | None]:
        x, weights = self.self(x, output_attentions)
        return self.project(x), weights

    def project(self, x: Tensor) -> Tensor:
        """Mix the heads; `(B, H, W, C)` to the same shape."""
        dense = self.output["dense"]
        if DirectLinear.applies(self.config, dense, x):
            return self.dropout(DirectLinear.run(dense, x))
        return self.dropout(dense(x))


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


class SegformerDropPath(nn.Module):
    """Stochastic depth per sample (Huang et al. 2016, arXiv 1603.09382)."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        mask = self.mask(x)
        return x if mask is None else x * mask

    def mask(self, x: Tensor) -> Tensor | None:
        """What the samples of `x` are multiplied with, `(B, 1, …)`; None where nothing is dropped."""
        if self.p == 0.0 or not self.training:
            return None
        keep = 1 - self.p
        return x.new_empty((x.shape[0], *[1] * (x.ndim - 1))).bernoulli_(keep).div_(keep)

    def extra_repr(self) -> str:
        return f"p={self.p:.3g}"


class SegformerBlock(GradientCheckpointingLayer):
    def __init__(
        self, config: SegformerConfig, hidden_size: int, heads: int, ratio: int, mlp_ratio: float, drop_path: float
    ) -> None:
        super().__init__()
        self.config = config
        self.layer_norm_1 = nn.LayerNorm(hidden_size)
        self.attention = SegformerAttention(config, hidden_size, heads, ratio)
        self.drop_path = SegformerDropPath(drop_path)
        self.layer_norm_2 = nn.LayerNorm(hidden_size)
        self.mlp = SegformerMixFFN(config, hidden_size, mlp_ratio)

    def forward(self, x: Tensor, output_attentions: bool = False) -> tuple[Tensor, Tensor | None]:
        y, weights = self._attend(x, output_attentions)
        x = self._add(x, y)
        return self._add(x, self._mix(x)), weights  # (B, H, W, C)

    def _add(self, x: Tensor, y: Tensor) -> Tensor:
        if AddedDropPath.applies(self, x, y):
            return AddedDropPath.run(self, x, y)
        return x + self.drop_path(y)

    def _attend(self, x: Tensor, output_attentions: bool) -> tuple[Tensor, Tensor | None]:
        if FusedProjections.applies(self, x):
            y, weights = self.attention.self.attend(*FusedProjections.run(self, x), output_attentions)
            return self.attention.project(y.view_as(x)), weights
        return self.attention(self.layer_norm_1(x), output_attentions)

    def _mix(self, x: Tensor) -> Tensor:
        if FusedMixFFN.applies(self, x):
            return FusedMixFFN.run(self, x)
        return self.mlp(self.layer_norm_2(x))


class SegformerEncoder(nn.Module):
    def __init__(self, config: SegformerConfig) -> None:
        super().__init__()
        self.config = config
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

    def forward(
        self,
        pixel_values: Tensor,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        return_dict: bool = True,
    ) -> BaseModelOutput | tuple[Any, ...]:
        """Feature maps `(B, C_i, H_i, W_i)` of the stages and attention weights: see `SegformerModel.forward`."""
        x = pixel_values
        if may_fuse(self.config, x):  # once; later maps have this memory format as they are
            x = x.contiguous(memory_format=torch.channels_last)
        states, attentions = [], []
        for embed, stage, norm in zip(self.patch_embeddings, self.block, self.layer_norm, strict=True):
            x = embed(x.permute(0, 2, 3, 1))  # (B, H_i, W_i, C_i)
            for block in cast(nn.ModuleList, stage).children():
                x, weights = block(x, output_attentions)
                if output_attentions:
                    attentions.append(weights)
            # what users get is what the next stage reads, so that gradients to it are complete
            x = norm(x).permute(0, 3, 1, 2)  # (B, C_i, H_i, W_i)
            states.append(x)
        if not self.config.reshape_last_stage:
            states[-1] = states[-1].flatten(2).transpose(1, 2)  # (B, N, C)
        output = BaseModelOutput(
            last_hidden_state=states[-1],
            hidden_states=tuple(states) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
        )
        return output if return_dict else output.to_tuple()


def feature_maps(states: Sequence[Tensor], config: SegformerConfig) -> list[Tensor]:
    """Hidden states `(B, C_i, H_i, W_i)`, the last maybe a sequence `(B, N, C)`, as maps `(B, H_i, W_i, C_i)`.

    Raises:
        ValueError: another number of states or of channels.
    """
    maps = list(states)
    if maps[-1].ndim == 3 and len(maps) > 1:
        # a sequence does not say its sides: those that the last patch embedding makes of stage 3
        kernel, stride = config.patch_sizes[-1], config.strides[-1]
        size = [(side + 2 * (kernel // 2) - kernel) // stride + 1 for side in maps[-2].shape[2:]]
        maps[-1] = maps[-1].unflatten(1, size).permute(0, 3, 1, 2)
    if not torch.jit.is_tracing() and [each.shape[1] for each in maps] != config.hidden_sizes:
        raise ValueError(
            f"hidden states have shapes {[tuple(each.shape) for each in states]}, "
            f"expected (batch, channels, height, width) with {config.hidden_sizes} channels"
        )
    return [each.permute(0, 2, 3, 1) for each in maps]


# --- decode head: all-MLP (section 3.2) ------------------------------------------------------------------------------


class SegformerMLP(nn.Module):
    def __init__(self, hidden_size: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(hidden_size, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)  # (B, H_i, W_i, D)


class SegformerDecodeHead(nn.Module):
    """All-MLP decode head: project every stage to D channels, upsample, concatenate, fuse, classify.

    The fast paths never build the concatenation of 4·D channels (see `fused_decode_head`); the stored parameters stay
    the published ones.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config = SegformerConfig.of(config)
        width = config.decoder_hidden_size
        self.linear_c = nn.ModuleList(SegformerMLP(size, width) for size in config.hidden_sizes)
        self.linear_fuse = nn.Conv2d(width * len(self.linear_c), width, 1, bias=False)
        self.batch_norm = nn.BatchNorm2d(width)
        self.dropout = nn.Dropout2d(config.classifier_dropout_prob)  # channel dropout, as the authors trained
        self.classifier = nn.Conv2d(width, config.num_labels, 1)

    def forward(self, encoder_hidden_states: Sequence[Tensor]) -> Tensor:
        """Logits `(B, K, H_1, W_1)` from the hidden states `(B, C_i, H_i, W_i)` of `SegformerModel`, stage 1 first."""
        features = feature_maps(encoder_hidden_states, self.config)  # (B, H_i, W_i, C_i)
        if StripDecodeHead.applies(self, features):
            return StripDecodeHead.run(self, features)
        if FusedDecodeHead.applies(self, features):
            return FusedDecodeHead.run(self, features)
        if ComposedFusion.applies(self, features):
            x = ComposedFusion.run(self, features)
        else:
            x = self.batch_norm(self._fuse(features))
        x = F.relu(x)
        if DroppedClassifier.applies(self, x):
            return DroppedClassifier.run(self, x)
        return self.classifier(self.dropout(x))  # (B, K, H_1, W_1)

    def _fuse(self, features: Sequence[Tensor]) -> Tensor:
        size = features[0].shape[1:3]
        maps = [upsample(mlp(x).permute(0, 3, 1, 2), size) for mlp, x in zip(self.linear_c, features, strict=True)]
        return self.linear_fuse(torch.cat(maps[::-1], dim=1))  # stage 4 comes first; (B, D, H_1, W_1)


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

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        config = SegformerConfig.of(config)
        config.check()
        super().__init__(config, *args, **kwargs)
        self.register_load_state_dict_pre_hook(_take_names_of_transformers)

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

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        return True  # transformers would look for the words of its own attention in this file

    def _wants_states(self, output_hidden_states: bool | None) -> bool:
        return bool(self.config.output_hidden_states if output_hidden_states is None else output_hidden_states)

    def _as_asked(self, output: Any, return_dict: bool | None) -> Any:
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """transformers' `from_pretrained`, which says in one line what was loaded and what starts fresh.

        A `config=` may be ours, or transformers' own (of `AutoConfig`, say), which is then copied.

        Raises:
            UnpicklingError: a `pytorch_model.bin` that is no pure file of tensors; its code does not run.
            RuntimeError: tensors of another shape (another number of labels, say) without
                `ignore_mismatched_sizes=True`, which starts them afresh.
        """
        load = super().from_pretrained
        if isinstance(kwargs.get("config"), PretrainedConfig):
            kwargs["config"] = SegformerConfig.of(kwargs["config"])
        return load_with_report(cls.__name__, load, pretrained_model_name_or_path, *args, **kwargs)


class SegformerModel(SegformerPreTrainedModel):
    """The hierarchical Mix Transformer encoder."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.encoder = SegformerEncoder(self.config)
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
        output = self.encoder(pixel_values, bool(attend), self._wants_states(output_hidden_states))
        return self._as_asked(output, return_dict)


class SegformerForSemanticSegmentation(SegformerPreTrainedModel):
    """SegFormer with the all-MLP decode head."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.segformer = SegformerModel(self.config)
        self.decode_head = SegformerDecodeHead(self.config)
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
        # through the call, not past it: hooks on the encoder run, and what they return is what the head gets
        encoded = self.segformer(pixel_values, output_attentions, output_hidden_states=True, return_dict=True)
        logits = self.decode_head(encoded.hidden_states)
        loss = None
        if labels is not None:
            reduction = "mean" if num_items_in_batch is None else "sum"
            literal = not may_fuse(self.config, logits)
            loss = segmentation_loss(logits, labels, self.config.semantic_loss_ignore_index, reduction, literal)
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

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        config = self.config
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
        encoded = self.segformer(pixel_values, output_attentions, output_hidden_states, return_dict=True)
        last = encoded.last_hidden_state  # (B, C, H, W), or a sequence (B, N, C)
        logits = self.classifier(last.mean(1) if last.ndim == 3 else last.mean(dim=(2, 3)))  # (B, K)
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


def segmentation_loss(
    logits: Tensor, labels: Tensor, ignore_index: int = 255, reduction: str = "mean", literal: bool = False
) -> Tensor:
    """Cross-entropy over valid pixels of `logits` (B, K, h, w) upsampled to the size of `labels` (B, H, W).

    One channel (K = 1) means binary labels {0, 1} and binary cross-entropy. Pixels equal to `ignore_index` (and, for
    K = 1, negative ones) do not count.

    Args:
        reduction: `"mean"` over valid pixels (0 with zero gradients where there is none) or `"sum"`, for a caller who
            divides by the valid pixels of a larger batch (`valid_pixels`).
        literal: by the plain formula, at the cost of logits of full size: for tracers, `torch.func` and second
            derivatives.
    """
    if labels.ndim != 3 or labels.shape[0] != logits.shape[0]:
        raise ValueError(f"labels has shape {tuple(labels.shape)}, expected ({logits.shape[0]}, height, width)")
    if 0 <= ignore_index < max(logits.shape[1], 2):
        raise ValueError(f"ignore_index={ignore_index} is one of the {logits.shape[1]} labels: choose e.g. 255 or -100")
    if logits.shape[1] > 1 and literal:
        exact = torch.promote_types(logits.dtype, torch.float32)
        logits = upsample(logits.to(exact), labels.shape[1:])  # (B, K, H, W)
        total = F.cross_entropy(logits, labels.long(), ignore_index=ignore_index, reduction="sum")
        return total if reduction == "sum" else total / (labels != ignore_index).sum().clamp(min=1)
    if logits.shape[1] > 1:
        return upsampled_cross_entropy(logits, labels, ignore_index, reduction=reduction)
    logits = upsample(logits.float(), labels.shape[1:])[:, 0]  # (B, H, W)
    valid = (labels != ignore_index) & (labels >= 0)
    target = torch.where(valid, labels, 0).to(logits.dtype)
    total = (F.binary_cross_entropy_with_logits(logits, target, reduction="none") * valid).sum()
    return total if reduction == "sum" else total / valid.sum().clamp(min=1)


def _take_names_of_transformers(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Before `load_state_dict`: give the tensors that transformers 5 names otherwise their published names."""
    for name in [name for name in state_dict if name.startswith(prefix)]:
        published = prefix + published_name(name.removeprefix(prefix))
        if published != name and published not in state_dict:
            state_dict[published] = state_dict.pop(name)


def valid_pixels(labels: Tensor, ignore_index: int = 255) -> Tensor:
    """The number of pixels that count in the loss: neither `ignore_index` nor negative."""
    return ((labels != ignore_index) & (labels >= 0)).sum()


def _eager_attention(query: Tensor, key: Tensor, value: Tensor, dropout: float) -> tuple[Tensor, Tensor]:
    scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5  # (B, heads, N, N/R²)
    weights = F.dropout(scores.softmax(-1, dtype=torch.float32).to(query.dtype), dropout)
    return weights @ value, weights
