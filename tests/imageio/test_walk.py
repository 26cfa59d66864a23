"""Folders with links that go in circles, pipes and devices: passed over or named, never waited for."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from segtune.data.config import DatasetConfig
from segtune.data.dataset import scan_dataset
from segtune.errors import DataError
from segtune.imageio.read import ReadError, read_file, read_header, try_header
from segtune.imageio.walk import check_regular, walk_files, walk_folders

links = pytest.mark.skipif(os.name == "nt", reason="links and pipes of POSIX")


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(np.zeros((4, 6), np.uint8)).save(path)


def names(folder: Path) -> list[str]:
    return [file.relative_to(folder).as_posix() for file in walk_files(folder)]


def test_files_come_sorted_level_by_level_without_hidden_ones(tmp_path: Path) -> None:
    for name in ("b.png", "a.png", "x/c.png", "x/y/d.png", ".hidden/e.png", ".f.png"):
        picture(tmp_path / name)
    assert names(tmp_path) == ["a.png", "b.png", "x/c.png", "x/y/d.png"]
    assert [file.name for file in walk_files(tmp_path, ".png", depth=1)] == ["a.png", "b.png", "c.png"]
    assert [(folder.name, files) for folder, _, files in walk_folders(tmp_path / "x")] == [
        ("x", ["c.png"]),
        ("y", ["d.png"]),
    ]


def test_folders_that_are_taken_out_are_not_entered(tmp_path: Path) -> None:
    for name in ("a/1.png", "b/2.png"):
        picture(tmp_path / name)
    found = []
    for _, folders, files in walk_folders(tmp_path):
        folders[:] = [name for name in folders if name != "a"]
        found += files
    assert found == ["2.png"]


@links
def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    picture(tmp_path / "elsewhere/1.png")
    root = tmp_path / "root"
    picture(root / "a/2.png")
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "a/up").symlink_to(root)
    (root / "itself").symlink_to(root / "itself")
    (root / "a/b").symlink_to(root / "c")
    (root / "c").mkdir()
    (root / "c/d").symlink_to(root / "a")
    assert {name for name in names(root) if "/b" not in name and "c/" not in name} == {"a/2.png", "linked/1.png"}
    assert len(list(walk_folders(root))) < 10


@links
def test_folders_that_all_link_to_each_other_end(tmp_path: Path) -> None:
    folders = [tmp_path / str(number) for number in range(8)]
    for folder in folders:
        folder.mkdir()
    for folder in folders:
        for other in folders:
            (folder / f"to {other.name}").symlink_to(other)
    assert len(list(walk_folders(tmp_path))) < 8**4


@links
@pytest.mark.parametrize("suffix", [".png", ".npy", ".npz", ".tif", ".jpg"])
def test_pipes_devices_and_loops_are_never_opened(tmp_path: Path, suffix: str) -> None:
    pipe, device, loop = (tmp_path / f"{name}{suffix}" for name in ("pipe", "device", "loop"))
    os.mkfifo(pipe)
    device.symlink_to("/dev/zero")
    loop.symlink_to(loop)
    for path in (pipe, device, loop):
        for read in (read_header, read_file):
            with pytest.raises(ReadError, match=r"a named pipe or a device|symbolic links"):
                read(path)
        assert isinstance(try_header(path), ReadError)


@links
def test_a_data_set_with_a_pipe_and_a_loop_names_both(tmp_path: Path) -> None:
    for name in ("images/a.png", "masks/a.png", "masks/b.png", "images/c.png"):
        picture(tmp_path / name)
    os.mkfifo(tmp_path / "images/b.png")
    (tmp_path / "masks/c.png").symlink_to(tmp_path / "masks/c.png")
    (tmp_path / "images/again").symlink_to(tmp_path / "images")
    (tmp_path / "masks/round").symlink_to(tmp_path / "masks/round")
    os.mkfifo(tmp_path / "notes.json")
    os.mkfifo(tmp_path / "data.yaml")
    os.mkfifo(tmp_path / "annotations.xml")
    index = scan_dataset(DatasetConfig(path=str(tmp_path), val_fraction=0))
    assert [sample.id for sample in index.samples] == ["a"]
    assert {name for problem in index.problems for name in problem.files} == {"images/b.png", "masks/c.png"}


def test_what_is_no_file_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a file"):
        check_regular(tmp_path)
    with pytest.raises(FileNotFoundError):
        check_regular(tmp_path / "absent")
    with pytest.raises(DataError, match="cannot be listed"):
        list(walk_files(tmp_path / "absent"))
