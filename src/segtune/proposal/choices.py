"""Choices: each a few settings of a recipe and the reason for them, made from the facts of a data set."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from segtune.data.rare_classes import RARE_SHARE
from segtune.errors import listed
from segtune.proposal.data_facts import DataFacts
from segtune.recipe.validation import show
from segtune.segformer.loading import is_at_hand
from segtune.training.config import AUTO, DEFAULT_IMAGES, scaled_rate
from segtune.viz.numbers import by, count

STEP = 32  # pixels: the coarsest feature map has one value for so many
LARGEST_CROP = {"cuda": 512}  # Xie et al. 2021 for ADE20K; elsewhere
SMALL_CROP = 256  # since a CPU then makes four times as many steps
CONTEXT = 2  # sides of a typical object that a crop should hold
LEAST_SIDE = 12  # pixels of an object that a smaller image must leave: three values of the logits
WHOLE = 2**21  # pixels of an image that is segmented at once
LARGE_SET = 1000  # training images from which on a step takes twice as many, on a GPU
RATE, RANDOM_RATE = 6e-5, 6e-4  # of 8 images: Xie et al. 2021, and for random weights what recipes/camvid measured
SELDOM = 1 / 3  # of the images: rare classes that fewer show are pasted into others
PASSES = {False: 100, True: 200}  # through the training images without a budget; True: from random weights
STEPS = (1000, 40_000)  # the fewest and the most without a budget


@dataclass(frozen=True)
class Machine:
    """What a run computes on: the kind of device ("cpu", "cuda", "mps"), its name, and how it trains."""

    kind: str
    name: str
    mixed_precision: str = "no"


@dataclass(frozen=True)
class Choice:
    """Settings that belong together.

    Attributes:
        topic: what is chosen, in a word or two.
        shown: the choice, as one reads it.
        reason: why, without a full stop.
        settings: "section.key" -> value.
    """

    topic: str
    shown: str
    reason: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def after(self, given: Mapping[str, Any]) -> Choice:
        """The same choice where the user has said some of it already."""
        if not (said := {key: value for key, value in given.items() if key in self.settings}):
            return self
        shown = ", ".join(f"{key}={show(value)}" for key, value in said.items())
        return Choice(self.topic, shown, "as you say", {**self.settings, **said})


def choose(facts: DataFacts, machine: Machine, given: Mapping[str, Any]) -> list[Choice]:
    """All that follows from the data and the machine alone; what the user has said stays as it is.

    Args:
        given: "section.key" -> value.
    """
    made: list[Choice] = []
    known = dict(given)
    for choice in _all(facts, machine, known):
        made.append(choice.after(given))
        known.update(made[-1].settings)
    return made


def _all(facts: DataFacts, machine: Machine, known: Mapping[str, Any]) -> Iterator[Choice]:
    yield weights(machine, known)
    yield crop(facts, machine)
    yield batch(facts, machine, known)
    yield rate(known)
    if machine.mixed_precision != "no":
        reason = f"{machine.name} computes in it, and the loss stays in float32"
        yield Choice(
            "precision", machine.mixed_precision, reason, {"training.mixed_precision": machine.mixed_precision}
        )
    yield class_weights(facts)
    yield copy_paste(facts)
    yield protocol(facts, known)


def weights(machine: Machine, known: Mapping[str, Any]) -> Choice:
    """Variant and starting weights: what lies on this machine, since nothing is fetched unasked."""
    if known.get("model.name"):
        return Choice("weights", str(known["model.name"]), "as you say", {"model.name": known["model.name"]})
    variants = [known["model.variant"]] if "model.variant" in known else _variants(machine)
    for variant in variants:
        name = f"nvidia/mit-{variant}"
        if "model.name" not in known and is_at_hand(name):
            reason = f"{variant} is what {machine.name} trains well, and its ImageNet encoder is in the cache; it is "
            return Choice("weights", name, f"{reason}for non-commercial use", {"model.name": name})
    variant = variants[-1]
    reason = (
        "as you say"
        if "model.name" in known
        else f"no weights lie on this machine; model.name=nvidia/mit-{variant} fetches an ImageNet encoder (for "
        "non-commercial use), model.name=FOLDER starts from your own"
    )
    settings = {"model.name": None, "model.variant": variant}
    return Choice("weights", f"{variant}, random", reason, settings)


def _variants(machine: Machine) -> list[str]:
    """The best first; the last one is what random weights are drawn for: larger ones learn more slowly."""
    return ["b2", "b1", "b0"] if machine.kind == "cuda" else ["b0"]


def crop(facts: DataFacts, machine: Machine) -> Choice:
    """The size of a crop and, where images hold large objects only, a smaller size of the images."""
    short = min(facts.size)
    most = LARGEST_CROP.get(machine.kind, SMALL_CROP)
    side = max(STEP, min(most, short // STEP * STEP))
    settings: dict[str, Any] = {"transforms.crop_size": side}
    sides = facts.sides[~np.isnan(facts.sides)]
    typical = float(np.median(sides)) if len(sides) else 0.0
    smallest = float(np.nanmin(facts.small_sides)) if len(sides) else 0.0
    held = f"objects of the median class have a side of {typical:.0f} pixels, small ones of {smallest:.0f}"
    shown = by((side, side))
    factor = max(side / (CONTEXT * max(typical, 1.0)), LEAST_SIDE / max(smallest, 1.0), side / short)
    if factor >= 0.8:  # below that, smaller images are worth an interpolation
        limit = f"at most {most} on {machine.kind}" if side == most else f"the short side of {by(facts.size)} images"
        return Choice("crop", shown, f"{limit}; {held}", settings)
    resized = max(side, round(short * factor / STEP) * STEP)
    settings |= {"transforms.short_side": resized, "evaluation.short_side": resized}
    reason = f"{held}: images of {by(facts.size)} are resized, so that a crop holds objects whole"
    return Choice("crop", f"{shown} of images with a short side of {resized}", reason, settings)


def batch(facts: DataFacts, machine: Machine, known: Mapping[str, Any]) -> Choice:
    """Images of a step; how many of them are computed together is tried out."""
    if "training.accumulation_steps" in known or known.get("training.batch_size", AUTO) != AUTO:
        divided = known.get("training.batch_size", DEFAULT_IMAGES), known.get("training.accumulation_steps", 1)
        settings = dict(zip(("training.batch_size", "training.accumulation_steps"), divided, strict=True))
        return Choice("batch", f"{divided[0] * divided[1]} images", "as you say", settings)
    many = machine.kind == "cuda" and facts.images["train"] >= LARGE_SET
    images = 2 * DEFAULT_IMAGES if many else DEFAULT_IMAGES
    settings = {"training.batch_size": AUTO, "training.effective_batch_size": images}
    reason = "a step takes so many, the authors' number; as many of them at once as the memory holds"
    return Choice("batch", f"{images} images", reason, settings)


def rate(known: Mapping[str, Any]) -> Choice:
    """The learning rate, after where the weights come from and how many images a step has."""
    images = known.get("training.effective_batch_size", DEFAULT_IMAGES)
    if known.get("training.batch_size") not in (None, AUTO):
        images = known["training.batch_size"] * known.get("training.accumulation_steps", 1)
    is_random = known.get("model.name") is None
    base, times = (RANDOM_RATE, 1.0) if is_random else (RATE, 10.0)
    value = scaled_rate(base, images, DEFAULT_IMAGES)
    reason = "random weights, and so the same for encoder and head" if is_random else "the authors' rate"
    if images != DEFAULT_IMAGES:
        reason += f", times the square root of {images}/{DEFAULT_IMAGES} images"
    shown = f"{value:g}, head x{times:g}"
    return Choice("rate", shown, reason, {"training.learning_rate": value, "training.head_lr_multiplier": times})


def rare_classes(facts: DataFacts) -> list[int]:
    """Ids of the classes that occur, but have less than a quarter of an equal share of the pixels."""
    return np.flatnonzero((facts.shares > 0) & (facts.shares < RARE_SHARE / len(facts.names))).tolist()


def _told(facts: DataFacts, ids: Sequence[int], numbers: np.ndarray) -> str:
    return listed([f"{facts.names[i]} {numbers[i]:.1%}" for i in sorted(ids, key=lambda i: numbers[i])], 3)


def class_weights(facts: DataFacts) -> Choice:
    """Weights of the classes in the loss."""
    rare = rare_classes(facts)
    reason = f"rare are {_told(facts, rare, facts.shares)}" if rare else "no class is rare"
    return Choice("class weights", "none", reason, {"training.loss": {"class_weights": None}})


def copy_paste(facts: DataFacts) -> Choice:
    """Crops around rare classes, and rare classes pasted into other images."""
    rare = rare_classes(facts)
    seldom = [i for i in rare if facts.shown[i] < SELDOM]
    if not seldom:
        reason = "every class with few pixels is in many images" if rare else "no class is rare"
        return Choice("copy-paste", "none", reason, {"transforms.copy_paste": 0.0})
    reason = f"few images show {_told(facts, seldom, facts.shown)}"
    return Choice("copy-paste", "0.25", reason, {"transforms.copy_paste": 0.25, "transforms.rare_crop": 0.25})


def protocol(facts: DataFacts, known: Mapping[str, Any]) -> Choice:
    """How images are segmented in evaluations and afterwards."""
    height, width = facts.largest
    if short := known.get("evaluation.short_side"):
        factor = short / min(height, width)
        height, width = round(height * factor), round(width * factor)
    if height * width <= WHOLE:
        return Choice(
            "evaluation", "whole images", f"the largest has {by((height, width))} pixels", {"evaluation.window": None}
        )
    size = known["transforms.crop_size"]
    window = math.ceil(2 * max(size if isinstance(size, Sequence) else [size]) / STEP) * STEP
    reason = f"the largest image has {by((height, width))} pixels; windows of twice the crop overlap by a quarter"
    return Choice("evaluation", f"windows of {by((window, window))}", reason, {"evaluation.window": window})


def steps_by_images(facts: DataFacts, images: int, is_random: bool) -> Choice:
    """Steps where no budget is given: a number of passes through the training images.

    Args:
        images: of a step.
        is_random: the weights are.
    """
    fewest, most = STEPS
    wanted = PASSES[is_random] * facts.images["train"] / images
    steps = round(min(max(wanted, fewest), most), -2)
    passes = steps * images / facts.images["train"]
    settings = {"training.max_steps": int(steps), "training.eval_every": max(1, int(steps) // 10)}
    reason = f"{passes:.0f} passes through {count(facts.images['train'], 'image')}; --budget 2h fits them to a time"
    return Choice("steps", f"{steps:.0f}, falling to a rate of 0", reason, settings)
