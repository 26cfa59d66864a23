"""The `dataset` section of a recipe: the images and masks, their classes and splits."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from segtune.config import MayChangeOnResume, StrictModel
from segtune.data.formats.shapes import OnTop
from segtune.data.splits import SPLITS

Format = Literal[
    "auto", "folder", "voc", "manifest", "coco", "labelme", "yolo", "cvat", "label_studio", "hub", "disk", "parquet"
]


class DatasetConfig(StrictModel):
    """The `dataset` section of a recipe; docs/data.md shows each format."""

    path: str = Field(
        description="A folder or an annotation file; hub://user/name for a data set of the Hub; segtune://earth for "
        "the one inside the package."
    )
    format: Format = Field(
        "auto",
        description="What lies at path; auto = found out, logged with the reason; an error where several would fit.",
    )
    images: str | None = Field(
        None,
        description="Where the images are, if not in a usual place: a sub-folder, a pattern such as {split}/*_rgb.png, "
        "or the name of a column.",
    )
    masks: str | None = Field(
        None,
        description="Where the masks are, likewise, or an annotation file. In patterns, {split} stands for the name of "
        "a split and {class} for that of a class with a mask of its own.",
    )
    labels: str | list[str] | dict[str | int, Any] | None = Field(
        None,
        description="The classes, inline or a file (relative to path, else to the working directory; "
        "segtune://ade20k.json for one inside the package), in a form of LabelMap.from_dict; null = the names that the "
        "format holds, or a label file in path.",
    )
    ignore_index: int = Field(255, description="Value that ignored pixels have in labels.")
    splits: dict[str, str | None] | None = Field(
        None,
        description="The data's own names of train, val and test, where they are not usual ones; a split that is null "
        "is left out.",
    )
    val_fraction: float = Field(
        0.1, ge=0, lt=1, description='Part of the training samples that becomes "val" where the data has no such split.'
    )
    split_seed: int = Field(0, description="Seed by which the val split is drawn.")
    split_file: MayChangeOnResume[str | None] = Field(
        None,
        description='A JSON file {"train": [ids], "val": [ids], "test": [ids]}, or a pattern of lists such as '
        "ImageSets/{split}.txt, found as labels are.",
    )
    check_masks: MayChangeOnResume[bool] = Field(True, description="Read every image and mask before the first step.")
    resize_images: bool = Field(
        False, description="Give images the size of their masks where the two differ by one factor."
    )
    on_error: Literal["raise", "skip"] = Field(
        "raise",
        description="What becomes of samples that are incomplete, cannot be read or differ in size; skip leaves them "
        "out with a warning.",
    )
    on_top: OnTop | None = Field(
        None,
        description="Shape that counts where several overlap: the smaller or the later one; null = the smaller one in "
        "COCO and YOLO, the later one elsewhere.",
    )
    crowd: Literal["ignore", "class"] = Field(
        "ignore", description="Whether COCO's crowd regions are ignored or count as their class."
    )
    one_hot: bool = Field(False, description="Masks have a channel for each class, in the order of the mask ids.")
    tile: int | None = Field(
        None,
        ge=32,
        description="Side of the tiles, in pixels, that large images are cut into, without writing them; null = whole "
        "images.",
    )
    overlap: int = Field(
        0, ge=0, description="Pixels that neighbouring training tiles share; tiles of val and test do not overlap."
    )
    allow_outside: bool = Field(
        False,
        description="Read files outside path that annotation files, tables or parquet cells name; only for those that "
        "you trust.",
    )
    name: str | None = Field(None, description="Configuration of a data set of the Hub.")
    revision: str | None = Field(None, description="Branch, tag or commit of a data set of the Hub.")
    streaming: bool = Field(
        False,
        description="Read the training split of parquet files or of a data set of the Hub in passing, without a copy "
        "on disk.",
    )
    shuffle_buffer: int = Field(
        256,
        ge=1,
        description="Rows of a stream that are held and shuffled together; its shards are shuffled as a whole.",
    )

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
