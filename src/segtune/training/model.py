"""The model of a run: built from a recipe's `model` section, with the input channels that the data has."""

from __future__ import annotations

import logging
from typing import Literal

import torch
from torch import Tensor, nn

from segtune.errors import UsageError
from segtune.labels.label_map import LabelMap
from segtune.segformer.configuration_segformer import STAGE_FIELDS, SegformerConfig
from segtune.segformer.loading import load_model, split_revision
from segtune.segformer.modeling_segformer import (
    SegformerForSemanticSegmentation,
    SegformerOverlapPatchEmbeddings,
)
from segtune.training.config import ModelConfig
from segtune.training.lora import Model, add_lora

logger = logging.getLogger(__name__)


def build_model(config: ModelConfig, label_map: LabelMap, seed: int = 0) -> SegformerForSemanticSegmentation:
    """A model whose head and configuration follow the label map; what starts fresh is drawn from `seed`.

    Raises:
        UsageError: the checkpoint is not there or fits no SegFormer; one logit for other than two classes.
    """
    fields = label_map.config_fields()
    if config.num_labels == 1:
        if label_map.num_labels != 2:
            raise UsageError(
                f"model.num_labels=1 is for two classes, but the label map has {label_map.num_labels}: "
                f"{', '.join(label_map.names)}"
            )
        name = label_map.names[1]
        fields |= {"id2label": {0: name}, "label2id": {name: 0}}
    # What is drawn here must not shift the draws of the training, nor theirs depend on what is drawn here.
    with torch.random.fork_rng(devices=[]):  # weights are drawn on the CPU; no GPU is woken up for it
        torch.default_generator.manual_seed(seed)
        if config.name is None:
            return SegformerForSemanticSegmentation(
                SegformerConfig.from_variant(config.variant, **config.config, **fields)
            )
        settings = {key: value for key, value in config.config.items() if key not in STAGE_FIELDS}
        if ignored := sorted(config.config.keys() - settings.keys()):
            logger.warning("model.config: %s describes random weights; %s has its own", ", ".join(ignored), config.name)
        channels = settings.pop("num_channels", None)
        model = load_model(config.name, ignore_mismatched_sizes=True, **settings, **fields)
        if channels is not None:
            set_input_channels(model, channels, config.input_channels)
        if config.lora is not None:
            add_lora(model, config.lora, base=split_revision(config.name)[0])
    model.name_or_path = model.config.name_or_path = ""  # no longer that checkpoint, nor its image processor's
    return model


def set_input_channels(model: Model, num_channels: int, method: Literal["inflate", "average", "random"]) -> Model:
    """Give a pre-trained model another number of input channels, in place; all other weights stay.

    Args:
        method: what the filters of the first convolution become, see `adapt_input_channels`; `random` draws them afresh
            from torch's global generator.
    """
    embedding = next(module for module in model.modules() if isinstance(module, SegformerOverlapPatchEmbeddings))
    conv = embedding.proj
    if conv.in_channels == num_channels:
        return model
    old = conv.weight.detach()
    if method == "random":
        new = old.new_empty(old.shape[0], num_channels, *old.shape[2:])
    else:
        new = adapt_input_channels(old, num_channels, method)
    conv.in_channels = model.config.num_channels = num_channels
    conv.weight = nn.Parameter(new, conv.weight.requires_grad)
    if method == "random":
        model._init_weights(conv)
    return model


def adapt_input_channels(weight: Tensor, num_channels: int, method: Literal["inflate", "average"]) -> Tensor:
    """Filters `(C_out, num_channels, k, k)` made from `weight` `(C_out, C_in, k, k)`, e.g. from those of RGB.

    The response to an input that is equal in all channels stays the same.

    Args:
        method: `inflate` repeats the filters in turn and divides each by how often it occurs (where there are fewer new
            channels than old ones, those that fall on the same channel are added); `average` gives every channel the
            mean filter.
    """
    old = weight.shape[1]
    if method == "average":
        return weight.mean(1, keepdim=True).repeat(1, num_channels, 1, 1) * (old / num_channels)
    # W'[:, n] = sum_i W[:, i] S[i, n]. Both sets of channels are gone round in turn, S[i, n] = 1 where they meet. A row
    # is divided by its sum, so that sum_n S[i, n] = 1: the response to equal channels, sum_n W'[:, n] x, stays.
    pairs = torch.arange(max(old, num_channels), device=weight.device)
    shares = weight.new_zeros(old, num_channels)
    shares[pairs % old, pairs % num_channels] = 1
    shares /= shares.sum(1, keepdim=True)
    return torch.einsum("oihw,in->onhw", weight, shares).contiguous()
