"""The `dataset` and `transforms` sections of a recipe: images and masks, their classes and splits, augmentation."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from segtune.config import MayChangeOnResume, StrictModel, is_quick
from segtune.data.annotations.shapes import OnTop
from segtune.data.splits import SPLITS
from segtune.errors import UsageError
from segtune.imageio.object_store import is_stored

Format = Literal[
    "auto", "folder", "voc", "roboflow", "manifest", "coco", "labelme", "yolo", "cvat", "label_studio", "via",
    "supervisely", "rle", "hub", "disk", "parquet",
]  # fmt: skip

Side = Annotated[int, Field(ge=1, le=65_536)]  # pixels
Probability = Annotated[float, Field(ge=0, le=1)]


HUB, PACKAGED = "hub://", "segtune://"  # of a data set on the Hub, and of the one inside the package
ARCHIVES = (".zip", ".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".7z", ".rar")


def refuse_missing(path: str | Path) -> None:
    """Raise UsageError where a data set is to be on this machine, and is not, or is still packed.

    That is told before torch is imported.
    """
    folder = Path(path).expanduser().absolute()
    if str(path).startswith((HUB, PACKAGED)) or is_stored(str(path)):
        return
    if folder.is_file() and folder.name.lower().endswith(ARCHIVES):
        raise UsageError(f"{path} is an archive: {how_to_unpack(Path(path))}, and name the folder in its place")
    if folder.exists():
        return
    hint = f" (a data set of the Hub is {HUB}{path})" if re.fullmatch(r"[\w.-]+/[\w.-]+", str(path)) else ""
    raise UsageError(
        f"the data set folder {folder} does not exist: put the data there, or set dataset.path to where it is{hint}"
    )


def how_to_unpack(path: Path) -> str:
    """The command that unpacks an archive into a folder of its name."""
    suffix = max((suffix for suffix in ARCHIVES if path.name.lower().endswith(suffix)), key=len)
    folder = path.with_name(path.name[: -len(suffix)])
    if suffix in (".7z", ".rar"):
        return f"unpack it: 7z x '{path}' -o'{folder}'"
    return f"unpack it: python -m {'zipfile' if suffix == '.zip' else 'tarfile'} -e '{path}' '{folder}'"


def refuse_missing_folder(unlabelled: str) -> Path:
    """The folder that `dataset.unlabelled` names; UsageError where there is none."""
    folder = Path(unlabelled).expanduser().absolute()
    if not folder.is_dir():
        raise UsageError(f"dataset.unlabelled={unlabelled}: there is no such folder")
    return folder


class DatasetConfig(StrictModel):
    """The `dataset` section of a recipe; docs/data.md shows each format."""

    path: str = Field(
        description="A folder or an annotation file; hub://user/name for a data set of the Hub; s3://bucket/folder or "
        "hf://datasets/user/name/folder for parquet files there; segtune://earth for the one inside the package."
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
    crowd: Literal["ignore", "class"] | None = Field(
        None,
        description="Whether COCO's crowd regions are ignored or count as their class; null = ignored, and an error "
        "where most regions of a class are crowds.",
    )
    annotator: str | int | None = Field(
        None,
        description="Whose annotation counts where several people labelled a task of Label Studio: first, last, or the "
        "number or mail address of one of them; null = asked where they differ.",
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
    frames: Literal["all", "first"] | None = Field(
        None,
        description="Of files with several pages, frames or slices (TIFF, GIF, WebP, APNG, NIfTI, DICOM): a sample for "
        "each, or the first alone; null = such files are an error.",
    )
    nodata: Literal["ignore", "class"] | None = Field(
        None,
        description="What a GeoTIFF mask calls its nodata value: ignored, or a value like any other; null = ignored, "
        "and an error where labels name it as a class.",
    )
    unlabelled: str | None = Field(
        None,
        description="A folder of pictures without labels, which training.semi learns from; those that are in the "
        "labelled data, by their pixels or their id, are left out.",
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


class TransformConfig(StrictModel):
    """The `transforms` section of a recipe; sizes are (height, width) in pixels."""

    crop_size: Side | tuple[Side, Side] = Field(
        512, description="Size of a training sample, (height, width) in pixels; one number for a square."
    )
    short_side: Side | None = Field(
        None, description="Short side, in pixels, that scale 1 stands for; null = the image's own."
    )
    scale: tuple[float, float] = Field((0.5, 2.0), description="Range of the random resize, the smaller factor first.")
    max_class_share: float = Field(
        0.75,
        gt=0,
        le=1,
        description="A crop with more than this share of its labelled pixels in one class is drawn anew, up to 10 "
        "times; 1 takes every crop.",
    )
    horizontal_flip: Probability = Field(0.5, description="Probability of a horizontal flip.")
    vertical_flip: Probability = Field(0.0, description="Probability of a vertical flip.")
    rotate90: bool = Field(False, description="Turn by a random multiple of 90 degrees.")
    photometric: bool = Field(
        True,
        description="Change brightness (by up to 32 of 255), contrast and saturation (0.5 to 1.5) and hue (up to a "
        "tenth of the circle), each with probability 0.5. Images of other than three channels, and those with a "
        "value_range, are left as they are.",
    )
    rare_classes: Literal["auto"] | tuple[str, ...] = Field(
        "auto",
        description="Names of the classes that rare_crop and copy_paste look for; auto = those with less than a "
        "quarter of an equal share of the pixels.",
    )
    rare_crop: Probability = Field(
        0.0,
        description="Probability that the crop is laid around a pixel of a rare class, where the image has any; every "
        "rare class that occurs is as likely as the others.",
    )
    copy_paste: Probability = Field(
        0.0,
        description="Probability that rare classes of another training image are pasted in (Ghiasi et al. 2021, "
        "https://arxiv.org/abs/2012.07177, with the regions of classes in place of instances).",
    )
    preset: Literal["light", "medium", "strong"] | None = Field(
        None, description="Transforms of Albumentations on top of all that; null = none."
    )
    extra: tuple[str | dict[str, dict[str, Any] | None], ...] = Field(
        (),
        description="Further transforms by the names and arguments of Albumentations, as in [HorizontalFlip, "
        "{GaussNoise: {std_range: [0.01, 0.05], p: 0.3}}]. They see the uint8 crop, at last.",
    )
    mean: tuple[float, ...] | Literal["counted"] = Field(
        (0.485, 0.456, 0.406),
        description="Mean of each channel, of values from 0 to 1; as many as the images have channels. counted = from "
        "the training images.",
    )
    std: tuple[float, ...] | Literal["counted"] = Field(
        (0.229, 0.224, 0.225), description="Standard deviation of each channel, likewise."
    )
    value_range: tuple[float, float] | None = Field(
        None,
        description="Pixel values that 0 and 1 stand for in mean and std; null = 0 and 255, of 16-bit pictures 65535. "
        "Images of more than 3 channels that are not 8-bit, and those of fractions, must declare it.",
    )

    @model_validator(mode="after")
    def _check(self) -> TransformConfig:
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale {self.scale}: give the smallest and the largest factor, both above 0")
        if (self.mean == "counted") != (self.std == "counted"):
            raise ValueError("mean and std are counted together: set both to counted, or give numbers for both")
        if not self.mean or len(self.mean) != len(self.std):
            raise ValueError(f"mean has {len(self.mean)} and std {len(self.std)} numbers: give one each per channel")
        if not isinstance(self.std, str) and min(self.std) <= 0:
            raise ValueError(f"std {self.std}: every number must be above 0")
        if self.value_range and not self.value_range[0] < self.value_range[1]:
            raise ValueError(f"value_range {self.value_range}: give the smaller value first")
        return self

    @field_validator("extra", mode="before")
    @classmethod
    def _check_extra(cls, extra: Any, info: ValidationInfo) -> Any:
        if not isinstance(extra, (list, tuple)):
            raise ValueError("give a list of transforms, such as [HorizontalFlip, {GaussNoise: {p: 0.3}}]")
        if extra and not is_quick(info):
            from segtune.data.augmentations import make_transforms

            make_transforms(extra)
        return extra
