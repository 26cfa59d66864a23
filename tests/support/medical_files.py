"""NIfTI and DICOM files for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom

AFFINE = np.array([[-1.0, 0, 0, 90], [0, -1.0, 0, 126], [0, 0, 3.0, -72], [0, 0, 0, 1]])
EXPLICIT, RLE = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.5"


def write_nifti(path: Path, values: np.ndarray, affine: np.ndarray = AFFINE, **header: Any) -> Path:
    """A volume (X, Y, Z)."""
    image = nibabel.Nifti1Image(values, affine)
    for key, value in header.items():
        image.header[key] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image, path)
    return path


def write_dicom(path: Path, pixels: np.ndarray, syntax: str = EXPLICIT, **elements: Any) -> Path:
    """A frame (H, W), or frames (N, H, W), of uint8, uint16 or int16."""
    image = pydicom.Dataset()
    image.SOPClassUID, image.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", "1.2.3"
    image.file_meta = pydicom.dataset.FileMetaDataset()
    image.file_meta.TransferSyntaxUID = EXPLICIT
    image.Rows, image.Columns = pixels.shape[-2:]
    image.BitsAllocated = image.BitsStored = 8 * pixels.dtype.itemsize
    image.HighBit, image.PixelRepresentation = image.BitsStored - 1, int(pixels.dtype.kind == "i")
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    if pixels.ndim == 3:
        image.NumberOfFrames = len(pixels)
    image.PixelData = pixels.tobytes()
    image["PixelData"].VR = "OB" if pixels.dtype.itemsize == 1 else "OW"
    for key, value in elements.items():
        setattr(image, key, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    if syntax != EXPLICIT:
        image.compress(syntax)
    image.save_as(path, enforce_file_format=True)
    return path
