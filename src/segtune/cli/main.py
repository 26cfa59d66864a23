"""The command line, `segtune train | evaluate | predict | doctor | data | push | …`: `segtune --help` lists it all.

Results go to stdout, logs and progress bars to stderr. Exit codes: 0 done, 1 failed, 2 bad usage or recipe, 3
stopped early on request (a signal, training.time_limit) with everything saved.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import io
import logging
import os
import shlex
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, NoReturn

import typer

import segtune
from segtune.cli import (
    cmd_data,
    cmd_demo,
    cmd_doctor,
    cmd_env,
    cmd_evaluate,
    cmd_experiments,
    cmd_export,
    cmd_hub,
    cmd_predict,
    cmd_recipes,
    cmd_report,
    cmd_select,
    cmd_train,
)
from segtune.cli.common import QuietOption, VerboseOption, add_command, is_main_process, resumed, set_volume
from segtune.engines import cpu_threads
from segtune.engines.freed_memory import keep_freed_memory
from segtune.errors import SegtuneError, causes, is_out_of_memory, printable
from segtune.files import is_full_disk
from segtune.imageio.object_store import fault_of_store
from segtune.training import interrupts


def main(argv: Sequence[str] | None = None) -> None:
    """Runs a command and leaves with its exit code.

    What the user can mend is one message: a fault of the input, or of the machine (a full disk, a file that may not be
    written). Anything else is a bug and shows its traceback; SEGTUNE_TRACEBACK=1 shows that of every error.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a pipe of Windows has no → and no ×
    interrupts.last_resort = partial(_leave_at_once, words)
    try:
        _run(words)
    except SystemExit as left:
        if argv is None and left.code == 3:
            _leave_quickly(3)
        raise


def _run(words: list[str]) -> None:
    """Run a command, and say in words how it failed."""
    try:
        with interrupts.StopRequest():
            typer.main.get_command(_application()).main(args=words, prog_name="segtune")
    except interrupts.Interrupted as interruption:
        _tell_stop(interruption.reason, words)
        sys.exit(3)
    except Exception as error:
        if os.environ.get("SEGTUNE_TRACEBACK") == "1":
            raise
        if isinstance(error, SegtuneError):
            _fail(str(error), error.exit_code)
        if is_full_disk(error):
            _fail(f"the disk is full: {_full_places(error)}. Make room, then give the same command again", 1)
        if fault := fault_of_store(error):
            _fail(f"{fault}. Then give the same command again", 1)
        if lack := next(filter(is_out_of_memory, causes(error)), None):
            _fail(
                f"there is not enough memory ({str(lack).strip() or 'MemoryError'}): images of a huge size take it "
                "(predict: --window), a large training.batch_size, or many training.num_workers\n"
                "(SEGTUNE_TRACEBACK=1 in the environment shows where it happened)",
                1,
            )
        if isinstance(error, OSError):
            _fail(
                f"{type(error).__name__}: {error}{_way_out(error)}\n"
                "(SEGTUNE_TRACEBACK=1 in the environment shows where it happened)",
                1,
            )
        traceback.print_exc()
        _fail("this is a bug of segtune: please report it with the traceback above and what `segtune env` prints", 1)
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    finally:
        interrupts.last_resort = None


def _application() -> typer.Typer:
    help_options = {"help_option_names": ["--help", "-h"]}  # of all commands
    app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, context_settings=help_options)
    app.callback(help="Fine-tune SegFormer: train a recipe, evaluate a checkpoint, predict masks.")(_configure)
    commands: tuple[Callable[..., None], ...] = (
        cmd_train.train,
        cmd_train.pretrain,
        cmd_evaluate.evaluate,
        cmd_report.report,
        cmd_evaluate.compare,
        cmd_evaluate.calibrate,
        cmd_predict.predict,
        cmd_predict.label,
        cmd_select.select,
        cmd_experiments.crossval,
        cmd_experiments.soup,
        cmd_experiments.tune,
        cmd_demo.demo,
        cmd_doctor.doctor,
        cmd_export.export,
        cmd_hub.push,
        cmd_hub.convert,
        cmd_evaluate.bench,
        cmd_export.sensitivity,
        cmd_env.env,
    )
    for command in commands:
        add_command(app, command)
    app.add_typer(cmd_recipes.application(), name="recipes")
    app.add_typer(cmd_data.application(), name="data")
    return app


def _tell_stop(reason: str, words: Sequence[str]) -> None:
    """Say why a command ends that has nothing to save, and how to go on: it leaves no half file."""
    # A run is gone on with, unless the command says itself what becomes of the one that is there.
    says_how = any(word.startswith(("training.resume=", "training.overwrite=")) for word in words)
    begins = words[:1] in (["train"], ["pretrain"]) and not says_how
    went_on = [*words, "--resume"] if _leaves_masks(words) else words
    with contextlib.suppress(OSError, ValueError):  # the terminal may be gone
        if is_main_process():
            typer.echo(f"stopped: {reason}", err=True)
            typer.echo(f"next: {shlex.join(['segtune', *(resumed(words) if begins else went_on)])}", err=True)


def _leaves_masks(words: Sequence[str]) -> bool:
    """Whether a command was stopped among files, and the same command would be refused since some are there."""
    is_said = {"--resume", "--overwrite", "-"}.intersection(words)
    return words[:1] in (["predict"], ["select"]) and not is_said and not any("://" in word for word in words)


def _leave_quickly(code: int) -> NoReturn:
    """End without taking torch to pieces, which takes a busy machine seconds that a signal's sender may not grant."""
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _leave_at_once(words: Sequence[str]) -> None:
    _tell_stop("a signal was received", words)
    os._exit(3)


def _full_places(error: BaseException) -> str:
    """What could not be written, where the error tells it; else the folders that are written beside the outputs."""
    for link in causes(error):
        if isinstance(link, OSError) and link.filename:
            return str(link.filename)
    cache = os.environ.get("HF_HOME", "~/.cache/huggingface")
    return f"the output's, that of the cache (HF_HOME, {cache}), or that of temporary files ({tempfile.gettempdir()})"


def _way_out(error: OSError) -> str:
    """What to do where a file or folder cannot be made, as far as the system's answer tells."""
    if isinstance(error, NotADirectoryError | FileExistsError):
        return ": a file is where a folder is needed; name another folder"
    if isinstance(error, PermissionError) or error.errno == errno.EROFS:
        return ": name another place, or one whose permissions allow it"
    return ""


def _fail(message: str, exit_code: int) -> NoReturn:
    typer.echo(f"error: {printable(message)}", err=True)
    sys.exit(exit_code)


class _PrintableFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"segtune {segtune.__version__}")
        raise typer.Exit


def _configure(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    cpu_threads.settle()
    if context.invoked_subcommand != "bench":  # which compares libraries as any program of Python has them
        keep_freed_memory()
    if os.environ.get("NO_COLOR"):  # https://no-color.org; rich heeds it by itself
        context.color = False
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_PrintableFormatter("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("huggingface_hub").propagate = False  # it has a handler of its own
    # Pillow complains of every raster with more bands than it knows, which rasterio reads then.
    logging.getLogger("PIL.TiffImagePlugin").setLevel(logging.CRITICAL)
    logging.getLogger("segtune").setLevel(logging.INFO if is_main_process() else logging.ERROR)
    set_volume(quiet, verbose)
