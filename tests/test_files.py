from __future__ import annotations

import os
from pathlib import Path

import pytest

from segtune.errors import DataError
from segtune.files import name_fault, path_inside, read_json, read_json_lines, write_atomic, write_folder


def test_a_file_is_written_as_a_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "folder" / "a.txt"
    write_atomic(path, b"first")

    def fail(self: Path, content: bytes) -> int:
        original(self, content[:2])
        raise OSError("disk full")

    original = Path.write_bytes
    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, b"second")
    assert path.read_bytes() == b"first"


def test_a_write_that_fails_leaves_the_old_folder(tmp_path: Path) -> None:
    target = tmp_path / "best"
    write_folder(target, lambda folder: (folder / "a").write_text("old"))

    def fail(folder: Path) -> None:
        (folder / "a").write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_folder(target, fail)
    assert (target / "a").read_text() == "old"


def test_json_lines_without_a_torn_end(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert read_json_lines(tmp_path / "m.jsonl") == [{"step": 1}, {"step": 2}]


@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd", "../up", "a/../up", "a/./b", "a//b", "a/", "", "..", "...", "a/.. /b", "C:up", "c:/up",
        "\\\\host\\share", "a\\b", "x\x00", "x\n", "\x1b[2J", "\u202egpj", "\udcff", "con", "NUL.png", "a/Lpt1/b",
        "n" * 231, "é" * 116, "/".join(["n" * 200] * 6),
    ],
)  # fmt: skip
def test_names_that_are_none_are_refused(tmp_path: Path, name: str) -> None:
    assert name_fault(name)
    with pytest.raises(DataError, match="cannot be the name of a file: "):
        path_inside(tmp_path, name)


@pytest.mark.parametrize(
    "name", ["a", "bonn/0007", "日本/été (1)", "a..b", ".hidden", "10:30", "console", "n" * 230, "👩‍🌾"]
)
def test_other_names_are_kept_as_they_are(tmp_path: Path, name: str) -> None:
    assert path_inside(tmp_path, name, suffix=".png") == tmp_path / f"{name}.png"


@pytest.mark.skipif(os.name == "nt", reason="links of POSIX")
def test_links_that_lead_out_are_refused(tmp_path: Path) -> None:
    root, victim = tmp_path / "run", tmp_path / "victim.png"
    root.mkdir()
    victim.write_text("precious")
    (root / "a.png").symlink_to(victim)
    (root / "up").symlink_to(tmp_path)
    for name in ("a", "up/victim"):
        with pytest.raises(DataError, match=r"would be written outside .*remove the symbolic link"):
            path_inside(root, name, suffix=".png")
    (tmp_path / "linked").symlink_to(root)
    assert path_inside(tmp_path / "linked", "b", suffix=".png") == tmp_path / "linked/b.png"


def test_json_of_any_depth_is_an_error_of_value(tmp_path: Path) -> None:
    (tmp_path / "deep.json").write_text("[" * 100_000 + "]" * 100_000)
    with pytest.raises(ValueError, match="nested too deeply"):
        read_json(tmp_path / "deep.json")
