"""Kills: SIGKILL at each operation on the files of a run, or some milliseconds after it; then the command again."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from faults import forks
from faults.workplace import (
    VARIANTS,
    Case,
    Verdict,
    Workplace,
    convert_words,
    differences,
    files_of,
    leftovers,
    spread,
    train_words,
)
from faults.writers import LONG, WRITERS, operations, prepare_writer, unlike, written

DELAYS = (0.0, 0.001, 0.004, 0.015)  # seconds
NEW = ("label", "select", "soup", "checkpoint of others", "propose", "crossval", "tune")


def cases(
    place: Workplace, per_variant: int = 42, per_conversion: int = 20, per_writer: int = 8, per_search: int = 5
) -> Iterator[Case]:
    """Kills of trainings, plain, with a report, a worker, averaged weights, a teacher, unlabelled pictures; and of
    commands that write something else.
    """
    for variant in VARIANTS:
        place.undisturbed(variant)
        count = place.operations(train_words(variant), "run", partial(place.prepare, variant=variant))
        for number in spread(count, per_variant):
            delay = DELAYS[number % len(DELAYS)] if number % 2 else 0.0
            yield Case("kills", f"{variant} {number} +{delay}", partial(_training, place, variant, number, delay))
    for to in ("folder", "parquet"):
        place.converted(to)
        for number in spread(place.operations(convert_words(to), "out"), per_conversion):
            yield Case("kills", f"convert {to} {number}", partial(_conversion, place, to, number))
    for name in NEW:
        wanted = per_search if WRITERS[name].starts else per_writer
        for number in spread(operations(place, name), wanted):
            yield Case("kills", f"{name} {number}", partial(_writing, place, name, number))


def _training(place: Workplace, variant: str, number: int, delay: float, folder: Path) -> Verdict:
    place.prepare(folder, variant)
    killed = forks.run(train_words(variant), folder, before=forks.killed_at(folder / "run", number, delay))
    resume = train_words(variant, "run", "training.resume=auto")
    ends = []
    if number % 3 == 0:  # killed once more when it goes on
        ends.append(forks.run(resume, folder, before=forks.killed_at(folder / "run", 1 + number // 2)))
    ends.append(forks.run(resume, folder))
    verdict = Verdict.of(killed, *ends)
    if killed.code not in (-signal.SIGKILL, 0):  # a kill after the last operation comes too late
        verdict.add("lost", f"ended with {killed.code} instead of the signal: {killed.said[-500:]}")
    if ends[-1].code != 0:
        verdict.add("lost", f"does not go on: {ends[-1].said[-500:]}")
    elif difference := differences(folder / "run", place.undisturbed(variant)):
        verdict.add("lost", difference)
    return verdict


def _writing(place: Workplace, name: str, number: int, folder: Path) -> Verdict:
    """A command that was killed is given again; one that starts trainings leaves none of them behind."""
    prepare_writer(place, folder)
    writer = WRITERS[name]
    killed = forks.run(writer.words, folder, limit=LONG, before=forks.killed_at(folder / "disk", number))
    was_done = not unlike(name, files_of(folder / "disk"), written(place, name))
    ended = forks.run([*writer.words, *writer.again], folder, limit=LONG)
    verdict = Verdict.of(killed, ended)
    is_refused = ended.code == 2 and "exists already" in ended.said  # after the last operation there is nothing to do
    if was_done and is_refused:
        return verdict
    if ended.code != 0:
        verdict.add("lost", f"does not go on: {ended.said[-500:]}")
    elif differing := unlike(name, files_of(folder / "disk"), written(place, name)):
        verdict.add("lost", f"other files than without the kill: {differing}")
    elif left := leftovers(folder / "disk"):
        verdict.add("lost", left)
    return verdict


def _conversion(place: Workplace, to: str, number: int, folder: Path) -> Verdict:
    place.prepare(folder)
    killed = forks.run(convert_words(to), folder, before=forks.killed_at(folder / "out", number))
    ended = forks.run(convert_words(to), folder)
    verdict = Verdict.of(killed, ended)
    if ended.code != 0:
        verdict.add("lost", f"does not go on: {ended.said[-500:]}")
    else:
        found, expected = files_of(folder / "out"), files_of(place.converted(to))
        # The journal has its lines in the order in which threads ended.
        paths = sorted(path for path in found.keys() | expected if not path.startswith(".cache/"))
        differing = [path for path in paths if found.get(path) != expected.get(path)]
        if differing or leftovers(folder / "out"):
            verdict.add("lost", f"other files than without the kill: {differing} {leftovers(folder / 'out')}")
    return verdict
