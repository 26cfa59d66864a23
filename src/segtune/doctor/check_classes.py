"""Class balance: which classes occur where and how often, and the class weights that this suggests."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from segtune.doctor.case import Case
from segtune.doctor.findings import Finding
from segtune.errors import listed
from segtune.labels.mask_values import NO_DATA, show_value
from segtune.training.class_weights import counted_weights
from segtune.viz.numbers import count, percent

SHOWN = 8  # names of classes

NODATA = "files of masks call a value nodata"
NODATA_FIX = "if what the files call nodata is a class, name its value in dataset.labels and set dataset.nodata=class"

IMBALANCE = 20.0  # times as many pixels in the most as in the least frequent class, from which weights are proposed


def check_classes(case: Case) -> Iterator[Finding]:
    """All findings about the frequency of classes."""
    yield from _similar_names(case)
    if case.trusted_splits == case.splits:
        yield from _unused(case)
    if not case.trusted_splits:
        return
    yield from _missing_in_splits(case)
    yield from _imbalance(case)
    yield from _ignored(case)


def class_table(case: Case) -> list[dict[str, Any]]:
    """One row a class, ignored pixels last: name, colour, and by split its pixels and the images that hold it."""
    rows = []
    names = [*case.label_map.names, "ignored"]
    colors = [*case.label_map.colors, (0, 0, 0)]
    tables = {split: case.pixels_of(split) for split in case.splits}
    sums = {split: table.sum(0).tolist() for split, table in tables.items()}
    held = {split: (table > 0).sum(0).tolist() for split, table in tables.items()}
    for index, (name, color) in enumerate(zip(names, colors, strict=True)):
        pixels, images = ({split: counts[index] for split, counts in found.items()} for found in (sums, held))
        rows.append({"name": name, "color": show_value(color), "pixels": pixels, "images": images})
    return rows


def _unused(case: Case) -> Iterator[Finding]:
    totals = case.pixels.sum(0)[:-1]
    unused = [name for name, pixels in zip(case.label_map.names, totals, strict=True) if not pixels]
    if unused and len(unused) < len(totals):
        why, fix = _why_unused(case, unused)
        yield Finding(
            "unused-class",
            "info" if has_few_masks(case) else "warning",
            f"{count(len(unused), 'class', 'classes')} that no mask holds: {listed(unused, SHOWN)}{why}",
            numbers={"classes": unused},
            fix=(fix,),
        )


def has_few_masks(case: Case) -> bool:
    """There are fewer masks than classes: a part of a larger data set, of which nothing follows for a class."""
    return len(case.masks) < case.label_map.num_labels


def _why_unused(case: Case, unused: Sequence[str]) -> tuple[str, str]:
    """What became of all annotations of a class that no mask holds, and the fix."""
    tally = case.index.tally
    for fate in tally.fates() if tally else ():
        if tally and (undrawn := [name for name in tally.never_drawn(fate) if name in unused]):
            is_crowd = fate.kind == "crowd"
            fix = "dataset.crowd=class" if is_crowd else fate.fix or "give these classes outlines, or leave them out"
            return f"; all annotations of {listed(undrawn, SHOWN)} are {fate.what}", fix
    if _calls_nodata(case):
        return f"; {NODATA}", NODATA_FIX
    return "", "remove the names from dataset.labels, or look for the masks that should hold them"


def _calls_nodata(case: Case) -> bool:
    return any(NO_DATA in mask.values.counts for _, mask in case.masks)


def _similar_names(case: Case) -> Iterator[Finding]:
    """Classes that are one but for upper case and blanks."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in case.label_map.names:
        groups["".join(name.split()).casefold()].append(name)
    similar = [names for names in groups.values() if len(names) > 1]
    if not similar:
        return
    merged = {name: names[0].strip() for names in similar for name in names}
    own = case.index.classes or {}
    if own:
        table: dict[str, str | None] = {name: merged.get(name, name) for name in own.values() if name}
    else:
        keys = case.label_map.ids if case.label_map.ids is not None else case.label_map.mask_colors or {}
        names = {key: None if target is None else case.label_map.names[target] for key, target in keys.items()}
        table = {show_value(key): merged.get(name or "", name) for key, name in names.items()}
    shown = listed([" and ".join(map(repr, names)) for names in similar])
    yield Finding(
        "similar-names",
        "warning",
        f"classes whose names differ in upper case and blanks alone: {shown}",
        numbers={"classes": similar},
        fix=(f"dataset.labels={json.dumps(table)} makes one class of each",),
    )


