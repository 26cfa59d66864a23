from __future__ import annotations

import errno
import os
import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from segtune import files
from segtune.errors import DataError, FullDiskError, UsageError
from segtune.files import (
    atomic_path,
    check_manifest,
    is_full_disk,
    name_fault,
    path_inside,
    read_json,
    read_json_lines,
    recover,
    refuse_foreign,
    update_manifest,
    write_atomic,
    write_folder,
    write_manifest,
)


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
    assert [path.name for path in tmp_path.iterdir()] == ["best"]  # the last bytes of a full disk are given back


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 6489408 vs 6489296"),
        RuntimeError("basic_ios::clear: iostream error"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_called_that_whatever_its_writer_made_of_it(tmp_path: Path, error: Exception) -> None:
    def fail(folder: Path) -> None:
        raise error

    with pytest.raises(FullDiskError, match=rf"{tmp_path}/best cannot be written: the disk is full \(.* MB free in"):
        write_folder(tmp_path / "best", fail)
    assert list(tmp_path.iterdir()) == []
    wrapped = ValueError("An error occurred while generating the dataset")
    wrapped.__cause__ = error
    assert is_full_disk(wrapped)


def test_an_error_without_a_number_counts_where_no_room_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(folder: Path) -> None:
        raise OSError("1000000 requested and 131056 written")  # of numpy

    with pytest.raises(OSError, match="1000000 requested") as caught:
        write_folder(tmp_path / "best", fail)
    assert not isinstance(caught.value, FullDiskError)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda folder: SimpleNamespace(free=0))
    with pytest.raises(FullDiskError, match=r"the disk is full \(0.0 MB free in"):
        write_folder(tmp_path / "best", fail)
    assert not is_full_disk(PermissionError(errno.EACCES, "Permission denied"), tmp_path)
    assert not is_full_disk(RuntimeError("unable to allocate shared memory(shm): No space left on device"))


def test_every_changed_file_is_told_unless_it_was_meant(tmp_path: Path) -> None:
    generator = random.Random(1)
    for name in ("a", "sub/b"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(generator.randbytes(50))
    write_manifest(tmp_path, ".m.json")
    check_manifest(tmp_path, ".m.json", ["a"])
    with pytest.raises(DataError, match="does not list all files"):
        check_manifest(tmp_path, ".m.json", ["c"])
    for name in ("a", "sub/b"):
        whole = (tmp_path / name).read_bytes()
        flipped = bytes([whole[0] ^ 1]) + whole[1:]
        for content in (flipped, whole[:20], b"", None):
            if content is None:
                (tmp_path / name).unlink()
            else:
                (tmp_path / name).write_bytes(content)
            with pytest.raises(DataError, match=rf"{name} (is|has)"):
                check_manifest(tmp_path, ".m.json")
        (tmp_path / name).write_bytes(whole)
    (tmp_path / "a").write_text("mine")
    update_manifest(tmp_path / "a", ".m.json")
    check_manifest(tmp_path, ".m.json")
    update_manifest(tmp_path / "sub" / "b", ".m.json")  # a folder without one
    (tmp_path / ".m.json").write_text("[1]")
    with pytest.raises(DataError, match=r"m.json is missing or torn"):
        check_manifest(tmp_path, ".m.json")


def test_json_lines_without_a_torn_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "m.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert read_json_lines(tmp_path / "m.jsonl") == [{"step": 1}, {"step": 2}]
    assert caplog.text == ""


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


@pytest.mark.parametrize("damage", [b'{"step": 3', b"", b"7", b'{"step": "\xff"}', b'{"step"; 3}'])
def test_a_damaged_line_is_told_and_hides_no_other(
    tmp_path: Path, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    lines = [f'{{"step": {step}}}'.encode() for step in range(1, 6)]
    lines[2] = damage
    (tmp_path / "m.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    assert [line["step"] for line in read_json_lines(tmp_path / "m.jsonl")] == [1, 2, 4, 5]
    assert f"{tmp_path / 'm.jsonl'}: a line cannot be read and is left out: line 3 of 5" in caplog.text


def test_a_promised_last_line_that_is_missing_is_named() -> None:
    text = files.promise_last_line("# title", "# the end", "a: 1\nb: 2\n").encode()
    assert text == b"# title; '# the end' is the last line\na: 1\nb: 2\n# the end\n"
    assert files.missing_last_line(text) is None
    assert files.missing_last_line(text[:45]) == "# the end"
    assert files.missing_last_line(b"a: 1\n") is None  # nothing was promised


WRITE = (
    "import sys, time\nfrom pathlib import Path\nfrom segtune.files import write_folder\n"
    "def write(folder):\n    (folder / 'a').write_text('first')\n    print('begun', flush=True)\n    time.sleep(60)\n"
    "write_folder(Path(sys.argv[1]), write)\n"
)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows opens no folder")
def test_two_processes_do_not_write_one_folder(tmp_path: Path) -> None:
    """The second is refused and disturbs nothing; when the first is killed, what it left is no hindrance."""
    target = tmp_path / "out"
    process = subprocess.Popen([sys.executable, "-c", WRITE, str(target)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "begun\n"
        for call in (lambda: write_folder(target, lambda folder: None), lambda: recover(target)):
            with pytest.raises(UsageError, match=rf"{target} is being written by another process"):
                call()
        assert (tmp_path / ".out.tmp" / "a").read_text() == "first"
    finally:
        process.kill()
        process.communicate()
    write_folder(target, lambda folder: (folder / "a").write_text("second"))
    assert (target / "a").read_text() == "second" and [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_without_a_name_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    write_folder(Path(), lambda folder: (folder / "a").write_text("new"))
    assert (tmp_path / "here" / "a").read_text() == "new"


def test_only_what_a_command_wrote_is_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    refuse_foreign(folder, "note", ("masks",), "--output")  # nothing is there
    (folder / "masks").mkdir(parents=True)
    (folder / ".hidden").touch()
    with pytest.raises(UsageError, match=r"it holds masks, which this command did not write"):
        refuse_foreign(folder, "note", ("masks",), "--output")  # somebody else has made it
    (folder / "note").touch()
    refuse_foreign(folder, "note", ("masks",), "--output", [tmp_path / "elsewhere.png"])
    with pytest.raises(UsageError, match=rf"--output {folder}: it holds .*in\.png, which would go with it"):
        refuse_foreign(folder, "note", ("masks",), "--output", [tmp_path / "out" / "masks" / ".." / "masks" / "in.png"])
    (folder / "thesis.tex").touch()
    with pytest.raises(UsageError, match=r"it holds thesis\.tex, which this command did not write"):
        refuse_foreign(folder, "note", ("masks",), "--output")


def test_several_processes_may_write_one_file(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "a", shared=True) as first:
        first.write_text("1")
        child = subprocess.run(
            [sys.executable, "-c", "import sys\nfrom pathlib import Path\nfrom segtune.files import atomic_path\n"
             "with atomic_path(Path(sys.argv[1]), shared=True) as path:\n    path.write_text('2')", tmp_path / "a"]
        )  # fmt: skip
        assert child.returncode == 0 and (tmp_path / "a").read_text() == "2"
    assert (tmp_path / "a").read_text() == "1" and len(list(tmp_path.iterdir())) == 1
