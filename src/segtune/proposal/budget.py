"""Budget: how many steps and evaluations fit into a time, beside all else that a command does in it."""

from __future__ import annotations

from dataclasses import dataclass

from segtune.errors import UsageError
from segtune.proposal.choices import Choice
from segtune.proposal.data_facts import DataFacts
from segtune.proposal.pace import Pace
from segtune.viz.numbers import count, duration

EVALUATIONS = 10  # at most, and as many as fit into this share of the time
EVALUATION_SHARE = 0.1
TO_SPARE = 0.15  # of the time of the steps: they slow down where the machine has other work
LEAVING = 5.0  # seconds that the command takes to end
STATES = 10  # training states that a run saves
REPORT = 1.5  # evaluations that the page about the run takes
FEWEST = 20  # steps that are worth a run


@dataclass(frozen=True)
class Spent:
    """Seconds that pass before the first step.

    Attributes:
        before: until now, from the start of the command.
        opening: what opening and checking the data will take.
    """

    before: float
    opening: float


def steps_in(budget: str, seconds: float, spent: Spent, pace: Pace, facts: DataFacts) -> Choice:
    """The steps that a budget leaves time for.

    budget = before + opening + saving + leaving + (n + 1.5) e + s t (1 + 0.15 / 0.85), with n evaluations of e seconds
    and s steps of t seconds.

    Args:
        budget: as the user wrote it.
        seconds: the same, as a number.

    Raises:
        UsageError: nothing worth a run fits.
    """
    evaluation = pace.image * facts.images.get("val", 0)
    fixed = spent.before + spent.opening + LEAVING + (STATES + 2) * pace.saving
    evaluations = int(min(max(EVALUATION_SHARE * seconds / evaluation, 1), EVALUATIONS)) if evaluation else 1
    left = (seconds - fixed - (evaluations + REPORT) * evaluation) * (1 - TO_SPARE)
    steps = int(left / pace.step)
    if steps < FEWEST:
        least = fixed + (1 + REPORT) * evaluation + FEWEST * pace.step / (1 - TO_SPARE)
        raise UsageError(
            f"--budget {budget} leaves time for {count(max(steps, 0), 'step')} of {duration(pace.step)}, beside "
            f"{duration(fixed)} for reading the data and {duration(evaluation)} for an evaluation: give at least "
            f"{int(least / 60) + 1}m, or a smaller transforms.crop_size"
        )
    passes = steps * pace.training.micro_batch * pace.training.accumulation_steps / facts.images["train"]
    settings = {
        "training.max_steps": steps,
        "training.eval_every": max(1, -(-steps // evaluations)),
        "training.time_limit": budget,
    }
    reason = (
        f"{duration(pace.step)} a step, measured here; {budget} less {duration(fixed)} for reading data and saving, "
        f"less {count(evaluations, 'evaluation')} of {duration(evaluation)} and the report, less 15 % to spare; "
        f"{passes:.1f} passes through the images"
    )
    return Choice("steps", f"{steps}, falling to a rate of 0", reason, settings)
