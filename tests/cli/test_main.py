from __future__ import annotations

import contextlib
import gc
import importlib
import io
import logging
import os
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
from segtune import bars
from segtune.cli import main
from segtune.cli.common import importing
from segtune.data.transforms import TrainTransform
from segtune.errors import DataError, FullDiskError
from segtune.recipe.shipped import recipe_folder
from segtune.training.interrupts import Interrupted
from segtune.viz import html, terminal
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
        (NotADirectoryError(20, "no", "a/b"), 1, "error: NotADirectoryError: [Errno 20] no: 'a/b': a file is where a"),
        (OSError(30, "no", "/x"), 1, "error: OSError: [Errno 30] no: '/x': name another place, or one whose"),
        (OSError(5, "broken"), 1, "error: OSError: [Errno 5] broken\n(SEGTUNE_TRACEBACK=1 in the env"),
        (OSError(28, "No space left"), 1, "error: the disk is full: the output's, that of the cache (HF_HOME, "),
        (OSError(28, "No space left", "/x/y.npz"), 1, "error: the disk is full: /x/y.npz. Make room, then give the"),
        (FullDiskError("x: the disk is full"), 1, "error: x: the disk is full\n"),
        (MemoryError("of 3 GiB"), 1, "error: there is not enough memory (of 3 GiB): images of a huge size take it"),
        (RuntimeError("could not create a primitive"), 1, "error: there is not enough memory (could not create a pr"),
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
        planted.setattr(TrainTransform, "finish", lambda self, *rest: None + 1)
        code, err = train("bug")
    assert code == 1
    assert "Traceback" in err and "planted.setattr(TrainTransform" in err and "TypeError: unsupported operand" in err
    assert err.splitlines()[-1].startswith("error: this is a bug of segtune: please report it")

    for path in (tmp_path / "images").iterdir():
        path.write_bytes(path.read_bytes()[:200])
    code, err = train("cut")
    assert code == 1
    assert "Traceback" not in err
    assert re.search(r"(^|\n)error: sample '\d' \(image .*: cannot be read \(image file is truncated.*\)\n$", err)


def test_traceback_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise KeyError("lost")

    monkeypatch.setenv("SEGTUNE_TRACEBACK", "1")
    monkeypatch.setattr("segtune.cli.cmd_recipes.list_recipes", fail)
    with pytest.raises(KeyError, match="lost"):
        main.main(["recipes"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("train dmo", "did you mean 'demo'?"),
        ("train demo training.maxsteps=3", "did you mean 'training.max_steps'?"),
        ("train demo training.max_steps=many", "expected a whole number"),
        ("train camvid", "data/camvid does not exist: put the data there"),
        ("train camvid dataset.path=/nope", "/nope does not exist"),
        ("train pascal-voc dataset.path=. model.name=/nope", "checkpoint /nope does not exist"),
        ("train demo model.config.depths=[1,1,1,1] dataset.path=/nope", "/nope does not exist"),
        ("train demo model.config.depths=[1,1,1,1] model.name=/nope", "checkpoint /nope does not exist"),
        ("evaluate /nope demo model.config.depths=[1,1,1,1]", "checkpoint /nope does not exist"),
        ("data convert demo dataset.path=/nope --output out", "/nope does not exist"),
        ("predict you/model nothing/*.jpg --output masks", "nothing/*.jpg: no such image"),
        ("predict nothing a.jpg --output masks", "checkpoint nothing does not exist"),
        ("evaluate /nope camvid", "checkpoint /nope does not exist"),
        ("report /nope", "checkpoint /nope does not exist"),
        ("doctor camvid", "data/camvid does not exist"),
        ("push /nope --repo nobody", "user/name"),
        ("convert . .", ". exists already"),
    ],
)
def test_slips_are_told_before_torch_is_imported(tmp_path: Path, words: str, message: str) -> None:
    """Which takes seconds, of a busy machine a minute."""
    code = "import sys; sys.modules['torch'] = None; from segtune.cli.main import main; main(sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", code, *words.split()], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and message in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


def test_summaries_of_commands_are_whole(segtune_command: Any) -> None:
    for words in (("--help",), ("recipes", "--help"), ("data", "--help")):
        out = segtune_command(*words).out
        assert "..." not in " ".join(out.split("Commands:")[1].split())
    assert "segtune recipes keys [SECTION]" in segtune_command("train", "--help").out
    assert "--install-completion" in segtune_command("--help").out


