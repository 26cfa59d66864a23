"""The card of a converted checkpoint: which licence its weights are under, who says so, and what nobody has settled."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from segtune.errors import UsageError

NVIDIA = {
    "license": "other",
    "license_name": "nvidia-source-code-license",
    "license_link": "https://github.com/NVlabs/SegFormer/blob/master/LICENSE",
}
_UNSETTLED = NVIDIA | {"license_name": "unsettled-mit-or-nvidia-source-code-license"}
_OWN = (
    "Weights that were trained from random ones, on data that allows it, are their owner's: convert them with "
    "`--license`, which this card then states."
)
_ORIGINS = {  # what is known of the weights that go around in each layout
    "nvlabs": "The weights that NVIDIA has published are for non-commercial use, and so is what started from them.",
    "mmseg": (
        "The weights that NVIDIA has published are for non-commercial use, and so is what started from them; mmseg's "
        "pre-trained encoders are conversions of them."
    ),
    "libreyolo": (
        "LibreYOLO states of the SegFormer weights that it publishes that they are NVIDIA's, converted, and for "
        "non-commercial use; so is what started from them."
    ),
    "keras": (
        "The Keras team states of its SegFormer presets that the weights are released under the MIT licence, and of "
        "its MiT presets nothing. Its conversion scripts make both from NVIDIA's checkpoints, whose licence forbids "
        "commercial use, also of what derives from them. Which of the two holds is not settled: until you know, take "
        "the stricter one."
    ),
}


@dataclass(frozen=True)
class Terms:
    """The licence of a converted checkpoint.

    Attributes:
        metadata: what a card's front matter states: `license`, and where they are known its name and link.
        text: who states it, and what else is known, in Markdown.
    """

    metadata: Mapping[str, str]
    text: str

    def __str__(self) -> str:
        return self.metadata.get("license_name") or self.metadata["license"]


def terms(layout: str, stated: str | None = None, license: str | None = None) -> Terms:
    """The licence that a card states.

    Args:
        layout: whose checkpoint it was.
        stated: what the checkpoint itself states.
        license: of the one who converts, an identifier of the Hub such as `apache-2.0`; None: that of the weights that
            go around in this layout.

    Raises:
        UsageError: no identifier of a licence.
    """
    inside = f" The checkpoint itself states: {stated!r}." if stated else ""
    if license is None:
        metadata = _UNSETTLED if layout == "keras" else NVIDIA
        return Terms(metadata, f"{_ORIGINS[layout]}{inside}\n\n{_OWN}")
    if not re.fullmatch(r"[a-z0-9][a-z0-9.+-]{0,59}", license):
        raise UsageError(f"--license {license}: an identifier such as apache-2.0, mit or cc-by-4.0")
    text = f"The licence is the one that was named when the checkpoint was converted (`--license {license}`)."
    return Terms({"license": license}, f"{text}{inside} It holds if these weights did not start from published ones.")


def card(name: str, found: Terms) -> str:
    """The README.md of a converted checkpoint.

    Args:
        name: of the file that it was converted from.
    """
    front = "\n".join(f"{key}: {json.dumps(value)}" for key, value in found.metadata.items())  # YAML reads JSON
    head = f"---\n{front}\nlibrary_name: transformers\ntags:\n- segformer\n---"
    return f"{head}\n\nConverted from `{name}` by segtune.\n\n{found.text}\n"
