"""Data set index: the samples that a search found, and what is wrong with the others."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar

from segtune.bars import progress_bar
from segtune.data.annotations.tally import Tally
from segtune.data.class_names import plain
from segtune.errors import DataError, listed

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)

# Problems of single samples, which may be skipped; others would change what the masks of the rest mean.
COST_SAMPLES = (
    "image_without_mask",
    "mask_without_image",
    "id_without_files",
    "unreadable",
    "size_mismatch",
    "grid_mismatch",
    "file_missing",
    "row_incomplete",
    "image_missing",
    "mask_missing",
    "annotation_unreadable",
    "annotation_without_image",
    "split_without_annotations",
)

AT_ONCE = 16  # items that a thread takes together: handing over each of many small ones costs more than their work

Item = TypeVar("Item")
Result = TypeVar("Result")


class Sample(NamedTuple):
    """An image and what labels it.

    Attributes:
        id: the path below the split's folder without suffix, "/" between folders; unique within its split.
        image: the file that holds it.
        mask: the file that holds it or describes it.
        size: (height, width) as both are shown; (0, 0) where that is not known without reading them.
        image_part: which part of the file is meant, see `lazy_rows.Reader`; `mask_part` likewise.
        frames: how many pages or frames the image's file has, and the mask's.
    """

    id: str
    split: str
    image: Path
    mask: Path
    size: tuple[int, int] = (0, 0)
    image_part: str = ""
    mask_part: str = ""
    frames: tuple[int, int] = (1, 1)


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
class DatasetIndex:
    """The samples of a data set that can be used, sorted by split and id, and what is wrong with the rest.

    Attributes:
        root: the data set's folder or file; of the Hub, its name.
        format: what was read, see `DatasetConfig.format`.
        remarks: what was left out without being a fault.
        classes: what the format says about mask values: value -> name, None for ignored ones. None: nothing.
        tables: data sets that `datasets` reads itself, by split; their samples are rows.
        rejected: samples with both files, of which one cannot be read or whose sizes differ.
        lossy: files of masks, stored as pictures, in a format that does not keep values.
        val_is_drawn: the val split is a share of the training samples, since the data has none.
        tally: where the annotations of annotation files ended; None for masks that are stored as pictures.
    """

    root: Path
    format: str = ""
    samples: list[Sample] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    classes: Mapping[int, str | None] | None = None
    tables: dict[str, datasets.Dataset] | None = None
    rejected: list[Sample] = field(default_factory=list)
    lossy: list[Path] = field(default_factory=list)
    val_is_drawn: bool = False
    tally: Tally | None = None

    def report(self, kind: str, what: str, files: Mapping[str, str], fix: str) -> None:
        """Note a problem of `files` (file -> how it is shown), if there are any, as "what (count): the first files"."""
        if files:
            message = f"{what} ({len(files)}): {listed(list(files.values()))}"
            self.problems.append(Problem(kind, tuple(files), message, fix))

    def raise_or_skip(self, on_error: Literal["raise", "skip"] = "raise") -> None:
        """Raise DataError where there are problems; with "skip", warn of those that only cost samples."""
        skipped = [problem for problem in self.problems if on_error == "skip" and problem.kind in COST_SAMPLES]
        refused = [problem for problem in self.problems if problem not in skipped]
        if refused:
            fixes = dict.fromkeys(problem.fix for problem in refused)
            raise DataError(f"{self.root}: {'; '.join(p.message for p in refused)}. {'. '.join(fixes)}")
        for problem in skipped:
            logger.warning("%s: skipped %s", self.root, problem.message)
        if skipped and not self.samples:
            raise DataError(f"{self.root}: nothing is left without what was skipped: {skipped[0].message}")

    def report_names_alike(self) -> None:
        """Warn of classes whose names are equal but for case, blanks and signs between words."""
        groups: dict[str, list[str]] = {}
        for name in filter(None, (self.classes or {}).values()):
            groups.setdefault(plain(name) or name, []).append(name)
        if alike := [names for names in groups.values() if len(names) > 1]:
            shown = listed([" and ".join(map(repr, names)) for names in alike])
            self.remarks.append(f"classes of nearly the same name, which dataset.labels can make one: {shown}")
            logger.warning("%s: %s", self.root, self.remarks[-1])

    def below(self, path: Path) -> str:
        """A path as messages show it."""
        return str(path.relative_to(self.root) if path.is_relative_to(self.root) else path)


def in_threads(function: Callable[[Item], Result], items: Sequence[Item], title: str) -> list[Result]:
    """`map` in order, with a bar on terminals when there is much to do."""
    parts = [items[start : start + AT_ONCE] for start in range(0, len(items), AT_ONCE)]
    results: list[Result] = []
    hidden = len(items) < 500
    with ThreadPoolExecutor() as pool, progress_bar(desc=title, total=len(items), unit="sample", hidden=hidden) as bar:
        for part in pool.map(lambda part: list(map(function, part)), parts):
            results += part
            bar.update(len(part))
    return results
