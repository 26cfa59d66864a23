"""SegFormers of LibreYOLO with random weights: saves them as it does, and what they answer.

Runs in an interpreter that has libreyolo: `python libreyolo_weights.py FOLDER`.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import torch

# Its packages without what they import at their top, which takes torchvision and all of its other models along.
HOME = Path(find_spec("libreyolo").origin).parent
for package in ("", ".models", ".models.segformer", ".utils"):
    module = sys.modules[f"libreyolo{package}"] = ModuleType(f"libreyolo{package}")
    module.__path__ = [str(HOME.joinpath(*package.split(".")))]

from libreyolo.models.segformer.nn import LibreSegformerNet  # noqa: E402
from libreyolo.utils.serialization import wrap_libreyolo_checkpoint  # noqa: E402

SIZES = {"b0": (65, 97), "b2": (64, 96)}  # of the images; odd sides too
CLASSES = 5


def main(folder: Path) -> None:
    for seed, (name, size) in enumerate(SIZES.items()):
        torch.manual_seed(seed)
        model = LibreSegformerNet(size=name, num_classes=CLASSES).eval()
        for key, value in model.state_dict().items():
            if key.endswith("running_var"):
                value.uniform_(0.5, 1.5)
            elif value.ndim == 1:
                value.normal_(1.0 if "norm" in key and key.endswith("weight") else 0.0, 0.3)
            elif value.is_floating_point():
                value.normal_(std=value[0].numel() ** -0.5)
        pictures = torch.rand(2, 3, *size)  # it normalises inside
        logits: list[torch.Tensor] = []
        model.decode_head.register_forward_hook(lambda _module, _given, answer, into=logits: into.append(answer))
        with torch.no_grad():
            resized = model(pictures)
        names = {i: f"class {i}" for i in range(CLASSES)}
        about = {"model_family": "segformer", "size": name, "task": "semantic", "imgsz": 512}
        checkpoint = wrap_libreyolo_checkpoint(model.state_dict(), nc=CLASSES, names=names, **about)
        torch.save(checkpoint, folder / f"{name}.pt")
        torch.save({"pictures": pictures, "logits": logits[0], "resized": resized}, folder / f"{name}_answers.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
