from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers.utils import logging

from segtune import hub_errors
from segtune.errors import DataError, UsageError
from segtune.segformer import loading
from segtune.segformer.configuration_segformer import SegformerConfig
from segtune.segformer.loading import load_model, split_revision, without_bars
from segtune.segformer.modeling_segformer import SegformerForSemanticSegmentation, SegformerModel
from support import networks


def test_missing_checkpoints_have_clear_messages(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        load_model(tmp_path / "nowhere")
    (tmp_path / "run" / "best").mkdir(parents=True)
    (tmp_path / "run" / "best" / "config.json").write_text("{}")
    with pytest.raises(UsageError, match=r"did you mean .*run/best\?"):
        load_model(tmp_path / "run")
    with pytest.raises(UsageError, match="checkpoint nobody/nothing cannot be loaded"):
        load_model("nobody/nothing")
    with pytest.raises(UsageError, match="cannot be loaded"):
        load_model(tmp_path / "run" / "best")


def test_revision_is_part_of_the_name_of_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert split_revision("nvidia/mit-b0@v1.0") == ("nvidia/mit-b0", "v1.0")
    assert split_revision("nvidia/mit-b0") == ("nvidia/mit-b0", None)
    (tmp_path / "runs@home").mkdir()
    assert split_revision("runs@home") == ("runs@home", None)


def test_a_checkpoint_of_the_hub_knows_its_commit(tmp_path: Path) -> None:
    commit, repository = "0123456789" * 4, tmp_path / "hub" / "models--somebody--tiles"
    model = SegformerForSemanticSegmentation(SegformerConfig(**networks.TINY))
    model.save_pretrained(repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    loaded = load_model("somebody/tiles", cache_dir=tmp_path / "hub")
    assert loaded.config._commit_hash == commit
    loaded.save_pretrained(tmp_path / "saved")
    assert commit not in (tmp_path / "saved" / "config.json").read_text()


class Harmful:
    def __reduce__(self) -> Any:
        return os.system, ("touch harmed",)


def test_older_files_are_read_and_do_not_run_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = SegformerForSemanticSegmentation(SegformerConfig(**networks.TINY))
    model.config.save_pretrained("old")
    torch.save(model.state_dict(), "old/pytorch_model.bin")
    weights = load_model("old").state_dict()
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    torch.save({**model.state_dict(), "hook": Harmful()}, "old/pytorch_model.bin")
    with pytest.raises(DataError, match=r"old: its pytorch_model\.bin is no pure .* asks for \w+\.system\. .*refused"):
        load_model("old")
    assert not Path("harmed").exists()


def test_a_checkpoint_is_fetched_again_after_an_answer_that_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two answers of 500 are met by further tries, a third one is told."""
    statuses = [500, 500]

    def fetch(*_: Any) -> tuple[str, dict[str, Any]]:
        if statuses:
            cause = OSError("server error")
            cause.response = SimpleNamespace(status_code=statuses.pop(0), headers={})  # type: ignore[attr-defined]
            raise OSError("cannot load it") from cause
        return "the model", {}

    monkeypatch.setattr(loading, "_load", fetch)
    monkeypatch.setattr(loading, "offline_if_out_of_reach", lambda asked: nullcontext())
    monkeypatch.setattr(hub_errors, "WAITS", (0.0, 0.0))
    assert load_model("you/model") == "the model"
    statuses += [500, 500, 500]
    with pytest.raises(DataError, match="checkpoint you/model cannot be fetched: the Hub answers 500"):
        load_model("you/model")


def test_no_bar_of_transformers_is_drawn_and_its_setting_stays() -> None:
    was = logging.is_progress_bar_enabled()
    try:
        for switch in (logging.enable_progress_bar, logging.disable_progress_bar):
            switch()
            before = logging.is_progress_bar_enabled()
            with without_bars():
                assert not logging.is_progress_bar_enabled()
            assert logging.is_progress_bar_enabled() == before
    finally:
        (logging.enable_progress_bar if was else logging.disable_progress_bar)()


def test_a_checkpoint_without_a_head_is_no_network_that_segments(tmp_path: Path) -> None:
    SegformerModel(SegformerConfig(**networks.TINY)).save_pretrained(tmp_path / "encoder")
    assert load_model(tmp_path / "encoder").config.hidden_sizes == list(networks.TINY["hidden_sizes"])  # to be trained
    with pytest.raises(UsageError, match=r"encoder does not hold all weights .* decode_head.batch_norm.bias"):
        load_model(tmp_path / "encoder", whole=True)
