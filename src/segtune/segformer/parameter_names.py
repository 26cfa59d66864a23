"""Parameter names of SegFormer: those of published files, and those that transformers 5 gives its modules in memory.

Files, transformers 4 and our modules carry the published names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

# published in files | in memory of transformers 5; `#` stands for the number of a stage
_NAMES = (
    ("encoder.patch_embeddings.#.", "stages.#.patch_embeddings."),
    ("encoder.block.#.", "stages.#.blocks."),
    ("encoder.layer_norm.#.", "stages.#.layer_norm."),
    (".attention.self.query.", ".attention.q_proj."),
    (".attention.self.key.", ".attention.k_proj."),
    (".attention.self.value.", ".attention.v_proj."),
    (".attention.self.sr.", ".attention.sequence_reduction.sequence_reduction."),
    (".attention.self.layer_norm.", ".attention.sequence_reduction.layer_norm."),
    (".attention.output.dense.", ".attention.o_proj."),
    (".mlp.dense1.", ".mlp.fc1."),
    (".mlp.dense2.", ".mlp.fc2."),
    (".layer_norm_1.", ".layernorm_before."),
    (".layer_norm_2.", ".layernorm_after."),
    ("decode_head.linear_c.", "decode_head.linear_projections."),
)


def published_name(name: str) -> str:
    """The name that published files give a parameter; one that is published stays as it is."""
    return _renamed(name, [(new, old) for old, new in _NAMES])


def name_in_transformers_5(name: str) -> str:
    """The name that transformers 5 gives a parameter in memory."""
    return _renamed(name, _NAMES)


def _renamed(name: str, pairs: Iterable[tuple[str, str]]) -> str:
    for old, new in pairs:
        start = "" if old.startswith(".") else r"(?<![^.])"  # at the beginning of a part of the name
        pattern = start + re.escape(old).replace(r"\#", r"(?P<stage>\d+)")
        name = re.sub(pattern, new.replace("#", r"\g<stage>"), name)
    return name
