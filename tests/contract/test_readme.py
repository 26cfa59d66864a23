"""Every command and every piece of Python in the README runs, in the order in which it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from support.examples import TINY, blocks, command_lines, make_workplace, run_examples, smaller, smaller_code

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


def small_words(command: str) -> list[str]:
    words = smaller(command)
    return [*words, TINY] if "train" in words else words


@pytest.mark.slow
def test_commands_and_python_run(tmp_path: Path) -> None:
    make_workplace(tmp_path)
    examples = [
        ("README.md", language, smaller_code(example) if language == "python" else small_words(example))
        for language, text in BLOCKS
        if language in {"bash", "python"}
        for example in (command_lines(text) if language == "bash" else [text])
        if not example.startswith("make ")
    ]
    assert len(examples) >= 12 and sum(TINY in example for _, _, example in examples) == 3
    run_examples(examples, tmp_path)
    assert (tmp_path / "runs" / "mine" / "overlays" / "overview.jpg").is_file()
    assert len(list((tmp_path / "predictions").glob("*.png"))) == 4  # two masks, two overlays
    for run in ("demo", "notebook"):
        for weights in ("best", "final"):
            assert (tmp_path / "runs" / run / weights / "model.safetensors").is_file()
