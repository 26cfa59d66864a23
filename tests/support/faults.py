"""The faults of a diagnosis."""

from __future__ import annotations

from typing import Any


def faults(diagnosis: Any) -> dict[str, Any]:
    """Errors and warnings by code; none may come twice."""
    found = [finding for finding in diagnosis.findings if finding.severity != "info"]
    assert len({finding.code for finding in found}) == len(found)
    return {finding.code: finding for finding in found}
