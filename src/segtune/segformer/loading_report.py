"""Loading report: what a checkpoint gave a network, in one line, in place of transformers' table of keys."""

from __future__ import annotations

import logging
import pickle
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

logger = logging.getLogger(__name__)


def load_with_report(kind: str, load: Callable[..., Any], source: Any, *args: Any, **kwargs: Any) -> Any:
    """Call transformers' `from_pretrained`; log what was loaded and what starts fresh, unless all fitted exactly.

    Args:
        kind: the name of the class that is loaded.
        load: its `from_pretrained`.
        source: a folder or Hub id.
        args, kwargs: what `load` takes besides.

    Returns:
        The model; with `output_loading_info=True` the model and transformers' dictionary of keys.

    Raises:
        UnpicklingError: a `pytorch_model.bin` that is no pure file of tensors; its code does not run.
        RuntimeError: tensors of another shape, without `ignore_mismatched_sizes=True`.
    """
    with_info = kwargs.pop("output_loading_info", False)
    with _without_transformers_report() as report:
        try:
            model, info = load(source, *args, output_loading_info=True, **kwargs)
        except (pickle.UnpicklingError, OSError) as error:
            refusal = _refusal_behind(error)
            if refusal is None:
                raise
            found = re.search(r"GLOBAL (\S+)", str(refusal))
            raise pickle.UnpicklingError(
                f"{source}: its pytorch_model.bin is no pure file of tensors"
                f"{f', it asks for {found[1]}' if found else ''}. Loading it could run code, so it is refused: "
                "ask for a model.safetensors"
            ) from error
        except RuntimeError as error:
            if "ignore_mismatched_sizes" not in str(error) and "size mismatch" not in str(error):
                raise
            raise RuntimeError(
                f"{source} holds tensors of another shape than this {kind}: pass "
                "ignore_mismatched_sizes=True to start them afresh.\n" + "\n".join([*report, str(error)])
            ) from None
    if message := _summary(model, info):
        logger.warning("%s: %s", source, message)
    return (model, info) if with_info else model


def _refusal_behind(error: BaseException) -> pickle.UnpicklingError | None:
    """The unpickler's refusal that `error` is, or that led to it: transformers 4 wraps it in an OSError."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, pickle.UnpicklingError):
        cause = cause.__context__
    return cause


@contextmanager
def _without_transformers_report() -> Iterator[list[str]]:
    """Keep transformers' own table of missing and unexpected keys out of the log, in the list that this yields."""
    source = logging.getLogger("transformers.modeling_utils")
    report: list[str] = []

    def keep(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if "LOAD REPORT" in text or "newly initialized" in text or "were not used when" in text:
            report.append(text)
            return False
        return True

    source.addFilter(keep)
    try:
        yield report
    finally:
        source.removeFilter(keep)


def _summary(model: nn.Module, info: dict[str, Any]) -> str:
    """One line that says what was loaded and what starts fresh; empty if the checkpoint fitted exactly."""
    mismatched = {key if isinstance(key, str) else key[0] for key in info["mismatched_keys"]}
    fresh = set(info["missing_keys"]) | mismatched
    unused = set(info["unexpected_keys"])
    if not fresh and not unused:
        return ""
    loaded = set(model.state_dict()) - fresh
    parts = (("loaded", loaded), ("starts fresh:", fresh), ("not used:", unused))
    return "; ".join(f"{what} {_parts(keys)}" for what, keys in parts if keys)


def _parts(keys: set[str]) -> str:
    """The parts of the network that `keys` belong to, e.g. `encoder (192 tensors), decode_head (16 tensors)`."""
    paths = [key.removeprefix("segformer.").split(".") for key in sorted(keys)]
    head = {path[1] for path in paths if path[0] == "decode_head"}
    counts: dict[str, int] = {}
    for path in paths:
        part = "decode_head.classifier" if path[0] == "decode_head" and head == {"classifier"} else path[0]
        counts[part] = counts.get(part, 0) + 1
    return ", ".join(f"{part} ({count} tensor{'s' if count > 1 else ''})" for part, count in counts.items())
