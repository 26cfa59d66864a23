"""What the documents in docs/ show works: recipes load, commands run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

from segtune import cli
from segtune.recipe import load_recipe

DOCS = Path(__file__).resolve().parents[2] / "docs"
BLOCKS = [
    (path.name, language, text)
    for path in sorted(DOCS.glob("*.md"))
    for language, text in re.findall(r"^```(\w+)\n(.*?)^```$", path.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
]
RECIPES = [(name, text) for name, language, text in BLOCKS if language == "yaml" and text.startswith("transforms:")]
COMMANDS = [
    (name, line.split("  #")[0].strip())
    for name, language, text in BLOCKS
    for line in text.splitlines()
    if language == "bash" and line.startswith("segtune data")
]


def test_collectors_found_the_examples() -> None:
    assert len(RECIPES) >= 2
    assert len(COMMANDS) >= 5


@pytest.mark.parametrize(("name", "text"), RECIPES)
def test_examples_are_valid_recipes(name: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"dataset: {{path: data/x}}\n{text}", encoding="utf-8")
    given = yaml.safe_load(text)["transforms"]
    assert given and set(given) <= load_recipe(path).transforms.model_fields_set


@pytest.mark.slow
def test_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, command in COMMANDS:
        with pytest.raises(SystemExit) as left:
            cli.main(shlex.split(command)[1:])
        assert not left.value.code, f"{name}: {command}"
    assert {"preview.png", "strong.png", "converted"} <= {path.name for path in tmp_path.iterdir()}
