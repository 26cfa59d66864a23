"""NIfTI and DICOM: slices and frames as arrays, in the numbers that the files stand for; and files that lie."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from segtune.errors import DataError, UsageError
from segtune.imageio import medical
from segtune.imageio.read import ReadError, Window, is_picture, read_file, read_header, read_image, stem_of, suffix_of
from support.medical_files import AFFINE, EXPLICIT, RLE, write_dicom, write_nifti

VOLUME = np.arange(4 * 3 * 2, dtype=np.int16).reshape(4, 3, 2)  # (X, Y, Z)


def test_suffixes_of_two_parts() -> None:
    assert suffix_of("a.b.NII.GZ") == ".nii.gz" and stem_of("a.b.NII.GZ") == "a.b"
    assert suffix_of("a.nii") == ".nii" and stem_of("a.x.png") == "a.x"
    assert is_picture("a.nii.gz") and is_picture("a.DCM") and not is_picture("a.gz") and not is_picture(".nii.gz")


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("held", [True, False])
def test_slices_lie_along_the_third_axis(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, held: bool
) -> None:
    monkeypatch.setattr(medical, "HELD", 2**28 if held else 0)
    path = write_nifti(tmp_path / name, VOLUME)
    header = read_header(path)
    assert (header.size, header.frames, header.lossy) == ((3, 4), 2, False)
    for number in range(2):
        found = read_file(path, frame=number)
        assert found.tolist() == VOLUME[:, :, number].T.tolist() and found.dtype == np.int16
        assert read_file(path, Window(1, 2, 2, 1), number).tolist() == VOLUME[2:3, 1:3, number].T.tolist()
    with pytest.raises(ReadError, match="holds 2 pages or frames"):
        read_file(path)


def test_slope_and_intercept_are_applied(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "a.nii", VOLUME[:, :, :1])
    content = bytearray(path.read_bytes())
    content[112:120] = struct.pack("<ff", 2.0, -1024.0)
    path.write_bytes(content)
    assert read_file(path).tolist() == (VOLUME[:, :, 0].T * 2.0 - 1024).tolist()


def test_kinds_of_numbers(tmp_path: Path) -> None:
    wide = read_file(write_nifti(tmp_path / "wide.nii", VOLUME[:, :, 0].astype(np.uint16)))
    assert wide.dtype == np.int32 and wide.tolist() == VOLUME[:, :, 0].T.tolist()  # 16 bits have no black and white
    with pytest.raises(DataError, match=r"transforms\.value_range"):
        read_image(wide)
    big = read_file(write_nifti(tmp_path / "big.nii", VOLUME[:, :, 0].astype(">i4")))
    assert big.dtype == np.dtype("=i4") and big.tolist() == VOLUME[:, :, 0].T.tolist()
    gaps = read_file(write_nifti(tmp_path / "gaps.nii", np.array([[np.nan, 1.5]])))
    assert gaps.tolist() == [[None], [1.5]]  # numpy.ma: what is no number is masked
    colors = np.zeros((4, 3, 1), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    colors["G"][3, 1] = 9
    found = read_file(write_nifti(tmp_path / "colors.nii", colors))
    assert found.shape == (3, 4, 3) and found[1, 3].tolist() == [0, 9, 0] and found.sum() == 9
    channels = np.arange(4 * 3 * 2 * 5).reshape(4, 3, 2, 5).astype(np.int16)
    found = read_file(write_nifti(tmp_path / "channels.nii.gz", channels), frame=1)
    assert found.tolist() == channels[:, :, 1].swapaxes(0, 1).tolist()
    with pytest.raises(ReadError, match="complex64"):
        read_header(write_nifti(tmp_path / "complex.nii", np.zeros((4, 3, 2), np.complex64)))
    with pytest.raises(ReadError, match="a volume has three axes"):
        read_header(write_nifti(tmp_path / "five.nii", np.zeros((4, 3, 2, 2, 2), np.int16)))


def test_where_a_volume_lies(tmp_path: Path) -> None:
    assert medical.grid_of(write_nifti(tmp_path / "a.nii", VOLUME)) == tuple(AFFINE[:3].ravel())
    assert medical.grid_of(write_nifti(tmp_path / "b.nii", VOLUME, np.eye(4))) is None


def test_files_that_are_no_volumes(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "a.nii", VOLUME)
    content = path.read_bytes()
    for number, (changed, message) in enumerate(
        [
            (content[:-1], "it was cut short, or is no volume"),
            (content[:200], "no NIfTI file"),
            (b"", "empty"),
            (b"\0" * 1000, "no NIfTI file"),
            (content[:344] + b"ni1\0" + content[348:], "an .hdr with its .img"),
            (content[:42] + struct.pack("<7h", 32767, 32767, 32767, 1, 1, 1, 1) + content[56:], "cut short"),
            (content[:42] + struct.pack("<7h", -4, 3, 2, 1, 1, 1, 1) + content[56:], "three axes"),
            (content[:108] + struct.pack("<f", 1e12) + content[112:], "cut short"),
            (content[:108] + struct.pack("<f", float("nan")) + content[112:], "cannot be read"),
            (content[:70] + struct.pack("<h", 4711) + content[72:], "4711"),
        ]
    ):
        file = tmp_path / f"{number}.nii"
        file.write_bytes(changed)
        with pytest.raises(ReadError, match=message):
            read_header(file)
        packed = tmp_path / f"{number}.nii.gz"
        packed.write_bytes(gzip.compress(changed) if changed else b"")
        with pytest.raises(ReadError):
            read_file(packed, frame=0)


def test_a_small_file_is_not_unpacked_to_a_huge_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A header may promise what deflate cannot hold, and what it can: both are told before numbers are read."""
    content = write_nifti(tmp_path / "a.nii", VOLUME).read_bytes()
    huge = content[:42] + struct.pack("<7h", 30000, 30000, 1, 1, 1, 1, 1) + content[56:]
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(huge))
    with pytest.raises(ReadError, match="1800000352 bytes, and the file holds"):
        read_header(tmp_path / "b.nii.gz")
    monkeypatch.setattr(medical, "LARGEST", 10)
    with pytest.raises(ReadError, match="GiB: at most 2 are read at once"):
        read_header(tmp_path / "a.nii")


