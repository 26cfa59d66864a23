"""The run folder: opened once, written by the main process, resumed after any end."""

from __future__ import annotations

import json
import logging
import math
import shutil
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from segtune.data.dataset import save_split
from segtune.errors import DataError, UsageError
from segtune.evaluation.evaluation import Evaluation, file_name
from segtune.files import atomic_path, naming_full_disk, read_json_lines, recover, write_atomic
from segtune.segformer.image_processing_segformer import SegformerImageProcessor
from segtune.segformer.modeling_segformer import SegformerPreTrainedModel
from segtune.training import checkpoint
from segtune.training.checkpoint import MODEL_FILES
from segtune.training.config import RECIPE_FILE
from segtune.training.run_lock import locked

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)

# What lies in a run folder; no other module spells these names. Evaluations are named by `evaluation.file_name`.
SPLIT_FILE, METRICS_FILE, REPORT_FILE = "split.json", "metrics.jsonl", "report.html"  # beside RECIPE_FILE
PROPOSAL_FILE = "proposal.yaml"  # the recipe that was made from data, with the reasons; a run may begin from it
STATES, BEST, FINAL, OVERLAYS, TENSORBOARD = "checkpoints", "best", "final", "overlays", "tensorboard"  # folders
RUN_FILES = (RECIPE_FILE, SPLIT_FILE, METRICS_FILE)  # pushed beside the weights
NON_FINITE = "non_finite"  # a folder: the samples of a step whose loss or gradient was not finite
UNSCORED = "model"  # a folder of a training state: its weights as a checkpoint, where there was no best/ yet


