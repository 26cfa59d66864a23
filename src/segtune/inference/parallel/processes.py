"""Processes that share one task: which part is whose and, by files of a common folder, which of them ends last.

No process waits for another one and no messages pass between them, so that one that dies leaves nobody hanging.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from segtune.errors import DataError, UsageError
from segtune.files import parse_json, read_json, write_atomic

logger = logging.getLogger(__name__)

Item = TypeVar("Item")

VARIABLES = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}  # as accelerate launch and torchrun set them
SETTINGS = "settings.json"


@dataclass(frozen=True)
class Processes:
    """This process among those that were started for one task.

    Attributes:
        index: its number, from 0.
        count: of all processes on all machines.
        local: its number on its machine, from 0.
    """

    index: int = 0
    count: int = 1
    local: int = 0

    @classmethod
    def launched(cls) -> Processes:
        """As the environment tells it by RANK, WORLD_SIZE and LOCAL_RANK; alone where these are not set.

        Raises:
            UsageError: they are no numbers, or do not go together.
        """
        texts = {name: os.environ.get(name) or default for name, default in VARIABLES.items()}
        told = " ".join(f"{name}={text}" for name, text in texts.items())
        if not all(text.isdecimal() for text in texts.values()):
            raise UsageError(f"{told} in the environment: they must be whole numbers")
        found = cls(*map(int, texts.values()))
        if found.index >= found.count:
            raise UsageError(f"{told} in the environment: RANK must be below WORLD_SIZE, which counts all processes")
        return found

    def share(self, items: Sequence[Item]) -> list[Item]:
        """Every n-th item, from this process's on: each item is in the share of one process."""
        return list(items[self.index :: self.count])

    def device(self, name: str | None) -> str | None:
        """The GPU of this process, where several share those of a machine and the user has not named one by number."""
        if self.count == 1 or name not in (None, "cuda") or not torch.cuda.is_available():
            return name
        return f"cuda:{self.local % torch.cuda.device_count()}"


def weights_digest(model: nn.Module) -> str:
    """16 digits of the SHA-256 of the names, types, shapes and values of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def refuse_other_settings(content: bytes | None, settings: Mapping[str, Any], what: str, place: str) -> None:
    """Refuse to go on from results that were made with other settings.

    Args:
        content: of the note of them, which is at `place`; None where there is none.

    Raises:
        UsageError: a setting differs.
        DataError: the note is damaged.
    """
    if content is None:
        return
    try:
        found = parse_json(content.decode())["settings"]
        theirs = {name: value for name, value in found.items() if name in settings}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{place} is damaged ({error}): remove it and the {what}, or name another place") from error
    for name, value in theirs.items():
        if value != settings[name]:
            raise UsageError(
                f"there are {what} that were made with {name} {value}, now it is {settings[name]}: name another place, "
                f"or remove them and {place}"
            )


def settings_note(settings: Mapping[str, Any]) -> str:
    """What lies beside results; see `refuse_other_settings`."""
    return json.dumps({"settings": settings}, indent=2) + "\n"


class WorkFolder:
    """A hidden folder in which processes note what they do and that they have ended, and earlier ones noted it.

    Args:
        path: the same one in all processes, on all machines.
        settings: what results depend on, JSON-able; those that lie there must have been made with the same.
        what: the results, for messages: "masks".
    """

    def __init__(self, path: Path, processes: Processes, settings: Mapping[str, Any], what: str) -> None:
        self.path, self.processes, self.settings, self.what = path, processes, dict(settings), what
        self._notes = path / "processes"
        self._note = self._notes / f"{processes.index}-of-{processes.count}.json"

    def begin(self) -> None:
        """Note that this process works.

        Raises:
            UsageError: results that lie there were made with other settings.
            DataError: a note is damaged.
        """
        for path in (self.path / SETTINGS, *sorted(self._notes.glob("*.json"))):
            self._compare(path)
        self._write(is_done=False)

    def _compare(self, path: Path) -> None:
        try:
            content = path.read_bytes()
        except FileNotFoundError:  # the process that ended last has put it away
            return
        refuse_other_settings(content, self.settings, self.what, str(path))

    def end(self, is_whole: Callable[[], bool]) -> bool:
        """Note that this process has done its share; True in the one that ends last, which puts the results together.

        Args:
            is_whole: whether the results of all processes are there; asked where all have noted their end.
        """
        self._write(is_done=True)
        if not (self._all_ended() and is_whole()):
            logger.info("the share of this process is done; the one that ends last says so when all %s are", self.what)
            return False
        claimed = self.path / f".{self.processes.index}-{os.getpid()}"
        try:
            self._notes.rename(claimed)  # which one process can do once
        except OSError:
            return False
        write_atomic(self.path / SETTINGS, settings_note(self.settings))
        shutil.rmtree(claimed, ignore_errors=True)
        return True

    def _write(self, is_done: bool) -> None:
        write_atomic(self._note, json.dumps({"settings": self.settings, "done": is_done}) + "\n")

    def _all_ended(self) -> bool:
        count = self.processes.count
        return all(_has_ended(self._notes / f"{index}-of-{count}.json") for index in range(count))


def _has_ended(note: Path) -> bool:
    try:
        return read_json(note)["done"] is True
    except (OSError, ValueError, KeyError, TypeError):
        return False
