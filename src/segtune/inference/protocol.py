"""How an image becomes a prediction: mmseg's protocols `whole` and `slide`, and test-time augmentation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from segtune.errors import UsageError

TTA_SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)  # with and without a flip, as in mmseg's multi-scale tests
LOGIT_STRIDE = 4  # pixels between two logits
WINDOW_DIVISOR = 32  # of the encoder's last stage


@dataclass(frozen=True)
class InferenceProtocol:
    """How a model is run over an image; UsageError says what cannot be.

    Attributes:
        window: None runs the whole image at once (mmseg's `whole`); a number, a multiple of 32, runs windows of this
            side and blends their logits (mmseg's `slide`). Pixels of the image as the processor resizes it.
        stride: from one window to the next, a multiple of 4; default is three quarters of the window.
        scales: the sizes at which the image is seen; probabilities are averaged over them.
        flip: at every scale also mirrored.
    """

    window: int | None = None
    stride: int | None = None
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False

    def __post_init__(self) -> None:
        if not self.scales or min(self.scales) <= 0:
            raise UsageError(f"scales {self.scales}: give one or more numbers above 0")
        if self.window is None:
            if self.stride is not None:
                raise UsageError(f"stride {self.stride} without a window: a stride is for windows")
            return
        if self.window < 1 or self.window % WINDOW_DIVISOR:
            raise UsageError(f"window {self.window}: use a multiple of {WINDOW_DIVISOR}, such as 512")
        stride = self.window * 3 // 4 if self.stride is None else self.stride
        if not 0 < stride <= self.window or stride % LOGIT_STRIDE:
            near = max(LOGIT_STRIDE, min(stride, self.window) // LOGIT_STRIDE * LOGIT_STRIDE)
            raise UsageError(
                f"stride {stride} of windows of {self.window}: use a multiple of {LOGIT_STRIDE} up to {self.window}, "
                f"such as {near}"
            )
        object.__setattr__(self, "stride", stride)

    @classmethod
    def choose(
        cls, processor: Any, window: int | None = None, stride: int | None = None, tta: bool = False
    ) -> InferenceProtocol:
        """What `processor` says (it is saved with the checkpoint), changed by what is given.

        Args:
            window: 0 for the whole image.
            stride: default is the processor's, where the window is, too.
            tta: mmseg's six scales from 0.5 to 1.75, each with and without a flip.
        """
        own = cls(getattr(processor, "window", None), getattr(processor, "stride", None))
        if window is not None or stride is not None:
            side = own.window if window is None else window or None
            own = cls(side, own.stride if stride is None and side == own.window else stride)
        return replace(own, scales=TTA_SCALES, flip=True) if tta else own

    @property
    def is_plain(self) -> bool:
        """One pass over the whole image."""
        return self.window is None and self.scales == (1.0,) and not self.flip

    def __str__(self) -> str:
        """`whole`, `slide 1024 stride 768`, `whole tta 0.5,0.75,1 flip`."""
        words = ["whole"] if self.window is None else ["slide", str(self.window), "stride", str(self.stride)]
        if self.flip or self.scales != (1.0,):
            words += ["tta", ",".join(f"{scale:g}" for scale in self.scales), *(["flip"] if self.flip else [])]
        return " ".join(words)
