from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from segtune.recipe.recipe import load_recipe
from segtune.recipe.schema import json_schema, list_settings, settings_as_markdown
from segtune.recipe.shipped import list_recipes, recipe_folder, recipe_table


def test_recipes_are_listed_with_their_headers(segtune_command: Any) -> None:
    code, out, _ = segtune_command("recipes")
    assert code == 0
    recipes = list_recipes()
    rows = [line.split() for line in out.splitlines()]
    starts = [row[0] for row in rows[3:] if row and row[0] in {recipe.short_name for recipe in recipes}]
    assert starts == [recipe.short_name for recipe in recipes] and len(starts) == 22
    (camvid,) = [line for line in out.splitlines() if line.split()[:1] == ["camvid"]]
    assert "CamVid, street scenes, 11 classes" in camvid and "CC BY-NC 4.0" in camvid and "real data" in camvid
    assert "22 recipes; 3 of them are templates for your own data: my-binary, my-coco, my-folder\n" in out
    assert "segtune recipes copy NAME mine.yaml" in out
    listed = json.loads(segtune_command("recipes", "--json").out)["recipes"]
    assert listed == [recipe.to_dict() for recipe in recipes]
    assert segtune_command("recipes", "--markdown").out == recipe_table(recipes)


def test_keys_are_explained(segtune_command: Any) -> None:
    code, out, _ = segtune_command("recipes", "keys", "evaluation")
    assert code == 0
    lines = out.splitlines()
    (window,) = [line for line in lines if line.split()[:1] == ["evaluation.window"]]
    assert "a whole number or null" in window and "Side of the windows" in window
    assert any(line.split()[:2] == ["evaluation.batch_size", "†"] for line in lines) and lines[-1].startswith("† may")
    assert json.loads(segtune_command("recipes", "keys", "--json").out)["keys"] == list_settings()
    assert segtune_command("recipes", "keys", "hub", "--markdown").out == settings_as_markdown(list_settings("hub"))
    code, out, err = segtune_command("recipes", "keys", "evaluation.windo")
    assert (code, out) == (2, "")
    assert err == "error: 'evaluation.windo': a recipe has no such section or key; did you mean 'evaluation.window'?\n"


def test_schema_is_printed(segtune_command: Any) -> None:
    assert segtune_command("recipes", "schema") == (0, json_schema(), "")


def test_recipe_is_copied_and_never_overwritten_unasked(
    segtune_command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert segtune_command("recipes", "copy", "camvid") == (0, "camvid-segformer-b0.yaml\n", "")
    assert load_recipe("camvid-segformer-b0.yaml").dataset == load_recipe("camvid").dataset
    assert segtune_command("recipes", "copy", "demo", "new/mine.yaml").code == 0
    mine = tmp_path / "new" / "mine.yaml"
    mine.write_text("changed")
    code, out, err = segtune_command("recipes", "copy", "demo", "new/mine.yaml")
    assert (code, out, mine.read_text()) == (2, "", "changed")
    assert err == "error: new/mine.yaml exists already; name another file, or say --force to overwrite it\n"
    assert segtune_command("recipes", "copy", "demo", "new/mine.yaml", "--force").code == 0
    assert mine.read_text(encoding="utf-8") == (recipe_folder() / "demo.yaml").read_text(encoding="utf-8")


def test_a_recipe_is_proposed_for_data(
    segtune_command: Any, earth: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, printed, _ = segtune_command("recipes", "propose", earth, "training.seed=7")
    assert code == 0 and printed.startswith("# Proposed by segtune")
    code, out, _ = segtune_command("recipes", "propose", earth, "training.seed=7", "-o", "new/mine.yaml")
    assert code == 0
    assert (tmp_path / "new" / "mine.yaml").read_text(encoding="utf-8") == printed
    assert load_recipe("new/mine.yaml").training.seed == 7
    topics = [line.split()[0] for line in out.splitlines() if not line.startswith(" ")]
    assert topics[:3] == ["data", "weights", "crop"] and topics[-2:] == ["recipe:", "next:"]
    assert out.endswith("recipe: new/mine.yaml\nnext: segtune train new/mine.yaml\n")
    assert segtune_command("recipes", "propose", earth, "-o", "new/mine.yaml").code == 2


def test_proposals_are_for_data(segtune_command: Any, earth: Path) -> None:
    code, _, err = segtune_command("recipes", "propose", "demo")
    assert (code, err) == (2, "error: demo is a recipe already; a folder of data that has the name of one is ./demo\n")
    assert "'demoo': no shipped recipe of this name" in segtune_command("recipes", "propose", "demoo").err
    code, _, err = segtune_command("recipes", "propose", earth, "--budget", "2.5h")
    assert (code, err) == (2, "error: --budget '2.5h' is no duration: write 90s, 30m, 8h30m or 1d\n")
    assert "training.stepps = 3: no such key" in segtune_command("recipes", "propose", earth, "training.stepps=3").err
