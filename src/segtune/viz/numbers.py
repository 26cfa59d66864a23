"""Number formatting: how scores, intervals, shares and counts are written on pages, in tables, cards and messages."""

from __future__ import annotations

import math
from collections.abc import Sequence


def is_known(value: float | None) -> bool:
    """Whether a score is defined: neither None nor nan."""
    return value is not None and not math.isnan(value)


def number(value: float | None, digits: int = 3, *, signed: bool = False, undefined: str = "–") -> str:
    """A score with its digits after the point; `undefined` where it is None or nan."""
    return f"{value:{'+' if signed else ''}.{digits}f}" if is_known(value) else undefined


def interval(ends: Sequence[float | None] | None, form: str = "{} – {}", *, signed: bool = False) -> str:
    """Both ends; nothing where there is no interval."""
    return form.format(*(number(end, signed=signed) for end in ends)) if ends and None not in ends else ""


def percent(share: float | None) -> str:
    """A share from 0 to 1: '0.042 %', '3.1 %', '47 %', '99.6 %'; "–" where it is undefined."""
    if share is None or math.isnan(share):
        return "–"
    return f"{100 * share:.2g} %" if share < 0.995 else f"{100 * share:.4g} %"


def column_percent(share: float | None) -> str:
    """A share from 0 to 1 for the column of a table, with one digit after the point: '0.0 %', '<0.1 %', '47.3 %'."""
    if share is None or math.isnan(share):
        return "–"
    return "<0.1 %" if 0 < share < 0.0005 else f"{100 * share:.1f} %"


def count(number: int, noun: str, plural: str = "") -> str:
    """'1 mask', '2 masks', '1,000 masks'."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def by(size: tuple[int, int]) -> str:
    """A (height, width): '360x480'."""
    return f"{size[0]}x{size[1]}"


def duration(seconds: float) -> str:
    """'1.2 s', '12 s', '3 min 5 s', '2 h 10 min'."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
