from __future__ import annotations

import errno
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from segtune.errors import UsageError
from segtune.training import run_lock
from segtune.training.run_lock import LOCK_FILE, locked

HOLD = (
    "import sys, time, os\nfrom segtune.training.run_lock import locked\n"
    "with locked(sys.argv[1]):\n    print(os.getpid(), flush=True)\n    {rest}\n"
)


def holder(folder: Path, rest: str = "time.sleep(60)") -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD.format(rest=rest), str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline()
    return process


def test_another_process_is_refused_by_pid_and_host_until_it_is_dead(tmp_path: Path) -> None:
    other = holder(tmp_path)
    try:
        with (
            pytest.raises(
                UsageError, match=rf"is writing into this folder \(process {other.pid} on host {socket.gethostname()},"
            ),
            locked(tmp_path),
        ):
            pytest.fail("two at once")
    finally:
        other.kill()
        other.communicate()
    assert (tmp_path / LOCK_FILE).exists()  # stale
    with locked(tmp_path):
        assert json.loads((tmp_path / LOCK_FILE).read_text())["pid"] == os.getpid()
    assert not (tmp_path / LOCK_FILE).exists()


def test_a_child_that_outlives_a_killed_training_holds_nothing(tmp_path: Path) -> None:
    other = holder(tmp_path, "child = os.fork()\n    if child: print(child, flush=True)\n    time.sleep(60)")
    assert other.stdout is not None
    child = int(other.stdout.readline())
    assert child > 1
    other.kill()
    other.wait()
    try:
        with locked(tmp_path):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        other.communicate()


def test_nested_in_one_thread_but_not_two_threads(tmp_path: Path) -> None:
    refused: list[str] = []

    def work() -> None:
        try:
            with locked(tmp_path):
                pass
        except UsageError as error:
            refused.append(str(error))

    with locked(tmp_path):
        with locked(tmp_path / "." / "x" / ".."):
            pass
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert (tmp_path / LOCK_FILE).exists()
    assert len(refused) == 1


def test_a_folder_that_was_made_for_nothing_goes(tmp_path: Path) -> None:
    with locked(tmp_path / "runs" / "a"):
        pass
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path / "runs" / "a"):
        (tmp_path / "runs" / "a" / "recipe.yaml").touch()
    assert [path.name for path in (tmp_path / "runs" / "a").iterdir()] == ["recipe.yaml"]


def test_without_locks_of_the_file_system_a_dead_process_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(run_lock, "_lock", refuse)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    about = {"pid": gone.pid, "host": socket.gethostname(), "since": "then"}
    (tmp_path / LOCK_FILE).write_text(json.dumps(about))
    with locked(tmp_path):
        pass
    for other in ({"host": "elsewhere"}, {"pid": os.getppid()}):
        (tmp_path / LOCK_FILE).write_text(json.dumps(about | other))
        with pytest.raises(UsageError, match="if that process is gone, remove"), locked(tmp_path):
            pytest.fail("two at once")


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["training.resume=auto", "training.overwrite=true"])
def test_of_two_trainings_one_goes_through_and_the_other_says_so(tmp_path: Path, mode: str) -> None:
    """Started into one folder at random offsets; SEGTUNE_PAIRS=20 makes more of them."""
    generator = random.Random(mode)
    settings = ["training.max_steps=150", "training.batch_size=2", "training.eval_every=75", "transforms.crop_size=64"]
    for pair in range(int(os.environ.get("SEGTUNE_PAIRS", "3"))):
        folder = tmp_path / str(pair)
        command = [sys.executable, "-m", "segtune", "train", "demo", f"training.output_dir={folder}", *settings, mode]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        runs = []
        for _ in range(2):
            runs.append(subprocess.Popen([*command, "training.report=false"], **pipes))
            time.sleep(generator.uniform(0, 2))  # less than the first one takes
        ends = [(run.communicate(timeout=300), run.returncode) for run in runs]
        assert sorted(code for _, code in ends) == [0, 2], ends
        (refused,) = [(err, run.pid) for ((_, err), code), run in zip(ends, runs, strict=True) if code == 2]
        winner = next(run for run in runs if run.returncode == 0)
        assert f"(process {winner.pid} on host {socket.gethostname()}" in refused[0].splitlines()[-1]
        evaluated = [line for line in (folder / "metrics.jsonl").read_text().splitlines() if "mean_iou" in line]
        assert len(evaluated) == 2 and (folder / "final" / "model.safetensors").is_file()
        assert not (folder / LOCK_FILE).exists()


def test_the_holder_of_a_folder_is_told_without_taking_it(tmp_path: Path) -> None:
    assert run_lock.holder(tmp_path) is None and run_lock.holder(tmp_path / "none") is None
    other = holder(tmp_path)
    try:
        found = run_lock.holder(tmp_path)
        assert found is not None and found["pid"] == other.pid
    finally:
        other.kill()
        other.communicate()
    assert run_lock.holder(tmp_path) is None  # the file is there, its process is not


def test_what_is_done_in_a_folder_is_said(tmp_path: Path) -> None:
    other = holder(tmp_path)
    try:
        with (
            pytest.raises(UsageError, match=r"a search is writing into this folder .* or choose another --output$"),
            locked(tmp_path, what="search", option="--output"),
        ):
            pytest.fail("two at once")
    finally:
        other.kill()
        other.communicate()
