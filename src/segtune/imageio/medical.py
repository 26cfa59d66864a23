"""Medical files through the extra `medical`: slices of NIfTI volumes (nibabel), frames of DICOM images (pydicom).

Numbers are those that the file stands for: its slope and intercept are applied. Bands of 16 bits come as int32, since
they never span all of their type: an image of them wants `transforms.value_range`. Spacing, orientation and display
windows are not looked at. Sizes are compared with the file's before anything is unpacked.
"""

from __future__ import annotations

import gzip
import math
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from segtune.errors import DataError, UsageError
from segtune.imageio.encoded import choose
from segtune.imageio.geotiff import LARGEST, without_nodata, without_warnings

NIFTI, DICOM = {".nii", ".nii.gz"}, {".dcm", ".dicom", ".ima"}
MEDICAL = NIFTI | DICOM
SINGLE_FILE = {348: ("Nifti1Header", b"n+1\0"), 540: ("Nifti2Header", b"n+2\0")}  # by the size of the header
INFLATION = 1032  # bytes that deflate makes of one, at most
FARTHEST = 2**26  # bytes of header and extensions before the numbers of a volume
HELD = 2**28  # bytes of a compressed volume that is kept for its next slice
COLORS = {("R", "G", "B"): 3, ("R", "G", "B", "A"): 4}
SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"  # the class of DICOM SEG
NOT_USED = (
    "of NIfTI and DICOM files, slices are taken along the third axis as they are stored; spacing, orientation and "
    "display windows do not count"
)
DEFLATED = "1.2.840.10008.1.2.1.99"
GREY, INVERTED = {"MONOCHROME1", "MONOCHROME2"}, "MONOCHROME1"


def is_medical(path: Path) -> bool:
    """Whether a file's name is that of a NIfTI or DICOM file."""
    return path.name.lower().endswith(tuple(MEDICAL))


def read_size(path: Path) -> tuple[tuple[int, int], int, bool]:
    """(height, width), the number of slices or frames, and whether values were changed by a lossy compression.

    Raises:
        DataError: the file does not hold what its header says, or something that is not read.
        UsageError: the package that reads it is not installed.
    """
    if _is_nifti(path):
        volume = _volume(path)
        return (volume.shape[1], volume.shape[0]), volume.shape[2], False
    with without_warnings():
        image = _dicom(path)
        return (image.Rows, image.Columns), _frames(image), str(image.get("LossyImageCompression", "")) == "01"


def read(path: Path, area: tuple[slice, slice] | None = None, frame: int | None = None) -> np.ndarray:
    """A slice or frame (H, W) or (H, W, C), or an area (rows, columns) of it; masked where a number is NaN.

    A volume (X, Y, Z) is cut along its third axis: of a slice, Y runs down and X across, as stored. A fourth axis is
    that of channels. MONOCHROME1, where 0 is white, is turned round before slope and intercept are applied.

    Raises:
        DataError, UsageError: see `read_size`; several slices or frames, and none was asked for (`FramesError`).
    """
    if _is_nifti(path):
        volume = _volume(path)
        pixels = _slice(path, volume, choose(range(volume.shape[2]), frame))
    else:
        with without_warnings():
            pixels = _dicom_pixels(path, frame)
    pixels = pixels.astype(np.int32) if pixels.dtype.kind == "u" and pixels.dtype.itemsize == 2 else pixels
    pixels = np.ascontiguousarray(pixels[area] if area else pixels, dtype=pixels.dtype.newbyteorder("="))
    return without_nodata(pixels, None)


def grid_of(path: Path) -> tuple[float, ...] | None:
    """Where a volume lies in the scanner: the twelve numbers of its affine matrix; None where it does not say."""
    header = _volume(path).header
    affine = np.asarray(header.get_best_affine())
    is_stated = bool(header["sform_code"] or header["qform_code"]) and not np.array_equal(affine, np.eye(4))
    return tuple(affine[:3].ravel().tolist()) if is_stated else None


# -- NIfTI ------------------------------------------------------------------------------------------------------------


class _Volume(NamedTuple):
    """The header of a volume, as nibabel reads it; `shape` is (X, Y, Z), and (C,) behind it where it has channels."""

    header: Any
    shape: tuple[int, ...]
    dtype: np.dtype


def _is_nifti(path: Path) -> bool:
    return path.name.lower().endswith(tuple(NIFTI))


def _is_packed(path: Path) -> bool:
    return path.name.lower().endswith(".gz")


