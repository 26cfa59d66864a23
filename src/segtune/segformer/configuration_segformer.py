"""The configuration of SegFormer (Xie et al. 2021, arXiv 2105.15203): fields, checks and the B0 to B5 presets."""

from __future__ import annotations

import difflib
import functools
import inspect
import math
from typing import Any

from transformers import PretrainedConfig

# Table 6 of the paper: (hidden sizes, depths, decoder width).
VARIANTS: dict[str, tuple[tuple[int, ...], tuple[int, ...], int]] = {
    "b0": ((32, 64, 160, 256), (2, 2, 2, 2), 256),
    "b1": ((64, 128, 320, 512), (2, 2, 2, 2), 256),
    "b2": ((64, 128, 320, 512), (3, 4, 6, 3), 768),
    "b3": ((64, 128, 320, 512), (3, 4, 18, 3), 768),
    "b4": ((64, 128, 320, 512), (3, 8, 27, 3), 768),
    "b5": ((64, 128, 320, 512), (3, 6, 40, 3), 768),
}
_PER_STAGE = ("depths", "sr_ratios", "hidden_sizes", "patch_sizes", "strides", "num_attention_heads", "mlp_ratios")
STAGE_FIELDS = ("num_encoder_blocks", *_PER_STAGE)
_LARGEST = {  # what no network needs, and no machine builds; the published ones have 40 blocks and 768 channels
    "num_encoder_blocks": 16,
    "depths": 1_000,
    "sr_ratios": 1_024,
    "hidden_sizes": 65_536,
    "patch_sizes": 1_024,
    "strides": 1_024,
    "num_attention_heads": 65_536,
    "mlp_ratios": 1_024,
    "num_channels": 65_536,
    "decoder_hidden_size": 65_536,
    "num_labels": 65_536,
}
_PROBABILITIES = (
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "classifier_dropout_prob",
    "drop_path_rate",
)