def _missing_in_splits(case: Case) -> Iterator[Finding]:
    """A class that only other splits have: never learned where train lacks it, never measured where the others do."""
    held = {split: case.pixels_of(split)[:, :-1].sum(0) > 0 for split in case.trusted_splits}
    anywhere = np.any(list(held.values()), axis=0)
    for split, present in held.items():
        missing = [case.label_map.names[i] for i in np.flatnonzero(anywhere & ~present)]
        if missing:
            learned = split == "train"
            yield Finding(
                "class-missing-in-split",
                "info" if has_few_masks(case) else "error" if learned else "warning",
                f"{split} lacks {count(len(missing), 'class', 'classes')} that other splits have: "
                f"{listed(missing, SHOWN)}, which cannot be {'learned' if learned else 'measured there'}",
                numbers={"split": split, "classes": missing},
                fix=(
                    "dataset.split_file=split.json with samples of these classes in every split, or another "
                    "dataset.split_seed where val is drawn",
                ),
            )


def _imbalance(case: Case) -> Iterator[Finding]:
    """Rare classes of the first split, and the weights of median-frequency balancing (Eigen and Fergus 2015)."""
    split = case.trusted_splits[0]
    table = case.pixels_of(split)[:, :-1]
    pixels = table.sum(0)
    present = np.flatnonzero(pixels)
    if len(present) < 2 or pixels[present].max() < IMBALANCE * pixels[present].min():
        return
    weights = counted_weights("median_frequency", table)
    rare = present[np.argsort(pixels[present])][:4]
    shown = ", ".join(
        f"{case.label_map.names[i]} {percent(pixels[i] / pixels.sum())} of the pixels in "
        f"{count(int((table[:, i] > 0).sum()), 'image')}"
        for i in rare
    )
    yield Finding(
        "class-imbalance",
        "info",
        f"the most frequent class of {split} has {pixels[present].max() / pixels[present].min():.0f} times the pixels "
        f"of the least frequent; rarest are {shown}",
        numbers={
            "split": split,
            "pixel_share": dict(zip(case.label_map.names, (pixels / pixels.sum()).round(6).tolist(), strict=True)),
            "median_frequency_weights": dict(zip(case.label_map.names, weights.round(3).tolist(), strict=True)),
        },
        fix=("training.loss.class_weights=median_frequency",),
    )


def _ignored(case: Case) -> Iterator[Finding]:
    totals = case.pixels.sum(0)
    share = totals[-1] / max(totals.sum(), 1)
    sums = {split: case.pixels_of(split).sum(0) for split in case.trusted_splits}
    by_split = {split: found[-1] / max(found.sum(), 1) for split, found in sums.items()}
    if totals[-1]:
        yield Finding(
            "ignored-share",
            "warning" if share > 0.5 else "info",
            f"{percent(share)} of all pixels are ignored ("
            + ", ".join(f"{s} {percent(v)}" for s, v in by_split.items())
            + (f"); {NODATA}" if _calls_nodata(case) and share > 0.5 else ")"),
            numbers={"share": float(share), "by_split": {s: float(v) for s, v in by_split.items()}},
            fix=(NODATA_FIX if _calls_nodata(case) else "if an ignored value is a class, name it in dataset.labels",)
            if share > 0.5
            else (),
        )
