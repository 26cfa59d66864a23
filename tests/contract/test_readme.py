"""Every command and every piece of Python in the README runs, in the order in which it stands there."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from support.examples import DEMO, blocks, command_lines, make_workplace, smaller

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = blocks(README)
COMMANDS = [line for language, text in BLOCKS if language == "bash" for line in command_lines(text)]
PYTHON = [text for language, text in BLOCKS if language == "python"]


def test_collector_found_the_examples() -> None:
    assert len(COMMANDS) >= 10
    assert len(PYTHON) == 4
    assert {command.split()[0] for command in COMMANDS} == {"make", "segtune", "accelerate", "python"}


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    named = {command.split()[1] for command in COMMANDS if command.startswith("make ")}
    assert named == {"demo", "test"} and named <= targets


def test_links_and_pictures_exist() -> None:
    named = re.findall(r"\]\((?!http)([^)#]+)\)", README) + re.findall(r"`((?:src|recipes|docs)/[\w./-]+)`", README)
    assert named
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_named_tests_exist() -> None:
    named = [path for line in re.findall(r"`pytest ([^`]+)`", README) for path in line.split()]
    assert len(named) >= 15
    assert [name for name in named if not exists(*name.split("::"))] == []
    assert not exists("tests/training/test_trainer.py", "test_of_that_name")


def test_named_scripts_exist() -> None:
    named = re.findall(r"`?python ((?:benchmarks|scripts)/\S+\.py)", README)
    assert {f"benchmarks/{name}.py" for name in ("check_gpu", "compare_transformers", "end_to_end", "metrics")} == set(
        named
    )
    assert [name for name in named if not exists(name)] == []


def exists(path: str, test: str = "") -> bool:
    file = ROOT / path
    return file.exists() and (not test or f"\ndef {test}(" in file.read_text(encoding="utf-8"))


def test_every_equality_names_its_test() -> None:
    section = README.split("## What is equal")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ")][1:]
    assert len(rows) >= 10
    assert [row for row in rows if not re.search(r"\| `pytest [^`]+` \|$", row)] == []
    assert {word for row in rows for word in re.findall(r"bit-equal|up to rounding|not equal", row)} == {
        "bit-equal", "up to rounding", "not equal"
    }  # fmt: skip


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("readme")
    make_workplace(folder)
    return folder


def in_python(command: str) -> list[str]:
    words = smaller(command)
    if words[0] == "python":  # a script of the checkout
        return [sys.executable, str(ROOT / words[1]), *words[2:]]
    if words[:2] == ["segtune", "demo"]:
        return [sys.executable, "-c", f"{DEMO}main(sys.argv[1:])", *words[1:]]
    start = {"segtune": ["-m", "segtune"], "accelerate": ["-m", "accelerate.commands.accelerate_cli"]}[words[0]]
    return [sys.executable, *start, *words[1:]]


def run(words: list[str], folder: Path) -> str:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.slow
def test_commands_run(workplace: Path) -> None:
    ran = [run(in_python(command), workplace) for command in COMMANDS if not command.startswith("make ")]
    assert len(ran) >= 8
    assert (workplace / "runs" / "mine" / "overlays" / "overview.jpg").is_file()
    assert len(list((workplace / "predictions").glob("*.png"))) == 4  # two masks, two overlays
    assert (workplace / "runs" / "demo" / "final" / "model.safetensors").is_file()


@pytest.mark.slow
def test_python_runs(workplace: Path) -> None:
    script = workplace / "readme.py"
    script.write_text("\n".join(PYTHON), encoding="utf-8")
    run([sys.executable, str(script)], workplace)
    assert (workplace / "runs" / "notebook" / "best" / "model.safetensors").is_file()