# -- DICOM ------------------------------------------------------------------------------------------------------------

FRAME = np.array([[0, 1, 2], [3, 4, 4095]], np.uint16)


@pytest.mark.parametrize("syntax", [EXPLICIT, RLE])
def test_frames(tmp_path: Path, syntax: str) -> None:
    path = write_dicom(tmp_path / "a.dcm", FRAME, syntax)
    assert read_header(path).size == (2, 3)
    found = read_file(path)
    assert found.tolist() == FRAME.tolist() and found.dtype == np.int32
    path = write_dicom(tmp_path / "b.dcm", np.stack([FRAME, FRAME + 1]), syntax)
    assert read_header(path).frames == 2
    assert read_file(path, Window(0, 1, 2, 2), 1).tolist() == (FRAME[:, 1:] + 1).tolist()
    with pytest.raises(ReadError, match="holds 2 pages or frames"):
        read_file(path)


def test_stored_values_become_what_they_stand_for(tmp_path: Path) -> None:
    scaled = {"RescaleSlope": 2, "RescaleIntercept": -1024}
    found = read_file(write_dicom(tmp_path / "ct.dcm", FRAME, **scaled))
    assert found.dtype == np.int32 and found.tolist() == (FRAME.astype(int) * 2 - 1024).tolist()
    found = read_file(write_dicom(tmp_path / "pet.dcm", FRAME, RescaleSlope="0.5", RescaleIntercept=0))
    assert found.tolist() == (FRAME * 0.5).tolist()
    signed = FRAME.astype(np.int16) - 2
    assert read_file(write_dicom(tmp_path / "signed.dcm", signed)).tolist() == signed.tolist()
    bits = {"BitsStored": 12, "HighBit": 11}
    found = read_file(write_dicom(tmp_path / "overlay.dcm", FRAME | 0x8000, **bits))
    assert found.tolist() == FRAME.tolist()  # an overlay in the bits above those of the values
    inverted = {"PhotometricInterpretation": "MONOCHROME1"}
    found = read_file(write_dicom(tmp_path / "xray.dcm", FRAME, **bits, **inverted))
    assert found.tolist() == (4095 - FRAME).tolist()
    found = read_file(write_dicom(tmp_path / "small.dcm", FRAME.astype(np.uint8), **inverted))
    assert found.dtype == np.uint8 and found.tolist() == (255 - FRAME.astype(np.uint8)).tolist()


