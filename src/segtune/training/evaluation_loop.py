"""Validation during training: scores of a step's weights, the best weights so far, and early stopping."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from accelerate.utils import gather_object

from segtune.bars import notebook
from segtune.config import flatten
from segtune.data.lazy_rows import sample_ids
from segtune.errors import UsageError
from segtune.evaluation.evaluation import Evaluation
from segtune.inference.evaluate import OnImage, evaluate_model
from segtune.labels.label_map import LabelMap
from segtune.segformer.image_processing_segformer import SegformerImageProcessor
from segtune.segformer.modeling_segformer import SegformerForSemanticSegmentation
from segtune.training.config import TrainingConfig
from segtune.training.progress import TrainingProgress
from segtune.training.run_folder import BEST, OVERLAYS, RunFolder
from segtune.viz.comparisons import Comparisons

if TYPE_CHECKING:
    import datasets

OVERLAY_SIDE = 1800  # pixels, at most, of a picture in overlays/


class Validation:
    """Evaluates weights on the validation split, all processes together, and keeps the best of them in the run folder.

    Args:
        dataset: the validation split; None where there is none, and `evaluate` is not called.
        batch_size: images of one size that are evaluated together.

    Attributes:
        best: "step" and value of `config.best_metric` of the weights in best/; empty where there are none.
        since_best: evaluations after that one.

    Raises:
        UsageError: `config.best_metric` is no number of an evaluation.
    """

    def __init__(
        self,
        dataset: datasets.Dataset | None,
        label_map: LabelMap,
        processor: SegformerImageProcessor,
        run: RunFolder,
        config: TrainingConfig,
        batch_size: int = 1,
    ) -> None:
        numbers = [key for key, _ in flatten(Evaluation(label_map.names).scores())]
        if config.best_metric not in numbers:
            raise UsageError(
                f"training.best_metric={config.best_metric} is no number of an evaluation: {', '.join(numbers)}"
            )
        self.dataset = dataset
        self.label_map = label_map
        self.processor = processor
        self.run = run
        self.config = config
        self.batch_size = batch_size
        ids = [] if dataset is None else sample_ids(dataset)
        self.comparisons = Comparisons(
            run.path / OVERLAYS, label_map, ids, config.overlays, suffix=".jpg", longest_side=OVERLAY_SIDE
        )
        self.best: dict[str, Any] = {}
        self.since_best = 0

    def evaluate(
        self,
        model: SegformerForSemanticSegmentation,
        step: int,
        progress: TrainingProgress,
        at_once: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> dict[str, Any]:
        """Score the weights of a step, report that to `progress`, and save them as best/ where none were better.

        Args:
            at_once: makes the context in which images are looked at, and may be left at any time.
        """
        self.comparisons.folder = self.run.path / OVERLAYS / f"step-{step:06d}"
        progress.evaluating()
        with at_once():
            evaluation = self.count(model, self.dataset, self.comparisons.save)
        scores = evaluation.scores()
        progress.scores(scores, self.comparisons)
        value = dict(flatten(scores))[self.config.best_metric]
        if self._is_better(value):
            self.best, self.since_best = {"step": step, self.config.best_metric: value}, 0
            self.run.save_model(BEST, model, self.processor)
            self.run.save_evaluation(evaluation, "val", step)
        else:
            self.since_best += 1
        return scores

    def _is_better(self, value: float | None) -> bool:
        """Whether a value is above, or below, that of best/; a class that no image shows has none."""
        best = self.best.get(self.config.best_metric)
        sign = 1 if self.config.best_direction == "max" else -1
        return value is not None and (best is None or sign * value > sign * best)

    def early_stop(self) -> str | None:
        """Why to end the run before its last step, in words; None while there is hope."""
        patience = self.config.early_stopping_patience
        if patience is None or self.since_best < patience:
            return None
        return f"early: no better {self.config.best_metric} in {self.since_best} evaluations"

    def count(
        self, model: SegformerForSemanticSegmentation, dataset: datasets.Dataset, on_image: OnImage | None = None
    ) -> Evaluation:
        """What all processes count on all of `dataset`, the same in every process.

        Args:
            on_image: see `evaluate_model`; each process calls it for its share of the images.
        """
        accelerator = self.run.accelerator
        evaluation = evaluate_model(
            model,
            dataset,
            self.label_map,
            self.processor,
            batch_size=self.batch_size,
            device=accelerator.device,
            # As the network trains, also where it is a copy that Accelerate has not prepared.
            precision="fp32" if self.config.mixed_precision == "no" else self.config.mixed_precision,
            progress=accelerator.is_local_main_process and notebook() is None,  # which has a table
            # Process r of n takes the images r, r + n, r + 2n, …: every image once, unlike a padded sampler, which
            # would count some twice.
            indices=range(accelerator.process_index, len(dataset), accelerator.num_processes),
            on_image=on_image,
        )
        # Counts of pixels are integers and add up exactly, so that the scores do not depend on the number of processes.
        first, *others = gather_object([evaluation])
        for other in others:
            first.merge(other)
        return first

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to judge its next evaluation as this one would have."""
        return {"best": self.best, "evaluations_since_best": self.since_best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self.best, self.since_best = state["best"], state["evaluations_since_best"]
