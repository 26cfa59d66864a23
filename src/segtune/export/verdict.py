"""Which file of an export is the better one: a faster file is worth nothing where it answers otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

FASTER = 0.95  # the share of the other's time at which a file counts as faster: less is noise between runs


class Candidate(NamedTuple):
    """A file, or a precision that an engine runs one in.

    Attributes:
        name: "fp32", "bf16", "fp16" or "int8".
        row: its `agreement` with float32, `difference` of the true mIoU with its `interval` (or None), `time` as a
            share of float32's.
    """

    name: str
    row: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, **self.row}


def verdict(candidates: Sequence[Candidate], agreement: float) -> dict[str, Any]:
    """What to use, and what speaks against the others.

    Args:
        candidates: the first one is float32; the others come in the order of their precision, int8 last.
        agreement: the least that a file may have.

    Returns:
        JSON-able: `recommended`, a name, and `reasons`, a sentence for each other candidate.
    """
    best = candidates[0]
    for candidate in candidates[1:]:
        if candidate.row["agreement"] >= agreement and candidate.row["time"] < FASTER * best.row["time"]:
            best = candidate
    reasons = [_reason(one, best, agreement) for one in candidates if one is not best and one is not candidates[0]]
    return {"recommended": best.name, "reasons": [*reasons, _praise(best, candidates[0])]}


def _reason(candidate: Candidate, best: Candidate, agreement: float) -> str:
    found, row = candidate.name, candidate.row
    if row["agreement"] < agreement:
        return (
            f"{found} agrees with fp32 on {row['agreement']:.4f} of the pixels, less than {agreement:g}: do not use "
            f"it. It changes the true mIoU by {_change(row)}"
        )
    ratio = row["time"] / best.row["time"]
    speed = "not faster than" if ratio >= FASTER else "faster than"
    return f"{found} is {speed} {best.name} here: {ratio:.2f} of its time. It changes the true mIoU by {_change(row)}"


def _praise(best: Candidate, plain: Candidate) -> str:
    if best is plain:
        return "use fp32"
    row = best.row
    return (
        f"use {best.name}: {row['time']:.2f} of the time of fp32, agreement {row['agreement']:.4f}. "
        f"It changes the true mIoU by {_change(row)}"
    )


def _change(row: dict[str, Any]) -> str:
    if row["difference"] is None:
        return "an unknown amount: no masks tell the truth"
    ends = row["interval"]
    interval = f" [{ends[0]:+.4f}, {ends[1]:+.4f}]" if ends and None not in ends else ""
    return f"{row['difference']:+.4f}{interval}"
