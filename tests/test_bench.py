from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from segtune import bench as bench_module
from segtune.bench import Bench, compare, gmacs, inputs, models, plot_curve, run_bench, saved_bytes, table
from segtune.errors import UsageError

SMALL = Bench(size=64, labels=5, repeats=2)


@pytest.fixture(scope="module")
def result() -> dict:
    with pytest.MonkeyPatch.context() as patch:  # no fresh process for each figure: one test below starts two
        patch.setattr(bench_module, "peak_memory", lambda bench, side, task: 200.0 if side == "segtune" else 400.0)
        return run_bench(SMALL, progress=False)


def test_result_is_complete_and_plain(result: dict) -> None:
    assert json.loads(json.dumps(result)) == result
    for task in ("forward", "predict", "train"):
        for clock in ("wall", "cpu"):
            low, high = result[task][clock]["ratio_quartiles"]
            assert 0 < low <= result[task][clock]["ratio"] <= high
        assert all(100 < megabytes < 10_000 for megabytes in result[task]["peak_mb"].values())
    assert result["largest_difference"] < 1e-4
    assert result["matmul_gflops"] > 0


def test_table_names_both_and_every_measure(result: dict) -> None:
    text = table([result, result])
    assert text.count("segtune") == text.count("transformers") == 2
    for line in ("forward", "prediction, full-size mask", "training step", "saved for backward", "multiply-acc"):
        assert text.count(line) >= 2


def test_work_and_memory_for_backward_are_below_those_of_transformers() -> None:
    ours, theirs = models(replace(SMALL, size=128, labels=50))
    at = replace(SMALL, size=128, labels=50)
    assert gmacs(ours, at) < 0.6 * gmacs(theirs, at)
    assert saved_bytes(ours, at) < 0.6 * saved_bytes(theirs, at)


def test_prediction_is_the_same_on_both_sides() -> None:
    ours, theirs = models(SMALL)
    a, b = (
        bench_module.call(model, side, "predict", SMALL)() for model, side in ((ours, "segtune"), (theirs, "other"))
    )
    assert a.shape == b.shape == (1, 64, 64)
    assert (a == b).float().mean() > 0.999
    assert len(a.unique()) > 1  # no degenerate network


def test_pairs_are_interleaved() -> None:
    calls: list[str] = []
    times = compare(lambda: calls.append("a"), lambda: calls.append("b"), 3)
    assert calls == ["a", "b", "b", "a", "a", "b", "b", "a"]
    assert set(times) == {"wall", "cpu"}


def test_compiled_against_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda model: compiled.append(model) or model)
    times = bench_module.compiled(models(SMALL)[0], SMALL)
    assert len(compiled) == 1 and min(times["compile_s"], times["compiled_s"], times["eager_s"]) > 0


def test_inputs_are_photographs_and_labels_in_range() -> None:
    pixel_values, labels = inputs(SMALL, 3)
    assert pixel_values.shape == (3, 3, 64, 64) and pixel_values.std() > 0.1
    assert labels.shape == (3, 64, 64) and labels.dtype == torch.int64
    assert set(labels.unique().tolist()) <= set(range(5))


@pytest.mark.parametrize("wrong", [{"dtype": "fp8"}, {"size": 0}, {"repeats": 0}])
def test_wrong_settings_are_refused(wrong: dict) -> None:
    with pytest.raises(UsageError):
        Bench(**wrong)


def test_peak_memory_is_that_of_a_fresh_process() -> None:
    large = torch.zeros(100_000_000)  # 400 MB here must not count there
    small, big = (bench_module.peak_memory(replace(SMALL, size=size), "segtune", "forward") for size in (32, 1024))
    assert 100 < small < big - 20
    assert large.sum() == 0 and big < 1500


def test_cost_curve_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_module, "peak_memory", lambda bench, side, task: 100.0 + bench.size)
    rows = bench_module.cost_curve(replace(SMALL, repeats=1), sizes=(32, 64), progress=False)
    assert [row["size"] for row in rows] == [32, 64]
    plot_curve(rows, "a title", tmp_path / "curve.png")
    with Image.open(tmp_path / "curve.png") as picture:
        assert picture.size == (1350, 600)


def test_several_networks_are_measured_each_in_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs: list[dict[str, Any]] = []
    monkeypatch.setattr(bench_module, "run_bench", lambda bench: {"here": bench.size})
    monkeypatch.setattr(bench_module, "_in_fresh_process", lambda job: jobs.append(job) or '{"there": true}')
    assert bench_module.run_benches([SMALL]) == [{"here": SMALL.size}]
    assert jobs == []
    assert bench_module.run_benches([SMALL, replace(SMALL, variant="b1")]) == [{"there": True}] * 2
    assert [(job["bench"]["variant"], "task" in job) for job in jobs] == [(SMALL.variant, False), ("b1", False)]
