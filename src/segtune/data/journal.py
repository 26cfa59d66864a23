"""What of a long conversion is finished, so that a second call goes on where the first one ended."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segtune.data.scan import first
from segtune.errors import UsageError
from segtune.whole_files import write_whole

JOURNAL = ".cache/huggingface/segtune/convert.jsonl"  # where huggingface_hub keeps its own, which it does not upload


class Journal:
    """A file of one JSON object a line: first the settings of the conversion, then what was finished.

    Raises:
        UsageError: the folder holds things that no conversion of these settings has written.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder, self.path = folder, folder / JOURNAL
        self.done: dict[str, dict[str, Any]] = {}
        if self.path.is_file():
            self._read(dict(settings))
        elif held := self._held():
            raise UsageError(f"{folder} holds other things ({first(held)}): name a new folder")
        lines = [dict(settings), *({"name": name, **record} for name, record in self.done.items())]
        write_whole(self.path, "".join(f"{json.dumps(line)}\n" for line in lines).encode())  # without a torn last line

    def _held(self) -> list[str]:
        """What lies in the folder, apart from what a call leaves that ends at its very beginning."""
        names = {child.name for child in self.folder.iterdir()} if self.folder.exists() else set()
        return sorted(names - {Path(JOURNAL).parts[0]})

    def _read(self, settings: dict[str, Any]) -> None:
        lines = []
        for text in self.path.read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(text))
            except ValueError:
                break  # torn: what comes after it was not finished either
        found = lines[0] if lines else {}
        if other := [key for key, value in settings.items() if found.get(key) != value]:
            raise UsageError(
                f"{self.folder} holds a conversion with other settings ({', '.join(other)}): name a new folder, or "
                "repeat that call to complete it"
            )
        self.done = {line.pop("name"): line for line in lines[1:]}

    def has(self, name: str) -> bool:
        """Whether it is finished and its files are still there."""
        return name in self.done and all((self.folder / file).is_file() for file in self.done[name]["files"])

    def add(self, name: str, record: dict[str, Any]) -> None:
        """Note what was finished."""
        self.done[name] = record
        with self.path.open("a", encoding="utf-8") as file:
            file.write(f"{json.dumps({'name': name, **record})}\n")