def _volume(path: Path) -> _Volume:
    nibabel = _nibabel(path)
    with gzip.open(path) if _is_packed(path) else path.open("rb") as file:
        block = file.read(max(SINGLE_FILE))
    sizes = {int.from_bytes(block[:4], order) for order in ("little", "big")}
    size = next((size for size in SINGLE_FILE if size in sizes and len(block) >= size), None)
    kind, magic = SINGLE_FILE.get(size or 0, ("", b""))
    header = getattr(nibabel, kind)(block[:size], check=False) if size else None
    if header is None or bytes(header["magic"].item())[:3] != magic[:3]:
        raise DataError("it is no NIfTI file; an .hdr with its .img: nibabel.save(nibabel.load('a.hdr'), 'a.nii.gz')")
    try:
        dtype = header.get_data_dtype()
    except (KeyError, nibabel.spatialimages.HeaderDataError) as error:
        raise DataError(
            f"its header names a type of numbers that NIfTI does not have ({header['datatype']})"
        ) from error
    shape = _checked_shape(header.get_data_shape())
    is_color = dtype.names in COLORS and len(shape) == 3
    if not is_color and dtype.kind not in "uif":
        raise DataError(f"it holds {dtype}: whole numbers, fractions and RGB colours are read")
    needed = int(header.get_data_offset()) + math.prod(shape) * dtype.itemsize
    held = path.stat().st_size * (INFLATION if _is_packed(path) else 1)
    if not 0 <= header.get_data_offset() <= FARTHEST or needed > held:
        raise DataError(
            f"its header says {' x '.join(map(str, shape))} of {dtype}, {needed} bytes, and the file holds {held} at "
            "most: it was cut short, or is no volume"
        )
    if needed // shape[2] > LARGEST:
        raise DataError(f"a slice of it has {needed // shape[2] / 2**30:.1f} GiB: at most 2 are read at once")
    return _Volume(header, shape, dtype)


def _checked_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """(X, Y, Z) or (X, Y, Z, C); axes of length 1 behind the third one are left out."""
    first = tuple(map(int, (*shape, 1, 1, 1)[:3]))
    channels = tuple(int(length) for length in shape[3:] if length != 1)
    if len(shape) < 2 or min(first + channels) < 1 or len(channels) > 1:
        raise DataError(f"its shape is {shape}: a volume has three axes, and may have a fourth, of channels")
    return first + channels


def _slice(path: Path, volume: _Volume, number: int) -> np.ndarray:
    """The slice (Y, X) or (Y, X, C)."""
    if _is_packed(path) and math.prod(volume.shape) * volume.dtype.itemsize <= HELD:
        stored = _unpacked(path, path.stat().st_mtime_ns)[:, :, number]
    else:
        stored = np.asarray(_proxy(path, volume)[:, :, number])
    if volume.dtype.names:
        return np.stack([stored[name] for name in volume.dtype.names], axis=-1).swapaxes(0, 1)
    slope, intercept = volume.header.get_slope_inter()
    is_plain = slope is None or (slope == 1 and not intercept)
    return (stored if is_plain else stored * float(slope) + float(intercept or 0)).swapaxes(0, 1)


@lru_cache(maxsize=2)  # an image and its mask
def _unpacked(path: Path, changed: int) -> np.ndarray:
    """The numbers of a compressed volume: to reach one slice, all before it are unpacked."""
    volume = _volume(path)
    return np.asarray(_proxy(path, volume))


def _proxy(path: Path, volume: _Volume) -> Any:
    """Slices of the numbers as they are stored, (X, Y, Z) or (X, Y, Z, C), which are read when they are asked for."""
    spec = (volume.shape, volume.dtype, int(volume.header.get_data_offset()))
    return _nibabel(path).arrayproxy.ArrayProxy(path, spec, mmap=False)


# -- DICOM ------------------------------------------------------------------------------------------------------------


def _dicom(path: Path) -> Any:
    """What a DICOM file says about its pixels, pydicom's `Dataset` without these."""
    pydicom = _pydicom(path)
    with path.open("rb") as file:
        if file.read(132)[128:] != b"DICM":
            raise DataError(
                "it does not begin as DICOM files do; where it is one, write it anew: "
                "pydicom.dcmread('a.dcm', force=True).save_as('b.dcm', enforce_file_format=True)"
            )
    meta = pydicom.filereader.read_file_meta_info(path)
    if meta.get("TransferSyntaxUID") == DEFLATED:
        raise DataError("all of it is compressed: write it anew with dcmconv +te a.dcm b.dcm")
    image = pydicom.dcmread(path, stop_before_pixels=True)
    kind = getattr(image.get("SOPClassUID"), "name", "") or "DICOM"
    if not image.get("Rows") or not image.get("Columns"):
        raise DataError(f"{kind}: it has no pixels. Outlines of a structure set are drawn as a mask by dcmrtstruct2nii")
    if image.get("SOPClassUID") == SEGMENTATION:
        raise DataError(f"{kind}: its frames are segments: make masks of it with segimage2itkimage of dcmqi")
    colors = str(image.get("PhotometricInterpretation", ""))
    if colors not in GREY and not colors.startswith(("RGB", "YBR")):
        raise DataError(f"its pixels are {colors or 'of no kind'}: grey, RGB and YBR are read")
    _check_bytes(path, image, meta)
    return image


