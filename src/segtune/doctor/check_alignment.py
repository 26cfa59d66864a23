"""Misaligned masks: those that are shifted, mirrored or turned, or belong to another image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from segtune.data.index import Sample
from segtune.doctor.alignment import REACH, TOLERANCE, Alignment
from segtune.doctor.case import Case
from segtune.doctor.check_masks import much_ignored
from segtune.doctor.findings import Finding
from segtune.doctor.sample_facts import Facts
from segtune.viz.numbers import count

# Evidence is a correlation over the spread of the correlations of all shifts. Masks on wrong images reach 4.7 in CamVid
# and, once in 150, 5.2 in earth; right ones have 3.6 to 24 (median 12) and -2 to 17 (median 6).
CERTAIN = 6.0
LIKELY = 4.0  # in well drawn splits, beside a correlation that wrong masks do not reach
NONE = 3.0
# Clean masks have their best correlation within one pixel of no shift; one shifted by 3 keeps 0.2 to 0.8 of it.
STILL_GOOD = 0.75
WELL_DRAWN = 5.0  # the evidence that 90 of 100 masks of a split must have, for a single one without any to be odd
# Of the median correlation of a well drawn split: wrong masks reach 0.25 in CamVid.
UNLIKE, LIKE = 0.25, 0.33
LEAST_MASKS = 10  # for anything to be said about all
MAJORITY = 0.5

Compared = Sequence[tuple[Facts, Alignment]]


def check_alignment(case: Case) -> Iterator[Finding]:
    """All findings about masks and images that do not lie on each other."""
    left_out = case.untrusted | much_ignored(case)
    compared = [
        (facts, facts.alignment)
        for facts in case.facts
        if facts.alignment is not None and facts.sample not in left_out and not facts.is_turned
    ]
    usual = usual_alignments(compared)
    shift = common_shift([alignment for _, alignment in compared])
    shifted = [facts for facts, alignment in compared if is_shifted(alignment, usual.get(facts.sample.split))]
    if shift:
        yield _describe_common_shift(case, [facts.sample for facts, _ in compared], shift)
        return
    if shifted:
        yield _describe_shifts(case, shifted)
    told = {facts.sample for facts in shifted}
    rest = [(facts, alignment) for facts, alignment in compared if facts.sample not in told]
    for pose in dict.fromkeys(pose for facts, _ in rest for pose in facts.poses):
        mirrored = [facts.sample for facts, _ in rest if _is_aligned_as(facts, pose, usual.get(facts.sample.split))]
        if mirrored:
            yield _describe_pose(case, mirrored, pose, len(compared))
            told = set(mirrored)
            rest = [(facts, alignment) for facts, alignment in rest if facts.sample not in told]
    yield from _misfits(case, rest, compared, usual)


def usual_alignments(compared: Compared) -> dict[str, float]:
    """Split -> median correlation, of the splits whose masks are drawn so well that a bad one is odd."""
    usual = {}
    for split in dict.fromkeys(facts.sample.split for facts, _ in compared):
        alignments = [alignment for facts, alignment in compared if facts.sample.split == split]
        if (
            len(alignments) >= LEAST_MASKS
            and np.percentile([alignment.evidence_here for alignment in alignments], 10) >= WELL_DRAWN
        ):
            usual[split] = float(np.median([alignment.here for alignment in alignments]))
    return usual


def is_shifted(alignment: Alignment, usual: float | None) -> bool:
    """The mask fits clearly better elsewhere; `usual` is the median correlation of a well drawn split."""
    if alignment.distance <= alignment.tolerance or alignment.here > STILL_GOOD * alignment.best:
        return False
    return _is_certain(alignment.best, alignment.evidence_best, usual)


def _is_certain(correlation: float, evidence: float, usual: float | None) -> bool:
    return evidence >= CERTAIN or (usual is not None and evidence >= LIKELY and correlation >= LIKE * usual)


def _is_aligned_as(facts: Facts, pose: str, usual: float | None) -> bool:
    """The turned or mirrored mask fits, and does so without a shift."""
    alignment = facts.poses.get(pose)
    return (
        alignment is not None
        and alignment.distance <= TOLERANCE
        and _is_certain(alignment.here, alignment.evidence_here, usual)
    )


def common_shift(alignments: Sequence[Alignment]) -> tuple[int, int] | None:
    """The shift (down, right) in pixels by which most masks fit best, from the mean of their correlations, if any."""
    if len(alignments) < LEAST_MASKS:
        return None
    surface = np.mean([alignment.surface for alignment in alignments], axis=0)  # (2 R + 1, 2 R + 1)
    surface -= np.median(surface)
    down, right = (int(place) - REACH for place in np.unravel_index(surface.argmax(), surface.shape))
    noise = 1.4826 * np.median(np.abs(surface))
    agree = [max(abs(f.shift[0] // f.scale - down), abs(f.shift[1] // f.scale - right)) <= 1 for f in alignments]
    if max(abs(down), abs(right)) <= TOLERANCE or surface.max() < CERTAIN * noise or np.mean(agree) < MAJORITY:
        return None
    scale = int(np.median([alignment.scale for alignment in alignments]))
    return down * scale, right * scale


def _describe_common_shift(case: Case, samples: Sequence[Sample], shift: tuple[int, int]) -> Finding:
    message = f"the masks lie {_place(shift)} of where the images have their edges, in most of {len(samples)} samples"
    return case.finding("shifted-masks", "error", message, samples, _roll(shift), {"shift": list(shift)}, drop=())


def _describe_shifts(case: Case, shifted: Sequence[Facts]) -> Finding:
    found = {facts.sample: facts.alignment for facts in shifted if facts.alignment}
    ordered = sorted(found, key=lambda sample: -found[sample].evidence_best)
    clearest = found[ordered[0]].shift
    message = f"{count(len(ordered), 'mask')} beside the edges of the image: "
    message += f"{'' if len(ordered) == 1 else 'the clearest '}{_place(clearest)}"
    shifts = {"shifts": {sample.id: list(found[sample].shift) for sample in ordered}}
    return case.finding("shifted-masks", "warning", message, ordered, _roll(clearest), shifts)


def _place(shift: tuple[int, int]) -> str:
    """Where a mask lies that must move by a shift (down, right)."""
    down, right = shift
    words = [f"{count(abs(down), 'pixel')} {'above' if down > 0 else 'below'}"] if down else []
    words += [f"{count(abs(right), 'pixel')} {'left' if right > 0 else 'right'}"] if right else []
    return " and ".join(words)


def _roll(shift: tuple[int, int]) -> str:
    return (
        f"move masks {shift[0]} rows down and {shift[1]} columns right: numpy.roll(mask, {shift}, (0, 1)), rim ignored"
    )


def _describe_pose(case: Case, samples: Sequence[Sample], pose: str, total: int) -> Finding:
    everywhere = len(samples) > MAJORITY * total
    return case.finding(
        "mirrored-masks",
        "error" if everywhere else "warning",
        f"{count(len(samples), 'mask')} of {total} {'fits' if len(samples) == 1 else 'fit'} the image only {pose}",
        samples,
        f"store these masks {pose}",
        {"pose": pose, "of": total},
        drop=() if everywhere else None,
    )


def _misfits(case: Case, rest: Compared, compared: Compared, usual: dict[str, float]) -> Iterator[Finding]:
    """Masks without any likeness to their image: odd ones of a well drawn split, or nearly all."""
    evidence = [alignment.evidence_here for _, alignment in compared]
    if len(compared) >= LEAST_MASKS and np.median(evidence) < NONE and len(rest) > MAJORITY * len(compared):
        yield _describe_misfits(case, [facts.sample for facts, _ in rest], len(compared))
        return
    odd = [
        (alignment.here / usual[facts.sample.split], facts.sample)
        for facts, alignment in rest
        if facts.sample.split in usual
        and alignment.evidence_here < NONE
        and alignment.here < UNLIKE * usual[facts.sample.split]
    ]
    if odd:
        yield _describe_misfits(case, [sample for _, sample in sorted(odd)], len(compared))


def _describe_misfits(case: Case, samples: Sequence[Sample], total: int) -> Finding:
    everywhere = len(samples) > MAJORITY * total
    return case.finding(
        "misfit-masks",
        "warning",
        f"{count(len(samples), 'mask')} of {total} without boundaries where the image has edges: "
        + ("do the names belong to each other?" if everywhere else "drawn for another image, or damaged"),
        samples,
        "look at them, and give each image its own mask",
        {"of": total},
        drop=() if everywhere else None,
    )
