"""A zip becomes a folder beside it, or an error, and nothing else."""

from __future__ import annotations

import os
import zipfile
from collections import namedtuple
from pathlib import Path
from stat import S_IFLNK

import pytest

from segtune.errors import DataError, UsageError
from segtune.imageio import archives
from segtune.imageio.archives import MARK, unpack_beside


def packed(folder: Path, *names: str, content: bytes = b"picture") -> Path:
    path = folder / "data.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, content)
    return path


def files(folder: Path) -> list[str]:
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in found if name != MARK)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["images/a.png", "masks/a.png"], ["images/a.png", "masks/a.png"]),
        (["my data/v2/images/a.png", "my data/v2/masks/a.png"], ["images/a.png", "masks/a.png"]),
        (["top/", "top/train/a.png", "top/readme.txt"], ["readme.txt", "train/a.png"]),
        (["train\\images\\a.png", "valid\\images\\b.png"], ["train/images/a.png", "valid/images/b.png"]),
        (["data/a.png", "__MACOSX/data/._a.png", "data/.DS_Store", "data/._b.png"], ["a.png"]),
        (["a.png"], ["a.png"]),
    ],
)
def test_what_is_in_it_lies_in_the_folder_of_its_name(tmp_path: Path, names: list[str], expected: list[str]) -> None:
    found = unpack_beside(packed(tmp_path, *names))
    assert found == (tmp_path / "data", len(expected), 7 * len(expected))
    assert files(found.folder) == expected
    assert {(found.folder / name).read_bytes() for name in expected} == {b"picture"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "data.zip"]


def test_it_is_unpacked_once_and_a_folder_of_somebody_is_left_alone(tmp_path: Path) -> None:
    archive = packed(tmp_path, "a.png")
    folder = unpack_beside(archive).folder
    (folder / "a.png").write_bytes(b"mine")
    assert unpack_beside(archive) == (folder, None, None) and (folder / "a.png").read_bytes() == b"mine"
    for change in (lambda: packed(tmp_path, "b.png", "c.png"), (folder / MARK).unlink):
        change()
        with pytest.raises(UsageError, match=r"data, which is there and does not come of it as it is now: name "):
            unpack_beside(archive)
    assert files(folder) == ["a.png"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a/../../out.png"], r"no file of a data set: it has a part that is empty or of dots"),
        (["..\\out.png"], r"it has a part that is empty or of dots"),
        (["/etc/out.png"], r"it is absolute"),
        (["C:/out.png"], r"it is absolute"),
        (["images/con.png"], r"'con.png' is a device on Windows"),
        (["images/a\n.png"], r"it has a control character"),
        (["images/a.png", "images/A.PNG"], r"two files 'images/A.PNG', which are one on some systems"),
        (["images", "images/a.png"], r"holds 'images/a.png' below a file of the same name"),
        ([], r"holds 0 files"),
        (["__MACOSX/a"], r"holds 0 files"),
    ],
)
def test_names_that_lead_elsewhere_or_are_one(tmp_path: Path, names: list[str], message: str) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(DataError, match=message):
        unpack_beside(packed(tmp_path / "in", *names))
    assert files(tmp_path) == ["in/data.zip"]


def test_a_link_is_refused(tmp_path: Path) -> None:
    entry = zipfile.ZipInfo("images/a.png")
    entry.external_attr = (S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        archive.writestr(entry, "/etc/passwd")
    with pytest.raises(DataError, match=r"holds a link, 'images/a\.png'"):
        unpack_beside(tmp_path / "data.zip")


def test_an_encrypted_one_is_refused(tmp_path: Path) -> None:
    path = packed(tmp_path, "a.png")
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1  # of the flags in the directory at the end
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"is encrypted: unpack it with its password"):
        unpack_beside(path)


def test_bombs_are_refused_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = packed(tmp_path, "a.png", content=bytes(2**20))
    assert path.stat().st_size < 2**20 / 100
    monkeypatch.setattr(archives, "SMALL", 2**19)
    with pytest.raises(DataError, match=r"of 0\.0 MiB would become 1\.0 MiB, as no pictures do: if you trust it"):
        unpack_beside(path)
    monkeypatch.setattr(archives, "SMALL", 2**20)  # masks of one value are a bomb in the small
    assert unpack_beside(path).bytes == 2**20


def test_an_entry_that_says_less_than_it_holds_is_damaged(tmp_path: Path) -> None:
    """No more is written than was said; the checksum then differs."""
    path = packed(tmp_path, "a.png", content=bytes(70_001))
    content = path.read_bytes()
    size = (70_001).to_bytes(4, "little")
    assert content.count(size) == 2
    path.write_bytes(content.replace(size, (100).to_bytes(4, "little")))
    with pytest.raises(DataError, match=r"data\.zip cannot be unpacked \("):
        unpack_beside(path)
    assert [item.name for item in tmp_path.iterdir()] == ["data.zip"]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.9])
def test_a_damaged_one_leaves_nothing(tmp_path: Path, share: float) -> None:
    path = packed(tmp_path, "images/a.png", "masks/a.png", content=os.urandom(5000))
    content = bytearray(path.read_bytes())
    for place in range(int(share * len(content)), int(share * len(content)) + 900):
        content[place % len(content)] ^= 0x5A
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"data\.zip cannot be unpacked|is encrypted|holds"):
        unpack_beside(path)
    assert [item.name for item in tmp_path.iterdir()] == ["data.zip"]


def test_no_room_and_no_right_to_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = packed(tmp_path, "a.png", content=os.urandom(2**20))
    usage = namedtuple("usage", "total used free")
    with monkeypatch.context() as planted:
        planted.setattr(archives.shutil, "disk_usage", lambda place: usage(2**30, 2**30, 1000))
        with pytest.raises(UsageError, match=r"becomes 1\.0 MiB, and .* has 0\.0 MiB free: unpack it elsewhere"):
            unpack_beside(path)
    monkeypatch.setattr(archives.os, "access", lambda place, how: False)
    with pytest.raises(UsageError, match=r"cannot be written to: unpack it elsewhere \(python -m zipfile -e"):
        unpack_beside(path)
