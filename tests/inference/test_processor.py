from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from segtune.errors import UsageError
from segtune.inference import processor
from segtune.inference.processor import load_processor
from segtune.segformer.image_processing_segformer import SegformerImageProcessor


def model(name: str | Path, channels: int = 3) -> nn.Module:
    """What a loaded model says of where it comes from."""
    found = nn.Linear(1, 1)
    found.name_or_path, found.config = str(name), SimpleNamespace(num_channels=channels)
    return found


def default() -> SegformerImageProcessor:
    return SegformerImageProcessor(do_resize=False, image_mean=[0.1] * 3)


def test_the_one_saved_beside_the_weights_comes_first(tmp_path: Path) -> None:
    SegformerImageProcessor(window=96, stride=64).save_pretrained(tmp_path)
    for found in (load_processor(model(tmp_path)), load_processor(model(tmp_path), default)):
        assert (found.window, found.stride) == (96, 64)


@pytest.mark.parametrize("where", ["folder", "hub", "nowhere"])
def test_the_default_takes_its_place_without_a_word(
    where: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name = {"folder": tmp_path, "hub": "nobody/nothing", "nowhere": ""}[where]
    with caplog.at_level(logging.WARNING, "segtune"):
        assert load_processor(model(name), default).image_mean == [0.1] * 3
        assert load_processor(model(name, channels=5), default).image_mean == [0.1] * 3
    assert not caplog.records


def test_without_any_images_of_three_channels_keep_their_size(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert not load_processor(model(tmp_path)).do_resize
    assert not caplog.records
    assert not load_processor(model("nobody/nothing")).do_resize
    assert "nobody/nothing: no preprocessor_config.json, so images keep their size" in caplog.text
    with pytest.raises(UsageError, match="the model reads 5 channels and has no preprocessor_config"):
        load_processor(model(tmp_path, channels=5))


def test_what_is_at_hand_of_a_commit_needs_no_request_and_no_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`segtune.predict` asks for it at every call."""
    SegformerImageProcessor(window=64).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"large")
    asked: list[dict[str, Any]] = []
    checked: list[Any] = []
    monkeypatch.setattr(
        processor, "cached_file", lambda name, file, **options: asked.append(options) or tmp_path / file
    )
    monkeypatch.setattr(processor, "offline_if_out_of_reach", lambda: pytest.fail("the Hub was asked"))
    monkeypatch.setattr(processor, "check_download", lambda folder, names: checked.append(names))
    loaded = model("somebody/tiles")
    loaded.config._commit_hash = "c0ffee"
    assert load_processor(loaded).window == 64
    assert asked == [{"revision": "c0ffee", "local_files_only": True}] and checked == [["preprocessor_config.json"]]
