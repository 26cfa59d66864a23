"""The table of docs/drop-in.md: each probe of `drop_in_probes.py` on transformers and on segtune.

    python scripts/drop_in_table.py            prints it
    python scripts/drop_in_table.py --write    puts it into docs/drop-in.md

Exit code 1 where a result differs that DIFFERENT does not explain.
"""

from __future__ import annotations

import logging
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from drop_in_probes import PROBES, Side

import segtune

PAGE = Path(__file__).resolve().parents[1] / "docs" / "drop-in.md"
START, END = "<!-- table of probes: scripts/drop_in_table.py --write -->", "<!-- end of the table -->"
TOLERANCE = 2e-4, 2e-2  # of the largest value: in float32; in bfloat16
# On purpose, and never silently.
DIFFERENT = {
    "`reduce_labels=True`, its old name": "labels are reduced, with a warning; transformers 5 leaves them as they are",
    "loss of a model with one label": "the mean is over the pixels that count; transformers divides by all pixels",
    "`Config(**config.to_dict())`": "the same fields, and those of segtune",
}


class Row(NamedTuple):
    """One line of the table."""

    part: str
    what: str
    result: str  # "same", "refused by both", "works here only", "differs" or "refused"
    detail: str


def sides(folder: str) -> tuple[Side, Side]:
    """transformers and segtune, with a checkpoint of small random weights in `folder`."""
    try:
        from transformers.models.segformer.image_processing_pil_segformer import SegformerImageProcessorPil as Theirs
    except ImportError:
        from transformers import SegformerImageProcessor as Theirs
    torch.manual_seed(0)
    config = segtune.SegformerConfig(
        depths=[1, 1, 1, 1], hidden_sizes=[8, 16, 24, 32], num_attention_heads=[1, 2, 3, 4], sr_ratios=[8, 4, 2, 1],
        mlp_ratios=[2, 2, 2, 2], decoder_hidden_size=16, num_labels=5, drop_path_rate=0.0, classifier_dropout_prob=0.0,
    )  # fmt: skip
    model = segtune.SegformerForSemanticSegmentation(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)

    def side(name: str, source: Any, other: Any, processor: Any) -> Side:
        return Side(
            name, folder, source.SegformerConfig, source.SegformerModel, source.SegformerForSemanticSegmentation,
            processor, other.SegformerForSemanticSegmentation,
        )  # fmt: skip

    return (
        side("transformers", transformers, segtune, Theirs),
        side("segtune", segtune, transformers, segtune.SegformerImageProcessor),
    )


def attempt(function: Any, side: Side) -> tuple[Any, str]:
    """What it gives, or the first line of what it raises."""
    torch.manual_seed(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return function(side), ""
    except Exception as error:  # whatever a user would see
        line = (str(error).strip() or "without a message").splitlines()[0]
        return None, f"{type(error).__name__}: {line}"


def flat(value: Any) -> list[Any]:
    if isinstance(value, torch.Tensor | np.ndarray):
        return [torch.as_tensor(value).detach()]
    if isinstance(value, dict):
        return [item for key in sorted(value) for item in (key, *flat(value[key]))]
    if isinstance(value, list | tuple):
        return [item for one in value for item in flat(one)]
    return [value]


def difference(mine: Any, theirs: Any, tolerance: float) -> str:
    """Empty where they are equal up to the tolerance, relative to the largest value."""
    first, second = flat(mine), flat(theirs)
    if len(first) != len(second):
        return f"{len(first)} values instead of {len(second)}"
    for one, other in zip(first, second, strict=True):
        if not isinstance(one, torch.Tensor) or not isinstance(other, torch.Tensor):
            if type(one) is not type(other) or one != other:
                return f"{str(one)[:40]!r} instead of {str(other)[:40]!r}"
        elif one.shape != other.shape:
            return f"the shape {tuple(one.shape)} instead of {tuple(other.shape)}"
        elif one.numel():
            off = (one.double() - other.double()).abs().max().item() / max(other.double().abs().max().item(), 1e-12)
            if not off <= tolerance:
                return f"relative difference {off:.1e}"
    return ""


def compare(part: str, what: str, stock: Side, ours: Side) -> Row:
    function = PROBES[part][what]
    theirs, their_error = attempt(function, stock)
    mine, my_error = attempt(function, ours)
    if my_error and their_error:
        return Row(part, what, "refused by both", my_error)
    if my_error:
        return Row(part, what, "refused", my_error)
    if their_error:
        return Row(part, what, "works here only", their_error)
    found = difference(mine, theirs, TOLERANCE["bfloat16" in what])
    return Row(part, what, "differs", DIFFERENT.get(what, found)) if found else Row(part, what, "same", "")


def rows() -> Iterator[Row]:
    """All probes, one after another."""
    with tempfile.TemporaryDirectory() as folder:
        stock, ours = sides(folder)
        for part, probes in PROBES.items():
            for what in probes:
                yield compare(part, what, stock, ours)


def table(results: list[Row]) -> str:
    """Markdown: counts, then a table."""
    counts = Counter(row.result for row in results)
    said = ", ".join(f"{count} {name}" for name, count in counts.most_common())
    lines = [f"{len(results)} probes, with transformers {transformers.__version__}: {said}.", ""]
    lines += ["| what is done | segtune | what is different |", "|---|---|---|"]
    part = ""
    for row in results:
        if row.part != part:
            part = row.part
            lines.append(f"| **{part}** | | |")
        detail = row.detail.replace("|", "\\|").replace("\n", " ")
        if row.result == "works here only":
            detail = "transformers: " + detail
        lines.append(f"| {row.what} | {row.result} | {detail[:160]} |")
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.disable(logging.WARNING)
    results = list(rows())
    text = table(results)
    if "--write" in arguments:
        page = PAGE.read_text(encoding="utf-8")
        before, _, rest = page.partition(START)
        PAGE.write_text(f"{before}{START}\n\n{text}\n\n{END}{rest.partition(END)[2]}", encoding="utf-8")
    else:
        print(text)
    wrong = [row for row in results if row.result == "differs" and row.what not in DIFFERENT]
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
