from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import fewer_labels
from benchmarks.fewer_labels import BEGIN, END, difference, main, markdown, write_page
from segtune.evaluation.evaluation import Evaluation
from segtune.evaluation.uncertainty import compare


def evaluation(seed: int, right: float) -> Evaluation:
    """Twelve images of two classes, of whose pixels a share is right."""
    found = Evaluation(("a", "b"))
    for number in range(12):
        labels = np.random.default_rng(number).integers(0, 2, (20, 20)).astype(np.uint8)
        wrong = np.random.default_rng((seed, number)).random((20, 20)) > right
        found.add(str(number), labels, np.where(wrong, 1 - labels, labels).astype(np.uint8))
    return found


def test_of_one_seed_it_is_the_paired_comparison() -> None:
    first, second = evaluation(1, 0.7), evaluation(2, 0.75)
    found, expected = difference([(first, second)]), compare(first, second)
    assert found.estimate == pytest.approx(expected["mean_iou"]["difference"])
    assert (found.low, found.high) == pytest.approx(tuple(expected["mean_iou"]["bca"]))


def test_of_several_seeds_it_is_the_mean_difference() -> None:
    pairs = [(evaluation(seed, 0.7), evaluation(seed + 10, 0.8)) for seed in range(3)]
    found = difference(pairs)
    each = [b.scores()["mean_iou"] - a.scores()["mean_iou"] for a, b in pairs]
    assert found.estimate == pytest.approx(np.mean(each)) and found.low < found.estimate < found.high
    with pytest.raises(ValueError, match="different images"):
        other = Evaluation(("a", "b"))
        other.add("x", np.zeros((2, 2), np.uint8), np.zeros((2, 2), np.uint8))
        difference([(pairs[0][0], other)])


def test_the_page_has_the_table_between_its_markers(tmp_path: Path) -> None:
    row = {"first": [0.2, 0.21], "second": [0.23, 0.22], "estimate": 0.02, "low": 0.01, "high": 0.03}
    table = markdown({"command": "python x", "comparisons": {"a": row | {"what": "w", "names": ("one", "two")}}})
    assert "| (a) w | one; two | 20.0, 21.0 | 23.0, 22.0 | +2.00 | +1.00 to +3.00 | better |" in table
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write_page(page, table)
    assert page.read_text() == f"before\n{BEGIN}\n\n{table}\n\n{END}\nafter\n"


@pytest.fixture
def first_one_alone(segtune_command: Any, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The first command has a process of its own, as all of them have; the others run here, with PyTorch loaded."""
    alone, commands = fewer_labels.segtune, []

    def run(*words: str) -> None:
        commands.append(words)
        if len(commands) == 1:
            alone(*words)
        else:
            assert segtune_command(*words).code == 0, words

    monkeypatch.setattr(fewer_labels, "segtune", run)
    return commands


@pytest.mark.slow
def test_arms_run_once_and_are_compared(
    earth: Path, tmp_path: Path, first_one_alone: list[tuple[str, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = '{"hidden_sizes": [8, 16, 24, 32], "num_attention_heads": [1, 2, 3, 4], "decoder_hidden_size": 16}'
    arguments = ["--data", str(earth), "--recipe", "demo", "--folder", str(tmp_path), "--steps", "10", "--seeds", "0"]
    arguments += ["--more", "5", "--threads", "1", "--changes", f"model.config={tiny}", "transforms.crop_size=64"]
    main([*arguments, "--arms", "a", "d"])
    result = json.loads((tmp_path / "fewer-labels.json").read_text())
    assert list(result["comparisons"]) == ["a", "d"] and result["comparisons"]["a"]["images"] == 37
    runs = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("evaluation-test.npz")}
    assert len(runs) == 4
    few, random, selected = (
        set(json.loads((tmp_path / f"{name}-0.json").read_text())["train"]) for name in ("few", "random", "selected")
    )
    assert len(few) == 12 and few < random and few < selected and len(random) == len(selected) == 17
    count = len(first_one_alone)
    capsys.readouterr()
    main([*arguments, "--arms", "a"])
    assert count >= 8 and len(first_one_alone) == count
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("evaluation-test.npz")} == runs
    assert "(a) unlabelled pictures" in capsys.readouterr().out
