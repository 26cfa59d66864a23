"""What a search for samples found: the samples, and what is wrong with the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

from tqdm.auto import tqdm

from segtune.errors import DataError

Item = TypeVar("Item")
Result = TypeVar("Result")


class Sample(NamedTuple):
    """An image and what labels it.

    Attributes:
        id: the path below the split's folder without suffix, "/" between folders; unique within its split.
        size: (height, width) as both are shown.
    """

    id: str
    split: str
    image: Path
    mask: Path
    size: tuple[int, int] = (0, 0)


class Problem(NamedTuple):
    """One kind of fault, with everything that has it.

    Attributes:
        kind: a word for programs, such as "image_without_mask".
        files: paths below the data set's folder (of two partners, the image's), or ids where there is no file.
        message: the fault and its first files in words, without a full stop.
        fix: what to do about it.
    """

    kind: str
    files: tuple[str, ...]
    message: str
    fix: str


@dataclass
class Scan:
    """The samples of a data set that can be used, sorted by split and id, and what is wrong with the rest."""

    root: Path
    samples: list[Sample] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def report(self, kind: str, what: str, files: Mapping[str, str], fix: str) -> None:
        """Note a problem of `files` (file -> how it is shown), if there are any, as "what (count): the first files"."""
        if files:
            message = f"{what} ({len(files)}): {first(list(files.values()))}"
            self.problems.append(Problem(kind, tuple(files), message, fix))

    def refuse(self) -> None:
        """Raise DataError where there are problems."""
        if self.problems:
            fixes = dict.fromkeys(problem.fix for problem in self.problems)
            raise DataError(f"{self.root}: {'; '.join(p.message for p in self.problems)}. {'. '.join(fixes)}")

    def below(self, path: Path) -> str:
        """A path as messages show it."""
        return str(path.relative_to(self.root) if path.is_relative_to(self.root) else path)


def first(names: Sequence[str], limit: int = 5) -> str:
    """The first of many names, and how many more there are."""
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def in_threads(function: Callable[[Item], Result], items: Sequence[Item], title: str) -> list[Result]:
    """`map` in order, with a bar on terminals when there is much to do."""
    with ThreadPoolExecutor() as pool:
        results: Iterable[Result] = pool.map(function, items)
        return list(tqdm(results, title, len(items), unit="sample", disable=True if len(items) < 500 else None))
