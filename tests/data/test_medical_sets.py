"""Data sets of volumes and of DICOM images: slices as samples, where they lie, and what is told of them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from segtune.data.config import DatasetConfig
from segtune.data.convert.convert import Conversion, convert
from segtune.data.dataset import open_dataset
from segtune.data.lazy_rows import decoded, sample_ids
from segtune.data.samples import read_pair
from segtune.errors import DataError
from support.medical_files import AFFINE, write_dicom, write_nifti

LABELS = {"0": "background", "1": "organ"}


def volumes(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Hounsfield units and mask (X, Y, Z), the organ at another place in each slice."""
    mask = np.zeros((24, 16, 3), np.uint8)
    for z in range(3):
        mask[2 + z : 8 + z, number : number + 5, z] = 1
    return mask.astype(np.int16) * 400 - 1000 + number, mask


def opened(root: Path, **settings: Any) -> Any:
    return open_dataset(DatasetConfig(path=str(root), labels=LABELS, val_fraction=0, **settings))


@pytest.mark.parametrize(
    ("image", "mask"), [("images/{}.nii.gz", "masks/{}.nii.gz"), ("imagesTr/{}_0000.nii.gz", "labelsTr/{}.nii")]
)
def test_slices_become_samples(tmp_path: Path, caplog: pytest.LogCaptureFixture, image: str, mask: str) -> None:
    for number in range(2):
        values, labels = volumes(number)
        write_nifti(tmp_path / image.format(f"case{number}"), values)
        write_nifti(tmp_path / mask.format(f"case{number}"), labels)
    with pytest.raises(DataError, match=r"several pages or frames \(2\).*\(3, its mask 3\).*dataset\.frames=all"):
        opened(tmp_path)
    with caplog.at_level(logging.INFO):
        rows, label_map = opened(tmp_path, frames="all")
    assert "spacing, orientation and display windows do not count" in caplog.text
    name = "case{}_0000" if "Tr" in image else "case{}"
    assert sample_ids(rows["train"]) == [f"{name.format(n)}@p{z}" for n in range(2) for z in range(3)]
    for place in range(6):
        values, labels = (volume[:, :, place % 3].T for volume in volumes(place // 3))
        row = decoded(rows["train"][place])
        found, target = read_pair(row, label_map, 1, raw=True)
        assert found[:, :, 0].tolist() == values.tolist() and target.tolist() == labels.tolist()
        with pytest.raises(DataError, match=r"int16 values, -\d+ to -\d+.*transforms\.value_range"):
            read_pair(row, label_map)


def test_a_mask_on_another_grid_is_refused(tmp_path: Path) -> None:
    mirrored = AFFINE @ np.diag([-1.0, 1, 1, 1])
    for name, affine in (("a", AFFINE), ("b", mirrored), ("c", np.eye(4))):  # the last one says nothing
        values, labels = volumes(0)
        write_nifti(tmp_path / f"images/{name}.nii", values)
        write_nifti(tmp_path / f"masks/{name}.nii", labels, affine)
    with pytest.raises(
        DataError, match=r"elsewhere in the world \(1\): images/b\.nii and masks/b\.nii\..*resample_from_to"
    ):
        opened(tmp_path, frames="all")
    rows, _ = opened(tmp_path, frames="all", on_error="skip")
    assert len(rows["train"]) == 6


@pytest.fixture
def radiographs(tmp_path: Path) -> Path:
    for number in range(2):
        values, labels = (volume[:, :, 0].T for volume in volumes(number))
        write_dicom(tmp_path / f"images/{number}.dcm", values - values.min(), PatientName="Doe^Jane")
        (tmp_path / "masks").mkdir(exist_ok=True)
        PIL.Image.fromarray(labels).save(tmp_path / f"masks/{number}.png")
    return tmp_path


def test_dicom_images_with_picture_masks(radiographs: Path) -> None:
    rows, label_map = opened(radiographs)
    image, labels = read_pair(decoded(rows["train"][1]), label_map, raw=True)
    assert image.max() == 400 and (image[:, :, 0] == 400).tolist() == (labels == 1).tolist()


def test_conversion_leaves_the_patient_behind(radiographs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert(Conversion(*opened(radiographs), out), progress=False)
    written = [path for path in out.rglob("*") if path.is_file()]
    assert sum(path.suffix == ".npy" for path in written) == 2
    assert not [path for path in written if b"Doe" in path.read_bytes()]


def test_masks_that_were_compressed_with_losses_are_refused(radiographs: Path) -> None:
    for number in range(2):
        (radiographs / f"masks/{number}.png").unlink()
        labels = volumes(number)[1][:, :, 0].T
        write_dicom(radiographs / f"masks/{number}.dcm", labels, LossyImageCompression="01" if number else "00")
    with pytest.raises(DataError, match=r"does not keep values.*\(1\): masks/1\.dcm"):
        opened(radiographs)
