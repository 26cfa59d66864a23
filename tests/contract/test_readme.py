"""Every command and every piece of Python in the README runs, in the order in which it stands there."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
COMMANDS = [
    line.split("  #")[0].strip()
    for language, text in BLOCKS
    if language == "bash"
    for line in text.splitlines()
    if line.strip() and not line.startswith("#")
]
PYTHON = [text for language, text in BLOCKS if language == "python"]
# what makes a command small enough for a test, by the word that it starts with
SMALLER = {
    "train": ["training.max_steps=2", "training.batch_size=2", "training.eval_every=null", "model.name=null"],
    "bench": ["--size", "64", "--repeats", "1", "--variants", "b0", "--plot-sizes", "32,64"],
}


def test_collector_found_the_examples() -> None:
    assert len(COMMANDS) >= 10
    assert len(PYTHON) == 4
    assert {command.split()[0] for command in COMMANDS} == {"make", "segtune", "accelerate"}


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
    assert not exists("tests/test_trainer.py", "test_of_that_name")


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
    """A folder with `data/mine`, a few satellite tiles in the layout of the README, and the recipes beside it."""
    folder = tmp_path_factory.mktemp("readme")
    earth = ROOT / "src" / "segtune" / "data" / "earth"
    for split, count in (("train", 6), ("val", 2), ("test", 2)):
        for kind, suffix in (("images", "jpg"), ("masks", "png")):
            target = folder / "data" / "mine" / kind / split
            target.mkdir(parents=True)
            for file in sorted((earth / kind / split).glob(f"*.{suffix}"))[:count]:
                shutil.copy(file, target)
    classes = {"0": "ocean", "1": "land", "2": "land", "3": "land"}  # two ids of one name are merged
    (folder / "data" / "mine" / "classes.json").write_text(json.dumps({"classes": classes, "ignore_id": 255}))
    shutil.copytree(ROOT / "recipes", folder / "recipes")
    return folder


def smaller(command: str) -> list[str]:
    words = shlex.split(command)
    extra = next((more for word, more in SMALLER.items() if word in words), [])
    start = {"segtune": ["-m", "segtune"], "accelerate": ["-m", "accelerate.commands.accelerate_cli"]}[words[0]]
    return [sys.executable, *start, *words[1:], *extra]


def run(words: list[str], folder: Path) -> str:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.slow
def test_commands_run(workplace: Path) -> None:
    ran = [run(smaller(command), workplace) for command in COMMANDS if not command.startswith("make ")]
    assert len(ran) >= 8
    assert (workplace / "runs" / "mine" / "overlays" / "overview.png").is_file()
    assert len(list((workplace / "predictions").glob("*.png"))) == 4  # two masks, two overlays
    assert (workplace / "runs" / "demo" / "final" / "model.safetensors").is_file()


@pytest.mark.slow
def test_python_runs(workplace: Path) -> None:
    script = workplace / "readme.py"
    script.write_text("\n".join(PYTHON), encoding="utf-8")
    run([sys.executable, str(script)], workplace)
    assert (workplace / "runs" / "notebook" / "best" / "model.safetensors").is_file()
