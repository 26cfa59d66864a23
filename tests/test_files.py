from __future__ import annotations

from pathlib import Path

import pytest

from segtune.files import write_atomic


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
