"""Near-duplicate images and leakage: copies, near copies, and frames of one sequence in several splits."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from segtune.data.index import Sample
from segtune.doctor.case import Case
from segtune.doctor.findings import Finding, Severity
from segtune.doctor.sample_facts import THUMBNAIL, Facts
from segtune.errors import listed
from segtune.viz.numbers import count, percent

# Correlation of two thumbnails, each free of its local mean. A copy that was compressed again, resized, brightened or
# given another contrast keeps at least 0.96, mostly 0.99. Different tiles of earth reach 0.46, different splits of
# CamVid 0.65; frames of a standing camera 0.99, which is why those within one split are no more than a fact.
NEAR = 0.97
# Median correlation of neighbours by number, above which names count as a sequence: 0.31 to 0.66 in the drives of
# CamVid, at most 0.03 in the rows of earth.
SEQUENCE = 0.2
LEAST_SEQUENCE = 4  # members
MOST_PAIRS = 10_000  # that are kept
BLOCK_PAIRS = 2**24  # that are compared at once: 64 MiB


class NearDuplicate(NamedTuple):
    """Two samples whose images are nearly equal; `mirrored` left to right."""

    first: Facts
    second: Facts
    similarity: float
    mirrored: bool

    @property
    def splits(self) -> set[str]:
        return {self.first.sample.split, self.second.sample.split}


def check_duplicates(case: Case) -> Iterator[Finding]:
    """All findings about pictures that resemble each other."""
    yield from _exact_duplicates(case)
    yield from _near_duplicates(case)
    yield from _sequences(case)


def _exact_duplicates(case: Case) -> Iterator[Finding]:
    groups: dict[str, list[Facts]] = defaultdict(list)
    for facts in case.facts:
        if facts.image:
            groups[facts.image.digest].append(facts)
    duplicates = [group for group in groups.values() if len(group) > 1]
    leaked = [group for group in duplicates if len({facts.sample.split for facts in group}) > 1]
    within = [group for group in duplicates if len({facts.sample.split for facts in group}) == 1]
    conflicting = [group for group in duplicates if len({facts.mask.digest for facts in group if facts.mask}) > 1]
    kinds: tuple[tuple[str, Severity, list[list[Facts]], str], ...] = (
        ("leaked-duplicates", "error", leaked, "that are in more than one split: what is measured was learned"),
        ("duplicates", "warning", within, "within one split"),
        ("conflicting-duplicates", "error", conflicting, "whose masks differ"),
    )
    for code, severity, found, what in kinds:
        if found:
            samples = [facts.sample for group in found for facts in group]
            yield case.finding(
                code,
                severity,
                f"{count(len(found), 'image')} stored {len(samples)} times in all, {what}",
                samples,
                "keep one of each, with the better mask" if code == "conflicting-duplicates" else "keep one of each",
                {"groups": [list(case.files((facts.sample for facts in group), "image")) for group in found]},
                of="image",
                drop=samples
                if code == "conflicting-duplicates"
                else [facts.sample for group in found for facts in group[:-1]],
            )


def _near_duplicates(case: Case) -> Iterator[Finding]:
    pairs = near_duplicates([facts for facts in case.facts if facts.image])
    for leaked in (True, False):
        found = [pair for pair in pairs if (len(pair.splits) > 1) == leaked]
        if not found:
            continue
        samples = list(dict.fromkeys(facts.sample for pair in found for facts in (pair.first, pair.second)))
        mirrored = sum(pair.mirrored for pair in found)
        pairs_of_files = [
            [*case.files([p.first.sample, p.second.sample], "image"), round(p.similarity, 4)] for p in found
        ]
        yield case.finding(
            "leaked-near-duplicates" if leaked else "near-duplicates",
            "warning" if leaked else "info",
            f"{count(len(found), 'pair')} of nearly equal images {'in different splits' if leaked else 'in one split'}"
            + (f", {mirrored} of them mirrored" if mirrored else "")
            + f", of {len(samples)} images",
            samples,
            "keep one of each, or both in one split"
            if leaked
            else "keep one of each, unless they are a video's frames",
            {"pairs": pairs_of_files},
            of="image",
            drop=[pair.first.sample for pair in found] if leaked else (),
        )


def near_duplicates(facts: Sequence[Facts]) -> list[NearDuplicate]:
    """Pairs of images that are nearly equal but no copies, also when one is mirrored; the most similar first."""
    images = [item.image for item in facts]
    if not images:
        return []
    thumbnails = np.stack([image.thumbnail for image in images if image])  # (N, 16, 16)
    flat, mirror = thumbnails.reshape(len(facts), -1), thumbnails[:, :, ::-1].reshape(len(facts), -1)
    digests = np.array([image.digest for image in images if image])
    found: list[NearDuplicate] = []
    block = max(1, BLOCK_PAIRS // len(facts))
    for start in range(0, len(facts), block):
        for other, mirrored in ((flat, False), (mirror, True)):
            similarity = flat[start : start + block] @ other[start:].T  # (block, rest)
            for row, column in np.argwhere(similarity >= NEAR)[:MOST_PAIRS].tolist():
                if row < column and digests[start + row] != digests[start + column]:
                    pair = facts[start + row], facts[start + column]
                    found.append(NearDuplicate(*pair, min(float(similarity[row, column]), 1.0), mirrored))
    return sorted(found, key=lambda pair: -pair.similarity)[:MOST_PAIRS]


# -- sequences --------------------------------------------------------------------------------------------------------


def sequences(samples: Sequence[Sample]) -> dict[str, list[tuple[int, int]]]:
    """What ids share apart from their last number that varies -> (number, index of the sample), in order.

    "aachen_000000_000019_leftImg8bit" is number 19 of "aachen_000000_#_leftImg8bit".
    """
    parts = [re.split(r"(\d+)", sample.id) for sample in samples]
    position = _varying_number(parts)
    groups: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for index, words in enumerate(parts):
        if len(words) > 2 * position + 2:
            place = len(words) - 2 - 2 * position
            key = "".join([*words[:place], "#", *words[place + 1 :]])
            groups[key].append((int(words[place]), index))
    return {key: sorted(members) for key, members in sorted(groups.items())}


def _varying_number(parts: Sequence[Sequence[str]]) -> int:
    """Which number of the ids, counted from the last (0), is not the same in all of them."""
    for position in range(8):
        numbers = {words[-2 - 2 * position] for words in parts if len(words) > 2 * position + 2}
        if len(numbers) > 1:
            return position
    return 0


def _sequences(case: Case) -> Iterator[Finding]:
    """Frames of one video or slices of one patient in several splits: named so, and neighbours are alike."""
    facts = [item for item in case.facts if item.image]
    if len(facts) < LEAST_SEQUENCE:
        return
    thumbnails = np.stack([item.image.thumbnail.ravel() for item in facts if item.image])
    assert thumbnails.shape[1] == THUMBNAIL**2
    leaks: dict[str, dict[str, int]] = {}
    near: list[int] = []
    for key, members in sequences([item.sample for item in facts]).items():
        indices = [index for _, index in members]
        splits = [facts[index].sample.split for index in indices]
        if len(indices) < LEAST_SEQUENCE or len(set(splits)) < 2:
            continue
        likeness = (thumbnails[indices[1:]] * thumbnails[indices[:-1]]).sum(1)
        if np.median(likeness) >= SEQUENCE:
            leaks[key] = {split: splits.count(split) for split in case.splits if split in splits}
            near += _neighbours_of_train(indices, splits)
    if leaks:
        yield _describe_sequences(case, leaks, [facts[index].sample for index in near], len(facts))


def _neighbours_of_train(indices: Sequence[int], splits: Sequence[str]) -> list[int]:
    """Members of other splits right before or after one of train."""
    return [
        index
        for place, (index, split) in enumerate(zip(indices, splits, strict=True))
        if split != "train" and "train" in splits[max(place - 1, 0) : place + 2]
    ]


def _describe_sequences(case: Case, leaks: dict[str, dict[str, int]], near: list[Sample], total: int) -> Finding:
    outside = sum(number for splits in leaks.values() for split, number in splits.items() if split != "train")
    shown = [
        f"{key}: " + ", ".join(f"{number} in {split}" for split, number in splits.items())
        for key, splits in leaks.items()
    ]
    return case.finding(
        "leaked-sequence",
        "warning",
        f"{count(len(leaks), 'sequence')}, by name and looks, in more than one split ({listed(shown, 4, '; ')}): "
        f"scores are too good by what is alike; {len(near)} of {outside} images outside of train "
        f"({percent(len(near) / outside)}) are next to one of train",
        near,
        "dataset.split_file=FILE with every sequence in one split",
        {"sequences": leaks, "outside_train": outside, "next_to_train": len(near)},
        of="image",
        drop=(),
    )
