"""What of a conversion is finished."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from segtune.data.journal import JOURNAL, Journal
from segtune.errors import UsageError
from segtune.whole_files import write_whole


def finish(journal: Journal, name: str) -> None:
    write_whole(journal.folder / name, b"content")
    journal.add(name, {"files": [name], "samples": 1})


def test_what_was_finished_is_found_again(tmp_path: Path) -> None:
    first = Journal(tmp_path / "out", {"tile": 3})
    finish(first, "a")
    finish(first, "b")
    (tmp_path / "out" / "b").unlink()
    second = Journal(tmp_path / "out", {"tile": 3})
    assert [second.has(name) for name in "abc"] == [True, False, False]
    assert second.done["a"] == {"files": ["a"], "samples": 1}


@pytest.mark.parametrize("torn", ['{"name": "b", "fi', '{"name": "b"}\nrubbish\n{"name": "c", "files": []}\n', ""])
def test_torn_lines_are_dropped(tmp_path: Path, torn: str) -> None:
    finish(Journal(tmp_path, {}), "a")
    with (tmp_path / JOURNAL).open("a") as file:
        file.write(torn)
    again = Journal(tmp_path, {})
    assert again.has("a") and "c" not in again.done
    finish(again, "d")
    assert [json.loads(line).get("name") for line in (tmp_path / JOURNAL).read_text().splitlines()][-1] == "d"
    assert Journal(tmp_path, {}).has("d")


@pytest.mark.parametrize(
    ("settings", "what"), [({"tile": 4, "form": "x"}, "tile"), ({"tile": 4, "form": "y"}, "tile, form")]
)
def test_other_settings(tmp_path: Path, settings: dict[str, Any], what: str) -> None:
    finish(Journal(tmp_path, {"tile": 3, "form": "x"}), "a")
    with pytest.raises(UsageError, match=rf"other settings \({what}\)"):
        Journal(tmp_path, settings)
    assert Journal(tmp_path, {"tile": 3, "form": "x"}).has("a")


def test_folders_of_other_things(tmp_path: Path) -> None:
    for number in range(7):
        (tmp_path / f"{number}.txt").touch()
    with pytest.raises(UsageError, match=r"holds other things \(0.txt, 1.txt, 2.txt, 3.txt, 4.txt and 2 more\)"):
        Journal(tmp_path, {})
    assert len(list(tmp_path.iterdir())) == 7
