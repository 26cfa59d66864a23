from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import segtune.recipe
from segtune.config import walk_fields
from segtune.errors import UsageError
from segtune.recipe.recipe import Recipe, load_recipe
from segtune.recipe.schema import json_schema, list_settings, settings_as_markdown
from segtune.recipe.shipped import find_recipe, list_recipes
from segtune.recipe.yaml_file import parse_yaml

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = Path(segtune.recipe.__file__).with_name("recipe.schema.json")
SCHEMA: dict[str, Any] = json.loads(SHIPPED.read_text(encoding="utf-8"))
KEYS = {".".join(keys) for keys, _ in walk_fields(Recipe)}
# A dotted name that begins with a section: `training.max_steps`, `training.loss={…}`; no file, function or module.
MENTION = re.compile(rf"(?<![\w./])(?:{'|'.join(Recipe.model_fields)})(?:\.[a-z_][a-z_0-9]*)+(?![\w(/])")
FILES = (".md", ".yaml", ".zip", ".safetensors", ".h5")


def test_every_section_and_setting_has_a_description() -> None:
    assert [keys for keys, field in walk_fields(Recipe) if not field.description] == []
    assert len(KEYS) >= 100
    odd = [keys for keys, field in walk_fields(Recipe) if not re.fullmatch(r"\S.*[.)]", field.description or "")]
    assert odd == []


def test_shipped_schema_is_that_of_the_models() -> None:
    made = json.loads(json_schema())
    assert made == SCHEMA, "write the output of `segtune recipes schema` to src/segtune/recipe/recipe.schema.json"
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("name", [recipe.name for recipe in list_recipes()])
def test_shipped_recipes_fit_the_schema(name: str) -> None:
    jsonschema.validate(parse_yaml(find_recipe(name).read_bytes()), SCHEMA)
    jsonschema.validate(parse_yaml(load_recipe(name).to_yaml()), SCHEMA)


@pytest.mark.parametrize(
    "change",
    [
        {"trainig": {}},
        {"training": {"max_stps": 3}},
        {"training": {"max_steps": 0}},
        {"training": {"schedule": "linear"}},
        {"training": {"loss": {"dice": "much"}}},
        {"transforms": {"scale": [1]}},
        {"dataset": {}},
    ],
)
def test_schema_finds_faults(change: dict[str, Any]) -> None:
    jsonschema.validate({"dataset": {"path": "x"}}, SCHEMA)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"dataset": {"path": "x"}, **change}, SCHEMA)


def test_settings_are_listed_by_section_and_by_key() -> None:
    assert list_settings("training.max_steps") == [
        {
            "key": "training.max_steps",
            "type": "a whole number",
            "default": 1000,
            "required": False,
            "may_change_on_resume": False,
            "description": "Optimizer steps.",
        }
    ]
    settings = {row["key"]: row for row in list_settings()}
    assert settings.keys() == {key for key in KEYS if "." in key}
    assert [row["key"] for row in list_settings("training.freeze")] == [
        "training.freeze",
        "training.freeze.encoder",
        "training.freeze.stages",
    ]
    assert settings["dataset.path"]["required"] and not settings["dataset.format"]["required"]
    assert settings["training.device"]["may_change_on_resume"] and settings["training.freeze"]["default"] == {}
    assert json.loads(json.dumps(settings)) == settings


@pytest.mark.parametrize(
    ("prefix", "hint"),
    [
        ("trainin", "did you mean 'training'?"),
        ("training.max_step", "did you mean 'training.max_steps'?"),
        ("transforms.eval_window", "did you mean 'evaluation.window'?"),
        ("zebra", "sections are dataset, transforms, model, training, evaluation, hub, search"),
    ],
)
def test_settings_that_there_are_not(prefix: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        list_settings(prefix)
    assert str(caught.value) == f"'{prefix}': a recipe has no such section or key; {hint}"


def test_cells_of_markdown_hold_no_markup() -> None:
    row = list_settings("training.overlays")[0] | {"description": "a | b <c>"}
    assert settings_as_markdown([row]).splitlines()[-1] == (
        "| `training.overlays` † | a whole number | `4` | a \\| b &lt;c&gt; |"
    )


def test_docs_hold_the_tables_made_from_the_models() -> None:
    page = (ROOT / "docs" / "recipe.md").read_text(encoding="utf-8")
    tables = settings_as_markdown(list_settings())
    assert page[page.index("## `dataset`") :] == tables, "paste the output of: segtune recipes keys --markdown"


def texts() -> Iterator[tuple[str, str]]:
    """What users read: the documentation, the recipes, the notebooks, and every message of the package."""
    for pattern in ("README.md", "docs/*.md", "recipes/**/*.md", "recipes/**/*.yaml", "notebooks/*.ipynb"):
        for path in sorted(ROOT.glob(pattern)):
            text = path.read_text(encoding="utf-8")
            # In a notebook, `model.decode_head` is an attribute.
            yield path.name, re.sub(r"\bmodel\.(?!config)\w+(?!=)\b", "", text) if path.suffix == ".ipynb" else text
    for path in sorted((ROOT / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield path.name, node.value


def test_every_key_that_is_named_anywhere_exists() -> None:
    named = {(file, key) for file, text in texts() for key in MENTION.findall(text) if not is_another_name(key)}
    assert len({key for _, key in named}) >= 100
    assert [(file, key) for file, key in sorted(named) if key not in KEYS] == []


def is_another_name(dotted: str) -> bool:
    """A field of SegformerConfig, a file, or a module of ours such as `training.checkpoint` with what is in it."""
    module = ROOT.joinpath("src", "segtune", *dotted.split(".")[:2])
    is_module = module.with_suffix(".py").is_file() or module.is_dir()
    return dotted.startswith("model.config.") or dotted.endswith(FILES) or is_module
