"""Annotation accounts: what became of the annotations of a data set, said once, and refused where it is too bad."""

from __future__ import annotations

import logging
from itertools import pairwise

from segtune.data.annotations.tally import UNUSABLE, Tally
from segtune.data.index import DatasetIndex
from segtune.errors import listed

logger = logging.getLogger(__name__)


def settle(index: DatasetIndex) -> None:
    """Say where the annotations of an opened data set ended; what is too much becomes a problem of the index.

    That is: more than the limit of a fate, or all annotations of a class; and a split without any, whose
    samples are rejected.
    """
    tally = index.tally
    if tally is None:
        return
    for fate, entries in tally.losses():
        missing = tally.never_drawn(fate)
        if len(entries) > (fate.limit or 0) * tally.given or missing:
            what = f"annotations {fate.what}{f', all of {listed(missing)}' if missing else ''}"
            index.report(fate.kind, what, dict(zip(entries, _brief(entries), strict=True)), fate.fix)
        else:
            index.remarks.append(f"{len(entries)} annotations {fate.what}: {listed(_brief(entries))}")
    for fate in tally.fates():
        if fate.limit is None and fate != UNUSABLE and (missing := tally.never_drawn(fate)):
            index.remarks.append(f"nothing is drawn of {listed(missing)}: its annotations are {fate.what}")
            logger.warning("%s: %s", index.root, index.remarks[-1])
    logger.log(logging.WARNING if tally.entries else logging.INFO, "%s: %s", index.root, tally)
    _report_bare_splits(index, tally)


def _brief(entries: list[str]) -> list[str]:
    """Entries as "file: entry", the file only where it changes."""
    files = [entry.partition(": ")[0] for entry in entries]
    repeats = [False, *(before == after for before, after in pairwise(files))]
    return [entry.partition(": ")[2] if same else entry for entry, same in zip(entries, repeats, strict=False)]


def _report_bare_splits(index: DatasetIndex, tally: Tally) -> None:
    bare = [split for split, images in tally.images.items() if images and not tally.annotated[split]]
    if bare:
        shown = {split: f"{split} with {tally.images[split]} of them" for split in bare}
        fix = "All of their masks would be background: look whether the annotations are elsewhere or were not exported"
        if len(bare) < len(tally.images):
            fix += "; to leave a split out, name the others in dataset.splits"
        index.rejected += [sample for sample in index.samples if sample.split in bare]
        index.samples = [sample for sample in index.samples if sample.split not in bare]
        index.report("split_without_annotations", "splits of whose images none has an annotation", shown, fix)
