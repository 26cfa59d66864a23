from __future__ import annotations

import json

import pytest
import torch

from benchmarks.end_to_end import SIDES, main, rate, table


def test_an_evaluation_is_spread_over_the_steps_of_its_epoch() -> None:
    assert rate({"step_s": 1.0, "evaluation_s": 10.0}, epoch=5, batch_size=6) == 2.0


def test_table_has_both_sides_and_a_verdict() -> None:
    row = {"images_per_second": 8.0, "step_s": 1.0, "evaluation_s": 2.0, "peak_memory_mb": 700.0}
    result = {"segtune": row, "transformers": row | {"images_per_second": 2.0}, "ratio": 4.0}
    lines = table(result).splitlines()
    assert lines[1].split() == ["images", "per", "second", "8.00", "2.00"]
    assert lines[-1] == "4.00 times the images per second: the bar of 2.5 is met"
    assert table(result | {"ratio": 2.0}).endswith("is missed")


@pytest.mark.slow
def test_both_train_and_are_scored(capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    arguments = ["--recipe", "demo", "--size", "32", "--batch-size", "2", "--steps", "2", "--rounds", "1"]
    main([*arguments, "--seconds", "1", "--threads", "1", "--json"])
    torch.set_num_threads(threads)
    result = json.loads(capsys.readouterr().out)
    assert result["steps_of_an_epoch"] == 47 and result["ratio"] > 0
    for side in SIDES:
        row = result[side]
        assert row["images_per_second"] > 0 and row["evaluation_s"] > 0 and row["peak_memory_mb"] > 100
        assert row["steps"] >= 1 and 0 <= row["test_miou"] <= 1
