"""Licences of models: that of the weights a model started from, as their cards state it, goes on to the model."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from segtune.errors import UsageError

_LONGEST_LINE = 8  # of models that were each fine-tuned from the next
_KEYS = ("license", "license_name", "license_link")
_NVIDIA = re.compile(r"nvidia/(mit-b|segformer)", re.IGNORECASE)
_NVIDIA_LICENSE = {  # their cards only say "other"
    "license": "other",
    "license_name": "nvidia-source-code-license",
    "license_link": "https://github.com/NVlabs/SegFormer/blob/master/LICENSE",
}
_NON_COMMERCIAL = re.compile(r"\bnc\b|non.?commercial|research|nvidia.source", re.IGNORECASE)


@dataclass(frozen=True)
class Ancestor:
    """Weights that a model started from: a folder or Hub id, and its card's metadata (empty: no card to read)."""

    name: str
    metadata: Mapping[str, Any]

    @property
    def license(self) -> dict[str, str]:
        """The keys of a card that state the licence."""
        stated = {key: str(self.metadata[key]) for key in _KEYS if self.metadata.get(key)}
        return _NVIDIA_LICENSE | stated if _NVIDIA.match(self.name) else stated


@dataclass(frozen=True)
class License:
    """What a model card states.

    Attributes:
        metadata: `license` and, where they are known, `license_name` and `license_link`; empty: nothing is stated.
        origin: the weights that it is inherited from; None: the owner's choice, or nobody's.
    """

    metadata: Mapping[str, str] = field(default_factory=dict)
    origin: str | None = None

    @property
    def is_non_commercial(self) -> bool:
        return is_non_commercial(self.metadata)

    def __str__(self) -> str:
        return describe(self.metadata)


def describe(metadata: Mapping[str, Any]) -> str:
    """The licence that a card's metadata states, in Markdown."""
    if not metadata.get("license"):
        return "not stated"
    name, link = metadata.get("license_name"), metadata.get("license_link")
    text = f"{metadata['license']}{f' ({name})' if name else ''}"
    return f"[{text}]({link})" if link and "://" in str(link) else text


def is_non_commercial(metadata: Mapping[str, Any]) -> bool:
    """Whether a licence's name forbids commercial use: `cc-by-nc-4.0`, `other` named "research only", …"""
    return any(_NON_COMMERCIAL.search(str(metadata.get(key) or "")) for key in ("license", "license_name"))


def hub_id(name: str) -> str | None:
    """`user/name` of a Hub id with or without `@revision`; None for a folder."""
    repo = name.partition("@")[0]
    return repo if re.fullmatch(r"[\w.-]+/[\w.-]+", repo) and not Path(name).exists() else None


def trace(name: str | None, read: Callable[[str], Mapping[str, Any]]) -> list[Ancestor]:
    """The weights that a model started from, those that these started from, and so on, as far as cards tell.

    Args:
        name: a folder or Hub id; None for random weights.
        read: gives the metadata of the card of a folder or Hub id, empty where there is none.
    """
    line: list[Ancestor] = []
    while name and len(line) < _LONGEST_LINE and name not in {ancestor.name for ancestor in line}:
        line.append(Ancestor(name, read(name)))
        parent: Any = line[-1].metadata.get("base_model")
        name = parent[0] if isinstance(parent, list) and parent else parent or None
    return line


def inherit(line: Sequence[Ancestor], wanted: str | None) -> License:
    """The licence of the nearest ancestor that forbids commercial use, else of the nearest that states one.

    Args:
        line: what a model was fine-tuned from, the nearest first.
        wanted: the owner's choice, for a model that inherits none.

    Raises:
        UsageError: the owner's choice contradicts what the model inherits.
    """
    bound = [ancestor for ancestor in line if is_non_commercial(ancestor.license)]
    found = next((ancestor for ancestor in (*bound, *line) if ancestor.license.get("license")), None)
    if found is None:
        return License({"license": wanted} if wanted else {})
    if wanted and wanted != found.license["license"]:
        raise UsageError(
            f"license {wanted}: the weights started from {found.name}, which is under {describe(found.license)}; "
            "a fine-tuned model inherits that, so leave hub.license out"
        )
    return License(found.license, found.name)
