"""constraints-lowest.txt, with which `make test-lowest` proves pyproject.toml's lower bounds, names exactly these."""

from __future__ import annotations

import sys
from itertools import chain
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest needs it there

ROOT = Path(__file__).resolve().parents[2]
UNPROVEN = {
    "ipywidgets",  # for the notebooks, which those tests do not run; 7.7.1, Colab's, brings a Jupyter of its time
    "ray",  # this and the next reach clusters and stores: no s3fs since 2025 goes with the lowest fsspec
    "s3fs",
    "mlflow",  # this and those below: trackers behind Accelerate, which the tests replace
    "trackio",
    "wandb",
}
DEVELOPMENT = {"dev", "docs", "test"}


def pins(text: str) -> dict[str, Version]:
    lines = [Requirement(line) for line in text.splitlines() if line and not line.startswith("#")]
    return {canonicalize_name(item.name): Version(next(iter(item.specifier)).version) for item in lines}


def lower_bounds() -> dict[str, Version]:
    """Of the dependencies and of every extra that is not for development."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    assert extras.keys() >= DEVELOPMENT
    lists = [project["dependencies"], *(extras[name] for name in extras.keys() - DEVELOPMENT)]
    found = {}
    for item in map(Requirement, chain(*lists)):
        (lower,) = [bound.version for bound in item.specifier if bound.operator == ">="]
        found[canonicalize_name(item.name)] = Version(lower)
    return found


def test_lowest_versions_are_the_lower_bounds() -> None:
    proven, torch, others = (ROOT / "constraints-lowest.txt").read_text(encoding="utf-8").split("\n\n")
    bounds = lower_bounds()
    assert len(bounds) >= 20 and bounds.keys() >= UNPROVEN | {"torch"}
    assert pins(proven) == {name: bound for name, bound in bounds.items() if name not in UNPROVEN | {"torch"}}
    assert pins(torch) == {"torch": pins((ROOT / "constraints.txt").read_text(encoding="utf-8"))["torch"]}
    assert not pins(others).keys() & bounds.keys()
