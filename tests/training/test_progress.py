from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from segtune.bars import QUIET
from segtune.errors import SegtuneError
from segtune.training.config import TrainingConfig
from segtune.training.progress import Throughput, TrainingProgress
from segtune.training.run_folder import RunFolder


def progress_of(folder: Path, **settings: Any) -> TrainingProgress:
    accelerator = Accelerator(cpu=True)
    run = RunFolder(folder, accelerator, resume="never", overwrite=False, keep_last=1)
    run.open(None, None)
    config = TrainingConfig(**{"max_steps": 12, "log_every": 4, "num_workers": 2} | settings)
    return TrainingProgress(run, config, SimpleNamespace(images_per_step=8, epoch=lambda step: step * 8 / 32), {})


def batches(count: int, seconds: float = 0.0) -> Iterator[list[dict[str, Any]]]:
    for step in range(count):
        time.sleep(seconds)
        yield [{"pixel_values": torch.full((2, 3, 4, 4), float(step)), "ids": [f"a{step}", f"b{step}"]}]


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_lines_of_the_log(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")  # the width of the bar
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)  # a terminal, which has a bar
    progress = progress_of(tmp_path)
    with progress.logged_from(0):
        for step, micro_batches in enumerate(progress.timed(batches(12)), start=1):
            progress.add(torch.tensor(float(step)), torch.tensor(0.5), 0.01, micro_batches)
        progress.finish("done")
    *steps, end = lines(tmp_path)
    assert [(line["step"], line["loss"], line["epoch"]) for line in steps] == [
        (4, 2.5, 1.0),
        (8, 6.5, 2.0),
        (12, 10.5, 3.0),
    ]
    assert all(line["lr"] == 0.01 and line["grad_norm"] == 0.5 and line["images_per_second"] > 0 for line in steps)
    assert all(0 <= line["waiting_for_data"] <= 1 and line["peak_memory_mb"] > 50 for line in steps)
    assert end["step"] == 12 and end["ended"] == "done" and end["seconds"] > 0 and end["peak_memory_mb"] > 50
    shown = capsys.readouterr().err
    assert "12/12" in shown and "loss=10.5000, lr=1.00e-02" in shown and "images/s" in shown


