"""The classes of both libraries, side by side."""

from __future__ import annotations

from typing import Any, NamedTuple

import transformers

import segtune

try:
    from transformers.models.segformer.image_processing_pil_segformer import (
        SegformerImageProcessorPil as TheirProcessor,
    )
except ImportError:  # transformers 4
    from transformers import SegformerImageProcessor as TheirProcessor


class Library(NamedTuple):
    model: Any
    processor: Any


OURS = Library(segtune.SegformerForSemanticSegmentation, segtune.SegformerImageProcessor)
STOCK = Library(transformers.SegformerForSemanticSegmentation, TheirProcessor)
