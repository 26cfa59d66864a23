"""Two trainings into one folder, the second started at a random time while the first runs."""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from faults import forks
from faults.workplace import Case, Verdict, Workplace, differences, train_words

LONGER = "training.max_steps=24"  # so that the second surely comes while the first runs
MODES = ("training.resume=auto", "training.overwrite=true")


def cases(place: Workplace, count: int = 10) -> Iterator[Case]:
    """So many pairs of trainings in each mode."""
    place.undisturbed("plain", LONGER)
    for mode in MODES:
        for seed in range(count):
            yield Case("two trainings", f"{mode} {seed}", partial(_judge, place, mode, seed))


def _judge(place: Workplace, mode: str, seed: int, folder: Path) -> Verdict:
    """One goes through untouched, the other ends with 2 and names the process and host of the first."""
    place.prepare(folder)
    words = train_words("plain", "run", mode, LONGER)
    first = forks.start(words, folder)
    time.sleep(random.Random(f"{mode} {seed}").uniform(0, 1))  # half of what it takes
    second = forks.start(words, folder)
    ends = {started.process: started.wait() for started in (first, second)}
    verdict = Verdict.of(*ends.values())
    codes = sorted(ended.code if ended.code is not None else -1 for ended in ends.values())
    if codes != [0, 2]:
        verdict.add("lost", f"exit codes {codes}: {[ended.said[-500:] for ended in ends.values()]}")
        return verdict
    winner = next(process for process, ended in ends.items() if ended.code == 0)
    refusal = next(ended.said for ended in ends.values() if ended.code == 2)
    if f"(process {winner} on host {socket.gethostname()}" not in refusal:
        verdict.add("silent", refusal[-500:])
    if difference := differences(folder / "run", place.undisturbed("plain", LONGER)):
        verdict.add("lost", difference)
    return verdict
