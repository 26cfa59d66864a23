"""2,000 pictures: one process, two with one killed, and Ray with a killed worker make the same masks, each once."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from PIL import Image

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[3]
COUNT, SIDE = 2000, 32


@pytest.fixture(scope="module")
def pictures(earth: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Crops of the embedded tiles, no two of one place."""
    folder = tmp_path_factory.mktemp("pictures")
    made = 0
    for path in sorted((earth / "images").glob("*/*.jpg")):
        with Image.open(path) as tile:
            for top in range(0, tile.height - SIDE + 1, SIDE):
                for left in range(0, tile.width - SIDE + 1, SIDE):
                    if made < COUNT:
                        tile.crop((left, top, left + SIDE, top + SIDE)).save(folder / f"{made:04d}.png")
                        made += 1
    assert made == COUNT
    return folder


def command(checkpoint: Path, pictures: Path, output: Path, *words: str) -> list[str]:
    predict = ["predict", str(checkpoint), str(pictures), "--output", str(output)]
    return [sys.executable, "-m", "segtune", *predict, *words]


def variables(**given: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", **given}


def run(words: list[str], **given: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, env=variables(**given), capture_output=True, text=True, timeout=300)


def masks(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.png")}


@pytest.fixture(scope="module")
def expected(checkpoint: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one process makes."""
    folder = tmp_path_factory.mktemp("alone") / "out"
    done = run(command(checkpoint, pictures, folder))
    assert done.returncode == 0, done.stderr
    found = masks(folder)
    assert len(found) == COUNT
    return found


def again_does_nothing(words: list[str], folder: Path, **given: str) -> str:
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*.png")}
    done = run([*words, "--resume"], **given)
    assert done.returncode == 0, done.stderr
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*.png")} == before
    return done.stdout


def test_two_processes(checkpoint: Path, pictures: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    launch = ["-m", "accelerate.commands.accelerate_cli", "launch"]
    launch += ["--config_file", str(ROOT / "recipes" / "accelerate" / "cpu.yaml")]
    words = command(checkpoint, pictures, tmp_path / "out")
    words = [words[0], *launch, *words[1:]]
    done = run(words)
    assert (done.returncode, done.stdout) == (0, f"{COUNT} masks in {tmp_path / 'out'}\n"), done.stderr
    assert masks(tmp_path / "out") == expected
    assert again_does_nothing(words, tmp_path / "out") == done.stdout


def test_one_of_two_is_killed(checkpoint: Path, pictures: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = command(checkpoint, pictures, out)
    started = [
        subprocess.Popen(
            words, env=variables(RANK=rank, WORLD_SIZE="2"), stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for rank in "01"
    ]
    deadline = time.monotonic() + 120
    while not any(int(path.stem) % 2 for path in out.glob("*.png")) and time.monotonic() < deadline:
        time.sleep(0.02)
    started[1].send_signal(signal.SIGKILL)
    said = [process.communicate(timeout=240) for process in started]
    assert [process.returncode for process in started] == [0, -signal.SIGKILL], said
    assert said[0][0] == b""  # nothing says that all is there
    there = masks(out)
    assert COUNT // 2 < len(there) < COUNT
    assert {name: expected[name] for name in there} == there  # each whole
    done = run([*words, "--resume"])
    assert done.stdout == f"{COUNT} masks in {out}; {len(there)} of {COUNT} images were done before\n", done.stderr
    assert masks(out) == expected
    assert f"{COUNT} of {COUNT} images were done before" in again_does_nothing(words, out)


def test_ray_with_a_killed_worker(checkpoint: Path, pictures: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = [*command(checkpoint, pictures, out), "--ray", "local"]
    with subprocess.Popen(words, env=variables(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as started:
        killed = kill_a_worker(started.pid, out)
        text, err = started.communicate(timeout=400)
    assert (started.returncode, text) == (0, f"{COUNT} masks in {out}\n"), err
    assert killed and masks(out) == expected
    assert f"{COUNT} of {COUNT} images were done before" in again_does_nothing(words, out)


def kill_a_worker(driver: int, out: Path) -> str:
    """Kill an actor of a driver's cluster while it predicts, some hundred masks being there."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and psutil.pid_exists(driver):
        time.sleep(0.05)
        if len(list(out.glob("*.png"))) < COUNT // 10:
            continue
        for process in psutil.Process(driver).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                name = " ".join(process.cmdline())
                if name.startswith("ray::") and "Predictor" in name:
                    process.kill()
                    return name
    return ""
