"""What other systems and newer Pythons need: processes that are started anew, and no import of what only POSIX has."""

from __future__ import annotations

import ast
import pickle
from pathlib import Path

import torch

from segtune.data.dataset import open_dataset
from segtune.data.loader import TrainingBatches
from segtune.recipe.recipe import load_recipe

SOURCE = Path(__file__).resolve().parents[2] / "src" / "segtune"
MODULES = {path.relative_to(SOURCE).as_posix(): path.read_text(encoding="utf-8") for path in SOURCE.rglob("*.py")}
POSIX = {"fcntl", "grp", "pwd", "resource", "termios"}


def test_samples_reach_a_process_that_is_started_anew() -> None:
    """macOS and Windows start loading processes so, and Python 3.14 on Linux: what they get is pickled."""
    recipe = load_recipe("demo")
    rows, label_map = open_dataset(recipe.dataset)
    batches = TrainingBatches(rows["train"], label_map, recipe.transforms, 0, batch_size=2, accumulation_steps=1)
    copy = pickle.loads(pickle.dumps(batches.samples))
    for key in ((0, 0), (1, 5)):
        sample, again = batches.samples[key], copy[key]
        assert sample["id"] == again["id"]
        assert torch.equal(sample["pixel_values"], again["pixel_values"])
        assert torch.equal(sample["labels"], again["labels"])


def test_nothing_is_imported_that_only_posix_has() -> None:
    assert len(MODULES) >= 100
    found = {module: POSIX.intersection(imported(ast.parse(text))) for module, text in MODULES.items()}
    assert {module: names for module, names in found.items() if names} == {}


def test_such_an_import_is_told() -> None:
    assert imported(ast.parse("try:\n    import fcntl\nexcept ImportError:\n    pass")) == ["fcntl"]
    assert imported(ast.parse("def f():\n    import resource")) == []  # where the system was asked before


def imported(node: ast.AST) -> list[str]:
    """The modules that are imported when a module is, not when a function of it is called."""
    names: list[str] = []
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            names += [alias.name for alias in child.names]
        elif isinstance(child, ast.ImportFrom):
            names.append(child.module or "")
        elif not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            names += imported(child)
    return names
