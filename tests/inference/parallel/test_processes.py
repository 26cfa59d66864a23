from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import nn

from segtune.errors import DataError, UsageError
from segtune.inference.parallel.processes import Processes, WorkFolder, weights_digest


def launched(monkeypatch: pytest.MonkeyPatch, **variables: str) -> Processes:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return Processes.launched()


def test_a_process_is_alone_unless_the_environment_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    assert launched(monkeypatch) == Processes(0, 1, 0)
    assert launched(monkeypatch, RANK="5", WORLD_SIZE="8", LOCAL_RANK="1") == Processes(5, 8, 1)
    assert launched(monkeypatch, RANK="", WORLD_SIZE="") == Processes(0, 1, 0)


@pytest.mark.parametrize("rank", ["2", "-1", "one"])
def test_numbers_that_do_not_go_together_are_refused(monkeypatch: pytest.MonkeyPatch, rank: str) -> None:
    with pytest.raises(UsageError, match=f"RANK={rank} WORLD_SIZE=2 LOCAL_RANK=0 in the environment"):
        launched(monkeypatch, RANK=rank, WORLD_SIZE="2")


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_each_item_is_in_one_share(count: int) -> None:
    shares = [Processes(index, count).share(range(7)) for index in range(count)]
    assert Counter(item for share in shares for item in share) == dict.fromkeys(range(7), 1)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_processes_of_a_machine_take_its_gpus_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [Processes(4 + n, 8, n).device(None) for n in range(4)] == ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]
    assert [Processes(5, 8, 1).device(name) for name in ("cuda", "cuda:0", "cpu")] == ["cuda:1", "cuda:0", "cpu"]
    assert Processes().device(None) is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert Processes(5, 8, 1).device(None) is None


def test_other_weights_have_another_digest() -> None:
    layer = nn.BatchNorm1d(2)
    before = weights_digest(layer)
    assert before == weights_digest(nn.BatchNorm1d(2)) and len(before) == 16
    layer.running_mean[1] += 1e-6
    assert weights_digest(layer) != before


# --- who ends last ---------------------------------------------------------------------------------------------------


def notes(folder: Path, count: int = 2, precision: str = "fp32") -> list[WorkFolder]:
    settings = {"precision": precision}
    return [WorkFolder(folder / ".work", Processes(index, count), settings, "masks") for index in range(count)]


def test_one_process_ends_last_and_once(tmp_path: Path) -> None:
    first, second = notes(tmp_path)
    first.begin()
    assert not first.end(lambda: True)  # the second has not even begun
    second.begin()
    assert second.end(lambda: True)
    assert not first.end(lambda: True)
    (alone,) = notes(tmp_path, 1)
    alone.begin()
    assert alone.end(lambda: True)


def test_a_process_that_died_leaves_the_work_unfinished(tmp_path: Path) -> None:
    first, second = notes(tmp_path)
    first.begin()
    second.begin()  # and is killed
    assert not first.end(lambda: True)
    again = notes(tmp_path)
    for each in again:
        each.begin()
    assert [each.end(lambda: True) for each in again] == [False, True]


def test_what_is_not_there_is_not_said_to_be(tmp_path: Path) -> None:
    (alone,) = notes(tmp_path, 1)
    alone.begin()
    assert not alone.end(lambda: False)
    assert alone.end(lambda: True)


def test_results_of_other_settings_are_not_gone_on_from(tmp_path: Path) -> None:
    (alone,), (other,) = notes(tmp_path, 1), notes(tmp_path, 1, "bf16")
    alone.begin()  # and is killed
    with pytest.raises(UsageError, match="precision fp32, now it is bf16"):
        other.begin()
    alone.begin()
    assert alone.end(lambda: True)
    with pytest.raises(
        UsageError, match=f"masks that were made with precision fp32, now it is bf16: .*{tmp_path}/.work"
    ):
        other.begin()
    for each in notes(tmp_path / "b"):
        each.begin()
    with pytest.raises(UsageError, match="precision fp32, now it is bf16"):
        notes(tmp_path / "b", 3, "bf16")[2].begin()


def test_damaged_notes_are_named(tmp_path: Path) -> None:
    (alone,) = notes(tmp_path, 1)
    alone.path.mkdir()
    for content in ("{", "[]", json.dumps({})):
        (alone.path / "settings.json").write_text(content)
        with pytest.raises(DataError, match=r"settings\.json is damaged"):
            alone.begin()
