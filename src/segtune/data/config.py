"""The recipe's `dataset` section."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from segtune.config import StrictModel
from segtune.data.formats.shapes import OnTop
from segtune.data.splits import SPLITS

Format = Literal[
    "auto", "folder", "voc", "manifest", "coco", "labelme", "yolo", "cvat", "label_studio", "hub", "disk", "parquet"
]


class DatasetConfig(StrictModel):
    """The recipe's `dataset` section; docs/data.md shows each format.

    Attributes:
        path: a folder or an annotation file; "hub://user/name" for a data set of the Hub; "segtune://earth" for the one
            inside the package.
        format: what lies there. auto: found out, logged with the reason; an error where several would fit.
        images: where the images are, if not in a usual place: a sub-folder, a pattern such as "{split}/*_rgb.png", or
            the name of a column.
        masks: the same for the masks; also an annotation file. In patterns, `{split}` stands for the name of a split
            and `{class}` for that of a class with a mask of its own.
        labels: the classes, inline or a file (relative to `path`, else to the working directory;
            "segtune://ade20k.json" for one inside the package), in a form of `LabelMap.from_dict`. Left out: the names
            that the format holds, or a label file in `path`.
        ignore_index: what ignored pixels become in labels.
        splits: the data's own names of our splits train, val and test, where they are not usual ones; null leaves out.
        val_fraction: the part of the training samples that becomes "val" where the data has no such split.
        split_seed: of that split.
        split_file: JSON {"train": [ids], "val": [ids], "test": [ids]}, or a pattern of lists such as
            "ImageSets/{split}.txt", found like `labels`.
        check_masks: read every image and mask before the first step.
        resize_images: give images the size of their masks where the two differ by one factor.
        on_error: raise, or skip samples that are incomplete, cannot be read or differ in size, with a warning.
        on_top: which shape counts where several overlap: the smaller or the later one. Null: the smaller one in COCO
            and YOLO, the later one elsewhere.
        crowd: whether COCO's crowd regions are ignored or count as their class.
        one_hot: masks have a channel for each class, in the order of the mask ids.
        tile: cut large images into tiles of this side, without writing them. Null: whole images.
        overlap: of neighbouring training tiles, pixels; tiles of val and test do not overlap.
        name: configuration of a Hub data set.
        revision: branch, tag or commit of a Hub data set.
        streaming: read the training split of parquet files or of a Hub data set in passing, without a copy on disk.
        shuffle_buffer: rows of a stream that are held and shuffled together; its shards are shuffled as a whole.
    """

    path: str
    format: Format = "auto"
    images: str | None = None
    masks: str | None = None
    labels: str | list[str] | dict[str | int, Any] | None = None
    ignore_index: int = 255
    splits: dict[str, str | None] | None = None
    val_fraction: float = Field(default=0.1, ge=0, lt=1)
    split_seed: int = 0
    split_file: str | None = None
    check_masks: bool = True
    resize_images: bool = False
    on_error: Literal["raise", "skip"] = "raise"
    on_top: OnTop | None = None
    crowd: Literal["ignore", "class"] = "ignore"
    one_hot: bool = False
    tile: int | None = Field(default=None, ge=32)
    overlap: int = Field(default=0, ge=0)
    name: str | None = None
    revision: str | None = None
    streaming: bool = False
    shuffle_buffer: int = Field(default=256, ge=1)

    @model_validator(mode="after")
    def _check(self) -> DatasetConfig:
        if unknown := [name for name in self.splits or () if name not in SPLITS]:
            raise ValueError(
                f"splits names ours first, as in {{train: trainval}}: {unknown[0]} is none of {', '.join(SPLITS)}"
            )
        if self.tile is not None and self.overlap >= self.tile:
            raise ValueError(f"overlap={self.overlap} must be below tile={self.tile}")
        if self.overlap and self.tile is None:
            raise ValueError(f"overlap={self.overlap} is that of tiles: set tile as well")
        return self
