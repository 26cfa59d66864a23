"""Findings: one for each kind of fault, with its severity, its files, and what fixes it; and the words they use."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from segtune.data.index import Sample

Severity = Literal["error", "warning", "info"]
LEAVE_OUT = "or leave these samples out: segtune doctor … --split-file FILE, then dataset.split_file=FILE"
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")


@dataclass(frozen=True)
class Finding:
    """One kind of fault, or a fact worth knowing.

    Attributes:
        code: a word for programs, such as "size-mismatch"; it keeps its meaning between versions.
        severity: "error": training stops, or learns what the masks do not mean; "warning": probably a mistake;
            "info": a fact.
        message: the fault in words, without the names of the files and without a full stop.
        files: below the data set's folder, the clearest first.
        numbers: what was measured, JSON-able.
        fix: what fixes it: recipe lines ("section.key=value") or what to do to the files.
        samples: those that have it, the clearest first.
        drop: those that a split file should leave out while they are not fixed.
    """

    code: str
    severity: Severity
    message: str
    files: tuple[str, ...] = ()
    numbers: Mapping[str, Any] = field(default_factory=dict)
    fix: tuple[str, ...] = ()
    samples: tuple[Sample, ...] = ()
    drop: tuple[Sample, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, with all files."""
        return {
            "code": self.code,
            "severity": self.severity,
            "message": self.message,
            "files": list(self.files),
            "numbers": dict(self.numbers),
            "fix": [*self.fix, *([LEAVE_OUT] if self.drop else [])],
        }


def ranked(findings: Iterable[Finding]) -> list[Finding]:
    """Errors first, then warnings, then facts; otherwise in the order given."""
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))


def sentence(message: str) -> str:
    """A message with a full stop and, unless it begins with an option such as dataset.labels, a capital letter."""
    is_option = "." in message.partition(" ")[0]
    return f"{message if is_option else message[:1].upper() + message[1:]}."


def percent(share: float) -> str:
    """A share from 0 to 1 in words: '0.042 %', '3.1 %', '47 %'."""
    return f"{100 * share:.2g} %" if share < 0.995 else f"{100 * share:.4g} %"


def by(size: tuple[int, int]) -> str:
    """A (height, width) in words: '360x480'."""
    return f"{size[0]}x{size[1]}"


def count(number: int, noun: str, plural: str = "") -> str:
    """'1 mask', '2 masks'."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"
