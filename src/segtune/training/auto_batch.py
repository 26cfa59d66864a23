"""The largest micro-batch that fits, found by trying; and trial steps, which leave the model as it was.

A step of G images is divided into n micro-batches of B images in each of P processes, B · n · P = G. What is computed
does not depend on the division (apart from the statistics of a local batch norm, and from dropout), but memory grows
with B alone, and so B is the largest divisor of G / P that every process has room for.
"""

from __future__ import annotations

import gc
import json
import logging
import math
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from segtune.data.config import TransformConfig
from segtune.data.loader import TrainingBatches
from segtune.errors import DataError, SegtuneError, UsageError, is_out_of_memory
from segtune.labels.label_map import LabelMap
from segtune.segformer.image_processing_segformer import SegformerImageProcessor
from segtune.segformer.modeling_segformer import SegformerForSemanticSegmentation
from segtune.training.config import TrainingConfig, scaled_rate
from segtune.training.distributed import Upload, free_memory, is_sharded, make_accelerator, numerics
from segtune.training.interrupts import ignore_interrupts
from segtune.training.losses.segmentation_loss import SegmentationLoss
from segtune.training.optim import adamw, freeze, parameter_groups, train_mode
from segtune.training.teachers.guidance import Guidance

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)

# Bytes that stay free beside a trial step: for decoding images, for evaluations, for the gaps between allocations that
# earlier trials have left and, where addresses are limited, for what the C library reserves for each thread.
HEADROOM = 2**29
_TRIALS = """
import gc
gc.disable()  # of what libraries leave when they are imported, hardly anything is garbage
from segtune.training.auto_batch import _try_for_another
gc.freeze()
gc.enable()
_try_for_another()
"""
_FITS, _FAULT = "fits", "fault"  # before a number, and before an exit code and a message: what their process says
# What a launcher tells its processes, by which the process of the trials would join theirs.
_LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_", "GROUP_", "ROLE_", "MASTER_", "TORCHELASTIC_", "PMI_", "OMPI_", "MV2_")