def _check_bytes(path: Path, image: Any, meta: Any) -> None:
    """Compare what the header says with the file, before its pixels are unpacked."""
    frames, held = _frames(image), path.stat().st_size
    samples, bits = int(image.get("SamplesPerPixel", 1)), int(image.get("BitsAllocated", 8))
    frame = math.prod((image.Rows, image.Columns, samples, bits)) // 8  # bytes
    is_packed = meta.TransferSyntaxUID.is_compressed
    needed = 8 * frames if is_packed else frame * frames  # each frame of the packed ones has a heading of 8 bytes
    if frames < 1 or samples < 1 or bits < 1 or needed > held:
        raise DataError(
            f"its header says {frames} frames of {image.Rows} x {image.Columns}, and the file holds {held} bytes: it "
            "was cut short"
        )
    if frame > LARGEST:
        raise DataError(f"a frame of it has {frame / 2**30:.1f} GiB: at most 2 are read at once")


def _frames(image: Any) -> int:
    return int(image.get("NumberOfFrames") or 1)


def _dicom_pixels(path: Path, frame: int | None) -> np.ndarray:
    image = _dicom(path)
    place = choose(range(_frames(image)), frame)
    try:
        pixels: np.ndarray = _pydicom(path).pixels.pixel_array(path, index=place)  # (H, W) or (H, W, C)
    except RuntimeError as error:
        if "dependencies" not in str(error):
            raise
        raise DataError(
            f"its pixels are compressed as {image.file_meta.TransferSyntaxUID.name}: pip install pylibjpeg "
            "pylibjpeg-libjpeg pylibjpeg-openjpeg, or write it anew with gdcmconv --raw a.dcm b.dcm"
        ) from error
    if image.PhotometricInterpretation not in GREY or pixels.dtype.kind not in "ui":
        return pixels
    bits = int(image.get("BitsStored", 8 * pixels.dtype.itemsize))
    if pixels.dtype.kind == "u":
        pixels = pixels & pixels.dtype.type(2**bits - 1)  # old files keep an overlay in the bits above
    if image.PhotometricInterpretation == INVERTED:
        pixels = pixels.dtype.type(2**bits - 1) - pixels if pixels.dtype.kind == "u" else -1 - pixels
    return _rescaled(path, pixels, image, place)


def _rescaled(path: Path, pixels: np.ndarray, image: Any, frame: int) -> np.ndarray:
    """Stored values as what they stand for, such as Hounsfield units; whole numbers stay whole."""
    source = _transformation(image, frame)
    if "ModalityLUTSequence" in source:
        return np.asarray(_pydicom(path).pixels.apply_modality_lut(pixels, source))
    slope, intercept = float(source.get("RescaleSlope") or 1), float(source.get("RescaleIntercept") or 0)
    if (slope, intercept) == (1, 0):
        return pixels
    is_whole = slope.is_integer() and intercept.is_integer() and max(abs(slope), abs(intercept)) < 2**15
    if is_whole and pixels.dtype.itemsize <= 2:
        return pixels.astype(np.int32) * np.int32(slope) + np.int32(intercept)
    return pixels * slope + intercept


def _transformation(image: Any, frame: int) -> Any:
    """Where slope and intercept of a frame stand: in the file, or in the groups of an enhanced one."""
    groups = [*image.get("PerFrameFunctionalGroupsSequence", [])[frame : frame + 1]]
    for group in [*groups, *image.get("SharedFunctionalGroupsSequence", [])[:1]]:
        if found := group.get("PixelValueTransformationSequence"):
            return found[0]
    return image


def _nibabel(path: Path) -> Any:
    try:
        import nibabel
    except ImportError:
        raise _missing(path, "nibabel") from None
    return nibabel


def _pydicom(path: Path) -> Any:
    try:
        import pydicom.pixels
    except ImportError:
        raise _missing(path, "pydicom") from None
    return pydicom


def _missing(path: Path, package: str) -> UsageError:
    return UsageError(f"{path}: this needs the package {package}: pip install 'segtune[medical]'")
