"""What the pages of the documentation show works: recipes load; commands and Python run, page after page."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest
import typer
import yaml

import segtune
from segtune.cli.main import _application
from segtune.recipe.recipe import load_recipe
from support.examples import TINY, blocks, command_lines, make_workplace, run_examples, smaller, smaller_code
from support.minihub import environment, serve

ROOT = Path(__file__).resolve().parents[2]
PAGES = re.findall(r"^ +- .*: (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), flags=re.MULTILINE)
NAV = [page for page in PAGES if not page.startswith("notebooks/")]  # those are run by tests/notebooks


class Example(NamedTuple):
    page: str
    kind: str  # bash: one command; python, yaml: a block
    text: str


def home(page: str) -> Path:
    return ROOT / page if page.startswith("recipes/") else ROOT / "docs" / page


def read(page: str) -> str:
    return home(page).read_text(encoding="utf-8")


EXAMPLES = [
    Example(page, language, text)
    for page in NAV
    for language, block in blocks(read(page))
    for text in (command_lines(block) if language == "bash" else [block])
]
RECIPES = [example for example in EXAMPLES if example.kind == "yaml" and not example.text.startswith("dataset:")]
PUBLISH = """
import transformers

published = transformers.SegformerForImageClassification(transformers.SegformerConfig(num_labels=1000))
published.push_to_hub("nvidia/mit-b0", token="hf_nvidia")
"""


def test_collectors_found_the_examples() -> None:
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} | {"recipes/README.md"}
    assert set(NAV) == pages and len(NAV) >= 12
    rendered = {f"notebooks/{path.stem}.md" for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert set(PAGES) == pages | rendered and len(rendered) == 4
    count = Counter((example.page, example.kind) for example in EXAMPLES)
    with_commands = {page for page, kind in count if kind == "bash"}
    without = {
        "api.md",
        "architecture.md",
        "data.md",
        "drop-in.md",
        "formats.md",
        "reliability.md",
        "stability.md",
        "training.md",
    }
    assert with_commands == pages - without
    total = Counter(example.kind for example in EXAMPLES)
    assert total["bash"] >= 45 and total["python"] >= 8 and len(RECIPES) >= 3


def test_every_public_name_is_in_the_reference() -> None:
    named = re.findall(r"^::: segtune\.\S+\.(\w+)$", read("api.md"), flags=re.MULTILINE)
    assert sorted(named) == sorted(set(segtune.__all__) - {"__version__"})


def test_promised_commands_are_all_commands() -> None:
    (listed,) = re.findall(r"\*\*Commands\*\*: (.*?), their arguments", read("stability.md"), flags=re.DOTALL)
    app = typer.main.get_command(_application())
    assert sorted(re.findall(r"`([\w-]+)`", listed)) == sorted(app.commands)


def test_promised_names_of_a_run_are_those_it_has() -> None:
    (listed,) = re.findall(r"\*\*A run folder\*\*: (.*?)\. Of a line", read("stability.md"), flags=re.DOTALL)
    shown = read("../README.md").split("## What a run leaves behind")[1].split("```")[1]
    names = re.findall(r"`([\w./]+)`", listed)
    assert len(names) >= 8 and [name for name in names if name not in re.split(r"\s+", shown)] == []


def test_links_hold_in_the_repository() -> None:
    links = [(page, link) for page in PAGES for link in re.findall(r"\]\((?!https?:)([^)#]+)", read(page))]
    assert len(links) >= 20
    assert [(page, link) for page, link in links if not (home(page).parent / link).is_file()] == []


@pytest.mark.parametrize("example", RECIPES, ids=lambda example: example.page)
def test_examples_are_valid_recipes(example: Example, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"dataset: {{path: data/x}}\n{example.text}", encoding="utf-8")
    ((section, given),) = yaml.safe_load(example.text).items()
    assert given and set(given) <= getattr(load_recipe(path), section).model_fields_set


def words_of(command: str) -> list[str]:
    words = smaller(command)
    own_data = any(word == "camvid" or word.endswith("mine.yaml") for word in words)
    if "train" in words:
        words += ["training.report=false", "training.overwrite=true", TINY]
        words += [word for word in words if word.startswith("model.name=tester/")]
    if own_data and words[1] in {"train", "doctor", "report"}:
        words += ["dataset.path=data/mine", "dataset.labels=classes.json", "transforms.crop_size=64"]
    if own_data and words[1] == "doctor":
        words += ["model.name=null", TINY]
    return [word.replace("user/name", "runs/mine/best") for word in words]


@pytest.mark.slow
def test_commands_and_python_run(tmp_path: Path) -> None:
    make_workplace(tmp_path)
    runs = [
        (page, kind, words_of(text) if kind == "bash" else smaller_code(text))
        for page, kind, text in EXAMPLES
        if kind == "python" or (kind == "bash" and text.startswith("segtune "))
    ]
    assert len(runs) >= 50 and sum(kind == "python" and TINY in example for _, kind, example in runs) == 1
    with serve() as (_, url):
        examples = [("the Hub", "python", PUBLISH), *runs]
        run_examples(examples, tmp_path, **environment(url, tmp_path / "home", "hf_write"))
    made = {"preview.png", "strong.png", "converted", "predictions", "regions", "final.npz"}
    assert made <= {path.name for path in tmp_path.iterdir()}


@pytest.mark.slow
def test_site_builds_without_a_warning_and_asks_nobody(tmp_path: Path) -> None:
    """`make docs`: links are checked, and no page loads anything from elsewhere."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    variables = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pages = [path.read_text(encoding="utf-8") for path in tmp_path.rglob("*.html")]
    assert len(pages) == len(PAGES) + 1  # and 404.html
    loaded = re.findall(r"<(?:script|link|img|iframe)\b[^>]*(?:src|href)=[\"']?([^\"' >]+)", "".join(pages))
    assert len(loaded) >= 5 * len(pages)
    assert [name for name in loaded if name.startswith(("http", "//"))] == []
    styles = "".join(path.read_text(encoding="utf-8") for path in tmp_path.rglob("*.css"))
    assert styles and not re.search(r"(?:url\(|@import)\s*[\"']?(?:http|//)", styles)
