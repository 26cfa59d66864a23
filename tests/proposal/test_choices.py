"""Every rule, by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from segtune.proposal import choices
from segtune.proposal.choices import Choice, Machine, choose, steps_by_images
from segtune.proposal.data_facts import DataFacts

CPU, GPU = Machine("cpu", "2 CPU cores"), Machine("cuda", "a GPU", "bf16")


@pytest.fixture(autouse=True)
def at_hand(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Checkpoints in the cache of this machine."""
    names: set[str] = set()
    monkeypatch.setattr(choices, "is_at_hand", lambda name: name in names)
    return names


def facts(**fields: Any) -> DataFacts:
    plain: dict[str, Any] = {
        "recognised": "folder",
        "images": {"train": 400, "val": 40},
        "val_is_drawn": False,
        "size": (360, 480),
        "largest": (360, 480),
        "names": ("sky", "road", "pole", "car"),
        "shares": np.array([0.5, 0.4, 0.01, 0.09]),
        "shown": np.array([1.0, 1.0, 0.9, 0.5]),
        "sides": np.array([200.0, 100.0, 20.0, 40.0]),
        "small_sides": np.array([100.0, 50.0, 15.0, 20.0]),
    }
    return DataFacts(**plain | fields)


def settings(facts: DataFacts, machine: Machine = CPU, **given: Any) -> dict[str, Any]:
    given = {key.replace("__", "."): value for key, value in given.items()}
    flat: dict[str, Any] = {}
    for choice in choose(facts, machine, given):
        assert choice.reason and choice.shown
        flat |= choice.settings
    return flat


def test_from_random_weights_on_a_cpu() -> None:
    made = settings(facts())
    assert made["model.name"] is None and made["model.variant"] == "b0"
    assert made["transforms.crop_size"] == 256
    assert (made["training.batch_size"], made["training.effective_batch_size"]) == ("auto", 8)
    assert (made["training.learning_rate"], made["training.head_lr_multiplier"]) == (6e-4, 1.0)
    assert made["evaluation.window"] is None and made["transforms.copy_paste"] == 0
    assert "training.mixed_precision" not in made and "transforms.short_side" not in made


def test_weights_that_lie_here_are_taken(at_hand: set[str]) -> None:
    at_hand.add("nvidia/mit-b0")
    made = settings(facts())
    assert made["model.name"] == "nvidia/mit-b0" and "model.variant" not in made
    assert (made["training.learning_rate"], made["training.head_lr_multiplier"]) == (6e-5, 10.0)
    assert settings(facts(), GPU)["model.name"] == "nvidia/mit-b0"
    at_hand.add("nvidia/mit-b2")
    assert settings(facts(), GPU)["model.name"] == "nvidia/mit-b2"
    assert settings(facts())["model.name"] == "nvidia/mit-b0"
    assert settings(facts(), model__name=None)["model.name"] is None


def test_what_the_user_said_stays_and_is_built_upon() -> None:
    made = settings(facts(), model__name="runs/mine/best", transforms__crop_size=96, evaluation__window=128)
    assert made["model.name"] == "runs/mine/best" and made["training.learning_rate"] == 6e-5
    assert made["transforms.crop_size"] == 96 and made["evaluation.window"] == 128
    numbers = settings(facts(), training__batch_size=4, training__accumulation_steps=8)
    assert "training.effective_batch_size" not in numbers
    assert numbers["training.learning_rate"] == pytest.approx(6e-4 * 2)  # 32 images: the root of 4
    choice = Choice("crop", "256", "why", {"transforms.crop_size": 256}).after({"transforms.crop_size": 64})
    assert (choice.shown, choice.reason) == ("transforms.crop_size=64", "as you say")


@pytest.mark.parametrize(
    ("size", "machine", "side"),
    [
        ((360, 480), CPU, 256),
        ((180, 180), CPU, 160),  # the short side, in steps of 32
        ((20, 30), CPU, 32),
        ((360, 480), GPU, 352),
        ((1024, 2048), GPU, 512),
    ],
)
def test_crops_follow_the_images(size: tuple[int, int], machine: Machine, side: int) -> None:
    made = settings(facts(size=size, largest=size), machine)
    assert made["transforms.crop_size"] == side and "transforms.short_side" not in made


def test_large_objects_alone_make_smaller_images() -> None:
    """A crop of 256 is to hold two sides of 640 pixels: a fifth of the size, at which the smallest keep 60."""
    large = facts(
        size=(2000, 3000),
        largest=(2000, 3000),
        sides=np.array([900.0, 640.0, 640.0, 300.0]),
        small_sides=np.full(4, 300.0),
    )
    made = settings(large)
    assert (
        made["transforms.short_side"] == made["evaluation.short_side"] == 384
    )  # 2000 · 256 / 1280 = 400, in steps of 32
    assert made["evaluation.window"] is None  # 384 x 576
    with_small = facts(
        size=(2000, 3000),
        largest=(2000, 3000),
        sides=np.array([900.0, 640.0, 640.0, 300.0]),
        small_sides=np.full(4, 15.0),
    )
    made = settings(with_small)
    assert "transforms.short_side" not in made and made["evaluation.window"] == 512


def test_steps_of_a_large_set_take_more_images() -> None:
    made = settings(facts(images={"train": 5000}), GPU)
    assert made["training.effective_batch_size"] == 16 and made["training.mixed_precision"] == "bf16"
    assert made["training.learning_rate"] == pytest.approx(6e-4 * 2**0.5, rel=1e-5)
    assert settings(facts(images={"train": 5000}))["training.effective_batch_size"] == 8


def test_rare_classes_that_few_images_show_are_pasted() -> None:
    """Rare is less than a quarter of an equal share: of four classes, 6.25 %."""
    assert choices.rare_classes(facts()) == [2]
    seldom = facts(shown=np.array([1.0, 1.0, 0.2, 0.5]))
    made = settings(seldom)
    assert made["transforms.copy_paste"] == made["transforms.rare_crop"] == 0.25
    assert "pole 20.0%" in choices.copy_paste(seldom).reason
    absent = facts(shares=np.array([0.5, 0.4, 0.0, 0.1]), shown=np.array([1.0, 1.0, 0.0, 0.5]))
    assert choices.rare_classes(absent) == []


def test_steps_follow_the_number_of_images() -> None:
    made = steps_by_images(facts(), 8, is_random=False).settings
    assert (made["training.max_steps"], made["training.eval_every"]) == (5000, 500)  # 100 · 400 / 8
    assert steps_by_images(facts(), 8, is_random=True).settings["training.max_steps"] == 10_000
    assert steps_by_images(facts(images={"train": 5}), 8, False).settings["training.max_steps"] == 1000
    assert steps_by_images(facts(images={"train": 10**6}), 8, False).settings["training.max_steps"] == 40_000
