"""Loading a checkpoint from a folder or the Hub, with one clear message where that fails.

What a checkpoint gave the network is said by `loading_report`, which `from_pretrained` itself uses: it goes to the Hub
with the network's code, and this module does not.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers.utils import cached_file, logging

from segtune.errors import DataError, UsageError, listed
from segtune.hub_errors import fault_of_hub, offline_if_out_of_reach, patiently
from segtune.segformer.checkpoint_files import (
    CERTIFICATE_FILE,
    CONFIG,
    check_config,
    check_download,
    check_saved,
    check_weights,
    has_weights,
    refuse_missing,
)
from segtune.segformer.modeling_segformer import SegformerForSemanticSegmentation

_WHERE = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")


@contextmanager
def without_bars() -> Iterator[None]:
    """No bars of transformers, which draws one for each checkpoint that it reads or writes."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def load_model(name: str | Path, *, whole: bool = False, **kwargs: Any) -> SegformerForSemanticSegmentation:
    """`SegformerForSemanticSegmentation.from_pretrained` with one clear message where the checkpoint is missing.

    Args:
        name: a folder with `config.json` and `model.safetensors`, or a Hub id `user/name` or `user/name@revision`.
        whole: refuse a checkpoint that lacks weights of the network, such as an encoder without a head: what it
            answers would be random. Where it is trained further, they may start fresh, which is told.
        kwargs: what `from_pretrained` takes: `revision`, `cache_dir`, `local_files_only`, fields of the config, …

    Raises:
        UsageError: no such checkpoint, one that is no SegFormer, or not whole.
        DataError: the Hub does not hand it out, there is no space for it, its pickle would run code, or a file of it
            is damaged: cut off, of absurd values, or other than the Hub or the training that saved it says; the message
            names the file.
    """
    refuse_missing(name)
    if Path(name).is_file():
        raise UsageError(f"checkpoint {name} is a file: give the folder that holds config.json and model.safetensors")
    source, revision = split_revision(name)
    kwargs |= {"revision": revision} if revision else {}
    try:
        with without_bars(), offline_if_out_of_reach(asked=not Path(name).exists()):
            model, info = patiently(lambda: _load(source, kwargs), f"checkpoint {name}")
    except DataError:
        raise
    except pickle.UnpicklingError as error:
        raise DataError(str(error)) from error
    except (OSError, ValueError, RuntimeError) as error:
        if fault := fault_of_hub(error):
            raise DataError(f"checkpoint {name} cannot be fetched: {fault}") from error
        if (Path(name) / CERTIFICATE_FILE).is_file() and not has_weights(Path(name)):
            raise UsageError(
                f"{name} holds what was exported of a checkpoint, and no weights: give the checkpoint itself"
            ) from error
        first = str(error).strip().splitlines()[0]
        raise UsageError(
            f"checkpoint {name} cannot be loaded: {first} "
            "(a folder must hold config.json and model.safetensors; a Hub id needs the network or a filled cache; "
            "model.name=null starts from random weights)"
        ) from error
    missing = [str(key) for key in (*info["missing_keys"], *info["mismatched_keys"])] if whole else []
    if fresh := [key for key in missing if not key.endswith("num_batches_tracked")]:  # which computes nothing
        raise UsageError(
            f"checkpoint {name} does not hold all weights of a network that segments: without "
            f"{listed(sorted(fresh), 3)} it would answer at random. Fine-tune it first"
        )
    return model


def _load(source: str, kwargs: dict[str, Any]) -> tuple[SegformerForSemanticSegmentation, dict[str, Any]]:
    """`from_pretrained` with what it found, before which config and weights are looked at, and a download after it."""
    config = cached_file(source, CONFIG, **{key: kwargs[key] for key in _WHERE if key in kwargs})
    folder = Path(config).parent if config else Path(source)
    if Path(source).is_dir():
        check_saved(folder)
        check_config(folder / CONFIG)
        check_weights(folder)
    elif config:
        check_config(Path(config))
    try:
        model, info = SegformerForSemanticSegmentation.from_pretrained(source, output_loading_info=True, **kwargs)
    except SafetensorError as error:
        check_download(folder)
        check_weights(folder)
        raise DataError(f"checkpoint {source}: its weights are damaged ({error})") from error
    check_download(folder)
    if config and not Path(source).is_dir():
        # The cache names snapshots by commits, which transformers 5 no longer notes; what lies beside the weights,
        # the image processor above all, must be of the same one.
        model.config._commit_hash = folder.name
    return model, info


def split_revision(name: str | Path) -> tuple[str, str | None]:
    """A folder or Hub id, and the revision that `user/name@revision` names."""
    text = str(name)
    if Path(text).exists() or "@" not in text:
        return text, None
    source, _, revision = text.rpartition("@")
    return source, revision


def is_at_hand(name: str) -> bool:
    """Whether config and weights of a checkpoint of the Hub lie in the cache of this machine; nothing is fetched."""
    return _is_cached(name, CONFIG) and any(
        _is_cached(name, file) for file in ("model.safetensors", "pytorch_model.bin")
    )


def _is_cached(name: str, file: str) -> bool:
    try:
        return cached_file(name, file, local_files_only=True) is not None
    except OSError:
        return False
