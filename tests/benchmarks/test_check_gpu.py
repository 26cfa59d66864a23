from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from benchmarks.check_gpu import SECTIONS, Check, distance, largest_difference, loss_errors, main, run


def test_errors_are_relative_and_what_is_not_finite_is_infinite() -> None:
    exact = {"logits": torch.tensor([3.0, 4.0]).double(), "a": torch.tensor([6.0, 8.0]).double()}
    near = {"logits": torch.tensor([3.0, 4.5]).double(), "a": torch.tensor([7.0, 8.0]).double()}
    assert distance(near, exact) == pytest.approx((0.1, 0.1))
    assert distance(near | {"a": torch.tensor([math.nan, 8.0]).double()}, exact)[1] == math.inf


def test_the_loss_is_judged_by_the_formula_in_float64(tmp_path: Path) -> None:
    own, plain = loss_errors(Check(torch.device("cpu"), True, tmp_path, 60.0), weighted=True, label_smoothing=0.1)
    assert max(*own, *plain) < 1e-5


def test_a_section_that_fails_or_comes_too_late_leaves_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(check: Check) -> dict[str, float]:
        raise RuntimeError("no kernel\nand more")

    def slow(check: Check) -> dict[str, float]:
        check.budget = 0.0
        return {"figure": 1.0}

    monkeypatch.setitem(SECTIONS, "parity", fail)
    monkeypatch.setitem(SECTIONS, "loss", slow)
    check = Check(torch.device("cpu"), True, tmp_path, 60.0)
    run(check, ["parity", "waits", "loss", "memory"])
    written = json.loads((tmp_path / "check_gpu.json").read_text())
    assert written["verdicts"] == [
        ["FAIL", "parity: RuntimeError: no kernel"],
        ["left out", "waits: there is no GPU to wait for"],
        ["left out", "memory: no time is left"],
    ]
    assert written["loss"] == {"figure": 1.0} and "no kernel" in capsys.readouterr().out


def test_an_unknown_section_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--sections", "parity,luck"])
    assert "--sections luck: choose from machine, parity" in capsys.readouterr().err


def test_weights_are_compared(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    for name, value in (("one", 1.0), ("two", 1.5)):
        (tmp_path / name).mkdir()
        save_file({"a": torch.full((2,), value)}, tmp_path / name / "model.safetensors")
    assert largest_difference(tmp_path / "one", tmp_path / "two") == 0.5


@pytest.mark.slow
def test_all_of_it_runs_through_on_a_cpu(tmp_path: Path) -> None:
    code = main(["--tiny", "--device", "cpu", "--output", str(tmp_path)])
    written = json.loads((tmp_path / "check_gpu.json").read_text())
    assert code == 0, [verdict for verdict in written["verdicts"] if verdict[0] == "FAIL"]
    assert set(SECTIONS) <= set(written) and written["resume"] == {"deterministic": 0.0}
    assert {name.split(": ")[0] for verdict, name in written["verdicts"] if verdict == "left out"} == {
        "waits",
        "memory",
    }
    assert (tmp_path / "profile-step.txt").stat().st_size > 1000
