"""Loading a checkpoint from a folder or the Hub, with one clear message where that fails.

What a checkpoint gave the network is said by `loading_report`, which `from_pretrained` itself uses: it goes to the Hub
with the network's code, and this module does not.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

from segtune.errors import DataError, UsageError
from segtune.hub_errors import fault_of_hub
from segtune.segformer.modeling_segformer import SegformerForSemanticSegmentation


def load_model(name: str | Path, **kwargs: Any) -> SegformerForSemanticSegmentation:
    """`SegformerForSemanticSegmentation.from_pretrained` with one clear message where the checkpoint is missing.

    Args:
        name: a folder with `config.json` and `model.safetensors`, or a Hub id `user/name` or `user/name@revision`.
        kwargs: what `from_pretrained` takes: `revision`, `cache_dir`, `local_files_only`, fields of the config, …

    Raises:
        UsageError: no such checkpoint, or one that is no SegFormer.
        DataError: the Hub does not hand it out, there is no space for it, or its pickle would run code.
    """
    path = Path(name)
    if path.is_dir() and not (path / "config.json").is_file():
        inside = [f"{path / sub}" for sub in ("best", "final") if (path / sub / "config.json").is_file()]
        hint = f"did you mean {inside[0]}?" if inside else "a checkpoint folder has a config.json and model.safetensors"
        raise UsageError(f"{path} is not a checkpoint: {hint}")
    if not path.exists() and (path.is_absolute() or str(name).count("/") != 1 or str(name).startswith(".")):
        raise UsageError(f"checkpoint {name} does not exist: give a folder, or a Hub id such as nvidia/mit-b0")
    source, revision = split_revision(name)
    kwargs |= {"revision": revision} if revision else {}
    try:
        return SegformerForSemanticSegmentation.from_pretrained(source, **kwargs)
    except pickle.UnpicklingError as error:
        raise DataError(str(error)) from error
    except (OSError, ValueError, RuntimeError) as error:
        if fault := fault_of_hub(error):
            raise DataError(f"checkpoint {name} cannot be fetched: {fault}") from error
        first = str(error).strip().splitlines()[0]
        raise UsageError(
            f"checkpoint {name} cannot be loaded: {first} "
            "(a folder must hold config.json and model.safetensors; a Hub id needs the network or a filled cache; "
            "model.name=null starts from random weights)"
        ) from error


def split_revision(name: str | Path) -> tuple[str, str | None]:
    """A folder or Hub id, and the revision that `user/name@revision` names."""
    text = str(name)
    if Path(text).exists() or "@" not in text:
        return text, None
    source, _, revision = text.rpartition("@")
    return source, revision