def find_batch(
    model: SegformerForSemanticSegmentation,
    config: TrainingConfig,
    rows: datasets.Dataset,
    label_map: LabelMap,
    transforms: TransformConfig,
    processor: SegformerImageProcessor,
    *,
    shuffle_buffer: int = 256,
) -> TrainingConfig:
    """The configuration with numbers in the place of `batch_size=auto`; all processes call this, and agree.

    The images of a step stay `effective_batch_size`. Where the processes cannot divide it evenly, each takes one image
    more, and the learning rate follows, see `scaled_rate`.

    Args:
        model: of the run, before it is wrapped; it moves to the run's device, and stays as it is.

    Raises:
        UsageError: one image is too much already, the parameters are divided among the processes (FSDP), unlabelled
            pictures take memory as well, which the trials do not see; or the teacher cannot be loaded.
    """
    if config.semi is not None:
        raise UsageError(
            "training.batch_size=auto does not know what training.semi takes: give a number, and "
            "training.accumulation_steps"
        )
    accelerator = make_accelerator(config.device, config.mixed_precision)
    options = {"shuffle_buffer": shuffle_buffer}
    trials = TrialSteps(model, config, rows, label_map, transforms, processor, accelerator, **options)
    wanted, processes = config.images_wanted, accelerator.num_processes
    share = math.ceil(wanted / processes)
    largest = largest_elsewhere if accelerator.device.type == "cpu" else TrialSteps.largest
    batch = min(gather_object([largest(trials, share)]))
    if batch == 0:
        raise UsageError(
            f"training.batch_size=auto: not even one image of {trials.shape} fits into the memory of "
            f"{accelerator.device}: make transforms.crop_size smaller, or set training.gradient_checkpointing=true"
        )
    changes: dict[str, Any] = {"batch_size": batch, "accumulation_steps": share // batch, "effective_batch_size": None}
    changes["learning_rate"] = scaled_rate(config.learning_rate, share * processes, wanted)
    told = f"training.batch_size={batch} training.accumulation_steps={share // batch}"
    logger.info("the largest micro-batch that fits: %s", told)
    if share * processes != wanted:
        logger.warning(
            "%d processes cannot divide %d images evenly: a step takes %d, at training.learning_rate=%g",
            processes, wanted, share * processes, changes["learning_rate"],
        )  # fmt: skip
    return config.model_copy(update=changes)


def divisors(number: int) -> list[int]:
    """Those of a number, the smallest first."""
    return [n for n in range(1, number + 1) if number % n == 0]


class TrialSteps:
    """Optimiser steps of the shape that a run will make, on its own samples, that leave the model as it was.

    AdamW at a learning rate of 0 changes no weight, but computes and holds all that a real step does, gradients and
    moments included. The running statistics of batch norm are put back.

    Args:
        model: moves to the device of `accelerator`.
        config: of the training; its batch is not looked at. A teacher of `distill` answers in every step, without its
            cache, as in a run that sees each crop for the first time; of `semi` nothing is tried.
        processor: says what pixel values the network sees, from which the teacher's are made.

    Raises:
        UsageError: the parameters are divided among processes, so that none can try alone; or see `load_teacher`.
    """

    def __init__(
        self,
        model: SegformerForSemanticSegmentation,
        config: TrainingConfig,
        rows: datasets.Dataset,
        label_map: LabelMap,
        transforms: TransformConfig,
        processor: SegformerImageProcessor,
        accelerator: Accelerator,
        *,
        shuffle_buffer: int = 256,
    ) -> None:
        if is_sharded(accelerator):
            raise UsageError("training.batch_size=auto does not go with FSDP: give a number")
        self.config, self.accelerator, self.device = config, accelerator, accelerator.device
        self.rows, self.label_map, self.transforms = rows, label_map, transforms
        self.shuffle_buffer = shuffle_buffer
        self.loss = SegmentationLoss(config.loss, label_map.names, label_map.ignore_index)
        freeze(model, config.freeze)
        if config.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        self.model = model.to(self.device)
        self.processor = processor
        # Of the parameters: averaged ones, and DDP's buckets.
        self.copies = (config.ema_decay is not None) + (accelerator.num_processes > 1)
        self.processes_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # which share the memory
        distill = config.distill and config.distill.model_copy(update={"cache": None})
        seen = config.model_copy(update={"distill": distill, "semi": None})
        self.guidance = Guidance(seen, label_map, processor, accelerator, None)
        self.guidance.find_sources(transforms, (1, 1, accelerator.num_processes), None, None)

    @property
    def shape(self) -> str:
        """Of an image in a batch, in words."""
        size = self.transforms.crop_size
        height, width = (size, size) if isinstance(size, int) else size
        return f"{height}x{width}"

    def largest(self, images: int) -> int:
        """The largest divisor of `images` that fits into the memory as a micro-batch; 0 where not even 1 does."""
        return max(self.fitting(images), default=0)

    def fitting(self, images: int) -> Iterator[int]:
        """The divisors of `images` that fit into the memory as a micro-batch, the smallest first.

        Upwards, since what follows a failure may fail for it, see `largest_elsewhere`.
        """
        for batch in divisors(images):
            # Two are enough: the memory of one is given back before the third, but both are loaded at once.
            if not self.fits(batch, min(2, images // batch)):
                logger.info("a micro-batch of %d does not fit", batch)
                return
            yield batch

    def fits(self, batch_size: int, accumulation_steps: int = 1) -> bool:
        """Whether one step of micro-batches finds the memory that it needs; what it took is given back."""
        try:
            with _no_more_than_there_is(self.device, self.processes_here):
                beside = self._beside()
                self.seconds(batch_size, accumulation_steps)
                del beside
        except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is one of the latter
            if not is_out_of_memory(error):
                raise
            return False
        finally:
            self._give_back()
        return True

    def seconds(
        self, batch_size: int, accumulation_steps: int = 1, steps: int = 1, num_workers: int = 0
    ) -> list[float]:
        """Make some steps; returns what each took, in seconds, with the loading of its samples.

        Raises:
            DataError: a sample cannot be read.
            RuntimeError, MemoryError: there is too little memory.
        """
        config = self.config
        batches = TrainingBatches(
            self.rows,
            self.label_map,
            self.transforms,
            config.seed,
            batch_size=batch_size,
            accumulation_steps=accumulation_steps,
            process_index=self.accelerator.process_index,
            num_processes=self.accelerator.num_processes,
            buffer=self.shuffle_buffer,
            distances_from=int(self.model.config.num_labels == 1) if config.loss.uses("boundary") else None,
        )
        pin = self.device.type == "cuda"
        loaded = batches.steps(0, steps, num_workers=num_workers, pin_memory=pin, worker_init_fn=ignore_interrupts)
        groups = parameter_groups(self.model, 0.0, config.weight_decay, config.head_lr_multiplier)
        optimizer = adamw(groups, config.betas)
        train_mode(self.model, config.freeze, config.batch_norm)
        took = []
        with _buffers_kept(self.model), numerics(self.device, config.matmul_precision, config.deterministic):
            uploaded = map(Upload(self.device), loaded)
            for _ in range(steps):
                began = time.perf_counter()
                self._step(next(uploaded), optimizer)
                took.append(time.perf_counter() - began)
        return took

    def _step(self, micro_batches: list[dict[str, Any]], optimizer: torch.optim.Optimizer) -> None:
        counts = torch.stack([self.loss.count(batch["labels"]) for batch in micro_batches]).sum(0)
        guided = self.guidance.prepare(micro_batches, 0, self.model)
        # The module itself, not what DDP made of it: this process may run out of memory while others do not, and would
        # leave them waiting for its gradients.
        for batch in micro_batches:
            with self.accelerator.autocast():
                logits = self.model(batch["pixel_values"]).logits  # (B, K, h/4, w/4)
            loss = self.loss(logits, batch["labels"], counts, batch.get("distances"))
            if self.guidance.names:
                loss = loss + self.guidance(logits, batch, guided)[0]
            loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm or math.inf)
        if norm.isfinite():  # else 0 · inf would make weights that are no numbers; this waits for the device as well
            optimizer.step()
        optimizer.zero_grad()

    def _beside(self) -> list[torch.Tensor]:
        """Memory that the run takes and a trial does not: averaged weights, DDP's buckets, and some to spare."""
        parameters = sum(p.numel() * p.element_size() for p in self.model.parameters())
        return [torch.empty(n, dtype=torch.uint8, device=self.device) for n in (HEADROOM, self.copies * parameters)]

    def _give_back(self) -> None:
        self.model.zero_grad(set_to_none=True)
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        elif self.device.type == "mps":
            torch.mps.empty_cache()


def largest_elsewhere(trials: TrialSteps, images: int) -> int:
    """`TrialSteps.largest`, found by a process of its own: one that was refused memory is not fit for a run any more.

    On a CPU, what failed stays behind. oneDNN keeps a primitive that it could not create, and fails for it whenever it
    is asked again; the C library's heap has grown to the limit, in pieces; and some libraries do not survive at all.

    Raises:
        SegtuneError: of the process, as its `seconds` raised it.
        RuntimeError: the process failed for another reason than memory; with what it said.
    """
    told = {
        "model": trials.model,
        "config": trials.config,
        "rows": trials.rows,
        "label_map": trials.label_map,
        "transforms": trials.transforms,
        "processor": trials.processor,
        "shuffle_buffer": trials.shuffle_buffer,
    }
    share = {"copies": trials.copies, "processes_here": trials.processes_here}
    environment = {name: value for name, value in os.environ.items() if not name.startswith(_LAUNCHED)}
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [sys.executable, "-c", _TRIALS],
            env=environment | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
        )
        try:
            said, _ = process.communicate(pickle.dumps((told, share, images, torch.get_num_threads())))
        finally:
            process.kill()
        if process.returncode != 0:
            errors.seek(0)
            fault = RuntimeError(f"a trial step failed:\n{errors.read().decode(errors='replace').strip()}")
            if process.returncode > 0 and not is_out_of_memory(fault):  # else a signal of the system, or its own
                raise fault
    lines = [line.partition(" ") for line in said.decode().splitlines()]
    for word, _, told_of in lines:
        if word == _FAULT:
            code, message = json.loads(told_of)
            raise (UsageError if code == UsageError.exit_code else DataError)(message)
    found = max((int(number) for word, _, number in lines if word == _FITS), default=0)
    if found < images:
        logger.info("a micro-batch of %d does not fit", next(n for n in divisors(images) if n > found))
    return found


def _try_for_another() -> None:
    """In the process of the trials: say which micro-batches fit, one after the other."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the run hears it, and ends this
    told, share, images, threads = pickle.load(sys.stdin.buffer)
    torch.set_num_threads(threads)
    trials = TrialSteps(**told, accelerator=make_accelerator("cpu", told["config"].mixed_precision))
    for name, value in share.items():
        setattr(trials, name, value)
    try:
        for batch in trials.fitting(images):
            print(_FITS, batch, flush=True)
    except SegtuneError as error:
        print(_FAULT, json.dumps([error.exit_code, str(error)]), flush=True)


@contextmanager
def _buffers_kept(model: nn.Module) -> Iterator[None]:
    """Inside, batch norm may count; afterwards its statistics are those of before."""
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(before[name])


@contextmanager
def _no_more_than_there_is(device: torch.device, processes: int) -> Iterator[None]:
    """Inside, on a CPU under Linux, memory that is not there is refused.

    By itself Linux grants more than it has, and kills the process that uses it. The limit is one of addresses, which
    a process maps a little more of than it uses, so that it errs towards smaller batches. What is there is divided
    among `processes`.
    """
    if device.type != "cpu" or sys.platform != "linux":
        yield
        return
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit = mapped + free_memory() // processes
    lowered = [limit, *(value for value in before if value != resource.RLIM_INFINITY)]
    resource.setrlimit(resource.RLIMIT_AS, (min(lowered), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
