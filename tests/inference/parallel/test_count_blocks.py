"""Counts of several processes, and of commands that were stopped, are those of one process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from segtune.evaluation.evaluation import Evaluation
from segtune.inference.parallel.count_blocks import LARGEST_BLOCK, MOST_BLOCKS, blocks_of


@pytest.mark.parametrize("count", [0, 1, 37, MOST_BLOCKS, MOST_BLOCKS + 1, 2000, 10**6])
def test_blocks_hold_every_position_once(count: int) -> None:
    blocks = blocks_of(count)
    assert [position for block in blocks for position in block] == list(range(count))
    assert max(map(len, blocks), default=0) <= LARGEST_BLOCK
    assert count > MOST_BLOCKS * LARGEST_BLOCK or len(blocks) <= MOST_BLOCKS


@pytest.fixture
def evaluate(segtune_command: Any, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    def run(save: Path, *words: str, rank: int = 0, count: int = 1) -> Any:
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", str(count))
        return segtune_command("evaluate", checkpoint, "demo", "--json", "--save", save, *words)

    return run


def test_counts_of_processes_are_those_of_one(evaluate: Any, tmp_path: Path) -> None:
    alone = evaluate(tmp_path / "alone.npz", "--overlays", str(tmp_path / "o"))
    save, words = tmp_path / "shared.npz", ("--overlays", str(tmp_path / "p"))
    parts = [evaluate(save, *words, rank=rank, count=3) for rank in (2, 0)]
    assert [(part.code, part.out) for part in parts] == [(0, "")] * 2
    assert not save.exists() and len(list((tmp_path / ".shared.npz.parts").glob("*.npz"))) > 20
    last = evaluate(save, *words, rank=1, count=3)
    assert (last.code, last.out) == (0, alone.out)
    assert save.read_bytes() == (tmp_path / "alone.npz").read_bytes()
    assert not (tmp_path / ".shared.npz.parts").exists()
    drawn = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in "op"]
    assert drawn[0] == drawn[1] and "overview.jpg" in drawn[0]


def test_a_stopped_evaluation_goes_on_and_called_again_does_nothing(
    evaluate: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = tmp_path / "counts.npz"
    assert evaluate(save, rank=0, count=2).code == 0  # the other one died
    counted = [path.name for path in (tmp_path / ".counts.npz.parts").glob("*.npz")]
    refused = evaluate(save, rank=0, count=2)
    assert refused.code == 2 and "holds counts of an earlier command: say --resume, or remove it" in refused.err
    seen: list[str] = []
    add = Evaluation.add

    def note(self: Evaluation, image_id: str, *maps: Any) -> None:
        seen.append(image_id)
        add(self, image_id, *maps)

    monkeypatch.setattr(Evaluation, "add", note)
    whole = evaluate(save, "--resume")  # with another number of processes
    assert whole.code == 0, whole.err
    assert len(seen) == json.loads(whole.out)["num_images"] - len(counted)
    before = save.stat().st_mtime_ns
    again = evaluate(save, "--resume")
    assert again.out == whole.out and len(seen) == 37 - len(counted)
    assert evaluate(save, "--resume", rank=1, count=2).out == ""
    other = evaluate(save, "--resume", "--precision", "bf16")
    assert other.code == 2 and "counted with precision fp32, now bf16: remove it, or name another file" in other.err
    assert save.stat().st_mtime_ns >= before


def test_what_shares_need(segtune_command: Any, checkpoint: Path, tmp_path: Path) -> None:
    code, _, err = segtune_command("evaluate", checkpoint, "demo", "--resume")
    assert code == 2 and "--resume and several processes need --save PATH" in err
