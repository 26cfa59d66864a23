"""Full disks: small file systems in memory where they may be mounted, and errors at each operation that needs room."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path

from faults import forks
from faults.forks import Ended
from faults.workplace import Case, Verdict, Workplace, differences, files_of, leftovers, spread, train_words
from faults.writers import LONG, WRITERS, prepare_writer, unlike, written

PAGE = 4096


def cases(
    place: Workplace, trainings: int = 36, inodes: int = 10, operations: int = 24, sizes: int = 6
) -> Iterator[Case]:
    """Trainings and other commands on disks of many sizes."""
    run = place.undisturbed("plain")
    needed = sum(-(-len(content) // PAGE) + 1 for content in files_of(run).values())  # pages, one for each name
    if may_mount():
        for pages in spread(int(1.3 * needed), trainings):
            yield Case("full disks", f"training {pages} pages", partial(_training, place, f"size={pages * PAGE}"))
        for count in spread(60, inodes):
            yield Case("full disks", f"training {count} names", partial(_training, place, f"nr_inodes={count + 1}"))
        for name, writer in WRITERS.items():
            pages = sum(-(-len(content) // PAGE) + 1 for content in written(place, name).values())
            for size in spread(pages + 2, 3 if writer.starts else sizes):
                yield Case("full disks", f"{name} {size} pages", partial(_writer, place, name, f"size={size * PAGE}"))
    for number in spread(place.operations(train_words(), "run") // 2, operations):
        yield Case("full disks", f"training, none from operation {number}", partial(_refused, place, number))


def _training(place: Workplace, option: str, folder: Path) -> Verdict:
    place.prepare(folder)
    words = train_words("plain", "disk/run")
    with mounted(folder / "disk", option) as enlarge:
        full = forks.run(words, folder)
        verdict = Verdict.of(full)
        _judge_message(verdict, full)
        if left := leftovers(folder / "disk" / "run"):
            verdict.add("lost", f"after the full disk, {left}")
        enlarge()
        _judge_going_on(verdict, words, folder, "disk/run", place)
    return verdict


def _refused(place: Workplace, number: int, folder: Path) -> Verdict:
    place.prepare(folder)
    full = forks.run(train_words(), folder, before=forks.full_from(folder / "run", number))
    verdict = Verdict.of(full)
    _judge_message(verdict, full)
    _judge_going_on(verdict, train_words(), folder, "run", place)
    return verdict


def _judge_going_on(verdict: Verdict, words: list[str], folder: Path, run: str, place: Workplace) -> None:
    ended = forks.run([*words, "training.resume=auto"], folder)
    verdict.faults |= Verdict.of(ended).faults
    if ended.code != 0:
        verdict.add("lost", f"does not go on: {ended.said[-500:]}")
    elif difference := differences(folder / run, place.undisturbed("plain")):
        verdict.add("lost", difference)


def _writer(place: Workplace, name: str, option: str, folder: Path) -> Verdict:
    prepare_writer(place, folder)
    writer, whole = WRITERS[name], written(place, name)
    with mounted(folder / "disk", option) as enlarge:
        full = forks.run(writer.words, folder, limit=LONG)
        verdict = Verdict.of(full)
        _judge_message(verdict, full)
        # Of a page the numbers in the drawings differ from one time to the next: it must be there to its end. The
        # journal of a conversion lists what is done, and runs that are under way go on.
        half = [
            path
            for path, content in files_of(folder / "disk").items()
            if content != whole.get(path) and not content.rstrip().endswith(b"</html>") and "/." not in path
        ]
        if half and full.code != 0 and not writer.starts:
            verdict.add("lost", f"half written: {half}")
        enlarge()
        ended = forks.run([*writer.words, *writer.again], folder, limit=LONG) if full.code else full
        verdict.faults |= Verdict.of(ended).faults
        found = files_of(folder / "disk")
        if ended.code != 0 or unlike(name, found, whole):
            verdict.add("lost", f"not completed: {ended.said[-500:]} {unlike(name, found, whole)}")
    return verdict


def _judge_message(verdict: Verdict, ended: Ended) -> None:
    """A command that ended for want of room says so, and where; one that had enough ends well."""
    if ended.code not in (0, 1):
        verdict.add("silent", f"exit code {ended.code}: {ended.said[-500:]}")
    elif ended.code == 1 and ("the disk is full" not in ended.said or "Make room" not in ended.said):
        verdict.add("silent", f"not called a full disk: {ended.said[-500:]}")


@cache
def may_mount() -> bool:
    """Whether this process may mount file systems."""
    return os.geteuid() == 0 and subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode == 0


@contextmanager
def mounted(folder: Path, option: str) -> Iterator[Callable[[], object]]:
    """A file system in memory that is small; yields what makes it large."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", option, "tmpfs", folder], check=True)
    try:
        large = ["mount", "-o", "remount,size=256m,nr_inodes=100000", folder]
        yield lambda: subprocess.run(large, check=True)
    finally:
        subprocess.run(["umount", "-l", folder], check=True)