class SegformerConfig(PretrainedConfig):
    """What determines a SegFormer; the fields and the file format are those of transformers' `SegformerConfig`.

    Per-stage fields are sequences of `num_encoder_blocks` positive numbers. `layer_norm_eps` and `image_size`-like
    fields of published files are kept but read by nothing: every layer norm runs with 1e-5, as the published
    checkpoints expect under transformers. `label_map` holds the label contract (`segtune.LabelMap.to_dict()`), and
    `calibration_temperature` what logits are divided by before a confidence is taken of them (`segtune calibrate`).
    `fused=False` makes the network call layer after layer, as the paper has it, without any fast path; it may be set at
    any time, and so does `attn_implementation="eager"`.

    Written in code, an unknown name or an impossible shape raises; a `config.json` keeps fields it does not know.

    Raises:
        TypeError: an unknown field name (the nearest valid one is named).
        ValueError: lengths, divisibility or ranges that no network can have.
    """

    model_type = "segformer"
    attribute_map = {"num_hidden_layers": "num_encoder_blocks"}  # noqa: RUF012

    def __init__(
        self,
        num_channels: int = 3,
        num_encoder_blocks: int = 4,
        depths: Any = (2, 2, 2, 2),
        sr_ratios: Any = (8, 4, 2, 1),
        hidden_sizes: Any = (32, 64, 160, 256),
        patch_sizes: Any = (7, 3, 3, 3),
        strides: Any = (4, 2, 2, 2),
        num_attention_heads: Any = (1, 2, 5, 8),
        mlp_ratios: Any = (4, 4, 4, 4),
        hidden_act: str = "gelu",
        hidden_dropout_prob: float = 0.0,
        attention_probs_dropout_prob: float = 0.0,
        classifier_dropout_prob: float = 0.1,
        initializer_range: float = 0.02,
        drop_path_rate: float = 0.1,
        layer_norm_eps: float = 1e-6,
        decoder_hidden_size: int = 256,
        semantic_loss_ignore_index: int = 255,
        reshape_last_stage: bool = True,
        label_map: dict[str, Any] | None = None,
        calibration_temperature: float = 1.0,
        fused: bool = True,
        **kwargs: Any,
    ) -> None:
        if (model_type := kwargs.pop("model_type", self.model_type)) != self.model_type:
            raise ValueError(f"model_type={model_type!r} is not a SegFormer: expected {self.model_type!r}")
        unknown = sorted(set(kwargs) - _inherited_fields())
        if unknown:
            raise TypeError(_unknown_message(unknown))
        self.num_channels = num_channels
        self.num_encoder_blocks = num_encoder_blocks
        self.depths = list(depths)
        self.sr_ratios = list(sr_ratios)
        self.hidden_sizes = list(hidden_sizes)
        self.patch_sizes = list(patch_sizes)
        self.strides = list(strides)
        self.num_attention_heads = list(num_attention_heads)
        self.mlp_ratios = list(mlp_ratios)
        self.hidden_act = hidden_act
        self.hidden_dropout_prob = hidden_dropout_prob
        self.attention_probs_dropout_prob = attention_probs_dropout_prob
        self.classifier_dropout_prob = classifier_dropout_prob
        self.initializer_range = initializer_range
        self.drop_path_rate = drop_path_rate
        self.layer_norm_eps = layer_norm_eps
        self.decoder_hidden_size = decoder_hidden_size
        self.semantic_loss_ignore_index = semantic_loss_ignore_index
        self.reshape_last_stage = reshape_last_stage
        self.label_map = label_map
        self.calibration_temperature = calibration_temperature
        self.fused = fused
        super().__init__(**kwargs)
        self.check()

    @classmethod
    def from_variant(cls, variant: str, **fields: Any) -> SegformerConfig:
        """The preset `"b0"` … `"b5"` of the paper's table 6; `fields` override or add, e.g. `num_labels=19`."""
        try:
            hidden_sizes, depths, decoder_hidden_size = VARIANTS[variant.lower()]
        except (KeyError, AttributeError):
            raise ValueError(f"variant {variant!r} does not exist: choose one of {', '.join(VARIANTS)}") from None
        preset: dict[str, Any] = {
            "hidden_sizes": hidden_sizes,
            "depths": depths,
            "decoder_hidden_size": decoder_hidden_size,
        }
        return cls(**(preset | fields))

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Build from the content of a `config.json`; fields it does not know are kept as attributes.

        Names in `kwargs` override; one that no configuration has raises unless `return_unused_kwargs=True`. A file that
        asks for an attention kernel of the Hub raises ValueError: that would be code of others.
        """
        attention = str(config_dict.get("_attn_implementation") or config_dict.get("attn_implementation") or "")
        if "/" in attention:
            raise ValueError(
                f"attn_implementation {attention!r} names code on the Hub, which a config does not get run"
            )
        return_unused = kwargs.pop("return_unused_kwargs", False)
        if "num_labels" in kwargs and kwargs["num_labels"] != len(config_dict.get("id2label", ())):
            labels = {"id2label", "label2id", "label_map"}  # of another number of labels: stale
            config_dict = {key: value for key, value in config_dict.items() if key not in labels}
        known = _own_fields() | _inherited_fields()
        extra = {key: value for key, value in config_dict.items() if key not in known}
        fields = {key: value for key, value in config_dict.items() if key in known}
        config, unused = super().from_dict(fields, return_unused_kwargs=True, **kwargs)
        for key, value in extra.items():
            if key != "model_type":
                setattr(config, key, unused.pop(key, value))
        config.check()
        if return_unused:
            return config, unused
        unknown = sorted(key for key in unused if not key.startswith("_"))
        if unknown:
            raise TypeError(_unknown_message(unknown))
        return config

    @classmethod
    def of(cls, config: Any) -> SegformerConfig:
        """`config` itself, or ours with the fields of another library's `SegformerConfig` (transformers', say).

        Raises:
            TypeError: no configuration of a SegFormer.
        """
        if isinstance(config, cls):
            return config
        if getattr(config, "model_type", None) != cls.model_type:
            raise TypeError(f"{type(config).__name__} is not the configuration of a SegFormer: pass a SegformerConfig")
        ours: SegformerConfig = cls.from_dict(config.to_dict())
        if attention := getattr(config, "_attn_implementation", None):
            ours._attn_implementation = attention
        return ours

    def to_dict(self) -> dict[str, Any]:
        """What goes into a `config.json`; `fused` only where it is switched off."""
        fields = super().to_dict()
        if fields.get("fused"):
            del fields["fused"]
        return fields

    def check(self) -> None:
        """Raise `ValueError` naming the field, its value and the rule, for shapes that no SegFormer can have."""
        stages = self.num_encoder_blocks
        if not _is_positive_int(stages):
            raise ValueError(f"num_encoder_blocks={stages!r} must be a positive integer")
        for name in _PER_STAGE:
            values = getattr(self, name)
            if len(values) != stages:
                raise ValueError(f"{name}={list(values)} must have one value for each of the {stages} stages")
            if name != "mlp_ratios" and not all(map(_is_positive_int, values)):
                raise ValueError(f"{name}={list(values)} must be positive integers")
        for name in ("num_channels", "decoder_hidden_size"):
            if not _is_positive_int(getattr(self, name)):
                raise ValueError(f"{name}={getattr(self, name)!r} must be a positive integer")
        for stage, (size, heads, ratio) in enumerate(
            zip(self.hidden_sizes, self.num_attention_heads, self.mlp_ratios, strict=True)
        ):
            if size % heads:
                raise ValueError(
                    f"hidden_sizes[{stage}]={size} is not divisible by num_attention_heads[{stage}]={heads}"
                )
            if not 0 < ratio < math.inf or int(size * ratio) < 1:
                raise ValueError(f"mlp_ratios[{stage}]={ratio!r} must be positive")
        for name in _PROBABILITIES:
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)!r} must lie in [0, 1)")
        if not 0 < self.calibration_temperature < math.inf:
            raise ValueError(f"calibration_temperature={self.calibration_temperature!r} must be positive")
        if not 0 <= self.initializer_range < math.inf:
            raise ValueError(f"initializer_range={self.initializer_range!r} must not be negative")
        if self.num_labels < 1:
            raise ValueError(f"num_labels={self.num_labels} must be at least 1")
        for name, largest in _LARGEST.items():
            value = getattr(self, name)
            if any(each > largest for each in (value if isinstance(value, (list, tuple)) else (value,))):
                raise ValueError(f"{name}={value} is more than any network needs: {largest:,} at most")


def _is_positive_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


@functools.cache
def _own_fields() -> set[str]:
    return set(inspect.signature(SegformerConfig.__init__).parameters) - {"self", "kwargs"}


@functools.cache
def _inherited_fields() -> set[str]:
    """Names that the base class of the installed transformers takes, public or with the underscore of its files."""
    names = {name.removeprefix("_") for name in vars(PretrainedConfig())}
    arguments = {"num_labels", "dtype", "torch_dtype", "attn_implementation", "output_attentions", "name_or_path"}
    published = {"image_size", "downsampling_rates", "num_hidden_layers", "auto_map", "return_dict", "use_return_dict"}
    written = {"model_type", "transformers_version", "architectures"}
    private = {"_name_or_path", "_attn_implementation", "_commit_hash", "_attn_implementation_autoset"}
    return names | arguments | published | written | private


def _unknown_message(unknown: list[str]) -> str:
    valid = sorted(_own_fields() | {"num_labels", "id2label", "label2id", "attn_implementation"})
    parts = []
    for name in unknown:
        near = difflib.get_close_matches(name, valid, n=1, cutoff=0.4)
        parts.append(f"{name!r}" + (f" (did you mean {near[0]!r}?)" if near else ""))
    return f"SegformerConfig has no field {', '.join(parts)}"
