"""Commands that write a folder or a file, besides a training: the same words for kills and for full disks."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from faults import forks
from faults.workplace import Workplace, convert_words, files_of

SHORT = ("training.max_steps=2", "training.eval_every=1", "training.save_every=1")


@dataclass(frozen=True)
class Writer:
    """A command that writes below `disk/`.

    Attributes:
        words: of the command.
        again: further words of a second call, where a first one may have left something.
        differs: a regular expression of files that differ from one time to the next: they are only to be there.
        starts: it starts trainings in processes of their own, which takes longer.
    """

    words: list[str]
    again: tuple[str, ...] = ()
    differs: str = r"(?!)"
    starts: bool = False


PAGES = r".*\.html"
RUNS = rf"{PAGES}|.*metrics\.jsonl|.*study\.journal|.*tune\.json"  # which say how long something took
ASIDE = r"(.*/)?\..*|.*/checkpoints/.*|.*/overlays/.*"  # notes and states of what goes on, of which some stay
COUNT = "operations"  # a file beside `disk/`
LONG = 180.0  # seconds that a command may take that starts trainings: each of them imports all libraries
WRITERS: dict[str, Writer] = {
    "convert folder": Writer(convert_words("folder", "disk/out")),
    "convert parquet": Writer(convert_words("parquet", "disk/out")),
    "predict": Writer(
        ["predict", "plain/best", "data/images/test", "--output", "disk/masks", "--overlay"], ("--overwrite",)
    ),
    "ensemble": Writer(
        ["predict", "plain/best", "plain/final", "data/images/test", "--output", "disk/masks"], ("--overwrite",)
    ),
    "overlays": Writer(["evaluate", "plain/best", "tiny.yaml", "--overlays", "disk/overlays", "--save", "disk/a.npz"]),
    "report": Writer(["report", "plain", "--output", "disk/report.html"], differs=PAGES),
    "doctor": Writer(["doctor", "data", "--html", "disk/page.html"], differs=PAGES),
    "label": Writer(["label", "plain/best", "data/images/test", "-o", "disk/labelled", "--min-confidence", "0.2"]),
    "select": Writer(
        ["select", "plain/best", "data/images/train", "-n", "2", "-o", "disk/chosen", "--to", "labelme"],
        ("--resume",),
        differs=PAGES,
    ),
    "soup": Writer(["soup", "plain/best", "plain/final", "-o", "disk/soup"]),
    "checkpoint of others": Writer(["convert", "others.pth", "disk/converted"]),
    "propose": Writer(["recipes", "propose", "data", "-o", "disk/proposed.yaml", "training.batch_size=2"]),
    "crossval": Writer(
        ["crossval", "tiny.yaml", "--folds", "2", "--output", "disk/cv", *SHORT], differs=RUNS, starts=True
    ),
    "tune": Writer(["tune", "tiny.yaml", "--trials", "2", "--output", "disk/study", *SHORT], differs=RUNS, starts=True),
}


def prepare_writer(place: Workplace, folder: Path) -> None:
    """Data, recipe, a run, and a checkpoint in the layout of others."""
    place.prepare(folder)
    shutil.copytree(place.undisturbed("plain"), folder / "plain")
    shutil.copy(place.others(), folder / "others.pth")


def written(place: Workplace, name: str) -> dict[str, bytes]:
    """The files that a command writes where there is room."""
    return files_of(written_folder(place, name) / "disk")


def written_folder(place: Workplace, name: str) -> Path:
    """Where a command has run undisturbed; what it wrote is in `disk/`."""
    folder = place.root / f"written-{name.replace(' ', '-')}"
    if not folder.exists():
        prepare_writer(place, folder)
        (folder / "disk").mkdir()
        counted = forks.counted(folder / "disk", folder / COUNT)
        ended = forks.run(WRITERS[name].words, folder, limit=LONG, before=counted)
        assert ended.code == 0, ended.said
    return folder


def operations(place: Workplace, name: str) -> int:
    """How often an undisturbed command opens, renames, makes or removes something below `disk/`."""
    return len((written_folder(place, name) / COUNT).read_text().splitlines())


def unlike(name: str, found: dict[str, bytes], whole: dict[str, bytes]) -> list[str]:
    """The files that are missing, too many, or other than those of an undisturbed call."""
    paths = sorted(path for path in found.keys() | whole.keys() if not re.fullmatch(ASIDE, path))
    differs = WRITERS[name].differs
    return [
        path
        for path in paths
        if (path in found) != (path in whole) or (found[path] != whole[path] and not re.fullmatch(differs, path))
    ]
