"""Checkpoint files: whether config, image processor and weights are whole, before anything is built from them."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from segtune.errors import DataError, UsageError
from segtune.files import MODEL_MANIFEST, check_manifest

CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"
CERTIFICATE_FILE = "certificate.json"  # in the folder of an export
LARGEST_JSON = 16 * 2**20  # bytes; 65,536 labels with their colours take a third of that
_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")
_CHUNK = 2**20


def refuse_missing(name: str | Path) -> None:
    """Raise UsageError where a checkpoint is neither a folder with a `config.json` nor may be a Hub id.

    That is told before torch is imported: nothing here needs it.
    """
    path = Path(name)
    if path.is_dir() and not os.path.lexists(path / CONFIG):
        inside = _of_run(path)
        hint = f"did you mean {inside[0]}?" if inside else "a checkpoint folder has a config.json and model.safetensors"
        raise UsageError(f"{path} is not a checkpoint: {hint}")
    if not path.exists() and (path.is_absolute() or str(name).count("/") != 1 or str(name).startswith(".")):
        raise UsageError(f"checkpoint {name} does not exist: give a folder, or a Hub id such as nvidia/mit-b0")


def read_json(path: Path) -> dict[str, Any]:
    """The object that a JSON file of a checkpoint holds.

    Raises:
        DataError: it cannot be read, is no file, no JSON or no object; the message names it.
    """
    fix = "copy it from the checkpoint once more"
    try:
        if path.exists() and not path.is_file():
            raise DataError(f"{path} is not a file: {fix}")
        if path.stat().st_size > LARGEST_JSON:
            raise DataError(f"{path} is damaged: {path.stat().st_size:,} bytes, and {LARGEST_JSON:,} at most: {fix}")
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} is damaged, it holds no JSON ({error}): {fix}") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}): {fix}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} is damaged, it holds no JSON object: {fix}")
    return content


def check_config(path: Path) -> None:
    """Read a `config.json` as far as a network could be built from it.

    Raises:
        DataError: it is damaged, has values that no network can have, or asks for the code of others.
    """
    from segtune.segformer.configuration_segformer import STAGE_FIELDS, SegformerConfig

    content = read_json(path)
    if content.get("quantization_config") is not None:
        raise DataError(f"{path}: quantization_config: segtune reads no quantized weights")
    for name in STAGE_FIELDS[1:]:
        if not isinstance(content.get(name, []), list):
            raise DataError(f"{path}: {name}={content[name]!r} must have one value for each stage")
    try:
        SegformerConfig.from_dict(content)
    except (AttributeError, LookupError, OverflowError, TypeError, ValueError) as error:
        raise DataError(f"{path}: {error}") from error


def is_checkpoint(folder: Path) -> bool:
    """Whether a path is the folder of a checkpoint, or of what was exported of one."""
    exported = any((folder / name).is_dir() for name in ("onnx", "openvino"))
    return (folder / CONFIG).is_file() and (exported or has_weights(folder))


def is_run(folder: Path) -> bool:
    """Whether a folder is no checkpoint, but holds those of a run."""
    return bool(_of_run(folder)) and not (folder / CONFIG).is_file()


def _of_run(folder: Path) -> list[Path]:
    """The checkpoints that the folder of a run holds, the best first."""
    unscored = sorted(folder.glob("checkpoints/*/model"), reverse=True)  # of one that was stopped early
    return [sub for sub in (folder / "best", folder / "final", *unscored) if (sub / CONFIG).is_file()]


def has_weights(folder: Path) -> bool:
    """Whether a folder holds a file of weights, whole or not."""
    return any(next(folder.glob(pattern), None) is not None for pattern in _WEIGHTS)


def check_weights(folder: Path) -> None:
    """Read the headers of the weights in a folder.

    Raises:
        DataError: a file of them is cut off or holds something else; the message names it.
    """
    for path in sorted(folder.glob(_WEIGHTS[0])):
        try:
            with safe_open(path, framework="pt") as reader:
                reader.keys()
        except (SafetensorError, OSError) as error:
            raise DataError(f"{path} is damaged ({error}): fetch or copy it once more") from error


def check_saved(folder: Path, names: Iterable[str] = (CONFIG, *_WEIGHTS)) -> None:
    """Compare files of a checkpoint with the checksums that training wrote beside them, where it did.

    Args:
        names: of the files, or patterns of them; by default weights and config.

    Raises:
        DataError: a file that is gone, or not what was written; the message names it, and how to accept it.
    """
    manifest, names = folder / MODEL_MANIFEST, tuple(names)
    while os.path.lexists(manifest):
        version = manifest.lstat().st_ino
        try:
            check_manifest(folder, MODEL_MANIFEST, only=lambda path: any(fnmatch(path, name) for name in names))
        except DataError as error:
            if not os.path.lexists(manifest) or manifest.lstat().st_ino != version:
                continue  # a training replaced the folder in between
            raise DataError(
                f"{error}. Copy the folder once more, or let the training go on (training.resume=auto), which restores "
                f"best/ where it can. Where you changed the files yourself, remove {manifest}: they are then taken as "
                "they are"
            ) from error
        return


def check_download(folder: Path, names: Iterable[str] = (CONFIG, PROCESSOR, *_WEIGHTS)) -> None:
    """Compare files of a checkpoint with the hash that the Hub states, where they lie in its cache.

    The cache names a file by it: SHA-256 of weights (LFS, Xet), Git's SHA-1 of small files. Where the cache has no
    links (Windows without developer mode), and in other folders, there is nothing to compare with.

    Args:
        names: of the files, or patterns of them; by default weights, config and image processor.

    Raises:
        DataError: a file that is not what the Hub has; the message names it.
    """
    for path in (found for name in names for found in folder.glob(name)):
        blob = Path(os.path.realpath(path))
        if blob.parent.name != "blobs" or not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", blob.name):
            continue
        if _hash(blob) != blob.name:
            raise DataError(
                f"{path} is damaged: it does not have the hash that the Hub states. Remove {blob}, "
                "and it is fetched once more"
            )


def _hash(blob: Path) -> str:
    """SHA-256, or Git's SHA-1 of a blob, whichever the length of the name says."""
    is_git = len(blob.name) == 40
    found = hashlib.sha1(b"blob %d\0" % blob.stat().st_size, usedforsecurity=False) if is_git else hashlib.sha256()
    with blob.open("rb") as file:
        while chunk := file.read(_CHUNK):
            found.update(chunk)
    return found.hexdigest()