def test_volume_is_said_before_or_after_the_command(segtune_command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """And help by -h, everywhere."""
    monkeypatch.setattr(logging.getLogger("segtune"), "level", logging.INFO)
    for words, level, quiet in (
        (("-q", "recipes", "show", "demo"), logging.WARNING, "1"),
        (("recipes", "show", "demo", "-q"), logging.WARNING, "1"),
        (("recipes", "show", "-v", "demo"), logging.DEBUG, None),
        (("recipes", "show", "demo"), logging.INFO, None),
    ):
        monkeypatch.delenv(bars.QUIET, raising=False)
        assert segtune_command(*words).code == 0
        assert (logging.getLogger("segtune").level, os.environ.get(bars.QUIET)) == (level, quiet), words
    monkeypatch.delenv(bars.QUIET, raising=False)
    for command in ("train", "evaluate", "predict", "data convert", "recipes keys"):
        out = segtune_command(*command.split(), "-h").out
        assert "-q, --quiet" in out and "-v, --verbose" in out and "-h, --help" in out


@pytest.mark.parametrize("collects", [True, False])
def test_no_garbage_is_looked_for_while_libraries_are_imported(collects: bool) -> None:
    if not collects:
        gc.disable()
    try:
        with pytest.raises(ModuleNotFoundError), importing():
            assert not gc.isenabled()
            importlib.import_module("segtune.nothing")
        assert gc.isenabled() == collects
    finally:
        gc.enable()


def test_what_was_imported_is_not_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """But the garbage of a process that imports nothing more is still found."""
    frozen: list[bool] = []
    monkeypatch.setattr(gc, "freeze", lambda: frozen.append(True))
    with importing():
        importlib.import_module("json")  # is there already
    assert frozen == []
    monkeypatch.delitem(sys.modules, "this", raising=False)
    with importing(), contextlib.redirect_stdout(io.StringIO()):
        importlib.import_module("this")
    assert frozen == [True]


@pytest.mark.slow
def test_a_log_has_lines_and_no_bars(segtune_command: Any, tmp_path: Path) -> None:
    words = ["train", "demo", f"training.output_dir={tmp_path / 'run'}", *TINY, "training.eval_every=1"]
    done = subprocess.run([sys.executable, "-m", "segtune", *words], capture_output=True, text=True, check=True)
    assert "\r" not in done.stderr and "step 1 of 2: val mIoU 0." in done.stderr
    words += ["training.overwrite=true"]
    done = subprocess.run([sys.executable, "-m", "segtune", "-q", *words], capture_output=True, text=True, check=True)
    assert "INFO" not in done.stderr and "best val mIoU" in done.stdout


def test_no_color_is_heeded(segtune_command: Any, tmp_path: Path) -> None:
    code = (
        "import os, sys, typer\nfrom segtune.cli import main\nsys.stdout.isatty = lambda: True\n"
        "main.cmd_env.describe_environment = lambda: typer.secho('red', fg='red')\nmain.main(['env', '--json'])\n"
    )
    for value, expected in (("1", b"red\n"), ("", b"\x1b[31mred")):
        done = subprocess.run(
            [sys.executable, "-c", code], env=os.environ | {"NO_COLOR": value}, capture_output=True, check=True
        )
        assert done.stdout.startswith(expected)


def test_names_do_not_steer_the_terminal(segtune_command: Any, tmp_path: Path) -> None:
    """Neither in errors, nor in logs, nor in the tables of classes."""
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
        PIL.Image.new("RGB" if folder == "images" else "L", (32, 32)).save(tmp_path / folder / "a\x1b[2J.png")
    (tmp_path / "masks" / "a\x1b[2J.png").write_bytes(b"nothing")
    done = segtune_command("doctor", tmp_path, "dataset.labels=[sky, road]")
    run = f"training.output_dir={tmp_path / 'run'}"
    trained = segtune_command("train", "demo", f"dataset.path={tmp_path}", "dataset.labels=[sky, road]", run)
    for text in (done.out, trained.err):
        assert "\x1b[2J" not in text and r"\x1b[2J" in text


def test_names_in_tables_and_pages(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.show(terminal._cell("a\n\u202eb\x1b[2J"))
    assert capsys.readouterr().out == "a \\u202eb\\x1b[2J\n"
    page = html.environment().from_string("{{ name }}|{{ name|md }}").render(name="<\u202eb\x1b")
    assert page.split("|")[0].endswith(r"\u202eb\x1b") and page.split("|")[1].endswith(r"\u202eb\x1b")


def test_a_stopped_training_is_told_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    """Its run is gone on with, unless the command says itself what becomes of the one that is there."""
    for words, expected in {
        "train demo training.max_steps=3": "train demo training.max_steps=3 training.resume=auto",
        "train demo training.resume=a/state": "train demo training.resume=a/state",
        "predict best a.png": "predict best a.png --resume",
        "predict best a.png --overwrite": "predict best a.png --overwrite",
        "predict best https://a.org/a.png": "predict best https://a.org/a.png",
    }.items():
        main._tell_stop("SIGHUP was received", words.split())
        assert capsys.readouterr().err == f"stopped: SIGHUP was received\nnext: segtune {expected}\n"


WAIT = """
import signal, sys, threading
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # as in a terminal; under nohup it is ignored, here as well
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


def test_a_stopped_command_ends_at_once_with_its_last_words() -> None:
    code = (
        "import atexit, sys\nfrom segtune.cli import main\natexit.register(print, 'tidied')\n"
        "class Slow:\n    def __del__(self):\n        print('taken to pieces')\nslow = Slow()\n"
        "main._run = lambda words: sys.exit(3)\nmain.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (3, "tidied\n")


def test_all_commands_but_the_one_that_compares_libraries_keep_memory(
    segtune_command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[str] = []
    monkeypatch.setattr("segtune.cli.main.keep_freed_memory", lambda: kept.append("memory"))
    assert segtune_command("recipes").code == 0
    assert kept == ["memory"]
    assert segtune_command("bench", "--help").code == 0
    assert kept == ["memory"]
