"""Progress bars: on terminals, as widgets in notebooks, and nowhere else: a log takes lines, not a bar."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from segtune.errors import printable

if TYPE_CHECKING:
    from tqdm import tqdm

QUIET = "SEGTUNE_QUIET"  # in the environment, so that processes which are started know it as well


def notebook() -> Any:
    """IPython, where this process is the kernel of a notebook; else None. It is not imported: there it is already."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return ipython if hasattr(shell, "kernel") else None  # IPython in a terminal has none


def is_quiet() -> bool:
    """Whether no progress is to be shown, wherever it could be."""
    return os.environ.get(QUIET) == "1"


def progress_bar(items: Iterable[Any] | None = None, *, hidden: bool = False, **options: Any) -> tqdm[Any]:
    """A bar of tqdm, over `items` or to be moved by `update`.

    Args:
        hidden: show none, whatever stderr is.
        options: of tqdm: `total`, `desc`, `unit`, `leave`, …; `desc` may hold the names of files.
    """
    if "desc" in options:
        options["desc"] = printable(options["desc"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a notebook without ipywidgets, which then has no bars
        from tqdm.auto import tqdm
    is_widget = any(base.__name__ == "tqdm_notebook" for base in tqdm.__mro__)
    hidden = hidden or is_quiet()
    # None: hidden unless stderr is a terminal, which a notebook's is not.
    return tqdm(items, disable=hidden or (False if is_widget else None), **options)
