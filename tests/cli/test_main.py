from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import segtune
from segtune.cli import main
from segtune.errors import DataError
from segtune.recipe.shipped import recipe_folder
from support.command_runs import HEAVY


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
        (KeyError("lost"), 1, "error: KeyError: 'lost'\n(SEGTUNE_TRACEBACK=1 in the environment shows where"),
        (KeyboardInterrupt(), 130, ""),
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


def test_traceback_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise KeyError("lost")

    monkeypatch.setenv("SEGTUNE_TRACEBACK", "1")
    monkeypatch.setattr("segtune.cli.cmd_recipes.list_recipes", fail)
    with pytest.raises(KeyError, match="lost"):
        main.main(["recipes"])
