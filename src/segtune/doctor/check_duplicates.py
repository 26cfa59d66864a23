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
# Where all pictures of a set look alike, as eyes and chests do, that is not enough: two eyes of DRIVE reach 0.988.
# What two pictures differ by at twice the resolution is compared with what either differs by from others like it (the
# upper quarter of the set). Copies keep at most 0.075 of that in DRIVE, CamVid, earth and three more sets, different
# pictures of DRIVE at least 0.17.
DIFFERENCE = 0.1
REFERENCES = 512  # other pictures that stand for the set
LIKE_IT = 0.75  # quantile
# By how much neighbours by number are more alike than members of the same sequence in any order, of what those differ
# by: 0.27 to 0.61 in the drives of CamVid, at most 0.08 in earth, 0.02 among pets, -0.01 in DRIVE.
SEQUENCE = 0.15
SHUFFLES = 100
CERTAIN = 3.5  # their mean likeness over that of shuffled members, in standard deviations
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
    flat, mirror = _both_ways([image.thumbnail for image in images if image])
    fine = _both_ways([image.detail for image in images if image])
    digests = np.array([image.digest for image in images if image])
    usual = _usual_likeness(*fine)
    found: list[NearDuplicate] = []
    block = max(1, BLOCK_PAIRS // len(facts))
    for start in range(0, len(facts), block):
        for mirrored, other in enumerate((flat, mirror)):
            similarity = flat[start : start + block] @ other[start:].T  # (block, rest)
            for row, column in (np.argwhere(similarity >= NEAR)[:MOST_PAIRS] + start).tolist():
                if row >= column or digests[row] == digests[column]:
                    continue
                difference = 1 - float(fine[0][row] @ fine[mirrored][column])
                if difference <= DIFFERENCE * (1 - max(usual[row], usual[column])):
                    likeness = min(float(similarity[row - start, column - start]), 1.0)
                    found.append(NearDuplicate(facts[row], facts[column], likeness, bool(mirrored)))
    return sorted(found, key=lambda pair: -pair.similarity)[:MOST_PAIRS]


def _both_ways(thumbnails: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The thumbnails as rows (N, side * side), and those mirrored left to right."""
    stacked = np.stack(thumbnails).astype(np.float32)  # (N, side, side)
    return stacked.reshape(len(stacked), -1), stacked[:, :, ::-1].reshape(len(stacked), -1)


def _usual_likeness(fine: np.ndarray, mirror: np.ndarray) -> np.ndarray:
    """How much each picture is like those of the set that resemble it, either way round (N,)."""
    number = len(fine)
    places = np.unique(np.linspace(0, number - 1, min(number, REFERENCES)).astype(int))
    usual = np.zeros(number, dtype=np.float32)
    for other in (fine[places], mirror[places]):
        likeness = fine @ other.T  # (N, references)
        likeness[places, np.arange(len(places))] = -1  # itself
        place = int(LIKE_IT * (len(places) - 1))
        usual = np.maximum(usual, np.partition(likeness, place, axis=1)[:, place])
    return usual


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
    facts = list({item.image.digest: item for item in facts if item.image}.values())  # copies are told elsewhere
    thumbnails = np.stack([item.image.thumbnail.ravel() for item in facts if item.image])
    assert thumbnails.shape[1] == THUMBNAIL**2
    leaks: dict[str, dict[str, int]] = {}
    near: list[int] = []
    for key, members in sequences([item.sample for item in facts]).items():
        indices = [index for _, index in members]
        splits = [facts[index].sample.split for index in indices]
        if len(indices) >= LEAST_SEQUENCE and len(set(splits)) > 1 and is_sequence(thumbnails[indices]):
            leaks[key] = {split: splits.count(split) for split in case.splits if split in splits}
            near += _neighbours_of_train(indices, splits)
    if leaks:
        yield _describe_sequences(case, leaks, [facts[index].sample for index in near], len(facts))


def is_sequence(thumbnails: np.ndarray) -> bool:
    """Whether neighbours in (N, 256) are more alike than members in any order: that names are numbered tells nothing,
    and where all pictures of a set look alike, that neighbours do tells nothing either."""

    def likeness(order: np.ndarray) -> np.ndarray:
        return np.asarray((thumbnails[order[1:]] * thumbnails[order[:-1]]).sum(1))

    generator = np.random.default_rng(0)
    shuffled = [likeness(generator.permutation(len(thumbnails))) for _ in range(SHUFFLES)]
    means = np.array([each.mean() for each in shuffled])
    here, usual = likeness(np.arange(len(thumbnails))), float(np.median(np.concatenate(shuffled)))
    more = (float(np.median(here)) - usual) / max(1 - usual, 1e-6)
    enough = CERTAIN if len(thumbnails) >= 2 * LEAST_SEQUENCE else 1.0  # few members have few orders
    return more >= SEQUENCE and float(here.mean()) >= means.mean() + enough * means.std()


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