def test_a_line_names_the_bottleneck(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The loader takes nearly all of the time; said once, and not before there is enough to judge by."""
    progress = progress_of(tmp_path)
    with progress.logged_from(0):
        for micro_batches in progress.timed(batches(12, seconds=0.02)):
            progress.add(torch.tensor(1.0), torch.tensor(0.5), 0.01, micro_batches)
    assert len(caplog.records) == 1
    assert "loading data is the bottleneck" in caplog.text and "training.num_workers=2" in caplog.text
    assert all(line["waiting_for_data"] > 0.5 for line in lines(tmp_path))


def test_waiting_is_measured_and_judged() -> None:
    throughput = Throughput()
    throughput.add(torch.tensor(1.0), seconds=60.0, waited=60.0)  # workers start in the first step
    for _ in range(9):
        throughput.add(torch.tensor(2.0), seconds=1.0, waited=0.4)
    assert throughput.close() == (pytest.approx(1.9), pytest.approx(10 / 69), pytest.approx(63.6 / 69))
    assert throughput.data_wait_share() == 0.0  # too early to say
    throughput.add(torch.tensor(3.0), seconds=1.0, waited=0.4)
    assert throughput.data_wait_share() == pytest.approx(0.4)
    assert throughput.close() == (3.0, 1.0, 0.4)
    for _ in range(10):
        throughput.add(torch.tensor(2.0), seconds=1.0, waited=0.0)
    assert throughput.data_wait_share() == 0.0  # 20 % is not what holds a run up


def test_a_busy_device_does_not_wait_for_data(tmp_path: Path) -> None:
    progress = progress_of(tmp_path)
    with progress.logged_from(0):
        progress.scalars.is_waiting = lambda: True  # it still computes the step before
        for micro_batches in progress.timed(batches(4, seconds=0.01)):
            progress.add(torch.tensor(1.0), torch.tensor(0.5), 0.01, micro_batches)
    assert [line["waiting_for_data"] for line in lines(tmp_path)] == [0.0]


@pytest.mark.parametrize(
    ("loss", "norm", "message"),
    [
        (float("nan"), 1.0, "the loss is nan at step 2"),
        (float("inf"), 1.0, "the loss is inf at step 2"),
        (1.0, float("inf"), "the gradient's norm is inf at step 2"),
    ],
)
def test_what_is_not_finite_stops_at_once_and_its_samples_are_kept(
    tmp_path: Path, loss: float, norm: float, message: str
) -> None:
    progress = progress_of(tmp_path, log_every=100)
    with progress.logged_from(0), pytest.raises(SegtuneError, match=message) as caught:
        for step, micro_batches in enumerate(progress.timed(batches(4))):
            values = (loss, norm) if step == 1 else (1.0, 1.0)
            progress.add(torch.tensor(values[0]), torch.tensor(values[1]), 0.01, micro_batches)
    folder = tmp_path / "non_finite" / "step-000002"
    assert str(folder) in str(caught.value) and caught.value.exit_code == 1
    samples = json.loads((folder / "samples.json").read_text())
    assert samples == {"step": 2, "loss": str(loss), "grad_norm": str(norm), "ids": [[["a1", "b1"]]]}
    (batch,) = torch.load(folder / "batches-0.pt")
    assert batch["ids"] == ["a1", "b1"] and batch["pixel_values"].unique().tolist() == [1.0]


def run_scaled(folder: Path, norms: list[float], scale: float = 65536.0, **settings: Any) -> TrainingProgress:
    """Steps with these norms of gradients, under a loss scaler whose scale stays."""
    progress = progress_of(folder, max_steps=len(norms), **settings)
    with progress.logged_from(0):
        progress.accelerator.scaler = SimpleNamespace(get_scale=lambda: scale)
        try:
            for norm, micro_batches in zip(norms, progress.timed(batches(len(norms))), strict=False):
                progress.add(torch.tensor(1.0), torch.tensor(norm), 0.01, micro_batches)
            progress.finish("done")
        finally:
            progress.accelerator.scaler = None
    return progress


def test_a_gradient_that_overflows_is_expected_where_the_loss_is_scaled(tmp_path: Path) -> None:
    run_scaled(tmp_path, [math.inf, 0.5], log_every=1)
    steps = [line for line in lines(tmp_path) if "loss" in line]
    assert [(line["grad_norm"], line["loss_scale"]) for line in steps] == [(None, 65536.0), (0.5, 65536.0)]


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_a_gradient_that_overflows_for_ever_ends_the_run(tmp_path: Path, bad: float) -> None:
    norms = [1.0, *[bad] * 49, 1.0, *[bad] * 51]
    with pytest.raises(SegtuneError, match=r"norm is \w+ at step 101, as in 50 steps in a row, .* no longer change"):
        run_scaled(tmp_path, norms, log_every=1000)
    assert (tmp_path / "non_finite" / "step-000101" / "samples.json").is_file()


def test_a_loss_scale_next_to_nothing_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(SegtuneError, match="norm is inf at step 2, as in 1 steps in a row"):
        run_scaled(tmp_path, [1.0, math.inf, 1.0], scale=9e-4)


def test_a_short_run_without_a_step_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run_scaled(tmp_path, [math.inf] * 3)
    assert "all 3 gradients overflowed: the weights are those of before the first step" in caplog.text


def test_a_notebook_has_a_table_in_the_place_of_a_bar(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a row for each evaluation; a terminal's bar is not drawn as well. Quiet, there is neither."""
    pages: list[str] = []
    display = SimpleNamespace(
        HTML=str, display=lambda page, display_id: (pages.append(page), SimpleNamespace(update=pages.append))[1]
    )
    ipython = SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=1), display=display)
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    progress = progress_of(tmp_path / "run", max_steps=4, log_every=2)
    with progress.logged_from(0):
        for step, micro_batches in enumerate(progress.timed(batches(4)), start=1):
            progress.add(torch.tensor(float(step)), torch.tensor(0.5), 0.01, micro_batches)
            if step % 2 == 0:
                progress.evaluating()
                assert f"step {step} of 4, evaluating" in pages[-1]
                progress.scores({"mean_iou": step / 10}, SimpleNamespace(saved=list))
        progress.finish("done")
    assert "step 4 of 4, done" in pages[-1] and pages[-1].count("<tr>") == 3
    assert "<td>2</td><td>1.5000</td><td>1.00e-02</td><td>0.2000</td><td>0.2000</td>" in pages[-1]
    assert capsys.readouterr().err == ""
    pages.clear()
    monkeypatch.setenv(QUIET, "1")
    with progress_of(tmp_path / "quiet").logged_from(0):
        pass
    assert pages == []
