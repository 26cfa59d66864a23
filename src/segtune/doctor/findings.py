"""Findings: one for each kind of fault, with its severity, its files, and what fixes it."""

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
