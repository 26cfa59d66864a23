"""A run folder as a training leaves it, made without any training."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from segtune.labels.label_map import LabelMap

SPLIT = {"train": ["a", "b"], "val": ["c"]}
SCORES = {"mean_accuracy": 0.5, "overall_accuracy": 0.5, "per_class": {}}


def write_run(folder: Path, path: str = "data", name: str | None = None) -> Path:
    """Weights of seven numbers, three evaluations of which the second is the best, a last line that is torn."""
    for checkpoint in ("best", "final"):
        (folder / checkpoint).mkdir(parents=True)
        config = {"model_type": "segformer", "num_channels": 3, **LabelMap.from_names(["sky", "road"]).config_fields()}
        config["auto_map"] = {"AutoConfig": "someone/else--code.Config"}
        (folder / checkpoint / "config.json").write_text(json.dumps(config))
        (folder / checkpoint / "preprocessor_config.json").write_text("{}")
        weights = {"a.weight": torch.ones(2, 3), "a.bias": torch.ones(1), "n.running_mean": torch.ones(9)}
        save_file(weights, folder / checkpoint / "model.safetensors")
    (folder / "checkpoints" / "step-1").mkdir(parents=True)
    (folder / "checkpoints" / "step-1" / "training_state.pt").write_bytes(b"optimiser")
    (folder / "recipe.yaml").write_text(
        f"dataset: {{path: {path}}}\nmodel: {{name: {name or 'null'}}}\ntraining: {{}}\n"
    )
    (folder / "split.json").write_text(json.dumps(SPLIT))
    lines = [{"environment": {"torch": "1"}}, {"step": 1, "loss": 1.0}]
    lines += [{"step": s, "split": "val", "mean_iou": v, **SCORES} for s, v in ((1, 0.2), (2, 0.4), (3, 0.3))]
    lines += [{"environment": {"torch": "2"}}]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines) + '{"step": 4, "lo')
    return folder


def names(folder: Path) -> set[str]:
    """The files of a folder."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
