"""What guides a step besides its labels: distillation from a teacher, and self-training on unlabelled pictures.

Both terms are sums over pixels, divided by a number that is counted over the whole step before the first forward pass,
as the loss is: how a step is divided into micro-batches and processes changes nothing.

Letters: B labelled and U unlabelled samples of a micro-batch, K labels.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from segtune.data.config import TransformConfig
from segtune.data.unlabelled.pictures import ids_digest
from segtune.data.unlabelled.views import UnlabelledBatches, UnlabelledViews
from segtune.errors import UsageError
from segtune.inference.segmenter import eval_mode
from segtune.labels.label_map import LabelMap
from segtune.segformer.image_processing_segformer import SegformerImageProcessor
from segtune.training.config import TrainingConfig
from segtune.training.ema import ExponentialMovingAverage
from segtune.training.interrupts import ignore_interrupts
from segtune.training.losses.distillation import distillation_loss
from segtune.training.losses.loss_terms import two_logits
from segtune.training.teachers.logit_cache import LogitCache
from segtune.training.teachers.self_training import SelfTraining
from segtune.training.teachers.teacher import Teacher, load_teacher

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)

MicroBatches = list[dict[str, Any]]


class Guidance:
    """The terms of `training.distill` and `training.semi`; without either, it adds nothing.

    Args:
        ema: the averaged weights, which label unlabelled pictures.

    Attributes:
        names: of the numbers that a call returns: "distill" and "semi", the terms before their weights, and
            "semi_share", the share of unlabelled pixels that the teacher is sure of.
    """

    def __init__(
        self,
        config: TrainingConfig,
        label_map: LabelMap,
        processor: SegformerImageProcessor,
        accelerator: Accelerator,
        ema: ExponentialMovingAverage | None,
    ) -> None:
        self.config, self.label_map, self.processor = config, label_map, processor
        self.accelerator, self.ema = accelerator, ema
        self.teacher: Teacher | None = None
        self.cache: LogitCache | None = None
        self.semi: SelfTraining | None = None
        self.unlabelled: UnlabelledBatches | None = None
        self.pictures = ""  # a digest of their ids
        self.weight = 0.0  # of the term of this step's unlabelled pictures
        self.names = (("distill",) if config.distill else ()) + (("semi", "semi_share") if config.semi else ())

    def find_sources(
        self,
        transforms: TransformConfig,
        layout: tuple[int, int, int],
        unlabelled: datasets.Dataset | None,
        eval_dataset: datasets.Dataset | None,
    ) -> None:
        """Load the teacher, and make ready the unlabelled pictures.

        Args:
            layout: batch size, accumulation steps and processes of the labelled samples.
            eval_dataset: the validation split, on which confidences are calibrated.

        Raises:
            UsageError: see `load_teacher`; or there is a section without pictures, or the other way round.
        """
        size = (transforms.crop_size,) * 2 if isinstance(transforms.crop_size, int) else transforms.crop_size
        if self.config.distill is not None:
            device, autocast = self.accelerator.device, self.accelerator.autocast()
            self.teacher = load_teacher(
                self.config.distill.teacher, self.label_map, self.processor, size, device, autocast
            )
            if self.config.distill.cache is not None:
                self.cache = LogitCache(Path(self.config.distill.cache), self.teacher)
        if (unlabelled is None) != (self.config.semi is None):
            raise UsageError("training.semi and unlabelled pictures (dataset.unlabelled) go together: give both")
        if unlabelled is None or self.config.semi is None:
            return
        if eval_dataset is None:
            logger.warning("training.semi: there is no validation split, so confidences are not calibrated")
        self.semi = SelfTraining(self.config.semi, self.config.max_steps, self.label_map, self.processor, eval_dataset)
        views = UnlabelledViews(unlabelled, transforms, self.config.seed, self.config.semi.cutmix)
        index, ratio = self.accelerator.process_index, self.config.semi.ratio
        self.unlabelled = UnlabelledBatches(views, layout, ratio, index, self.config.seed)
        self.pictures = ids_digest(unlabelled)

    def with_unlabelled(self, steps: Iterator[MicroBatches], step: int) -> Iterator[MicroBatches]:
        """The micro-batches of each step from `step` on, with the views of unlabelled pictures once these are seen."""
        if self.unlabelled is None or self.semi is None:
            yield from steps
            return
        first = max(step, self.semi.start_step)
        views = self.unlabelled.steps(
            first,
            self.config.max_steps,
            self.config.num_workers or 0,
            pin_memory=self.accelerator.device.type == "cuda",
            worker_init_fn=ignore_interrupts,
        )
        for number, micro_batches in enumerate(steps, start=step):
            if number < first:
                yield micro_batches
            else:
                pairs = zip(micro_batches, next(views), strict=True)
                yield [batch | {"unlabelled": unlabelled} for batch, unlabelled in pairs]

    def prepare(self, micro_batches: Sequence[dict[str, Any]], step: int, model: nn.Module) -> Tensor:
        """Let the averaged weights label the unlabelled pictures of a step; returns what the terms are divided by.

        Returns:
            A number for each of `names`, to be summed over processes: the pixels that the teacher's classes label, and
            twice those of unlabelled pictures that are no padding.
        """
        device = self.accelerator.device
        counts = torch.zeros(len(self.names), device=device, dtype=_exact(device))
        if self.teacher is not None:
            counts[0] = sum(self._known(batch["labels"]).sum() for batch in micro_batches)
        self.weight = 0.0 if self.semi is None else self.semi.weight(step)
        if self.semi is None or self.ema is None or not self.weight:
            return counts
        with self.ema.swapped_in(model), eval_mode(model):
            if self.semi.temperature is None:
                self.calibrate(model)
            with self.accelerator.autocast():
                for batch in micro_batches:
                    self.semi.label(model, batch["unlabelled"])
        counts[-2:] = sum(batch["unlabelled"]["counted"] for batch in micro_batches)
        return counts

    def pixel_values(self, batch: Mapping[str, Any]) -> Tensor:
        """What the network sees of a micro-batch, `(B + U, C, h, w)`: the labelled crops, then the strong views."""
        own: Tensor = batch["pixel_values"]
        return torch.cat((own, batch["unlabelled"]["strong"])) if self.weight else own

    def __call__(self, logits: Tensor, batch: Mapping[str, Any], counts: Tensor) -> tuple[Tensor, Tensor]:
        """The weighted share of a micro-batch in the loss of its step, and its share in each of `names`, detached.

        Args:
            logits: `(B + U, K, h/4, w/4)` of `pixel_values`.
            counts: of `prepare`, summed over all processes.
        """
        counts = counts.clamp(min=1)
        total, shares = logits.new_zeros((), dtype=torch.float32), torch.zeros_like(counts)
        number = len(batch["labels"])
        if self.teacher is not None and self.config.distill is not None:
            term = self._distilled(logits[:number], batch) / counts[0]
            total, shares[0] = total + self.config.distill.weight * term, term.detach()
        if self.semi is not None and self.weight:
            views = batch["unlabelled"]
            term = self.semi.loss(logits[number:], views) / counts[-2]
            sure = (views["labels"] != self.label_map.ignore_index).sum()
            total, shares[-2], shares[-1] = total + self.weight * term, term.detach(), sure / counts[-1]
        return total, shares

    def _distilled(self, logits: Tensor, batch: Mapping[str, Any]) -> Tensor:
        """The summed divergence of labelled crops, over the pixels of classes that the teacher knows."""
        assert self.teacher is not None and self.config.distill is not None
        with self.accelerator.autocast():
            answered = (self.cache or self.teacher)(batch["pixel_values"])  # (B, S, h', w')
        if logits.shape[1] == 1:
            logits = two_logits(logits, dim=1)
        if not self.teacher.classes.is_all:
            logits = logits[:, list(self.teacher.classes.student)]
        return distillation_loss(logits, answered, self._known(batch["labels"]), self.config.distill.temperature)

    def _known(self, labels: Tensor) -> Tensor:
        """Where a label `(B, h, w)` is a class of the teacher: neither ignored, nor one that it does not know."""
        assert self.teacher is not None
        valid = (labels != self.label_map.ignore_index) & (labels >= 0)
        if self.teacher.classes.is_all:
            return valid
        return valid & torch.isin(labels, torch.tensor(self.teacher.classes.student, device=labels.device))

    def calibrate(self, model: nn.Module) -> None:
        """Fit the temperature of confidences; all processes call this, and take that of the main one.

        Before the first unlabelled picture is seen, and again at each evaluation. Each process sees the whole split:
        where parameters are divided, none could do so alone.

        Args:
            model: with the averaged weights.
        """
        if self.semi is None or self.semi.eval_dataset is None:
            return
        self.semi.calibrate(model)
        self.semi.temperature = float(broadcast_object_list([self.semi.temperature])[0])

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to label as this one would have."""
        if self.semi is None:
            return {}
        return {"semi": {"temperature": self.semi.temperature, "pictures": self.pictures}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned.

        Raises:
            UsageError: the run saw other unlabelled pictures.
        """
        if self.semi is None or "semi" not in state:
            return
        if state["semi"]["pictures"] != self.pictures:
            raise UsageError(
                "dataset.unlabelled holds other pictures than the run began with: restore them, or start a new run"
            )
        self.semi.temperature = state["semi"]["temperature"]


def _exact(device: torch.device) -> torch.dtype:
    """As `SegmentationLoss.count`: whole numbers of pixels add up exactly."""
    return torch.float64 if device.type == "cpu" else torch.float32
