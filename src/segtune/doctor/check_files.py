"""File integrity: missing partners, damaged files, sizes that differ, EXIF orientations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from segtune.doctor.case import Case
from segtune.doctor.check_alignment import CERTAIN
from segtune.doctor.findings import Finding, Severity
from segtune.doctor.sample_facts import Facts
from segtune.imageio.read import TURNED
from segtune.viz.numbers import by, count

SCAN_CODES = {  # kinds of problems of an index -> our codes
    "image_without_mask": "unpaired",
    "mask_without_image": "unpaired",
    "name_twice": "ambiguous-name",
}
FROM_FACTS = ("unreadable", "size_mismatch")  # kinds that the files themselves tell more about


def check_files(case: Case) -> Iterator[Finding]:
    """All findings about files."""
    yield from _scan_problems(case)
    yield from _no_samples(case)
    yield from _annotations(case)
    yield from _unreadable(case)
    yield from _sizes(case)
    yield from _orientations(case)


def _scan_problems(case: Case) -> Iterator[Finding]:
    owners = {case.index.below(path): s for facts in case.facts for s in [facts.sample] for path in (s.image, s.mask)}
    for problem in case.index.problems:
        if problem.kind in FROM_FACTS and owners.keys() >= set(problem.files):
            continue
        code = SCAN_CODES.get(problem.kind, problem.kind.replace("_", "-"))
        samples = tuple(owners[file] for file in problem.files if file in owners)
        what = problem.message.partition(":")[0]
        numbers = {"count": len(problem.files)}
        yield Finding(code, "error", what, problem.files, numbers, (problem.fix,), samples, samples)


def _no_samples(case: Case) -> Iterator[Finding]:
    """Nothing to learn from, and no other finding that says why."""
    if not case.facts and not case.index.problems:
        yield Finding(
            "no-samples",
            "error",
            f"no sample was found, read as {case.index.format}",
            fix=(
                "dataset.path, dataset.images and dataset.masks say where the files are, dataset.format what they are",
            ),
        )


def _annotations(case: Case) -> Iterator[Finding]:
    """Where the annotations of a file ended; what is an error is a problem of the index as well, and told as that."""
    tally = case.index.tally
    if tally is None:
        return
    told = {problem.kind for problem in case.index.problems}
    for fate, entries in tally.losses():
        if fate.kind not in told:
            lost = tally.count(fate)
            message = f"{count(lost, 'annotation')} of {tally.given} {fate.what}"
            numbers = {"count": lost, "of": tally.given}
            yield Finding(fate.kind.replace("_", "-"), "warning", message, tuple(entries), numbers, (fate.fix,))
    yield Finding("annotations", "info", str(tally), numbers={"given": tally.given, "drawn": tally.drawn})


def _unreadable(case: Case) -> Iterator[Finding]:
    for what in ("image", "mask"):
        faulty = [facts for facts in case.facts if what in facts.faults]
        if faulty:
            reasons = Counter(facts.faults[what] for facts in faulty)
            shown = [f"{reason} ({number})" if len(faulty) > 1 else reason for reason, number in reasons.most_common(3)]
            rest = f"; and {len(reasons) - 3} other reasons" if len(reasons) > 3 else ""
            yield case.finding(
                "unreadable",
                "error",
                f"{count(len(faulty), what)} cannot be read: {'; '.join(shown)}{rest}",
                [facts.sample for facts in faulty],
                "do what the reason says; replace files that are damaged",
                {"faults": {facts.sample.id: facts.faults[what] for facts in faulty}},
                of="image" if what == "image" else "mask",
            )


def _sizes(case: Case) -> Iterator[Finding]:
    """Partners of different sizes that no orientation explains."""
    different = [
        (facts.sample, facts.image.size, facts.mask.size)
        for facts in case.facts
        if facts.image and facts.mask and facts.image.size != facts.mask.size and not facts.is_turned
    ]
    if different:
        _, image, mask = different[0]
        yield case.finding(
            "size-mismatch",
            "error",
            f"{count(len(different), 'image')} of another size than {'its mask' if len(different) == 1 else 'the mask'}"
            f", such as {by(image)} and {by(mask)} (height x width){_explain_sizes(different)}",
            [sample for sample, _, _ in different],
            "bring the masks to their images' size with nearest-neighbour resampling, or replace them",
            {"sizes": {sample.id: {"image": list(a), "mask": list(b)} for sample, a, b in different}},
        )


def _explain_sizes(different: Sequence[tuple[object, tuple[int, int], tuple[int, int]]]) -> str:
    turned = sum(image == mask[::-1] for _, image, mask in different)
    ratios = {image[0] / mask[0] for _, image, mask in different if image != mask[::-1]}
    words = []
    if turned:
        words.append(f"in {turned} height and width are exchanged: turned or transposed")
    if len(ratios) == 1 and ratios != {1.0}:
        words.append(f"images {ratios.pop():.3g} times as high as masks")
    return "".join(f"; {word}" for word in words)


def _orientations(case: Case) -> Iterator[Finding]:
    """A camera's note in the image that the mask does not have; without it the two would lie on each other.

    Where the note exchanges height and width, equal sizes say that the mask was drawn on the picture as it is shown.
    Annotations are, by all tools that are known: only what can be seen speaks against it.
    """
    turned = [facts for facts in case.facts if facts.is_turned]
    wrong = [f for f in turned if (f.image and f.mask and f.image.size != f.mask.size) or _is_aligned_unturned(f)]
    known = {facts.sample for facts in turned if _fits_as_shown(facts)} | {facts.sample for facts in wrong}
    unclear = [facts for facts in turned if facts.sample not in known]
    remove = "remove the entry from these images: exiftool -Orientation= -overwrite_original FILES"
    look = "look at them (segtune data preview): only of those whose mask lies on the picture as it is stored, "
    groups: tuple[tuple[Sequence[Facts], Severity, str, str], ...] = (
        (
            wrong,
            "error",
            "turned by an EXIF orientation, while the mask was drawn on the picture as it is stored",
            remove,
        ),
        (
            unclear,
            "warning",
            "turned by an EXIF orientation that the mask lacks, and whether they fit cannot be seen",
            look + remove.replace("these images", "the image"),
        ),
    )
    for group, severity, what, fix in groups:
        if group:
            yield case.finding(
                "exif-mismatch",
                severity,
                f"{count(len(group), 'image')} {what}",
                [facts.sample for facts in group],
                fix,
                {"orientations": {facts.sample.id: facts.image.header.orientation for facts in group if facts.image}},
                of="image",
            )


def _fits_as_shown(facts: Facts) -> bool:
    if facts.image is None or facts.mask is None:
        return False
    height, width = facts.image.size
    told_by_size = facts.image.header.orientation in TURNED and height != width and facts.mask.size == (height, width)
    seen = facts.alignment is not None and facts.alignment.evidence_here >= CERTAIN
    return told_by_size or facts.mask.drawn or seen


def _is_aligned_unturned(facts: Facts) -> bool:
    return any(pose.evidence_here >= CERTAIN for pose in facts.poses.values())
