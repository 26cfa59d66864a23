"""Mask outliers: masks that are ignored or of one class all over, full of specks, or with a renumbered palette."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator

import numpy as np

from segtune.data.index import Sample
from segtune.doctor.case import Case
from segtune.doctor.findings import Finding
from segtune.doctor.sample_facts import MaskFacts
from segtune.labels.mask_values import Color
from segtune.viz.numbers import count, percent

MUCH_IGNORED = 0.5  # of a mask; the largest of CamVid is 0.32, of earth 0.14
SELDOM_IGNORED = 0.1  # median share, up to which a mask of which much is ignored is odd
SPECKS, SPECKS_OVER_MEDIAN = 0.03, 5.0  # share of single pixels; the largest of CamVid is 0.006, of earth 0.016
USUALLY_MANY = 3  # classes that 95 of 100 masks hold at least, for a mask of one class to be odd
MANY_TIMES = 3  # as often as at its own index must a colour stand at another, for that to be its usual one


def check_masks(case: Case) -> Iterator[Finding]:
    """All findings about odd masks; untrusted ones are passed over, but for colours, which may be why they are."""
    trusted = [s not in case.untrusted and s.split in case.trusted_splits for s, _ in case.masks]
    if any(trusted):
        samples = [sample for (sample, _), is_trusted in zip(case.masks, trusted, strict=True) if is_trusted]
        facts = [mask for (_, mask), is_trusted in zip(case.masks, trusted, strict=True) if is_trusted]
        rows = case.pixels[trusted]
        yield from _all_ignored(case, samples, rows)
        yield from _one_class(case, samples, rows)
        yield from _much_ignored(case, samples, rows)
        yield from _specks(case, samples, facts)
    yield from _palettes(case)


def much_ignored(case: Case) -> frozenset[Sample]:
    """Samples of whose mask most is ignored."""
    shares = ignored_shares(case.pixels)
    return frozenset(s for (s, _), share in zip(case.masks, shares, strict=True) if share >= MUCH_IGNORED)


def ignored_shares(pixels: np.ndarray) -> np.ndarray:
    """The ignored part of each mask, from its pixels (masks, K + 1); (masks,)."""
    return np.asarray(pixels[:, -1] / np.maximum(pixels.sum(1), 1))


def _all_ignored(case: Case, samples: list[Sample], rows: np.ndarray) -> Iterator[Finding]:
    empty = [sample for sample, valid in zip(samples, rows[:, :-1].sum(1), strict=True) if not valid]
    if empty:
        everywhere = len(empty) == len(samples)
        yield case.finding(
            "all-ignored",
            "error" if everywhere else "warning",
            f"{count(len(empty), 'mask')} of {len(case.masks)} with ignored pixels only: nothing to learn from",
            empty,
            "dataset.labels: give the ignored values names" if everywhere else "finish these masks",
        )


def _one_class(case: Case, samples: list[Sample], rows: np.ndarray) -> Iterator[Finding]:
    held = (rows[:, :-1] > 0).sum(1)
    single = {
        s: case.label_map.names[int(row.argmax())]
        for s, row, n in zip(samples, rows[:, :-1], held, strict=True)
        if n == 1
    }
    if not single or case.label_map.num_labels < 2:
        return
    odd = float(np.percentile(held, 5)) >= USUALLY_MANY
    everywhere = len(single) == len(samples)
    names = ", ".join(f"{name}: {number}" for name, number in Counter(single.values()).items())
    yield case.finding(
        "one-class",
        "error" if everywhere else "warning" if odd else "info",
        f"{count(len(single), 'mask')} of a single class ({names})"
        + (f", where the median mask has {int(np.median(held))}" if odd else ""),
        list(single),
        "look whether these masks are empty, or other classes were forgotten",
        drop=None if odd and not everywhere else (),
    )


def _much_ignored(case: Case, samples: list[Sample], rows: np.ndarray) -> Iterator[Finding]:
    shares = ignored_shares(rows)
    odd = {s: float(share) for s, share in zip(samples, shares, strict=True) if MUCH_IGNORED <= share < 1}
    if not odd:
        return
    ordered = sorted(odd, key=lambda sample: -odd[sample])
    seldom = float(np.median(shares)) <= SELDOM_IGNORED
    yield case.finding(
        "much-ignored",
        "warning" if seldom else "info",
        f"{count(len(odd), 'mask')} with {percent(MUCH_IGNORED)} or more of the pixels ignored, where the median mask "
        f"has {percent(float(np.median(shares)))}",
        ordered,
        "finish these masks; if an ignored value is a class, name it in dataset.labels",
        {"shares": {sample.id: odd[sample] for sample in ordered}},
        drop=None if seldom else (),
    )


def _specks(case: Case, samples: list[Sample], facts: list[MaskFacts]) -> Iterator[Finding]:
    shares = np.array([mask.values.specks / mask.values.pixels for mask in facts])
    usual = float(np.median(shares))
    least = max(SPECKS, SPECKS_OVER_MEDIAN * usual)
    odd = [sample for sample, share in zip(samples, shares, strict=True) if share >= least]
    if odd:
        yield case.finding(
            "specks",
            "warning",
            f"{count(len(odd), 'mask')} with specks: up to {percent(float(shares.max()))} of the pixels differ from "
            f"all neighbours, in the median mask {percent(usual)}",
            odd,
            "make these masks again from the annotation, or clean them with a median filter",
        )


def _palettes(case: Case) -> Iterator[Finding]:
    """Palette pictures whose indices were numbered anew: their colours belong to other ids in the rest of the set."""
    if case.label_map.mask_colors is not None:
        return
    votes: dict[Color, Counter[int]] = defaultdict(Counter)
    for _, mask in case.masks:
        for index, color in mask.palette.items():
            votes[color][index] += 1
    classes = {color: number for number, color in enumerate(case.label_map.colors)}

    def is_wrong(index: int, color: Color) -> bool:
        usual, number = votes[color].most_common(1)[0]
        by_vote = usual != index and number >= MANY_TIMES * votes[color][index]
        return by_vote or (color in classes and case.targets.get(index) != classes[color])

    odd = [
        sample
        for sample, mask in case.masks
        if sum(is_wrong(index, color) for index, color in mask.palette.items()) >= 2
    ]
    if odd:
        yield case.finding(
            "palette-order",
            "error",
            f"{count(len(odd), 'palette mask')} with colours at other indices than in the label map or in other masks: "
            "they were numbered anew when it was saved",
            odd,
            "save masks with the palette of the data set: Pillow's convert('P') and quantize() number colours anew",
        )
