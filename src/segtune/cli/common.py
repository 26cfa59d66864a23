"""What commands have in common: which process speaks, how much is said, files that are not overwritten."""

from __future__ import annotations

import contextlib
import functools
import gc
import inspect
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from segtune import bars
from segtune.engines import cpu_threads
from segtune.errors import UsageError, printable

if TYPE_CHECKING:
    from segtune.recipe.recipe import Recipe


QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Warnings and results only, no progress.")]
VerboseOption = Annotated[bool, typer.Option("--verbose", "-v", help="Log in detail.")]


def set_volume(quiet: bool, verbose: bool) -> None:
    """How much is told besides results; where neither is given, it stays as it is."""
    if quiet:
        os.environ[bars.QUIET] = "1"
    if quiet or not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    if quiet or verbose:
        wanted = logging.DEBUG if verbose else logging.WARNING
        logging.getLogger("segtune").setLevel(wanted if is_main_process() else logging.ERROR)


def add_command(app: typer.Typer, command: Callable[..., None]) -> None:
    """Make a function a command that also takes --quiet and --verbose, as segtune itself does."""

    @functools.wraps(command)
    def run(*, quiet: bool, verbose: bool, **given: Any) -> None:
        set_volume(quiet, verbose)
        command(**given)

    own = inspect.signature(command, eval_str=True)
    flags = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=annotation)
        for name, annotation in (("quiet", QuietOption), ("verbose", VerboseOption))
    ]
    run.__signature__ = own.replace(parameters=[*own.parameters.values(), *flags])  # type: ignore[attr-defined]
    app.command(short_help=first_sentence(command))(run)


def say(text: str, *, err: bool = False) -> None:
    """Print a line that may hold the names of files or classes, which come from others."""
    typer.echo(printable(text), err=err)


def first_sentence(command: Callable[..., None]) -> str:
    """Of what a command says of itself, for lists of commands: whole, where Click would cut it."""
    return " ".join((command.__doc__ or "").split("\n\n")[0].split())


def is_main_process() -> bool:
    return os.environ.get("RANK", "0") == "0"  # set by accelerate launch and torchrun


def resumed(words: Sequence[str]) -> list[str]:
    """The words of a `train` command, changed to go on with its run."""
    kept = [word for word in words if not word.startswith(("training.resume=", "training.overwrite="))]
    return [*kept, "training.resume=auto"]


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """While libraries are imported, nobody looks for garbage, nor later at what is there for the rest of the process.

    Of the half million objects, hardly one is garbage, and looking at them takes a fifth of the time.
    """
    was_enabled, modules = gc.isenabled(), len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) > modules:
            gc.freeze()
        if was_enabled:
            gc.enable()


def hide_bars_of_libraries() -> None:
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # one for each checkpoint that is read or written


def check_before_torch(settings: Recipe | None = None, checkpoint: str | None = None) -> None:
    """Tell at once of data or a checkpoint that is not there: what comes next imports torch, which takes seconds.

    Raises:
        UsageError: the folder of the data, or the checkpoint, does not exist.
    """
    from segtune.data import config
    from segtune.segformer import checkpoint_files

    if checkpoint is not None:
        checkpoint_files.refuse_missing(checkpoint)
    if settings is not None and settings.dataset.format != "hub":
        config.refuse_missing(settings.dataset.path)


def leading_checkpoints(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words that are folders of checkpoints, as far as they come first, and the others.

    Raises:
        UsageError: the folder of a run stands where one of its checkpoints is meant.
    """
    from segtune.segformer.checkpoint_files import is_checkpoint, is_run, refuse_missing

    count = next((place for place, word in enumerate(words) if not is_checkpoint(Path(word))), len(words))
    if words[count:] and is_run(Path(words[count])):
        refuse_missing(words[count])  # which names the checkpoint in it
    return list(words[:count]), list(words[count:])


def load_checked(
    ref: str,
    overrides: Sequence[str] | None,
    checkpoint: str | None = None,
    *,
    or_data: bool = False,
    trains: bool = False,
) -> Recipe:
    """The recipe of a command. What can be told without torch is told first: of the recipe, the data, a checkpoint.

    Args:
        checkpoint: that the command names.
        or_data: the reference may name a data set as well, see `unpacked`.
        trains: the checkpoint that the recipe starts from is needed.

    Raises:
        UsageError: see `load_recipe`, `check_before_torch` and `unpacked`.
    """
    from segtune.recipe.recipe import load_recipe, load_recipe_or_data, look_over

    ref = unpacked(ref) if or_data else ref
    quick = look_over(ref, overrides or (), or_data=or_data)
    check_before_torch(quick, quick.model.name if trains else checkpoint)
    if trains:
        _check_sources(quick)
        settle_threads(quick)
    with importing():  # to check a training takes transformers
        return (load_recipe_or_data if or_data else load_recipe)(ref, overrides or ())


def unpacked(ref: str) -> str:
    """Data as a command names it; in the place of a zip the folder beside it, which it is unpacked into.

    Raises:
        UsageError, DataError: see `unpack_beside`.
    """
    archive = Path(ref).expanduser()
    if archive.suffix.lower() != ".zip" or not archive.is_file():
        return ref
    from segtune.imageio.archives import unpack_beside

    found = unpack_beside(archive)
    if found.files is not None and found.bytes is not None:
        told = f"{found.files:,} files, {found.bytes / 2**20:,.1f} MiB"
        say(f"{archive} is unpacked into {found.folder}: {told}", err=True)
    return str(found.folder)


def settle_threads(settings: Recipe) -> None:
    """Have threads sleep while they wait, where a training will start loading processes that want their cores."""
    training = settings.training
    # By the rule of num_workers there are some where PyTorch finds a GPU, which it is not asked before it is loaded.
    gpu = training.device in ("auto", "cuda") and any(map(os.path.exists, ("/dev/nvidiactl", "/dev/kfd")))
    cpu_threads.settle(loading=int(gpu) if training.num_workers is None else training.num_workers)


def _check_sources(settings: Recipe) -> None:
    """Tell at once of a teacher, or a folder of unlabelled pictures, that is not there."""
    from segtune.data import config
    from segtune.segformer import checkpoint_files

    if settings.training.distill is not None:
        checkpoint_files.refuse_missing(settings.training.distill.teacher)
    if settings.dataset.unlabelled is not None:
        config.refuse_missing_folder(settings.dataset.unlabelled)


def refuse_existing(path: Path, force: bool) -> None:
    if path.exists() and not force:
        raise UsageError(f"{path} exists already; name another file, or say --force to overwrite it")
