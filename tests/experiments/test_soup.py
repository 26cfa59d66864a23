from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from segtune import finetune
from segtune.errors import UsageError
from segtune.experiments import soup as module
from segtune.experiments.soup import average, greedy_soup
from segtune.inference.evaluate_checkpoint import evaluate_checkpoint
from segtune.recipe.recipe import Recipe

MakeRecipe = Callable[..., Recipe]


def test_weights_are_averaged_and_counters_are_not() -> None:
    states = [
        {"w": torch.tensor([1.0, 2.0]), "n": torch.tensor(3)},
        {"w": torch.tensor([3.0, 6.0]), "n": torch.tensor(5)},
    ]
    found = average(states)
    assert found["w"].tolist() == [2.0, 4.0] and found["w"].dtype == torch.float32 and found["n"] == 3
    half = average([{"w": torch.tensor([2048.0, 1.0], dtype=torch.float16)}] * 3)
    assert half["w"].tolist() == [2048.0, 1.0] and half["w"].dtype == torch.float16


@pytest.fixture
def trained(tiny_recipe: MakeRecipe, tmp_path: Path) -> list[str]:
    """A run and two that began from its weights."""
    finetune.train(tiny_recipe(max_steps=12, output_dir=str(tmp_path / "0"), report=False))
    for number in (1, 2):
        recipe = tiny_recipe(max_steps=4, output_dir=str(tmp_path / str(number)), report=False, seed=number)
        recipe = recipe.with_changes("model", name=str(tmp_path / "0" / "best"), config={})
        finetune.train(recipe)
    return [str(tmp_path / str(number) / "best") for number in range(3)]


def test_a_soup_is_what_its_figures_say(trained: list[str], tiny_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe, output = tiny_recipe(), tmp_path / "soup"
    result = greedy_soup(trained, recipe, output)
    rows = result["ingredients"]
    alone = {name: evaluate_checkpoint(name, recipe, split="val").scores["mean_iou"] for name in trained}
    assert [row["mean_iou"] for row in rows] == sorted(alone.values(), reverse=True)
    assert all(row["mean_iou"] == alone[row["checkpoint"]] for row in rows)
    # greedy: what was kept did not lower the score
    score = rows[0]["mean_iou"]
    assert rows[0]["kept"]
    for row in rows[1:]:
        assert row["kept"] == (row["with_it"] >= score)
        score = row["with_it"] if row["kept"] else score
    assert result["mean_iou"] == score >= max(alone.values())
    assert result["over_best"]["difference"] == pytest.approx(score - max(alone.values()))
    # the weights are the mean of those that were kept, and score the same when they are loaded
    kept = [load_file(Path(row["checkpoint"]) / "model.safetensors") for row in rows if row["kept"]]
    saved = load_file(output / "model.safetensors")
    for name, value in saved.items():
        if value.is_floating_point():
            assert torch.allclose(value, sum(each[name] for each in kept) / len(kept), atol=1e-6)
    assert evaluate_checkpoint(str(output), recipe, split="val").scores["mean_iou"] == result["mean_iou"]
    assert json.loads((output / "soup.json").read_text()) == result
    assert "greedy soup" in (output / "README.md").read_text()


def test_what_harms_is_left_out(
    trained: list[str], tiny_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mean of three is made worse: of the two others, only the one stays that does no harm."""
    scores = iter([0.5, 0.7, 0.6, 0.7, 0.69])  # alone; best + second; these + third
    real = module._measured
    numbers: dict[int, float] = {}

    def measured(*given: Any) -> Any:
        found = real(*given)
        numbers[id(found)] = next(scores)
        kept.append(found)
        return found

    kept: list[Any] = []
    monkeypatch.setattr(module, "_measured", measured)
    monkeypatch.setattr(module, "_mean_iou", lambda found: numbers[id(found)])
    result = greedy_soup(trained, tiny_recipe(), tmp_path / "soup")
    assert [(row["checkpoint"], row["kept"]) for row in result["ingredients"]] == [
        (trained[1], True),
        (trained[2], True),
        (trained[0], False),
    ]
    one, two = (load_file(Path(trained[number]) / "model.safetensors") for number in (1, 2))
    saved = load_file(tmp_path / "soup" / "model.safetensors")
    name = "decode_head.classifier.weight"
    assert torch.allclose(saved[name], (one[name] + two[name]) / 2, atol=1e-6)


def test_images_that_an_ingredient_has_seen_are_refused(
    trained: list[str], tiny_recipe: MakeRecipe, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"best was trained on 8 of the 8 images of train"):
        greedy_soup(trained, tiny_recipe(), tmp_path / "soup", split="train")


def test_other_shapes_do_not_average(trained: list[str], tiny_recipe: MakeRecipe, tmp_path: Path) -> None:
    other = tiny_recipe(max_steps=1, output_dir=str(tmp_path / "wide"), report=False)
    other = other.with_changes("model", config={**other.model.config, "decoder_hidden_size": 32})
    finetune.train(other)
    with pytest.raises(UsageError, match=r"do not have the shapes of .*segtune predict averages the answers of any"):
        greedy_soup([trained[0], str(tmp_path / "wide" / "best")], tiny_recipe(), tmp_path / "soup")
    assert not (tmp_path / "soup").exists()


def test_a_soup_replaces_a_checkpoint_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "soup").mkdir()
    for name in ("config.json", "model.safetensors", "README.md", "soup.json"):
        (tmp_path / "soup" / name).touch()
    module.refuse_output(tmp_path / "soup", ["runs/a/best"])
    with pytest.raises(UsageError, match=r"it holds .*soup, which would go with it"):
        module.refuse_output(tmp_path / "soup", [str(tmp_path / "soup")])
    with pytest.raises(UsageError, match=r"it holds soup, which this command did not write"):
        module.refuse_output(tmp_path, ["runs/a/best"])
