from __future__ import annotations

from typing import Any

import pytest

from segtune.training.config import TrainingConfig


def test_training_states_by_default() -> None:
    assert TrainingConfig(max_steps=300).state_every == 30
    assert TrainingConfig(max_steps=4).state_every == 1
    assert TrainingConfig(save_every=0).state_every is None
    assert TrainingConfig(save_every=7).state_every == 7


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"warmup_steps": 10, "max_steps": 10}, "warmup_steps=10 must be below max_steps=10"),
        ({"betas": (0.9, 1.0)}, "betas"),
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 10**9}, "less than or equal to 65536"),
        ({"num_workers": 10**6}, "less than or equal to 1024"),
        ({"time_limit": "8.5h"}, "is no duration"),
        ({"schedule": "linear"}, "poly"),
    ],
)
def test_wrong_settings_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainingConfig(**fields)


def test_warmup_defaults_to_a_twentieth() -> None:
    assert TrainingConfig(max_steps=300).warmup == 15
    assert TrainingConfig(max_steps=160_000).warmup == 1500
    assert TrainingConfig(max_steps=300, warmup_steps=0).warmup == 0