def test_slope_of_an_enhanced_image(tmp_path: Path) -> None:
    transformation = pydicom.Dataset()
    transformation.RescaleSlope, transformation.RescaleIntercept = 3, 1
    group = pydicom.Dataset()
    group.PixelValueTransformationSequence = [transformation]
    path = write_dicom(tmp_path / "a.dcm", FRAME, SharedFunctionalGroupsSequence=[group])
    assert read_file(path).tolist() == (FRAME.astype(int) * 3 + 1).tolist()


def test_lossy_images_say_so(tmp_path: Path) -> None:
    assert read_header(write_dicom(tmp_path / "a.dcm", FRAME, LossyImageCompression="01")).lossy
    assert not read_header(write_dicom(tmp_path / "b.dcm", FRAME)).lossy


@pytest.mark.parametrize(
    ("elements", "message"),
    [
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.66.4"}, "Segmentation Storage: its frames are segments"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "its pixels are PALETTE COLOR"),
        ({"NumberOfFrames": 10**9}, "1000000000 frames of 2 x 3.*cut short"),
        ({"Rows": 60000, "Columns": 60000}, "cut short"),
        ({"Rows": 0}, "has no pixels"),
        ({"BitsAllocated": 0}, "cut short"),
    ],
)
def test_dicom_files_that_are_not_read(tmp_path: Path, elements: dict[str, Any], message: str) -> None:
    path = write_dicom(tmp_path / "a.dcm", FRAME, **elements)
    with pytest.raises(ReadError, match=message):
        read_header(path)
    with pytest.raises(ReadError, match=message):
        read_file(path)


def test_what_is_no_dicom_file(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a.dcm", FRAME)
    content = path.read_bytes()
    for changed, message in ((content[128:], "does not begin as DICOM"), (content[:150], "."), (b"", "empty")):
        path.write_bytes(changed)
        with pytest.raises(ReadError, match=message):
            read_file(path)
    path.write_bytes(content[:-4])
    with pytest.raises(ReadError):
        read_file(path)
    image = pydicom.dcmread(write_dicom(tmp_path / "b.dcm", FRAME))
    image.file_meta.TransferSyntaxUID = medical.DEFLATED
    image.save_as(tmp_path / "c.dcm", enforce_file_format=True)
    with pytest.raises(ReadError, match=r"dcmconv \+te"):
        read_header(tmp_path / "c.dcm")


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    volume, image = write_nifti(tmp_path / "a.nii", VOLUME), write_dicom(tmp_path / "a.dcm", FRAME)
    for name in ("nibabel", "pydicom", "pydicom.pixels"):
        monkeypatch.setitem(__import__("sys").modules, name, None)
    for path in (volume, image):
        with pytest.raises(UsageError, match=r"pip install 'segtune\[medical\]'"):
            read_header(path)


@pytest.mark.parametrize("kind", ["a.nii", "a.nii.gz", "a.dcm"])
def test_damaged_files_raise_nothing_else(tmp_path: Path, kind: str) -> None:
    """One to four bytes of a header changed at random: it is read, or named in an error."""
    path = tmp_path / kind
    content = (write_dicom(path, FRAME) if kind == "a.dcm" else write_nifti(path, VOLUME)).read_bytes()
    plain = gzip.decompress(content) if kind.endswith(".gz") else content
    random = np.random.default_rng(0)
    read = 0
    for _ in range(300):
        changed = bytearray(plain)
        for place in random.integers(0, len(plain), random.integers(1, 5)):
            changed[place] = random.integers(256)
        path.write_bytes(gzip.compress(changed) if kind.endswith(".gz") else changed)
        try:
            header = read_header(path)
            found = read_file(path, frame=0)
        except ReadError:
            continue
        assert found.shape[:2] == header.size
        read += 1
    assert 20 < read < 300
