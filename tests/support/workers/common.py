"""What the worker scripts share: a small run, and sharding on CPUs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import segtune.training.trainer
from segtune.data.config import TransformConfig
from segtune.data.dataset import DatasetConfig, find_label_map, load_segmentation_dataset
from segtune.inference.processor import processor_from_transforms
from segtune.training.config import ModelConfig, TrainingConfig
from segtune.training.distributed import make_accelerator
from segtune.training.model import build_model
from segtune.training.trainer import SegmentationTrainer

TINY = {
    "hidden_sizes": [8, 16, 24, 32],
    "depths": [1, 1, 1, 1],
    "num_attention_heads": [1, 2, 3, 4],
    "decoder_hidden_size": 16,
    "classifier_dropout_prob": 0.0,
    "drop_path_rate": 0.0,
}


def make_trainer(folder: Path, settings: dict[str, Any]) -> SegmentationTrainer:
    """Twelve satellite tiles to train on and seven to evaluate; with `semi`, twenty more without their labels."""
    splits = load_segmentation_dataset("segtune://earth")
    label_map = find_label_map(DatasetConfig(path="segtune://earth"))
    transforms = TransformConfig(crop_size=64)
    return SegmentationTrainer(
        build_model(ModelConfig(config=TINY), label_map),
        TrainingConfig(output_dir=str(folder), device="cpu", **settings),
        train_dataset=splits["train"].select(range(12)),
        eval_dataset=splits["val"].select(range(7)),
        label_map=label_map,
        transforms=transforms,
        processor=processor_from_transforms(transforms),
        unlabelled=splits["train"].select(range(12, 32)).remove_columns("mask") if settings.get("semi") else None,
    )


def shard() -> None:
    """Let Accelerate prepare the model with torch's `fully_shard`, which it does not by itself on CPUs."""
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    def make(device: str, mixed_precision: str) -> Any:
        if PartialState._shared_state:  # of the run before
            PartialState._shared_state["distributed_type"] = DistributedType.MULTI_CPU
        accelerator = make_accelerator(device, mixed_precision)
        plugin = FullyShardedDataParallelPlugin()  # as the environment says
        if mixed_precision != "no":
            plugin.set_mixed_precision(mixed_precision)
        for state in (PartialState, AcceleratorState):
            state._shared_state["distributed_type"] = DistributedType.FSDP
        AcceleratorState._shared_state["fsdp_plugin"] = plugin
        assert accelerator.is_fsdp2
        return accelerator

    segtune.training.trainer.make_accelerator = make
