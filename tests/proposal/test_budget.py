from __future__ import annotations

import numpy as np
import pytest

from segtune.errors import UsageError
from segtune.proposal.budget import Spent, steps_in
from segtune.proposal.data_facts import DataFacts
from segtune.proposal.pace import Pace
from segtune.training.config import TrainingConfig

ONE = np.ones(1)
FACTS = DataFacts("folder", {"train": 200, "val": 50}, False, (64, 64), (64, 64), ("a",), ONE, ONE, ONE, ONE)
PACE = Pace(step=1.0, image=0.1, saving=1.0, training=TrainingConfig(batch_size=4, accumulation_steps=2))


def test_steps_by_hand() -> None:
    """600 s: 20 + 10 + 5 before and after, 12 for saving; 10 evaluations of 5 s, and one and a half for the report."""
    choice = steps_in("10m", 600, Spent(20, 10), PACE, FACTS)
    steps = int((600 - 20 - 10 - 5 - 12 - 10 * 5 - 1.5 * 5) * 0.85)
    assert choice.settings == {
        "training.max_steps": steps,
        "training.eval_every": -(-steps // 10),
        "training.time_limit": "10m",
    }
    assert "1.0 s a step, measured here" in choice.reason
    assert f"{steps * 8 / 200:.1f} passes through the images" in choice.reason


def test_few_evaluations_of_a_large_split_and_one_without() -> None:
    slow = steps_in("10m", 600, Spent(0, 0), Pace(1.0, 0.4, 1.0, PACE.training), FACTS)  # 20 s: three are 10 %
    assert slow.settings["training.eval_every"] == -(-slow.settings["training.max_steps"] // 3)
    alone = DataFacts("folder", {"train": 200}, False, (64, 64), (64, 64), ("a",), ONE, ONE, ONE, ONE)
    made = steps_in("10m", 600, Spent(0, 0), PACE, alone).settings
    assert made["training.eval_every"] == made["training.max_steps"] == int((600 - 17) * 0.85)


def test_a_budget_that_is_too_small_names_one_that_is_not() -> None:
    with pytest.raises(UsageError) as caught:
        steps_in("30s", 30, Spent(20, 10), PACE, FACTS)
    assert str(caught.value).startswith("--budget 30s leaves time for 0 steps of 1.0 s, beside 47 s for reading")
    assert "give at least 2m" in str(caught.value)  # 47 + 2.5 · 5 + 20 / 0.85 = 83 s
    assert steps_in("2m", 120, Spent(20, 10), PACE, FACTS).settings["training.max_steps"] >= 20