class RunFolder:
    """Reads and writes the files of a run: training states, best/, final/, `metrics.jsonl`, recipe and splits.

    Every process makes one and calls the same methods; the main process writes.

    Args:
        resume: `never`, `auto` (from the newest complete state in the folder) or the path of a state.
        overwrite: whether the run that the folder holds is removed.
        keep_last: how many training states stay.

    Attributes:
        source: the file that the recipe was read from, which is not removed with what the folder holds.
    """

    def __init__(
        self, path: str | Path, accelerator: Accelerator, *, resume: str, overwrite: bool, keep_last: int
    ) -> None:
        self.path = Path(path)
        self.accelerator = accelerator
        self.resume = resume
        self.overwrite = overwrite
        self.keep_last = keep_last
        self.recipe: str | None = None
        self.source: Path | None = None
        self.lines = 0  # of metrics.jsonl

    @property
    def states(self) -> Path:
        """Where the training states lie, `step-000500/` and so on."""
        return self.path / STATES

    @property
    def is_resuming(self) -> bool:
        """Whether the run that the folder holds goes on; a state of another folder is where a new run starts from."""
        return is_resuming(self.path, self.resume)

    # --- before the first step ---------------------------------------------------------------------------------------

    def locked(self) -> AbstractContextManager[None]:
        """A context in which no other training writes into the folder; see `run_lock.locked`."""
        return locked(self.path) if self.accelerator.is_main_process else nullcontext()

    def open(self, recipe: str | None, splits: datasets.DatasetDict | None) -> Path | None:
        """Repair what a killed process left half done, remove what may be removed, store the splits.

        Returns:
            The training state to go on from; None: start from the first step.

        Raises:
            UsageError: the folder holds a run that is neither gone on with nor removed, `resume` names no folder, or
                the splits are not those that the run began with.
        """
        self.recipe = recipe
        found: list[Path | None] = [None]
        if self.accelerator.is_main_process:
            self._recover()
            refuse_existing_run(self.path, self.resume, self.overwrite)
            found = [self._state_to_resume()]
            if self.is_resuming:
                self._tell_damage()
                self._remove_outdated(but=found[0])  # a kill may have come between a state and this
            self._make_room()
            if splits is not None:
                self._save_split(splits)
        return cast("Path | None", broadcast_object_list(found)[0])

    def _recover(self) -> None:
        for name in (BEST, FINAL):
            recover(self.path / name)
        for leftover in self.states.glob(".step-*.*"):
            recover(leftover.with_name(leftover.name[1:-4]))

    def _state_to_resume(self) -> Path | None:
        if self.resume == "never":
            return None
        if self.resume == "auto":
            return self.newest_state()
        state = Path(self.resume)
        if not state.is_dir():
            raise UsageError(f"training.resume={state} is not a folder: give auto, never or a saved state")
        return state

    def newest_state(self) -> Path | None:
        """The newest training state that is complete; torn ones are named and removed."""
        for folder in reversed(checkpoint.saved_states(self.states)):
            try:
                checkpoint.check_state(folder)
                return folder
            except DataError as error:
                logger.warning("%s: this training state is removed, the one before is taken", error)
                shutil.rmtree(folder)
        if run_content(self.path):
            logger.warning("%s holds no training state to go on from: starting from the first step", self.path)
        return None

    def _tell_damage(self) -> None:
        """Name what is damaged besides the training states and best/; it computes nothing of what follows."""
        evaluation = self.path / file_name("val")
        try:
            if (self.path / FINAL).exists():
                checkpoint.check_model(self.path / FINAL)
        except DataError as error:
            logger.warning("%s: it is written anew at the end of the run", error)
        try:
            if evaluation.exists():
                Evaluation.load(evaluation)
        except (DataError, OSError) as error:
            logger.warning("%s: it is written anew with the next better %s/", error, BEST)

    def damage_of_best(self) -> str | None:
        """What is wrong with best/, in words, the same in every process; None where it is what was written."""
        found: list[str | None] = [None]
        if self.accelerator.is_main_process:
            try:
                checkpoint.check_model(self.path / BEST)
            except (DataError, OSError) as error:
                found = [str(error)]
        return cast("str | None", broadcast_object_list(found)[0])

    def whole_state(self, step: int) -> Path | None:
        """The training state of a step, where there is one and it is what was written; the same in every process."""
        found: list[Path | None] = [None]
        if self.accelerator.is_main_process:
            folder = self._state_folder(step)
            with suppress(DataError):
                checkpoint.check_state(folder)
                found = [folder]
        return cast("Path | None", broadcast_object_list(found)[0])

    def _state_folder(self, step: int) -> Path:
        return self.states / f"step-{step:06d}"

    def _make_room(self) -> None:
        if not self.is_resuming:
            # A proposal alone is no run that is in the way, but goes with the run that is removed.
            paths = [self.path / name for name in run_content(self.path)]
            proposal = self.path / PROPOSAL_FILE
            for path in [*paths, *([proposal] if self.overwrite and proposal.is_file() else [])]:
                if self.source is None or path.resolve() != self.source.resolve():
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        self.path.mkdir(parents=True, exist_ok=True)

    def _save_split(self, splits: datasets.DatasetDict) -> None:
        path = self.path / SPLIT_FILE
        with atomic_path(path) as temporary:
            save_split(splits, temporary)
            if path.is_file() and path.read_bytes() != temporary.read_bytes():
                raise UsageError(
                    f"the data is not what the run began with: {path} lists other samples. Restore it, or start a new "
                    "run from a state with training.resume=PATH and another training.output_dir"
                )

    def begin(self, step: int, environment: dict[str, Any], written: int = 0) -> None:
        """Write the recipe, and let `metrics.jsonl` go on after `step`.

        Later lines are forgotten; the environment is noted where it is another one than before.

        Args:
            written: how many lines there were when the state of `step` was saved; it is told where some are gone.
        """
        path = self.path / METRICS_FILE
        if not self.accelerator.is_main_process:
            return
        if self.recipe is not None:
            write_atomic(self.path / RECIPE_FILE, self.recipe)
        if path.exists() and not path.is_file():
            raise DataError(f"{path} is not a file: move it away, then give the same command again")
        lines = read_json_lines(path) if path.exists() else []
        kept = [line for line in lines if line.get("step", 0) <= step]
        if self.is_resuming and len(kept) < written:
            gone = f"{written - len(kept)} of {written} lines"
            logger.warning("%s: %s from before step %d are gone, and so are their points of curves", path, gone, step)
        known = [line["environment"] for line in kept if "environment" in line]
        if known[-1:] != [environment]:
            kept.append({"step": step, "environment": environment})
        write_atomic(path, "".join(json.dumps(line) + "\n" for line in kept))
        self.lines = len(kept)

    def check_batch_layout(self, state: Path, before: tuple[int, int, int], now: tuple[int, int, int]) -> None:
        """The images of a step must be as many as before; how they are divided changes rounding and batch norm.

        Args:
            before, now: batch size, accumulation steps, processes.

        Raises:
            UsageError: the run that goes on would take another number of images.
        """
        if now == before:
            return
        message = (
            f"{state}: a step took {math.prod(before)} images, {' x '.join(map(str, before))} (batch_size x "
            f"accumulation_steps x processes), now {math.prod(now)}, {' x '.join(map(str, now))}"
        )
        if math.prod(now) != math.prod(before) and self.is_resuming:
            raise UsageError(f"{message}: change training.batch_size or training.accumulation_steps")
        logger.warning(message)

    # --- during the run ----------------------------------------------------------------------------------------------

    def write(self, record: dict[str, Any]) -> None:
        """Add a line to `metrics.jsonl`."""
        if self.accelerator.is_main_process:
            path = self.path / METRICS_FILE
            with naming_full_disk(path), path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
            self.lines += 1

    def save_state(
        self, step: int, model: torch.nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]
    ) -> None:
        """Save all that a resumed run needs, then remove the oldest states beyond `keep_last`."""
        folder = self._state_folder(step)
        texts = {} if self.recipe is None else {RECIPE_FILE: self.recipe}
        checkpoint.save_state(folder, self.accelerator, model, optimizer, state, texts)
        if self.accelerator.is_main_process:
            self._remove_outdated()
        self.accelerator.wait_for_everyone()

    def _remove_outdated(self, but: Path | None = None) -> None:
        for outdated in checkpoint.saved_states(self.states)[: -self.keep_last]:
            if but is None or outdated.resolve() != but.resolve():
                shutil.rmtree(outdated)

    def load_state(self, state: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Put a training state back into model, optimiser and random generators; returns the rest, see `save_state`.

        Raises:
            DataError: a file is missing or torn.
        """
        return checkpoint.load_state(state, self.accelerator, model, optimizer)

    def save_model(self, name: str, model: SegformerPreTrainedModel, processor: SegformerImageProcessor) -> None:
        """Save the model as `best/` or `final/`."""
        if self.accelerator.is_main_process:
            checkpoint.save_model(self.path / name, model, processor)

    def save_unscored(self, step: int, model: SegformerPreTrainedModel, processor: SegformerImageProcessor) -> Path:
        """Save a model in the training state of its step; returns its folder."""
        folder = self._state_folder(step) / UNSCORED
        if self.accelerator.is_main_process:
            checkpoint.save_model(folder, model, processor)
        return folder

    def save_evaluation(self, evaluation: Evaluation, split: str, step: int) -> None:
        """Keep what was counted with the weights of best/."""
        if self.accelerator.is_main_process:
            evaluation.about = {"checkpoint": str(self.path / BEST), "split": split, "step": step}
            evaluation.save(self.path / file_name(split))


def run_content(folder: Path) -> list[str]:
    """What of a run the folder holds."""
    evaluations = sorted(path.name for path in folder.glob(file_name("*")))
    names = [RECIPE_FILE, SPLIT_FILE, METRICS_FILE, REPORT_FILE, STATES, BEST, FINAL, OVERLAYS, TENSORBOARD, NON_FINITE]
    return [*(name for name in names if (folder / name).exists()), *evaluations]


def is_resuming(folder: str | Path, resume: str) -> bool:
    """Whether `resume` means the run in the folder: `auto`, or one of its own states."""
    return resume == "auto" or (resume != "never" and Path(resume).resolve().is_relative_to(Path(folder).resolve()))


def refuse_existing_run(folder: str | Path, resume: str, overwrite: bool) -> None:
    """Raise UsageError where the folder holds a run that the settings neither go on with nor remove."""
    held = run_content(Path(folder))
    if held and not is_resuming(folder, resume) and not overwrite:
        raise UsageError(
            f"{folder} holds a run ({', '.join(held)}): choose another training.output_dir, or set "
            "training.resume=auto to go on with it or training.overwrite=true to remove it"
        )


def find_checkpoint(run: Path) -> tuple[Path, Path]:
    """The run folder, and the weights in it that are pushed: best/, else final/, else those that were named.

    Args:
        run: a run folder, or its `best` or `final`.

    Raises:
        UsageError: there is no finished run.
    """
    if not run.is_dir():
        raise UsageError(f"{run}: no such run folder")
    if (run / MODEL_FILES[0]).is_file():
        run, candidates = run.parent, [run]
    else:
        candidates = [run / BEST, run / FINAL]
    if not (run / RECIPE_FILE).is_file():
        raise UsageError(f"{run} is no run folder: it has no {RECIPE_FILE}")
    # A best/ of which something is missing is damaged: final/ in its place would be other weights without a word.
    folder = next((folder for folder in candidates if folder.exists()), None)
    if folder is None:
        raise UsageError(f"{run} has no weights yet: neither {BEST}/ nor {FINAL}/ holds {', '.join(MODEL_FILES)}")
    if missing := [name for name in MODEL_FILES if not (folder / name).is_file()]:
        raise UsageError(
            f"{folder} has no {', '.join(missing)}: let the training go on (training.resume=auto), which restores "
            f"{BEST}/ where it can, or name other weights"
        )
    return run, folder
