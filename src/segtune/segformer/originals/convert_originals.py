"""A checkpoint of others written as ours: weights, configuration, image processor, a card that states the licence."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from segtune.errors import DataError, UsageError
from segtune.files import write_folder
from segtune.segformer.image_processing_segformer import SegformerImageProcessor
from segtune.segformer.modeling_segformer import SegformerPreTrainedModel
from segtune.segformer.originals import LAYOUTS, keras_files
from segtune.segformer.originals.card import Terms, card, terms
from segtune.segformer.originals.source import IMPOSSIBLE, Source
from segtune.segformer.originals.torch_files import read_torch


@dataclass(frozen=True)
class Converted:
    """A checkpoint that was written.

    Attributes:
        model: the network, in evaluation mode.
        source: what the checkpoint of others held.
        terms: the licence that the card states.
    """

    model: SegformerPreTrainedModel
    source: Source
    terms: Terms


def read_original(path: str | Path, layout: str = "auto", *, encoder_only: bool = False) -> SegformerPreTrainedModel:
    """Our model with the weights of a checkpoint of others; see `open_original` and `Source.model`."""
    return open_original(path, layout, encoder_only=encoder_only).model(path)


def open_original(path: str | Path, layout: str = "auto", *, encoder_only: bool = False) -> Source:
    """What a checkpoint of others holds, under our names. Nothing in it is run.

    Args:
        path: a file `.pth` or `.pt` of NVlabs' code, mmsegmentation or LibreYOLO; a file `.weights.h5` or `.keras`, or
            the folder of a preset, of keras-hub.
        layout: one of `LAYOUTS`; `auto`: by what is in the file.
        encoder_only: leave the head out. mmseg's own head cannot be taken over: it has a batch norm and a ReLU after
            each of its projections, where the authors' and the published layout have none.

    Raises:
        UsageError: no such layout, a file of mmseg with its head without `encoder_only`, or the package that reads
            the file is missing.
        DataError: no such file, one that would run code or reach into other files, or one of another network.
    """
    if layout not in LAYOUTS:
        raise UsageError(f"--from {layout}: one of {', '.join(LAYOUTS)}")
    path = Path(path)
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise DataError(f"{path} is a named pipe or a device: name a file, or the folder of a preset")
    try:
        if layout == "keras" or (layout == "auto" and keras_files.is_keras(path)):
            return keras_files.read_keras(path, encoder_only=encoder_only)
        return read_torch(path, layout, encoder_only=encoder_only)
    except (DataError, UsageError):
        raise
    except IMPOSSIBLE as error:  # names and shapes that no network has, wherever they are stumbled over
        raise DataError(f"{path} is no SegFormer: {' '.join(str(error).split())[:200]}") from error


def convert_original(
    path: str | Path,
    output: str | Path,
    layout: str = "auto",
    *,
    encoder_only: bool = False,
    license: str | None = None,
) -> Converted:
    """Write a checkpoint of others as a checkpoint folder: weights, configuration, image processor, card.

    Args and errors are those of `open_original`, `Source.model` and `terms`; besides, a UsageError where `output`
    exists.
    """
    output = Path(output)
    if output.exists():
        raise UsageError(f"{output} exists already: name a folder that does not")
    source = open_original(path, layout, encoder_only=encoder_only)
    found = terms(source.layout, source.stated, license)
    model = source.model(path)

    def write(folder: Path) -> None:
        model.save_pretrained(folder)
        SegformerImageProcessor(do_resize=False, **source.processor).save_pretrained(folder)
        name = re.sub(r"[`\s]+", " ", Path(path).resolve().name)
        (folder / "README.md").write_text(card(name, found), encoding="utf-8")

    write_folder(output, write)
    return Converted(model, source, found)
