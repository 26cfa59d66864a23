"""What is not read is named, with what to do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from segtune.data.dataset import load_segmentation_dataset
from segtune.errors import DataError, UsageError
from support.pairs import write_image, write_mask


def text(root: Path, name: str, content: str = "") -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(content)


CITYSCAPES = '{"imgHeight": 5, "imgWidth": 6, "objects": [{"label": "road", "polygon": [[0, 0]]}]}'
VIA3 = '{"project": {}, "config": {}, "attribute": {}, "file": {}, "view": {}, "metadata": {}}'
GEOJSON = '{"type": "FeatureCollection", "features": [{"geometry": null, "properties": {}}]}'
ISAT = '{"info": {"description": "ISAT"}, "objects": [{"category": "a", "segmentation": [[0, 0]]}]}'
COCO_KEYPOINTS = '{"images": [], "annotations": [], "categories": []}'
BOXES = "<annotation><object><bndbox><xmin>1</xmin></bndbox></object></annotation>"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("data.zip", "", r"data\.zip is an archive: unpack it: python -m zipfile -e '.*data\.zip' '.*data'"),
        ("data.tar.gz", "", r"data\.tar\.gz is an archive: unpack it: python -m tarfile -e '.*' '.*/data'"),
        ("data.7z", "", r"data\.7z is an archive: unpack it: 7z x"),
        ("scans/a.img", "", r"1 files such as a\.img are Analyze or NIfTI volumes in two files: .*nibabel\.load"),
        ("scans/IM0001", "\0" * 128 + "DICM", r"IM0001 is a DICOM image without a suffix: name these files a\.dcm"),
        ("annotations/a.json", '{"images": [', r"annotations/a\.json is no JSON file: Expecting value"),
        ("scans/a.mha", "", r"such as a\.mha are ITK volumes: .*SimpleITK"),
        ("all.h5", "", r"such as all\.h5 are containers of arrays"),
        ("photos/a.heic", "", "are HEIF photographs: convert them"),
        ("roads.shp", "", r"are shapes on a map: burn them .*rasterio\.features\.rasterize"),
        (
            "gtFine/a_polygons.json",
            CITYSCAPES,
            r"looks like Cityscapes' polygons: take its pictures: images='leftImg8bit",
        ),
        ("via.json", VIA3, "looks like a project of VIA 3: export it as COCO"),
        ("a.json", GEOJSON, "looks like shapes on a map"),
        ("a.json", ISAT, "looks like annotations of ISAT: convert them to COCO"),
        (
            "person_keypoints_val2017.json",
            COCO_KEYPOINTS,
            r"looks like a file of COCO without masks: take instances_\*",
        ),
        ("Annotations/a.xml", BOXES, "looks like Pascal VOC's boxes, which have no outline"),
        ("labels/a.txt", "0 0.5 0.5 0.1 0.1\n", "looks like boxes of YOLO, which have no outline"),
        (
            "labels/a.txt",
            "0 0.1 0.1 0.2 0.1 0.2 0.2\n",
            r"looks like polygons of YOLO without names: write .*classes\.txt",
        ),
        ("labelTxt/a.txt", "1 2 3 4 5 6 7 8 plane 0\n", "looks like boxes of DOTA"),
    ],
)
def test_folders(tmp_path: Path, name: str, content: str, message: str) -> None:
    text(tmp_path, name, content)
    with pytest.raises(UsageError, match=message):
        load_segmentation_dataset(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "data.zip",
            "",
            r"data\.zip is an archive: unpack it: python -m zipfile -e '.*data\.zip' '.*/data', and name the folder",
        ),
        ("a.mha", "", r"a\.mha looks like ITK volumes"),
        ("a.json", VIA3, "looks like a project of VIA 3"),
        ("a.xml", BOXES, "looks like Pascal VOC's boxes"),
        ("a.py", "", "is a file, not a folder: set dataset.path"),
    ],
)
def test_files(tmp_path: Path, name: str, content: str, message: str) -> None:
    text(tmp_path, name, content)
    with pytest.raises(UsageError, match=message):
        load_segmentation_dataset(tmp_path / name)


def test_what_lies_in_the_place_of_a_partner(tmp_path: Path) -> None:
    """Only of the missing partner's name: other files are nobody's fault."""
    write_mask(tmp_path / "masks/a.png")
    write_mask(tmp_path / "masks/b.png")
    write_image(tmp_path / "images/b.jpg")
    text(tmp_path, "images/notes.pdf")
    with pytest.raises(
        DataError, match=r"without an image \(1\): masks/a\.png\. An image and its mask have the same name"
    ):
        load_segmentation_dataset(tmp_path)
    text(tmp_path, "images/a.mha")
    with pytest.raises(
        DataError, match=r"without an image \(1\): masks/a\.png\. 1 files such as a\.mha are ITK volumes"
    ):
        load_segmentation_dataset(tmp_path)


def test_folders_without_pictures(tmp_path: Path) -> None:
    text(tmp_path, "images/a.nrrd")
    text(tmp_path, "masks/a.nrrd")
    with pytest.raises(DataError, match=r"splits without pictures .*: train\. 2 files such as a\.nrrd are ITK"):
        load_segmentation_dataset(tmp_path)


def test_nothing_known(tmp_path: Path) -> None:
    text(tmp_path, "notes.txt", "a note\n")
    text(tmp_path, "a.json", json.dumps({"name": "x"}))
    with pytest.raises(UsageError, match=r"masks='\*\*/\*_label\.png'$"):
        load_segmentation_dataset(tmp_path)
