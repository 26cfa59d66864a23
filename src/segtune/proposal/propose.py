"""A recipe from data: the facts, the choices that follow from them, and a file that says both."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

import segtune
from segtune.doctor.examine import Diagnosis
from segtune.engines.cpu_threads import cores
from segtune.errors import UsageError, listed, printable
from segtune.inference.device import choose_precision
from segtune.proposal.budget import Spent, steps_in
from segtune.proposal.choices import Choice, Machine, choose, steps_by_images
from segtune.proposal.data_facts import DataFacts, gather_facts
from segtune.proposal.pace import Pace, measure
from segtune.recipe.recipe import Recipe
from segtune.recipe.validation import check
from segtune.recipe.yaml_file import dump_yaml
from segtune.training.config import AUTO
from segtune.training.distributed import check_device
from segtune.training.interrupts import seconds
from segtune.viz.numbers import by, count

OF_THE_RUN = ("training.output_dir", "training.resume", "training.overwrite")  # no part of what is trained
WIDTH = 118  # of comments
START_UP = 10.0  # seconds in which a command imports its libraries, where it is another than this one
CHECKING = 0.5  # of the time of the doctor, who reads more of the same files


@dataclass(frozen=True)
class Proposal:
    """What is known of a data set, what was chosen, and the recipe that says so.

    Attributes:
        choices: in the order in which they are told.
        given: "section.key" -> value, what the user has said.
    """

    facts: DataFacts
    choices: Sequence[Choice]
    given: Mapping[str, Any]

    @property
    def recognised(self) -> str:
        """The data set, in words."""
        facts = self.facts
        parts = [f"{number} {split}" for split, number in facts.images.items()]
        drawn = ", val drawn from train by dataset.val_fraction" if facts.val_is_drawn else ""
        missing = "" if "val" in facts.images else ", no val: the last weights count as the best"
        classes = f"{count(len(facts.names), 'class', 'classes')}: {listed(facts.names, 12)}"
        return f"{facts.recognised}: {', '.join(parts)}{drawn}{missing}; images of {by(facts.size)}; {classes}"

    @property
    def settings(self) -> dict[str, dict[str, Any]]:
        """Section -> key -> value, as a recipe has them."""
        return nested(self.given, self.choices)

    def text(self) -> str:
        """The recipe as YAML, each choice below a comment with its reason."""
        lines = [
            *_comment(f"Proposed by segtune {segtune.__version__} for {self.given['dataset.path']}."),
            *_comment(f"{self.recognised}."),
            *_comment("Any of it may be changed: `segtune recipes keys` explains the settings."),
        ]
        reasons = _first_keys(self.choices)
        for section, values in self.settings.items():
            lines.append(f"{section}:")
            for key, value in values.items():
                if choice := reasons.get(f"{section}.{key}"):
                    lines += _comment(f"{choice.topic}: {choice.shown}: {choice.reason}", "  ")
                lines += textwrap.indent(dump_yaml({key: value}), "  ").splitlines()
        return "\n".join(lines) + "\n"


def propose(
    base: Recipe,
    diagnosis: Diagnosis,
    *,
    budget: str | None = None,
    started: float | None = None,
    examining: float = 0.0,
) -> Proposal:
    """Choose the settings of a recipe.

    Args:
        base: defaults with what the user has said, `dataset.path` at least.
        diagnosis: of its data, without errors.
        budget: the time of the whole command, such as 30m; by default, steps follow from the number of images.
        started: when the command began, by `time.monotonic`, of which the training is a part; None: another one trains.
        examining: seconds that the doctor took.

    Raises:
        UsageError: there is nothing to train on, or the budget is too small.
    """
    facts, given = gather_facts(diagnosis, base.dataset), given_settings(base)
    choices = choose(facts, this_machine(base), given)
    if budget is None:
        settings = Proposal(facts, choices, given).settings
        images = _images_of_step(settings["training"])
        steps = steps_by_images(facts, images, settings["model"]["name"] is None)
        return Proposal(facts, [*choices, steps.after(given)], given)
    pace = measure(_recipe(nested(given, choices)))
    choices = [_found(choice, pace) for choice in choices]
    given.pop("training.effective_batch_size", None)  # goes with auto, in whose place there is a number now
    before = START_UP if started is None else time.monotonic() - started
    spent = Spent(before, CHECKING * examining)
    steps = steps_in(budget, seconds(budget), spent, pace, facts)
    return Proposal(facts, [*choices, steps.after(given)], given)


def given_settings(recipe: Recipe) -> dict[str, Any]:
    """ "section.key" -> value, of what a recipe says itself and does not have from the defaults."""
    values = recipe.model_dump(mode="json", exclude_unset=True)
    flat = {f"{section}.{key}": value for section, keys in values.items() for key, value in keys.items()}
    return {key: value for key, value in flat.items() if key not in OF_THE_RUN}


def this_machine(recipe: Recipe) -> Machine:
    """What a recipe would run on here.

    Raises:
        UsageError: the device that it asks for is not there.
    """
    kind = check_device(recipe.training.device)
    if kind == "cpu":
        return Machine(kind, count(cores(), "CPU core"))
    precision = choose_precision("auto", torch.device(kind))
    name = torch.cuda.get_device_name() if kind == "cuda" else kind
    return Machine(kind, name, "no" if precision == "fp32" else precision)


def nested(given: Mapping[str, Any], choices: Iterable[Choice]) -> dict[str, dict[str, Any]]:
    """Section -> key -> value, sections in the order of a recipe."""
    flat = dict(given)
    for choice in choices:
        flat.update(choice.settings)
    sections: dict[str, dict[str, Any]] = {name: {} for name in Recipe.model_fields}
    for key, value in flat.items():
        section, _, name = key.partition(".")
        sections[section][name] = value
    return {section: values for section, values in sections.items() if values}


def _recipe(settings: Mapping[str, Any]) -> Recipe:
    recipe, problems = check(settings, Recipe)
    if recipe is None or problems:
        raise UsageError("\n  ".join(problem.message for problem in problems))
    return recipe


def _images_of_step(training: Mapping[str, Any]) -> int:
    if training["batch_size"] == AUTO:
        return int(training["effective_batch_size"])
    return int(training["batch_size"] * training.get("accumulation_steps", 1))


def _found(choice: Choice, pace: Pace) -> Choice:
    """The choice of a batch with the numbers that were found; others as they are."""
    if choice.settings.get("training.batch_size") != AUTO:
        return choice
    batch, times = pace.training.micro_batch, pace.training.accumulation_steps
    settings = {"training.batch_size": batch, "training.accumulation_steps": times}
    shown = f"{batch * times} images, {batch} at once" + (f", {times} times" if times > 1 else "")
    reason = "the authors' number, and the most at once that the memory here holds"
    return replace(choice, shown=shown, reason=reason, settings=settings)


def _first_keys(choices: Iterable[Choice]) -> dict[str, Choice]:
    """The key that the reason of a choice stands at -> the choice."""
    return {next(iter(choice.settings)): choice for choice in choices if choice.settings}


def _comment(text: str, indent: str = "") -> Iterator[str]:
    """Lines of a comment; what comes from the data may hold any character, and must not end the line."""
    plain = printable(" ".join(text.split()))
    yield from textwrap.wrap(
        plain, WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}#   ", break_on_hyphens=False
    )
