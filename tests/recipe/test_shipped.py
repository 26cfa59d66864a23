from __future__ import annotations

from pathlib import Path

import pytest

from segtune.errors import UsageError
from segtune.recipe import shipped
from segtune.recipe.shipped import find_recipe, list_recipes, read_header, recipe_folder, recipe_name, recipe_table

HEADER = """# command: segtune train x
# cost: nothing
# result: mIoU 0.5: good
# data: scenes
# size: 3 train
# license: CC0
# checked: layout
# facts: two books
"""
REST = ("data", "size", "license", "checked", "facts")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe folder with some recipes."""
    for name in (
        "one.yaml",
        "pair/big.yaml",
        "pair/segformer-b0.yaml",
        "rest/a.yaml",
        "rest/b.yml",
        "accelerate/c.yaml",
    ):
        path = tmp_path / "recipes" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(HEADER, encoding="utf-8")
    (tmp_path / "recipes" / "README.md").write_text("# not a recipe", encoding="utf-8")
    monkeypatch.setattr(shipped, "recipe_folder", lambda: tmp_path / "recipes")
    return tmp_path / "recipes"


def test_shipped_recipes_are_found() -> None:
    assert {"demo", "camvid/segformer-b0"} <= {recipe.name for recipe in list_recipes()}
    assert find_recipe("demo") == recipe_folder() / "demo.yaml"
    assert (
        find_recipe("camvid") == find_recipe("camvid/segformer-b0") == recipe_folder() / "camvid" / "segformer-b0.yaml"
    )


def test_list_is_sorted_and_leaves_launch_configurations_out(folder: Path) -> None:
    recipes = list_recipes()
    assert [recipe.name for recipe in recipes] == ["one", "pair/big", "pair/segformer-b0", "rest/a", "rest/b"]
    assert recipes[0].path == folder / "one.yaml"
    assert (recipes[0].command, recipes[0].cost, recipes[0].result) == ("segtune train x", "nothing", "mIoU 0.5: good")


def test_templates_come_last_and_a_default_model_needs_no_name(folder: Path) -> None:
    (folder / "a.yaml").write_text(HEADER.replace("scenes", "your own scenes"), encoding="utf-8")
    recipes = list_recipes()
    assert [recipe.name for recipe in recipes if recipe.is_template] == ["a"] == [recipes[-1].name]
    assert [recipe.short_name for recipe in recipes] == ["one", "pair/big", "pair", "rest/a", "rest/b", "a"]
    assert [find_recipe(recipe.short_name) for recipe in recipes] == [recipe.path for recipe in recipes]
    row = recipes[-1].to_dict()
    assert (row["template"], row["facts"], row["path"]) == (True, "two books", str(folder / "a.yaml"))


def test_header_lines_have_an_order(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("# cost: 1\n# command: a\nresult: 3\n", encoding="utf-8")
    assert read_header(path) == dict.fromkeys(("command", "cost", "result", *REST), "")
    path.write_text("# command: a\n", encoding="utf-8")
    assert read_header(path) == {"command": "a"} | dict.fromkeys(("cost", "result", *REST), "")


@pytest.mark.parametrize(
    ("ref", "path"),
    [("one", "one.yaml"), ("pair", "pair/segformer-b0.yaml"), ("pair/big", "pair/big.yaml"), ("rest/b", "rest/b.yml")],
)
def test_names(folder: Path, ref: str, path: str) -> None:
    assert find_recipe(ref) == folder / path


def test_path_of_a_file(folder: Path) -> None:
    assert find_recipe(folder / "one.yaml") == folder / "one.yaml"
    assert find_recipe(str(folder / "rest" / "b.yml")) == folder / "rest" / "b.yml"


@pytest.mark.parametrize(
    ("ref", "message"),
    [
        ("mine/none.yaml", "mine/none.yaml: no such recipe file"),
        ("oen", "'oen': no shipped recipe of this name, and no such file or folder; did you mean 'one'?"),
        (
            "zebra",
            "file or folder\n  data sets: one, pair/big, pair, rest/a, rest/b\n  your own data: none\n`seg",
        ),
        ("rest", "'rest' stands for several recipes; name one: rest/a, rest/b"),
        ("/none/here", r"^/none/here: there is no such file or folder$"),
        ("./none", r"^\./none: there is no such file or folder$"),
        ("accelerate/c", "no shipped recipe of this name"),
        ("", "no shipped recipe of this name"),
    ],
)
def test_wrong_reference(folder: Path, ref: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        find_recipe(ref)


def test_a_folder_is_told_from_a_slip(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my data").mkdir()
    for ref in ("my data", "./my data", str(tmp_path / "my data")):
        with pytest.raises(
            UsageError, match=r"my data is a folder, and no recipe: segtune recipes propose '.*my data'"
        ):
            find_recipe(ref)
    (tmp_path / "my data" / "recipe.yaml").touch()
    with pytest.raises(UsageError, match=r"is the folder of a run, and no recipe: did you mean my data/recipe.yaml\?"):
        find_recipe("my data")


def test_file_with_another_suffix(folder: Path) -> None:
    (folder / "notes.txt").touch()
    with pytest.raises(UsageError, match=r"notes.txt: a recipe file's name ends in \.yaml"):
        find_recipe(folder / "notes.txt")


def test_name_of_runs(folder: Path, tmp_path: Path) -> None:
    assert recipe_name(folder / "one.yaml") == "one"
    assert recipe_name(folder / "pair" / "big.yaml") == "pair-big"
    assert recipe_name(tmp_path / "elsewhere" / "mine.v2.yaml") == "mine.v2"


def test_table(folder: Path) -> None:
    assert recipe_table(list_recipes()[:1]) == (
        "| recipe | data | size | license | checked | cost | result |\n|---|---|---|---|---|---|---|\n"
        "| [one](one.yaml) | scenes | 3 train | CC0 | layout | nothing | mIoU 0.5: good |\n"
    )


def test_recipes_inside_the_package_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "src" / "segtune"
    package.mkdir(parents=True)
    (tmp_path / "recipes").mkdir()
    monkeypatch.setattr(shipped, "__file__", str(package / "recipe" / "shipped.py"))
    assert recipe_folder() == tmp_path / "recipes"  # a checkout
    (package / "recipes").mkdir()
    assert recipe_folder() == package / "recipes"  # a wheel


def test_installed_package_takes_no_recipes_from_around_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site-packages" / "segtune"
    package.mkdir(parents=True)
    (tmp_path / "recipes").mkdir()
    monkeypatch.setattr(shipped, "__file__", str(package / "recipe" / "shipped.py"))
    assert recipe_folder() == package / "recipes"
    assert list_recipes() == []
