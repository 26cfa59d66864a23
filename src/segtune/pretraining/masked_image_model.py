"""Masked image modelling: an encoder that sees a picture in part, and linear heads that paint the rest.

SimMIM (Xie et al. 2022, arXiv 2111.09886) hides squares of 32 pixels, 60 % of them, and predicts raw pixels by one
linear layer, with an L1 loss over what was hidden. Two things are otherwise here, for SegFormer's encoder:

- SimMIM replaces tokens behind a patch embedding that does not overlap. SegFormer's does: a token at the edge of a
  hidden square would hold pixels of it, and one inside would be lost for those of its neighbours. So the pixels
  themselves are replaced, before the network, by the mean colour, 0 when normalised (as in A2MIM, Li et al. 2023, arXiv
  2205.13943, for encoders of any kind).
- SimMIM predicts from the last stage. A decode head of SegFormer reads all four, so all four are taught: the
  prediction is the sum of one linear layer for each (multi-scale features: MCMAE, Gao et al. 2022, arXiv 2205.03892).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from operator import mul

from torch import Tensor, nn
from torch.nn import functional as F

from segtune.segformer.modeling_segformer import SegformerModel, feature_maps


class MaskedImageModel(nn.Module):
    """An encoder, and the heads that paint pixels from its stages.

    Args:
        encoder: is trained in place.
        stages: from which pixels are painted, from 1 on.
    """

    def __init__(self, encoder: SegformerModel, stages: Sequence[int]) -> None:
        super().__init__()
        self.segformer = encoder
        config = encoder.config
        strides = list(accumulate(config.strides, mul))  # of the stages, in pixels: 4, 8, 16, 32
        self.heads = nn.ModuleDict(
            {
                str(stage): nn.Conv2d(config.hidden_sizes[stage - 1], config.num_channels * strides[stage - 1] ** 2, 1)
                for stage in stages
            }
        )
        self.strides = {str(stage): strides[stage - 1] for stage in stages}
        for head in self.heads.values():
            encoder._init_weights(head)

    def forward(self, pixel_values: Tensor, mask: Tensor) -> Tensor:
        """All pixels `(B, C, H, W)`, as painted from those that are not hidden.

        Args:
            pixel_values: normalised pictures `(B, C, H, W)`.
            mask: the hidden squares `(B, H/p, W/p)`, bool.
        """
        seen = pixel_values.masked_fill(hidden_pixels(mask, pixel_values)[:, None], 0.0)
        states = self.segformer(seen, output_hidden_states=True).hidden_states
        features = feature_maps(states, self.segformer.config)  # (B, H_i, W_i, C_i)
        painted = []
        for name, head in self.heads.items():
            x = head(features[int(name) - 1].permute(0, 3, 1, 2))  # (B, C s², H/s, W/s)
            painted.append(F.pixel_shuffle(x, self.strides[name]))  # (B, C, H, W)
        return sum(painted[1:], start=painted[0])


def hidden_pixels(mask: Tensor, pixel_values: Tensor) -> Tensor:
    """The pixels `(B, H, W)` of the hidden squares `(B, H/p, W/p)` of pictures `(B, C, H, W)`."""
    side = pixel_values.shape[2] // mask.shape[1]
    return mask.repeat_interleave(side, 1).repeat_interleave(side, 2)


def absolute_error(painted: Tensor, pixel_values: Tensor, counted: Tensor) -> Tensor:
    """The L1 distance of `(B, C, H, W)` and as many pixels, summed over the counted ones `(B, H, W)`; float32."""
    return ((painted.float() - pixel_values).abs() * counted[:, None]).sum()
