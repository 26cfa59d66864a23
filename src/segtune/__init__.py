"""segtune: fine-tune SegFormer in the Hugging Face ecosystem.

The public names are loaded on first use, so that `import segtune` costs next to nothing. What is not listed in
`__all__` can be reached by its module path and is not promised to stay.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as typing.TYPE_CHECKING, without importing typing
if TYPE_CHECKING:
    from segtune.data.config import TransformConfig
    from segtune.data.dataset import load_segmentation_dataset
    from segtune.data.transforms import TrainTransform
    from segtune.evaluation.metrics import MeanIoU
    from segtune.finetune import train
    from segtune.inference.evaluate_checkpoint import evaluate_checkpoint
    from segtune.inference.predict import predict
    from segtune.labels.label_map import LabelMap
    from segtune.recipe.recipe import Recipe, load_recipe
    from segtune.segformer.configuration_segformer import SegformerConfig
    from segtune.segformer.conversion import from_transformers
    from segtune.segformer.image_processing_segformer import SegformerImageProcessor
    from segtune.segformer.modeling_segformer import (
        SegformerForImageClassification,
        SegformerForSemanticSegmentation,
        SegformerModel,
    )
    from segtune.training.config import TrainingConfig
    from segtune.training.trainer import SegmentationTrainer
    from segtune.viz.overlay import overlay

__version__ = "0.1.0"

__all__ = [
    "LabelMap",
    "MeanIoU",
    "Recipe",
    "SegformerConfig",
    "SegformerForImageClassification",
    "SegformerForSemanticSegmentation",
    "SegformerImageProcessor",
    "SegformerModel",
    "SegmentationTrainer",
    "TrainTransform",
    "TrainingConfig",
    "TransformConfig",
    "__version__",
    "evaluate_checkpoint",
    "from_transformers",
    "load_recipe",
    "load_segmentation_dataset",
    "overlay",
    "predict",
    "train",
]

_HOME = {
    "LabelMap": "segtune.labels.label_map",
    "MeanIoU": "segtune.evaluation.metrics",
    "Recipe": "segtune.recipe.recipe",
    "SegformerConfig": "segtune.segformer.configuration_segformer",
    "SegformerForImageClassification": "segtune.segformer.modeling_segformer",
    "SegformerForSemanticSegmentation": "segtune.segformer.modeling_segformer",
    "SegformerImageProcessor": "segtune.segformer.image_processing_segformer",
    "SegformerModel": "segtune.segformer.modeling_segformer",
    "SegmentationTrainer": "segtune.training.trainer",
    "TrainTransform": "segtune.data.transforms",
    "TrainingConfig": "segtune.training.config",
    "TransformConfig": "segtune.data.config",
    "evaluate_checkpoint": "segtune.inference.evaluate_checkpoint",
    "from_transformers": "segtune.segformer.conversion",
    "load_recipe": "segtune.recipe.recipe",
    "load_segmentation_dataset": "segtune.data.dataset",
    "overlay": "segtune.viz.overlay",
    "predict": "segtune.inference.predict",
    "train": "segtune.finetune",
}

# names that programs written for transformers import; not among the names of segtune itself
_OF_TRANSFORMERS = {
    "SegformerDecodeHead": ("segtune.segformer.modeling_segformer", "SegformerDecodeHead"),
    "SegformerFeatureExtractor": ("segtune.segformer.image_processing_segformer", "SegformerImageProcessor"),
    "SegformerPreTrainedModel": ("segtune.segformer.modeling_segformer", "SegformerPreTrainedModel"),
}


def __getattr__(name: str) -> object:
    if name not in _HOME and name not in _OF_TRANSFORMERS:
        raise AttributeError(f"module 'segtune' has no attribute {name!r}")
    import importlib

    home, own_name = _OF_TRANSFORMERS.get(name) or (_HOME[name], name)
    value: object = getattr(importlib.import_module(home), own_name)
    globals()[name] = value  # the next access does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_OF_TRANSFORMERS})
