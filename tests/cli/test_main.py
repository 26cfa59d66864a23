from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

import segtune
from segtune.cli import main
from segtune.data.transforms import TrainTransform
from segtune.errors import DataError, FullDiskError
from segtune.recipe.shipped import recipe_folder
from segtune.training.interrupts import Interrupted
from support.command_runs import HEAVY, TINY


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["recipes"], ["recipes", "show", "demo"], ["train", "--help"]]
)
def test_help_and_lists_import_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom segtune.cli.main import main\n"
        f"try:\n    main({arguments!r})\nexcept SystemExit as left:\n    assert not left.code\n"
        f"loaded = sorted(set(sys.modules) & set({HEAVY!r}))\nassert not loaded, loaded\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert done.stderr == ""


def test_version(segtune_command: Any) -> None:
    assert segtune_command("--version") == (0, f"segtune {segtune.__version__}\n", "")


def test_module_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "segtune", "recipes", "show", "demo"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, (recipe_folder() / "demo.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("arguments", [["nonsense"], ["train"], ["evaluate", "x"], ["train", "demo", "--steps=3"]])
def test_wrong_usage_leaves_with_2(segtune_command: Any, arguments: list[str]) -> None:
    code, out, err = segtune_command(*arguments)
    assert (code, out) == (2, "")
    assert "Error: " in err


def test_error_is_one_message_without_traceback(segtune_command: Any, tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("dataset: {path: x}\ntrainig: {max_steps: 3}\n")
    code, out, err = segtune_command("train", path)
    assert (code, out, err) == (2, "", f"error: {path}: trainig: no such section; did you mean 'training'?\n")


def test_missing_dataset_folder(segtune_command: Any, tmp_path: Path) -> None:
    code, _, err = segtune_command(
        "train", "demo", f"dataset.path={tmp_path / 'none'}", f"training.output_dir={tmp_path / 'run'}"
    )
    assert code == 2
    assert err.startswith("error: ") and "dataset.path" in err and str(tmp_path / "none") in err


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (DataError("x.png: broken"), 1, "error: x.png: broken\n"),
        (OSError(5, "broken"), 1, "error: OSError: [Errno 5] broken\n(SEGTUNE_TRACEBACK=1 in the env"),
        (OSError(28, "No space left"), 1, "error: the disk is full: the output's, that of the cache (HF_HOME, "),
        (OSError(28, "No space left", "/x/y.npz"), 1, "error: the disk is full: /x/y.npz. Make room, then give the"),
        (FullDiskError("x: the disk is full"), 1, "error: x: the disk is full\n"),
        (KeyboardInterrupt(), 130, ""),
        (Interrupted("SIGTERM was received"), 3, "stopped: SIGTERM was received\nnext: segtune recipes\n"),
    ],
)
def test_exit_codes(
    segtune_command: Any, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, message: str
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.delenv("SEGTUNE_TRACEBACK", raising=False)
    monkeypatch.setattr("segtune.cli.cmd_recipes.list_recipes", fail)
    found = segtune_command("recipes")
    assert (found.code, found.out) == (code, "")
    assert found.err.startswith(message)
    assert "Traceback" not in found.err


def test_a_bug_shows_its_traceback_and_asks_for_a_report(segtune_command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise KeyError("lost")

    monkeypatch.delenv("SEGTUNE_TRACEBACK", raising=False)
    monkeypatch.setattr("segtune.cli.cmd_recipes.list_recipes", fail)
    code, out, err = segtune_command("recipes")
    assert (code, out) == (1, "")
    assert err.startswith("Traceback (most recent call last)") and "in fail\n" in err and "\nKeyError: 'lost'\n" in err
    assert "\nerror: this is a bug of segtune: please report it" in err


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_picture_is_one_line_and_a_bug_in_a_transform_shows_its_traceback(
    segtune_command: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, workers: int
) -> None:
    def train(name: str) -> tuple[int, str]:
        data = [f"dataset.path={tmp_path}", "dataset.labels=[sky, road]", "dataset.check_masks=false"]
        run = [f"training.output_dir={tmp_path / name}", f"training.num_workers={workers}"]
        code, _, err = segtune_command("train", "demo", *TINY, *data, *run)
        return code, err

    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for kind, pixels in (("images", noise), ("masks", noise[:, :, 0] % 2)):
        (tmp_path / kind).mkdir()
        for i in range(4):
            PIL.Image.fromarray(pixels).save(tmp_path / kind / f"{i}.png")
    monkeypatch.delenv("SEGTUNE_TRACEBACK", raising=False)
    with monkeypatch.context() as planted:
        planted.setattr(TrainTransform, "_finish", lambda self, *rest: None + 1)
        code, err = train("bug")
    assert code == 1
    assert "Traceback" in err and "planted.setattr(TrainTransform" in err and "TypeError: unsupported operand" in err
    assert err.splitlines()[-1].startswith("error: this is a bug of segtune: please report it")

    for path in (tmp_path / "images").iterdir():
        path.write_bytes(path.read_bytes()[:200])
    code, err = train("cut")
    assert code == 1
    assert "Traceback" not in err
    assert re.search(r"\nerror: sample '\d' \(image .*: cannot be read \(image file is truncated.*\)\n$", err)


def test_traceback_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise KeyError("lost")

    monkeypatch.setenv("SEGTUNE_TRACEBACK", "1")
    monkeypatch.setattr("segtune.cli.cmd_recipes.list_recipes", fail)
    with pytest.raises(KeyError, match="lost"):
        main.main(["recipes"])


def test_a_stopped_training_is_told_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    """Its run is gone on with, unless the command says itself what becomes of the one that is there."""
    for words, expected in {
        "train demo training.max_steps=3": "train demo training.max_steps=3 training.resume=auto",
        "train demo training.resume=a/state": "train demo training.resume=a/state",
        "predict best a.png": "predict best a.png",
    }.items():
        main._tell_stop("SIGHUP was received", words.split())
        assert capsys.readouterr().err == f"stopped: SIGHUP was received\nnext: segtune {expected}\n"


WAIT = """
import sys, threading
from segtune.cli.main import main
import {module} as module
def wait(*_, **__):
    print("waiting", flush=True)
    threading.Event().wait(600)
module.{name} = wait
main(sys.argv[1:])
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize(
    ("module", "name", "expected"),
    [
        ("segtune.finetune", "check_masks", "next: segtune train demo"),
        ("segtune.finetune", "write_report", "next: segtune report"),
        ("segtune.cli.cmd_recipes", "list_recipes", "next: segtune recipes"),
    ],
)
def test_a_signal_ends_every_phase_with_3_and_the_way_on(
    tmp_path: Path, number: signal.Signals, module: str, name: str, expected: str
) -> None:
    """The planted function waits for ever, which the signal ends."""
    words = (
        ["recipes"] if name == "list_recipes" else ["train", "demo", f"training.output_dir={tmp_path / 'run'}", *TINY]
    )
    words += ["training.report=true"] if name == "write_report" else []
    process = subprocess.Popen(
        [sys.executable, "-c", WAIT.format(module=module, name=name), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    while (line := process.stdout.readline()) and "waiting" not in line:
        pass
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 3, out
    assert f"{number.name} was received" in out and expected in out.splitlines()[-1] and "Traceback" not in out
