from __future__ import annotations

from pathlib import Path

import pytest

from segtune.errors import UsageError
from segtune.pretraining.config import USED, PretrainingRecipe, load_pretraining
from segtune.recipe.recipe import Recipe
from segtune.recipe.yaml_file import parse_yaml

RUN = "runs/x"


def test_defaults_are_those_of_simmim_and_overrides_keep_them(tmp_path: Path) -> None:
    recipe = load_pretraining(str(tmp_path), RUN, ["training.learning_rate=1e-3", "transforms.scale=[0.5, 1]"])
    training = recipe.training
    assert (training.schedule, training.weight_decay, training.max_grad_norm) == ("cosine", 0.05, 5.0)
    assert training.learning_rate == 1e-3 and recipe.transforms.scale == (0.5, 1)
    assert (recipe.masking.ratio, recipe.masking.patch_size, recipe.crop_size) == (0.6, 32, (224, 224))
    assert recipe.patches == (7, 7)
    assert load_pretraining(str(tmp_path), RUN, ["transforms.crop_size=[64, 96]"]).patches == (2, 3)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.loss={dice: 1}", r"training\.loss: pretraining, which sees no labels, has no use for that"),
        ("transforms.photometric=true", r"transforms\.photometric: pretraining"),
        ("model.lora={rank: 4}", "lora adapts a checkpoint"),
        ("hub.push=end", r"hub\.push"),
        ("masking.ratio=1", r"masking\.ratio = 1"),
        ("masking.share=0.5", r"masking\.share = 0\.5: no such key"),
        ("transforms.crop_size=100", r"transforms\.crop_size=\[100, 100\] must be multiples of 32"),
        ("masking.patch_size=48", r"must be multiples of 48, masking\.patch_size"),
        ("masking.patch_size=224", "nothing is left to see"),
        ("training.batch_size=auto", r"training\.batch_size = \"auto\": expected a whole number"),
        ("model.variant=b9", r"model\.variant = \"b9\""),
    ],
)
def test_what_makes_no_sense_is_told(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_pretraining(str(tmp_path), RUN, [override])


def test_folders_that_cannot_be_are_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"run lies among the pictures of .*: choose another run folder"):
        load_pretraining(str(tmp_path), tmp_path / "run")
    with pytest.raises(UsageError, match="nowhere: there is no such folder of pictures"):
        load_pretraining(str(tmp_path / "nowhere"), RUN)


def test_the_stored_recipe_has_every_key_that_is_used_and_makes_the_same(tmp_path: Path) -> None:
    recipe = load_pretraining(str(tmp_path), RUN, ["masking.ratio=0.5"])
    stored = parse_yaml(recipe.to_yaml())
    assert {name: set(keys) for name, keys in stored.items()} == USED
    assert PretrainingRecipe.model_validate(stored) == recipe


def test_the_keys_that_are_used_exist() -> None:
    fields = PretrainingRecipe.model_fields
    assert set(fields) - set(Recipe.model_fields) == {"masking"}
    for name, keys in USED.items():
        assert keys <= set(fields[name].annotation.model_fields), name  # type: ignore[union-attr]
