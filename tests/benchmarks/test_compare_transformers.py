from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from benchmarks import compare_transformers
from benchmarks.compare_transformers import (
    Bench,
    call,
    compare,
    gmacs,
    inputs,
    main,
    models,
    plot_curve,
    run_bench,
    saved_bytes,
    table,
)
from segtune.errors import UsageError

SMALL = Bench(size=64, labels=5, repeats=2)


@pytest.fixture(scope="module")
def result() -> dict:
    with pytest.MonkeyPatch.context() as patch:  # no fresh process for each figure: one test below starts two
        patch.setattr(
            compare_transformers, "peak_memory", lambda bench, side, task: 200.0 if side == "segtune" else 400.0
        )
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
    a, b = call(ours, "segtune", "predict", SMALL)(), call(theirs, "transformers", "predict", SMALL)()
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
    times = compare_transformers.compiled(models(SMALL)[0], SMALL)
    assert len(compiled) == 1 and min(times["compile_s"], times["compiled_s"], times["eager_s"]) > 0


def test_inputs_are_photographs_and_labels_in_range() -> None:
    pixel_values, labels = inputs(SMALL, 3)
    assert pixel_values.shape == (3, 3, 64, 64) and pixel_values.std() > 0.1
    assert labels.shape == (3, 64, 64) and labels.dtype == torch.int64
    assert set(labels.unique().tolist()) <= set(range(5))


def test_the_limit_is_that_of_the_faster_library(monkeypatch: pytest.MonkeyPatch) -> None:
    libraries = 1 + hasattr(torch.ops.mkldnn, "_linear_pointwise")
    ends = [3.0, 1.0][-libraries:] * 5  # seconds of each product, MKL's first
    clock = iter([reading for end in ends for reading in (0.0, end)])
    monkeypatch.setattr(compare_transformers.time, "perf_counter", lambda: next(clock))
    assert compare_transformers.matmul_gflops("cpu", size=10) == pytest.approx(2 * 10**3 / 1e9)
    assert next(clock, None) is None


@pytest.mark.parametrize("wrong", [{"dtype": "fp8"}, {"size": 0}, {"repeats": 0}])
def test_wrong_settings_are_refused(wrong: dict) -> None:
    with pytest.raises(UsageError):
        Bench(**wrong)


@pytest.mark.slow
def test_peak_memory_is_that_of_a_fresh_process() -> None:
    large = torch.zeros(100_000_000)  # 400 MB here must not count there
    small, big = (
        compare_transformers.peak_memory(replace(SMALL, size=size), "segtune", "forward") for size in (32, 1024)
    )
    assert 100 < small < big - 20
    assert large.sum() == 0 and big < 1500


def test_cost_curve_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare_transformers, "peak_memory", lambda bench, side, task: 100.0 + bench.size)
    rows = compare_transformers.cost_curve(replace(SMALL, repeats=1), sizes=(32, 64), progress=False)
    assert [row["size"] for row in rows] == [32, 64]
    plot_curve(rows, "a title", tmp_path / "curve.png")
    with Image.open(tmp_path / "curve.png") as picture:
        assert picture.size == (1350, 600)


def test_several_networks_are_measured_each_in_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs: list[dict[str, Any]] = []
    monkeypatch.setattr(compare_transformers, "run_bench", lambda bench: {"here": bench.size})
    monkeypatch.setattr(compare_transformers, "_in_fresh_process", lambda job: jobs.append(job) or '{"there": true}')
    assert compare_transformers.run_benches([SMALL]) == [{"here": SMALL.size}]
    assert jobs == []
    assert compare_transformers.run_benches([SMALL, replace(SMALL, variant="b1")]) == [{"there": True}] * 2
    assert [(job["bench"]["variant"], "task" in job) for job in jobs] == [(SMALL.variant, False), ("b1", False)]


def test_command_prints_one_json_object_and_draws(
    result: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    benches: list[Bench] = []
    monkeypatch.setattr(compare_transformers, "run_bench", lambda bench: benches.append(bench) or result)
    monkeypatch.setattr(compare_transformers, "peak_memory", lambda bench, side, task: 300.0 + bench.size)
    plot = tmp_path / "c.png"
    main(["--size=32", "--labels=3", "--repeats=1", "--json", f"--plot={plot}", "--plot-sizes=32,64"])
    out, err = capsys.readouterr()
    assert benches == [Bench(size=32, labels=3, repeats=1)]
    assert json.loads(out)["results"] == [result]
    assert [row["size"] for row in json.loads(out)["curve"]] == [32, 64]
    assert "c.png" in err and plot.stat().st_size > 1000


def test_command_prints_a_table(
    result: dict, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(compare_transformers, "run_bench", lambda bench: result)
    main(["--variants=b0"])
    assert capsys.readouterr().out == f"{table([result])}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--variants", "b9"), "variant 'b9' does not exist"),
        (("--dtype", "fp8"), "dtype 'fp8': fp32 or bf16"),
        (("--plot", "x.png", "--plot-sizes", "a"), "--plot-sizes: invalid whole_numbers value: 'a'"),
    ],
)
def test_command_refuses(arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2 and message in capsys.readouterr().err
