"""Time limits: trainings whose opening, evaluations and end are slow in different ways must keep theirs."""

from __future__ import annotations

import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from faults.workplace import Case, Verdict, Workplace

LIMIT = 25  # seconds
# The command in a process of its own, since imports count; `opening` is how long the data takes to be opened.
COMMAND = """
import sys, time
left = [float(sys.argv.pop(1))]
def slow(event, arguments):
    if event == "open" and left and str(arguments[0]).endswith("earth/classes.json"):
        time.sleep(left.pop())
sys.addaudithook(slow)
from segtune.cli.main import main
main()
"""
SMALL = [
    "model.config={hidden_sizes: [8, 16, 20, 32], depths: [1, 1, 1, 1], decoder_hidden_size: 16}",
    "training.batch_size=2",
    "transforms.crop_size=64",
    "training.device=cpu",
]


@contextmanager
def busy_core(wanted: bool = True) -> Iterator[None]:
    """A process that computes without an end, beside what is measured."""
    if not wanted:
        yield
        return
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def one(folder: Path, seed: int, limit: int = LIMIT) -> dict[str, object]:
    """Train under a limit, then go on as the command says; what became of both."""
    draw = random.Random(seed)
    settings = [f"training.output_dir={folder}", *SMALL]
    # Every second run has so many steps that its end, final/ and the report, falls near the limit.
    steps = draw.choice([draw.randint(5, 60), 100_000])
    settings += [f"training.max_steps={steps}", f"training.eval_every={draw.choice([5, 20, 60])}"]
    settings += [f"training.save_every={draw.choice([1, 10, 100])}"]
    opening = draw.uniform(0, limit / 2)
    began = time.time()
    words = [sys.executable, "-c", COMMAND, str(opening), "train", "demo", *settings, f"training.time_limit={limit}s"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    options = {"capture_output": True, "text": True, "env": environment}
    ended = subprocess.run(words, timeout=limit + 60, **options)
    seconds = time.time() - began
    said = ended.stdout + ended.stderr
    gone_on, why = resumes(said, settings, options)
    return {
        "seed": seed,
        "seconds": round(seconds, 1),
        "code": ended.returncode,
        "within": seconds <= limit and "Traceback" not in said,
        "resumes": gone_on,
        "opening": round(opening, 1),
        "steps": steps,
        "said": said[-2000:] + why,
    }


def resumes(said: str, settings: list[str], options: dict[str, Any]) -> tuple[bool, str]:
    """Whether the command that the training named last does what is left; a training that goes on is stopped soon."""
    lines = re.findall(r"^next: (.*)$", said, flags=re.MULTILINE)
    if not lines:
        return "is over before the first step" in said, "\nno command is named"
    words = shlex.split(lines[-1])
    if words[1:2] != ["train"]:
        ended = subprocess.run([sys.executable, "-m", *words], timeout=120, **options)
        return ended.returncode == 0, ended.stdout + ended.stderr
    at = re.search(r"stopped at step (\d+)", said)
    words = [sys.executable, "-m", *words[:2], "demo", *settings, words[-1]]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=options["env"])
    heard, sign = [], "read as" if at is None or at[1] == "0" else "going on from step"
    for line in process.stdout or ():
        heard.append(line)
        if sign in line:
            process.send_signal(signal.SIGTERM)
    process.wait(timeout=60)
    text = "".join(heard)
    step = re.search(r"going on from step (\d+)", text)
    goes_on = (step is not None and at is not None and step[1] == at[1]) or (at is None or at[1] == "0")
    return process.returncode == 3 and goes_on, text


def _judge(seed: int, busy: bool, folder: Path) -> Verdict:
    with busy_core(busy):
        result = one(folder / "run", seed)
    verdict = Verdict()
    if not result["within"]:
        verdict.add("hang", f"{result['seconds']} s: {result['said']}")
    if not result["resumes"]:
        verdict.add("lost", f"{result['said']}")
    if "Traceback" in str(result["said"]):
        verdict.add("traceback", str(result["said"]))
    return verdict


def cases(place: Workplace, count: int = 20) -> Iterator[Case]:
    """Trainings with a time limit, on a machine as it is and with a process that keeps a core busy."""
    for busy in (False, True):
        for seed in range(count):
            yield Case("time limits", f"{'busy' if busy else 'idle'} {seed}", partial(_judge, seed, busy))
