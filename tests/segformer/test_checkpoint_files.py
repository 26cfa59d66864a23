from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from segtune.errors import DataError, UsageError
from segtune.files import MODEL_MANIFEST, write_manifest
from segtune.inference.processor import load_processor, read_processor
from segtune.segformer import checkpoint_files
from segtune.segformer.checkpoint_files import LARGEST_JSON, check_config, check_download, check_saved, read_json
from segtune.segformer.configuration_segformer import SegformerConfig
from segtune.segformer.image_processing_segformer import SegformerImageProcessor
from segtune.segformer.loading import load_model
from segtune.segformer.modeling_segformer import SegformerForSemanticSegmentation
from support import networks

FILES = ("config.json", "model.safetensors", "preprocessor_config.json")


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def flip_first(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(bytes([content[0] ^ 0x80]) + content[1:])


def turn_into_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def dangle(path: Path) -> None:
    path.unlink()
    path.symlink_to("gone")


WAYS = (halve, empty, zeros, flip_first, turn_into_folder, loop, dangle)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    SegformerForSemanticSegmentation(SegformerConfig(**networks.TINY)).save_pretrained(tmp_path / "saved")
    SegformerImageProcessor(do_resize=False, window=96).save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named_and_never_taken_for_an_absent_one(
    checkpoint: Path, name: str, way: Callable[[Path], None]
) -> None:
    assert load_processor(load_model(checkpoint)).window == 96
    way(checkpoint / name)
    with pytest.raises(DataError, match=rf"^{checkpoint / name} (is damaged|is not a file|cannot be read)"):
        load_processor(load_model(checkpoint), SegformerImageProcessor)


def flip_last(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


@pytest.mark.parametrize("way", [*WAYS, flip_last, Path.unlink])
@pytest.mark.parametrize("name", FILES)
def test_what_a_training_saved_must_have_its_checksums(
    checkpoint: Path, name: str, way: Callable[[Path], None]
) -> None:
    write_manifest(checkpoint, MODEL_MANIFEST)
    assert load_processor(load_model(checkpoint)).window == 96
    way(checkpoint / name)
    with pytest.raises((DataError, UsageError), match=rf"^{checkpoint}") as error:
        load_processor(load_model(checkpoint), SegformerImageProcessor)
    assert name in str(error.value)
    if name != "config.json":
        assert str(error.value).endswith(f"remove {checkpoint / MODEL_MANIFEST}: they are then taken as they are")


def test_a_change_on_purpose_is_accepted_without_the_checksums(checkpoint: Path) -> None:
    write_manifest(checkpoint, MODEL_MANIFEST)
    path = checkpoint / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"calibration_temperature": 2.0}))
    with pytest.raises(DataError, match="Where you changed the files yourself, remove"):
        load_model(checkpoint)
    (checkpoint / MODEL_MANIFEST).unlink()
    assert load_model(checkpoint).config.calibration_temperature == 2.0


@pytest.mark.parametrize("way", WAYS)
def test_damaged_checksums_are_told(checkpoint: Path, way: Callable[[Path], None]) -> None:
    write_manifest(checkpoint, MODEL_MANIFEST)
    way(checkpoint / MODEL_MANIFEST)
    with pytest.raises(DataError, match=f"{MODEL_MANIFEST} is missing or torn"):
        load_model(checkpoint)


def test_a_folder_that_is_replaced_while_it_is_read_is_looked_at_again(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (checkpoint / MODEL_MANIFEST).write_text("{")

    def replaced(folder: Path, *args: Any, **kwargs: Any) -> None:
        monkeypatch.undo()
        write_manifest(folder, "new")
        (folder / "new").replace(folder / MODEL_MANIFEST)
        raise DataError("of the folder before")

    monkeypatch.setattr(checkpoint_files, "check_manifest", replaced)
    check_saved(checkpoint)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("depths", [100_000, 2, 2, 2]),
        ("depths", 3),
        ("depths", [2, 2, "x", 2]),
        ("hidden_sizes", [10**9] * 4),
        ("mlp_ratios", [math.inf, 4, 4, 4]),
        ("initializer_range", math.nan),
        ("calibration_temperature", math.inf),
        ("drop_path_rate", math.nan),
        ("num_channels", 10**9),
        ("quantization_config", {"quant_method": "bitsandbytes"}),
        ("attn_implementation", "kernels-community/flash-attn"),
    ],
)
def test_absurd_values_of_a_config_are_refused_before_anything_is_built(
    checkpoint: Path, key: str, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def built(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the network is built")

    path = checkpoint / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    monkeypatch.setattr(SegformerForSemanticSegmentation, "from_pretrained", built)
    with pytest.raises(DataError, match=rf"^{path}: ") as error:
        load_model(checkpoint)
    assert key in str(error.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("image_std", [math.nan] * 3),
        ("image_mean", [0.5, math.inf, 0.5]),
        ("rescale_factor", math.nan),
        ("window", -1),
        ("value_range", [0, math.inf]),
        ("image_std", [0.0] * 3),
        ("size", {"height": -1, "width": 8}),
    ],
)
def test_absurd_values_of_a_processor_are_refused(checkpoint: Path, key: str, value: Any) -> None:
    path = checkpoint / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(DataError, match=rf"^{path}: .*{key}"):
        read_processor(path)


def test_json_of_a_checkpoint_is_an_object_of_a_usual_size(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text("[]")
    with pytest.raises(DataError, match=r"config\.json is damaged, it holds no JSON object"):
        read_json(path)
    path.write_text("[" * 100_000)
    with pytest.raises(DataError, match=r"config\.json is damaged"):
        check_config(path)
    os.truncate(path, LARGEST_JSON + 1)
    with pytest.raises(DataError, match="16,777,216 at most"):
        read_json(path)


def cached(checkpoint: Path, cache: Path) -> Path:
    """The files of a checkpoint as the Hub's cache holds them: links to files that have the name of their hash."""
    blobs, snapshot = cache / "blobs", cache / "snapshots" / "0123"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for name in FILES:
        content = (checkpoint / name).read_bytes()
        git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        blob = blobs / (hashlib.sha256(content).hexdigest() if name.endswith("tensors") else git)
        blob.write_bytes(content)
        (snapshot / name).symlink_to(blob)
    return snapshot


@pytest.mark.parametrize("name", FILES)
def test_a_download_has_the_hash_that_the_hub_states(checkpoint: Path, tmp_path: Path, name: str) -> None:
    snapshot = cached(checkpoint, tmp_path / "cache")
    check_download(snapshot)
    load_model(snapshot)
    blob = (snapshot / name).resolve()
    content = blob.read_bytes()
    blob.write_bytes(content[:-5] + bytes([content[-5] ^ 1]) + content[-4:])
    with pytest.raises(DataError, match=rf"{name} is damaged: .* hash that the Hub states\. Remove {blob}"):
        check_download(snapshot)
    check_download(checkpoint)  # nothing states a hash
