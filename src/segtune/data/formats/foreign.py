"""What lies in a folder that no reader takes, and how it becomes something that one takes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from segtune.data.config import ARCHIVES, how_to_unpack
from segtune.data.formats.sniff import NOT_MASKS, json_keys
from segtune.errors import UsageError
from segtune.files import decode_text, read_json
from segtune.imageio.read import SUFFIXES
from segtune.imageio.walk import walk_files

LOOK_AT = 20_000  # files of a folder, to find out which suffixes it has
LOOK_AT_JSON, LARGEST_JSON = 200, 2**24  # files, and bytes of one, that are parsed to tell why none is read
HEAD = 2**14


class Foreign(NamedTuple):
    """A kind of files that is not read: what it is, and what to do."""

    what: str
    advice: str


BY_SUFFIX: dict[tuple[str, ...], Foreign] = {
    (".mha", ".mhd", ".nrrd"): Foreign(
        "ITK volumes", "write them as NIfTI: SimpleITK.WriteImage(SimpleITK.ReadImage('a.mha'), 'a.nii.gz')"
    ),
    (".hdr", ".img"): Foreign(
        "Analyze or NIfTI volumes in two files", "join them: nibabel.save(nibabel.load('a.hdr'), 'a.nii.gz')"
    ),
    (".heic", ".heif"): Foreign("HEIF photographs", "convert them: magick mogrify -format jpg *.heic"),
    (".jfif", ".avif", ".tga", ".pcx", ".jxl", ".dds", ".exr", ".pbm", ".pnm"): Foreign(
        "pictures of a format that is not read", "convert them: magick mogrify -format png <files>"
    ),
    (".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf", ".rw2"): Foreign(
        "raw photographs", "develop them to TIFF or JPEG, e.g. with darktable-cli or rawpy"
    ),
    (".svg", ".psd", ".xcf", ".ai", ".pdf"): Foreign("drawings", "export them as PNG without smoothed edges"),
    (".mat", ".h5", ".hdf5", ".pkl", ".pt", ".tfrecord", ".tfrecords", ".lmdb", ".mdb", ".zarr"): Foreign(
        "containers of arrays", "save each image and each mask as .npy or PNG of the same name in images/ and masks/"
    ),
    (".shp", ".geojson", ".gpkg", ".kml"): Foreign(
        "shapes on a map", "burn them into a GeoTIFF on the image's grid with rasterio.features.rasterize"
    ),
    (".svs", ".ndpi", ".mrxs", ".vsi", ".czi"): Foreign(
        "slides of a microscope", "save regions of them as TIFF, e.g. with openslide or tiffslide"
    ),
    (".mp4", ".avi", ".mov", ".mkv"): Foreign("videos", "take their frames: ffmpeg -i a.mp4 images/a_%05d.png"),
}

_COCO = "export COCO JSON or 'CVAT for images' from the tool instead"
JSON_KINDS: tuple[tuple[set[str], Foreign], ...] = (
    (
        {"imgHeight", "imgWidth", "objects"},
        Foreign(
            "Cityscapes' polygons",
            "take its pictures: images='leftImg8bit/{split}/**/*_leftImg8bit.png' "
            "masks='gtFine/{split}/**/*_gtFine_labelIds.png'",
        ),
    ),
    (
        {"metadata", "file", "view", "attribute"},
        Foreign("a project of VIA 3", "export it as COCO, or annotate in VIA 2"),
    ),
    ({"info", "objects", "segmentation", "category"}, Foreign("annotations of ISAT", "convert them to COCO in ISAT")),
    ({"features", "geometry"}, BY_SUFFIX[(".shp", ".geojson", ".gpkg", ".kml")]),
    ({"instances", "className"}, Foreign("annotations of SuperAnnotate", _COCO)),
    ({"item", "annotations", "slots"}, Foreign("annotations of V7 Darwin", _COCO)),
    ({"data_row", "projects"}, Foreign("an export of Labelbox", "download its masks, or convert it to COCO JSON")),
    ({"Labeled Data", "Label"}, Foreign("an export of Labelbox", "download its masks, or convert it to COCO JSON")),
    ({"labels", "poly2d"}, Foreign("labels of BDD100K", "take its pictures: masks='labels/sem_seg/masks/{split}'")),
    ({"items", "categories", "infos"}, Foreign("annotations of Datumaro", "datum convert -i . -if datumaro -f coco")),
    ({"segmentation_bitmap"}, Foreign("a release of Segments.ai", "export_dataset(release, export_format='semantic')")),
)


def refuse_foreign(path: Path) -> None:
    """Refuse a file that is given as the data set and is of a kind that is known but not read.

    Raises:
        UsageError: what it is, and what to do.
    """
    if found := _of_suffix(path) or (_of_json(path) if path.suffix.lower() == ".json" else _of_text(path)):
        raise UsageError(f"{path} looks like {found.what}: {found.advice}")


def looks_like(root: Path) -> str:
    """What a folder that has no layout of ours seems to hold, as a sentence for its error; else ""."""
    files = list(islice(walk_files(root, depth=3), LOOK_AT))
    archives = [path for path in files if path.name.lower().endswith(ARCHIVES)]
    if archives and not any(path.suffix.lower() in SUFFIXES for path in files):
        return f"{archives[0].relative_to(root)} is an archive: {how_to_unpack(archives[0])}"
    for found in _kinds(files):
        return f"This looks like {found.what}: {found.advice}"
    return _unread(files) or _broken_json(files)


def unread_files(root: Path, names: Collection[str] = ()) -> str:
    """What files in a folder have a suffix that is not read, as a sentence for an error; "" where nothing is known.

    Args:
        names: without suffix, of pictures that lack their partner; given these, only files of such a name count.
    """
    files = list(islice(walk_files(root), LOOK_AT)) if root.is_dir() else []
    alike = [path for path in files if not names or path.name.partition(".")[0] in names]
    return _unread(alike) or _broken_json(files)


def _unread(files: Sequence[Path]) -> str:
    for suffix, count in Counter(map(_suffix, files)).most_common():
        example = next(path for path in files if _suffix(path) == suffix)
        if kind := _of_suffix(example):
            return f"{count} files such as {example.name} are {kind.what}: {kind.advice}"
    if found := next(_kinds([path for path in files if path.suffix.lower() in (".txt", ".xml")]), None):
        return f"There are {found.what}: {found.advice}"
    if bare := next((path for path in files if not path.suffix and _is_dicom(path)), None):
        return f"{bare.name} is a DICOM image without a suffix: name these files a.dcm"
    return ""


def _is_dicom(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def _broken_json(files: Iterable[Path]) -> str:
    """The first of the JSON files that is none, and why, as a sentence; "" where all are."""
    small = (path for path in files if path.suffix.lower() == ".json" and path.stat().st_size <= LARGEST_JSON)
    for path in islice(small, LOOK_AT_JSON):
        try:
            read_json(path)
        except ValueError as error:
            return f"{path.parent.name}/{path.name} is no JSON file: {error}"
    return ""


def _kinds(files: Iterable[Path]) -> Iterator[Foreign]:
    """The kinds of the first files of text, one for each."""
    seen: Counter[str] = Counter()
    for path in files:
        suffix = path.suffix.lower()
        if suffix in (".json", ".xml", ".txt") and seen[suffix] < 20:
            seen[suffix] += 1
            if found := _of_json(path) if suffix == ".json" else _of_text(path):
                yield found


def _of_suffix(path: Path) -> Foreign | None:
    suffix = _suffix(path)
    return next((kind for suffixes, kind in BY_SUFFIX.items() if suffix in suffixes and suffix not in SUFFIXES), None)


def _suffix(path: Path) -> str:
    return ".nii.gz" if path.name.lower().endswith(".nii.gz") else path.suffix.lower()


def _of_json(path: Path) -> Foreign | None:
    if path.name.startswith(NOT_MASKS):
        return Foreign("a file of COCO without masks", "take instances_*.json or panoptic_*.json")
    _, keys = json_keys(path)
    return next((kind for needed, kind in JSON_KINDS if needed <= keys), None)


def _of_text(path: Path) -> Foreign | None:
    """What an XML or text file holds, by its first bytes."""
    with path.open("rb") as file:
        text = decode_text(file.read(HEAD), "ignore")
    if path.suffix.lower() == ".xml":
        if "<bndbox>" in text:
            return Foreign(
                "Pascal VOC's boxes, which have no outline", "take the masks of SegmentationClass, or draw some"
            )
        if "<Annotations" in text:
            return Foreign("annotations of a slide viewer (ASAP, ImageScope)", "burn them into TIFF masks first")
        if "<annotation>" in text and "<polygon>" in text:
            return Foreign("XML of LabelMe's old web tool", "open it in a tool that exports COCO, or draw it as masks")
        return None
    lines = [line.split() for line in text.splitlines()[:-1] or text.splitlines() if line.strip()]
    if path.suffix.lower() != ".txt" or not lines:
        return None
    if all(len(words) in (9, 10) and _are_numbers(words[:8]) and not _are_numbers(words[8:9]) for words in lines):
        return Foreign("boxes of DOTA", "boxes are no masks: draw polygons, or take iSAID's masks of these images")
    if not all(_are_numbers(words) and float(words[0]).is_integer() for words in lines):
        return None
    if all(len(words) == 5 for words in lines):
        return Foreign("boxes of YOLO, which have no outline", "polygons are needed: export for segmentation")
    if all(len(words) >= 7 and len(words) % 2 for words in lines):
        return Foreign(
            "polygons of YOLO without names",
            "write the names of the classes, one a line, into classes.txt beside labels/, or a data.yaml: "
            '{"train": "images", "names": ["first", "second"]}',
        )
    return None


def _are_numbers(words: list[str]) -> bool:
    return all(re.fullmatch(r"-?\d+(\.\d*)?(e[+-]?\d+)?", word, re.IGNORECASE) for word in words)
