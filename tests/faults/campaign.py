"""The campaign: every case of every kind, and the table of what went wrong.

`make faults` runs all of it and writes the table into docs/reliability.md; `python -m faults.campaign KIND` a part.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from faults import damage, forks, full_disks, hostile, hostile_checkpoints, kills, limits, two_trainings
from faults.workplace import FAULTS, Case, Workplace

KINDS: dict[str, Callable[[Workplace], Iterator[Case]]] = {
    "kills": kills.cases,
    "full disks": full_disks.cases,
    "damaged files": damage.cases,
    "hostile input": lambda place: chain(hostile.cases(place), hostile_checkpoints.cases(place)),
    "two trainings": two_trainings.cases,
    "time limits": limits.cases,
}


def judge(case: Case, root: Path) -> dict[str, Any]:
    """The faults of a case, in words, with its name and the seconds that it took."""
    folder = Path(tempfile.mkdtemp(dir=root))
    began = time.monotonic()
    try:
        faults = case.judge(folder).faults
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return {"kind": case.kind, "name": case.name, "seconds": time.monotonic() - began, **faults}


def judge_all(cases: list[Case], root: Path, processes: int = 1) -> list[dict[str, Any]]:
    """The results of all cases, which so many processes share."""
    shares = [root / f"results-{number}.jsonl" for number in range(processes)]
    children = []
    for number, share in enumerate(shares):
        child = os.fork()
        if child == 0:
            try:
                with share.open("w") as file:
                    for done, case in enumerate(cases[number::processes], start=1):
                        result = judge(case, root)
                        print(json.dumps(result), file=file, flush=True)
                        if done % 50 == 0:
                            print(f"{done * processes} of {len(cases)} cases", file=sys.stderr, flush=True)
                        if faults := {fault: result[fault] for fault in FAULTS if fault in result}:
                            print(f"{case.kind}: {case.name}: {faults}", file=sys.stderr, flush=True)
            except BaseException:
                sys.excepthook(*sys.exc_info())
                os._exit(1)
            os._exit(0)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert codes == [0] * processes
    return [json.loads(line) for share in shares for line in share.read_text().splitlines()]


def set_up() -> Workplace:
    """A new workplace, with no network and a cache of its own; all that commands import is imported."""
    memory = Path("/dev/shm")  # where flushing to the disk costs nothing
    root = Path(tempfile.mkdtemp(prefix="segtune-faults-", dir=memory if os.access(memory, os.W_OK) else None))
    os.environ |= {"HF_HOME": str(root / "cache"), "TMPDIR": str(root / "cache"), "OMP_NUM_THREADS": "1"}
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "NO_ALBUMENTATIONS_UPDATE": "1"}
    (root / "cache").mkdir()
    tempfile.tempdir = None
    forks.warm_up()
    return Workplace(root)


def table(results: list[dict[str, Any]], kinds: list[str]) -> str:
    """Markdown: cases and faults of each kind."""
    lines = ["| kind | cases | " + " | ".join(FAULTS) + " |", "|---|---|" + "---|" * len(FAULTS)]
    for kind in kinds:
        own = [result for result in results if result["kind"] == kind]
        counts = [str(sum(fault in result for result in own)) for fault in FAULTS]
        lines.append(f"| {kind} | {len(own)} | " + " | ".join(counts) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*", choices=[[], *KINDS], help="by default all")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--page", type=Path, help="a Markdown file whose table is written anew")
    parser.add_argument("--only", help="cases whose name has this")
    parser.add_argument("--sample", type=int, help="so many of the cases, the same each time")
    given = parser.parse_args()
    began = time.monotonic()
    place = set_up()
    print(f"imported after {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    try:
        cases = [case for kind in given.kinds or KINDS for case in KINDS[kind](place)]
        cases = [case for case in cases if given.only is None or given.only in case.name]
        if given.sample is not None:
            cases = random.Random(0).sample(cases, min(given.sample, len(cases)))
        random.Random(0).shuffle(cases)  # of a campaign that is stopped, each kind has its share
        results = judge_all(cases, place.root, given.processes)
    finally:
        shutil.rmtree(place.root, ignore_errors=True)
    text = table(results, given.kinds or list(KINDS))
    print(f"{text}\n{len(results)} cases in {time.monotonic() - began:.0f} s")
    if given.page:
        before, _, rest = given.page.read_text(encoding="utf-8").partition("<!-- table -->\n")
        after = rest.partition("<!-- end of table -->")[2]
        given.page.write_text(f"{before}<!-- table -->\n{text}<!-- end of table -->{after}", encoding="utf-8")
    sys.exit(any(fault in result for result in results for fault in FAULTS))


if __name__ == "__main__":
    main()
